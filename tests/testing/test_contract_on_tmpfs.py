"""The contract itself is tested on a filesystem that is known to be right: tmpfs, in the kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from collections.abc import Iterator

import pytest

from pyfusekit.testing import contract
from pyfusekit.testing.contract import Capability, Refused
from pyfusekit.testing.native import NativeTree
from pyfusekit.testing.tree import Tree

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def tmpfs() -> Iterator[NativeTree]:
    """A tmpfs of our own: an ordinary /tmp may be any filesystem, and statfs needs one that nobody else uses."""
    path = tempfile.mkdtemp(prefix="contract-")
    os.chmod(path, 0o755)
    # Mode 0755, mounted without options that take anything away.
    if _libc.mount(b"contract", path.encode(), b"tmpfs", 0, b"size=64m,mode=755") != 0:
        number = ctypes.get_errno()
        os.rmdir(path)
        pytest.skip(f"mounting a tmpfs needs root: {os.strerror(number)}")
    try:
        yield NativeTree(path)
    finally:
        # Never lazily: busy means that a test left something open.
        result, number = _libc.umount2(path.encode(), 0), ctypes.get_errno()
        if result != 0:
            _libc.umount2(path.encode(), 2)
        os.rmdir(path)
        assert result == 0, os.strerror(number)


@pytest.fixture
def tree(tmpfs: NativeTree, request: pytest.FixtureRequest) -> Iterator[Tree]:
    """A fresh directory; umask 022."""
    old = os.umask(0o022)
    name = f"t{abs(hash(request.node.nodeid)):x}"
    tmpfs.mkdir(name, 0o755)
    try:
        yield tmpfs.below(name)
    finally:
        os.umask(old)
        tmpfs.remove_tree(name)


class TmpfsFixtures(contract.ContractFixtures):
    """tmpfs does everything the contract knows, except what is stated here."""

    @pytest.fixture
    def supports_zero_range(self) -> Capability:
        return Refused(errno.EOPNOTSUPP)


for _name in contract.__all__:
    if _name.endswith("Contract"):
        _kind = getattr(contract, _name)
        globals()[f"TestTmpfs{_name.removesuffix('Contract')}"] = type(f"TestTmpfs{_name}", (_kind, TmpfsFixtures), {})
