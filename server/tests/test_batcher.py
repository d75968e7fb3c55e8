"""Group commit: who waits becomes the next batch, everybody gets their own answer, and nobody is harmed by another."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest

from wabery_server import errors
from wabery_server.db import Conflict, Database, Patience, Source, Tx, batcher
from wabery_server.db.batcher import Batcher, Locks
from wabery_server.db.embedded import Embedded

Flush = Callable[[Tx, list[int]], Awaitable[Sequence[int | Exception]]]


@pytest.fixture
async def notes(database: Database) -> Database:
    """A database with a table of numbers, of which 13 is refused."""
    await database.run(lambda tx: tx.run("create table notes (n integer primary key check (n <> 13))"))
    return database


class Writer:
    """Writes numbers and keeps what it was handed; holds each batch until `go` while `gated`."""

    def __init__(self, *, gated: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.arrived = asyncio.Semaphore(0)
        self.go = asyncio.Semaphore(0)
        self.gated = gated

    async def __call__(self, tx: Tx, items: list[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        self.arrived.release()
        if self.gated:
            await self.go.acquire()
        await tx.rows_each(
            "insert into notes (n) values ($1) on conflict do nothing", [(item,) for item in items]
        )
        return [-item for item in items]

    def open(self) -> None:
        self.gated = False
        self.go.release()


async def written(database: Database) -> list[int]:
    return [row["n"] for row in await database.run(lambda tx: tx.rows("select n from notes order by n"))]


async def test_a_call_that_finds_a_free_lane_goes_at_once_and_alone(notes: Database) -> None:
    write = Writer()
    batcher = Batcher(notes, write)

    answers = [await batcher.submit(item) for item in (1, 2, 3)]

    assert answers == [-1, -2, -3]
    assert write.batches == [[1], [2], [3]]


async def test_calls_that_arrive_meanwhile_form_one_batch_and_each_gets_its_own_answer(
    notes: Database,
) -> None:
    write = Writer(gated=True)
    batcher = Batcher(notes, write)
    first = batcher.enqueue(1)
    await write.arrived.acquire()

    rest = [batcher.enqueue(item) for item in range(2, 8)]
    write.open()

    assert await asyncio.gather(first, *rest) == [-item for item in range(1, 8)]
    assert write.batches == [[1], [2, 3, 4, 5, 6, 7]]


async def test_nobody_is_answered_before_the_commit(notes: Database) -> None:
    batcher = Batcher(notes, Writer())

    async def write_and_look(item: int) -> bool:
        await batcher.submit(item)
        return item in await written(notes)  # on another connection

    assert all(await asyncio.gather(*[write_and_look(item) for item in range(20, 40)]))


async def test_a_batch_is_capped_and_the_rest_is_the_next_one(notes: Database) -> None:
    write = Writer(gated=True)
    batcher = Batcher(notes, write, max_batch=4)
    asked = [batcher.enqueue(item) for item in range(1, 11)]

    write.open()

    assert await asyncio.gather(*asked) == [-item for item in range(1, 11)]
    assert [len(batch) for batch in write.batches] == [4, 4, 2]


async def test_a_row_that_the_database_refuses_fails_its_caller_alone(notes: Database) -> None:
    write = Writer(gated=True)
    batcher = Batcher(notes, write)
    first = batcher.enqueue(1)
    await write.arrived.acquire()
    rest = [batcher.enqueue(item) for item in (12, 13, 14)]

    write.open()
    answers = await asyncio.gather(first, *rest, return_exceptions=True)

    assert [answers[0], answers[1], answers[3]] == [-1, -12, -14]
    assert isinstance(answers[2], asyncpg.CheckViolationError)
    assert await written(notes) == [1, 12, 14]
    assert write.batches == [[1], [12, 13, 14], [12, 13], [14], [12], [13]]


async def test_a_refusal_among_the_results_goes_to_its_caller_and_the_others_commit(notes: Database) -> None:
    async def flush(tx: Tx, items: list[int]) -> list[int | Exception]:
        await tx.rows_each("insert into notes (n) values ($1)", [(item,) for item in items if item % 2])
        return [item if item % 2 else errors.TooManyPending() for item in items]

    batcher = Batcher(notes, flush)

    answers = await asyncio.gather(*[batcher.submit(item) for item in range(1, 5)], return_exceptions=True)

    assert answers[::2] == [1, 3]
    assert [type(answer) for answer in answers[1::2]] == [errors.TooManyPending] * 2
    assert await written(notes) == [1, 3]


async def test_what_a_flush_forgets_to_answer_is_a_failure_and_not_a_caller_who_waits_for_ever(
    notes: Database,
) -> None:
    async def flush(tx: Tx, items: list[int]) -> list[int]:
        await tx.run("insert into notes (n) values ($1)", items[0])
        return []

    batcher = Batcher(notes, flush)

    with pytest.raises(AssertionError, match="answers every item"):
        await asyncio.wait_for(batcher.submit(1), 5)

    assert await written(notes) == []


async def test_a_batch_holds_each_key_once_and_keeps_the_order_of_a_key(notes: Database) -> None:
    write = Writer(gated=True)
    batcher = Batcher(notes, write, keys=lambda item: [item % 10])
    asked = [batcher.enqueue(item) for item in (1, 2, 11, 3, 12, 21)]

    write.open()
    await asyncio.gather(*asked)

    assert write.batches == [[1, 2, 3], [11, 12], [21]]
    assert all(len({item % 10 for item in batch}) == len(batch) for batch in write.batches)


async def test_an_item_that_waits_for_one_key_is_not_overtaken_on_its_other_keys(notes: Database) -> None:
    holds: dict[int, Iterable[Hashable]] = {1: "a", 2: "ab", 3: "bc", 4: "c", 5: "d"}
    write = Writer(gated=True)
    batcher = Batcher(notes, write, lanes=3, keys=lambda item: holds[item])
    asked = [batcher.enqueue(1)]
    await write.arrived.acquire()
    asked += [batcher.enqueue(item) for item in (2, 3, 4, 5)]
    await write.arrived.acquire()
    under_way = [list(batch) for batch in write.batches]

    write.gated = False
    for _ in under_way:
        write.go.release()
    await asyncio.gather(*asked)

    assert sorted(under_way) == [[1], [5]]
    assert write.batches[2:] == [[2], [3], [4]]


async def test_two_lanes_never_hold_one_key_at_once(notes: Database) -> None:
    held: Counter[int] = Counter()

    async def flush(tx: Tx, items: list[int]) -> list[int]:
        held.update(item % 3 for item in items)
        assert max(held.values()) == 1
        await tx.rows("select 1")
        held.subtract(item % 3 for item in items)
        return items

    batcher = Batcher(notes, flush, lanes=2, keys=lambda item: [item % 3])

    answers = await asyncio.gather(*[batcher.submit(item) for item in range(60)])

    assert answers == list(range(60))


async def test_as_many_batches_are_under_way_as_there_are_lanes(notes: Database) -> None:
    write = Writer(gated=True)
    batcher = Batcher(notes, write, lanes=3)
    asked = []
    for item in (1, 2, 3):
        asked.append(batcher.enqueue(item))
        await write.arrived.acquire()
    asked += [batcher.enqueue(item) for item in (4, 5, 6, 7)]
    under_way = [list(batch) for batch in write.batches]

    write.gated = False
    for _ in range(3):
        write.go.release()
    await asyncio.gather(*asked)

    assert sorted(under_way) == [[1], [2], [3]]
    assert write.batches[3:] == [[4, 5, 6, 7]]


async def test_a_few_that_wait_let_the_batch_before_them_end_and_many_take_another_lane(
    notes: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "_LONG_SECONDS", 60)
    write = Writer(gated=True)
    gathering = Batcher(notes, write, lanes=2)
    asked = [gathering.enqueue(0)]
    await write.arrived.acquire()
    few = list(range(20, 20 + batcher._MANY - 1))
    asked += [gathering.enqueue(item) for item in few]
    for _ in range(10):
        await asyncio.sleep(0)
    before = list(write.batches)

    asked.append(gathering.enqueue(1))
    await asyncio.wait_for(write.arrived.acquire(), 5)

    assert before == [[0]]
    assert write.batches == [[0], [*few, 1]]
    write.open()
    write.go.release()
    await asyncio.gather(*asked)


async def test_a_batch_stays_within_its_group(notes: Database) -> None:
    write = Writer(gated=True)
    batcher = Batcher(notes, write, group=lambda item: item // 10)
    asked = [batcher.enqueue(item) for item in (1, 20, 21, 30, 22, 31)]

    write.open()
    await asyncio.gather(*asked)

    assert write.batches == [[1], [20, 21, 22], [30, 31]]


async def test_a_full_queue_refuses_and_says_when_to_come_again(notes: Database) -> None:
    write = Writer(gated=True)
    batcher = Batcher(notes, write, max_queue=2)
    asked = [batcher.enqueue(1)]
    await write.arrived.acquire()
    asked += [batcher.enqueue(item) for item in (2, 3)]

    with pytest.raises(errors.Unavailable) as refusal:
        await batcher.submit(4)
    write.open()

    assert refusal.value.retry_after == 1
    assert await asyncio.gather(*asked) == [-1, -2, -3]
    assert await batcher.submit(4) == -4


async def test_a_caller_that_goes_away_does_not_cancel_the_flush(notes: Database) -> None:
    write = Writer(gated=True)
    batcher = Batcher(notes, write)
    gone = asyncio.create_task(batcher.submit(1))
    await write.arrived.acquire()
    waits = asyncio.create_task(batcher.submit(2))
    stays = asyncio.create_task(batcher.submit(3))
    await asyncio.sleep(0)  # one turn of the loop: both are in the queue

    gone.cancel()
    waits.cancel()
    write.open()

    assert await stays == -3
    assert await written(notes) == [1, 2, 3]


async def test_draining_waits_until_everything_accepted_has_been_answered(notes: Database) -> None:
    write = Writer(gated=True)
    batcher = Batcher(notes, write, max_batch=2)
    asked = [batcher.enqueue(item) for item in range(1, 8)]

    draining = asyncio.create_task(batcher.drain())
    await write.arrived.acquire()
    was_done = draining.done()
    write.open()
    await draining

    assert not was_done
    assert all(one.done() for one in asked)
    assert await written(notes) == list(range(1, 8))
    await batcher.drain()


async def test_a_conflict_runs_again_and_every_item_takes_effect_once(notes: Database) -> None:
    write = Writer()
    failures = [
        Conflict("once"),
        asyncpg.DeadlockDetectedError("twice"),
        asyncpg.SerializationError("thrice"),
    ]

    async def flush(tx: Tx, items: list[int]) -> list[int | Exception]:
        answers = await write(tx, items)
        if failures:
            raise failures.pop()
        return answers

    answers = await asyncio.gather(*[Batcher(notes, flush).submit(item) for item in (1, 2)])

    assert answers == [-1, -2]
    assert await written(notes) == [1, 2]


async def test_one_row_that_stays_in_conflict_does_not_stop_the_others(
    notes: Database,
) -> None:
    write = Writer(gated=True)

    async def flush(tx: Tx, items: list[int]) -> list[int | Exception]:
        answers = await write(tx, items)
        if 7 in items:
            raise Conflict("again and again")
        return answers

    batcher = Batcher(notes, flush, deadline=timedelta(milliseconds=50))
    asked = [batcher.enqueue(item) for item in (1, 6, 7, 8)]
    await write.arrived.acquire()
    write.open()
    answers = await asyncio.gather(*asked, return_exceptions=True)

    assert [answers[0], answers[1], answers[3]] == [-1, -6, -8]
    assert isinstance(answers[2], errors.Unavailable)
    assert await written(notes) == [1, 6, 8]


async def test_one_row_that_is_locked_does_not_stop_the_others(source: Source, notes: Database) -> None:
    await notes.run(lambda tx: tx.run("insert into notes (n) values (7)"))
    other = await source.connect()
    holding = other.transaction()
    await holding.start()
    await other.execute("select * from notes where n = 7 for update")

    async def flush(tx: Tx, items: list[int]) -> list[int]:
        await tx.rows_each(
            "insert into notes (n) values ($1) on conflict (n) do update set n = excluded.n",
            [(item,) for item in items],
        )
        return items

    batcher = Batcher(
        notes, flush, locks=lambda item: Locks("acme", (item,)), deadline=timedelta(milliseconds=700)
    )
    answers = await asyncio.gather(*[batcher.submit(item) for item in (1, 6, 7, 8)], return_exceptions=True)
    await holding.rollback()
    await other.close()

    assert [answers[0], answers[1], answers[3]] == [1, 6, 8]
    assert isinstance(answers[2], errors.Unavailable)
    assert await batcher.submit(7) == 7


async def test_an_outage_while_items_run_one_by_one_is_everybodys_answer_at_once(notes: Database) -> None:
    tries: list[list[int]] = []

    async def flush(tx: Tx, items: list[int]) -> list[int]:
        tries.append(items)
        if len(items) > 1:
            raise ValueError("one of these")
        raise errors.Unavailable(retry_after=1)

    batcher = Batcher(notes, flush)

    answers = await asyncio.gather(*[batcher.submit(item) for item in range(1, 6)], return_exceptions=True)

    assert [type(answer) for answer in answers] == [errors.Unavailable] * 5
    assert tries == [[1, 2, 3, 4, 5], [1, 2, 3], [4, 5], [1, 2], [3]]


@pytest.fixture
def own_cluster() -> Iterator[Embedded]:
    """A durable one, whose going away disturbs no other test."""
    with TemporaryDirectory(prefix="wabery-", dir="/tmp") as name:
        cluster = Embedded.open(Path(name))
        yield cluster
        cluster.close()


def revive(cluster: Embedded) -> None:
    for pause in cluster.reviving():
        time.sleep(pause)


@pytest.fixture
async def own_notes(own_cluster: Embedded) -> AsyncIterator[Database]:
    async with Database(Source(parts=own_cluster.address.dsn_kwargs())) as database:
        await database.run(lambda tx: tx.run("create table notes (n integer primary key)"))
        yield database


async def test_a_database_that_restarts_in_between_is_a_pause_and_loses_nothing(
    own_cluster: Embedded, own_notes: Database
) -> None:
    write = Writer(gated=True)
    batcher = Batcher(own_notes, write)
    asked = [batcher.enqueue(1)]
    await write.arrived.acquire()
    asked += [batcher.enqueue(item) for item in (2, 3, 4)]

    own_cluster.close()  # inside the first batch's transaction
    revive(own_cluster)
    write.open()

    assert await asyncio.gather(*asked) == [-1, -2, -3, -4]
    assert await written(own_notes) == [1, 2, 3, 4]


async def test_a_database_that_stays_away_is_503_for_all_who_wait(
    own_cluster: Embedded, own_notes: Database
) -> None:
    write = Writer(gated=True)
    batcher = Batcher(own_notes, write, deadline=timedelta(milliseconds=300))
    asked = [batcher.enqueue(1)]
    await write.arrived.acquire()
    asked += [batcher.enqueue(item) for item in (2, 3, 4)]

    own_cluster.close()
    write.open()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    revive(own_cluster)

    assert [type(answer) for answer in answers] == [errors.Unavailable] * 4
    assert await batcher.submit(5) == -5
    assert await written(own_notes) == [5]


async def test_a_lane_whose_server_process_is_frozen_goes_on_with_another(
    own_cluster: Embedded, own_notes: Database
) -> None:
    own_notes.source.patience = Patience(command=timedelta(milliseconds=200))
    lane = own_notes.lane()

    async def process(tx: Tx) -> int:
        (row,) = await tx.rows("select pg_backend_pid() as pid")
        return int(row["pid"])

    frozen = await lane.run(process)
    os.kill(frozen, signal.SIGSTOP)
    try:
        other = await lane.run(process)
    finally:
        os.kill(frozen, signal.SIGCONT)

    assert other != frozen
