"""Where work goes whose rows are locked: a few connections of their own, shared out among projects.

A shared connection waits for a lock for a tenth of a second. What still meets one then comes here, one piece of work at a
time, so that the next batch can go on:

    fresh ── a short try ──> done
      └── locked ──> stuck ── tried again and again, in turn, until its deadline ──> done, or refused

Each owner (a project) has at most two connections at once, one for what is fresh and one for what is stuck: neither
another project nor the unlocked rows of the same one wait behind what is stuck. What an owner's locked rows were is
remembered for some seconds, and work that names them comes here at once.
"""

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Iterable
from datetime import timedelta
from typing import Generic, TypeVar

from wabery_server import errors
from wabery_server.db.verdicts import contended
from wabery_server.logs import Outage

L = TypeVar("L")
T = TypeVar("T")

CONNECTIONS = 4
PER_OWNER = 2
_FIRST_WAIT = 0.05
_LONGEST_WAIT = 0.5
"""Seconds that one try may wait for a lock; what is stuck shares a second among all of its owner's."""
_REMEMBERED = 3.0
"""Seconds for which a row is held to be locked after the last try that found it so."""
_MANY = 2
"""Times that one owner may stop a shared connection before all of its work comes here for a while."""
_IN_PROGRESS = 2.0
"""Seconds after which a refusal of the work's own, such as that of an Idempotency-Key in use, is believed."""
_MOST_WAITING = 1_000

Attempt = Callable[[L, timedelta], Awaitable[T]]
"""Runs the work once on a connection that waits this long for a lock."""


class _Job(Generic[L]):
    __slots__ = ("attempt", "began", "failure", "future", "rows", "timer")

    def __init__(
        self,
        attempt: Callable[[L, timedelta], Awaitable[object]],
        rows: tuple[Hashable, ...],
        future: "asyncio.Future[object]",
        timer: asyncio.TimerHandle,
    ) -> None:
        self.attempt = attempt
        self.rows = rows
        self.future = future
        self.timer = timer
        self.began = time.monotonic()
        self.failure: Exception | None = None


class _Owner(Generic[L]):
    """What one project has waiting here, and which of its rows were found locked."""

    def __init__(self, name: str) -> None:
        self.fresh: deque[_Job[L]] = deque()
        self.stuck: deque[_Job[L]] = deque()
        self.stuck_rows: Counter[Hashable] = Counter()
        self.running = 0
        self.running_stuck = 0
        self.locked: dict[Hashable, float] = {}
        """Row -> until when it is held to be locked."""
        self.stops: list[float] = []
        """When it stopped a shared connection, lately."""
        self.aside_until = 0.0
        self.look_at = 0.0
        """When to forget what is not locked any more."""
        self.outage = Outage("rows_locked", quiet=0.0, project_id=name)

    @property
    def waiting(self) -> int:
        return len(self.fresh) + len(self.stuck)


