"""Abort a mount that hangs: ``python watchdog.py CONNECTION MOUNTPOINT SECONDS``, run by file name, importing nothing of ours.

It reads standard input. Each byte is a sign of life; "q" ends it. When none came for SECONDS, or the input ends without "q"
because who held it died, the connection is aborted, which wakes everyone who waits in the mount, and the mount is detached.
It never looks at the mount itself, which would hang it too.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys

MNT_DETACH = 2


def main(connection: str, mountpoint: str, seconds: float) -> int:
    """Watch, and return 0 when told to stop, 1 after an abort."""
    while select.select([0], [], [], seconds)[0]:
        signs = os.read(0, 4096)
        if b"q" in signs:
            return 0
        if not signs:
            break
    print(f"watchdog: aborting connection {connection} of {mountpoint}", file=sys.stderr)
    try:
        with open(f"/sys/fs/fuse/connections/{connection}/abort", "w", encoding="ascii") as file:
            file.write("1\n")
    except OSError as error:
        print(f"watchdog: {error}", file=sys.stderr)
    ctypes.CDLL(None).umount2(os.fsencode(mountpoint), MNT_DETACH)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
