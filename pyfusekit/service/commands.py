"""What a mount's server answers on its control socket: how it is, what went wrong, and what its operator wants done.

    status                  the state file, the options with their origins, what waits to be written back, its disk cache,
                            details
    errors                  the filesystem's problems, the newest last
    refresh {path}          believe nothing below path any more
    drain                   begin to write back what waits; asked again and again it says how far that is
    ending {limit}          how long the server may write back once its mount is gone; null is the default
    farewell                answered when the mount is gone and nothing more is written back

None of them touches the mount: the server would wait for itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from pyfusekit.core.filesystem import Filesystem
from pyfusekit.core.problems import Problem

from . import control
from .ending import Ending, stop, waiting_in
from .exits import SOURCE

log = logging.getLogger(__name__)

_ERRORS_BYTES = control.MAX_LINE // 2
"""Most bytes of problems in an answer: the newest that fit."""


class Commands:
    """The commands of one mount; *state* is what is known of it without asking, *described* its options."""

    def __init__(self, fs: Filesystem, state: Mapping[str, Any], described: Mapping[str, Any], ending: Ending) -> None:
        self.fs = fs
        self.state = state
        self.described = described
        self.ending = ending
        self._drain: asyncio.Future[None] | None = None

    def table(self) -> dict[str, control.Command]:
        """Return the commands by name."""
        return {
            "status": self.status,
            "errors": self.errors,
            "refresh": self.refresh,
            "drain": self.drain,
            "ending": self.set_ending,
            "farewell": self.farewell,
        }

    async def close(self) -> None:
        """End a drain that somebody asked for; what is left is the ending's."""
        if self._drain is not None:
            await stop(self._drain)

    def status(self, request: Mapping[str, Any]) -> control.Answer:
        """Say how the mount is."""
        details = self._told("details", lambda: json.loads(json.dumps(self.fs.details()))) or {}
        cache = self._told("disk cache", self._cache)
        return {**self.state, "options": self.described, **self._waiting(), "cache": cache, "details": details}

    def _told(self, what: str, tell: Callable[[], Any]) -> Any:
        """Return what the filesystem tells, or None: whoever lists the mounts wants to see one with a bug all the same."""
        try:
            return tell()
        except Exception:
            log.exception("the filesystem's %s cannot be told", what)
            return None

    def errors(self, request: Mapping[str, Any]) -> control.Answer:
        """Say what went wrong; null is a filesystem that does not keep it."""
        if self.fs.problems is None:
            return {"problems": None}
        told: list[dict[str, Any]] = []
        left = _ERRORS_BYTES
        for problem in reversed(list(self.fs.problems)):
            row = told_problem(problem)
            left -= len(json.dumps(row))
            if left < 0:
                break
            told.append(row)
        return {"problems": told[::-1]}

    async def refresh(self, request: Mapping[str, Any]) -> control.Answer:
        """Have the filesystem believe nothing below a path any more."""
        path = request.get("path")
        if not isinstance(path, str):
            return {"ok": False, "error": "refresh needs a path"}
        try:
            return {"count": await self.fs.refresh(os.fsencode(path))}
        except OSError as exc:
            return {"ok": False, "error": exc.strerror or str(exc), "code": SOURCE}

    def drain(self, request: Mapping[str, Any]) -> control.Answer:
        """Begin to write back what waits, unless that is under way, and say how far it is."""
        if self._drain is not None and self._drain.done() and not self._drain.cancelled() and self._drain.exception():
            raise RuntimeError("writing back failed") from self._drain.exception()
        if (self._drain is None or self._drain.done()) and waiting_in(self.fs)[0] and not self.ending.draining:
            self._drain = asyncio.ensure_future(self.fs.drain(math.inf))
        return {**self._waiting(), "newest": self._newest()}

    def set_ending(self, request: Mapping[str, Any]) -> control.Answer:
        """Take how long the last drain may take."""
        limit = request.get("limit")
        self.ending.drain_limit = float(limit) if isinstance(limit, int | float) else math.nan
        return self._waiting()

    async def farewell(self, request: Mapping[str, Any]) -> control.Answer:
        """Say what is left when all is over."""
        await self.ending.drained.wait()
        return {**self._waiting(), "newest": self._newest()}

    def _waiting(self) -> dict[str, Any]:
        files, size = waiting_in(self.fs)
        return {"waiting": {"files": files, "bytes": size}}

    def _cache(self) -> dict[str, Any] | None:
        """Return where the disk cache is and what it may take; None without one."""
        cache = self.fs.disk_cache()
        return {"directory": str(cache.directory), "limit": cache.limit} if cache is not None else None

    def _newest(self) -> dict[str, Any] | None:
        """Return the problem that happened last."""
        newest = list(self.fs.problems or ())[-1:]
        return told_problem(newest[0]) if newest else None


def told_problem(problem: Problem) -> dict[str, Any]:
    """Return a problem as the control socket tells it."""
    told = dataclasses.asdict(problem)
    told["errno"] = problem.errno_name
    told["cause"] = problem.cause[:2000]
    return told
