"""Pictures of runs and checks. They need matplotlib, an extra; files are made without a display."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from npmeta._support.files import write_atomically
from npmeta._support.validation import Array
from npmeta.algorithms import Scores, found_structure
from npmeta.algorithms.base import MetaLearner
from npmeta.tasks import Omniglot, Sinusoid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from npmeta.algorithms.found_structure import StructureReport
    from npmeta.verification import Report

# A palette that keeps its order of lightness in grey and for colour-blind readers.
INK, BEFORE, MIDDLE, AFTER, POINT = "#222222", "#9aa5b1", "#f0a202", "#1d70b8", "#d1342f"


@contextmanager
def own_style() -> Iterator[None]:
    """matplotlib's own settings, whatever a matplotlibrc says: LaTeX, say, which is not everywhere."""
    try:
        _figure_class()
        import matplotlib
    except ImportError:  # which is said when a figure is made
        yield
        return
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def _figure(*grid: int, size: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes, without pyplot and so without a window system or global state."""
    try:
        figure_class = _figure_class()
    except ImportError:
        need = "pictures need matplotlib, the extra npmeta[plot]: pip install matplotlib"
        raise ImportError(need) from None
    figure = figure_class(figsize=size, layout="constrained")
    axes = figure.subplots(*grid, **options)
    for ax in np.atleast_1d(axes).flat:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _figure_class() -> type[Figure]:
    """matplotlib's, whatever MPLBACKEND says: one that is not known here would refuse the import."""
    try:
        from matplotlib.figure import Figure
    except ValueError:
        backend = os.environ.pop("MPLBACKEND", None)
        if backend is None:
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
            del sys.modules[name]  # half of it
        try:
            from matplotlib.figure import Figure
        finally:
            os.environ["MPLBACKEND"] = backend
    return Figure


@own_style()
def save(figure: Figure, path: Path, *, follow: bool = True) -> Path:
    """Write a figure as PNG, whole or not at all: what is there stays until all of it is drawn.

    ``follow`` says whether a link at the path stays one, and what it points to is written.
    """
    drawn = BytesIO()
    figure.savefig(drawn, dpi=130, format="png")
    write_atomically(Path(path), drawn.getvalue(), follow=follow)
    return path


@own_style()
def waves(
    algorithm: MetaLearner,
    params: Mapping[str, Array],
    tasks: Sinusoid,
    *,
    steps: Sequence[int | None] = (0, 1, 10),
    n_tasks: int = 3,
    seed: int = 0,
) -> Figure:
    """Fresh sine waves, and the network before and after so many inner steps on the support points.

    At most three numbers of steps; None where an algorithm takes none.
    """
    draw = {"seed": seed, "iteration": 1, "n_tasks": n_tasks, "split": "test"}
    batch = tasks.sample(**draw)  # type: ignore[arg-type]  # a dict of ints and a string
    grid = np.linspace(*tasks.x, 200)
    truth = tasks.curves(grid, **draw)  # type: ignore[arg-type]  # the same
    x = np.broadcast_to(grid[:, None], (n_tasks, len(grid), 1))
    figure, axes = _figure(1, n_tasks, size=(3.6 * n_tasks, 3.4), sharey=True, squeeze=False)
    lines = [(BEFORE, ":"), (MIDDLE, "--"), (AFTER, "-")][-len(steps) :]
    for step, (colour, style) in zip(steps, lines, strict=True):
        y = algorithm.predict(params, batch.support_x, batch.support_y, x, steps=step)
        names = {None: "fitted to the points", 0: "before adapting", 1: "after 1 step"}
        label = names.get(step, f"after {step} steps")
        for t, ax in enumerate(axes[0]):
            ax.plot(grid, y[t, :, 0], style, color=colour, label=label, lw=1.8)
    for t, ax in enumerate(axes[0]):
        ax.plot(grid, truth[t, :, 0], color=INK, lw=0.9, label="the wave itself", zorder=0)
        ax.plot(
            batch.support_x[t, :, 0],
            batch.support_y[t, :, 0],
            "o",
            color=POINT,
            ms=5,
            label=f"{tasks.shots} support points",
        )
        ax.set_xlabel("x")
    axes[0, 0].set_ylabel("y")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle("Waves the network has not met")
    return figure


@own_style()
def drawings(
    algorithm: MetaLearner,
    params: Mapping[str, Array],
    tasks: Omniglot,
    *,
    steps: Sequence[int | None],
    split: str = "test",
    seed: int = 0,
) -> Figure:
    """One fresh task: a row a class, support drawings, then queries and what they are taken for after
    the last of ``steps``."""
    batch = tasks.sample(seed, 1, 1, split=split)
    o = algorithm.predict(params, batch.support_x, batch.support_y, batch.query_x, steps=steps[-1])
    guess = np.where(np.isfinite(o[0]).all(-1), o[0].argmax(-1), -1)  # −1: diverged, no answer
    n_shown = min(tasks.queries, 8)
    n_columns = tasks.shots + n_shown
    figure, axes = _figure(
        tasks.ways, n_columns, size=(1.0 * n_columns + 0.8, 1.2 * tasks.ways + 0.5), squeeze=False
    )
    for label in range(tasks.ways):
        shown = [(x, None) for x in batch.support_x[0][batch.support_y[0] == label]]
        of_class = np.flatnonzero(batch.query_y[0] == label)[:n_shown]
        shown += [(batch.query_x[0, i], guess[i]) for i in of_class]
        for ax, (x, taken_for) in zip(axes[label], shown, strict=True):
            _drawing(ax, x)
            if taken_for is not None:
                right = taken_for == label
                ax.set_title(
                    f"{'✓' if right else '✗'} {taken_for + 1 if taken_for >= 0 else 'diverged'}",
                    color=AFTER if right else POINT,
                    fontsize=10,
                )
        axes[label, 0].set_ylabel(f"class {label + 1}", rotation=0, ha="right", va="center")
    for column in range(tasks.shots):
        for ax in axes[:, column]:
            ax.set_facecolor("#eef3f8")
    share = (guess == batch.query_y[0]).mean()
    figure.suptitle(
        f"Support (shaded) and queries with the class they are taken for: "
        f"{share:.0%} of {len(guess)} right",
        fontsize=11,
    )
    return figure


def _drawing(ax: Axes, x: Array) -> None:
    size = int(np.sqrt(x.size))
    ink = np.zeros((size, size, 4))
    ink[..., 3] = x.reshape(size, size)  # black ink on the axes' own paper
    ax.imshow(ink, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


@own_style()
def scores(scored: Scores, loss_name: str) -> Figure:
    """Query loss (and accuracy) against inner steps, with 95% confidence intervals."""
    of = ["loss"] if scored.accuracy is None else ["loss", "accuracy"]
    figure, axes = _figure(1, len(of), size=(4.4 * len(of), 3.4), squeeze=False)
    for ax, name in zip(axes[0], of, strict=True):
        mean, half = scored.mean(name), scored.interval(name)
        steps = np.arange(len(mean))
        ax.fill_between(steps, mean - half, mean + half, color=AFTER, alpha=0.2, lw=0)
        ax.plot(steps, mean, "o-", color=AFTER, ms=4)
        ax.set_xlabel("inner steps")
        ax.set_ylabel(f"query {loss_name if name == 'loss' else name}")
        ax.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(f"{scored.n_tasks} test tasks")
    return figure


@own_style()
def curves(rows: Sequence[Mapping[str, float]], loss_name: str) -> Figure:
    """Learning curves from the rows of metrics.csv.

    Raises
    ------
    ValueError
        If there are no rows yet.
    """
    if not rows:
        raise ValueError("there are no rows in metrics.csv to draw yet")

    def series(name: str) -> tuple[list[float], list[float]]:
        points = [(row["iteration"], row[name]) for row in rows if name in row]
        return [i for i, _ in points], [value for _, value in points]

    with_accuracy = any("validation_accuracy" in row for row in rows)
    figure, axes = _figure(1, 1 + with_accuracy, size=(4.8 * (1 + with_accuracy), 3.4), squeeze=False)
    loss = axes[0, 0]
    alone = "o" if len(rows) == 1 else ""  # one point is no line
    loss.plot(*series("loss"), f"{alone}-", color=BEFORE, lw=1.2, ms=3, label="training tasks")
    loss.plot(*series("validation_loss"), "o-", color=AFTER, ms=3, label="validation tasks")
    if not any(value <= 0 for name in ("loss", "validation_loss") for value in series(name)[1]):
        loss.set_yscale("log")  # poisson_nll may be negative, which a logarithm would leave out
    loss.set_ylabel(f"query {loss_name} after adapting")
    loss.legend(frameon=False)
    if with_accuracy:
        axes[0, 1].plot(*series("validation_accuracy"), "o-", color=AFTER, ms=3)
        axes[0, 1].set_ylabel("accuracy on validation tasks")
    for ax in axes[0]:
        ax.set_xlabel("iteration")
    return figure


@own_style()
def structure(report: StructureReport) -> Figure:
    """For each hidden layer the shares of its mixture, and its gates from open to closed.

    Parameters
    ----------
    report : StructureReport
        From :func:`npmeta.structure_report`.
    """
    n_rows = len(report.layers)
    figure, axes = _figure(n_rows, 2, size=(7.6, 1.0 + 1.9 * n_rows), squeeze=False, sharex="col")
    for l, (layer, (shares, gates)) in enumerate(zip(report.layers, axes, strict=True), 1):
        names = list(layer.shares)
        colours = [AFTER if name == layer.leading else BEFORE for name in names]
        shares.barh(names, [100 * layer.shares[name] for name in names], color=colours)
        shares.set_xlim(0, 100)
        shares.invert_yaxis()
        shares.set_title(f"layer {l}: activation", fontsize=11)
        ordered = np.sort(layer.gates)[::-1]
        gates.step(np.arange(1, len(ordered) + 1), ordered, where="mid", color=AFTER)
        for limit, word in ((found_structure.OPEN, "open"), (found_structure.CLOSED, "partly open")):
            gates.axhline(limit, color=BEFORE, lw=0.8, ls=":")
            gates.text(1, limit + 0.01, word, color=BEFORE, fontsize=8)
        gates.set_ylim(-0.02, 1.02)
        gates.set_title(f"layer {l}: gates", fontsize=11)
    axes[-1, 0].set_xlabel("share in %")
    axes[-1, 1].set_xlabel("units, the most open first")
    return figure


@own_style()
def remainders(reports: Mapping[str, Report]) -> Figure:
    """What Taylor's polynomials of order 0, 1 and 2 leave of a function, against the step.

    Parameters
    ----------
    reports : mapping
        From :func:`~npmeta.verification.check_taylor`, by the name of the function.
    """
    figure, axes = _figure(1, len(reports), size=(4.8 * len(reports), 4.0), sharey=True, squeeze=False)
    labels = {"0": "the value alone", "1": "with the gradient", "2": "with the Hessian product"}
    for ax, (name, report) in zip(axes[0], reports.items(), strict=True):
        h = report.curves["h"]
        for order, colour in zip(labels, (BEFORE, AFTER, POINT), strict=True):
            if order not in report.curves:
                continue
            remainder = report.curves[order]
            slope = int(order) + 1
            ax.loglog(h, remainder, "o-", color=colour, ms=3, lw=1, label=labels[order])
            ax.loglog(h, remainder[1] * (h / h[1]) ** slope, ":", color=colour, lw=1)
            place = (h[9], remainder[1] * (h[9] / h[1]) ** slope)
            ax.annotate(
                f"slope {slope}", place, (-6, 4), textcoords="offset points", color=colour, ha="right"
            )
        # The dotted lines go on below what rounding leaves.
        lowest = min(curve[curve > 0].min() for key, curve in report.curves.items() if key != "h")
        ax.set_ylim(bottom=lowest / 10)
        ax.set_title(name, fontsize=11)
        ax.set_xlabel("step h")
    axes[0, 0].set_ylabel("what Taylor's polynomial leaves")
    handles, names = axes[0, -1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    return figure
