"""What goes wrong between a mounted bucket and its store: an errno, a line in ``pyfusekit errors``, and nothing is lost.

The store is SeaweedFS behind a proxy that does what stores and networks do on a bad day; the programs are on the real mount.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from faultproxy import CONDITIONS, Fault, FaultProxy
from s3mount import BucketMount
from s3server import ACCESS as MOTO
from s3server import S3Server
from seaweed import ACCESS, SeaweedServer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from commandline import Commandline, commandline, needs_mounts

pytestmark = [needs_mounts, pytest.mark.mounted]

MIB = 1 << 20
ALWAYS = float("inf")


class Bucket(BucketMount):
    """A mounted bucket behind a proxy."""

    def __init__(self, command: Commandline, server: SeaweedServer, proxy: FaultProxy, *options: str) -> None:
        super().__init__(command, server, server.bucket(), "--deadline", "4", *options, url=proxy.url)
        self.proxy = proxy
        self.client = server.client()

    def put(self, key: str, data: bytes) -> None:
        """Put an object there, as a plain client that has no proxy before it."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def get(self, key: str) -> bytes:
        """Return what the store holds."""
        data: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return data

    def problems(self, path: str) -> list[dict[str, Any]]:
        """Return what ``pyfusekit errors`` says of a file, the newest last."""
        said = self.command.run("errors", self.path, "--json")
        assert said.returncode == 0, said.stderr
        return [row for row in json.loads(said.stdout) if row["path"] == path]

    def told(self, path: str, name: str, words: str) -> dict[str, Any]:
        """Return the problem of a file that has this errno and these words (a regular expression)."""
        rows = self.problems(path)
        found = [row for row in rows if row["errno"] == name and re.search(words, row["cause"])]
        assert found, f"{name} {words!r} is not among {rows}"
        return found[-1]

    def kept(self, problem: dict[str, Any]) -> bytes:
        """Return the copy of what was written that a problem names."""
        named = re.search(r"kept in (/[^\s;,]+)", problem["cause"])
        assert named is not None, problem
        return Path(named[1]).read_bytes()


@contextmanager
def fails(number: int) -> Iterator[None]:
    """Expect an errno."""
    with pytest.raises(OSError, match=r".") as info:
        yield
    assert info.value.errno == number, f"{info.value!r} instead of {errno.errorcode[number]}"


