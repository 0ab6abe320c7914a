"""One array of another framework, by duck typing."""

from __future__ import annotations

from typing import Any

import numpy as np

from npmeta._support.validation import Array, unmasked


def is_array(value: object) -> bool:
    """Whether this is an array of some framework."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def is_tensor(value: object) -> bool:
    """Whether this is a PyTorch tensor."""
    return hasattr(value, "detach") and hasattr(value, "new_tensor")


def to_numpy(array: Any, name: str) -> Array:
    """The numbers on the host, as float32 or float64; half precision becomes float32, exactly."""
    _check_floating(array, name)
    if is_tensor(array):
        array = array.detach().cpu()
        # NumPy has no bfloat16, and PyTorch refuses to give it one.
        array = array.numpy() if array.element_size() > 2 else array.float().numpy()
    values = unmasked(array, name)
    return values.astype(np.float32) if values.dtype.itemsize <= 2 else values


def make_like(values: Array, like: Any, name: str) -> Any:
    """The values in the framework, precision and place of ``like``; a NumPy array where the framework
    offers no way that needs no import."""
    _check_floating(like, name)
    if is_tensor(like):
        return like.new_tensor(values)
    values = values.copy()  # JAX may take it for its own
    # The array API standard: JAX, NumPy and others.
    if hasattr(like, "__array_namespace__"):
        return like.__array_namespace__().asarray(values, dtype=like.dtype, device=like.device)
    return values


def _check_floating(array: Any, name: str) -> None:
    if "float" not in str(array.dtype):
        raise ValueError(f"{name!r} must hold floating-point numbers, got dtype {array.dtype}")
