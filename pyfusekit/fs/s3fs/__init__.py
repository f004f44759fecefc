"""s3fs: a bucket as files.

options.py  what can be said about a mount          errors.py   S3's error codes as errnos
store.py    the object store, as a protocol         aio.py      over aiobotocore and the thin path (link, thin, exchange)
probe.py    why a bucket cannot be mounted          buckets.py  all buckets as one store
keys.py     keys as names                           listing.py  pages of names, remembered (packed)
tree.py     what the kernel knows (nodes, beliefs)  lookup.py   finding names; walk.py an open directory
learn.py    modes, owners, times (posix, index)     reader.py   an open file
staging.py  what is being written (extents, plan)   publish.py  how it becomes an object (streams, feeding, copying)
journal.py  what is acknowledged, not yet sent      rename.py   moving what a store cannot move
state.py    the mount, and in layers above it publishing, files, names, moves, attributes: fs.py puts them together
"""

from .fs import S3FS
from .options import S3Options

__all__ = ["S3FS", "S3Options"]
