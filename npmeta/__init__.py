"""npmeta: exact second-order meta-learning in NumPy.

Hand-written passes and Hessian-vector products of multilayer perceptrons, and from them the exact
meta-gradient of MAML, for batches of tasks on a CPU.
"""

from npmeta import algorithms, tasks, verification
from npmeta.activations import Activation
from npmeta.algorithms import (
    MAML,
    MatchingNetwork,
    MetaGradient,
    PrototypicalNetwork,
    RelationNetwork,
    RidgeHead,
    Scores,
    SiameseNetwork,
)
from npmeta.losses import Loss
from npmeta.mlp import MLP
from npmeta.objective import Linearization, Objective, Risk
from npmeta.tasks import TaskBatch
from npmeta.training import evaluate, meta_train
from npmeta.vector_objectives import FunctionObjective, Quadratic
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
    "MatchingNetwork",
    "MetaGradient",
    "Objective",
    "Problem",
    "PrototypicalNetwork",
    "Quadratic",
    "RelationNetwork",
    "RidgeHead",
    "Risk",
    "Scores",
    "SiameseNetwork",
    "TaskBatch",
    "__version__",
    "algorithms",
    "diagnose",
    "evaluate",
    "meta_train",
    "tasks",
    "verification",
]
