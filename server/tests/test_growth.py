"""Every statement costs the same however many rows there are: buffers and rows are counted on a small and on a large database.

Both have the same projects, keys, channels and endpoints, and differ in the rows of the tables that grow. Most rows belong
to one project, one person and one customer reference, and what a list may be filtered by is rare among them.
"""

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import uuid4

import asyncpg
import msgspec
import pytest
from test_schema import ALL, HOT, Statement

from wabery_server.db import LANE, POOL, Row, Source
from wabery_server.db.embedded import Embedded
from wabery_server.db.lists import LOOKED_AT
from wabery_server.db.queries import for_rows

SMALL_ROWS, LARGE_ROWS = 12_000, 500_000

pytestmark = pytest.mark.timeout(300)
"""The first test also waits for the databases to be filled."""

NUMBERS = """
create unlogged table numbers as
select n, 'proj_' || k as p, k, timestamptz '2026-06-01Z' + n * interval '1 second' as at, lpad(n::text, 26, '0') as tail
from generate_series(1, {rows}) n
cross join lateral (select case when n % 10 > 0 then 0 else n / 10 % 20 end as k) k
"""
"""Row n, its project (nine of ten belong to project 0), its moment in seconds, and the end of its ids, which sort by n."""

FEW = """
insert into organizations values ('org_1', 'Acme', '2026-06-01Z');
insert into installation (organization_id, secret_check, secret_version, created_at) values ('org_1', '', 1, '2026-06-01Z');
insert into projects (id, organization_id, name, livemode, prefilled_text, prefilled_texts, publishable_expires_in,
    secret_expires_in, supersede, unsigned_references, on_identity_linked, on_reference_linked, references_per_contact,
    created_at)
    select 'proj_' || n, 'org_1', 'a', false, '{token}', '{}', 1800, 86400, false, 'accept', 'reject', 'replace', 1,
    '2026-06-01Z' from generate_series(0, 19) n;
insert into api_keys (id, project_id, kind, name, hash, last4, scopes, allowed_origins, created_at, revoked_at, cleared_at,
    previous_hash, previous_ends_at)
    select 'key_' || n, 'proj_' || n % 20, 'secret', 'a', sha256(n::text::bytea), 'abcd', '{}', '{}', '2026-06-01Z',
    case when n >= 20 then timestamptz '2026-06-01Z' end, case when n >= 40 then timestamptz '2026-06-01Z' end,
    sha256(('old' || n)::bytea), '2026-06-01Z' from generate_series(0, 399) n;
insert into channels (id, project_id, provider, name, phone_number_id, display_phone_number, waba_id, sandbox,
    credentials, secret_version, created_at, deleted_at, cleared_at)
    select 'channel_' || n, 'proj_' || n % 20, 'meta', 'a', n::text, '15550100', 'w', false, '', 1, '2026-06-01Z',
    case when n >= 40 then timestamptz '2026-06-01Z' end, case when n >= 60 then timestamptz '2026-06-01Z' end
    from generate_series(0, 79) n;
insert into identity_scopes select 'proj_' || n, 'w', '{w}' from generate_series(0, 19) n;
insert into webhook_endpoints (id, project_id, is_default, url, secrets, secret_version, created_at)
    select 'we_' || n, 'proj_' || n, true, 'https://example.com', '', 1, '2026-06-01Z' from generate_series(0, 19) n;
insert into api_key_uses select 'proj_' || n % 20, 'key_' || n, '2026-06-01Z' from generate_series(0, 399) n;
"""

