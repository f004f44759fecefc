"""s3fs on the real kernel, mounted with the real command from moto."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from s3server import ACCESS, S3Server

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from commandline import Commandline, commandline, needs_mounts

pytestmark = [needs_mounts, pytest.mark.mounted]

MIB = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server(seed=("many", 2500)) as server:
        yield server


@pytest.fixture
def command() -> Iterator[Commandline]:
    with commandline() as made:
        made.environment.update(ACCESS)
        made.environment["AWS_EC2_METADATA_DISABLED"] = "true"
        yield made


def mount(command: Commandline, bucket: str, url: str, *more: str) -> Path:
    mountpoint = command.folder()
    result = command.run("mount", "s3", bucket, mountpoint, "--endpoint-url", url, "--log", str(command.top / "log"), *more)
    assert result.returncode == 0, result.stderr
    return mountpoint


def unmount(command: Commandline, mountpoint: Path) -> str:
    """Unmount, see that nothing is left, and return the log."""
    result = command.run("umount", mountpoint)
    assert result.returncode == 0, result.stderr
    assert command.mounts() == []
    assert command.settle() == {}
    log = (command.top / "log").read_text() if (command.top / "log").exists() else ""
    assert "Traceback" not in log
    return log


def shell(*words: str, cwd: Path | None = None) -> str:
    """Run a program that uses a mount; it is ended when the mount hangs."""
    return subprocess.run(["timeout", "-s", "KILL", "30", *words], cwd=cwd, check=True, capture_output=True, text=True).stdout


def eventually(check: Callable[[], Any], what: str) -> None:
    limit = time.monotonic() + 20
    while not check():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


def test_bucket_is_listed_with_sizes_and_times_and_unmounted_clean(server: S3Server, command: Commandline) -> None:
    mountpoint = mount(command, "many", server.url)
    before = server.requests("list-type=2")
    lines = shell("find", ".", "-type", "f", "-printf", r"%f %s %T@\n", cwd=mountpoint).splitlines()
    pages = server.requests("list-type=2") - before
    assert sorted(line.rpartition(" ")[0] for line in lines) == [f"k{n:04} {n % 7}" for n in range(2500)]
    stamps = {float(line.rpartition(" ")[2]) for line in lines}
    assert time.time() - 300 < min(stamps) <= max(stamps) < time.time() + 300
    # The sizes and times came with the three pages; where the machine was slower than metadata-ttl, by the page again.
    assert pages < 60
    unmount(command, mountpoint)


def test_checksums_through_the_mount_are_the_originals(server: S3Server, command: Commandline) -> None:
    client = server.client()
    client.create_bucket(Bucket="sums")
    sums = {}
    for number, key in enumerate(
        ("a.bin", "d/b.bin", "d/sp ace.bin", "d/\u65e5\u672c.bin", "d/e/deep.bin", "empty", "big.bin")
    ):
        body = random.Random(number).randbytes({"empty": 0, "big.bin": 20 * MIB + 3}.get(key, number * 700_001))
        client.put_object(Bucket="sums", Key=key, Body=body)
        sums[key] = hashlib.sha256(body).hexdigest()
    mountpoint = mount(command, "sums", server.url)
    for _ in range(2):
        parallel = "find . -type f -print0 | xargs -0 -n1 -P7 sha256sum --zero"
        lines = shell("sh", "-c", parallel, cwd=mountpoint).split("\0")
        found = {line.partition("  ./")[2]: line.partition("  ./")[0] for line in lines if line}
        assert found == sums
    # Direct reads are the filesystem's own answers, not the page cache's.
    direct = "dd if=big.bin iflag=direct bs=1M status=none | sha256sum"
    assert shell("sh", "-c", direct, cwd=mountpoint).split()[0] == sums["big.bin"]
    tail = shell("sh", "-c", "tail -c 1000003 big.bin | sha256sum", cwd=mountpoint).split()[0]
    assert tail == hashlib.sha256(random.Random(6).randbytes(20 * MIB + 3)[-1_000_003:]).hexdigest()
    unmount(command, mountpoint)


def test_replaced_object_is_estale_for_its_reader_and_new_for_the_next(server: S3Server, command: Commandline) -> None:
    client = server.client()
    client.create_bucket(Bucket="versions")
    client.put_object(Bucket="versions", Key="f", Body=b"1" * (8 * MIB))
    mountpoint = mount(command, "versions", server.url)
    with open(mountpoint / "f", "rb", buffering=0) as file:
        assert file.read(4096) == b"1" * 4096
        client.put_object(Bucket="versions", Key="f", Body=b"2" * (8 * MIB))
        with pytest.raises(OSError, match=r".") as info:
            os.pread(file.fileno(), 4096, 7 * MIB)
        assert info.value.errno == errno.ESTALE
        with open(mountpoint / "f", "rb", buffering=0) as again:
            assert os.pread(again.fileno(), 4096, 0) == b"2" * 4096
            assert os.pread(again.fileno(), 4096, 7 * MIB) == b"2" * 4096
            assert os.fstat(again.fileno()).st_ino != os.fstat(file.fileno()).st_ino
        # What the old descriptor can still have is of its own version.
        assert os.pread(file.fileno(), 4096, 0) == b"1" * 4096
    log = unmount(command, mountpoint)
    assert "GetObject 'f'" in log
    assert "ESTALE" in log


def test_object_replaced_since_it_was_listed_opens_as_the_new_one(server: S3Server, command: Commandline) -> None:
    client = server.client()
    client.create_bucket(Bucket="newer")
    for key, size in (("small", 100), ("large", 3 * MIB)):
        client.put_object(Bucket="newer", Key=key, Body=b"1" * size)
    mountpoint = mount(command, "newer", server.url, "--metadata-ttl", "1h")
    assert shell("ls", "-l", str(mountpoint)).count("small") == 1
    for key, size in (("small", 200), ("large", 4 * MIB)):
        client.put_object(Bucket="newer", Key=key, Body=b"2" * size)
        assert shell("cat", key, cwd=mountpoint) == "2" * size
    unmount(command, mountpoint)


def test_writing_is_refused_by_the_kernel(server: S3Server, command: Commandline) -> None:
    client = server.client()
    client.create_bucket(Bucket="fixed")
    client.put_object(Bucket="fixed", Key="f", Body=b"x")
    mountpoint = mount(command, "fixed", server.url)
    attempts: list[Callable[[], None]] = [
        lambda: os.unlink(mountpoint / "f"),
        lambda: os.mkdir(mountpoint / "d"),
        lambda: os.truncate(mountpoint / "f", 0),
    ]
    for attempt in attempts:
        with pytest.raises(OSError, match="Read-only") as info:
            attempt()
        assert info.value.errno == errno.EROFS
    unmount(command, mountpoint)


@pytest.mark.parametrize(
    ("bucket", "environment", "more", "code", "words"),
    [
        ("no-such-bucket", {}, (), 6, "s3://no-such-bucket: no such bucket"),
        ("many/no/such/prefix", {}, (), 6, "begins with 'no/such/prefix/'"),
        ("many", {}, ("--endpoint-url", "http://127.0.0.1:1"), 6, "http://127.0.0.1:1: connection refused"),
        ("many", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, (), 7, "no usable AWS credentials"),
        ("many", {}, ("--profile", "nobody"), 7, "nobody"),
    ],
)
def test_bucket_that_cannot_be_mounted_says_why_and_leaves_nothing(
    server: S3Server,
    command: Commandline,
    bucket: str,
    environment: dict[str, str],
    more: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    command.environment.update(environment)
    result = command.run("mount", "s3", bucket, command.folder(), "--endpoint-url", server.url, *more)
    assert result.returncode == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert command.mounts() == []
    assert command.settle() == {}


class StalledStore(BaseHTTPRequestHandler):
    """Lists two objects; a GET of one, and a lookup of "absent", never end."""

    protocol_version = "HTTP/1.1"
    started: threading.Event
    hung_up: threading.Event

    def do_GET(self) -> None:
        if "list-type" in self.path and "prefix=absent" not in self.path:
            row = "<Contents><Key>{}</Key><Size>{}</Size><ETag>e</ETag><LastModified>{}</LastModified></Contents>"
            rows = "".join(row.format(key, size, "2026-01-01T00:00:00Z") for key, size in (("large", 64 * MIB), ("small", 100)))
            body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.started.set()
        # Waits for the client to hang up, which is what an interrupted read must make it do.
        self.connection.settimeout(30)
        if self.connection.recv(1) == b"":
            self.hung_up.set()
        self.close_connection = True

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(64 * MIB))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def stalled() -> Iterator[tuple[str, type[StalledStore]]]:
    handler = type("Handler", (StalledStore,), {"started": threading.Event(), "hung_up": threading.Event()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@pytest.mark.parametrize(
    "words",
    [["cat", "small"], ["stat", "absent"], ["cat", "large"]],
    ids=["open", "lookup", "read"],
)
def test_interrupted_reader_ends_at_once_and_the_mount_goes_on(
    stalled: tuple[str, type[StalledStore]], command: Commandline, words: list[str]
) -> None:
    url, store = stalled
    mountpoint = mount(command, "bucket", url)
    reader = subprocess.Popen(words, cwd=mountpoint, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert store.started.wait(20)
        # Others are served while one waits.
        assert sorted(shell("ls", str(mountpoint)).split()) == ["large", "small"]
        assert reader.poll() is None
        reader.send_signal(signal.SIGINT)
        assert reader.wait(10) == -signal.SIGINT
    finally:
        reader.kill()
        reader.wait(10)
    if words != ["cat", "large"]:
        # The kernel's own readahead is asked for by nobody, so no signal ends it: it ends at the deadline, or with the mount.
        assert store.hung_up.wait(10)
    unmount(command, mountpoint)
    assert store.hung_up.wait(10)


def test_store_that_died_is_an_errno_and_the_mount_lives(command: Commandline) -> None:
    with S3Server(seed=("short", 3)) as server:
        mountpoint = mount(command, "short", server.url, "--metadata-ttl", "0", "--deadline", "2")
        assert shell("cat", "k0002", cwd=mountpoint) == "xx"
    with pytest.raises(OSError, match="down") as info:
        os.listdir(mountpoint)
    assert info.value.errno == errno.EHOSTDOWN
    assert "connection refused -> EHOSTDOWN" in unmount(command, mountpoint)
