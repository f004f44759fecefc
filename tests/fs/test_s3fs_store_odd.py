"""The thin path when the store says something odd: another region, another time, other credentials; proxies, TLS, uploads."""

from __future__ import annotations

import asyncio
import datetime
import errno
import hashlib
import ipaddress
import random
from pathlib import Path
from typing import Any

import pytest
from badserver import BadServer, DeafServer, clean_environment, error, error_body, hang_up, plain, store_on, written

from pyfusekit.core import Duration, Url
from pyfusekit.fs.s3fs.options import S3Options
from pyfusekit.fs.s3fs.remote import sigv4
from pyfusekit.fs.s3fs.remote.client import Client
from pyfusekit.fs.s3fs.remote.errors import StoreError
from pyfusekit.fs.s3fs.remote.store import Attributes, Bytes, Object
from pyfusekit.fs.s3fs.remote.thin import Target

MIB = 1 << 20
NOTHING = Attributes()
PAGE = plain(
    200,
    b"<ListBucketResult><Name>bucket</Name><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated></ListBucketResult>",
)


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    clean_environment(monkeypatch, tmp_path)


# The thin path, when the store says something odd.


async def test_region_that_the_store_names_is_signed_from_then_on() -> None:
    wrong = error(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>")
    async with BadServer(wrong, PAGE) as bad, store_on(bad) as store:
        await store.list("")
        await store.list("")
        assert store.link.use_thin
    assert [asked.credential[2] for asked in bad.seen] == ["us-east-1", "eu-west-1", "eu-west-1"]


async def test_region_in_a_header_does_as_well() -> None:
    moved = plain(301, error_body("PermanentRedirect"), "x-amz-bucket-region: eu-west-1\r\n")
    async with BadServer(moved, written()) as bad, store_on(bad) as store:
        await store.put("k", Bytes(b"x"), NOTHING)
    assert [asked.credential[2] for asked in bad.seen] == ["us-east-1", "eu-west-1"]


async def test_region_that_only_a_listing_names_is_found_for_a_head_too() -> None:
    wrong = error(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>")
    async with BadServer(plain(400), wrong, plain(200, b"", 'ETag: "e"\r\n')) as bad, store_on(bad) as store:
        assert (await store.head("k")).item.etag == "e"
        assert store.reported == []  # type: ignore[attr-defined]
    assert [asked.credential[2] for asked in bad.seen] == ["us-east-1", "us-east-1", "eu-west-1"]


async def test_redirect_to_nowhere_is_an_error_and_no_loop() -> None:
    async with BadServer(error(301, "PermanentRedirect")) as bad, store_on(bad) as store:
        store.attempts = 2
        with pytest.raises(StoreError):
            await store.list("")
        assert not store.link.use_thin
    assert len(bad.seen) < 10


async def test_region_that_moves_for_ever_is_an_error() -> None:
    one = error(400, "AuthorizationHeaderMalformed", "<Region>r1</Region>")
    two = error(400, "AuthorizationHeaderMalformed", "<Region>r2</Region>")
    async with BadServer(*[one, two] * 40) as bad, store_on(bad) as store:
        with pytest.raises(StoreError, match="AuthorizationHeaderMalformed") as info:
            await store.list("")
    assert info.value.errno == errno.EIO
    assert len(bad.seen) < 20


async def test_clock_that_is_wrong_is_corrected_by_the_stores() -> None:
    skewed = error(403, "RequestTimeTooSkewed", ahead=7200)
    async with BadServer(skewed, PAGE) as bad, store_on(bad) as store:
        await store.list("")
        await store.list("")
    first, second, third = (datetime.datetime.strptime(asked["x-amz-date"], "%Y%m%dT%H%M%SZ") for asked in bad.seen)
    assert (second - first).total_seconds() == pytest.approx(7200, abs=30)
    assert (third - second).total_seconds() < 30


async def test_rare_calls_follow_the_corrected_clock_too() -> None:
    skewed = error(403, "RequestTimeTooSkewed", ahead=7200)
    none = plain(200, b"<ListMultipartUploadsResult></ListMultipartUploadsResult>")
    async with BadServer(skewed, PAGE, none) as bad, store_on(bad) as store:
        await store.list("")
        assert await store.uploads("") == []
    _, second, third = (datetime.datetime.strptime(asked["x-amz-date"], "%Y%m%dT%H%M%SZ") for asked in bad.seen)
    assert abs((third - second).total_seconds()) < 30


async def test_clock_that_stays_wrong_is_eacces() -> None:
    async with BadServer(error(403, "RequestTimeTooSkewed")) as bad, store_on(bad) as store:
        with pytest.raises(StoreError, match="RequestTimeTooSkewed") as info:
            await store.list("")
    assert info.value.errno == errno.EACCES
    assert len(bad.seen) == 1


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId"])
async def test_credentials_renewed_elsewhere_are_taken_up(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with BadServer(PAGE, error(400, code), PAGE) as bad, store_on(bad) as store:
        await store.list("")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "renewed")
        await store.list("")
        assert store.reported == []  # type: ignore[attr-defined]
    assert [asked.credential[0] for asked in bad.seen] == ["testing", "testing", "renewed"]


async def test_credentials_that_nobody_renewed_are_eacces_and_reported() -> None:
    async with BadServer(PAGE, error(400, "ExpiredToken")) as bad, store_on(bad) as store:
        await store.list("")
        with pytest.raises(StoreError, match="ExpiredToken") as info:
            await store.list("p/")
        (failure,) = store.reported  # type: ignore[attr-defined]
    assert info.value.errno == errno.EACCES
    assert failure[1:] == ("ListObjectsV2", "p/")
    assert failure[0].request_id == "R4"
    assert len(bad.seen) == 2


async def test_rare_calls_take_up_renewed_credentials_too(monkeypatch: pytest.MonkeyPatch) -> None:
    none = plain(200, b"<ListMultipartUploadsResult></ListMultipartUploadsResult>")
    async with BadServer(error(400, "ExpiredToken"), none) as bad, store_on(bad) as store:
        await store.who()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "renewed")
        assert await store.uploads("") == []
    assert [asked.credential[0] for asked in bad.seen] == ["testing", "renewed"]


async def test_refused_head_finds_out_why_and_takes_up_renewed_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    silent, found = plain(400), plain(200, b"", 'ETag: "e"\r\n')
    async with BadServer(silent, error(400, "ExpiredToken"), found) as bad, store_on(bad) as store:
        await store.who()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "renewed")
        assert (await store.head("k")).item.etag == "e"
    assert [asked.credential[0] for asked in bad.seen] == ["testing", "testing", "renewed"]


