"""Mistakes of normalised networks: which statistics, which ε, and what becomes of scale and shift."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from npmeta.verification.doctor.faults.base import Fault, Variant
from npmeta.verification.doctor.problem import Problem

__all__ = ["NORMALISED"]


def _norm(problem: Problem) -> str | None:
    """What a problem's network is normalised by; None where no layer is."""
    model = problem.model
    return model.norm if model is not None and model.activations else None


def _of(
    *forms: Variant, norms: tuple[str, ...] = ("batch", "layer"), steps: int = 0, tasks: int = 1
) -> Callable[[Problem], Iterator[Variant]]:
    """On networks that are normalised in one of these ways, with so many inner steps and tasks."""

    def variants(problem: Problem) -> Iterator[Variant]:
        if _norm(problem) in norms and steps <= problem.S and tasks <= problem.T:
            yield from forms

    return variants


def _statistics(detail: str, *statistics: object) -> Variant:
    return Variant({"statistics": statistics}, detail)


def _running(kept: bool) -> list[Variant]:
    """Running averages as the frameworks make them."""
    return [
        _statistics("momentum 0.1 and unbiased, PyTorch's", "running", 0.1, True, kept),
        _statistics("decay 0.9, biased", "running", 0.1, False, kept),
        _statistics("decay 0.99, biased, Flax's and Keras's", "running", 0.01, False, kept),
    ]


def _axis(problem: Problem) -> Iterator[Variant]:
    for norm, what in (("batch", "over the rows"), ("layer", "over the units")):
        if _norm(problem) == {"batch": "layer", "layer": "batch"}[norm]:
            yield _statistics(what, "over", norm)
    if _norm(problem):
        yield _statistics("over rows and units", "over", "rows and units")


def _eps() -> list[Variant]:
    inside = [Variant({"eps": eps}, f"{eps:g}", eps) for eps in (1e-3, 1e-6, 1e-8)]
    beside = [
        Variant({"eps": eps, "eps_on": "deviation"}, f"{eps:g} beside the root", eps)
        for eps in (1e-5, 1e-3, 1e-6, 1e-8)
    ]
    return inside + beside


def _not_adapted(problem: Problem) -> Iterator[Variant]:
    if _norm(problem) and problem.S and problem.model is not None and problem.model.adapt_norm:
        yield Variant({"adapted": "layers"})


def _adapted(problem: Problem) -> Iterator[Variant]:
    if _norm(problem) and problem.S and problem.model is not None and not problem.model.adapt_norm:
        yield Variant({"adapted": "norm too"})


def _saved(problem: Problem) -> Iterator[Variant]:
    for _ in _not_adapted(problem):  # where they are adapted, that is
        yield Variant({"hessian_at": "own, saved statistics"})


def _no_gradient(problem: Problem) -> Iterator[Variant]:
    names = tuple(name for name in problem.blocks if name.endswith(("scale", "shift")))
    if names:
        yield Variant({"finish": (("zero", names),)})


_TRAIN = (
    "track_running_stats=False in every BatchNorm, so that model.eval() changes nothing; or "
    "F.batch_norm(z, None, None, gamma, beta, training=True)."
)
_TRAIN_JAX = "use_running_average=False (Haiku: is_training=True) in support and query passes alike."
_FORMULA = "(z − z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt(), or F.batch_norm, F.layer_norm."
_FORMULA_JAX = "(z − z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5); -1 for layer normalisation; no ddof."


