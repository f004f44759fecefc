"""How a filesystem declares its options; reading them from a command line is the service's business.

A filesystem's options are one dataclass, named by ``Filesystem.Options``. Each field is made with :func:`option`; its type
is a plain one (bool, int, float, str) or one of the kinds below, which say how a person writes the value:

    @dataclass(frozen=True)
    class MemOptions:
        size: Size = option(Size(0), help="Most bytes of file data; 0 is no limit.")
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, NewType

Size = NewType("Size", int)
"""Bytes; written 512, 64K, 8MiB, 1G (powers of 1024)."""
Duration = NewType("Duration", float)
"""Seconds; written 30, 1.5s, 5m, 2h, or off (infinite)."""
Mode = NewType("Mode", int)
"""Permission bits; written in octal, 0755."""
Url = NewType("Url", str)
"""An absolute URL with scheme and host."""


class Secret(str):
    """A value that is never shown: it has no flag and no -o key, only a file, an environment variable or a prompt."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def option(
    default: Any,
    *,
    help: str,
    group: str = "",
    env: str = "",
    choices: tuple[str, ...] = (),
    metavar: str = "",
) -> Any:
    """Declare one option: a dataclass field with the words a person needs.

    *help* is one sentence. *group* is a heading in ``--help``. *env* names another program's environment variable that
    gives the value too (AWS_REGION). *choices* are the only values a str option takes.
    """
    return field(default=default, metadata={"help": help, "group": group, "env": env, "choices": choices, "metavar": metavar})


__all__ = ["Duration", "Mode", "Secret", "Size", "Url", "option"]
