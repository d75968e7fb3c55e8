"""One declaration per API call, four ways to make it.

A resource's method is declared once and returns a `Call`. The decorator decides what the caller gets from the client the
resource hangs on: the result (`Wabery`), an awaitable of it (`AsyncWabery`), or the raw answer of either. Type checkers see
the same, because the descriptors' overloads are chosen by the resource's view.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, overload

from wabery._core import Answer, Call, Core, Plan, decode
from wabery._models import Object
from wabery.errors import UnexpectedResponseError

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=Object)


class Sync:
    """Results, when the call returns."""


class Async:
    """Results, when awaited."""


class Raw:
    """`RawResponse`, when the call returns."""


class AsyncRaw:
    """`RawResponse`, when awaited."""


V = TypeVar("V")


class Transport(Protocol):
    """How a view makes calls: each method returns what that view's callers get."""

    core: Core

    def call(self, call: Call[Any]) -> Any: ...

    def flow(self, plan: Plan[Any]) -> Any: ...

    def pages(self, call: Call[Listing[Any]]) -> Any: ...


class Resource(Generic[V]):
    """A group of calls on one client."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport


@dataclass(frozen=True)
class RawResponse(Generic[T]):
    """A success as it came, with its headers."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    content: bytes
    call: Call[T]

    @property
    def request_id(self) -> str | None:
        return self.headers.get("wabery-request-id")

    def parse(self) -> T:
        """The object that the plain call would have returned."""
        return self.call.model(decode(Answer(self.status, self.headers, self.content)))

    def __repr__(self) -> str:
        return f"RawResponse(status={self.status}, request_id={self.request_id!r})"


class endpoint(Generic[P, T]):
    """A method that makes one call."""

    def __init__(self, declare: Callable[Concatenate[Any, P], Call[T]]) -> None:
        self._declare = declare
        functools.update_wrapper(self, declare)  # type: ignore[arg-type]  # keeps the docstring for help()

    @overload
    def __get__(self, resource: None, owner: type) -> Self: ...
    @overload
    def __get__(self, resource: Resource[Sync], owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, resource: Resource[Async], owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(self, resource: Resource[Raw], owner: type) -> Callable[P, RawResponse[T]]: ...
    @overload
    def __get__(
        self, resource: Resource[AsyncRaw], owner: type
    ) -> Callable[P, Coroutine[Any, Any, RawResponse[T]]]: ...
    def __get__(self, resource: Resource[Any] | None, owner: type) -> Any:
        if resource is None:
            return self
        return _bound(self._declare, resource, resource._transport.call)


class flow(Generic[P, T]):
    """A method that makes several calls. It has no raw answer of its own."""

    def __init__(self, declare: Callable[Concatenate[Any, P], Plan[T]]) -> None:
        self._declare = declare
        functools.update_wrapper(self, declare)  # type: ignore[arg-type]  # keeps the docstring for help()

    @overload
    def __get__(self, resource: None, owner: type) -> Self: ...
    @overload
    def __get__(self, resource: Resource[Sync], owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, resource: Resource[Async], owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, resource: Resource[Any] | None, owner: type) -> Any:
        if resource is None:
            return self
        return _bound(self._declare, resource, resource._transport.flow)


class listing(Generic[P, M]):
    """A method that lists objects, a page at a time or all of them."""

    def __init__(self, declare: Callable[Concatenate[Any, P], Call[Listing[M]]]) -> None:
        self._declare = declare
        functools.update_wrapper(self, declare)  # type: ignore[arg-type]  # keeps the docstring for help()

    @overload
    def __get__(self, resource: None, owner: type) -> Self: ...
    @overload
    def __get__(self, resource: Resource[Sync], owner: type) -> Callable[P, Page[M]]: ...
    @overload
    def __get__(self, resource: Resource[Async], owner: type) -> Callable[P, AsyncPages[M]]: ...
    @overload
    def __get__(self, resource: Resource[Raw], owner: type) -> Callable[P, RawResponse[Listing[M]]]: ...
    @overload
    def __get__(
        self, resource: Resource[AsyncRaw], owner: type
    ) -> Callable[P, Coroutine[Any, Any, RawResponse[Listing[M]]]]: ...
    def __get__(self, resource: Resource[Any] | None, owner: type) -> Any:
        if resource is None:
            return self
        return _bound(self._declare, resource, resource._transport.pages)


def _bound(
    declare: Callable[..., Any], resource: Resource[Any], make: Callable[[Any], Any]
) -> Callable[..., Any]:
    @functools.wraps(declare)
    def method(*args: Any, **kwargs: Any) -> Any:
        return make(declare(resource, *args, **kwargs))

    return method


class Listing(Generic[M]):
    """One page of a list: its objects, and whether there are more."""

    data: list[M]
    has_more: bool
    next_cursor: str | None

    def __init__(self, body: dict[str, Any], model: Callable[[dict[str, Any]], M]) -> None:
        items = body.get("data")
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise UnexpectedResponseError("A list answer without a list of objects in `data`.")
        cursor = body.get("next_cursor")
        self.data = [model(item) for item in items]
        self.has_more = bool(body.get("has_more"))
        self.next_cursor = cursor if isinstance(cursor, str) else None
        self._body = body
        if self.has_more and not self.next_cursor:
            raise UnexpectedResponseError("A list answer with more to come but without `next_cursor`.")

    def to_dict(self) -> dict[str, Any]:
        """The page's JSON as it came."""
        return dict(self._body)

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.data)} objects, has_more={self.has_more})"


class Page(Listing[M]):
    """A page that can turn itself: iterating gives every object of this page and of all that follow."""

    def __init__(self, listing: Listing[M], turn: Callable[[str], Page[M]]) -> None:
        self.__dict__.update(listing.__dict__)
        self._turn = turn

    def next_page(self) -> Page[M] | None:
        """The page after this one; None after the last."""
        return self._turn(self.next_cursor) if self.has_more and self.next_cursor else None

    def __iter__(self) -> Iterator[M]:
        page: Page[M] | None = self
        while page is not None:
            yield from page.data
            page = page.next_page()


class AsyncPage(Listing[M]):
    """A page that can turn itself: `async for` gives every object of this page and of all that follow."""

    def __init__(self, listing: Listing[M], turn: Callable[[str], Coroutine[Any, Any, AsyncPage[M]]]) -> None:
        self.__dict__.update(listing.__dict__)
        self._turn = turn

    async def next_page(self) -> AsyncPage[M] | None:
        """The page after this one; None after the last."""
        return await self._turn(self.next_cursor) if self.has_more and self.next_cursor else None

    async def __aiter__(self) -> AsyncIterator[M]:
        page: AsyncPage[M] | None = self
        while page is not None:
            for item in page.data:
                yield item
            page = await page.next_page()


class AsyncPages(Generic[M]):
    """A list not yet asked for: `await` it for the first page, or go through all of it with `async for`."""

    def __init__(self, first: Callable[[], Coroutine[Any, Any, AsyncPage[M]]]) -> None:
        self._first = first

    def __await__(self) -> Generator[Any, Any, AsyncPage[M]]:
        return self._first().__await__()

    async def __aiter__(self) -> AsyncIterator[M]:
        async for item in await self._first():
            yield item


def turned(call: Call[T], cursor: str) -> Call[T]:
    """The same list call, from a cursor on."""
    return replace(call, query={**call.query, "cursor": cursor})
