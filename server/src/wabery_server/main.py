"""Settings to a running process: the only file that knows everyone."""

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import asyncpg
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from wabery_server import accounts, logs, secrets
from wabery_server.accounts import Directory
from wabery_server.api.app import application, edge_refusals
from wabery_server.api.routes import OPERATIONS
from wabery_server.api.service import LANES as SERVICE_LANES
from wabery_server.api.service import Service
from wabery_server.clock import Clock, SystemClock
from wabery_server.db import OPERATOR, Database, Patience, Row, Source, embedded, pooler, url
from wabery_server.db.aside import CONNECTIONS as ASIDE
from wabery_server.db.embedded import Embedded, EmbeddedError, Folder, UntrustedFolder, default_directory
from wabery_server.db.migrate import MigrationError, migrate, pending
from wabery_server.db.signals import Signals
from wabery_server.db.verdicts import Verdict, verdict
from wabery_server.secrets import BadSecret, Keyring, Subkeys
from wabery_server.settings import BadSetting, Settings
from wabery_server.web import BACKLOG, Server, raise_descriptor_limit
from wabery_server.webhooks import Poster, policy
from wabery_server.worker import LANES as WORKER_LANES
from wabery_server.worker import Worker

_WATCH_SECONDS = 0.2
_FAILURE_PAUSE_SECONDS = 1.0
_DRAIN_SECONDS = 20.0
_SECRET = "secret.key"
_SUPERVISOR = 0
"""The descriptor through which a process and its supervisor are tied together."""
_ORPHAN_SECONDS = 4.0
"""For requests under way when the supervisor is gone; a process must end within 5 seconds."""
_ORPHANS_LEAVE_SECONDS = 6.0
"""How long a port may still be held by the processes of a supervisor that was killed."""
_LOOK_AGAIN_SECONDS = 0.1
_START_SECONDS = 90.0
_KILL_SECONDS = 50.0
"""After SIGTERM, for answering and delivering what is under way. systemd's limit in our unit is 60."""
_GIVE_UP_SECONDS = 60.0
"""Without any process that serves, until the supervisor ends too."""
_RESTART_SECONDS = 0.2
_LONGEST_RESTART_SECONDS = 10.0
_STEADY_SECONDS = 10.0
"""A process that lived this long is started again without a longer pause."""
_SAID_WHY = (2, 7)
"""Exit codes after a sentence on stderr: a bad setting, or what keeps the server from starting."""


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

    def __init__(self, settings: Settings, *, supervised: bool = False) -> None:
        """`supervised`: the supervisor owns the embedded database, and we only use it. Raises CannotStart."""
        self.settings = settings
        self.embedded: Embedded | None = None
        if settings.database_url:
            self.source = _source(settings.database_url)
        else:
            self.directory = settings.data_dir or default_directory()
            try:
                self.embedded = Embedded.open(
                    self.directory,
                    may_own=not supervised,
                    settings=_embedded_settings(settings),
                )
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
            given = secrets.parse_versions(self.settings.secret_key_old or "")
            others = {version: Subkeys(old, version) for version, old in given.items()}
            return Keyring(Subkeys(secret, max(others, default=0) + 1), others)
        except BadSecret as failure:
            raise CannotStart(str(failure)) from failure


def data_folder(path: Path) -> Folder:
    """The data folder, created where it is missing. Raises CannotStart when another user may have prepared it."""
    try:
        return Folder(path)
    except (UntrustedFolder, OSError) as failure:
        raise CannotStart(str(failure)) from failure


@contextmanager
def ground(settings: Settings, *, supervised: bool = False) -> Iterator[Ground]:
    """Opens the database of the settings; to be entered from the main thread, before the event loop."""
    made = Ground(settings, supervised=supervised)
    try:
        yield made
    finally:
        made.close()


