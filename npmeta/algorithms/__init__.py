"""Meta-learning algorithms, one file each."""

from npmeta.algorithms.base import MetaGradient, Scores
from npmeta.algorithms.maml import MAML

__all__ = ["MAML", "MetaGradient", "Scores"]
