"""What the service's tests share: the real command, a place to mount in, and a filesystem that pretends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from commandline import Commandline, commandline
from pretending import Talk, install_pretend


@pytest.fixture
def command() -> Iterator[Commandline]:
    with commandline() as made:
        yield made


@pytest.fixture
def talk(command: Commandline) -> Talk:
    """The filesystem "pretend" is installed; what is said here it hears once it is mounted."""
    install_pretend(command.top / "plugins")
    return Talk(command.top / "talk")
