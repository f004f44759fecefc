"""A filesystem mounted for tests, served by another process, watched by a third.

A test that touches a mount served by its own process can deadlock with itself, and one that hangs in a mount cannot be
killed until somebody aborts the connection. So the server is a subprocess, and a watchdog, another one, aborts the mount when
no test has given a sign of life for a while.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import tempfile
from types import TracebackType

from ..core.errors import MountError
from ..core.mount import unmount
from ..core.mountinfo import read_mountinfo
from .recipe import Recipe

READY_S = 20.0
EXIT_S = 10.0
WATCH_S = 50.0
"""Less than a test may take: the mount is aborted before the test runner gives up."""

SUSPICIOUS = re.compile(r"warning|error|traceback|exception|critical", re.IGNORECASE)
DEVICE = "/dev/fuse"
_FUSECTL = "/sys/fs/fuse/connections"
_PACKAGES = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class MountedServer:
    """Serves *recipe* at a fresh mountpoint for the length of a ``with`` block."""

    def __init__(self, recipe: Recipe, *, allow_other: bool = False, watch_s: float = WATCH_S) -> None:
        self.recipe = recipe
        self._allow_other = allow_other
        self._watch_s = watch_s
        self._checked = 0

    def __enter__(self) -> MountedServer:
        """Start the server and wait until the mount works."""
        require_fuse()
        self.directory = tempfile.mkdtemp(prefix="pyfusekit-test-")
        os.chmod(self.directory, 0o755)
        self.mountpoint = os.path.join(self.directory, "mnt")
        os.mkdir(self.mountpoint)
        self._stderr_path = os.path.join(self.directory, "stderr")
        words = ["allow_other"] if self._allow_other else []
        with open(self._stderr_path, "wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "default", "-m", "pyfusekit.testing", self.recipe.dump(), self.mountpoint, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([_PACKAGES, *sys.path])},
                cwd="/",
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._clean_up()
            raise
        return self

    def _wait_until_ready(self) -> None:
        stdout = self.process.stdout
        assert stdout is not None
        poll = select.poll()
        poll.register(stdout, select.POLLIN)
        line = stdout.readline() if poll.poll(READY_S * 1000) else b""
        if line != b"ready\n":
            raise RuntimeError(f"the server did not mount {self.recipe.target}:\n{self.stderr()}")
        info = self._mount_info()
        assert info is not None, f"the server says it is ready, but {self.mountpoint} is not mounted"
        self.connection = info
        self._watchdog = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                os.path.join(os.path.dirname(__file__), "watchdog.py"),
                str(self.connection),
                self.mountpoint,
                str(self._watch_s),
            ],
            stdin=subprocess.PIPE,
            cwd="/",
        )

    def _mount_info(self) -> int | None:
        """Return the connection's number, without touching the mount."""
        for info in read_mountinfo():
            if info.mountpoint == self.mountpoint:
                return int(info.minor)
        return None

    def pet(self) -> None:
        """Give the watchdog a sign of life."""
        assert self._watchdog.stdin is not None
        try:
            os.write(self._watchdog.stdin.fileno(), b".")
        except BrokenPipeError:
            raise RuntimeError(f"the watchdog has aborted {self.mountpoint}: a test hung") from None

    def stderr(self) -> str:
        """Return what the server has written to its standard error."""
        with open(self._stderr_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def check(self) -> None:
        """Raise AssertionError when the server died, or wrote suspicious words since the last check."""
        text = self.stderr()
        new, self._checked = text[self._checked :], len(text)
        assert not SUSPICIOUS.search(new), f"the server wrote:\n{new}"
        assert self.process.poll() is None, f"the server has ended with status {self.process.returncode}:\n{text}"

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        """Unmount plainly: what is busy is a leak. The server must then end by itself, with status 0 and in silence."""
        problems = []
        try:
            unmount(self.mountpoint)
        except MountError as error:
            problems.append(f"unmounting failed: {error}; in use by {_users_of(self.mountpoint)}")
        else:
            try:
                status = self.process.wait(EXIT_S)
                if status != 0:
                    problems.append(f"the server ended with status {status}")
            except subprocess.TimeoutExpired:
                problems.append(f"the server did not end within {EXIT_S} s of the unmount")
        text = self.stderr()
        if SUSPICIOUS.search(text[self._checked :]):
            problems.append(f"the server wrote:\n{text[self._checked :]}")
        self._clean_up()
        if problems:
            raise AssertionError("\n".join(problems)) from exc

    def _clean_up(self) -> None:
        """Leave nothing behind, whatever state things are in."""
        watchdog = getattr(self, "_watchdog", None)
        if watchdog is not None:
            # What is still mounted is aborted and detached by it; what is not needs a word.
            is_mounted = self._mount_info() is not None
            watchdog.communicate(b"" if is_mounted else b"q", timeout=EXIT_S)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(EXIT_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        if watchdog is None and self._mount_info() is not None:
            unmount(self.mountpoint, lazy=True)
        os.unlink(self._stderr_path)
        os.rmdir(self.mountpoint)
        os.rmdir(self.directory)


def require_fuse() -> None:
    """Raise RuntimeError, saying what to do, when this machine cannot mount; make /sys/fs/fuse/connections usable."""
    if not os.path.exists(DEVICE):
        raise RuntimeError(f"there is no {DEVICE}: modprobe fuse, or set PYFUSEKIT_NO_MOUNT=1 to test without mounts")
    if os.path.isdir(_FUSECTL) and not os.path.ismount(_FUSECTL) and os.geteuid() == 0:
        subprocess.run(["mount", "-t", "fusectl", "none", _FUSECTL], check=True)


def _users_of(mountpoint: str) -> list[str]:
    """Name the descriptors, directories and mappings of processes that lie in a mount, by /proc and without touching it."""
    users = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = [f"/proc/{pid}/cwd", *(f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd"))]
        except OSError:
            continue
        for link in links:
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target == mountpoint or target.startswith(mountpoint + "/"):
                users.append(f"{link} -> {target}")
    return users


__all__ = ["MountedServer", "require_fuse"]
