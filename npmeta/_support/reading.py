"""Files that anybody may have written: read within bounds, or refused by a ValueError in one line.

Three rules hold for all of them. Only regular files are read: a device or a pipe has no end. What is
to be decoded is measured first, and may be :data:`ROOM` and :data:`EXPANSION` times its file, no more.
And whatever damage makes a decoder raise, the caller gets a ValueError that names file and member.
"""

from __future__ import annotations

import json
import math
import os
import stat
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from npmeta._support.validation import Array, shortened, shown

#: Bytes that a file may be: of data, and of settings and descriptions, which people write.
LARGEST = 2**32
SHORT = 2**24

#: What is decoded from a file of n bytes may have ROOM + EXPANSION · n: that much more than any file of
#: numbers that is not compressed, even if its bytes become float64.
ROOM = 2**27
EXPANSION = 8


def allowed(size: int) -> int:
    """Bytes that may be decoded from so many."""
    return ROOM + EXPANSION * size


# --- files --------------------------------------------------------------------------------------------


def read_file(path: Path, most: int = LARGEST) -> bytes:
    """The content of a regular file.

    Raises
    ------
    ValueError
        If it is a folder, a device or a pipe, or has more than ``most`` bytes.
    OSError
        If it is not there or cannot be read.
    """
    _check_status(path, os.stat(path), most)

    def opener(name: str, flags: int) -> int:  # what has become a pipe in the meantime does not block
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=opener) as file:
        status = os.fstat(file.fileno())
        _check_status(path, status, most)
        return file.read(status.st_size) or b""


def _check_status(path: Path, status: os.stat_result, most: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        is_folder = stat.S_ISDIR(status.st_mode)
        what = "a folder" if is_folder else "a device or a pipe"
        raise ValueError(f"{path} is {what}; a regular file is expected")
    if status.st_size > most:
        raise ValueError(f"{path} has {status.st_size} bytes; at most {most} are expected")


# --- zip ----------------------------------------------------------------------------------------------


class Members:
    """The members of a zip, whose sizes have been checked.

    Parameters
    ----------
    data : bytes
        The whole zip.
    where : path-like
        What errors call it.

    Attributes
    ----------
    names : list of str
        As they stand there: one may come twice.

    Raises
    ------
    zipfile.BadZipFile
        If it is no zip, with the reason.
    ValueError
        If it unpacks to more than :func:`allowed`.
    """

    def __init__(self, data: bytes, where: object) -> None:
        self._where = where
        try:
            self._archive = zipfile.ZipFile(BytesIO(data))
            entries = self._archive.infolist()
        except Exception as error:  # damage shows in many ways
            raise zipfile.BadZipFile(_said(error)) from None
        self._entries = {entry.filename: entry for entry in entries}
        self.names = [entry.filename for entry in entries]
        total, most = sum(entry.file_size for entry in entries), allowed(len(data))
        if total > most:
            raise ValueError(
                f"{where} unpacks to {total} bytes, and at most {most} are expected of {len(data)}; "
                f"write it without compression"
            )

    def read(self, name: str) -> bytes:
        """A member as a whole; never more than the size that was checked."""
        entry = self._entries[name]
        try:
            if entry.flag_bits & 1:
                raise ValueError("it is encrypted")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # Their decoders cannot be told to stop, and a few bytes may be gigabytes.
                raise ValueError("it is neither deflated nor stored; write it so")
            content = self._archive.read(entry)  # checks the CRC-32
            if len(content) != entry.file_size:
                raise ValueError(f"{len(content)} bytes came, {entry.file_size} are expected")
        except Exception as error:  # damage shows in many ways
            where = f"{shortened(name)} in {self._where}"
            raise ValueError(f"{where} cannot be unzipped: {_said(error)}") from None
        return content


def _said(error: BaseException) -> str:
    """What an error says, and what it is where that is not clear."""
    named = type(error).__name__ not in ("ValueError", "BadZipFile")
    text = shortened(" ".join(str(error).split()), 300)
    return f"{type(error).__name__}: {text}" if named and text else text or type(error).__name__


# --- arrays -------------------------------------------------------------------------------------------


def npz_arrays(data: bytes, where: object, wanted: str = "an NPZ file") -> dict[str, Array]:
    """The arrays of an npz file by name, in their order, as the machine's numbers.

    Raises
    ------
    ValueError
        If it is no npz, a member is damaged or no array, or an array holds objects.
    """
    try:
        members = Members(data, where)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{where}: not an NPZ file: {error}") from None
    arrays: dict[str, Array] = {}
    for member in members.names:
        name = member.removesuffix(".npy")
        content = members.read(member)
        if name in arrays or not content.startswith(b"\x93NUMPY"):
            raise ValueError(f"{where}: {shown(member)} is not an array: {wanted} is expected")
        arrays[name] = npy_array(content, f"{where}: array {shown(name)}")
    return arrays


def npy_array(content: bytes, where: object) -> Array:
    """The array of an npy file, as the machine's numbers.

    Raises
    ------
    ValueError
        If it is no npy, has not exactly the bytes that its header asks for, or holds objects.
    """
    try:
        file = BytesIO(content)
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"its format is {version[0]}.{version[1]}; 1.0, 2.0 and 3.0 are known")
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0  # 3.0 has other letters in the names of fields
        )
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError("arrays of objects are not read: they could run code")
        if dtype.kind == "V" or not dtype.itemsize:
            raise ValueError(f"its dtype is {dtype}, neither numbers nor strings")
        begin = file.tell()
        needed = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or needed != len(content) - begin:
            raise ValueError(
                f"shape {shown(shape)} of {dtype} does not fit {len(content) - begin} bytes"
            )
        flat = np.frombuffer(content, dtype, offset=begin) if needed else np.empty(0, dtype)
        array: Array = flat.astype(dtype.newbyteorder("="), copy=False).reshape(
            shape, order="F" if fortran else "C"
        )
        if dtype.kind == "b" and needed and np.frombuffer(content, np.uint8, offset=begin).max() > 1:
            raise ValueError("there are booleans that are neither 0 nor 1")
        if dtype.kind == "U" and needed:
            _check_text(array)
    except Exception as error:  # damage shows in many ways
        raise ValueError(f"{where} cannot be read: {_said(error)}") from None
    return array


