"""Task distributions: every task is a function of (seed, iteration, index)."""

from npmeta.tasks.batch import TaskBatch
from npmeta.tasks.sinusoid import Sinusoid

__all__ = ["Sinusoid", "TaskBatch"]
