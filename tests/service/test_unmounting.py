"""umount waits for what waits to be written back; so does the server's end, for a while."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import Commandline, needs_mounts
from pretending import Talk

from pyfusekit.core.mountinfo import MountInfo
from pyfusekit.service import control, mounts, procs, unmounting
from pyfusekit.service.exits import BUSY, TIMED_OUT, Failure

pytestmark = needs_mounts


def until(true: Callable[[], object], seconds: float = 15) -> bool:
    """Wait until *true* is, at most *seconds*."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def mounted(command: Commandline, talk: Talk, files: int = 3, size: int = 12 << 20) -> tuple[Path, int]:
    """Mount the filesystem that pretends, with data that waits; return the place and the server's pid."""
    talk.say("waiting", [files, size])
    place = command.folder()
    done = command.run("mount", "pretend", talk.folder, place)
    assert done.returncode == 0, done.stderr
    (pid,) = command.processes()
    return place, pid


def target_of(place: Path) -> tuple[MountInfo, mounts.Mounted]:
    info = mounts.target(str(place))
    return info, mounts.examine(info)


def log_of(command: Commandline) -> str:
    (file,) = (command.top / "state" / "pyfusekit").iterdir()
    return file.read_text()


# --- list -----------------------------------------------------------------------------------------------------------


def test_list_shows_what_waits_and_status_the_details(command: Commandline, talk: Talk) -> None:
    place, _ = mounted(command, talk)
    line = next(line for line in command.run("list").stdout.splitlines() if str(place) in line)
    assert line.endswith("ok, 3 files (12 MiB) to be written back")
    (row,) = [row for row in json.loads(command.run("list", "--json").stdout) if row["mountpoint"] == str(place)]
    assert row["waiting"] == {"files": 3, "bytes": 12 << 20}
    assert row["details"] == {"pretends": True, "names": ["a", "b"]}


def test_hooks_that_fail_hide_no_mount(command: Commandline, talk: Talk) -> None:
    place, _ = mounted(command, talk)
    talk.say("bug")
    line = next(line for line in command.run("list").stdout.splitlines() if str(place) in line)
    assert line.endswith("  ok")
    assert "TypeError: a bug of details" in log_of(command)
    assert command.run("umount", place).returncode == 0


def test_who_mounts_is_told_what_waits_from_before_and_what_is_weakened(command: Commandline, talk: Talk) -> None:
    talk.say("waiting", [1, 5000])
    talk.say("notes", ["this store ignores If-Match\x1b: the last writer wins"])
    place = command.folder()
    notes = [
        "pyfusekit: note: this store ignores If-Match\\x1b: the last writer wins",
        "pyfusekit: note: an earlier mount left 1 file (4.9 KiB) to be written back",
    ]
    done = command.run("mount", "pretend", talk.folder, place)
    assert done.stdout.startswith(f"Mounted {talk.folder} on {place} ")
    assert done.stderr.splitlines() == notes
    assert command.run("umount", "--no-wait", place).returncode == 0
    server = command.start("mount", "-f", "pretend", talk.folder, place)
    assert until(command.mounts)
    assert server.stdout is not None
    assert server.stdout.readline().startswith("Mounted ")
    assert command.run("umount", "--no-wait", place).returncode == 0
    _, err = server.communicate(timeout=20)
    assert [line for line in err.splitlines() if "note: " in line] == notes


# --- umount ---------------------------------------------------------------------------------------------------------


def test_umount_waits_until_everything_is_written(command: Commandline, talk: Talk) -> None:
    place, pid = mounted(command, talk)
    waiting = command.start("umount", place)
    assert until(lambda: talk.heard("drained"))
    assert talk.heard("drained") == ["inf"], "asked once for all that waits, without a limit"
    assert waiting.poll() is None
    assert [info.mountpoint for info in command.mounts()] == [str(place)], "it can be used meanwhile"
    talk.say("go")
    out, err = waiting.communicate(timeout=20)
    assert (waiting.returncode, out) == (0, f"Unmounted {place}\n")
    assert err == f"Writing back to {talk.folder}: 3 files, 12 MiB to go\n"
    assert procs.start_time(pid) is None
    assert talk.heard("destroyed") == ["yes"]


def test_umount_without_data_asks_for_nothing(command: Commandline, talk: Talk) -> None:
    place, _ = mounted(command, talk, 0, 0)
    done = command.run("umount", place)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Unmounted {place}\n", "")
    assert talk.heard("drained") == []


