"""The examples are what they say: hello.py is under 30 lines, runs as its docstring tells, and behaves on both kernels."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pyfusekit.core import abi
from pyfusekit.core.codec import decode_dirents
from pyfusekit.core.mount import abort, unmount
from pyfusekit.core.mountinfo import MountInfo, read_mountinfo
from pyfusekit.testing.kernel import FakeKernel

REPOSITORY = Path(__file__).resolve().parents[1]
HELLO = REPOSITORY / "examples" / "hello.py"
TEXT = "Hello, world!\n"
WATCHDOG_S = 40.0


@pytest.fixture(scope="module")
def hello() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hello_example", HELLO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hello_is_under_30_lines_and_needs_nothing_but_the_core() -> None:
    source = HELLO.read_text()
    assert len(source.splitlines()) < 30
    assert set(re.findall(r"^(?:from|import) (\S+)", source, flags=re.M)) == {"stat", "sys", "pyfusekit"}


# --- the fake kernel ----------------------------------------------------------------------------------------------------


async def test_hello_answers_the_fake_kernel(hello: ModuleType) -> None:
    async with FakeKernel(hello.Hello()) as kernel:
        entry = (await kernel.request(abi.LOOKUP, abi.ROOT_ID, names=[b"hello"])).fields
        assert (entry["nodeid"], entry["attr_size"], entry["attr_mode"]) == (2, len(TEXT), stat.S_IFREG | 0o444)
        root = (await kernel.request(abi.GETATTR, abi.ROOT_ID)).fields
        assert root["attr_mode"] == stat.S_IFDIR | 0o755
        handle = (await kernel.request(abi.OPEN, 2, flags=os.O_RDONLY)).fields["fh"]
        for offset, size in ((0, 100), (7, 5), (14, 1), (1000, 10)):
            reply = await kernel.request(abi.READ, 2, fh=handle, offset=offset, size=size)
            assert reply.data == TEXT.encode()[offset : offset + size]
        await kernel.request(abi.RELEASE, 2, fh=handle)
        listing = (await kernel.request(abi.READDIR, abi.ROOT_ID, offset=0, size=4096)).data
        assert [(row["name"], row["ino"]) for row in decode_dirents(listing, plus=False)] == [(b"hello", 2)]
        missing = (await kernel.request(abi.LOOKUP, abi.ROOT_ID, names=[b"nobody"])).fields
        assert missing["nodeid"] == 0
        kernel.forget_all()
        await kernel.settle()
        kernel.check()


# --- the real one -------------------------------------------------------------------------------------------------------


def mount_at(place: Path) -> MountInfo | None:
    """Return what is mounted at *place*, without touching it."""
    return next((info for info in read_mountinfo() if info.mountpoint == str(place)), None)


def until(check: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """hello.py, run as its docstring says; when the test hangs, its mount is aborted."""
    place = tmp_path / "mnt"
    place.mkdir()
    argv = [sys.executable, "-W", "error", str(HELLO), str(place)]
    server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def cut() -> None:
        info = mount_at(place)
        if info is not None:
            abort(info.minor)

    watchdog = threading.Timer(WATCHDOG_S, cut)
    watchdog.daemon = True
    watchdog.start()
    try:
        until(lambda: mount_at(place) is not None or server.poll() is not None)
        yield server, place
    finally:
        watchdog.cancel()
        if server.poll() is None:
            server.kill()
        server.communicate(timeout=20)
        if mount_at(place) is not None:
            unmount(str(place), lazy=True)


def shell(command: str, place: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in the mount; it is killed when the mount hangs."""
    argv = ["timeout", "-s", "KILL", "20", "sh", "-c", command]
    return subprocess.run(argv, cwd=place, capture_output=True, text=True, timeout=30, env={**os.environ, "LC_ALL": "C"})


@pytest.mark.mounted
def test_hello_is_listed_read_and_cannot_be_changed(served: tuple[subprocess.Popen[str], Path]) -> None:
    server, place = served
    listed = shell("ls", place)
    assert (listed.returncode, listed.stdout, listed.stderr) == (0, "hello\n", "")
    assert shell("cat hello", place).stdout == TEXT
    assert shell("tail -c 7 hello", place).stdout == TEXT[-7:]
    assert os.strerror(errno.ENOENT) in shell("cat nobody", place).stderr
    for change in ("echo x > hello", "echo x > new", "mkdir d", "rm -f hello", "chmod 600 hello", "mv hello you"):
        done = shell(change, place)
        assert done.returncode != 0
        assert os.strerror(errno.EROFS) in done.stderr, change
    assert shell("cat hello", place).stdout == TEXT
    assert server.poll() is None


@pytest.mark.mounted
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_hello_ends_cleanly_at_a_signal(served: tuple[subprocess.Popen[str], Path], number: int) -> None:
    server, place = served
    assert shell("cat hello", place).stdout == TEXT
    server.send_signal(number)
    output, _ = server.communicate(timeout=20)
    assert (server.returncode, output) == (0, "")
    assert mount_at(place) is None


@pytest.mark.mounted
def test_hello_ends_when_it_is_unmounted(served: tuple[subprocess.Popen[str], Path]) -> None:
    server, place = served
    assert shell("ls", place).returncode == 0
    unmount(str(place))
    output, _ = server.communicate(timeout=20)
    assert (server.returncode, output) == (0, "")


# --- the demonstration --------------------------------------------------------------------------------------------------


@pytest.mark.mounted
@pytest.mark.timeout(240)
def test_the_demonstration_ends_well(tmp_path: Path) -> None:
    argv = ["timeout", "-s", "TERM", "180", sys.executable, str(REPOSITORY / "examples" / "demo.py")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=230, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    for shown in ("$ pyfusekit mount s3 ", "$ ls -lR", "$ sed -i ", "$ mv photos pictures", "$ pyfusekit umount "):
        assert shown in done.stdout
    assert "Writing back to demo-bucket: " in done.stdout, "unmounting waits for data"
    assert os.listdir(tmp_path) == []


def test_without_seaweedfs_the_demonstration_has_moto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples"))
    localstore = importlib.import_module("localstore")
    monkeypatch.setattr(localstore.shutil, "which", lambda *_, **__: None)
    with localstore.LocalStore(tmp_path, os.environ) as store:
        assert store.name == "moto"
        with urllib.request.urlopen(store.url, timeout=20) as answer:
            assert b"ListAllMyBucketsResult" in answer.read()
    assert capsys.readouterr().out.startswith("SeaweedFS does not run here")
