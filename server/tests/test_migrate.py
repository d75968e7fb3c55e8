"""`wabery migrate`: a database is new, old, up to date or too new, and is told apart in each case."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import NamedTuple
from urllib.parse import quote
from uuid import uuid4

import asyncpg
import pytest

from wabery_server.db import Row, Source
from wabery_server.db import migrate as room
from wabery_server.db.embedded import Embedded
from wabery_server.db.migrate import Migration, MigrationError, migrate, migrations, pending
from wabery_server.main import CannotStart, explained

EMPTY = "select count(*) = 0 from pg_class where relnamespace = 'public'::regnamespace"


@pytest.fixture
async def empty(pg: Embedded) -> AsyncIterator[Source]:
    """A database without anything in it."""
    name = f"t_{uuid4().hex}"
    parts = pg.address.dsn_kwargs()
    admin = await asyncpg.connect(**parts)
    await admin.execute(f"create database {name}")
    yield Source(parts={**parts, "database": name})
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


@pytest.fixture
async def connection(empty: Source) -> AsyncIterator["asyncpg.Connection[Row]"]:
    connection = await empty.connect()
    yield connection
    await connection.close()


class Ended(NamedTuple):
    code: int
    said: str


async def wabery(source: Source, *words: str) -> Ended:
    """Runs a command against the database, as an operator would; returns its exit code and its stderr."""
    parts = source.parts
    dsn = f"postgresql://{parts['user']}@/{parts['database']}?host={quote(str(parts['host']))}&port={parts['port']}"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "wabery_server",
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={
            "PATH": os.environ["PATH"],
            "DATABASE_URL": dsn,
            "WABERY_SECRET_KEY": "s" * 40,
            "WABERY_PORT": "0",
        },
    )
    _, said = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return Ended(process.returncode, said.decode())


def steps(verb: str) -> str:
    return "".join(f"{verb}: {one.version:04d} {one.name}\n" for one in migrations())


async def test_check_says_what_is_missing_with_exit_code_1_and_changes_nothing(
    empty: Source, connection: "asyncpg.Connection[Row]"
) -> None:
    ended = await wabery(empty, "migrate", "--check")

    assert ended == (1, steps("pending"))
    assert await connection.fetchval(EMPTY)


async def test_migrate_builds_the_database_once(empty: Source) -> None:
    first = await wabery(empty, "migrate")
    second = await wabery(empty, "migrate")
    check = await wabery(empty, "migrate", "--check")

    assert first == (0, steps("applied"))
    assert second == check == (0, "The database is up to date.\n")


async def test_two_that_migrate_at_once_take_turns(empty: Source) -> None:
    ends = await asyncio.gather(wabery(empty, "migrate"), wabery(empty, "migrate"))

    assert sorted(ends) == [(0, "The database is up to date.\n"), (0, steps("applied"))]


@pytest.mark.parametrize("words", [["migrate"], ["migrate", "--check"], ["serve"], ["worker"]])
async def test_a_database_of_a_newer_version_is_refused_in_one_line(
    empty: Source, connection: "asyncpg.Connection[Row]", words: list[str]
) -> None:
    await migrate(connection)
    await connection.execute("insert into schema_migrations values (999, 'tomorrow', '2027-01-01Z')")

    ended = await wabery(empty, *words)

    known = len(migrations())
    assert ended == (
        7,
        f"wabery: The database is at version 999, this program knows only {known}: run a newer Wabery.\n",
    )


@pytest.mark.parametrize("command", ["serve", "worker"])
async def test_a_database_that_was_never_migrated_is_not_touched_by_who_serves(
    empty: Source, connection: "asyncpg.Connection[Row]", command: str
) -> None:
    ended = await wabery(empty, command)

    assert ended == (
        7,
        f"wabery: The database lacks {len(migrations())} migrations: run `wabery migrate`.\n",
    )
    assert await connection.fetchval(EMPTY)


async def test_an_unreachable_database_is_one_line(empty: Source) -> None:
    nowhere = Source(parts={**empty.parts, "port": 1})

    ended = await wabery(nowhere, "migrate", "--check")

    assert ended.code == 7
    assert ended.said.startswith("wabery: The database cannot be reached: ")
    assert ended.said.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["migrate"], ["migrate", "--check"], ["serve"], ["worker"], ["admin", "projects", "list"]]
)
async def test_a_role_without_rights_is_one_line(
    empty: Source, connection: "asyncpg.Connection[Row]", words: list[str]
) -> None:
    await migrate(connection)
    role = f"r_{uuid4().hex}"
    await connection.execute(f"create role {role} login")

    ended = await wabery(Source(parts={**empty.parts, "user": role}), *words)

    await connection.execute(f"drop role {role}")
    assert ended.code == 7
    assert ended.said == (
        "wabery: The role of DATABASE_URL lacks rights in the database: permission denied for table "
        "schema_migrations. Use the role that ran `wabery migrate`, or grant these rights.\n"
    )


@pytest.mark.parametrize(
    "failure",
    [
        asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.AdminShutdownError("terminating connection due to administrator command"),
    ],
)
def test_a_database_that_is_lost_during_the_start_is_no_bug(failure: Exception) -> None:
    with pytest.raises(CannotStart, match="was lost, or refuses"), explained():
        raise failure


def test_a_statement_that_is_wrong_stays_a_bug() -> None:
    with pytest.raises(asyncpg.UndefinedTableError), explained():
        raise asyncpg.UndefinedTableError("relation does not exist")


async def test_a_step_that_fails_leaves_the_steps_before_it_and_nothing_of_itself(
    connection: "asyncpg.Connection[Row]", monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(connection)
    known = migrations()
    version = len(known)
    better = [
        *known,
        Migration(version + 1, "good", "create table good (n integer)"),
        Migration(version + 2, "bad", "create table bad (n integer); select no_such_function()"),
        Migration(version + 3, "never", "create table never (n integer)"),
    ]
    monkeypatch.setattr(room, "migrations", lambda: better)

    with pytest.raises(MigrationError, match=f"{version + 2:04d} bad failed and left nothing behind"):
        await migrate(connection)

    tables = await connection.fetch("select relname from pg_class where relname in ('good', 'bad', 'never')")
    assert [row["relname"] for row in tables] == ["good"]
    assert [one.name for one in await pending(connection)] == ["bad", "never"]
    held = "select count(*) from pg_locks l join pg_database d on d.oid = l.database"
    held += " where l.locktype = 'advisory' and d.datname = current_database()"
    assert await connection.fetchval(held) == 0


async def test_an_older_database_gets_only_what_it_lacks(
    connection: "asyncpg.Connection[Row]", monkeypatch: pytest.MonkeyPatch
) -> None:
    known = migrations()
    monkeypatch.setattr(room, "migrations", lambda: known[:1])
    await migrate(connection, from_schema=False)
    monkeypatch.setattr(room, "migrations", lambda: known)

    applied = await migrate(connection)

    assert applied == known[1:]
    stamped = await connection.fetch("select version, name from schema_migrations order by version")
    assert [tuple(row) for row in stamped] == [(one.version, one.name) for one in known]


async def test_projects_that_keys_created_before_get_the_root_that_the_audit_trail_tells(
    connection: "asyncpg.Connection[Row]", monkeypatch: pytest.MonkeyPatch
) -> None:
    known = migrations()
    before = next(number for number, one in enumerate(known) if one.name == "project_roots")
    monkeypatch.setattr(room, "migrations", lambda: known[:before])
    await migrate(connection, from_schema=False)
    await connection.execute(
        """
        insert into organizations values ('org_1', 'Acme', '2026-01-01Z');
        insert into projects (id, organization_id, name, livemode, prefilled_text, prefilled_texts, publishable_expires_in,
            secret_expires_in, supersede, unsigned_references, on_identity_linked, on_reference_linked,
            references_per_contact, created_at)
        select id, 'org_1', id, false, '{token}', '{}', 1800, 86400, true, 'accept', 'reject', 'replace', 1, '2026-01-01Z'
        from unnest(array['proj_a', 'proj_b', 'proj_c', 'proj_d']) id;
        insert into api_keys (id, project_id, kind, name, hash, last4, scopes, allowed_origins, created_at)
        select 'key_' || right(p.id, 1), p.id, 'secret', 'k', p.id::bytea, 'abcd', '{}', '{}', '2026-01-01Z' from projects p;
        insert into audit (id, organization_id, project_id, actor, action, target, detail, created_at)
        select 'aud_' || n, 'org_1', project, actor, 'project.created', project, '{}', '2026-01-01Z'
        from (values (1, 'proj_a', 'cli:ann'), (2, 'proj_b', 'key_a'), (3, 'proj_c', 'key_b')) w (n, project, actor);
        """
    )
    monkeypatch.setattr(room, "migrations", lambda: known)

    await migrate(connection)

    roots = await connection.fetch("select id, root_project_id from projects order by id")
    assert [tuple(row) for row in roots] == [
        ("proj_a", None),
        ("proj_b", "proj_a"),
        ("proj_c", "proj_a"),
        ("proj_d", None),
    ]


OUTSIDE = "-- outside a transaction\n-- Why.\n"


async def test_an_index_that_was_left_half_built_is_built_again(
    connection: "asyncpg.Connection[Row]", monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(connection)
    await connection.execute("create table twice (n integer); insert into twice values (1), (1)")
    known = migrations()
    text = f"{OUTSIDE}create unique index concurrently if not exists one on twice (n);\n"
    text += "create index concurrently if not exists two on twice (n);\n"
    monkeypatch.setattr(room, "migrations", lambda: [*known, Migration(len(known) + 1, "later", text)])

    with pytest.raises(MigrationError, match="later failed: run it again"):
        await migrate(connection)
    half = await connection.fetchval("select count(*) from pg_index where not indisvalid")
    await connection.execute("delete from twice")
    applied = await migrate(connection)

    assert half == 1
    assert [one.name for one in applied] == ["later"]
    built = "select relname from pg_class c join pg_index i on i.indexrelid = c.oid and i.indisvalid"
    found = await connection.fetch(f"{built} where relname in ('one', 'two') order by 1")
    assert [row["relname"] for row in found] == ["one", "two"]


async def test_processes_that_wait_for_their_turn_do_not_keep_an_index_from_being_built(
    empty: Source, connection: "asyncpg.Connection[Row]", monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(connection)
    await connection.execute("create table large (n integer)")
    known = migrations()
    text = f"{OUTSIDE}create index concurrently if not exists one on large (n);\n"
    monkeypatch.setattr(room, "migrations", lambda: [*known, Migration(len(known) + 1, "later", text)])
    more = [await empty.connect() for _ in range(3)]

    applied = await asyncio.wait_for(asyncio.gather(*[migrate(one) for one in [connection, *more]]), 30)
    for one in more:
        await one.close()

    assert sorted(len(one) for one in applied) == [0, 0, 0, 1]


BEFORE_ORDER = 5
OUT_OF_ORDER = """
insert into organizations values ('org_1', 'Acme', '2026-06-01Z');
insert into projects (id, organization_id, name, livemode, prefilled_text, prefilled_texts, publishable_expires_in,
    secret_expires_in, supersede, unsigned_references, on_identity_linked, on_reference_linked, references_per_contact,
    created_at)
    select 'proj_' || n, 'org_1', 'a', false, '{token}', '{}', 1800, 86400, false, 'accept', 'reject', 'replace', 1,
    '2026-06-01Z' from generate_series(1, 2) n;
