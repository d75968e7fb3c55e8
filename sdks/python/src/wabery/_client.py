"""`Wabery` and `AsyncWabery`: the two thin drivers of the plans that `_core` makes, each with one pool of connections."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import httpx2

from wabery import webhooks
from wabery._core import (
    NOT_GIVEN,
    Answer,
    Call,
    Core,
    NotGiven,
    Pause,
    Plan,
    Request,
    connection_error,
    is_loopback,
    rejected_environment,
)
from wabery._logs import configure
from wabery._views import (
    Async,
    AsyncPage,
    AsyncPages,
    AsyncRaw,
    Listing,
    Page,
    Raw,
    RawResponse,
    Sync,
    turned,
)
from wabery.errors import APIConnectionError, UsageError
from wabery.resources import Resources

T = TypeVar("T")
H = TypeVar("H")


class _Client:
    """What both clients are: settings and names."""

    _core: Core
    webhooks = webhooks
    """`client.webhooks.unwrap(body, headers, secret=…)`; needs no client and no network."""

    @property
    def base_url(self) -> str:
        return self._core.base_url

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self.base_url!r})"


class Wabery(_Client, Resources[Sync]):
    """A client whose calls block. Make one and keep it: it holds the connections and may be shared by threads.

    api_key: secret (`wab_live_…`, `wab_test_…`) or publishable (`wab_pub_…`); else WABERY_API_KEY.
    base_url: with `/v1` at its end; else WABERY_BASE_URL, else https://api.wabery.com/v1.
    timeout: seconds for each attempt; None waits for ever. max_retries: attempts after the first.
    http_client: your own, which you also close.
    """

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout: float | None = 30.0,
        max_retries: int = 2,
        http_client: httpx2.Client | None = None,
        default_headers: Mapping[str, str] | None = None,
    ) -> None:
        configure()
        self._core = Core.configure(api_key, base_url, timeout, max_retries, default_headers)
        self._owns_http = http_client is None
        self._http = http_client or _opened(httpx2.Client, self._core)
        super().__init__(_SyncTransport(self._core, self._http))

    @property
    def with_raw_response(self) -> Resources[Raw]:
        """The same calls, answered with `RawResponse`: status, headers, bytes, and `parse()`."""
        return Resources[Raw](_RawTransport(self._core, self._http))

    def with_options(
        self,
        *,
        timeout: float | None | NotGiven = NOT_GIVEN,
        max_retries: int | NotGiven = NOT_GIVEN,
        default_headers: Mapping[str, str] | NotGiven = NOT_GIVEN,
    ) -> Wabery:
        """A client with other settings on the same connections; closing it closes nothing."""
        other = object.__new__(Wabery)
        other._core = self._core.with_options(timeout, max_retries, default_headers)
        other._owns_http = False
        other._http = self._http
        Resources.__init__(other, _SyncTransport(other._core, other._http))
        return other

    def close(self) -> None:
        """Close the connections, unless the HTTP client was given by you."""
        if self._owns_http:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncWabery(_Client, Resources[Async]):
    """A client whose calls are awaited, on asyncio. Make one per event loop and keep it. Arguments as for `Wabery`."""

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout: float | None = 30.0,
        max_retries: int = 2,
        http_client: httpx2.AsyncClient | None = None,
        default_headers: Mapping[str, str] | None = None,
    ) -> None:
        configure()
        self._core = Core.configure(api_key, base_url, timeout, max_retries, default_headers)
        self._owns_http = http_client is None
        self._http = http_client or _opened(httpx2.AsyncClient, self._core)
        super().__init__(_AsyncTransport(self._core, self._http))

    @property
    def with_raw_response(self) -> Resources[AsyncRaw]:
        """The same calls, answered with `RawResponse`: status, headers, bytes, and `parse()`."""
        return Resources[AsyncRaw](_AsyncRawTransport(self._core, self._http))

    def with_options(
        self,
        *,
        timeout: float | None | NotGiven = NOT_GIVEN,
        max_retries: int | NotGiven = NOT_GIVEN,
        default_headers: Mapping[str, str] | NotGiven = NOT_GIVEN,
    ) -> AsyncWabery:
        """A client with other settings on the same connections; closing it closes nothing."""
        other = object.__new__(AsyncWabery)
        other._core = self._core.with_options(timeout, max_retries, default_headers)
        other._owns_http = False
        other._http = self._http
        Resources.__init__(other, _AsyncTransport(other._core, other._http))
        return other

    async def close(self) -> None:
        """Close the connections, unless the HTTP client was given by you."""
        if self._owns_http:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _opened(kind: Callable[..., H], core: Core) -> H:
    """The HTTP library's client. It reads variables of the environment; raises UsageError naming one that it rejects."""
    try:
        # A proxy from the environment could not reach a server on this machine.
        return kind(trust_env=not is_loopback(core.base_url))
    except (ImportError, ValueError, OSError, TypeError, httpx2.InvalidURL) as cause:
        message, hint = rejected_environment(cause)
        raise UsageError(message, hint=hint) from cause