def eventually(check: Callable[[], Any], what: str, seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < limit, what
        time.sleep(0.05)


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture(scope="module")
def proxy(seaweed: SeaweedServer) -> Iterator[FaultProxy]:
    with FaultProxy(seaweed.url) as proxy:
        yield proxy


@pytest.fixture(scope="class")
def bucket(seaweed: SeaweedServer, proxy: FaultProxy) -> Iterator[Bucket]:
    """A mount for all tests of a class: nothing that goes wrong in one may disturb the next."""
    with commandline() as command:
        bucket = Bucket(command, seaweed, proxy, "--metadata-ttl", "0")
        bucket.mount()
        yield bucket
        proxy.clear()
        bucket.unmount()


@pytest.fixture(autouse=True)
def good_weather(proxy: FaultProxy) -> Iterator[None]:
    proxy.clear()
    yield
    proxy.clear()


class TestAStoreThatSaysNo:
    """403 and its relatives."""

    def test_expired_token_is_eacces_until_it_is_renewed(self, bucket: Bucket, proxy: FaultProxy) -> None:
        bucket.put("token", b"before")
        assert (bucket.path / "token").read_bytes() == b"before"
        expired = proxy.add(Fault(status=400, code="ExpiredToken", times=ALWAYS))
        with fails(errno.EACCES):
            (bucket.path / "token").read_bytes()
        with fails(errno.EACCES):
            (bucket.path / "token").write_bytes(b"after")
        with fails(errno.EACCES):
            os.listdir(bucket.path)
        expired.times = 0
        bucket.told("token", "EACCES", "ExpiredToken")
        assert (bucket.path / "token").read_bytes() == b"before"
        (bucket.path / "token").write_bytes(b"renewed")
        assert bucket.get("token") == b"renewed"

    def test_token_that_expires_while_a_file_is_written_keeps_the_file(self, bucket: Bucket, proxy: FaultProxy) -> None:
        data = noise(300_000)
        with open(bucket.path / "late", "wb", buffering=0) as file:
            file.write(data)
            expired = proxy.add(Fault(status=400, code="ExpiredToken", times=ALWAYS))
            with fails(errno.EACCES):
                os.fsync(file.fileno())
            with fails(errno.EACCES):
                os.close(os.dup(file.fileno()))
            with suppress(OSError):
                file.close()
        expired.times = 0
        eventually(lambda: any("kept" in row["cause"] for row in bucket.problems("late")), "where it is kept is not said")
        assert bucket.kept(bucket.told("late", "EACCES", r"ExpiredToken.* what was written is kept in")) == data
        # Nothing half-written came into the store, and the name is free.
        assert not (bucket.path / "late").exists()
        (bucket.path / "late").write_bytes(data)
        assert bucket.get("late") == data

    @pytest.mark.parametrize(
        ("fault", "attempt", "operation"),
        [
            (Fault("GET", "/seen$", times=ALWAYS), lambda top: (top / "seen").read_bytes(), "GetObject"),
            (Fault("PUT", "/seen$", times=ALWAYS), lambda top: (top / "seen").write_bytes(b"x"), "PutObject"),
            (Fault("DELETE", "/seen$", times=ALWAYS), lambda top: (top / "seen").unlink(), "DeleteObject"),
            (Fault("PUT", "/moved$", times=ALWAYS), lambda top: (top / "seen").rename(top / "moved"), "CopyObject"),
            (Fault("PUT", "/made/$", times=ALWAYS), lambda top: (top / "made").mkdir(), "PutObject"),
            (Fault("GET", query="list-type", times=ALWAYS), os.listdir, "ListObjectsV2"),
        ],
        ids=["read", "write", "unlink", "rename", "mkdir", "list"],
    )
    def test_operation_that_is_denied_is_eacces_and_changes_nothing(
        self, bucket: Bucket, proxy: FaultProxy, fault: Fault, attempt: Callable[[Path], object], operation: str
    ) -> None:
        bucket.put("seen", b"as it was")
        fault.status, fault.code = 403, "AccessDenied"
        proxy.add(fault)
        with fails(errno.EACCES):
            attempt(bucket.path)
        said = bucket.command.run("errors", bucket.path).stdout
        assert re.search(rf"{operation}.*403 AccessDenied", said), said
        proxy.clear()
        assert bucket.stored()["seen"] == b"as it was"
        assert (bucket.path / "seen").read_bytes() == b"as it was"
        assert "moved" not in os.listdir(bucket.path)
        assert "made" not in os.listdir(bucket.path)

    def test_source_that_may_not_be_removed_is_not_moved(self, bucket: Bucket, proxy: FaultProxy) -> None:
        bucket.put("stays", b"here")
        proxy.add(Fault("DELETE", "/stays$", status=403, code="AccessDenied", times=ALWAYS))
        with fails(errno.EACCES):
            (bucket.path / "stays").rename(bucket.path / "gone")
        bucket.told("stays", "EACCES", "DeleteObject.*AccessDenied")
        assert bucket.stored().get("stays") == b"here"
        assert "gone" not in bucket.stored()

    def test_clock_that_is_wrong_is_eacces_and_what_was_written_is_kept(self, bucket: Bucket, proxy: FaultProxy) -> None:
        bucket.put("clock", b"tick")
        with open(bucket.path / "clock", "r+b", buffering=0) as file:
            skewed = proxy.add(Fault(path="/clock", status=403, code="RequestTimeTooSkewed", times=ALWAYS))
            file.write(b"tock")
            with fails(errno.EACCES):
                os.fsync(file.fileno())
            with suppress(OSError):
                file.close()
        skewed.times = 0
        eventually(lambda: any("kept" in row["cause"] for row in bucket.problems("clock")), "where it is kept is not said")
        assert bucket.kept(bucket.told("clock", "EACCES", "403.*kept in")) == b"tock"
        assert bucket.get("clock") == b"tick"

    def test_bucket_that_turns_out_to_be_in_another_region_is_followed(self, bucket: Bucket, proxy: FaultProxy) -> None:
        bucket.put("region", b"far away")
        moved = {"x-amz-bucket-region": "eu-west-1"}
        proxy.add(Fault("GET", "/region$", status=301, code="PermanentRedirect", headers=moved))
        assert (bucket.path / "region").read_bytes() == b"far away"
        signed = [seen.headers["authorization"] for seen in proxy.seen if seen.path.endswith("/region") and seen.status == 200]
        assert "/eu-west-1/s3/" in signed[-1]
        proxy.add(Fault(path="/region$", status=301, code="PermanentRedirect", times=ALWAYS))
        with fails(errno.EIO):
            (bucket.path / "region").read_bytes()
        # The answer to a HEAD has no words.
        bucket.told("region", "EIO", "301")


class TestAStoreThatAnswersWrongly:
    """What is said is not what is so."""

    def test_error_under_the_status_200_is_tried_again_and_then_close_s_error(self, bucket: Bucket, proxy: FaultProxy) -> None:
        proxy.add(Fault("PUT", "/once$", status=200, code="InternalError"))
        (bucket.path / "once").write_bytes(b"twice")
        assert bucket.get("once") == b"twice"
        data = noise(17 * MIB)
        broken = proxy.add(Fault("POST", "/big$", "uploadId", status=200, code="InternalError", times=ALWAYS))
        with open(bucket.path / "big", "wb", buffering=0) as file:
            file.write(data)
            with fails(errno.EIO):
                os.fsync(file.fileno())
            bucket.told("big", "EIO", "CompleteMultipartUpload.*InternalError")
            assert "big" not in bucket.stored()
            broken.times = 0
        # The file was left to the next attempt, which close made.
        assert bucket.get("big") == data
        assert bucket.problems("big") == []
        assert "Uploads" not in bucket.client.list_multipart_uploads(Bucket=bucket.bucket)

    def test_answer_without_the_range_that_was_asked_for_is_not_believed(self, bucket: Bucket, proxy: FaultProxy) -> None:
        data = noise(12 * MIB)
        bucket.put("range", data)
        with open(bucket.path / "range", "rb", buffering=0) as file:
            ignored = proxy.add(Fault("GET", "/range$", strip=("range",), times=ALWAYS))
            with fails(errno.EIO):
                os.pread(file.fileno(), 4096, 7 * MIB)
            bucket.told("range", "EIO", r"GetObject.*")
            ignored.times = 0
            assert os.pread(file.fileno(), 4096, 7 * MIB) == data[7 * MIB : 7 * MIB + 4096]

    def test_listing_that_lies_for_a_second_hides_nothing_that_was_done_here(self, bucket: Bucket, proxy: FaultProxy) -> None:
        bucket.put("lying/old", b"old")
        bucket.put("lying/changed", b"before")
        top = bucket.path / "lying"
        assert sorted(os.listdir(top)) == ["changed", "old"]
        page = _page(bucket, proxy)
        lie = proxy.add(Fault("GET", query="list-type=2.*prefix=lying", status=200, body=page, times=ALWAYS))
        (top / "new").write_bytes(b"new")
        (top / "changed").write_bytes(b"afterwards")
        (top / "old").unlink()
        for _ in range(3):
            assert sorted(os.listdir(top)) == ["changed", "new"]
            assert (top / "new").read_bytes() == b"new"
            assert (top / "changed").read_bytes() == b"afterwards"
            assert (top / "changed").stat().st_size == 10
            assert not (top / "old").exists()
        assert lie.met > 0
        lie.times = 0
        eventually(lambda: sorted(os.listdir(top)) == ["changed", "new"], "what is there")
        assert bucket.get("lying/changed") == b"afterwards"
        assert bucket.problems("lying/changed") == []

    def test_object_replaced_or_deleted_while_it_is_read_is_estale(self, bucket: Bucket) -> None:
        for number, change in enumerate((lambda key: bucket.put(key, b"2" * (9 * MIB)), self._delete(bucket))):
            key = f"open{number}"
            bucket.put(key, b"1" * (9 * MIB))
            with open(bucket.path / key, "rb", buffering=0) as file:
                assert os.pread(file.fileno(), 4096, 0) == b"1" * 4096
                change(key)
                with fails(errno.ESTALE):
                    os.pread(file.fileno(), 4096, 8 * MIB)
                assert os.pread(file.fileno(), 4096, 0) in (b"1" * 4096,)
            bucket.told(key, "ESTALE", "GetObject")

    @staticmethod
    def _delete(bucket: Bucket) -> Callable[[str], None]:
        return lambda key: bucket.client.delete_object(Bucket=bucket.bucket, Key=key)

    def test_object_replaced_or_deleted_while_it_is_written_is_estale_and_both_are_kept(self, bucket: Bucket) -> None:
        for number, change in enumerate((lambda key: bucket.put(key, b"theirs"), self._delete(bucket))):
            key = f"written{number}"
            bucket.put(key, b"base ")
            with open(bucket.path / key, "ab", buffering=0) as file:
                file.write(b"mine")
                change(key)
                with fails(errno.ESTALE):
                    os.fsync(file.fileno())
                with suppress(OSError):
                    file.close()
            problem = bucket.told(key, "ESTALE", "by somebody else; the local version is kept in")
            kept = bucket.kept(problem)
            assert kept[5:] == b"mine"
            assert kept[:5] in (b"base ", bytes(5))
            assert bucket.stored().get(key) == (None if number else b"theirs")


def _page(bucket: Bucket, proxy: FaultProxy) -> bytes:
    """Return a listing of lying/ as it is now."""
    rows = bucket.client.list_objects_v2(Bucket=bucket.bucket, Prefix="lying/", Delimiter="/")["Contents"]
    contents = "".join(
        f"<Contents><Key>{row['Key']}</Key><Size>{row['Size']}</Size><ETag>{row['ETag']}</ETag>"
        f"<LastModified>{row['LastModified']:%Y-%m-%dT%H:%M:%S.000Z}</LastModified></Contents>"
        for row in rows
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<IsTruncated>false</IsTruncated><Prefix>lying/</Prefix><Delimiter>/</Delimiter>{contents}</ListBucketResult>"
    ).encode()


@pytest.fixture
def stormy(seaweed: SeaweedServer, proxy: FaultProxy) -> Iterator[Callable[..., Bucket]]:
    """Makes mounts of buckets of their own, with options, and unmounts them."""
    made: list[Bucket] = []
    with commandline() as command:

        def make(*options: str) -> Bucket:
            made.append(Bucket(command, seaweed, proxy, *options))
            made[-1].mount()
            return made[-1]

        yield make
        proxy.clear()
        for bucket in made:
            bucket.unmount()


def test_upload_that_fails_at_part_37_is_close_s_error_and_is_finished_later(
    stormy: Callable[..., Bucket], proxy: FaultProxy, tmp_path: Path
) -> None:
    bucket = stormy("--part-size", "5MiB")
    piece = noise(MIB)
    broken = proxy.add(Fault("PUT", "/large$", "partNumber=37(&|$)", status=500, times=ALWAYS))
    with open(bucket.path / "large", "wb", buffering=0) as file:
        for number in range(192):
            assert file.write(number.to_bytes(8, "big") + piece[8:]) == MIB
        with fails(errno.EIO):
            os.fsync(file.fileno())
        with suppress(OSError):
            file.close()
    bucket.told("large", "EIO", "UploadPart.*InternalError")
    assert bucket.stored() == {}
    # What was written is read from here meanwhile.
    with open(bucket.path / "large", "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 8, 190 * MIB) == (190).to_bytes(8, "big")
    sent = {number: proxy.count("PUT", "/large$", rf"partNumber={number}(&|$)") for number in range(1, 40)}
    broken.times = 0
    eventually(lambda: "large" in bucket.stored(), "it was never uploaded")
    data = bucket.get("large")
    assert len(data) == 192 * MIB
    assert all(data[n * MIB : n * MIB + MIB] == n.to_bytes(8, "big") + piece[8:] for n in range(192))
    assert sent[37] > 1
    eventually(lambda: bucket.problems("large") == [], "what has succeeded since is still a problem")
    assert "Uploads" not in bucket.client.list_multipart_uploads(Bucket=bucket.bucket)


@pytest.mark.parametrize("write_back", [False, True], ids=["", "write-back"])
def test_full_disk_of_the_staging_area_is_enospc_and_loses_nothing(
    stormy: Callable[..., Bucket], tmp_path: Path, write_back: bool
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], check=True, timeout=20)
    try:
        bucket = stormy("--staging-dir", str(disk), *(["--write-back"] if write_back else []))
        data = noise(3 * MIB)
        (bucket.path / "first").write_bytes(data)
        taken = 0
        with open(bucket.path / "full", "wb", buffering=0) as file:
            with fails(errno.ENOSPC):
                # From behind, so that it cannot be sent while it is written.
                for number in range(12, -1, -1):
                    taken += os.pwrite(file.fileno(), bytes([number + 1]) * MIB, number * MIB)
            assert 0 < taken < 13 * MIB
            os.ftruncate(file.fileno(), 0)
            os.pwrite(file.fileno(), b"little", 0)
        assert (bucket.path / "full").read_bytes() == b"little"
        assert (bucket.path / "first").read_bytes() == data
        (bucket.path / "after").write_bytes(b"it goes on")
        eventually(lambda: len(bucket.stored()) == 3, "not all was uploaded")
        assert bucket.stored() == {"first": data, "full": b"little", "after": b"it goes on"}
        bucket.unmount()
        bucket.mount()
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True, timeout=20)


