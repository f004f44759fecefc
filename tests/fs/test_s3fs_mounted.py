"""s3fs on the real kernel, mounted with the real command: what people do with it, from moto and from SeaweedFS."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
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
from faultproxy import Fault, FaultProxy
from s3mount import BucketMount, run
from s3server import ACCESS, S3Server
from seaweed import SeaweedServer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from commandline import Commandline, needs_mounts

pytestmark = [needs_mounts, pytest.mark.mounted]

MIB = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server(seed=("many", 2500)) as server:
        yield server


@pytest.fixture(autouse=True)
def credentials(command: Commandline) -> None:
    command.environment.update(ACCESS)
    command.environment["AWS_EC2_METADATA_DISABLED"] = "true"


@pytest.fixture
def proxy(seaweed: SeaweedServer) -> Iterator[FaultProxy]:
    """What stands before SeaweedFS, and counts."""
    with FaultProxy(seaweed.url) as made:
        yield made


def mount(command: Commandline, bucket: str, url: str, *more: str) -> Path:
    mountpoint = command.folder(f"mnt{len(os.listdir(command.top))}")
    source = (bucket,) if bucket else ()
    result = command.run("mount", "s3", *source, mountpoint, "--endpoint-url", url, "--log", str(command.top / "log"), *more)
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
    mountpoint = mount(command, "many", server.url, "--metadata", "none")
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


def test_writing_to_a_read_only_mount_is_refused_by_the_kernel(server: S3Server, command: Commandline) -> None:
    client = server.client()
    client.create_bucket(Bucket="fixed")
    client.put_object(Bucket="fixed", Key="f", Body=b"x")
    mountpoint = mount(command, "fixed", server.url, "--ro")
    attempts: list[Callable[[], object]] = [
        lambda: os.unlink(mountpoint / "f"),
        lambda: os.mkdir(mountpoint / "d"),
        lambda: os.truncate(mountpoint / "f", 0),
        lambda: os.chmod(mountpoint / "f", 0o600),
        lambda: (mountpoint / "f").write_bytes(b"y"),
    ]
    for attempt in attempts:
        with pytest.raises(OSError, match="Read-only") as info:
            attempt()
        assert info.value.errno == errno.EROFS
    assert (mountpoint / "f").read_bytes() == b"x"
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


def test_interrupted_reader_ends_at_once_and_the_mount_goes_on(
    stalled: tuple[str, type[StalledStore]], command: Commandline
) -> None:
    url, store = stalled
    mountpoint = mount(command, "bucket", url, "--ro", "--metadata", "none")
    direct = "dd if=large iflag=direct bs=4096 count=1"
    for line in ("stat absent", "cat small", direct, "cat large"):
        store.started.clear()
        store.hung_up.clear()
        reader = subprocess.Popen(line.split(), cwd=mountpoint, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert store.started.wait(20), line
            # Others are served while one waits.
            assert sorted(shell("ls", str(mountpoint)).split()) == ["large", "small"]
            assert reader.poll() is None
            reader.send_signal(signal.SIGINT)
            assert reader.wait(10) == -signal.SIGINT
        finally:
            reader.kill()
            reader.wait(10)
        if line != "cat large":
            # Nobody asks for the kernel's own readahead, so no signal ends it: it ends at the deadline, or with the mount.
            assert store.hung_up.wait(10), line
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


# What people do.


def test_files_are_written_changed_renamed_and_removed_and_the_store_has_them(bucket_mount: BucketMount) -> None:
    top = bucket_mount.path
    script = """
        set -e
        echo one > a.txt; echo two >> a.txt
        mkdir -p docs/deep; cp a.txt docs/copy.txt; cp -p a.txt docs/deep/kept.txt
        touch -d 2001-02-03T04:05:06.789 docs/deep/kept.txt; chmod 640 docs/deep/kept.txt
        head -c 20000003 /dev/urandom > large.bin; sha256sum large.bin > sum
        printf MIDDLE | dd of=large.bin bs=1 seek=9000000 conv=notrunc status=none
        sed -i s/one/ONE/ a.txt
        mv docs/copy.txt docs/moved.txt; mv docs papers
        ln -s ../a.txt papers/link; mkfifo pipe
        truncate -s 5 sum
        rm -f papers/moved.txt; mkdir gone; rmdir gone
    """
    run("sh", "-c", script, cwd=top)
    large = (top / "large.bin").read_bytes()
    assert large[9_000_000:9_000_006] == b"MIDDLE"
    stored = bucket_mount.stored()
    assert {key: body for key, body in stored.items() if not key.endswith("/")} == {
        "a.txt": b"ONE\ntwo\n",
        "papers/deep/kept.txt": b"one\ntwo\n",
        "large.bin": large,
        "papers/link": b"../a.txt",
        "pipe": b"",
        "sum": (top / "sum").read_bytes(),
    }
    seen = run("find", ".", "-printf", r"%P %M %s %T@ %l\n", cwd=top).stdout
    bucket_mount.remount()
    again = run("find", ".", "-printf", r"%P %M %s %T@ %l\n", cwd=top).stdout
    keep = [line for line in sorted(seen.splitlines()) if " d" not in line]
    assert [line for line in sorted(again.splitlines()) if " d" not in line] == keep
    assert "papers/deep/kept.txt -rw-r----- 8 981173106.789" in seen
    assert hashlib.sha256((top / "large.bin").read_bytes()).digest() == hashlib.sha256(large).digest()


def test_small_files_that_are_copied_in_are_a_put_each_and_read_back_a_get_each(
    command: Commandline, seaweed: SeaweedServer, seaweed_bucket: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    for number in range(60):
        (tmp_path / f"f{number:02}").write_bytes(b"%d" % number * 100)
    mount = BucketMount(command, seaweed, seaweed_bucket, "--metadata-ttl", "60", url=proxy.url)
    top = mount.mount()
    proxy.clear()
    run("cp", "-rp", str(tmp_path), "copy", cwd=top)
    assert proxy.count("PUT", "/copy/f") == 60
    assert proxy.count("HEAD|GET") <= 4
    mount.remount()
    run("ls", "-l", "copy", cwd=top)
    proxy.clear()
    text = run("sh", "-c", "cat copy/*", cwd=top).stdout
    assert text == "".join(f"{number}" * 100 for number in range(60))
    assert proxy.count("GET", "/copy/f") == 60
    assert proxy.count("HEAD") == 0
    mount.unmount()


def test_prefix_is_mounted_and_the_rest_of_the_bucket_is_out_of_reach(
    command: Commandline, seaweed: SeaweedServer, seaweed_bucket: str
) -> None:
    client = seaweed.client()
    for key in ("a/in.txt", "a/b/deep.txt", "ab/out.txt", "out.txt"):
        client.put_object(Bucket=seaweed_bucket, Key=key, Body=key.encode())
    mount = BucketMount(command, seaweed, f"{seaweed_bucket}", url=seaweed.url)
    mount.bucket = f"{seaweed_bucket}/a"
    top = mount.mount()
    assert run("find", ".", "-type", "f", cwd=top).stdout.split() in (
        ["./b/deep.txt", "./in.txt"],
        ["./in.txt", "./b/deep.txt"],
    )
    (top / "b" / "new.txt").write_text("new")
    (top / "in.txt").rename(top / "b" / "moved.txt")
    mount.unmount()
    mount.bucket = seaweed_bucket
    assert {key: body for key, body in mount.stored().items() if not key.endswith("/")} == {
        "a/b/deep.txt": b"a/b/deep.txt",
        "a/b/moved.txt": b"a/in.txt",
        "a/b/new.txt": b"new",
        "ab/out.txt": b"ab/out.txt",
        "out.txt": b"out.txt",
    }


def test_without_a_source_every_bucket_is_a_directory(server: S3Server, command: Commandline) -> None:
    client = server.client()
    for bucket in ("one-of-them", "other-of-them"):
        client.create_bucket(Bucket=bucket)
    client.put_object(Bucket="one-of-them", Key="d/f", Body=b"data")
    mountpoint = mount(command, "", server.url)
    assert {"many", "one-of-them", "other-of-them"} <= set(os.listdir(mountpoint))
    assert (mountpoint / "one-of-them/d/f").read_bytes() == b"data"
    shell("mv", "one-of-them/d/f", "other-of-them/moved", cwd=mountpoint)
    assert client.get_object(Bucket="other-of-them", Key="moved")["Body"].read() == b"data"
    assert "Contents" not in client.list_objects_v2(Bucket="one-of-them", Prefix="d/f")
    with pytest.raises(PermissionError):
        os.mkdir(mountpoint / "new-one")
    unmount(command, mountpoint)


def test_older_versions_are_read_when_asked_for(server: S3Server, command: Commandline) -> None:
    client = server.client()
    client.create_bucket(Bucket="history")
    client.put_bucket_versioning(Bucket="history", VersioningConfiguration={"Status": "Enabled"})
    mountpoint = mount(command, "history", server.url, "--versions")
    (mountpoint / "f").write_text("first")
    (mountpoint / "f").write_text("second")
    os.unlink(mountpoint / "f")
    older = sorted(os.listdir(mountpoint / ".versions" / "f"))
    assert "first" in {(mountpoint / ".versions" / "f" / name).read_text() for name in older}
    assert {"first", "second"} <= {(mountpoint / ".versions" / "f" / name).read_text() for name in older}
    assert os.listdir(mountpoint) == []
    unmount(command, mountpoint)


def test_conflict_is_told_by_close_and_by_errors_and_the_copy_is_where_it_says(
    command: Commandline, seaweed: SeaweedServer, bucket_mount: BucketMount
) -> None:
    top = bucket_mount.path
    (top / "f").write_text("base")
    with open(top / "f", "r+b", buffering=0) as file:
        file.write(b"mine")
        seaweed.client().put_object(Bucket=bucket_mount.bucket, Key="f", Body=b"theirs")
        with pytest.raises(OSError, match=r".") as info:
            os.fsync(file.fileno())
        assert info.value.errno == errno.ESTALE
        # close says so again: who checks only that must not believe it was written.
        with pytest.raises(OSError, match=r".") as info:
            os.close(os.dup(file.fileno()))
        assert info.value.errno == errno.ESTALE
        with pytest.raises(OSError, match=r"."):
            file.close()
    assert bucket_mount.stored()["f"] == b"theirs"
    eventually(lambda: (top / "f").read_bytes() == b"theirs", "theirs is shown")
    said = command.run("errors", top, "--json")
    (problem,) = [row for row in json.loads(said.stdout) if row["path"] == "f"]
    assert problem["errno"] in ("ESTALE", errno.ESTALE)
    kept = re.search(r"/\S+conflicts/[^\s;,]+", problem["cause"])
    assert kept is not None
    assert Path(kept[0]).read_bytes() == b"mine"


def test_refresh_shows_what_others_changed(command: Commandline, seaweed: SeaweedServer, seaweed_bucket: str) -> None:
    client = seaweed.client()
    client.put_object(Bucket=seaweed_bucket, Key="d/f", Body=b"old")
    mount = BucketMount(command, seaweed, seaweed_bucket, "--metadata-ttl", "1h")
    top = mount.mount()
    assert (top / "d/f").read_bytes() == b"old"
    assert not (top / "d/g").exists()
    client.put_object(Bucket=seaweed_bucket, Key="d/f", Body=b"newer")
    client.put_object(Bucket=seaweed_bucket, Key="d/g", Body=b"x")
    assert (top / "d/f").stat().st_size == 3
    assert not (top / "d/g").exists()
    said = command.run("refresh", top / "d")
    assert said.returncode == 0, said.stderr
    assert (top / "d/f").stat().st_size == 5
    assert (top / "d/f").read_bytes() == b"newer"
    assert (top / "d/g").read_bytes() == b"x"
    mount.unmount()


# Servers that die, and data that waits.


def server_of(command: Commandline, mountpoint: Path) -> int:
    """Return the process that serves a mount."""
    for pid in command.processes():
        words = Path(f"/proc/{pid}/fd")
        if any(os.readlink(fd) == "/dev/fuse" for fd in words.iterdir()):
            return pid
    raise AssertionError("nobody serves it")


def test_nothing_acknowledged_by_write_back_is_lost_when_the_server_is_killed(
    command: Commandline, seaweed: SeaweedServer, seaweed_bucket: str
) -> None:
    seaweed.client().put_object(Bucket=seaweed_bucket, Key="old", Body=b"old contents")
    mount = BucketMount(command, seaweed, seaweed_bucket, "--write-back", "--write-back-delay", "1h")
    top = mount.mount()
    large = random.Random(5).randbytes(20 * MIB + 7)
    (top / "d").mkdir()
    for number in range(30):
        (top / "d" / f"f{number}").write_bytes(b"%d" % number * 1000)
    (top / "large").write_bytes(large)
    with open(top / "old", "r+b") as file:
        file.write(b"NEW")
    (top / "d/f7").rename(top / "renamed")
    (top / "d/f8").unlink()
    os.chmod(top / "d/f9", 0o600)
    expected = {f"d/f{number}": b"%d" % number * 1000 for number in range(30) if number not in (7, 8)}
    expected |= {"large": large, "old": b"NEW contents", "renamed": b"7" * 1000}
    assert set(mount.stored()) <= {"old", "d/"}
    os.kill(server_of(command, top), signal.SIGKILL)
    command.run("umount", top)
    assert command.mounts() == []
    mount.mount()
    # All of it is there at once, from the journal.
    assert {key: (top / key).read_bytes() for key in expected} == expected
    assert not (top / "d/f8").exists()
    assert os.stat(top / "d/f9").st_mode & 0o777 == 0o600
    mount.unmount()
    assert {key: body for key, body in mount.stored().items() if not key.endswith("/")} == expected


def test_umount_waits_for_the_data_and_list_says_how_much(
    command: Commandline, seaweed: SeaweedServer, seaweed_bucket: str, proxy: FaultProxy
) -> None:
    mount = BucketMount(command, seaweed, seaweed_bucket, "--write-back", url=proxy.url)
    top = mount.mount()
    held = proxy.add(Fault("PUT", "/f", times=float("inf"), hold=True))
    for number in range(3):
        (top / f"f{number}").write_bytes(bytes(1000))
    proxy.wait_for("PUT", "/f")
    assert mount.stored() == {}
    (row,) = [row for row in json.loads(command.run("list", "--json").stdout) if row["mountpoint"] == str(top)]
    assert row["waiting"] == {"files": 3, "bytes": 3000}
    leaving = command.start("umount", top)
    assert leaving.poll() is None
    time.sleep(0.5)
    assert leaving.poll() is None
    held.release()
    assert leaving.wait(30) == 0
    assert mount.stored() == {f"f{number}": bytes(1000) for number in range(3)}
    assert command.settle() == {}


def test_disk_cache_is_warm_after_a_remount_and_the_kernel_reads_it_without_the_server(
    command: Commandline, seaweed: SeaweedServer, seaweed_bucket: str, proxy: FaultProxy
) -> None:
    data = random.Random(9).randbytes(3 * MIB + 5)
    seaweed.client().put_object(Bucket=seaweed_bucket, Key="f", Body=data)
    mount = BucketMount(command, seaweed, seaweed_bucket, "--cache-size", "64M", url=proxy.url)
    top = mount.mount()
    assert (top / "f").read_bytes() == data
    mount.remount()
    proxy.clear()
    assert (top / "f").read_bytes() == data
    assert proxy.count("GET", "/f$") == 0
    mount.remount()
    # The server is stopped once the file is open: what is read then, the kernel reads from the cache file by itself.
    pid = server_of(command, top)
    script = "import os, signal, sys; f = os.open('f', os.O_RDONLY); os.kill(int(sys.argv[1]), signal.SIGSTOP)"
    script += "; data = b''.join(iter(lambda: os.read(f, 1 << 20), b''))"
    script += "; os.kill(int(sys.argv[1]), signal.SIGCONT); import hashlib; print(hashlib.sha256(data).hexdigest())"
    try:
        read = run(sys.executable, "-c", script, str(pid), cwd=top)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert read.stdout.strip() == hashlib.sha256(data).hexdigest()
    # Who writes it meanwhile has another file of that name, and the reader his version.
    with open(top / "f", "rb", buffering=0) as reader:
        (top / "f").write_bytes(b"written")
        assert reader.read(10) == data[:10]
    assert (top / "f").read_bytes() == b"written"
    mount.unmount()


def test_upload_that_fails_for_a_while_is_an_error_of_close_and_then_done(
    command: Commandline, seaweed: SeaweedServer, seaweed_bucket: str, proxy: FaultProxy
) -> None:
    mount = BucketMount(command, seaweed, seaweed_bucket, "--deadline", "1", url=proxy.url)
    top = mount.mount()
    proxy.add(Fault("PUT", "/f$", times=float("inf"), status=503, code="SlowDown"))
    with pytest.raises(OSError, match=r"."):
        (top / "f").write_bytes(b"data")
    assert (top / "f").read_bytes() == b"data"
    assert '"f"' in command.run("errors", top, "--json").stdout
    proxy.clear()
    eventually(lambda: mount.stored() == {"f": b"data"}, "it is uploaded")
    mount.unmount()
