"""The outbox: an event with its change, the bytes that are sent, and who may send them."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from wabery_server import accounts, ids, outbox
from wabery_server.accounts import Project, ProjectChanges, ProjectDraft
from wabery_server.clock import MovableClock, iso
from wabery_server.db import Database, Source, Tx
from wabery_server.outbox import OPT_IN, Attempt, Claimed, Event, EventType, Queue, Settled, State
from wabery_server.secrets import Keyring

URL = "https://hooks.example.com/wabery"
NOON = datetime(2026, 11, 23, 12, 0, 0, 123_456, tzinfo=UTC)
LEASE = timedelta(seconds=60)


@dataclass(frozen=True)
class Tenant:
    project: Project
    queue: Queue


@pytest.fixture
async def acme(database: Database, keyring: Keyring) -> Tenant:
    return await tenant(database, keyring, "Acme")


@pytest.fixture
async def globex(database: Database, keyring: Keyring) -> Tenant:
    return await tenant(database, keyring, "Globex")


async def tenant(database: Database, keyring: Keyring, name: str, url: str | None = URL) -> Tenant:
    """A test project whose default endpoint has a URL."""

    async def make(tx: Tx) -> Tenant:
        await accounts.open_installation(tx, keyring, NOON)
        organization_id = await accounts.find_organization(tx)
        new = accounts.new_project(organization_id, ProjectDraft(name=name), keyring=keyring, at=NOON)
        await accounts.create_project(tx, new, keyring=keyring, actor="cli:test", at=NOON)
        await accounts.update_project(
            tx,
            new.project.id,
            ProjectChanges(webhook_url=url),
            keyring=keyring,
            actor="cli:test",
            at=NOON,
        )
        return Tenant(new.project, Queue(new.project.id, new.endpoint.id))

    return await database.run(make)


async def second_endpoint(database: Database, of: Tenant, events: Sequence[str] | None = None) -> Queue:
    """One more endpoint of the same project, with the first one's URL and secret."""
    endpoint_id = ids.new("we", NOON)
    await database.run(
        lambda tx: tx.run(
            """
            insert into webhook_endpoints (id, project_id, is_default, url, secrets, secret_version, events, created_at)
            select $1, project_id, false, url, secrets, secret_version, $3, created_at
            from webhook_endpoints where id = $2
            """,
            endpoint_id,
            of.queue.endpoint_id,
            events,
        )
    )
    return Queue(of.project.id, endpoint_id)


def event(of: Tenant, type: EventType = EventType.PARTICIPANT_JOINED, **payload: object) -> Event:
    return Event(
        id=ids.new("evt", NOON), project_id=of.project.id, type=type, payload=payload, created_at=NOON
    )


async def record(database: Database, of: Tenant, *events: Event) -> bool:
    return await database.run(lambda tx: outbox.record(tx, events, {of.project.id: of.project}))


async def count(database: Database, table: str) -> int:
    (row,) = await database.run(lambda tx: tx.rows(f"select count(*) as n from {table}"))
    return int(row["n"])


async def deliveries(database: Database) -> list[dict[str, Any]]:
    rows = await database.run(lambda tx: tx.rows("select * from deliveries order by id, endpoint_id"))
    return [dict(row) for row in rows]


async def claim(
    database: Database, queue: Queue, now: datetime | None = None, limit: int = 64
) -> list[Claimed]:
    moment = now or datetime.now(UTC)
    return await database.run(lambda tx: outbox.claim(tx, queue, moment, LEASE, limit))


async def settle(database: Database, *results: Settled) -> list[bool]:
    return await database.run(lambda tx: outbox.settle(tx, results))


def attempt(outcome: str = "delivered", *, error: str | None = None) -> Attempt:
    return Attempt(
        outcome=outcome,
        status=200,
        error=error,
        response_body=b"thank you",
        address="127.0.0.1",
        elapsed=timedelta(milliseconds=12.5),
        at=NOON,
    )


# Recording