def test_bucket_deleted_under_the_mount_is_enoent_and_what_was_written_is_kept(moto: tuple[S3Server, Commandline]) -> None:
    # SeaweedFS makes a bucket that is not there when something is put into it.
    server, command = moto
    client = server.client()
    client.create_bucket(Bucket="doomed")
    client.put_object(Bucket="doomed", Key="f", Body=b"was there")
    top = command.folder()
    said = command.run("mount", "s3", "doomed", top, "--endpoint-url", server.url, "--metadata-ttl", "0")
    assert said.returncode == 0, said.stderr
    data = noise(200_000)
    with open(top / "late", "wb", buffering=0) as file:
        file.write(data)
        client.delete_object(Bucket="doomed", Key="f")
        client.delete_bucket(Bucket="doomed")
        with fails(errno.ENOENT):
            os.fsync(file.fileno())
        with suppress(OSError):
            file.close()
    # ENOENT would be an empty directory for libc.
    with fails(errno.ESTALE):
        os.listdir(top)
    assert re.search("ListObjectsV2.*NoSuchBucket", command.run("errors", top).stdout)
    with fails(errno.ENOENT):
        (top / "f").read_bytes()

    def kept() -> list[str]:
        rows = json.loads(command.run("errors", top, "--json").stdout)
        words = [f"{row['errno']} {row['path']} {row['cause']}" for row in rows]
        return [found[1] for word in words if (found := re.match(r"ENOENT late .*NoSuchBucket.* is kept in (/\S+)", word))]

    eventually(kept, "where it is kept is not said")
    assert Path(kept()[0]).read_bytes() == data
    # Somebody makes it again: the mount goes on.
    client.create_bucket(Bucket="doomed")
    (top / "new").write_bytes(b"new")
    assert os.listdir(top) == ["new"]
    assert client.get_object(Bucket="doomed", Key="new")["Body"].read() == b"new"
    assert command.run("umount", top).returncode == 0


