"""Contacts: the WhatsApp identities of a project, their identifiers, conversations and links to customer references.

A contact has a surrogate id and typed identifiers: BSUID, parent BSUID, phone. WhatsApp may leave the phone number
out, and a number can move to another person, so the phone is never the key: BSUID wins over parent BSUID, which wins
over the phone. A username is no identifier; it can be given away. (Meta, "Business-scoped user IDs".)

A transaction that changes a contact's identifiers or links holds the lock on the contact's row. What was read before
the lock is checked after it, because the row may have been waited for.
"""

import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from wabery_server import ids
from wabery_server.clock import up_to_the_millisecond
from wabery_server.db import Conflict, Row, Taken, Tx, queries
from wabery_server.logs import line, log

sql = queries.beside(__file__)


Key: TypeAlias = tuple[str, str]
"""Project and contact id."""
Name: TypeAlias = tuple[str, str, str]
"""Project, kind and value of an identifier, in whatever scope."""
Identifier: TypeAlias = tuple[str, str, str, str]
"""Project, kind, scope, value."""

_NO_SCOPE = ("",)
"""A phone number is the same in every scope."""


class Identity(Struct, frozen=True, kw_only=True):
    """A sender as one signed webhook describes them. At least one of bsuid, parent_bsuid and phone is set."""

    bsuid: str | None = None
    """`CC.` and up to 128 alphanumerics; byte-exact, unique per business portfolio and person."""
    parent_bsuid: str | None = None
    """`CC.ENT.` and up to 128 alphanumerics."""
    phone: str | None = None
    """`wa_id`: digits of the E.164 number without `+`; None when WhatsApp does not share it."""
    username: str | None = None
    """Without the `@`; for display only."""
    profile_name: str | None = None

    @property
    def known(self) -> bool:
        """Whether anything here can identify somebody."""
        return bool(self.bsuid or self.parent_bsuid or self.phone)

    @property
    def country(self) -> str | None:
        """The two letters that open a BSUID; None for a sender with a phone number alone."""
        bsuid = self.bsuid or self.parent_bsuid
        return bsuid[:2].upper() if bsuid and bsuid[2:3] == "." else None

    def names(self, project_id: str) -> "tuple[Name, ...]":
        """Its identifiers, strongest first."""
        found: tuple[Name, ...] = ()
        if self.bsuid:
            found = ((project_id, "bsuid", self.bsuid),)
        if self.parent_bsuid:
            found += ((project_id, "parent_bsuid", self.parent_bsuid),)
        if self.phone:
            found += ((project_id, "phone", self.phone),)
        return found


class Contact(Struct, kw_only=True):
    """A person, as known after the newest message, with their conversation on the channel that it came by."""

    project_id: str
    id: str
    username: str | None
    profile_name: str | None
    country: str | None
    bsuid: str | None = None
    parent_bsuid: str | None = None
    phone: str | None = None
    fresh: bool = False
    """Met for the first time in this transaction."""
    latest_at: datetime | None = None
    """The latest moment of a `participant.*` event that no active link tells: of a link that ended, or was confirmed."""
    merged_into: str | None = None
    """The contact that this one has turned out to be; it has no identifiers or links of its own any more."""
    duplicate_of: str | None = None
    """Another linked contact that is the same person: two links stand against each other, so they are not merged."""
    held: set[tuple[str, str, str]] = msgspec.field(default_factory=set)
    """Its current identifiers: kind, scope, value."""

    @property
    def key(self) -> Key:
        return self.project_id, self.id

    def hold(self, kind: str, scope: str, value: str) -> None:
        """Takes a current identifier; the newest of a kind is the one that is shown."""
        setattr(self, kind, value)
        self.held.add((kind, scope, value))

    def masked(self) -> dict[str, str | None]:
        """What a browser or a key without `contacts:identity` may see: `identity {display, country}`."""
        if self.phone:
            display = f"•••{self.phone[-3:]}"
        elif self.username:
            display = f"@{self.username[0]}•••"
        else:
            display = "•••"
        return {"display": display, "country": self.country}

    def whatsapp(self) -> dict[str, str | None]:
        """The `whatsapp` object of events and of keys with `contacts:identity`."""
        return {
            "user_id": self.bsuid,
            "parent_user_id": self.parent_bsuid,
            "wa_id": self.phone,
            "username": self.username,
            "profile_name": self.profile_name,
            "country": self.country,
        }

    def person(self, conversation_id: str | None, channel_id: str | None) -> dict[str, object]:
        """What every event about a person says of them; `from` is null when WhatsApp does not share the number."""
        return {
            "contact_id": self.id,
            "conversation_id": conversation_id,
            "channel_id": channel_id,
            "from": f"+{self.phone}" if self.phone else None,
            "whatsapp": self.whatsapp(),
        }


