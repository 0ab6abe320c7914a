"""How algorithms, and their networks, are made from the values of a run's options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from npmeta._support.options import Option, arguments, parameters
from npmeta.algorithms.base import MetaLearner
from npmeta.algorithms.options import INNER_STEPS, STRUCTURE
from npmeta.network.mlp import MLP
from npmeta.network.structure import Structure
from npmeta.tasks.registry import KINDS

#: Values of all options of a run by name.
Values: TypeAlias = Mapping[str, Any]

#: (entry, n_in, n_out, values) -> the algorithm.
Make: TypeAlias = Callable[["Entry", int, int, Values], MetaLearner]


def one_or_list(values: list[Any]) -> Any:
    """A list of one as its value."""
    return values[0] if len(values) == 1 else values


def network(n_in: int, n_out: int, values: Values) -> MLP:
    """The network of a configuration."""
    return MLP(
        [n_in, *values["hidden"], n_out],
        one_or_list(values["activation"]),
        norm=None if values["norm"] == "none" else values["norm"],
        adapt_norm=values["adapt_norm"],
        norm_sets=values["norm_sets"],
    )


def inner_lr(values: Values) -> Any:
    """A number, a list for MAML to read, or a row (layers) or column (steps) of step sizes."""
    sizes, per = values["inner_lr"], values.get("inner_lr_per")
    if per is None and len(sizes) > 1:
        raise ValueError(f"{values['algorithm']} has one inner_lr, got {len(sizes)} values")
    if per == "layer":
        return [sizes]
    if per == "step":
        return [[size] for size in sizes]
    return one_or_list(sizes)


def _on(model: MLP, entry: Entry, values: Values) -> MetaLearner:
    """The algorithm on a network, with its own options."""
    own = arguments(entry.construct, entry.options, values)
    if "inner_lr" in own:
        own["inner_lr"] = inner_lr(values)
    return entry.construct(model, values["loss"], **own)


def on_network(entry: Entry, n_in: int, n_out: int, values: Values) -> MetaLearner:
    """``construct(model, loss, **options)``."""
    return _on(network(n_in, n_out, values), entry, values)


def on_context(entry: Entry, n_in: int, n_out: int, values: Values) -> MetaLearner:
    """The same on a network with further inputs."""
    return _on(network(n_in + values["n_context"], n_out, values), entry, values)


def on_structure(entry: Entry, n_in: int, n_out: int, values: Values) -> MetaLearner:
    """The same on a network that learns its structure."""
    if values["norm"] != "none":
        raise ValueError(f"{entry.name} takes no norm: a network has a norm or a structure, not both")
    structure = Structure(**arguments(Structure, STRUCTURE, values))
    return _on(MLP([n_in, *values["hidden"], n_out], structure=structure), entry, values)


def on_embedding(entry: Entry, n_in: int, n_out: int, values: Values, **parts: MLP) -> MetaLearner:
    """``construct(embedding, ways=n_out, **options)``, of what compares embeddings, or else inputs.

    One that takes no loss has its own, for classes alone.
    """
    own: dict[str, Any] = arguments(entry.construct, entry.options, values)
    if "loss" in parameters(entry.construct):
        own["loss"] = values["loss"]
    elif n_out < 2:
        raise ValueError(
            f"{entry.name} tells classes apart, and the target is a number; maml, for one, takes those"
        )
    elif values["loss"] not in (None, entry.defaults.get("loss", "cross_entropy")):
        raise ValueError(
            f"{entry.name} has a loss of its own and none by the name of {values['loss']}; leave out "
            f"--loss"
        )
    embedding = network(n_in, values["embedding"], values) if "embedding" in values else None
    return entry.construct(embedding, ways=n_out, **parts, **own)


def with_relation(entry: Entry, n_in: int, n_out: int, values: Values) -> MetaLearner:
    """The same with a second network, which takes two embeddings."""
    relation = MLP([2 * values["embedding"], *values["relation_hidden"], 1])
    return on_embedding(entry, n_in, n_out, values, relation=relation)


def on_waves(entry: Entry, n_in: int, n_out: int, values: Values) -> MetaLearner:
    """``construct(frequency, loss)``, of what knows the frequency of sine waves."""
    low, high = values["frequency"]
    if low != high:
        raise ValueError(
            f"{entry.name} knows waves of one frequency, not of a range: got {low} to {high}"
        )
    return entry.construct(low, values["loss"])


@dataclass(frozen=True)
class Entry:
    """What is known of an algorithm.

    Attributes
    ----------
    name : str
        As in ``--algorithm NAME``.
    summary, paper : str
        A line for ``npmeta list``: what it does; authors and year.
    construct : callable
        The class, or a function that returns one of it.
    declared : tuple of Option
        Those of sections "model" and "algorithm" that it has besides ``loss`` and the network's,
        without the defaults that ``construct`` has. Options of one name agree in all but defaults and
        help.
    defaults : mapping
        What runs have by default in place of anybody else's default, of any option by name: a value, or
        a mapping from kinds of tasks to values.
    tasks : tuple of str
        The kinds of tasks it can be trained on.
    make_of : callable
        ``(entry, n_in, n_out, values) -> MetaLearner``: one of those above, or its own.
    """

    name: str
    summary: str
    paper: str
    construct: Callable[..., MetaLearner]
    declared: tuple[Option, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = tuple(KINDS)
    make_of: Make = on_network

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """Those that it declares, with their defaults."""
        return tuple(option.of(self.construct) for option in self.declared)

    @property
    def inner_steps(self) -> bool:
        """Whether it takes any: if not, its scores have one column."""
        return INNER_STEPS.name in {option.name for option in self.declared}

    def make(self, n_in: int, n_out: int, values: Values) -> MetaLearner:
        """The algorithm for tasks with so many inputs and outputs (classes).

        Raises
        ------
        ValueError
            If values do not fit together.
        """
        return self.make_of(self, n_in, n_out, values)

    def defaults_on(self, task: str) -> dict[str, Any]:
        """Its own defaults of runs on a kind of tasks."""
        own = {}
        for name, default in self.defaults.items():
            by_task = default if isinstance(default, Mapping) else {task: default}
            own.update({name: by_task[task]} if task in by_task else {})
        return own
