"""Redeeming: what a message with a token does to the intent it names."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec
from msgspec import Struct

from wabery_server import contacts, ids, outbox
from wabery_server.accounts import Project, identity_scopes
from wabery_server.contacts import Acquaintance, Contact, EndReason, Key, Link
from wabery_server.db import Tx
from wabery_server.intents import tell
from wabery_server.intents.intent import (
    Attempt,
    Intent,
    RejectionReason,
    Status,
    read_row,
    settle,
    settled_columns,
    sql,
)
from wabery_server.outbox import Event
from wabery_server.secrets import hash_token
from wabery_server.tokens import Found

REUSE_TOLD_EVERY = timedelta(minutes=10)
"""How often `security.token_reuse` is sent for one intent at most."""


class Arrival(Struct, frozen=True):
    """A message that carries a token, from a contact that has been met."""

    message_id: str
    project_id: str
    channel_id: str
    contact: Contact
    conversation_id: str
    found: Found
    sent_at: datetime
    received_at: datetime
    sender_limited: bool
    """Whether the sender has sent too many unknown tokens."""
    at: datetime | None = None
    """The moment of its effects; None: `received_at`. A failed message is retried later than it was received."""

    @property
    def moment(self) -> datetime:
        return self.at or self.received_at


class Verdict(NamedTuple):
    """What `judge` decides of one arrival; nothing has been written."""

    attempt: Attempt
    status: Status | None = None
    """What the intent becomes; None: it stays as it is."""
    reason: RejectionReason | None = None
    already_linked: bool = False
    ended: tuple[Link, ...] = ()
    """Links that yield to this one."""
    refreshed: Link | None = None
    """The link that was there already and takes over the intent's trust and metadata."""
    reuse: bool = False
    """Somebody else sent a token that was used."""


class Redeemed(NamedTuple):
    """The outcome for one arrival, as its message row tells it."""

    attempt: Attempt
    intent_id: str | None


def judge(
    intent: Intent,
    arrival: Arrival,
    *,
    of_contact: Sequence[Link],
    of_reference: Link | None,
    project: Project,
    key_revoked: bool,
    channel_deleted: bool,
    grace: timedelta,
    used_by: str | None = None,
) -> Verdict:
    """What this message does to this intent. Pure; the first rule that applies wins.

    `of_contact` are the contact's active links, `of_reference` the active link of the intent's reference. `used_by` is
    the contact that the intent was settled with, under its id of today; None: the intent's own `contact_id`.
    """
    contact_id = arrival.contact.id
    if intent.channel_id != arrival.channel_id:
        return Verdict(Attempt.WRONG_CHANNEL)
    if intent.status == Status.JOINED:
        if contact_id == (used_by or intent.contact_id):
            return Verdict(Attempt.ALREADY_USED_SAME_SENDER)
        return Verdict(Attempt.ALREADY_USED_OTHER_SENDER, reuse=True)
    if intent.status == Status.REJECTED:
        return Verdict(Attempt.AFTER_CANCEL)
    if arrival.sent_at > intent.expires_at:
        return Verdict(Attempt.AFTER_EXPIRY)
    if intent.status == Status.EXPIRED or arrival.received_at > intent.expires_at + grace:
        return Verdict(Attempt.ARRIVED_LATE)
    if key_revoked:
        return _rejected(RejectionReason.KEY_REVOKED)
    if channel_deleted:
        return _rejected(RejectionReason.CHANNEL_UNAVAILABLE)
    if not intent.trusted and project.unsigned_references == "refuse":
        return _rejected(RejectionReason.REFERENCE_UNVERIFIED)
    for link in of_contact:
        if link.customer_reference == intent.customer_reference:
            refreshed = link if intent.trusted else None
            return Verdict(Attempt.JOINED, Status.JOINED, already_linked=True, refreshed=refreshed)
    yielding = _yielding_of_contact(intent, of_contact, project)
    if isinstance(yielding, RejectionReason):
        return _rejected(yielding)
    if of_reference is not None:
        if not intent.trusted or (of_reference.trusted and project.on_reference_linked == "reject"):
            return _rejected(RejectionReason.REFERENCE_ALREADY_LINKED)
        yielding = [*yielding, of_reference]
    return Verdict(Attempt.JOINED, Status.JOINED, ended=tuple(yielding))