class Acquaintance(NamedTuple):
    """A contact and their newest conversation, if any."""

    contact: Contact
    conversation_id: str | None
    channel_id: str | None


class EndReason(enum.StrEnum):
    """Why a link ended."""

    REPLACED = "replaced"
    """A trusted registration linked the reference or the person to another."""


class Link(Struct, kw_only=True):
    """contact <-> customer_reference; one active link per reference."""

    project_id: str
    id: str
    contact_id: str
    customer_reference: str
    registration_intent_id: str
    reference_trust: str
    metadata: msgspec.Raw
    created_at: datetime

    @property
    def trusted(self) -> bool:
        return self.reference_trust != "unverified"


class Sender(Struct):
    """Who wrote, and where to."""

    project_id: str
    channel_id: str
    scopes: tuple[str, ...]
    """Where a BSUID that comes by this channel means this person: the current scope, the WABA, then the others that the
    channels of the WABA have used. See `accounts.Channel.identity_scopes`."""
    identity: Identity
    names: tuple[Name, ...] = ()
    """Made from the rest, strongest first."""

    def __post_init__(self) -> None:
        self.names = self.identity.names(self.project_id)

    def scopes_of(self, kind: str) -> tuple[str, ...]:
        return _NO_SCOPE if kind == "phone" else self.scopes

    def kept(self) -> list[Identifier]:
        """What its contact holds from now on: each identifier in the current scope and in that of the WABA.

        The WABA of a number never changes. So a process that does not know yet that the portfolio was set finds the
        contact all the same.
        """
        return [
            (project_id, kind, scope, value)
            for project_id, kind, value in self.names
            for scope in self.scopes_of(kind)[:2]
        ]


class Met(Struct):
    """A sender, recognised or new."""

    contact: Contact
    conversation_id: str


class Meeting(NamedTuple):
    """What `meet` found; every contact in it is locked."""

    met: list[Met]
    """One for each sender, in order."""
    others: dict[Key, Contact]
    """Those that were to be locked as well."""


async def meet(tx: Tx, senders: Sequence[Sender], at: datetime, also: Collection[Key] = ()) -> Meeting:
    """The contact and conversation of each sender, made where there is none.

    1. The strongest identifier that is known decides, in whichever of the sender's scopes it is known.
    2. A phone number known with another BSUID of the same scopes decides nothing: the number may have a new owner, who
       inherits nothing. It moves to the sender's own contact.
    3. Where two contacts turn out to be one person, the linked one stays and the other is merged into it; if both are
       linked, nothing changes but a note for the operator.
    4. What the message adds (a BSUID to a phone, a new name) is kept; the webhook that pairs them is signed.

    The senders of one call must not share a name, but may turn out to be one person. Locks the contacts it finds and
    those of `also`, in the order of their ids. Raises Conflict when another transaction has moved an identifier while
    a lock was waited for, or met one of the senders first.
    """
    owners, contacts = await _known(tx, senders, also)
    others = {key: contacts[key] for key in also if key in contacts}
    recognised = [_recognised(sender, owners, contacts) for sender in senders]
    changes = _Changes(at)
    if any(len(found) > 1 for found in recognised):
        await _merge(tx, recognised, owners, contacts, changes)
    met: list[Met] = []
    fresh: list[Contact] = []
    for sender, found in zip(senders, recognised, strict=True):
        contact = contacts[found[0].key] if found else _new(sender, at)
        if contact.fresh:
            fresh.append(contact)
        elif _renamed(contact, sender.identity):
            changes.renamed.append(contact)
        current = sender.scopes[0]
        for identifier in sender.kept():
            owner = owners.get(identifier)
            _, kind, scope, value = identifier
            if owner == contact.id or (owner is not None and scope not in ("", current)):
                continue
            if owner is not None:
                changes.superseded.append((*identifier, at))
            changes.hold(contact, kind, scope, value)
        met.append(Met(contact, ""))
    await tx.rows_each(sql.insert_contact, [_columns(contact, at) for contact in fresh])
    try:
        await changes.write(tx)
        await _converse(tx, senders, met, at)
    except Taken as late:
        raise Conflict("another process met one of these senders first") from late
    return Meeting(met, others)


