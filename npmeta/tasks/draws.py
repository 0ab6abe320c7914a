"""Random numbers that are a function of (seed, split, iteration, index) and of nothing else."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array, as_whole, lookup

#: The splits, and the number that sets their streams apart.
SPLITS = {"train": 0, "validation": 1, "test": 2}


def uniforms(
    seed: int, iteration: int, start: int, n_tasks: int, per_task: int, split: str = "train"
) -> Array:
    """Uniform numbers in [0, 1) for tasks ``start .. start + n_tasks - 1`` of one iteration.

    Philox (Salmon et al. 2011) is a random number generator without a state: block i of its output
    is a function of a key and of i. The seed and the split make the key, iteration and task index the
    position, so that any task can be drawn anywhere, alone or with others, at the price of one call.

    Parameters
    ----------
    seed : int
        0 to 2**64 - 1.
    iteration, start, n_tasks : int
        At least 0.
    per_task : int
        Numbers a task needs.
    split : {"train", "validation", "test"}

    Returns
    -------
    ndarray, (n_tasks, per_task)
        float64.
    """
    check_draw(seed, iteration, start, n_tasks, split)
    # NumPy's own integers have 64 bits: np.int64(5) << 128 is 0, and every iteration the same.
    seed, iteration, start = (operator.index(number) for number in (seed, iteration, start))
    blocks = -(-operator.index(per_task) // 4)  # Philox makes four numbers at a time
    generator = np.random.Philox(
        key=SPLITS[split] << 64 | seed, counter=iteration << 128 | start * blocks
    )
    drawn = np.random.Generator(generator).random((n_tasks, 4 * blocks))
    return drawn[:, :per_task]


def check_draw(seed: int, iteration: int, start: int, n_tasks: int, split: str) -> None:
    """Raise ValueError unless these can name tasks."""
    lookup(split, SPLITS, "split")
    as_whole(seed, "seed")
    as_whole(iteration, "iteration", high=2**128 - 1)  # half of the counter
    as_whole(start, "start")
    as_whole(n_tasks, "n_tasks", 1)


def split_up(n: int, fractions: Sequence[float], seed: int, what: str) -> dict[str, Array]:
    """0..n-1 divided at random among the splits, each part in increasing order.

    Every split of a positive share gets at least one; the rest go one by one to the split that lacks
    most of its share.
    """
    share = np.array(fractions)
    sizes = (share > 0).astype(int)
    if n < sizes.sum():
        raise ValueError(f"too few {what} for {sizes.sum()} splits: {n}")
    for _ in range(n - sizes.sum()):
        sizes[np.argmax(share * n - sizes)] += 1
    # An iteration far beyond those of any run, whose tasks would be drawn with the same numbers.
    order = np.argsort(uniforms(seed, 2**64, 0, 1, n)[0], kind="stable")
    parts = np.split(order, np.cumsum(sizes)[:2])
    return {split: np.sort(part) for split, part in zip(SPLITS, parts, strict=True)}


def distinct(u: Array, n: ArrayLike) -> Array:
    """Distinct whole numbers below n, one for each uniform number of the last axis.

    Every ordered choice is equally likely. Number i is the r-th, from 0, of those not drawn before,
    r = ⌊u_i (n − i)⌋; with s_0 < s_1 < .. drawn before, that is r + #{j : s_j − j ≤ r}.

    Parameters
    ----------
    u : ndarray, (..., k)
        In [0, 1).
    n : int or array_like of int, (...)
        At least k.

    Returns
    -------
    ndarray, (..., k)
        int64.
    """
    drawn = np.empty(u.shape, dtype=np.int64)
    for i in range(u.shape[-1]):
        r = (u[..., i] * (np.asarray(n) - i)).astype(np.int64)
        before = np.sort(drawn[..., :i], axis=-1) - np.arange(i)
        drawn[..., i] = r + (before <= r[..., None]).sum(-1)
    return drawn
