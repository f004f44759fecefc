"""Finding out what the source is: a directory the server lists, one that it does not list, or a file."""

from __future__ import annotations

import time
from email.message import Message
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes, urlsplit

from pyfusekit.core import MountError

from .naming.nodes import NAME_MAX, PROBED
from .naming.resolve import leads_to_directory
from .values import Entry, HttpError, Resource

if TYPE_CHECKING:
    from .state import Mounted

_LISTINGS = ("html", "xml", "json", "metalink", "uri-list")
"""Parts of the types that a listing may have whose URL does not end in a slash."""


async def discover(fs: Mounted) -> None:
    """Make the root of what *fs*'s source is; MountError when it cannot be had."""
    try:
        await _discover(fs)
    except HttpError as exc:
        raise _refusal(fs.source, exc) from exc


async def _discover(fs: Mounted) -> None:
    root = fs.tree.root
    single = fs.options.single
    path = urlsplit(fs.source).path
    if single is None and not path.endswith("/"):
        found = await _probe(fs)
        if leads_to_directory(fs.source, found.final_url):
            root.url = found.final_url
        elif "." in path.rpartition("/")[2] or not any(word in found.content_type for word in _LISTINGS):
            _show_file(fs, found)
            return
        else:
            await fs.lister.ensure(root)
            if not root.is_listed:
                root.loaded, root.is_listed = False, True
                _show_file(fs, found)
            return
    elif single:
        _show_file(fs, await _probe(fs))
        return
    await fs.lister.ensure(root)
    if not root.is_listed and fs.lister.status in (400, 404, 405, 406, 410, 501):
        word = f"{fs.source}: the answer is {fs.lister.status}"
        raise MountError(word, kind="source-missing", remedy="look whether the URL is spelled right")
    if not root.is_listed and fs.lister.status != 403 and not path.endswith("/"):
        raise MountError(
            f"{fs.source} is no listing of a directory", kind="source-missing", remedy="mount it as one file: --single"
        )


async def _probe(fs: Mounted) -> Resource:
    """Ask what the source is; the disk when nobody answers."""
    try:
        found = await fs.content.probe(fs.source)
    except HttpError:
        kept = await fs.pages.resource(fs.source) if fs.pages is not None and fs.web.offline else None
        if kept is None:
            raise
        return kept
    if fs.pages is not None:
        fs.pages.put_resource(found)
    return found


def _show_file(fs: Mounted, found: Resource) -> None:
    """Make the root a directory with one file in it."""
    fs.single = True
    root = fs.tree.root
    now = time.monotonic()
    name = name_of_file(found)
    entry = Entry(name, fs.source, False, found.size, found.size is not None, found.mtime_ns)
    fs.tree.begin(root)
    fs.tree.merge(root, [entry])
    fs.tree.finish(root, float("inf"))
    root.told.driver = "file"
    for ino in root.index.values():
        home, place = fs.tree.row(ino)
        home.flags[place] |= PROBED
        fs.tree.learn(home, place, found, now)
        home.extra(place).expires = now + fs.options.metadata_ttl


def name_of_file(found: Resource) -> str:
    """Return the name of a file: what Content-Disposition says (RFC 6266), else the end of its path, made a name."""
    disposition = found.headers.get("content-disposition", "")
    names = []
    if disposition:
        message = Message()
        message["content-disposition"] = disposition.encode("latin-1", "replace").decode("ascii", "replace")
        names.append((message.get_filename() or "").replace("\\", "/").rpartition("/")[2])
    for url in (found.url, found.final_url):
        names.append(unquote_to_bytes(urlsplit(url).path.rpartition("/")[2]).decode("utf-8", "surrogateescape"))
    for name in names:
        cleaned = name.replace("/", "_").replace("\0", "_").strip()
        while len(cleaned.encode("utf-8", "surrogateescape")) > NAME_MAX:
            cleaned = cleaned[:-1]
        if cleaned not in ("", ".", ".."):
            return cleaned
    return urlsplit(found.url).hostname or "file"


def _refusal(source: str, exc: HttpError) -> MountError:
    """Return why the source cannot be mounted, with what mends it."""
    words = exc.strerror or str(exc)
    if exc.status in (401, 403, 407):
        remedy = "give --user and --password-file, --bearer-token-file or --token-command"
        return MountError(words, kind="access-denied", remedy=remedy, errno=exc.errno)
    if exc.status in (404, 410):
        return MountError(words, kind="source-missing", remedy="look whether the URL is spelled right", errno=exc.errno)
    if "certificate" in words or "TLS" in words:
        remedy = "look at the certificate, or name the one to trust with --ca-file"
        return MountError(words, kind="source-unreachable", remedy=remedy, errno=exc.errno)
    remedy = "look whether the host is up and the URL is spelled right"
    return MountError(words, kind="source-unreachable", remedy=remedy, errno=exc.errno)


__all__ = ["discover", "name_of_file"]
