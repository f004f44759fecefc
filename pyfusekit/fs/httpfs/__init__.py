"""httpfs: a web directory or a URL as files.

listing/    pages of servers as names                client/   all requests: origins, access, attempts, a host that is gone
naming/     what is known of the source, in rows      contents/ open files: ranges, spools, streams
webdav/     writing: staged, sent on a condition      options.py, values.py what all rooms hand each other
root.py     what the source is                        state.py  the mount, and in layers above it directory, opening,
            attributes, shown, filewriting (held, moved, guarded), changing: fs.py puts them together
"""

from .fs import HttpFS
from .options import HttpOptions

__all__ = ["HttpFS", "HttpOptions"]
