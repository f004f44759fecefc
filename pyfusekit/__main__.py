"""The command pyfusekit, and python -m pyfusekit."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def main() -> int:
    """Run the command line, with a mount's server already on its way: importing click alone takes as long as all else."""
    from pyfusekit.service.ahead import start_ahead

    words = sys.argv[1:]
    ahead = start_ahead(words)

    from pyfusekit import cli

    return cli.main(words, ahead)


def command() -> NoReturn:
    """Run the command line and end the process at once: taking the interpreter apart first would be a tenth of a mount."""
    code = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        pass  # nobody reads it any more
    os._exit(code)


if __name__ == "__main__":
    command()
