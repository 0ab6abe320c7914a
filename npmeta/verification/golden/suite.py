"""The suite of golden vectors as a folder: writing it, and reading its index."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from npmeta._support.blas import one_thread
from npmeta._support.files import folder_in_the_making, put_folder, restore_folder, write_atomically
from npmeta._support.reading import check_json, read_file, read_json
from npmeta._support.validation import check_names, shown, unknown_name
from npmeta._support.version import __version__
from npmeta.tasks.checks import PathLike, as_path, existing
from npmeta.verification.doctor.tensors import npz_bytes, safetensors_bytes
from npmeta.verification.golden.algorithms import golden_case
from npmeta.verification.golden.families import SETTINGS, SUITE_VERSION
from npmeta.verification.golden.maml import GoldenCase
from npmeta.verification.golden.settings import Setting

SUITE = "npmeta golden vectors"

#: Of index.json.
INDEX = {
    "cases": [{"id": str, "family": str, "about": str, "inputs_sha256": str}],
    "files": {"*": str},
}

SCHEMAS = ("index.schema.json", "case.schema.json")


def cases() -> dict[str, Setting]:
    """The settings of all cases, by id."""
    return {setting.id: setting for setting in SETTINGS}


def write(folder: PathLike, only: Sequence[str] | None = None) -> Path:
    """Write the suite.

    On the same machine, with the same versions of npmeta, NumPy and SciPy, it has the same bytes every
    time, whatever the number of threads. Elsewhere inputs have the same bytes, and expected values may
    differ in the last digit, as BLAS and the mathematical functions do.

    Parameters
    ----------
    folder : path
        New or empty, or with a suite, which is replaced.
    only : sequence of str, optional
        Ids of the cases to write; by default all.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        If the folder has other files in it, or an id is unknown.
    """
    folder = as_path(folder)
    known = cases()
    if only is not None:
        check_names(only, "only")
    for id in only or ():
        if id not in known:
            raise unknown_name(id, list(known), "case")
    restore_folder(folder)
    _check_replaceable(folder)
    # The suite is made beside its place, and appears there whole or not at all. A link stays a link.
    place = Path(os.path.realpath(folder))
    place.parent.mkdir(parents=True, exist_ok=True)
    with folder_in_the_making(place) as making:
        with one_thread():
            _write(making, [known[id] for id in (known if only is None else dict.fromkeys(only))])
        put_folder(making, place)
    return folder


def _write(folder: Path, settings: Sequence[Setting]) -> None:
    import scipy

    files: dict[str, str] = {}

    def save(name: str, content: bytes) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        files[name] = hashlib.sha256(content).hexdigest()

    for name in SCHEMAS:
        save(f"schema/{name}", (resources.files(__package__) / name).read_bytes())
    entries = []
    for setting in settings:
        case = golden_case(setting)
        tensors = case.tensors
        save(f"cases/{case.id}/case.json", _json(case.document))
        save(f"cases/{case.id}/tensors.npz", npz_bytes(tensors))
        save(f"cases/{case.id}/tensors.safetensors", safetensors_bytes(tensors))
        entries.append(
            {
                "id": case.id,
                "family": setting.family,
                "about": setting.about,
                "inputs_sha256": inputs_digest(case),
            }
        )
    index = {
        "suite": SUITE,
        "suite_version": SUITE_VERSION,
        "made_with": {
            "npmeta": __version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "machine": platform.machine(),
        },
        "cases": entries,
        "files": files,
    }
    write_atomically(folder / "index.json", _json(index))


def inputs_digest(case: GoldenCase) -> str:
    """SHA-256 of a case's inputs (as safetensors), the same on every machine."""
    return hashlib.sha256(safetensors_bytes(case.inputs)).hexdigest()


def _json(document: Mapping[str, Any]) -> bytes:
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _check_replaceable(folder: Path) -> None:
    """Raise ValueError unless the folder is new, empty, or has a suite and nothing else in it."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; the suite needs a folder")
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if not present:
        return
    if "index.json" not in present:
        raise ValueError(f"{folder} is not empty and has no suite; name a new folder")
    others = sorted(present - {"index.json", *read_index(folder)["files"]})
    if others:
        raise ValueError(
            f"{folder} has files that are not the suite's, {others[0]} for one; move them, or name a "
            f"new folder"
        )


# --- read -------------------------------------------------------------------------------------------


def read_index(folder: PathLike) -> dict[str, Any]:
    """``index.json`` of a suite.

    Raises
    ------
    ValueError
        If there is none, or it is that of another version.
    """
    restore_folder(as_path(folder))
    folder = existing(folder)
    path = folder / "index.json"
    index = read_json(path) if path.exists() else None
    if not isinstance(index, dict) or index.get("suite") != SUITE:
        raise ValueError(f"{folder} has no suite of golden vectors: npmeta golden write DIR makes one")
    if index.get("suite_version") != SUITE_VERSION:
        raise ValueError(
            f"{folder} has version {shown(index.get('suite_version'))} of the suite, this is version "
            f"{SUITE_VERSION}; npmeta golden write DIR makes a new one"
        )
    check_json(index, INDEX, str(path))
    for entry in index["cases"]:  # ids are names of folders, and must not lead elsewhere
        if not re.fullmatch("[a-z0-9_-]+", entry["id"]):
            raise ValueError(f"{path}: {shown(entry['id'])} is not the id of a case")
    return index


def check_sums(folder: Path, files: Mapping[str, str], case: str) -> None:
    """Raise ValueError unless the files of a case are those that were written."""
    for name in ("case.json", "tensors.npz"):
        name = f"cases/{case}/{name}"
        if name not in files:
            raise ValueError(f"{folder / 'index.json'} has no checksum of {name}")
        if hashlib.sha256(read_file(existing(folder / name))).hexdigest() != files[name]:
            raise ValueError(f"{folder / name} has been changed: its SHA-256 is not the index's")
