"""Memory without a name that processes share, and how arrays lie in it.

It goes to a worker as a descriptor, through a pipe, so it is gone with the last process that has it,
however that ends. Where descriptors cannot be passed (Windows), there is none.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from npmeta._support.validation import Array

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

#: Where an array may begin in shared memory: a multiple of a cache line.
ALIGNMENT = 64


class _Form(NamedTuple):
    """What an array is, without its numbers."""

    name: str
    shape: tuple[int, ...]
    dtype: str


Layout: TypeAlias = tuple[_Form, ...]


def aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def layout_of(arrays: Mapping[str, Array]) -> Layout:
    return tuple(_Form(name, array.shape, array.dtype.str) for name, array in arrays.items())


def _n_bytes(form: _Form) -> int:
    return np.dtype(form.dtype).itemsize * math.prod(form.shape)


def _views(buffer: memoryview, layout: Layout, offset: int) -> dict[str, Array]:
    views = {}
    for form in layout:
        count = math.prod(form.shape)
        views[form.name] = np.frombuffer(buffer, form.dtype, count, offset).reshape(form.shape)
        offset += aligned(_n_bytes(form))
    return views


class Segment:
    """Memory that can be passed to workers; it lasts as long as there are views of it."""

    def __init__(self, descriptor: int, n_bytes: int) -> None:
        self.descriptor = descriptor
        self.memory = memoryview(mmap.mmap(descriptor, max(n_bytes, 1)))

    @staticmethod
    def new(n_bytes: int) -> Segment | None:
        """None where there is none."""
        if not hasattr(socket, "send_fds"):
            return None
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("npmeta")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        try:
            os.ftruncate(descriptor, max(n_bytes, 1))
            return Segment(descriptor, n_bytes)
        except BaseException:
            os.close(descriptor)
            raise

    @staticmethod
    def holding(arrays: Sequence[memoryview]) -> Segment | None:
        """One with bytes in it, array after array; None where there is none."""
        segment = Segment.new(sum(aligned(len(array)) for array in arrays))
        if segment is not None:
            for part, array in zip(segment.parts([*map(len, arrays)]), arrays, strict=True):
                part[:] = array
        return segment

    def parts(self, sizes: Sequence[int]) -> list[memoryview]:
        """The arrays that it holds, of so many bytes each."""
        starts = itertools.accumulate(map(aligned, sizes), initial=0)
        return [self.memory[at : at + n] for at, n in zip(starts, sizes, strict=False)]

    def send(self, connection: Connection) -> None:
        with _as_socket(connection) as end:
            socket.send_fds(end, [b"-"], [self.descriptor])

    @staticmethod
    def receive(connection: Connection, n_bytes: int) -> Segment:
        with _as_socket(connection) as end:
            _, (descriptor,), *_ = socket.recv_fds(end, 1, 1)
        return Segment(descriptor, n_bytes)

    def close(self) -> None:
        """It can no longer be passed on."""
        os.close(self.descriptor)


def _as_socket(connection: Connection) -> socket.socket:
    """The socket that a two-way pipe is, wherever descriptors can be passed."""
    return socket.socket(fileno=os.dup(connection.fileno()))


class Exchange:
    """Parameters, and a slot for the gradient of each job, in one segment."""

    def __init__(self, memory: memoryview, layout: Layout, n_slots: int) -> None:
        self.layout, self.n_slots = layout, n_slots
        size = self.size(layout, 0)
        self.params = _views(memory, layout, 0)
        self.slots = [_views(memory, layout, size * (1 + i)) for i in range(n_slots)]

    @staticmethod
    def size(layout: Layout, n_slots: int) -> int:
        """Bytes."""
        return (1 + n_slots) * sum(aligned(_n_bytes(form)) for form in layout)

    def fits(self, layout: Layout, n_slots: int) -> bool:
        return self.layout == layout and self.n_slots >= n_slots
