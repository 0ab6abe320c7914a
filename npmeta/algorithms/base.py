"""What every algorithm returns, and how meta-parameters are passed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npmeta._support.validation import (
    Array,
    DType,
    as_dtype,
    as_parameters,
    as_whole,
    check_finite,
    unmasked,
)
from npmeta.bilevel.objective import Batch
from npmeta.network.mlp import MLP
from npmeta.network.weights import total

if TYPE_CHECKING:
    from npmeta.tasks.batch import TaskBatch

#: Meta-parameters by name: "theta", and "inner_lr" where step sizes are learned.
MetaParameters: TypeAlias = Mapping[str, Array]


def named(params: ArrayLike | MetaParameters) -> MetaParameters:
    """Meta-parameters by name; an array alone is theta.

    Raises
    ------
    ValueError
        If a mapping has no "theta", or these are tasks.
    """
    if hasattr(params, "support_x") or hasattr(params, "sample"):
        raise ValueError("meta-parameters come before tasks, got tasks first")
    if not isinstance(params, Mapping):
        return {"theta": unmasked(params, "theta")}
    if "theta" not in params:
        raise ValueError(f"meta-parameters must have a 'theta', got {sorted(params)}")
    return params


def meta_parameters(
    params: ArrayLike | MetaParameters,
    n_params: int,
    others: Mapping[str, Array],
    algorithm: str,
    required: Iterable[str] = (),
) -> dict[str, Array]:
    """theta ``(P,)`` and what an algorithm has beside it, checked and in the dtype of theta.

    ``others`` say what that is by default, and so of what shape; those ``required`` have no default.
    """
    params = named(params)
    for name in params:
        if name != "theta" and name not in others:
            has = ", ".join(["theta", *others])
            raise ValueError(f"{algorithm} has no meta-parameter {name!r}; it has {has}")
    missing = [name for name in required if name not in params]
    if missing:
        raise ValueError(
            f"the meta-parameters of {algorithm} must have {', '.join(map(repr, missing))} too, got "
            f"{sorted(params)}"
        )
    theta = as_parameters(params["theta"], n_params)
    if theta.ndim != 1:
        raise ValueError(f"theta must have shape ({n_params},), got {theta.shape}")
    check_finite(theta, "theta")
    given = {"theta": theta}
    for name, default in others.items():
        value = unmasked(params.get(name, default), name)
        if value.shape != default.shape:
            raise ValueError(f"{name} must have shape {default.shape}, got {value.shape}")
        given[name] = as_dtype(value, theta.dtype, name)
    return given


def both_sets(
    prepare: Callable[[ArrayLike, ArrayLike, DType, str], Batch], tasks: TaskBatch, dtype: DType
) -> tuple[Batch, Batch]:
    """Support and query rows of tasks, each by ``prepare(x, y, dtype, name)``.

    Raises
    ------
    ValueError
        Unless these are tasks.
    """
    if not all(hasattr(tasks, name) for name in ("support_x", "support_y", "query_x", "query_y")):
        raise ValueError(
            f"tasks must be a TaskBatch, as the sample() of a task distribution makes them; got "
            f"{type(tasks).__name__}"
        )
    return (
        prepare(tasks.support_x, tasks.support_y, dtype, "support_"),
        prepare(tasks.query_x, tasks.query_y, dtype, "query_"),
    )


def all_rows(support: Batch, query: Batch) -> Batch:
    """The rows of every task, support first."""
    (x, y), (x_query, y_query) = support, query
    return np.concatenate([x, x_query], axis=1), np.concatenate([y, y_query], axis=1)


def check_network(model: object, name: str = "model") -> None:
    """Raise ValueError unless it is an MLP."""
    if not isinstance(model, MLP):
        raise ValueError(f"{name} must be an MLP, got {type(model).__name__}")


def check_steps(steps: int, name: str) -> int:
    """A number of inner steps, or a ValueError."""
    return as_whole(steps, name)


class MetaLearner(Protocol):
    """What every algorithm here can do.

    Names and shapes of meta-parameters are its own, but for "theta", which is always there. Where an
    algorithm takes no inner steps, ``steps`` changes nothing, and its scores have one column.
    """

    def init(self, rng: np.random.Generator | int, dtype: DTypeLike = np.float64) -> dict[str, Array]:
        """Initial meta-parameters."""

    def meta_gradient(self, params: MetaParameters, tasks: TaskBatch) -> MetaGradient:
        """The mean query loss after adaptation, and what an outer optimizer is to descend along."""

    def evaluate(self, params: MetaParameters, tasks: TaskBatch, steps: int | None = None) -> Scores:
        """Query loss (and accuracy) of every task after 0, 1, .., ``steps`` inner steps."""

    def predict(
        self,
        params: MetaParameters,
        support_x: ArrayLike,
        support_y: ArrayLike,
        query_x: ArrayLike,
        steps: int | None = None,
    ) -> Array:
        """Outputs (of classes: logits) on query inputs after adaptation, ``(T, Q, n_out)``."""


@dataclass(frozen=True, eq=False)
class MetaGradient:
    """The meta-loss of a batch of tasks and its gradient.

    A subclass may have more to say of each task, in arrays ``(T,)``.

    Attributes
    ----------
    loss : float
        Mean over tasks of the query loss after adaptation.
    grads : dict of ndarray
        The gradient of ``loss`` with respect to every meta-parameter that was passed, by its name.
    task_loss : ndarray, (T,)
        The query loss of each task after adaptation.
    hessian : str
        Where the second derivatives came from: "exact", "supplied", "central difference", or
        "none" (first order).
    """

    loss: float
    grads: dict[str, Array]
    task_loss: Array
    hessian: str

    @property
    def grad(self) -> Array:
        """The gradient with respect to theta, ``(P,)``."""
        return self.grads["theta"]

    @property
    def by_task(self) -> dict[str, Array]:
        """What a subclass says of each task, by name."""
        own = {field.name for field in fields(MetaGradient)}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}

    @staticmethod
    def join(parts: Sequence[MetaGradient]) -> MetaGradient:
        """The meta-gradients of several batches as that of one: their mean, each counted by its tasks.

        The sum is made in the order of the parts, in arrays of its own.
        """
        said = [part.by_task for part in parts]
        task_loss = np.concatenate([part.task_loss for part in parts])
        shares = [len(part.task_loss) / len(task_loss) for part in parts]
        grads = {
            name: total(share * part.grads[name] for part, share in zip(parts, shares, strict=True))
            for name in parts[0].grads
        }
        loss = sum(share * part.loss for part, share in zip(parts, shares, strict=True))
        joined: dict[str, Any] = {name: np.concatenate([one[name] for one in said]) for name in said[0]}
        return replace(parts[0], loss=loss, grads=grads, task_loss=task_loss, **joined)


def _over_tasks(moment: Callable[..., Array], values: Array, **options: Any) -> Array:
    """A mean or deviation over tasks, of values in units in which sums and squares do not overflow.

    The units are powers of 2, so that nothing is rounded; what is not finite shows in the result.
    """
    with np.errstate(all="ignore"):
        unit = np.ldexp(1.0, np.frexp(np.abs(values).max(0))[1] - 1)
        scaled: Array = unit * moment(values / unit, axis=0, **options)
    return scaled


@dataclass(frozen=True, eq=False)
class Scores:
    """Query loss, and accuracy where the loss is one of classes, after 0..S inner steps.

    Where there are few tasks to draw from, as in a table, most are drawn again and again. What is said
    of new tasks then rests on so many tasks as there are, not draws: draws of one task are averaged
    first, and :meth:`mean` and :meth:`interval` are of these averages. Tasks of Omniglot are other
    choices of characters, and count as they come, though they share these.

    Attributes
    ----------
    loss : ndarray, (T, S + 1)
    accuracy : ndarray, (T, S + 1), or None
        Shares between 0 and 1.
    names : sequence of str, (T,), or None
        Of the tasks, where the same may have been drawn more than once; None: no two are the same.
    """

    loss: Array
    accuracy: Array | None
    names: Sequence[str] | None = None

    @property
    def n_tasks(self) -> int:
        """Different tasks among the T."""
        return len(self.loss) if self.names is None else len(set(self.names))

    @property
    def diverged(self) -> Array:
        """How many of the ``n_tasks`` have a loss or accuracy that is not finite, ``(S + 1,)``."""
        finite = np.isfinite(self._of("loss"))
        if self.accuracy is not None:
            finite &= np.isfinite(self._of("accuracy"))
        return (~finite).sum(0)

    def mean(self, of: str = "loss") -> Array:
        """Mean over tasks after each step, ``(S + 1,)``; ``of`` is "loss" or "accuracy".

        NaN where tasks have diverged: there is no mean over all, and one over the others would flatter.
        """
        values = self._of(of)
        return np.where(self.diverged > 0, math.nan, _over_tasks(np.mean, values))

    def interval(self, of: str = "loss") -> Array:
        """Half-width of the 95% confidence interval of :meth:`mean`, ``(S + 1,)``.

        Student's t: 1.96 standard errors for hundreds of tasks, 4.3 for three, and NaN for one, and
        where tasks have diverged.
        """
        from scipy.special import stdtrit

        values = self._of(of)
        if len(values) < 2:
            return np.full(values.shape[1], math.nan)
        t = stdtrit(len(values) - 1, 0.975)
        half = t * _over_tasks(np.std, values, ddof=1) / math.sqrt(len(values))
        return np.where(self.diverged > 0, math.nan, half)

    def _of(self, of: str) -> Array:
        """``(n_tasks, S + 1)``"""
        values = {"loss": self.loss, "accuracy": self.accuracy}.get(of)
        if values is None:
            raise ValueError(f"there is no {of!r} here; of must be 'loss' or, for classes, 'accuracy'")
        # Sums of float32 over many tasks lose digits that float64 keeps.
        values = values.astype(np.float64)
        if self.names is None:
            return values
        _, task, count = np.unique(self.names, return_inverse=True, return_counts=True)
        sums = np.zeros((len(count), values.shape[1]))
        with np.errstate(all="ignore"):
            # In units in which as many of the largest numbers as are added have a sum.
            unit = 2.0 ** np.frexp(count.max())[1]
            np.add.at(sums, task, values / unit)
            means: Array = sums / count[:, None] * unit
        return means

    @staticmethod
    def of_steps(scored: Iterable[tuple[Array, Array | None]]) -> Scores:
        """From what an objective's ``score`` gives after 0, 1, .. steps."""
        losses, shares = zip(*scored, strict=True)
        accuracy = None if shares[0] is None else np.stack(shares, axis=1)
        return Scores(np.stack(losses, axis=1), accuracy)

    @staticmethod
    def join(parts: list[Scores]) -> Scores:
        """The scores of several batches as those of one."""
        shares = [part.accuracy for part in parts if part.accuracy is not None]
        names = [part.names for part in parts if part.names is not None]
        return Scores(
            np.concatenate([part.loss for part in parts]),
            np.concatenate(shares) if shares else None,
            [name for own in names for name in own] if len(names) == len(parts) else None,
        )
