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
from collections.abc import Awaitable, Callable, Hashable, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Generic, NamedTuple, Self, TypeVar

import asyncpg
from msgspec import Struct

from wabery_server import errors
from wabery_server.accounts.channel import Channel, Credentials, open_credentials
from wabery_server.accounts.endpoint import listeners
from wabery_server.accounts.key import ApiKey, Scope, any_live_keys, is_well_formed
from wabery_server.accounts.project import Project, projects
from wabery_server.clock import Clock
from wabery_server.db import Database, Lane, Tx, queries
from wabery_server.db.batcher import Batcher
from wabery_server.db.signals import Signals
from wabery_server.logs import log
from wabery_server.secrets import Keyring, Unsealable

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
    def ends_at(self) -> datetime | None:
        """When what was presented stops working: the key expires, or its replaced value ends. None: not by itself."""
        return min((end for end in (self.key.expires_at, self.until) if end is not None), default=None)

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


class Number(NamedTuple):
    """What a WhatsApp number stands for."""

    channel: Channel
    project: Project
    app_secrets: list[bytes]
    """Any of these may have signed a webhook about it. Empty when the channel's credentials cannot be opened."""


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
        lane = database.lane()
        self._callers = _Remembered(_together(database, lane, self._read_callers), now)
        self._channels = _Remembered(_together(database, lane, self._read_channels), now)
        self._numbers = _Remembered(_together(database, lane, self._read_numbers), now)
        self._named = _Remembered(_together(database, lane, self._read_named), now)
        self._credentials = _Remembered(_together(database, lane, self._read_credentials), now)
        signals.hear(TOPIC, lambda _key: self.forget())
        self._opened: dict[str, tuple[tuple[bytes, int], Credentials]] = {}
        """Unsealed credentials by channel, with what was sealed: unsealed again only after a change."""
        self._turn = 0
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

    async def number(self, provider: str, phone_number_id: str) -> Number | None:
        """The channel that a webhook names; None for an unknown number."""
        return await self._numbers.ask((provider, phone_number_id))

    async def named_events(self, project_id: str) -> frozenset[str]:
        """The event types that some enabled endpoint of the project asks for by name: what is not sent otherwise."""
        return await self._named.ask(project_id) or frozenset()

    async def app_secrets(self, most: int) -> list[bytes]:
        """App secrets of Meta channels, each once, for bodies that name no number of ours: all, or at most `most`, and
        then the next ones at each call, so that a repeated request reaches all of them."""
        everyone = await self._credentials.ask("meta") or []
        secrets = list(dict.fromkeys(secret for one in everyone for secret in one.app_secrets))
        if len(secrets) > most:
            start, self._turn = self._turn % len(secrets), self._turn + most
            secrets = [*secrets[start:], *secrets[:start]][:most]
        return [secret.encode() for secret in secrets]

    async def verify_tokens(self) -> list[str]:
        """Every verify token of a Meta channel: one webhook URL serves all channels."""
        return [one.verify_token for one in await self._credentials.ask("meta") or []]

    def used(self, key: ApiKey) -> None:
        """Notes that a key is in use; written some seconds later, or when the directory closes."""
        self._uses[key.project_id, key.id] = self._clock.now()

    async def _read_callers(self, tx: Tx, presented_keys: list[str]) -> dict[str, Caller]:
        found = await any_live_keys(tx, presented_keys)
        owners = await projects(tx, sorted({one.key.project_id for one in found.values()})) if found else {}
        return {value: Caller(owners[one.key.project_id], one.key, one.until) for value, one in found.items()}

    async def _read_channels(self, tx: Tx, project_ids: list[str]) -> dict[str, dict[str, Channel]]:
        found: dict[str, dict[str, Channel]] = {project_id: {} for project_id in project_ids}
        for row in await tx.rows(sql.channels, project_ids):
            found[row["project_id"]][row["id"]] = Channel(**row)
        return found

    async def _read_numbers(self, tx: Tx, numbers: list[tuple[str, str]]) -> dict[tuple[str, str], Number]:
        rows = await tx.rows_each(sql.any_channels_by_number, numbers)
        owners = await projects(tx, sorted({row["project_id"] for row in rows})) if rows else {}
        found = {}
        for row in rows:
            values = dict(row)
            sealed, version = values.pop("credentials"), values.pop("secret_version")
            channel = Channel(**values)
            app_secrets: list[bytes] = []
            with contextlib.suppress(Unsealable):
                opened = self._open(channel.id, sealed, version)
                app_secrets = [secret.encode() for secret in opened.app_secrets]
            number = Number(channel, owners[channel.project_id], app_secrets)
            found[channel.provider, channel.phone_number_id] = number
        return found

    async def _read_named(self, tx: Tx, project_ids: list[str]) -> dict[str, frozenset[str]]:
        found: dict[str, frozenset[str]] = dict.fromkeys(project_ids, frozenset())
        for one in await listeners(tx, project_ids):
            if not one.disabled:
                found[one.project_id] = found[one.project_id].union(one.events or ())
        return found

    async def _read_credentials(self, tx: Tx, providers: list[str]) -> dict[str, list[Credentials]]:
        found: dict[str, list[Credentials]] = {provider: [] for provider in providers}
        for row in await tx.rows(sql.any_credentials, providers):
            with contextlib.suppress(Unsealable):
                opened = self._open(row["id"], row["credentials"], row["secret_version"])
                found[row["provider"]].append(opened)
        return found

    def _open(self, channel_id: str, sealed: bytes, version: int) -> Credentials:
        before = self._opened.get(channel_id)
        if before is not None and before[0] == (sealed, version):
            return before[1]
        credentials = open_credentials(channel_id, sealed, version, self._keyring)
        if len(self._opened) >= REMEMBERED:
            self._opened.clear()
        self._opened[channel_id] = ((sealed, version), credentials)
        return credentials

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


def _together(
    database: Database, lane: Lane, read: Callable[[Tx, list[K]], Awaitable[Mapping[K, V]]]
) -> Callable[[K], Awaitable[V | None]]:
    """A look-up of one thing that shares its statements with those that are asked for at the same time."""

    async def flush(tx: Tx, keys: list[K]) -> list[V | None]:
        found = await read(tx, keys)
        return [found.get(key) for key in keys]

    return Batcher(database, flush, lanes=[lane], bare=lambda _keys: True, name="look up").submit


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
