"""One setting, in a process of its own: a request comes as JSON, answers go out a line each.

The request names the setting, the cases, the dtypes and the peers, and has the plan; the answers are
``{"environment": ...}`` and then a ``{"row": ...}`` for each case and dtype.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.settings import SETTINGS, available_cores

__all__ = ["answers"]


def answers(request: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Send a request to a new process; its answers, as they come.

    Raises
    ------
    RuntimeError
        If the process ends before its time.
    """
    setting = SETTINGS[request["setting"]]
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.child"],
        env=setting.environment(os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin as stdin:
                stdin.write(json.dumps(request))
            for line in process.stdout:
                yield from json.loads(line).items()
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise RuntimeError(f"the process for {setting.label} ended with status {process.returncode}")


def main() -> None:
    """Do what the request on standard input says."""
    request = json.load(sys.stdin)
    setting = SETTINGS[request["setting"]]
    setting.confine()
    # What libraries print goes to the standard error, where it cannot be mistaken for an answer.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(kind: str, content: Any) -> None:
        print(json.dumps({kind: content}, allow_nan=False), file=channel, flush=True)

    # From here on numeric libraries: they start their threads when they are imported.
    from benchmarks.cases import CASES, make_problem
    from benchmarks.machine import blas
    from benchmarks.peers import PEERS
    from benchmarks.runner import Plan, measure

    answer("environment", {**setting.in_force(), "blas": blas()})
    plan = Plan(**request["plan"], settle=setting.settle)
    peers = [PEERS[name] for name in request["peers"]]
    for case in request["cases"]:
        for dtype in request["dtypes"]:
            problem = make_problem(CASES[case], dtype)
            row = measure(problem, peers, plan, cores=len(available_cores()))
            answer("row", {"setting": setting.name, **row})


if __name__ == "__main__":
    main()
