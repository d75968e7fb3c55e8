"""Contacts: the WhatsApp identities of a project, their identifiers, conversations and links to customer references.

A contact has a surrogate id and typed identifiers: BSUID, parent BSUID, phone. WhatsApp may leave the phone number
out, and a number can move to another person, so the phone is never the key: BSUID wins over parent BSUID, which wins
over the phone. A username identifies nobody; it can be given away. (Meta, "Business-scoped user IDs".)
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from wabery_server import ids
from wabery_server.db import Conflict, Row, Taken, Tx, queries

sql = queries.beside(__file__)


Identifier: TypeAlias = tuple[str, str, str, str]
"""Project, kind, scope, value."""


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

    def identifiers(self, project_id: str, scope: str) -> "tuple[Identifier, ...]":
        """Strongest first. A phone number is the same in every scope."""
        found: tuple[Identifier, ...] = ()
        if self.bsuid:
            found = ((project_id, "bsuid", scope, self.bsuid),)
        if self.parent_bsuid:
            found += ((project_id, "parent_bsuid", scope, self.parent_bsuid),)
        if self.phone:
            found += ((project_id, "phone", "", self.phone),)
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
    bsuids: dict[str, str] = msgspec.field(default_factory=dict)
    """By scope."""

    def hold(self, kind: str, scope: str, value: str) -> None:
        """Takes a current identifier; the newest of a kind is the one that is shown."""
        setattr(self, kind, value)
        if kind == "bsuid":
            self.bsuids[scope] = value

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
    """A trusted registration linked the reference or the person anew."""


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
    scope: str
    """Portfolio, else WABA, of the channel: where a BSUID means this person."""
    identity: Identity
    identifiers: tuple[Identifier, ...] = ()
    """Made from the rest, strongest first."""

    def __post_init__(self) -> None:
        self.identifiers = self.identity.identifiers(self.project_id, self.scope)


class Met(Struct):
    """A sender, recognised or new."""

    contact: Contact
    conversation_id: str


async def meet(tx: Tx, senders: Sequence[Sender], at: datetime) -> list[Met]:
    """The contact and conversation of each sender, made where there is none; one result per sender, in order.

    1. The strongest identifier that is known decides.
    2. A phone number known with another BSUID of the same scope decides nothing: the number may have a new owner, who
       inherits nothing. It moves to the sender's own contact.
    3. What the message adds (a BSUID to a phone, a new name) is kept; the webhook that pairs them is signed.

    The senders of one call must not share an identifier, but may turn out to be one person. Locks the contacts it
    finds, in the order of their ids.
    """
    owners, contacts = await _known(tx, [one for sender in senders for one in sender.identifiers])
    met: list[Met] = []
    fresh: list[Contact] = []
    changed: list[Contact] = []
    first: list[tuple[object, ...]] = []
    added: list[tuple[object, ...]] = []
    superseded: list[tuple[object, ...]] = []
    for sender in senders:
        contact = _recognised(sender, owners, contacts)
        if contact is None:
            contact = _new(sender, at)
            fresh.append(contact)
        elif _renamed(contact, sender.identity):
            changed.append(contact)
        for identifier in sender.identifiers:
            owner = owners.get(identifier)
            if owner == contact.id:
                continue
            if owner is not None:
                superseded.append((*identifier, at))
            _, kind, scope, value = identifier
            row = (sender.project_id, contact.id, kind, scope, value, at)
            (first if contact.fresh else added).append(row)
            contact.hold(kind, scope, value)
        met.append(Met(contact, ""))
    await tx.rows_each(sql.insert_contact, [_columns(contact, at) for contact in fresh])
    await tx.rows_each(
        sql.rename, [(c.project_id, c.id, c.username, c.profile_name, c.country) for c in changed]
    )
    await tx.rows_each(sql.supersede_identifier, superseded)
    try:
        await tx.rows_each(sql.insert_identifier, first)
        await tx.rows_each(sql.regain_identifier, added)
        await _converse(tx, senders, met, at)
    except Taken as late:
        raise Conflict("another process met one of these senders first") from late
    return met


async def find(tx: Tx, project_id: str, contact_id: str) -> Contact | None:
    """A contact with its current identifiers."""
    rows = await tx.rows(sql.find, project_id, contact_id)
    return _assembled(rows).get((project_id, contact_id))


async def known(tx: Tx, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Acquaintance]:
    """Contacts by (project, id), each with their newest conversation."""
    where = sorted(wanted)
    rows = await tx.rows_each(sql.newest_conversation, where)
    newest = {(row["project_id"], row["contact_id"]): row for row in rows}
    people = _assembled(await tx.rows_each(sql.find, where))
    return {
        key: Acquaintance(contact, row["id"] if row else None, row["channel_id"] if row else None)
        for key, contact in people.items()
        for row in [newest.get(key)]
    }


async def active_links(tx: Tx, contacts: Iterable[tuple[str, str]]) -> list[Link]:
    """The active links of these (project, contact), oldest first."""
    rows = await tx.rows_each(sql.links_of_contact, sorted(contacts))
    return sorted([read_link(row) for row in rows], key=lambda link: link.id)


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
    try:
        await tx.rows_each(sql.insert_link, rows)
    except Taken as late:
        raise Conflict("a reference was linked meanwhile") from late


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
    tx: Tx, wanted: Sequence[Identifier]
) -> tuple[dict[Identifier, str], dict[tuple[str, str], Contact]]:
    """Which contact holds each identifier, and those contacts."""
    if not wanted:
        return {}, {}
    held = await tx.rows_each(sql.holder, wanted)
    owners = {(row["project_id"], row["kind"], row["scope"], row["value"]): row["contact_id"] for row in held}
    holders = sorted({(row["project_id"], row["contact_id"]) for row in held})
    if not holders:
        return owners, {}
    await tx.rows_each(sql.lock, holders)
    return owners, _assembled(await tx.rows_each(sql.find, holders))


def _recognised(
    sender: Sender,
    owners: Mapping[Identifier, str],
    contacts: Mapping[tuple[str, str], Contact],
) -> Contact | None:
    for identifier in sender.identifiers:
        owner = owners.get(identifier)
        if owner is None:
            continue
        kind = identifier[1]
        contact = contacts[sender.project_id, owner]
        known_as = contact.bsuids.get(sender.scope)
        if kind == "phone" and sender.identity.bsuid and known_as not in (None, sender.identity.bsuid):
            continue
        return contact
    return None


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
    await tx.rows_each(sql.insert_conversation, opened)


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
            )
        if row["kind"] is not None:
            contact.hold(row["kind"], row["scope"], row["value"])
    return found
