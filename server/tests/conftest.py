"""One PostgreSQL for the whole run, a fresh database from a template for each test."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
import uvloop
from world import App, Tenant, serving, tenant

from wabery_server import accounts
from wabery_server.clock import MovableClock
from wabery_server.db import Database, Source
from wabery_server.db.embedded import Embedded
from wabery_server.db.migrate import migrate
from wabery_server.db.signals import Signals
from wabery_server.secrets import Keyring, Subkeys, generate
from wabery_server.settings import Settings

_CLUSTER = "WABERY_TEST_CLUSTER"
_TEMPLATE = "wabery_template"
_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "120"}
"""Tests that kill PostgreSQL start their own, durable one."""


def pytest_configure(config: pytest.Config) -> None:
    """The controller owns the cluster; the processes of pytest-xdist attach to it."""
    if hasattr(config, "workerinput") or _CLUSTER in os.environ:
        return
    directory = tempfile.mkdtemp(prefix="wabery-tests-")
    cluster = Embedded.open(Path(directory), settings=_FAST)
    os.environ[_CLUSTER] = directory
    parts = cluster.address.dsn_kwargs()
    asyncio.run(_make_template(parts))

    def stop() -> None:
        os.environ.pop(_CLUSTER, None)
        cluster.close()
        shutil.rmtree(directory, ignore_errors=True)

    config.add_cleanup(stop)


async def _make_template(parts: dict[str, object]) -> None:
    connection = await asyncpg.connect(**parts)
    await connection.execute(f"create database {_TEMPLATE}")
    await connection.close()
    template = await asyncpg.connect(**{**parts, "database": _TEMPLATE})
    await migrate(template)
    await template.close()


@pytest.fixture(scope="session")
def pg() -> Iterator[Embedded]:
    """The run's PostgreSQL."""
    cluster = Embedded.open(Path(os.environ[_CLUSTER]))
    yield cluster
    cluster.close()


@pytest.fixture
async def source(pg: Embedded) -> AsyncIterator[Source]:
    """A fresh database with the schema and nothing in it."""
    name = f"t_{uuid4().hex}"
    parts = pg.address.dsn_kwargs()
    admin = await asyncpg.connect(**parts)
    # 73 ms instead of 167: the template is small, so copying its files beats writing every page to the log.
    await admin.execute(f"create database {name} template {_TEMPLATE} strategy file_copy")
    yield Source(parts={**parts, "database": name})
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


@pytest.fixture
async def database(source: Source) -> AsyncIterator[Database]:
    async with Database(source) as opened:
        yield opened


@pytest.fixture
async def signals(source: Source) -> AsyncIterator[Signals]:
    async with Signals(source) as opened:
        yield opened


@pytest.fixture
def keyring() -> Keyring:
    return Keyring(Subkeys(generate()))


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock(timedelta(0))


@pytest.fixture
def settings() -> Settings:
    """A test that needs others overrides this."""
    return Settings(secret_key_per_second=100_000, publishable_ip_per_minute=100_000, read_lanes=1)


@pytest.fixture
async def app(
    settings: Settings, database: Database, keyring: Keyring, clock: MovableClock, signals: Signals
) -> AsyncIterator[App]:
    await database.run(lambda tx: accounts.open_installation(tx, keyring, clock.now()))
    async with serving(settings, database, keyring, clock, signals) as running:
        yield running


@pytest.fixture
async def acme(app: App) -> Tenant:
    return await tenant(app, "Acme")


@pytest.fixture
async def globex(app: App) -> Tenant:
    return await tenant(app, "Globex")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The product runs on uvloop, so its tests do."""
    return {"uvloop": uvloop.new_event_loop}
