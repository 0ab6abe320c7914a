"""Few-shot classification of handwritten characters (Lake, Salakhutdinov & Tenenbaum 2015)."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from npmeta._validation import Array, lookup
from npmeta.tasks.batch import TaskBatch
from npmeta.tasks.draws import SPLITS, uniforms

__all__ = [
    "Omniglot",
    "check_counts",
    "check_fractions",
    "distinct",
    "existing",
    "read_image",
    "split_up",
]

PathLike: TypeAlias = str | os.PathLike[str]

#: Side of the resized images.
SIDE = 28

#: Of one drawing, relative to the folder or inside the zip; the top folder may be missing.
LAYOUT = "images_background/<Alphabet>/character<NN>/<id>_<drawer>.png"
_DRAWING = re.compile(r"(?:[^/]+/)?([^/]+)/(character\d+)/(\d+_\d+\.png)", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Omniglot:
    """N-way K-shot tasks: tell drawings of N characters apart after K examples of each.

    Images are 28×28, ink 1 and paper 0: each pixel is the share of ink in its square of the original
    105×105 drawing (an exact area average), in steps of 1/255. They are flattened to 784 numbers, row
    by row from the top. What has been read is kept in the user's cache folder under the SHA-256 of
    the source, so that only the first time takes seconds (and pillow).

    Characters are split first and rotated afterwards, so no character is in two splits in any
    orientation. Rotations by 90°, 180° and 270° count as classes of their own in the train split;
    tasks of the other two use drawings as they were made.

    Parameters
    ----------
    path : path-like
        The official zip, or the folder it unpacks to (or one that holds it).
    ways : int
        N, classes in a task; at least 2.
    shots, queries : int
        K and Q, support and query drawings of each class. The MAML paper has as many queries as
        shots; a few more make a less noisy meta-gradient of the same adaptation.
    rotations : bool
        Add rotated classes to the train split.
    split_by : {"character", "alphabet"}
        What is divided among the splits. By "alphabet" is harder: no character of a test alphabet has
        been seen in training.
    split_seed : int
        Decides which character or alphabet goes where.
    fractions : (float, float, float)
        Shares of train, validation and test, with sum 1. A split of share 0 is empty; the others get
        at least one character or alphabet each.

    Attributes
    ----------
    images : ndarray, (characters, drawings, 28, 28)
        uint8, 255 is ink; read-only.
    characters : tuple of str
        Their names, ``Greek/character07`` say, in order.
    checksum : str
        SHA-256 of the zip, or of the names and contents of the drawings in the folder.
    n_in, n_out : int
        784 and N.

    Raises
    ------
    ValueError
        If an argument is out of range, the path is not Omniglot, a drawing is damaged or missing, or
        a split has too few classes.
    ImportError
        If images are to be decoded and pillow is not installed.

    Examples
    --------
    >>> from npmeta.tasks import Omniglot
    >>> tasks = Omniglot("images_background.zip", ways=5, shots=1)  # doctest: +SKIP
    >>> tasks.sample(seed=0, iteration=7, n_tasks=32)  # doctest: +SKIP
    TaskBatch(32 tasks, support (5, 784) -> labels, query (25, 784) -> labels)
    """

    path: PathLike
    ways: int = 5
    shots: int = 1
    queries: int = 5
    rotations: bool = True
    split_by: str = "character"
    split_seed: int = 0
    fractions: tuple[float, float, float] = (0.75, 0.05, 0.2)

    images: Array = field(init=False, repr=False)
    characters: tuple[str, ...] = field(init=False, repr=False)
    checksum: str = field(init=False, repr=False)
    _split: Mapping[str, Array] = field(init=False, repr=False)

    n_in = SIDE * SIDE

    def __post_init__(self) -> None:
        check_counts(self, ways=2, shots=1, queries=1, split_seed=0)
        lookup(self.split_by, {"character": 0, "alphabet": 1}, "split_by")
        object.__setattr__(self, "fractions", check_fractions(self.fractions))
        images, characters, checksum = _load(existing(self.path))
        images.flags.writeable = False
        drawings = images.shape[1]
        if self.shots + self.queries > drawings:
            raise ValueError(
                f"shots + queries must not exceed the {drawings} drawings of a character, got "
                f"{self.shots} + {self.queries}"
            )
        groups = characters
        if self.split_by == "alphabet":
            groups = tuple(character.split("/")[0] for character in characters)
        names, group = np.unique(groups, return_inverse=True)
        parts = split_up(len(names), self.fractions, self.split_seed, f"{self.split_by}s")
        for name, value in {
            "images": images,
            "characters": characters,
            "checksum": checksum,
            "_split": {split: np.flatnonzero(np.isin(group, part)) for split, part in parts.items()},
        }.items():
            object.__setattr__(self, name, value)
        for split in SPLITS:
            if 0 < self._turns(split) * len(self._split[split]) < self.ways:
                raise ValueError(
                    f"the {split} split has {len(self.classes(split))} classes, too few for "
                    f"{self.ways} ways; its share in fractions is {self.fractions[SPLITS[split]]:g} of "
                    f"{len(names)} {self.split_by}s"
                )

    @property
    def n_out(self) -> int:
        return self.ways

    def _turns(self, split: str) -> int:
        """Orientations of a character: class r · n + i of the split is character i turned r times."""
        return 4 if self.rotations and split == "train" else 1

    def classes(self, split: str = "train") -> list[str]:
        """Names of a split's classes: ``Greek/character07``, or ``…/rot090`` turned to the left."""
        own = [self.characters[i] for i in lookup(split, self._split, "split")]
        return [name + _suffix(r) for r in range(self._turns(split)) for name in own]

    def on(self, path: PathLike) -> Omniglot:
        """The same settings on other data, all of whose characters are in the test split.

        Examples
        --------
        >>> test = tasks.on("images_evaluation.zip")  # doctest: +SKIP
        >>> test.sample(seed=0, iteration=0, n_tasks=600, split="test")  # doctest: +SKIP
        """
        return replace(self, path=path, fractions=(0.0, 0.0, 1.0))

    def sample(
        self,
        seed: int,
        iteration: int,
        n_tasks: int,
        *,
        start: int = 0,
        split: str = "train",
    ) -> TaskBatch:
        """Tasks ``start .. start + n_tasks - 1`` of an iteration; the same call, the same tasks.

        The classes of a task are distinct and in random order, and so are the drawings of a class.

        Parameters
        ----------
        seed : int
            0 to 2**64 - 1.
        iteration, start, n_tasks : int
        split : {"train", "validation", "test"}

        Returns
        -------
        TaskBatch
            Images ``(n_tasks, K·N, 784)`` and ``(n_tasks, Q·N, 784)`` in float32, labels in int64.
            Row i has label i mod N, so any N rows from a multiple of N on are one drawing of each
            class.

        Raises
        ------
        ValueError
            If the split is unknown or empty, or a number is out of range.
        """
        character, turns, u = self._draw(seed, iteration, n_tasks, start, split)
        m = self.shots + self.queries
        drawing = distinct(u.reshape(n_tasks, self.ways, m), self.images.shape[1])
        drawn = self.images[character[:, None, :], drawing.swapaxes(1, 2)]  # (T, m, N, 28, 28)
        for r in range(1, self._turns(split)):
            task, label = np.nonzero(turns == r)
            drawn[task, :, label] = np.rot90(drawn[task, :, label], r, axes=(-2, -1))
        x = drawn.reshape(n_tasks, m * self.ways, self.n_in) / np.float32(255)
        y = np.tile(np.arange(self.ways), (n_tasks, m))
        K = self.shots * self.ways
        return TaskBatch(x[:, :K], y[:, :K], x[:, K:], y[:, K:])

    def names(
        self, seed: int, iteration: int, n_tasks: int, *, start: int = 0, split: str = "train"
    ) -> list[list[str]]:
        """The classes behind labels 0, 1, .. of the same tasks."""
        character, turns, _ = self._draw(seed, iteration, n_tasks, start, split)
        return [
            [self.characters[i] + _suffix(r) for i, r in zip(*task, strict=True)]
            for task in zip(character, turns, strict=True)
        ]

    def _draw(
        self, seed: int, iteration: int, n_tasks: int, start: int, split: str
    ) -> tuple[Array, Array, Array]:
        """Characters and quarter turns ``(T, N)``, uniform numbers for drawings ``(T, N·(K+Q))``."""
        own, N = lookup(split, self._split, "split"), self.ways
        if not own.size:
            raise ValueError(f"the {split} split is empty: fractions are {self.fractions}")
        u = uniforms(seed, iteration, start, n_tasks, N * (1 + self.shots + self.queries), split)
        turns, i = np.divmod(distinct(u[:, :N], self._turns(split) * own.size), own.size)
        return own[i], turns, u[:, N:]


