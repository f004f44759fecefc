"""httpfs with --rw keeps the contract on Apache's mod_dav, behind the fake kernel and behind a mount.

What WebDAV cannot do is refused: each `supports_` fixture here is one such decision, with the errno a program gets.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

import pytest
from webservers import Apache

from pyfusekit.testing import contract
from pyfusekit.testing.contract import Capability, ContractFixtures, Refused
from pyfusekit.testing.contract.base import fails_with
from pyfusekit.testing.doors import FAKE, MOUNTED, Door, open_door
from pyfusekit.testing.recipe import Recipe
from pyfusekit.testing.tree import Tree


@pytest.fixture(scope="module", params=[FAKE, pytest.param(MOUNTED, marks=pytest.mark.mounted)])
def door(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    home = tmp_path_factory.mktemp("httpfs")
    root = tmp_path_factory.mktemp("served")
    root.chmod(0o777)
    with Apache(root, dav=True) as server:
        options: dict[str, Any] = {
            "rw": True,
            "netrc": False,
            "cache_dir": str(home / "cache"),
            "staging_dir": str(home / "staging"),
            "deadline": 10.0,
        }
        with open_door(request.param, Recipe("pyfusekit.fs.httpfs:HttpFS", server.url, options)) as opened:
            yield opened


class DavFixtures(ContractFixtures):
    """What WebDAV cannot do by design."""

    @pytest.fixture
    def supports_links(self) -> Capability:
        return Refused(errno.EPERM)

    @pytest.fixture
    def supports_symlinks(self) -> Capability:
        return Refused(errno.EPERM)

    @pytest.fixture
    def supports_special_files(self) -> Capability:
        return Refused(errno.EPERM)

    @pytest.fixture
    def supports_tmpfile(self) -> Capability:
        return Refused(errno.EOPNOTSUPP)

    @pytest.fixture
    def supports_exchange(self) -> Capability:
        return Refused(errno.EINVAL)

    @pytest.fixture
    def supports_whiteout(self) -> Capability:
        return Refused(errno.EINVAL)

    @pytest.fixture
    def supports_holes(self) -> Capability:
        """A resource is all bytes."""
        return Refused(errno.EOPNOTSUPP)

    @pytest.fixture
    def max_size(self) -> int:
        """A sparse file's zeros are sent."""
        return 20 << 20

    @pytest.fixture
    def supports_xattr(self) -> Capability:
        return Refused(errno.EOPNOTSUPP)

    @pytest.fixture
    def supports_trusted_xattr(self) -> Capability:
        return Refused(errno.EOPNOTSUPP)

    @pytest.fixture
    def supports_security_xattr(self) -> Capability:
        return Refused(errno.EOPNOTSUPP)

    @pytest.fixture
    def supports_acl(self) -> Capability:
        return Refused(errno.EOPNOTSUPP)

    @pytest.fixture
    def supports_ownership(self) -> Capability:
        return Refused(errno.EPERM)

    @pytest.fixture
    def supports_btime(self) -> bool:
        return False

    @pytest.fixture
    def counts_subdirectories(self) -> bool:
        return False


class TestDavRead(contract.ReadContract, DavFixtures): ...


class TestDavWrite(contract.WriteContract, DavFixtures): ...


class TestDavOpenFlags(contract.OpenFlagsContract, DavFixtures): ...


class TestDavSparse(contract.SparseContract, DavFixtures): ...


class TestDavMmap(contract.MmapContract, DavFixtures): ...


class TestDavTree(contract.TreeContract, DavFixtures):
    def test_new_names_belong_to_who_made_them(self, tree: Tree) -> None:
        """All is --uid's and --gid's."""
        tree.write_file("f")
        tree.mkdir("d")
        assert {(tree.stat(name).uid, tree.stat(name).gid) for name in ("", "f", "d")} == {(os.getuid(), os.getgid())}

    def test_setgid_directory_gives_its_group(self, tree: Tree) -> None:
        """There are no other groups."""
        tree.mkdir("d")
        with fails_with(errno.EPERM):
            tree.chown("d", -1, 77)


class TestDavDirectory(contract.DirectoryContract, DavFixtures):
    def test_listing_gives_types(self, tree: Tree) -> None:
        tree.write_file("file")
        tree.mkdir("dir")
        assert {entry.name: entry.type for entry in tree.scandir()} == {b"file": 8, b"dir": 4}


class TestDavRenameFlags(contract.RenameFlagsContract, DavFixtures): ...


class TestDavConcurrency(contract.ConcurrencyContract, DavFixtures): ...
