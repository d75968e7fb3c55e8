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
    """Applies what is pending and says what it was. `from_schema=False` builds even a new database step by step."""
    await connection.execute("set lock_timeout = '30s'")
    await connection.execute("select pg_advisory_lock($1)", _TURN, timeout=60)
    try:
        todo = await pending(connection)
        if todo and todo[0].version == 1 and from_schema:
            async with connection.transaction():
                await connection.execute((HERE / "schema.sql").read_text())
                for migration in todo:
                    await _stamp(connection, migration)
            return todo
        for migration in todo:
            async with connection.transaction():
                await connection.execute(migration.sql, timeout=600)
                await _stamp(connection, migration)
        return todo
    finally:
        await connection.execute("select pg_advisory_unlock($1)", _TURN)


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
