"""The meta-learner LSTM (Ravi & Larochelle 2017): a learned rule for the inner steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npmeta._support.memory import keep_freed_memory
from npmeta._support.validation import Array, as_generator, as_number, check_flag
from npmeta.algorithms.base import (
    MetaGradient,
    MetaParameters,
    both_sets,
    check_network,
    check_steps,
)
from npmeta.algorithms.own_steps import OwnSteps
from npmeta.bilevel.objective import Batch, Linearization, Risk
from npmeta.network import activations
from npmeta.network.losses import Loss
from npmeta.network.mlp import MLP

if TYPE_CHECKING:
    from npmeta.tasks.batch import TaskBatch

#: p of the preprocessing: gradients down to exp(−10) are seen by their logarithm.
REACH = 10.0

#: What a gate sees: two numbers of ∇L, two of L, θ, the gate before, and 1.
N_SEEN = 7

_sigmoid = activations.get("sigmoid")


class Preprocessed(NamedTuple):
    """The two numbers that stand for one, and their derivatives."""

    values: tuple[Array, Array]
    slopes: tuple[Array, Array]


def preprocess(g: Array) -> Preprocessed:
    r"""Size and sign of a number, both of order 1 (Andrychowicz et al. 2016, appendix A).

    .. math:: g \mapsto \begin{cases} (\log|g| / p,\; \operatorname{sign} g) & |g| \ge e^{-p} \\
                                      (-1,\; e^p g) & \text{else} \end{cases}, \qquad p = 10 .
    """
    sign = np.sign(g.real).astype(g.dtype)
    large = sign.real * g.real >= math.exp(-REACH)
    magnitude = np.where(large, sign * g, 1)
    size = np.where(large, np.log(magnitude) / REACH, -1).astype(g.dtype)
    direction = np.where(large, sign, math.exp(REACH) * g).astype(g.dtype)
    slopes = np.where(large, sign / (REACH * magnitude), 0), np.where(large, 0, math.exp(REACH))
    slopes = (slopes[0].astype(g.dtype), slopes[1].astype(g.dtype))
    return Preprocessed((size, direction), slopes)


class Gate(NamedTuple):
    """A gate of every parameter, and what it was made of."""

    value: Array
    slope: Array
    seen: Sequence[Array]

    def pull_back(self, gate_bar: Array, weights: Array, weights_bar: Array) -> list[Array]:
        """The cotangents of what the gate saw; that of its weights is added to ``weights_bar``."""
        z_bar = gate_bar * self.slope
        for k, u in enumerate(self.seen):
            weights_bar[k] += (z_bar * u).sum()
        weights_bar[-1] += z_bar.sum()
        return [w * z_bar for w in weights[:-1]]


def gate(weights: Array, seen: Sequence[Array]) -> Gate:
    """σ(w · [seen, 1]) with the same w for every parameter of every task."""
    z = weights[-1] + sum(w * u for w, u in zip(weights[:-1], seen, strict=True))
    value = _sigmoid.f(z)
    return Gate(value, _sigmoid.df(z, value), seen)


class Update(NamedTuple):
    """One inner step: the support loss at θ_{s−1}, its preprocessing, and the gates."""

    theta: Array
    lin: Linearization
    grad: Array
    by_grad: Preprocessed
    by_loss: Preprocessed
    i: Gate
    f: Gate


@dataclass(frozen=True, eq=False)
class MetaLSTM(OwnSteps):
    r"""Learn the update rule of the inner loop: the cell of an LSTM, whose state is the parameters.

    Each parameter of each task has gates of its own, made with the same weights for all (section 3.1
    of the paper):

    .. math:: \theta_s &= f_s \circ \theta_{s-1} - i_s \circ \nabla L_s, \\
              i_s &= \sigma(w_I \cdot [\nabla L_s, L_s, \theta_{s-1}, i_{s-1}, 1]), \qquad
              f_s = \sigma(w_F \cdot [\nabla L_s, L_s, \theta_{s-1}, f_{s-1}, 1]),

    with :math:`L_s = L^S(\theta_{s-1})` and its gradient preprocessed (:func:`preprocess`) where gates
    see them. Learned are both w, and the state θ_0 that tasks begin from: an initialisation, a step
    size and a decay that look at where they are.

    Parameters
    ----------
    model : MLP
    loss : str or Loss
    inner_lr : float
        What i is to begin with, between 0 and 1.
    inner_steps : int
        S.
    first_order : bool
        Take L_s and ∇L_s for constants, as the paper does. If not, the meta-gradient is that of
        ``evaluate``, exact through both.

    Raises
    ------
    ValueError
        If an argument is out of range, or the model has parameters that inner steps must not move.

    Notes
    -----
    The meta-parameters are "theta" ``(P,)``, "input_gate" ``(7,)`` and "forget_gate" ``(7,)``. In the
    paper's experiments a further LSTM of 20 units stands between what is seen and the gates; here there
    is none.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> learner = nm.algorithms.MetaLSTM(nm.MLP([1, 40, 40, 1]))
    >>> params = learner.init(np.random.default_rng(0))
    >>> tasks = nm.tasks.Sinusoid(shots=10).sample(seed=0, iteration=0, n_tasks=25)
    >>> {name: grad.shape for name, grad in learner.meta_gradient(params, tasks).grads.items()}
    {'theta': (1761,), 'input_gate': (7,), 'forget_gate': (7,)}
    """

    model: MLP
    loss: str | Loss = "mse"
    inner_lr: float = 0.01
    inner_steps: int = 5
    first_order: bool = True
    objective: Risk = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_network(self.model)
        if not self.model.adapts_all:
            raise ValueError(
                "the LSTM moves all parameters, those of a norm or a structure too: adapt_norm must be "
                "true, and a structure's adapt"
            )
        kind = "a number between 0 and 1"
        inner_lr = as_number(self.inner_lr, "inner_lr", kind, lambda i: 0 < i < 1)
        check_steps(self.inner_steps, "inner_steps")
        check_flag(self.first_order, "first_order")
        object.__setattr__(self, "inner_lr", inner_lr)
        object.__setattr__(self, "objective", Risk(self.model, self.loss))

    def init(self, rng: np.random.Generator | int, dtype: DTypeLike = np.float64) -> dict[str, Array]:
        """Initial meta-parameters: gates near ``inner_lr`` and near 1, so that steps are at first those
        of gradient descent."""
        rng = as_generator(rng)
        params = super().init(rng, dtype)
        logits = {"input_gate": math.log(self.inner_lr / (1 - self.inner_lr)), "forget_gate": 5.0}
        for name, logit in logits.items():
            params[name] = np.array([*rng.uniform(-0.01, 0.01, N_SEEN - 1), logit], dtype)
        return params

    @np.errstate(all="ignore")  # what diverges shows in the result
    def meta_gradient(self, params: ArrayLike | MetaParameters, tasks: TaskBatch) -> MetaGradient:
        """The mean query loss after adaptation and its gradient, by backpropagation through the steps.

        Parameters
        ----------
        params : mapping
            "theta", "input_gate" and "forget_gate".
        tasks : TaskBatch

        Returns
        -------
        MetaGradient
            ``hessian`` is "none" where losses and gradients are constants, else "exact".

        Raises
        ------
        ValueError
            If shapes, labels or names do not fit.
        """
        keep_freed_memory()
        given = self._given(params)
        w_I, w_F = given["input_gate"], given["forget_gate"]
        support, query = both_sets(self._batch, tasks, w_I.dtype)
        steps, theta = [], self._begin(given, support)
        for update, moved in self._inner_loop(given, support, self.inner_steps):
            steps.append(update)
            theta = moved
        outer = self._at(given, theta, query)

        theta_bar = outer.grad / len(theta)
        w_I_bar, w_F_bar = np.zeros_like(w_I), np.zeros_like(w_F)
        i_bar = f_bar = np.zeros_like(theta_bar)
        for step in reversed(steps):
            # θ_s = f ∘ θ − i ∘ ∇L: what each gate saw has a part from either.
            from_i = step.i.pull_back(i_bar - theta_bar * step.grad, w_I, w_I_bar)
            from_f = step.f.pull_back(f_bar + theta_bar * step.theta, w_F, w_F_bar)
            *seen_bar, before_bar = [a + b for a, b in zip(from_i[:-1], from_f[:-1], strict=True)]
            i_bar, f_bar = from_i[-1], from_f[-1]
            grad_bar = -step.i.value * theta_bar
            theta_bar = step.f.value * theta_bar + before_bar
            if not self.first_order:
                # ∇L moves by H θ̇, and L by ∇L · θ̇.
                slopes = (*step.by_grad.slopes, *step.by_loss.slopes)
                g1, g2, l1, l2 = (bar * slope for bar, slope in zip(seen_bar, slopes, strict=True))
                loss_bar = (l1 + l2).sum(1, keepdims=True)
                theta_bar = theta_bar + step.lin.hvp(grad_bar + g1 + g2) + loss_bar * step.grad
        return MetaGradient(
            float(outer.value.real.mean()),
            {"theta": theta_bar.sum(0), "input_gate": w_I_bar, "forget_gate": w_F_bar},
            outer.value,
            "none" if self.first_order else "exact",
        )

    def extra(self) -> dict[str, Array]:
        return {"input_gate": np.zeros(N_SEEN), "forget_gate": np.zeros(N_SEEN)}

    def states(self, given: Mapping[str, Array], support: Batch, n_steps: int) -> Iterator[Array]:
        """Every task's parameters θ_s ``(T, P)``."""
        yield self._begin(given, support)
        for _, theta in self._inner_loop(given, support, n_steps):
            yield theta

    @staticmethod
    def _begin(given: Mapping[str, Array], support: Batch) -> Array:
        """θ_0 of every task."""
        return np.tile(given["theta"], (len(support[0]), 1))

    def _inner_loop(
        self, given: Mapping[str, Array], support: Batch, n_steps: int
    ) -> Iterator[tuple[Update, Array]]:
        """The inner steps one by one: what each is made of, and θ_s ``(T, P)``."""
        theta = self._begin(given, support)
        i = f = np.zeros_like(theta)
        for _ in range(n_steps):
            lin = self._at(given, theta, support)
            by_grad, by_loss = preprocess(lin.grad), preprocess(lin.value[:, None])
            seen = (*by_grad.values, *by_loss.values, theta)
            to_i = gate(given["input_gate"], (*seen, i))
            to_f = gate(given["forget_gate"], (*seen, f))
            update = Update(theta, lin, lin.grad, by_grad, by_loss, to_i, to_f)
            i, f = to_i.value, to_f.value
            theta = f * theta - i * update.grad
            yield update, theta
