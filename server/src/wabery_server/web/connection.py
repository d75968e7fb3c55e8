"""One connection: requests are read one at a time, answered in order, and never believed.

A head is looked for in the bytes that have arrived and given to the parser (httptools) as a whole, once it is complete and
known to be small enough. The parser only ever sees heads: where a body ends follows from `Content-Length` and
`Transfer-Encoding` alone, whatever `Upgrade`, `Expect` or the method say (RFC 9110, 7.8). So the requests that are read
never depend on how their bytes were cut into packets.

While a request is being answered, at most one read (64 KiB) of what follows it is kept; then reading pauses. It also pauses
while the client does not read its answers.
"""

import asyncio
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import httptools
from starlette.types import Scope

from wabery_server import errors
from wabery_server.web.address import client_address
from wabery_server.web.body import Chunked, Length
from wabery_server.web.bounds import BAD_REQUEST, LARGE_HEAD, UNREAD_BODY
from wabery_server.web.exchange import Exchange, whole_answer

if TYPE_CHECKING:
    from wabery_server.web.server import Server, Waiting

_END_OF_HEAD: Final = b"\r\n\r\n"
_BLANK: Final = re.compile(rb"[\r\n]*")
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_METHOD: Final = re.compile(rb"[A-Z-]{1,32}(?: |\Z)")
_FRAMING: Final = frozenset({b"connection", b"content-length", b"expect", b"transfer-encoding"})
_SMALL: Final = 4_096
_DIGITS: Final = re.compile(rb"[0-9]{1,18}")
_ASGI: Final = {"version": "3.0", "spec_version": "2.4"}


