"""Meta's Cloud API: the signature, the handshake and the webhook body.

A body batches up to a thousand updates, of several numbers and senders. It grows new fields, types and error codes
without notice, and phone numbers may be missing from it. So it is read in two steps: the envelope, in which every
message stays raw, and then each message by itself. What does not fit a typed struct at once is read again
patiently, leaving out the fields that are wrong, and what is still not understood becomes a message of kind
UNREADABLE; the other messages of the body never notice.

Sources: Meta, "Webhooks", "messages webhook reference" and "Business-scoped user IDs".
"""

import binascii
import contextlib
import hashlib
import hmac
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Raw, Struct

from wabery_server.contacts import Identity
from wabery_server.inbox import Kind, Message
from wabery_server.whatsapp.provider import Change, Ignored, Parsed, Unreadable

SIGNATURE_HEADER: Final = "X-Hub-Signature-256"

MAX_HINTS: Final = 16
"""At most this many numbers are named before verification: each may cost a look-up and a hash of the whole body."""
MAX_MESSAGE_ID: Final = 512
MAX_SENDER_ID: Final = 256
"""Ids are never cut, since two people could then share one: a longer id makes its message unreadable."""
MAX_NAME: Final = 256
MAX_TYPE: Final = 64
MAX_TEXT: Final = 65_536
"""Names, types and texts are cut here, in characters."""
MAX_RAW: Final = 65_536
"""A larger message of kind SYSTEM or UNREADABLE is kept without its JSON. In bytes."""

_PHONE_NUMBER_ID = re.compile(rb'"phone_number_id"\s*:\s*"([0-9]{1,32})"')
_PHONE = re.compile(r"\+?([0-9]{5,20})")
_OLDEST = datetime(2009, 1, 1, tzinfo=UTC)
"""WhatsApp began in 2009: an earlier stamp is garbage."""
_FARTHEST_AHEAD = timedelta(days=1)

_OTHER_FIELDS: Final[Mapping[str, Ignored]] = {
    "message_echoes": Ignored.ECHO,
    "smb_message_echoes": Ignored.ECHO,
    "history": Ignored.HISTORY,
    "smb_app_state_sync": Ignored.CONTACT_BOOK,
    "standby": Ignored.STANDBY,
}
_IGNORED_TYPES: Final[Mapping[str, Ignored]] = {"reaction": Ignored.REACTION, "revoke": Ignored.REVOKE}
_SYSTEM_TYPES: Final = frozenset({"system", "request_welcome"})
_TYPES_WITHOUT_TEXT: Final = frozenset(
    {"image", "video", "document", "audio", "sticker", "location", "contacts", "order"}
)
"""A message of these types is complete without any text; the first three may have a caption."""
_TYPES_OF_TEXT: Final = frozenset({"text", "button", "interactive", "edit"})


# The wire: what of Meta's JSON is read. Every field is optional, and unknown ones are skipped.


class _Wire(Struct, gc=False, rename={"from_": "from"}):
    pass


class _Metadata(_Wire):
    phone_number_id: str | None = None


class _Value(_Wire):
    metadata: _Metadata | None = None
    contacts: list[Raw] = []
    messages: list[Raw] = []
    statuses: list[Raw] = []
    errors: list[Raw] = []
    user_actions: list[Raw] = []


class _Change(_Wire):
    field: str = ""
    value: _Value | None = None


class _Entry(_Wire):
    id: str | None = None
    changes: list[_Change] = []


class _Envelope(_Wire):
    entry: list[_Entry] = []


class _Profile(_Wire):
    name: str | None = None
    username: str | None = None


class _Contact(_Wire):
    profile: _Profile | None = None
    wa_id: str | None = None
    user_id: str | None = None
    parent_user_id: str | None = None


class _Text(_Wire):
    body: str | None = None


class _Media(_Wire):
    caption: str | None = None


class _Button(_Wire):
    text: str | None = None
    payload: str | None = None


class _Choice(_Wire):
    id: str | None = None
    title: str | None = None
    description: str | None = None


class _Form(_Wire):
    body: str | None = None
    response_json: str | None = None


class _Interactive(_Wire):
    button_reply: _Choice | None = None
    list_reply: _Choice | None = None
    nfm_reply: _Form | None = None


