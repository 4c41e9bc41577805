"""HTTP/1.1 by httptools, with bounds where uvicorn has none: slow clients, and too many of them."""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CROWDED = "crowded"
"""In a request's ``state``: its connection is one too many."""

_MAX_HEAD_BYTES = 1 << 16  # of everything that is not body: request line, headers, trailers


class HttpProtocol(HttpToolsProtocol):
    """One connection.

    Declines offered upgrades (Java's client offers HTTP/2 with its first request), where the parser
    alone would take the body for something else than HTTP. Closes connections that send no whole
    head in time, or take nothing of their answer.
    """

    def __init__(
        self,
        *args: Any,
        max_connections: int,
        head_timeout_s: float = 30.0,
        write_timeout_s: float = 60.0,
        **kwargs: Any,
    ) -> None:
        """``head_timeout_s``: for a head, from the connection or its first byte on; between two
        requests uvicorn's ``timeout_keep_alive`` counts. ``write_timeout_s``: how long a client may
        take nothing of an answer that waits for it."""
        super().__init__(*args, **kwargs)
        self._max_connections = max_connections
        self._head_timeout_s = head_timeout_s
        self._write_timeout_s = write_timeout_s
        self._num_head_bytes = 0  # received since the last byte of a body
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------------- connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            self.app_state = {**self.app_state, CROWDED: True}
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._num_head_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse("Invalid HTTP request received.")
            return
        if self._num_head_bytes > _MAX_HEAD_BYTES:
            self._refuse("The head of the request is too large.")
        elif self.cycle is None or self.cycle.response_complete:
            self._await_head()

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                if all(name != b"upgrade" for name, _ in self.headers):
                    raise httptools.HttpParserError("CONNECT is for proxies") from offer
                data = self._head_without_offer() + data[offer.args[0] :]
                self.parser = httptools.HttpRequestParser(self)

    def _refuse(self, sentence: str) -> None:
        self.logger.warning(sentence)
        self.send_400_response(sentence)

    # ----------------------------------------------------------------------------------- parser

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # this head comes again, without the offer
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._num_head_bytes = 0
        super().on_message_complete()

    def _head_without_offer(self) -> bytes:
        """The head as it was parsed, but for the header that offers another protocol, which a
        server may ignore (RFC 9110, section 7.8)."""
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    # ------------------------------------------------------------------------------------- time

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._head_timeout_s, self._close)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _await_reading(self) -> None:
        self._write_timer = self.loop.call_later(
            self._write_timeout_s, self._abort_unread, self.transport.get_write_buffer_size()
        )

    def _abort_unread(self, num_bytes_before: int) -> None:
        if self.transport.get_write_buffer_size() < num_bytes_before:
            self._await_reading()
        else:
            self.transport.abort()

    def _close(self) -> None:
        self._head_timer = None
        self.transport.close()
