"""The contract: openapi.json (OpenAPI 3.1), made from the routes table, the types, the errors and the events.

What an operation has beyond its line in the table stands in `_MORE`. A query parameter, type or event that nobody has
explained stops the generator, so that nothing is served undocumented.
"""

import asyncio
import functools
import gzip
import inspect
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, get_args, get_origin

import msgspec

from wabery_server import errors, webhooks
from wabery_server.accounts import Scope
from wabery_server.api import api_keys, channels, error_pages, events, examples, health, inbound, projects
from wabery_server.api import registration_intents as intents
from wabery_server.api.app import (
    CLIENT_SECRET,
    PUBLISHABLE_KEY,
    VERSION,
    Operation,
    etag,
    not_modified,
    takes_gzip,
)
from wabery_server.api.call import DEFAULT_PAGE, MAX_PAGE, Answer, Call
from wabery_server.api.docstrings import explanations
from wabery_server.api.event_types import PAYLOADS
from wabery_server.api.schemas import REFERENCE, Json, Schemas, members
from wabery_server.errors import WaberyError
from wabery_server.intents import Status
from wabery_server.outbox import OPT_IN, EventType


class More(NamedTuple):
    """What an operation has that its line in the table does not say."""

    refusals: Sequence[type[WaberyError]] = ()
    """Beyond those that every call of its kind may answer."""
    limited: bool = False
    """Whether the answer carries the headers of a limit."""
    tagged: bool = False
    """Whether it has an ETag."""
    headers: Sequence[str] = ()
    """Of its answer, beyond those that every call of its kind has."""
    parameters: Sequence[Json] = ()
    body: Json | None = None
    """A body that is not decoded into one type of ours."""
    reads: bool = False
    """Whether a POST changes nothing: it takes no Idempotency-Key then."""
    may_be_empty: bool = False
    """Whether the body may be left out."""
    media: str = "application/json"
    """What the answer is; anything but JSON is described by the handler's own words."""


async def openapi(call: Call) -> Answer:
    """This document."""
    served = _encoded() if _encoded.cache_info().currsize else await asyncio.to_thread(_served)
    version = served.packed if takes_gzip(call.headers) else served.plain
    headers = ((b"etag", version.tag), (b"vary", b"Accept-Encoding"))
    if not_modified(call.headers, version.tag):
        return Answer(b"", 304, headers)
    return Answer(version.body, 200, (*headers, *version.encoding))


_ONE_AT_A_TIME = threading.Lock()


class _Version(NamedTuple):
    """The document in one encoding."""

    body: bytes
    tag: bytes
    encoding: tuple[tuple[bytes, bytes], ...]


class _Served(NamedTuple):
    plain: _Version
    packed: _Version


def _served() -> _Served:
    """Encoded and compressed once, however many ask for it at once."""
    with _ONE_AT_A_TIME:
        return _encoded()


@functools.cache
def _encoded() -> _Served:
    body = document().encode()
    packed = gzip.compress(body, 9, mtime=0)
    return _Served(
        _Version(body, etag(body), ()), _Version(packed, etag(packed), ((b"content-encoding", b"gzip"),))
    )


@functools.cache
def document() -> str:
    """The whole document, indented, with a final newline; the same for the same code."""
    # The table names `openapi`, so it cannot be read before this module is.
    from wabery_server.api.routes import OPERATIONS

    return json.dumps(_document(OPERATIONS), indent=2, ensure_ascii=False) + "\n"


def refusals(operation: Operation) -> list[type[WaberyError]]:
    """What a call may be refused with, in the catalogue's order."""
    more = _MORE.get(operation.handler, More())
    found = {errors.HeadersTooLarge, errors.PayloadTooLarge, errors.InternalError, *more.refusals}
    found |= {errors.InvalidRequest, errors.RequestTimeout, errors.Unavailable}  # the HTTP server's own
    if not operation.open:
        found |= {errors.MissingApiKey, errors.InvalidApiKey, errors.KeyExpired}
        found |= {errors.InsufficientScope, errors.SecretKeyInBrowser, errors.RateLimited}
    if operation.publishable:
        found |= {errors.OriginNotAllowed, errors.OriginRequired}
    if _takes_client_secret(operation):
        found.add(errors.WrongClientSecret)
    if is_write(operation):
        found |= {errors.InvalidIdempotencyKey, errors.IdempotencyKeyReused, errors.IdempotencyInProgress}
    if operation.takes is not None:
        found.add(errors.UnsupportedMediaType)
    if "{" in operation.path:
        found.add(errors.NotFound)
    if "cursor" in operation.query:
        found.add(errors.InvalidCursor)
    return [refusal for refusal in errors.catalogue() if refusal in found]


