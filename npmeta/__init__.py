"""npmeta: exact second-order meta-learning in NumPy.

Hand-written passes and Hessian-vector products of multilayer perceptrons, and from them the exact
meta-gradient of MAML, for batches of tasks on a CPU.
"""

from typing import TYPE_CHECKING, Any

from npmeta import algorithms, tasks
from npmeta.activations import Activation
from npmeta.algorithms import MAML, MetaGradient, Scores
from npmeta.found_structure import harden, structure_report
from npmeta.losses import Loss
from npmeta.mlp import MLP
from npmeta.objective import Linearization, Objective, Risk
from npmeta.structure import Structure
from npmeta.tasks import TaskBatch
from npmeta.training import evaluate, meta_train
from npmeta.vector_objectives import FunctionObjective, Quadratic

if TYPE_CHECKING:
    from npmeta import verification
    from npmeta.verification import Diagnosis, Problem, diagnose

__version__ = "0.1.0"

__all__ = [
    "MAML",
    "MLP",
    "Activation",
    "Diagnosis",
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


def __getattr__(name: str) -> Any:
    # What verifies takes as long to import as all the rest, and training does without it.
    if name in ("Diagnosis", "Problem", "diagnose", "verification"):
        import npmeta.verification as verification

        return verification if name == "verification" else getattr(verification, name)
    raise AttributeError(f"module 'npmeta' has no attribute {name!r}")
