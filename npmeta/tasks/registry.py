"""Every kind of tasks by name: how its sampler is made from options, and what else depends on it.

To add one, write ``npmeta/tasks/<name>.py`` with a :class:`TaskDistribution`, and add a :class:`Kind`
to those below. Then algorithms are trained on it from the command line and by estimators, and the tests
of the registry take it up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

from npmeta._support.options import MANY, PAIR, Option, arguments, parameters
from npmeta._support.validation import lookup
from npmeta.tasks.batch import TaskBatch
from npmeta.tasks.encoding import Encoding
from npmeta.tasks.omniglot import SPLIT_BY, Omniglot
from npmeta.tasks.rows import DrawingRows, Rows, TableRows
from npmeta.tasks.sinusoid import Sinusoid
from npmeta.tasks.table import TARGET_KINDS, Table


class TaskDistribution(Protocol):
    """What runs ask of a sampler.

    One of a data set has a ``checksum`` too, and ``on(path)``; one that encodes it an ``encoding``.
    """

    @property
    def n_in(self) -> int: ...
    @property
    def n_out(self) -> int: ...

    def sample(
        self, seed: int, iteration: int, n_tasks: int, *, start: int = 0, split: str = "train"
    ) -> TaskBatch: ...


@dataclass(frozen=True)
class Kind:
    """What is known of a kind of tasks.

    Attributes
    ----------
    name : str
        As in ``npmeta train NAME``.
    summary : str
        A line for ``npmeta list``.
    sampler : callable
        The class.
    declared : tuple of Option
        Those of section "tasks", the arguments of the sampler, without the defaults that it has.
    defaults : mapping
        Its own defaults, of options of the model, the algorithm or the training.
    classes : bool
        Whether targets may be classes, which some algorithms ask for.
    rows : callable
        ``(values, encoding) -> Rows``: how somebody's own rows are read, for a run of these options.
    picture : str
        The function of :mod:`npmeta.cli.plots` that draws such tasks; empty where there is none.
    presets : mapping
        Published settings, by name.
    """

    name: str
    summary: str
    sampler: Callable[..., TaskDistribution]
    declared: tuple[Option, ...]
    defaults: Mapping[str, Any]
    classes: bool
    rows: Callable[[Mapping[str, Any], Encoding | None], Rows]
    picture: str = ""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """Those that it declares, with their defaults."""
        return tuple(option.of(self.sampler) for option in self.declared)

    @property
    def has_data(self) -> bool:
        """Whether tasks are made from somebody's file or folder."""
        return _DATA in self.declared

    @property
    def encodes(self) -> bool:
        """Whether the data is encoded, so that runs keep the encoding."""
        return "encoding" in parameters(self.sampler)

    def make(self, values: Mapping[str, Any], encoding: Encoding | None = None) -> Any:
        """The sampler from the values of all options, by name.

        Data that is to be read as other data was takes that one's encoding.

        Raises
        ------
        ValueError
            If the data is missing, or not that of the checksum among the values.
        """
        if self.has_data and values["data"] is None:
            raise ValueError(f"{self.name} needs the path of its data: --data PATH")
        own = arguments(self.sampler, self.options, values)
        made: Any = self.sampler(**own, **({} if encoding is None else {"encoding": encoding}))
        if self.has_data and values["checksum"] not in (None, made.checksum):
            raise ValueError(
                f"{values['data']} is not the data this run was made with: its SHA-256 is "
                f"{made.checksum}, expected {values['checksum']}"
            )
        return made


_option = partial(Option, "tasks")

_SHOTS = _option("shots", int, "support rows in a task (omniglot: of each class)", low=1)
_QUERIES = _option("queries", int, "query rows in a task (omniglot: of each class)", low=1)

#: Of those of a data set.
_DATA = _option(
    "data",
    str,
    "omniglot: the official images_background.zip, or that folder; table: a CSV or NPZ file",
    None,
    argument="path",
)
_CHECKSUM = _option("checksum", str, "SHA-256 that the data must have", None, optional=True)
_SPLIT_SEED = _option("split_seed", int, "seed of the split", low=0)
_FRACTIONS = _option("fractions", float, "shares of train, validation and test", low=0, length=(3, 3))

