"""The table, line by line, and the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import LIBRARIES
from benchmarks.peers import OURS
from benchmarks.settings import SETTINGS

__all__ = [
    "format_header",
    "format_machine",
    "format_row",
    "format_training",
    "problems",
    "read_json",
    "write_json",
]

FORMAT = "npmeta benchmark 2"

_CELL = {"disagrees": "DISAGREES", "failed": "FAILED", "not installed": "-"}


def format_machine(machine: dict[str, Any], versions: dict[str, str | None]) -> str:
    """Two lines: the machine, and the versions."""
    load = "" if machine["load"] is None else f", load {machine['load']:.1f}"
    cores = f"{machine['cores']} core{'s' * (machine['cores'] != 1)}"
    libraries = [
        f"{LIBRARIES[package]} {found or 'not installed'}" for package, found in versions.items()
    ]
    return f"{machine['cpu']}, {cores}{load}\n{', '.join(libraries)}, Python {machine['python']}"


def format_header(columns: Sequence[str]) -> str:
    """The line above the rows; ``columns`` are those who have one, npmeta in its forms first."""
    cells = [_label(name) for name in columns]
    return _line("case", "dtype", "setting", "", columns, cells, "best peer", "ratio", "/ limit")


def format_row(row: dict[str, Any], columns: Sequence[str]) -> str:
    """One row in two lines: milliseconds, and the megabytes of memory if they were measured.

    Each ends in the best peer and how many times npmeta's that is: of memory the one with the least,
    followed by the fastest where that is another. The last column is npmeta's time over the limit.
    """
    entries = row["entries"]
    time = _line(
        row["case"]["name"],
        row["dtype"],
        SETTINGS[row["setting"]].label,
        "ms",
        columns,
        [_cell(entries.get(name), lambda entry: _milliseconds(entry["median"])) for name in columns],
        *_best(row["time"]),
        f"{entries[row['ours']]['median'] / row['limit']:.1f}",
    )
    if entries[row["ours"]]["memory"] is None:
        return time
    memory = _line(
        "",
        "",
        "",
        "MiB",
        columns,
        [_cell(entries.get(name), lambda entry: _mebibytes(entry["memory"])) for name in columns],
        *_best(row["memory"]),
        "",
    )
    return f"{time}\n{memory}{_memory_of_the_fastest(row)}"


def format_training(row: dict[str, Any], iterations: int) -> str:
    """The training run: microseconds an iteration, seconds for all of them, and what was learned."""
    n = row["chunks"]["iterations"]
    lines = [
        f"training run, {SETTINGS[row['setting']].label}: the sinusoid of the MAML paper, "
        f"float32, {row['chunks']['count']} times {n} iterations",
        f"{'':<15}  {'µs/iteration':>12}  {f'{iterations:,} in s':>13}  {'loss':>6}",
    ]
    for name, entry in row["entries"].items():
        if entry["status"] == "not installed":
            continue
        if entry["median"] is None:
            lines.append(f"{name:<15}  {_CELL[entry['status']]:>12}")
            continue
        seconds = entry["median"] / n
        lines.append(
            f"{name:<15}  {1e6 * seconds:>12.0f}  {iterations * seconds:>13.1f}  "
            f"{row['loss'][name]:>6.3f}"
        )
    for best, what in ((row["time"], "step by step"), (row["scan"], "all steps in one call")):
        if best is not None:
            lines.append(f"ratio to {best['peer']}, {what}: {best['ratio']:.2f}")
    return "\n".join(lines)


def problems(row: dict[str, Any]) -> list[str]:
    """A line for everybody who disagreed or failed."""
    name = row["case"]["name"] + " " + row["dtype"] if "case" in row else "training"
    where = f"{name} {SETTINGS[row['setting']].label}"
    return [
        f"{where}: {name} {entry['status']}: {entry['note']}"
        for name, entry in row["entries"].items()
        if entry["status"] in ("disagrees", "failed")
    ]


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Everything there is, every sample included."""
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """What :func:`write_json` wrote.

    Raises
    ------
    ValueError
        If the file is no report of this version.
    """
    report = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise ValueError(f"{path} is no report in the format {FORMAT!r}")
    return report


def _label(name: str) -> str:
    """npmeta's forms go by their own names."""
    return name.removeprefix("npmeta-") if name in OURS else name


def _cell(entry: dict[str, Any] | None, show: Callable[[dict[str, Any]], str]) -> str:
    if entry is None:
        return "-"
    return _CELL[entry["status"]] if entry["median"] is None else show(entry)


def _milliseconds(seconds: float) -> str:
    number = 1e3 * seconds
    return f"{number:.{3 if number < 10 else 1 if number < 1000 else 0}f}"


def _mebibytes(memory: dict[str, Any] | None) -> str:
    return "?" if memory is None else f"{memory['extra'] / 2**20:.1f}"


def _best(best: dict[str, Any] | None) -> tuple[str, str]:
    return ("-", "-") if best is None else (best["peer"], f"{best['ratio']:.2f}")


def _memory_of_the_fastest(row: dict[str, Any]) -> str:
    if row["time"] is None or row["memory"] is None or row["time"]["peer"] == row["memory"]["peer"]:
        return ""
    fastest = row["time"]["peer"]
    its, ours = (row["entries"][name]["memory"] for name in (fastest, row["ours"]))
    return "" if its is None else f"  {fastest} {its['extra'] / ours['extra']:.2f}"


def _line(
    case: str,
    dtype: str,
    setting: str,
    unit: str,
    columns: Sequence[str],
    cells: Sequence[str],
    best: str,
    ratio: str,
    limit: str,
) -> str:
    widths = [max(len(_label(name)), 9) for name in columns]
    aligned = [f"{cell:>{width}}" for width, cell in zip(widths, cells, strict=True)]
    named = f"{case:<17}  {dtype:<7}  {setting:<9}  {unit:<3}"
    return "  ".join([named, *aligned, f"{best:<13}", f"{ratio:>6}", f"{limit:>7}"])
