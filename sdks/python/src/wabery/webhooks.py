"""Receiving webhooks: is this delivery from our Wabery, and what does it say?

`unwrap` verifies and returns a typed `Event`; `verify` only verifies. Both take the raw body, because the signature covers
its bytes: parse first and they are gone. A delivery carries the contract's header (`x-wabery-signature`, HMAC-SHA256 of
the body under the secret's UTF-8 bytes, with the next secret's during a rotation in `x-wabery-signature-next`) and the
headers of Standard Webhooks 1.0 (`webhook-id`, `-timestamp`, `-signature`).

- Any Standard Webhooks header: all three are required, and the timestamp must be within `tolerance` of now.
- None of them, as from the hosted product: the contract's header is checked, and the `sentAt` in the signed body must be
  at most `max_age` old. So an old delivery does not become new again when its `webhook-*` headers are removed.

Deliveries may repeat: `event.id` is the same each time, so remember the ids you have handled.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import IO, Any, NamedTuple, Protocol, TypeAlias

from wabery._models import Object, ReferenceTrust, RegistrationIntent, WhatsAppIdentity
from wabery.errors import WebhookFault, WebhookVerificationError

TOLERANCE = timedelta(minutes=5)
"""How far `webhook-timestamp` may be from this machine's clock, either way, and how far `sentAt` may be ahead of it."""
MAX_AGE = timedelta(days=7)
"""How old the signed `sentAt` of a delivery may be that carries the contract's header alone."""
MAX_BODY = 1024 * 1024
"""Bytes the ASGI and WSGI helpers read before they refuse."""

_WORTH_DIAGNOSING = 64 * 1024
"""Bytes of a body with a wrong signature that are parsed to say why; a stranger must not make us work for nothing."""

_CONTRACT = ("x-wabery-signature", "x-wabery-signature-next")
_STANDARD = ("webhook-id", "webhook-timestamp", "webhook-signature")
_V1 = re.compile(r"(?:^|[\s,])v1,([^\s,]*)")
"""One of several: other versions may stand beside it, and repeated headers arrive joined by commas."""
_SHA256_HEX = re.compile(r"sha256=([0-9a-f]{64})(?![0-9a-z])", re.IGNORECASE)
_MOMENT = re.compile(
    r"(?!0000)\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)",
    re.ASCII,
)
"""ISO 8601 with seconds and a zone; the other SDKs take the same."""

Headers: TypeAlias = (
    Mapping[str, str]
    | Mapping[str, Sequence[str]]
    | Iterable[tuple[str, str]]
    | Iterable[tuple[bytes, bytes]]
)
Secret: TypeAlias = str | bytes
Secrets: TypeAlias = Secret | Sequence[Secret]


# The events


class Payload(Object, shown=("event_id",), nested={"whatsapp": WhatsAppIdentity}):
    """What every event carries."""

    __slots__ = ()

    event_id: str
    organization_id: str
    project_id: str
    livemode: bool
    created_at: datetime


class PersonPayload(Payload):
    """What every event about a person carries. `from_` is null for people without a visible number."""

    __slots__ = ()
    contact_id: str
    conversation_id: str
    channel_id: str
    from_: str | None
    whatsapp: WhatsAppIdentity
    customer_reference: str | None
    contact_reference: str | None


class JoinedPayload(PersonPayload):
    __slots__ = ()
    registration_intent_id: str
    metadata: dict[str, Any]
    metadata_trusted: bool
    reference_trust: ReferenceTrust
    message_id: str
    joined_at: datetime
    already_linked: bool


class UnlinkedPayload(PersonPayload):
    __slots__ = ()
    registration_intent_id: str
    reason: str


class IdentityChangedPayload(
    PersonPayload, nested={"previous": WhatsAppIdentity, "current": WhatsAppIdentity}
):
    __slots__ = ()
    previous: WhatsAppIdentity
    current: WhatsAppIdentity


