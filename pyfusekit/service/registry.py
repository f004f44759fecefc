"""The filesystems by name: the bundled ones from a table, plugins from entry points, a broken one isolated.

Scanning entry points costs some 40 ms, so it is done only for a name the table does not hold and for lists of plugins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .exits import USAGE, Failure
from .words import did_you_mean

if TYPE_CHECKING:
    from pyfusekit.core.filesystem import Filesystem

GROUP = "pyfusekit.filesystems"
"""The entry point group; an entry point names a Filesystem class."""


class Entry(NamedTuple):
    """One filesystem that can be named on the command line."""

    name: str
    target: str
    """Where the class is, "module:Class"."""
    summary: str
    schemes: tuple[str, ...] = ()
    """The URL schemes that mean this filesystem."""
    distribution: str = ""
    """The package it comes from; empty for the bundled ones."""


BUNDLED = (
    Entry("mem", "pyfusekit.fs.memfs:MemFS", "A filesystem in memory, gone when it is unmounted.", ("mem",)),
    Entry("s3", "pyfusekit.fs.s3fs:S3FS", "A bucket of Amazon S3 or of a compatible object store.", ("s3",)),
    Entry("http", "pyfusekit.fs.httpfs:HttpFS", "A web directory or a URL, as files.", ("http", "https")),
)
"""Equal to pyproject.toml's entry points and to the classes' own summaries, which tests/service/test_registry.py holds."""


def plugins() -> tuple[list[Entry], list[str]]:
    """Return the filesystems other packages register, and a line about each entry point that cannot be used.

    Nothing is imported from a plugin. A name that is bundled stays the bundled one; of two plugins the first one wins.
    """
    from importlib.metadata import entry_points

    taken = {entry.name: "pyfusekit" for entry in BUNDLED}
    bundled = {(entry.name, entry.target) for entry in BUNDLED}
    found: list[Entry] = []
    complaints: list[str] = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        if (point.name, point.value) in bundled:
            continue
        package = point.dist.name if point.dist is not None else "an unnamed package"
        if point.name in taken:
            complaints.append(f"filesystem {point.name!r} of {package} is not used: {taken[point.name]} has that name")
            continue
        taken[point.name] = package
        found.append(Entry(point.name, point.value, f"from {package}", (), package))
    return found, complaints


def find(name: str) -> Entry:
    """Return the filesystem called *name*; plugins are looked at only when it is not bundled."""
    for entry in BUNDLED:
        if entry.name == name:
            return entry
    others, _complaints = plugins()
    for entry in others:
        if entry.name == name:
            return entry
    names = [entry.name for entry in (*BUNDLED, *others)]
    hint = did_you_mean(name, names)
    raise Failure(f"{name}: no such filesystem{hint}", f"there are: {', '.join(names)} (pyfusekit mount --help)", code=USAGE)


def is_url(word: str) -> bool:
    """Say whether *word* is a URL, and not the name of a filesystem."""
    scheme, separator, _rest = word.partition("://")
    return bool(separator) and scheme.translate({ord(char): "x" for char in "+-."}).isalnum()


def of_url(url: str) -> Entry:
    """Return the filesystem that the scheme of *url* means: a bundled one's scheme, or the name of any filesystem."""
    scheme = url.partition("://")[0].lower()
    for entry in BUNDLED:
        if scheme in entry.schemes:
            return entry
    others, _complaints = plugins()
    for entry in (*BUNDLED, *others):
        if entry.name == scheme:
            return entry
    known = [*url_schemes(), *(entry.name for entry in others)]
    cause = f"{scheme}: no filesystem has such URLs{did_you_mean(scheme, known)}"
    raise Failure(cause, f"a URL begins with: {', '.join(known)} (pyfusekit mount --help)", code=USAGE)


def url_schemes() -> list[str]:
    """Return the schemes of URLs that bundled filesystems take."""
    return [scheme for entry in BUNDLED for scheme in entry.schemes]


def load(entry: Entry) -> type[Filesystem]:
    """Import *entry*'s module and return its class.

    Whatever goes wrong in a plugin's module is one line that names the plugin; in a bundled one it is a bug, or a library
    that is not installed.
    """
    from importlib import import_module

    from pyfusekit.core.filesystem import Filesystem

    module_name, _, class_name = entry.target.partition(":")
    try:
        loaded = getattr(import_module(module_name), class_name)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        if not entry.distribution and not isinstance(exc, ImportError):
            raise
        raise _broken(entry, f"{type(exc).__name__}: {exc}") from exc
    if not (isinstance(loaded, type) and issubclass(loaded, Filesystem)):
        raise _broken(entry, f"{entry.target} is not a Filesystem")
    return loaded


def _broken(entry: Entry, why: str) -> Failure:
    origin = f" (from {entry.distribution})" if entry.distribution else ""
    package = entry.distribution or "pyfusekit"
    why = " ".join(why.split())
    return Failure(f"filesystem {entry.name!r}{origin} cannot be loaded: {why}", f"pip install --upgrade {package}", code=USAGE)