ONE = "'" + "1".zfill(26)
MANY = {
    "registration_intents": """
        (project_id, id, status, customer_reference, metadata, reference_trust, channel_id, api_key_id, token_hash,
        token_prefix, secret_version, created_at, expires_at, ended_at, contact_id, message_id, joined_at, rejection_reason)
        select p, 'reg_' || tail, status, case when n % 3 > 0 then 'guest' else 'user_' || n end, '{}', 'server',
        'channel_' || case when n % 10000 = 9 then 20 else k end, 'key_' || k, sha256(n::text::bytea), 'abcdef', 1, at,
        at + interval '1 minute', case when status <> 'PENDING' then at end,
        case when status = 'JOINED' then 'contact_' || case when n % 3 = 0 then tail else {one} end end,
        case when status = 'JOINED' then 'msg_' || tail end, case when status = 'JOINED' then at end,
        case when status = 'REJECTED' then 'canceled_by_app' end
        from numbers
        cross join lateral (select case when n % 2000 = 1 then 'REJECTED' when n % 2000 = 2 then 'EXPIRED'
            when n % 3 = 1 then 'PENDING' else 'JOINED' end as status) s""",
    "contacts": """(project_id, id, created_at, duplicate_of)
        select p, 'contact_' || tail, at, case when n % 2 = 0 then 'contact_1' end from numbers""",
    "identifiers": """(project_id, contact_id, kind, scope, value, created_at)
        select p, 'contact_' || tail, k.kind, k.scope, k.kind || n, at
        from numbers, (values ('bsuid', 'w'), ('phone', '')) k (kind, scope) where n <= {rows} / 2""",
    "conversations": "select p, 'conv_' || tail, 'channel_' || n % 20, 'contact_' || tail, at from numbers",
    "links": """(project_id, id, contact_id, customer_reference, registration_intent_id, reference_trust, metadata,
        created_at, ended_at, end_reason)
        select p, 'link_' || tail, 'contact_' || case when n % 2 = 0 then tail else {one} end,
        case when n % 2 = 0 then 'user_' || n else 'guest' end, 'reg_' || tail, 'server', '{}', at,
        case when n % 2 > 0 then at end, case when n % 2 > 0 then 'replaced' end from numbers""",
    "messages": """(project_id, id, channel_id, provider_message_id, kind, type, forwarded, sent_at, received_at,
        placeholder)
        select p, 'msg_' || tail, 'channel_' || n % 20, 'wamid.' || n, 'message', 'text', false, at, at, n % 2 = 0
        from numbers""",
    "failed_messages": "select p, 'msg_' || tail, '', 1, at from numbers",
    "events": """(project_id, id, type, contact_id, registration_intent_id, body, created_at)
        select p, 'evt_' || tail, case when n % 2000 in (3, 6) then 'participant.unlinked'
            when n % 2 = 0 then 'participant.joined' else 'message.received' end,
        'contact_' || case when n % 3 > 0 then {one} else tail end,
        'reg_' || case when n % 4 = 0 then {one} when n % 2 = 0 then tail end, '{}', at from numbers""",
    "deliveries": """(project_id, id, event_id, endpoint_id, state, due_at, created_at, ended_at)
        select p, 'dlv_' || tail, 'evt_' || tail, 'we_' || k, state, case when state = 'pending' then at end, at,
        case when state = 'delivered' then at end from numbers
        cross join lateral (select case when n % 3 = 0 then 'pending' when n % 3 = 1 then 'held' else 'delivered' end) s
            (state)""",
    "delivery_attempts": "select p, 'dlv_' || tail, 1, 'delivered', 200, null, '', null, 1.5, at from numbers",
    "idempotency_keys": """select p, 'key_' || n % 20, 'POST /v1/registration-intents', n::text, '', 200, '', 1, '{}', at,
        at + interval '1 minute' from numbers""",
    "audit": "select 'audit_' || tail, 'org_1', p, 'cli:ann', 'x', 'y', '{}', at from numbers",
}


async def fill(connections: Sequence["asyncpg.Connection[Row]"], rows: int) -> None:
    """Fills a database, a table on each connection."""
    await connections[0].execute(NUMBERS.replace("{rows}", str(rows)), timeout=120)
    await connections[0].execute(FEW)
    tables = list(MANY)

    async def work(connection: "asyncpg.Connection[Row]") -> None:
        while tables:
            await fill_table(connection, tables.pop(0), rows)

    await asyncio.gather(*[work(connection) for connection in connections])
    await connections[0].execute("drop table numbers")
    await connections[0].execute("analyze", timeout=120)


