"""HTTP as bytes on a socket, for what no client library would send or tell."""

import asyncio
import socket
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple


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