class _Order(_Wire):
    text: str | None = None


class _Unsupported(_Wire):
    type: str | None = None


class _Error(_Wire):
    code: Annotated[int, msgspec.Meta(ge=0, lt=10**9)] | None = None


class _Content(_Wire):
    type: str = "unknown"
    text: _Text | None = None
    image: _Media | None = None
    video: _Media | None = None
    document: _Media | None = None
    button: _Button | None = None
    interactive: _Interactive | None = None
    order: _Order | None = None
    unsupported: _Unsupported | None = None
    errors: list[_Error] = []


class _Edit(_Wire):
    message: _Content | None = None


class _Context(_Wire):
    forwarded: bool = False
    frequently_forwarded: bool = False


class _Message(_Content):
    id: str | None = None
    from_: str | None = None
    from_user_id: str | None = None
    from_parent_user_id: str | None = None
    timestamp: str | None = None
    group_id: object = None
    """Any value at all marks a group, so any type is let in."""
    context: _Context | None = None
    edit: _Edit | None = None


_W = TypeVar("_W", bound=_Wire)

_ENVELOPE = msgspec.json.Decoder(_Envelope)
_CONTACT = msgspec.json.Decoder(_Contact)
_MESSAGE = msgspec.json.Decoder(_Message)


# Verification


def signer(body: bytes, headers: Sequence[bytes], secrets: Sequence[bytes]) -> int | None:
    """The index of the app secret whose HMAC-SHA256 of the received bytes is in `X-Hub-Signature-256`.

    Hex digits count in either case. Two headers are refused, since nobody can say which one a proxy checked.
    """
    if len(headers) != 1 or not headers[0].startswith(b"sha256="):
        return None
    try:
        claimed = binascii.unhexlify(headers[0][7:])
    except ValueError:
        return None
    for index, secret in enumerate(secrets):
        if secret and hmac.compare_digest(hmac.digest(secret, body, "sha256"), claimed):
            return index
    return None


def phone_number_ids(body: bytes) -> list[str]:
    """The first few numbers that a body names, each once. A regular expression, so nothing here is believed."""
    found: dict[str, None] = {}
    for match in _PHONE_NUMBER_ID.finditer(body):
        found[match[1].decode()] = None
        if len(found) == MAX_HINTS:
            break
    return list(found)


def handshake(query: Mapping[str, str], verify_tokens: Iterable[str]) -> str | None:
    """The challenge to answer as bare text/plain when Meta subscribes (an unsigned GET); None means 403."""
    offered = query.get("hub.verify_token", "").encode("utf-8", "replace")
    known = [hmac.compare_digest(token.encode(), offered) for token in verify_tokens if token]
    if query.get("hub.mode") != "subscribe" or not any(known):
        return None
    return query.get("hub.challenge") or None


# Parsing


def parse(body: bytes, received_at: datetime) -> Parsed:
    """Every entry, change and message. `received_at` stands in for stamps that are missing or impossible.

    Raises Unreadable when the body is not a JSON object (or is one nested so deeply that nobody can have meant it).
    """
    return Parsed(
        [
            _change(entry.id, change, received_at)
            for entry in _envelope(body).entry
            for change in entry.changes
        ]
    )


def _envelope(body: bytes) -> _Envelope:
    if b"\\u0000" not in body:  # else it is cleaned first: PostgreSQL's text cannot hold U+0000
        try:
            return _ENVELOPE.decode(body)
        except (ValueError, RecursionError):
            pass
    try:
        document = _load(body)
        if not isinstance(document, dict):
            raise Unreadable("the body is not a JSON object")
        return _salvage(document, _Envelope)
    except (ValueError, RecursionError) as failure:
        raise Unreadable("the body is not JSON") from failure