class Connection(asyncio.BufferedProtocol):
    """From `connection_made` to `connection_lost`. Has at most one exchange at a time."""

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.peer = ""
        self.waiting: Waiting | None = None
        """What this connection waits for, when its client must act before a deadline. Set by Waiting."""
        self.unsent = 0
        """Bytes that the client had not taken when the server last looked."""
        self._client: tuple[str, int] | None = None
        self._local: tuple[str, int] | None = None
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # until connection_made
        self._exchange: Exchange | None = None
        self._parser: httptools.HttpRequestParser | None = None
        self._body: Length | Chunked | None = None
        """What is still to come of the current request's body, whether or not an exchange reads it."""
        self._taken = 0
        """Bytes of the body since its deadline was last moved."""
        self._body_since = 0.0
        self._buffer = b""
        """Bytes that have arrived; those from `_at` on are still to be looked at."""
        self._at = 0
        self._searched = 0
        """Up to here there is no end of a head in the buffer."""
        self._reading = True
        self.blocked: asyncio.Future[None] | None = None
        """Until the client has read enough of what was written."""
        self._eof = False
        self._closing = False
        self._skipped = 0
        """Bytes of a body that were read for no other purpose than to find its end."""
        self._discarded = 0
        self._broken = False
        """Whether the rest of the current body cannot be found."""
        # What the parser has found in a head:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._framing: list[tuple[bytes, bytes]] = []
        self._heads = 0
        self._hosts = 0
        self._switches = False

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's are not asyncio.Transport, but behave like it
        client, local = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if client:
            self._client, self.peer = (str(client[0]), int(client[1])), str(client[0])
        if local:
            self._local = (str(local[0]), int(local[1]))
        self.server.opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.server.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing:
            self._discarded += nbytes
            if self._discarded > self.server.bounds.bodies:
                self._transport.abort()
            return
        data = bytes(self.server.read_buffer[:nbytes])
        if self._at < len(self._buffer):
            data = self._buffer[self._at :] + data
            self._searched = max(0, self._searched - self._at)
        else:
            self._searched = 0
        self._buffer, self._at = data, 0
        self._advance()

    def eof_received(self) -> bool:
        """The client sends no more; it may still read, so what it has asked for is answered."""
        self._eof = True
        if self._closing:
            return False
        if self._exchange is not None:
            self._exchange.half_closed()
        self._advance()
        return not self._closing

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._buffer = b""
        self.server.closed(self)
        if self._exchange is not None:
            self._exchange.lost()
        self.resume_writing()

    def pause_writing(self) -> None:
        self.blocked = self.server.loop.create_future()
        self.unsent = self._transport.get_write_buffer_size()
        self.server.write_stall.add(self)

    def resume_writing(self) -> None:
        blocked, self.blocked = self.blocked, None
        if blocked is None:
            return
        if not blocked.done():
            blocked.set_result(None)
        if not self._closing:
            self.server.idle.add(self) if self._exchange is None else self.server.waits_no_more(self)
            self._advance()

    # Reading

    def _advance(self) -> None:
        """Takes from the buffer what may be taken now; reads on only when that was all."""
        try:
            while not self._closing:
                if self._body is not None:
                    more = self._take_body(self._body)
                elif self._exchange is not None or self.blocked is not None:
                    more = False
                else:
                    more = self._take_head()
                if not more:
                    break
        except errors.WaberyError as refusal:
            self._refuse(refusal)
        if self._at >= len(self._buffer):
            self._buffer, self._at, self._searched = b"", 0, 0
        if not self._closing:
            self._read(self._wants_more())

    def _wants_more(self) -> bool:
        exchange = self._exchange
        if self._body is not None:
            return exchange is None or exchange.ahead < self.server.bounds.ahead
        if exchange is not None or self.blocked is not None:
            return not self._buffer
        return True

    def _read(self, wanted: bool) -> None:
        if wanted is not self._reading and not self._eof:
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _take_head(self) -> bool:
        """Whether a request has begun. Raises errors.InvalidRequest, HeadersTooLarge."""
        buffer, bounds = self._buffer, self.server.bounds
        at = self._at
        if at < len(buffer) and buffer[at] < 14:  # blank lines before a request are skipped (RFC 9112, 2.2)
            blank = _BLANK.match(buffer, at)
            at = self._at = blank.end() if blank else at
        have = len(buffer) - at
        if not have:
            if self._eof:
                self._finish()
            return False
        end = buffer.find(_END_OF_HEAD, max(at, self._searched))
        size = end + 4 - at if end >= 0 else have
        if end < 0 or size > bounds.head:
            # What the parser would refuse anyway is refused before the rest has come.
            if _METHOD.match(buffer, at, at + 33) is None or _BARE_LF.search(
                buffer, max(at, self._searched - 1), at + bounds.head
            ):
                raise errors.InvalidRequest("This is not an HTTP request.")
            if size > bounds.head:
                LARGE_HEAD.hit(peer=self.peer, limit=bounds.head)
                raise errors.HeadersTooLarge
            self._searched = max(at, len(buffer) - 3)
            if self._eof:
                self._finish()
            elif self.waiting is not self.server.head:
                self.server.head.add(self)
            return False
        self._at = end + 4
        self._searched = 0
        self._begin(buffer[at : self._at])
        return True

    def _begin(self, head: bytes) -> None:
        """Starts the exchange of a complete head. Raises errors.InvalidRequest."""
        line = head.index(b"\r\n")
        version = head[line - 9 : line]
        if version != b" HTTP/1.1" and version != b" HTTP/1.0":
            raise errors.InvalidRequest("The HTTP version must be 1.1 or 1.0.")
        parser = self._parse(head)
        method = parser.get_method().decode()
        if method == "CONNECT":
            raise errors.InvalidRequest("This server is not a proxy: CONNECT is not supported.")
        raw_path, path, query = _target(self._url)
        modern = version == b" HTTP/1.1"
        keep, expects, body = modern, False, None
        if self._framing:
            keep, expects, body = self._framed(modern=modern)
        scope: Scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1" if modern else "1.0",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": self._headers,
            "client": self._client,
            "server": self._local,
        }
        whole = b""
        if isinstance(body, Length) and body.remaining <= len(self._buffer) - self._at:
            # Most bodies come with their head, in one read.
            whole, self._at = body.take(self._buffer, self._at)
            body, expects = None, False
        if body is not None:
            self._body_since = self.server.loop.time()
        elif keep and not self._switches and len(whole) < _SMALL:
            if whole:
                parser.feed_data(whole)  # it has no callback for bodies; this is cheaper than another parser
            self._parser = parser
        self._body = body
        more = body is not None
        self._exchange = exchange = Exchange(self, scope, whole, keep=keep, expects=expects, more=more)
        self.server.waits_no_more(self)
        if self._eof:
            exchange.half_closed()
        self.server.start_exchange(exchange)

    def _parse(self, head: bytes) -> httptools.HttpRequestParser:
        parser, self._parser = self._parser or httptools.HttpRequestParser(self), None
        self._url, self._headers, self._framing = b"", [], []
        self._heads, self._hosts, self._switches = 0, 0, False
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._switches = True
        except httptools.HttpParserError as failure:
            raise errors.InvalidRequest(f"This is not an HTTP request: {failure}.") from None
        if self._heads != 1:
            raise errors.InvalidRequest("This is not an HTTP request.")
        if self._hosts > 1:
            raise errors.InvalidRequest("There is more than one Host header.")
        return parser

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name, value = name.lower(), value.rstrip(b" \t")
        self._headers.append((name, value))
        if name in _FRAMING:
            self._framing.append((name, value))
        elif name == b"host":
            self._hosts += 1

    def on_headers_complete(self) -> None:
        self._heads += 1

    def _framed(self, *, modern: bool) -> "tuple[bool, bool, Length | Chunked | None]":
        """Whether the connection is kept, whether the client waits for 100, and the body's framing.

        Raises errors.InvalidRequest: where two readers could disagree about a body, there is none.
        """
        keep, expects = modern, False
        length: int | None = None
        chunked = False
        for name, value in self._framing:
            if name == b"connection":
                keep = keep and b"close" not in [token.strip() for token in value.lower().split(b",")]
            elif name == b"expect":
                expects = modern and value.lower() == b"100-continue"
            elif name == b"content-length":
                if length is not None or chunked or _DIGITS.fullmatch(value) is None:
                    raise errors.InvalidRequest(
                        "Content-Length must be one number, without Transfer-Encoding."
                    )
                length = int(value)
            else:
                if length is not None or chunked or not modern or value.lower() != b"chunked":
                    raise errors.InvalidRequest(
                        "Transfer-Encoding must be `chunked`, once, in HTTP/1.1, without Content-Length."
                    )
                chunked = True
        if chunked:
            return keep, expects, Chunked(self.server.bounds)
        return keep, expects and bool(length), Length(length) if length else None

    def _take_body(self, body: Length | Chunked) -> bool:
        """Whether the body is complete now."""
        exchange = self._exchange
        if exchange is not None and exchange.ahead >= self.server.bounds.ahead:
            return False
        if self._at >= len(self._buffer):
            if self._eof:
                self._body_fails(
                    errors.InvalidRequest("The connection was closed before the body was complete.")
                )
            return False
        try:
            part, self._at = body.take(self._buffer, self._at)
        except errors.WaberyError as refusal:
            BAD_REQUEST.hit(peer=self.peer, problem=refusal.message)
            self._body_fails(refusal)
            return False
        complete = body.complete
        if exchange is None:
            self._skipped += len(part)
            if self._skipped > self.server.bounds.drained:
                self._finish()
                return False
        elif part:
            # Chunks that come with their head, in one read, are not worth the counting either.
            if not complete or exchange.counted:
                exchange.counted = True
                self.server.memory.grow(exchange, len(part))
                if self._body is None:  # this very request had to give way
                    return False
            exchange.feed(part)
        if complete:
            self._body = None
            if exchange is not None:
                exchange.complete()
            else:
                self.server.idle.add(self)
        else:
            self._progress(len(part))
        return complete

    def _progress(self, size: int) -> None:
        """Moves the body's deadline once enough of it has come."""
        server, bounds = self.server, self.server.bounds
        self._taken += size
        if self.waiting is server.body and self._taken >= bounds.body_progress:
            self._taken = 0
            if server.loop.time() - self._body_since < bounds.body_seconds:
                server.body.add(self)

    def _body_fails(self, refusal: errors.WaberyError) -> None:
        if self._exchange is None:
            self._finish()
        else:
            self._exchange.fail(refusal)

    # What the exchange calls

    def body_wanted(self) -> None:
        """The application has taken what there was, and there is more to come."""
        self._advance()

    def body_awaited(self) -> None:
        """The application waits for the client."""
        if self._body is not None and self.waiting is None:
            self._taken = 0
            self.server.body.add(self)

    def give_up_body(self) -> None:
        """Nothing more of the body is read, and no request after it."""
        self._body, self._broken = None, True
        self.server.waits_no_more(self)

    @property
    def keeps_framing(self) -> bool:
        """Whether the next request may be looked for when the application does not read this one's body."""
        return not isinstance(self._body, Length) or self._body.remaining <= self.server.bounds.drained

    @property
    def draining(self) -> bool:
        return self.server.draining

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def write_parts(self, *parts: bytes) -> None:
        self._transport.writelines(parts)

    async def written(self) -> None:
        """Returns when the client has read enough of what was written, or is gone."""
        while self.blocked is not None and not self._closing:
            await asyncio.shield(self.blocked)

    def answered(self, *, keep: bool) -> None:
        """The answer is complete: on to the next request, or to the end."""
        self._exchange = None
        if self._closing:
            return
        if not keep or self.server.draining:
            if self._body is not None:
                UNREAD_BODY.add()
            self._finish()
            return
        self._skipped = 0
        if self.blocked is None:
            (self.server.idle if self._body is None else self.server.body).add(self)
        self._advance()

    def address(self, headers: list[tuple[bytes, bytes]]) -> str:
        """The client's, behind trusted proxies."""
        trusted = self.server.trusted
        if not trusted:
            return self.peer
        lines = [value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"]
        return client_address(self.peer, ",".join(lines), trusted)

    # The end

    def too_late_for_head(self) -> None:
        self._refuse(errors.RequestTimeout("The request's head was not complete in time."))

    def too_late_for_body(self) -> None:
        self._body_fails(errors.RequestTimeout("The request's body stalled."))

    def not_read(self) -> bool:
        """Whether the client has read nothing since the server last looked."""
        before, self.unsent = self.unsent, self._transport.get_write_buffer_size()
        return self.unsent >= before

    def turn_away(self, refusal: errors.WaberyError) -> None:
        """Answers before anything was asked."""
        self._refuse(refusal)

    def make_room(self, refusal: errors.WaberyError) -> None:
        """Ends what this connection waits for, so that another one has its place."""
        if self._exchange is not None and self._body is not None:
            self._exchange.fail(refusal)
        elif self._closing or self._exchange is not None:
            self._transport.abort()
        else:
            if self._buffer:
                self._transport.write(whole_answer(*self.server.refuse(refusal)))
            self._closing = True
            self._close()

    def shut_down(self) -> None:
        """The server stops: a request under way is answered, nothing else."""
        if self._exchange is None and not self._closing:
            self._closing = True
            self._close()

    def abort(self) -> None:
        self._transport.abort()

    def _refuse(self, refusal: errors.WaberyError) -> None:
        """Answers what did not become a request, and closes."""
        if isinstance(refusal, errors.InvalidRequest):
            BAD_REQUEST.hit(peer=self.peer, problem=refusal.message)
        self._transport.write(whole_answer(*self.server.refuse(refusal)))
        self._finish(unread=True)

    def _finish(self, *, unread: bool = False) -> None:
        """Closes. While the client may still be sending, the answer is let through first: a socket that is closed with
        unread bytes resets the connection, and the client loses what it has not read yet (RFC 9112, 9.6)."""
        self._closing = True
        unread = unread or self._broken or self._body is not None or self._at < len(self._buffer)
        self._buffer, self._at, self._body = b"", 0, None
        if self._eof or not unread:
            self._close()
            return
        self._transport.write_eof()
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        self.server.linger.add(self)

    def _close(self) -> None:
        if self._transport.get_write_buffer_size():
            self.unsent = self._transport.get_write_buffer_size()
            self.server.write_stall.add(self)
        self._transport.close()


def _target(url: bytes) -> tuple[bytes, str, bytes]:
    """The raw path, the decoded path and the query of a request's target. Raises errors.InvalidRequest."""
    if url[:1] == b"/" and b"#" not in url:
        raw, _, query = url.partition(b"?")
    elif url == b"*":
        raw, query = url, b""
    else:
        try:
            parsed = httptools.parse_url(url)
        except httptools.HttpParserInvalidURLError:
            raise errors.InvalidRequest("The request's target is not a URL.") from None
        raw, query = parsed.path or b"/", parsed.query or b""
    try:
        path = raw.decode("ascii")
    except UnicodeDecodeError:
        raise errors.InvalidRequest("The request's target must be ASCII.") from None
    return raw, unquote(path) if "%" in path else path, query
