"""Builds a database and brings an old one forward.

A new database is made from `schema.sql`; an older one by the numbered files in `migrations/`, each in a transaction of
its own, forward only. Two processes that start together take turns.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from wabery_server.db import Row

HERE = Path(__file__).parent
_TURN = 0x57414245_5259
"""Advisory lock: who migrates. Correctness does not hang on it, a second runner would only fail loudly."""
_APPLY_SECONDS = 600


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
        found.append(Migration(int(number), name, path.read_text()))
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
    try:
        await connection.execute("select pg_advisory_lock($1)", _TURN, timeout=60)
    except asyncpg.LockNotAvailableError as failure:
        raise MigrationError(
            "Another process has been migrating for 30 seconds: try again later."
        ) from failure
    try:
        todo = await pending(connection)
        if todo and todo[0].version == 1 and from_schema:
            await _apply(connection, (HERE / "schema.sql").read_text(), todo)
        else:
            for migration in todo:
                await _apply(connection, migration.sql, [migration])
        return todo
    finally:
        if not connection.is_closed():
            await connection.execute("select pg_advisory_unlock($1)", _TURN)


async def _apply(connection: "asyncpg.Connection[Row]", sql: str, steps: list[Migration]) -> None:
    try:
        async with connection.transaction():
            await connection.execute(sql, timeout=_APPLY_SECONDS)
            for migration in steps:
                await _stamp(connection, migration)
    except asyncpg.PostgresError as failure:
        name = f"{steps[-1].version:04d} {steps[-1].name}"
        raise MigrationError(f"Migration {name} failed and left nothing behind: {failure}") from failure


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