def test_data_that_cannot_be_written_stays_mounted_and_is_told(command: Commandline, talk: Talk) -> None:
    place, pid = mounted(command, talk)
    talk.say("refuse")
    done = command.run("umount", "--timeout", "300ms", place)
    assert (done.returncode, done.stdout) == (TIMED_OUT, "")
    assert done.stderr.splitlines()[-2:] == [
        f"pyfusekit: {place} stays mounted: 3 files (12 MiB) could not be written back: "
        "a/b.txt: 403 AccessDenied: not you (EACCES)",
        f"  pyfusekit errors {place} says why; pyfusekit umount --no-wait {place} keeps it for the next mount",
    ]
    assert procs.start_time(pid) is not None
    assert len(command.mounts()) == 1


def test_no_wait_leaves_the_data_to_the_next_mount(command: Commandline, talk: Talk) -> None:
    place, pid = mounted(command, talk)
    done = command.run("umount", "--no-wait", place)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (f"Unmounted {place}; 3 files (12 MiB) are kept for the next mount of {talk.folder} to write back\n")
    assert procs.start_time(pid) is None
    assert talk.heard("drained") == [], "the server did not begin to write either"
    assert talk.heard("destroyed") == ["yes"]
    assert "3 files (12 MiB) not written back: kept on this machine" in log_of(command)


def test_no_wait_of_a_busy_mount_changes_nothing(command: Commandline, talk: Talk) -> None:
    place, pid = mounted(command, talk)
    held = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert command.run("umount", "--no-wait", place).returncode == BUSY
    finally:
        os.close(held)
    os.kill(pid, signal.SIGTERM)
    assert until(lambda: talk.heard("drained")), "the server's end writes back again"
    talk.say("go")
    assert command.settle() == {}


def test_a_mount_in_use_is_refused_before_anything_is_waited_for(command: Commandline, talk: Talk) -> None:
    place, _ = mounted(command, talk)
    held = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        done = command.run("umount", place)
    finally:
        os.close(held)
    assert done.returncode == BUSY
    assert done.stderr.startswith(f"pyfusekit: {place} is in use\n")
    assert talk.heard("drained") == []


def test_an_interrupted_umount_leaves_the_mount_as_it_is(command: Commandline, talk: Talk) -> None:
    place, _ = mounted(command, talk)
    waiting = command.start("umount", place)
    assert until(lambda: talk.heard("drained"))
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=20)
    assert waiting.returncode == 130
    assert "Traceback" not in err
    assert len(command.mounts()) == 1


def test_a_drain_that_fails_is_a_bug_in_the_log_and_stays_mounted(command: Commandline, talk: Talk) -> None:
    place, _ = mounted(command, talk)
    waiting = command.start("umount", place)
    assert until(lambda: talk.heard("drained"))
    talk.say("bug")
    talk.say("go")  # the first drain ends, and what waits cannot be told any more
    waiting.communicate(timeout=20)
    assert "TypeError: a bug of waiting" in log_of(command)
    assert command.settle() == {}


def test_what_comes_to_wait_at_the_end_is_waited_for(command: Commandline, talk: Talk) -> None:
    place, pid = mounted(command, talk, 2, 2000)
    subprocess.run(["timeout", "10", "umount", str(place)], check=True)
    assert until(lambda: talk.heard("drained"))
    (seconds,) = map(float, talk.heard("drained"))
    assert 0 < seconds <= 60
    assert procs.start_time(pid) is not None
    talk.say("go")
    assert command.settle() == {}
    assert talk.heard("destroyed") == ["yes"]
    assert "unmounted; writing back 2 files (2.0 KiB)" in log_of(command)
    assert "not written back" not in log_of(command)


class Counter(unmounting.Meter):
    """Counts how often it was told something, and does something at a certain number."""

    def __init__(self, at: int, action: Callable[[], None]) -> None:
        super().__init__(io.StringIO())
        self.left = at
        self.action = action

    def tell(self, source: str, files: int, size: int) -> None:
        self.left -= 1
        if self.left == 0:
            self.action()


