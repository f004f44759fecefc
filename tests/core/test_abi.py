"""The tables of abi.py against the kernel's own header."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from pyfusekit.core import abi, codec
from pyfusekit.core.abi import Layout

HEADER = Path("/usr/include/linux/fuse.h")

# Layouts that the header does not have under this name: the two structs CREATE answers with, and shorter old forms.
OURS = {"fuse_create_out", "fuse_setxattr_in_compat", "fuse_init_in_compat"}

# Fields that older headers keep as padding, with the minor version that named them.
NAMED_SINCE = {
    ("fuse_open_out", "backing_id"): 40,
    ("fuse_init_out", "max_stack_depth"): 40,
    ("fuse_init_out", "request_timeout"): 43,
    ("fuse_init_out", "unused"): 43,
}

# sizeof of every struct of ABI 7.45, from include/uapi/linux/fuse.h of Linux 6.18.
SIZES = {
    "fuse_access_in": 8, "fuse_attr": 88, "fuse_attr_out": 104, "fuse_backing_map": 16, "fuse_batch_forget_in": 8,
    "fuse_bmap_in": 16, "fuse_bmap_out": 8, "fuse_copy_file_range_in": 56, "fuse_copy_file_range_out": 8,
    "fuse_create_in": 16, "fuse_create_out": 144, "fuse_dirent": 24, "fuse_direntplus": 152, "fuse_entry_out": 128,
    "fuse_ext_header": 8, "fuse_fallocate_in": 32, "fuse_file_lock": 24, "fuse_flush_in": 24, "fuse_forget_in": 8,
    "fuse_forget_one": 16, "fuse_fsync_in": 16, "fuse_getattr_in": 16, "fuse_getxattr_in": 8, "fuse_getxattr_out": 8,
    "fuse_in_header": 40, "fuse_init_in": 64, "fuse_init_in_compat": 16, "fuse_init_out": 64, "fuse_interrupt_in": 8,
    "fuse_ioctl_in": 32, "fuse_ioctl_out": 16, "fuse_kstatfs": 80, "fuse_link_in": 8, "fuse_lk_in": 48, "fuse_lk_out": 24,
    "fuse_lseek_in": 24, "fuse_lseek_out": 8, "fuse_mkdir_in": 8, "fuse_mknod_in": 16, "fuse_notify_delete_out": 24,
    "fuse_notify_inval_entry_out": 16, "fuse_notify_inval_inode_out": 24, "fuse_notify_poll_wakeup_out": 8,
    "fuse_notify_prune_out": 16, "fuse_notify_retrieve_in": 40, "fuse_notify_retrieve_out": 32, "fuse_notify_store_out": 24,
    "fuse_open_in": 8, "fuse_open_out": 16, "fuse_out_header": 16, "fuse_poll_in": 24, "fuse_poll_out": 8, "fuse_read_in": 40,
    "fuse_release_in": 24, "fuse_removemapping_in": 4, "fuse_removemapping_one": 16, "fuse_rename2_in": 16,
    "fuse_rename_in": 8, "fuse_secctx": 8, "fuse_secctx_header": 8, "fuse_setattr_in": 88, "fuse_setupmapping_in": 40,
    "fuse_setxattr_in": 16, "fuse_setxattr_in_compat": 8, "fuse_statfs_out": 80, "fuse_statx": 256, "fuse_statx_in": 24,
    "fuse_statx_out": 288, "fuse_supp_groups": 4, "fuse_sx_time": 16, "fuse_syncfs_in": 8, "fuse_write_in": 40,
    "fuse_write_out": 8,
}  # fmt: skip


def layouts() -> list[Layout]:
    return [value for value in vars(abi).values() if isinstance(value, Layout)]


def offsets(layout: Layout) -> dict[str, int]:
    """Return field -> offset, as the compiled struct places it."""
    found, at = {}, 0
    for field, letter in layout.fields.items():
        found[field] = at
        at += struct.calcsize("=" + letter)
    return found


def header_minor() -> int:
    if not HEADER.exists():
        return 0
    match = re.search(r"define FUSE_KERNEL_MINOR_VERSION (\d+)", HEADER.read_text())
    assert match is not None
    return int(match[1])


def test_every_struct_has_the_size_of_abi_7_45() -> None:
    assert {layout.name: codec.struct_of(layout).size for layout in layouts()} == SIZES


def test_every_field_is_aligned_as_c_aligns_it() -> None:
    for layout in layouts():
        for field, at in offsets(layout).items():
            size = struct.calcsize("=" + layout.fields[field][-1])
            assert at % size == 0, f"{layout.name}.{field} at {at}"


def test_every_opcode_from_1_to_53_has_one_row() -> None:
    unused = {7, 19}  # never given out
    assert set(abi.OPS) == set(range(1, 54)) - unused
    assert len({op.name for op in abi.OPS.values()}) == len(abi.OPS)
    for opcode, op in abi.OPS.items():
        assert getattr(abi, op.name) == opcode


def test_every_notification_from_1_to_9_has_one_row() -> None:
    assert set(abi.NOTES) == set(range(1, 10))
    for code, note in abi.NOTES.items():
        assert getattr(abi, f"NOTIFY_{note.name}") == code


def test_every_word_of_takes_is_a_field_or_a_name() -> None:
    for op in abi.OPS.values():
        known = {"nodeid", "data", "fh", "fh_in", "kh", "lock", "changes", "0"} | set(op.names.split())
        known |= set(op.struct.fields) if op.struct is not None else set()
        assert {token.rstrip("?") for token in op.takes.split()} <= known, op.name


@pytest.mark.skipif(
    not HEADER.exists() or shutil.which("cc") is None, reason="needs cc and linux/fuse.h; SIZES is the checked-in table"
)
def test_sizes_and_offsets_are_those_of_the_c_header(tmp_path: Path) -> None:
    text = HEADER.read_text()
    lines, expected = [], {}
    for layout in layouts():
        if layout.name in OURS or f"struct {layout.name} {{" not in text:
            continue
        expected[layout.name] = codec.struct_of(layout).size
        lines.append(f'printf("{layout.name} %zu\\n", sizeof(struct {layout.name}));')
        for field, at in offsets(layout).items():
            if NAMED_SINCE.get((layout.name, field), 0) > header_minor():
                continue
            expected[f"{layout.name}.{field}"] = at
            c_name = layout.paths[field]
            lines.append(f'printf("{layout.name}.{field} %zu\\n", offsetof(struct {layout.name}, {c_name}));')
    source = tmp_path / "check.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <linux/fuse.h>\n"
        "int main(void) {\n" + "\n".join(lines) + "\nreturn 0;\n}\n"
    )
    subprocess.run(["cc", "-o", str(tmp_path / "check"), str(source)], check=True)
    printed = subprocess.run([str(tmp_path / "check")], check=True, capture_output=True, text=True).stdout
    measured = {name: int(value) for name, value in (line.split() for line in printed.splitlines())}
    assert measured == expected
    assert len(measured) > 250


@pytest.mark.skipif(not HEADER.exists(), reason="needs linux/fuse.h")
def test_flags_and_numbers_are_those_of_the_c_header() -> None:
    text = HEADER.read_text()
    checked = 0
    for name, value in vars(abi).items():
        if not isinstance(value, int) or not name.isupper():
            continue
        spelled = name if name.startswith("FOPEN_") or name.startswith("FATTR_") else f"FUSE_{name}"
        match = re.search(rf"\b{spelled}\s*(?:=\s*|\s)\(?\s*(\d+)(?:ULL)?\s*(?:<<\s*(\d+))?", text)
        if match is None:
            continue
        assert int(match[1]) << int(match[2] or 0) == value or name == "KERNEL_MINOR_VERSION", name
        checked += 1
    assert checked > 100
    assert header_minor() <= abi.KERNEL_MINOR_VERSION or header_minor() > 45
