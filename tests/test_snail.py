"""SNAIL: exact gradients, and a sequence of which no row sees a later one."""

import numpy as np
import pytest

import npmeta as nm
from npmeta.algorithms import SNAIL
from npmeta.algorithms.snail import drawn
from npmeta.network.sequences import attention, dilated_convolution, earlier, linear, through_earlier
from npmeta.verification import check_gradient
from tests.algorithms import (
    TIGHT,
    assert_loss_changes_as_gradient_says,
    by_complex_step,
    one_by_one,
    with_noise,
)
from tests.helpers import H, assert_close

n_in, N, K, Q, T = 2, 3, 5, 4, 3


def network(activation="tanh", n_out=4, **options):
    return nm.MLP([n_in, 3, n_out], activation, **options)


SMALL = {"filters": 2, "key_width": 3, "value_width": 2}
SNAILS = {
    "values": SNAIL(network(), "mse", N, blocks=2, convolutions=2, **SMALL),
    "classes": SNAIL(network("silu"), "cross_entropy", N, blocks=1, convolutions=3, **SMALL),
    "dilations beyond the rows": SNAIL(network(), "squared_hinge", N, 1, convolutions=5, **SMALL),
    "attention alone": SNAIL(nm.MLP([n_in, 3]), "cross_entropy", N, blocks=0, **SMALL),
    "as they come": SNAIL(
        network(norm="layer"), "huber", N, blocks=1, convolutions=2, **SMALL, shuffle=False
    ),
}
every_snail = pytest.mark.parametrize("name", SNAILS)


def tasks_for(learner, seed=0, n_rows=K):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(T, n_rows + Q, n_in))
    values = learner.loss in ("mse", "huber")
    shape = (T, n_rows + Q)
    y = rng.normal(size=(*shape, N)) if values else rng.integers(N, size=shape)
    return nm.TaskBatch(x[:, :n_rows], y[:, :n_rows], x[:, n_rows:], y[:, n_rows:])


def params_for(learner, seed=0):
    """Meta-parameters of no symmetry: queries that are not the keys, biases that are not zero."""
    return with_noise(learner.init(np.random.default_rng(seed)), seed, 0.5)


# --- the paper, row by row --------------------------------------------------------------------------


def by_the_paper(learner, params, x, y, query) -> np.ndarray:
    """The output for one query row of one task: a sequence of its own, in loops over its rows."""
    e = [learner.model.apply(params["theta"], row[None])[0] for row in (*x, query)]
    a = [np.concatenate(parts) for parts in zip(e, [*y, np.zeros(N)], strict=True)]

    def attended():
        W, d = params[name], learner.key_width
        q, k, v = zip(*(np.split(row @ W[:-1] + W[-1], [d, 2 * d]) for row in a), strict=True)
        for t in range(len(a)):
            shares = np.exp([q[t] @ k[s] / np.sqrt(d) for s in range(t + 1)])
            yield sum(share * v[s] for s, share in enumerate(shares)) / shares.sum()

    def convolved(D):
        W, n = params[name], len(a[0])
        for t in range(len(a)):
            z = a[t] @ W[:n] + (a[t - D] @ W[n:-1] if t >= D else 0) + W[-1]
            f, g = np.split(z, 2)
            yield np.tanh(f) / (1 + np.exp(-g))

    for name in params:
        if name.startswith("attention"):
            new = [*attended()]
        elif name.startswith("convolution"):
            new = [*convolved(int(name.split("_")[-1]))]
        else:
            continue
        a = [np.concatenate(parts) for parts in zip(a, new, strict=True)]
    return a[-1] @ params["output"][:-1] + params["output"][-1]


@every_snail
def test_outputs_are_the_papers(name):
    learner = SNAILS[name]
    params, tasks = params_for(learner), tasks_for(learner)
    x, y = learner.ordered(tasks.support_x, tasks.support_y)
    numbers = y if y.ndim == 3 else np.eye(N)[y]
    expected = [
        [by_the_paper(learner, params, x[t], numbers[t], query) for query in tasks.query_x[t]]
        for t in range(T)
    ]
    found = learner.predict(params, tasks.support_x, tasks.support_y, tasks.query_x)
    assert_close(found, np.array(expected), TIGHT)


