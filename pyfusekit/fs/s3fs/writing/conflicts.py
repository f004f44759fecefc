"""What could not be published because somebody else had changed the object: the local version, kept and named.

A copy is a file NAME with NAME.json beside it, which says whose it is and which bytes it has not. Nothing removes them but
the person they belong to.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from ..remote.store import KEY_MAX
from .staging import Staged


class Kept(NamedTuple):
    """A local version that was not published."""

    path: str
    """Of the copy."""
    source: str
    """The mount's: s3://bucket/prefix."""
    key: str
    size: int
    time_ns: int
    """When it was kept."""
    why: str
    missing: list[tuple[int, int]]
    """Ranges that are zero in the copy: they were never here, but in the object that is gone."""


def keep(directory: str, source: str, key: str, staged: Staged, why: str) -> str:
    """Give the staging file a name in *directory* and return its path; again for the same Staged: say what holds now.

    Later writes to *staged* are in the copy too. The caller fsyncs, and then sets staged.kept. OSError when it cannot be kept.
    """
    os.makedirs(directory, 0o700, exist_ok=True)
    path = staged.copy
    if not path or not os.path.exists(path) or not os.path.samestat(os.stat(path), os.fstat(staged.fd)):
        path = _name(directory, key)
        staged.save(path)
        staged.copy = path
    if os.fstat(staged.fd).st_size < staged.size:
        os.ftruncate(staged.fd, staged.size)
    missing = sorted([*staged.missing(0, staged.size), *staged.gone])
    said = Kept(path, source, key, staged.size, time.time_ns(), why, missing)._asdict()
    del said["path"]
    temporary = f"{path}.json~"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(said, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, f"{path}.json")
    return path


def drop(path: str) -> None:
    """Remove a copy that holds nothing anybody wrote."""
    for name in (f"{path}.json", path):
        with suppress(OSError):
            os.unlink(name)


def kept(directory: str) -> list[Kept]:
    """Return the copies in *directory*, the oldest first; what cannot be understood is not among them."""
    found = []
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    for name in names:
        path = os.path.join(directory, name.removesuffix(".json"))
        if not name.endswith(".json") or not os.path.exists(path):
            continue
        try:
            with open(f"{path}.json", encoding="utf-8") as file:
                said = json.load(file)
            missing = [(int(start), int(end)) for start, end in said["missing"]]
            found.append(
                Kept(
                    path,
                    str(said["source"]),
                    str(said["key"]),
                    int(said["size"]),
                    int(said["time_ns"]),
                    str(said["why"]),
                    missing,
                )
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda one: one.time_ns)


def conflict_key(key: str, taken: Sequence[str] = ()) -> str:
    """Return the key that on_conflict=rename publishes under: KEY.conflict-HOST-TIME, shortened to what S3 allows."""
    host = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname())[:40] or "host"
    base = f".conflict-{host}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    for number in range(1, 1000):
        end = base if number == 1 else f"{base}-{number}"
        room = KEY_MAX - len(end)
        directory, slash, name = key.rpartition("/")
        # A name has at most 255 bytes in a filesystem; a directory is never cut.
        room = min(255 - len(end), room - len((directory + slash).encode()))
        name = name.encode()[: max(1, room)].decode("utf-8", "ignore")
        if (found := f"{directory}{slash}{name}{end}") not in taken:
            return found
    raise AssertionError("unreachable: a thousand conflicts of one key in one second")


def _name(directory: str, key: str) -> str:
    """Return a path in *directory* that is not taken and reminds of *key*."""
    word = re.sub(r"[^A-Za-z0-9._-]+", "_", key.rpartition("/")[2]).strip(".")[:100] or "file"
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    number = 1
    while True:
        path = os.path.join(directory, f"{stamp}-{number}-{word}" if number > 1 else f"{stamp}-{word}")
        if not os.path.lexists(path):
            return path
        number += 1


__all__ = ["Kept", "conflict_key", "drop", "keep", "kept"]
