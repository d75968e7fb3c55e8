"""Group commit: calls that arrive while a transaction is under way form the next one.

No waiting when idle: a call that finds nothing under way goes at once, with those of the same turn of the event loop.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from datetime import timedelta
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from wabery_server import errors
from wabery_server.db import DEADLINE, Database, Lane, Tx
from wabery_server.db.verdicts import contended
from wabery_server.logs import Outage

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_BATCH = 512
MAX_QUEUE = 20_000
_MANY = 12
"""Open another lane when at least this many wait: two small batches side by side cost more than one after the other."""
_LONG_SECONDS = 0.05
"""Or when a batch takes this long; a row in it may be locked."""
_STUCK_SECONDS = 0.25
"""A lane whose batch takes this long is counted out, and a spare one takes its place: a statement may be slow for reasons of
one project, up to the server's statement timeout."""
_CONTENTION = timedelta(milliseconds=150)
"""For how long a lane repeats a batch that lost a race, before it looks for the item at fault."""
_PART_WAIT = timedelta(milliseconds=25)
"""For a lock, while the items at fault are looked for."""
_PARTS_SECONDS = 0.2
"""For that search; what is not known to be free of locks by then goes aside."""


class Locks(NamedTuple):
    """Whose an item is, and the rows whose locks it may have to wait for."""

    owner: str
    rows: tuple[Hashable, ...]


