"""The listing of a public S3 bucket: ListBucketResult of ListObjects and ListObjectsV2, a page at a time.

A bucket's URL shows all keys of all directories; so a page that was not asked for with a delimiter has no entries, only the
URL of the one that was. The URL of a directory ends in its prefix, and so in a slash.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qsl, quote, unquote_plus, urlsplit

from ..values import Entry, Listing
from .base import Page
from .fields import iso_ns
from .names import Names
from .xmllist import NotXml, local, number_of, read, root

_TOP = ("Prefix", "Delimiter", "EncodingType", "IsTruncated", "NextContinuationToken", "NextMarker", "KeyCount")


class _Result:
    """What a ListBucketResult says."""

    def __init__(self) -> None:
        self.top: dict[str, str] = {}
        self.keys: list[dict[str, str]] = []
        self.prefixes: list[str] = []
        self._inside = ""
        self._row: dict[str, str] = {}

    def start(self, name: str, attributes: dict[str, str]) -> None:
        name = local(name)
        if name in ("Contents", "CommonPrefixes"):
            self._inside, self._row = name, {}

    def end(self, name: str, text: str) -> None:
        name = local(name)
        if name == self._inside:
            if name == "Contents":
                self.keys.append(self._row)
            else:
                self.prefixes.append(self._row.get("Prefix", ""))
            self._inside = ""
        elif self._inside:
            self._row.setdefault(name, text)
        elif name in _TOP:
            self.top[name] = text


class S3Driver:
    """Keys below the prefix are files, common prefixes are directories."""

    name = "s3"

    def accepts(self, page: Page) -> bool:
        """Return whether it is XML of a <ListBucketResult>."""
        return page.is_xml and root(page) == "listbucketresult"

    def parse(self, page: Page, external: bool, skipped: Callable[[str], None]) -> Listing | None:
        """Return the page; None when it is no XML. A truncated page that does not tell how to go on is none either."""
        result = _Result()
        try:
            read(page.body, result.start, result.end)
        except NotXml:
            return None
        parts = urlsplit(page.url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        bucket = f"{parts.scheme}://{parts.netloc}{parts.path or '/'}"
        if not bucket.endswith("/"):
            bucket += "/"
        url_encoded = result.top.get("EncodingType", "").lower() == "url"

        def plain(text: str) -> str:
            return unquote_plus(text, errors="surrogateescape") if url_encoded else text

        prefix = plain(result.top.get("Prefix", ""))
        if "delimiter" not in query and not result.top.get("Delimiter"):
            return Listing([], _grouped(bucket, prefix), self.name)
        keys = [plain(row.get("Key", "")) for row in result.keys]
        prefixes = [plain(text) for text in result.prefixes]
        # The prefix of a directory; what a person asked for with "?prefix=lo" is part of a name.
        directory = prefix[: prefix.rfind("/") + 1]
        names = Names(bucket, external, skipped)
        for key, row in zip(keys, result.keys, strict=True):
            if key.startswith(directory) and key != directory:
                self._key(names, bucket, key, directory, row)
        for text in prefixes:
            name = text[len(directory) :].rstrip("/")
            if text.startswith(directory) and names.allowed(name):
                names.keep(Entry(name, _grouped(bucket, text), True))
        if result.top.get("IsTruncated", "").strip().lower() != "true":
            return Listing(names.entries(), "", self.name)
        following = _following(query, result.top, plain, max([*keys, *prefixes], default=""))
        if not following:
            skipped("the page says that there are more, but not how to ask for them")
            return None
        return Listing(names.entries(), _url(bucket, following), self.name)

    @staticmethod
    def _key(names: Names, bucket: str, key: str, directory: str, row: dict[str, str]) -> None:
        name = key[len(directory) :]
        size = number_of(row.get("Size", ""))
        if name.endswith("/"):
            # What some programs make to show a directory; without a slash more it is one.
            name = name.rstrip("/")
            if names.allowed(name):
                names.keep(Entry(name, _grouped(bucket, key), True))
        elif names.allowed(name):
            url = bucket + quote(key.encode("utf-8", "surrogateescape"), safe="/")
            mtime_ns = iso_ns(row.get("LastModified", ""))
            names.keep(Entry(name, url, False, size, size is not None, mtime_ns, row.get("ETag", "").strip()))


def _grouped(bucket: str, prefix: str) -> str:
    return _url(bucket, {"list-type": "2", "delimiter": "/", "encoding-type": "url", "prefix": prefix})


def _url(bucket: str, query: dict[str, str]) -> str:
    # The prefix comes last: a directory's URL ends in a slash.
    items = sorted(query.items(), key=lambda item: item[0] == "prefix")
    return bucket + "?" + "&".join(f"{key}={quote(value.encode('utf-8', 'surrogateescape'), safe='/')}" for key, value in items)


def _following(query: dict[str, str], top: dict[str, str], plain: Callable[[str], str], last: str) -> dict[str, str]:
    """Return the query of the next page; empty when it would be the same again."""
    following = {key: value for key, value in query.items() if key not in ("continuation-token", "marker", "start-after")}
    token = top.get("NextContinuationToken", "").strip()
    if token:
        following |= {"list-type": "2", "continuation-token": token}
    elif query.get("list-type") == "2":
        following["start-after"] = last
    else:
        following["marker"] = plain(top.get("NextMarker", "")) or last
    where = ("continuation-token", "start-after", "marker")
    return following if last and any(following.get(key) and following.get(key) != query.get(key) for key in where) else {}


__all__ = ["S3Driver"]
