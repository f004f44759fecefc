"""What INIT agrees on: one test for each of the kernel's rules (fs/fuse/inode.c process_init_reply)."""

from __future__ import annotations

from typing import Any

import pytest

from pyfusekit.core import abi, codec
from pyfusekit.core.capabilities import PAGE_BYTES, Agreed, Limits, negotiate
from pyfusekit.core.filesystem import Filesystem

EVERYTHING = (1 << 43) - 1 & ~abi.INIT_RESERVED
"""Every capability there is."""
LINUX_6_18 = 0x7FD << 32 | 0x73FFFFFB
ALWAYS = abi.ABORT_ERROR | abi.INIT_EXT
MIB = 1 << 20


class ReadOnly(Filesystem):
    """Looks, and changes nothing."""

    def lookup(self, *args: Any) -> Any: ...
    def getattr(self, *args: Any) -> Any: ...
    def read(self, *args: Any) -> Any: ...
    def readdir(self, *args: Any) -> Any: ...


class Full(ReadOnly):
    """Overrides whatever a capability follows from."""

    def write(self, *args: Any) -> Any: ...
    def open(self, *args: Any) -> Any: ...
    def setattr(self, *args: Any) -> Any: ...
    def readdirplus(self, *args: Any) -> Any: ...
    def ioctl(self, *args: Any) -> Any: ...
    def getlk(self, *args: Any) -> Any: ...
    def setlk(self, *args: Any) -> Any: ...
    def setlkw(self, *args: Any) -> Any: ...
    def getxattr(self, *args: Any) -> Any: ...
    def setxattr(self, *args: Any) -> Any: ...


def agree(
    fs: Filesystem | type[Filesystem] = Full,
    offered: int = EVERYTHING,
    *,
    minor: int = 45,
    max_readahead: int = 1 << 17,
    limits: Limits | None = None,
    **said: Any,
) -> Agreed:
    """Negotiate with a filesystem whose attributes are *said*."""
    made = fs() if isinstance(fs, type) else fs
    for name, value in said.items():
        assert hasattr(Filesystem, name)
        setattr(made, name, value)
    return negotiate(made, minor, offered, max_readahead, limits or Limits())


# What is always so.


@pytest.mark.parametrize("fs", [Filesystem, ReadOnly, Full])
@pytest.mark.parametrize("offered", [0, LINUX_6_18, EVERYTHING])
def test_abort_error_and_init_ext_are_always_on(fs: type[Filesystem], offered: int) -> None:
    assert agree(fs, offered).flags & ALWAYS == ALWAYS


@pytest.mark.parametrize("bit", range(43))
def test_nothing_is_agreed_that_was_not_offered(bit: int) -> None:
    said: dict[str, Any] = dict.fromkeys(
        ("atomic_o_trunc", "keep_own_locks", "posix_acl", "dont_mask", "cache_symlinks", "export_support", "security_ctx",
         "create_supp_group", "allow_idmap", "stateless_opendir"), True,
    )  # fmt: skip
    offered = EVERYTHING & ~(1 << bit)
    agreed = agree(offered=offered, limits=Limits(may_passthrough=True), request_timeout=60, **said)
    assert agreed.flags & ~ALWAYS & ~offered == 0


def test_what_the_core_does_not_do_is_never_agreed() -> None:
    unable = (
        abi.SPLICE_MOVE | abi.SPLICE_READ | abi.SPLICE_WRITE | abi.MAP_ALIGNMENT | abi.SUBMOUNTS | abi.HAS_INODE_DAX
        | abi.OVER_IO_URING | abi.INIT_RESERVED | abi.HANDLE_KILLPRIV
    )  # fmt: skip
    assert agree(offered=(1 << 64) - 1).flags & unable == 0
    assert agree(offered=(1 << 64) - 1).flags < 1 << 43


def test_bits_of_later_kernels_are_ignored() -> None:
    assert agree(offered=EVERYTHING | 0x1FFFFF << 43).flags == agree().flags


def test_the_high_half_of_the_flags_travels_in_flags2() -> None:
    fields = agree().reply_fields()
    assert fields["flags2"] & abi.HAS_RESEND >> 32
    assert fields["flags"] & abi.INIT_EXT
    assert fields["flags"] >> 32 == 0
    assert not fields["flags"] & abi.INIT_RESERVED
    made = codec.encode_reply(abi.INITIAL, 2, **fields)
    got = codec.decode_reply(abi.INITIAL, made).fields
    assert got["flags"] | got["flags2"] << 32 == agree().flags


