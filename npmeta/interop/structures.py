"""Where the layers of a network are in a structure of arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from itertools import pairwise
from typing import Any

from npmeta._support.validation import shown
from npmeta.interop.arrays import is_array, is_tensor
from npmeta.interop.norms import check_scales
from npmeta.interop.order import ForeignLayer, ForeignNorm, KeyPath, layers_in_order, with_norms

#: How a matrix may lie, and its sides in that order.
LAYOUTS = {"in_out": "(n_in, n_out)", "out_in": "(n_out, n_in)"}

#: What arrays are, by their names. PyTorch calls a scale weight and a shift bias, Flax the latter.
_ROLES = {
    **dict.fromkeys(("weight", "kernel", "w"), "W"),
    **dict.fromkeys(("bias", "b"), "b"),
    **dict.fromkeys(("scale", "gamma"), "scale"),
    **dict.fromkeys(("shift", "offset", "beta"), "shift"),
    **dict.fromkeys(("running_mean", "running_var", "num_batches_tracked"), "statistic"),
    **dict.fromkeys(("mean", "var", "moving_mean", "moving_variance"), "statistic"),
}
#: Their names with those of their layers: "0.weight", "kernel", "W", "w1", "b_1"...
_NAME = re.compile(rf"(?:(?P<layer>.*)[./])?(?P<role>{'|'.join(_ROLES)})_?(?P<number>\d*)", re.I)

#: Sorted names put the eleventh layer after the second.
_MOST_SORTED = 10


def path_name(path: KeyPath) -> str:
    return ".".join(map(str, path))


def opened(params: Any) -> Any:
    """The structure of arrays in a module: named ones for PyTorch, a list for Keras."""
    if hasattr(params, "get_weights"):  # first: on PyTorch, Keras's models are modules too
        check_scales(params)
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


def at(structure: Any, path: KeyPath) -> Any:
    for key in path:
        structure = structure[key]
    return structure


def rebuilt(structure: Any, replaced: Mapping[KeyPath, Any], path: KeyPath = ()) -> Any:
    """The structure with other arrays in it."""
    if path in replaced:
        return replaced[path]
    if is_array(structure):  # running statistics
        return structure
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


def _named_arrays(node: Any, path: KeyPath = ()) -> Iterator[tuple[str, str, KeyPath]]:
    """(layer, role, path) of every array."""
    if isinstance(node, Mapping):
        for key, child in node.items():
            if is_array(child):
                yield (*_role(key, path), (*path, key))
            else:
                yield from _named_arrays(child, (*path, key))
    elif _is_list(node) and any(map(is_array, node)):
        yield from _listed_arrays(node, path)
    elif _is_list(node):
        for i, child in enumerate(node):
            yield from _named_arrays(child, (*path, i))
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


def _role(key: object, path: KeyPath) -> tuple[str, str]:
    """(layer, role) by name."""
    match = _NAME.fullmatch(str(key))
    if match is None:
        raise ValueError(
            f"cannot tell what {path_name((*path, key))!r} is: a layer of npmeta has a matrix (weight, "
            "kernel, W, w) and a bias (bias, b), where it is normalised a scale (scale, gamma) and a "
            "shift (shift, offset, beta), and nothing else"
        )
    layer = [*map(str, path), match["layer"] or "", match["number"]]
    return ".".join(filter(None, layer)), _ROLES[match["role"].lower()]


def _listed_arrays(node: Sequence[Any], path: KeyPath) -> Iterator[tuple[str, str, KeyPath]]:
    """W, b, W, b, ... or b, W, b, W, ..., told apart by their axes."""
    for i, array in enumerate(node):
        if not is_array(array):
            shown = "None" if array is None else type(array).__name__
            raise ValueError(f"there is {shown} where an array should be, at {path_name((*path, i))!r}")
    if groups := _groups(node):
        for l, (start, roles) in enumerate(groups):
            for i, role in enumerate(roles):
                yield path_name((*path, l)), role, (*path, start + i)
        return
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


def _groups(node: Sequence[Any]) -> list[tuple[int, tuple[str, ...]]]:
    """Where each layer begins in a list with norms, and what its arrays are: W, b, and where it is
    normalised scale and shift, and maybe a running mean and variance. Empty for other lists."""
    axes = [len(array.shape) for array in node]
    begin = [i for i, n in enumerate(axes) if n == max(axes)]
    sizes = [end - start for start, end in pairwise([*begin, len(node)])]
    vectors = len(begin) < len(node) and max(n for n in axes if n != max(axes)) == max(axes) - 1
    if begin[0] or not vectors or not set(sizes) <= {2, 4, 6} or set(sizes) == {2}:
        return []
    roles = ("W", "b", "scale", "shift", "statistic", "statistic")
    return [(start, roles[:size]) for start, size in zip(begin, sizes, strict=True)]


# --- from arrays to layers ------------------------------------------------------------------------


def find_layers(
    params: Any,
    layout: str | None = None,
    order: Sequence[str] | None = None,
    widths: Sequence[int] | None = None,
) -> tuple[Any, list[ForeignLayer]]:
    """The structure of arrays in ``params``, and its layers in the order of the forward pass.

    Raises
    ------
    ValueError
        If there is anything in it but matrices and biases in pairs, and scales and shifts in pairs, or
        the shapes, the layout or the order do not fit together.
    """
    if layout is not None and not (isinstance(layout, str) and layout in LAYOUTS):
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; got {shown(layout)}")
    structure = opened(params)
    parts: dict[str, dict[str, KeyPath]] = {}
    statistics: list[KeyPath] = []
    for name, role, path in _named_arrays(structure):
        if role == "statistic":
            statistics.append(path)
            continue
        if role in parts.setdefault(name, {}):
            first, second = path_name(parts[name][role]), path_name(path)
            raise ValueError(f"{first!r} and {second!r} cannot both belong to one layer")
        parts[name][role] = path
    if not parts:
        raise ValueError("there are no arrays here")
    matrices = {name: part for name, part in parts.items() if not _is_norm(part, structure)}
    rest = {name: part for name, part in parts.items() if name not in matrices or len(part) == 4}
    if not matrices:  # the message is that of a layer
        matrices, rest = rest, {}
    layers = [_foreign_layer(name, part, structure, layout) for name, part in matrices.items()]
    if statistics and not rest:
        raise ValueError(
            f"there is {path_name(statistics[0])!r}, of a norm, and no scale and shift of one; those "
            "of npmeta have both (affine=True, or center=True and scale=True)"
        )
    registered = structure is not params
    layers = layers_in_order(layers, order, widths, registered)
    lead = len(at(structure, layers[0].W).shape) - 2
    norms = [_foreign_norm(name, part, structure, lead) for name, part in rest.items()]
    return structure, with_norms(layers, norms, registered)


def _is_norm(part: Mapping[str, KeyPath], structure: Any) -> bool:
    """Whether arrays are those of a norm alone: one is a scale, or a weight that is no matrix."""
    if "W" not in part:
        return bool({"scale", "shift"} & set(part))
    shapes = [at(structure, part[role]).shape for role in ("W", "b") if role in part]
    return len(shapes) == 2 and len(shapes[0]) == len(shapes[1])


def _foreign_norm(name: str, part: Mapping[str, KeyPath], structure: Any, lead: int) -> ForeignNorm:
    """``lead`` is the number of task axes."""
    scale = part.get("scale", part.get("W"))
    shift = part.get("shift", part.get("b"))
    if scale is None or shift is None:
        (present,) = part.values()
        lacks = "shift" if shift is None else "scale"
        raise ValueError(
            f"{path_name(present)!r} has no {lacks} beside it; npmeta's norms have a scale and a shift"
        )
    shapes = [tuple(at(structure, path).shape) for path in (scale, shift)]
    one_more = len(shapes[0]) == lead + 2 and shapes[0][lead] == 1  # Haiku's batch norm
    if shapes[0] != shapes[1] or len(shapes[0]) != lead + 1 + one_more:
        raise ValueError(
            f"{path_name(scale)!r} of shape {shapes[0]} and {path_name(shift)!r} of shape {shapes[1]} "
            "are no scale and shift: two vectors of one length, with a task axis if matrices have one"
        )
    return ForeignNorm(name, scale, shift, shapes[0][-1], one_more)


def _foreign_layer(
    name: str, part: Mapping[str, KeyPath], structure: Any, layout: str | None
) -> ForeignLayer:
    if not {"W", "b"} <= set(part):
        present, *_ = part.values()
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
    return ForeignLayer(name, part["W"], part["b"], lies, n_in, n_out)


def _usual_layout(key: object, W: Any) -> str:
    match = _NAME.fullmatch(str(key))
    role = match["role"].lower() if match else ""
    if role == "weight" or (is_tensor(W) and role != "kernel"):
        return "out_in"
    return "in_out"
