"""Idempotency-Key: a write that comes twice takes effect once, and its answer is the caller's alone."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import asyncpg
import pytest
from world import INTENTS, App, Reply, Tenant, serving, tenant

from wabery_server.clock import MovableClock
from wabery_server.db import Database, Row, Source
from wabery_server.db.signals import Signals
from wabery_server.intents import MAX_PENDING
from wabery_server.limits import Limit
from wabery_server.secrets import Keyring
from wabery_server.settings import Settings
from wabery_server.worker import Sweep

KEYS = "/v1/api-keys"
DRAFT = {"name": "ci", "scopes": ["read_only"]}
ONE = {"customer_reference": "user_123"}


@pytest.fixture
async def other(
    app: App, source: Source, settings: Settings, keyring: Keyring, clock: MovableClock
) -> AsyncIterator[App]:
    """A second server on the database of the first."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(source))
        signals = await stack.enter_async_context(Signals(source))
        yield await stack.enter_async_context(serving(settings, database, keyring, clock, signals))


async def post(
    app: App, path: str, api_key: str, body: object, key: str = "k", *, method: str = "POST"
) -> Reply:
    return await app.call(method, path, api_key, json=body, headers={"Idempotency-Key": key})


async def mint(app: App, api_key: str, key: str = "k", reference: str = "user_123") -> Reply:
    return await post(app, INTENTS, api_key, {"customer_reference": reference}, key)


async def rows(app: App, query: str, *values: object) -> list[Row]:
    return await app.service.database.run(lambda tx: tx.rows(query, *values))


async def count(app: App, table: str, condition: str = "true") -> int:
    return int((await rows(app, f"select count(*) from {table} where {condition}"))[0][0])


def ran(reply: Reply) -> bool:
    """Whether the write took effect now; False: its old answer was replayed."""
    assert reply.status == 200, reply.body
    replayed = reply.headers.get("Idempotency-Replayed")
    assert replayed in (None, "true")
    return replayed is None


def refused(reply: Reply) -> tuple[int, str]:
    assert "Idempotency-Replayed" not in reply.headers
    return reply.status, reply.body["error"]


async def test_a_repeated_mint_is_answered_with_the_same_bytes(app: App, acme: Tenant) -> None:
    first = await mint(app, acme.secret_key)
    await app.say(acme, first.body["token"])

    again = await mint(app, acme.secret_key)

    assert (ran(first), ran(again)) == (True, False)
    assert again.raw == first.raw
    assert again.headers["Content-Type"] == first.headers["Content-Type"]
    assert again.headers["Wabery-Request-Id"] != first.headers["Wabery-Request-Id"]
    assert await count(app, "registration_intents") == 1


async def test_without_a_key_every_mint_is_its_own(app: App, acme: Tenant) -> None:
    minted = [await app.mint(acme.secret_key) for _ in range(2)]

    assert minted[0]["id"] != minted[1]["id"]
    assert await count(app, "idempotency_keys") == 0


async def test_a_key_belongs_to_one_api_key_of_one_project(app: App, acme: Tenant, globex: Tenant) -> None:
    second = (await app.call("POST", KEYS, acme.secret_key, json={"name": "b", "scopes": ["full"]})).body
    callers = [acme.secret_key, acme.publishable_key, second["key"], globex.secret_key]

    first = [await mint(app, caller) for caller in callers]
    again = [await mint(app, caller) for caller in callers]

    assert [ran(reply) for reply in first] == [True] * 4
    assert [ran(reply) for reply in again] == [False] * 4
    assert [reply.raw for reply in again] == [reply.raw for reply in first]
    assert len({reply.body["id"] for reply in first}) == 4


async def test_a_key_belongs_to_one_method_and_path(app: App, acme: Tenant) -> None:
    minted = [(await mint(app, acme.secret_key, f"mint {n}")).body["id"] for n in range(2)]
    project = f"/v1/projects/{acme.project.id}"
    calls = [
        ("POST", INTENTS, ONE),
        ("POST", f"{INTENTS}/{minted[0]}/cancel", {}),
        ("POST", f"{INTENTS}/{minted[1]}/cancel", {}),
        ("PATCH", project, {"name": "Acme 2"}),
        ("POST", f"{project}/rotate-webhook-secret", {}),
    ]

    first = [await post(app, path, acme.secret_key, body, method=method) for method, path, body in calls]
    again = [await post(app, path, acme.secret_key, body, method=method) for method, path, body in calls]

    assert [ran(reply) for reply in first] == [True] * len(calls)
    assert [ran(reply) for reply in again] == [False] * len(calls)
    assert [reply.raw for reply in again] == [reply.raw for reply in first]


