"""The daemon's side of the handshake; see ahead.py for how it came to be and launch.py for who listens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from typing import Any

from . import daemon, logs
from .ahead import GO
from .exits import SIGNALLED, USAGE, Failure, failure_of
from .job import Job, bug

log = logging.getLogger(__name__)


class Child:
    """The daemon: it serves its job, and tells its parent how far it is until it is let go."""

    job: Job
    log_place: str

    def __init__(self, job: bytes, report: int, life: int, stderr: int) -> None:
        self._pickled = job
        self.report = report
        self.life = life
        self.is_ready = False
        self._stderr = stderr

    def send(self, message: dict[str, Any]) -> None:
        """Write a line to the parent; one that is gone hears nothing."""
        with contextlib.suppress(OSError):
            os.write(self.report, json.dumps(message).encode() + b"\n")

    def serve(self) -> int:
        """Serve until the mount ends; return the exit status."""
        try:
            self.send({"step": "loading the filesystem"})
            self.job, self.log_place = pickle.loads(self._pickled)
            self._serve()
        except BaseException as exc:
            return self._failed(exc)
        return 0

    def _serve(self) -> None:
        try:
            logs.begin(self.log_place, self.job.common.log_level, self.job.mountpoint)
        except OSError as exc:
            cause = f"cannot write the log {self.log_place}: {exc.strerror}"
            raise Failure(cause, "choose another place with --log", code=USAGE) from exc
        child = self

        class PipeReporter(daemon.Reporter):
            def step(self, words: str) -> None:
                child.send({"step": words})

            async def ready(self, minor: int, read_only: bool, notes: Sequence[str]) -> None:
                child.is_ready = True
                said = {"pid": os.getpid(), "minor": minor, "read_only": read_only, "notes": list(notes)}
                child.send({"ok": True, **said})
                if await go != GO:
                    raise asyncio.CancelledError
                child.detach()

        go: asyncio.Future[bytes]

        async def main() -> None:
            nonlocal go
            loop = asyncio.get_running_loop()
            go = loop.create_future()
            task = asyncio.current_task()
            assert task is not None
            loop.add_reader(self.life, self._parent_spoke, loop, go, task.cancel)
            await daemon.run(self.job, PipeReporter(), self.log_place)

        asyncio.run(main())

    def _parent_spoke(self, loop: Any, go: Any, cancel: Callable[[], object]) -> None:
        """Take the parent's byte, or notice that it is gone; before the mount is ready that ends the start."""
        loop.remove_reader(self.life)
        word = os.read(self.life, 1)
        go.set_result(word)
        if word != GO and not self.is_ready:
            cancel()

    def detach(self) -> None:
        """Leave the terminal: from here on nobody listens to this process."""
        os.close(self.report)
        os.close(self.life)
        self.report = -1
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, 1)
        os.dup2(self._stderr if self.log_place == "stderr" else null, 2)
        os.close(null)
        os.close(self._stderr)
        os.chdir("/")

    def _failed(self, exc: BaseException) -> int:
        """Report what ended the start, or log what ended the mount; return the exit status."""
        failure = failure_of(exc)
        if failure is None and (type(exc).__name__ == "CancelledError" or isinstance(exc, KeyboardInterrupt)):
            failure = Failure("the start was given up", code=SIGNALLED + signal.SIGTERM)
        if failure is None:
            log.critical("the server ends by a bug", exc_info=exc)
            failure = bug(exc, self.log_place)
        elif self.report < 0:
            log.error("%s", failure.cause)
        if self.report >= 0:
            self.send({"ok": False, "code": failure.code, "error": failure.cause, "hint": failure.remedy})
        return failure.code
