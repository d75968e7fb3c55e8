"""Registration intents: one person, one link, one answer.

    mint                   a message carries the token: redeem            cancel, sweep
      |
      v          judge() says yes
    PENDING ------------------------------------------------> JOINED
      |  |       judge() says no, cancelled, superseded, key revoked
      |  +---------------------------------------------------> REJECTED (rejection_reason)
      |          expires_at + grace, by the sweeper
      +------------------------------------------------------> EXPIRED

Only PENDING is not final. One conditional update decides every race: the row is settled `where status = 'PENDING'`.
Between `expires_at` and the end of the grace a read says EXPIRED with phase `grace`, and a message that was sent in
time still joins.
"""

import enum
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from urllib.parse import quote

import msgspec
from msgspec import Struct

from wabery_server import accounts, contacts, errors, idempotency, ids, outbox
from wabery_server.accounts import Project
from wabery_server.clock import iso
from wabery_server.contacts import Contact, EndReason, Link
from wabery_server.db import Conflict, Row, Tx, columns, queries
from wabery_server.outbox import Event, EventType
from wabery_server.secrets import Keyring, hash_token

sql = queries.beside(__file__)

MAX_PENDING = 5
"""Pending intents of one reference and trust class."""
MAX_LIFETIME = timedelta(days=7)
_SETTLE_AT_ONCE = 1_000
_MAX_TEXT = 4096


class Status(enum.StrEnum):
    """Where an intent stands."""

    PENDING = "PENDING"
    """Waiting for the person's message."""
    JOINED = "JOINED"
    """The person's WhatsApp account is linked to the customer reference."""
    REJECTED = "REJECTED"
    """It ended without a link; `rejection_reason` says why."""
    EXPIRED = "EXPIRED"
    """Nobody sent it in time. With phase `grace`, a message that was sent in time may still arrive."""


class Phase(enum.StrEnum):
    """What refines the status."""

    GRACE = "grace"
    """Past `expires_at`, but a message that was sent in time still joins: not final."""


class Trust(enum.StrEnum):
    """Who vouches for the customer reference."""

    SERVER = "server"
    """Minted with a secret key."""
    SIGNED = "signed"
    """Minted with a publishable key and a reference the app has signed."""
    UNVERIFIED = "unverified"
    """Minted with a publishable key alone: anybody could have named this reference."""


class RejectionReason(enum.StrEnum):
    """Why an intent was rejected. Codes are stable; the sentence is for people."""

    CANCELED_BY_APP = "canceled_by_app"
    """The app cancelled the registration."""
    SUPERSEDED = "superseded"
    """A newer registration for the same customer took its place."""
    KEY_REVOKED = "key_revoked"
    """The API key that minted it was revoked."""
    CHANNEL_UNAVAILABLE = "channel_unavailable"
    """The WhatsApp number it belonged to was removed."""
    REFERENCE_UNVERIFIED = "reference_unverified"
    """The project does not accept customer references that nobody vouches for."""
    IDENTITY_ALREADY_LINKED = "identity_already_linked"
    """This WhatsApp account is already connected to another customer."""
    REFERENCE_ALREADY_LINKED = "reference_already_linked"
    """This customer is already connected to another WhatsApp account."""
    LINK_LIMIT_REACHED = "link_limit_reached"
    """This WhatsApp account is connected to as many customers as the project allows."""

    @property
    def message(self) -> str:
        return _SENTENCES[self]

    @property
    def coarse(self) -> str:
        """What a publishable key is told."""
        return _COARSE[self]


_SENTENCES = {
    RejectionReason.CANCELED_BY_APP: "The app cancelled this registration.",
    RejectionReason.SUPERSEDED: "A newer registration for the same customer took its place.",
    RejectionReason.KEY_REVOKED: "The API key that minted this registration was revoked.",
    RejectionReason.CHANNEL_UNAVAILABLE: "The WhatsApp number of this registration was removed.",
    RejectionReason.REFERENCE_UNVERIFIED: "The project does not accept unsigned customer references.",
    RejectionReason.IDENTITY_ALREADY_LINKED: "This WhatsApp account is already connected to another customer.",
    RejectionReason.REFERENCE_ALREADY_LINKED: "This customer is already connected to another WhatsApp account.",
    RejectionReason.LINK_LIMIT_REACHED: "This WhatsApp account is connected to as many customers as allowed.",
}

