"""Estimators: what adapting and streaming equal, and the conventions of scikit-learn."""

import pickle

import numpy as np
import pytest

import npmeta as nm
from npmeta.algorithms import CAVIA
from npmeta.algorithms.registry import ALGORITHMS
from npmeta.estimators import AdaptedEstimator, MetaEstimator, NotFittedError
from npmeta.estimators.conventions import tags
from npmeta.estimators.tables import of_table
from tests.helpers import assert_close

#: Algorithms on sine waves: all that do not need classes.
ON_WAVES = [name for name, entry in ALGORITHMS.items() if "sinusoid" in entry.tasks]
#: Those whose adaptation moves parameters or a context.
WITH_STEPS = [name for name in ON_WAVES if ALGORITHMS[name].inner_steps and name != "oracle"]
ON_CLASSES = [name for name, entry in ALGORITHMS.items() if "table" in entry.tasks]

WAVES = nm.tasks.Sinusoid(shots=4, queries=3)
RNG = np.random.default_rng(0)
X, Y = RNG.uniform(-3, 3, size=(6, 1)), RNG.normal(size=6)
QUERY = RNG.uniform(-3, 3, size=(5, 1))


def learner(name: str = "maml", **params) -> MetaEstimator:
    """Trained for two outer steps, tanh, three inner steps: smooth, and far from done."""
    hidden = {} if name == "oracle" else {"hidden": [5, 4]}
    options = {"meta_batch": 2, **({} if name == "oracle" else {"activation": "tanh"})}
    params = {"iterations": 2, "eval_steps": 3, "options": options, **hidden, **params}
    return MetaEstimator(name, **params)


def table(n_tasks: int = 4, n_rows: int = 8, seed: int = 0):
    """Rows of tasks whose classes lie on either side of a line of their own, shuffled."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(n_tasks), n_rows))
    x = rng.normal(size=(len(groups), 3))
    return x, (x * rng.normal(size=(n_tasks, 3))[groups]).sum(-1), groups


def names_of(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, "up", "down")


def on_classes(name: str, **params) -> MetaEstimator:
    x, values, groups = table()
    options = {"meta_batch": 2, "activation": "tanh"}
    learner = MetaEstimator(
        name, hidden=[4], iterations=2, shots=3, queries=2, options=options, **params
    )
    return learner.fit(x, names_of(values), groups)


# --- what adapting and streaming equal ----------------------------------------------------------------


def test_it_trains_as_the_library_does():
    fitted = learner(inner_lr=0.1).fit(WAVES)
    maml = nm.MAML(nm.MLP([1, 5, 4, 1], "tanh"), "mse", inner_lr=0.1)
    params = maml.init(np.random.default_rng(0))
    losses = []
    for step in nm.meta_train(maml, params, WAVES, iterations=2, meta_batch=2):
        params = step.params
        losses.append(step.loss)
    assert np.array_equal(fitted.params_["theta"], params["theta"])
    assert np.array_equal(fitted.loss_curve_, losses)
    assert fitted.n_features_in_ == 1
    assert fitted.classes_ is None


@pytest.mark.parametrize("name", ON_WAVES)
def test_adapted_predictions_are_the_algorithm_s(name):
    fitted = learner(name).fit(WAVES)
    direct = fitted.algorithm_.predict(fitted.params_, X[None], Y[None, :, None], QUERY[None], steps=3)[
        0, :, 0
    ]
    assert np.array_equal(fitted.adapt(X, Y).predict(QUERY), direct)


@pytest.mark.parametrize("name", ON_WAVES)
def test_replay_is_adapting_to_all_rows_so_far(name):
    """To the last bit, however the rows were cut up."""
    fitted = learner(name).fit(WAVES)
    streamed = AdaptedEstimator(fitted)
    for n in range(len(X)):
        streamed.partial_fit(X[n : n + 1], Y[n : n + 1])
        assert np.array_equal(
            streamed.predict(QUERY), fitted.adapt(X[: n + 1], Y[: n + 1]).predict(QUERY)
        )
    further = fitted.adapt(X[:4], Y[:4]).partial_fit(X[4:], Y[4:])
    assert np.array_equal(further.predict(QUERY), streamed.predict(QUERY))


@pytest.mark.parametrize("name", [name for name in WITH_STEPS if name != "cavia"])
def test_descending_is_adapting_from_where_adapting_has_come_to(name):
    fitted = learner(name, stream="descend").fit(WAVES)
    streamed, params = fitted.adapt(X[:3], Y[:3]), fitted.params_
    for start, end in ((3, 4), (4, 6)):
        streamed.partial_fit(X[start:end], Y[start:end])
    for start, end in ((0, 3), (3, 4), (4, 6)):
        rows = X[None, start:end], Y[None, start:end, None]
        params = {**params, "theta": fitted.algorithm_.adapt(params, *rows, steps=3)[0]}
    expected = fitted.algorithm_.predict(params, X[None], Y[None, :, None], QUERY[None], steps=0)
    # The last call's steps are taken by predict, which may hold weights in another form; 1e-12 is
    # thousands of roundings.
    assert_close(streamed.predict(QUERY), expected[0, :, 0], 1e-12, name)


@pytest.mark.parametrize("name", ["maml", "anil", "warp", "meta-sgd", "cavia"])
def test_descending_twice_on_the_same_rows_is_twice_the_steps(name):
    """A second call goes on where the first stopped; CAVIA's context has moved into a bias."""
    fitted = learner(name, stream="descend").fit(WAVES)
    twice = fitted.adapt(X, Y).partial_fit(X, Y).predict(QUERY)
    assert_close(twice, AdaptedEstimator(fitted, eval_steps=6).fit(X, Y).predict(QUERY), 1e-12, name)
    once = fitted.adapt(X, Y).predict(QUERY)
    assert np.abs(twice - once).max() > 1e-6  # it did move


