"""Streaming calls that last as long as their client likes, and still must not hold up a shutdown.

A health watch never ends by itself. Without an end from this side a drain would wait for it until its time is
over, and then cut the connection that the last answers are on.
"""

from __future__ import annotations

from collections.abc import Mapping

from rpc.server import StreamCall, StreamHandler

__all__ = ["Streams"]

_SWEEP_AT = 64


class Streams:
    """Remembers the open calls of some streaming methods, to end them together."""

    def __init__(self, handlers: Mapping[bytes, StreamHandler]) -> None:
        self._open: set[StreamCall] = set()
        self._ended = False
        self._sweep_at = _SWEEP_AT
        self.handlers: Mapping[bytes, StreamHandler] = {
            path: self._remembering(handler) for path, handler in handlers.items()
        }
        """The same methods, for the server."""

    def __repr__(self) -> str:
        return f"<Streams: {len(self._open)} open or just over>"

    def end(self) -> None:
        """End those that are open, with OK, and each that comes from now on."""
        self._ended = True
        for call in self._open:
            call.end()
        self._open.clear()

    def _remembering(self, handler: StreamHandler) -> StreamHandler:
        def handle(call: StreamCall) -> None:
            if self._ended:
                call.end()
                return
            self._open.add(call)
            # Calls tell their handler of a cancel, not of every end: what is over is looked for, at every
            # doubling, so that many open streams do not make the next one dear.
            if len(self._open) >= self._sweep_at:
                self._open = {known for known in self._open if not known.over}
                self._sweep_at = max(_SWEEP_AT, 2 * len(self._open))
            handler(call)

        return handle
