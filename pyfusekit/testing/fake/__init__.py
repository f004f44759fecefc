"""A kernel with a system-call side: the contract's door without a mount."""

from .mount import FakeMount
from .tree import FakeTree

__all__ = ["FakeMount", "FakeTree"]
