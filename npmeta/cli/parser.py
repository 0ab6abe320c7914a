"""The words of the command line: every command, its arguments and its help."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

from npmeta._support.options import Option
from npmeta._support.validation import nearest, unknown_name
from npmeta._support.version import __version__
from npmeta.algorithms.registry import ALGORITHMS
from npmeta.tasks.draws import SPLITS
from npmeta.tasks.registry import KINDS, PRESETS, SIZES
from npmeta.training.options import OPTIONS


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


def make_parser() -> argparse.ArgumentParser:
    """What reads the command line; the names that it gives are those that the commands take."""
    parser = _Parser(
        prog="npmeta",
        description="Exact second-order meta-learning in NumPy.",
        epilog="npmeta COMMAND --help lists a command's options. With NPMETA_TRACEBACK=1 in the "
        "environment, an error shows where in npmeta it arose.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"npmeta {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, *, of_run: bool = False, **options: Any) -> Any:
        made = commands.add_parser(name, help=text, allow_abbrev=False, **options)
        if of_run:
            made.add_argument("folder", metavar="RUN", type=Path, help="the run's folder")
        return made

    def steps(made: Any, default: str = "the run's") -> None:
        text = f"inner steps (default: {default})"
        made.add_argument("--steps", type=_whole, metavar="S", help=text)

    def tasks(made: Any) -> None:
        text = "tasks (default: the run's 600)"
        made.add_argument("--tasks", dest="n_tasks", type=_whole, metavar="N", help=text)

    train = command(
        "train",
        "meta-train a network",
        usage="npmeta train TASK [options]\n       npmeta train --resume RUN",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=100),
        epilog="Values come from the command line, then --config, then --preset, then the defaults.",
    )
    _add_train(train)

    evaluate = command("evaluate", "score a run on tasks it has not met", of_run=True)
    tasks(evaluate)
    steps(evaluate)
    evaluate.add_argument(
        "--split",
        choices=tuple(SPLITS),
        metavar="SPLIT",
        help="train, validation or test (the default)",
    )
    evaluate.add_argument("--seed", type=_whole, metavar="N", help="of the tasks (default: the run's)")
    evaluate.add_argument(
        "--json", dest="json_file", metavar="FILE", help="write the scores as JSON ('-': print them)"
    )
    evaluate.add_argument("--data", metavar="PATH", help="score on other data, all of its classes")
    for size in SIZES:
        evaluate.add_argument(
            f"--{size}", type=_whole, metavar="N", help=f"{size} of a task (default: the run's)"
        )
    _add_workers(evaluate)

    adapt = command("adapt", "adapt a run to your own examples and predict", of_run=True)
    adapt.add_argument(
        "--support", metavar="CSV", type=Path, required=True, help="examples with targets"
    )
    adapt.add_argument("--query", metavar="CSV", type=Path, required=True, help="rows to predict")
    steps(adapt, "the run's eval_steps")
    adapt.add_argument("--out", metavar="CSV", type=Path, help="default: standard output")

    plot = command("plot", "draw a run's pictures again", of_run=True)
    plot.add_argument("--out", metavar="FOLDER", type=Path, help="default: the run's folder")

    structure = command("structure", "show the structure that a run has learned", of_run=True)
    tasks(structure)
    steps(structure)
    structure.add_argument("--picture", metavar="PNG", type=Path, help="draw mixtures and gates")

    command("list", "show algorithms, tasks, presets, activations and losses").add_argument(
        "algorithm",
        metavar="ALGORITHM",
        nargs="?",
        choices=tuple(ALGORITHMS),
        help="show the options of one, with its defaults",
    )

    check = command("check", "verify npmeta's derivatives on this machine")
    check.add_argument(
        "--plot", dest="picture", metavar="FILE", type=Path, help="draw Taylor's remainders too"
    )

    doctor = command(
        "doctor",
        "name the mistake that made a meta-gradient wrong",
        usage="npmeta doctor CASE ANSWERS [--phi FILE] [--picture PNG]\n       npmeta doctor --list",
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
    doctor.add_argument(
        "--list", dest="faults", action="store_true", help="show every mistake that is known"
    )

    golden = command(
        "golden",
        "write golden vectors, and judge answers to them",
        usage="npmeta golden write DIR\n       npmeta golden list\n"
        "       npmeta golden check DIR ANSWERS",
    )
    golden.add_argument(
        "action", metavar="ACTION", choices=("write", "list", "check"), help="what to do"
    )
    golden.add_argument("folder", metavar="DIR", nargs="?", type=Path, help="folder of the suite")
    golden.add_argument(
        "answers", metavar="ANSWERS", nargs="?", type=Path, help="npz or safetensors with answers"
    )
    return parser


def _add_train(train: Any) -> None:
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
