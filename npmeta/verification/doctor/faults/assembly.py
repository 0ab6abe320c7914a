"""Mistakes made with gradients that were right: which tasks, which arrays, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from npmeta.verification.doctor.computation import ORDERS
from npmeta.verification.doctor.faults.base import Fault, Variant, always
from npmeta.verification.doctor.problem import Problem

__all__ = ["ASSEMBLY"]


def _last_task(problem: Problem) -> Iterator[Variant]:
    if problem.T > 1:
        last = problem.T - 1
        yield Variant({"tasks": ("only", last, 1)})
        yield Variant({"tasks": ("only", last, problem.T)}, "over T")


def _first_task(problem: Problem) -> Iterator[Variant]:
    if problem.T > 1:
        yield Variant({"tasks": ("only", 0, 1)})
        yield Variant({"tasks": ("only", 0, problem.T)}, "over T")


def _skipped(problem: Problem) -> Iterator[Variant]:
    for t in reversed(range(problem.T if problem.T > 2 else 0)):
        yield Variant({"tasks": ("without", t, problem.T)}, f"task {t}")
        yield Variant({"tasks": ("without", t, problem.T - 1)}, f"task {t}, mean of the others")


def _transposed(problem: Problem) -> Iterator[Variant]:
    # A matrix with one row or column is its own transpose when flat.
    weights = [name for name in _weights(problem) if min(_shape(problem, name)) > 1]
    if weights:
        yield Variant({"finish": (("transposed", tuple(weights)),)}, "all weights")
    for name in weights if len(weights) > 1 else ():
        yield Variant({"finish": (("transposed", (name,)),)}, name)


def _weights(problem: Problem) -> list[str]:
    return [name for name in problem.blocks if name.endswith("weight")]


def _shape(problem: Problem, name: str) -> Sequence[int]:
    assert problem.model is not None
    l = int(name.split(".")[0])
    return problem.model.widths[l : l + 2]


def _orders(problem: Problem) -> Iterator[Variant]:
    names = list(problem.blocks)
    seen = [names]
    plain = problem.model is not None and problem.model.is_plain  # orders of pairs
    for how, order in ORDERS.items() if plain else ():
        if order(names) not in seen:
            seen.append(order(names))
            yield Variant({"finish": (("ordered", how),)}, how)


def _blocks(what: str, needs_steps: bool) -> Callable[[Problem], Iterator[Variant]]:
    """One array of parameters, or one layer, of several."""

    def variants(problem: Problem) -> Iterator[Variant]:
        names = list(problem.blocks)
        if problem.model is None or (needs_steps and problem.S == 0):
            return
        for name in names:
            yield Variant({"finish": ((what, (name,)),)}, name)
        for l in range(problem.model.n_layers) if problem.model.n_layers > 1 else ():
            layer = tuple(name for name in names if name.startswith(f"{l}."))
            yield Variant({"finish": ((what, layer),)}, f"layer {l}")

    return variants


def _frozen(problem: Problem) -> Iterator[Variant]:
    """All arrays together that the inner loop leaves alone."""
    # What a norm leaves alone has faults of its own.
    sizes = problem.step_sizes(np.dtype(np.float64), norm_too=True)
    names = tuple(name for name, place in problem.blocks.items() if not sizes[:, place].any())
    if problem.S > 0 and 0 < len(names) < len(problem.blocks):
        yield Variant({"finish": (("zero", names),)})


def _reptile(problem: Problem) -> Iterator[Variant]:
    alpha = np.asarray(problem.maml.inner_lr)
    if problem.S == 0:
        return
    if alpha.ndim == 0 and alpha > 0:
        factor = 1 / float(alpha)
        yield Variant({"tasks": ("reptile",), "finish": (("times", factor),)}, "(θ − φ_S)/α")
    yield Variant({"tasks": ("reptile",)}, "θ − φ_S")


def _step_per_task(problem: Problem) -> Iterator[Variant]:
    if problem.T > 1:
        yield Variant({"finish": (("a step a task", 0.01),)}, factor=0.01)


def _values_clipped(problem: Problem) -> Iterator[Variant]:
    limit = float(np.abs(problem.gradient).max()) / 2
    if limit > 0:
        yield Variant({"finish": (("clip", limit),)}, factor=limit)


def _standardised(problem: Problem) -> Iterator[Variant]:
    if problem.gradient.std() > 0:
        yield Variant({"finish": (("standardised",),)})


#: In the order of how simple they are: of several that fit, the first is named.
ASSEMBLY = [
    Fault(
        "zeros",
        "assembly",
        "0",
        "Nothing reaches θ.",
        "Query loss on the fast weights; no detach(), no_grad() or .item() on the way; read p.grad "
        "before zero_grad().",
        "Differentiate by the params the inner loop begins at; no stop_gradient on them.",
        always(finish=(("times", 0.0),)),
    ),
    Fault(
        "last_task_only",
        "assembly",
        "g_T, or g_T / T",
        "Every task overwrites the gradient of the one before.",
        "Add the query losses up over tasks, then one backward(), or do not zero in between.",
        "Average over the axis of vmap; scan must add to its carry.",
        _last_task,
    ),
    Fault(
        "first_task_only",
        "assembly",
        "g_1, or g_1 / T",
        "Only the first task counts.",
        "Look for a return or break inside the loop over tasks.",
        "Look for an index [0] in place of a mean over the axis of vmap.",
        _first_task,
    ),
    Fault(
        "task_skipped",
        "assembly",
        "(1/T) Σ_{t≠k} g_t, or over T − 1",
        "One task does not count.",
        "Check the bounds of the loop over tasks, and drop_last in the loader.",
        "Check the slices of the task axis.",
        _skipped,
    ),
    Fault(
        "weights_transposed",
        "assembly",
        "∇W → ∇Wᵀ",
        "Weights are laid out the other way round.",
        "nn.Linear holds W (out, in); hand over p.grad.T for y = xW + b.",
        "Dense kernels are (in, out) like here; do not transpose them.",
        _transposed,
    ),
    Fault(
        "other_order",
        "assembly",
        "arrays of parameters in another order",
        "The flat vector lists the arrays in another order than W_1, b_1, W_2, b_2, ...",
        "parameters_to_vector in the order of the layers, weight before bias.",
        "ravel_pytree sorts the keys of dicts (bias before kernel); hand over arrays by name.",
        _orders,
    ),
    Fault(
        "frozen_zero",
        "assembly",
        "∇ of all arrays with α = 0 → 0",
        "What the inner loop leaves alone gets no gradient.",
        "Give the outer optimizer all parameters; no requires_grad=False on the frozen ones.",
        "Differentiate the outer loss by the frozen params as well as by those that adapt.",
        _frozen,
    ),
    Fault(
        "block_zero",
        "assembly",
        "∇ of one array or layer → 0",
        "An array of parameters gets no gradient.",
        "Look for a parameter the fast weights leave out, or with requires_grad=False.",
        "Look for a leaf that is masked, frozen or closed over.",
        _blocks("zero", needs_steps=False),
    ),
    Fault(
        "block_first_order",
        "assembly",
        "∇ of one array or layer → that of q",
        "An array of parameters gets no second derivatives.",
        "Look for a detach() on one of the fast weights.",
        "Look for a stop_gradient on one leaf.",
        _blocks("first order", needs_steps=True),
    ),
    Fault(
        "reptile",
        "assembly",
        "(θ − φ_S)/α",
        "Reptile's update in place of MAML's gradient.",
        "Differentiate the query loss by θ.",
        "Differentiate the query loss by θ.",
        _reptile,
    ),
    Fault(
        "updated_theta",
        "assembly",
        "θ − β g",
        "The updated parameters, not the gradient.",
        "Hand over p.grad before optimizer.step(), not p.",
        "Hand over the gradient, not the new params.",
        always(factor=0.01, finish=(("step", 0.01),)),
    ),
    Fault(
        "at_updated_theta",
        "assembly",
        "g(θ − β g(θ))",
        "The gradient belongs to parameters that have made an outer step.",
        "Compute the gradient before optimizer.step(), on a fresh copy of θ.",
        "Compute the gradient at the problem's params, before any update.",
        always(factor=0.01, finish=(("moved", 0.01),)),
    ),
    Fault(
        "outer_step_per_task",
        "assembly",
        "Σ_t g_t(θ_t),  θ_{t+1} = θ_t − β g_t(θ_t)",
        "The outer step is inside the loop over tasks: every task finds other parameters.",
        "Add the query losses up over tasks; optimizer.step() once, after the loop.",
        "One update after vmap over tasks; do not carry params from task to task in scan.",
        _step_per_task,
    ),
    Fault(
        "outer_weight_decay",
        "assembly",
        "g + w θ",
        "The outer weight decay is in the gradient.",
        "Hand over p.grad before an optimizer with weight_decay sees it; no L2 term in the loss.",
        "Hand over the gradient before add_decayed_weights; no L2 term in the loss.",
        always(factor=0.01, finish=(("decay", 0.01),)),
    ),
    Fault(
        "values_clipped",
        "assembly",
        "min(max(g, −c), c)",
        "Every entry is clipped.",
        "Hand over the gradient before clip_grad_value_.",
        "Hand over the gradient before optax.clip.",
        _values_clipped,
    ),
    Fault(
        "standardised",
        "assembly",
        "(g − mean g) / std g",
        "The gradient is standardised.",
        "Hand over the gradient itself.",
        "Hand over the gradient itself.",
        _standardised,
    ),
    Fault(
        "float32",
        "assembly",
        "g, computed in float32",
        "Right, but for the rounding of float32, in an answer that says it is float64.",
        "model.double() and double tensors; or hand over a float32 array, to be judged as one.",
        "jax.config.update('jax_enable_x64', True); or hand over a float32 array.",
        always(dtype="float32"),
    ),
    Fault(
        "not_finite",
        "assembly",
        "NaN or ∞",
        "The gradient has entries that are not finite.",
        "torch.autograd.set_detect_anomaly(True) finds the operation.",
        "jax.config.update('jax_debug_nans', True) finds the operation.",
        lambda problem: [],
    ),
]
