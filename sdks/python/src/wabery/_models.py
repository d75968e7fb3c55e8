"""What the API answers with, as objects.

An object keeps the server's JSON and reads attributes from it: fields this version does not know are kept
(`intent["new_field"]`), values it does not know survive (`status == "SOMETHING_NEW"`), null is None, and a field that is not in
the answer raises AttributeError, so "nothing" and "not shown to this key" stay apart (`"token" in intent` asks).
Times (`…_at`) become aware datetimes. `repr` shows ids and states only; the rest may be secret or personal.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

IntentStatus: TypeAlias = Literal["PENDING", "JOINED", "REJECTED", "EXPIRED"] | str
IntentPhase: TypeAlias = (
    Literal["awaiting_confirmation", "awaiting_phone", "awaiting_app", "grace"] | str | None
)
ReferenceTrust: TypeAlias = Literal["server", "signed", "unverified"] | str


class Object:
    """A JSON object from the API. Read-only; compare with `==`, take apart with `to_dict()`."""

    __slots__ = ("_data",)
    _data: dict[str, Any]

    _objects: ClassVar[dict[str, type[Object]]] = {}
    """Fields whose objects have a class of their own."""
    _free: ClassVar[frozenset[str]] = frozenset({"metadata", "prefilled_texts", "content", "referral"})
    """Fields whose content belongs to the app: plain dicts, untouched."""
    _shown: ClassVar[tuple[str, ...]] = ("id", "status", "phase", "name", "livemode")

    def __init_subclass__(
        cls, *, nested: dict[str, type[Object]] | None = None, shown: tuple[str, ...] | None = None
    ) -> None:
        cls._objects = {**cls._objects, **(nested or {})}
        cls._shown = shown or cls._shown

    def __init__(self, data: dict[str, Any]) -> None:
        object.__setattr__(self, "_data", data)

    def to_dict(self) -> dict[str, Any]:
        """The server's JSON as it was, a copy."""
        return copy.deepcopy(self._data)

    def __contains__(self, name: object) -> bool:
        return name in self._data

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __getitem__(self, name: str) -> Any:
        return self._read(name, self._data[name])

    def get(self, name: str, default: Any = None) -> Any:
        """A field that may be missing."""
        return self[name] if name in self._data else default

    if not TYPE_CHECKING:  # a type checker knows only the declared fields, and so finds typos

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name)
            field = (
                name.removesuffix("_") if name.endswith("_") else name
            )  # `from_`, because `from` is a keyword
            if field not in self._data:
                raise AttributeError(
                    f"this {type(self).__name__} has no {field!r}: the server did not send it. "
                    "Fields depend on the kind of key, its scopes and the server's version."
                )
            return self[field]

    def _read(self, name: str, value: Any) -> Any:
        if name in self._free:
            return value
        if isinstance(value, dict):
            return self._objects.get(name, Object)(value)
        if isinstance(value, list):
            return [self._read(name, item) for item in value]
        if isinstance(value, str) and name.endswith("_at"):
            return _moment(value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is read-only")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._data == self._data

    __hash__: ClassVar[None] = None  # type: ignore[assignment]  # it holds dicts

    def __reduce__(self) -> tuple[type[Object], tuple[dict[str, Any]]]:
        return type(self), (self._data,)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._data]

    def __repr__(self) -> str:
        shown = [f"{name}={self._data[name]!r}" for name in self._shown if name in self._data]
        hidden = len(self._data) - len(shown)
        return f"{type(self).__name__}({', '.join([*shown, f'+{hidden} fields'] if hidden else shown)})"


def _moment(text: str) -> datetime | str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return moment if moment.tzinfo else text


class Identity(Object):
    """Who is connecting, masked: enough for a person to recognise themselves."""

    __slots__ = ()
    display: str
    country: str | None


class WhatsAppIdentity(Object):
    """A WhatsApp identity in full. Every field may be null: a person without a visible number is normal."""

    __slots__ = ()
    user_id: str | None
    parent_user_id: str | None
    wa_id: str | None
    username: str | None
    profile_name: str | None
    country: str | None


class QR(Object):
    """The link as a QR code, when asked for with `include=["qr"]`."""

    __slots__ = ()
    svg: str
    size: int
    """Modules per side, without the quiet zone of four."""
    modules: str
    """Base64 of the rows, each padded to whole bytes, most significant bit first."""


