"""Doctests of the pages run in a folder that holds the example files, and may write there."""

import shutil
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent / "examples"

#: They have no doctests, and some import what the tests do not need (PyTorch, Dask).
collect_ignore_glob = ["examples/*", "figures/*"]


@pytest.fixture(autouse=True)
def folder_of_examples(tmp_path, monkeypatch):
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)  # which pages import
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where Omniglot keeps what it read
