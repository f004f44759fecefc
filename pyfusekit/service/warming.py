"""Reading files through a mount, so that its disk cache has them.

A child reads, for a read of a mount may never come back: it can be left behind. It tells how far it is, a JSON object a line.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import mmap
import os
import queue
import select
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TextIO

from pyfusekit.core.mountinfo import read_mountinfo

from . import procs
from .exits import ACCESS, NOT_MOUNTED, SOURCE, TIMED_OUT, USAGE, Failure
from .mounts import Mounted, ask, examine
from .refresh import LOCATE_LIMIT_S, located
from .words import amount_text, files_text, printable, quoted

READERS = 8
"""Files that are read at a time."""
PIECE = 1 << 20
STALLED_S = 10.0
"""After so long without a byte the servers are asked whether they are still there."""
ANSWER_LIMIT_S = 5.0
TOLD_FAILURES = 10
"""So many files that could not be read are named."""
_TICK_S = 0.2
_LINE_EVERY_S = 10.0


class Target(NamedTuple):
    """A file or tree to read."""

    path: str
    """Absolute."""
    mounted: Mounted
    limit: int
    """The bytes that the cache of its mount may take."""

    @property
    def device(self) -> int:
        """Return the st_dev of what lies in the mount."""
        return os.makedev(self.mounted.info.major, self.mounted.info.minor)


class Meter:
    """Tells a person how far it is: a line that changes on a terminal, elsewhere one now and then."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.is_terminal = stream.isatty()
        self._now = now
        self._began = now()
        self._told = self._began if not self.is_terminal else -math.inf

    @property
    def seconds(self) -> float:
        """Return how long it has been going on."""
        return self._now() - self._began

    def tell(self, files: int, size: int) -> None:
        """Show what was read."""
        now = self._now()
        if not self.is_terminal and now - self._told < _LINE_EVERY_S:
            return
        self._told = now
        text = f"Reading: {files_text(files)}, {amount_text(size)}{rate_text(size, self.seconds)}"
        self.stream.write(f"\r{text}\x1b[K" if self.is_terminal else f"{text}\n")
        self.stream.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self.is_terminal and self._told > -math.inf:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def rate_text(size: int, seconds: float) -> str:
    """Return ", 12 MiB/s", or nothing when there is none yet."""
    return f", {amount_text(int(size / seconds))}/s" if size and seconds > 0.05 else ""


def target(path: str) -> Target:
    """Return what *path* names in a mount that has a disk cache; Failure says why it cannot be warmed."""
    shown = printable(path)
    try:
        found = procs.in_child(lambda: located(path), LOCATE_LIMIT_S)
    except procs.TimeLimit:
        cause = f"{shown} cannot be followed: a mount on the way does not answer"
        raise Failure(cause, "pyfusekit list shows which", code=TIMED_OUT) from None
    info = next((info for info in read_mountinfo() if info.mount_id == found[0]), None)
    if info is None or not info.is_ours:
        raise Failure(f"{shown} is not in one of pyfusekit's mounts", "pyfusekit list shows what is mounted", code=NOT_MOUNTED)
    mounted = examine(info)
    cache = ask(mounted, {"cmd": "status"}, ANSWER_LIMIT_S).get("cache")
    if not isinstance(cache, dict):
        cause = f"{printable(info.mountpoint)} has no disk cache to read {shown} into"
        raise Failure(cause, "a filesystem that can have one is mounted with it by --cache-size 4G", code=USAGE)
    return Target(os.path.join(os.getcwd(), path), mounted, int(cache.get("limit") or 0))


class Warming:
    """The reading of *targets*, told to *meter*."""

    def __init__(self, targets: Sequence[Target], meter: Meter) -> None:
        self.targets = targets
        self.meter = meter
        self.files = 0
        self.bytes = 0
        self.failed = 0
        """Files and directories that could not be read."""
        self.failures: list[Failure] = []
        """The first of them."""

    def run(self) -> str:
        """Read all, and return the words that say what was read. Failure when the servers do not answer any more."""
        pid, reader = _child([(target.path, target.device) for target in self.targets])
        try:
            self._follow(reader)
        finally:
            self.meter.clear()
            os.close(reader)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            procs.reap(pid, 0.5)
        return f"Read {self.words()}"

    def words(self) -> str:
        """Return what was read, and how fast."""
        seconds = self.meter.seconds
        return f"{files_text(self.files)} ({amount_text(self.bytes)}{rate_text(self.bytes, seconds)})"

    def notes(self) -> Iterator[str]:
        """Yield what a person should know although all was read."""
        limits: dict[str, int] = {target.mounted.info.mountpoint: target.limit for target in self.targets}
        if self.bytes > sum(limits.values()):
            places = ", ".join(f"{printable(place)} has {amount_text(limit)}" for place, limit in limits.items())
            yield f"that is more than a cache takes ({places}): what was read first has made room for the rest"

    def _follow(self, reader: int) -> None:
        """Take in what the child tells, to its end."""
        poller = select.poll()
        poller.register(reader, select.POLLIN)
        rest = b""
        last, since = (0, 0), time.monotonic()
        while True:
            if poller.poll(_TICK_S * 1000):
                piece = os.read(reader, 1 << 16)
                if not piece:
                    raise RuntimeError("the process that reads ended before its work was done")
                *lines, rest = (rest + piece).split(b"\n")
                if any([self._hear(json.loads(line)) for line in lines]):
                    return
            self.meter.tell(self.files, self.bytes)
            now = time.monotonic()
            if (self.files, self.bytes) != last:
                last, since = (self.files, self.bytes), now
            elif now - since > STALLED_S:
                for mounted in {target.mounted.info.minor: target.mounted for target in self.targets}.values():
                    ask(examine(mounted.info), {"cmd": "status"}, ANSWER_LIMIT_S)
                since = now

    def _hear(self, told: dict[str, Any]) -> bool:
        """Take in one line; return whether it was the last."""
        self.files, self.bytes, self.failed = told["files"], told["bytes"], told["failed"]
        for path, number in told["failures"]:
            code = ACCESS if number in (errno.EACCES, errno.EPERM) else SOURCE
            (where, *_) = [target.mounted.info.mountpoint for target in self.targets if _is_in(path, target)]
            remedy = f"pyfusekit errors {quoted(where)} may say why"
            self.failures.append(Failure(f"{printable(path)}: {os.strerror(number)}", remedy, code=code))
        return bool(told["done"])


