"""The two ways to a filesystem under test: the fake kernel in this process, and a mount served by another.

A test's conftest opens one for a module and hands each test a fresh directory:

    with open_door("mounted", recipe) as door, door.directory("a_test") as tree:
        tree.write_file("f", b"data")
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from .fake import FakeMount, FakeTree
from .mounted import MountedServer
from .native import NativeTree
from .recipe import Recipe
from .tree import Tree

FAKE = "fake"
MOUNTED = "mounted"
DOORS = (FAKE, MOUNTED)


class Door(ABC):
    """An open way to a filesystem."""

    tree: Tree
    """The root directory."""

    @abstractmethod
    def check(self) -> None:
        """Raise AssertionError when the server did or said something wrong since the last check."""

    @contextmanager
    def directory(self, name: str) -> Iterator[Tree]:
        """Make a directory for one test, and check and remove it afterwards; the umask is 022 meanwhile."""
        old = self.tree.umask(0o022)
        self.tree.mkdir(name, 0o755)
        try:
            yield self.tree.below(name)
            self.check()
        finally:
            self.tree.umask(old)
            self.tree.remove_tree(name)
        self.check()


class _Listener(logging.Handler):
    """Keeps what is logged as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class FakeDoor(Door):
    """The filesystem in a thread of this process, behind a FakeKernel."""

    def __init__(self, mount: FakeMount) -> None:
        self.mount = mount
        self.tree = FakeTree(mount)
        self.listener = _Listener()

    def check(self) -> None:
        complaints, self.mount.kernel.complaints[:] = list(self.mount.kernel.complaints), []
        lines, self.listener.lines = self.listener.lines, []
        assert not complaints, "the kernel would refuse:\n" + "\n".join(complaints)
        assert not lines, "the server logged:\n" + "\n".join(lines)


class MountedDoor(Door):
    """The filesystem in another process, behind the real kernel."""

    def __init__(self, server: MountedServer) -> None:
        self.server = server
        self.tree = NativeTree(server.mountpoint)

    def check(self) -> None:
        self.server.check()

    @contextmanager
    def directory(self, name: str) -> Iterator[Tree]:
        self.server.pet()
        with super().directory(name) as tree:
            yield tree


@contextmanager
def open_fake(recipe: Recipe, **arguments: object) -> Iterator[FakeDoor]:
    """Serve *recipe* behind a FakeKernel; *arguments* are the FakeKernel's. At the end the kernel's reckoning is checked."""
    mount = FakeMount(recipe.build, **arguments)
    listener = _Listener()
    logger = logging.getLogger("pyfusekit")
    logger.addHandler(listener)
    try:
        mount.start()
        door = FakeDoor(mount)
        door.listener = listener
        try:
            yield door
        finally:
            mount.drop_caches()
            mount.finish()
        door.check()
    finally:
        logger.removeHandler(listener)


@contextmanager
def open_mounted(recipe: Recipe) -> Iterator[MountedDoor]:
    """Mount *recipe* in another process. At the end it must be unmounted plainly, exit with 0, and have logged nothing."""
    with MountedServer(recipe, allow_other=os.geteuid() == 0) as server:
        yield MountedDoor(server)


@contextmanager
def open_door(name: str, recipe: Recipe) -> Iterator[Door]:
    """Open the door called *name*, one of DOORS."""
    if name == FAKE:
        with open_fake(recipe) as fake:
            yield fake
    else:
        with open_mounted(recipe) as mounted:
            yield mounted


__all__ = ["DOORS", "FAKE", "MOUNTED", "Door", "FakeDoor", "MountedDoor", "open_door", "open_fake", "open_mounted"]
