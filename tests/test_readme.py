"""The README's promises that can be kept in seconds; the two commands are kept by CI."""

import re
from pathlib import Path

import numpy as np

import npmeta

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_ten_lines_run_and_learn(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["out"].grad.shape == names["params"]["theta"].shape
    scores = npmeta.evaluate(
        names["maml"], names["params"], names["waves"], n_tasks=100, steps=10
    ).mean()
    assert scores[10] < scores[1] < 0.5 * scores[0]
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_every_file_it_points_to_is_there():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT):
        assert (Path(__file__).parents[1] / target).exists(), target


def test_every_command_is_one_that_the_command_line_knows():
    from npmeta.cli.parser import make_parser

    lines = re.findall(r"npmeta ((?:train|evaluate|adapt|plot).*?)(?:#.*)?$", TEXT, re.MULTILINE)
    lines = [line.strip() for line in lines if "--resume`" not in line]
    assert len(lines) >= 4
    for line in lines:
        make_parser().parse_args(line.split())


def test_it_names_every_activation():
    for name in npmeta.network.activations.ACTIVATIONS:
        assert re.search(rf"\b{name}\b", TEXT), name
    assert np.all([word in TEXT for word in ("mse", "hinge")])
