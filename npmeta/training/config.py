"""The configuration of a run, the file that records it, and the parts it is made into.

Values come from four places, each going before the one above it: the defaults of the algorithm and the
task, a preset, a TOML file, the command line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from npmeta._support.reading import SHORT, read_file
from npmeta._support.validation import lookup, shown, unknown_name
from npmeta._support.version import __version__
from npmeta.algorithms.base import MetaLearner
from npmeta.algorithms.from_options import one_or_list
from npmeta.algorithms.registry import ALGORITHMS, DEFAULT
from npmeta.bilevel.optimizers import Schedule, constant, cosine, step
from npmeta.tasks import Encoding
from npmeta.tasks.registry import KINDS
from npmeta.training.options import OPTIONS, options_of


class Config:
    """The options of one run, complete and checked.

    Parameters
    ----------
    task : str
        A name of :data:`npmeta.tasks.registry.KINDS`.
    *layers : mapping
        Values by option name, the later ones going before the earlier; what none has takes its
        default.

    Raises
    ------
    ValueError
        If a name is unknown (with the nearest known one), a value is out of range, the algorithm
        cannot be trained on the task, or an option is none of its own.
    """

    def __init__(self, task: str, *layers: Mapping[str, Any]) -> None:
        self.task, self.kind = task, lookup(task, KINDS, "task")
        named = [layer["algorithm"] for layer in layers if "algorithm" in layer]
        algorithm = named[-1] if named else DEFAULT
        self._options = options_of(task, algorithm)
        if task not in (possible := ALGORITHMS[algorithm].tasks):
            known = ", ".join(possible)
            raise ValueError(f"{algorithm} cannot be trained on {task}; it is for {known}")
        options = {option.name: option for option in self._options}
        values = {name: option.default for name, option in options.items()}
        for layer in layers:
            for name in layer:
                if name not in options:
                    raise self._has_no(name, algorithm, list(options))
            values.update(layer)
        self.values: dict[str, Any] = {
            name: options[name].check(value) if value is not None else None
            for name, value in values.items()
        }

    def _has_no(self, name: str, algorithm: str, known: list[str]) -> ValueError:
        """Why a run has no option of a name: it is other tasks', or other algorithms', or nobody's."""
        of = [kind.name for kind in KINDS.values() if name in [option.name for option in kind.options]]
        if of:
            return ValueError(
                f"unknown option of {self.task} runs {name!r}: it is one of {' and '.join(of)} runs"
            )
        if name in [option.name for option in OPTIONS]:
            return ValueError(
                f"{algorithm} has no option {name!r}; npmeta list {algorithm} shows what it has"
            )
        return unknown_name(name, known, f"option of {self.task} runs")

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def with_values(self, **values: Any) -> Config:
        """The same with some values replaced."""
        return Config(self.task, self.values, values)

    # --- the file -----------------------------------------------------------------------------------

    def to_toml(self) -> str:
        """The file that reproduces the run: ``npmeta train --config FILE``."""
        lines = [f"# npmeta {__version__}", f"task = {json.dumps(self.task)}"]
        section = ""
        for option in self._options:
            value = self.values[option.name]
            if value is None:
                continue
            if option.section != section:
                section = option.section
                lines += ["", f"[{section}]"]
            shown = one_or_list(value) if isinstance(value, list) else value
            lines.append(f"{option.name} = {_toml_value(shown)}")
        return "\n".join(lines) + "\n"

    @staticmethod
    def read_toml(path: Path) -> tuple[str | None, dict[str, Any]]:
        """Task and values of a file, each checked by itself.

        Raises
        ------
        ValueError
            If the file is missing, is not TOML, or has an option in a section that is not its own, or
            of a value that it cannot have.
        """
        try:
            content = read_file(path, SHORT)
        except FileNotFoundError:
            raise ValueError(f"no such file: {path}") from None
        try:
            parsed = _parsed(content.decode("utf-8-sig"))  # editors put a byte order mark in front
        except (ValueError, RecursionError, OverflowError) as error:
            raise ValueError(f"{path} is not a TOML file: {error}") from None
        options = {option.name: option for option in OPTIONS}
        known = sorted({option.section for option in OPTIONS if option.section})
        task = parsed.pop("task", None)
        values: dict[str, Any] = {}
        for key, value in parsed.items():
            entries = value if isinstance(value, dict) else {key: value}
            section = key if isinstance(value, dict) else ""
            if section and section not in known:
                raise ValueError(f"{path}: {unknown_name(section, known, 'section')}")
            for name, entry in entries.items():
                if name not in options:
                    raise ValueError(f"{path}: {unknown_name(name, list(options), 'option')}")
                if (own := options[name].section) != section:
                    place = f"section [{own}]" if own else "the top, above all sections"
                    raise ValueError(f"{path}: {name} belongs in {place}")
                try:
                    values[name] = options[name].check(entry)
                except ValueError as error:
                    raise ValueError(f"{path}: {error}") from None
        return task, values

    # --- the parts ----------------------------------------------------------------------------------

    def tasks(self, encoding: Encoding | None = None) -> Any:
        """The task distribution; reads the data, and compares its checksum with the recorded one.

        A table that is to be read as another was takes that one's encoding.
        """
        return self.kind.make(self.values, encoding)

    def algorithm(self, n_in: int, n_out: int) -> MetaLearner:
        """The algorithm for tasks with so many inputs and outputs."""
        return ALGORITHMS[self["algorithm"]].make(n_in, n_out, self.values)

    @property
    def loss_name(self) -> str:
        """What reports and pictures call the loss."""
        return self.values.get("pair_loss", self["loss"])

    @property
    def inner_steps(self) -> bool:
        """Whether the algorithm takes any."""
        return ALGORITHMS[self["algorithm"]].inner_steps

    def schedule(self) -> Schedule:
        """The schedule of the outer learning rate."""
        v = self.values
        if v["schedule"] == "step":
            return step(v["schedule_every"], v["schedule_factor"])
        if v["schedule"] == "cosine":
            return cosine(v["iterations"], v["schedule_floor"])
        return constant()


