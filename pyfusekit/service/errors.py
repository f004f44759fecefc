"""What went wrong in the mounts that run, as their servers tell it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

from .exits import Failure
from .mounts import OK, SILENT, Mounted, ask, examine, survey, target
from .words import printable

ANSWER_LIMIT_S = 5.0

Row = dict[str, Any]
"""One problem as --json prints it."""


def collect(mountpoint: str | None) -> tuple[list[Row], list[Failure]]:
    """Return the problems of the mount at *mountpoint*, or of all mounts, the newest last, and who does not answer.

    A single mount that does not answer is raised. Among all of them, dead mounts and other users' have nothing to tell.
    """
    if mountpoint is not None:
        return list(_rows(examine(target(mountpoint)))), []
    rows: list[Row] = []
    failures: list[Failure] = []
    for mounted in survey():
        if mounted.state in (OK, SILENT):
            try:
                rows += _rows(mounted)
            except Failure as failure:
                failures.append(failure)
    return sorted(rows, key=lambda row: row["time"]), failures


def _rows(mounted: Mounted) -> Iterable[Row]:
    answer = ask(mounted, {"cmd": "errors"}, ANSWER_LIMIT_S)
    for problem in answer.get("problems") or ():
        yield {"mountpoint": mounted.info.mountpoint, "source": mounted.info.source, **problem}


def as_text(rows: Iterable[Row]) -> str:
    """Return what ``pyfusekit errors`` prints: a paragraph for each problem."""
    return "\n\n".join(map(_paragraph, rows))


def _paragraph(row: Mapping[str, Any]) -> str:
    path = os.path.join(row["mountpoint"], row["path"]) if row["path"] else row["mountpoint"]
    more = []
    if row["count"] > 1:
        more.append(f"{row['count']} times since {_when(row['first_time'])}")
    if row["request_id"]:
        more.append(f"request {row['request_id']}")
    # A store's own words name the request already.
    cause = row["cause"] if row["cause"].startswith(row["operation"]) else f"{row['operation']}: {row['cause']}"
    lines = [f"{_when(row['time'])}  {row['errno']}  {path}", f"  {cause}"]
    lines += [f"  {line}" for line in ("; ".join(more), row["remedy"]) if line]
    return "\n".join(map(printable, lines))


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
