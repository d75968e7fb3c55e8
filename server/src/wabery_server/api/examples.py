"""One registration told in examples, for the contract and the reference pages. Types and tests keep them true."""

from collections.abc import Mapping
from datetime import UTC, datetime

from wabery_server import errors, webhooks
from wabery_server.accounts import (
    ChannelChanges,
    ChannelDraft,
    KeyChanges,
    KeyDraft,
    KeyRotation,
    Project,
    ProjectChanges,
    ProjectDraft,
    PublicChannel,
    PublicKey,
    PublicProject,
)
from wabery_server.api.channels import ChannelCheck
from wabery_server.api.event_types import (
    MessageReceived,
    ParticipantJoined,
    ParticipantUnlinked,
    RegistrationIntentAttemptFailed,
    RegistrationIntentCreated,
    RegistrationIntentExpired,
    RegistrationIntentRejected,
    SecurityTokenReuse,
    WebhookEndpointDisabled,
)
from wabery_server.api.events import EventObject
from wabery_server.api.intent_types import (
    BrowserRegistrationIntent,
    Create,
    CreateMany,
    Extend,
    ItemError,
    MaskedIdentity,
    MintedRegistrationIntent,
    Opened,
    RegistrationIntent,
    WhatsAppIdentity,
)
from wabery_server.api.projects import FoundedProject
from wabery_server.contacts import EndReason
from wabery_server.inbox import HandledBy
from wabery_server.intents import Attempt, RejectionReason, Status, Trust
from wabery_server.outbox import EventType
from wabery_server.whatsapp.provider import CheckName, Finding

_ORGANIZATION = "org_01kv9e1b00eayb9fkzdep2v872"
_PROJECT = "proj_01kv9e1b00fzrvkz3jw01rkz05"
_CHANNEL = "channel_01kv9e1b00fyzvrbh41dqtpm8p"
_ENDPOINT = "we_01kv9e1b00f9vatyq3bevf6r6a"
_INTENT = "reg_01kw0kkt00e8xt9vqwxdtyq2g3"
_CONTACT = "contact_01kw0kn2gwfk2vgm1dyvsk9wek"
_CONVERSATION = "conv_01kw0kn2gwf138np8f60xd4npp"
_MESSAGE = "msg_01kw0kn2gweewr0xey39kp9dt9"
_EVENT = "evt_01kw0kn2gwew5bf44h6akpvdnb"
_REQUEST = "req_01kw0kkt00ff5t6dp0yg4acng1"
_TOKEN = "wjr_pxyvbpvak9rz524srt52v59tgf"
_KEY = "key_01kv9e1b00f0tq7k5p9c2nw3xe"
_PUBLISHABLE_KEY = "key_01kv9e1b00ew8m3r1d6hz4ya7v"
_FOUNDED_AT = "2026-06-17T00:00:00.000Z"
_MINTED_AT = "2026-06-26T00:00:00.000Z"
_JOINED_AT = "2026-06-26T00:00:41.500Z"
_EXPIRES_AT = "2026-06-27T00:00:00.000Z"
_CUSTOMER = "user_123"

BASE_URL = "http://127.0.0.1:8420"
"""Of `wabery dev`."""

SECRET = "whsec_YW4gZXhhbXBsZSBvZiAzMiBieXRlcyBmb3IgZG9jcyE="
"""Signs the example delivery; no project has it."""

MINT: Mapping[str, object] = {"customer_reference": _CUSTOMER, "metadata": {"plan": "starter"}}

MINTED: MintedRegistrationIntent = {
    "object": "registration_intent",
    "id": _INTENT,
    "token": _TOKEN,
    "status": Status.PENDING,
    "wa_link": f"https://wa.me/15550100123?text=Connect%20my%20account%3A%20{_TOKEN}",
    "expires_at": _EXPIRES_AT,
    "created_at": _MINTED_AT,
    "livemode": False,
    "customer_reference": _CUSTOMER,
    "metadata": {"plan": "starter"},
    "metadata_trusted": True,
    "reference_trust": Trust.SERVER,
    "channel_id": _CHANNEL,
    "phase": None,
    "client_secret": "wcs_hqws5h3ney8grr1k0me02wvayq",
    "joined_at": None,
    "contact_id": None,
    "rejection_reason": None,
    "rejection_message": None,
}

