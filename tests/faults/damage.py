"""Damage: bytes flipped, cut and repeated; and files that are whole, but hold what nobody expects."""

from __future__ import annotations

import csv
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["damaged"]

TEXTS = [
    "",
    " ",
    "nan",
    "inf",
    "-1",
    "1e999",
    "0",
    "é",
    "\0",
    "\x1b[31m",
    '"',
    "\ud7ff",
    "x" * 9999,
    "../..",
]
JSON_VALUES: list[Any] = [
    None, True, -1, 0, 7, 1.5, -1e300, 10**400, "", "nan", "a\nb", "\x1b[2J", "../x", "x" * 3000,
    [], {}, [[]], [None], ["a", 1], {"": 0}, [1.0] * 50,
]  # fmt: skip
TOML_VALUES = [
    "", "nan", "inf", "-1", "0", "1.5", "1e999", "9" * 400, "true", '""', '"maml"', '"é"', "[]",
    "[[1]]", "{}", "2026-11-27", "[1, 'a']", "'\\'", "'''", "= 1",
]  # fmt: skip
ENCODINGS = ["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]


def _arrays() -> list[Any]:
    return [
        np.array(1.0), np.zeros(0), np.zeros((2, 0, 3)), np.array(["a", "b"]), np.array([b"a"]),
        np.array([None, 1]), np.array([np.nan, 1]), np.array([np.inf]), np.zeros(3, dtype=complex),
        np.zeros(3, dtype=bool), np.zeros(5, dtype=np.float16), np.zeros((3, 3), dtype=">f8"),
        np.zeros((4, 4), order="F"), np.zeros(2, dtype="datetime64[s]"), np.zeros(4, dtype=np.uint8),
        np.zeros(2, dtype=[("a", "f8")]),
        np.full(3, -(2**62)), np.zeros(3, dtype=np.longdouble), np.array("text"), np.zeros((1,) * 20),
        np.arange(50) * 1e300,
    ]  # fmt: skip


def damaged(content: bytes, kind: str, rng: random.Random) -> bytes:
    """The content of a file of a kind ("npz", "json", "toml", "csv", "zip", ...), changed by chance."""
    of_kind: dict[str, Callable[[bytes, random.Random], bytes]] = {
        "npz": _other_arrays,
        "safetensors": _other_header,
        "json": _other_json,
        "toml": _other_toml,
        "csv": _other_cells,
        "zip": _other_members,
    }
    if kind in of_kind and rng.random() < 0.4:
        return of_kind[kind](content, rng)
    return rng.choice(BYTES)(content, rng)


# --- bytes --------------------------------------------------------------------------------------------


def _flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _replaced(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] = rng.choice(
        (0, 10, 13, 34, 44, 45, 127, 128, 255, rng.randrange(256))
    )
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _dropped(content: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(content))
    return content[:begin] + content[begin + rng.choice((1, 2, 16, 512)) :]


def _inserted(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice((1, 2, 16, 512))) + content[at:]


def _repeated(content: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(content))
    block = content[begin : begin + rng.choice((1, 16, 512))]
    return content[:begin] + block * rng.choice((2, 3, 50)) + content[begin:]


def _blank(content: bytes, rng: random.Random) -> bytes:
    begin, n = rng.randrange(len(content)), rng.choice((4, 64, 4096))
    return content[:begin] + bytes(len(content[begin : begin + n])) + content[begin + n :]


def _number(content: bytes, rng: random.Random) -> bytes:
    """Four bytes that may be a length, an offset or a size."""
    begin = rng.randrange(max(len(content) - 4, 1))
    number = struct.pack("<I", rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(2**32))))
    return content[:begin] + number + content[begin + 4 :]


BYTES = (_flipped, _flipped, _flipped, _replaced, _cut, _dropped, _inserted, _repeated, _blank, _number)

# --- whole, but odd -----------------------------------------------------------------------------------


