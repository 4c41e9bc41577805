"""Requests on bare connections, for clients that no library would let one be."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

CODE_OF_NO_ANSWER = 0


@dataclass
class Connection:
    """One TCP connection to a server on this machine."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> httpx.Response:
        """All that comes until the server closes, as one answer; the request must ask it to."""
        head, _, body = (await self.reader.read()).partition(b"\r\n\r\n")
        if not head:
            return httpx.Response(CODE_OF_NO_ANSWER)
        status, *fields = head.decode("latin-1").split("\r\n")
        headers = [tuple(field.split(": ", 1)) for field in fields]
        return httpx.Response(int(status.split()[1]), headers=headers, content=body)  # type: ignore[arg-type]

    def leave(self) -> None:
        """At once, without a word."""
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError):  # the server was first
            await self.writer.wait_closed()


def request_of(path: str, fields: dict[str, Any]) -> bytes:
    """A POST after whose answer the server closes."""
    body = json.dumps(fields).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def asked(port: int, path: str, fields: dict[str, Any]) -> httpx.Response:
    """The answer to one request on a connection of its own; status 0 where none came."""
    try:
        connection = await Connection.open(port)
        try:
            await connection.send(request_of(path, fields))
            return await connection.answer()
        finally:
            await connection.close()
    except OSError:
        return httpx.Response(CODE_OF_NO_ANSWER)