_IDENTITY: MaskedIdentity = {"display": "•••789", "country": "DE"}
_WHATSAPP: WhatsAppIdentity = {
    "user_id": "DE.1498330184502341",
    "parent_user_id": None,
    "wa_id": "4915123456789",
    "username": None,
    "profile_name": "Ana",
    "country": "DE",
}
_PENDING: RegistrationIntent = {
    "object": "registration_intent",
    "id": _INTENT,
    "status": Status.PENDING,
    "phase": None,
    "livemode": False,
    "created_at": _MINTED_AT,
    "expires_at": _EXPIRES_AT,
    "joined_at": None,
    "customer_reference": _CUSTOMER,
    "metadata": {"plan": "starter"},
    "metadata_trusted": True,
    "reference_trust": Trust.SERVER,
    "channel_id": _CHANNEL,
    "contact_id": None,
    "rejection_reason": None,
    "rejection_message": None,
    "already_linked": False,
    "message_id": None,
    "opened_at": None,
    "opened_via": None,
    "identity": None,
}

READ: RegistrationIntent = {
    **_PENDING,
    "status": Status.JOINED,
    "joined_at": _JOINED_AT,
    "contact_id": _CONTACT,
    "message_id": _MESSAGE,
    "identity": _IDENTITY,
}
"""A secret key with `registrations:read` polls."""

POLLED: BrowserRegistrationIntent = {
    "object": "registration_intent",
    "id": _INTENT,
    "status": Status.JOINED,
    "phase": None,
    "livemode": False,
    "created_at": _MINTED_AT,
    "expires_at": _EXPIRES_AT,
    "joined_at": _JOINED_AT,
}
"""A publishable key polls."""


CREATE_MANY: Mapping[str, object] = {
    "items": [MINT, {"customer_reference": "user_124", "channel_id": "channel_01kw12xbacerzjbbhzqv3n7d0k"}]
}

_REFUSED: ItemError = {
    "object": "error",
    "error": errors.InvalidRequest.code,
    "message": "This project has no such channel.",
    "param": "channel_id",
}

CREATED_MANY: Mapping[str, object] = {"object": "list", "data": [MINTED, _REFUSED]}

OPENED: BrowserRegistrationIntent = {
    **POLLED,
    "status": Status.PENDING,
    "joined_at": None,
}

EXTENDED: RegistrationIntent = {**_PENDING, "expires_at": "2026-06-28T00:00:00.000Z"}

CANCELED: RegistrationIntent = {
    **_PENDING,
    "status": Status.REJECTED,
    "rejection_reason": RejectionReason.CANCELED_BY_APP,
    "rejection_message": RejectionReason.CANCELED_BY_APP.message,
}

STREAMED = "event: registration_intent\ndata: {…}\n\n: still here\n\n"

_POLICY = Project(
    id=_PROJECT,
    organization_id=_ORGANIZATION,
    name="Shop",
    livemode=False,
    created_at=datetime(2026, 6, 17, tzinfo=UTC),
)

LISTED_PROJECT: PublicProject = _POLICY.public()

PROJECT: PublicProject = {
    **LISTED_PROJECT,
    "webhook_url": "https://app.example.com/webhooks",
    "webhook_disabled_reason": None,
    "webhook_secret": SECRET,
}
"""To a secret key with `projects:write`."""

SECRET_KEY: PublicKey = {
    "object": "api_key",
    "id": _KEY,
    "kind": "secret",
    "name": "server",
    "key": None,
    "last4": "2GvP",
    "scopes": ["registrations:create", "registrations:read"],
    "allowed_origins": [],
    "created_at": _FOUNDED_AT,
    "expires_at": None,
    "revoked_at": None,
    "previous_ends_at": None,
    "last_used_at": _MINTED_AT,
    "warning": None,
}

MADE_KEY: PublicKey = {
    **SECRET_KEY,
    "key": "wab_test_0123456789ABCDEFGHIJKLMNOPQRST2s2GvP",
    "last_used_at": None,
}
"""As only the answer that makes it shows it; a key of the documentation, which opens nothing."""

ROTATED_KEY: PublicKey = {**MADE_KEY, "previous_ends_at": _EXPIRES_AT}

REVOKED_KEY: PublicKey = {**SECRET_KEY, "revoked_at": _JOINED_AT}

PUBLISHABLE_KEY: PublicKey = {
    **SECRET_KEY,
    "id": _PUBLISHABLE_KEY,
    "kind": "publishable",
    "name": "page",
    "key": "wab_pub_0123456789ABCDEFGHIJKLMNOPQRST3qrAPx",
    "last4": "rAPx",
    "scopes": [],
    "allowed_origins": ["https://app.example.com"],
}

FOUNDED: FoundedProject = {**PROJECT, "webhook_url": None, "api_key": MADE_KEY}

LISTED_CHANNEL: PublicChannel = {
    "object": "channel",
    "id": _CHANNEL,
    "provider": "meta",
    "name": "Support",
    "phone_number_id": "106540352242922",
    "display_phone_number": "15550100123",
    "waba_id": "102290129340398",
    "portfolio_id": None,
    "sandbox": False,
    "created_at": _FOUNDED_AT,
}

