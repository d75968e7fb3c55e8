"""Settings to a running process: the only file that knows everyone."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import asyncpg
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from wabery_server import accounts, logs, secrets
from wabery_server.accounts import Directory
from wabery_server.api.app import application, edge_refusals
from wabery_server.api.routes import OPERATIONS
from wabery_server.api.service import Service
from wabery_server.clock import Clock, SystemClock
from wabery_server.db import Database, Row, Source
from wabery_server.db.embedded import Embedded, EmbeddedError, Folder, UntrustedFolder, default_directory
from wabery_server.db.migrate import MigrationError, migrate, pending
from wabery_server.db.signals import Signals
from wabery_server.secrets import BadSecret, Keyring, Subkeys
from wabery_server.settings import Settings
from wabery_server.web import BACKLOG, Server, raise_descriptor_limit
from wabery_server.webhooks import Poster, policy
from wabery_server.worker import Worker

_WATCH_SECONDS = 0.2
_FAILURE_PAUSE_SECONDS = 1.0
_DRAIN_SECONDS = 20.0
_SECRET = "secret.key"


class CannotStart(Exception):
    """One line that says why, for whoever typed the command."""


class Opened(NamedTuple):
    """An installation whose database is at this version and belongs to this secret."""

    database: Database
    keyring: Keyring
    clock: Clock
    organization_id: str


class Ground:
    """The database that settings name: somebody else's, or our own embedded one. Made before the event loop."""

    def __init__(self, settings: Settings) -> None:
        """Raises CannotStart."""
        self.settings = settings
        self.embedded: Embedded | None = None
        if settings.database_url:
            self.source = Source(dsn=settings.database_url)
        else:
            self.directory = settings.data_dir or default_directory()
            try:
                self.embedded = Embedded.open(self.directory)
            except EmbeddedError as failure:
                raise CannotStart(str(failure)) from failure
            self.source = Source(parts=self.embedded.address.dsn_kwargs())
        try:
            self.keyring = self._keyring()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self.embedded is not None:
            self.embedded.close()

    async def keep_alive(self) -> None:
        """Starts our embedded server again when it has ended, and takes it over when its owner is gone.

        Until cancelled. Never blocks the event loop for long.
        """
        if self.embedded is None:
            return
        failing = False
        while True:
            await asyncio.sleep(_FAILURE_PAUSE_SECONDS if failing else _WATCH_SECONDS)
            try:
                if lost := self.embedded.lost():
                    logs.log.error("database_lost")
                    for pause in self.embedded.reviving():
                        await asyncio.sleep(pause)
            except EmbeddedError as failure:
                if not failing:
                    logs.log.error("database_not_revived", extra={"facts": {"problem": str(failure)}})
                failing = True
                continue
            failing = False
            self.source.parts = self.embedded.address.dsn_kwargs()
            if lost:
                logs.line("database_revived", owner=self.embedded.owner)

    def _keyring(self) -> Keyring:
        secret = self.settings.secret_key
        if secret is None:
            if self.embedded is None:
                raise CannotStart(
                    "WABERY_SECRET_KEY is required with DATABASE_URL; make one with `wabery admin new-secret`."
                )
            secret = _own_secret(self.directory)
        try:
            if self.settings.secret_key_old is None:
                return Keyring(Subkeys(secret))
            number, _, old = self.settings.secret_key_old.partition(":")
            version = int(number)
            return Keyring(Subkeys(secret, version + 1), {version: Subkeys(old, version)})
        except (BadSecret, ValueError) as failure:
            raise CannotStart(str(failure)) from failure


def data_folder(path: Path) -> Folder:
    """The data folder, created where it is missing. Raises CannotStart when another user may have prepared it."""
    try:
        return Folder(path)
    except (UntrustedFolder, OSError) as failure:
        raise CannotStart(str(failure)) from failure


@contextmanager
def ground(settings: Settings) -> Iterator[Ground]:
    """Opens the database of the settings; to be entered from the main thread, before the event loop."""
    made = Ground(settings)
    try:
        yield made
    finally:
        made.close()


@asynccontextmanager
async def opened(made: Ground, *, clock: Clock | None = None) -> AsyncIterator[Opened]:
    """The installation on that ground: an embedded database is migrated, another is only checked.

    Raises CannotStart.
    """
    connection = await connected(made)
    try:
        if made.embedded is not None:
            await migrate(connection)
        elif lacking := await pending(connection):
            raise CannotStart(f"The database lacks {len(lacking)} migrations: run `wabery migrate`.")
    except MigrationError as failure:
        raise CannotStart(str(failure)) from failure
    finally:
        await connection.close()
    clock = clock or SystemClock()
    async with Database(made.source, pool_size=made.settings.max_connections) as database:
        try:
            organization_id = await database.run(
                lambda tx: accounts.open_installation(tx, made.keyring, clock.now())
            )
        except BadSecret as failure:
            raise CannotStart(str(failure)) from failure
        yield Opened(database, made.keyring, clock, organization_id)


