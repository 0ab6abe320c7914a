r"""Networks that are normalised otherwise than they should be, with the differential of both passes.

With any mean M, and :math:`M^\top` its adjoint (means may be of some rows and for others),

.. math:: \mu = M z, \qquad s^2 = k M (z - \mu)^2 + \epsilon', \qquad \sigma = s + \epsilon'', \qquad
          \hat z = (z - \mu)/\sigma, \qquad \dot\sigma = \kappa M(\hat z \circ \dot z),
          \quad \kappa = k\sigma/s,

in place of :mod:`npmeta.network.normalisation`'s, where M is the mean over the rows of a task or
over the units of a row, k = 1 and ε″ = 0. With statistics that are constants there is no M in the
differential.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from npmeta._support.validation import Array
from npmeta.bilevel.objective import Risk
from npmeta.network.activations import Activation
from npmeta.network.losses import Loss, LossAt
from npmeta.network.mlp import MLP
from npmeta.network.normalisation import EPS, Normalised, Standardised
from npmeta.network.parts import Parts, PreActivation
from npmeta.network.passes import forward
from npmeta.network.weights import Layer, OuterSum

#: The mean and the variance, each ``(1 or T, 1 or rows, 1 or n)``.
MeanAndVariance = tuple[Array, Array]
#: What each normalisation takes the mean over.
AXES = {"batch": (1,), "layer": (2,), "rows and units": (1, 2), "all tasks": (0, 1)}


@dataclass(frozen=True)
class NormRule:
    """How something is normalised.

    Attributes
    ----------
    over : {"batch", "layer", "rows and units", "all tasks"}
    eps : float
    eps_on : {"variance", "deviation"}
        ε′ or ε″.
    unbiased : bool
        k = n/(n − 1) for a mean over n numbers.
    constant : bool
        Whether statistics are constants on the way back.
    saved : bool
        Whether they are constants in the second derivatives of γ̄ = 1ᵀ(ū ∘ ẑ) alone.
    affine : bool
        Whether there are a scale and a shift.
    after : bool
        Whether it stands after the activation.
    of_rows : int, optional
        The row from which on the statistics are taken.
    """

    over: Any
    eps: float = EPS
    eps_on: str = "variance"
    unbiased: bool = False
    constant: bool = False
    saved: bool = False
    affine: bool = True
    after: bool = False
    of_rows: int = 0

    def mean(self, v: Array) -> Array:
        """M v, in the shape that is broadcast."""
        return v[:, self.of_rows :].mean(AXES[self.over], keepdims=True)

    def adjoint(self, v: Array) -> Array:
        """Mᵀ v."""
        spread = np.zeros_like(v)
        spread[:, self.of_rows :] = v.sum(AXES[self.over], keepdims=True) / self._count(v)
        return spread

    def correction(self, v: Array) -> float:
        """k."""
        count = self._count(v)
        return count / (count - 1) if self.unbiased and count > 1 else np.nan if self.unbiased else 1.0

    def _count(self, v: Array) -> int:
        sizes = (v.shape[0], v.shape[1] - self.of_rows, v.shape[2])
        return int(np.prod([sizes[axis] for axis in AXES[self.over]]))


class _Dot(NamedTuple):
    u: Array
    z_hat: Array
    sigma: Array | float
    kappa: Array | float
    scale: Array


class _Otherwise(Standardised):
    """z normalised by a :class:`NormRule`; its γ and β, and their gradients, as ever."""

    def __init__(self, block: _Block, z: Array) -> None:
        self.block, self.how = block, block.how
        how, k = self.how, self.how.correction(z)
        if block.fixed is None:
            mean = how.mean(z)
            variance = k * how.mean((z - mean) ** 2)
        else:
            mean, variance = (part.astype(z.dtype) for part in block.fixed)
        self.statistics: MeanAndVariance = mean, variance
        if how.eps_on == "variance":
            deviation = self.sigma = np.sqrt(variance + how.eps)
        else:
            deviation = np.sqrt(variance)
            self.sigma = deviation + how.eps
        self.constant = how.constant or block.fixed is not None
        self.deviation, self.k, self.kappa = deviation, k, k * self.sigma / deviation
        self.z_hat = (z - mean) / self.sigma
        self.scale, self.shift = block.rows_of(block)
        self.u = self.z_hat
        if how.affine:
            self.u = self.scale * self.z_hat + self.shift

    def forward_dot(self, tangent: Parts, z_dot: Array) -> Any:
        sigma_dot: Array | float = 0.0
        kappa_dot: Array | float = 0.0
        z_hat_dot = z_dot
        if not self.constant:
            mean, s = self.how.mean, self.deviation
            sigma_dot = self.kappa * mean(self.z_hat * z_dot)
            kappa_dot = self.k * sigma_dot * (s - self.sigma) / s**2  # 0 where σ is s
            z_hat_dot = z_dot - mean(z_dot) - self.z_hat * sigma_dot
        z_hat_dot = z_hat_dot / self.sigma
        scale_dot, shift_dot = self.block.rows_of(tangent)
        u_dot = z_hat_dot
        if self.how.affine:
            u_dot = self.scale * z_hat_dot + scale_dot * self.z_hat + shift_dot
        return _Dot(u_dot, z_hat_dot, sigma_dot, kappa_dot, scale_dot)

    def backward(self, u_bar: Array) -> Array:
        # w = ẑ-bar/σ;  δ = w − Mᵀ w − ẑ ∘ Mᵀ(κ ẑ ∘ w)
        w = self._z_hat_bar(u_bar) / self.sigma
        if self.constant:
            return w
        adjoint = self.how.adjoint
        return w - adjoint(w) - self.z_hat * adjoint(self.kappa * self.z_hat * w)

    def backward_dot(self, dot: Any, u_bar: Array, delta: Array, u_bar_dot: Array) -> Array:
        z_hat_bar_dot = self._z_hat_bar(u_bar_dot)
        if self.how.affine:
            z_hat_bar_dot = z_hat_bar_dot + dot.scale * u_bar
        if self.constant:
            return z_hat_bar_dot / self.sigma
        w = self._z_hat_bar(u_bar) / self.sigma
        w_dot = (z_hat_bar_dot - dot.sigma * w) / self.sigma
        adjoint, z_hat, kappa = self.how.adjoint, self.z_hat, self.kappa
        moved = w_dot - adjoint(w_dot) - dot.z_hat * adjoint(kappa * z_hat * w)
        inner = (dot.kappa * z_hat + kappa * dot.z_hat) * w + kappa * z_hat * w_dot
        delta_dot: Array = moved - z_hat * adjoint(inner)
        if self.how.saved:  # the part of γ̇ ∘ ū that goes through μ and σ
            w = dot.scale * u_bar / self.sigma
            delta_dot += adjoint(w) + z_hat * adjoint(kappa * z_hat * w)
        return delta_dot

    def _z_hat_bar(self, u_bar: Array) -> Array:
        return self.scale * u_bar if self.how.affine else u_bar

    def _gradient(self, layer: OuterSum, by_scale: Array, by_shift: Array) -> Parts:
        share = float(self.how.affine)
        return super()._gradient(layer, share * by_scale, share * by_shift)


class _AfterDot(NamedTuple):
    u: Array
    normalised: Any
    z: Array


class _After(PreActivation):
    """f(z) normalised, where the activation that follows is the identity."""

    def __init__(self, block: _Block, z: Array) -> None:
        f = block.activation
        a = f.f(z)
        self.slope = f.df(z, a)
        self.curvature = f.d2f(z, a) if f.d2f else None
        self.normalised = _Otherwise(block, a)
        self.u, self.statistics = self.normalised.u, self.normalised.statistics

    def forward_dot(self, tangent: Parts, z_dot: Array) -> Any:
        dot = self.normalised.forward_dot(tangent, self.slope * z_dot)
        return _AfterDot(dot.u, dot, z_dot)

    def backward(self, u_bar: Array) -> Array:
        return self.slope * self.normalised.backward(u_bar)

    def backward_dot(self, dot: Any, u_bar: Array, delta: Array, u_bar_dot: Array) -> Array:
        a_bar = self.normalised.backward(u_bar)
        delta_dot = self.slope * self.normalised.backward_dot(dot.normalised, u_bar, a_bar, u_bar_dot)
        return delta_dot if self.curvature is None else delta_dot + self.curvature * a_bar * dot.z

    def gradient(self, layer: OuterSum, u_bar: Array) -> Any:
        return self.normalised.gradient(layer, u_bar)

    def gradient_dot(self, layer: OuterSum, dot: Any, u_bar: Array, u_bar_dot: Array) -> Any:
        return self.normalised.gradient_dot(layer, dot.normalised, u_bar, u_bar_dot)


@dataclass(frozen=True, kw_only=True)
class _Block(Normalised):
    how: NormRule
    activation: Activation
    fixed: MeanAndVariance | None

    def between(self, z: Array) -> PreActivation:
        return (_After if self.how.after else _Otherwise)(self, z)


class OtherNorm(MLP):
    """A normalised network, normalised otherwise.

    Parameters
    ----------
    model : MLP
    how : NormRule
    fixed : sequence of MeanAndVariance, optional
        Those of each hidden layer, where they are not those of the rows at hand.
    """

    def __init__(
        self, model: MLP, how: NormRule, fixed: Sequence[MeanAndVariance | None] | None = None
    ) -> None:
        activations = ["identity"] * (model.n_layers - 1) if how.after else list(model.activations)
        super().__init__(model.widths, activations, norm=model.norm, adapt_norm=model.adapt_norm)
        self.model, self.how = model, how
        self.fixed = fixed or [None] * (model.n_layers - 1)

    def in_parts(self, layers: Sequence[Layer], arrays: Sequence[Sequence[Array]]) -> list[Layer]:
        *hidden, last = super().in_parts(layers, arrays)
        parts = zip(hidden, self.model.activations, self.fixed, strict=True)
        return [
            *(
                _Block(b.parts, b.norm, how=self.how, activation=f, fixed=fixed)
                for b, f, fixed in parts
                if isinstance(b, Normalised)
            ),
            last,
        ]

    def having(self, fixed: Sequence[MeanAndVariance] | None = None, **changes: Any) -> OtherNorm:
        """The same network, normalised in yet another way."""
        return OtherNorm(self.model, replace(self.how, **changes), fixed)


def fresh(model: MLP) -> list[MeanAndVariance]:
    """Those of modules that have seen no row, for every hidden layer."""
    return [(np.zeros(()), np.ones(()))] * (model.n_layers - 1)


def statistics_of(risk: Risk, phi: Array, x: Array) -> list[MeanAndVariance]:
    """Means and variances of every hidden layer on rows ``x (T, rows, n_in)``."""
    at = forward(risk.model.layers(phi), risk.model.activations, x)
    return [pre.statistics for pre in at.pre if isinstance(pre, _Otherwise | _After)]


def running(
    passes: Sequence[Sequence[MeanAndVariance]], rows: int, momentum: float, unbiased: bool, kept: bool
) -> list[MeanAndVariance]:
    """Running averages over the passes on the support sets, from mean 0 and variance 1 on.

    Parameters
    ----------
    passes : sequence of sequences of MeanAndVariance
        For every pass those of every hidden layer, ``(T, 1, n)``.
    rows : int
        Rows of a support set.
    momentum : float
        The share of what is new.
    unbiased : bool
        Whether the running variance is; that of a pass is not.
    kept : bool
        Whether a task begins where the one before has ended.
    """
    k = rows / (rows - 1) if unbiased and rows > 1 else 1.0
    found = []
    for layer in zip(*passes, strict=True):
        averages = []
        for part, begin, factor in ((0, 0.0, 1.0), (1, 1.0, k)):
            new = np.stack([statistics[part] for statistics in layer])  # (S, T, 1, n)
            average = np.full_like(new[0], begin)
            for t in range(new.shape[1]):
                if kept and t:
                    average[t] = average[t - 1]
                for one in new[:, t]:
                    average[t] += momentum * (factor * one - average[t])
            averages.append(average)
        found.append((averages[0], averages[1]))
    return found


def first_rows(loss: Loss, n: int) -> Loss:
    """A loss that sees the first n rows only."""
    return Loss(
        f"{loss.name} of the first {n} rows", partial(_of_first, loss, n), loss.targets, loss.soft
    )


def _of_first(loss: Loss, n: int, o: Array, y: Array) -> LossAt:
    value, gradient, product = loss(o[:, :n], y[:, :n])

    def padded(rows: Array) -> Array:
        return np.concatenate([rows, np.zeros_like(o[:, n:])], axis=1)

    return LossAt(value, padded(gradient), lambda u: padded(product(u[:, :n])))
