"""Model-agnostic meta-learning (Finn, Abbeel & Levine 2017), with exact second derivatives."""

from __future__ import annotations

from dataclasses import dataclass, field

from numpy.typing import ArrayLike

from npmeta.algorithms.adapts import Adapts
from npmeta.algorithms.base import MetaGradient
from npmeta.algorithms.gradient_steps import GradientSteps, Prepared
from npmeta.bilevel.objective import Objective
from npmeta.network.losses import Loss
from npmeta.network.mlp import MLP


@dataclass(frozen=True, eq=False)
class MAML(Adapts):
    r"""Find an initialisation from which a few gradient steps solve a new task.

    .. math:: \min_\theta \; \frac1T \sum_t L^Q_t(\varphi_{t,S}), \qquad
              \varphi_{t,0} = \theta, \quad
              \varphi_{t,s+1} = \varphi_{t,s} - \alpha \nabla L^S_t(\varphi_{t,s}).

    Parameters
    ----------
    model : MLP or Objective
        A network, or any objective of your own (which brings its loss with it).
    loss : str or Loss, optional
        For a network: a name in :data:`npmeta.network.losses.LOSSES` or your own. Default "mse".
    inner_lr : array_like
        The step size α: a number, or one per layer, per step or per parameter
        (:class:`~npmeta.bilevel.adaptation.StepSizes` lists the shapes). Zeros freeze parameters in the
        inner loop only: all layers but the last is ANIL, the last alone is BOIL.
    inner_steps : int
        S, at least 0; 0 is joint training on the query sets.
    first_order : bool
        Leave the second derivatives out (FOMAML).
    inner_weight_decay : float
        w ≥ 0: the inner loop descends on L^S + (w/2)‖φ‖².
    learn_inner_lr : bool
        Have :meth:`init` make ``inner_lr`` a meta-parameter beside theta, in the shape given here.
    weights : {"auto", "dense", "factored"}
        How layers hold the tasks' weights (:mod:`npmeta.network.factored`). By default each layer has
        the form that costs less; :meth:`plan` shows which and why. The result is the same within
        rounding.

    Raises
    ------
    ValueError
        If an argument is out of range or of a shape that does not fit.

    Notes
    -----
    Calls share nothing that changes: threads may use one MAML, and no result is overwritten by a later
    call.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> model = nm.MLP([1, 40, 40, 1], activation="relu")
    >>> theta = model.init(np.random.default_rng(0))
    >>> maml = nm.MAML(model, loss="mse", inner_lr=0.01, inner_steps=1)
    >>> tasks = nm.tasks.Sinusoid(shots=10).sample(seed=0, iteration=0, n_tasks=25)
    >>> out = maml.meta_gradient(theta, tasks)
    >>> out.grad.shape, out.task_loss.shape
    ((1761,), (25,))
    """

    model: MLP | Objective
    loss: str | Loss | None = None
    inner_lr: ArrayLike = 0.01
    inner_steps: int = 1
    first_order: bool = False
    inner_weight_decay: float = 0.0
    learn_inner_lr: bool = False
    weights: str = "auto"
    inner: GradientSteps = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._hold()

    def of_tasks(self, problem: Prepared) -> MetaGradient:
        """The meta-gradient of a prepared batch: adapt, score, and go back through the steps."""
        return self.inner.meta_gradient(problem)
