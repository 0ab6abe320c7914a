"""T-nets (Lee & Choi 2018) and warp layers (Flennerhag et al. 2020): MAML in a learned geometry."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npmeta._support.validation import Array, as_generator, as_parameters, check_flag
from npmeta.algorithms.adapts import Adapts
from npmeta.algorithms.base import MetaGradient, MetaParameters, named
from npmeta.algorithms.gradient_steps import GradientSteps, Prepared
from npmeta.algorithms.maml import MAML
from npmeta.bilevel.adaptation import StepSizes
from npmeta.bilevel.objective import Risk
from npmeta.network import activations
from npmeta.network.activations import Activation
from npmeta.network.losses import Loss
from npmeta.network.mlp import MLP

if TYPE_CHECKING:
    from npmeta.tasks.batch import TaskBatch


@dataclass(frozen=True, eq=False)
class Warp(Adapts):
    r"""Behind every layer put one that inner steps leave alone and the outer loop learns.

    Task layers W, b adapt as in MAML, warp layers T, c stand still in the inner loop. A linear warp
    layer, as in the T-nets of Lee & Choi (2018), stands between the weights and their activation,

    .. math:: z_l = (a_{l-1} W_l + b_l) \, T_l + c_l, \qquad a_l = f_l(z_l),

    so that a step on W is one on W T preconditioned by :math:`T^\top T`. One with an activation g of
    its own, as in WarpGrad (Flennerhag et al. 2020), stands behind the layer's activation,

    .. math:: a_l = g(f_l(a_{l-1} W_l + b_l) \, T_l + c_l).

    In both forms a linear one stands behind the last layer, as in T-nets. All T are square. Either
    way this is MAML on a network twice as deep, with step sizes (α, 0, α, 0, ...), exact to second
    order. WarpGrad's own objective, which does not go back through the inner loop, is not here.

    Parameters
    ----------
    model : MLP
        The task layers, without normalisation or structure.
    loss : str or Loss
    inner_lr : array_like
        α in any shape that :class:`~npmeta.MAML` takes, for the layers and parameters of ``model``.
        Warp layers have no step size, so a learned one cannot set them free.
    inner_steps, first_order, inner_weight_decay, learn_inner_lr, weights
        As in :class:`~npmeta.MAML`.
    warp_activation : str or Activation
        g, by default "identity": a T-net.

    Attributes
    ----------
    network : MLP
        Task and warp layers in turn: W_1, b_1, T_1, c_1, W_2, ...
    maml : MAML
        MAML on it, with the zeros written out: what :class:`npmeta.Problem` and the oracles take.

    Raises
    ------
    ValueError
        If the model is no network, or has a normalisation or a structure, or an argument is not as
        MAML takes it.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> warp = nm.algorithms.Warp(nm.MLP([1, 40, 40, 1]))
    >>> warp.network.widths
    (1, 40, 40, 40, 40, 1, 1)
    >>> warp.maml.inner_lr
    array([[0.01, 0.  , 0.01, 0.  , 0.01, 0.  ]])
    >>> params = warp.init(np.random.default_rng(0))
    >>> tasks = nm.tasks.Sinusoid(shots=10).sample(seed=0, iteration=0, n_tasks=25)
    >>> warp.meta_gradient(params, tasks).grad.shape
    (5043,)
    """

    model: MLP
    loss: str | Loss = "mse"
    inner_lr: ArrayLike = 0.01
    inner_steps: int = 1
    first_order: bool = False
    inner_weight_decay: float = 0.0
    learn_inner_lr: bool = False
    warp_activation: str | Activation = "identity"
    weights: str = "auto"
    network: MLP = field(init=False, repr=False)
    maml: MAML = field(init=False, repr=False)
    inner: GradientSteps = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model, MLP) or not self.model.is_plain:
            raise ValueError(
                f"Warp takes a network without normalisation or structure, got {self.model!r}"
            )
        check_flag(self.learn_inner_lr, "learn_inner_lr")
        g = activations.get(self.warp_activation)
        hidden = [(g, f) if self.linear else (f, g) for f in self.model.activations]
        widths = [n for n in self.model.widths[1:] for _ in range(2)]
        network = MLP(
            [self.model.widths[0], *widths],
            [*(f for pair in hidden for f in pair), activations.IDENTITY],
        )
        object.__setattr__(self, "network", network)
        inner_lr = np.array(self.inner_lr)  # a copy: what becomes of the caller's is his affair
        inner_lr.flags.writeable = False
        object.__setattr__(self, "inner_lr", inner_lr)
        # MAML on the model itself checks the arguments before step sizes change their shape.
        options = (self.inner_steps, self.first_order, self.inner_weight_decay)
        MAML(self.model, self.loss, inner_lr, *options, weights=self.weights)
        alpha = self._with_zeros(self._step_sizes(inner_lr, np.float64))
        maml = MAML(network, self.loss, alpha, *options, weights=self.weights)
        object.__setattr__(self, "maml", maml)
        object.__setattr__(self, "inner", maml.inner)

    @property
    def linear(self) -> bool:
        """Whether it is a T-net."""
        return activations.get(self.warp_activation) is activations.IDENTITY

    def init(self, rng: np.random.Generator | int, dtype: DTypeLike = np.float64) -> dict[str, Array]:
        """Initial meta-parameters: "theta", and "inner_lr" if it is learned.

        Task layers begin as those of ``model``; linear warp layers as the identity, others at random,
        as in the code of the two papers. So a T-net begins as the network it is made of.
        """
        rng = as_generator(rng)
        plain = self.model.unpack(self.model.init(rng, dtype))
        theta = self.network.init(rng, dtype)
        layers = self.network.unpack(theta)  # views
        for (W, _), (W_0, _) in zip(layers[::2], plain, strict=True):
            W[...] = W_0
        for T, _ in layers[1::2] if self.linear else layers[-1:]:
            T[...] = np.eye(len(T))
        params = {"theta": theta}
        if self.learn_inner_lr:
            params["inner_lr"] = np.array(self.inner_lr, dtype=dtype)
        return params

    def of_tasks(self, problem: Prepared) -> MetaGradient:
        """The meta-gradient of a prepared batch on :attr:`network`."""
        return self.maml.of_tasks(problem)

    @np.errstate(all="ignore")  # what diverges shows in the result
    def meta_gradient(self, params: ArrayLike | MetaParameters, tasks: TaskBatch) -> MetaGradient:
        """The mean query loss after adaptation and its exact gradient.

        Parameters and errors are :meth:`npmeta.MAML.meta_gradient`'s, with θ of :attr:`network`.
        """
        out = super().meta_gradient(params, tasks)
        if "inner_lr" in out.grads:
            sizes = self._step_sizes(named(params)["inner_lr"], out.grad.dtype)
            by_alpha = out.grads["inner_lr"][:, self._moving(sizes.grid.shape[1])]
            out = replace(out, grads={**out.grads, "inner_lr": sizes.collect([*by_alpha])})
        return out

    # --- step sizes -------------------------------------------------------------------------------

    def _named(self, params: ArrayLike | MetaParameters) -> MetaParameters:
        """Meta-parameters as MAML on the network takes them."""
        params = super()._named(params)
        if "inner_lr" not in params:
            return params
        theta = as_parameters(params["theta"], self.network.n_params)
        sizes = self._step_sizes(params["inner_lr"], theta.dtype)
        return {**params, "inner_lr": self._with_zeros(sizes)}

    def _step_sizes(self, inner_lr: ArrayLike, dtype: DTypeLike) -> StepSizes:
        """Those of the model."""
        risk = Risk(self.model, self.loss)
        return StepSizes(inner_lr, risk, self.inner_steps, np.dtype(dtype))

    def _with_zeros(self, sizes: StepSizes) -> Array:
        """Step sizes by layer or parameter of the network: (α, 0, α, 0, ...)."""
        moving = self._moving(sizes.grid.shape[1])
        alpha = np.zeros((len(sizes.grid), moving.size), sizes.grid.dtype)
        alpha[:, moving] = sizes.grid
        return alpha

    def _moving(self, n_columns: int) -> Array:
        """Which layers of the network are task layers; or which parameters, for one size for each."""
        moving = np.arange(self.network.n_layers) % 2 == 0
        by_parameter = n_columns == self.model.n_params
        return np.repeat(moving, self.network.layer_sizes) if by_parameter else moving
