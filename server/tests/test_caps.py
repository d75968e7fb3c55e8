"""Pending intents of one customer reference: how many there may be, and whom a further one costs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import asyncpg
import msgspec
import pytest
from world import ANA, INTENTS, App, Reply, Tenant, tenant

from wabery_server.clock import MovableClock
from wabery_server.db import LANE, Database, Row, Source, Tx
from wabery_server.intents.intent import sql
from wabery_server.intents.mint import MAX_ANONYMOUS, MAX_OF_NETWORK, MAX_PENDING
from wabery_server.secrets import Keyring, Subkeys, generate
from wabery_server.settings import Settings
from wabery_server.worker import Sweep

REFERENCE = "user_123"


@pytest.fixture
def settings() -> Settings:
    return Settings(
        trusted_proxies=(ip_network("127.0.0.0/8"),),
        secret_key_per_second=100_000,
        publishable_key_per_minute=100_000,
        publishable_ip_per_minute=100_000,
        reference_per_hour=100_000,
        read_lanes=1,
    )


async def rows(app: App, query: str, *values: object) -> list[Row]:
    return await app.service.database.run(lambda tx: tx.rows(query, *values))


async def mint(app: App, key: str, ip: str = "203.0.113.7", reference: str = REFERENCE) -> Reply:
    body = {"customer_reference": reference}
    return await app.call("POST", INTENTS, key, json=body, headers={"X-Forwarded-For": ip})


async def minted(app: App, key: str, number: int, ip: str = "203.0.113.7") -> list[str]:
    """The ids of so many intents that have been minted one after another."""
    replies = [await mint(app, key, ip) for _ in range(number)]
    assert [reply.status for reply in replies] == [200] * number
    return [reply.body["id"] for reply in replies]


async def pending(app: App, ids: list[str]) -> list[bool]:
    found = await rows(app, "select id from registration_intents where status = 'PENDING'")
    alive = {row["id"] for row in found}
    return [one in alive for one in ids]


async def superseded(app: App) -> int:
    query = "select count(*) from registration_intents where rejection_reason = 'superseded'"
    return int((await rows(app, query))[0][0])


# Trusted


async def test_in_a_new_project_the_sixth_ends_the_oldest(app: App, acme: Tenant) -> None:
    made = await minted(app, acme.secret_key, MAX_PENDING + 2)

    assert await pending(app, made) == [False] * 2 + [True] * MAX_PENDING
    seen = await app.get(acme.secret_key, made[0])
    assert (seen["status"], seen["rejection_reason"]) == ("REJECTED", "superseded")
    events = await app.events(acme.project.id, "registration_intent.rejected")
    assert [event["payload"]["registration_intent_id"] for event in events] == made[:2]


async def test_where_the_project_does_not_supersede_the_sixth_is_rejected(app: App) -> None:
    owner = await tenant(app, "Initech", supersede=False)
    made = await minted(app, owner.secret_key, MAX_PENDING)

    sixth = await mint(app, owner.secret_key)

    assert (sixth.status, sixth.body["error"]) == (422, "too_many_pending")
    assert await pending(app, made) == [True] * MAX_PENDING
    assert (await mint(app, owner.secret_key, reference="user_456")).status == 200
    await app.call("POST", f"{INTENTS}/{made[0]}/cancel", owner.secret_key)
    assert (await mint(app, owner.secret_key)).status == 200


async def test_expired_intents_do_not_count(app: App, clock: MovableClock) -> None:
    owner = await tenant(app, "Initech", supersede=False)
    await minted(app, owner.secret_key, MAX_PENDING)
    clock.move(timedelta(days=1, seconds=1))

    again = [(await mint(app, owner.secret_key)).status for _ in range(MAX_PENDING + 1)]

    assert again == [200] * MAX_PENDING + [422]


async def test_five_presses_of_a_button_do_not_lock_a_customer_out(app: App, acme: Tenant) -> None:
    for key in (acme.secret_key, acme.publishable_key):
        *_, last = await minted(app, key, 12)
        token = (await app.get(acme.secret_key, last))["token"]

        assert await app.say(acme, token, ANA) == {"joined": 1}


async def test_mints_at_once_may_pass_the_limit_and_the_next_one_brings_it_back(
    app: App, acme: Tenant, database: Database
) -> None:
    first = await minted(app, acme.secret_key, 1)
    copies = """insert into registration_intents (project_id, id, status, customer_reference, metadata, reference_trust,
        channel_id, api_key_id, token_hash, token_prefix, secret_version, created_at, expires_at)
        select i.project_id, 'reg_' || n, i.status, i.customer_reference, i.metadata, i.reference_trust, i.channel_id,
            i.api_key_id, sha256(n::text::bytea), 'abcdef', 1, i.created_at + n * interval '1 ms', i.expires_at
        from registration_intents i, generate_series(1, 7) n where i.id = $1"""
    await database.run(lambda tx: tx.run(copies, first[0]))

    await minted(app, acme.secret_key, 1)

    left = await rows(app, "select id from registration_intents where status = 'PENDING' order by created_at")
    assert [row["id"] for row in left][:4] == ["reg_4", "reg_5", "reg_6", "reg_7"]
    assert len(left) == MAX_PENDING


async def test_a_usual_mint_is_one_statement_without_a_transaction(
    app: App, acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await minted(app, acme.secret_key, 1)
    asked: list[str] = []
    each = Tx.rows_each
    saved = Tx.savepoint

    async def rows_each(tx: Tx, text: str, many: Any) -> list[Row]:
        asked.append("insert" if text == sql.insert else text)
        return await each(tx, text, many)

    async def savepoint(tx: Tx, work: Any) -> Any:
        asked.append("transaction")
        return await saved(tx, work)

    monkeypatch.setattr(Tx, "rows_each", rows_each)
    monkeypatch.setattr(Tx, "savepoint", savepoint)

    usual = await minted(app, acme.secret_key, MAX_PENDING - 1)
    for n in range(4):
        await minted(app, acme.publishable_key, MAX_PENDING, f"203.0.113.{n}")
    before_the_cap = [one for one in asked if one in ("insert", "transaction")]
    await minted(app, acme.secret_key, 1)

    assert len(usual) + 4 * MAX_PENDING == len(before_the_cap)
    assert set(before_the_cap) == {"insert"}
    assert "transaction" in asked


# Anonymous


@pytest.mark.parametrize("supersede", [False, True])
async def test_the_sixth_from_an_address_ends_the_oldest_of_that_address_alone(
    app: App, *, supersede: bool
) -> None:
    owner = await tenant(app, "Initech", supersede=supersede)
    mine = await minted(app, owner.publishable_key, 1, "203.0.113.1")
    servers = await minted(app, owner.secret_key, MAX_PENDING)

    attackers = await minted(app, owner.publishable_key, 40, "203.0.113.9")

    assert await pending(app, mine) == [True]
    assert await pending(app, servers) == [True] * MAX_PENDING
    assert await pending(app, attackers) == [False] * 35 + [True] * 5
    assert (await mint(app, owner.publishable_key, "203.0.113.1")).status == 200


async def test_any_number_of_anonymous_intents_leave_trusted_ones_alone(app: App, acme: Tenant) -> None:
    servers = await minted(app, acme.secret_key, MAX_PENDING)
    for n in range(20):
        await minted(app, acme.publishable_key, MAX_PENDING, f"198.51.100.{n}")

    assert await pending(app, servers) == [True] * MAX_PENDING
    assert (await mint(app, acme.secret_key)).status == 200


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        ("203.0.113.7", "::ffff:203.0.113.7", "203.0.113.8"),
        ("2001:db8:1:2::1", "2001:DB8:1:2:ffff:0:0:9", "2001:db8:1:3::1"),
        ("::ffff:203.0.113.7", "::FFFF:cb00:7107", "::ffff:203.0.113.8"),
    ],
)
async def test_what_counts_as_one_address(app: App, acme: Tenant, one: str, same: str, other: str) -> None:
    first = await minted(app, acme.publishable_key, MAX_PENDING, one)

    await minted(app, acme.publishable_key, MAX_PENDING, other)
    await minted(app, acme.publishable_key, 2, same)

    assert await pending(app, first) == [False] * 2 + [True] * 3
    assert await superseded(app) == 2


async def test_a_reference_has_at_most_a_hundred_from_all_addresses(
    app: App, acme: Tenant, clock: MovableClock
) -> None:
    first = await mint(app, acme.publishable_key, "198.51.100.0")
    await minted(app, acme.publishable_key, 4, "198.51.100.0")
    clock.move(timedelta(minutes=10))
    for n in range(1, 20):
        await minted(app, acme.publishable_key, MAX_PENDING, f"198.51.100.{n}")

    refused = await mint(app, acme.publishable_key, "203.0.113.7")
    own = await mint(app, acme.publishable_key, "198.51.100.19")
    clock.move(timedelta(minutes=20, seconds=1))
    later = await mint(app, acme.publishable_key, "203.0.113.7")

    assert (refused.status, refused.body["error"]) == (429, "too_many_pending")
    assert 1100 < int(refused.headers["Retry-After"]) <= 1200
    told = refused.raw + str(dict(refused.headers)).encode()
    assert b"hundred" not in told
    assert str(MAX_ANONYMOUS).encode() not in refused.body["message"].encode()
    assert "customer_reference" not in refused.headers.get("RateLimit-Policy", "")
    assert own.status == 200  # it ends the oldest of its own address
    assert (first.status, later.status) == (200, 200)
    assert (await mint(app, acme.secret_key)).status == 200


async def test_one_ipv6_network_counts_as_four_addresses(app: App, acme: Tenant) -> None:
    for n in range(30):
        await minted(app, acme.publishable_key, MAX_PENDING, f"2001:db8:1:{n:x}::1")
    for n in range(15):
        await minted(app, acme.publishable_key, MAX_PENDING, f"198.51.100.{n}")
    almost = await mint(app, acme.publishable_key, "203.0.113.7")

    for n in range(1, 5):
        await mint(app, acme.publishable_key, f"203.0.113.{n}")
    full = await mint(app, acme.publishable_key, "203.0.113.5")

    assert almost.status == 200
    assert full.status == 429
    assert await superseded(app) == 0


async def test_mints_at_once_from_one_address_are_brought_back_too(app: App, acme: Tenant) -> None:
    await asyncio.gather(*[mint(app, acme.publishable_key) for _ in range(40)])
    await minted(app, acme.publishable_key, 1)

    (left,) = await rows(app, "select count(*) from registration_intents where status = 'PENDING'")
    assert left[0] == MAX_PENDING


async def test_unsigned_intents_from_before_the_hash_count_for_nobody(app: App) -> None:
    owner = await tenant(app, "Initech", supersede=False)
    await minted(app, owner.publishable_key, MAX_PENDING)
    await rows(app, "update registration_intents set client_hash = '' returning id")

    assert len(await minted(app, owner.secret_key, MAX_PENDING)) == MAX_PENDING
    assert (await mint(app, owner.secret_key)).status == 422


# The hash


async def test_an_address_is_kept_as_a_keyed_hash_until_the_intent_ends(
    app: App, acme: Tenant, clock: MovableClock
) -> None:
    key, ip = acme.publishable_key, "203.0.113.7"
    ids = {
        how: (await mint(app, key, ip, how)).body["id"] for how in ("join", "cancel", "expire", "keep", "key")
    }
    await minted(app, acme.secret_key, 1)
    before = await rows(app, "select distinct client_hash from registration_intents order by 1")

    await app.say(acme, (await app.get(acme.secret_key, ids["join"]))["token"], ANA)
    await app.call("POST", f"{INTENTS}/{ids['cancel']}/cancel", acme.secret_key)
    late = [ids["expire"]]
    await rows(
        app,
        "update registration_intents set expires_at = $2 where id = $1 returning id",
        late[0],
        clock.now(),
    )
    clock.move(timedelta(minutes=6))
    sweep = Settings(sweep_every=timedelta(0))
    await Sweep(app.service.database, app.service.signals, clock=clock, settings=sweep).turn()

    hashes = {row["id"]: row["client_hash"] for row in await rows(app, "select * from registration_intents")}
    (nothing, of_address) = [row["client_hash"] for row in before]
    assert (nothing, len(of_address)) == (b"", 8)
    assert ip.encode() not in of_address
    assert [hashes[ids[how]] for how in ("join", "cancel", "expire")] == [b""] * 3
    assert hashes[ids["keep"]] == of_address


def test_a_hash_is_the_installations_own(keyring: Keyring) -> None:
    other = Keyring(Subkeys(generate()))

    mine = keyring.current.client_hash("203.0.113.7", "203.0.113.7")
    assert mine == keyring.current.client_hash("203.0.113.7", "203.0.113.7")
    assert mine != other.current.client_hash("203.0.113.7", "203.0.113.7")


# Locked, and large


@asynccontextmanager
async def locked(source: Source, query: str) -> AsyncIterator[None]:
    connection = await asyncpg.connect(**source.parts)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(f"{query} for update")
    yield
    await transaction.rollback()
    await connection.close()


async def test_a_mint_does_not_wait_for_locked_intents(app: App, acme: Tenant, source: Source) -> None:
    await minted(app, acme.secret_key, MAX_PENDING)

    async with locked(source, "select * from registration_intents"), asyncio.timeout(1.5):
        replies = await asyncio.gather(*[mint(app, acme.secret_key) for _ in range(3)])

    assert [reply.status for reply in replies] == [200] * 3


async def touched(connection: "asyncpg.Connection[Row]", text: str, *values: object) -> int:
    """How many buffers a statement has touched."""
    plan = await connection.fetchval(f"explain (analyze, buffers, format json) {text}", *values)
    node = msgspec.json.decode(plan)[0]["Plan"]
    return int(node["Shared Hit Blocks"] + node["Shared Read Blocks"])


GROWN = """
insert into registration_intents (project_id, id, status, customer_reference, metadata, reference_trust, channel_id,
    api_key_id, token_hash, token_prefix, secret_version, created_at, expires_at, ended_at, client_hash)