def test_descending_moves_a_context_and_nothing_else():
    fitted = learner("cavia", stream="descend").fit(WAVES)
    cavia = fitted.algorithm_
    assert isinstance(cavia, CAVIA)
    moved = fitted.adapt(X, Y).partial_fit(X, Y)
    before, after = (cavia.model.unpack(p["theta"]) for p in (fitted.params_, moved.params_))
    W, b = before[0]
    c = cavia.adapt(fitted.params_, X[None], Y[None, :, None], steps=3)[0]
    assert_close(after[0][1], b + c @ W[1:], 1e-14)  # a few roundings
    assert np.array_equal(after[0][0], W)
    assert all(
        np.array_equal(a, o)
        for new, old in zip(after[1:], before[1:], strict=True)
        for a, o in zip(new, old, strict=True)
    )


def test_descending_forgets_rows_and_leaves_the_learner_alone():
    fitted = learner(stream="descend").fit(WAVES)
    theta = fitted.params_["theta"].copy()
    streamed = fitted.adapt(X, Y).partial_fit(X[:1], Y[:1])
    assert streamed.support_x_.shape == (1, 1)
    assert np.array_equal(fitted.params_["theta"], theta)


@pytest.mark.parametrize("name", ["ridge", "oracle"])
def test_what_has_no_steps_does_not_descend(name):
    fitted = learner(name, stream="descend").fit(WAVES)
    with pytest.raises(ValueError, match=f"{name} has no inner steps to descend by; use 'replay'"):
        fitted.adapt(X, Y).partial_fit(X, Y)


# --- tables and classes -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ON_CLASSES)
def test_classes_of_a_table(name):
    x, values, _ = table(seed=1)
    y = names_of(values)
    fitted = on_classes(name)
    assert fitted.classes_.tolist() == ["down", "up"]
    task = fitted.adapt(x[:6], y[:6])
    p = task.predict_proba(x)
    assert p.shape == (len(x), 2)
    assert_close(p.sum(-1), np.ones(len(x)), 1e-14)  # two roundings
    assert np.array_equal(task.predict(x), task.classes_[p.argmax(-1)])
    assert task.score(x, y) == (task.predict(x) == y).mean()
    streamed = AdaptedEstimator(fitted).partial_fit(x[:2], y[:2], classes=["up", "down"])
    assert np.array_equal(streamed.partial_fit(x[2:6], y[2:6]).predict_proba(x), p)
    with pytest.raises(ValueError, match=r"unknown class 'upp' .did you mean 'up'"):
        task.partial_fit(x[:1], ["upp"])


def test_a_table_is_scaled_by_its_own_rows():
    """Features and targets in other units change nothing but the units."""
    x, y, groups = table()
    small = learner(shots=3, queries=3).fit(x, y, groups)
    large = learner(shots=3, queries=3).fit(1e3 * x - 7, 50 * y + 2, groups)
    assert_close(
        large.adapt(1e3 * x[:5] - 7, 50 * y[:5] + 2).predict(1e3 * x - 7),
        50 * small.adapt(x[:5], y[:5]).predict(x) + 2,
        1e-9,  # shifts of 7 beside 1e3 and two outer steps of Adam, from roundings of 1e-16
    )