insert into channels (id, project_id, provider, name, phone_number_id, display_phone_number, waba_id, portfolio_id, sandbox,
    credentials, secret_version, created_at)
    values ('channel_1', 'proj_1', 'meta', 'a', '1', '15550100', 'w1', 'p1', false, '', 1, '2026-06-01Z'),
    ('channel_2', 'proj_1', 'meta', 'a', '2', '15550100', 'w2', 'p1', false, '', 1, '2026-06-01Z'),
    ('channel_3', 'proj_1', 'meta', 'a', '3', '15550100', 'w3', null, false, '', 1, '2026-06-01Z'),
    ('channel_4', 'proj_2', 'meta', 'a', '4', '15550100', 'w1', null, false, '', 1, '2026-06-01Z');
insert into audit values ('a1', 'org_1', 'proj_1', 'x', 'channel.updated', 'channel_3', '{"portfolio_id": "p3"}', '2026-06-02Z'),
    ('a2', 'org_1', 'proj_1', 'x', 'channel.updated', 'channel_3', '{"portfolio_id": null}', '2026-06-03Z');
insert into links values
    ('proj_1', 'l1', 'c', 'r', 'i', 'server', '{}', '2026-06-02Z', '2026-06-01Z', 'replaced'),
    ('proj_1', 'l2', 'c', 'r', 'i', 'server', '{}', '2026-06-02Z', null, null);
