"""Files and folders that appear whole or not at all, and are not left half made.

What is being made has a name of its own beside its place, ``.NAME.`` and twelve hexadecimal digits, and
is locked as long as its process lives. So what a killed process has left can be told from what another
is just writing, and goes the next time that something is written there.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Folders of names for what a process has open.
OPEN_FILES = ("/dev", "/dev/fd")

#: Names of what is in the making; with ".old", of what has been put aside for it.
TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{12}(\.old)?", re.DOTALL)


def write_atomically(path: Path, content: bytes | str, *, follow: bool = True) -> None:
    """The file as a whole, or as it was before: never half of it, whenever the power fails.

    A file that is there keeps its mode. What is not a file (a pipe, ``/dev/null``) or stands for one
    that is open (``/dev/stdout``) cannot be replaced, and is written to.

    Parameters
    ----------
    path : Path
    content : bytes or str
        Text becomes UTF-8.
    follow : bool
        Whether a link stays a link, and what it points to is replaced: for a path that somebody has
        named. Without, the file replaces whatever has its name: for names of our own, where a link or
        a pipe would lead out of the folder.

    Raises
    ------
    ValueError
        If the folder to write in does not exist.
    OSError
        If the file cannot be written; it names the file.
    """
    data = content.encode() if isinstance(content, str) else content
    if follow and path.exists() and (not path.is_file() or str(path.parent) in OPEN_FILES):
        with open(path, "ab") as file:
            file.write(data)
        return
    path = Path(os.path.realpath(path)) if follow else path
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: {path.parent} is not a folder")
    sweep(path.parent, path.name)
    try:
        while not _replaced(path, data):
            pass
    except OSError as error:
        if error.errno is None:
            raise
        # Those of write and fsync name no file, and that of a rename two.
        raise OSError(error.errno, error.strerror, str(path)) from error
    _sync_folder(path.parent)


def _replaced(path: Path, data: bytes) -> bool:
    """Put a new file in a path's place; false if another process has swept it before its lock."""
    temporary = _beside(path)
    try:
        with open(temporary, "xb") as file:
            is_locked = lock(file.fileno(), wait=True)
            if not _is_at(file.fileno(), temporary):
                return False
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if not is_locked:
                file.close()  # Windows renames nothing that is open
            with suppress(FileNotFoundError):
                mode = os.lstat(path).st_mode
                if stat.S_ISREG(mode):
                    os.chmod(temporary, mode & 0o7777)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return True


@contextmanager
def folder_in_the_making(place: Path) -> Iterator[Path]:
    """A folder beside a place, locked; removed at the end unless it has been renamed.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    sweep(place.parent, place.name)
    while True:
        folder = _beside(place)
        folder.mkdir()
        with _handle_of(folder) as handle:
            if handle is not None:
                lock(handle, wait=True)
                if not _is_at(handle, folder):
                    continue
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


def put_folder(new: Path, place: Path) -> None:
    """Rename a :func:`folder_in_the_making` to its place, and remove what was there.

    Whoever looks between the two renames finds nothing there, which :func:`restore_folder` mends if the
    process has been killed.

    Raises
    ------
    ValueError
        If another process is just putting a folder there.
    """
    if not os.path.lexists(place):
        os.replace(new, place)
        return
    old = new.with_name(f"{new.name}.old")
    with _handle_of(place) as handle:
        if handle is not None:
            try:
                lock(handle)  # as long as this process is at work, nobody restores it
            except BlockingIOError:
                raise ValueError(f"{place} is being written by another process") from None
        os.replace(place, old)
        try:
            os.replace(new, place)
        except BaseException:
            os.replace(old, place)
            raise
        shutil.rmtree(old, ignore_errors=True)


def restore_folder(place: Path) -> None:
    """Bring back what a process had put aside that was killed before it put the new one there."""
    place = Path(os.path.realpath(place))
    if os.path.lexists(place):
        return
    with suppress(OSError):
        found = [entry.name for entry in os.scandir(place.parent)]
        aside = [
            name
            for name in found
            if (m := TEMPORARY.fullmatch(name)) and m[2] and m["name"] == place.name
        ]
        for name in aside:
            with suppress(OSError), _handle_of(place.parent / name) as handle:
                if handle is not None:
                    lock(handle)
                os.rename(place.parent / name, place)  # the second finds a folder that is not empty
                return


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.urandom(6).hex()}")


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes were making in a folder, or were making of one name in it.

    What has been put aside stays as long as nothing is in its place. Nothing is removed where files
    cannot be locked.
    """
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            match = TEMPORARY.fullmatch(entry.name)
            if not match or name not in (None, match["name"]):
                continue
            if match[2] and not os.path.lexists(folder / match["name"]):
                continue
            with suppress(OSError):
                _remove_if_nobodys(Path(entry.path), entry.is_dir(follow_symlinks=False))


def _remove_if_nobodys(path: Path, is_folder: bool) -> None:
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with _handle_of(path, flags) as handle:
        if handle is None or not lock(handle):
            return
        if is_folder:
            shutil.rmtree(path)
        else:
            os.unlink(path)


def lock(handle: int, *, wait: bool = False) -> bool:
    """Whether the lock of an open file or folder has been got, which ends with the process.

    Not where there are none: on Windows, and on some network file systems.

    Raises
    ------
    BlockingIOError
        If another process has it, and ``wait`` is false.
    """
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether what is open still has its name: another process may have swept it before the lock."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


@contextmanager
def _handle_of(path: Path, flags: int = 0) -> Iterator[int | None]:
    """A handle of a file or folder; None where the system gives none (Windows, of folders)."""
    try:
        handle = os.open(path, os.O_RDONLY | flags)
    except PermissionError:
        handle = None
    try:
        yield handle
    finally:
        if handle is not None:
            os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Have a new name on the disk too. Windows, and some file systems, know no such thing."""
    with suppress(OSError), _handle_of(folder) as handle:
        if handle is not None:
            os.fsync(handle)