class MessageReply(Object, shown=("id", "title")):
    """What the person pressed or filled in: a button, a row of a list, a form."""

    __slots__ = ()
    id: str | None
    title: str | None
    payload: str | None
    response: str | None


class MessageMedia(Object, shown=("id", "mime_type")):
    """The file of the message. Download it from Meta by its id."""

    __slots__ = ()
    id: str | None
    mime_type: str | None
    sha256: str | None
    filename: str | None
    voice: bool | None
    animated: bool | None


class MessageContext(Object, shown=("message_id",)):
    """The message that this one answers, by WhatsApp's id (`wamid…`)."""

    __slots__ = ()
    message_id: str


class MessagePayload(
    PersonPayload, nested={"reply": MessageReply, "media": MessageMedia, "context": MessageContext}
):
    """`content` is WhatsApp's own object for the message's `type`; null parts are absent from the message."""

    __slots__ = ()
    agent_id: None
    message_id: str
    type: str
    text: str | None
    sent_at: datetime
    provider_message_id: str
    metadata: dict[str, Any] | None
    reference_trust: ReferenceTrust | None
    registration_intent_id: str | None
    forwarded: bool
    handled_by: str
    reply: MessageReply | None
    media: MessageMedia | None
    context: MessageContext | None
    referral: dict[str, Any] | None
    content: Any
    content_truncated: bool
    replaces_event_id: str | None


class Attempt(Object, shown=("code",)):
    """The message that carried the token: what became of it."""

    __slots__ = ()
    code: str
    message_id: str


class RegistrationIntentPayload(
    Payload, nested={"registration_intent": RegistrationIntent, "attempt": Attempt}
):
    """Where a message brought it about, the fields of a person are there too: `"contact_id" in payload` asks."""

    __slots__ = ()
    registration_intent_id: str
    customer_reference: str
    contact_reference: str
    registration_intent: RegistrationIntent
    attempt: Attempt
    """Only where a message brought it about."""


class SecurityPayload(PersonPayload):
    __slots__ = ()
    registration_intent_id: str
    count: int
    """Of `security.token_reuse`: how often other people have sent the token so far."""


class WebhookEndpointPayload(Payload):
    __slots__ = ()
    endpoint_id: str
    reason: str
    since: str


class Event(Object, shown=("event",)):
    """A verified delivery. Tell events apart with `isinstance`; one that this version does not know is a plain `Event`."""

    __slots__ = ()

    event: str

    @property
    def payload(self) -> Payload:
        """What happened, and to whom."""
        return Payload(self._data["payload"])

    @property
    def id(self) -> str | None:
        """Equal on every delivery and replay of the event; None where the sender does not put it into the payload."""
        event_id = self._data["payload"].get("event_id")
        return event_id if isinstance(event_id, str) else None

    @property
    def sent_at(self) -> datetime | None:
        """When the event was recorded, not when this attempt was made."""
        moment = self._read("sent_at", self._data.get("sentAt"))
        return moment if isinstance(moment, datetime) else None


class ParticipantJoined(Event):
    """A person pressed send: this WhatsApp account belongs to `payload.customer_reference`."""

    __slots__ = ()

    @property
    def payload(self) -> JoinedPayload:
        return JoinedPayload(self._data["payload"])


class ParticipantUnlinked(Event):
    """A link has ended; `payload.reason` says why."""

    __slots__ = ()

    @property
    def payload(self) -> UnlinkedPayload:
        return UnlinkedPayload(self._data["payload"])


class ParticipantIdentityChanged(Event):
    """The same person under a new number or account."""

    __slots__ = ()

    @property
    def payload(self) -> IdentityChangedPayload:
        return IdentityChangedPayload(self._data["payload"])


class MessageReceived(Event):
    """An ordinary message, with the sender's `customer_reference` where they are linked."""

    __slots__ = ()

    @property
    def payload(self) -> MessagePayload:
        return MessagePayload(self._data["payload"])


