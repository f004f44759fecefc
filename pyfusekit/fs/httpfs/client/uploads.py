"""Bodies that are sent piece by piece, exactly as long as announced, and from their beginning for each attempt."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

Upload = tuple[int, Callable[[], AsyncIterator[bytes]]]
"""A body's bytes, and what yields its pieces: called again for each attempt."""
_PIECE = 256 << 10


def of_bytes(body: bytes) -> Upload:
    """Return *body* as an upload."""

    async def pieces() -> AsyncIterator[bytes]:
        view = memoryview(body)
        for at in range(0, len(view), _PIECE):
            yield bytes(view[at : at + _PIECE])

    return len(body), pieces


class WrongLengthError(ValueError):
    """A body that is longer or shorter than was announced: it changed while it was read."""


async def exactly(upload: Upload) -> AsyncIterator[bytes]:
    """Yield an upload's pieces; WrongLengthError before a byte too many, or at the end when some are missing.

    A server would take what is too long for the next request.
    """
    size, begin = upload
    pieces = begin()
    left = size
    try:
        async for piece in pieces:
            left -= len(piece)
            if left < 0:
                raise WrongLengthError(f"it is longer than {size} bytes")
            yield piece
        if left:
            raise WrongLengthError(f"it ends {left} bytes before {size}")
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()


@functools.cache
def payload_class() -> Any:
    """Return aiohttp's payload for an upload. Why its pieces could not be had is in *failure*."""
    from aiohttp import payload

    class UploadPayload(payload.Payload):
        def __init__(self, upload: Upload, stall: float | None) -> None:
            super().__init__(upload)
            self._size = upload[0]
            self._stall = stall
            self.failure: Exception | None = None

        def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
            raise TypeError("a body is no text")

        async def write(self, writer: Any) -> None:
            pieces = exactly(self._value)
            try:
                while (piece := await self._next(pieces)) is not None:
                    # aiohttp's own time limit begins when all is written: a server that stops reading would be waited for.
                    async with asyncio.timeout(self._stall):
                        await writer.write(piece)
            finally:
                await pieces.aclose()  # type: ignore[attr-defined]

        async def _next(self, pieces: AsyncIterator[bytes]) -> bytes | None:
            try:
                return await anext(pieces, None)
            except Exception as exc:
                self.failure = exc
                raise

        async def write_with_length(self, writer: Any, content_length: int | None) -> None:
            await self.write(writer)

    return UploadPayload


__all__ = ["Upload", "WrongLengthError", "exactly", "of_bytes", "payload_class"]
