"""The bar on a terminal, plain lines elsewhere."""

import io
import sys

import pytest

from npmeta.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(stream, total=20, start=0, loss=lambda i: 1.0):
    with Progress(total, start, stream) as progress:
        for i in range(start + 1, total + 1):
            progress.update(i, loss(i))
    return progress, stream.getvalue()


def test_lines_come_every_tenth_and_end_with_the_last_iteration():
    _, text = run(io.StringIO(), total=20)
    lines = text.splitlines()
    assert [line.split("/")[0].strip() for line in lines] == [str(i) for i in range(2, 21, 2)]
    assert all("loss 1 " in line and "it/s" in line and "left" in line for line in lines)
    assert lines[-1].startswith("20/20")
    assert "\r" not in text


@pytest.mark.parametrize("total", [1, 3, 7, 13, 101])
def test_a_short_or_odd_run_shows_its_last_iteration_once(total):
    _, text = run(io.StringIO(), total=total)
    shown = [line.split("/")[0].strip() for line in text.splitlines()]
    assert shown[-1] == str(total)
    assert len(shown) == len(set(shown)) <= 10


def test_a_resumed_run_counts_from_where_it_goes_on():
    _, text = run(io.StringIO(), total=20, start=15)
    assert [line.split("/")[0] for line in text.splitlines()] == ["16", "18", "20"]


def test_the_loss_shown_is_smoothed():
    progress, _ = run(io.StringIO(), total=200, loss=lambda i: float(i % 2))
    assert 0.4 < progress.loss < 0.6


def test_a_terminal_gets_a_bar_with_loss_rate_and_time_left():
    pytest.importorskip("tqdm")
    _, text = run(Terminal())
    last = text.split("\r")[-1]
    for part in ("100%", "20/20", "loss 1", "it/s", "left"):
        assert part in last


def test_a_terminal_without_tqdm_gets_lines_and_a_hint(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    _, text = run(Terminal())
    assert "npmeta[progress]" in text.splitlines()[0]
    assert text.splitlines()[-1].startswith("20/20")
