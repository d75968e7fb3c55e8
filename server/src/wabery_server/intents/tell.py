"""What the app hears of an intent: the events, with their payloads."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from wabery_server import contacts, ids
from wabery_server.accounts import Project
from wabery_server.clock import iso
from wabery_server.contacts import Contact, EndReason, Link
from wabery_server.intents.intent import Attempt, Intent, Trust, View
from wabery_server.outbox import Event, EventType

if TYPE_CHECKING:
    from wabery_server.intents.redeem import Arrival


def joined(intent: Intent, arrival: "Arrival") -> Event:
    assert intent.joined_at is not None
    return _event(
        EventType.PARTICIPANT_JOINED,
        intent,
        intent.joined_at,
        {
            **arrival.contact.person(arrival.conversation_id, arrival.channel_id),
            "registration_intent_id": intent.id,
            "customer_reference": intent.customer_reference,
            "contact_reference": intent.customer_reference,
            "metadata": intent.metadata,
            "metadata_trusted": intent.reference_trust == Trust.SERVER,
            "reference_trust": intent.reference_trust,
            "message_id": arrival.message_id,
            "joined_at": iso(intent.joined_at),
            "already_linked": intent.already_linked,
        },
    )


def token_reuse(intent: Intent, arrival: "Arrival", count: int) -> Event:
    """`count`: how often other people have sent this token so far."""
    return _event(
        EventType.SECURITY_TOKEN_REUSE,
        intent,
        arrival.moment,
        {
            **arrival.contact.person(arrival.conversation_id, arrival.channel_id),
            "registration_intent_id": intent.id,
            "customer_reference": intent.customer_reference,
            "count": count,
        },
        contact_id=arrival.contact.id,
    )


def created(intent: Intent, project: Project) -> Event:
    at = intent.created_at
    return _event(EventType.REGISTRATION_INTENT_CREATED, intent, at, _whole(intent, at, project))


def rejected(intent: Intent, at: datetime, project: Project, arrival: "Arrival | None" = None) -> Event:
    """With the person and the attempt where a message ended it."""
    payload = _whole(intent, at, project, arrival.contact if arrival else None)
    if arrival is not None:
        payload |= _attempt(arrival, Attempt.REJECTED)
    return _event(EventType.REGISTRATION_INTENT_REJECTED, intent, at, payload)


def expired(intent: Intent, at: datetime, project: Project) -> Event:
    return _event(EventType.REGISTRATION_INTENT_EXPIRED, intent, at, _whole(intent, at, project))


def attempt_failed(intent: Intent, project: Project, arrival: "Arrival", attempt: Attempt) -> Event:
    payload = _whole(intent, arrival.moment, project) | _attempt(arrival, attempt)
    kind = EventType.REGISTRATION_INTENT_ATTEMPT_FAILED
    return _event(kind, intent, arrival.moment, payload, contact_id=arrival.contact.id)


def _whole(
    intent: Intent, at: datetime, project: Project, contact: Contact | None = None
) -> dict[str, object]:
    """The intent as a secret key reads it."""
    shown = intent.public(View.READER, now=at, grace=timedelta(0), livemode=project.livemode, contact=contact)
    return {
        "registration_intent_id": intent.id,
        "customer_reference": intent.customer_reference,
        "contact_reference": intent.customer_reference,
        "registration_intent": shown,
    }


def _attempt(arrival: "Arrival", attempt: Attempt) -> dict[str, object]:
    return {
        **arrival.contact.person(arrival.conversation_id, arrival.channel_id),
        "attempt": {"code": attempt, "message_id": arrival.message_id},
    }


def unlinked(link: Link, reason: EndReason, at: datetime, whose: contacts.Acquaintance) -> Event:
    return Event(
        id=ids.new("evt", at),
        project_id=link.project_id,
        type=EventType.PARTICIPANT_UNLINKED,
        payload={
            **whose.contact.person(whose.conversation_id, whose.channel_id),
            "customer_reference": link.customer_reference,
            "contact_reference": link.customer_reference,
            "registration_intent_id": link.registration_intent_id,
            "reason": reason,
        },
        contact_id=link.contact_id,
        registration_intent_id=link.registration_intent_id,
        created_at=at,
    )


def _event(
    kind: EventType,
    intent: Intent,
    at: datetime,
    payload: dict[str, object],
    *,
    contact_id: str | None = None,
) -> Event:
    return Event(
        id=ids.new("evt", at),
        project_id=intent.project_id,
        type=kind,
        payload=payload,
        contact_id=contact_id or intent.contact_id,
        registration_intent_id=intent.id,
        created_at=at,
    )
