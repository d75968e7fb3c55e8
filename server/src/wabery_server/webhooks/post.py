"""One delivery attempt: POST the body, read a bounded answer, say what became of it.

Whatever the far side does is an `Outcome`, never an exception. A poster keeps connections alive and shares nothing
else between endpoints: no cookies, no redirects, no proxy or credentials from the environment.
"""

import errno
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache, partial
from time import perf_counter
from typing import Self, cast

import aiohttp
import msgspec

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
    """The connection broke before the answer was complete."""
    PROTOCOL = "protocol"
    """The answer is not HTTP, or its headers are too large."""
    BLOCKED = "blocked"
    """The URL leads to an address, port or scheme that webhooks may not go to."""
    INTERNAL = "internal"
    """Our own fault (resolver, file descriptors): not to be charged to the endpoint."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt, as it is logged."""

    outcome: Outcome
    elapsed: timedelta
    status: int | None = None
    """Also set when the answer broke off after its headers."""
    retry_after: timedelta | None = None
    """Only with `throttled`; at most 24 hours."""
    response_headers: tuple[tuple[str, str], ...] = ()
    response_body: bytes = b""
    """The first 16 KiB, as they came: compressed stays compressed."""
    address: str | None = None
    """The IP address that was connected to, or blocked."""
    error: str | None = None
    """What went wrong before a complete answer, in a few words."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one attempt."""

    dns: timedelta = timedelta(seconds=3)
    connect: timedelta = timedelta(seconds=5)
    """TCP and TLS together."""
    total: timedelta = timedelta(seconds=15)
    """Until the last byte of the answer."""
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
        limits = self._limits
        dns, connect, total = (each.total_seconds() for each in (limits.dns, limits.connect, limits.total))
        self._resolver = guard.Resolver(self._policy, limits.dns, self._lookup)
        self._connector = aiohttp.TCPConnector(
            resolver=self._resolver,
            socket_factory=guard.socket_factory(self._policy),
            ttl_dns_cache=int(self.DNS_TTL.total_seconds()),
            dns_cache_max_size=10_000,
            keepalive_timeout=self.KEEP_ALIVE.total_seconds(),
            limit=0,  # the worker bounds what is under way; waiting here would be charged to the endpoint
            ssl=self._tls or True,
        )
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            # aiohttp rounds times above the threshold up to whole seconds of its clock
            timeout=aiohttp.ClientTimeout(
                total, connect=dns + connect, sock_connect=connect, ceil_threshold=3600
            ),
            headers={
                "User-Agent": f"Wabery/{__version__}",
                "Content-Type": "application/json",
                "Accept": "*/*",
                "Accept-Encoding": "identity",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            response_class=_Response,
            auto_decompress=False,
            trust_env=False,
            read_bufsize=limits.keep,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._resolver.close()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Result:
        """One attempt. Never raises for what the far side does; a cancelled one drops its connection."""
        began = perf_counter()
        response: aiohttp.ClientResponse | None = None
        error: str | None = None
        try:
            target = self._target(url)
            async with self._session.post(
                target, data=body, headers=headers, allow_redirects=False
            ) as response:
                kept = await self._read(response.content)
        except (guard.UnsafeUrl, aiohttp.ClientError, OSError) as failure:
            outcome, error, address = _diagnose(failure)
            if outcome in (Outcome.CONNECT, Outcome.TIMEOUT):
                self._connector.clear_dns_cache(target.raw_host, target.port)  # it may have moved
            if response is None:
                return Result(outcome=outcome, elapsed=_since(began), address=address, error=error)
            kept = b""
        else:
            outcome = _judge(response)
        return Result(
            outcome=outcome,
            elapsed=_since(began),
            status=response.status,
            retry_after=_hint(response) if outcome is Outcome.THROTTLED else None,
            response_headers=_readable(response.raw_headers, self._limits.keep),
            response_body=kept,
            address=cast(_Response, response).address,
            error=error,
        )

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


class _Response(aiohttp.ClientResponse):
    """Remembers who answered: a response without a body has given its connection back before anyone can look."""

    address: str | None = None

    async def start(self, connection: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        if transport := connection.transport:
            self.address = transport.get_extra_info("peername")[0]
        return await super().start(connection)


def _judge(response: aiohttp.ClientResponse) -> Outcome:
    """What a complete answer means."""
    status = response.status
    if 200 <= status < 300:
        return Outcome.DELIVERED
    if status == 410:
        return Outcome.GONE
    if response.headers.get("webhook-delivery", "").strip().lower() == "abort-message":
        return Outcome.ABORTED
    if status in (429, 503):
        return Outcome.THROTTLED
    return Outcome.REDIRECT if 300 <= status < 400 else Outcome.REJECTED


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


def _hint(response: aiohttp.ClientResponse) -> timedelta | None:
    # A date in it is wall time, whatever the business clock says.
    return schedule.retry_after(response.headers.get("retry-after", ""), datetime.now(UTC))


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
