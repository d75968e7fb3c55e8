"""The inbox: every message that people send, once each.

A message that carries a token is a registration attempt and goes to `intents.redeem`; any other becomes
`message.received`. All of it, the joins included, commits before the provider is answered.
"""

import enum
from collections.abc import Hashable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec
from msgspec import Struct

from wabery_server import contacts, ids, intents, outbox, tokens
from wabery_server.accounts import Channel, Project
from wabery_server.clock import iso
from wabery_server.contacts import Contact, Identity, Link, Met, Sender
from wabery_server.db import Conflict, Taken, Tx, queries
from wabery_server.intents import Arrival, Attempt, Redeemed
from wabery_server.outbox import Event, EventType

sql = queries.beside(__file__)

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class Kind(enum.StrEnum):
    """What a provider's message is to us."""

    MESSAGE = "message"
    """A person wrote to the number: it may carry a token, and it is passed on."""
    SYSTEM = "system"
    """An identity changed, or WhatsApp tells something about the chat: stored, and nothing follows."""
    UNREADABLE = "unreadable"
    """A person wrote, but WhatsApp withholds the content (131051, 131060) or we could not read it: stored and listed."""


class Message(Struct, frozen=True, kw_only=True):
    """An inbound message, the same for every provider."""

    provider_message_id: str
    """The provider's id (`wamid…`): the only key for de-duplication."""
    kind: Kind
    type: str
    """The provider's own word: text, image, interactive, system, unsupported…"""
    sender: Identity | None
    """None when the provider names nobody (some system messages)."""
    sent_at: datetime
    """The provider's stamp, in whole seconds."""
    texts: tuple[str, ...] = ()
    """Every text the person wrote or pressed, in reading order: body, caption, button title and payload, form answer."""
    forwarded: bool = False
    is_edit: bool = False
    """An edit of an earlier message: may carry a token, is not passed on otherwise."""
    error: str | None = None
    """Why it is unreadable, for the operator; no personal data."""
    raw: bytes = b"{}"
    """The provider's own JSON of this one message, for system and unreadable ones; kept for later issues to read."""


class Inbound(Struct):
    """A message on the channel it came by."""

    channel: Channel
    project: Project
    """With the policy that the message is judged by."""
    message: Message
    found: tokens.Found
    received_at: datetime
    sender_limited: bool = False
    """Whether the sender has sent too many unknown tokens."""
    sender: Sender | None = None
    """Made from the rest: whom the message identifies."""
    readable: bool = False
    """Made from the rest: whether a person wrote it, so that it may carry a token."""

    def __post_init__(self) -> None:
        identity = self.message.sender
        if identity is not None and identity.known and self.message.kind != Kind.SYSTEM:
            channel = self.channel
            self.sender = Sender(channel.project_id, channel.id, channel.identity_scopes, identity)
            self.readable = self.message.kind == Kind.MESSAGE

    def keys(self) -> Iterator[Hashable]:
        """What one call of `receive` may hold only once: message, tokens, identifiers in whatever scope."""
        project_id = self.channel.project_id
        yield project_id, self.channel.id, self.message.provider_message_id
        for token in self.found.candidates:
            yield project_id, token
        if sender := self.sender:
            yield from sender.names


class Outcome(enum.StrEnum):
    """What became of a message."""

    DUPLICATE = "duplicate"
    """Seen before; nothing was written."""
    PASSED_ON = "passed_on"
    """An ordinary message: `message.received`."""
    ATTEMPT = "attempt"
    """It carried a token; see the attempt's code."""
    STORED = "stored"
    """A system message, an edit, an unreadable one: kept, nothing follows."""
    POSTPONED = "postponed"
    """Nothing was written: another message of the same call has to commit first. Call again with it."""
    LOST = "lost"
    """Not even its error could be stored; the log tells."""


class Received(Struct, frozen=True):
    """The outcome for one message."""

    outcome: Outcome
    message_id: str | None = None
    attempt: Attempt | None = None
    intent_id: str | None = None


