"""The contract's doors as pytest fixtures: ``pytest_plugins = ["pyfusekit.testing.plugin"]`` in a conftest.

A test module says what is to be served, and each of its tests that takes ``tree`` runs behind both doors:

    @pytest.fixture(scope="module")
    def recipe() -> Recipe:
        return Recipe("my.package:MyFS", source="...", options={...})

Tests behind a mount have the marker ``mounted``. Where mounting is impossible the run fails, unless PYFUSEKIT_NO_MOUNT=1 says
that they are to be skipped.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator

import pytest

from .doors import DOORS, MOUNTED, Door, open_door
from .mounted import require_fuse
from .recipe import Recipe
from .tree import Tree

# Before a test imports it: a contract's asserts are to say what they compared.
pytest.register_assert_rewrite("pyfusekit.testing.contract")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.mounted] if name == MOUNTED else []) for name in DOORS]
)
def door(request: pytest.FixtureRequest, recipe: Recipe) -> Iterator[Door]:
    """The filesystem of the module's ``recipe``, behind each door in turn."""
    with open_door(request.param, recipe) as opened:
        yield opened


@pytest.fixture
def tree(request: pytest.FixtureRequest, door: Door) -> Iterator[Tree]:
    """A fresh, empty directory."""
    name = re.sub(r"\W+", "-", request.node.name)[:80]
    with door.directory(f"{name}-{uuid.uuid4().hex[:6]}") as fresh:
        yield fresh


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker."""
    config.addinivalue_line("markers", "mounted: goes through a mount of the real kernel")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Decide about tests that need a mount: by a word of the user, never by accident."""
    mounted = [item for item in items if item.get_closest_marker("mounted")]
    if not mounted:
        return
    if os.environ.get("PYFUSEKIT_NO_MOUNT") == "1":
        for item in mounted:
            item.add_marker(pytest.mark.skip(reason="PYFUSEKIT_NO_MOUNT=1"))
        return
    try:
        require_fuse()
    except Exception as error:
        pytest.exit(f"{len(mounted)} tests need a mount, and {error}", returncode=1)
