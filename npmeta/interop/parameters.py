"""theta to and from the structures in which other frameworks hold parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import ArrayLike

from npmeta._support.validation import Array, as_parameters, shown
from npmeta.interop.arrays import make_like, to_numpy
from npmeta.interop.order import ForeignLayer, KeyPath, widths_of
from npmeta.interop.structures import at, find_layers, path_name, rebuilt
from npmeta.network.mlp import MLP


def to_theta(
    params: Any,
    model: MLP | None = None,
    *,
    layout: str | None = None,
    order: Sequence[str] | None = None,
) -> Array:
    """What a framework holds as one vector in npmeta's order.

    Where hidden layers are normalised their scales and shifts are in it. Running statistics are not:
    npmeta has none.

    Parameters
    ----------
    params : module, mapping or sequence
        A PyTorch module or Keras model; a state dict; a pytree as of Flax, Haiku or your own, of
        dictionaries, lists and tuples; a flat list of arrays as from ``net.parameters()``,
        ``torch.autograd.grad`` or ``get_weights()``. Parameters, or anything of their form:
        gradients, directions; with a task axis in front, adapted weights.
    model : MLP, optional
        Checked against what is found.
    layout : {"out_in", "in_out"}, optional
        How every matrix lies, where it is not as usual (see :mod:`npmeta.interop`).
    order : sequence of str, optional
        The names of the layers in the order of the forward pass, where it cannot be told.

    Returns
    -------
    ndarray, (P,), or (T, P) where every array has a task axis
        A copy, float64 or float32; half precision becomes float32.

    Raises
    ------
    ValueError
        If there is anything but fully connected layers, each with a bias, and norms with scale and
        shift; if shapes, layout, order or model do not fit together; if more than one order does.

    Examples
    --------
    >>> import numpy as np
    >>> from npmeta import interop
    >>> params = {"Dense_0": {"bias": np.zeros(8), "kernel": np.ones((2, 8))},
    ...           "Dense_1": {"bias": np.zeros(1), "kernel": np.ones((8, 1))}}
    >>> interop.to_theta(params).shape
    (33,)
    """
    return _gathered(params, model, layout, order, lambda array, name: array)


def grad_of(
    params: Any,
    model: MLP | None = None,
    *,
    layout: str | None = None,
    order: Sequence[str] | None = None,
) -> Array:
    """The ``.grad`` of PyTorch parameters, in the order of theta.

    Parameters
    ----------
    params : module, mapping or sequence
        As in :func:`to_theta`, of tensors through which ``backward()`` has come. Gradients that are
        arrays themselves, as those of ``torch.autograd.grad`` or ``jax.grad``, are for
        :func:`to_theta`.
    model, layout, order
        As in :func:`to_theta`.

    Returns
    -------
    ndarray, (P,)

    Raises
    ------
    ValueError
        As :func:`to_theta`, and if a tensor has no gradient.
    """

    def grad(array: Any, name: str) -> Any:
        found = getattr(array, "grad", None)
        if found is None:
            raise ValueError(
                f"{name!r} has no gradient: its .grad is None until backward() comes to it; gradients "
                "that are arrays themselves are for to_theta"
            )
        return found

    return _gathered(params, model, layout, order, grad)


def from_theta(
    theta: ArrayLike,
    like: Any,
    *,
    layout: str | None = None,
    order: Sequence[str] | None = None,
) -> Any:
    """A vector in npmeta's order in the form in which a framework holds its own.

    Parameters
    ----------
    theta : array_like, (P,) or (T, P)
        Parameters or a gradient; or one for each task, which gives every array a task axis.
    like : module, mapping or sequence
        As in :func:`to_theta`: its structure, framework, precision and device are taken, its numbers
        are not, but for running statistics. It is left as it is.
    layout, order
        As in :func:`to_theta`.

    Returns
    -------
    structure like ``like``
        For a PyTorch module a dictionary of tensors for ``load_state_dict`` or ``functional_call``,
        for a Keras model a list for ``set_weights``. Arrays of a framework that cannot be made
        without importing it are NumPy's, in the precision of theta.

    Raises
    ------
    ValueError
        As :func:`to_theta`, and if theta is not as long as the layers of ``like``.

    Examples
    --------
    >>> import numpy as np
    >>> from npmeta import interop
    >>> params = [(np.zeros((2, 8)), np.zeros(8)), (np.zeros((8, 1)), np.zeros(1))]
    >>> (W, b), _ = interop.from_theta(np.arange(33.0), like=params)
    >>> W[0, :3], b[:3]
    (array([0., 1., 2.]), array([16., 17., 18.]))
    """
    structure, layers = find_layers(like, layout, order)
    model = _model_of(layers)
    theta = as_parameters(theta, model.n_params)
    replaced: dict[KeyPath, Any] = {}
    for layer, (W, b, *scale_shift) in zip(layers, model.unpack(theta), strict=True):
        arrays = [(layer.W, _lying(W, layer)), (layer.b, b)]
        if layer.norm is not None:
            if layer.norm.one_more:
                scale_shift = [values[..., None, :] for values in scale_shift]
            arrays += zip((layer.norm.scale, layer.norm.shift), scale_shift, strict=True)
        for path, values in arrays:
            replaced[path] = make_like(values, at(structure, path), path_name(path))
    return rebuilt(structure, replaced)


def _gathered(
    params: Any,
    model: MLP | None,
    layout: str | None,
    order: Sequence[str] | None,
    read: Callable[[Any, str], Any],
) -> Array:
    """theta from what ``read(array, name)`` makes of each array."""
    if model is not None and not isinstance(model, MLP):
        raise ValueError(f"model must be an MLP, got {shown(model)}")
    if model is not None and model.structure is not None:
        raise ValueError(f"interop has no place for a learned structure, and the model is {model!r}")
    if model is not None and model.norm_sets > 1:
        raise ValueError(
            f"interop takes one scale and shift for each layer, and the model is {model!r}"
        )
    structure, layers = find_layers(params, layout, order, model.widths if model else None)
    found = _model_of(layers)
    if model is not None and model.widths != found.widths:
        raise ValueError(
            f"the layers {', '.join(map(str, layers))} make a network of widths {list(found.widths)}; "
            f"the model has {list(model.widths)}"
        )
    if model is not None and model.n_params != found.n_params:
        norms = "no scales and shifts" if found.norm is None else "scales and shifts"
        raise ValueError(f"there are {norms} here, and the model is {model!r}")

    def numbers(path: KeyPath) -> Array:
        name = path_name(path)
        return to_numpy(read(at(structure, path), name), name)

    def arrays(layer: ForeignLayer) -> list[Array]:
        own = [_lying(numbers(layer.W), layer), numbers(layer.b)]
        if layer.norm is not None:
            shape = own[1].shape
            own += [numbers(path).reshape(shape) for path in (layer.norm.scale, layer.norm.shift)]
        return own

    return found.pack([arrays(layer) for layer in layers])


def _model_of(layers: Sequence[ForeignLayer]) -> MLP:
    """A network with these parameters; which normalisation it has does not matter to them."""
    return MLP(widths_of(layers), norm=None if layers[0].norm is None else "batch")


def _lying(W: Array, layer: ForeignLayer) -> Array:
    """W from npmeta's layout to the layer's, or back."""
    return W if layer.layout == "in_out" else W.swapaxes(-1, -2)
