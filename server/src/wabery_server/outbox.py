"""The outbox: what happened, and who has to be told.

An event is written in the transaction of the change it announces, with one delivery per endpoint that wants it, so that
neither exists without the other. The delivery row is the queue item:

    record --> pending (due_at) -- claim --> pending (due_at = end of the lease) -- settle --> delivered
                  ^                                      |        |                 +--------> failed: no attempt is left
                  |            the lease ran out         |        | again later     +--------> held: cannot be sent now
                  +--------------------------------------+--------+

    held -- resume, once its endpoint has a URL again and is not disabled --> pending, due since it was recorded

Whoever claims a delivery may send it until the lease ends; one that is never settled comes back by itself. So each is
sent at least once, always with the same bytes and the same event id.

Due times and leases are wall time: somebody who moves the business clock neither hurries a retry nor strands a lease.
"""

import enum
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec
from msgspec import Struct

from wabery_server import accounts, ids
from wabery_server.accounts import Endpoint, Listener, Project
from wabery_server.clock import iso
from wabery_server.db import Row, Tx, lists, queries

sql = queries.beside(__file__)


class EventType(enum.StrEnum):
    """What can happen. An endpoint names the types it wants; without a list it gets all but the opt-in ones."""

    PARTICIPANT_JOINED = "participant.joined"
    """A person sent the link's message: their WhatsApp account now belongs to the customer reference.

    `already_linked` is true when the same person had been linked to the same reference before.
    """
    PARTICIPANT_UNLINKED = "participant.unlinked"
    """A link ended; `reason` says why. No more messages of this person carry the reference."""
    MESSAGE_RECEIVED = "message.received"
    """A person wrote something that is not a registration. `customer_reference` is null while they are not linked."""
    REGISTRATION_INTENT_CREATED = "registration_intent.created"
    """An intent was minted. Opt-in: an endpoint gets it only if it names it."""
    REGISTRATION_INTENT_REJECTED = "registration_intent.rejected"
    """An intent ended without a link; `rejection_reason` says why."""
    REGISTRATION_INTENT_EXPIRED = "registration_intent.expired"
    """Nobody sent the link's message in time, and the grace for late arrivals is over too."""
    REGISTRATION_INTENT_ATTEMPT_FAILED = "registration_intent.attempt_failed"
    """A message carried a token and joined nobody; `attempt.code` says why. Opt-in, as for every typo there is one."""
    SECURITY_TOKEN_REUSE = "security.token_reuse"
    """Another person sent a token that had already joined its person. Nothing changed, but the link was passed on. Sent
    for the first such message of an intent, then at most once in 10 minutes; `count` says how many there were."""
    WEBHOOK_ENDPOINT_DISABLED = "webhook_endpoint.disabled"
    """Nothing is sent to this endpoint until its URL is set again, and what is due for it is held; `reason` says why."""


OPT_IN = frozenset(
    {EventType.REGISTRATION_INTENT_CREATED, EventType.REGISTRATION_INTENT_ATTEMPT_FAILED},
)
"""Sent only to endpoints that name them, and not stored when none does."""


class Event(Struct, kw_only=True):
    """Something that happened, as its room tells it."""

    id: str
    project_id: str
    type: EventType
    payload: dict[str, object]
    """Beyond the five fields that `record` puts into every payload. Times as `clock.iso` writes them."""
    created_at: datetime
    """The business moment; also what the body says as `sentAt`, on every attempt."""
    contact_id: str | None = None
    registration_intent_id: str | None = None


