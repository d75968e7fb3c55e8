"""Meta's Cloud API: the signature, the handshake and the webhook body.

A body batches up to a thousand updates, of several numbers and senders. Meta adds fields, types and error codes without
notice, and phone numbers may be missing. So a body is read in two steps: the envelope, in which every message stays
raw, and then each message by itself. Input that does not fit a typed struct is read again field by field, leaving out
the fields that are wrong. A message that is still not understood becomes a message of kind UNREADABLE; the other
messages of the body are not affected.

Sources: Meta, "Webhooks", "messages webhook reference", "standby" and "Business-scoped user IDs".
"""

import binascii
import contextlib
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import msgspec
from msgspec import Raw, Struct

from wabery_server import tokens
from wabery_server.contacts import Identity
from wabery_server.inbox import HandledBy, Kind, Media, Message, Reply
from wabery_server.whatsapp.meta_json import (
    CONTACT,
    FIELDS,
    MESSAGE,
    VALUE,
    WireChange,
    WireContact,
    WireContent,
    WireMedia,
    WireMessage,
    WireMetadata,
    WireProfile,
    WireValue,
    clean,
    envelope,
    load,
    plain_json,
    read,
)
from wabery_server.whatsapp.provider import Change, Ignored, Parsed

SIGNATURE_HEADER: Final = "X-Hub-Signature-256"

MAX_HINTS: Final = 16
"""At most this many numbers are named before verification: each may cost a look-up and a hash of the whole body."""
MAX_MESSAGE_ID: Final = 512
MAX_SENDER_ID: Final = 256
"""Ids are never cut, since two people could then share one: a longer id makes its message unreadable."""
MAX_NUMBER_ID: Final = 32
MAX_NAME: Final = 256
MAX_TYPE: Final = 64
MAX_TEXT: Final = 65_536
"""Names, types and texts are cut here, in characters."""
MAX_CONTENT: Final = 65_536
"""Larger content, context or referral is left out, and `content_truncated` says so. In bytes of UTF-8 JSON."""
_PHONE_NUMBER_ID = re.compile(rb'"phone_number_id"\s*:\s*"([0-9]{1,32})"')
_PHONE = re.compile(r"[0-9]{5,20}")
_PHONE_DECORATION = str.maketrans("", "", "+ -()\u00a0\u202f\u2011")
_PARENT_BSUID = re.compile(r"[A-Za-z]{2}\.ENT\.[0-9A-Za-z]{1,128}")
_BSUID = re.compile(r"[A-Za-z]{2}\.[0-9A-Za-z]{1,128}")
_FIELD_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_OLDEST = datetime(2009, 1, 1, tzinfo=UTC)
"""WhatsApp began in 2009: an earlier stamp is garbage."""
_FARTHEST_AHEAD = timedelta(days=1)
_encode = msgspec.json.Encoder().encode

_READ_FIELDS: Final[Mapping[str, HandledBy]] = {"messages": HandledBy.APP, "standby": HandledBy.AGENT}
"""The fields that bring customers' messages. While Meta's Business Agent holds a conversation they come on `standby`."""
_OTHER_FIELDS: Final[Mapping[str, Ignored]] = {
    "message_echoes": Ignored.ECHO,
    "smb_message_echoes": Ignored.ECHO,
    "history": Ignored.HISTORY,
    "smb_app_state_sync": Ignored.CONTACT_BOOK,
}
_IGNORED_TYPES: Final[Mapping[str, Ignored]] = {"reaction": Ignored.REACTION, "revoke": Ignored.REVOKE}
_SYSTEM_TYPES: Final = frozenset({"system"})
_TYPES_NOT_WRITTEN: Final = frozenset({"request_welcome"})
"""Sent by WhatsApp when a person opens the chat: passed on, but nobody wrote a text, so it never carries a token."""
_TYPES_WITHOUT_TEXT: Final = frozenset(
    {"image", "video", "document", "audio", "sticker", "location", "contacts", "order", "request_welcome"}
)
"""A message of these types is complete without any text; the first three may have a caption."""
_WITHHELD_TYPES: Final = frozenset({"unsupported", "unknown"})
_ENVELOPE_FIELDS: Final = frozenset(
    {
        "id", "from", "from_user_id", "from_parent_user_id", "user_id", "parent_user_id", "wa_id", "timestamp",
        "type", "context", "referral", "group_id",
    }
)  # fmt: skip
"""Of an unknown type whose own object is missing, everything but these is its content."""


