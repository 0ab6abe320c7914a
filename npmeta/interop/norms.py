"""Whether another framework's normalisation is npmeta's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from npmeta.network.normalisation import EPS

#: PyTorch's modules, by the name of their class.
TORCH_NORMS = {"BatchNorm1d": "batch", "LayerNorm": "layer"}
#: Keras's layers.
KERAS_NORMS = {"BatchNormalization": "batch", "LayerNormalization": "layer"}


def kinds_in(net: Any) -> set[str | None]:
    """What a module normalises by, if it says so; empty for parameters alone.

    Raises
    ------
    ValueError
        If one of its norms computes something else than npmeta's.
    """
    kinds: set[str | None] = set()
    for part in _parts(net):
        name = type(part).__name__
        if name in TORCH_NORMS:
            _check_torch(part)
            kinds.add(TORCH_NORMS[name])
        elif name in KERAS_NORMS:
            _check_eps(part, "epsilon")
            kinds.add(KERAS_NORMS[name])
    return kinds


def check_scales(model: Any) -> None:
    """Refuse norms of a Keras model that lack scale or shift: in a list of weights statistics would be
    taken for them."""
    for part in _parts(model):
        if type(part).__name__ in KERAS_NORMS and not (part.scale and part.center):
            raise ValueError(
                f"{part.name!r} lacks a scale or a shift; npmeta's norms have both: center=True and "
                "scale=True"
            )


def _parts(net: Any) -> Iterator[Any]:
    """The modules of PyTorch's module, or the layers of Keras's model, one in another included."""
    if hasattr(net, "get_weights"):  # first: on PyTorch, Keras's models are modules too
        for layer in getattr(net, "layers", ()):
            yield layer
            yield from _parts(layer)
    elif hasattr(net, "named_parameters") and hasattr(net, "modules"):
        yield from net.modules()


def _check_torch(module: Any) -> None:
    name = type(module).__name__
    _check_eps(module, "eps")
    if module.weight is None or module.bias is None:
        option = "affine" if name == "BatchNorm1d" else "elementwise_affine"
        raise ValueError(
            f"{module!r} lacks a scale or a shift; npmeta's norms have both: {option}=True"
        )
    if name == "LayerNorm" and len(module.normalized_shape) != 1:
        raise ValueError(f"{module!r} normalises more than the units of a row; npmeta's does not")
    if name == "BatchNorm1d" and module.track_running_stats and not module.training:
        raise ValueError(
            f"{module!r} is in evaluation mode, where it normalises by running statistics; npmeta has "
            "none, and takes those of the rows at hand: net.train(), or track_running_stats=False"
        )


def _check_eps(module: Any, name: str) -> None:
    eps = getattr(module, name)
    if eps != EPS:
        shown = getattr(module, "name", None) or repr(module)
        raise ValueError(
            f"{shown} has {name}={eps:g}, and npmeta's norms have {EPS:g}: set {name}={EPS:g}"
        )
