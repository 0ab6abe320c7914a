"""What a case says in words, and in expressions that are Python and nearly C."""

from __future__ import annotations

from typing import Any, NamedTuple

from npmeta.network.mlp import MLP
from npmeta.network.normalisation import EPS
from npmeta.verification.doctor.files import structure_of

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

#: What a mean and a variance are over.
NORM_STATISTICS = {
    "batch": "for each unit, over the rows of one task in the pass at hand: the support rows in an "
    "inner step, the query rows in the loss of the query set; none are kept",
    "layer": "for each row, over the units of the layer",
}


def normalisation(model: MLP) -> dict[str, Any]:
    """What a case says of the normalisation of its network; nothing if it has none."""
    if model.norm is None:
        return {}
    shape = "(n,)" if model.norm_sets == 1 else f"({model.norm_sets}, n)"
    moved = (
        "moved by inner steps as weights are"
        if model.adapt_norm
        else "not moved by inner steps, learned by the outer loop"
    )
    sets = (
        "the first row for the pass at phi[0], the next for that at phi[1], and so on; beyond the last "
        "row, that one stays"
        if model.norm_sets > 1
        else "the same in every pass"
    )
    return {
        "norm": model.norm,
        "adapt_norm": model.adapt_norm,
        "norm_sets": model.norm_sets,
        "norm_details": {
            "place": "of every hidden layer, between z = x W + b and the activation",
            "formula": "u = scale * (z - mean(z)) / sqrt(mean((z - mean(z))**2) + eps) + shift",
            "eps": EPS,
            "statistics": NORM_STATISTICS[model.norm],
            "derivatives": "mean and variance depend on z, and are differentiated, twice",
            "scale_and_shift": f"{shape} for n units, after weight and bias of their layer; {moved}",
            "sets": sets,
        },
    }


def structure(model: MLP) -> dict[str, Any]:
    """What a case says of the structure that its network learns; nothing if it learns none."""
    if model.structure is None:
        return {}
    several, gates = len(model.structure.names) > 1, model.structure.gates
    moved = (
        "moved by inner steps as weights are"
        if model.structure.adapt
        else "not moved by inner steps, learned by the outer loop"
    )
    return {
        "structure": structure_of(model.structure),
        "structure_details": {
            "place": "of every hidden layer, from z = x W + b to the next layer's input a",
            "formula": ("a = g * " if gates else "a = ")
            + ("sum over k of p[k] * candidate[k](z)" if several else "candidate(z)"),
            "mixture": "p = exp(mixture) / sum(exp(mixture)), one p for all units" if several else "",
            "gate": "g = 1 / (1 + exp(-gate)), one for each unit" if gates else "",
            "parameters": f"after weight and bias of their layer; {moved}",
        },
    }
