"""The data model and every statement on it: built both ways alike, planned, and held to the rules of SQL.

The rules are those a sharded PostgreSQL sets (project_id in every key and every hot statement), and those that make a
transaction a function that may run again (ids, times and random values are parameters).
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import asyncpg
import msgspec
import pytest

import wabery_server
from wabery_server.db import LANE, MOST_ROWS, Database, Row, Source, Tx, statistics
from wabery_server.db.embedded import Embedded
from wabery_server.db.migrate import migrate
from wabery_server.db.queries import for_rows, parse

PACKAGE = Path(wabery_server.__file__).parent
SCHEMA = (PACKAGE / "db/schema.sql").read_text()
SMALL, HOT = [
    set(re.findall(r"^create table (\w+)", part, re.MULTILINE)) for part in SCHEMA.split("-- Hot tables -")
]
OF_A_PROJECT = set(re.findall(r"^create table (\w+) \([^;]*?\bproject_id\b", SCHEMA, re.MULTILINE)) | {
    "projects"
}


class Statement(NamedTuple):
    file: str
    name: str
    text: str
    hot: bool

    @property
    def called(self) -> str:
        return f"{self.file}:{self.name}"

    @property
    def shapes(self) -> list[str]:
        """Its texts, for one row and for as many as it may take."""
        takes_rows = re.search(r"\bvalues \(\$1\b", self.text)
        return [self.text, for_rows(self.text, MOST_ROWS)] if takes_rows and self.hot else [self.text]


def statements() -> list[Statement]:
    found = []
    for path in sorted(PACKAGE.rglob("*.sql")):
        if "db" not in path.relative_to(PACKAGE).parts:
            file = str(path.relative_to(PACKAGE))
            found += [
                Statement(file, one.name, one.text, one.hot) for one in parse(path.read_text()).values()
            ]
    return found


ALL = statements()
every_statement = pytest.mark.parametrize("statement", ALL, ids=[one.called for one in ALL])
every_hot_one = pytest.mark.parametrize(
    "statement", [one for one in ALL if one.hot], ids=[one.called for one in ALL if one.hot]
)


# Built both ways


@pytest.fixture
async def two_ways(pg: Embedded) -> AsyncIterator[list["asyncpg.Connection[Row]"]]:
    """A database made from schema.sql, and one made by every migration in turn."""
    parts = pg.address.dsn_kwargs()
    admin = await asyncpg.connect(**parts)
    built = []
    for from_schema in (True, False):
        name = f"t_{uuid4().hex}"
        await admin.execute(f"create database {name}")
        connection = await asyncpg.connect(**{**parts, "database": name})
        await migrate(connection, from_schema=from_schema)
        built.append((name, connection))
    yield [connection for _, connection in built]
    for name, connection in built:
        await connection.close()
        await admin.execute(f"drop database {name}")
    await admin.close()


CATALOG = {
    "tables": "select relname, relkind, relpersistence, reloptions from pg_class"
    " where relnamespace = 'public'::regnamespace and relkind <> 'i'",
    "columns": "select c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attoptions, l.collname,"
    " pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated"
    " from pg_attribute a join pg_class c on c.oid = a.attrelid and c.relkind = 'r'"
    " left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum left join pg_collation l on l.oid = a.attcollation"
    " where c.relnamespace = 'public'::regnamespace and a.attnum > 0 and not a.attisdropped",
    "constraints": "select conrelid::regclass::text, contype, pg_get_constraintdef(oid), convalidated from pg_constraint"
    " where connamespace = 'public'::regnamespace and contype <> 'n'",
    "indexes": "select indexname, indexdef from pg_indexes where schemaname = 'public'",
    "functions": "select proname from pg_proc where pronamespace = 'public'::regnamespace",
    "triggers": "select tgname from pg_trigger where not tgisinternal",
}


async def catalog(connection: "asyncpg.Connection[Row]") -> dict[str, list[str]]:
    return {
        part: sorted(str(tuple(row)) for row in await connection.fetch(query))
        for part, query in CATALOG.items()
    }


async def test_schema_and_migrations_build_the_same_database(
    two_ways: list["asyncpg.Connection[Row]"],
) -> None:
    from_schema, step_by_step = [await catalog(connection) for connection in two_ways]

    assert from_schema == step_by_step


CHANGES = [
    "alter table links add column more text",
    "alter table links alter column metadata drop not null",
    "alter table links alter column project_id reset (n_distinct)",
    "alter table links alter column metadata set default '{}'",
    'alter table links alter column customer_reference type text collate "POSIX"',
    "alter table links add check (id <> '')",
    "create index more on links (project_id, created_at)",
    "drop index links_by_contact",
    "alter table deliveries set (fillfactor = 80)",
    "create table more (n integer)",
    "create sequence more",
    "create function more() returns integer language sql as 'select 1'",
]


async def test_the_comparison_sees_every_kind_of_change(source: Source) -> None:
    connection = await source.connect()
    before = await catalog(connection)
    unseen = []
    for change in CHANGES:
        undo = connection.transaction()
        await undo.start()
        await connection.execute(change)
        if await catalog(connection) == before:
            unseen.append(change)
        await undo.rollback()
    await connection.close()

    assert unseen == []


# Planned


@pytest.fixture(scope="module")
def filled(pg: Embedded) -> Iterator[Source]:
    """A database of realistic size: 20 projects, 20,000 rows in each hot table, most of them over and done with."""
    name = f"t_{uuid4().hex}"
    parts = pg.address.dsn_kwargs()

    async def fill() -> None:
        admin = await asyncpg.connect(**parts)
        await admin.execute(f"create database {name} template wabery_template")
        await admin.close()
        connection = await asyncpg.connect(**{**parts, "database": name})
        await grow(connection)
        await connection.execute("analyze", timeout=60)
        await connection.close()

    async def drop() -> None:
        admin = await asyncpg.connect(**parts)
        await admin.execute(f"drop database {name} with (force)")
        await admin.close()

    asyncio.run(fill())
    yield Source(parts={**parts, "database": name})
    asyncio.run(drop())


async def grow(connection: "asyncpg.Connection[Row]") -> None:
    """Fills the tables, and keeps autovacuum away: what it finds depends on when it comes by."""
    for table in sorted(HOT):
        await connection.execute(f"alter table {table} set (autovacuum_enabled = off)")
    await connection.execute(FILLING, timeout=60)


FILLING = """
create function p(n integer) returns text language sql immutable as $$ select 'proj_' || n % 20 $$;
create function at(n integer) returns timestamptz language sql immutable as $$
    select timestamptz '2026-06-01Z' + n * interval '1 minute' $$;
