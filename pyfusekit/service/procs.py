"""Processes, seen through /proc without touching a mount: who serves one, who holds one, who is still alive.

Nothing here opens, stats or lists a path under a mount: a hung server would take the caller with it. Where a path must be
touched, in_child does it in a process that can be left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .exits import Failure, failure_of


class TimeLimit(Exception):
    """A child did not come back in time; it was killed."""


class Holder(NamedTuple):
    """A process that keeps a mount busy."""

    pid: int
    user: str
    command: str
    how: str


def start_time(pid: int) -> int | None:
    """Return when *pid* began, in clock ticks since boot (proc_pid_stat(5), field 22), or None when it is gone.

    A zombie is gone. (pid, start time) is never used twice.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            rest = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if rest[0] in (b"Z", b"X") else int(rest[19])


def is_stopped(pid: int) -> bool:
    """Say whether *pid* is stopped by a signal or a debugger."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except OSError:
        return False


def wait_gone(pid: int, started: int | None, seconds: float) -> bool:
    """Wait until the process *pid* that began at *started* has ended; False when it is still there after *seconds*."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        if started is not None and start_time(pid) != started:
            return True
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        return bool(poller.poll(max(0.0, seconds) * 1000))
    finally:
        os.close(descriptor)


def in_child(function: Callable[[], Any], seconds: float) -> Any:
    """Call *function* in a forked child and return its JSON-able result; TimeLimit when it takes longer than *seconds*.

    What failure_of knows is raised here again as a Failure; any other exception is a RuntimeError with its text. The child
    is killed when time is up; one that the kernel does not let die is left to init.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _answer(function, writer)
    os.close(writer)
    try:
        answer = _read_all(reader, time.monotonic() + seconds)
    finally:
        os.close(reader)
        # The group: the child may have children that hang where it did not.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        reap(pid, 0.5)
    if not answer:
        raise RuntimeError("a helper process ended without an answer")
    kind, value = json.loads(answer)
    if kind == "failure":
        raise Failure(value[0], value[1], code=value[2])
    if kind == "bug":
        raise RuntimeError(value)
    return value


def _answer(function: Callable[[], Any], writer: int) -> None:
    """Do the child's part of in_child; it never returns.

    It keeps no descriptor but its own: it may hang for as long as a mount does, and others wait for the end of theirs.
    """
    try:
        os.setpgid(0, 0)
        os.closerange(0, writer)
        os.closerange(writer + 1, 1 << 20)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            answer: list[Any] = ["value", function()]
        except Exception as exc:
            failure = failure_of(exc)
            if failure is None:
                answer = ["bug", f"{type(exc).__name__}: {exc}"]
            else:
                answer = ["failure", [failure.cause, failure.remedy, failure.code]]
        os.write(writer, json.dumps(answer).encode())
    finally:
        os._exit(0)


def _read_all(descriptor: int, deadline: float) -> bytes:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    answer = b""
    while True:
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeLimit
        piece = os.read(descriptor, 1 << 16)
        if not piece:
            return answer
        answer += piece


def reap(pid: int, seconds: float) -> int | None:
    """Wait for the child *pid* and return its wait status, or None when it is still there after *seconds*."""
    wait_gone(pid, None, seconds)
    try:
        done, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return status if done else None


def _pids() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            yield int(name)


def servers_of(minor: int) -> list[int]:
    """Return the processes that have the /dev/fuse descriptor of connection *minor* open, oldest pid first.

    From fdinfo's line fuse_connection; processes of other users are not seen by an ordinary user.
    """
    wanted = b"fuse_connection:\t%d\n" % minor
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{number}") == "/dev/fuse":
                        with open(f"/proc/{pid}/fdinfo/{number}", "rb") as file:
                            if wanted in file.read():
                                found.append(pid)
                                break
    return sorted(found)


def holders(mount_id: int, device: tuple[int, int]) -> list[Holder]:
    """Return who keeps the mount *mount_id* of *device* busy, one line a process and reason.

    Descriptors by fdinfo's mnt_id, directories and programs by an O_PATH descriptor's, mappings by their device.
    """
    found = []
    own = os.getpid()
    for pid in _pids():
        if pid == own:
            continue
        reasons = list(dict.fromkeys(_reasons(pid, mount_id, device)))
        found += [Holder(pid, _user(pid), _command(pid), how) for how in reasons]
    return sorted(found)


def _reasons(pid: int, mount_id: int, device: tuple[int, int]) -> Iterator[str]:
    for link, how in (("cwd", "working directory"), ("root", "root directory"), ("exe", "program")):
        with contextlib.suppress(OSError):
            descriptor = os.open(f"/proc/{pid}/{link}", os.O_PATH | os.O_CLOEXEC)
            try:
                if _mnt_id(f"/proc/self/fdinfo/{descriptor}") == mount_id:
                    yield how
            finally:
                os.close(descriptor)
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fdinfo"):
            with contextlib.suppress(OSError):
                if _mnt_id(f"/proc/{pid}/fdinfo/{number}") == mount_id:
                    yield "open file " + os.path.basename(os.readlink(f"/proc/{pid}/fd/{number}"))
    wanted = b" %02x:%02x " % device
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as file:
        for line in file:
            if wanted in line:
                yield "mapped file " + os.fsdecode(os.path.basename(line.rstrip(b"\n")))


def _mnt_id(path: str) -> int:
    with open(path, "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    return -1


def _user(pid: int) -> str:
    import pwd

    try:
        uid = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return "?"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="surrogateescape") as file:
            return file.read().rstrip("\n")
    except OSError:
        return "?"