def test_tasks_are_groups_of_rows():
    """Each task has one target throughout, so no sample may mix two."""
    groups = np.repeat([5, 2, 9], [4, 7, 6])
    x, y = np.arange(17.0)[:, None], groups.astype(float)
    tasks, *_ = of_table(
        x, y, groups, learner(shots=2, queries=2, options={"standardise": False})._config("table", 0)
    )
    batch = tasks.sample(0, 0, 200)
    both = np.concatenate([batch.support_y, batch.query_y], axis=1)[..., 0]
    assert set(both[:, 0]) == {2, 5, 9}
    assert (both == both[:, :1]).all()
    rows = np.concatenate([batch.support_x, batch.query_x], axis=1)[..., 0]
    assert all(len(set(task)) == 4 for task in rows.tolist())
    assert set(rows.ravel()) == set(range(17))


def test_a_table_file_brings_its_encoding(tmp_path):
    x, values, groups = table()
    lines = [
        f"{a},{b},{c},{y},{g}" for (a, b, c), y, g in zip(x, names_of(values), groups, strict=True)
    ]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["a,b,c,target,task", *lines]))
    tasks = nm.tasks.Table(path, shots=3, queries=2)
    fitted = learner("ridge").fit(tasks)
    assert fitted.encoding_ is tasks.encoding
    assert set(fitted.adapt(x[:8], names_of(values)[:8]).predict(x)) <= {"down", "up"}


class Shapes:
    """Tasks with three classes of their own each, as Omniglot has, and no word about sizes."""

    def sample(self, seed, iteration, n_tasks, *, start=0, split="train"):
        rng = np.random.default_rng([seed, iteration])
        y = np.tile(np.repeat(np.arange(3), 2), (n_tasks, 1))
        x = rng.normal(size=(n_tasks, 3, 2))[:, y[0]] + 0.1 * rng.normal(size=(n_tasks, 6, 2))
        return nm.TaskBatch(x, y, x, y)


def test_a_task_may_name_its_own_classes_as_they_come():
    fitted = learner("prototypical").fit(Shapes())
    assert fitted.classes_ is None
    points = np.array([[0.0, 0], [3, 0], [0, 3]])
    task = fitted.adapt(points[:2], ["oak", "elm"])
    assert task.classes_.tolist() == ["oak", "elm"]
    assert task.predict_proba(points).shape == (3, 2)
    task.partial_fit(points[2:], ["ash"])
    assert task.classes_.tolist() == ["oak", "elm", "ash"]
    assert task.predict(points).tolist() == ["oak", "elm", "ash"]
    ordered = AdaptedEstimator(fitted).partial_fit(points[:1], ["oak"], classes=["ash", "elm", "oak"])
    assert ordered.classes_.tolist() == ["ash", "elm", "oak"]
    with pytest.raises(ValueError, match="'fir' is one class too many; the learner tells 3 apart"):
        task.partial_fit(points[:1], ["fir"])
    assert task.support_x_.shape == (3, 2)  # what was refused has left no trace


def test_score_of_numbers_is_r_squared():
    task = learner("ridge").fit(WAVES).adapt(X, Y)
    assert task.score(X, task.predict(X)) == 1
    residual = Y - task.predict(X)
    assert_close(task.score(X, Y), 1 - (residual**2).mean() / Y.var(), 1e-13)  # roundings
    with pytest.raises(AttributeError, match="numbers have no probabilities"):
        task.predict_proba(X)
    assert not hasattr(task, "predict_proba")


# --- conventions --------------------------------------------------------------------------------------


def test_parameters_are_as_passed():
    hidden = [3, 2]
    learner = MetaEstimator("no such", hidden=hidden, random_state="no seed")  # no work in __init__
    assert learner.get_params()["hidden"] is hidden
    assert not [name for name in vars(learner) if name.endswith("_")]
    assert set(vars(learner)) == set(learner.get_params())
    assert learner.set_params(algorithm="anil", iterations=7) is learner
    assert (learner.algorithm, learner.iterations) == ("anil", 7)
    assert repr(MetaEstimator("anil", iterations=7)) == "MetaEstimator(algorithm='anil', iterations=7)"
    with pytest.raises(
        ValueError, match=r"parameter of MetaEstimator 'iteration' .did you mean 'iterations'"
    ):
        learner.set_params(iteration=7)


