"""The process that serves a mount: from the filesystem's class to the last request, with its signals and its log.

It is the same in the background and in the foreground; a Reporter tells whoever started it how far it is. Signals: SIGTERM and
SIGINT unmount, or detach when the mount is in use and serve until its last user is gone, and then what waits is written back
for a while; a second one ends at once. SIGHUP is noted and changes nothing.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from pyfusekit.core.abi import KERNEL_VERSION
from pyfusekit.core.filesystem import Filesystem
from pyfusekit.core.mount import MountOptions
from pyfusekit.core.serving import Served, serve

from . import control, logs, places, procs
from .commands import Commands
from .ending import Ending, waiting_in
from .exits import ACCESS, MOUNTPOINT, SIGNALLED, SOURCE, USAGE, Failure, failure_of
from .job import Job, bug, note_words, timed_out
from .words import amount_text, files_text

log = logging.getLogger(__name__)


class Reporter:
    """Hears how far the start is; the launcher's writes to the parent's pipe, the foreground's prints."""

    def step(self, words: str) -> None:
        """Hear what is being done now: "connecting to s3://photos"."""

    async def ready(self, minor: int, read_only: bool, notes: Sequence[str]) -> None:
        """Hear that INIT was answered and the control socket listens, and what is to be known; an exception ends the mount."""


def mount_options(job: Job, fs: Filesystem) -> MountOptions:
    """Return what the kernel is told: the common options, where they are given, before the filesystem's own will."""
    common = job.common
    if common.default_permissions is not None:
        fs.default_permissions = common.default_permissions
    if common.ro:
        fs.read_only = True
    for name, value in (
        ("attr_ttl", common.attr_timeout),
        ("entry_ttl", common.entry_timeout),
        ("negative_ttl", common.negative_timeout),
        ("max_background", common.max_background),
    ):
        if value is not None:
            setattr(fs, name, value)
    return MountOptions(
        source=job.shown_source,
        read_only=fs.read_only,
        allow_other=common.allow_other,
        default_permissions=fs.default_permissions,
        nosuid=common.nosuid,
        nodev=common.nodev,
        noexec=common.noexec,
        noatime=common.noatime,
        sync=common.sync,
        dirsync=common.dirsync,
        max_read=common.max_read or None,
        nonempty=common.nonempty,
    )


def build(job: Job) -> Filesystem:
    """Return the filesystem, not begun yet; what its constructor refuses is the person's mistake."""
    try:
        return job.filesystem(job.source, job.options)  # type: ignore[call-arg]
    except ValueError as exc:
        raise Failure(str(exc), f"pyfusekit mount {job.fs} --help", code=USAGE) from exc


async def run(job: Job, reporter: Reporter, log_place: str) -> None:
    """Serve *job* until it is unmounted, aborted or told to end by a signal."""
    ending = Ending(starting=asyncio.current_task())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.on_signal, number)
    loop.add_signal_handler(signal.SIGHUP, lambda: log.info("SIGHUP"))
    try:
        await _serve(job, reporter, log_place, ending)
    except asyncio.CancelledError:
        if ending.served is None and ending.first:
            name = signal.Signals(ending.first).name
            raise Failure(f"stopped by {name} while starting", code=SIGNALLED + ending.first) from None
        raise
    log.info("ended")


async def _serve(job: Job, reporter: Reporter, log_place: str, ending: Ending) -> None:
    reporter.step(f"starting {job.fs}" + (f" on {job.shown_source}" if job.source else ""))
    fs = build(job)
    options = mount_options(job, fs)
    async with serve(fs, job.mountpoint, options) as served:
        reporter.step("opening the control socket")
        minor = served.mount.minor
        if minor is None:
            raise RuntimeError("the kernel did not say which connection this is")
        state = _state(job, minor, log_place)
        commands = Commands(fs, state, job.described, ending)
        async with control.ControlServer(minor, state, commands.table()):
            ending.served = served
            _log_beginning(job, served)
            await reporter.ready(minor, served.options.read_only, notes_of(fs))
            await ending.until_over(served)
            await commands.close()
            await ending.write_back(fs)