def _yielding_of_contact(
    intent: Intent, links: Sequence[Link], project: Project
) -> list[Link] | RejectionReason:
    """Which of the contact's links, all to other references, make room for this intent's; or why none does."""
    if not links:
        return []
    policy = project.on_identity_linked
    if policy == "allow":
        excess = len(links) - project.references_per_contact + 1
        unverified = [link for link in links if not link.trusted] if intent.trusted else []
        return (
            RejectionReason.LINK_LIMIT_REACHED if excess > len(unverified) else unverified[: max(excess, 0)]
        )
    if intent.trusted and (policy == "replace" or not any(link.trusted for link in links)):
        return list(links)
    return RejectionReason.IDENTITY_ALREADY_LINKED


def _rejected(reason: RejectionReason) -> Verdict:
    return Verdict(Attempt.REJECTED, Status.REJECTED, reason)


class Opened(NamedTuple):
    """An intent locked for redemption."""

    intent: Intent
    key_revoked: bool
    channel_deleted: bool
    linked: Link | None
    """The active link of its reference."""
    scopes: tuple[str, ...]
    """Of its channel's identities, as they are in this transaction."""
    reuse_count: int
    """How often other people have sent its token before."""
    reuse_told_at: datetime | None
    """When the app was last told."""


Openings = Mapping[tuple[str, str], Opened]
"""By project and token."""


async def lock(tx: Tx, wanted: Iterable[tuple[str, Found]]) -> Openings:
    """Locks the intents whose tokens these projects' messages carry, in one order."""
    by_hash = {
        (project_id, hash_token(token)): (project_id, token)
        for project_id, found in wanted
        for token in found.candidates
    }
    return {
        by_hash[row["project_id"], row["token_hash"]]: Opened(
            read_row(row),
            row["revoked_at"] is not None,
            row["deleted_at"] is not None,
            contacts.read_link(row, "link_") if row["link_id"] else None,
            identity_scopes(row["waba_id"], row["portfolio_id"], row["family"]) if row["waba_id"] else (),
            row["reuse_count"],
            row["reuse_told_at"],
        )
        for row in await tx.rows_each(sql.lock_by_token, sorted(by_hash))
    }


def yielding(openings: Openings) -> set[Key]:
    """The contacts whose links may end when these intents are redeemed: they have to be locked with the senders."""
    return {
        (link.project_id, link.contact_id)
        for one in openings.values()
        if one.intent.status == Status.PENDING and (link := one.linked) is not None
    }


def scopes(openings: Openings, project_id: str, channel_id: str, found: Found) -> tuple[str, ...]:
    """Of the identities of this channel, as the transaction reads them; empty when no intent of the channel is meant.

    What a process remembers of a channel may be two seconds old. A join must not be: with an old list of scopes a
    person could be linked a second time, as somebody new.
    """
    for token in found.candidates:
        opening = openings.get((project_id, token))
        if opening is not None and opening.intent.channel_id == channel_id:
            return opening.scopes
    return ()


