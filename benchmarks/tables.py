"""``python -m benchmarks.tables NAME``: a table of a paper, ours beside theirs.

``list`` shows the tables, ``all`` makes every one. A row is trained once for each seed, in a folder
``OUT/NAME/ROW/seed-N`` that is a run like any other: ``npmeta evaluate`` and ``plot`` take it. What was
stopped goes on where it was when the same command is given again, and what is done is not done twice.
After every run the table as it then stands is in ``OUT/NAME.md`` and ``OUT/NAME.json``.

**Minutes** are of the clock, with whatever else the machine did; of a run that was stopped, by the
speed of its last part.

**The interval** is of 95 %: with one seed over its test tasks, as in the papers; with several over the
seeds' means, by Student's t, so that it holds what another initialisation would change. Each seed has
test tasks of its own.

**Shortened**: ``--iterations N`` makes N iterations where the paper makes more, in folders of their
own, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import npmeta as nm
from benchmarks.papers import TABLES, Published, Row, Table
from npmeta._support.files import write_atomically
from npmeta._support.validation import unknown_name
from npmeta.algorithms.registry import ALGORITHMS
from npmeta.cli.commands import resume_run, say, start_run
from npmeta.cli.runs import Run
from npmeta.training.config import Config

__all__ = ["main"]

#: In a run's folder: its scores at the table's steps.
SCORES = "table.json"


@dataclass(frozen=True)
class Plan:
    """What to make of a table: where, with how many seeds and, perhaps, fewer iterations."""

    name: str
    out: Path
    seeds: int
    iterations: int | None
    data: str | None

    @property
    def table(self) -> Table:
        return TABLES[self.name]

    def config(self, row: Row, seed: int) -> Config:
        """The run of a row: its own options, the seed, the data, the iterations."""
        settled: dict[str, Any] = {"seed": seed, "eval_steps": max(self.table.steps)}
        if self.table.task == "omniglot":
            settled["data"] = self.data
        config = Config(self.table.task, row.values, settled)
        return config.with_values(iterations=self._made(config["iterations"]))

    def _made(self, iterations: int) -> int:
        return iterations if self.iterations is None else min(iterations, self.iterations)

    def shortens(self, row: Row) -> bool:
        iterations = Config(self.table.task, row.values)["iterations"]
        return bool(self._made(iterations) < iterations)

    def folder(self, row_name: str, seed: int) -> Path:
        short = f"-iterations-{self.iterations}" if self.shortens(self.table.rows[row_name]) else ""
        return self.out / self.name / row_name / f"seed-{seed}{short}"


# --- runs -------------------------------------------------------------------------------------------


def make(plan: Plan, row_name: str, seed: int, workers: int) -> int:
    """Train a row's run, or go on with it, and score it. The exit status of training."""
    row, folder = plan.table.rows[row_name], plan.folder(row_name, seed)
    if _scores(plan, row_name, seed) is not None:
        return 0
    config = plan.config(row, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    started, made = time.monotonic(), 0
    with redirect_stdout(sys.stderr):  # standard output is the table's
        if (folder / "config.toml").exists():
            made = Run(folder).load().iteration
            given = {name: config[name] for name in (*row.values, "seed", "eval_steps", "iterations")}
            if plan.data is not None and plan.table.task == "omniglot":
                given["data"] = plan.data
            status = resume_run(folder, plan.table.task, given, workers)
        else:
            status = start_run(config, folder, workers)
    # A status of 1 may say that tasks of the test diverged, which is a score like any other.
    if (folder / "evaluation.json").exists():
        minutes = (time.monotonic() - started) / 60
        share = 1 - made / config["iterations"]  # of the run that was made now
        record = {
            "tested": _tested(plan.table),
            "minutes": minutes / share if share else None,
            **_score(plan.table, Run(folder)),
        }
        write_atomically(folder / SCORES, json.dumps(record, indent=1) + "\n")
    return status


def _score(table: Table, run: Run) -> dict[str, Any]:
    """Mean and interval at each of the table's steps; at the last alone where there are no steps."""
    config = run.config.with_values(**table.test)
    tasks: Any = config.tasks()
    algorithm = config.algorithm(tasks.n_in, tasks.n_out)
    scored = nm.evaluate(
        algorithm,
        run.load().params,
        OnGrid(tasks, table.grid) if table.grid else tasks,
        n_tasks=config["eval_tasks"],
        steps=max(table.steps) if config.inner_steps else None,
        seed=config["seed"],
    )
    with np.errstate(all="ignore"):  # a task that diverges is said in the table
        mean, half = scored.mean(table.measure), scored.interval(table.measure)
    columns = {step: step for step in table.steps} if len(mean) > 1 else {table.steps[-1]: 0}
    percent = 100 if table.measure == "accuracy" else 1
    return {
        "tasks": len(scored.loss),
        "mean": {str(step): _finite(percent * mean[i]) for step, i in columns.items()},
        "ci95": {str(step): _finite(percent * half[i]) for step, i in columns.items()},
    }


def _finite(value: float) -> float | None:
    """A number for JSON, which has none for what is not finite."""
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class OnGrid:
    """Sine waves whose query points are evenly spaced over the range of inputs."""

    waves: nm.tasks.Sinusoid
    points: int

    def sample(
        self, seed: int, iteration: int, n_tasks: int, *, start: int = 0, split: str = "train"
    ) -> nm.TaskBatch:
        drawn = self.waves.sample(seed, iteration, n_tasks, start=start, split=split)
        x = np.linspace(*self.waves.x, self.points)
        y = self.waves.curves(x, seed, iteration, n_tasks, start=start, split=split)
        grid = np.broadcast_to(x[:, None], y.shape)
        return nm.TaskBatch(drawn.support_x, drawn.support_y, grid, y)


def _tested(table: Table) -> dict[str, Any]:
    """How a table tests, as its scores record it: scores of another way are made again."""
    return {"steps": list(table.steps), "grid": table.grid, **table.test}


def _scores(plan: Plan, row_name: str, seed: int) -> dict[str, Any] | None:
    """What a run scored; None if it has not, or not with the row's options."""
    folder = plan.folder(row_name, seed)
    if not (folder / SCORES).exists():
        return None
    config, given = Run(folder).config, plan.config(plan.table.rows[row_name], seed)
    settled = ("data", "checksum", "shard_size")  # by the run itself
    if any(config[name] != value for name, value in given.values.items() if name not in settled):
        raise ValueError(f"{folder} is a run with other options; choose another --out")
    record: dict[str, Any] = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    return record if record.pop("tested") == _tested(plan.table) else None


# --- the table --------------------------------------------------------------------------------------


def interval(scores: Sequence[Mapping[str, Any]], step: str) -> tuple[float | None, float | None]:
    """Mean and half-width over seeds by Student's t; of one seed, over its tasks.

    The mean is None where a seed's is: the inner loop diverged on some of its tasks.
    """
    if any(score["mean"][step] is None for score in scores):
        return None, None
    if len(scores) == 1:
        return scores[0]["mean"][step], scores[0]["ci95"][step]
    means = np.array([score["mean"][step] for score in scores])
    from scipy.stats import t

    half = t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / math.sqrt(len(means))
    return float(means.mean()), float(half)


def summary(plan: Plan) -> dict[str, Any]:
    """The table as far as it has been measured, for JSON."""
    table, rows = plan.table, []
    for name, row in table.rows.items():
        found = [_scores(plan, name, seed) for seed in range(plan.seeds)]
        scores = [score for score in found if score is not None]
        steps = scores[0]["mean"] if scores else {}
        rows.append(
            {
                "row": name,
                "label": row.label,
                "algorithm": row.values["algorithm"],
                "iterations": plan.config(row, 0)["iterations"],
                "shortened": plan.shortens(row),
                "ours": {step: interval(scores, step) for step in steps},
                "seeds": scores,
                "published": {str(step): value for step, value in row.published.items()},
                "doubt": row.doubt,
                "why": row.why,
            }
        )
    return {
        "table": plan.name,
        "title": table.title,
        "source": table.source,
        "note": table.note,
        "measure": table.measure,
        "steps": list(table.steps),
        "rows": rows,
    }


def markdown(record: Mapping[str, Any]) -> str:
    """The same for people."""
    digits = 3 if record["measure"] == "loss" else 1
    steps = [str(step) for step in record["steps"]]
    titles = [""]
    for step in steps:
        titles += [f"ours, {step} step{'s' * (step != '1')}" if step != "0" else "ours", "theirs"]
    lines = [f"### {record['title']}", "", f"Theirs: {record['source']}. {record['note']}", ""]
    if any(row["shortened"] for row in record["rows"]):
        lines += [
            "**Shortened: not the iterations of the paper.** The last column has their number.",
            "",
        ]
    titles += ["seeds", "iterations", "minutes"]
    lines += [_line(titles), _line(["---"] * len(titles))]
    doubts: list[str] = []
    for row in record["rows"]:
        cells = [row["label"]]
        for step in steps:
            published = _theirs(row["published"].get(step))
            if published and row["doubt"]:
                if row["doubt"] not in doubts:
                    doubts.append(row["doubt"])
                published += f" ({doubts.index(row['doubt']) + 1})"
            cells += [_ours(row, step, digits), published]
        cells += [str(len(row["seeds"])), f"{row['iterations']:,}", _minutes(row)]
        lines.append(_line(cells))
    lines += ["", "± is a 95 % interval: over test tasks with one seed, over seeds with several."]
    if doubts:
        what = "; ".join(f"({i}) {doubt}" for i, doubt in enumerate(doubts, 1))
        lines.append(f"Not certain: {what}.")
    best = _best(record)
    return "\n".join([*lines, *([best] if best else [])]) + "\n"


def _best(record: Mapping[str, Any]) -> str:
    """Which algorithm is best after the last step, and what it does; the oracle does not count."""
    last, sign = str(record["steps"][-1]), -1 if record["measure"] == "loss" else 1
    measured = [
        row
        for row in record["rows"]
        if row["algorithm"] != "oracle" and row["ours"].get(last, (None, None))[0] is not None
    ]
    if len({row["algorithm"] for row in measured}) < 2:
        return ""
    best = max(measured, key=lambda row: sign * row["ours"][last][0])
    what = f"Best of those measured: {best['label']} ({ALGORITHMS[best['algorithm']].summary})."
    return what + (f" {best['why']}." if best["why"] else "")


def _minutes(row: Mapping[str, Any]) -> str:
    """Of the slowest seed."""
    known = [score["minutes"] for score in row["seeds"] if score["minutes"] is not None]
    return f"{max(known):.1f}" if known else ""


def _ours(row: Mapping[str, Any], step: str, digits: int) -> str:
    if not row["seeds"]:
        return "not yet measured"
    if step not in row["ours"]:  # a learner without steps, in a column before the last
        return ""
    mean, half = row["ours"][step]
    return "diverges" if mean is None or half is None else f"{mean:.{digits}f} ± {half:.{digits}f}"


def _theirs(value: Published | None) -> str:
    """As published, without digits that are not."""
    if value is None:
        return ""
    mean, half = value
    return f"{mean:g}" + ("" if half is None else f" ± {half:g}")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


# --- command line -----------------------------------------------------------------------------------


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Make tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", metavar="NAME", choices=(*TABLES, "all", "list"))
    parser.add_argument("--row", action="append", metavar="ROW", help="train only this; repeatable")
    parser.add_argument(
        "--seeds", type=_positive, default=1, metavar="N", help="runs a row: 0 to N - 1"
    )
    parser.add_argument("--iterations", type=_positive, metavar="N", help="at most so many, to shorten")
    parser.add_argument("--out", type=Path, default=Path("tables"), help="folder (default: tables)")
    parser.add_argument("--workers", type=_positive, default=1, metavar="N", help="processes")
    parser.add_argument("--data", metavar="PATH", help="Omniglot's images_background.zip")
    args = parser.parse_args(argv)
    if args.table == "list":
        for name, table in TABLES.items():
            print(f"{name}: {table.title} ({table.source})\n    {' '.join(table.rows)}")
        return 0
    names = list(TABLES) if args.table == "all" else [args.table]
    try:
        known = list(dict.fromkeys(row for name in names for row in TABLES[name].rows))
        for row in args.row or ():
            if row not in known:
                raise unknown_name(row, known, "row")
        if args.data is None and any(TABLES[name].task == "omniglot" for name in names):
            raise ValueError(f"{args.table} needs Omniglot's images_background.zip: --data PATH")
        plans = [Plan(name, args.out, args.seeds, args.iterations, args.data) for name in names]
        return max([_make_table(plan, args.row, args.workers) for plan in plans])
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        say("stopped; the same command goes on")
        return 130


def _make_table(plan: Plan, chosen: Sequence[str] | None, workers: int) -> int:
    """Make the runs that are missing, and print the table."""
    failed = 0
    rows = [name for name in plan.table.rows if chosen is None or name in chosen]
    for seed in range(plan.seeds):  # all rows once, before any of them twice
        for row in rows:
            status = make(plan, row, seed, workers)
            if status > 128:  # ended by a signal
                raise KeyboardInterrupt
            failed = failed or status  # that one diverged, as it has said; the others go on
            record = summary(plan)
            text = markdown(record)
            write_atomically(plan.out / f"{plan.name}.json", json.dumps(record, indent=1) + "\n")
            write_atomically(plan.out / f"{plan.name}.md", text)
    if rows:
        print(text)
    return failed


if __name__ == "__main__":
    sys.exit(main())
