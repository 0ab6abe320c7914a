"""Comparing gradients, then timing in this process, then memory in others: one row of the table."""

from __future__ import annotations

import gc
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import perf_counter, sleep
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np

from benchmarks.cases import Problem
from benchmarks.limit import fewest_flops
from benchmarks.memory import Memory, extra_memory
from benchmarks.peers import OURS, REFERENCE, SHARDED, Peer, Prepared

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from numpy.typing import NDArray

__all__ = [
    "TOLERANCE",
    "Best",
    "Entry",
    "Plan",
    "Row",
    "Runner",
    "best",
    "examine",
    "measure",
    "take_turns",
]

#: Largest relative difference of loss and gradient from npmeta's (of the gradient, ‖g − g'‖ / ‖g'‖).
#:
#: In float64 two correct programs differ by 1e-16 to 1e-14 on these cases. In float32 rounding alone
#: makes up to 1e-5 of it over five inner steps; and of the millions of pre-activations of a case some
#: lie within rounding of zero, where two programs may see a ReLU on different sides: one such unit was
#: seen to move a gradient by 5e-3 (wide, where other seeds had all within 4e-7). First-order gradients
#: are off by 0.3 to 1.2.
TOLERANCE = {"float64": 1e-10, "float32": 1e-2}


class Plan(NamedTuple):
    """How long to measure.

    Attributes
    ----------
    rounds : int
        Turns of everybody, at least 1.
    turn : float
        Seconds that one turn should take; a slow peer's turn is one call.
    row : float
        Seconds after which no further turn begins, those of the first round excepted.
    settle : float
        Seconds of rest before each turn.
    memory : bool
        Whether to measure memory, in further processes.
    """

    rounds: int
    turn: float
    row: float
    settle: float = 0.0
    memory: bool = False


class Entry(TypedDict):
    """What became of one peer, or of npmeta in one form, in one row.

    ``status`` is "ok", "disagrees", "failed" or "not installed"; only "ok" has samples, seconds a
    call, round by round, and memory. A difference that is not a finite number is None.
    """

    status: str
    note: str
    loss_difference: float | None
    gradient_difference: float | None
    threads: int | None
    samples: list[list[float]]
    median: float | None
    memory: Memory | None


class Best(TypedDict):
    """The peer with the least seconds or bytes, and how many times npmeta's that is."""

    peer: str
    ratio: float


class Row(TypedDict):
    """One row: a case in one dtype. npmeta is among the entries. Its own differences are 0.

    ``limit`` is the seconds of the fewest operations at the rate of a matrix product; ``ours`` is the
    entry of npmeta that counts in ratios, which are None where there is nothing to compare with.
    """

    case: dict[str, Any]
    dtype: str
    tolerance: float
    loss: float
    gradient_norm: float
    entries: dict[str, Entry]
    flops: int
    limit: float
    ours: str
    time: Best | None
    memory: Best | None


@dataclass
class Runner:
    """Somebody whose gradient agreed."""

    prepared: Prepared
    peer: Peer
    entry: Entry
    calls: int = field(default=1, init=False)

    def use_its_threads(self) -> None:
        if self.peer.set_threads is not None and self.entry["threads"] is not None:
            self.peer.set_threads(self.entry["threads"])


def measure(
    problem: Problem,
    peers: Sequence[Peer],
    plan: Plan,
    cores: int,
    rate: float,
    tell: Callable[[str], None] = lambda doing: None,
) -> Row:
    """Compare everybody's gradient with npmeta's, then measure those that agree.

    Parameters
    ----------
    problem : Problem
    peers : sequence of Peer
        Without npmeta's default, which is always there.
    plan : Plan
    cores : int
        How many threads a peer may use.
    rate : float
        Operations of a matrix product in a second.
    tell : callable, optional
        Hears what is being done.
    """
    dtype = problem.theta.dtype.name
    ours = REFERENCE.prepare(problem)
    loss, gradient = ours.read(ours.run())
    entries: dict[str, Entry] = {}
    runners = []
    for peer in (REFERENCE, *peers):
        tell(f"comparing {peer.name}")
        prepared, entries[peer.name] = examine(peer, problem, loss, gradient, TOLERANCE[dtype])
        if prepared is not None:
            runners.append(Runner(prepared, peer, entries[peer.name]))
    with _no_garbage_collection():
        for runner in runners:
            tell(f"warming {runner.peer.name} up")
            _warm_up(runner, plan, cores)
        tell("timing")
        take_turns(runners, plan)
    if plan.memory:
        for runner in runners:
            tell(f"memory of {runner.peer.name}")
            runner.entry["memory"] = extra_memory(
                runner.peer, problem.case, dtype, runner.entry["threads"]
            )
    for runner in runners:
        runner.prepared.close()
    counts = _that_counts(entries)
    flops = fewest_flops(problem.case)
    return {
        "case": asdict(problem.case),
        "dtype": dtype,
        "tolerance": TOLERANCE[dtype],
        "loss": loss,
        "gradient_norm": float(np.linalg.norm(gradient)),
        "entries": entries,
        "flops": flops,
        "limit": flops / rate,
        "ours": counts,
        "time": best({name: entry["median"] for name, entry in entries.items()}, counts),
        "memory": best(
            {name: entry["memory"] and entry["memory"]["extra"] for name, entry in entries.items()},
            counts,
        ),
    }


