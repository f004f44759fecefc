from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commandline import REPOSITORY, Commandline, needs_mounts

from pyfusekit.core.mountinfo import MountInfo
from pyfusekit.service import control, mounts, procs, words
from pyfusekit.service.exits import BUSY, NOT_MOUNTED, TIMED_OUT, Failure
from pyfusekit.service.mounts import Mounted


def info(**changes: object) -> MountInfo:
    values: dict[str, object] = {
        "mount_id": 5,
        "parent_id": 1,
        "major": 0,
        "minor": 46,
        "root": "/",
        "mountpoint": "/mnt/x",
        "options": "rw,nosuid",
        "fstype": "fuse.pyfusekit",
        "source": "mem",
        "super_options": "rw,user_id=1000,group_id=7",
    }
    return MountInfo(**{**values, **changes})  # type: ignore[arg-type]


# --- words --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (3599, "59m"),
        (3600, "1h"),
        (7380, "2h3m"),
        (86400, "1d"),
        (349200, "4d1h"),
        (-5, "0s"),
    ],
)
def test_an_age_has_two_units(seconds: float, text: str) -> None:
    assert words.age_text(seconds) == text


def test_what_a_name_holds_does_not_reach_the_terminal() -> None:
    assert words.printable("a\n\x1b[31mb\udcff ü") == "a\\n\\x1b[31mb\\udcff ü"


# --- the table ----------------------------------------------------------------------------------------------------------


def test_the_owner_is_in_the_super_options() -> None:
    assert mounts.owner_of(info()) == 1000
    assert mounts.owner_of(info(super_options="rw")) == 0


def test_a_dead_mount_is_listed_with_the_command_that_cleans_it() -> None:
    dead = Mounted(info(), mounts.DEAD, None, None, "mem", {"ready_at": time.time()}, "")
    alive = Mounted(
        info(mountpoint="/mnt/long\nname", source="s3://b"), mounts.OK, 4711, 1, "s3", {"ready_at": time.time() - 7380}, ""
    )
    lines = mounts.as_table([dead, alive]).splitlines()
    assert lines[0].split() == ["MOUNTPOINT", "SOURCE", "FS", "PID", "UP", "STATE"]
    assert lines[1].split() == ["/mnt/x", "mem", "mem", "-", "-", "DEAD:", "pyfusekit", "umount", "/mnt/x"]
    assert lines[2].split() == ["/mnt/long\\nname", "s3://b", "s3", "4711", "2h3m", "ok"]
    assert len({line.index(word) for line, word in zip(lines, ("FS", "mem  -", "s3   "), strict=True)}) == 1


def test_json_has_the_same_keys_for_every_state() -> None:
    dead = Mounted(info(), mounts.DEAD, None, None, "-", {}, "")
    alive = Mounted(info(), mounts.OK, 1, 1, "mem", {"ready_at": 1.0, "waiting": {"files": 0, "bytes": 0}}, "")
    first, second = mounts.as_json([dead, alive])
    assert first.keys() == second.keys()
    assert (first["state"], first["pid"], first["fs"], first["up_seconds"]) == ("dead", None, None, None)
    assert (second["state"], second["pid"], second["uid"], second["connection"]) == ("ok", 1, 1000, 46)
    json.dumps([first, second])


# --- processes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_a_process_has_a_start_time_until_it_ends(sleeper: subprocess.Popen[bytes]) -> None:
    started = procs.start_time(sleeper.pid)
    assert isinstance(started, int)
    assert not procs.wait_gone(sleeper.pid, started, 0.01)
    assert procs.wait_gone(sleeper.pid, started - 1, 10), "another process had this pid"
    sleeper.kill()
    assert procs.wait_gone(sleeper.pid, started, 10)
    assert procs.start_time(sleeper.pid) is None, "a zombie is gone"
    sleeper.wait()
    assert procs.wait_gone(sleeper.pid, started, 10)


