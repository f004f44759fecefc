"""The links of a web page, each with what stands behind it; html.parser, fed with as little as possible.

html.parser takes 3 us a tag: 4 s for Apache's table of 100,000 files, whose tags are the same ones again and again. So the page
is cut at its tags, html.parser reads each different tag once, and what it said is kept: by the tag, or where the quoted
values differ by the tag without them. Whatever is not that plain - comments, scripts, quotes of the other kind, a "<"
that begins no tag - goes through html.parser until it has come to the end of it.

INVARIANT: only a tag with a known beginning and all its quotes in pairs is taken apart here, and to html.parser too it
ends at the first ">" then; a value between double quotes cannot change what another part of the tag means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import unescape
from html.parser import HTMLParser

from .base import Page

_PIECE = 1 << 16
_PENDING = 1 << 20
"""The longest script or comment; what is longer ends the reading, each piece would go over it again."""
_TAIL = 160
"""Characters behind a link that may say something."""
_ROWS = frozenset({"tr", "/tr", "li", "/li", "/ul", "/ol", "/table", "/tbody", "/pre", "hr", "h1", "h2", "/body", "address"})
_CELLS = frozenset({"td", "/td", "th", "/th", "br", "div", "/div", "time", "/time"})
_RAW = frozenset({"script", "style", "title", "textarea", "xmp", "iframe", "noembed", "noframes", "noscript", "plaintext"})
_SIZES = ("data-order", "data-size", "data-sort")
_NOTHING, _CELL, _ROW, _END, _VALUES, _ODD = range(6)
_QUOTES = 32
"""Of a plain tag, fewer than these."""
_KNOWN = 2048
"""Different tags that are kept."""

Attributes = list[tuple[str, str | None]]
Emit = Callable[[str, str, str, str], None]
"""Is given the href of a link, the text behind it, and the size and time that attributes there tell."""


class _Scratch(HTMLParser):
    """What html.parser says of one tag."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[str, Attributes]] = []

    def handle_starttag(self, tag: str, attrs: Attributes) -> None:
        self.said.append((tag, attrs))

    def handle_endtag(self, tag: str) -> None:
        self.said.append((f"/{tag}", []))

    def handle_startendtag(self, tag: str, attrs: Attributes) -> None:
        self.said.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.said.append(("", []))


class _Whole(HTMLParser):
    """html.parser for what is not plain, telling the reader."""

    def __init__(self, reader: Links) -> None:
        super().__init__()
        self.reader = reader

    def handle_starttag(self, tag: str, attrs: Attributes) -> None:
        self.reader.tag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        self.reader.tag(f"/{tag}", [])

    def handle_data(self, data: str) -> None:
        self.reader.text(data)

    @property
    def idle(self) -> bool:
        """Whether it is between tags, and has told everything."""
        return not self.rawdata and self.cdata_elem is None


