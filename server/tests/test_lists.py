"""Lists show what their filters say, page by page, also where a page may look at few rows only; and sweeps come to an end."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product
from typing import Any

import pytest
from world import ANA, BEN, App, Tenant, tenant

from wabery_server import ids, intents, outbox
from wabery_server.clock import MovableClock
from wabery_server.db import Database, Row, Tx, statistics
from wabery_server.intents import Status
from wabery_server.outbox import EventType
from wabery_server.settings import Settings
from wabery_server.worker import Survey, Sweep

GRACE = timedelta(minutes=5)


async def rows(app: App, query: str, *values: object) -> list[Row]:
    return await app.service.database.run(lambda tx: tx.rows(query, *values))


# Ids stand for times


def test_ids_are_bounded_by_the_time_they_were_made_at() -> None:
    dice = random.Random(7)
    moments = [
        datetime(2026, 6, 1, tzinfo=UTC) + timedelta(microseconds=dice.randrange(10**13)) for _ in range(300)
    ]
    moments += [one + timedelta(microseconds=dice.choice([1, 999, 1000, 1001])) for one in moments]
    made = [(at.replace(microsecond=at.microsecond // 1000 * 1000), ids.new("evt", at)) for at in moments]

    for since, until in pairwise(dice.sample(moments, 60)):
        least, end = ids.bounds("evt", None, since, until)
        inside = {one for _, one in made if least <= one < end}
        floor = since.replace(microsecond=since.microsecond // 1000 * 1000)
        assert inside == {one for at, one in made if floor <= at < until}


def test_bounds_take_any_time_and_keep_the_page_before() -> None:
    beginning, end_of_time = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)
    one = ids.new("evt", datetime.now(UTC))

    assert ids.bounds("evt", None, beginning, None)[0] <= one < ids.bounds("evt", None, None, end_of_time)[1]
    assert ids.bounds("evt", None, None, beginning)[1] <= one
    assert ids.bounds("evt", one, None, end_of_time)[1] == one
    assert ids.bounds("evt", one, None, None) == ("evt_", one)


# Filters


@pytest.fixture
def settings() -> Settings:
    """Without the limit of mints for a reference."""
    return Settings(
        secret_key_per_second=100_000,
        publishable_ip_per_minute=100_000,
        read_lanes=1,
        reference_per_hour=1000,
    )


async def populated(app: App, owner: Tenant, clock: MovableClock) -> list[Row]:
    """A project with intents of every status, some in their grace; the rows, newest first."""
    for number in range(24):
        reference = ("guest", f"user_{number}")[number % 3 == 0]
        intent = await app.mint(owner.secret_key, reference, expires_in=(60, 3600)[number % 2])
        if number % 5 == 0:
            await app.call("POST", f"/v1/registration-intents/{intent['id']}/cancel", owner.secret_key)
        elif number % 4 < 2:
            await app.say(owner, intent["token"], (ANA, BEN)[number % 2])
        if number == 8:
            clock.move(timedelta(minutes=10))
            await Sweep(
                app.service.database, app.service.signals, clock=clock, settings=app.service.settings
            ).turn_once()
    clock.move(timedelta(minutes=2))
    return await rows(app, "select * from registration_intents order by id desc")


async def every_page(
    app: App, owner: Tenant, which: intents.Filter, now: datetime, *, most: int
) -> list[str]:
    found: list[str] = []
    before: str | None = None
    for _ in range(200):
        at = before
        page = await app.service.database.run(
            lambda tx: intents.listed(tx, owner.project.id, which, now=now, before=at, limit=4, most=most)  # noqa: B023
        )
        found += [intent.id for intent in page.intents]
        before = page.resume if len(page.intents) < 4 else page.intents[-1].id
        if before is None:
            return found
    raise AssertionError("the list does not end")


async def test_whatever_the_filters_and_the_pages_a_list_of_intents_is_whole(
    app: App, clock: MovableClock
) -> None:
    owner = await tenant(app, "Acme", on_identity_linked="allow", references_per_contact=50, supersede=True)
    await tenant(app, "Globex")
    stored = await populated(app, owner, clock)
    now = clock.now()
    middle = stored[len(stored) // 2]
    until = stored[1]["created_at"].replace(microsecond=stored[1]["created_at"].microsecond // 1000 * 1000)
    contact = next(row["contact_id"] for row in stored if row["contact_id"])

    def shown(row: Row) -> str:
        return "EXPIRED" if row["status"] == "PENDING" and row["expires_at"] <= now else str(row["status"])

    assert {shown(row) for row in stored} == set(Status)
    assert any(shown(row) != row["status"] for row in stored)
    for status, reference, person, channel, since in product(
        [None, *Status],
        [None, "guest"],
        [None, contact],
        [None, owner.channel.id, "channel_x"],
        [None, middle["created_at"]],
    ):
        which = intents.Filter(
            status=status,
            customer_reference=reference,
            contact_id=person,
            channel_id=channel,
            created_after=since,
            created_before=until if since else None,
        )
        wanted = [
            row["id"]
            for row in stored
            if status in (None, shown(row))
            and reference in (None, row["customer_reference"])
            and person in (None, row["contact_id"])
            and channel in (None, row["channel_id"])
            and (
                since is None or row["id"][:14] >= middle["id"][:14] and row["id"][:14] < stored[1]["id"][:14]
            )
        ]
        for most in (1000, 3):
            if most == 3 and status == Status.EXPIRED:
                continue  # of those in their grace only so many are shown
            assert await every_page(app, owner, which, now, most=most) == wanted, which


async def test_whatever_the_filters_and_the_pages_a_list_of_events_is_whole(
    app: App, acme: Tenant, clock: MovableClock
) -> None:
    for number in range(10):
        intent = await app.mint(acme.secret_key, f"user_{number}")
        await app.say(acme, intent["token"] if number % 3 else "hello", (ANA, BEN)[number % 2])
    stored = await rows(app, "select * from events order by id desc")
    contact, named = (
        stored[0]["contact_id"],
        next(row["registration_intent_id"] for row in stored if row["registration_intent_id"]),
    )

    for kind, person, intent_id, most in product(
        [None, *{row["type"] for row in stored}], [None, contact], [None, named], [1000, 2]
    ):
        which = outbox.Filter(
            type=EventType(kind) if kind else None, contact_id=person, registration_intent_id=intent_id
        )
        found: list[str] = []
        before: str | None = None
        for _ in range(50):
            at = before
            page = await app.service.database.run(
                lambda tx: outbox.listed(tx, acme.project.id, which, before=at, limit=3, most=most)  # noqa: B023
            )
            found += [event.id for event in page.events]
            before = page.resume if len(page.events) < 3 else page.events[-1].id
            if before is None:
                break
        assert found == [
            row["id"]
            for row in stored
            if kind in (None, row["type"])
            and person in (None, row["contact_id"])
            and intent_id in (None, row["registration_intent_id"])
        ]


async def test_a_page_that_ends_early_says_how_to_go_on(app: App, acme: Tenant) -> None:
    """A thousand events of one person, and the rare ones are the oldest."""
    intent = await app.mint(acme.secret_key, "user_1")
    await app.say(acme, intent["token"], ANA)
    (joined,) = await rows(app, "select * from events")
    at = app.service.clock.now()
    await app.service.database.run(
        lambda tx: tx.rows_each(
            "insert into events (project_id, id, type, contact_id, body, created_at) values ($1, $2, $3, $4, $5, $6)",
            [
                (
                    acme.project.id,
                    ids.new("evt", at),
                    "message.received",
                    joined["contact_id"],
                    joined["body"],
                    at,
                )
                for _ in range(1001)
            ],
        )
    )
    path = f"/v1/events?type=participant.joined&contact_id={joined['contact_id']}"

    first = await app.call("GET", path, acme.secret_key)
    second = await app.call("GET", f"{path}&cursor={first.body['next_cursor']}", acme.secret_key)

    assert (first.body["data"], first.body["has_more"]) == ([], True)
    assert [one["id"] for one in second.body["data"]] == [joined["id"]]
    assert (second.body["has_more"], second.body["next_cursor"]) == (False, None)


# Sweeps that come to an end


async def pending(app: App) -> list[Row]:
    return await rows(app, "select id from registration_intents where status = 'PENDING'")


async def test_what_an_ended_key_or_channel_left_pending_is_ended_in_small_steps_and_then_forgotten(
    app: App, acme: Tenant, clock: MovableClock
) -> None:
    minted = [await app.mint(acme.secret_key, f"user_{number}") for number in range(7)]
    await rows(
        app,
        "update registration_intents set expires_at = $1 where id <> $2",
        clock.now() + GRACE,
        minted[0]["id"],
    )
    await rows(app, "update api_keys set revoked_at = $1 where id = $2", clock.now(), acme.key_id)
    sweep = Sweep(app.service.database, app.service.signals, clock=clock, settings=app.service.settings)

    await sweep.turn_once()
    assert await pending(app) == []
    reasons = await rows(app, "select distinct rejection_reason from registration_intents")
    assert [row[0] for row in reasons] == ["key_revoked"]
    assert await app.service.database.run(lambda tx: intents.ended_minters(tx, 10)) != {}
    clock.move(timedelta(minutes=2))
    await sweep.turn_once()

    assert await app.service.database.run(lambda tx: intents.ended_minters(tx, 10)) == {}


async def test_a_look_for_orphans_goes_on_after_those_of_one_moment(
    app: App, acme: Tenant, clock: MovableClock
) -> None:
    at = clock.now()
    for number in range(6):
        await app.mint(acme.secret_key, f"user_{number}")
    await rows(app, "update registration_intents set expires_at = $1", at + GRACE)
    later = await app.mint(acme.secret_key, "user_7")
    minter = intents.Minter(acme.project.id, acme.key_id, at, True)

    async def look(after: datetime | None) -> Any:
        return await app.service.database.run(
            lambda tx: intents.end_orphans(tx, acme.project.id, [minter], at, after=after, at_once=3)
        )

    first = await look(None)
    second = await look(first.after)

    assert (len(first.intent_ids), first.after) == (6, at + GRACE)
    assert (second.intent_ids, second.after) == ([later["id"]], None)


# Statistics


async def test_a_table_that_was_emptied_is_not_analysed_again_and_again(database: Database) -> None:
    async def make(tx: Tx) -> None:
        await tx.run("create table busy (n integer)")
        await tx.run("alter table busy set (autovacuum_enabled = off)")
        await tx.run("insert into busy select generate_series(1, 20000)")

    analysed: list[Sequence[str]] = []
    await database.run(make)
    analysed.append(await database.run(statistics.gather))
    await database.run(lambda tx: tx.run("delete from busy"))
    await database.run(lambda tx: tx.run("analyze busy"))
    for _ in range(3):
        analysed.append(await database.run(statistics.gather))

    assert analysed == [["busy"], [], [], []]


async def test_a_table_whose_rows_come_and_go_is_left_alone_for_a_while(database: Database) -> None:
    class Counted(Survey):
        turns = 0

        async def rest(self, seconds: float) -> None:
            self.turns += 1

    survey = Counted(database)
    await database.run(lambda tx: tx.run("create table busy as select generate_series(1, 20000) as n"))
    await database.run(lambda tx: tx.run("alter table busy set (autovacuum_enabled = off)"))
    await survey.turn()
    lately = dict(survey._lately)
    await database.run(lambda tx: tx.run("delete from busy"))
    await database.run(lambda tx: tx.run("analyze busy"))
    await database.run(lambda tx: tx.run("insert into busy select 1"))
    await survey.turn()

    assert set(lately) == {"busy"}
    assert survey._lately == lately
