"""HTTP connections with a time limit for the head of each request.

uvicorn limits idle time between requests, and `request_limits` the bodies; neither limits the time
that a connection takes to send its first or next request.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0


class Patient(H11Protocol):
    """Protocol that closes a connection if a request head takes longer than `HEADER_SECONDS`."""

    late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request of a connection."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Read request data; the head is complete once there is a cycle that answers it."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self.late is None:
            self._wait()

    def on_response_complete(self) -> None:
        """Stop the timer; uvicorn waits `timeout_keep_alive` for the next request."""
        self._stop()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer of a closed connection."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self.late = self.loop.call_later(HEADER_SECONDS, self._close)

    def _stop(self) -> None:
        if self.late is not None:
            self.late.cancel()
            self.late = None

    def _close(self) -> None:
        self.late = None
        if not self.transport.is_closing():
            self.transport.close()
