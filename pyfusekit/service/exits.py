"""Exit codes, and the exception that becomes one: a cause and a remedy, one line each."""

from __future__ import annotations

DONE = 0
USAGE = 2
NOT_MOUNTED = 3
BUSY = 4
TIMED_OUT = 5
SOURCE = 6
"""The source cannot be reached, or there is no such bucket, URL or file."""
ACCESS = 7
MOUNTPOINT = 8
FUSE = 9
"""/dev/fuse, fusermount3 or allow_other are missing or refused."""
BUG = 70
SIGNALLED = 128
"""Plus the number of the signal that ended the command before the mount stood."""

_CODE_OF_KIND = {
    "mountpoint-missing": MOUNTPOINT,
    "not-a-directory": MOUNTPOINT,
    "not-a-file": MOUNTPOINT,
    "not-empty": MOUNTPOINT,
    "already-mounted": MOUNTPOINT,
    "stale": MOUNTPOINT,
    "no-permission": MOUNTPOINT,
    "no-dev-fuse": FUSE,
    "dev-fuse-refused": FUSE,
    "no-fusermount": FUSE,
    "fusermount-refused": FUSE,
    "allow-other-refused": FUSE,
    "mount-failed": FUSE,
    "busy": BUSY,
    "not-mounted": NOT_MOUNTED,
    "bad-option": USAGE,
    "source-missing": SOURCE,
    "source-unreachable": SOURCE,
    "access-denied": ACCESS,
}


class Failure(Exception):
    """A person's mistake, or the machine's state: shown as *cause* and *remedy*, ends the command with *code*."""

    def __init__(self, cause: str, remedy: str = "", *, code: int) -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy
        self.code = code


def failure_of(exc: BaseException) -> Failure | None:
    """Return the failure an exception stands for, or None when it is a bug.

    A MountError is translated by its kind, an OSError is the source's: PermissionError is access, the others say that the
    source cannot be had.
    """
    from pyfusekit.core.errors import MountError

    if isinstance(exc, Failure):
        return exc
    if isinstance(exc, MountError):
        return Failure(str(exc), exc.remedy, code=_CODE_OF_KIND.get(exc.kind, FUSE))
    if isinstance(exc, PermissionError):
        return Failure(_words(exc), "look at who owns it, or give other credentials", code=ACCESS)
    if isinstance(exc, OSError):
        return Failure(_words(exc), "look whether the source is spelled right and can be reached", code=SOURCE)
    return None


def _words(exc: OSError) -> str:
    """Return an OSError in a person's words: the file first, no number."""
    reason = exc.strerror or str(exc) or type(exc).__name__
    return f"{exc.filename}: {reason}" if exc.filename else reason
