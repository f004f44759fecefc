"""The bytes of small files that were just published."""

from __future__ import annotations

from pyfusekit.fs.s3fs.writing.recent import LARGEST, Recent


def test_bytes_are_found_for_their_version_alone() -> None:
    recent = Recent()
    recent.keep(7, "e1", b"one")
    assert recent.find(7, "e1") == b"one"
    assert recent.find(7, "e2") is None
    assert recent.find(8, "e1") is None
    recent.keep(7, "e2", b"two")
    assert (recent.find(7, "e1"), recent.find(7, "e2")) == (None, b"two")


def test_what_was_kept_first_goes_first() -> None:
    recent = Recent(limit=10)
    for ino in (1, 2, 3):
        recent.keep(ino, "e", b"four")
    assert [recent.find(ino, "e") for ino in (1, 2, 3)] == [None, b"four", b"four"]
    recent.drop(2)
    recent.keep(4, "e", b"six...")
    assert [recent.find(ino, "e") for ino in (3, 4)] == [b"four", b"six..."]


def test_large_and_empty_ones_and_versions_without_a_name_are_not_kept() -> None:
    recent = Recent()
    recent.keep(1, "e", bytes(LARGEST + 1))
    recent.keep(2, "e", b"")
    recent.keep(3, "", b"x")
    assert [recent.find(1, "e"), recent.find(2, "e"), recent.find(3, "")] == [None, None, None]
    recent.keep(4, "e", bytes(LARGEST))
    assert recent.find(4, "e") == bytes(LARGEST)
    recent.keep(4, "e2", bytes(LARGEST + 1))
    assert recent.find(4, "e") is None


def test_copy_has_the_same_bytes() -> None:
    recent = Recent()
    recent.keep(1, "e1", b"one")
    recent.copied(1, "other", "e2")
    assert recent.find(1, "e2") is None
    recent.copied(1, "e1", "e2")
    assert (recent.find(1, "e1"), recent.find(1, "e2")) == (None, b"one")
    recent.copied(1, "e2", "e2")
    assert recent.find(1, "e2") == b"one"
