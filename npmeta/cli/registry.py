r"""Every algorithm by name: what it is, the options it has, and how it is made from their values.

To add one, write ``npmeta/algorithms/<name>.py`` with a frozen dataclass that is a
:class:`~npmeta.algorithms.base.MetaLearner`, and add an :class:`Entry` to those below.
Then it trains, evaluates, adapts and resumes from the command line, ``npmeta list`` shows it, and
the tests of the registry take it up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from npmeta._support.validation import lookup
from npmeta.algorithms import (
    CAVIA,
    IMAML,
    MAML,
    MANN,
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
from npmeta.algorithms.base import MetaLearner
from npmeta.algorithms.siamese import PAIR_LOSSES
from npmeta.cli.options import (
    COMMON,
    DISTANCE,
    EMBEDDING,
    FIRST_ORDER,
    INNER_LR,
    INNER_LR_PER,
    INNER_STEPS,
    INNER_WEIGHT_DECAY,
    LEARN_INNER_LR,
    SCALE,
    SECTIONS,
    TASKS,
    Option,
)
from npmeta.network.activations import ACTIVATIONS
from npmeta.network.mlp import MLP
from npmeta.network.structure import Structure

__all__ = ["ALGORITHMS", "DEFAULT", "OPTIONS", "Entry", "on_network", "options_of"]

#: (n_in, n_out, values of all options by name) -> the algorithm.
Make: TypeAlias = Callable[[int, int, Mapping[str, Any]], MetaLearner]


@dataclass(frozen=True)
class Entry:
    """What the command line knows of an algorithm.

    Attributes
    ----------
    name : str
        As in ``--algorithm NAME``.
    summary, paper : str
        A line for ``npmeta list``: what it does; authors and year.
    make : callable
        ``(n_in, n_out, values) -> MetaLearner`` for tasks with so many inputs and outputs (classes),
        from the values of all options of the run, by name: :func:`on_network` makes most. ValueError
        where the values do not fit together.
    options : tuple of Option
        Those of section "algorithm" that it has besides ``loss``, shared ones from
        :mod:`npmeta.cli.options` or its own. Options of one name agree in all but defaults and help.
    defaults : mapping
        Its own defaults, of any option by name: a value, or a mapping from tasks to values.
    tasks : tuple of str
        The tasks it can be trained on.
    inner_steps : bool
        Whether it takes any: if not, its scores have one column.
    """

    name: str
    summary: str
    paper: str
    make: Make
    options: tuple[Option, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = TASKS
    inner_steps: bool = True


# --- made from values -------------------------------------------------------------------------------


def one_or_list(values: list[Any]) -> Any:
    """A list of one as its value."""
    return values[0] if len(values) == 1 else values


def network(n_in: int, n_out: int, values: Mapping[str, Any]) -> MLP:
    """The network of a configuration."""
    return MLP(
        [n_in, *values["hidden"], n_out],
        one_or_list(values["activation"]),
        norm=None if values["norm"] == "none" else values["norm"],
        adapt_norm=values["adapt_norm"],
        norm_sets=values["norm_sets"],
    )


def inner_lr(values: Mapping[str, Any]) -> Any:
    """A number, a list for MAML to read, or a row (layers) or column (steps) of step sizes."""
    sizes, per = values["inner_lr"], values.get("inner_lr_per")
    if per is None and len(sizes) > 1:
        raise ValueError(f"{values['algorithm']} has one inner_lr, got {len(sizes)} values")
    if per == "layer":
        return [sizes]
    if per == "step":
        return [[size] for size in sizes]
    return one_or_list(sizes)


def on_network(construct: Callable[..., MetaLearner]) -> Make:
    """What makes ``construct(model, loss, **options)``, the algorithm's own options by their names."""

    def make(n_in: int, n_out: int, values: Mapping[str, Any]) -> MetaLearner:
        own = ALGORITHMS[values["algorithm"]].options
        options = {option.name: values[option.name] for option in own}
        options.pop("inner_lr_per", None)
        if "inner_lr" in options:
            options["inner_lr"] = inner_lr(values)
        return construct(network(n_in, n_out, values), values["loss"], **options)

    return make


