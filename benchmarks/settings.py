"""The settings: how many cores there are to use. Nothing here imports a numeric library."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["SETTINGS", "USUAL", "Setting", "available_cores"]

_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "BLIS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}

_ALWAYS = {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    # The compiler's own worker processes would stay, and compete with what is measured.
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}


def available_cores() -> list[int]:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@dataclass(frozen=True)
class Setting:
    """One setting. Libraries read all of it when they are loaded, so it has to come first.

    Attributes
    ----------
    name : str
        What the command line calls it.
    label : str
        What the table calls it.
    n_cores : int or None
        How many cores to be confined to; None for no confinement.
    settle : float
        Seconds of rest before each turn. Threads of OpenBLAS and of OpenMP wait for more work for some
        25 ms before they sleep, on cores that the next library means to use.
    """

    name: str
    label: str
    n_cores: int | None
    settle: float

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """``inherited`` with this setting's variables; those of the other are taken out."""
        kept = {name: value for name, value in inherited.items() if name not in _ONE_THREAD}
        return {**kept, **_ALWAYS, **(_ONE_THREAD if self.n_cores == 1 else {})}

    def confine(self) -> None:
        """Confine this process to its cores, if there are that many and the system can."""
        if self.n_cores is not None and hasattr(os, "sched_setaffinity"):
            # The last cores: the first often has the system's interrupts to serve.
            os.sched_setaffinity(0, available_cores()[-self.n_cores :])

    def in_force(self) -> dict[str, object]:
        """What this process runs under, for the record."""
        names = [*_ONE_THREAD, *_ALWAYS]
        return {
            "cores": available_cores(),
            "variables": {name: os.environ[name] for name in names if name in os.environ},
        }


def _settings() -> list[Setting]:
    n_all = len(available_cores())
    some = [n for n in (2**i for i in range(1, 10)) if n < n_all]
    return [
        Setting("one-core", "one core", n_cores=1, settle=0.0),
        *(Setting(f"{n}-cores", f"{n} cores", n_cores=n, settle=0.05) for n in some),
        Setting("all-cores", "all cores", n_cores=None, settle=0.05),
    ]


#: Every setting, by its name, with fewer cores first.
SETTINGS = {setting.name: setting for setting in _settings()}

#: Those of the table. The others are for the curve against cores.
USUAL = ("one-core", "all-cores")
