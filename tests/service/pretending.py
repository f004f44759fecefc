"""A filesystem for the operator's commands: it pretends that data waits, that things went wrong, and that it believes names.

Its source is a directory through which a test speaks with it:

    waiting     JSON [files, bytes]: what waits at the start
    problems    JSON list of Problem's fields: what went wrong already
    notes       JSON list of sentences: what the person who mounts should know
    go          when it appears, a drain writes everything back
    step        each time it appears, a drain writes one file back, and removes it
    refuse      when it appears, a drain notes a problem each round
    stay        when it appears, a drain never ends by itself, not even at its deadline
    bug         when it appears, drain, details and waiting raise
    drained     written by drain: one line for each call, its seconds to the deadline
    refreshed   written by refresh: one line for each path
    destroyed   written by destroy
"""

from __future__ import annotations

import json
from pathlib import Path

_PRETEND = """
import asyncio, errno, json, math, os, stat, time
from pathlib import Path
from pyfusekit.core import Attr, DirEntry, Filesystem, NoOptions, Problem, ProblemLog

class Refused(OSError):
    request_id = "REQ1"

REFUSED = Refused(errno.EACCES, "403 AccessDenied: not you")

class PretendFS(Filesystem):
    summary = "Pretends that data waits."
    source_use = "required"
    Options = NoOptions

    def __init__(self, source, options):
        self.talk = Path(source)
        self.left = [0, 0]
        self.problems = ProblemLog()

    def told(self, name, default):
        file = self.talk / name
        return json.loads(file.read_text()) if file.exists() else default

    async def init(self):
        self.left = self.told("waiting", [0, 0])
        self.notes = self.told("notes", [])
        for row in self.told("problems", []):
            self.problems.add(Problem(**row))

    async def destroy(self):
        (self.talk / "destroyed").write_text("yes")

    def getattr(self, request, ino, handle):
        return Attr(ino=ino, mode=stat.S_IFDIR | 0o755, nlink=2)

    def readdir(self, request, ino, handle, offset):
        return [e for e in (DirEntry(b".", 1, stat.S_IFDIR, 1), DirEntry(b"..", 1, stat.S_IFDIR, 2)) if e.offset > offset]

    def is_told(self, name):
        return (self.talk / name).exists()

    def waiting(self):
        if self.is_told("bug"):
            raise TypeError("a bug of waiting")
        return tuple(self.left)

    async def drain(self, deadline):
        with (self.talk / "drained").open("a") as file:
            file.write(f"{deadline - time.monotonic()}\\n")
        if self.is_told("bug"):
            raise TypeError("a bug of drain")
        while self.left[0] and (time.monotonic() < deadline or self.is_told("stay")):
            if self.is_told("go"):
                self.left = [0, 0]
            elif self.is_told("step"):
                (self.talk / "step").unlink()
                self.left = [self.left[0] - 1, self.left[1] - self.left[1] // self.left[0]]
            elif self.is_told("refuse"):
                self.problems.note(REFUSED, "PutObject", "a/b.txt", remedy="ask anna")
            await asyncio.sleep(0.01)

    async def refresh(self, path):
        if path == b"broken":
            raise OSError(errno.EIO, "the store is gone")
        with (self.talk / "refreshed").open("ab") as file:
            file.write(path + b"\\n")
        return 7 if path else 1

    def details(self):
        if self.is_told("bug"):
            raise TypeError("a bug of details")
        return {"pretends": True, "names": ["a", "b"]}
"""


def install_pretend(folder: Path) -> None:
    """Write the package pretend and its metadata into *folder*."""
    (folder / "pretend.py").write_text(_PRETEND)
    info = folder / "pyfusekit_pretend-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pyfusekit-pretend\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pyfusekit.filesystems]\npretend = pretend:PretendFS\n")


class Talk:
    """A test's side of the directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def say(self, name: str, value: object = None) -> None:
        """Make one of the files; it is there at once with all that is in it."""
        new = self.folder / f"{name}.new"
        new.write_text(json.dumps(value))
        new.rename(self.folder / name)

    def unsay(self, name: str) -> None:
        """Take a file away."""
        (self.folder / name).unlink()

    def heard(self, name: str) -> list[str]:
        """Return the lines that the filesystem wrote."""
        file = self.folder / name
        return file.read_text(errors="surrogateescape").splitlines() if file.exists() else []