def _cavia(n_in: int, n_out: int, values: Mapping[str, Any]) -> MetaLearner:
    return on_network(CAVIA)(n_in + values["n_context"], n_out, values)


def _structured(n_in: int, n_out: int, values: Mapping[str, Any]) -> MetaLearner:
    if values["norm"] != "none":
        raise ValueError("structured takes no norm: a network has a norm or a structure, not both")
    structure = Structure(values["candidates"], values["gates"], values["adapt_structure"])
    return StructuredMAML(
        MLP([n_in, *values["hidden"], n_out], structure=structure),
        values["loss"],
        inner_lr(values),
        values["inner_steps"],
        values["first_order"],
        values["inner_weight_decay"],
        values["learn_inner_lr"],
        gate_pressure=values["gate_pressure"],
        mixture_pressure=values["mixture_pressure"],
    )


def _oracle(n_in: int, n_out: int, values: Mapping[str, Any]) -> MetaLearner:
    low, high = values["frequency"]
    if low != high:
        raise ValueError(f"oracle knows waves of one frequency, not of a range: got {low} to {high}")
    return SineOracle(low, values["loss"])


def _embedding(n_in: int, values: Mapping[str, Any]) -> MLP:
    """The network of a learner that compares its outputs."""
    return network(n_in, values["embedding"], values)


def _classes(n_out: int, values: Mapping[str, Any], loss: str = "cross_entropy") -> int:
    """The number of classes; ValueError unless there are some, and the loss is the learner's own."""
    if n_out < 2:
        raise ValueError(
            f"{values['algorithm']} tells classes apart, and the target is a number (ridge and mann "
            "take those)"
        )
    if values["loss"] not in (None, loss):
        raise ValueError(
            f"{values['algorithm']} has a loss of its own and none by the name of {values['loss']}; "
            f"leave out --loss"
        )
    return n_out


def _matching(n_in: int, n_out: int, values: Mapping[str, Any]) -> MetaLearner:
    ways = _classes(n_out, values)
    return MatchingNetwork(_embedding(n_in, values), values["distance"], values["scale"], ways)


def _pixels(n_in: int, n_out: int, values: Mapping[str, Any]) -> MetaLearner:
    return MatchingNetwork(None, values["distance"], values["scale"], _classes(n_out, values))


def _prototypical(n_in: int, n_out: int, values: Mapping[str, Any]) -> MetaLearner:
    ways = _classes(n_out, values)
    return PrototypicalNetwork(_embedding(n_in, values), values["distance"], values["scale"], ways)


def _siamese(n_in: int, n_out: int, values: Mapping[str, Any]) -> MetaLearner:
    ways = _classes(n_out, values)
    return SiameseNetwork(_embedding(n_in, values), values["pair_loss"], values["margin"], ways)


def _relation(n_in: int, n_out: int, values: Mapping[str, Any]) -> MetaLearner:
    ways = _classes(n_out, values, "mse")
    relation = MLP([2 * values["embedding"], *values["relation_hidden"], 1])
    return RelationNetwork(_embedding(n_in, values), relation, ways)


def _ridge(n_in: int, n_out: int, values: Mapping[str, Any]) -> MetaLearner:
    features = _embedding(n_in, values)
    return RidgeHead(features, values["loss"], values["ridge"], values["scale"], ways=n_out)


def _mann(n_in: int, n_out: int, values: Mapping[str, Any]) -> MetaLearner:
    return MANN(
        _embedding(n_in, values),
        values["loss"],
        n_out,
        values["units"],
        values["slots"],
        values["slot_width"],
        values["scale"] or MANN.scale,
    )


# --- the registry -----------------------------------------------------------------------------------

