"""Hints between processes: "something is due", "these intents changed", "an account changed".

LISTEN/NOTIFY on one connection. A hint may be lost (a connection breaks, a pooler is in between): whoever waits for one
also looks by itself now and then. Hints are sent after the commit, gathered, so that they cost the hot path nothing.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

import asyncpg

from wabery_server.db import Row, Source

_CHANNEL = "wabery"
_PAYLOAD_BYTES = 7_900
_GATHER_SECONDS = 0.005
_RECONNECT_SECONDS = 1.0

Hear = Callable[[str], None]


class Signals:
    """`tell(topic, key)` reaches every `hear(topic, …)` callback of this process at once, and other processes soon."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._ears: dict[str, list[Hear]] = {}
        self._pending: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep_connected())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def hear(self, topic: str, callback: Hear) -> None:
        """`callback(key)` runs in the event loop and must be quick."""
        self._ears.setdefault(topic, []).append(callback)

    def tell(self, topic: str, keys: Iterable[str] = ("",)) -> None:
        for key in keys:
            self._spread(topic, key)
            self._pending[f"{topic}:{key}"] = None
        self._wake.set()

    def _spread(self, topic: str, key: str) -> None:
        for callback in self._ears.get(topic, ()):
            callback(key)

    async def _keep_connected(self) -> None:
        while True:
            try:
                connection = await self._source.connect()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(_RECONNECT_SECONDS)
                continue
            try:
                await self._serve(connection)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(_RECONNECT_SECONDS)
            finally:
                connection.terminate()

    async def _serve(self, connection: "asyncpg.Connection[Row]") -> None:
        own = connection.get_server_pid()

        def heard(_connection: object, pid: int, _channel: str, payload: object) -> None:
            if pid != own:
                for line in str(payload).split("\n"):
                    topic, _, key = line.partition(":")
                    self._spread(topic, key)

        connection.add_termination_listener(lambda _connection: self._wake.set())
        await connection.add_listener(_CHANNEL, heard)
        while not connection.is_closed():
            await self._wake.wait()
            await asyncio.sleep(_GATHER_SECONDS)
            self._wake.clear()
            for payload in self._payloads():
                await connection.execute("select pg_notify($1, $2)", _CHANNEL, payload)

    def _payloads(self) -> list[str]:
        payloads: list[str] = []
        lines: list[str] = []
        size = 0
        for line in self._pending:
            if size + len(line) + 1 > _PAYLOAD_BYTES:
                payloads.append("\n".join(lines))
                lines, size = [], 0
            lines.append(line)
            size += len(line) + 1
        if lines:
            payloads.append("\n".join(lines))
        self._pending.clear()
        return payloads
