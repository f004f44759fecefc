"""The daemon's process, forked before anything heavy is imported, and warmed up while the command line is still read.

The parent forks before asyncio is imported: no thread and no loop exists yet. The child imports what it will need, then
waits for its job. It leads a session of its own, and its stdout and stderr go to a pipe the parent reads.

Three pipes: report (the child says how far it is), life (the parent sends the job, later the byte that lets the child go;
its end without that byte means that the parent is gone), errors (the child's stdout and stderr).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence

GO = b"g"
"""The byte that lets the child go on without its parent."""

_COUNT_BYTES = 8


class Ahead:
    """The parent's hold on the child. *names* are words of the command line, among them perhaps a filesystem's name."""

    def __init__(self, names: Sequence[str]) -> None:
        self.report, report = os.pipe2(os.O_CLOEXEC)
        life, self.life = os.pipe2(os.O_CLOEXEC)
        self.errors, errors = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                for descriptor in (self.report, self.life, self.errors):
                    os.close(descriptor)
                code = _serve(names, report, life, errors)
            except BaseException as exc:
                os.write(2, f"{type(exc).__name__}: {exc}\n".encode(errors="backslashreplace"))
            finally:
                os._exit(code)
        for descriptor in (report, life, errors):
            os.close(descriptor)

    def send(self, job: bytes) -> None:
        """Give the child its job; one that has died is noticed when it says nothing."""
        message = len(job).to_bytes(_COUNT_BYTES, "little") + job
        with contextlib.suppress(BrokenPipeError):
            while message:
                message = message[os.write(self.life, message) :]

    def let_go(self) -> None:
        """Let the child go on alone."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.life, GO)

    def hang_up(self) -> None:
        """Close the pipe of life: a child that was not let go ends."""
        if self.life >= 0:
            os.close(self.life)
            self.life = -1

    def close(self) -> None:
        """Close the pipes."""
        self.hang_up()
        for descriptor in (self.report, self.errors):
            if descriptor >= 0:
                os.close(descriptor)
        self.report = self.errors = -1

    def cancel(self) -> None:
        """End a child that has no job."""
        self.close()
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            self.pid = 0


def start_ahead(words: Sequence[str]) -> Ahead | None:
    """Begin to warm up the server, if *words* are a command line that mounts in the background; they are not read further."""
    if words[:1] != ["mount"] or len(words) < 3 or {"-h", "--help", "-f", "--foreground"} & set(words):
        return None
    return Ahead(words)


def _serve(names: Sequence[str], report: int, life: int, errors: int) -> int:
    """Be the child: warm up, take the job, serve it; return the exit status."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stderr = os.dup(2)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    os.close(null)
    os.close(errors)
    _load(names)
    job = _read(life)
    if job is None:
        return 0

    from .child import Child

    return Child(job, report, life, stderr).serve()


def _load(names: Sequence[str]) -> None:
    """Import the server, and the bundled filesystem that is named; what fails here fails again where it is reported."""
    from importlib import import_module

    from .registry import BUNDLED, is_url

    schemes = {name.partition("://")[0].lower() for name in names if is_url(name)}
    modules = [
        entry.target.partition(":")[0] for entry in BUNDLED if entry.name in names or schemes.intersection(entry.schemes)
    ]
    for module in ("asyncio", f"{__package__}.daemon", *modules, "pickle"):
        with contextlib.suppress(Exception):
            import_module(module)


def _read(life: int) -> bytes | None:
    """Return the job, or None when the parent has none."""
    count = _exactly(life, _COUNT_BYTES)
    return _exactly(life, int.from_bytes(count, "little")) if count is not None else None


def _exactly(descriptor: int, count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        piece = os.read(descriptor, count - len(data))
        if not piece:
            return None
        data += piece
    return data