insert into organizations select 'org_1', 'Acme', at(0);
insert into projects select p(n), 'org_1', p(n), false, '{token}', '{}', 1800, 86400, false, 'accept', 'reject',
    'replace', 1, at(0) from generate_series(0, 19) n;
insert into api_keys (id, project_id, kind, name, hash, last4, scopes, allowed_origins, created_at)
    select 'key_' || n, p(n), 'secret', 'server', sha256(n::text::bytea), 'abcd', '{}', '{}', at(0)
    from generate_series(0, 39) n;
insert into channels (id, project_id, provider, name, phone_number_id, display_phone_number, waba_id, sandbox,
    credentials, secret_version, created_at)
    select 'channel_' || n, p(n), 'meta', 'main', n::text, '15550100', 'w', false, '', 1, at(0) from generate_series(0, 19) n;
insert into identity_scopes select p(n), 'w', '{w}' from generate_series(0, 19) n;
insert into webhook_endpoints (id, project_id, is_default, url, secrets, secret_version, created_at)
    select 'we_' || n, p(n), true, 'https://example.com', '', 1, at(0) from generate_series(0, 19) n;
insert into registration_intents (project_id, id, status, customer_reference, metadata, reference_trust, channel_id,
    api_key_id, token_hash, token_prefix, secret_version, created_at, expires_at, ended_at, contact_id, message_id, joined_at)
    select p(n), 'reg_' || n, case when n % 10 = 0 then 'PENDING' else 'JOINED' end, 'user_' || n / 40, '{}', 'server',
    'channel_' || n % 20, 'key_' || n % 20, sha256(n::text::bytea), 'abcdef', 1, at(n), at(n + 30),
    case when n % 10 > 0 then at(n) end, case when n % 10 > 0 then 'contact_' || n end,
    case when n % 10 > 0 then 'msg_' || n end, case when n % 10 > 0 then at(n) end from generate_series(1, 20000) n;