select $1, 'reg_' || $2 || n, case when $3 then 'PENDING' else 'EXPIRED' end, $4, '{}', $5, 'c', 'k',
    sha256(convert_to($2 || n, 'UTF8')), 'abcdef', 1, timestamptz '2026-06-01Z', timestamptz '2026-06-02Z' + $6 * interval '1 day',
    case when $3 then null else timestamptz '2026-06-02Z' end,
    case when $5 = 'unverified' and $3 then decode(lpad(to_hex(n % $8), 8, '0') || lpad(to_hex(n), 8, '0'), 'hex') else ''::bytea end
from generate_series(1, $7) n"""


async def test_counting_costs_the_same_on_a_full_table(source: Source) -> None:
    connection = await source.connect(**LANE)
    at = "2026-06-01T12:00:00Z"
    insert = sql.insert
    for place, kind in reversed(list(enumerate(INSERTED, 1))):
        insert = insert.replace(f"${place}::", f"({kind})::")

    async def cost() -> list[int]:
        found = []
        for trust, client_hash in (("server", "''"), ("unverified", "'\\xffff0000ffff0000'")):
            text = insert.replace("<trust>", trust).replace("<hash>", client_hash).replace("<at>", at)
            undo = connection.transaction()
            await undo.start()
            found.append(await touched(connection, text))
            await undo.rollback()
        found.append(
            await touched(
                connection,
                sql.crowd.replace("$1", "'proj_1'")
                .replace("$2", "'u'")
                .replace("$3", f"'{at}'::timestamptz")
                .replace("$4", str(MAX_ANONYMOUS))
                .replace("$5", str(MAX_OF_NETWORK)),
            )
        )
        return found

    await connection.execute("alter table registration_intents set (autovacuum_enabled = off)")
    await connection.execute(GROWN, "proj_1", "a", True, "u", "unverified", 3, 100, 100)
    await connection.execute("vacuum analyze registration_intents")
    few = await cost()
    await connection.execute(GROWN, "proj_1", "b", False, "u", "server", 0, 40_000, 1)
    await connection.execute(GROWN, "proj_1", "c", False, "u", "unverified", 0, 40_000, 1)
    await connection.execute(GROWN, "proj_1", "d", True, "u", "server", -1, 20_000, 1)
    await connection.execute(GROWN, "proj_1", "e", True, "u", "unverified", 3, 20_000, 2)
    await connection.execute("vacuum analyze registration_intents")
    many = await cost()
    await connection.close()

    assert [now - then <= 40 for now, then in zip(many, few, strict=True)] == [True] * 3, (few, many)


INSERTED = [
    "'proj_1'", "'reg_x'", "'u'", "'{}'", "'<trust>'", "'c'", "'k'", "null", r"'\x00'", "'abcdef'", "1", "'<at>'",
    "'2026-06-03Z'", "<hash>", "5", "20",
]  # fmt: skip