@asynccontextmanager
async def opened(
    made: Ground, *, clock: Clock | None = None, serving: bool = False, patience: Patience | None = None
) -> AsyncIterator[Opened]:
    """The installation on that ground: an embedded database is migrated, another is only checked.

    `serving`: the connections of all processes must fit what the database allows. `patience`: for how long its
    connections wait, where that is not as in a server. Raises CannotStart.
    """
    connection = await connected(made)
    try:
        pool_size = made.settings.max_connections
        with explained():
            if serving:
                pool_size = fitting_pool(made.settings, await _allowed_connections(connection))
            if made.embedded is not None:
                await migrate(connection)
            elif lacking := await pending(connection):
                raise CannotStart(f"The database lacks {len(lacking)} migrations: run `wabery migrate`.")
    except MigrationError as failure:
        raise CannotStart(str(failure)) from failure
    finally:
        await connection.close()
    clock = clock or SystemClock()
    if patience is not None:
        made.source.patience = patience
    async with Database(made.source, pool_size=pool_size) as database:
        try:
            with explained():
                found = await database.run(
                    lambda tx: accounts.open_installation(tx, made.keyring, clock.now())
                )
        except BadSecret as failure:
            raise CannotStart(str(failure)) from failure
        yield Opened(database, found.keyring, clock, found.organization_id)


_LANES = SERVICE_LANES + WORKER_LANES + ASIDE + 2
"""Connections of one process beside its pool and its read lanes, at most: hot writes, worker, locked rows, signals,
readiness."""
_SPARE_CONNECTIONS = 14
"""Of the embedded server: for commands, another worker, psql."""
_LEAST_SPARE_CONNECTIONS = 3
"""Of another server: for commands."""


def _connections(settings: Settings) -> int:
    """What all processes may open."""
    return settings.workers * (settings.max_connections + settings.read_lanes + _LANES)


def _embedded_settings(settings: Settings) -> dict[str, str]:
    most = _connections(settings) + _SPARE_CONNECTIONS
    return {"max_connections": str(max(int(embedded.SETTINGS["max_connections"]), most))}


def fitting_pool(settings: Settings, allowed: int) -> int:
    """The size of each process's pool, so that all processes together stay within the `allowed` connections.

    Raises CannotStart when not even the smallest pool fits.
    """
    lanes = settings.read_lanes + _LANES
    size = min(
        settings.max_connections, (allowed - _LEAST_SPARE_CONNECTIONS) // max(settings.workers, 1) - lanes
    )
    if size < 1:
        needed = settings.workers * (lanes + 1) + _LEAST_SPARE_CONNECTIONS
        raise CannotStart(
            f"The database allows this user {allowed} connections, and {settings.workers} server processes need at "
            f"least {needed}. Raise max_connections of the database, or lower WABERY_WORKERS or WABERY_READ_LANES."
        )
    if size < settings.max_connections:
        facts = {"allowed": allowed, "workers": settings.workers, "pool": size}
        logs.log.warning(
            "connection_pool_reduced", extra={"facts": {**facts, "wanted": settings.max_connections}}
        )
    return size


async def _allowed_connections(connection: "asyncpg.Connection[Row]") -> int:
    """Connections that the server allows our user in this database, from all processes together."""
    allowed: int = await connection.fetchval(_ALLOWED)
    return allowed


_ALLOWED = """
    select least(
        current_setting('max_connections')::int - case when r.rolsuper then 0 else
            current_setting('superuser_reserved_connections')::int
            + coalesce(current_setting('reserved_connections', true)::int, 0) end,
        case when r.rolconnlimit < 0 or r.rolsuper then null else r.rolconnlimit end,
        case when d.datconnlimit < 0 or r.rolsuper then null else d.datconnlimit end
    )
    from pg_roles r, pg_database d
    where r.rolname = current_user and d.datname = current_database()
"""
"""`reserved_connections` came with PostgreSQL 16; least() skips nulls."""


async def connected(made: Ground) -> "asyncpg.Connection[Row]":
    """One connection of one's own, after a look at what stands between us and the database. Raises CannotStart."""
    try:
        if made.embedded is None and made.source.pooled is None:
            await pooler.check(made.source)
        return await replace(made.source, patience=OPERATOR).connect()
    except pooler.TransactionPooling as failure:
        raise CannotStart(
            "DATABASE_URL leads to a pooler in transaction mode, which mixes up the sessions that Wabery prepares. "
            "Use the pooler's session mode, or the direct URL of PostgreSQL."
        ) from failure
    except TimeoutError as failure:
        raise CannotStart("The database cannot be reached: it does not answer within 5 seconds.") from failure
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as failure:
        reason = (str(failure) or type(failure).__name__).splitlines()[0]
        raise CannotStart(f"The database cannot be reached: {reason}") from failure


