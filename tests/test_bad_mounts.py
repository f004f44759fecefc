"""Everything a person can get wrong, on the real command: exit code, cause, remedy, nothing mounted, no process left."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from commandline import NOBODY, Commandline, commandline, needs_mounts

from pyfusekit.service import procs

pytestmark = [needs_mounts, pytest.mark.skipif(os.geteuid() != 0, reason="making the machine unfit needs root")]

AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


@pytest.fixture
def command() -> Iterator[Commandline]:
    with commandline() as made:
        yield made


@dataclass(frozen=True)
class Case:
    """A situation, the arguments behind ``mount`` (PLACE is the mountpoint), and what must be said."""

    name: str
    arguments: str
    code: int
    cause: str
    """A regular expression; PLACE is the mountpoint."""
    remedy: str
    prepare: Callable[[Commandline, Path], None] = lambda command, place: None
    prefix: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


def absent(command: Commandline, place: Path) -> None:
    place.rmdir()


def a_file(command: Commandline, place: Path) -> None:
    place.rmdir()
    place.write_text("")


def below_a_file(command: Commandline, place: Path) -> None:
    a_file(command, place)
    place.with_name("mnt2").symlink_to(place / "sub")


def filled(command: Commandline, place: Path) -> None:
    (place / "file").write_text("")


def taken(command: Commandline, place: Path) -> None:
    done = command.run("mount", "mem", place)
    assert done.returncode == 0, done.stderr


def dead(command: Commandline, place: Path) -> None:
    taken(command, place)
    for pid in command.processes():
        os.kill(pid, signal.SIGKILL)
        assert procs.wait_gone(pid, None, 10)


def hung(command: Commandline, place: Path) -> None:
    taken(command, place)
    for pid in command.processes():
        os.kill(pid, signal.SIGSTOP)


def looping(command: Commandline, place: Path) -> None:
    place.rmdir()
    place.symlink_to(place)


def unreachable(command: Commandline, place: Path) -> None:
    place.chmod(0o700)
    command.top.joinpath("closed").mkdir(mode=0o700)


def for_everyone(command: Commandline, place: Path) -> None:
    place.chmod(0o777)
    os.chown(place, NOBODY, NOBODY)


# Each of these changes what the command sees in a mount namespace of its own, with file systems of its own. /dev/fuse itself is
# everybody's (its mode is the device's, in every namespace), so nothing here may touch it.
IN_PRIVATE = ("unshare", "--mount", "--propagation", "private", "sh", "-c")
NO_DEV = (*IN_PRIVATE, 'mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec "$@"', "sh")
NO_HELPER = (*IN_PRIVATE, 'mount --bind /dev/null "$(command -v fusermount3)" && exec "$@"', "sh", *AS_NOBODY)
WITHOUT_SETUID = """
    h=$(command -v fusermount3) && mount -t tmpfs none /dev/shm && cp "$h" /dev/shm/copy && chmod 755 /dev/shm/copy &&
    mount --bind /dev/shm/copy "$h" && exec "$@"
"""
# A node of our own, open to everyone as udev makes it where people sit.
OPEN_DEV = """
    mount -t tmpfs none /dev/shm && mknod -m 666 /dev/shm/fuse c 10 229 && mount --bind /dev/shm/fuse /dev/fuse && exec "$@"
