"""What has diverged has no accuracy, no class and no mean, and NumPy says nothing of it."""

import json
import warnings

import numpy as np
import pytest

import npmeta as nm
from npmeta._support.validation import DivergedError
from npmeta.algorithms import Scores
from npmeta.algorithms.registry import ALGORITHMS
from npmeta.cli.main import main
from npmeta.estimators import MetaEstimator
from npmeta.network.losses import LOSSES, accuracy
from npmeta.tasks import Encoding
from npmeta.training.config import Config
from npmeta.training.parallel import Sharded

CLASSIFIERS = [name for name, entry in ALGORITHMS.items() if "omniglot" in entry.tasks]


@pytest.fixture(autouse=True)
def every_warning_is_an_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("loss", ["cross_entropy", "hinge", "squared_hinge", "binary_cross_entropy"])
def test_an_output_that_is_not_finite_decides_nothing(loss, bad):
    o, y = np.zeros((2, 3, 4)), np.zeros((2, 3, 4))
    o[..., 0] = y[..., 0] = 1
    o[1, 2, 3] = bad
    right, none = accuracy(LOSSES[loss], o, y)
    assert right == 1
    assert np.isnan(none)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_no_learner_of_classes_scores_by_what_is_not_finite(name, dtype):
    config = Config("omniglot", {"algorithm": name, "ways": 3, "queries": 2})
    algorithm = config.algorithm(784, 3)
    params = algorithm.init(np.random.default_rng(0), dtype)
    size = dtype(1e72 if dtype is np.float64 else 1e37)
    huge = {key: array * size for key, array in params.items()}
    x = np.random.default_rng(1).uniform(0.1, 1, size=(2, 9, 784))
    labels = np.tile([0, 1, 2], (2, 3))
    tasks = nm.TaskBatch(x[:, :3], labels[:, :3], x[:, 3:], labels[:, 3:])
    for scored in (
        algorithm.evaluate(huge, tasks),
        Sharded(algorithm, 1).evaluate(huge, tasks),
    ):
        outputs = algorithm.predict(huge, tasks.support_x, tasks.support_y, tasks.query_x)
        lost = ~np.isfinite(outputs).all((1, 2))
        assert np.isnan(scored.accuracy[lost, -1]).all()
        assert scored.diverged[-1] >= lost.sum()
        if scored.diverged[-1]:
            assert np.isnan(scored.mean("accuracy")[-1])
            assert np.isnan(scored.interval()[-1])
    algorithm.meta_gradient(huge, tasks)


def test_the_mean_is_not_of_those_that_are_left():
    loss = np.array([[1.0, 1.0], [3.0, np.inf], [2.0, 4.0]])
    scored = Scores(loss, np.array([[0.2, 0.4], [0.4, 0.5], [0.6, np.nan]]))
    assert scored.diverged.tolist() == [0, 2]
    np.testing.assert_array_equal(scored.mean(), [2, np.nan])
    np.testing.assert_allclose(scored.mean("accuracy"), [0.4, np.nan], rtol=1e-15)
    assert np.isfinite(scored.interval()[0])
    assert np.isnan(scored.interval("accuracy")[1])
    # Two draws of one task are one that has diverged.
    assert Scores(loss, None, ["a", "b", "b"]).diverged.tolist() == [0, 1]


def test_an_encoding_has_no_answer_for_nan():
    classes = Encoding(("x",), "y", (0.0,), (1.0,), classes=("a", "b"))
    numbers = Encoding(("x",), "y", (0.0,), (1.0,))
    with pytest.raises(DivergedError, match="1 of 2 rows"):
        classes.decode([[0.0, 1.0], [np.nan, 0.0]])
    with pytest.raises(DivergedError, match="2 of 2 rows"):
        numbers.decode([[np.inf], [np.nan]])


def test_estimators_predict_nothing_from_what_has_diverged():
    x = np.random.default_rng(0).normal(size=(24, 3))
    y = x[:, :1].ravel()
    learner = MetaEstimator(hidden=[4], iterations=2, inner_lr=0.01)
    learner.fit(nm.tasks.Sinusoid(4))
    adapted = learner.adapt(x[:4, :1], y[:4])
    adapted.params_ = {key: array * 1e200 for key, array in adapted.params_.items()}
    for method in (adapted.predict, lambda rows: adapted.score(rows, y)):
        with pytest.raises(DivergedError, match="of 24 rows"):
            method(x[:, :1])


