"""npmeta checked on the machine it runs on: what ``npmeta check`` does."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import DTypeLike

from npmeta._support.validation import Array
from npmeta.algorithms import MAML
from npmeta.bilevel.objective import Risk
from npmeta.network.activations import ACTIVATIONS
from npmeta.network.losses import LOSSES
from npmeta.network.mlp import MLP
from npmeta.tasks import TaskBatch
from npmeta.verification.checks.gradients import (
    check_batched,
    check_deterministic,
    check_gradient,
    check_hvp,
)
from npmeta.verification.checks.meta_gradients import check_meta_gradient, compare
from npmeta.verification.checks.reports import Finding, Report, Verdict, judge, worst
from npmeta.verification.checks.taylor import check_taylor
from npmeta.verification.oracles.references import complex_step, extended, meta_gradient, richardson
from npmeta.verification.rounding import SAFETY, SAFETY_OF_DIFFERENCES


def machine() -> str:
    """Python, NumPy, its BLAS, the processor, and how long a long double is."""
    library = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    blas = f"{library.get('name', 'an unknown BLAS')} {library.get('version', '')}".strip()
    bits = np.finfo(np.longdouble).nmant + 1
    return (
        f"Python {platform.python_version()}, NumPy {np.__version__} with {blas}, "
        f"{platform.system()} {platform.machine()}, long double with {bits} bits"
    )


#: Above the lines.
HEAD = f"{'':54}blocks    error      bar"


@dataclass(frozen=True)
class Line:
    """Many findings of one kind as one.

    Attributes
    ----------
    name : str
    verdict : Verdict
        FAIL if one failed; INCONCLUSIVE only if all are.
    cases : int
        Blocks that were looked at.
    open : int
        How many of them were inconclusive.
    error, bar : float
        The largest relative ones of those that passed or failed.
    reason : str
        Of the first that failed.
    """

    name: str
    verdict: Verdict
    cases: int
    open: int
    error: float
    bar: float
    reason: str

    def __str__(self) -> str:
        known = self.verdict is not Verdict.INCONCLUSIVE and np.isfinite(self.bar)
        numbers = f"{self.error:.1e}  {self.bar:.1e}" if known else ""
        notes = [f"{self.open} inconclusive"] if self.open else []
        notes += [self.reason] if self.reason else []
        line = f"{f'{self.verdict}  {self.name}':<54} {self.cases:>5}  {numbers}".rstrip()
        indent = " " * 6
        return "\n".join(
            [
                line,
                *textwrap.wrap("; ".join(notes), 79, initial_indent=indent, subsequent_indent=indent),
            ]
        )

    @staticmethod
    def of(name: str, reports: Iterator[Report]) -> Line:
        """The findings of many reports."""
        pairs = [(report, finding) for report in reports for finding in report.findings]
        findings = [finding for _, finding in pairs]
        decided = [f for f in findings if f.verdict is not Verdict.INCONCLUSIVE]
        zero = "zero within rounding"
        numbers = [f for f in decided if f.reason != zero] or [Finding("", Verdict.PASS, 0.0, 0.0, 1.0)]
        failed = [f"{r.title}: {f.name} {f.reason}" for r, f in pairs if f.verdict is Verdict.FAIL]
        return Line(
            name,
            worst([f.verdict for f in decided]) if decided else Verdict.INCONCLUSIVE,
            len(findings),
            len(findings) - len(decided),
            max(f.relative_error for f in numbers),
            max(f.relative_bar for f in numbers),
            failed[0] if failed else "",
        )


def run() -> Iterator[Line]:
    """Every check, one after the other. It takes a few seconds."""
    for dtype in (np.float64, np.float32):
        name = np.dtype(dtype).name
        yield Line.of(f"{name}  meta-gradients = adjoint by complex step", _meta_gradients(dtype))
        yield Line.of(f"{name}  gradients = differences of values", _gradients(dtype))
        yield Line.of(f"{name}  Hessian products: differences, symmetry", _products(dtype))
        yield Line.of(f"{name}  tasks at once = one by one", _batches(dtype))
        yield Line.of(f"{name}  twice the same, to the bit", _repetitions(dtype))
    yield Line.of("oracles  adjoint = complex step of the meta-loss", _by_complex_step())
    precision = "extended precision" if extended() else "float64"
    yield Line.of(f"oracles  adjoint = Richardson, {precision}", _by_richardson())
    yield Line.of("slopes   2 and 3 of Taylor's remainders", iter(slopes().values()))
    yield _planted()


# --- problems ---------------------------------------------------------------------------------------


def _problem(
    loss: str, activation: str, dtype: DTypeLike = np.float64, seed: int = 0
) -> tuple[MLP, Array, TaskBatch]:
    """A small network away from kinks, and three tasks whose sizes are all different."""
    rng = np.random.default_rng([seed, len(loss), len(activation)])
    T, K, Q, n_out = 3, 5, 6, 3
    model = MLP([2, 5, 4, n_out], activation)
    # Biases that are not zero keep pre-activations of dead rows off the kink at 0.
    theta = 0.8 * model.init(rng) + 0.2 * rng.normal(size=model.n_params)
    x = rng.normal(size=(T, K + Q, 2))
    numbers = rng.normal(size=(T, K + Q, n_out))
    y = {
        "values": numbers,
        "classes": numbers.argmax(-1),
        "binary": (numbers > 0).astype(float),
        "counts": np.floor(np.exp(numbers)),
    }[LOSSES[loss].targets]
    return model, theta.astype(dtype), TaskBatch(x[:, :K], y[:, :K], x[:, K:], y[:, K:])


def _maml(activation: str, loss: str, dtype: DTypeLike, S: int = 2) -> tuple[MAML, Array, TaskBatch]:
    """The same with MAML, in the form of weights that is this number's turn."""
    model, theta, tasks = _problem(loss, activation, dtype, S)
    form = ("dense", "factored")[(S + len(loss)) % 2]
    return MAML(model, loss, 0.1, S, inner_weight_decay=0.2 * (S % 3), weights=form), theta, tasks


