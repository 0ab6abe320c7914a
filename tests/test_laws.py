"""The laws of points, cotangents and directions, for every way of holding a layer and every part.

Each law compares an operation of :mod:`npmeta.network.spaces` with arithmetic on plain arrays
``(T, P)``, or says of the acts of layers that they are linear and each other's adjoints. It runs at the
beginning, where tasks share what they can, and after three inner steps with decay. A new way of holding
parameters is one more line of FORMS, a further part one of NETWORKS.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest

import npmeta as nm
from npmeta.bilevel.vector_objectives import Quadratic
from npmeta.network import factored, parts, spaces, weights
from npmeta.network.spaces import dense, flatten
from tests.helpers import assert_close

# A few hundred products and sums of numbers of order 1, each rounded by 1e-16.
TIGHT = 1e-12
T = 3

NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {"activation": "tanh"},
    "batch": {"activation": "tanh", "norm": "batch"},
    "layer": {"activation": "tanh", "norm": "layer"},
    "batch, stays": {"activation": "tanh", "norm": "batch", "adapt_norm": False},
    "layer, two sets": {"activation": "tanh", "norm": "layer", "adapt_norm": False, "norm_sets": 2},
    "batch, four sets": {"activation": "tanh", "norm": "batch", "adapt_norm": False, "norm_sets": 4},
    "mixture": {"structure": nm.Structure(("tanh", "sin"), gates=False)},
    "gates": {"structure": nm.Structure("tanh")},
    "mixture and gates": {"structure": nm.Structure(("tanh", "sin"))},
    "mixture and gates, stay": {"structure": nm.Structure(("tanh", "sin"), adapt=False)},
}
#: One point for all tasks, which becomes dense or factored, in all layers or some; and one for each.
FORMS = {
    "shared": None,
    "factored": ("factored",) * 3,
    "mixed": ("factored", "dense", "factored"),
    "own": "own",
}


class State(NamedTuple):
    """A point, the losses of two batches there, and step sizes."""

    objective: Any
    point: Any
    batches: Any
    lin: Any
    other: Any
    alpha: np.ndarray  # (L,)
    taken: int  # inner steps

    @property
    def scales(self):
        return self.objective.scales(self.alpha)

    @property
    def written(self) -> np.ndarray:
        """α for every parameter, by the names of arrays."""
        return np.repeat(self.alpha, self.objective.block_sizes) * moves(self.objective)

    def gradient(self) -> np.ndarray:
        return dense(self.lin.gradient)

    def cotangents(self):
        """One with the factors of one gradient, and one with those of Hessian products as well."""
        first = spaces.cotangent(self.point, self.other.gradient)
        yield first
        yield spaces.minus(first, self.lin.product(spaces.scaled(first, self.scales)))


def moves(objective) -> np.ndarray:
    """1 for what inner steps move, by the names of arrays."""
    moved, model = np.ones(objective.n_params), getattr(objective, "model", None)
    if model is not None and not (model.structure.adapt if model.structure else model.adapt_norm):
        for name, place in model.places.items():
            moved[place] = name.endswith(("weight", "bias"))
    return moved


def full(values: np.ndarray) -> np.ndarray:
    return np.broadcast_to(values, (T, values.shape[-1]))


@cache
def made(network: str, form: str, taken: int) -> State:
    rng = np.random.default_rng(0)
    if network == "vector":
        objective: Any = Quadratic(5)
        roots = rng.normal(size=(2, T, 5, 5))
        batches = [(A @ A.swapaxes(1, 2), rng.normal(size=(T, 5))) for A in roots]
        theta, forms = rng.normal(size=5), None
    else:
        model = nm.MLP([3, 4, 3, 2], **NETWORKS[network])
        objective, forms = nm.Risk(model, "mse"), FORMS[form]
        batches = [(rng.normal(size=(T, n, 3)), rng.normal(size=(T, n, 2))) for n in (4, 5)]
        theta = model.init(rng) + 0.2 * rng.normal(size=model.n_params)
    if form == "own":
        theta, forms = theta + 0.1 * rng.normal(size=(T, theta.size)), None
    support, query = (objective.prepare(x, y, np.dtype(np.float64)) for x, y in batches)
    alpha = rng.uniform(0.1, 0.3, size=len(objective.block_sizes))
    point = objective.hold(theta, forms)
    for s in range(taken):
        gradient = objective.at(point, support).gradient
        shrinks = objective.scales(0.1 * s * alpha)
        point = spaces.descend(point, gradient, objective.scales(alpha), shrinks)
    at = [objective.at(point, batch) for batch in (support, query)]
    return State(objective, point, (support, query), *at, alpha, taken)


# --- the laws -------------------------------------------------------------------------------------


def what_is_held_is_the_numbers(s: State) -> None:
    objective, phi = s.objective, flatten(s.point)
    np.testing.assert_array_equal(flatten(objective.hold(phi)), phi)


def a_point_held_in_another_way_is_the_same_point(s: State) -> None:
    phi = full(flatten(s.point))
    if isinstance(s.objective, nm.Risk):
        phi = s.objective.model.begun_anew(phi, s.taken)
    for batch, lin in zip(s.batches, (s.lin, s.other), strict=True):
        again = s.objective.at(s.objective.hold(phi), batch)
        assert_close(again.value, lin.value, TIGHT)


def descent_is_that_of_arrays(s: State) -> None:
    phi, g = full(flatten(s.point)), s.gradient()
    for decay in (0.0, 0.3):
        shrinks = s.objective.scales(decay * s.alpha) if decay else [None] * len(s.alpha)
        after = spaces.descend(s.point, s.lin.gradient, s.scales, shrinks)
        assert_close(flatten(after), (1 - decay * s.written) * phi - s.written * g, TIGHT)


def a_step_size_of_zero_moves_nothing(s: State) -> None:
    zero = s.objective.scales(0 * s.alpha)
    after = spaces.descend(s.point, s.lin.gradient, zero, zero)
    assert_close(flatten(after), full(flatten(s.point)), 1e-15)
    for lam in s.cotangents():
        assert not flatten(spaces.scaled(lam, zero)).any()


def what_stays_has_a_cotangent_and_no_direction(s: State) -> None:
    stays = moves(s.objective) == 0
    for lam in s.cotangents():
        assert flatten(lam)[:, stays].any() or not stays.any()
        assert not flatten(spaces.scaled(lam, s.scales))[:, stays].any()


def a_cotangent_is_the_gradient(s: State) -> None:
    lam = spaces.cotangent(s.point, s.lin.gradient)
    assert_close(flatten(lam), s.gradient(), TIGHT)


def cotangents_are_a_linear_space(s: State) -> None:
    g = s.gradient()
    for lam in s.cotangents():
        array = flatten(lam)
        assert_close(flatten(spaces.times(0.7, lam)), 0.7 * array, TIGHT)
        assert_close(flatten(spaces.plus(lam, 0.7, s.lin.gradient)), array + 0.7 * g, TIGHT)
        assert_close(flatten(spaces.minus(lam, s.lin.gradient)), array - g, TIGHT)
        shrunk = spaces.minus(lam, s.lin.gradient, s.objective.scales(0.3 * s.alpha))
        assert_close(flatten(shrunk), (1 - 0.3 * s.written) * array - g, TIGHT)
        assert_close(flatten(spaces.scaled(lam, s.scales)), s.written * array, TIGHT)


def pairing_is_a_sum_of_products(s: State) -> None:
    starts = np.cumsum([0, *s.objective.block_sizes[:-1]])
    for lam in s.cotangents():
        products = flatten(lam) * s.written * s.gradient()
        pairs = spaces.paired(lam, s.lin.gradient, s.scales)
        assert_close(np.stack(pairs, 1), np.add.reduceat(products, starts, axis=1), TIGHT)


def the_mean_over_tasks_is_a_mean(s: State) -> None:
    for lam in s.cotangents():
        assert_close(spaces.task_mean(lam), flatten(lam).mean(0), TIGHT)


def hessian_products_are_linear_and_symmetric(s: State) -> None:
    u, v = s.cotangents()
    Hu, Hv = (s.lin.product(spaces.scaled(lam, s.scales)) for lam in (u, v))
    both = spaces.plus(spaces.times(0.7, u), 1.0, s.lin.gradient)
    g = spaces.cotangent(s.point, s.lin.gradient)
    Hg = s.lin.product(spaces.scaled(g, s.scales))
    H_both = s.lin.product(spaces.scaled(both, s.scales))
    assert_close(dense(H_both), 0.7 * dense(Hu) + dense(Hg), TIGHT)
    left, right = (sum(spaces.paired(*pair, s.scales)) for pair in ((u, Hv), (v, Hu)))
    assert_close(left, right, TIGHT)


def acts_are_adjoints_and_linear(s: State) -> None:
    """⟨h W, d⟩ = ⟨h, d Wᵀ⟩ and h W + b = h W + 0 W + b, for points and for directions; a scaled
    direction acts scaled."""
    if not isinstance(s.objective, nm.Risk):
        return
    rng = np.random.default_rng(1)
    u, v = (spaces.scaled(lam, s.scales) for lam in s.cotangents())
    for layers in (s.point, u, v):
        for l, (layer, (W, b, *_)) in enumerate(
            zip(layers, s.objective.model.unpack(full(flatten(layers))), strict=True)
        ):
            n_in, n_out = s.objective.model.widths[l : l + 2]
            h, d = rng.normal(size=(T, 6, n_in)), rng.normal(size=(T, 6, n_out))
            assert_close(layer.act_linear(h), h @ W, TIGHT)
            assert_close(layer.act(h), h @ W + b[:, None], TIGHT)
            assert_close((layer.act_linear(h) * d).sum(), (h * layer.act_transposed(d)).sum(), TIGHT)
            if layers is not s.point:
                assert_close(layer.scaled(0.7).act(h), 0.7 * layer.act(h), TIGHT)


def nobody_changes_his_arguments(s: State) -> None:
    u, v = s.cotangents()
    held = [flatten(s.point), s.gradient(), flatten(u), flatten(v)]
    before = [array.copy() for array in held]
    spaces.descend(s.point, s.lin.gradient, s.scales, s.scales)
    spaces.plus(spaces.minus(u, s.lin.gradient, s.scales), 0.5, s.other.gradient)
    spaces.task_mean(spaces.times(2.0, v))
    after = [flatten(s.point), s.gradient(), flatten(u), flatten(v)]
    for one, array, again in zip(before, held, after, strict=True):
        np.testing.assert_array_equal(array, one)
        np.testing.assert_array_equal(again, one)


LAWS = [
    what_is_held_is_the_numbers,
    a_point_held_in_another_way_is_the_same_point,
    descent_is_that_of_arrays,
    a_step_size_of_zero_moves_nothing,
    what_stays_has_a_cotangent_and_no_direction,
    a_cotangent_is_the_gradient,
    cotangents_are_a_linear_space,
    pairing_is_a_sum_of_products,
    the_mean_over_tasks_is_a_mean,
    hessian_products_are_linear_and_symmetric,
    acts_are_adjoints_and_linear,
    nobody_changes_his_arguments,
]


def check(law, network: str, build=made) -> None:
    """A law, for one network held in every way, at the beginning and after three steps."""
    for form in FORMS if network in NETWORKS else ("shared", "own"):
        for taken in (0, 3):
            try:
                law(build(network, form, taken))
            except (AssertionError, ValueError) as error:
                raise AssertionError(f"{form}, after {taken} steps: {error}") from error


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("network", [*NETWORKS, "vector"])
def test_law(law, network):
    check(law, network)


@pytest.mark.parametrize("step", range(4))
def test_gather_and_scatter_are_adjoints(step):
    rng = np.random.default_rng(step)
    sets = parts.Sets(rng.normal(size=(T, 9)), 3, step)
    u, v = rng.normal(size=(T, 9)), rng.normal(size=(T, 3))
    np.testing.assert_array_equal(sets.gather(u), u[:, 3 * min(step, 2) :][:, :3])
    assert_close((sets.gather(u) * v).sum(), (u * sets.scatter(v)).sum(), 1e-15)


def test_step_sizes_by_parameter():
    """Where every layer is multiplied out: descent and direction, entry by entry."""
    for network in NETWORKS:
        s = made(network, "own", 2)
        alpha = np.random.default_rng(1).uniform(0.1, 0.3, size=s.objective.n_params)
        scales, written = s.objective.scales(alpha), alpha * moves(s.objective)
        after = spaces.descend(s.point, s.lin.gradient, scales, scales)
        expected = (1 - written) * flatten(s.point) - written * s.gradient()
        assert_close(flatten(after), expected, TIGHT, network)
        for lam in s.cotangents():
            assert_close(flatten(spaces.scaled(lam, scales)), written * flatten(lam), TIGHT, network)


# --- the laws can be broken ------------------------------------------------------------------------


def _without_shrinking(cls):
    descend = cls.descend
    return lambda self, gradient, scale=None, shrink=None: descend(self, gradient, scale)


def _of_the_first_set(self, values):
    return values[..., : self.n]


BROKEN = {
    "a bias that is not scaled": (
        weights.Dense,
        "scaled",
        lambda self, scale: weights.Dense(weights.each(scale, 2)[0] * self.W, self.b),
    ),
    "a bias left out": (weights.Shared, "act", weights.Shared.act_linear),
    "a matrix that is not transposed": (
        weights.Dense,
        "act_transposed",
        lambda self, d: np.zeros((*d.shape[:-1], self.W.shape[1])) + d.sum(-1, keepdims=True),
    ),
    "no decay, dense": (weights.Dense, "descend", _without_shrinking(weights.Dense)),
    "no decay, factored": (factored.Factored, "times", lambda self, factor: self),
    "no decay, vector": (weights.Vector, "descend", _without_shrinking(weights.Vector)),
    "terms in the wrong direction": (
        factored.FactoredInput,
        "plus",
        lambda self, terms, factor, plus=factored.FactoredInput.plus: plus(self, terms, abs(factor)),
    ),
    "a mean over all but one": (weights.Vector, "task_mean", lambda self: self.values[1:].mean(0)),
    "a sum in place of a mean": (weights.Dense, "task_mean", lambda self: self.flat().sum(0)),
    "moves what stays": (nm.MLP, "adapts_all", True),
    "pairs what stays": (
        parts.Parts,
        "dot",
        lambda self, gradient, scale=1.0: sum(
            own.dot(other, scale[0]) for own, other in zip(self.parts, gradient.parts, strict=True)
        ),
    ),
    "every step with the first set": (parts.Sets, "gather", _of_the_first_set),
    "a descent in place": (
        weights.Vector,
        "descend",
        lambda self, gradient, scale=None, shrink=None: (
            np.subtract(self.values, gradient.values, out=gradient.values) is None or self
        ),
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_fault_breaks_a_law(fault, monkeypatch):
    owner, name, wrong = BROKEN[fault]
    monkeypatch.setattr(owner, name, wrong)
    for network in [*NETWORKS, "vector"]:
        for law in LAWS:
            try:
                check(law, network, made.__wrapped__)
            except AssertionError:
                return
    pytest.fail("every law held")
