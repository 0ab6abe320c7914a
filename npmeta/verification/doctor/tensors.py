"""Named arrays as npz and as safetensors, with the same bytes for the same numbers.

NumPy's own ``savez`` notes the time, and a package for safetensors is no dependency of npmeta: the
format is eight bytes with the length of a header (little-endian), the header (JSON: for every name
dtype, shape, and where its bytes begin and end), and the bytes.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from npmeta._support.reading import SHORT, check_json, npy_array, npz_arrays, parse_json, read_file
from npmeta._support.validation import Array, shown
from npmeta.tasks.checks import PathLike, existing

#: The earliest time that a zip file can hold, and where all of ours are from.
EPOCH = (1980, 1, 1, 0, 0, 0)

DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
#: Of the entries in a safetensors header, as JSON has them.
ENTRY = {"dtype": str, "shape": [int], "data_offsets": [int]}

NAMES = {np.dtype(code): name for name, code in DTYPES.items()}


def npz_bytes(arrays: Mapping[str, Array]) -> bytes:
    """The arrays as an npz file, in the order of their names, not compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            entry = zipfile.ZipInfo(f"{name}.npy", EPOCH)
            entry.create_system = 3  # Unix; the default is the machine's
            entry.external_attr = 0o644 << 16
            array = io.BytesIO()
            np.lib.format.write_array(array, _plain(arrays[name]), (1, 0), allow_pickle=False)
            archive.writestr(entry, array.getvalue())
    return buffer.getvalue()


def safetensors_bytes(arrays: Mapping[str, Array]) -> bytes:
    """The arrays as a safetensors file; the widest dtypes first, so that every array is aligned."""
    plain = {name: _plain(array) for name, array in arrays.items()}
    order = sorted(plain, key=lambda name: (-plain[name].itemsize, name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        start, end = end, end + plain[name].nbytes
        header[name] = {
            "dtype": NAMES[plain[name].dtype],
            "shape": list(plain[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(plain[name].tobytes() for name in order)


def load_arrays(path: PathLike) -> dict[str, Array]:
    """The arrays of an npz or safetensors file; that of an npy file as "phi".

    Raises
    ------
    ValueError
        If the file is not there, or is none of these.
    """
    path = existing(path)
    data = read_file(path)
    if path.suffix == ".safetensors":
        return _safetensors_arrays(data, path)
    if data.startswith(b"PK"):
        return npz_arrays(data, path)
    if data.startswith(b"\x93NUMPY"):
        return {"phi": npy_array(data, path)}
    raise ValueError(f"cannot read {path}: it is neither npz nor npy nor .safetensors")


def _safetensors_arrays(content: bytes, path: Path) -> dict[str, Array]:
    try:
        length = int.from_bytes(content[:8], "little")
        if len(content) < 8 or length > min(len(content) - 8, SHORT):
            raise ValueError(f"its header should have {length} bytes, of {len(content)} in all")
        header = parse_json(content[8 : 8 + length], "its header")
        check_json(header, {}, "its header")
        header.pop("__metadata__", None)
        data = content[8 + length :]
        arrays: dict[str, Array] = {}
        left = len(data)  # arrays that share their bytes would be more than the file has
        for name, entry in header.items():
            check_json(entry, ENTRY, f"entry {shown(name)}")
            arrays[name] = _entry(name, entry, data)
            left -= arrays[name].nbytes
            if left < 0:
                raise ValueError(f"{shown(name)} overlaps others")
        return arrays
    except ValueError as error:
        raise ValueError(f"cannot read {path} as safetensors: {error}") from None


def _entry(name: str, entry: Mapping[str, Any], data: bytes) -> Array:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{shown(name)} has dtype {shown(entry['dtype'])}; known: {', '.join(DTYPES)}")
    dtype, shape, offsets = np.dtype(DTYPES[entry["dtype"]]), entry["shape"], entry["data_offsets"]
    size = math.prod(shape) * dtype.itemsize
    if len(offsets) != 2 or min(shape, default=0) < 0 or len(shape) > 32:
        raise ValueError(f"{shown(name)} has shape {shape} and offsets {offsets}")
    start, end = offsets
    if not 0 <= start <= end <= len(data) or end - start != size:
        raise ValueError(
            f"{name} of shape {shape} needs {size} bytes, from {start} to {end} of {len(data)}"
        )
    if dtype.kind == "b" and max(data[start:end], default=0) > 1:
        raise ValueError(f"{shown(name)} has booleans that are neither 0 nor 1")
    return np.frombuffer(data[start:end], dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _plain(array: Array) -> Array:
    """C order and little-endian, also where the machine's is neither."""
    array = np.asarray(array)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
