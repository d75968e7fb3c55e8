"""The inbox: every message that people send, once each.

A message that carries a token is a registration attempt and goes to `intents.redeem`; any other becomes
`message.received`. All of it, the joins included, commits before the provider is answered.

A message that cannot be handled because of its own content is stored as failed (`store_failed`): its provider object is
kept sealed, it is listed, and it can be retried. Every other failure is the provider's to repeat.
"""

import enum
import re
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import asyncpg
import msgspec
from msgspec import Raw, Struct

from wabery_server import contacts, errors, ids, intents, outbox, tokens
from wabery_server.accounts import Channel, Project
from wabery_server.clock import iso
from wabery_server.contacts import Contact, Identity, Link, Met, Sender
from wabery_server.db import Conflict, Tx, queries
from wabery_server.db.verdicts import caused_by_data
from wabery_server.intents import Arrival, Attempt, Redeemed
from wabery_server.outbox import Event, EventType
from wabery_server.secrets import Keyring

sql = queries.beside(__file__)

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class Kind(enum.StrEnum):
    """What a provider's message is to us."""

    MESSAGE = "message"
    """A person wrote to the number: it may carry a token, and it is passed on."""
    SYSTEM = "system"
    """An identity changed, or another notice about the chat: stored, and nothing follows."""
    UNREADABLE = "unreadable"
    """WhatsApp withholds the content (131051, 131060), or it could not be read: a placeholder. It is passed on without
    a text if its sender is known, and replaced when the same message arrives with content."""


class HandledBy(enum.StrEnum):
    """Who holds the conversation at the provider while the message arrives."""

    APP = "app"
    AGENT = "agent"
    """Meta's Business Agent: the message came on the field `standby`."""


class Reply(Struct, frozen=True, kw_only=True):
    """What a person pressed or filled in: a button, a row of a list, a form."""

    id: str | None = None
    title: str | None = None
    payload: str | None = None
    response: str | None = None


class Media(Struct, frozen=True, kw_only=True):
    """The file of a message, which the provider hands out by its id."""

    id: str | None = None
    mime_type: str | None = None
    sha256: str | None = None
    filename: str | None = None
    voice: bool | None = None
    animated: bool | None = None


class Message(Struct, frozen=True, kw_only=True):
    """An inbound message, the same for every provider."""

    provider_message_id: str
    """The provider's id (`wamid…`): the only key for de-duplication."""
    kind: Kind
    type: str
    """The provider's own word: text, image, interactive, system, unsupported…"""
    sender: Identity | None
    """None when the provider names no sender (some system messages)."""
    sent_at: datetime
    """The provider's stamp, in whole seconds."""
    handled_by: HandledBy = HandledBy.APP
    texts: tuple[str, ...] = ()
    """Every text that the person wrote or pressed, in reading order: body, caption, button title and payload, form answer."""
    forwarded: bool = False
    is_edit: bool = False
    """An edit of an earlier message: may carry a token, is not passed on otherwise."""
    error: str | None = None
    """Why it is unreadable, for the operator; no personal data."""
    failure: Exception | None = None
    """The bug of ours that kept it from being read."""
    reply: Reply | None = None
    media: Media | None = None
    context_id: str | None = None
    """The provider's id of the message that this one answers."""
    content: bytes | None = None
    """The provider's object for the message's type, as compact JSON; not redacted yet. So are the next two."""
    context: bytes | None = None
    referral: bytes | None = None
    content_truncated: bool = False
    """Whether one of the three was too large and is None therefore."""
    raw: bytes = b"{}"
    """The provider's own JSON of this one message, for system and unreadable ones."""
    original: Callable[[], bytes] = bytes
    """Makes a body of the provider's that holds this one message: what is sealed if the message fails."""


class Kept(NamedTuple):
    """What is stored and passed on of a message, tokens redacted."""

    text: str | None
    reply: Reply | None
    content: str | None
    context: str | None
    referral: str | None
    raw: str | None
    truncated: bool