"""
AS_USER = (*IN_PRIVATE, OPEN_DEV, "sh", *AS_NOBODY)
POWERLESS_HELPER = (*IN_PRIVATE, WITHOUT_SETUID, "sh", *AS_NOBODY)

CASES = [
    Case("the mountpoint is missing", "mem PLACE", 8, "PLACE does not exist", r"mkdir -p PLACE", absent),
    Case("a file is no mountpoint", "mem PLACE", 8, "PLACE is not a directory", "give a directory to mount on", a_file),
    Case("a file is no directory on the way", "mem PLACE/x", 8, "a part of PLACE/x is not a directory", ".+", a_file),
    Case("a symlink to itself", "mem PLACE", 8, "PLACE .*(symbolic links|cannot be used).*", ".+", looping),
    Case("an empty name", "mem - ''", 8, "'' cannot be a file name", "give the directory to mount on"),
    Case("the mountpoint is not empty", "mem PLACE", 8, "PLACE is not empty", ".*nonempty.*", filled),
    Case("already mounted", "mem PLACE", 8, "mem is mounted on PLACE already", "pyfusekit umount PLACE, or .+", taken),
    Case("already mounted, nonempty or not", "mem PLACE --nonempty", 8, "mem is mounted on PLACE already", ".+", taken),
    Case("a dead mount", "mem PLACE", 8, "PLACE holds a dead mount of mem.*", "pyfusekit umount PLACE", dead),
    Case("below a dead mount", "mem PLACE/x", 8, ".*PLACE.*dead.*", "pyfusekit umount PLACE.*", dead),
    Case("a mount that hangs", "mem PLACE", 8, ".*PLACE.*does not answer", "pyfusekit umount --lazy PLACE", hung),
    Case("below a mount that hangs", "mem PLACE/x", 8, ".*PLACE.* not answer.*", "pyfusekit .+", hung),
    Case("a directory of root's", "mem PLACE", 8, f"PLACE is not writable for uid {NOBODY}", "sudo chown .+", prefix=AS_NOBODY),
    Case("out of reach", "mem PLACE/../closed/x", 8, ".*closed/x is out of reach for uid .*", ".+", unreachable, AS_NOBODY),
    Case("no /dev/fuse", "mem PLACE", 9, "/dev/fuse does not exist", "sudo modprobe fuse.*", prefix=NO_DEV),
    Case("fusermount3 cannot be run", "mem PLACE", 9, ".*fusermount3.*", ".+", for_everyone, NO_HELPER),
    Case("fusermount3 refuses", "mem PLACE", 9, ".*fusermount3.*", ".+", for_everyone, POWERLESS_HELPER),
    Case(
        "fusermount3 is missing",
        "mem PLACE",
        9,
        "fusermount3 is not installed|.*fusermount3.*",
        ".*(install|FUSERMOUNT_PATH).*",
        for_everyone,
        AS_NOBODY,
        (("PATH", "/nonexistent"),),
    ),
    Case(
        "allow_other is not allowed",
        "mem PLACE -o allow_other",
        9,
        "allow_other needs user_allow_other in /etc/fuse.conf.*",
        "echo user_allow_other .+",
        for_everyone,
        AS_USER,
    ),
    Case("an unknown filesystem", "men PLACE", 2, "men: no such filesystem; did you mean mem.", "there are: mem, s3.*"),
    Case("an unknown option", "mem --sze=1 PLACE", 2, "--sze: no such option; did you mean --size.", "pyfusekit mount mem .+"),
    Case("an unknown word", "mem -o sze=1 PLACE", 2, "-o sze: no such option; did you mean size.", ".+"),
    Case("a bad value", "mem --size=3x PLACE", 2, "--size: '3x' is not a size; write 8MiB.*", ".+"),
    Case("a bad value in a word", "mem -o size=3x PLACE", 2, "-o size: '3x' is not a size; write 8MiB.*", ".+"),
    Case(
        "a bad value in the environment",
        "mem PLACE",
        2,
        "[$]PYFUSEKIT_MEM_SIZE: '3x' is not a size; .*",
        ".+",
        environment=(("PYFUSEKIT_MEM_SIZE", "3x"),),
    ),
    Case("a secret on the command line", "odd -o password=x PLACE", 2, "-o password: a secret cannot be given .+", "use .+"),
    Case("an option the kernel refuses", "mem --max-read=8T PLACE", 2, "max_read .* is out of range", ".+"),
    Case("a source that cannot be", "odd unbuildable PLACE", 2, "the source unbuildable cannot be built", ".+"),
    Case("no bucket is named", "s3 s3:///prefix PLACE", 6, ".*names no bucket", "write BUCKET, .+"),
    Case(
        "a dead endpoint",
        "s3 bucket PLACE --endpoint-url http://127.0.0.1:9 --anonymous --region us-east-1 --deadline 5s",
        6,
        ".*connection refused.*",
        ".+",
    ),
    Case("the source is missing", "odd absent PLACE", 6, "odd: no such bucket", "create it"),
    Case("the source says no", "odd refused PLACE", 7, "the key is wrong", ".+"),
    Case("the source is slow", "odd --timeout 1s slow PLACE", 5, r"not ready after 1 s \(step: starting odd on slow\)", ".+"),
    Case("the server freezes", "odd --timeout 1s frozen PLACE", 5, r"not ready after 1 s \(step: .+\)", ".+"),
    Case("the mount cannot be looked at", "odd eio PLACE", 6, "mounted, but .* PLACE: Input/output error", "its log: .+"),
    Case("a bug", "odd bug PLACE", 70, "bug: TypeError: a bug of odd", "the traceback is in its log: .+"),
    Case(
        "the server ends by itself",
        "odd exit PLACE",
        70,
        r"the daemon ended with status 3 while starting \(step: starting odd on exit\)",
        r"its log: .+; its last lines:\n  the last words of odd",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_failing_mount_says_why_and_leaves_nothing(command: Commandline, case: Case) -> None:
    place = command.folder()
    case.prepare(command, place)
    table, processes = read_mountinfo_here(command), set(command.processes())
    words = ["" if word == "''" else word.replace("PLACE", str(place)) for word in case.arguments.split()]
    environment = dict(case.environment)
    prefix = case.prefix
    if "PATH" in environment:
        prefix = (shutil.which(prefix[0]) or prefix[0], *prefix[1:])
    done = command.run("mount", *words, prefix=prefix, **environment)
    assert done.returncode == case.code, done.stderr
    assert done.stdout == ""
    pattern = f"pyfusekit: {case.cause}\n  {case.remedy}\n".replace("PLACE", re.escape(str(place)))
    assert re.fullmatch(pattern, done.stderr), done.stderr
    assert set(command.processes()) == processes
    assert read_mountinfo_here(command) == table


def read_mountinfo_here(command: Commandline) -> list[str]:
    """Return the mount table below our place."""
    return [f"{info.mount_id} {info.mountpoint} {info.source}" for info in command.mounts()]


def test_a_server_killed_while_it_starts_is_said_to_be(command: Commandline) -> None:
    place = command.folder()
    parent = command.start("mount", "odd", "slow", place)
    deadline = time.monotonic() + 15
    server: list[int] = []
    while not server and time.monotonic() < deadline:
        server = [pid for pid in command.processes() if pid != parent.pid and connects(pid)]
        time.sleep(0.02)
    os.kill(server[0], signal.SIGKILL)
    out, err = parent.communicate(timeout=20)
    assert (parent.returncode, out) == (70, "")
    cause = r"the daemon was killed by SIGKILL while starting \(step: starting odd on slow\)"
    assert re.fullmatch(f"pyfusekit: {cause}\n  its log: .+\n", err), err
    assert command.processes() == {}
    assert command.mounts() == []


def test_a_bucket_that_does_not_exist_is_not_mounted_and_one_that_does_is(
    command: Commandline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent / "fs"))
    from s3server import ACCESS, S3Server

    place = command.folder()
    with S3Server(seed=("there", 3)) as server:
        words = ("mount", "s3", "--endpoint-url", server.url)
        done = command.run(*words, "absent", place, **ACCESS)
        assert (done.returncode, done.stdout) == (6, "")
        assert re.fullmatch("pyfusekit: .*absent.*\n  .+\n", done.stderr), done.stderr
        assert command.mounts() == []
        assert command.processes() == {}
        done = command.run(*words, "there", place, **ACCESS)
        assert done.stdout.startswith(f"Mounted there on {place} (read-write, "), done.stderr
        listing = subprocess.run(["timeout", "20", "ls", str(place)], capture_output=True, text=True, timeout=30)
        assert listing.stdout.split() == ["k0000", "k0001", "k0002"]
        assert command.run("umount", place).returncode == 0
    assert command.processes() == {}


def connects(pid: int) -> bool:
    """Say whether a server waits in its loop: it has a handler for SIGTERM."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigCgt:\t")[2].split()[0], 16) >> (signal.SIGTERM - 1) & 1)