OUTSIDE = (errors.UnknownPath, errors.MethodNotAllowed, errors.ForeignHost)
"""Refusals that no operation answers: the path is not served, or `wabery dev` refuses before looking at it."""


def may_call(operation: Operation) -> str:
    """Who may call it, in a few words."""
    if operation.open:
        return "anybody"
    scope = f"a secret key with `{operation.scope}`"
    if not operation.publishable:
        return scope
    needs = " and the client secret" if is_write(operation) and _takes_client_secret(operation) else ""
    return f"a publishable key{needs}" + (f", or {scope}" if operation.scope else "")


def who_answers(refusal: type[WaberyError]) -> str:
    """Which calls may answer a refusal, in a few words."""
    from wabery_server.api.routes import OPERATIONS

    if refusal is errors.ForeignHost:
        return "every path of `wabery dev`"
    if refusal in OUTSIDE:
        return "what this build does not serve"
    left = [operation for operation in OPERATIONS if refusal in refusals(operation)]
    said = []
    for name, belongs in _GROUPS.items():
        group = [operation for operation in OPERATIONS if belongs(operation)]
        if all(operation in left for operation in group):
            said.append(name)
            left = [operation for operation in left if operation not in group]
    return ", ".join([*said, *(f"`{operation.method} {operation.path}`" for operation in left)])


def is_write(operation: Operation) -> bool:
    """Whether it changes something for a caller with a key, so that it takes an Idempotency-Key."""
    reads = operation.method == "GET" or _MORE.get(operation.handler, More()).reads
    return not reads and not operation.open


def _takes_client_secret(operation: Operation) -> bool:
    return operation.publishable and "{id}" in operation.path


_GROUPS: Mapping[str, Callable[[Operation], bool]] = {
    "every call": lambda _operation: True,
    "every call with a key": lambda operation: not operation.open,
    "every write": is_write,
    "every call with a body": lambda operation: operation.takes is not None,
    "every call for one object": lambda operation: "{" in operation.path,
    "every list": lambda operation: "cursor" in operation.query,
    "every call that takes a publishable key": lambda operation: operation.publishable,
    "every call that takes a client secret": _takes_client_secret,
}
"""Widest first."""

_MORE: Mapping[object, More] = {
    intents.create: More(
        refusals=(
            errors.InvalidCustomerReference,
            errors.InvalidMetadata,
            errors.MetadataTooLarge,
            errors.ExpiresInOutOfRange,
            errors.ReferenceSignatureMissing,
            errors.ChannelNotReady,
            errors.TooManyPending,
            errors.TooManyPendingHere,
        ),
        limited=True,
    ),
    intents.get: More(limited=True, tagged=True),
    intents.create_many: More(
        body={
            "type": "object",
            "properties": {
                "items": {
                    "type": "array",
                    "items": {"$ref": REFERENCE.format(name="RegistrationIntentDraft")},
                    "minItems": 1,
                    "maxItems": 1000,
                }
            },
            "required": ["items"],
            "additionalProperties": False,
        }
    ),
    intents.stream: More(limited=True, media="text/event-stream", headers=("X-Accel-Buffering",)),
    intents.extend: More(
        refusals=(errors.NotPending, errors.ExpiresInOutOfRange), limited=True, may_be_empty=True
    ),
    intents.opened: More(limited=True),
    intents.cancel: More(refusals=(errors.AlreadyJoined, errors.NotPending), limited=True),
    projects.create: More(refusals=(errors.TooManyProjects,)),
    projects.update: More(refusals=(errors.UnsafeWebhookUrl, errors.PrefilledTextTooLong)),
    api_keys.update: More(refusals=(errors.KeyRevoked,)),
    api_keys.rotate: More(refusals=(errors.KeyRevoked,), may_be_empty=True),
    channels.check: More(limited=True, reads=True),
    channels.create: More(refusals=(errors.NumberTaken,)),
    openapi: More(tagged=True, headers=("Vary", "Content-Encoding")),
    error_pages.show: More(media="text/markdown"),
    inbound.receive: More(
        refusals=(errors.InvalidSignature,),
        parameters=[
            {
                "name": "X-Hub-Signature-256",
                "in": "header",
                "required": True,
                "description": "`sha256=` and the hex HMAC-SHA256 of the raw body under the Meta app's secret.",
                "schema": {"type": "string"},
            }
        ],
        body={"type": "object", "description": "A webhook of Meta's WhatsApp Cloud API, as Meta sends it."},
    ),
    inbound.handshake: More(
        refusals=(errors.InvalidVerifyToken,),
        media="text/plain",
        parameters=[
            {"name": name, "in": "query", "required": True, "schema": {"type": "string"}, "description": what}
            for name, what in (
                ("hub.mode", "`subscribe`."),
                ("hub.verify_token", "The verify token of a channel."),
                ("hub.challenge", "What to answer."),
            )
        ],
    ),
}

