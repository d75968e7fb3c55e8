"""Many at once: whatever the order, one of them wins, and everybody is told the same story afterwards."""

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from world import ANA, BEN, INTENTS, App, Reply, Tenant, serving, tenant

from wabery_server import intents
from wabery_server.clock import MovableClock
from wabery_server.contacts import Identity
from wabery_server.db import Database, Lane, Row, Source, Work
from wabery_server.db.signals import Signals
from wabery_server.phone import payloads
from wabery_server.secrets import Keyring
from wabery_server.settings import Settings

T = TypeVar("T")


@pytest.fixture
async def other(
    app: App, source: Source, settings: Settings, keyring: Keyring, clock: MovableClock
) -> AsyncIterator[App]:
    """A second server on the database of the first, with nothing in common but the rows."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(source))
        signals = await stack.enter_async_context(Signals(source))
        yield await stack.enter_async_context(serving(settings, database, keyring, clock, signals))


def person(number: int) -> Identity:
    return Identity(bsuid=f"US.77{number:06}", phone=f"1212555{number:04}", profile_name=f"P{number}")


def batch(owner: Tenant, messages: Sequence[tuple[str, Identity, str]], app: App) -> bytes:
    """One webhook with many messages: (text, sender, message id)."""
    whole: dict[str, Any] = {}
    for text, sender, message_id in messages:
        one = msgspec.json.decode(
            payloads.meta_text(
                phone_number_id=owner.channel.phone_number_id,
                display_phone_number=owner.channel.display_phone_number,
                waba_id=owner.channel.waba_id,
                text=text,
                sender=sender,
                message_id=message_id,
                at=app.service.clock.now(),
            )
        )
        if not whole:
            whole = one
            continue
        value = whole["entry"][0]["changes"][0]["value"]
        more = one["entry"][0]["changes"][0]["value"]
        value["contacts"] += more["contacts"]
        value["messages"] += more["messages"]
    return msgspec.json.encode(whole)


async def rows(app: App, query: str, *values: object) -> list[Row]:
    return await app.service.database.run(lambda tx: tx.rows(query, *values))


async def count(app: App, table: str, condition: str = "true") -> int:
    return int((await rows(app, f"select count(*) from {table} where {condition}"))[0][0])


def summed(outcomes: Sequence[Any]) -> Counter[str]:
    total: Counter[str] = Counter()
    for outcome in outcomes:
        total.update(outcome)
    return total


async def ended(app: App, owner: Tenant, kind: str) -> Counter[str]:
    """How often each intent is named by events of this type."""
    return Counter(
        [event["payload"]["registration_intent_id"] for event in await app.events(owner.project.id, kind)]
    )


async def cancel(app: App, owner: Tenant, intent_id: str) -> Reply:
    return await app.call("POST", f"{INTENTS}/{intent_id}/cancel", owner.secret_key)


@pytest.mark.parametrize("servers", [1, 2])
async def test_of_64_senders_with_one_token_exactly_one_joins(
    app: App, other: App, acme: Tenant, servers: int
) -> None:
    intent = await app.mint(acme.secret_key, "user_123")
    at = [app, other][:servers]

    outcomes = await asyncio.gather(
        *[at[n % servers].say(acme, intent["token"], person(n)) for n in range(64)]
    )

    assert summed(outcomes) == {"joined": 1, "already_used_other_sender": 63}
    joined = await app.get(acme.secret_key, intent["id"])
    assert joined["status"] == "JOINED"
    (link,) = await rows(app, "select contact_id from links")
    assert link["contact_id"] == joined["contact_id"]
    (event,) = await app.events(acme.project.id, "participant.joined")
    assert event["payload"]["contact_id"] == joined["contact_id"]
    (reuse,) = await app.events(acme.project.id, "security.token_reuse")
    assert (reuse["payload"]["contact_id"] != joined["contact_id"], reuse["payload"]["count"]) == (True, 1)
    assert [
        row["reuse_count"] for row in await rows(app, "select reuse_count from registration_intents")
    ] == [63]
    assert await count(app, "deliveries") == 2


@pytest.mark.parametrize("text", ["a token", "Where is my order?"])
async def test_a_message_that_is_delivered_16_times_at_once_is_kept_once(
    app: App, other: App, acme: Tenant, text: str
) -> None:
    if text == "a token":
        text = (await app.mint(acme.secret_key))["token"]
    body = batch(acme, [(text, ANA, "wamid.same")], app)

    outcomes = await asyncio.gather(*[[app, other][n % 2].deliver(acme, body) for n in range(16)])

    total = summed(outcomes)
    assert total.pop("duplicate") == 15
    assert total.total() == 1
    assert await count(app, "messages") == await count(app, "events") == await count(app, "contacts") == 1


async def test_two_servers_that_receive_the_same_batches_store_each_message_once(
    app: App, other: App, acme: Tenant
) -> None:
    minted = [await app.mint(acme.secret_key, f"user_{n}") for n in range(40)]
    messages = [(one["token"], person(n), f"wamid.{n}") for n, one in enumerate(minted)]
    messages += [("hello", person(n), f"wamid.hello.{n}") for n in range(40)]
    batches = []
    for seed in range(6):
        random.Random(seed).shuffle(messages)
        batches.append(batch(acme, messages, app))

    outcomes = await asyncio.gather(
        *[[app, other][n % 2].deliver(acme, body) for n, body in enumerate(batches)]
    )

    assert summed(outcomes) == {"joined": 40, "passed_on": 40, "duplicate": 5 * 80}
    assert await count(app, "messages") == 80
    assert (
        await count(app, "contacts") == await count(app, "conversations") == await count(app, "links") == 40
    )
    assert len(await app.events(acme.project.id, "participant.joined")) == 40
    assert len(await app.events(acme.project.id, "message.received")) == 40


async def test_eight_live_tokens_from_eight_senders_in_one_post_are_eight_joins(
    app: App, acme: Tenant
) -> None:
    minted = [await app.mint(acme.secret_key, f"user_{n}") for n in range(8)]
    body = batch(acme, [(one["token"], person(n), f"wamid.{n}") for n, one in enumerate(minted)], app)

    counts = await app.deliver(acme, body)

    assert counts == {"joined": 8}
    assert [(await app.get(acme.secret_key, one["id"]))["status"] for one in minted] == ["JOINED"] * 8
    events = await app.events(acme.project.id, "participant.joined")
    assert {event["payload"]["customer_reference"] for event in events} == {f"user_{n}" for n in range(8)}


async def test_one_token_that_comes_twice_in_one_post_joins_once(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    body = batch(acme, [(intent["token"], who, f"wamid.{who.bsuid}") for who in (ANA, BEN, ANA)], app)

    counts = await app.deliver(acme, body)

    assert counts == {"joined": 1, "already_used_other_sender": 1, "duplicate": 1}
    assert (await app.get(acme.secret_key, intent["id"]))["identity"]["country"] == "US"


async def test_a_poisoned_message_is_stored_with_its_error_and_stops_no_other(app: App, acme: Tenant) -> None:
    await rows(app, "alter table identifiers add check (value <> '12125550003')")
    minted = [await app.mint(acme.secret_key, f"user_{n}") for n in range(8)]
    body = batch(acme, [(one["token"], person(n), f"wamid.{n}") for n, one in enumerate(minted)], app)

    counts = await app.deliver(acme, body)
    again = await app.deliver(acme, body)

    assert counts == {"joined": 7, "failed": 1}
    assert again == {"duplicate": 8}
    statuses = [(await app.get(acme.secret_key, one["id"]))["status"] for one in minted]
    assert statuses == ["JOINED"] * 3 + ["PENDING"] + ["JOINED"] * 4
    (kept,) = await rows(app, "select * from messages where error is not null")
    assert (kept["provider_message_id"], kept["kind"], kept["error"], kept["text"]) == (
        "wamid.3",
        "unreadable",
        "CheckViolationError",
        None,
    )


async def test_a_message_that_the_database_refuses_is_quoted_in_no_log(
    app: App, acme: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    await rows(app, "alter table messages add check (length(text) <> 16)")
    log = Path(os.environ["WABERY_TEST_CLUSTER"]) / "postgres.log"
    before = log.stat().st_size

    counts = await app.deliver(acme, batch(acme, [("my secret hobby.", ANA, "wamid.1")], app))

    said_by_postgres = log.read_bytes()[before:].decode()
    assert counts == {"failed": 1}
    assert "inbound_failed" in caplog.text
    assert 'violates check constraint "messages_text_check"' in said_by_postgres
    assert "secret hobby" not in caplog.text + said_by_postgres
    assert ANA.phone is not None
    assert ANA.phone not in caplog.text


@pytest.mark.parametrize("neighbours", [0, 7])
async def test_a_message_that_cannot_even_be_stored_as_failed_is_asked_for_again(
    app: App, acme: Tenant, neighbours: int
) -> None:
    await rows(app, "alter table messages add constraint odd check (provider_message_id <> 'wamid.odd')")
    minted = [await app.mint(acme.secret_key, f"user_{n}") for n in range(neighbours)]
    messages = [(one["token"], person(n), f"wamid.{n}") for n, one in enumerate(minted)]
    body = batch(acme, [*messages, ("hello", ANA, "wamid.odd")], app)
    headers = payloads.sign(acme.app_secret.encode(), body)

    reply = await app.call("POST", "/inbound/whatsapp", data=body, headers=headers)
    stored = await count(app, "messages")
    await rows(app, "alter table messages drop constraint odd")
    again = await app.deliver(acme, body)

    assert (reply.status, reply.body["error"], stored) == (503, "unavailable", neighbours)
    assert again == {"passed_on": 1} | ({"duplicate": neighbours} if neighbours else {})
    assert len(await app.events(acme.project.id, "participant.joined")) == neighbours


async def test_two_identifiers_of_one_person_in_one_post_are_one_contact(app: App, acme: Tenant) -> None:
    await app.say(acme, "hello", ANA)
    by_phone, by_name = Identity(phone=ANA.phone), Identity(bsuid=ANA.bsuid)
    first, second = [await app.mint(acme.secret_key, name) for name in ("user_1", "user_2")]
    body = batch(acme, [(first["token"], by_phone, "wamid.1"), (second["token"], by_name, "wamid.2")], app)

    counts = await app.deliver(acme, body)

    assert counts == {"joined": 1, "rejected": 1}
    assert await count(app, "contacts") == await count(app, "links") == 1
    rejected = await app.get(acme.secret_key, second["id"])
    assert rejected["rejection_reason"] == "identity_already_linked"


async def test_a_cancel_and_a_message_at_once_end_an_intent_one_way(
    app: App, other: App, acme: Tenant
) -> None:
    minted = [await app.mint(acme.secret_key, f"user_{n}") for n in range(24)]

    async def race(number: int, intent: dict[str, Any]) -> tuple[Reply, dict[str, int]]:
        said = app.say(acme, intent["token"], person(number))
        ended = cancel(other, acme, intent["id"])
        if number % 2:
            message, reply = await asyncio.gather(said, ended)
        else:
            reply, message = await asyncio.gather(ended, said)
        return reply, message

    ends = await asyncio.gather(*[race(number, intent) for number, intent in enumerate(minted)])

    for intent, (reply, message) in zip(minted, ends, strict=True):
        status = (await app.get(acme.secret_key, intent["id"]))["status"]
        if status == "JOINED":
            assert (reply.status, reply.body["error"], message) == (409, "already_joined", {"joined": 1})
        else:
            assert (status, reply.status, message) == ("REJECTED", 200, {"after_cancel": 1})
    told = await ended(app, acme, "participant.joined") + await ended(
        app, acme, "registration_intent.rejected"
    )
    assert told == {intent["id"]: 1 for intent in minted}


async def test_the_sweeper_and_a_message_at_once_end_an_intent_one_way(
    app: App, acme: Tenant, clock: MovableClock, settings: Settings
) -> None:
    minted = [await app.mint(acme.secret_key, f"user_{n}", expires_in=60) for n in range(24)]
    in_time = clock.now()
    clock.move(timedelta(seconds=59) + settings.expiry_grace)
    after_grace = clock.now() + timedelta(seconds=2)

    async def sweep() -> list[str]:
        return await app.service.database.run(
            lambda tx: intents.expire_due(tx, acme.project.id, after_grace, settings.expiry_grace, 4)
        )

    moves = [
        app.say(acme, intent["token"], person(n), at=in_time) if n % 4 else sweep()
        for n, intent in enumerate(minted)
    ]
    await asyncio.gather(*moves)

    joined = set(await ended(app, acme, "participant.joined"))
    expired = set(await ended(app, acme, "registration_intent.expired"))
    assert not joined & expired
    late = await rows(app, "select registration_intent_id as id from messages where attempt = 'arrived_late'")
    assert {row["id"] for row in late} <= expired
    by_status = {
        row["id"]: row["status"] for row in await rows(app, "select id, status from registration_intents")
    }
    assert {i for i, status in by_status.items() if status == "JOINED"} == joined
    assert {i for i, status in by_status.items() if status == "EXPIRED"} == expired
    assert await count(app, "messages") == 18


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}])
async def test_mints_at_once_are_as_many_intents_as_they_have_idempotency_keys(
    app: App, other: App, acme: Tenant, headers: dict[str, str]
) -> None:
    async def mint(number: int) -> Reply:
        body = {"customer_reference": "user_123" if headers else f"user_{number}"}
        return await [app, other][number % 2].call(
            "POST", INTENTS, acme.secret_key, json=body, headers=headers
        )

    replies = await asyncio.gather(*[mint(number) for number in range(16)])

    assert {reply.status for reply in replies} == {200}
    replayed = [reply for reply in replies if reply.headers.get("Idempotency-Replayed") == "true"]
    different = {reply.raw for reply in replies}
    assert (len(different), len(replayed)) == ((1, 15) if headers else (16, 0))
    assert await count(app, "registration_intents") == len(different)


async def test_a_write_that_is_sent_16_times_at_once_takes_effect_once(
    app: App, other: App, acme: Tenant
) -> None:
    async def make(number: int) -> Reply:
        at = [app, other][number % 2]
        return await at.call(
            "POST",
            "/v1/api-keys",
            acme.secret_key,
            json={"name": "ci", "scopes": ["read_only"]},
            headers={"Idempotency-Key": "k"},
        )

    replies = await asyncio.gather(*[make(number) for number in range(16)])

    assert {reply.status for reply in replies} == {200}
    assert len({reply.raw for reply in replies}) == 1
    assert sum(reply.headers.get("Idempotency-Replayed") == "true" for reply in replies) == 15
    assert await count(app, "api_keys", "name = 'ci'") == 1
    made = replies[0].body["id"]
    assert await count(app, "audit", f"action = 'api_key.created' and target = '{made}'") == 1


@pytest.mark.parametrize(
    ("policy", "minter", "ends"),
    [
        ("replace", "secret_key", {"joined": 2}),
        ("reject", "secret_key", {"joined": 1, "rejected": 1}),
        ("replace", "publishable_key", {"joined": 1, "rejected": 1}),
    ],
)
async def test_two_persons_who_link_one_reference_at_once_leave_one_link(
    app: App, other: App, policy: str, minter: str, ends: dict[str, int]
) -> None:
    owner = await tenant(app, "Acme", on_reference_linked=policy)
    key = getattr(owner, minter)
    pairs = [[await app.mint(key, f"user_{n}") for _ in range(2)] for n in range(10)]

    outcomes = await asyncio.gather(
        *[
            at.say(owner, intent["token"], person(2 * n + place))
            for n, pair in enumerate(pairs)
            for place, (intent, at) in enumerate(zip(pair, (app, other), strict=True))
        ]
    )

    assert summed(outcomes) == {outcome: 10 * number for outcome, number in ends.items()}
    active = await rows(app, "select customer_reference from links where ended_at is null")
    assert sorted(row[0] for row in active) == sorted(f"user_{n}" for n in range(10))
    joined = await app.events(owner.project.id, "participant.joined")
    unlinked = await app.events(owner.project.id, "participant.unlinked")
    assert (len(joined), len(unlinked)) == (10 * ends["joined"], 10 * (ends["joined"] - 1))


async def test_a_person_who_sends_two_links_at_once_joins_one_of_them(
    app: App, other: App, acme: Tenant
) -> None:
    pairs = [[await app.mint(acme.secret_key, f"user_{n}_{place}") for place in range(2)] for n in range(10)]

    outcomes = await asyncio.gather(
        *[
            at.say(acme, intent["token"], person(n))
            for n, pair in enumerate(pairs)
            for intent, at in zip(pair, (app, other), strict=True)
        ]
    )

    assert summed(outcomes) == {"joined": 10, "rejected": 10}
    reasons = await rows(
        app, "select distinct rejection_reason from registration_intents where status = 'REJECTED'"
    )
    assert [row[0] for row in reasons] == ["identity_already_linked"]
    assert await count(app, "contacts") == await count(app, "links") == 10


async def test_revoking_a_key_while_its_links_are_sent_leaves_nothing_pending(
    app: App, other: App, acme: Tenant
) -> None:
    minted = [await app.mint(acme.secret_key, f"user_{n}") for n in range(16)]
    service = other.service

    async def revoke() -> None:
        await service.database.run(
            lambda tx: intents.revoke_key(
                tx, acme.project, acme.key_id, actor="cli:test", at=service.clock.now()
            )
        )

    says = [app.say(acme, intent["token"], person(n)) for n, intent in enumerate(minted)]
    await asyncio.gather(*says[:8], revoke(), *says[8:])

    by_end = Counter(
        (row["status"], row["rejection_reason"])
        for row in await rows(app, "select status, rejection_reason from registration_intents")
    )
    joined = by_end[("JOINED", None)]
    assert by_end == Counter({("JOINED", None): joined, ("REJECTED", "key_revoked"): 16 - joined})
    assert len(await app.events(acme.project.id, "participant.joined")) == joined
    assert len(await app.events(acme.project.id, "registration_intent.rejected")) == 16 - joined


async def test_mixed_load_on_two_servers_ends_without_deadlock_or_contradiction(app: App, other: App) -> None:
    owner = await tenant(app, "Acme", on_identity_linked="replace", supersede=True)
    dice = random.Random(7)
    clock = app.service.clock
    tokens: list[tuple[str, str]] = []

    async def one_move() -> None:
        at = dice.choice([app, other])
        roll = dice.random()
        if roll < 0.35 or not tokens:
            minted = await at.mint(owner.secret_key, f"user_{dice.randrange(6)}")
            tokens.append((minted["id"], minted["token"]))
        elif roll < 0.8:
            some = [dice.choice(tokens)[1] for _ in range(dice.randrange(1, 5))]
            said = [(token, person(dice.randrange(8)), payloads.new_message_id()) for token in some]
            await at.deliver(owner, batch(owner, said, at))
        elif roll < 0.9:
            assert (await cancel(at, owner, dice.choice(tokens)[0])).status in (200, 409)
        else:
            await at.service.database.run(
                lambda tx: intents.expire_due(
                    tx, owner.project.id, clock.now() + timedelta(days=2), timedelta(0), 2
                )
            )

    async def player() -> None:
        for _ in range(20):
            await one_move()

    async with asyncio.timeout(60):
        await asyncio.gather(*[player() for _ in range(16)])

    doubled = await rows(
        app,
        "select customer_reference from links where ended_at is null group by 1 having count(*) > 1"
        " union all select contact_id from links where ended_at is null group by 1 having count(*) > 1",
    )
    assert doubled == []
    joined = await ended(app, owner, "participant.joined")
    rejected = await ended(app, owner, "registration_intent.rejected")
    by_status = {
        row["id"]: row["status"] for row in await rows(app, "select id, status from registration_intents")
    }
    assert joined == {i: 1 for i, status in by_status.items() if status == "JOINED"}
    assert rejected == {i: 1 for i, status in by_status.items() if status == "REJECTED"}
    made = await count(app, "links")
    assert made - await count(app, "links", "ended_at is null") == len(
        await app.events(owner.project.id, "participant.unlinked")
    )
    (deadlocks,) = (
        await rows(app, "select deadlocks from pg_stat_database where datname = current_database()")
    )[0]
    assert deadlocks == 0


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """As many of the next commits on hot lanes as this has entries are made, and not heard of."""
    cuts: list[None] = []
    once = Lane._once

    async def commit_and_lose(lane: Lane, work: Work[T], *how: bool) -> T:
        result = await once(lane, work, *how)
        if cuts:
            cuts.pop()
            raise ConnectionError("cut during COMMIT")
        return result

    monkeypatch.setattr(Lane, "_once", commit_and_lose)
    return cuts


@pytest.mark.parametrize("supersede", [False, True])
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}])
async def test_a_mint_whose_commit_was_not_heard_of_is_one_intent(
    app: App, cut: list[None], supersede: bool, headers: dict[str, str]
) -> None:
    owner = await tenant(app, "Acme", supersede=supersede)
    before = [await app.mint(owner.secret_key, "user_123") for _ in range(4)]
    cut.append(None)

    reply = await app.call(
        "POST", INTENTS, owner.secret_key, json={"customer_reference": "user_123"}, headers=headers
    )

    assert (reply.status, cut) == (200, [])
    pending = await rows(app, "select id from registration_intents where status = 'PENDING' order by id")
    assert [row["id"] for row in pending] == sorted([*[one["id"] for one in before], reply.body["id"]])


async def test_a_join_whose_commit_was_not_heard_of_is_one_join(
    app: App, acme: Tenant, cut: list[None]
) -> None:
    intent = await app.mint(acme.secret_key)
    await app.service.directory.number(
        "meta", acme.channel.phone_number_id
    )  # so that the next is the join's commit
    cut.append(None)

    await app.say(acme, intent["token"])

    assert cut == []
    assert (await app.get(acme.secret_key, intent["id"]))["status"] == "JOINED"
    assert len(await app.events(acme.project.id, "participant.joined")) == 1
    assert await count(app, "messages") == await count(app, "links") == await count(app, "deliveries") == 1