class _Changes:
    """What a meeting writes of contacts, gathered so that each statement runs once."""

    def __init__(self, at: datetime) -> None:
        self.at = at
        self.renamed: list[Contact] = []
        self.superseded: list[tuple[object, ...]] = []
        self.first: list[tuple[object, ...]] = []
        self.added: list[tuple[object, ...]] = []
        self.marked: dict[Key, Contact] = {}
        self.moved: list[tuple[object, ...]] = []

    def hold(self, contact: Contact, kind: str, scope: str, value: str) -> None:
        row = (contact.project_id, contact.id, kind, scope, value, self.at)
        (self.first if contact.fresh else self.added).append(row)
        contact.hold(kind, scope, value)

    async def write(self, tx: Tx) -> None:
        rows = [(c.project_id, c.id, c.username, c.profile_name, c.country) for c in self.renamed]
        await tx.rows_each(sql.rename, rows)
        marks = [(c.project_id, c.id, c.merged_into, c.duplicate_of) for c in self.marked.values()]
        await tx.rows_each(sql.mark, marks)
        await tx.rows_each(sql.supersede_identifier, self.superseded)
        await _insert_all(tx, sql.insert_identifier, self.first)
        await tx.rows_each(sql.regain_identifier, self.added)
        await tx.rows_each(sql.move_conversations, self.moved)


async def _merge(
    tx: Tx,
    recognised: Sequence[list[Contact]],
    owners: dict[Identifier, str],
    contacts: dict[Key, Contact],
    changes: _Changes,
) -> None:
    """Makes one contact of those that one identifier names in several scopes, unless more than one of them is linked.

    All of them are locked, so their links stay as they are read here. Afterwards `contacts` leads from each to the one
    that stays, which comes first in `recognised`.
    """
    doubled = {contact.key for found in recognised if len(found) > 1 for contact in found}
    linked = {(link.project_id, link.contact_id) for link in await active_links(tx, doubled)}
    for found in recognised:
        one_person = list({contacts[c.key].key: contacts[c.key] for c in found}.values())
        if len(one_person) < 2:
            continue
        with_link = [contact for contact in one_person if contact.key in linked]
        if len(with_link) > 1:
            stays, other = with_link[:2]
            found.insert(0, stays)
            if stays.duplicate_of is None and other.duplicate_of is None:
                stays.duplicate_of = other.id
                changes.marked[stays.key] = stays
                facts = {"project_id": stays.project_id, "contact_id": stays.id, "other": other.id}
                log.warning("contacts_not_merged", extra={"facts": facts})
            continue
        stays = with_link[0] if with_link else min(one_person, key=lambda contact: contact.id)
        found.insert(0, stays)
        for other in one_person:
            if other is not stays:
                _absorb(stays, other, owners, contacts, changes)


def _absorb(
    stays: Contact,
    other: Contact,
    owners: dict[Identifier, str],
    contacts: dict[Key, Contact],
    changes: _Changes,
) -> None:
    project_id = stays.project_id
    other.merged_into = stays.id
    changes.marked[other.key] = other
    if stays.duplicate_of is not None:
        stays.duplicate_of = None
        changes.marked[stays.key] = stays
    for kind, scope, value in sorted(other.held):
        changes.superseded.append((project_id, kind, scope, value, changes.at))
        changes.hold(stays, kind, scope, value)
    for identifier, owner in owners.items():
        if identifier[0] == project_id and owner == other.id:
            owners[identifier] = stays.id
    for key, contact in contacts.items():
        if contact is other:
            contacts[key] = stays
    changes.moved.append((project_id, other.id, stays.id))
    line("contact_merged", project_id=project_id, contact_id=other.id, merged_into=stays.id)


async def find(tx: Tx, project_id: str, contact_id: str) -> Contact | None:
    """A contact with its current identifiers; one that was merged is the one it was merged into."""
    key = (project_id, contact_id)
    return (await today(tx, {key})).get(key)


async def today(tx: Tx, wanted: Iterable[Key]) -> dict[Key, Contact]:
    """Contacts with their current identifiers; one that was merged is the one it was merged into."""
    people = _assembled(await tx.rows_each(sql.find, sorted(wanted)))
    moved = {key: (key[0], one.merged_into) for key, one in people.items() if one.merged_into is not None}
    if moved:
        into = await today(tx, set(moved.values()))
        people |= {key: into[target] for key, target in moved.items()}
    return people


async def known(tx: Tx, wanted: Iterable[Key]) -> dict[Key, Acquaintance]:
    """Contacts, each with their newest conversation; one that was merged is the one it was merged into."""
    people = await today(tx, wanted)
    newest = await conversations(tx, {contact.key for contact in people.values()})
    return {key: Acquaintance(one, *newest.get(one.key, _NO_CONVERSATION)) for key, one in people.items()}