def _change(waba_id: str | None, change: _Change, received_at: datetime) -> Change:
    value = change.value or _Value()
    messages: list[Message] = []
    ignored: dict[Ignored, int] = {}
    if change.field == "messages":
        contacts = _by_id(value.contacts) if value.messages else {}
        for raw in value.messages:
            message = _message(raw, contacts, received_at)
            if isinstance(message, Message):
                messages.append(message)
            else:
                ignored[message] = ignored.get(message, 0) + 1
        for reason, things in (
            (Ignored.STATUS, value.statuses),
            (Ignored.NOTICE, value.errors),
            (Ignored.USER_ACTION, value.user_actions),
        ):
            if things:
                ignored[reason] = len(things)
    else:
        ignored[_OTHER_FIELDS.get(change.field, Ignored.OTHER_FIELD)] = 1
    return Change(
        phone_number_id=value.metadata.phone_number_id if value.metadata else None,
        waba_id=waba_id,
        field=change.field[:MAX_TYPE],
        messages=messages,
        ignored=ignored,
    )


def _by_id(raws: list[Raw]) -> dict[str, _Contact]:
    """Contacts under their BSUID and under their phone; neither can be mistaken for the other (`CC.…`, digits)."""
    contacts: dict[str, _Contact] = {}
    for raw in raws:
        contact = _read(raw, _CONTACT, _Contact)
        for key in (contact.user_id, contact.wa_id):
            if key:
                contacts[key] = contact
    return contacts


def _message(raw: Raw, contacts: Mapping[str, _Contact], received_at: datetime) -> Message | Ignored:
    wire = _read(raw, _MESSAGE, _Message)
    if wire.group_id is not None:
        return Ignored.GROUP
    if wire.type in _IGNORED_TYPES:
        return _IGNORED_TYPES[wire.type]
    is_edit = wire.type == "edit"
    content = wire.edit.message if is_edit and wire.edit and wire.edit.message else wire
    sender = _sender(wire, contacts)
    texts = _texts(content)
    known_id = wire.id is not None and 0 < len(wire.id) <= MAX_MESSAGE_ID
    error = None
    if wire.type in _SYSTEM_TYPES:
        kind = Kind.SYSTEM
    else:
        error = _flaw(content, known_id=known_id, known_sender=sender is not None, has_text=bool(texts))
        kind = Kind.MESSAGE if error is None else Kind.UNREADABLE
    return Message(
        provider_message_id=wire.id if wire.id is not None and known_id else _stand_in_id(raw),
        kind=kind,
        type=wire.type[:MAX_TYPE],
        sender=sender,
        sent_at=_sent_at(wire.timestamp, received_at),
        texts=texts,
        forwarded=wire.context is not None and (wire.context.forwarded or wire.context.frequently_forwarded),
        is_edit=is_edit,
        error=error,
        raw=b"{}" if kind is Kind.MESSAGE else _plain_json(raw),
    )


def _sender(wire: _Message, contacts: Mapping[str, _Contact]) -> Identity | None:
    """The message's own ids, completed by the contact that bears one of them; None when there is none to trust."""
    contact = contacts.get(wire.from_user_id or "")
    if contact is None:
        contact = contacts.get(wire.from_ or "")
        if contact and contact.user_id and wire.from_user_id:
            contact = None  # the same phone under another BSUID is another person
    contact = contact or _NOBODY
    profile = contact.profile or _NO_PROFILE
    bsuid = wire.from_user_id or contact.user_id or None
    parent_bsuid = wire.from_parent_user_id or contact.parent_user_id or None
    phone = _PHONE.fullmatch(wire.from_ or contact.wa_id or "")
    if not (bsuid or parent_bsuid or phone) or max(len(bsuid or ""), len(parent_bsuid or "")) > MAX_SENDER_ID:
        return None
    return Identity(
        bsuid=bsuid,
        parent_bsuid=parent_bsuid,
        phone=phone[1] if phone else None,
        username=(profile.username or "").removeprefix("@")[:MAX_NAME] or None,
        profile_name=(profile.name or "")[:MAX_NAME] or None,
    )


_NOBODY = _Contact()
_NO_PROFILE = _Profile()


def _texts(content: _Content) -> tuple[str, ...]:
    """Whatever a person may have written or pressed, wherever it sits, so that a new type with text is readable."""
    if content.type == "text" and content.text and content.text.body:
        return (content.text.body[:MAX_TEXT],)
    found: list[str | None] = []
    if content.text:
        found.append(content.text.body)
    found += [media.caption for media in (content.image, content.video, content.document) if media]
    if content.button:
        found += [content.button.text, content.button.payload]
    if content.interactive:
        for choice in (content.interactive.button_reply, content.interactive.list_reply):
            if choice:
                found += [choice.title, choice.description, choice.id]
        if form := content.interactive.nfm_reply:
            found += [form.body, form.response_json]
    if content.order:
        found.append(content.order.text)
    return tuple([text[:MAX_TEXT] for text in found if text])


