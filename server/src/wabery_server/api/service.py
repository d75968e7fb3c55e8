"""What a request can reach: made once by `main`, handed to every handler."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Hashable, Iterable
from datetime import timedelta
from types import TracebackType
from typing import NamedTuple, Self

from wabery_server import errors, inbox, intents, metrics
from wabery_server.accounts import Directory, UnroutableChanges
from wabery_server.api.drawing import Drawer
from wabery_server.api.readiness import Readiness
from wabery_server.clock import Clock
from wabery_server.db import DEADLINE, Database, Tx
from wabery_server.db.batcher import Batcher, Locks
from wabery_server.db.signals import Signals
from wabery_server.inbox import Faults, Inbound, Outcome, Received
from wabery_server.intents import Intent, Mint, Minted
from wabery_server.limits import Limit
from wabery_server.secrets import Keyring
from wabery_server.settings import Settings
from wabery_server.web import connection_limit, network_of

_LOOK_AGAIN_SECONDS = 2.0
ADDRESSES_OF_SITE = 4
"""One IPv6 /48 has 65,536 networks of its own. It mints as much as so many addresses, or it could use up a key's quota."""
MAX_WAITERS_PER_INTENT = 10
MAX_WAITERS = 20_000

_TOO_MANY_WAIT = {
    name: metrics.bound(f"waits_per_{name}", f"Streams and waiting reads refused: too many at once {where}.")
    for name, where in (
        ("intent", "for one registration intent"),
        ("address", "from one address"),
        ("key", "with one key"),
        ("process", "in this process"),
    )
}


LANES = 7
"""Connections for hot statements: one for mints, two for messages, one for the directory, and three that are spare;
`read_lanes` come on top."""
INBOUND_DEADLINE = timedelta(seconds=5)
"""How long a provider's request waits for the database; then it is 503, and the provider sends it again."""


def _locks_of_mint(mint: Mint) -> Locks:
    """Its reference may be full of intents to be superseded, and its Idempotency-Key in use."""
    intent = mint.intent
    rows: tuple[Hashable, ...] = ((intent.customer_reference, intent.reference_trust),)
    return Locks(intent.project_id, (*rows, mint.key.identity) if mint.key else rows)


class Service:
    """The database, its batchers, the caches, the limits."""

    def __init__(
        self,
        settings: Settings,
        *,
        database: Database,
        keyring: Keyring,
        clock: Clock,
        signals: Signals,
        directory: Directory,
    ) -> None:
        self.settings = settings
        self.database = database
        self.keyring = keyring
        self.clock = clock
        self.signals = signals
        self.directory = directory
        self.watch = Watch(signals, per_address=settings.waits_per_address, per_key=settings.waits_per_key)
        self.same_key = Turns()
        """Requests with one Idempotency-Key, one after the other."""
        self.drawer = Drawer()
        self.draining = False
        self.faults = Faults()
        self.unroutable = UnroutableChanges(database)
        self.readiness = Readiness(database.source, clock)
        grouped = settings.batch_per_project
        self.minting: Batcher[Mint, Minted] = Batcher(
            database,
            self._mint,
            name="mint",
            spare=True,
            bare=intents.plain,
            locks=_locks_of_mint,
            group=(lambda mint: mint.intent.project_id) if grouped else None,
        )
        self.reading: Batcher[tuple[str, str], Intent | None] = Batcher(
            database,
            intents.find,
            name="read",
            lanes=settings.read_lanes,
            spare=True,
            bare=lambda _wanted: True,
            group=(lambda wanted: wanted[0]) if grouped else None,
        )
        self.receiving: Batcher[Inbound, Received] = Batcher(
            database,
            self._receive,
            name="receive",
            locks=lambda item: Locks(item.channel.project_id, tuple(item.keys())),
            keys=Inbound.keys,
            deadline=INBOUND_DEADLINE,
            lanes=2,
            spare=True,
            group=(lambda item: item.channel.project_id) if grouped else None,
        )
        self.per_secret_key = Limit("secret_key", settings.secret_key_per_second, 1)
        self.per_publishable_key = Limit("publishable_key", settings.publishable_key_per_minute, 60)
        self.per_ip = Limit("ip", settings.publishable_ip_per_minute, 60)
        self.per_site = Limit("ip_site", ADDRESSES_OF_SITE * settings.publishable_ip_per_minute, 60)
        self.per_reference = Limit("customer_reference", settings.reference_per_hour, 3600)
        self.per_visitor_reference = Limit(
            "customer_reference", settings.reference_per_hour, 3600, silent=True
        )
        self.polls = Limit("polls", settings.polls_per_minute, 60)
        self.secret_polls = Limit("polls", settings.secret_polls_per_minute, 60)
        self.public_reads = Limit("public_reads", settings.public_reads_per_minute, 60)
        self.channel_checks = Limit("channel_check", settings.channel_checks_per_minute, 60)
        self.bad_tokens = Limit("bad_tokens", settings.bad_tokens_per_sender, 600)

    def stop_waiting(self) -> None:
        """The process is about to stop: those who wait for a change are answered now, and readiness fails."""
        self.draining = True
        self.watch.wake_all()

    async def drain(self) -> None:
        """Answers what has been accepted; for the end of the process."""
        self.stop_waiting()
        await asyncio.gather(self.minting.drain(), self.reading.drain(), self.receiving.drain())

    async def find(self, project_id: str, intent_id: str) -> Intent | None:
        """Reads an intent with the reads of other requests."""
        return await self.reading.submit((project_id, intent_id))

    async def receive_one(self, item: Inbound) -> Received:
        """Stores a message with those of other requests; it is committed when this returns."""
        while True:
            received = await self.receiving.submit(item)
            if received.outcome != Outcome.POSTPONED:
                return received

    def changed(self, intent_ids: Iterable[str]) -> None:
        """After a commit: whoever waits for these intents looks again."""
        self.signals.tell("intent", intent_ids)

    async def _mint(self, tx: Tx, mints: list[Mint]) -> "list[Minted | Exception]":
        return [*await intents.mint(tx, mints, keyring=self.keyring, keep=self.settings.idempotency_keep)]

    async def _receive(self, tx: Tx, items: list[Inbound]) -> list[Received]:
        return await inbox.receive(tx, items, grace=self.settings.expiry_grace)


