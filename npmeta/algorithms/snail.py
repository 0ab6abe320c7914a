"""A simple neural attentive meta-learner (Mishra, Rohaninejad, Chen & Abbeel 2018)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npmeta._support.validation import Array, as_generator, as_whole, check_flag
from npmeta.algorithms.base import MetaParameters
from npmeta.algorithms.episodic import ByLoss, Compared, check_model, in_order
from npmeta.network import losses
from npmeta.network.losses import Loss
from npmeta.network.mlp import MLP
from npmeta.network.sequences import Layered, attention, dilated_convolution, linear

#: In a block: the last dilation is then 2**31 rows.
MOST_CONVOLUTIONS = 32


@dataclass(frozen=True, eq=False)
class SNAIL(ByLoss):
    r"""Read a task as a sequence: support rows with their targets, and a query row that has none.

    .. math:: a_t = [e(x_t), y_t] \quad (t \le K), \qquad a_{K+1} = [e(x), 0] .

    Layers that see no later row make of each row more and more numbers, and the output is linear in
    those of the query row (section 3 of the paper). They are an attention, and then, in every block,
    convolutions with dilations 1, 2, 4, ... and one more attention. A convolution sees two rows in
    known places; an attention sees all rows, and finds those it looks for by what is in them:

    .. math:: z_t &= a_t W_0 + a_{t-D} W_1 + b, \qquad
              h_t = \tanh z_t^f \circ \sigma(z_t^g), \qquad a_t \leftarrow [a_t, h_t], \\
              q_t, k_t, v_t &= a_t W + b, \qquad r_t = \sum_{s \le t}
              \operatorname{softmax}_{s \le t} \bigl(q_t \cdot k_s / \sqrt d\bigr)\, v_s, \qquad
              a_t \leftarrow [a_t, r_t] .

    Each query row ends a sequence of its own, and all share what is made of the support rows.

    Parameters
    ----------
    model : MLP
        The embedding e; two widths make it linear. With batch normalisation embeddings, and by them
        predictions, depend on all rows of a task.
    loss : str or Loss
        Of the outputs on the query rows.
    ways : int
        N, the number of outputs: classes, or numbers in a target.
    blocks : int
        Of convolutions and an attention, behind the first attention; 0 or more.
    convolutions : int
        In a block, 1 to 32. With J of them a row is reached by the 2**J − 1 rows before it; attention
        reaches further.
    filters : int
        Numbers that a convolution adds to a row.
    key_width, value_width : int
        Numbers in a key, or a query, and those that an attention adds to a row.
    shuffle : bool
        Whether the support rows of every task are read in an order that is drawn from their inputs
        (:func:`drawn`), so that it does not matter in which they come, and no place stands for a
        class; rows of equal inputs stay as they come. If not, all are read as they come: for series.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    The meta-parameters beside "theta", the embedding's, are one matrix a layer with its bias as the
    last row: "attention_0", ..., "attention_B" ``(n + 1, 2 key_width + value_width)``, for queries,
    keys and values; "convolution_1_1", "convolution_1_2", "convolution_1_4", ... by block and
    dilation, ``(2 n + 1, 2 filters)``, W_0 over W_1 over b; and "output" ``(n + 1, N)``. n is how many
    numbers a row has there: the embedding's and N to begin with.

    Dilations beyond the support rows of training meet zeros only, and their W_1 stays as it was drawn.
    In a task with more rows it would take part, untrained: where tasks may become larger, train with as
    many rows, or have fewer convolutions. The paper has as many as a sequence has use for, here
    ⌈log2(K + 1)⌉.

    The paper's networks are wider, and for drawings have a convolutional embedding; where it learns to
    act, two blocks of convolutions come first. The loss is that of the query rows, as in the paper's
    classification.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> snail = nm.algorithms.SNAIL(nm.MLP([1, 20]), loss="mse", ways=1, blocks=1, filters=8)
    >>> params = snail.init(np.random.default_rng(0))
    >>> tasks = nm.tasks.Sinusoid(shots=10).sample(seed=0, iteration=0, n_tasks=25)
    >>> snail.meta_gradient(params, tasks).grads["convolution_1_1"].shape
    (107, 16)
    """

    model: MLP
    loss: str | Loss = "cross_entropy"
    ways: int = 5
    blocks: int = 2
    convolutions: int = 4
    filters: int = 32
    key_width: int = 32
    value_width: int = 32
    shuffle: bool = True

    def __post_init__(self) -> None:
        check_model(self.model, self.ways, "SNAIL")
        losses.get(self.loss)
        as_whole(self.blocks, "blocks")
        as_whole(self.convolutions, "convolutions", 1, MOST_CONVOLUTIONS)
        for name in ("filters", "key_width", "value_width"):
            as_whole(getattr(self, name), name, 1)
        check_flag(self.shuffle, "shuffle")

    def layers(self) -> Iterator[tuple[str, int]]:
        """The layers in their order, but the last: their names and dilations, 0 for an attention."""
        yield "attention_0", 0
        for block in range(1, self.blocks + 1):
            for j in range(self.convolutions):
                yield f"convolution_{block}_{2**j}", 2**j
            yield f"attention_{block}", 0

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(self.extra())

    def extra(self) -> dict[str, Array]:
        shapes, n = {}, self.model.widths[-1] + self.ways
        for name, dilation in self.layers():
            if dilation:
                shapes[name] = 2 * n + 1, 2 * self.filters
            else:
                shapes[name] = n + 1, 2 * self.key_width + self.value_width
            n += self.filters if dilation else self.value_width
        shapes["output"] = n + 1, self.ways
        return {name: np.zeros(shape) for name, shape in shapes.items()}

    def init(self, rng: np.random.Generator | int, dtype: DTypeLike = np.float64) -> dict[str, Array]:
        """Initial meta-parameters: normal weights of variance 1/n_in, zero biases, and queries that are
        the keys, so that rows begin by looking for their like."""
        rng = as_generator(rng)
        params = super().init(rng, dtype)
        for name in self.extra():
            W = params[name]
            W[:-1] = rng.normal(scale=1 / math.sqrt(len(W) - 1), size=W[:-1].shape)
            if name.startswith("attention"):
                W[:, : self.key_width] = W[:, self.key_width : 2 * self.key_width]
        return params

    def ordered(self, x: ArrayLike, y: ArrayLike) -> tuple[ArrayLike, ArrayLike]:
        """Shuffled, by :func:`drawn`, or as they come."""
        return in_order(x, y, drawn) if self.shuffle else (x, y)

    def compare(self, params: MetaParameters, support: Array, y: Array, query: Array) -> Compared:
        """Outputs for every query row, at the end of the support rows."""
        (T, K, d), Q = support.shape, query.shape[1]
        no_target = np.zeros((T, Q, self.ways), y.dtype)
        a = np.concatenate([support, query], axis=1)
        a = np.concatenate([a, np.concatenate([y, no_target], axis=1)], axis=2)
        passed: dict[str, Layered] = {}
        for name, dilation in self.layers():
            if dilation:
                passed[name] = dilated_convolution(a, params[name], K, dilation)
            else:
                passed[name] = attention(a, params[name], K, self.key_width)
            a = passed[name].outputs
        last = linear(a[:, K:], params["output"])

        def pull_back(outputs_bar: Array) -> tuple[Array, Array, dict[str, Array]]:
            grads: dict[str, Array] = {}
            a_bar = np.zeros_like(a)  # nobody is told of the last support row but by those after it
            a_bar[:, K:], grads["output"] = last.pull_back(outputs_bar)
            for name, layer in reversed(passed.items()):
                a_bar, grads[name] = layer.pull_back(a_bar)
            return a_bar[:, :K, :d], a_bar[:, K:, :d], grads

        return Compared(last.outputs, pull_back)


def drawn(x: Array) -> Array:
    """A number for every row ``(T, rows)`` that looks random and is a function of all inputs.

    The CRC-32 of a row's bytes in float32, mixed with those of all rows of the task, so that two rows
    may change places in other company. The least change of an input may change the whole order.
    """
    rows = (x + 0.0).astype("<f4")  # −0 is 0
    sums = [[zlib.crc32(row.tobytes()) for row in task] for task in rows]
    own = np.array(sums, dtype=np.uint32).reshape(x.shape[:2])
    mixed: Array = own ^ np.bitwise_xor.reduce(own, axis=1, keepdims=True)
    return mixed