class Inbound(Struct):
    """A message on the channel it came by."""

    channel: Channel
    project: Project
    """With the policy that the message is judged by."""
    message: Message
    found: tokens.Found
    received_at: datetime
    """When it first arrived. Expiry is judged by this moment, also when a failed message is retried."""
    at: datetime | None = None
    """The moment of its effects, when a failed message is retried; None: `received_at`."""
    sender_limited: bool = False
    """Whether the sender has sent too many unknown tokens."""
    sender: Sender | None = None
    """Made from the rest: who wrote, unless it is a system message."""
    readable: bool = False
    """Made from the rest: whether a person wrote it, so that it may carry a token."""
    kept: Kept = Kept(None, None, None, None, None, None, truncated=False)
    """Made from the rest, here, because redacting long texts takes time that no transaction should wait for."""

    def __post_init__(self) -> None:
        identity = self.message.sender
        if identity is not None and identity.known and self.message.kind != Kind.SYSTEM:
            channel = self.channel
            self.sender = Sender(channel.project_id, channel.id, channel.identity_scopes, identity)
            self.readable = self.message.kind == Kind.MESSAGE
        self.kept = keep(self.message)

    @property
    def moment(self) -> datetime:
        return self.at or self.received_at

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
    """Received before; nothing was written."""
    PASSED_ON = "passed_on"
    """An ordinary message: `message.received`."""
    ATTEMPT = "attempt"
    """It carried a token; see the attempt's code."""
    STORED = "stored"
    """A system message, an edit, an unreadable one without a sender: kept, nothing follows."""
    FAILED = "failed"
    """It could not be handled because of its own content: kept, listed, and can be retried."""
    POSTPONED = "postponed"
    """Nothing was written: another message of the same call has to commit first. Call again with it."""


class Received(Struct, frozen=True):
    """The outcome for one message."""

    outcome: Outcome
    message_id: str | None = None
    attempt: Attempt | None = None
    intent_id: str | None = None


class _Before(NamedTuple):
    """A message that was received before, under the same provider id."""

    id: str
    placeholder: bool
    """Whether content may replace it. Erasure and retention clear this, so that nothing erased comes back."""
    failed: bool
    event_id: str | None
    """The `message.received` that announced the placeholder."""

    def yields_to(self, item: Inbound) -> bool:
        """Whether this arrival brings what is missing: content, or the retry of what is kept sealed."""
        is_retry = self.failed and item.at is not None
        return self.placeholder and (item.message.kind == Kind.MESSAGE or is_retry)


async def receive(tx: Tx, items: Sequence[Inbound], *, grace: timedelta) -> list[Received]:
    """Stores messages, redeems their tokens, records their events; one result per message, in order.

    No two items may share a key (`Inbound.keys`).

    1. Intents are locked, contacts are met, tokens redeemed.
    2. Everything is written. A provider's message id that was received before makes the whole call run again:
    3. it looks for the messages that were received before. These are duplicates, whatever else they say, unless what was
       stored then is only a placeholder and this one brings the content.
    """
    before = await _received_before(tx, items) if tx.again else {}
    replaced = {n: old for n, item in enumerate(items) if (old := before.get(_place(item))) is not None}
    fresh = [n for n, item in enumerate(items) if n not in replaced or replaced[n].yields_to(item)]
    projects = {item.project.id: item.project for item in items}
    readable = [n for n in fresh if items[n].readable]
    openings = await intents.lock(tx, [(items[n].channel.project_id, items[n].found) for n in readable])
    matched = {n: _matched(items[n], openings) for n in readable}
    attempts = [n for n in readable if items[n].found.tokens or matched[n]]
    people, others = await _meet(tx, items, fresh, openings)
    names = {n: replaced[n].id if n in replaced else ids.new("msg", items[n].moment) for n in fresh}
    arrivals = [_arrival(items[n], names[n], people[n]) for n in attempts]
    redeemed = dict(
        zip(
            attempts,
            await intents.redeem(tx, arrivals, openings, others, projects=projects, grace=grace),
            strict=True,
        )
    )
    passed = [n for n in people if n not in redeemed and not items[n].message.is_edit]
    events = await _pass_on(tx, items, passed, names, people, replaced, projects)
    written = [n for n in fresh if n not in redeemed or redeemed[n] is not None]
    rows = {
        n: _columns(items[n], names[n], people.get(n), redeemed.get(n), events.get(n), matched.get(n, ()))
        for n in written
    }
    await _insert(tx, [row for n, row in rows.items() if n not in replaced])
    await _replace(tx, [row for n, row in rows.items() if n in replaced])
    results = [Received(Outcome.DUPLICATE) for _ in items]
    for n in fresh:
        if n not in redeemed:
            results[n] = Received(Outcome.PASSED_ON if n in events else Outcome.STORED, names[n])
        elif (one := redeemed[n]) is not None:
            results[n] = Received(Outcome.ATTEMPT, names[n], one.attempt, one.intent_id)
        else:
            results[n] = Received(Outcome.POSTPONED)
    return results


