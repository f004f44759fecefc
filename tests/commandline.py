"""Running the real command in tests: every process it starts can be found again, and every mount has a watchdog.

The plugin "odd" is a package of its own on PYTHONPATH, with entry points like an installed one: a filesystem whose source says
how it misbehaves.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pyfusekit.core.mount import CONNECTIONS
from pyfusekit.core.mountinfo import MountInfo, is_within, read_mountinfo

REPOSITORY = Path(__file__).resolve().parents[1]
NOBODY = 65534
WATCHDOG_S = 50.0

needs_mounts = pytest.mark.mounted

_ODD = """
import asyncio, errno, os, stat, time
from dataclasses import dataclass
from pyfusekit.core import Attr, DirEntry, Filesystem, MountError, Secret, Size, option

@dataclass(frozen=True)
class OddOptions:
    weight: Size = option(Size(8 << 20), help="Some bytes.", group="Odd")
    password: Secret | None = option(None, help="Never shown.", group="Odd", env="ODD_PASSWORD")

class OddFS(Filesystem):
    summary = "Misbehaves as its source says."
    Options = OddOptions

    def __init__(self, source, options):
        self.source = source or "ok"
        if self.source == "unbuildable":
            raise ValueError("the source unbuildable cannot be built")

    async def init(self):
        if self.source == "slow":
            await asyncio.sleep(60)
        if self.source == "frozen":
            time.sleep(60)
        if self.source == "exit":
            print("the last words of odd", flush=True)
            os._exit(3)
        if self.source == "bug":
            raise TypeError("a bug of odd")
        if self.source == "refused":
            raise PermissionError(errno.EACCES, "the key is wrong")
        if self.source == "absent":
            raise MountError("odd: no such bucket", kind="source-missing", remedy="create it")

    async def getattr(self, request, ino, handle):
        if self.source == "deaf":
            await asyncio.sleep(60)
        if self.source == "eio":
            raise OSError(errno.EIO, "odd")
        return Attr(ino=ino, mode=stat.S_IFDIR | 0o755, nlink=2)

    def readdir(self, request, ino, handle, offset):
        return [e for e in (DirEntry(b".", 1, stat.S_IFDIR, 1), DirEntry(b"..", 1, stat.S_IFDIR, 2)) if e.offset > offset]
"""

_ENTRY_POINTS = """[pyfusekit.filesystems]
odd = odd:OddFS
broken = odd_broken:BrokenFS
notfs = odd:OddOptions
mem = odd:OddFS
"""


def install_odd(folder: Path) -> None:
    """Write the package odd and its metadata into *folder*."""
    (folder / "odd.py").write_text(_ODD)
    (folder / "odd_broken.py").write_text("raise RuntimeError('odd is\\nbroken')\n")
    info = folder / "pyfusekit_odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pyfusekit-odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(_ENTRY_POINTS)


@dataclass
class Commandline:
    """A place to mount in, and the command to do it with."""

    top: Path
    environment: dict[str, str]
    mark: str
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def argv(self) -> list[str]:
        """The command, without its arguments."""
        return [sys.executable, "-m", "pyfusekit"]

    def run(
        self, *arguments: str | bytes | Path, limit: float = 40, prefix: tuple[str, ...] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the command to its end and return what it said. *prefix* goes before it (setpriv, unshare)."""
        return subprocess.run(
            [*prefix, *self.argv, *map(os.fsdecode, arguments)],
            env={**self.environment, **environment},
            cwd=self.top,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=limit,
        )

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start the command and return at once."""
        process = subprocess.Popen(
            [*self.argv, *map(os.fspath, arguments)],
            env=self.environment,
            cwd=self.top,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        self.started.append(process)
        return process

    def folder(self, name: str = "mnt") -> Path:
        """Return a new empty directory."""
        path = self.top / name
        path.mkdir()
        return path

    def mounts(self) -> list[MountInfo]:
        """Return what is mounted below our place."""
        return [info for info in read_mountinfo() if is_within(info.mountpoint, str(self.top))]

    def processes(self) -> dict[int, str]:
        """Return the processes that were started from here and still run: pid -> command line."""
        mark = f"PYFUSEKIT_TEST_MARK={self.mark}".encode()
        found = {}
        for name in os.listdir("/proc"):
            if name.isdecimal() and int(name) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                        line = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                        if line:
                            found[int(name)] = line
        return found

    def settle(self, seconds: float = 10) -> dict[int, str]:
        """Wait until no process of ours is left, at most *seconds*; return those that are."""
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def abort(self) -> None:
        """End every connection below our place by force; what is mounted stays."""
        for info in self.mounts():
            if info.is_fuse:
                with contextlib.suppress(OSError), open(f"{CONNECTIONS}/{info.minor}/abort", "w") as file:
                    file.write("1")

    def end(self) -> None:
        """Leave nothing behind."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
        self.abort()
        for info in reversed(self.mounts()):
            subprocess.run(["umount", "--lazy", "--no-canonicalize", info.mountpoint], check=False, timeout=20)
        for process in self.started:
            process.kill()
            with contextlib.suppress(ValueError):  # its pipes are closed already
                process.communicate(timeout=10)
        self.settle(5)


def _mount_fusectl() -> None:
    if not os.path.exists(CONNECTIONS) or any(info.mountpoint == CONNECTIONS for info in read_mountinfo()):
        return
    subprocess.run(["mount", "-t", "fusectl", "none", CONNECTIONS], check=True, timeout=20)


@contextlib.contextmanager
def commandline() -> Iterator[Commandline]:
    """A place and a command; when the test takes too long all its mounts are aborted, so that nothing hangs."""
    _mount_fusectl()
    top = Path(tempfile.mkdtemp(prefix="pyfusekit-cli-", dir="/tmp"))
    top.chmod(0o755)
    plugins = top / "plugins"
    plugins.mkdir()
    install_odd(plugins)
    mark = uuid.uuid4().hex
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYFUSEKIT_", "AWS_"))},
        # conftest.py looks for it: what we forget to end is to be found.
        "PYFUSEKIT_TEST_SESSION": os.environ.get("PYFUSEKIT_TEST_SESSION", ""),
        "PYTHONPATH": f"{REPOSITORY}:{plugins}",
        "PYFUSEKIT_TEST_MARK": mark,
        "HOME": str(top),
        "XDG_STATE_HOME": str(top / "state"),
    }
    command = Commandline(top, environment, mark)
    watchdog = threading.Timer(WATCHDOG_S, command.end)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield command
    finally:
        watchdog.cancel()
        command.end()
        shutil.rmtree(top, ignore_errors=True)