_COARSE = {
    RejectionReason.CANCELED_BY_APP: "canceled",
    RejectionReason.SUPERSEDED: "canceled",
    RejectionReason.KEY_REVOKED: "canceled",
    RejectionReason.CHANNEL_UNAVAILABLE: "error",
    RejectionReason.REFERENCE_UNVERIFIED: "not_allowed",
    RejectionReason.IDENTITY_ALREADY_LINKED: "conflict",
    RejectionReason.REFERENCE_ALREADY_LINKED: "conflict",
    RejectionReason.LINK_LIMIT_REACHED: "conflict",
}


class Attempt(enum.StrEnum):
    """What became of a message that carried a token."""

    JOINED = "joined"
    """It joined its intent."""
    REJECTED = "rejected"
    """Its intent was rejected because of it."""
    UNKNOWN_TOKEN = "unknown_token"
    """No intent of this project has this token."""
    MALFORMED_TOKEN = "malformed_token"
    """Something like a token, but too short, too long, or with impossible characters."""
    AMBIGUOUS_TOKEN = "ambiguous_token"
    """Two different tokens, and not exactly one that can still be joined."""
    WRONG_CHANNEL = "wrong_channel"
    """The token belongs to another WhatsApp number of this project."""
    ALREADY_USED_SAME_SENDER = "already_used_same_sender"
    """The same person sent it again: they are connected already."""
    ALREADY_USED_OTHER_SENDER = "already_used_other_sender"
    """Somebody else sent a token that was used: nothing changes, `security.token_reuse` is raised."""
    AFTER_CANCEL = "after_cancel"
    """Its intent had been cancelled or rejected before."""
    AFTER_EXPIRY = "after_expiry"
    """It was sent after its intent had expired."""
    ARRIVED_LATE = "arrived_late"
    """It was sent in time and arrived after the grace."""
    SENDER_RATE_LIMITED = "sender_rate_limited"
    """An unknown token from a sender who has sent too many of them."""


class View(enum.Enum):
    """Who looks at an intent, and so which of its fields they see."""

    MINTER = enum.auto()
    """The answer to whoever minted it."""
    ANONYMOUS = enum.auto()
    """A publishable key that knows only the id."""
    HOLDER = enum.auto()
    """A publishable key with the intent's client secret."""
    READER = enum.auto()
    """A secret key with `registrations:read`; event payloads too."""
    OWNER = enum.auto()
    """A secret key that may also mint: `registrations:create`."""


class Intent(Struct, kw_only=True):
    """One registration: the row."""

    project_id: str
    id: str
    status: Status
    customer_reference: str
    metadata: msgspec.Raw
    reference_trust: Trust
    channel_id: str
    api_key_id: str
    locale: str | None
    secret_version: int
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None = None
    rejection_reason: RejectionReason | None = None
    contact_id: str | None = None
    message_id: str | None = None
    joined_at: datetime | None = None
    already_linked: bool = False

    @property
    def trusted(self) -> bool:
        return self.reference_trust != Trust.UNVERIFIED

    def seen_at(self, now: datetime, grace: timedelta) -> tuple[Status, Phase | None]:
        """Status and phase as a read at `now` shows them: expiry counts before the sweeper has come by."""
        if self.status != Status.PENDING or now < self.expires_at:
            return self.status, None
        return Status.EXPIRED, Phase.GRACE if now < self.expires_at + grace else None

    def public(
        self,
        view: View,
        *,
        now: datetime,
        grace: timedelta,
        livemode: bool,
        secrets: "Shown | None" = None,
        contact: Contact | None = None,
        whole_identity: bool = False,
    ) -> dict[str, object]:
        """The object as `view` may see it. `secrets` are what MINTER, HOLDER and OWNER also see."""
        status, phase = self.seen_at(now, grace)
        body: dict[str, object] = {
            "object": "registration_intent",
            "id": self.id,
            "status": status,
            "phase": phase,
            "livemode": livemode,
            "created_at": iso(self.created_at),
            "expires_at": iso(self.expires_at),
            "joined_at": iso(self.joined_at) if self.joined_at else None,
        }
        if view in (View.ANONYMOUS, View.HOLDER):
            if self.rejection_reason:
                body["rejection_reason"] = self.rejection_reason.coarse
        else:
            body |= {
                "customer_reference": self.customer_reference,
                "metadata": self.metadata,
                "metadata_trusted": self.reference_trust == Trust.SERVER,
                "reference_trust": self.reference_trust,
                "channel_id": self.channel_id,
                "contact_id": self.contact_id,
                "rejection_reason": self.rejection_reason,
                "rejection_message": self.rejection_reason.message if self.rejection_reason else None,
            }
        if view in (View.READER, View.OWNER):
            body |= {"already_linked": self.already_linked, "message_id": self.message_id}
            body["identity"] = contact.masked() if contact else None
            if whole_identity:
                body["whatsapp"] = contact.whatsapp() if contact else None
        if secrets is not None:
            body["wa_link"] = secrets.wa_link
            if view in (View.MINTER, View.OWNER):
                body["token"] = secrets.token
                body["client_secret"] = secrets.client_secret
        if view is View.HOLDER and contact is not None:
            body["identity"] = contact.masked()
        return body


