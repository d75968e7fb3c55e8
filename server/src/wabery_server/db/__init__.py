"""The database: connections, transactions that can be repeated, lanes for the hot statements, and who waits for whom.

Every transaction is a function of `tx` that may run more than once: its inserts are idempotent and its ids, times and
random values were made before it. It is repeated after a deadlock or a lost connection, up to a deadline; an outcome that
a cut connection left unknown is made known by running it again. What a failure means is in `verdicts`.

No project waits long for another: a connection that is shared waits at most 100 ms for a lock, and then the work goes to
one of a few connections that are there for nothing else (`aside`).
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias, TypeVar

import asyncpg

from wabery_server import errors
from wabery_server.db.aside import CONNECTIONS, Aside
from wabery_server.db.queries import for_rows
from wabery_server.db.verdicts import Conflict as Conflict
from wabery_server.db.verdicts import Verdict, contended, ends_connection, sqlstate, verdict
from wabery_server.logs import Outage

Row: TypeAlias = asyncpg.Record
T = TypeVar("T")

DEADLINE = timedelta(seconds=8)
MOST_ROWS = 32
"""Rows in one statement. A statement is prepared for each number of rows, so this bounds what a connection keeps."""
_CONTENTION = timedelta(milliseconds=300)
"""For how long a shared connection repeats what lost a race; then it goes aside."""


Taken: TypeAlias = asyncpg.UniqueViolationError
"""What was to be unique is there already."""


class Patience(NamedTuple):
    """For how long a connection waits. The server's limits are the shorter ones, so that it cancels a statement itself and
    the connection lives on; a connection whose server does not answer at all is given up."""

    lock: timedelta = timedelta(milliseconds=100)
    """One lock; the rest of the work on that row goes on elsewhere (`aside`)."""
    statement: timedelta = timedelta(milliseconds=4_500)
    """One statement, on the server."""
    command: timedelta = timedelta(seconds=5)
    """One statement, or all that a batch asks, before the connection is given up: its server may be frozen."""
    idle: timedelta = timedelta(seconds=3)
    """Inside a transaction, without a statement, before the server ends the session: a frozen process must not hold its
    locks. Nothing legitimate pauses there, as writes are prepared before they open one."""

    def settings(self) -> dict[str, str]:
        return {
            "lock_timeout": _milliseconds(self.lock),
            "statement_timeout": _milliseconds(self.statement),
            "idle_in_transaction_session_timeout": _milliseconds(self.idle),
        }


OPERATOR = Patience(
    lock=timedelta(seconds=10),
    statement=timedelta(minutes=10),
    command=timedelta(minutes=11),
    idle=timedelta(minutes=1),
)
"""For migrations and what an operator runs by hand, which nobody else waits for."""


def _milliseconds(span: timedelta) -> str:
    return str(max(1, int(span / timedelta(milliseconds=1))))


@dataclass
class Source:
    """Where the database is: a DSN, or the parts of an embedded server's address, which a new owner may change."""

    dsn: str | None = None
    parts: dict[str, object] = field(default_factory=dict, repr=False)
    patience: Patience = field(default_factory=Patience)
    pooled: bool | None = None
    """Whether a pooler in session mode stands between, which may drop or reject settings of the greeting: then we set them
    with a statement. None: not known."""

    async def connect(self, *, timed: bool = True, **settings: str) -> "asyncpg.Connection[Row]":
        """`timed`: whether the driver gives up a statement by itself, with its connection."""
        wanted = {
            "application_name": "wabery",
            "timezone": "UTC",
            "jit": "off",
            "random_page_cost": "1.1",  # solid state; at the default of 4 a queue without statistics is sorted whole
            **self.patience.settings(),
            **settings,
        }
        connection = await asyncpg.connect(
            self.dsn,
            **self.parts,
            timeout=5,
            command_timeout=self.patience.command.total_seconds() if timed else None,
            statement_cache_size=1000,  # a lane has one for each number of rows
            server_settings={} if self.pooled else wanted,
        )
        if self.pooled:
            await connection.fetch(_SET, list(wanted), list(wanted.values()))
        return connection