async def receive(tx: Tx, items: Sequence[Inbound], *, grace: timedelta) -> list[Received]:
    """Stores messages, redeems their tokens, records what the app hears of; one result per message, in order.

    No two items may share a key (`Inbound.keys`).

    1. Intents are locked, contacts are met, tokens redeemed.
    2. Everything is written. A provider's message id that was seen before makes the whole call run again:
    3. it looks for what was seen before, which is a duplicate, whatever else it says.
    """
    seen = await _seen(tx, items) if tx.again else set()
    fresh = [n for n, item in enumerate(items) if _place(item) not in seen]
    projects = {item.project.id: item.project for item in items}
    readable = [n for n in fresh if items[n].readable]
    openings = await intents.lock(tx, [(items[n].channel.project_id, items[n].found) for n in readable])
    matched = {n: _matched(items[n], openings) for n in readable}
    attempts = [n for n in readable if items[n].found.tokens or matched[n]]
    people, others = await _meet(tx, items, fresh, openings)
    names = {n: ids.new("msg", items[n].received_at) for n in fresh}
    arrivals = [_arrival(items[n], names[n], people[n]) for n in attempts]
    redeemed = dict(
        zip(
            attempts,
            await intents.redeem(tx, arrivals, openings, others, projects=projects, grace=grace),
            strict=True,
        )
    )
    passed = [n for n in readable if n not in redeemed and not items[n].message.is_edit]
    await _pass_on(tx, [(items[n], names[n], people[n]) for n in passed], projects)
    kept = [n for n in fresh if n not in redeemed or redeemed[n] is not None]
    rows = [_columns(items[n], names[n], people.get(n), redeemed.get(n), matched.get(n, ())) for n in kept]
    await _insert(tx, rows)
    results = [Received(Outcome.DUPLICATE) for _ in items]
    for n in fresh:
        if n not in redeemed:
            results[n] = Received(Outcome.PASSED_ON if n in passed else Outcome.STORED, names[n])
        elif (one := redeemed[n]) is not None:
            results[n] = Received(Outcome.ATTEMPT, names[n], one.attempt, one.intent_id)
        else:
            results[n] = Received(Outcome.POSTPONED)
    return results


async def store_failed(tx: Tx, item: Inbound, error: str) -> Received:
    """Keeps a message that fails by itself, with its error, so that nothing is lost and the provider is answered."""
    name = ids.new("msg", item.received_at)
    failed = Message(
        provider_message_id=item.message.provider_message_id,
        kind=Kind.UNREADABLE,
        type=item.message.type,
        sender=None,
        sent_at=item.message.sent_at,
        error=error,
        raw=item.message.raw,
    )
    kept = Inbound(item.channel, item.project, failed, tokens.NONE_FOUND, item.received_at)
    if tx.again and await _seen(tx, [item]):
        return Received(Outcome.DUPLICATE)
    await _insert(tx, [_columns(kept, name, None, None, ())])
    return Received(Outcome.STORED, name)


async def _insert(tx: Tx, rows: Sequence[tuple[object, ...]]) -> None:
    try:
        await tx.rows_each(sql.insert, rows)
    except Taken as before:
        raise Conflict("one of these messages has been received before") from before


async def _seen(tx: Tx, items: Sequence[Inbound]) -> set[tuple[str, str, str]]:
    rows = await tx.rows_each(sql.seen, [_place(item) for item in items])
    return {(row["project_id"], row["channel_id"], row["provider_message_id"]) for row in rows}


