"""What is read of Meta's JSON, and how input that does not fit is read all the same.

Every field is optional, and unknown ones are skipped. Input that msgspec refuses (a wrong type, a lone surrogate, U+0000,
a thousand levels) is read again field by field, so that only the broken part is lost.
"""

import contextlib
import json
import re
import types
import typing
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Raw, Struct

from wabery_server.whatsapp.provider import Unreadable

MAX_RAW: Final = 65_536
"""A larger message of kind SYSTEM or UNREADABLE is kept without its JSON. In bytes."""
MAX_DEPTH: Final = 64
"""Arrays and objects nested deeper than this are read as null. Meta nests about twelve levels."""


# The shapes


class Wire(Struct, gc=False, rename={"from_": "from"}):
    pass


class WireMetadata(Wire):
    phone_number_id: str | None = None
    display_phone_number: str | None = None


class WireValue(Wire):
    metadata: WireMetadata | None = None
    contacts: list[Raw] = []
    messages: list[Raw] = []
    message_echoes: list[Raw] = []
    statuses: list[Raw] = []
    errors: list[Raw] = []
    user_actions: list[Raw] = []


class WireChange(Wire):
    field: str = ""
    value: WireValue | None = None


class WireEntry(Wire):
    id: str | None = None
    changes: list[WireChange] = []


class WireEnvelope(Wire):
    entry: list[WireEntry] = []


class WireProfile(Wire):
    name: str | None = None
    username: str | None = None


class WireContact(Wire):
    profile: WireProfile | None = None
    wa_id: str | None = None
    user_id: str | None = None
    parent_user_id: str | None = None


class WireText(Wire):
    body: str | None = None


class WireMedia(Wire):
    caption: str | None = None
    id: str | None = None
    mime_type: str | None = None
    sha256: str | None = None
    filename: str | None = None
    voice: bool | None = None
    animated: bool | None = None


class WireButton(Wire):
    text: str | None = None
    payload: str | None = None


class WireChoice(Wire):
    id: str | None = None
    title: str | None = None
    description: str | None = None


class WireForm(Wire):
    body: str | None = None
    response_json: str | None = None


class WirePermission(Wire):
    response: str | None = None


class WireInteractive(Wire):
    button_reply: WireChoice | None = None
    list_reply: WireChoice | None = None
    nfm_reply: WireForm | None = None
    call_permission_reply: WirePermission | None = None


class WireOrder(Wire):
    text: str | None = None


class WireUnsupported(Wire):
    type: str | None = None


class WireError(Wire):
    code: Annotated[int, msgspec.Meta(ge=0, lt=10**9)] | None = None


class WireContent(Wire):
    type: str = "unknown"
    text: WireText | None = None
    image: WireMedia | None = None
    video: WireMedia | None = None
    document: WireMedia | None = None
    audio: WireMedia | None = None
    sticker: WireMedia | None = None
    button: WireButton | None = None
    interactive: WireInteractive | None = None
    order: WireOrder | None = None
    unsupported: WireUnsupported | None = None
    errors: list[WireError] = []


class WireEdit(Wire):
    message: WireContent | None = None


class WireContext(Wire):
    id: str | None = None
    forwarded: bool = False
    frequently_forwarded: bool = False


class WireMessage(WireContent):
    id: str | None = None
    from_: str | None = None
    from_user_id: str | None = None
    from_parent_user_id: str | None = None
    user_id: str | None = None
    parent_user_id: str | None = None
    wa_id: str | None = None
    timestamp: str | None = None
    group_id: object = None
    """Any value at all marks a group, so any type is let in."""
    context: WireContext | None = None
    edit: WireEdit | None = None


_W = TypeVar("_W", bound=Wire)

_ENVELOPE = msgspec.json.Decoder(WireEnvelope)
CONTACT = msgspec.json.Decoder(WireContact)
MESSAGE = msgspec.json.Decoder(WireMessage)
FIELDS = msgspec.json.Decoder(dict[str, Raw])
VALUE = msgspec.json.Decoder()
_encode = msgspec.json.Encoder().encode


