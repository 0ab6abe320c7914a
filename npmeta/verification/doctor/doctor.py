r"""The doctor: whether a meta-gradient is right, and which mistake made it if it is not.

For an answer c every known mistake has a prediction p. What is looked at is the misfit
:math:`r = \|c - p\| / \|p\|`, also times the factors that have a name, and what is left of c beside the
direction of p, :math:`r_\perp = \sqrt{1 - \cos^2}`. A cosine alone cannot rank: a gradient whose steps
were gone back through in the wrong order has 1.0000.

A mistake is named only if its prediction agrees within what rounding explains
(:mod:`npmeta.verification.doctor.noise`), and every prediction that is not the same one is ten
times as far away.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from npmeta.tasks.checks import PathLike
from npmeta.verification.doctor.answers import Evidence, as_answer
from npmeta.verification.doctor.diagnosis import Diagnosis
from npmeta.verification.doctor.examination import Examination
from npmeta.verification.doctor.files import load_problem
from npmeta.verification.doctor.predictions import Predictions
from npmeta.verification.doctor.problem import Problem


def diagnose(
    problem: Problem | PathLike,
    gradient: ArrayLike | Mapping[str, ArrayLike],
    phi: ArrayLike | None = None,
    losses: ArrayLike | Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Judge a meta-gradient, and name the mistake that made it.

    Parameters
    ----------
    problem : Problem, or path
        MAML, θ and the tasks; or the folder of a case (:mod:`npmeta.verification.doctor.files`).
    gradient : array_like (P,), or mapping
        The answer: flat, in the order W_1 (row by row), b_1, W_2, ...; or arrays by the names
        "0.weight" (n_in, n_out), "0.bias", "1.weight", ... A float32 array is judged as float32.
    phi : array_like, (T, P) or (S + 1, T, P), optional
        Every task's parameters after the last step, or before the first and after each.
    losses : array_like (T, S) or (T, S + 1), or mapping, optional
        Support losses before every step (and after the last); or "support" with these and "query"
        with the query losses after the last step, (T,) or their mean. Whatever is given, only
        mistakes that explain it too are named. Evidence of one step more or fewer than the problem's
        is taken too: that is one of the mistakes.

    Returns
    -------
    Diagnosis
        ``.verdict``, ``.fault``, ``.ties``, ``.factor``, ``.misfit``, ``.runner_up``; it prints as
        one screen.

    Raises
    ------
    ValueError
        If the answer or the evidence has a shape that is not the problem's, or the evidence is no
        finite numbers.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> maml = nm.MAML(nm.MLP([1, 8, 8, 1], "tanh"), inner_lr=0.1, inner_steps=3)
    >>> theta = maml.init(np.random.default_rng(0))["theta"]
    >>> tasks = nm.tasks.Sinusoid(shots=5).sample(seed=0, iteration=0, n_tasks=3)
    >>> first_order = nm.MAML(maml.model, inner_lr=0.1, inner_steps=3, first_order=True)
    >>> gradient = first_order.meta_gradient(theta, tasks).grad
    >>> found = nm.diagnose(nm.Problem(maml, theta, tasks), gradient)
    >>> found.verdict, found.fault
    ('fail', 'first_order')
    """
    if not isinstance(problem, Problem | str | os.PathLike):
        raise ValueError(
            "the problem must be a Problem(maml, theta, tasks) or the folder of a case, got a "
            f"{type(problem).__name__}"
        )
    if not isinstance(problem, Problem):
        problem = load_problem(problem)
    return Doctor(problem).diagnose(gradient, phi, losses)


class Doctor:
    """:func:`diagnose` for many answers to one problem: predictions are made once.

    Parameters
    ----------
    problem : Problem
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._predictions = Predictions(problem)

    def diagnose(
        self,
        gradient: ArrayLike | Mapping[str, ArrayLike],
        phi: ArrayLike | None = None,
        losses: ArrayLike | Mapping[str, Any] | None = None,
    ) -> Diagnosis:
        """As :func:`diagnose`."""
        problem = self.problem
        answer = as_answer(problem, gradient)
        evidence = Evidence(problem, phi, losses)
        single = "float32" in (answer.dtype, problem.theta.dtype)
        precision = "float32" if single else "float64"
        with np.errstate(all="ignore"):  # some mistakes make an inner loop run away
            return Examination(
                self._predictions, answer.astype(np.float64), precision, evidence
            ).diagnosis()
