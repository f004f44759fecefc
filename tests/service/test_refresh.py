from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from commandline import Commandline, needs_mounts
from pretending import Talk

from pyfusekit.core.mountinfo import MountInfo
from pyfusekit.service import procs, refresh
from pyfusekit.service.exits import NOT_MOUNTED, SOURCE, TIMED_OUT, Failure

# --- where a path lies ----------------------------------------------------------------------------------------------


def mount(number: int, parent: int, mountpoint: str, fstype: str) -> MountInfo:
    return MountInfo(number, parent, 0, number, "/", mountpoint, "rw", fstype, "x", "rw")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """/, two mounts of ours below tmp_path, and a tmpfs and another one in the first."""
    mounts = [
        mount(1, 0, "/", "ext4"),
        mount(2, 1, f"{tmp_path}/m", "fuse.pyfusekit"),
        mount(3, 2, f"{tmp_path}/m/tmp", "tmpfs"),
        mount(4, 2, f"{tmp_path}/m/in/other", "fuse.pyfusekit"),
        mount(5, 1, f"{tmp_path}/m2", "fuse.sshfs"),
    ]
    monkeypatch.setattr(refresh, "read_mountinfo", lambda: mounts)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("m", (2, "")),
        ("m/", (2, "")),
        ("{top}/m/a/b", (2, "a/b")),
        ("./x/../m//a/./b/", (2, "a/b")),
        ("m/a/../../m/c", (2, "c")),
        ("m/in/other/a", (4, "a")),
        ("m/in/other/../x", (2, "in/x")),
        ("m/tmp/x", (3, "x")),
        ("m/tmp/../x", (2, "x")),
        ("m2/x", (5, "x")),
        ("mm", (1, "{top}/mm")),
        ("/", (1, "")),
        ("..", (1, "{above}")),
        ("", (None, "")),
        ("m/\0", (None, "")),
    ],
)
def test_a_path_is_found_in_the_innermost_mount(table: Path, path: str, found: tuple[int | None, str]) -> None:
    number, below = found
    below = below.format(top=str(table)[1:], above=str(table.parent)[1:])
    assert refresh.located(path.format(top=table)) == (number, below)


def test_links_are_followed_up_to_the_mount(table: Path) -> None:
    (table / "link").symlink_to("m/a")
    (table / "absolute").symlink_to(table / "link")
    (table / "round").symlink_to("round")
    (table / "m").mkdir()
    (table / "m" / "inside").symlink_to("/nowhere")
    assert refresh.located("link/b") == (2, "a/b")
    assert refresh.located("absolute") == (2, "a")
    assert refresh.located("round") == (None, "")
    assert refresh.located("m/inside/x") == (2, "inside/x")


def test_another_programs_mount_is_named(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procs, "in_child", lambda function, seconds: function())
    with pytest.raises(Failure) as caught:
        refresh.refresh("m2/x")
    assert caught.value.cause == (f"m2/x is not in one of pyfusekit's mounts: {table}/m2 is a mount of type fuse.sshfs")
    with pytest.raises(Failure) as caught:
        refresh.refresh("m/tmp/x")
    assert caught.value.cause == "m/tmp/x is not in one of pyfusekit's mounts"


def test_a_way_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object) -> object:
        raise procs.TimeLimit

    monkeypatch.setattr(procs, "in_child", hang)
    with pytest.raises(Failure) as caught:
        refresh.refresh("/x")
    assert (caught.value.cause, caught.value.code) == (
        "/x cannot be followed: a mount on the way does not answer",
        TIMED_OUT,
    )


# --- the real thing -------------------------------------------------------------------------------------------------


@needs_mounts
def test_the_server_hears_what_it_shall_not_believe(command: Commandline, talk: Talk) -> None:
    place = command.folder()
    assert command.run("mount", "pretend", talk.folder, place).returncode == 0
    name = os.fsdecode(b"\xff\n")
    done = command.run("refresh", place, f"{place}/a/ü/", f"mnt/{name}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"Refreshed {place} (1 name)\nRefreshed {place}/a/ü (7 names)\nRefreshed {place}/\\udcff\\n (7 names)\n"
    )
    assert (talk.folder / "refreshed").read_bytes() == b"\na/\xc3\xbc\n\xff\n\n"


@needs_mounts
def test_a_filesystem_with_nothing_to_forget_is_refreshed_too(command: Commandline) -> None:
    place = command.folder()
    assert command.run("mount", "mem", place).returncode == 0
    assert command.run("refresh", place).stdout == f"Refreshed {place} (0 names)\n"


@needs_mounts
def test_a_path_in_no_mount_of_ours_is_refused_and_the_others_are_done(command: Commandline, talk: Talk) -> None:
    place, other = command.folder(), command.folder("other")
    assert command.run("mount", "pretend", talk.folder, place).returncode == 0
    done = command.run("refresh", other, f"{place}/broken", f"{place}/a")
    assert done.returncode == NOT_MOUNTED
    assert done.stdout == f"Refreshed {place}/a (7 names)\n"
    assert done.stderr.splitlines() == [
        f"pyfusekit: {other} is not in one of pyfusekit's mounts",
        "  pyfusekit list shows what is mounted",
        f"pyfusekit: {place}: the store is gone",
        f"  its log: {command.top}/state/pyfusekit/{str(place)[1:].replace('/', '-')}.log",
    ]
    assert command.run("refresh", f"{place}/broken").returncode == SOURCE


@needs_mounts
def test_a_stopped_server_does_not_hang_it(command: Commandline) -> None:
    place = command.folder()
    assert command.run("mount", "mem", place).returncode == 0
    (pid,) = command.processes()
    os.kill(pid, signal.SIGSTOP)
    done = command.run("refresh", f"{place}/a/b")
    assert done.returncode == TIMED_OUT
    assert done.stderr.startswith(f"pyfusekit: the server of {place} (pid {pid}) does not answer")
    os.kill(pid, signal.SIGCONT)