async def test_requests_of_a_closed_store_fail() -> None:
    async with BadServer(PAGE) as bad:
        async with store_on(bad) as store:
            await store.list("")
        await store.close()
        for request in (store.list(""), store.create_upload("k", NOTHING), store.uploads("")):
            with pytest.raises(StoreError, match="closed"):
                await request
    assert len(bad.seen) == 1


async def test_proxy_in_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with BadServer(PAGE) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)

        class Elsewhere:
            url = "http://s3.example.invalid:9000"

        async with store_on(Elsewhere) as store:
            await store.list("")
            assert not store.link.use_thin
    assert proxy.seen[0].path.startswith("http://s3.example.invalid:9000/bucket")


async def test_anonymous_requests_are_not_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with BadServer(PAGE) as bad, store_on(bad, anonymous=True) as store:
        await store.list("")
        assert store.link.use_thin
    assert not bad.seen[0].headers.keys() & {"authorization", "x-amz-date"}


async def test_small_bodies_are_hashed_and_large_ones_not_unless_the_store_wants_it() -> None:
    async with BadServer(written()) as bad, store_on(bad) as store:
        await store.put("k", Bytes(b"x"), NOTHING)
        await store.put("k", Bytes(b"x" * MIB), NOTHING)
    assert [asked["x-amz-content-sha256"] for asked in bad.seen] == [hashlib.sha256(b"x").hexdigest(), "UNSIGNED-PAYLOAD"]
    refusing = error(400, "XAmzContentSHA256Mismatch")
    async with BadServer(refusing, written()) as bad, store_on(bad) as store:
        for _ in range(2):
            await store.put("k", Bytes(b"x" * MIB), NOTHING)
        assert store.features.checksums
    digest = hashlib.sha256(b"x" * MIB).hexdigest()
    assert [asked["x-amz-content-sha256"] for asked in bad.seen] == ["UNSIGNED-PAYLOAD", digest, digest]
    assert [len(asked.body) for asked in bad.seen] == [MIB] * 3


async def test_requests_that_could_have_a_body_say_that_they_have_none() -> None:
    copied = plain(200, b"<CopyObjectResult><ETag>e2</ETag></CopyObjectResult>")
    async with BadServer(written(), copied, PAGE) as bad, store_on(bad) as store:
        await store.delete("k")
        await store.copy(Object("k", 1, 0, "e1"), "k2", None)
        await store.list("")
        assert store.link.use_thin
    assert [(asked.method, asked.headers.get("content-length")) for asked in bad.seen] == [
        ("DELETE", "0"),
        ("PUT", "0"),
        ("GET", None),
    ]
    assert all(asked["host"] == bad.url.removeprefix("http://") for asked in bad.seen)
    assert {asked["accept-encoding"] for asked in bad.seen} == {"identity"}


