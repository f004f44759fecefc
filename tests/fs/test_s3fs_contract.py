"""s3fs keeps the contract on a store in memory, behind the fake kernel, and on SeaweedFS, behind a mount.

What S3 cannot do is refused: each `supports_` fixture here is one such decision, with the errno a program gets.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest
from fakestore import FakeStore
from seaweed import ACCESS, SeaweedServer

from pyfusekit.fs.s3fs import S3FS, S3Options
from pyfusekit.testing import contract
from pyfusekit.testing.contract import Capability, ContractFixtures, Refused
from pyfusekit.testing.doors import FAKE, MOUNTED, Door, open_door
from pyfusekit.testing.recipe import Recipe


class InMemory(S3FS):
    """s3fs on a store in this process."""

    def __init__(self, source: str | None, options: S3Options) -> None:
        super().__init__(source, options, store=FakeStore())


@pytest.fixture(scope="module", params=[FAKE, pytest.param(MOUNTED, marks=pytest.mark.mounted)])
def door(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    home = tmp_path_factory.mktemp("s3fs")
    options: dict[str, Any] = {"cache_dir": str(home / "cache"), "staging_dir": str(home / "staging")}
    with pytest.MonkeyPatch.context() as patch:
        if request.param == FAKE:
            recipe = Recipe(f"{__name__}:InMemory", "bucket", options)
        else:
            server: SeaweedServer = request.getfixturevalue("seaweed")
            for name, value in ACCESS.items():
                patch.setenv(name, value)
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            recipe = Recipe("pyfusekit.fs.s3fs:S3FS", server.bucket(), {**options, "endpoint_url": server.url})
        with open_door(request.param, recipe) as opened:
            yield opened


class S3fsFixtures(ContractFixtures):
    """What S3 cannot do by design."""

    @pytest.fixture
    def supports_links(self) -> Capability:
        """An object has one key."""
        return Refused(errno.EPERM)

    @pytest.fixture
    def supports_exchange(self) -> Capability:
        """S3 copies and deletes one key after the other: others would see a name missing."""
        return Refused(errno.EINVAL)

    @pytest.fixture
    def supports_whiteout(self) -> Capability:
        return Refused(errno.EINVAL)

    @pytest.fixture
    def supports_holes(self) -> Capability:
        """An object is all bytes. Punched holes are zeros, and take as much."""
        return Refused(errno.EOPNOTSUPP)

    @pytest.fixture
    def max_size(self) -> int:
        """A sparse file's zeros are sent; three parts of a multipart upload are enough here."""
        return 20 << 20

    @pytest.fixture
    def supports_undecodable_names(self) -> Capability:
        """A key is UTF-8."""
        return Refused(errno.EILSEQ)

    @pytest.fixture
    def supports_security_xattr(self) -> Capability:
        """The kernel would ask for security.capability before every write."""
        return Refused(errno.EOPNOTSUPP)

    @pytest.fixture
    def xattr_max(self) -> int:
        """All of an object's metadata has at most 2048 bytes, and xattrs are in base64 there."""
        return 1000

    @pytest.fixture
    def supports_acl(self) -> Capability:
        return Refused(errno.EOPNOTSUPP)

    @pytest.fixture
    def supports_btime(self) -> bool:
        """No object says when its name was made."""
        return False

    @pytest.fixture
    def counts_subdirectories(self) -> bool:
        """Counting would take a listing."""
        return False


class TestS3fsRead(contract.ReadContract, S3fsFixtures): ...


class TestS3fsWrite(contract.WriteContract, S3fsFixtures): ...


class TestS3fsOpenFlags(contract.OpenFlagsContract, S3fsFixtures): ...


class TestS3fsSparse(contract.SparseContract, S3fsFixtures): ...


class TestS3fsMmap(contract.MmapContract, S3fsFixtures): ...


class TestS3fsTree(contract.TreeContract, S3fsFixtures): ...


class TestS3fsDirectory(contract.DirectoryContract, S3fsFixtures): ...


class TestS3fsLink(contract.LinkContract, S3fsFixtures): ...


class TestS3fsSpecialFile(contract.SpecialFileContract, S3fsFixtures): ...


class TestS3fsTmpfile(contract.TmpfileContract, S3fsFixtures): ...


class TestS3fsRenameFlags(contract.RenameFlagsContract, S3fsFixtures): ...


class TestS3fsAttr(contract.AttrContract, S3fsFixtures): ...


class TestS3fsTimes(contract.TimesContract, S3fsFixtures): ...


class TestS3fsPermission(contract.PermissionContract, S3fsFixtures): ...


class TestS3fsXattr(contract.XattrContract, S3fsFixtures): ...


class TestS3fsAcl(contract.AclContract, S3fsFixtures): ...


class TestS3fsStatfs(contract.StatfsContract, S3fsFixtures): ...


class TestS3fsLock(contract.LockContract, S3fsFixtures): ...


class TestS3fsConcurrency(contract.ConcurrencyContract, S3fsFixtures): ...