# Messages that fail


class Faults:
    """Tells a message that fails because of itself from a server that fails with every message.

    Of the database's errors only bad data (SQLSTATE classes 22 and 23) is the message's own fault; everything else, such
    as a cancelled statement, a missing column or a full disk, may be over when the provider repeats the message. Of our
    own code's errors all count as the message's own, since a bug met by one message would be met again at each
    repetition. But a bug that every message meets must not be answered 200: after `most` such failures in a row, without
    a message handled in between, the provider is asked to repeat.
    """

    def __init__(self, most: int = 3) -> None:
        self._most = most
        self._in_a_row = 0
        self._logged: dict[str, float] = {}

    def handled(self) -> None:
        """A message was handled: the code works."""
        self._in_a_row = 0

    def is_own(self, failure: Exception) -> bool:
        """Whether the message is at fault, and has to be stored as failed."""
        if isinstance(failure, _NEVER_OWN) or not caused_by_data(failure):
            return False
        if isinstance(failure, asyncpg.PostgresError | asyncpg.InterfaceError):
            return True
        self._in_a_row += 1
        return self._in_a_row <= self._most

    def is_news(self, failure: Exception) -> bool:
        """Whether this failure of the server has not been logged for a minute; then it counts as logged."""
        what = getattr(failure, "sqlstate", None) or type(failure).__name__
        now = time.monotonic()
        if now - self._logged.get(what, -_QUIET_SECONDS) < _QUIET_SECONDS:
            return False
        self._logged[what] = now
        return True


_QUIET_SECONDS = 60.0
_NEVER_OWN: Final = (errors.WaberyError, OSError, MemoryError, ImportError, Conflict)


def unread(message: Message, error: str, failure: Exception | None = None) -> Message:
    """The message without anything that a bug of ours kept from being read; its original stays."""
    return Message(
        provider_message_id=message.provider_message_id,
        kind=Kind.UNREADABLE,
        type=message.type,
        sender=None,
        sent_at=message.sent_at,
        handled_by=message.handled_by,
        error=error,
        failure=failure,
        original=message.original,
    )


async def store_failed(tx: Tx, item: Inbound, error: str, *, keyring: Keyring) -> Received:
    """Keeps a message that fails because of its own content, with its error and, sealed, its whole provider object."""
    name = ids.new("msg", item.moment)
    failed = unread(item.message, error)
    row = _columns(
        Inbound(item.channel, item.project, failed, tokens.NONE_FOUND, item.received_at),
        name,
        None,
        None,
        None,
        (),
    )
    if await tx.count_each(sql.insert, [row]) == 0:
        before = (await _received_before(tx, [item])).get(_place(item))
        if before is None or before.failed or not before.yields_to(item):
            return Received(Outcome.DUPLICATE)
        name = before.id  # a placeholder, whose content has now come and cannot be handled
        await tx.run(sql.note_error, item.channel.project_id, name, error)
    subkeys = keyring.current
    sealed = subkeys.seal(item.message.original(), _purpose(name))
    await tx.run(sql.insert_failed, item.channel.project_id, name, sealed, subkeys.version, item.received_at)
    return Received(Outcome.FAILED, name)


class Failed(Struct, frozen=True, kw_only=True):
    """A message that could not be handled, as operators see it; the provider object stays sealed."""

    project_id: str
    id: str
    channel_id: str
    provider_message_id: str
    type: str
    error: str | None
    sent_at: datetime
    received_at: datetime

    def public(self) -> dict[str, object]:
        return {
            "object": "failed_message",
            "id": self.id,
            "project_id": self.project_id,
            "channel_id": self.channel_id,
            "provider_message_id": self.provider_message_id,
            "type": self.type,
            "error": self.error,
            "sent_at": iso(self.sent_at),
            "received_at": iso(self.received_at),
        }


async def any_failed(tx: Tx, *, limit: int, before: str | None = None) -> list[Failed]:
    """The failed messages of the whole installation, newest first; `before` is the id to continue after."""
    return [Failed(**row) for row in await tx.rows(sql.any_failed, before, limit)]


class Sealed(NamedTuple):
    """A failed message with its provider object, for a retry."""

    failed: Failed
    object: bytes
    """A body of the provider's that holds this one message, for its `parse`."""


