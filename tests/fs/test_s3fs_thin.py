"""The parts of the store that need no server: signatures, XML, times, checksums, headers, pacing."""

from __future__ import annotations

import base64
import datetime
import errno
import hashlib
import itertools
import random
import zlib
from typing import Any

import pytest
from badserver import clean_environment, options

from pyfusekit.cache import Pacer
from pyfusekit.core import Secret
from pyfusekit.fs.s3fs.options import S3Options
from pyfusekit.fs.s3fs.remote import answers, extras, sigv4, xmlpages
from pyfusekit.fs.s3fs.remote.calls import Calls
from pyfusekit.fs.s3fs.remote.client import BodyFile
from pyfusekit.fs.s3fs.remote.errors import StoreError
from pyfusekit.fs.s3fs.remote.exchange import Connections
from pyfusekit.fs.s3fs.remote.store import ABSENT, Attributes, Bytes, Condition, Object
from pyfusekit.fs.s3fs.remote.thin import Target, Thin

MIB = 1 << 20
NOTHING = Attributes()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    clean_environment(monkeypatch, tmp_path)


# Signatures.


@pytest.mark.parametrize("token", ["", "session/token+="])
@pytest.mark.parametrize(
    ("method", "key", "query", "headers"),
    [
        ("GET", "plain", [], {}),
        ("GET", "a b/ö+%41&=?#/\U0001f600~.txt", [("versionId", "x/y+z=")], {"range": "bytes=0-1", "if-match": '"e"'}),
        ("GET", "a//b/../c/./", [], {}),
        ("PUT", "k", [("partNumber", "1"), ("uploadId", "u&v w")], {"content-type": "text/plain;  x=1", "x-amz-meta-a": " b "}),
        ("GET", "", [("prefix", "ö /"), ("list-type", "2"), ("delimiter", "/"), ("continuation-token", "a+b=")], {}),
        ("DELETE", "k", [], {"x-amz-request-payer": "requester"}),
    ],
)
def test_signature_is_the_one_botocore_makes(
    method: str, key: str, query: list[tuple[str, str]], headers: dict[str, str], token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore import auth as boto
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    moment = datetime.datetime(2026, 11, 22, 10, 11, 12, tzinfo=datetime.UTC)
    signer = sigv4.Signer("bucket.example:9000", "eu-west-1", sigv4.Clock(moment.timestamp))
    path, text = f"/{sigv4.encode_path(key)}", sigv4.encode_query(query)
    ours = dict(headers)
    signer.sign(sigv4.Keys("AKID", "secret", token), method, path, text, ours, sigv4.UNSIGNED)

    class Auth(boto.S3SigV4Auth):  # type: ignore[misc]
        def headers_to_sign(self, request: Any) -> Any:
            # botocore also signs what S3 does not ask for.
            chosen = super().headers_to_sign(request)
            for name in ("range", "if-match"):
                del chosen[name]
            return chosen

        def payload(self, request: Any) -> str:
            return sigv4.UNSIGNED

    monkeypatch.setattr(boto, "get_current_datetime", lambda: moment)
    url = f"https://bucket.example:9000{path}"
    request = AWSRequest(method, f"{url}?{text}" if text else url, headers=headers)
    Auth(Credentials("AKID", "secret", token or None), "s3", "eu-west-1").add_auth(request)
    assert ours["authorization"] == request.headers["Authorization"]
    assert ours["x-amz-date"] == request.headers["X-Amz-Date"]


async def test_header_of_two_lines_is_not_sent() -> None:
    import aiohttp

    async def keys() -> sigv4.Keys:
        return sigv4.Keys("a", "s")

    target = Target("http", "127.0.0.1:1", "/bucket", "")
    connections = Connections("http", "127.0.0.1:1", None, 1.0)
    async with aiohttp.ClientSession() as http:
        thin = Thin(target, sigv4.Signer("127.0.0.1:1", "", sigv4.Clock()), keys, http, connections)
        for value in ("one\r\nx-amz-acl: public-read", "one\ntwo"):
            with pytest.raises(ValueError, match="two lines"):
                await thin.send("PUT", "PUT", "k", "", {"x-amz-meta-a": value})


def test_day_and_secret_have_each_their_key() -> None:
    times = iter([0.0, 86400.0, 86400.0])
    signer = sigv4.Signer("h", "r", sigv4.Clock(lambda: next(times)))
    found = []
    for secret in ("one", "one", "two"):
        headers: dict[str, str] = {}
        signer.sign(sigv4.Keys("a", secret), "GET", "/", "", headers, sigv4.EMPTY)
        found.append(headers["authorization"].split("Signature=")[1])
    assert len(set(found)) == 3


# XML.


def listing(inside: str, top: str = "<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>") -> bytes:
    return (
        f'<?xml version="1.0"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{top}{inside}</ListBucketResult>'
    ).encode()


def row(key: str, pad: str = "", more: str = "") -> str:
    return pad.join(
        [
            "",
            "<Contents>",
            f"<Key>{key}</Key>",
            "<LastModified>2026-11-22T10:11:12.345Z</LastModified>",
            "<ETag>&quot;e1&quot;</ETag>",
            "<Size>7</Size>",
            f"{more}</Contents>",
            "",
        ]
    )


WHEN = 1_795_342_272_345_000_000


def test_page_is_decoded() -> None:
    owner = "<Owner><ID>Key</ID><DisplayName/></Owner><StorageClass>GLACIER</StorageClass>"
    found = xmlpages.page(
        "LIST",
        listing(
            row("a%2Bb+c%25/%E6%97%A5") + "<CommonPrefixes><Prefix>d+/</Prefix></CommonPrefixes>" + row("z", more=owner),
            "<Prefix>p</Prefix><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>"
            "<NextContinuationToken>t&amp;u+</NextContinuationToken>",
        ),
    )
    assert found.objects == [Object("a+b c%/日", 7, WHEN, "e1"), Object("z", 7, WHEN, "e1", "GLACIER")]
    assert (found.prefixes, found.token) == (["d /"], "t&u+")


def test_page_with_space_between_its_elements_is_the_same() -> None:
    pad = "\n    "
    assert xmlpages.page("LIST", listing(pad + row("a%20", pad) + pad)).objects == [Object("a ", 7, WHEN, "e1")]


def test_keys_that_are_not_encoded_keep_their_spaces_and_signs() -> None:
    found = xmlpages.page("LIST", listing("\n  " + row(" a+%41 &amp;", "\n  "), "<IsTruncated>false</IsTruncated>"))
    assert found.objects == [Object(" a+%41 &", 7, WHEN, "e1")]


def test_elements_after_the_keys_count_too() -> None:
    found = xmlpages.page(
        "LIST",
        listing(
            row("a+b") + "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
            "<EncodingType>url</EncodingType>",
            "",
        ),
    )
    assert (found.objects[0].key, found.token) == ("a b", "t")


def test_missing_etag_is_not_that_of_the_key_before() -> None:
    bare = "<Contents><Key>b</Key><Size>1</Size><LastModified>2026-11-22T10:11:12Z</LastModified></Contents>"
    found = xmlpages.page("LIST", listing(row("a") + bare))
    assert [item.etag for item in found.objects] == ["e1", ""]


OWNER = "<Owner><ID>Key</ID><DisplayName/></Owner>"
RESTORED = "<RestoreStatus><IsRestoreInProgress>false</IsRestoreInProgress></RestoreStatus>"


@pytest.mark.parametrize(
    ("inside", "simple"),
    [
        (row("a") + row("b"), True),
        (row("a", more=OWNER) + row("b%20%3C", more="<StorageClass>X</StorageClass>" + OWNER), False),
        (row("a", more=OWNER + RESTORED) + row("b", more=RESTORED), True),
        (row("a", more="<ChecksumAlgorithm>A</ChecksumAlgorithm><ChecksumAlgorithm>B</ChecksumAlgorithm>") + row("b"), True),
        (
            row("a", more="<StorageClass>X</StorageClass>") + row("b") + "<CommonPrefixes><Prefix>c/</Prefix></CommonPrefixes>",
            True,
        ),
        (row("a") + "<CommonPrefixes><Prefix>c/</Prefix></CommonPrefixes>" + row("b"), False),
        (row("a", "\n") + row("b", "\n"), False),
        (row("a") + row("b").replace("Contents>", "Contents >"), False),
        (row("a") + row("b").replace("<Contents>", "<Contents x='y'>"), False),
        (row("a").replace("<Key>a</Key>", "<Key><![CDATA[a]]></Key>") + row("b"), False),
        (row("a") + "<!-- <Contents> -->" + row("b"), False),
        (row("a", more="<ETag>two</ETag>") + row("b"), False),
        (row("a", more="<StorageClass/>") + row("b"), False),
        (row("a").replace("<ETag>&quot;e1&quot;</ETag>", "") + row("b"), False),
        (row("a") + row("b").replace("<ETag>&quot;e1&quot;</ETag>", ""), True),
        ("", False),
    ],
)
def test_keys_that_look_alike_are_read_as_expat_reads_them(inside: str, simple: bool) -> None:
    data = listing(inside)
    found = xmlpages._alike(data)
    if found is not None and xmlpages._elements(found[1], exact=False).rows:
        found = None
    assert (found is not None) == simple
    parsed = xmlpages._elements(data, exact=True)
    if found is not None:
        assert found[0] == parsed.rows
        rest = xmlpages._elements(found[1], exact=True)
        assert (rest.top, rest.prefixes, rest.rows) == (parsed.top, parsed.prefixes, [])
    page = xmlpages.page("LIST", data)
    assert len(page.objects) == len(parsed.rows)
    assert page.prefixes == (["c/"] if "c/" in inside else [])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"It works!",
        b"<html><body>hello</body></html>",
        b"<!DOCTYPE html><html></html>",
        listing(row("a"))[:-20],
        listing("<Contents><Key>a</Key></Contents>"),
        listing("<Contents><Size>1</Size></Contents>"),
        listing("<Contents><Key>a</Key><Size>x</Size></Contents>"),
        b'<!DOCTYPE x [<!ENTITY a "b">]>' + listing(row("&a;"))[22:],
    ],
)
def test_what_is_no_listing_is_eio(body: bytes) -> None:
    with pytest.raises(StoreError, match="not S3's") as info:
        xmlpages.page("LIST", body)
    assert (info.value.errno, info.value.code) == (errno.EIO, "NotS3")


