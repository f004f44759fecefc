"""A read-only filesystem runs ReadContract with the content it was given beforehand."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

import pytest

from pyfusekit.core import Attr, DirEntry, Entries, Filesystem, NoOptions, Request
from pyfusekit.testing.contract import SEED, ContractFixtures, ReadContract
from pyfusekit.testing.contract.base import fails_with
from pyfusekit.testing.doors import Door
from pyfusekit.testing.recipe import Recipe
from pyfusekit.testing.tree import Tree


class SeedFS(Filesystem):
    """SEED, and nothing can be changed."""

    Options = NoOptions
    read_only = True

    def __init__(self, source: str | None = None, options: Any = None) -> None:
        self.files: dict[int, bytes] = {}
        self.names: dict[int, dict[bytes, int]] = {1: {}}
        for path, data in SEED.items():
            at = 1
            *parents, name = os.fsencode(path).split(b"/")
            for parent in parents:
                at = self.names[at].setdefault(parent, len(self.names) + len(self.files) + 1)
                self.names.setdefault(at, {})
            ino = len(self.names) + len(self.files) + 1
            self.names[at][name] = ino
            self.files[ino] = data

    def getattr(self, request: Request, ino: int, handle: Any) -> Attr:
        if ino in self.names:
            return Attr(ino=ino, mode=stat.S_IFDIR | 0o755, nlink=2)
        return Attr(ino=ino, mode=stat.S_IFREG | 0o644, size=len(self.files[ino]))

    def lookup(self, request: Request, parent: int, name: bytes) -> Attr | None:
        if len(name) > 255:
            raise OSError(errno.ENAMETOOLONG, "name")
        ino = self.names[parent].get(name)
        return None if ino is None else self.getattr(request, ino, None)

    def readdir(self, request: Request, ino: int, handle: Any, offset: int) -> Entries:
        entries = [DirEntry(b".", ino, stat.S_IFDIR, 1), DirEntry(b"..", ino, stat.S_IFDIR, 2)]
        for name, child in self.names[ino].items():
            entries.append(DirEntry(name, child, self.getattr(request, child, None).mode, len(entries) + 1))
        return entries[offset:]

    def read(self, request: Request, ino: int, handle: Any, offset: int, size: int) -> bytes:
        return self.files[ino][offset : offset + size]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe(f"{__name__}:SeedFS")


@pytest.fixture
def tree(door: Door) -> Tree:
    """The root: nothing can be made in it, so there is no directory for each test."""
    return door.tree


class SeedFixtures(ContractFixtures):
    @pytest.fixture
    def seeded(self, tree: Tree) -> Tree:
        """The content is there already."""
        return tree


class TestSeedRead(SeedFixtures, ReadContract):
    @pytest.mark.parametrize(
        "verb", ["mkdir", "unlink", "create", "write", "chmod", "truncate", "rename", "symlink", "setxattr"]
    )
    def test_every_change_is_erofs(self, tree: Tree, verb: str) -> None:
        verbs: dict[str, Any] = {
            "mkdir": lambda: tree.mkdir("new"),
            "unlink": lambda: tree.unlink("hello.txt"),
            "create": lambda: tree.open("new", os.O_CREAT | os.O_WRONLY),
            "write": lambda: tree.open("hello.txt", os.O_WRONLY),
            "chmod": lambda: tree.chmod("hello.txt", 0o600),
            "truncate": lambda: tree.truncate("hello.txt", 0),
            "rename": lambda: tree.rename("hello.txt", "new"),
            "symlink": lambda: tree.symlink("x", "new"),
            "setxattr": lambda: tree.setxattr("hello.txt", "user.x", b""),
        }
        with fails_with(errno.EROFS):
            verbs[verb]()
