"""npmeta: exact second-order meta-learning in NumPy.

Hand-written passes and Hessian-vector products of multilayer perceptrons, and from them the exact
meta-gradient of MAML, for batches of tasks on a CPU.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from npmeta._support.version import __version__

if TYPE_CHECKING:
    from npmeta import algorithms, tasks, verification
    from npmeta._support.validation import DivergedError
    from npmeta.algorithms import MAML, MetaGradient, Scores
    from npmeta.algorithms.found_structure import harden, structure_report
    from npmeta.bilevel.objective import Linearization, Objective, Risk
    from npmeta.bilevel.vector_objectives import FunctionObjective, Quadratic
    from npmeta.network.activations import Activation
    from npmeta.network.losses import Loss
    from npmeta.network.mlp import MLP
    from npmeta.network.structure import Structure
    from npmeta.tasks import TaskBatch
    from npmeta.training.loop import evaluate, meta_train
    from npmeta.verification import Diagnosis, Problem, diagnose

__all__ = [
    "MAML",
    "MLP",
    "Activation",
    "Diagnosis",
    "DivergedError",
    "FunctionObjective",
    "Linearization",
    "Loss",
    "MetaGradient",
    "Objective",
    "Problem",
    "Quadratic",
    "Risk",
    "Scores",
    "Structure",
    "TaskBatch",
    "__version__",
    "algorithms",
    "diagnose",
    "evaluate",
    "harden",
    "meta_train",
    "structure_report",
    "tasks",
    "verification",
]

#: Where the names above are defined. They are imported when they are first asked for: training does
#: without what verifies, and the program has its signals in order before it imports much.
_HOMES = {
    "_support.validation": ("DivergedError",),
    "algorithms": ("MAML", "MetaGradient", "Scores"),
    "algorithms.found_structure": ("harden", "structure_report"),
    "bilevel.objective": ("Linearization", "Objective", "Risk"),
    "bilevel.vector_objectives": ("FunctionObjective", "Quadratic"),
    "network.activations": ("Activation",),
    "network.losses": ("Loss",),
    "network.mlp": ("MLP",),
    "network.structure": ("Structure",),
    "tasks": ("TaskBatch",),
    "training.loop": ("evaluate", "meta_train"),
    "verification": ("Diagnosis", "Problem", "diagnose"),
}

#: Modules that are looked for here, though they have a room: ``nm.losses``.
_ROOMS = {"network": ("activations", "distances", "losses"), "bilevel": ("optimizers",)}


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    room = next((f"{room}." for room, names in _ROOMS.items() if name in names), "")
    found: Any
    if home is not None:
        found = getattr(import_module(f"npmeta.{home}"), name)
    elif not name.startswith("_") and find_spec(f"npmeta.{room}{name}") is not None:
        found = import_module(f"npmeta.{room}{name}")
    else:
        raise AttributeError(f"module 'npmeta' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
