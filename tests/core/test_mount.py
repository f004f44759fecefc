"""Real mounts, by every way there is. What needs another user, another namespace or a server runs in another process: a
scenario, a function of this module that a subprocess calls by name and that answers in JSON."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import select
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from served import mounted

from pyfusekit.core import fusermount, mountpoints
from pyfusekit.core import mount as m
from pyfusekit.core.errors import MountError
from pyfusekit.core.mount import MountOptions
from pyfusekit.core.mountinfo import MountInfo, read_mountinfo, topmost

REPOSITORY = Path(m.__file__).resolve().parents[2]
NOBODY = 65534
LIMIT_S = 20

SOURCES = [
    "plain",
    "s3://bucket/a prefix/ with spaces ",
    "commas,and=equals,,",
    "back\\slashes\\, before commas \\\\,\\",
    "naïve-日本-\N{SNOWMAN}",
    "two\nlines\tand a tab\rand a return",
    os.fsdecode(b"not utf-8 \xff\xfe"),
    "# - 'quotes' \"double\" \\040",
]


# --- fixtures and scenarios ---------------------------------------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everyone may enter; what is mounted below it at the end is aborted and taken away."""
    top = Path(tempfile.mkdtemp(prefix="pyfusekit-mount-", dir="/tmp"))
    top.chmod(0o755)
    yield top
    for info in reversed(below(top)):
        if info.is_fuse:
            m.abort(info.minor)
        m._umount2(info.mountpoint, 2)
    assert below(top) == []
    shutil.rmtree(top)


@pytest.fixture
def mountpoint(place: Path) -> Path:
    path = place / "mnt"
    path.mkdir()
    return path


@pytest.fixture
def needs_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    """mount(2) is refused, as it is to an ordinary user."""
    monkeypatch.setattr(m, "_mount2", lambda *args: errno.EPERM)


def below(top: Path) -> list[MountInfo]:
    return [info for info in read_mountinfo() if info.mountpoint.startswith(f"{top}/")]


def refusal(call: Callable[[], object]) -> MountError:
    """Return the MountError a call raises, which is to have one line of cause and one of remedy."""
    with pytest.raises(MountError) as caught:
        call()
    error = caught.value
    assert "\n" not in str(error)
    assert str(error)
    assert "\n" not in error.remedy
    assert error.remedy
    return error


SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {}


