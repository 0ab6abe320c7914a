"""A problem as a folder of files that any language can read, and answers to it.

A case is a folder with ``case.json``, which says what is to be computed, and ``tensors.npz``, which
has the numbers:

==================================  ============================================================
``theta.0.weight``                  W_1 ``(n_in, n_out)``; ``theta.0.bias``, ``theta.1.weight``, ...; of
                                    a normalised layer also ``theta.0.scale``, ``theta.0.shift``
``task.000.support.x``, ``.y``      of the first task; ``task.000.query.x``, ``task.001.support.x``, ...
==================================  ============================================================

An answer is an npz or safetensors file with ``meta_grad.0.weight``, ``meta_grad.0.bias``, ... or one
flat ``meta_grad``, and as much of the following as there is: ``phi`` (T, P) or (S + 1, T, P), or
``task.000.phi.003.0.weight`` and so on for every task and step; ``support_loss`` (T, S) or (T, S + 1);
``query_loss`` (T,), or ``meta_loss``, its mean. Before each name there may be that of a case:
``base/meta_grad``. :doc:`golden` lists what else a case of the golden vectors has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npmeta._support.files import write_atomically
from npmeta._support.reading import check_json, read_json
from npmeta._support.validation import Array, shown
from npmeta.algorithms import MAML
from npmeta.network.mlp import MLP
from npmeta.network.structure import Structure
from npmeta.tasks import TaskBatch
from npmeta.tasks.checks import PathLike, existing
from npmeta.verification.doctor.problem import Problem
from npmeta.verification.doctor.tensors import load_arrays, npz_bytes

NEEDED = ("widths", "activation", "inner_loss", "inner_lr", "inner_steps")
NORM = ("norm", "adapt_norm", "norm_sets")

#: Of what is read in case.json, as JSON has it; a case of somebody's own has not all of it.
CASE = {
    "widths?": [int],
    "activation?": (str, [str]),
    "structure?": {},
    "norm?": (None, str),
    "adapt_norm?": bool,
    "norm_sets?": int,
    "inner_loss?": str,
    "inner_lr?": (float, []),
    "inner_steps?": int,
    "inner_weight_decay?": float,
    "algorithm?": str,
    "order?": int,
    "parameter_order?": [str],
    "tolerance?": {"float32": float, "float64": float},
    "acceptable?": {},
    "wrong?": {"*": {"same_as": [str]}},
}

#: Inner steps of a case at most: each keeps its parameters.
MOST_STEPS = 10_000


def load_problem(folder: PathLike) -> Problem:
    """The problem of a case.

    Raises
    ------
    ValueError
        If a file or an entry is missing, or does not fit; or if the case is of another algorithm, or
        asks for the first-order gradient, which is one of the mistakes to be told apart.
    """
    case, tensors = read_case(folder)
    if case.get("algorithm", "maml") != "maml":
        raise ValueError(
            f"{folder} is a case of {case['algorithm']}, and the doctor knows the mistakes of maml "
            f"alone; npmeta golden check judges it"
        )
    if case.get("order", 2) != 2:
        raise ValueError(
            f"{folder} asks for the first-order gradient, which the doctor takes for a mistake; "
            f"npmeta golden check judges it"
        )
    return posed(folder, case, tensors)


def read_case(folder: PathLike) -> tuple[dict[str, Any], dict[str, Array]]:
    """What ``case.json`` says, and the tensors.

    Raises
    ------
    ValueError
        If one of the files is not there, or no such file.
    """
    folder = existing(folder)
    path = existing(folder / "case.json")
    case = read_json(path)
    check_json(case, CASE, str(path))
    if case.get("inner_steps", 0) > MOST_STEPS:
        raise ValueError(
            f"{path} has {case['inner_steps']} inner steps; at most {MOST_STEPS} are expected"
        )
    return case, load_arrays(folder / "tensors.npz")


def posed(folder: PathLike, case: dict[str, Any], tensors: dict[str, Array]) -> Problem:
    """The problem that a case poses, with exact second derivatives.

    Raises
    ------
    ValueError
        If an entry or a tensor is missing or does not fit; it names the folder.
    """
    try:
        return _posed(folder, case, tensors)
    except ValueError as error:
        said = str(error)
        raise ValueError(said if str(folder) in said else f"{folder}: {said}") from None


def _posed(folder: PathLike, case: dict[str, Any], tensors: dict[str, Array]) -> Problem:
    missing = [name for name in NEEDED if name not in case]
    if missing:
        raise ValueError(f"{Path(folder) / 'case.json'} has no {missing[0]!r}")
    file = Path(folder) / "tensors.npz"
    if "structure" in case:
        model = MLP(case["widths"], structure=Structure(**case["structure"]))
    else:
        norm = {name: case[name] for name in NORM if name in case}
        model = MLP(case["widths"], case["activation"], **norm)
    theta = _joined(tensors, "theta", model, file)
    parts = []
    for part in ("support.x", "support.y", "query.x", "query.y"):
        names = sorted(n for n in tensors if n.startswith("task.") and n.endswith(f".{part}"))
        if not names:
            raise ValueError(f"{file} has no task.000.{part}")
        parts.append(np.stack([tensors[name] for name in names]))
    maml = MAML(
        model,
        case["inner_loss"],
        case["inner_lr"],
        case["inner_steps"],
        inner_weight_decay=case.get("inner_weight_decay", 0.0),
    )
    return Problem(maml, theta, TaskBatch(*parts))


def save_problem(folder: PathLike, problem: Problem) -> None:
    """Write a case of a network with one of npmeta's own activations and losses.

    Raises
    ------
    ValueError
        If the problem has no network, or an activation or a loss of one's own, which no name would
        bring back.
    """
    if problem.risk is None:
        raise ValueError("only problems with a network have files")
    model, loss = problem.risk.model, problem.risk.loss
    functions = model.activations if model.structure is None else model.structure.functions
    named = [("activation", f.name, f.is_ours) for f in functions] + [("loss", loss.name, loss.is_ours)]
    for kind, name, is_ours in named:
        if not is_ours:
            raise ValueError(
                f"a file has names of npmeta's own functions alone, and the {kind} {shown(name)} is "
                "none of them"
            )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "tensors.npz", npz_bytes(tensors_of(problem)))
    write_atomically(folder / "case.json", json.dumps(described(problem), indent=1) + "\n")


def described(problem: Problem) -> dict[str, Any]:
    """What ``case.json`` has to say of a problem."""
    assert problem.risk is not None
    model = problem.risk.model
    between: dict[str, Any] = {}
    if model.norm is not None:
        between = {name: getattr(model, name) for name in NORM}
    if model.structure is not None:
        between = {"structure": structure_of(model.structure)}
    return {
        "widths": list(model.widths),
        "activation": [f.name for f in model.activations],
        **between,
        "inner_loss": problem.risk.loss.name,
        "inner_lr": np.asarray(problem.maml.inner_lr).tolist(),
        "inner_steps": problem.S,
        "inner_weight_decay": problem.maml.inner_weight_decay,
        "layout": "in_out",
        "parameter_order": list(problem.blocks),
    }


def structure_of(structure: Structure) -> dict[str, Any]:
    """What makes it again."""
    return {
        "candidates": list(structure.names),
        "gates": structure.gates,
        "adapt": structure.adapt,
    }


def tensors_of(problem: Problem) -> dict[str, Array]:
    """θ and the tasks by name."""
    assert problem.model is not None
    return named_arrays("theta", problem.model, problem.theta) | task_arrays(problem.tasks)


def task_arrays(tasks: TaskBatch) -> dict[str, Array]:
    """The tasks by name."""
    return {
        f"task.{t:03}.{part}.{name}": getattr(tasks, f"{part}_{name}")[t]
        for t in range(len(tasks))
        for part in ("support", "query")
        for name in ("x", "y")
    }


def named_arrays(prefix: str, model: MLP, vector: Array) -> dict[str, Array]:
    """A vector ``(P,)`` as ``prefix.0.weight``, ``prefix.0.bias``, ..."""
    arrays: dict[str, Array] = {}
    for l, layer in enumerate(model.unpack(vector)):
        names = (f"{prefix}.{l}.{name}" for name in model.shapes[l])
        arrays |= zip(names, layer, strict=True)
    return arrays


class Answers(NamedTuple):
    """What somebody has computed; the arguments of :func:`npmeta.diagnose` after the problem."""

    gradient: Any
    phi: Array | None
    losses: dict[str, Array] | None


def load_answers(
    path: PathLike, problem: Problem, phi: PathLike | None = None, case: str = ""
) -> Answers:
    """Answers from an npz or safetensors file, and φ from another (or from npy) if it is not in there.

    Where names begin with that of a case and a slash, only those of ``case`` count.

    Raises
    ------
    ValueError
        If there is no gradient in it, or a file cannot be read.
    """
    if Path(path).suffix == ".npy":
        raise ValueError(f"{path} is one array without a name; save it as npz, with the name meta_grad")
    arrays = of_case(load_arrays(path), case)
    named = {n.removeprefix("meta_grad."): a for n, a in arrays.items() if n.startswith("meta_grad.")}
    if not named and "meta_grad" not in arrays:
        near = ", ".join(sorted(arrays)[:6]) or "nothing"
        raise ValueError(f"{path} has neither meta_grad nor meta_grad.0.weight, ...; it has {near}")
    losses: dict[str, Array] = {}
    for name, key in (("support", "support_loss"), ("query", "query_loss"), ("query", "meta_loss")):
        if key in arrays:
            losses.setdefault(name, arrays[key])
    adapted = _phi(arrays if phi is None else of_case(load_arrays(phi), case), problem, phi or path)
    if phi is not None and adapted is None:
        raise ValueError(f"{phi} has neither phi nor task.000.phi.000.0.weight, ...")
    return Answers(named or arrays["meta_grad"], adapted, losses or None)


def of_case(arrays: dict[str, Array], case: str) -> dict[str, Array]:
    """The arrays whose name begins with that of the case, without it; all if none does."""
    own = {n.removeprefix(f"{case}/"): a for n, a in arrays.items() if n.startswith(f"{case}/")}
    return own or arrays


def _phi(arrays: dict[str, Array], problem: Problem, path: PathLike) -> Array | None:
    if "phi" in arrays:
        return arrays["phi"]
    steps = sorted({n.split(".")[3] for n in arrays if n.startswith("task.000.phi.")})
    if not steps or problem.model is None:
        return None
    points = [
        [_joined(arrays, f"task.{t:03}.phi.{s}", problem.model, path) for t in range(problem.T)]
        for s in steps
    ]
    # One step alone is the last.
    return np.array(points[0] if len(points) == 1 else points)


def _joined(arrays: dict[str, Array], prefix: str, model: MLP, path: PathLike) -> Array:
    """``prefix.0.weight``, ``prefix.0.bias``, ... as one vector."""
    layers = []
    for l, shapes in enumerate(model.shapes):
        names = [f"{prefix}.{l}.{name}" for name in shapes]
        for name in names:
            if name not in arrays:
                raise ValueError(f"{path} has no {name}")
        layers.append([arrays[name] for name in names])
    return model.pack(layers)
