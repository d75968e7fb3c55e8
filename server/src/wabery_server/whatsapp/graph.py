"""Meta's Graph API, read with a channel's access token.

The token travels in the Authorization header, never in a URL. Meta repeats it in the links to next pages and in some
error messages, so it is taken out of an answer before anything reads that; messages meant for people are not kept at
all. What went wrong is told by `error.code`, since one HTTP status stands for many causes.

Sources: Meta, "Cloud API error codes", "Graph API changelog", "Debug token".
"""

import enum
import re
from collections.abc import Mapping
from datetime import date
from typing import Final, TypeVar

import aiohttp
import msgspec
from msgspec import Struct

T = TypeVar("T")

SUNSETS: Final[Mapping[int, date]] = {
    21: date(2027, 1, 21),
    22: date(2027, 5, 20),
    23: date(2027, 10, 8),
    24: date(2028, 2, 18),
    25: date(2028, 7, 29),
}
"""When Meta stops serving a major version; older ones are gone, the end of newer ones is not announced."""

_PATIENCE = aiohttp.ClientTimeout(total=5, connect=3)
_LONGEST = 1024 * 1024
"""Bytes of an answer that are read; a page of a hundred numbers takes some tens of thousands."""
_TRACE = re.compile(r"[\w-]{1,64}")


class Trouble(enum.StrEnum):
    """Why a question to Meta was not answered, by what has to be done about it."""

    UNREACHABLE = "unreachable"
    """No answer in time."""
    STRANGE = "strange"
    """An answer that is not the Graph API's."""
    TOKEN = "token"
    """The access token is not valid, or not any more."""
    PERMISSION = "permission"
    """The token may not see this; Meta gives the same answer when there is no such thing."""
    ACCOUNT = "account"
    """The account or the number is restricted, locked or not registered."""
    THROTTLED = "throttled"
    """Too many calls."""
    TRANSIENT = "transient"
    """Trouble of Meta's own."""
    QUESTION = "question"
    """Meta does not understand the question, or answers with a code that is not known here."""


class GraphError(Exception):
    """A question was not answered. Holds nothing that Meta has worded."""

    def __init__(self, trouble: Trouble, code: str | None = None, trace: str | None = None) -> None:
        super().__init__(f"{trouble} {code or ''}".rstrip())
        self.trouble = trouble
        self.code = code
        """Meta's error code, with its subcode after a dot where it tells more."""
        self.trace = trace
        """Meta's `fbtrace_id`, for its support."""


class _Error(Struct):
    code: int = -1
    error_subcode: int | None = None
    fbtrace_id: str | None = None


class _Answer(Struct):
    error: _Error | None = None


_answer = msgspec.json.Decoder(_Answer).decode


class Graph:
    """The Graph API as one access token sees it."""

    def __init__(self, web: aiohttp.ClientSession, base_url: str, version: str, access_token: str) -> None:
        self._web = web
        self._base_url = base_url
        self._version = version
        self._root = f"{base_url.rstrip('/')}/{version}/"
        self._token = access_token

    def acting(self, access_token: str) -> "Graph":
        """The same API with another access token."""
        return Graph(self._web, self._base_url, self._version, access_token)

    async def get(self, path: str, kind: type[T], **parameters: str) -> T:
        """Raises GraphError."""
        return await self._ask("GET", path, kind, params=parameters)

    async def debug_token(self, kind: type[T]) -> T:
        """What Meta says of the token itself. Raises GraphError.

        The token is a parameter here. So that it stays out of the URL, it goes into the body of a POST that says
        `method=get`: Graph reads it as a GET, and Meta's own SDKs ask that way.
        """
        return await self._ask(
            "POST", "debug_token", kind, data={"method": "get", "input_token": self._token}
        )

    async def _ask(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        params: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
    ) -> T:
        try:
            async with self._web.request(
                method,
                self._root + path,
                params=params,
                data=data,
                headers={"Authorization": f"Bearer {self._token}"},
                allow_redirects=False,
                timeout=_PATIENCE,
            ) as answer:
                raw = await _read(answer)
        except (aiohttp.ClientError, TimeoutError, OSError) as failure:
            raise GraphError(Trouble.UNREACHABLE) from failure
        raw = raw.replace(self._token.encode(), b"")
        try:
            error = _answer(raw).error
            if error is None and answer.status == 200:
                return msgspec.json.decode(raw, type=kind)
        except (ValueError, RecursionError):
            error = None
        raise _refusal(error, answer.status)


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    """The body; one that is longer than any answer of Graph's is cut, and is no JSON any more."""
    raw = b""
    async for chunk in answer.content.iter_any():
        raw += chunk
        if len(raw) > _LONGEST:
            return b""
    return raw


def _refusal(error: _Error | None, status: int) -> GraphError:
    if error is None:
        return GraphError(Trouble.TRANSIENT if status >= 500 else Trouble.STRANGE, code=f"HTTP {status}")
    code = str(error.code) if error.error_subcode is None else f"{error.code}.{error.error_subcode}"
    trace = error.fbtrace_id if _TRACE.fullmatch(error.fbtrace_id or "") else None
    return GraphError(_trouble(error), code, trace)


def _trouble(error: _Error) -> Trouble:
    if error.code == 100 and error.error_subcode == 33:
        return Trouble.PERMISSION  # "does not exist, cannot be loaded due to missing permissions, or ..."
    if 200 <= error.code <= 299:
        return Trouble.PERMISSION
    return next((trouble for trouble, codes in _CODES.items() if error.code in codes), Trouble.QUESTION)


_CODES: Final[Mapping[Trouble, frozenset[int]]] = {
    Trouble.TOKEN: frozenset({0, 190}),
    Trouble.PERMISSION: frozenset({3, 10, 33, 131005}),
    Trouble.ACCOUNT: frozenset({368, 131031, 131037, 131042, 131044, 130497, 133010}),
    Trouble.THROTTLED: frozenset({4, 80007, 130429, 131048, 131056, 131057, 131064}),
    Trouble.TRANSIENT: frozenset({1, 2, 131000, 131016, 135000}),
}
