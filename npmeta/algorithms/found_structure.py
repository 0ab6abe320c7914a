"""The structure that was learned: a report of it, and the plain network it amounts to."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array, as_parameters
from npmeta.algorithms import MAML, Scores, StructuredMAML
from npmeta.algorithms.adapts import Adapts
from npmeta.algorithms.base import MetaParameters, named
from npmeta.bilevel.adaptation import StepSizes
from npmeta.bilevel.objective import Risk
from npmeta.network.mlp import MLP
from npmeta.network.structure import gates_of, shares_of
from npmeta.tasks import TaskBatch

Steps = TypeVar("Steps", bound=Adapts)

#: Gates below are closed, and what is behind them is dropped by :func:`npmeta.harden`.
CLOSED = 0.1

#: Gates from here on are open; between the two they are partly open.
OPEN = 0.5


@dataclass(frozen=True)
class FoundLayer:
    """The structure of one hidden layer.

    Attributes
    ----------
    shares : dict
        p, by the names of the candidates.
    gates : ndarray, (n,)
        g; ones where there are none.
    """

    shares: dict[str, float]
    gates: Array

    @property
    def leading(self) -> str:
        """The candidate with the largest share."""
        return max(self.shares, key=self.shares.__getitem__)

    @property
    def kept(self) -> Array:
        """The units whose gates are not closed; the one most open if all are."""
        (kept,) = np.nonzero(self.gates >= CLOSED)
        return kept if len(kept) else np.argmax(self.gates, keepdims=True)

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many gates are open, partly open and closed."""
        n_open, n_closed = int((self.gates >= OPEN).sum()), int((self.gates < CLOSED).sum())
        return n_open, len(self.gates) - n_open - n_closed, n_closed


