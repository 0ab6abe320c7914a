"""``npmeta check``: one screen, and a status that tells."""

import dataclasses

import numpy as np
import pytest

from npmeta.cli.main import main
from npmeta.network import activations
from npmeta.verification import Verdict
from npmeta.verification.checks import selfcheck


def test_the_screen(capsys, tmp_path, monkeypatch):
    """Of lines that are made up: all of it is run for docs/verification.rst."""
    line = selfcheck.Line("float64  meta-gradients", Verdict.PASS, 560, 0, 1e-14, 1e-12, "")
    monkeypatch.setattr(selfcheck, "run", lambda: iter([line] * 14))
    picture = tmp_path / "slopes.png"
    pytest.importorskip("matplotlib")
    assert main(["check", "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert len(lines) < 24, "one screen"
    assert max(map(len, lines[:-1])) < 80
    assert lines[0].startswith("npmeta ")
    assert "NumPy" in lines[0]
    assert sum(line.startswith("PASS") for line in lines) == 14
    assert "None of 14 checks failed." in lines
    assert lines[-1] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def a_wrong_second_derivative(monkeypatch):
    """tanh whose f'' is off by a thousandth."""
    right = activations.TANH
    wrong = dataclasses.replace(right, d2f=lambda z, a: 1.001 * right.d2f(z, a))
    monkeypatch.setitem(activations.ACTIVATIONS, "tanh", wrong)


def test_a_fault_is_found(a_wrong_second_derivative):
    line = selfcheck.Line.of("meta-gradients", selfcheck._meta_gradients(np.float64))
    assert line.verdict is Verdict.FAIL
    assert "tanh" in line.reason
    assert selfcheck.Line.of("products", selfcheck._products(np.float64)).verdict is Verdict.FAIL
    # First derivatives are as they were.
    assert selfcheck.Line.of("gradients", selfcheck._gradients(np.float64)).verdict is Verdict.PASS


def test_a_fault_is_told(monkeypatch, capsys):
    lines = [
        selfcheck.Line("this", Verdict.FAIL, 3, 0, 1.0, 0.1, "wrong"),
        selfcheck.Line("that", Verdict.PASS, 3, 1, 0.01, 0.1, ""),
    ]
    monkeypatch.setattr(selfcheck, "run", lambda: iter(lines))
    assert main(["check"]) == 1
    out = capsys.readouterr().out
    assert "wrong" in out
    assert out.endswith("1 of 2 checks failed.\n")


def test_a_line_says_what_is_open_and_what_failed():
    from npmeta.verification import Finding, Report

    open_, right = (
        Finding("a", Verdict.INCONCLUSIVE, 1.0, 2.0, 1.0, "a kink"),
        Finding("b", Verdict.PASS, 1e-3, 2e-3, 1.0),
    )
    wrong = Finding("c", Verdict.FAIL, 1.0, 1e-3, 1.0, "1e+03 times the bar")
    line = selfcheck.Line.of("some", iter([Report("r", (open_, right))]))
    assert (line.verdict, line.cases, line.open, line.error) == (Verdict.PASS, 2, 1, 1e-3)
    assert "1 inconclusive" in str(line)
    line = selfcheck.Line.of("some", iter([Report("r", (right, wrong))]))
    assert line.verdict is Verdict.FAIL
    assert line.reason == "r: c 1e+03 times the bar"
    assert selfcheck.Line.of("some", iter([Report("r", (open_,))])).verdict is Verdict.INCONCLUSIVE


def test_the_picture_needs_a_folder(capsys, tmp_path):
    assert main(["check", "--plot", str(tmp_path / "nowhere" / "x.png")]) == 2
    assert capsys.readouterr().err.startswith("npmeta: error: cannot write ")


def test_lines_are_no_wider_than_a_screen(monkeypatch):
    monkeypatch.setattr(selfcheck.Line, "of", staticmethod(lambda name, reports: name))
    for name in selfcheck.run():
        for verdict in Verdict:
            name = getattr(name, "name", name)
            line = selfcheck.Line(name, verdict, 12345, 3, 1e-14, 1e-12, "a reason of some length " * 9)
            assert max(map(len, str(line).splitlines())) < 80