# Verification


def signer(body: bytes, headers: Sequence[bytes], secrets: Sequence[bytes]) -> int | None:
    """The index of the app secret whose HMAC-SHA256 of the received bytes is in `X-Hub-Signature-256`.

    Hex digits count in either case. Two headers are refused: a proxy may have checked the other one.
    """
    claimed = _claimed(headers)
    if claimed is None:
        return None
    for index, secret in enumerate(secrets):
        if secret and hmac.compare_digest(hmac.digest(secret, body, "sha256"), claimed):
            return index
    return None


def signed(headers: Sequence[bytes]) -> bool:
    """Whether these headers can be a signature at all; a request without one costs no look-up and no hashing."""
    return _claimed(headers) is not None


def _claimed(headers: Sequence[bytes]) -> bytes | None:
    if len(headers) != 1 or not headers[0].startswith(b"sha256="):
        return None
    try:
        claimed = binascii.unhexlify(headers[0][7:])
    except ValueError:
        return None
    return claimed if len(claimed) == hashlib.sha256().digest_size else None


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

    Raises Unreadable when the body is not a JSON object.
    """
    read_body, too_deep = envelope(body)
    changes = [
        _change(entry.id, change, received_at) for entry in read_body.entry for change in entry.changes
    ]
    return Parsed(changes, too_deep)


class _Head(Struct, frozen=True):
    """What the messages of one change have in common."""

    waba_id: str | None
    field: str
    handled_by: HandledBy
    phone_number_id: str | None
    display_phone_number: str | None
    contacts: "dict[str, _Known]"
    only_contact: "_Known | None"
    """The contact, when the value holds exactly one and exactly one message."""


class _Known(Struct, frozen=True):
    """A contact of a value, with its ids in their places."""

    bsuid: str | None
    parent_bsuid: str | None
    phone: str | None
    profile: WireProfile | None
    raw: Raw | None


def _change(waba_id: str | None, change: WireChange, received_at: datetime) -> Change:
    value = change.value or WireValue()
    metadata = value.metadata or WireMetadata()
    messages: list[Message] = []
    ignored: dict[str, int] = {}
    handled_by = _READ_FIELDS.get(change.field)
    if handled_by is not None:
        known = [_known(raw) for raw in value.contacts] if value.messages else []
        only = known[0] if len(known) == 1 and len(value.messages) == 1 else None
        head = _Head(
            waba_id,
            change.field,
            handled_by,
            metadata.phone_number_id,
            metadata.display_phone_number,
            _by_id(known),
            only,
        )
        for raw in value.messages:
            message = _message(raw, head, received_at)
            if isinstance(message, Message):
                messages.append(message)
            else:
                ignored[message] = ignored.get(message, 0) + 1
        for reason, things in (
            (Ignored.ECHO, value.message_echoes),
            (Ignored.STATUS, value.statuses),
            (Ignored.NOTICE, value.errors),
            (Ignored.USER_ACTION, value.user_actions),
        ):
            if things:
                ignored[reason] = ignored.get(reason, 0) + len(things)
    else:
        ignored[_OTHER_FIELDS.get(change.field) or _named(change.field)] = 1
    return Change(
        phone_number_id=_number_id(metadata.phone_number_id),
        display_digits=_phone(metadata.display_phone_number),
        waba_id=waba_id,
        field=change.field[:MAX_TYPE],
        about_number=handled_by is not None or change.field in _OTHER_FIELDS,
        messages=messages,
        ignored=ignored,
    )


def _number_id(phone_number_id: str | None) -> str | None:
    """As the body names it, short enough for a log line; a shortened one is no channel's."""
    if not phone_number_id:
        return None
    if len(phone_number_id) <= MAX_NUMBER_ID:
        return phone_number_id if phone_number_id.isdecimal() else tokens.redact(phone_number_id)
    return tokens.redact(phone_number_id[: 2 * MAX_NUMBER_ID])[:MAX_NUMBER_ID] + "…"


