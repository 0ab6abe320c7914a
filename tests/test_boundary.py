"""What nobody means is refused in words, by whatever entry it comes in."""

import numpy as np
import pytest

import npmeta as nm
from npmeta.algorithms.registry import ALGORITHMS
from npmeta.bilevel import optimizers
from npmeta.estimators import MetaEstimator
from npmeta.tasks import Encoding
from npmeta.training.config import Config
from npmeta.training.parallel import Sharded
from npmeta.verification import check_gradient, check_hvp

MODEL = nm.MLP([1, 4, 1])
MAML = nm.MAML(MODEL, inner_lr=0.1)
PARAMS = MAML.init(0)
WAVES = nm.tasks.Sinusoid(shots=3, queries=3)
BATCH = WAVES.sample(0, 0, 2)


def hidden(array, at=0):
    """The array with one entry masked, under which something absurd stands."""
    array = np.ma.array(array, dtype=float)
    array[(at,) * array.ndim] = 1e9
    array[(at,) * array.ndim] = np.ma.masked
    return array


X, Y = BATCH.support_x, BATCH.support_y
ENTRIES = {
    "support_x": lambda: nm.TaskBatch(hidden(X), Y, X, Y),
    "support_y": lambda: nm.TaskBatch(X, hidden(Y), X, Y),
    "query_x": lambda: MAML.predict(PARAMS, X, Y, hidden(X)),
    "theta": lambda: MAML.meta_gradient(hidden(PARAMS["theta"]), BATCH),
    "theta ": lambda: MAML.adapt({"theta": hidden(PARAMS["theta"])}, X, Y),
    "inner_lr": lambda: nm.MAML(MODEL, inner_lr=hidden(np.ones(3))).meta_gradient(PARAMS, BATCH),
    "x": lambda: MODEL.apply(PARAMS["theta"], hidden(X)),
    "y": lambda: nm.losses.get("mse").prepare(hidden(Y), 1, np.dtype(float)),
    "x ": lambda: Encoding(("a",), "b", (0.0,), (1.0,)).encode(hidden(np.ones((3, 1)))),
    "y ": lambda: Encoding(("a",), "b", (0.0,), (1.0,)).encode_targets(hidden(np.ones(3))),
    "X": lambda: MetaEstimator().fit(hidden(np.ones((9, 1))), np.ones(9), np.zeros(9)),
    "y  ": lambda: MetaEstimator().fit(np.ones((9, 1)), hidden(np.ones(9)), np.zeros(9)),
    "groups": lambda: MetaEstimator().fit(np.ones((9, 1)), np.ones(9), hidden(np.zeros(9))),
    "x  ": lambda: check_gradient(lambda x: (x @ x, 2 * x), hidden(np.ones(3))),
    "the gradient": lambda: nm.diagnose(
        nm.Problem(MAML, PARAMS["theta"], BATCH), hidden(PARAMS["theta"])
    ),
    "m/theta": lambda: nm.meta_train(
        MAML,
        PARAMS,
        WAVES,
        iterations=3,
        optimizer=optimizers.Momentum(),
        state={"m/theta": hidden(PARAMS["theta"])},
    ),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_masked_entries_are_refused_by_the_argument_they_are_in(name):
    with pytest.raises(ValueError, match=f"^{name.strip()} has masked entries"):
        ENTRIES[name]()


def test_a_mask_without_entries_hides_nothing():
    out = MAML.meta_gradient(PARAMS, nm.TaskBatch(np.ma.array(X), Y, X, Y))
    assert out.loss == MAML.meta_gradient(PARAMS, nm.TaskBatch(X, Y, X, Y)).loss


class NAType:
    """As pandas has it: nothing can be done with it."""

    def __float__(self):
        raise TypeError("float() argument must be a string or a real number, not 'NAType'")

    def __repr__(self):
        return "<NA>"


@pytest.mark.parametrize("missing", [NAType(), None, "text"])
def test_cells_that_are_no_numbers_are_named(missing):
    cells = np.array([[1.0, 2.0], [3.0, missing]], dtype=object)
    with pytest.raises(ValueError, match=r"^X must hold real numbers, but X\[1, 1\] is "):
        MetaEstimator().fit(cells, [1.0, 2.0], [0, 1])
    with pytest.raises(ValueError, match=r"^x must (hold real numbers|be finite)"):
        Encoding(("a", "b"), "c", (0.0, 0.0), (1.0, 1.0)).encode(cells)


@pytest.mark.parametrize("name", [n for n, e in ALGORITHMS.items() if e.tasks and n != "oracle"])
def test_a_seed_is_as_good_as_a_generator(name):
    task = ALGORITHMS[name].tasks[0]
    algorithm = Config(task, {"algorithm": name}).algorithm(
        *((784, 5) if task == "omniglot" else (1, 1))
    )
    by_seed, made = algorithm.init(3), algorithm.init(np.random.default_rng(3))
    assert by_seed.keys() == made.keys()
    assert all(np.array_equal(by_seed[key], made[key]) for key in made)
    for bad in (-1, 1.5, "0", None, True, np.random):
        with pytest.raises(ValueError, match=r"^rng must be a numpy"):
            algorithm.init(bad)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"m/theta": np.zeros(1)}, r"must have shape \(13,\) and dtype float64, got \(1,\)"),
        ({"m/theta": np.zeros(13, np.float32)}, "got .* float32"),
        ({}, "^state must have m/theta"),
        ({"m/theta": np.zeros(13), "v/theta": np.zeros(13)}, "^state must have m/theta"),
        ([1], "^state must have m/theta; got list"),
    ],
)
def test_the_state_is_one_of_these_parameters(state, message):
    with pytest.raises(ValueError, match=message):
        nm.meta_train(MAML, PARAMS, WAVES, iterations=1, optimizer=optimizers.Momentum(), state=state)


