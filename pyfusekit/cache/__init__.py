"""For remote filesystems: what is fetched ahead, the memory it takes, and the block cache on disk. No FUSE, no backend.

memory.py    one limit for all buffers, and the pieces of a range on its way
prefetch.py  readers told apart, a window ahead of each
blocks.py    the cache on disk
"""

from __future__ import annotations

from .blocks import BLOCK, BlockCache, Entry
from .memory import Budget, Data
from .prefetch import FIRST_WINDOW, Fetch, Prefetcher

__all__ = ["BLOCK", "FIRST_WINDOW", "BlockCache", "Budget", "Data", "Entry", "Fetch", "Prefetcher"]
