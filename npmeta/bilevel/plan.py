"""Which layers hold their weights dense and which factored: a cost for each form, and a choice.

The cost of a form is an estimate of the time of one meta-gradient in one layer,

    flops / FLOP_RATE + bytes / BYTE_RATE + calls · CALL + matrices · MATRIX,

where flops are those of matrix products; bytes are what goes through memory for arrays with an entry
for every weight of every task, or every row of a thin factor; calls are those of NumPy; and matrices
are the small ones in stacks, each of which costs something of its own. The four constants are of a
small cloud machine, and only their ratios matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

#: How weights may be held: by what is cheaper in each layer, or all in one way.
FORMS = ("auto", "dense", "factored")

#: Per second, for float32; float64 does half as many.
FLOP_RATE = 6e10
#: Per second.
BYTE_RATE = 2.5e10
#: Seconds for a call of NumPy, and for each matrix of a stack.
CALL, MATRIX = 2e-6, 2e-7


#: Bytes of one layer's activations in a chunk of tasks: several such arrays fit in a core's cache.
CHUNK = 2**19
#: Support rows a chunk has at least, to make it worth while to read the shared matrices for it.
CHUNK_ROWS = 128


def chunk_size(
    widths: tuple[int, ...], *, n_tasks: int, n_support: int, n_query: int, itemsize: int
) -> int:
    """How many tasks to do at a time: as many as fit in the cache, in chunks as even as can be."""
    task = max(n_support, n_query) * max(widths[1:]) * itemsize
    size = max(CHUNK // task, -(-CHUNK_ROWS // n_support))
    n_chunks = -(-n_tasks // size)
    return -(-n_tasks // n_chunks)


@dataclass(frozen=True)
class Cost:
    """What one meta-gradient costs in one layer, in one form."""

    flops: float
    bytes: float
    calls: float
    matrices: float
    itemsize: int

    @property
    def seconds(self) -> float:
        return (
            self.flops / (FLOP_RATE * 4 / self.itemsize)
            + self.bytes / BYTE_RATE
            + self.calls * CALL
            + self.matrices * MATRIX
        )


def dense_cost(
    n_in: int,
    n_out: int,
    T: int,
    K: int,
    Q: int,
    S: int,
    itemsize: int,
    *,
    first: bool,
    second_order: bool,
) -> Cost:
    """The cost of a matrix for each task; ``first`` for the first layer, which passes nothing back."""
    # Products with n_in · n_out weights: forward, (backward,) outer product; the same under the
    # differential, where the middle ones are two each.
    gradient = 2 if first else 3
    hessian = (2 if first else 6) * second_order
    products = S * (gradient + hessian)
    flops = 2 * T * n_in * n_out * (K * products + Q * gradient)
    # Beside being read by the products, weights go through memory in descents: the gradient written,
    # scaled (2), subtracted (3); in the adjoint also the direction scaled (2).
    passes = products + gradient + S * (6 + 8 * second_order)
    stacks = products + gradient
    return Cost(flops, passes * T * n_in * n_out * itemsize, 2 * passes, stacks * T, itemsize)


def factored_cost(
    n_in: int,
    n_out: int,
    T: int,
    K: int,
    Q: int,
    S: int,
    itemsize: int,
    *,
    first: bool,
    second_order: bool,
) -> Cost:
    """The cost of a shared matrix and thin factors (:mod:`npmeta.network.factored`)."""
    n = n_in + n_out
    if first:
        # Once: x W and x xᵀ; at the end one product for the mean over tasks.
        shared = (K + Q) + (K + Q)
        thin = (K + Q) * K * n_in + S * K * K * n_out + Q * K * n_out
        thin += second_order * S * K * (K + Q) * n_out
        stacks = 2 + S + 1 + second_order * 2 * S
        rows = (K + Q) * n * stacks
        calls = 8 * S + 12
    else:
        at_rest = sum(s * K * K for s in range(S)) * n * 2 + Q * S * K * n * 2
        moving = sum(s * K * K + K * (Q + 2 * K * (S - 1 - s)) for s in range(S)) * n * 2
        thin = at_rest + second_order * moving
        shared = S * K * (2 + 2 * second_order) + 2 * Q + (Q + 2 * S * K * second_order)
        acts = 2 * (S + 1) + second_order * 4 * S
        stacks = 2 * acts
        rows = (Q + S * K) * n * acts
        calls = 6 * acts + 12 * S
    flops = 2 * T * (shared * n_in * n_out + thin)
    return Cost(flops, T * rows * itemsize, calls, stacks * T, itemsize)


@dataclass(frozen=True)
class LayerPlan:
    """What one layer does.

    Attributes
    ----------
    n_in, n_out : int
    form : {"dense", "factored"}
    dense, factored : Cost
    why : str
    """

    n_in: int
    n_out: int
    form: str
    dense: Cost
    factored: Cost
    why: str


@dataclass(frozen=True)
class Plan:
    """How every layer holds its weights in a meta-gradient; printed, it says why.

    Attributes
    ----------
    layers : tuple of LayerPlan
    n_tasks : int
        How many tasks are done at a time.
    n_steps : int
        S, the inner steps to make room for.
    second_order : bool
        Whether an adjoint follows that asks again for what the inner loop has made.
    """

    layers: tuple[LayerPlan, ...]
    n_tasks: int
    n_steps: int
    second_order: bool

    @property
    def forms(self) -> tuple[str, ...]:
        """The form of each layer."""
        return tuple(layer.form for layer in self.layers)

    def __str__(self) -> str:
        head = f"{'layer':>5}  {'shape':>11}  {'form':<8}  {'dense':>10}  {'factored':>10}  why"
        order = "second" if self.second_order else "first"
        lines = [f"{self.n_tasks} tasks at a time, {self.n_steps} inner steps, {order} order", head]
        for l, layer in enumerate(self.layers):
            shape = f"{layer.n_in}×{layer.n_out}"
            dense, factored = (1e3 * cost.seconds for cost in (layer.dense, layer.factored))
            lines.append(
                f"{l:>5}  {shape:>11}  {layer.form:<8}  {dense:>7.2f} ms  {factored:>7.2f} ms  "
                f"{layer.why}"
            )
        return "\n".join(lines)


@lru_cache(maxsize=64)
def make_plan(
    widths: tuple[int, ...],
    *,
    n_tasks: int,
    n_support: int,
    n_query: int,
    n_steps: int,
    itemsize: int,
    second_order: bool,
    per_parameter: bool,
    weights: str = "auto",
) -> Plan:
    """Choose a form for every layer.

    Parameters
    ----------
    widths : tuple of int
        Of the network.
    n_tasks, n_support, n_query, n_steps : int
        T, K, Q and S.
    itemsize : int
        Bytes of a number: 4 or 8.
    second_order : bool
        Whether the adjoint has Hessian products.
    per_parameter : bool
        Whether step sizes differ within a layer. Then an update is no sum of few outer products.
    weights : {"auto", "dense", "factored"}
        The cheaper form in each layer, or one for all.

    Raises
    ------
    ValueError
        If "factored" is asked for with step sizes per parameter.
    """
    if per_parameter and weights == "factored":
        raise ValueError("step sizes per parameter need dense weights, not weights='factored'")
    layers = []
    for l, (n_in, n_out) in enumerate(pairwise(widths)):
        dense, factored = (
            cost(
                n_in,
                n_out,
                n_tasks,
                n_support,
                n_query,
                n_steps,
                itemsize,
                first=l == 0,
                second_order=second_order,
            )
            for cost in (dense_cost, factored_cost)
        )
        if per_parameter:
            form, why = "dense", "step sizes differ within the layer"
        elif weights != "auto":
            form, why = weights, "as asked for"
        else:
            form = "factored" if factored.seconds < dense.seconds else "dense"
            why = "cheaper"
        layers.append(LayerPlan(n_in, n_out, form, dense, factored, why))
    return Plan(tuple(layers), n_tasks, n_steps, second_order)
