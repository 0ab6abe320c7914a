"""Imports run downhill only, and nobody pays for what they do not use."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import npmeta

#: What each room may import, and so on down. A module may import less: see below.
ROOMS = {
    "_support": [],
    "network": ["_support"],
    "bilevel": ["network"],
    "tasks": ["_support"],
    "interop": ["network"],
    "algorithms": ["bilevel", "tasks"],
    "verification": ["algorithms"],
    "training": ["algorithms"],
    "cli": ["training", "verification", "interop"],
    "estimators": ["training"],
    "__main__": ["cli"],
}

#: What each module, or package of modules, stands on. It may import that and all that stands under it;
#: inside a package modules may import each other. A new module needs a line here.
STANDS_ON = {
    "_support.validation": ["_support.version"],
    "_support.files": [],
    "_support.output": [],
    "_support.signals": [],
    "_support.reading": ["_support.validation"],
    "_support.memory": [],
    "_support.version": [],
    "_support.blas": [],
    "_support.options": ["_support.validation"],
    "network.activations": ["_support.validation"],
    "network.softmax": ["_support.validation"],
    "network.losses": ["network.softmax"],
    "network.weights": ["_support.validation"],
    "network.distances": ["_support.validation"],
    "bilevel.optimizers": ["network.distances"],
    "tasks": ["_support.files", "_support.options", "_support.reading"],
    "network.spaces": ["network.weights"],
    "network.factored": ["network.weights"],
    "bilevel.plan": ["_support.validation"],
    "network.parts": ["network.weights"],
    "network.normalisation": ["network.parts"],
    "network.structure": ["network.activations", "network.parts", "network.softmax"],
    "network.passes": ["network.activations", "network.parts"],
    "network.sequences": ["network.activations", "network.softmax"],
    "network.layout": ["_support.validation"],
    "network.mlp": [
        "network.layout",
        "network.spaces",
        "network.passes",
        "network.factored",
        "network.normalisation",
        "network.structure",
    ],
    "bilevel.objective": ["network.mlp", "network.losses"],
    "bilevel.vector_objectives": ["bilevel.objective"],
    "bilevel.adaptation": ["bilevel.objective", "network.weights"],
    "interop": ["network.mlp"],
    "algorithms": [
        "_support.memory",
        "bilevel.adaptation",
        "network.distances",
        "network.sequences",
        "bilevel.plan",
        "tasks",
    ],
    "verification.rounding": ["_support.validation"],
    "verification.oracles": [
        "verification.rounding",
        "algorithms",
        "bilevel.adaptation",
        "bilevel.objective",
        "tasks",
    ],
    "verification.checks": ["network.distances", "verification.oracles"],
    "verification.doctor": ["_support.files", "network.distances", "verification.oracles"],
    "verification.golden": ["_support.blas", "verification.doctor"],
    "verification": ["verification.checks", "verification.golden"],
    "training.loop": ["algorithms", "bilevel.optimizers", "tasks"],
    "training.options": ["training.loop"],
    "training.config": ["training.options", "_support.reading"],
    "training.shared_memory": ["_support.validation"],
    "training.worker": ["training.shared_memory"],
    "training.pool": ["_support.blas", "training.worker"],
    "training.runners": ["training.pool"],
    "training.parallel": ["training.runners", "training.loop"],
    "cli.progress": ["_support.output"],
    "cli.checkpoints": ["_support.reading", "training.config"],
    "cli.metrics": ["_support.files", "_support.reading"],
    "cli.runs": ["cli.checkpoints", "cli.metrics"],
    "cli.plots": ["_support.files", "algorithms"],
    "cli.predictions": ["cli.runs", "training.loop"],
    "estimators": ["training.config"],
    "cli.reports": ["algorithms", "cli.runs"],
    "cli.commands": [
        "cli.reports",
        "_support.signals",
        "interop",
        "training.parallel",
        "cli.plots",
        "cli.predictions",
        "cli.progress",
        "cli.runs",
        "training.loop",
        "verification",
    ],
    "cli.parser": ["training.options"],
    "cli.main": ["cli.commands", "cli.parser"],
    "__main__": ["cli.main"],
}

#: What may be imported anywhere, and what only where a function needs it.
EVERYWHERE = {"numpy", "scipy", *sys.stdlib_module_names, "tomllib"}  # tomllib: from Python 3.11
IN_FUNCTIONS = {"tqdm", "matplotlib", "PIL", "tomli"}

#: What `import npmeta` must leave alone.
LAZY = {"scipy", "pandas", "torch", "jax", *IN_FUNCTIONS}

ROOT = Path(npmeta.__file__).parent


class Import(NamedTuple):
    module: str  # with every part: "npmeta.tasks.batch", "scipy.special"
    line: int
    in_function: bool


def parts_of(path: Path) -> list[str]:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {".".join(parts_of(path)): path for path in sorted(ROOT.rglob("*.py"))}


def imports(source: str, package: str = "npmeta") -> Iterator[Import]:
    """Every import that happens at run time: those under ``if TYPE_CHECKING`` do not."""

    def walk(node: ast.AST, in_function: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            children = node.orelse
        else:
            children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, in_function)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, in_function)
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in children:
            yield from walk(child, inside)

    yield from walk(ast.parse(source), False)


def under(name: str, stands_on: dict[str, list[str]] = STANDS_ON) -> set[str]:
    """Everything that stands under a module, or a room."""
    return {name}.union(*(under(below, stands_on) for below in stands_on[name]))


def place(module: str) -> str | None:
    """The entry above that a module, or what is in one, belongs to."""
    parts = module.split(".")
    whole = [".".join(parts[:n]) for n in (2, 1)]
    return next((name for name in whole if name in STANDS_ON), None)


def uphill(name: str, source: str, package: str = "npmeta") -> list[str]:
    """The imports of npmeta's own modules that a module may not make, as ``line: module``."""
    own = place(name)
    bad = []
    for module, line, _ in imports(source, package):
        top, *rest = module.split(".")
        if top != "npmeta":
            continue
        other = place(".".join(rest))
        if own is None or other is None or other not in under(own):
            bad.append(f"{line}: {module}")
    return bad


