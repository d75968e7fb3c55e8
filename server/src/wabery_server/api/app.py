"""From a socket to a handler and back: request id, size, key, limits, idempotency, and every refusal as the contract's body.

One path serves all calls. A handler that reads, or that writes through a batcher, returns its answer. A handler marked
`writes` prepares and returns a `Write`: the transaction in which the call takes effect and in which its answer is kept
for its Idempotency-Key.
"""

import asyncio
import contextlib
import hashlib
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from wabery_server import errors, idempotency, ids, logs, metrics
from wabery_server.accounts import Caller
from wabery_server.accounts import Scope as KeyScope
from wabery_server.api.call import Answer, Call, Headers, Stream, Write, gone
from wabery_server.api.service import Service
from wabery_server.db import Conflict, Tx
from wabery_server.idempotency import Key, Stored
from wabery_server.settings import Settings
from wabery_server.web import Refusal, client_address
from wabery_server.web.address import Network, is_trusted

VERSION = "2026-11-23"
"""`Wabery-Version`: every handler of this build answers with it."""

PUBLISHABLE_KEY = "x-wabery-publishable-key"
CLIENT_SECRET = "x-wabery-client-secret"
_PUBLISHABLE_KEY = PUBLISHABLE_KEY.encode()
_SINGLE = (b"authorization", _PUBLISHABLE_KEY, CLIENT_SECRET.encode(), b"origin", b"idempotency-key")
_EXPOSED = (
    "Retry-After, RateLimit, RateLimit-Policy, ETag, Idempotency-Replayed, Wabery-Version, Wabery-Request-Id"
)
_ALLOWED_HEADERS = (
    "content-type, idempotency-key, if-none-match, x-wabery-client-secret, x-wabery-publishable-key"
)
_PREFLIGHT_SECONDS = "7200"

Handler = Callable[[Call], Awaitable[Answer]]
Preparer = Callable[[Call], Awaitable[Write]]

_encode = msgspec.json.Encoder().encode
_VERSION_HEADER = (b"wabery-version", VERSION.encode())
_PARAMETER = re.compile(r"\{(\w+)\}")
_CODING = re.compile(rb"([a-z*-]+)[ \t]*(?:;[ \t]*q=([0-9.]*))?")
_ENTITY_TAG = re.compile(rb'(?:W/)?("[^"]*")')
_NO_STORE = (b"cache-control", b"no-store")
_JSON = (b"content-type", b"application/json")


class Operation(NamedTuple):
    """One line of the routes table."""

    method: str
    path: str
    handler: Handler | Preparer
    summary: str
    scope: KeyScope | None = None
    """What a secret key needs; None with `open`: no key at all."""
    publishable: bool = False
    """Whether a publishable key may call it, from a browser too."""
    writes: bool = False
    """Whether the handler prepares a `Write`, which then runs in a transaction."""
    admits: Callable[[Call], object] | None = None
    """For a handler that writes: refuses a caller, by a client secret say, before a stored answer is replayed."""
    open: bool = False
    max_body: int | None = None
    """Bytes; None: the setting."""
    takes: type | None = None
    """What the body is."""
    gives: object = None
    """What the answer is, for the contract."""
    query: tuple[str, ...] = ()
    """Query parameters; others are refused."""


def application(service: Service, operations: list[Operation], extra: list[BaseRoute]) -> ASGIApp:
    """The ASGI application: the table's paths in its order, then `extra`, then 404 without a version."""
    paths: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = operation
    resources = {path: Resource(service, path, methods) for path, methods in paths.items()}
    for route in extra:
        assert isinstance(route, Route)
        route.app = refusing(route.app, service.settings)
    router = Router(extra, redirect_slashes=False, default=Resource(service, "(unknown)", {}))
    # One expression finds the path and its parameter; the number of its only group says which path it was.
    varying = [(path, _PARAMETER.findall(path)) for path in resources if "{" in path]
    assert all(len(names) == 1 for _, names in varying)
    shapes = [re.escape(path).replace(rf"\{{{name}\}}", "([^/]+)") for path, (name,) in varying]
    match_varying = re.compile("|".join(shapes)).fullmatch
    found_by = [(resources.pop(path), name) for path, (name,) in varying]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        resource = resources.get(path)
        if resource is None and (match := match_varying(path)) is not None:
            assert match.lastindex is not None
            resource, name = found_by[match.lastindex - 1]
            scope["path_params"] = {name: match[match.lastindex]}
        await (resource or router)(scope, receive, send)

    return app


