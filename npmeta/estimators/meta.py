"""The estimator that learns from tasks how to learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array, lookup
from npmeta.algorithms import MetaLearner
from npmeta.algorithms.registry import DEFAULT
from npmeta.bilevel import optimizers
from npmeta.estimators.adapted import STREAMS, AdaptedEstimator
from npmeta.estimators.conventions import Parameters, column_names, tags
from npmeta.estimators.tables import of_distribution, of_table
from npmeta.network import losses
from npmeta.tasks import Encoding
from npmeta.tasks.registry import TABLE, kind_of
from npmeta.training.config import Config
from npmeta.training.loop import Sampler, meta_train

#: Options that have a parameter of their own.
OWN_OPTIONS = (
    "algorithm", "hidden", "inner_lr", "inner_steps", "eval_steps", "iterations", "shots", "queries"
)  # fmt: skip


class MetaEstimator(Parameters):
    """Learn from tasks how to learn, and adapt to new ones from a few rows.

    Parameters
    ----------
    algorithm : str
        A name of :data:`npmeta.algorithms.registry.ALGORITHMS`.
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
    feature_names_in_ : ndarray of str
        Columns of a data frame or a :class:`~npmeta.tasks.Table`, and only there: data frames with
        other columns, or in another order, are refused from then on.
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
    feature_names_in_: Array
    classes_: Array | None
    encoding_: Encoding

    def __init__(
        self,
        algorithm: str = DEFAULT,
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
        if hasattr(tasks, "sample") and not hasattr(tasks, "__array__"):  # a data frame has both
            if y is not None or groups is not None:
                raise ValueError("a task distribution brings its own y and groups")
            if self.shots is not None or self.queries is not None:
                raise ValueError("shots and queries are for tables; a task distribution has its own")
            config = self._config(kind_of(tasks).name, seed)
            first = tasks.sample(config["seed"], 0, 1)
            encoding, classes, n_out = of_distribution(tasks, first)
            names = encoding.features if hasattr(tasks, "encoding") else None
        else:
            config = self._config(TABLE.name, seed)
            tasks, encoding, classes = of_table(tasks, y, groups, config)
            n_out, names = 1 if classes is None else len(classes), column_names(X)
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
            params,
            tasks,
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
        vars(self).pop("feature_names_in_", None)
        if names is not None:
            self.feature_names_in_ = np.array(names, dtype=object)
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
        # Searches over parameters hand over NumPy's numbers and arrays.
        plain = {n: v.tolist() if isinstance(v, np.generic | np.ndarray) else v for n, v in own.items()}
        return Config(task, {name: value for name, value in plain.items() if value is not None})

    def __sklearn_tags__(self) -> Any:
        return tags(None)
