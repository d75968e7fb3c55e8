"""One delivery attempt: POST the body, read a bounded answer, say what became of it.

Whatever the far side does is an `Outcome`, never an exception. Once the status line of an answer is there, it decides:
headers that are too large, a body that breaks off or never ends change nothing about it. A poster keeps connections
alive and shares nothing else between endpoints: no cookies, no redirects, no proxy or credentials from the environment.
"""

import asyncio
import errno
import os
import re
import ssl
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache, partial
from time import perf_counter
from typing import Any, Self, cast

import aiohttp
import msgspec
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError
from yarl import URL

from wabery_server import __version__
from wabery_server.webhooks import guard, schedule


class Outcome(StrEnum):
    """What became of an attempt. Every one but `delivered` is a failure."""

    DELIVERED = "delivered"
    """2xx."""
    REJECTED = "rejected"
    """Any other status that has no outcome of its own."""
    GONE = "gone"
    """410: the endpoint wants to be disabled."""
    REDIRECT = "redirect"
    """3xx: not followed."""
    THROTTLED = "throttled"
    """429 or 503; `retry_after` holds what the receiver asked for."""
    ABORTED = "aborted"
    """The answer is no success and says `webhook-delivery: abort-message`: this delivery is not wanted again."""
    TIMEOUT = "timeout"
    """No connection in time, or no complete answer."""
    DNS = "dns"
    """The host name does not resolve."""
    CONNECT = "connect"
    """The connection was refused, or there is no route."""
    TLS = "tls"
    """The handshake failed, most often over the certificate."""
    RESET = "reset"
    """The connection broke before the status line of an answer."""
    PROTOCOL = "protocol"
    """What came back is not HTTP."""
    BLOCKED = "blocked"
    """The URL leads to an address, port or scheme that webhooks may not go to."""
    INTERNAL = "internal"
    """Our own fault (resolver, file descriptors): not to be charged to the endpoint."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt, as it is logged."""

    outcome: Outcome
    elapsed: timedelta
    status: int | None = None
    """None: there was no status line."""
    retry_after: timedelta | None = None
    """Only with `throttled`; at most 24 hours."""
    response_headers: tuple[tuple[str, str], ...] = ()
    response_body: bytes = b""
    """The first 16 KiB, as they came: compressed stays compressed."""
    address: str | None = None
    """The IP address that was connected to, or blocked."""
    error: str | None = None
    """What went wrong, in a few words; with a status, what was wrong with the rest of the answer."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one attempt."""

    dns: timedelta = timedelta(seconds=3)
    connect: timedelta = timedelta(seconds=5)
    """TCP and TLS together."""
    total: timedelta = timedelta(seconds=15)
    """Until the last byte of the answer."""
    rest: timedelta = timedelta(seconds=5)
    """From the status line of the answer to its last byte."""
    read: int = 65_536
    """Bytes of an answer after which its connection is dropped."""
    keep: int = 16_384
    """Bytes of an answer, and of its headers, that the result holds."""


_OUR_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
"""No descriptor, memory or local port left. An unreachable network is not here: one endpoint may be so for ever."""


