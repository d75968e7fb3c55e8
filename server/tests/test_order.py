"""What waits for a lock decides by what it finds under the lock, and moments never run backwards.

The transactions here are held open on connections of their own, so that every order is made and none is hoped for.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from msgspec.structs import replace
from world import App, Tenant, serving, tenant

from wabery_server import contacts
from wabery_server.clock import MovableClock
from wabery_server.contacts import Identity, Meeting, Sender
from wabery_server.db import Database, Row, Source, Tx
from wabery_server.db.signals import Signals
from wabery_server.secrets import Keyring
from wabery_server.settings import Settings

ANA, BEN = "US.8120001", "DE.8120002"
PHONE = "12125550123"


@pytest.fixture
async def other(
    app: App, source: Source, settings: Settings, keyring: Keyring, clock: MovableClock
) -> AsyncIterator[App]:
    """A second server on the database of the first, whose clock is three seconds behind."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(source))
        signals = await stack.enter_async_context(Signals(source))
        behind = MovableClock(clock.offset - timedelta(seconds=3))
        yield await stack.enter_async_context(serving(settings, database, keyring, behind, signals))


async def rows(app: App, query: str, *values: object) -> list[Row]:
    return await app.service.database.run(lambda tx: tx.rows(query, *values))


async def waits_for_a_lock(app: App, how_many: int = 1) -> None:
    """Returns when so many transactions wait for a lock that another one holds."""
    async with asyncio.timeout(10):
        while (await rows(app, "select count(*) from pg_locks where not granted"))[0][0] < how_many:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # PostgreSQL has no event for it


@asynccontextmanager
async def held_open(app: App, work: Callable[[Tx], Awaitable[object]]) -> AsyncIterator[None]:
    """What `work` writes is done at once, and committed at the end of the block."""
    done, release = asyncio.Event(), asyncio.Event()

    async def hold(tx: Tx) -> None:
        await work(tx)
        done.set()
        await release.wait()

    running = asyncio.create_task(app.service.database.run(hold))
    waiting = asyncio.create_task(done.wait())
    await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
    try:
        yield
    finally:
        release.set()
        await running


def meeting(
    acme: Tenant, at: datetime, *people: Identity, scope: str = "w"
) -> Callable[[Tx], Awaitable[Meeting]]:
    senders = [Sender(acme.project.id, acme.channel.id, (scope,), one) for one in people]
    return lambda tx: contacts.meet(tx, senders, at)


async def met(app: App, acme: Tenant, *people: Identity, scope: str = "w") -> list[str]:
    work = meeting(acme, app.service.clock.now(), *people, scope=scope)
    return [one.contact.id for one in (await app.service.database.run(work)).met]


# Read again under the lock


BY_PARENT = Identity(parent_bsuid="US.ENT.1")


@pytest.mark.parametrize(
    ("owner", "next_owner", "writes", "is_new"),
    [
        (Identity(bsuid=ANA, phone=PHONE), Identity(bsuid=BEN, phone=PHONE), Identity(phone=PHONE), True),
        (Identity(bsuid=ANA, phone=PHONE), Identity(bsuid=BEN, phone=PHONE), Identity(phone=PHONE), False),
        (replace(BY_PARENT, bsuid=ANA), replace(BY_PARENT, bsuid=BEN), BY_PARENT, False),
        (
            replace(BY_PARENT, bsuid=ANA),
            replace(BY_PARENT, bsuid=BEN),
            replace(BY_PARENT, phone=PHONE),
            False,
        ),
    ],
)
async def test_a_message_that_waits_for_an_identifier_goes_to_its_next_owner(
    app: App, acme: Tenant, owner: Identity, next_owner: Identity, writes: Identity, is_new: bool
) -> None:
    (before,) = await met(app, acme, owner)
    if not is_new:
        await met(app, acme, Identity(bsuid=next_owner.bsuid))

    async with held_open(app, meeting(acme, app.service.clock.now(), next_owner)):
        message = asyncio.create_task(met(app, acme, writes))
        await waits_for_a_lock(app)
    (wrote,) = await message

    (today,) = await met(app, acme, Identity(bsuid=next_owner.bsuid))
    assert wrote == today != before


async def test_a_message_that_waits_for_a_contact_that_is_merged_goes_to_the_one_that_stays(
    app: App, acme: Tenant
) -> None:
    (old,) = await met(app, acme, Identity(bsuid=ANA), scope="w")
    (new,) = await met(app, acme, Identity(bsuid=ANA, phone=PHONE), scope="p")
    both = Sender(acme.project.id, acme.channel.id, ("p", "w"), Identity(bsuid=ANA))

    async with held_open(app, lambda tx: contacts.meet(tx, [both], app.service.clock.now())):
        message = asyncio.create_task(met(app, acme, Identity(phone=PHONE)))
        await waits_for_a_lock(app)

    assert await message == [old] != [new]


