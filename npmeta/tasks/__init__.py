"""Task distributions: every task is a function of (seed, iteration, index)."""

from npmeta.tasks.batch import TaskBatch
from npmeta.tasks.drawings import read_image
from npmeta.tasks.encoding import Encoding
from npmeta.tasks.omniglot import Omniglot
from npmeta.tasks.sinusoid import Sinusoid
from npmeta.tasks.table import Table, read_rows

__all__ = ["Encoding", "Omniglot", "Sinusoid", "Table", "TaskBatch", "read_image", "read_rows"]