SINUSOID = Kind(
    "sinusoid",
    "regression on sine waves of random amplitude and phase",
    Sinusoid,
    (
        _SHOTS,
        _QUERIES,
        _option("amplitude", float, "range of amplitudes", length=PAIR),
        _option("phase", float, "range of phases", length=PAIR),
        _option("frequency", float, "range of frequencies", length=PAIR),
        _option("x", float, "range of inputs", length=PAIR),
        _option("noise", float, "standard deviation of target noise", low=0),
    ),
    {"loss": "mse", "iterations": 15_000},
    classes=False,
    rows=lambda values, encoding: TableRows(Encoding(("x",), "y", mean=(0.0,), std=(1.0,))),
    picture="waves",
    presets={
        # Finn et al. 2017, section 5.1 and appendix A.2.
        "paper": {
            "shots": 10,
            "queries": 10,
            "hidden": [40, 40],
            "activation": "relu",
            "inner_lr": 0.01,
            "inner_steps": 1,
            "meta_batch": 25,
            "outer_lr": 1e-3,
            "iterations": 70_000,
        }
    },
)

OMNIGLOT = Kind(
    "omniglot",
    "telling handwritten characters apart, from the archive of Lake et al. 2015",
    Omniglot,
    (
        _DATA,
        _CHECKSUM,
        _option("ways", int, "classes in a task", low=2),
        _SHOTS,
        _QUERIES,
        _option("rotations", bool, "train on classes rotated by 90° steps too"),
        _option("align", bool, "move and scale drawings into a common frame"),
        _option("distort", float, "strength of random distortions in training", low=0),
        _option("split_by", str, "what the three splits divide", choices=SPLIT_BY),
        _SPLIT_SEED,
        _FRACTIONS,
    ),
    {
        "dtype": "float32",
        "hidden": [256, 128, 64, 64],
        "loss": "cross_entropy",
        "inner_lr": 0.4,
        "iterations": 10_000,
        "meta_batch": 32,
        "eval_steps": 1,
    },
    classes=True,
    rows=lambda values, encoding: DrawingRows(values["ways"], values["align"]),
    picture="drawings",
    presets={
        # Finn et al. 2017, appendix A.1, "MAML, no conv". Its step size of 0.4 is for a loss divided by
        # shots; ours is divided by ways × shots. The shifts of its norm are not adapted.
        "paper": {
            "ways": 5,
            "shots": 1,
            "queries": 1,
            "hidden": [256, 128, 64, 64],
            "activation": "relu",
            "norm": "batch",
            "adapt_norm": False,
            "inner_lr": 2.0,
            "inner_steps": 1,
            "meta_batch": 32,
            "outer_lr": 1e-3,
            "iterations": 60_000,
            "eval_steps": 3,
        }
    },
)


def _table_rows(values: Mapping[str, Any], encoding: Encoding | None) -> Rows:
    assert encoding is not None
    return TableRows(encoding)


TABLE = Kind(
    "table",
    "numbers or classes in a table of your own, a CSV or NPZ file with a column that names the task",
    Table,
    (
        _DATA,
        _CHECKSUM,
        _SHOTS,
        _QUERIES,
        _option("task_column", str, "column that names the task", argument="task"),
        _option("target_column", str, "column to be predicted", argument="target"),
        _option(
            "feature_columns",
            str,
            "input columns (default: all others)",
            length=MANY,
            optional=True,
            argument="features",
        ),
        _option(
            "target_kind",
            str,
            "whether the target is a number or a class",
            choices=TARGET_KINDS,
            argument="kind",
        ),
        _option("standardise", bool, "scale columns to mean 0, deviation 1"),
        _SPLIT_SEED,
        _FRACTIONS,
    ),
    {"iterations": 5_000},
    classes=True,
    rows=_table_rows,
)

#: Every kind by name.
KINDS: dict[str, Kind] = {kind.name: kind for kind in (SINUSOID, OMNIGLOT, TABLE)}

#: Options that a run may be tested with other values of than it was trained with, where it has them.
SIZES = ("ways", "shots", "queries")

#: Published settings, by name and kind.
PRESETS: dict[str, dict[str, Mapping[str, Any]]] = {
    name: {kind.name: kind.presets[name] for kind in KINDS.values() if name in kind.presets}
    for name in dict.fromkeys(name for kind in KINDS.values() for name in kind.presets)
}


def kind_of(tasks: object) -> Kind:
    """The kind that a sampler is of; somebody's own, which is none of these, counts as a table's."""
    return next((kind for kind in KINDS.values() if type(tasks) is kind.sampler), TABLE)


def preset(name: str, task: str) -> Mapping[str, Any]:
    """The values of a preset.

    Raises
    ------
    ValueError
        If there is no preset of that name, or none for that task.
    """
    by_kind = lookup(name, PRESETS, "preset")
    if task not in by_kind:
        raise ValueError(f"preset {name!r} has no {task}; it has {', '.join(by_kind)}")
    return by_kind[task]