async def test_an_event_and_its_change_are_written_together(database: Database, acme: Tenant) -> None:
    async def change(tx: Tx) -> None:
        await tx.run("insert into organizations values ('org_change', 'A change', now())")
        await outbox.record(tx, [event(acme)], {acme.project.id: acme.project})

    await database.run(change)

    assert await database.run(lambda tx: tx.row("select 1 from organizations where id = 'org_change'"))
    assert await count(database, "events") == 1
    assert await count(database, "deliveries") == 1


async def test_a_change_that_fails_leaves_no_event(database: Database, acme: Tenant) -> None:
    async def change(tx: Tx) -> None:
        await tx.run("insert into organizations values ('org_change', 'A change', now())")
        await outbox.record(tx, [event(acme)], {acme.project.id: acme.project})
        raise LookupError("after all")

    with pytest.raises(LookupError):
        await database.run(change)

    assert not await database.run(lambda tx: tx.row("select 1 from organizations where id = 'org_change'"))
    assert await count(database, "events") == 0
    assert await count(database, "deliveries") == 0


async def test_the_body_is_the_contracts(database: Database, acme: Tenant) -> None:
    joined = event(acme, customer_reference="user_123", metadata={"plan": "größer"})

    await record(database, acme, joined)

    (row,) = await database.run(lambda tx: tx.rows("select body from events"))
    assert (
        row["body"] == json.dumps(json.loads(row["body"]), separators=(",", ":"), ensure_ascii=False).encode()
    )
    assert json.loads(row["body"]) == {
        "event": "participant.joined",
        "payload": {
            "event_id": joined.id,
            "organization_id": acme.project.organization_id,
            "project_id": acme.project.id,
            "livemode": False,
            "created_at": "2026-11-23T12:00:00.123Z",
            "customer_reference": "user_123",
            "metadata": {"plan": "größer"},
        },
        "sentAt": "2026-11-23T12:00:00.123Z",
    }


async def test_every_endpoint_gets_its_own_delivery(database: Database, acme: Tenant, globex: Tenant) -> None:
    other = await second_endpoint(database, acme)

    due = await record(database, acme, event(acme))

    assert due
    assert {row["endpoint_id"] for row in await deliveries(database)} == {
        acme.queue.endpoint_id,
        other.endpoint_id,
    }


async def test_a_due_time_is_wall_time_whatever_the_business_clock_says(
    database: Database, acme: Tenant, clock: MovableClock
) -> None:
    clock.move(timedelta(days=400))
    late = event(acme)
    late.created_at = clock.now()

    await record(database, acme, late)

    (delivery,) = await deliveries(database)
    assert abs(delivery["due_at"] - datetime.now(UTC)) < timedelta(minutes=1)
    assert delivery["created_at"] == late.created_at


async def test_without_a_url_the_event_is_kept_and_nobody_is_told(
    database: Database, keyring: Keyring
) -> None:
    silent = await tenant(database, keyring, "Silent", url=None)

    due = await record(database, silent, event(silent))

    assert not due
    assert await count(database, "events") == 1
    assert await count(database, "deliveries") == 0


async def test_for_a_disabled_endpoint_it_is_held(database: Database, acme: Tenant) -> None:
    await database.run(lambda tx: accounts.disable_endpoint(tx, *acme.queue, "gone", NOON))

    due = await record(database, acme, event(acme))

    (delivery,) = await deliveries(database)
    assert not due
    assert (delivery["state"], delivery["due_at"], delivery["ended_at"]) == ("held", None, None)


@pytest.mark.parametrize("type", sorted(OPT_IN))
async def test_an_opt_in_event_that_nobody_wants_is_not_stored(
    database: Database, acme: Tenant, type: EventType
) -> None:
    due = await record(database, acme, event(acme, type), event(acme))

    (stored,) = await database.run(lambda tx: tx.rows("select type from events"))
    assert due
    assert stored["type"] == "participant.joined"


