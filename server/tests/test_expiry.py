"""Time: what a reader sees of it, what a message that comes late finds, and how one waits for it to pass."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import aiohttp
import msgspec
import pytest
from world import ANA, BEN, INTENTS, App, Reply, Tenant, serving, tenant

from wabery_server import errors
from wabery_server.api import registration_intents, service
from wabery_server.clock import MovableClock
from wabery_server.db import Database, Source
from wabery_server.db.signals import Signals
from wabery_server.secrets import Keyring
from wabery_server.settings import Settings
from wabery_server.worker import Sweep

MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
GRACE = Settings().expiry_grace
PATIENCE = 15.0
"""Seconds after which a test gives up waiting, well below the 25 that a request may wait."""


@pytest.fixture
async def other(
    app: App, source: Source, settings: Settings, keyring: Keyring, clock: MovableClock
) -> AsyncIterator[App]:
    """A second server on the database of the first."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(source))
        signals = await stack.enter_async_context(Signals(source))
        yield await stack.enter_async_context(serving(settings, database, keyring, clock, signals))


@pytest.fixture
def only_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits looks again when told, and not by itself."""
    monkeypatch.setattr(service, "_LOOK_AGAIN_SECONDS", 60.0)


@pytest.fixture
def sweep(app: App, clock: MovableClock) -> Sweep:
    settings = Settings(sweep_every=timedelta(0))
    return Sweep(app.service.database, app.service.signals, clock=clock, settings=settings)


async def seen(app: App, owner: Tenant, intent: dict[str, Any]) -> tuple[str, str | None]:
    body = await app.get(owner.secret_key, intent["id"])
    return body["status"], body["phase"]


async def act(app: App, key: str, intent: dict[str, Any], what: str, **fields: object) -> Reply:
    return await app.call("POST", f"{INTENTS}/{intent['id']}/{what}", key, json=fields)


async def attempts(app: App) -> list[str | None]:
    rows = await app.service.database.run(lambda tx: tx.rows("select attempt from messages order by id"))
    return [row["attempt"] for row in rows]


def expires(intent: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(intent["expires_at"])


def pass_to(clock: MovableClock, moment: datetime) -> None:
    """Not a moment before: what the API shows has its microseconds cut off."""
    clock.move(moment + timedelta(milliseconds=1) - clock.now())


# What a reader sees


async def test_an_expired_intent_is_in_its_grace_first(app: App, acme: Tenant, clock: MovableClock) -> None:
    intent = await app.mint(acme.secret_key, expires_in=60)

    before = await seen(app, acme, intent)
    pass_to(clock, expires(intent))
    at_the_turn = await seen(app, acme, intent)
    pass_to(clock, expires(intent) + GRACE - 5 * SECOND)
    still = await seen(app, acme, intent)
    pass_to(clock, expires(intent) + GRACE)
    over = await seen(app, acme, intent)

    assert [before, at_the_turn, still, over] == [
        ("PENDING", None),
        ("EXPIRED", "grace"),
        ("EXPIRED", "grace"),
        ("EXPIRED", None),
    ]


async def test_a_list_agrees_with_what_reads_show(
    app: App, acme: Tenant, clock: MovableClock, sweep: Sweep
) -> None:
    swept = await app.mint(acme.secret_key, "swept", expires_in=60)
    clock.move(MINUTE + GRACE)
    await sweep.turn()
    over = await app.mint(acme.secret_key, "over", expires_in=60)
    clock.move(GRACE)
    grace = await app.mint(acme.secret_key, "grace", expires_in=60)
    clock.move(MINUTE)
    alive, joined = [await app.mint(acme.secret_key, name, expires_in=3600) for name in ("alive", "joined")]
    await app.say(acme, joined["token"])

    found: dict[str, dict[str, tuple[str, str | None]]] = {}
    for status in ("PENDING", "EXPIRED", "JOINED", "REJECTED"):
        reply = await app.call("GET", f"{INTENTS}?status={status}", acme.secret_key)
        found[status] = {one["id"]: (one["status"], one["phase"]) for one in reply.body["data"]}

    assert found == {
        "PENDING": {alive["id"]: await seen(app, acme, alive)},
        "EXPIRED": {one["id"]: await seen(app, acme, one) for one in (grace, over, swept)},
        "JOINED": {joined["id"]: await seen(app, acme, joined)},
        "REJECTED": {},
    }
    assert {status for status, _ in found["PENDING"].values()} == {"PENDING"}
    assert list(found["EXPIRED"].values()) == [("EXPIRED", "grace"), ("EXPIRED", None), ("EXPIRED", None)]


async def test_an_answer_is_sent_again_only_when_it_has_changed(
    app: App, acme: Tenant, clock: MovableClock
) -> None:
    intent = await app.mint(acme.secret_key, expires_in=60)
    path = f"{INTENTS}/{intent['id']}"

    async def again(tag: str) -> Reply:
        return await app.call("GET", path, acme.secret_key, headers={"If-None-Match": tag})

    first = await app.call("GET", path, acme.secret_key)
    same = await again(first.headers["ETag"])
    pass_to(clock, expires(intent))
    turned = await again(first.headers["ETag"])
    await app.say(acme, intent["token"], at=expires(intent) - 30 * SECOND)
    joined = await again(turned.headers["ETag"])

    assert (same.status, same.raw, same.headers["ETag"]) == (304, b"", first.headers["ETag"])
    assert (turned.status, turned.body["phase"]) == (200, "grace")
    assert (joined.status, joined.body["status"]) == (200, "JOINED")
    assert len({reply.headers["ETag"] for reply in (first, turned, joined)}) == 3


# What a message finds


async def test_a_message_that_was_sent_in_time_joins_during_the_grace(
    app: App, acme: Tenant, clock: MovableClock
) -> None:
    intent = await app.mint(acme.secret_key, expires_in=60)
    in_time = clock.now()
    pass_to(clock, expires(intent) + GRACE - 5 * SECOND)

    counts = await app.say(acme, intent["token"], at=in_time)

    assert counts == {"joined": 1}
    assert await seen(app, acme, intent) == ("JOINED", None)


@pytest.mark.parametrize("swept", [False, True])
async def test_a_message_that_arrives_after_the_grace_joins_nobody(
    app: App, acme: Tenant, clock: MovableClock, sweep: Sweep, *, swept: bool
) -> None:
    intent = await app.mint(acme.secret_key, expires_in=60)
    in_time = clock.now()
    pass_to(clock, expires(intent) + GRACE + SECOND)
    if swept:
        await sweep.turn()

    counts = await app.say(acme, intent["token"], at=in_time)

    assert counts == {"arrived_late": 1}
    assert await attempts(app) == ["arrived_late"]
    assert await seen(app, acme, intent) == ("EXPIRED", None)
    assert await app.events(acme.project.id, "participant.joined") == []


@pytest.mark.parametrize("late", [2 * SECOND, GRACE + MINUTE])
async def test_a_message_that_was_sent_after_the_expiry_joins_nobody(
    app: App, acme: Tenant, clock: MovableClock, late: timedelta
) -> None:
    intent = await app.mint(acme.secret_key, expires_in=60)
    pass_to(clock, expires(intent) + late)

    counts = await app.say(acme, intent["token"])

    assert counts == {"after_expiry": 1}
    assert await attempts(app) == ["after_expiry"]
    assert (await seen(app, acme, intent))[0] == "EXPIRED"


# Cancel and extend


async def test_a_cancel_during_the_grace_rejects(app: App, acme: Tenant, clock: MovableClock) -> None:
    intent = await app.mint(acme.secret_key, expires_in=60)
    in_time = clock.now()
    pass_to(clock, expires(intent))

    reply = await act(app, acme.secret_key, intent, "cancel")

    assert (reply.status, reply.body["status"], reply.body["phase"]) == (200, "REJECTED", None)
    assert reply.body["rejection_reason"] == "canceled_by_app"
    assert await app.say(acme, intent["token"], at=in_time) == {"after_cancel": 1}


@pytest.mark.parametrize("swept", [False, True])
async def test_a_cancel_after_the_grace_is_too_late(
    app: App, acme: Tenant, clock: MovableClock, sweep: Sweep, *, swept: bool
) -> None:
    intent = await app.mint(acme.secret_key, expires_in=60)
    pass_to(clock, expires(intent) + GRACE)
    if swept:
        await sweep.turn()

    reply = await act(app, acme.secret_key, intent, "cancel")

    assert (reply.status, reply.body["error"]) == (409, "not_pending")
    assert await seen(app, acme, intent) == ("EXPIRED", None)
    assert await app.events(acme.project.id, "registration_intent.rejected") == []


async def test_an_extended_intent_lives_longer_and_never_shorter(
    app: App, acme: Tenant, clock: MovableClock
) -> None:
    intent = await app.mint(acme.secret_key, expires_in=60)

    longer = (await act(app, acme.secret_key, intent, "extend", expires_in=3600)).body
    shorter = (await act(app, acme.secret_key, intent, "extend", expires_in=60)).body
    pass_to(clock, expires(longer) - MINUTE)

    assert timedelta(hours=1) <= expires(longer) - expires(intent) + MINUTE < timedelta(hours=1, minutes=1)
    assert shorter["expires_at"] == longer["expires_at"]
    assert await seen(app, acme, intent) == ("PENDING", None)
    assert await app.say(acme, intent["token"]) == {"joined": 1}


async def test_an_intent_lives_seven_days_at_most(app: App, acme: Tenant, clock: MovableClock) -> None:
    intent = await app.mint(acme.secret_key, expires_in=86_400)
    clock.move(timedelta(hours=12))

    longest = await act(app, acme.secret_key, intent, "extend", expires_in=604_800)
    more = await act(app, acme.secret_key, intent, "extend", expires_in=604_800)

    born = datetime.fromisoformat(intent["created_at"])
    assert (longest.status, expires(longest.body)) == (200, born + timedelta(days=7))
    assert (more.status, more.body["error"], more.body["param"]) == (
        400,
        "expires_in_out_of_range",
        "expires_in",
    )


async def test_a_page_asks_for_no_longer_life_than_its_project_gives(app: App, acme: Tenant) -> None:
    async def mint(key: str, expires_in: int) -> Reply:
        body = {"customer_reference": "user_123", "expires_in": expires_in}
        return await app.call("POST", INTENTS, key, json=body)

    longest, too_long, by_server = [
        await mint(acme.publishable_key, 1800),
        await mint(acme.publishable_key, 1801),
        await mint(acme.secret_key, 604_800),
    ]

    assert (longest.status, by_server.status) == (200, 200)
    assert (too_long.status, too_long.body["error"]) == (400, "expires_in_out_of_range")
    assert too_long.body["param"] == "expires_in"
    assert "1800 seconds" in too_long.body["message"]
    assert "publishable_expires_in" in too_long.body["hint"]


async def test_a_page_extends_an_intent_to_a_day_after_its_creation(app: App, clock: MovableClock) -> None:
    owner = await tenant(app, "Initech", publishable_expires_in=14 * 3600)
    intent = await app.mint(owner.publishable_key, expires_in=12 * 3600)
    born = datetime.fromisoformat(intent["created_at"])
    secret = {"x-wabery-client-secret": intent["client_secret"]}

    async def extend(key: str, headers: dict[str, str]) -> Reply:
        path = f"{INTENTS}/{intent['id']}/extend"
        return await app.call("POST", path, key, json={"expires_in": 604_800}, headers=headers)

    clock.move(timedelta(hours=1))
    now = clock.now()
    first = await extend(owner.publishable_key, secret)
    clock.move(timedelta(hours=11))
    last = await extend(owner.publishable_key, secret)
    more = await extend(owner.publishable_key, secret)
    by_server = await extend(owner.secret_key, {})

    assert -SECOND < expires(first.body) - now - timedelta(hours=14) < MINUTE
    assert expires(last.body) == born + timedelta(hours=24)
    assert (more.status, more.body["error"]) == (400, "expires_in_out_of_range")
    assert expires(by_server.body) == born + timedelta(days=7)


@pytest.mark.parametrize("past", [timedelta(0), GRACE])
async def test_an_expired_intent_is_not_extended(
    app: App, acme: Tenant, clock: MovableClock, past: timedelta
) -> None:
    intent = await app.mint(acme.secret_key, expires_in=60)
    pass_to(clock, expires(intent) + past)

    reply = await act(app, acme.secret_key, intent, "extend", expires_in=3600)

    assert (reply.status, reply.body["error"]) == (409, "not_pending")
    assert (await app.get(acme.secret_key, intent["id"]))["expires_at"] == intent["expires_at"]


# The sweeper


async def test_the_sweeper_ends_after_the_grace_and_tells_once(
    app: App, acme: Tenant, globex: Tenant, clock: MovableClock, sweep: Sweep
) -> None:
    due = [await app.mint(owner.secret_key, expires_in=60) for owner in (acme, globex)]
    joined, alive = (
        await app.mint(acme.secret_key, expires_in=60),
        await app.mint(acme.secret_key, expires_in=3600),
    )
    await app.say(acme, joined["token"])
    pass_to(clock, expires(joined) + GRACE - 5 * SECOND)
    await sweep.turn()
    too_early = await app.events(acme.project.id, "registration_intent.expired")
    clock.move(6 * SECOND)

    await asyncio.gather(sweep.turn(), sweep.turn())
    await sweep.turn()

    assert too_early == []
    for owner, intent in zip((acme, globex), due, strict=True):
        (event,) = await app.events(owner.project.id, "registration_intent.expired")
        assert event["payload"]["registration_intent_id"] == intent["id"]
        shown = event["payload"]["registration_intent"]
        assert (shown["status"], shown["phase"], "token" in shown) == ("EXPIRED", None, False)
    assert await seen(app, acme, joined) == ("JOINED", None)
    assert await seen(app, acme, alive) == ("PENDING", None)


# Waiting


async def wait(app: App, key: str, intent: dict[str, Any], seconds: int = 25) -> Reply:
    async with asyncio.timeout(PATIENCE):
        return await app.call("GET", f"{INTENTS}/{intent['id']}?wait={seconds}", key)


@asynccontextmanager
async def waiting(app: App, key: str, intent: dict[str, Any], many: int = 1) -> AsyncIterator[list[Reply]]:
    """So many requests wait while the block runs; their answers are there behind it."""
    replies: list[Reply] = []
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(wait(app, key, intent)) for _ in range(many)]
        await watched(app, intent, many)
        yield replies
    replies += [task.result() for task in asked]


async def watched(app: App, intent: dict[str, Any], many: int) -> None:
    """Until so many wait for this intent."""
    async with asyncio.timeout(PATIENCE):
        while len(app.service.watch._waiting.get(intent["id"], ())) != many:  # noqa: ASYNC110  # the watch tells nobody who has come
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("only_hints")
async def test_who_leaves_while_waiting_gives_the_place_up(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    leaving = asyncio.create_task(app.call("GET", f"{INTENTS}/{intent['id']}?wait=25", acme.secret_key))
    await watched(app, intent, 1)

    leaving.cancel()

    await watched(app, intent, 0)  # sooner than the 25 seconds it asked for


@pytest.mark.usefixtures("only_hints")
async def test_everybody_who_waits_hears_of_a_join(app: App, other: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)

    async with (
        waiting(app, acme.secret_key, intent, 2) as here,
        waiting(other, acme.publishable_key, intent) as there,
    ):
        await app.say(acme, intent["token"])

    assert [reply.body["status"] for reply in here + there] == ["JOINED"] * 3
    assert here[0].raw == here[1].raw


@pytest.mark.usefixtures("only_hints")
async def test_who_waits_hears_of_a_cancel(app: App, other: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)

    async with waiting(app, acme.publishable_key, intent) as replies:
        await act(other, acme.secret_key, intent, "cancel")

    assert (replies[0].body["status"], replies[0].body["rejection_reason"]) == ("REJECTED", "canceled")


@pytest.mark.usefixtures("only_hints")
async def test_who_waits_is_answered_at_the_turn(app: App, acme: Tenant, clock: MovableClock) -> None:
    intent = await app.mint(acme.secret_key, expires_in=60)
    pass_to(clock, expires(intent) - SECOND)
    grace = await wait(app, acme.secret_key, intent)
    pass_to(clock, expires(intent) + GRACE - SECOND)
    over = await wait(app, acme.secret_key, intent)

    assert [(reply.body["status"], reply.body["phase"]) for reply in (grace, over)] == [
        ("EXPIRED", "grace"),
        ("EXPIRED", None),
    ]


@pytest.mark.parametrize("end", ["joined", "canceled", "expired"])
async def test_what_is_final_is_not_waited_for(app: App, acme: Tenant, clock: MovableClock, end: str) -> None:
    intent = await app.mint(acme.secret_key, expires_in=60)
    if end == "joined":
        await app.say(acme, intent["token"])
    elif end == "canceled":
        await act(app, acme.secret_key, intent, "cancel")
    else:
        pass_to(clock, expires(intent) + GRACE)

    reply = await wait(app, acme.secret_key, intent)

    assert reply.body["status"] in ("JOINED", "REJECTED", "EXPIRED")
    assert reply.raw == (await app.call("GET", f"{INTENTS}/{intent['id']}", acme.secret_key)).raw


async def test_who_has_waited_long_enough_is_told_that_nothing_changed(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)

    reply = await wait(app, acme.secret_key, intent, 1)

    assert (reply.status, reply.body["status"]) == (200, "PENDING")


@pytest.mark.usefixtures("only_hints")
async def test_ten_may_wait_for_one_intent(app: App, acme: Tenant) -> None:
    intent, another = [await app.mint(acme.secret_key, name) for name in ("user_1", "user_2")]

    async with waiting(app, acme.secret_key, intent, service.MAX_WAITERS_PER_INTENT) as replies:
        refused = await wait(app, acme.secret_key, intent)
        stream = await app.call("GET", f"{INTENTS}/{intent['id']}/events", acme.secret_key)
        plain = await seen(app, acme, intent)
        elsewhere = await wait(app, acme.secret_key, another, 1)
        await app.say(acme, intent["token"])

    for reply in (refused, stream):
        assert (reply.status, reply.body["error"]) == (429, "rate_limited")
        assert reply.headers["Retry-After"] == "2"
    assert (plain, elsewhere.status) == (("PENDING", None), 200)
    assert [reply.body["status"] for reply in replies] == ["JOINED"] * 10


@pytest.mark.usefixtures("only_hints")
async def test_a_server_that_stops_answers_who_waits(app: App, other: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)

    async with waiting(other, acme.secret_key, intent, 2) as replies, following(other, acme, intent) as lines:
        await anext(lines)
        await other.service.drain()
        left = [line async for line in lines]

    assert [(reply.status, reply.body["status"]) for reply in replies] == [(200, "PENDING")] * 2
    assert left == []


# The stream


@asynccontextmanager
async def following(
    app: App, owner: Tenant, intent: dict[str, Any], key: str | None = None
) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """The states that a stream tells, while it is open."""
    headers = {"Authorization": f"Bearer {key or owner.secret_key}"}
    url = f"{app.base_url}{INTENTS}/{intent['id']}/events"
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with app.web.get(url, headers=headers, timeout=timeout) as answer:
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
        yield states(answer)


async def states(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream; its comments are left out."""
    whole = b""
    async for line in answer.content:
        whole += line
        if whole.endswith(b"\n\n") and whole.startswith(b":"):
            whole = b""
        elif whole.endswith(b"\n\n"):
            name, data = whole.rstrip().split(b"\n")
            assert name == b"event: registration_intent"
            yield msgspec.json.decode(data.removeprefix(b"data: "))
            whole = b""


