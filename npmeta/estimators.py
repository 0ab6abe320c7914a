r"""Estimators with the conventions of scikit-learn, which they do not need: meta-train, adapt, stream.

:class:`MetaEstimator` learns from tasks how to learn; what its ``adapt`` returns has learned one task,
and learns on as rows arrive.

>>> import numpy as np, npmeta as nm
>>> from npmeta.estimators import MetaEstimator
>>> waves = nm.tasks.Sinusoid(shots=10)
>>> learner = MetaEstimator("ridge", hidden=[16], iterations=50, random_state=0).fit(waves)
>>> x = np.linspace(-3, 3, 8)[:, None]
>>> wave = learner.adapt(x, np.sin(x[:, 0]))
>>> wave.predict(x).shape
(8,)
>>> wave.partial_fit([[4.0]], [np.sin(4.0)]).support_x_.shape
(9, 1)
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax

from npmeta import losses, optimizers
from npmeta._validation import Array, check_finite, lookup, unknown_name
from npmeta.algorithms import CAVIA, MetaLearner
from npmeta.config import Config
from npmeta.tasks import Encoding, Omniglot, Sinusoid, TaskBatch
from npmeta.tasks.draws import distinct, uniforms
from npmeta.tasks.table import _moments, _warn_of_skipped
from npmeta.training import Sampler, meta_train

__all__ = ["AdaptedEstimator", "MetaEstimator", "NotFittedError"]

#: Options that have a parameter of their own.
OWN_OPTIONS = (
    "algorithm", "hidden", "inner_lr", "inner_steps", "eval_steps", "iterations", "shots", "queries"
)  # fmt: skip

#: What ``partial_fit`` does with a task's rows.
STREAMS = ("replay", "descend")


class NotFittedError(ValueError, AttributeError):
    """An estimator was asked for what it has not learned yet."""


EstimatorT = TypeVar("EstimatorT", bound="_Parameters")


class _Parameters:
    """What was passed to the constructor, by name: nothing more happens there."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments; ``deep`` changes nothing."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names}

    def set_params(self: EstimatorT, **params: Any) -> EstimatorT:
        """Replace arguments of the constructor; ValueError names the nearest known one."""
        known = self.get_params()
        for name in params:
            if name not in known:
                raise unknown_name(name, list(known), f"parameter of {type(self).__name__}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        own = inspect.signature(type(self)).parameters
        given = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value is not own[name].default
        ]
        return f"{type(self).__name__}({', '.join(given)})"

    def _fitted(self, attribute: str, call: str) -> None:
        if not hasattr(self, attribute):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call {call} first")


