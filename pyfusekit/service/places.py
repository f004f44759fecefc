"""Where things of a mount lie on this machine."""

from __future__ import annotations

import os

from .control import own_directory


def log_place(target: str, mountpoint: str, *, foreground: bool) -> str:
    """Return where the log of *mountpoint* goes: "stderr", "syslog" or the path of a file.

    *target* is what the user asked for; empty is stderr in the foreground, otherwise syslog where there is one, else
    ~/.local/state/pyfusekit/NAME.log with the mountpoint's path as its name. Who may not write there has it beside the
    control socket.
    """
    if target in ("stderr", "syslog"):
        return target
    if target:
        return os.path.abspath(os.path.expanduser(target))
    if foreground:
        return "stderr"
    if os.path.exists("/dev/log"):
        return "syslog"
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(_home(), ".local", "state")
    name = mountpoint.strip("/").replace("/", "-")[-100:] or "root"
    folder = os.path.join(state, "pyfusekit")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError:
        folder = own_directory()
    return os.path.join(folder if os.access(folder, os.W_OK | os.X_OK) else own_directory(), f"{name}.log")


def _home() -> str:
    home = os.path.expanduser("~")
    return home if os.path.isabs(home) else "/tmp"