@every_snail
def test_every_derivative_is_that_of_a_complex_step(name):
    learner = SNAILS[name]
    params, tasks = params_for(learner), tasks_for(learner)
    out = learner.meta_gradient(params, tasks)
    assert out.hessian == "exact"
    assert out.grads.keys() == params.keys()
    for key, expected in by_complex_step(learner, params, tasks).items():
        # What convolutions see beyond the first row is zero, and so is the derivative.
        scale = max(np.abs(expected).max(), 1e-3)
        assert np.abs(out.grads[key] - expected).max() <= TIGHT * scale, key


@pytest.mark.parametrize("name", ["values", "classes"])
def test_batches_and_differences(name):
    learner = SNAILS[name]
    params, tasks = params_for(learner), tasks_for(learner)
    out, alone = learner.meta_gradient(params, tasks), one_by_one(learner, params, tasks)
    for key, grad in out.grads.items():
        assert_close(grad, alone.grads[key], TIGHT, key)
    np.testing.assert_allclose(out.task_loss, learner.evaluate(params, tasks).loss[:, 0], rtol=TIGHT)
    assert_loss_changes_as_gradient_says(learner, params, tasks)


def test_one_support_row():
    learner = SNAILS["classes"]
    params, tasks = params_for(learner), tasks_for(learner, n_rows=1)
    out = learner.meta_gradient(params, tasks)
    for key, expected in by_complex_step(learner, params, tasks).items():
        assert np.abs(out.grads[key] - expected).max() <= TIGHT * max(np.abs(expected).max(), 1e-3)
    W_bar = out.grads["convolution_1_2"]
    n = len(W_bar) // 2
    assert W_bar[:n].any()
    assert not W_bar[n:-1].any()  # nothing stands two rows before the query


def test_rows_begin_by_looking_for_their_like():
    learner = SNAILS["values"]
    params, d = learner.init(np.random.default_rng(0)), learner.key_width
    for name, W in params.items():
        if name.startswith("attention"):
            np.testing.assert_array_equal(W[:, :d], W[:, d : 2 * d])  # queries and keys
            assert W[:-1].std() == pytest.approx(1 / np.sqrt(len(W) - 1), rel=0.5)


def test_its_gradient_passes_the_checks_and_a_wrong_one_does_not():
    learner = SNAILS["values"]
    params, tasks = params_for(learner), tasks_for(learner)

    def of_keys(W, factor=1.0):
        out = learner.meta_gradient({**params, "attention_1": W}, tasks)
        return out.loss, factor * out.grads["attention_1"]

    assert check_gradient(of_keys, params["attention_1"]).passed
    assert not check_gradient(lambda W: of_keys(W, 1.0001), params["attention_1"]).passed


# --- layers -----------------------------------------------------------------------------------------

LAYERS = {
    "linear": (linear, lambda n: (n + 1, 3)),
    **{
        f"dilation {D}": (lambda a, W, D=D: dilated_convolution(a, W, K, D), lambda n: (2 * n + 1, 4))
        for D in (1, 2, K - 1, K, K + 1)
    },
    "attention": (lambda a, W: attention(a, W, K, 2), lambda n: (n + 1, 7)),
}


def layer(name, seed=0):
    rng = np.random.default_rng(seed)
    make, shape = LAYERS[name]
    a = rng.normal(size=(T, K + Q, 3))
    return make, a, rng.normal(size=shape(3)), rng


@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_way_back_is_that_of_a_complex_step(name):
    make, a, W, rng = layer(name)
    outputs, pull_back = make(a, W)
    bar = rng.normal(size=outputs.shape)
    for which, found in zip("aW", pull_back(bar), strict=True):
        array = {"a": a, "W": W}[which]
        expected = np.empty(array.size)
        for j, e in enumerate(np.eye(array.size)):
            moved = {"a": a + 0j, "W": W + 0j}
            moved[which] += 1j * H * e.reshape(array.shape)
            expected[j] = (make(**moved).outputs.imag * bar).sum() / H
        assert_close(found.ravel(), expected, TIGHT, which)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "linear"])