def refusing(app: ASGIApp, settings: Settings) -> ASGIApp:
    """An application whose refusals are answered with the contract's body."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except errors.WaberyError as refusal:
            request_id = ids.new("req", datetime.now(UTC))
            out = [(b"wabery-request-id", request_id.encode())]
            answer = refused(refusal, request_id, out, settings)
            await respond(send, answer, out, scope["method"])

    return guarded


class Resource:
    """Every method of one path; `path` is what the log says of it."""

    def __init__(self, service: Service, path: str, methods: Mapping[str, Operation]) -> None:
        self._service = service
        self._path = path
        self._methods = methods
        self._browsers = any(operation.publishable for operation in methods.values())
        self._trusted = service.settings.trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return None
        started = time.perf_counter()
        headers = Headers(scope["headers"])
        request_id = ids.new("req", self._service.clock.now())
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        out: list[tuple[bytes, bytes]] = [(b"wabery-request-id", request_id.encode())]
        origin = headers.get(b"origin")
        if self._browsers and origin is not None:
            out += _cors(origin)
        who: Caller | None = None
        try:
            operation = self._methods.get(method)
            if operation is None:
                if method == "OPTIONS" and self._browsers:
                    return await respond(
                        send, Answer(b"", 204), [*out, *_preflight(self._methods)], scope["method"]
                    )
                raise _unserved(self._methods, out)
            out.append(_VERSION_HEADER)
            if not operation.open:
                who = await identify(self._service, headers, operation, out)
            # Only now: a caller without a key does not make the server read, or keep, a body.
            body = await _body(receive, headers, operation.max_body or self._service.settings.max_body)
            if "\0" in scope["path"]:
                raise errors.NotFound  # no id of ours holds one, and PostgreSQL's text cannot
            call = Call(
                self._service,
                who,
                method=method,
                path=scope["path"],
                params=scope.get("path_params", {}),
                query_string=scope["query_string"],
                headers=headers,
                body=body,
                receive=receive,
                request_id=request_id,
                ip=_client_ip(scope, headers, self._trusted),
                out=out,
            )
            if scope["query_string"] and not operation.open:
                call.known_query(*operation.query)
            answer = await _run(operation, call)
        except errors.WaberyError as refusal:
            if refusal.status == errors.Unavailable.status:
                self._service.readiness.notice(refusal)
            answer = refused(refusal, request_id, out, self._service.settings)
        except Exception as failure:  # noqa: BLE001  # whatever it is, the caller is answered and the log has it
            self._service.readiness.notice(failure)
            logs.log.exception("internal_error", extra={"facts": {"request_id": request_id}})
            answer = refused(errors.InternalError(), request_id, out, self._service.settings)
        await respond(send, answer, out, scope["method"], receive)
        if logs.log.isEnabledFor(logging.INFO):
            logs.line(
                "request",
                request_id=request_id,
                method=scope["method"],
                path=self._path,
                status=answer.status,
                key_id=who.key.id if who else None,
                ms=round((time.perf_counter() - started) * 1000, 2),
            )
        return None


async def identify(
    service: Service, headers: Headers, operation: Operation, out: list[tuple[bytes, bytes]]
) -> Caller:
    """Whose key this is, and whether this call, from this place, is open to it.

    Raises errors.InvalidRequest, MissingApiKey, InvalidApiKey, KeyExpired, SecretKeyInBrowser, OriginRequired,
    OriginNotAllowed, InsufficientScope, RateLimited.
    """
    # A proxy may read the first of two and this server the last.
    if (twice := headers.repeated(_SINGLE)) is not None:
        raise errors.InvalidRequest(f"There is more than one {twice} header.", hint="Send it once.")
    authorization = headers.get(b"authorization")
    publishable = headers.get(_PUBLISHABLE_KEY)
    origin = headers.get(b"origin")
    if authorization is not None:
        if publishable is not None:
            raise errors.InvalidRequest("Send one key: either Authorization or x-wabery-publishable-key.")
        kind, _, presented = authorization.partition(" ")
        presented = presented.strip()
        if kind.lower() != "bearer" or not presented:
            raise errors.InvalidApiKey("Authorization must be `Bearer` and a secret key.")
        if presented.startswith("wab_pub_"):
            raise errors.InvalidApiKey(
                "A publishable key was sent as a secret key.",
                hint=f"Send it in the {PUBLISHABLE_KEY} header.",
            )
        if origin is not None:
            raise errors.SecretKeyInBrowser
        who = await service.directory.caller(presented)
        service.directory.used(who.key)
        if operation.scope is not None:
            who.require(operation.scope)
        allowance = service.per_secret_key.take(who.key.id)
        if not allowance.allowed:
            out += allowance.headers()
            raise errors.RateLimited(
                f"Too many requests (limit: {allowance.name}).", retry_after=allowance.retry_after
            )
        return who
    if publishable is None:
        raise errors.MissingApiKey
    if not publishable.startswith("wab_pub_"):
        raise errors.InvalidApiKey(
            "A secret key was sent as a publishable key.",
            hint="Send it as `Authorization: Bearer`, from a server.",
        )
    who = await service.directory.caller(publishable)
    service.directory.used(who.key)
    if not operation.publishable:
        raise errors.InsufficientScope(
            "A publishable key may only create and read registration intents.",
            hint="Use a secret key on your server.",
        )
    if who.key.allowed_origins:
        if origin is None:
            raise errors.OriginRequired
        if origin not in who.key.allowed_origins:
            raise errors.OriginNotAllowed(f"This publishable key may not be used from {origin[:200]}.")
    return who


def refused(
    refusal: errors.WaberyError, request_id: str, out: list[tuple[bytes, bytes]], settings: Settings
) -> Answer:
    """The contract's error body; `out` gets `Retry-After` where the refusal names one."""
    if refusal.retry_after is not None:
        out.append((b"retry-after", str(max(1, math.ceil(refusal.retry_after))).encode()))
    body = {
        "error": refusal.code,
        "message": refusal.message,
        "param": refusal.param,
        "hint": refusal.hint,
        "doc_url": f"{public_base(settings)}/errors/{refusal.code}",
        "request_id": request_id,
    }
    return Answer(_encode({name: value for name, value in body.items() if value is not None}), refusal.status)


