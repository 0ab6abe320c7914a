"""Metric learners and the ridge head: exact gradients, the papers' formulas, and odd tasks."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npmeta as nm
from npmeta.algorithms import (
    MatchingNetwork,
    PrototypicalNetwork,
    RelationNetwork,
    RidgeHead,
    SiameseNetwork,
)
from npmeta.network.activations import ACTIVATIONS
from npmeta.network.losses import LOSSES
from npmeta.training.parallel import Sharded
from tests.algorithms import assert_loss_changes_as_gradient_says
from tests.helpers import H, assert_close

# Some dozens of roundings of 1e-16, amplified by solves and by sums that cancel.
TIGHT = 1e-12

N, K, Q, n_in, d = 3, 2, 4, 4, 5


def network(activation="tanh", n_out=d):
    return nm.MLP([n_in, 6, n_out], activation)


LEARNERS = {
    "matching": MatchingNetwork(network()),
    "matching, Euclidean": MatchingNetwork(network(), "euclidean"),
    "matching, squared": MatchingNetwork(network(), "squared_euclidean", scale=0.5),
    "matching, linear": MatchingNetwork(nm.MLP([n_in, d])),
    "matching, pixels": MatchingNetwork(None, scale=1.0),
    "prototypical": PrototypicalNetwork(network()),
    "prototypical, cosine": PrototypicalNetwork(network("gelu"), "cosine"),
    "prototypical, Euclidean": PrototypicalNetwork(network("silu"), "euclidean", scale=2.0),
    "siamese": SiameseNetwork(network()),
    "siamese, contrastive": SiameseNetwork(network(), "contrastive", margin=2.0),
    "siamese, pixels": SiameseNetwork(None, "contrastive", margin=2.0),
    "relation": RelationNetwork(network(), nm.MLP([2 * d, 7, 1], "tanh")),
    "ridge": RidgeHead(network(), ridge=0.3),
    "ridge, hinge": RidgeHead(network("silu"), "squared_hinge"),
    "ridge, numbers": RidgeHead(network(), "mse"),
    "ridge, counts": RidgeHead(network(), "poisson_nll"),
}
CLASSIFY = [name for name in LEARNERS if "numbers" not in name and "counts" not in name]

every_learner = pytest.mark.parametrize("name", LEARNERS)
every_classifier = pytest.mark.parametrize("name", CLASSIFY)


def tasks_for(name, T=3, seed=0, shots=K):
    """Episodes with ``shots`` rows of each class, in an order of their own."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(T, N * shots + Q, n_in))
    support_y = rng.permuted(np.tile(np.repeat(np.arange(N), shots), (T, 1)), axis=1)
    y = np.concatenate([support_y, rng.integers(N, size=(T, Q))], axis=1)
    if "numbers" in name:
        y = rng.normal(size=(*y.shape, 2))
    if "counts" in name:
        y = rng.poisson(2.0, size=(*y.shape, 2)).astype(float)
    n = N * shots
    return nm.TaskBatch(x[:, :n], y[:, :n], x[:, n:], y[:, n:])


def params_for(name, seed=1, dtype=np.float64):
    """Initial parameters, moved so that none is at a special value."""
    rng = np.random.default_rng(seed)
    params = LEARNERS[name].init(rng)
    return {key: (a + 0.1 * rng.normal(size=a.shape)).astype(dtype) for key, a in params.items()}


def moved(params, key, v):
    return {**params, key: params[key] + v}


# --- gradients --------------------------------------------------------------------------------------


@every_learner
def test_every_derivative_is_that_of_a_complex_step(name):
    learner, params, tasks = LEARNERS[name], params_for(name), tasks_for(name)
    out = learner.meta_gradient(params, tasks)
    assert set(out.grads) == set(params)
    complex_params = {key: a.astype(complex) for key, a in params.items()}
    for key, a in params.items():
        by_step = np.empty(a.size)
        for i, e in enumerate(np.eye(a.size)):
            step = 1j * H * e.reshape(a.shape)
            by_step[i] = learner.evaluate(moved(complex_params, key, step), tasks).loss.imag.mean() / H
        # A bias that is the same for all classes changes nothing: measured by what cancels.
        scale = max(np.abs(by_step).max(initial=0), 0.1)
        assert np.abs(out.grads[key].ravel() - by_step).max(initial=0) <= TIGHT * scale, key
        assert out.grads[key].shape == a.shape


