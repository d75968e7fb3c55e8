"""Readiness: whether the database answers and takes writes, asked all the time on a connection of its own.

`/readyz` shows what was found last, so it answers at once, whatever the database does. A look-up five times a second
notices a database that is dead or frozen within a second. A small write every 10 seconds notices one that takes no writes
any more (a full disk, a failover to a read-only server), and `notice` is told when a request has met one.
"""

import asyncio
import contextlib
import random
from collections.abc import Coroutine
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

import asyncpg

from wabery_server import intents, logs
from wabery_server.clock import Clock
from wabery_server.db import Row, Source, Tx, queries

T = TypeVar("T")
sql = queries.beside(__file__)

_LOOK_SECONDS = 0.2
"""Between two look-ups."""
_ANSWER_SECONDS = 0.6
"""For a look-up. With the pause before it and a little for a busy event loop it stays below a second."""
_WRITE_SECONDS = 3.0
"""For a write, which waits for the disk; a checkpoint may hold it up."""
_WRITE_AGAIN_SECONDS = 1.0
"""Between two writes while they fail."""
_LATE_SECONDS = 0.05
_SLOTS = 64
"""Rows of the table: each process writes one, and its row stays when the process is gone."""
_NOTHING = ("proj_00000000000000000000000000", "reg_00000000000000000000000000")
"""An intent that does not exist: the look-up goes through the index that a poll uses."""

_NO_ROOM = ("53", "58")
"""SQLSTATE classes: insufficient resources, such as a full disk, and system errors, such as a broken one."""
_TOO_MANY_CONNECTIONS = "53300"
"""Keeps new connections away; the ones that serve requests are open."""
_CONTENDED = (asyncpg.LockNotAvailableError, asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
"""Says nothing about whether the database takes writes."""


class Readiness:
    """Begins with `async with`, or when it is first asked."""

    def __init__(
        self, source: Source, clock: Clock, *, write_every: timedelta = timedelta(seconds=10)
    ) -> None:
        self._source = source
        self._clock = clock
        self._write_every = write_every.total_seconds()
        self._write_at = 0.0
        """On the event loop's clock."""
        self._slot = random.randrange(_SLOTS)  # noqa: S311  # no secret
        self._connection: asyncpg.Connection[Row] | None = None
        self._writes_fail: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._looked = asyncio.Event()
        self._sooner = asyncio.Event()
        self.problem: str | None = None

    async def __aenter__(self) -> Self:
        await self.ask()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def ask(self) -> str | None:
        """Why the database cannot be used; None while it can. Only the first call waits, for the first look."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_looking())
        if not self._looked.is_set():
            await self._looked.wait()
        return self.problem

    async def close(self) -> None:
        """Safe to repeat."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._drop()

    def notice(self, failure: BaseException) -> None:
        """Why a request failed. When the server had no room or could not use its disk, the database counts as unusable
        until a write of our own succeeds."""
        cause: BaseException | None = failure
        while cause is not None:
            state = getattr(cause, "sqlstate", None) or ""
            if state[:2] in _NO_ROOM and state != _TOO_MANY_CONNECTIONS:
                # Our small write may find room where requests do not: it is tried once they have stopped failing.
                self._write_at = asyncio.get_running_loop().time() + _WRITE_AGAIN_SECONDS
                self._take_no_writes(state)
                self.problem = self._writes_fail
                return
            cause = cause.__cause__

    async def _keep_looking(self) -> None:
        while True:
            await self._look()
            self._looked.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._sooner.wait(), _LOOK_SECONDS)
            self._sooner.clear()

    async def _look(self) -> None:
        before = self.problem
        self.problem, cause = await self._find_problem()
        if cause is not None and self.problem != before:
            logs.log.error("not_ready", extra={"facts": {"problem": self.problem, "cause": cause}})
        elif self.problem is None and before is not None:
            logs.line("ready_again")

    async def _find_problem(self) -> tuple[str | None, str | None]:
        """What a caller is told, and its cause unless the log has it."""
        try:
            connection = await self._connected()
            await self._within(_ANSWER_SECONDS, intents.find(Tx(connection), [_NOTHING]))
            if asyncio.get_running_loop().time() >= self._write_at:
                await self._within(_WRITE_SECONDS, self._write(connection))
        except TimeoutError as failure:
            self._drop()
            return "The database does not answer.", type(failure).__name__
        except Exception as failure:  # noqa: BLE001  # whatever it is, requests would meet it too
            self._drop()
            return "The database cannot be used.", getattr(failure, "sqlstate", None) or type(
                failure
            ).__name__
        return self._writes_fail, None

    async def _connected(self) -> "asyncpg.Connection[Row]":
        if self._connection is None or self._connection.is_closed():
            connection = await self._within(_ANSWER_SECONDS, self._source.connect(lock_timeout="500"))
            # A server that ends is noticed at once.
            connection.add_termination_listener(lambda _connection: self._sooner.set())
            self._connection = connection
        return self._connection

    async def _write(self, connection: "asyncpg.Connection[Row]") -> None:
        try:
            await connection.execute(sql.mark, self._slot, self._clock.now())
        except _CONTENDED:
            pass
        except asyncpg.PostgresError as failure:
            self._take_no_writes(failure.sqlstate)
        else:
            self._writes_fail = None
        pause = self._write_every if self._writes_fail is None else _WRITE_AGAIN_SECONDS
        self._write_at = asyncio.get_running_loop().time() + pause

    def _take_no_writes(self, sqlstate: str) -> None:
        if self._writes_fail is None:
            self._writes_fail = "The database does not take writes."
            logs.log.error("not_ready", extra={"facts": {"problem": self._writes_fail, "cause": sqlstate}})

    async def _within(self, seconds: float, work: Coroutine[Any, Any, T]) -> T:
        """Raises TimeoutError."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task}, timeout=seconds)
            if not task.done():
                # After a long turn of the event loop the answer may be there, but not read yet.
                await asyncio.wait({task}, timeout=_LATE_SECONDS)
            if task.done():
                return task.result()
            raise TimeoutError
        finally:
            if not task.done():
                # In this order: asyncpg asks the server to cancel a statement whose connection is still open, and
                # a frozen one would never answer that.
                self._drop()
                task.cancel()
                await asyncio.wait({task})

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            connection.terminate()
