"""What the doctor found, as numbers, and as one screen of text or a picture."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from npmeta._support.files import write_atomically
from npmeta._support.validation import Array
from npmeta.verification.doctor.faults import FAULTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, INDENT = 79, 18
#: Blocks that are listed one by one.
MOST_BLOCKS = 12


@dataclass(frozen=True)
class BlockReport:
    """One array of parameters in the answer, beside the right one.

    Attributes
    ----------
    name : str
        ``0.weight``, ``0.bias``, ...
    size : int
    misfit : float
        ‖c − g‖ / ‖g‖ in this block.
    cosine : float
    ratio : float
        ‖c‖ / ‖g‖.
    looks : str
        "right", "first order", "zero", "negated", or "".
    """

    name: str
    size: int
    misfit: float
    cosine: float
    ratio: float
    looks: str


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Whether a gradient is right, and which mistake made it if it is not.

    Attributes
    ----------
    verdict : {"pass", "fail", "inconclusive"}
    fault : str or None
        The id of the mistake; ids joined by " + " where several were made at once; None where the
        gradient is right, and where nothing known explains it.
    ties : tuple of str
        Other mistakes (or several joined) that make the same gradient here. If the gradient is right:
        mistakes that this problem cannot see.
    factor : float or None
        The number in the mistake: what α or the gradient is multiplied by, a weight decay.
    misfit : float
        ‖c − p‖ / ‖p‖ for the gradient c and the prediction p of what is named, or else of what is
        right.
    runner_up : str or None
        The next best explanation that is not a tie.
    runner_up_misfit : float
    tolerance : float
        The misfit up to which a prediction agrees.
    detail : str
        Which form of the mistake: "j = 2", "0.weight".
    not_tried : str
        What was left out, on a problem so large that it would take minutes.
    checks : dict
        Misfit of every piece of evidence, from what comes first to the gradient, against what is right.
    blocks : tuple of BlockReport
    notes : tuple of str
    difference : ndarray, (P,)
        c − g.
    """

    verdict: str
    fault: str | None
    misfit: float
    tolerance: float
    ties: tuple[str, ...] = ()
    factor: float | None = None
    detail: str = ""
    runner_up: str | None = None
    runner_up_misfit: float = np.inf
    n_tried: int = 0
    not_tried: str = ""
    checks: dict[str, tuple[float, bool]] = field(default_factory=dict)
    blocks: tuple[BlockReport, ...] = ()
    notes: tuple[str, ...] = ()
    difference: Array = field(default_factory=lambda: np.zeros(0), repr=False)
    gradient: Array = field(default_factory=lambda: np.zeros(0), repr=False)

    # --- one screen -----------------------------------------------------------------------------

    def __str__(self) -> str:
        lines = [self._headline()]
        for id in self._ids:
            fault = FAULTS[id]
            lines += ["", *_row(id if len(self._ids) > 1 else "what", fault.cause)]
            lines.append(f"{'':{INDENT}}{fault.formula}")
            lines += _row("in PyTorch", fault.pytorch)
            lines += _row("in JAX", fault.jax)
        lines += ["", *self._numbers()]
        if self.verdict == "fail" and not self.fault and self.blocks:
            lines += ["", *self._table()]
        for note in self.notes:
            lines += ["", *_row("note", note)]
        return "\n".join(lines)

    @property
    def _ids(self) -> list[str]:
        return self.fault.split(" + ") if self.fault else []

    def _headline(self) -> str:
        if self.verdict == "pass":
            what = "the gradient is right"
        elif self.verdict == "inconclusive":
            what = "this problem does not decide it"
        elif self.fault:
            what = " and ".join(self._ids)
            extras = [self.detail] if self.detail else []
            if self.factor is not None and not self.detail:
                extras.append(f"factor {self.factor:.6g}")
            what += f" ({', '.join(extras)})" if extras else ""
        else:
            what = "unknown: no mistake on the list fits"
        return f"{self.verdict.upper()}  {what}"

    def _numbers(self) -> list[str]:
        lines: list[str] = []
        for name, (misfit, agrees) in self.checks.items():
            lines += _row(name, f"{'right' if agrees else 'wrong'}, {misfit:.1e} from the right one")
        against = "what this mistake makes" if self.fault else "the right gradient"
        if np.isfinite(self.misfit):
            limit = f"; up to {self.tolerance:.0e} is rounding" if self.tolerance else ""
            lines += _row("misfit", f"{self.misfit:.1e} from {against}{limit}")
        if self.runner_up is not None:
            label = "runner-up" if self.fault or self.verdict == "pass" else "nearest"
            lines += _row(label, f"{self.runner_up}, misfit {self.runner_up_misfit:.1e}")
        if self.ties:
            label = "not seen" if self.verdict == "pass" else "or else"
            lines += _row(label, ", ".join(self.ties))
        if self.not_tried:
            lines += _row("not tried", self.not_tried)
        return lines

    def _table(self) -> list[str]:
        """The blocks, worst first where there are many."""
        shown = list(self.blocks)
        if len(shown) > MOST_BLOCKS:
            shown = sorted(shown, key=lambda block: -block.misfit)[:MOST_BLOCKS]
        width = max(len(block.name) for block in shown)
        lines = [f"  {'block':<{width}}  {'size':>7}  {'misfit':>8}  {'cosine':>7}  {'‖c‖/‖g‖':>8}"]
        lines += [
            f"  {b.name:<{width}}  {b.size:>7}  {b.misfit:>8.1e}  {b.cosine:>7.4f}  {b.ratio:>8.4g}"
            f"  {b.looks}".rstrip()
            for b in shown
        ]
        if len(shown) < len(self.blocks):
            lines.append(f"  ... and {len(self.blocks) - len(shown)} more")
        return lines

    # --- a picture ------------------------------------------------------------------------------

    def picture(self) -> Figure:
        """Misfit of every block, and the answer's entries against the right ones.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            need = "pictures need matplotlib, the extra npmeta[plot]: pip install matplotlib"
            raise ImportError(need) from None
        ink, wrong, right = "#222222", "#d1342f", "#1d70b8"
        figure = Figure(figsize=(9.6, 0.28 * min(len(self.blocks), 40) + 2.6), layout="constrained")
        bars, dots = figure.subplots(1, 2)
        names = [block.name for block in self.blocks]
        least = self.tolerance / 100
        sizes = [max(block.misfit, least) for block in self.blocks]
        colours = [wrong if block.misfit > self.tolerance else right for block in self.blocks]
        bars.barh(names, sizes, left=least / 2, color=colours)
        bars.axvline(self.tolerance, color=ink, lw=0.9, ls="--")
        bars.set_xscale("log")
        bars.set_xlabel("misfit of the block  ‖c − g‖ / ‖g‖  (dashed: tolerance)")
        bars.invert_yaxis()
        # Large vectors are thinned out: thousands of dots look as they do in hundreds.
        step = max(1, self.gradient.size // 5000)
        g, c = self.gradient[::step], (self.gradient + self.difference)[::step]
        span = [float(min(g.min(), 0)), float(max(g.max(), 0))]
        dots.plot(span, span, color=ink, lw=0.9)
        dots.plot(g, c, ".", ms=3, color=wrong if self.verdict == "fail" else right, alpha=0.6)
        dots.set_xlabel("right gradient, entry by entry")
        dots.set_ylabel("answer")
        for ax in (bars, dots):
            ax.spines[["top", "right"]].set_visible(False)
        figure.suptitle(self._headline())
        return figure

    def save_picture(self, path: Path) -> Path:
        """Write :meth:`picture` as PNG, whole or not at all."""
        drawn = BytesIO()
        self.picture().savefig(drawn, dpi=130, format="png")
        write_atomically(path, drawn.getvalue())
        return path


def _row(label: str, text: str) -> list[str]:
    """A label and a text beside it, wrapped; a long label has a line of its own."""
    lines = textwrap.wrap(
        text, WIDTH, initial_indent=" " * INDENT, subsequent_indent=" " * INDENT, break_long_words=False
    )
    if len(label) > INDENT - 4:
        return [f"  {label}", *lines]
    return [f"  {label:<{INDENT - 2}}{lines[0].lstrip()}", *lines[1:]]
