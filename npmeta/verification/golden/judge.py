"""Answers to the golden vectors, judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from npmeta._support.validation import Array, unknown_name, unmasked
from npmeta.tasks.checks import PathLike, existing
from npmeta.verification.doctor.doctor import diagnose
from npmeta.verification.doctor.files import posed, read_case
from npmeta.verification.doctor.tensors import load_arrays
from npmeta.verification.golden.maml import SECOND_ORDER
from npmeta.verification.golden.suite import check_sums, read_index
from npmeta.verification.rounding import relative

#: After so many wrong answers that no known mistake explains, causes are no longer looked for.
MOST_UNKNOWN = 3
UNKNOWN = "no known mistake explains it"


@dataclass(frozen=True)
class CaseResult:
    """How an answer to one case came out.

    Attributes
    ----------
    id : str
    passed : bool
    misfits : dict of float
        ‖answer − expected‖ / ‖expected‖ of everything that was answered: "meta_grad", "inner_lr_grad",
        "meta_loss", "phi", ...
    wrong : tuple of str
        Which of these are beyond the tolerance of their dtype.
    fault : str or None
        The mistake that explains a wrong meta-gradient; ids joined by " + " where there are several. Of
        algorithms other than MAML, whose mistakes the doctor does not know, it is one of the case's.
    note : str
        What else is to be said.
    examined : bool
        Whether the doctor has looked at it, and ``npmeta doctor`` would say more.
    """

    id: str
    passed: bool
    misfits: dict[str, float]
    wrong: tuple[str, ...] = ()
    fault: str | None = None
    note: str = ""
    examined: bool = False

    def __str__(self) -> str:
        # What was right is shown by its first number alone.
        shown = {name: self.misfits[name] for name in self.wrong or list(self.misfits)[:1]}
        said = [", ".join(f"{name} {misfit:.1e}" for name, misfit in shown.items())]
        if len(shown) < len(self.misfits):
            said[0] += f" and {len(self.misfits) - len(shown)} more right"
        said += [part for part in (self.fault, self.note) if part]
        return f"{'PASS' if self.passed else 'FAIL'}  {self.id:<28}  {'; '.join(said)}"


@dataclass(frozen=True)
class Results:
    """The results of all cases that were answered, in the order of the suite.

    Attributes
    ----------
    cases : tuple of CaseResult
    not_answered : tuple of str
    """

    cases: tuple[CaseResult, ...]
    not_answered: tuple[str, ...]

    @staticmethod
    def of(found: Iterable[CaseResult | str]) -> Results:
        """What ``iter_check`` has found."""
        everything = list(found)
        return Results(
            tuple(one for one in everything if isinstance(one, CaseResult)),
            tuple(one for one in everything if isinstance(one, str)),
        )

    @property
    def passed(self) -> bool:
        """Whether every answer is right."""
        return all(case.passed for case in self.cases)

    def __getitem__(self, id: str) -> CaseResult:
        """The result of a case."""
        for case in self.cases:
            if case.id == id:
                return case
        raise KeyError(id)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.cases), self.summary])

    @property
    def summary(self) -> str:
        """How many."""
        wrong = sum(not case.passed for case in self.cases)
        said = f"{len(self.cases) - wrong} of {len(self.cases)} answers are right"
        if self.not_answered:
            n = len(self.not_answered)
            said += f"; {n} {'case is' if n == 1 else 'cases are'} not answered"
        return f"{said}."


def check(folder: PathLike, answers: PathLike | Mapping[str, Array]) -> Results:
    """Judge answers to a suite.

    Parameters
    ----------
    folder : path
        Of the suite.
    answers : path, or mapping
        An npz or safetensors file, or arrays by name. The name is that of an expected tensor with the
        case in the place of "expected": ``base/meta_grad.0.weight`` for ``expected.meta_grad.0.weight``
        of the case base. Arrays that belong together (meta_grad, phi) are answered together;
        ``base/meta_grad`` may also be one vector, in the order of the parameters. Any cases, and any
        of their quantities, may be answered. float32 arrays are judged as float32.

    Returns
    -------
    Results

    Raises
    ------
    ValueError
        If there is no suite, a file in it has been changed, nothing is answered, or a name or shape is
        not one of the suite's.
    """
    return Results.of(iter_check(folder, answers))


def iter_check(folder: PathLike, answers: PathLike | Mapping[str, Array]) -> Iterator[CaseResult | str]:
    """As :func:`check`, one by one: a result, or the id of a case that is not answered."""
    folder = existing(folder)
    index = read_index(folder)
    ids = [entry["id"] for entry in index["cases"]]
    arrays = dict(answers) if isinstance(answers, Mapping) else load_arrays(answers)
    by_case: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        case, slash, rest = name.partition("/")
        if not slash:
            raise ValueError(f"answers have names like base/meta_grad.0.weight, got {name!r}")
        if case not in ids:
            raise unknown_name(case, ids, "case")
        by_case.setdefault(case, {})[rest] = unmasked(array, name)
    if not by_case:
        raise ValueError("there are no answers")
    unknown = 0
    for id in ids:
        if id not in by_case:
            yield id
            continue
        check_sums(folder, index["files"], id)
        result = _judged(folder / "cases" / id, id, by_case[id], diagnosed=unknown < MOST_UNKNOWN)
        unknown += result.examined and result.fault is None
        yield result


def _judged(folder: Path, id: str, answer: dict[str, Array], diagnosed: bool) -> CaseResult:
    case, tensors = read_case(folder)
    expected = _grouped(tensors, "expected.", case)
    given = _as_expected(id, answer, expected, case["parameter_order"])
    misfits = {
        name: relative(_flat(arrays), _flat(list(expected[name].values())))
        for name, arrays in given.items()
    }
    dtype = {
        name: "float32" if any(array.dtype == np.float32 for array in arrays) else "float64"
        for name, arrays in given.items()
    }
    allowed = {name: case["tolerance"][dtype[name]] for name in given}
    wrong = tuple(name for name, misfit in misfits.items() if not misfit <= allowed[name])
    if "meta_grad" not in wrong:
        return CaseResult(id, not wrong, misfits, wrong)
    gradient = _flat(given["meta_grad"])
    for word in case["acceptable"]:
        other = _grouped(tensors, f"acceptable.{word}.", case)["meta_grad"]
        if relative(gradient, _flat(list(other.values()))) <= allowed["meta_grad"]:
            return CaseResult(id, True, misfits, wrong, note=f"acceptable: {word}")
    if case["algorithm"] != "maml":
        found = _recognised(case, tensors, gradient, allowed["meta_grad"])
        return CaseResult(id, False, misfits, wrong, *found)
    if not diagnosed:
        return CaseResult(id, False, misfits, wrong, note="not looked into")
    fault, note = _explained(folder, case, tensors, gradient.astype(dtype["meta_grad"]))
    return CaseResult(id, False, misfits, wrong, fault, note, examined=case["order"] == 2)


def _recognised(
    case: dict[str, Any], tensors: dict[str, Array], gradient: Array, allowed: float
) -> tuple[str | None, str]:
    """The wrong answer of the case that it is; the doctor knows the mistakes of MAML alone."""
    for id, said in case["wrong"].items():
        wrong = _flat(list(_grouped(tensors, f"wrong.{id}.", case)["meta_grad"].values()))
        if relative(gradient, wrong) <= allowed:
            ties = ", ".join(said["same_as"])
            return id, f"or else {ties}" if ties else ""
    return None, "none of the wrong answers of the case"


def _explained(
    folder: Path, case: dict[str, Any], tensors: dict[str, Array], gradient: Array
) -> tuple[str | None, str]:
    """The mistake that makes the gradient, by the doctor."""
    found = diagnose(posed(folder, case, tensors), gradient)
    if case["order"] == 1:  # first order is no mistake, but what is right for the doctor is one
        if found.verdict == "pass":
            return SECOND_ORDER, ""
        ids = (found.fault or "").split(" + ")
        rest = " + ".join(id for id in ids if id != "first_order")
        return (rest, "") if rest and "first_order" in ids else (None, UNKNOWN)
    if found.verdict == "inconclusive":
        return None, "inconclusive"
    ties = f"or else {', '.join(found.ties)}" if found.ties else ""
    return found.fault, ties if found.fault else UNKNOWN


def _grouped(
    tensors: Mapping[str, Array], prefix: str, case: Mapping[str, Any]
) -> dict[str, dict[str, Array]]:
    """Tensors that begin with the prefix by what they are part of: meta_grad, phi, support_loss, ..."""
    blocks = list(case["parameter_order"])

    def place(name: str) -> tuple[str, str, int]:
        *stem, layer, kind = ["", *name.split(".")]
        block = f"{layer}.{kind}"
        if block in blocks:
            return _quantity(name), ".".join(stem), blocks.index(block)
        return _quantity(name), name, 0

    names = [name.removeprefix(prefix) for name in tensors if name.startswith(prefix)]
    return {
        quantity: {name: tensors[prefix + name] for name in group}
        for quantity, group in groupby(sorted(names, key=place), _quantity)
    }


def _quantity(name: str) -> str:
    return "phi" if name.startswith("task.") else name.split(".")[0]


def _as_expected(
    id: str,
    answer: dict[str, Array],
    expected: Mapping[str, Mapping[str, Array]],
    blocks: Sequence[str],
) -> dict[str, list[Array]]:
    """The arrays of an answer in the order of the expected ones, by quantity; checked."""
    given: dict[str, list[Array]] = {}
    for name in answer:
        if _quantity(name) not in expected:
            raise ValueError(f"{id}/{name} is no quantity of the suite: {', '.join(expected)}")
        if answer[name].dtype.kind not in "iuf" or answer[name].dtype == np.float16:
            raise ValueError(f"{id}/{name} must be float64 or float32, got {answer[name].dtype}")
    answered = set(map(_quantity, answer))
    for quantity in sorted(answered, key=lambda name: (name != "meta_grad", name)):
        wanted = expected[quantity]
        own = {name: array for name, array in answer.items() if _quantity(name) == quantity}
        if list(own) == [quantity] and f"{quantity}.{blocks[0]}" in wanted:  # one vector
            size = sum(array.size for array in wanted.values())
            if own[quantity].shape != (size,):
                raise ValueError(
                    f"{id}/{quantity} must have shape ({size},), got {own[quantity].shape}"
                )
            given[quantity] = [own[quantity]]
            continue
        for name in {**wanted, **own}:
            if name not in wanted or name not in own:
                raise ValueError(
                    f"{id} {'lacks' if name in wanted else 'has no'} {name}; {quantity} is "
                    f"{', '.join(list(wanted)[: len(blocks)])}{', ...' * (len(wanted) > len(blocks))}"
                )
            if own[name].shape != wanted[name].shape:
                raise ValueError(
                    f"{id}/{name} must have shape {wanted[name].shape}, got {own[name].shape}"
                )
        given[quantity] = [own[name] for name in wanted]
    return given


def _flat(arrays: Sequence[Array]) -> Array:
    return np.concatenate([array.reshape(-1).astype(np.float64) for array in arrays])
