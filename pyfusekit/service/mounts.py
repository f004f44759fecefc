"""What is mounted and how it is; none of it looks into a mount.

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
from .exits import ACCESS, BUG, NOT_MOUNTED, TIMED_OUT, Failure
from .words import age_text, amount_text, files_text, printable, quoted, table

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
    def waiting(self) -> tuple[int, int]:
        """How many files and bytes its server said were not written back yet."""
        return waiting_in(self.details)

    @property
    def up_seconds(self) -> float | None:
        ready_at = self.details.get("ready_at")
        return max(0.0, time.time() - ready_at) if isinstance(ready_at, int | float) and self.state != DEAD else None


def waiting_in(answer: Mapping[str, Any]) -> tuple[int, int]:
    """Return the files and bytes an answer says are not written back yet; an older server may say nothing."""
    said = answer.get("waiting")
    files, size = (said.get("files"), said.get("bytes")) if isinstance(said, dict) else (0, 0)
    return (files, size) if isinstance(files, int) and isinstance(size, int) else (0, 0)


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
        elif state == OK and mount.waiting[0]:
            files, size = mount.waiting
            state = f"ok, {files_text(files)} ({amount_text(size)}) to be written back"
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
            "details": mount.details.get("details"),
        }
        for mount in mounts
    ]


# Finding one, and asking its server.


def target(mountpoint: str) -> MountInfo:
    """Return the mount of ours that *mountpoint* names."""
    from pyfusekit.core.mountpoints import find_mount

    if "\0" in mountpoint or not mountpoint:
        raise Failure("the mountpoint is no file name", "pyfusekit list shows what is mounted", code=NOT_MOUNTED)
    info = find_mount(mountpoint)
    if info is None:
        raise Failure(f"{printable(mountpoint)} is not mounted", "pyfusekit list shows what is mounted", code=NOT_MOUNTED)
    if not info.is_ours:
        tool = "fusermount3 -u" if info.is_fuse else "umount"
        raise Failure(
            f"{printable(mountpoint)} is a mount of type {info.fstype}, not one of pyfusekit's",
            f"{tool} {quoted(info.mountpoint)}",
            code=NOT_MOUNTED,
        )
    return info


def ask(mounted: Mounted, message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return what a mount's server answers to *message* within *seconds*; Failure says why it does not."""
    where = printable(mounted.info.mountpoint)
    if mounted.state == OK:
        try:
            answer = control.ask(mounted.directory, mounted.info.minor, message, seconds)
        except control.NoAnswer:
            remedy = f"its log: {mounted.details.get('log')}; pyfusekit list"
            raise Failure(f"the server of {where} (pid {mounted.pid}) does not answer", remedy, code=TIMED_OUT) from None
        if answer.get("ok"):
            return answer
        remedy = f"its log: {mounted.details.get('log')}"
        code = answer.get("code")
        raise Failure(f"{where}: {printable(str(answer.get('error')))}", remedy, code=code if isinstance(code, int) else BUG)
    if mounted.state == DEAD:
        raise Failure(f"{where} is dead: its server is gone", f"pyfusekit umount {quoted(where)}", code=NOT_MOUNTED)
    if mounted.state == UNKNOWN:
        owner = owner_of(mounted.info)
        raise Failure(f"{where} is a mount of user {owner}, whom alone its server answers", "sudo pyfusekit ...", code=ACCESS)
    if mounted.state == NO_SOCKET:
        cause = f"the server of {where} (pid {mounted.pid}) has lost its control socket"
        raise Failure(cause, f"unmount it, and mount it again: pyfusekit umount {quoted(where)}", code=TIMED_OUT)
    cause = f"the server of {where} (pid {mounted.pid}) does not answer: it hangs or is stopped"
    raise Failure(cause, f"kill -CONT {mounted.pid}, or pyfusekit umount --lazy {quoted(where)}", code=TIMED_OUT)
