"""Telling a mount's server to believe nothing any more of what it knows below a path; the path itself is never looked at."""

from __future__ import annotations

import os

from pyfusekit.core.mountinfo import MountInfo, read_mountinfo, topmost

from . import procs
from .exits import NOT_MOUNTED, TIMED_OUT, Failure
from .mounts import ask, examine
from .words import printable

LOCATE_LIMIT_S = 5.0
"""How long finding the mount may take: the way to it may lead through somebody's mount that hangs."""
ANSWER_LIMIT_S = 60.0
"""How long the server may take: a large tree is a lot to forget."""
_MAX_LINKS = 40


def refresh(path: str) -> str:
    """Have the server of the mount *path* lies in believe nothing of it any more; return the words that say so."""
    try:
        found = procs.in_child(lambda: located(path), LOCATE_LIMIT_S)
    except procs.TimeLimit:
        cause = f"{printable(path)} cannot be followed: a mount on the way does not answer"
        raise Failure(cause, "pyfusekit list shows which", code=TIMED_OUT) from None
    mount_id, below = found
    mount = next((info for info in read_mountinfo() if info.mount_id == mount_id), None)
    if mount is None or not mount.is_ours:
        cause = f"{printable(path)} is not in one of pyfusekit's mounts"
        if mount is not None and mount.is_fuse:
            cause += f": {printable(mount.mountpoint)} is a mount of type {mount.fstype}"
        raise Failure(cause, "pyfusekit list shows what is mounted", code=NOT_MOUNTED)
    answer = ask(examine(mount), {"cmd": "refresh", "path": below}, ANSWER_LIMIT_S)
    names = "1 name" if answer.get("count") == 1 else f"{answer.get('count')} names"
    return f"Refreshed {printable(os.path.join(mount.mountpoint, below) if below else mount.mountpoint)} ({names})"


def located(path: str) -> tuple[int | None, str]:
    """Return the number of the mount that *path* lies in, None for a path that leads nowhere, and where in it that is.

    Symbolic links are followed up to a FUSE mount, and not in it: nothing there is looked at. A mount below it is found all
    the same, for the mount table knows its mountpoint.
    """
    if not path or "\0" in path:
        return None, ""
    mounts = read_mountinfo()
    todo = os.path.join(os.getcwd(), path).split("/")[::-1]
    done, links = "/", 0
    while todo:
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            done = os.path.dirname(done)
            continue
        done = os.path.join(done, name)
        within = _enclosing(mounts, done)
        if within is not None and within.is_fuse:
            continue
        try:
            target = os.readlink(done)
        except OSError:
            continue
        links += 1
        if links > _MAX_LINKS:
            return None, ""
        todo += target.split("/")[::-1]
        done = "/" if target.startswith("/") else os.path.dirname(done)
    found = _enclosing(mounts, done)
    return (found.mount_id, done[len(found.mountpoint) :].strip("/")) if found is not None else (None, "")


def _enclosing(mounts: list[MountInfo], path: str) -> MountInfo | None:
    """Return the innermost mount that *path* lies in."""
    points = {info.mountpoint for info in mounts}
    while path not in points and path != "/":
        path = os.path.dirname(path)
    return topmost(mounts, path)