insert into contacts (project_id, id, created_at) select p(n), 'contact_' || n, at(n) from generate_series(1, 20000) n;
insert into identifiers (project_id, contact_id, kind, scope, value, created_at)
    select p(n), 'contact_' || n, k.kind, k.scope, k.kind || n, at(n)
    from generate_series(1, 10000) n, (values ('bsuid', 'w'), ('phone', '')) k (kind, scope);
insert into conversations select p(n), 'conv_' || n, 'channel_' || n % 20, 'contact_' || n, at(n)
    from generate_series(1, 20000) n;
insert into links (project_id, id, contact_id, customer_reference, registration_intent_id, reference_trust, metadata, created_at)
    select p(n), 'link_' || n, 'contact_' || n, 'user_' || n, 'reg_' || n, 'server', '{}', at(n) from generate_series(1, 20000) n;
insert into messages (project_id, id, channel_id, provider_message_id, kind, type, forwarded, sent_at, received_at)
    select p(n), 'msg_' || n, 'channel_' || n % 20, 'wamid.' || n, 'message', 'text', false, at(n), at(n)
    from generate_series(1, 20000) n;
insert into events select p(n), 'evt_' || n, 'message.received', 'contact_' || n, null, '{}', at(n)
    from generate_series(1, 20000) n;
insert into deliveries (project_id, id, event_id, endpoint_id, state, due_at, created_at, ended_at)
    select p(n), 'dlv_' || n, 'evt_' || n, 'we_' || n % 20, case when n % 20 = 0 then 'pending' else 'delivered' end,
    case when n % 20 = 0 then at(n) end, at(n), case when n % 20 > 0 then at(n) end from generate_series(1, 20000) n;
insert into delivery_attempts select p(n), 'dlv_' || n, 1, 'delivered', 200, null, '', null, 1.5, at(n)
    from generate_series(1, 20000) n;
insert into idempotency_keys select p(n), 'key_' || n % 20, 'POST /v1/registration-intents', n::text, '', 200, '', 1, '{}',
    at(n), at(n + 1440) from generate_series(1, 20000) n;
