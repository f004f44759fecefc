"""httpfs mounted with the real command, before nginx and Apache, and used by programs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commandline import Commandline
from httpworld import OLD, World, eventually
from s3mount import run, tree
from webservers import Apache, Nginx, Server

pytestmark = pytest.mark.mounted
MIB = 1 << 20


class WebMount:
    """A URL, on *path* after mount()."""

    def __init__(self, command: Commandline, url: str, *options: str) -> None:
        self.command = command
        self.url = url
        self.options = options
        self.path = command.folder(f"mnt-{len(os.listdir(command.top))}")
        self.log = command.top / f"{self.path.name}.log"
        self.cache = command.top / "cache"

    def mount(self) -> Path:
        """Mount it and return where."""
        arguments = ("--cache-dir", self.cache, "--cache-size", "1G", "--log", self.log, *self.options)
        result = self.command.run("mount", "http", self.url, self.path, *arguments)
        assert result.returncode == 0, result.stderr
        return self.path

    def unmount(self) -> str:
        """Unmount it, see that nothing is left and that the log has no bug in it; return the log."""
        result = self.command.run("umount", self.path)
        log = self.log.read_text() if self.log.exists() else ""
        assert result.returncode == 0, f"{result.stderr}\n{log}"
        assert self.command.settle() == {}
        assert "Traceback" not in log, log
        return log

    def remount(self) -> None:
        self.unmount()
        self.mount()

    def server(self) -> int:
        """Return the process that serves it."""
        for pid in self.command.processes():
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                # It may be closed, or its process gone, in the meantime.
                with contextlib.suppress(FileNotFoundError):
                    if os.readlink(fd) == "/dev/fuse":
                        return pid
        raise AssertionError("nobody serves it")


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield made


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with files of all kinds, as servers are to show it."""
    root = tmp_path_factory.mktemp("served")
    root.chmod(0o755)
    noise = random.Random(1)
    for name, size in {
        "empty": 0,
        "small": 10,
        "a b.txt": 5000,
        "ümläut": 70_000,
        "deep/er/leaf": 4,
        "large": 3 * MIB + 7,
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise.randbytes(size))
        os.utime(path, (OLD, OLD))
    (root / "none").mkdir()
    for number in range(100):
        (root / f"f{number:04}").write_bytes(noise.randbytes(100 * number))
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return root


SERVERS = {
    "nginx": lambda root: Nginx(root),
    "nginx-json": lambda root: Nginx(root, autoindex="json"),
    "apache": lambda root: Apache(root),
}


@pytest.fixture(scope="module", params=sorted(SERVERS))
def server(request: pytest.FixtureRequest, served: Path) -> Iterator[Server]:
    with SERVERS[request.param](served) as made:
        yield made


def test_programs_see_what_the_server_serves(command: Commandline, server: Server, served: Path) -> None:
    mount = WebMount(command, server.url)
    top = mount.mount()
    shown = tree(top)
    expected = tree(served)
    assert {name: row[1:] for name, row in shown.items()} == {name: row[1:] for name, row in expected.items()}
    run("cp", "-r", top, command.top / "copy", cwd=command.top)
    run("diff", "-r", served, command.top / "copy", cwd=command.top)
    said = run("md5sum", "large", "a b.txt", "ümläut", cwd=top).stdout
    assert said == run("md5sum", "large", "a b.txt", "ümläut", cwd=served).stdout
    assert len(run("find", ".", "-name", "f00?3", cwd=top).stdout.split()) == 10
    assert run("touch", "new", cwd=top, check=False).returncode == 1
    assert command.run("errors", top).stdout == "No errors.\n"
    mount.unmount()


def test_a_long_listing_of_a_thousand_files_is_one_request(command: Commandline, tmp_path: Path) -> None:
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    (tmp_path / "many").mkdir()
    for number in range(1000):
        (tmp_path / "many" / f"f{number:04}").write_bytes(b"x" * number)
    with Nginx(tmp_path) as server:
        mount = WebMount(command, f"{server.url}many/")
        top = mount.mount()
        lines = run("ls", "-l", cwd=top).stdout.splitlines()
        assert len(lines) == 1001
        assert [int(line.split()[4]) for line in lines[1:]] == list(range(1000))
        assert server.requests() == ["GET /many/"]
        mount.unmount()


def test_a_url_of_a_file_is_that_file(command: Commandline, served: Path) -> None:
    with Nginx(served) as server:
        mount = WebMount(command, f"{server.url}large")
        top = mount.mount()
        assert os.listdir(top) == ["large"]
        assert (top / "large").read_bytes() == (served / "large").read_bytes()
        mount.unmount()