@pytest.mark.parametrize("bad", [0, -1, float("nan")])
def test_no_clip_turns_a_gradient_round(bad):
    with pytest.raises(ValueError, match="max_norm must be positive"):
        optimizers.clip_by_global_norm({"theta": np.ones(3)}, bad)


@pytest.mark.parametrize("name", ["iterations", "meta_batch", "start", "seed"])
@pytest.mark.parametrize("bad", [-5, 1.5, "3", None, True])
def test_counts_are_counts_before_the_first_step(name, bad):
    with pytest.raises(ValueError, match=f"^{name} must be a whole number"):
        nm.meta_train(MAML, PARAMS, WAVES, **{"iterations": 3, name: bad})


def test_a_run_does_not_end_before_it_starts():
    with pytest.raises(ValueError, match=r"^iterations must be a whole number of at least 7, got 3"):
        nm.meta_train(MAML, PARAMS, WAVES, iterations=3, start=7)


@pytest.mark.parametrize("word", ["yes", "rel", 1, None])
def test_flags_are_true_or_false(word, tmp_path):
    (tmp_path / "t.csv").write_text("task,x,y\n" + "".join(f"{i // 4},{i},{i}\n" for i in range(48)))
    for make in (
        lambda: nm.tasks.Table(tmp_path / "t.csv", target="y", shots=1, queries=1, standardise=word),
        lambda: nm.tasks.Omniglot(tmp_path, align=word),
        lambda: nm.tasks.Omniglot(tmp_path, rotations=word),
        lambda: nm.MAML(MODEL, first_order=word),
        lambda: nm.MAML(MODEL, learn_inner_lr=word),
        lambda: nm.algorithms.CAVIA(nm.MLP([3, 4, 1]), n_context=2, first_order=word),
    ):
        with pytest.raises(ValueError, match="must be True or False"):
            make()


