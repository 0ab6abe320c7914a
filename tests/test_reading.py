"""Files that anybody may have written: what is right is read, what is not costs nothing."""

import io
import json
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from npmeta._support.reading import Members, check_json, npy_array, npz_arrays, parse_json, read_file
from npmeta.tasks import Table, drawings
from npmeta.verification.doctor import tensors


def npy(array, version=None):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version)
    return buffer.getvalue()


def zipped(members, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


RIGHT = {
    "float64": np.arange(6.0).reshape(2, 3),
    "big-endian": np.arange(3, dtype=">f4"),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "float16": np.arange(3, dtype=np.float16),
    "whole": np.array([-1, 2**62]),
    "flags": np.array([True, False]),
    "text": np.array(["a", "größe", ""]),
    "dates": np.array(["2026-11-27"], dtype="datetime64[D]"),
    "nothing": np.zeros((2, 0)),
    "one": np.array(1.5),
    "not a number": np.array([np.nan, np.inf, -0.0]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_as_numpy_reads_them(save):
    buffer = io.BytesIO()
    save(buffer, **RIGHT)
    arrays = npz_arrays(buffer.getvalue(), "a.npz")
    assert list(arrays) == list(RIGHT)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, RIGHT[name])
        assert array.dtype == RIGHT[name].dtype.newbyteorder("=")
        assert array.dtype.isnative
    for version in ((1, 0), (2, 0), (3, 0)):
        np.testing.assert_array_equal(npy_array(npy(np.arange(3), version), "x"), [0, 1, 2])


def header_says(text):
    """An npy of three numbers with another header."""
    head = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + np.arange(3.0).tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.array([None])), "arrays of objects are not read"),
        (npy(np.zeros(2, dtype=[("a", "f8")])), "neither numbers nor strings"),
        (npy(np.arange(3.0))[:-1], r"shape \(3,\) of float64 does not fit 23 bytes"),
        (npy(np.arange(3.0)) + b"x", "does not fit 25 bytes"),
        (header_says("{'descr': '<f8', 'fortran_order': False, 'shape': (10**9,)}"), "cannot be read"),
        (
            header_says("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000,)}"),
            "does not fit",
        ),
        (header_says("{'descr': '<f8', 'fortran_order': False, 'shape': (-3,)}"), "does not fit"),
        (header_says("nonsense("), "cannot be read"),
        (npy(np.array([True]))[:-1] + b"\x02", "neither 0 nor 1"),
        (npy(np.array(["a"]))[:-4] + b"\xff\xff\x1f\x00", "0x1fffff is no character"),
        (b"\x93NUMPY\x07\x00", "its format is 7.0"),
    ],
)
def test_what_is_no_array_is_refused(content, message):
    with pytest.raises(ValueError, match=message) as caught:
        npy_array(content, "array 'x'")
    assert str(caught.value).startswith("array 'x' cannot be read: ")
    with pytest.raises(ValueError, match=message):
        npz_arrays(zipped({"x.npy": content}), "a.npz")


def test_members_are_checked_one_by_one():
    whole = zipped({"x.npy": npy(np.arange(50.0)), "y.npy": npy(np.arange(3.0))}, zipfile.ZIP_STORED)
    at = whole.index(np.arange(50.0).tobytes())
    with pytest.raises(ValueError, match=r"^x\.npy in a\.npz cannot be unzipped: Bad CRC-32"):
        npz_arrays(whole[:at] + b"\1" + whole[at + 1 :], "a.npz")
    with pytest.raises(ValueError, match=r"a\.npz: not an NPZ file"):
        npz_arrays(whole[:100], "a.npz")
    with pytest.raises(ValueError, match=r"'notes\.txt' is not an array"):
        npz_arrays(zipped({"notes.txt": b"hello"}), "a.npz")
    with pytest.raises(ValueError, match="'x' is not an array: an NPZ file is expected"):
        npz_arrays(zipped({"x.npy": npy(np.arange(3)), "x": npy(np.arange(3))}), "a.npz")
    with pytest.raises(ValueError, match="it is neither deflated nor stored; write it so"):
        npz_arrays(zipped({"x.npy": npy(np.arange(3))}, zipfile.ZIP_BZIP2), "a.npz")


# --- memory -------------------------------------------------------------------------------------------


