"""Curves: a case with one of its sizes made smaller and larger, float32."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.cases import CASES, Case
from benchmarks.settings import SETTINGS, available_cores

__all__ = ["CURVES", "Curve", "Point"]


@dataclass(frozen=True)
class Point:
    """One row: where it is on the x axis, its case, and the setting it is measured in."""

    value: int
    case: Case
    setting: str = "one-core"


@dataclass(frozen=True)
class Curve:
    """What grows, in words; the values on the x axis say the same in numbers."""

    label: str
    points: tuple[Point, ...]


def _resized(base: Case, name: str, values: Iterable[int], **sizes: Any) -> tuple[Point, ...]:
    """``sizes`` has functions of the value."""
    return tuple(
        Point(v, replace(base, name=f"{name} {v}", **{field: of(v) for field, of in sizes.items()}))
        for v in values
    )


_OMNIGLOT = CASES["omniglot-5w1s"]

#: Every curve, by its name.
CURVES = {
    "tasks": Curve(
        "tasks in a batch, T",
        _resized(_OMNIGLOT, "tasks", (1, 4, 16, 64, 256), tasks=lambda T: T),
    ),
    "steps": Curve(
        "inner steps, S",
        _resized(_OMNIGLOT, "steps", (1, 2, 5, 10, 20), steps=lambda S: S),
    ),
    "width": Curve(
        "width n of 784-n-n-5",
        _resized(CASES["wide"], "width", (64, 128, 256, 512, 1024), widths=lambda n: (784, n, n, 5)),
    ),
    "cores": Curve(
        "cores",
        tuple(
            Point(n, replace(_OMNIGLOT, name=f"cores {n}"), setting.name)
            for setting in SETTINGS.values()
            for n in [setting.n_cores or len(available_cores())]
        ),
    ),
}
