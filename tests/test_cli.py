"""The command line as its users run it: real processes, real files, real signals."""

import csv
import dataclasses
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import npmeta
from npmeta.cli import commands
from npmeta.cli.checkpoints import Checkpoint
from npmeta.cli.commands import results, train
from npmeta.cli.main import main
from npmeta.cli.runs import Run, locked
from npmeta.tasks.registry import KINDS
from npmeta.training.config import Config
from npmeta.training.options import options_of

QUICK = ["--eval-tasks", "20", "--hidden", "8", "8", "--meta-batch", "4"]

# 251 iterations, with an odd number of everything.
RESUMABLE = ["--iterations", "251", "--log-every", "7", "--checkpoint-every", "20"]
RESUMABLE += ["--validate-every", "45", "--validation-tasks", "5", "--schedule", "cosine"]
RESUMABLE += ["--clip", "5", "--learn-inner-lr", "--dtype", "float32"]


#: Has a matplotlib that cannot be imported: most of what follows is not about pictures.
WITHOUT_PICTURES = Path(__file__).parent / "without_pictures"


def npmeta_process(*args, pictures=False, **options):
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "error::RuntimeWarning"}
    if not pictures:
        paths = [str(WITHOUT_PICTURES), env.get("PYTHONPATH", "")]
        env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return subprocess.Popen(
        [sys.executable, "-m", "npmeta", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
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
    out, err = npmeta_run("train", "sinusoid", *QUICK, *RESUMABLE, "--out", folder, pictures=True)
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
    out, _ = npmeta_run("plot", folder, "--out", tmp_path, pictures=True)
    for name in ("waves", "curves", "scores"):
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert str(tmp_path / f"{name}.png") in out


def test_waves_are_drawn_after_as_many_steps_as_are_tested(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("npmeta.cli.plots.waves", lambda *_, steps, seed: drawn.append(tuple(steps)))
    monkeypatch.setattr("npmeta.cli.plots.save", lambda figure, path, **options: path)
    for name, more in ("lslr", ()), ("meta-sgd", ()), ("maml", ("--eval-steps", 0)), ("ridge", ()):
        folder = tmp_path / name
        train = ["train", "sinusoid", *QUICK, "--iterations", 1, "--algorithm", name, *more]
        assert main([str(word) for word in [*train, "--out", folder]]) == 0
    assert drawn == [(0, 1, 5), (0, 1), (0,), (None,)]


def test_the_recorded_configuration_makes_the_run_again(trained, tmp_path):
    folder, _, _ = trained
    npmeta_run("train", "--config", folder / "config.toml", "--out", tmp_path / "again")
    assert final_state(tmp_path / "again") == final_state(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
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
        assert process.returncode == 128 + number
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
    npmeta_run(*short, "--iterations", 40, "--out", folder, pictures=True)
    _, err = npmeta_run("train", "--resume", folder, pictures=True)
    assert "has made its 40 iterations" in err
    assert "cannot go back to 30" in fails(capsys, "train", "--resume", folder, "--iterations", 30)
    npmeta_run("train", "--resume", folder, "--iterations", 60, pictures=True)
    npmeta_run(*short, "--iterations", 60, "--out", tmp_path / "longer", pictures=True)
    assert final_state(folder) == final_state(tmp_path / "longer")
    assert Run(folder).config["iterations"] == 60
    assert "cannot go on with another inner_lr" in fails(
        capsys, "train", "--resume", folder, "--inner-lr", 3, "--iterations", 99
    )
    assert "not of omniglot" in fails(capsys, "train", "omniglot", "--resume", folder)


#: Ends the process at a point of its own choosing, as a signal from outside might.
INTERRUPTED_REPORT = """
import os, signal, sys
from npmeta.cli import main as cli
from npmeta.cli.commands import train
number, score = getattr(signal, sys.argv.pop(1)), train.score
def interrupted(*args, **options):
    os.kill(os.getpid(), number)
    return score(*args, **options)
train.score = interrupted
sys.exit(cli.main())
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_an_interrupted_report_can_be_made_good(tmp_path, number):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", INTERRUPTED_REPORT, number, "train"]
    new = ["sinusoid", *QUICK, "--iterations", "4", "--out", str(folder)]
    for words in (new, ["--resume", str(folder), "--iterations", "6"]):
        process = subprocess.run([*command, *words], capture_output=True, text=True, timeout=60)
        assert process.returncode == 128 + getattr(signal, number), process.stderr
        by = "" if number == "SIGINT" else f" by {number}"
        assert process.stderr.splitlines()[-1] == f"npmeta: interrupted{by}"
        assert not (folder / "evaluation.json").exists()
        out, _ = npmeta_run("train", "--resume", folder, pictures=True)
        assert out.startswith("20 test tasks")
        scores = json.loads((folder / "evaluation.json").read_text())["loss"]
        out, err = npmeta_run("train", "--resume", folder, pictures=True)
        assert out == ""
        assert "has made its" in err
    npmeta_run("train", "sinusoid", *QUICK, "--iterations", 6, "--out", tmp_path / "whole")
    assert scores == json.loads((tmp_path / "whole" / "evaluation.json").read_text())["loss"]


def signals_after(iteration, *numbers):
    """meta_train, but that signals come in an iteration."""

    def meta_train(*args, **options):
        for step in npmeta.meta_train(*args, **options):
            if step.iteration == iteration:
                for number in numbers:
                    signal.raise_signal(number)
            yield step

    return meta_train


def test_a_second_interrupt_does_not_wait(tmp_path, monkeypatch, capsys):
    words = ["train", "sinusoid", *QUICK, "--iterations", "9", "--out"]
    monkeypatch.setattr(train, "meta_train", signals_after(5, signal.SIGINT))
    assert main([*words, str(tmp_path / "once")]) == 130
    assert Run(tmp_path / "once").load().iteration == 5
    monkeypatch.setattr(train, "meta_train", signals_after(5, signal.SIGINT, signal.SIGTERM))
    assert main([*words, str(tmp_path / "twice")]) == 143
    assert Run(tmp_path / "twice").load().iteration == 0
    assert capsys.readouterr().err.splitlines()[-1] == "npmeta: interrupted by SIGTERM"


def test_an_interrupt_in_the_last_iteration_leaves_out_the_report(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    monkeypatch.setattr(train, "meta_train", signals_after(9, signal.SIGTERM))
    assert main(["train", "sinusoid", *QUICK, "--iterations", "9", "--out", str(folder)]) == 143
    assert "stopped after iteration 9 of 9" in capsys.readouterr().err
    assert not (folder / "evaluation.json").exists()
    assert main(["train", "--resume", str(folder)]) == 0
    assert (folder / "evaluation.json").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    folder = tmp_path / "run"
    _, err = npmeta_run("train", "sinusoid", *QUICK, "--inner-lr", "1e200", "--out", folder, status=1)
    assert "training stopped: the loss of task 0 in iteration 0 is" in err
    assert "try a smaller inner_lr" in err
    assert "00000000.npz" in err
    assert "Warning" not in err
    assert "Traceback" not in err


# --- from options to training -----------------------------------------------------------------------


def test_training_is_that_of_the_library_with_the_same_options(tmp_path, capsys):
    """Written out by hand, with nothing at its default: a value that went astray would show."""
    folder = tmp_path / "run"
    words = """--seed 7 --iterations 12 --meta-batch 3 --outer-lr 0.02 --optimizer momentum --clip 0.5
        --schedule step --schedule-every 5 --schedule-factor 0.25 --shots 4 --queries 6 --noise 0.1
        --hidden 5 --activation tanh --inner-lr 0.03 --inner-steps 2 --inner-weight-decay 0.01
        --log-every 4 --validate-every 6 --validation-tasks 7 --eval-tasks 9 --eval-steps 3"""
    assert main(["train", "sinusoid", *words.split(), "--out", str(folder)]) == 0
    capsys.readouterr()

    tasks = npmeta.tasks.Sinusoid(shots=4, queries=6, noise=0.1)
    maml = npmeta.MAML(
        npmeta.MLP([1, 5, 1], "tanh"), inner_lr=0.03, inner_steps=2, inner_weight_decay=0.01
    )
    steps = list(
        npmeta.meta_train(
            maml,
            maml.init(np.random.default_rng(7)),
            tasks,
            iterations=12,
            meta_batch=3,
            outer_lr=0.02,
            optimizer=npmeta.bilevel.optimizers.Momentum(),
            schedule=npmeta.bilevel.optimizers.step(5, 0.25),
            clip=0.5,
            seed=7,
        )
    )
    assert max(step.grad_norm for step in steps) > 0.5  # there is something to clip
    run = Run(folder)
    end = run.load()
    for found, expected in ((end.params, steps[-1].params), (end.state, steps[-1].state)):
        assert set(found) == set(expected)
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name])

    rows, before = run.metrics(), 0
    assert [row["iteration"] for row in rows] == [4, 6, 8, 12]
    for row in rows:
        since, before = steps[before : int(row["iteration"])], int(row["iteration"])
        assert row["loss"] == pytest.approx(np.mean([step.loss for step in since]), rel=1e-14)
        assert row["grad_norm"] == pytest.approx(np.mean([step.grad_norm for step in since]), rel=1e-14)
        assert row["outer_lr"] == 0.02 * 0.25 ** ((before - 1) // 5)
        assert ("validation_loss" in row) == (before in (6, 12))
        if "validation_loss" in row:
            scored = npmeta.evaluate(
                maml, steps[before - 1].params, tasks, n_tasks=7, split="validation", seed=7
            )
            assert row["validation_loss"] == scored.mean()[-1]
    scored = npmeta.evaluate(maml, end.params, tasks, n_tasks=9, steps=3, split="test", seed=7)
    assert json.loads((folder / "evaluation.json").read_text())["loss"] == scored.mean().tolist()


#: What an option may be that it is not by default.
OTHER = {
    "dtype": {"float64": "float32", "float32": "float64"},
    "fractions": [0.5, 0.3, 0.2],
    "split_by": "alphabet",
    "target_kind": "class",
    "loss": "huber",
    "activation": ["tanh", "elu"],
    "norm": "layer",
    "inner_lr": [0.25, 0.5],
    "inner_lr_per": "step",
    "inner_steps": 2,
    "optimizer": "momentum",
    "schedule": "cosine",
    "schedule_floor": 0.5,
    "hidden": [7, 6],
    "feature_columns": ["width"],
    "clip": 2.5,
    "shard_size": 3,
}


def other(option):
    default = option.default
    if option.name in OTHER:
        value = OTHER[option.name]
        return value[default] if isinstance(value, dict) else value
    if option.kind is str:
        return f"another {option.name}"
    if option.kind is bool:
        return not default
    return [value + 1 for value in default] if isinstance(default, list) else default + 1


@pytest.mark.parametrize("task", KINDS)
def test_every_option_arrives_where_it_is_used(task, monkeypatch, tmp_path):
    options = [option for option in options_of(task, "maml") if option.name != "algorithm"]
    chosen = {option.name: other(option) for option in options}
    assert all(value != Config(task)[name] for name, value in chosen.items())
    words = []
    for option in options:
        flag, value = "--" + option.name.replace("_", "-"), chosen[option.name]
        if option.kind is bool:
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    came = {}
    monkeypatch.setattr(commands, "start_run", lambda config, *_: came.update(config=config) or 0)
    assert main(["train", task, *words]) == 0
    config = came["config"]
    assert config.values == {"algorithm": "maml", **chosen}

    class Recorded:
        checksum = chosen.get("checksum")

        def __init__(self, **options):
            came["tasks"] = options

    Recorded.__signature__ = inspect.signature(KINDS[task].sampler)
    config.kind = dataclasses.replace(KINDS[task], sampler=Recorded)
    config.tasks()
    c = chosen
    shared = {"shots": c["shots"], "queries": c["queries"]}
    if task == "sinusoid":
        shared |= {name: c[name] for name in ("amplitude", "phase", "frequency", "x")}
        shared |= {"noise": 1.0}
    else:
        shared |= {"path": "another data", "split_seed": 1, "fractions": [0.5, 0.3, 0.2]}
        if task == "omniglot":
            shared |= {"ways": 6, "rotations": False, "align": True, "distort": 1.0}
            shared |= {"split_by": "alphabet"}
        else:
            shared |= {"task": "another task_column", "target": "another target_column"}
            shared |= {"features": ["width"], "kind": "class", "standardise": False}
    assert came["tasks"] == shared

    maml = config.algorithm(3, 2)
    assert maml.model.widths == (3, 7, 6, 2)
    assert [f.name for f in maml.model.activations] == ["tanh", "elu"]
    assert (maml.model.norm, maml.model.adapt_norm, maml.model.norm_sets) == ("layer", False, 2)
    assert maml.objective.loss.name == "huber"
    assert maml.inner_lr.tolist() == [[0.25], [0.5]]
    assert (maml.inner_steps, maml.inner_weight_decay) == (2, 1.0)
    assert maml.first_order
    assert maml.learn_inner_lr
    assert config.schedule()(c["iterations"]) == 0.5

    def meta_train(algorithm, params, tasks, **options):
        came["training"] = (params, options)
        return iter(())

    def evaluate(algorithm, params, tasks, **options):
        came["evaluation"] = options
        return npmeta.algorithms.Scores(np.zeros((1, 1)), None)

    monkeypatch.setattr(train, "meta_train", meta_train)
    for module in (train, results):
        monkeypatch.setattr(module, "evaluate", evaluate)
    params = maml.init(np.random.default_rng(c["seed"]), c["dtype"])
    run = Run.create(tmp_path / "run", config, None)
    start = Checkpoint(3, params, {"m/theta": params["theta"]}, np.zeros(3))
    train._iterate(run, None, maml, start, [])
    params_passed, options = came["training"]
    assert params_passed is params
    assert options.pop("state") is start.state
    assert options.pop("schedule")(c["iterations"]) == 0.5
    assert options == {
        "iterations": c["iterations"],
        "meta_batch": c["meta_batch"],
        "outer_lr": 1.001,
        "optimizer": npmeta.bilevel.optimizers.Momentum(),
        "clip": 2.5,
        "seed": 1,
        "start": 3,
    }
    train._validate(config, None, maml, params)
    assert came["evaluation"] == {"n_tasks": 101, "split": "validation", "seed": 1}
    results.score(run, None, maml, params)
    assert came["evaluation"] == {
        "n_tasks": 601, "steps": c["eval_steps"], "split": "test", "seed": 1
    }  # fmt: skip


@pytest.mark.parametrize(("option", "of"), [("dtype", "float32"), ("seed", 5)])
def test_initial_parameters_are_of_the_seed_and_dtype(option, of, tmp_path):
    options = {"seed": 0, "dtype": "float64", option: of}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    folder = tmp_path / "run"
    assert main(["train", "sinusoid", *QUICK, *words, "--iterations", "1", "--out", str(folder)]) == 0
    found = Checkpoint.read(Run(folder).checkpoints()[0])
    maml = npmeta.MAML(npmeta.MLP([1, 8, 8, 1]))
    expected = maml.init(np.random.default_rng(options["seed"]), options["dtype"])
    assert found.iteration == 0
    assert found.params["theta"].dtype == options["dtype"]
    np.testing.assert_array_equal(found.params["theta"], expected["theta"])


# --- evaluate and adapt -----------------------------------------------------------------------------


def test_evaluate_takes_the_tasks_of_its_seed(trained):
    def losses(*words):
        return json.loads(npmeta_run("evaluate", trained[0], "--json", "-", *words)[0])["loss"]

    assert losses() == losses("--seed", 0) == losses("--split", "test")
    assert losses() != losses("--seed", 1)
    assert losses() != losses("--split", "validation")


def test_a_task_that_diverges_is_null_in_json(trained, monkeypatch, capsys, tmp_path):
    def evaluate(*args, **options):
        loss = np.array([[1.0, np.inf, np.nan], [2.0, 1.0, 1.0]])
        return npmeta.algorithms.Scores(loss, None)

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    monkeypatch.setattr(results, "evaluate", evaluate)
    file = tmp_path / "scores.json"
    assert main(["evaluate", str(trained[0]), "--json", str(file)]) == 1
    capsys.readouterr()
    assert main(["evaluate", str(trained[0]), "--json", "-"]) == 1
    for text in (file.read_text(), capsys.readouterr().out.partition("{")[1:]):
        record = json.loads("".join(text), parse_constant=refuse)
        assert record["loss"] == [1.5, None, None]
        assert record["loss_ci95"][1:] == [None, None]
        assert record["diverged"] == [0, 1, 1]


def test_the_table_comes_before_json_on_the_same_output(trained, tmp_path):
    words = ["evaluate", trained[0], "--json", "/dev/stdout", "--tasks", 5]
    file = tmp_path / "out"
    with open(file, "w") as stream:
        command = [sys.executable, "-m", "npmeta", *map(str, words)]
        # Where the environment has Python write at once, the order would be right by itself.
        buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
        subprocess.run(command, stdout=stream, check=True, timeout=60, env=buffered)
    for out in (npmeta_run(*words)[0], file.read_text()):
        assert out.startswith("5 test tasks")
        assert json.loads(out[out.index("{") :])["tasks"] == 5


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
        again.load().params,
        again.config.tasks(),
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
    steps = run.config["eval_steps"]
    assert steps != run.config["inner_steps"]
    assert npmeta_run("adapt", folder, *files) == npmeta_run("adapt", folder, *files, "--steps", steps)
    assert npmeta_run("adapt", folder, *files)[0] != out


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
    assert out.startswith("3 other.csv tasks in 10 draws, mean ± 95% confidence interval\n")
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
        ("--verison", "unknown argument '--verison' (did you mean --version?)"),
        ("train sinusoid --lr 1", "unknown argument '--lr' (did you mean --inner-lr or --outer-lr?)"),
        ("train sinusoid --epochs 1", "unknown argument '--epochs'"),
        ("predict .", "unknown command 'predict'; known:"),
        ("train sinusoid --inner-lrr 1", "unknown argument '--inner-lrr' (did you mean --inner-lr?)"),
        ("train sinusoid --activation rleu", "unknown activation 'rleu' (did you mean 'relu'?)"),
        ("train sinusoid --loss mes", "unknown loss 'mes' (did you mean 'mse'?)"),
        ("train sinusoid --loss cross_entropy", "one-hot or soft labels for cross_entropy"),
        ("train sinusoid --optimizer adm", "unknown optimizer 'adm' (did you mean 'adam'?)"),
        ("train sinusoid --ways 5", "option of sinusoid runs 'ways': it is one of omniglot runs"),
        ("train sinusoid --standardise", "it is one of table runs"),
        ("train sinusoid --split-seed 1", "it is one of omniglot and table runs"),
        ("train sinusoid --algorithm anil --learn-inner-lr", "npmeta list anil shows what it has"),
        ("train sinusoid --loss hinge", "maml with the loss hinge does not fit sinusoid: rows of"),
        ("train sinusoid --inner-lr 1 2", "inner_lr must be"),
        ("train sinusoid --dtype float16", "unknown dtype 'float16'"),
        ("train sinusoid --schedule cosine --schedule-floor 2", "schedule_floor must be at most 1"),
        ("train sinusoid --x -1e0 -2.5E+1", "x must be"),
        ("train sinusoid --x -.5e-1 -1.", "x must be"),
        ("evaluate . --data a.csv --split train", "--data is scored on all that is in it"),
        ("train --resume . --out elsewhere", "goes on in its own folder"),
        ("train --resume .", "is not a run: it has no config.toml"),
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
    assert "the extra npmeta[plot]: pip install matplotlib" in fails(capsys, "plot", trained[0])


def test_a_traceback_is_shown_on_request(monkeypatch, capsys):
    monkeypatch.setenv("NPMETA_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no such run"):
        main(["evaluate", "absent"])
    monkeypatch.setenv("NPMETA_TRACEBACK", "")
    assert "no such run" in fails(capsys, "evaluate", "absent")
    assert "NPMETA_TRACEBACK=1" in npmeta_run("--help")[0]


def test_a_run_in_the_current_folder_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "sinusoid", *QUICK, "--iterations", "2", "--out", "."]) == 0
    for n, words in enumerate(
        (["--resume", "."], ["--out", ".", "--resume"], ["--resume", ".", "--out", "."])
    ):
        assert main(["train", *words, "--iterations", str(3 + n)]) == 0
        assert Run(".").load().iteration == 3 + n


def test_iterations_of_a_cosine_cannot_change(trained, capsys):
    line = fails(capsys, "train", "--resume", trained[0], "--iterations", 300)
    assert "cosine schedule depends on iterations" in line
    assert Run(trained[0]).config["iterations"] == 251


def test_a_run_is_trained_by_one_process_at_a_time(trained, capsys):
    pytest.importorskip("fcntl")
    with locked(trained[0]):
        assert "is being trained by another process" in fails(capsys, "train", "--resume", trained[0])
    assert main(["train", "--resume", str(trained[0])]) == 0


def test_a_new_run_holds_its_lock(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    folder = tmp_path / "run"

    def meta_train(*args, **options):
        with pytest.raises(ValueError, match="is being trained"), locked(folder):
            pass
        return npmeta.meta_train(*args, **options)

    monkeypatch.setattr(train, "meta_train", meta_train)
    assert main(["train", "sinusoid", *QUICK, "--iterations", "2", "--out", str(folder)]) == 0


def test_every_split_is_tried_before_anything_is_written(tmp_path, capsys):
    """Tasks of the validation or the test split may be what cannot be drawn or scored."""
    data = table_file(tmp_path / "rows.csv", "number")
    columns = ["--task-column", "shop", "--target-column", "answer", "--data", data]
    for empty, fractions in (("validation", (0.8, 0, 0.2)), ("test", (0.8, 0.2, 0))):
        line = fails(
            capsys, "train", "table", *columns, "--fractions", *fractions, "--out", tmp_path / "run"
        )
        assert f"the {empty} split is empty" in line
    assert not (tmp_path / "run").exists()


def test_data_that_was_moved_is_found_and_remembered(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    data = table_file(tmp_path / "home" / "rows.csv", "number")
    folder = tmp_path / "run"
    columns = ["--task-column", "shop", "--target-column", "answer", "--data", "~/rows.csv"]
    train = ["train", "table", *columns, *QUICK, "--iterations", "4", "--out", str(folder)]
    assert main(train) == 0
    assert Run(folder).config["data"] == str(data.resolve())

    moved = data.rename(tmp_path / "moved.csv")
    capsys.readouterr()
    assert "no such file" in fails(capsys, "train", "--resume", folder, "--iterations", 6)
    other = table_file(tmp_path / "other.csv", "number", n_tasks=11)
    assert "is not the data this run was made with" in fails(
        capsys, "train", "--resume", folder, "--data", other, "--iterations", 6
    )
    assert Run(folder).config["data"] == str(data.resolve())
    assert main(["train", "--resume", str(folder), "--data", "moved.csv", "--iterations", "6"]) == 0
    assert Run(folder).config["data"] == str(moved.resolve())
    assert Run(folder).load().iteration == 6
    moved.rename(tmp_path / "again.csv")
    assert main(["train", "--resume", str(folder), "--data", "again.csv"]) == 0  # though it is complete
    assert Run(folder).config["data"] == str(tmp_path.resolve() / "again.csv")


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


def test_runs_that_begin_at_once_have_folders_of_their_own(tmp_path, monkeypatch):
    words = ["train", "sinusoid", *QUICK, "--iterations", 2]
    processes = [npmeta_process(*words, cwd=tmp_path) for _ in range(4)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        f"sinusoid-{n}" for n in (1, 2, 3, 4)
    ]
    # And should one turn up after another has looked whether it is there:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "is_free", lambda folder: True)
    assert main(list(map(str, words))) == 0
    assert Run("runs/sinusoid-5").load().iteration == 2


def test_a_checkpoint_that_may_not_be_read_stops_rather_than_going_back(trained, monkeypatch, capsys):
    from npmeta.cli import checkpoints

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoints, "read_file", forbidden)
    assert "Permission denied" in fails(capsys, "evaluate", trained[0], "--tasks", 1)


def test_a_place_that_is_not_there_is_refused_before_the_work(trained, capsys, tmp_path):
    line = fails(capsys, "evaluate", trained[0], "--json", tmp_path / "no" / "x.json")
    assert "its folder does not exist" in line


def test_numbers_too_large_for_the_machine_are_answered_in_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "MemoryError" in fails(capsys, "train", "sinusoid", "--hidden", "100000000", "100000000")


@pytest.mark.parametrize(("loss", "mean"), [("poisson_nll", np.exp), ("binary_cross_entropy", None)])
def test_predictions_are_rates_and_probabilities(loss, mean, tmp_path):
    rows = [f"{t},{x},{(t + x) % 2}" for t in range(10) for x in range(12)]
    (tmp_path / "t.csv").write_text("task,x,target\n" + "\n".join(rows) + "\n")
    folder = tmp_path / "run"
    npmeta_run(
        *("train", "table", "--data", tmp_path / "t.csv", "--loss", loss, "--no-standardise"),
        *("--inner-lr", "0.001", *QUICK, "--iterations", 3, "--out", folder),
    )
    out, _ = npmeta_run("adapt", folder, "--support", tmp_path / "t.csv", "--query", tmp_path / "t.csv")
    predicted = np.array([float(row["prediction"]) for row in csv.DictReader(out.splitlines())])
    run = Run(folder)
    table = np.genfromtxt(tmp_path / "t.csv", delimiter=",", skip_header=1)
    x, y = table[None, :, 1:2], table[None, :, 2:]
    o = run.config.algorithm(1, 1).predict(run.load().params, x, y, x, steps=10)[0, :, 0]
    expected = np.exp(o) if mean else 1 / (1 + np.exp(-o))
    np.testing.assert_allclose(predicted, expected, rtol=1e-9)  # another order of operations


def test_other_data_for_the_configuration_of_a_run(tmp_path):
    folder = tmp_path / "run"
    columns = ["--task-column", "shop", "--target-column", "answer", *QUICK, "--iterations", 2]
    npmeta_run(
        "train", "table", "--data", table_file(tmp_path / "a.csv", "number"), *columns, "--out", folder
    )
    other = table_file(tmp_path / "b.csv", "number", n_tasks=10)
    npmeta_run(
        "train", "--config", folder / "config.toml", "--data", other, "--out", tmp_path / "again"
    )
    assert Run(tmp_path / "again").config["data"] == str(other)


def test_a_resume_that_cannot_go_on_changes_nothing(trained, capsys, tmp_path):
    whole, _, _ = trained
    for name, old, new, message in (
        ("config.toml", 'optimizer = "adam"', 'optimizer = "sgd"', "optimizer state are"),
        ("config.toml", 'dtype = "float32"', 'dtype = "float64"', "parameters are"),
        ("config.toml", 'schedule = "cosine"', 'schedule = "constant"', "line 3 is damaged"),
    ):
        folder = tmp_path / message.replace(" ", "-")
        shutil.copytree(whole, folder)
        path = folder / name
        assert old in path.read_text()
        # Without the cosine schedule the iterations may change.
        path.write_text(path.read_text().replace(old, new).replace('"cosine"', '"constant"'))
        if "line 3" in message:
            lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
            (folder / "metrics.csv").write_text("".join([*lines[:2], "14,garb\n", *lines[3:]]))
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        assert message in fails(capsys, "train", "--resume", folder, "--iterations", 300)
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_run_whose_checkpoints_are_elsewhere_is_not_gone_on_with(trained, capsys, tmp_path):
    folder, theirs = tmp_path / "run", tmp_path / "theirs"
    shutil.copytree(trained[0], folder)
    (folder / "checkpoints").rename(theirs)
    (folder / "checkpoints").symlink_to(theirs)
    before = {path: path.read_bytes() for path in theirs.iterdir()}
    assert "is a link" in fails(capsys, "train", "--resume", folder)
    assert {path: path.read_bytes() for path in theirs.iterdir()} == before


def test_parameters_of_another_network_are_not_evaluated(trained, capsys, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    path = folder / "config.toml"
    assert "hidden = [8, 8]" in path.read_text()
    path.write_text(path.read_text().replace("hidden = [8, 8]", "hidden = [8, 9]"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    support, query = tmp_path / "support.csv", tmp_path / "query.csv"
    support.write_text("x,y\n0.5,0.1\n")
    query.write_text("x\n0.5\n")
    for command in (
        ("evaluate", folder, "--tasks", 5),
        ("adapt", folder, "--support", support, "--query", query),
        ("plot", folder, "--out", tmp_path / "plot.png"),
    ):
        message = fails(capsys, *command)
        assert "does not fit config.toml: its parameters are" in message, command
        assert len(message) < 1000
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_resume_that_cannot_write_changes_nothing(trained, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    (folder / "config.toml").write_text(
        (folder / "config.toml").read_text().replace('schedule = "cosine"', 'schedule = "constant"')
    )
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {"evaluation.json", "scores.png"} <= {path.name for path in before}

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "No space left" in fails(capsys, "train", "--resume", folder, "--iterations", 300)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
