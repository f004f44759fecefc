"""Objects of a page in little memory are the objects that they were."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfusekit.fs.s3fs.naming.packed import Packed
from pyfusekit.fs.s3fs.remote.store import Object

MD5 = "d41d8cd98f00b204e9800998ecf8427e"
ETAGS = st.sampled_from([MD5, MD5.upper(), f"{MD5}-12", "", "x" * 32, MD5[:-1], f"{MD5[:30]} 7", MD5 * 2])
OBJECTS = st.builds(
    Object,
    st.text(max_size=9),
    st.integers(0, 5 << 40),
    st.integers(-(1 << 62), 1 << 62),
    ETAGS,
    st.sampled_from(["", "GLACIER", "DEEP_ARCHIVE"]),
)


@given(st.lists(OBJECTS | st.just(Object("k", 7, 9, MD5)), max_size=6))
def test_every_object_comes_out_as_it_went_in(objects: list[Object]) -> None:
    packed = Packed([item.key for item in objects], objects)
    assert list(packed) == objects
    assert packed[1:3] == objects[1:3]
    assert len(packed) == len(objects)


def test_digests_are_kept_as_bytes_and_other_etags_as_they_are() -> None:
    plain = Packed(["a", "b"], [Object("a", 1, 1, MD5), Object("b", 1, 1, MD5)])
    parts = Packed(["a", "b"], [Object("a", 1, 1, MD5), Object("b", 1, 1, f"{MD5}-2")])
    assert (len(plain._digests), plain._etags) == (32, None)
    assert (parts._digests, parts._etags) == (b"", [MD5, f"{MD5}-2"])


def test_a_place_behind_the_last_is_an_index_error() -> None:
    with pytest.raises(IndexError):
        Packed(["a"], [Object("a", 1, 1, MD5)])[1]