insert into registration_intents (project_id, id, status, customer_reference, metadata, reference_trust, channel_id,
    api_key_id, token_hash, token_prefix, secret_version, created_at, expires_at, ended_at, contact_id, message_id, joined_at)
    values ('proj_1', 'i', 'JOINED', 'r', '{}', 'server', 'channel_1', 'key_1', '', 'abcdef', 1, '2026-06-02Z', '2026-06-03Z',
    '2026-06-01Z', 'c', 'm', '2026-06-01Z');
"""


async def test_rows_that_were_out_of_order_are_repaired_and_scopes_are_gathered(
    connection: "asyncpg.Connection[Row]", monkeypatch: pytest.MonkeyPatch
) -> None:
    known = migrations()
    monkeypatch.setattr(room, "migrations", lambda: known[:BEFORE_ORDER])
    await migrate(connection, from_schema=False)
    await connection.execute(OUT_OF_ORDER)
    monkeypatch.setattr(room, "migrations", lambda: known)

    await migrate(connection)

    links = await connection.fetch("select created_at, ended_at from links order by id")
    assert [row["ended_at"] for row in links] == [links[0]["created_at"], None]
    intent = await connection.fetchrow("select * from registration_intents")
    assert intent["created_at"] == intent["ended_at"] == intent["joined_at"]
    families = {
        (row["project_id"][-1], row["scope"]): set(row["family"])
        for row in await connection.fetch("select * from identity_scopes")
    }
    assert families == {
        **{("1", scope): {"w1", "w2", "p1"} for scope in ("w1", "w2", "p1")},
        **{("1", scope): {"w3", "p3"} for scope in ("w3", "p3")},
        ("2", "w1"): {"w1"},
    }