# --- what is checked ----------------------------------------------------------------------------------


def _meta_gradients(dtype: DTypeLike) -> Iterator[Report]:
    """Every activation with every loss, and 1 to 5 steps in turn."""
    for i, activation in enumerate(ACTIVATIONS):
        for j, loss in enumerate(LOSSES):
            maml, theta, tasks = _maml(activation, loss, dtype, 1 + (i + j) % 5)
            params = {"theta": theta, "inner_lr": np.asarray(0.1, dtype)}
            out = maml.meta_gradient(params, tasks)
            yield check_meta_gradient(maml, params, tasks, out.grads, loss=out.loss)


def _every_one() -> Iterator[tuple[str, str]]:
    """Each activation and each loss at least once."""
    losses = list(LOSSES)
    for i, activation in enumerate(ACTIVATIONS):
        yield losses[i % len(losses)], activation


def _functions(
    loss: str, activation: str, dtype: DTypeLike
) -> tuple[Callable[[Array], tuple[float, Array]], Callable[[Array, Array], Array], Array]:
    """The mean loss of the first task, its Hessian product, and a point."""
    model, theta, tasks = _problem(loss, activation, dtype)
    risk, x, y = Risk(model, loss), tasks.support_x[:1], tasks.support_y[:1]

    def function(point: Array) -> tuple[float, Array]:
        lin = risk.linearize(point, x, y)
        return lin.value[0], lin.grad[0]

    def hvp(point: Array, v: Array) -> Array:
        return risk.linearize(point, x, y).hvp(v)[0]

    return function, hvp, theta


def _gradients(dtype: DTypeLike) -> Iterator[Report]:
    for loss, activation in _every_one():
        function, _, theta = _functions(loss, activation, dtype)
        yield check_gradient(function, theta)


def _products(dtype: DTypeLike) -> Iterator[Report]:
    for loss, activation in _every_one():
        function, hvp, theta = _functions(loss, activation, dtype)
        yield check_hvp(function, hvp, theta)