async def test_an_endpoint_with_a_list_gets_what_it_names(database: Database, acme: Tenant) -> None:
    choosy = await second_endpoint(database, acme, ["registration_intent.created", "message.received"])
    created, received, joined = (
        event(acme, type)
        for type in (
            EventType.REGISTRATION_INTENT_CREATED,
            EventType.MESSAGE_RECEIVED,
            EventType.PARTICIPANT_JOINED,
        )
    )

    await record(database, acme, created, received, joined)

    told = {(row["endpoint_id"], row["event_id"]) for row in await deliveries(database)}
    assert told == {
        (choosy.endpoint_id, created.id),
        (choosy.endpoint_id, received.id),
        (acme.queue.endpoint_id, received.id),
        (acme.queue.endpoint_id, joined.id),
    }


async def test_whoever_makes_up_opt_in_events_learns_where_they_are_wanted(
    database: Database, acme: Tenant, globex: Tenant
) -> None:
    await second_endpoint(database, globex, ["registration_intent.created"])
    both = [acme.project.id, globex.project.id]

    created = await database.run(lambda tx: outbox.wanted(tx, both, EventType.REGISTRATION_INTENT_CREATED))
    joined = await database.run(lambda tx: outbox.wanted(tx, both, EventType.PARTICIPANT_JOINED))

    assert created == {globex.project.id}
    assert joined == set(both)


async def test_a_transaction_that_runs_twice_tells_it_once(database: Database, acme: Tenant) -> None:
    await second_endpoint(database, acme)
    joined = event(acme)

    await record(database, acme, joined)
    first = await deliveries(database)
    again = await record(database, acme, joined)

    assert again
    assert await deliveries(database) == first
    assert len(first) == 2
    assert all(ids.looks_like("dlv", str(row["id"])) for row in first)
    assert all(str(row["id"])[4:18] == joined.id[4:18] for row in first)


# Claiming


async def test_queues_with_something_due_are_found_the_longest_waiting_first(
    database: Database, acme: Tenant, globex: Tenant
) -> None:
    other = await second_endpoint(database, globex, ["message.received"])
    await record(database, globex, event(globex, EventType.MESSAGE_RECEIVED))
    await record(database, acme, event(acme), event(acme))
    now = datetime.now(UTC)
    for queue, ago in ((acme.queue, 10), (other, 20), (globex.queue, -10)):
        await database.run(
            lambda tx, queue=queue, ago=ago: tx.run(
                "update deliveries set due_at = $2 where endpoint_id = $1",
                queue.endpoint_id,
                now - timedelta(seconds=ago),
            )
        )

    everything = await database.run(lambda tx: outbox.due_queues(tx, now, 10))
    first = await database.run(lambda tx: outbox.due_queues(tx, now, 1))

    assert everything == [other, acme.queue]
    assert first == [other]


async def test_a_claim_has_all_that_sending_needs(database: Database, acme: Tenant, keyring: Keyring) -> None:
    joined = event(acme)
    await record(database, acme, joined)

    (claimed,) = await claim(database, acme.queue)

    endpoint = await database.run(lambda tx: accounts.default_endpoint(tx, acme.project.id))
    (stored,) = await database.run(lambda tx: tx.rows("select body from events"))
    assert claimed.queue == acme.queue
    assert (claimed.event_id, claimed.event_type) == (joined.id, "participant.joined")
    assert claimed.body == stored["body"]
    assert claimed.endpoint == endpoint
    assert claimed.number == 1
    assert claimed.livemode is False


async def test_a_claim_takes_the_longest_due_of_one_endpoint(
    database: Database, acme: Tenant, globex: Tenant
) -> None:
    await record(database, globex, event(globex))
    events = [event(acme) for _ in range(5)]
    for one in events:
        await record(database, acme, one)

    first = await claim(database, acme.queue, limit=3)
    rest = await claim(database, acme.queue, limit=3)

    assert [claimed.event_id for claimed in first] == [one.id for one in events[:3]]
    assert [claimed.event_id for claimed in rest] == [one.id for one in events[3:]]


