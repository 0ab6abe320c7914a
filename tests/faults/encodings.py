"""Terminals and pipes of other encodings: no output fails for its characters."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.faults.processes import run
from tests.faults.scenarios import SINUSOID, SMALL, STRUCTURED, ready, table
from tests.faults.sweep import Sweep

__all__ = ["SWEEP"]

ENCODINGS = (
    "ascii",
    "utf-8",
    "utf-16",
    "latin-1",
    "cp1252",
    "cp437",
    "cp850",
    "koi8-r",
    "mac-roman",
    "shift_jis",
    "gb18030",
    "big5",
)

TABLE = ["train", "table", "--data", "tä.csv", "--feature-columns", "größe", "x\x1b[31m", *SMALL]
TABLE += ["--shots", "3", "--queries", "2", "--iterations", "2", "--out", "neu"]


class Spoken(NamedTuple):
    """A command, its exit status, and whether it gives back what is in a file as it is."""

    words: list[str]
    status: int = 0
    data: bool = False


COMMANDS = (
    *(
        Spoken([*command, "--help"])
        for command in (
            [],
            *([name] for name in ("train", "evaluate", "adapt", "plot", "structure", "list", "check")),
            ["doctor"],
            ["golden"],
        )
    ),
    Spoken(["--version"]),
    Spoken(["list"]),
    Spoken(["list", "maml++"]),
    Spoken(["doctor", "--list"]),
    Spoken(["golden", "list"]),
    Spoken([*SINUSOID[:-1], "neu"]),
    Spoken(TABLE),
    Spoken(["train", "--resume", "run", "--iterations", "7"]),
    Spoken(["evaluate", "run"]),
    Spoken(["evaluate", "run", "--json", "-"]),
    Spoken(["adapt", "table", "--support", "tä.csv", "--query", "tä.csv"], data=True),
    Spoken(["plot", "run"]),
    Spoken(["structure", "structured"]),
    Spoken(["golden", "check", "suite", "answers.npz"], 1),
    Spoken(["doctor", "suite/cases/base", "answers.npz"], 1),
    Spoken(["golden", "write", "suite−2/é", "--no-such"], 2),
    Spoken(["evaluate", "−é\x1b[2J"], 2),
    Spoken(["train", "sinusoid", "--inner-lr", "α"], 2),
    Spoken(["train", "table", "--data", "tä.csv", "--target-column", "größe°"], 2),
)


def prepare(folder: Path) -> Path:
    from npmeta.verification import golden

    ready()
    start = folder / "start"
    start.mkdir()
    text = table().replace("task,x,z,", "task,größe,x\x1b[31m,")
    (start / "tä.csv").write_text(text, encoding="utf-8")
    for words in (SINUSOID, [*STRUCTURED[:-1], "structured"], [*TABLE[:-1], "table"]):
        done = run(words, start)
        assert done.status == 0, done.err
    golden.write(start / "suite", only=["base"])
    gradient = np.random.default_rng(0).normal(size=149)
    np.savez(start / "answers.npz", **{"base/meta_grad": gradient})
    return start


def trial(start: Path, number: int, folder: Path) -> str | None:
    command, encoding = COMMANDS[number // len(ENCODINGS)], ENCODINGS[number % len(ENCODINGS)]
    shutil.copytree(start, folder, dirs_exist_ok=True)
    path = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "npmeta", *command.words],
        cwd=folder,
        capture_output=True,
        timeout=120,
        env=os.environ
        | {
            "PYTHONIOENCODING": encoding,
            "PYTHONUTF8": "0",
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": str(path),
        },
    )
    where = f"npmeta {' '.join(command.words)!r} in {encoding}"
    try:
        out, err = (stream.decode(encoding) for stream in (done.stdout, done.stderr))
    except UnicodeDecodeError as error:
        return f"{where}: {error}"
    if done.returncode != command.status or "Traceback" in out + err:
        return f"{where}: status {done.returncode}: {err[-500:]}"
    odd = {one for one in out + err if not one.isprintable()} - set("\n\r\t\ufeff")
    return f"{where}: control characters {odd}" if odd and not command.data else None


SWEEP = Sweep(
    "encodings",
    "Every command, and errors, with standard streams in each of twelve encodings: nothing fails, what "
    "is said can be read, and no control character of a file or an argument comes through.",
    6,
    prepare,
    lambda _: len(COMMANDS) * len(ENCODINGS),
    trial,
)