async def redeem(
    tx: Tx,
    arrivals: Sequence[Arrival],
    openings: Openings,
    others: Mapping[Key, Contact],
    *,
    projects: Mapping[str, Project],
    grace: timedelta,
) -> list[Redeemed | None]:
    """Settles the intents whose tokens arrived; one result per arrival, in order.

    None: another arrival of this call concerns the same reference, contact or link; this one must come again in a later
    call. No two arrivals may share a token. `others` are the `yielding` contacts, locked.

    1. The intents are locked (`lock`), then the contacts (`contacts.meet`); links are guarded by a unique index and by
       the locks of their contacts.
    2. `judge` decides.
    3. A join gets its moment: never before an earlier change of the same contacts or the same reference.
    4. Links that yield are ended, the new ones written, the intents settled where they are still pending.
    5. Every change leaves its event.
    """
    chosen = [_choose(arrival, openings, grace) for arrival in arrivals]
    references: dict[tuple[str, str], int] = {}
    people = {one.contact.key for one in arrivals if not one.contact.fresh}
    used: set[Key] = set()
    for number, one in enumerate(chosen):
        if not isinstance(one, Opened):
            continue
        intent = one.intent
        if intent.status == Status.PENDING:
            references.setdefault((intent.project_id, intent.customer_reference), number)
            if one.linked is not None:
                people.add((one.linked.project_id, one.linked.contact_id))
        elif intent.contact_id not in (None, arrivals[number].contact.id):
            used.add((intent.project_id, intent.contact_id))
    of_contact: dict[Key, list[Link]] = {}
    for link in await contacts.active_links(tx, people) if references else ():
        of_contact.setdefault((link.project_id, link.contact_id), []).append(link)
    today = await contacts.today(tx, used) if used else {}
    # Only a moment that turned out to be too early makes `settle` fail and this run again.
    ended_at = await contacts.ended_at(tx, references) if tx.again and references else {}
    busy: set[Key] = set()
    work = _Settling(others)
    results: list[Redeemed | None] = []
    for number, (arrival, one) in enumerate(zip(arrivals, chosen, strict=True)):
        if isinstance(one, Attempt):
            results.append(Redeemed(one, None))
            continue
        intent = one.intent
        reference = (intent.project_id, intent.customer_reference)
        user = today.get((intent.project_id, intent.contact_id or ""))
        verdict = judge(
            intent,
            arrival,
            of_contact=of_contact.get(arrival.contact.key, ()),
            of_reference=one.linked,
            project=projects[intent.project_id],
            key_revoked=one.key_revoked,
            channel_deleted=one.channel_deleted,
            grace=grace,
            used_by=user.id if user else intent.contact_id,
        )
        concerned = {arrival.contact.key, *((link.project_id, link.contact_id) for link in verdict.ended)}
        if references.get(reference, number) != number or not busy.isdisjoint(concerned):
            results.append(None)
            continue
        busy |= concerned
        at = max(arrival.moment, intent.created_at)
        if verdict.status == Status.JOINED:
            latest = _latest(arrival.contact, one.linked, others, of_contact)
            at = contacts.moment(clock=at, latest=[*latest, ended_at.get(reference)])
        if verdict.reuse:
            work.add_reuse(one, arrival, at)
        work.add(intent, arrival, verdict, projects[intent.project_id], at)
        results.append(Redeemed(verdict.attempt, intent.id))
    await work.write(tx, projects)
    return results


def _latest(
    contact: Contact,
    linked: Link | None,
    others: Mapping[Key, Contact],
    of_contact: Mapping[Key, Sequence[Link]],
) -> Iterator[datetime | None]:
    """The moments of what happened to a contact, and to the one that its reference is linked to."""
    people = [contact]
    if linked is not None and (other := others.get((linked.project_id, linked.contact_id))) is not None:
        people.append(other)
    for one in people:
        yield one.latest_at
        for link in of_contact.get(one.key, ()):
            yield link.created_at