def _flaw(content: _Content, *, known_id: bool, known_sender: bool, has_text: bool) -> str | None:
    """Why a message cannot be read, in words without personal data; None when it can."""
    if not known_id:
        return "it has no usable id"
    if not known_sender:
        return "it names no sender"
    if has_text or content.type in _TYPES_WITHOUT_TEXT:
        return None
    if content.type == "unsupported":
        code = content.errors[0].code if content.errors else None
        what = content.unsupported.type if content.unsupported else None
        return f"{code or 'unsupported'}: WhatsApp withholds the content ({(what or 'unknown')[:MAX_TYPE]})"
    return "its text is missing" if content.type in _TYPES_OF_TEXT else "its type is unknown"


def _sent_at(timestamp: str | None, received_at: datetime) -> datetime:
    try:
        sent_at = datetime.fromtimestamp(int(timestamp or ""), UTC)
    except (ValueError, OverflowError, OSError):
        return received_at.replace(microsecond=0)
    if _OLDEST <= sent_at <= received_at + _FARTHEST_AHEAD:
        return sent_at
    return received_at.replace(microsecond=0)


def _stand_in_id(raw: Raw) -> str:
    """The same for the same bytes, so that a redelivery is still recognised."""
    return "sha256." + hashlib.sha256(raw).hexdigest()


def _plain_json(raw: Raw) -> bytes:
    """The message as any JSON column takes it: valid UTF-8, no U+0000, no lone surrogates."""
    try:
        plain = msgspec.json.encode(_load(bytes(raw)))
    except ValueError:
        return b"{}"
    return plain if len(plain) <= MAX_RAW else b"{}"


# Patience: reading what does not fit


def _read(raw: Raw, decoder: msgspec.json.Decoder[_W], shape: type[_W]) -> _W:
    try:
        return decoder.decode(raw)
    except (ValueError, RecursionError):
        pass
    try:
        return _salvage(_load(bytes(raw)), shape)
    except ValueError:
        return shape()


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_MAX_INT_DIGITS = 18  # fits 64 bits; a longer run of digits stays text


def _load(data: bytes) -> object:
    """JSON by the standard library, which bears what msgspec refuses: lone surrogates, control characters, NaN.

    U+0000 and lone surrogates, which no PostgreSQL text can hold, become U+FFFD. Raises ValueError.
    """
    try:
        text = data.decode("utf-8-sig", "replace")
        return _scrub(json.loads(text, strict=False, parse_int=_int))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _int(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MAX_INT_DIGITS else digits


def _scrub(value: object) -> object:
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_scrub(item) for item in value]
    if isinstance(value, dict):
        return {_scrub(key): _scrub(item) for key, item in value.items()}
    return value


def _salvage(value: object, shape: type[_W]) -> _W:
    """A wire struct of the fields that fit; the others keep their defaults."""
    found: dict[str, object] = {}
    if isinstance(value, dict):
        for field in msgspec.structs.fields(shape):
            if field.encode_name in value:
                with contextlib.suppress(msgspec.ValidationError):
                    found[field.name] = _fit(value[field.encode_name], field.type)
    return shape(**found)


def _fit(value: object, shape: object) -> object:
    """`value` as the type of a wire field. Raises msgspec.ValidationError."""
    origin, arguments = typing.get_origin(shape), typing.get_args(shape)
    if origin is types.UnionType:  # always `… | None` here
        return None if value is None else _fit(value, arguments[0])
    if origin is list:
        return [_fit(item, arguments[0]) for item in value] if isinstance(value, list) else []
    if shape is Raw:
        return Raw(msgspec.json.encode(value))
    if isinstance(shape, type) and issubclass(shape, _Wire):
        return _salvage(value, shape)
    if shape is str and isinstance(value, int):
        return str(value)
    return msgspec.convert(value, shape, strict=False)