async def test_server_that_is_not_there_is_ehostdown() -> None:
    async with BadServer(PAGE) as bad, store_on(bad) as store:
        store.attempts = 2
        await store.list("")
        await bad.__aexit__()
        for _ in range(2):
            with pytest.raises(StoreError) as info:
                await store.list("")
    assert (info.value.errno, info.value.tries) == (errno.EHOSTDOWN, 2)
    assert str(info.value.strerror) == "ListObjectsV2 '': connection refused"


async def test_uploads_never_wait_for_100_continue() -> None:
    async with BadServer(written()) as bad:
        for thin in (True, False):
            async with store_on(bad, thin=thin) as store:
                await store.put("k", Bytes(b"x" * MIB), NOTHING)
    assert all("expect" not in asked.headers for asked in bad.seen)


async def test_upload_is_sent_again_from_its_beginning() -> None:
    data = random.Random(2).randbytes(2 * MIB + 1)
    async with BadServer(hang_up, error(500, "InternalError"), written("v9")) as bad, store_on(bad) as store:
        made = await store.put("k", Bytes(data), NOTHING)
    assert made == Object("k", len(data), 1_795_342_272 * 10**9, "v9")
    assert all(asked.body == data for asked in bad.seen)
    assert len(bad.seen) == 3


async def test_store_that_stops_reading_is_etimedout_at_the_deadline() -> None:
    async with DeafServer(written()) as bad, store_on(bad, deadline=Duration(0.3)) as store:
        with pytest.raises(StoreError) as info:
            await asyncio.wait_for(store.calls.run("PutObject", "k", 0, lambda: _upload(store)), 10)
    assert info.value.errno == errno.ETIMEDOUT


async def _upload(store: Any) -> None:
    # Under the deadline of a small request: that of 16 MiB is two minutes.
    await store.link.either("PUT", lambda thin: thin.send("PUT", "PUT", "k", "", {}, Bytes(b"x" * (16 * MIB))), None)


async def test_upload_that_is_cancelled_ends_its_request() -> None:
    async with DeafServer(written()) as bad, store_on(bad) as store:
        task = asyncio.ensure_future(store.put("k", Bytes(b"x" * (16 * MIB)), NOTHING))
        await asyncio.wait_for(bad.asked.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 0.5)


# Where the keys of a bucket are.


@pytest.mark.parametrize(
    ("bucket", "chosen", "target"),
    [
        ("photos", {"region": "eu-west-1"}, Target("https", "photos.s3.eu-west-1.amazonaws.com", "", "eu-west-1")),
        ("photos", {"region": ""}, Target("https", "photos.s3.amazonaws.com", "", "us-east-1")),
        ("a.b", {"region": "eu-west-1"}, Target("https", "s3.eu-west-1.amazonaws.com", "/a.b", "eu-west-1")),
        (
            "photos",
            {"region": "eu-west-1", "addressing": "path"},
            Target("https", "s3.eu-west-1.amazonaws.com", "/photos", "eu-west-1"),
        ),
        ("photos", {"region": "r", "anonymous": True, "endpoint_url": Url("http://h:80")}, Target("http", "h", "/photos", "")),
        (
            "photos",
            {"region": "r", "endpoint_url": Url("https://h:8443/base/")},
            Target("https", "h:8443", "/base/photos", "r"),
        ),
        (
            "photos",
            {"region": "r", "endpoint_url": Url("http://h:9000"), "addressing": "virtual"},
            Target("http", "photos.h:9000", "", "r"),
        ),
        (
            "arn:aws:s3:eu-west-1:123456789012:accesspoint/mine",
            {"region": "eu-west-1"},
            Target("https", "mine-123456789012.s3-accesspoint.eu-west-1.amazonaws.com", "", "eu-west-1"),
        ),
        ("b--euw1-az1--x-s3", {"region": "eu-west-1"}, None),
    ],
)
async def test_address_is_the_one_aiobotocore_would_use(bucket: str, chosen: dict[str, Any], target: Target | None) -> None:
    client = Client(S3Options(**chosen), sigv4.Clock())
    await client.start()
    try:
        assert await client.target(bucket) == target
    finally:
        await client.close()


# Over TLS.


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1 that nobody trusts, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


async def test_trusted_certificate_serves_and_bodies_are_not_hashed(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    async with BadServer(written(), certificate=certificate) as bad, store_on(bad) as store:
        await store.put("k", Bytes(b"x"), NOTHING)
        assert store.link.use_thin
    assert bad.seen[0]["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"


async def test_certificate_nobody_trusts_is_ehostdown(certificate: Path) -> None:
    for thin in (True, False):
        async with BadServer(written(), certificate=certificate) as bad, store_on(bad, thin=thin) as store:
            with pytest.raises(StoreError, match="certificate verify failed") as info:
                await store.put("k", Bytes(b"x"), NOTHING)
        assert info.value.errno == errno.EHOSTDOWN
        assert bad.seen == []