CHANNEL: PublicChannel = {**LISTED_CHANNEL, "verify_token": "an-example-for-the-handshake"}

CHANNEL_CHECK: ChannelCheck = {
    "object": "channel_check",
    "channel_id": _CHANNEL,
    "ok": True,
    "checks": [Finding(CheckName.NUMBER, "ok", "Meta has the number, and it is connected.", None)],
}

REQUESTS: Mapping[object, object] = {
    Create: MINT,
    Opened: {"via": "qr"},
    Extend: {"expires_in": 86_400},
    ProjectDraft: {"name": "Shop"},
    ProjectChanges: {"webhook_url": "https://app.example.com/webhooks"},
    KeyDraft: {"name": "server", "scopes": ["registrations:create", "registrations:read"]},
    KeyChanges: {"name": "page", "allowed_origins": ["https://app.example.com"]},
    KeyRotation: {"overlap": 3600},
    ChannelDraft: {
        "name": "Support",
        "phone_number_id": "106540352242922",
        "display_phone_number": "+1 555-010-0123",
        "waba_id": "102290129340398",
        "app_secret": "0123456789abcdef0123456789abcdef",
    },
    ChannelChanges: {"name": "Help"},
    CreateMany: CREATE_MANY,
}
"""By the class of the body."""


def page(*shown: object) -> Mapping[str, object]:
    """A list that has one page."""
    return {"object": "list", "data": [*shown], "has_more": False, "next_cursor": None}


def error(refusal: type[errors.WaberyError]) -> dict[str, str]:
    """The body of a refusal as the class itself words it."""
    body = {"error": refusal.code, "message": refusal.message}
    if refusal.hint is not None:
        body["hint"] = refusal.hint
    return {**body, "doc_url": f"{BASE_URL}/errors/{refusal.code}", "request_id": _REQUEST}


def delivery(event: EventType) -> dict[str, object]:
    """The body that a webhook endpoint receives."""
    payload = _PAYLOADS[event]
    return {"event": event, "payload": payload, "sentAt": payload["created_at"]}


def delivery_headers(body: bytes) -> dict[str, str]:
    """The signature headers of an example body, made with SECRET."""
    return webhooks.headers([SECRET], _EVENT, body, datetime(2026, 6, 26, 0, 0, 42, tzinfo=UTC))


