"""How far a training run has come: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from npmeta._support.output import Lasting

#: Share of its old value that the displayed loss keeps in each iteration.
SMOOTHING = 0.98

#: Without a bar: at most this many seconds, and this share of the run, between lines.
LINE_SECONDS, LINE_SHARE = 30.0, 0.1


class Progress:
    """Shows loss, rate and time left; that nobody can see it any more ends nothing.

    Parameters
    ----------
    total : int
        Iterations in all.
    start : int
        Those made before.
    stream : file
        Where to show it; a bar only if this is a terminal and tqdm is installed.
    """

    def __init__(self, total: int, start: int = 0, stream: TextIO | None = None) -> None:
        self.total, self.start = total, start
        self.stream = Lasting(sys.stderr if stream is None else stream)
        self.loss: float | None = None
        self._began = self._last_line = time.monotonic()
        self._next_share = self._share_after(start)
        self._bar = self._make_bar()

    def _make_bar(self) -> Any:
        if not self.stream.isatty():
            return None
        try:
            from tqdm import tqdm
        except ImportError:
            print("(for a bar, the extra npmeta[progress]: pip install tqdm)", file=self.stream)
            return None
        return tqdm(
            total=self.total,
            initial=self.start,
            file=self.stream,
            dynamic_ncols=True,
            unit="it",
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}, "
            "{rate_fmt}, {remaining} left",
        )

    def update(self, iteration: int, loss: float) -> None:
        """One iteration more."""
        self.loss = loss if self.loss is None else SMOOTHING * self.loss + (1 - SMOOTHING) * loss
        if self._bar is not None:
            self._bar.postfix = f"loss {self.loss:.4g}"
            self._bar.update()
            return
        now = time.monotonic()
        if iteration >= self._next_share or now - self._last_line >= LINE_SECONDS:
            self._last_line, self._next_share = now, self._share_after(iteration)
            rate = (iteration - self.start) / max(now - self._began, 1e-9)
            left = (self.total - iteration) / rate
            print(
                f"{iteration:>{len(str(self.total))}}/{self.total}  loss {self.loss:.4g}  "
                f"{rate:.3g} it/s  {_clock(left)} left",
                file=self.stream,
                flush=True,
            )

    def _share_after(self, iteration: int) -> float:
        """The iteration of the next line: the next tenth of the run."""
        tenth = LINE_SHARE * self.total
        return min((iteration // tenth + 1) * tenth, self.total)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
