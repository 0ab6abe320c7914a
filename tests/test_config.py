"""Options, presets, and the file that records them."""

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import npmeta as nm
from npmeta.algorithms.registry import ALGORITHMS
from npmeta.tasks.registry import KINDS, PRESETS, preset
from npmeta.training.config import Config
from npmeta.training.options import options_of


@pytest.mark.parametrize("task", KINDS)
def test_the_file_reads_back_as_the_same_configuration(task, tmp_path):
    config = Config(task, {"inner_lr": [0.1, 0.0], "activation": "tanh", "clip": 10, "hidden": []})
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    named, values = Config.read_toml(path)
    assert named == task
    assert Config(task, values).values == config.values
    assert config["clip"] == 10.0
    assert isinstance(config["clip"], float)
    assert config["hidden"] == []


@given(
    st.floats(1e-300, 1e300),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20),
    st.integers(0, 2**63 - 1),
)
def test_any_number_and_any_text_survive_the_file(tmp_path_factory, number, text, seed):
    config = Config(
        "table", {"outer_lr": number, "data": text, "seed": seed, "feature_columns": [text]}
    )
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert Config("table", Config.read_toml(path)[1]).values == config.values


def test_later_layers_go_before_earlier_ones():
    config = Config("sinusoid", preset("paper", "sinusoid"), {"iterations": 7}, {"iterations": 8})
    assert config["iterations"] == 8
    assert config["inner_lr"] == [0.01]
    assert config["noise"] == 0.0


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    for task, values in PRESETS[name].items():
        Config(task, values)