async def test_an_endpoint_of_another_project_cannot_be_claimed_for(
    database: Database, acme: Tenant, globex: Tenant
) -> None:
    await record(database, acme, event(acme))

    claimed = await claim(database, Queue(globex.project.id, acme.queue.endpoint_id))

    assert claimed == []


async def test_two_that_claim_at_once_get_different_rows(database: Database, acme: Tenant) -> None:
    await record(database, acme, *[event(acme) for _ in range(10)])
    claimed_by_first = asyncio.Event()
    now = datetime.now(UTC)

    async def slowly(tx: Tx) -> list[Claimed]:
        found = await outbox.claim(tx, acme.queue, now, LEASE, 6)
        claimed_by_first.set()
        await second
        return found

    async def meanwhile() -> list[Claimed]:
        await claimed_by_first.wait()
        return await claim(database, acme.queue, limit=6)

    second = asyncio.ensure_future(meanwhile())
    first = await database.run(slowly)

    assert len(first) == 6
    assert len(second.result()) == 4
    assert not {it.id for it in first} & {it.id for it in second.result()}


async def test_what_is_not_settled_is_due_again_when_the_lease_ends(database: Database, acme: Tenant) -> None:
    await record(database, acme, event(acme))
    now = datetime.now(UTC)

    (first,) = await claim(database, acme.queue, now)
    during = await claim(database, acme.queue, now + LEASE - timedelta(milliseconds=1))
    (second,) = await claim(database, acme.queue, now + LEASE)

    assert during == []
    assert (second.id, second.body, second.number) == (first.id, first.body, 1)


@pytest.mark.parametrize("missing", ["events", "webhook_endpoints"])
async def test_a_claim_shows_what_is_gone(database: Database, acme: Tenant, missing: str) -> None:
    await record(database, acme, event(acme))
    await database.run(lambda tx: tx.run(f"delete from {missing}"))

    (claimed,) = await claim(database, acme.queue)

    assert (claimed.body is None) == (missing == "events")
    assert (claimed.endpoint is None) == (missing == "webhook_endpoints")


# Settling


async def test_a_delivered_one_ends_with_its_attempt(database: Database, acme: Tenant) -> None:
    await record(database, acme, event(acme))
    (claimed,) = await claim(database, acme.queue)

    ours = await settle(database, Settled(claimed=claimed, state=State.DELIVERED, attempt=attempt()))

    (delivery,) = await deliveries(database)
    (logged,) = await database.run(lambda tx: tx.rows("select * from delivery_attempts"))
    assert ours == [True]
    assert (delivery["state"], delivery["attempts"], delivery["due_at"]) == ("delivered", 1, None)
    assert delivery["ended_at"] == NOON + timedelta(milliseconds=12.5)
    assert dict(logged) == {
        "project_id": acme.project.id,
        "delivery_id": claimed.id,
        "number": 1,
        "outcome": "delivered",
        "status": 200,
        "error": None,
        "response_body": b"thank you",
        "address": "127.0.0.1",
        "elapsed_ms": 12.5,
        "attempted_at": NOON,
    }


async def test_one_that_failed_comes_back_at_its_time(database: Database, acme: Tenant) -> None:
    await record(database, acme, event(acme))
    (claimed,) = await claim(database, acme.queue)
    later = datetime.now(UTC) + timedelta(hours=2)

    await settle(
        database,
        Settled(claimed=claimed, state=State.PENDING, due_at=later, attempt=attempt("rejected")),
    )

    assert await claim(database, acme.queue, later - timedelta(seconds=1)) == []
    (again,) = await claim(database, acme.queue, later)
    assert again.number == 2


async def test_an_attempt_that_does_not_count_keeps_its_number(database: Database, acme: Tenant) -> None:
    await record(database, acme, event(acme))
    (claimed,) = await claim(database, acme.queue)

    await settle(database, Settled(claimed=claimed, state=State.PENDING, due_at=claimed.due_at))

    (again,) = await claim(database, acme.queue)
    assert again.number == 1
    assert again.due_at == claimed.due_at
    assert await count(database, "delivery_attempts") == 0


