"""What the contract classes share: capabilities, their fixtures, and a few words for the tests."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TypeAlias

import pytest

from ..tree import Path, Tree


class Supported:
    """A capability the filesystem has: ``with supports_x:`` runs its block as it stands."""

    def __bool__(self) -> bool:
        return True

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        return None


class Fails:
    """Expect the block to fail with an OSError of one of *numbers*; how it ends otherwise fails the test."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> bool:
        names = " or ".join(os.strerror(number) for number in self.numbers)
        assert exc is not None, f"succeeded; should fail: {names}"
        if not isinstance(exc, OSError):
            return False
        assert exc.errno in self.numbers, f"failed with {exc}; should fail: {names}"
        return True


class Refused(Fails):
    """A capability the filesystem does not have by design: the first verb of the block must fail with *number*.

    The rest of the block then does not run; a block that is not refused fails its test.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)

    def __bool__(self) -> bool:
        return False


Capability: TypeAlias = Supported | Refused
SUPPORTED = Supported()

ALICE = 1000
BOB = 1001
"""Users (and groups) that are not root and not each other."""


class ContractFixtures:
    """What a filesystem can do; override what it does not: ``return Refused(errno.EPERM)``.

    The fixture ``tree`` comes from pyfusekit.testing.plugin, a fresh empty directory for each test.
    """

    @pytest.fixture
    def supports_links(self) -> Capability:
        """Hard links."""
        return SUPPORTED

    @pytest.fixture
    def supports_symlinks(self) -> Capability:
        return SUPPORTED

    @pytest.fixture
    def supports_special_files(self) -> Capability:
        """Fifos, sockets and device nodes."""
        return SUPPORTED

    @pytest.fixture
    def supports_tmpfile(self) -> Capability:
        """O_TMPFILE."""
        return SUPPORTED

    @pytest.fixture
    def supports_exchange(self) -> Capability:
        """RENAME_EXCHANGE."""
        return SUPPORTED

    @pytest.fixture
    def supports_whiteout(self) -> Capability:
        """RENAME_WHITEOUT."""
        return SUPPORTED

    @pytest.fixture
    def supports_fallocate(self) -> Capability:
        """fallocate with mode 0 and KEEP_SIZE."""
        return SUPPORTED

    @pytest.fixture
    def supports_punch_hole(self) -> Capability:
        return SUPPORTED

    @pytest.fixture
    def supports_zero_range(self) -> Capability:
        return SUPPORTED

    @pytest.fixture
    def supports_holes(self) -> Capability:
        """Holes are found by SEEK_HOLE and not counted in st_blocks."""
        return SUPPORTED

    @pytest.fixture
    def supports_undecodable_names(self) -> Capability:
        """Names that are not UTF-8."""
        return SUPPORTED

    @pytest.fixture
    def supports_xattr(self) -> Capability:
        """Extended attributes user.*."""
        return SUPPORTED

    @pytest.fixture
    def supports_trusted_xattr(self) -> Capability:
        return SUPPORTED

    @pytest.fixture
    def supports_security_xattr(self) -> Capability:
        return SUPPORTED

    @pytest.fixture
    def supports_acl(self) -> Capability:
        """POSIX ACLs, enforced and inherited."""
        return SUPPORTED

    @pytest.fixture
    def supports_ownership(self) -> Capability:
        """chown to anybody."""
        return SUPPORTED

    @pytest.fixture
    def supports_direct_io(self) -> Capability:
        """O_DIRECT."""
        return SUPPORTED

    @pytest.fixture
    def supports_btime(self) -> bool:
        return True

    @pytest.fixture
    def counts_subdirectories(self) -> bool:
        """st_nlink of a directory is 2 and one for each subdirectory; otherwise it is 1, which says that nobody counts them."""
        return True

    @pytest.fixture
    def name_max(self) -> int:
        """Bytes of the longest name."""
        return 255

    @pytest.fixture
    def max_size(self) -> int:
        """Bytes a sparse file may be long, at least."""
        return 8 << 40

    @pytest.fixture
    def xattr_max(self) -> int:
        """Bytes an extended attribute may have, at least."""
        return 3000

    @pytest.fixture
    def many_entries(self) -> int:
        """How many names the big directory of DirectoryContract has."""
        return 400


def fails_with(*numbers: int) -> Fails:
    """Expect an OSError with one of *numbers*."""
    return Fails(*numbers)


@contextmanager
def opened(tree: Tree, path: Path, flags: int = os.O_RDONLY, mode: int = 0o644) -> Iterator[int]:
    """Open *path* for the block."""
    fd = tree.open(path, flags, mode)
    try:
        yield fd
    finally:
        tree.close(fd)


@contextmanager
def umask(tree: Tree, mask: int) -> Iterator[None]:
    """Set the umask for the block."""
    old = tree.umask(mask)
    try:
        yield
    finally:
        tree.umask(old)


def coarse_now_ns() -> int:
    """Return the time a filesystem that uses the kernel's coarse clock would stamp now."""
    return time.clock_gettime_ns(5)  # CLOCK_REALTIME_COARSE, which the time module does not name


def let_clock_pass(moment_ns: int) -> None:
    """Wait until a file changed now would carry a time after *moment_ns*.

    Filesystems may stamp files with the coarse clock, which stands still for up to 10 ms.
    """
    deadline = time.monotonic() + 2
    while coarse_now_ns() <= moment_ns:
        assert time.monotonic() < deadline, f"a file's time {moment_ns} lies in the future"
        time.sleep(0.001)


def pattern(size: int, seed: int = 0) -> bytes:
    """Return *size* bytes in which no two pages are alike."""
    words = (size + 7) // 8
    return b"".join(((index * 2654435761 + seed) & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little") for index in range(words))[:size]


__all__ = [
    "ALICE",
    "BOB",
    "SUPPORTED",
    "Capability",
    "ContractFixtures",
    "Refused",
    "Supported",
    "coarse_now_ns",
    "fails_with",
    "let_clock_pass",
    "opened",
    "pattern",
    "umask",
]
