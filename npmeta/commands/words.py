"""What commands say and refuse alike."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["check_picture", "say"]


def say(message: str) -> None:
    """A sentence beside the output proper."""
    print(message, file=sys.stderr, flush=True)


def check_picture(picture: Path | None) -> None:
    """Raise ValueError if a picture is asked for where none can be written."""
    if picture is not None and not picture.resolve().parent.is_dir():
        raise ValueError(f"cannot write {picture}: its folder does not exist")
    if picture is not None and picture.suffix.lower() != ".png":
        raise ValueError(f"cannot write {picture}: pictures are PNG; name one that ends in .png")
