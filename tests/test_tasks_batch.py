"""TaskBatch: the one place where the sets of a batch of tasks are held against each other."""

import numpy as np
import pytest

import npmeta as nm

X, Y, LABELS = np.ones((3, 4, 2)), np.ones((3, 4, 5)), np.ones((3, 4), int)


def test_arrays_and_length():
    tasks = nm.TaskBatch(X.tolist(), LABELS, X[:, :1], LABELS[:, :1])
    assert len(tasks) == 3
    assert tasks.support_x.shape == (3, 4, 2)
    assert tasks.query_y.shape == (3, 1)
    assert tasks.support_y.dtype == LABELS.dtype


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (slice(1, 3), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        ([2, 0], [2, 0]),
        (np.array([1, 1]), [1, 1]),
        (np.array([True, False, True]), [0, 2]),
        (1, [1]),
        (-1, [2]),
    ],
)
def test_part_of_a_batch(index, expected):
    number = np.arange(3.0)[:, None, None]
    tasks = nm.TaskBatch(X * number, Y * number, X * (number + 10), Y * (number + 10))[index]
    np.testing.assert_array_equal(tasks.support_x[:, 0, 0], expected)
    np.testing.assert_array_equal(tasks.support_y[:, 0, 0], expected)
    np.testing.assert_array_equal(tasks.query_x[:, 0, 0] - 10, expected)
    np.testing.assert_array_equal(tasks.query_y[:, 0, 0] - 10, expected)


def test_an_empty_part_is_refused():
    tasks = nm.TaskBatch(X, Y, X, Y)
    with pytest.raises(ValueError, match="support_x must hold at least one task and one row"):
        tasks[3:]
    with pytest.raises(IndexError):
        tasks[[5]]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((X, Y[:2], X, Y), "all sets must have as many tasks, got .*'support_y': .2, 4, 5"),
        ((X, Y, X[:1], Y[:1]), "all sets must have as many tasks"),
        ((X[:, :3], Y, X, Y), "support_x and support_y must have as many rows, got 3 and 4"),
        ((X, Y, X, Y[:, :2]), "query_x and query_y must have as many rows, got 4 and 2"),
        ((X, Y, X[..., :1], Y), "support_x and query_x must agree in every axis after the rows"),
        ((X, Y, X, Y[..., :1]), "support_y and query_y must agree in every axis after the rows"),
        ((X, LABELS, X, Y), "support_y and query_y must agree in every axis after the rows"),
        ((X[0, 0], Y, X, Y), r"support_x must have shape \(T, rows, ...\), got \(2,\)"),
        ((X, 3.0, X, Y), r"support_y must have shape \(T, rows, ...\), got \(\)"),
        ((X[:0], Y[:0], X[:0], Y[:0]), "support_x must hold at least one task and one row"),
        ((X, Y, X[:, :0], Y[:, :0]), "query_x must hold at least one task and one row"),
        ((X, Y, X * np.nan, Y), r"query_x must be finite, but query_x\[0, 0, 0\] is nan \(24 of 24"),
        ((X, Y * np.inf, X, Y), r"support_y must be finite, but support_y\[0, 0, 0\] is inf"),
        ((X.astype(str), Y, X, Y), "support_x must hold real numbers, got dtype <U"),
        ((X, None, X, Y), "support_y must hold real numbers, got dtype object"),
    ],
)
def test_sets_that_do_not_fit(arrays, message):
    with pytest.raises(ValueError, match=message):
        nm.TaskBatch(*arrays)


def test_repr():
    assert repr(nm.TaskBatch(X, Y, X[:, :2], Y[:, :2])) == (
        "TaskBatch(3 tasks, support (4, 2) -> (5,), query (2, 2) -> (5,))"
    )
    assert repr(nm.TaskBatch(X, LABELS, X, LABELS)) == (
        "TaskBatch(3 tasks, support (4, 2) -> labels, query (4, 2) -> labels)"
    )