class MetaEstimator(_Parameters):
    """Learn from tasks how to learn, and adapt to new ones from a few rows.

    Parameters
    ----------
    algorithm : str
        A name of :data:`npmeta.registry.ALGORITHMS`.
    hidden, inner_lr, inner_steps, eval_steps, iterations, shots, queries : optional
        Options of these names, as on the command line (``npmeta list NAME``); by default the
        algorithm's own for the kind of tasks. ``eval_steps`` are the inner steps of :meth:`adapt`;
        ``shots`` and ``queries`` are for tables of tasks, distributions have their own.
    options : mapping, optional
        Any other option of the model, the algorithm or the training, by name. Those of log,
        checkpoints and evaluation have no effect here.
    stream : {"replay", "descend"}
        What ``partial_fit`` does: :class:`AdaptedEstimator`.
    random_state : int or None
        Seed of the initial parameters and of the tasks; None takes another in every fit.

    Attributes
    ----------
    algorithm_ : MetaLearner
    params_ : dict of ndarray
        Meta-parameters.
    loss_curve_ : ndarray, (iterations,)
        The meta-loss before each outer step.
    n_features_in_ : int
    classes_ : ndarray or None
        Sorted classes that all tasks share; None where targets are numbers, or each task has classes
        of its own, as in Omniglot.
    encoding_ : Encoding
        Scales of features and targets.
    """

    algorithm_: MetaLearner
    params_: Mapping[str, Array]
    loss_curve_: Array
    n_features_in_: int
    classes_: Array | None
    encoding_: Encoding

    def __init__(
        self,
        algorithm: str = "maml",
        *,
        hidden: Sequence[int] | None = None,
        inner_lr: float | Sequence[float] | None = None,
        inner_steps: int | None = None,
        eval_steps: int | None = None,
        iterations: int | None = None,
        shots: int | None = None,
        queries: int | None = None,
        options: Mapping[str, Any] | None = None,
        stream: str = "replay",
        random_state: int | None = 0,
    ) -> None:
        self.algorithm = algorithm
        self.hidden = hidden
        self.inner_lr = inner_lr
        self.inner_steps = inner_steps
        self.eval_steps = eval_steps
        self.iterations = iterations
        self.shots = shots
        self.queries = queries
        self.options = options
        self.stream = stream
        self.random_state = random_state

    def fit(
        self, X: Sampler | ArrayLike, y: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> MetaEstimator:
        """Meta-train on a task distribution, or on a table of tasks.

        Parameters
        ----------
        X : Sampler, or array_like (rows, n_features)
            A distribution (alone), or the rows of all tasks.
        y : array_like, (rows,)
            Numbers, or classes that all tasks share. Text and booleans are classes; for whole numbers
            that are, set ``options={"target_kind": "class"}``.
        groups : array_like, (rows,)
            The task of each row.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If an option is unknown or out of range, shapes disagree, a value is not finite, or no task
            has ``shots + queries`` rows.
        """
        lookup(self.stream, dict.fromkeys(STREAMS), "stream")
        seed = self.random_state
        seed = int(np.random.default_rng().integers(2**63)) if seed is None else seed
        tasks: Any = X
        if hasattr(tasks, "sample"):
            if y is not None or groups is not None:
                raise ValueError("a task distribution brings its own y and groups")
            if self.shots is not None or self.queries is not None:
                raise ValueError("shots and queries are for tables; a task distribution has its own")
            known = {Sinusoid: "sinusoid", Omniglot: "omniglot"}
            config = self._config(known.get(type(tasks), "table"), seed)
            first = tasks.sample(config["seed"], 0, 1)
            encoding, classes, n_out = _of_distribution(tasks, first)
        else:
            config = self._config("table", seed)
            tasks, encoding, classes = _of_table(tasks, y, groups, config)
            n_out = 1 if classes is None else len(classes)
        if config["loss"] is None:
            config = config.with_values(loss="cross_entropy" if n_out > 1 else "mse")
        if losses.get(config["loss"]).targets in ("counts", "binary"):
            raise ValueError(f"estimators predict numbers or classes, not what {config['loss']} is for")
        algorithm = config.algorithm(encoding.n_in, n_out)
        params: Mapping[str, Array] = algorithm.init(
            np.random.default_rng(config["seed"]), config["dtype"]
        )
        curve = []
        for step in meta_train(
            algorithm,
            tasks,
            params,
            iterations=config["iterations"],
            meta_batch=config["meta_batch"],
            outer_lr=config["outer_lr"],
            optimizer=optimizers.get(config["optimizer"]),
            schedule=config.schedule(),
            clip=config["clip"],
            seed=config["seed"],
        ):
            params = step.params
            curve.append(step.loss)
        self.algorithm_, self.params_, self.loss_curve_ = algorithm, params, np.array(curve)
        self.encoding_, self.classes_, self._n_out = encoding, classes, n_out
        self._classifies = n_out > 1
        self._eval_steps: int = config["eval_steps"]
        self.n_features_in_ = encoding.n_in
        return self

    def adapt(self, X: ArrayLike, y: ArrayLike) -> AdaptedEstimator:
        """Adapt to a task from its rows: ``AdaptedEstimator(self).fit(X, y)``.

        Parameters
        ----------
        X : array_like, (rows, n_features)
        y : array_like, (rows,)
        """
        return AdaptedEstimator(self).fit(X, y)

    def _config(self, task: str, seed: int) -> Config:
        """The options of a run on such tasks."""
        own = {name: getattr(self, name) for name in OWN_OPTIONS}
        own.update(self.options or {}, seed=seed)
        # Searches over parameters hand over NumPy's numbers.
        plain = {n: v.item() if isinstance(v, np.generic) else v for n, v in own.items()}
        return Config(task, {name: value for name, value in plain.items() if value is not None})

    def __sklearn_tags__(self) -> Any:
        return _tags(None)


class AdaptedEstimator(_Parameters):
    r"""A task that a meta-learner has adapted to; classifier or regressor as its tasks are.

    With θ the meta-parameters and :math:`A(\theta; D)` the algorithm's adaptation to rows D
    (``eval_steps`` inner steps; for a metric learner or a ridge head, the comparison with D), ``fit``
    makes :math:`\varphi_1 = A(\theta; D_1)`, and the n-th call makes

    .. math:: \varphi_n = A(\theta; D_1 \cup \dots \cup D_n) \quad\text{("replay")}, \qquad
              \varphi_n = A(\varphi_{n-1}; D_n) \quad\text{("descend")}.

    *Replay* starts from θ and takes all rows so far: however they were cut up, the result is that of
    one ``fit`` on all of them, in that order, to the last bit. It is for every algorithm; memory and
    time of a prediction grow with the rows. *Descend* takes inner steps on the new rows alone, from
    where it is, and forgets them: online gradient descent, of constant memory. It is for algorithms
    that have inner steps. The loss is a mean over the rows of a call, so a row that comes alone moves
    the network as far as a whole support set would.

    Parameters
    ----------
    learner : MetaEstimator
        Fitted. It is not changed.
    eval_steps : int, optional
        By default the learner's.
    stream : {"replay", "descend"}, optional
        By default the learner's.

    Attributes
    ----------
    params_ : mapping of ndarray
        Meta-parameters that the last adaptation starts from: θ, or with "descend" those of φ_{n-1}.
    support_x_, support_y_ : ndarray
        The rows it takes, as the network sees them. Every prediction adapts to them anew.
    classes_ : ndarray
        Of a classifier: the learner's, or names in the order in which the task showed them.
    n_features_in_ : int

    Raises
    ------
    NotFittedError
        By every method, if the learner is not fitted; by ``predict``, ``predict_proba`` and ``score``
        before the first row.
    """

    params_: Mapping[str, Array]
    support_x_: Array
    support_y_: Array
    classes_: Array
    n_features_in_: int

    def __init__(
        self, learner: MetaEstimator, eval_steps: int | None = None, stream: str | None = None
    ) -> None:
        self.learner = learner
        self.eval_steps = eval_steps
        self.stream = stream

    def fit(self, X: ArrayLike, y: ArrayLike) -> AdaptedEstimator:
        """Adapt from the meta-parameters to these rows, and forget all others.

        Parameters
        ----------
        X : array_like, (rows, n_features)
        y : array_like, (rows,)

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If shapes do not fit, a value is not finite, or a class is unknown or one too many.
        """
        x, targets, classes = self._rows(X, y, None, self._first_classes())
        self._keep(self.learner.params_, x, targets, classes)
        return self

    def partial_fit(
        self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None
    ) -> AdaptedEstimator:
        """Adapt further to rows that have arrived; the first call is as :meth:`fit`.

        Parameters
        ----------
        X : array_like, (rows, n_features)
        y : array_like, (rows,)
        classes : array_like, optional
            Names that y may hold, now or later. They need not be said; where a task has classes of its
            own, this settles their order.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            As :meth:`fit` does; or if the stream is to descend and the algorithm has no inner steps.
        """
        stream = self.learner.stream if self.stream is None else self.stream
        lookup(stream, dict.fromkeys(STREAMS), "stream")
        self.learner._fitted("params_", "fit")
        algorithm, first = self.learner.algorithm_, not hasattr(self, "params_")
        if stream == "descend" and not hasattr(algorithm, "adapt"):
            raise ValueError(f"{self.learner.algorithm} has no inner steps to descend by; use 'replay'")
        x, targets, names = self._rows(
            X, y, classes, self._first_classes() if first else getattr(self, "classes_", None)
        )
        if first:
            self._keep(self.learner.params_, x, targets, names)
        elif stream == "replay":
            x = np.concatenate([self.support_x_, x])
            self._keep(self.params_, x, np.concatenate([self.support_y_, targets]), names)
        else:
            before = self.support_x_, self.support_y_
            self._keep(_moved(algorithm, self.params_, *before, self._steps()), x, targets, names)
        return self

    def predict(self, X: ArrayLike) -> Array:
        """Numbers or classes ``(rows,)``."""
        outputs = self._outputs(X)
        if self.learner._classifies:
            answers: Array = self.classes_[outputs.argmax(-1)]
            return answers
        return self.learner.encoding_.decode(outputs)

    @property
    def predict_proba(self) -> Any:
        """Of a classifier: a function from X to the softmax of the outputs, ``(rows, n_classes)``.

        They are probabilities where the loss is cross-entropy; elsewhere they rank the classes.
        """
        self.learner._fitted("params_", "fit")
        if not self.learner._classifies:
            raise AttributeError("numbers have no probabilities")
        return lambda X: softmax(self._outputs(X).astype(np.float64), axis=-1)

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Accuracy of classes; of numbers R², 1 − Σ (y − ŷ)² / Σ (y − ȳ)²."""
        predicted, y = self.predict(X), np.asarray(y)
        if y.shape != predicted.shape:
            raise ValueError(f"y must have shape {predicted.shape}, got {y.shape}")
        if self.learner._classifies:
            return float((predicted == self._names(y)).mean())
        left, total = ((y - predicted) ** 2).sum(), ((y - y.mean()) ** 2).sum()
        return float(1 - left / total) if total > 0 else float(left == 0)

    # --- shared by the methods above ----------------------------------------------------------------

    def _rows(
        self, X: ArrayLike, y: ArrayLike, said: ArrayLike | None, classes: Array | None
    ) -> tuple[Array, Array, Array | None]:
        """Rows as the network sees them, checked, and the classes known with them."""
        x = self._inputs(X)
        targets = _targets(y, len(x))
        if classes is None:
            return x, self.learner.encoding_.encode_targets(targets), None
        names = self._names(targets).tolist()
        known = classes.tolist()
        for name in dict.fromkeys([*([] if said is None else self._names(said).tolist()), *names]):
            if name not in known and self.learner.classes_ is not None:
                raise unknown_name(name, [str(one) for one in known], "class")
            if name not in known and len(known) == self.learner._n_out:
                raise ValueError(
                    f"{name!r} is one class too many; the learner tells {len(known)} apart"
                )
            known += [name] * (name not in known)
        return x, np.array([known.index(name) for name in names]), np.array(known)

    def _inputs(self, X: ArrayLike) -> Array:
        self.learner._fitted("params_", "fit")
        rows = _features(X)
        if rows.shape[1] != self.learner.n_features_in_:
            raise ValueError(
                f"X has {rows.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.learner.n_features_in_} features as input"
            )
        return self.learner.encoding_.encode(rows)

    def _names(self, y: ArrayLike) -> Array:
        """Classes as they are called: those of a Table are text."""
        names = np.asarray(y)
        shared = self.learner.classes_
        return names.astype(str) if shared is not None and shared.dtype.kind == "U" else names

    def _first_classes(self) -> Array | None:
        """The classes before any row: None for numbers."""
        self.learner._fitted("params_", "fit")
        if not self.learner._classifies:
            return None
        return np.array([]) if self.learner.classes_ is None else self.learner.classes_

    def _keep(self, params: Mapping[str, Array], x: Array, y: Array, classes: Array | None) -> None:
        self.params_, self.support_x_, self.support_y_ = params, x, y
        self.n_features_in_ = x.shape[1]
        if classes is not None:
            self.classes_ = classes

    def _steps(self) -> int:
        return self.learner._eval_steps if self.eval_steps is None else self.eval_steps

    def _outputs(self, X: ArrayLike) -> Array:
        """Outputs ``(rows, n_out)`` after adaptation; those that no class has yet are left out."""
        self._fitted("params_", "fit or partial_fit")
        outputs: Array = self.learner.algorithm_.predict(
            self.params_,
            self.support_x_[None],
            self.support_y_[None],
            self._inputs(X)[None],
            steps=self._steps(),
        )[0]
        return outputs[:, : len(self.classes_)] if self.learner._classifies else outputs

    def __sklearn_clone__(self) -> AdaptedEstimator:
        """An estimator without rows, of the same fitted learner: cross-validation is within a task."""
        return type(self)(**self.get_params())

    def __sklearn_tags__(self) -> Any:
        return _tags("classifier" if self.learner._classifies else "regressor")


def _moved(algorithm: Any, params: Mapping[str, Array], x: Array, y: Array, steps: int) -> Any:
    """Meta-parameters from which adapting goes on where adapting to these rows has come to."""
    adapted = algorithm.adapt(params, x[None], y[None], steps)[0]
    if isinstance(algorithm, CAVIA):
        # x W_x + (c + c') W_c + b_1: the context so far is in the bias, the one to come starts at 0.
        theta = np.array(params["theta"])
        W, b = algorithm.model.unpack(theta)[0]
        b += adapted @ W[algorithm.n_in :]
        return {"theta": theta}
    return {**params, "theta": adapted}


# --- tasks ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Grouped:
    """A sampler of tasks whose rows are in arrays, those of one task after those of another."""

    x: Array
    y: Array
    first: Array
    count: Array
    shots: int
    queries: int

    def sample(
        self, seed: int, iteration: int, n_tasks: int, *, start: int = 0, split: str = "train"
    ) -> TaskBatch:
        """As :meth:`npmeta.tasks.Table.sample`, of one split."""
        K = self.shots
        u = uniforms(seed, iteration, start, n_tasks, 1 + K + self.queries, split)
        task = (u[:, 0] * len(self.count)).astype(np.int64)
        row = self.first[task, None] + distinct(u[:, 1:], self.count[task])
        x, y = self.x[row], self.y[row]
        return TaskBatch(x[:, :K], y[:, :K], x[:, K:], y[:, K:])


def _of_table(
    X: ArrayLike, y: ArrayLike | None, groups: ArrayLike | None, config: Config
) -> tuple[_Grouped, Encoding, Array | None]:
    """Tasks, encoding and classes of a table."""
    x = _features(X)
    if y is None or groups is None:
        raise ValueError("a table needs y and groups, which names the task of each row")
    targets, task_of_row = _targets(y, len(x)), np.asarray(groups)
    if task_of_row.shape != (len(x),):
        raise ValueError(f"groups must have shape ({len(x)},), got {task_of_row.shape}")
    names, task, count = np.unique(task_of_row, return_inverse=True, return_counts=True)
    need = config["shots"] + config["queries"]
    enough = count >= need
    if not enough.any():
        raise ValueError(
            f"no task has the {need} rows that shots + queries ask for; the largest has {count.max()}"
        )
    if not enough.all():
        _warn_of_skipped([(str(names[i]), int(count[i])) for i in np.flatnonzero(~enough)], need)
    order = np.argsort(task, kind="stable")
    rows = order[enough[task[order]]]
    x, targets, count = x[rows], targets[rows], count[enough]
    n = x.shape[1]
    scaled = config["standardise"]
    mean, std = _moments(x) if scaled else (np.zeros(n), np.ones(n))
    kind = config["target_kind"]
    text = targets.dtype.kind in "USOb"
    if kind == "number" and text:
        raise ValueError(f"y must hold numbers, got dtype {targets.dtype}")
    classes, target_mean, target_std = None, 0.0, 1.0
    if kind == "class" or text:
        classes, targets = np.unique(targets, return_inverse=True)
        if len(classes) == 1:
            raise ValueError(f"y is {str(classes[0])!r} throughout; there is nothing to tell apart")
    elif scaled:
        target_mean, target_std = map(float, _moments(targets))
    encoding = Encoding(_columns(n), "y", tuple(mean), tuple(std), target_mean, target_std)
    if classes is None:
        targets = encoding.encode_targets(targets)
    tasks = _Grouped(
        encoding.encode(x), targets, np.cumsum(count) - count, count, config["shots"], config["queries"]
    )
    return tasks, encoding, classes


def _of_distribution(tasks: Any, first: TaskBatch) -> tuple[Encoding, Array | None, int]:
    """Encoding, shared classes, and number of outputs, as a distribution or its first task says."""
    x, y = first.support_x, first.support_y
    labels = y.ndim == 2 and y.dtype.kind in "iu"
    if not labels and y.shape[2:] not in ((), (1,)):
        raise ValueError(f"targets must be one number or label a row, got shape {y.shape[2:]}")
    highest = max(int(y.max()), int(first.query_y.max())) + 1 if labels else 1
    n_out = int(getattr(tasks, "n_out", highest))
    encoding = getattr(tasks, "encoding", None)
    if encoding is not None:
        return encoding, None if encoding.classes is None else np.array(encoding.classes), n_out
    n = x.shape[2]
    return Encoding(_columns(n), "y", (0.0,) * n, (1.0,) * n), None, n_out


def _columns(n: int) -> tuple[str, ...]:
    return tuple(f"x[{i}]" for i in range(n))


def _features(X: ArrayLike) -> Array:
    """Rows of features in float64, checked."""
    if hasattr(X, "tocsr"):
        raise ValueError("sparse X is not supported; pass X.toarray()")
    rows = np.asarray(X)
    if rows.dtype.kind == "c":
        raise ValueError("Complex data not supported: X must hold real numbers")
    if rows.dtype.kind not in "biufO":
        raise ValueError(f"X must hold real numbers, got dtype {rows.dtype}")
    rows = rows.astype(np.float64)
    if rows.ndim == 2 and not rows.shape[1]:
        raise ValueError(f"0 feature(s) (shape={rows.shape}) while a minimum of 1 is required.")
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"X must have shape (rows, features), at least (1, 1), got {rows.shape}")
    check_finite(rows, "X")
    return rows


def _targets(y: ArrayLike, n_rows: int) -> Array:
    """One target a row."""
    targets = np.asarray(y)
    if targets.shape != (n_rows,):
        raise ValueError(f"y must have shape ({n_rows},), a target for each row, got {targets.shape}")
    if targets.dtype.kind in "fc":
        check_finite(targets, "y")
    return targets


def _tags(kind: str | None) -> Any:
    """What scikit-learn asks for, in its own words: only it calls this, so it is there."""
    utils = sys.modules["sklearn.utils"]
    tags = utils.Tags(kind, utils.TargetTags(required=kind is not None))
    if kind == "classifier":
        tags.classifier_tags = utils.ClassifierTags()
    elif kind == "regressor":
        tags.regressor_tags = utils.RegressorTags()
    return tags
