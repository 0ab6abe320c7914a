"""Damaged and hostile files: read as they are, or refused by one line that names the file."""

from __future__ import annotations

import io
import os
import random
import resource
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.damage import damaged
from tests.faults.processes import run, snapshot
from tests.faults.scenarios import SINUSOID, TABLE, ready, table
from tests.faults.sweep import LONGEST, HangsError, Sweep, timed

__all__ = ["SWEEP"]

TRIALS = 500_000

#: One in so many is a whole command on a run or a suite with a damaged file; the others are read only.
COMMANDS = 200

MOST = 2**30  # bytes


@dataclass(frozen=True)
class Subject:
    """A whole file, and what reads it.

    Attributes
    ----------
    name, kind : str
        Of the file; the kind is known to :func:`damaged`.
    content : bytes
    read : callable
        ``path -> anything``.
    exact : bool
        Whether the file has checksums, so that what is read is the same, or it is refused.
    """

    name: str
    kind: str
    content: bytes
    read: Callable[[Path], Any]
    exact: bool = False


@dataclass(frozen=True)
class Command:
    """A command that reads a file of a folder."""

    start: Path
    file: str
    kind: str
    words: list[str]


@dataclass(frozen=True)
class State:
    subjects: list[Subject]
    commands: list[Command]


def prepare(folder: Path) -> State:
    ready()
    warnings.simplefilter("ignore")  # of skipped tasks
    return State(list(_subjects(folder / "files")), list(_commands(folder / "runs")))