_PATH: Mapping[str, tuple[Json, str]] = {
    "id": ({"type": "string"}, "The object's `id`."),
    "code": ({"$ref": REFERENCE.format(name="ErrorCode")}, "`error` of a refusal."),
}

_TEXT: Json = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[^\u0000\uFFFD]+$"}
"""What `Call.text` takes. U+FFFD is what bytes that are no UTF-8 have become."""

_QUERY: Mapping[str, tuple[Json, str]] = {
    "limit": (
        {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE},
        "Objects per page.",
    ),
    "cursor": ({"type": "string", "minLength": 1}, "`next_cursor` of the page before."),
    "wait": (
        {"type": "integer", "minimum": 0, "maximum": intents.MAX_WAIT, "default": 0},
        "Seconds to wait for the status or phase to change; the answer comes at once when it does.",
    ),
    "include": (
        {"type": "string", "enum": ["qr"]},
        "`qr`: the link as a QR code, for whoever may see the link.",
    ),
    "status": ({"type": "string", "enum": [*Status]}, "Only those that stand so."),
    "customer_reference": (_TEXT, "Only those of this customer."),
    "contact_id": (_TEXT, "Only those of this contact."),
    "channel_id": (_TEXT, "Only those of this channel."),
    "registration_intent_id": (_TEXT, "Only those of this registration intent."),
    "type": ({"type": "string", "enum": [*EventType]}, "Only those of this type."),
    "created_after": ({"type": "string", "format": "date-time"}, "Created then or later."),
    "created_before": ({"type": "string", "format": "date-time"}, "Created before."),
}

_ALWAYS = ("Wabery-Version", "Wabery-Request-Id", "Cache-Control", "X-Content-Type-Options")
_LIMIT = ("RateLimit-Policy", "RateLimit")

_HEADERS: Mapping[str, tuple[Json, str]] = {
    "Wabery-Version": (
        {"type": "string", "format": "date"},
        "The contract's version. A 404 or 405 without it: this build does not serve the path.",
    ),
    "Wabery-Request-Id": (
        {"type": "string"},
        "The request's id, also in the body of an error and in the log.",
    ),
    "Cache-Control": ({"type": "string", "enum": ["no-store"]}, "Answers are for whoever asked."),
    "RateLimit-Policy": (
        {"type": "string"},
        'A limit of this call: `"name";q=quota;w=seconds` (IETF draft-ietf-httpapi-ratelimit-headers-11).',
    ),
    "RateLimit": ({"type": "string"}, 'What is left of it: `"name";r=requests;t=seconds until it is whole`.'),
    "Retry-After": ({"type": "integer", "minimum": 1}, "Seconds until the next request is welcome."),
    "ETag": ({"type": "string"}, "Changes with the body; send it as `If-None-Match`."),
    "Vary": ({"type": "string"}, "Request headers on which the answer depends."),
    "Content-Encoding": (
        {"type": "string", "enum": ["gzip"]},
        "How the body is compressed; absent when it is not.",
    ),
    "X-Accel-Buffering": ({"type": "string", "enum": ["no"]}, "Asks a proxy to pass on every part at once."),
    "X-Content-Type-Options": (
        {"type": "string", "enum": ["nosniff"]},
        "The answer is what its content type says.",
    ),
    "Idempotency-Replayed": (
        {"type": "string", "enum": ["true"]},
        "This answer was given before, to a request with the same `Idempotency-Key`.",
    ),
}

