"""Reading, writing and making room, through the fake kernel (fs/read_write.c, fs/fuse/file.c)."""

from __future__ import annotations

import errno
import os

from ...core import abi
from ..tree import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, Stat
from .node import Inode, OpenFile
from .opening import MAX_BYTES, PAGE, FakeOpening, fail, stat_of, without_privileges


class FakeFiles(FakeOpening):
    """The verbs on the contents of open files."""

    # Reading and writing.

    def read(self, fd: int, size: int) -> bytes:
        file = self._file(fd)
        with file.lock:
            data = self._read(file, size, file.offset)
            file.offset += len(data)
            return data

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return self._read(self._file(fd), size, offset)

    def read_direct(self, fd: int, size: int, offset: int) -> bytes:
        return self._read(self._file(fd), size, offset)

    def _read(self, file: OpenFile, size: int, offset: int) -> bytes:
        with self.mount.verb():
            if not file.reads:
                raise fail(errno.EBADF)
            if file.inode.is_dir:
                raise fail(errno.EISDIR)
            if offset < 0:
                raise fail(errno.EINVAL)
            if not size:
                return b""
            if file.open_flags & abi.FOPEN_DIRECT_IO or file.flags & os.O_DIRECT:
                return self._read_direct(file, size, offset)
            return self._read_pages(file, size, offset)

    @property
    def _max_read(self) -> int:
        assert self.kernel.agreed is not None
        return self.kernel.agreed.max_pages * PAGE

    def _ask_read(self, file: OpenFile, size: int, offset: int) -> bytes:
        return self.mount.ask(abi.READ, file.inode, fh=file.fh, offset=offset, size=size, flags=file.flags, patience=None).data

    def _read_direct(self, file: OpenFile, size: int, offset: int) -> bytes:
        pieces = []
        while size:
            wanted = min(size, self._max_read)
            piece = self._ask_read(file, wanted, offset)
            pieces.append(piece)
            size -= len(piece)
            offset += len(piece)
            if len(piece) < wanted:
                break
        return b"".join(pieces)

    def _read_pages(self, file: OpenFile, size: int, offset: int) -> bytes:
        """Read whole pages, as the page cache does; what is short is the end of the file, and zeros up to the known size."""
        inode = file.inode
        self.mount.refresh(inode, fh=file.fh)
        size = max(0, min(size, inode.size - offset))
        if not size:
            return b""
        start = offset // PAGE * PAGE
        end = -(-(offset + size) // PAGE) * PAGE
        data = bytearray()
        while start + len(data) < end:
            wanted = min(self._max_read, end - start - len(data))
            piece = self._ask_read(file, wanted, start + len(data))
            data += piece
            if len(piece) < wanted:
                break
        data += bytes(max(0, offset + size - start - len(data)))
        return bytes(data[offset - start : offset - start + size])

    def write(self, fd: int, data: bytes) -> int:
        file = self._file(fd)
        with file.lock:
            written, end = self._write(file, data, None)
            file.offset = end
            return written

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        return self._write(self._file(fd), data, offset)[0]

    def _write(self, file: OpenFile, data: bytes, offset: int | None) -> tuple[int, int]:
        """Write at *offset*, or at the file's own; return how much, and where that ended."""
        inode = file.inode
        with self.mount.verb(), inode.lock:
            if not file.writes:
                raise fail(errno.EBADF)
            if offset is not None and offset < 0:
                raise fail(errno.EINVAL)
            start = file.offset if offset is None else offset
            if not data:
                return 0, start
            if file.flags & os.O_APPEND:
                start = self.mount.refresh(inode, fh=file.fh).size
            if start + len(data) > MAX_BYTES:
                raise fail(errno.EFBIG)
            return self._write_at(file, data, start)

    def _write_at(self, file: OpenFile, data: bytes, start: int) -> tuple[int, int]:
        inode = file.inode
        assert self.kernel.agreed is not None
        flags = self._kill_privileges(inode)
        done = 0
        while done < len(data):
            piece = data[done : done + self.kernel.agreed.max_write]
            size = self.mount.ask(
                abi.WRITE,
                inode,
                fh=file.fh,
                offset=start + done,
                size=len(piece),
                write_flags=flags,
                flags=file.flags,
                data=piece,
            ).fields["size"]
            done += size
            inode.version += 1
            inode.fresh_until = 0.0
            inode.size = max(inode.size, start + done)
            if size < len(piece):
                if not file.open_flags & abi.FOPEN_DIRECT_IO:
                    raise fail(errno.EIO, "a short write")
                break
        if file.flags & (os.O_SYNC | os.O_DSYNC):
            self._sync(file, datasync=not file.flags & os.O_SYNC & ~os.O_DSYNC)
        return done, start + done

    def _kill_privileges(self, inode: Inode) -> int:
        """Clear set-id bits before another's change of the contents, or have the server do it (file_remove_privs).

        With HANDLE_KILLPRIV_V2 the kernel takes its own clearing out of the SETATTR, and sends it empty.
        """
        if self.mount.process.is_root:
            return 0
        has_v2 = self.kernel.has(abi.HANDLE_KILLPRIV_V2)
        mode = self.mount.refresh(inode).mode
        kept = without_privileges(mode)
        if kept != mode:
            self.set_attributes(inode, {} if has_v2 else {"mode": kept})
        return abi.WRITE_KILL_SUIDGID if has_v2 else 0

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        file = self._file(fd)
        with self.mount.verb(), file.lock:
            if whence in (os.SEEK_DATA, os.SEEK_HOLE):
                result = self._seek_data(file, offset, whence)
            else:
                base = 0
                if whence == os.SEEK_CUR:
                    base = file.offset
                elif whence == os.SEEK_END:
                    base = self.mount.refresh(file.inode, fh=file.fh).size
                elif whence != os.SEEK_SET:
                    raise fail(errno.EINVAL)
                result = base + offset
            if result < 0:
                raise fail(errno.EINVAL)
            file.offset = result
            return result

    def _seek_data(self, file: OpenFile, offset: int, whence: int) -> int:
        inode = file.inode
        if file.open_flags & abi.FOPEN_NONSEEKABLE:
            raise fail(errno.ESPIPE)
        try:
            found: int = self.mount.ask(abi.LSEEK, inode, fh=file.fh, offset=offset, whence=whence).fields["offset"]
            return found
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
        size = self.mount.refresh(inode, fh=file.fh).size
        if not 0 <= offset < size:
            raise fail(errno.ENXIO)
        return offset if whence == os.SEEK_DATA else size

    # Making sure, making room.

    def fsync(self, fd: int) -> None:
        with self.mount.verb():
            self._sync(self._file(fd), datasync=False)

    def fdatasync(self, fd: int) -> None:
        with self.mount.verb():
            self._sync(self._file(fd), datasync=True)

    def _sync(self, file: OpenFile, *, datasync: bool) -> None:
        opcode = abi.FSYNCDIR if file.inode.is_dir else abi.FSYNC
        try:
            self.mount.ask(opcode, file.inode, fh=file.fh, fsync_flags=abi.FSYNC_FDATASYNC if datasync else 0)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise

    def ftruncate(self, fd: int, size: int) -> None:
        with self.mount.verb():
            if size < 0:
                raise fail(errno.EINVAL)
            file = self._file(fd)
            if not file.inode.is_regular or not file.writes:
                raise fail(errno.EINVAL)
            self._truncate(file.inode, size, file)

    def _truncate(self, inode: Inode, size: int, file: OpenFile | None = None) -> None:
        with inode.lock:
            mode = self.mount.refresh(inode).mode
            kills = not self.mount.process.is_root and without_privileges(mode) != mode
            self.set_attributes(inode, {"size": size}, file=file, kills=kills)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        with self.mount.verb():
            file = self._file(fd)
            inode = file.inode
            if offset < 0 or length <= 0:
                raise fail(errno.EINVAL)
            if mode & FALLOC_FL_PUNCH_HOLE and not mode & FALLOC_FL_KEEP_SIZE:
                raise fail(errno.EOPNOTSUPP)
            if not file.writes:
                raise fail(errno.EBADF)
            if not inode.is_regular:
                raise fail(errno.ENODEV)
            if mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE):
                raise fail(errno.EOPNOTSUPP)
            if offset + length > MAX_BYTES:
                raise fail(errno.EFBIG)
            with inode.lock:
                self._kill_privileges(inode)
                try:
                    self.mount.ask(abi.FALLOCATE, inode, fh=file.fh, offset=offset, length=length, mode=mode)
                except OSError as error:
                    raise fail(errno.EOPNOTSUPP if error.errno == errno.ENOSYS else error.errno or errno.EIO) from error
                inode.stale()
                if not mode & FALLOC_FL_KEEP_SIZE:
                    inode.size = max(inode.size, offset + length)

    def copy_file_range(self, fd_in: int, offset_in: int, fd_out: int, offset_out: int, length: int) -> int:
        with self.mount.verb():
            source, target = self._file(fd_in), self._file(fd_out)
            if source.inode.is_dir or target.inode.is_dir:
                raise fail(errno.EISDIR)
            if not source.reads or not target.writes or target.flags & os.O_APPEND:
                raise fail(errno.EBADF)
            size = self.mount.refresh(source.inode, fh=source.fh).size
            length = max(0, min(length, size - offset_in))
            if source.inode is target.inode and offset_in < offset_out + length and offset_out < offset_in + length:
                raise fail(errno.EINVAL)
            if not length:
                return 0
            self._kill_privileges(target.inode)
            copied = self._ask_copy(source, offset_in, target, offset_out, length)
            if copied is None:
                data = self._read(source, min(length, 1 << 20), offset_in)
                return self._write_at(target, data, offset_out)[0]
            target.inode.stale()
            target.inode.size = max(target.inode.size, offset_out + copied)
            return copied

    def _ask_copy(self, source: OpenFile, offset_in: int, target: OpenFile, offset_out: int, length: int) -> int | None:
        """Have the server copy; None when it does not, and the kernel reads and writes."""
        for opcode, field in ((abi.COPY_FILE_RANGE_64, "bytes_copied"), (abi.COPY_FILE_RANGE, "size")):
            try:
                fields = self.mount.ask(
                    opcode,
                    source.inode,
                    fh_in=source.fh,
                    off_in=offset_in,
                    nodeid_out=target.inode.nodeid,
                    fh_out=target.fh,
                    off_out=offset_out,
                    len=length,
                ).fields
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV):
                    raise
            else:
                copied: int = fields[field]
                if copied > length:
                    self.kernel.complaints.append(f"{copied} bytes copied, {length} were asked for")
                return copied
        return None

    # Attributes of open files.

    def fstat(self, fd: int) -> Stat:
        with self.mount.verb():
            file = self._file(fd)
            return stat_of(self.mount.refresh(file.inode, fh=file.fh if file.has_handle and not file.inode.is_dir else None))


__all__ = ["FakeFiles"]
