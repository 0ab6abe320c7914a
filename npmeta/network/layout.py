"""How theta is laid out: one vector, and the arrays of every layer, in their order.

``shapes`` are those of :class:`npmeta.MLP`: for each layer the shapes of its arrays by their names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array, shown, unmasked

Shapes: TypeAlias = Sequence[Mapping[str, tuple[int, ...]]]


def places(shapes: Shapes) -> dict[str, slice]:
    """Where theta has each array: ``0.weight``, ``0.bias``, ..."""
    found, start = {}, 0
    for l, own in enumerate(shapes):
        for name, shape in own.items():
            found[f"{l}.{name}"] = slice(start, start + math.prod(shape))
            start += math.prod(shape)
    return found


def unpack(shapes: Shapes, theta: Array) -> list[tuple[Array, ...]]:
    """Each layer's arrays as views of ``theta (..., P)``."""
    layers, start = [], 0
    for own in shapes:
        arrays = []
        for shape in own.values():
            end = start + math.prod(shape)
            arrays.append(theta[..., start:end].reshape(*theta.shape[:-1], *shape))
            start = end
        layers.append(tuple(arrays))
    return layers


def pack(shapes: Shapes, layers: Sequence[Sequence[ArrayLike]]) -> Array:
    """``theta (P,)`` or ``(T, P)`` from each layer's arrays.

    Raises
    ------
    ValueError
        If the number of layers or the shape of one is another.
    """
    if not isinstance(layers, Sequence) or not all(isinstance(l, Sequence) for l in layers):
        raise ValueError(f"layers must be a list of lists of arrays, got {shown(layers)}")
    if len(layers) != len(shapes):
        raise ValueError(f"expected {len(shapes)} layers, got {len(layers)}")
    letters = {"weight": "W", "bias": "b"}
    flat = []
    for l, (own, given) in enumerate(zip(shapes, layers, strict=True)):
        arrays = [unmasked(array, "layers") for array in given]
        lead = arrays[0].shape[:-2]
        if [array.shape for array in arrays] != [(*lead, *shape) for shape in own.values()] or (
            len(lead) > 1
        ):
            expected = " and ".join(f"{letters.get(name, name)} {shape}" for name, shape in own.items())
            every, none = ("both", "neither") if len(own) == 2 else ("all", "none")
            raise ValueError(
                f"layer {l} must have {expected}, {every} or {none} with a task axis in front; got "
                f"{' and '.join(str(array.shape) for array in arrays)}"
            )
        flat += [array.reshape(*lead, -1) for array in arrays]
    if len({part.shape[:-1] for part in flat}) != 1:
        raise ValueError("either all layers have a task axis, of one length, or none has")
    return np.concatenate(flat, axis=-1)