async def conversations(tx: Tx, wanted: Iterable[Key]) -> dict[Key, tuple[str, str]]:
    """The newest conversation of each contact, and its channel."""
    rows = await tx.rows_each(sql.newest_conversation, sorted(wanted))
    return {(row["project_id"], row["contact_id"]): (row["id"], row["channel_id"]) for row in rows}


_NO_CONVERSATION = (None, None)


async def duplicates(tx: Tx, project_id: str, limit: int) -> list[tuple[str, str]]:
    """Pairs of linked contacts that are one person and were not merged, for the operator."""
    rows = await tx.rows(sql.duplicates, project_id, limit)
    return [(row["id"], row["duplicate_of"]) for row in rows]


async def active_links(tx: Tx, contacts: Iterable[Key]) -> list[Link]:
    """The active links of these contacts, oldest first."""
    rows = await tx.rows_each(sql.links_of_contact, sorted(contacts))
    return sorted([read_link(row) for row in rows], key=lambda link: link.id)


async def ended_at(tx: Tx, references: Iterable[tuple[str, str]]) -> dict[tuple[str, str], datetime]:
    """When the newest ended link of each (project, customer_reference) ended; those without one are missing."""
    rows = await tx.rows_each(sql.ended_at, sorted(references))
    return {(row["project_id"], row["customer_reference"]): row["ended_at"] for row in rows}


def moment(*, clock: datetime, latest: Iterable[datetime | None]) -> datetime:
    """When a change of links happens: the clock, or one millisecond after the latest that is known, whichever is later.

    In whole milliseconds, as people see it, and never before the clock. Take it after the locks, so that nothing later
    can be added to what is known.
    """
    after = [one + _MILLISECOND for one in latest if one is not None]
    return up_to_the_millisecond(max([clock, *after]))


_MILLISECOND = timedelta(milliseconds=1)


async def advance(tx: Tx, moments: Mapping[Key, datetime]) -> None:
    """Keeps the latest moment of these locked contacts, where no active link tells it."""
    await tx.rows_each(sql.advance, [(*key, at) for key, at in sorted(moments.items())])


def read_link(row: Row, prefix: str = "") -> Link:
    """A link from a row, where all but its project and reference may be named with a prefix."""
    return Link(
        project_id=row["project_id"],
        id=row[f"{prefix}id"],
        contact_id=row[f"{prefix}contact_id"],
        customer_reference=row["customer_reference"],
        registration_intent_id=row[f"{prefix}registration_intent_id"],
        reference_trust=row[f"{prefix}reference_trust"],
        metadata=msgspec.Raw(row[f"{prefix}metadata"]),
        created_at=row[f"{prefix}created_at"],
    )


async def link(tx: Tx, links: Sequence[Link]) -> None:
    """Writes new active links. Raises Conflict when another process has linked a reference meanwhile."""
    rows = [
        (
            new.project_id,
            new.id,
            new.contact_id,
            new.customer_reference,
            new.registration_intent_id,
            new.reference_trust,
            bytes(new.metadata).decode(),
            new.created_at,
        )
        for new in sorted(links, key=lambda new: (new.project_id, new.customer_reference))
    ]
    await _insert_all(tx, sql.insert_link, rows)


