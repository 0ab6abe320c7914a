"""Scores as a table for a terminal, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms import Scores
from npmeta.cli.runs import Run
from npmeta.tasks.registry import SIZES


def score_table(
    scored: Scores,
    loss_name: str,
    where: str,
    shown: Sequence[int] | None = None,
    *,
    inner_steps: bool = True,
) -> str:
    """Mean and 95% confidence interval after each number of inner steps, for a terminal.

    Where there are no inner steps, there is one row, without a number.
    """
    n_drawn, n_columns = scored.loss.shape
    drawn = "" if scored.names is None else f" in {n_drawn} draws"
    diverged = scored.diverged
    columns = [(f"query {loss_name}", scored.mean(), scored.interval())]
    if scored.accuracy is not None:
        columns.append(("accuracy %", 100 * scored.mean("accuracy"), 100 * scored.interval("accuracy")))
    rows = range(n_columns) if shown is None else sorted({*shown, n_columns - 1} & {*range(n_columns)})
    cells = [
        [_cell(mean[s], half[s], d) for _, mean, half in columns for d in [_decimals(mean, half)]]
        if not diverged[s]
        else [f"diverged: {diverged[s]} of {scored.n_tasks} tasks", *["diverged"] * (len(columns) - 1)]
        for s in rows
    ]
    widths = [max(len(title), *(len(row[i]) for row in cells)) for i, (title, *_) in enumerate(columns)]
    head = "  ".join(f"{title:>{w}}" for (title, *_), w in zip(columns, widths, strict=True))
    titles = ["inner steps  ", *(f"{s:>11}  " for s in rows)] if inner_steps else ["", ""]
    lines = [f"{scored.n_tasks} {where} tasks{drawn}, mean ± 95% confidence interval", titles[0] + head]
    for title, row in zip(titles[1:], cells, strict=True):
        body = "  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True))
        lines.append(title + body)
    return "\n".join(lines)


def _cell(mean: float, half: float, decimals: int) -> str:
    """A mean and its interval: with few digits where tasks have diverged, and numbers are huge."""
    form = f".{decimals}f" if not abs(mean) >= 1e6 else ".1e"
    return f"{mean:{form}} ± {half:{form}}"


def _decimals(mean: Array, half: Array) -> int:
    """Decimals that show two digits of the narrowest interval; three where there is none.

    Where all tasks have one accuracy, as in guessing one class, rounding leaves an interval of 1e-16.
    """
    counts = np.isfinite(half) & (half > 1e-12 * np.abs(mean))
    narrowest = np.min(half, initial=np.inf, where=counts)
    return int(np.clip(1 - np.floor(np.log10(narrowest)), 0, 8)) if np.isfinite(narrowest) else 3


def score_json(scored: Scores, run: Run, split: str, data: str | None = None) -> str:
    """The same as JSON, in which a number that is not finite is null; "diverged" counts tasks."""
    record: dict[str, Any] = {
        "run": str(run.folder),
        **({"split": split} if data is None else {"data": data}),
        "tasks": scored.n_tasks,
        **({} if scored.names is None else {"draws": len(scored.loss)}),
        **{name: run.config[name] for name in SIZES if name in run.config.values},
        "loss_name": run.config.loss_name,
    }
    for of in ("loss", "accuracy"):
        if of == "loss" or scored.accuracy is not None:
            for name, values in ((of, scored.mean(of)), (f"{of}_ci95", scored.interval(of))):
                record[name] = [v if np.isfinite(v) else None for v in values.tolist()]
    record["diverged"] = scored.diverged.tolist()
    return json.dumps(record, indent=1, allow_nan=False)
