"""What happens between a call and its result, without any I/O.

A `Call` says what to ask. `Core.exchange` turns it into a plan: a generator that yields what to do next, a `Request` to
send or a `Pause` to sleep, and takes the `Answer` back, or the connection's failure as an exception. The sync and the
async client each drive such plans with a few lines, so how a request is built, what is retried and which error is raised
is written once, here, and tested without a socket.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Generic, TypeAlias, TypedDict, TypeVar
from urllib.parse import urlencode, urlsplit

from wabery import keys
from wabery._logs import logger, without_secrets
from wabery._version import __version__
from wabery.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    EndpointNotAvailableError,
    UnexpectedResponseError,
    UsageError,
    WaberyError,
    error_class,
)

T = TypeVar("T")

DEFAULT_BASE_URL = "https://api.wabery.com/v1"

RETRY_BUDGET = 30.0
"""Seconds from the first attempt after which no further one is begun."""
FIRST_DELAY = 0.5
LONGEST_DELAY = 8.0
JITTER = 0.25
"""A delay is shortened by up to this share, never lengthened."""


class NotGiven:
    """The type of `NOT_GIVEN`: an argument that was left out, which is not the same as one set to None."""

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "NOT_GIVEN"


NOT_GIVEN = NotGiven()


class CallOptions(TypedDict, total=False):
    """What every call takes besides its own arguments."""

    idempotency_key: str
    """Instead of the one made for each write; 1 to 255 printable ASCII characters."""
    timeout: float | None
    """Seconds for each attempt; None waits for ever."""
    max_retries: int
    extra_headers: Mapping[str, str]
    extra_query: Mapping[str, object]
    extra_body: Mapping[str, object]
    """Fields this version of the package does not know yet; they win over its own."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One API call, not yet sent."""

    method: str
    path: str
    model: Callable[[dict[str, Any]], T]
    """Makes the result of a successful answer's JSON object."""
    query: Mapping[str, object] = field(default_factory=dict)
    body: Mapping[str, object] | None = None
    headers: Mapping[str, str | NotGiven | None] = field(default_factory=dict)
    options: CallOptions = field(default_factory=CallOptions)
    least_timeout: float = 0.0
    """Seconds; a long poll must not be cut off by a shorter timeout of the client."""


@dataclass(frozen=True)
class Request:
    """One attempt, ready for any HTTP client."""

    method: str
    url: str
    headers: dict[str, str] = field(repr=False)
    content: bytes | None = field(repr=False)
    timeout: float | None
    """Seconds for the attempt as a whole."""


@dataclass(frozen=True)
class Pause:
    """Sleep before the next step."""

    seconds: float