def test_server_without_conditional_writes_is_found_out_at_mount_and_asked_before(
    seaweed: SeaweedServer, proxy: FaultProxy
) -> None:
    proxy.add(Fault(strip=CONDITIONS, times=ALWAYS))
    with commandline() as command:
        bucket = Bucket(command, seaweed, proxy)
        arguments = ("--endpoint-url", proxy.url, "--log", str(bucket.log))
        said = command.run("mount", "s3", bucket.bucket, bucket.path, *arguments)
        assert said.returncode == 0
        log = bucket.log.read_text()
        assert re.search(r"If-Match.*PutObject|PutObject.*If-Match", said.stderr + log), said.stderr + log
        assert bucket.stored() == {}  # It has cleaned up behind itself.
        bucket.put("f", b"base")
        with open(bucket.path / "f", "r+b", buffering=0) as file:
            file.write(b"mine")
            bucket.put("f", b"theirs")
            with fails(errno.ESTALE):
                os.fsync(file.fileno())
            with suppress(OSError):
                file.close()
        assert bucket.kept(bucket.told("f", "ESTALE", "by somebody else")) == b"mine"
        assert bucket.get("f") == b"theirs"
        # A version that is replaced is not read as if it were the old one, either.
        bucket.put("read", b"1" * (9 * MIB))
        with open(bucket.path / "read", "rb", buffering=0) as file:
            assert os.pread(file.fileno(), 10, 0) == b"1" * 10
            bucket.put("read", b"2" * (9 * MIB))
            with fails(errno.ESTALE):
                os.pread(file.fileno(), 10, 8 * MIB)
        proxy.clear()
        bucket.unmount()