def _named(field: str) -> str:
    """A field that this build does not read is counted under its own name."""
    return tokens.redact(field) if _FIELD_NAME.fullmatch(field) else Ignored.OTHER_FIELD


def _known(raw: Raw) -> _Known:
    wire = read(raw, CONTACT, WireContact)
    bsuid, parent_bsuid, phone = _ids(wire.user_id, wire.parent_user_id, wire.wa_id)
    return _Known(bsuid, parent_bsuid, phone, wire.profile, raw)


def _by_id(known: Sequence[_Known]) -> dict[str, _Known]:
    """Contacts under each of their ids; these cannot be mistaken for one another (`CC.…`, `CC.ENT.…`, digits)."""
    contacts: dict[str, _Known] = {}
    for one in known:
        for key in (one.bsuid, one.parent_bsuid, one.phone):
            if key:
                contacts[key] = one
    return contacts


def _message(raw: Raw, head: _Head, received_at: datetime) -> Message | Ignored:
    try:
        return _understood(raw, head, received_at)
    except Exception as failure:  # noqa: BLE001  # a bug of ours that one message meets must not cost the others
        return Message(
            provider_message_id=_id_of(raw),
            kind=Kind.UNREADABLE,
            type="unknown",
            sender=None,
            sent_at=received_at.replace(microsecond=0),
            handled_by=head.handled_by,
            error=type(failure).__name__,
            failure=failure,
            original=partial(_alone, head, _mentioned(raw, head), raw),
        )


def _mentioned(raw: Raw, head: _Head) -> _Known | None:
    """The contact of a message that could not be read: one of its ids occurs in the message."""
    text = bytes(raw)
    for key, contact in head.contacts.items():
        if key.encode(errors="replace") in text:
            return contact
    return head.only_contact


def _id_of(raw: Raw) -> str:
    """The message's own id, for a message that could not be read otherwise."""
    with contextlib.suppress(Exception):
        message_id = VALUE.decode(FIELDS.decode(raw)["id"])
        if isinstance(message_id, str) and 0 < len(message_id) <= MAX_MESSAGE_ID and "\0" not in message_id:
            return message_id
    return _stand_in_id(raw)


def _understood(raw: Raw, head: _Head, received_at: datetime) -> Message | Ignored:
    wire = read(raw, MESSAGE, WireMessage)
    if wire.group_id is not None:
        return Ignored.GROUP
    if wire.type in _IGNORED_TYPES:
        return _IGNORED_TYPES[wire.type]
    is_edit = wire.type == "edit"
    said = wire.edit.message if is_edit and wire.edit and wire.edit.message else wire
    sender, contact = _sender(wire, head)
    texts = () if wire.type in _TYPES_NOT_WRITTEN else _texts(said)
    content = _content(raw, wire)
    known_id = wire.id is not None and 0 < len(wire.id) <= MAX_MESSAGE_ID
    error = None
    if wire.type in _SYSTEM_TYPES:
        kind = Kind.SYSTEM
    else:
        error = _flaw(
            said, known_id=known_id, known_sender=sender is not None, has_text=bool(texts), content=content
        )
        kind = Kind.MESSAGE if error is None else Kind.UNREADABLE
    return Message(
        provider_message_id=wire.id if wire.id is not None and known_id else _stand_in_id(raw),
        kind=kind,
        type=wire.type[:MAX_TYPE],
        sender=sender,
        sent_at=_sent_at(wire.timestamp, received_at),
        handled_by=head.handled_by,
        texts=texts,
        forwarded=wire.context is not None and (wire.context.forwarded or wire.context.frequently_forwarded),
        is_edit=is_edit,
        error=error,
        reply=_reply(wire),
        media=_media(wire),
        context_id=(wire.context.id or None) if wire.context else None,
        content=content.content,
        context=content.context,
        referral=content.referral,
        content_truncated=content.truncated,
        raw=b"{}" if kind is Kind.MESSAGE else plain_json(raw),
        original=partial(_alone, head, contact, raw),
    )


