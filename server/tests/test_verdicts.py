"""What a failure of the database means: the table, and what callers, connections and the log see of it."""

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta

import asyncpg
import pytest
from world import INTENTS, App, Tenant

from wabery_server import errors, logs
from wabery_server.db import Conflict, Database, Patience, Source, Tx
from wabery_server.db.batcher import Batcher
from wabery_server.db.verdicts import (
    BY_SQLSTATE,
    Verdict,
    caused_by_data,
    contended,
    ends_connection,
    verdict,
)

EVERY = sorted(
    {
        kind
        for kind in vars(asyncpg.exceptions).values()
        if inspect.isclass(kind) and issubclass(kind, Exception) and kind.__module__.startswith("asyncpg")
    },
    key=lambda kind: kind.__name__,
)
BY_STATE = {
    Verdict.REPEAT: "40000 40001 40002 40003 40P01 72000",
    Verdict.LOCKED: "55P03",
    Verdict.RECONNECT: "25006 25P03 25P04 26000 53300 57P01 57P02 57P03 57P04 57P05",
    Verdict.UNAVAILABLE: "08000 08001 08003 08004 08006 08007 08P01 28000 28P01 3D000 53000 53100 53200 53400 57000 "
    "57014 58000 58030 58P01 58P02 58P03 F0000 F0001 XX000 XX001 XX002",
}
EXPECTED = {state: ruling for ruling, states in BY_STATE.items() for state in states.split()}


def made(kind: type[Exception]) -> Exception:
    return kind("as if")


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_exception_of_the_driver_has_a_verdict(kind: type[Exception]) -> None:
    failure, state = made(kind), getattr(kind, "sqlstate", None)

    if kind is asyncpg.InvalidCachedStatementError:
        expected = Verdict.REPEAT
    elif state is not None:
        expected = EXPECTED.get(state) or (Verdict.DATA if state[:2] in ("22", "23") else Verdict.BUG)
    elif issubclass(kind, asyncpg.OutdatedSchemaCacheError):
        expected = Verdict.REPEAT
    elif issubclass(kind, asyncpg.TargetServerAttributeNotMatched):
        expected = Verdict.RECONNECT
    elif issubclass(kind, ValueError):
        expected = Verdict.DATA
    else:
        expected = Verdict.BUG

    assert verdict(failure, connected=True) is expected
    assert caused_by_data(failure) is (expected is Verdict.DATA) or not isinstance(
        failure, asyncpg.PostgresError | asyncpg.InterfaceError | asyncpg.InternalClientError
    )


def test_the_table_names_no_state_that_the_test_does_not() -> None:
    states = {state for kind in EVERY if (state := getattr(kind, "sqlstate", None))}
    tested = {*EXPECTED, *(state for state in states if state[:2] in ("22", "23"))}

    assert [named for named in BY_SQLSTATE if not any(state.startswith(named) for state in tested)] == []