@pytest.mark.parametrize(("kernel", "replied"), [(23, 23), (31, 31), (45, 45), (46, 45), (99, 45)])
def test_the_lower_minor_version_is_agreed(kernel: int, replied: int) -> None:
    assert agree(minor=kernel).minor == replied
    assert agree(minor=kernel).reply_fields()["minor"] == replied


@pytest.mark.parametrize("minor", range(23, 46))
def test_kernels_from_7_23_to_7_45_get_an_answer_that_fits(minor: int) -> None:
    since = {
        23: 17, 24: 18, 25: 19, 26: 21, 27: 22, 28: 24, 29: 25, 30: 26, 31: 27, 32: 28, 33: 30, 34: 30, 35: 30, 36: 33, 37: 34,
        38: 35, 39: 37, 40: 40, 41: 41, 42: 42, 43: 43, 44: 43, 45: 43,
    }  # fmt: skip
    offered = (1 << since[minor]) - 1 & ~abi.INIT_RESERVED
    agreed = agree(offered=offered, minor=minor)
    assert agreed.flags & ~offered & ~ALWAYS == 0
    assert agreed.has(abi.MAX_PAGES) == (minor >= 28)
    assert agreed.max_write == (MIB if minor >= 28 else 32 * PAGE_BYTES)
    codec.encode_reply(abi.INITIAL, 2, **agreed.reply_fields())


# What follows from the methods.


def test_a_filesystem_that_overrides_nothing_still_reads_at_full_speed() -> None:
    agreed = agree(Filesystem)
    for flag in (abi.ASYNC_READ, abi.MAX_PAGES, abi.ASYNC_DIO, abi.PARALLEL_DIROPS, abi.HAS_RESEND, abi.HAS_EXPIRE_ONLY):
        assert agreed.has(flag)
    for flag in (
        abi.POSIX_LOCKS, abi.FLOCK_LOCKS, abi.DO_READDIRPLUS, abi.READDIRPLUS_AUTO, abi.HANDLE_KILLPRIV_V2, abi.POSIX_ACL,
        abi.SETXATTR_EXT, abi.HAS_IOCTL_DIR, abi.ATOMIC_O_TRUNC, abi.WRITEBACK_CACHE, abi.NO_OPEN_SUPPORT,
    ):  # fmt: skip
        assert not agreed.has(flag)


def test_readdirplus_is_on_where_it_is_overridden() -> None:
    assert agree().has(abi.DO_READDIRPLUS)
    assert agree().has(abi.READDIRPLUS_AUTO)


def test_readdirplus_auto_only_goes_with_readdirplus() -> None:
    assert not agree(offered=EVERYTHING & ~abi.DO_READDIRPLUS).has(abi.READDIRPLUS_AUTO)
    assert agree(offered=EVERYTHING & ~abi.READDIRPLUS_AUTO).has(abi.DO_READDIRPLUS)


def test_posix_locks_follow_from_setlk() -> None:
    assert agree().has(abi.POSIX_LOCKS)
    assert not agree(ReadOnly).has(abi.POSIX_LOCKS)


def test_flock_locks_are_asked_for_by_name() -> None:
    assert not agree().has(abi.FLOCK_LOCKS)
    assert agree(keep_own_locks=True).has(abi.FLOCK_LOCKS)
    assert not agree(ReadOnly, keep_own_locks=True).has(abi.FLOCK_LOCKS)


@pytest.mark.parametrize("lacking", ["getlk", "setlk", "setlkw"])
def test_half_of_the_lock_methods_leave_locks_to_the_kernel(lacking: str) -> None:
    class Half(Full):
        def implements(self, method: str) -> bool:
            return method != lacking and super().implements(method)

    agreed = agree(Half, keep_own_locks=True)
    assert not agreed.has(abi.POSIX_LOCKS)
    assert not agreed.has(abi.FLOCK_LOCKS)


def test_killpriv_v2_is_on_for_whoever_writes() -> None:
    assert agree().has(abi.HANDLE_KILLPRIV_V2)
    assert not agree(ReadOnly).has(abi.HANDLE_KILLPRIV_V2)


def test_the_extended_setxattr_follows_from_setxattr() -> None:
    assert agree().has(abi.SETXATTR_EXT)
    assert not agree(ReadOnly).has(abi.SETXATTR_EXT)


