"""httpfs: a web directory or a URL as files.

options.py   what can be said about a mount           values.py    what the rooms hand each other
web.py       all requests (access, pacing, trust)     listing/     pages of servers as names
tree.py      what is known of the source, in rows     listings.py  reading directories, revalidating them
resolve.py   asking about single files                pages.py     what was said, on disk
offline.py   a host that is gone                      root.py      what the source is
reading.py   open files (source, spool, ranges)       directory.py, opening.py, attributes.py, fs.py: the filesystem
writing.py   WebDAV (dav, staged, honours)             changing.py  what the kernel changes (shown, filewriting, held)
"""

from .fs import HttpFS
from .options import HttpOptions

__all__ = ["HttpFS", "HttpOptions"]
