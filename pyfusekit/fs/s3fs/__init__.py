"""s3fs: a bucket as files.

remote/     the store: protocol, requests, errors     metadata/ modes, owners, times and xattrs, and their index
naming/     keys as names, and what is believed       writing/  what is written, until it is an object
deferred/   what outlives a server: the journal       options.py what can be said about a mount
reader.py   an open file                              state.py  the mount, and in layers above it publishing, files, names,
            moves, attributes: fs.py puts them together
"""

from .fs import S3FS
from .options import S3Options

__all__ = ["S3FS", "S3Options"]
