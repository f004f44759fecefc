"""Start a filesystem server in a process of its own, and stop it whatever it does.

Nothing in this process ever touches a mount: that is the load generator's job, under a time limit. When the limit is
over the connection is aborted, which frees the load and the server alike.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from pathlib import Path

FUSECTL = Path("/sys/fs/fuse/connections")
LIFETIME_SECONDS = 1800
"""After this a server is killed by timeout(1), even if this program is gone."""


class ServerError(Exception):
    """A server did not come up, or its mount hung."""


def mount_fusectl() -> None:
    """Mount the control filesystem of FUSE connections where it is not, so that a hung mount can be aborted."""
    if FUSECTL.is_dir() and not os.path.ismount(FUSECTL):
        subprocess.run(["mount", "-t", "fusectl", "none", str(FUSECTL)], check=True, timeout=10)


def minor_of(mountpoint: str) -> int | None:
    """Return the device minor of the FUSE mount on *mountpoint*, which names its connection; None when there is none."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == mountpoint and fields[fields.index("-") + 1].startswith("fuse"):
            return int(fields[2].partition(":")[2])
    return None


class Server:
    """One server and its mount, as a context manager; *mountpoint* is made under a fresh temporary directory."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.command = command
        self.directory = tempfile.mkdtemp(prefix="pyfusekit-bench-")
        self.mountpoint = os.path.join(self.directory, "mnt")
        self.minor: int | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        os.mkdir(self.mountpoint)
        words = [word.replace("MOUNTPOINT", self.mountpoint) for word in self.command]
        with open(os.path.join(self.directory, "log"), "wb") as log:
            self.process = subprocess.Popen(
                ["timeout", "-s", "KILL", str(LIFETIME_SECONDS), *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 20
        while (minor := minor_of(self.mountpoint)) is None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                log_text = Path(self.directory, "log").read_text(errors="replace")
                self.__exit__()
                raise ServerError(f"{self.name} did not mount: {log_text.strip() or 'no message'}")
            time.sleep(0.01)
        self.minor = minor
        return self

    def __exit__(self, *_: object) -> None:
        if minor_of(self.mountpoint) is not None and not self._umount([]):
            self.abort()
            self._umount(["-l"])
        if self.process is not None:
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(5)
                self.process.kill()
                self.process.wait()
        os.rmdir(self.mountpoint)
        os.unlink(os.path.join(self.directory, "log"))
        os.rmdir(self.directory)

    def _umount(self, flags: list[str]) -> bool:
        try:
            done = subprocess.run(["umount", *flags, self.mountpoint], timeout=10, capture_output=True)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def abort(self) -> None:
        """Break the connection: every request fails with ECONNABORTED, at once."""
        if self.minor is not None:
            with contextlib.suppress(OSError):
                (FUSECTL / str(self.minor) / "abort").write_text("1")

    def load(self, client: list[str], timeout: float = 60) -> float:
        """Run the load generator *client*, with MOUNTPOINT replaced, and return the nanoseconds it prints."""
        words = [word.replace("MOUNTPOINT", self.mountpoint) for word in client]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.abort()
            process.kill()
            process.communicate(timeout=10)
            raise ServerError(f"{self.name}: {' '.join(words[1:2])} hung and was aborted") from None
        if process.returncode:
            log = Path(self.directory, "log").read_text(errors="replace").strip()
            raise ServerError(f"{self.name}: {err.decode(errors='replace').strip()}\n{log}")
        return float(out)

    def pid(self) -> int:
        """Return the server's own process id: the child of the timeout(1) that guards it."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        if len(children) != 1:
            raise ServerError(f"{self.name}: {len(children)} processes where one was expected")
        return int(children[0])


def cpu_ticks(pid: int) -> int:
    """Return the clock ticks (10 ms) of processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def rss_bytes(pid: int) -> int:
    """Return the memory of a process that is resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ServerError(f"process {pid} has no memory")


def settle(pid: int) -> None:
    """Wait until a server has nothing more to do, at most 2 s: forgets come after the caches are dropped."""
    before, deadline = -1, time.monotonic() + 2
    while (now := cpu_ticks(pid)) != before and time.monotonic() < deadline:
        before = now
        time.sleep(0.03)


def busy_share(seconds: float) -> float:
    """Return how busy the processors are for the next *seconds*, from 0 to 1."""

    def read() -> tuple[int, int]:
        with open("/proc/stat") as stat:
            ticks = [int(word) for word in stat.readline().split()[1:]]
        return sum(ticks), ticks[3] + ticks[4]

    total, idle = read()
    time.sleep(seconds)
    total_then, idle_then = read()
    return 1 - (idle_then - idle) / max(1, total_then - total)


class Quiet:
    """Waits for moments in which the machine has little else to do, as long as there is patience left."""

    def __init__(self, patience_seconds: float) -> None:
        self.deadline = time.monotonic() + patience_seconds

    def wait(self) -> None:
        """Return when the processors are idle, or when the patience is at its end."""
        while time.monotonic() < self.deadline and busy_share(0.1) > 0.2:
            pass
