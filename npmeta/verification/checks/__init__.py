"""A gradient, a Hessian product or a meta-gradient in; a report with a verdict for each block out."""
