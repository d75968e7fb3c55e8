"""What each event says: the payloads that webhooks carry, for the contract. The rooms that record events fill them in."""

from collections.abc import Mapping
from typing import Annotated, Literal, NotRequired, TypedDict

from msgspec import Meta

from wabery_server.api.intent_types import RegistrationIntent, WhatsAppIdentity
from wabery_server.contacts import EndReason
from wabery_server.inbox import HandledBy
from wabery_server.intents import Attempt, Trust
from wabery_server.outbox import EventType


class _Envelope(TypedDict):
    event_id: str
    """The same on every attempt to deliver the event, and in the header `webhook-id`: the key to handle it once."""
    organization_id: str
    project_id: str
    livemode: bool
    created_at: str


_Number = Annotated[
    str | None,
    Meta(description="E.164, such as +4915123456789; null when WhatsApp does not share the number."),
]
# Made by calls, since `from` is a word of the language.
_From = TypedDict("_From", {"from": _Number})
_MaybeFrom = TypedDict("_MaybeFrom", {"from": NotRequired[_Number]})


class _Person(_Envelope, _From):
    contact_id: str
    """One per WhatsApp identity in a project; stays when the number or the name changes."""
    conversation_id: str | None
    channel_id: str | None
    whatsapp: WhatsAppIdentity


class ParticipantJoined(_Person):
    registration_intent_id: str
    customer_reference: str
    contact_reference: str
    """The same value as `customer_reference`."""
    metadata: dict[str, object]
    metadata_trusted: bool
    """Whether your server wrote the metadata, and not a browser."""
    reference_trust: Trust
    message_id: str
    joined_at: str
    already_linked: bool
    """Whether the same person had been linked to the same reference before."""


class ParticipantUnlinked(_Person):
    customer_reference: str
    contact_reference: str
    """The same value as `customer_reference`."""
    registration_intent_id: str
    """The one that had made the link."""
    reason: EndReason


class Reply(TypedDict):
    """What a person pressed or filled in."""

    id: str | None
    """Of the reply button or list row, as it was sent to the person."""
    title: str | None
    """The text on the button, row or form."""
    payload: str | None
    """Of a template's quick-reply button."""
    response: str | None
    """A form's answers, as the JSON text that WhatsApp sends; or the answer to a call permission request."""


class Media(TypedDict):
    """The file of a message. Download it from Meta by its id."""

    id: str | None
    mime_type: str | None
    sha256: str | None
    filename: str | None
    voice: bool | None
    """Whether an audio was recorded in WhatsApp."""
    animated: bool | None
    """Whether a sticker is animated."""


class AnsweredMessage(TypedDict):
    message_id: str
    """WhatsApp's id (`wamid…`) of the message that this one answers."""


class MessageReceived(_Person):
    agent_id: None
    text: str | None
    """The first text of the message: what was written, a caption, the title of a button. Null when it has none."""
    message_id: str
    contact_reference: str | None
    """The same value as `customer_reference`."""
    customer_reference: str | None
    """Null while the person is not linked."""
    metadata: dict[str, object] | None
    """As it was when the link was made."""
    type: str
    """WhatsApp's own word: text, image, interactive, unsupported… New ones may appear at any time."""
    sent_at: str
    provider_message_id: str
    """WhatsApp's id of the message (`wamid…`), for answering it or marking it as read."""
    reference_trust: Trust | None
    registration_intent_id: str | None
    """The one that made the link."""
    forwarded: bool
    handled_by: HandledBy
    """`agent`: Meta's Business Agent holds the conversation. It may answer, and anything you send takes it over."""
    reply: Reply | None
    media: Media | None
    context: AnsweredMessage | None
    referral: dict[str, object] | None
    """The ad or post that led the person here, as WhatsApp describes it."""
    content: object
    """WhatsApp's own object for this type, as it came, tokens redacted; with `errors` where WhatsApp withholds the message.
    Null when there is none or `content_truncated` is true."""
    content_truncated: bool
    """Whether `content`, `referral` or the stored context was left out because it takes more than 64 KiB."""
    replaces_event_id: str | None
    """The event that announced this message while WhatsApp withheld its content; `message_id` is the same."""


class _AboutIntent(_Envelope):
    registration_intent_id: str
    customer_reference: str
    contact_reference: str
    """The same value as `customer_reference`."""
    registration_intent: RegistrationIntent
    """As a secret key reads it, without token, link and client secret."""


class RegistrationIntentCreated(_AboutIntent):
    pass


class RegistrationIntentExpired(_AboutIntent):
    pass


class FailedAttempt(TypedDict):
    """A message that carried the token."""

    code: Attempt
    message_id: str


class RegistrationIntentRejected(_AboutIntent, _MaybeFrom):
    contact_id: NotRequired[str]
    """This, `conversation_id`, `channel_id`, `from`, `whatsapp` and `attempt` are there when a message ended it."""
    conversation_id: NotRequired[str | None]
    channel_id: NotRequired[str | None]
    whatsapp: NotRequired[WhatsAppIdentity]
    attempt: NotRequired[FailedAttempt]


class RegistrationIntentAttemptFailed(_AboutIntent, _Person):
    attempt: FailedAttempt


class SecurityTokenReuse(_Person):
    registration_intent_id: str
    customer_reference: str
    count: int
    """How often other people have sent this token so far. The event is sent for the first time, then at most once in
    10 minutes per intent."""


class WebhookEndpointDisabled(_Envelope):
    endpoint_id: str
    reason: Literal["gone"]
    """`gone`: it answered 410."""
    since: str


PAYLOADS: Mapping[EventType, type] = {
    EventType.PARTICIPANT_JOINED: ParticipantJoined,
    EventType.PARTICIPANT_UNLINKED: ParticipantUnlinked,
    EventType.MESSAGE_RECEIVED: MessageReceived,
    EventType.REGISTRATION_INTENT_CREATED: RegistrationIntentCreated,
    EventType.REGISTRATION_INTENT_REJECTED: RegistrationIntentRejected,
    EventType.REGISTRATION_INTENT_EXPIRED: RegistrationIntentExpired,
    EventType.REGISTRATION_INTENT_ATTEMPT_FAILED: RegistrationIntentAttemptFailed,
    EventType.SECURITY_TOKEN_REUSE: SecurityTokenReuse,
    EventType.WEBHOOK_ENDPOINT_DISABLED: WebhookEndpointDisabled,
}
