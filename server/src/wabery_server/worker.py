"""The worker: sends what is due, and ends what time has ended. A class per loop, one TaskGroup.

Any number of workers may run beside each other, in the server's process or in their own. Each takes work by claiming
it, so they need not know of one another; when one is killed, its leases run out and its work comes back.
"""

import asyncio
import contextlib
import random
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from wabery_server import accounts, errors, idempotency, ids, intents, outbox, webhooks
from wabery_server.accounts import Endpoint
from wabery_server.clock import Clock
from wabery_server.db import Database, Tx, statistics
from wabery_server.db.batcher import Batcher, Locks
from wabery_server.db.signals import Signals
from wabery_server.db.verdicts import contended
from wabery_server.logs import line, log
from wabery_server.outbox import Attempt, Claimed, Queue, Settled, State
from wabery_server.rooms import Room
from wabery_server.secrets import Keyring, Unsealable
from wabery_server.settings import Settings
from wabery_server.webhooks import Outcome, Poster, Result

LEASE = timedelta(seconds=60)
"""How long a claimed delivery is ours. Half of it is for waiting, and the other half outlasts an attempt (15 s at most)
and the settling of it (8 s)."""
LANES = 3
"""Connections for hot statements: one to claim, one to settle, and a spare one."""
POLL_SECONDS = 1.0
"""How often to look for work without a hint."""
SHARED, ALONE = 64, 256
"""Deliveries claimed at once: when several endpoints take turns, and when only one has any."""
QUEUES_AT_ONCE = 1_000
PROJECTS_AT_ONCE = 1_000
MOST_WAITING = 1_024
"""Claimed deliveries that wait for their endpoint to have room; beyond it each endpoint gets one more at most."""
OUR_FAULT_PAUSE = timedelta(seconds=30)
"""Until a delivery is tried again that failed by our own fault; such an attempt does not count."""
OUR_FAULT_LIMIT = timedelta(hours=24)
"""How long attempts to an endpoint may fail by our own fault without counting; then they follow the schedule."""
FINISH_SECONDS = 20.0
"""For the attempts under way when the worker is stopped: an attempt's limit and a margin."""
SWEPT_AT_ONCE = 500
RESUMED_AT_ONCE = 500
_LOOK_PAUSE_SECONDS = 0.01
_LOOK_SHARE = 4
"""After a look comes a pause four times as long: with a large backlog it is not cheap."""
_FAILURE_PAUSE_SECONDS = 1.0
_SURVEY_SECONDS = 1.0
_SURVEY_AGAIN_SECONDS = 60.0


class Worker:
    """Delivers and sweeps. The posters are open; they differ in where live and test projects may send to."""

    def __init__(
        self,
        *,
        database: Database,
        signals: Signals,
        clock: Clock,
        keyring: Keyring,
        settings: Settings,
        live: Poster,
        test: Poster,
        lease: timedelta = LEASE,
        our_fault_limit: timedelta = OUR_FAULT_LIMIT,
    ) -> None:
        deliver = Deliver(
            database=database,
            signals=signals,
            clock=clock,
            keyring=keyring,
            settings=settings,
            live=live,
            test=test,
            lease=lease,
            our_fault_limit=our_fault_limit,
        )
        sweep = Sweep(database, signals, clock=clock, settings=settings)
        resume = Resume(database, signals, every=settings.sweep_every)
        self._loops: list[Loop] = [deliver, resume, sweep, Survey(database)]

    async def run(self) -> None:
        """Until cancelled. Then nothing more is claimed, what is under way is finished within 20 seconds, and what was
        claimed but not sent is given back."""
        cancelled = asyncio.CancelledError()
        async with asyncio.TaskGroup() as group:
            for loop in self._loops:
                group.create_task(loop.run())
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as stop:
                cancelled = stop
                for loop in self._loops:
                    loop.stop()
        raise cancelled


