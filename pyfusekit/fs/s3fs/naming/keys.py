"""Keys as names: every key of a bucket has exactly one path, and every path one key.

Keys are flat; "/" in them makes directories. A *component* is what stands between two slashes. Most components are names as
they stand; the others are escaped with MARK, the character U+241B:

    component                      name
    ""  ("a//b", "/a")             MARK e
    "."  and  ".."                 MARK .  and  MARK ..
    NUL                            MARK 0
    MARK itself                    MARK MARK
    the object "a" beside "a/..."  a MARK f       the directory has the plain name; only while there is one
    the object "a/" with bytes     MARK e in "a"  its last component is empty; without bytes it only marks the directory
    more than 255 bytes escaped    HEAD MARK +    a directory, the *continuation*: it holds the rest of the component

A HEAD is the longest beginning of the component, in whole characters, that has at most 240 bytes escaped. A continuation's
directory key is "dir/HEAD", without a slash at its end, and it shows only components that are split there.

A *directory key* is what the keys of all its children begin with: "" or "a/b/", or that of a continuation.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from ..remote.store import KEY_MAX

MARK = "\u241b"
NAME_MAX = 255
"""Bytes of the longest name the kernel takes."""
HEAD_MAX = 240
"""Bytes of the longest HEAD, escaped."""

MODES = ("escape", "hide", "error")
"""What becomes of keys that are no names as they stand: escaped, left out with a line in the log, or listing fails (EIO)."""

PLAIN, BESIDE, MORE = 0, 1, 2
"""What a name stands for: a component; a file beside a directory (MARK f); a continuation (MARK +)."""

_BESIDE = f"{MARK}f"
_MORE = f"{MARK}+"
_EMPTY = f"{MARK}e"
_DOTS = (".", "..")
_MARK_BYTES = MARK.encode()


class Meaning(NamedTuple):
    """What a name in a directory stands for."""

    key: str
    """The directory's key and the name's component: an object's key as it stands, a directory's with "/" behind it, and a
    continuation's directory key."""
    kind: int
    """PLAIN, BESIDE or MORE."""


class Shown(NamedTuple):
    """How a directory shows a component."""

    name: bytes
    kind: int
    end: int
    """How many characters of the component the name stands for, those of the stem included."""


def escape(component: str) -> str:
    """Return *component* as a name, however long."""
    if component in _DOTS:
        return MARK + component
    if not component:
        return _EMPTY
    return component.replace(MARK, MARK + MARK).replace("\0", f"{MARK}0")


def unescape(text: str) -> str | None:
    """Return the component whose name is *text*, None when it is none's."""
    if MARK not in text:
        return text if text and text not in _DOTS else None
    if text == _EMPTY:
        return ""
    if text[1:] in _DOTS:
        return text[1:]
    parts: list[str] = []
    place = 0
    while (found := text.find(MARK, place)) >= 0:
        follows = text[found + 1 : found + 2]
        if follows not in (MARK, "0") or not follows:
            return None
        parts += (text[place:found], MARK if follows == MARK else "\0")
        place = found + 2
    parts.append(text[place:])
    return "".join(parts)


def path_of(component: str, beside: bool = False) -> list[bytes]:
    """Return the names that lead to *component* from its directory: continuations, then its own; UnicodeEncodeError.

    *beside*: it is a file whose name a directory has.
    """
    names: list[bytes] = []
    rest = component
    suffix = _BESIDE if beside else ""
    while len(name := (escape(rest) + suffix).encode()) > NAME_MAX:
        head = _head(rest)
        names.append((escape(head) + _MORE).encode())
        rest = rest[len(head) :]
    names.append(name)
    return names


def splits(component: str, beside: bool = False) -> list[int]:
    """Return how many characters of *component* are behind each continuation that leads to it."""
    found: list[int] = []
    place = 0
    limit = NAME_MAX - (len(_BESIDE.encode()) if beside else 0)
    while len(escape(component[place:]).encode()) > limit:
        place += len(_head(component[place:]))
        found.append(place)
    return found


def _head(text: str) -> str:
    """Return the HEAD of *text*, which is longer."""
    size = 0
    for place, char in enumerate(text):
        size += len(escape(char).encode()) if char not in _DOTS else 1
        if size > HEAD_MAX:
            return text[:place]
    return text


def stem_of(directory: str) -> str:
    """Return the part of a component that a continuation's key has; empty for other directories."""
    return directory[directory.rfind("/") + 1 :]


def name_in(directory: str, component: str, beside: bool = False) -> Shown | None:
    """Return how *directory* shows a component of its keys, None when it shows it elsewhere; UnicodeEncodeError.

    *component* is all that follows the last slash of the directory's key, the stem of a continuation included. The kind is
    MORE when the name is that of a continuation which leads on to it.
    """
    places = splits(component, beside)
    stem = len(stem_of(directory))
    if stem and stem not in places:
        return None
    behind = [place for place in places if place > stem]
    if behind:
        return Shown((escape(component[stem : behind[0]]) + _MORE).encode(), MORE, behind[0])
    name = escape(component[stem:])
    if beside:
        return Shown((name + _BESIDE).encode(), BESIDE, len(component))
    return Shown(name.encode(), PLAIN, len(component))