def test_a_stopped_process_is_seen(sleeper: subprocess.Popen[bytes]) -> None:
    assert not procs.is_stopped(sleeper.pid)
    os.kill(sleeper.pid, signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while not procs.is_stopped(sleeper.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert procs.is_stopped(sleeper.pid)


def test_a_child_gives_its_result_its_failure_or_its_bug_back() -> None:
    assert procs.in_child(lambda: {"a": ["\udcff", 1]}, 10) == {"a": ["\udcff", 1]}

    def fail() -> None:
        raise Failure("cause", "remedy", code=BUSY)

    with pytest.raises(Failure) as caught:
        procs.in_child(fail, 10)
    assert (caught.value.cause, caught.value.remedy, caught.value.code) == ("cause", "remedy", BUSY)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        procs.in_child(lambda: 1 / 0, 10)
    with pytest.raises(RuntimeError, match="without an answer"):
        procs.in_child(lambda: os._exit(0), 10)


def test_a_child_that_takes_too_long_is_killed() -> None:
    reader, writer = os.pipe()
    with pytest.raises(procs.TimeLimit):
        procs.in_child(lambda: time.sleep(60), 0.05)
    os.close(writer)
    # Only a child that is gone lets go of its copy of the writing end.
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_holders_are_found_by_what_they_hold(tmp_path: Path) -> None:
    script = (
        "import mmap, os, sys, time\nos.chdir(sys.argv[1])\nkept = open('held', 'r+b')\nmapped = open('mapped', 'r+b')\n"
        "area = mmap.mmap(mapped.fileno(), 0)\nmapped.close()\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path)], check=True, timeout=20)
    try:
        (tmp_path / "held").write_bytes(b"x")
        (tmp_path / "mapped").write_bytes(b"x")
        with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
            (mount,) = [m for m in mounts.read_mountinfo() if m.mountpoint == str(tmp_path)]
            found = procs.holders(mount.mount_id, (mount.major, mount.minor))
            holder.kill()
        assert {(user.pid, user.how) for user in found} == {
            (holder.pid, "working directory"),
            (holder.pid, "open file held"),
            (holder.pid, "mapped file mapped"),
            (holder.pid, "open file mapped"),  # mmap keeps a descriptor of its own
        }
        assert {user.user for user in found} == {"root"}
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True, timeout=20)


# --- the real thing -----------------------------------------------------------------------------------------------------


def listed(command: Commandline) -> list[dict[str, object]]:
    """Return what list --json says of our mounts."""
    done = command.run("list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return [row for row in json.loads(done.stdout) if str(row["mountpoint"]).startswith(str(command.top))]


@needs_mounts
def test_a_mount_is_listed_with_its_server_and_its_options(command: Commandline) -> None:
    place = command.folder()
    done = command.run("mount", "odd", "-o", "weight=16M", "--ro", place, ODD_PASSWORD="hunter2")
    assert done.returncode == 0, done.stderr
    (row,) = listed(command)
    (pid,) = command.processes()
    assert (row["mountpoint"], row["source"], row["fs"], row["state"]) == (str(place), "odd", "odd", "ok")
    assert (row["pid"], row["uid"], row["read_only"]) == (pid, 0, True)
    assert row["options"]["weight"] == {"value": "16M", "origin": "-o"}  # type: ignore[index]
    assert row["options"]["ro"] == {"value": "yes", "origin": "command line"}  # type: ignore[index]
    assert row["options"]["password"] == {"value": "***", "origin": "$ODD_PASSWORD"}  # type: ignore[index]
    assert row["waiting"] == {"files": 0, "bytes": 0}
    assert "hunter2" not in json.dumps(row)
    line = next(line for line in command.run("list").stdout.splitlines() if str(place) in line)
    assert line.split() == [str(place), "odd", "odd", str(pid), "0s", "ok"]


@needs_mounts
def test_a_stopped_server_hangs_neither_list_nor_umount(command: Commandline) -> None:
    place = command.folder()
    assert command.run("mount", "mem", place).returncode == 0
    (pid,) = command.processes()
    os.kill(pid, signal.SIGSTOP)
    (row,) = listed(command)
    assert (row["state"], row["pid"], row["fs"]) == ("not-answering", pid, "mem")
    done = command.run("umount", place)
    assert done.returncode == TIMED_OUT
    assert done.stderr == f"pyfusekit: {place} is unmounted, but its server (pid {pid}) is stopped\n  kill -9 {pid}\n"
    assert command.mounts() == []
    os.kill(pid, signal.SIGCONT)
    assert command.settle() == {}


@needs_mounts
def test_a_mount_whose_socket_is_lost_is_still_found(command: Commandline) -> None:
    place = command.folder()
    assert command.run("mount", "mem", place).returncode == 0
    (pid,) = command.processes()
    (mount,) = command.mounts()
    folder = Path(control.directories(0)[0])
    (folder / f"{mount.minor}.sock").unlink()
    (row,) = listed(command)
    assert (row["state"], row["pid"], row["fs"]) == ("no-control-socket", pid, "mem")
    (folder / f"{mount.minor}.json").unlink()
    (row,) = listed(command)
    assert (row["state"], row["pid"], row["fs"]) == ("no-control-socket", pid, None)
    assert command.run("umount", place).stdout == f"Unmounted {place}\n"
    assert command.processes() == {}


@needs_mounts
def test_a_killed_server_is_listed_as_dead_and_umount_cleans_up(command: Commandline) -> None:
    place = command.folder()
    assert command.run("mount", "mem", place).returncode == 0
    (pid,) = command.processes()
    (mount,) = command.mounts()
    os.kill(pid, signal.SIGKILL)
    assert procs.wait_gone(pid, None, 10)
    (row,) = listed(command)
    assert (row["state"], row["pid"], row["fs"], row["source"]) == ("dead", None, "mem", "mem")
    assert f"DEAD: pyfusekit umount {place}" in command.run("list").stdout
    done = command.run("umount", place)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Unmounted {place}\n", "")
    assert command.mounts() == []
    folder = Path(control.directories(0)[0])
    assert not (folder / f"{mount.minor}.sock").exists()
    assert not (folder / f"{mount.minor}.json").exists()


@needs_mounts
def test_a_dead_mount_in_use_is_detached(command: Commandline) -> None:
    place = command.folder()
    assert command.run("mount", "mem", place).returncode == 0
    (pid,) = command.processes()
    held = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.kill(pid, signal.SIGKILL)
        assert procs.wait_gone(pid, None, 10)
        done = command.run("umount", place)
        assert (done.returncode, done.stderr) == (0, "")
        assert command.mounts() == []
    finally:
        os.close(held)


@needs_mounts
def test_a_busy_mount_names_its_holders_and_stays(command: Commandline) -> None:
    place = command.folder()
    assert command.run("mount", "mem", place).returncode == 0
    script = "import os, sys, time; os.chdir(sys.argv[1]); print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script, str(place)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        done = command.run("umount", place)
        assert done.returncode == BUSY
        lines = done.stderr.splitlines()
        assert lines[0] == f"pyfusekit: {place} is in use"
        assert lines[1].split() == ["PID", "USER", "COMMAND", "HOW"]
        assert lines[2].split()[:2] == [str(holder.pid), "root"]
        assert lines[2].endswith("  working directory")
        assert lines[3].startswith("  close them and repeat, or pyfusekit umount --lazy")
        assert [row["state"] for row in listed(command)] == ["ok"]
        done = command.run("umount", "--lazy", place)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"Detached {place}; its server (pid ")
        assert command.mounts() == []
        assert len(command.processes()) == 1, "the server serves its last user"
        holder.kill()
    assert command.settle() == {}


@needs_mounts
def test_a_mount_below_another_keeps_it_busy(command: Commandline) -> None:
    place = command.folder()
    assert command.run("mount", "mem", place).returncode == 0
    subprocess.run(["timeout", "10", "mkdir", str(place / "below")], check=True)
    subprocess.run(["timeout", "10", "mount", "-t", "tmpfs", "none", str(place / "below")], check=True)
    done = command.run("umount", place)
    assert done.returncode == BUSY
    assert f"mounted below it: {place}/below" in done.stderr
    subprocess.run(["timeout", "10", "umount", str(place / "below")], check=True)
    assert command.run("umount", place).returncode == 0


@needs_mounts
def test_umount_refuses_what_is_not_ours(command: Commandline) -> None:
    place = command.folder()
    done = command.run("umount", place)
    assert (done.returncode, done.stderr) == (
        NOT_MOUNTED,
        f"pyfusekit: {place} is not mounted\n  pyfusekit list shows what is mounted\n",
    )
    subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], check=True, timeout=20)
    done = command.run("umount", place)
    assert done.returncode == NOT_MOUNTED
    assert done.stderr == f"pyfusekit: {place} is a mount of type tmpfs, not one of pyfusekit's\n  umount {place}\n"
    assert len(command.mounts()) == 1


