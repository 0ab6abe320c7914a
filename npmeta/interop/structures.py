"""Where the layers of a network are in a structure of arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any

from npmeta.interop.arrays import is_array, is_tensor
from npmeta.interop.order import Layer, Path, in_order

__all__ = ["LAYOUTS", "at", "find_layers", "path_name", "rebuilt"]

#: How a matrix may lie, and its sides in that order.
LAYOUTS = {"in_out": "(n_in, n_out)", "out_in": "(n_out, n_in)"}

#: What the arrays of a layer are called: "0.weight", "kernel", "W", "w1", "b_1"...
_NAME = re.compile(r"(?:(?P<layer>.*)[./])?(?P<role>weight|kernel|w|bias|b)_?(?P<number>\d*)", re.I)

#: Sorted names put the eleventh layer after the second.
_MOST_SORTED = 10


def path_name(path: Path) -> str:
    return ".".join(map(str, path))


def opened(params: Any) -> Any:
    """The structure of arrays in a module: named ones for PyTorch, a list for Keras."""
    if hasattr(params, "get_weights"):  # first: on PyTorch, Keras's models are modules too
        return params.get_weights()
    if hasattr(params, "named_parameters"):
        return _untied(params.named_parameters(remove_duplicate=False))
    return params


def _untied(named: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Parameters by name; none may have two, since its gradient would count twice."""
    parameters: dict[str, Any] = {}
    for name, array in named:
        for other, seen in parameters.items():
            if array is seen:
                raise ValueError(
                    f"{other!r} and {name!r} are one tensor; layers of npmeta share nothing"
                )
        parameters[name] = array
    return parameters


def at(structure: Any, path: Path) -> Any:
    for key in path:
        structure = structure[key]
    return structure


def rebuilt(structure: Any, replaced: Mapping[Path, Any], path: Path = ()) -> Any:
    """The structure with other arrays in it."""
    if path in replaced:
        return replaced[path]
    if isinstance(structure, Mapping):
        content = {key: rebuilt(child, replaced, (*path, key)) for key, child in structure.items()}
        if isinstance(structure, dict):  # a defaultdict cannot be made from its content alone
            same = copy(structure)
            same.update(content)
            return same
        return type(structure)(content)  # type: ignore[call-arg]
    content_list = [rebuilt(child, replaced, (*path, i)) for i, child in enumerate(structure)]
    if hasattr(structure, "_fields"):  # a named tuple
        return type(structure)(*content_list)
    return type(structure)(content_list)


# --- finding the arrays ---------------------------------------------------------------------------


def _is_list(node: object) -> bool:
    return isinstance(node, Sequence) and not isinstance(node, str | bytes)


def _arrays(node: Any, path: Path = ()) -> Iterator[tuple[str, str, Path]]:
    """(layer, "W" or "b", path) of every array."""
    if isinstance(node, Mapping):
        for key, child in node.items():
            if is_array(child):
                yield (*_role(key, path), (*path, key))
            else:
                yield from _arrays(child, (*path, key))
    elif _is_list(node) and any(map(is_array, node)):
        yield from _pairs(node, path)
    elif _is_list(node):
        for i, child in enumerate(node):
            yield from _arrays(child, (*path, i))
    elif node is None:
        where = f", at {path_name(path)!r}" if path else ""
        raise ValueError(f"there is None where an array should be{where}")
    elif is_array(node):
        raise ValueError(
            f"one array, of shape {tuple(node.shape)}, does not say where its layers are; pass the "
            "module, state dict, pytree or list of arrays that it was made from"
        )
    else:
        raise ValueError(
            "expected a PyTorch module, a state dict, a pytree or a list of arrays, got "
            f"{type(node).__name__}" + (f" at {path_name(path)!r}" if path else "")
        )


def _role(key: object, path: Path) -> tuple[str, str]:
    """(layer, "W" or "b") by name."""
    match = _NAME.fullmatch(str(key))
    if match is None:
        raise ValueError(
            f"cannot tell what {path_name((*path, key))!r} is: a layer of npmeta has a matrix (weight, "
            "kernel, W, w) and a bias (bias, b) and nothing else"
        )
    layer = [*map(str, path), match["layer"] or "", match["number"]]
    return ".".join(filter(None, layer)), "W" if match["role"][0] in "wWkK" else "b"