_SECRET_KEY = "\n".join(
    [
        "`wab_live_…` or `wab_test_…`, from a server; a browser's request is refused. Its scopes say what it may do:",
        "",
        *(f"- `{scope}`: {explanations(Scope)[scope.name]}" for scope in Scope),
    ]
)

_ABOUT = """\
Mint a single-use WhatsApp registration link for one of your users, and learn which WhatsApp account belongs to them.

- Times are ISO 8601, UTC, with milliseconds and `Z`. Ids are a prefix and 26 characters.
- Answers may gain fields, and their lists of values may grow; unknown fields in a request are refused.
- Every error has a stable `error` code, a `message` for people and a `request_id`; most have a `hint`.
- A path or method that this build does not serve answers `unknown_path` (404) or `method_not_allowed` (405) without
  the header `Wabery-Version`. `wabery dev` answers `foreign_host` (403) to pages and hosts outside this machine.
- Lists are newest first, a page at a time.
- Calls that take a publishable key answer browsers of any origin with the headers of CORS, and their preflight `OPTIONS`;
  the key's own origins are judged on the request itself."""


def _document(operations: Sequence[Operation]) -> Json:
    types = Schemas(
        {
            kind
            for operation in operations
            for kind in (_taken(operation), *_given(operation))
            if kind is not None
        }
        | set(PAYLOADS.values())
    )
    paths: dict[str, Json] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, types)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Wabery",
            "version": VERSION,
            "description": _ABOUT,
            "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [
            {
                "url": "{base_url}",
                "description": "Your installation",
                "variables": {"base_url": {"default": examples.BASE_URL}},
            }
        ],
        "tags": [*_tags(operations), {"name": "webhooks", "description": "What your server is told."}],
        "paths": paths,
        "webhooks": {event: {"post": _webhook(event, types)} for event in EventType},
        "components": {
            "schemas": {**types.components, "ErrorCode": _error_code(), "Error": _ERROR},
            "responses": {
                _refusal_name(operation, some): _refusal(operation, some)
                for operation in operations
                for some in _by_status(operation)
            },
            "headers": {
                name: {"description": what, "required": name in _ALWAYS, "schema": schema}
                for name, (schema, what) in _HEADERS.items()
            },
            "examples": {
                _example_name(refusal): {"value": examples.error(refusal)}
                for refusal in errors.catalogue()
                if refusal not in OUTSIDE
            },
            "securitySchemes": {
                "secretKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": _SECRET_KEY,
                },
                "publishableKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": PUBLISHABLE_KEY,
                    "description": "`wab_pub_…`, safe in browsers: mints intents, and reads them one by one.",
                },
            },
        },
    }


def _tags(operations: Iterable[Operation]) -> Iterator[Json]:
    for module in dict.fromkeys(inspect.getmodule(operation.handler) for operation in operations):
        about = (inspect.getdoc(module) or "").partition("\n\n")[0]
        assert module is not None
        yield {"name": _tag(module.__name__), "description": about.replace("\n", " ")}


def _tag(module: str) -> str:
    return module.rpartition(".")[2].replace("_", " ")


# Operations


def _operation(operation: Operation, types: Schemas) -> Json:
    handler = operation.handler
    made: Json = {
        "operationId": _operation_id(operation),
        "tags": [_tag(handler.__module__)],
        "summary": operation.summary,
        "description": f"{inspect.getdoc(handler)}\n\nFor {may_call(operation)}.",
        "security": _security(operation),
        "parameters": list(_parameters(operation)),
        "responses": {**_answers(operation, types), **_refused(operation)},
    }
    body = _body(operation, types)
    return made if body is None else {**made, "requestBody": body}


