"""Options: values that runs have by name, each declared in one place.

An option that is an argument of a constructor has its default there, and nowhere else:
:meth:`Option.of` reads it. Name, help and range stand beside what is configured; the command line, the
file of a run and ``npmeta list`` read them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from inspect import Parameter, signature
from typing import Any, get_type_hints

from npmeta._support.validation import shown, unknown_name

#: Lengths of a list: at least none, at least one, a low and a high end.
ANY, MANY, PAIR = (0, 10_000), (1, 10_000), (2, 2)


@dataclass(frozen=True)
class Option:
    """One value of a configuration.

    Attributes
    ----------
    section, name : str
        ``[section] name = ...`` in the file; ``--name`` (with dashes) on the command line.
    kind : type
        int, float, str or bool: of the value, or of each value of a list.
    help : str
    default : object
        Left out, which leaves it at ``...``, where a constructor, or a kind of tasks, has it.
    low : float or None
        Least value allowed; ``exclusive`` makes it the greatest value not allowed.
    high : float or None
        Greatest value allowed.
    choices : tuple of str
        Names allowed; empty where any is.
    length : tuple of int or None
        Least and greatest length of a list; None for a single value. A list of one may be written as
        a single value.
    optional : bool
        Whether the value may be left out altogether.
    argument : str
        What the constructor calls it; by default the name.
    """

    section: str
    name: str
    kind: type
    help: str
    default: Any = ...
    low: float | None = None
    exclusive: bool = False
    choices: tuple[str, ...] = ()
    length: tuple[int, int] | None = None
    optional: bool = False
    high: float | None = None
    argument: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "argument", self.argument or self.name)

    def of(self, construct: Callable[..., Any]) -> Option:
        """The option with the default that its argument has there, if there is such an argument.

        None is no default of an option that declares another: it says that somebody else settles it.

        Raises
        ------
        ValueError
            If there are two defaults: one would be forgotten.
        """
        own = parameters(construct).get(self.argument)
        default = Parameter.empty if own is None else own.default
        if default is Parameter.empty or (default is None and self.default is not ...):
            return self
        if self.default is not ...:
            raise ValueError(f"{construct.__name__} has a default of {self.name}, so declare none here")
        return self.with_default(list(default) if isinstance(default, tuple) else default)

    def with_default(self, default: Any) -> Option:
        return self if default is self.default else replace(self, default=default)

    def told(self, defaults: Mapping[str, Any], tasks: Sequence[str]) -> Option:
        """The option whose help has its defaults by task too: (default: 5) or (table 5)."""
        known = {task: value for task, value in defaults.items() if value is not None}
        if set(known) == set(tasks) and len({str(value) for value in known.values()}) == 1:
            said = f"(default: {_in_words(known[tasks[0]])})"
        else:
            said = ", ".join(f"{task} {_in_words(value)}" for task, value in known.items())
            said = f"({said})" if said else ""
        return replace(self, help=f"{self.help} {said}".strip())

    def check(self, value: Any) -> Any:
        """The value in its own type, or a ValueError that says what was expected and what came."""
        if value is None and self.optional:
            return None
        if self.length is None:
            return self._check_one(value)
        values = list(value) if isinstance(value, list | tuple) else [value]
        low, high = self.length
        if not low <= len(values) <= high:
            count = f"{low} values" if low == high else f"at least {low} value"
            raise ValueError(f"{self.name} takes {count}, got {len(values)}")
        return [self._check_one(item) for item in values]

    def _check_one(self, value: Any) -> Any:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole and not -(2**63) <= value < 2**63:
            raise ValueError(f"{self.name} must be a number of 64 bits, got {shown(value)}")
        if self.kind is float and whole:
            value = float(value)
        fits = type(value) is self.kind  # isinstance would take True for an int
        if not fits:
            wanted = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
            raise ValueError(f"{self.name} must be {wanted[self.kind]}, got {shown(value)}")
        if self.choices and value not in self.choices:
            raise unknown_name(value, list(self.choices), self.name.replace("_", " "))
        if self.kind is float and not math.isfinite(value):
            raise ValueError(f"{self.name} must be finite, got {value}")
        if self.low is not None and (value <= self.low if self.exclusive else value < self.low):
            bound = f"greater than {self.low:g}" if self.exclusive else f"at least {self.low:g}"
            raise ValueError(f"{self.name} must be {bound}, got {value}")
        if self.high is not None and value > self.high:
            raise ValueError(f"{self.name} must be at most {self.high:g}, got {value}")
        return value


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_in_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


@cache
def parameters(construct: Callable[..., Any]) -> Mapping[str, Parameter]:
    """The arguments of a constructor by name; what a function takes as ``**options`` are those of the
    class that it returns."""
    own = dict(signature(construct).parameters)
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in own.values()):
        own = {**parameters(get_type_hints(construct)["return"]), **own}
    return own


def arguments(
    construct: Callable[..., Any], options: Iterable[Option], values: Mapping[str, Any]
) -> dict[str, Any]:
    """The values of those options that are a constructor's arguments, by its names.

    What has no value is left to the constructor.
    """
    known = parameters(construct)
    return {
        option.argument: values[option.name]
        for option in options
        if option.argument in known and values[option.name] is not None
    }


def merged(lists: Iterable[Iterable[str]]) -> list[str]:
    """The names of several lists in one order: each stands before those it comes before in its own."""
    names: list[str] = []
    for own in lists:
        place = len(names)
        for name in reversed(list(own)):
            if name in names:
                place = names.index(name)
            else:
                names.insert(place, name)
    return names
