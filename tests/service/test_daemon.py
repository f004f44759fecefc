from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commandline import Commandline, needs_mounts

from pyfusekit.service import control, logs, places, procs
from pyfusekit.service.exits import BUG, TIMED_OUT


def until(true: Callable[[], object], seconds: float = 15) -> bool:
    """Wait until *true* is, at most *seconds*."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def mounted(command: Commandline, *arguments: str, name: str = "mnt") -> tuple[Path, int]:
    """Mount mem in the background; return the place and the server's pid."""
    place = command.folder(name)
    before = set(command.processes())
    done = command.run("mount", *arguments, "mem", place)
    assert done.returncode == 0, done.stderr
    (pid,) = set(command.processes()) - before
    return place, pid


def catches(pid: int, number: int) -> bool:
    """Say whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def log_of(command: Commandline) -> str:
    """Return the log of the only mount."""
    (file,) = (command.top / "state" / "pyfusekit").iterdir()
    return file.read_text()


pytestmark = needs_mounts


# --- the handshake ------------------------------------------------------------------------------------------------------


def test_mounted_is_said_when_the_mount_can_be_used(command: Commandline) -> None:
    place = command.folder()
    done = command.run("mount", "mem", place)
    assert done.stdout.startswith(f"Mounted mem on {place} (read-write, ")
    assert done.stdout.endswith(f" s). Stop with: pyfusekit umount {place}\n")
    assert (done.returncode, done.stderr) == (0, "")
    (info,) = command.mounts()
    assert (info.fstype, info.source) == ("fuse.pyfusekit", "mem")
    assert {"nosuid", "nodev"} <= set(info.options.split(","))
    written = "echo hello > x && cat x && rm x"
    shell = subprocess.run(["timeout", "10", "sh", "-c", written], cwd=place, capture_output=True, text=True, timeout=20)
    assert shell.stdout == "hello\n"


def test_the_server_leaves_the_terminal_and_the_working_directory(command: Commandline) -> None:
    _, pid = mounted(command)
    # That run() returned at all says that the server holds neither stdout nor stderr.
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2)} == {"/dev/null"}


def test_the_source_is_shown_as_it_was_given(command: Commandline) -> None:
    place = command.folder()
    assert command.run("mount", "odd", "s3://a b/c,d", place).returncode == 0
    (info,) = command.mounts()
    assert info.source == "s3://a b/c,d"
    assert command.run("umount", place).returncode == 0
    assert command.run("mount", "odd", "https://anna:hunter2@host/x", place).returncode == 0
    (info,) = command.mounts()
    assert info.source == "https://host/x"
    assert command.run("umount", place).returncode == 0
    assert command.run("mount", "mem", "-", place, "-o", "fsname=my name").returncode == 0
    (info,) = command.mounts()
    assert info.source == "my name"


def test_common_options_reach_the_kernel(command: Commandline) -> None:
    place = command.folder()
    words = "ro,noexec,noatime,sync,dirsync,dev,suid,max_read=65536,allow_other,_netdev,x-systemd.automount"
    done = command.run("mount", "mem", place, "-o", words)
    assert "(read-only, " in done.stdout
    (info,) = command.mounts()
    assert {"ro", "noexec", "noatime"} <= set(info.options.split(","))
    assert not {"nodev", "nosuid"} & set(info.options.split(","))
    assert {"max_read=65536", "allow_other", "default_permissions"} <= set(info.super_options.split(","))
    shell = subprocess.run(["timeout", "10", "touch", "x"], cwd=place, capture_output=True, text=True, timeout=20)
    assert "Read-only file system" in shell.stderr


def test_options_before_the_filesystem_are_weaker_than_those_behind_it(command: Commandline) -> None:
    place = command.folder()
    assert command.run("mount", "--ro", "--noexec", "-o", "noatime", "mem", "--rw", place).returncode == 0
    (info,) = command.mounts()
    assert {"rw", "noexec", "noatime"} <= set(info.options.split(","))


def test_several_mounts_live_side_by_side(command: Commandline) -> None:
    first, second = mounted(command, name="a"), mounted(command, name="b")
    assert first[1] != second[1]
    for place, pid in (first, second):
        assert command.run("umount", place).returncode == 0
        assert procs.start_time(pid) is None


def test_the_parent_forks_before_asyncio_and_click_are_loaded(command: Commandline) -> None:
    place = command.folder()
    script = (
        "import sys\nfrom pyfusekit.service import ahead\nbegin = ahead.Ahead.__init__\n"
        "def look(self, names):\n    print({'asyncio', 'click'} & set(sys.modules), flush=True)\n"
        "    begin(self, names)\nahead.Ahead.__init__ = look\nfrom pyfusekit.__main__ import main\nsys.exit(main())"
    )
    argv = [sys.executable, "-c", script, "mount", "mem", str(place)]
    done = subprocess.run(argv, env=command.environment, capture_output=True, text=True, timeout=40, cwd=command.top)
    assert done.stdout.splitlines()[0] == "set()"
    assert done.returncode == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("source", ["slow", "frozen"])
def test_a_signal_to_the_waiting_parent_ends_the_child(command: Commandline, number: int, code: int, source: str) -> None:
    place = command.folder()
    parent = command.start("mount", "odd", source, place)
    assert until(lambda: catches(parent.pid, signal.SIGTERM))
    parent.send_signal(number)
    _, err = parent.communicate(timeout=20)
    assert (parent.returncode, err) == (code, f"pyfusekit: stopped by {signal.Signals(number).name}; nothing is mounted\n")
    assert command.processes() == {}
    assert command.mounts() == []


def test_a_child_whose_parent_is_killed_ends(command: Commandline) -> None:
    parent = command.start("mount", "odd", "slow", command.folder())
    assert until(lambda: len(command.processes()) == 2)
    parent.kill()
    parent.communicate(timeout=20)
    assert command.settle() == {}
    assert command.mounts() == []


def test_a_child_whose_parent_is_killed_while_it_looks_at_the_mount_unmounts(command: Commandline) -> None:
    parent = command.start("mount", "odd", "deaf", command.folder())
    assert until(command.mounts)
    parent.kill()
    parent.communicate(timeout=20)
    assert until(lambda: command.mounts() == [])
    assert command.settle(20) == {}


def test_a_mount_that_answers_nothing_is_not_said_to_be_mounted(command: Commandline) -> None:
    place = command.folder()
    done = command.run("mount", "odd", "deaf", place)
    assert done.returncode == TIMED_OUT
    assert done.stderr.startswith(f"pyfusekit: {place} is mounted, but did not answer for 5 s\n")
    assert command.mounts() == []
    assert command.processes() == {}


def test_a_server_that_ends_by_a_bug_later_leaves_its_traceback_in_the_log(command: Commandline) -> None:
    done = command.run("mount", "odd", "bug", command.folder())
    assert done.returncode == BUG
    lines = done.stderr.splitlines()
    assert lines[0] == "pyfusekit: bug: TypeError: a bug of odd"
    log = log_of(command)
    assert lines[1].endswith(".log")
    assert "Traceback" in log
    assert "TypeError: a bug of odd" in log


# --- the foreground -----------------------------------------------------------------------------------------------------


def test_the_foreground_serves_until_it_is_interrupted(command: Commandline) -> None:
    place = command.folder()
    server = command.start("mount", "--foreground", "mem", place)
    assert server.stdout is not None
    assert server.stdout.readline().startswith(f"Mounted mem on {place} (read-write, ")
    assert set(command.processes()) == {server.pid}
    server.send_signal(signal.SIGINT)
    _, log = server.communicate(timeout=20)
    assert server.returncode == 0
    assert "FUSE 7." in log.splitlines()[0]
    assert "pyfusekit 0." in log.splitlines()[0]
    assert "Traceback" not in log
    assert command.mounts() == []


def test_the_foreground_ends_when_it_is_unmounted(command: Commandline) -> None:
    place = command.folder()
    server = command.start("mount", "-f", "mem", place)
    assert server.stdout is not None
    server.stdout.readline()
    assert command.run("umount", place).stdout == f"Unmounted {place}\n"
    server.communicate(timeout=20)
    assert server.returncode == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_foreground_can_be_stopped_while_it_starts(command: Commandline, number: int, code: int) -> None:
    server = command.start("mount", "-f", "odd", "slow", command.folder())
    assert until(lambda: catches(server.pid, signal.SIGTERM))
    server.send_signal(number)
    _, err = server.communicate(timeout=20)
    assert (server.returncode, err) == (code, f"pyfusekit: stopped by {signal.Signals(number).name} while starting\n")


@pytest.mark.parametrize(
    ("source", "code", "cause"),
    [
        ("slow", 5, "not ready after 0.5 s (step: starting odd on slow)"),
        ("absent", 6, "odd: no such bucket"),
        ("refused", 7, "the key is wrong"),
        ("unbuildable", 2, "the source unbuildable cannot be built"),
        ("eio", 6, "mounted, but it cannot be looked at: {place}: Input/output error"),
        ("bug", 70, "bug: TypeError: a bug of odd"),
    ],
)
def test_the_foreground_fails_as_the_background_does(command: Commandline, source: str, code: int, cause: str) -> None:
    place = command.folder()
    timeout = "500ms" if source == "slow" else "30s"
    done = command.run("mount", "-f", "--timeout", timeout, "odd", source, place)
    assert done.returncode == code
    lines = done.stderr.splitlines()
    assert lines[-2] == "pyfusekit: " + cause.format(place=place)
    assert lines[-1].startswith("  ")
    assert command.mounts() == []


# --- signals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_an_idle_mount(command: Commandline, number: int) -> None:
    _, pid = mounted(command)
    os.kill(pid, number)
    assert command.settle() == {}
    assert command.mounts() == []
    assert log_of(command).splitlines()[-1].endswith(": ended")


def test_a_signal_detaches_a_busy_mount_and_serves_its_last_user(command: Commandline) -> None:
    place, pid = mounted(command)
    (info,) = command.mounts()
    held = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.kill(pid, signal.SIGTERM)
        assert until(lambda: command.mounts() == [])
        listing = subprocess.run(
            ["timeout", "10", "ls", "-a", f"/proc/self/fd/{held}/"],
            pass_fds=(held,),
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert listing.stdout == ".\n..\n", "the last user is served"
        assert procs.start_time(pid) is not None
        assert control.ask(control.own_directory(), info.minor, {"cmd": "status"}, 10)["pid"] == pid
    finally:
        os.close(held)
    assert command.settle() == {}


def test_a_second_signal_ends_a_busy_mount_at_once(command: Commandline) -> None:
    place, pid = mounted(command)
    held = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.kill(pid, signal.SIGTERM)
        assert until(lambda: command.mounts() == [])
        os.kill(pid, signal.SIGTERM)
        assert command.settle(5) == {}
    finally:
        os.close(held)


def test_sighup_never_ends_a_mount(command: Commandline) -> None:
    place, pid = mounted(command)
    os.kill(pid, signal.SIGHUP)
    assert until(lambda: "SIGHUP" in log_of(command))
    assert procs.start_time(pid) is not None
    assert command.run("umount", place).returncode == 0


def test_an_aborted_connection_leaves_no_dead_mount(command: Commandline) -> None:
    mounted(command)
    command.abort()
    assert command.settle() == {}
    assert command.mounts() == []


# --- the log ------------------------------------------------------------------------------------------------------------


def test_the_log_begins_with_what_support_asks_for(command: Commandline) -> None:
    place, _ = mounted(command, "-o", "noatime")
    assert command.run("umount", place).returncode == 0
    log = log_of(command).splitlines()
    assert f" INFO {place}: pyfusekit " in log[0]
    assert f"Linux {os.uname().release}, FUSE 7." in log[0]
    assert log[0].endswith("mounted mem (mem); options: noatime=yes (-o)")


def test_the_log_goes_where_it_is_told(command: Commandline) -> None:
    place = command.folder()
    log = command.top / "logs" / "my.log"
    done = command.run("mount", "mem", place, "--log", log)
    assert done.returncode == 0
    assert "FUSE 7." in log.read_text()
    assert command.run("umount", place).returncode == 0
    done = command.run("mount", "mem", place, "--log", "/proc/none/x.log")
    assert done.returncode == 2
    assert done.stderr.startswith("pyfusekit: cannot write the log /proc/none/x.log: ")
    assert command.mounts() == []


def test_a_log_that_is_not_asked_for_goes_to_syslog_or_the_state_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/log")
    assert places.log_place("", "/mnt/a", foreground=False) == "syslog"
    assert places.log_place("", "/mnt/a", foreground=True) == "stderr"
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/anna")
    assert places.log_place("", "/mnt/a", foreground=False) == "/home/anna/.local/state/pyfusekit/mnt-a.log"
    assert places.log_place("", "/", foreground=False) == "/home/anna/.local/state/pyfusekit/root.log"
    assert places.log_place("~/x.log", "/mnt/a", foreground=True) == "/home/anna/x.log"


def test_syslog_gets_every_line_with_its_level(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging
    import syslog

    sent: list[Any] = []
    monkeypatch.setattr(syslog, "syslog", lambda priority, line: sent.append((priority, line)))
    handler = logs.SyslogHandler("pyfusekit")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.CRITICAL):
        handler.emit(logging.LogRecord("x", level, "f", 1, "a\nb\0", (), None))
    priorities = (syslog.LOG_DEBUG, syslog.LOG_INFO, syslog.LOG_WARNING, syslog.LOG_ERR)
    assert sent == [(priority, line) for priority in priorities for line in ("a", "b\\0")]


def test_status_says_what_is_mounted_how(command: Commandline) -> None:
    place, pid = mounted(command, "--noatime")
    (info,) = command.mounts()
    status = control.ask(control.own_directory(), info.minor, {"cmd": "status"}, 10)
    state = control.read_state(control.own_directory(), info.minor)
    assert state is not None
    assert state.items() <= status.items()
    assert (status["pid"], status["fs"], status["mountpoint"]) == (pid, "mem", str(place))
    assert status["start_time"] == procs.start_time(pid)
    assert status["ready_at"] <= time.time()
    assert status["waiting"] == {"files": 0, "bytes": 0}
    assert status["options"]["noatime"] == {"value": "yes", "origin": "command line"}
    assert status["options"]["nosuid"] == {"value": "yes", "origin": "default"}