class Shown(NamedTuple):
    """What is derived from the installation's secret each time it is shown."""

    token: str
    client_secret: str
    wa_link: str | None
    """None once the number is gone."""


def shown(intent: Intent, *, keyring: Keyring, project: Project, display_phone_number: str | None) -> Shown:
    """Token, client secret and link of an intent."""
    subkeys = keyring.version(intent.secret_version)
    token = subkeys.token(intent.id)
    link = wa_link(project, display_phone_number, token, intent.locale) if display_phone_number else None
    return Shown(token, subkeys.client_secret(intent.id), link)


def wa_link(project: Project, display_phone_number: str, token: str, locale: str | None) -> str:
    """`https://wa.me/<digits>?text=<percent-encoded>`; spaces are %20, since `+` may stay a plus."""
    text = project.prefilled(locale).replace("{token}", token)
    return f"https://wa.me/{display_phone_number}?text={quote(text, safe='')}"


# Minting


class Mint(Struct):
    """An intent to be written, with what its caller is answered."""

    project: Project
    intent: Intent
    token: str
    answer: idempotency.Stored
    key: idempotency.Key | None = None


class Minted(NamedTuple):
    """The answer to a mint, and whether it was given before."""

    answer: idempotency.Stored
    replayed: bool


async def mint(
    tx: Tx, mints: Sequence[Mint], *, keyring: Keyring, keep: timedelta
) -> list[Minted | errors.WaberyError]:
    """Writes intents; one result per mint, in order. Refusals are results, so that neighbours are not harmed.

    1. Mints with the same Idempotency-Key are one mint.
    2. A reference and trust class with five pending is full: the oldest is superseded, or the mint is refused.
    3. The answer is written under its Idempotency-Key; one that was there before is replayed.
    4. The intents are inserted.
    """
    folded: dict[tuple[str, str, str, str], int] = {}
    results: list[Minted | errors.WaberyError | None] = [None] * len(mints)
    twins: list[tuple[int, int]] = []
    alone: list[int] = []
    for number, wanted in enumerate(mints):
        first = folded.setdefault(wanted.key.identity, number) if wanted.key else number
        if first == number:
            alone.append(number)
        else:
            twins.append((number, first))
    refused, superseded = await _make_room(tx, mints, alone)
    results_of_refused = await _replays(tx, mints, refused, keyring)
    for number, refusal in refused.items():
        results[number] = results_of_refused.get(number, refusal)
    going = [number for number in alone if results[number] is None]
    with_key = [number for number in going if mints[number].key]
    if with_key:
        claims = await idempotency.claim(
            tx,
            [(key, one.answer, (one.intent.id,)) for one in (mints[n] for n in with_key) if (key := one.key)],
            keyring=keyring,
            at=mints[with_key[0]].intent.created_at,
            keep=keep,
        )
        for number, claim in zip(with_key, claims, strict=True):
            if claim is not None:
                results[number] = Minted(claim, True) if isinstance(claim, idempotency.Stored) else claim
    fresh = [number for number in going if results[number] is None]
    await tx.run_each(sql.insert, [_columns(mints[number]) for number in fresh])
    if ending := [old for number in fresh for old in superseded.get(number, ())]:
        projects = {mints[number].project.id: mints[number].project for number in fresh}
        await _supersede(tx, ending, projects, mints[fresh[0]].intent.created_at)
    for number in fresh:
        results[number] = Minted(mints[number].answer, False)
    for number, first in twins:
        results[number] = _twin(mints[number], mints[first], results[first])
    return [result for result in results if result is not None]


