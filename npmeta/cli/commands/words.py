"""What commands say and refuse alike."""

from __future__ import annotations

import sys
from pathlib import Path

from npmeta._support.output import Lasting, one_line


def say(message: str) -> None:
    """A sentence beside the output proper. That nobody can read it is no reason to end."""
    print(one_line(message), file=Lasting(sys.stderr), flush=True)


def data(text: str) -> None:
    """Somebody's data to standard output: as it is, unless it is shown on a terminal."""
    out = sys.stdout
    if isinstance(out, Lasting) and not out.isatty():
        out.write_data(text)
    else:
        print(text, end="")


def check_picture(picture: Path | None) -> None:
    """Raise ValueError if a picture is asked for where none can be written."""
    if picture is not None and not picture.resolve().parent.is_dir():
        raise ValueError(f"cannot write {picture}: its folder does not exist")
    if picture is not None and picture.suffix.lower() != ".png":
        raise ValueError(f"cannot write {picture}: pictures are PNG; name one that ends in .png")
