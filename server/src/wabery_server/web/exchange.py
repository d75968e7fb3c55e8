"""One request and its answer, as ASGI 3 sees them: `receive` gives the body, `send` takes the answer.

A head and a small body are one write to the socket. `Connection` decides what the bytes of the request mean.
"""

import asyncio
import http
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Final

from starlette.types import Message, Scope

from wabery_server import errors, logs

if TYPE_CHECKING:
    from wabery_server.web.connection import Connection

_JOINED: Final = 65_536
"""Up to this size, head and body of an answer are copied into one buffer; a larger body is written as it is."""
_NO_BODY: Final = frozenset({204, 304})
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_DISCONNECT: Final[Message] = {"type": "http.disconnect"}


def _status_line(status: int) -> bytes:
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


_STATUS_LINES: Final = {status: _status_line(status) for status in range(100, 600)}


class Exchange:
    """One request and its answer, as ASGI sees them."""

    __slots__ = (
        "_address",
        "_answered",
        "_chunked",
        "_connection",
        "_ended",
        "_expects",
        "_failure",
        "_half_closed",
        "_head_sent",
        "_headers",
        "_keep",
        "_lost",
        "_lost_body",
        "_news",
        "_owed",
        "_parts",
        "_status",
        "ahead",
        "counted",
        "more",
        "scope",
        "task",
    )

    def __init__(
        self, connection: "Connection", scope: Scope, body: bytes, *, keep: bool, expects: bool, more: bool
    ) -> None:
        """`body` is what has come of it together with the head."""
        self._connection = connection
        self.scope = scope
        self.task: asyncio.Task[None] | None = None
        self.more = more
        """Whether the body is incomplete."""
        self.ahead = 0
        """Bytes of the body that the application has not asked for yet."""
        self.counted = False
        """Whether `Memory` counts this body."""
        self._keep = keep
        self._expects = expects
        self._parts = [body] if body else []
        self._ended = False
        """Whether the application has the whole body."""
        self._failure: errors.WaberyError | None = None
        """Why the body will not be complete, until the application has heard of it."""
        self._lost_body = False
        self._lost = False
        self._half_closed = False
        self._news: asyncio.Event | None = None
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_sent = False
        self._chunked = False
        self._owed: int | None = None
        """Bytes that `content-length` has promised and that have not been sent."""
        self._answered = False
        self._address: str | None = None

    @property
    def address(self) -> str:
        if self._address is None:
            self._address = self._connection.address(self.scope["headers"])
        return self._address

    async def run(self) -> None:
        """Has the request answered; the answer of last resort is the server's own."""
        connection = self._connection
        try:
            await connection.server.app(self.scope, self.receive, self.send)
            if not self._answered and not self._lost:
                raise RuntimeError("the application did not complete its answer")
        except Exception:  # noqa: BLE001  # whatever it is, the client is answered and the log has it
            logs.log.exception("http_application_failed", extra={"facts": {"path": self.scope["path"][:200]}})
            if self._lost or self._answered:
                return
            if self._head_sent:
                connection.abort()
            else:
                self._keep = False
                self._status, self._chunked = 0, False
                status, headers, body = connection.server.refuse(errors.InternalError())
                await self.send({"type": "http.response.start", "status": status, "headers": headers})
                await self.send({"type": "http.response.body", "body": body})
        finally:
            if not self._answered and not self._lost:
                connection.abort()
            connection.server.ended(self)

    # The request

    def feed(self, part: bytes) -> None:
        self._parts.append(part)
        self.ahead += len(part)
        self._tell()

    def complete(self) -> None:
        self.more = False
        self._connection.server.waits_no_more(self._connection)
        self._tell()

    def fail(self, refusal: errors.WaberyError) -> None:
        """The body will not be complete: the application hears why, from `receive`. The connection ends with the answer."""
        if not self.more:
            return
        self.more = False
        self._keep = False
        self._failure = refusal
        self._parts.clear()
        self._connection.give_up_body()
        self._tell()

    def half_closed(self) -> None:
        self._half_closed = True
        self._tell()

    def lost(self) -> None:
        self._lost = True
        self.more = False
        self._tell()

    async def receive(self) -> Message:
        """The next part of the body, then `http.disconnect` when the client is gone or the answer is complete.

        Raises errors.WaberyError when the body cannot be completed.
        """
        while True:
            if (failure := self._failure) is not None:
                self._failure, self._lost_body = None, True
                try:
                    raise failure
                finally:
                    del failure  # its traceback holds this frame, and with it what has come of the body
            if self._lost_body or self._lost or self._answered:
                return _DISCONNECT
            if self._parts or not (self.more or self._ended):
                parts, self._parts = self._parts, []
                body = parts[0] if len(parts) == 1 else b"".join(parts)
                self.ahead = 0
                more = self.more
                self._ended = not more
                if more:
                    self._connection.body_wanted()
                return {"type": "http.request", "body": body, "more_body": more}
            if self._half_closed and not self.more:
                return _DISCONNECT
            if self._expects:
                self._expects = False
                self._connection.write(_CONTINUE)
            self._connection.body_awaited()
            if self._news is None:
                self._news = asyncio.Event()
            self._news.clear()
            await self._news.wait()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()

    # The answer

    async def send(self, message: Message) -> None:
        """To a client that is gone, sending does nothing."""
        connection = self._connection
        if connection.blocked is not None:
            await connection.written()
        if self._lost:
            return
        if message["type"] == "http.response.start":
            if self._status:
                raise RuntimeError("the answer has already begun")
            self._status = message["status"]
            self._headers = [*message.get("headers", ())]
        elif message["type"] == "http.response.body":
            if not self._status or self._answered:
                raise RuntimeError("the answer has not begun, or is complete")
            self._send_body(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"unknown ASGI message {message['type']!r}")

    def _send_body(self, body: bytes, *, more: bool) -> None:
        connection = self._connection
        head = b""
        if not self._head_sent:
            head = self._head(len(body), more=more)
            self._head_sent = True
        if self._status in _NO_BODY or self.scope["method"] == "HEAD":
            body = b""
        elif self._chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                body += b"0\r\n\r\n"
        elif self._owed is not None:
            self._owed -= len(body)
            if self._owed < 0 or (self._owed and not more):
                raise RuntimeError("the answer's body differs from its content-length")
        if head and len(body) > _JOINED:
            connection.write_parts(head, body)
        elif head or body:
            connection.write(head + body)
        if not more:
            self._answered = True
            self._tell()
            connection.answered(keep=self._keep)

    def _head(self, size: int, *, more: bool) -> bytes:
        """The answer's head. `size` is that of the body's first part, which is the whole one unless there is `more`."""
        connection, status = self._connection, self._status
        lines = [_STATUS_LINES[status], common_headers()]
        length: int | None = None
        most = 4  # line ends: status, date, nosniff, the end of the head
        for name, value in self._headers:
            if name == b"content-length":
                length = int(value)
                continue
            if name == b"connection":
                self._keep = self._keep and value.lower() != b"close"
                continue
            lines += (name, b": ", value, b"\r\n")
            most += 1
        if status not in _NO_BODY:
            if length is None and not more:
                length = size
            if length is not None:
                self._owed = length
                lines.append(b"content-length: %d\r\n" % length)
                most += 1
            elif self.scope["http_version"] == "1.1":
                self._chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")
                most += 1
            else:
                self._keep = False  # the end of the connection ends the body
        # A client that still waits for 100 may send its body or not: the next bytes could be either.
        if self.more and (self._expects or not connection.keeps_framing):
            self._keep = False
        if connection.draining:
            self._keep = False
        if not self._keep:
            lines.append(b"connection: close\r\n")
            most += 1
        lines.append(b"\r\n")
        head = b"".join(lines)
        ends = head.count(b"\r\n")
        if ends != most or head.count(b"\n") != ends or head.count(b"\r") != ends or b"\0" in head:
            raise RuntimeError("an answer's header holds a line break")
        return head


_common = b""
_common_at = -1


def common_headers() -> bytes:
    """`date`, made once a second, and `nosniff`: what we send is never anything but what it says."""
    global _common, _common_at
    now = int(time.time())
    if now != _common_at:
        _common_at = now
        date = formatdate(now, usegmt=True).encode()
        _common = b"date: " + date + b"\r\nx-content-type-options: nosniff\r\n"
    return _common


def whole_answer(status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    """An answer that ends its connection."""
    lines = [_STATUS_LINES[status], common_headers()]
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    lines += (b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body), body)
    return b"".join(lines)
