"""Commands that write files, and what must come of them however often they have been stopped."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from io import StringIO
from pathlib import Path

from tests.faults.processes import Ended, ended, run, snapshot, traceless

__all__ = [
    "SCENARIOS",
    "Prepared",
    "Scenario",
    "prepared",
    "readable",
    "ready",
    "recovered",
    "table",
]

SMALL = ["--hidden", "4", "--meta-batch", "2", "--checkpoint-every", "2", "--log-every", "1"]
SMALL += ["--validate-every", "3", "--validation-tasks", "3", "--eval-tasks", "3"]


@dataclass(frozen=True)
class Scenario:
    """A command that writes files, and what is there before it.

    A command that has been stopped is made good by itself, or by going on with the run it has begun.

    Attributes
    ----------
    name : str
    words : list of str
        The command.
    before : list of list of str
        Commands that make what is there.
    files : dict
        Files that are there, by name.
    """

    name: str
    words: list[str]
    before: list[list[str]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def again(self, folder: Path) -> list[str]:
        """The command that makes good what is in a folder."""
        begun = self.words[0] == "train" and (folder / "run" / "config.toml").is_file()
        return ["train", "--resume", "run"] if begun and "--out" in self.words else self.words


@dataclass(frozen=True)
class Prepared:
    """A scenario with the folder before it, what comes of it, and its points."""

    scenario: Scenario
    start: Path
    expected: dict[str, bytes | None]
    points: int
    writes: tuple[int, ...]
    seconds: float


def table() -> str:
    rows = [
        f"{task},{x},{(task * x) % 7},{'abc'[(task + x) % 3]}" for task in range(9) for x in range(6)
    ]
    return "\n".join(["task,x,z,target", *rows]) + "\n"


SINUSOID = ["train", "sinusoid", *SMALL, "--iterations", "5", "--out", "run"]
TABLE = ["train", "table", "--data", "t.csv", "--shots", "3", "--queries", "2", *SMALL]
TABLE += ["--iterations", "4", "--out", "run"]
STRUCTURED = [
    "train",
    "sinusoid",
    "--algorithm",
    "structured",
    *SMALL,
    "--iterations",
    "2",
    "--out",
    "run",
]
ROWS = "x,y\n0.5,1\n1.5,2\n"

SCENARIOS = (
    Scenario("train sinusoid", SINUSOID),
    Scenario("train table", TABLE, files={"t.csv": table()}),
    Scenario(
        "resume",
        ["train", "--resume", "run", "--iterations", "9"],
        before=[SINUSOID],
    ),
    Scenario(
        "evaluate --json",
        ["evaluate", "run", "--json", "scores.json"],
        before=[SINUSOID],
        files={"scores.json": "{}"},
    ),
    Scenario(
        "adapt --out",
        ["adapt", "run", "--support", "rows.csv", "--query", "rows.csv", "--out", "answers.csv"],
        before=[SINUSOID],
        files={"rows.csv": ROWS, "answers.csv": "old\n"},
    ),
    Scenario("plot", ["plot", "run"], before=[SINUSOID]),
    Scenario(
        "structure --picture",
        ["structure", "run", "--picture", "found.png"],
        before=[STRUCTURED],
    ),
    Scenario(
        "golden write",
        ["golden", "write", "suite"],
        before=[["golden", "write", "suite"]],
    ),
)


def ready() -> None:
    """Have golden suites of three cases, and what a command imports for all children of this process:
    both take long."""
    # The first import of font_manager may write a cache of its own.
    for name in (
        "matplotlib.font_manager",
        "npmeta.cli.main",
        "npmeta.cli.commands",
        "npmeta.cli.plots",
    ):
        import_module(name)
    golden_suite = import_module("npmeta.verification.golden.suite")
    golden_suite.SETTINGS = golden_suite.SETTINGS[:3]
    main = import_module("npmeta.cli.main").main
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stdout(StringIO()),
        redirect_stderr(StringIO()),
    ):
        assert main([*SINUSOID[:-1], f"{folder}/run"]) == 0  # most of it is for the pictures


def prepared(scenarios: Iterable[Scenario], folder: Path) -> Iterator[Prepared]:
    """Make what is there before each, once of those that begin alike, and find what comes of it."""
    begun: dict[str, Path] = {}
    for i, one in enumerate(scenarios):
        before = begun.setdefault(repr(one.before), folder / f"before {i}")
        if not before.exists():
            before.mkdir()
            for words in one.before:
                _must(run(words, before))
        yield _prepared(one, before, folder / str(i))


def _prepared(scenario: Scenario, before: Path, folder: Path) -> Prepared:
    start = folder / "start"
    shutil.copytree(before, start)
    for name, text in scenario.files.items():
        (start / name).write_text(text)
    place = folder / "expected"
    shutil.copytree(start, place)
    began = time.monotonic()
    done = _must(run(scenario.words, place))
    seconds = time.monotonic() - began
    return Prepared(scenario, start, snapshot(place), done.points, done.writes, seconds)


def _must(done: Ended) -> Ended:
    wrong = ended(done)
    if wrong is not None:
        raise AssertionError(wrong)
    return done


def recovered(one: Prepared, folder: Path) -> str | None:
    """Make good what has been stopped in a folder; what is wrong then, or None."""
    again = one.scenario.again(folder)
    done = run(again, folder)
    wrong = ended(done)
    if wrong is not None:
        return f"npmeta {' '.join(again)}: {wrong}"
    found = snapshot(folder)
    if found.keys() != one.expected.keys():
        return f"other files: {sorted(found.keys() ^ one.expected.keys())}"
    for name, content in one.expected.items():
        if found[name] != content:
            return f"{name} is not the same"
    return None


def readable(folder: Path) -> str | None:
    """What a stopped command has left must be whole for whoever reads it next."""
    if (folder / "run" / "config.toml").is_file():
        return traceless(run(["evaluate", "run", "--tasks", "1"], folder))
    return None
