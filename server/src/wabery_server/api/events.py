"""/v1/events: what happened, newest first, as the webhooks tell it."""

from typing import Literal, TypedDict

import msgspec
from msgspec import Struct

from wabery_server import errors, ids, outbox
from wabery_server.accounts import Scope
from wabery_server.api.call import Answer, Call
from wabery_server.contacts import Contact
from wabery_server.outbox import EventType


class EventObject(TypedDict):
    """An event, with the payload that its deliveries carry."""

    object: Literal["event"]
    id: str
    type: EventType
    created_at: str
    sent_at: str
    livemode: bool
    payload: dict[str, object]
    """As it was delivered, with the scope `contacts:identity`. Without it `from` and `whatsapp` keep only the country, and
    `identity` has the mask."""


class _Body(Struct, rename="camel"):
    payload: msgspec.Raw
    sent_at: str


class _Envelope(Struct):
    created_at: str
    livemode: bool


_body = msgspec.json.Decoder(_Body).decode
_envelope = msgspec.json.Decoder(_Envelope).decode
_payload = msgspec.json.Decoder(dict[str, object]).decode


async def listed(call: Call) -> Answer:
    """The project's events."""
    page = call.page(list_name="events")
    kind = call.query.get("type")
    if kind is not None and kind not in set(EventType):
        raise errors.InvalidRequest(f"type must be one of {', '.join(EventType)}.", param="type")
    which = outbox.Filter(
        type=EventType(kind) if kind else None,
        contact_id=call.text("contact_id"),
        registration_intent_id=call.text("registration_intent_id"),
        created_after=call.moment("created_after"),
        created_before=call.moment("created_before"),
    )
    project_id = call.caller.project.id
    found = await call.run(
        lambda tx: outbox.listed(tx, project_id, which, before=page.before, limit=page.limit + 1)
    )
    whole = call.caller.has(Scope.CONTACTS_IDENTITY)
    rows = [(event.id, _public(event, whole)) for event in found.events]
    return call.list_answer("events", rows, page, resume=found.resume)


async def get(call: Call) -> Answer:
    """One event."""
    event_id = call.params["id"]
    found = None
    if ids.looks_like("evt", event_id):
        project_id = call.caller.project.id
        found = await call.run(lambda tx: outbox.find(tx, project_id, event_id))
    if found is None:
        raise errors.NotFound("There is no such event.", param="id")
    return call.answer(_public(found, call.caller.has(Scope.CONTACTS_IDENTITY)))


def _public(event: outbox.Recorded, whole_identity: bool) -> dict[str, object]:
    body = _body(event.body)
    envelope = _envelope(body.payload)
    return {
        "object": "event",
        "id": event.id,
        "type": event.type,
        "created_at": envelope.created_at,
        "sent_at": body.sent_at,
        "livemode": envelope.livemode,
        "payload": body.payload if whole_identity else _masked(body.payload),
    }


def _masked(raw: msgspec.Raw) -> dict[str, object]:
    """The payload for a key that may not know who the person is."""
    payload = _payload(raw)
    whatsapp = payload.get("whatsapp")
    if not isinstance(whatsapp, dict):
        return payload
    person = Contact(
        project_id="",
        id="",
        username=whatsapp["username"],
        profile_name=None,
        country=whatsapp["country"],
        phone=whatsapp["wa_id"],
    )
    hidden = {**dict.fromkeys(whatsapp), "country": person.country}
    return {**payload, "from": None, "whatsapp": hidden, "identity": person.masked()}
