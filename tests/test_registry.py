"""The registry: every algorithm has what the command line asks of one, and runs from end to end."""

import itertools
from dataclasses import replace
from inspect import Parameter

import numpy as np
import pytest

from npmeta._support.options import parameters
from npmeta.algorithms.registry import ALGORITHMS
from npmeta.bilevel import optimizers
from npmeta.cli import plots
from npmeta.cli.main import main
from npmeta.cli.runs import Run
from npmeta.network.mlp import MLP
from npmeta.tasks import Sinusoid
from npmeta.tasks.registry import KINDS, Kind, kind_of
from npmeta.training.config import Config
from npmeta.training.loop import meta_train
from npmeta.training.options import OPTIONS, options_of

every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)

QUICK = ["--hidden", "5", "4", "--meta-batch", "2", "--eval-tasks", "3", "--validation-tasks", "2"]
QUICK += ["--log-every", "1", "--checkpoint-every", "1", "--eval-steps", "2"]
QUICK += ["--schedule", "constant"]  # cosine's end cannot change midway


def npmeta(*words) -> None:
    assert main([str(word) for word in words]) == 0


# --- options ----------------------------------------------------------------------------------------


@every_algorithm
def test_defaults_pass_their_own_checks(name):
    for task in ALGORITHMS[name].tasks:
        config = Config(task, {"algorithm": name})
        assert config["algorithm"] == name


@every_algorithm
def test_own_defaults_are_of_options_that_it_has(name):
    entry = ALGORITHMS[name]
    assert set(entry.tasks) <= set(KINDS)
    for task in entry.tasks:
        assert set(entry.defaults) <= {option.name for option in options_of(task, name)}


def test_options_of_one_name_agree_in_all_but_default_and_help():
    """One flag of the command line stands for all of them."""
    union = {option.name: option for option in OPTIONS}
    assert len(union) == len(OPTIONS)
    for task, name in itertools.product(KINDS, ALGORITHMS):
        for option in options_of(task, name):
            flag = union[option.name]
            for field in ("section", "kind", "low", "high", "exclusive", "choices", "length"):
                assert getattr(option, field) == getattr(flag, field), f"{name}: {option.name} {field}"


def test_sections_of_the_file_are_in_one_piece():
    for task, name in itertools.product(KINDS, ALGORITHMS):
        options = options_of(task, name)
        sections = [section for section, _ in itertools.groupby(o.section for o in options)]
        assert len(sections) == len(set(sections))
        assert len(options) == len({option.name for option in options})


@pytest.mark.parametrize("entry", [*KINDS.values(), *ALGORITHMS.values()], ids=lambda e: e.name)
def test_a_default_stands_in_one_place(entry):
    """An argument of a constructor has the constructor's; to declare another beside it is refused."""
    construct = entry.sampler if isinstance(entry, Kind) else entry.construct
    own = {name: p.default for name, p in parameters(construct).items()}
    for declared, option in zip(entry.declared, entry.options, strict=True):
        default = own.get(option.argument)
        if default not in (None, Parameter.empty):
            assert declared.default is ...
            assert option.default == (list(default) if isinstance(default, tuple) else default)
            with pytest.raises(ValueError, match=f"has a default of {option.name}, so declare none"):
                replace(declared, default=default).of(construct)


def test_names_stand_for_what_constructors_take_when_none_is_given():
    config = Config("sinusoid")
    assert config["activation"] == [f.name for f in MLP([1, 2, 1]).activations]
    assert config["norm"] == str(MLP([1, 2, 1]).norm).lower()
    algorithm = config.algorithm(1, 1)
    params = algorithm.init(0)
    step = next(meta_train(algorithm, params, Sinusoid(), iterations=1))
    assert set(step.state) == set(optimizers.get(config["optimizer"]).init(params))
    assert step.lr == config["outer_lr"] * config.schedule()(0)


@every_algorithm
def test_no_default_repeats_what_would_hold_without_it(name):
    entry = ALGORITHMS[name]
    for option, default in entry.defaults.items():
        others = {key: value for key, value in entry.defaults.items() if key != option}
        without = replace(entry, defaults=others)
        by_task = default if isinstance(default, dict) else dict.fromkeys(entry.tasks, default)
        differs = {task: default_of(without, task, option) != value for task, value in by_task.items()}
        # A mapping names the tasks that it is for; a value is for all, and needed on some.
        assert (all if isinstance(default, dict) else any)(differs.values()), (option, differs)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_no_default_of_a_kind_repeats_what_would_hold_without_it(kind, monkeypatch):
    for option, value in kind.defaults.items():
        others = {key: value for key, value in kind.defaults.items() if key != option}
        monkeypatch.setitem(KINDS, kind.name, replace(kind, defaults=others))
        assert default_of(ALGORITHMS["maml"], kind.name, option) != value


