"""What all tests share: the two doors of the contracts, and a look at what was left behind."""

from __future__ import annotations

import os
import signal
import time
import uuid

import pytest

from pyfusekit.core.mount import unmount
from pyfusekit.core.mountinfo import MountInfo, read_mountinfo

pytest_plugins = ["pyfusekit.testing.plugin"]

TOKEN = f"PYFUSEKIT_TEST_SESSION={uuid.uuid4().hex}"
"""In the environment of every process that this session starts, and of their children."""
os.environ.update([TOKEN.split("=")])
_MOUNTS_BEFORE = {(info.mount_id, info.mountpoint) for info in read_mountinfo()}
"""Both: the kernel uses the numbers again."""
GRACE_S = 5.0


# What was left behind.


def _our_processes() -> dict[int, str]:
    """Return the living processes with our token: pid -> command line."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if TOKEN.encode() not in file.read().split(b"\0"):
                    continue
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if words:  # a process that has ended, but is not yet waited for, has none
            found[int(pid)] = words
    return found


def _is_held_by_others(info: MountInfo, ours: dict[int, str]) -> bool:
    """Say whether another test run on this machine serves a mount: some process outside of ours holds its connection."""
    wanted = f"fuse_connection:\t{info.minor}\n"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) in ours or int(pid) == os.getpid():
            continue
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/fuse":
                    with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as file:
                        if wanted in file.read():
                            return True
        except OSError:
            continue
    return False


def _left_behind() -> tuple[dict[int, str], list[MountInfo]]:
    processes = _our_processes()
    new = [info for info in read_mountinfo() if info.is_ours and (info.mount_id, info.mountpoint) not in _MOUNTS_BEFORE]
    return processes, [info for info in new if not _is_held_by_others(info, processes)]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when processes or mounts are left, say which, and remove them."""
    deadline = time.monotonic() + GRACE_S
    processes, mounts = _left_behind()
    while (processes or mounts) and time.monotonic() < deadline:
        time.sleep(0.05)
        processes, mounts = _left_behind()
    for pid, words in processes.items():
        print(f"\nLEFT BEHIND: process {pid}: {words}")
        os.kill(pid, signal.SIGKILL)
    for info in mounts:
        print(f"\nLEFT BEHIND: mount {info.mountpoint}")
        unmount(info.mountpoint, lazy=True)
    if processes or mounts:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
