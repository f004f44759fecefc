from __future__ import annotations

import ctypes
import errno
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import served

from pyfusekit.core import abi, backing, codec
from pyfusekit.core.backing import Backing

MNT_DETACH = 2


class Device:
    """What a fake ioctl saw, and what it answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[int, int, bytes]] = []
        self.error = 0
        monkeypatch.setattr(backing, "ioctl", self.ioctl)

    def ioctl(self, fd: int, request: int, argument: Any) -> int:
        assert isinstance(argument, bytearray)  # with bytes, fcntl.ioctl does not return the id
        self.calls.append((fd, request, bytes(argument)))
        if self.error:
            raise OSError(self.error, "refused")
        return 77 if request == abi.DEV_IOC_BACKING_OPEN else 0


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def test_ioctls_are_what_the_kernel_reads(device: Device) -> None:
    with Backing(lambda: 5, 9) as file:
        assert file.id == 77
        assert device.calls == [(5, 0x4010E501, struct.pack("=iIQ", 9, 0, 0))]  # fd, flags, padding
    assert file.id == 0
    assert device.calls[1:] == [(5, 0x4004E502, struct.pack("=I", 77))]


def test_close_is_done_once(device: Device) -> None:
    file = Backing(lambda: 5, 9)
    file.close()
    file.close()
    assert len(device.calls) == 2


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.EPERM, "CAP_SYS_ADMIN"),
        (errno.EISDIR, "directory"),
        (errno.EINVAL, "regular file"),
        (errno.ELOOP, "max_stack_depth"),
        (errno.EOPNOTSUPP, "without passthrough"),
        (errno.ENFILE, "Too many open files"),
    ],
)
def test_refusal_says_why(device: Device, number: int, cause: str) -> None:
    device.error = number
    with pytest.raises(OSError, match=cause) as caught:
        Backing(lambda: 5, 9)
    assert caught.value.errno == number


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EBADF, errno.EPERM, errno.ENODEV])
def test_close_after_the_mount_is_gone_is_nothing(device: Device, number: int) -> None:
    file = Backing(lambda: 5, 9)
    device.error = number
    file.close()
    assert file.id == 0


def test_close_that_fails_otherwise_says_so(device: Device) -> None:
    file = Backing(lambda: 5, 9)
    device.error = errno.EINVAL
    with pytest.raises(OSError, match="refused"):
        file.close()


# The real ioctl. The mount answers nothing but INIT and nobody looks at it.


@pytest.fixture
def mounted() -> Iterator[int]:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    directory = tempfile.mkdtemp(prefix="pyfusekit-backing-")
    try:
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
        assert libc.mount(b"test", os.fsencode(directory), b"fuse", 0, options) == 0, os.strerror(ctypes.get_errno())
        try:
            message = codec.decode_request(os.read(fd, 1 << 17))
            if not message.fields["flags2"] & (abi.PASSTHROUGH >> 32):
                pytest.skip("this kernel offers no passthrough")
            reply = codec.encode_reply(
                abi.INITIAL,
                message.header["unique"],
                major=7,
                minor=message.fields["minor"],
                flags=abi.INIT_EXT,
                flags2=abi.PASSTHROUGH >> 32,
                max_write=4096,
                time_gran=1,
                max_stack_depth=1,
            )
            os.write(fd, reply)
            yield fd
        finally:
            assert libc.umount2(os.fsencode(directory), MNT_DETACH) == 0
    finally:
        os.close(fd)
        Path(directory).rmdir()


@served.mounted
def test_kernel_takes_a_file_and_gives_it_back(mounted: int) -> None:
    with tempfile.TemporaryFile() as file, Backing(lambda: mounted, file.fileno()) as first:
        second = Backing(lambda: mounted, file.fileno())
        assert 0 < first.id != second.id > 0
        second.close()


@served.mounted
def test_kernel_takes_no_directory(mounted: int) -> None:
    directory = os.open("/", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="backing file") as caught:
            Backing(lambda: mounted, directory)
        assert caught.value.errno in (errno.EISDIR, errno.EINVAL)
    finally:
        os.close(directory)
