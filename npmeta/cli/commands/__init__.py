"""What the commands do, from train to golden. :mod:`npmeta.cli.main` reads them."""

from npmeta.cli.commands.reference import (
    check,
    describe,
    examine,
    golden_check,
    golden_list,
    golden_write,
    list_all,
    list_faults,
)
from npmeta.cli.commands.results import adapt_run, evaluate_run, plot_run, show_structure
from npmeta.cli.commands.train import resume_run, start_run
from npmeta.cli.commands.words import say

__all__ = [
    "adapt_run",
    "check",
    "describe",
    "evaluate_run",
    "examine",
    "golden_check",
    "golden_list",
    "golden_write",
    "list_all",
    "list_faults",
    "plot_run",
    "resume_run",
    "say",
    "show_structure",
    "start_run",
]