def test_truncated_page_without_a_token_is_eio_and_no_short_listing() -> None:
    with pytest.raises(StoreError, match="there are more names") as info:
        xmlpages.page("LIST", listing(row("a"), "<IsTruncated>true</IsTruncated>"))
    assert info.value.errno == errno.EIO


def test_error_is_read_and_other_documents_are_none() -> None:
    body = b"<Error><Code>C</Code><Message>some\n words</Message><RequestId>R</RequestId><Region>eu</Region></Error>"
    assert xmlpages.said(body) == xmlpages.Said("C", "some\n words", "R", "eu")
    assert xmlpages.said(b"<Result><Error>x</Error></Result>") is None
    assert xmlpages.said(b"an <Error> in a file") is None


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("2026-11-22T10:11:12.345Z", WHEN),
        ("2026-11-22T10:11:12Z", WHEN // 10**9 * 10**9),
        ("2026-11-22T10:11:12.3Z", WHEN // 10**9 * 10**9 + 3 * 10**8),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("", 0),
        ("yesterday", 0),
    ],
)
def test_time_of_a_listing(text: str, nanoseconds: int) -> None:
    assert xmlpages.iso_ns(text) == nanoseconds


def test_time_of_a_header() -> None:
    assert xmlpages.http_ns("Sun, 22 Nov 2026 10:11:12 GMT") == WHEN // 10**9 * 10**9
    assert [xmlpages.http_ns(text) for text in ("", "now", "Sun, 22 Foo 2026 10:11:12 GMT")] == [0, 0, 0]