async def _insert_all(tx: Tx, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
    """Inserts rows that no other transaction may have written meanwhile. Raises Conflict when one has.

    Such a race is an expected outcome: the statement leaves that row out, and PostgreSQL logs no error.
    """
    if await tx.count_each(statement, rows) != len(rows):
        raise Conflict("another transaction wrote one of these rows first")


async def refresh(tx: Tx, links: Sequence[Link]) -> None:
    """A trusted registration of what is linked already: its trust, metadata and intent become the link's."""
    await tx.rows_each(
        sql.refresh_link,
        [
            (
                old.project_id,
                old.id,
                old.registration_intent_id,
                old.reference_trust,
                bytes(old.metadata).decode(),
            )
            for old in links
        ],
    )


async def end(tx: Tx, links: Sequence[Link], reason: EndReason, at: datetime) -> None:
    """Ends active links. Raises Conflict when one has ended meanwhile."""
    ended = await tx.count_each(sql.end_link, [(old.project_id, old.id, reason, at) for old in links])
    if ended != len(links):
        raise Conflict("a link ended meanwhile")


async def _known(
    tx: Tx, senders: Sequence[Sender], also: Collection[Key]
) -> tuple[dict[Identifier, str], dict[Key, Contact]]:
    """Which contact holds each identifier, in whichever scope of its sender, and those contacts, locked.

    The identifiers are read first, to know whom to lock, and the contacts again under the lock: only what both say
    counts. Raises Conflict when they differ, for then the right contact may not be locked.
    """
    wanted = [
        (project_id, kind, scope, value)
        for sender in senders
        for project_id, kind, value in sender.names
        for scope in sender.scopes_of(kind)
    ]
    held = await tx.rows_each(sql.holder, wanted)
    owners = {(row["project_id"], row["kind"], row["scope"], row["value"]): row["contact_id"] for row in held}
    keys = sorted({(row["project_id"], row["contact_id"]) for row in held}.union(also))
    if not keys:
        return owners, {}
    await tx.rows_each(sql.lock, keys)
    contacts = _assembled(await tx.rows_each(sql.find, keys))
    for (project_id, *identifier), owner in owners.items():
        if tuple(identifier) not in contacts[project_id, owner].held:
            raise Conflict("an identifier moved to another contact meanwhile")
    return owners, contacts


def _recognised(
    sender: Sender, owners: Mapping[Identifier, str], contacts: Mapping[Key, Contact]
) -> list[Contact]:
    """Whom the strongest known identifier names, the one in the current scope first; several are one person."""
    for project_id, kind, value in sender.names:
        found = dict.fromkeys(
            owner
            for scope in sender.scopes_of(kind)
            if (owner := owners.get((project_id, kind, scope, value))) is not None
        )
        people = [contacts[project_id, owner] for owner in found]
        if kind == "phone" and sender.identity.bsuid:
            people = [one for one in people if not _has_another_bsuid(one, sender)]
        if people:
            return people
    return []


def _has_another_bsuid(contact: Contact, sender: Sender) -> bool:
    return any(
        kind == "bsuid" and scope in sender.scopes and value != sender.identity.bsuid
        for kind, scope, value in contact.held
    )


def _new(sender: Sender, at: datetime) -> Contact:
    identity = sender.identity
    return Contact(
        project_id=sender.project_id,
        id=ids.new("contact", at),
        username=identity.username,
        profile_name=identity.profile_name,
        country=identity.country,
        fresh=True,
    )


def _renamed(contact: Contact, identity: Identity) -> bool:
    """Takes over what the message says; a name that it leaves out is kept. Whether anything is new."""
    before = (contact.username, contact.profile_name, contact.country)
    contact.username = identity.username or contact.username
    contact.profile_name = identity.profile_name or contact.profile_name
    contact.country = identity.country or contact.country
    return before != (contact.username, contact.profile_name, contact.country)


async def _converse(tx: Tx, senders: Sequence[Sender], met: Sequence[Met], at: datetime) -> None:
    """Finds or opens the conversation of each contact on the channel it wrote to."""
    pairs = [
        (one.contact.project_id, one.contact.id, sender.channel_id)
        for sender, one in zip(senders, met, strict=True)
    ]
    old = [pair for pair, one in zip(pairs, met, strict=True) if not one.contact.fresh]
    known = {}
    if old:
        rows = await tx.rows_each(sql.conversation, old)
        known = {(row["project_id"], row["contact_id"], row["channel_id"]): row["id"] for row in rows}
    opened = []
    for pair, one in zip(pairs, met, strict=True):
        conversation = known.get(pair)
        if conversation is None:
            conversation = known[pair] = ids.new("conv", at)
            opened.append((pair[0], conversation, pair[2], pair[1], at))
        one.conversation_id = conversation
    await _insert_all(tx, sql.insert_conversation, opened)


def _columns(contact: Contact, at: datetime) -> tuple[object, ...]:
    return contact.project_id, contact.id, contact.username, contact.profile_name, contact.country, at


def _assembled(rows: Iterable[Row]) -> dict[tuple[str, str], Contact]:
    """One contact from its rows, one per current identifier; the newest of a kind wins."""
    found: dict[tuple[str, str], Contact] = {}
    for row in rows:
        where = (row["project_id"], row["id"])
        contact = found.get(where)
        if contact is None:
            contact = found[where] = Contact(
                project_id=row["project_id"],
                id=row["id"],
                username=row["username"],
                profile_name=row["profile_name"],
                country=row["country"],
                latest_at=row["latest_at"],
                merged_into=row["merged_into"],
                duplicate_of=row["duplicate_of"],
            )
        if row["kind"] is not None:
            contact.hold(row["kind"], row["scope"], row["value"])
    return found