def test_a_hessian_check_refuses_what_is_hidden():
    with pytest.raises(ValueError, match="masked"):
        check_hvp(lambda x: (x @ x, 2 * x), lambda x, v: hidden(2 * v), np.ones(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nm.Risk("mse", "mse"), "model must be an MLP, got 'mse'"),
        (lambda: nm.MLP([1, 2, 1], adapt_norm="yes"), "adapt_norm must be True or False, got 'yes'"),
        (lambda: nm.Structure(gates="x"), "gates must be True or False, got 'x'"),
        (lambda: Sharded(3), "algorithm must be an algorithm, got 3"),
        (lambda: Sharded(nm.MAML), "algorithm must be an algorithm, got <class"),
        (lambda: Sharded(MAML, workers=True), "workers must be a whole number of at least 1, got True"),
        (lambda: nm.FunctionObjective(3, 4), "value_and_grad must be a function, got 4"),
        (
            lambda: nm.meta_train(MAML, PARAMS, WAVES, iterations=1, optimizer="adam"),
            "optimizer must be",
        ),
        (
            lambda: nm.meta_train(MAML, PARAMS, WAVES, iterations=1, outer_lr="x"),
            "outer_lr must be positive",
        ),
        (lambda: optimizers.clip_by_global_norm(PARAMS, "a"), "max_norm must be positive, got 'a'"),
        (lambda: WAVES.sample(0, 0, 2.5), "n_tasks must be a whole number of at least 1, got 2.5"),
        (lambda: WAVES.sample(None, 0, 2), "seed must be a whole number of at least 0, got None"),
        (lambda: nm.tasks.Sinusoid(x=None), r"x must be a range \(low, high\), got None"),
        (lambda: MODEL.init(0, "abc"), "dtype must be float32 or float64, got 'abc'"),
        (lambda: BATCH["a"], "tasks must hold real numbers"),
        (lambda: BATCH[[True]], "there are 2 tasks, got 1 flags"),
    ],
)
def test_what_is_not_meant_is_said_at_once(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("optimizer", [optimizers.Sgd(), optimizers.Momentum(), optimizers.Adam()])
def test_gradients_and_state_of_other_shapes_do_not_broadcast(optimizer):
    params = {"a": np.zeros(3), "b": np.zeros(())}
    state = optimizer.init(params)
    optimizer.update(params, params, state, 0.1)
    with pytest.raises(ValueError, match=r"gradient 'a' must have shape \(3,\), got \(1,\)"):
        optimizer.update(params, {**params, "a": np.zeros(1)}, state, 0.1)
    with pytest.raises(ValueError, match="gradient 'b' is missing; there are a"):
        optimizer.update(params, {"a": np.zeros(3)}, state, 0.1)
    if state:
        with pytest.raises(ValueError, match=r"state 'm/a' must have shape \(3,\), got \(1,\)"):
            optimizer.update(params, params, {**state, "m/a": np.zeros(1)}, 0.1)


class Column:
    """A column of a data frame, as far as NumPy knows: no list, but in order."""

    def __init__(self, *values):
        self.values = values

    def __iter__(self):
        return iter(self.values)

    def __len__(self):
        return len(self.values)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype)


def test_whatever_has_an_order_is_a_list():
    encoding = Encoding(("a", "b"), "y", (0.0, 1.0), (1.0, 2.0), classes=("n", "y"))
    for kind in (list, lambda items: dict.fromkeys(items), lambda items: Column(*items)):
        names, numbers = kind(["a", "b"]), Column(0.0, 1.0)
        assert Encoding(names, "y", numbers, Column(1.0, 2.0), classes=kind(["n", "y"])) == encoding
    assert nm.tasks.Sinusoid(x=Column(-1, 1)).x == (-1.0, 1.0)
    assert nm.tasks.Sinusoid(x=np.array([-1, 1])) == nm.tasks.Sinusoid(x=(-1.0, 1.0))
    clipped, norm = optimizers.clip_by_global_norm({"a": [3.0, 4.0]}, 1)
    assert norm == 5
    np.testing.assert_allclose(clipped["a"], [0.6, 0.8], rtol=1e-15)
    for optimizer in (optimizers.Sgd(), optimizers.Adam(), optimizers.Momentum()):
        params = {"a": np.zeros(2)}
        optimizer.update(params, {"a": [1.0, 2.0]}, optimizer.init(params), 0.1)
    assert check_gradient(lambda x: (np.array([np.sin(x).sum()]), np.cos(x)), np.arange(4.0)).passed
    parts = [np.arange(4.0), np.array(1.0)]
    assert check_gradient(lambda x: (sum((p**2).sum() for p in x), [2 * p for p in x]), parts).passed