def _operation_id(operation: Operation) -> str:
    handler = operation.handler
    name = "list" if handler.__name__ == "listed" else handler.__name__
    return f"{_tag(handler.__module__).replace(' ', '_')}.{name}"


def _security(operation: Operation) -> list[Json]:
    if operation.open:
        return []
    secret: list[Json] = [{"secretKey": [operation.scope]}] if operation.scope else []
    return [*secret, {"publishableKey": []}] if operation.publishable else secret


def _parameters(operation: Operation) -> Iterator[Json]:
    for name in re.findall(r"{(\w+)}", operation.path):
        schema, what = _PATH[name]
        yield {"name": name, "in": "path", "required": True, "description": what, "schema": schema}
    for name in operation.query:
        schema, what = _QUERY[name]
        yield {"name": name, "in": "query", "description": what, "schema": schema}
    if is_write(operation):
        yield _header(
            "Idempotency-Key",
            "1 to 255 printable ASCII characters, new for each new request. The same request with the same key within "
            "24 hours is answered as the first one was, and changes nothing.",
            {"type": "string", "maxLength": 255, "pattern": "^[!#-~]([ -~]*[!-~])?$"},
        )
    if _takes_client_secret(operation):
        yield _header(CLIENT_SECRET, "`client_secret` of this intent, beside a publishable key.")
    more = _MORE.get(operation.handler, More())
    if more.tagged:
        yield _header("If-None-Match", "The `ETag` of an answer: 304 while nothing has changed.")
    yield from more.parameters


def _header(name: str, what: str, schema: Json | None = None) -> Json:
    return {"name": name, "in": "header", "description": what, "schema": schema or {"type": "string"}}


def _body(operation: Operation, types: Schemas) -> Json | None:
    more = _MORE.get(operation.handler, More())
    if operation.takes is None and more.body is None:
        return None
    media: Json = {"schema": more.body or types.schema(operation.takes)}
    if operation.takes in examples.REQUESTS:
        media["example"] = examples.REQUESTS[operation.takes]
    return {"required": not more.may_be_empty, "content": {"application/json": media}}


def _answers(operation: Operation, types: Schemas) -> Json:
    more = _MORE.get(operation.handler, More())
    names = [*_ALWAYS, *(_LIMIT if more.limited else ()), *more.headers]
    if more.tagged:
        names.append("ETag")
    if is_write(operation):
        names.append("Idempotency-Replayed")
    schema: Json = {"type": "string"}
    if more.media == "application/json":
        schema = _answer_schema(operation, types)
    content: Json = {"schema": schema}
    if shown := _EXAMPLES.get(operation.handler):
        content["examples"] = {name: {"value": value} for name, value in shown.items()}
    done: Json = {"description": "Done.", "headers": _headers(names), "content": {more.media: content}}
    answers: Json = {"200": done}
    if operation.handler is intents.create:
        done["links"] = _ACTIONS
    if "cursor" in operation.query:
        next_page = {"query.cursor": "$response.body#/next_cursor"}
        done["links"] = {"next": {"operationId": _operation_id(operation), "parameters": next_page}}
    if more.tagged:
        unchanged = {"description": "Not modified.", "headers": _headers(names)}
        answers["304"] = unchanged
    return answers


_ACTIONS: Json = {
    handler.__name__: {
        "operationId": f"registration_intents.{handler.__name__}",
        "parameters": {
            "path.id": "$response.body#/id",
            f"header.{CLIENT_SECRET}": "$response.body#/client_secret",
        },
    }
    for handler in (intents.get, intents.opened, intents.extend, intents.cancel)
}
"""What whoever has minted can do next."""


