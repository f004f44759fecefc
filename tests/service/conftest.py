"""What the service's tests share: the real command, and a place to mount in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from commandline import Commandline, commandline


@pytest.fixture
def command() -> Iterator[Commandline]:
    with commandline() as made:
        yield made
