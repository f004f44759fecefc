"""What a person may say about a memory filesystem; the words are tmpfs(5)'s."""

from __future__ import annotations

from dataclasses import dataclass

from pyfusekit.core import Mode, Size, option


@dataclass(frozen=True)
class MemOptions:
    """The options of ``mount mem``.

    The limits are tmpfs's: half of the memory, and an inode for every two pages of it. Whatever runs away in the mount stops
    at them with ENOSPC, long before the machine does. The root is 0755 and the mounter's, not tmpfs's 1777: that everybody
    may write there is to be said, not to happen.
    """

    size: Size | None = option(
        None, help="Most bytes of file data, in pages of 4 KiB; half of the memory by default, 0: no limit."
    )
    nr_inodes: int | None = option(None, help="Most files and names of files; one for 8 KiB of memory by default, 0: no limit.")
    mode: Mode = option(Mode(0o755), help="Permissions of the root directory.")
    uid: int | None = option(None, help="Owner of the root directory; who mounts by default.")
    gid: int | None = option(None, help="Group of the root directory; that of who mounts by default.")


__all__ = ["MemOptions"]
