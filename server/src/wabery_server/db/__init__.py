"""The database: connections, transactions that can be repeated, and lanes for the hot statements.

Every transaction is a function of `tx` that may run more than once: its inserts are idempotent and its ids, times and
random values were made before it. `Database.run` repeats it after a deadlock or a lost connection, up to a deadline;
an outcome that a cut connection left unknown is made known by running it again.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from types import TracebackType
from typing import Self, TypeAlias, TypeVar

import asyncpg

from wabery_server import errors
from wabery_server.db.queries import for_rows

Row: TypeAlias = asyncpg.Record
T = TypeVar("T")

DEADLINE = timedelta(seconds=8)
COMMAND_TIMEOUT = timedelta(seconds=5)
"""A statement, or all that one batch asks, that takes longer is given up with its connection: the server may be frozen."""
LOCK_TIMEOUT = timedelta(seconds=2)
MOST_ROWS = 32
"""Rows in one statement. A statement is prepared for each number of rows, so this bounds what a connection keeps."""

_REPEATABLE = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a protocol state that a lost server left behind
    ConnectionError,
    TimeoutError,
    OSError,
)


Taken: TypeAlias = asyncpg.UniqueViolationError
"""What was to be unique is there already."""


class Conflict(Exception):
    """Somebody else wrote what this transaction had read: run it again."""


CONTENTION = (
    Conflict,
    asyncpg.LockNotAvailableError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
)
"""The cause of an errors.Unavailable that concerns some rows and not the database."""


@dataclass
class Source:
    """Where the database is: a DSN, or the parts of an embedded server's address, which a new owner may change."""

    dsn: str | None = None
    parts: dict[str, object] = field(default_factory=dict, repr=False)

    async def connect(
        self, *, command_timeout: timedelta | None = COMMAND_TIMEOUT, **settings: str
    ) -> "asyncpg.Connection[Row]":
        return await asyncpg.connect(
            self.dsn,
            **self.parts,
            timeout=5,
            command_timeout=command_timeout.total_seconds() if command_timeout else None,
            statement_cache_size=1000,  # a lane has one for each number of rows
            server_settings={
                "application_name": "wabery",
                "timezone": "UTC",
                "jit": "off",
                "random_page_cost": "1.1",  # solid state; at the default of 4 a queue without statistics is sorted whole
                "lock_timeout": str(int(LOCK_TIMEOUT.total_seconds() * 1000)),
                "idle_in_transaction_session_timeout": "30000",
                **settings,
            },
        )


class Tx:
    """Inside a transaction. Whoever made it commits."""

    __slots__ = ("_connection", "again")

    def __init__(self, connection: "asyncpg.Connection[Row]", *, again: bool = False) -> None:
        self._connection = connection
        self.again = again
        """Whether the work has failed before: somebody else may have written what it was about to write."""

    async def rows(self, sql: str, *values: object) -> list[Row]:
        found: list[Row] = await self._connection.fetch(sql, *values)
        return found

    async def row(self, sql: str, *values: object) -> Row | None:
        return await self._connection.fetchrow(sql, *values)

    async def run(self, sql: str, *values: object) -> None:
        await self._connection.execute(sql, *values)

    async def rows_each(self, sql: str, many: Sequence[Sequence[object]]) -> list[Row]:
        """What a statement that is written for one row of `values` gives for many, `MOST_ROWS` at a time."""
        found: list[Row] = []
        for text, values in _pieces(sql, many):
            found += await self._connection.fetch(text, *values)
        return found

    async def count_each(self, sql: str, many: Sequence[Sequence[object]]) -> int:
        """The same for a statement that returns nothing: how many rows it has written."""
        count = 0
        for text, values in _pieces(sql, many):
            tag = await self._connection.execute(text, *values)
            count += int(tag.rpartition(" ")[2])
        return count

    async def savepoint(self, work: Callable[[], Awaitable[T]]) -> T:
        """Runs `work` so that its failure undoes only itself."""
        async with self._connection.transaction():
            return await work()


def _pieces(sql: str, many: Sequence[Sequence[object]]) -> Iterator[tuple[str, Iterable[object]]]:
    for start in range(0, len(many), MOST_ROWS):
        part = many[start : start + MOST_ROWS]
        yield for_rows(sql, len(part)), chain.from_iterable(part)


Work: TypeAlias = Callable[[Tx], Awaitable[T]]


LANE = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
"""A lane's plans are made once and kept: one made while a table was empty must look every row up by its key all the same."""


