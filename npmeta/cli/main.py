"""The command line: ``npmeta train | evaluate | adapt | plot | structure | list | check | ...``."""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from npmeta import __version__
from npmeta._support import signals as _signals
from npmeta._support.options import Option
from npmeta._support.output import Lasting, lasting_streams, one_line
from npmeta._support.validation import DivergedError, nearest, unknown_name
from npmeta.algorithms.registry import ALGORITHMS
from npmeta.tasks.registry import KINDS, PRESETS, SIZES, preset
from npmeta.training.config import Config
from npmeta.training.options import OPTIONS
from npmeta.training.pool import WorkersError

__all__ = ["main"]


#: What is said in one line: input that is wrong, and a machine that has too little of something.
EXPECTED = (
    ValueError,
    ImportError,
    OSError,
    MemoryError,
    OverflowError,
    RecursionError,
    WorkersError,
)


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors that name the nearest known word."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # What is a value and no option though it begins with a dash: argparse leaves out -1e0.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise unknown_name(value, [str(choice) for choice in action.choices], action.dest)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        own = list(self._option_string_actions)
        if words and words[0].startswith("-") and words[0] not in own:
            # Else it would be the command that is missed.
            if any(
                words[0].split("=")[0] in p._option_string_actions for p in _commands(self).values()
            ):
                raise ValueError(f"{words[0]} goes after the command: npmeta COMMAND {words[0]}")
            raise _unknown_argument(words[0], own)
        parsed, extra = self.parse_known_args(words, namespace)
        if extra:
            raise _unknown_argument(extra[0], _words(self, parsed))
        return parsed


def _unknown_argument(word: str, known: list[str]) -> ValueError:
    near = nearest(word.split("=")[0], known)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    return ValueError(f"unknown argument {word!r}{hint}")


