"""The options that networks have, and those that several algorithms have.

Those of one algorithm alone stand with it in :mod:`npmeta.algorithms.registry`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from npmeta._support.options import ANY, MANY, Option
from npmeta.network.activations import ACTIVATIONS
from npmeta.network.distances import DISTANCES
from npmeta.network.mlp import MLP
from npmeta.network.normalisation import NORMS
from npmeta.network.structure import Structure

_model, _option = partial(Option, "model"), partial(Option, "algorithm")

_HIDDEN = _model(
    "hidden", int, "widths of the hidden layers (none: a linear model)", [40, 40], low=1, length=ANY
)
_ACTIVATION = _model(
    "activation",
    str,
    "activation of all hidden layers, or one for each",
    "relu",
    choices=tuple(ACTIVATIONS),
    length=MANY,
)
_NORM = _model(
    "norm",
    str,
    "normalisation of hidden layers; batch: over a task's rows, so predictions are transductive",
    "none",
    choices=("none", *NORMS),
)
_ADAPT_NORM = _model("adapt_norm", bool, "move scale and shift of the norm in the inner loop")
_NORM_SETS = _model(
    "norm_sets", int, "scales and shifts, one for each inner step in turn (with --no-adapt-norm)", low=1
)

#: Of every network.
NETWORK = tuple(o.of(MLP) for o in (_HIDDEN, _ACTIVATION, _NORM, _ADAPT_NORM, _NORM_SETS))

_CANDIDATES = _model(
    "candidates",
    str,
    "what the hidden activations are mixtures of; 'activation' has no part",
    choices=tuple(ACTIVATIONS),
    length=MANY,
)
_GATES = _model("gates", bool, "a gate for every hidden unit")
_ADAPT = _model("adapt_structure", bool, "move mixtures and gates in the inner loop", argument="adapt")

#: Of a network that learns its structure.
STRUCTURE = tuple(option.of(Structure) for option in (_CANDIDATES, _GATES, _ADAPT))

# --- of the inner loop --------------------------------------------------------------------------------

INNER_LRS = _option(
    "inner_lr",
    float,
    "inner step size: one number, one a layer, or one a step; 0 freezes a layer",
    low=0,
    length=MANY,
)
INNER_LR = replace(INNER_LRS, help="inner step size, one number")
INNER_LR_PER = _option(
    "inner_lr_per",
    str,
    "what several values of inner_lr are for, where their number could mean either",
    "auto",
    choices=("auto", "layer", "step"),
)
INNER_STEPS = _option("inner_steps", int, "inner steps while training", low=0)
FIRST_ORDER = _option("first_order", bool, "leave out second derivatives (FOMAML)")
INNER_WEIGHT_DECAY = _option("inner_weight_decay", float, "weight decay in the inner loop", low=0)
LEARN_INNER_LR = _option("learn_inner_lr", bool, "learn the inner step sizes too")

FINE_TUNING = (INNER_LRS, INNER_LR_PER, INNER_STEPS, INNER_WEIGHT_DECAY)
INNER_LOOP = (INNER_LR, INNER_STEPS, FIRST_ORDER, INNER_WEIGHT_DECAY)

# --- of what compares embeddings ----------------------------------------------------------------------

EMBEDDING = _model("embedding", int, "outputs of the embedding network", 64, low=1)
DISTANCE = _option("distance", str, "between embeddings", choices=tuple(DISTANCES))
SCALE = _option(
    "scale",
    float,
    "of distances (ridge: of the fit) to begin with; by default what suits them",
    low=0,
    exclusive=True,
    optional=True,
)