# Reading


def envelope(body: bytes) -> tuple[WireEnvelope, int]:
    """The envelope, and how many of its parts were nested too deeply and are read as null."""
    too_deep = 0
    if b"\\u0000" not in body:  # PostgreSQL's text cannot hold U+0000: such a body is cleaned first
        try:
            return _ENVELOPE.decode(body), 0
        except RecursionError:
            body, too_deep = without_depths(body)
            with contextlib.suppress(ValueError):
                return _ENVELOPE.decode(body), too_deep
        except ValueError:
            pass
    try:
        document, deeper = _loaded(body)
    except ValueError as failure:
        raise Unreadable("the body is not JSON") from failure
    if not isinstance(document, dict):
        raise Unreadable("the body is not a JSON object")
    return _salvage(document, WireEnvelope), too_deep + deeper


_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z)|[\[\]{}]', re.DOTALL)
"""A string, ended or not, so that every byte is looked at once; or a bracket."""


def without_depths(body: bytes) -> tuple[bytes, int]:
    """JSON whose arrays and objects below MAX_DEPTH are null, and how many these were. Linear, without recursion."""
    kept: list[bytes] = []
    depth = cut = start = 0
    for match in _STRUCTURE.finditer(body):
        mark = body[match.start()]
        if mark in b"[{":
            depth += 1
            if depth == MAX_DEPTH + 1:
                kept += [body[start : match.start()], b"null"]
                cut += 1
        elif mark in b"]}":
            if depth == MAX_DEPTH + 1:
                start = match.end()
            depth -= 1
    if depth <= MAX_DEPTH:
        kept.append(body[start:])
    return b"".join(kept), cut


def read(raw: Raw, decoder: msgspec.json.Decoder[_W], shape: type[_W]) -> _W:
    try:
        return decoder.decode(raw)
    except (ValueError, RecursionError):
        pass
    try:
        return _salvage(load(bytes(raw)), shape)
    except ValueError:
        return shape()


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_MAX_INT_DIGITS = 18  # fits 64 bits; a longer run of digits stays text


def load(data: bytes) -> object:
    """JSON by the standard library, which accepts what msgspec refuses: lone surrogates, control characters, NaN.

    U+0000 and lone surrogates, which no PostgreSQL text can hold, become U+FFFD. Raises ValueError.
    """
    return _loaded(data)[0]


def _loaded(data: bytes) -> tuple[object, int]:
    """The same, and how many parts were nested too deeply and are null."""
    cut = 0
    while True:
        try:
            text = data.decode("utf-8-sig", "replace")
            return _scrub(json.loads(text, strict=False, parse_int=_int)), cut
        except RecursionError:
            if cut:
                raise ValueError("nested too deeply") from None
            data, cut = without_depths(data)
            cut = cut or 1


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
    if isinstance(shape, type) and issubclass(shape, Wire):
        return _salvage(value, shape)
    if shape is str and isinstance(value, int):
        return str(value)
    return msgspec.convert(value, shape, strict=False)


# JSON that can be stored


def clean(raw: Raw) -> bytes | None:
    """Compact JSON that any JSON column takes, at most MAX_DEPTH levels deep; None for null and for what is empty."""
    data = bytes(raw)
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        data, _ = without_depths(data)
    try:
        value = VALUE.decode(data)
        plain = _encode(value)
    except (ValueError, OverflowError):
        try:
            value = load(data)
            plain = _encode(value)
        except (ValueError, OverflowError):
            return None
    return plain if value not in (None, {}, [], "") else None


def plain_json(raw: Raw) -> bytes:
    """The message as any JSON column takes it: valid UTF-8, no U+0000, no lone surrogates."""
    try:
        plain = _encode(load(bytes(raw)))
    except (ValueError, OverflowError):
        return b"{}"
    return plain if len(plain) <= MAX_RAW else b"{}"
