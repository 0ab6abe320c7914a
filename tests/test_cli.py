"""The command line as its users run it: real processes, real files, real signals."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import npmeta
from npmeta.cli import main
from npmeta.runs import Run

QUICK = ["--eval-tasks", "20", "--hidden", "8", "8", "--meta-batch", "4"]

# 251 iterations, with an odd number of everything.
RESUMABLE = ["--iterations", "251", "--log-every", "7", "--checkpoint-every", "20"]
RESUMABLE += ["--validate-every", "45", "--validation-tasks", "5", "--schedule", "cosine"]
RESUMABLE += ["--clip", "5", "--learn-inner-lr", "--dtype", "float32"]


def npmeta_process(*args, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "npmeta", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "error::RuntimeWarning"},
        **options,
    )


def npmeta_run(*args, status=0, **options):
    process = npmeta_process(*args, **options)
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    return out, err


def fails(capsys, *args):
    """The one line that a refused command prints."""
    assert main([str(arg) for arg in args]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("npmeta: error: ")
    return lines[0]


def final_state(folder):
    """Everything that says what a run learned, bit for bit."""
    run = Run(folder)
    return {path.name: path.read_bytes() for path in [run.checkpoints()[-1], folder / "metrics.csv"]}


# --- train ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A sinusoid run that was not interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    out, err = npmeta_run("train", "sinusoid", *QUICK, *RESUMABLE, "--out", folder)
    return folder, out, err


def test_training_prints_a_table_and_fills_a_folder(trained):
    folder, out, err = trained
    assert "251/251" in err
    assert "it/s" in err
    assert "left" in err
    rows = [line.split() for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows if "±" in row and len(row) == 4] == ["0", "1", "5", "10"]
    names = {path.name for path in folder.iterdir()}
    assert {"config.toml", "metrics.csv", "checkpoints", "evaluation.json"} <= names
    record = json.loads((folder / "evaluation.json").read_text())
    assert len(record["loss"]) == 11
    assert record["tasks"] == 20
    metrics = Run(folder).metrics()
    iterations = [row["iteration"] for row in metrics]
    assert iterations == sorted({*range(7, 252, 7), *range(45, 252, 45), 251})
    assert [row["iteration"] for row in metrics if "validation_loss" in row] == [
        *range(45, 252, 45),
        251,
    ]
    assert len(list((folder / "checkpoints").iterdir())) == 3


def test_pictures_are_drawn(trained, tmp_path):
    pytest.importorskip("matplotlib")
    folder, out, _ = trained
    assert str(folder / "waves.png") in out
    out, _ = npmeta_run("plot", folder, "--out", tmp_path)
    for name in ("waves", "curves", "scores"):
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert str(tmp_path / f"{name}.png") in out


def test_the_recorded_configuration_makes_the_run_again(trained, tmp_path):
    folder, _, _ = trained
    npmeta_run("train", "--config", folder / "config.toml", "--out", tmp_path / "again")
    assert final_state(tmp_path / "again") == final_state(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_goes_on_bit_for_bit(trained, tmp_path, number):
    whole, _, _ = trained
    folder = tmp_path / "run"
    process = npmeta_process("train", "sinusoid", *QUICK, *RESUMABLE, "--out", folder)
    while len(list(folder.glob("checkpoints/0*.npz"))) < 2 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert f"to go on: npmeta train --resume {folder}" in err
        assert "Traceback" not in err
    assert Run(folder).load().iteration < 251
    _, err = npmeta_run("train", "--resume", folder)
    assert "going on from iteration" in err
    assert final_state(folder) == final_state(whole)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(trained, tmp_path):
    whole, _, _ = trained
    folder = tmp_path / "run"
    npmeta_run("train", "sinusoid", *QUICK, *RESUMABLE, "--out", folder)
    for path in Run(folder).checkpoints()[-1:]:
        path.write_bytes(path.read_bytes()[:-50])
    _, err = npmeta_run("train", "--out", folder, "--resume")
    assert "00000251.npz is damaged" in err
    assert "going on from iteration 240 of 251" in err
    assert final_state(folder) == final_state(whole)


def test_a_finished_run_can_be_given_more_iterations(tmp_path, capsys):
    folder = tmp_path / "run"
    short = ["train", "sinusoid", *QUICK, "--log-every", "10", "--validate-every", "10"]
    npmeta_run(*short, "--iterations", 40, "--out", folder)
    _, err = npmeta_run("train", "--resume", folder)
    assert "has made its 40 iterations" in err
    npmeta_run("train", "--resume", folder, "--iterations", 60)
    npmeta_run(*short, "--iterations", 60, "--out", tmp_path / "longer")
    assert final_state(folder) == final_state(tmp_path / "longer")
    assert Run(folder).config["iterations"] == 60
    assert "cannot go on with another inner_lr" in fails(
        capsys, "train", "--resume", folder, "--inner-lr", 3, "--iterations", 99
    )
    assert "not of omniglot" in fails(capsys, "train", "omniglot", "--resume", folder)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    folder = tmp_path / "run"
    _, err = npmeta_run("train", "sinusoid", *QUICK, "--inner-lr", "1e200", "--out", folder, status=1)
    assert "training stopped: the loss of task 0 in iteration 0 is" in err
    assert "try a smaller inner_lr" in err
    assert "00000000.npz" in err
    assert "Warning" not in err
    assert "Traceback" not in err


# --- evaluate and adapt -----------------------------------------------------------------------------


def test_evaluate_prints_every_step_and_writes_json(trained, tmp_path):
    folder, _, _ = trained
    out, _ = npmeta_run(
        "evaluate",
        folder,
        "--tasks",
        12,
        "--steps",
        3,
        "--split",
        "validation",
        "--json",
        tmp_path / "s.json",
    )
    assert out.splitlines()[0] == "12 validation tasks, mean ± 95% confidence interval"
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["0", "1", "2", "3"]
    record = json.loads((tmp_path / "s.json").read_text())
    assert (record["split"], record["tasks"], record["loss_name"]) == ("validation", 12, "mse")
    assert len(record["loss"]) == len(record["loss_ci95"]) == 4
    printed, _ = npmeta_run(
        "evaluate", folder, "--tasks", 12, "--steps", 3, "--split", "validation", "--json", "-"
    )
    assert json.loads(printed) == record
    again = Run(folder)
    scored = npmeta.evaluate(
        again.config.algorithm(1, 1),
        again.config.tasks(),
        again.load().params,
        n_tasks=12,
        steps=3,
        split="validation",
    )
    assert scored.mean().tolist() == record["loss"]


def test_a_single_task_has_no_interval_in_json(trained):
    out, _ = npmeta_run("evaluate", trained[0], "--tasks", 1, "--steps", 0, "--json", "-")
    assert json.loads(out)["loss_ci95"] == [None]


def test_adapt_predicts_as_the_library_does(trained, tmp_path):
    folder, _, _ = trained
    x, y = np.array([-1.0, 0.5, 2.0]), np.array([0.3, 1.0, -1.0])
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{a},{b}\n" for a, b in zip(x, y, strict=True)))
    (tmp_path / "b.csv").write_text("note,x\nfirst,0.25\nsecond,3.0\n")
    files = ["--support", tmp_path / "a.csv", "--query", tmp_path / "b.csv"]
    out, _ = npmeta_run("adapt", folder, *files, "--steps", 4)
    rows = list(csv.DictReader(out.splitlines()))
    assert [row["note"] for row in rows] == ["first", "second"]
    run = Run(folder)
    expected = run.config.algorithm(1, 1).predict(
        run.load().params, x[None, :, None], y[None, :, None], np.array([[[0.25], [3.0]]]), steps=4
    )
    # Printed digits of a float32.
    np.testing.assert_allclose([float(row["prediction"]) for row in rows], expected[0, :, 0], rtol=1e-6)
    npmeta_run("adapt", folder, *files, "--steps", 4, "--out", tmp_path / "c.csv")
    assert (tmp_path / "c.csv").read_text() == out


def test_blank_rows_of_a_spreadsheet_are_no_rows(trained, tmp_path):
    support, plain, blank = (tmp_path / name for name in ("support.csv", "plain.csv", "blank.csv"))
    support.write_text("x,y\n,\n1,2\n3,4\n , \n")
    plain.write_text("note,x\n spaces stay ,0.25\nsecond, 3.0\n")
    blank.write_text('\n,\nnote,x\n, \n spaces stay ,0.25\n\n"",\nsecond, 3.0\n,\n')
    outs = [
        npmeta_run("adapt", trained[0], "--support", support, "--query", query)[0]
        for query in (plain, blank)
    ]
    assert outs[0] == outs[1]
    assert [line.rpartition(",")[0] for line in outs[0].splitlines()] == plain.read_text().splitlines()


def table_file(path, kind, n_tasks=12):
    """Each task a line of its own slope; or which side of it a point is on."""
    rng = np.random.default_rng(0)
    lines = ["shop,width,height,answer"]
    for task in range(n_tasks):
        slope = rng.normal()
        for width, height in rng.normal(size=(14, 2)):
            value = float(slope * width + height)
            answer = repr(100 + 10 * value) if kind == "number" else ("wide" if value > 0 else "tall")
            lines.append(f"shop{task},{width},{height},{answer}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", ["number", "class"])
def test_a_table_of_ones_own_from_training_to_predictions(kind, tmp_path):
    data = table_file(tmp_path / "rows.csv", kind)
    other = table_file(tmp_path / "other.csv", kind, n_tasks=3)
    folder = tmp_path / "run"
    columns = ["--task-column", "shop", "--target-column", "answer", "--data", data]
    out, err = npmeta_run("train", "table", *columns, *QUICK, "--iterations", 60, "--out", folder)
    assert "Traceback" not in err
    assert ("accuracy" in out) == (kind == "class")
    assert Run(folder).config["loss"] == ("mse" if kind == "number" else "cross_entropy")
    data.unlink()  # what follows needs the run alone
    out, _ = npmeta_run("evaluate", folder, "--data", other, "--tasks", 10, "--steps", 2)
    assert out.startswith("10 other.csv tasks")
    head, *rows = other.read_text().splitlines()
    (tmp_path / "support.csv").write_text("\n".join([head, *rows[:8]]) + "\n")
    (tmp_path / "query.csv").write_text(
        "\n".join(row.rsplit(",", 1)[0] for row in [head, *rows[8:14]]) + "\n"
    )
    out, _ = npmeta_run(
        "adapt", folder, "--support", tmp_path / "support.csv", "--query", tmp_path / "query.csv"
    )
    predicted = list(csv.DictReader(out.splitlines()))
    assert len(predicted) == 6
    if kind == "number":
        assert all(0 < float(row["prediction"]) < 200 for row in predicted)  # in the table's own units
    else:
        assert {row["prediction"] for row in predicted} <= {"wide", "tall"}
        for row in predicted:
            assert float(row["p(wide)"]) + float(row["p(tall)"]) == pytest.approx(1, abs=2e-4)


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("trian", "unknown command 'trian' (did you mean 'train'?)"),
        ("train", "train needs a task: sinusoid, omniglot, table"),
        ("train sinusiod", "unknown task 'sinusiod' (did you mean 'sinusoid'?)"),
        ("train sinusoid --shots 0", "shots must be at least 1, got 0"),
        ("train sinusoid --shots two", "argument --shots: must be a whole number, got 'two'"),
        ("train sinusoid --inner-lrr 1", "unknown argument '--inner-lrr' (did you mean --inner-lr?)"),
        ("train sinusoid --activation rleu", "unknown activation 'rleu' (did you mean 'relu'?)"),
        ("train sinusoid --loss mes", "unknown loss 'mes' (did you mean 'mse'?)"),
        ("train sinusoid --loss cross_entropy", "one-hot or soft labels for cross_entropy"),
        ("train sinusoid --optimizer adm", "unknown optimizer 'adm' (did you mean 'adam'?)"),
        ("train sinusoid --ways 5", "unknown option of sinusoid runs 'ways'"),
        ("train sinusoid --inner-lr 1 2", "inner_lr must be"),
        ("train sinusoid --dtype float16", "unknown dtype 'float16'"),
        ("train sinusoid --preset papre", "unknown preset 'papre' (did you mean 'paper'?)"),
        ("train sinusoid --config absent.toml", "no such file: absent.toml"),
        ("train omniglot", "omniglot needs the path of its data: --data PATH"),
        ("train omniglot --data absent.zip", "absent.zip"),
        ("train table --data absent.csv", "absent.csv"),
        ("train --resume", "--resume needs the folder of a run"),
        ("train --resume absent", "no such run: absent is not a folder"),
        ("evaluate absent", "no such run: absent is not a folder"),
        ("evaluate .", "is not a run: it has no config.toml"),
        ("evaluate . --split tset", "unknown split 'tset' (did you mean 'test'?)"),
        ("adapt . --support a.csv", "the following arguments are required: --query"),
        ("plot absent", "no such run"),
    ],
)
def test_mistakes_are_answered_in_one_line_and_leave_nothing_behind(
    words, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *words.split())
    assert list(tmp_path.iterdir()) == []


def test_mistakes_in_files_are_answered_in_one_line(trained, capsys, tmp_path):
    folder, _, _ = trained
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text("x,y\n1,2\n3,4\n")
    for text, message in (
        ("x,y\n1,nan\n", "nan"),
        ("x,y\n1,two\n", "two"),
        ("a,y\n1,2\n", "x"),
        ("x,y\n", "row"),
        ("", ""),
    ):
        bad.write_text(text)
        line = fails(capsys, "adapt", folder, "--support", bad, "--query", good)
        assert "bad.csv" in line
        assert message in line
    assert "absent.csv" in fails(capsys, "adapt", folder, "--support", good, "--query", "absent.csv")
    target = tmp_path / "no" / "out.csv"
    assert "is not a folder" in fails(
        capsys, "adapt", folder, "--support", good, "--query", good, "--out", target
    )
    assert "has no data" in fails(capsys, "evaluate", folder, "--data", good)
    assert "at least 1" in fails(capsys, "evaluate", folder, "--tasks", 0)
    assert "at least 0" in fails(capsys, "evaluate", folder, "--steps", -1)
    assert "exists and is not empty" in fails(capsys, "train", "sinusoid", "--out", folder)
    config = tmp_path / "config.toml"
    config.write_text("task = 'sinusoid'\n[training]\niteratoins = 3\n")
    assert "did you mean 'iterations'" in fails(capsys, "train", "--config", config)
    config.write_text("task = 'sinusoid'\n")
    assert "is of sinusoid, not of table" in fails(capsys, "train", "table", "--config", config)


def test_a_damaged_run_is_answered_in_one_line(capsys, tmp_path):
    (tmp_path / "config.toml").write_text('task = "sinusoid"\n')
    assert "has no checkpoint that can be read" in fails(capsys, "evaluate", tmp_path)
    (tmp_path / "config.toml").write_text("tas")
    assert "is not a TOML file" in fails(capsys, "evaluate", tmp_path)


def test_a_missing_extra_is_named(trained, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'npmeta[plot]'" in fails(capsys, "plot", trained[0])


def test_versions_and_help():
    assert npmeta_run("--version")[0] == f"npmeta {npmeta.__version__}\n"
    out, _ = npmeta_run("train", "--help")
    for words in ("--inner-lr", "--preset", "--config", "--resume", "sinusoid 10, omniglot"):
        assert words in out
    assert "evaluate" in npmeta_run("--help")[0]


def test_runs_are_numbered_when_no_folder_is_named(tmp_path):
    for n in (1, 2):
        npmeta_run("train", "sinusoid", *QUICK, "--iterations", 2, cwd=tmp_path)
        assert Path(tmp_path, "runs", f"sinusoid-{n}", "config.toml").is_file()
