"""The delivery queue costs the same however much is due in it: rows and buffers touched, counted on filled tables."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from wabery_server import outbox
from wabery_server.db import LANE, Database, Source
from wabery_server.outbox import Queue, Walk

NOW = datetime(2026, 11, 27, tzinfo=UTC)
QUEUES = 200
FILL = """
with made as (select n, 'proj_' || n % $1::int as project_id, case when n % 10 = 0 then 'held' else 'pending' end as state
    from generate_series($2::int, $3::int) n),
events as (
    insert into events (project_id, id, type, body, created_at)
    select project_id, 'evt_' || n, 'message.received', ''::bytea, $4::timestamptz from made where n <= 10000)
insert into deliveries (project_id, id, event_id, endpoint_id, state, due_at, created_at)
select project_id, 'dlv_' || n, 'evt_' || n, 'we_' || n % $1::int, state,
    case when state = 'pending' then $4::timestamptz - n * interval '1 millisecond' end, $4
from made
"""


class Touched:
    """What a statement has touched."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.buffers = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        self.rows = 0
        self._count(plan)

    def _count(self, node: dict[str, Any]) -> None:
        seen = (
            node["Actual Rows"]
            + node.get("Rows Removed by Filter", 0)
            + node.get("Rows Removed by Join Filter", 0)
        )
        self.rows += int(seen * node["Actual Loops"])
        for child in node.get("Plans", ()):
            self._count(child)


async def touched(source: Source) -> dict[str, Touched]:
    """By statement, on a connection that plans as the worker's does."""
    statements: dict[str, tuple[str, tuple[object, ...]]] = {
        "due": (outbox.sql.any_due_queues, (NOW, outbox.NEWEST)),
        "walk": (outbox.sql.any_queues_after, ("", "", outbox.VISITED)),
        "claim": (outbox.sql.claim, ("proj_7", "we_7", NOW, NOW + timedelta(minutes=1), 64)),
        "to resume": (outbox.sql.any_queues_to_resume, ("", "", 1000)),
        "resume": (outbox.sql.resume, ("proj_10", "we_10", NOW, 40, "")),
    }
    lane = await source.connect(timed=False, statement_timeout="60s", **LANE)
    found = {}
    for name, (text, values) in statements.items():
        undo = lane.transaction()
        await undo.start()
        raw = await lane.fetchval(f"explain (analyze, buffers, timing off, format json) {text}", *values)
        await undo.rollback()
        found[name] = Touched(msgspec.json.decode(raw)[0]["Plan"])
    await lane.close()
    return found


@pytest.mark.slow
async def test_the_queue_costs_the_same_at_ten_thousand_and_at_half_a_million_rows(source: Source) -> None:
    connection = await source.connect(timed=False, statement_timeout="60s")
    await connection.execute("alter table deliveries set (autovacuum_enabled = off)")
    await connection.execute(FILL, QUEUES, 1, 10_000, NOW)
    await connection.execute("vacuum analyze deliveries")
    few = await touched(source)

    await connection.execute(FILL, QUEUES, 10_001, 500_000, NOW)
    await connection.execute("vacuum analyze deliveries")
    many = await touched(source)
    await connection.close()

    assert {name for name in few if many[name].buffers > 3 * few[name].buffers + 100} == set()
    assert {name for name in few if many[name].rows > 2 * few[name].rows + 1000} == set()


async def fill(database: Database, queues: int, rows: int) -> None:
    await database.run(lambda tx: tx.run(FILL, queues, 1, rows, NOW))


async def test_of_a_thousand_queues_with_many_rows_each_comes_up(database: Database) -> None:
    await fill(database, 1_200, 12_000)
    walk, found, looks = Walk(), set[Queue](), 0

    while looks == 0 or walk.under_way:
        found.update(await database.run(lambda tx: outbox.due_queues(tx, NOW, 1_000, walk)))
        looks += 1

    in_all = await database.run(
        lambda tx: tx.rows("select distinct project_id, endpoint_id from deliveries where due_at <= $1", NOW)
    )
    assert found == {Queue(*row) for row in in_all}
    assert looks == 3


async def test_what_became_due_last_is_found_at_once_behind_any_backlog(database: Database) -> None:
    await fill(database, 1_200, 12_000)
    insert = """
        insert into deliveries (project_id, id, event_id, endpoint_id, state, due_at, created_at)
        values ('proj_zz', 'dlv_z', 'evt_z', 'we_z', 'pending', $1, $1)
    """
    await database.run(lambda tx: tx.run(insert, NOW))

    found = await database.run(lambda tx: outbox.due_queues(tx, NOW, 1_000, Walk()))

    assert Queue("proj_zz", "we_z") in found


async def test_what_is_due_later_is_visited_and_not_found(database: Database) -> None:
    await fill(database, 50, 1_000)
    await database.run(
        lambda tx: tx.run(
            "update deliveries set due_at = $1 where endpoint_id <> 'we_3' and due_at is not null",
            NOW + timedelta(hours=1),
        )
    )

    found = await database.run(lambda tx: outbox.due_queues(tx, NOW, 1_000, Walk()))

    assert found == [Queue("proj_3", "we_3")]


async def test_a_walk_to_resume_visits_every_queue(database: Database) -> None:
    await fill(database, 100, 1_000)
    walk, visited = Walk(), 0

    while visited == 0 or walk.under_way:
        await database.run(lambda tx: outbox.queues_to_resume(tx, 3, walk))
        visited += 3

    assert visited == 12  # ten queues hold something