class RegistrationIntentEvent(Event):
    """`registration_intent.rejected`, `.expired` and their like: an intent as a secret key reads it."""

    __slots__ = ()

    @property
    def payload(self) -> RegistrationIntentPayload:
        return RegistrationIntentPayload(self._data["payload"])


class SecurityEvent(Event):
    """`security.token_reuse`, `security.declined`: somebody should look at this."""

    __slots__ = ()

    @property
    def payload(self) -> SecurityPayload:
        return SecurityPayload(self._data["payload"])


class WebhookEndpointEvent(Event):
    """`webhook_endpoint.disabled`, `webhook_endpoint.failing`: a receiver of yours needs help."""

    __slots__ = ()

    @property
    def payload(self) -> WebhookEndpointPayload:
        return WebhookEndpointPayload(self._data["payload"])


_EVENTS: dict[str, type[Event]] = {
    "participant.joined": ParticipantJoined,
    "participant.unlinked": ParticipantUnlinked,
    "participant.identity_changed": ParticipantIdentityChanged,
    "message.received": MessageReceived,
}
_FAMILIES: dict[str, type[Event]] = {
    "registration_intent": RegistrationIntentEvent,
    "security": SecurityEvent,
    "webhook_endpoint": WebhookEndpointEvent,
}


# Verifying


def unwrap(
    body: bytes | bytearray | memoryview,
    headers: Headers,
    secret: Secrets | None = None,
    *,
    tolerance: timedelta = TOLERANCE,
    max_age: timedelta = MAX_AGE,
    require_timestamp: bool = False,
    now: datetime | None = None,
) -> Event:
    """Verify a delivery and return its event. Raises WebhookVerificationError, whose `fault` names the cause."""
    verify(
        body,
        headers,
        secret,
        tolerance=tolerance,
        max_age=max_age,
        require_timestamp=require_timestamp,
        now=now,
    )
    try:
        content = json.loads(bytes(body))
    except (ValueError, RecursionError):
        content = None
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("event"), str)
        or not isinstance(content.get("payload"), dict)
    ):
        raise _refusal(
            "not_an_event",
            "The signature is right, but the body is not an event: {event, payload, sentAt}.",
            "Somebody else who has this secret signed it; if nobody should, rotate it.",
        )
    name = content["event"]
    return (_EVENTS.get(name) or _FAMILIES.get(name.partition(".")[0], Event))(content)


def verify(
    body: bytes | bytearray | memoryview,
    headers: Headers,
    secret: Secrets | None = None,
    *,
    tolerance: timedelta = TOLERANCE,
    max_age: timedelta = MAX_AGE,
    require_timestamp: bool = False,
    now: datetime | None = None,
) -> None:
    """Return for an authentic delivery, else raise WebhookVerificationError.

    body: the bytes as received. headers: a mapping or pairs, in any case. secret: one, or several while rotating, as text
    or its UTF-8 bytes; left out, WABERY_WEBHOOK_SECRET. max_age: how old the signed `sentAt` may be where a delivery
    carries the contract's header alone. require_timestamp: reject such a delivery whatever its age. now: aware; for tests.
    """
    raw = _raw_body(body)
    secrets = _secrets(secret)
    fields = _normalise(headers)
    moment = int((now or datetime.now(UTC)).timestamp())
    if require_timestamp or any(name in fields for name in _STANDARD):
        _verify_standard(raw, fields, secrets, tolerance, moment)
    else:
        _verify_contract(raw, fields, secrets, tolerance, max_age, moment)


