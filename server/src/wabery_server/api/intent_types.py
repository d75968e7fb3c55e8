"""What the calls of /v1/registration-intents take and give."""

from typing import Annotated, Literal, NotRequired, TypedDict

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from wabery_server.intents import Phase, RejectionReason, Status, Trust

ExpiresIn = Annotated[int, Meta(ge=60, le=604_800)]
Via = Literal["link", "qr", "copy", "other_device", "none"]
REFERENCE = (
    r"^(?!\s)(?!.*\s$)[^\x00-\x1f\x7f-\x9f\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160"
    r"\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb]+(?!\n)$"
)
"""What a customer reference looks like: no white space at either end, no control characters, and no characters that
cannot be seen (default-ignorable ones, bidi controls). The server also rejects those above U+FFFF."""
LANGUAGE_TAG = r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*(?!\n)$"


class Create(Struct, forbid_unknown_fields=True):
    """What a mint takes."""

    customer_reference: Annotated[
        str, Meta(min_length=1, max_length=255, extra_json_schema={"pattern": REFERENCE})
    ]
    """The app's own id of the user: no white space at either end, no control or invisible characters."""
    metadata: dict[str, object] | UnsetType = UNSET
    """At most 16 KiB of JSON, 5 levels deep; comes back in events."""
    channel_id: str | None = None
    """Which WhatsApp number; default: the project's oldest."""
    expires_in: ExpiresIn | None = None
    """Seconds; default: a setting of the project."""
    locale: Annotated[str, Meta(max_length=35, extra_json_schema={"pattern": LANGUAGE_TAG})] | None = None
    """BCP 47 tag of the language for the prefilled text."""
    include: list[Annotated[str, Meta(extra_json_schema={"enum": ["qr"]})]] = []
    """`qr`: the link as a QR code."""


class MaskedIdentity(TypedDict):
    """Who joined: enough for people to recognise themselves."""

    display: str
    """The last three digits of the phone number, or the first letter of the username."""
    country: str | None
    """Two letters."""


class WhatsAppIdentity(TypedDict):
    """Who joined, in full. WhatsApp may leave any of it out."""

    user_id: str | None
    """The business-scoped user id: never changes hands, unlike a number or a name."""
    parent_user_id: str | None
    wa_id: str | None
    """The phone number's digits."""
    username: str | None
    profile_name: str | None
    country: str | None
    """Two letters."""


class QrCode(TypedDict):
    """The link to scan. Four quiet modules around it are yours to add; the SVG has them."""

    size: int
    """Modules per side."""
    modules: str
    """Base64 of the rows, each padded to whole bytes, most significant bit first; 1 is dark."""
    svg: str


class _Seen(TypedDict):
    object: Literal["registration_intent"]
    id: str
    status: Status
    phase: Phase | None
    livemode: bool
    created_at: str
    expires_at: str
    joined_at: str | None


class BrowserRegistrationIntent(_Seen):
    """A registration intent as a publishable key sees it."""

    rejection_reason: NotRequired[Literal["canceled", "conflict", "declined", "error", "not_allowed"]]
    """Only once it is REJECTED."""
    wa_link: NotRequired[str | None]
    """With the client secret. Null once the number is gone."""
    identity: NotRequired[MaskedIdentity]
    """With the client secret, once it is JOINED."""
    qr: NotRequired[QrCode]
    """With the client secret and `include=qr`."""


class _Whole(_Seen):
    customer_reference: str
    metadata: dict[str, object]
    metadata_trusted: bool
    """Whether your server wrote the metadata, and not a browser."""
    reference_trust: Trust
    channel_id: str
    contact_id: str | None
    rejection_reason: RejectionReason | None
    rejection_message: str | None


class MintedRegistrationIntent(_Whole):
    """A registration intent as the answer to whoever minted it."""

    token: str
    client_secret: str
    """What a browser shows to act on this one intent."""
    wa_link: str
    """Single use: it opens WhatsApp with the token filled in."""
    qr: NotRequired[QrCode]


class RegistrationIntent(_Whole):
    """A registration intent as a secret key sees it."""

    already_linked: bool
    """Whether the same person had been linked to the same reference before."""
    message_id: str | None
    """The message that ended it."""
    opened_at: str | None
    """When the person first went on from the page, where the page tells."""
    opened_via: Via | None
    """How they did it last."""
    identity: MaskedIdentity | None
    whatsapp: NotRequired[WhatsAppIdentity | None]
    """With the scope `contacts:identity`."""
    token: NotRequired[str]
    """This, `client_secret` and `wa_link` with the scope `registrations:create`."""
    client_secret: NotRequired[str]
    wa_link: NotRequired[str | None]
    """Null once the number is gone."""
    qr: NotRequired[QrCode]


class CreateMany(Struct, forbid_unknown_fields=True):
    """What a bulk mint takes."""

    items: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=1000)]
    """Each as a single mint takes it."""


class ItemError(TypedDict):
    """Why one item of a bulk mint was refused; the others are not harmed."""

    object: Literal["error"]
    error: str
    message: str
    param: NotRequired[str]
    hint: NotRequired[str]


class Extend(Struct, forbid_unknown_fields=True):
    """What an extension takes."""

    expires_in: ExpiresIn | None = None
    """Seconds from now; default: the project's for this kind of key."""


class Opened(Struct, forbid_unknown_fields=True):
    """How the person went on from the page."""

    via: Via
    """`none`: they said that they do not have WhatsApp."""