async def _make_room(
    tx: Tx, mints: Sequence[Mint], numbers: Sequence[int]
) -> tuple[dict[int, errors.WaberyError], dict[int, list[tuple[str, str]]]]:
    """Which mints find their reference full, and which pending intents make room for the others."""
    asked = {_class(mints[number].intent) for number in numbers}
    pending: dict[tuple[str, str, str], list[str]] = {}
    at = mints[numbers[0]].intent.created_at
    for row in await tx.rows(sql.pending, *columns(asked, 3), at):
        where = (row["project_id"], row["customer_reference"], row["reference_trust"])
        pending.setdefault(where, []).append(row["id"])
    refused: dict[int, errors.WaberyError] = {}
    superseded: dict[int, list[tuple[str, str]]] = {}
    for number in numbers:
        intent = mints[number].intent
        waiting = pending.setdefault(_class(intent), [])
        if len(waiting) >= MAX_PENDING and not mints[number].project.supersede:
            refused[number] = (
                errors.TooManyPending() if intent.trusted else errors.TooManyPendingHere(retry_after=60)
            )
            continue
        oldest = waiting[: max(0, len(waiting) - MAX_PENDING + 1)]
        superseded[number] = [(intent.project_id, old) for old in oldest]
        pending[_class(intent)] = [*waiting[len(oldest) :], intent.id]
    return refused, superseded


async def _replays(
    tx: Tx, mints: Sequence[Mint], refused: Iterable[int], keyring: Keyring
) -> dict[int, Minted | errors.WaberyError]:
    """Retries among the refused: what was answered before is answered again, however full it is now."""
    keys = {number: key for number in refused if (key := mints[number].key)}
    if not keys:
        return {}
    at = mints[next(iter(keys))].intent.created_at
    found = await idempotency.find(tx, list(keys.values()), keyring=keyring, at=at)
    stored = {number: found[key.identity] for number, key in keys.items() if key.identity in found}
    return {n: Minted(one, True) if isinstance(one, idempotency.Stored) else one for n, one in stored.items()}


def _twin(twin: Mint, first: Mint, result: Minted | errors.WaberyError | None) -> Minted | errors.WaberyError:
    assert result is not None
    assert twin.key is not None
    assert first.key is not None
    if twin.key.request_hash != first.key.request_hash:
        return errors.IdempotencyKeyReused(param="Idempotency-Key")
    return Minted(result.answer, True) if isinstance(result, Minted) else result


async def _supersede(
    tx: Tx, old: Sequence[tuple[str, str]], projects: Mapping[str, Project], at: datetime
) -> None:
    rows = await tx.rows_each(sql.lock, sorted(set(old)))
    found = [intent for row in rows if (intent := _intent(row)).status == Status.PENDING]
    await reject(tx, found, RejectionReason.SUPERSEDED, projects=projects, at=at)


def _class(intent: Intent) -> tuple[str, str, str]:
    return intent.project_id, intent.customer_reference, intent.reference_trust


def _columns(one: Mint) -> tuple[object, ...]:
    intent = one.intent
    return (
        intent.project_id,
        intent.id,
        intent.customer_reference,
        bytes(intent.metadata).decode(),
        intent.reference_trust,
        intent.channel_id,
        intent.api_key_id,
        intent.locale,
        hash_token(one.token),
        one.token[4:10],
        intent.secret_version,
        intent.created_at,
        intent.expires_at,
    )


# Finding the token


class Found(NamedTuple):
    """The tokens in a text, each once, in canonical form; and whether something looks like one but is not."""

    tokens: tuple[str, ...]
    malformed: bool

    @property
    def attempt(self) -> bool:
        """Whether the message is a registration attempt at all."""
        return self.malformed or bool(self.tokens)


_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)
_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u00ad", "-"))
_TOKEN = re.compile(
    r"(?<![0-9A-Za-z])wjr[ _-]?((?:[0-9A-TV-Z][ \t\r\n-]?){25}[0-9A-TV-Z])(?![0-9A-Za-z])",
    re.IGNORECASE | re.ASCII,
)
_NEARLY = re.compile(r"(?<![0-9A-Za-z])wjr[_-][0-9A-Za-z-]{8,}", re.IGNORECASE | re.ASCII)
_SEPARATORS = re.compile(r"[ \t\r\n-]")
_CROCKFORD = str.maketrans("oil", "011")