def test_ioctl_on_directories_follows_from_ioctl() -> None:
    assert agree().has(abi.HAS_IOCTL_DIR)
    assert not agree(ReadOnly).has(abi.HAS_IOCTL_DIR)


def test_implements_may_be_overridden() -> None:
    class Modest(Full):
        def implements(self, method: str) -> bool:
            return method != "readdirplus" and super().implements(method)

    assert not agree(Modest).has(abi.DO_READDIRPLUS)


# What follows from what the filesystem says.


@pytest.mark.parametrize(
    ("said", "flag"),
    [
        ("dont_mask", abi.DONT_MASK),
        ("cache_symlinks", abi.CACHE_SYMLINKS),
        ("export_support", abi.EXPORT_SUPPORT),
        ("security_ctx", abi.SECURITY_CTX),
        ("create_supp_group", abi.CREATE_SUPP_GROUP),
        ("allow_idmap", abi.ALLOW_IDMAP),
        ("atomic_o_trunc", abi.ATOMIC_O_TRUNC),
        ("stateless_open", abi.NO_OPEN_SUPPORT),
        ("stateless_opendir", abi.NO_OPENDIR_SUPPORT),
        ("explicit_inval_data", abi.EXPLICIT_INVAL_DATA),
        ("writeback_cache", abi.WRITEBACK_CACHE),
        ("posix_acl", abi.POSIX_ACL),
        ("parallel_dirops", abi.PARALLEL_DIROPS),
        ("direct_io_allow_mmap", abi.DIRECT_IO_ALLOW_MMAP),
    ],
)
def test_each_word_of_the_filesystem_is_one_flag(said: str, flag: int) -> None:
    for value in (True, False):
        words: dict[str, Any] = {said: value}
        assert agree(**words).has(flag) == value


def test_automatic_invalidation_is_off_where_it_is_explicit() -> None:
    assert agree().has(abi.AUTO_INVAL_DATA)
    assert not agree().has(abi.EXPLICIT_INVAL_DATA)
    explicit = agree(explicit_inval_data=True)
    assert explicit.has(abi.EXPLICIT_INVAL_DATA)
    assert not explicit.has(abi.AUTO_INVAL_DATA)


def test_acls_need_xattrs() -> None:
    assert not agree(ReadOnly, posix_acl=True).has(abi.POSIX_ACL)


def test_atomic_o_trunc_needs_an_open() -> None:
    assert not agree(ReadOnly, atomic_o_trunc=True).has(abi.ATOMIC_O_TRUNC)
    assert not agree(atomic_o_trunc=True, stateless_open=True).has(abi.ATOMIC_O_TRUNC)


def test_the_writeback_cache_needs_write() -> None:
    assert not agree(ReadOnly, writeback_cache=True).has(abi.WRITEBACK_CACHE)


def test_idmap_is_left_out_without_default_permissions() -> None:
    assert not agree(allow_idmap=True, limits=Limits(default_permissions=False)).has(abi.ALLOW_IDMAP)


# Passthrough.

ADMIN = Limits(may_passthrough=True)


def test_passthrough_is_agreed_with_its_stack_depth() -> None:
    agreed = agree(limits=ADMIN)
    assert agreed.has(abi.PASSTHROUGH)
    assert agreed.reply_fields()["max_stack_depth"] == 1
    assert agree(limits=ADMIN, max_stack_depth=2).reply_fields()["max_stack_depth"] == 2


def test_passthrough_needs_privileges() -> None:
    agreed = agree(limits=Limits(may_passthrough=False))
    assert not agreed.has(abi.PASSTHROUGH)
    assert agreed.reply_fields()["max_stack_depth"] == 0


def test_the_writeback_cache_rules_passthrough_out() -> None:
    agreed = agree(limits=ADMIN, writeback_cache=True)
    assert agreed.has(abi.WRITEBACK_CACHE)
    assert not agreed.has(abi.PASSTHROUGH)
    assert agreed.reply_fields()["max_stack_depth"] == 0


def test_a_writeback_cache_that_is_not_to_be_had_leaves_passthrough() -> None:
    assert agree(ReadOnly, limits=ADMIN, writeback_cache=True).has(abi.PASSTHROUGH)