def test_a_fit_repeats_and_survives_pickling():
    one, other = learner(random_state=3).fit(WAVES), learner(random_state=np.int64(3)).fit(WAVES)
    assert np.array_equal(one.params_["theta"], other.params_["theta"])
    assert not np.array_equal(one.params_["theta"], learner(random_state=4).fit(WAVES).params_["theta"])
    fresh = [learner(random_state=None).fit(WAVES).params_["theta"] for _ in range(2)]
    assert not np.array_equal(*fresh)
    task = one.adapt(X, Y)
    assert np.array_equal(pickle.loads(pickle.dumps(task)).predict(QUERY), task.predict(QUERY))


def test_what_is_not_fitted_says_so():
    with pytest.raises(NotFittedError, match="this MetaEstimator is not fitted yet; call fit first"):
        MetaEstimator().adapt(X, Y)
    unseen = AdaptedEstimator(learner().fit(WAVES))
    with pytest.raises(NotFittedError, match="call fit or partial_fit first"):
        unseen.predict(X)
    assert issubclass(NotFittedError, ValueError)
    assert issubclass(NotFittedError, AttributeError)


@pytest.mark.parametrize(
    ("params", "data", "message"),
    [
        ({}, (X, Y), "a table needs y and groups, which names the task of each row"),
        ({}, (X, Y[:-1], Y), r"y must have shape \(6,\), one for each row, got \(5,\)"),
        ({}, (X, Y, Y[:-1]), r"groups must have shape \(6,\), one for each row, got \(5,\)"),
        ({}, (X[:, 0], Y, Y), r"X must have shape \(rows, features\), at least \(1, 1\), got \(6,\)"),
        ({}, (X[:, :0], Y, Y), r"0 feature\(s\) .shape=\(6, 0\). while a minimum of 1 is required"),
        ({}, (X * 1j, Y, Y), "Complex data not supported"),
        ({}, (X.astype(str), Y, Y), "X must hold real numbers, got dtype <U"),
        ({}, (X * np.nan, Y, Y), r"X must be finite, but X\[0, 0\] is nan"),
        ({}, (X, Y, np.zeros(6)), "no task has the 10 rows that shots . queries ask for"),
        ({"shots": 2, "queries": 1}, (X, ["a"] * 6, np.zeros(6)), "y is 'a' throughout"),
        ({}, (WAVES, Y), "a task distribution brings its own y and groups"),
        ({"shots": 3}, (WAVES,), "shots and queries are for tables"),
        ({"algorithm": "anli"}, (WAVES,), "unknown algorithm 'anli' .did you mean 'anil'"),
        ({"algorithm": "prototypical"}, (WAVES,), "prototypical cannot be trained on sinusoid"),
        ({"stream": "replays"}, (WAVES,), "unknown stream 'replays' .did you mean 'replay'"),
        ({"random_state": -1}, (WAVES,), "seed must be at least 0, got -1"),
        ({"options": {"loss": "poisson_nll"}}, (WAVES,), "numbers or classes, not what poisson_nll"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(params, data, message):
    with pytest.raises(ValueError, match=message):
        MetaEstimator(**params).fit(*data)


def test_rows_of_another_width_are_refused():
    task = learner().fit(WAVES).adapt(X, Y)
    for call in (
        lambda: task.predict(np.ones((2, 3))),
        lambda: task.partial_fit(np.ones((2, 3)), Y[:2]),
    ):
        with pytest.raises(
            ValueError, match="X has 3 features, but AdaptedEstimator is expecting 1 feat"
        ):
            call()
    with pytest.raises(ValueError, match=r"y must have shape \(5,\), one for each row, got \(6,\)"):
        task.score(QUERY, Y)


def test_small_tasks_are_skipped_with_a_warning():
    x, y, groups = table()
    groups = np.where(np.arange(len(groups)) < 2, 99, groups)
    with pytest.warns(
        UserWarning, match=r"tasks with fewer than 6 rows are skipped: 99 \(2\)"
    ) as found:
        learner(shots=3, queries=3).fit(x, y, groups)
    assert found[0].filename == __file__  # it is said of the caller's line


class Frame:
    """As much of a data frame as matters here: named columns, and a method that is called sample."""

    def __init__(self, values, columns):
        self.values, self.columns = np.asarray(values), columns

    def __array__(self, dtype=None, copy=None):
        return self.values.astype(dtype) if dtype else self.values

    def sample(self, n):
        raise AssertionError("a data frame is a table, not a distribution")


def test_a_data_frame_is_a_table_with_names():
    x, y, groups = table()
    named = learner("ridge", shots=3, queries=3).fit(Frame(x, ["a", "b", "c"]), y, groups)
    plain = learner("ridge", shots=3, queries=3).fit(x, y, groups)
    assert named.feature_names_in_.tolist() == ["a", "b", "c"]
    assert not hasattr(plain, "feature_names_in_")
    task = named.adapt(Frame(x[:6], ["a", "b", "c"]), y[:6])
    assert np.array_equal(task.predict(x), plain.adapt(x[:6], y[:6]).predict(x))
    with pytest.raises(ValueError, match="passed during fit: expected a, b, c, got b, a, c"):
        task.predict(Frame(x[:, [1, 0, 2]], ["b", "a", "c"]))
    assert not hasattr(named.fit(x, y, groups), "feature_names_in_")
    by_number = plain.fit(Frame(x, [0, 1, 2]), y, groups)  # columns without a name
    assert not hasattr(by_number, "feature_names_in_")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, r"y must be text or numbers alone, but y\[0\] is None"),
        (np.nan, r"y must be text or numbers alone, but y\[0\] is nan"),
        (1, r"y must be text or numbers alone, but y\[0\] is 1"),
    ],
)
def test_a_missing_or_mixed_class_is_refused(bad, message):
    x, values, groups = table()
    y = names_of(values).astype(object)
    fitted = on_classes("ridge")
    assert fitted.fit(x, y, groups).classes_.tolist() == ["down", "up"]  # objects that are text
    y[0] = bad
    with pytest.raises(ValueError, match=message):
        on_classes("ridge").fit(x, y, groups)
    with pytest.raises(ValueError, match=message):
        fitted.adapt(x, y)