def find_tokens(texts: Iterable[str]) -> Found:
    """Tokens anywhere in what a person sent, however WhatsApp or the person bent them.

    Upper case, O for 0, I or L for 1, spaces, line breaks and hyphens inside, invisible marks, full-width letters, and
    any words around are all the same token. Linear in the text, of which the first 4096 characters count.
    """
    tokens: dict[str, None] = {}
    malformed = False
    for text in texts:
        plain = _plain(text[:_MAX_TEXT])
        for match in _TOKEN.finditer(plain):
            tokens["wjr_" + _SEPARATORS.sub("", match[1]).lower().translate(_CROCKFORD)] = None
        malformed = malformed or _NEARLY.search(_TOKEN.sub(" ", plain)) is not None
    return Found(tuple(tokens), malformed)


def redact_tokens(text: str) -> str:
    """The text with every token-shaped run taken out; other texts come back as they are."""
    plain = _plain(text)
    hidden = _NEARLY.sub("wjr_…", _TOKEN.sub("wjr_…", plain))
    return text if hidden == plain else hidden


def _plain(text: str) -> str:
    if text.isascii():
        return text
    folded = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).translate(_DASHES)
    return "".join(character for character in folded if unicodedata.category(character) != "Cf")


# Redeeming


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
) -> Verdict:
    """What this message does to this intent. Pure; the first rule that applies wins.

    `of_contact` are the contact's active links, `of_reference` the active link of the intent's reference.
    """
    contact_id = arrival.contact.id
    if intent.channel_id != arrival.channel_id:
        return Verdict(Attempt.WRONG_CHANNEL)
    if intent.status == Status.JOINED:
        if intent.contact_id == contact_id:
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


Openings = Mapping[tuple[str, bytes], Opened]
"""By project and token hash."""


async def lock(tx: Tx, wanted: Iterable[tuple[str, Found]]) -> Openings:
    """Locks the intents whose tokens these projects' messages carry, in the order of their ids."""
    hashes = {(project_id, hash_token(token)) for project_id, found in wanted for token in found.tokens}
    if not hashes:
        return {}
    return {
        (row["project_id"], row["token_hash"]): Opened(
            _intent(row), row["revoked_at"] is not None, row["deleted_at"] is not None
        )
        for row in await tx.rows(sql.lock_by_token, *columns(hashes, 2))
    }


async def redeem(
    tx: Tx,
    arrivals: Sequence[Arrival],
    openings: Openings,
    *,
    projects: Mapping[str, Project],
    grace: timedelta,
) -> list[Redeemed | None]:
    """Settles the intents whose tokens arrived; one result per arrival, in order.

    None: another arrival of this call concerns the same reference or link, this one must come again in a later call.
    No two arrivals may share a token or a contact.

    1. The intents are locked (`lock`), then the contacts (`contacts.meet`); links are guarded by a unique index.
    2. `judge` decides.
    3. Links that yield are ended, the new ones written, the intents settled where they are still pending.
    4. Every change leaves its event.
    """
    chosen = [_choose(arrival, openings, grace) for arrival in arrivals]
    references: dict[tuple[str, str], int] = {}
    for number, one in enumerate(chosen):
        if isinstance(one, Opened) and one.intent.status == Status.PENDING:
            references.setdefault((one.intent.project_id, one.intent.customer_reference), number)
    people = {(arrival.project_id, arrival.contact.id) for arrival in arrivals}
    linked = _Linked(await contacts.active_links(tx, people, references) if references else [])
    work = _Settling()
    results: list[Redeemed | None] = []
    for number, (arrival, one) in enumerate(zip(arrivals, chosen, strict=True)):
        if isinstance(one, Attempt):
            results.append(Redeemed(one, None))
            continue
        intent = one.intent
        reference = (intent.project_id, intent.customer_reference)
        verdict = judge(
            intent,
            arrival,
            of_contact=linked.of_contact(arrival.project_id, arrival.contact.id),
            of_reference=linked.of_reference(*reference),
            project=projects[intent.project_id],
            key_revoked=one.key_revoked,
            channel_deleted=one.channel_deleted,
            grace=grace,
        )
        if references.get(reference, number) != number or not linked.yield_once(verdict.ended):
            results.append(None)
            continue
        work.add(intent, arrival, verdict, projects[intent.project_id])
        results.append(Redeemed(verdict.attempt, intent.id))
    await work.write(tx, projects)
    return results


