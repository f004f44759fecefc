from __future__ import annotations

import errno
import logging
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from pyfusekit.core.abi import ROOT_ID
from pyfusekit.core.inodes import HandleTable, InodeTable


def test_root_is_1_and_is_never_forgotten() -> None:
    table = InodeTable("root")
    assert table[1] == "root"
    table.enter(1)
    assert table.forget(1, 1) is None
    assert table[1] == "root"


def test_unknown_node_is_estale() -> None:
    table = InodeTable("root")
    for act in (lambda: table[7], lambda: table.enter(7), lambda: table.pin(7), lambda: table.rekey(7, "key")):
        with pytest.raises(OSError, match="no node 7") as caught:
            act()
        assert caught.value.errno == errno.ESTALE
    assert table.get(7) is None
    assert 7 not in table


def test_add_counts_no_lookup_and_enter_counts_one() -> None:
    table = InodeTable("root")
    ino = table.add("file")
    assert (ino, table.nlookup(ino)) == (2, 0)
    assert table.enter(ino) == ino
    table.enter(ino)
    assert table.nlookup(ino) == 2


def test_node_drops_out_with_its_last_lookup() -> None:
    table = InodeTable("root")
    ino = table.enter(table.add("file"))
    table.enter(ino)
    assert table.forget(ino, 1) is None
    assert table[ino] == "file"
    assert table.forget(ino, 1) == "file"
    assert ino not in table


def test_ids_are_not_used_again() -> None:
    table = InodeTable("root")
    first = table.enter(table.add("a"))
    table.forget(first, 1)
    second = table.add("b")
    assert second > first
    assert table.generation(second) == 0


def test_recycled_id_has_a_higher_generation_each_time() -> None:
    table = InodeTable("root", recycle=True)
    lives = []
    for name in ("a", "b", "c"):
        ino = table.enter(table.add(name))
        lives.append((ino, table.generation(ino)))
        table.forget(ino, 1)
    assert lives == [(2, 0), (2, 1), (2, 2)]


def test_oldest_free_id_is_recycled_first() -> None:
    table = InodeTable("root", recycle=True)
    a, b = table.enter(table.add("a")), table.enter(table.add("b"))
    table.forget(b, 1)
    table.forget(a, 1)
    assert [table.add("c"), table.add("d"), table.add("e")] == [b, a, 4]


def test_pinned_node_survives_its_lookups() -> None:
    table = InodeTable("root")
    ino = table.enter(table.add("file"))
    table.pin(ino)
    assert table.forget(ino, 1) is None
    assert table[ino] == "file"
    assert table.unpin(ino) == "file"
    assert ino not in table


def test_unpinned_node_survives_while_it_is_looked_up() -> None:
    table = InodeTable("root")
    ino = table.enter(table.add("file"))
    table.pin(ino)
    table.pin(ino)
    assert table.unpin(ino) is None
    assert table.unpin(ino) is None
    assert table.forget(ino, 1) == "file"
    with pytest.raises(ValueError, match="not pinned"):
        table.unpin(ino)


@pytest.mark.parametrize("nlookup", [3, 2**64 - 1])
def test_too_many_forgets_drop_the_node_and_are_logged(nlookup: int, caplog: pytest.LogCaptureFixture) -> None:
    table = InodeTable("root")
    ino = table.enter(table.add("file"))
    with caplog.at_level(logging.WARNING):
        assert table.forget(ino, nlookup) == "file"
        assert table.forget(ino, 1) is None
        assert table.forget(99, 1) is None
    assert len(caplog.records) == 3
    assert table.nlookup(ino) == 0


def test_forget_of_a_node_never_entered_keeps_it(caplog: pytest.LogCaptureFixture) -> None:
    table = InodeTable("root")
    ino = table.add("file")
    assert table.forget(ino, 1) is None
    assert table[ino] == "file"
    assert "looked up 0 times" in caplog.text


def test_forget_of_nothing_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    table = InodeTable("root")
    ino = table.add("file")
    assert table.forget(ino, 0) is None
    table.enter(ino)
    assert table.forget(ino, 0) is None
    assert table.nlookup(ino) == 1
    assert not caplog.records


def test_discard_drops_only_what_nothing_holds() -> None:
    table = InodeTable("root")
    idle, entered = table.add("idle"), table.enter(table.add("entered"))
    assert table.discard(idle) == "idle"
    assert table.discard(idle) is None
    assert table.discard(entered) is None
    assert table.discard(ROOT_ID) is None
    assert list(table) == [1, entered]


def test_same_key_is_the_same_node() -> None:
    table = InodeTable("root")
    made = []

    def make() -> str:
        made.append(1)
        return "file"

    ino = table.number(("dev", 5), make)
    assert table.number(("dev", 5), make) == ino
    assert table.find(("dev", 5)) == ino
    assert len(made) == 1


def test_key_goes_with_its_node() -> None:
    table = InodeTable("root")
    ino = table.enter(table.number("key", lambda: "old"))
    table.forget(ino, 1)
    assert table.find("key") is None
    assert table.number("key", lambda: "new") != ino


