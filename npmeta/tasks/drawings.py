"""Reading drawings: Omniglot's archive or folder, and image files of your own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import numpy as np

from npmeta._support.files import write_atomically
from npmeta._support.reading import SHORT, Members, npz_arrays, read_file
from npmeta._support.validation import Array
from npmeta.tasks.checks import PathLike, existing
from npmeta.tasks.framing import aligned

#: Side of the resized images.
SIDE = 28

#: Pixels of a side of an image at most. Its size stands in its header, and is looked at first.
LARGEST_SIDE = 4096

#: Bytes that all drawings in a folder may have; Omniglot's have five million.
MOST = 2**28

#: Of one drawing, relative to the folder or inside the zip; the top folder may be missing.
LAYOUT = "images_background/<Alphabet>/character<NN>/<id>_<drawer>.png"
_DRAWING = re.compile(r"(?:[^/]+/)?([^/]+)/(character\d+)/(\d+_\d+\.png)", re.IGNORECASE)


def read_image(path: PathLike, align: bool = False) -> Array:
    """A drawing of your own as a network trained on Omniglot expects it: ``(784,)`` float32.

    The image becomes grey (transparency is white), then ink 1 on paper 0. Paper is the grey that half
    of the pixels are lighter than, so light ink on a dark ground is understood as well; ink 1 is the
    grey farthest from it. Paper is added to make a square, which is resized as Omniglot's images are.
    Omniglot's pen is about a thirtieth of the side wide; much finer lines become faint.

    Parameters
    ----------
    path : path-like
        A PNG or a JPEG, of 4096 pixels a side at most.
    align : bool
        As of the Omniglot that the network was trained on.

    Raises
    ------
    ValueError
        If there is no such file, it is not an image, or it holds a single colour.
    ImportError
        If pillow is not installed.
    """
    file = existing(path)
    if file.is_dir():
        raise ValueError(f"{file} is a folder, an image file is expected")
    gray = _decode(file, str(file)).astype(np.float64)
    paper = np.median(gray)
    darkest, lightest = gray.min(), gray.max()
    if darkest == lightest:
        raise ValueError(f"{file} holds a single colour and no drawing")
    ink = (paper - gray) / (paper - (darkest if paper - darkest >= lightest - paper else lightest))
    height, width = ink.shape
    side = max(height, width)
    square = np.zeros((side, side))
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = np.rint(255 * np.maximum(ink, 0))
    resized = _resize(square)
    return (aligned(resized) if align else resized).ravel() / np.float32(255)


# --- reading ------------------------------------------------------------------------------------------

#: (alphabet, character, file), whatever stands above them.
Key: TypeAlias = tuple[str, str, str]


def load(path: Path) -> tuple[Array, tuple[str, ...], str]:
    """Images, names of the characters, and checksum of a zip or folder, by way of the cache."""
    checksum, read = _folder(path) if path.is_dir() else _archive(path)
    loaded = _read_cache(checksum)
    if loaded is None:
        loaded = _decode_all(read(), path)
        _write_cache(checksum, *loaded)
    return *loaded, checksum


def _archive(path: Path) -> tuple[str, Callable[[], dict[Key, bytes]]]:
    """Checksum of a zip, and a function that reads its drawings."""
    import hashlib
    import zipfile

    data = read_file(path)

    def read() -> dict[Key, bytes]:
        try:
            members = Members(data, path)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is neither a folder nor a zip: {error}") from error
        return {key: members.read(name) for key, name in _drawings(members.names, path).items()}

    return hashlib.sha256(data).hexdigest(), read


def _folder(path: Path) -> tuple[str, Callable[[], dict[Key, bytes]]]:
    """Checksum of the drawings in a folder, and a function that gives them."""
    import hashlib

    # Two patterns of fixed depth: a search without one would walk a whole disk given by mistake.
    found = (
        file.relative_to(path).as_posix()
        for pattern in ("*/character*/*", "*/*/character*/*")
        for file in path.glob(pattern)
    )
    drawings: dict[Key, bytes] = {}
    total = 0
    for key, name in _drawings(found, path).items():
        drawings[key] = read_file(path / name, SHORT)
        total += len(drawings[key])
        if total > MOST:
            raise ValueError(f"the drawings in {path} have more than {MOST} bytes; put them in a zip")
    digest = hashlib.sha256()
    for key, data in drawings.items():
        digest.update("/".join(key).encode() + b"\0" + hashlib.sha256(data).digest())
    return digest.hexdigest(), lambda: drawings


def _drawings(names: Iterable[str], path: Path) -> dict[Key, str]:
    """The names that are drawings, sorted by alphabet, character and file."""
    drawings: dict[Key, str] = {}
    for name in names:
        match = _DRAWING.fullmatch(name)
        if match is None:
            continue
        key = (match[1], match[2], match[3])
        if key in drawings:
            raise ValueError(f"{path} holds one drawing twice: {drawings[key]} and {name}")
        drawings[key] = name
    if not drawings:
        raise ValueError(f"{path} is not Omniglot: it holds no {LAYOUT}")
    return dict(sorted(drawings.items()))


def _decode_all(drawings: dict[Key, bytes], path: Path) -> tuple[Array, tuple[str, ...]]:
    """Resized images ``(characters, drawings, 28, 28)`` and the characters' names."""
    by_character: dict[str, list[Array]] = {}
    for (alphabet, character, file), data in drawings.items():
        name = f"{alphabet}/{character}"
        gray = _decode(BytesIO(data), f"{name}/{file} in {path}")
        if gray.shape[0] != gray.shape[1]:
            raise ValueError(f"{name}/{file} in {path} must be square, got {gray.shape}")
        by_character.setdefault(name, []).append(_resize(255 - gray))
    count = max(map(len, by_character.values()))
    for name, images in by_character.items():
        if len(images) != count:
            raise ValueError(
                f"{path} is not complete: {name} has {len(images)} drawings, others have {count}"
            )
    return np.array(list(by_character.values())), tuple(by_character)


