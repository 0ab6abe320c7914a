"""What the tests share: random problems, complex steps, and errors relative to what is compared.

Nothing here calls a hand-written second derivative of npmeta. What is differentiated here is
differentiated by complex step, Im f(x + ihv)/h, which has no subtraction and hence no rounding
error worth the name: with h = 1e-30 the truncation error h² is far below the last digit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

import npmeta as nm
from npmeta.network.activations import ACTIVATIONS
from npmeta.network.losses import LOSSES
from npmeta.network.losses import get as get_loss
from npmeta.verification.oracles import references as oracle

H = 1e-30

CLASS_LOSSES = [name for name, loss in LOSSES.items() if loss.targets == "classes"]
SMOOTH = [name for name, f in ACTIVATIONS.items() if not f.kinks]
DEPTHS = [(), (4,), (4, 3), (3, 4, 3)]


# --- comparison -----------------------------------------------------------------------------------


def relative_error(actual, expected) -> float:
    """max |actual − expected| / max |expected|: relative to the vector, since no entry of a sum of
    products is more accurate than the largest of its neighbours; 0 where both are zero."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"shapes {actual.shape} and {expected.shape}"
    difference = np.abs(actual - expected).max()
    scale = np.abs(expected).max()
    if difference == 0:
        return 0.0
    return float(difference / scale) if scale > 0 else np.inf


def assert_close(actual, expected, rtol: float, what: str = "") -> None:
    error = relative_error(actual, expected)
    # Written so that a NaN fails.
    assert error <= rtol, f"{what} relative error {error:.3g} exceeds {rtol:g}"


# --- random problems ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A network, a loss that suits its targets, parameters away from every kink, and tasks."""

    model: nm.MLP
    loss: str
    theta: np.ndarray
    tasks: nm.TaskBatch

    @property
    def risk(self) -> nm.Risk:
        return nm.Risk(self.model, self.loss)

    @property
    def support(self) -> tuple[np.ndarray, np.ndarray]:
        return self.tasks.support_x, self.tasks.support_y

    @property
    def query(self) -> tuple[np.ndarray, np.ndarray]:
        return self.tasks.query_x, self.tasks.query_y

    def astype(self, dtype) -> Problem:
        """The same problem with parameters in another precision (the data stays float64)."""
        return Problem(self.model, self.loss, self.theta.astype(dtype), self.tasks)

    def __repr__(self) -> str:
        return f"Problem({self.model!r}, {self.loss!r}, {self.tasks!r})"


def targets(loss: str, rng: np.random.Generator, shape: tuple[int, int], n_out: int) -> np.ndarray:
    """Targets that the loss takes: numbers, labels (soft where allowed), shares, or counts."""
    kind = get_loss(loss).targets
    if kind == "values":
        return rng.normal(size=(*shape, n_out))
    if kind == "binary":
        y = rng.uniform(size=(*shape, n_out))
        return np.where(rng.uniform(size=y.shape) < 0.7, np.round(y), y)
    if kind == "counts":
        return rng.poisson(1.5, size=(*shape, n_out)).astype(float)
    assert kind == "classes"
    if get_loss(loss).soft and rng.uniform() < 0.5:
        return rng.dirichlet(np.ones(n_out), size=shape)
    return rng.integers(n_out, size=shape)


def problem(
    loss: str,
    activation="tanh",
    hidden: tuple[int, ...] = (4, 3),
    *,
    seed: int = 0,
    n_in: int = 2,
    n_out: int = 3,
    T: int = 3,
    K: int = 5,
    Q: int = 6,
) -> Problem:
    """A random problem; support and query differ in rows, and no two of the sizes are equal."""
    rng = np.random.default_rng([seed, len(hidden)])
    model = nm.MLP([n_in, *hidden, n_out], activation)
    # Biases that are not zero keep pre-activations of dead rows off the kink at 0.
    theta = 0.8 * model.init(rng) + 0.2 * rng.normal(size=model.n_params)
    n_all = K + Q
    x = rng.normal(size=(T, n_all, n_in))
    y = targets(loss, rng, (T, n_all), n_out)
    return Problem(model, loss, theta, nm.TaskBatch(x[:, :K], y[:, :K], x[:, K:], y[:, K:]))