def meaning(directory: str, name: bytes) -> Meaning | None:
    """Return what *name* in *directory* stands for, None when no key can have it there.

    Names are canonical: what name_in never gives means nothing.
    """
    found = _meaning(directory, name)
    return found if found is None or _fits(found.key) else None


def _meaning(directory: str, name: bytes) -> Meaning | None:
    """Return what *name* stands for, however long the key would be."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return None
    if _MARK_BYTES in name or (directory and directory[-1] != "/"):
        return _escaped(directory, text, name)
    if not text or text in _DOTS or len(name) > NAME_MAX or "\0" in text or "/" in text:
        return None
    return Meaning(directory + text, PLAIN)


def _fits(key: str) -> bool:
    """Return whether a key can be that long."""
    return len(key) * 4 <= KEY_MAX or len(key.encode()) <= KEY_MAX


def _escaped(directory: str, text: str, name: bytes) -> Meaning | None:
    """Return what a name that is not as it stands means."""
    kind = PLAIN
    component: str | None = None
    # "MARK MARK f" ends a component whose last characters are MARK and "f": the marks before the letter are counted.
    body, letter = text[:-2], text[-2:]
    if letter in (_BESIDE, _MORE) and (len(text) - 1 - len(text[:-1].rstrip(MARK))) % 2:
        kind = BESIDE if letter == _BESIDE else MORE
        component = unescape(body)
    else:
        component = unescape(text)
    if component is None or "/" in component:
        return None
    stem = stem_of(directory)
    if kind == MORE:
        # Where a component is split depends on the next character too: MARK is the longest there is, escaped.
        shown = name_in(directory, stem + component + MARK * 60)
    else:
        shown = name_in(directory, stem + component, kind == BESIDE)
    if shown is None or shown.name != name or shown.kind != kind:
        return None
    return Meaning(directory + component, kind)


def parent_of(key: str, is_dir: bool, beside: bool = False) -> str:
    """Return the directory key of the directory that shows *key*."""
    if is_dir and key.endswith("/"):
        key = key[:-1]
        component = key[key.rfind("/") + 1 :]
        places = splits(component) if len(component) > NAME_MAX // 6 else []
    elif is_dir:
        component = stem_of(key)
        # A continuation's own place is the last of the splits of whatever goes on behind it.
        places = [place for place in splits(component + "x" * 300) if place < len(component)]
    else:
        component = key[key.rfind("/") + 1 :]
        places = splits(component, beside) if len(component) > (NAME_MAX - 4) // 6 else []
    return key[: len(key) - len(component) + (places[-1] if places else 0)]


def continuation(head: str) -> bytes:
    """Return the name of the continuation in which components go on that begin with *head*."""
    return (escape(head) + _MORE).encode()


def as_it_stands(directory: str, name: bytes) -> Meaning | None:
    """Return what *name* stands for where nothing is escaped, None when no key can have it."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return None
    return None if unfit(text) or not _fits(directory + text) else Meaning(directory + text, PLAIN)


def unfit(component: str) -> str:
    """Return why *component* is no name as it stands, or ""."""
    if not component:
        return 'a part of it is empty ("//")'
    if component in _DOTS:
        return f"{component!r} means something else in a path"
    if "\0" in component or "/" in component:
        return "it has a character no name can have"
    try:
        length = len(component.encode())
    except UnicodeEncodeError:
        return "it is not UTF-8"
    return f"a part of it has more than {NAME_MAX} bytes" if length > NAME_MAX else ""


def new_key(directory: str, name: bytes, is_dir: bool, escaping: bool) -> Meaning:
    """Return what a name that shall be made means: EILSEQ, EINVAL, ENAMETOOLONG when no key can have it.

    With *is_dir* the key ends in "/".
    """
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, f"names have at most {NAME_MAX} bytes")
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise OSError(errno.EILSEQ, f"S3 keys are UTF-8, which {name!r} is not") from None
    found: Meaning | None = None
    if escaping:
        found = _meaning(directory, name)
    elif not unfit(text):
        found = Meaning(directory + text, PLAIN)
    if found is None or found.kind == MORE or (is_dir and found.kind == BESIDE) or not (found.key or is_dir):
        raise OSError(errno.EINVAL, f"{text!r} is no key's name (U+241B begins an escape)")
    if is_dir:
        found = found._replace(key=f"{found.key}/")
    if not _fits(found.key):
        raise OSError(errno.ENAMETOOLONG, f"S3 keys have at most {KEY_MAX} bytes")
    return found


__all__ = [
    "BESIDE",
    "HEAD_MAX",
    "MARK",
    "MODES",
    "MORE",
    "NAME_MAX",
    "PLAIN",
    "Meaning",
    "Shown",
    "as_it_stands",
    "continuation",
    "escape",
    "meaning",
    "name_in",
    "new_key",
    "parent_of",
    "path_of",
    "splits",
    "stem_of",
    "unescape",
    "unfit",
]
