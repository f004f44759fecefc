"""What headers say of ranges and versions, and the parts of multipart/byteranges, cut anywhere."""

from __future__ import annotations

import pytest

from pyfusekit.fs.httpfs.contents.ranges import HEAD_LIMIT, Multipart, Span, asked, boundary_of, content_range, unsatisfied
from pyfusekit.fs.httpfs.contents.resource import (
    cache_key,
    describe,
    encoded,
    http_time,
    length_of,
    other_version,
    strongest,
    tells,
    validator_of,
)
from pyfusekit.fs.httpfs.values import Validator

OLD = "Mon, 01 Jan 2024 10:00:00 GMT"
NOW = "Mon, 01 Jan 2024 10:01:00 GMT"


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("bytes 0-99/200", Span(0, 100, 200)),
        ("bytes 5-5/*", Span(5, 6, None)),
        (" Bytes 5-5/6 ", Span(5, 6, 6)),
        ("bytes=0-0/1", Span(0, 1, 1)),
        ("bytes 5-4/10", None),
        ("bytes 0-10/10", None),
        ("bytes */10", None),
        ("bytes -5-9/10", None),
        ("bytes 0-9/10, 11-12/10", None),
        ("bytes 0-9999999999999999999999/*", None),
        ("bytes \u0660-\u0669/10", None),
        ("items 0-9/10", None),
        ("", None),
    ],
)
def test_content_range_is_read_or_refused(text: str, span: Span | None) -> None:
    assert content_range(text) == span


def test_refused_range_tells_the_size() -> None:
    assert unsatisfied("bytes */17") == 17
    assert unsatisfied("bytes 0-1/17") is None


def test_range_is_asked_for_inclusively() -> None:
    assert asked(0, 1) == "bytes=0-0"


def test_boundary_is_read_with_and_without_quotes() -> None:
    assert boundary_of({"content-type": "multipart/byteranges; boundary=abc"}) == b"abc"
    assert boundary_of({"content-type": 'Multipart/Byteranges; charset=x; boundary="a b:c"'}) == b"a b:c"
    assert boundary_of({"content-type": "multipart/byteranges"}) == b""
    assert boundary_of({"content-type": "text/plain; boundary=abc"}) is None
    assert boundary_of({}) is None


BODY = (
    b"preamble\r\n--B\r\nContent-Type: text/plain\r\nContent-Range: bytes 10-14/100\r\n\r\nhello"
    b"\r\n--B\r\ncontent-range: bytes 2-4/100\r\n\r\n--B\r\n--B--\r\nepilogue"
)


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_parts_are_found_however_they_are_cut(step: int) -> None:
    parts = Multipart(b"B")
    found: dict[int, bytes] = {}
    for at in range(0, len(BODY), step):
        for span, position, piece in parts.feed(BODY[at : at + step]):
            found[span.start] = found.get(span.start, b"") + piece
            assert span.start <= position < span.end
    # The second part's bytes look like the delimiter: its length says where it ends.
    assert found == {10: b"hello", 2: b"--B"}
    assert parts.ended


@pytest.mark.parametrize(
    "body",
    [
        b"--B\r\nContent-Type: a/b\r\n\r\nxxxxx",
        b"--B\r\nContent-Range: bytes 9-1/5\r\n\r\nxxxxx",
        b"x" * (HEAD_LIMIT + 1),
        b"--B\r\nContent-Range: bytes 0-1/5\r\n\r\nabTOO LONG\r\n--B\r\nContent-Range: bytes 2-2/5\r\n\r\nc",
    ],
)
def test_parts_that_make_no_sense_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="part"):
        list(Multipart(b"B").feed(body))


def test_boundary_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="boundary"):
        Multipart(b"")


def test_dates_are_read_in_their_three_forms() -> None:
    for text in ("Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"):
        assert http_time(text) == 784111777
    assert [http_time(text) for text in ("", "yesterday", "99 99 99", "Sun, 99 Nov 99999999 08:49:37 GMT")] == [None] * 4


def test_length_is_told_only_by_a_plain_answer() -> None:
    assert length_of({"content-length": "12"}) == 12
    assert length_of({"content-length": "12", "content-encoding": "identity"}) == 12
    for headers in (
        {},
        {"content-length": "12", "content-encoding": "gzip"},
        {"content-length": "12", "transfer-encoding": "chunked"},
        {"content-length": "-1"},
        {"content-length": "\u0661\u0662"},
        {"content-length": "9" * 30},
    ):
        assert length_of(headers) is None
    assert encoded({"content-encoding": "Identity, GZip"}) == "gzip"


def test_modification_time_is_strong_after_a_minute() -> None:
    assert validator_of({"last-modified": OLD, "date": NOW}) == Validator("", OLD, True)
    assert not validator_of({"last-modified": OLD, "date": OLD}).settled
    assert not validator_of({"last-modified": OLD}).settled
    assert not validator_of({"last-modified": "soon", "date": NOW}).settled


def test_versions_are_compared_strictly_where_if_range_is_not_sent() -> None:
    weak = Validator('W/"a"', OLD, True)
    assert other_version(weak, Validator('W/"a"', NOW, True))
    assert other_version(weak, Validator('W/"b"', OLD, True))
    assert not other_version(weak, Validator('"a"', OLD, True))
    assert not other_version(Validator('"a"', OLD, True), Validator('"a"', NOW, True))
    assert other_version(Validator("", OLD, True), Validator("", NOW, True))
    assert tells(weak, Validator('"b"', "", False))
    assert not tells(weak, Validator("", OLD, True))
    assert tells(Validator(), Validator())


def test_version_is_named_by_what_lasts() -> None:
    def key(headers: dict[str, str], hashes: tuple[tuple[str, str], ...] = ()) -> str:
        return cache_key(describe("u", "u", 1, headers, ranges=None)._replace(hashes=hashes))

    assert key({"etag": '"a"'}) == '"a"'
    assert key({"last-modified": OLD, "date": NOW}) == OLD
    assert key({"etag": 'W/"a"', "last-modified": OLD, "date": NOW}) == f'W/"a" {OLD}'
    assert key({"etag": 'W/"a"'}) == key({"last-modified": OLD, "date": OLD}) == key({}) == ""
    assert key({"etag": '"a"'}, (("sha-1", "AB"), ("SHA-256", "CD"))) == "sha256:cd"


def test_strongest_digest_is_the_one_that_counts() -> None:
    assert strongest((("md5", "1"), ("sha-512", "2"), ("sha3-256", "3"))) == ("sha512", "2")
    assert strongest((("sha384", "1"), ("sha3-384", "2"))) == ("sha384", "1")
    assert strongest((("crc32", "1"), ("sha-256", ""))) is None