def most_memory(call):
    """MiB that a call has had at once, beyond what was there."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="expected") as caught:
            call()
        return tracemalloc.get_traced_memory()[1] / 2**20, str(caught.value)
    finally:
        tracemalloc.stop()


def test_a_small_archive_does_not_become_gigabytes(tmp_path):
    """300 MiB of zeros are 300 kB of zip: they are refused before anything is unpacked."""
    content = zipped({"task.npy": npy(np.zeros(300 * 2**17))})
    assert len(content) < 2**19
    for name, read in (
        ("a.npz", tensors.load_arrays),
        ("t.npz", Table),
        ("o.zip", drawings.load),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        used, said = most_memory(lambda path=path, read=read: read(path))
        assert used < 20
        assert name in said
    with pytest.raises(ValueError, match="unpacks to 314572928 bytes"):
        Members(content, "o.zip")


def test_a_member_that_lies_about_its_size_gives_no_more_than_it_says():
    content = bytearray(zipped({"x": bytes(10**6)}))
    at = content.index(b"PK\x01\x02") + 24  # the size, in the directory
    assert struct.unpack_from("<I", content, at) == (10**6,)
    struct.pack_into("<I", content, at, 1000)
    with pytest.raises(ValueError, match="cannot be unzipped"):
        Members(bytes(content), "o.zip").read("x")
    # One that says more unpacks to its end, and its checksum is right.
    struct.pack_into("<I", content, at, 10**6 + 1)
    with pytest.raises(ValueError, match="1000000 bytes came, 1000001 are expected"):
        Members(bytes(content), "o.zip").read("x")


def test_many_cells_are_not_made_of_few_bytes(tmp_path):
    """100 million flags are allowed bytes; as numbers of eight bytes each they are not."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, task=np.zeros(10**8, dtype=bool))
    (tmp_path / "t.npz").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="the arrays have 100000000 cells, and at most"):
        Table(tmp_path / "t.npz")


def test_arrays_of_a_safetensors_file_do_not_share_bytes(tmp_path):
    entry = {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}
    head = json.dumps({"a": entry, "b": entry}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(16))
    with pytest.raises(ValueError, match="'b' overlaps others"):
        tensors.load_arrays(path)


def test_regular_files_alone_are_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_file(path) == b"12345"
    with pytest.raises(ValueError, match="has 5 bytes; at most 4 are expected"):
        read_file(path, 4)
    with pytest.raises(ValueError, match="is a folder; a regular file is expected"):
        read_file(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for what in (tmp_path / "pipe", type(path)("/dev/zero")):
        with pytest.raises(ValueError, match="is a device or a pipe; a regular file is expected"):
            read_file(what)


def test_a_cache_of_other_images_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images, names = np.zeros((2, 3, 28, 28), dtype=np.uint8), ("A/character01", "A/character02")
    drawings._write_cache("0", images, names)
    read = drawings._read_cache("0")
    np.testing.assert_array_equal(read[0], images)
    assert read[1] == names
    here, there = drawings._cache_file("0"), drawings._cache_file("1")
    there.write_bytes(here.read_bytes())  # of another source
    assert drawings._read_cache("1") is None
    with np.load(here) as whole:
        arrays = dict(whole)
    for change in (
        {"images": images + 1},
        {"characters": np.array(names[::-1])},
        {"digest": np.array("")},
    ):
        np.savez(here, **arrays | change)
        assert drawings._read_cache("0") is None
    del arrays["digest"]  # as older versions wrote it
    np.savez(here, **arrays)
    assert drawings._read_cache("0") is None


# --- JSON ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "is no JSON"),
        (b'{"a": 1, "a": 2}', "'a' comes twice"),
        (b"[NaN]", "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        ("é".encode("latin-1"), "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"1" * 5000, "is no JSON"),
    ],
)
def test_what_is_no_json_is_refused(data, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(data, "f.json")
    assert str(caught.value).startswith("f.json is no JSON")


KIND = {"name": str, "sizes": [int], "rate": (None, float), "more?": {"*": bool}, "any?": []}


def test_documents_of_a_kind_pass():
    for document in (
        {"name": "", "sizes": [], "rate": None},
        {"name": "a", "sizes": [1, -2], "rate": 1, "more": {"x": True}, "any": [None, "x"], "other": 3},
    ):
        check_json(document, KIND, "it")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "it: name must be a string, got 3"),
        ({"sizes": [1, 2.0]}, r"it: sizes\[1\] must be a whole number, got 2.0"),
        ({"sizes": [True]}, r"it: sizes\[0\] must be a whole number, got True"),
        ({"sizes": [2**63]}, "must be a whole number"),
        ({"sizes": {}}, "it: sizes must be a list, each of which is a whole number, got {}"),
        ({"rate": "1"}, "it: rate must be null or a finite number, got '1'"),
        ({"rate": 10**400}, "it: rate must be null or a finite number"),
        ({"more": {"x": 1}}, "it: more: x must be true or false, got 1"),
        ({"any": {}}, "it: any must be a list, got {}"),
    ],
)
def test_values_of_other_kinds_are_named_by_their_place(change, message):
    with pytest.raises(ValueError, match=message):
        check_json({"name": "a", "sizes": [1], "rate": 0.5} | change, KIND, "it")
    with pytest.raises(ValueError, match="it has no 'sizes'"):
        check_json({"name": "a", "rate": None}, KIND, "it")
    with pytest.raises(ValueError, match=r"it must be an object, got \[\]"):
        check_json([], KIND, "it")
