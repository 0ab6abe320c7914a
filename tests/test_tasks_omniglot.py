"""Omniglot: reading, cache, splits, rotations, sampling, and drawings of one's own.

Most tests read a small archive in which every drawing is another random 28×28 pattern, so that each
sampled image says which drawing it is and how it is turned.
"""

import itertools
import os
import pickle
import re
import sys
import time
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import npmeta as nm
from npmeta.tasks import Omniglot, drawings, read_image
from npmeta.tasks.checks import check_fractions
from npmeta.tasks.draws import SPLITS
from npmeta.tasks.framing import aligned
from npmeta.training.config import Config

Image = pytest.importorskip("PIL.Image", reason="reading drawings needs pillow")

ALPHABETS = {"Futurama": 7, "Greek": 8, "N_Ko": 5}
CHARACTERS = [f"{a}/character{i + 1:02d}" for a, n in ALPHABETS.items() for i in range(n)]
DRAWINGS = 6
#: Gives every split of the 20 characters at least 4: 12, 4, 4.
THREE_WAYS = {"ways": 3, "queries": 2, "fractions": (0.6, 0.2, 0.2)}
REAL = Path(__file__).parents[2] / "shared" / "data" / "omniglot" / "images_background.zip"

uint64 = st.integers(0, 2**64 - 1)


def png(ink: np.ndarray) -> bytes:
    """A one-bit PNG of a boolean array: ink 0, paper 1."""
    buffer = BytesIO()
    Image.fromarray(np.where(ink, 0, 255).astype(np.uint8)).convert("1").save(buffer, "PNG")
    return buffer.getvalue()


def pattern(character: int, drawing: int) -> np.ndarray:
    return np.random.default_rng([character, drawing]).random((28, 28)) < 0.3


def files(top: str = "images_background/") -> dict[str, bytes]:
    """Contents of the archive; drawings are 56×56, so that resizing gives the patterns exactly."""
    return {
        f"{top}{name}/{c:04d}_{d + 1:02d}.png": png(pattern(c, d).repeat(2, 0).repeat(2, 1))
        for c, name in enumerate(CHARACTERS)
        for d in range(DRAWINGS)
    }