def _batches(dtype: DTypeLike) -> Iterator[Report]:
    for S, (loss, activation) in enumerate(_every_one()):
        maml, theta, tasks = _maml(activation, loss, dtype, S)
        yield check_batched(_meta_function(maml), theta, tasks)


def _repetitions(dtype: DTypeLike) -> Iterator[Report]:
    for S, (loss, activation) in enumerate(_every_one()):
        maml, theta, tasks = _maml(activation, loss, dtype, S)
        yield check_deterministic(partial(_meta_function(maml), tasks=tasks), theta)


def _meta_function(maml: MAML) -> Callable[..., tuple[float, Array]]:
    def function(theta: Array, tasks: TaskBatch) -> tuple[float, Array]:
        out = maml.meta_gradient(theta, tasks)
        return out.loss, out.grad

    return function


def _by_complex_step() -> Iterator[Report]:
    for S, (loss, activation) in enumerate(_every_one()):
        maml, theta, tasks = _maml(activation, loss, np.float64, S % 6)
        params = {"theta": theta, "inner_lr": np.asarray(0.1)}
        reference = meta_gradient(maml, params, tasks)
        found = compare(maml.objective, complex_step(maml, params, tasks), reference, np.float64)
        yield Report(repr(maml.objective), tuple(found))


def _by_richardson() -> Iterator[Report]:
    """Along the gradient: one direction sees all of it."""
    for S, (loss, activation) in enumerate(_every_one()):
        if activation == "gelu" and extended():
            continue
        maml, theta, tasks = _maml(activation, loss, np.float64, S % 6)
        reference = meta_gradient(maml, theta, tasks)
        v = reference.grad / np.linalg.norm(reference.grad)
        found = richardson(maml, theta, tasks, v)
        bar = SAFETY_OF_DIFFERENCES * float(found.error[0])
        bar += SAFETY * float(np.linalg.norm(reference.error["theta"]))
        error = abs(float(found.value[0]) - float(v @ reference.grad))
        finding = judge("along the gradient", error, bar, float(v @ reference.grad))
        yield Report(repr(maml.objective), (finding,))


def slopes() -> dict[str, Report]:
    """Taylor's remainders: of a meta-loss and its gradient, and of a loss and its Hessian product."""
    maml, theta, tasks = _maml("tanh", "cross_entropy", np.float64)
    meta = _meta_function(maml)
    function, hvp, point = _functions("cross_entropy", "tanh", np.float64)
    return {
        "meta-loss": check_taylor(partial(meta, tasks=tasks), theta),
        "loss of a network": check_taylor(function, point, hvp),
    }


def _planted() -> Line:
    """Wrong meta-gradients, every one of which must fail: a check that cannot fail checks nothing."""
    maml, theta, tasks = _maml("tanh", "cross_entropy", np.float64)
    right = maml.meta_gradient(theta, tasks).grad
    first_order = meta_gradient(maml, theta, tasks, trials=0).first_order
    transposed, nudged, no_bias = right.copy(), right.copy(), right.copy()
    transposed[:10] = right[:10].reshape(2, 5).T.reshape(-1)
    nudged[:10] *= 1 + 1e-6
    no_bias[10:15] = 0
    wrong = {
        "the sign": -right,
        "first order": first_order,
        "half of the Hessian": (right + first_order) / 2,
        "the Hessian's sign": 2 * first_order - right,
        "a sum of tasks": right * len(tasks),
        "one block transposed": transposed,
        "one block without its gradient": no_bias,
        "one block off by a millionth": nudged,
    }
    verdicts = {
        name: check_meta_gradient(maml, theta, tasks, gradient).verdict
        for name, gradient in wrong.items()
    }
    missed = [name for name, verdict in verdicts.items() if verdict is not Verdict.FAIL]
    return Line(
        "planted  wrong meta-gradients, each found",
        Verdict.FAIL if missed else Verdict.PASS,
        len(wrong),
        0,
        np.nan,
        np.nan,
        f"not found: {', '.join(missed)}" if missed else "",
    )