@pytest.mark.parametrize(
    ("environment", "bucket", "code", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "", 7, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "", 7, "InvalidAccessKeyId"),
        ({}, "no-such-bucket-here", 6, "no such bucket"),
    ],
    ids=["secret", "key", "bucket"],
)
def test_mount_that_cannot_be_says_why(
    command: Commandline,
    seaweed: SeaweedServer,
    seaweed_bucket: str,
    environment: dict[str, str],
    bucket: str,
    code: int,
    words: str,
) -> None:
    command.environment.update({**ACCESS, "AWS_EC2_METADATA_DISABLED": "true", **environment})
    said = command.run("mount", "s3", bucket or seaweed_bucket, command.folder(), "--endpoint-url", seaweed.url)
    assert (said.returncode, said.stdout) == (code, ""), said.stderr
    assert words in said.stderr
    assert len(said.stderr.splitlines()) == 2
    assert command.mounts() == []
    assert command.settle() == {}


@pytest.mark.parametrize("region", ["eu-west-1", ""], ids=["the store says which", "nobody knows which"])
def test_wrong_region_is_corrected_or_asked_for(
    command: Commandline, seaweed: SeaweedServer, seaweed_bucket: str, proxy: FaultProxy, region: str
) -> None:
    headers = {"x-amz-bucket-region": region} if region else {}
    proxy.add(Fault(times=1 if region else ALWAYS, status=301, code="PermanentRedirect", headers=headers))
    bucket = BucketMount(command, seaweed, seaweed_bucket, url=proxy.url)
    said = command.run("mount", "s3", seaweed_bucket, bucket.path, "--endpoint-url", proxy.url, "--log", str(bucket.log))
    if not region:
        assert said.returncode in (6, 7), said.stderr
        assert "--region" in said.stderr
        assert command.mounts() == []
        return
    assert said.returncode == 0, said.stderr
    (bucket.path / "f").write_text("there")
    assert bucket.stored() == {"f": b"there"}
    assert "/eu-west-1/s3/" in proxy.seen[-1].headers["authorization"]
    bucket.unmount()


