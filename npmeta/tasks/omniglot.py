"""Few-shot classification of handwritten characters (Lake, Salakhutdinov & Tenenbaum 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from npmeta._support.validation import Array, check_flag, lookup
from npmeta.tasks.batch import TaskBatch
from npmeta.tasks.checks import PathLike, check_counts, check_fractions, existing
from npmeta.tasks.drawings import SIDE, load
from npmeta.tasks.draws import SPLITS, distinct, split_up, uniforms
from npmeta.tasks.framing import aligned, distorted

#: What may be divided among the splits.
SPLIT_BY = ("character", "alphabet")


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
    align : bool
        Put every drawing in a common frame, by place and size of its ink
        (:mod:`npmeta.tasks.framing`). Published results are of drawings as they were made.
    distort : float
        Standard deviation of the random linear maps that drawings of the train split go through, each
        drawing anew by its own: 0 for none; 0.1 turns, shears and scales by some 6 degrees or 10 %,
        and shifts by a pixel.

    Attributes
    ----------
    images : ndarray, (characters, drawings, 28, 28)
        uint8, 255 is ink; aligned, if that was asked for; read-only.
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
    align: bool = False
    distort: float = 0.0

    images: Array = field(init=False, repr=False)
    characters: tuple[str, ...] = field(init=False, repr=False)
    checksum: str = field(init=False, repr=False)
    _split: Mapping[str, Array] = field(init=False, repr=False)

    n_in = SIDE * SIDE

    def __post_init__(self) -> None:
        check_counts(self, ways=2, shots=1, queries=1, split_seed=0)
        check_flag(self.rotations, "rotations")
        check_flag(self.align, "align")
        lookup(self.split_by, dict.fromkeys(SPLIT_BY), "split_by")
        object.__setattr__(self, "fractions", check_fractions(self.fractions))
        if not (np.isfinite(self.distort) and self.distort >= 0):
            raise ValueError(f"distort must be at least 0 and finite, got {self.distort}")
        images, characters, checksum = load(existing(self.path))
        if self.align:
            images = aligned(images)
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

    def _distorts(self, split: str) -> bool:
        return self.distort > 0 and split == "train"

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
        self, seed: int, iteration: int, n_tasks: int, *, start: int = 0, split: str = "train"
    ) -> TaskBatch:
        """Tasks ``start .. start + n_tasks - 1`` of an iteration; the same call, the same tasks.

        The classes of a task are distinct and in random order, and so are the drawings of a class.

        Parameters are those of :meth:`npmeta.tasks.Sinusoid.sample`.

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
        character, turns, u, by = self._draw(seed, iteration, n_tasks, start, split)
        m = self.shots + self.queries
        drawing = distinct(u.reshape(n_tasks, self.ways, m), self.images.shape[1])
        drawn = self.images[character[:, None, :], drawing.swapaxes(1, 2)]  # (T, m, N, 28, 28)
        for r in range(1, self._turns(split)):
            task, label = np.nonzero(turns == r)
            drawn[task, :, label] = np.rot90(drawn[task, :, label], r, axes=(-2, -1))
        x = drawn / np.float32(255)
        if self._distorts(split):
            x = distorted(x.reshape(-1, SIDE, SIDE), by.reshape(-1, 6), self.distort)
        x = x.reshape(n_tasks, m * self.ways, self.n_in)
        y = np.tile(np.arange(self.ways), (n_tasks, m))
        K = self.shots * self.ways
        return TaskBatch(x[:, :K], y[:, :K], x[:, K:], y[:, K:])

    def names(
        self, seed: int, iteration: int, n_tasks: int, *, start: int = 0, split: str = "train"
    ) -> list[list[str]]:
        """The classes behind labels 0, 1, .. of the same tasks."""
        character, turns, _, _ = self._draw(seed, iteration, n_tasks, start, split)
        return [
            [self.characters[i] + _suffix(r) for i, r in zip(*task, strict=True)]
            for task in zip(character, turns, strict=True)
        ]

    def _draw(
        self, seed: int, iteration: int, n_tasks: int, start: int, split: str
    ) -> tuple[Array, Array, Array, Array]:
        """Characters and quarter turns ``(T, N)``, and uniform numbers: for drawings ``(T, N·(K+Q))``,
        for distortions ``(T, 6·N·(K+Q))``."""
        own, N = lookup(split, self._split, "split"), self.ways
        m = N * (self.shots + self.queries)
        if not own.size:
            raise ValueError(f"the {split} split is empty: fractions are {self.fractions}")
        per_task = N + m + 6 * m * self._distorts(split)
        u = uniforms(seed, iteration, start, n_tasks, per_task, split)
        turns, i = np.divmod(distinct(u[:, :N], self._turns(split) * own.size), own.size)
        return own[i], turns, u[:, N : N + m], u[:, N + m :]


def _suffix(quarter_turns: int) -> str:
    return f"/rot{90 * quarter_turns:03d}" if quarter_turns else ""
