"""What the commands do, from train to golden. :mod:`npmeta.cli.main` reads them."""

from npmeta.cli.commands.reference import (
    check,
    examine,
    golden_check,
    golden_list,
    golden_write,
    list_faults,
    list_names,
)
from npmeta.cli.commands.results import adapt_run, evaluate_run, plot_run, show_structure
from npmeta.cli.commands.train import resume_run, start_run
from npmeta.cli.commands.words import say

__all__ = [
    "adapt_run",
    "check",
    "evaluate_run",
    "examine",
    "golden_check",
    "golden_list",
    "golden_write",
    "list_faults",
    "list_names",
    "plot_run",
    "resume_run",
    "say",
    "show_structure",
    "start_run",
]
