"""Drawings from the archive to predictions, on the command line."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from npmeta.algorithms.registry import ALGORITHMS
from npmeta.cli.main import main
from npmeta.cli.runs import Run
from tests.test_cli import QUICK, fails, npmeta_run
from tests.test_tasks_omniglot import REAL, files, write_folder, write_zip

FRACTIONS = ["--ways", "3", "--queries", "2", "--fractions", "0.6", "0.2", "0.2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small archive of each kind and a run on the first."""
    folder = tmp_path_factory.mktemp("omniglot")
    write_zip(folder / "background.zip", files())
    write_zip(folder / "evaluation.zip", files("images_evaluation/"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        out, err = npmeta_run(
            "train", "omniglot", "--data", "background.zip", *FRACTIONS, *QUICK,
            "--iterations", 30, "--out", "run", cwd=folder,
        )  # fmt: skip
        assert "Traceback" not in err
        assert "accuracy %" in out
        yield folder


def test_the_path_of_the_data_does_not_depend_on_where_one_stands(place, tmp_path):
    out, _ = npmeta_run("evaluate", place / "run", "--tasks", 5, cwd=tmp_path)
    assert out.startswith("5 test tasks")


def test_other_data_is_scored_with_all_its_classes(place):
    out, _ = npmeta_run("evaluate", "run", "--data", "evaluation.zip", "--tasks", 30, cwd=place)
    assert out.startswith("30 evaluation.zip tasks")
    printed, _ = npmeta_run(
        "evaluate", "run", "--data", "evaluation.zip", "--tasks", 5, "--json", "-", cwd=place
    )
    record = json.loads(printed)
    assert record["data"] == "evaluation.zip"
    assert len(record["accuracy"]) == len(record["loss"]) == 2


def test_a_run_is_tested_on_tasks_of_other_sizes(place, tmp_path, capsys):
    archive = ["--data", str(place / "background.zip")]
    train = ["train", "omniglot", "--algorithm", "prototypical", *archive, *FRACTIONS, *QUICK]
    assert main([*train, "--iterations", "3", "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    sizes = ["--ways", "2", "--shots", "4", "--queries", "1"]
    assert main(["evaluate", str(tmp_path / "run"), *sizes, "--tasks", "40", "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["ways"], record["shots"], record["queries"]) == (2, 4, 1)
    right = 80 * record["accuracy"][0]  # of 40 tasks with one query of two classes
    assert right == pytest.approx(round(right), abs=1e-3)  # float32
    message = fails(capsys, "evaluate", place / "run", "--ways", 2)
    assert "cannot be tested with 2 ways" in message
    message = fails(capsys, "evaluate", place / "run", "--shots", 9)
    assert "shots + queries must not exceed the 6 drawings of a character, got 9 + 2" in message


def test_drawings_of_ones_own_are_told_apart(place, tmp_path):
    contents = files("")
    names = list(contents)
    write_folder(tmp_path / "mine", {name: contents[name] for name in names})
    of_class = [[n for n in names if n.startswith(f"Greek/character0{c}")] for c in (1, 2)]
    support = [(f"mine/{of_class[c][0]}", label) for c, label in enumerate(("alpha", "beta"))]
    query = [f"mine/{name}" for name in (*of_class[0][1:3], *of_class[1][1:3])]
    (tmp_path / "support.csv").write_text(
        "image, label\n" + "".join(f"{image},{label}\n,\n" for image, label in support)
    )
    (tmp_path / "query.csv").write_text("image\n" + "\n  \n".join(query) + "\n")
    out, _ = npmeta_run(
        "adapt", place / "run", "--support", tmp_path / "support.csv", "--query", tmp_path / "query.csv"
    )
    rows = list(csv.DictReader(out.splitlines()))
    assert [row["image"] for row in rows] == query
    assert {row["prediction"] for row in rows} <= {"alpha", "beta"}  # never the third, nameless class
    for row in rows:
        p = {label: float(row[f"p({label})"]) for label in ("alpha", "beta")}
        assert sum(p.values()) == pytest.approx(1, abs=2e-4)  # four digits each
        assert row["prediction"] == max(p, key=p.get)


@pytest.mark.parametrize("name", [n for n, e in ALGORITHMS.items() if "sinusoid" not in e.tasks])
def test_learners_of_classes_train_resume_evaluate_and_adapt(
    name, place, tmp_path, capsys, monkeypatch
):
    if name != "pixels":  # pictures of one are enough
        monkeypatch.setattr("npmeta.cli.commands.train.draw", lambda *_: [])

    def npmeta(*words):
        capsys.readouterr()
        assert main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train = ["train", "omniglot", "--algorithm", name, "--data", place / "background.zip"]
    train += [*FRACTIONS, *QUICK, "--checkpoint-every", 1]
    npmeta(*train, "--iterations", 3, "--out", whole)
    npmeta(*train, "--iterations", 2, "--out", parts)
    out = npmeta("train", "--resume", parts, "--iterations", 3)
    assert "accuracy %" in out
    assert "inner steps" not in out
    last = [replace(Run(folder).load(), rows=None).to_bytes() for folder in (whole, parts)]
    assert last[0] == last[1]
    assert npmeta("evaluate", whole, "--tasks", 5).startswith("5 test tasks")

    images = list(files(""))[:4]
    write_folder(tmp_path, {image: files("")[image] for image in images})
    rows = "".join(f"{image},{label}\n" for image, label in zip(images[:2], "ab", strict=True))
    (tmp_path / "support.csv").write_text("image,label\n" + rows)
    (tmp_path / "query.csv").write_text("image\n" + "\n".join(images) + "\n")
    adapt = ["adapt", whole, "--support", tmp_path / "support.csv", "--query", tmp_path / "query.csv"]
    answers = list(csv.DictReader(npmeta(*adapt).splitlines()))
    assert len(answers) == 4
    assert {answer["prediction"] for answer in answers} <= {"a", "b"}
    assert "takes no inner steps; leave out --steps" in fails(capsys, *adapt, "--steps", 1)
    assert "leave out --steps" in fails(capsys, "evaluate", whole, "--steps", 1)
    assert not (whole / "scores.png").exists()


def test_learners_of_classes_have_a_loss_of_their_own(place, tmp_path, capsys):
    data = ["--data", place / "background.zip", *FRACTIONS, "--out", tmp_path / "run"]
    refused = ["train", "omniglot", "--algorithm", "prototypical", *data]
    assert "has a loss of its own" in fails(capsys, *refused, "--loss", "hinge")
    refused = ["train", "sinusoid", "--algorithm", "prototypical", "--out", tmp_path / "run"]
    assert "cannot be trained on sinusoid; it is for omniglot" in fails(capsys, *refused)
    (tmp_path / "table.csv").write_text(
        "t,x,y\n" + "".join(f"{i // 12},{i},{i}.5\n" for i in range(96))
    )
    refused = ["train", "table", "--algorithm", "siamese", "--data", tmp_path / "table.csv"]
    refused += ["--task-column", "t", "--target-column", "y", "--out", tmp_path / "run"]
    assert "tells classes apart, and the target is a number" in fails(capsys, *refused)
    assert not (tmp_path / "run").exists()


def test_mistakes_with_drawings(place, tmp_path, capsys):
    good = tmp_path / "good.csv"
    good.write_text("image,label\na.png,a\n")
    for text, message in (
        ("picture,label\na.png,a\n", "unknown column 'image'"),
        (
            "image,label\na.png,a\nb.png,b\nc.png,c\nd.png,d\n",
            "4 different labels; this network tells 3",
        ),
        ("image,label\nabsent.png,a\n", "absent.png"),
        ("image,label\n", "no rows under the header"),
        ("image,label\na.png\n", "line 2: 1 cells, where the header has 2"),
        ("image,label\n,\na.png,\n", "line 3: column 'label' is empty"),
    ):
        bad = tmp_path / "bad.csv"
        bad.write_text(text)
        assert message in fails(capsys, "adapt", place / "run", "--support", bad, "--query", good)
    data = ["--data", place / "background.zip"]
    refused = ["train", "omniglot", *data, *FRACTIONS, "--out", tmp_path / "run"]
    assert "ways" in fails(capsys, *refused, "--ways", "40")
    assert "shots + queries" in fails(capsys, *refused, "--shots", "20")
    assert not (tmp_path / "run").exists()


def test_the_picture_shows_the_task(place):
    pytest.importorskip("matplotlib")
    from npmeta.cli import plots
    from npmeta.cli.runs import Run

    run = Run(place / "run")
    tasks = run.config.tasks()
    algorithm = run.config.algorithm(tasks.n_in, tasks.n_out)
    params = run.load().params
    figure = plots.drawings(algorithm, params, tasks, steps=(0, 1), seed=4)
    batch = tasks.sample(4, 1, 1, split="test")
    o = algorithm.predict(params, batch.support_x, batch.support_y, batch.query_x, steps=1)[0]
    axes = np.array(figure.axes).reshape(3, 3)
    for label in range(3):
        ink = [ax.get_images()[0].get_array()[..., 3].ravel() for ax in axes[label]]
        np.testing.assert_allclose(ink[0], batch.support_x[0][batch.support_y[0] == label][0])
        queries = np.flatnonzero(batch.query_y[0] == label)
        for ax, shown, i in zip(axes[label, 1:], ink[1:], queries, strict=True):
            np.testing.assert_allclose(shown, batch.query_x[0, i])
            taken_for = o[i].argmax()
            assert ax.get_title() == f"{'✓' if taken_for == label else '✗'} {taken_for + 1}"


@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL.name} is not in ../shared/data/omniglot")
def test_real_characters_are_learned(tmp_path, monkeypatch):
    """A hundred iterations are far from the end, and far above the fifth that guessing gets right."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    npmeta_run(
        "train", "omniglot", "--data", REAL, "--ways", 5, "--shots", 1, "--iterations", 100,
        "--hidden", 64, "--eval-tasks", 100, "--out", folder,
    )  # fmt: skip
    record = json.loads((folder / "evaluation.json").read_text())
    assert record["accuracy"][1] - record["accuracy_ci95"][1] > 0.35
    assert abs(record["accuracy"][0] - 0.2) < 0.05  # labels are shuffled: nothing to know beforehand