#: In the order of how simple they are: of several that fit, the first is named.
NORMALISED = [
    Fault(
        "norm_eval_mode",
        "forward",
        "μ, σ → 0, 1",
        "Statistics are the running ones of a fresh module: nothing is normalised.",
        "No model.eval() in either loop. " + _TRAIN,
        _TRAIN_JAX,
        _of(
            _statistics("in every pass", "fresh"),
            _statistics("on the query rows", "fresh on query"),
            norms=("batch",),
        ),
    ),
    Fault(
        "norm_running_statistics",
        "forward",
        "μ, σ of Q → running averages over S",
        "Query rows are normalised by running averages over the support passes of their task.",
        "No model.eval() before the query pass. " + _TRAIN,
        _TRAIN_JAX,
        _of(*_running(kept=False), norms=("batch",), steps=1),
    ),
    Fault(
        "norm_statistics_leak",
        "forward",
        "μ, σ of Q_t → averages over S_1..S_t",
        "Query rows are normalised by running averages that go on from task to task.",
        "No model.eval() before the query pass: buffers outlive a task, and are no fast weights. "
        + _TRAIN,
        _TRAIN_JAX + " Do not carry batch_stats from task to task.",
        _of(*_running(kept=True), norms=("batch",), steps=1, tasks=2),
    ),
    Fault(
        "norm_support_statistics",
        "forward",
        "μ, σ of Q → those of S at φ_S",
        "Query rows are normalised by statistics of the support rows: not transductive.",
        "Normalise query rows by their own mean and variance. " + _TRAIN,
        "Normalise query rows by their own mean and variance. " + _TRAIN_JAX,
        _of(
            _statistics("", "support"),
            _statistics("constants", "support, a constant"),
            norms=("batch",),
        ),
    ),
    Fault(
        "norm_joint_statistics",
        "forward",
        "μ, σ of Q → those of S ∪ Q at φ_S",
        "Support and query rows go through the network together after the last step.",
        "model(query_x), not model(torch.cat([support_x, query_x]))[K:].",
        "Apply the network to query_x alone, not to a concatenation with support_x.",
        _of(_statistics("", "both"), norms=("batch",)),
    ),
    Fault(
        "norm_over_tasks",
        "forward",
        "μ, σ of a task → of all tasks",
        "Rows of all tasks are normalised together.",
        "Mean and variance over dim 1 of (tasks, rows, units); no reshape to (tasks * rows, units).",
        "Mean and variance inside the function that vmap maps, without axis_name for the tasks.",
        _of(_statistics("", "over", "all tasks"), norms=("batch",), tasks=2),
    ),
    Fault(
        "norm_detached",
        "forward",
        "∂μ, ∂σ → 0",
        "Mean and variance are constants on the way back.",
        "No detach() or no_grad() around mean and variance; F.batch_norm with training=True.",
        "No stop_gradient on mean and variance.",
        _of(_statistics("", "constants")),
    ),
    Fault(
        "norm_detached_in_hessian",
        "backward",
        "H_s → with ∂μ, ∂σ = 0",
        "Inner gradients are right; in their derivatives mean and variance are constants.",
        "Leave it to autograd, or differentiate mean and variance twice in a custom backward().",
        "Leave it to jax.grad, or differentiate mean and variance in the custom_vjp's own rule.",
        _of(Variant({"hessian_at": "own, constant statistics"}), steps=1),
    ),
    Fault(
        "norm_saved_statistics",
        "backward",
        "H_s → with ∂μ, ∂σ = 0 in that of γ",
        "The inner gradient of γ has saved statistics in it, which are constants to the outer one.",
        "torch.func.vmap of F.batch_norm and F.layer_norm does this (as of 2.13): gamma * F.batch_norm("
        "z, None, None, training=True) + beta in its place, or a loop over tasks.",
        "Leave it to jax.grad, or differentiate mean and variance in the custom_vjp's own rule.",
        _saved,
    ),
    Fault(
        "norm_unbiased",
        "forward",
        "σ²: mean → sum / (n − 1)",
        "The variance is the unbiased one.",
        "torch.var and torch.std are unbiased by default: " + _FORMULA,
        _FORMULA_JAX,
        _of(
            Variant({"unbiased": True}),
            Variant({"unbiased": True, "eps_on": "deviation"}, "ε = 1e-05 beside the root"),
        ),
    ),
    Fault(
        "norm_eps",
        "forward",
        "ε = 1e-5 → another, or σ + ε",
        "ε is another one, or stands beside the root and not under it.",
        "eps=1e-5, under the root: " + _FORMULA,
        "epsilon=1e-5 (Flax's LayerNorm has 1e-6, Keras 1e-3), under the root.",
        _of(*_eps()),
    ),
    Fault(
        "norm_axis",
        "forward",
        "mean over rows ↔ over units",
        "The mean is over another axis: layer normalisation for batch normalisation, or both.",
        "dim=0 of (rows, units) for batch normalisation, dim=-1 for layer normalisation.",
        "axis=0 of (rows, units) for batch normalisation, axis=-1 for layer normalisation.",
        _axis,
    ),
    Fault(
        "norm_after_activation",
        "forward",
        "f(norm(z)) → norm(f(z))",
        "The normalisation stands after the activation, not before.",
        "nn.Sequential(Linear, BatchNorm1d, activation), in this order.",
        "Dense, normalisation, activation, in this order.",
        _of(Variant({"after": True})),
    ),
    Fault(
        "norm_left_out",
        "forward",
        "u = z",
        "The network is not normalised.",
        "Put the normalisation into the functional forward pass as well.",
        "Put the normalisation into the apply function as well.",
        _of(_statistics("", "none")),
    ),
    Fault(
        "norm_without_scale",
        "forward",
        "u = ẑ",
        "There are no scale and no shift.",
        "affine=True, or elementwise_affine=True; hand weight and bias of the norm to F.batch_norm.",
        "use_scale=True, use_bias=True (Haiku: create_scale, create_offset).",
        _of(Variant({"affine": False})),
    ),
    Fault(
        "norm_not_adapted",
        "forward",
        "α = 0 for γ, β",
        "The inner loop leaves scale and shift alone, which it should adapt.",
        "Update every entry of named_parameters(), also those of the norm layers.",
        "tree_map the update over the whole tree of params, scales and shifts as well.",
        _not_adapted,
    ),
    Fault(
        "norm_adapted",
        "forward",
        "α ≠ 0 for γ, β",
        "The inner loop adapts scale and shift, which it should leave alone.",
        "Leave the parameters of the norm layers out of the inner update.",
        "Mask the leaves of the norm layers in the inner update.",
        _adapted,
    ),
    Fault(
        "norm_no_gradient",
        "assembly",
        "∇γ, ∇β → 0",
        "No scale and no shift gets a gradient.",
        "Take the outer gradient by the parameters of the norm layers as well.",
        "Differentiate by the scales and shifts as well; no mask on them.",
        _no_gradient,
    ),
]