# --- the gradient ---------------------------------------------------------------------------------


def examine(
    peer: Peer, problem: Problem, loss: float, gradient: NDArray[Any], tolerance: float
) -> tuple[Prepared | None, Entry]:
    """The peer's first call, compared; nothing prepared comes back unless it agrees."""
    entry: Entry = {
        "status": "not installed",
        "note": "",
        "loss_difference": None,
        "gradient_difference": None,
        "threads": None,
        "samples": [],
        "median": None,
        "memory": None,
    }
    if not peer.installed:
        return None, entry
    try:
        if peer.set_threads is not None:
            # One thread cannot be kept waiting by another, however busy the machine is.
            peer.set_threads(1)
        prepared = peer.prepare(problem)
        its_loss, its_gradient = prepared.read(prepared.run())
    except Exception as error:  # whatever a library raises, the other columns go on
        first_line = next(iter(str(error).splitlines()), "")
        entry["status"], entry["note"] = "failed", f"{type(error).__name__}: {first_line}"
        return None, entry
    entry["status"] = "disagrees"
    if its_gradient.shape != gradient.shape or its_gradient.dtype != gradient.dtype:
        entry["note"] = (
            f"gradient is {its_gradient.dtype} {its_gradient.shape}, npmeta's is {gradient.dtype} "
            f"{gradient.shape}"
        )
        return None, entry
    differences = (
        abs(its_loss - loss) / abs(loss),
        float(np.linalg.norm(its_gradient - gradient) / np.linalg.norm(gradient)),
    )
    entry["loss_difference"], entry["gradient_difference"] = (
        d if math.isfinite(d) else None for d in differences
    )
    if not all(d <= tolerance for d in differences):  # which NaN is not, either
        entry["note"] = "loss off by {:.1e}, gradient by {:.1e}, tolerance {:.0e}".format(
            *differences, tolerance
        )
        return None, entry
    entry["status"] = "ok"
    return prepared, entry


# --- the time -------------------------------------------------------------------------------------


def _warm_up(runner: Runner, plan: Plan, cores: int) -> None:
    """Settle how many threads a peer uses and how many calls make a turn."""
    if runner.peer.set_threads is None:
        quickest = _quickest(runner.prepared, plan)
    else:
        trials = {}
        for threads in sorted({1, cores}):
            runner.peer.set_threads(threads)
            trials[threads] = _quickest(runner.prepared, plan)
        runner.entry["threads"] = min(trials, key=trials.__getitem__)
        quickest = min(trials.values())
    runner.calls = max(1, int(plan.turn / quickest))


def _quickest(prepared: Prepared, plan: Plan) -> float:
    """Seconds of the quickest of a turn's calls, the first counted only if there is no other."""
    started = perf_counter()
    calls = [_timed(prepared)]
    while perf_counter() - started < plan.turn:
        calls.append(_timed(prepared))
    return min(calls[1:] or calls)


def take_turns(runners: Sequence[Runner], plan: Plan) -> None:
    """Rounds of everybody in random order; samples and their median go to the entries."""
    order, shuffle = list(runners), random.Random(0).shuffle
    started = perf_counter()
    for done in range(plan.rounds):
        shuffle(order)
        for runner in order:
            if done and perf_counter() - started > plan.row:
                break
            sleep(plan.settle)
            runner.use_its_threads()
            if runner.calls > 1:
                # The caches hold another library's arrays. A call that is longer than a turn does
                # not notice.
                runner.prepared.run()
            runner.entry["samples"].append([_timed(runner.prepared) for _ in range(runner.calls)])
            gc.collect()
    for runner in runners:
        samples = [sample for turn in runner.entry["samples"] for sample in turn]
        runner.entry["median"] = statistics.median(samples)


def _timed(prepared: Prepared) -> float:
    started = perf_counter()
    prepared.run()
    return perf_counter() - started


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Garbage is collected between turns only, and what is there already is not gone through."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def best(numbers: Mapping[str, float | None], ours: str = REFERENCE.name) -> Best | None:
    """The peer with the least of something, and that over npmeta's; None without both."""
    measured = {name: number for name, number in numbers.items() if number is not None}
    peers = {name: number for name, number in measured.items() if name not in OURS}
    if not measured.get(ours) or not peers:
        return None
    least = min(peers, key=peers.__getitem__)
    return {"peer": least, "ratio": peers[least] / measured[ours]}


def _that_counts(entries: Mapping[str, Entry]) -> str:
    with_shards = SHARDED.name in entries and entries[SHARDED.name]["status"] == "ok"
    return (SHARDED if with_shards else REFERENCE).name
