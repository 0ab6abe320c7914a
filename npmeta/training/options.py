"""The options of a run: the task's, the network's and the algorithm's, and those of training itself."""

from __future__ import annotations

from collections.abc import Container
from functools import partial

from npmeta._support.options import Option, merged
from npmeta._support.validation import lookup
from npmeta.algorithms.options import NETWORK
from npmeta.algorithms.registry import ALGORITHMS, DEFAULT
from npmeta.bilevel.optimizers import OPTIMIZERS, SCHEDULES, cosine, step
from npmeta.network.losses import LOSSES
from npmeta.tasks.registry import KINDS
from npmeta.training.loop import evaluate, meta_train

#: In the order of the file. What stands in none is at its top.
SECTIONS = ("", "tasks", "model", "algorithm", "training", "evaluation")

_training, _evaluation = partial(Option, "training"), partial(Option, "evaluation")

_RUN = (
    Option("", "seed", int, "seed of the initial parameters and of the tasks", low=0).of(meta_train),
    Option(
        "",
        "dtype",
        str,
        "precision of parameters and arithmetic",
        "float64",
        choices=("float64", "float32"),
    ),
    # In the file it stands in a section of its own name: TOML has no key beside a section called so.
    Option(
        "algorithm",
        "algorithm",
        str,
        "npmeta list shows them all, npmeta list NAME the options of one",
        DEFAULT,
        choices=tuple(ALGORITHMS),
    ),
    Option(
        "algorithm",
        "loss",
        str,
        "loss of the inner and the outer loop (table: mse or cross_entropy by the target's kind)",
        None,
        choices=tuple(LOSSES),
        optional=True,
    ),
)

_TRAINING = (
    _training("iterations", int, "outer steps", low=1),
    _training("meta_batch", int, "tasks a step", low=1).of(meta_train),
    _training(
        "shard_size",
        int,
        "tasks that are computed together; workers share shards (default: by the parameters' number)",
        None,
        low=1,
        optional=True,
    ),
    _training("optimizer", str, "outer optimizer", "adam", choices=tuple(OPTIMIZERS)),
    _training("outer_lr", float, "outer learning rate", low=0, exclusive=True).of(meta_train),
    _training("schedule", str, "of the outer rate", "constant", choices=tuple(SCHEDULES)),
    _training("schedule_every", int, "iterations between steps of 'step'", 5_000, low=1),
    _training(
        "schedule_factor",
        float,
        "factor at each step of 'step'",
        low=0,
        exclusive=True,
        argument="factor",
    ).of(step),
    _training(
        "schedule_floor", float, "share of the rate 'cosine' ends at", low=0, high=1, argument="floor"
    ).of(cosine),
    _training(
        "clip",
        float,
        "greatest norm of the meta-gradient (default: no clipping)",
        low=0,
        exclusive=True,
        optional=True,
    ).of(meta_train),
    _training("log_every", int, "iterations between rows of metrics.csv", 100, low=1),
    _training("checkpoint_every", int, "iterations between checkpoints", 1_000, low=1),
    _training("validate_every", int, "iterations between validations", 1_000, low=1),
    _training("validation_tasks", int, "tasks of a validation", 100, low=1),
    _evaluation("eval_tasks", int, "test tasks", low=1, argument="n_tasks").of(evaluate),
    _evaluation("eval_steps", int, "inner steps at test time", 10, low=0),
)


def options_of(task: str, algorithm: str) -> tuple[Option, ...]:
    """The options of an algorithm's runs on a kind of tasks with their defaults, as the file has them.

    Raises
    ------
    ValueError
        If there is no such kind, or no such algorithm.
    """
    kind, entry = lookup(task, KINDS, "task"), lookup(algorithm, ALGORITHMS, "algorithm")
    defaults = {**kind.defaults, **entry.defaults_on(task)}
    options = (*kind.options, *NETWORK, *_RUN, *entry.options, *_TRAINING)
    return tuple(
        option.with_default(defaults.get(option.name, option.default))
        for option in sorted(options, key=lambda option: SECTIONS.index(option.section))
    )


def described(algorithm: str, without: Container[str] = ()) -> tuple[Option, ...]:
    """The options of an algorithm on any task that it is for; their help says what the defaults are."""
    tasks = lookup(algorithm, ALGORITHMS, "algorithm").tasks
    by_task = {task: {o.name: o for o in options_of(task, algorithm)} for task in tasks}
    return tuple(
        next(own[name] for own in by_task.values() if name in own).told(
            {task: own[name].default for task, own in by_task.items() if name in own}, tasks
        )
        for name in merged(by_task.values())
        if name not in without
    )


def _all_options() -> tuple[Option, ...]:
    by_name: dict[str, Option] = {}
    for name in ALGORITHMS:
        by_name.update((option.name, option) for option in described(name, without=by_name))
    return tuple(sorted(by_name.values(), key=lambda option: SECTIONS.index(option.section)))


#: The options that any run has, in the order of the file, described as the first algorithm has them.
OPTIONS: tuple[Option, ...] = _all_options()
