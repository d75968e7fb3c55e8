"""Group commit: calls that arrive while a transaction is under way form the next one.

No waiting when idle: a call that finds nothing under way goes at once, with those of the same turn of the event loop.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from datetime import timedelta
from typing import Generic, TypeVar

from wabery_server import errors
from wabery_server.db import CONTENTION, DEADLINE, Database, Lane, Tx

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_BATCH = 512
MAX_QUEUE = 20_000
_MANY = 12
"""So many waiting are worth another lane: two small batches side by side cost more than one after the other."""
_LONG_SECONDS = 0.05
"""And so does any that waits behind a batch that takes this long; a row in it may be locked by somebody."""


class Batcher(Generic[Item, Result]):
    """Hands many items to one transaction and answers each after its commit.

    `flush(tx, items)` returns one result per item, in order; an exception in the list goes to that item's caller
    alone, while the others commit. When the transaction itself fails, its items are run one by one, so that a row the
    database refuses harms nobody else. `keys(item)` names what a batch may hold only once; a second item with a key of
    the first waits for the next batch. `group(item)` keeps a batch within one group (a project, on Citus). `bare(items)`
    tells whether their flush is a single statement, or reads only, and needs no transaction around it. `lanes` are its
    own, or given and then perhaps shared with other batchers. A batch is tried again for `deadline`.
    """

    def __init__(
        self,
        database: Database,
        flush: Callable[[Tx, list[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        lanes: int | Sequence[Lane] = 1,
        bare: Callable[[list[Item]], bool] | None = None,
        keys: Callable[[Item], Iterable[Hashable]] | None = None,
        group: Callable[[Item], Hashable] | None = None,
        max_batch: int = MAX_BATCH,
        max_queue: int = MAX_QUEUE,
        deadline: timedelta = DEADLINE,
    ) -> None:
        self._flush = flush
        self._bare = bare
        self._keys = keys
        self._group = group
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._deadline = deadline
        self._idle = [database.lane() for _ in range(lanes)] if isinstance(lanes, int) else list(lanes)
        self._lanes = len(self._idle)
        self._began = 0.0
        self._later: asyncio.TimerHandle | None = None
        self._queue: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._held: set[Hashable] = set()
        self._starting = False
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item) -> Result:
        """The item's result, after its commit. Raises what its flush raised, or errors.Unavailable when full.

        A caller that goes away does not take its item back.
        """
        return await self.enqueue(item)

    def enqueue(self, item: Item) -> "asyncio.Future[Result]":
        """Like `submit`, for a caller that has many items and awaits them together."""
        if len(self._queue) >= self._max_queue:
            raise errors.Unavailable("The server is overloaded.", retry_after=1)
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        self._start_soon()
        return future

    async def drain(self) -> None:
        """Waits until everything accepted has been answered."""
        while self._queue or self._running:
            if self._running:
                await asyncio.wait(self._running)
            else:
                await asyncio.sleep(0)

    def _start_soon(self) -> None:
        """Takes the next batch at the end of this turn: what else has just arrived is in it."""
        if self._idle and not self._starting:
            self._starting = True
            asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        self._starting = False
        while self._idle and self._queue:
            if not self._worth_a_lane():
                self._start_later()
                return
            batch, held = self._take()
            if not batch:
                return
            self._began = time.monotonic()
            lane = self._idle.pop()
            task = asyncio.create_task(self._serve(lane, batch, held))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _worth_a_lane(self) -> bool:
        nothing_runs = len(self._idle) == self._lanes
        return nothing_runs or len(self._queue) >= _MANY or time.monotonic() - self._began >= _LONG_SECONDS

    def _start_later(self) -> None:
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(_LONG_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._later = None
        self._start()

    def _take(self) -> tuple[list[tuple[Item, "asyncio.Future[Result]"]], set[Hashable]]:
        """The next batch, oldest first, and the keys it holds; what must wait stays in the queue in its order."""
        if self._keys is None and self._group is None:
            if len(self._queue) <= self._max_batch:
                batch = list(self._queue)
                self._queue.clear()
            else:
                batch = [self._queue.popleft() for _ in range(self._max_batch)]
            return batch, set()
        batch = []
        held: set[Hashable] = set()
        passed: set[Hashable] = set()
        waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        group: Hashable = None
        looked_at = 0
        while self._queue and len(batch) < self._max_batch and looked_at < 4 * self._max_batch:
            item, future = self._queue.popleft()
            looked_at += 1
            keys = set(self._keys(item)) if self._keys else set()
            taken = (
                not keys.isdisjoint(held) or not keys.isdisjoint(self._held) or not keys.isdisjoint(passed)
            )
            if self._group is not None and batch and self._group(item) != group:
                taken = True
            if taken:
                passed |= keys
                waiting.append((item, future))
                continue
            if self._group is not None:
                group = self._group(item)
            held |= keys
            batch.append((item, future))
        waiting.extend(self._queue)
        self._queue = waiting
        self._held |= held
        return batch, held

    async def _serve(
        self, lane: Lane, batch: list[tuple[Item, "asyncio.Future[Result]"]], held: set[Hashable]
    ) -> None:
        items = [item for item, _ in batch]
        results: Sequence[Result | Exception] = []
        try:
            bare = self._bare is not None and self._bare(items)
            results = await lane.run(lambda tx: self._flushed(tx, items), deadline=self._deadline, bare=bare)
        except Exception as failure:  # noqa: BLE001  # whatever it is, it is the callers' answer
            if len(batch) == 1 or _is_outage(failure):
                results = [failure] * len(batch)
            else:
                await self._one_by_one(lane, batch)
        finally:
            # The next batch is on its way before the callers of this one go on: the database need not wait for them.
            self._held -= held
            self._idle.append(lane)
            self._start()
        for (_, future), result in zip(batch, results, strict=False):
            _settle(future, result)

    async def _one_by_one(self, lane: Lane, batch: list[tuple[Item, "asyncio.Future[Result]"]]) -> None:
        outage: Exception | None = None
        deadline = min(self._deadline, _SINGLE)
        for item, future in batch:
            if outage is not None:
                _settle(future, outage)
                continue
            try:
                (result,) = await lane.run(lambda tx, item=item: self._flushed(tx, [item]), deadline=deadline)  # type: ignore[misc]
            except Exception as failure:  # noqa: BLE001  # whatever it is, it is the callers' answer
                _settle(future, failure)
                outage = failure if _is_outage(failure) else None
            else:
                _settle(future, result)

    async def _flushed(self, tx: Tx, items: list[Item]) -> Sequence[Result | Exception]:
        results = await self._flush(tx, items)
        assert len(results) == len(items), "a flush answers every item, or nobody answers its caller"
        return results


_SINGLE = timedelta(seconds=2)


def _is_outage(failure: Exception) -> bool:
    """Whether trying the items one by one is no use: the database is away, and not just a row locked or contended."""
    return isinstance(failure, errors.Unavailable) and not isinstance(failure.__cause__, CONTENTION)


def _settle(future: "asyncio.Future[Result]", result: Result | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
