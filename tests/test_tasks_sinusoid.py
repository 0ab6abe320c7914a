"""Sine waves, and the draws behind them: tasks are a function of (seed, split, iteration, index)."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import npmeta as nm
from npmeta.tasks import Sinusoid
from npmeta.tasks.draws import SPLITS, check_draw, uniforms

ARRAYS = ("support_x", "support_y", "query_x", "query_y")


def assert_same(one: nm.TaskBatch, other: nm.TaskBatch) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def rows(tasks: nm.TaskBatch) -> tuple[np.ndarray, np.ndarray]:
    """All inputs and all targets, ``(T, K + Q)``."""
    x = np.concatenate([tasks.support_x, tasks.query_x], axis=1)
    y = np.concatenate([tasks.support_y, tasks.query_y], axis=1)
    return x[..., 0], y[..., 0]


# --- draws ----------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**64 - 1),
    iteration=st.integers(0, 2**63),
    start=st.integers(0, 10**6),
    n_tasks=st.integers(1, 6),
    per_task=st.integers(1, 11),
    split=st.sampled_from(list(SPLITS)),
)
def test_any_task_can_be_drawn_alone(seed, iteration, start, n_tasks, per_task, split):
    together = uniforms(seed, iteration, start, n_tasks, per_task, split)
    assert together.shape == (n_tasks, per_task)
    assert together.dtype == np.float64
    assert ((together >= 0) & (together < 1)).all()
    for t in range(n_tasks):
        alone = uniforms(seed, iteration, start + t, 1, per_task, split)
        np.testing.assert_array_equal(alone[0], together[t])


def test_streams_never_meet():
    """Numbers of 53 bits: two streams that share one of a few thousand share a position."""
    calls = [
        (seed, iteration, 0, 50, 5, split)
        for seed in (0, 1, 2**64 - 1)
        for iteration in (0, 1, 2**32, 2**64)
        for split in SPLITS
    ]
    drawn = np.concatenate([uniforms(*call).ravel() for call in calls])
    assert len(np.unique(drawn)) == len(drawn) == len(calls) * 250


@pytest.mark.parametrize("integer", [int, np.int64, np.uint64, np.int32])
def test_numpy_integers_name_the_same_tasks(integer):
    """np.int64(5) << 128 is 0 without a word: every iteration would see the same tasks."""
    expected = uniforms(3, 5, 2, 4, 6, "test")
    drawn = uniforms(integer(3), integer(5), integer(2), integer(4), integer(6), "test")
    np.testing.assert_array_equal(drawn, expected)
    assert (expected != uniforms(3, 6, 2, 4, 6, "test")).all()
    sample = Sinusoid().sample(integer(1), integer(7), integer(3), start=integer(2))
    assert_same(sample, Sinusoid().sample(1, 7, 3, start=2))


def test_draws_are_uniform():
    u = uniforms(0, 0, 0, 4000, 5).ravel()
    # Kolmogorov-Smirnov: a uniform sample has a p-value this small once in ten thousand seeds, and
    # the seed is fixed.
    assert stats.kstest(u, "uniform").pvalue > 1e-4
    by_place = uniforms(0, 0, 0, 4000, 5)
    correlation = np.corrcoef(by_place, rowvar=False) - np.eye(5)
    assert np.abs(correlation).max() < 5 / math.sqrt(4000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 0, 1, "train"), r"seed must be a whole number of at least 0, got -1"),
        (
            (2**64, 0, 0, 1, "train"),
            r"seed must be a whole number of at most 18446744073709551615, got",
        ),
        (
            (0, -1, 0, 1, "train"),
            "iteration must be a whole number of at least 0, got -1",
        ),
        ((0, 0, -1, 1, "train"), "start must be a whole number of at least 0, got -1"),
        ((0, 0, 0, 0, "train"), "n_tasks must be a whole number of at least 1, got 0"),
        ((0, 0, 0, 1, "tests"), r"unknown split 'tests' \(did you mean 'test'"),
        ((0, 0, 0, 1, 0), "unknown split 0"),
    ],
)
def test_draws_that_name_no_task(arguments, message):
    seed, iteration, start, n_tasks, split = arguments
    with pytest.raises(ValueError, match=message):
        check_draw(*arguments)
    with pytest.raises(ValueError, match=message):
        uniforms(seed, iteration, start, n_tasks, 3, split)
    with pytest.raises(ValueError, match=message):
        Sinusoid().sample(seed, iteration, n_tasks, start=start, split=split)


@pytest.mark.parametrize("argument", ["seed", "iteration", "start"])
def test_draws_need_whole_numbers(argument):
    arguments = {"seed": 0, "iteration": 0, "start": 0, "n_tasks": 1, "per_task": 1} | {argument: 1.5}
    with pytest.raises(
        TypeError if argument == "per_task" else ValueError, match=r"float|whole number"
    ):
        uniforms(**arguments)


# --- sine waves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("split", SPLITS)
def test_the_same_call_gives_the_same_tasks(split, noise):
    tasks = Sinusoid(shots=3, queries=4, noise=noise)
    first = tasks.sample(5, 6, 7, split=split)
    np.random.default_rng(0).normal(size=3)
    np.random.seed(0)  # noqa: NPY002  # no global state is read
    assert_same(first, tasks.sample(5, 6, 7, split=split))
    assert_same(first, Sinusoid(shots=3, queries=4, noise=noise).sample(5, 6, 7, split=split))


@given(
    noise=st.sampled_from([0.0, 0.3]),
    shots=st.integers(1, 6),
    queries=st.integers(1, 6),
    cut=st.integers(1, 8),
)
def test_shards_are_parts_of_the_whole(noise, shots, queries, cut):
    tasks = Sinusoid(shots=shots, queries=queries, noise=noise)
    whole = tasks.sample(1, 2, 9)
    assert_same(tasks.sample(1, 2, cut), whole[:cut])
    assert_same(tasks.sample(1, 2, 9 - cut, start=cut), whole[cut:])


def test_every_part_of_the_name_matters():
    tasks = Sinusoid()
    samples = [
        tasks.sample(seed, iteration, 5, start=start, split=split)
        for seed in (0, 1)
        for iteration in (0, 1)
        for start in (0, 5)
        for split in SPLITS
    ]
    x = np.concatenate([rows(sample)[0].ravel() for sample in samples])
    assert len(np.unique(x)) == len(x)


def test_shapes_and_default_ranges():
    sample = Sinusoid(shots=3, queries=7).sample(0, 0, 2000)
    assert sample.support_x.shape == sample.support_y.shape == (2000, 3, 1)
    assert sample.query_x.shape == sample.query_y.shape == (2000, 7, 1)
    assert (Sinusoid.n_in, Sinusoid.n_out) == (1, 1)
    x, y = rows(sample)
    assert x.dtype == y.dtype == np.float64
    # 20,000 numbers come within 1/2000 of both ends of their range.
    assert (x >= -5).all()
    assert (x < 5).all()
    assert x.min() < -4.99
    assert x.max() > 4.99
    assert np.abs(y).max() <= 5
    assert np.abs(y).max() > 4.9


def test_amplitude_frequency_and_phase_fill_their_ranges():
    """Read back from the noiseless curves: at four places a sine wave gives itself away."""
    tasks = Sinusoid(amplitude=(1, 3), frequency=(0.5, 2), phase=(0.2, 1.2))
    h = 1e-3
    at = np.array([-h, 0.0, h])
    before, y, after = np.moveaxis(tasks.curves(at, 0, 0, 4000)[..., 0], 1, 0)
    f = np.arccos((before + after) / (2 * y)) / h  # y(h) + y(−h) = 2 y(0) cos(f h)
    slope = (after - before) / (2 * np.sin(f * h))
    A, p = np.hypot(y, slope), np.arctan2(y, slope)
    for values, (low, high) in ((A, (1, 3)), (f, (0.5, 2)), (p, (0.2, 1.2))):
        # Differences of 1e-3 leave nine digits, divided by h² for the frequency.
        scaled = (values - low) / (high - low)
        assert scaled.min() > -1e-6
        assert scaled.max() < 1 + 1e-6
        assert stats.kstest(scaled, "uniform").pvalue > 1e-4
    correlation = np.corrcoef([A, f, p]) - np.eye(3)
    assert np.abs(correlation).max() < 5 / math.sqrt(4000)


@pytest.mark.parametrize("split", SPLITS)
def test_the_targets_lie_on_the_curves(split):
    tasks = Sinusoid(shots=4, queries=5, frequency=(0.5, 2.0))
    sample = tasks.sample(3, 8, 6, start=2, split=split)
    x, y = rows(sample)
    for t in range(6):
        on_curve = tasks.curves(x[t], 3, 8, 6, start=2, split=split)
        assert on_curve.shape == (6, 9, 1)
        np.testing.assert_array_equal(on_curve[t, :, 0], y[t])


def test_a_range_of_one_point_is_a_constant():
    tasks = Sinusoid(amplitude=(2, 2), phase=(0.5, 0.5), frequency=(3, 3), x=(1, 1))
    x, y = rows(tasks.sample(0, 0, 4))
    np.testing.assert_array_equal(x, np.ones((4, 20)))
    np.testing.assert_array_equal(y, np.full((4, 20), 2 * np.sin(3 + 0.5)))


def test_noise_is_normal_with_the_standard_deviation_asked_for():
    noise, T = 0.7, 2000
    tasks = Sinusoid(shots=4, queries=6, noise=noise)
    x, y = rows(tasks.sample(0, 0, T))
    clean = np.stack([tasks.curves(x[t], 0, 0, 1, start=t)[0, :, 0] for t in range(T)])
    z = (y - clean) / noise
    n = z.size
    # Standard errors of the mean and of the variance; five of them.
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / n)
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-4
    # Rows are independent of each other and of the inputs.
    assert np.abs(np.corrcoef(z, rowvar=False) - np.eye(10)).max() < 5 / math.sqrt(T)
    assert abs(np.corrcoef(x.ravel(), z.ravel())[0, 1]) < 5 / math.sqrt(n)


def test_a_draw_of_zero_is_no_infinite_noise(monkeypatch):
    def zeros(seed, iteration, start, n_tasks, per_task, split):
        return np.zeros((n_tasks, per_task))

    monkeypatch.setattr("npmeta.tasks.sinusoid.uniforms", zeros)
    _, y = rows(Sinusoid(noise=1.0).sample(0, 0, 2))
    assert np.isfinite(y).all()
    assert (y < -5).all()  # ndtri(2**-54) is about −8.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 0}, "shots must be a whole number of at least 1, got 0"),
        ({"queries": -3}, "queries must be a whole number of at least 1, got -3"),
        ({"amplitude": (5, 1)}, r"amplitude must be a range \(low, high\), got \(5, 1\)"),
        ({"phase": (0, math.inf)}, "phase must be a range"),
        ({"frequency": (math.nan, 1)}, "frequency must be a range"),
        ({"x": (1, 2, 3)}, "x must be a range"),
        ({"noise": -0.1}, "noise must be at least 0, got -0.1"),
        ({"noise": math.nan}, "noise must be at least 0, got nan"),
        ({"noise": math.inf}, "noise must be at least 0, got inf"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Sinusoid(**options)