@dataclass(frozen=True, eq=False)
class StructureReport:
    """What :func:`npmeta.structure_report` found; printed, it is a table.

    Attributes
    ----------
    model, hard : MLP
        The network, and what it is hardened to.
    layers : tuple of FoundLayer
        One for each hidden layer.
    scores, hard_scores : Scores or None
        Of both networks, where there were tasks.
    """

    model: MLP
    hard: MLP
    layers: tuple[FoundLayer, ...]
    scores: Scores | None = None
    hard_scores: Scores | None = None

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("layer", "activation", "open", "partly", "closed")]
        for l, layer in enumerate(self.layers, 1):
            shares = sorted(layer.shares.items(), key=lambda item: -item[1])
            mixture = "  ".join(f"{name} {100 * share:.0f}%" for name, share in shares)
            rows.append((str(l), mixture, *map(str, layer.counts)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{l:>{widths[0]}}  {mixture:<{widths[1]}}  "
            + "  ".join(f"{n:>{w}}" for n, w in zip(counts, widths[2:], strict=True))
            for l, mixture, *counts in rows
        ]
        lines += [
            f"gates: open from {OPEN}, closed below {CLOSED}",
            "",
            f"hardened: {self.hard!r}, {self.hard.n_params} of {self.model.n_params} parameters",
        ]
        if self.scores is not None and self.hard_scores is not None:
            learned, hard = self.scores.mean(), self.hard_scores.mean()
            steps = sorted({0, 1, 5, len(learned) - 1} & set(range(len(learned))))
            lines.append(f"{f'loss on {len(self.scores.loss)} tasks':<20}  as learned  hardened")
            lines += [
                f"{s:>8} inner steps  {_loss(learned[s]):>10}  {_loss(hard[s]):>8}" for s in steps
            ]
            for scores, which in ((self.scores, "as learned"), (self.hard_scores, "hardened")):
                if scores.diverged.any():
                    most = scores.diverged.max()
                    lines.append(f"{most} of {scores.n_tasks} tasks have diverged {which}")
        return "\n".join(lines)


def _loss(mean: float) -> str:
    return f"{mean:.4g}" if np.isfinite(mean) else "diverged"


def structure_report(
    learner: MLP | Adapts,
    params: ArrayLike | MetaParameters,
    tasks: TaskBatch | None = None,
    steps: int | None = None,
) -> StructureReport:
    """The structure that parameters have, and what plain network it amounts to.

    Parameters
    ----------
    learner : MLP, MAML or another algorithm that takes gradient steps
        With a structure. An algorithm, if there are tasks.
    params : array_like (P,), or mapping
        theta, or a task's adapted parameters; or meta-parameters.
    tasks : TaskBatch, optional
        To measure the loss of both networks on, by inner step.
    steps : int, optional
        By default the learner's.

    Raises
    ------
    ValueError
        If there is no structure, parameters do not fit, or there are tasks and no algorithm.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> model = nm.MLP([1, 40, 40, 1], structure=nm.Structure(("relu", "sin")))
    >>> print(nm.structure_report(model, model.init(np.random.default_rng(0))))
    layer  activation         open  partly  closed
        1  relu 50%  sin 50%    40       0       0
        2  relu 50%  sin 50%    40       0       0
    gates: open from 0.5, closed below 0.1
    <BLANKLINE>
    hardened: MLP([1, 40, 40, 1], activation='relu'), 1761 of 1845 parameters
    """
    model, theta = _network(learner, params)
    layers = _layers(model, theta)
    if tasks is None:
        return StructureReport(model, harden(model, theta)[0], layers)
    if isinstance(learner, MLP):
        raise ValueError("to be measured on tasks, the structure must be that of an algorithm")
    hard, hard_params = harden(learner, params)
    assert isinstance(hard.objective, Risk)
    return StructureReport(
        model,
        hard.objective.model,
        layers,
        learner.evaluate(params, tasks, steps),
        hard.evaluate(hard_params, tasks, steps),
    )


@overload
def harden(learner: MLP, params: ArrayLike) -> tuple[MLP, Array]: ...
@overload
def harden(
    learner: StructuredMAML, params: ArrayLike | MetaParameters
) -> tuple[MAML, dict[str, Array]]: ...
@overload
def harden(learner: Steps, params: ArrayLike | MetaParameters) -> tuple[Steps, dict[str, Array]]: ...
def harden(learner: Any, params: ArrayLike | MetaParameters) -> tuple[Any, Any]:
    """The plain network with each layer's leading activation, without the units whose gates are closed;
    the other gates are multiplied into the weights behind them.

    Where mixtures have decided and closed gates are at 0, it computes what the network does. Of MAML, a
    step of size α on weights W behind a gate g is one of size α g² on g W, so that is the plain one's:
    where inner steps leave the structure alone, it adapts as the other does.

    Parameters
    ----------
    learner : MLP, MAML or another algorithm that takes gradient steps
        With a structure.
    params : array_like (P,), or mapping
        theta, or meta-parameters.

    Returns
    -------
    MLP, or algorithm
        Plain: the same algorithm with the same settings on the plain network; of
        :class:`~npmeta.algorithms.StructuredMAML`, whose pressures have nothing left to act on, its
        MAML.
    ndarray or dict
        Its parameters: theta ``(P',)``, or "theta" and, if it was among them, "inner_lr".
    """
    model, theta = _network(learner, params)
    plain, index, factors = _plain(model, theta)
    if isinstance(learner, MLP):
        return plain, theta[index] * factors
    inner = learner.inner

    def of_plain(step_sizes: ArrayLike) -> Array:
        alpha = StepSizes(step_sizes, inner.objective, inner.steps, theta.dtype)
        if not alpha.per_parameter and (factors == 1).all():
            return np.asarray(step_sizes)
        return alpha.written_out()[:, index] * factors**2

    others = {name: of_plain(values) for name, values in named(params).items() if name != "theta"}
    if isinstance(learner, StructuredMAML):
        learner = learner.maml
    own = {field.name for field in fields(learner)}
    if "inner_lr" in own:
        hard = replace(learner, model=plain, inner_lr=of_plain(inner.step_sizes))
    elif "inner_lr" in others:
        hard = replace(learner, model=plain)
    else:
        raise ValueError(
            f"{type(learner).__name__} is hardened with its learned 'inner_lr' beside theta"
        )
    return hard, {"theta": theta[index] * factors, **others}


def _network(learner: MLP | Adapts, params: ArrayLike | MetaParameters) -> tuple[MLP, Array]:
    """The network and theta ``(P,)``, checked."""
    model = getattr(learner, "model", None) if isinstance(learner, Adapts) else learner
    if not isinstance(model, MLP) or model.structure is None or model.n_layers == 1:
        raise ValueError(f"there is no structure in {model!r}")
    theta = as_parameters(named(params)["theta"], model.n_params)
    if theta.ndim != 1:
        raise ValueError(f"theta must have shape ({model.n_params},), got {theta.shape}")
    return model, theta


def _layers(model: MLP, theta: Array) -> tuple[FoundLayer, ...]:
    structure = model.structure
    assert structure is not None
    layers = []
    for n, shapes, arrays in zip(model.widths[1:-1], model.shapes, model.unpack(theta), strict=False):
        by_name = dict(zip(shapes, arrays, strict=True))
        shares = shares_of(by_name.get("mixture", np.zeros(1)))
        gates = gates_of(by_name["gate"]) if "gate" in by_name else np.ones(n)
        layers.append(FoundLayer(dict(zip(structure.names, shares.tolist(), strict=True)), gates))
    return tuple(layers)


def _plain(model: MLP, theta: Array) -> tuple[MLP, Array, Array]:
    """The hardened network, where theta has its parameters, and what they are multiplied by."""
    layers, structure = _layers(model, theta), model.structure
    assert structure is not None
    by_name = dict(zip(structure.names, structure.functions, strict=True))
    widths = [model.widths[0], *(len(layer.kept) for layer in layers), model.widths[-1]]
    plain = MLP(widths, [by_name[layer.leading] for layer in layers])
    inputs, outputs = np.arange(model.widths[0]), np.arange(model.widths[-1])
    kept = [inputs, *(layer.kept for layer in layers), outputs]
    gates = [np.ones(len(inputs)), *(layer.gates[layer.kept] for layer in layers)]
    places = model.unpack(np.arange(float(model.n_params)))
    index, factors = [], []
    for (W, b, *_), rows, columns, g in zip(places, kept[:-1], kept[1:], gates, strict=True):
        index.append((W[np.ix_(rows, columns)], b[columns]))
        factors.append((np.repeat(g[:, None], len(columns), axis=1), np.ones(len(columns))))
    return plain, plain.pack(index).astype(int), plain.pack(factors).astype(theta.dtype)
