"""HTTP connections that do not wait for ever: uvicorn limits bodies and idle time between requests, but not the time
that a connection takes to send its first or next request."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0


class Patient(H11Protocol):
    """Closes a connection whose request head has not come whole within `HEADER_SECONDS`."""

    late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A connection: its first request is waited for."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request: the head is complete once there is a cycle that answers it."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self.late is None:
            self._wait()

    def on_response_complete(self) -> None:
        """An answer is sent; uvicorn waits for the next request as long as `timeout_keep_alive`."""
        self._stop()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
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