class Poster:
    """Sends webhooks under one policy: live and test deliveries go through two posters.

    `tls` replaces the system's certificate authorities, `lookup` its name resolution.
    """

    KEEP_ALIVE = timedelta(seconds=4)
    """Below the 5 s after which Node and uvicorn close an idle connection, so that we seldom meet one just closed."""
    DNS_TTL = timedelta(seconds=30)
    """getaddrinfo does not tell the record's own."""

    def __init__(
        self,
        policy: guard.Policy,
        *,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
        lookup: guard.Lookup = guard.system_lookup,
    ) -> None:
        self._policy = policy
        self._limits = limits or Limits()
        self._tls = tls
        self._lookup = lookup
        self._target = lru_cache(maxsize=4096)(partial(guard.parse_url, policy=policy))

    async def __aenter__(self) -> Self:
        self._resolver = guard.Resolver(self._policy, self._limits.dns, self._lookup)
        self._timeout = self._timeouts(timedelta(0))
        self._kept = self._open_session(keepalive_timeout=self.KEEP_ALIVE.total_seconds())
        self._fresh = self._open_session(force_close=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        for session in (self._kept, self._fresh):
            await session.close()
        await self._resolver.close()

    def _open_session(self, **connections: Any) -> aiohttp.ClientSession:
        limits = self._limits
        connector = _Connector(
            limits,
            resolver=self._resolver,
            socket_factory=guard.socket_factory(self._policy),
            ttl_dns_cache=int(self.DNS_TTL.total_seconds()),
            dns_cache_max_size=10_000,
            limit=0,  # the worker bounds what is under way; waiting here would be charged to the endpoint
            ssl=self._tls or True,
            **connections,
        )
        return aiohttp.ClientSession(
            connector=connector,
            headers={
                "User-Agent": f"Wabery/{__version__}",
                "Content-Type": "application/json",
                "Accept": "*/*",
                "Accept-Encoding": "identity",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=limits.keep,
            max_line_size=limits.read,
            max_field_size=limits.read,
            max_headers=1000,
        )

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], *, share: guard.Share = ()
    ) -> Result:
        """One attempt. Never raises for what the far side does; a cancelled one drops its connection.

        `share` says whose it is, for the bounds on look-ups. When a kept connection turns out to be closed before any
        byte of an answer, the request is sent once more at once, on a new connection: the receiver closed the old one
        while nothing was under way, most likely without seeing the request.
        """
        began = perf_counter()
        guard.SHARE.set(share)
        try:
            target = self._target(url)
        except guard.UnsafeUrl as refusal:
            return Result(outcome=Outcome.BLOCKED, elapsed=_since(began), error=refusal.message)
        result = await self._attempt(self._kept, target, body, headers, began)
        if result is None:
            result = await self._attempt(self._fresh, target, body, headers, began)
        assert result is not None, "a connection of this session is never used twice"
        return result

    async def _attempt(
        self,
        session: aiohttp.ClientSession,
        target: URL,
        body: bytes,
        headers: Mapping[str, str],
        began: float,
    ) -> Result | None:
        """One request. None: a kept connection had been closed by the other end."""
        timeout = self._timeout if session is self._kept else self._timeouts(_since(began))
        exchange = _Exchange()
        _EXCHANGE.set(exchange)
        response: aiohttp.ClientResponse | None = None
        outcome: Outcome | None = None
        error: str | None = None
        kept = b""
        try:
            async with session.post(
                target, data=body, headers=headers, allow_redirects=False, timeout=timeout
            ) as response:
                kept = await self._read(response.content)
        except Exception as failure:
            if exchange.stale and _is_disconnect(failure):
                return None
            if exchange.status is None and not isinstance(failure, aiohttp.ClientError | OSError):
                raise  # a bug of ours
            outcome, error, blocked = _diagnose(failure)
            if outcome in (Outcome.CONNECT, Outcome.TIMEOUT) and exchange.status is None:
                # It may have moved.
                cast(_Connector, session.connector).clear_dns_cache(target.raw_host, target.port)
            exchange.address = exchange.address or blocked
        if response is None and exchange.status is None:
            assert outcome is not None
            return Result(outcome=outcome, elapsed=_since(began), address=exchange.address, error=error)
        if response is None:
            assert exchange.status is not None
            status, raw = exchange.status, _headers_of(b"".join(exchange.head))
        else:
            status, raw = response.status, response.raw_headers
        outcome = _judge(status, raw)
        return Result(
            outcome=outcome,
            elapsed=_since(began),
            status=status,
            retry_after=_hint(raw) if outcome is Outcome.THROTTLED else None,
            response_headers=_readable(raw, self._limits.keep),
            response_body=kept,
            address=exchange.address,
            error=None if outcome is Outcome.DELIVERED else error,
        )

    def _timeouts(self, spent: timedelta) -> aiohttp.ClientTimeout:
        limits = self._limits
        dns, connect, total = (each.total_seconds() for each in (limits.dns, limits.connect, limits.total))
        left = max(total - spent.total_seconds(), 0.001)
        # aiohttp rounds times above the threshold up to whole seconds of its clock
        return aiohttp.ClientTimeout(left, connect=dns + connect, sock_connect=connect, ceil_threshold=3600)

    async def _read(self, content: aiohttp.StreamReader) -> bytes:
        """The start of the answer; a long one is left unread, and aiohttp then drops its connection."""
        answer = await content.readany()
        if content.at_eof():
            return answer[: self._limits.keep]
        chunks, size = [answer], len(answer)
        while size < self._limits.read and (chunk := await content.readany()):
            chunks.append(chunk)
            size += len(chunk)
        return b"".join(chunks)[: self._limits.keep]