def write_zip(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def write_folder(path: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    return files()


@pytest.fixture(scope="module")
def archive(tmp_path_factory, contents) -> Path:
    return write_zip(tmp_path_factory.mktemp("data") / "images_background.zip", contents)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """No test sees the cache of the user, nor that of another test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "npmeta"


@pytest.fixture(scope="module")
def tasks(archive, tmp_path_factory) -> Omniglot:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return Omniglot(archive, **THREE_WAYS)


#: Every pattern in every orientation: (character, drawing, quarter turns).
WHICH = {
    np.rot90(pattern(c, d), r).astype(np.float32).tobytes(): (c, d, r)
    for c in range(len(CHARACTERS))
    for d in range(DRAWINGS)
    for r in range(4)
}


def which(x: np.ndarray) -> tuple[int, int, int]:
    return WHICH[x.tobytes()]


def name_of(character: int, turns: int) -> str:
    return CHARACTERS[character] + ("" if turns == 0 else f"/rot{90 * turns:03d}")


# --- what samplers of a data set share ----------------------------------------------------------------


def test_a_folder_of_too_many_bytes_is_refused(tmp_path, contents, monkeypatch):
    size = sum(map(len, contents.values()))
    folder = write_folder(tmp_path / "folder", contents)
    monkeypatch.setattr(drawings, "MOST", size)
    Omniglot(folder, **THREE_WAYS)
    monkeypatch.setattr(drawings, "MOST", size - 1)
    with pytest.raises(ValueError, match=f"have more than {size - 1} bytes; put them in a zip"):
        Omniglot(folder, **THREE_WAYS)


@pytest.mark.parametrize(
    "fractions", [(1, 0), (0.5, 0.5, 0.5), (1.5, -0.5, 0), (0, float("nan"), 1), (float("inf"), 0, 0)]
)
def test_fractions_are_three_shares_of_1(archive, fractions):
    with pytest.raises(ValueError, match="fractions must be the shares of train, validation and test"):
        Omniglot(archive, fractions=fractions)
    assert check_fractions([0.8, 0.1, 0.1]) == (0.8, 0.1, 0.1)


# --- reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", ["images_background/", "images_evaluation/", ""])
def test_a_zip_and_a_folder_give_the_same_images(tmp_path, top):
    drawn = files(top)
    sources = [
        write_zip(tmp_path / "some.zip", dict(reversed(drawn.items()))),
        write_folder(tmp_path / "folder", drawn),
        tmp_path / "folder" / top,
    ]
    expected = np.array(
        [[255 * pattern(c, d) for d in range(DRAWINGS)] for c in range(len(CHARACTERS))], np.uint8
    )
    for source in sources:
        tasks = Omniglot(source, **THREE_WAYS)
        assert tasks.characters == tuple(CHARACTERS)
        assert tasks.images.dtype == np.uint8
        np.testing.assert_array_equal(tasks.images, expected)
    assert Omniglot(sources[0], **THREE_WAYS).classes("test") == Omniglot(
        sources[1], **THREE_WAYS
    ).classes("test")


def test_both_sets_side_by_side_are_read_as_one(tmp_path):
    write_folder(tmp_path, files("images_background/"))
    more = {
        name.replace("Greek", "Angelic").replace("N_Ko", "Keble").replace("Futurama", "Oriya"): data
        for name, data in files("images_evaluation/").items()
    }
    write_folder(tmp_path, more)
    assert len(Omniglot(tmp_path, **THREE_WAYS).characters) == 2 * len(CHARACTERS)


def test_other_files_are_ignored(tmp_path, contents):
    others = {
        "__MACOSX/images_background/Greek/character01/._0007_01.png": b"x",
        "images_background/Greek/character01/Thumbs.db": b"x",
        "images_background/Greek/character01/notes.png": b"x",
        "strokes_background/Greek/character01/0007_01.txt": b"x",
        "README.md": b"x",
    }
    tasks = Omniglot(write_zip(tmp_path / "more.zip", {**others, **contents}), **THREE_WAYS)
    assert tasks.images.shape == (len(CHARACTERS), DRAWINGS, 28, 28)
    assert Omniglot(write_folder(tmp_path / "f", {**others, **contents}), **THREE_WAYS).characters == (
        tasks.characters
    )


def test_checksums(tmp_path, archive, contents):
    import hashlib

    tasks = Omniglot(archive, **THREE_WAYS)
    assert tasks.checksum == hashlib.sha256(archive.read_bytes()).hexdigest()
    one = Omniglot(write_folder(tmp_path / "one", contents), **THREE_WAYS).checksum
    assert re.fullmatch("[0-9a-f]{64}", one)
    # Where the folder is, or which one is given, does not matter; what is in it does.
    write_folder(tmp_path / "two", contents)
    assert Omniglot(tmp_path / "two" / "images_background", **THREE_WAYS).checksum == one
    first, second, *_ = contents
    swapped = {**contents, first: contents[second], second: contents[first]}
    assert Omniglot(write_folder(tmp_path / "three", swapped), **THREE_WAYS).checksum != one
    named = {name.replace("Greek", "Gregk"): data for name, data in contents.items()}
    assert Omniglot(write_folder(tmp_path / "four", named), **THREE_WAYS).checksum != one


def by_hand(ink: np.ndarray) -> np.ndarray:
    """Every pixel as 28×28 small ones, which 28 cells of n×n small ones divide."""
    n = len(ink)
    return ink.repeat(28, 0).repeat(28, 1).reshape(28, n, 28, n).mean((1, 3))


@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_resizing_is_an_area_average(n, seed):
    ink = np.random.default_rng(seed).integers(0, 256, (n, n)).astype(float)
    assert np.abs(drawings._resize(ink) - by_hand(ink)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("n", [105, 300])
def test_resizing_at_official_and_large_sizes(n):
    ink = np.random.default_rng(0).integers(0, 2, (n, n)) * 255.0
    assert np.abs(drawings._resize(ink) - by_hand(ink)).max() <= 0.5 + 1e-9
    assert (drawings._resize(np.full((n, n), 255.0)) == 255).all()


def test_resizing_commutes_with_turning():
    ink = np.random.default_rng(0).integers(0, 2, (105, 105)) * 255.0
    for r in range(1, 4):
        np.testing.assert_array_equal(
            drawings._resize(np.rot90(ink, r)), np.rot90(drawings._resize(ink), r)
        )


# --- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ways": 1}, "ways must be a whole number of at least 2, got 1"),
        ({"shots": 0}, "shots must be a whole number of at least 1, got 0"),
        ({"queries": 0}, "queries must be a whole number of at least 1, got 0"),
        ({"ways": 5.0}, "ways must be a whole number of at least 2, got 5.0"),
        ({"shots": True}, "shots must be a whole number of at least 1, got True"),
        ({"split_seed": -1}, "split_seed must be a whole number of at least 0, got -1"),
        ({"split_by": "charakter"}, "unknown split_by 'charakter' (did you mean 'character'?)"),
        (
            {"shots": 3, "queries": 4},
            "shots + queries must not exceed the 6 drawings of a character, got 3 + 4",
        ),
        (
            {**THREE_WAYS, "ways": 5},
            "the validation split has 4 classes, too few for 5 ways; its share in fractions is 0.2 of "
            "20 characters",
        ),
        (
            {"ways": 50, "fractions": (0.6, 0, 0.4)},
            "the train split has 48 classes, too few for 50 ways; its share in fractions is 0.6 of 20 "
            "characters",
        ),
        (
            {"ways": 13, "fractions": (0.6, 0, 0.4), "rotations": False},
            "the train split has 12 classes, too few for 13 ways",
        ),
        ({"path": "nowhere.zip"}, "no such file or folder: nowhere.zip"),
        ({"distort": -0.1}, "distort must be at least 0 and finite, got -0.1"),
        ({"distort": np.nan}, "distort must be at least 0 and finite, got nan"),
    ],
)
def test_arguments_are_checked(archive, arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Omniglot(**{"path": archive, **arguments})


def test_a_seed_too_large_to_draw_from_is_refused(archive):
    with pytest.raises(ValueError, match="seed must be a whole number of at most 18446744073709551615"):
        Omniglot(archive, split_seed=2**64)


def test_a_split_by_alphabet_needs_three_alphabets(archive, tmp_path, contents):
    two = {name: data for name, data in contents.items() if "Greek" not in name}
    with pytest.raises(ValueError, match=r"^too few alphabets for 3 splits: 2$"):
        Omniglot(write_zip(tmp_path / "two.zip", two), ways=2, split_by="alphabet")


def expect(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Omniglot(path, ways=2)


def test_what_is_not_omniglot_says_what_was_expected(tmp_path, contents):
    layout = "images_background/<Alphabet>/character<NN>/<id>_<drawer>.png"
    other = write_zip(tmp_path / "other.zip", {"a/b.png": b"x"})
    expect(other, f"{other} is not Omniglot: it holds no {layout}")
    empty = tmp_path / "folder"
    empty.mkdir()
    expect(empty, f"{empty} is not Omniglot: it holds no {layout}")
    text = tmp_path / "text.zip"
    text.write_text("hello")
    expect(text, f"{text} is neither a folder nor a zip: ")
    whole = (tmp_path / "other.zip").read_bytes()
    cut = tmp_path / "cut.zip"
    cut.write_bytes(whole[: len(whole) // 2])
    expect(cut, f"{cut} is neither a folder nor a zip: ")


def test_a_damaged_drawing_is_named(tmp_path, contents):
    name = "images_background/Greek/character02/0008_03.png"
    for i, bad in enumerate((b"", b"no image", contents[name][:60])):
        path = write_zip(tmp_path / f"{i}.zip", {**contents, name: bad})
        expect(path, f"Greek/character02/0008_03.png in {path} cannot be read as an image: ")
    path = write_zip(tmp_path / "crc.zip", contents)
    data = bytearray(path.read_bytes())
    data[data.index(contents[name]) + 40] ^= 255
    path.write_bytes(data)
    expect(path, f"{name} in {path} cannot be unzipped: ")
    wide = write_zip(tmp_path / "wide.zip", {**contents, name: png(np.ones((5, 7), bool))})
    expect(wide, f"Greek/character02/0008_03.png in {wide} must be square, got (5, 7)")


def test_a_missing_drawing_is_named(tmp_path, contents):
    name = "images_background/Greek/character02/0008_03.png"
    path = write_zip(tmp_path / "a.zip", {k: v for k, v in contents.items() if k != name})
    expect(path, f"{path} is not complete: Greek/character02 has 5 drawings, others have 6")


def test_a_drawing_that_comes_twice_is_named(tmp_path, contents):
    name = "Greek/character02/0008_03.png"
    again = {f"images_background_small1/{name}": contents[f"images_background/{name}"]}
    path = write_folder(tmp_path / "a", {**contents, **again})
    expect(path, f"{path} holds one drawing twice: images_background")


def test_errors_leave_no_cache(tmp_path, cache, contents):
    name = "images_background/Greek/character02/0008_03.png"
    expect(write_zip(tmp_path / "a.zip", {**contents, name: b"no image"}), "Greek")
    assert not cache.exists()


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_empty_split_is_said_to_be_empty(archive, split):
    shares = tuple(0.0 if name == split else 0.5 for name in SPLITS)
    tasks = Omniglot(archive, ways=2, queries=1, fractions=shares)
    assert tasks.classes(split) == []
    with pytest.raises(ValueError, match=f"the {split} split is empty: fractions are"):
        tasks.sample(0, 0, 1, split=split)


def test_draws_are_checked(tasks):
    with pytest.raises(ValueError, match=r"unknown split 'tests' \(did you mean 'test'"):
        tasks.sample(0, 0, 1, split="tests")
    with pytest.raises(ValueError, match=r"unknown split 'tests' \(did you mean 'test'"):
        tasks.classes("tests")
    with pytest.raises(ValueError, match="seed must be a whole number"):
        tasks.sample(-1, 0, 1)
    with pytest.raises(ValueError, match="n_tasks must be a whole number of at least 1"):
        tasks.sample(0, 0, 0)


# --- cache --------------------------------------------------------------------------------------------


def no_decoding(*args):
    raise AssertionError("an image was decoded")


def test_the_cache_is_named_by_the_checksum_and_used(archive, cache, monkeypatch):
    first = Omniglot(archive, **THREE_WAYS)
    (file,) = cache.iterdir()
    assert first.checksum in file.name
    assert file.suffix == ".npz"
    monkeypatch.setattr(drawings, "_decode", no_decoding)
    second = Omniglot(archive, **THREE_WAYS)
    np.testing.assert_array_equal(second.images, first.images)
    assert second.characters == first.characters
    assert [*map(type, second.characters)] == [str] * len(CHARACTERS)
    assert second.checksum == first.checksum


def test_another_source_has_another_cache(tmp_path, archive, cache, contents):
    Omniglot(archive, **THREE_WAYS)
    fewer = {name: data for name, data in contents.items() if "N_Ko" not in name}
    tasks = Omniglot(write_zip(tmp_path / "images_background.zip", fewer), **THREE_WAYS)
    assert len(tasks.characters) == 15
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_cache_is_rebuilt(archive, cache):
    expected = Omniglot(archive, **THREE_WAYS)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    damages = [b"", b"PK", whole[:100], whole[: len(whole) // 2], whole[:-1], whole[30:]]
    for position in [*rng.integers(len(whole), size=60), *range(0, 400, 9), *range(-400, 0, 9)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.integers(8)
        damages.append(bytes(damaged))
    for damaged in damages:
        file.write_bytes(damaged)
        tasks = Omniglot(archive, **THREE_WAYS)
        np.testing.assert_array_equal(tasks.images, expected.images)
        assert tasks.characters == expected.characters
    file.write_bytes(whole[:100])
    Omniglot(archive, **THREE_WAYS)
    with np.load(file, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["images"], expected.images)


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": np.zeros((20, 6, 14, 14), np.uint8), "characters": np.array(CHARACTERS)},
        {"images": np.zeros((20, 6, 28, 28)), "characters": np.array(CHARACTERS)},
        {"images": np.zeros((20, 6, 28, 28), np.uint8), "characters": np.array(CHARACTERS[1:])},
        {"images": np.zeros((20, 6, 28, 28), np.uint8)},
        {"images": np.array([{}]), "characters": np.array(CHARACTERS)},
    ],
)
def test_a_cache_that_holds_something_else_is_rebuilt(archive, cache, arrays):
    expected = Omniglot(archive, **THREE_WAYS)
    (file,) = cache.iterdir()
    np.savez(file, **arrays)
    np.testing.assert_array_equal(Omniglot(archive, **THREE_WAYS).images, expected.images)


def test_a_folder_that_cannot_be_written_means_no_cache(archive, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert Omniglot(archive, **THREE_WAYS).characters == tuple(CHARACTERS)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize(("module", "function"), [(os, "replace"), (os, "fsync")])
def test_a_cache_that_cannot_be_finished_leaves_nothing(archive, cache, monkeypatch, module, function):
    def full(*args, **arrays):
        raise OSError("no space left on device")

    monkeypatch.setattr(module, function, full)
    assert Omniglot(archive, **THREE_WAYS).characters == tuple(CHARACTERS)
    assert list(cache.iterdir()) == []


def test_an_interrupted_write_leaves_nothing_and_is_not_swallowed(archive, cache, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Omniglot(archive, **THREE_WAYS)
    assert list(cache.iterdir()) == []


def test_the_cache_appears_whole(archive, cache, monkeypatch):
    moved = []
    replace = os.replace

    def watched(source, target):
        assert Path(source).parent == Path(target).parent == cache
        assert not Path(target).exists()
        with np.load(source, allow_pickle=False) as arrays:  # whole before it has its name
            assert arrays["images"].shape == (len(CHARACTERS), DRAWINGS, 28, 28)
        moved.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    Omniglot(archive, **THREE_WAYS)
    assert list(cache.iterdir()) == moved


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert drawings._cache_file("12ab").parent == tmp_path / "npmeta"
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    expected = {
        "linux": tmp_path / "home/.cache/npmeta",
        "darwin": tmp_path / "home/Library/Caches/npmeta",
        "win32": tmp_path / "local/npmeta",
    }
    for relative in (None, "", "not/absolute"):
        if relative is None:
            monkeypatch.delenv("XDG_CACHE_HOME")
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", relative)
        for platform, folder in expected.items():
            monkeypatch.setattr(sys, "platform", platform)
            assert drawings._cache_file("12ab").parent == folder


def test_a_user_without_a_home_has_no_cache(archive, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert Omniglot(archive, **THREE_WAYS).characters == tuple(CHARACTERS)


def test_pillow_is_needed_only_without_a_cache(archive, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    needed = re.escape("the extra npmeta[images]: pip install pillow") + "$"
    with pytest.raises(ImportError, match=needed):
        Omniglot(archive, **THREE_WAYS)
    with pytest.raises(ImportError, match=needed):
        read_image(archive)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = Omniglot(archive, **THREE_WAYS)
    monkeypatch.setitem(sys.modules, "PIL", None)
    np.testing.assert_array_equal(Omniglot(archive, **THREE_WAYS).images, expected.images)


# --- splits -------------------------------------------------------------------------------------------


def base(name: str) -> str:
    return name.split("/rot")[0]


@given(uint64)
def test_no_character_is_in_two_splits(tasks, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "npmeta.tasks.omniglot.load", lambda path: (tasks.images.copy(), tasks.characters, "")
        )
        tasks = Omniglot(tasks.path, **THREE_WAYS, split_seed=seed)
    parts = [{base(name) for name in tasks.classes(split)} for split in SPLITS]
    assert [len(part) for part in parts] == [12, 4, 4]
    assert set.union(*parts) == set(CHARACTERS)


@given(uint64)
def test_no_alphabet_is_in_two_splits(tasks, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "npmeta.tasks.omniglot.load", lambda path: (tasks.images.copy(), tasks.characters, "")
        )
        tasks = Omniglot(
            tasks.path,
            ways=3,
            queries=2,
            split_by="alphabet",
            split_seed=seed,
            fractions=(0.4, 0.3, 0.3),
        )
    parts = [{base(name) for name in tasks.classes(split)} for split in SPLITS]
    assert [len({name.split("/")[0] for name in part}) for part in parts] == [1, 1, 1]
    assert set.union(*parts) == set(CHARACTERS)
    assert sum(map(len, parts)) == len(CHARACTERS)


def test_splits_depend_on_the_seed(archive):
    parts = {
        tuple(Omniglot(archive, **THREE_WAYS, split_seed=seed).classes("test")) for seed in range(5)
    }
    assert len(parts) == 5


def test_only_training_classes_are_rotated(archive, tasks):
    train = tasks.classes("train")
    assert train == [
        base(name) + suffix
        for suffix in ("", "/rot090", "/rot180", "/rot270")
        for name in train[: len(train) // 4]
    ]
    for split in ("validation", "test"):
        assert all("/rot" not in name for name in tasks.classes(split))
    plain = Omniglot(archive, **THREE_WAYS, rotations=False)
    assert plain.classes("train") == train[:12]
    assert plain.classes("test") == tasks.classes("test")
    # They count when a task asks for more classes than there are characters.
    many = Omniglot(archive, ways=50, fractions=(1, 0, 0))
    assert len(set(many.names(0, 0, 1)[0])) == 50


def test_on_makes_everything_test(tmp_path, archive, contents):
    tasks = Omniglot(archive, **THREE_WAYS, split_seed=3, rotations=False)
    path = write_zip(tmp_path / "images_evaluation.zip", files("images_evaluation/"))
    other = tasks.on(path)
    assert other.classes("test") == CHARACTERS
    assert other.classes("train") == other.classes("validation") == []
    assert (other.ways, other.shots, other.queries, other.split_seed) == (3, 1, 2, 3)
    assert other.rotations is False
    batch = other.sample(0, 0, 50, split="test")
    assert {which(x)[0] for x in batch.query_x.reshape(-1, 784)} == set(range(len(CHARACTERS)))
    assert {which(x)[2] for x in batch.query_x.reshape(-1, 784)} == {0}


# --- sampling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    "sizes", [(2, 1, 1), (3, 1, 5), (4, 3, 3), (2, 5, 1)], ids=lambda s: f"{s[0]}w{s[1]}s{s[2]}q"
)
def test_tasks_are_what_they_say(archive, sizes, split):
    ways, shots, queries = sizes
    tasks = Omniglot(archive, ways, shots, queries, fractions=(0.6, 0.2, 0.2))
    T = 60
    batch = tasks.sample(5, 9, T, split=split)
    names = tasks.names(5, 9, T, split=split)
    assert batch.support_x.shape == (T, shots * ways, 784)
    assert batch.query_x.shape == (T, queries * ways, 784)
    assert batch.support_x.dtype == batch.query_x.dtype == np.float32
    assert batch.support_y.dtype == batch.query_y.dtype == np.int64
    assert (tasks.n_in, tasks.n_out) == (784, ways)
    known = set(tasks.classes(split))
    for t in range(T):
        x = np.concatenate([batch.support_x[t], batch.query_x[t]])
        y = np.concatenate([batch.support_y[t], batch.query_y[t]])
        assert y.tolist() == [i % ways for i in range(len(y))]
        drawn = [which(image) for image in x]
        assert len(set(drawn)) == len(drawn)  # support and query have no drawing in common
        assert len(set(names[t])) == ways
        assert set(names[t]) <= known
        for label in range(ways):
            own = [which_one for which_one, of in zip(drawn, y, strict=True) if of == label]
            assert {name_of(c, r) for c, _, r in own} == {names[t][label]}
            assert len({d for _, d, _ in own}) == shots + queries


def test_classes_and_drawings_are_equally_likely_under_every_label(tasks):
    """Counts of 4000 tasks against their binomial distribution, five standard deviations wide."""
    T = 4000
    batch = tasks.sample(0, 0, T)
    classes = {name: i for i, name in enumerate(tasks.classes())}
    for label in range(tasks.ways):
        drawn = [which(x) for x in batch.support_x[:, label]]
        by_class = np.bincount([classes[name_of(c, r)] for c, _, r in drawn], minlength=len(classes))
        by_drawing = np.bincount([d for _, d, _ in drawn], minlength=DRAWINGS)
        for counts in (by_class, by_drawing):
            p = 1 / len(counts)
            assert np.abs(counts - T * p).max() < 5 * np.sqrt(T * p * (1 - p))
    # Labels are shuffled: the class with the lower number has the lower label in half of the tasks.
    order = [[classes[name] for name in names] for names in tasks.names(0, 0, T)]
    share = np.mean([first < second for first, second, _ in order])
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(T)


@given(
    uint64,
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from(list(SPLITS)),
)
def test_a_task_is_the_same_wherever_it_is_drawn(tasks, seed, iteration, start, before, n, split):
    whole = tasks.sample(seed, iteration, before + n, start=start, split=split)
    part = tasks.sample(seed, iteration, n, start=start + before, split=split)
    for name in ("support_x", "support_y", "query_x", "query_y"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[before:])
    names = tasks.names(seed, iteration, before + n, start=start, split=split)
    assert names[before:] == tasks.names(seed, iteration, n, start=start + before, split=split)


def test_tasks_depend_on_seed_iteration_index_and_split(tasks):
    drawn = [
        tasks.sample(seed, iteration, 2, start=start).support_x.tobytes()
        for seed, iteration, start in itertools.product((0, 1, 2**64 - 1), (0, 1, 10**6), (0, 2, 4))
    ]
    assert len(set(drawn)) == len(drawn)
    own = {split: tasks.names(0, 0, 30, split=split) for split in SPLITS}
    index = {
        split: [[tasks.classes(split).index(n) for n in task] for task in own[split]]
        for split in ("validation", "test")
    }
    assert index["validation"] != index["test"]  # as many classes, another stream


def test_sampling_leaves_the_data_and_the_global_generator_alone(tasks):
    before = tasks.images.copy()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    batch = tasks.sample(0, 0, 20)
    batch.support_x[:] = -1
    np.testing.assert_array_equal(tasks.images, before)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    with pytest.raises(ValueError, match="read-only"):
        tasks.images[:] = 0


def test_a_pickled_distribution_draws_the_same_tasks(tasks):
    again = pickle.loads(pickle.dumps(tasks))
    np.testing.assert_array_equal(again.sample(1, 2, 3).query_x, tasks.sample(1, 2, 3).query_x)


def test_repr_shows_the_settings_only(tasks):
    assert repr(tasks).startswith("Omniglot(path=")
    assert "fractions=(0.6, 0.2, 0.2), align=False, distort=0.0)" in repr(tasks)


def test_training_drawings_alone_are_distorted(archive, tasks):
    moved = Omniglot(archive, **THREE_WAYS, distort=0.1)
    for split in ("validation", "test"):
        np.testing.assert_array_equal(
            moved.sample(0, 0, 5, split=split).query_x, tasks.sample(0, 0, 5, split=split).query_x
        )
    whole = moved.sample(0, 3, 6)
    assert whole.query_x.dtype == np.float32
    assert all(x.tobytes() not in WHICH for x in whole.query_x.reshape(-1, 784))
    assert whole.query_x.min() >= 0
    assert whole.query_x.max() <= 1
    # Its own numbers for every drawing of every task, wherever the task is drawn.
    np.testing.assert_array_equal(moved.sample(0, 3, 4, start=2).query_x, whole.query_x[2:])
    np.testing.assert_array_equal(whole.support_y, tasks.sample(0, 3, 6).support_y)


def test_aligned_drawings(archive, tasks, tmp_path, contents):
    same = Omniglot(archive, **THREE_WAYS, align=True)
    np.testing.assert_array_equal(same.images, aligned(tasks.images))
    assert same.checksum == tasks.checksum  # of the data as they are
    path = tmp_path / "one.png"
    path.write_bytes(contents["images_background/Greek/character02/0008_03.png"])
    own = read_image(path, align=True)
    np.testing.assert_array_equal(own, same.images[8, 2].ravel() / np.float32(255))
    assert (own != read_image(path)).any()


# --- drawings of one's own ----------------------------------------------------------------------------


def test_a_drawing_of_the_archive_reads_as_it_is_sampled(tmp_path, tasks, contents):
    path = tmp_path / "one.png"
    path.write_bytes(contents["images_background/Greek/character02/0008_03.png"])
    x = read_image(path)
    assert x.shape == (784,)
    assert x.dtype == np.float32
    assert which(x) == (8, 2, 0)


# --- the real archive ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("real"))


@pytest.fixture
def real(monkeypatch, real_cache) -> Path:
    if not REAL.exists():
        pytest.skip("needs Omniglot at ../shared/data/omniglot/images_background.zip")
    monkeypatch.setenv("XDG_CACHE_HOME", real_cache)
    return REAL


def test_the_official_archive(real):
    tasks = Omniglot(real)
    assert tasks.checksum == "73392f163d63797878faeec7decf1bc6ced46036c50e8ac42e3f13f9ccfb830d"
    assert tasks.images.shape == (964, 20, 28, 28)
    assert len({name.split("/")[0] for name in tasks.characters}) == 30
    assert tasks.characters[0] == "Alphabet_of_the_Magi/character01"
    assert {split: len(tasks.classes(split)) for split in SPLITS} == {
        "train": 4 * 723,
        "validation": 48,
        "test": 193,
    }
    # Mostly paper, and some ink in every drawing.
    assert tasks.images.mean((2, 3)).max() < 0.3 * 255
    assert tasks.images.max((2, 3)).min() > 0.5 * 255
    started = time.perf_counter()
    again = Omniglot(real)
    assert time.perf_counter() - started < 1
    np.testing.assert_array_equal(again.images, tasks.images)


def test_an_official_drawing_is_upright(real):
    """The first drawing of Korean ㄱ, by area averages of the original."""
    tasks = Omniglot(real)
    with zipfile.ZipFile(real) as archive:
        name = next(n for n in sorted(archive.namelist()) if "Korean/character01/" in n)
        with Image.open(BytesIO(archive.read(name))) as image:
            ink = ~np.asarray(image)
    assert ink.shape == (105, 105)
    image = tasks.images[tasks.characters.index("Korean/character01"), 0]
    assert np.abs(image - 255 * by_hand(ink.astype(float))).max() <= 0.5 + 1e-9


def test_neighbours_tell_official_characters_apart(real):
    """Images and labels belong together: the nearest support image is right far above 1 in 5."""
    tasks = Omniglot(real)
    for split in SPLITS:
        batch = tasks.sample(0, 0, 400, split=split)
        s = batch.support_x / np.linalg.norm(batch.support_x, axis=-1, keepdims=True)
        guess = (batch.query_x @ s.swapaxes(1, 2)).argmax(-1)
        assert (guess == batch.query_y).mean() > 0.4


def test_matching_of_pixels_gets_about_what_others_got(real):
    """Vinyals et al. 2016, table 1, of other characters, scaled otherwise: 41.7 and 63.2 %."""
    pixels = nm.algorithms.MatchingNetwork(None, scale=1.0)
    params = pixels.init(np.random.default_rng(0), np.float32)
    for shots, low, high in ((1, 0.40, 0.52), (5, 0.60, 0.70)):
        tasks = Omniglot(real, shots=shots, split_by="alphabet")
        share = nm.evaluate(pixels, params, tasks, n_tasks=200).mean("accuracy")[0]
        assert low < share < high


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\nshowpage\n%%EOF\n"


def test_what_is_called_png_and_is_another_format_starts_no_program(tmp_path, monkeypatch):
    def started(*args, **options):
        raise AssertionError(f"a program was started: {args}")

    monkeypatch.setattr("subprocess.Popen", started)
    file = tmp_path / "images_background" / "A" / "character01" / "0001_01.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(EPS)
    with pytest.raises(ValueError, match="cannot be read as an image"):
        read_image(file)
    with pytest.raises(ValueError, match=r"0001_01\.png in .* cannot be read as an image"):
        Omniglot(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_what_has_no_end_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        for read in (Omniglot, read_image, nm.tasks.Table, Config.read_toml):
            with pytest.raises(ValueError, match="a regular file"):
                read(Path(path))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_comes_twice_in_a_zip_matters_only_if_it_is_a_drawing(tmp_path, contents):
    path = tmp_path / "twice.zip"
    name = next(iter(contents))
    for again, message in (("README", None), (name, f"holds one drawing twice: {name} and {name}")):
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in (*contents.items(), ("README", b""), (again, contents[name])):
                archive.writestr(member, data)
        if message is None:
            assert len(Omniglot(path, **THREE_WAYS).characters) == len(CHARACTERS)
        else:
            with pytest.raises(ValueError, match=re.escape(message)):
                Omniglot(path, **THREE_WAYS)