class Turns:
    """Lets those who name the same key in, one after the other; others do not wait for them."""

    def __init__(self, *, most: timedelta = DEADLINE) -> None:
        self._most = most
        self._locks: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, key: Hashable) -> AsyncIterator[None]:
        """Raises errors.IdempotencyInProgress when its turn does not come for as long as a transaction may take."""
        lock, users = self._locks.get(key) or (asyncio.Lock(), 0)
        self._locks[key] = (lock, users + 1)
        try:
            try:
                await asyncio.wait_for(lock.acquire(), self._most.total_seconds())
            except TimeoutError:
                raise errors.IdempotencyInProgress(retry_after=1) from None
            try:
                yield
            finally:
                lock.release()
        finally:
            _, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, users - 1)


class Place(NamedTuple):
    """What a waiting request counts for."""

    intent_id: str
    address: str
    """One IPv4 address or IPv6 /64."""
    key_id: str
    proven: bool
    """Whether it shows the client secret or a secret key. Who only knows the id takes no place from those who do."""

    @classmethod
    def of(cls, intent_id: str, ip: str, key_id: str, *, proven: bool) -> Self:
        return cls(intent_id, network_of(ip), key_id, proven)

    @property
    def counted(self) -> tuple[tuple[str, str], ...]:
        """What this place is counted under."""
        kind = "proven" if self.proven else "unproven"
        return (kind, self.intent_id), ("address", self.address), ("key", self.key_id)


class Watch:
    """Who waits for which intent to change, and how many may.

    A waiting request holds a connection. So that others always find one, the limits shrink with this process's connections:
    an address has at most an eighth of them, a key half, all together three quarters.
    """

    def __init__(
        self, signals: Signals, *, per_address: int, per_key: int, connections: int | None = None
    ) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._count = 0
        self._from: Counter[tuple[str, str]] = Counter()
        most = connections or connection_limit()
        self.per_address = min(per_address, max(1, most // 8))
        self.per_key = min(per_key, max(1, most // 2))
        self.total = min(MAX_WAITERS, max(1, most * 3 // 4))
        signals.hear("intent", self._wake)

    def on(self, place: Place) -> "Waiter":
        """To be entered before the read whose answer it watches, so that no change slips in between."""
        return Waiter(self, place)

    def room(self, place: Place) -> bool:
        """Whether one more may wait here. A refusal is counted, and logged once per outage."""
        intent, address, key = place.counted
        if self._from[intent] >= MAX_WAITERS_PER_INTENT:
            full, limit = "intent", MAX_WAITERS_PER_INTENT
        elif self._from[address] >= self.per_address:
            full, limit = "address", self.per_address
        elif self._from[key] >= self.per_key:
            full, limit = "key", self.per_key
        elif self._count >= self.total:
            full, limit = "process", self.total
        else:
            return True
        _TOO_MANY_WAIT[full].hit(peer=place.address, key_id=place.key_id, limit=limit)
        return False

    def wake_all(self) -> None:
        for intent_id in list(self._waiting):
            self._wake(intent_id)

    def _wake(self, intent_id: str) -> None:
        for event in self._waiting.get(intent_id, ()):
            event.set()

    def enter(self, place: Place, event: asyncio.Event) -> None:
        self._waiting.setdefault(place.intent_id, set()).add(event)
        self._count += 1
        self._from.update(place.counted)

    def leave(self, place: Place, event: asyncio.Event) -> None:
        waiting = self._waiting[place.intent_id]
        waiting.remove(event)
        if not waiting:
            del self._waiting[place.intent_id]
        self._count -= 1
        for counted in place.counted:
            self._from[counted] -= 1
            if not self._from[counted]:
                del self._from[counted]


class Waiter:
    """One waiting request."""

    def __init__(self, watch: Watch, place: Place) -> None:
        self._watch = watch
        self._place = place
        self._event = asyncio.Event()

    def __enter__(self) -> Self:
        self._watch.enter(self._place, self._event)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.leave(self._place, self._event)

    def wake(self) -> None:
        """As a hint does."""
        self._event.set()

    async def changed(self, within: timedelta) -> None:
        """Returns after a hint, after `within`, or after two seconds, since a hint can be lost."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), min(within.total_seconds(), _LOOK_AGAIN_SECONDS))
        self._event.clear()
