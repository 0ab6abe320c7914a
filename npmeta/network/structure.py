r"""A hidden layer's structure as parameters: the mixture its activation is, and a gate for every unit.

.. math:: p = \operatorname{softmax}(\mu), \qquad g = \sigma(\gamma), \qquad
          m = \sum_k p_k f_k(z), \qquad a = g \circ m .

The candidates f are given; μ has a number for each of them, γ one for each unit. They are parameters of
the block, after W and b, so inner steps may move them, and the Hessian has their cross terms with each
other and with all weights. A softmax over candidates is how DARTS (Liu, Simonyan & Yang 2019) makes a
choice differentiable, and linear combinations of activations are those of Manessi & Rozza (2018,
"Learning combinations of activation functions").

In the passes of a network a is what the layer hands to its activation, which is the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from npmeta._support.validation import Array, as_list, check_flag
from npmeta.network import activations
from npmeta.network.activations import Activation
from npmeta.network.parts import Parted, Parts, PreActivation
from npmeta.network.softmax import relative_to_largest, softmax, through_softmax
from npmeta.network.weights import OuterSum, Vector, row_sum, total

#: What γ is at first: gates of 0.95, near the plain network's 1.
GATE_AT_FIRST = 3.0

_SIGMOID = activations.get("sigmoid")


def shares_of(logits: Array) -> Array:
    """p, the softmax of μ ``(..., K)``; complex-safe, as activations are."""
    return softmax(logits)


def gates_of(logits: Array) -> Array:
    """g, the sigmoid of γ."""
    return _SIGMOID.f(logits)


def _unchanged(z: Array) -> Array:
    return z


def _ones(z: Array, a: Array) -> Array:
    return np.ones_like(z)


@dataclass(frozen=True)
class Structure:
    """What the structure of hidden layers is learned from.

    Parameters
    ----------
    candidates : sequence of str or Activation
        What the activation is a mixture of, in all hidden layers; one alone is no mixture.
    gates : bool
        Whether each hidden unit has a gate.
    adapt : bool
        Whether inner steps move the structure as they move weights, by the step size of the layer. If
        not, the outer loop alone learns it.

    Raises
    ------
    ValueError
        If a name is unknown or comes twice, or there is nothing to learn.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> model = nm.MLP([1, 40, 40, 1], structure=nm.Structure(("relu", "tanh", "sin")))
    >>> mixture = model.places["0.mixture"]
    >>> theta = model.init(np.random.default_rng(0))
    >>> theta.shape, theta[mixture]
    ((1847,), array([0., 0., 0.]))
    """

    candidates: Sequence[str | Activation] = ("relu", "tanh", "sin")
    gates: bool = True
    adapt: bool = True

    def __post_init__(self) -> None:
        given = self.candidates
        if isinstance(given, str | Activation):
            given = [given]
        check_flag(self.gates, "gates")
        check_flag(self.adapt, "adapt")
        candidates = tuple(map(activations.get, as_list(given, "candidates", "a list of activations")))
        names = [f.name for f in candidates]
        if len(set(names)) < max(len(names), 1):
            raise ValueError(f"candidates must be one or more different activations, got {names}")
        if len(names) == 1 and not self.gates:
            raise ValueError(f"{names[0]} alone without gates leaves no structure to be learned")
        object.__setattr__(self, "candidates", candidates)

    def __repr__(self) -> str:
        return f"Structure({self.names!r}, gates={self.gates}, adapt={self.adapt})"

    @property
    def functions(self) -> tuple[Activation, ...]:
        """The candidates."""
        return self.candidates  # type: ignore[return-value]  # names have been looked up

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the candidates."""
        return tuple(f.name for f in self.functions)

    @property
    def activation(self) -> Activation:
        """What follows in the passes: the identity, with the kinks of all candidates and their mean
        gain. Its name is that of no activation."""
        kinks = sorted({kink for f in self.functions for kink in f.kinks})
        gain = sum(f.variance_gain for f in self.functions) / len(self.functions)
        name = "+".join(self.names) + (", gated" if self.gates else "")
        return Activation(name, _unchanged, _ones, None, tuple(kinks), gain)

    def shapes(self, n: int) -> dict[str, tuple[int, ...]]:
        """The arrays of a layer of n units, after weight and bias."""
        shapes: dict[str, tuple[int, ...]] = {}
        if len(self.functions) > 1:
            shapes["mixture"] = (len(self.functions),)
        if self.gates:
            shapes["gate"] = (n,)
        return shapes