def test_rekey_moves_a_key_and_takes_it_from_its_former_node() -> None:
    table = InodeTable("root")
    a, b = table.number("a", lambda: "A"), table.number("b", lambda: "B")
    table.rekey(a, "b")
    assert (table.find("a"), table.find("b")) == (None, a)
    table.rekey(a, None)
    assert table.find("b") is None
    table.enter(b)
    assert table.forget(b, 1) == "B"


def test_placed_ids_are_kept_clear_of() -> None:
    table = InodeTable("root")
    table.place(2, "row 2")
    table.place(1000, "row 1000", generation=4)
    assert table.generation(1000) == 4
    assert table.add("next") == 3
    for taken in (0, 1, 2, 1000):
        with pytest.raises(ValueError, match="taken"):
            table.place(taken, "again")


def test_placed_id_is_no_longer_free() -> None:
    table = InodeTable("root", recycle=True)
    ino = table.enter(table.add("a"))
    table.forget(ino, 1)
    table.place(ino, "by hand", generation=1)
    assert table.add("b") != ino


def test_first_id_must_leave_room_for_the_root() -> None:
    with pytest.raises(ValueError, match="below 2"):
        InodeTable("root", first=1)


def test_clear_leaves_the_root() -> None:
    table = InodeTable("root")
    table.enter(table.number("key", lambda: "a"))
    table.pin(table.add("b"))
    assert table.clear() == ["a", "b"]
    assert (list(table), table.find("key"), table.nlookup(2)) == ([1], None, 0)


class InodeMachine(RuleBasedStateMachine):
    """Any sequence of entries, pins and forgets against plain counters."""

    inos = Bundle("inos")

    @initialize(recycle=st.booleans())
    def start(self, recycle: bool) -> None:
        self.table: InodeTable[object] = InodeTable(object(), recycle=recycle)
        self.counts: dict[int, list[int]] = {}
        self.named: set[tuple[int, int]] = set()

    @rule(target=inos)
    def enter_new(self) -> int:
        ino = self.table.enter(self.table.add(object()))
        assert (ino, self.table.generation(ino)) not in self.named
        self.named.add((ino, self.table.generation(ino)))
        self.counts[ino] = [1, 0]
        return ino

    @rule(ino=inos)
    def enter(self, ino: int) -> None:
        if ino in self.counts:
            self.table.enter(ino)
            self.counts[ino][0] += 1

    @rule(ino=inos)
    def pin(self, ino: int) -> None:
        if ino in self.counts:
            self.table.pin(ino)
            self.counts[ino][1] += 1

    @rule(ino=inos)
    def unpin(self, ino: int) -> None:
        if ino in self.counts and self.counts[ino][1]:
            self.counts[ino][1] -= 1
            assert (self.table.unpin(ino) is not None) == (self.counts[ino] == [0, 0])
            self.settle(ino)

    @rule(ino=consumes(inos), part=st.floats(0, 1))
    def forget(self, ino: int, part: float) -> None:
        if ino in self.counts and self.counts[ino][0]:
            taken = max(1, round(self.counts[ino][0] * part))
            self.counts[ino][0] -= taken
            assert (self.table.forget(ino, taken) is not None) == (self.counts[ino] == [0, 0])
            self.settle(ino)

    def settle(self, ino: int) -> None:
        if self.counts[ino] == [0, 0]:
            del self.counts[ino]

    @invariant()
    def same_nodes(self) -> None:
        assert set(self.table) == {1, *self.counts}
        assert all(self.table.nlookup(ino) == lookups for ino, (lookups, _) in self.counts.items())


InodeMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestInodeModel = InodeMachine.TestCase


def test_handle_comes_back_under_its_number() -> None:
    table = HandleTable()
    handle: Any = {"open": 1}
    fh = table.add(handle)
    assert fh == 1
    assert table.objects[fh] is handle
    assert table[fh] is handle
    assert (len(table), list(table)) == (1, [handle])
    assert table.pop(fh) is handle
    assert (len(table), list(table)) == (0, [])


def test_fh_0_is_none_and_never_given_out() -> None:
    table = HandleTable()
    assert table.add(None) == 0
    assert (table[0], table.pop(0), table.objects[0]) == (None, None, None)
    assert table.add("a") == 1
    assert len(table) == 1


@pytest.mark.parametrize("fh", [1, 5, -1, 2**64 - 1])
def test_unknown_fh_is_ebadf(fh: int) -> None:
    table = HandleTable()
    table.pop(table.add("gone"))
    for act in (table.__getitem__, table.pop):
        with pytest.raises(OSError, match="no open file") as caught:
            act(fh)
        assert caught.value.errno == errno.EBADF


def test_huge_fh_is_an_index_error_on_the_hot_path() -> None:
    with pytest.raises(IndexError):
        HandleTable().objects[2**64 - 1]


def test_closed_numbers_are_given_out_again() -> None:
    table = HandleTable()
    first, second = table.add("a"), table.add("b")
    table.pop(first)
    assert table.add("c") == first
    assert table.add("d") == 3
    assert table[second] == "b"