def _other_arrays(content: bytes, rng: random.Random) -> bytes:
    with np.load(io.BytesIO(content)) as loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    name = rng.choice(list(arrays))
    change = rng.randrange(6)
    if change == 0:
        del arrays[name]
    elif change == 1:
        arrays[rng.choice(["", "other", "../x", "a/b", "\x1b[31m", "x" * 3000])] = arrays.pop(name)
    elif change == 2:
        arrays[name] = rng.choice(list(arrays.values()))
    elif change == 3:
        kinds = ["U8", "O"] if arrays[name].dtype.kind == "U" else ["U8", "f4", "f8", "i2", "O", ">f8"]
        arrays[name] = arrays[name].astype(rng.choice(kinds))
    else:
        arrays[name] = rng.choice(_arrays())
    buffer = io.BytesIO()
    rng.choice((np.savez, np.savez_compressed))(buffer, **arrays)
    return buffer.getvalue()


def _other_header(content: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    header = _other_json(content[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _other_json(content: bytes, rng: random.Random) -> bytes:
    document = json.loads(content)
    node = document
    while True:  # down to a random entry
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return b"[]"
        key = rng.choice(keys)
        if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.3:
            break
        node = node[key]
    change = rng.randrange(4)
    if change == 0 and isinstance(node, dict):
        node[rng.choice(["other", "", "id", "x" * 500])] = node.pop(key)
    elif change == 1:
        del node[key]
    else:
        node[key] = rng.choice(JSON_VALUES)
    text = json.dumps(document)
    if rng.random() < 0.1:
        text = rng.choice([text + text, "[" * 9999, f"[{text}]", "null", text.replace(":", "::", 1)])
    return text.encode(rng.choice(["utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig"]))


def _other_toml(content: bytes, rng: random.Random) -> bytes:
    lines = content.decode().splitlines()
    at = rng.randrange(len(lines))
    change = rng.randrange(6)
    if change == 0:
        lines.insert(at, rng.choice(lines))
    elif change == 1:
        del lines[at]
    elif change == 2:
        lines[at] = rng.choice(["[", "[x]", "= 1", "a.b.c = 1", "#\x00", '"', "task = 3"])
    else:
        name, equals, _ = lines[at].partition("=")
        lines[at] = f"{name}= {rng.choice(TOML_VALUES)}" if equals else lines[at]
    return "\n".join(lines).encode(
        rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]), "replace"
    )


def _other_cells(content: bytes, rng: random.Random) -> bytes:
    rows = list(csv.reader(io.StringIO(content.decode())))
    row = rng.choice(rows if rng.random() < 0.7 else rows[:1])
    change = rng.randrange(6)
    if change == 0:
        row.append(rng.choice(TEXTS))
    elif change == 1:
        row.pop()
    elif change == 2:
        rows.insert(0, rng.choice(rows))
    else:
        row[rng.randrange(len(row))] = rng.choice(TEXTS)
    text = io.StringIO()
    csv.writer(text, delimiter=rng.choice(",,,,;\t")).writerows(rows)
    return text.getvalue().encode(
        rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]), "replace"
    )


def _other_members(content: bytes, rng: random.Random) -> bytes:
    """A zip with a member renamed, changed or blown up."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    change = rng.randrange(5)
    if change == 0:
        del members[name]
    elif change == 1:
        members[rng.choice(["../" + name, "/" + name, name.upper(), "x/y.png", name + "/"])] = (
            members.pop(name)
        )
    elif change == 2:
        members[name] = rng.choice(
            [b"", b"%!PS-Adobe-3.0 EPSF-3.0", b"GIF89a", b"\x89PNG\r\n\x1a\n", bytes(2**22)]
        )
    elif change == 3:
        members[name] = members[rng.choice(list(members))]
    else:
        members[name] = damaged(members[name], "png", rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(
        buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as archive:
        for other, data in members.items():
            archive.writestr(other, data)
    return buffer.getvalue()
