"""This process's copy of the small tables, for the hot path: who calls, and which channel is meant.

What was read is believed for two seconds at most, and dropped at once on the signal "accounts". What is asked for towards
the end of that time is read anew meanwhile, each at a moment of its own, so that nobody waits for it and what was read
together is not read again together. Unknown keys and numbers are remembered too, apart from the known ones, so that a
flood of made-up keys can neither reach the database twice nor push the real ones out.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from datetime import datetime, timedelta
from types import TracebackType
from typing import Generic, NamedTuple, Self, TypeVar

import asyncpg
from msgspec import Struct

from wabery_server import errors
from wabery_server.accounts.channel import Channel, Credentials, open_credentials
from wabery_server.accounts.endpoint import endpoints
from wabery_server.accounts.key import ApiKey, Scope, any_live_key, is_well_formed
from wabery_server.accounts.project import Project, projects
from wabery_server.clock import Clock
from wabery_server.db import Database, Tx, queries
from wabery_server.db.signals import Signals
from wabery_server.logs import log
from wabery_server.secrets import Keyring

sql = queries.beside(__file__)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

TOPIC = "accounts"
"""The signal after every change of what is remembered here."""
BELIEVED_SECONDS = 2.0
_READ_AHEAD_SECONDS = (0.25, 1.25)
"""How long before its end something is read anew: at least, at most."""
REMEMBERED = 10_000
"""Answers of each sort; the oldest leave first."""
WRITE_USES_EVERY = timedelta(seconds=10)


class Caller(Struct, frozen=True):
    """Whoever presented a key, and the one project it opens."""

    project: Project
    key: ApiKey
    until: datetime | None = None
    """When the presented value of the key ends, because a rotation has replaced it."""

    @property
    def trusted(self) -> bool:
        """A secret key: the app's own server."""
        return self.key.kind == "secret"

    def has(self, scope: Scope) -> bool:
        return scope in self.key.scopes

    def require(self, scope: Scope) -> None:
        """Raises errors.InsufficientScope."""
        if self.has(scope):
            return
        if self.trusted:
            raise errors.InsufficientScope(
                f"This API key lacks the scope {scope}.", hint="Use a key that has it, or make one."
            )
        raise errors.InsufficientScope(
            f"This call needs a secret key with the scope {scope}; a publishable key only mints and reads intents."
        )


class _Number(NamedTuple):
    channel: Channel
    app_secrets: list[bytes]


