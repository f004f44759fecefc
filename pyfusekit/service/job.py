"""What is to be mounted: everything the server needs to know, resolved before it is started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .exits import BUG, TIMED_OUT, Failure
from .options import CommonOptions
from .values import redacted_source
from .words import printable, quoted

if TYPE_CHECKING:
    from pyfusekit.core.filesystem import Filesystem


@dataclass
class Job:
    """One mount to be made."""

    fs: str
    """The filesystem's name."""
    filesystem: type[Filesystem]
    source: str | None
    """As given, None when there is none."""
    mountpoint: str
    """Absolute, without symlinks."""
    options: Any
    """An instance of the filesystem's Options."""
    common: CommonOptions
    described: dict[str, dict[str, str]]
    """Every option as status shows it: value and origin, secrets redacted."""
    version: str

    @property
    def shown_source(self) -> str:
        """What mountinfo shows: the source as given, without a password; the filesystem's name when there is none."""
        return self.common.fsname or redacted_source(self.source or self.fs)

    def mounted_words(self, read_only: bool, seconds: float) -> str:
        """Return the line that says that the mount can be used."""
        access = "read-only" if read_only else "read-write"
        return (
            f"Mounted {printable(self.shown_source)} on {printable(self.mountpoint)} ({access}, {seconds:.1f} s). "
            f"Stop with: pyfusekit umount {quoted(self.mountpoint)}"
        )


def note_words(note: str) -> str:
    """Return a line that says what is to be known of a mount that works."""
    return f"pyfusekit: note: {printable(note)}"


def timed_out(seconds: float, step: str, log_place: str) -> Failure:
    """Return the failure of a start that took too long, at *step*."""
    cause = f"not ready after {seconds:g} s (step: {step})"
    return Failure(cause, f"give it longer with --timeout; its log: {log_place}", code=TIMED_OUT)


def bug(exc: BaseException, log_place: str) -> Failure:
    """Return the failure of a server that ended by what nobody foresaw; the traceback is in its log."""
    words = " ".join(f"{type(exc).__name__}: {exc}".split())
    return Failure(f"bug: {printable(words)}", f"the traceback is in its log: {log_place}", code=BUG)