async def test_a_late_settling_changes_nothing(database: Database, acme: Tenant) -> None:
    await record(database, acme, event(acme), event(acme))
    now = datetime.now(UTC)
    both = await claim(database, acme.queue, now)
    (taken,) = await claim(database, acme.queue, now + LEASE, limit=1)
    lost, kept = sorted(both, key=lambda claimed: claimed.id != taken.id)
    before = await deliveries(database)

    ours = await settle(
        database,
        Settled(claimed=kept, state=State.DELIVERED, attempt=attempt()),
        Settled(claimed=lost, state=State.FAILED, attempt=attempt("aborted")),
    )

    after = await deliveries(database)
    (logged,) = await database.run(lambda tx: tx.rows("select delivery_id from delivery_attempts"))
    assert ours == [True, False]
    assert [row for row in after if row["id"] == lost.id] == [row for row in before if row["id"] == lost.id]
    assert logged["delivery_id"] == kept.id


async def test_an_error_text_of_any_kind_can_be_stored(database: Database, acme: Tenant) -> None:
    await record(database, acme, event(acme))
    (claimed,) = await claim(database, acme.queue)

    await settle(
        database,
        Settled(claimed=claimed, state=State.FAILED, attempt=attempt("protocol", error="a\0b\udc80c")),
    )

    (logged,) = await database.run(lambda tx: tx.rows("select error from delivery_attempts"))
    assert logged["error"] == "a\ufffdb?c"


# Disabling


async def test_a_disabled_endpoint_is_announced_once_to_the_others(database: Database, acme: Tenant) -> None:
    other = await second_endpoint(database, acme)

    async def disable(at: datetime) -> bool:
        event_id = ids.new("evt", at)
        return await database.run(
            lambda tx: outbox.disable_endpoint(tx, *acme.queue, "gone", event_id=event_id, at=at)
        )

    first, second = await asyncio.gather(disable(NOON), disable(NOON + timedelta(seconds=1)))

    (told,) = await claim(database, other)
    endpoint = await database.run(lambda tx: accounts.default_endpoint(tx, acme.project.id))
    assert sorted([first, second]) == [False, True]
    assert told.body is not None
    body = json.loads(told.body)
    assert body["event"] == "webhook_endpoint.disabled"
    assert body["payload"]["endpoint_id"] == acme.queue.endpoint_id
    assert body["payload"]["reason"] == endpoint.disabled_reason == "gone"
    assert endpoint.disabled_at is not None
    assert body["payload"]["since"] == iso(endpoint.disabled_at)
    assert await claim(database, acme.queue) == []


# Coming back


async def test_a_held_delivery_is_resumed_where_its_endpoint_is_back(
    database: Database, acme: Tenant, globex: Tenant
) -> None:
    both = [acme.queue, globex.queue]
    for one in (acme, globex):
        await record(database, one, event(one), event(one))
    hold = "update deliveries set state = 'held', due_at = null where project_id = any($1)"
    await database.run(lambda tx: tx.run(hold, [one.project_id for one in both]))
    disable = "update webhook_endpoints set disabled_at = now(), disabled_reason = 'gone' where id = $1"
    await database.run(lambda tx: tx.run(disable, globex.queue.endpoint_id))
    now = datetime.now(UTC)

    found = await database.run(lambda tx: outbox.queues_to_resume(tx, 10))
    resumed = [await database.run(lambda tx: outbox.resume(tx, acme.queue, now, 1)) for _ in range(3)]

    assert found == [acme.queue]
    assert resumed == [1, 1, 0]
    assert await database.run(lambda tx: outbox.queues_to_resume(tx, 10)) == []
    assert len(await claim(database, acme.queue)) == 2
    assert await claim(database, globex.queue) == []


# Plans