def notes_of(fs: Filesystem) -> list[str]:
    """Return what the person who mounts should know."""
    files, size = waiting_in(fs)
    resumed = f"an earlier mount left {files_text(files)} ({amount_text(size)}) to be written back"
    return [*map(str, fs.notes), *([resumed] if files else [])]


def _state(job: Job, minor: int, log_place: str) -> dict[str, Any]:
    """Return what is worth knowing about the mount without asking its server."""
    pid = os.getpid()
    return {
        "schema": 1,
        "pid": pid,
        "start_time": procs.start_time(pid),
        "minor": minor,
        "source": job.shown_source,
        "mountpoint": job.mountpoint,
        "fs": job.fs,
        "version": job.version,
        "log": log_place,
        "ready_at": time.time(),
    }


def _log_beginning(job: Job, served: Served) -> None:
    """Log the line that support asks for first: version, kernel, protocol, options that are not the default."""
    given = " ".join(
        f"{name}={shown['value']} ({shown['origin']})" for name, shown in job.described.items() if shown["origin"] != "default"
    )
    log.info(
        "pyfusekit %s, Python %s, Linux %s, FUSE %s: mounted %s (%s); options: %s",
        job.version,
        platform.python_version(),
        os.uname().release,
        protocol_of(served),
        job.shown_source,
        job.fs,
        given or "defaults",
    )


def protocol_of(served: Served) -> str:
    """Return the protocol version both sides speak."""
    agreed = served.session.agreed
    return f"{KERNEL_VERSION}.{agreed.minor}" if agreed is not None else "?"


class ForegroundReporter(Reporter):
    """Prints, once the mount answers; the time limit ends there."""

    def __init__(self, job: Job, began: float) -> None:
        self.job = job
        self.began = began
        self.last_step = "starting"
        self.limit: asyncio.Timeout | None = None

    def step(self, words: str) -> None:
        self.last_step = words

    async def ready(self, minor: int, read_only: bool, notes: Sequence[str]) -> None:
        await self._verify(minor)
        if self.limit is not None:
            self.limit.reschedule(None)
        print(self.job.mounted_words(read_only, time.monotonic() - self.began), flush=True)
        for note in notes:
            print(note_words(note), file=sys.stderr, flush=True)

    async def _verify(self, minor: int) -> None:
        """Let another process look at the mountpoint: this one would wait for itself."""
        # The answer is st_dev, or an errno below zero.
        script = "import os, sys\ntry: print(os.stat(sys.argv[1]).st_dev)\nexcept OSError as exc: print(-exc.errno)"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-ISc", script, self.job.mountpoint, stdout=asyncio.subprocess.PIPE
        )
        try:
            out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        device = int(out)
        if device < 0:
            cause = f"mounted, but it cannot be looked at: {self.job.mountpoint}: {os.strerror(-device)}"
            code = ACCESS if device in (-errno.EACCES, -errno.EPERM) else SOURCE
            raise Failure(cause, "the log says why", code=code)
        if os.minor(device) != minor:
            cause = f"{self.job.mountpoint} does not show the new mount: another one came to lie over it"
            raise Failure(cause, "pyfusekit list", code=MOUNTPOINT)


def foreground(job: Job, timeout: float) -> int:
    """Serve *job* in this process until it ends; Failure as for the background. The log goes to stderr by default."""
    log_place = places.log_place(job.common.log, job.mountpoint, foreground=True)
    logs.begin(log_place, job.common.log_level, job.mountpoint)
    reporter = ForegroundReporter(job, time.monotonic())

    async def limited() -> None:
        async with asyncio.timeout(timeout) as reporter.limit:
            await run(job, reporter, log_place)

    try:
        asyncio.run(limited())
    except TimeoutError:
        if reporter.limit is None or not reporter.limit.expired():
            raise
        raise timed_out(timeout, reporter.last_step, log_place) from None
    except Exception as exc:
        failure = failure_of(exc)
        if failure is None:
            log.critical("the server ends by a bug", exc_info=exc)
            failure = bug(exc, log_place)
        raise failure from None
    return 0
