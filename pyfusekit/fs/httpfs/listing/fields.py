"""Times and sizes, as listings write them."""

from __future__ import annotations

import functools
import re
from calendar import timegm
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite

_MONTHS = {
    name: number
    for number, name in enumerate(("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), start=1)
}
_UNITS = {unit: 1024**power for power, unit in enumerate("bkmgtpe")}
_UNIT_WORDS = frozenset(("b", *(f"{unit}{rest}" for unit in "kmgtpe" for rest in ("", "b", "ib"))))
_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,9})?)([bkmgtpe]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_LIMIT = 1 << 63
_SECOND = 1_000_000_000

Fields = tuple[int | None, int | None, bool]
"""Of a row: mtime_ns, size, exact."""


def within(number: int) -> int | None:
    """Return *number* when it is a size or a time a file can have: 0 to 2^63 - 1."""
    return number if 0 <= number < _LIMIT else None


@functools.lru_cache(4096)
def _day(text: str) -> int | None:
    """Return when "23-Nov-2026", "2026-11-23" or "2026-Nov-23" begins, in seconds; None when it is none of these."""
    parts = text.split("-")
    if len(parts) != 3:
        return None
    if len(parts[0]) == 2:
        parts.reverse()
    year, month, day = parts
    try:
        number = _MONTHS.get(month.lower()) or int(month)
        return int(datetime(int(year), number, int(day), tzinfo=UTC).timestamp())
    except ValueError:
        return None


@functools.lru_cache(4096)
def _clock(text: str) -> int | None:
    """Return "10:23" or "10:23:59" as seconds."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(len(part) == 2 and part.isascii() and part.isdigit() for part in parts):
        return None
    return int(parts[0]) * 3600 + int(parts[1]) * 60 + (int(parts[2]) if len(parts) == 3 else 0)


@functools.lru_cache(4096)
def size_of(text: str) -> tuple[int | None, bool]:
    """Return "1234" or "1.2K" in bytes, and whether that is exact; a K is 1024 bytes, as nginx, Apache and lighttpd count."""
    if text.isdigit() and text.isascii() and len(text) < 20:
        size = within(int(text))
        return size, size is not None
    found = _SIZE.fullmatch(text)
    if found is None or not found[2]:
        return None, False
    return within(int(float(found[1]) * _UNITS[found[2].lower()])), False


def row_fields(tail: str) -> Fields:
    """Return what stands behind a link: a date, a time and a size, each of them or none.

    nginx: "23-Nov-2026 10:23   1234"; Apache: "2026-11-23 10:23  1.2K"; lighttpd: "2026-Nov-23 10:23:59 1.2K". The
    times are UTC where servers run as they come; a page does not tell another zone.
    """
    words = tail.split(None, 5)
    at = 1 if words and words[0] == "/" else 0
    mtime_ns = None
    if len(words) > at + 1:
        day = _day(words[at]) if len(words[at]) in (10, 11) else None
        clock = _clock(words[at + 1]) if day is not None else None
        if day is not None and clock is not None:
            mtime_ns = within((day + clock) * _SECOND)
            at += 2
    if len(words) <= at:
        return mtime_ns, None, False
    word = words[at]
    if len(words) > at + 1 and words[at + 1].lower() in _UNIT_WORDS and word[0].isdigit():
        word += words[at + 1]
    return mtime_ns, *size_of(word)


@functools.lru_cache(4096)
def _minute(text: str) -> int:
    """Return "2026-11-23T10:23" in seconds: the entries of a listing share some."""
    moment = (int(text[:4]), int(text[5:7]), int(text[8:10]), int(text[11:13]), int(text[14:16]))
    return int(datetime(*moment, tzinfo=UTC).timestamp())


def iso_ns(text: str) -> int | None:
    """Return "2026-11-23T10:23:59.123456789Z" in nanoseconds; fraction and zone (Z or +01:00) may be missing: UTC."""
    text = text.strip()
    try:
        if len(text) == 20 and text[19] == "Z" and text[16] == ":" and text[17:19].isdigit():
            return within((_minute(text[:16]) + int(text[17:19])) * _SECOND)
        fraction = 0
        whole, dot, rest = text.partition(".")
        if dot:
            digits = len(rest) - len(rest.lstrip("0123456789"))
            fraction = int(rest[:digits][:9].ljust(9, "0")) if digits else 0
            whole += rest[digits:]
        moment = datetime.fromisoformat(whole)
        return within(timegm(moment.utctimetuple()) * _SECOND + fraction)
    except (ValueError, OverflowError):
        return None


@functools.lru_cache(4096)
def http_ns(text: str) -> int | None:
    """Return "Mon, 23 Nov 2026 10:23:59 GMT" in nanoseconds."""
    try:
        if len(text) == 29 and text.endswith(" GMT") and text[16] == " ":
            day, clock = _day(text[5:16].replace(" ", "-")), _clock(text[17:25])
            if day is not None and clock is not None:
                return within((day + clock) * _SECOND)
        return within(int(parsedate_to_datetime(text).timestamp()) * _SECOND)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None


def any_ns(value: object) -> int | None:
    """Return a time as JSON may have it: text of either kind, seconds, or milliseconds since 1970."""
    if isinstance(value, str):
        value = value.strip()
        return iso_ns(value) if value[:4].isdigit() else http_ns(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or (isinstance(value, float) and not isfinite(value)):
        return None
    # In seconds this is the year 5138, in milliseconds 1973.
    unit = 1_000_000 if value >= 1e11 else _SECOND
    return within(value * unit if isinstance(value, int) else int(value * unit))


__all__ = ["Fields", "any_ns", "http_ns", "iso_ns", "row_fields", "size_of", "within"]