def test_a_later_row_changes_nothing_before_it(name):
    make, a, W, rng = layer(name)
    before = make(a, W).outputs
    for t in range(K + Q):
        moved = a.copy()
        moved[:, t] += rng.normal(size=(T, 3))
        changed = (make(moved, W).outputs != before).any((0, 2))
        assert changed[t]
        assert not changed[:t].any()
        if t >= K:  # a query row is seen by itself alone
            assert not changed[t + 1 :].any()


@pytest.mark.parametrize("distance", range(1, K + 3))
def test_rows_before_the_first_are_zeros_and_queries_are_the_row_behind_the_last(distance):
    a = 1.0 + np.arange(T * (K + Q) * 2).reshape(T, K + Q, 2)
    found = earlier(a, K, distance)
    for t in range(K + Q):
        source = min(t, K) - distance
        np.testing.assert_array_equal(found[:, t], a[:, source] if source >= 0 else 0 * a[:, t])
    # ⟨S a, b⟩ = ⟨a, Sᵀ b⟩
    b = np.random.default_rng(0).normal(size=a.shape)
    assert (found * b).sum() == pytest.approx((a * through_earlier(b, K, distance)).sum(), rel=TIGHT)


def test_attention_keeps_the_tails_of_its_softmax():
    """Where one row has none of the attention but 1e-14, derivatives have all digits of that."""
    a = np.array([[[1.0], [0.0], [1.0]]])  # two support rows and a query row
    q, k, v = 8.0, 4.0, 1.0
    outputs, pull_back = attention(a, np.array([[q, k, v], [0.0, 0.0, 0.5]]), 2, 1)
    bar = np.zeros_like(outputs)
    bar[0, 2, 1] = 1.0  # r of the query row
    # The query row has z = q k a_s: qk, 0 and qk. With p = e^{−qk} / (2 + e^{−qk}) for the row of zeros
    # r = v (1 − p) + 1/2, and dp/d(qk) = −p (1 − p).
    p = np.exp(-q * k) / (2 + np.exp(-q * k))
    W_bar = pull_back(bar)[1]
    expected = np.array([v * p * (1 - p) * k, v * p * (1 - p) * q, 1 - p])
    np.testing.assert_allclose(W_bar[0], expected, rtol=1e-13, atol=0)


# --- what it reads, and in which order ---------------------------------------------------------------


@every_snail
def test_every_support_row_and_its_target_counts(name):
    learner = SNAILS[name]
    params, tasks = params_for(learner), tasks_for(learner)
    x, y, query = tasks.support_x, tasks.support_y, tasks.query_x
    before = learner.predict(params, x, y, query)
    for t in range(K):
        other = y.copy()
        other[:, t] = (y[:, t] + 1) % N if y.ndim == 2 else y[:, t] + 1
        assert np.abs(learner.predict(params, x, other, query) - before).max() > 1e-6


@every_snail
def test_query_rows_do_not_know_of_each_other(name):
    learner = SNAILS[name]
    params, tasks = params_for(learner), tasks_for(learner)
    x, y, query = tasks.support_x, tasks.support_y, tasks.query_x
    together = learner.predict(params, x, y, query)
    for q in range(Q):
        assert_close(learner.predict(params, x, y, query[:, [q]]), together[:, [q]], TIGHT)


def test_the_order_of_rows_matters_only_where_they_are_read_as_they_come():
    for name, learner in SNAILS.items():
        params, tasks = params_for(learner), tasks_for(learner)
        x, y, query = tasks.support_x, tasks.support_y, tasks.query_x
        there = learner.predict(params, x, y, query)
        back = learner.predict(params, x[:, ::-1], y[:, ::-1], query)
        assert (there == back).all() == learner.shuffle, name


def test_the_order_is_as_good_as_random():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 4, 3))
    order = drawn(x).argsort(1)
    # Each of the 24 orders 4000/24 = 167 times, give or take 5 standard deviations of 12.7.
    counts = np.unique(order @ [64, 16, 4, 1], return_counts=True)[1]
    assert len(counts) == 24
    assert np.abs(counts - 4000 / 24).max() < 5 * 12.7
    # Also of numbers that are in order, and of drawings, which are zeros and ones.
    for rows in (np.sort(x[..., :1], axis=1), (rng.normal(size=(4000, 4, 100)) > 1.5).astype(float)):
        assert np.abs(drawn(rows).argsort(1).mean(0) - 1.5).max() < 0.1


