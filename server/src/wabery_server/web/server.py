"""Accepting, counting, closing and draining connections."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final

from starlette.types import ASGIApp

from wabery_server import errors
from wabery_server.web.address import Network
from wabery_server.web.body import Memory
from wabery_server.web.bounds import (
    NO_FIRST_BYTE,
    SLOW_BODY,
    SLOW_HEAD,
    SLOW_READER,
    TOO_MANY_CONNECTIONS,
    Bounds,
)
from wabery_server.web.connection import Connection
from wabery_server.web.exchange import Exchange

Refusal = Callable[[errors.WaberyError], tuple[int, list[tuple[bytes, bytes]], bytes]]
"""Makes the answer of a refusal: status, headers, body."""

BACKLOG: Final = 2048
_READ_BYTES: Final = 65_536
_LOOKS: Final = 20
"""How often a second, at most, deadlines are looked at."""
_DRAIN_SECONDS: Final = 20.0


class Waiting:
    """The connections that wait for their client to do one thing, in the order in which their time is up."""

    def __init__(self, seconds: float, late: Callable[[Connection], None], now: Callable[[], float]) -> None:
        self.seconds = seconds
        self.late = late
        self._now = now
        self.since: dict[Connection, float] = {}

    def add(self, connection: Connection) -> None:
        """From now on; a connection waits for one thing at a time."""
        if connection.waiting is not None:
            del connection.waiting.since[connection]
        connection.waiting = self
        self.since[connection] = self._now()

    def oldest(self, age: float) -> Connection | None:
        """The connection that has waited longest, if for `age` seconds at least."""
        for connection, since in self.since.items():
            return connection if self._now() - since >= age else None
        return None


class Server:
    """Serves one ASGI application on listening sockets.

    Made inside the event loop. `refuse` makes the answers that the server gives by itself; `trusted` are the proxies whose
    `X-Forwarded-For` counts.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        refuse: Refusal,
        trusted: Sequence[Network] = (),
        bounds: Bounds | None = None,
    ) -> None:
        self.app = app
        self.refuse = refuse
        self.trusted = trusted
        self.bounds = bounds = bounds or Bounds()
        self.loop = loop = asyncio.get_running_loop()
        self.read_buffer = memoryview(bytearray(_READ_BYTES))
        """Shared: the event loop hands it back before anything else is read."""
        self.memory = Memory(bounds.bodies)
        self.draining = False
        self.connections: set[Connection] = set()
        self._running: set[Exchange] = set()
        self._listeners: list[asyncio.Server] = []
        self._stopping = asyncio.Event()
        self._quiet = asyncio.Event()
        self._forced = False

        def waiting(seconds: float, late: Callable[[Connection], None]) -> Waiting:
            return Waiting(seconds, late, loop.time)

        self.first_byte = waiting(bounds.first_byte, self._silent)
        self.head = waiting(bounds.head_seconds, self._slow_head)
        self.idle = waiting(bounds.idle, Connection.shut_down)
        self.body = waiting(bounds.body_stall, self._slow_body)
        self.write_stall = waiting(bounds.write_stall, self._slow_reader)
        self.linger = waiting(bounds.linger, Connection.abort)
        self._waitings = (self.first_byte, self.head, self.idle, self.body, self.write_stall, self.linger)
        self._pause = max(1 / _LOOKS, min(0.5, *(each.seconds / 8 for each in self._waitings)))

    async def serve(
        self, sockets: Iterable[socket.socket], *, on_ready: Callable[[], None] | None = None
    ) -> None:
        """Accepts until `stop`; then answers what is under way, for 20 seconds at most."""
        await self.start(sockets)
        if on_ready is not None:
            on_ready()
        await self._stopping.wait()
        await self.drain()

    async def start(self, sockets: Iterable[socket.socket]) -> None:
        for listening in sockets:
            self._listeners.append(
                await self.loop.create_server(lambda: Connection(self), sock=listening, backlog=BACKLOG)
            )
        self._ticking = self.loop.call_later(self._pause, self._tick)

    def stop(self) -> None:
        """Ends `serve`; called again, without waiting for anything."""
        self._forced = self._stopping.is_set()
        self._stopping.set()
        if self._forced:
            self._quiet.set()

    async def drain(self, seconds: float = _DRAIN_SECONDS) -> None:
        """Takes nothing new, answers the requests under way, and closes every connection."""
        self.draining = True
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.shut_down()
        if not self._forced:
            self._check_quiet()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), seconds)
        tasks = [exchange.task for exchange in self._running if exchange.task is not None]
        for task in tasks:
            task.cancel()
        for connection in list(self.connections):
            connection.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self._ticking.cancel()

    # What connections call

    def opened(self, connection: Connection) -> None:
        self.connections.add(connection)
        most = self.bounds.connections
        if len(self.connections) > most:
            TOO_MANY_CONNECTIONS.hit(peer=connection.peer, limit=most)
            refusal = errors.Unavailable("The server has too many connections.", retry_after=2)
            if not self._make_room(refusal):
                # An answer takes a moment to be read; of many at once, the rest are cut.
                if len(self.connections) > most + most // 10:
                    connection.abort()
                else:
                    connection.turn_away(refusal)
                return
        self.first_byte.add(connection)

    def closed(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.waits_no_more(connection)
        if self.draining:
            self._check_quiet()

    def waits_no_more(self, connection: Connection) -> None:
        if connection.waiting is not None:
            del connection.waiting.since[connection]
            connection.waiting = None

    def start_exchange(self, exchange: Exchange) -> None:
        self._running.add(exchange)
        exchange.task = self.loop.create_task(exchange.run())

    def ended(self, exchange: Exchange) -> None:
        """The application is done with this exchange."""
        self._running.discard(exchange)
        if exchange.counted:
            self.memory.leave(exchange)
        if self.draining:
            self._check_quiet()

    def _check_quiet(self) -> None:
        if not self.connections and not self._running:
            self._quiet.set()

    def _make_room(self, refusal: errors.WaberyError) -> bool:
        """Whether a connection that only waits for its client could be closed.

        A client that connects and speaks at once is never the one: its connection is too young.
        """
        for waiting, age in (
            (self.linger, 0.2),
            (self.first_byte, 1.0),
            (self.head, 1.0),
            (self.idle, 1.0),
            (self.body, 5.0),
            (self.write_stall, 5.0),
        ):
            if (connection := waiting.oldest(age)) is not None:
                self.waits_no_more(connection)
                connection.make_room(refusal)
                return True
        return False

    # Deadlines

    def _tick(self) -> None:
        self._ticking = self.loop.call_later(self._pause, self._tick)
        now = self.loop.time()
        for waiting in self._waitings:
            due = [
                connection
                for connection, since in islice(waiting.since.items(), 1_000)
                if now - since >= waiting.seconds
            ]
            for connection in due:
                if connection.waiting is waiting:  # what came before it may have moved it
                    self.waits_no_more(connection)
                    waiting.late(connection)

    def _silent(self, connection: Connection) -> None:
        NO_FIRST_BYTE.hit(peer=connection.peer, limit=self.bounds.first_byte)
        connection.shut_down()

    def _slow_head(self, connection: Connection) -> None:
        SLOW_HEAD.hit(peer=connection.peer, limit=self.bounds.head_seconds)
        connection.too_late_for_head()

    def _slow_body(self, connection: Connection) -> None:
        SLOW_BODY.hit(peer=connection.peer, limit=self.bounds.body_stall)
        connection.too_late_for_body()

    def _slow_reader(self, connection: Connection) -> None:
        if connection.not_read():
            SLOW_READER.hit(peer=connection.peer, limit=self.bounds.write_stall)
            connection.abort()
        else:
            self.write_stall.add(connection)
