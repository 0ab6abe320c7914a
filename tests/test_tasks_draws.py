"""What samplers of a data set share: distinct numbers and splits are functions of uniform numbers."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npmeta.tasks.draws import SPLITS, distinct, split_up

uint64 = st.integers(0, 2**64 - 1)


@given(st.data(), st.integers(1, 40))
def test_distinct_is_drawing_without_replacement(data, n):
    k = data.draw(st.integers(1, n))
    below_1 = st.floats(0, 1, exclude_max=True)
    u = data.draw(st.lists(below_1, min_size=k, max_size=k))
    left, expected = list(range(n)), []
    for i, number in enumerate(u):
        expected.append(left.pop(int(number * (n - i))))
    assert distinct(np.array(u), n).tolist() == expected


def test_distinct_gives_every_ordered_choice_its_share():
    # One u in the middle of each of the 5·4·3 cells of equal volume.
    u = np.array([[(a + 0.5) / 5, (b + 0.5) / 4, (c + 0.5) / 3] for a, b, c in np.ndindex(5, 4, 3)])
    drawn = map(tuple, distinct(u, 5).tolist())
    assert sorted(drawn) == sorted(itertools.permutations(range(5), 3))


def test_distinct_takes_another_n_for_every_row():
    u = np.random.default_rng(0).random((50, 4, 3))
    n = np.random.default_rng(1).integers(3, 9, (50, 4))
    drawn = distinct(u, n)
    for i in np.ndindex(50, 4):
        assert drawn[i].tolist() == distinct(u[i], n[i]).tolist()


def test_distinct_stays_below_n_for_the_largest_uniform_number():
    for n in (1, 3, 10, 964, 3856, 2**31 - 1, 2**52 - 1):
        assert distinct(np.full(1, 1 - 2.0**-53), n).tolist() == [n - 1]


@given(st.integers(3, 300), st.integers(0, 10), st.integers(0, 10), uint64)
def test_split_up_divides_everything_by_the_shares(n, validation, test, seed):
    shares = np.array([20 - validation - test, validation, test]) / 20
    if not shares.any():
        return
    parts = split_up(n, shares, seed, "things")
    assert list(parts) == list(SPLITS)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(n))
    for share, part in zip(shares, parts.values(), strict=True):
        assert list(part) == sorted(part)
        assert len(part) == 0 if share == 0 else len(part) >= 1
        assert abs(len(part) - share * n) < (1 if n >= 60 else 3)
    again = split_up(n, shares, seed, "things")
    assert all(np.array_equal(parts[split], again[split]) for split in SPLITS)


def test_split_up_is_another_for_another_seed():
    halves = [tuple(split_up(100, (0.5, 0.5, 0), seed, "things")["train"]) for seed in range(20)]
    assert len(set(halves)) == 20
    # A number is in the first half of half of the splits.
    share = np.bincount(
        np.concatenate([split_up(10, (0.5, 0.5, 0), seed, "things")["train"] for seed in range(1000)])
    )
    assert np.abs(share / 1000 - 0.5).max() < 5 * 0.5 / np.sqrt(1000)


def test_split_up_refuses_too_few():
    with pytest.raises(ValueError, match=r"^too few things for 3 splits: 2$"):
        split_up(2, (0.8, 0.1, 0.1), 0, "things")
    assert {s: len(p) for s, p in split_up(3, (0.8, 0.1, 0.1), 0, "things").items()} == {
        "train": 1,
        "validation": 1,
        "test": 1,
    }
