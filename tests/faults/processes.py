"""npmeta's command line in processes of their own, which stop or fail at a point given by its number.

A point is an event of the file system (an audit event: open, rename, remove, ...) or a write to a file
below the folder that is looked at. They are counted from 0 in each process, and are the same in each.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import select
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Ended", "ended", "run", "snapshot", "traceless"]

#: Seconds after which a process hangs.
LONGEST = 60

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod")


@dataclass(frozen=True)
class Ended:
    """How a process has ended: its exit status, -9 after a kill; what it has said; how many points it
    has passed, and which of them are writes: none if it was stopped."""

    status: int
    out: str
    err: str
    points: int
    writes: tuple[int, ...]


class _Points:
    """The points that a process passes, and what happens at one of them."""

    def __init__(self, kill: int | None, full: int | None, room: float) -> None:
        self.passed, self._kill, self._full, self._room = 0, kill, full, room
        self._is_full = False
        self.writes: list[int] = []

    def event(self) -> None:
        if self.passed == self._kill:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1

    def write(self, size: int) -> int:
        """How much of a write there is room for."""
        number, self.passed = self.passed, self.passed + 1
        self.writes.append(number)
        if self._is_full:
            return 0
        if number == self._full:
            self._is_full = True
            return int(self._room * size)
        return size // 2 if number == self._kill else size

    def fail(self) -> None:
        if not self._is_full:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _File(io.FileIO):
    """A file whose writes are points."""

    def __init__(self, file: Any, mode: str, points: _Points) -> None:
        super().__init__(file, mode)
        self._points = points

    def write(self, data: Any) -> int:
        room = self._points.write(len(data))
        written = super().write(bytes(data)[:room])
        if room < len(data):
            self._points.fail()
        return written


def _instrument(under: Path, points: _Points) -> None:
    base, real_open = os.path.realpath(under) + os.sep, builtins.open

    def below(path: Any) -> bool:
        return isinstance(path, str | bytes | os.PathLike) and os.path.abspath(
            os.fsdecode(path)
        ).startswith(base)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in EVENTS and below(args[0]):
            reads = event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR)
            if not reads:
                points.event()

    def open_(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        writes = "b" in mode and set(mode) & set("wax+")
        if writes and (isinstance(file, int) or below(file)):
            return io.BufferedWriter(_File(file, mode.replace("b", ""), points))
        return real_open(file, mode, *args, **options)

    builtins.open = open_
    sys.addaudithook(hook)


def run(
    words: list[str],
    folder: Path,
    *,
    kill: int | None = None,
    full: int | None = None,
    room: float = 0.0,
    after: float | None = None,
) -> Ended:
    """A command in a child of this process, in a folder.

    Parameters
    ----------
    words : list of str
    folder : Path
        Where it runs, and whose points count.
    kill : int, optional
        The point before which it gets SIGKILL; a write has been made by half.
    full : int, optional
        The write from which on the disk is full: it has room for a share ``room`` of this one, for
        nothing after.
    after : float, optional
        Seconds after which it gets SIGKILL.
    """
    said = folder.parent / f"{folder.name}.said"
    said.mkdir(exist_ok=True)
    for name in ("out", "err"):  # also for one that is killed before it has opened them
        (said / name).write_bytes(b"")
    child = os.fork()
    if not child:
        _become(words, folder, said, kill, full, room)  # does not return
    ends = os.pidfd_open(child)
    try:
        in_time = select.select([ends], [], [], LONGEST if after is None else after)[0]
    finally:
        os.close(ends)
    if not in_time:
        os.kill(child, signal.SIGKILL)
    _, code = os.waitpid(child, 0)
    if not in_time and after is None:
        shutil.rmtree(said)
        return Ended(-1, "", f"it did not end within {LONGEST} s", 0, ())
    texts = [(said / name).read_text("utf-8", "replace") for name in ("out", "err")]
    points = (said / "points").read_text().split() if (said / "points").exists() else ["0"]
    shutil.rmtree(said)
    passed, *writes = map(int, points)
    return Ended(os.waitstatus_to_exitcode(code), *texts, passed, tuple(writes))


def _become(
    words: list[str], folder: Path, said: Path, kill: int | None, full: int | None, room: float
) -> None:
    """The command, in the child."""
    status = 99
    try:
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = str(said)
        for number, name in ((1, "out"), (2, "err")):
            handle = os.open(said / name, os.O_WRONLY | os.O_CREAT)
            os.dup2(handle, number)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), "utf-8", write_through=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), "utf-8", write_through=True)
        points = _Points(kill, full, room)
        _instrument(folder, points)
        from npmeta.cli.main import main

        status = main(words)
        sys.stdout.flush()
        (said / "points").write_text(" ".join(map(str, [points.passed, *points.writes])))
    finally:
        if sys.exc_info()[0] is not None:
            import traceback

            traceback.print_exc()
        os._exit(status)


def ended(done: Ended, status: int | tuple[int, ...] = 0) -> str | None:
    """What is wrong with how a process has ended, if it should have had this status."""
    allowed = status if isinstance(status, tuple) else (status,)
    if done.status not in allowed:
        return f"status {done.status}, expected {status}: {done.err[-500:]}"
    return traceless(done)


def traceless(done: Ended) -> str | None:
    """What is wrong with what a process has said."""
    if "Traceback" in done.err + done.out:
        return f"a traceback: {done.err[-500:]}"
    return None


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, in which its own path is ``.``; None for a folder."""
    own = str(folder.resolve()).encode()
    return {
        path.relative_to(folder).as_posix(): (
            None if path.is_dir() else path.read_bytes().replace(own, b".")
        )
        for path in sorted(folder.rglob("*"))
    }
