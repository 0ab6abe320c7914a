"""Adapting a trained run to somebody's own examples: CSV files in, predictions as CSV out."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from scipy.special import expit

from npmeta._support.reading import read_file
from npmeta._support.validation import Array, check_converged, shortened
from npmeta.cli.runs import Run
from npmeta.network import losses
from npmeta.tasks.checks import existing
from npmeta.tasks.columns import LONGEST, read_csv


def _table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file as they stand in it."""
    try:
        header, rows, _ = read_csv(read_file(existing(path)))
    except ValueError as error:
        raise ValueError(f"{path}: {shortened(str(error), LONGEST)}") from None
    return header, rows


def _means(outputs: Array, loss: str) -> Array:
    """What outputs predict of numbers: log-rates give rates, logits of one output probabilities."""
    targets = losses.get(loss).targets
    if targets == "counts":
        return np.exp(outputs)
    if targets == "binary":
        return expit(outputs)
    return outputs


def predict(run: Run, support: Path, query: Path, steps: int | None = None) -> str:
    """The query file with new columns: what the network predicts after adapting to the support file.

    Parameters
    ----------
    run : Run
    support, query : path
        CSV files with the run's columns; sinusoid: ``x`` and ``y``; omniglot: ``image`` (a path) and
        ``label``. The query file needs no target.
    steps : int, optional
        Inner steps, by default the run's ``eval_steps``.

    Returns
    -------
    str
        CSV text.

    Raises
    ------
    ValueError
        If a file or the run cannot be read, or a column is missing.
    DivergedError
        If outputs are not finite, which are no predictions.
    """
    form = run.config.kind.rows(run.config.values, run.encoding() if run.config.kind.encodes else None)
    support_x, support_y = form.support(support)
    query_x = form.query(query)
    algorithm = run.config.algorithm(form.n_in, form.n_out)
    params = run.params_for(algorithm)
    steps = run.config["eval_steps"] if steps is None else steps
    outputs = algorithm.predict(params, support_x[None], support_y[None], query_x[None], steps=steps)
    check_converged(outputs[0])
    with np.errstate(over="ignore"):  # a rate is the exponential of an output
        answers = _means(outputs[0], run.config["loss"])
    check_converged(answers)
    head, rows = _table(query)
    columns = form.answers(answers)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, *(name for name, _ in columns)])
    for row, *cells in zip(rows, *(values for _, values in columns), strict=True):
        writer.writerow([*row, *cells])
    return text.getvalue()