@pytest.mark.parametrize(
    ("path", "bodies"),
    [(INTENTS, (ONE, {"customer_reference": "user_456"})), (KEYS, (DRAFT, {**DRAFT, "name": "other"}))],
)
async def test_a_key_that_was_used_for_another_body_is_refused(
    app: App, acme: Tenant, path: str, bodies: Sequence[object]
) -> None:
    first = await post(app, path, acme.secret_key, bodies[0])

    reused = await post(app, path, acme.secret_key, bodies[1])

    assert refused(reused) == (409, "idempotency_key_reused")
    assert reused.body["param"] == "Idempotency-Key"
    assert (await post(app, path, acme.secret_key, bodies[0])).raw == first.raw
    assert await count(app, "registration_intents") == (1 if path == INTENTS else 0)
    assert await count(app, "api_keys", "name = 'other'") == 0


@pytest.mark.parametrize(
    ("one", "same"),
    [("k", '"k"'), ('a"b', r'"a\"b"'), ("a\\b", r'"a\\b"'), ("two words", '"two words"'), ("k", "  k ")],
)
async def test_a_quoted_key_is_the_bare_one(app: App, acme: Tenant, one: str, same: str) -> None:
    first = await mint(app, acme.secret_key, one)

    again = await mint(app, acme.secret_key, same)

    assert (ran(first), ran(again)) == (True, False)
    assert again.raw == first.raw


@pytest.mark.parametrize("path", [INTENTS, KEYS])
@pytest.mark.parametrize(
    "key", ["", '""', '" "', '"open', r'"a\b"', "k" * 256, f'"{"k" * 256}"', "schlüssel", "a\tb"]
)
async def test_a_malformed_key_is_refused_and_nothing_happens(
    app: App, acme: Tenant, path: str, key: str
) -> None:
    before = await count(app, "api_keys")

    reply = await post(app, path, acme.secret_key, ONE if path == INTENTS else DRAFT, key)

    assert refused(reply) == (400, "invalid_idempotency_key")
    assert reply.body["param"] == "Idempotency-Key"
    assert await count(app, "registration_intents") == 0
    assert await count(app, "api_keys") == before


async def test_the_longest_key_has_255_characters(app: App, acme: Tenant) -> None:
    keys = ["k" * 255, "k" * 254]

    assert [ran(await mint(app, acme.secret_key, key)) for key in keys] == [True, True]
    assert [ran(await mint(app, acme.secret_key, key)) for key in keys] == [False, False]


@pytest.mark.parametrize(("path", "body"), [(INTENTS, ONE), (KEYS, DRAFT)])
async def test_after_24_hours_a_key_is_free_again(
    app: App, acme: Tenant, clock: MovableClock, path: str, body: object
) -> None:
    first = await post(app, path, acme.secret_key, body)
    clock.move(timedelta(hours=24, seconds=-30))
    late = await post(app, path, acme.secret_key, body)

    clock.move(timedelta(seconds=31))
    anew = await post(app, path, acme.secret_key, body)
    again = await post(app, path, acme.secret_key, body)

    assert [ran(reply) for reply in (first, late, anew, again)] == [True, False, True, False]
    assert late.raw == first.raw
    assert anew.body["id"] != first.body["id"]
    assert again.raw == anew.raw


async def test_the_sweeper_forgets_old_answers_and_no_others(
    app: App, acme: Tenant, globex: Tenant, clock: MovableClock
) -> None:
    for owner in (acme, globex):
        await mint(app, owner.secret_key, "old")
    clock.move(timedelta(hours=24, seconds=1))
    await mint(app, acme.secret_key, "young")
    settings = Settings(sweep_every=timedelta(0))

    await Sweep(app.service.database, app.service.signals, clock=clock, settings=settings).turn()

    assert [row["key"] for row in await rows(app, "select key from idempotency_keys")] == ["young"]


@pytest.mark.parametrize(
    ("path", "wrong", "right", "code"),
    [
        (INTENTS, {"customer_reference": ""}, ONE, "invalid_customer_reference"),
        (INTENTS, {**ONE, "expires_in": 1}, ONE, "expires_in_out_of_range"),
        (KEYS, {"name": "ci", "scopes": ["everything"]}, DRAFT, "invalid_request"),
        (f"{INTENTS}/bulk", {"items": []}, {"items": [ONE]}, "invalid_request"),
    ],
)
async def test_a_refused_body_leaves_its_key_free(
    app: App, acme: Tenant, path: str, wrong: object, right: object, code: str
) -> None:
    replies = [await post(app, path, acme.secret_key, body) for body in (wrong, wrong, right)]

    assert [refused(reply) for reply in replies[:2]] == [(400, code)] * 2
    assert ran(replies[2])


