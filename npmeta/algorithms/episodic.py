"""What learners without an inner loop have in common: an embedding, and a comparison of embeddings.

A task is an episode: its query rows are compared with its support rows where a shared network has put
them. Nothing is adapted by gradient steps, so the meta-gradient is an ordinary one, and exact without
second derivatives. The rows of all tasks, support and query, go through the embedding as one batch.

There are no inner steps to count: scores have one column, and ``steps`` changes nothing.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npmeta._support.memory import keep_freed_memory
from npmeta._support.validation import (
    Array,
    DType,
    as_dtype,
    as_features,
    as_generator,
    as_number,
    as_whole,
    lookup,
    unmasked,
)
from npmeta.algorithms.base import (
    MetaGradient,
    MetaParameters,
    Scores,
    both_sets,
    check_steps,
    meta_parameters,
    named,
)
from npmeta.bilevel.objective import Batch
from npmeta.network import losses, spaces
from npmeta.network.distances import DISTANCES
from npmeta.network.losses import Loss
from npmeta.network.mlp import MLP
from npmeta.network.passes import backward, forward, slopes

if TYPE_CHECKING:
    from npmeta.tasks.batch import TaskBatch

#: The output for a class without support rows: finite, and a probability of 0.
ABSENT = -1e30

#: Cross-entropy of one class a row.
CLASS_LOSS = dataclasses.replace(losses.get("cross_entropy"), soft=False)


class Passed(NamedTuple):
    """Outputs of a network, and the function from their cotangent to that of theta and to δ_1."""

    outputs: Array
    pull_back: Callable[[Array], tuple[Array, Array]]


def through(model: MLP, theta: Array, x: Array) -> Passed:
    """A network on rows ``(T, ..., n_in)``, as one batch: one product a layer.

    Batch normalisation is of each task's rows, support and query rows together.
    """
    layers = model.layers(theta, ["factored"] * model.n_layers)
    n_batches = len(x) if model.norm == "batch" else 1
    at = forward(layers, model.activations, x.reshape(n_batches, -1, x.shape[-1]))

    def pull_back(o_bar: Array) -> tuple[Array, Array]:
        back = backward(layers, at, slopes(model.activations, at), o_bar.reshape(at.z[-1].shape))
        theta_bar = n_batches * spaces.task_mean(spaces.cotangent(layers, back.gradient))
        return theta_bar, back.delta[0].reshape(*x.shape[:-1], -1)

    return Passed(at.z[-1].reshape(*x.shape[:-1], -1), pull_back)


class Compared(NamedTuple):
    """What a learner makes of embeddings, and the way back.

    Attributes
    ----------
    outputs : ndarray
        Class by class ``(T, Q, N)``, or pair by pair ``(T, Q, K)``.
    pull_back : callable
        From a cotangent of the outputs to those of the support rows ``(T, K, d)``, of the query rows
        ``(T, Q, d)``, and of the meta-parameters beside theta, by name.
    """

    outputs: Array
    pull_back: Callable[[Array], tuple[Array, Array, dict[str, Array]]]


class Episodic(ABC):
    """A learner that compares. A subclass says how in :meth:`compare`; :meth:`extra` are the
    meta-parameters it does that with. The other methods are those of every algorithm.
    """

    model: MLP | None
    ways: int | None

    @abstractmethod
    def compare(self, params: MetaParameters, support: Array, y: Array, query: Array) -> Compared:
        """Outputs for ``query (T, Q, d)``, given ``support (T, K, d)`` with targets ``y (T, K, N)``."""

    def extra(self) -> dict[str, Array]:
        """Initial meta-parameters beside theta. What is not passed has these values."""
        return {}

    @property
    def required(self) -> tuple[str, ...]:
        """Those that have no initial value that would do, being random, and have to be passed."""
        return ()

    def ordered(self, x: ArrayLike, y: ArrayLike) -> tuple[ArrayLike, ArrayLike]:
        """Support rows, before they are checked, in the order in which they are read."""
        return x, y

    @property
    def criterion(self) -> Loss:
        """What targets are prepared for, and by default the loss of the outputs."""
        return CLASS_LOSS

    def query_loss(self, outputs: Array, support_y: Array, query_y: Array) -> tuple[Array, Array]:
        """The loss of each task ``(T,)``, and its gradient in the outputs: here −log softmax.

        A row of a class without support rows has no answer. It is charged log N, as one that guesses,
        and has no gradient.
        """
        present = (support_y != 0).any(1)
        answered = (query_y @ present[:, :, None]) != 0  # (T, Q, 1)
        outputs = np.where(answered, outputs, 0)
        value, gradient, _ = CLASS_LOSS(outputs, np.where(answered, query_y, 1 / query_y.shape[-1]))
        return value, np.where(answered, gradient, 0)

    def class_outputs(self, outputs: Array, support_y: Array) -> Array:
        """Outputs class by class ``(T, Q, N)``: the largest wins."""
        return outputs

    # --- what every algorithm does ------------------------------------------------------------------

    def init(self, rng: np.random.Generator | int, dtype: DTypeLike = np.float64) -> dict[str, Array]:
        """Initial meta-parameters: "theta", the embedding's, and what the learner has beside it."""
        rng = as_generator(rng)
        theta = np.empty(0) if self.model is None else self.model.init(rng, dtype)
        return {name: np.array(a, dtype) for name, a in {"theta": theta, **self.extra()}.items()}

    @np.errstate(all="ignore")  # what diverges shows in the result
    def meta_gradient(self, params: ArrayLike | MetaParameters, tasks: TaskBatch) -> MetaGradient:
        """The mean query loss and its exact gradient.

        Parameters
        ----------
        params : mapping, or array_like (P,)
            "theta" and, optionally, what else :meth:`init` makes; or theta alone. What is not passed
            has its initial value.
        tasks : TaskBatch

        Returns
        -------
        MetaGradient
            With a gradient under every name that was passed. There are no second derivatives in it;
            ``hessian`` is "exact".

        Raises
        ------
        ValueError
            If shapes, labels or names do not fit.
        """
        keep_freed_memory()
        passed = set(named(params))
        given = self._given(params)
        (support_x, support_y), (query_x, query_y) = self._prepare(tasks, given["theta"].dtype)
        support, query, pull_back = self._embed(given["theta"], support_x, query_x)
        compared = self.compare(given, support, support_y, query)
        value, outputs_bar = self.query_loss(compared.outputs, support_y, query_y)
        support_bar, query_bar, grads = compared.pull_back(outputs_bar / len(value))
        grads["theta"] = pull_back(support_bar, query_bar)
        grads = {name: np.asarray(grads[name]) for name in given if name in passed}
        return MetaGradient(float(value.real.mean()), grads, value, "exact")

    @np.errstate(all="ignore")  # what diverges shows in the result
    def evaluate(
        self, params: ArrayLike | MetaParameters, tasks: TaskBatch, steps: int | None = None
    ) -> Scores:
        """Query loss (and accuracy, for classes) of every task: one column, whatever ``steps``.

        Returns
        -------
        Scores
            ``.loss (T, 1)``, and ``.accuracy (T, 1)`` or None.

        Raises
        ------
        ValueError
            As :meth:`meta_gradient` does, or if ``steps`` is no number of steps.
        """
        check_steps(0 if steps is None else steps, "steps")
        given = self._given(params)
        (support_x, support_y), (query_x, query_y) = self._prepare(tasks, given["theta"].dtype)
        support, query, _ = self._embed(given["theta"], support_x, query_x)
        outputs = self.compare(given, support, support_y, query).outputs
        value, _ = self.query_loss(outputs, support_y, query_y)
        right = losses.accuracy(self.criterion, self.class_outputs(outputs, support_y), query_y)
        return Scores(value[:, None], None if right is None else right[:, None])

    @np.errstate(all="ignore")  # what diverges shows in the result
    def predict(
        self,
        params: ArrayLike | MetaParameters,
        support_x: ArrayLike,
        support_y: ArrayLike,
        query_x: ArrayLike,
        steps: int | None = None,
    ) -> Array:
        """Outputs on query inputs, ``(T, Q, N)``; ``steps`` changes nothing.

        Raises
        ------
        ValueError
            If shapes or labels do not fit.
        """
        check_steps(0 if steps is None else steps, "steps")
        given = self._given(params)
        dtype = given["theta"].dtype
        support_x, support_y = self.ordered(support_x, support_y)
        y = self.criterion.prepare(support_y, self._n_out(support_y), dtype, "support_y")
        x, qx = self._rows(support_x, dtype, "support_x"), self._rows(query_x, dtype, "query_x")
        if x.shape[:2] != y.shape[:2] or len(qx) != len(x) or qx.shape[2] != x.shape[2]:
            raise ValueError(
                f"support_x (T, K, n_in), support_y (T, K) and query_x (T, Q, n_in) must agree in T, K "
                f"and n_in, got {x.shape}, {y.shape[:2]} and {qx.shape}"
            )
        support, query, _ = self._embed(given["theta"], x, qx)
        return self.class_outputs(self.compare(given, support, y, query).outputs, y)

    # --- shared by the methods above ----------------------------------------------------------------

    def _given(self, params: ArrayLike | MetaParameters) -> dict[str, Array]:
        """All meta-parameters, checked and in the dtype of theta."""
        n_params = 0 if self.model is None else self.model.n_params
        return meta_parameters(params, n_params, self.extra(), type(self).__name__, self.required)

    def _prepare(self, tasks: TaskBatch, dtype: DType) -> tuple[Batch, Batch]:
        """Inputs and targets of the support and the query rows, checked and cast."""

        def prepare(x: ArrayLike, y: ArrayLike, dtype: DType, name: str) -> Batch:
            if name == "support_":
                x, y = self.ordered(x, y)
            n_out = self._n_out(tasks.support_y, tasks.query_y)
            rows = self._rows(x, dtype, f"{name}x")
            return rows, self.criterion.prepare(y, n_out, dtype, f"{name}y")

        return both_sets(prepare, tasks, dtype)

    def _n_out(self, *targets: ArrayLike) -> int:
        """N: ``ways``, or the last axis of the targets, or what the largest label makes it."""
        if self.ways is not None:
            return self.ways
        arrays = [unmasked(y, "targets") for y in targets]
        if arrays[0].ndim == 3:
            return int(arrays[0].shape[-1])
        if self.criterion.targets != "classes":
            return 1
        return max(int(y.max()) + 1 if y.size and y.dtype.kind in "biu" else 1 for y in arrays)

    def _rows(self, x: ArrayLike, dtype: DType, name: str) -> Array:
        """Inputs ``(T, rows, n_in)``, checked and cast."""
        array = as_features(x, name)
        if array.ndim != 3:
            raise ValueError(f"{name} must have shape (T, rows, n_in), got {array.shape}")
        if self.model is None:
            return as_dtype(array, dtype, name)
        return self.model.features(array, dtype, name)

    def _embed(
        self, theta: Array, support_x: Array, query_x: Array
    ) -> tuple[Array, Array, Callable[[Array, Array], Array]]:
        """Embeddings of the support and the query rows, and the function from their cotangents to θ̄."""
        if self.model is None:
            return support_x, query_x, lambda support_bar, query_bar: np.zeros_like(theta)
        K = support_x.shape[1]
        embedded, pull_back = through(self.model, theta, np.concatenate([support_x, query_x], axis=1))

        def to_theta(support_bar: Array, query_bar: Array) -> Array:
            return pull_back(np.concatenate([support_bar, query_bar], axis=1))[0]

        return embedded[:, :K], embedded[:, K:], to_theta


