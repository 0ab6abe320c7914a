"""Every algorithm by name: what it is, the options it has, and how it is made from their values.

To add one, write ``npmeta/algorithms/<name>.py`` with a frozen dataclass that is a
:class:`~npmeta.algorithms.base.MetaLearner`, and add an
:class:`~npmeta.algorithms.from_options.Entry` to those below. Then it trains, evaluates, adapts and
resumes from the command line, ``npmeta list`` shows it, and the tests of the registry take it up.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from npmeta._support.options import ANY, PAIR, Option
from npmeta.algorithms import (
    CAVIA,
    IMAML,
    MAML,
    MANN,
    SNAIL,
    Joint,
    MAMLPlusPlus,
    MatchingNetwork,
    MetaLSTM,
    MetaSGD,
    PrototypicalNetwork,
    RelationNetwork,
    Reptile,
    RidgeHead,
    Scratch,
    SiameseNetwork,
    SineOracle,
    StructuredMAML,
    Warp,
    anil,
    boil,
    fomaml,
    lslr,
)
from npmeta.algorithms.from_options import (
    Entry,
    on_context,
    on_embedding,
    on_structure,
    on_waves,
    with_relation,
)
from npmeta.algorithms.options import (
    DISTANCE,
    EMBEDDING,
    FINE_TUNING,
    FIRST_ORDER,
    INNER_LOOP,
    INNER_LR,
    INNER_STEPS,
    INNER_WEIGHT_DECAY,
    LEARN_INNER_LR,
    SCALE,
    STRUCTURE,
)
from npmeta.algorithms.relation import HIDDEN
from npmeta.algorithms.siamese import PAIR_LOSSES
from npmeta.algorithms.snail import MOST_CONVOLUTIONS
from npmeta.network.activations import ACTIVATIONS
from npmeta.tasks.registry import KINDS

_model, _option = partial(Option, "model"), partial(Option, "algorithm")

#: The kinds of tasks that may have classes.
_CLASSIFIED = tuple(kind.name for kind in KINDS.values() if kind.classes)

#: What a network that has not learned to adapt bears.
_SMALL_STEP = {"sinusoid": 0.001, "table": 0.001}

_ENTRIES: tuple[Entry, ...] = (
    Entry(
        "maml",
        "an initialisation from which a few gradient steps solve a new task",
        "Finn, Abbeel & Levine 2017",
        MAML,
        (*FINE_TUNING, FIRST_ORDER, LEARN_INNER_LR),
    ),
    Entry(
        "fomaml",
        "MAML without second derivatives",
        "Finn, Abbeel & Levine 2017",
        fomaml,
        (*FINE_TUNING, LEARN_INNER_LR),
    ),
    Entry(
        "anil",
        "MAML whose inner loop adapts the last layer alone",
        "Raghu, Raghu, Bengio & Vinyals 2020",
        anil,
        INNER_LOOP,
    ),
    Entry(
        "boil",
        "MAML whose inner loop adapts all layers but the last",
        "Oh, Yoo, Kim & Yun 2021",
        boil,
        INNER_LOOP,
    ),
    Entry(
        "warp",
        "MAML with layers between that the inner loop leaves alone (T-nets, warp layers)",
        "Lee & Choi 2018; Flennerhag et al. 2020",
        Warp,
        (
            *FINE_TUNING,
            FIRST_ORDER,
            LEARN_INNER_LR,
            _model(
                "warp_activation",
                str,
                "of the warp layers; identity: a T-net, with them before the layers' activations",
                choices=tuple(ACTIVATIONS),
            ),
        ),
        {"clip": 10.0},
    ),
    Entry(
        "meta-sgd",
        "MAML with a learned step size for every parameter",
        "Li, Zhou, Chen & Li 2017",
        MetaSGD,
        (
            _option(
                "inner_lr_range",
                float,
                "range that the step sizes are drawn from at first",
                length=PAIR,
            ),
            INNER_STEPS,
            FIRST_ORDER,
            INNER_WEIGHT_DECAY,
        ),
        {"clip": 10.0, "eval_steps": 1},  # sizes of steps it has not learned may be far too large
    ),
    Entry(
        "lslr",
        "MAML with a learned step size for every layer and inner step",
        "Antoniou, Edwards & Storkey 2019",
        lslr,
        INNER_LOOP,
        {"inner_steps": 5, "clip": 10.0, "eval_steps": 5},
    ),
    Entry(
        "maml++",
        "MAML with a loss after every inner step, annealed, and learned step sizes",
        "Antoniou, Edwards & Storkey 2019",
        MAMLPlusPlus,
        (
            *INNER_LOOP,
            LEARN_INNER_LR,
            _option(
                "multi_step_iterations",
                int,
                "iterations in which the loss after every inner step counts, less and less",
                low=0,
            ),
            _option(
                "first_order_iterations",
                int,
                "iterations at first that leave out second derivatives",
                low=0,
            ),
        ),
        {
            "inner_steps": 5,
            "multi_step_iterations": 1_500,
            "schedule": "cosine",
            "clip": 10.0,
            "eval_steps": 5,
        },
    ),
    Entry(
        "structured",
        "MAML with activations that are learned mixtures, and a gate for every unit",
        "after Elsken, Staffler, Metzen & Hutter 2020",
        StructuredMAML,
        (
            *FINE_TUNING,
            FIRST_ORDER,
            LEARN_INNER_LR,
            *STRUCTURE,
            _option("gate_pressure", float, "weight of the mean gate in the meta-loss", low=0),
            _option(
                "mixture_pressure",
                float,
                "weight of the mixtures' mean entropy in the meta-loss",
                low=0,
            ),
        ),
        make_of=on_structure,
    ),
    Entry(
        "reptile",
        "move towards where gradient descent on a task leads; no second derivatives",
        "Nichol, Achiam & Schulman 2018",
        Reptile,
        (
            INNER_LR,
            INNER_STEPS,
            _option(
                "batch_rows", int, "rows of a minibatch in the inner loop of training; 0 for all", low=0
            ),
        ),
        {
            "inner_steps": 10,
            "batch_rows": {"sinusoid": 10, "omniglot": 10, "table": 5},
            "eval_steps": 10,
        },
    ),
    Entry(
        "imaml",
        "adapt by solving a problem that stays near theta, and differentiate its solution",
        "Rajeswaran, Finn, Kakade & Levine 2019",
        IMAML,
        (
            _option("strength", float, "of the pull to theta", low=0, exclusive=True),
            _option(
                "tolerance",
                float,
                "relative residual of the inner solve and of conjugate gradients",
                low=0,
                exclusive=True,
            ),
            replace(INNER_STEPS, help="most Newton steps in adapting"),
            _option("solve_steps", int, "most conjugate-gradient steps in a solve", low=1),
        ),
        {"eval_steps": 50, "activation": "tanh"},
    ),
    Entry(
        "cavia",
        "a network with further inputs, the context, which alone adapt",
        "Zintgraf, Shiarlis, Kurin, Hofmann & Whiteson 2019",
        CAVIA,
        (
            INNER_LR,
            INNER_STEPS,
            FIRST_ORDER,
            _option("n_context", int, "context parameters of a task", low=1),
        ),
        {"inner_lr": {"omniglot": 30.0}, "n_context": {"omniglot": 64}},
        make_of=on_context,
    ),
    Entry(
        "joint",
        "a baseline: train one network on all tasks, then fine-tune it",
        "Finn, Abbeel & Levine 2017",
        Joint,
        FINE_TUNING,
        {"inner_lr": _SMALL_STEP, "eval_steps": 10},
    ),
    Entry(
        "scratch",
        "a baseline: train a random network on the support rows alone",
        "Finn, Abbeel & Levine 2017",
        Scratch,
        FINE_TUNING,
        {"inner_lr": {**_SMALL_STEP, "omniglot": 0.1}, "iterations": 1, "eval_steps": 100},
    ),
    Entry(
        "oracle",
        "a baseline: the sine wave through the support points",
        "Finn, Abbeel & Levine 2017",
        SineOracle,
        (),
        {"iterations": 1},
        tasks=("sinusoid",),
        make_of=on_waves,
    ),
    Entry(
        "matching",
        "attention over embedded support rows",
        "Vinyals et al. 2016",
        MatchingNetwork,
        (EMBEDDING, DISTANCE, SCALE),
        tasks=_CLASSIFIED,
        make_of=on_embedding,
    ),
    Entry(
        "prototypical",
        "the nearest class mean of embedded support rows",
        "Snell, Swersky & Zemel 2017",
        PrototypicalNetwork,
        (EMBEDDING, DISTANCE, SCALE),
        tasks=_CLASSIFIED,
        make_of=on_embedding,
    ),
    Entry(
        "siamese",
        "the support row most like the query, learned from pairs",
        "Koch, Zemel & Salakhutdinov 2015",
        SiameseNetwork,
        (
            EMBEDDING,
            _option("pair_loss", str, "loss of a pair", choices=PAIR_LOSSES),
            _option(
                "margin",
                float,
                "distance that parts pairs of one class from the others (weighted_l1: to begin with)",
                low=0,
                exclusive=True,
            ),
        ),
        tasks=_CLASSIFIED,
        make_of=on_embedding,
    ),
    Entry(
        "relation",
        "a second network that scores class and query together",
        "Sung et al. 2018",
        RelationNetwork,
        (
            EMBEDDING,
            _model(
                "relation_hidden",
                int,
                "widths of the relation module's hidden layers",
                [*HIDDEN],
                low=1,
                length=ANY,
            ),
        ),
        {"loss": "mse"},
        tasks=_CLASSIFIED,
        make_of=with_relation,
    ),
    Entry(
        "ridge",
        "ridge regression on learned features, differentiated through the solve",
        "Bertinetto et al. 2019",
        RidgeHead,
        (
            EMBEDDING,
            _option("ridge", float, "weight of the penalty to begin with", low=0, exclusive=True),
            SCALE,
        ),
        make_of=on_embedding,
    ),
    Entry(
        "lstm",
        "an LSTM's gates, learned, make the inner steps",
        "Ravi & Larochelle 2017",
        MetaLSTM,
        (INNER_LR, INNER_STEPS, FIRST_ORDER),
        {"clip": 10.0, "eval_steps": {"omniglot": 5}},
    ),
    Entry(
        "mann",
        "a controller that reads the support rows and writes to a memory",
        "Santoro et al. 2016",
        MANN,
        (
            EMBEDDING,
            _model("units", int, "of the controller, an LSTM", low=1),
            _model("slots", int, "of the memory", low=1),
            _model("slot_width", int, "numbers in a slot of the memory", low=1, argument="width"),
            SCALE,
        ),
        {"scale": None, "clip": 10.0},  # None: the constructor's, whatever it will be
        make_of=on_embedding,
    ),
    Entry(
        "snail",
        "convolutions and attention over the sequence of support rows and a query row",
        "Mishra, Rohaninejad, Chen & Abbeel 2018",
        SNAIL,
        (
            EMBEDDING,
            _model("blocks", int, "of convolutions and an attention, after a first attention", low=0),
            _model(
                "convolutions",
                int,
                "in a block, with dilations 1, 2, 4, ...",
                low=1,
                high=MOST_CONVOLUTIONS,
            ),
            _model("filters", int, "numbers that a convolution adds to a row", low=1),
            _model("key_width", int, "numbers in a key and in a query", low=1),
            _model("value_width", int, "numbers that an attention adds to a row", low=1),
            _model("shuffle", bool, "read support rows in an order drawn from them, not as they come"),
        ),
        {
            "clip": 10.0,
            "schedule": "cosine",
            "outer_lr": {"sinusoid": 0.003},
            "iterations": {"sinusoid": 10_000},
            "hidden": {"omniglot": [256]},
            "blocks": {"omniglot": 1},
        },
        make_of=on_embedding,
    ),
    Entry(
        "pixels",
        "matching on the pixels themselves: a baseline that needs no training",
        "Vinyals et al. 2016",
        MatchingNetwork,
        (DISTANCE, SCALE),
        {"scale": 1.0, "iterations": 1},
        tasks=("omniglot",),
        make_of=on_embedding,
    ),
)

#: Every algorithm by name.
ALGORITHMS: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}

#: The algorithm of runs that name none.
DEFAULT = "maml"