TABLE = "task,x,y\n" + "".join(f"t{t},{x},{(x * (t + 1)) % 7}\n" for t in range(12) for x in range(12))


@pytest.fixture
def diverging(tmp_path, capsys):
    """A run whose tests diverge though its training did not."""
    (tmp_path / "table.csv").write_text(TABLE)
    run = tmp_path / "run"
    words = ["train", "table", "--data", tmp_path / "table.csv", "--task-column", "task"]
    words += ["--target-column", "y", "--shots", 3, "--queries", 3, "--iterations", 2, "--hidden", 8, 8]
    words += ["--inner-lr", 10, "--eval-steps", 300, "--eval-tasks", 6]
    words += ["--meta-batch", 2, "--activation", "leaky_relu", "--out", run]
    status = main([str(word) for word in words])
    return run, status, capsys.readouterr()


def test_a_run_whose_test_diverged_says_so(diverging, capsys, tmp_path):
    run, status, said = diverging
    assert status == 1
    assert "diverged: " in said.out
    assert "Warning" not in said.err
    assert (run / "scores.png").exists()
    record = json.loads((run / "evaluation.json").read_text())
    assert record["diverged"][-1] > 0
    assert record["loss"][-1] is None
    assert main(["evaluate", str(run)]) == 1
    assert main(["evaluate", str(run), "--steps", "0"]) == 0
    capsys.readouterr()
    rows = tmp_path / "rows.csv"
    rows.write_text("x,y\n1,1\n2,2\n4,3\n")
    out = tmp_path / "out.csv"
    words = ["adapt", run, "--support", rows, "--query", rows, "--out", out]
    assert main([str(word) for word in words]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("npmeta: adaptation has diverged: the outputs of 3 of 3 rows")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not out.exists()


@pytest.mark.parametrize("size", [1e308, 1e160, 1e-160, 5e-324])
def test_means_and_intervals_are_those_of_numbers_of_any_size(size):
    """Sums and squares of the largest and the smallest numbers have no place in float64."""
    shares = np.array([[1.0], [0.5], [0.75], [1.0]])
    scores, ones = Scores(size * shares, None), Scores(shares, None)
    rtol = 1e-14 if size > 1e-300 else 1.0  # the smallest number is a step itself
    np.testing.assert_allclose(scores.mean(), size * ones.mean(), rtol=rtol)
    if size > 1e-300:
        np.testing.assert_allclose(scores.interval(), size * ones.interval(), rtol=rtol)
    drawn = Scores(np.full((5, 1), 1.5e308), None, ["a", "a", "a", "b", "b"])
    assert drawn.mean() == 1.5e308
    assert drawn.n_tasks == 2


def test_a_stream_that_diverges_leaves_the_estimator_as_it_was():
    rng = np.random.default_rng(0)
    X, groups = rng.normal(size=(60, 2)), np.repeat(np.arange(6), 10)
    options = {"hidden": [], "eval_steps": 60, "iterations": 1, "shots": 2, "queries": 2}
    calm = MetaEstimator(stream="descend", **options).fit(X, X[:, 0], groups=groups)
    calm.algorithm_ = nm.MAML(calm.algorithm_.model, "mse", 1e8, 60)
    adapted = calm.adapt(X[:4], X[:4, 0])
    before = {name: array.copy() for name, array in adapted.params_.items()}, adapted.support_x_
    with pytest.raises(DivergedError, match="the estimator is as it was"):
        adapted.partial_fit(X[4:8], X[4:8, 0])
    assert all((adapted.params_[name] == array).all() for name, array in before[0].items())
    assert adapted.support_x_ is before[1]


def test_a_structure_report_counts_what_has_diverged():
    model = nm.MLP([1, 4, 1], structure=nm.Structure(["relu", "tanh"]))
    maml = nm.MAML(model, "mse", 1e8, 40)
    tasks = nm.tasks.Sinusoid(shots=3, queries=3).sample(0, 0, 5)
    text = str(nm.structure_report(maml, maml.init(0), tasks))
    assert "nan" not in text
    assert "5 of 5 tasks have diverged as learned" in text
