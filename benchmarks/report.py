"""The table, line by line, and the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import LIBRARIES
from benchmarks.settings import SETTINGS

__all__ = ["format_header", "format_machine", "format_row", "problems", "write_json"]

_CELL = {"disagrees": "DISAGREES", "failed": "FAILED", "not installed": "not installed"}


def format_machine(machine: dict[str, Any], versions: dict[str, str | None]) -> str:
    """Two lines: the machine, and the versions."""
    load = "" if machine["load"] is None else f", load {machine['load']:.1f}"
    cores = f"{machine['cores']} core{'s' * (machine['cores'] != 1)}"
    libraries = [
        f"{LIBRARIES[package]} {found or 'not installed'}" for package, found in versions.items()
    ]
    return f"{machine['cpu']}, {cores}{load}\n{', '.join(libraries)}, Python {machine['python']}"


def format_header(peers: Sequence[str]) -> str:
    """The line above the rows; ``peers`` are those that have a column."""
    return _line("case", "dtype", "setting", "npmeta", peers, peers, "best peer", "ratio")


def format_row(row: dict[str, Any], peers: Sequence[str]) -> str:
    """One row: milliseconds, the best peer, and its time over npmeta's."""
    entries = row["entries"]
    return _line(
        row["case"],
        row["dtype"],
        SETTINGS[row["setting"]].label,
        _cell(entries["npmeta"]),
        peers,
        [_cell(entries[peer]) for peer in peers],
        row["best_peer"] or "-",
        "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
    )


def problems(row: dict[str, Any]) -> list[str]:
    """A line for every peer that disagreed or failed."""
    where = f"{row['case']} {row['dtype']} {SETTINGS[row['setting']].label}"
    return [
        f"{where}: {name} {entry['status']}: {entry['note']}"
        for name, entry in row["entries"].items()
        if entry["status"] in ("disagrees", "failed")
    ]


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Everything there is, every sample included."""
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _cell(entry: dict[str, Any]) -> str:
    if entry["median"] is None:
        return _CELL[entry["status"]]
    milliseconds = 1e3 * entry["median"]
    return f"{milliseconds:.{3 if milliseconds < 10 else 1 if milliseconds < 1000 else 0}f}"


def _line(
    case: str,
    dtype: str,
    setting: str,
    ours: str,
    peers: Sequence[str],
    cells: Sequence[str],
    best: str,
    ratio: str,
) -> str:
    columns = [f"{cell:>{max(len(peer), 9)}}" for peer, cell in zip(peers, cells, strict=True)]
    named = f"{case:<17}  {dtype:<7}  {setting:<9}"
    return "  ".join([named, f"{ours:>8}", *columns, f"{best:<13}", f"{ratio:>6}"])
