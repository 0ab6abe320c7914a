"""What makes a golden case: network, loss, sizes, step sizes, and the numbers in them.

Parameters and data are multiples of uniform numbers that a counter-based generator makes
(:func:`npmeta.tasks.draws.uniforms`), with sums, products and square roots only, rounded to float32:
the same on every machine, and for an implementation in float32 the same as for one in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms import MAML
from npmeta.network.activations import Activation
from npmeta.network.losses import LOSSES
from npmeta.network.mlp import MLP
from npmeta.network.structure import Structure
from npmeta.tasks import TaskBatch
from npmeta.tasks.draws import uniforms

#: The seed of all numbers.
SEED = 2026


@dataclass(frozen=True)
class Setting:
    """What makes one case.

    Attributes
    ----------
    family, name : str
        ``id`` is "family-name".
    about : str
        What it is there for, in a line.
    activation, loss, widths, norm, adapt_norm, norm_sets, weight_decay, first_order
        As in :class:`npmeta.MLP` and :class:`npmeta.MAML`.
    structure : Structure, optional
        In place of the activation.
    T, K, Q, S : int
        Tasks, support and query rows, inner steps.
    step_sizes : float or str
        α; or the kind of different ones ("layer", "step", "step_and_layer", "parameter",
        "step_and_parameter"); or what is adapted, by steps of zero ("head", "body",
        "every other layer", "weights", "every other parameter").
    targets : str
        "labels" and "shares" for losses of classes.
    changed : str
        How parameters and data differ from what is drawn: "zero row", "large".
    draw : int
        Which draw of parameters and data; chosen so that nothing lies near a kink.
    also : tuple
        Other activations, by a word each, whose answers are no mistake either.
    algorithm : str
        An entry of ``golden.algorithms.ALGORITHMS``.
    published_as : str
        Another name of the algorithm, with the settings that it has here.
    options : tuple
        What else the algorithm is told, as pairs of name and value.
    n_context : int
        Inputs of the network that are no features of a row, but the context.
    n_targets : int
        Outputs or classes of a task, where they are not the network's outputs.
    """

    family: str
    name: str
    about: str
    activation: str | tuple[str, ...] = "tanh"
    loss: str = "mse"
    widths: tuple[int, ...] = (4, 6, 6, 11)
    norm: str | None = None
    adapt_norm: bool = True
    norm_sets: int = 1
    structure: Structure | None = None
    T: int = 3
    K: int = 5
    Q: int = 7
    S: int = 3
    step_sizes: float | str = 0.1
    weight_decay: float = 0.0
    first_order: bool = False
    targets: str = ""
    changed: str = ""
    draw: int = 0
    also: tuple[tuple[str, Activation], ...] = ()
    algorithm: str = "maml"
    published_as: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    n_context: int = 0
    n_targets: int = 0

    @property
    def id(self) -> str:
        """The name of the case's folder."""
        return f"{self.family}-{self.name}" if self.name else self.family

    @property
    def model(self) -> MLP:
        """The network."""
        if self.structure is not None:
            return MLP(self.widths, structure=self.structure)
        return MLP(
            self.widths,
            self.activation,
            norm=self.norm,
            adapt_norm=self.adapt_norm,
            norm_sets=self.norm_sets,
        )

    @property
    def maml(self) -> MAML:
        """MAML as the case asks for it."""
        return self.maml_with(self.model)

    def maml_with(self, model: MLP) -> MAML:
        """The same with another network."""
        return MAML(
            model,
            self.loss,
            _step_sizes(self),
            self.S,
            first_order=self.first_order,
            inner_weight_decay=self.weight_decay,
        )

    @property
    def theta(self) -> Array:
        """θ, ``(P,)``: weights in ±√(3 g / n_in), with the activation's gain g; biases and shifts in
        ±0.3, scales in 1 ± 0.3; mixtures and gates in ±1, before softmax and sigmoid."""
        return self.parameters(self.model)

    def parameters(self, model: MLP, start: int = 0) -> Array:
        """Those of a network, made of the drawn numbers from ``start`` on."""
        theta = 2 * _drawn(self, "validation", start + model.n_params)[start:] - 1
        gains = [f.variance_gain for f in model.activations] + [1.0]
        layers = zip(model.unpack(theta), model.shapes, gains, strict=True)
        for (W, b, *others), names, gain in layers:
            W *= np.sqrt(3 * gain / len(W))
            b *= 0.0 if self.changed == "zero row" else 0.3
            if self.changed == "large":
                W *= 3
            for array, name in zip(others, list(names)[2:], strict=True):
                array *= 0.3 if name in ("scale", "shift") else 1.0
                array += 1.0 if name == "scale" else 0.0
        return _short(theta)

    @property
    def tasks(self) -> TaskBatch:
        """Inputs in ±1.5, and the targets that the loss takes."""
        K, rows = self.K, self.K + self.Q
        n_in, n_out = self.widths[0] - self.n_context, self.n_targets or self.widths[-1]
        u = _drawn(self, "train", self.T * rows * (n_in + 4 * n_out))
        x, v = np.split(u.reshape(self.T, rows, -1), [n_in], axis=-1)
        x, y = _short(3 * x - 1.5), _targets(self, v, n_out)
        if self.changed == "zero row":
            x[:, 1] = 0
        if self.n_targets and self.targets == "labels":  # no class without rows
            y = (np.arange(rows) + np.arange(self.T)[:, None]) % n_out
        return TaskBatch(x[:, :K], y[:, :K], x[:, K:], y[:, K:])