@dataclass(frozen=True)
class Answer:
    """What came back. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes = field(repr=False)


Plan: TypeAlias = Generator[Request | Pause, Answer | None, T]


def path(*segments: object) -> str:
    """A URL path of fixed words and ids. Raises UsageError for what would lead elsewhere: None, an object, a slash."""
    for segment in segments:
        if not isinstance(segment, str) or not re.fullmatch(r"[0-9A-Za-z_-]+", segment):
            got = "a text that cannot be one" if isinstance(segment, str) else type(segment).__name__
            raise UsageError(
                f'Expected the id of an object, a str such as "reg_…"; got {got}.', hint="Copy it whole."
            )
    return "".join(f"/{segment}" for segment in segments)


def free_path(given: str) -> str:
    """A URL path below the base URL, as a caller wrote it. Raises UsageError for anything that is not just that."""
    if not re.fullmatch(r"(?:/[0-9A-Za-z_~.%-]+)+", given) or re.search(r"/\.{1,2}(?:/|$)", given):
        raise UsageError("A path begins with a slash and has no query: /projects/proj_1.")
    return given


def given(**fields: object) -> dict[str, object]:
    """The fields that were not left out; None stays."""
    return {name: value for name, value in fields.items() if not isinstance(value, NotGiven)}


@dataclass(frozen=True)
class Core:
    """A client's settings, and what follows from them."""

    auth: tuple[str, str] = field(repr=False)
    """Header name and value, chosen by the key's prefix."""
    base_url: str
    timeout: float | None
    max_retries: int
    headers: Mapping[str, str] = field(repr=False)

    @classmethod
    def configure(
        cls,
        api_key: str | None,
        base_url: str | None,
        timeout: float | None,
        max_retries: int,
        headers: Mapping[str, str] | None,
    ) -> Core:
        """Fill in from the environment what was not given. Raises UsageError for what cannot work."""
        _must_be("api_key", api_key, str)
        _must_be("base_url", base_url, str)
        _must_be("timeout", timeout, int, float)
        _must_be("max_retries", max_retries, int)
        key = (api_key or os.environ.get("WABERY_API_KEY") or "").strip()
        if not key:
            raise UsageError("No API key was given.", hint="Pass api_key=… or set WABERY_API_KEY.")
        auth = keys.auth_header(key)
        if auth is None or not (key.isascii() and key.isprintable()):
            raise UsageError(
                "This is not a Wabery API key.", hint="Keys start with wab_live_, wab_test_ or wab_pub_."
            )
        url = (base_url or os.environ.get("WABERY_BASE_URL") or DEFAULT_BASE_URL).strip().rstrip("/")
        if not valid_base_url(url):
            raise UsageError(
                f"{url!r} is not a base URL.",
                hint="It looks like https://wabery.example.com/v1, with /v1 at its end.",
            )
        return cls(auth, url, timeout, max_retries, dict(headers or {}))

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise UsageError("max_retries must be 0 or more.")
        _checked_timeout(self.timeout)

    def with_options(
        self,
        timeout: float | None | NotGiven,
        max_retries: int | NotGiven,
        headers: Mapping[str, str] | NotGiven,
    ) -> Core:
        """A copy with some settings changed; headers are added to those already there."""
        return replace(
            self,
            timeout=self.timeout if isinstance(timeout, NotGiven) else timeout,
            max_retries=self.max_retries if isinstance(max_retries, NotGiven) else max_retries,
            headers=self.headers if isinstance(headers, NotGiven) else {**self.headers, **headers},
        )

    def request(self, call: Call[Any]) -> Request:
        """Build the request of a call; every attempt sends this same one. Raises UsageError."""
        options = call.options
        query = _query({**call.query, **options.get("extra_query", {})})
        headers: dict[str, str | NotGiven | None] = {
            "accept": "application/json",
            "user-agent": f"wabery-python/{__version__} (Python {sys.version_info.major}.{sys.version_info.minor})",
            self.auth[0]: self.auth[1],
        }
        content = None
        if call.body is not None or "extra_body" in options:
            content = _json({**(call.body or {}), **options.get("extra_body", {})})
            headers["content-type"] = "application/json"
        if call.method != "GET":
            headers["idempotency-key"] = options.get("idempotency_key", os.urandom(16).hex())
        for more in (self.headers, call.headers, options.get("extra_headers", {})):
            headers.update({name.lower(): value for name, value in more.items()})
        timeout = _checked_timeout(options.get("timeout", self.timeout))
        return Request(
            call.method,
            self.base_url + call.path + (f"?{query}" if query else ""),
            {
                name: _visible(name, value)
                for name, value in headers.items()
                if value is not None and not isinstance(value, NotGiven)
            },
            content,
            timeout if timeout is None else max(timeout, call.least_timeout),
        )

    def exchange(self, call: Call[Any]) -> Plan[Answer]:
        """Send, and send again while that may help. Returns a success; raises everything else."""
        request = self.request(call)
        retries = call.options.get("max_retries", self.max_retries)
        begun = time.monotonic()
        attempt = 0
        while True:
            sent = time.monotonic()
            failure: WaberyError
            try:
                answer = yield request
                assert answer is not None
            except APIConnectionError as broken:
                failure = broken
                outcome = type(broken).__name__
            else:
                if 200 <= answer.status < 300:
                    _log(call, attempt, sent, str(answer.status), answer.headers.get("wabery-request-id"))
                    return answer
                refused = self.error(call, answer)
                failure, outcome = refused, f"{refused.status} {refused.code or ''}".strip()
            _log(call, attempt, sent, outcome, getattr(failure, "request_id", None))
            delay = retry_delay(attempt, failure)
            if attempt >= retries or delay is None or time.monotonic() - begun + delay > RETRY_BUDGET:
                raise failure
            yield Pause(delay)
            attempt += 1

    def fetch(self, call: Call[T]) -> Plan[T]:
        """The result of a call."""
        answer = yield from self.exchange(call)
        return call.model(decode(answer))

    def error(self, call: Call[Any], answer: Answer) -> APIError:
        """The error for an answer outside 2xx. Keys that the answer repeats are masked."""
        body = _lenient_json(without_secrets(answer.content.decode(errors="replace")))
        fields = body if isinstance(body, dict) else {}
        ours = "wabery-version" in answer.headers
        kind = error_class(answer.status)
        message, hint = _text(fields, "message"), _text(fields, "hint")
        if answer.status in (404, 405) and not ours:
            kind = EndpointNotAvailableError
            message = f"{call.method} {without_secrets(call.path)} is not served by {self.base_url}."
            hint = "Check the base URL (it ends in /v1) and the server's version."
        elif answer.status < 400:
            message = f"{self.base_url} redirects to another address; that one, often with https://, is the base URL."
        return kind(
            message or f"{self.base_url} answered HTTP {answer.status} without saying why.",
            status=answer.status,
            code=_text(fields, "error"),
            param=_text(fields, "param"),
            hint=hint,
            doc_url=_text(fields, "doc_url"),
            request_id=_text(fields, "request_id") or answer.headers.get("wabery-request-id"),
            retry_after=_retry_after(answer.headers.get("retry-after")),
            body=body,
        )


