"""Serve a recipe in the foreground: ``python -m pyfusekit.testing RECIPE MOUNTPOINT [allow_other]``.

Prints one line, "ready", when the mount works, and ends when it is unmounted.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from ..core.mount import MountOptions
from ..core.serving import serve
from .recipe import Recipe


async def main(recipe: Recipe, mountpoint: str, words: list[str]) -> None:
    """Mount, say so, and serve until the mount is gone or SIGTERM comes."""
    fs = recipe.build()
    options = MountOptions(
        source=recipe.source or recipe.target,
        default_permissions=fs.default_permissions,
        read_only=fs.read_only,
        allow_other="allow_other" in words,
        nosuid=False,
        nodev=False,
    )
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with serve(fs, mountpoint, options) as served:
        served.device.closed.add_done_callback(lambda _: stop.set())
        print("ready", flush=True)
        await stop.wait()


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    asyncio.run(main(Recipe.load(sys.argv[1]), sys.argv[2], sys.argv[3:]))