async def test_what_is_not_found_is_not_kept(app: App, acme: Tenant) -> None:
    path = f"{INTENTS}/reg_00000000000000000000000000/cancel"

    replies = [await post(app, path, acme.secret_key, {}) for _ in range(2)]

    assert [refused(reply) for reply in replies] == [(404, "not_found")] * 2
    assert await count(app, "idempotency_keys") == 0


async def test_an_unknown_caller_takes_no_key(app: App, acme: Tenant) -> None:
    stranger = await mint(app, acme.secret_key[:-1] + ("a" if acme.secret_key[-1] != "a" else "b"))

    assert refused(stranger) == (401, "invalid_api_key")
    assert await count(app, "idempotency_keys") == 0
    assert ran(await mint(app, acme.secret_key))


async def test_a_mint_that_came_too_often_may_come_again(app: App, acme: Tenant) -> None:
    app.service.per_reference = Limit("customer_reference", 1, 3600)
    await mint(app, acme.secret_key, "first")

    too_soon = await mint(app, acme.secret_key)
    app.service.per_reference = Limit("customer_reference", 1, 3600)
    later = await mint(app, acme.secret_key)

    assert refused(too_soon) == (429, "rate_limited")
    assert ran(later)


async def test_a_repeated_mint_counts_once_for_its_reference(app: App, acme: Tenant) -> None:
    app.service.per_reference = Limit("customer_reference", 2, 3600)

    repeated = [await mint(app, acme.secret_key, "first") for _ in range(5)]
    second, third = [await mint(app, acme.secret_key, name) for name in ("second", "third")]
    again = await mint(app, acme.secret_key, "first")
    other_body = await post(app, INTENTS, acme.secret_key, ONE | {"metadata": {}}, "first")

    assert [ran(reply) for reply in repeated] == [True, False, False, False, False]
    assert ran(second)
    assert refused(third) == (429, "rate_limited")
    assert (ran(again), again.raw) == (False, repeated[0].raw)
    assert refused(other_body) == (409, "idempotency_key_reused")


async def test_a_mint_that_found_no_room_runs_anew_when_there_is_some(app: App) -> None:
    owner = await tenant(app, "Initech", supersede=False)
    key = owner.secret_key
    minted = [(await mint(app, key, f"mint {n}")).body["id"] for n in range(MAX_PENDING)]

    full = [await mint(app, key) for _ in range(2)]
    await app.call("POST", f"{INTENTS}/{minted[0]}/cancel", key)
    anew, again = [await mint(app, key) for _ in range(2)]

    assert [refused(reply) for reply in full] == [(422, "too_many_pending")] * 2
    assert (ran(anew), ran(again)) == (True, False)
    assert await count(app, "registration_intents") == MAX_PENDING + 1


async def test_a_retry_is_answered_where_its_reference_is_full_by_now(app: App, acme: Tenant) -> None:
    first = [await mint(app, acme.secret_key, f"mint {n}") for n in range(MAX_PENDING)]

    again = [await mint(app, acme.secret_key, f"mint {n}") for n in range(MAX_PENDING)]

    assert [ran(reply) for reply in again] == [False] * MAX_PENDING
    assert [reply.raw for reply in again] == [reply.raw for reply in first]


async def test_a_kept_answer_is_sealed(app: App, acme: Tenant) -> None:
    intent = (await mint(app, acme.secret_key)).body
    made = (await post(app, KEYS, acme.secret_key, DRAFT)).body
    secrets = [intent["token"], intent["client_secret"], made["key"], acme.secret_key, "customer_reference"]

    kept = await rows(app, "select k, k.answer, k.object_ids from idempotency_keys k order by call desc")

    assert [row["object_ids"] for row in kept] == [[intent["id"]], [made["id"]]]
    for row in kept:
        whole = repr(row["k"]).encode() + bytes(row["answer"])
        assert [secret for secret in secrets if secret.encode() in whole] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "shown"),
    [
        ("POST", KEYS, DRAFT, "key"),
        ("PATCH", "/v1/projects/{project}", {"name": "Acme & Sons"}, "name"),
        ("POST", f"{INTENTS}/bulk", {"items": [ONE, {"customer_reference": ""}, ONE]}, "data"),
    ],
)
async def test_every_write_is_repeated_without_an_effect(
    app: App, acme: Tenant, method: str, path: str, body: object, shown: str
) -> None:
    path = path.format(project=acme.project.id)
    first = await post(app, path, acme.secret_key, body, method=method)
    tables = ("api_keys", "registration_intents", "audit", "idempotency_keys")
    before = [await count(app, table) for table in tables]

    again = await post(app, path, acme.secret_key, body, method=method)

    assert (ran(first), ran(again)) == (True, False)
    assert again.raw == first.raw
    assert first.body[shown]
    assert [await count(app, table) for table in tables] == before