async def fill_table(connection: "asyncpg.Connection[Row]", table: str, rows: int) -> None:
    """Without constraints and indexes, which are made afterwards: that is several times faster."""
    keys = await connection.fetch(
        "select conname as name, pg_get_constraintdef(oid) as text from pg_constraint"
        " where conrelid = $1::text::regclass and contype in ('p', 'u', 'c') order by contype",
        table,
    )
    for key in keys:
        await connection.execute(f"alter table {table} drop constraint {key['name']}")
    indexes = await connection.fetch(
        "select indexrelid::regclass::text as name, pg_get_indexdef(indexrelid) as text"
        " from pg_index where indrelid = $1::text::regclass",
        table,
    )
    for index in indexes:
        await connection.execute(f"drop index {index['name']}")
    await connection.execute(f"alter table {table} set (autovacuum_enabled = off)")
    text = MANY[table].replace("{rows}", str(rows)).replace("{one}", f"{ONE}'")
    await connection.execute(f"insert into {table} {text}", timeout=120)
    for key in keys:
        await connection.execute(
            f"alter table {table} add constraint {key['name']} {key['text']}", timeout=60
        )
    for index in indexes:
        await connection.execute(index["text"], timeout=60)
    await connection.execute(f"vacuum {table}", timeout=60)


@pytest.fixture(scope="module")
def sizes(pg: Embedded) -> Iterator[tuple[Source, Source]]:
    """A small database and a large one; every test leaves them as they are."""
    parts = pg.address.dsn_kwargs()
    names = [f"t_{uuid4().hex}" for _ in range(2)]

    async def build() -> None:
        admin = await asyncpg.connect(**parts)
        for name in names:
            await admin.execute(f"create database {name} template wabery_template strategy file_copy")
        await admin.close()
        for name, rows in zip(names, (SMALL_ROWS, LARGE_ROWS), strict=True):
            settings = {"synchronous_commit": "off", "maintenance_work_mem": "128MB", "jit": "off"}
            opened = [
                await asyncpg.connect(**{**parts, "database": name}, server_settings=settings)
                for _ in range(2)
            ]
            await fill(opened, rows)
            for connection in opened:
                await connection.close()

    async def drop() -> None:
        admin = await asyncpg.connect(**parts)
        for name in names:
            await admin.execute(f"drop database {name} with (force)")
        await admin.close()

    asyncio.run(build())
    small, large = [Source(parts={**parts, "database": name}) for name in names]
    yield small, large
    asyncio.run(drop())


# What the statements are asked. Row n of the database is one of the common ones where n is odd, and not a multiple of 3.


def at(n: int) -> datetime:
    return datetime.fromisoformat("2026-06-01T00:00:00Z") + timedelta(seconds=n)


def name(prefix: str, n: int) -> str:
    return f"{prefix}_{n:026}"


P = "proj_0"
OLD, NEW = at(10_000), at(10_000_000)
GUEST = "guest"
ONE_PERSON = name("contact", 1)
ROW = 9_001
FRESH = 900_000_000
CALL = "POST /v1/registration-intents"
INTENT = (
    P, name("reg", FRESH), GUEST, "{}", "server", "channel_0", "key_0", None, b"fresh", "abcdef", 1, NEW, NEW,
)  # fmt: skip
PROJECT = (
    "proj_0", "a", "{token}", "{}", 1800, 86400, False, "accept", "reject", "replace", 1,
)  # fmt: skip
MESSAGE = (
    P, name("msg", FRESH), "channel_0", "wamid.fresh", "message", "text", None, None, "a", False, NEW, NEW, None, None,
    None, None, "app", None, None, None, False, False, None,
)  # fmt: skip
LEAST, END = "evt_", "evt_~"
PAGE = (P, LEAST, END, 11, 11)
LOOK = (P, LEAST, END, LOOKED_AT, 11)
INTENTS = (P, "reg_", "reg_~", 11, 11)
INTENTS_LOOK = (P, "reg_", "reg_~", LOOKED_AT, 11)
RARE = "participant.unlinked"