MAKERS = {
    "matching": MatchingNetwork,
    "matching, Euclidean": lambda model: MatchingNetwork(model, "euclidean"),
    "prototypical": PrototypicalNetwork,
    "prototypical, cosine": lambda model: PrototypicalNetwork(model, "cosine"),
    "siamese": SiameseNetwork,
    "siamese, contrastive": lambda model: SiameseNetwork(model, "contrastive"),
    "relation": RelationNetwork,
    "ridge": RidgeHead,
}


@settings(max_examples=100)
@given(
    kind=st.sampled_from(list(MAKERS)),
    hidden=st.lists(st.integers(1, 5), max_size=3),
    activation=st.sampled_from(list(ACTIVATIONS)),
    sizes=st.tuples(*[st.integers(1, 4)] * 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_network_and_any_episode(kind, hidden, activation, sizes, seed):
    """The derivative along a direction in all meta-parameters at once; labels as they fall, so that
    classes may be missing."""
    rng = np.random.default_rng(seed)
    T, K, Q, n_in, n_out, n_classes = sizes
    learner = MAKERS[kind](nm.MLP([n_in, *hidden, n_out], activation))
    x, y = rng.normal(size=(T, K + Q, n_in)), rng.integers(n_classes, size=(T, K + Q))
    tasks = nm.TaskBatch(x[:, :K], y[:, :K], x[:, K:], y[:, K:])
    # Biases that are not zero keep embeddings off zero, where cosines are not defined.
    params = {key: a + 0.2 * rng.normal(size=a.shape) for key, a in learner.init(rng).items()}
    v = {key: rng.normal(size=a.shape) for key, a in params.items()}
    out = learner.meta_gradient(params, tasks)
    ahead = {key: a + 1j * H * v[key] for key, a in params.items()}
    by_step = learner.evaluate(ahead, tasks).loss.imag.mean() / H
    terms = [out.grads[key] * v[key] for key in params]
    # An embedding in one dimension has cosines of 1 and -1 alone, and a gradient of rounding errors.
    scale = sum(np.abs(term).sum() for term in terms) + 0.1
    assert abs(sum(term.sum() for term in terms) - by_step) <= 1e-11 * scale


@every_learner
def test_the_loss_changes_as_the_gradient_says(name):
    learner, tasks = LEARNERS[name], tasks_for(name)
    assert_loss_changes_as_gradient_says(learner, params_for(name), tasks)


@every_learner
def test_a_batch_is_the_mean_of_its_tasks_in_any_order(name):
    learner, params, tasks = LEARNERS[name], params_for(name), tasks_for(name, T=4)
    together = learner.meta_gradient(params, tasks)
    alone = [learner.meta_gradient(params, tasks[[t]]) for t in range(4)]
    shuffled = learner.meta_gradient(params, tasks[[2, 0, 3, 1]])
    assert_close(together.task_loss, np.concatenate([one.task_loss for one in alone]), TIGHT)
    assert together.loss == pytest.approx(together.task_loss.mean(), rel=1e-14)
    for key, grad in together.grads.items():
        scale = max([np.abs(one.grads[key]).max(initial=0) for one in alone]) + 0.01
        mean = np.mean([one.grads[key] for one in alone], axis=0)
        assert np.abs(grad - mean).max(initial=0) <= TIGHT * scale
        assert np.abs(grad - shuffled.grads[key]).max(initial=0) <= TIGHT * scale


@every_learner
def test_the_order_of_rows_does_not_matter(name):
    learner, params, tasks = LEARNERS[name], params_for(name), tasks_for(name)
    rows = np.random.default_rng(0).permutation(tasks.support_x.shape[1])
    other = nm.TaskBatch(
        tasks.support_x[:, rows], tasks.support_y[:, rows], tasks.query_x, tasks.query_y
    )
    assert_close(learner.evaluate(params, other).loss, learner.evaluate(params, tasks).loss, TIGHT)


@every_learner
def test_float32_agrees_with_float64(name):
    learner, tasks = LEARNERS[name], tasks_for(name)
    low = learner.meta_gradient(params_for(name, dtype=np.float32), tasks)
    params = {key: a.astype(np.float64) for key, a in params_for(name, dtype=np.float32).items()}
    high = learner.meta_gradient(params, tasks)
    for key, grad in low.grads.items():
        assert grad.dtype == np.float32
        # Some dozens of roundings of 6e-8, and solves that amplify them.
        scale = np.abs(high.grads[key]).max(initial=0) + 0.1
        assert np.abs(grad - high.grads[key]).max(initial=0) <= 1e-4 * scale
    assert low.task_loss.dtype == np.float32


# --- the papers' formulas, one row at a time --------------------------------------------------------


def embedded(name, params, tasks):
    learner = LEARNERS[name]
    if learner.model is None:
        return tasks.support_x, tasks.query_x
    return tuple(learner.model.apply(params["theta"], x) for x in (tasks.support_x, tasks.query_x))


def distance(kind, u, v):
    if kind == "cosine":
        return 1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    return np.linalg.norm(u - v) ** (2 if kind == "squared_euclidean" else 1)


@pytest.mark.parametrize("name", [name for name in LEARNERS if "matching" in name])
def test_matching_is_attention(name):
    params, tasks, kind = params_for(name), tasks_for(name), LEARNERS[name].distance
    support, query = embedded(name, params, tasks)
    outputs = LEARNERS[name].predict(params, tasks.support_x, tasks.support_y, tasks.query_x)
    task_loss = LEARNERS[name].evaluate(params, tasks).loss[:, 0]
    for t in range(3):
        loss = 0
        for q in range(Q):
            a = np.exp([-params["scale"] * distance(kind, query[t, q], e) for e in support[t]])
            a /= a.sum()
            p = np.array([a[tasks.support_y[t] == c].sum() for c in range(N)])
            assert_close(np.exp(outputs[t, q]) / np.exp(outputs[t, q]).sum(), p, TIGHT)
            loss -= np.log(p[tasks.query_y[t, q]]) / Q
        assert task_loss[t] == pytest.approx(loss, rel=TIGHT)


@pytest.mark.parametrize("name", [name for name in LEARNERS if "prototypical" in name])
def test_prototypical_measures_distances_from_class_means(name):
    params, tasks, kind = params_for(name), tasks_for(name), LEARNERS[name].distance
    support, query = embedded(name, params, tasks)
    outputs = LEARNERS[name].predict(params, tasks.support_x, tasks.support_y, tasks.query_x)
    for t in range(3):
        means = [support[t][tasks.support_y[t] == c].mean(0) for c in range(N)]
        expected = [[-params["scale"] * distance(kind, e, c) for c in means] for e in query[t]]
        assert_close(outputs[t], expected, TIGHT)


@pytest.mark.parametrize("name", [name for name in LEARNERS if "siamese" in name])
def test_siamese_weighs_pairs_of_either_kind_alike(name):
    params, tasks, learner = params_for(name), tasks_for(name), LEARNERS[name]
    support, query = embedded(name, params, tasks)
    task_loss = learner.evaluate(params, tasks).loss[:, 0]
    outputs = learner.predict(params, tasks.support_x, tasks.support_y, tasks.query_x)
    for t in range(3):
        losses = {True: [], False: []}
        for q in range(Q):
            likeness = np.full(N, -np.inf)
            for i in range(N * K):
                same = bool(tasks.query_y[t, q] == tasks.support_y[t, i])
                if learner.pair_loss == "contrastive":
                    D = np.linalg.norm(query[t, q] - support[t, i])
                    z, loss = -D, (D**2 if same else max(0, learner.margin - D) ** 2) / 2
                else:
                    z = params["bias"] - params["weights"] @ np.abs(query[t, q] - support[t, i])
                    p = 1 / (1 + np.exp(-z))
                    loss = -np.log(p if same else 1 - p)
                losses[same].append(loss)
                c = tasks.support_y[t, i]
                likeness[c] = max(likeness[c], z)
            assert_close(outputs[t, q], likeness, TIGHT)
        expected = (np.mean(losses[True]) + np.mean(losses[False])) / 2
        assert task_loss[t] == pytest.approx(expected, rel=TIGHT)


def test_relation_scores_sums_joined_with_queries():
    params, tasks, learner = params_for("relation"), tasks_for("relation"), LEARNERS["relation"]
    support, query = embedded("relation", params, tasks)
    outputs = learner.predict(params, tasks.support_x, tasks.support_y, tasks.query_x)
    for t in range(3):
        for c in range(N):
            total = support[t][tasks.support_y[t] == c].sum(0)
            joined = np.concatenate([np.tile(total, (Q, 1)), query[t]], axis=1)
            g = learner.module.apply(params["relation"], joined)[:, 0]
            assert_close(outputs[t, :, c], g, TIGHT)
    r = 1 / (1 + np.exp(-outputs))
    expected = ((r - np.eye(N)[tasks.query_y]) ** 2).mean((1, 2))
    assert_close(learner.evaluate(params, tasks).loss[:, 0], expected, TIGHT)


@pytest.mark.parametrize("name", [name for name in LEARNERS if "ridge" in name])
def test_ridge_minimises_its_penalised_squares(name):
    """The primal normal equations (AᵀA + λI) W = AᵀY, and the loss of s A_Q W + b."""
    params, tasks, learner = params_for(name), tasks_for(name), LEARNERS[name]
    A, A_Q = (
        np.concatenate([e, np.ones((*e.shape[:2], 1))], axis=-1) for e in embedded(name, params, tasks)
    )
    classes = tasks.support_y.ndim == 2
    Y = np.eye(N)[tasks.support_y] if classes else tasks.support_y
    outputs = learner.predict(params, tasks.support_x, tasks.support_y, tasks.query_x)
    for t in range(3):
        penalised = A[t].T @ A[t] + np.exp(params["log_ridge"]) * np.eye(d + 1)
        W = np.linalg.solve(penalised, A[t].T @ Y[t])
        assert_close(outputs[t], params["scale"] * A_Q[t] @ W + params["bias"], 1e-11)
    loss = LOSSES[learner.loss]
    targets = loss.prepare(tasks.query_y, outputs.shape[-1], np.dtype(float))
    assert_close(learner.evaluate(params, tasks).loss[:, 0], loss(outputs, targets).value, TIGHT)


# --- odd tasks --------------------------------------------------------------------------------------


@every_classifier
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_that_are_all_the_same_are_no_trouble(name, dtype):
    """Every distance is 0: finite, and a gradient that does not pull identical rows apart."""
    tasks = tasks_for(name)
    for x in (0.0, 1.0):
        same = nm.TaskBatch(
            np.full_like(tasks.support_x, x), tasks.support_y,
            np.full_like(tasks.query_x, x), tasks.query_y,
        )  # fmt: skip
        params = params_for(name, dtype=dtype)
        out = LEARNERS[name].meta_gradient(params, same)
        assert np.isfinite(out.task_loss).all()
        assert all(np.isfinite(grad).all() for grad in out.grads.values())
        if "relation" not in name and "ridge" not in name:
            # What each row is pulled by is 0, or cancels with what the others are.
            assert np.abs(out.grad).max(initial=0) <= 100 * np.finfo(dtype).eps


@every_classifier
def test_a_query_of_a_class_without_support_has_no_answer(name):
    """Nothing is NaN; it counts as wrong, and other rows are answered as before."""
    tasks, params, learner = tasks_for(name), params_for(name), LEARNERS[name]
    present = tasks.support_y[0] != 2
    x, y = tasks.support_x[:1, present], tasks.support_y[:1, present]
    query_y = np.array([[2, 2, 2, 2]])
    odd = nm.TaskBatch(x, y, tasks.query_x[:1], query_y)
    out = learner.meta_gradient(params, odd)
    assert np.isfinite(out.loss)
    assert all(np.isfinite(grad).all() for grad in out.grads.values())
    if "ridge" in name:
        return  # a regression on zeros may answer anything
    assert learner.evaluate(params, odd).accuracy == 0
    assert learner.predict(params, x, y, tasks.query_x[:1]).shape == (1, Q, 2)
    if "matching" in name or "prototypical" in name:
        assert out.loss == pytest.approx(np.log(3))
        assert all(not np.any(grad) for grad in out.grads.values())
        mixed = nm.TaskBatch(x, y, tasks.query_x[:1], np.array([[0, 2, 1, 0]]))
        kept = [0, 2, 3]
        alone = nm.TaskBatch(x, y, tasks.query_x[:1, kept], np.array([[0, 1, 0]]))
        expected = 0.75 * learner.evaluate(params, alone).loss + 0.25 * np.log(3)
        assert_close(learner.evaluate(params, mixed).loss, expected, TIGHT)


@every_classifier
def test_far_rows_do_not_overflow(name):
    tasks = tasks_for(name)
    far = nm.TaskBatch(1e4 * tasks.support_x, tasks.support_y, 1e4 * tasks.query_x, tasks.query_y)
    out = LEARNERS[name].meta_gradient(params_for(name, dtype=np.float32), far)
    assert np.isfinite(out.loss)
    assert all(np.isfinite(grad).all() for grad in out.grads.values())


# --- interface --------------------------------------------------------------------------------------


@every_learner
def test_scores_have_one_column_whatever_the_steps(name):
    learner, params, tasks = LEARNERS[name], params_for(name), tasks_for(name)
    scores = learner.evaluate(params, tasks, steps=7)
    assert scores.loss.shape == (3, 1)
    np.testing.assert_array_equal(scores.loss[:, 0], learner.meta_gradient(params, tasks).task_loss)
    x = tasks.support_x, tasks.support_y, tasks.query_x
    outputs = learner.predict(params, *x, steps=7)
    np.testing.assert_array_equal(outputs, learner.predict(params, *x))
    if name in CLASSIFY:
        right = (outputs.argmax(-1) == tasks.query_y).mean(-1, keepdims=True)
        np.testing.assert_array_equal(scores.accuracy, right)
    else:
        assert scores.accuracy is None


@every_classifier
def test_labels_may_be_one_hot_and_ways_given(name):
    learner, params, tasks = LEARNERS[name], params_for(name), tasks_for(name)
    one_hot = nm.TaskBatch(
        tasks.support_x, np.eye(N)[tasks.support_y], tasks.query_x, np.eye(N)[tasks.query_y]
    )
    loss = learner.evaluate(params, tasks).loss
    np.testing.assert_array_equal(learner.evaluate(params, one_hot).loss, loss)


@every_learner
def test_what_is_left_out_is_held_fixed(name):
    learner, tasks = LEARNERS[name], tasks_for(name)
    params = learner.init(np.random.default_rng(0))
    for key in set(params) - {"theta", "relation"}:
        fewer = {other: a for other, a in params.items() if other != key}
        out, all_of_it = learner.meta_gradient(fewer, tasks), learner.meta_gradient(params, tasks)
        assert set(out.grads) == set(fewer)
        assert out.loss == all_of_it.loss
        np.testing.assert_array_equal(out.grad, all_of_it.grad)


@every_learner
def test_a_learner_can_be_sent_to_other_processes(name):
    learner, params, tasks = LEARNERS[name], params_for(name), tasks_for(name, T=5)
    again = pickle.loads(pickle.dumps(learner))
    whole = learner.meta_gradient(params, tasks)
    np.testing.assert_array_equal(again.meta_gradient(params, tasks).grad, whole.grad)
    with Sharded(learner, shard_size=2) as sharded:
        out = sharded.meta_gradient(params, tasks)
    assert out.loss == pytest.approx(whole.loss, rel=1e-13)
    scale = 1 + np.abs(whole.grad).max(initial=0)
    assert np.abs(out.grad - whole.grad).max(initial=0) <= TIGHT * scale


@every_learner
def test_training_lowers_the_loss(name):
    learner, tasks = LEARNERS[name], tasks_for(name, T=8)
    if learner.model is None:
        return  # nothing to train but a scale

    class Same:
        def sample(self, *args, **kwargs):
            return tasks

    params = learner.init(np.random.default_rng(0))
    steps = list(nm.meta_train(learner, params, Same(), iterations=30, outer_lr=0.01))
    assert steps[-1].loss < 0.9 * steps[0].loss


def test_arguments_are_left_alone():
    for name, learner in LEARNERS.items():
        params, tasks = params_for(name), tasks_for(name)
        kept = [a.copy() for a in (*params.values(), *vars(tasks).values())]
        out = learner.meta_gradient(params, tasks)
        for grad in out.grads.values():
            grad[...] = 0
        for a, copy in zip((*params.values(), *vars(tasks).values()), kept, strict=True):
            np.testing.assert_array_equal(a, copy)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MatchingNetwork("mlp"), "model must be an MLP .* got str"),
        (
            lambda: MatchingNetwork(None, "cosin"),
            "unknown distance 'cosin' .did you mean 'cosine'",
        ),
        (
            lambda: MatchingNetwork(None, scale=0),
            "scale must be a positive number, got 0",
        ),
        (
            lambda: PrototypicalNetwork(None, scale=[1, 2]),
            "scale must be a positive number",
        ),
        (
            lambda: PrototypicalNetwork(None, ways=0),
            "ways must be a whole number of at least 1",
        ),
        (lambda: SiameseNetwork(None), "needs a model, whose outputs it weighs"),
        (lambda: SiameseNetwork(network(), "l1"), "unknown pair loss 'l1'"),
        (
            lambda: SiameseNetwork(network(), margin=-1),
            "margin must be a positive number, got -1",
        ),
        (lambda: RelationNetwork(None), "needs a model"),
        (lambda: RelationNetwork(network(), network()), "relation must have 10 inputs"),
        (lambda: RidgeHead(network(), "msee"), "unknown loss 'msee'"),
        (
            lambda: RidgeHead(network(), ridge=float("inf")),
            "ridge must be a positive number",
        ),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_input_is_refused():
    name = "prototypical"
    learner, params, tasks = LEARNERS[name], params_for(name), tasks_for(name)
    x, y, qx, qy = tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y
    for wrong, message in (
        ({**params, "scal": 1.0}, "PrototypicalNetwork has no meta-parameter 'scal'"),
        ({**params, "scale": np.ones(2)}, r"scale must have shape \(\), got \(2,\)"),
        ({**params, "scale": np.array(np.nan)}, "scale must be finite"),
        ({**params, "theta": np.ones(3)}, "theta must have shape"),
        ({**params, "theta": np.ones((2, 65))}, r"theta must have shape \(65,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            learner.meta_gradient(wrong, tasks)
    for batch, message in (
        (nm.TaskBatch(x[..., :2], y, qx[..., :2], qy), "a network with 4 inputs"),
        (nm.TaskBatch(x, y + 0.5, qx, qy + 0.5), "must hold integer labels"),
        (nm.TaskBatch(x, y - 1, qx, qy), "labels in support_y must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            learner.meta_gradient(params, batch)
    with pytest.raises(ValueError, match=r"must lie in 0..1 .* got 2"):
        PrototypicalNetwork(network(), ways=2).meta_gradient(params, tasks)
    with pytest.raises(ValueError, match="must agree in T, K and n_in"):
        learner.predict(params, x, y, qx[:2])
    with pytest.raises(ValueError, match="must agree in T, K and n_in"):
        learner.predict(params, x, y[:, 1:], qx)
    for steps in (-1, 1.0, True):
        with pytest.raises(ValueError, match="steps must be a whole number of at least 0"):
            learner.evaluate(params, tasks, steps)
        with pytest.raises(ValueError, match="steps must be a whole number of at least 0"):
            learner.predict(params, x, y, qx, steps)
    with pytest.raises(ValueError, match="must have 'relation' too"):
        LEARNERS["relation"].meta_gradient({"theta": params["theta"]}, tasks)
