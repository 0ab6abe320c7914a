"""Memory-augmented networks (Santoro, Bartunov, Botvinick, Wierstra & Lillicrap 2016)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npmeta._support.validation import Array, DType, as_generator, as_whole
from npmeta.algorithms.base import MetaParameters
from npmeta.algorithms.episodic import ByLoss, Compared, check_model, check_scale, in_order
from npmeta.network import activations, losses
from npmeta.network.distances import cosine
from npmeta.network.losses import Loss
from npmeta.network.mlp import MLP
from npmeta.network.softmax import softmax, through_softmax

#: γ, the share of its usage that a slot keeps from one row to the next.
USAGE_KEPT = 0.95

_sigmoid, _tanh = activations.get("sigmoid"), activations.get("tanh")


class State(NamedTuple):
    """What is carried from row to row, or its cotangent, in which ``usage`` is 0."""

    h: Array  # (B, units): output of the controller
    c: Array  # (B, units): its cell
    r: Array  # (B, m): what was read
    w: Array  # (B, slots): where, w^r
    M: Array  # (B, slots, m): the memory
    usage: Array  # (B, slots): w^u


class Stepped(NamedTuple):
    """The outputs ``(B, N)`` and the state after a row, and the way back.

    ``pull_back`` takes a cotangent of the outputs and one of the state, adds to those of the
    meta-parameters, and returns those of the row ``(B, d)`` and of the state before.
    """

    outputs: Array
    state: State
    pull_back: Callable[[Array, State, dict[str, Array]], tuple[Array, State]]


@dataclass(frozen=True, eq=False)
class MANN(ByLoss):
    r"""Read the support set row by row, write to a memory what is worth it, and look it up.

    A controller, an LSTM, is shown each row with the label of the row before it, so that it must hold
    on to a row until its label comes:

    .. math:: h_t, c_t = \operatorname{LSTM}([e(x_t), y_{t-1}, r_{t-1}],\, h_{t-1}, c_{t-1}), \qquad
              k_t = \tanh(W_k h_t + b_k) .

    It writes k to the slot last read and to the one least used, which is emptied first, and reads by
    cosine (section 3 of the paper):

    .. math:: w^w_t &= \sigma(\alpha)\, w^r_{t-1} + (1 - \sigma(\alpha))\, w^{lu}_{t-1}, \qquad
              M_t(i) = [i \ne lu]\, M_{t-1}(i) + w^w_t(i)\, k_t, \\
              w^r_t &= \operatorname{softmax}_i\, s \cos(k_t, M_t(i)), \qquad
              r_t = \sum_i w^r_t(i)\, M_t(i), \\
              w^u_t &= \gamma w^u_{t-1} + w^r_t + w^w_t, \qquad o_t = W_o [h_t, r_t] + b_o .

    Every query row is read in the state that the support set left, with the label of the last support
    row, and independently of the other query rows.

    Parameters
    ----------
    model : MLP
        The embedding e, with d outputs; two widths make it linear.
    loss : str or Loss
        Of the outputs on the query rows.
    ways : int
        N, the number of outputs: classes, or numbers in a target.
    units : int
        Of the controller.
    slots, width : int
        Of the memory: how many, and m, the numbers in each.
    scale : float
        s to begin with, positive; a meta-parameter, "scale". The paper has none, s = 1: then cosines
        over many slots hardly tell one from the others.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    The meta-parameters beside "theta", the embedding's, are "controller" ``(d + N + m + units + 1,
    4 units)``, "key" ``(units + 1, m)`` and "output" ``(units + m + 1, N)``, each with its bias as the
    last row, "write_gate" (α) and "scale" (s). In the paper the loss counts at every row of a stream, α
    may depend on the row, and there are four reads; here the loss is that of the query rows, α one
    number, and there is one read.

    Which slot is least used has no derivative.

    Support rows are read in an order of their inputs (:func:`by_size`), whatever order they come in.
    Otherwise tasks whose classes are always in the same order would teach the network to go by the
    place of a row and not by its label.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> mann = nm.algorithms.MANN(nm.MLP([1, 20]), loss="mse", ways=1, units=8, slots=12, width=4)
    >>> params = mann.init(np.random.default_rng(0))
    >>> tasks = nm.tasks.Sinusoid(shots=10).sample(seed=0, iteration=0, n_tasks=25)
    >>> mann.meta_gradient(params, tasks).grads["controller"].shape
    (34, 32)
    """

    model: MLP
    loss: str | Loss = "cross_entropy"
    ways: int = 5
    units: int = 64
    slots: int = 32
    width: int = 32
    scale: float = 10.0

    def __post_init__(self) -> None:
        check_model(self.model, self.ways, "a memory-augmented network")
        losses.get(self.loss)
        check_scale(self.scale)
        for name in ("units", "slots", "width"):
            as_whole(getattr(self, name), name, 1)

    @property
    def required(self) -> tuple[str, ...]:
        return "controller", "key", "output"

    def extra(self) -> dict[str, Array]:
        d, H, m = self.model.widths[-1], self.units, self.width
        shapes = {
            "controller": (d + self.ways + m + H + 1, 4 * H),
            "key": (H + 1, m),
            "output": (H + m + 1, self.ways),
        }
        matrices = {name: np.zeros(shape) for name, shape in shapes.items()}
        return {**matrices, "write_gate": np.array(0.0), "scale": np.array(float(self.scale))}

    def init(self, rng: np.random.Generator | int, dtype: DTypeLike = np.float64) -> dict[str, Array]:
        """Initial meta-parameters: normal weights of variance 1/n_in, zero biases, but 1 for that of
        the forget gate, so that the cell begins by remembering."""
        rng = as_generator(rng)
        params = super().init(rng, dtype)
        for name in ("controller", "key", "output"):
            W = params[name]
            W[:-1] = rng.normal(scale=1 / math.sqrt(len(W) - 1), size=W[:-1].shape)
        params["controller"][-1, self.units : 2 * self.units] = 1
        return params

    def ordered(self, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        """By :func:`by_size`."""
        return in_order(x, y, by_size)

    def compare(self, params: MetaParameters, support: Array, y: Array, query: Array) -> Compared:
        """Outputs for every query row, after the support rows one by one."""
        (T, K, _), Q = support.shape, query.shape[1]
        late = np.concatenate([np.zeros_like(y[:, :1]), y], axis=1)  # late[:, t] is y_{t−1}
        state, steps = self._begin(T, support.dtype), []
        for t in range(K):
            steps.append(self._step(params, state, support[:, t], late[:, t]))
            state = steps[-1].state
        # Every query row has a copy of the state.
        state = State(*(np.repeat(part, Q, axis=0) for part in state))
        last = self._step(params, state, query.reshape(T * Q, -1), np.repeat(late[:, K], Q, axis=0))

        def pull_back(outputs_bar: Array) -> tuple[Array, Array, dict[str, Array]]:
            grads = {name: np.zeros_like(params[name]) for name in self.extra()}
            nothing = self._begin(T * Q, support.dtype)
            query_bar, bar = last.pull_back(outputs_bar.reshape(T * Q, -1), nothing, grads)
            bar = State(*(part.reshape(T, Q, *part.shape[1:]).sum(1) for part in bar))
            support_bar = np.empty_like(support)
            for t in reversed(range(K)):
                no_output = np.zeros_like(steps[t].outputs)
                support_bar[:, t], bar = steps[t].pull_back(no_output, bar, grads)
            return support_bar, query_bar.reshape(query.shape), grads

        return Compared(last.outputs.reshape(T, Q, -1), pull_back)

    def _begin(self, B: int, dtype: DType) -> State:
        """The state before the first row."""
        H, m, slots = self.units, self.width, self.slots
        return State(
            *(np.zeros((B, *n), dtype) for n in ((H,), (H,), (m,), (slots,), (slots, m), (slots,)))
        )

    def _step(self, params: MetaParameters, before: State, e: Array, y: Array) -> Stepped:
        """One row of every task, embedded, with the label of the row before it."""
        W, W_k, W_o = params["controller"], params["key"], params["output"]
        s, write = params["scale"], _sigmoid.f(params["write_gate"])
        one = np.ones((len(e), 1), e.dtype)

        u = np.concatenate([e, y, before.r, before.h, one], axis=1)
        z_i, z_f, z_o, z_g = np.split(u @ W, 4, axis=1)
        i, f, o, g = _sigmoid.f(z_i), _sigmoid.f(z_f), _sigmoid.f(z_o), np.tanh(z_g)
        c = f * before.c + i * g
        tanh_c = np.tanh(c)
        h = o * tanh_c
        h_one = np.concatenate([h, one], axis=1)
        z_k = h_one @ W_k
        k = np.tanh(z_k)

        least = (np.arange(self.slots) == before.usage.real.argmin(1)[:, None]).astype(e.dtype)
        w_write = write * before.w + _sigmoid.f(-params["write_gate"]) * least  # 1 − σ(α) = σ(−α)
        kept = (1 - least)[..., None]
        M = kept * before.M + w_write[..., None] * k[:, None]
        distance, to_rows = cosine(k[:, None], M)
        d = distance[:, 0]
        w = softmax(-s * d)
        r = (w[:, None] @ M)[:, 0]
        v = np.concatenate([h, r, one], axis=1)
        after = State(h, c, r, w, M, USAGE_KEPT * before.usage + w + w_write)

        def pull_back(outputs_bar: Array, bar: State, grads: dict[str, Array]) -> tuple[Array, State]:
            H = self.units
            v_bar = outputs_bar @ W_o.T
            grads["output"] += v.T @ outputs_bar
            h_bar, r_bar = bar.h + v_bar[:, :H], bar.r + v_bar[:, H:-1]

            w_bar = bar.w + (M @ r_bar[..., None])[..., 0]
            M_bar = bar.M + w[..., None] * r_bar[:, None]
            score_bar = through_softmax(w, w_bar)
            grads["scale"] -= (score_bar * d).sum()
            k_bar, M_bar_read = to_rows((-s * score_bar)[:, None])
            M_bar = M_bar + M_bar_read

            write_bar = (M_bar @ k[..., None])[..., 0]
            k_bar = k_bar[:, 0] + (w_write[:, None] @ M_bar)[:, 0]
            slope = _sigmoid.df(params["write_gate"], write)
            grads["write_gate"] += slope * (write_bar * (before.w - least)).sum()

            z_k_bar = k_bar * _tanh.df(z_k, k)
            grads["key"] += h_one.T @ z_k_bar
            h_bar = h_bar + z_k_bar @ W_k[:-1].T

            c_bar = bar.c + h_bar * o * _tanh.df(c, tanh_c)
            z_bar = np.concatenate(
                [
                    c_bar * g * _sigmoid.df(z_i, i),
                    c_bar * before.c * _sigmoid.df(z_f, f),
                    h_bar * tanh_c * _sigmoid.df(z_o, o),
                    c_bar * i * _tanh.df(z_g, g),
                ],
                axis=1,
            )
            grads["controller"] += u.T @ z_bar
            u_bar = z_bar @ W.T
            d_N, m = e.shape[1] + y.shape[1], self.width
            r_before, h_before = u_bar[:, d_N : d_N + m], u_bar[:, d_N + m : -1]
            w_before, M_before = write * write_bar, kept * M_bar
            chosen = np.zeros_like(before.usage)  # usage has a say in choices only
            moved = State(h_before, c_bar * f, r_before, w_before, M_before, chosen)
            return u_bar[:, : e.shape[1]], moved

        return Stepped(v @ W_o, after, pull_back)


def by_size(x: Array) -> Array:
    """Σ_j x_j cos j of every row, ``(T, rows)``."""
    size: Array = (x * np.cos(np.arange(x.shape[-1]))).sum(-1)
    return size
