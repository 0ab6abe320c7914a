"""Named arrays as npz and as safetensors, with the same bytes for the same numbers.

NumPy's own ``savez`` notes the time, and a package for safetensors is no dependency of npmeta: the
format is eight bytes with the length of a header (little-endian), the header (JSON: for every name
dtype, shape, and where its bytes begin and end), and the bytes.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from npmeta._validation import Array
from npmeta.tasks.checks import PathLike, existing

__all__ = ["load_arrays", "npz_bytes", "safetensors_bytes"]

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
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    with path.open("rb") as file:
        beginning = file.read(6)
    if not beginning.startswith((b"PK", b"\x93NUMPY")):
        raise ValueError(f"cannot read {path}: it is neither npz nor npy nor .safetensors")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"phi": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except Exception as error:  # damage shows in many ways
        raise ValueError(f"cannot read {path} as npz: {error}") from None


def _load_safetensors(path: Path) -> dict[str, Array]:
    try:
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length].decode())
        data = content[8 + length :]
        header.pop("__metadata__", None)
        return {name: _entry(name, entry, data) for name, entry in header.items()}
    except Exception as error:  # the same
        raise ValueError(f"cannot read {path} as safetensors: {error}") from None


def _entry(name: str, entry: Mapping[str, Any], data: bytes) -> Array:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} has dtype {entry['dtype']}; known: {', '.join(DTYPES)}")
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]), entry["shape"]
    start, end = entry["data_offsets"]
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not 0 <= start <= end <= len(data) or end - start != size:
        raise ValueError(
            f"{name} of shape {shape} needs {size} bytes, from {start} to {end} of {len(data)}"
        )
    return np.frombuffer(data[start:end], dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _plain(array: Array) -> Array:
    """C order and little-endian, also where the machine's is neither."""
    array = np.asarray(array)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