def edge_refusals(settings: Settings) -> Refusal:
    """How the HTTP server answers what never reaches a resource, such as a head that is too large."""

    def refuse(refusal: errors.WaberyError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        request_id = ids.new("req", datetime.now(UTC))
        out = [(b"wabery-request-id", request_id.encode()), _VERSION_HEADER]
        answer = refused(refusal, request_id, out, settings)
        return answer.status, [*out, _NO_STORE, _JSON], answer.body

    return refuse


def _client_ip(scope: Scope, headers: Headers, trusted: tuple[Network, ...]) -> str:
    """The caller's address: the peer, or the last one that no trusted proxy vouches for."""
    peer = scope["client"][0] if scope.get("client") else ""
    forwarded = b",".join(headers.all(b"x-forwarded-for")).decode("latin-1")
    if not forwarded and not trusted:
        return peer
    if forwarded and not is_trusted(peer, trusted):
        _UNTRUSTED.hit(peer=peer)
    return client_address(peer, forwarded, trusted)


_UNTRUSTED = metrics.bound(
    "forwarded_headers_untrusted",
    "Requests with X-Forwarded-For from a peer that WABERY_TRUSTED_PROXIES does not name.",
)


async def _run(operation: Operation, call: Call) -> Answer:
    if not operation.writes:
        return await operation.handler(call)  # type: ignore[return-value]  # the table says which kind it is
    if operation.admits is not None:
        operation.admits(call)
    key = call.idempotency_key()
    if key is None:
        write: Write = await operation.handler(call)  # type: ignore[assignment]  # likewise
        answer = await call.run(write)
        return call.committed(answer)
    # Equal keys take turns here, so that the second finds the first one's answer instead of waiting in the database.
    async with call.service.same_key.turn(key.identity):
        return await _run_once(operation, call, key)


async def _run_once(operation: Operation, call: Call, key: Key) -> Answer:
    """A write whose answer is kept under `key`, or the answer that was kept before.

    1. A stored answer is replayed, without any work.
    2. What is slow happens before the transaction.
    3. The write and its answer are committed together. Where another process has just used the key, its answer is
       replayed, also when its effect is what makes this write be refused.
    """
    service = call.service
    replayed: list[Stored] = []

    async def before(tx: Tx) -> Stored | None:
        return await idempotency.answered(tx, key, keyring=service.keyring, at=service.clock.now())

    if (stored := await call.run(before)) is not None:
        return call.replayed(stored)
    write: Write = await operation.handler(call)  # type: ignore[assignment]  # as in `_run`

    async def once(tx: Tx) -> Answer:
        if tx.again and (stored := await before(tx)) is not None:
            replayed.append(stored)
            return call.replayed(stored)
        answer = await write(tx)
        rows = [(key, Stored(answer.status, answer.body), answer.object_ids)]
        keep = service.settings.idempotency_keep
        at = service.clock.now()
        (taken,) = await idempotency.claim(tx, rows, keyring=service.keyring, at=at, keep=keep)
        if taken is not None:
            raise Conflict("the same Idempotency-Key has just been answered")
        return answer

    try:
        answer = await call.run(once)
    except errors.Unavailable:
        raise
    except errors.WaberyError:
        if (stored := await call.run(before)) is not None:
            return call.replayed(stored)
        raise
    return answer if replayed else call.committed(answer)


async def _body(receive: Receive, headers: Headers, most: int) -> bytes:
    length = headers.get(b"content-length")
    if length is not None and length.isdigit() and int(length) > most:
        raise errors.PayloadTooLarge(f"The body may take {most} bytes.")
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise errors.InvalidRequest("The connection was closed before the body was complete.")
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
        size += len(parts[-1])
        if size > most:
            raise errors.PayloadTooLarge(f"The body may take {most} bytes.")
    return b"".join(parts)


async def respond(
    send: Send,
    answer: Answer,
    out: list[tuple[bytes, bytes]],
    method: str,
    receive: Receive | None = None,
) -> None:
    """Sends an answer; one that is a stream ends early when `receive` says that its reader has gone."""
    headers = [*out, *answer.headers, _NO_STORE]
    if answer.body and not (answer.headers and any(name == b"content-type" for name, _ in answer.headers)):
        headers.append(_JSON)
    with contextlib.suppress(OSError):
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        if answer.stream is not None and receive is not None and method != "HEAD":
            await _send_parts(send, answer.stream, receive)
        await send({"type": "http.response.body", "body": answer.body})


async def _send_parts(send: Send, stream: Stream, receive: Receive) -> None:
    async def parts() -> None:
        async with contextlib.aclosing(stream):
            async for part in stream:
                await send({"type": "http.response.body", "body": part, "more_body": True})

    sending, leaving = asyncio.ensure_future(parts()), asyncio.ensure_future(gone(receive))
    try:
        # To a connection that is closed, sending is silently nothing: the stream would go on for nobody.
        await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not sending.done():
            sending.cancel()
        await asyncio.wait((sending, leaving))
    if not sending.cancelled():
        sending.result()


def etag(body: bytes) -> bytes:
    return b'"' + hashlib.blake2b(body, digest_size=9).hexdigest().encode() + b'"'


def takes_gzip(headers: Headers) -> bool:
    """Whether the caller's `Accept-Encoding` allows gzip (RFC 9110, 12.5.3)."""
    given = b",".join(headers.all(b"accept-encoding")).lower()
    weights = dict(_CODING.findall(given))
    weight = weights.get(b"gzip", weights.get(b"*"))
    return weight is not None and (weight == b"" or weight.strip(b"0.") != b"")


def not_modified(headers: Headers, tag: bytes) -> bool:
    """Whether the caller already has this version: `If-None-Match` may be `*` or a list, and tags are compared weakly.

    (RFC 9110, 13.1.2 and 8.8.3.2.)
    """
    given = headers.all(b"if-none-match")
    if not given:
        return False
    whole = b",".join(given)
    return whole.strip() == b"*" or tag.removeprefix(b"W/") in _ENTITY_TAG.findall(whole)


def _unserved(methods: Mapping[str, Operation], out: list[tuple[bytes, bytes]]) -> errors.WaberyError:
    if not methods:
        return errors.UnknownPath()
    out.append((b"allow", ", ".join(sorted(methods)).encode()))
    return errors.MethodNotAllowed(hint=f"It takes {', '.join(sorted(methods))}.")


def _cors(origin: str) -> list[tuple[bytes, bytes]]:
    """Errors too must be readable by the page; the origin itself is judged with the key."""
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"vary", b"Origin"),
        (b"access-control-expose-headers", _EXPOSED.encode()),
    ]


def _preflight(methods: Mapping[str, Operation]) -> list[tuple[bytes, bytes]]:
    allowed = sorted(name for name, operation in methods.items() if operation.publishable)
    return [
        (b"access-control-allow-methods", ", ".join(allowed).encode()),
        (b"access-control-allow-headers", _ALLOWED_HEADERS.encode()),
        (b"access-control-max-age", _PREFLIGHT_SECONDS.encode()),
    ]


def public_base(settings: Settings) -> str:
    """Where this server is reached, without a trailing slash."""
    return (settings.public_url or f"http://{settings.host}:{settings.port}").rstrip("/")
