"""npmeta's MAML beside another framework's, as one number."""

import numpy as np

import npmeta as nm
from tests.helpers import Problem, relative_error, size_of_terms


def disagreement(
    peer, p: Problem, alpha, kind: str, S: int, decay: float = 0.0, first_order: bool = False
) -> float:
    """The largest relative error of npmeta's task losses, gradient and step-size gradient.

    ``peer`` takes the same arguments and returns these three.
    """
    maml = nm.MAML(p.model, p.loss, alpha, S, inner_weight_decay=decay, first_order=first_order)
    ours = maml.meta_gradient({"theta": p.theta, "inner_lr": alpha}, p.tasks)
    losses, by_theta, by_alpha = peer(p, alpha, kind, S, decay, first_order)
    for mine, theirs in zip((ours.grad, ours.grads["inner_lr"]), (by_theta, by_alpha), strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
    # Where terms cancel (in the derivative by a step size that many parameters share, above all), the
    # terms are the measure.
    terms = size_of_terms(p, alpha, S, decay)
    scale = max(np.abs(by_theta).max(), terms) or 1.0
    return max(
        relative_error(ours.task_loss, losses),
        float(np.abs(ours.grad - by_theta).max() / scale),
        float(np.abs(ours.grads["inner_lr"] - by_alpha).max() / (np.abs(by_alpha).max() + scale)),
    )


def assert_agree(peer, p: Problem, alpha, kind: str, S: int, *options, rtol: float, **more) -> None:
    error = disagreement(peer, p, alpha, kind, S, *options, **more)
    # Written so that a NaN fails.
    assert error <= rtol, f"{p}, {S} steps, {kind}, {options}: {error:.3g} exceeds {rtol:g}"
