"""The network that computes what another framework's does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from npmeta.interop.norms import TORCH_NORMS, kinds_in
from npmeta.interop.order import widths_of
from npmeta.interop.structures import find_layers
from npmeta.network.activations import Activation, elu, leaky_relu
from npmeta.network.mlp import MLP

#: Modules that change nothing where rows are vectors already.
_NOTHING = {"Flatten", "Identity"}


def _only(name: str, **expected: Any) -> Callable[[Any], str]:
    """The activation ``name`` for a module with these settings, and no other."""

    def get(module: Any) -> str:
        for setting, value in expected.items():
            if getattr(module, setting) != value:
                raise ValueError(
                    f"{module!r} is not npmeta's {name}, which has {setting}={value!r}; write it as an "
                    "npmeta.Activation of your own and pass activation="
                )
        return name

    return get


#: PyTorch's modules by the name of their class.
_ACTIVATIONS: dict[str, Callable[[Any], str | Activation]] = {
    "ReLU": _only("relu"),
    "LeakyReLU": lambda module: leaky_relu(module.negative_slope),
    "ELU": lambda module: elu(module.alpha),
    "Tanh": _only("tanh"),
    "Sigmoid": _only("sigmoid"),
    # Beyond its threshold PyTorch gives z for log(1 + exp(z)): less than 2.1e-9 apart.
    "Softplus": _only("softplus", beta=1.0, threshold=20.0),
    "GELU": _only("gelu", approximate="none"),
    "SiLU": _only("silu"),
}


def model_of(
    params: Any,
    activation: str | Activation | Sequence[str | Activation] | None = None,
    *,
    norm: str | None = None,
    adapt_norm: bool = True,
    layout: str | None = None,
    order: Sequence[str] | None = None,
) -> MLP:
    """The :class:`~npmeta.MLP` that computes what another framework's network computes.

    Parameters
    ----------
    params : module, mapping or sequence
        An ``nn.Sequential`` of ``Linear`` layers with activations between them, and before these
        ``BatchNorm1d`` or ``LayerNorm``, which says all there is to say; or, with ``activation``,
        parameters in any form that :func:`to_theta` takes.
    activation, norm : optional
        As for :class:`~npmeta.MLP`, where only parameters are given. Modules of PyTorch and layers of
        Keras say themselves by what they normalise.
    adapt_norm : bool
        As for :class:`~npmeta.MLP`: whether the inner loop adapts scales and shifts.
    layout, order
        As in :func:`to_theta`.

    Returns
    -------
    MLP

    Raises
    ------
    ValueError
        If a module has no counterpart in npmeta, or computes something else than its counterpart
        (another ε, or running statistics); if parameters are of a normalised network, and ``norm`` is
        not given; or as :func:`to_theta`.
    """
    if activation is None:
        activation = _hidden_activations(params)
    kinds = kinds_in(params) or {norm}
    layers = find_layers(params, layout, order)[1]
    normalised = layers[0].norm is not None
    if norm is not None and kinds != {norm}:
        raise ValueError(f"norm={norm!r} was passed, and the network has {', '.join(map(str, kinds))}")
    if len(kinds) > 1:
        raise ValueError("npmeta has batch normalisation or layer normalisation, not both in a network")
    (kind,) = kinds
    if normalised and kind is None:
        raise ValueError("there are scales and shifts here; pass norm='batch' or norm='layer'")
    if kind is not None and not normalised:
        raise ValueError(f"there are no scales and shifts here, for norm={kind!r}")
    return MLP(widths_of(layers), activation, norm=kind, adapt_norm=adapt_norm)


def _hidden_activations(net: Any) -> list[str | Activation]:
    """What an ``nn.Sequential`` has between its layers."""
    if not _is_sequential(net):
        raise ValueError(
            f"only an nn.Sequential says which activations are between its layers, not a "
            f"{type(net).__name__}; pass activation="
        )
    after: list[list[str | Activation]] = []  # what follows each Linear
    for module in _modules(net):
        name = type(module).__name__
        if name == "Linear":
            after.append([])
        elif name in TORCH_NORMS and after and after[-1]:
            raise ValueError(f"{module!r} follows an activation; npmeta normalises before it")
        elif name in TORCH_NORMS:
            continue  # where it stands beside the Linear layers is seen from the parameters
        elif name in _ACTIVATIONS and after:
            after[-1].append(_ACTIVATIONS[name](module))
        elif name in _ACTIVATIONS:
            raise ValueError(f"{module!r} comes before the first Linear; npmeta has none there")
        elif name not in _NOTHING:
            raise ValueError(
                f"npmeta has no {name}; known: Linear, "
                f"{', '.join([*TORCH_NORMS, *_ACTIVATIONS, *sorted(_NOTHING)])}"
            )
    if not after:
        raise ValueError("there is no Linear in this nn.Sequential")
    if after[-1]:
        raise ValueError(
            "an activation follows the last Linear; networks of npmeta end with a layer, and a "
            "nonlinearity of the outputs belongs to the loss"
        )
    if any(len(fs) > 1 for fs in after):
        raise ValueError("two activations follow one another; npmeta has one between two layers")
    return [fs[0] if fs else "identity" for fs in after[:-1]]


def _is_sequential(net: Any) -> bool:
    return any(cls.__name__ == "Sequential" for cls in type(net).__mro__) and hasattr(net, "__iter__")


def _modules(net: Any) -> Iterator[Any]:
    for child in net:  # net.children() leaves out a module's second use
        if _is_sequential(child):
            yield from _modules(child)
        else:
            yield child