class ByDistance(Episodic):
    """A learner whose outputs are distances of embeddings, times a scale s.

    s is a meta-parameter, by default 10 for cosines, which lie in [−1, 1], and 1 for the others.
    """

    distance: str
    scale: float | None

    def __post_init__(self) -> None:
        check_model(self.model, self.ways)
        lookup(self.distance, DISTANCES, "distance")
        if self.scale is not None:
            check_scale(self.scale)

    def extra(self) -> dict[str, Array]:
        default = 10.0 if self.distance == "cosine" else 1.0
        return {"scale": np.array(default if self.scale is None else float(self.scale))}


class ByLoss(Episodic):
    """A learner whose outputs on the query rows are judged by a loss of one's choice."""

    loss: str | Loss

    @property
    def criterion(self) -> Loss:
        return losses.get(self.loss)

    def query_loss(self, outputs: Array, support_y: Array, query_y: Array) -> tuple[Array, Array]:
        """``loss`` of the outputs."""
        value, gradient, _ = self.criterion(outputs, query_y)
        return value, gradient


def in_order(x: ArrayLike, y: ArrayLike, key: Callable[[Array], Array]) -> tuple[Array, Array]:
    """The rows of every task, the one with the smallest key first: for what reads them one by one.

    Keys are of inputs alone, so that the order knows nothing of labels, and is the same in whatever
    order rows come. Rows of one key stay as they come.

    Parameters
    ----------
    x : array_like, (T, rows, n_in)
    y : array_like, (T, rows, ...)
    key : callable
        From x to ``(T, rows)``.
    """
    x, y = as_features(x, "support_x"), unmasked(y, "support_y")
    if x.ndim != 3 or y.shape[:2] != x.shape[:2]:
        return x, y  # and be refused where shapes are checked
    rows = key(x).argsort(1, kind="stable")
    tasks = np.arange(len(x))[:, None]
    return x[tasks, rows], y[tasks, rows]


def check_model(model: object, ways: int | None, needed_by: str = "") -> None:
    """Raise ValueError unless these can be fields of a learner, which may need both."""
    if needed_by and (model is None or ways is None):
        raise ValueError(f"{needed_by} needs a model and the number of its outputs")
    if model is not None and not isinstance(model, MLP):
        raise ValueError(f"model must be an MLP (or None: no embedding), got {type(model).__name__}")
    if ways is not None:
        as_whole(ways, "ways", 1)


def check_scale(scale: object, name: str = "scale") -> None:
    """Raise ValueError unless it is a positive, finite number."""
    as_number(scale, name, "a positive number", lambda s: s > 0)