@pytest.mark.usefixtures("only_hints")
async def test_a_stream_tells_the_first_state_the_change_and_ends(app: App, other: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)

    async with following(app, acme, intent) as told:
        first = await anext(told)
        await other.say(acme, intent["token"])
        rest = [state async for state in told]

    assert first["status"] == "PENDING"
    assert rest == [await app.get(acme.secret_key, intent["id"])]
    assert rest[0]["status"] == "JOINED"
    assert app.service.watch._waiting == {}


async def test_a_stream_tells_the_turn_and_the_end_of_the_grace(
    app: App, acme: Tenant, clock: MovableClock
) -> None:
    intent = await app.mint(acme.secret_key, expires_in=60)
    pass_to(clock, expires(intent) - SECOND)

    async with following(app, acme, intent) as told:
        seen_so_far = [await anext(told), await anext(told)]
        pass_to(clock, expires(intent) + GRACE)
        seen_so_far += [state async for state in told]

    assert [(state["status"], state["phase"]) for state in seen_so_far] == [
        ("PENDING", None),
        ("EXPIRED", "grace"),
        ("EXPIRED", None),
    ]


async def test_a_stream_of_what_is_final_ends_at_once(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    await app.say(acme, intent["token"])

    async with following(app, acme, intent) as told:
        states = [state["status"] async for state in told]

    assert states == ["JOINED"]


async def test_a_stream_in_which_nothing_happens_says_that_it_is_there_and_ends_after_a_while(
    app: App, acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration_intents, "_BEAT_SECONDS", 0.01)
    monkeypatch.setattr(registration_intents, "_STREAM_SECONDS", 0.05)
    intent = await app.mint(acme.secret_key)

    async with asyncio.timeout(PATIENCE):
        reply = await app.call("GET", f"{INTENTS}/{intent['id']}/events", acme.secret_key)

    told, *beats, rest = reply.raw.split(b"\n\n")
    assert told.startswith(b"event: registration_intent\ndata: {")
    assert set(beats) == {b": still here"}
    assert rest == b""
    assert reply.headers["X-Accel-Buffering"] == "no"
    assert app.service.watch._waiting == {}


@pytest.mark.usefixtures("only_hints")
async def test_ten_may_follow_one_intent_though_they_come_at_once(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    url = f"{app.base_url}{INTENTS}/{intent['id']}/events"
    headers = {"Authorization": f"Bearer {acme.secret_key}"}
    async with app.web.head(url, headers=headers) as looked:
        await watched(app, intent, 0)

    answers = await asyncio.gather(*(app.web.get(url, headers=headers) for _ in range(30)))
    await app.say(acme, intent["token"])
    ends = [await answer.read() for answer in answers if answer.status == 200]

    assert looked.status == 200
    assert Counter(answer.status for answer in answers) == {200: service.MAX_WAITERS_PER_INTENT, 429: 20}
    assert all(b'"status":"JOINED"' in end for end in ends)


async def test_a_stream_ends_where_the_database_is_gone(
    app: App, acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    intent = await app.mint(acme.secret_key)

    async def gone(_project_id: str, _intent_id: str) -> None:
        raise errors.Unavailable

    async with following(app, acme, intent) as told:
        first = await anext(told)
        monkeypatch.setattr(app.service, "find", gone)
        app.service.changed([intent["id"]])
        rest = [state async for state in told]

    assert (first["status"], rest) == ("PENDING", [])
    assert app.service.watch._waiting == {}


@pytest.mark.usefixtures("only_hints")
async def test_a_stream_that_nobody_reads_any_more_takes_nobodys_place(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)

    for _ in range(service.MAX_WAITERS_PER_INTENT + 1):
        async with following(app, acme, intent) as told:
            await anext(told)
        await watched(app, intent, 0)

    assert (await wait(app, acme.secret_key, intent, 1)).status == 200


# The page


async def test_the_first_opening_and_the_last_way_are_kept(
    app: App, acme: Tenant, clock: MovableClock
) -> None:
    intent = await app.mint(acme.publishable_key)
    path = f"{INTENTS}/{intent['id']}/opened"
    secret = {"x-wabery-client-secret": intent["client_secret"]}

    async def opened(via: str) -> dict[str, Any]:
        reply = await app.call("POST", path, acme.publishable_key, json={"via": via}, headers=secret)
        assert reply.status == 200, reply.body
        return await app.get(acme.secret_key, intent["id"])

    unopened = await app.get(acme.secret_key, intent["id"])
    first = await opened("qr")
    clock.move(MINUTE)
    second = await opened("link")
    without = await app.call("POST", path, acme.publishable_key, json={"via": "copy"})

    assert (unopened["opened_at"], unopened["opened_via"]) == (None, None)
    assert first["opened_at"] is not None
    assert (first["opened_via"], second["opened_via"]) == ("qr", "link")
    assert second["opened_at"] == first["opened_at"]
    assert (without.status, without.body["error"]) == (403, "insufficient_scope")
    assert await app.get(acme.secret_key, intent["id"]) == second


async def test_a_page_extends_and_cancels_what_it_minted(app: App, acme: Tenant) -> None:
    intent, another = [await app.mint(acme.publishable_key, name) for name in ("user_1", "user_2")]
    secret = {"x-wabery-client-secret": intent["client_secret"]}

    async def ask(which: dict[str, Any], what: str) -> Reply:
        path = f"{INTENTS}/{which['id']}/{what}"
        return await app.call("POST", path, acme.publishable_key, headers=secret)

    extended, canceled = await ask(intent, "extend"), await ask(intent, "cancel")
    foreign = [await ask(another, what) for what in ("extend", "cancel")]

    assert expires(extended.body) >= expires(intent)
    assert (canceled.body["status"], canceled.body["rejection_reason"]) == ("REJECTED", "canceled")
    assert [reply.status for reply in foreign] == [403, 403]
    assert await app.say(acme, another["token"], BEN) == {"joined": 1}
    assert await app.say(acme, intent["token"], ANA) == {"after_cancel": 1}
