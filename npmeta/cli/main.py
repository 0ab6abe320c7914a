"""The command line: ``npmeta train | evaluate | adapt | plot | structure | list | check | ...``."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from npmeta._support import signals as _signals
from npmeta._support.output import Lasting, lasting_streams, one_line
from npmeta._support.validation import DivergedError
from npmeta.cli.parser import make_parser
from npmeta.tasks.registry import KINDS
from npmeta.tasks.registry import preset as values_of_preset
from npmeta.training.config import Config
from npmeta.training.pool import WorkersError

#: What is said in one line: input that is wrong, and a machine that has too little of something.
EXPECTED = (ValueError, ImportError, OSError, MemoryError, OverflowError, RecursionError, WorkersError)


def _train(
    task: str | None,
    out: Path | None,
    resume: Path | bool | None,
    config: Path | None,
    preset: str | None,
    workers: int,
    **options: Any,
) -> int:
    from npmeta.cli import commands

    flags = {name: value for name, value in options.items() if value is not None}
    if resume is not None:
        folder = out if isinstance(resume, bool) else resume
        if folder is None:
            raise ValueError("--resume needs the folder of a run: --resume RUN")
        if out is not None and out.resolve() != folder.resolve():
            raise ValueError(f"a run goes on in its own folder, {folder}; leave out --out")
        if config or preset:
            raise ValueError("a run goes on with its own config.toml; leave out --config and --preset")
        return commands.resume_run(folder, task, flags, workers)
    from_file: dict[str, Any] = {}
    if config:
        named, from_file = Config.read_toml(config)
        if task is not None and named is not None and task != named:
            raise ValueError(f"{config} is of {named}, not of {task}")
        task = task or named
        if "data" in flags:  # the file's checksum is that of the file's data
            from_file.pop("checksum", None)
    if task is None:
        raise ValueError(f"train needs a task: {', '.join(KINDS)}")
    chosen = values_of_preset(preset, task) if preset else {}
    try:
        made = Config(task, chosen, from_file, flags)
    except ValueError as error:
        raise ValueError(f"with {config}: {error}" if config else str(error)) from None
    return commands.start_run(made, out, workers)


def _doctor(
    case: Path, answers: Path | None, phi: Path | None, picture: Path | None, faults: bool
) -> int:
    from npmeta.cli import commands

    if faults:
        if case or phi or picture:
            raise ValueError("--list shows all mistakes; leave out everything else")
        return commands.list_faults()
    if answers is None:
        raise ValueError("doctor needs a case and answers: npmeta doctor CASE ANSWERS, or --list")
    return commands.examine(case, answers, phi, picture)


def _golden(action: str, folder: Path | None, answers: Path | None) -> int:
    from npmeta.cli import commands

    given = [path for path in (folder, answers) if path is not None]
    wanted = {"write": ["DIR"], "list": [], "check": ["DIR", "ANSWERS"]}[action]
    if len(given) != len(wanted):
        raise ValueError(f"the command is: npmeta golden {' '.join([action, *wanted])}")
    command: Callable[..., int] = getattr(commands, f"golden_{action}")
    return command(*given)


def _run(argv: Sequence[str] | None) -> int:
    args = vars(make_parser().parse_args(argv))
    from npmeta.cli import commands

    run: dict[str, Callable[..., int]] = {
        "train": _train,
        "evaluate": commands.evaluate_run,
        "adapt": commands.adapt_run,
        "plot": commands.plot_run,
        "structure": commands.show_structure,
        "list": commands.list_names,
        "check": commands.check,
        "doctor": _doctor,
        "golden": _golden,
    }
    return run[args.pop("command")](**args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Streams, signals and warnings are as they were when it returns.

    Returns
    -------
    int
        0 if all went well; 1 if training met a loss that is not finite, a task of a test or the rows to
        be predicted diverged, a check failed, or the doctor or ``golden check`` did not find an answer
        right; 2 if the command or its input is wrong, or its output was lost, but not because a reader
        left early; 128 + n after signal n: 130 after Ctrl-C, 143 after a request to terminate, 129 when
        the terminal is gone.
    """
    with lasting_streams() as out, _signals.raised() as came, _warnings_in_one_line():
        try:
            try:
                status = _run(argv)
            finally:
                out.flush()
        except BrokenPipeError:  # of a file that was named: its reader has seen enough
            status = 0
        except SystemExit as end:  # after --help or --version
            status = int(end.code or 0)
        except KeyboardInterrupt as stop:
            came.append(_signals.number_of(stop))
        except EXPECTED as error:
            if os.environ.get("NPMETA_TRACEBACK"):
                raise
            status = 2
            if not came:
                _say_error(error)
        except DivergedError as error:
            status = 1
            _say(f"npmeta: {one_line(error)}")
        if came:  # also where an import that it broke off has made another error of it
            _say(f"npmeta: {_signals.asked_to_end(came[-1])}")
            return 128 + came[-1]
        if out.lost is not None:
            _say(f"npmeta: error: standard output is not complete: {out.lost}")
            return 2
    return status


def _say(message: str) -> None:
    print(message, file=Lasting(sys.stderr), flush=True)


def _say_error(error: Exception) -> None:
    said = ValueError | ImportError | OSError | WorkersError
    kind = "" if isinstance(error, said) else f"{type(error).__name__} "
    _say(f"npmeta: error: {one_line(f'{kind}{error}')}")


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    def show(message: Warning | str, *where: Any, **also: Any) -> None:
        _say(f"npmeta: warning: {one_line(message)}")

    before, warnings.showwarning = warnings.showwarning, show
    try:
        yield
    finally:
        warnings.showwarning = before
