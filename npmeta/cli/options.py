"""The options that runs have: names, defaults, ranges and help. Presets are published settings.

Options that only some algorithms have stand by their names in :mod:`npmeta.cli.registry`; those that
several share are here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from npmeta._support.validation import lookup, shown, unknown_name
from npmeta.bilevel.optimizers import OPTIMIZERS, SCHEDULES
from npmeta.network import activations, losses
from npmeta.network.distances import DISTANCES
from npmeta.network.normalisation import NORMS

__all__ = [
    "COMMON",
    "DISTANCE",
    "EMBEDDING",
    "FIRST_ORDER",
    "INNER_LR",
    "INNER_LR_PER",
    "INNER_STEPS",
    "INNER_WEIGHT_DECAY",
    "LEARN_INNER_LR",
    "PRESETS",
    "SCALE",
    "SECTIONS",
    "SIZES",
    "TASKS",
    "Option",
    "preset",
]

TASKS = ("sinusoid", "omniglot", "table")

#: Of a task, where it has them; those that a run is tested with may be others than it was trained with.
SIZES = ("ways", "shots", "queries")

#: In the order of the file. What stands in none is at its top.
SECTIONS = ("", "tasks", "model", "algorithm", "training", "evaluation")


@dataclass(frozen=True)
class Option:
    """One value of a configuration.

    Attributes
    ----------
    section, name : str
        ``[section] name = ...`` in the file; ``--name`` (with dashes) on the command line.
    kind : type
        int, float, str or bool: of the value, or of each value of a list.
    default : object
        A value; or a mapping from tasks to values, for the tasks that have the option.
    help : str
    low : float or None
        Least value allowed; ``exclusive`` makes it the greatest value not allowed.
    high : float or None
        Greatest value allowed.
    choices : tuple of str
        Names allowed; empty where any is.
    length : tuple of int or None
        Least and greatest length of a list; None for a single value. A list of one may be written as
        a single value.
    optional : bool
        Whether the value may be left out altogether.
    """

    section: str
    name: str
    kind: type
    default: Any
    help: str
    low: float | None = None
    exclusive: bool = False
    choices: tuple[str, ...] = ()
    length: tuple[int, int] | None = None
    optional: bool = False
    high: float | None = None

    def for_task(self, task: str) -> bool:
        """Whether runs on this task have the option."""
        return not isinstance(self.default, Mapping) or task in self.default

    def default_for(self, task: str) -> Any:
        return self.default[task] if isinstance(self.default, Mapping) else self.default

    def on(self, tasks: Sequence[str]) -> Option:
        """The option as it is on these tasks: with a mapping only where they differ."""
        if not isinstance(self.default, Mapping):
            return self
        default = {task: value for task, value in self.default.items() if task in tasks}
        first, *others = default.values()
        alike = set(default) == set(tasks) and all(value == first for value in others)
        return replace(self, default=first if alike else default)

    def shown_default(self) -> str:
        """(default: 5), or (sinusoid 10, omniglot 1); nothing where there is none."""

        def shown(value: Any) -> str:
            if isinstance(value, list):
                return " ".join(map(shown, value))
            return f"{value:g}" if isinstance(value, float) else str(value).lower()

        if isinstance(self.default, Mapping):
            known = [
                f"{task} {shown(value)}" for task, value in self.default.items() if value is not None
            ]
            return f"({', '.join(known)})" if known else ""
        return "" if self.default is None else f"(default: {shown(self.default)})"

    def check(self, value: Any) -> Any:
        """The value in its own type, or a ValueError that says what was expected and what came."""
        if value is None and self.optional:
            return None
        if self.length is None:
            return self._check_one(value)
        values = list(value) if isinstance(value, list | tuple) else [value]
        low, high = self.length
        if not low <= len(values) <= high:
            count = f"{low} values" if low == high else f"at least {low} value"
            raise ValueError(f"{self.name} takes {count}, got {len(values)}")
        return [self._check_one(item) for item in values]

    def _check_one(self, value: Any) -> Any:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole and not -(2**63) <= value < 2**63:
            raise ValueError(f"{self.name} must be a number of 64 bits, got {shown(value)}")
        if self.kind is float and whole:
            value = float(value)
        fits = type(value) is self.kind  # isinstance would take True for an int
        if not fits:
            wanted = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
            raise ValueError(f"{self.name} must be {wanted[self.kind]}, got {shown(value)}")
        if self.choices and value not in self.choices:
            raise unknown_name(value, list(self.choices), self.name.replace("_", " "))
        if self.kind is float and not math.isfinite(value):
            raise ValueError(f"{self.name} must be finite, got {value}")
        if self.low is not None and (value <= self.low if self.exclusive else value < self.low):
            bound = f"greater than {self.low:g}" if self.exclusive else f"at least {self.low:g}"
            raise ValueError(f"{self.name} must be {bound}, got {value}")
        if self.high is not None and value > self.high:
            raise ValueError(f"{self.name} must be at most {self.high:g}, got {value}")
        return value


_MANY = (1, 10_000)
_PAIR = (2, 2)

#: The options of every run, section by section.
COMMON: tuple[Option, ...] = (
    Option("", "seed", int, 0, "seed of the initial parameters and of the tasks", low=0),
    Option(
        "",
        "dtype",
        str,
        {"sinusoid": "float64", "omniglot": "float32", "table": "float64"},
        "precision of parameters and arithmetic",
        choices=("float64", "float32"),
    ),
    # --- tasks ---
    Option(
        "tasks",
        "data",
        str,
        {"omniglot": None, "table": None},
        "omniglot: the official images_background.zip, or that folder; table: a CSV or NPZ file",
    ),
    Option(
        "tasks",
        "checksum",
        str,
        {"omniglot": None, "table": None},
        "SHA-256 that the data must have",
        optional=True,
    ),
    Option("tasks", "ways", int, {"omniglot": 5}, "classes in a task", low=2),
    Option(
        "tasks",
        "shots",
        int,
        {"sinusoid": 10, "omniglot": 1, "table": 5},
        "support rows in a task (omniglot: of each class)",
        low=1,
    ),
    Option(
        "tasks",
        "queries",
        int,
        {"sinusoid": 10, "omniglot": 5, "table": 5},
        "query rows in a task (omniglot: of each class)",
        low=1,
    ),
    Option("tasks", "amplitude", float, {"sinusoid": [0.1, 5.0]}, "range of amplitudes", length=_PAIR),
    Option("tasks", "phase", float, {"sinusoid": [0.0, math.pi]}, "range of phases", length=_PAIR),
    Option("tasks", "frequency", float, {"sinusoid": [1.0, 1.0]}, "range of frequencies", length=_PAIR),
    Option("tasks", "x", float, {"sinusoid": [-5.0, 5.0]}, "range of inputs", length=_PAIR),
    Option("tasks", "noise", float, {"sinusoid": 0.0}, "standard deviation of target noise", low=0),
    Option("tasks", "rotations", bool, {"omniglot": True}, "train on classes rotated by 90° steps too"),
    Option("tasks", "align", bool, {"omniglot": False}, "move and scale drawings into a common frame"),
    Option(
        "tasks",
        "distort",
        float,
        {"omniglot": 0.0},
        "strength of random distortions in training",
        low=0,
    ),
    Option(
        "tasks",
        "split_by",
        str,
        {"omniglot": "character"},
        "what the three splits divide",
        choices=("character", "alphabet"),
    ),
    Option("tasks", "task_column", str, {"table": "task"}, "column that names the task"),
    Option("tasks", "target_column", str, {"table": "target"}, "column to be predicted"),
    Option(
        "tasks",
        "feature_columns",
        str,
        {"table": None},
        "input columns (default: all others)",
        length=_MANY,
        optional=True,
    ),
    Option(
        "tasks",
        "target_kind",
        str,
        {"table": "auto"},
        "whether the target is a number or a class",
        choices=("auto", "number", "class"),
    ),
    Option("tasks", "standardise", bool, {"table": True}, "scale columns to mean 0, deviation 1"),
    Option("tasks", "split_seed", int, {"omniglot": 0, "table": 0}, "seed of the split", low=0),
    Option(
        "tasks",
        "fractions",
        float,
        {"omniglot": [0.75, 0.05, 0.2], "table": [0.7, 0.15, 0.15]},
        "shares of train, validation and test",
        low=0,
        length=(3, 3),
    ),
    # --- model ---
    Option(
        "model",
        "hidden",
        int,
        {"sinusoid": [40, 40], "omniglot": [256, 128, 64, 64], "table": [40, 40]},
        "widths of the hidden layers (none: a linear model)",
        low=1,
        length=(0, 10_000),
    ),
    Option(
        "model",
        "activation",
        str,
        "relu",
        "activation of all hidden layers, or one for each",
        choices=tuple(activations.ACTIVATIONS),
        length=_MANY,
    ),
    Option(
        "model",
        "norm",
        str,
        "none",
        "normalisation of hidden layers; batch: over a task's rows, so predictions are transductive",
        choices=("none", *NORMS),
    ),
    Option("model", "adapt_norm", bool, True, "move scale and shift of the norm in the inner loop"),
    Option(
        "model",
        "norm_sets",
        int,
        1,
        "scales and shifts, one for each inner step in turn (with --no-adapt-norm)",
        low=1,
    ),
    # --- algorithm ---
    Option(
        "algorithm",
        "loss",
        str,
        {"sinusoid": "mse", "omniglot": "cross_entropy", "table": None},
        "loss of the inner and the outer loop (table: mse or cross_entropy by the target's kind)",
        choices=tuple(losses.LOSSES),
        optional=True,
    ),
    # --- training ---
    Option(
        "training",
        "iterations",
        int,
        {"sinusoid": 15_000, "omniglot": 10_000, "table": 5_000},
        "outer steps",
        low=1,
    ),
    Option(
        "training",
        "meta_batch",
        int,
        {"sinusoid": 25, "omniglot": 32, "table": 25},
        "tasks a step",
        low=1,
    ),
    Option(
        "training",
        "shard_size",
        int,
        None,
        "tasks that are computed together; workers share shards (default: by the parameters' number)",
        low=1,
        optional=True,
    ),
    Option("training", "optimizer", str, "adam", "outer optimizer", choices=tuple(OPTIMIZERS)),
    Option("training", "outer_lr", float, 1e-3, "outer learning rate", low=0, exclusive=True),
    Option("training", "schedule", str, "constant", "of the outer rate", choices=tuple(SCHEDULES)),
    Option("training", "schedule_every", int, 5_000, "iterations between steps of 'step'", low=1),
    Option(
        "training",
        "schedule_factor",
        float,
        0.5,
        "factor at each step of 'step'",
        low=0,
        exclusive=True,
    ),
    Option(
        "training", "schedule_floor", float, 0.0, "share of the rate 'cosine' ends at", low=0, high=1
    ),
    Option(
        "training",
        "clip",
        float,
        None,
        "greatest norm of the meta-gradient (default: no clipping)",
        low=0,
        exclusive=True,
        optional=True,
    ),
    Option("training", "log_every", int, 100, "iterations between rows of metrics.csv", low=1),
    Option("training", "checkpoint_every", int, 1_000, "iterations between checkpoints", low=1),
    Option("training", "validate_every", int, 1_000, "iterations between validations", low=1),
    Option("training", "validation_tasks", int, 100, "tasks of a validation", low=1),
    # --- evaluation ---
    Option("evaluation", "eval_tasks", int, 600, "test tasks", low=1),
    Option(
        "evaluation",
        "eval_steps",
        int,
        {"sinusoid": 10, "omniglot": 1, "table": 10},
        "inner steps at test time",
        low=0,
    ),
)

# --- shared by several algorithms ---

INNER_LR = Option(
    "algorithm",
    "inner_lr",
    float,
    {"sinusoid": 0.01, "omniglot": 0.4, "table": 0.01},
    "inner step size: one number, one a layer, or one a step; 0 freezes a layer",
    low=0,
    length=_MANY,
)
INNER_LR_PER = Option(
    "algorithm",
    "inner_lr_per",
    str,
    "auto",
    "what several values of inner_lr are for, where their number could mean either",
    choices=("auto", "layer", "step"),
)
INNER_STEPS = Option("algorithm", "inner_steps", int, 1, "inner steps while training", low=0)
FIRST_ORDER = Option("algorithm", "first_order", bool, False, "leave out second derivatives (FOMAML)")
INNER_WEIGHT_DECAY = Option(
    "algorithm", "inner_weight_decay", float, 0.0, "weight decay in the inner loop", low=0
)
LEARN_INNER_LR = Option("algorithm", "learn_inner_lr", bool, False, "learn the inner step sizes too")

#: Those of learners that compare embeddings.
EMBEDDING = Option("model", "embedding", int, 64, "outputs of the embedding network", low=1)
DISTANCE = Option(
    "algorithm", "distance", str, "cosine", "between embeddings", choices=tuple(DISTANCES)
)
SCALE = Option(
    "algorithm",
    "scale",
    float,
    None,
    "of distances (ridge: of the fit) to begin with; by default what suits them",
    low=0,
    exclusive=True,
    optional=True,
)

#: Published settings, by name and task.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        # Finn et al. 2017, section 5.1 and appendix A.2.
        "sinusoid": {
            "shots": 10,
            "queries": 10,
            "hidden": [40, 40],
            "activation": "relu",
            "inner_lr": 0.01,
            "inner_steps": 1,
            "meta_batch": 25,
            "outer_lr": 1e-3,
            "iterations": 70_000,
        },
        # Finn et al. 2017, appendix A.1, "MAML, no conv". Its step size of 0.4 is for a loss divided by
        # shots; ours is divided by ways × shots. The shifts of its norm are not adapted.
        "omniglot": {
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
        },
    }
}


def preset(name: str, task: str) -> dict[str, Any]:
    """The values of a preset.

    Raises
    ------
    ValueError
        If there is no preset of that name, or none for that task.
    """
    by_task = lookup(name, PRESETS, "preset")
    if task not in by_task:
        raise ValueError(f"preset {name!r} has no {task}; it has {', '.join(by_task)}")
    return by_task[task]
