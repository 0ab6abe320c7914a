"""Meta-gradients from first-order code alone, and derivatives by differences that know their error.

Nothing here is taken from the checks, the doctor or the golden vectors, and of what is judged only the
definition of the network and of its losses.
"""
