"""HTTP as bytes on a socket, for what no client library would send or tell."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from wabery_server import errors
from wabery_server.web import Bounds, Server


class Reply(NamedTuple):
    """One answer, as it stood on the wire."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> str | None:
        """A header that comes at most once."""
        values = [value for given, value in self.headers if given == name]
        assert len(values) <= 1, (name, values)
        return values[0] if values else None


def replies(data: bytes, methods: Iterable[str] = ()) -> list[Reply]:
    """Every final answer in what a server has sent; `methods` are those of the requests, GET when there are no more."""
    found: list[Reply] = []
    asked = iter(methods)
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, f"an answer is cut off: {head[:200]!r}"
        status_line, *lines = head.decode("latin-1").split("\r\n")
        version, status, *_ = status_line.split(" ")
        assert version == "HTTP/1.1", status_line
        headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
        reply = Reply(int(status), headers, b"")
        if reply.status < 200:
            continue
        length = reply.get("content-length")
        if next(asked, "GET") == "HEAD" or reply.status in (204, 304):
            assert length is None or reply.status not in (204, 304), "RFC 9110, 8.6"
        elif reply.get("transfer-encoding") == "chunked":
            reply, data = _chunked(reply, data)
        elif length is not None:
            assert len(data) >= int(length), "a body is cut off"
            reply, data = reply._replace(body=data[: int(length)]), data[int(length) :]
        else:
            reply, data = reply._replace(body=data), b""
        found.append(reply)
    return found


def _chunked(reply: Reply, data: bytes) -> tuple[Reply, bytes]:
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        part, data = data[: int(size, 16)], data[int(size, 16) :]
        assert data[:2] == b"\r\n", "a chunk is cut off"
        data = data[2:]
        if not part:
            return reply._replace(body=body), data
        body += part


def cut(data: bytes, points: Sequence[int]) -> list[bytes]:
    """The bytes in parts, cut at these points."""
    ends = [0, *sorted(points), len(data)]
    return [data[one:other] for one, other in pairwise(ends) if one < other]


async def said(address: tuple[str, int], parts: Sequence[bytes], *, pause: float = 0.0) -> bytes:
    """Sends the parts, each by itself, and the end of the stream; returns everything that comes back until the end.

    A reset ends it too, as long as there was an answer first.
    """
    loop = asyncio.get_running_loop()
    with socket.create_connection(address) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setblocking(False)
        received = bytearray()

        async def read() -> None:
            while True:
                try:
                    part = await loop.sock_recv(client, 65_536)
                except ConnectionResetError:
                    return
                if not part:
                    return
                received.extend(part)

        reading = asyncio.ensure_future(read())
        try:
            for part in parts:
                await loop.sock_sendall(client, part)
                # Loopback delivers at once: a turn of the loop later the server reads this part alone.
                await asyncio.sleep(pause)
                await asyncio.sleep(0)
            client.shutdown(socket.SHUT_WR)
        except (ConnectionResetError, BrokenPipeError, OSError):
            pass
        await asyncio.wait_for(reading, 20)
        return bytes(received)


def get(line: bytes = b"GET /a HTTP/1.1", head: bytes = b"Host: x\r\n") -> bytes:
    return line + b"\r\n" + head + b"\r\n"


def post(head: bytes, body: bytes = b"", *, version: bytes = b"1.1") -> bytes:
    return b"POST /a HTTP/" + version + b"\r\nHost: x\r\n" + head + b"\r\n" + body


class Client:
    """One connection, read and written step by step."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self) -> Reply:
        """The next answer, of one that has a content-length."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
        found = re.search(rb"content-length: ([0-9]+)", head)
        body = await self.reader.readexactly(int(found[1])) if found else b""
        (reply,) = replies(head + body)
        return reply

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        try:
            return await asyncio.wait_for(self.reader.read(), 10)
        except ConnectionResetError:
            return b""


@asynccontextmanager
async def client(address: tuple[str, int]) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


# A server without Wabery


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what it was asked. `/early…` does not read the body, `/never` waits for the client to go."""
    body = b""
    more = not scope["path"].startswith("/early")
    try:
        while more:
            message = await receive()
            assert message["type"] == "http.request"
            body += message["body"]
            more = message["more_body"]
    except errors.WaberyError as refusal:
        await send({"type": "http.response.start", "status": refusal.status, "headers": []})
        await send({"type": "http.response.body", "body": refusal.code.encode()})
        return
    if scope["path"] == "/never":
        assert (await receive())["type"] == "http.disconnect"
    asked = {"method": scope["method"], "path": scope["path"], "query": scope["query_string"].decode()}
    answer = json.dumps({**asked, "body": body.decode("latin-1")}).encode()
    status = int(scope["path"].rpartition("=")[2]) if "status=" in scope["path"] else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    if scope["path"] == "/stream":
        for part in (b"one", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    await send({"type": "http.response.body", "body": answer})


def refuse(refusal: errors.WaberyError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    return refusal.status, [], refusal.code.encode()


class Http(NamedTuple):
    """A server, and where it listens."""

    server: Server
    address: tuple[str, int]

    async def ask(self, *parts: bytes, methods: tuple[str, ...] = (), pause: float = 0.0) -> list[Reply]:
        return replies(await said(self.address, parts, pause=pause), methods)


@asynccontextmanager
async def serving(app: ASGIApp = echo, **bounds: Any) -> AsyncIterator[Http]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(app, refuse=refuse, bounds=Bounds(**bounds))
    await server.start([listening])
    try:
        yield Http(server, listening.getsockname())
    finally:
        await server.drain(seconds=1.0)