class Links:
    """A reader of a page; *emit* is called for each link, *base* for <base href>."""

    def __init__(self, emit: Emit, base: Callable[[str], None], *, plain: bool = True) -> None:
        self.emit = emit
        self.base = base
        self.plain = plain
        """Whether plain tags are read here; for the test that it makes no difference."""
        self._actions: dict[str, int] = {}
        self._shapes: dict[tuple[str, ...], tuple[str, list[tuple[str, int]]] | None] = {}
        self._whole = _Whole(self)
        self._href: str | None = None
        self._tail = ""
        self._size = self._time = ""
        self._listening = False

    def read(self, page: Page) -> bool:
        """Read all of *page*; False when it is broken so badly that it was given up."""
        body, charset, start = page.body, page.charset, 0
        try:
            while start < len(body):
                end = body.find(b"<", start + _PIECE)
                end = len(body) if end < 0 else end
                self._feed(body[start:end].decode(charset, "surrogateescape"))
                if len(self._whole.rawdata) > _PENDING:
                    return False
                start = end
        except (AssertionError, ValueError):
            # html.parser's words for "<![x" with an unknown x, and for a character reference of 5,000 digits.
            return False
        self._flush()
        return True

    def _feed(self, text: str) -> None:
        if not self.plain or not self._whole.idle:
            self._whole.feed(text)
            return
        pieces = text.split("<")
        if pieces[0]:
            self.text(pieces[0])
        actions = self._actions
        for number, piece in enumerate(pieces):
            if not number:
                continue
            tag, closed, after = piece.partition(">")
            action = actions.get(tag) if closed else _ODD
            if action is None:
                action = self._new(tag)
            if action == _END:
                self._listening = self._href is not None
            elif action == _CELL:
                if self._listening and len(self._tail) < _TAIL:
                    self._tail += " "
            elif action == _ROW:
                self._listening = False
            elif action == _ODD:
                self._whole.feed("<" + "<".join(pieces[number:]))
                return
            if after and self._listening and len(self._tail) < _TAIL:
                self._tail += after[:_TAIL]

    def _new(self, tag: str) -> int:
        """Return what to do about a tag that was not seen before, and do it if that is in its values."""
        parts = tag.split('"', _QUOTES)
        if len(parts) > _QUOTES:
            return _ODD
        shape = tuple(parts[::2])
        if shape not in self._shapes:
            if len(self._shapes) > _KNOWN:
                self._shapes.clear()
            self._shapes[shape] = self._shape(shape) if len(parts) % 2 else None
        known = self._shapes[shape]
        if known is None:
            return _ODD
        name, places = known
        if places:
            attributes: Attributes = [
                (key, value if "&" not in (value := parts[at]) else unescape(value)) for key, at in places
            ]
            self.tag(name, attributes)
            return _VALUES
        action = _END if name == "/a" else _ROW if name in _ROWS else _CELL if name in _CELLS else _NOTHING
        if len(self._actions) > _KNOWN:
            self._actions.clear()
        if name == "a":
            # A link without an href: what stood before it is over.
            action = _ROW
        self._actions[tag] = action
        return action

    @staticmethod
    def _shape(shape: tuple[str, ...]) -> tuple[str, list[tuple[str, int]]] | None:
        """Return the name of a tag and which of its quoted values matter, as (attribute, number); None: not plain."""
        first = shape[0].removeprefix("/")[:1]
        if not (first.isascii() and first.isalpha()) or any("'" in part for part in shape):
            return None
        scratch = _Scratch()
        marks = [f"{number}" for number in range(1, 2 * len(shape) - 2, 2)]
        text = shape[0] + "".join(f'"{mark}"{part}' for mark, part in zip(marks, shape[1:], strict=True))
        scratch.feed(f"<{text}>")
        if len(scratch.said) != 1 or scratch.rawdata or not scratch.said[0][0]:
            return None
        name, attributes = scratch.said[0]
        if name.removeprefix("/") in _RAW:
            return None
        wanted: list[tuple[str, int]] = []
        quoted = [value for _, value in attributes if value in marks]
        if quoted != marks and not name.startswith("/"):
            return None
        for key, value in attributes:
            if _matters(name, key):
                if value not in marks:
                    # Without quotes, or without a value: rare enough for html.parser.
                    return None
                wanted.append((key, int(value)))
        return name, wanted

    def tag(self, name: str, attributes: Iterable[tuple[str, str | None]]) -> None:
        """Take a tag as html.parser understood it."""
        if name == "/a":
            self._listening = self._href is not None
            return
        if name in _ROWS:
            self._listening = False
        elif name in _CELLS:
            self.text(" ")
        values: dict[str, str] = {}
        for key, value in attributes:
            if value is not None:
                values.setdefault(key, value)
        if name == "a":
            if "href" in values:
                self._flush()
                self._href = values["href"]
            else:
                self._listening = False
        elif name == "time":
            self._time = self._time or values.get("datetime", "")
        elif name == "base":
            if "href" in values:
                self.base(values["href"])
        elif name in ("td", "span"):
            for key in _SIZES:
                self._size = self._size or values.get(key, "")

    def text(self, data: str) -> None:
        """Take text."""
        if self._listening and len(self._tail) < _TAIL:
            self._tail += data[:_TAIL]

    def _flush(self) -> None:
        href, self._href = self._href, None
        if href is not None:
            self.emit(href, self._tail, self._size, self._time)
        self._tail = self._size = self._time = ""
        self._listening = False


def _matters(tag: str, attribute: str) -> bool:
    if attribute == "href":
        return tag in ("a", "base")
    return attribute == "datetime" if tag == "time" else attribute in _SIZES and tag in ("td", "span")


__all__ = ["Links"]