class _Linked:
    """The active links that a redemption can see."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._of_contact: dict[tuple[str, str], list[Link]] = {}
        self._of_reference: dict[tuple[str, str], Link] = {}
        self._yielded: set[str] = set()
        for link in sorted(links, key=lambda link: link.id):
            self._of_contact.setdefault((link.project_id, link.contact_id), []).append(link)
            self._of_reference[link.project_id, link.customer_reference] = link

    def of_contact(self, project_id: str, contact_id: str) -> list[Link]:
        return self._of_contact.get((project_id, contact_id), [])

    def of_reference(self, project_id: str, reference: str) -> Link | None:
        return self._of_reference.get((project_id, reference))

    def yield_once(self, links: Sequence[Link]) -> bool:
        names = {link.id for link in links}
        if not self._yielded.isdisjoint(names):
            return False
        self._yielded |= names
        return True


class _Settling:
    """What a redemption writes, gathered so that each table is written once."""

    def __init__(self) -> None:
        self.settled: list[tuple[object, ...]] = []
        self.links: list[Link] = []
        self.refreshed: list[Link] = []
        self.ended: list[tuple[Link, datetime]] = []
        self.events: list[Event] = []

    def add(self, intent: Intent, arrival: Arrival, verdict: Verdict, project: Project) -> None:
        at = arrival.received_at
        self.ended += [(old, at) for old in verdict.ended]
        if verdict.reuse:
            self.events.append(_token_reuse(intent, arrival))
        if verdict.status is None:
            return
        intent.status = verdict.status
        intent.ended_at = at
        intent.rejection_reason = verdict.reason
        intent.contact_id = arrival.contact.id
        intent.message_id = arrival.message_id
        intent.already_linked = verdict.already_linked
        if verdict.status == Status.JOINED:
            intent.joined_at = at
            if not verdict.already_linked:
                self.links.append(_new_link(intent, arrival))
            if verdict.refreshed is not None:
                self.refreshed.append(
                    msgspec.structs.replace(
                        verdict.refreshed,
                        registration_intent_id=intent.id,
                        reference_trust=intent.reference_trust,
                        metadata=intent.metadata,
                    )
                )
            self.events.append(_joined(intent, arrival))
        else:
            self.events.append(_ended(EventType.REGISTRATION_INTENT_REJECTED, intent, at, project, arrival))
        self.settled.append(_settled(intent))

    async def write(self, tx: Tx, projects: Mapping[str, Project]) -> None:
        if self.ended:
            self.events[:0] = await _replaced(tx, self.ended)
        await contacts.link(tx, self.links)
        await contacts.refresh(tx, self.refreshed)
        await _settle(tx, self.settled)
        await outbox.record(tx, self.events, projects)


def _choose(arrival: Arrival, openings: Openings, grace: timedelta) -> Opened | Attempt:
    """The one intent that a message means, or why there is none."""
    known = [
        one
        for token in arrival.found.tokens
        if (one := openings.get((arrival.project_id, hash_token(token)))) is not None
    ]
    if not known:
        if arrival.sender_limited:
            return Attempt.SENDER_RATE_LIMITED
        return Attempt.UNKNOWN_TOKEN if arrival.found.tokens else Attempt.MALFORMED_TOKEN
    if len(known) == 1:
        return known[0]
    alive = [
        one
        for one in known
        if one.intent.status == Status.PENDING and arrival.received_at <= one.intent.expires_at + grace
    ]
    return alive[0] if len(alive) == 1 else Attempt.AMBIGUOUS_TOKEN


async def _replaced(tx: Tx, ended: Sequence[tuple[Link, datetime]]) -> list[Event]:
    """Ends the links that yield, and tells of each; their people may not be the ones who wrote."""
    events = []
    people = await contacts.known(tx, {(link.project_id, link.contact_id) for link, _ in ended})
    for link, at in ended:
        await contacts.end(tx, [link], EndReason.REPLACED, at)
        events.append(_unlinked(link, EndReason.REPLACED, at, people[link.project_id, link.contact_id]))
    return events


async def _settle(tx: Tx, settled: Sequence[tuple[object, ...]]) -> None:
    if len(await tx.rows_each(sql.settle, settled)) != len(settled):
        raise Conflict("an intent was settled meanwhile")


def _settled(intent: Intent) -> tuple[object, ...]:
    return (
        intent.project_id,
        intent.id,
        intent.status,
        intent.ended_at,
        intent.rejection_reason,
        intent.contact_id,
        intent.message_id,
        intent.joined_at,
        intent.already_linked,
    )


def _new_link(intent: Intent, arrival: Arrival) -> Link:
    return Link(
        project_id=intent.project_id,
        id=ids.new("link", arrival.received_at),
        contact_id=arrival.contact.id,
        customer_reference=intent.customer_reference,
        registration_intent_id=intent.id,
        reference_trust=intent.reference_trust,
        metadata=intent.metadata,
        created_at=arrival.received_at,
    )


# Reading, cancelling, ending


async def find(tx: Tx, wanted: Sequence[tuple[str, str]]) -> list[Intent | None]:
    """The intents of these (project, id), in order; None where the project has no such intent."""
    found = {
        (row["project_id"], row["id"]): _intent(row) for row in await tx.rows(sql.find, *columns(wanted, 2))
    }
    return [found.get(one) for one in wanted]


class Filter(Struct, frozen=True):
    """Which intents a list shows; None: all."""

    status: Status | None = None
    customer_reference: str | None = None
    contact_id: str | None = None
    channel_id: str | None = None
    created_after: datetime | None = None
    """Inclusive."""
    created_before: datetime | None = None
    """Exclusive."""


async def listed(tx: Tx, project_id: str, which: Filter, *, before: str | None, limit: int) -> list[Intent]:
    """Newest first, older than the id `before`. Ids sort by creation."""
    rows = await tx.rows(
        sql.listed,
        project_id,
        before,
        which.status,
        which.customer_reference,
        which.contact_id,
        which.channel_id,
        which.created_after,
        which.created_before,
        limit,
    )
    return [_intent(row) for row in rows]


async def cancel(tx: Tx, project: Project, intent_id: str, at: datetime, grace: timedelta) -> Intent:
    """Ends a pending intent, also during its grace. Cancelling what is cancelled already changes nothing.

    Raises errors.NotFound, AlreadyJoined, NotPending (expired, or rejected for another reason).
    """
    intent = await _locked(tx, project.id, intent_id)
    if intent.status == Status.JOINED:
        raise errors.AlreadyJoined
    if intent.rejection_reason == RejectionReason.CANCELED_BY_APP:
        return intent
    status, phase = intent.seen_at(at, grace)
    if intent.status != Status.PENDING or (status == Status.EXPIRED and phase is None):
        raise errors.NotPending(f"This registration intent is {status} already.")
    await reject(tx, [intent], RejectionReason.CANCELED_BY_APP, projects={project.id: project}, at=at)
    return intent


async def reject(
    tx: Tx,
    pending: Sequence[Intent],
    reason: RejectionReason,
    *,
    projects: Mapping[str, Project],
    at: datetime,
) -> None:
    """Ends locked pending intents without a message, and says so in an event."""
    for intent in pending:
        intent.status, intent.ended_at, intent.rejection_reason = Status.REJECTED, at, reason
    await _settle(tx, [_settled(intent) for intent in pending])
    rejected = EventType.REGISTRATION_INTENT_REJECTED
    events = [_ended(rejected, intent, at, projects[intent.project_id]) for intent in pending]
    await outbox.record(tx, events, projects)


async def revoke_key(tx: Tx, project: Project, key_id: str, *, actor: str, at: datetime) -> accounts.ApiKey:
    """Revokes a key and ends what it minted; what is left over is ended by the sweeper, or by `judge` when used."""
    key = await accounts.revoke_key(tx, project.id, key_id, actor=actor, at=at)
    await _end_pending(tx, sql.pending_of_key, RejectionReason.KEY_REVOKED, project, key_id, at)
    return key


async def retire_channel(
    tx: Tx, project: Project, channel_id: str, *, actor: str, at: datetime
) -> accounts.Channel:
    """Deletes a channel and ends what was minted for it; the rest as in `revoke_key`."""
    channel = await accounts.delete_channel(tx, project.id, channel_id, actor=actor, at=at)
    await _end_pending(
        tx, sql.pending_of_channel, RejectionReason.CHANNEL_UNAVAILABLE, project, channel_id, at
    )
    return channel


async def projects_with_due(tx: Tx, now: datetime, limit: int) -> list[str]:
    """Projects that have intents past their expiry."""
    return [row["id"] for row in await tx.rows(sql.any_project_due, now, limit)]


async def expire_due(tx: Tx, project_id: str, now: datetime, grace: timedelta, limit: int) -> list[str]:
    """Ends intents whose grace is over, with their events; returns their ids."""
    rows = await tx.rows(sql.due, project_id, now - grace, limit)
    found = [_intent(row) for row in rows]
    if not found:
        return []
    for intent in found:
        intent.status, intent.ended_at = Status.EXPIRED, now
    await _settle(tx, [_settled(intent) for intent in found])
    projects = await accounts.projects(tx, [project_id])
    expired = EventType.REGISTRATION_INTENT_EXPIRED
    await outbox.record(
        tx, [_ended(expired, intent, now, projects[project_id]) for intent in found], projects
    )
    return [intent.id for intent in found]


async def end_orphans(tx: Tx, now: datetime, limit: int) -> list[str]:
    """Ends pending intents of revoked keys and deleted channels; returns their ids."""
    ended: list[str] = []
    for row in await tx.rows(sql.any_ended_with_pending, now - MAX_LIFETIME, limit):
        project = (await accounts.projects(tx, [row["project_id"]]))[row["project_id"]]
        query = sql.pending_of_key if row["is_key"] else sql.pending_of_channel
        reason = RejectionReason.KEY_REVOKED if row["is_key"] else RejectionReason.CHANNEL_UNAVAILABLE
        ended += await _end_pending(tx, query, reason, project, row["id"], now)
    return ended


async def _end_pending(
    tx: Tx, query: str, reason: RejectionReason, project: Project, of: str, at: datetime
) -> list[str]:
    found = [_intent(row) for row in await tx.rows(query, project.id, of, _SETTLE_AT_ONCE)]
    await reject(tx, found, reason, projects={project.id: project}, at=at)
    return [intent.id for intent in found]


async def _locked(tx: Tx, project_id: str, intent_id: str) -> Intent:
    row = await tx.row(sql.lock, project_id, intent_id)
    if row is None:
        raise errors.NotFound("There is no such registration intent.")
    return _intent(row)


def _intent(row: Row) -> Intent:
    reason = row["rejection_reason"]
    return Intent(
        project_id=row["project_id"],
        id=row["id"],
        status=Status(row["status"]),
        customer_reference=row["customer_reference"],
        metadata=msgspec.Raw(row["metadata"]),
        reference_trust=Trust(row["reference_trust"]),
        channel_id=row["channel_id"],
        api_key_id=row["api_key_id"],
        locale=row["locale"],
        secret_version=row["secret_version"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        ended_at=row["ended_at"],
        rejection_reason=RejectionReason(reason) if reason else None,
        contact_id=row["contact_id"],
        message_id=row["message_id"],
        joined_at=row["joined_at"],
        already_linked=row["already_linked"],
    )


# Events


def _joined(intent: Intent, arrival: Arrival) -> Event:
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


def _token_reuse(intent: Intent, arrival: Arrival) -> Event:
    return _event(
        EventType.SECURITY_TOKEN_REUSE,
        intent,
        arrival.received_at,
        {
            **arrival.contact.person(arrival.conversation_id, arrival.channel_id),
            "registration_intent_id": intent.id,
            "customer_reference": intent.customer_reference,
        },
        contact_id=arrival.contact.id,
    )


def _ended(
    kind: EventType, intent: Intent, at: datetime, project: Project, arrival: Arrival | None = None
) -> Event:
    """The intent as a secret key reads it; with the person and the attempt where a message ended it."""
    contact = arrival.contact if arrival else None
    payload: dict[str, object] = {
        "registration_intent_id": intent.id,
        "customer_reference": intent.customer_reference,
        "contact_reference": intent.customer_reference,
        "registration_intent": intent.public(
            View.READER, now=at, grace=timedelta(0), livemode=project.livemode, contact=contact
        ),
    }
    if arrival is not None:
        payload |= arrival.contact.person(arrival.conversation_id, arrival.channel_id)
        payload["attempt"] = {"code": Attempt.REJECTED, "message_id": arrival.message_id}
    return _event(kind, intent, at, payload)


def _unlinked(link: Link, reason: EndReason, at: datetime, whose: contacts.Acquaintance) -> Event:
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