class State(enum.StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    """It is sent when its time comes."""
    DELIVERED = "delivered"
    """The endpoint took it."""
    FAILED = "failed"
    """The last attempt failed, or the endpoint asked not to get this one again."""
    HELD = "held"
    """Its endpoint is disabled or has no URL. Nothing is lost and no attempt is used up: it is sent when the endpoint is
    back."""


class Queue(NamedTuple):
    """The deliveries to one endpoint. Each endpoint has its own, so that a slow one delays only itself."""

    project_id: str
    endpoint_id: str


class Claimed(Struct, frozen=True, kw_only=True):
    """A delivery that is ours to send until the lease ends."""

    queue: Queue
    id: str
    lease: datetime
    due_at: datetime
    """When it was due before it was claimed."""
    attempts: int
    """How many were made and counted before."""
    event_id: str
    event_type: str | None
    body: bytes | None
    """None: the event is gone."""
    endpoint: Endpoint | None
    """As it is at this moment: what was due before a change goes to the new URL. None: it is gone."""
    livemode: bool
    root_project_id: str = ""
    """The project that this one's project was created from, directly or not, else its own; empty counts as that."""
    recorded_at: datetime | None = None
    """When the event happened, by the business clock."""

    @property
    def number(self) -> int:
        """The number of the attempt to make now, from 1."""
        return self.attempts + 1


class Attempt(Struct, frozen=True, kw_only=True):
    """One attempt that counts, as the delivery log keeps it."""

    outcome: str
    status: int | None
    error: str | None
    response_body: bytes
    address: str | None
    elapsed: timedelta
    at: datetime
    """Wall time of its start."""


class Settled(Struct, frozen=True, kw_only=True):
    """What becomes of a claimed delivery."""

    claimed: Claimed
    state: State
    due_at: datetime | None = None
    """While pending: when to try again."""
    attempt: Attempt | None = None
    """None: nothing was sent, or it does not count."""

    def __post_init__(self) -> None:
        assert (self.state is State.PENDING) == (self.due_at is not None)
        assert self.state not in _ENDED or self.attempt is not None


_ENDED = (State.DELIVERED, State.FAILED)


async def record(tx: Tx, events: Sequence[Event], projects: Mapping[str, Project]) -> bool:
    """Writes events in the transaction of their change, and a delivery for each endpoint that wants them.

    Returns whether anything is due now: then `signals.tell("due")` after the commit spares the worker a poll. An
    endpoint that is disabled gets its delivery held. `projects` holds the projects of the events. Safe to repeat.
    """
    if not events:
        return False
    listening = await _listening(tx, {event.project_id for event in events})
    now = datetime.now(UTC)
    stored: list[tuple[object, ...]] = []
    deliveries: list[tuple[object, ...]] = []
    due = False
    for event in events:
        wanting = [one for one in listening.get(event.project_id, ()) if _wants(one, event.type)]
        if not wanting and event.type in OPT_IN:
            continue
        stored.append(
            (
                event.project_id,
                event.id,
                event.type,
                event.contact_id,
                event.registration_intent_id,
                _body(event, projects[event.project_id]),
                event.created_at,
            )
        )
        for endpoint in wanting:
            state = State.HELD if endpoint.disabled else State.PENDING
            due_at = now if state is State.PENDING else None
            due = due or due_at is not None
            delivery_id = _delivery_id(event.id, endpoint.id)
            deliveries.append(
                (event.project_id, delivery_id, event.id, endpoint.id, state, due_at, event.created_at)
            )
    await tx.rows_each(sql.insert_event, stored)
    await tx.rows_each(sql.insert_delivery, deliveries)
    return due


async def wanted(tx: Tx, project_ids: Iterable[str], type: EventType) -> set[str]:
    """Projects with an endpoint for this type: the others need not make up an opt-in event that is thrown away."""
    listening = await _listening(tx, set(project_ids))
    return {project_id for project_id, some in listening.items() if any(_wants(one, type) for one in some)}


async def _listening(tx: Tx, project_ids: set[str]) -> dict[str, list[Listener]]:
    listening: dict[str, list[Listener]] = {}
    for endpoint in await accounts.listeners(tx, sorted(project_ids)):
        listening.setdefault(endpoint.project_id, []).append(endpoint)
    return listening


def _wants(endpoint: Listener, type: EventType) -> bool:
    return type not in OPT_IN if endpoint.events is None else type in endpoint.events


def _body(event: Event, project: Project) -> bytes:
    """The contract's body. These bytes are signed and sent on every attempt, and never made again."""
    created_at = iso(event.created_at)
    return _encode(
        {
            "event": event.type,
            "payload": {
                "event_id": event.id,
                "organization_id": project.organization_id,
                "project_id": event.project_id,
                "livemode": project.livemode,
                "created_at": created_at,
                **event.payload,
            },
            "sentAt": created_at,
        }
    )


_encode = msgspec.json.Encoder().encode


def _delivery_id(event_id: str, endpoint_id: str) -> str:
    """The same each time a transaction is repeated: the event's id with its last 60 bits hashed with the endpoint's."""
    digest = hashlib.sha256(f"{event_id}{endpoint_id}".encode()).digest()
    return f"dlv_{event_id[4:18]}{ids.letters(digest[:12])}"


class Filter(Struct, frozen=True):
    """Which events a list shows; None: all."""

    type: EventType | None = None
    contact_id: str | None = None
    registration_intent_id: str | None = None
    created_after: datetime | None = None
    """Inclusive, in whole milliseconds."""
    created_before: datetime | None = None
    """Exclusive."""


class Recorded(Struct, frozen=True):
    """An event as it was written."""

    id: str
    type: str
    body: bytes
    """The bytes that every delivery sends."""


class Listed(NamedTuple):
    """A page of events; `resume` as in `db.lists.Part`."""

    events: list[Recorded]
    resume: str | None


async def listed(
    tx: Tx, project_id: str, which: Filter, *, before: str | None, limit: int, most: int = lists.LOOKED_AT
) -> Listed:
    """Newest first, older than the id `before`. Ids sort by creation. `most`: see `db.lists.LOOKED_AT`."""
    given = (which.type, which.contact_id, which.registration_intent_id)
    least, end = ids.bounds("evt", before, which.created_after, which.created_before)
    statement, led = sql.listed, 0
    if which.registration_intent_id is not None:
        statement, led = sql.listed_by_intent, 1
    elif which.contact_id is not None:
        statement, led = sql.listed_by_contact, 1
    others = sum(one is not None for one in given) - led
    looked_at = most if others else limit
    rows = await tx.rows(statement, project_id, least, end, looked_at, limit, *given)
    part = lists.cut(rows, looked_at)
    return Listed([Recorded(row["id"], row["type"], row["body"]) for row in part.rows], part.resume)


async def find(tx: Tx, project_id: str, event_id: str) -> Recorded | None:
    row = await tx.row(sql.find, project_id, event_id)
    return Recorded(**row) if row else None


NEWEST = 256
"""Due deliveries read to find what became due last. When there are fewer, they name every queue that has any."""
VISITED = 500
"""Queues visited in one step of a walk."""


class Walk:
    """How far the queues have been visited, over several transactions: then each takes bounded time."""

    def __init__(self) -> None:
        self.after = Queue("", "")
        """The queue visited last; empty at the beginning and at the end."""

    @property
    def under_way(self) -> bool:
        return self.after != Queue("", "")


async def due_queues(tx: Tx, now: datetime, limit: int, walk: Walk | None = None) -> list[Queue]:
    """At most `limit` endpoints that something is due for, the longest waiting first.

    Where more is due than the newest deliveries name, the queues are visited too, from where the `walk` has come to; the
    walk moves on. So the cost does not depend on how much is due, and neither new events nor old queues starve.
    """
    walk = walk or Walk()
    newest = await tx.rows(sql.any_due_queues, now, NEWEST)
    found = {Queue(row["project_id"], row["endpoint_id"]): row["due_at"] for row in newest}
    if walk.under_way or sum(row["deliveries"] for row in newest) == NEWEST:
        visited = await tx.rows(sql.any_queues_after, *walk.after, VISITED)
        for project_id, endpoint_id, due_at in visited:
            if due_at <= now:
                found[Queue(project_id, endpoint_id)] = due_at
        walk.after = Queue(*visited[-1][:2]) if len(visited) == VISITED else Queue("", "")
    return sorted(found, key=lambda queue: found[queue])[:limit]


async def claim(tx: Tx, queue: Queue, now: datetime, lease: timedelta, limit: int) -> list[Claimed]:
    """Takes what is due for one endpoint, the longest due first.

    Two that claim at once get different rows. Nothing is held open while they are sent: after `now` + `lease`, what has
    not been settled is due again.
    """
    until = now + lease
    rows = await tx.rows(sql.claim, queue.project_id, queue.endpoint_id, now, until, limit)
    endpoint = _endpoint(queue, rows[0]) if rows else None
    return [
        Claimed(
            queue=queue,
            id=row["id"],
            lease=until,
            due_at=row["due_at"],
            attempts=row["attempts"],
            event_id=row["event_id"],
            event_type=row["type"],
            body=row["body"],
            endpoint=endpoint,
            livemode=row["livemode"] is not False,
            root_project_id=row["root_project_id"] or queue.project_id,
            recorded_at=row["recorded_at"],
        )
        for row in rows
    ]


def _endpoint(queue: Queue, row: Row) -> Endpoint | None:
    if row["secrets"] is None:
        return None
    return Endpoint(
        id=queue.endpoint_id,
        project_id=queue.project_id,
        is_default=row["is_default"],
        url=row["url"],
        events=row["events"],
        secrets=row["secrets"],
        secret_version=row["secret_version"],
        disabled_at=row["disabled_at"],
        disabled_reason=row["disabled_reason"],
        created_at=row["created_at"],
    )


async def settle(tx: Tx, results: Sequence[Settled]) -> list[bool]:
    """Writes what became of claimed deliveries, and their attempts; tells for each whether the lease was still ours.

    Where it was not, somebody else has the delivery now and nothing is changed.
    """
    rows = [
        (
            result.claimed.queue.project_id,
            result.claimed.id,
            result.claimed.lease,
            result.state,
            0 if result.attempt is None else 1,
            result.due_at,
            result.attempt.at + result.attempt.elapsed if result.state in _ENDED and result.attempt else None,
        )
        for result in results
    ]
    ours = {(row["project_id"], row["id"]) for row in await tx.rows_each(sql.settle, rows)}
    kept = [(result.claimed.queue.project_id, result.claimed.id) in ours for result in results]
    await tx.rows_each(
        sql.insert_attempt,
        [
            (
                result.claimed.queue.project_id,
                result.claimed.id,
                result.claimed.number,
                attempt.outcome,
                attempt.status,
                _storable(attempt.error),
                attempt.response_body,
                attempt.address,
                attempt.elapsed / timedelta(milliseconds=1),
                attempt.at,
            )
            for result, is_ours in zip(results, kept, strict=True)
            if is_ours and (attempt := result.attempt)
        ],
    )
    return kept


async def queues_to_resume(tx: Tx, limit: int, walk: Walk | None = None) -> list[Queue]:
    """Endpoints that can be sent to again, among the next `limit` that something is held for; the `walk` moves on."""
    walk = walk or Walk()
    visited = await tx.rows(sql.any_queues_to_resume, *walk.after, limit)
    queues = [Queue(row["project_id"], row["endpoint_id"]) for row in visited]
    walk.after = max(queues) if len(queues) == limit else Queue("", "")
    return [queue for queue, row in zip(queues, visited, strict=True) if row["is_back"]]


class Page:
    """How far the held deliveries of one queue have been looked at."""

    def __init__(self) -> None:
        self.after = ""
        """The id looked at last; empty at the beginning and at the end."""


async def resume(tx: Tx, queue: Queue, now: datetime, limit: int, page: Page | None = None) -> int:
    """Makes what is held for an endpoint due, the oldest first; returns how many of the next `limit`.

    What has lost its event stays held. The `page` moves on.
    """
    page = page or Page()
    rows = await tx.rows(sql.resume, queue.project_id, queue.endpoint_id, now, limit, page.after)
    page.after = rows[-1]["id"] if len(rows) == limit else ""
    return sum(row["resumed"] for row in rows)


def _storable(error: str | None) -> str | None:
    """The far side has a say in this text, and PostgreSQL takes neither U+0000 nor lone surrogates."""
    return error and error.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


async def disable_endpoint(
    tx: Tx, project_id: str, endpoint_id: str, reason: str, *, event_id: str, at: datetime
) -> bool:
    """Stops sending to an endpoint and tells the project's others; returns whether that event is due for one.

    1. The endpoint is disabled; one that was disabled before keeps its reason, and nothing follows.
    2. `webhook_endpoint.disabled` is recorded.
    3. What is pending for it becomes held when its time comes, and is resumed when the endpoint has come back.
    """
    await accounts.disable_endpoint(tx, project_id, endpoint_id, reason, at)
    endpoints = {endpoint.id: endpoint for endpoint in await accounts.endpoints(tx, [project_id])}
    if endpoint_id not in endpoints or endpoints[endpoint_id].disabled_at != at:
        return False
    event = Event(
        id=event_id,
        project_id=project_id,
        type=EventType.WEBHOOK_ENDPOINT_DISABLED,
        payload={"endpoint_id": endpoint_id, "reason": reason, "since": iso(at)},
        created_at=at,
    )
    return await record(tx, [event], await accounts.projects(tx, [project_id]))