def test_a_server_killed_behind_its_mount_leaves_no_dead_mount(command: Commandline) -> None:
    place = command.folder()
    parent = command.start("mount", "odd", "deaf", place)
    deadline = time.monotonic() + 15
    while not (mounts := command.mounts()) and time.monotonic() < deadline:
        time.sleep(0.02)
    (server,) = procs.servers_of(mounts[0].minor)[:1]
    os.kill(server, signal.SIGKILL)
    _, err = parent.communicate(timeout=30)
    assert parent.returncode != 0
    assert err.startswith("pyfusekit: ")
    assert command.processes() == {}
    assert command.mounts() == []


def test_a_killed_server_leaves_a_mount_that_umount_cleans_and_that_can_be_made_again(command: Commandline) -> None:
    place = command.folder()
    dead(command, place)
    looked = subprocess.run(["timeout", "10", "ls", str(place)], capture_output=True, text=True, timeout=20)
    assert "Transport endpoint is not connected" in looked.stderr
    done = command.run("umount", place)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Unmounted {place}\n", "")
    assert command.mounts() == []
    assert command.run("mount", "mem", place).returncode == 0
    assert command.run("umount", place).returncode == 0


def test_a_mountpoint_that_is_covered_by_another_user_of_it_is_not_ours(command: Commandline) -> None:
    place = command.folder()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], check=True, timeout=20)
    done = command.run("mount", "mem", place)
    assert done.returncode == 0, "an empty mount of another kind may be mounted over"
    assert [info.fstype for info in command.mounts()] == ["tmpfs", "fuse.pyfusekit"]
    assert command.run("umount", place).returncode == 0
    assert [info.fstype for info in command.mounts()] == ["tmpfs"]


