"""``python -m benchmarks``: the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import benchmarks
from benchmarks import memory, pictures, report
from benchmarks.cases import CASES, DTYPES, QUICK, Case
from benchmarks.child import answers
from benchmarks.curves import CURVES
from benchmarks.machine import machine, versions
from benchmarks.peers import EVERYBODY, OURS, PEERS, REFERENCE
from benchmarks.settings import SETTINGS, USUAL
from benchmarks.training import ITERATIONS, Chunks

__all__ = ["main"]

TRAINING = "training"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and draw; the exit status is 1 if a peer disagreed or failed."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.list:
        print(_list())
        return 0
    if args.curves is not None and args.case:
        parser.error("--curves has cases of its own; leave --case out")
    try:
        if args.read is None:
            done = _measured(args)
        else:
            done = report.read_json(args.read)
            _print(done)
        if args.picture is not None:
            pictures.draw(done, args.picture)
    except (ImportError, OSError, ValueError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    wrong = [line for row in done["rows"] + done["training"] for line in report.problems(row)]
    if wrong:
        print("", *wrong, sep="\n")
    return 1 if wrong else 0


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    """Everything asked for, printed row by row, and written after every row."""
    plan = {
        "rounds": args.repeats or (3 if args.quick else 11),
        "turn": 0.02 if args.quick else 0.1,
        "row": 4.0 if args.quick else 30.0,
        "memory": memory.measurable() and not args.no_memory,
    }
    done: dict[str, Any] = {
        "format": report.FORMAT,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "plan": plan,
        "settings": {},
        "rows": [],
        "training": [],
    }

    def save() -> None:
        if args.json is not None:
            report.write_json(args.json, done)

    save()  # a path that cannot be written to had better be known now
    if args.picture is not None:
        pictures.check(args.picture)
    names = _names(args)
    columns = [REFERENCE.name, *(name for name in names if EVERYBODY[name].installed)]
    done["columns"] = columns
    _print(done)
    for request in _requests(args):
        for kind, content in answers({**request, "plan": plan, "peers": names}):
            if kind == "doing":
                _progress(content)
                continue
            _progress("")
            if kind == "environment":
                done["settings"][request["setting"]] = content
            elif kind == "row":
                content |= {key: value for key, value in request.items() if key in ("curve", "value")}
                done["rows"].append(content)
                print(report.format_row(content, columns), flush=True)
            else:
                done["training"].append(content)
                print(f"\n{report.format_training(content, ITERATIONS)}\n", flush=True)
            save()
    return done


def _names(args: argparse.Namespace) -> list[str]:
    """npmeta's other forms, and the peers."""
    if args.peer is None:
        default = ["jax"] if args.curves is not None else [n for n, p in PEERS.items() if p.by_default]
    else:
        default = list(PEERS) if "all" in args.peer else _chosen(args.peer, ())
    return [*(name for name in OURS if name != REFERENCE.name), *default]


def _requests(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One for each setting, or for each point of a curve."""
    if args.curves is not None:
        return [
            {
                "curve": name,
                "value": point.value,
                "setting": point.setting,
                "cases": [asdict(point.case)],
                "dtypes": _chosen(args.dtype, ("float32",)),
                "training": None,
            }
            for name in _chosen(args.curves, CURVES)
            for point in CURVES[name].points
        ]
    chosen = _chosen(args.case, [*(QUICK if args.quick else CASES), TRAINING])
    cases = [asdict(CASES[name]) for name in chosen if name != TRAINING]
    chunks = Chunks(3, 200) if args.quick else Chunks(11, 500)
    if args.full:
        chunks = Chunks(ITERATIONS // chunks.iterations, chunks.iterations)
    return [
        {
            "setting": setting,
            "cases": cases,
            "dtypes": _chosen(args.dtype, ("float32",) if args.quick else DTYPES),
            "training": chunks._asdict() if TRAINING in chosen else None,
        }
        for setting in _chosen(args.setting, USUAL)
    ]


def _print(done: dict[str, Any]) -> None:
    """The head of the table, and the rows there are."""
    print(report.format_machine(done["machine"], done["versions"]))
    print(
        "A meta-gradient: median milliseconds and MiB of extra peak memory. ratio: best peer / npmeta, "
        "above 1 npmeta\nneeds less. / limit: npmeta's time over that of the fewest operations at the "
        "rate of a matrix product"
    )
    print()
    print(report.format_header(done["columns"]))
    for row in done["rows"]:
        print(report.format_row(row, done["columns"]))
    for row in done["training"]:
        print(f"\n{report.format_training(row, ITERATIONS)}")


def _progress(doing: str) -> None:
    """One line that is written over, where somebody is watching."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{doing[:100]}", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def repeatable(option: str, names: Iterable[str], what: str) -> None:
        parser.add_argument(
            option, action="append", choices=[*names], metavar="NAME", help=f"{what}; repeatable"
        )

    parser.add_argument("--list", action="store_true", help="show cases, peers and curves, and stop")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{' and '.join(QUICK)}, 3 short rounds: less than two minutes on an idle machine",
    )
    repeatable("--case", [*CASES, TRAINING], "default: all, and the training run")
    repeatable("--peer", [*PEERS, "all"], "default: all but torch-compile; for curves jax")
    repeatable("--dtype", DTYPES, "default: both; for curves and --quick float32")
    repeatable("--setting", SETTINGS, "default: one-core and all-cores")
    parser.add_argument(
        "--repeats", type=_positive, metavar="N", help="rounds of everybody (default 11; 3 if quick)"
    )
    parser.add_argument(
        "--full", action="store_true", help=f"training: all {ITERATIONS:,} iterations of the paper"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument(
        "--curves",
        nargs="*",
        choices=CURVES,
        metavar="NAME",
        help=f"in the place of the table: time and memory against {', '.join(CURVES)}; default: all",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every sample")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw the table or the curves (needs matplotlib)"
    )
    parser.add_argument(
        "--read", type=Path, metavar="FILE", help="measure nothing: print and draw what --json kept"
    )
    return parser


def _chosen(asked_for: list[str] | None, otherwise: Iterable[str]) -> list[str]:
    """Each name once, in the order given."""
    return list(dict.fromkeys(asked_for or otherwise))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _list() -> str:
    def described(case: Case) -> str:
        return (
            f"  {case.name:<17}  {'-'.join(map(str, case.widths)):<21}  T {case.tasks:<4}  "
            f"K {case.support_rows:<2}  Q {case.query_rows:<2}  S {case.steps}  {case.loss}"
        )

    peers = [
        f"  {name:<17}  {'' if peer.installed else 'not installed; '}"
        f"{'by default' if peer.by_default else 'if asked for'}"
        for name, peer in PEERS.items()
    ]
    curves = [
        f"  {name:<17}  {', '.join(str(point.value) for point in curve.points)}"
        for name, curve in CURVES.items()
    ]
    cases = [*map(described, CASES.values()), f"  {TRAINING:<17}  the whole run of sine-1"]
    return "\n".join(["cases", *cases, "peers", *peers, "curves", *curves])


if __name__ == "__main__":
    sys.exit(main())
