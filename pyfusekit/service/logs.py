"""Where a mount's log goes: stderr, syslog, or a file of its own."""

from __future__ import annotations

import logging
import os
import sys

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_QUIET = ("asyncio", "aiobotocore", "botocore", "aiohttp", "urllib3")
"""Libraries whose chatter is not this mount's business below a warning."""

_FILE_LIMIT = 10 << 20


class SyslogHandler(logging.Handler):
    """Hands records to the C library's syslog(3), which finds /dev/log again after the logger was restarted."""

    def __init__(self, ident: str) -> None:
        import syslog

        super().__init__()
        syslog.openlog(ident, syslog.LOG_PID, syslog.LOG_DAEMON)
        self._send = syslog.syslog
        self._priorities = (
            (logging.ERROR, syslog.LOG_ERR),
            (logging.WARNING, syslog.LOG_WARNING),
            (logging.INFO, syslog.LOG_INFO),
            (0, syslog.LOG_DEBUG),
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, a line at a time."""
        priority = next(value for level, value in self._priorities if record.levelno >= level)
        try:
            for line in self.format(record).splitlines():
                self._send(priority, line.replace("\0", "\\0"))
        except Exception:
            self.handleError(record)


def begin(target: str, level: str, mountpoint: str) -> None:
    """Send what is logged from here on to *target*, a places.log_place(); OSError when its file cannot be written."""
    handler: logging.Handler
    if target == "stderr":
        handler = logging.StreamHandler(sys.stderr)
    elif target == "syslog":
        handler = SyslogHandler("pyfusekit")
    else:
        from logging.handlers import RotatingFileHandler

        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        handler = RotatingFileHandler(target, maxBytes=_FILE_LIMIT, backupCount=3, encoding="utf-8", errors="backslashreplace")
    when = "" if target == "syslog" else "%(asctime)s "
    name = mountpoint.replace("%", "%%")
    handler.setFormatter(logging.Formatter(f"{when}%(levelname)s {name}: %(message)s"))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    for library in _QUIET:
        logging.getLogger(library).setLevel(max(LEVELS[level], logging.WARNING))