@st.composite
def problems(draw, losses=tuple(LOSSES), activations=tuple(ACTIVATIONS)) -> Problem:
    """Any network of 0 to 3 hidden layers, with one activation or one a layer, and any sizes."""
    hidden = tuple(draw(st.lists(st.integers(1, 5), max_size=3)))
    one = st.sampled_from(activations)
    activation = draw(one | st.lists(one, min_size=len(hidden), max_size=len(hidden)))
    loss = draw(st.sampled_from(losses))
    return problem(
        loss,
        activation,
        hidden,
        seed=draw(st.integers(0, 2**32 - 1)),
        n_in=draw(st.integers(1, 4)),
        n_out=draw(st.integers(2 if loss in CLASS_LOSSES else 1, 4)),
        T=draw(st.integers(1, 4)),
        K=draw(st.integers(1, 6)),
        Q=draw(st.integers(1, 6)),
    )


# --- step sizes -----------------------------------------------------------------------------------

KINDS = ["number", "layer", "step", "step_and_layer", "parameter", "step_and_parameter"]


def step_sizes(kind: str, model: nm.MLP, S: int, rng: np.random.Generator, size: float = 0.1):
    """Step sizes of a kind, all different, about ``size``."""
    rows, L, P = max(S, 1), model.n_layers, model.n_params
    shape = {
        "number": (),
        "layer": (1, L),
        "step": (rows, 1),
        "step_and_layer": (rows, L),
        "parameter": (1, P),  # (P,) would be one per step where S = P
        "step_and_parameter": (rows, P),
    }[kind]
    return size * rng.uniform(0.5, 1.5, size=shape)


def per_step_and_parameter(alpha: np.ndarray, kind: str, model: nm.MLP, S: int) -> np.ndarray:
    """Step sizes of a kind written out, ``(..., S, P)``, for any leading axes."""
    rows, P = np.asarray(alpha), model.n_params
    if kind == "number":
        rows = rows[..., None, None]
    if kind in ("layer", "step_and_layer"):
        rows = np.repeat(rows, model.layer_sizes, axis=-1)
    lead = rows.shape[:-2]
    return np.broadcast_to(rows[..., :S, :] if rows.shape[-2] > 1 else rows, (*lead, S, P))


# --- references that use first-order passes only --------------------------------------------------


def complex_step_hvp(risk: nm.Risk, phi, batch, v, h: float = H) -> np.ndarray:
    """Hessian-vector products as Im ∇L(φ + ihv)/h, ``(T, P)``."""
    return risk.linearize(phi + 1j * h * v, *batch).grad.imag / h


def complex_step_meta_gradient(
    p: Problem, alpha, S: int, decay: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """d(meta-loss)/dθ and d(meta-loss)/dα, every entry by a complex step of its own."""
    maml = nm.MAML(p.model, p.loss, alpha, S, inner_weight_decay=decay)
    grads = oracle.complex_step(maml, {"theta": p.theta, "inner_lr": alpha}, p.tasks)
    return grads["theta"], grads["inner_lr"]


def adjoint_meta_gradient(p: Problem, alpha, S: int, decay: float = 0.0) -> np.ndarray:
    """The adjoint recursion with Hessian products by complex step of the gradient."""
    maml = nm.MAML(p.model, p.loss, alpha, S, inner_weight_decay=decay)
    return oracle.meta_gradient(maml, p.theta, p.tasks, trials=0).grad


def stays_small(p: Problem, alpha, S: int, decay: float = 0.0) -> bool:
    """Whether the inner loop converges or at least goes nowhere: a loop that has run away amplifies
    rounding errors with everything else, and two right answers need not agree."""
    with np.errstate(all="ignore"):
        scores = nm.MAML(p.model, p.loss, alpha, S, inner_weight_decay=decay).evaluate(p.theta, p.tasks)
    return bool((np.abs(scores.loss) < 100).all())


def size_of_terms(p: Problem, alpha, S: int, decay: float = 0.0) -> float:
    """The largest δ_L of the query pass. Every entry of a meta-gradient adds up multiples of these, so
    what is left where they cancel exactly (a network whose units are all dead) is rounding of them."""
    maml = nm.MAML(p.model, p.loss, alpha, S, inner_weight_decay=decay)
    outputs = maml.predict(p.theta, *p.support, p.tasks.query_x)
    y = LOSSES[p.loss].prepare(p.tasks.query_y, outputs.shape[-1], outputs.dtype)
    return float(np.abs(LOSSES[p.loss](outputs, y).gradient).max())


def activations_and_losses() -> Iterator[tuple[str, str]]:
    for activation in ACTIVATIONS:
        for loss in LOSSES:
            yield activation, loss


def central_difference(f: Callable[[np.ndarray], float], x: np.ndarray, v: np.ndarray, h: float):
    """(f(x + hv) − f(x − hv)) / 2h."""
    return (f(x + h * v) - f(x - h * v)) / (2 * h)
