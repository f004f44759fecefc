"""httpfs keeps the contract of reading, behind the fake kernel and behind a mount, whatever form the listing has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from httpworld import World

from pyfusekit.testing import contract
from pyfusekit.testing.contract import SEED, ContractFixtures
from pyfusekit.testing.doors import FAKE, MOUNTED, Door, open_door
from pyfusekit.testing.recipe import Recipe
from pyfusekit.testing.tree import Tree


@pytest.fixture(scope="module", params=["nginx", "apache", "json"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with World(request.param) as made:
        for path, data in SEED.items():
            made.put(path, data)
        yield made


@pytest.fixture(scope="module", params=[FAKE, pytest.param(MOUNTED, marks=pytest.mark.mounted)])
def door(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    options = {"cache_dir": str(tmp_path_factory.mktemp("httpfs"))}
    with open_door(request.param, Recipe("pyfusekit.fs.httpfs:HttpFS", world.url, options)) as opened:
        yield opened


class HttpfsFixtures(ContractFixtures):
    """The source is read-only: what the contract reads is there before it is mounted."""

    @pytest.fixture
    def seeded(self, door: Door) -> Iterator[Tree]:
        yield door.tree
        door.check()


class TestHttpfsRead(HttpfsFixtures, contract.ReadContract): ...