_SET = "select set_config(name, value, false) from unnest($1::text[], $2::text[]) as wanted (name, value)"


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


POOL = {
    "plan_cache_mode": "force_custom_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
"""In the pool a list with filters left open needs the plan of those that are set. Every statement has its index, and reads it
in order as far as its limit; a plan that first gathers all that applies costs more the more there is."""


class _Try:
    """One run of a transaction among several."""

    __slots__ = ("again", "connected")

    def __init__(self) -> None:
        self.again = False
        """Whether it has failed before."""
        self.connected = False
        """Whether the connection it failed on is still open."""

    async def fails(self, failure: BaseException, connection: "asyncpg.Connection[Row]") -> None:
        """Takes note of a failure, and gives the connection up where it must not be used again."""
        if isinstance(failure, asyncpg.InterfaceError | asyncpg.InternalClientError):
            await asyncio.sleep(0)  # the driver may hear of a lost connection one turn of the event loop late
        self.connected = not connection.is_closed()
        if ends_connection(failure, connected=self.connected):
            connection.terminate()
        if isinstance(failure, asyncpg.PostgresError):
            failure.detail = (
                None  # it quotes the row: a log of the failure would hold phone numbers and texts
            )


class Lane:
    """One connection that runs one transaction after another: the hot statements stay prepared on it."""

    def __init__(self, source: Source, outage: Outage) -> None:
        self._source = source
        self._outage = outage
        self._connection: asyncpg.Connection[Row] | None = None
        self._turn = asyncio.Lock()

    async def run(
        self,
        work: Work[T],
        *,
        deadline: timedelta = DEADLINE,
        contention: timedelta | None = None,
        bare: bool = False,
        wait: timedelta | None = None,
        again: bool = False,
    ) -> T:
        """Runs `work` in a transaction and commits it, again where that is safe. Raises errors.Unavailable.

        `bare`: the work only reads, or writes with a single statement, and so saves the begin and the commit around it.
        `wait`: for a lock, instead of the connection's own patience. `again`: whether the work has failed elsewhere.
        `contention`: for how long a lost race is repeated; None: until the deadline, and so is a wait for a lock.
        """
        one = _Try()
        one.again = again
        return await _until(
            deadline, contention, one, lambda: self._once(work, one, bare, wait), self._outage
        )

    async def _once(self, work: Work[T], one: _Try, bare: bool, wait: timedelta | None) -> T:
        async with self._turn:
            one.connected = False
            connection = self._connection
            if connection is None or connection.is_closed():
                connection = self._connection = await self._source.connect(timed=False, **LANE)
            # One timer for all that the work asks; asyncpg would make one for each statement.
            limit = asyncio.get_running_loop().call_later(
                self._source.patience.command.total_seconds(), connection.terminate
            )
            try:
                tx = Tx(connection, again=one.again)
                if bare:
                    return await work(tx)
                async with connection.transaction():
                    if wait is not None:
                        await tx.run("select set_config('lock_timeout', $1, true)", _milliseconds(wait))
                    return await work(tx)
            except BaseException as failure:
                await one.fails(failure, connection)
                raise
            finally:
                limit.cancel()

    async def close(self) -> None:
        async with self._turn:
            if self._connection is not None and not self._connection.is_closed():
                await self._connection.close(timeout=2)


class Database:
    """The pool for everything that is not hot, the maker of lanes, and the connections for what is locked."""

    def __init__(self, source: Source, *, pool_size: int = 4, aside: int = CONNECTIONS) -> None:
        self.source = source
        self.outage = Outage("database_unavailable")
        self.aside: Aside[Lane] = Aside(self.lane, connections=aside)
        self._pool_size = pool_size
        self._lanes: list[Lane] = []
        self._pool: asyncpg.Pool[Row] | None = None
        self._shares: dict[str, tuple[asyncio.Semaphore, int]] = {}

    async def __aenter__(self) -> Self:
        self._pool = await asyncpg.create_pool(
            min_size=0,
            max_size=self._pool_size,
            max_inactive_connection_lifetime=60,
            connect=lambda *_args, **_kwargs: self.source.connect(timed=True, **POOL),
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
        lane = Lane(self.source, self.outage)
        self._lanes.append(lane)
        return lane

    async def run(self, work: Work[T], *, owner: str | None = None, deadline: timedelta = DEADLINE) -> T:
        """Runs `work` in a transaction and commits it, again where that is safe. Raises errors.Unavailable.

        `owner`: the project that asks, which gets half of the pool's connections at most.
        """
        began = time.monotonic()
        one = _Try()
        try:
            async with self._share(owner, deadline):
                return await _until(deadline, _CONTENTION, one, lambda: self._once(work, one), self.outage)
        except errors.WaberyError as failure:
            if not contended(failure):
                raise
            self.aside.stopped(owner or "", (), failure)
        left = deadline - timedelta(seconds=time.monotonic() - began)

        async def attempt(lane: Lane, wait: timedelta) -> T:
            return await lane.run(work, deadline=left, contention=_CONTENTION, wait=wait, again=True)

        return await self.aside.submit(owner or "", (), attempt, deadline=left)

    async def _once(self, work: Work[T], one: _Try) -> T:
        assert self._pool is not None, "the database is opened with `async with`"
        one.connected = False
        async with self._pool.acquire(timeout=5) as connection:
            try:
                async with connection.transaction():
                    return await work(Tx(connection, again=one.again))
            except BaseException as failure:
                await one.fails(failure, connection)
                raise

    @contextlib.asynccontextmanager
    async def _share(self, owner: str | None, deadline: timedelta) -> AsyncIterator[None]:
        """One of the pool's connections that this owner may have at once."""
        if owner is None:
            yield
            return
        share, users = self._shares.get(owner) or (asyncio.Semaphore(max(1, self._pool_size // 2)), 0)
        self._shares[owner] = (share, users + 1)
        try:
            if share.locked():
                try:
                    await asyncio.wait_for(share.acquire(), deadline.total_seconds())
                except TimeoutError:
                    self.outage.hit("one project's share of the connections is used up", project_id=owner)
                    raise errors.Unavailable(retry_after=1) from None
            else:
                await share.acquire()
            try:
                yield
            finally:
                share.release()
        finally:
            _, users = self._shares[owner]
            if users == 1:
                del self._shares[owner]
            else:
                self._shares[owner] = (share, users - 1)


async def _until(
    deadline: timedelta,
    contention: timedelta | None,
    one: _Try,
    once: Callable[[], Awaitable[T]],
    outage: Outage,
) -> T:
    """`once()` until it succeeds, its deadline has passed, or its failure says that repeating is no use."""
    began = time.monotonic()
    end = began + deadline.total_seconds()
    contended_until = end if contention is None else min(end, began + contention.total_seconds())
    pause = 0.01
    while True:
        try:
            result = await once()
        except Exception as failure:
            ruling = verdict(failure, connected=one.connected)
            if ruling in (Verdict.BUG, Verdict.DATA):
                raise
            later = time.monotonic() + pause
            if ruling is Verdict.UNAVAILABLE or (ruling is Verdict.RECONNECT and later > end):
                outage.hit(type(failure).__name__, sqlstate=sqlstate(failure))
                raise errors.Unavailable(retry_after=1) from failure
            if ruling is Verdict.LOCKED and contention is not None:
                raise errors.Unavailable(_HELD, retry_after=1) from failure
            if ruling is not Verdict.RECONNECT and later > contended_until:
                raise errors.Unavailable(_HELD, retry_after=1) from failure
        else:
            if outage.on:
                outage.over()
            return result
        one.again = True
        await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  # jitter
        pause = min(pause * 2, 0.5)


_HELD = "Another request holds what this one needs."


async def _leave_as_it_is(_connection: "asyncpg.Connection[Row]") -> None:
    """The pool's own reset costs 30 % more CPU; nothing here changes a connection's session."""


async def _close_pool(pool: "asyncpg.Pool[Row]") -> None:
    try:
        await asyncio.wait_for(pool.close(), 5)
    except TimeoutError:
        pool.terminate()