def _drawn(setting: Setting, split: str, n: int) -> Array:
    return uniforms(SEED, setting.draw, 0, 1, n, split)[0]


def _short(values: Array) -> Array:
    """Rounded to float32, in float64."""
    return values.astype(np.float32).astype(np.float64)


def _targets(setting: Setting, u: Array, n_out: int) -> Array:
    """Targets made of uniform numbers ``u (T, rows, 4 n_out)``."""
    kind, first = LOSSES[setting.loss].targets, u[..., :n_out]
    y: Array
    if kind == "values":
        return _short(3 * first - 1.5)
    if kind == "binary":  # mostly 0 or 1
        return _short(np.where(first < 0.4, 0, np.where(first < 0.8, 1, u[..., n_out : 2 * n_out])))
    if kind == "counts":
        y = np.floor(4 * first)
    elif setting.targets == "labels":
        y = np.floor(n_out * u[..., 0]).astype(np.int64)
    else:  # multiples of 1/16, whose sum is 1 exactly
        votes = np.floor(n_out * u[..., :16])
        y = (votes[..., None] == np.arange(n_out)).sum(-2) / 16
    return y


def _step_sizes(setting: Setting) -> float | Array:
    """A number, or different ones about 0.1, or 0.1 and zeros."""
    kind, model = setting.step_sizes, setting.model
    if not isinstance(kind, str):
        return kind
    S, L, P = setting.S, model.n_layers, model.n_params
    is_weight = np.concatenate(
        [np.full(place.stop - place.start, "weight" in name) for name, place in model.places.items()]
    )
    masks: dict[str, Array] = {
        "head": np.arange(L)[None] == L - 1,
        "body": np.arange(L)[None] < L - 1,
        "every other layer": np.arange(L)[None] % 2 == 0,
        "weights": is_weight[None],
        "every other parameter": np.arange(P)[None] % 2 == 0,
    }
    if kind in masks:
        return np.where(masks[kind], 0.1, 0.0)
    shape = {
        "layer": (1, L),
        "step": (S, 1),
        "step_and_layer": (S, L),
        "parameter": (1, P),
        "step_and_parameter": (S, P),
    }[kind]
    u = _drawn(setting, "test", shape[0] * shape[1])
    return _short(0.05 + 0.1 * u).reshape(shape)