SAMPLES: dict[str, list[tuple[object, ...]]] = {
    "accounts/channel.sql:insert_channel": [
        ("channel_new", P, "meta", "a", "999999", "15550100", "w", None, False, b"", 1, NEW)
    ],
    "accounts/channel.sql:list_channels": [(P, None, 11)],
    "accounts/channel.sql:find_channel": [(P, "channel_0")],
    "accounts/channel.sql:find_deleted_channel": [(P, "channel_60")],
    "accounts/channel.sql:lock_channel": [(P, "channel_0")],
    "accounts/channel.sql:lock_scopes": [(P,)],
    "accounts/channel.sql:families": [(P, ["w", "x"])],
    "accounts/channel.sql:share_scopes": [(P, "w", ["w", "x"])],
    "accounts/channel.sql:credentials": [(P, "channel_0")],
    "accounts/channel.sql:update_channel": [(P, "channel_0", "b", "15550101", None, b"", 1)],
    "accounts/channel.sql:delete_channel": [(P, "channel_0", NEW)],
    "accounts/channel.sql:clear_channel": [(P, "channel_40", NEW)],
    "accounts/directory.sql:channels": [([P, "proj_1"],)],
    "accounts/directory.sql:any_channels_by_number": [("meta", "0")],
    "accounts/directory.sql:any_credentials": [(["meta"],)],
    "accounts/directory.sql:record_use": [(P, "key_0", NEW)],
    "accounts/endpoint.sql:insert_endpoint": [("we_new", P, False, None, b"", 1, None, NEW)],
    "accounts/endpoint.sql:endpoints": [([P],)],
    "accounts/endpoint.sql:listeners": [([P],)],
    "accounts/endpoint.sql:default_endpoint": [(P,)],
    "accounts/endpoint.sql:set_url": [(P, "we_0", "https://example.org")],
    "accounts/endpoint.sql:set_secrets": [(P, "we_0", b"", 1)],
    "accounts/endpoint.sql:disable_endpoint": [(P, "we_0", "gone", NEW)],
    "accounts/installation.sql:insert_installation": [("org_1", b"", 1, NEW)],
    "accounts/installation.sql:insert_organization": [("org_2", "a", NEW)],
    "accounts/installation.sql:installation": [()],
    "accounts/installation.sql:advance": [(b"", 2)],
    "accounts/installation.sql:registered_versions": [()],
    "accounts/installation.sql:register_version": [(7, b"", NEW)],
    "accounts/installation.sql:unregister_version": [(7,)],
    "accounts/installation.sql:any_needs": [(1, NEW)],
    "accounts/installation.sql:any_sealed": [(2, "", "", 100)],
    "accounts/installation.sql:reseal_channel": [(P, "channel_0", b"", b"x", 2)],
    "accounts/installation.sql:reseal_failed_message": [(P, name("msg", 11), b"", b"x", 2)],
    "accounts/installation.sql:reseal_endpoint": [(P, "we_0", b"", b"x", 2)],
    "accounts/key.sql:insert_key": [
        ("key_new", P, "secret", "a", b"new", None, "abcd", ["registrations:read"], [], NEW, None)
    ],
    "accounts/key.sql:list_keys": [(P, None, 11)],
    "accounts/key.sql:find_key": [(P, "key_0")],
    "accounts/key.sql:any_live_keys": [([b"one", b"two"],)],
    "accounts/key.sql:any_replaced_keys": [([b"one", b"two"],)],
    "accounts/key.sql:lock_key": [(P, "key_0")],
    "accounts/key.sql:update_key": [(P, "key_0", "b", [], None)],
    "accounts/key.sql:rotate_key": [(P, "key_0", b"new", None, "abcd", NEW)],
    "accounts/key.sql:revoke_key": [(P, "key_0", NEW)],
    "accounts/key.sql:clear_key": [(P, "key_20", NEW)],
    "accounts/project.sql:any_root_of_key": [("key_0",)],
    "accounts/project.sql:lock_root": [(P,)],
    "accounts/project.sql:any_test_projects_of": [(P,)],
    "accounts/project.sql:insert_project": [("proj_new", "org_1", "a", False, *PROJECT[2:], NEW, None)],
    "accounts/project.sql:projects": [([P, "proj_1"],)],
    "accounts/project.sql:any_projects": [(None, 11)],
    "accounts/project.sql:update_project": [PROJECT],
    "accounts/trail.sql:audit": [("audit_~", None, P, "cli:ann", "x", "y", "{}", NEW)],
    "accounts/trail.sql:audit_trail": [(P, None, 11), ("proj_7", name("audit", 5_000), 11)],
    "accounts/unroutable.sql:note": [("meta", "1", "unknown_number", 1, NEW, NEW, 1000)],
    "accounts/unroutable.sql:forget": [(OLD,)],
    "accounts/unroutable.sql:any_unroutable": [(OLD, 11)],
    "api/readiness.sql:mark": [(1, NEW)],
    "contacts.sql:holder": [(P, "bsuid", "w", "bsuid11"), (P, "phone", "", "phone11")],
    "contacts.sql:lock": [(P, name("contact", ROW))],
    "contacts.sql:find": [(P, name("contact", 11))],
    "contacts.sql:insert_contact": [(P, name("contact", FRESH), None, None, None, NEW)],
    "contacts.sql:rename": [(P, name("contact", ROW), "a", "b", "DE")],
    "contacts.sql:mark": [(P, name("contact", ROW), None, name("contact", 1))],
    "contacts.sql:advance": [(P, name("contact", ROW), NEW)],
    "contacts.sql:duplicates": [(P, 11)],
    "contacts.sql:supersede_identifier": [(P, "phone", "", "phone11", NEW)],
    "contacts.sql:insert_identifier": [(P, name("contact", FRESH), "phone", "", "fresh", NEW)],
    "contacts.sql:regain_identifier": [(P, name("contact", 11), "phone", "", "phone11", NEW)],
    "contacts.sql:conversation": [(P, name("contact", ROW), "channel_1")],
    "contacts.sql:newest_conversation": [(P, name("contact", ROW))],
    "contacts.sql:insert_conversation": [(P, name("conv", FRESH), "channel_0", name("contact", FRESH), NEW)],
    "contacts.sql:move_conversations": [(P, name("contact", ROW), name("contact", ROW + 2))],
    "contacts.sql:links_of_contact": [(P, ONE_PERSON), (P, name("contact", 9_002))],
    "contacts.sql:ended_at": [(P, GUEST), (P, "user_9002")],
    "contacts.sql:insert_link": [
        (P, name("link", FRESH), ONE_PERSON, GUEST, name("reg", 1), "server", "{}", NEW)
    ],
    "contacts.sql:refresh_link": [(P, name("link", 9_002), name("reg", 1), "server", "{}")],
    "contacts.sql:end_link": [(P, name("link", 9_002), "replaced", NEW)],
    "idempotency.sql:insert": [
        (P, "key_1", CALL, "fresh", b"", 200, b"", 1, [], NEW, NEW),
        (P, "key_1", CALL, str(ROW), b"", 200, b"", 1, [], NEW, NEW),
    ],
    "idempotency.sql:find": [(P, "key_1", CALL, str(ROW), OLD)],
    "idempotency.sql:any_project_expired": [(NEW, 11), (at(0), 11)],
    "idempotency.sql:release": [(P, "key_1", CALL, str(ROW))],
    "idempotency.sql:prune": [(P, NEW, 500)],
    "inbox.sql:received_before": [(P, "channel_1", "wamid.9001")],
    "inbox.sql:insert": [MESSAGE],
    "inbox.sql:replace": [(P, name("msg", 9_002), *MESSAGE[2:])],
    "inbox.sql:insert_failed": [(P, name("msg", FRESH), b"", 1, NEW)],
    "inbox.sql:delete_failed": [(P, name("msg", 11))],
    "inbox.sql:any_failed": [(None, 11)],
    "inbox.sql:failed_object": [(P, name("msg", 11))],
    "inbox.sql:note_error": [(P, name("msg", 9_002), "a")],
    "inbox.sql:settle_placeholder": [(P, name("msg", 9_002))],
    "intents/intent.sql:insert": [
        (*INTENT, b"", 5, 100),
        (*INTENT[:4], "unverified", *INTENT[5:], b"\x01" * 8, 5, 100),
    ],
    "intents/intent.sql:pending": [(P, GUEST, b"", NEW)],
    "intents/intent.sql:crowd": [(P, GUEST, NEW, 100, 4)],
    "intents/intent.sql:note_reuse": [(P, name("reg", ROW), 2, NEW)],
    "intents/intent.sql:find": [(P, name("reg", ROW))],
    "intents/intent.sql:lock": [(P, name("reg", ROW))],
    "intents/intent.sql:lock_by_token": [(P, b"\x01")],
    "intents/intent.sql:settle": [
        (P, name("reg", 9_007), "JOINED", NEW, None, ONE_PERSON, "msg_1", NEW, False),
        (P, name("reg", 9_007), "REJECTED", NEW, "superseded", None, None, None, False),
    ],
    "intents/intent.sql:listed": [
        (*INTENTS, None, None, None, None, NEW),
        (P, "reg_", name("reg", 5_000), 11, 11, None, None, None, None, NEW),
        (P, name("reg", 4_000), name("reg", 5_000), 11, 11, None, None, None, None, NEW),
    ],
    "intents/intent.sql:listed_by_reference": [
        (*INTENTS, None, GUEST, None, None, NEW),
        (*INTENTS_LOOK, "REJECTED", GUEST, None, "channel_20", NEW),
        (*INTENTS, None, "user_9003", None, None, NEW),
    ],
    "intents/intent.sql:listed_by_contact": [
        (*INTENTS, None, None, ONE_PERSON, None, NEW),
        (*INTENTS_LOOK, "REJECTED", None, ONE_PERSON, None, NEW),
        (*INTENTS, None, None, "contact_none", None, NEW),
    ],
    "intents/intent.sql:listed_by_status": [
        (*INTENTS, "REJECTED", None, None, None, NEW, ["REJECTED"]),
        (*INTENTS, "EXPIRED", None, None, None, at(0), ["EXPIRED"]),
        (*INTENTS_LOOK, "PENDING", None, None, None, NEW, ["PENDING"]),
        (*INTENTS_LOOK, "PENDING", None, None, None, at(0), ["PENDING"]),
        (*INTENTS, None, None, None, "channel_20", NEW, ["PENDING", "JOINED", "REJECTED", "EXPIRED"]),
        (*INTENTS, None, None, None, "channel_0", NEW, ["PENDING", "JOINED", "REJECTED", "EXPIRED"]),
        (*INTENTS, "REJECTED", None, None, "channel_20", NEW, ["REJECTED"]),
    ],
    "intents/intent.sql:in_grace": [(P, "reg_", "reg_~", NEW, LOOKED_AT, None, None, None)],
    "intents/intent.sql:extend": [(P, name("reg", 9_007), NEW)],
    "intents/intent.sql:note_opened": [(P, name("reg", ROW), "qr", NEW)],
    "intents/intent.sql:any_project_due": [(NEW, 1000), (at(0), 1000)],
    "intents/intent.sql:due": [(P, NEW, 500), (P, at(0), 500)],
    "intents/intent.sql:pending_of": [
        (P, at(0), 1000, ["key_20", "key_40"], []),
        (P, at(0), 1000, [], ["channel_20"]),
        (P, at(0), 1000, ["key_0"], []),
    ],
    "intents/intent.sql:lock_pending": [(P, [name("reg", n) for n in (9_001, 9_004, 9_007)])],
    "intents/intent.sql:any_ended_with_pending": [(1000,)],
    "outbox.sql:insert_event": [
        (P, name("evt", FRESH), "message.received", ONE_PERSON, name("reg", 1), b"{}", NEW)
    ],
    "outbox.sql:insert_delivery": [(P, name("dlv", FRESH), name("evt", 1), "we_0", "pending", NEW, NEW)],
    "outbox.sql:any_due_queues": [(NEW, 1000), (at(0), 1000)],
    "outbox.sql:any_queues_after": [("", "", 1000), ("proj_1", "we_1", 1000)],
    "outbox.sql:claim": [(P, "we_0", NEW, NEW, 64)],
    "outbox.sql:settle": [(P, name("dlv", 9_003), at(9_003), "delivered", 1, None, NEW)],
    "outbox.sql:any_queues_to_resume": [("", "", 1000)],
    "outbox.sql:resume": [(P, "we_0", NEW, 500, "")],
    "outbox.sql:insert_attempt": [(P, name("dlv", ROW), 2, "delivered", 200, None, b"", None, 1.5, NEW)],
    "outbox.sql:listed": [
        (*PAGE, None, None, None),
        (P, LEAST, name("evt", 5_000), 11, 11, None, None, None),
        (*LOOK, RARE, None, None),
        (*LOOK, "webhook_endpoint.disabled", None, None),
    ],
    "outbox.sql:listed_by_contact": [
        (*PAGE, None, ONE_PERSON, None),
        (*PAGE, None, name("contact", 9_003), None),
        (*LOOK, RARE, ONE_PERSON, None),
    ],
    "outbox.sql:listed_by_intent": [
        (*PAGE, None, None, name("reg", 1)),
        (*PAGE, None, None, name("reg", 9_002)),
        (*LOOK, RARE, name("contact", 9_003), name("reg", 1)),
    ],
    "outbox.sql:find": [(P, name("evt", ROW))],
}
"""One or more calls of every statement."""

