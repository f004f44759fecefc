"""For remote filesystems: what is fetched ahead, the memory it takes, and the block cache on disk. No FUSE, no backend.

memory.py    one limit for all buffers, and the pieces of a range on its way
pacer.py     everybody slows down when a server says so
prefetch.py  readers told apart, a window ahead of each
blocks.py    the cache on disk
reading.py   both together: the bytes of a file that is open
"""

from __future__ import annotations

from .blocks import BLOCK, BlockCache, Entry
from .memory import Budget, Data
from .pacer import Pacer
from .prefetch import FIRST_WINDOW, Fetch, Prefetcher
from .reading import CachedReader

__all__ = ["BLOCK", "FIRST_WINDOW", "BlockCache", "Budget", "CachedReader", "Data", "Entry", "Fetch", "Pacer", "Prefetcher"]