def _words(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> list[str]:
    """Every option that the command that was called knows."""
    parser = _commands(parser).get(getattr(parsed, "command", None), parser)
    return list(parser._option_string_actions)


def _commands(parser: argparse.ArgumentParser) -> dict[str | None, argparse.ArgumentParser]:
    """The parsers of the commands, by name."""
    found: dict[str | None, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(action.choices)
    return found


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="npmeta",
        description="Exact second-order meta-learning in NumPy.",
        epilog="npmeta COMMAND --help lists a command's options. With NPMETA_TRACEBACK=1 in the "
        "environment, an error shows where in npmeta it arose.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"npmeta {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_train(commands)

    evaluate = commands.add_parser(
        "evaluate", help="score a run on tasks it has not met", allow_abbrev=False
    )
    evaluate.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    evaluate.add_argument("--tasks", type=_whole, metavar="N", help="tasks (default: the run's 600)")
    evaluate.add_argument("--steps", type=_whole, metavar="S", help="inner steps (default: the run's)")
    evaluate.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        metavar="SPLIT",
        help="train, validation or test (the default)",
    )
    evaluate.add_argument("--seed", type=_whole, metavar="N", help="of the tasks (default: the run's)")
    evaluate.add_argument("--json", metavar="FILE", help="write the scores as JSON ('-': print them)")
    evaluate.add_argument("--data", metavar="PATH", help="score on other data, all of its classes")
    for size in SIZES:
        evaluate.add_argument(
            f"--{size}", type=_whole, metavar="N", help=f"{size} of a task (default: the run's)"
        )
    _add_workers(evaluate)

    adapt = commands.add_parser(
        "adapt", help="adapt a run to your own examples and predict", allow_abbrev=False
    )
    adapt.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    adapt.add_argument(
        "--support", metavar="CSV", type=Path, required=True, help="examples with targets"
    )
    adapt.add_argument("--query", metavar="CSV", type=Path, required=True, help="rows to predict")
    adapt.add_argument(
        "--steps", type=_whole, metavar="S", help="inner steps (default: the run's eval_steps)"
    )
    adapt.add_argument("--out", metavar="CSV", type=Path, help="default: standard output")

    plot = commands.add_parser("plot", help="draw a run's pictures again", allow_abbrev=False)
    plot.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    plot.add_argument("--out", metavar="FOLDER", type=Path, help="default: the run's folder")

    structure = commands.add_parser(
        "structure", help="show the structure that a run has learned", allow_abbrev=False
    )
    structure.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    structure.add_argument("--tasks", type=_whole, metavar="N", help="tasks (default: the run's 600)")
    structure.add_argument("--steps", type=_whole, metavar="S", help="inner steps (default: the run's)")
    structure.add_argument("--picture", metavar="PNG", type=Path, help="draw mixtures and gates")

    shown = commands.add_parser(
        "list", help="show algorithms, tasks, presets, activations and losses", allow_abbrev=False
    )
    shown.add_argument(
        "algorithm",
        metavar="ALGORITHM",
        nargs="?",
        choices=tuple(ALGORITHMS),
        help="show the options of one, with its defaults",
    )

    check = commands.add_parser(
        "check", help="verify npmeta's derivatives on this machine", allow_abbrev=False
    )
    check.add_argument("--plot", metavar="FILE", type=Path, help="draw Taylor's remainders too")

    doctor = commands.add_parser(
        "doctor",
        help="name the mistake that made a meta-gradient wrong",
        usage="npmeta doctor CASE ANSWERS [--phi FILE] [--picture PNG]\n       npmeta doctor --list",
        allow_abbrev=False,
    )
    doctor.add_argument(
        "case", metavar="CASE", nargs="?", type=Path, help="folder with case.json and tensors.npz"
    )
    doctor.add_argument(
        "answers",
        metavar="ANSWERS",
        nargs="?",
        type=Path,
        help="npz or safetensors with meta_grad, or meta_grad.0.weight, ...; and phi, support_loss, "
        "query_loss",
    )
    doctor.add_argument("--phi", metavar="FILE", type=Path, help="adapted parameters, npz or npy")
    doctor.add_argument("--picture", metavar="PNG", type=Path, help="draw where the gradient differs")
    doctor.add_argument("--list", action="store_true", help="show every mistake that is known")

    golden = commands.add_parser(
        "golden",
        help="write golden vectors, and judge answers to them",
        usage="npmeta golden write DIR\n       npmeta golden list\n"
        "       npmeta golden check DIR ANSWERS",
        allow_abbrev=False,
    )
    golden.add_argument(
        "action", metavar="ACTION", choices=("write", "list", "check"), help="what to do"
    )
    golden.add_argument("folder", metavar="DIR", nargs="?", type=Path, help="folder of the suite")
    golden.add_argument(
        "answers", metavar="ANSWERS", nargs="?", type=Path, help="npz or safetensors with answers"
    )
    return parser


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="meta-train a network",
        usage="npmeta train TASK [options]\n       npmeta train --resume RUN",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=100),
        epilog="Values come from the command line, then --config, then --preset, then the defaults.",
    )
    train.add_argument("task", nargs="?", metavar="TASK", choices=KINDS, help=", ".join(KINDS))
    where = train.add_argument_group("the run")
    where.add_argument("--out", metavar="FOLDER", type=Path, help="default: runs/TASK-N")
    where.add_argument(
        "--resume",
        metavar="RUN",
        nargs="?",
        type=Path,
        const=True,  # no path is equal to it
        help="go on with a run (without a value: the one in --out)",
    )
    where.add_argument("--config", metavar="TOML", type=Path, help="a file of options")
    where.add_argument("--preset", metavar="NAME", help=f"published settings: {', '.join(PRESETS)}")
    _add_workers(where)
    groups: dict[str, Any] = {}
    for option in OPTIONS:
        title = option.section or "everything"
        if title not in groups:
            groups[title] = train.add_argument_group(title)
        _add_option(groups[title], option)


def _add_workers(group: Any) -> None:
    group.add_argument(
        "--workers",
        metavar="N",
        type=_count,
        default=1,
        help="processes that share the work; the result is the same bit for bit (default: 1)",
    )


def _add_option(group: Any, option: Option) -> None:
    flag = "--" + option.name.replace("_", "-")
    text = option.help.replace("%", "%%")
    if option.kind is bool:
        group.add_argument(
            flag, dest=option.name, action=argparse.BooleanOptionalAction, default=None, help=text
        )
        return
    convert = {int: _whole, float: _number, str: str}[option.kind]
    group.add_argument(
        flag,
        dest=option.name,
        type=convert,
        nargs="*" if option.length else None,
        metavar=_metavar(option),
        help=text,
    )