def test_numbers_may_be_objects_and_tasks_have_no_missing_name():
    x, y, groups = table()
    fitted = learner("ridge", shots=3, queries=3).fit(x, y.astype(object), groups)
    assert fitted.classes_ is None
    with pytest.raises(ValueError, match=r"y must be text or numbers alone, but y\[0\] is None"):
        fitted.adapt(x[:2], [None, 1.0])
    with pytest.raises(ValueError, match=r"groups must be finite, but groups\[\d+\] is nan"):
        fitted.fit(x, y, np.where(groups == 1, np.nan, groups))
    pairs = np.empty(len(groups), dtype=object)
    pairs[:] = [(1, 2)] * len(groups)
    with pytest.raises(
        ValueError, match=r"groups must be text or numbers alone, but groups\[0\] is \(1"
    ):
        fitted.fit(x, y, pairs)
    with pytest.raises(ValueError, match="y must hold real numbers, got dtype complex128"):
        fitted.fit(x, y * 1j, groups)


def test_what_is_wrong_is_said_at_once():
    """By fit, not by the first prediction; and never as a score."""
    fitted = learner().fit(WAVES)
    for steps in (-1, 1.5):
        with pytest.raises(ValueError, match=f"eval_steps must be a whole number .* got {steps}"):
            AdaptedEstimator(fitted, eval_steps=steps).fit(X, Y)
    for call in ("fit", "partial_fit"):
        with pytest.raises(ValueError, match="learner must be a MetaEstimator, got 'maml'"):
            getattr(AdaptedEstimator("maml"), call)(X, Y)
    with pytest.raises(ValueError, match=r"numbers, which have no classes; got \['on'\]"):
        AdaptedEstimator(fitted).partial_fit(X, Y, classes=["on"])
    task = fitted.adapt(X, Y)
    with pytest.raises(ValueError, match=r"y must be finite, but y\[0\] is nan"):
        task.score(X, np.full(6, np.nan))


def test_widths_and_rates_may_be_arrays():
    """Searches hand over NumPy's numbers."""
    params = {"hidden": np.array([5, 4]), "iterations": np.int64(2), "inner_lr": np.float64(0.1)}
    arrays, plain = learner(**params).fit(WAVES), learner(inner_lr=0.1).fit(WAVES)
    assert np.array_equal(arrays.params_["theta"], plain.params_["theta"])


# --- scikit-learn itself, where it is installed -------------------------------------------------------


