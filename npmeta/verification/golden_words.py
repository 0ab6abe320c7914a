"""What a case says in words, and in expressions that are Python and nearly C."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ACTIVATION_FORMULAS", "LOSS_FORMULAS", "LossFormula"]

#: f(z) by the name of the activation.
ACTIVATION_FORMULAS = {
    "identity": "z",
    "relu": "z if z > 0 else 0",
    "leaky_relu": "z if z > 0 else 0.01 * z",
    "elu": "z if z > 0 else exp(z) - 1",
    "tanh": "tanh(z)",
    "sigmoid": "1 / (1 + exp(-z))",
    "softplus": "log(1 + exp(z))",
    "gelu": "z * (1 + erf(z / sqrt(2))) / 2",
    "silu": "z / (1 + exp(-z))",
    "sin": "sin(z)",
}


class LossFormula(NamedTuple):
    """A loss of one entry or one row, and what is done over outputs and over rows."""

    formula: str
    outputs: str
    rows: str = "mean"


#: Losses by name. o is an output and y its target; c a class, and label the right one.
LOSS_FORMULAS = {
    "mse": LossFormula("(o - y)**2", "mean"),
    "huber": LossFormula("(o - y)**2 / 2 if abs(o - y) <= 1 else abs(o - y) - 1/2", "mean"),
    "binary_cross_entropy": LossFormula("log(1 + exp(o)) - y * o", "mean"),
    "poisson_nll": LossFormula("exp(o) - y * o", "mean"),
    "cross_entropy": LossFormula("-y[c] * log(exp(o[c]) / sum(exp(o)))", "sum over c"),
    "hinge": LossFormula("max(0, 1 + o[c] - o[label])", "sum over c != label"),
    "squared_hinge": LossFormula("max(0, 1 + o[c] - o[label])**2", "sum over c != label"),
}