def _pairs(node: Sequence[Any], path: Path) -> Iterator[tuple[str, str, Path]]:
    """W, b, W, b, ... or b, W, b, W, ..., told apart by their axes."""
    for i, array in enumerate(node):
        if not is_array(array):
            shown = "None" if array is None else type(array).__name__
            raise ValueError(f"there is {shown} where an array should be, at {path_name((*path, i))!r}")
    n_pairs = len(node) // 2
    for l in range((len(node) + 1) // 2):
        pair = node[2 * l : 2 * l + 2]
        axes = [len(array.shape) for array in pair]
        if len(pair) < 2 or abs(axes[0] - axes[1]) != 1:
            shapes = " and ".join(str(tuple(array.shape)) for array in pair)
            raise ValueError(
                f"expected a matrix and a bias for each layer, one layer after another; at "
                f"{path_name((*path, 2 * l))!r} is {shapes}"
            )
        if axes[0] < axes[1] and n_pairs > _MOST_SORTED:
            raise ValueError(
                f"{n_pairs} layers with the bias before the matrix look like leaves in the order of "
                "their names, where the eleventh follows the second; pass the tree itself"
            )
        name = path_name(path if n_pairs == 1 else (*path, l))
        for i, role in enumerate("Wb" if axes[0] > axes[1] else "bW"):
            yield name, role, (*path, 2 * l + i)


# --- from arrays to layers ------------------------------------------------------------------------


def find_layers(
    params: Any,
    layout: str | None = None,
    order: Sequence[str] | None = None,
    widths: Sequence[int] | None = None,
) -> tuple[Any, list[Layer]]:
    """The structure of arrays in ``params``, and its layers in the order of the forward pass.

    Raises
    ------
    ValueError
        If there is anything in it but matrices and biases in pairs, or the shapes, the layout or the
        order do not fit together.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; got {layout!r}")
    structure = opened(params)
    parts: dict[str, dict[str, Path]] = {}
    for name, role, path in _arrays(structure):
        if role in parts.setdefault(name, {}):
            first, second = path_name(parts[name][role]), path_name(path)
            raise ValueError(f"{first!r} and {second!r} cannot both belong to one layer")
        parts[name][role] = path
    if not parts:
        raise ValueError("there are no arrays here")
    layers = [_layer(name, part, structure, layout) for name, part in parts.items()]
    return structure, in_order(layers, order, widths, registered=structure is not params)


def _layer(name: str, part: Mapping[str, Path], structure: Any, layout: str | None) -> Layer:
    if set(part) != {"W", "b"}:
        (present,) = part.values()
        lacks = "bias" if "W" in part else "matrix"
        raise ValueError(
            f"{path_name(present)!r} has no {lacks} beside it; npmeta's layers have a matrix and a bias"
        )
    W, b = (at(structure, part[role]) for role in "Wb")
    label = path_name(part["W"])
    matrix, bias = tuple(W.shape), tuple(b.shape)
    if len(matrix) not in (2, 3) or len(bias) != len(matrix) - 1 or matrix[:-2] != bias[:-1]:
        raise ValueError(
            f"{label!r} of shape {matrix} with a bias of shape {bias} is not a fully connected layer, "
            "a matrix and a vector, both or neither with a task axis in front"
        )
    lies = layout or _usual_layout(part["W"][-1], W)
    n_in, n_out = matrix[-2:] if lies == "in_out" else matrix[:-3:-1]
    if n_out != bias[-1]:
        (other,) = set(LAYOUTS) - {lies}
        fits = matrix[-1 if other == "in_out" else -2] == bias[-1]
        raise ValueError(
            f"{label!r} of shape {matrix} with a bias of shape {bias} is not {LAYOUTS[lies]}, which is "
            + ("what layout says" if layout else "the usual layout here")
            + (f"; pass layout={other!r} if it is {LAYOUTS[other]}" if fits else "")
        )
    return Layer(name, part["W"], part["b"], lies, n_in, n_out)


def _usual_layout(key: object, W: Any) -> str:
    match = _NAME.fullmatch(str(key))
    role = match["role"].lower() if match else ""
    if role == "weight" or (is_tensor(W) and role != "kernel"):
        return "out_in"
    return "in_out"
