"""Algorithms that are MAML with other inner step sizes, by the names they were published under."""

from __future__ import annotations

from typing import Any

import numpy as np

from npmeta._support.validation import Array, as_number
from npmeta.algorithms.base import check_network, check_steps
from npmeta.algorithms.maml import MAML
from npmeta.network.losses import Loss
from npmeta.network.mlp import MLP


def fomaml(
    model: MLP,
    loss: str | Loss | None = None,
    inner_lr: float = 0.01,
    inner_steps: int = 1,
    **options: Any,
) -> MAML:
    r"""First-order MAML (Finn et al. 2017, section 5.2): the gradient of the query loss where the inner
    loop has come to, :math:`\nabla L^Q(\varphi_S)`, stands in for that at θ.

    The parameters are :class:`~npmeta.MAML`'s.
    """
    return MAML(model, loss, inner_lr, inner_steps, first_order=True, **options)


def anil(
    model: MLP,
    loss: str | Loss | None = None,
    inner_lr: float = 0.01,
    inner_steps: int = 1,
    **options: Any,
) -> MAML:
    """Almost no inner loop (Raghu et al. 2020): it adapts the last layer, the head, alone.

    Step sizes are (0, .., 0, α). The outer loop learns all layers; the parameters are
    :class:`~npmeta.MAML`'s.
    """
    alpha = _by_layer(model, inner_lr)
    alpha[:, :-1] = 0
    return MAML(model, loss, alpha, inner_steps, **options)


def boil(
    model: MLP,
    loss: str | Loss | None = None,
    inner_lr: float = 0.01,
    inner_steps: int = 1,
    **options: Any,
) -> MAML:
    """Body only update in inner loop (Oh et al. 2021): it adapts all layers but the last.

    Step sizes are (α, .., α, 0). The outer loop learns all layers; the parameters are
    :class:`~npmeta.MAML`'s.
    """
    alpha = _by_layer(model, inner_lr)
    alpha[:, -1] = 0
    return MAML(model, loss, alpha, inner_steps, **options)


def lslr(
    model: MLP,
    loss: str | Loss | None = None,
    inner_lr: float = 0.01,
    inner_steps: int = 1,
    **options: Any,
) -> MAML:
    """Learned step sizes, one for each layer and inner step (Antoniou et al. 2019, section 4).

    All begin at ``inner_lr``; the parameters are :class:`~npmeta.MAML`'s.
    """
    alpha = _by_layer(model, inner_lr, check_steps(inner_steps, "inner_steps"))
    return MAML(model, loss, alpha, inner_steps, learn_inner_lr=True, **options)


def _by_layer(model: MLP, inner_lr: float, n_steps: int = 1) -> Array:
    """α for each step, of which there is one at least, and layer."""
    check_network(model)
    alpha = as_number(inner_lr, "inner_lr", "one finite number")
    return np.full((max(n_steps, 1), model.n_layers), alpha)
