from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from commandline import Commandline, needs_mounts
from pretending import Talk

from pyfusekit.core import Filesystem, Problem, ProblemLog
from pyfusekit.service import commands, control, errors
from pyfusekit.service.ending import Ending
from pyfusekit.service.exits import NOT_MOUNTED, TIMED_OUT

FIRST = time.mktime((2026, 11, 23, 10, 11, 2, 0, 0, -1))


def row(**changes: Any) -> dict[str, Any]:
    made = {
        "mountpoint": "/mnt/pics",
        "source": "s3://photos",
        "operation": "PutObject",
        "path": "2026/a\x1b.jpg",
        "errno": "EACCES",
        "cause": "403 AccessDenied: Access Denied",
        "remedy": "ask the bucket's owner for s3:PutObject",
        "request_id": "4442587FB7D0A2F9",
        "time": FIRST + 61,
        "first_time": FIRST,
        "count": 3,
    }
    return {**made, **changes}


def test_a_problem_is_a_paragraph_with_all_that_is_known_of_it() -> None:
    assert errors.as_text([row()]) == (
        "2026-11-23 10:12:03  EACCES  /mnt/pics/2026/a\\x1b.jpg\n"
        "  PutObject: 403 AccessDenied: Access Denied\n"
        "  3 times since 2026-11-23 10:11:02; request 4442587FB7D0A2F9\n"
        "  ask the bucket's owner for s3:PutObject"
    )


def test_an_operation_that_the_cause_names_is_not_said_twice() -> None:
    assert errors.as_text([row(cause="PutObject 'a': no answer")]).splitlines()[1] == "  PutObject 'a': no answer"


def test_what_is_not_known_takes_no_line_and_problems_are_set_apart() -> None:
    bare = row(path="", remedy="", request_id="", count=1)
    assert errors.as_text([bare, bare]) == "\n\n".join(
        ["2026-11-23 10:12:03  EACCES  /mnt/pics\n  PutObject: 403 AccessDenied: Access Denied"] * 2
    )


# --- the server's side ----------------------------------------------------------------------------------------------


def answered(problems: ProblemLog | None) -> Any:
    fs = Filesystem()
    fs.problems = problems
    return commands.Commands(fs, {}, {}, Ending()).errors({})["problems"]


def test_a_filesystem_without_a_list_says_so() -> None:
    assert answered(None) is None
    assert answered(ProblemLog()) == []


def test_the_newest_problems_that_fit_are_told() -> None:
    log = ProblemLog()
    for number in range(200):
        log.add(Problem("x", f"{number}" + "\udcff" * 4000, errno.EIO, "c" * 10_000, time=float(number)))
    told = answered(log)
    assert len(json.dumps(told)) < control.MAX_LINE
    assert 1 < len(told) < 200
    assert told[-1]["time"] == 199.0
    assert [problem["time"] for problem in told] == sorted(problem["time"] for problem in told)
    assert len(told[-1]["cause"]) == 2000


# --- the real thing -------------------------------------------------------------------------------------------------

PROBLEMS = [
    {"operation": "GetObject", "path": "b", "errno": errno.ENODATA, "cause": "archived", "time": FIRST},
    {"operation": "PutObject", "path": "ü", "errno": errno.EACCES, "cause": "no", "request_id": "R", "time": FIRST + 9},
]


@needs_mounts
def test_errors_are_shown_newest_last_and_as_json(command: Commandline, talk: Talk) -> None:
    talk.say("problems", PROBLEMS)
    place = command.folder()
    assert command.run("mount", "pretend", talk.folder, place).returncode == 0
    done = command.run("errors", place)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"2026-11-23 10:11:02  ENODATA  {place}/b\n  GetObject: archived\n\n"
        f"2026-11-23 10:11:11  EACCES  {place}/ü\n  PutObject: no\n  request R\n"
    )
    (first, second) = json.loads(command.run("errors", "--json", place).stdout)
    assert (first["path"], first["errno"], first["time"], first["count"]) == ("b", "ENODATA", FIRST, 1)
    assert (second["mountpoint"], second["source"]) == (str(place), str(talk.folder))
    assert first.keys() == second.keys() == row().keys()
    assert f"{place}/ü" in command.run("errors").stdout, "without a mountpoint it is all mounts"


@needs_mounts
def test_a_filesystem_without_errors_says_so(command: Commandline) -> None:
    place = command.folder()
    assert command.run("mount", "mem", place).returncode == 0
    assert command.run("errors", place).stdout == "No errors.\n"
    assert command.run("errors", place, "--json").stdout == "[]\n"


@needs_mounts
def test_a_mount_that_does_not_answer_is_named_and_hides_no_other(command: Commandline, talk: Talk) -> None:
    talk.say("problems", PROBLEMS)
    good, hung = command.folder("good"), command.folder("hung")
    assert command.run("mount", "pretend", talk.folder, good).returncode == 0
    before = set(command.processes())
    assert command.run("mount", "mem", hung).returncode == 0
    (pid,) = set(command.processes()) - before
    os.kill(pid, signal.SIGSTOP)
    said = f"pyfusekit: the server of {hung} (pid {pid}) does not answer: it hangs or is stopped\n"
    for arguments in ((), (hung,)):
        done = command.run("errors", *arguments)
        assert done.returncode == TIMED_OUT
        assert done.stderr.startswith(said)
        assert f"kill -CONT {pid}" in done.stderr
        assert ("GetObject: archived" in done.stdout) == (not arguments)
    os.kill(pid, signal.SIGCONT)


@needs_mounts
def test_a_mount_that_is_dead_or_not_ours_has_no_errors_to_show(command: Commandline) -> None:
    place = command.folder()
    done = command.run("errors", place)
    assert (done.returncode, done.stderr.splitlines()[0]) == (NOT_MOUNTED, f"pyfusekit: {place} is not mounted")
    assert command.run("mount", "mem", place).returncode == 0
    (pid,) = command.processes()
    os.kill(pid, signal.SIGKILL)
    assert command.settle() == {}
    done = command.run("errors", place)
    assert done.returncode == NOT_MOUNTED
    assert done.stderr == f"pyfusekit: {place} is dead: its server is gone\n  pyfusekit umount {place}\n"
    assert command.run("umount", place).returncode == 0


@pytest.mark.parametrize("name", ["errors", "refresh"])
def test_they_do_not_load_asyncio(name: str) -> None:
    import subprocess
    import sys

    script = (
        f"import sys\nfrom pyfusekit.cli import main\nmain(['{name}', '/'])\n"
        "print(sorted({'asyncio', 'ssl', 'logging', 'importlib.metadata'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
