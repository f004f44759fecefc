"""Multipart uploads on the thin path: what is sent, and what answers mean."""

from __future__ import annotations

import base64
import errno
import hashlib
from typing import Any

import pytest
from badserver import BadServer, clean_environment, error, error_body, plain, store_on

from pyfusekit.fs.s3fs.remote.errors import StoreError
from pyfusekit.fs.s3fs.remote.store import Attributes, Bytes, Condition, Object, Part, Upload

NOTHING = Attributes()
BEGUN = plain(200, b"<InitiateMultipartUploadResult><UploadId>a/b &amp; c</UploadId></InitiateMultipartUploadResult>")
COPIED = plain(200, b"  \n<CopyPartResult><ETag>&quot;c1&quot;</ETag></CopyPartResult>")
PART = plain(200, b"", 'ETag: "p2"\r\n')
DONE = plain(
    200, b"   <?xml version='1.0'?><CompleteMultipartUploadResult><ETag>\"e-2\"</ETag></CompleteMultipartUploadResult>"
)
LATE = plain(200, b"   " + error_body("InternalError"))
BASE = Object("base", 30, 0, "b0")
UPLOAD = Upload("k", "u")


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    clean_environment(monkeypatch, tmp_path)


async def test_upload_with_copies_asks_for_no_checksum_of_the_whole_and_its_parts_have_md5s() -> None:
    async with BadServer(BEGUN, COPIED, PART, DONE) as bad, store_on(bad) as store:
        upload = await store.create_upload("k", Attributes({"mode": "1"}), copies=True)
        copied = await store.copy_part(upload, 1, BASE, 10, 30)
        sent = await store.upload_part(upload, 2, Bytes(b"tail"))
        made = await store.complete(upload, [copied, sent], Condition(match="b0"))
        assert store.link.use_thin
    begin, copy, part, complete = bad.seen
    assert upload == Upload("k", "a/b & c")
    assert [name for name in begin.headers if "checksum" in name] == []
    assert begin["x-amz-meta-mode"] == "1"
    assert (copy["x-amz-copy-source-range"], copy["x-amz-copy-source-if-match"]) == ("bytes=10-29", '"b0"')
    assert part["content-md5"] == base64.b64encode(hashlib.md5(b"tail").digest()).decode()
    assert complete["if-match"] == '"b0"'
    assert (copied, sent) == (Part(1, "c1", 20), Part(2, "p2", 4))
    assert (made.key, made.size, made.etag) == ("k", 24, "e-2")


async def test_upload_without_copies_has_checksums() -> None:
    async with BadServer(BEGUN, PART) as bad, store_on(bad) as store:
        upload = await store.create_upload("k", NOTHING)
        part = await store.upload_part(upload, 2, Bytes(b"tail"))
    assert bad.seen[0]["x-amz-checksum-type"] == "FULL_OBJECT"
    assert "content-md5" not in bad.seen[1].headers
    assert part.crc32 is not None


async def test_error_behind_the_spaces_of_a_good_answer_is_one_and_is_tried_again() -> None:
    async with BadServer(LATE, DONE, LATE, COPIED) as bad, store_on(bad) as store:
        assert (await store.complete(UPLOAD, [Part(1, "p", 3)])).etag == "e-2"
        assert (await store.copy_part(UPLOAD, 1, BASE, 0, 30)).etag == "c1"
    assert len(bad.seen) == 4


async def test_answer_that_is_not_s3s_is_eio_and_a_copy_without_a_word_is_not_known() -> None:
    async with BadServer(plain(200, b"<html>welcome</html>"), plain(200)) as bad, store_on(bad) as store:
        with pytest.raises(StoreError, match="not S3's") as info:
            await store.create_upload("k", NOTHING, copies=True)
        assert info.value.errno == errno.EIO
        with pytest.raises(StoreError, match="does not say what it copied") as info:
            await store.copy_part(UPLOAD, 1, BASE, 0, 30)
        assert info.value.errno == errno.EOPNOTSUPP
        assert not store.features.copy_part


async def test_refused_condition_of_a_completion_is_estale_and_a_lost_upload_enoent() -> None:
    refusals = (error(412, "PreconditionFailed"), error(404, "NoSuchUpload"))
    async with BadServer(*refusals) as bad, store_on(bad) as store:
        for expected in (errno.ESTALE, errno.ENOENT):
            with pytest.raises(StoreError) as info:
                await store.complete(UPLOAD, [Part(1, "p", 3)], Condition(absent=True))
            assert info.value.errno == expected
    assert bad.seen[0]["if-none-match"] == "*"
