"""The mounted door: what a server says, leaves or forgets fails the test; what hangs is aborted."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import subprocess
import sys
import time
from typing import Any

import pytest
from test_fake import Note

from pyfusekit.core import Request
from pyfusekit.core.mountinfo import read_mountinfo
from pyfusekit.testing.contract.base import fails_with
from pyfusekit.testing.doors import open_mounted
from pyfusekit.testing.mounted import MountedServer
from pyfusekit.testing.recipe import Recipe

pytestmark = pytest.mark.mounted


class Talker(Note):
    """It logs a warning when it is read."""

    def read(self, request: Request, ino: int, handle: Any, offset: int, size: int) -> bytes:
        logging.getLogger("pyfusekit.talker").warning("I am being read")
        return super().read(request, ino, handle, offset, size)


class Breaker(Note):
    """It dies when it is read."""

    def read(self, request: Request, ino: int, handle: Any, offset: int, size: int) -> bytes:
        os._exit(3)


class Hanger(Note):
    """It never answers a read."""

    async def read(self, request: Request, ino: int, handle: Any, offset: int, size: int) -> bytes:
        await asyncio.Event().wait()
        return b""


class Failing(Note):
    """It ends badly."""

    async def destroy(self) -> None:
        raise RuntimeError("cannot end")


class NotStarting(Note):
    """It does not begin."""

    async def init(self) -> None:
        raise OSError(errno.ECONNREFUSED, "the backend is away")


def recipe(name: str) -> Recipe:
    return Recipe(f"{__name__}:{name}")


def read_note(server: MountedServer) -> bytes:
    with open(f"{server.mountpoint}/note", "rb") as file:
        return file.read()


def is_mounted(server: MountedServer) -> bool:
    return any(info.mountpoint == server.mountpoint for info in read_mountinfo())


def test_served_file_is_read_and_nothing_is_left() -> None:
    with MountedServer(recipe("Note")) as server:
        assert is_mounted(server)
        assert read_note(server) == b"hello"
        server.check()
    assert not is_mounted(server)
    assert server.process.returncode == 0
    assert not os.path.exists(server.directory)


def test_two_servers_live_side_by_side() -> None:
    with open_mounted(recipe("Note")) as one, open_mounted(recipe("Note")) as two:
        assert one.tree.read_file("note") == two.tree.read_file("note") == b"hello"
        assert one.server.mountpoint != two.server.mountpoint


def test_suspicious_word_fails_the_check_once() -> None:
    with MountedServer(recipe("Talker")) as server:
        read_note(server)
        with pytest.raises(AssertionError, match="I am being read"):
            server.check()
        server.check()


def test_suspicious_word_fails_at_the_end() -> None:
    with pytest.raises(AssertionError, match="I am being read"), MountedServer(recipe("Talker")) as server:
        read_note(server)
    assert not is_mounted(server)


def test_open_file_at_the_end_is_a_leak() -> None:
    server = MountedServer(recipe("Note")).__enter__()
    fd = os.open(f"{server.mountpoint}/note", os.O_RDONLY)
    try:
        with pytest.raises(AssertionError, match="note"):
            server.__exit__(None, None, None)
    finally:
        with fails_with(errno.ENOTCONN):  # the connection was aborted
            os.close(fd)
    assert not is_mounted(server)
    assert server.process.returncode is not None
    assert not os.path.exists(server.directory)


def test_server_that_dies_fails_the_check_and_leaves_nothing() -> None:
    server = MountedServer(recipe("Breaker")).__enter__()
    with fails_with(errno.ENOTCONN, errno.ECONNABORTED, errno.EIO):
        read_note(server)
    server.process.wait(10)
    with pytest.raises(AssertionError, match="status 3"):
        server.check()
    with pytest.raises(AssertionError, match="status 3"):
        server.__exit__(None, None, None)
    assert not is_mounted(server)


def test_server_that_ends_badly_fails_at_the_end() -> None:
    with pytest.raises(AssertionError, match="cannot end"), MountedServer(recipe("Failing")):
        pass


def test_server_that_does_not_begin_says_why() -> None:
    with pytest.raises(RuntimeError, match="the backend is away"), MountedServer(recipe("NotStarting")):
        pass


def test_hanging_mount_is_aborted_by_the_watchdog() -> None:
    server = MountedServer(recipe("Hanger"), watch_s=0.5).__enter__()
    with fails_with(errno.ECONNABORTED, errno.ENOTCONN, errno.EIO):
        read_note(server)
    with pytest.raises(RuntimeError, match="a test hung"):
        pet_until_refused(server)
    with pytest.raises(AssertionError):
        server.__exit__(None, None, None)
    assert not is_mounted(server)


def pet_until_refused(server: MountedServer) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        server.pet()
        time.sleep(0.01)


def test_sign_of_life_keeps_the_watchdog_quiet() -> None:
    with MountedServer(recipe("Note"), watch_s=1.0) as server:
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            server.pet()
            time.sleep(0.05)
        assert os.path.exists(f"{server.mountpoint}/note")


def test_mount_of_a_test_run_that_was_killed_is_aborted() -> None:
    code = (
        "import os, sys, signal\n"
        "from pyfusekit.testing.mounted import MountedServer\n"
        "from pyfusekit.testing.recipe import Recipe\n"
        "server = MountedServer(Recipe('test_mounted:Note'))\n"
        "server.__enter__()\n"
        "print(server.mountpoint, server.process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    here = os.path.dirname(os.path.abspath(__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.path.dirname(os.path.dirname(here))])}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=30)
    mountpoint, pid = ended.stdout.split()
    deadline = time.monotonic() + 10
    while any(info.mountpoint == mountpoint for info in read_mountinfo()) or os.path.exists(f"/proc/{pid}/fd/0"):
        assert time.monotonic() < deadline, "the mount or its server is still there"
        time.sleep(0.02)
    os.unlink(os.path.join(os.path.dirname(mountpoint), "stderr"))
    os.rmdir(mountpoint)
    os.rmdir(os.path.dirname(mountpoint))