_FINE_TUNING = (INNER_LR, INNER_LR_PER, INNER_STEPS, INNER_WEIGHT_DECAY)
_ONE_INNER_LR = replace(INNER_LR, help="inner step size, one number")
_INNER_LOOP = (_ONE_INNER_LR, INNER_STEPS, FIRST_ORDER, INNER_WEIGHT_DECAY)

_STRUCTURED_OPTIONS = (
    Option(
        "model",
        "candidates",
        str,
        ["relu", "tanh", "sin"],
        "what the hidden activations are mixtures of; 'activation' has no part",
        choices=tuple(ACTIVATIONS),
        length=(1, 10_000),
    ),
    Option("model", "gates", bool, True, "a gate for every hidden unit"),
    Option("model", "adapt_structure", bool, True, "move mixtures and gates in the inner loop"),
    Option("algorithm", "gate_pressure", float, 0.0, "weight of the mean gate in the meta-loss", low=0),
    Option(
        "algorithm",
        "mixture_pressure",
        float,
        0.0,
        "weight of the mixtures' mean entropy in the meta-loss",
        low=0,
    ),
)

#: What has classes.
_CLASSIFIED = ("omniglot", "table")

#: What a network that has not learned to adapt bears.
_SMALL_STEP = {"sinusoid": 0.001, "table": 0.001}

