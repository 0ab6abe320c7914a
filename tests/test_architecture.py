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

#: What each module, or package of modules, stands on. It may import that and all that stands under it;
#: inside a package modules may import each other. A new module needs a line here.
STANDS_ON = {
    "_validation": [],
    "_files": [],
    "_output": [],
    "_signals": [],
    "_reading": ["_validation"],
    "_memory": [],
    "_blas": [],
    "activations": ["_validation"],
    "softmax": ["_validation"],
    "losses": ["softmax"],
    "weights": ["_validation"],
    "distances": ["_validation"],
    "optimizers": ["distances"],
    "tasks": ["_files", "_reading"],
    "factored": ["weights"],
    "plan": ["_validation"],
    "parts": ["weights"],
    "normalisation": ["parts"],
    "structure": ["activations", "parts", "softmax"],
    "mlp": ["factored", "normalisation", "structure"],
    "objective": ["mlp", "losses"],
    "vector_objectives": ["objective"],
    "adaptation": ["objective", "weights"],
    "interop": ["mlp"],
    "algorithms": ["_memory", "adaptation", "distances", "plan"],
    "verification": ["_blas", "_files", "distances", "objective", "adaptation", "algorithms", "tasks"],
    "found_structure": ["algorithms", "tasks"],
    "training": ["algorithms", "optimizers", "tasks"],
    "crew": ["_blas", "_validation"],
    "parallel": ["crew", "training"],
    "options": ["activations", "distances", "losses", "normalisation", "optimizers"],
    "registry": ["algorithms", "options"],
    "config": ["registry", "optimizers", "tasks"],
    "progress": ["_output"],
    "runs": ["_files", "config"],
    "plots": ["_files", "found_structure"],
    "predictions": ["runs", "training"],
    "estimators": ["config", "training"],
    "reports": ["algorithms", "runs"],
    "commands": [
        "reports",
        "_signals",
        "interop",
        "parallel",
        "plots",
        "predictions",
        "progress",
        "runs",
        "training",
        "verification",
    ],
    "cli": ["commands"],
    "__main__": ["cli"],
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


def under(name: str) -> set[str]:
    """Everything that stands under a module."""
    return {name}.union(*(under(below) for below in STANDS_ON[name]))


def uphill(name: str, source: str, package: str = "npmeta") -> list[str]:
    """The imports of npmeta's own modules that a module may not make, as ``line: module``."""
    component = name.split(".")[0]
    bad = []
    for module, line, _ in imports(source, package):
        top, *rest = module.split(".")
        if top != "npmeta" or rest == ["__version__"]:
            continue
        if not rest or rest[0] not in STANDS_ON or rest[0] not in under(component):
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


def test_what_stands_on_what_has_no_circles():
    order = list(TopologicalSorter(STANDS_ON).static_order())
    assert set(order) == set(STANDS_ON), "every name on the right must stand on the left as well"


def test_every_module_has_its_place():
    components = {name.split(".")[0] for name in MODULES} - {""}
    assert components <= set(STANDS_ON), "add new modules to STANDS_ON at the top of this file"
    assert {"_validation", "mlp", "algorithms", "tasks"} <= components, "the parser finds the package"


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
        ("weights", "from npmeta.mlp import MLP"),
        ("weights", "from npmeta import mlp"),
        ("weights", "import npmeta.objective as o"),
        ("weights", "import npmeta"),
        ("weights", "from npmeta import MLP"),
        ("weights", "from . import mlp"),
        ("weights", "from .mlp import MLP"),
        ("mlp", "from npmeta.losses import get"),
        ("tasks.sinusoid", "from npmeta.mlp import MLP"),
        ("adaptation", "def f():\n    from npmeta.algorithms import MAML"),
        ("adaptation", "if x:\n    import numpy\nelse:\n    from npmeta.tasks import TaskBatch"),
    ],
)
def test_an_uphill_import_is_found(name, line):
    assert len(uphill(name, line)) == 1


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("mlp", "from npmeta._validation import Array\nfrom npmeta import weights"),
        ("mlp", "from npmeta import __version__"),
        ("mlp", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from npmeta.runs import Run"),
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