ALSO_ON_LANES = {"accounts/directory.sql:channels", "accounts/directory.sql:any_channels_by_number",
    "accounts/key.sql:any_live_keys", "accounts/key.sql:any_replaced_keys", "idempotency.sql:release",
    "intents/intent.sql:pending", "outbox.sql:any_queues_after"}  # fmt: skip
"""What is not hot, and yet may run on a connection that keeps its plans."""

READS_ALL = {
    "accounts/installation.sql:any_needs": "`doctor`, and a start with a secret missing, ask once what an old one is needed for",
    "accounts/installation.sql:any_sealed": "`wabery admin reseal` goes through everything, once after a rotation",
}
"""What an operator's command asks of the whole installation, and why it may."""


class Cost(NamedTuple):
    buffers: int
    rows: int
    """Read from a table or an index, whether or not they were used."""
    plan: str

    def grown_from(self, small: "Cost") -> bool:
        return self.buffers > 2 * small.buffers + 50 or self.rows > 2 * small.rows + 50


async def cost(connection: "asyncpg.Connection[Row]", text: str, values: tuple[object, ...]) -> Cost:
    """What a statement costs on a connection that has run it before; it leaves nothing behind."""
    undo = connection.transaction()
    await undo.start()
    await connection.execute(f"prepare asked as {text}")
    call = f"execute asked({', '.join(map(literal, values))})" if values else "execute asked"
    found = Cost(0, 0, "")
    for _ in range(2):  # the first time also reads the catalog and sets hint bits
        inner = connection.transaction()
        await inner.start()
        raw = await connection.fetchval(
            f"explain (analyze, buffers, timing off, format json) {call}", timeout=30
        )
        await inner.rollback()
        top = msgspec.json.decode(raw)[0]["Plan"]
        found = Cost(top["Shared Hit Blocks"] + top["Shared Read Blocks"], touched(top), outline(top))
    await connection.execute("deallocate asked")
    await undo.rollback()
    return found


