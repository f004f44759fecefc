"""A filesystem in memory: everything tmpfs does, in a process."""

from .fs import MemFS
from .options import MemOptions

__all__ = ["MemFS", "MemOptions"]
