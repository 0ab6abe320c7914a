"""``python -m benchmarks.ablations``: what each gain is worth, by doing without it.

Every row takes one thing out of npmeta, in the way of the first version that did not have it, and
measures each case with and without, by turns, on one core. The numbers are time without over time with:
above 1 the gain pays. The choice of form has columns of its own in the table of ``python -m
benchmarks``.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from time import perf_counter
from unittest.mock import patch

import numpy as np

import npmeta as nm
from benchmarks.cases import CASES, DTYPES, Problem, make_problem
from benchmarks.peers.reference import maml
from benchmarks.settings import SETTINGS
from npmeta._support.blas import one_thread
from npmeta.bilevel import plan
from npmeta.network import factored, mlp, weights
from npmeta.network.factored import FactoredBase, Grams

__all__ = ["GAINS", "main"]

#: Of one row and case: rounds, and seconds that a turn should take.
ROUNDS, TURN = 9, 0.1


def _freed_memory_goes_back() -> AbstractContextManager[None]:
    """glibc with the thresholds it begins with (mallopt(3)), and afterwards those of a large block."""
    mallopt = ctypes.CDLL(None).mallopt
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD

    @contextmanager
    def low() -> Iterator[None]:
        mallopt(trim, 128 * 2**10)
        mallopt(mmap, 128 * 2**10)
        try:
            yield
        finally:
            mallopt(trim, 62 * 2**20)
            mallopt(mmap, 31 * 2**20)

    return low()


def _patched(*changes: tuple[object, str, object]) -> AbstractContextManager[object]:
    stack = ExitStack()
    for owner, name, value in changes:
        stack.enter_context(patch.object(owner, name, value))
    return stack


#: By what is done without.
GAINS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "products of inputs made once": lambda: _patched((mlp, "InputBase", FactoredBase)),
    "inner products kept for the adjoint": lambda: _patched((Grams, "_turned", lambda *_: None)),
    "tasks in chunks": lambda: _patched((plan, "CHUNK", 2**62)),
    "freed memory kept": _freed_memory_goes_back,
    "a column times a row by broadcasting": lambda: _patched(
        (weights, "product", np.matmul), (factored, "product", np.matmul)
    ),
    "sums of rows as products": lambda: _patched(
        *((module, "row_sum", lambda rows: rows.sum(-2)) for module in (weights, factored))
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations", description=__doc__)
    parser.add_argument("--case", action="append", choices=CASES, help="default: all; repeatable")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    args = parser.parse_args(argv)
    cases = args.case or list(CASES)
    SETTINGS["one-core"].confine()
    width = max(map(len, GAINS))
    print(f"{'time without / with, ' + args.dtype:<{width}}", *(f"{name:>18}" for name in cases))
    problems = [make_problem(CASES[name], args.dtype) for name in cases]
    with one_thread():
        for name, without in GAINS.items():
            ratios = [_ratio(problem, without) for problem in problems]
            print(f"{name:<{width}}", *(f"{ratio:>18.2f}" for ratio in ratios), flush=True)
    return 0


def _ratio(problem: Problem, without: Callable[[], AbstractContextManager[object]]) -> float:
    """Median of time without over time with, round by round."""
    algorithm = maml(problem)
    calls = max(1, round(TURN / _seconds(algorithm, problem, 2)))
    ratios = []
    for _ in range(ROUNDS):
        with without():
            slow = _seconds(algorithm, problem, calls)
        ratios.append(slow / _seconds(algorithm, problem, calls))
    return statistics.median(ratios)


def _seconds(algorithm: nm.MAML, problem: Problem, calls: int) -> float:
    """A call's, after one that is not counted."""
    algorithm.meta_gradient(problem.theta, problem.tasks)
    began = perf_counter()
    for _ in range(calls):
        algorithm.meta_gradient(problem.theta, problem.tasks)
    return (perf_counter() - began) / calls


if __name__ == "__main__":
    raise SystemExit(main())
