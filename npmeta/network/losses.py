r"""Losses as functions of the network's outputs: value, gradient and Hessian product together.

Every loss is a mean over the rows of a task, so doubling the rows does not change the step size
that suits it. Calling one, ``loss(o, y)``, gives the three things the passes need:

* the value, ``(T,)``;
* its gradient :math:`\delta_L = \partial\ell/\partial o`, ``(T, rows, n_L)``;
* a function :math:`u \mapsto (\partial^2\ell/\partial o^2)\,u` on ``(T, rows, n_L)``.

Losses of *values* (mse, huber, binary_cross_entropy, poisson_nll) compare each output with a number
and are means over rows **and** outputs. Losses of *classes* (cross_entropy, hinge, squared_hinge)
compare a row of outputs with one class and are means over rows only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array, DType, as_array, as_dtype, as_number, lookup_made
from npmeta.network.softmax import from_largest


class LossAt(NamedTuple):
    """A loss at one point: its value, gradient, and the product with its Hessian."""

    value: Array
    gradient: Array
    hessian_product: Callable[[Array], Array]


@dataclass(frozen=True)
class Loss:
    """One loss.

    Attributes
    ----------
    name : str
        What it is called in configurations and files: :func:`~npmeta.network.losses.get` finds one of
        ours by it, its parameter included.
    at : callable
        ``(o, y) -> LossAt``; ``o`` and ``y`` are ``(T, rows, n_L)``.
    targets : {"values", "classes", "binary", "counts"}
        What ``y`` holds: numbers of any size; a distribution over classes in each row (integer
        labels become one-hot rows in :meth:`prepare`); numbers in [0, 1]; numbers of at least 0.
    soft : bool
        Whether rows of ``y`` may be soft labels (only where ``targets`` is "classes").
    """

    name: str
    at: Callable[[Array, Array], LossAt]
    targets: str
    soft: bool = False

    def __reduce__(self) -> str | tuple[object, ...]:
        """Pickle one of ours by its name, so that objectives can be sent to other processes."""
        return (get, (self.name,)) if self.is_ours else object.__reduce__(self)

    @property
    def is_ours(self) -> bool:
        """Whether :func:`~npmeta.network.losses.get` finds it by its name."""
        try:
            return get(self.name) is self
        except ValueError:
            return False

    def __call__(self, o: Array, y: Array) -> LossAt:
        return self.at(o, y)

    def prepare(self, y: ArrayLike, n_out: int, dtype: DType, name: str = "y") -> Array:
        """Targets as ``(T, rows, n_out)`` in ``dtype``, checked.

        Parameters
        ----------
        y : array_like
            ``(T, rows, n_out)``; or ``(T, rows)``, which means integer labels in ``0..n_out-1`` for
            a loss of classes, and one number a row where ``n_out`` is 1.
        n_out : int
            Number of outputs of the network.
        dtype : numpy.dtype
            That of the parameters.
        name : str
            What error messages call ``y``.

        Raises
        ------
        ValueError
            If the shape does not fit, a value is not finite, or a label is out of range.
        """
        array = as_array(y, name, "biuf")
        if array.size == 0:
            raise ValueError(f"{name} must hold at least one task and one row, got {array.shape}")
        if self.targets == "classes" and array.ndim == 2:
            return _one_hot(array, n_out, dtype, name)
        if array.ndim == 2 and n_out == 1:
            array = array[..., None]
        if array.ndim != 3 or array.shape[-1] != n_out:
            labels = " or integer labels (T, rows)" if self.targets == "classes" else ""
            raise ValueError(
                f"{name} must have shape (T, rows, {n_out}){labels} for {self.name} with {n_out} "
                f"output{'s' * (n_out != 1)}, got {array.shape}"
            )
        array = as_dtype(array, dtype, name)
        self._check_range(array, name)
        # The loss takes soft labels for a distribution: its gradient is that of its value only then.
        return array / array.sum(-1, keepdims=True) if self.targets == "classes" else array

    def _check_range(self, y: Array, name: str) -> None:
        low, high = y.real.min(), y.real.max()
        if self.targets == "binary" and (low < 0 or high > 1):
            raise ValueError(f"{name} must lie in [0, 1] for {self.name}, got {low} to {high}")
        if self.targets == "counts" and low < 0:
            raise ValueError(f"{name} must not be negative for {self.name}, got {low}")
        if self.targets != "classes":
            return
        # Soft labels from float32 arithmetic sum to 1 within about n_out * 1e-7.
        if low < 0 or np.abs(y.sum(-1) - 1).max() > 1e-4:
            raise ValueError(
                f"rows of {name} must be one-hot or soft labels for {self.name} (not negative, "
                f"summing to 1)"
            )
        if not self.soft and not np.isin(y, (0, 1)).all():
            raise ValueError(f"rows of {name} must be one-hot for {self.name}, got soft labels")


def _one_hot(labels: Array, n_out: int, dtype: DType, name: str) -> Array:
    """Labels ``(T, rows)`` as rows of the identity, ``(T, rows, n_out)``."""
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{name} of shape {labels.shape} must hold integer labels, got {labels.dtype}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= n_out:
        raise ValueError(
            f"labels in {name} must lie in 0..{n_out - 1} for a network with {n_out} outputs, "
            f"got {low if low < 0 else high}"
        )
    return (labels[..., None] == np.arange(n_out)).astype(dtype)


def accuracy(loss: Loss, o: Array, y: Array) -> Array | None:
    """Share of the rows a task gets right, ``(T,)``; None where the targets are numbers.

    For a loss of classes the largest output wins (against the largest entry of a soft label); for
    binary_cross_entropy every output is a decision of its own, o > 0 against y > 1/2. NaN for a task
    with an output that is not finite: what has diverged has decided nothing.
    """
    if loss.targets == "classes":
        right = o.real.argmax(-1) == y.real.argmax(-1)
    elif loss.targets == "binary":
        right = ((o.real > 0) == (y.real > 0.5)).mean(-1)
    else:
        return None
    return np.where(np.isfinite(o).all((-2, -1)), right.mean(-1), np.nan)


# --- losses of values: means over rows and outputs -----------------------------------------------


def _mean(terms: Array) -> Array:
    n_tasks, rows, n_out = terms.shape
    return terms.reshape(n_tasks, rows * n_out).mean(-1)


def _size(o: Array) -> int:
    return int(o.shape[-2] * o.shape[-1])


def _mse(o: Array, y: Array) -> LossAt:
    """Mean of (o − y)²."""
    r, n = o - y, _size(o)
    return LossAt(_mean(r * r), r * (2 / n), lambda u: u * (2 / n))


def huber(delta: float = 1.0) -> Loss:
    """Mean of ½ r² where r = o − y lies in [−δ, δ], of δ (abs(r) − ½ δ) elsewhere (Huber 1964).

    The second derivative is 1 within δ (the border included) and 0 beyond. Called "huber" or
    "huber(0.1)".
    """
    return _huber(as_number(delta, "delta", "a positive number", lambda d: d > 0))


@cache  # one of each, so that it is found again by its name
def _huber(delta: float) -> Loss:
    def at(o: Array, y: Array) -> LossAt:
        r, n = o - y, _size(o)
        inside = (r.real <= delta) & (r.real >= -delta)
        clipped = np.where(inside, r, np.where(r.real > 0, delta, -delta)).astype(r.dtype)
        # clipped · (r − clipped / 2) is ½ r² inside and δ (|r| − ½ δ) outside.
        return LossAt(
            _mean(clipped * (r - clipped / 2)), clipped / n, lambda u: np.where(inside, u, 0) / n
        )

    return Loss("huber" if delta == 1 else f"huber({delta})", at, "values")


class DecisionsAt(NamedTuple):
    """Cross-entropy of decisions, one by one: the value, and its first two derivatives by o."""

    value: Array
    gradient: Array
    curvature: Array


def decisions(o: Array, y: Array) -> DecisionsAt:
    r"""−y log σ(o) − (1 − y) log(1 − σ(o)), with the tails of σ on both sides.

    .. math:: e = \exp(-|o|), \qquad \ell = o\,([o > 0] - y) + \log(1 + e), \qquad
              \ell' = \sigma(o) - y, \qquad \ell'' = \frac{e}{(1 + e)^2} .

    With (1 + e) σ(o) = 1 where o > 0 and e elsewhere, σ(o) − y is formed over the denominator 1 + e:
    for y = 1 and o > 0 exactly −e is left, where σ(o) itself may be rounded to 1.
    """
    positive = o.real > 0
    e = np.exp(np.where(positive, -o, o))
    total = 1 + e
    return DecisionsAt(
        o * (positive - y) + np.log1p(e),
        ((np.where(positive, np.ones_like(o), e) - y) - y * e) / total,
        e / total**2,
    )


def _binary_cross_entropy(o: Array, y: Array) -> LossAt:
    """Mean of −y log σ(o) − (1 − y) log(1 − σ(o))."""
    n = _size(o)
    value, gradient, curvature = decisions(o, y)
    curvature = curvature / n
    return LossAt(_mean(value), gradient / n, lambda u: curvature * u)


#: Beyond this log-rate the Poisson loss continues exp(o) by its second-order Taylor polynomial.
MAX_LOG_RATE = 50.0


def _poisson_nll(o: Array, y: Array) -> LossAt:
    """Mean of exp(o) − y o: o is the log of the rate; the constant log y! is left out.

    Above o = 50, far beyond any count, exp(o) is continued by its second-order Taylor polynomial
    about 50, so that value, gradient and curvature stay continuous, and finite at o = 1e4 in
    float32.
    """
    n = _size(o)
    c = np.minimum(o, MAX_LOG_RATE)
    rate, over = np.exp(c), o - c
    return LossAt(
        _mean(rate * (1 + over + over * over / 2) - y * o),
        (rate * (1 + over) - y) / n,
        lambda u: rate * u / n,
    )


# --- losses of classes: means over rows ----------------------------------------------------------


def _cross_entropy(o: Array, y: Array) -> LossAt:
    r"""Mean over rows of −Σ_c y_c log p_c, with p = softmax(o) and Σ_c y_c = 1.

    From the largest output m of a row, with :math:`e_c = \exp(o_c - o_m)` and the sum of the others,
    :math:`r = \sum_{k \ne m} e_k`, so that :math:`p = e / (1 + r)`:

    .. math:: \ell = \log(1 + r) - \sum_c y_c (o_c - o_m), \qquad
              (1 + r)\, \nabla \ell = (e - y) - r y, \qquad
              \nabla^2 \ell\, u = p \circ (w - \langle p, w \rangle), \quad w = u - u_m .

    For a right class m with a probability of nearly 1, e − y and w are exactly 0 there, and what is
    left are sums of the other classes' probabilities: p − y would be a difference of two ones.
    """
    rows = o.shape[-2]
    largest, shifted, e, others = from_largest(o)
    total = 1 + others
    value = (np.log1p(others[..., 0]) - (y * shifted).sum(-1)).mean(-1)
    p = e / total

    def hessian_product(u: Array) -> Array:
        w = u - u.take(largest)
        return (w - (p * w).sum(-1, keepdims=True)) * (p / rows)

    return LossAt(value, ((e - y) - y * others) / (total * rows), hessian_product)


def _margins(o: Array, y: Array) -> tuple[Array, Array]:
    """m_c = 1 + o_c − o_y for the wrong classes c, 0 for the right one; and where m_c > 0."""
    m = (1 - y) * (1 + (o - (o * y).sum(-1, keepdims=True)))  # large outputs cancel before the 1
    return m, (m.real > 0).astype(o.dtype)


def _through_margins(g: Array, y: Array) -> Array:
    """The transpose of u ↦ u_c − u_y (c wrong), applied to g that is zero at the right class."""
    return g - y * g.sum(-1, keepdims=True)


def _hinge(o: Array, y: Array) -> LossAt:
    """Mean over rows of Σ_{c≠y} max(0, 1 + o_c − o_y) (Weston & Watkins 1999).

    At a margin of exactly 0 the gradient is 0.
    """
    rows = o.shape[-2]
    m, active = _margins(o, y)
    return LossAt(
        (m * active).sum(-1).mean(-1),
        _through_margins(active, y) / rows,
        lambda u: np.zeros_like(u),
    )


def _squared_hinge(o: Array, y: Array) -> LossAt:
    """Mean over rows of Σ_{c≠y} max(0, 1 + o_c − o_y)²; the second derivative at margin 0 is 0."""
    rows = o.shape[-2]
    m, active = _margins(o, y)

    def hessian_product(u: Array) -> Array:
        m_dot = active * (u - (u * y).sum(-1, keepdims=True))
        return _through_margins(m_dot * (2 / rows), y)

    return LossAt(
        (m * m * active).sum(-1).mean(-1),
        _through_margins(m * active, y) * (2 / rows),
        hessian_product,
    )


#: Every loss, by the name configurations use.
LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("mse", _mse, "values"),
        huber(),
        Loss("cross_entropy", _cross_entropy, "classes", soft=True),
        Loss("binary_cross_entropy", _binary_cross_entropy, "binary"),
        Loss("hinge", _hinge, "classes"),
        Loss("squared_hinge", _squared_hinge, "classes"),
        Loss("poisson_nll", _poisson_nll, "counts"),
    )
}


def get(loss: str | Loss) -> Loss:
    """The loss of that name; a :class:`Loss` of your own passes through.

    Raises
    ------
    ValueError
        If the name is unknown; the message gives the nearest known one.
    """
    if isinstance(loss, Loss):
        return loss
    return lookup_made(loss, LOSSES, {"huber": huber}, "loss")