class RegistrationIntent(Object, nested={"identity": Identity, "whatsapp": WhatsAppIdentity, "qr": QR}):
    """One person's way from a link to a connected WhatsApp account. Which fields are there depends on who asks."""

    __slots__ = ()

    object: str
    id: str
    status: IntentStatus
    phase: IntentPhase
    livemode: bool
    created_at: datetime
    expires_at: datetime
    joined_at: datetime | None
    wa_link: str
    """Null once the intent's channel is gone."""
    token: str
    client_secret: str
    customer_reference: str
    metadata: dict[str, Any]
    metadata_trusted: bool
    reference_trust: ReferenceTrust
    channel_id: str
    contact_id: str | None
    message_id: str | None
    already_linked: bool
    opened_at: datetime | None
    opened_via: str | None
    rejection_reason: str | None
    rejection_message: str | None
    confirmation_code: str
    identity: Identity | None
    whatsapp: WhatsAppIdentity | None
    qr: QR

    @property
    def final(self) -> bool:
        """Whether it has ended. EXPIRED in phase `grace` has not: a message sent in time may still arrive and join."""
        if self._data.get("status") == "EXPIRED":
            return self._data.get("phase") != "grace"
        return self._data.get("status") != "PENDING"


class ItemError(Object, shown=("error", "param")):
    """Why one item of a bulk mint was refused; the others are not harmed."""

    __slots__ = ()

    object: str
    error: str
    message: str
    param: str
    hint: str


class BulkAnswer(Object, shown=()):
    """What became of every item of a bulk mint, in their order."""

    __slots__ = ()

    object: str

    @property
    def data(self) -> list[RegistrationIntent | ItemError]:
        return [
            ItemError(item) if item.get("object") == "error" else RegistrationIntent(item)
            for item in self._data["data"]
        ]


class APIKey(Object):
    """An API key. `key` is null for a secret key, except in the answer that made it."""

    __slots__ = ()

    object: str
    id: str
    kind: Literal["secret", "publishable"] | str
    name: str
    key: str | None
    last4: str
    scopes: list[str]
    allowed_origins: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    previous_ends_at: datetime | None
    """When the value before a rotation stops working."""
    last_used_at: datetime | None
    warning: str | None


class Project(Object, nested={"api_key": APIKey}):
    """A tenant: its policy and webhook settings."""

    __slots__ = ()

    object: str
    id: str
    organization_id: str
    name: str
    livemode: bool
    prefilled_text: str
    prefilled_texts: dict[str, str]
    publishable_expires_in: int
    secret_expires_in: int
    supersede: bool
    unsigned_references: Literal["accept", "refuse"] | str
    on_identity_linked: Literal["reject", "replace", "allow"] | str
    on_reference_linked: Literal["replace", "reject"] | str
    references_per_contact: int
    created_at: datetime
    webhook_url: str | None
    """Not in a list."""
    webhook_disabled_reason: str | None
    webhook_secret: str
    """Only with scope `projects:write`, and never in a list."""
    api_key: APIKey
    """The new project's first key, in the answer that made it."""


class Channel(Object):
    """One WhatsApp number at one provider."""

    __slots__ = ()

    object: str
    id: str
    provider: str
    name: str
    phone_number_id: str
    display_phone_number: str
    waba_id: str
    portfolio_id: str | None
    sandbox: bool
    created_at: datetime
    verify_token: str
    """For Meta's dashboard; not in a list."""


class Finding(Object, shown=("name", "state")):
    """What a check has seen."""

    __slots__ = ()

    name: str
    state: Literal["ok", "warning", "failed", "skipped"] | str
    found: str
    """For people."""
    todo: str | None
    """What to do about it, where there is something to do."""


class ChannelCheck(Object, shown=("channel_id", "ok"), nested={"checks": Finding}):
    """What the provider says of a channel at this moment."""

    __slots__ = ()

    object: str
    channel_id: str
    ok: bool
    """Whether nothing has failed."""
    checks: list[Finding]


class Event(Object, shown=("id", "type")):
    """Something that happened, as the API lists it. What a webhook brings is `wabery.webhooks.Event`."""

    __slots__ = ()

    object: str
    id: str
    type: str
    created_at: datetime
    sent_at: datetime
    livemode: bool
    payload: Object
    """As in its deliveries; `webhooks` names the fields."""