def _alone(head: _Head, contact: _Known | None, raw: Raw) -> bytes:
    """A body that holds this one message and its contact: `parse` reads the same message from it."""
    metadata = {
        "display_phone_number": head.display_phone_number,
        "phone_number_id": head.phone_number_id,
    }
    value = {
        "metadata": metadata,
        "contacts": [contact.raw] if contact is not None and contact.raw is not None else [],
        "messages": [raw],
    }
    entry = {"id": head.waba_id, "changes": [{"field": head.field, "value": value}]}
    return _encode({"entry": [entry]})


def _sender(wire: WireMessage, head: _Head) -> tuple[Identity | None, _Known | None]:
    """Who wrote, and the contact that describes them.

    1. The message's own ids, in this order: `from_user_id`, `user_id`, `from`, `wa_id`.
    2. The contact that bears one of them completes the rest, unless its BSUID is another one: the same phone under
       another BSUID is another person.
    3. A message that names no one was written by the value's only contact, if it is the value's only message.
    """
    bsuid, parent_bsuid, phone = _ids(
        wire.from_user_id or wire.user_id,
        wire.from_parent_user_id or wire.parent_user_id,
        wire.from_,
        wire.wa_id,
    )
    named = bool(bsuid or parent_bsuid or phone or wire.from_user_id or wire.user_id)
    contact = head.contacts.get(bsuid or "")
    if contact is None:
        contact = head.contacts.get(phone or "") or head.contacts.get(parent_bsuid or "")
        if contact and contact.bsuid and bsuid:
            contact = None
    if contact is None and not named and not (wire.from_ or wire.wa_id):
        contact = head.only_contact
    described = contact or _NO_CONTACT
    profile = described.profile or _NO_PROFILE
    bsuid = bsuid or described.bsuid
    parent_bsuid = parent_bsuid or described.parent_bsuid
    phone = phone or described.phone
    if not (bsuid or parent_bsuid or phone) or max(len(bsuid or ""), len(parent_bsuid or "")) > MAX_SENDER_ID:
        return None, contact
    sender = Identity(
        bsuid=bsuid,
        parent_bsuid=parent_bsuid,
        phone=phone,
        username=(profile.username or "").removeprefix("@")[:MAX_NAME] or None,
        profile_name=(profile.name or "")[:MAX_NAME] or None,
    )
    return sender, contact


def _ids(
    bsuid: str | None, parent_bsuid: str | None, *numbers: str | None
) -> tuple[str | None, str | None, str | None]:
    """BSUID, parent BSUID and phone; a BSUID that stands where a number belongs counts as what it is."""
    bsuid, parent_bsuid, phone = bsuid or None, parent_bsuid or None, None
    for number in numbers:
        if not number:
            continue
        if digits := _phone(number):
            phone = phone or digits
        elif _PARENT_BSUID.fullmatch(number):
            parent_bsuid = parent_bsuid or number
        elif _BSUID.fullmatch(number):
            bsuid = bsuid or number
    return bsuid, parent_bsuid, phone


def _phone(number: str | None) -> str | None:
    """The digits of a phone number, without `+`, spaces and dashes; None for anything else."""
    if not number or len(number) > MAX_SENDER_ID:
        return None
    digits = number if number.isdecimal() else number.translate(_PHONE_DECORATION)
    return digits if _PHONE.fullmatch(digits) else None