class Batcher(Generic[Item, Result]):
    """Hands many items to one transaction and answers each after its commit.

    `flush(tx, items)` returns one result per item, in order; an exception in the list goes to that item's caller
    alone, while the others commit. When the transaction itself fails, it is halved until the items at fault are alone,
    so that a row the database refuses harms no other. `locks(item)` says whose an item is: one that meets a locked row
    leaves the lane and is tried elsewhere (`db.aside`), and so do others on that row. `keys(item)` names what a batch may
    hold only once; a second item with a key of the first waits for the next batch. `group(item)` keeps a batch within one
    group (a project, on Citus). `bare(items)` tells whether their flush is a single statement, or reads only, and needs
    no transaction around it. `lanes` are its own, or given and then perhaps shared with other batchers; `spare` adds one
    that connects only when another lane is stuck. A batch is tried again for `deadline`. `name` is for the log.
    """

    def __init__(
        self,
        database: Database,
        flush: Callable[[Tx, list[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        lanes: int | Sequence[Lane] = 1,
        spare: bool = False,
        bare: Callable[[list[Item]], bool] | None = None,
        locks: Callable[[Item], Locks] | None = None,
        keys: Callable[[Item], Iterable[Hashable]] | None = None,
        group: Callable[[Item], Hashable] | None = None,
        max_batch: int = MAX_BATCH,
        max_queue: int = MAX_QUEUE,
        deadline: timedelta = DEADLINE,
        name: str | None = None,
    ) -> None:
        self._flush = flush
        self._bare = bare
        self._locks = locks
        self._keys = keys
        self._group = group
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._deadline = deadline
        self._aside = database.aside
        self._idle = [database.lane() for _ in range(lanes)] if isinstance(lanes, int) else list(lanes)
        self._lanes = len(self._idle)
        """How many work side by side as a rule."""
        if spare:
            self._idle.insert(0, database.lane())
        self._began: dict[Lane, float] = {}
        """The lanes that are at work, and since when; the latest last."""
        self._later: asyncio.TimerHandle | None = None
        self._queue: deque[Asked[Item, Result]] = deque()
        self._held: set[Hashable] = set()
        self._starting = False
        self._running: set[asyncio.Task[None]] = set()
        self._full = Outage("queue_full", calls=name)

    async def submit(self, item: Item) -> Result:
        """The item's result, after its commit. Raises what its flush raised, or errors.Unavailable when full.

        A caller that goes away does not take its item back.
        """
        return await self.enqueue(item)

    def enqueue(self, item: Item) -> "asyncio.Future[Result]":
        """Like `submit`, for a caller that has many items and awaits them together."""
        if len(self._queue) >= self._max_queue:
            self._full.hit("more calls wait than are taken in", waiting=len(self._queue))
            raise errors.Unavailable("The server is overloaded.", retry_after=1)
        if self._full.on:
            self._full.over()
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
        if len(self._began) >= self._lanes:
            if self._idle:
                self._start_later()  # the spare lane is for when one of the others is stuck
        elif not self._starting:
            self._starting = True
            asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        self._starting = False
        if self._locks is not None and self._aside.troubled:
            self._move_aside(self._locks)
        while self._idle and self._queue:
            if not self._worth_a_lane():
                self._start_later()
                return
            batch, held = self._take()
            if not batch:
                return
            lane = self._idle.pop()
            self._began[lane] = time.monotonic()
            task = asyncio.create_task(self._serve(lane, batch, held))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _worth_a_lane(self) -> bool:
        if not self._began:
            return True
        now = time.monotonic()
        moving = [began for began in self._began.values() if now - began < _STUCK_SECONDS]
        if len(moving) >= self._lanes:
            return False
        return not moving or len(self._queue) >= _MANY or now - moving[-1] >= _LONG_SECONDS

    def _start_later(self) -> None:
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(_LONG_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._later = None
        self._start()

    def _take(self) -> "tuple[list[Asked[Item, Result]], set[Hashable]]":
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
        waiting: deque[Asked[Item, Result]] = deque()
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

    def _move_aside(self, locks: Callable[[Item], Locks]) -> None:
        """What waits for rows that are known to be locked, so that it does not stop a lane to find that out."""
        staying: deque[Asked[Item, Result]] = deque()
        for asked in self._queue:
            where = locks(asked[0])
            if self._aside.holds(where.owner, where.rows):
                self._go_aside(asked, where, again=False)
            else:
                staying.append(asked)
        self._queue = staying

    def _go_aside(self, asked: "Asked[Item, Result]", where: Locks, *, again: bool) -> None:
        task = asyncio.create_task(self._apart(asked, where, again))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _apart(self, asked: "Asked[Item, Result]", where: Locks, again: bool) -> None:
        """One item by itself, where it holds up no other."""
        item, future = asked

        async def attempt(lane: Lane, wait: timedelta) -> Result | Exception:
            nonlocal again
            before, again = again, True
            (result,) = await lane.run(
                lambda tx: self._flushed(tx, [item]),
                deadline=self._deadline,
                contention=_CONTENTION,
                wait=wait,
                again=before,
            )
            return result

        try:
            _settle(
                future,
                await self._aside.submit(where.owner, where.rows, attempt, deadline=self._deadline),
            )
        except Exception as failure:  # noqa: BLE001  # whatever it is, it is the caller's answer
            _settle(future, failure)

    async def _serve(self, lane: Lane, batch: "list[Asked[Item, Result]]", held: set[Hashable]) -> None:
        items = [item for item, _ in batch]
        results: Sequence[Result | Exception] = []
        try:
            bare = self._bare is not None and self._bare(items)
            results = await lane.run(
                lambda tx: self._flushed(tx, items),
                deadline=self._deadline,
                contention=None if self._locks is None else _CONTENTION,
                bare=bare,
            )
        except Exception as failure:  # noqa: BLE001  # whatever it is, it is the callers' answer
            if _is_outage(failure):
                results = [failure] * len(batch)
            else:
                await self._find_those_at_fault(lane, batch, failure)
        finally:
            # The next batch is on its way before the callers of this one go on: the database need not wait for them.
            self._held -= held
            del self._began[lane]
            self._idle.append(lane)
            self._start()
        for (_, future), result in zip(batch, results, strict=False):
            _settle(future, result)

    async def _find_those_at_fault(
        self, lane: Lane, batch: "list[Asked[Item, Result]]", failure: Exception
    ) -> None:
        """Halves a batch that has failed until its parts succeed, or are one item that fails by itself."""
        if self._locks is not None:
            locks = self._locks
            batch = sorted(
                batch, key=lambda asked: locks(asked[0]).owner
            )  # what is one project's falls together
        until = time.monotonic() + _PARTS_SECONDS
        failed = deque([(batch, failure)])
        while failed:
            part, failure = failed.popleft()
            if len(part) == 1:
                self._fail(part[0], failure)
                continue
            if self._locks is not None and contended(failure) and time.monotonic() > until:
                for asked in part:
                    self._go_aside(asked, self._locks(asked[0]), again=True)
                continue
            middle = (len(part) + 1) // 2
            for half in (part[:middle], part[middle:]):
                try:
                    await self._try_part(lane, half)
                except Exception as reason:  # noqa: BLE001  # it is looked at in a later round
                    if _is_outage(reason):
                        for asked in [*part, *(asked for rest, _ in failed for asked in rest)]:
                            _settle(asked[1], reason)
                        return
                    failed.append((half, reason))

    async def _try_part(self, lane: Lane, part: "list[Asked[Item, Result]]") -> None:
        items = [item for item, _ in part]
        results = await lane.run(
            lambda tx: self._flushed(tx, items),
            deadline=min(self._deadline, _SINGLE),
            contention=_PART_WAIT,
            wait=_PART_WAIT,
            again=True,
        )
        for (_, future), result in zip(part, results, strict=True):
            _settle(future, result)

    def _fail(self, asked: "Asked[Item, Result]", failure: Exception) -> None:
        """An item that fails by itself: with its row locked it has another chance elsewhere."""
        item, future = asked
        if self._locks is None or not contended(failure):
            _settle(future, failure)
            return
        where = self._locks(item)
        self._aside.stopped(where.owner, where.rows, failure)
        self._go_aside(asked, where, again=True)

    async def _flushed(self, tx: Tx, items: list[Item]) -> Sequence[Result | Exception]:
        results = await self._flush(tx, items)
        assert len(results) == len(items), "a flush answers every item, or nobody answers its caller"
        return results


Asked: TypeAlias = tuple[Item, "asyncio.Future[Result]"]

_SINGLE = timedelta(seconds=2)


def _is_outage(failure: Exception) -> bool:
    """Whether trying the items one by one is no use: the database is away, and not just a row locked or contended."""
    return isinstance(failure, errors.Unavailable) and not contended(failure)


def _settle(future: "asyncio.Future[Result]", result: Result | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