@contextmanager
def explained() -> Iterator[None]:
    """Turns what the database refuses, or its loss, into CannotStart; a statement that is wrong itself stays a bug."""
    try:
        yield
    except asyncpg.InsufficientPrivilegeError as failure:
        raise CannotStart(
            f"The role of DATABASE_URL lacks rights in the database: {failure}. "
            "Use the role that ran `wabery migrate`, or grant these rights."
        ) from failure
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as failure:
        if verdict(failure) in (Verdict.BUG, Verdict.DATA):
            raise
        reason = (str(failure) or type(failure).__name__).splitlines()[0]
        raise CannotStart(f"The database was lost, or refuses: {reason}. Try again.") from failure


def _source(database_url: str) -> Source:
    """Raises BadSetting."""
    try:
        address = url.read(database_url)
    except url.BadUrl as failure:
        raise BadSetting(str(failure)) from failure
    for warning in address.warnings:
        logs.log.warning("database_url", extra={"facts": {"problem": warning}})
    if address.dropped:
        logs.log.warning("database_url", extra={"facts": {"without_effect": list(address.dropped)}})
    return Source(dsn=address.dsn, parts=address.parts)


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
        async with running.readiness:
            yield Running(running, application(running, OPERATIONS, extra(running) if extra else []))


async def serve(
    made: Ground,
    installation: Opened,
    *,
    sockets: list[socket.socket] | None = None,
    extra: Callable[[Service], list[BaseRoute]] | None = None,
    wrap: Callable[[ASGIApp], ASGIApp] | None = None,
    on_ready: Callable[[Service], None] | None = None,
    supervised: bool = False,
) -> None:
    """Serves until SIGTERM or SIGINT: then takes nothing new, answers what it has, and stops. Raises CannotStart.

    A second signal does not wait for what is under way, unless `supervised`: then it may be the same one, sent by the
    supervisor and by whatever stops the supervisor.
    """
    settings = made.settings
    raise_descriptor_limit()
    own = sockets or [listening(settings.host, settings.port, patience=_ORPHANS_LEAVE_SECONDS)]
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
            if supervised and running.service.draining:
                return
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


def supervise(
    settings: Settings, *, kill_after: float = _KILL_SECONDS, give_up_after: float = _GIVE_UP_SECONDS
) -> int:
    """Runs several server processes on one socket, and their embedded database, until SIGTERM or SIGINT.

    A second signal kills what is still draining. Returns an exit code: 0 after a stop, else that of a process that
    could not start and has said why. Raises CannotStart.
    """
    with (
        ground(settings) as made,
        listening(settings.host, settings.port, patience=_ORPHANS_LEAVE_SECONDS) as shared,
    ):
        supervisor = _Supervisor(made, shared, kill_after=kill_after, give_up_after=give_up_after)
        try:
            return asyncio.run(supervisor.run())
        except _NotStarted as failure:
            if failure.code in _SAID_WHY:
                return failure.code
            raise CannotStart(
                f"A server process ended with exit code {failure.code} before it was ready; see its messages above."
            ) from None


class _NotStarted(Exception):
    """A server process ended before it was ready, and no other one serves."""

    def __init__(self, code: int) -> None:
        self.code = code


