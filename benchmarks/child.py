"""One setting, in a process of its own: a request comes as JSON, answers go out a line each.

The request names the setting, the dtypes and the peers, and has cases, the plan and, where there is to
be training, its chunks. The answers are ``{"environment": ...}`` and then a ``{"row": ...}`` for each
case and dtype, a ``{"training": ...}``, and before every piece of work ``{"doing": ...}``.
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
    from benchmarks.cases import Case, make_problem
    from benchmarks.limit import matrix_product_rate
    from benchmarks.machine import blas
    from benchmarks.peers import EVERYBODY
    from benchmarks.runner import Plan, measure
    from benchmarks.training import Chunks, train

    rates = {dtype: matrix_product_rate(dtype) for dtype in request["dtypes"]}
    answer("environment", {**setting.in_force(), "blas": blas(), "matrix_product_rate": rates})
    plan = Plan(**request["plan"], settle=setting.settle)
    cores = len(available_cores())
    peers = [EVERYBODY[name] for name in request["peers"]]
    peers = [peer for peer in peers if cores > 1 or not peer.in_workers]
    for case in map(Case.from_json, request["cases"]):
        for dtype in request["dtypes"]:

            def tell(doing: str, where: str = f"{case.name} {dtype} {setting.label}") -> None:
                answer("doing", f"{where}: {doing}")

            # Of one product's threads some may have had to wait, and the limit is what could be.
            rates[dtype] = max(rates[dtype], matrix_product_rate(dtype))
            row = measure(make_problem(case, dtype), peers, plan, cores, rates[dtype], tell)
            answer("row", {"setting": setting.name, **row})
    if request["training"] is not None:
        row = train(
            Chunks(**request["training"]),
            [peer.name for peer in peers],
            lambda doing: answer("doing", f"training {setting.label}: {doing}"),
        )
        answer("training", {"setting": setting.name, **row})


if __name__ == "__main__":
    main()