def default_of(entry, task, name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ALGORITHMS, entry.name, entry)
        return next(o.default for o in options_of(task, entry.name) if o.name == name)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_has_what_its_fields_say(name):
    kind = KINDS[name]
    assert set(kind.defaults).isdisjoint(option.name for option in kind.options)
    assert kind.picture == "" or callable(getattr(plots, kind.picture))
    # Every argument of the sampler is an option of runs, but for the encoding of other data.
    assert {option.argument for option in kind.options} - {"checksum"} == set(
        parameters(kind.sampler)
    ) - {"encoding"}


def test_a_sampler_of_ones_own_counts_as_a_table():
    assert kind_of(Sinusoid()) is KINDS["sinusoid"]
    assert kind_of(object()) is KINDS["table"]


@every_algorithm
def test_the_file_records_the_algorithm(name, tmp_path):
    for task in ALGORITHMS[name].tasks:
        config = Config(task, {"algorithm": name, "loss": "cross_entropy"})
        (tmp_path / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        assert Config(*Config.read_toml(tmp_path / "config.toml")).values == config.values


def test_a_file_that_names_no_algorithm_is_of_maml(tmp_path):
    text = Config("sinusoid").to_toml()
    assert 'algorithm = "maml"\n' in text
    (tmp_path / "config.toml").write_text(text.replace('algorithm = "maml"\n', ""), encoding="utf-8")
    task, values = Config.read_toml(tmp_path / "config.toml")
    assert "algorithm" not in values
    assert Config(task, values).values == Config("sinusoid").values


def test_unknown_algorithms_are_refused():
    with pytest.raises(ValueError, match=r"unknown algorithm 'mamml' .did you mean 'maml'"):
        Config("sinusoid", {"algorithm": "mamml"})
    with pytest.raises(ValueError, match="unknown algorithm 3"):
        Config("sinusoid", {"algorithm": 3})


# --- runs -------------------------------------------------------------------------------------------


def state_of(folder):
    """Checkpoint and metrics, bit for bit."""
    run = Run(folder)
    kept = replace(run.load(), rows=None)  # metrics.csv is compared where it should be the same
    return kept.to_bytes(), (folder / "metrics.csv").read_bytes()


@every_algorithm
def test_trains_resumes_evaluates_and_adapts(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "npmeta.cli.commands.train.draw", lambda *_: []
    )  # one of them for all is in the tests of cli
    if "sinusoid" not in ALGORITHMS[name].tasks:
        pytest.skip("its own tests run it on the tasks that it is for")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train = ["train", "sinusoid", "--algorithm", name, *QUICK]
    npmeta(*train, "--iterations", 3, "--out", whole)
    npmeta(*train, "--iterations", 2, "--out", parts)
    npmeta("train", "--resume", parts, "--iterations", 3)
    # Of the end that the shorter run had, the row of its validation stays.
    assert state_of(parts)[0] == state_of(whole)[0]
    params = Run(whole).load().params
    assert all(np.isfinite(array).all() for array in params.values())

    capsys.readouterr()
    npmeta("evaluate", whole, "--tasks", 2)
    assert "2 test tasks" in capsys.readouterr().out
    (tmp_path / "support.csv").write_text("x,y\n0.5,1\n1.5,2\n")
    (tmp_path / "query.csv").write_text("x\n1\n2\n3\n")
    npmeta("adapt", whole, "--support", tmp_path / "support.csv", "--query", tmp_path / "query.csv")
    head, *rows = capsys.readouterr().out.split()
    assert head == "x,prediction"
    assert len(rows) == 3


def test_resuming_refuses_another_algorithm(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("npmeta.cli.commands.train.draw", lambda *_: [])
    folder = tmp_path / "run"
    npmeta("train", "sinusoid", "--algorithm", "anil", *QUICK, "--iterations", 1, "--out", folder)
    capsys.readouterr()
    assert main(["train", "--resume", str(folder), "--algorithm", "maml", "--iterations", "2"]) == 2
    assert f"{folder} is of anil, not of maml" in capsys.readouterr().err
    npmeta("train", "--resume", folder, "--algorithm", "anil", "--iterations", 2)


def test_list_names_everything(capsys):
    npmeta("list")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) < 80
    out = " ".join(out.split())
    for name, entry in ALGORITHMS.items():
        assert f" {name} " in out
        assert entry.summary in out
        assert entry.paper in out
    for kind in KINDS.values():
        assert kind.summary in out
    for word in (*KINDS, "paper", "relu", "cross_entropy"):
        assert word in out


@every_algorithm
def test_list_describes_one(name, capsys):
    npmeta("list", name)
    out = capsys.readouterr().out
    assert out.startswith(f"{name}: ")
    assert max(map(len, out.splitlines()[2:])) < 80
    for option in ALGORITHMS[name].options:
        assert f"--{option.name.replace('_', '-')} " in out


def test_a_described_algorithm_has_defaults_on_its_own_tasks_alone(capsys):
    npmeta("list", "pixels")
    out = capsys.readouterr().out
    assert "--iterations  outer steps (default: 1)\n" in out
    assert "sinusoid" not in out
    npmeta("list", "lstm")
    out = " ".join(capsys.readouterr().out.split())
    assert "test time (sinusoid 10, omniglot 5, table 10)" in out  # no fewer than it is trained with