def touched(node: dict[str, Any]) -> int:
    below = sum(touched(child) for child in node.get("Plans", ()))
    if "Scan" not in node["Node Type"] or "Plans" in node:
        return below
    per_loop = node["Actual Rows"] + sum(
        node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck")
    )
    return below + round(per_loop * node["Actual Loops"])


def outline(node: dict[str, Any], depth: int = 0) -> str:
    what = node.get("Index Name") or node.get("Relation Name") or ""
    removed = node.get("Rows Removed by Filter", 0)
    buffers = node["Shared Hit Blocks"] + node["Shared Read Blocks"]
    here = f"{'  ' * depth}{node['Node Type']} {what}: {node['Actual Rows']} x {node['Actual Loops']}, -{removed}, {buffers} buffers\n"
    return here + "".join(outline(child, depth + 1) for child in node.get("Plans", ()))


def literal(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'::bytea"
    if isinstance(value, datetime):
        return f"'{value.isoformat()}'::timestamptz"
    if isinstance(value, list):
        kind = "bytea" if value and isinstance(value[0], bytes) else "text"
        return f"array[{', '.join(map(literal, value))}]::{kind}[]"
    if isinstance(value, int | float):
        return str(value)
    return "'" + str(value).replace("'", "''") + "'"


def test_every_table_that_grows_is_filled() -> None:
    assert set(MANY) >= HOT - {"api_key_uses"}


def test_every_statement_has_a_sample() -> None:
    assert {one.called for one in ALL} == set(SAMPLES)


@pytest.mark.parametrize("statement", ALL, ids=[one.called for one in ALL])
async def test_a_statement_costs_the_same_with_forty_times_the_rows(
    sizes: tuple[Source, Source], statement: Statement
) -> None:
    if statement.called in READS_ALL:
        assert not statement.hot
        pytest.skip(READS_ALL[statement.called])
    kinds = []
    if statement.hot or statement.called in ALSO_ON_LANES:
        kinds.append(LANE)
    if not statement.hot:
        kinds.append(POOL)
    grown = []
    for kind in kinds:
        async with AsyncExitStack() as stack:
            before, after = [await connected(stack, source, kind) for source in sizes]
            for values in SAMPLES[statement.called]:
                for text, given in [(statement.text, values), *several(statement, values)]:
                    there, here = await cost(before, text, given), await cost(after, text, given)
                    if here.grown_from(there):
                        grown += [
                            f"{one.buffers} buffers, {one.rows} rows:\n{one.plan}" for one in (there, here)
                        ]

    assert not grown, "\n".join(grown)


async def connected(
    stack: AsyncExitStack, source: Source, settings: dict[str, str]
) -> "asyncpg.Connection[Row]":
    connection = await source.connect(timed=False, statement_timeout="60s", **settings)
    stack.push_async_callback(connection.close)
    return connection


def several(statement: Statement, values: tuple[object, ...]) -> list[tuple[str, tuple[object, ...]]]:
    """The statement for several rows, where it takes them and asks for nothing unique."""
    if not re.search(r"\bvalues \(\$1\b", statement.text) or statement.text.startswith("insert"):
        return []
    return [(for_rows(statement.text, 8), values * 8)]


async def test_a_statement_that_reads_all_rows_is_seen(sizes: tuple[Source, Source]) -> None:
    text = "select count(*) from events e where e.project_id = $1 and e.type = $2 and e.body = $3"

    async with AsyncExitStack() as stack:
        connections = [await connected(stack, source, POOL) for source in sizes]
        small, large = [await cost(one, text, (P, RARE, b"x")) for one in connections]

    assert large.grown_from(small)
