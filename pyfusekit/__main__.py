"""The command pyfusekit, and python -m pyfusekit."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line, with a mount's server already on its way: importing click alone takes as long as all else."""
    from pyfusekit.service.ahead import start_ahead

    words = sys.argv[1:]
    ahead = start_ahead(words)

    from pyfusekit import cli

    return cli.main(words, ahead)


if __name__ == "__main__":
    sys.exit(main())