# The status line decides. aiohttp judges an answer as a whole: whatever it does not like about headers or body becomes
# an exception, and the status is gone. So the bytes are looked at before its parser gets them.


class _Exchange:
    """What one request has met so far, as its connection sees it."""

    __slots__ = ("address", "head", "stale", "status")

    def __init__(self) -> None:
        self.status: int | None = None
        """Of the final answer, as soon as its status line is there."""
        self.head: list[bytes] = []
        """The answer from that line on, until its headers are complete."""
        self.address: str | None = None
        self.stale = False
        """The connection was used before, and no byte of an answer has come."""


_EXCHANGE: ContextVar[_Exchange] = ContextVar("exchange")
"""aiohttp tells a connection nothing about the request it is for, but takes it into use within the request's task."""


class _Connector(aiohttp.TCPConnector):
    """Makes connections that note the status line."""

    def __init__(self, limits: Limits, **options: Any) -> None:
        super().__init__(**options)
        self._factory = partial(_Connection, loop=self._loop, limits=limits)  # type: ignore[assignment]  # a subclass


class _Connection(ResponseHandler):
    """A connection that finds the final status line itself; interim answers (1xx) never reach aiohttp's parser."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        super().__init__(loop=loop)
        self._limits = limits
        self._exchange: _Exchange | None = None
        """None while nothing is under way."""
        self._used = False
        self._unread = b""
        self._interim = 0
        self._impatience: asyncio.TimerHandle | None = None

    def set_response_params(self, **options: Any) -> None:
        """aiohttp calls this when it takes the connection for a request."""
        exchange = self._exchange = _EXCHANGE.get()
        exchange.stale = self._used
        if self.transport is not None and (peer := self.transport.get_extra_info("peername")):
            exchange.address = peer[0]
        self._used = True
        self._unread = b""
        self._interim = 0
        self._payload = None
        self._be_patient()
        super().set_response_params(**options)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            if data and self._used:
                # Said unasked, such as a 408 before an idle connection is closed: no answer to the next request.
                self._drop()
            else:
                super().data_received(data)  # before the first request; aiohttp keeps it until then
            return
        if data:  # aiohttp itself passes nothing to resume reading
            exchange.stale = False
            if exchange.status is None and not (data := self._find_status(exchange, data)):
                return
            if exchange.status is not None and self._payload is None:
                exchange.head.append(data)
                if len(exchange.head) > 1 and sum(map(len, exchange.head)) > self._limits.read:
                    self._refuse(f"the headers exceed {self._limits.read} bytes")
                    return
        super().data_received(data)
        if self._payload is not None and self._payload.is_eof():
            self._exchange = None
            self._be_patient()
        elif exchange.status is not None and self._impatience is None:
            self._impatience = self._loop.call_later(self._limits.rest.total_seconds(), self._give_up)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._be_patient()
        super().connection_lost(exc)

    def _find_status(self, exchange: _Exchange, data: bytes) -> bytes:
        """Sets the status once its line is there. Returns what the parser is to see of the data; nothing: not yet."""
        if self._unread:
            data, self._unread = self._unread + data, b""
        while True:
            data = data.lstrip(b"\r\n")
            line = _STATUS_LINE.match(data)
            if line is None:
                if len(data) < _LONGEST_START and b"\n" not in data and b"HTTP/".startswith(data[:5]):
                    self._unread = data
                    return b""
                return data  # not HTTP: the parser says why
            status = int(line[1])
            if status >= 200 or status == 101:
                exchange.status = status
                return data
            end = _END_OF_HEAD.search(data)
            if end is None:
                self._unread = data
            self._interim += end.end() if end else 0
            if self._interim + len(self._unread) > self._limits.read:
                self._refuse(f"interim answers exceed {self._limits.read} bytes")
                return b""
            if end is None:
                return b""
            data = data[end.end() :]

    def _give_up(self) -> None:
        if self._payload is None or not self._payload.is_eof():
            self._on_read_timeout()

    def _refuse(self, message: str) -> None:
        self.set_exception(HttpProcessingError(message=message))
        self._drop()

    def _drop(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _be_patient(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None


_STATUS_LINE = re.compile(rb"HTTP/(?:0\.9|1\.[0-9]|2\.0)[ \t]+([1-9][0-9]{2})(?=[ \t\r\n])")
_LONGEST_START = 32
"""Bytes of a status line within which its status must have come."""
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*:[ \t]*([^\r\n]*?)[ \t]*\r?\n")


def _headers_of(head: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The headers that can be read of an answer whose parser gave up; a line that breaks off is not one."""
    _, _, fields = head.partition(b"\n")
    if end := _END_OF_HEAD.search(head):
        fields = fields[: end.end() - (len(head) - len(fields))]
    found = (_FIELD.fullmatch(line) for line in fields.splitlines(keepends=True))
    return tuple((one[1], one[2]) for one in found if one)


