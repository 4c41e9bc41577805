"""HTTP/1.1 to one server of this machine, cheap enough to measure with: kept connections, requests
made ready beforehand, no redirects, no retries."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import httptools
import orjson

JSON = "application/json"
_CHUNK = 1 << 18


class ConnectionLost(Exception):
    """The server closed the connection before its answer was complete."""


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[bytes, bytes]  # names in lower case
    body: bytes
    seconds: float  # from the first byte sent to the last byte received


def get(path: str) -> bytes:
    """The bytes of a GET request."""
    return f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()


def post(path: str, body: Mapping[str, object], *, accept: str = JSON) -> bytes:
    """The bytes of a POST request with a JSON body."""
    content = orjson.dumps(body)
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: {accept}\r\n"
        f"content-type: {JSON}\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


@dataclass(slots=True)
class _Incoming:
    """One answer as it arrives; httptools calls the methods."""

    started: float
    headers: dict[bytes, bytes] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    is_complete: bool = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_body(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def on_message_complete(self) -> None:
        self.is_complete = True

    def reply(self, status: int) -> Reply:
        seconds = time.perf_counter() - self.started
        return Reply(status, self.headers, b"".join(self.pieces), seconds)


class Connection:
    """Blocking: for one request after another."""

    def __init__(self, port: int, *, timeout_s: float = 120.0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def exchange(self, request: bytes) -> Reply:
        """Send and wait for the answer. Raises ConnectionLost, TimeoutError."""
        incoming = _Incoming(time.perf_counter())
        parser = httptools.HttpResponseParser(incoming)
        self._socket.sendall(request)
        while not incoming.is_complete:
            received = self._socket.recv(_CHUNK)
            if not received:
                raise ConnectionLost
            parser.feed_data(received)
        return incoming.reply(parser.get_status_code())


class AsyncConnection(asyncio.Protocol):
    """One of many at once; one request at a time on each."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._incoming: _Incoming | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._answer: asyncio.Future[Reply] | None = None

    @classmethod
    async def open(cls, port: int) -> AsyncConnection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, "127.0.0.1", port)
        return connection

    async def exchange(self, request: bytes, *, timeout_s: float = 120.0) -> Reply:
        """Send and wait for the answer. Raises ConnectionLost, TimeoutError."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionLost
        self._incoming = _Incoming(time.perf_counter())
        self._parser = httptools.HttpResponseParser(self._incoming)
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        async with asyncio.timeout(timeout_s):
            return await self._answer

    @property
    def is_closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def send(self, request: bytes) -> None:
        """Send and never ask for the answer."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionLost
        self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._incoming is None or self._answer is None:
            return  # of a request whose answer nobody waits for
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._answer.done():
                self._answer.set_exception(error)
            self.close()
            return
        if self._incoming.is_complete and not self._answer.done():
            self._answer.set_result(self._incoming.reply(self._parser.get_status_code()))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionLost())