_NO_CONTACT = _Known(None, None, None, None, None)
_NO_PROFILE = WireProfile()


def _texts(content: WireContent) -> tuple[str, ...]:
    """Every text that a person may have written or pressed, wherever it stands, so that a new type with text is read."""
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


def _reply(wire: WireContent) -> Reply | None:
    """What a person pressed or filled in."""
    if wire.type == "button" and wire.button:
        return Reply(title=_short(wire.button.text), payload=_short(wire.button.payload))
    if wire.type != "interactive" or wire.interactive is None:
        return None
    chosen = wire.interactive.button_reply or wire.interactive.list_reply
    if chosen:
        return Reply(id=_short(chosen.id), title=_short(chosen.title))
    if form := wire.interactive.nfm_reply:
        return Reply(title=_short(form.body), response=_short(form.response_json))
    if permission := wire.interactive.call_permission_reply:
        return Reply(response=_short(permission.response))
    return None


def _media(wire: WireContent) -> Media | None:
    """The file of an image, video, document, audio or sticker message; it is fetched from Meta by its id."""
    found: WireMedia | None = getattr(wire, wire.type) if wire.type in _MEDIA_TYPES else None
    if found is None:
        return None
    return Media(
        id=_short(found.id),
        mime_type=_short(found.mime_type),
        sha256=_short(found.sha256),
        filename=_short(found.filename),
        voice=found.voice,
        animated=found.animated,
    )


_MEDIA_TYPES: Final = frozenset({"image", "video", "document", "audio", "sticker"})


def _short(text: str | None) -> str | None:
    return text[:MAX_TEXT] if text is not None else None


class _Kept(Struct, frozen=True):
    """The provider's own JSON of a message's parts: valid UTF-8, without U+0000 and lone surrogates."""

    content: bytes | None = None
    context: bytes | None = None
    referral: bytes | None = None
    truncated: bool = False


def _content(raw: Raw, wire: WireMessage) -> _Kept:
    """The object that a message names by its type (or, where that is missing, all that is new), context and referral."""
    try:
        fields = FIELDS.decode(raw)
    except (ValueError, RecursionError):
        try:
            loaded = load(bytes(raw))
        except ValueError:
            return _Kept()
        if not isinstance(loaded, dict):
            return _Kept()
        fields = {key: Raw(_encode(value)) for key, value in loaded.items()}
    own = fields.get(wire.type) if wire.type not in _ENVELOPE_FIELDS else None
    if (failed := fields.get("errors")) is not None:
        content = clean(
            Raw(_encode({"errors": failed} if own is None else {"errors": failed, wire.type: own}))
        )
    elif own is not None:
        content = clean(own)
    else:
        others = {key: value for key, value in fields.items() if key not in _ENVELOPE_FIELDS}
        content = clean(Raw(_encode(others))) if others else None
    whole = [content, *[clean(fields[name]) if name in fields else None for name in ("context", "referral")]]
    fitting = [None if part is None or len(part) > MAX_CONTENT else part for part in whole]
    return _Kept(fitting[0], fitting[1], fitting[2], fitting != whole)


def _flaw(
    said: WireContent, *, known_id: bool, known_sender: bool, has_text: bool, content: _Kept
) -> str | None:
    """Why a message cannot be read, in words without personal data; None when it can."""
    if not known_id:
        return "it has no usable id"
    if not known_sender:
        return "it names no sender"
    if has_text or said.type in _TYPES_WITHOUT_TEXT:
        return None
    if said.type in _WITHHELD_TYPES or said.errors:
        code = said.errors[0].code if said.errors else None
        what = said.unsupported.type if said.unsupported else None
        return f"{code or said.type[:MAX_TYPE]}: WhatsApp withholds the content ({(what or 'unknown')[:MAX_TYPE]})"
    if said.type == "text":
        return "its text is missing"
    return None if content.content is not None or content.truncated else "its content is missing"


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
