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

__all__ = ["PEERS", "REFERENCE", "Peer", "Prepared"]


class Prepared(NamedTuple):
    """Work that is ready to be done.

    Attributes
    ----------
    run : callable
        Does the work and returns when it is done. This is what is timed.
    read : callable
        Takes what ``run`` returned; the loss, and the gradient ``(P,)`` in npmeta's order and in the
        dtype it was computed in.
    """

    run: Callable[[], Any]
    read: Callable[[Any], tuple[float, NDArray[Any]]]


@dataclass(frozen=True)
class Peer:
    """One way to compute the meta-gradient.

    Attributes
    ----------
    name : str
    package : str
        What has to be installed.
    prepare : callable
        Everything that need not be done again for every gradient.
    set_threads : callable, optional
        Sets the number of threads, in a library that can change it between calls.
    by_default : bool
        Whether it is measured without being asked for.
    """

    name: str
    package: str
    prepare: Callable[[Problem], Prepared]
    set_threads: Callable[[int], None] | None = None
    by_default: bool = True

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None


def _in(module: str, function: str) -> Callable[[Any], Any]:
    def call(argument: Any) -> Any:
        return getattr(import_module(f"benchmarks.peers.{module}"), function)(argument)

    return call


def _torch(name: str, function: str, *, by_default: bool = True) -> Peer:
    module = "torch_peers"
    return Peer(name, "torch", _in(module, function), _in(module, "set_threads"), by_default)


#: What all others are compared with.
REFERENCE = Peer("npmeta", "npmeta", _in("reference", "default"))

#: Every peer, by its name, in the order of the table.
PEERS = {
    peer.name: peer
    for peer in (
        Peer("jax", "jax", _in("jax_peers", "vmapped")),
        Peer("jax-mixed", "jax", _in("jax_peers", "mixed_mode")),
        _torch("torch-func", "vmapped"),
        _torch("torch-batched", "task_axis"),
        _torch("torch-loop", "loop"),
        _torch("torch-compile", "compiled", by_default=False),
    )
}
