"""memfs keeps the whole contract, behind the fake kernel and behind a mount."""

from __future__ import annotations

import pytest

from pyfusekit.testing import contract
from pyfusekit.testing.contract import ContractFixtures
from pyfusekit.testing.recipe import Recipe


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe("pyfusekit.fs.memfs:MemFS", options={"size": 256 << 20, "nr_inodes": 20_000})


class MemfsFixtures(ContractFixtures):
    """memfs does all of it."""


class TestMemfsRead(contract.ReadContract, MemfsFixtures): ...


class TestMemfsWrite(contract.WriteContract, MemfsFixtures): ...


class TestMemfsOpenFlags(contract.OpenFlagsContract, MemfsFixtures): ...


class TestMemfsSparse(contract.SparseContract, MemfsFixtures): ...


class TestMemfsMmap(contract.MmapContract, MemfsFixtures): ...


class TestMemfsTree(contract.TreeContract, MemfsFixtures): ...


class TestMemfsDirectory(contract.DirectoryContract, MemfsFixtures): ...


class TestMemfsLink(contract.LinkContract, MemfsFixtures): ...


class TestMemfsSpecialFile(contract.SpecialFileContract, MemfsFixtures): ...


class TestMemfsTmpfile(contract.TmpfileContract, MemfsFixtures): ...


class TestMemfsRenameFlags(contract.RenameFlagsContract, MemfsFixtures): ...


class TestMemfsAttr(contract.AttrContract, MemfsFixtures): ...


class TestMemfsTimes(contract.TimesContract, MemfsFixtures): ...


class TestMemfsPermission(contract.PermissionContract, MemfsFixtures): ...


class TestMemfsXattr(contract.XattrContract, MemfsFixtures): ...


class TestMemfsAcl(contract.AclContract, MemfsFixtures): ...


class TestMemfsStatfs(contract.StatfsContract, MemfsFixtures): ...


class TestMemfsLock(contract.LockContract, MemfsFixtures): ...


class TestMemfsConcurrency(contract.ConcurrencyContract, MemfsFixtures): ...
