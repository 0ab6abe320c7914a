"""What a problem lacks that would tell mistakes apart."""

from __future__ import annotations

import numpy as np

from npmeta.verification.doctor.problem import Problem


def what_would_tell(problem: Problem, right: bool) -> str:
    """How a problem differs from the design in which no two mistakes coincide."""
    model, tasks = problem.model, problem.tasks
    lacks = []
    if problem.S < 3:
        lacks.append(f"3 inner steps (here {problem.S})")
    if problem.T < 3:
        lacks.append(f"3 tasks (here {problem.T})")
    if model is None or all(f.name == "identity" for f in model.activations):
        lacks.append("a network with a smooth nonlinear activation")
    elif any(f.kinks for f in model.activations):
        lacks.append("a smooth activation, tanh say")
    sizes = {"K": problem.K, "Q": problem.Q, "d_out": problem.n_outputs, "T": problem.T}
    if len({*sizes.values(), 1, 2}) < len(sizes) + 2:
        shown = ", ".join(f"{name} = {value}" for name, value in sizes.items())
        lacks.append(f"different sizes, none of them 1 or 2 (here {shown})")
    if np.max(np.abs(problem.maml.inner_lr)) < 0.03:
        lacks.append("larger inner steps, of 0.1 say")
    if tasks.support_x.shape == tasks.query_x.shape and np.array_equal(tasks.support_x, tasks.query_x):
        lacks.append("other rows in the query set than in the support set")
    purpose = "A problem that sees them has" if right else "A problem that tells them apart has"
    return f"{purpose} {'; '.join(lacks)}." if lacks else "No problem tells these apart."
