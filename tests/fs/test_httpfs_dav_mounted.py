"""Writing by WebDAV on the real kernel, mounted with the real command: programs, other clients, crashes, full servers."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from davworld import FakeDav, Fault, served
from s3mount import run, tree
from webservers import Apache, Lighttpd, Nginx, Server

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from commandline import Commandline, needs_mounts

from pyfusekit.testing.contract.base import fails_with

pytestmark = [needs_mounts, pytest.mark.mounted]

SERVERS: dict[str, type[Apache] | type[Nginx] | type[Lighttpd]] = {"apache": Apache, "nginx": Nginx, "lighttpd": Lighttpd}


class Mount:
    """A mount of *url*, to write."""

    def __init__(self, command: Commandline, url: str, *options: str, words: str = "rw") -> None:
        self.command = command
        self.path = command.folder(f"mnt{len(os.listdir(command.top))}")
        self.log = command.top / f"{self.path.name}.log"
        self.staging = command.top / "staging"
        where = ("--staging-dir", str(self.staging), "--cache-dir", str(command.top / "cache"), "--log", str(self.log))
        asked = {"": (), "rw": ("--rw",)}.get(words, ("-o", words))
        result = command.run("mount", "http", url, self.path, *asked, *where, *options)
        assert result.returncode == 0, result.stderr
        self.said = result.stderr

    def problems(self) -> str:
        """Return what `pyfusekit errors` shows."""
        result = self.command.run("errors", self.path)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def refresh(self) -> None:
        """Have the mount see what others did."""
        assert self.command.run("refresh", self.path).returncode == 0

    def kept(self) -> dict[str, bytes]:
        """Return the copies that were kept."""
        return {str(one): one.read_bytes() for one in (self.staging / "http" / "kept").glob("*") if one.suffix != ".json"}

    def unmount(self) -> str:
        """Unmount, see that nothing but what was kept is left, and return the log."""
        result = self.command.run("umount", self.path)
        assert result.returncode == 0, result.stderr
        assert self.command.settle() == {}
        log = self.log.read_text()
        assert "Traceback" not in log, log
        assert list((self.staging / "http" / "open").glob("*")) == []
        return log


def server_of(command: Commandline) -> int:
    """Return the process that serves the mount: one that this test started."""
    for pid in command.processes():
        if any(os.readlink(fd) == "/dev/fuse" for fd in Path(f"/proc/{pid}/fd").iterdir()):
            return pid
    raise AssertionError("nobody serves it")


@pytest.fixture
def fake() -> Iterator[FakeDav]:
    with served(FakeDav()) as made:
        yield made


@pytest.fixture(params=list(SERVERS), scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp(request.param)
    root.chmod(0o777)
    with SERVERS[request.param](root, dav=True) as started:
        yield started


@pytest.fixture
def folder(server: Server) -> Path:
    """An empty directory of the server."""
    made = server.root / f"t{len(list(server.root.iterdir()))}"
    made.mkdir()
    made.chmod(0o777)
    return made


@pytest.fixture
def mounted(command: Commandline, server: Server, folder: Path) -> Iterator[Mount]:
    mount = Mount(command, f"{server.url}{folder.name}/")
    yield mount
    mount.unmount()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree to copy in: names with spaces and more, modes, times, an empty file and directory, and a large file."""
    top = tmp_path / "source"
    (top / "sub dir" / "empty").mkdir(parents=True)
    (top / "plain.txt").write_text("plain\n")
    (top / "sub dir" / "größe 100%+#?&;=.bin").write_bytes(os.urandom(100_000))
    (top / "sub dir" / "nothing").touch()
    (top / "large").write_bytes(os.urandom(3 << 20))
    (top / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (top / "run.sh").chmod(0o755)
    for path in top.rglob("*"):
        if path.is_file():
            os.utime(path, ns=(10**18, 1_234_567_890_123_456_789))
            path.chmod(0o755 if path.suffix == ".sh" else 0o644)
    return top


# Programs.


def test_a_tree_is_copied_in_and_out(mounted: Mount, folder: Path, source: Path, tmp_path: Path) -> None:
    run("cp", "-rp", source, mounted.path / "copy", cwd=tmp_path)
    assert tree(mounted.path / "copy", times=True) == tree(source, times=True)
    on_server = {name: row[1:] for name, row in tree(folder / "copy").items()}
    assert on_server == {name: row[1:] for name, row in tree(source).items()}
    assert run("./run.sh", cwd=mounted.path / "copy").stdout == "ran\n"
    run("cp", "-r", mounted.path / "copy", tmp_path / "back", cwd=tmp_path)
    assert {name: row[1:] for name, row in tree(tmp_path / "back").items()} == on_server
    run("rm", "-r", mounted.path / "copy", cwd=tmp_path)
    assert list(folder.iterdir()) == []


def test_rsync_brings_it_once_and_finds_nothing_to_do_then(mounted: Mount, folder: Path, source: Path, tmp_path: Path) -> None:
    first = run("rsync", "-ai", f"{source}/", mounted.path / "copy", cwd=tmp_path)
    assert "large" in first.stdout
    assert run("rsync", "-aic", f"{source}/", mounted.path / "copy", cwd=tmp_path).stdout == ""
    again = run("rsync", "-ai", "--omit-dir-times", f"{source}/", mounted.path / "copy", cwd=tmp_path)
    assert again.stdout == ""
    (source / "plain.txt").write_text("changed, and longer\n")
    (source / "large").unlink()
    run("rsync", "-a", "--delete", f"{source}/", mounted.path / "copy", cwd=tmp_path)
    assert (folder / "copy" / "plain.txt").read_text() == "changed, and longer\n"
    assert not (folder / "copy" / "large").exists()


def test_vim_writes_with_backup_and_swap_file(mounted: Mount, folder: Path) -> None:
    vim = ("vim", "-u", "NONE", "-i", "NONE", "-N", "-es", "--cmd", "set swapfile backup writebackup")
    run(*vim, "-c", "normal ifirst", "-c", "wq", "notes.txt", cwd=mounted.path)
    run(*vim, "-c", "normal Gosecond", "-c", "wq", "notes.txt", cwd=mounted.path)
    assert (folder / "notes.txt").read_text() == "first\nsecond\n"
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_git_commits_checks_out_and_finds_all_whole(mounted: Mount, folder: Path, source: Path) -> None:
    git = ("git", "-c", "user.name=n", "-c", "user.email=e@x", "-c", "gc.auto=0")
    run(*git, "init", "-q", "-b", "main", "repo", cwd=mounted.path)
    repo = mounted.path / "repo"
    run("cp", "-rp", f"{source}/.", repo, cwd=source)
    run(*git, "add", ".", cwd=repo)
    run(*git, "commit", "-qm", "one", cwd=repo)
    (repo / "plain.txt").write_text("two\n")
    run(*git, "commit", "-qam", "two", cwd=repo)
    assert run(*git, "status", "--porcelain", cwd=repo).stdout == ""
    run(*git, "checkout", "-q", "HEAD~1", cwd=repo)
    assert (repo / "plain.txt").read_text() == "plain\n"
    run(*git, "fsck", "--strict", cwd=repo)
    assert (folder / "repo" / "plain.txt").read_text() == "plain\n"


def test_lines_appended_by_the_shell_one_open_each(mounted: Mount, folder: Path) -> None:
    run("sh", "-c", "for i in 1 2 3 4 5 6; do echo $i >> log; done; cat log", cwd=mounted.path)
    assert (folder / "log").read_text() == "1\n2\n3\n4\n5\n6\n"


def test_database_is_written_through_random_access(mounted: Mount, folder: Path, tmp_path: Path) -> None:
    code = (
        "import sqlite3; c = sqlite3.connect('db'); c.execute('create table t (n integer, s text)');"
        "c.executemany('insert into t values (?, ?)', [(n, 'x' * n) for n in range(500)]); c.commit();"
        "c.execute('delete from t where n % 2'); c.commit(); c.close()"
    )
    run(sys.executable, "-c", code, cwd=mounted.path)
    check = "import sqlite3; print(sqlite3.connect('db').execute('pragma integrity_check').fetchone(),"
    check += "sqlite3.connect('db').execute('select count(*) from t').fetchone())"
    assert run(sys.executable, "-c", check, cwd=folder).stdout == "('ok',) (250,)\n"


def test_replaced_many_times_in_a_second_is_never_an_older_version(mounted: Mount, folder: Path) -> None:
    for number in range(30):
        (mounted.path / "new").write_bytes(b"%05d" % number)
        os.rename(mounted.path / "new", mounted.path / "file")
        assert (mounted.path / "file").read_bytes() == b"%05d" % number
        (mounted.path / "file").write_bytes(b"%05d" % (1000 + number))
        assert (mounted.path / "file").read_bytes() == b"%05d" % (1000 + number)
    for number in range(10):
        (mounted.path / "again").write_bytes(b"%05d" % number)
        assert (mounted.path / "again").read_bytes() == b"%05d" % number
        os.unlink(mounted.path / "again")
    assert (folder / "file").read_bytes() == b"01029"


def test_renamed_and_removed_while_open(mounted: Mount, folder: Path) -> None:
    large = os.urandom(8 << 20)
    (folder / "seen").write_bytes(large)
    mounted.refresh()
    os.mkdir(mounted.path / "d")
    with open(mounted.path / "seen", "rb", buffering=0) as reader, open(mounted.path / "new", "wb", buffering=0) as writer:
        writer.write(b"one")
        os.rename(mounted.path / "new", mounted.path / "d" / "renamed")
        assert (folder / "d" / "renamed").read_bytes() == b"one"
        writer.write(b" two")
        assert (mounted.path / "d" / "renamed").read_bytes() == b"one two"
        os.rename(mounted.path / "seen", mounted.path / "d" / "moved")
        os.unlink(mounted.path / "d" / "moved")
        assert reader.read() == large
    assert (folder / "d" / "renamed").read_bytes() == b"one two"
    os.unlink(mounted.path / "d" / "renamed")
    os.rmdir(mounted.path / "d")
    assert list(folder.iterdir()) == []


def test_what_is_written_is_told_without_listing_again(command: Commandline, fake: FakeDav) -> None:
    mount = Mount(command, fake.url)
    os.listdir(mount.path)
    fake.seen.clear()
    for number in range(5):
        (mount.path / f"f{number}").write_bytes(b"x" * number)
    assert {path.name: path.stat().st_size for path in mount.path.iterdir()} == {f"f{number}": number for number in range(5)}
    assert fake.methods("PROPFIND") == []
    mount.unmount()


def test_unsaved_files_stay_listed_whatever_the_server_lists(command: Commandline, fake: FakeDav) -> None:
    mount = Mount(command, fake.url, "--metadata-ttl", "50ms")
    os.mkdir(mount.path / "d")
    os.mkdir(mount.path / "e")
    with open(mount.path / "new", "wb", buffering=0) as new, open(mount.path / "d" / "moved", "wb", buffering=0) as moved:
        new.write(b"12345")
        os.rename(mount.path / "d" / "moved", mount.path / "e" / "moved")
        moved.write(b"123")
        for number in range(3):
            fake.set(f"/theirs{number}", b"x")
            time.sleep(0.1)
            assert sorted(os.listdir(mount.path)) == ["d", "e", "new", *(f"theirs{one}" for one in range(number + 1))]
            assert (mount.path / "new").stat().st_size == 5
            assert os.listdir(mount.path / "d") == []
            assert os.listdir(mount.path / "e") == ["moved"]
            assert (mount.path / "e" / "moved").stat().st_ino == os.fstat(moved.fileno()).st_ino
    assert fake.get("/e/moved") == b"123"
    mount.unmount()


def test_a_renamed_directory_is_the_same_to_who_stands_in_it(command: Commandline, fake: FakeDav) -> None:
    fake.set("/a", None)
    fake.set("/a/sub", None)
    fake.set("/a/sub/f", b"data")
    fake.set("/b", None)
    mount = Mount(command, fake.url, "--metadata-ttl", "50ms")
    inside = os.open(mount.path / "a" / "sub", os.O_RDONLY)
    file = os.open(mount.path / "a" / "sub" / "f", os.O_RDONLY)
    os.rename(mount.path / "a" / "sub", mount.path / "b" / "renamed")
    time.sleep(0.1)
    assert os.listdir(inside) == ["f"]
    assert os.read(file, 10) == b"data"
    with open("new", "wb", opener=lambda name, flags: os.open(name, flags, dir_fd=inside)) as new:
        new.write(b"x")
    assert fake.get("/b/renamed/new") == b"x"
    os.rmdir(mount.path / "a")
    time.sleep(0.1)
    assert sorted(os.listdir(mount.path / "b" / "renamed")) == ["f", "new"]
    assert os.stat(mount.path / "b" / "renamed" / "f").st_size == 4
    os.close(inside)
    os.close(file)
    mount.unmount()


# Other clients.


def test_somebody_elses_change_between_open_and_close_is_estale(mounted: Mount, server: Server, folder: Path) -> None:
    (folder / "f").write_bytes(b"before")
    mounted.refresh()
    with open(mounted.path / "f", "r+b", buffering=0) as file:
        file.write(b"mine")
        other = urllib.request.Request(
            f"{server.url}{folder.name}/f", b"somebody else's", {"Content-Type": "x/y"}, method="PUT"
        )
        urllib.request.urlopen(other, timeout=10).close()
        with fails_with(errno.ESTALE):
            os.fsync(file.fileno())
        with fails_with(errno.ESTALE):
            file.write(b"more")
        with fails_with(errno.ESTALE):
            file.close()
    assert (folder / "f").read_bytes() == b"somebody else's"
    assert (mounted.path / "f").read_bytes() == b"somebody else's"
    ((path, data),) = mounted.kept().items()
    assert data == b"minere"
    said = mounted.problems()
    assert path in said
    assert "ESTALE" in said
    assert path in mounted.log.read_text()
    (mounted.path / "f").write_bytes(b"again")
    assert (folder / "f").read_bytes() == b"again"


def test_close_reports_the_conflict(command: Commandline, fake: FakeDav) -> None:
    mount = Mount(command, fake.url)
    fd = os.open(mount.path / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.write(fd, b"mine")
    fake.set("/new", b"theirs")
    with fails_with(errno.ESTALE):
        os.close(fd)
    assert fake.get("/new") == b"theirs"
    assert list(mount.kept().values()) == [b"mine"]
    assert (mount.path / "new").read_bytes() == b"theirs"
    mount.unmount()


def test_what_is_written_can_be_removed_although_the_server_lost_it(command: Commandline, fake: FakeDav) -> None:
    fake.set("/f", b"data")
    mount = Mount(command, fake.url)
    fd = os.open(mount.path / "f", os.O_RDWR)
    os.write(fd, b"DATA")
    del fake.files["/f"]
    os.unlink(mount.path / "f")
    assert os.pread(fd, 10, 0) == b"DATA"
    os.close(fd)
    assert fake.names() == []
    assert mount.kept() == {}
    assert os.listdir(mount.path) == []
    mount.unmount()


def test_opening_one_file_after_the_other_does_not_touch_what_is_unsaved(command: Commandline, fake: FakeDav) -> None:
    for number in range(6):
        fake.set(f"/f{number}", b"%d" % number)
    mount = Mount(command, fake.url)
    os.listdir(mount.path)
    unsaved = [os.open(mount.path / name, os.O_WRONLY | os.O_CREAT) for name in ("new0", "f4", "new1")]
    for fd in unsaved:
        os.write(fd, b"unsaved")
    for number in (0, 1, 2, 3, 5):
        assert (mount.path / f"f{number}").read_bytes() == b"%d" % number
    assert {name: (mount.path / name).stat().st_size for name in ("new0", "f4", "new1")} == {"new0": 7, "f4": 7, "new1": 7}
    for fd in unsaved:
        os.close(fd)
    assert [fake.get(path) for path in ("/new0", "/f4", "/new1")] == [b"unsaved"] * 3
    mount.unmount()


def test_directories_are_never_removed_with_what_is_in_them(mounted: Mount, folder: Path) -> None:
    os.mkdir(mounted.path / "d")
    os.mkdir(mounted.path / "e")
    (folder / "d" / "theirs").write_bytes(b"x")
    with fails_with(errno.ENOTEMPTY):
        os.rmdir(mounted.path / "d")
    with fails_with(errno.ENOTEMPTY):
        os.rename(mounted.path / "e", mounted.path / "d")
    assert (folder / "d" / "theirs").exists()
    assert os.listdir(mounted.path / "d") == ["theirs"]


# What fails.


@pytest.mark.parametrize(("status", "number"), [(507, errno.ENOSPC), (423, errno.EBUSY), (403, errno.EACCES)])
def test_refused_files_are_reported_and_kept(command: Commandline, fake: FakeDav, status: int, number: int) -> None:
    mount = Mount(command, fake.url)
    (mount.path / "first").write_bytes(b"x")
    fake.faults.append(Fault("PUT", status=status, times=100))
    fd = os.open(mount.path / "f", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"not lost")
    with fails_with(number):
        os.fsync(fd)
    with fails_with(number):
        os.close(fd)
    deadline = time.monotonic() + 20
    while not mount.kept():
        assert time.monotonic() < deadline, "the copy is kept"
        time.sleep(0.01)
    ((path, data),) = mount.kept().items()
    assert data == b"not lost"
    assert path in mount.problems()
    assert not (mount.path / "f").exists()
    fake.faults.clear()
    (mount.path / "f").write_bytes(b"now")
    assert fake.get("/f") == b"now"
    mount.unmount()


def test_fsync_that_failed_may_succeed_later(command: Commandline, fake: FakeDav) -> None:
    mount = Mount(command, fake.url)
    (mount.path / "first").write_bytes(b"x")
    fd = os.open(mount.path / "f", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"data")
    fake.faults.append(Fault("PUT", status=507))
    with fails_with(errno.ENOSPC):
        os.fsync(fd)
    os.fsync(fd)
    os.close(fd)
    assert fake.get("/f") == b"data"
    assert mount.kept() == {}
    mount.unmount()


def test_lost_answers_do_not_show(command: Commandline, fake: FakeDav) -> None:
    mount = Mount(command, fake.url)
    (mount.path / "first").write_bytes(b"x")
    fake.faults += [Fault("PUT", lost=True), Fault("MKCOL", lost=True), Fault("MOVE", lost=True), Fault("DELETE", lost=True)]
    (mount.path / "f").write_bytes(b"data")
    os.mkdir(mount.path / "d")
    os.rename(mount.path / "f", mount.path / "d" / "g")
    os.unlink(mount.path / "first")
    assert fake.names() == ["/d", "/d/g"]
    assert fake.faults == []
    assert mount.kept() == {}
    mount.unmount()


def test_kill_9_loses_nothing_that_was_closed_and_names_the_rest(command: Commandline, fake: FakeDav) -> None:
    mount = Mount(command, fake.url)
    (mount.path / "closed").write_bytes(b"acknowledged")
    fd = os.open(mount.path / "open", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"never closed")
    os.kill(server_of(command), signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.close(fd)
    command.run("umount", mount.path)
    assert fake.get("/closed") == b"acknowledged"
    assert fake.get("/open") is None
    again = Mount(command, fake.url)
    ((path, data),) = again.kept().items()
    assert data == b"never closed"
    assert path in again.said
    assert f"{fake.url}open" in again.said
    assert path in again.problems()
    assert (again.path / "closed").read_bytes() == b"acknowledged"
    again.unmount()


def test_without_rw_everything_is_erofs(command: Commandline, fake: FakeDav) -> None:
    fake.set("/f", b"data")
    mount = Mount(command, fake.url, words="")
    for change in (
        lambda: (mount.path / "g").write_bytes(b"x"),
        lambda: (mount.path / "f").write_bytes(b"x"),
        lambda: os.truncate(mount.path / "f", 0),
        lambda: os.mkdir(mount.path / "d"),
        lambda: os.unlink(mount.path / "f"),
        lambda: os.rename(mount.path / "f", mount.path / "g"),
        lambda: os.utime(mount.path / "f"),
    ):
        with fails_with(errno.EROFS):
            change()
    assert (mount.path / "f").read_bytes() == b"data"
    assert not set(fake.methods("PUT", "DELETE", "MOVE", "MKCOL", "PROPPATCH", "OPTIONS"))
    mount.unmount()


def test_attributes_that_webdav_lacks(command: Commandline, fake: FakeDav) -> None:
    fake.quota = (40960, 8192)
    mount = Mount(command, fake.url)
    path = mount.path / "f"
    path.write_bytes(b"x")
    os.chmod(path, 0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    os.utime(path, ns=(5, 7))
    os.rename(path, mount.path / "g")
    assert (mount.path / "g").stat().st_mtime_ns == 7
    assert stat.S_IMODE((mount.path / "g").stat().st_mode) == 0o600
    with fails_with(errno.EPERM):
        os.chown(mount.path / "g", 12345, -1)
    for call in (lambda: os.symlink("g", mount.path / "s"), lambda: os.link(mount.path / "g", mount.path / "h")):
        with fails_with(errno.EPERM):
            call()
    found = os.statvfs(mount.path)
    assert (found.f_bavail * found.f_frsize, (found.f_blocks - found.f_bfree) * found.f_frsize) == (40960, 8192)
    mount.unmount()


def test_one_file_is_read_only_whatever_is_asked(command: Commandline, fake: FakeDav) -> None:
    fake.set("/f.bin", b"data")
    mount = Mount(command, f"{fake.url}f.bin")
    assert "read-only" in mount.said
    for change in (
        lambda: (mount.path / "f.bin").write_bytes(b"x"),
        lambda: (mount.path / "g").write_bytes(b"x"),
        lambda: os.truncate(mount.path / "f.bin", 0),
        lambda: os.unlink(mount.path / "f.bin"),
        lambda: os.utime(mount.path / "f.bin"),
    ):
        with fails_with(errno.EROFS):
            change()
    assert (mount.path / "f.bin").read_bytes() == b"data"
    mount.unmount()


def test_a_directory_has_changed_when_its_names_have(command: Commandline, fake: FakeDav) -> None:
    mount = Mount(command, fake.url)
    os.mkdir(mount.path / "d")
    for change in (
        lambda: (mount.path / "d" / "f").write_bytes(b"x"),
        lambda: os.mkdir(mount.path / "d" / "e"),
        lambda: os.rename(mount.path / "d" / "f", mount.path / "d" / "g"),
        lambda: os.unlink(mount.path / "d" / "g"),
        lambda: os.rmdir(mount.path / "d" / "e"),
    ):
        before = (mount.path / "d").stat().st_mtime_ns
        change()
        assert (mount.path / "d").stat().st_mtime_ns > before
    mount.unmount()


def test_times_are_the_servers_where_it_takes_them(command: Commandline, fake: FakeDav) -> None:
    fake.mtimes = True
    mount = Mount(command, fake.url)
    (mount.path / "f").write_bytes(b"x")
    os.utime(mount.path / "f", (0, 1_000_000_000))
    body = fake.files["/f"]
    assert body is not None
    assert body.mtime == 1_000_000_000
    mount.unmount()
    again = Mount(command, fake.url)
    assert (again.path / "f").stat().st_mtime == 1_000_000_000
    again.unmount()
