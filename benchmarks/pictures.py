"""Pictures of a report: bars of ratios for the table, lines of time and memory for the curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.curves import CURVES
from benchmarks.settings import SETTINGS
from npmeta.cli.plots import AFTER, BEFORE, INK, MIDDLE, POINT, _figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["check", "curves", "draw", "table"]

Rows = Sequence[dict[str, Any]]

_LIGHT = "#7fb2dc"

#: Colour, marker and line of everybody who may have a line, the first below the others.
_STYLES = {
    "npmeta-dense": (_LIGHT, "v", ":"),
    "npmeta-factored": (_LIGHT, "^", "--"),
    "npmeta": (AFTER, "o", "-"),
    "npmeta-sharded": (INK, "D", "-"),
    "jax": (POINT, "s", "-"),
    "jax-mixed": (POINT, "s", "--"),
    "torch-func": (MIDDLE, "o", ":"),
    "torch-batched": (MIDDLE, "o", "--"),
    "torch-loop": (MIDDLE, "o", "-"),
    "torch-compile": (MIDDLE, "o", "-."),
}


def check(path: Path) -> None:
    """Hear of a missing matplotlib, or a missing folder, before measuring.

    Raises
    ------
    ImportError, FileNotFoundError
    """
    _figure(1, 1, size=(1.0, 1.0))
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for the picture")


def draw(report: dict[str, Any], path: Path) -> None:
    """The curves if the report has some, else the table.

    Raises
    ------
    ValueError
        If there is nothing to draw.
    """
    if any("curve" in row for row in report["rows"]):
        figure = curves(report["rows"])
    elif report["rows"] or report["training"]:
        figure = table(report["rows"], report["training"])
    else:
        raise ValueError("there are no rows to draw")
    save(figure, path)


# --- the table ------------------------------------------------------------------------------------


def table(rows: Rows, training: Rows = ()) -> Figure:
    """A bar for each row: how many times npmeta's time, and memory, the best peer's is."""
    names = list(dict.fromkeys(row["case"]["name"] for row in rows))
    bars = [
        (name, f"{row['dtype']}, {SETTINGS[row['setting']].label}", row["time"], row["memory"])
        for name in names
        for row in rows
        if row["case"]["name"] == name
    ]
    bars += [
        ("training run", f"float32, {SETTINGS[row['setting']].label}", row["time"], None)
        for row in training
    ]
    # A gap between cases; the first row is on top.
    heights, y, last = [], 0.0, bars[0][0]
    for case, *_ in bars:
        y -= 1.0 if case == last else 1.7
        heights.append(y)
        last = case
    with_memory = any(memory is not None for *_, memory in bars)
    figure, axes = _figure(
        1, 1 + with_memory, size=(6.4 + 4.2 * with_memory, 1.3 + 0.22 * -y), squeeze=False, sharey=True
    )
    for ax, column, title in zip(axes[0], (2, 3), ("time", "extra peak memory"), strict=False):
        _bars(ax, heights, [bar[column] for bar in bars])
        ax.set_title(f"{title}: best peer / npmeta", fontsize=10, loc="left")
    first = axes[0, 0]
    first.set_yticks(heights, [label for _, label, *_ in bars], fontsize=8)
    for name in dict.fromkeys(case for case, *_ in bars):
        own = [h for h, (case, *_) in zip(heights, bars, strict=True) if case == name]
        first.annotate(
            name,
            (-0.36, sum(own) / len(own)),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="center",
            weight="bold",
            fontsize=9,
            annotation_clip=False,
        )
    return figure


def _bars(ax: Axes, heights: Sequence[float], bests: Sequence[dict[str, Any] | None]) -> None:
    """From 1 to the ratio on a logarithmic axis, and who the best peer is beside it."""
    ax.set_xscale("log")
    for y, best in zip(heights, bests, strict=True):
        if best is None:
            continue
        ratio = best["ratio"]
        ahead = ratio >= 1
        ax.barh(y, ratio - 1, left=1, height=0.8, color=AFTER if ahead else POINT)
        ax.annotate(
            f"{ratio:.2g} {best['peer']}" if ratio < 100 else f"{ratio:.0f} {best['peer']}",
            (ratio, y),
            xytext=(4 if ahead else -4, 0),
            textcoords="offset points",
            ha="left" if ahead else "right",
            va="center",
            fontsize=7,
            color=INK,
        )
    ratios = [best["ratio"] for best in bests if best is not None] or [1.0]
    # Room for the words at both ends.
    ax.set_xlim(min(0.35, 0.25 * min(ratios)), max(4.0, 5 * max(ratios)))
    low, high = ax.get_xlim()
    ticks = [m * 10.0**e for e in range(-4, 5) for m in ((1, 2, 5) if high < 1000 * low else (1,))]
    ax.set_xticks([x for x in ticks if low <= x <= high])
    ax.set_xticks([], minor=True)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    ax.axvline(1, color=INK, lw=0.8)
    ax.spines["left"].set_visible(False)
    ax.tick_params("y", length=0)
    ax.set_xlabel("← npmeta needs more    npmeta needs less →", fontsize=8)


# --- the curves -----------------------------------------------------------------------------------


def curves(rows: Rows) -> Figure:
    """Time above, memory below, on logarithmic axes, and a thin line of what grows in proportion."""
    names = [name for name in CURVES if any(row.get("curve") == name for row in rows)]
    dtype = rows[0]["dtype"]
    quantities: list[tuple[str, Callable[[dict[str, Any]], float | None]]] = [
        ("ms a meta-gradient", lambda entry: entry["median"] and 1e3 * entry["median"])
    ]
    if any(row["entries"]["npmeta"]["memory"] for row in rows):
        quantities.append(
            ("MiB of extra peak memory", lambda e: e["memory"] and e["memory"]["extra"] / 2**20)
        )
    # A single curve has time and memory side by side.
    shape = (1, len(quantities)) if len(names) == 1 else (len(quantities), len(names))
    figure, axes = _figure(
        *shape,
        size=(0.8 + 3.0 * shape[1], 0.9 + 2.6 * shape[0]),
        squeeze=False,
        sharey="row" if len(names) > 1 else False,
    )
    grid = axes.reshape(len(quantities), len(names))
    for l, (label, number_of) in enumerate(quantities):
        for ax, name in zip(grid[l], names, strict=True):
            points = [row for row in rows if row.get("curve") == name and row["dtype"] == dtype]
            _lines(ax, points, number_of)
            if name != "cores":
                _proportion(ax, points, number_of)
            ax.set_xlabel(CURVES[name].label)
        grid[l, 0].set_ylabel(label)
    handles: dict[str, Any] = {}
    for ax in axes.flat:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(),
        handles,
        loc="outside lower center",
        ncols=min(len(handles), 3 * shape[1] // 2),
        frameon=False,
    )
    return figure


def _lines(ax: Axes, points: Rows, number_of: Callable[[dict[str, Any]], float | None]) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    xs = [row["value"] for row in points]
    for name, (colour, marker, line) in _STYLES.items():
        ys = [number_of(row["entries"][name]) if name in row["entries"] else None for row in points]
        known = [(x, y) for x, y in zip(xs, ys, strict=True) if y]
        if known:
            ax.plot(*zip(*known, strict=True), line, marker=marker, color=colour, label=name, ms=4)
    ax.set_xticks(xs, [str(x) for x in xs])
    ax.set_xticks([], minor=True)
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    ax.yaxis.set_minor_formatter(lambda y, _: "")
    ax.grid(axis="y", color=BEFORE, alpha=0.3, lw=0.6)


def _proportion(ax: Axes, points: Rows, number_of: Callable[[dict[str, Any]], float | None]) -> None:
    """Through npmeta's first point, what grows as fast as the x axis."""
    x = [row["value"] for row in points]
    first = number_of(points[0]["entries"]["npmeta"])
    if first:
        y = [first * value / x[0] for value in x]
        ax.plot(x, y, color=INK, lw=0.7, alpha=0.5, label="in proportion", zorder=0)