async def open_failed(tx: Tx, failed: Failed, *, keyring: Keyring) -> Sealed | None:
    """None when the message has been handled meanwhile. Raises secrets.Unsealable."""
    row = await tx.row(sql.failed_object, failed.project_id, failed.id)
    if row is None:
        return None
    return Sealed(failed, keyring.open(row["object"], row["secret_version"], _purpose(failed.id), bytes))


async def dismiss_failed(tx: Tx, failed: Failed) -> None:
    """The message needs nothing after all: its row stays, and it is not listed any more."""
    await tx.run(sql.settle_placeholder, failed.project_id, failed.id)
    await tx.rows_each(sql.delete_failed, [(failed.project_id, failed.id)])


async def note_error(tx: Tx, failed: Failed, error: str) -> None:
    """A retry failed again: its error is the one that is listed."""
    await tx.run(sql.note_error, failed.project_id, failed.id, error)


def _purpose(message_id: str) -> str:
    return f"failed_messages.object:{message_id}"


# The steps of `receive`


async def _received_before(tx: Tx, items: Sequence[Inbound]) -> dict[tuple[str, str, str], _Before]:
    rows = await tx.rows_each(sql.received_before, [_place(item) for item in items])
    return {
        (row["project_id"], row["channel_id"], row["provider_message_id"]): _Before(
            row["id"], row["placeholder"], row["failed"], row["event_id"]
        )
        for row in rows
    }


async def _insert(tx: Tx, rows: Sequence[tuple[object, ...]]) -> None:
    """A message id that is there already is an expected outcome: no error in the database, and the call runs again."""
    if await tx.count_each(sql.insert, rows) != len(rows):
        raise Conflict("one of these messages has been received before")


async def _replace(tx: Tx, rows: Sequence[tuple[object, ...]]) -> None:
    if not rows:
        return
    if await tx.count_each(sql.replace, rows) != len(rows):
        raise Conflict("one of these placeholders has been replaced")
    await tx.rows_each(sql.delete_failed, [(row[0], row[1]) for row in rows])


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
    at = items[next(iter(senders))].moment
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
        item.at,
    )


def _matched(item: Inbound, openings: intents.Openings) -> tuple[str, ...]:
    """The tokens in this message that belong to an intent of its project."""
    project_id = item.channel.project_id
    return tuple(token for token in item.found.candidates if (project_id, token) in openings)


async def _pass_on(
    tx: Tx,
    items: Sequence[Inbound],
    numbers: Sequence[int],
    names: Mapping[int, str],
    people: Mapping[int, Met],
    replaced: Mapping[int, _Before],
    projects: Mapping[str, Project],
) -> dict[int, str]:
    """Records `message.received` for each; returns the events' ids."""
    if not numbers:
        return {}
    met_before = [people[n].contact for n in numbers if not people[n].contact.fresh]
    newest: dict[tuple[str, str], Link] = {}
    for link in await contacts.active_links(tx, {(one.project_id, one.id) for one in met_before}):
        newest[link.project_id, link.contact_id] = link
    events = {}
    for n in numbers:
        contact = people[n].contact
        link_of = newest.get((contact.project_id, contact.id))
        events[n] = _received(items[n], names[n], people[n], link_of, replaced.get(n))
    await outbox.record(tx, list(events.values()), projects)
    return {n: event.id for n, event in events.items()}


def _received(item: Inbound, message_id: str, met: Met, link: Link | None, before: _Before | None) -> Event:
    """`message.received`; of several links it names the newest."""
    reference = link.customer_reference if link else None
    return Event(
        id=ids.new("evt", item.moment),
        project_id=item.channel.project_id,
        type=EventType.MESSAGE_RECEIVED,
        payload={
            **met.contact.person(met.conversation_id, item.channel.id),
            "agent_id": None,
            "message_id": message_id,
            "contact_reference": reference,
            "customer_reference": reference,
            "metadata": link.metadata if link else None,
            "reference_trust": link.reference_trust if link else None,
            "registration_intent_id": link.registration_intent_id if link else None,
            **told(item.message, item.kept),
            "replaces_event_id": before.event_id if before else None,
        },
        contact_id=met.contact.id,
        registration_intent_id=None,
        created_at=item.moment,
    )


def told(message: Message, kept: Kept) -> dict[str, object]:
    """What `message.received` says of the message itself; parts that it does not have are None."""
    return {
        "text": kept.text,
        "type": message.type,
        "sent_at": iso(message.sent_at),
        "provider_message_id": message.provider_message_id,
        "forwarded": message.forwarded,
        "handled_by": message.handled_by,
        "reply": kept.reply,
        "media": message.media,
        "context": {"message_id": message.context_id} if message.context_id else None,
        "referral": _json(kept.referral),
        "content": _json(kept.content),
        "content_truncated": kept.truncated,
    }