class Aside(Generic[L]):
    """`make` opens a connection when it is needed, at most `connections` times."""

    def __init__(self, make: Callable[[], L], *, connections: int = CONNECTIONS) -> None:
        self._make = make
        self._idle: list[L] = []
        self._left = connections
        self._per_owner = min(PER_OWNER, max(1, connections - 1))
        self._owners: OrderedDict[str, _Owner[L]] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def troubled(self) -> bool:
        """Whether any rows are known to be locked: only then is `holds` worth asking."""
        return bool(self._owners)

    def holds(self, owner: str, rows: Iterable[Hashable]) -> bool:
        """Whether work of this owner on these rows is to come here at once."""
        its = self._owners.get(owner)
        if its is None:
            return False
        now = time.monotonic()
        if now < its.aside_until:
            return True
        if now >= its.look_at:
            its.look_at = now + _REMEMBERED / 6
            its.locked = {row: until for row, until in its.locked.items() if until > now}
            if not its.locked and not its.waiting and not its.running:
                its.outage.over()
                del self._owners[owner]
                return False
        return not its.locked.keys().isdisjoint(rows)

    def stopped(self, owner: str, rows: Iterable[Hashable], failure: Exception) -> None:
        """Notes that this work has just met a lock on a shared connection."""
        its = self._owners.get(owner)
        if its is None:
            its = self._owners[owner] = _Owner(owner)
        now = time.monotonic()
        its.stops = [at for at in its.stops if at > now - _REMEMBERED]
        its.stops.append(now)
        if len(its.stops) >= _MANY:
            its.aside_until = now + _REMEMBERED
        self._remember(its, rows, failure, now)

    def submit(
        self, owner: str, rows: Iterable[Hashable], attempt: Attempt[L, T], *, deadline: timedelta
    ) -> "asyncio.Future[T]":
        """Runs the work here; its result, or its failure. After `deadline`: errors.Unavailable."""
        its = self._owners.get(owner)
        if its is None:
            its = self._owners[owner] = _Owner(owner)
        if its.waiting >= _MOST_WAITING:
            raise errors.Unavailable(_HELD, retry_after=1)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        timer = loop.call_later(deadline.total_seconds(), _expire, future)
        job: _Job[L] = _Job(attempt, tuple(rows), future, timer)  # type: ignore[arg-type]  # a future of some result
        if any(row in its.stuck_rows for row in job.rows):
            self._keep_stuck(its, job)  # behind what waits for the same row, in the order of their coming
        else:
            its.fresh.append(job)
        self._start()
        return future

    async def drain(self) -> None:
        """Waits until nothing runs or waits here."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self) -> None:
        while self._idle or self._left:
            found = self._next()
            if found is None:
                return
            its, job, stuck = found
            if self._idle:
                line = self._idle.pop()
            else:
                line = self._make()
                self._left -= 1
            its.running += 1
            its.running_stuck += stuck
            task = asyncio.create_task(self._serve(line, its, job, stuck=stuck))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next(self) -> tuple[_Owner[L], _Job[L], bool] | None:
        """The next work of the owner whose turn it is."""
        for name in list(self._owners):
            its = self._owners[name]
            job, stuck = None, False
            while job is None and its.running < self._per_owner:
                fresh_runs = its.running > its.running_stuck
                if its.stuck and not its.running_stuck and (fresh_runs or not its.fresh):
                    job, stuck = its.stuck.popleft(), True
                elif its.fresh:
                    job, stuck = its.fresh.popleft(), False
                else:
                    break
                if job.future.done():  # it was refused meanwhile, or its caller has gone
                    self._leave(its, job, stuck=stuck)
                    job = None
            if job is not None:
                self._owners.move_to_end(name)
                return its, job, stuck
        return None

    async def _serve(self, line: L, its: _Owner[L], job: _Job[L], *, stuck: bool) -> None:
        wait = min(_LONGEST_WAIT, max(_FIRST_WAIT, 1 / (len(its.stuck) + 1))) if stuck else _FIRST_WAIT
        try:
            result = await job.attempt(line, timedelta(seconds=wait))
        except Exception as failure:  # noqa: BLE001  # whatever it is, it is the caller's answer
            if contended(failure) and self._may_wait(job, failure):
                self._remember(its, job.rows, failure, time.monotonic())
                if stuck:
                    its.stuck.append(job)
                else:
                    self._keep_stuck(its, job)
            else:
                self._leave(its, job, stuck=stuck)
                if not job.future.done():
                    job.future.set_exception(failure)
        else:
            self._leave(its, job, stuck=stuck)
            if not job.future.done():
                job.future.set_result(result)
        finally:
            its.running -= 1
            its.running_stuck -= stuck
            self._idle.append(line)
            self._start()

    def _may_wait(self, job: _Job[L], failure: Exception) -> bool:
        """A lock is waited for until the deadline; what the work itself makes of one is believed sooner."""
        if job.future.done():
            return False
        return isinstance(failure, errors.Unavailable) or time.monotonic() - job.began < _IN_PROGRESS

    def _keep_stuck(self, its: _Owner[L], job: _Job[L]) -> None:
        its.stuck.append(job)
        its.stuck_rows.update(job.rows)

    def _leave(self, its: _Owner[L], job: _Job[L], *, stuck: bool) -> None:
        job.timer.cancel()
        if stuck:
            for row in job.rows:
                its.stuck_rows[row] -= 1
                if its.stuck_rows[row] <= 0:
                    del its.stuck_rows[row]

    def _remember(self, its: _Owner[L], rows: Iterable[Hashable], failure: Exception, now: float) -> None:
        for row in rows:
            its.locked[row] = now + _REMEMBERED
        if now < its.aside_until:
            its.aside_until = now + _REMEMBERED
        its.outage.hit(type(failure.__cause__ or failure).__name__)


_HELD = "Another request holds what this one needs."


def _expire(future: "asyncio.Future[T]") -> None:
    if not future.done():
        future.set_exception(errors.Unavailable(_HELD, retry_after=1))