@pytest.mark.parametrize("depth", [-1, 0, 3, 100])
def test_a_stack_depth_out_of_range_rules_passthrough_out(depth: int) -> None:
    agreed = agree(limits=ADMIN, max_stack_depth=depth)
    assert not agreed.has(abi.PASSTHROUGH)
    assert agreed.reply_fields()["max_stack_depth"] == 0


# Sizes.


def test_max_write_is_clamped_to_the_machines_pages() -> None:
    agreed = agree(max_write=16 * MIB, limits=Limits(max_pages=256))
    assert (agreed.max_write, agreed.max_pages) == (MIB, 256)


def test_a_raised_pages_limit_is_used() -> None:
    agreed = agree(max_write=16 * MIB, limits=Limits(max_pages=4096))
    assert (agreed.max_write, agreed.max_pages) == (16 * MIB, 4096)


def test_without_max_pages_it_is_128_kib() -> None:
    agreed = agree(offered=EVERYTHING & ~abi.MAX_PAGES)
    assert (agreed.max_write, agreed.max_pages) == (128 << 10, 32)


def test_the_largest_pages_limit_fits_its_16_bits() -> None:
    agreed = agree(max_write=1 << 30, max_readahead=1 << 30, limits=Limits(max_pages=65535))
    assert agreed.max_write == 65535 * PAGE_BYTES
    codec.encode_reply(abi.INITIAL, 2, **agreed.reply_fields())


@pytest.mark.parametrize("asked", [-1, 0, 1, 4095, 4096])
def test_max_write_is_a_page_at_least(asked: int) -> None:
    agreed = agree(max_write=asked)
    assert agreed.max_write == PAGE_BYTES
    assert agreed.max_pages >= 1


def test_small_writes_do_not_make_reads_small() -> None:
    """The kernel bounds READ by max_pages too."""
    agreed = agree(max_write=PAGE_BYTES)
    assert agreed.max_write == PAGE_BYTES
    assert agreed.max_pages == 256


def test_pages_cover_an_odd_max_write() -> None:
    agreed = agree(max_write=PAGE_BYTES * 3 + 1, max_readahead=0)
    assert agreed.max_write == PAGE_BYTES * 3 + 1
    assert agreed.max_pages * PAGE_BYTES >= agreed.max_write


@pytest.mark.parametrize(
    ("kernel", "fs", "replied"), [(1 << 17, MIB, 1 << 17), (1 << 17, 4096, 4096), (1 << 17, 0, 0), (0, MIB, 0), (9, -5, 0)]
)
def test_max_readahead_is_the_lower_of_both(kernel: int, fs: int, replied: int) -> None:
    made = Full()
    made.max_readahead = fs
    assert negotiate(made, 45, EVERYTHING, kernel, Limits()).max_readahead == replied


@pytest.mark.parametrize(
    ("asked", "replied"), [(-1, 1), (0, 1), (1, 1), (12, 12), (1024, 1024), (65535, 65535), (10**6, 65535)]
)
def test_max_background_fits_its_16_bits_and_is_not_0(asked: int, replied: int) -> None:
    agreed = agree(max_background=asked)
    assert agreed.max_background == replied
    assert 1 <= agreed.congestion_threshold <= replied
    assert agreed.congestion_threshold == max(1, replied * 3 // 4)


@pytest.mark.parametrize(("asked", "replied"), [(-1, 1), (0, 1), (1, 1), (1000, 1000), (10**9, 10**9), (10**10, 10**9)])
def test_the_granularity_of_times_is_1_to_a_second(asked: int, replied: int) -> None:
    assert agree(time_gran=asked).time_gran == replied


@pytest.mark.parametrize(("asked", "replied"), [(-1, 0), (0, 0), (20, 20), (10**6, 65535)])
def test_a_request_timeout_is_asked_for_in_seconds(asked: int, replied: int) -> None:
    agreed = agree(ReadOnly, request_timeout=asked)
    assert agreed.has(abi.REQUEST_TIMEOUT) == (replied > 0)
    assert agreed.reply_fields()["request_timeout"] == replied


def test_a_filesystem_that_waits_for_locks_has_no_request_timeout() -> None:
    assert not agree(Full, request_timeout=20).has(abi.REQUEST_TIMEOUT)


def test_a_request_timeout_the_kernel_does_not_know_is_0() -> None:
    assert agree(offered=EVERYTHING & ~abi.REQUEST_TIMEOUT, request_timeout=20).request_timeout == 0