def test_data_that_gets_on_is_waited_for_beyond_the_limit(
    command: Commandline, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = mounted(command, talk)
    monkeypatch.setattr(unmounting, "DEFAULT_LIMIT_S", 0.2)
    # Three tenths of a second without progress, but nothing goes wrong: it may be a big file on a slow line.
    meter = Counter(4, lambda: talk.say("go"))
    assert unmounting.unmount(str(place), lazy=False, seconds=None, wait=True, meter=meter) == f"Unmounted {place}"
    assert meter.left <= 0


def test_data_that_fails_is_given_up_when_nothing_gets_on(
    command: Commandline, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = mounted(command, talk)
    talk.say("refuse")
    monkeypatch.setattr(unmounting, "DEFAULT_LIMIT_S", 0.2)
    with pytest.raises(Failure, match="stays mounted: 2 files") as caught:
        unmounting.unmount(str(place), lazy=False, seconds=None, wait=True, meter=Counter(1, lambda: talk.say("step")))
    assert caught.value.code == TIMED_OUT


def test_what_the_server_cannot_write_at_its_end_is_told(command: Commandline, talk: Talk) -> None:
    place, pid = mounted(command, talk)
    info, found = target_of(place)
    talk.say("refuse")
    control.ask(found.directory, info.minor, {"cmd": "ending", "limit": 0.2}, 10)
    # As if it had come to wait after the waiting was over.
    found = found._replace(details={**found.details, "waiting": {"files": 0, "bytes": 0}})
    with pytest.raises(Failure) as caught:
        unmounting.Unmounting(info, found, None, unmounting.Meter(io.StringIO())).run(lazy=False, wait=True)
    assert caught.value.cause == (
        f"{place} is unmounted, but 3 files (12 MiB) could not be written back: a/b.txt: 403 AccessDenied: not you (EACCES)"
    )
    assert f"the next mount of {talk.folder} goes on with it" in caught.value.remedy
    assert procs.start_time(pid) is None
    assert len(talk.heard("drained")) == 1


def test_a_filesystem_that_does_not_keep_its_deadline_is_ended(command: Commandline, talk: Talk) -> None:
    place, pid = mounted(command, talk)
    talk.say("stay")
    info, found = target_of(place)
    control.ask(found.directory, info.minor, {"cmd": "ending", "limit": 0.1}, 10)
    os.kill(pid, signal.SIGTERM)
    assert command.settle() == {}
    assert talk.heard("destroyed") == ["yes"]


def test_a_lazy_unmount_waits_for_nothing_and_its_server_writes_back(command: Commandline, talk: Talk) -> None:
    place, pid = mounted(command, talk)
    done = command.run("umount", "--lazy", place)
    assert done.stdout == f"Detached {place}; its server (pid {pid}) ends when the last user is gone\n"
    assert until(lambda: talk.heard("drained"))
    talk.say("go")
    assert command.settle() == {}


# --- signals --------------------------------------------------------------------------------------------------------


def test_a_second_signal_ends_the_writing_back(command: Commandline, talk: Talk) -> None:
    _, pid = mounted(command, talk)
    os.kill(pid, signal.SIGTERM)
    assert until(lambda: talk.heard("drained"))
    assert command.mounts() == []
    os.kill(pid, signal.SIGTERM)
    assert command.settle() == {}
    assert talk.heard("destroyed") == ["yes"]
    assert "3 files (12 MiB) not written back" in log_of(command)


def test_the_first_signal_after_umount_8_does_not_break_off_the_writing_back(command: Commandline, talk: Talk) -> None:
    place, pid = mounted(command, talk)
    subprocess.run(["timeout", "10", "umount", str(place)], check=True)
    assert until(lambda: talk.heard("drained"))
    os.kill(pid, signal.SIGTERM)
    assert until(lambda: "SIGTERM: writing back what waits" in log_of(command))
    talk.say("go")
    assert command.settle() == {}
    assert "not written back" not in log_of(command)


# --- the meter ------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_one_line_that_changes_and_goes_away() -> None:
    seconds = iter([1.0, 3.0])
    screen = Terminal()
    meter = unmounting.Meter(screen, lambda: next(seconds))
    meter.clear()
    meter.tell("s3://b\x1b", 3, 12 << 20)
    meter.tell("s3://b\x1b", 1, 4 << 20)
    meter.clear()
    assert screen.getvalue() == (
        "\rWriting back to s3://b\\x1b: 3 files, 12 MiB to go\x1b[K"
        "\rWriting back to s3://b\\x1b: 1 file, 4.0 MiB to go, 4.0 MiB/s\x1b[K"
        "\r\x1b[K"
    )


def test_elsewhere_there_is_a_line_now_and_then() -> None:
    seconds = iter([1.0, 2.0, 10.9, 11.0, 12.0])
    log = io.StringIO()
    meter = unmounting.Meter(log, lambda: next(seconds))
    for size in (5000, 4000, 3000, 2000, 1000):
        meter.tell("b", 1, size)
    meter.clear()
    assert log.getvalue() == (
        "Writing back to b: 1 file, 4.9 KiB to go\nWriting back to b: 1 file, 2.0 KiB to go, 300 bytes/s\n"
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1, "1 byte"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (10 << 10, "10 KiB"), (1048575, "1.0 MiB"),
     (12 << 20, "12 MiB"), (5 << 40, "5.0 TiB"), (1 << 63, "8.0 EiB"), (1 << 73, "8192 EiB")],
)  # fmt: skip
def test_an_amount_is_three_digits_and_a_unit(count: int, text: str) -> None:
    from pyfusekit.service.words import amount_text

    assert amount_text(count) == text
