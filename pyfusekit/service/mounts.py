"""What is mounted and how it is, and the end of a mount; none of it looks into a mount.

The kernel's mount table is the truth; a mount's control socket, the state file beside it and /proc decorate it. So a dead
mount, a hung server and a lost socket are all shown for what they are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from pyfusekit.core.mountinfo import MountInfo, read_mountinfo

from . import control, procs
from .exits import ACCESS, BUSY, MOUNTPOINT, NOT_MOUNTED, TIMED_OUT, Failure
from .words import age_text, printable, quoted, table

STATUS_LIMIT_S = 0.2
"""How long a server may take to answer a status before it counts as not answering."""

OK = "ok"
DEAD = "DEAD"
SILENT = "not answering"
NO_SOCKET = "no control socket"
UNKNOWN = "-"


class Mounted(NamedTuple):
    """One of our mounts, with what could be found out about it."""

    info: MountInfo
    state: str
    """OK, DEAD (its server is gone), SILENT (it hangs or is stopped), NO_SOCKET, or UNKNOWN (another user's)."""
    pid: int | None
    started: int | None
    """The server's start time, as procs.start_time."""
    fs: str
    details: Mapping[str, Any]
    """The whole status, or what the state file says; empty when there is neither."""
    directory: str
    """Where its control socket lies, or lay; empty when unknown."""

    @property
    def up_seconds(self) -> float | None:
        ready_at = self.details.get("ready_at")
        return max(0.0, time.time() - ready_at) if isinstance(ready_at, int | float) and self.state != DEAD else None


def owner_of(info: MountInfo) -> int:
    """Return who mounted it (fuse(4), user_id)."""
    for word in info.super_options.split(","):
        key, _, value = word.partition("=")
        if key == "user_id" and value.isdecimal():
            return int(value)
    return 0


def examine(info: MountInfo) -> Mounted:
    """Return how the mount *info* is: its socket is asked, then its state file, then /proc."""
    uid = owner_of(info)
    silent_pid = None
    for place in control.directories(uid):
        try:
            status = control.ask(place, info.minor, {"cmd": "status"}, STATUS_LIMIT_S)
        except (control.NoAnswer, OSError) as exc:
            silent_pid = exc.pid if isinstance(exc, control.NoAnswer) else None
            if silent_pid is not None:
                state = control.read_state(place, info.minor) or {}
                return _mounted(info, SILENT, silent_pid, state, place)
            continue
        if status.get("ok") and status.get("minor") == info.minor:
            return _mounted(info, OK, status["peer"], status, place)
    for place in control.directories(uid):
        state = control.read_state(place, info.minor) or {}
        pid = state.get("pid")
        if isinstance(pid, int) and state.get("mountpoint") == info.mountpoint:
            if procs.start_time(pid) == state.get("start_time"):
                return _mounted(info, NO_SOCKET, pid, state, place)
            if not procs.servers_of(info.minor):
                return _mounted(info, DEAD, None, state, place)
    pids = procs.servers_of(info.minor)
    if pids:
        return _mounted(info, NO_SOCKET, pids[0], {}, "")
    sees_all = os.geteuid() in (0, uid)
    return _mounted(info, DEAD if sees_all else UNKNOWN, None, {}, "")


def _mounted(info: MountInfo, state: str, pid: int | None, details: Mapping[str, Any], place: str) -> Mounted:
    fs = details.get("fs")
    started = procs.start_time(pid) if pid is not None else None
    return Mounted(info, state, pid, started, fs if isinstance(fs, str) else "-", details, place)


def survey() -> list[Mounted]:
    """Return all our mounts in the order of the mount table, examined."""
    return [examine(info) for info in read_mountinfo() if info.is_ours]


def as_table(mounts: list[Mounted]) -> str:
    """Return what ``pyfusekit list`` prints."""
    rows = [("MOUNTPOINT", "SOURCE", "FS", "PID", "UP", "STATE")]
    for mount in mounts:
        up = mount.up_seconds
        state = mount.state
        if state == DEAD:
            state = f"DEAD: pyfusekit umount {quoted(mount.info.mountpoint)}"
        rows.append(
            (
                printable(mount.info.mountpoint),
                printable(mount.info.source),
                mount.fs,
                str(mount.pid or "-"),
                "-" if up is None else age_text(up),
                state,
            )
        )
    return table(rows)


def as_json(mounts: list[Mounted]) -> list[dict[str, Any]]:
    """Return what ``pyfusekit list --json`` prints: the same keys for every mount, null where nothing is known."""
    return [
        {
            "mountpoint": mount.info.mountpoint,
            "source": mount.info.source,
            "fs": None if mount.fs == "-" else mount.fs,
            "pid": mount.pid,
            "state": {OK: "ok", DEAD: "dead", SILENT: "not-answering", NO_SOCKET: "no-control-socket"}.get(mount.state),
            "up_seconds": mount.up_seconds,
            "ready_at": mount.details.get("ready_at"),
            "connection": mount.info.minor,
            "uid": owner_of(mount.info),
            "read_only": "ro" in mount.info.options.split(","),
            "version": mount.details.get("version"),
            "log": mount.details.get("log"),
            "options": mount.details.get("options"),
            "waiting": mount.details.get("waiting"),
        }
        for mount in mounts
    ]


# Unmounting.


def unmount(target: str, *, lazy: bool, seconds: float) -> str:
    """Unmount the filesystem at *target*, wait for its server to end, and return the words that say what was done.

    The unmounting is done in a process of its own: it may need the server's answers, and the server may hang. Failure codes:
    NOT_MOUNTED, BUSY with who holds it, TIMED_OUT when the kernel or the server did not finish within *seconds*.
    """
    deadline = time.monotonic() + seconds
    info = _target(target)
    mounted = examine(info)
    lazy = lazy or mounted.state == DEAD
    try:
        procs.in_child(lambda: _let_go(info.mountpoint, lazy), seconds)
    except procs.TimeLimit:
        cause = (
            f"{printable(info.mountpoint)} is not unmounted after {seconds:g} s: its server{_pid_text(mounted)} does not answer"
        )
        raise Failure(cause, _kill_remedy(mounted, info), code=TIMED_OUT) from None
    except Failure as failure:
        if failure.code == BUSY:
            raise _busy(info) from failure
        if failure.code == MOUNTPOINT:  # nothing is wrong with it: it is another user's
            raise Failure(failure.cause, failure.remedy, code=ACCESS) from failure
        raise
    if lazy and mounted.pid is not None and not procs.wait_gone(mounted.pid, mounted.started, min(1.0, seconds)):
        return f"Detached {printable(info.mountpoint)}; its server (pid {mounted.pid}) ends when the last user is gone"
    _await_server(mounted, info, deadline)
    return f"Unmounted {printable(info.mountpoint)}"


def _let_go(mountpoint: str, lazy: bool) -> None:
    from pyfusekit.core.mount import unmount as core_unmount

    core_unmount(mountpoint, lazy=lazy)


def _target(target: str) -> MountInfo:
    """Return the mount of ours that *target* names."""
    from pyfusekit.core.mountpoints import find_mount

    if "\0" in target or not target:
        raise Failure("the mountpoint is no file name", "pyfusekit list shows what is mounted", code=NOT_MOUNTED)
    info = find_mount(target)
    if info is None:
        raise Failure(f"{printable(target)} is not mounted", "pyfusekit list shows what is mounted", code=NOT_MOUNTED)
    if not info.is_ours:
        tool = "fusermount3 -u" if info.is_fuse else "umount"
        raise Failure(
            f"{printable(target)} is a mount of type {info.fstype}, not one of pyfusekit's",
            f"{tool} {quoted(info.mountpoint)}",
            code=NOT_MOUNTED,
        )
    return info


def _busy(info: MountInfo) -> Failure:
    """Return the failure that names who holds *info*: the causes' lines, then what to do."""
    users = procs.holders(info.mount_id, (info.major, info.minor))
    below = [
        other.mountpoint for other in read_mountinfo() if other.parent_id == info.mount_id and other.mount_id != info.mount_id
    ]
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


def _await_server(mounted: Mounted, info: MountInfo, deadline: float) -> None:
    """Wait until the server that served *info* has ended, then remove what it may have left behind."""
    if mounted.pid is not None:
        seconds = max(0.0, deadline - time.monotonic())
        if mounted.state == SILENT:
            seconds = min(seconds, 2.0)
        if not procs.wait_gone(mounted.pid, mounted.started, seconds):
            stopped = "is stopped" if procs.is_stopped(mounted.pid) else "has not ended"
            raise Failure(
                f"{printable(info.mountpoint)} is unmounted, but its server (pid {mounted.pid}) {stopped}",
                f"kill -9 {mounted.pid}",
                code=TIMED_OUT,
            )
    if mounted.directory and not any(other.minor == info.minor and other.is_fuse for other in read_mountinfo()):
        control.forget(mounted.directory, info.minor)


def _pid_text(mounted: Mounted) -> str:
    return f" (pid {mounted.pid})" if mounted.pid else ""


def _kill_remedy(mounted: Mounted, info: MountInfo) -> str:
    kill = f"kill -9 {mounted.pid}; " if mounted.pid else ""
    return f"{kill}pyfusekit umount --lazy {quoted(info.mountpoint)}"