class Loop:
    """Takes turns until it is stopped. A turn that fails is logged once per outage, and the loop goes on."""

    def __init__(self) -> None:
        self.stopping = False
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()

    async def turn(self) -> None:
        raise NotImplementedError

    async def finish(self) -> None:
        """What is left to do after the last turn."""

    async def run(self) -> None:
        failing = False
        name = type(self).__name__.lower()
        while not self.stopping:
            try:
                await self.turn()
            except Exception as failure:  # noqa: BLE001  # nothing may end the loop but stop()
                if not failing:
                    problem = failure.__cause__ or failure
                    log.error(
                        "worker_failing",
                        extra={"facts": {"loop": name, "problem": type(problem).__name__}},
                        exc_info=None if isinstance(failure, errors.Unavailable) else failure,
                    )
                failing = True
                await _within(_FAILURE_PAUSE_SECONDS, self._stop.wait())
            else:
                if failing:
                    line("worker_recovered", loop=name)
                failing = False
        await self.finish()

    def stop(self) -> None:
        self.stopping = True
        self._stop.set()
        self._wake.set()

    def wake(self) -> None:
        """Ends the rest that is under way, or else the next one."""
        self._wake.set()

    async def rest(self, seconds: float) -> None:
        await _within(seconds, self._wake.wait())
        self._wake.clear()