def _suffix(quarter_turns: int) -> str:
    return f"/rot{90 * quarter_turns:03d}" if quarter_turns else ""


def read_image(path: PathLike) -> Array:
    """A drawing of your own as a network trained on Omniglot expects it: ``(784,)`` float32.

    The image becomes grey (transparency is white), then ink 1 on paper 0. Paper is the grey that half
    of the pixels are lighter than, so light ink on a dark ground is understood as well; ink 1 is the
    grey farthest from it. Paper is added to make a square, which is resized as Omniglot's images are.
    Omniglot's pen is about a thirtieth of the side wide; much finer lines become faint.

    Parameters
    ----------
    path : path-like
        A PNG, or any other image pillow can read.

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
    return _resize(square).ravel() / np.float32(255)


# --- reading ------------------------------------------------------------------------------------------

#: (alphabet, character, file), whatever stands above them.
Key: TypeAlias = tuple[str, str, str]


def _load(path: Path) -> tuple[Array, tuple[str, ...], str]:
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

    data = path.read_bytes()

    def read() -> dict[Key, bytes]:
        try:
            archive = zipfile.ZipFile(BytesIO(data))
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is neither a folder nor a zip: {error}") from error
        drawings = {}
        with archive:
            for key, name in _drawings(archive.namelist(), path).items():
                try:
                    drawings[key] = archive.read(name)
                except Exception as error:  # damage shows in many ways
                    raise ValueError(f"{name} in {path} cannot be unzipped: {error}") from error
        return drawings

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
    drawings = {key: (path / name).read_bytes() for key, name in _drawings(found, path).items()}
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
        by_character.setdefault(name, []).append(255 - gray)
    count = max(map(len, by_character.values()))
    for name, images in by_character.items():
        if len(images) != count:
            raise ValueError(
                f"{path} is not complete: {name} has {len(images)} drawings, others have {count}"
            )
    resized = [[_resize(ink) for ink in images] for images in by_character.values()]
    return np.array(resized), tuple(by_character)


def _decode(file: Path | BytesIO, name: str) -> Array:
    """Grey levels of an image file, 0 (black) to 255 (white): ``(height, width)``."""
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("reading images needs pillow: pip install 'npmeta[images]'") from None
    try:
        with Image.open(file) as image:
            if image.mode.startswith("I"):  # 16 bits, which conversion to 8 would clip
                return np.rint(np.asarray(image, dtype=np.float64) / 257)
            if "A" in image.getbands() or "transparency" in image.info:
                drawn = image.convert("RGBA")
                drawn = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn)
                return np.asarray(drawn.convert("L"))
            return np.asarray(image.convert("L"))
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
    resized: Array = np.rint(weights @ ink @ weights.T / n**2).astype(np.uint8)
    return resized


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
    """Images and names; None if they are not there or not whole."""
    file = _cache_file(checksum)
    if file is None or not file.is_file():
        return None
    try:
        # np.load would leave a damaged file open if it had opened it itself. The zip that it reads has
        # a checksum of its own.
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            images, names = arrays["images"], arrays["characters"]
    except Exception:  # whatever is wrong with it: the source is there to read again
        return None
    if images.dtype != np.uint8 or images.shape[2:] != (SIDE, SIDE) or len(names) != len(images):
        return None
    return images, tuple(map(str, names))


def _write_cache(checksum: str, images: Array, characters: tuple[str, ...]) -> None:
    """Keep images for the next time; a folder that cannot be written to only means no cache."""
    import tempfile

    file = _cache_file(checksum)
    if file is None:
        return
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        # A file of another name, renamed once it is whole: no reader sees half a cache.
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as temporary:
            try:
                np.savez(temporary, images=images, characters=np.array(characters))
                temporary.close()
                os.replace(temporary.name, file)
            except BaseException:
                temporary.close()
                os.unlink(temporary.name)
                raise


# --- what samplers of a data set share ----------------------------------------------------------------


def existing(path: PathLike) -> Path:
    """The path, with ~ expanded, or a ValueError if nothing is there."""
    found = Path(path).expanduser()
    if not found.exists():
        raise ValueError(f"no such file or folder: {found}")
    return found


def check_counts(settings: object, **least: int) -> None:
    """Raise ValueError unless each named attribute is a whole number of at least so much."""
    for name, low in least.items():
        value = getattr(settings, name)
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or value < low:
            raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")


def check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    """Shares of train, validation and test, or a ValueError."""
    shares = tuple(float(share) for share in fractions)
    # The sum is compared so that a NaN fails.
    if len(shares) != 3 or min(shares) < 0 or not abs(sum(shares) - 1) < 1e-6:
        raise ValueError(
            f"fractions must be the shares of train, validation and test, not negative and with sum 1, "
            f"got {shares}"
        )
    return shares


def split_up(n: int, fractions: Sequence[float], seed: int, what: str) -> dict[str, Array]:
    """0..n-1 divided at random among the splits, each part in increasing order.

    Every split of a positive share gets at least one; the rest go one by one to the split that lacks
    most of its share.
    """
    share = np.array(fractions)
    sizes = (share > 0).astype(int)
    if n < sizes.sum():
        raise ValueError(f"too few {what} for {sizes.sum()} splits: {n}")
    for _ in range(n - sizes.sum()):
        sizes[np.argmax(share * n - sizes)] += 1
    # An iteration far beyond those of any run, whose tasks would be drawn with the same numbers.
    order = np.argsort(uniforms(seed, 2**64, 0, 1, n)[0], kind="stable")
    parts = np.split(order, np.cumsum(sizes)[:2])
    return {split: np.sort(part) for split, part in zip(SPLITS, parts, strict=True)}


def distinct(u: Array, n: ArrayLike) -> Array:
    """Distinct whole numbers below n, one for each uniform number of the last axis.

    Every ordered choice is equally likely. Number i is the r-th, from 0, of those not drawn before,
    r = ⌊u_i (n − i)⌋; with s_0 < s_1 < .. drawn before, that is r + #{j : s_j − j ≤ r}.

    Parameters
    ----------
    u : ndarray, (..., k)
        In [0, 1).
    n : int or array_like of int, (...)
        At least k.

    Returns
    -------
    ndarray, (..., k)
        int64.
    """
    drawn = np.empty(u.shape, dtype=np.int64)
    for i in range(u.shape[-1]):
        r = (u[..., i] * (np.asarray(n) - i)).astype(np.int64)
        before = np.sort(drawn[..., :i], axis=-1) - np.arange(i)
        drawn[..., i] = r + (before <= r[..., None]).sum(-1)
    return drawn