class _Settling:
    """What a redemption writes, gathered so that each table is written once."""

    def __init__(self, others: Mapping[Key, Contact]) -> None:
        self.people = dict(others)
        self.settled: list[tuple[object, ...]] = []
        self.links: list[Link] = []
        self.refreshed: list[Link] = []
        self.ended: list[tuple[Link, datetime]] = []
        self.advanced: dict[Key, datetime] = {}
        self.reuses: list[tuple[object, ...]] = []
        self.events: list[Event] = []

    def add_reuse(self, opened: Opened, arrival: Arrival, at: datetime) -> None:
        """Counts a message of another person; the app hears of the first, then at most once in ten minutes."""
        intent, told_at = opened.intent, opened.reuse_told_at
        count = opened.reuse_count + 1
        if told_at is None or at - told_at >= REUSE_TOLD_EVERY:
            told_at = at
            self.events.append(tell.token_reuse(intent, arrival, count))
        self.reuses.append((intent.project_id, intent.id, count, told_at))

    def add(self, intent: Intent, arrival: Arrival, verdict: Verdict, project: Project, at: datetime) -> None:
        contact = arrival.contact
        for old in verdict.ended:
            self.ended.append((old, at))
            self.advanced[old.project_id, old.contact_id] = at
        self.people[contact.key] = contact
        if verdict.status is None:
            self.events.append(tell.attempt_failed(intent, project, arrival, verdict.attempt))
            return
        intent.status = verdict.status
        intent.ended_at = at
        intent.rejection_reason = verdict.reason
        intent.contact_id = contact.id
        intent.message_id = arrival.message_id
        intent.already_linked = verdict.already_linked
        if verdict.status == Status.JOINED:
            intent.joined_at = at
            if verdict.already_linked:
                self.advanced[contact.key] = at
            else:
                self.links.append(_new_link(intent, arrival, at))
            if verdict.refreshed is not None:
                self.refreshed.append(
                    msgspec.structs.replace(
                        verdict.refreshed,
                        registration_intent_id=intent.id,
                        reference_trust=intent.reference_trust,
                        metadata=intent.metadata,
                    )
                )
            self.events.append(tell.joined(intent, arrival))
        else:
            self.events.append(tell.rejected(intent, at, project, arrival))
        self.settled.append(settled_columns(intent))

    async def write(self, tx: Tx, projects: Mapping[str, Project]) -> None:
        if self.ended:
            self.events[:0] = await self._replaced(tx)
        await contacts.link(tx, self.links)
        await contacts.refresh(tx, self.refreshed)
        await contacts.advance(tx, self.advanced)
        await settle(tx, self.settled)
        await tx.rows_each(sql.note_reuse, self.reuses)
        await outbox.record(tx, self.events, projects)

    async def _replaced(self, tx: Tx) -> list[Event]:
        """Ends the links that yield, and tells of each; their people may not be the ones who wrote."""
        events = []
        whose = {(link.project_id, link.contact_id) for link, _ in self.ended}
        newest = await contacts.conversations(tx, whose)
        for link, at in sorted(self.ended, key=lambda pair: pair[0].id):
            await contacts.end(tx, [link], EndReason.REPLACED, at)
            key = (link.project_id, link.contact_id)
            person = Acquaintance(self.people[key], *newest.get(key, (None, None)))
            events.append(tell.unlinked(link, EndReason.REPLACED, at, person))
        return events


def _choose(arrival: Arrival, openings: Openings, grace: timedelta) -> Opened | Attempt:
    """The one intent that a message means, or why there is none."""
    known = [
        one
        for token in arrival.found.candidates
        if (one := openings.get((arrival.project_id, token))) is not None
    ]
    if not known:
        return Attempt.SENDER_RATE_LIMITED if arrival.sender_limited else Attempt.UNKNOWN_TOKEN
    if len(known) == 1:
        return known[0]
    alive = [
        one
        for one in known
        if one.intent.status == Status.PENDING and arrival.received_at <= one.intent.expires_at + grace
    ]
    return alive[0] if len(alive) == 1 else Attempt.AMBIGUOUS_TOKEN


def _new_link(intent: Intent, arrival: Arrival, at: datetime) -> Link:
    return Link(
        project_id=intent.project_id,
        id=ids.new("link", at),
        contact_id=arrival.contact.id,
        customer_reference=intent.customer_reference,
        registration_intent_id=intent.id,
        reference_trust=intent.reference_trust,
        metadata=intent.metadata,
        created_at=at,
    )