def test_an_ordinary_user_mounts_with_fusermount3(command: Commandline) -> None:
    place = command.folder()
    for_everyone(command, place)
    runtime = command.folder("runtime")
    runtime.chmod(0o700)
    os.chown(runtime, NOBODY, NOBODY)
    # All in one namespace, where a node of our own stands for /dev/fuse.
    user, other = " ".join(AS_NOBODY), "setpriv --reuid=1 --regid=1 --clear-groups"
    script = f"""
        {user} "$@" mount mem "$PLACE" || exit 90
        grep -c "fuse.pyfusekit mem .*user_id={NOBODY}" /proc/self/mountinfo
        {user} "$@" list
        {other} "$@" umount "$PLACE"; echo "other $?"
        {user} "$@" umount "$PLACE" || exit 91
        grep -c "fuse.pyfusekit mem .*user_id={NOBODY}" /proc/self/mountinfo
    """
    done = subprocess.run(
        [*IN_PRIVATE, OPEN_DEV, "sh", "sh", "-c", script, "sh", *command.argv],
        env={**command.environment, "PLACE": str(place), "XDG_RUNTIME_DIR": str(runtime), "HOME": str(runtime)},
        cwd=command.top,
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"Mounted mem on {place} (read-write, "), done.stderr
    assert lines[1] == "1"
    assert any(re.fullmatch(f"{re.escape(str(place))} +mem +mem +[0-9]+ +[0-9]+s +ok", line) for line in lines)
    assert lines[-3] == "other 7"
    assert lines[-2:] == [f"Unmounted {place}", "0"]
    assert f"pyfusekit: {place} was mounted by another user" in done.stderr
    assert command.processes() == {}