def retry_delay(retry: int, failure: WaberyError) -> float | None:
    """Seconds to wait before retry number `retry` (from 0), or None when repeating cannot help."""
    if isinstance(failure, APIError):
        if not _worth_repeating(failure):
            return None
        if failure.retry_after is not None:
            return failure.retry_after
    elif not isinstance(failure, APIConnectionError):
        return None
    jitter = JITTER * random.random()  # noqa: S311 (spreads retries, keeps no secret)
    return min(FIRST_DELAY * 2.0**retry, LONGEST_DELAY) * (1 - jitter)


def _worth_repeating(failure: APIError) -> bool:
    if failure.status == 409:
        return failure.code == "idempotency_in_progress"
    return failure.status in (408, 429) or failure.status >= 500


def decode(answer: Answer) -> dict[str, Any]:
    """The JSON object of a success; of 204, which has no body, an empty one. Raises UnexpectedResponseError."""
    if answer.status == 204:
        return {}
    try:
        body = json.loads(answer.content)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise UnexpectedResponseError(
            f"HTTP {answer.status}, but its body is not a JSON object.",
            hint="Check that the base URL is Wabery's and that no proxy answers in its place.",
        )
    return body


def valid_base_url(url: str) -> bool:
    """Whether this is http or https with a host, and nothing that could carry secrets or a query."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    plain = not (parts.query or parts.fragment or parts.username or parts.password) and url.isascii()
    return parts.scheme in ("http", "https") and bool(parts.hostname) and plain and port != 0


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine, by its name alone (RFC 6761: localhost never leaves it)."""
    host = urlsplit(url).hostname or ""
    return host == "localhost" or host.endswith(".localhost") or host == "::1" or host.startswith("127.")


def connection_error(
    url: str, cause: Exception, *, timed_out: bool, reached: bool = True
) -> APIConnectionError:
    """The error for an attempt that got no complete answer. reached: whether there was a connection at all."""
    host = urlsplit(url).netloc
    if timed_out:
        return APITimeoutError(f"{host} did not answer in time.", hint="The option timeout gives it more.")
    reason = without_secrets(str(cause)).strip().rstrip(".") or type(cause).__name__
    if reached:
        return APIConnectionError(f"The connection to {host} broke before its answer was complete: {reason}.")
    hint = "Is the server up, and is this its address?"
    if proxies := [] if is_loopback(url) else _set(*_PROXIES):
        hint = f"Requests go through the proxy of {' or '.join(proxies)}; is it up, and is this its address?"
    return APIConnectionError(f"{host} could not be reached: {reason}.", hint=hint)


