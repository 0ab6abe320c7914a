"""Freed memory that stays at hand."""

from __future__ import annotations

from functools import cache

import numpy as np

#: Bytes: less than the 32 MiB above which glibc does not adapt.
BLOCK = 31 * 2**20


@cache
def keep_freed_memory() -> None:
    """Have the C library keep the memory it is given back: the next call wants the same again.

    A meta-gradient makes and drops hundreds of arrays. glibc returns what is free at the end of its
    heap to the system, by default from 128 KiB on, and the next call gets it back page by page, each
    zeroed in a fault of its own: a fifth to a half of the time of small problems. But it learns. Once
    a block was freed that had a mapping of its own, blocks of that size come from the heap, and twice
    as much is kept there (mallopt(3), M_MMAP_THRESHOLD). So one block is made and dropped, once in a
    process. It is never written to and so costs no memory. Other C libraries take no notice.
    """
    np.empty(BLOCK, dtype=np.uint8)
