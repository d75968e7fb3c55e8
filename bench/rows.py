"""Measures what PostgreSQL spends on a row: a statement for each row, pipelined, beside one statement for all of them.

    python bench/rows.py            prints the table of docs/decisions/0005

The statements are the rooms' own; one connection with the settings of a lane, an embedded, durable PostgreSQL, and the
two ways taken in turns. Bounded: about 40,000 rows of each statement, less than two minutes.
"""

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
from run import cpu_of

from wabery_server import ids
from wabery_server.db import LANE, Row, Source
from wabery_server.db.embedded import Embedded
from wabery_server.db.migrate import migrate
from wabery_server.db.queries import for_rows
from wabery_server.intents.intent import sql
from wabery_server.intents.mint import MAX_PENDING

SIZES = (8, 16, 31)
ROUNDS = 6
BATCHES = 40
Values = list[tuple[object, ...]]
Way = Callable[["asyncpg.Connection[Row]", str, Values], Awaitable[object]]
PROJECT, CHANNEL, KEY = (ids.new(prefix, datetime.now(UTC)) for prefix in ("proj", "channel", "key"))


async def pipelined(connection: "asyncpg.Connection[Row]", text: str, rows: Values) -> None:
    await connection.fetchmany(text, rows)


async def at_once(connection: "asyncpg.Connection[Row]", text: str, rows: Values) -> None:
    await connection.fetch(for_rows(text, len(rows)), *[value for row in rows for value in row])


WAYS: dict[str, Way] = {"pipelined": pipelined, "at once": at_once}


def batch(size: int) -> tuple[Values, Values, Values]:
    """The values with which so many intents are inserted, locked by their tokens, and settled."""
    now = datetime.now(UTC)
    inserted: Values = []
    for _ in range(size):
        token = hashlib.sha256(os.urandom(16)).digest()
        inserted.append(
            (
                PROJECT,
                ids.new("reg", now),
                os.urandom(6).hex(),
                '{"plan":"starter"}',
                "server",
                CHANNEL,
                KEY,
                None,
            )
            + (token, "abcdef", 1, now, now + timedelta(hours=1), b"", MAX_PENDING, MAX_PENDING)
        )
    locked: Values = sorted((row[0], row[8]) for row in inserted)  # type: ignore[type-var]  # text and bytes
    settled: Values = [
        (row[0], row[1], "JOINED", now, None, "contact_1", "msg_1", now, False) for row in inserted
    ]
    return inserted, locked, settled


async def measure(source: Source) -> dict[tuple[str, int, str], float]:
    """Microseconds of the database's CPU for each row, by statement, size and way."""
    connection = await source.connect()
    await migrate(connection)
    await connection.close()
    connection = await source.connect(**LANE)
    spent: dict[tuple[str, int, str], float] = {}
    texts = {"insert": sql.insert, "lock by token": sql.lock_by_token, "settle": sql.settle}
    for number in range(ROUNDS + 1):
        for size in SIZES:
            for way, send in WAYS.items():
                batches = [batch(size) for _ in range(BATCHES)]
                for place, (name, text) in enumerate(texts.items()):
                    before = cpu_of(connection.get_server_pid())
                    for values in batches:
                        await send(connection, text, values[place])
                    used = cpu_of(connection.get_server_pid()) - before
                    if (
                        number
                    ):  # the first round fills the tables, prepares the statements, and does not count
                        key = (name, size, way)
                        spent[key] = spent.get(key, 0.0) + used / (ROUNDS * BATCHES * size) * 1e6
        if not number:
            await connection.execute("analyze")
    await connection.close()
    return spent


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="wabery-bench-") as folder:
        embedded = Embedded.open(Path(folder) / "data")
        try:
            spent = asyncio.run(measure(Source(parts=embedded.address.dsn_kwargs())))
        finally:
            embedded.close()
    print("| CPU us of PostgreSQL for a row | Rows | Pipelined | At once |\n|-|-|-|-|")
    for name, size in dict.fromkeys((name, size) for name, size, _ in spent):
        print(
            f"| {name} | {size} | {spent[name, size, 'pipelined']:.0f} | {spent[name, size, 'at once']:.0f} |"
        )


if __name__ == "__main__":
    main()