def test_the_order_of_two_rows_is_another_one_in_other_company():
    rng = np.random.default_rng(0)
    pair = np.broadcast_to(rng.normal(size=(2, 3)), (400, 2, 3))
    keys = drawn(np.concatenate([pair, rng.normal(size=(400, 2, 3))], axis=1))
    assert 140 < (keys[:, 0] < keys[:, 1]).sum() < 260  # 200, give or take 6 standard deviations


def test_the_order_is_that_of_the_rounded_rows_in_any_precision():
    x = np.random.default_rng(0).normal(size=(3, 7, 2))
    x[0, 0] = 0.0
    expected = drawn(x)
    rounded = x.astype(np.float32)
    for same in (rounded, rounded.astype(float), np.asfortranarray(x), x.astype(">f8")):
        np.testing.assert_array_equal(drawn(same), expected)
    x[0, 0] = -0.0
    np.testing.assert_array_equal(drawn(x), expected)


def test_parameters_of_a_few_rows_serve_many():
    learner = SNAILS["classes"]
    params, tasks = params_for(learner), tasks_for(learner, n_rows=40)
    out = learner.predict(params, tasks.support_x, tasks.support_y, tasks.query_x)
    assert out.shape == (T, Q, N)


def test_it_learns_what_only_the_support_rows_tell():
    """A class is a random label of a point."""

    class Names:
        def sample(self, seed, iteration, n_tasks, *, start=0, split="train"):
            rng = np.random.default_rng([seed, iteration, start, len(split)])
            y = rng.permuted(np.tile([0, 1, 2], (n_tasks, 1)), axis=1)
            x = np.tile(np.eye(3), (n_tasks, 1, 1))
            return nm.TaskBatch(x, y, x, y)

    learner = SNAIL(nm.MLP([3, 3]), "cross_entropy", 3, 1, 2, filters=4, key_width=4, value_width=4)
    params = learner.init(np.random.default_rng(0))
    for step in nm.meta_train(learner, params, Names(), iterations=150, meta_batch=8, outer_lr=0.02):
        params = step.params
    assert nm.evaluate(learner, params, Names(), n_tasks=50).mean("accuracy")[0] == 1


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SNAIL(None), "needs a model"),
        (lambda: SNAIL(network(), ways=None), "the number of its outputs"),
        (lambda: SNAIL(network(), "mean"), "unknown loss 'mean'"),
        (lambda: SNAIL(network(), blocks=-1), "blocks must be a whole number of at least 0, got -1"),
        (lambda: SNAIL(network(), convolutions=0), "convolutions must be a whole number"),
        (lambda: SNAIL(network(), convolutions=33), "convolutions must be a whole number"),
        (lambda: SNAIL(network(), key_width=1.5), "key_width must be a whole number"),
        (lambda: SNAIL(network(), shuffle="no"), "shuffle must be"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@every_snail
def test_rows_that_do_not_fit_are_refused(name):
    learner = SNAILS[name]
    params, tasks = params_for(learner), tasks_for(learner)
    x, y, query = tasks.support_x, tasks.support_y, tasks.query_x
    with pytest.raises(ValueError, match=r"support_x must have shape \(T, rows, n_in\), got \(5, 2\)"):
        learner.predict(params, x[0], y, query)
    with pytest.raises(ValueError, match=r"must agree in T, K and n_in"):
        learner.predict(params, x, y[:, :-1], query)


def test_meta_parameters_that_do_not_fit_are_refused():
    learner = SNAILS["values"]
    params, tasks = params_for(learner), tasks_for(learner)
    with pytest.raises(ValueError, match=r"SNAIL must have 'attention_0', .*'output' too"):
        learner.meta_gradient(params["theta"], tasks)
    del params["output"]
    with pytest.raises(ValueError, match=r"SNAIL must have 'output' too"):
        learner.evaluate(params, tasks)
    params = params_for(learner)
    with pytest.raises(ValueError, match=r"attention_1 must have shape \(14, 8\), got \(3,\)"):
        learner.meta_gradient({**params, "attention_1": np.zeros(3)}, tasks)