def _decode(file: Path | BytesIO, name: str) -> Array:
    """Grey levels of an image file, 0 (black) to 255 (white): ``(height, width)``."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        need = "reading images needs pillow, the extra npmeta[images]: pip install pillow"
        raise ImportError(need) from None
    try:
        # Other formats are other programs: pillow would hand EPS to Ghostscript, whatever its name.
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            if max(image.size) > LARGEST_SIDE:
                raise ValueError(f"{image.size} pixels, where {LARGEST_SIDE} a side are the most")
            if image.mode.startswith("I"):  # 16 bits, which conversion to 8 would clip
                return np.rint(np.asarray(image, dtype=np.float64) / 257)
            if "A" in image.getbands() or "transparency" in image.info:
                drawn = image.convert("RGBA")
                drawn = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn)
                return np.asarray(drawn.convert("L"))
            return np.asarray(image.convert("L"))
    except UnidentifiedImageError:
        raise ValueError(f"{name} cannot be read as an image: it is neither PNG nor JPEG") from None
    except Exception as error:  # damage shows in many ways
        raise ValueError(f"{name} cannot be read as an image: {error}") from error


def _resize(ink: Array) -> Array:
    """Area averages of a square image of whole numbers 0..255 as ``(28, 28)`` uint8.

    All sums are of whole numbers, and exact: every machine gets the same images.
    """
    n = len(ink)
    # overlap[i, j]: length of pixel j inside cell i of 28, in 28ths of a pixel; a row sums to n.
    cell, pixel = np.arange(SIDE)[:, None] * n, np.arange(n) * SIDE
    overlap = np.minimum(cell + n, pixel + SIDE) - np.maximum(cell, pixel)
    weights = np.maximum(overlap, 0).astype(np.float64)
    return np.rint(weights @ ink @ weights.T / n**2).astype(np.uint8)


# --- cache --------------------------------------------------------------------------------------------


def _cache_file(checksum: str) -> Path | None:
    """Where images of a source are kept; None for a user without a home."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(folder):  # its specification has relative paths ignored
        base = Path(folder)
    else:
        try:
            home = Path.home()
        except RuntimeError:
            return None
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
        else:
            base = home / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    # The recipe is part of the name: another way of resizing must not find these images.
    return base / "npmeta" / f"omniglot-area{SIDE}-{checksum}.npz"


def _read_cache(checksum: str) -> tuple[Array, tuple[str, ...]] | None:
    """Images and names; None if they are not there, not whole or not those of the source."""
    file = _cache_file(checksum)
    if file is None or not file.is_file():
        return None
    try:
        arrays = npz_arrays(read_file(file), file)
        images, names = arrays["images"], tuple(map(str, arrays["characters"]))
        known = str(arrays["digest"])
    except Exception:  # whatever is wrong with it: the source is there to read again
        return None
    return (images, names) if known == _cache_digest(checksum, images, names) else None


def _cache_digest(checksum: str, images: Array, characters: tuple[str, ...]) -> str:
    """SHA-256 of what is kept of a source: a file of another's images is not believed."""
    import hashlib

    head = repr((checksum, images.dtype.str, images.shape, characters))
    return hashlib.sha256(head.encode() + np.ascontiguousarray(images).tobytes()).hexdigest()


def _write_cache(checksum: str, images: Array, characters: tuple[str, ...]) -> None:
    """Keep images for the next time; a folder that cannot be written to only means no cache."""
    file = _cache_file(checksum)
    if file is None:
        return
    content = BytesIO()
    digest = np.array(_cache_digest(checksum, images, characters))
    np.savez(content, images=images, characters=np.array(characters), digest=digest)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content.getvalue())