def scenario(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    SCENARIOS[function.__name__] = function
    return function


def command(name: str, *args: object) -> list[str]:
    return [sys.executable, __file__, name, *map(str, args)]


def environment(**changes: str | None) -> dict[str, str]:
    merged = {**os.environ, "PYTHONPATH": str(REPOSITORY), **changes}
    return {name: value for name, value in merged.items() if value is not None}


def run(
    function: Callable[..., dict[str, Any]],
    *args: object,
    pass_fds: tuple[int, ...] = (),
    env: Mapping[str, str | None] | None = None,
) -> Any:
    done = subprocess.run(
        command(function.__name__, *args),
        env=environment(**(env or {})),
        pass_fds=pass_fds,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def must(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def private_mounts() -> None:
    must(libc().unshare(0x00020000))  # CLONE_NEWNS
    must(libc().mount(b"none", b"/", None, ctypes.c_ulong(0x44000), None))  # MS_REC | MS_PRIVATE


def bind(source: str | Path, target: str) -> None:
    must(libc().mount(os.fsencode(source), target.encode(), None, ctypes.c_ulong(4096), None))  # MS_BIND


def become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    must(libc().prctl(4, 1, 0, 0, 0))  # PR_SET_DUMPABLE, or /proc/self belongs to root


def enter_user_namespace() -> None:
    uid, gid = os.getuid(), os.getgid()
    must(libc().unshare(0x10020000))  # CLONE_NEWUSER | CLONE_NEWNS
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def told(call: Callable[[], object]) -> list[str]:
    """Return kind, cause and remedy of the MountError a call raises, nothing when it raises none."""
    try:
        call()
    except MountError as exc:
        return [exc.kind, str(exc), exc.remedy]
    return []


@contextmanager
def server(path: Path, kind: str = "dir", source: str = "served") -> Iterator[int]:
    """Serve a mount on *path* from another process, which ends by itself after LIMIT_S; yields its pid."""
    argv = command("serve", path, kind, source)
    with subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "mounted\n"
            yield process.pid
        finally:
            process.kill()


@scenario
def serve(path: str, kind: str, source: str) -> dict[str, Any]:
    """Answer just what stat, statfs and a whole read of one file need."""
    signal.alarm(LIMIT_S)
    mount = m.mount(path, MountOptions(source=source, file=kind == "file"))
    os.set_blocking(mount.fd, True)
    content = b"a file as a mountpoint\n"
    mode = stat.S_IFREG | 0o444 if kind == "file" else stat.S_IFDIR | 0o555
    attr = struct.pack("<6Q10I", 1, len(content), 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
    answers = {
        3: struct.pack("<QII", 0, 0, 0) + attr,  # GETATTR
        14: struct.pack("<QIi", 1, 0, 0),  # OPEN
        15: content,  # READ
        17: struct.pack("<5Q4I24x", 1, 1, 1, 1, 1, 4096, 255, 4096, 0),  # STATFS
        26: struct.pack("<IIIIHHIIHHII24x", 7, 31, 131072, 0, 0, 0, 131072, 1, 0, 0, 0, 0)[:64],  # INIT
    }
    said = False
    while True:
        try:
            message = os.read(mount.fd, 1 << 18)
        except OSError:  # ENODEV: unmounted
            return {}
        opcode, unique = struct.unpack_from("<IQ", message, 4)
        answer = answers.get(opcode, b"")
        if opcode not in (2, 36, 42):  # FORGET, INTERRUPT, BATCH_FORGET
            number = 0 if opcode in answers else -errno.ENOSYS
            os.write(mount.fd, struct.pack("<IiQ", 16 + len(answer), number, unique) + answer)
        if not said:
            print("mounted", flush=True)
            said = True


# --- the mount table ----------------------------------------------------------------------------------------------------

TABLE = (
    b"22 27 0:21 / /proc rw,relatime - proc proc rw\n"
    b"27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard\n"
    b"36 27 0:44 /sub /mnt/a\\040b\\134c\\011d\\012e rw,nosuid shared:7"
    b" - fuse.pyfusekit a\\040-\\040b,\\043\r\xff rw,user_id=3\n"
    b"37 27 0:45 / /mnt/empty rw - fuse  rw\n"
    b"38 27 0:46 / /mnt/odd\\9\\777 rw - fuseblk /dev/sdb1 rw\n"
)


def table(tmp_path: Path, content: bytes) -> list[MountInfo]:
    file = tmp_path / "mountinfo"
    file.write_bytes(content)
    return read_mountinfo(str(file))


def test_a_mountinfo_line_is_read_field_by_field(tmp_path: Path) -> None:
    info = table(tmp_path, TABLE)[2]
    assert info == MountInfo(
        mount_id=36,
        parent_id=27,
        major=0,
        minor=44,
        root="/sub",
        mountpoint="/mnt/a b\\c\td\ne",
        options="rw,nosuid",
        fstype="fuse.pyfusekit",
        source=os.fsdecode(b"a - b,#\r\xff"),
        super_options="rw,user_id=3",
    )
    assert (info.is_ours, info.is_fuse, info.subtype) == (True, True, "pyfusekit")


def test_mountinfo_knows_fuse_from_the_rest(tmp_path: Path) -> None:
    infos = table(tmp_path, TABLE)
    assert [info.is_fuse for info in infos] == [False, False, True, True, True]
    assert [info.is_ours for info in infos] == [False, False, True, False, False]
    assert [info.subtype for info in infos] == ["", "", "pyfusekit", "", ""]


def test_an_empty_source_and_a_lone_backslash_are_kept(tmp_path: Path) -> None:
    infos = table(tmp_path, TABLE)
    assert (infos[3].source, infos[3].super_options) == ("", "rw")
    assert infos[4].mountpoint == "/mnt/odd\\9\\777"


def test_a_source_that_the_kernel_did_not_escape_is_kept(tmp_path: Path) -> None:
    info = table(tmp_path, b"36 27 0:44 / /mnt rw - drvfs C: and D: rw,x\n")[0]
    assert (info.fstype, info.source, info.super_options) == ("drvfs", "C: and D:", "rw,x")


def test_unreadable_lines_are_left_out(tmp_path: Path) -> None:
    bad = b"x 1 0:1 / / rw - a b c\n1 2 0 / / rw - a b c\n1 2 0:1 / / rw a b c\n1 2 - a b c\n\n"
    assert len(table(tmp_path, bad + TABLE)) == 5


def line(mount_id: int, parent_id: int, path: str) -> bytes:
    return f"{mount_id} {parent_id} 0:{mount_id} / {path} rw - fuse.x source rw\n".encode()


def test_the_upper_of_two_mounts_on_one_path_is_found_whatever_their_order(tmp_path: Path) -> None:
    stack = [line(1, 0, "/"), line(2, 1, "/a"), line(3, 2, "/a"), line(4, 3, "/a")]
    for order in (stack, stack[::-1]):
        found = topmost(table(tmp_path, b"".join(order)), "/a")
        assert found is not None
        assert found.mount_id == 4
    assert topmost(table(tmp_path, b"".join(stack)), "/b") is None


def test_a_mount_under_one_that_covers_its_parent_is_out_of_reach(tmp_path: Path) -> None:
    lines = [line(1, 0, "/"), line(2, 1, "/a"), line(3, 2, "/a/b"), line(5, 1, "/ab")]
    assert topmost(table(tmp_path, b"".join(lines)), "/a/b") is not None
    for cover in (line(4, 2, "/a"), line(4, 1, "/")):
        assert topmost(table(tmp_path, b"".join([*lines, cover])), "/a/b") is None


# --- mounting -----------------------------------------------------------------------------------------------------------


@mounted
def test_root_mounts_a_directory_by_itself(mountpoint: Path) -> None:
    mount = m.mount(str(mountpoint), MountOptions())
    info = mountpoints.find_mount(str(mountpoint))
    assert info is not None
    assert (mount.path, mount.how, mount.source) == (str(mountpoint), "direct", "pyfusekit")
    assert (info.mountpoint, info.fstype, info.major, info.minor) == (str(mountpoint), "fuse.pyfusekit", 0, mount.minor)
    assert info.is_ours
    assert {"rw", "nosuid", "nodev"} <= set(info.options.split(","))
    assert {"user_id=0", "group_id=0", "default_permissions"} <= set(info.super_options.split(","))
    assert fcntl.fcntl(mount.fd, fcntl.F_GETFL) & (os.O_NONBLOCK | os.O_ACCMODE) == os.O_NONBLOCK | os.O_RDWR
    assert fcntl.fcntl(mount.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert struct.unpack_from("<I", os.read(mount.fd, 8192), 4) == (26,)  # INIT waits to be answered
    mount.unmount()
    assert mountpoints.find_mount(str(mountpoint)) is None
    with pytest.raises(OSError, match="No such device"):
        os.read(mount.fd, 8192)
    os.close(mount.fd)


@mounted
@pytest.mark.parametrize("how", ["direct", "fusermount3"])
def test_every_option_reaches_the_kernel(mountpoint: Path, how: str, request: pytest.FixtureRequest) -> None:
    if how == "fusermount3":
        request.getfixturevalue("needs_helper")
    options = MountOptions(
        read_only=True,
        allow_other=True,
        default_permissions=False,
        nosuid=False,
        nodev=False,
        noexec=True,
        noatime=True,
        sync=True,
        dirsync=True,
        max_read=65536,
    )
    mount = m.mount(str(mountpoint), options)
    info = mountpoints.find_mount(str(mountpoint))
    assert info is not None
    assert mount.how == how
    assert {"ro", "noexec", "noatime"} <= set(info.options.split(","))
    assert {"nosuid", "nodev"}.isdisjoint(info.options.split(","))
    words = set(info.super_options.split(","))
    assert {"ro", "sync", "dirsync", "allow_other", "max_read=65536"} <= words
    assert "default_permissions" not in words
    mount.unmount()
    os.close(mount.fd)


@mounted
@pytest.mark.parametrize("source", SOURCES)
def test_the_source_is_shown_to_the_letter(mountpoint: Path, source: str) -> None:
    mount = m.mount(str(mountpoint), MountOptions(source=source))
    info = mountpoints.find_mount(str(mountpoint))
    assert (mount.how, mount.source, info and info.source) == ("direct", source, source)
    mount.unmount()
    os.close(mount.fd)


@mounted
@pytest.mark.usefixtures("needs_helper")
@pytest.mark.parametrize("source", SOURCES)
def test_fusermount3_keeps_the_source_to_the_letter(mountpoint: Path, source: str) -> None:
    mount = m.mount(str(mountpoint), MountOptions(source=source))
    info = mountpoints.find_mount(str(mountpoint))
    assert (mount.how, mount.source, info and info.source) == ("fusermount3", source, source)
    assert info is not None
    assert (info.fstype, info.minor) == ("fuse.pyfusekit", mount.minor)
    assert not os.get_blocking(mount.fd)
    assert not os.get_inheritable(mount.fd)
    mount.unmount()
    os.close(mount.fd)


@mounted
@pytest.mark.parametrize("how", ["direct", "fusermount3"])
def test_another_subtype_is_not_ours(mountpoint: Path, how: str, request: pytest.FixtureRequest) -> None:
    if how == "fusermount3":
        request.getfixturevalue("needs_helper")
    mount = m.mount(str(mountpoint), MountOptions(subtype="other,type"))
    info = mountpoints.find_mount(str(mountpoint))
    assert info is not None
    assert (info.fstype, info.subtype, info.is_ours, info.is_fuse) == ("fuse.other,type", "other,type", False, True)
    mount.unmount()
    os.close(mount.fd)


@mounted
def test_two_mounts_in_one_process_are_two_connections(place: Path) -> None:
    paths = [place / "one", place / "two"]
    for path in paths:
        path.mkdir()
    one, two = (m.mount(str(path), MountOptions(source=path.name)) for path in paths)
    assert one.minor != two.minor
    one.unmount()
    assert mountpoints.find_mount(one.path) is None
    info = mountpoints.find_mount(two.path)
    assert info is not None
    assert info.source == "two"
    two.unmount()
    os.close(one.fd)
    os.close(two.fd)


@mounted
def test_a_file_is_mounted_on_and_read(place: Path) -> None:
    path = place / "file"
    path.write_text("what lies below")
    with server(path, "file"):
        done = subprocess.run(["cat", path], capture_output=True, text=True, timeout=LIMIT_S)
        assert done.stdout == "a file as a mountpoint\n"
        m.unmount(str(path))
    assert path.read_text() == "what lies below"


@mounted
@pytest.mark.usefixtures("needs_helper")
def test_fusermount3_mounts_on_a_file(place: Path) -> None:
    path = place / "file"
    path.touch()
    mount = m.mount(str(path), MountOptions(file=True))
    assert mountpoints.find_mount(str(path)) is not None
    mount.unmount()
    os.close(mount.fd)


@mounted
def test_the_path_of_a_mount_is_absolute_and_without_symlinks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "real dir").mkdir()
    (place / "real dir" / "mnt").mkdir()
    (place / "link").symlink_to("real dir")
    (place / "other").symlink_to(place / "link" / "mnt")
    monkeypatch.chdir(place)
    mount = m.mount("./link/../other/", MountOptions())
    assert mount.path == str(place / "real dir" / "mnt")
    for name in ("other", "link/mnt", str(place / "link" / "." / "mnt"), "real dir/../link//mnt/"):
        info = mountpoints.find_mount(name)
        assert info is not None
        assert info.minor == mount.minor
    m.unmount("other")
    os.close(mount.fd)


@mounted
def test_a_failed_mount_leaves_nothing_open(mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for number in (errno.EINVAL, errno.ENOSPC, errno.ENODEV, errno.EPERM):
        monkeypatch.setattr(m, "_mount2", lambda *args, answer=number: answer)
        monkeypatch.setenv("FUSERMOUNT_PATH", "/bin/false")
        kinds = {errno.ENODEV: m.NO_DEV_FUSE, errno.EPERM: m.FUSERMOUNT_REFUSED}
        assert refusal(lambda: m.mount(str(mountpoint), MountOptions())).kind == kinds.get(number, m.MOUNT_FAILED)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert mountpoints.find_mount(str(mountpoint)) is None


@pytest.mark.parametrize(
    "options",
    [
        MountOptions(source=""),
        MountOptions(source="a\0b"),
        MountOptions(source="x" * 4096),
        MountOptions(source="\ud800"),
        MountOptions(subtype=""),
        MountOptions(subtype="a\0b"),
        MountOptions(max_read=0),
        MountOptions(max_read=-1),
        MountOptions(max_read=1 << 32),
    ],
    ids=repr,
)
def test_an_option_the_kernel_cannot_take_is_refused_first(options: MountOptions) -> None:
    assert refusal(lambda: m.mount("/nonexistent", options)).kind == m.BAD_OPTION


# --- the mountpoint, before anything is started -------------------------------------------------------------------------


def test_a_good_mountpoint_is_returned_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnt").mkdir()
    monkeypatch.chdir(tmp_path)
    assert mountpoints.check_mountpoint("mnt/") == str(tmp_path.resolve() / "mnt")
    assert mountpoints.check_mountpoint("/", nonempty=True) == "/"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("missing", m.MOUNTPOINT_MISSING),
        ("missing/deeper", m.MOUNTPOINT_MISSING),
        ("dangling", m.MOUNTPOINT_MISSING),
        ("loop", m.MOUNTPOINT_MISSING),
        ("n" * 300, m.MOUNTPOINT_MISSING),
        ("nul\0", m.MOUNTPOINT_MISSING),
        ("\ud800", m.MOUNTPOINT_MISSING),
        ("file", m.NOT_A_DIRECTORY),
        ("fifo", m.NOT_A_DIRECTORY),
        ("file/below", m.NOT_A_DIRECTORY),
        ("full", m.NOT_EMPTY),
    ],
)
def test_an_unfit_mountpoint_is_named(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full" / "entry").mkdir(parents=True)
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    assert refusal(lambda: mountpoints.check_mountpoint(f"{tmp_path}/{name}")).kind == kind
    assert refusal(lambda: m.mount(f"{tmp_path}/{name}", MountOptions())).kind == kind


def test_no_name_is_no_mountpoint() -> None:
    assert refusal(lambda: mountpoints.check_mountpoint("")).kind == m.MOUNTPOINT_MISSING
    assert mountpoints.find_mount("") is None
    assert mountpoints.find_mount("nul\0") is None


def test_the_remedy_for_a_missing_mountpoint_can_be_pasted(tmp_path: Path) -> None:
    path = tmp_path / "it's missing"
    error = refusal(lambda: mountpoints.check_mountpoint(str(path)))
    assert str(error) == f"{path} does not exist"
    subprocess.run(error.remedy, shell=True, check=True, timeout=LIMIT_S)
    assert mountpoints.check_mountpoint(str(path)) == str(path.resolve())


def test_a_directory_with_entries_can_be_covered_on_request(tmp_path: Path) -> None:
    (tmp_path / "entry").touch()
    assert mountpoints.check_mountpoint(str(tmp_path), nonempty=True) == str(tmp_path.resolve())


def test_a_filesystem_of_one_file_wants_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not empty")
    assert mountpoints.check_mountpoint(str(tmp_path / "file"), file=True) == str(tmp_path.resolve() / "file")
    assert refusal(lambda: mountpoints.check_mountpoint(str(tmp_path), file=True)).kind == m.NOT_A_FILE
    assert refusal(lambda: m.mount(str(tmp_path), MountOptions(file=True))).kind == m.NOT_A_FILE


@mounted
def test_a_live_mount_is_already_mounted(mountpoint: Path) -> None:
    with server(mountpoint, source="first\nlines"):
        assert mountpoints.probe(str(mountpoint)) == 0
        error = refusal(lambda: m.mount(str(mountpoint), MountOptions()))
        assert (error.kind, error.remedy) == (m.ALREADY_MOUNTED, f"pyfusekit umount {mountpoint}, or choose another mountpoint")
        assert str(error) == f"first\\nlines is mounted on {mountpoint} already"
        assert refusal(lambda: mountpoints.check_mountpoint(str(mountpoint), nonempty=True)).kind == m.ALREADY_MOUNTED
        m.unmount(str(mountpoint))


@mounted
def test_a_mount_whose_server_was_killed_is_stale_and_can_be_unmounted(mountpoint: Path) -> None:
    with server(mountpoint) as pid:
        os.kill(pid, signal.SIGKILL)
    assert mountpoints.probe(str(mountpoint)) == errno.ENOTCONN
    error = refusal(lambda: mountpoints.check_mountpoint(str(mountpoint)))
    assert (error.kind, error.remedy) == (m.STALE, f"pyfusekit umount {mountpoint}")
    assert str(error) == f"{mountpoint} holds a dead mount of served: its server is gone"
    assert refusal(lambda: mountpoints.check_mountpoint(f"{mountpoint}/below")).kind == m.STALE
    m.unmount(str(mountpoint))
    assert mountpoints.check_mountpoint(str(mountpoint)) == str(mountpoint)


@mounted
def test_a_mount_that_does_not_answer_hangs_nobody(mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountpoints, "PROBE_LIMIT_S", 0.2)
    mount = m.mount(str(mountpoint), MountOptions(source="silent"))  # INIT is never answered: whoever looks waits
    assert mountpoints.probe(str(mountpoint), limit_s=0.05) is None
    error = refusal(lambda: mountpoints.check_mountpoint(str(mountpoint)))
    assert (error.kind, error.remedy) == (m.STALE, f"pyfusekit umount --lazy {mountpoint}")
    assert refusal(lambda: mountpoints.check_mountpoint(f"{mountpoint}/a/b")).kind == m.STALE
    assert mountpoints.find_mount(f"{mountpoint}/a/b") is None
    assert mountpoints.find_mount(f"{mountpoint}/a/..") is not None
    m.unmount(str(mountpoint), lazy=True)
    os.close(mount.fd)


@mounted
def test_a_hung_probe_keeps_no_descriptor_of_its_caller(mountpoint: Path) -> None:
    mount = m.mount(str(mountpoint), MountOptions())
    read_end, write_end = os.pipe()
    assert mountpoints.probe(str(mountpoint), limit_s=0.2) is None
    os.close(write_end)
    assert select.select([read_end], [], [], LIMIT_S)[0]
    assert os.read(read_end, 1) == b""
    os.close(read_end)
    os.close(mount.fd)  # the last copy, so the connection is aborted and whoever still waits is freed
    assert mountpoints.probe(str(mountpoint)) == errno.ENOTCONN
    mount.unmount(lazy=True)


# --- unmounting ---------------------------------------------------------------------------------------------------------


@mounted
def test_a_mount_in_use_is_busy_until_detached(mountpoint: Path) -> None:
    mount = m.mount(str(mountpoint), MountOptions())
    held = os.open(mountpoint, os.O_PATH)
    for unmount in (mount.unmount, lambda: m.unmount(str(mountpoint))):
        error = refusal(unmount)
        assert (error.kind, error.errno) == (m.BUSY, errno.EBUSY)
        assert error.remedy.endswith(f"pyfusekit umount --lazy {mountpoint}")
    mount.unmount(lazy=True)
    assert mountpoints.find_mount(str(mountpoint)) is None
    assert not select.select([], [], [mount.fd], 0)[2]
    assert os.read(mount.fd, 8192)  # INIT: the connection lives on for whoever holds the mount
    os.close(held)
    with pytest.raises(OSError, match="No such device"):
        os.read(mount.fd, 8192)
    os.close(mount.fd)


@mounted
def test_a_mount_that_is_gone_is_not_mounted(mountpoint: Path) -> None:
    mount = m.mount(str(mountpoint), MountOptions())
    m.unmount(str(mountpoint))
    assert refusal(mount.unmount).kind == m.NOT_MOUNTED
    assert refusal(lambda: mount.unmount(lazy=True)).kind == m.NOT_MOUNTED
    os.close(mount.fd)


def test_where_nothing_is_mounted_nothing_is_unmounted(tmp_path: Path) -> None:
    assert refusal(lambda: m.unmount(str(tmp_path))).kind == m.NOT_MOUNTED
    assert refusal(lambda: m.unmount(str(tmp_path / "missing"))).kind == m.NOT_MOUNTED


def test_a_mount_that_is_not_fuse_is_left_alone() -> None:
    error = refusal(lambda: m.unmount("/proc"))
    assert (error.kind, str(error)) == (m.NOT_MOUNTED, "/proc is a mount of type proc, not of FUSE")
    assert mountpoints.find_mount("/proc") is not None


@mounted
def test_a_mount_under_another_is_not_taken_for_it(mountpoint: Path) -> None:
    mount = m.mount(str(mountpoint), MountOptions())
    assert m._mount2(b"above", str(mountpoint), b"tmpfs") == 0
    error = refusal(lambda: mount.unmount(lazy=True))
    assert (error.kind, str(error)) == (m.BUSY, f"another mount (above) lies over {mountpoint}")
    assert m._umount2(str(mountpoint), 0) == 0
    mount.unmount()
    os.close(mount.fd)


# --- another user, fusermount3 ------------------------------------------------------------------------------------------


@scenario
def as_user(path: str, device: str, fuse_conf: str, allow_other: str) -> dict[str, Any]:
    """Mount as an ordinary user, see how it is busy, and unmount."""
    private_mounts()
    bind(device, "/dev/fuse")
    bind(fuse_conf, "/etc/fuse.conf")
    become(NOBODY)
    mount: m.Mount | None = None

    def attempt() -> None:
        nonlocal mount
        mount = m.mount(path, MountOptions(source="mine, all mine", allow_other=bool(allow_other), nosuid=False, nodev=False))

    refused = told(attempt)
    if mount is None:
        return {"refused": refused}
    info = mountpoints.find_mount(path)
    assert info is not None
    held = os.open(path, os.O_PATH)
    busy = told(mount.unmount)
    os.close(held)
    mount.unmount()
    gone = mountpoints.find_mount(path) is None
    second = m.mount(path, MountOptions())
    held = os.open(path, os.O_PATH)
    second.unmount(lazy=True)
    return {
        "how": mount.how,
        "blocking": os.get_blocking(mount.fd),
        "minor": mount.minor == info.minor,
        "source": info.source,
        "fstype": info.fstype,
        "options": info.options.split(","),
        "super": info.super_options.split(","),
        "busy": busy[:1],
        "gone": gone,
        "detached": mountpoints.find_mount(path) is None,
    }


@pytest.fixture
def users_mountpoint(mountpoint: Path) -> Path:
    os.chown(mountpoint, NOBODY, NOBODY)
    return mountpoint


@pytest.fixture
def device(place: Path) -> Path:
    """/dev/fuse as udev makes it where people sit, open to everyone, in a scenario's eyes."""
    path = place / "fuse"
    os.mknod(path, stat.S_IFCHR, os.makedev(10, 229))
    path.chmod(0o666)
    return path


@pytest.fixture
def fuse_conf(place: Path) -> Path:
    """The system's /etc/fuse.conf, in a scenario's eyes."""
    path = place / "fuse.conf"
    path.write_text("mount_max = 100000\n")
    return path


@mounted
def test_an_ordinary_user_mounts_and_unmounts_with_fusermount3(users_mountpoint: Path, device: Path, fuse_conf: Path) -> None:
    answer = run(as_user, users_mountpoint, device, fuse_conf, "")
    assert answer["how"] == "fusermount3"
    assert answer["blocking"] is False
    assert answer["minor"] is True
    assert (answer["source"], answer["fstype"]) == ("mine, all mine", "fuse.pyfusekit")
    assert {"nosuid", "nodev"} <= set(answer["options"])
    assert {f"user_id={NOBODY}", f"group_id={NOBODY}", "default_permissions"} <= set(answer["super"])
    assert answer["busy"] == [m.BUSY]
    assert answer["gone"] is True
    assert answer["detached"] is True


@mounted
def test_without_a_path_in_the_environment_fusermount3_is_found(users_mountpoint: Path, device: Path, fuse_conf: Path) -> None:
    assert run(as_user, users_mountpoint, device, fuse_conf, "", env={"PATH": None})["how"] == "fusermount3"


@mounted
def test_allow_other_needs_a_word_in_fuse_conf(users_mountpoint: Path, device: Path, fuse_conf: Path) -> None:
    kind, cause, remedy = run(as_user, users_mountpoint, device, fuse_conf, "yes")["refused"]
    assert kind == m.ALLOW_OTHER_REFUSED
    assert cause.startswith(
        "allow_other needs user_allow_other in /etc/fuse.conf (fusermount3: option allow_other only allowed"
    )
    assert remedy == "echo user_allow_other | sudo tee -a /etc/fuse.conf"
    fuse_conf.write_text("user_allow_other\n")
    assert "allow_other" in run(as_user, users_mountpoint, device, fuse_conf, "yes")["super"]


@mounted
def test_too_many_mounts_are_refused_by_fusermount3(users_mountpoint: Path, device: Path, fuse_conf: Path) -> None:
    fuse_conf.write_text("mount_max = 0\n")
    kind, _, remedy = run(as_user, users_mountpoint, device, fuse_conf, "")["refused"]
    assert (kind, remedy) == (m.FUSERMOUNT_REFUSED, "raise mount_max in /etc/fuse.conf")


@mounted
def test_a_device_closed_to_users_is_closed_to_their_fusermount3(users_mountpoint: Path, device: Path, fuse_conf: Path) -> None:
    device.chmod(0o600)
    kind, cause, remedy = run(as_user, users_mountpoint, device, fuse_conf, "")["refused"]
    assert (kind, remedy) == (m.DEV_FUSE_REFUSED, "sudo chmod 666 /dev/fuse")
    assert cause.startswith("cannot open /dev/fuse: Permission denied (fusermount3:")


@mounted
def test_fusermount3_is_asked_when_the_device_does_not_open(mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "DEV_FUSE", "/nonexistent/fuse")
    mount = m.mount(str(mountpoint), MountOptions())
    assert mount.how == "fusermount3"
    mount.unmount()
    os.close(mount.fd)


@mounted
@pytest.mark.parametrize("missing", [{"PATH": "/nonexistent:/proc"}, {"FUSERMOUNT_PATH": "/nonexistent/fusermount3"}], ids=str)
def test_a_user_without_fusermount3_is_told(
    users_mountpoint: Path, device: Path, fuse_conf: Path, missing: dict[str, str]
) -> None:
    kind, cause, remedy = run(as_user, users_mountpoint, device, fuse_conf, "", env=missing)["refused"]
    assert kind == m.NO_FUSERMOUNT
    assert (cause, remedy) in [
        ("fusermount3 is not installed", "sudo apt install fuse3"),
        ("/nonexistent/fusermount3 is no program", "FUSERMOUNT_PATH must name fusermount3, or be unset"),
    ]


@scenario
def not_mine(path: str, device: str, check: str) -> dict[str, Any]:
    private_mounts()
    bind(device, "/dev/fuse")
    become(NOBODY)
    if not check:
        mountpoints.is_admin = lambda: True
    return {
        "refused": told(lambda: m.mount(path, MountOptions())),
        "reach": told(lambda: mountpoints.check_mountpoint(f"{path}/x")),
    }


@mounted
@pytest.mark.parametrize("check", ["ours", ""])
def test_a_directory_of_someone_else_is_no_mountpoint(mountpoint: Path, device: Path, check: str) -> None:
    answer = run(not_mine, mountpoint, device, check)
    assert answer["refused"][0] == m.NO_PERMISSION
    assert answer["refused"][2] == f"sudo chown {NOBODY} {mountpoint}, or mount below your home directory"
    assert ("fusermount3:" in answer["refused"][1]) is (check == "")
    assert answer["reach"][0] == m.MOUNTPOINT_MISSING
    mountpoint.chmod(0o700)
    answer = run(not_mine, mountpoint, device, check)
    assert answer["refused"][0] == answer["reach"][0] == m.NO_PERMISSION


@scenario
def unmount_as_user(path: str) -> dict[str, Any]:
    become(NOBODY)
    return {"refused": told(lambda: m.unmount(path)), "probe": mountpoints.probe(path)}


@mounted
def test_the_mount_of_another_user_stays(mountpoint: Path) -> None:
    with server(mountpoint):
        answer = run(unmount_as_user, mountpoint)
        kind, cause, remedy = answer["refused"]
        assert (kind, remedy) == (m.NO_PERMISSION, f"sudo umount {mountpoint}")
        assert cause == f"{mountpoint} was mounted by another user (user_id=0)"
        assert mountpoints.find_mount(str(mountpoint)) is not None
        m.unmount(str(mountpoint))


@mounted
def test_unmounting_as_a_user_needs_fusermount3(mountpoint: Path) -> None:
    mount = m.mount(str(mountpoint), MountOptions())
    assert run(unmount_as_user, mountpoint, env={"FUSERMOUNT_PATH": "/nonexistent"})["refused"][0] == m.NO_FUSERMOUNT
    mount.unmount()
    os.close(mount.fd)


REFUSALS = [
    ("option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf", m.ALLOW_OTHER_REFUSED),
    ("fuse device not found, try 'modprobe fuse' first", m.NO_DEV_FUSE),
    ("failed to open /dev/fuse: Operation not permitted", m.DEV_FUSE_REFUSED),
    ("failed to open /dev/fuse: Permission denied", m.DEV_FUSE_REFUSED),
    ("user has no write access to mountpoint /a", m.NO_PERMISSION),
    ("mountpoint /a not owned by user", m.NO_PERMISSION),
    ("too many FUSE filesystems mounted; mount_max=N can be set in /etc/fuse.conf", m.FUSERMOUNT_REFUSED),
    ("mounting over filesystem type 0x0000ef53 is forbidden", m.FUSERMOUNT_REFUSED),
    ("mount failed: Permission denied", m.FUSERMOUNT_REFUSED),
    ("mount failed: Operation not permitted", m.FUSERMOUNT_REFUSED),
    ("something {new}\nand a second line", m.FUSERMOUNT_REFUSED),
]


def fake_helper(place: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = place / "fusermount3"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("FUSERMOUNT_PATH", str(path))
    return path


@mounted
@pytest.mark.usefixtures("needs_helper")
@pytest.mark.parametrize(("text", "kind"), REFUSALS)
def test_what_fusermount3_says_is_passed_on(
    place: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch, text: str, kind: str
) -> None:
    fake_helper(place, f"echo fusermount3: {shlex.quote(text)} >&2; exit 1", monkeypatch)
    error = refusal(lambda: m.mount(str(mountpoint), MountOptions()))
    assert error.kind == kind
    assert text.replace("\n", "; ") in str(error)
    assert "{" not in str(error).replace("{new}", "")


@mounted
@pytest.mark.usefixtures("needs_helper")
def test_a_helper_that_sends_no_descriptor_has_refused(place: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_helper(place, "exit 0", monkeypatch)
    error = refusal(lambda: m.mount(str(mountpoint), MountOptions()))
    assert (error.kind, str(error)) == (m.FUSERMOUNT_REFUSED, f"fusermount3 does not mount on {mountpoint}: no reason given")


@mounted
@pytest.mark.usefixtures("needs_helper")
def test_a_helper_has_a_path_where_we_have_none(place: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_helper(place, "tr '\\0' '\\n' </proc/$$/environ >&2; exit 1", monkeypatch)
    monkeypatch.delenv("PATH")
    said = str(refusal(lambda: m.mount(str(mountpoint), MountOptions())))
    assert "PATH=/usr/local/sbin:" in said
    assert "_FUSE_COMMFD=" in said


@mounted
@pytest.mark.usefixtures("needs_helper")
def test_a_helper_that_cannot_be_run_or_hangs_is_named(place: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fake_helper(place, "exec sleep 60", monkeypatch)
    monkeypatch.setattr(fusermount, "HELPER_LIMIT_S", 0.2)
    error = refusal(lambda: m.mount(str(mountpoint), MountOptions()))
    assert (error.kind, error.errno) == (m.FUSERMOUNT_REFUSED, errno.ETIMEDOUT)
    path.write_text("#!/nonexistent/interpreter\n")
    error = refusal(lambda: m.mount(str(mountpoint), MountOptions()))
    assert (error.kind, error.errno) == (m.NO_FUSERMOUNT, errno.ENOENT)


@mounted
@pytest.mark.usefixtures("needs_helper")
def test_root_without_the_right_to_mount_is_told_of_the_container(mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSERMOUNT_PATH", "/nonexistent")
    error = refusal(lambda: m.mount(str(mountpoint), MountOptions()))
    assert (error.kind, error.errno) == (m.NO_PERMISSION, errno.EPERM)
    assert "--cap-add SYS_ADMIN" in error.remedy


# --- the device, user namespaces ----------------------------------------------------------------------------------------


@scenario
def without_device(path: str, dev: str) -> dict[str, Any]:
    private_mounts()
    must(libc().mount(b"none", b"/dev", b"tmpfs", ctypes.c_ulong(0), None))
    if dev == "null":
        os.mknod("/dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    if dev == "odd":
        os.mknod("/dev/fuse", stat.S_IFCHR | 0o666, os.makedev(10, 254))
    return {"refused": told(lambda: m.mount(path, MountOptions())), "fds": len(os.listdir("/proc/self/fd"))}


@mounted
@pytest.mark.parametrize("dev", ["empty", "null", "odd"])
@pytest.mark.parametrize("helper", [None, "/nonexistent"])
def test_without_dev_fuse_nothing_mounts(mountpoint: Path, dev: str, helper: str | None) -> None:
    kind, cause, remedy = run(without_device, mountpoint, dev, env={"FUSERMOUNT_PATH": helper})["refused"]
    assert kind == m.NO_DEV_FUSE
    assert cause == ("the kernel has no FUSE behind /dev/fuse" if dev == "odd" else "/dev/fuse does not exist")
    assert remedy.startswith("sudo modprobe fuse")


@scenario
def refused_device(path: str) -> dict[str, Any]:
    private_mounts()
    must(libc().mount(b"none", b"/mnt", b"tmpfs", ctypes.c_ulong(4), None))  # MS_NODEV: no device opens there
    os.mknod("/mnt/fuse", stat.S_IFCHR | 0o666, os.makedev(10, 229))
    bind("/mnt/fuse", "/dev/fuse")
    return {"refused": told(lambda: m.mount(path, MountOptions()))}


@mounted
@pytest.mark.parametrize("helper", [None, "/nonexistent"])
def test_a_device_that_may_not_be_opened_is_named(mountpoint: Path, helper: str | None) -> None:
    kind, cause, _ = run(refused_device, mountpoint, env={"FUSERMOUNT_PATH": helper})["refused"]
    assert kind == m.DEV_FUSE_REFUSED
    assert "cannot open /dev/fuse" in cause


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EPERM, m.DEV_FUSE_REFUSED, "container device rules"),
        (errno.EACCES, m.DEV_FUSE_REFUSED, "Permission denied"),
        (errno.ENXIO, m.NO_DEV_FUSE, "the kernel has no FUSE"),
        (errno.EMFILE, m.MOUNT_FAILED, "Too many open files"),
    ],
)
def test_each_way_to_lose_the_device_has_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: str, words: str
) -> None:
    really_open = os.open

    def refuse(path: str, flags: int) -> int:
        if path == "/dev/fuse":
            raise OSError(number, os.strerror(number))
        return really_open(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "access", lambda path, mode: path == str(tmp_path.resolve()))
    error = refusal(lambda: m.mount(str(tmp_path), MountOptions()))
    assert (error.kind, error.errno) == (kind, number)
    assert words in str(error)


@scenario
def in_user_namespace(path: str, device: str) -> dict[str, Any]:
    private_mounts()
    bind(device, "/dev/fuse")
    become(NOBODY)
    enter_user_namespace()
    mount = m.mount(path, MountOptions(source="inside"))
    info = mountpoints.find_mount(path)
    assert info is not None
    mount.unmount()
    return {
        "how": mount.how,
        "source": info.source,
        "super": info.super_options.split(","),
        "left": mountpoints.find_mount(path) is not None,
    }


@mounted
def test_a_user_namespace_mounts_by_itself(users_mountpoint: Path, device: Path) -> None:
    answer = run(in_user_namespace, users_mountpoint, device, env={"FUSERMOUNT_PATH": "/nonexistent"})
    assert (answer["how"], answer["source"], answer["left"]) == ("direct", "inside", False)
    assert {"user_id=0", "group_id=0"} <= set(answer["super"])


# --- a given descriptor -------------------------------------------------------------------------------------------------


@mounted
def test_a_given_descriptor_is_taken_over(mountpoint: Path) -> None:
    first = m.mount(str(mountpoint), MountOptions(source="theirs"))
    fd = os.dup(first.fd)
    os.set_inheritable(fd, True)
    os.set_blocking(fd, True)
    assert mountpoints.check_mountpoint(f"/dev/fd/{fd}") == f"/dev/fd/{fd}"
    mount = m.mount(f"/dev/fd/{fd}", MountOptions(source="ours"))
    assert (mount.path, mount.fd, mount.how, mount.minor) == (str(mountpoint), fd, "given", first.minor)
    assert mount.source == "theirs"
    assert not os.get_inheritable(fd)
    assert not os.get_blocking(fd)
    mount.unmount()
    assert refusal(lambda: m.mount(f"/dev/fd/{fd}", MountOptions())).kind == m.NOT_MOUNTED
    os.close(fd)
    os.close(first.fd)


@scenario
def given_from_outside(fd: str, path: str) -> dict[str, Any]:
    private_mounts()
    m.unmount(path)
    mount = m.mount(f"/dev/fd/{fd}", MountOptions(source="s3://bucket"))
    return {"path": mount.path, "minor": mount.minor, "source": mount.source, "refused": told(mount.unmount)[:1]}


@mounted
def test_a_descriptor_mounted_out_of_sight_is_taken_over(mountpoint: Path) -> None:
    outer = m.mount(str(mountpoint), MountOptions())
    answer = run(given_from_outside, outer.fd, mountpoint, pass_fds=(outer.fd,))
    assert answer == {
        "path": f"/dev/fd/{outer.fd}",
        "minor": outer.minor,
        "source": "s3://bucket",
        "refused": [m.NOT_MOUNTED],
    }
    outer.unmount()
    os.close(outer.fd)


@mounted
def test_a_descriptor_that_is_no_mounted_device_is_refused(tmp_path: Path) -> None:
    opened = {
        "unmounted": os.open("/dev/fuse", os.O_RDWR),
        "read-only": os.open("/dev/fuse", os.O_RDONLY),
        "null": os.open("/dev/null", os.O_RDWR),
        "directory": os.open(tmp_path, os.O_RDONLY),
    }
    kinds = {name: refusal(partial(mountpoints.check_mountpoint, f"/dev/fd/{fd}")).kind for name, fd in opened.items()}
    assert kinds == {"unmounted": m.NOT_MOUNTED, "read-only": m.BAD_OPTION, "null": m.BAD_OPTION, "directory": m.BAD_OPTION}
    for fd in opened.values():
        os.close(fd)
    for name in ("", "x", "-1", str(opened["null"]), "99999999999999999999"):
        assert refusal(partial(m.mount, f"/dev/fd/{name}", MountOptions())).kind == m.BAD_OPTION


# --- the connection -----------------------------------------------------------------------------------------------------


@mounted
def test_readahead_is_raised(mountpoint: Path) -> None:
    mount = m.mount(str(mountpoint), MountOptions())
    assert mount.minor is not None
    knob = Path(f"/sys/class/bdi/0:{mount.minor}/read_ahead_kb")
    assert int(knob.read_text()) == 128
    assert m.set_readahead(mount.minor) is True
    assert int(knob.read_text()) == 1024
    assert m.set_readahead(mount.minor, 256) is True
    assert int(knob.read_text()) == 256
    mount.unmount()
    os.close(mount.fd)
    assert m.set_readahead(mount.minor) is False


@mounted
def test_an_aborted_connection_is_dead_but_mounted(mountpoint: Path) -> None:
    mount = m.mount(str(mountpoint), MountOptions())
    assert mount.minor is not None
    m.abort(mount.minor)
    with pytest.raises(OSError, match="No such device"):
        os.read(mount.fd, 8192)
    assert mountpoints.probe(str(mountpoint)) == errno.ENOTCONN
    mount.unmount()
    os.close(mount.fd)
    assert refusal(lambda: m.abort(mount.minor or 0)).kind == m.NOT_MOUNTED


@scenario
def abort_alone(minor: str, user: str) -> dict[str, Any]:
    """Abort where fusectl is not mounted yet."""
    private_mounts()
    while mountpoints.find_mount(m.CONNECTIONS) is not None:
        must(libc().umount2(m.CONNECTIONS.encode(), 2))
    if user:
        become(NOBODY)
    return {"refused": told(lambda: m.abort(int(minor)))}


@mounted
def test_abort_mounts_fusectl_where_it_may(mountpoint: Path) -> None:
    mount = m.mount(str(mountpoint), MountOptions())
    kind, _, remedy = run(abort_alone, mount.minor, "user")["refused"]
    assert kind == m.NO_PERMISSION
    assert f"mount -t fusectl none {m.CONNECTIONS}" in remedy
    assert run(abort_alone, mount.minor, "")["refused"] == []
    assert mountpoints.probe(str(mountpoint)) == errno.ENOTCONN
    mount.unmount()
    os.close(mount.fd)


@mounted
def test_the_connection_is_known_without_fdinfo(mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "connection_of", lambda fd: None)
    mount = m.mount(str(mountpoint), MountOptions())
    info = mountpoints.find_mount(str(mountpoint))
    assert info is not None
    assert mount.minor == info.minor
    mount.unmount()
    os.close(mount.fd)


# --- being light --------------------------------------------------------------------------------------------------------


def test_importing_and_listing_loads_nothing_heavy() -> None:
    code = (
        "import sys; from pyfusekit.core import mount, mountpoints; mountpoints.read_mountinfo(); mountpoints.find_mount('/'); "
        "print([n for n in ('asyncio', 'ctypes', 'subprocess', 'socket', 'select', 'click') if n in sys.modules])"
    )
    argv = [sys.executable, "-S", "-c", code]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=LIMIT_S)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_helper_socket_without_a_message_gives_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusermount, "HELPER_LIMIT_S", 0.05)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        started = time.monotonic()
        assert fusermount._receive_fd(ours) is None
        assert time.monotonic() - started < LIMIT_S
        theirs.send(b"x")
        assert fusermount._receive_fd(ours) is None


if __name__ == "__main__":
    print(json.dumps(SCENARIOS[sys.argv[1]](*sys.argv[2:])))