insert into api_key_uses select p(n), 'key_' || n, at(n) from generate_series(0, 39) n;
insert into audit select 'audit_' || n, 'org_1', p(n), 'cli:ann', 'x', 'y', '{}', at(n) from generate_series(1, 2000) n;
drop function p, at;
"""


class Plan(NamedTuple):
    indexes: set[str]
    scanned: set[str]
    """Tables read from end to end."""

    @property
    def hot_indexes(self) -> set[str]:
        return {name for name in self.indexes if any(name.startswith(table) for table in HOT)}


async def plan(connection: "asyncpg.Connection[Row]", text: str) -> Plan:
    """The plan that is kept for the statement, whatever its values will be."""
    prepared = await connection.prepare(text)
    values = ", ".join(f"null::{one.schema}.{_sql_type(one.name)}" for one in prepared.get_parameters())
    await connection.execute(f"prepare planned as {text}")
    raw = await connection.fetchval(f"explain (format json) execute planned{f'({values})' if values else ''}")
    await connection.execute("deallocate planned")
    found = Plan(set(), set())
    _walk(msgspec.json.decode(raw)[0]["Plan"], found)
    return found


def _sql_type(name: str) -> str:
    return f"{name[:-2]}[]" if name.endswith("[]") else name


def _walk(node: dict[str, Any], found: Plan) -> None:
    if name := node.get("Index Name"):
        found.indexes.add(name)
    if node["Node Type"] == "Seq Scan":
        found.scanned.add(node["Relation Name"])
    found.indexes.update(node.get("Conflict Arbiter Indexes", ()))
    for child in node.get("Plans", ()):
        _walk(child, found)


INDEXES = {
    "contacts.sql:holder": {"identifiers_current"},
    "contacts.sql:lock": {"contacts_pkey"},
    "contacts.sql:find": {"contacts_pkey", "identifiers_pkey"},
    "contacts.sql:rename": {"contacts_pkey"},
    "contacts.sql:mark": {"contacts_pkey"},
    "contacts.sql:advance": {"contacts_pkey"},
    "contacts.sql:move_conversations": {"conversations_pkey"},
    "contacts.sql:ended_at": {"links_ended"},
    "contacts.sql:supersede_identifier": {"identifiers_current"},
    "contacts.sql:regain_identifier": {"identifiers_pkey"},
    "contacts.sql:conversation": {"conversations_pkey"},
    "contacts.sql:newest_conversation": {"conversations_pkey"},
    "contacts.sql:links_of_contact": {"links_by_contact"},
    "contacts.sql:refresh_link": {"links_pkey"},
    "contacts.sql:end_link": {"links_pkey"},
    "idempotency.sql:insert": {"idempotency_keys_pkey"},
    "idempotency.sql:find": {"idempotency_keys_pkey"},
    "inbox.sql:received_before": {"messages_project_id_channel_id_provider_message_id_key"},
    "inbox.sql:insert": {"messages_project_id_channel_id_provider_message_id_key"},
    "inbox.sql:replace": {"messages_pkey"},
    "intents/intent.sql:insert": {"registration_intents_caps", "registration_intents_pkey"},
    "intents/intent.sql:find": {"registration_intents_pkey"},
    "intents/intent.sql:lock_by_token": {
        "registration_intents_project_id_token_hash_key",
        "links_by_reference",
    },
    "intents/intent.sql:settle": {"registration_intents_pkey", "links_ended"},
    "intents/intent.sql:note_reuse": {"registration_intents_pkey"},
    "outbox.sql:any_due_queues": {"deliveries_due_anywhere"},
    "outbox.sql:claim": {"deliveries_due", "deliveries_pkey", "events_pkey"},
    "outbox.sql:settle": {"deliveries_pkey"},
}
"""Which indexes of hot tables serve a hot statement; a plain insert has none to look into."""


async def kept_plans(source: Source, **settings: str) -> dict[str, Plan]:
    """The plans that a connection keeps of every hot statement, for one row and for as many as it may take."""
    connection = await source.connect(**{"plan_cache_mode": "force_generic_plan", **settings})
    plans: dict[str, Plan] = {}
    for one in ALL:
        if one.hot:
            each = [await plan(connection, text) for text in one.shapes]
            plans[one.called] = Plan(
                set().union(*(found.indexes for found in each)),
                set().union(*(found.scanned for found in each)),
            )
    await connection.close()
    return plans


async def test_every_hot_statement_is_served_by_its_index(filled: Source) -> None:
    plans = await kept_plans(filled)

    of_hot_tables = {called: found.hot_indexes for called, found in plans.items()}
    assert {called: indexes for called, indexes in of_hot_tables.items() if indexes} == INDEXES
    assert not {called: found.scanned & HOT for called, found in plans.items() if found.scanned & HOT}


@pytest.mark.parametrize("analysed_empty", [False, True])
async def test_a_database_that_grows_from_nothing_gets_the_same_plans(
    source: Source, database: Database, analysed_empty: bool
) -> None:
    connection = await source.connect()
    if analysed_empty:
        await connection.execute("vacuum analyze")
    await grow(connection)

    analysed = await database.run(statistics.gather)
    after = await kept_plans(source, **LANE)
    again = await database.run(statistics.gather)
    await connection.close()

    of_hot_tables = {called: found.hot_indexes for called, found in after.items()}
    assert {called: indexes for called, indexes in of_hot_tables.items() if indexes} == INDEXES
    assert set(analysed) >= HOT - {"api_key_uses"}
    assert again == []


async def test_few_pending_intents_do_not_tempt_the_planner(source: Source) -> None:
    connection = await source.connect()
    await grow(connection)
    await connection.execute(
        "update registration_intents set status = 'EXPIRED', ended_at = created_at where ended_at is null"
    )
    await connection.execute("vacuum analyze")

    plans = await kept_plans(source, **LANE)
    await connection.close()

    of_intents = {called: found for called, found in INDEXES.items() if called.startswith("intents/")}
    assert {called: plans[called].hot_indexes for called in of_intents} == of_intents


async def test_many_projects_with_a_row_or_two_do_not_tempt_the_planner(source: Source) -> None:
    connection = await source.connect()
    await grow(connection)
    for table in sorted(HOT):
        numbered = f"(select ctid as place, row_number() over () as n from {table}) w"
        await connection.execute(f"delete from {table} t using {numbered} where t.ctid = w.place and n > 120")
        await connection.execute(
            f"update {table} t set project_id = 'proj_' || n % 100 from {numbered} where t.ctid = w.place"
        )
    await connection.execute("vacuum full analyze", timeout=60)

    plans = await kept_plans(source, **LANE)
    await connection.close()

    of_hot_tables = {called: found.hot_indexes for called, found in plans.items()}
    assert {called: indexes for called, indexes in of_hot_tables.items() if indexes} == INDEXES


# Written for one row


def test_a_statement_for_one_row_becomes_one_for_as_many_as_are_needed() -> None:
    insert = "insert into t (a, b) values ($1, $2::json) on conflict do nothing"
    read = "select t.* from (values ($1::text, $2::bytea)) w (a, b) join t on t.a = w.a and t.b = w.b"

    assert for_rows(insert, 1) == insert
    assert for_rows(insert, 3).endswith(
        "values ($1, $2::json), ($3, $4::json), ($5, $6::json) on conflict do nothing"
    )
    assert "(values ($1::text, $2::bytea), ($3::text, $4::bytea)) w (a, b)" in for_rows(read, 2)


@pytest.mark.parametrize(
    "text",
    [
        "select a from t where b = $1",
        "insert into t (a) values (now())",
        "insert into t (a, b) values ($1, $2) on conflict (a) do update set b = $3",
        "insert into t (a) values ($1) returning (select max(b) from (values ($2)) w (b))",
    ],
)
def test_a_statement_that_cannot_take_rows_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a statement for rows"):
        for_rows(text, 2)


async def test_more_rows_than_a_statement_takes_are_cut(database: Database) -> None:
    many = [(f"org_{number:03}",) for number in range(2 * MOST_ROWS + 1)]

    async def count(tx: Tx) -> list[int]:
        text = "select w.id, count(*) over () as together from (values ($1::text)) w (id)"
        rows = await tx.rows_each(text, many)
        assert [row["id"] for row in rows] == [one for (one,) in many]
        return sorted({row["together"] for row in rows})

    assert await database.run(count) == [1, MOST_ROWS]


# Held to the rules


_NO_MOMENT = re.compile(
    r"\b(now|random|gen_random_uuid|uuidv[47]|uuid_generate_v\w+|clock_timestamp|statement_timestamp|timeofday"
    r"|transaction_timestamp|nextval)\s*\(|\b(current_(timestamp|date|time)|local(timestamp|time))\b",
    re.IGNORECASE,
)
_NO_MACHINERY = re.compile(
    r"\b(sequence|serial|bigserial|smallserial|generated|trigger|advisory|temp|temporary|lock\s+table|exclude"
    r"|deferrable|listen|notify|pg_notify|isolation|create_distributed_table)\b",
    re.IGNORECASE,
)
_WRITES = re.compile(
    r"(?<!for )(?<!do )\b(?:insert into|update|delete from)\s+(?!of\b|skip\b)(\w+)", re.IGNORECASE
)
_READS = re.compile(
    r"\b(?:from|join|using|insert into|(?<!for )(?<!do )update)\s+(\w+)(?:\s+(?:as\s+)?(\w+))?", re.IGNORECASE
)
_NO_ALIAS = {
    "where",
    "set",
    "left",
    "join",
    "order",
    "group",
    "for",
    "on",
    "values",
    "returning",
    "limit",
    "inner",
}


def bare(text: str) -> str:
    """SQL without comments and literals, in one line."""
    text = re.sub(r"--[^\n]*", "", text)
    return " ".join(re.sub(r"'[^']*'", "''", text).split())


def outermost(text: str) -> str:
    """Without anything in parentheses."""
    while text != (text := re.sub(r"\([^()]*\)", " ", text)):
        pass
    return text


def complaints(statement: Statement) -> list[str]:
    """Which rules a statement breaks, as far as its text can tell."""
    text = bare(statement.text)
    used = {
        (table, alias if alias and alias.lower() not in _NO_ALIAS else table)
        for table, alias in _READS.findall(text)
    }
    anybody = statement.name.startswith("any_")
    found = []
    for table, alias in sorted(used):
        if table in OF_A_PROJECT and not anybody and not _names_project(text, table, alias):
            found.append(f"does not name the project of {table}")
    if anybody and re.search(r"\bfor (update|share|no key update|key share)\b", text):
        found.append("locks the rows of any project")
    if anybody and _WRITES.search(text):
        found.append("writes for any project")
    if _NO_MOMENT.search(text):
        found.append("makes a time, an id or a random value")
    if _NO_MACHINERY.search(text):
        found.append("uses what a sharded database refuses or what a hint must not be")
    written = [table for table in _WRITES.findall(text) if table in HOT]
    if len(written) != len(set(written)):
        found.append("changes a table twice")
    # `insert … select w.id from (values ($1)) w where (…)` takes no rows from any table: it is VALUES with a condition.
    given = re.sub(r"\bfrom \(values \([^()]*\)\)", "", text)
    if re.search(rf"\binsert into ({'|'.join(HOT)})\b[^()]*select\b.*\bfrom\b", outermost(given)):
        found.append("inserts what it selects")
    if re.search(rf"\(\s*insert into ({'|'.join(HOT)})\b", text):
        found.append("inserts within a larger statement")
    for part in re.findall(r"select\b(?:(?!\bselect\b).)*skip locked", text):
        if not re.search(r"project_id = \$\d", part):
            found.append("claims without key equality")
    return found


def _names_project(text: str, table: str, alias: str) -> bool:
    if re.search(rf"insert into {table} \([^)]*\bproject_id\b|insert into projects\b", text):
        return True
    owner = rf"\b{alias}\." if alias != table else rf"(?:(?<![.\w])|\b{alias}\.)"
    column = "id" if table == "projects" else "project_id"
    return re.search(rf"{owner}{column} = (\$\d|any\(\$\d|\w+\.project_id)", text) is not None


@every_statement
def test_a_statement_keeps_the_rules(statement: Statement) -> None:
    assert complaints(statement) == []


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("find", "select id from links where id = $1", "does not name the project of links"),
        (
            "find",
            "select l.id from links l join contacts c on c.id = l.contact_id where l.project_id = $1",
            "does not name the project of contacts",
        ),
        ("set_name", "update projects set name = $1", "does not name the project of projects"),
        ("audit_trail", "select id from audit order by id", "does not name the project of audit"),
        (
            "any_due",
            "select id from deliveries d where d.due_at < $1 for update skip locked",
            "locks the rows of any project",
        ),
        ("any_end", "update links set ended_at = $1", "writes for any project"),
        (
            "end",
            "update links set ended_at = now() where project_id = $1",
            "makes a time, an id or a random value",
        ),
        (
            "insert",
            "insert into links (project_id, id) values ($1, gen_random_uuid())",
            "makes a time, an id or a random value",
        ),
        (
            "wake",
            "select pg_notify('due', id) from events where project_id = $1",
            "uses what a sharded database refuses or what a hint must not be",
        ),
        (
            "lock",
            "lock table links",
            "uses what a sharded database refuses or what a hint must not be",
        ),
        (
            "copy",
            "insert into links (project_id, id) select w.project_id, w.id from unnest($1::text[]) as w",
            "inserts what it selects",
        ),
        (
            "join",
            "with new as (insert into contacts (project_id, id) values ($1, $2) returning id) select id from new",
            "inserts within a larger statement",
        ),
        (
            "move",
            "with a as (update links set ended_at = $2 where project_id = $1), b as (delete from links) select 1",
            "changes a table twice",
        ),
        (
            "claim",
            "select id from deliveries d where d.project_id in ($1, $2) and d.due_at < $3 for update skip locked",
            "claims without key equality",
        ),
    ],
)
def test_a_statement_that_breaks_a_rule_is_seen(name: str, text: str, complaint: str) -> None:
    assert complaint in complaints(Statement("bad.sql", name, text, hot=True))


def model_complaints(text: str) -> list[str]:
    """Which rules a file of the data model breaks."""
    found = []
    plain = bare(text)
    if _NO_MOMENT.search(plain):
        found.append("makes a time, an id or a random value")
    if _NO_MACHINERY.search(plain):
        found.append("uses what a sharded database refuses")
    for command in outermost(plain).split(";"):
        words = command.strip().lower()
        if words.startswith("alter table") and "," in words:
            found.append("changes a table in two ways at once")
        if re.search(r"\b(drop|rename|truncate|set not null|alter column (?!\w+ set$))", words):
            found.append("takes away what an older server uses")
    return found


@pytest.mark.parametrize(
    "file", ["schema.sql", *[f"migrations/{p.name}" for p in (PACKAGE / "db/migrations").iterdir()]]
)
def test_the_model_keeps_the_rules(file: str) -> None:
    assert model_complaints((PACKAGE / "db" / file).read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "create table more (id bigserial primary key);",
        "create table more (id integer generated always as identity);",
        "create table more (at timestamptz not null default now());",
        "create table more (n integer, exclude using gist (n with =));",
        "create trigger watch after insert on links execute function watch();",
        "alter table links add column a text, add column b text;",
        "alter table links drop column metadata;",
        "alter table links rename column metadata to more;",
        "alter table links alter column id type bytea;",
        "drop index links_by_contact;",
    ],
)
def test_a_model_that_breaks_a_rule_is_seen(text: str) -> None:
    assert model_complaints(text) != []


async def key_complaints(connection: "asyncpg.Connection[Row]") -> list[str]:
    """Unique keys of hot tables that do not begin with project_id, and foreign keys between what may live apart."""
    unique = await connection.fetch(
        "select i.indrelid::regclass::text as owner, i.indexrelid::regclass::text as name, a.attname as first"
        " from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]"
        " join pg_class c on c.oid = i.indrelid and c.relnamespace = 'public'::regnamespace where i.indisunique"
    )
    foreign = await connection.fetch(
        "select k.conrelid::regclass::text as owner, k.confrelid::regclass::text as target, a.attname as first"
        " from pg_constraint k join pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]"
        " where k.contype = 'f'"
    )
    found = [
        f"{row['name']} begins with {row['first']}"
        for row in unique
        if row["owner"] in HOT and row["first"] != "project_id"
    ]
    for row in foreign:
        apart = (row["owner"] in HOT) != (row["target"] in HOT)
        if apart or (row["owner"] in HOT and row["first"] != "project_id"):
            found.append(f"{row['owner']} refers to {row['target']} by {row['first']}")
    return found


async def test_every_unique_key_of_a_hot_table_begins_with_the_project(source: Source) -> None:
    connection = await source.connect()

    found = await key_complaints(connection)
    await connection.close()

    assert found == []


CROSSING = [
    "create unique index more on links (registration_intent_id)",
    "alter table links add unique (id)",
    "alter table events add foreign key (project_id) references projects (id)",
    "alter table links drop constraint links_pkey, add primary key (id, project_id)",
    "alter table audit add foreign key (project_id, target) references links (project_id, id)",
]


async def test_a_key_that_would_cross_projects_is_seen(source: Source) -> None:
    connection = await source.connect()
    unseen = []
    for change in CROSSING:
        undo = connection.transaction()
        await undo.start()
        await connection.execute(change)
        if not await key_complaints(connection):
            unseen.append(change)
        await undo.rollback()
    await connection.close()

    assert unseen == []


def test_the_model_is_told_apart_into_small_and_hot_tables() -> None:
    assert "projects" in SMALL
    assert {"registration_intents", "deliveries", "idempotency_keys"} <= HOT
    assert not SMALL & HOT
    assert HOT <= OF_A_PROJECT


def test_every_statement_is_used_by_the_room_beside_it() -> None:
    unused = []
    for statement in ALL:
        beside = (PACKAGE / statement.file).parent.glob("*.py")
        word = re.compile(rf"\bsql\.{statement.name}\b")
        if not any(word.search(path.read_text()) for path in beside):
            unused.append(statement.called)

    assert unused == []


@pytest.mark.parametrize(
    ("word", "allowed"),
    [
        (r"\b(pg_)?notify\b|add_listener", {"db/signals.py"}),
        (r"advisory", {"db/migrate.py"}),
        (r"\bisolation=|set transaction", set()),
    ],
)
def test_what_only_one_place_may_do_is_done_there_alone(word: str, allowed: set[str]) -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if re.search(word, "\n".join(line.partition("#")[0] for line in path.read_text().splitlines()))
    }

    assert found == allowed