async def test_a_sender_whom_another_transaction_meets_meanwhile_is_one_contact(
    app: App, acme: Tenant
) -> None:
    people = [Identity(bsuid=ANA, phone=PHONE), Identity(bsuid=ANA), Identity(phone=PHONE)]

    async with held_open(app, meeting(acme, app.service.clock.now(), people[0])):
        messages = [asyncio.create_task(met(app, acme, one)) for one in people[1:]]
        await waits_for_a_lock(app, 2)
    found = await asyncio.gather(*messages)

    assert len({one for (one,) in found}) == 1
    assert (await rows(app, "select count(*) from contacts"))[0][0] == 1


async def test_an_identifier_that_nobody_holds_any_more_makes_a_new_contact(app: App, acme: Tenant) -> None:
    (before,) = await met(app, acme, Identity(phone=PHONE))
    tries = 0

    async def forget(tx: Tx) -> None:
        await tx.rows("select id from contacts for update")
        await tx.run("update identifiers set superseded_at = created_at")

    async def count(tx: Tx) -> Meeting:
        nonlocal tries
        tries += 1
        return await meeting(acme, app.service.clock.now(), Identity(phone=PHONE))(tx)

    async with held_open(app, forget):
        message = asyncio.create_task(app.service.database.run(count))
        await waits_for_a_lock(app)
    (after,) = (await message).met

    assert after.contact.id != before
    assert tries == 2


async def test_a_contact_is_locked_with_those_whose_links_may_yield(app: App, acme: Tenant) -> None:
    (ana,) = await met(app, acme, Identity(bsuid=ANA))
    at = app.service.clock.now()
    ben = Sender(acme.project.id, acme.channel.id, ("w",), Identity(bsuid=BEN))

    async with held_open(app, lambda tx: contacts.meet(tx, [ben], at, {(acme.project.id, ana)})):
        message = asyncio.create_task(met(app, acme, Identity(bsuid=ANA)))
        await waits_for_a_lock(app)
        assert not message.done()

    assert await message == [ana]


# Moments


async def test_of_two_joins_of_one_reference_the_later_one_has_the_later_moment(
    app: App, other: App, acme: Tenant
) -> None:
    first, second = [await app.mint(acme.secret_key, "user_123") for _ in range(2)]
    await app.say(acme, "hello", Identity(bsuid=ANA))

    async with held_open(app, lambda tx: tx.rows("select id from contacts for update")):
        waiting = asyncio.create_task(app.say(acme, first["token"], Identity(bsuid=ANA)))
        await waits_for_a_lock(app)
        assert await other.say(acme, second["token"], Identity(bsuid=BEN)) == {"joined": 1}
    assert await waiting == {"joined": 1}

    late, early = [await app.get(acme.secret_key, one["id"]) for one in (first, second)]
    assert late["joined_at"] > early["joined_at"]
    ended, active = await rows(app, "select created_at, ended_at from links order by created_at")
    assert ended["created_at"] < ended["ended_at"] <= active["created_at"]
    events = [
        event for event in await app.events(acme.project.id) if event["event"].startswith("participant.")
    ]
    told = {event["event"]: event["payload"]["created_at"] for event in events}
    assert told["participant.unlinked"] > early["joined_at"]
    assert told["participant.joined"] == late["joined_at"]


async def test_a_join_after_a_link_that_has_ended_is_later_than_its_end(
    app: App, other: App, acme: Tenant
) -> None:
    """The link that the reference had is gone, with a contact that the join never sees."""
    first, second = [await app.mint(acme.secret_key, "user_123") for _ in range(2)]
    await app.say(acme, "hello", Identity(bsuid=ANA))

    async with held_open(app, lambda tx: tx.rows("select id from contacts for update")):
        waiting = asyncio.create_task(other.say(acme, first["token"], Identity(bsuid=ANA)))
        await waits_for_a_lock(app)
        await app.say(acme, second["token"], Identity(bsuid=BEN))
        end = app.service.clock.now() + timedelta(seconds=5)
        await rows(app, "update links set ended_at = $1, end_reason = 'unlinked_by_app'", end)
    assert await waiting == {"joined": 1}

    joined = await app.get(acme.secret_key, first["id"])
    (active,) = await rows(app, "select created_at from links where ended_at is null")
    assert active["created_at"] > end
    assert datetime.fromisoformat(joined["joined_at"]) == active["created_at"]


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_repeated_join_of_one_person_is_later_on_a_server_whose_clock_is_behind(
    app: App, other: App, acme: Tenant, trusted: bool
) -> None:
    key = acme.secret_key if trusted else acme.publishable_key
    moments = []
    for server in (app, other, app, other):
        intent = await other.mint(key, "user_123")
        assert await server.say(acme, intent["token"], Identity(bsuid=ANA)) == {"joined": 1}
        moments.append((await app.get(acme.secret_key, intent["id"]))["joined_at"])

    assert moments == sorted(set(moments))


