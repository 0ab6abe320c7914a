r"""The fewest floating-point operations a meta-gradient needs, and how long they would take.

Counted are matrix products, 2·m·k·n operations for (m × k)(k × n): of weights with rows, and of rows
with rows. What goes over single elements is not counted. Nothing is counted twice, even where no
program keeps all of it, and each layer counts in the form that needs fewer (docs/factored.rst).

**Dense**, for each task. A pass multiplies the weights three times with its rows: forward, backward,
and to the outer product that is the gradient. So do S passes over K rows and one over Q. A Hessian
product is the differential of a pass: each of its products has two parts. The first layer passes
nothing back, and its inputs have no differential: two products, and two in the Hessian product.

**Factored**, for each task. The support pass at step s has s·K rows of factors. Their products with
the rows of the pass, of its differential, and of the direction are Gram matrices times factors. A Gram
matrix made once serves from both sides: :math:`a_s \dot a_r^\top` is the transpose of what step r made.
The product with the factors is made every time. The mean of the cotangent over the tasks is one product
of its Q + 2 S K rows. The inputs of the first layer never change, so there it is one of K + Q rows, and
its Gram matrices are made once.
"""

from __future__ import annotations

from itertools import pairwise
from time import perf_counter

import numpy as np

from benchmarks.cases import Case

__all__ = ["dense", "factored", "fewest_flops", "matrix_product_rate"]


def fewest_flops(case: Case) -> int:
    """Operations of the matrix products of one meta-gradient, each layer in its cheaper form."""
    return sum(
        min(form(n_in, n_out, case, first=l == 0) for form in (dense, factored))
        for l, (n_in, n_out) in enumerate(pairwise(case.widths))
    )


def dense(n_in: int, n_out: int, case: Case, *, first: bool) -> int:
    """Operations of a layer with a matrix for each task."""
    T, K, Q, S = case.tasks, case.support_rows, case.query_rows, case.steps
    gradient, hessian = (2, 2) if first else (3, 6)
    return 2 * T * n_in * n_out * (S * K * (gradient + hessian) + Q * gradient)


def factored(n_in: int, n_out: int, case: Case, *, first: bool) -> int:
    """Operations of a layer with a shared matrix and thin factors."""
    T, K, Q, S = case.tasks, case.support_rows, case.query_rows, case.steps
    if first:
        # x W, and at the end xᵀ times the right factor: support and query.
        with_weights = 2 * (K + Q)
        grams = K * K + Q * K
        # Gram matrix times right factor. Forward, steps 1..S-1 and the query; under the differential
        # the query part of the direction, which stays, and the support part, which grows S - 1 times.
        thin = grams * n_in + ((S - 1) * K * K + Q * K) * n_out * 2
        return 2 * T * (with_weights * n_in * n_out + thin)
    # Forward and backward, the differential of both, and the mean of the cotangent.
    with_weights = 4 * S * K + 2 * Q + (Q + 2 * S * K)
    earlier = K * K * S * (S - 1) // 2  # Σ_s K · s K
    grams = Q * S * K + earlier + earlier  # of query and support rows, and of the differentials
    # Gram matrices of the pass, of its differential with the factors of the point, and with the
    # Q + 2 K (S - 1 - s) rows of the direction.
    halves = Q * S * K + earlier + earlier + (S * K * Q + 2 * earlier)
    return 2 * T * (with_weights * n_in * n_out + (grams + halves) * (n_in + n_out))


def matrix_product_rate(dtype: str, n: int = 1024, seconds: float = 0.3) -> float:
    """Operations a second of the quickest product of two n × n matrices, with NumPy's threads."""
    a, b = np.random.default_rng(0).random((2, n, n)).astype(dtype)
    out = a @ b  # starts the threads
    quickest, until = np.inf, perf_counter() + seconds
    while perf_counter() < until or quickest == np.inf:
        started = perf_counter()
        np.matmul(a, b, out=out)
        quickest = min(quickest, perf_counter() - started)
    return 2 * n**3 / quickest