@needs_mounts
def test_umount_takes_several_and_goes_on_after_a_failure(command: Commandline) -> None:
    first, second, none = command.folder("a"), command.folder("b"), command.folder("c")
    for place in (first, second):
        assert command.run("mount", "mem", place).returncode == 0
    done = command.run("umount", first, none, second)
    assert done.returncode == NOT_MOUNTED
    assert done.stdout == f"Unmounted {first}\nUnmounted {second}\n"
    assert command.mounts() == []
    assert command.processes() == {}, "umount returns when the server has ended"


@needs_mounts
def test_umount_takes_a_path_as_people_write_it(command: Commandline) -> None:
    place = command.folder("with space")
    (command.top / "link").symlink_to(place)
    for written in (f"{place}/", "with space", "./plugins/../with space/.", "link"):
        assert command.run("mount", "mem", place).returncode == 0
        done = command.run("umount", written)
        assert (done.returncode, done.stdout) == (0, f"Unmounted {place}\n"), done.stderr


@needs_mounts
def test_names_that_are_not_text_are_mounted_and_listed(command: Commandline) -> None:
    place = command.folder(os.fsdecode(b"\xff\n\xc3\xbc"))
    done = command.run("mount", "mem", place)
    assert done.returncode == 0, done.stderr
    (row,) = listed(command)
    assert row["mountpoint"] == str(place)
    assert "/\\udcff\\nü" in command.run("list").stdout
    assert command.run("umount", place).returncode == 0


def test_nothing_mounted_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from pyfusekit import cli

    monkeypatch.setattr(mounts, "read_mountinfo", lambda: [info(fstype="tmpfs")])
    assert cli.main(["list"]) == 0
    assert capsys.readouterr().out == "Nothing is mounted.\n"
    assert cli.main(["list", "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_list_and_umount_do_not_load_asyncio() -> None:
    script = (
        "import sys\nfrom pyfusekit.cli import main\nmain(['list'])\nmain(['umount', '/'])\n"
        "print(sorted({'asyncio', 'ssl', 'logging', 'importlib.metadata'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_socket_is_only_believed_when_it_is_of_that_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "directories", lambda uid: [str(tmp_path)])
    monkeypatch.setattr(control, "ask", lambda *_: {"ok": True, "minor": 47, "peer": 1})
    monkeypatch.setattr(procs, "servers_of", lambda minor: [])
    assert mounts.examine(info(super_options="user_id=0")).state == mounts.DEAD
    (tmp_path / "46.json").write_text(json.dumps({"pid": os.getpid(), "start_time": procs.start_time(os.getpid())}))
    assert mounts.examine(info()).state == mounts.DEAD, "the state is of another mountpoint"
