"""The contract on a filesystem that caches nothing, gives handles and keeps its own locks: what memfs never asks the core."""

from __future__ import annotations

import pytest

from pyfusekit.testing import contract
from pyfusekit.testing.contract import ContractFixtures
from pyfusekit.testing.recipe import Recipe


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    # This directory is on sys.path, which the server's process is given.
    return Recipe("handlefs:HandleFS", options={"size": 256 << 20, "nr_inodes": 20_000})


class HandleFixtures(ContractFixtures):
    """It does all of it."""


class TestHandlesRead(contract.ReadContract, HandleFixtures): ...


class TestHandlesWrite(contract.WriteContract, HandleFixtures): ...


class TestHandlesOpenFlags(contract.OpenFlagsContract, HandleFixtures): ...


class TestHandlesSparse(contract.SparseContract, HandleFixtures): ...


class TestHandlesMmap(contract.MmapContract, HandleFixtures): ...


class TestHandlesTree(contract.TreeContract, HandleFixtures): ...


class TestHandlesDirectory(contract.DirectoryContract, HandleFixtures): ...


class TestHandlesTmpfile(contract.TmpfileContract, HandleFixtures): ...


class TestHandlesTimes(contract.TimesContract, HandleFixtures): ...


class TestHandlesPermission(contract.PermissionContract, HandleFixtures): ...


class TestHandlesAcl(contract.AclContract, HandleFixtures): ...


class TestHandlesLock(contract.LockContract, HandleFixtures): ...


class TestHandlesConcurrency(contract.ConcurrencyContract, HandleFixtures): ...
