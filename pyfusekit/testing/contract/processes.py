"""Contracts about several processes: locks, and doing things at the same time."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from typing import Any

from ..tree import RENAME_EXCHANGE, RENAME_NOREPLACE, Call, Tree
from .base import Capability, fails_with, opened

RDLCK, WRLCK, UNLCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
CREATE = os.O_CREAT | os.O_RDWR


def assert_waits(call: Call[Any]) -> None:
    """Watch *call* for a moment: it must not end, neither with a result nor with an error."""
    deadline = time.monotonic() + 0.05
    while time.monotonic() < deadline:
        assert not call.done, f"did not wait: {call.result()!r}"
        time.sleep(0.002)


class LockContract:
    """POSIX locks (fcntl), open file description locks, and flock."""

    def test_exclusive_lock_keeps_another_process_out(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as fd, tree.actor() as other:
            tree.posix_lock(fd, WRLCK)
            theirs = other.run(tree.open, "f", os.O_RDWR)
            for kind in (WRLCK, RDLCK):
                with fails_with(errno.EAGAIN, errno.EACCES):
                    other.run(tree.posix_lock, theirs, kind)
            tree.posix_lock(fd, UNLCK)
            other.run(tree.posix_lock, theirs, WRLCK)
            with fails_with(errno.EAGAIN, errno.EACCES):
                tree.posix_lock(fd, RDLCK)

    def test_shared_locks_stand_side_by_side(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as fd, tree.actor() as other:
            tree.posix_lock(fd, RDLCK)
            theirs = other.run(tree.open, "f", os.O_RDWR)
            other.run(tree.posix_lock, theirs, RDLCK)
            with fails_with(errno.EAGAIN, errno.EACCES):
                other.run(tree.posix_lock, theirs, WRLCK)

    def test_ranges_that_do_not_meet_do_not_conflict(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as fd, tree.actor() as other:
            tree.posix_lock(fd, WRLCK, 100, 50)
            theirs = other.run(tree.open, "f", os.O_RDWR)
            other.run(tree.posix_lock, theirs, WRLCK, 0, 100)
            other.run(tree.posix_lock, theirs, WRLCK, 150, 0)
            for start, length in ((99, 2), (149, 1), (120, 1), (0, 0)):
                with fails_with(errno.EAGAIN, errno.EACCES):
                    other.run(tree.posix_lock, theirs, WRLCK, start, length)

    def test_lock_in_the_way_is_told(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as fd, tree.actor() as other:
            assert tree.posix_getlk(fd, WRLCK) is None
            theirs = other.run(tree.open, "f", os.O_RDWR)
            other.run(tree.posix_lock, theirs, WRLCK, 100, 50)
            held = tree.posix_getlk(fd, RDLCK, 0, 0)
            assert held is not None
            assert (held.type, held.start, held.length) == (WRLCK, 100, 50)
            assert held.pid > 0
            assert tree.posix_getlk(fd, WRLCK, 0, 100) is None
            assert other.run(tree.posix_getlk, theirs, WRLCK) is None

    def test_lock_to_the_end_is_told_as_such(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as fd, tree.actor() as other:
            tree.posix_lock(fd, RDLCK, 10, 0)
            theirs = other.run(tree.open, "f", os.O_RDWR)
            held = other.run(tree.posix_getlk, theirs, WRLCK, 1 << 40, 1)
            assert held is not None
            assert (held.type, held.start, held.length) == (RDLCK, 10, 0)

    def test_own_locks_are_replaced_and_split(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as fd, tree.actor() as other:
            tree.posix_lock(fd, WRLCK, 0, 300)
            tree.posix_lock(fd, RDLCK, 100, 100)
            theirs = other.run(tree.open, "f", os.O_RDWR)
            other.run(tree.posix_lock, theirs, RDLCK, 100, 100)
            for start in (0, 200):
                with fails_with(errno.EAGAIN, errno.EACCES):
                    other.run(tree.posix_lock, theirs, RDLCK, start, 100)
            other.run(tree.posix_lock, theirs, UNLCK)
            tree.posix_lock(fd, UNLCK, 100, 100)
            other.run(tree.posix_lock, theirs, WRLCK, 100, 100)
            with fails_with(errno.EAGAIN, errno.EACCES):
                other.run(tree.posix_lock, theirs, WRLCK, 99, 1)

    def test_closing_any_descriptor_drops_the_processes_locks(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as fd, tree.actor() as other:
            tree.posix_lock(fd, WRLCK)
            theirs = other.run(tree.open, "f", os.O_RDWR)
            with fails_with(errno.EAGAIN, errno.EACCES):
                other.run(tree.posix_lock, theirs, WRLCK)
            tree.close(tree.open("f", os.O_RDONLY))
            other.run(tree.posix_lock, theirs, WRLCK)

    def test_process_that_ends_gives_its_locks_back(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as fd:
            with tree.actor() as other:
                theirs = other.run(tree.open, "f", os.O_RDWR)
                other.run(tree.posix_lock, theirs, WRLCK)
                with fails_with(errno.EAGAIN, errno.EACCES):
                    tree.posix_lock(fd, WRLCK)
            tree.posix_lock(fd, WRLCK)

    def test_wait_ends_when_the_lock_is_given_back(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as fd, tree.actor() as other:
            tree.posix_lock(fd, WRLCK)
            theirs = other.run(tree.open, "f", os.O_RDWR)
            call = other.start(tree.posix_lock, theirs, WRLCK, wait=True)
            assert_waits(call)
            tree.posix_lock(fd, UNLCK)
            call.result()
            with fails_with(errno.EAGAIN, errno.EACCES):
                tree.posix_lock(fd, WRLCK)

    def test_wait_is_interrupted_and_leaves_no_lock(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as fd, tree.actor() as other:
            tree.posix_lock(fd, WRLCK)
            theirs = other.run(tree.open, "f", os.O_RDWR)
            call = other.start(tree.posix_lock, theirs, WRLCK, wait=True)
            assert_waits(call)
            call.interrupt()
            with fails_with(errno.EINTR):
                call.result()
            tree.posix_lock(fd, UNLCK)
            tree.posix_lock(fd, WRLCK)

    def test_waiters_for_shared_locks_are_all_let_in(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as fd, tree.actor() as one, tree.actor() as two:
            tree.posix_lock(fd, WRLCK)
            calls = []
            for actor in (one, two):
                theirs = actor.run(tree.open, "f", os.O_RDWR)
                calls.append(actor.start(tree.posix_lock, theirs, RDLCK, wait=True))
            for call in calls:
                assert_waits(call)
            tree.posix_lock(fd, UNLCK)
            for call in calls:
                call.result()

    def test_deadlock_is_refused(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as fd, tree.actor() as one, tree.actor() as two:
            first = one.run(tree.open, "f", os.O_RDWR)
            second = two.run(tree.open, "f", os.O_RDWR)
            one.run(tree.posix_lock, first, WRLCK, 0, 1)
            two.run(tree.posix_lock, second, WRLCK, 1, 1)
            call = one.start(tree.posix_lock, first, WRLCK, 1, 1, wait=True)
            assert_waits(call)
            with fails_with(errno.EDEADLK):
                two.run(tree.posix_lock, second, WRLCK, 0, 1, wait=True)
            two.run(tree.posix_lock, second, UNLCK, 1, 1)
            call.result()
            assert tree.posix_getlk(fd, WRLCK, 0, 2) is not None

    def test_lock_needs_a_descriptor_of_its_kind(self, tree: Tree) -> None:
        tree.write_file("f", b"x")
        with opened(tree, "f", os.O_RDONLY) as fd, fails_with(errno.EBADF):
            tree.posix_lock(fd, WRLCK)
        with opened(tree, "f", os.O_WRONLY) as fd, fails_with(errno.EBADF):
            tree.posix_lock(fd, RDLCK)

    def test_description_locks_conflict_inside_one_process(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as one, opened(tree, "f", os.O_RDWR) as two:
            tree.ofd_lock(one, WRLCK)
            with fails_with(errno.EAGAIN):
                tree.ofd_lock(two, WRLCK)
            tree.ofd_lock(one, UNLCK)
            tree.ofd_lock(two, WRLCK)

    def test_description_lock_outlives_other_descriptors(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as one, opened(tree, "f", os.O_RDWR) as two:
            tree.ofd_lock(one, WRLCK)
            tree.close(tree.open("f", os.O_RDWR))
            with fails_with(errno.EAGAIN):
                tree.ofd_lock(two, RDLCK)

    def test_description_lock_ends_with_its_last_descriptor(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as other:
            one = tree.open("f", os.O_RDWR)
            copy = tree.dup(one)
            tree.ofd_lock(one, WRLCK)
            tree.close(one)
            with fails_with(errno.EAGAIN):
                tree.ofd_lock(other, WRLCK)
            tree.close(copy)
            # The release is not waited for by close.
            retry(lambda: tree.ofd_lock(other, WRLCK))

    def test_description_and_process_locks_see_each_other(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as one, opened(tree, "f", os.O_RDWR) as two:
            tree.ofd_lock(one, WRLCK)
            with fails_with(errno.EAGAIN, errno.EACCES):
                tree.posix_lock(two, WRLCK)
            tree.ofd_lock(one, UNLCK)
            tree.posix_lock(two, WRLCK)
            with fails_with(errno.EAGAIN):
                tree.ofd_lock(one, WRLCK)

    def test_wait_for_a_description_lock_ends(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as fd, tree.actor() as other:
            tree.ofd_lock(fd, WRLCK)
            theirs = other.run(tree.open, "f", os.O_RDWR)
            call = other.start(tree.ofd_lock, theirs, WRLCK, wait=True)
            assert_waits(call)
            tree.ofd_lock(fd, UNLCK)
            call.result()

    def test_flock_conflicts_between_descriptions(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as one, opened(tree, "f") as two:
            tree.flock(one, fcntl.LOCK_EX)
            for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH):
                with fails_with(errno.EAGAIN):
                    tree.flock(two, kind | fcntl.LOCK_NB)
            tree.flock(one, fcntl.LOCK_SH)
            tree.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
            with fails_with(errno.EAGAIN):
                tree.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
            tree.flock(two, fcntl.LOCK_UN)

    def test_flock_is_shared_by_duplicates_and_ends_with_the_last(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as other:
            one = tree.open("f", os.O_RDWR)
            copy = tree.dup(one)
            tree.flock(one, fcntl.LOCK_EX)
            tree.flock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB)
            tree.close(one)
            with fails_with(errno.EAGAIN):
                tree.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            tree.close(copy)
            retry(lambda: tree.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB))

    def test_flock_waits_and_is_interrupted(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as fd, tree.actor() as other:
            tree.flock(fd, fcntl.LOCK_EX)
            theirs = other.run(tree.open, "f", os.O_RDWR)
            call = other.start(tree.flock, theirs, fcntl.LOCK_EX)
            assert_waits(call)
            call.interrupt()
            with fails_with(errno.EINTR):
                call.result()
            call = other.start(tree.flock, theirs, fcntl.LOCK_SH)
            assert_waits(call)
            tree.flock(fd, fcntl.LOCK_UN)
            call.result()

    def test_flock_and_process_locks_do_not_see_each_other(self, tree: Tree) -> None:
        with opened(tree, "f", CREATE) as one, opened(tree, "f", os.O_RDWR) as two:
            tree.flock(one, fcntl.LOCK_EX)
            tree.posix_lock(two, WRLCK)

    def test_flock_needs_no_write_access(self, tree: Tree) -> None:
        tree.write_file("f")
        with opened(tree, "f", os.O_RDONLY) as fd:
            tree.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def retry(verb: Any) -> None:
    """Do *verb* again until it no longer fails with EAGAIN, for at most two seconds."""
    deadline = time.monotonic() + 2
    while True:
        try:
            verb()
        except OSError as exc:
            if exc.errno != errno.EAGAIN or time.monotonic() > deadline:
                raise
            time.sleep(0.002)
        else:
            return


class ConcurrencyContract:
    """Several processes at the same time: each verb happens wholly or not at all."""

    def test_files_written_at_the_same_time_are_all_there(self, tree: Tree) -> None:
        def work(who: int) -> None:
            for index in range(15):
                tree.write_file(f"f-{who}-{index}", b"%d %d" % (who, index) * 1000)

        together(tree, work, 4)
        assert len(tree.listdir()) == 60
        for who in range(4):
            for index in range(15):
                assert tree.read_file(f"f-{who}-{index}") == b"%d %d" % (who, index) * 1000

    def test_one_file_is_written_in_different_places(self, tree: Tree) -> None:
        tree.write_file("f")

        def work(who: int) -> None:
            with opened(tree, "f", os.O_WRONLY) as fd:
                for index in range(who, 40, 4):
                    tree.pwrite(fd, bytes([index]) * 5000, index * 5000)

        together(tree, work, 4)
        assert tree.read_file("f") == b"".join(bytes([index]) * 5000 for index in range(40))

    def test_appended_lines_are_whole(self, tree: Tree) -> None:
        tree.write_file("f")

        def work(who: int) -> None:
            with opened(tree, "f", os.O_WRONLY | os.O_APPEND) as fd:
                for index in range(20):
                    tree.write(fd, b"%d:%03d\n" % (who, index))

        together(tree, work, 4)
        lines = tree.read_file("f").splitlines()
        assert sorted(lines) == sorted(b"%d:%03d" % (who, index) for who in range(4) for index in range(20))

    def test_one_of_many_makes_a_name(self, tree: Tree) -> None:
        for round_ in range(5):
            winners: list[int] = []

            def work(who: int, round_: int = round_, winners: list[int] = winners) -> None:
                try:
                    tree.close(tree.open(f"f{round_}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                    winners.append(who)
                except FileExistsError:
                    pass

            together(tree, work, 4)
            assert len(winners) == 1

    def test_one_of_many_makes_a_directory(self, tree: Tree) -> None:
        winners: list[int] = []

        def work(who: int) -> None:
            for round_ in range(5):
                try:
                    tree.mkdir(f"d{round_}")
                    winners.append(round_)
                except FileExistsError:
                    pass

        together(tree, work, 4)
        assert sorted(winners) == list(range(5))

    def test_one_of_many_renames_to_a_free_name(self, tree: Tree) -> None:
        for who in range(4):
            tree.write_file(f"from{who}", b"%d" % who)
        winners: list[int] = []

        def work(who: int) -> None:
            try:
                tree.rename(f"from{who}", "to", RENAME_NOREPLACE)
                winners.append(who)
            except FileExistsError:
                pass

        together(tree, work, 4)
        assert len(winners) == 1
        assert tree.read_file("to") == b"%d" % winners[0]
        assert len(tree.listdir()) == 4

    def test_replaced_file_is_read_whole(self, tree: Tree) -> None:
        tree.write_file("f", b"0" * 20_000)

        def work(who: int) -> None:
            if who == 0:
                for round_ in range(10):
                    tree.write_file("new", b"%d" % round_ * 20_000)
                    tree.rename("new", "f")
            else:
                for _ in range(15):
                    data = tree.read_file("f")
                    assert len(data) == 20_000
                    assert len(set(data)) == 1

        together(tree, work, 3)

    def test_making_and_removing_one_name_fails_only_as_it_may(self, tree: Tree) -> None:
        def work(who: int) -> None:
            for _ in range(15):
                try:
                    if who % 2:
                        tree.unlink("f")
                    else:
                        tree.write_file("f", b"x")
                except FileNotFoundError:
                    pass

        together(tree, work, 4)
        if tree.exists("f"):
            tree.unlink("f")
        assert tree.listdir() == []

    def test_directories_are_moved_about(self, tree: Tree) -> None:
        for name in ("a", "b"):
            tree.mkdir(name)
            tree.mkdir(f"{name}/{name}{name}")

        def work(who: int) -> None:
            for _ in range(10):
                try:
                    if who == 0:
                        tree.rename("a/aa", "b/aa")
                        tree.rename("b/aa", "a/aa")
                    else:
                        tree.rename("b/bb", "a/bb")
                        tree.rename("a/bb", "b/bb")
                except FileNotFoundError:
                    pass

        together(tree, work, 2)
        assert sorted(tree.listdir("a") + tree.listdir("b")) == [b"aa", b"bb"]

    def test_locked_counter_counts_every_turn(self, tree: Tree) -> None:
        tree.write_file("f", b"0")

        def work(who: int) -> None:
            for _ in range(8):
                with opened(tree, "f", os.O_RDWR) as fd:
                    tree.posix_lock(fd, WRLCK, wait=True)
                    value = int(tree.pread(fd, 20, 0))
                    tree.pwrite(fd, b"%d" % (value + 1), 0)

        together(tree, work, 3)
        assert tree.read_file("f") == b"24"

    def test_files_come_and_go_while_the_directory_is_read(self, tree: Tree) -> None:
        for index in range(30):
            tree.write_file(f"stay{index:02d}")

        def work(who: int) -> None:
            if who == 0:
                for _ in range(8):
                    names = [entry.name for entry in tree.scandir(size=400)]
                    assert len(names) == len(set(names))
                    assert sorted(name for name in names if name.startswith(b"stay")) == [b"stay%02d" % i for i in range(30)]
            else:
                for index in range(25):
                    tree.write_file(f"go{who}-{index}")
                    tree.unlink(f"go{who}-{index}")

        together(tree, work, 3)

    def test_exchange_never_shows_a_name_missing(self, tree: Tree, supports_exchange: Capability) -> None:
        tree.write_file("a", b"a")
        tree.write_file("b", b"b")
        with supports_exchange:
            tree.rename("a", "b", RENAME_EXCHANGE)
        if not supports_exchange:
            return

        def work(who: int) -> None:
            for _ in range(15):
                if who == 0:
                    tree.rename("a", "b", RENAME_EXCHANGE)
                else:
                    assert tree.read_file("a") in (b"a", b"b")
                    assert tree.read_file("b") in (b"a", b"b")

        together(tree, work, 3)


def together(tree: Tree, work: Any, count: int) -> None:
    """Run ``work(0)`` to ``work(count - 1)``, each in a process of its own, at the same time."""
    actors = [tree.actor() for _ in range(count)]
    try:
        calls = [actor.start(work, who) for who, actor in enumerate(actors)]
        for call in calls:
            call.result()
    finally:
        for actor in actors:
            actor.close()


__all__ = ["ConcurrencyContract", "LockContract"]
