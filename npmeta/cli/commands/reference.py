"""What is no run's: lists of names, the self-check, the doctor and golden vectors."""

from __future__ import annotations

import textwrap
from pathlib import Path

from npmeta._support.version import __version__
from npmeta.algorithms.registry import ALGORITHMS
from npmeta.cli.commands.words import check_picture
from npmeta.network.activations import ACTIVATIONS
from npmeta.network.losses import LOSSES
from npmeta.tasks.registry import KINDS, PRESETS
from npmeta.training.options import described

# --- list -----------------------------------------------------------------------------------------


def list_names(algorithm: str | None) -> int:
    """An algorithm's options; or what can be named: algorithms, tasks, presets, activations, losses."""
    if algorithm is not None:
        return _describe(algorithm)
    width = max(map(len, ALGORITHMS))
    print("algorithms")
    for name, entry in ALGORITHMS.items():
        print(_hanging(f"  {name:<{width}}  ", entry.summary))
        print(_hanging(" " * (width + 6), entry.paper))
    print("\ntasks")
    for name, kind in KINDS.items():
        print(_hanging(f"  {name:<{width}}  ", kind.summary))
    for title, names in (
        ("presets", [f"{name} ({', '.join(tasks)})" for name, tasks in PRESETS.items()]),
        ("activations", ACTIVATIONS),
        ("losses", LOSSES),
    ):
        print(f"\n{title}\n{_hanging('  ', ', '.join(names))}")
    return 0


def _hanging(lead: str, text: str) -> str:
    """Text behind a lead, in lines that a terminal of 80 columns does not break."""
    return textwrap.fill(text, 79, initial_indent=lead, subsequent_indent=" " * len(lead))


def _describe(name: str) -> int:
    """An algorithm, and its options with their defaults."""
    entry = ALGORITHMS[name]
    print(f"{name}: {entry.summary} ({entry.paper})\ntasks: {', '.join(entry.tasks)}")
    names = {"loss", *entry.defaults, *(option.name for option in entry.options)}
    own = [option for option in described(name) if option.name in names]
    width = max(len(option.name) for option in own)
    for option in own:
        flag = option.name.replace("_", "-")
        print(_hanging(f"  --{flag:<{width}}  ", option.help))
    return 0


# --- check ----------------------------------------------------------------------------------------


def check(picture: Path | None) -> int:
    """Verify npmeta's derivatives on this machine, and draw Taylor's remainders."""
    from npmeta.verification import Verdict
    from npmeta.verification.checks import selfcheck

    if picture is not None:
        from npmeta.cli import plots

        plots.save(plots.remainders(selfcheck.slopes()), picture)
    print(textwrap.fill(f"npmeta {__version__}, {selfcheck.machine()}", 79))
    print(f"\n{selfcheck.HEAD}")
    verdicts = []
    for line in selfcheck.run():
        print(line, flush=True)
        verdicts.append(line.verdict)
    failed = verdicts.count(Verdict.FAIL)
    print(f"\n{failed or 'None'} of {len(verdicts)} checks failed.")
    if picture is not None:
        print(picture)
    return int(failed > 0)


# --- doctor ---------------------------------------------------------------------------------------


def examine(case: Path, answers: Path, phi: Path | None, picture: Path | None) -> int:
    """Judge the answers to a case: 0 if the gradient is right, else 1."""
    from npmeta.verification import diagnose
    from npmeta.verification.doctor.files import load_answers, load_problem

    check_picture(picture)
    problem = load_problem(case)
    found = diagnose(problem, *load_answers(answers, problem, phi, case.resolve().name))
    print(found)
    if picture is not None:
        from npmeta.cli import plots

        with plots.own_style():
            print(f"\n{found.save_picture(picture)}")
    return 0 if found.verdict == "pass" else 1


def list_faults() -> int:
    """Every mistake the doctor knows, with what is computed in place of the gradient."""
    from npmeta.verification import FAULTS

    width = max(map(len, FAULTS))
    print("g = (I − αH_0) ⋯ (I − αH_{S−1}) q,  q = ∇L^Q(φ_S),  H_s = ∇²L^S(φ_s)")
    stage = ""
    for fault in FAULTS.values():
        if fault.stage != stage:
            stage = fault.stage
            print(f"\n{stage}")
        print(f"  {fault.id:<{width}}  {fault.formula}")
    return 0


# --- golden ---------------------------------------------------------------------------------------


def golden_write(folder: Path) -> int:
    """Write the suite of golden vectors."""
    from npmeta.verification import golden

    folder = golden.write(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*.*"))
    print(f"{len(golden.cases())} cases, {size / 1e6:.0f} MB, version {golden.SUITE_VERSION}: {folder}")
    return 0


def golden_list() -> int:
    """Every case of the suite, with what it is there for."""
    from npmeta.verification import golden

    settings = golden.cases()
    width = max(map(len, settings))
    for setting in settings.values():
        print(f"{setting.id:<{width}}  {setting.about}")
    return 0


def golden_check(folder: Path, answers: Path) -> int:
    """Judge answers to the suite: 0 if every one is right, else 1."""
    from npmeta.verification import golden

    found = []
    for result in golden.iter_check(folder, answers):
        if isinstance(result, golden.CaseResult):
            print(result, flush=True)
        found.append(result)
    results = golden.Results.of(found)
    print(f"\n{results.summary}")
    wrong = [case.id for case in results.cases if case.examined]
    if wrong:
        print(f"What to change: npmeta doctor {folder / 'cases' / wrong[0]} {answers}")
    return 0 if results.passed else 1