_EXAMPLES: Mapping[object, Mapping[str, object]] = {
    intents.create: {"minted": examples.MINTED},
    intents.create_many: {"minted_and_refused": examples.CREATED_MANY},
    intents.get: {"secret_key": examples.READ, "publishable_key": examples.POLLED},
    intents.listed: {"one_page": examples.page(examples.READ)},
    intents.stream: {"stream": examples.STREAMED},
    intents.extend: {"extended": examples.EXTENDED},
    intents.opened: {"opened": examples.OPENED},
    intents.cancel: {"canceled": examples.CANCELED},
    projects.listed: {"one_page": examples.page(examples.LISTED_PROJECT)},
    projects.create: {"founded": examples.FOUNDED},
    projects.get: {"may_write": examples.PROJECT},
    projects.update: {"changed": examples.PROJECT},
    projects.rotate_webhook_secret: {"rotated": examples.PROJECT},
    api_keys.listed: {"one_page": examples.page(examples.PUBLISHABLE_KEY, examples.SECRET_KEY)},
    api_keys.create: {"made": examples.MADE_KEY},
    api_keys.get: {"secret": examples.SECRET_KEY, "publishable": examples.PUBLISHABLE_KEY},
    api_keys.update: {"changed": examples.PUBLISHABLE_KEY},
    api_keys.rotate: {"rotated": examples.ROTATED_KEY},
    api_keys.revoke: {"revoked": examples.REVOKED_KEY},
    channels.listed: {"one_page": examples.page(examples.LISTED_CHANNEL)},
    channels.create: {"connected": examples.CHANNEL},
    channels.get: {"channel": examples.CHANNEL},
    channels.update: {"changed": examples.CHANNEL},
    channels.check: {"checked": msgspec.to_builtins(examples.CHANNEL_CHECK)},
    channels.delete: {"deleted": examples.CHANNEL},
    events.listed: {"one_page": examples.page(examples.EVENT)},
    events.get: {"event": examples.EVENT},
    inbound.receive: {"joined": {"received": {"joined": 1}}},
    inbound.handshake: {"challenge": "1158201444"},
    health.live: {"runs": {"status": "ok"}},
    health.ready: {"ready": {"status": "ok"}},
}


def _taken(operation: Operation) -> object:
    """The type of the body, unless it is described otherwise."""
    return None if _MORE.get(operation.handler, More()).body else operation.takes


def _given(operation: Operation) -> tuple[object, ...]:
    """The types of an answer: one of them, or some of them in a list."""
    gives = operation.gives
    return members(get_args(gives)[0] if get_origin(gives) in (list, tuple) else gives)


_HAS_MORE = (
    "Whether there is a next page. A page with several filters may end early, with fewer objects or none."
)


def _answer_schema(operation: Operation, types: Schemas) -> Json:
    """`A | B` depends on who asks; `list[A]` is a page, and `tuple[A | B, ...]` has one for every item asked for."""
    gives = operation.gives
    assert gives is not None, f"routes.py does not say what {operation.method} {operation.path} gives"
    choices = [types.schema(kind) for kind in _given(operation)]
    one: Json = choices[0] if len(choices) == 1 else {"anyOf": choices}
    if get_origin(gives) not in (list, tuple):
        return one
    answer: Json = {"object": {"enum": ["list"]}, "data": {"type": "array", "items": one}}
    if get_origin(gives) is list:
        answer["has_more"] = {"type": "boolean", "description": _HAS_MORE}
        answer["next_cursor"] = {"type": ["string", "null"], "description": "Null on the last page."}
    return {"type": "object", "properties": answer, "required": list(answer)}


def _refused(operation: Operation) -> Json:
    return {
        str(some[0].status): {"$ref": f"#/components/responses/{_refusal_name(operation, some)}"}
        for some in _by_status(operation)
    }


def _by_status(operation: Operation) -> list[list[type[WaberyError]]]:
    found: dict[int, list[type[WaberyError]]] = {}
    for refusal in refusals(operation):
        found.setdefault(refusal.status, []).append(refusal)
    return [some for _, some in sorted(found.items())]


def _refusal_name(operation: Operation, some: Sequence[type[WaberyError]]) -> str:
    name = ".".join([str(some[0].status), *(refusal.code for refusal in some)])
    return f"{name}.limited" if _tells_limit(operation, some) else name


