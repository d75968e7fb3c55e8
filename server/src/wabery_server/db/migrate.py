"""Builds a database and brings an old one forward.

A new database is made from `schema.sql`; an older one by the numbered files in `migrations/`, each in a transaction of
its own, forward only. Two processes that start together take turns.

A file that opens with `-- outside a transaction` builds indexes concurrently, so that a large table can be written to
meanwhile: each of its statements stands by itself, and can be run again.
"""

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from wabery_server.db import Row

HERE = Path(__file__).parent
_TURN = 0x57414245_5259
"""Advisory lock: who migrates. Correctness does not hang on it, a second runner would only fail loudly."""
_APPLY_SECONDS = 600
_TURN_SECONDS = 30
_CONCURRENT_SECONDS = 6 * 3600
_OUTSIDE = "-- outside a transaction\n"


class MigrationError(Exception):
    """The database cannot be brought to this version; the message says why."""


@dataclass(frozen=True)
class Migration:
    version: int
    name: str
    sql: str


def migrations() -> list[Migration]:
    """All of them, oldest first."""
    found = []
    for path in sorted((HERE / "migrations").glob("*.sql")):
        number, _, name = path.stem.partition("_")
        found.append(Migration(int(number), name, path.read_text("utf-8")))
    assert [m.version for m in found] == list(range(1, len(found) + 1)), (
        "migrations are numbered without gaps"
    )
    return found


async def pending(connection: "asyncpg.Connection[Row]") -> list[Migration]:
    """What this database still lacks. Raises MigrationError when it is newer than this program."""
    known = migrations()
    version = await _version(connection)
    if version > len(known):
        raise MigrationError(
            f"The database is at version {version}, this program knows only {len(known)}: run a newer Wabery."
        )
    return known[version:]


async def migrate(connection: "asyncpg.Connection[Row]", *, from_schema: bool = True) -> list[Migration]:
    """Applies what is pending and says what it was. `from_schema=False` builds even a new database step by step.

    Raises MigrationError; what came before the step that failed stays applied.
    """
    await connection.execute("set lock_timeout = '30s'")
    await connection.execute("set statement_timeout = 0")
    await _take_turn(connection)
    try:
        todo = await pending(connection)
        if todo and todo[0].version == 1 and from_schema:
            await _apply(connection, (HERE / "schema.sql").read_text("utf-8"), todo)
        else:
            for migration in todo:
                await _apply(connection, migration.sql, [migration])
        return todo
    finally:
        if not connection.is_closed():
            await connection.execute("select pg_advisory_unlock($1)", _TURN)


async def _take_turn(connection: "asyncpg.Connection[Row]") -> None:
    """Asks again and again, since a statement that waits would keep its snapshot, for which a concurrent index waits."""
    end = time.monotonic() + _TURN_SECONDS
    while not await connection.fetchval("select pg_try_advisory_lock($1)", _TURN):
        if time.monotonic() > end:
            raise MigrationError(
                f"Another process has been migrating for {_TURN_SECONDS} seconds: try again later."
            )
        await asyncio.sleep(0.1)


async def _apply(connection: "asyncpg.Connection[Row]", sql: str, steps: list[Migration]) -> None:
    try:
        if sql.startswith(_OUTSIDE):
            await _apply_outside(connection, sql)
            await _stamp(connection, steps[-1])
            return
        async with connection.transaction():
            await connection.execute(sql, timeout=_APPLY_SECONDS)
            for migration in steps:
                await _stamp(connection, migration)
    except asyncpg.PostgresError as failure:
        name = f"{steps[-1].version:04d} {steps[-1].name}"
        what = "failed: run it again" if sql.startswith(_OUTSIDE) else "failed and left nothing behind"
        raise MigrationError(f"Migration {name} {what}: {failure}") from failure


async def _apply_outside(connection: "asyncpg.Connection[Row]", sql: str) -> None:
    """Indexes that an earlier try left half built are useless, and in the way of their name."""
    for row in await connection.fetch(
        "select i.indexrelid::regclass::text as name from pg_index i join pg_class c on c.oid = i.indexrelid"
        " where not i.indisvalid and c.relnamespace = current_schema()::regnamespace"
    ):
        await connection.execute(f"drop index {row['name']}")
    await connection.execute(
        "set lock_timeout = '10min'"
    )  # it waits for transactions that were there before, a backup say
    for statement in "\n".join(one for one in sql.splitlines() if not one.startswith("--")).split(";"):
        if statement.strip():
            await connection.execute(statement, timeout=_CONCURRENT_SECONDS)


async def _version(connection: "asyncpg.Connection[Row]") -> int:
    if await connection.fetchval("select to_regclass('schema_migrations')") is None:
        return 0
    return int(await connection.fetchval("select coalesce(max(version), 0) from schema_migrations"))


async def _stamp(connection: "asyncpg.Connection[Row]", migration: Migration) -> None:
    await connection.execute(
        "insert into schema_migrations (version, name, applied_at) values ($1, $2, $3)",
        migration.version,
        migration.name,
        datetime.now(UTC),
    )
