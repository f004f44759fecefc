from __future__ import annotations

import errno

from pyfusekit.core import CONFLICT, Filesystem, Problem, ProblemLog


class Refused(OSError):
    request_id = "4442587FB7D0A2F9"


def test_a_problem_keeps_when_it_was_and_names_its_errno() -> None:
    problem = Problem("PutObject", "a/b", errno.EACCES, "403 AccessDenied", time=5.0)
    assert (problem.first_time, problem.count, problem.errno_name) == (5.0, 1, "EACCES")
    assert Problem("x", "", 4095, "").errno_name == "4095"


def test_the_same_problem_again_is_counted_and_becomes_the_newest() -> None:
    log = ProblemLog()
    log.add(Problem("PutObject", "a", errno.EACCES, "said first", time=1.0))
    log.add(Problem("PutObject", "b", errno.EACCES, "another path", time=2.0))
    log.add(Problem("PutObject", "a", errno.EIO, "another errno", time=3.0))
    log.add(Problem("GetObject", "a", errno.EACCES, "another operation", time=4.0))
    log.add(Problem("PutObject", "a", errno.EACCES, "said last", request_id="R", time=5.0))
    assert [problem.cause for problem in log] == ["another path", "another errno", "another operation", "said last"]
    newest = list(log)[-1]
    assert (newest.count, newest.first_time, newest.time, newest.request_id) == (2, 1.0, 5.0, "R")


def test_the_oldest_goes_when_there_are_too_many() -> None:
    log = ProblemLog(maxlen=3)
    for number in range(5):
        log.add(Problem("x", str(number), errno.EIO, ""))
    assert [problem.path for problem in log] == ["2", "3", "4"]
    assert len(log) == 3


def test_an_exception_is_noted_with_its_words_and_its_request() -> None:
    log = ProblemLog()
    log.note(Refused(errno.EACCES, "not\nyou"), "PutObject", "a", remedy="ask anna")
    log.note(FileNotFoundError("no errno"), "GetObject", "b")
    log.note(ZeroDivisionError(), "rename", "c")
    assert [(p.errno_name, p.cause, p.request_id, p.remedy) for p in log] == [
        ("EACCES", "not you", "4442587FB7D0A2F9", "ask anna"),
        ("ENOENT", "no errno", "", ""),
        ("EIO", "ZeroDivisionError", "", ""),
    ]


def test_what_succeeded_since_is_no_problem_any_more() -> None:
    log = ProblemLog()
    for path in ("a", "a/b", "a"):
        log.note(OSError(errno.EIO, "x"), "PutObject", path)
    log.settle("a")
    assert [problem.path for problem in log] == ["a/b"]


def test_conflict_stays_until_it_is_settled_as_one() -> None:
    log = ProblemLog()
    log.note(OSError(errno.ESTALE, "kept in /x"), CONFLICT, "a")
    log.settle("a")
    assert [problem.path for problem in log] == ["a"]
    log.settle("a", conflicts=True)
    assert list(log) == []


async def test_a_filesystem_has_nothing_to_tell_its_operator_unless_it_says_so() -> None:
    fs = Filesystem()
    assert fs.waiting() == (0, 0)
    assert fs.problems is None
    assert fs.details() == {}
    assert await fs.refresh(b"a/b") == 0
    await fs.drain(0.0)
    assert not any(map(fs.implements, ("waiting", "drain", "refresh", "details")))