async def _within(seconds: float, awaited: Awaitable[object]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await awaited


class _Line(Room):
    """An endpoint's deliveries here: some under way, the others waiting for room."""

    __slots__ = ("has_more", "is_new", "queue", "waiting")

    def __init__(self, queue: Queue, most: int, project: Room) -> None:
        super().__init__(most, project, queue.endpoint_id)
        project.inner[queue.endpoint_id] = self
        self.queue = queue
        self.waiting: deque[Claimed] = deque()
        self.work = self.waiting
        self.has_more = False
        """Whether more is due for it than was claimed."""
        self.is_new = False
        """Whether it stands among the lines with nothing under way."""


class Deliver(Loop):
    """Sends due deliveries.

        look: which endpoints have any --> ring --> claim, one after the other --> lines, one each --> attempts

    Endpoints take turns in claiming and in sending. An endpoint that is slow fills its own line; then nothing more is
    claimed for it until the line has room, and no other waits for it. Projects that one customer created, each project
    and each endpoint have a bounded part of the attempts; the last quarter of all goes only to first attempts to
    endpoints with nothing under way. So however many endpoints hang, and however many late retries are due, a new event
    for another endpoint starts at once.
    """

    def __init__(
        self,
        *,
        database: Database,
        signals: Signals,
        clock: Clock,
        keyring: Keyring,
        settings: Settings,
        live: Poster,
        test: Poster,
        lease: timedelta = LEASE,
        our_fault_limit: timedelta = OUR_FAULT_LIMIT,
    ) -> None:
        super().__init__()
        self._our_fault_limit = our_fault_limit
        self._database = database
        self._signals = signals
        self._clock = clock
        self._keyring = keyring
        self._live = live
        self._test = test
        self._lease = lease
        self._most = settings.delivery_concurrency
        self._most_per_endpoint = settings.delivery_per_endpoint
        self._claiming = database.lane()
        self._settling: Batcher[Settled, bool] = Batcher(
            database,
            outbox.settle,
            spare=True,
            name="settle",
            locks=lambda settled: Locks(settled.claimed.queue.project_id, (settled.claimed.id,)),
            group=(lambda settled: settled.claimed.queue.project_id) if settings.batch_per_project else None,
        )
        self._ring: OrderedDict[Queue, None] = OrderedDict()
        self._walk = outbox.Walk()
        self._lines: dict[Queue, _Line] = {}
        self._everything = Room(self._most - self._most // 4)
        self._new: deque[_Line] = deque()
        """Lines with nothing under way, for the reserved quarter; some have started something since."""
        self._waiting = 0
        self._attempts: set[asyncio.Task[None]] = set()
        self._unsealed: dict[str, tuple[bytes, list[str]]] = {}
        self._our_faults: dict[Queue, float] = {}
        """Since when attempts to an endpoint fail by our own fault."""
        self._hinted = False
        self._look_soon = 0.0
        self._look_by = 0.0
        signals.hear("due", self._hint)

    def _hint(self, _key: str) -> None:
        self._hinted = True
        self.wake()

    async def turn(self) -> None:
        """One look, or one claim, or a rest until there is reason for either."""
        now = time.monotonic()
        look_at = self._look_soon if self._hinted or self._walk.under_way else self._look_by
        if now >= look_at:
            await self._look()
        elif self._ring:
            await self._claim()
        else:
            await self.rest(look_at - now)

    async def _look(self) -> None:
        self._hinted = False  # before the query: what is committed during it comes with a hint of its own
        began = time.monotonic()
        found = await self._claiming.run(
            lambda tx: outbox.due_queues(tx, _wall(), QUEUES_AT_ONCE, self._walk)
        )
        ended = time.monotonic()
        pause = max(_LOOK_PAUSE_SECONDS, _LOOK_SHARE * (ended - began))
        self._look_soon = ended + min(pause, POLL_SECONDS)
        self._look_by = ended + POLL_SECONDS
        random.shuffle(found)  # so that several workers begin with different endpoints
        for queue in found:
            self._offer(queue)

    def _offer(self, queue: Queue) -> None:
        """More is due here: it gets its turn, now or when its line has room. Those without a line go first."""
        its = self._lines.get(queue)
        if its is not None and self._full(its):
            its.has_more = True
            return
        self._ring.setdefault(queue)
        if its is None:
            self._ring.move_to_end(queue, last=False)

    async def _claim(self) -> None:
        queue, _ = self._ring.popitem(last=False)
        limit = 1 if self._waiting >= MOST_WAITING else SHARED if self._ring else ALONE
        claimed = await self._claiming.run(lambda tx: outbox.claim(tx, queue, _wall(), self._lease, limit))
        if not claimed:
            return
        its = self._lines.get(queue)
        if its is None:
            its = self._lines[queue] = self._new_line(queue, claimed[0].root_project_id or queue.project_id)
        for delivery in claimed:
            if self._waiting >= MOST_WAITING and self._full(its):
                self._give_back(delivery)
            else:
                its.waiting.append(delivery)
                self._waiting += 1
        if len(claimed) == limit:
            self._offer(queue)
        self._make_ready(its)
        self._start()

    def _new_line(self, queue: Queue, root: str) -> _Line:
        half, quarter = max(self._most // 2, 1), max(self._most // 4, 1)
        project = self._everything.part(root, half).part(queue.project_id, quarter)
        return _Line(queue, self._most_per_endpoint, project)

    def _full(self, its: _Line) -> bool:
        """Enough wait to refill the line once, so that it does not run dry during the next claim; or one waits, and the
        wider rooms have no room."""
        assert its.wider is not None
        return len(its.waiting) >= (self._most_per_endpoint if its.wider.has_room() else 1)

    def _make_ready(self, its: _Line) -> None:
        """Among the lines that may start one; or out of sight, if it is empty."""
        its.stand_in_line()
        if its.waiting:
            if its.under_way == 0 and not its.is_new:
                its.is_new = True
                self._new.append(its)
        elif its.under_way == 0:
            if self._lines.get(its.queue) is its:
                del self._lines[its.queue]
            its.close()

    def _start(self) -> None:
        """Starts what may start: lines take turns, and each has its limit.

        As many as are under way may also be settling: without a database the sending stops.
        """
        now = _wall()
        while len(self._attempts) < 2 * self._most and not self.stopping:
            found = self._next()
            if found is None:
                break
            its, delivery = found
            self._waiting -= 1
            if its.has_more and not self._full(its):
                its.has_more = False
                self._ring.setdefault(its.queue)
            if delivery.lease - now < self._lease / 2:
                self._give_back(delivery)
            else:
                its.enter()
                attempt = asyncio.create_task(self._carry(its, delivery))
                self._attempts.add(attempt)
                attempt.add_done_callback(self._settled)
            self._make_ready(its)
        if self._ring:
            self.wake()

    def _next(self) -> tuple[_Line, Claimed] | None:
        """What is to start now, taken from its line."""
        everything = self._everything
        if everything.under_way < everything.most:
            while everything.line:
                its = everything.take_turn()
                assert isinstance(its, _Line)
                if its.waiting:
                    return its, its.waiting.popleft()
                self._make_ready(its)  # it was emptied meanwhile
            return None
        while self._new and everything.under_way < self._most:
            its = self._new.popleft()
            its.is_new = False
            parts = [room for room in its.all if room is not everything]
            if its.under_way == 0 and all(room.under_way < room.most for room in parts):
                first = next((one for one in its.waiting if one.number == 1), None)
                if first is not None:
                    its.waiting.remove(first)
                    return its, first
        return None

    async def _carry(self, its: _Line, delivery: Claimed) -> None:
        """One attempt, and its settling while the next one is made."""
        try:
            settled = await self._attempt(delivery)
        finally:
            its.leave()
            self._make_ready(its)
            self._start()
        facts = {"project": delivery.queue.project_id, "delivery": delivery.id}
        try:
            if not await self._settling.submit(settled):
                line("lease_lost", **facts)
        except errors.Unavailable:
            line("settling_failed", **facts)  # its lease brings it back
        except Exception:  # noqa: BLE001  # so it does here
            log.exception("settling_failed", extra={"facts": facts})

    def _settled(self, attempt: "asyncio.Task[None]") -> None:
        self._attempts.discard(attempt)
        self._start()

    async def _attempt(self, delivery: Claimed) -> Settled:
        try:
            return await self._send(delivery)
        except Unsealable:  # logged by the keyring, once for each endpoint
            return Settled(claimed=delivery, state=State.PENDING, due_at=_wall() + OUR_FAULT_PAUSE)
        except Exception as failure:  # noqa: BLE001  # a row that breaks us must not come back before its pause
            at = _wall()
            error = f"{type(failure).__name__} in this server"
            result = Result(outcome=Outcome.INTERNAL, elapsed=timedelta(0), error=error)
            counts = self._blamed(delivery, result, failure)
            return judge(delivery, result, at, random.random(), counts=counts)  # noqa: S311  # jitter

    def _blamed(self, delivery: Claimed, result: Result, failure: Exception | None = None) -> bool:
        """Logs the first attempt to an endpoint that fails by our own fault, and the end of that. Returns whether it
        has gone on for so long that the attempt counts."""
        queue = delivery.queue
        internal = result.outcome is Outcome.INTERNAL
        since = self._our_faults.get(queue)
        if not internal and since is None:
            return True
        facts = {"project": queue.project_id, "endpoint": queue.endpoint_id, "delivery": delivery.id}
        if not internal:
            del self._our_faults[queue]
            line("delivery_recovered", **facts)
            return True
        if since is None:
            since = self._our_faults[queue] = time.monotonic()
            log.error(
                "delivery_broken", extra={"facts": {**facts, "problem": result.error}}, exc_info=failure
            )
        return time.monotonic() - since > self._our_fault_limit.total_seconds()

    async def _send(self, delivery: Claimed) -> Settled:
        endpoint, body = delivery.endpoint, delivery.body
        if endpoint is None or endpoint.url is None or endpoint.disabled_at is not None or body is None:
            return Settled(claimed=delivery, state=State.HELD)
        at = _wall()
        headers = webhooks.headers(self._secrets(endpoint), delivery.event_id, body, at)
        poster = self._live if delivery.livemode else self._test
        share = (delivery.root_project_id or delivery.queue.project_id, delivery.queue.project_id)
        result = await poster.post(endpoint.url, body, headers, share=share)
        line(
            "delivery",
            project=delivery.queue.project_id,
            delivery=delivery.id,
            event_id=delivery.event_id,
            type=delivery.event_type,
            endpoint=delivery.queue.endpoint_id,
            attempt=delivery.number,
            outcome=result.outcome,
            status=result.status,
            ms=round(result.elapsed / timedelta(milliseconds=1), 1),
        )
        if result.outcome is Outcome.GONE:
            await self._disable(endpoint)
        counts = self._blamed(delivery, result)
        return judge(delivery, result, at, random.random(), counts=counts)  # noqa: S311  # jitter

    def _secrets(self, endpoint: Endpoint) -> list[str]:
        """Unsealed once for as long as they stay the same."""
        known = self._unsealed.get(endpoint.id)
        if known is None or known[0] != endpoint.secrets:
            if len(self._unsealed) >= 4096:
                self._unsealed.clear()
            known = (endpoint.secrets, accounts.unseal_endpoint_secrets(endpoint, self._keyring))
            self._unsealed[endpoint.id] = known
        return known[1]

    async def _disable(self, endpoint: Endpoint) -> None:
        at = self._clock.now()
        event_id = ids.new("evt", at)
        due = await self._database.run(
            lambda tx: outbox.disable_endpoint(
                tx, endpoint.project_id, endpoint.id, "gone", event_id=event_id, at=at
            ),
            owner=endpoint.project_id,
        )
        if its := self._lines.get(Queue(endpoint.project_id, endpoint.id)):
            self._empty(its)  # what is claimed anew is seen to be for a disabled endpoint
        if due:
            self._signals.tell("due")

    def _empty(self, its: _Line) -> None:
        while its.waiting:
            self._give_back(its.waiting.popleft())
            self._waiting -= 1

    def _give_back(self, delivery: Claimed) -> None:
        """Due again as it was, for whoever has room first."""
        with contextlib.suppress(errors.Unavailable):  # then its lease brings it back
            settled = Settled(claimed=delivery, state=State.PENDING, due_at=delivery.due_at)
            self._settling.enqueue(settled).add_done_callback(lambda done: done.exception())

    async def finish(self) -> None:
        for its in self._lines.values():
            self._empty(its)
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=FINISH_SECONDS)
        for attempt in self._attempts:
            attempt.cancel()
        await _within(FINISH_SECONDS, self._settling.drain())


def judge(delivery: Claimed, result: Result, at: datetime, chance: float, *, counts: bool = False) -> Settled:
    """What an attempt made `at` does to its delivery; `chance`, uniform in [0, 1), picks the jitter of the next one.

    `counts` says whether an attempt counts that failed by our own fault.
    """
    attempt = Attempt(
        outcome=result.outcome,
        status=result.status,
        error=result.error,
        response_body=result.response_body,
        address=result.address,
        elapsed=result.elapsed,
        at=at,
    )
    match result.outcome:
        case Outcome.DELIVERED:
            return Settled(claimed=delivery, state=State.DELIVERED, attempt=attempt)
        case Outcome.INTERNAL if not counts:
            return Settled(claimed=delivery, state=State.PENDING, due_at=at + OUR_FAULT_PAUSE)
        case Outcome.GONE:
            return Settled(claimed=delivery, state=State.HELD, attempt=attempt)
        case Outcome.ABORTED:
            return Settled(claimed=delivery, state=State.FAILED, attempt=attempt)
    due_at = webhooks.next_due(delivery.number, at + result.elapsed, chance, result.retry_after)
    state = State.FAILED if due_at is None else State.PENDING
    return Settled(claimed=delivery, state=state, due_at=due_at, attempt=attempt)


class Resume(Loop):
    """Makes due what was held for an endpoint that has come back: the URL was set again."""

    def __init__(self, database: Database, signals: Signals, *, every: timedelta) -> None:
        super().__init__()
        self._database = database
        self._signals = signals
        self._every = every
        self._pages: dict[Queue, outbox.Page] = {}

    async def turn(self) -> None:
        walk = outbox.Walk()
        while True:
            for queue in await self._database.run(
                lambda tx: outbox.queues_to_resume(tx, QUEUES_AT_ONCE, walk)
            ):
                page = self._pages.pop(queue, None) or outbox.Page()
                while not self.stopping and await self._resume(queue, page) and page.after:
                    pass
                if page.after:
                    self._pages[queue] = (
                        page  # nothing here could be resumed: the next turn goes on behind it
                    )
            if self.stopping or not walk.under_way:
                break
        await self.rest(self._every.total_seconds())

    async def _resume(self, queue: Queue, page: outbox.Page) -> int:
        resumed = await self._database.run(
            lambda tx: outbox.resume(tx, queue, _wall(), RESUMED_AT_ONCE, page), owner=queue.project_id
        )
        if resumed:
            line("deliveries_resumed", project=queue.project_id, endpoint=queue.endpoint_id, count=resumed)
            self._signals.tell("due")
        return resumed


class Sweep(Loop):
    """Ends intents whose time is over or whose key or channel is gone, and forgets old idempotency answers.

    By the business clock. One project's failure leaves the others swept.
    """

    def __init__(self, database: Database, signals: Signals, *, clock: Clock, settings: Settings) -> None:
        super().__init__()
        self._database = database
        self._signals = signals
        self._clock = clock
        self._grace = settings.expiry_grace
        self._every = settings.sweep_every

    async def turn(self) -> None:
        await self.turn_once()
        await self.rest(self._every.total_seconds())

    async def turn_once(self) -> None:
        """Everything that is due now, without the rest after it."""
        failures: list[Exception] = []
        for sweep in (self._expire, self._end_orphans, self._prune):
            try:
                await sweep(self._clock.now())
            except errors.Unavailable:
                raise
            except Exception as failure:  # noqa: BLE001  # raised below
                failures.append(failure)
        if failures:
            raise ExceptionGroup("sweeping", failures)

    async def _expire(self, now: datetime) -> None:
        async def expire(project_id: str) -> int:
            ended = await self._database.run(
                lambda tx: intents.expire_due(tx, project_id, now, self._grace, SWEPT_AT_ONCE),
                owner=project_id,
            )
            self._announce(ended)
            return len(ended)

        await self._each(
            lambda tx: intents.projects_with_due(tx, now - self._grace, PROJECTS_AT_ONCE), expire
        )

    async def _end_orphans(self, now: datetime) -> None:
        minters = await self._database.run(lambda tx: intents.ended_minters(tx, PROJECTS_AT_ONCE))
        for project_id, some in minters.items():
            await self._end_orphans_of(project_id, some, now)

    async def _end_orphans_of(self, project_id: str, some: list[intents.Minter], now: datetime) -> None:
        after: datetime | None = None
        whole = True
        while not self.stopping:
            ended = await self._database.run(
                lambda tx: intents.end_orphans(tx, project_id, some, now, after=after, whole=whole)  # noqa: B023  # awaited here
            )
            self._announce(ended.intent_ids)
            after, whole = ended.after, whole and ended.whole
            if after is None:
                break

    async def _prune(self, now: datetime) -> None:
        async def prune(project_id: str) -> int:
            return await self._database.run(
                lambda tx: idempotency.prune(tx, project_id, now, SWEPT_AT_ONCE), owner=project_id
            )

        await self._each(lambda tx: idempotency.projects_with_expired(tx, now, PROJECTS_AT_ONCE), prune)

    async def _each(
        self, find: Callable[[Tx], Awaitable[list[str]]], sweep: Callable[[str], Awaitable[int]]
    ) -> None:
        """Sweeps each project found, in transactions of bounded size, until there is nothing left."""
        failures: list[Exception] = []
        for project_id in await self._database.run(find):
            try:
                while not self.stopping and await sweep(project_id) == SWEPT_AT_ONCE:
                    pass
            except Exception as failure:  # raised below
                if isinstance(failure, errors.Unavailable) and not contended(failure):
                    raise
                failures.append(failure)  # also one whose rows are locked
        if failures:
            raise ExceptionGroup("projects", failures)

    def _announce(self, intent_ids: list[str]) -> None:
        if intent_ids:
            self._signals.tell("intent", intent_ids)
            self._signals.tell("due")


class Survey(Loop):
    """Gives PostgreSQL its first statistics of a table as soon as there is something to be said about it."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database
        self._lately: dict[str, float] = {}
        """When each table was analysed last. One whose rows come and go has none each time, and is left alone for a while."""

    async def turn(self) -> None:
        now = time.monotonic()
        self._lately = {name: at for name, at in self._lately.items() if now - at < _SURVEY_AGAIN_SECONDS}
        except_for = list(self._lately)
        for name in await self._database.run(lambda tx: statistics.gather(tx, except_for)):
            line("table_analysed", table=name)
            self._lately[name] = now
        await self.rest(_SURVEY_SECONDS)


def _wall() -> datetime:
    return datetime.now(UTC)
