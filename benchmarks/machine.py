"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.settings import available_cores

__all__ = ["LIBRARIES", "blas", "load", "machine", "versions"]

#: Packages whose version matters, and what they are called.
LIBRARIES = {"npmeta": "npmeta", "numpy": "NumPy", "scipy": "SciPy", "jax": "JAX", "torch": "PyTorch"}


def machine() -> dict[str, object]:
    """CPU, cores and system."""
    return {
        "cpu": _cpu_model(),
        "cores": len(available_cores()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": load(),
    }


def load() -> float | None:
    """The mean number of processes that wanted to run in the last minute, if the system keeps it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def versions() -> dict[str, str | None]:
    """The version of each library; None where it is not installed."""
    found: dict[str, str | None] = {}
    for package in LIBRARIES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def blas() -> str:
    """NumPy's BLAS and its version."""
    import numpy as np

    config = np.show_config(mode="dicts")
    library = config.get("Build Dependencies", {}).get("blas", {})
    return f"{library.get('name', 'unknown')} {library.get('version', '')}".strip()


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor() or platform.machine()