@pytest.fixture
def moto() -> Iterator[tuple[S3Server, Commandline]]:
    """The other server, for what SeaweedFS does not know, and a place to mount it."""
    with S3Server() as server, commandline() as command:
        command.environment.update({**MOTO, "AWS_EC2_METADATA_DISABLED": "true"})
        yield server, command


def test_names_that_collide_are_all_there_and_can_be_changed(moto: tuple[S3Server, Commandline]) -> None:
    server, command = moto
    client = server.client()
    client.create_bucket(Bucket="twins")
    for key in ("twin", "twin/in", "twin//in", "full/"):
        client.put_object(Bucket="twins", Key=key, Body=key.encode())
    client.put_object(Bucket="twins", Key="twin/", Body=b"")
    top = command.folder()
    said = command.run("mount", "s3", "twins", top, "--endpoint-url", server.url, "--metadata-ttl", "0")
    assert said.returncode == 0, said.stderr
    assert sorted(os.listdir(top)) == ["full", "twin", "twin\u241bf"]
    assert sorted(os.listdir(top / "twin")) == ["in", "\u241be"]
    assert (top / "twin\u241bf").read_bytes() == b"twin"
    assert (top / "twin/in").read_bytes() == b"twin/in"
    assert (top / "twin/\u241be/in").read_bytes() == b"twin//in"
    assert (top / "full/\u241be").read_bytes() == b"full/"
    (top / "twin\u241bf").write_bytes(b"changed")
    (top / "twin/\u241be/in").write_bytes(b"changed too")
    (top / "twin/new").write_bytes(b"new")
    stored = {
        row["Key"]: client.get_object(Bucket="twins", Key=row["Key"])["Body"].read()
        for row in client.list_objects_v2(Bucket="twins")["Contents"]
    }
    assert stored == {
        "full/": b"full/",
        "twin": b"changed",
        "twin/": b"",
        "twin//in": b"changed too",
        "twin/in": b"twin/in",
        "twin/new": b"new",
    }
    (top / "twin\u241bf").unlink()
    assert sorted(os.listdir(top)) == ["full", "twin"]
    assert (top / "twin/in").read_bytes() == b"twin/in"
    assert command.run("errors", top).stdout == "No errors.\n"
    assert command.run("umount", top).returncode == 0