@pytest.mark.parametrize(
    ("path", "body", "table", "broken"),
    [
        (INTENTS, ONE, "registration_intents", "registration_intents"),
        (INTENTS, ONE, "registration_intents", "idempotency_keys"),
        (KEYS, DRAFT, "api_keys", "audit"),
        (KEYS, DRAFT, "api_keys", "idempotency_keys"),
    ],
)
async def test_an_effect_and_its_answer_are_written_together_or_not_at_all(
    app: App, acme: Tenant, path: str, body: object, table: str, broken: str
) -> None:
    before = await count(app, table)
    await rows(app, f"alter table {broken} add constraint broken check (false) not valid")

    failed = await post(app, path, acme.secret_key, body)
    left_behind = [await count(app, table) - before, await count(app, "idempotency_keys")]
    await rows(app, f"alter table {broken} drop constraint broken")
    anew = await post(app, path, acme.secret_key, body)

    assert refused(failed) == (500, "internal_error")
    assert left_behind == [0, 0]
    assert ran(anew)
    assert await count(app, table) - before == 1


# At once


async def test_twenty_at_once_are_one_intent_and_one_answer(app: App, other: App, acme: Tenant) -> None:
    replies = await asyncio.gather(*[mint([app, other][n % 2], acme.secret_key) for n in range(20)])

    assert sorted(map(ran, replies)) == [False] * 19 + [True]
    assert len({reply.raw for reply in replies}) == 1
    assert await count(app, "registration_intents") == await count(app, "idempotency_keys") == 1


async def test_of_two_bodies_at_once_with_one_key_one_wins(app: App, other: App, acme: Tenant) -> None:
    references = ["user_1", "user_2"]

    replies = await asyncio.gather(
        *[mint([app, other][n // 2 % 2], acme.secret_key, reference=references[n % 2]) for n in range(20)]
    )

    (winner,) = await rows(app, "select customer_reference from registration_intents")
    won = [reply for n, reply in enumerate(replies) if references[n % 2] == winner[0]]
    lost = [reply for n, reply in enumerate(replies) if references[n % 2] != winner[0]]
    assert sorted(map(ran, won)) == [False] * 9 + [True]
    assert len({reply.raw for reply in won}) == 1
    assert [refused(reply) for reply in lost] == [(409, "idempotency_key_reused")] * 10


async def test_a_wrong_body_takes_no_answer_from_the_retries_beside_it(app: App, acme: Tenant) -> None:
    first = await mint(app, acme.secret_key)

    replies = await asyncio.gather(
        *[mint(app, acme.secret_key, reference=["user_123", "wrong"][n % 2]) for n in range(20)]
    )

    assert {reply.raw for reply in replies[::2]} == {first.raw}
    assert [refused(reply) for reply in replies[1::2]] == [(409, "idempotency_key_reused")] * 10


@asynccontextmanager
async def held(source: Source, owner: Tenant, path: str) -> AsyncIterator[None]:
    """Somebody else is in the middle of the same request."""
    connection = await asyncpg.connect(**source.parts)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(
        "insert into idempotency_keys values ($1, $2, $3, 'k', '', 200, '', 1, '{}', now(), now() + '1 day')",
        owner.project.id,
        owner.key_id,
        f"POST {path}",
    )
    yield
    await transaction.rollback()
    await connection.close()


@pytest.mark.parametrize(
    ("path", "body", "table"), [(INTENTS, ONE, "registration_intents"), (KEYS, DRAFT, "api_keys")]
)
async def test_a_request_that_is_still_running_is_waited_for_only_so_long(
    app: App, acme: Tenant, source: Source, path: str, body: object, table: str
) -> None:
    before = await count(app, table)

    async with held(source, acme, path):
        meanwhile = await post(app, path, acme.secret_key, body)
        none_yet = await count(app, table) - before
    afterwards = await post(app, path, acme.secret_key, body)

    assert refused(meanwhile) == (409, "idempotency_in_progress")
    assert meanwhile.headers["Retry-After"] == "1"
    assert none_yet == 0
    assert ran(afterwards)


async def test_a_request_that_is_still_running_holds_up_no_other_for_good(
    app: App, acme: Tenant, source: Source
) -> None:
    async with held(source, acme, INTENTS):
        waiting, *others = await asyncio.gather(
            *[mint(app, acme.secret_key, key, f"user_{key}") for key in ("k", "a", "b", "c")]
        )

    assert refused(waiting) == (409, "idempotency_in_progress")
    assert [ran(reply) for reply in others] == [True] * 3
