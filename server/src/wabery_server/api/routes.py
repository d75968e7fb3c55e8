"""Every URL of the service."""

from wabery_server.accounts import (
    ChannelChanges,
    ChannelDraft,
    KeyChanges,
    KeyDraft,
    KeyRotation,
    ProjectChanges,
    ProjectDraft,
    PublicChannel,
    PublicKey,
    PublicProject,
    Scope,
)
from wabery_server.api import api_keys, channels, document, error_pages, events, health, inbound, projects
from wabery_server.api import registration_intents as intents
from wabery_server.api.app import Operation
from wabery_server.api.events import EventObject
from wabery_server.api.intent_types import (
    BrowserRegistrationIntent,
    Create,
    CreateMany,
    Extend,
    ItemError,
    MintedRegistrationIntent,
    Opened,
    RegistrationIntent,
)

_INTENTS = "/v1/registration-intents"
_PROJECTS = "/v1/projects"
_KEYS = "/v1/api-keys"
_CHANNELS = "/v1/channels"
_EVENTS = "/v1/events"
_INBOUND_BYTES = 4 * 1024 * 1024
_BULK_BYTES = 2 * 1024 * 1024
_PAGE = ("limit", "cursor")
_FILTERS = ("status", "customer_reference", "contact_id", "channel_id", "created_after", "created_before")
_SEEN = RegistrationIntent | BrowserRegistrationIntent
_MINTED = tuple[MintedRegistrationIntent | ItemError, ...]

# fmt: off
OPERATIONS: list[Operation] = [
    # The hot ones first: a router looks from the top.
    Operation("POST", _INTENTS, intents.create, "Create a registration intent", Scope.REGISTRATIONS_CREATE,
              publishable=True, takes=Create, gives=MintedRegistrationIntent),
    Operation("GET", _INTENTS + "/{id}", intents.get, "Get a registration intent", Scope.REGISTRATIONS_READ,
              publishable=True, query=("wait", "include"), gives=_SEEN),
    Operation("POST", "/inbound/whatsapp", inbound.receive, "Receive Meta's webhook", open=True,
              max_body=_INBOUND_BYTES, gives=dict[str, dict[str, int]]),
    Operation("GET", "/inbound/whatsapp", inbound.handshake, "Answer Meta's handshake", open=True, gives=str),
    Operation("GET", _INTENTS, intents.listed, "List registration intents", Scope.REGISTRATIONS_READ,
              query=(*_PAGE, *_FILTERS), gives=list[RegistrationIntent]),
    Operation("POST", _INTENTS + "/bulk", intents.create_many, "Create up to 1,000 registration intents",
              Scope.REGISTRATIONS_CREATE, writes=True, max_body=_BULK_BYTES, takes=CreateMany, gives=_MINTED),
    Operation("GET", _INTENTS + "/{id}/events", intents.stream, "Follow a registration intent",
              Scope.REGISTRATIONS_READ, publishable=True, gives=_SEEN),
    Operation("POST", _INTENTS + "/{id}/extend", intents.extend, "Keep a registration intent open longer",
              Scope.REGISTRATIONS_CREATE, publishable=True, writes=True, admits=intents.admit_change, takes=Extend, gives=_SEEN),
    Operation("POST", _INTENTS + "/{id}/opened", intents.opened, "Tell how the person went on from the page",
              publishable=True, writes=True, admits=intents.admit_holder, takes=Opened, gives=BrowserRegistrationIntent),
    Operation("POST", _INTENTS + "/{id}/cancel", intents.cancel, "Cancel a registration intent",
              Scope.REGISTRATIONS_CREATE, publishable=True, writes=True, admits=intents.admit_change, gives=_SEEN),

    Operation("GET", _PROJECTS, projects.listed, "List projects", Scope.PROJECTS_READ, query=_PAGE,
              gives=list[PublicProject]),
    Operation("POST", _PROJECTS, projects.create, "Create a project", Scope.PROJECTS_WRITE, writes=True,
              takes=ProjectDraft, gives=projects.FoundedProject),
    Operation("GET", _PROJECTS + "/{id}", projects.get, "Get a project", Scope.PROJECTS_READ,
              gives=PublicProject),
    Operation("PATCH", _PROJECTS + "/{id}", projects.update, "Change a project", Scope.PROJECTS_WRITE, writes=True,
              takes=ProjectChanges, gives=PublicProject),
    Operation("POST", _PROJECTS + "/{id}/rotate-webhook-secret", projects.rotate_webhook_secret,
              "Rotate a project's webhook secret", Scope.PROJECTS_WRITE, writes=True, gives=PublicProject),

    Operation("GET", _KEYS, api_keys.listed, "List API keys", Scope.KEYS_WRITE, query=_PAGE,
              gives=list[PublicKey]),
    Operation("POST", _KEYS, api_keys.create, "Create an API key", Scope.KEYS_WRITE, writes=True, takes=KeyDraft,
              gives=PublicKey),
    Operation("GET", _KEYS + "/{id}", api_keys.get, "Get an API key", Scope.KEYS_WRITE, gives=PublicKey),
    Operation("PATCH", _KEYS + "/{id}", api_keys.update, "Change an API key", Scope.KEYS_WRITE, writes=True,
              takes=KeyChanges, gives=PublicKey),
    Operation("POST", _KEYS + "/{id}/rotate", api_keys.rotate, "Rotate an API key", Scope.KEYS_WRITE, writes=True,
              takes=KeyRotation, gives=PublicKey),
    Operation("DELETE", _KEYS + "/{id}", api_keys.revoke, "Revoke an API key", Scope.KEYS_WRITE, writes=True,
              gives=PublicKey),

    Operation("GET", _CHANNELS, channels.listed, "List channels", Scope.CHANNELS_WRITE, query=_PAGE,
              gives=list[PublicChannel]),
    Operation("POST", _CHANNELS, channels.create, "Create a channel", Scope.CHANNELS_WRITE, writes=True,
              takes=ChannelDraft, gives=PublicChannel),
    Operation("GET", _CHANNELS + "/{id}", channels.get, "Get a channel", Scope.CHANNELS_WRITE,
              gives=PublicChannel),
    Operation("PATCH", _CHANNELS + "/{id}", channels.update, "Change a channel", Scope.CHANNELS_WRITE, writes=True,
              takes=ChannelChanges, gives=PublicChannel),
    Operation("POST", _CHANNELS + "/{id}/check", channels.check, "Check a channel", Scope.CHANNELS_WRITE,
              gives=channels.ChannelCheck),
    Operation("DELETE", _CHANNELS + "/{id}", channels.delete, "Delete a channel", Scope.CHANNELS_WRITE, writes=True,
              gives=PublicChannel),

    Operation("GET", _EVENTS, events.listed, "List events", Scope.EVENTS_READ, gives=list[EventObject],
              query=(*_PAGE, "type", "contact_id", "registration_intent_id", "created_after", "created_before")),
    Operation("GET", _EVENTS + "/{id}", events.get, "Get an event", Scope.EVENTS_READ, gives=EventObject),

    Operation("GET", "/v1/openapi.json", document.openapi, "Get this document", open=True, gives=dict[str, object]),
    Operation("GET", "/errors/{code}", error_pages.show, "Explain an error code", open=True),
    Operation("GET", "/livez", health.live, "Whether the process runs", open=True, gives=dict[str, str]),
    Operation("GET", "/readyz", health.ready, "Whether the process can serve", open=True,
              gives=dict[str, str]),
]
# fmt: on