_JOINED: ParticipantJoined = {
    "event_id": _EVENT,
    "organization_id": _ORGANIZATION,
    "project_id": _PROJECT,
    "livemode": False,
    "created_at": _JOINED_AT,
    "contact_id": _CONTACT,
    "conversation_id": _CONVERSATION,
    "channel_id": _CHANNEL,
    "from": "+4915123456789",
    "whatsapp": _WHATSAPP,
    "registration_intent_id": _INTENT,
    "customer_reference": _CUSTOMER,
    "contact_reference": _CUSTOMER,
    "metadata": {"plan": "starter"},
    "metadata_trusted": True,
    "reference_trust": Trust.SERVER,
    "message_id": _MESSAGE,
    "joined_at": _JOINED_AT,
    "already_linked": False,
}
EVENT: EventObject = {
    "object": "event",
    "id": _EVENT,
    "type": EventType.PARTICIPANT_JOINED,
    "created_at": _JOINED_AT,
    "sent_at": _JOINED_AT,
    "livemode": False,
    "payload": {**_JOINED},
}
_UNLINKED: ParticipantUnlinked = {
    "event_id": _EVENT,
    "organization_id": _ORGANIZATION,
    "project_id": _PROJECT,
    "livemode": False,
    "created_at": "2026-06-28T09:30:00.000Z",
    "contact_id": _CONTACT,
    "conversation_id": _CONVERSATION,
    "channel_id": _CHANNEL,
    "from": "+4915123456789",
    "whatsapp": _WHATSAPP,
    "customer_reference": _CUSTOMER,
    "contact_reference": _CUSTOMER,
    "registration_intent_id": _INTENT,
    "reason": EndReason.REPLACED,
}
_RECEIVED: MessageReceived = {
    "event_id": _EVENT,
    "organization_id": _ORGANIZATION,
    "project_id": _PROJECT,
    "livemode": False,
    "created_at": "2026-06-26T08:15:02.120Z",
    "contact_id": _CONTACT,
    "conversation_id": _CONVERSATION,
    "channel_id": _CHANNEL,
    "from": "+4915123456789",
    "whatsapp": _WHATSAPP,
    "agent_id": None,
    "text": "Where is my order?",
    "message_id": _MESSAGE,
    "contact_reference": _CUSTOMER,
    "customer_reference": _CUSTOMER,
    "metadata": {"plan": "starter"},
    "type": "text",
    "sent_at": "2026-06-26T08:15:01.000Z",
    "provider_message_id": "wamid.HBgNNDkxNTEyMzQ1Njc4ORUCABIYFDNBMDI",
    "reference_trust": Trust.SERVER,
    "registration_intent_id": _INTENT,
    "forwarded": False,
    "handled_by": HandledBy.APP,
    "reply": None,
    "media": None,
    "context": None,
    "referral": None,
    "content": {"body": "Where is my order?"},
    "content_truncated": False,
    "replaces_event_id": None,
}
_CREATED: RegistrationIntentCreated = {
    "event_id": _EVENT,
    "organization_id": _ORGANIZATION,
    "project_id": _PROJECT,
    "livemode": False,
    "created_at": _MINTED_AT,
    "registration_intent_id": _INTENT,
    "customer_reference": _CUSTOMER,
    "contact_reference": _CUSTOMER,
    "registration_intent": _PENDING,
}
_EXPIRED: RegistrationIntentExpired = {
    **_CREATED,
    "created_at": "2026-06-27T00:05:02.000Z",
    "registration_intent": {**_PENDING, "status": Status.EXPIRED},
}
_REJECTED: RegistrationIntentRejected = {
    **_CREATED,
    "created_at": _JOINED_AT,
    "registration_intent": {
        **_PENDING,
        "status": Status.REJECTED,
        "rejection_reason": RejectionReason.IDENTITY_ALREADY_LINKED,
        "rejection_message": RejectionReason.IDENTITY_ALREADY_LINKED.message,
        "contact_id": _CONTACT,
        "message_id": _MESSAGE,
        "identity": _IDENTITY,
    },
    "contact_id": _CONTACT,
    "conversation_id": _CONVERSATION,
    "channel_id": _CHANNEL,
    "from": "+4915123456789",
    "whatsapp": _WHATSAPP,
    "attempt": {"code": Attempt.REJECTED, "message_id": _MESSAGE},
}
_ATTEMPT_FAILED: RegistrationIntentAttemptFailed = {
    **_CREATED,
    "created_at": "2026-06-27T00:01:10.000Z",
    "registration_intent": {**_PENDING, "status": Status.EXPIRED},
    "contact_id": _CONTACT,
    "conversation_id": _CONVERSATION,
    "channel_id": _CHANNEL,
    "from": "+4915123456789",
    "whatsapp": _WHATSAPP,
    "attempt": {"code": Attempt.AFTER_EXPIRY, "message_id": _MESSAGE},
}
_TOKEN_REUSE: SecurityTokenReuse = {
    "event_id": _EVENT,
    "organization_id": _ORGANIZATION,
    "project_id": _PROJECT,
    "livemode": False,
    "created_at": "2026-06-26T07:02:19.000Z",
    "contact_id": "contact_01kw12xbacfxb8f6b4yjkmt1da",
    "conversation_id": "conv_01kw12xbaceaz9eb7kq0zv2w2s",
    "channel_id": _CHANNEL,
    "from": None,
    "whatsapp": {
        "user_id": "GB.9027745513306712",
        "parent_user_id": None,
        "wa_id": None,
        "username": "ben.k",
        "profile_name": "Ben",
        "country": "GB",
    },
    "registration_intent_id": _INTENT,
    "customer_reference": _CUSTOMER,
    "count": 1,
}
_DISABLED: WebhookEndpointDisabled = {
    "event_id": _EVENT,
    "organization_id": _ORGANIZATION,
    "project_id": _PROJECT,
    "livemode": False,
    "created_at": _JOINED_AT,
    "endpoint_id": _ENDPOINT,
    "reason": "gone",
    "since": _JOINED_AT,
}
_PAYLOADS: Mapping[EventType, Mapping[str, object]] = {
    EventType.PARTICIPANT_JOINED: _JOINED,
    EventType.PARTICIPANT_UNLINKED: _UNLINKED,
    EventType.MESSAGE_RECEIVED: _RECEIVED,
    EventType.REGISTRATION_INTENT_CREATED: _CREATED,
    EventType.REGISTRATION_INTENT_REJECTED: _REJECTED,
    EventType.REGISTRATION_INTENT_EXPIRED: _EXPIRED,
    EventType.REGISTRATION_INTENT_ATTEMPT_FAILED: _ATTEMPT_FAILED,
    EventType.SECURITY_TOKEN_REUSE: _TOKEN_REUSE,
    EventType.WEBHOOK_ENDPOINT_DISABLED: _DISABLED,
}