async def connected(made: Ground) -> "asyncpg.Connection[Row]":
    """One connection of one's own. Raises CannotStart."""
    try:
        return await made.source.connect()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as failure:
        raise CannotStart(f"The database cannot be reached: {failure}") from failure


class Running(NamedTuple):
    """A process that serves."""

    service: Service
    app: ASGIApp


@asynccontextmanager
async def service(
    made: Ground, installation: Opened, extra: Callable[[Service], list[BaseRoute]] | None = None
) -> AsyncIterator[Running]:
    """The service and its ASGI application. `extra` adds routes of `wabery dev`."""
    async with (
        Signals(made.source) as signals,
        Directory(installation.database, installation.keyring, signals, installation.clock) as directory,
    ):
        running = Service(
            made.settings,
            database=installation.database,
            keyring=installation.keyring,
            clock=installation.clock,
            signals=signals,
            directory=directory,
        )
        yield Running(running, application(running, OPERATIONS, extra(running) if extra else []))


async def serve(
    made: Ground,
    installation: Opened,
    *,
    sockets: list[socket.socket] | None = None,
    extra: Callable[[Service], list[BaseRoute]] | None = None,
    wrap: Callable[[ASGIApp], ASGIApp] | None = None,
    on_ready: Callable[[Service], None] | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT: then takes nothing new, answers what it has, and stops. Raises CannotStart."""
    settings = made.settings
    raise_descriptor_limit()
    own = sockets or [listening(settings.host, settings.port)]
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(service(made, installation, extra))
        watchdog = asyncio.create_task(made.keep_alive())
        stack.push_async_callback(_stopped, watchdog)
        if settings.deliver:
            worker = asyncio.create_task(_work(made, installation, running.service.signals))
            stack.push_async_callback(_stopped, worker)
        app = wrap(running.app) if wrap else running.app
        server = Server(app, refuse=edge_refusals(settings), trusted=settings.trusted_proxies)
        loop = asyncio.get_running_loop()

        def stop() -> None:
            """A second signal does not wait for requests under way."""
            running.service.stop_waiting()
            server.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        quicken_gc()
        await server.serve(own, on_ready=(lambda: on_ready(running.service)) if on_ready else None)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(running.service.drain(), _DRAIN_SECONDS)


async def work(made: Ground, installation: Opened) -> None:
    """Delivers and sweeps until SIGTERM or SIGINT."""
    async with Signals(made.source) as signals:
        worker = asyncio.create_task(_work(made, installation, signals))
        watchdog = asyncio.create_task(made.keep_alive())
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        quicken_gc()
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({worker, stopping}, return_when=asyncio.FIRST_COMPLETED)
        await _stopped(watchdog)
        await _stopped(worker)
        await _stopped(stopping)


def supervise(settings: Settings) -> int:
    """Several serving processes on one socket; one that dies is started again. Returns an exit code."""
    with ground(settings), listening(settings.host, settings.port) as shared:
        shared.set_inheritable(True)
        command = [sys.executable, "-m", "wabery_server", "serve", "--fd", str(shared.fileno())]

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, pass_fds=[shared.fileno()])  # noqa: S603  # this very program

        children = [start() for _ in range(settings.workers)]
        stopping = False

        def stop(_number: int, _frame: object) -> None:
            nonlocal stopping
            stopping = True
            for child in children:
                child.terminate()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        while True:
            for place, child in enumerate(children):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0.2)
                if child.poll() is not None and not stopping:
                    logs.log.error("process_died", extra={"facts": {"code": child.returncode}})
                    children[place] = start()
            if stopping and all(child.poll() is not None for child in children):
                return 0


def listening(host: str, port: int) -> socket.socket:
    """A listening socket. Raises CannotStart."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError as failure:
        made.close()
        raise CannotStart(
            f"Cannot listen on {host}:{port}: {failure.strerror}. Choose another WABERY_PORT."
        ) from failure
    made.listen(BACKLOG)
    return made


def quicken_gc() -> None:
    """Full collections are the latency's tail: what start-up made is never looked at again, the rest seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


async def _work(made: Ground, installation: Opened, signals: Signals) -> None:
    settings = made.settings
    async with (
        Poster(policy(settings, livemode=True)) as live,
        Poster(policy(settings, livemode=False)) as test,
    ):
        await Worker(
            database=installation.database,
            signals=signals,
            clock=installation.clock,
            keyring=installation.keyring,
            settings=settings,
            live=live,
            test=test,
        ).run()


async def _stopped(task: "asyncio.Task[object]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _own_secret(directory: Path) -> str:
    """The generated secret of the embedded database, in a file that only its owner can read. Raises CannotStart."""
    with data_folder(directory) as folder:
        try:
            with contextlib.suppress(FileExistsError):
                new = folder.open(_SECRET, os.O_WRONLY | os.O_CREAT | os.O_EXCL, private=True)
                with os.fdopen(new, "w") as file:
                    file.write(secrets.generate() + "\n")
            return folder.read(_SECRET, private=True).strip()
        except (UntrustedFolder, OSError) as failure:
            raise CannotStart(str(failure)) from failure