class Directory:
    """Opened with `async with`. `now` is the wall clock that ages what is remembered, in seconds."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        signals: Signals,
        clock: Clock,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._clock = clock
        self._callers = _Remembered(self._read_caller, now)
        self._channels = _Remembered(self._read_channels, now)
        self._numbers = _Remembered(self._read_number, now)
        self._named = _Remembered(self._read_named, now)
        self._credentials = _Remembered(self._read_credentials, now)
        signals.hear(TOPIC, lambda _key: self.forget())
        self._uses: dict[tuple[str, str], datetime] = {}
        self._closing = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._writer = asyncio.create_task(self._write_uses_now_and_then())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        if self._writer is not None:
            await self._writer

    def forget(self) -> None:
        """Whoever asks from now on gets what the database holds now."""
        self._callers.forget()
        self._channels.forget()
        self._numbers.forget()
        self._named.forget()
        self._credentials.forget()

    async def caller(self, presented_key: str) -> Caller:
        """Raises errors.InvalidApiKey for a mistyped, unknown or revoked key, KeyExpired also for a replaced value."""
        caller = self._callers.known(presented_key)
        if caller is None:
            if not is_well_formed(presented_key):
                raise errors.InvalidApiKey
            caller = await self._callers.ask(presented_key)
            if caller is None:
                raise errors.InvalidApiKey
        expires_at = caller.key.expires_at
        if expires_at is not None and expires_at <= self._clock.now():
            raise errors.KeyExpired
        if caller.until is not None and caller.until <= self._clock.now():
            raise errors.KeyExpired(
                "This API key has been rotated, and this value of it has ended.",
                hint="Use the value that the rotation showed.",
            )
        return caller

    async def channel(self, project: Project, channel_id: str | None) -> Channel:
        """The channel to mint for: the one that is named, else the project's oldest.

        Raises errors.ChannelNotReady, InvalidRequest for a channel that is not the project's.
        """
        channels = await self._channels.ask(project.id) or {}
        if channel_id is not None:
            if channel_id not in channels:
                raise errors.InvalidRequest("This project has no such channel.", param="channel_id")
            return channels[channel_id]
        for oldest in channels.values():
            return oldest
        raise errors.ChannelNotReady

    async def channel_by_number(
        self, provider: str, phone_number_id: str
    ) -> tuple[Channel, list[bytes]] | None:
        """The channel that a webhook names, with the app secrets that may have signed it; None for an unknown number."""
        return await self._numbers.ask((provider, phone_number_id))

    async def named_events(self, project_id: str) -> frozenset[str]:
        """The event types that some enabled endpoint of the project asks for by name: what is not sent otherwise."""
        return await self._named.ask(project_id) or frozenset()

    async def app_secrets(self) -> list[bytes]:
        """Every app secret of a Meta channel, once, for bodies that name no number of ours."""
        everyone = await self._credentials.ask("meta") or []
        return [secret.encode() for secret in dict.fromkeys(s for one in everyone for s in one.app_secrets)]

    async def verify_tokens(self) -> list[str]:
        """Every verify token of a Meta channel: one webhook URL serves all channels."""
        return [one.verify_token for one in await self._credentials.ask("meta") or []]

    def used(self, key: ApiKey) -> None:
        """Notes that a key is in use; written some seconds later, or when the directory closes."""
        self._uses[key.project_id, key.id] = self._clock.now()

    async def _read_caller(self, presented_key: str) -> Caller | None:
        async def read(tx: Tx) -> Caller | None:
            presented = await any_live_key(tx, presented_key)
            if presented is None:
                return None
            project_id = presented.key.project_id
            return Caller((await projects(tx, [project_id]))[project_id], presented.key, presented.until)

        return await self._database.run(read)

    async def _read_channels(self, project_id: str) -> dict[str, Channel]:
        rows = await self._database.run(lambda tx: tx.rows(sql.channels, project_id))
        return {row["id"]: Channel(**row) for row in rows}

    async def _read_number(self, number: tuple[str, str]) -> _Number | None:
        row = await self._database.run(lambda tx: tx.row(sql.any_channel_by_number, *number))
        if row is None:
            return None
        values = dict(row)
        sealed, version = values.pop("credentials"), values.pop("secret_version")
        credentials = open_credentials(values["id"], sealed, version, self._keyring)
        return _Number(Channel(**values), [secret.encode() for secret in credentials.app_secrets])

    async def _read_named(self, project_id: str) -> frozenset[str]:
        found = await self._database.run(lambda tx: endpoints(tx, [project_id]))
        return frozenset(name for one in found if one.disabled_at is None for name in one.events or ())

    async def _read_credentials(self, provider: str) -> list[Credentials]:
        rows = await self._database.run(lambda tx: tx.rows(sql.any_credentials, provider))
        return [
            open_credentials(row["id"], row["credentials"], row["secret_version"], self._keyring)
            for row in rows
        ]

    async def _write_uses_now_and_then(self) -> None:
        closing = False
        while not closing:
            with contextlib.suppress(TimeoutError):
                closing = await asyncio.wait_for(self._closing.wait(), WRITE_USES_EVERY.total_seconds())
            await self._write_uses()

    async def _write_uses(self) -> None:
        uses, self._uses = self._uses, {}
        # In one order, so that two processes that write the same keys cannot wait for each other.
        rows = [(*key, at) for key, at in sorted(uses.items())]
        try:
            if rows:
                await self._database.run(
                    lambda tx: tx.rows_each(sql.record_use, rows), deadline=WRITE_USES_EVERY / 4
                )
        except (errors.Unavailable, asyncpg.PostgresError) as failure:
            self._uses = uses | self._uses
            log.warning("key uses were not written: %s", failure)


class _Entry(NamedTuple, Generic[V]):
    value: V
    until: float
    """From then on it is not believed."""
    again_at: float
    """Whoever asks from then on has it read anew."""


class _Remembered(Generic[K, V]):
    """Answers to a look-up, believed for a while. Whoever asks while the same is being looked up waits for that."""

    def __init__(self, look_up: Callable[[K], Awaitable[V | None]], now: Callable[[], float]) -> None:
        self._look_up = look_up
        self._now = now
        self._found: dict[K, _Entry[V]] = {}
        self._absent: dict[K, _Entry[None]] = {}
        self._under_way: dict[K, asyncio.Task[V | None]] = {}

    def known(self, key: K) -> V | None:
        """What is known without a look-up; None is no answer."""
        entry = self._found.get(key)
        if entry is None:
            return None
        now = self._now()
        if now >= entry.again_at and key not in self._under_way:
            self._begin(key)
        return entry.value if now < entry.until else None

    async def ask(self, key: K) -> V | None:
        """None: there is no such thing."""
        value = self.known(key)
        if value is not None:
            return value
        absent = self._absent.get(key)
        if absent is not None and self._now() < absent.until:
            return None
        task = self._under_way.get(key) or self._begin(key)
        return await asyncio.shield(task)  # one caller's hanging up must not fail the others

    def forget(self) -> None:
        """Also what is being looked up right now, for it may have been read before the change."""
        self._found, self._absent, self._under_way = {}, {}, {}

    def _begin(self, key: K) -> "asyncio.Task[V | None]":
        task = self._under_way[key] = asyncio.create_task(self._find(key))
        task.add_done_callback(_looked_at)
        return task

    async def _find(self, key: K) -> V | None:
        until = self._now() + BELIEVED_SECONDS
        mine = asyncio.current_task()
        value = None
        current = False
        try:
            value = await self._look_up(key)
        finally:
            current = self._under_way.get(key) is mine
            if current:
                del self._under_way[key]
        if current:
            self._keep(key, value, until)
        return value

    def _keep(self, key: K, value: V | None, until: float) -> None:
        self._found.pop(key, None)
        self._absent.pop(key, None)
        if value is None:
            self._absent[key] = _Entry(None, until, until)
            _trim(self._absent, self._now())
        else:
            ahead = random.uniform(*_READ_AHEAD_SECONDS)  # noqa: S311  # jitter
            self._found[key] = _Entry(value, until, until - ahead)
            _trim(self._found, self._now())


def _looked_at(task: "asyncio.Task[object]") -> None:
    """Where nobody waited for it, a failure tells nobody anything: whoever asks next looks again, and waits."""
    if not task.cancelled():
        task.exception()


def _trim(entries: dict[K, _Entry[V]], now: float) -> None:
    """Entries are in the order of their age: what is too old, or one too many, is in front."""
    while entries:
        oldest = next(iter(entries))
        if len(entries) <= REMEMBERED and entries[oldest].until > now:
            return
        del entries[oldest]