async def _meet(
    tx: Tx, items: Sequence[Inbound], numbers: Sequence[int], openings: intents.Openings
) -> tuple[dict[int, Met], Mapping[contacts.Key, Contact]]:
    """Who wrote each of these messages, and the contacts whose links may have to yield to theirs; all locked."""
    senders = {n: sender for n in numbers if (sender := items[n].sender) is not None}
    if not senders:
        return {}, {}
    for n, sender in senders.items():
        if openings and items[n].readable:
            scopes = intents.scopes(openings, sender.project_id, sender.channel_id, items[n].found)
            if scopes and scopes != sender.scopes:
                senders[n] = msgspec.structs.replace(sender, scopes=scopes)
    at = items[next(iter(senders))].received_at
    meeting = await contacts.meet(tx, list(senders.values()), at, intents.yielding(openings))
    return dict(zip(senders, meeting.met, strict=True)), meeting.others


def _arrival(item: Inbound, message_id: str, met: Met) -> Arrival:
    return Arrival(
        message_id,
        item.channel.project_id,
        item.channel.id,
        met.contact,
        met.conversation_id,
        item.found,
        item.message.sent_at,
        item.received_at,
        item.sender_limited,
    )


def _matched(item: Inbound, openings: intents.Openings) -> tuple[str, ...]:
    """The tokens in this message that belong to an intent of its project."""
    project_id = item.channel.project_id
    return tuple(token for token in item.found.candidates if (project_id, token) in openings)


async def _pass_on(
    tx: Tx, messages: Sequence[tuple[Inbound, str, Met]], projects: Mapping[str, Project]
) -> None:
    if not messages:
        return
    people = {(met.contact.project_id, met.contact.id) for _, _, met in messages if not met.contact.fresh}
    newest: dict[tuple[str, str], Link] = {}
    for link in await contacts.active_links(tx, people):
        newest[link.project_id, link.contact_id] = link
    events = [
        _received(item, name, met, newest.get((met.contact.project_id, met.contact.id)))
        for item, name, met in messages
    ]
    await outbox.record(tx, events, projects)


def _received(item: Inbound, message_id: str, met: Met, link: Link | None) -> Event:
    """`message.received`; of several links the newest is the one named."""
    reference = link.customer_reference if link else None
    return Event(
        id=ids.new("evt", item.received_at),
        project_id=item.channel.project_id,
        type=EventType.MESSAGE_RECEIVED,
        payload={
            **met.contact.person(met.conversation_id, item.channel.id),
            "agent_id": None,
            "text": _shown(item.message),
            "message_id": message_id,
            "contact_reference": reference,
            "customer_reference": reference,
            "metadata": link.metadata if link else None,
            "type": item.message.type,
            "sent_at": iso(item.message.sent_at),
            "reference_trust": link.reference_trust if link else None,
            "registration_intent_id": link.registration_intent_id if link else None,
        },
        contact_id=met.contact.id,
        registration_intent_id=None,
        created_at=item.received_at,
    )


def _place(item: Inbound) -> tuple[str, str, str]:
    return item.channel.project_id, item.channel.id, item.message.provider_message_id


def _columns(
    item: Inbound, message_id: str, met: Met | None, redeemed: Redeemed | None, matched: Sequence[str]
) -> tuple[object, ...]:
    message = item.message
    return (
        item.channel.project_id,
        message_id,
        item.channel.id,
        message.provider_message_id,
        message.kind,
        message.type,
        met.contact.id if met else None,
        met.conversation_id if met else None,
        _shown(message, matched),
        message.forwarded,
        message.sent_at,
        item.received_at,
        redeemed.attempt if redeemed else None,
        redeemed.intent_id if redeemed else None,
        message.error,
        None if message.kind == Kind.MESSAGE else _without_tokens(message.raw),
    )


def _shown(message: Message, matched: Sequence[str] = ()) -> str | None:
    """The text that is stored and sent, without tokens."""
    return tokens.redact(message.texts[0], matched) if message.texts else None


def _without_tokens(raw: bytes) -> str:
    """The provider's own JSON; a token in it that nobody could read is still good, so it is not kept."""
    try:
        return _encode(_redacted(_decode(raw))).decode()
    except RecursionError:
        return "{}"


def _redacted(value: object) -> object:
    if isinstance(value, str):
        return tokens.redact(value)
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    return value