def _is_in(path: str, target: Target) -> bool:
    return path == target.path or path.startswith(target.path.rstrip("/") + "/")


# The child.


def _child(places: list[tuple[str, int]]) -> tuple[int, int]:
    """Fork the process that reads, and return its pid and the descriptor on which it tells how far it is."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid:
        os.close(writer)
        # Here too: whoever kills the group does not wait for the child to have made it.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        return pid, reader
    try:
        os.setpgid(0, 0)
        os.closerange(0, writer)
        os.closerange(writer + 1, 1 << 20)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        Reading(writer).run(places)
    finally:
        os._exit(0)
    raise AssertionError


class Reading:
    """The child's work: one thread walks, some read, one tells."""

    def __init__(self, writer: int) -> None:
        self._writer = writer
        self._lock = threading.Lock()
        self._files = 0
        self._bytes = 0
        self._failed = 0
        self._failures: list[tuple[str, int]] = []
        """Not told yet; of all, only the first are."""
        self._todo: queue.Queue[tuple[str, int] | None] = queue.Queue(1000)
        self._over = threading.Event()

    def run(self, places: Iterable[tuple[str, int]]) -> None:
        """Read everything at *places*, paths with the device they lie on."""
        teller = threading.Thread(target=self._tell_on)
        readers = [threading.Thread(target=self._read_on) for _ in range(READERS)]
        for thread in (teller, *readers):
            thread.start()
        for path, device in places:
            self._walk(path, device)
        for _ in readers:
            self._todo.put(None)
        for thread in readers:
            thread.join()
        self._over.set()
        teller.join()
        self._tell(done=True)

    def _tell_on(self) -> None:
        try:
            while not self._over.wait(_TICK_S):
                self._tell(done=False)
        except OSError:
            # Nobody hears it any more.
            os._exit(0)

    def _tell(self, *, done: bool) -> None:
        with self._lock:
            failures, self._failures = self._failures, []
            told = {
                "files": self._files, "bytes": self._bytes, "failed": self._failed, "failures": failures, "done": done,
            }  # fmt: skip
        line = json.dumps(told).encode() + b"\n"
        while line:
            line = line[os.write(self._writer, line) :]

    def _fail(self, path: str, exc: OSError) -> None:
        with self._lock:
            self._failed += 1
            if self._failed <= TOLD_FAILURES:
                self._failures.append((path, exc.errno or errno.EIO))

    def _walk(self, path: str, device: int) -> None:
        """Have all regular files at and below *path* read that lie on *device*; symbolic links are followed in *path* only."""
        try:
            status = os.stat(path)
            if status.st_dev != device:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            if not stat.S_ISDIR(status.st_mode):
                self._todo.put((path, device))
                return
        except OSError as exc:
            self._fail(path, exc)
            return
        directories = [path]
        while directories:
            directory = directories.pop()
            try:
                with os.scandir(directory) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            if entry.stat(follow_symlinks=False).st_dev == device:
                                directories.append(entry.path)
                        elif entry.is_file(follow_symlinks=False):
                            self._todo.put((entry.path, device))
            except OSError as exc:
                self._fail(directory, exc)

    def _read_on(self) -> None:
        buffer = mmap.mmap(-1, PIECE)
        while (item := self._todo.get()) is not None:
            path, device = item
            try:
                self._read(path, device, buffer)
            except OSError as exc:
                self._fail(path, exc)
            else:
                with self._lock:
                    self._files += 1

    def _read(self, path: str, device: int, buffer: mmap.mmap) -> None:
        """Read a file past the kernel's pages: what they have never reaches the server, nor its cache."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = os.open(path, flags | os.O_DIRECT)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            fd = os.open(path, flags)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_dev != device:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            offset = 0
            while count := os.preadv(fd, [buffer], offset):
                offset += count
                with self._lock:
                    self._bytes += count
        finally:
            os.close(fd)
