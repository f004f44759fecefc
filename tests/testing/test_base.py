"""The words of the contract: what is supported runs, what is refused must be, with the errno that was stated."""

from __future__ import annotations

import errno

import pytest

from pyfusekit.testing.contract import SUPPORTED, Refused
from pyfusekit.testing.contract.base import fails_with, pattern


def refuse(number: int) -> None:
    raise OSError(number, "no")


def test_supported_block_runs_and_raises_as_it_is() -> None:
    with pytest.raises(PermissionError), SUPPORTED:
        refuse(errno.EPERM)
    assert SUPPORTED


def test_refused_block_ends_at_its_first_verb() -> None:
    after = []
    with Refused(errno.EPERM):
        refuse(errno.EPERM)
        after.append("not reached")
    assert after == []
    assert not Refused(errno.EPERM)


def test_refused_block_that_works_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="succeeded"), Refused(errno.EPERM):
        pass


def test_refusal_with_another_errno_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="Operation not permitted"), Refused(errno.EPERM):
        refuse(errno.EINVAL)


def test_other_exceptions_pass_through() -> None:
    with pytest.raises(ZeroDivisionError), fails_with(errno.EPERM):
        raise ZeroDivisionError


def test_pattern_has_no_two_pages_alike() -> None:
    data = pattern(100 * 4096 + 5)
    assert len(data) == 100 * 4096 + 5
    assert len({data[at : at + 4096] for at in range(0, len(data), 4096)}) == 101
