"""Pictures of a run: whole or not there, after the scores, and made good."""

import errno
import os

import numpy as np
import pytest

import npmeta as nm
from npmeta._support.files import write_atomically
from npmeta.cli import plots
from npmeta.cli.commands.results import pictures
from npmeta.cli.main import main
from npmeta.cli.runs import Run

pytest.importorskip("matplotlib", reason="pictures need matplotlib")

QUICK = ["--iterations", "3", "--eval-tasks", "5", "--hidden", "4", "--meta-batch", "2"]


@pytest.fixture
def run(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", "sinusoid", "--out", str(folder), *QUICK]) == 0
    capsys.readouterr()
    return folder


def test_the_names_are_those_that_are_drawn(run):
    assert sorted(path.name for path in run.glob("*.png")) == sorted(pictures(Run(run).config))


@pytest.mark.parametrize("name", ["waves.png", "evaluation.json"])
def test_what_is_missing_is_made_good(run, name):
    before = (run / name).read_bytes()
    (run / name).unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert (run / name).read_bytes() == before


def test_pictures_of_fewer_iterations_do_not_stay(run, monkeypatch):
    """Killed while it draws, an extended run has none that are of another iteration."""
    before = (run / "curves.png").read_bytes()

    def killed(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(plots, "curves", killed)
        assert main(["train", "--resume", str(run), "--iterations", "6"]) == 130
    assert not (run / "curves.png").exists()
    assert main(["train", "--resume", str(run)]) == 0
    assert (run / "curves.png").read_bytes() != before


def test_a_picture_that_fails_leaves_the_table_and_the_old_picture(run, monkeypatch, capsys):
    old = (run / "waves.png").read_bytes()

    def half(figure, file, **options):
        file.write(b"half of one") if hasattr(file, "write") else file.write_bytes(b"half of one")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", half)
        assert main(["plot", str(run)]) == 2
        assert (run / "waves.png").read_bytes() == old
        assert main(["train", "sinusoid", "--out", str(run.parent / "other"), *QUICK]) == 2
    said = capsys.readouterr()
    assert "5 test tasks, mean" in said.out
    assert "No space left" in said.err
    assert (run.parent / "other" / "evaluation.json").exists()
    assert main(["train", "--resume", str(run.parent / "other")]) == 0
    assert (run.parent / "other" / "waves.png").exists()


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "scores.json").write_text("old")
    with pytest.raises(OSError, match=r"No space left on device: '.*scores\.json'"):
        write_atomically(tmp_path / "scores.json", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    assert (tmp_path / "scores.json").read_text() == "old"


def test_pictures_do_not_depend_on_a_matplotlibrc(tmp_path, monkeypatch):
    """Somebody has LaTeX, other fonts and another format; the machine that runs this has not."""
    import matplotlib

    scores = nm.Scores(np.random.default_rng(0).random((5, 3)), None)
    plain = plots.save(plots.scores(scores, "mse"), tmp_path / "plain.png").read_bytes()
    odd = {
        "text.usetex": True,
        "font.family": "Nowhere Sans",
        "savefig.format": "pdf",
        "savefig.dpi": 5,
    }
    with matplotlib.rc_context(odd):
        again = plots.save(plots.scores(scores, "mse"), tmp_path / "again.png").read_bytes()
        assert matplotlib.rcParams["text.usetex"]  # and what is the user's stays
    assert again == plain
