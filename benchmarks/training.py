"""A whole training run: the sinusoid of the MAML paper, sampling and Adam included.

1-40-40-1 ReLU, T = 25, K = Q = 10, S = 1, Adam with 1e-3, float32; in the paper 70,000 iterations.
Everybody starts from the same parameters and makes as many iterations, in chunks of some hundred, the
chunks alternating, so that the row is a ratio of medians although the runs are long.

=============  =====================================================================================
npmeta         :func:`npmeta.meta_train`: counter-based sampling, checks, a new state every step
jax            a jit-compiled step with Adam, its state donated; tasks sampled with NumPy and passed in
jax-random     the same, tasks sampled inside with ``jax.random``
jax-scan       the same in ``lax.scan``: a chunk is one call, and nobody can look in between
torch-batched  PyTorch with a task axis and ``torch.optim.Adam``, sampled with NumPy
=============  =====================================================================================

**The ratio** is the time of the fastest step that is called for every iteration over npmeta's;
``jax-scan`` stands beside it. The gradients are those of the peers of the same name in the table and
are compared first in the same way. What was learned is compared last: the query loss after adaptation
of 600 tasks that nobody trained on. Worse than npmeta's by half counts as disagreement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from itertools import islice
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

import npmeta as nm
from benchmarks.cases import CASES, Problem, make_problem
from benchmarks.peers import PEERS, REFERENCE, SHARDED, Peer, Prepared, within
from benchmarks.peers.reference import maml
from benchmarks.runner import TOLERANCE, Best, Entry, Plan, Runner, best, examine, take_turns
from benchmarks.settings import available_cores
from npmeta.training.loop import Algorithm

__all__ = ["CASE", "DTYPE", "ITERATIONS", "OUTER_LR", "Chunks", "TrainingRow", "draw", "train"]

CASE, DTYPE = CASES["sine-1"], "float32"
OUTER_LR = 1e-3

#: Of the paper.
ITERATIONS = 70_000

#: What worse than npmeta's a loss may be: runs on other samples differ by a tenth after a thousand
#: iterations, and one that does not learn is off by a factor of three.
_WORSE = 1.5


class Chunks(NamedTuple):
    """How long to train: ``count`` chunks of ``iterations``; one before and one after are not timed."""

    count: int
    iterations: int


class TrainingRow(TypedDict):
    """Seconds are of a chunk. ``loss`` is of the parameters before training and after, by name.

    ``time`` is of the peers that are called for every step, ``scan`` of the one that is not.
    """

    chunks: dict[str, int]
    entries: dict[str, Entry]
    loss: dict[str, float]
    time: Best | None
    scan: Best | None


class Trainer(NamedTuple):
    """Somebody who trains.

    ``start(problem, n)`` gives ``Prepared``: ``run`` makes n iterations more, ``read`` takes what it
    returned and gives the loss of the last and the parameters ``(P,)``. ``gradient`` is the peer whose
    gradient it uses.
    """

    gradient: Peer
    start: Callable[[Problem, int], Prepared]


def draw(rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
    """Sine waves sampled as fast as NumPy can: support x, y and query x, y."""
    K = CASE.support_rows
    u = rng.random((CASE.tasks, 2 + K + CASE.query_rows), dtype=DTYPE)
    amplitude, phase = 0.1 + 4.9 * u[:, :1], np.float32(math.pi) * u[:, 1:2]
    x = 10 * u[:, 2:] - 5
    y = amplitude * np.sin(x + phase)
    x, y = x[..., None], y[..., None]
    return x[:, :K], y[:, :K], x[:, K:], y[:, K:]


def _alone(problem: Problem, n: int) -> Prepared:
    return _npmeta(maml(problem), problem, n)


def _sharded(problem: Problem, n: int) -> Prepared:
    from npmeta.training.parallel import Sharded

    algorithm = Sharded(maml(problem), workers=len(available_cores()))
    return _npmeta(algorithm, problem, n)._replace(close=algorithm.close)


def _npmeta(algorithm: Algorithm, problem: Problem, n: int) -> Prepared:
    steps = nm.meta_train(
        algorithm,
        problem.theta,
        _waves(),
        iterations=10**9,
        meta_batch=CASE.tasks,
        outer_lr=OUTER_LR,
    )
    return Prepared(
        lambda: next(islice(steps, n - 1, None)), lambda step: (step.loss, step.params["theta"])
    )


def _waves() -> nm.tasks.Sinusoid:
    return nm.tasks.Sinusoid(shots=CASE.support_rows, queries=CASE.query_rows)


#: Everybody, by name. On several cores shards are npmeta's own way.
TRAINERS = {
    "npmeta": Trainer(REFERENCE, _alone),
    "jax": Trainer(PEERS["jax"], within("jax_training", "fed")),
    "jax-random": Trainer(PEERS["jax"], within("jax_training", "sampling")),
    "jax-scan": Trainer(PEERS["jax"], within("jax_training", "scanned")),
    "torch-batched": Trainer(PEERS["torch-batched"], within("torch_peers", "training")),
}


def train(
    chunks: Chunks,
    peers: Collection[str] = tuple(PEERS),
    tell: Callable[[str], None] = lambda doing: None,
) -> TrainingRow:
    """Compare gradients, train by turns, compare what was learned.

    Trainers whose gradient is not one of ``peers`` are left out.
    """
    problem = make_problem(CASE, DTYPE)
    ours = REFERENCE.prepare(problem)
    loss, gradient = ours.read(ours.run())
    entries: dict[str, Entry] = {}
    runners = []
    trainers = dict(TRAINERS)
    if SHARDED.name in peers and SHARDED.installed:
        trainers["npmeta"] = Trainer(REFERENCE, _sharded)
    for name, trainer in trainers.items():
        if trainer.gradient is not REFERENCE and trainer.gradient.name not in peers:
            continue
        tell(f"comparing {name}")
        prepared, entry = examine(trainer.gradient, problem, loss, gradient, TOLERANCE[DTYPE])
        entries[name] = entry
        if prepared is not None:
            # One thread: PyTorch's second one only costs time on arrays so small.
            entry["threads"] = None if trainer.gradient.set_threads is None else 1
            started = trainer.start(problem, chunks.iterations)
            runners.append(Runner(started, trainer.gradient, entry))
            runners[-1].use_its_threads()
            started.run()
    tell(f"{chunks.count} times {chunks.iterations} iterations")
    take_turns(runners, Plan(rounds=chunks.count, turn=0.0, row=math.inf))
    losses = {"before": _test_loss(problem, problem.theta)}
    for runner in runners:
        name = next(name for name, entry in entries.items() if entry is runner.entry)
        # One chunk more, for its parameters.
        _, theta = runner.prepared.read(runner.prepared.run())
        losses[name] = _test_loss(problem, theta)
        runner.prepared.close()
    for name, learned in losses.items():
        if name != "before" and not learned <= _WORSE * losses["npmeta"]:
            entries[name].update(
                status="disagrees",
                note=f"loss {learned:.3f} after training, npmeta's {losses['npmeta']:.3f}",
                samples=[],
                median=None,
            )
    medians = {name: entry["median"] for name, entry in entries.items()}
    scan = {name: median for name, median in medians.items() if name in ("npmeta", "jax-scan")}
    medians.pop("jax-scan", None)
    return {
        "chunks": chunks._asdict(),
        "entries": entries,
        "loss": losses,
        "time": best(medians),
        "scan": best(scan),
    }


def _test_loss(problem: Problem, theta: NDArray[Any]) -> float:
    return float(nm.evaluate(maml(problem), theta, _waves()).mean("loss")[-1])