def _check_text(array: Array) -> None:
    """Raise ValueError unless every code is a character that can be written."""
    codes = np.ascontiguousarray(array).reshape(-1).view(np.uint32)
    bad = codes[(codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))]
    if bad.size:
        raise ValueError(f"0x{bad[0]:x} is no character")


# --- JSON ---------------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """The document in a file.

    Raises
    ------
    ValueError
        If it is no JSON.
    OSError
        If it is not there or cannot be read.
    """
    return parse_json(read_file(path, SHORT), path)


def parse_json(data: bytes, where: object) -> Any:
    """A document. Names that come twice and numbers that are not finite are errors."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {_said(error)}") from None


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{shown(name)} comes twice")
        found[name] = value
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def check_json(value: Any, kind: Any, where: str) -> None:
    """Raise ValueError, with the place, unless a value is of a kind.

    Parameters
    ----------
    value : object
    kind : object
        ``str``, ``bool``, ``int`` (of 64 bits), ``float`` (finite; whole numbers too) or ``None``;
        ``[kind]``, a list of such, or ``[]``, of anything; ``{name: kind}``, an object with at least
        these entries, of which those whose name ends in "?" may be missing, or ``{"*": kind}``, with
        any; a tuple, one of them.
    where : str
    """
    if isinstance(kind, tuple):
        if not any(_fits(value, one) for one in kind):
            raise _other(value, kind, where)
        return
    if isinstance(kind, dict) and isinstance(value, dict):
        for name, own in _entries(kind, value):
            if name not in value:
                raise ValueError(f"{where} has no {name!r}")
            check_json(value[name], own, f"{where}: {name}")
    elif isinstance(kind, list) and isinstance(value, list):
        for i, item in enumerate(value if kind else []):
            check_json(item, kind[0], f"{where}[{i}]")
    elif not _fits(value, kind):
        raise _other(value, kind, where)


def _entries(kind: Mapping[str, Any], value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The names that an object must have or has, and the kinds of their values."""
    for name, own in kind.items():
        if name == "*":
            yield from ((any_name, own) for any_name in value)
        elif not name.endswith("?"):
            yield name, own
        elif name[:-1] in value:
            yield name[:-1], own


def _fits(value: Any, kind: Any) -> bool:
    if kind is None:
        return value is None
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if kind is int:
        return type(value) is int and -(2**63) <= value < 2**63
    if isinstance(kind, type):
        return type(value) is kind
    if type(value) is not type(kind):
        return False
    try:
        check_json(value, kind, "")
    except ValueError:
        return False
    return True


def _other(value: Any, kind: Any, where: str) -> ValueError:
    return ValueError(f"{where} must be {_in_words(kind)}, got {shown(value)}")


def _in_words(kind: Any) -> str:
    if isinstance(kind, tuple):
        return " or ".join(map(_in_words, kind))
    if isinstance(kind, list):
        return f"a list, each of which is {_in_words(kind[0])}" if kind else "a list"
    if isinstance(kind, dict):
        return "an object"
    names = {str: "a string", bool: "true or false", int: "a whole number", float: "a finite number"}
    return "null" if kind is None else names[kind]
