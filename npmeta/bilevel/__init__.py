"""The two loops: what is descended on, step sizes, the inner loop and its adjoint, the plan of the
weights, the outer optimizers."""