def _verify_standard(
    body: bytes, fields: Mapping[str, str], secrets: list[str], tolerance: timedelta, now: int
) -> None:
    for name in _STANDARD:
        if not fields.get(name):
            raise _refusal("missing_header", f"The header {name} is missing.", _DROPPED)
    event_id, stamp = fields["webhook-id"], fields["webhook-timestamp"]
    if not re.fullmatch(r"[0-9]{1,12}", stamp, re.ASCII):
        raise _refusal("malformed_header", "webhook-timestamp is not a number of seconds.", _CHANGED)
    signatures = _V1.findall(fields["webhook-signature"])
    if not signatures:
        raise _refusal("malformed_header", "webhook-signature holds no v1 signature.", _CHANGED)

    def expected(secret: str, signed: bytes) -> str:
        return _standard_signature(secret, event_id, stamp, signed)

    if not _any_equal(body, secrets, signatures, expected):
        raise _signature_refusal(body, secrets, signatures, expected)
    _check_age(now - int(stamp), tolerance, tolerance)


def _verify_contract(
    body: bytes,
    fields: Mapping[str, str],
    secrets: list[str],
    tolerance: timedelta,
    max_age: timedelta,
    now: int,
) -> None:
    values = [fields[name] for name in _CONTRACT if name in fields]
    if not values:
        raise _refusal(
            "missing_header", "There is neither x-wabery-signature nor webhook-signature.", _DROPPED
        )
    signatures = [found.lower() for value in values for found in _SHA256_HEX.findall(value)]
    if not signatures:
        raise _refusal(
            "malformed_header", "x-wabery-signature is not sha256= and 64 hexadecimal digits.", _CHANGED
        )
    if not _any_equal(body, secrets, signatures, _contract_signature):
        raise _signature_refusal(body, secrets, signatures, _contract_signature)
    sent_at = _sent_at(body)
    if sent_at is None:
        raise _refusal(
            "no_sent_at",
            "The delivery has no webhook-* headers, and its body no valid `sentAt`, so its age is unknown.",
            "Pass all headers of the request; something may have removed webhook-id, -timestamp and -signature.",
        )
    _check_age(now - sent_at, max_age, tolerance)


def _sent_at(body: bytes) -> int | None:
    """The Unix seconds of `sentAt` in a body; None without a valid one."""
    try:
        content = json.loads(body.decode("utf-8-sig"))
        text = content["sentAt"]
        return int(datetime.fromisoformat(text).timestamp()) if _MOMENT.fullmatch(text) else None
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None


def _check_age(age: int, most: timedelta, ahead: timedelta) -> None:
    """`age` in seconds; negative for a delivery from the future."""
    limit = ahead if age < 0 else most
    if abs(age) > limit.total_seconds():
        raise _refusal(
            "timestamp_too_new" if age < 0 else "timestamp_too_old",
            f"The delivery was sent {abs(age)} s {'after' if age < 0 else 'before'} the time of this machine's clock; "
            f"{limit.total_seconds():.0f} s are allowed.",
            "Check this machine's clock; an old delivery may be a replay by an attacker.",
        )


_DROPPED = "A proxy or framework may have dropped it; pass the request's own headers."
_CHANGED = "Something on the way changed it, or it is not Wabery's; pass the header exactly as it arrived."
_Sign: TypeAlias = Callable[[str, bytes], str]


def _any_equal(body: bytes, secrets: Iterable[str], signatures: Iterable[str], sign: _Sign) -> bool:
    given = [signature.encode("utf-8", "replace") for signature in signatures]
    return any(hmac.compare_digest(sign(secret, body).encode(), one) for secret in secrets for one in given)


def _signature_refusal(
    body: bytes, secrets: list[str], signatures: list[str], sign: _Sign
) -> WebhookVerificationError:
    """Which of the usual mistakes it was."""
    for again in _reserialised(body) if len(body) <= _WORTH_DIAGNOSING else ():
        if _any_equal(again, secrets, signatures, sign):
            return _refusal(
                "body_reserialized",
                "The body was parsed and written again: the signature fits its content, but not these bytes.",
                "Pass the request's raw body, read before any JSON middleware.",
            )
    hint = "Compare the secret with the webhook_secret of the project, and pass the body exactly as it was received."
    if any(secret.startswith("wab_") for secret in secrets):
        hint = "The secret given is an API key; the signing secret is the project's webhook_secret."
    elif _any_equal(body, [secret.strip().strip("\"'") for secret in secrets], signatures, sign):
        hint = "The secret given has quotes or white space around it."
    return _refusal(
        "wrong_signature", "The signature matches no secret: a wrong secret, or a changed body.", hint
    )


