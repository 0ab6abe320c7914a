"""A task that a meta-learner has adapted to, and goes on adapting to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax

from npmeta._support.validation import Array, DivergedError, check_converged, lookup, unknown_name
from npmeta.algorithms import CAVIA
from npmeta.algorithms.base import check_steps
from npmeta.estimators.conventions import Parameters, as_column, as_rows, column_names, tags

if TYPE_CHECKING:
    from npmeta.estimators.meta import MetaEstimator

#: What ``partial_fit`` does with a task's rows.
STREAMS = ("replay", "descend")


class AdaptedEstimator(Parameters):
    r"""A task that a meta-learner has adapted to; classifier or regressor as its tasks are.

    With θ the meta-parameters and :math:`A(\theta; D)` the algorithm's adaptation to rows D
    (``eval_steps`` inner steps; for what takes no steps, the comparison with D), ``fit`` makes
    :math:`\varphi_1 = A(\theta; D_1)`, and the n-th call makes

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
        DivergedError
            If the stream descends, and parameters are not finite; the estimator stays as it was.
        """
        self._check_learner()
        stream = self.learner.stream if self.stream is None else self.stream
        lookup(stream, dict.fromkeys(STREAMS), "stream")
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
            moved = _moved(algorithm, self.params_, *before, self._steps())
            if not all(np.isfinite(array).all() for array in moved.values()):
                raise DivergedError(
                    "adaptation has diverged: parameters are not finite; the estimator is as it was"
                )
            self._keep(moved, x, targets, names)
        return self

    def predict(self, X: ArrayLike) -> Array:
        """Numbers or classes ``(rows,)``.

        Raises
        ------
        DivergedError
            If outputs are not finite, which are no answers; so do ``predict_proba`` and :meth:`score`.
        """
        outputs = self._outputs(X)
        if self.learner._classifies:
            return self.classes_[outputs.argmax(-1)]
        return self.learner.encoding_.decode(outputs)

    @property
    def predict_proba(self) -> Callable[[ArrayLike], Array]:
        """Of a classifier: a function from X to the softmax of the outputs, ``(rows, n_classes)``.

        They are probabilities where the loss is cross-entropy; elsewhere they rank the classes.
        """
        self._check_learner()
        if not self.learner._classifies:
            raise AttributeError("numbers have no probabilities")

        def predict_proba(X: ArrayLike) -> Array:  # scikit-learn's scorers ask for its name
            return softmax(self._outputs(X).astype(np.float64), axis=-1)

        return predict_proba

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Accuracy of classes; of numbers R², 1 − Σ (y − ŷ)² / Σ (y − ȳ)²."""
        predicted = self.predict(X)
        y = as_column(y, len(predicted), "y")
        if self.learner._classifies:
            return float((predicted == self._names(y)).mean())
        y = y.astype(np.float64)
        left, total = ((y - predicted) ** 2).sum(), ((y - y.mean()) ** 2).sum()
        return float(1 - left / total) if total > 0 else float(left == 0)

    # --- shared by the methods above ----------------------------------------------------------------

    def _check_learner(self) -> None:
        if not hasattr(self.learner, "adapt"):
            raise ValueError(f"learner must be a MetaEstimator, got {self.learner!r}")
        self.learner._fitted("params_", "fit")

    def _rows(
        self, X: ArrayLike, y: ArrayLike, said: ArrayLike | None, classes: Array | None
    ) -> tuple[Array, Array, Array | None]:
        """Rows as the network sees them, checked, and the classes known with them."""
        self._steps()  # what is wrong with them should not wait for the first prediction
        x = self._inputs(X)
        targets = as_column(y, len(x), "y")
        if classes is None and said is not None:
            raise ValueError(f"the learner predicts numbers, which have no classes; got {said!r}")
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
        self._check_learner()
        rows, names = as_rows(X), column_names(X)
        if rows.shape[1] != self.learner.n_features_in_:
            raise ValueError(
                f"X has {rows.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.learner.n_features_in_} features as input"
            )
        expected = getattr(self.learner, "feature_names_in_", None)
        if names is not None and expected is not None and names != tuple(expected):
            raise ValueError(
                f"The feature names should match those that were passed during fit: expected "
                f"{', '.join(expected)}, got {', '.join(names)}"
            )
        return self.learner.encoding_.encode(rows)

    def _names(self, y: ArrayLike) -> Array:
        """Classes as they are called: those of a Table are text."""
        names = np.asarray(y)
        shared = self.learner.classes_
        return names.astype(str) if shared is not None and shared.dtype.kind == "U" else names

    def _first_classes(self) -> Array | None:
        """The classes before any row: None for numbers."""
        self._check_learner()
        if not self.learner._classifies:
            return None
        return np.array([]) if self.learner.classes_ is None else self.learner.classes_

    def _keep(self, params: Mapping[str, Array], x: Array, y: Array, classes: Array | None) -> None:
        self.params_, self.support_x_, self.support_y_ = params, x, y
        self.n_features_in_ = x.shape[1]
        if classes is not None:
            self.classes_ = classes

    def _steps(self) -> int:
        return check_steps(
            self.learner._eval_steps if self.eval_steps is None else self.eval_steps, "eval_steps"
        )

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
        check_converged(outputs)
        return outputs[:, : len(self.classes_)] if self.learner._classifies else outputs

    def __sklearn_clone__(self) -> AdaptedEstimator:
        """An estimator without rows, of the same fitted learner: cross-validation is within a task."""
        return type(self)(**self.get_params())

    def __sklearn_tags__(self) -> Any:
        if not hasattr(self.learner, "params_"):  # nobody knows yet
            return tags(None)
        return tags("classifier" if self.learner._classifies else "regressor")


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
