"""The smallest filesystem: one file that says hello. Run: python examples/hello.py MOUNTPOINT"""

import stat
import sys

from pyfusekit import Attr, DirEntry, Filesystem, run

TEXT = b"Hello, world!\n"
ROOT = Attr(ino=1, mode=stat.S_IFDIR | 0o755, nlink=2)
HELLO = Attr(ino=2, mode=stat.S_IFREG | 0o444, size=len(TEXT))


class Hello(Filesystem):
    def lookup(self, request, parent, name):
        return HELLO if name == b"hello" else None

    def getattr(self, request, ino, handle):
        return ROOT if ino == 1 else HELLO

    def readdir(self, request, ino, handle, offset):
        return [DirEntry(b"hello", 2, stat.S_IFREG, 1)] if offset == 0 else []

    def read(self, request, ino, handle, offset, size):
        return TEXT[offset : offset + size]


if __name__ == "__main__":
    run(Hello(), sys.argv[1])
