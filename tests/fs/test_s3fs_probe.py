"""Why a bucket cannot be mounted, and what a server is found to honour."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from badserver import Asked, BadServer, clean_environment, error, options, plain, stall, store_on
from s3server import S3Server
from seaweed import SeaweedServer

from pyfusekit.core import Duration, MountError, Secret
from pyfusekit.fs.s3fs.options import S3Options, Source
from pyfusekit.fs.s3fs.remote import probe as module
from pyfusekit.fs.s3fs.remote.aio import AioStore
from pyfusekit.fs.s3fs.remote.calls import ATTEMPTS
from pyfusekit.fs.s3fs.remote.probe import LACKING, WEAKENED, features, open_store, probe, weakened
from pyfusekit.fs.s3fs.remote.store import Attributes, Bytes, Features

SOURCE = Source("bucket", "")


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    clean_environment(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


async def mounting(chosen: S3Options, source: Source = SOURCE) -> None:
    """Do what a mount begins with."""
    store = await open_store(source, chosen)
    try:
        await probe(store, source)
        assert store.calls.attempts == ATTEMPTS
    finally:
        await store.close()


async def why_not(chosen: S3Options, source: Source = SOURCE) -> MountError:
    with pytest.raises(MountError) as info:
        await mounting(chosen, source)
    return info.value


# Why a bucket cannot be mounted.


async def test_missing_bucket_names_those_there_are(moto: S3Server) -> None:
    moto.client().create_bucket(Bucket="photos-2026")
    found = await why_not(options(moto.url), Source("photos-2062", ""))
    assert str(found).startswith("s3://photos-2062: no such bucket (404 NoSuchBucket from http")
    assert found.kind == "source-missing"
    assert "photos-2026" in found.remedy


async def test_missing_prefix_is_a_missing_source_and_an_empty_bucket_is_none(moto: S3Server) -> None:
    moto.client().create_bucket(Bucket="empty")
    await mounting(options(moto.url), Source("empty", ""))
    found = await why_not(options(moto.url), Source("empty", "dir/"))
    assert "nothing in the bucket begins with 'dir/'" in str(found)
    assert found.kind == "source-missing"


async def test_all_buckets_can_be_mounted(moto: S3Server) -> None:
    await mounting(options(moto.url), Source("", ""))


async def test_all_buckets_denied_is_access_denied() -> None:
    async with BadServer(error(403, "AccessDenied")) as bad:
        found = await why_not(options(bad.url), Source("", ""))
    assert "access denied for ListAllMyBuckets as key testing from env" in str(found)
    assert found.kind == "access-denied"


async def test_impossible_bucket_name_is_a_missing_source(moto: S3Server) -> None:
    found = await why_not(options(moto.url), Source("no bucket!", ""))
    assert "no name of a bucket" in str(found)
    assert found.kind == "source-missing"


async def test_dead_endpoint_is_unreachable() -> None:
    # A port nothing listens on: bound, so that nobody else takes it, and never listening.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        found = await why_not(options(url))
    assert str(found) == f"{url}: connection refused"
    assert found.kind == "source-unreachable"
    assert "--endpoint-url" in found.remedy


async def test_silent_endpoint_is_unreachable() -> None:
    async with BadServer(stall) as bad:
        found = await why_not(options(bad.url, deadline=Duration(0.3)))
    assert "no answer in time" in str(found)
    assert found.kind == "source-unreachable"


async def test_missing_credentials_are_access_denied(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    found = await why_not(options(moto.url))
    assert "no usable AWS credentials" in str(found)
    assert found.kind == "access-denied"
    assert "--anonymous" in found.remedy
    moto.client().create_bucket(Bucket="public")
    await mounting(options(moto.url, anonymous=True), Source("public", ""))


async def test_unknown_profile_is_access_denied(moto: S3Server) -> None:
    found = await why_not(options(moto.url, profile="nobody"))
    assert "nobody" in str(found)
    assert found.kind == "access-denied"


async def test_customers_key_of_the_wrong_length_is_said(moto: S3Server) -> None:
    found = await why_not(options(moto.url, sse_c_key=Secret("short")))
    assert "neither 32 bytes nor their base64" in str(found)


async def test_refused_keys_are_named(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    found = await why_not(options(seaweed.url))
    assert "SignatureDoesNotMatch (key testing from env" in str(found)
    assert found.kind == "access-denied"


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId"])
async def test_expired_credentials_are_to_be_renewed(code: str) -> None:
    async with BadServer(error(400, code)) as bad:
        found = await why_not(options(bad.url))
    assert f"the credentials are refused: {code}" in str(found)
    assert (found.kind, "renew them" in found.remedy) == ("access-denied", True)


async def test_denied_listing_names_the_permission() -> None:
    async with BadServer(error(403, "AccessDenied")) as bad:
        found = await why_not(options(bad.url))
    assert "access denied for ListBucket as key testing from env" in str(found)
    assert "s3:ListBucket and s3:GetObject" in found.remedy


async def test_wrong_clock_that_cannot_be_corrected_is_said() -> None:
    async with BadServer(error(403, "RequestTimeTooSkewed")) as bad:
        found = await why_not(options(bad.url))
    assert "clock is wrong" in str(found)


async def test_region_nobody_names_is_asked_for() -> None:
    async with BadServer(error(400, "AuthorizationHeaderMalformed")) as bad:
        found = await why_not(options(bad.url))
    assert found.remedy == "name the bucket's --region"


@pytest.mark.parametrize("body", [b"<html><body>hello</body></html>", b"It works!", b""])
async def test_web_server_that_is_no_store_is_unreachable(body: bytes) -> None:
    async with BadServer(plain(200, body, "Content-Type: text/html\r\n")) as bad:
        found = await why_not(options(bad.url))
    assert "does not answer as S3 does" in str(found)
    assert found.kind == "source-unreachable"


# What a server is found to honour.


async def test_faithful_server_honours_everything_and_is_left_as_it_was(seaweed: SeaweedServer, seaweed_bucket: str) -> None:
    async with store_on(seaweed, seaweed_bucket) as store:
        assert await features(store, Source(seaweed_bucket, "p/")) == []
        assert store.features == Features()
        assert (await store.list("", delimiter="")).objects == []
        assert await store.uploads("") == []
        assert store.reported == []  # type: ignore[attr-defined]
        assert not store.calls.quiet


async def test_nothing_is_left_in_a_bucket_that_keeps_versions(moto: S3Server) -> None:
    client = moto.client()
    client.create_bucket(Bucket="kept")
    client.put_bucket_versioning(Bucket="kept", VersioningConfiguration={"Status": "Enabled"})
    client.put_object(Bucket="kept", Key="other", Body=b"x")
    async with store_on(moto, "kept") as store:
        await features(store, Source("kept", ""))
        assert [version.item.key for version in (await store.versions("", delimiter="")).versions] == ["other"]


async def test_what_a_server_ignores_is_said(moto: S3Server) -> None:
    moto.client().create_bucket(Bucket="probed")
    async with store_on(moto, "probed") as store:
        said = await features(store, Source("probed", ""))
        assert store.features == Features(complete_if=False, copy_if=False)
        assert (await store.list("", delimiter="")).objects == []
        assert await store.uploads("") == []
    assert [sentence.split(":")[0] for sentence in said] == [
        "this server ignores conditions on CompleteMultipartUpload",
        "this server ignores conditions on what CopyObject replaces",
    ]


async def test_mount_of_all_buckets_finds_out_by_one_that_takes_writes() -> None:
    with S3Server() as server:
        client = server.client()
        source = Source("", "")
        store = await open_store(source, options(server.url))
        try:
            (said,) = await features(store, source)
            assert said.endswith("no bucket could be tried (there is none)")
            for name in ("alpha", "beta"):
                client.create_bucket(Bucket=name)
            denied = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::alpha/*"}
            client.put_bucket_policy(Bucket="alpha", Policy=json.dumps({"Version": "2012-10-17", "Statement": [denied]}))
            said = await features(store, source)
            assert store.features == Features(complete_if=False, copy_if=False)
            assert (await store.bucket("beta")).features is store.features  # type: ignore[union-attr]
            for name in ("alpha", "beta"):
                assert "Contents" not in client.list_objects_v2(Bucket=name)
        finally:
            await store.close()
    assert len(said) == 2


async def test_bucket_that_takes_no_writes_is_not_the_last_one_tried() -> None:
    written: list[str] = []

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.path == "/" and asked.method == "GET":
            rows = "".join(f"<Bucket><Name>{name}</Name></Bucket>" for name in ("closed", "open"))
            page = f"<ListAllMyBucketsResult><Buckets>{rows}</Buckets></ListAllMyBucketsResult>"
            await plain(200, page.encode())(asked, writer)
        elif asked.path.startswith("/closed"):
            await error(403, "AccessDenied")(asked, writer)
        else:
            written.append(asked.path)
            await error(412, "PreconditionFailed")(asked, writer)

    async with BadServer(answer) as bad:
        store = await open_store(Source("", ""), options(bad.url))
        try:
            (said,) = await features(store, Source("", ""))
        finally:
            await store.close()
    assert written
    assert said.endswith("(closed, open)")


async def test_server_that_ignores_all_conditions_is_seen_through() -> None:
    """It is the simplest of servers: what was put under a key, last."""
    objects: dict[str, bytes] = {}

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        ok = 'ETag: "e"\r\n'
        if asked.method == "PUT" and "x-amz-copy-source" in asked.headers:
            body = b"<CopyObjectResult><ETag>e</ETag><LastModified>2026-11-22T10:11:12Z</LastModified></CopyObjectResult>"
            await plain(200, body)(asked, writer)
        elif asked.method == "PUT":
            objects[asked.path] = asked.body
            await plain(200, b"", ok)(asked, writer)
        elif asked.method == "GET":
            await plain(200, objects.get(asked.path, b""), ok)(asked, writer)
        elif asked.method == "DELETE":
            objects.pop(asked.path, None)
            await plain(204)(asked, writer)
        else:
            await error(501, "NotImplemented")(asked, writer)

    async with BadServer(answer) as bad, store_on(bad) as store:
        said = await features(store, SOURCE)
        found = store.features
    assert objects == {}
    assert found == Features(
        get_if_match=False,
        put_if_absent=False,
        put_if_match=False,
        complete_if=False,
        copy_if=False,
        delete_if=False,
        copy_part=False,
    )
    assert len(said) == 7


async def test_denied_writing_is_one_sentence_and_no_error() -> None:
    async with BadServer(error(403, "AccessDenied")) as bad, store_on(bad) as store:
        (said,) = await features(store, SOURCE)
        assert not store.writable
        assert store.reported == []  # type: ignore[attr-defined]
    assert said.startswith("read-only: ")
    assert store.features == Features()


async def test_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PROBE_TIMEOUT", 0.2)
    monkeypatch.setattr(module, "_HELP_TIMEOUT", 0.1)
    async with BadServer(stall) as bad, store_on(bad) as store:
        (said,) = await features(store, SOURCE)
    assert "was not found out within" in said


def test_every_feature_has_its_sentence() -> None:
    nothing = Features(**dict.fromkeys(WEAKENED.keys() | LACKING.keys(), False))
    assert all(getattr(nothing, name) is False for name in Features.__slots__)
    assert len(weakened(nothing)) == len(Features.__slots__)
    assert weakened(Features()) == []


# What is remembered.


class Elsewhere:
    """A server that is not on this machine, as far as its address says."""

    def __init__(self, server: S3Server) -> None:
        self.url = server.url.replace("127.0.0.1", "s3.example.invalid")


@asynccontextmanager
async def remote(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AioStore]:
    moto.client().create_bucket(Bucket="remembered")
    monkeypatch.setattr(AioStore, "endpoint", Elsewhere(moto).url)
    async with store_on(moto, "remembered") as store:
        yield store


async def test_answers_are_remembered_for_a_day(moto: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = Source("remembered", "")
    async with remote(moto, monkeypatch) as store:
        said = await features(store, source, str(tmp_path / "new"))
        assert len(said) == 2
        before = len(moto.log())
        store.features = Features()
        assert await features(store, source, str(tmp_path / "new")) == said
        assert not store.features.copy_if
        assert len(moto.log()) == before
        path = tmp_path / "new" / "features.json"
        kept = json.loads(path.read_text())
        useless: list[Any] = [
            {name: {**entry, "time": entry["time"] - 90_000} for name, entry in kept.items()},
            {name: {**entry, "features": {}} for name, entry in kept.items()},
            {},
            [],
        ]
        for old in useless:
            path.write_text(json.dumps(old))
            before = len(moto.log())
            assert await features(store, source, str(tmp_path / "new")) == said
            assert len(moto.log()) > before
        path.write_text("{")
        assert await features(store, source, str(tmp_path / "new")) == said
        assert json.loads(path.read_text()).keys() == kept.keys()


async def test_what_cannot_be_remembered_is_found_out_again(
    moto: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    async with remote(moto, monkeypatch) as store:
        for _ in range(2):
            assert len(await features(store, Source("remembered", ""), str(tmp_path / "file"))) == 2


async def test_server_on_this_machine_is_not_remembered(moto: S3Server, tmp_path: Path) -> None:
    moto.client().create_bucket(Bucket="local")
    async with store_on(moto, "local") as store:
        await store.put("k", Bytes(b"x"), Attributes())
        assert len(await features(store, Source("local", ""), str(tmp_path))) == 2
    assert not (tmp_path / "features.json").exists()
