"""Small words for people: suggestions, sizes, times, tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" with the known word closest to *word*, or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), n=1, cutoff=0.55)
    return f"; did you mean {close[0]}?" if close else ""


def size_text(count: int) -> str:
    """Return a number of bytes as a person writes it: 512, 64K, 8M; exact, so 1000001 stays 1000001."""
    for unit, shift in (("E", 60), ("P", 50), ("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if count and count % (1 << shift) == 0:
            return f"{count >> shift}{unit}"
    return str(count)


def amount_text(count: int) -> str:
    """Return a number of bytes roughly, for reading: 300 bytes, 1.5 KiB, 12 MiB."""
    if count < 1024:
        return f"{count} byte" if count == 1 else f"{count} bytes"
    amount, units = count / 1024, ["EiB", "PiB", "TiB", "GiB", "MiB", "KiB"]
    while amount >= 1023.5 and len(units) > 1:
        amount /= 1024
        units.pop()
    return f"{amount:.1f} {units[-1]}" if amount < 9.95 else f"{amount:.0f} {units[-1]}"


def files_text(count: int) -> str:
    """Return a number of files: 1 file, 3 files."""
    return f"{count} file" if count == 1 else f"{count} files"


def duration_text(seconds: float) -> str:
    """Return seconds as a person writes them: 1.5s, 5m, 2h; off is without end."""
    if seconds == float("inf"):
        return "off"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % length == 0:
            return f"{int(seconds // length)}{unit}"
    return f"{seconds:g}s"


def age_text(seconds: float) -> str:
    """Return how long something has been going on, in its two largest units: 8s, 12m, 2h3m, 4d1h."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes = whole // 60
    if minutes < 60:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes}m" if minutes else f"{hours}h"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours}h" if hours else f"{days}d"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as left-aligned columns two spaces apart, without trailing blanks."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def printable(text: str) -> str:
    """Return *text* in one line without control characters or undecodable bytes: what others named may hold anything."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode("ascii") for char in text
    )


def quoted(path: str) -> str:
    """Return *path* as a shell takes it, in a command that is shown to a person."""
    from shlex import quote

    return printable(quote(path))
