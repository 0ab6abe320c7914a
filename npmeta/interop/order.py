"""The order of the layers of a network, by their names and by how they fit together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any, TypeAlias

from npmeta._support.validation import check_names

#: The keys that lead to an array.
KeyPath: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True)
class ForeignNorm:
    """A scale and a shift, and where they are; ``(n,)``, or ``(1, n)`` with one axis more."""

    name: str
    scale: KeyPath
    shift: KeyPath
    n: int
    one_more: bool

    def __str__(self) -> str:
        return f"{self.name!r} ({self.n})"


@dataclass(frozen=True)
class ForeignLayer:
    """A matrix and a bias, where they are, and how the matrix lies; and what normalises it."""

    name: str
    W: KeyPath
    b: KeyPath
    layout: str
    n_in: int
    n_out: int
    norm: ForeignNorm | None = None

    def __str__(self) -> str:
        return f"{self.name!r} ({self.n_in} -> {self.n_out})"


def layers_in_order(
    layers: list[ForeignLayer],
    order: Sequence[str] | None,
    widths: Sequence[int] | None,
    registered: bool,
) -> list[ForeignLayer]:
    """The layers in the order of the forward pass.

    It is ``order``, or that in which they are in a module (``registered``) if each takes what the one
    before gives. Else names decide, and where they do not, widths: those of the network, if known.
    """
    if order is not None:
        check_names(order, "order")
        by_name = {layer.name: layer for layer in layers}
        if sorted(order) != sorted(by_name):
            raise ValueError(f"order must name the layers {sorted(by_name)}, got {list(order)}")
        layers = [by_name[name] for name in order]
    elif not (registered and _follow(layers)):
        layers = _sorted(layers, widths)
    for one, next_one in pairwise(layers):
        if one.n_out != next_one.n_in:
            raise ValueError(f"layer {next_one} does not take what layer {one} gives")
    return layers


def with_norms(
    layers: list[ForeignLayer], norms: list[ForeignNorm], registered: bool
) -> list[ForeignLayer]:
    """The layers in their order, the hidden ones each with its norm.

    A norm's name is that of its layer; or names differ in numbers alone, and these decide; or norms
    stand in a module (``registered``), in their order; or sizes decide.
    """
    if not norms:
        return layers
    *hidden, last = layers
    listed = ", ".join(map(str, norms))
    if len(norms) != len(hidden):
        raise ValueError(
            "in npmeta every hidden layer is normalised, before its activation, or none is; here are "
            f"the norms {listed} for {len(hidden)} hidden layers"
        )
    by_name, by_size = {norm.name: norm for norm in norms}, {norm.n: norm for norm in norms}
    if set(by_name) == {layer.name for layer in hidden}:
        norms = [by_name[layer.name] for layer in hidden]
    elif len({_numbered(norm.name)[0] for norm in norms}) == 1:
        norms = sorted(norms, key=lambda norm: _numbered(norm.name))
    elif not registered:
        if set(by_size) != {layer.n_out for layer in hidden} or len(by_size) < len(norms):
            raise ValueError(
                f"neither names nor sizes say which hidden layer each of the norms {listed} belongs "
                "to; give them names that differ in a number alone, or the names of their layers"
            )
        norms = [by_size[layer.n_out] for layer in hidden]
    found = [replace(layer, norm=norm) for layer, norm in zip(hidden, norms, strict=True)]
    in_line = [part for layer in found for part in (layer, layer.norm)] + [last]
    names = [_numbered(part.name) for part in in_line if part is not None]
    for layer in found:
        assert layer.norm is not None
        if layer.norm.n != layer.n_out:
            raise ValueError(
                f"the norm {layer.norm} is not as wide as the hidden layer {layer}, to which it "
                "belongs by its name or place"
            )
    # One row of numbers, as in an nn.Sequential, says what stands between what.
    if len({stem for stem, _ in names}) == 1 and names != sorted(names):
        raise ValueError(
            f"{listed} should each follow a hidden layer of {', '.join(map(str, layers))}: npmeta "
            "normalises between a hidden layer and its activation"
        )
    return [*found, last]


def widths_of(layers: Sequence[ForeignLayer]) -> tuple[int, ...]:
    return (layers[0].n_in, *(layer.n_out for layer in layers))


def _follow(layers: Sequence[ForeignLayer]) -> bool:
    return all(one.n_out == next_one.n_in for one, next_one in pairwise(layers))


def _sorted(layers: Sequence[ForeignLayer], widths: Sequence[int] | None) -> list[ForeignLayer]:
    """Layers whose names differ in numbers alone go by these; the rest by how they fit together."""
    stacks: dict[str, list[ForeignLayer]] = {}
    for layer in sorted(layers, key=lambda layer: _numbered(layer.name)):
        stacks.setdefault(_numbered(layer.name)[0], []).append(layer)
    if len(stacks) == 1:
        return [layer for stack in stacks.values() for layer in stack]
    found = _chains(list(stacks.values()), widths) or _chains(list(stacks.values()), None)
    if len(found) == 1:
        return list(found[0])
    listed = ", ".join(map(str, layers))
    if found:
        raise ValueError(
            f"the layers {listed} fit together in more than one order, and their names do not say in "
            f"which; pass order={[layer.name for layer in found[0]]}, or as the forward pass has it"
        )
    raise ValueError(f"there is no order in which each layer takes what the one before gives: {listed}")


def _numbered(name: str) -> tuple[str, tuple[int, ...]]:
    """A name without its numbers, and the numbers; that of "linear" in "linear", "linear_1" is −1."""
    match = re.fullmatch(r"(.*?)(?:_(\d+))?", name)
    assert match is not None
    numbers = re.findall(r"\d+", match[1])
    return re.sub(r"\d+", "#", match[1]), (*map(int, numbers), int(match[2] or -1))


def _chains(
    stacks: Sequence[Sequence[ForeignLayer]], widths: Sequence[int] | None
) -> tuple[tuple[ForeignLayer, ...], ...]:
    """The orders, at most two, in which each layer takes what the one before gives. Those of a stack
    keep theirs."""

    @cache
    def tails(taken: tuple[int, ...], width: int | None) -> tuple[tuple[ForeignLayer, ...], ...]:
        if all(n == len(stack) for n, stack in zip(taken, stacks, strict=True)):
            return ((),)
        found: list[tuple[ForeignLayer, ...]] = []
        for i, (n, stack) in enumerate(zip(taken, stacks, strict=True)):
            if n == len(stack) or width not in (None, stack[n].n_in):
                continue
            l, layer = sum(taken), stack[n]
            if widths is None or tuple(widths[l : l + 2]) == (layer.n_in, layer.n_out):
                rest = tails((*taken[:i], n + 1, *taken[i + 1 :]), layer.n_out)
                found += [(layer, *tail) for tail in rest]
        return tuple(found[:2])

    return tails((0,) * len(stacks), None)
