"""Task distributions: every task is a function of (seed, iteration, index)."""

from npmeta.tasks.batch import TaskBatch
from npmeta.tasks.omniglot import Omniglot, read_image
from npmeta.tasks.sinusoid import Sinusoid
from npmeta.tasks.table import Encoding, Table, read_rows

__all__ = ["Encoding", "Omniglot", "Sinusoid", "Table", "TaskBatch", "read_image", "read_rows"]
