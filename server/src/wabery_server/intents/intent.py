"""An intent: the row, who sees what of it, and the statements that several of its transitions share."""

import enum
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple, Self
from urllib.parse import quote

import msgspec
from msgspec import Struct

from wabery_server import errors, ids
from wabery_server.accounts import Project
from wabery_server.clock import iso
from wabery_server.contacts import Contact
from wabery_server.db import Conflict, Row, Tx, lists, queries
from wabery_server.secrets import Keyring
from wabery_server.tokens import PLACEHOLDER

sql = queries.beside(__file__)


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
    """Why an intent was rejected: the stable code, what a publishable key is told, a sentence for people."""

    coarse: str
    message: str

    CANCELED_BY_APP = "canceled_by_app", "canceled", "The app cancelled this registration."
    SUPERSEDED = "superseded", "canceled", "A newer registration for the same customer took its place."
    KEY_REVOKED = "key_revoked", "canceled", "The API key that minted this registration was revoked."
    CHANNEL_UNAVAILABLE = (
        "channel_unavailable",
        "error",
        "The WhatsApp number of this registration was removed.",
    )
    REFERENCE_UNVERIFIED = (
        "reference_unverified",
        "not_allowed",
        "The project does not accept unsigned references.",
    )
    IDENTITY_ALREADY_LINKED = (
        "identity_already_linked",
        "conflict",
        "This WhatsApp account is already connected to another customer.",
    )
    REFERENCE_ALREADY_LINKED = (
        "reference_already_linked",
        "conflict",
        "This customer is already connected to another WhatsApp account.",
    )
    LINK_LIMIT_REACHED = (
        "link_limit_reached",
        "conflict",
        "This WhatsApp account is connected to as many customers as the project allows.",
    )

    def __new__(cls, code: str, coarse: str, message: str) -> Self:
        member = str.__new__(cls, code)
        member._value_ = code
        member.coarse = coarse
        member.message = message
        return member


class Attempt(enum.StrEnum):
    """What became of a message that carried a token."""

    JOINED = "joined"
    """It joined its intent."""
    REJECTED = "rejected"
    """Its intent was rejected because of it."""
    UNKNOWN_TOKEN = "unknown_token"
    """No intent of this project has this token."""
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
    opened_at: datetime | None = None
    opened_via: str | None = None

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
            body |= {
                "opened_at": iso(self.opened_at) if self.opened_at else None,
                "opened_via": self.opened_via,
            }
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
    """Token, client secret and link of an intent. Raises secrets.Unsealable when the intent's secret version is missing."""
    subkeys = keyring.version(intent.secret_version, f"registration_intents:{intent.id}")
    token = subkeys.token(intent.id)
    link = wa_link(project, display_phone_number, token, intent.locale) if display_phone_number else None
    return Shown(token, subkeys.client_secret(intent.id), link)


_QUOTED_PLACE = quote(PLACEHOLDER, safe="")


@lru_cache(maxsize=1024)
def _quoted(text: str) -> str:
    return quote(text, safe="")


def wa_link(project: Project, display_phone_number: str, token: str, locale: str | None) -> str:
    """`https://wa.me/<digits>?text=<percent-encoded>`; spaces are %20, since `+` may stay a plus."""
    return f"https://wa.me/{display_phone_number}?text={_quoted(project.prefilled(locale)).replace(_QUOTED_PLACE, token)}"


async def find(tx: Tx, wanted: Sequence[tuple[str, str]]) -> list[Intent | None]:
    """The intents of these (project, id), in order; None where the project has no such intent."""
    rows = await tx.rows_each(sql.find, list(dict.fromkeys(wanted)))
    found = {(row["project_id"], row["id"]): read_row(row) for row in rows}
    return [found.get(one) for one in wanted]


class Filter(Struct, frozen=True):
    """Which intents a list shows; None: all."""

    status: Status | None = None
    """As a read shows it: expired from `expires_at` on."""
    customer_reference: str | None = None
    contact_id: str | None = None
    channel_id: str | None = None
    created_after: datetime | None = None
    """Inclusive, in whole milliseconds."""
    created_before: datetime | None = None
    """Exclusive."""


class Listed(NamedTuple):
    """A page of intents; `resume` as in `db.lists.Part`."""

    intents: list[Intent]
    resume: str | None


async def listed(
    tx: Tx,
    project_id: str,
    which: Filter,
    *,
    now: datetime,
    before: str | None,
    limit: int,
    most: int = lists.LOOKED_AT,
) -> Listed:
    """Newest first, older than the id `before`. Ids sort by creation. `most`: see `db.lists.LOOKED_AT`."""
    given = (which.status, which.customer_reference, which.contact_id, which.channel_id)
    least, end = ids.bounds("reg", before, which.created_after, which.created_before)
    # Status and channel share an index; but that of the pending ones also shows which of them are in their grace.
    one_filter = sum(one is not None for one in given) < 2 or not any(given[1:3])
    by_index = one_filter and which.status != Status.PENDING
    looked_at = limit if by_index else most
    values = (project_id, least, end, looked_at, limit, *given, now)
    if which.customer_reference is not None:
        rows = await tx.rows(sql.listed_by_reference, *values)
    elif which.contact_id is not None:
        rows = await tx.rows(sql.listed_by_contact, *values)
    elif which.status is not None or which.channel_id is not None:
        statuses = list(Status) if which.status is None else [which.status]
        rows = await tx.rows(sql.listed_by_status, *values, statuses)
        if which.status == Status.EXPIRED:
            rows += await tx.rows(sql.in_grace, project_id, least, end, now, most, *given[1:])
            rows = sorted(rows, key=lambda row: str(row["id"]), reverse=True)[:limit]
    else:
        rows = await tx.rows(sql.listed, *values)
    part = lists.cut(rows, looked_at)
    return Listed([read_row(row) for row in part.rows], part.resume)


async def locked(tx: Tx, project_id: str, intent_id: str) -> Intent:
    row = await tx.row(sql.lock, project_id, intent_id)
    if row is None:
        raise errors.NotFound("There is no such registration intent.")
    return read_row(row)


def read_row(row: Row) -> Intent:
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
        rejection_reason=RejectionReason(reason) if reason else None,  # type: ignore[call-arg]  # a look-up by value
        contact_id=row["contact_id"],
        message_id=row["message_id"],
        joined_at=row["joined_at"],
        already_linked=row["already_linked"],
        opened_at=row["opened_at"],
        opened_via=row["opened_via"],
    )


async def settle(tx: Tx, settled: Sequence[tuple[object, ...]]) -> None:
    if await tx.count_each(sql.settle, settled) != len(settled):
        raise Conflict("an intent was settled meanwhile")


def settled_columns(intent: Intent) -> tuple[object, ...]:
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
