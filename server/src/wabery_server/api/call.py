"""One request as a handler sees it, and its answer."""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Receive

from wabery_server import errors, idempotency
from wabery_server.accounts import Caller
from wabery_server.db import Tx
from wabery_server.limits import Limit, take_all
from wabery_server.web import network_of, site_of

if TYPE_CHECKING:
    from wabery_server.api.service import Service

T = TypeVar("T")

DEFAULT_PAGE = 10
MAX_PAGE = 100
MAX_PARAMETERS = 64

_decoders: dict[type, msgspec.json.Decoder[object]] = {}
_encode = msgspec.json.Encoder().encode
_UNKNOWN_FIELD = re.compile(r"unknown field `([^`]*)`")
_MISSING_FIELD = re.compile(r"missing required field `([^`]*)`")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_AT_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(.*)`$")


Stream = AsyncGenerator[bytes, None]


class Answer(NamedTuple):
    """A status and a JSON body; `object_ids` are the objects the body shows, so that erasure can find a stored copy."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()
    object_ids: tuple[str, ...] = ()
    stream: "Stream | None" = None
    """Instead of a body: parts that are sent as they come."""


Write = Callable[[Tx], Awaitable[Answer]]
"""The second step of a call that writes, made by its handler, which is the first: decode, check, ask the directory, draw.
It touches the database and nothing else, and may run again: its ids, secrets and times were made before it."""


class Page(NamedTuple):
    """Which part of a list: at most `limit` rows older than `before` (an id; None: from the newest)."""

    limit: int
    before: str | None


class Headers:
    """A request's headers, decoded when they are asked for; of one that came twice the last counts."""

    __slots__ = ("_last", "_raw")

    def __init__(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        self._raw = raw
        self._last = dict(raw)

    def get(self, name: bytes) -> str | None:
        value = self._last.get(name)
        return None if value is None else value.decode("latin-1")

    def all(self, name: bytes) -> list[bytes]:
        return [value for given, value in self._raw if given == name] if name in self._last else []

    def repeated(self, names: Iterable[bytes]) -> str | None:
        """The first of these headers that came more than once."""
        if len(self._last) == len(self._raw):
            return None
        return next((name.decode() for name in names if len(self.all(name)) > 1), None)


class Call:
    """A request whose caller is known, whose size is checked and whose limits allow it."""

    __slots__ = (
        "_query",
        "after",
        "body",
        "headers",
        "ip",
        "method",
        "out",
        "params",
        "path",
        "query_string",
        "receive",
        "request_id",
        "service",
        "who",
    )

    def __init__(
        self,
        service: "Service",
        who: Caller | None,
        *,
        method: str,
        path: str,
        params: Mapping[str, str],
        query_string: bytes,
        headers: Headers,
        body: bytes,
        receive: Receive,
        request_id: str,
        ip: str,
        out: list[tuple[bytes, bytes]],
    ) -> None:
        self.service = service
        self.who = who
        self.method = method
        self.path = path
        self.params = params
        self.query_string = query_string
        self._query: Mapping[str, str] | None = None
        self.headers = headers
        self.body = body
        self.receive = receive
        self.request_id = request_id
        self.ip = ip
        self.out = out
        """Headers of the answer, also of a refusal."""
        self.after: list[Callable[[], None]] = []

    @property
    def caller(self) -> Caller:
        assert self.who is not None, "this route takes no key"
        return self.who

    @property
    def query(self) -> Mapping[str, str]:
        """The query's parameters; of one that comes twice the last counts. Raises errors.InvalidRequest."""
        if self._query is None:
            text = self.query_string.decode("latin-1")
            try:
                self._query = dict(parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_PARAMETERS))
            except ValueError:
                raise errors.InvalidRequest(f"The query has more than {MAX_PARAMETERS} parameters.") from None
        return self._query

    async def run(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        """Runs `work` in a transaction, on the share of the connections that the caller's project has."""
        return await self.service.database.run(work, owner=self.caller.project.id)

    def after_commit(self, tell: Callable[[], None]) -> None:
        """Runs `tell` when the transaction of this write has been committed."""
        self.after.append(tell)

    def committed(self, answer: Answer) -> Answer:
        """To be called after the commit of this write; returns its answer."""
        for tell in self.after:
            tell()
        return answer

    def idempotency_key(self) -> idempotency.Key | None:
        """The request's Idempotency-Key. Raises errors.InvalidIdempotencyKey."""
        header = self.headers.get(b"idempotency-key")
        if header is None:
            return None
        visitor = None
        if not self.caller.trusted:
            visitor = idempotency.Visitor(self.headers.get(b"origin") or "", self.client_hash)
        return idempotency.read(
            header,
            project_id=self.caller.project.id,
            api_key_id=self.caller.key.id,
            call=f"{self.method} {self.path}",
            body=self.body,
            visitor=visitor,
        )

    @property
    def client_hash(self) -> bytes:
        """What stands for the client's address where it is stored."""
        return self.service.keyring.current.client_hash(site_of(self.ip), network_of(self.ip))

    def replayed(self, stored: idempotency.Stored) -> Answer:
        return Answer(stored.body, stored.status, ((b"idempotency-replayed", b"true"),))

    def limit(self, first: tuple[Limit, Hashable], *others: tuple[Limit, Hashable]) -> None:
        """Counts this request against limits, the narrowest first, and puts headers of one of them on the answer.

        Raises errors.RateLimited when one is used up; then none of them has counted the request, nor has the limit of
        the secret key that sent it.
        """
        allowance = take_all(first, *others)
        self.out += allowance.headers()
        if not allowance.allowed:
            if self.caller.trusted:
                self.service.per_secret_key.give_back(self.caller.key.id)
            raise errors.RateLimited(
                f"Too many requests (limit: {allowance.name}).", retry_after=allowance.retry_after
            )

    def decode(self, kind: type[T]) -> T:
        """The JSON body as `kind`. Raises errors.InvalidRequest naming the field, UnsupportedMediaType."""
        return decode(self.body, self.headers.get(b"content-type") or "", kind)

    def page(self, *, list_name: str) -> Page:
        """Reads `limit` (1 to 100, default 10) and `cursor`. Raises errors.InvalidRequest, InvalidCursor."""
        limit = self.number("limit", DEFAULT_PAGE, 1, MAX_PAGE)
        cursor = self.query.get("cursor")
        if cursor is None:
            return Page(limit, None)
        position = self.service.keyring.open_cursor(cursor)
        head = f"{self.caller.project.id}:{list_name}:".encode()
        if position is None or not position.startswith(head):
            raise errors.InvalidCursor(param="cursor")
        return Page(limit, position[len(head) :].decode())

    def list_answer(
        self, list_name: str, objects: Sequence[tuple[str, object]], page: Page, *, resume: str | None = None
    ) -> Answer:
        """`objects` are (id, public body), newest first, one more than the page when there are more.

        `resume`: where the next page goes on when this one ended before its limit.
        """
        shown = objects[: page.limit]
        last = shown[-1][0] if len(objects) > page.limit else resume
        more = last is not None
        cursor = None
        if more:
            position = f"{self.caller.project.id}:{list_name}:{last}"
            cursor = self.service.keyring.current.sign_cursor(position.encode())
        return self.answer(
            {"object": "list", "data": [body for _, body in shown], "has_more": more, "next_cursor": cursor}
        )

    def answer(self, body: object, *, status: int = 200, object_ids: tuple[str, ...] = ()) -> Answer:
        return Answer(_encode(body), status, (), object_ids)

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """A whole number from the query. Raises errors.InvalidRequest."""
        given = self.query.get(name)
        if given is None:
            return default
        # Python reads digits of every script and any length of them; the contract has ASCII digits.
        if not (given.isascii() and given.isdigit() and len(given) <= 9 and least <= int(given) <= most):
            raise errors.InvalidRequest(f"{name} must be a whole number from {least} to {most}.", param=name)
        return int(given)

    def text(self, name: str) -> str | None:
        """A text from the query, 1 to 255 characters; None when it is not given. Raises errors.InvalidRequest."""
        given = self.query.get(name)
        if given is not None and (not 1 <= len(given) <= 255 or "\0" in given or "\ufffd" in given):
            raise errors.InvalidRequest(f"{name} must be 1 to 255 characters of UTF-8.", param=name)
        return given

    def empty_body(self) -> None:
        """Refuses a body with fields, for calls that take none."""
        if self.body.strip() not in (b"", b"{}"):
            raise errors.InvalidRequest("This call takes no body.")

    def moment(self, name: str) -> datetime | None:
        """An RFC 3339 time from the query; None when it is not given. Raises errors.InvalidRequest."""
        given = self.query.get(name)
        if given is None:
            return None
        try:
            moment = datetime.fromisoformat(given)
            if moment.tzinfo is None:
                raise ValueError("no offset")
            return moment.astimezone(UTC)
        except (ValueError, OverflowError):
            raise errors.InvalidRequest(
                f"{name} must be a time such as 2026-06-27T00:00:00Z.",
                param=name,
                hint="Write + as %2B in a URL.",
            ) from None

    def known_query(self, *names: str) -> None:
        """Refuses query parameters that this call does not have."""
        for name in self.query:
            if name not in names:
                raise errors.InvalidRequest(
                    f"There is no query parameter {name[:64]!r} here.", param=name[:64]
                )


async def gone(receive: Receive) -> None:
    """Returns when the caller has closed the connection; to be called when the body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def decode(body: bytes, content_type: str, kind: type[T]) -> T:
    """JSON bytes as `kind`. Raises errors.InvalidRequest naming the field, UnsupportedMediaType."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise errors.UnsupportedMediaType
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    try:
        decoded: T = decoder.decode(body)  # type: ignore[assignment]  # the decoder kept under `kind` makes `kind`
        # msgspec refuses lone surrogates itself; U+0000 it lets through, and PostgreSQL cannot store it.
        path = _nul_in(decoded) if b"\\u0000" in body else None
    except msgspec.ValidationError as failure:
        raise _named(str(failure)) from None
    except msgspec.DecodeError as failure:
        hint = (
            "Is there a lone surrogate, half of a pair of \\u escapes?" if _SURROGATE.search(body) else None
        )
        raise errors.InvalidRequest(f"The body is not JSON: {failure}.", hint=hint) from None
    except (UnicodeDecodeError, RecursionError):
        raise errors.InvalidRequest(
            "The body is not JSON: it must be UTF-8 and not nested this deep."
        ) from None
    if path is not None:
        raise errors.InvalidRequest(
            "The body contains U+0000, which cannot be stored.", param=path[:128] or None
        )
    return decoded


def _named(problem: str) -> errors.WaberyError:
    """msgspec's sentence, with the field's name taken out of it."""
    where = _AT_PATH.search(problem)
    path = where[1] if where else ""
    text = problem[: where.start()] if where else problem
    for pattern in (_UNKNOWN_FIELD, _MISSING_FIELD):
        if field := pattern.search(problem):
            path = f"{path}.{field[1]}" if path else field[1]
            break
    path = path[:128]
    if field := _UNKNOWN_FIELD.search(problem):
        return errors.InvalidRequest(f"There is no field {field[1][:64]!r} here.", param=path)
    root = re.split(r"[.\[]", path, maxsplit=1)[0]
    specific = _SPECIFIC.get(root)
    wrong_type = _wrong_type(text, path) or _wrong_form(text, path)
    if specific is not None and not _MISSING_FIELD.search(problem):
        if wrong_type is None and path != root:
            wrong_type = f"{text} (in {path})."
        return specific(wrong_type, param=path)
    if wrong_type is not None:
        return errors.InvalidRequest(wrong_type, param=path or None)
    sentence = text[0].upper() + text[1:]
    return errors.InvalidRequest(
        f"{sentence}{f' (in {path})' if path and path not in sentence else ''}.", param=path or None
    )


_WRONG_TYPE = re.compile(r"Expected `([^`]+)`, got `([^`]+)`")
_TYPES = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "object": "an object",
    "array": "an array",
    "null": "null",
    "datetime": "a time such as 2026-06-27T00:00:00Z",
}


def _wrong_type(problem: str, path: str) -> str | None:
    """`customer_reference must be a string, not a whole number.` None when the type is not what is wrong."""
    found = _WRONG_TYPE.match(problem)
    if found is None:
        return None
    wanted, got = (" or ".join(_TYPES.get(one, one) for one in part.split(" | ")) for part in found.groups())
    return f"{path or 'The body'} must be {wanted}, not {got}."


_WRONG_FORM = re.compile(
    r"Expected `(\w+)` (?:of length ([<>])= (\d+)|matching regex '(.*)'|with a timezone component)"
)


def _wrong_form(problem: str, path: str) -> str | None:
    """`name must have at most 200 characters.` None when neither the length nor the form is what is wrong."""
    found = _WRONG_FORM.match(problem)
    if found is None or path in _SPECIFIC:
        return None
    kind, bound, length, pattern = found.groups()
    if length is not None:
        what = {"str": "character", "array": "item"}.get(kind, "field") + ("" if length == "1" else "s")
        return f"{path} must have at {'most' if bound == '<' else 'least'} {length} {what}."
    if pattern is not None:
        return f"{path} must match {pattern.replace('(?!' + chr(92) * 2 + 'n)', '')}."
    return f"{path} must be a time with its offset, such as 2026-06-27T00:00:00Z."


_SPECIFIC: dict[str, type[errors.WaberyError]] = {
    "customer_reference": errors.InvalidCustomerReference,
    "metadata": errors.InvalidMetadata,
    "expires_in": errors.ExpiresInOutOfRange,
}


def _nul_in(value: object, path: str = "") -> str | None:
    """Where a U+0000 is, as `metadata.name`; "" when that is the whole value, None when there is none.

    Not inside a `msgspec.Raw`, which is decoded by itself later.
    """
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, str):
        return path if "\0" in value else None
    inside: Iterable[tuple[str, object]] = ()
    if isinstance(value, dict):
        if any("\0" in key for key in value):
            return path
        inside = ((f"{path}.{key}" if path else key, item) for key, item in value.items())
    elif isinstance(value, list):
        inside = ((f"{path}[{number}]", item) for number, item in enumerate(value))
    return next((found for name, item in inside if (found := _nul_in(item, name)) is not None), None)