def test_scikit_learn_clones_them():
    base = pytest.importorskip("sklearn.base")
    fitted = learner(inner_lr=0.1).fit(WAVES)
    copy = base.clone(fitted)
    assert not hasattr(copy, "params_")
    assert copy.get_params() == fitted.get_params()
    task = AdaptedEstimator(fitted, eval_steps=2).fit(X, Y)
    again = base.clone(task)
    assert not hasattr(again, "support_x_")
    assert np.array_equal(again.fit(X, Y).predict(QUERY), task.predict(QUERY))
    assert base.is_regressor(task)
    assert base.is_classifier(on_classes("ridge").adapt(table()[0], names_of(table()[1])))


def test_scikit_learn_scores_probabilities():
    selection = pytest.importorskip("sklearn.model_selection")
    x, values, _ = table(seed=1)
    y, task = names_of(values), AdaptedEstimator(on_classes("ridge"))
    first, second = np.arange(16), np.arange(16, 32)
    folds = [(first, second), (second, first)]
    scores = selection.cross_val_score(task, x, y, cv=folds, scoring="neg_log_loss")
    p = task.fit(x[first], y[first]).predict_proba(x[second])
    by_hand = np.log(p[np.arange(16), (y[second] == "up").astype(int)]).mean()
    assert scores[0] == pytest.approx(by_hand, rel=1e-12)
    pipeline = pytest.importorskip("sklearn.pipeline").make_pipeline("passthrough", task)
    assert np.array_equal(pipeline.fit(x, y).predict(x), task.fit(x, y).predict(x))


def test_scikit_learn_asks_an_unfitted_one_for_its_kind():
    base = pytest.importorskip("sklearn.base")
    unfitted = AdaptedEstimator(MetaEstimator())
    assert not base.is_classifier(unfitted)
    assert not base.is_regressor(unfitted)
    assert not hasattr(unfitted, "predict_proba")


def test_scikit_learn_validates_within_a_task_and_searches():
    selection = pytest.importorskip("sklearn.model_selection")
    fitted = learner("ridge").fit(WAVES)
    scores = selection.cross_val_score(AdaptedEstimator(fitted), X, Y, cv=2)
    by_hand = fitted.adapt(X[3:], Y[3:]).score(X[:3], Y[:3])
    assert scores[0] == by_hand
    steps = selection.GridSearchCV(
        AdaptedEstimator(learner().fit(WAVES)), {"eval_steps": [0, 5]}, cv=2, error_score="raise"
    )
    assert steps.fit(X, Y).best_params_["eval_steps"] in (0, 5)


#: What these checks ask for and npmeta does otherwise.
OTHERWISE = {
    "check_estimators_unfitted": "the error is npmeta's own: a ValueError and AttributeError too",
    "check_supervised_y_2d": "a column is not taken for a vector",
    "check_dtype_object": "refused, in other words",
    "check_estimators_nan_inf": "refused, in other words",
    "check_fit2d_predict1d": "refused, in other words",
    "check_fit2d_1sample": "refused, in other words",
    "check_requires_y_none": "refused, in other words",
    "check_classifiers_one_label": "refused: there is nothing to tell apart",
    "check_classifiers_regression_target": "numbers may name classes",
    "check_regressors_train": "asks for accuracy, and one outer step is taken",
}


class Thirds(MetaEstimator):
    """Meta-trains on thirds of the rows, and predicts after adapting to all of them."""

    kind = "regressor"

    def fit(self, X, y):
        n_rows = X.shape[0] if hasattr(X, "shape") else len(np.asarray(X))
        super().fit(X, y, np.arange(n_rows) % 3)
        self.task_ = self.adapt(X, y)
        return self

    def predict(self, X):
        self._fitted("task_", "fit")
        return self.task_.predict(X)

    def score(self, X, y):
        return self.task_.score(X, y)

    def __sklearn_tags__(self):
        return tags(self.kind)


class ThirdsOfClasses(Thirds):
    kind = "classifier"


@pytest.mark.filterwarnings("ignore")  # that it does not inherit from scikit-learn's base class
@pytest.mark.parametrize("estimator", [Thirds, ThirdsOfClasses])
def test_scikit_learn_s_own_checks(estimator):
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    options = {"target_kind": "class"} if estimator.kind == "classifier" else {}
    one = estimator("ridge", hidden=[4], iterations=1, shots=1, queries=1, options=options)
    results = checks.check_estimator(one, expected_failed_checks=OTHERWISE, on_fail=None)
    failed = [(r["check_name"], r["exception"]) for r in results if r["status"] == "failed"]
    assert failed == []
    assert sum(r["status"] == "passed" for r in results) > 35
