"""A service in processes of its own, on a durable PostgreSQL of its own, that a test may kill and start again."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import asyncpg
from world import Tenant

from wabery_server import accounts
from wabery_server.accounts import KeyDraft, ProjectChanges, ProjectDraft
from wabery_server.db import Database, Row, Source, Tx
from wabery_server.db.embedded import Embedded
from wabery_server.secrets import Keyring, Subkeys

PATIENCE = 40  # seconds until a wait in a test counts as a failure


def children(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def alive(pid: int) -> bool:
    """Whether the process is there and is more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], bool]) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE, "waited in vain"
        time.sleep(0.02)
    return time.monotonic() - began


class House:
    """A service on a durable PostgreSQL of its own, that can be killed and started again."""

    def __init__(self, folder: Path, workers: int = 1, **settings: str) -> None:
        self.data = folder / "data"
        self.url = ""
        self.workers = workers
        self._settings = settings
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self.spawn()
        await self.ready()

    async def ready(self) -> None:
        """Waits until it serves, with all its processes."""
        async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session:
            while not await _answers(session, f"{self.url}/readyz"):
                assert self.running(), self.log()[-2000:]
                await asyncio.sleep(0.02)  # a process that starts has no event for us to wait for

    def spawn(self, port: int | None = None, code: str | None = None) -> None:
        """Starts it without waiting; `code` is Python to run instead of `wabery serve`."""
        if port is None:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WABERY_")}
        kept.pop("DATABASE_URL", None)
        settings = {
            "WABERY_DATA_DIR": str(self.data),
            "WABERY_PORT": str(port),
            "WABERY_WORKERS": str(self.workers),
            "WABERY_DELIVERY_ALLOW_NETWORKS": "127.0.0.0/8",
            "WABERY_DELIVERY_ALLOW_PORTS": "any",
            **self._settings,
        }
        command = [sys.executable, *(["-c", code] if code else ["-m", "wabery_server", "serve"])]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=kept | settings, stderr=log)  # this very program

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        return self._log.read_text()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def server_processes(self) -> list[int]:
        """The processes that answer: the service itself, or those that it supervises."""
        if self.workers == 1:
            return [self.pid]
        return [pid for pid in children(self.pid) if b"--fd" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def kill_at_once(self) -> list[int]:
        """SIGKILL, to the supervisor where there is one. Returns the processes that answer, which may still run."""
        assert self._process is not None
        answering = self.server_processes()
        self._process.kill()
        self._process.wait(PATIENCE)
        return answering

    def kill(self) -> None:
        """Returns when all processes that answer have ended."""
        answering = self.kill_at_once()
        until(lambda: not any(map(alive, answering)))

    def stop(self) -> int | None:
        """As an operator would; safe to repeat. Returns the exit code."""
        if self._process is None:
            return None
        self._process.terminate()
        return self._process.wait(PATIENCE)

    def postmaster(self) -> int:
        return int((self.data / "data/postmaster.pid").read_text().split("\n")[0])

    async def tenant(self, webhook_url: str | None = None) -> Tenant:
        keyring = Keyring(Subkeys((self.data / "secret.key").read_text().strip()))
        at = datetime.now(UTC)

        async def make(tx: Tx) -> Tenant:
            organization_id = await accounts.find_organization(tx)
            new = accounts.new_project(organization_id, ProjectDraft(name="Acme"), keyring=keyring, at=at)
            await accounts.create_project(tx, new, keyring=keyring, actor="cli:test", at=at)
            changes = ProjectChanges(webhook_url=webhook_url)
            project, _ = await accounts.update_project(
                tx, new.project.id, changes, keyring=keyring, actor="cli:test", at=at
            )
            secret = accounts.new_key(project, KeyDraft(name="server", scopes=["full"]), at)
            public = accounts.new_key(project, KeyDraft(name="page", kind="publishable"), at)
            for key in (secret, public):
                await accounts.create_key(tx, key, actor="cli:test", at=at)
            (channel,) = await accounts.list_channels(tx, project.id, limit=10)
            credentials = await accounts.unseal_credentials(tx, channel, keyring=keyring)
            return Tenant(
                project, channel, credentials.app_secrets[0], secret.value, public.value, secret.key.id
            )

        with self._embedded() as embedded:
            async with Database(Source(parts=embedded.address.dsn_kwargs()), pool_size=1) as database:
                return await database.run(make)

    async def rows(self, sql: str, *values: object) -> list[Row]:
        """Asks the cluster directly; while the service is dead, by owning it meanwhile."""
        with self._embedded() as embedded:
            connection = await asyncpg.connect(**embedded.address.dsn_kwargs())
            try:
                return list(await connection.fetch(sql, *values))
            finally:
                await connection.close()

    @contextmanager
    def _embedded(self) -> Iterator[Embedded]:
        with closing(Embedded.open(self.data)) as embedded:
            yield embedded


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False