def test_every_option_has_help_and_a_default_that_passes_its_own_check():
    for task, algorithm in itertools.product(KINDS, ALGORITHMS):
        for option in options_of(task, algorithm):
            assert option.help
            if option.default is not None:
                option.check(option.default)


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("sinusiod", {}, "unknown task 'sinusiod' .did you mean 'sinusoid'"),
        ("sinusoid", {"shots": 0}, "shots must be at least 1, got 0"),
        ("sinusoid", {"shots": 2.5}, "shots must be a whole number, got 2.5"),
        ("sinusoid", {"shots": True}, "shots must be a whole number, got True"),
        ("sinusoid", {"seed": 2**63}, "seed must be a number of 64 bits, got 9223372036854775808"),
        ("sinusoid", {"outer_lr": 10**400}, "outer_lr must be a number of 64 bits"),
        ("sinusoid", {"outer_lr": 0.0}, "outer_lr must be greater than 0, got 0"),
        ("sinusoid", {"outer_lr": float("nan")}, "outer_lr must be finite"),
        ("sinusoid", {"schedule_floor": 1.5}, "schedule_floor must be at most 1, got 1.5"),
        ("sinusoid", {"inner_lr": [0.1, -1.0]}, "inner_lr must be at least 0, got -1"),
        ("sinusoid", {"inner_lr": []}, "inner_lr takes at least 1 value, got 0"),
        ("sinusoid", {"x": [1.0]}, "x takes 2 values, got 1"),
        ("sinusoid", {"activation": "rleu"}, "unknown activation 'rleu' .did you mean 'relu'"),
        ("sinusoid", {"first_order": 1}, "first_order must be true or false, got 1"),
        ("sinusoid", {"ways": 5}, "unknown option of sinusoid runs 'ways'"),
        ("omniglot", {"split_by": "letter"}, "unknown split by 'letter'"),
    ],
)
def test_bad_values_are_refused(task, values, message):
    with pytest.raises(ValueError, match=message):
        Config(task, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task = ", "is not a TOML file"),
        ("[trainin]\niterations = 3", "unknown section 'trainin' .did you mean 'training'"),
        ("[training]\niteratoins = 3", "unknown option 'iteratoins' .did you mean 'iterations'"),
        ("[model]\niterations = 3", r"iterations belongs in section \[training\]"),
        ("[training]\nseed = 3", "seed belongs in the top"),
    ],
)
def test_bad_files_are_refused(text, message, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Config.read_toml(path)
    with pytest.raises(ValueError, match="no such file"):
        Config.read_toml(tmp_path / "absent.toml")


def test_presets_are_named_and_have_tasks():
    with pytest.raises(ValueError, match=r"unknown preset 'papre' .did you mean 'paper'"):
        preset("papre", "sinusoid")
    with pytest.raises(ValueError, match="preset 'paper' has no table; it has sinusoid, omniglot"):
        preset("paper", "table")


def test_the_parts_are_those_that_were_asked_for():
    config = Config(
        "sinusoid",
        {
            "shots": 3,
            "noise": 0.5,
            "x": [0.0, 1.0],
            "hidden": [7, 8],
            "activation": ["tanh", "relu"],
            "inner_lr": [0.1, 0.2, 0.3],
            "inner_steps": 2,
            "first_order": True,
            "inner_weight_decay": 0.25,
            "loss": "huber",
            "schedule": "step",
            "schedule_every": 10,
            "schedule_factor": 0.1,
        },
    )
    tasks = config.tasks()
    assert tasks == nm.tasks.Sinusoid(shots=3, queries=10, x=(0.0, 1.0), noise=0.5)
    maml = config.algorithm(tasks.n_in, tasks.n_out)
    assert maml.model.widths == (1, 7, 8, 1)
    assert [f.name for f in maml.model.activations] == ["tanh", "relu"]
    assert maml.objective.loss.name == "huber"
    assert (maml.inner_lr.tolist(), maml.inner_steps) == ([0.1, 0.2, 0.3], 2)
    assert maml.first_order
    assert maml.inner_weight_decay == 0.25
    np.testing.assert_allclose([config.schedule()(i) for i in (0, 10, 20)], [1, 0.1, 0.01], rtol=1e-15)
    cosine = Config("sinusoid", {"schedule": "cosine", "iterations": 10, "schedule_floor": 0.5})
    assert cosine.schedule()(10) == 0.5


def test_step_sizes_per_layer_or_per_step():
    shared = {"hidden": [4], "inner_lr": [0.1, 0.0], "inner_steps": 2}
    for per, expected in (("layer", [[0.1, 0.0]]), ("step", [[0.1], [0.0]])):
        maml = Config("sinusoid", shared, {"inner_lr_per": per}).algorithm(1, 1)
        assert maml.inner_lr.tolist() == expected
    with pytest.raises(ValueError, match="could be one per step or one per layer"):
        Config("sinusoid", shared).algorithm(1, 1)


def test_data_must_be_named_and_must_be_the_recorded_one(tmp_path):
    with pytest.raises(ValueError, match="table needs the path of its data: --data PATH"):
        Config("table").tasks()
    path = tmp_path / "rows.csv"
    rows = [f"{task},{x},{2 * x}" for task in "abcd" for x in range(12)]
    path.write_text("task,x,target\n" + "\n".join(rows) + "\n")
    config = Config("table", {"data": str(path)})
    checksum = config.tasks().checksum
    config = config.with_values(checksum=checksum)
    config.tasks()
    path.write_text(path.read_text() + "d,99,198\n")
    with pytest.raises(ValueError, match="is not the data this run was made with"):
        config.tasks()


@pytest.mark.parametrize("task", KINDS)
def test_without_a_reader_of_toml_what_npmeta_writes_is_read(task, tmp_path, monkeypatch):
    """As on Python 3.10 after ``pip install npmeta`` alone."""
    data = {"data": 'a "file" #1 = \\ größe\x7f.csv'}
    values = {"inner_lr": [0.5, 1e-5], **(data if task != "sinusoid" else {})}
    config = Config(task, values)
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml() + "# the end\n", encoding="utf-8")
    expected = Config.read_toml(path)
    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", None)
    assert Config.read_toml(path) == expected
    assert Config(task, expected[1]).values == config.values
    for text in (
        "a",
        "seed = ",
        "seed = 1 2",
        "seed = 1\nseed = 2",
        "seed = {}",
        "[x",
        "[x]\n[x]",
        "seed = null",
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"is not a TOML file: line \d: .*pip install tomli"):
            Config.read_toml(path)