async def test_a_person_who_is_replaced_and_joins_again_is_later_each_time(app: App, other: App) -> None:
    owner = await tenant(app, "Acme", on_identity_linked="replace")
    for server, reference, who in [
        (app, "user_1", ANA),
        (other, "user_1", BEN),
        (other, "user_2", ANA),
        (other, "user_2", BEN),
        (app, "user_1", ANA),
    ]:
        intent = await other.mint(owner.secret_key, reference)
        assert await server.say(owner, intent["token"], Identity(bsuid=who)) == {"joined": 1}

    for column in ("customer_reference", "contact_id"):
        await assert_in_order(app, column)


async def assert_in_order(app: App, column: str) -> None:
    """The links of each reference, or contact, follow one another; the active one is the last."""
    found = await rows(app, f"select {column}, created_at, ended_at from links order by {column}, created_at")
    for before, after in pairwise(found):
        if before[column] == after[column]:
            assert before["ended_at"] is not None
            assert before["created_at"] < before["ended_at"] <= after["created_at"]


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_two_servers_do_at_once_no_link_begins_before_the_last_one_ended(
    app: App, other: App, seed: int
) -> None:
    owner = await tenant(app, "Acme", on_identity_linked="replace", supersede=True)
    dice = random.Random(seed)
    people = [Identity(bsuid=f"US.77{n:06}", phone=f"1212555{n:04}") for n in range(4)]

    async def player() -> None:
        for _ in range(12):
            minting, receiving = dice.choices([app, other], k=2)
            intent = await minting.mint(owner.secret_key, f"user_{dice.randrange(4)}")
            await receiving.say(owner, intent["token"], dice.choice(people), at=app.service.clock.now())

    async with asyncio.timeout(60):
        await asyncio.gather(*[player() for _ in range(6)])

    assert (await rows(app, "select count(*) from links"))[0][0] > 20
    for column in ("customer_reference", "contact_id"):
        await assert_in_order(app, column)
    for key in ("customer_reference", "contact_id"):
        events = [e for e in await app.events(owner.project.id) if e["event"].startswith("participant.")]
        for one in {event["payload"][key] for event in events}:
            joins = [
                event["payload"]["joined_at"]
                for event in events
                if event["event"] == "participant.joined" and event["payload"][key] == one
            ]
            assert len(joins) == len(set(joins))


def test_a_moment_is_later_than_all_that_is_known_in_whole_milliseconds() -> None:
    clock = datetime.fromisoformat("2026-06-27T12:00:00.000001Z")
    shown = datetime.fromisoformat("2026-06-27T12:00:00.001Z")

    assert contacts.moment(clock=clock, latest=[]) == shown
    assert contacts.moment(clock=shown, latest=[None]) == shown
    assert contacts.moment(clock=clock, latest=[shown, None, clock]) == shown + timedelta(milliseconds=1)


async def test_the_database_refuses_a_link_that_ends_before_it_begins(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    await app.say(acme, intent["token"])

    with pytest.raises(Exception, match="links_in_order"):
        await rows(app, "update links set ended_at = created_at - interval '1 ms', end_reason = 'replaced'")
    with pytest.raises(Exception, match="registration_intents_in_order"):
        await rows(app, "update registration_intents set joined_at = created_at - interval '1 ms'")


async def test_an_intent_of_a_server_whose_clock_is_ahead_can_be_cancelled_and_joined(
    app: App, other: App, acme: Tenant
) -> None:
    canceled, joined = [await app.mint(acme.secret_key, name) for name in ("user_1", "user_2")]

    reply = await other.call("POST", f"/v1/registration-intents/{canceled['id']}/cancel", acme.secret_key)
    counts = await other.say(acme, joined["token"], at=app.service.clock.now())

    assert (reply.status, counts) == (200, {"joined": 1})
    found = await rows(app, "select created_at, ended_at, joined_at from registration_intents")
    assert all(row["ended_at"] >= row["created_at"] for row in found)