def foreign(source: str) -> list[str]:
    """The imports of other people's packages that npmeta may not make, as ``line: module``."""
    bad = []
    for module, line, in_function in imports(source):
        top = module.split(".")[0]
        if top == "npmeta" or top in EVERYWHERE or (top in IN_FUNCTIONS and in_function):
            continue
        bad.append(f"{line}: {module}")
    return bad


@pytest.mark.parametrize("stands_on", [STANDS_ON, ROOMS])
def test_what_stands_on_what_has_no_circles(stands_on):
    order = list(TopologicalSorter(stands_on).static_order())
    assert set(order) == set(stands_on), "every name on the right must stand on the left as well"


def test_no_module_imports_itself_by_way_of_others():
    graph = {}
    for name, path in MODULES.items():
        package = ".".join(["npmeta", *path.relative_to(ROOT).parent.parts])
        graph[name] = set()
        for module, _, _ in imports(path.read_text(encoding="utf-8"), package):
            parts = module.split(".")[1:] if module.startswith("npmeta.") else []
            # The longest part that is a module; the last may be a name in it.
            known = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
            graph[name] |= {next((one for one in known if one in MODULES), name)} - {name}
    assert list(TopologicalSorter(graph).static_order())


def test_every_module_has_its_place():
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(ROOMS) - {"__main__"}, "what stands at the top level is rooms"
    unplaced = [name for name in MODULES if name and name not in rooms and place(name) is None]
    assert not unplaced, "add new modules to STANDS_ON at the top of this file"


def test_rooms_stand_on_rooms():
    for name, below in STANDS_ON.items():
        room = name.split(".")[0]
        for other in below:
            assert other.split(".")[0] in under(room, ROOMS), f"{name} on {other}"


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_imports_run_downhill(name):
    path = MODULES[name]
    package = ".".join(["npmeta", *path.relative_to(ROOT).parent.parts])
    assert uphill(name, path.read_text(encoding="utf-8"), package) == []


@pytest.mark.parametrize("name", MODULES)
def test_imports_of_other_packages(name):
    assert foreign(MODULES[name].read_text(encoding="utf-8")) == []


def test_importing_npmeta_is_cheap():
    """scipy alone takes longer to import than all of npmeta, and the extras may not be installed."""
    script = "import sys, npmeta; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT.parent,
    )
    loaded = set(done.stdout.split())
    assert "npmeta" in loaded
    assert loaded & LAZY == set()


# --- these tests can fail -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("network.weights", "from npmeta.network.mlp import MLP"),
        ("network.weights", "from npmeta.network import mlp"),
        ("network.weights", "import npmeta.bilevel.objective as o"),
        ("network.weights", "import npmeta"),
        ("network.weights", "from npmeta import MLP"),
        ("network.weights", "from . import mlp"),
        ("network.weights", "from .mlp import MLP"),
        ("network.mlp", "from npmeta.network.losses import get"),
        ("tasks.sinusoid", "from npmeta.network.mlp import MLP"),
        ("bilevel.adaptation", "def f():\n    from npmeta.algorithms import MAML"),
        (
            "bilevel.adaptation",
            "if x:\n    import numpy\nelse:\n    from npmeta.tasks import TaskBatch",
        ),
    ],
)
def test_an_uphill_import_is_found(name, line):
    assert len(uphill(name, line)) == 1


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "network.mlp",
            "from npmeta._support.validation import Array\nfrom npmeta.network import weights",
        ),
        (
            "network.mlp",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from npmeta.cli.runs import Run",
        ),
        ("tasks.sinusoid", "from npmeta.tasks.batch import TaskBatch"),
    ],
)
def test_a_downhill_import_passes(name, line):
    assert uphill(name, line) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import torch", True),
        ("def f():\n    import torch", True),
        ("import tqdm", True),
        ("class A:\n    from PIL import Image", True),
        ("def f():\n    from PIL import Image", False),
        ("import scipy.special, numpy as np, json", False),
        ("import typing\nif typing.TYPE_CHECKING:\n    import matplotlib", False),
        ("import typing\nif typing.TYPE_CHECKING:\n    pass\nelse:\n    import matplotlib", True),
    ],
)
def test_a_foreign_import_is_found(line, found):
    assert len(foreign(line)) == found
