"""s3fs: a bucket as files.

options.py  what can be said about a mount          errors.py  S3's error codes as errnos
store.py    the object store, on aiobotocore        probe.py   why a bucket cannot be mounted
listing.py  keys as names                           tree.py    what the kernel knows, how long it is believed
lookup.py   finding names                           walk.py    an open directory
reader.py   an open file                            fs.py      the filesystem that puts them together
"""

from .fs import S3FS
from .options import S3Options

__all__ = ["S3FS", "S3Options"]
