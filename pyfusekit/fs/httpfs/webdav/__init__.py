"""Writing by WebDAV: staged here, sent whole on a condition, kept when it cannot be."""
