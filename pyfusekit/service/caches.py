"""What the disk caches hold, without any mount's help, and clearing them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pyfusekit.cache import inventory

from .exits import BUSY, SOURCE, USAGE, Failure
from .mounts import OK, survey
from .words import age_text, amount_text, did_you_mean, files_text, printable, quoted, table

Row = dict[str, Any]
"""What --json prints of a cache: its directory, the mounts that use it with their limits, and a row for each source."""


class User(NamedTuple):
    """A mount that uses a cache."""

    mountpoint: str
    limit: int


def show(given: str | None) -> list[Row]:
    """Return what the caches at *given* hold, or all that are known: those of running mounts and those where mounts have them
    when nobody says otherwise."""
    return [row_of(directory, users, inventory.held(directory)) for directory, users in _found(given).items()]


def _found(given: str | None) -> dict[str, list[User]]:
    """Return the directories of caches, each with the mounts that use it."""
    users: dict[str, list[User]] = {}
    for mounted in survey():
        cache = mounted.details.get("cache") if mounted.state == OK else None
        if isinstance(cache, dict):
            place = os.path.realpath(str(cache.get("directory")))
            users.setdefault(place, []).append(User(mounted.info.mountpoint, int(cache.get("limit") or 0)))
    if given is not None and not os.path.isdir(given):
        raise Failure(f"{given}: no such directory", "pyfusekit cache show lists the caches", code=SOURCE)
    places = [os.path.realpath(place) for place in _below(given or _home())]
    if given is None:
        places += [place for place in users if os.path.isdir(place)]
    return {place: users.get(place, []) for place in sorted(set(places))}


def _home() -> str:
    """Return where a mount has its cache when nobody says otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(Path.home(), ".cache")
    return os.path.join(base, "pyfusekit")


def _below(directory: str) -> Iterator[str]:
    """Yield the caches at *directory*: itself, or those that filesystems have made in it."""
    top = Path(directory)
    if inventory.is_cache(top):
        yield directory
        return
    for path in (*top.glob("blocks"), *top.glob("*/blocks")):
        if path.is_dir():
            yield str(path)


def row_of(directory: str, users: Iterable[User], entries: Iterable[inventory.Held]) -> Row:
    """Return what is told of a cache with these *entries*."""
    sources: dict[str, Row] = {}
    for entry in entries:
        row = sources.setdefault(
            entry.source,
            {
                "source": entry.source,
                "files": 0,
                "complete": 0,
                "cached_bytes": 0,
                "size_bytes": 0,
                "disk_bytes": 0,
                "used_at": 0.0,
                "in_use": 0,
            },
        )
        row["files"] += 1
        row["complete"] += entry.complete
        row["cached_bytes"] += entry.cached
        row["size_bytes"] += entry.size
        row["disk_bytes"] += entry.disk
        row["used_at"] = max(row["used_at"], entry.used_at)
        row["in_use"] += entry.in_use
    return {
        "directory": directory,
        "disk_bytes": sum(row["disk_bytes"] for row in sources.values()),
        "mounts": [{"mountpoint": user.mountpoint, "limit_bytes": user.limit} for user in users],
        "sources": [sources[name] for name in sorted(sources)],
    }


def as_text(rows: list[Row]) -> str:
    """Return what ``pyfusekit cache show`` prints: a paragraph for each cache."""
    return "\n\n".join(map(_paragraph, rows)) if rows else "Nothing is cached."


def _paragraph(row: Row) -> str:
    now = time.time()
    limits = [f"at most {amount_text(user['limit_bytes'])} for {printable(user['mountpoint'])}" for user in row["mounts"]]
    head = f"{printable(row['directory'])}: {amount_text(row['disk_bytes'])}, {', '.join(limits) or 'used by no mount'}"
    if not row["sources"]:
        return head
    lines = [("SOURCE", "FILES", "COMPLETE", "CACHED", "OF", "LAST USED", "IN USE")]
    lines += [
        (
            printable(source["source"]),
            str(source["files"]),
            str(source["complete"]),
            amount_text(source["cached_bytes"]),
            amount_text(source["size_bytes"]),
            f"{age_text(now - source['used_at'])} ago",
            str(source["in_use"]),
        )
        for source in row["sources"]
    ]
    return f"{head}\n{table(lines)}"


def clear(source: str | None, directory: str | None, *, everything: bool, older_than: float | None) -> str:
    """Remove entries, and return the words that say what was removed.

    Those of *source*, or of all sources; with *older_than* only those that were not used for so many seconds. Who has an entry
    open keeps it: Failure with BUSY says how many, when all others are removed.
    """
    if source is not None and everything:
        raise Failure(f"{source} and --all: one of them is meant", "pyfusekit cache clear --help", code=USAGE)
    if source is None and not everything and older_than is None:
        cause = "what is to be cleared is missing"
        raise Failure(cause, "write a SOURCE as pyfusekit cache show lists it, --all, or --older-than TIME", code=USAGE)
    caches = _found(directory)
    found = [(place, entry) for place in caches for entry in inventory.held(place)]
    if source is not None:
        sources = {entry.source for _place, entry in found}
        if source not in sources:
            cause = f"nothing is cached of {printable(source)}{did_you_mean(source, sources)}"
            raise Failure(cause, "pyfusekit cache show lists the sources", code=SOURCE)
        found = [(place, entry) for place, entry in found if entry.source == source]
    if older_than is not None:
        before = time.time() - older_than
        found = [(place, entry) for place, entry in found if entry.used_at < before]
    kept = [(place, entry) for place, entry in found if not inventory.clear(entry.path)]
    held = {entry.path for _place, entry in kept}
    gone = [entry for _place, entry in found if entry.path not in held]
    said = f"Cleared {files_text(len(gone))} ({amount_text(sum(entry.disk for entry in gone))})"
    if not kept:
        return said
    size = amount_text(sum(entry.disk for _place, entry in kept))
    verb = "is in use and stays" if len(kept) == 1 else "are in use and stay"
    users = [user.mountpoint for place in {place for place, _entry in kept} for user in caches[place]]
    remedy = f"pyfusekit umount {' '.join(map(quoted, users))}, and repeat" if users else "repeat when nobody has them open"
    raise Failure(f"{said}; {files_text(len(kept))} ({size}) {verb}", remedy, code=BUSY)
