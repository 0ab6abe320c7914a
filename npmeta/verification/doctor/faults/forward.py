"""Mistakes of the inner loop, and of what is scored after it: everything behind them is recomputed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from npmeta.network.activations import ACTIVATIONS
from npmeta.verification.doctor.faults.base import Fault, Variant, always
from npmeta.verification.doctor.problem import Problem

__all__ = ["FORWARD"]


def _lr(factor: Callable[[Problem], float]) -> Callable[[Problem], Iterator[Variant]]:
    def variants(problem: Problem) -> Iterator[Variant]:
        value = float(factor(problem))
        if value != 1 and problem.S > 0:
            yield Variant({"lr_factor": value}, factor=value)

    return variants


def _inner(detail: str = "", **changes: object) -> Callable[[Problem], Iterator[Variant]]:
    """In problems that have an inner loop."""

    def variants(problem: Problem) -> Iterator[Variant]:
        if problem.S > 0:
            yield Variant(changes, detail)

    return variants


def _several_steps(**changes: object) -> Callable[[Problem], Iterator[Variant]]:
    def variants(problem: Problem) -> Iterator[Variant]:
        if problem.S > 1:
            yield Variant(changes)

    return variants


def _several_tasks(**changes: object) -> Callable[[Problem], Iterator[Variant]]:
    def variants(problem: Problem) -> Iterator[Variant]:
        if problem.T > 1 and problem.S > 0:
            yield Variant(changes)

    return variants


def _one_fewer(problem: Problem) -> Iterator[Variant]:
    if problem.S > 0:
        yield Variant({"extra_steps": -1})


def _adapted(which: str) -> Callable[[Problem], Iterator[Variant]]:
    def variants(problem: Problem) -> Iterator[Variant]:
        if problem.model is None or problem.S == 0:
            return
        if which == "weights" or problem.model.n_layers > 1:
            yield Variant({"adapted": which})
        if which == "weights" and problem.model.norm is not None and problem.model.adapt_norm:
            yield Variant({"adapted": "weights and scales"}, "nor shifts")

    return variants


def _frozen(problem: Problem) -> Iterator[Variant]:
    # What a norm leaves alone has faults of its own.
    sizes = problem.step_sizes(np.dtype(np.float64), norm_too=True)
    if problem.S > 0 and (sizes == 0).any() and (sizes > 0).any():
        yield Variant({"adapted": "frozen too"})


def _structure(problem: Problem) -> Iterator[Variant]:
    structure = None if problem.model is None else problem.model.structure
    if structure is not None and structure.adapt and problem.S:
        yield Variant({"adapted": "layers"})


def _other_task(problem: Problem) -> Iterator[Variant]:
    if problem.T > 1:
        yield Variant({"score_on": "query of the next task"}, "the next task's")
        if problem.T > 2:
            yield Variant({"score_on": "query of the task before"}, "that of the task before")


def _both(problem: Problem) -> Iterator[Variant]:
    if problem.S > 0 and problem.model is not None:
        yield Variant({"adapt_on": "both"})


def _weight_decay(problem: Problem) -> Iterator[Variant]:
    if problem.S == 0:
        return
    if problem.maml.inner_weight_decay:
        yield Variant({"decay": 0.0}, "it is missing", 0.0)
    else:
        yield Variant({"decay": 0.01}, factor=0.01)


def _other_activation(problem: Problem) -> Iterator[Variant]:
    if problem.model is None or not problem.model.activations or problem.model.structure is not None:
        return
    names = {f.name for f in problem.model.activations}
    # The nearest relative first: it is what one name means in another framework.
    near = ["leaky_relu"] if "relu" in names else ["relu"] if "leaky_relu" in names else []
    near += ["gelu by tanh"] if "gelu" in names else []
    for name in dict.fromkeys([*near, *ACTIVATIONS]):
        if names != {name}:
            yield Variant({"activation": name}, name)


def _broadcast(problem: Problem) -> Iterator[Variant]:
    risk = problem.risk
    if risk is not None and risk.loss.name == "mse" and problem.n_outputs == 1:
        yield Variant({"loss": "targets broadcast"})


def _softmax_twice(problem: Problem) -> Iterator[Variant]:
    if problem.risk is not None and problem.risk.loss.name == "cross_entropy":
        yield Variant({"loss": "softmax twice"})


_SUM_TORCH = "reduction='mean' in the inner loss, once, over all that the formula averages."
_SUM_JAX = "jnp.mean, not jnp.sum, in the inner loss; look for a second division inside vmap."


def _lr_fault(id: str, formula: str, cause: str, factor: Callable[[Problem], float]) -> Fault:
    return Fault(id, "forward", formula, cause, _SUM_TORCH, _SUM_JAX, _lr(factor))


#: In the order of how simple they are: of several that fit, the first is named.
FORWARD = [
    _lr_fault(
        "inner_lr_times_rows",
        "α → K α",
        "The inner loss is a sum over the K support rows, not a mean.",
        lambda p: p.K,
    ),
    _lr_fault(
        "inner_lr_times_outputs",
        "α → d_out α",
        "The inner loss is a sum over the outputs, not a mean.",
        lambda p: p.n_outputs,
    ),
    _lr_fault(
        "inner_lr_times_rows_and_outputs",
        "α → K d_out α",
        "The inner loss is a sum over rows and outputs, not a mean.",
        lambda p: p.K * p.n_outputs,
    ),
    _lr_fault(
        "inner_lr_over_rows",
        "α → α / K",
        "The inner loss is divided by the number of rows twice.",
        lambda p: 1 / p.K,
    ),
    _lr_fault(
        "inner_lr_over_outputs",
        "α → α / d_out",
        "The inner loss is a mean over outputs where it should be a sum.",
        lambda p: 1 / p.n_outputs,
    ),
    _lr_fault(
        "inner_lr_doubled",
        "α → 2 α",
        "The inner loss is counted twice, or a factor ½ is missing in it.",
        lambda p: 2,
    ),
    _lr_fault("inner_lr_halved", "α → α / 2", "The inner loss has a factor ½ too many.", lambda p: 0.5),
    Fault(
        "inner_ascent",
        "forward",
        "α → −α",
        "The inner loop goes uphill: φ + α ∇L^S(φ).",
        "p - inner_lr * g in the inner update, not p + inner_lr * g.",
        "p - inner_lr * g in the inner update; optax.apply_updates adds what has its minus already.",
        _lr(lambda p: -1),
    ),
    Fault(
        "not_adapted",
        "forward",
        "∇L^Q(θ)",
        "The query loss is that of θ itself: ordinary training, on the query sets.",
        "Compute the query loss with the fast weights (functional_call(model, phi, x)), not model(x).",
        "Compute the query loss on what the inner loop returns, not on params.",
        _lr(lambda p: 0),
    ),
    Fault(
        "inner_lr",
        "forward",
        "α → c α, any c",
        "The inner step size is another one than the problem's, by the factor found.",
        "Pass the problem's inner_lr to the inner update itself; the outer optimizer's lr is another.",
        "Pass the problem's inner_lr to the inner update; look for one closed over before a change.",
        _lr(lambda p: 3.0),
    ),
    Fault(
        "one_step_fewer",
        "forward",
        "S → S − 1",
        "The inner loop ends one step early.",
        "for _ in range(S): S updates, then the query loss on what the last one returned.",
        "lax.scan or fori_loop over S, and the query loss on the carry that comes out.",
        _one_fewer,
    ),
    Fault(
        "one_step_more",
        "forward",
        "S → S + 1",
        "The inner loop takes one step too many.",
        "Count the updates: one before the loop makes S + 1.",
        "Count the updates: fori_loop(0, S, ...) makes S.",
        always(extra_steps=1),
    ),
    Fault(
        "inner_gradient_at_theta",
        "forward",
        "φ_{s+1} = φ_s − α ∇L^S(θ)",
        "Every inner gradient is taken at θ, not at φ_s.",
        "Compute the inner loss with the fast weights (functional_call(model, phi, x)), in the loop.",
        "Call grad(loss)(phi, ...) with the carry of the loop, not with the outer params.",
        _several_steps(gradient_at="theta"),
    ),
    Fault(
        "sets_swapped",
        "forward",
        "S ↔ Q",
        "Adapted on the query set and scored on the support set.",
        "Check the order in which the batch is unpacked: support first.",
        "Check the order of the arguments: support first.",
        always(adapt_on="query", score_on="support"),
    ),
    Fault(
        "query_is_support",
        "forward",
        "Q → S",
        "The adapted parameters are scored on the support set itself.",
        "Compute the outer loss on query_x, query_y.",
        "Compute the outer loss on query_x, query_y.",
        always(score_on="support"),
    ),
    Fault(
        "adapted_on_query",
        "forward",
        "S → Q",
        "The inner loop sees the query set.",
        "Compute the inner loss on support_x, support_y.",
        "Compute the inner loss on support_x, support_y.",
        _inner(adapt_on="query"),
    ),
    Fault(
        "adapted_on_both",
        "forward",
        "S → S ∪ Q",
        "The inner loop sees support and query rows together.",
        "Split the batch before the inner loop.",
        "Split the batch before the inner loop.",
        _both,
    ),
    Fault(
        "query_of_another_task",
        "forward",
        "Q_t → Q_{t±1}",
        "A task is scored on another one's query set: support and query share no classes.",
        "Draw support and query of a task from one choice of classes, with one labelling; zip them.",
        "Draw support and query with one key and one labelling; give vmap the same axis for both.",
        _other_task,
    ),
    Fault(
        "no_reset",
        "forward",
        "φ_{t,0} = φ_{t−1,S}, a constant",
        "The initial weights are changed in place: a task begins where the one before ended.",
        "Never write to p.data or call optimizer.step() in the inner loop; begin each task at θ.",
        "Do not carry params from task to task in scan; vmap over tasks.",
        _several_tasks(start="last task"),
    ),
    Fault(
        "no_reset_through_graph",
        "forward",
        "φ_{t,0} = φ_{t−1,S}",
        "The fast weights are not set back to θ between tasks, and the graph runs through all of them.",
        "Put phi = dict(model.named_parameters()) inside the loop over tasks.",
        "Do not carry params from task to task in scan; vmap over tasks.",
        _several_tasks(start="last task, through the graph"),
    ),
    Fault(
        "inner_gradients_accumulate",
        "forward",
        "φ_{s+1} = φ_s − α Σ_{k≤s} ∇L^S(φ_k)",
        "The inner gradients add up from step to step.",
        "Use torch.autograd.grad, which returns fresh gradients; loss.backward() adds to p.grad.",
        "Do not carry the gradient in the loop's state.",
        _several_steps(momentum=1.0),
    ),
    Fault(
        "accumulator_survives_tasks",
        "forward",
        "φ_{s+1} = φ_s − α Σ ∇L^S of all so far",
        "An accumulator of inner gradients (a mutable default argument, p.grad) is never emptied.",
        "def adapt(..., grads=None), made anew in the body; zero_grad() before each step.",
        "Make the accumulator inside the function that vmap maps.",
        _several_tasks(momentum=1.0, momentum_survives=True),
    ),
    Fault(
        "inner_momentum",
        "forward",
        "φ_{s+1} = φ_s − α (μ v_{s−1} + ∇L^S(φ_s))",
        "The inner optimizer has momentum.",
        "torch.optim.SGD(..., momentum=0) for the inner loop, or the update written out.",
        "optax.sgd without momentum for the inner loop.",
        _several_steps(momentum=0.9),
    ),
    Fault(
        "biases_not_adapted",
        "forward",
        "α = 0 for b",
        "The inner loop leaves the biases alone.",
        "Update every entry of named_parameters(), not the weights only.",
        "tree_map the update over the whole tree of params.",
        _adapted("weights"),
    ),
    Fault(
        "only_head_adapted",
        "forward",
        "α = 0 but for the last layer",
        "The inner loop adapts the last layer only (ANIL).",
        "Give the inner loop all parameters, not model.head.parameters().",
        "Take the inner gradient by all params, not by params['head'].",
        _adapted("head"),
    ),
    Fault(
        "head_not_adapted",
        "forward",
        "α = 0 for the last layer",
        "The inner loop leaves the last layer alone (BOIL).",
        "Give the inner loop all parameters, the head's as well.",
        "Take the inner gradient by all params, the head's as well.",
        _adapted("body"),
    ),
    Fault(
        "frozen_adapted",
        "forward",
        "α = 0 → the α of the rest",
        "The inner loop also adapts what it is to leave alone.",
        "Inner gradients by the task parameters only; warp layers, or the frozen ones, as they are.",
        "Take the inner gradient by the task params only; close over the rest.",
        _frozen,
    ),
    Fault(
        "structure_not_adapted",
        "forward",
        "α = 0 for mixtures and gates",
        "The inner loop leaves the structure alone, which the problem adapts.",
        "Give the inner loop mixtures and gates among the parameters, not the layers' alone.",
        "Take the inner gradient by mixtures and gates too.",
        _structure,
    ),
    Fault(
        "inner_weight_decay",
        "forward",
        "∇L^S(φ) → ∇L^S(φ) + w φ, or without it",
        "The inner loop has another weight decay than the problem.",
        "weight_decay of the inner optimizer: the problem's, and 0 if it has none.",
        "add_decayed_weights in the inner transform: the problem's, and none if it has none.",
        _weight_decay,
    ),
    Fault(
        "other_activation",
        "forward",
        "f → another f",
        "The network has another activation.",
        "Use the problem's activation; F.gelu is exact, F.leaky_relu has slope 0.01.",
        "Use the problem's activation; jax.nn.gelu approximates unless approximate=False.",
        _other_activation,
    ),
    Fault(
        "targets_broadcast",
        "forward",
        "(o − y)² for every pair of rows",
        "Outputs (rows, 1) less targets (rows,) make a matrix (rows, rows).",
        "y.unsqueeze(-1), or o.squeeze(-1), before the loss.",
        "y[:, None], or o[:, 0], before the loss.",
        _broadcast,
    ),
    Fault(
        "softmax_twice",
        "forward",
        "o → softmax(o)",
        "Probabilities go to a loss that takes logits.",
        "Drop the softmax layer: F.cross_entropy has one.",
        "Drop the softmax: optax.softmax_cross_entropy has one.",
        _softmax_twice,
    ),
]