def _json(text: str | None) -> Raw | None:
    return None if text is None else Raw(text.encode())


def _place(item: Inbound) -> tuple[str, str, str]:
    return item.channel.project_id, item.channel.id, item.message.provider_message_id


def _columns(
    item: Inbound,
    message_id: str,
    met: Met | None,
    redeemed: Redeemed | None,
    event_id: str | None,
    matched: Sequence[str],
) -> tuple[object, ...]:
    """A row as `insert` and `replace` take it. `matched`: tokens of ours, which are redacted also without a prefix."""
    message = item.message
    kept = keep(message, matched) if any(token in item.found.bare for token in matched) else item.kept
    placeholder = message.kind is Kind.UNREADABLE
    return (
        item.channel.project_id,
        message_id,
        item.channel.id,
        message.provider_message_id,
        message.kind,
        message.type,
        met.contact.id if met else None,
        met.conversation_id if met else None,
        kept.text,
        message.forwarded,
        message.sent_at,
        item.received_at,
        redeemed.attempt if redeemed else None,
        redeemed.intent_id if redeemed else None,
        message.error,
        kept.raw,
        message.handled_by,
        kept.content,
        kept.context,
        kept.referral,
        kept.truncated,
        placeholder,
        event_id if placeholder else None,
    )


# What is kept


def keep(message: Message, matched: Sequence[str] = ()) -> Kept:
    """Redacts what a person wrote, wherever it stands; `tokens.find` looks at the beginning of a text, this at all of it."""
    if (
        message.kind == Kind.MESSAGE
        and message.type == "text"
        and message.context is None is message.referral
    ):
        text = message.texts[0]
        if message.content == _encode({"body": text}):  # by far the most frequent: nothing to take apart
            shown = tokens.redact(text, matched)
            return Kept(
                shown, None, _encode({"body": shown}).decode(), None, None, None, message.content_truncated
            )
    redacted = {text: tokens.redact(text, matched) for text in message.texts}
    reply = message.reply
    if reply is not None:
        texts = {name: _text(value, redacted) for name, value in msgspec.structs.asdict(reply).items()}
        reply = Reply(**texts)
    parts = (message.content, message.context, message.referral)
    content, context, referral = (_without_tokens(part, redacted) for part in parts)
    return Kept(
        text=redacted[message.texts[0]] if message.texts else None,
        reply=reply,
        content=content,
        context=context,
        referral=referral,
        raw=None if message.kind == Kind.MESSAGE else _without_tokens(message.raw, redacted),
        truncated=message.content_truncated or (content, context, referral).count(None) > parts.count(None),
    )


def _text(value: str | None, redacted: Mapping[str, str]) -> str | None:
    return None if value is None else redacted.get(value) or tokens.redact(value)


def _without_tokens(part: bytes | None, redacted: Mapping[str, str]) -> str | None:
    """A provider's JSON without tokens. Ids, hashes and media keys stay as they are, unless they were searched for a
    token, as the id of a pressed button is. None where there is nothing, or where it is nested too deeply."""
    if part is None:
        return None
    changed = any(text != kept for text, kept in redacted.items())
    if not changed and part.isascii() and not _MAY_HOLD_TOKEN.search(part):
        return part.decode()
    try:
        return _encode(_redacted(_decode(part), redacted)).decode()
    except RecursionError:
        return None


_MAY_HOLD_TOKEN = re.compile(rb"[jJ%]")
"""`wjr` in any case, or percent-encoded."""
_OPAQUE = re.compile(r"(^|_)(ids?|sha256|hash|key|clid|type)$", re.IGNORECASE)


def _redacted(value: object, redacted: Mapping[str, str]) -> object:
    if isinstance(value, str):
        return _text(value, redacted)
    if isinstance(value, list):
        return [_redacted(item, redacted) for item in value]
    if isinstance(value, dict):
        return {tokens.redact(key): _redacted_field(key, item, redacted) for key, item in value.items()}
    return value


def _redacted_field(key: str, value: object, redacted: Mapping[str, str]) -> object:
    opaque = isinstance(value, str) and value not in redacted and _OPAQUE.search(key)
    return value if opaque else _redacted(value, redacted)