@pytest.mark.parametrize(
    "failure",
    [
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InternalClientError("got result for unknown protocol state 3"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.ConnectionFailureError("as if"),
        ConnectionResetError(),
        TimeoutError(),
        OSError("no route"),
    ],
)
def test_a_lost_connection_is_a_reason_to_try_another(failure: Exception) -> None:
    assert verdict(failure, connected=False) is Verdict.RECONNECT
    assert not caused_by_data(failure)


@pytest.mark.parametrize(
    ("failure", "ends"),
    [
        (asyncio.CancelledError(), True),
        (TimeoutError(), True),
        (asyncpg.InterfaceError("another operation is in progress"), True),
        (asyncpg.AdminShutdownError("as if"), True),
        (asyncpg.ReadOnlySQLTransactionError("as if"), True),
        (asyncpg.ConnectionFailureError("a worker node is down"), False),
        (asyncpg.InternalServerError("as if"), False),
        (asyncpg.DiskFullError("as if"), False),
        (asyncpg.QueryCanceledError("as if"), False),
        (asyncpg.LockNotAvailableError("as if"), False),
        (asyncpg.UniqueViolationError("as if"), False),
        (Conflict(), False),
        (errors.NotFound(), False),
        (ValueError(), False),
    ],
)
def test_a_connection_is_kept_where_its_state_is_known(failure: BaseException, ends: bool) -> None:
    assert ends_connection(failure, connected=True) is ends


def test_only_locks_and_lost_races_concern_some_rows() -> None:
    def because(cause: Exception) -> Exception:
        failure = errors.Unavailable()
        failure.__cause__ = cause
        return failure

    assert contended(because(asyncpg.LockNotAvailableError("as if")))
    assert contended(because(Conflict()))
    assert contended(asyncpg.DeadlockDetectedError("as if"))
    assert not contended(because(asyncpg.DiskFullError("as if")))
    assert not contended(errors.Unavailable())
    assert not contended(errors.NotFound())


# Lived through


@pytest.fixture
def lines() -> Iterator[list[logging.LogRecord]]:
    """What the server logs as an error."""
    found: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    keep = Keep(logging.ERROR)
    logs.log.addHandler(keep)
    yield found
    logs.log.removeHandler(keep)


Run = Callable[[Callable[[Tx], Awaitable[object]]], Awaitable[object]]


@pytest.fixture(params=["pool", "lane", "batcher"])
def run(request: pytest.FixtureRequest, database: Database) -> Run:
    """Each way to a connection: they answer alike."""
    if request.param == "pool":
        return database.run
    if request.param == "lane":
        return database.lane().run

    async def flush(tx: Tx, works: list[Callable[[Tx], Awaitable[object]]]) -> list[object]:
        return [await work(tx) for work in works]

    return Batcher(database, flush).submit


async def backend(tx: Tx) -> int:
    (row,) = await tx.rows("select pg_backend_pid() as pid")
    return int(row["pid"])


def raising(sqlstate: str) -> Callable[[Tx], Awaitable[object]]:
    async def work(tx: Tx) -> None:
        await tx.run(f"do $$ begin raise exception 'as if' using errcode = '{sqlstate}'; end $$")

    return work


@pytest.mark.parametrize("sqlstate", ["53100", "53200", "58030", "08006", "XX000", "57014"])
async def test_what_the_database_cannot_do_is_503_at_once_and_logged_once(
    run: Run, lines: list[logging.LogRecord], sqlstate: str
) -> None:
    before = await run(backend)
    began = time.monotonic()

    for _ in range(3):
        with pytest.raises(errors.Unavailable) as refusal:
            await run(raising(sqlstate))

    assert refusal.value.retry_after == 1
    assert time.monotonic() - began < 2
    assert [(line.getMessage(), line.exc_info) for line in lines] == [("database_unavailable", None)]
    assert await run(backend) == before


async def test_a_misuse_of_a_sound_connection_is_a_bug_and_is_not_repeated(run: Run) -> None:
    tries = 0

    async def misuse(tx: Tx) -> None:
        nonlocal tries
        tries += 1
        await asyncio.gather(tx.rows("select pg_sleep(0.01)"), tx.rows("select 1"))

    async def too_few(tx: Tx) -> None:
        nonlocal tries
        tries += 1
        await tx.rows("select $1::int, $2::int", 1)

    with pytest.raises(asyncpg.InterfaceError, match="another operation"):
        await run(misuse)
    with pytest.raises(asyncpg.InterfaceError, match="argument"):
        await run(too_few)

    assert tries == 2
    assert await run(backend)


async def test_a_connection_that_is_lost_is_replaced(run: Run, source: Source) -> None:
    tries: list[int] = []

    async def die_once(tx: Tx) -> int:
        tries.append(await backend(tx))
        if len(tries) == 1:
            other = await asyncpg.connect(**source.parts)  # type: ignore[arg-type]
            await other.execute("select pg_terminate_backend($1)", tries[0])
            await other.close()
        return await backend(tx)

    assert await run(die_once) == tries[1] != tries[0]


async def test_a_slow_statement_ends_on_the_server_too(source: Source) -> None:
    source.patience = Patience(statement=timedelta(milliseconds=100))
    async with Database(source) as database:
        for run in (database.run, database.lane().run):
            before = await run(backend)

            with pytest.raises(errors.Unavailable):
                await run(lambda tx: tx.rows("select pg_sleep(60)"))

            assert await run(backend) == before
        still = await database.run(
            lambda tx: tx.rows(
                "select 1 from pg_stat_activity where query like 'select pg_sleep(60)%' and state = 'active'"
            )
        )
    assert still == []


async def test_a_process_that_stops_inside_a_transaction_loses_its_session(source: Source) -> None:
    source.patience = Patience(idle=timedelta(milliseconds=100))
    tries = 0

    async def stop_once(tx: Tx) -> int:
        nonlocal tries
        tries += 1
        await tx.rows("select 1")
        if tries == 1:
            await asyncio.sleep(0.5)
        return await backend(tx)

    async with Database(source) as database:
        for run in (database.run, database.lane().run):
            tries = 0
            assert await run(stop_once)
            assert tries == 2


async def test_every_connection_has_its_limits(app: App, database: Database) -> None:
    async def limits(tx: Tx) -> list[str]:
        names = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
        return [(await tx.rows(f"show {name}"))[0][0] for name in names]

    assert await database.run(limits) == await database.lane().run(limits) == ["100ms", "4500ms", "3s"]


async def test_a_full_disk_is_503_for_every_call_and_ends_with_it(
    app: App, acme: Tenant, lines: list[logging.LogRecord]
) -> None:
    await app.service.database.run(
        lambda tx: tx.run(
            "create function no_space() returns trigger language plpgsql as "
            "$$ begin raise exception 'No space left on device' using errcode = '53100'; end $$"
        )
    )
    for table in ("registration_intents", "api_keys"):
        await app.service.database.run(
            lambda tx, table=table: tx.run(
                f"create trigger no_space before insert on {table} for each row execute function no_space()"
            )
        )

    answers = [
        await app.call("POST", path, acme.secret_key, json=body)
        for path, body in (
            (INTENTS, {"customer_reference": "user_1"}),
            (f"{INTENTS}/bulk", {"items": [{"customer_reference": "user_1"}]}),
            ("/v1/api-keys", {"name": "ci", "scopes": ["full"]}),
        )
    ]

    assert [(answer.status, answer.headers["Retry-After"]) for answer in answers] == [(503, "1")] * 3
    told = [
        line for line in lines if line.getMessage() != "not_ready"
    ]  # readiness hears of it, and says so itself
    assert [(line.getMessage(), line.exc_info) for line in told] == [("database_unavailable", None)]


async def test_a_full_queue_is_logged_once(database: Database, lines: list[logging.LogRecord]) -> None:
    go = asyncio.Event()

    async def flush(tx: Tx, items: list[int]) -> list[int]:
        await go.wait()
        return items

    batcher = Batcher(database, flush, max_queue=1, name="mint")
    first = batcher.enqueue(1)

    for _ in range(3):
        with pytest.raises(errors.Unavailable):
            batcher.enqueue(2)
    go.set()

    assert await first == 1
    assert [line.getMessage() for line in lines] == ["queue_full"]


def test_an_outage_is_told_when_it_begins_and_when_it_has_been_over_for_a_while(
    lines: list[logging.LogRecord],
) -> None:
    now = 0.0
    told: list[str] = []
    outage = logs.Outage("database_unavailable", quiet=5, now=lambda: now)

    for moment in (0.0, 1.0, 2.0):
        now = moment
        outage.hit("DiskFullError")
        outage.over()
        told.append("on" if outage.on else "off")
    now = 8.0
    outage.over()
    told.append("on" if outage.on else "off")
    outage.hit("DiskFullError")

    assert told == ["on", "on", "on", "off"]
    assert len(lines) == 2
