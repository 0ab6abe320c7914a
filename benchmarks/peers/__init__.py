"""Who is measured. A peer is one function that prepares one way to compute the meta-gradient.

To add one, write ``prepare(problem) -> Prepared`` and a line in :data:`PEERS`. A module that imports
an optional library is imported when its peer's turn has come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from numpy.typing import NDArray

from benchmarks.cases import Problem

__all__ = ["EVERYBODY", "OURS", "PEERS", "REFERENCE", "SHARDED", "Peer", "Prepared", "within"]


class Prepared(NamedTuple):
    """Work that is ready to be done.

    Attributes
    ----------
    run : callable
        Does the work and returns when it is done. This is what is timed.
    read : callable
        Takes what ``run`` returned; the loss, and the gradient ``(P,)`` in npmeta's order and in the
        dtype it was computed in.
    planned : callable, optional
        The bytes a compiler says it needs for results in between.
    close : callable, optional
        Ends what was started, such as worker processes.
    """

    run: Callable[[], Any]
    read: Callable[[Any], tuple[float, NDArray[Any]]]
    planned: Callable[[], int] | None = None
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Peer:
    """One way to compute the meta-gradient.

    Attributes
    ----------
    name : str
    package : str
        What has to be installed: a package, or a module of one.
    prepare : callable
        Everything that need not be done again for every gradient.
    set_threads : callable, optional
        Sets the number of threads, in a library that can change it between calls.
    by_default : bool
        Whether it is measured without being asked for.
    in_workers : bool
        Whether it has worker processes, and so nothing to offer on one core.
    """

    name: str
    package: str
    prepare: Callable[[Problem], Prepared]
    set_threads: Callable[[int], None] | None = None
    by_default: bool = True
    in_workers: bool = False

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None


def within(module: str, function: str) -> Callable[..., Any]:
    """A function of a module here, which is imported when the function is called."""

    def call(*arguments: Any) -> Any:
        return getattr(import_module(f"benchmarks.peers.{module}"), function)(*arguments)

    return call


def _torch(name: str, function: str, *, by_default: bool = True) -> Peer:
    module = "torch_peers"
    return Peer(name, "torch", within(module, function), within(module, "set_threads"), by_default)


#: npmeta in all its forms. The first is what all others are compared with. It has the say in the
#: ratio, except where there are shards: on several cores, these are npmeta's own way.
OURS = {
    peer.name: peer
    for peer in (
        Peer("npmeta", "npmeta", within("reference", "auto")),
        Peer("npmeta-dense", "npmeta", within("reference", "dense")),
        Peer("npmeta-factored", "npmeta", within("reference", "factored")),
        Peer(
            "npmeta-sharded",
            "npmeta.training.parallel",
            within("reference", "sharded"),
            in_workers=True,
        ),
    )
}
REFERENCE, SHARDED = OURS["npmeta"], OURS["npmeta-sharded"]

#: Every peer, by its name, in the order of the table.
PEERS = {
    peer.name: peer
    for peer in (
        Peer("jax", "jax", within("jax_peers", "vmapped")),
        Peer("jax-mixed", "jax", within("jax_peers", "mixed_mode")),
        _torch("torch-func", "vmapped"),
        _torch("torch-batched", "task_axis"),
        _torch("torch-loop", "loop"),
        _torch("torch-compile", "compiled", by_default=False),
    )
}

EVERYBODY = {**OURS, **PEERS}
