"""The papers' tables: their settings are valid, and a table that was stopped goes on."""

import json
import os
import signal
from dataclasses import replace

import pytest

from benchmarks.papers import TABLES
from benchmarks.tables import _ours, interval, main
from npmeta.cli.progress import Progress
from npmeta.training.config import Config
from tests.test_tasks_omniglot import REAL


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_a_valid_run(name):
    table = TABLES[name]
    for row in table.rows.values():
        config = Config(table.task, row.values)
        config.algorithm(*((1, 1) if table.task == "sinusoid" else (784, config["ways"])))
        assert set(row.published) <= set(table.steps)


def test_a_table_that_was_stopped_goes_on(tmp_path, monkeypatch, capsys):
    def made(folder):
        options = ["--row", "maml", "--iterations", "4", "--out", str(tmp_path / folder)]
        return main(["meta-sgd", *options])

    assert made("whole") == 0
    assert "Shortened" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert made("stopped") == 130
    assert not (tmp_path / "stopped" / "meta-sgd.json").exists()
    assert made("stopped") == 0
    records = [json.loads((tmp_path / f / "meta-sgd.json").read_text()) for f in ("whole", "stopped")]
    for record in records:
        rows = {row["row"]: row for row in record["rows"]}
        assert len(rows["maml"]["seeds"]) == 1
        assert rows["maml"]["seeds"][0].pop("minutes") > 0
        assert not rows["meta-sgd"]["seeds"]
    assert records[0] == records[1]


def test_the_interval_over_seeds_is_students():
    scores = [{"mean": {"1": m}, "ci95": {"1": 0.5}} for m in (1.0, 3.0)]
    # t(0.975, one degree of freedom) = 12.7062, and the standard error of 1 and 3 is 1.
    assert interval(scores, "1") == pytest.approx((2.0, 12.7062), rel=1e-5)
    assert interval(scores[:1], "1") == (1.0, 0.5)


@pytest.mark.parametrize("ours", [(None, None), (1.5e200, None)])
def test_what_diverges_is_said_to(ours):
    """The mean may be a number yet, and its interval none."""
    row = {"seeds": [{}], "ours": {"1": ours}}
    assert _ours(row, "1", 3) == "diverges"
    assert _ours({**row, "ours": {"1": (1.5, 0.25)}}, "1", 3) == "1.500 ± 0.250"


def test_what_is_missing_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["pixels"])
    assert "--data PATH" in capsys.readouterr().err


def test_drawings(tmp_path, monkeypatch, capsys):
    if not REAL.exists():
        pytest.skip("needs Omniglot at ../shared/data/omniglot/images_background.zip")
    monkeypatch.setitem(TABLES, "pixels", replace(TABLES["pixels"], test={"eval_tasks": 50}))
    assert main(["pixels", "--row", "5w1s", "--data", str(REAL), "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "pixels.json").read_text())["rows"]
    assert 20 < rows[0]["ours"]["0"][0] < 100  # percent; guessing gives 20
    assert capsys.readouterr().out.count("not yet measured") == 3