def _subjects(folder: Path) -> Iterator[Subject]:
    import npmeta as nm
    from npmeta.cli.checkpoints import Checkpoint
    from npmeta.cli.metrics import Metrics
    from npmeta.cli.runs import Run
    from npmeta.tasks import Encoding, Omniglot, Table, drawings, read_image
    from npmeta.tasks.columns import read_columns
    from npmeta.training.config import Config
    from npmeta.verification import golden
    from npmeta.verification.doctor import tensors
    from npmeta.verification.doctor.files import load_problem, save_problem
    from npmeta.verification.golden.suite import read_index
    from tests.test_tasks_omniglot import files, write_zip

    folder.mkdir()
    rng = np.random.default_rng(0)

    def checkpoint(path: Path) -> bytes:
        return Checkpoint.read(path).to_bytes()

    params = {"theta": rng.normal(size=20).astype(np.float32), "inner_lr": np.asarray(0.1)}
    whole = Checkpoint(3, params, {"m/theta": params["theta"]}, np.zeros(3), np.array([3, 99]))
    yield Subject("00000003.npz", "npz", whole.to_bytes(), checkpoint)
    yield Subject("00000003.npz", "bytes", whole.to_bytes(), checkpoint, exact=True)

    def config(path: Path) -> Config:
        return Run(path.parent).config

    yield Subject("config.toml", "toml", Config("omniglot").to_toml().encode(), config)

    run_folder = folder / "run"
    Run.create(run_folder, Config("sinusoid"), None)
    kept = Run(run_folder)
    for i in range(5):
        kept.append({"iteration": i, "loss": i / 3, "grad_norm": 0.1, "outer_lr": 0.5})

    def metrics(path: Path) -> Any:
        return Metrics(path).rows()

    yield Subject("metrics.csv", "csv", (run_folder / "metrics.csv").read_bytes(), metrics)

    encoding = Encoding(("a", "b"), "y", (0.0, 1.0), (1.0, 2.0), classes=("no", "yes"))
    Run.create(folder / "table", Config("table", {"data": "t.csv"}), encoding.to_dict())

    def read_encoding(path: Path) -> Encoding:
        run = Run.__new__(Run)
        run.folder = path.parent
        return run.encoding()

    yield Subject(
        "encoding.json", "json", (folder / "table" / "encoding.json").read_bytes(), read_encoding
    )

    def read_table(path: Path) -> Any:
        return Table(path, shots=2, queries=2).sample(0, 0, 1)

    yield Subject("t.csv", "csv", table().encode(), read_table)
    cells = [line.split(",") for line in table().split()]
    columns = {name: np.array(column) for name, *column in zip(*cells, strict=True)}
    columns["x"] = columns["x"].astype(float)
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, **columns)
        yield Subject("t.npz", "npz", buffer.getvalue(), read_table)
    yield Subject("rows.csv", "csv", b"image,label\na.png,A\nb.png,B\n", read_columns)

    images = dict(list(files().items())[:24])
    write_zip(folder / "o.zip", images)

    def read_omniglot(path: Path) -> Any:
        with _no_cache(drawings):
            return Omniglot(path, ways=2, queries=1, fractions=(1, 0, 0)).sample(0, 0, 1)

    yield Subject("o.zip", "zip", (folder / "o.zip").read_bytes(), read_omniglot)
    yield Subject("drawing.png", "png", next(iter(images.values())), read_image)
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (40, 30), dtype=np.uint8)).save(buffer, "JPEG")
    yield Subject("drawing.jpg", "jpg", buffer.getvalue(), read_image)

    loaded = drawings.load(folder / "o.zip")[:2]
    digest = drawings._cache_digest("0", *loaded)
    buffer = io.BytesIO()
    np.savez(buffer, images=loaded[0], characters=np.array(loaded[1]), digest=np.array(digest))

    def read_cache(path: Path) -> bytes:
        with _no_cache(drawings, path):
            read = drawings._read_cache("0")
        if read is None:
            raise ValueError(f"{path.name} is not believed")
        return repr((read[0].tolist(), read[1])).encode()

    yield Subject("cache.npz", "npz", buffer.getvalue(), read_cache, exact=True)

    suite = golden.write(folder / "suite", only=["base"])
    case = folder / "case"
    maml, sinusoid = nm.MAML(nm.MLP([1, 3, 1], "tanh"), "mse", 0.1, 2), nm.tasks.Sinusoid(2, 2)
    problem = nm.Problem(maml, maml.init(0)["theta"], sinusoid.sample(0, 0, 2))
    save_problem(case, problem)
    answers = {f"meta_grad.{i}.{n}": rng.normal(size=3) for i in range(2) for n in ("weight", "bias")}
    yield Subject("a.npz", "npz", tensors.npz_bytes(answers), tensors.load_arrays)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **answers)
    yield Subject("z.npz", "npz", buffer.getvalue(), tensors.load_arrays)
    data = tensors.safetensors_bytes(answers)
    yield Subject("a.safetensors", "safetensors", data, tensors.load_arrays)
    buffer = io.BytesIO()
    np.save(buffer, rng.normal(size=(3, 4)))
    yield Subject("phi.npy", "npy", buffer.getvalue(), tensors.load_arrays)
    index = (suite / "index.json").read_bytes()
    yield Subject("index.json", "json", index, lambda path: read_index(path.parent))

    def read_case(path: Path) -> Any:
        for name in ("tensors.npz", "case.json"):
            if path.name != name:
                shutil.copy(case / name, path.parent)
        return load_problem(path.parent)

    yield Subject("case.json", "json", (case / "case.json").read_bytes(), read_case)
    yield Subject("tensors.npz", "npz", (case / "tensors.npz").read_bytes(), read_case)


@contextmanager
def _no_cache(drawings: Any, file: Path | None = None) -> Iterator[None]:
    before, drawings._cache_file = drawings._cache_file, lambda checksum: file
    try:
        yield
    finally:
        drawings._cache_file = before


