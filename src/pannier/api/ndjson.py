"""Streams of JSON values, one per line; blank lines in between show that the sender lives."""

from __future__ import annotations

from pannier.core.errors import PannierError

CONTENT_TYPE = "application/x-ndjson"
KEEPALIVE_SECONDS = 5.0
"""A stream that was silent for this long sends a blank line. A client gives up when several of them
fail to come, and the server notices by sending them that its client has gone."""


class LineReader:
    """Puts lines together from chunks of bytes; blank ones are dropped."""

    def __init__(self, *, limit_bytes: int = 2**20) -> None:
        self._limit_bytes = limit_bytes
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that ``chunk`` completes.

        Raises:
            PannierError: a line is longer than the limit.
        """
        end = chunk.rfind(b"\n") + 1
        whole = b"" if not end else bytes(self._rest) + chunk[:end]
        if end:
            self._rest.clear()
        self._rest += chunk[end:]  # not copied for each chunk: these may be of one byte each
        if len(self._rest) > self._limit_bytes:
            raise PannierError(f"a line of more than {self._limit_bytes} bytes was received")
        return [line for line in whole.split(b"\n") if line.strip()]