_ENTRIES: tuple[Entry, ...] = (
    Entry(
        "maml",
        "an initialisation from which a few gradient steps solve a new task",
        "Finn, Abbeel & Levine 2017",
        on_network(MAML),
        (*_FINE_TUNING, FIRST_ORDER, LEARN_INNER_LR),
    ),
    Entry(
        "fomaml",
        "MAML without second derivatives",
        "Finn, Abbeel & Levine 2017",
        on_network(fomaml),
        (*_FINE_TUNING, LEARN_INNER_LR),
    ),
    Entry(
        "anil",
        "MAML whose inner loop adapts the last layer alone",
        "Raghu, Raghu, Bengio & Vinyals 2020",
        on_network(anil),
        _INNER_LOOP,
    ),
    Entry(
        "boil",
        "MAML whose inner loop adapts all layers but the last",
        "Oh, Yoo, Kim & Yun 2021",
        on_network(boil),
        _INNER_LOOP,
    ),
    Entry(
        "warp",
        "MAML with layers between that the inner loop leaves alone (T-nets, warp layers)",
        "Lee & Choi 2018; Flennerhag et al. 2020",
        on_network(Warp),
        (
            *_FINE_TUNING,
            FIRST_ORDER,
            LEARN_INNER_LR,
            Option(
                "model",
                "warp_activation",
                str,
                "identity",
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
        on_network(MetaSGD),
        (
            Option(
                "algorithm",
                "inner_lr_range",
                float,
                [0.005, 0.1],
                "range that the step sizes are drawn from at first",
                length=(2, 2),
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
        on_network(lslr),
        _INNER_LOOP,
        {"inner_steps": 5, "clip": 10.0, "eval_steps": 5},
    ),
    Entry(
        "maml++",
        "MAML with a loss after every inner step, annealed, and learned step sizes",
        "Antoniou, Edwards & Storkey 2019",
        on_network(MAMLPlusPlus),
        (
            *_INNER_LOOP,
            LEARN_INNER_LR,
            Option(
                "algorithm",
                "multi_step_iterations",
                int,
                1_500,
                "iterations in which the loss after every inner step counts, less and less",
                low=0,
            ),
            Option(
                "algorithm",
                "first_order_iterations",
                int,
                0,
                "iterations at first that leave out second derivatives",
                low=0,
            ),
        ),
        {
            "inner_steps": 5,
            "learn_inner_lr": True,
            "schedule": "cosine",
            "clip": 10.0,
            "eval_steps": 5,
        },
    ),
    Entry(
        "structured",
        "MAML with activations that are learned mixtures, and a gate for every unit",
        "after Elsken, Staffler, Metzen & Hutter 2020",
        _structured,
        (*_FINE_TUNING, FIRST_ORDER, LEARN_INNER_LR, *_STRUCTURED_OPTIONS),
    ),
    Entry(
        "reptile",
        "move towards where gradient descent on a task leads; no second derivatives",
        "Nichol, Achiam & Schulman 2018",
        on_network(Reptile),
        (
            _ONE_INNER_LR,
            INNER_STEPS,
            Option(
                "algorithm",
                "batch_rows",
                int,
                {"sinusoid": 10, "omniglot": 10, "table": 5},
                "rows of a minibatch in the inner loop of training; 0 for all",
                low=0,
            ),
        ),
        {"inner_steps": 10, "eval_steps": 10},
    ),
    Entry(
        "imaml",
        "adapt by solving a problem that stays near theta, and differentiate its solution",
        "Rajeswaran, Finn, Kakade & Levine 2019",
        on_network(IMAML),
        (
            Option("algorithm", "strength", float, 1.0, "of the pull to theta", low=0, exclusive=True),
            Option(
                "algorithm",
                "tolerance",
                float,
                IMAML.tolerance,
                "relative residual of the inner solve and of conjugate gradients",
                low=0,
                exclusive=True,
            ),
            replace(INNER_STEPS, help="most Newton steps in adapting"),
            Option(
                "algorithm", "solve_steps", int, 200, "most conjugate-gradient steps in a solve", low=1
            ),
        ),
        {"inner_steps": 50, "eval_steps": 50, "activation": "tanh"},
    ),
    Entry(
        "cavia",
        "a network with further inputs, the context, which alone adapt",
        "Zintgraf, Shiarlis, Kurin, Hofmann & Whiteson 2019",
        _cavia,
        (
            _ONE_INNER_LR,
            INNER_STEPS,
            FIRST_ORDER,
            Option(
                "algorithm",
                "n_context",
                int,
                {"sinusoid": 5, "omniglot": 64, "table": 5},
                "context parameters of a task",
                low=1,
            ),
        ),
        {"inner_lr": {"sinusoid": 1.0, "omniglot": 30.0, "table": 1.0}},
    ),
    Entry(
        "joint",
        "a baseline: train one network on all tasks, then fine-tune it",
        "Finn, Abbeel & Levine 2017",
        on_network(Joint),
        _FINE_TUNING,
        {"inner_lr": _SMALL_STEP, "eval_steps": 10},
    ),
    Entry(
        "scratch",
        "a baseline: train a random network on the support rows alone",
        "Finn, Abbeel & Levine 2017",
        on_network(Scratch),
        _FINE_TUNING,
        {"inner_lr": {**_SMALL_STEP, "omniglot": 0.1}, "iterations": 1, "eval_steps": 100},
    ),
    Entry(
        "oracle",
        "a baseline: the sine wave through the support points",
        "Finn, Abbeel & Levine 2017",
        _oracle,
        (),
        {"iterations": 1},
        tasks=("sinusoid",),
        inner_steps=False,
    ),
    Entry(
        "matching",
        "attention over embedded support rows",
        "Vinyals et al. 2016",
        _matching,
        (EMBEDDING, DISTANCE, SCALE),
        tasks=_CLASSIFIED,
        inner_steps=False,
    ),
    Entry(
        "prototypical",
        "the nearest class mean of embedded support rows",
        "Snell, Swersky & Zemel 2017",
        _prototypical,
        (EMBEDDING, DISTANCE, SCALE),
        {"distance": "squared_euclidean"},
        tasks=_CLASSIFIED,
        inner_steps=False,
    ),
    Entry(
        "siamese",
        "the support row most like the query, learned from pairs",
        "Koch, Zemel & Salakhutdinov 2015",
        _siamese,
        (
            EMBEDDING,
            Option("algorithm", "pair_loss", str, "weighted_l1", "loss of a pair", choices=PAIR_LOSSES),
            Option(
                "algorithm",
                "margin",
                float,
                10.0,
                "distance that parts pairs of one class from the others (weighted_l1: to begin with)",
                low=0,
                exclusive=True,
            ),
        ),
        tasks=_CLASSIFIED,
        inner_steps=False,
    ),
    Entry(
        "relation",
        "a second network that scores class and query together",
        "Sung et al. 2018",
        _relation,
        (
            EMBEDDING,
            Option(
                "model",
                "relation_hidden",
                int,
                [128, 64],
                "widths of the relation module's hidden layers",
                low=1,
                length=(0, 10_000),
            ),
        ),
        {"loss": "mse"},
        tasks=_CLASSIFIED,
        inner_steps=False,
    ),
    Entry(
        "ridge",
        "ridge regression on learned features, differentiated through the solve",
        "Bertinetto et al. 2019",
        _ridge,
        (
            EMBEDDING,
            Option(
                "algorithm",
                "ridge",
                float,
                1.0,
                "weight of the penalty to begin with",
                low=0,
                exclusive=True,
            ),
            SCALE,
        ),
        inner_steps=False,
    ),
    Entry(
        "lstm",
        "an LSTM's gates, learned, make the inner steps",
        "Ravi & Larochelle 2017",
        on_network(MetaLSTM),
        (_ONE_INNER_LR, INNER_STEPS, FIRST_ORDER),
        {"inner_steps": 5, "first_order": True, "clip": 10.0, "eval_steps": {"omniglot": 5}},
    ),
    Entry(
        "mann",
        "a controller that reads the support rows and writes to a memory",
        "Santoro et al. 2016",
        _mann,
        (
            EMBEDDING,
            Option("model", "units", int, 64, "of the controller, an LSTM", low=1),
            Option("model", "slots", int, 32, "of the memory", low=1),
            Option("model", "slot_width", int, 32, "numbers in a slot of the memory", low=1),
            SCALE,
        ),
        {"clip": 10.0},
        inner_steps=False,
    ),
    Entry(
        "pixels",
        "matching on the pixels themselves: a baseline that needs no training",
        "Vinyals et al. 2016",
        _pixels,
        (DISTANCE, SCALE),
        {"scale": 1.0, "iterations": 1},
        tasks=("omniglot",),
        inner_steps=False,
    ),
)

#: Every algorithm by name.
ALGORITHMS: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}

#: The algorithm of runs that name none.
DEFAULT = "maml"

#: In the file it stands in a section of its own name: TOML has no key beside a section called so.
_ALGORITHM = Option(
    "algorithm",
    "algorithm",
    str,
    DEFAULT,
    "npmeta list shows them all, npmeta list NAME the options of one",
    choices=tuple(ALGORITHMS),
)


def options_of(name: str) -> tuple[Option, ...]:
    """The options of runs of an algorithm with its defaults, in the order of the file.

    Raises
    ------
    ValueError
        If there is no algorithm of that name.
    """
    entry = lookup(name, ALGORITHMS, "algorithm")
    return tuple(
        replace(option, default=_own_default(option, entry.defaults[option.name]))
        if option.name in entry.defaults
        else option
        for option in _in_order(_ALGORITHM, *COMMON, *entry.options)
    )


def _own_default(option: Option, own: Any) -> Any:
    """An algorithm's default of an option, for the tasks that have it."""
    if not isinstance(option.default, Mapping) and not isinstance(own, Mapping):
        return own
    before, after = (
        default if isinstance(default, Mapping) else dict.fromkeys(TASKS, default)
        for default in (option.default, own)
    )
    return {task: after.get(task, value) for task, value in before.items()}


def _in_order(*options: Option) -> list[Option]:
    return sorted(options, key=lambda option: SECTIONS.index(option.section))


def _all_options() -> tuple[Option, ...]:
    by_name: dict[str, Option] = {}
    for name in ALGORITHMS:
        for option in options_of(name):
            by_name.setdefault(option.name, option)
    return tuple(_in_order(*by_name.values()))


#: The options that any algorithm has, with the defaults of the first that has them, in the order of the
#: file.
OPTIONS: tuple[Option, ...] = _all_options()