def _reserialised(body: bytes) -> Iterable[bytes]:
    """The bytes the server may have sent, if what we hold is the same JSON written by somebody else."""
    try:
        content = json.loads(body)
        for ascii_only in (False, True):
            yield json.dumps(content, ensure_ascii=ascii_only, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        return


def _contract_signature(secret: str, body: bytes) -> str:
    return hmac.digest(_utf8(secret), body, hashlib.sha256).hex()


def _standard_signature(secret: str, event_id: str, stamp: str, body: bytes) -> str:
    signed = _utf8(event_id) + b"." + stamp.encode() + b"." + body
    return base64.b64encode(hmac.digest(_standard_key(secret), signed, hashlib.sha256)).decode()


def _standard_key(secret: str) -> bytes:
    """The base64 after `whsec_`; a secret of any other form counts as its UTF-8 bytes."""
    if secret.startswith("whsec_"):
        with contextlib.suppress(ValueError):
            return base64.b64decode(secret.removeprefix("whsec_"), validate=True) or _utf8(secret)
    return _utf8(secret)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _raw_body(body: object) -> bytes:
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    words: dict[type, str] = {str: "text", dict: "already parsed", list: "already parsed"}
    what = words.get(type(body), f"of type {type(body).__name__}")
    raise _refusal(
        "body_not_bytes",
        f"The body is {what}; the signature covers the bytes as they were received.",
        "Pass request.body(), request.get_data() or what your framework calls the raw body.",
    )


def _secrets(secret: Secrets | None) -> list[str]:
    if secret is None:
        secret = os.environ.get("WABERY_WEBHOOK_SECRET", "")
    given: object = [secret] if isinstance(secret, str | bytes | bytearray | memoryview) else secret
    if not isinstance(given, Sequence):
        given = [given]
    secrets = [_secret_text(one) for one in given]
    if not secrets or not all(secrets):
        raise _refusal(
            "no_secret", "No signing secret was given.", "Pass secret=… or set WABERY_WEBHOOK_SECRET."
        )
    return secrets


def _secret_text(secret: object) -> str:
    """A secret as text; bytes are the UTF-8 of one."""
    if isinstance(secret, bytes | bytearray | memoryview):
        with contextlib.suppress(ValueError):
            return bytes(secret).decode()
        raise _refusal("no_secret", "The signing secret is not UTF-8.", _TEXT)
    if isinstance(secret, str):
        return secret
    raise _refusal("no_secret", f"The signing secret is of type {type(secret).__name__}.", _TEXT)


_TEXT = "Pass the project's webhook_secret as text, such as whsec_…"


def _normalise(headers: Headers) -> dict[str, str]:
    """Lower-case names to values; those of a repeated header are joined by commas, as HTTP has it.

    Anything that is not a header is left out, so that odd input is 'missing', not a crash.
    """
    pairs: Iterable[Any] = headers.items() if isinstance(headers, Mapping) else headers
    fields: dict[str, str] = {}
    for pair in pairs:
        if not isinstance(pair, Sequence) or isinstance(pair, str | bytes) or len(pair) != 2:
            continue
        name, value = _header_text(pair[0]), pair[1]
        if name is None:
            continue
        name = name.lower()
        for text in map(_header_text, value if isinstance(value, list | tuple) else [value]):
            if text is not None:
                fields[name] = f"{fields[name]}, {text.strip()}" if name in fields else text.strip()
    return fields


def _header_text(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, str) else None


def _refusal(fault: WebhookFault, message: str, hint: str | None = None) -> WebhookVerificationError:
    return WebhookVerificationError(message, fault=fault, hint=hint)


# Testing your own receiver


class SignedDelivery(NamedTuple):
    """A delivery as Wabery would send it."""

    body: bytes
    headers: dict[str, str]


def sign_for_test(
    body: bytes | Mapping[str, object],
    secret: str,
    *,
    next_secret: str | None = None,
    event_id: str = "evt_00000000000000000000000000",
    now: datetime | None = None,
) -> SignedDelivery:
    """Sign a body as Wabery does, for the tests of your own receiver. With `next_secret`, as during a rotation."""
    raw = (
        body
        if isinstance(body, bytes)
        else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    )
    stamp = str(int((now or datetime.now(UTC)).timestamp()))
    secrets = [secret] if next_secret is None else [secret, next_secret]
    headers = {
        "content-type": "application/json",
        "x-wabery-signature": f"sha256={_contract_signature(secret, raw)}",
        "webhook-id": event_id,
        "webhook-timestamp": stamp,
        "webhook-signature": " ".join(
            f"v1,{_standard_signature(one, event_id, stamp, raw)}" for one in secrets
        ),
    }
    if next_secret is not None:
        headers["x-wabery-signature-next"] = f"sha256={_contract_signature(next_secret, raw)}"
    return SignedDelivery(raw, headers)


# Frameworks. None is imported: each helper asks only for what that framework's request has.


class DjangoRequest(Protocol):
    """`django.http.HttpRequest`, as far as it is needed."""

    @property
    def body(self) -> bytes: ...

    @property
    def headers(self) -> Mapping[str, str]: ...


class FlaskRequest(Protocol):
    """`flask.Request`, as far as it is needed."""

    @property
    def headers(self) -> Any: ...

    def get_data(self) -> bytes: ...


class StarletteRequest(Protocol):
    """`starlette.requests.Request`, which FastAPI's is too, as far as it is needed."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    async def body(self) -> bytes: ...


def unwrap_django(request: DjangoRequest, secret: Secrets | None = None) -> Event:
    """The event of a Django request. The view needs `@csrf_exempt` and must not have read `request.POST`."""
    return unwrap(request.body, request.headers, secret)


def unwrap_flask(request: FlaskRequest, secret: Secrets | None = None) -> Event:
    """The event of a Flask (or Werkzeug) request."""
    return unwrap(request.get_data(), request.headers.items(), secret)


async def unwrap_starlette(request: StarletteRequest, secret: Secrets | None = None) -> Event:
    """The event of a Starlette or FastAPI request. Take the `Request` itself, not a model, as the parameter."""
    return unwrap(await request.body(), request.headers, secret)


async def unwrap_asgi(
    scope: Mapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    secret: Secrets | None = None,
    *,
    max_body: int = MAX_BODY,
) -> Event:
    """The event of a plain ASGI application's HTTP request; reads the body to its end."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _refusal("not_an_event", "The sender went away before the body was complete.")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > max_body:
            raise _refusal("body_too_large", f"The body is larger than {max_body} bytes.")
    return unwrap(body, scope["headers"], secret)


def unwrap_wsgi(
    environ: Mapping[str, Any], secret: Secrets | None = None, *, max_body: int = MAX_BODY
) -> Event:
    """The event of a plain WSGI application's request; reads the body to its end."""
    length = str(environ.get("CONTENT_LENGTH") or "0")
    size = int(length) if re.fullmatch(r"[0-9]{1,12}", length, re.ASCII) else 0
    if size > max_body:
        raise _refusal("body_too_large", f"The body is larger than {max_body} bytes.")
    if environ.get("wsgi.input_terminated") and not length.strip("0"):
        size = max_body + 1  # sent in chunks, whose end this server marks
    stream: IO[bytes] = environ["wsgi.input"]
    headers = [
        (name.removeprefix("HTTP_").replace("_", "-"), value)
        for name, value in environ.items()
        if name.startswith("HTTP_")
    ]
    body = stream.read(size)
    if len(body) > max_body:
        raise _refusal("body_too_large", f"The body is larger than {max_body} bytes.")
    return unwrap(body, headers, secret)