def _must_be(name: str, value: object, *kinds: type) -> None:
    """Raises UsageError for another type than these, or None. The value is not shown: it may be a secret."""
    if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        hint = "Decode it first." if isinstance(value, bytes | bytearray) else None
        raise UsageError(f"{name} must be {wanted}, not {type(value).__name__}.", hint=hint)


_PROXIES = ("ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")


def _set(*names: str) -> list[str]:
    return [name for name in names if os.environ.get(name)]


def rejected_environment(cause: Exception) -> tuple[str, str]:
    """Which variable of the environment the HTTP library rejects, and what to do. Values may hold a password: not shown."""
    proxies = _set(*_PROXIES, "NO_PROXY", "no_proxy")
    certificates = _set("SSL_CERT_FILE", "SSL_CERT_DIR")
    socks = [name for name in proxies if os.environ[name].lower().startswith("socks")]
    if isinstance(cause, ImportError) and socks:
        return f"{socks[0]} names a SOCKS proxy, which needs the package socksio.", (
            f"Install httpx2[socks], or unset {socks[0]}."
        )
    suspects = certificates if isinstance(cause, OSError) else proxies  # ssl.SSLError is an OSError
    names = " or ".join(suspects or proxies or certificates) or "A variable of the environment"
    what = "cannot be read as certificates" if suspects is certificates else "is not a proxy that can be used"
    return f"{names} {what}.", f"Correct it, or unset it. The HTTP library says: {type(cause).__name__}."


def _visible(name: str, value: object) -> str:
    """A header's value, if HTTP can carry it. The error does not repeat it: it may be a secret."""
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9a-z-]+", name):
        raise UsageError(f"{name!r} is not a header name.")
    if not isinstance(value, str) or not re.fullmatch(r"[ -~]*", value):
        raise UsageError(f"The header {name} must be a str of printable ASCII characters.")
    if name == "idempotency-key" and not 1 <= len(value) <= 255:
        raise UsageError("An idempotency key has 1 to 255 characters.")
    return value


def _checked_timeout(seconds: float | None) -> float | None:
    if seconds is not None and not seconds > 0:
        raise UsageError("timeout must be more than 0 seconds, or None to wait for ever.")
    return seconds


def _query(fields: Mapping[str, object]) -> str:
    return urlencode({name: _word(value) for name, value in fields.items() if value is not None})


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return timestamp(value) if isinstance(value, datetime) else str(value)


def timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds, as the API writes it. Raises UsageError for a naive datetime."""
    if moment.tzinfo is None:
        raise UsageError("A datetime without a time zone is ambiguous.", hint="Use datetime.now(UTC).")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(body: Mapping[str, object]) -> bytes:
    try:
        text = json.dumps(
            body, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_json_default
        )
        return text.encode()
    except UnicodeEncodeError:
        raise UsageError("The body contains a lone surrogate, which JSON cannot carry.") from None
    except (TypeError, ValueError, RecursionError) as cause:
        raise UsageError(f"The body cannot be written as JSON: {cause}.") from None


def _json_default(value: object) -> object:
    if isinstance(value, datetime):
        return timestamp(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a JSON type")


def _lenient_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _text(fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) and value else None


def _retry_after(value: str | None) -> float | None:
    """Seconds from a `Retry-After` header, in either of its forms (RFC 9110, 10.2.3); None when it is neither."""
    if value is None:
        return None
    from email.utils import parsedate_to_datetime  # slow to import, and rarely needed

    try:
        if value.strip().isdigit():
            return float(value)
        moment = parsedate_to_datetime(value)
        return max((moment - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def _log(call: Call[Any], attempt: int, sent: float, outcome: str, request_id: str | None) -> None:
    logger.debug(
        "%s %s attempt=%d outcome=%s ms=%.0f request_id=%s",
        call.method,
        call.path,
        attempt + 1,
        outcome,
        (time.monotonic() - sent) * 1000,
        request_id or "-",
    )
