"""Starting a mount in the background: the command's side of the handshake with the daemon it leaves behind.

The child (ahead.py, child.py) serves and writes JSON lines to a pipe: {"step": ...} while it starts, and at last
{"ok": true, ...} or {"ok": false, ...}. Only when a stat of the mountpoint, done by a third process, reaches the very
connection the child named, and the control socket there is the child's, the parent says "mounted" and lets the child go.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import sys
import time
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from pyfusekit.core.mountinfo import read_mountinfo
from pyfusekit.core.mountpoints import check_mountpoint

from . import control, places, procs
from .ahead import Ahead
from .exits import ACCESS, BUG, MOUNTPOINT, SIGNALLED, SOURCE, TIMED_OUT, Failure
from .job import Job, timed_out
from .words import printable

STAT_LIMIT_S = 5.0
"""How long the fresh mount may take to answer the stat that proves it."""
LAST_LINES = 8
"""How many lines of a dead daemon's stderr are shown."""
KIND_S = 3.0
"""How long a child that is given up may take to unmount before it is killed."""


class Signalled(BaseException):
    """The parent was told to stop while it waited."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = signal.Signals(number).name
        self.exit_code = SIGNALLED + number


def checked_mountpoint(given: str, *, nonempty: bool) -> str:
    """Return the absolute path of a mountpoint that will do; Failure says what is wrong with it.

    In a process of its own: the path may lead through a mount that hangs.
    """
    if given.startswith("/dev/fd/"):
        return check_mountpoint(given)  # a descriptor of this process, not a path
    try:
        path = procs.in_child(lambda: check_mountpoint(given, nonempty=nonempty), STAT_LIMIT_S)
    except procs.TimeLimit:
        cause = f"{printable(given)} does not answer: it lies on a mount whose server hangs"
        raise Failure(cause, "pyfusekit list shows which", code=MOUNTPOINT) from None
    return str(path)


class Ready(NamedTuple):
    """What a server that can be used says of its mount."""

    read_only: bool
    notes: list[str]
    """What is to be known of it, a sentence each."""


def background(job: Job, timeout: float, ahead: Ahead | None = None) -> Ready:
    """Start *job*'s server and return when the mount can be used.

    *ahead* is the child, when it was forked already. Failure otherwise, with no process and no mount left; Signalled likewise.
    """
    before = {info.mount_id for info in read_mountinfo() if info.mountpoint == job.mountpoint}
    child = ahead or Ahead([job.fs])
    launch = Launch(job, child, time.monotonic() + timeout)
    old = {number: signal.signal(number, _raise_signalled) for number in (signal.SIGINT, signal.SIGTERM)}
    done = False
    try:
        launch.begin()
        ready = launch.wait(timeout)
        launch.verify(ready)
        launch.let_go()
        done = True
        return Ready(bool(ready["read_only"]), ready["notes"])
    finally:
        if not done:
            for number in old:
                signal.signal(number, signal.SIG_IGN)
            launch.kill()
            _clean_up(job.mountpoint, before)
        for number, handler in old.items():
            signal.signal(number, handler)
        child.close()
        child.pid = 0


def _raise_signalled(number: int, _frame: FrameType | None) -> NoReturn:
    raise Signalled(number)


def _clean_up(mountpoint: str, before: set[int]) -> None:
    """Detach what a killed child may have left mounted."""
    for info in read_mountinfo():
        if info.is_ours and info.mountpoint == mountpoint and info.mount_id not in before:
            with contextlib.suppress(Failure, procs.TimeLimit, RuntimeError):
                procs.in_child(lambda: _detach(mountpoint), STAT_LIMIT_S)
            with contextlib.suppress(Failure):
                control.sweep(control.own_directory())


def _detach(mountpoint: str) -> None:
    from pyfusekit.core.mount import unmount

    unmount(mountpoint, lazy=True)


class Launch:
    """One start, as the parent sees it."""

    def __init__(self, job: Job, child: Ahead, deadline: float) -> None:
        self.job = job
        self.log_place = places.log_place(job.common.log, job.mountpoint, foreground=False)
        self.child = child
        self.deadline = deadline
        self.step = "loading the server"
        self.stderr = b""
        self._lines = b""

    def begin(self) -> None:
        """Tell the child what to do."""
        os.set_blocking(self.child.errors, False)
        self.child.send(pickle.dumps((self.job, self.log_place)))

    def wait(self, timeout: float) -> dict[str, Any]:
        """Return what the child reports as ready; Failure when it reports one, dies, or is not ready in time."""
        poller = select.poll()
        poller.register(self.child.report, select.POLLIN)
        poller.register(self.child.errors, select.POLLIN)
        while True:
            events = poller.poll(max(0.0, self.deadline - time.monotonic()) * 1000)
            if not events:
                raise timed_out(timeout, self.step, self.log_place)
            ready = dict(events)
            if self.child.errors in ready and not self._read_errors():
                poller.unregister(self.child.errors)
            if self.child.report in ready:
                piece = os.read(self.child.report, 1 << 16)
                if not piece:
                    raise self._died()
                final = self._heard(piece)
                if final is not None:
                    return final

    def _read_errors(self) -> bool:
        """Take what the child wrote to stderr; False at its end."""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.child.errors, 1 << 16):
                self.stderr = (self.stderr + piece)[-(1 << 16) :]
            return False
        return True

    def _heard(self, piece: bytes) -> dict[str, Any] | None:
        self._lines += piece
        while b"\n" in self._lines:
            line, _, self._lines = self._lines.partition(b"\n")
            message: dict[str, Any] = json.loads(line)
            if "step" in message:
                self.step = message["step"]
            elif message["ok"]:
                return message
            else:
                raise Failure(message["error"], message["hint"], code=message["code"])
        return None

    def _died(self) -> Failure:
        """Return the failure of a child that ended without a word, with the last it wrote to stderr."""
        status = procs.reap(self.child.pid, 2.0)
        how = "died"
        if status is not None:
            self.child.pid = 0
            if os.WIFSIGNALED(status):
                how = f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
            else:
                how = f"ended with status {os.waitstatus_to_exitcode(status)}"
        self._read_errors()
        lines = [printable(line) for line in self.stderr.decode(errors="replace").splitlines() if line.strip()]
        last = "".join(f"\n  {line}" for line in lines[-LAST_LINES:])
        remedy = f"its log: {self.log_place}" + (f"; its last lines:{last}" if last else "")
        return Failure(f"the daemon {how} while starting (step: {self.step})", remedy, code=BUG)

    def verify(self, ready: dict[str, Any]) -> None:
        """Prove that a stat of the mountpoint reaches the child: its connection by st_dev, its pid by the control socket."""
        path = self.job.mountpoint
        try:
            device = procs.in_child(lambda: os.stat(path).st_dev, STAT_LIMIT_S)
        except procs.TimeLimit:
            cause = f"{path} is mounted, but did not answer for {STAT_LIMIT_S:g} s"
            raise Failure(cause, f"its log: {self.log_place}", code=TIMED_OUT) from None
        except Failure as failure:
            code = ACCESS if failure.code == ACCESS else SOURCE
            raise Failure(
                f"mounted, but it cannot be looked at: {failure.cause}", f"its log: {self.log_place}", code=code
            ) from None
        if os.minor(device) != ready["minor"]:
            cause = f"{path} does not show the new mount: another one came to lie over it"
            raise Failure(cause, "pyfusekit list", code=MOUNTPOINT)
        try:
            status = control.ask(control.own_directory(), ready["minor"], {"cmd": "status"}, STAT_LIMIT_S)
        except control.NoAnswer as exc:
            cause = f"the daemon's control socket does not answer: {exc}"
            raise Failure(cause, f"its log: {self.log_place}", code=BUG) from exc
        if not status["peer"] == status.get("pid") == ready["pid"] == self.child.pid:
            raise Failure(f"connection {ready['minor']} is served by another process", "pyfusekit list", code=MOUNTPOINT)

    def let_go(self) -> None:
        """Let the child go on without this process, and pass on what it had to say."""
        self.child.let_go()
        self._read_errors()
        if self.stderr:
            sys.stderr.write(self.stderr.decode(errors="replace"))

    def kill(self) -> None:
        """End the child: first kindly, so that it unmounts, then for good."""
        self.child.hang_up()
        if not self.child.pid:
            return
        for number, seconds in ((signal.SIGTERM, KIND_S), (signal.SIGKILL, STAT_LIMIT_S)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child.pid, number)
            if procs.reap(self.child.pid, seconds) is not None:
                break
