"""A sample of the faults of :mod:`tests.faults`: ``python -m tests.faults --full`` makes them all."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork, and limits of memory")
@pytest.mark.parametrize(
    "names", [["kills", "disks"], ["mutations"], ["calls"], ["encodings"]], ids="-".join
)
def test_nothing_is_lost_and_nothing_is_silently_wrong(names):
    for package in ("matplotlib", "PIL"):
        pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--only", *names, "--workers", "1"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
