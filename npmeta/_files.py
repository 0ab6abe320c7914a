"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["write_atomically"]

#: Folders of names for what a process has open.
OPEN_FILES = ("/dev", "/dev/fd")


def write_atomically(path: Path, content: bytes | str) -> None:
    """The file as a whole, or as it was before: never half of it, whenever the power fails.

    A link stays a link, and what it points to is replaced; a file that is there keeps its mode. What
    is not a file (a pipe, ``/dev/null``) or stands for one that is open (``/dev/stdout``) cannot be
    replaced, and is written to.

    Raises
    ------
    ValueError
        If the folder to write in does not exist.
    """
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and (not path.is_file() or str(path.parent) in OPEN_FILES):
        with open(path, "ab") as file:
            file.write(data)
        return
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: {path.parent} is not a folder")
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            os.chmod(temporary, path.stat().st_mode & 0o7777)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if (
            isinstance(error, OSError) and error.errno is not None
        ):  # those of write and fsync name no file
            error.filename, error.filename2 = str(path), None
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Have a new name on the disk too. Windows, and some file systems, know no such thing."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