class _SyncDriver:
    def __init__(self, core: Core, http: httpx2.Client) -> None:
        self.core = core
        self._http = http

    def flow(self, plan: Plan[T]) -> T:
        try:
            step = next(plan)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = next(plan)
                    continue
                try:
                    answer = self._send(step)
                except APIConnectionError as broken:
                    step = plan.throw(broken)
                else:
                    step = plan.send(answer)
        except StopIteration as end:
            return cast(T, end.value)

    def _send(self, request: Request) -> Answer:
        deadline = math.inf if request.timeout is None else time.monotonic() + request.timeout
        content = bytearray()
        try:
            with self._http.stream(
                request.method,
                request.url,
                headers=request.headers,
                content=request.content,
                timeout=request.timeout,
                follow_redirects=False,  # a redirect must not carry a key to another host
            ) as response:
                for piece in response.iter_bytes():
                    content += piece
                    # The HTTP library's own timeout begins anew with every byte.
                    if time.monotonic() > deadline:
                        raise connection_error(request.url, TimeoutError(), timed_out=True)
        except (httpx2.RequestError, httpx2.InvalidURL) as cause:
            raise _translated(request, cause) from cause
        return _answer(response, content)


class _AsyncDriver:
    def __init__(self, core: Core, http: httpx2.AsyncClient) -> None:
        self.core = core
        self._http = http

    async def flow(self, plan: Plan[T]) -> T:
        try:
            step = next(plan)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = next(plan)
                    continue
                try:
                    answer = await self._send(step)
                except APIConnectionError as broken:
                    step = plan.throw(broken)
                else:
                    step = plan.send(answer)
        except StopIteration as end:
            return cast(T, end.value)

    async def _send(self, request: Request) -> Answer:
        try:
            async with asyncio.timeout(request.timeout):
                response = await self._http.request(
                    request.method,
                    request.url,
                    headers=request.headers,
                    content=request.content,
                    timeout=request.timeout,
                    follow_redirects=False,
                )
        except (httpx2.RequestError, httpx2.InvalidURL, TimeoutError) as cause:
            raise _translated(request, cause) from cause
        return _answer(response, response.content)


def _answer(response: httpx2.Response, content: bytes | bytearray) -> Answer:
    return Answer(
        response.status_code,
        {name.lower(): value for name, value in response.headers.items()},
        bytes(content),
    )


def _translated(request: Request, cause: Exception) -> Exception:
    """Our error for one of the HTTP library's."""
    if isinstance(cause, httpx2.UnsupportedProtocol | httpx2.InvalidURL | httpx2.LocalProtocolError):
        return UsageError(f"This request cannot be sent: {cause}.")
    timed_out = isinstance(cause, httpx2.TimeoutException | TimeoutError)
    reached = not isinstance(cause, httpx2.ConnectError | httpx2.ProxyError)
    return connection_error(request.url, cause, timed_out=timed_out, reached=reached)


class _SyncTransport(_SyncDriver):
    def call(self, call: Call[T]) -> T:
        return self.flow(self.core.fetch(call))

    def pages(self, call: Call[Listing[Any]]) -> Page[Any]:
        return Page(self.call(call), lambda cursor: self.pages(turned(call, cursor)))


class _AsyncTransport(_AsyncDriver):
    def call(self, call: Call[T]) -> Coroutine[Any, Any, T]:
        return self.flow(self.core.fetch(call))

    def pages(self, call: Call[Listing[Any]]) -> AsyncPages[Any]:
        return AsyncPages(self._turn(call))

    def _turn(self, call: Call[Listing[Any]]) -> Callable[[], Coroutine[Any, Any, AsyncPage[Any]]]:
        async def page() -> AsyncPage[Any]:
            return AsyncPage(await self.call(call), lambda cursor: self._turn(turned(call, cursor))())

        return page


class _RawTransport(_SyncDriver):
    def call(self, call: Call[T]) -> RawResponse[T]:
        return self.flow(_raw(self.core, call))

    pages = call


class _AsyncRawTransport(_AsyncDriver):
    def call(self, call: Call[T]) -> Coroutine[Any, Any, RawResponse[T]]:
        return self.flow(_raw(self.core, call))

    pages = call


def _raw(core: Core, call: Call[T]) -> Plan[RawResponse[T]]:
    answer = yield from core.exchange(call)
    return RawResponse(answer.status, dict(answer.headers), answer.content, call)
