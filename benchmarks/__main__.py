"""``python -m benchmarks``: the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import benchmarks
from benchmarks.cases import CASES, DTYPES, QUICK
from benchmarks.child import answers
from benchmarks.machine import machine, versions
from benchmarks.peers import PEERS
from benchmarks.report import format_header, format_machine, format_row, problems, write_json
from benchmarks.settings import SETTINGS

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status is 1 if a peer disagreed or failed."""
    args = _parser().parse_args(argv)
    if args.list:
        print(_list())
        return 0
    default = [name for name, peer in PEERS.items() if peer.by_default]
    names = list(PEERS) if "all" in (args.peer or []) else _chosen(args.peer, default)
    columns = [name for name in names if PEERS[name].installed]
    plan = {
        "rounds": args.repeats or (3 if args.quick else 11),
        "turn": 0.02 if args.quick else 0.1,
        "row": 4.0 if args.quick else 60.0,
    }
    request = {
        "cases": _chosen(args.case, QUICK if args.quick else CASES),
        "dtypes": _chosen(args.dtype, DTYPES),
        "peers": names,
        "plan": plan,
    }
    rows: list[dict[str, Any]] = []
    report: dict[str, Any] = {
        "format": "npmeta benchmark 1",
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "plan": plan,
        "settings": {},
        "rows": rows,
    }

    def save() -> None:
        if args.json is not None:
            write_json(args.json, report)

    save()  # a path that cannot be written to had better be known now
    print(format_machine(report["machine"], report["versions"]))
    print("Milliseconds a meta-gradient, medians; ratio: best peer / npmeta, above 1: npmeta is faster")
    print()
    print(format_header(columns))
    for setting in _chosen(args.setting, SETTINGS):
        for kind, content in answers({"setting": setting, **request}):
            if kind == "environment":
                report["settings"][setting] = content
            else:
                rows.append(content)
                print(format_row(content, columns), flush=True)
            save()
    wrong = [line for row in rows for line in problems(row)]
    if wrong:
        print("", *wrong, sep="\n")
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="show cases and peers, and stop")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{' and '.join(QUICK)}, 3 short rounds: about a minute on an idle machine",
    )
    parser.add_argument("--case", action="append", choices=CASES, metavar="NAME", help="repeatable")
    parser.add_argument(
        "--peer", action="append", choices=[*PEERS, "all"], metavar="NAME", help='repeatable; or "all"'
    )
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="default: both")
    parser.add_argument("--setting", action="append", choices=SETTINGS, help="default: both")
    parser.add_argument(
        "--repeats", type=_positive, metavar="N", help="rounds of everybody (default 11; 3 if quick)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every sample")
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
    cases = [
        f"  {case.name:<17}  {'-'.join(map(str, case.widths)):<21}  T {case.tasks:<4}  "
        f"K {case.support_rows:<2}  Q {case.query_rows:<2}  S {case.steps}  {case.loss}"
        for case in CASES.values()
    ]
    peers = [
        f"  {name:<17}  {'' if peer.installed else 'not installed; '}"
        f"{'by default' if peer.by_default else 'if asked for'}"
        for name, peer in PEERS.items()
    ]
    return "\n".join(["cases", *cases, "peers", *peers])


if __name__ == "__main__":
    sys.exit(main())
