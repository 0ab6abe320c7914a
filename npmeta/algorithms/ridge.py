"""Ridge regression on learned features, differentiated through the solve (Bertinetto et al. 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms.base import MetaParameters
from npmeta.algorithms.episodic import ByLoss, Compared, check_model, check_scale
from npmeta.network import losses
from npmeta.network.losses import Loss
from npmeta.network.mlp import MLP


@dataclass(frozen=True, eq=False)
class RidgeHead(ByLoss):
    r"""Fit the last layer to each task in closed form, and learn the features it is fitted on (R2-D2).

    With features :math:`A = [e(x), 1]` of the support rows, :math:`A_Q` of the query rows, and targets
    Y (section 3.2 of the paper; one solve with a K×K matrix a task):

    .. math:: W = A^\top M^{-1} Y, \qquad M = A A^\top + \lambda I, \qquad
              o = s\, A_Q W + b .

    W minimises :math:`\|A W - Y\|^2 + \lambda \|W\|^2`. Class labels are regressed on as rows of the
    identity; s and b turn the fit into logits.

    Parameters
    ----------
    model : MLP or None
        The features e; None takes the inputs themselves.
    loss : str or Loss
        Of the outputs on the query rows: a name in :data:`npmeta.network.losses.LOSSES`, or your own.
    ridge : float
        λ to begin with, positive; the meta-parameter is its logarithm, "log_ridge".
    scale : float, optional
        s to begin with, positive; a meta-parameter, "scale". By default 10 for a loss of classes (the
        fit lies between 0 and 1), else 1.
    ways : int, optional
        N, the number of outputs; by default as the targets show.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    The meta-parameters beside theta are "log_ridge", "scale" and "bias" (b, which begins at 0).

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> ridge = nm.algorithms.RidgeHead(nm.MLP([1, 40, 40]), loss="mse")
    >>> params = ridge.init(np.random.default_rng(0))
    >>> tasks = nm.tasks.Sinusoid(shots=10).sample(seed=0, iteration=0, n_tasks=25)
    >>> out = ridge.meta_gradient(params, tasks)
    >>> {name: grad.shape for name, grad in out.grads.items()}
    {'theta': (1720,), 'log_ridge': (), 'scale': (), 'bias': ()}
    """

    model: MLP | None
    loss: str | Loss = "cross_entropy"
    ridge: float = 1.0
    scale: float | None = None
    ways: int | None = None

    def __post_init__(self) -> None:
        check_model(self.model, self.ways)
        losses.get(self.loss)
        check_scale(self.ridge, "ridge")
        if self.scale is not None:
            check_scale(self.scale)

    def extra(self) -> dict[str, Array]:
        default = 10.0 if self.criterion.targets == "classes" else 1.0
        scale = default if self.scale is None else float(self.scale)
        values = {"log_ridge": math.log(self.ridge), "scale": scale, "bias": 0.0}
        return {name: np.array(value) for name, value in values.items()}

    def compare(self, params: MetaParameters, support: Array, y: Array, query: Array) -> Compared:
        """s A_Q W + b, with W from the support rows."""
        ridge, s, b = np.exp(params["log_ridge"]), params["scale"], params["bias"]
        # The constant feature adds 1 to every product of two rows.
        M = support @ support.swapaxes(1, 2) + 1 + ridge * np.eye(support.shape[1], dtype=y.dtype)
        C = query @ support.swapaxes(1, 2) + 1
        D = np.linalg.solve(M, y)
        fit = C @ D

        def pull_back(outputs_bar: Array) -> tuple[Array, Array, dict[str, Array]]:
            fit_bar = s * outputs_bar
            C_bar, D_bar = fit_bar @ D.swapaxes(1, 2), C.swapaxes(1, 2) @ fit_bar
            y_bar = np.linalg.solve(M, D_bar)  # M is symmetric: D = M⁻¹ Y has the adjoint M⁻¹ D̄
            M_bar = -y_bar @ D.swapaxes(1, 2)
            support_bar = (M_bar + M_bar.swapaxes(1, 2)) @ support + C_bar.swapaxes(1, 2) @ query
            grads = {
                "log_ridge": -(y_bar * D).sum() * ridge,  # λ̄ = tr M̄
                "scale": (outputs_bar * fit).sum(),
                "bias": outputs_bar.sum(),
            }
            return support_bar, C_bar @ support, grads

        return Compared(s * fit + b, pull_back)
