"""A receiver as fast as Python allows: takes POSTs over kept-alive HTTP/1.1, answers 200, counts.

    python bench/receiver.py --port 9000 [--record]

`GET /` answers `{"requests": n, "distinct": m}`; with --record, `distinct` counts the webhook-ids seen. The line
"listening on 127.0.0.1:9000" says that it is ready; port 0 takes a free one.
"""

import argparse
import asyncio
import re
from typing import cast

import uvloop

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ID = re.compile(rb"\r\nwebhook-id: *([^\r]+)", re.IGNORECASE)


class Counts:
    """What every connection of one receiver has seen together."""

    def __init__(self, *, record: bool) -> None:
        self.requests = 0
        self.ids: set[bytes] | None = set() if record else None


class Receiver(asyncio.Protocol):
    """One connection. Understands what our poster sends: a head, a Content-Length, a body."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        data = self._pending + data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            head = data[:end]
            length = _LENGTH.search(head)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(data) < whole:
                break
            data = data[whole:]
            self._transport.write(self._answer(head))
        self._pending = data

    def _answer(self, head: bytes) -> bytes:
        counts = self._counts
        if head.startswith(b"GET"):
            body = b'{"requests": %d, "distinct": %d}' % (counts.requests, len(counts.ids or ()))
            return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
                len(body),
                body,
            )
        counts.requests += 1
        if counts.ids is not None and (found := _ID.search(head)):
            counts.ids.add(found[1])
        return _ANSWER


async def serve(port: int, *, record: bool) -> None:
    counts = Counts(record=record)
    server = await asyncio.get_running_loop().create_server(
        lambda: Receiver(counts), "127.0.0.1", port, backlog=1024
    )
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--port", type=int, default=9000)
    arguments.add_argument("--record", action="store_true", help="remember the distinct webhook-ids")
    options = arguments.parse_args()
    uvloop.run(serve(options.port, record=options.record))
