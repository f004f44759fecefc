"""How to build the filesystem under test, here or in another process."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field
from typing import Any

from ..core.filesystem import Filesystem


@dataclass(frozen=True)
class Recipe:
    """Names a Filesystem class and what it is built from, in words that another process understands."""

    target: str
    """``module:Class``; the class is called as the registry does, with the source and its Options."""
    source: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of the class's Options, in plain JSON values."""

    def build(self) -> Filesystem:
        """Build the filesystem."""
        module, _, name = self.target.partition(":")
        kind = getattr(importlib.import_module(module), name)
        made = kind(self.source, kind.Options(**self.options))
        assert isinstance(made, Filesystem)
        return made

    def dump(self) -> str:
        """Return the recipe as one command-line word."""
        return json.dumps({"target": self.target, "source": self.source, "options": self.options})

    @classmethod
    def load(cls, text: str) -> Recipe:
        """Return the recipe of a word made by dump."""
        return cls(**json.loads(text))


__all__ = ["Recipe"]