def _tells_limit(operation: Operation, some: Sequence[type[WaberyError]]) -> bool:
    """Whether a refusal may carry the headers of a limit: every 429, and whatever comes after the limit was counted."""
    return some[0].status == 429 or _MORE.get(operation.handler, More()).limited


def _refusal(operation: Operation, some: Sequence[type[WaberyError]]) -> Json:
    codes = [refusal.code for refusal in some]
    names = [*_ALWAYS, *(_LIMIT if _tells_limit(operation, some) else ())]
    if some[0].status in (429, 503) or errors.IdempotencyInProgress in some:
        names.append("Retry-After")
    return {
        "description": " ".join(f"`{refusal.code}`: {_oneline(refusal)}" for refusal in some),
        "headers": _headers(names),
        "content": {
            "application/json": {
                "schema": {
                    "allOf": [
                        {"$ref": REFERENCE.format(name="Error")},
                        {"properties": {"error": {"enum": codes}}},
                    ]
                },
                "examples": {
                    refusal.code: {"$ref": f"#/components/examples/{_example_name(refusal)}"}
                    for refusal in some
                },
            }
        },
    }


def _headers(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _example_name(refusal: type[WaberyError]) -> str:
    """The code; where it comes with two statuses, the second has its status in its name."""
    twins = [one for one in errors.catalogue() if one.code == refusal.code]
    return refusal.code if refusal is twins[0] else f"{refusal.code}_{refusal.status}"


_ERROR: Json = {
    "type": "object",
    "description": "Every answer that is not 2xx or 304.",
    "properties": {
        "error": {"$ref": "#/components/schemas/ErrorCode"},
        "message": {"type": "string", "description": "What happened, for people; may be worded anew."},
        "request_id": {"type": "string"},
        "param": {"type": "string", "description": "The field, parameter or header at fault."},
        "hint": {"type": "string", "description": "What to do about it."},
        "doc_url": {
            "type": "string",
            "format": "uri",
            "description": "A page about the code, on this server.",
        },
    },
    "required": ["error", "message", "request_id", "doc_url"],
}


def _error_code() -> Json:
    """The closed list of codes."""
    about: dict[str, str] = {}
    for refusal in errors.catalogue():
        about.setdefault(refusal.code, f"- `{refusal.code}` ({refusal.status}): {_oneline(refusal)}")
    return {"type": "string", "enum": list(about), "description": "\n".join(about.values())}


def _oneline(of: type) -> str:
    return (inspect.getdoc(of) or "").replace("\n", " ")


# Webhooks


def _webhook(event: EventType, types: Schemas) -> Json:
    body: Json = {
        "event": {"enum": [event]},
        "payload": types.schema(PAYLOADS[event]),
        "sentAt": {"type": "string", "format": "date-time", "description": "The same on every attempt."},
    }
    about = explanations(EventType)[event.name]
    return {
        "operationId": event,
        "tags": ["webhooks"],
        "summary": about.partition(". ")[0].partition("\n")[0].rstrip("."),
        "description": about,
        "security": [],
        "parameters": [_header(name, what) | {"required": required} for name, what, required in SIGNATURES],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"type": "object", "properties": body, "required": list(body)},
                    "example": examples.delivery(event),
                }
            },
        },
        "responses": {
            "2XX": {"description": "Taken; answer within 15 seconds."},
            "410": {
                "description": "Not wanted any more: nothing is sent to this endpoint until its URL is set again."
            },
            "default": {
                "description": f"Sent again, {webhooks.ATTEMPTS} attempts in all over three days. `Retry-After` of a "
                "429 or 503 is respected."
            },
        },
    } | ({"x-opt-in": True} if event in OPT_IN else {})


SIGNATURES = (
    (
        "x-wabery-signature",
        "`sha256=` and the hex HMAC-SHA256 of the raw body; key: the secret as it is shown.",
        True,
    ),
    ("x-wabery-signature-next", "The same by the second secret, while two overlap.", False),
    ("webhook-id", "The event's id, the same on every attempt: handle it once.", True),
    ("webhook-timestamp", "Unix seconds of this attempt.", True),
    (
        "webhook-signature",
        "Standard Webhooks 1.0.0: `v1,` and base64, one for each secret, separated by spaces.",
        True,
    ),
)