def _commands(folder: Path) -> Iterator[Command]:
    folder.mkdir()
    sinusoid, table_run, golden = folder / "sinusoid", folder / "table", folder / "golden"
    for place, words in (
        (sinusoid, SINUSOID),
        (table_run, TABLE),
        (golden, ["golden", "write", "suite"]),
    ):
        place.mkdir()
        (place / "t.csv").write_text(table())
        (place / "rows.csv").write_text("task,x,z,target\n1,2,3,a\n1,3,4,b\n")
        done = run(words, place)
        assert done.status == 0, done.err
    np.savez(golden / "answers.npz", **{"base/meta_grad": np.zeros(149)})
    newest = "run/checkpoints/00000005.npz"
    resume = ["train", "--resume", "run", "--iterations", "6"]
    yield Command(sinusoid, newest, "npz", resume)
    evaluate = ["evaluate", "run", "--tasks", "1", "--steps", "1"]
    yield Command(sinusoid, newest, "npz", evaluate)
    yield Command(sinusoid, "run/metrics.csv", "csv", resume)
    yield Command(
        sinusoid, "run/config.toml", "bytes", ["evaluate", "run", "--tasks", "1", "--steps", "1"]
    )
    adapt = ["adapt", "run", "--support", "rows.csv", "--query", "rows.csv", "--steps", "1"]
    yield Command(table_run, "run/encoding.json", "json", adapt)
    yield Command(table_run, "rows.csv", "csv", adapt)
    yield Command(table_run, "run/checkpoints/00000004.npz", "npz", adapt)
    check = ["golden", "check", "suite", "answers.npz"]
    yield Command(
        golden, "suite/cases/base/tensors.npz", "npz", ["doctor", "suite/cases/base", "answers.npz"]
    )
    yield Command(golden, "suite/index.json", "json", check)
    yield Command(golden, "answers.npz", "npz", check)


# --- trials -------------------------------------------------------------------------------------------


@contextmanager
def _bounded() -> Iterator[None]:
    """In no more time than a trial may take, and with MOST bytes more than there are."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST, limits[1]))
    try:
        with timed():
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def trial(state: State, number: int, folder: Path) -> str | None:
    rng = random.Random(number)
    if number % COMMANDS == 0:
        return _command(rng.choice(state.commands), rng, folder)
    subject = rng.choice(state.subjects)
    path = folder / subject.name
    content = damaged(subject.content, subject.kind, rng)
    path.write_bytes(content)
    try:
        with _bounded():
            found = subject.read(path)
    except (ValueError, OSError) as error:
        said = str(error)
        wrong = None
        if "\n" in said or len(said) > 1500 or "MemoryError" in said or "allocate" in said:
            wrong = f"it said {said[:300]!r}"
        elif subject.name not in said and str(folder) not in said:
            wrong = f"it did not name the file: {said[:300]!r}"
    except HangsError:
        wrong = f"it took more than {LONGEST} s"
    except BaseException as error:
        wrong = f"{type(error).__name__}: {str(error)[:300]}"
    else:
        other = subject.exact and content != subject.content and found != _whole(subject, folder)
        wrong = "what was read is not what was written" if other else None
    return wrong and f"{subject.name}: {wrong}"


def _whole(subject: Subject, folder: Path) -> Any:
    (folder / subject.name).write_bytes(subject.content)
    return subject.read(folder / subject.name)


def _command(command: Command, rng: random.Random, folder: Path) -> str | None:
    from npmeta.cli.main import main

    shutil.copytree(command.start, folder, dirs_exist_ok=True)
    file = folder / command.file
    file.write_bytes(damaged(file.read_bytes(), command.kind, rng))
    before = snapshot(folder)
    out, err = io.StringIO(), io.StringIO()
    streams, sys.stdout, sys.stderr = (sys.stdout, sys.stderr), out, err
    here = os.getcwd()
    os.chdir(folder)
    wrong = None
    try:
        with _bounded():
            status = main(command.words)
    except HangsError:
        wrong = f"it took more than {LONGEST} s"
    except BaseException as error:
        wrong = f"{type(error).__name__}: {str(error)[:300]}"
    else:
        said = err.getvalue()
        if status == 2 and snapshot(folder) != before:
            wrong = f"it refused, and has changed {folder}: {said[-200:]}"
        elif status not in (0, 1, 2) or max(map(len, said.splitlines()), default=0) > 1600:
            wrong = f"status {status}: {said[-300:]}"
    finally:
        os.chdir(here)
        sys.stdout, sys.stderr = streams
    with suppress(OSError):
        shutil.rmtree(folder)
    return wrong and f"{command.file}, npmeta {' '.join(command.words)}: {wrong}"


SWEEP = Sweep(
    "mutations",
    "Damaged and hostile inputs to everything that reads a file, and to commands as a whole: read, or "
    "refused in one line that names the file, within ten seconds and 1 GiB; nothing else changed.",
    1500,
    prepare,
    lambda state: TRIALS,
    trial,
)