@dataclass(frozen=True)
class Structured(Parted):
    """A hidden layer with its structure, in two or three parts: W and b, μ where there are several
    candidates, γ where there are gates.

    Attributes
    ----------
    candidates : tuple of Activation
    """

    candidates: tuple[Activation, ...]

    def between(self, z: Array) -> PreActivation:
        return Mixed(self, z)

    def logits_of(self, parts: Parts) -> tuple[Array | None, Array | None]:
        """μ and γ of the block, or of a direction of it; None for what is not there."""
        others = [part.values for part in parts.parts[1:]]
        mixture = others.pop(0) if len(self.candidates) > 1 else None
        return mixture, others[0] if others else None


# --- the passes -------------------------------------------------------------------------------------


class MixedDot(NamedTuple):
    """The differential of a :class:`Mixed`; None for what is not there."""

    u: Array
    z: Array
    m: Array
    p: Array | None
    gate: Array | None
    g: Array | None


class Mixed(PreActivation):
    r"""z after the mixture and the gates. With

    .. math:: J(v) = p \circ (v - \langle p, v \rangle),

    which is symmetric, J is the Jacobian of the softmax, on the way forward and on the way back.
    """

    def __init__(self, block: Structured, z: Array) -> None:
        self.block, self.z = block, z
        self.gate: Any
        self.f = [f.f(z) for f in block.candidates]
        mixture, self.gate = block.logits_of(block)
        self.p = None if mixture is None else shares_of(mixture)
        self.m = self._mix(self.p, self.f)
        self.g = None if self.gate is None else _rows(gates_of(self.gate))
        self.u = self._gated(self.m)

    @property
    def kinked(self) -> Array:
        return self.z

    @cached_property
    def df(self) -> list[Array]:
        """f' of every candidate."""
        return [f.df(self.z, a) for f, a in zip(self.block.candidates, self.f, strict=True)]

    @cached_property
    def slope(self) -> Array:
        """m' = Σ p_k f'_k."""
        return self._mix(self.p, self.df)

    @cached_property
    def curvature(self) -> Array:
        """m'' = Σ p_k f''_k; most are 0 for some candidates, so those are left out."""
        seconds = [f.d2f for f in self.block.candidates]
        shares = [1.0] if self.p is None else _per_task(self.p)
        parts = zip(shares, seconds, self.f, strict=True)
        found = [p * d2f(self.z, a) for p, d2f, a in parts if d2f is not None]
        return total(found) if found else np.zeros_like(self.z)

    def forward_dot(self, tangent: Parts, z_dot: Array) -> MixedDot:
        # ṗ = J(μ̇);  ṁ = m' ∘ ż + Σ ṗ_k f_k;  ġ = σ' ∘ γ̇;  u̇ = g ∘ ṁ + ġ ∘ m
        m_dot = self.slope * z_dot
        mixture_dot, gate_dot = self.block.logits_of(tangent)
        p_dot = g_dot = None
        if mixture_dot is not None:
            p_dot = self._jacobian(mixture_dot)
            m_dot = m_dot + self._mix(p_dot, self.f)
        u_dot = self._gated(m_dot)
        if gate_dot is not None:
            g_dot = _rows(self._gate_slope * gate_dot)
            u_dot = u_dot + g_dot * self.m
        return MixedDot(u_dot, z_dot, m_dot, p_dot, gate_dot, g_dot)

    def backward(self, u_bar: Array) -> Array:
        # m-bar = g ∘ ū;  δ = m' ∘ m-bar
        return self.slope * self._gated(u_bar)

    def backward_dot(self, dot: MixedDot, u_bar: Array, delta: Array, u_bar_dot: Array) -> Array:
        # m'-dot = m'' ∘ ż + Σ ṗ_k f'_k;  δ̇ = m' ∘ m-bar-dot + m'-dot ∘ m-bar
        slope_dot = self.curvature * dot.z
        if dot.p is not None:
            slope_dot = slope_dot + self._mix(dot.p, self.df)
        m_bar, m_bar_dot = self._gated(u_bar), self._gated_dot(dot, u_bar, u_bar_dot)
        return self.slope * m_bar_dot + slope_dot * m_bar

    def gradient(self, layer: OuterSum, u_bar: Array) -> Parts:
        mixture = gate = None
        if self.p is not None:
            mixture = self._jacobian(self._by_share(self._gated(u_bar), self.f))
        if self.g is not None:
            gate = self._gate_slope * row_sum(u_bar * self.m)
        return _gradient(layer, mixture, gate)

    def gradient_dot(self, layer: OuterSum, dot: MixedDot, u_bar: Array, u_bar_dot: Array) -> Parts:
        mixture = gate = None
        if self.p is not None and dot.p is not None:
            # p_k-bar = ⟨m-bar, f_k⟩;  its differential is ⟨m-bar-dot, f_k⟩ + ⟨m-bar, f'_k ∘ ż⟩
            m_bar = self._gated(u_bar)
            p_bar = self._by_share(m_bar, self.f)
            p_bar_dot = self._by_share(self._gated_dot(dot, u_bar, u_bar_dot), self.f)
            p_bar_dot = p_bar_dot + self._by_share(m_bar * dot.z, self.df)
            # J̇(v) = ṗ ∘ (v − ⟨p, v⟩) − p ⟨ṗ, v⟩, which is J̇(v − v_m) since ṗ adds up to 0
            p_bar = relative_to_largest(self.p, p_bar)
            mixture = self._jacobian(p_bar_dot) + dot.p * (p_bar - _inner(self.p, p_bar))
            mixture = mixture - self.p * _inner(dot.p, p_bar)
        if self.g is not None:
            # γ-bar = σ' ∘ 1ᵀ(ū ∘ m)
            g_bar = row_sum(u_bar * self.m)
            g_bar_dot = row_sum(u_bar_dot * self.m + u_bar * dot.m)
            gate = self._gate_slope * g_bar_dot + self._gate_curvature * dot.gate * g_bar
        return _gradient(layer, mixture, gate)

    # --- the pieces of these

    def _mix(self, p: Array | None, values: Sequence[Array]) -> Array:
        """Σ p_k v_k; without a mixture the one v there is."""
        if p is None:
            return values[0]
        return total(share * v for share, v in zip(_per_task(p), values, strict=True))

    def _gated(self, v: Array) -> Array:
        """g ∘ v."""
        return v if self.g is None else self.g * v

    def _gated_dot(self, dot: MixedDot, v: Array, v_dot: Array) -> Array:
        """g ∘ v̇ + ġ ∘ v."""
        gated = self._gated(v_dot)
        return gated if dot.g is None else gated + dot.g * v

    def _jacobian(self, v: Array) -> Array:
        """J(v) for ``v (K,)`` or ``(T, K)``."""
        assert self.p is not None
        return through_softmax(self.p, v)

    @staticmethod
    def _by_share(m_bar: Array, values: Sequence[Array]) -> Array:
        """⟨m-bar, v_k⟩ over the rows and units of each task, ``(T, K)``."""
        return np.stack([np.einsum("tri,tri->t", m_bar, v) for v in values], axis=-1)

    @cached_property
    def _gate_slope(self) -> Array:
        """σ' at γ."""
        return _SIGMOID.df(self.gate, gates_of(self.gate))

    @property
    def _gate_curvature(self) -> Array:
        """σ'' at γ."""
        assert _SIGMOID.d2f is not None
        return _SIGMOID.d2f(self.gate, gates_of(self.gate))


def _gradient(layer: OuterSum, mixture: Array | None, gate: Array | None) -> Parts:
    return Parts((layer, *(Vector(part) for part in (mixture, gate) if part is not None)))


def _rows(gates: Array) -> Array:
    """``(n,)``, or ``(T, 1, n)``: one for every row."""
    return gates if gates.ndim == 1 else gates[:, None, :]


def _per_task(p: Array) -> Array:
    """p ``(K,)`` or ``(T, K)`` as what rows and units of all tasks are multiplied by, K of them."""
    return p if p.ndim == 1 else p.T[:, :, None, None]


def _inner(p: Array, v: Array) -> Array:
    """⟨p, v⟩, ``(..., 1)``."""
    return (p * v).sum(-1, keepdims=True)
