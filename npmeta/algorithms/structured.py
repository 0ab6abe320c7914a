"""MAML that learns the network's structure beside its initialisation."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array, as_number
from npmeta.algorithms.adapts import Adapts
from npmeta.algorithms.base import MetaGradient
from npmeta.algorithms.gradient_steps import GradientSteps, Prepared
from npmeta.algorithms.maml import MAML
from npmeta.network.losses import Loss
from npmeta.network.mlp import MLP
from npmeta.network.softmax import log_softmax, through_softmax
from npmeta.network.structure import gates_of, shares_of


@dataclass(frozen=True, eq=False)
class StructuredMAML(Adapts):
    r"""MAML on a network whose activations are mixtures and whose units have gates.

    .. math:: \min_\theta \; \frac1T \sum_t L^Q_t(\varphi_{t,S})
              + \lambda_g \operatorname{mean}(g) + \lambda_p \operatorname{mean}_l H(p_l), \qquad
              \theta = (W_l, b_l, \mu_l, \gamma_l)_l, \quad p = \operatorname{softmax}(\mu), \;
              g = \sigma(\gamma).

    The two pressures act on what the inner loop begins with: λ_g closes gates that are not worth it,
    λ_p makes mixtures decide (H is the entropy). They are part of the meta-loss and of its gradient,
    not of the tasks' losses; oracles and checks of meta-gradients know the latter alone.

    MetaNAS (Elsken, Staffler, Metzen & Hutter 2020) meta-learns a structure together with the weights
    and adapts it to tasks, there with Reptile, without second derivatives. Here they are exact, cross
    terms of weights and structure included.

    Parameters
    ----------
    model : MLP
        With a :class:`~npmeta.network.structure.Structure`, which says whether inner steps move it.
    loss, inner_lr, inner_steps, first_order, inner_weight_decay, learn_inner_lr, weights
        As in :class:`~npmeta.MAML`.
    gate_pressure, mixture_pressure : float
        λ_g and λ_p, at least 0.

    Attributes
    ----------
    maml : MAML
        What it is without pressures: what :class:`npmeta.Problem` and the oracles take.

    Raises
    ------
    ValueError
        If the model has no structure, or lacks what a pressure is to act on; or as MAML does.
    """

    model: MLP
    loss: str | Loss | None = None
    inner_lr: ArrayLike = 0.01
    inner_steps: int = 1
    first_order: bool = False
    inner_weight_decay: float = 0.0
    learn_inner_lr: bool = False
    weights: str = "auto"
    gate_pressure: float = 0.0
    mixture_pressure: float = 0.0
    maml: MAML = field(init=False, repr=False)
    inner: GradientSteps = field(init=False, repr=False)

    def __post_init__(self) -> None:
        own = {one.name for one in fields(MAML) if one.init}
        maml = MAML(**{name: getattr(self, name) for name in own})
        object.__setattr__(self, "maml", maml)
        object.__setattr__(self, "inner", maml.inner)
        object.__setattr__(self, "inner_lr", maml.inner_lr)
        object.__setattr__(self, "inner_weight_decay", maml.inner_weight_decay)
        if not isinstance(self.model, MLP) or self.model.structure is None:
            raise ValueError(f"model must be an MLP with a structure, got {self.model!r}")
        for name, part in (("gate_pressure", "gate"), ("mixture_pressure", "mixture")):
            kind = "a number of at least 0"
            number = as_number(getattr(self, name), name, kind, lambda x: x >= 0)
            object.__setattr__(self, name, number)
            if number and not self._places(part):
                raise ValueError(f"{name} has nothing to act on: {self.model!r} has no {part}")

    def of_tasks(self, problem: Prepared) -> MetaGradient:
        """MAML's meta-gradient of a prepared batch, and that of the pressures."""
        out = self.maml.of_tasks(problem)
        penalty, gradient = self._penalty(problem.theta)
        grads = {**out.grads, "theta": out.grad + gradient}
        return MetaGradient(out.loss + penalty, grads, out.task_loss, out.hessian)

    def _penalty(self, theta: Array) -> tuple[float, Array]:
        """λ_g mean(g) + λ_p mean H(p), and its gradient ``(P,)``."""
        penalty, gradient = 0.0, np.zeros_like(theta)
        if self.gate_pressure:
            places = self._places("gate")
            g = [gates_of(theta[place]) for place in places]
            share = self.gate_pressure / sum(map(len, g))
            for place, gates in zip(places, g, strict=True):
                penalty += share * float(gates.sum())
                gradient[place] = share * gates * gates_of(-theta[place])  # 1 − σ(γ) = σ(−γ)
        if self.mixture_pressure:
            places = self._places("mixture")
            share = self.mixture_pressure / len(places)
            for place in places:
                p = shares_of(theta[place])
                log_p = log_softmax(theta[place])
                penalty -= share * float((p * log_p).sum())
                gradient[place] = -share * through_softmax(p, log_p)
        return penalty, gradient

    def _places(self, part: str) -> list[slice]:
        """Where theta has the gates, or the mixture, of each layer."""
        return [place for name, place in self.model.places.items() if name.endswith(part)]