def _judge(status: int, headers: tuple[tuple[bytes, bytes], ...]) -> Outcome:
    """What an answer means, by its status; and by one header, unless it is a success."""
    if 200 <= status < 300:
        return Outcome.DELIVERED
    if status == 410:
        return Outcome.GONE
    if _header(headers, b"webhook-delivery").lower() == "abort-message":
        return Outcome.ABORTED
    if status in (429, 503):
        return Outcome.THROTTLED
    return Outcome.REDIRECT if 300 <= status < 400 else Outcome.REJECTED


def _header(headers: tuple[tuple[bytes, bytes], ...], wanted: bytes) -> str:
    return next((value for name, value in headers if name.lower() == wanted), b"").decode("latin-1").strip()


def _is_disconnect(failure: Exception) -> bool:
    return isinstance(failure, aiohttp.ClientConnectionError) and not isinstance(failure, TimeoutError)


def _diagnose(failure: Exception) -> tuple[Outcome, str, str | None]:
    """Why there is no complete answer, in a few words, and the address where only the failure knows it."""
    cause = failure.os_error if isinstance(failure, aiohttp.ClientConnectorError) else failure
    match cause:
        case guard.UnsafeUrl():
            return Outcome.BLOCKED, cause.message, None
        case guard.Blocked():
            return Outcome.BLOCKED, str(cause), cause.address
        case guard.Unresolved():
            return Outcome.DNS, str(cause), None
        case guard.ResolverDown():
            return Outcome.INTERNAL, str(cause), None
        case aiohttp.ConnectionTimeoutError():
            return Outcome.TIMEOUT, "no connection in time", None
        case TimeoutError():
            return Outcome.TIMEOUT, "no complete answer in time", None
        case ssl.SSLCertVerificationError():
            return Outcome.TLS, f"the certificate is not accepted: {cause.verify_message}", None
        case ssl.SSLError():
            return Outcome.TLS, f"the TLS handshake failed: {cause.reason}", None
        case OSError(errno=number) if number in _OUR_ERRNOS:
            return Outcome.INTERNAL, os.strerror(number), None
        case OSError() if cause is not failure:
            return Outcome.CONNECT, os.strerror(cause.errno) if cause.errno else str(cause), None
        case aiohttp.ClientResponseError():
            return Outcome.PROTOCOL, "the answer is not HTTP: " + cause.message.partition("\n")[0][:120], None
        case _:
            return Outcome.RESET, "the connection broke before the answer was complete", None


def _hint(headers: tuple[tuple[bytes, bytes], ...]) -> timedelta | None:
    # A date in it is wall time, whatever the business clock says.
    return schedule.retry_after(_header(headers, b"retry-after"), datetime.now(UTC))


def _readable(raw: tuple[tuple[bytes, bytes], ...], most: int) -> tuple[tuple[str, str], ...]:
    """Headers as text that JSON and PostgreSQL take: no lone surrogates, and no more than `most` bytes of them."""
    kept, size = [], 0
    for name, value in raw:
        size += len(name) + len(value)
        if size > most:
            break
        kept.append((name.decode("utf-8", "replace"), value.decode("utf-8", "replace")))
    return tuple(kept)


def _since(began: float) -> timedelta:
    return timedelta(seconds=perf_counter() - began)
