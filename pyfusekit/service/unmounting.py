"""The end of a mount, from outside: wait for what waits to be written back, unmount, wait for the server's end.

Data is waited for twice: while the mount still stands, so that what cannot be written stays visible in it, and again after it
is gone, for what came in between.
"""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from pyfusekit.core.mountinfo import MountInfo, read_mountinfo

from . import control, procs
from .exits import ACCESS, BUSY, MOUNTPOINT, TIMED_OUT, Failure
from .mounts import DEAD, OK, SILENT, Mounted, examine, target, waiting_in
from .words import amount_text, files_text, printable, quoted, table

DEFAULT_LIMIT_S = 30.0
"""How long unmounting may take, and the server's end, and how long data that cannot be written is waited for."""
ANSWER_LIMIT_S = 5.0
"""How long the server may take to say how far it is."""
_POLL_S = 0.1
_LINE_EVERY_S = 10.0


class Meter:
    """Tells a person how much is left to be written back: a line that changes on a terminal, elsewhere one now and then."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.is_terminal = stream.isatty()
        self._now = now
        self._began = 0.0
        self._began_with = 0
        self._told = -math.inf

    def tell(self, source: str, files: int, size: int) -> None:
        """Show what is left."""
        now = self._now()
        if not self._began or size > self._began_with:
            self._began, self._began_with = now, size
        if not self.is_terminal and now - self._told < _LINE_EVERY_S:
            return
        self._told = now
        done, seconds = self._began_with - size, now - self._began
        rate = f", {amount_text(int(done / seconds))}/s" if done and seconds > 0 else ""
        text = f"Writing back to {printable(source)}: {files_text(files)}, {amount_text(size)} to go{rate}"
        self.stream.write(f"\r{text}\x1b[K" if self.is_terminal else f"{text}\n")
        self.stream.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self.is_terminal and self._told > -math.inf:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
        self._told = -math.inf


def unmount(where: str, *, lazy: bool, seconds: float | None, wait: bool, meter: Meter) -> str:
    """Unmount the filesystem at *where*, wait for its server to end, and return the words that say what was done.

    With *wait*, what waits to be written back is waited for: as long as that gets on, or *seconds* where they are given. The
    unmounting is done in a process of its own: it may need the server's answers, and the server may hang. Failure codes:
    NOT_MOUNTED, BUSY with who holds it, TIMED_OUT when data could not be written (it is still mounted then), or when the
    kernel or the server did not finish.
    """
    info = target(where)
    mounted = examine(info)
    lazy = lazy or mounted.state == DEAD
    return Unmounting(info, mounted, seconds, meter).run(lazy=lazy, wait=wait)


class Unmounting:
    """One unmounting."""

    def __init__(self, info: MountInfo, mounted: Mounted, seconds: float | None, meter: Meter) -> None:
        self.info = info
        self.mounted = mounted
        self.meter = meter
        self.deadline = math.inf if seconds is None else time.monotonic() + seconds
        """When all of it ends."""
        self.seconds = DEFAULT_LIMIT_S if seconds is None else seconds
        """How long a part of it may take that does not get on."""
        self.where = printable(info.mountpoint)

    def left(self) -> float:
        """Return how many seconds the next part may take."""
        return max(0.0, min(self.seconds, self.deadline - time.monotonic()))

    def run(self, *, lazy: bool, wait: bool) -> str:
        """Do all of it."""
        mounted = self.mounted
        if lazy or mounted.state != OK:
            self._let_go(lazy)
            if lazy and mounted.pid is not None and not procs.wait_gone(mounted.pid, mounted.started, min(1.0, self.left())):
                return f"Detached {self.where}; its server (pid {mounted.pid}) ends when the last user is gone"
            self._await_server()
            return f"Unmounted {self.where}"
        if wait and mounted.waiting[0]:
            if is_held(self.info):  # told now, and not when all data is written
                raise busy(self.info)
            Draining(self).run()
        with self._farewell(wait) as farewell:
            self._let_go(lazy)
            self._await_server()
            return self._last_words(farewell, wait)

    def _let_go(self, lazy: bool) -> None:
        """Unmount, and name who holds it when that cannot be."""
        mountpoint = self.info.mountpoint
        try:
            procs.in_child(lambda: _unmount(mountpoint, lazy), self.left())
        except procs.TimeLimit:
            pid = f" (pid {self.mounted.pid})" if self.mounted.pid else ""
            cause = f"{self.where} is not unmounted after {self.seconds:g} s: its server{pid} does not answer"
            kill = f"kill -9 {self.mounted.pid}; " if self.mounted.pid else ""
            remedy = f"{kill}pyfusekit umount --lazy {quoted(mountpoint)}"
            raise Failure(cause, remedy, code=TIMED_OUT) from None
        except Failure as failure:
            if failure.code == BUSY:
                raise busy(self.info) from failure
            if failure.code == MOUNTPOINT:  # nothing is wrong with it: it is another user's
                raise Failure(failure.cause, failure.remedy, code=ACCESS) from failure
            raise

    @contextlib.contextmanager
    def _farewell(self, wait: bool) -> Iterator[socket.socket | None]:
        """Ask to be told what is left at the end, before the server may be gone; without *wait* it is not to write at all."""
        directory, minor = self.mounted.directory, self.info.minor
        connection = None
        try:
            if not wait:
                control.ask(directory, minor, {"cmd": "ending", "limit": 0}, ANSWER_LIMIT_S)
            connection = control.begin(directory, minor, {"cmd": "farewell"}, ANSWER_LIMIT_S)
        except control.NoAnswer:
            pass  # it hangs, and the unmounting will tell
        try:
            yield connection
        except BaseException:
            if not wait:  # it is still mounted, and the next one may want to wait
                with contextlib.suppress(control.NoAnswer):
                    control.ask(directory, minor, {"cmd": "ending", "limit": None}, ANSWER_LIMIT_S)
            raise
        finally:
            if connection is not None:
                connection.close()

    def _await_server(self) -> None:
        """Wait until the server has ended, then remove what it may have left behind."""
        mounted, info = self.mounted, self.info
        if mounted.pid is not None:
            idle_since = time.monotonic()
            seconds = self.left()
            if mounted.state == SILENT:
                seconds = min(seconds, 2.0)
            while not procs.wait_gone(mounted.pid, mounted.started, min(_POLL_S, seconds)):
                now = time.monotonic()
                if self._still_writes():
                    idle_since = now  # its own limit ends it
                if now >= min(idle_since + seconds, self.deadline):
                    self.meter.clear()
                    raise self._not_ended()
        self.meter.clear()
        if mounted.directory and not any(other.minor == info.minor and other.is_fuse for other in read_mountinfo()):
            control.forget(mounted.directory, info.minor)

    def _still_writes(self) -> bool:
        """Say whether the server, whose mount is gone, has something to write back, and show it."""
        mounted = self.mounted
        if mounted.state != OK:
            return False
        try:
            status = control.ask(mounted.directory, self.info.minor, {"cmd": "status"}, ANSWER_LIMIT_S)
        except (control.NoAnswer, OSError):
            return False
        files, size = waiting_in(status)
        if not files or status["peer"] != mounted.pid:
            return False
        self.meter.tell(self.info.source, files, size)
        return True

    def _not_ended(self) -> Failure:
        pid = self.mounted.pid
        assert pid is not None
        cause = f"{self.where} is unmounted, but its server (pid {pid})"
        if procs.is_stopped(pid):
            return Failure(f"{cause} is stopped", f"kill -9 {pid}", code=TIMED_OUT)
        if self._still_writes():
            self.meter.clear()
            remedy = f"it goes on, and what is left then is kept for the next mount of {quoted(self.info.source)}"
            return Failure(f"{cause} still writes back", remedy, code=TIMED_OUT)
        return Failure(f"{cause} has not ended", f"kill -9 {pid}", code=TIMED_OUT)

    def _last_words(self, farewell: socket.socket | None, wait: bool) -> str:
        """Return what was done, as the server said at its end; Failure when data was waited for and is left."""
        said: Mapping[str, Any] = {}
        if farewell is not None:
            with contextlib.suppress(control.NoAnswer):
                said = control.finish(farewell, ANSWER_LIMIT_S)
        files, size = waiting_in(said)
        done, source = f"Unmounted {self.where}", self.info.source
        if not files:
            return done
        if not wait:
            return f"{done}; {amount(files, size)} {verb(files)} kept for the next mount of {source} to write back"
        cause = f"{self.where} is unmounted, but {amount(files, size)} could not be written back{_because(said)}"
        remedy = f"kept on this machine: the next mount of {quoted(source)} goes on with it, and pyfusekit errors says why not"
        raise Failure(cause, remedy, code=TIMED_OUT)


class Draining:
    """Waiting, while the mount stands, until everything is written back."""

    def __init__(self, unmounting: Unmounting) -> None:
        self.unmounting = unmounting
        self.best: tuple[int, int] = unmounting.mounted.waiting
        """The least that waited so far, and when that was: since then nothing got on."""
        self.best_at = time.monotonic()
        self.first_problem: Mapping[str, Any] | None = None
        self.answer: Mapping[str, Any] = {}

    def run(self) -> None:
        """Return when nothing waits; Failure when the time is up, or when it does not get on and something goes wrong.

        A big file on a slow line may show no progress for long, so no progress alone is no reason to give up.
        """
        unmounting, mounted = self.unmounting, self.unmounting.mounted
        first = True
        try:
            while self._asked(mounted):
                files, size = waiting_in(self.answer)
                if not files:
                    return
                if first:
                    self.first_problem, first = self.answer.get("newest"), False
                unmounting.meter.tell(unmounting.info.source, files, size)
                if self._is_hopeless(files, size):
                    raise self._given_up(files, size)
                time.sleep(_POLL_S)
        finally:
            unmounting.meter.clear()

    def _asked(self, mounted: Mounted) -> bool:
        """Ask how far it is; False when there is no answer, which the unmounting will tell about."""
        try:
            self.answer = control.ask(mounted.directory, mounted.info.minor, {"cmd": "drain"}, ANSWER_LIMIT_S)
        except control.NoAnswer:
            return False
        if not self.answer.get("ok"):
            raise Failure(
                f"{self.unmounting.where}: {printable(str(self.answer.get('error')))}",
                f"its log: {mounted.details.get('log')}; {_without_waiting(mounted.info)}",
                code=TIMED_OUT,
            )
        return True

    def _is_hopeless(self, files: int, size: int) -> bool:
        now = time.monotonic()
        if files < self.best[0] or size < self.best[1]:
            self.best, self.best_at = (min(files, self.best[0]), min(size, self.best[1])), now
        went_wrong = self.answer.get("newest") not in (None, self.first_problem)
        return now >= self.unmounting.deadline or (went_wrong and now - self.best_at >= self.unmounting.seconds)

    def _given_up(self, files: int, size: int) -> Failure:
        where, info = self.unmounting.where, self.unmounting.info
        cause = f"{where} stays mounted: {amount(files, size)} could not be written back{_because(self.answer)}"
        remedy = f"pyfusekit errors {quoted(info.mountpoint)} says why; {_without_waiting(info)}"
        return Failure(cause, remedy, code=TIMED_OUT)


def amount(files: int, size: int) -> str:
    """Return what waits in words: 3 files (12 MiB)."""
    return f"{files_text(files)} ({amount_text(size)})"


def verb(files: int) -> str:
    """Return the verb that goes with a number of files."""
    return "is" if files == 1 else "are"


def _without_waiting(info: MountInfo) -> str:
    return f"pyfusekit umount --no-wait {quoted(info.mountpoint)} keeps it for the next mount"


def _because(answer: Mapping[str, Any]) -> str:
    """Return the newest problem of an answer, to be put behind a cause."""
    newest = answer.get("newest")
    if not isinstance(newest, dict):
        return ""
    path = f"{newest.get('path')}: " if newest.get("path") else ""
    return printable(f": {path}{newest.get('cause')} ({newest.get('errno')})")


def _unmount(mountpoint: str, lazy: bool) -> None:
    from pyfusekit.core.mount import unmount as core_unmount

    core_unmount(mountpoint, lazy=lazy)


def is_held(info: MountInfo) -> bool:
    """Say whether a process that we may look at, or another mount, keeps *info* busy."""
    return bool(_below(info) or procs.holders(info.mount_id, (info.major, info.minor)))


def _below(info: MountInfo) -> list[str]:
    """Return the mountpoints in *info*."""
    mounts = read_mountinfo()
    return [other.mountpoint for other in mounts if other.parent_id == info.mount_id and other.mount_id != info.mount_id]


def busy(info: MountInfo) -> Failure:
    """Return the failure that names who holds *info*: the causes' lines, then what to do."""
    users = procs.holders(info.mount_id, (info.major, info.minor))
    below = _below(info)
    cause = f"{printable(info.mountpoint)} is in use"
    if users:
        rows = [("  PID", "USER", "COMMAND", "HOW")]
        rows += [(f"  {user.pid}", user.user, printable(user.command), printable(user.how)) for user in users]
        cause += "\n" + table(rows)
    if below:
        cause += f"; mounted below it: {', '.join(printable(path) for path in below)}"
    command = f"pyfusekit umount --lazy {quoted(info.mountpoint)}"
    remedy = f"close them and repeat, or {command} (detach now, end when the last user is gone)"
    return Failure(cause, remedy, code=BUSY)