class Lane:
    """One connection that runs one transaction after another: the hot statements stay prepared on it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._connection: asyncpg.Connection[Row] | None = None
        self._turn = asyncio.Lock()

    async def run(self, work: Work[T], *, deadline: timedelta = DEADLINE, bare: bool = False) -> T:
        """Runs `work` in a transaction and commits it, again where that is safe. Raises errors.Unavailable.

        `bare`: the work only reads, or writes with a single statement, and so saves the begin and the commit around it.
        """
        return await _until(deadline, lambda again: self._once(work, bare, again))

    async def _once(self, work: Work[T], bare: bool, again: bool) -> T:
        async with self._turn:
            connection = self._connection
            if connection is None or connection.is_closed():
                connection = self._connection = await self._source.connect(command_timeout=None, **LANE)
            # One timer for all that the work asks; asyncpg would make one for each statement.
            limit = asyncio.get_running_loop().call_later(
                COMMAND_TIMEOUT.total_seconds(), connection.terminate
            )
            try:
                tx = Tx(connection, again=again)
                if bare:
                    return await work(tx)
                async with connection.transaction():
                    return await work(tx)
            except BaseException as failure:
                _after(failure, connection)
                raise
            finally:
                limit.cancel()

    async def close(self) -> None:
        async with self._turn:
            if self._connection is not None and not self._connection.is_closed():
                await self._connection.close(timeout=2)


class Database:
    """The pool for everything that is not hot, and the maker of lanes."""

    def __init__(self, source: Source, *, pool_size: int = 4) -> None:
        self.source = source
        self._pool_size = pool_size
        self._lanes: list[Lane] = []
        self._pool: asyncpg.Pool[Row] | None = None

    async def __aenter__(self) -> Self:
        self._pool = await asyncpg.create_pool(
            min_size=0,
            max_size=self._pool_size,
            max_inactive_connection_lifetime=60,
            # A list with filters left open needs the plan of those that are set.
            connect=lambda *_args, **_kwargs: self.source.connect(plan_cache_mode="force_custom_plan"),
            reset=_leave_as_it_is,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with AsyncExitStack() as stack:
            if self._pool is not None:
                stack.push_async_callback(_close_pool, self._pool)
            for lane in self._lanes:
                stack.push_async_callback(lane.close)

    def lane(self) -> Lane:
        lane = Lane(self.source)
        self._lanes.append(lane)
        return lane

    async def run(self, work: Work[T], *, deadline: timedelta = DEADLINE) -> T:
        """Runs `work` in a transaction and commits it, again where that is safe. Raises errors.Unavailable."""
        return await _until(deadline, lambda again: self._once(work, again))

    async def _once(self, work: Work[T], again: bool) -> T:
        assert self._pool is not None, "the database is opened with `async with`"
        async with self._pool.acquire(timeout=5) as connection:
            try:
                async with connection.transaction():
                    return await work(Tx(connection, again=again))
            except BaseException as failure:
                _after(failure, connection)
                raise


_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    OSError,
    TimeoutError,
    asyncio.CancelledError,
)
"""After these a connection is never used again: its state, or its server's, is unknown."""


def _after(failure: BaseException, connection: "asyncpg.Connection[Row]") -> None:
    if isinstance(failure, _LOST):
        connection.terminate()
    if isinstance(failure, asyncpg.PostgresError):
        failure.detail = None  # it quotes the row: a log of the failure would hold phone numbers and texts


async def _until(deadline: timedelta, once: Callable[[bool], Awaitable[T]]) -> T:
    """`once(again)` until it succeeds: `again` says whether it has failed before."""
    end = time.monotonic() + deadline.total_seconds()
    pause = 0.01
    again = False
    while True:
        try:
            return await once(again)
        except asyncpg.DataError:
            raise  # an InterfaceError by inheritance, but a value of ours is wrong: repeating it changes nothing
        except asyncpg.LockNotAvailableError as failure:
            raise errors.Unavailable("Another request holds what this one needs.", retry_after=1) from failure
        except (*_REPEATABLE, Conflict) as failure:
            if time.monotonic() + pause > end:
                raise errors.Unavailable(retry_after=1) from failure
        again = True
        await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  # jitter
        pause = min(pause * 2, 0.5)


async def _leave_as_it_is(_connection: "asyncpg.Connection[Row]") -> None:
    """The pool's own reset costs 30 % more CPU; nothing here changes a connection's session."""


async def _close_pool(pool: "asyncpg.Pool[Row]") -> None:
    try:
        await asyncio.wait_for(pool.close(), 5)
    except TimeoutError:
        pool.terminate()