def _toml_value(value: Any) -> str:
    """JSON is TOML for numbers, booleans, lists and strings; only TOML wants DEL escaped too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _parsed(text: str) -> dict[str, Any]:
    """A TOML document, by the standard library from Python 3.11 on, or by tomli if that is there.

    Without either, :func:`_plain_toml` reads what npmeta itself writes.

    Raises
    ------
    ValueError
        If it is none.
    """
    for module in ("tomllib", "tomli"):
        with suppress(ImportError):
            return import_module(module).loads(text)
    return _plain_toml(text)


def _plain_toml(text: str) -> dict[str, Any]:
    """A document of comments, ``[section]`` and ``name = value``, with values as JSON has them."""
    document: dict[str, Any] = {}
    section = document
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.strip()
        if not content or content.startswith("#"):
            continue
        head = re.fullmatch(r"\[([A-Za-z0-9_-]+)\]\s*(#.*)?", content)
        entry = re.fullmatch(r"([A-Za-z0-9_-]+)\s*=\s*(.+)", content)
        try:
            if head and head[1] not in document:
                section = document[head[1]] = {}
            elif entry and entry[1] not in section:
                section[entry[1]] = _plain_value(entry[2])
            else:
                raise ValueError(f"{shown(content)} is neither a new [section] nor a new name = value")
        except ValueError as error:
            raise ValueError(
                f"line {number}: {error} (Python 3.10 reads more than what npmeta writes with tomli: "
                f"pip install tomli)"
            ) from None
    return document


def _plain_value(text: str) -> Any:
    value, end = json.JSONDecoder().raw_decode(text)
    if re.fullmatch(r"\s*(#.*)?", text[end:]) is None or value is None or isinstance(value, dict):
        raise ValueError(f"{shown(text)} is no plain value")
    return value