def test_the_cache_is_warm_after_a_kill_and_the_kernel_reads_it_without_the_server(command: Commandline, world: World) -> None:
    data = random.Random(9).randbytes(3 * MIB + 5)
    world.put("f", data)
    mount = WebMount(command, world.url)
    top = mount.mount()
    assert (top / "f").read_bytes() == data
    os.kill(mount.server(), signal.SIGKILL)
    command.run("umount", top)
    mount.mount()
    world.forget()
    assert (top / "f").read_bytes() == data
    assert world.count("GET /f") <= 1, "one byte, to see whether HEAD is to be believed"
    mount.remount()
    # The server is stopped once the file is open: what is read then, the kernel reads from the cache file by itself.
    pid = mount.server()
    script = "import os, signal, sys; f = os.open('f', os.O_RDONLY); os.kill(int(sys.argv[1]), signal.SIGSTOP)"
    script += "; data = b''.join(iter(lambda: os.read(f, 1 << 20), b''))"
    script += "; os.kill(int(sys.argv[1]), signal.SIGCONT); import hashlib; print(hashlib.sha256(data).hexdigest())"
    try:
        read = run(sys.executable, "-c", script, str(pid), cwd=top)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert read.stdout.strip() == hashlib.sha256(data).hexdigest()
    mount.unmount()


def test_who_opens_a_file_that_was_replaced_reads_the_new_one(command: Commandline, world: World) -> None:
    old, new = random.Random(1).randbytes(MIB), random.Random(2).randbytes(2 * MIB)
    world.put("f", old)
    mount = WebMount(command, world.url, "--metadata-ttl", "0.1")
    top = mount.mount()
    assert (top / "f").read_bytes() == old
    with open(top / "f", "rb") as file:
        world.put("f", new, OLD + 100)
        eventually(lambda: (top / "f").stat().st_size == len(new), "the new size is seen")
        assert (top / "f").read_bytes() == new
        assert os.fstat(file.fileno()).st_size == len(old)
        # From the cache, for it was read whole before it went.
        assert file.read() == old
    mount.unmount()


def test_refresh_shows_what_others_changed(command: Commandline, world: World) -> None:
    world.put("d/f", b"old")
    mount = WebMount(command, world.url, "--metadata-ttl", "1h", "--negative-ttl", "1h")
    top = mount.mount()
    assert (top / "d/f").read_bytes() == b"old"
    assert not (top / "d/g").exists()
    world.put("d/f", b"newer", OLD + 600)
    world.put("d/g", b"x")
    assert (top / "d/f").stat().st_size == 3
    assert not (top / "d/g").exists()
    said = command.run("refresh", top / "d")
    assert said.returncode == 0, said.stderr
    assert (top / "d/f").stat().st_size == 5
    assert (top / "d/f").read_bytes() == b"newer"
    assert (top / "d/g").read_bytes() == b"x"
    mount.unmount()


def test_what_failed_is_told_by_errors(command: Commandline, world: World) -> None:
    world.put("d/a file", b"x" * MIB)
    mount = WebMount(command, world.url, "--deadline", "1")
    top = mount.mount()
    world.hook = lambda method, path: 500 if path.endswith("file") else 0
    with pytest.raises(OSError, match=r"."):
        (top / "d/a file").read_bytes()
    (problem,) = json.loads(command.run("errors", top, "--json").stdout)
    assert problem["path"] == "d/a file"
    assert "500" in problem["cause"]
    world.hook = None
    assert (top / "d/a file").read_bytes() == b"x" * MIB
    mount.unmount()


def test_a_host_that_is_gone_is_said_and_what_is_cached_is_read(command: Commandline, world: World) -> None:
    world.put("f", b"cached")
    mount = WebMount(command, world.url, "--deadline", "1", "--connect-timeout", "1")
    top = mount.mount()
    assert (top / "f").read_bytes() == b"cached"
    mount.unmount()
    world.stop()
    result = command.run("mount", "http", mount.url, top, "--cache-dir", mount.cache, "--cache-size", "1G", *mount.options)
    assert result.returncode == 0, result.stderr
    assert "offline" in result.stdout + result.stderr
    assert (top / "f").read_bytes() == b"cached"
    mount.unmount()


def test_locks_are_the_kernels(command: Commandline, world: World) -> None:
    world.put("f", b"x")
    mount = WebMount(command, world.url)
    top = mount.mount()
    with open(top / "f", "rb") as one, open(top / "f", "rb") as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    mount.unmount()


def test_a_source_that_leads_nowhere_is_one_line_with_its_remedy(command: Commandline, world: World) -> None:
    place = command.folder()
    for url, code in ((f"{world.url}missing", 6), (f"{world.url}missing/", 6), ("http://127.0.0.1:9/", 6), ("ftp://x/", 6)):
        result = command.run("mount", "http", url, place, "--deadline", "1")
        assert result.returncode == code, result.stderr
        assert "Traceback" not in result.stderr
        assert len(result.stderr.strip().splitlines()) == 2, result.stderr
