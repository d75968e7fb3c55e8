"""One registration told in examples, for the contract and the reference pages. Types and tests keep them true."""

from collections.abc import Mapping
from datetime import UTC, datetime

from wabery_server import errors, webhooks
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
from wabery_server.api.intent_types import (
    BrowserRegistrationIntent,
    MaskedIdentity,
    MintedRegistrationIntent,
    RegistrationIntent,
    WhatsAppIdentity,
)
from wabery_server.contacts import EndReason
from wabery_server.intents import Attempt, RejectionReason, Status, Trust
from wabery_server.outbox import EventType

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
    "reference_trust": Trust.SERVER,
    "registration_intent_id": _INTENT,
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