async def fill(database: Database, of: Sequence[Tenant], each: int) -> None:
    """A queue whose due backlog, parked retries and delivered rows are `each` per project."""
    now = datetime.now(UTC)
    states = (
        ("pending", now - timedelta(minutes=1)),
        ("pending", now + timedelta(hours=5)),
        ("delivered", None),
    )
    for number, one in enumerate(of):
        for state, due_at in states:
            await database.run(
                lambda tx, one=one, number=number, state=state, due_at=due_at: tx.run(
                    """
                    with made as (select $1 || $3 || $4::text || n::text as id from generate_series(1, $5::int) n),
                    events as (
                        insert into events (project_id, id, type, body, created_at)
                        select $1, id, 'participant.joined', repeat('x', 700)::bytea, now() from made)
                    insert into deliveries (project_id, id, event_id, endpoint_id, state, due_at, ended_at, created_at)
                    select $1, id, id, $2, $3, $6, case when $3 = 'delivered' then now() end, now() from made
                    """,
                    one.project.id,
                    one.queue.endpoint_id,
                    state,
                    str(number) if due_at is None or due_at < now else f"parked{number}",
                    each,
                    due_at,
                )
            )


@pytest.mark.parametrize("projects", [1, 20])
@pytest.mark.parametrize("statistics", [False, True])
async def test_hot_statements_keep_to_their_indexes(
    database: Database, keyring: Keyring, projects: int, statistics: bool
) -> None:
    tenants = [await tenant(database, keyring, f"Tenant {number}") for number in range(projects)]
    await fill(database, tenants, 20_000 // projects)
    if statistics:
        await database.run(lambda tx: tx.run("analyze"))
    one, now = tenants[-1], datetime.now(UTC)
    claimed = await claim(database, one.queue, limit=256)

    async def plan(tx: Tx, sql: str, *values: object) -> str:
        return "\n".join(row[0] for row in await tx.rows(f"explain {sql}", *values))

    look = await database.run(lambda tx: plan(tx, outbox.sql.any_due_queues, now, 1000))
    claiming = await database.run(lambda tx: plan(tx, outbox.sql.claim, *one.queue, now, now + LEASE, 256))
    finding = await database.run(lambda tx: plan(tx, outbox.sql.any_queues_to_resume, "", "", 10))
    walking = await database.run(lambda tx: plan(tx, outbox.sql.any_queues_after, "", "", 10))
    resuming = await database.run(lambda tx: plan(tx, outbox.sql.resume, *one.queue, now, 500, ""))
    settling = await database.run(
        lambda tx: plan(
            tx,
            outbox.sql.settle,
            one.project.id,
            claimed[0].id,
            claimed[0].lease,
            "delivered",
            1,
            None,
            now,
        )
    )

    # With a single endpoint both indexes on due_at are the same queue.
    assert f"Index Scan using deliveries_due{' on' if projects > 1 else ''}" in claiming
    assert "Index Scan using deliveries_pkey" in claiming
    assert "Index Scan using events_pkey" in claiming
    assert "Seq Scan on deliveries" not in claiming
    assert "deliveries_pkey" in settling
    assert "deliveries_due_anywhere" in look
    assert walking.count("using deliveries_due on") == 2
    assert "deliveries_held" in finding
    assert "deliveries_held" in resuming


async def test_a_claim_that_was_planned_in_an_empty_database_stays_fast(
    source: Source, database: Database, acme: Tenant
) -> None:
    lane = await source.connect(enable_seqscan="off", plan_cache_mode="force_generic_plan")
    await lane.execute(f"prepare claiming (text, text, timestamptz, timestamptz, int) as {outbox.sql.claim}")
    execute = f"execute claiming ('{acme.project.id}', '{acme.queue.endpoint_id}', now(), now() + interval '1 min', 64)"
    await lane.execute(execute)

    await fill(database, [acme], 2_000)

    plan = "\n".join(row[0] for row in await lane.fetch(f"explain {execute}"))
    await lane.close()
    assert "Index Cond: ((project_id = $1) AND (id = due.event_id))" in plan
    assert "Index Cond: ((project_id = $1) AND (id = ANY (" in plan
    assert "Join Filter" not in plan