def _metavar(option: Option) -> str:
    """The choices where they are few, else a letter for the kind of value."""
    if 0 < len(option.choices) <= 3:
        return "|".join(option.choices)
    return {int: "N", float: "X", str: "TEXT"}[option.kind]


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def _count(text: str) -> int:
    count = _whole(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {count}")
    return count


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def _train(args: argparse.Namespace) -> int:
    from npmeta.cli import commands

    flags = {
        option.name: getattr(args, option.name)
        for option in OPTIONS
        if getattr(args, option.name) is not None
    }
    if args.resume is not None:
        folder = args.out if args.resume is True else args.resume
        if folder is None:
            raise ValueError("--resume needs the folder of a run: --resume RUN")
        if args.out is not None and args.out.resolve() != folder.resolve():
            raise ValueError(f"a run goes on in its own folder, {folder}; leave out --out")
        if args.config or args.preset:
            raise ValueError("a run goes on with its own config.toml; leave out --config and --preset")
        return commands.resume_run(folder, args.task, flags, args.workers)
    task: str | None = args.task
    from_file: dict[str, Any] = {}
    if args.config:
        named, from_file = Config.read_toml(args.config)
        if task is not None and named is not None and task != named:
            raise ValueError(f"{args.config} is of {named}, not of {task}")
        task = task or named
        if "data" in flags:  # the file's checksum is that of the file's data
            from_file.pop("checksum", None)
    if task is None:
        raise ValueError(f"train needs a task: {', '.join(KINDS)}")
    chosen = preset(args.preset, task) if args.preset else {}
    try:
        config = Config(task, chosen, from_file, flags)
    except ValueError as error:
        raise ValueError(f"with {args.config}: {error}" if args.config else str(error)) from None
    return commands.start_run(config, args.out, args.workers)


def _doctor(args: argparse.Namespace) -> int:
    from npmeta.cli import commands

    if args.list:
        if args.case or args.phi or args.picture:
            raise ValueError("--list shows all mistakes; leave out everything else")
        return commands.list_faults()
    if args.answers is None:
        raise ValueError("doctor needs a case and answers: npmeta doctor CASE ANSWERS, or --list")
    return commands.examine(args.case, args.answers, args.phi, args.picture)


def _golden(args: argparse.Namespace) -> int:
    from npmeta.cli import commands

    given = [path for path in (args.folder, args.answers) if path is not None]
    wanted = {"write": ["DIR"], "list": [], "check": ["DIR", "ANSWERS"]}[args.action]
    if len(given) != len(wanted):
        raise ValueError(f"the command is: npmeta golden {' '.join([args.action, *wanted])}")
    if args.action == "list":
        return commands.golden_list()
    if args.action == "write":
        return commands.golden_write(args.folder)
    return commands.golden_check(args.folder, args.answers)


def _run(argv: Sequence[str] | None) -> int:
    args = _make_parser().parse_args(argv)
    if args.command == "train":
        return _train(args)
    from npmeta.cli import commands

    if args.command == "evaluate":
        return commands.evaluate_run(
            args.run,
            n_tasks=args.tasks,
            steps=args.steps,
            split=args.split,
            seed=args.seed,
            json_file=args.json,
            data=args.data,
            sizes={name: n for name in SIZES if (n := getattr(args, name)) is not None},
            workers=args.workers,
        )
    if args.command == "adapt":
        return commands.adapt_run(
            args.run, support=args.support, query=args.query, steps=args.steps, out=args.out
        )
    if args.command == "structure":
        return commands.show_structure(
            args.run, n_tasks=args.tasks, steps=args.steps, picture=args.picture
        )
    if args.command == "list":
        return commands.list_all() if args.algorithm is None else commands.describe(args.algorithm)
    if args.command == "check":
        return commands.check(args.plot)
    if args.command == "doctor":
        return _doctor(args)
    if args.command == "golden":
        return _golden(args)
    return commands.plot_run(args.run, args.out)


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