class _Supervisor:
    """Keeps `settings.workers` server processes running.

    The first one starts alone: what keeps it from starting would keep all of them, and is said once. Each process has
    one end of a socket pair as its standard input. It says there that it is ready, and reads there that we are gone.
    """

    def __init__(
        self, made: Ground, shared: socket.socket, *, kill_after: float, give_up_after: float
    ) -> None:
        self._made = made
        self._shared = shared
        self._kill_after = kill_after
        self._give_up_after = give_up_after
        self._processes: set[asyncio.subprocess.Process] = set()
        self._first = asyncio.Event()
        self._stopping = asyncio.Event()
        self._serving = 0
        self._last_served = 0.0

    async def run(self) -> int:
        """Raises _NotStarted."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        watchdog = asyncio.create_task(self._made.keep_alive())
        stopped = asyncio.create_task(self._stopping.wait())
        keepers = [asyncio.create_task(self._keep(place)) for place in range(self._made.settings.workers)]
        try:
            await asyncio.wait({*keepers, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # The database goes on meanwhile: requests under way need it.
            await self._end(keepers)
            await _stopped(stopped)
            await _stopped(watchdog)
        for keeper in keepers:
            keeper.result()
        return 0

    def _stop(self) -> None:
        self._signal(signal.SIGKILL if self._stopping.is_set() else signal.SIGTERM)
        self._stopping.set()

    def _signal(self, number: int) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def _end(self, keepers: "list[asyncio.Task[None]]") -> None:
        if not self._stopping.is_set():
            self._stop()
        _, hanging = await asyncio.wait(keepers, timeout=self._kill_after)
        if hanging:
            logs.log.error("server_process_killed", extra={"facts": {"processes": len(self._processes)}})
            self._signal(signal.SIGKILL)
            await asyncio.wait(hanging)

    async def _keep(self, place: int) -> None:
        """Starts a process again whenever it ends, after a pause that doubles while it does not last."""
        if place > 0:
            await _either(self._first, self._stopping)
        pause = _RESTART_SECONDS
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._run()
            if self._stopping.is_set():
                return
            if time.monotonic() - began >= _STEADY_SECONDS:
                pause = _RESTART_SECONDS
            logs.log.error("server_process_ended", extra={"facts": {"code": code, "restart_in": pause}})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(2 * pause, _LONGEST_RESTART_SECONDS)

    async def _run(self) -> int:
        """Runs one process to its end; returns its exit code. Raises _NotStarted."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "wabery_server", "serve", "--fd", str(self._shared.fileno())),
                    stdin=theirs.fileno(),
                    pass_fds=[self._shared.fileno()],
                    start_new_session=True,  # Ctrl-C reaches us, and we stop it in order
                )
            self._processes.add(process)
            if self._stopping.is_set():
                process.terminate()
            try:
                if await _says_ready(ours, process):
                    return await self._serve(process)
                code = await process.wait()
            finally:
                self._processes.discard(process)
        alone = self._serving == 0 and time.monotonic() - self._last_served >= self._give_up_after
        if not self._stopping.is_set() and (alone or not self._first.is_set()):
            raise _NotStarted(code)
        return code

    async def _serve(self, process: asyncio.subprocess.Process) -> int:
        self._first.set()
        self._serving += 1
        try:
            return await process.wait()
        finally:
            self._serving -= 1
            self._last_served = time.monotonic()


async def _says_ready(ours: socket.socket, process: asyncio.subprocess.Process) -> bool:
    """False when the process ended first, or was killed because it took too long."""
    ours.setblocking(False)
    try:
        async with asyncio.timeout(_START_SECONDS):
            return await asyncio.get_running_loop().sock_recv(ours, 1) != b""
    except ConnectionError:
        return False
    except TimeoutError:
        logs.log.error("server_process_hangs", extra={"facts": {"seconds": _START_SECONDS}})
        process.kill()
        return False


async def _either(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        await _stopped(wait)


def tether() -> None:
    """For a process of the supervisor: ends it within 5 seconds of the supervisor's death, whatever it is doing.

    A thread, because an event loop that hangs could not do it.
    """

    def watch() -> None:
        while True:
            try:
                if os.read(_SUPERVISOR, 1) == b"":
                    break
            except OSError:
                break
        logs.log.error("supervisor_lost")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_ORPHAN_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="tether", daemon=True).start()


def say_ready() -> None:
    """Tells the supervisor that this process serves."""
    with contextlib.suppress(OSError):  # it is gone: see `tether`
        os.write(_SUPERVISOR, b"+")


def listening(host: str, port: int, *, patience: float = 0.0) -> socket.socket:
    """A listening socket. While the port is taken it tries for `patience` seconds. Raises CannotStart."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    end = time.monotonic() + patience
    while True:
        try:
            made.bind((host, port))
            break
        except OSError as failure:
            if failure.errno == errno.EADDRINUSE and time.monotonic() < end:
                time.sleep(_LOOK_AGAIN_SECONDS)
                continue
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
                with os.fdopen(new, "w", encoding="ascii") as file:
                    file.write(secrets.generate() + "\n")
            return folder.read(_SECRET, private=True).strip()
        except (UntrustedFolder, OSError) as failure:
            raise CannotStart(str(failure)) from failure