# Checksums and headers.


def test_checksum_of_a_whole_is_that_of_its_parts() -> None:
    chance = random.Random(3)
    data = chance.randbytes(100_000)
    for cuts in ([], [0], [1], [50_000], [50_000, 50_000], [7, 70, 700, 7000, 70_000]):
        edges = [0, *cuts, len(data)]
        parts = [data[start:end] for start, end in itertools.pairwise(edges)]
        assert answers.crc32_of_parts((zlib.crc32(part), len(part)) for part in parts) == zlib.crc32(data)


def test_checksum_of_checksums_is_not_compared() -> None:
    value = answers.crc32_header(0x01020304)
    assert answers.crc32_said({"x-amz-checksum-crc32": value}) == 0x01020304
    assert answers.crc32_said({"x-amz-checksum-crc32": value, "x-amz-checksum-type": "FULL_OBJECT"}) == 0x01020304
    for said in (
        {},
        {"x-amz-checksum-crc32": f"{value}-3"},
        {"x-amz-checksum-crc32": value, "x-amz-checksum-type": "COMPOSITE"},
        {"x-amz-checksum-crc32": "AA"},
    ):
        assert answers.crc32_said(said) is None


def test_head_is_read_in_any_case_of_its_names() -> None:
    head = answers.head_of(
        "HEAD",
        "k",
        {
            "Content-Length": "7",
            "ETag": 'W/"e1"',
            "Last-Modified": "Sun, 22 Nov 2026 10:11:12 GMT",
            "Content-Type": "text/plain",
            "X-Amz-Meta-Mode": "33188",
            "x-amz-meta-ö": "=?UTF-8?B?w7Y=?=",
            "x-amz-storage-class": "GLACIER",
            "X-Amz-Version-Id": "v",
            "x-amz-request-id": "R",
            "Server": "s",
        },
    )
    assert head.item == Object("k", 7, WHEN // 10**9 * 10**9, "e1", "GLACIER")
    assert head.metadata == {"mode": "33188", "ö": "ö"}
    assert head.headers == {"content-type": "text/plain", "x-amz-storage-class": "GLACIER", "x-amz-version-id": "v"}


@pytest.mark.parametrize(
    "attributes",
    [
        Attributes({"a": "ö"}),
        Attributes({"a": "one\r\nx-amz-acl: public-read"}),
        Attributes({"a b": "c"}),
        Attributes({"": "c"}),
        Attributes({"a": " b"}),
        Attributes({}, {"content-type": "\x00"}),
        Attributes({}, {"x-amz-acl": "public-read"}),
    ],
)
def test_what_a_header_cannot_hold_is_einval(attributes: Attributes) -> None:
    with pytest.raises(StoreError) as info:
        extras.described("PUT", attributes)
    assert info.value.errno == errno.EINVAL


KEY = bytes(range(32))


@pytest.mark.parametrize("given", [base64.b64encode(KEY).decode(), "0123456789abcdef" * 2])
def test_customers_key_is_32_bytes_or_their_base64(given: str) -> None:
    raw = KEY if len(given) != 32 else given.encode()
    headers = extras.Extras(S3Options(sse_c_key=Secret(given))).read
    assert headers["x-amz-server-side-encryption-customer-key"] == base64.b64encode(raw).decode()
    assert headers["x-amz-server-side-encryption-customer-key-md5"] == base64.b64encode(hashlib.md5(raw).digest()).decode()


@pytest.mark.parametrize("given", ["short", "ö" * 20, base64.b64encode(KEY[:31]).decode()])
def test_other_customers_keys_are_refused(given: str) -> None:
    with pytest.raises(ValueError, match="neither 32 bytes"):
        extras.Extras(S3Options(sse_c_key=Secret(given)))


def test_body_as_a_file_can_be_read_again_from_anywhere() -> None:
    data = random.Random(1).randbytes(3 * MIB + 5)
    file = BodyFile(Bytes(data))
    assert file.seek(0, 2) == file.tell() == len(data)
    assert file.read() == b""
    for start, size in ((0, 10), (10, MIB), (2 * MIB - 1, 2), (5, -1), (3 * MIB, 100)):
        file.seek(start)
        assert file.read(size) == (data[start:] if size < 0 else data[start : start + size])


def test_every_condition_has_its_header() -> None:
    assert extras.conditions(ABSENT, match=True, absent=True) == {"if-none-match": "*"}
    assert extras.conditions(Condition("e"), match=True, absent=True) == {"if-match": '"e"'}
    assert extras.conditions(Condition("e"), match=False, absent=True) == {}
    assert extras.conditions(ABSENT, match=True, absent=False) == {}


def test_options_become_headers() -> None:
    chosen = extras.Extras(
        options(
            "http://x",
            requester_pays=True,
            expected_bucket_owner="1234",
            storage_class="STANDARD_IA",
            sse="aws:kms",
            sse_kms_key="arn:k",
        )
    )
    every = {"x-amz-request-payer": "requester", "x-amz-expected-bucket-owner": "1234"}
    encrypted = {"x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": "arn:k"}
    assert chosen.every == chosen.read == chosen.part == every
    assert chosen.copied == every | encrypted
    assert chosen.new == every | encrypted | {"x-amz-storage-class": "STANDARD_IA"}
    assert chosen.source == {"x-amz-source-expected-bucket-owner": "1234"}


# Pacing.


def test_pacer_slows_everybody_once_and_recovers() -> None:
    now = 100.0
    pacer = Pacer(lambda: now)
    assert pacer.delay() == pacer.delay() == 0
    for _ in range(20):
        pacer.slow()
    assert pacer.interval == Pacer.FIRST
    assert [pacer.delay() for _ in range(4)] == pytest.approx([0, 0.01, 0.02, 0.03])
    for _ in range(20):
        now += Pacer.SETTLE
        pacer.slow()
    assert pacer.interval == Pacer.MOST
    for _ in range(200):
        pacer.done()
    assert pacer.interval == 0


async def test_slowdown_makes_the_next_requests_wait_for_their_turn() -> None:
    calls = Calls(64, 30.0)
    delays: list[float] = []

    async def refuse() -> None:
        if not delays:
            delays.append(calls.pacer.interval)
            raise StoreError(errno.EBUSY, "x", code="SlowDown", status=503, retryable=True)
        delays.append(calls.pacer.interval)

    await calls.run("PutObject", "k", 0, refuse)
    assert delays[0] == 0
    assert delays[1] == Pacer.FIRST
