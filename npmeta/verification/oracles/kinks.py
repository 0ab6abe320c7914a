"""Where a network's derivatives jump: how far the nearest kink is, and whether rounding crosses one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npmeta._support.validation import Array
from npmeta.algorithms import MAML
from npmeta.algorithms.base import MetaParameters
from npmeta.bilevel.objective import Risk
from npmeta.network.passes import forward
from npmeta.tasks import TaskBatch
from npmeta.verification.oracles.meta_loss import MetaLoss, layers, tiny_step
from npmeta.verification.rounding import ROUNDINGS, unit


def nearest_kink(
    maml: MAML, params: ArrayLike | MetaParameters, tasks: TaskBatch, direction: ArrayLike
) -> float:
    """How far theta may go along a direction until a hidden unit, in any step, comes to a kink.

    To first order: the least ratio of z − kink to ż, in size, over the pre-activations z of all
    passes, with ż from one complex inner loop. Infinite where there is no kink; the kinks of losses
    are not looked for.
    """
    meta_loss = MetaLoss.of(maml, params, tasks).cast(np.float64)
    v = np.asarray(direction, dtype=np.float64)
    h = tiny_step(v.dtype)
    nearest = np.inf
    for z, kink, _ in _kinked_units(meta_loss, meta_loss.theta + 1j * h * v):
        moves = z[z.imag != 0]
        away = np.abs(moves.real - kink) / np.abs(moves.imag / h)
        nearest = min(nearest, float(np.min(away, initial=np.inf)))
    return nearest


def at_kinks(
    maml: MAML, params: ArrayLike | MetaParameters, tasks: TaskBatch, precision: DTypeLike
) -> int:
    """How many pre-activations, in all passes, are so near a kink that rounding may take them across.

    Within the roundings that ``Reference.error`` is about, of the terms z is a sum of.
    """
    meta_loss = MetaLoss.of(maml, params, tasks).cast(np.float64)
    reach = ROUNDINGS * unit(precision)
    return sum(
        int((np.abs(z - kink) <= reach * terms).sum())
        for z, kink, terms in _kinked_units(meta_loss, meta_loss.theta)
    )


def _kinked_units(meta_loss: MetaLoss, theta: Array) -> Iterator[tuple[Array, float, Array]]:
    """For every pass, hidden layer and kink of its activation: what may lie at it, the kink,
    and the former with all terms of its sum made positive."""
    if not isinstance(meta_loss.objective, Risk):
        return
    model = meta_loss.objective.model
    if not any(f.kinks for f in model.activations):
        return
    for phi, (x, _) in meta_loss.passes(theta):
        at = forward(layers(meta_loss.objective, phi), model.activations, x)
        positive = layers(meta_loss.objective, np.abs(phi))[:-1]
        for f, layer, a, pre in zip(model.activations, positive, at.a[:-1], at.pre, strict=True):
            terms = pre.terms(layer.act(np.abs(a)))
            for kink in f.kinks:
                yield pre.kinked, kink, terms
