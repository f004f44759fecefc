"""Ready-made filesystems that mount with one command, and the asyncio FUSE core that they are built on.

The core's public face is re-exported here: ``from pyfusekit import Filesystem, serve``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    core = import_module("pyfusekit.core")
    if name not in core.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(core, name)
