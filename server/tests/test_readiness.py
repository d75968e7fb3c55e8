"""Readiness: it fails soon after the database does, for the right reasons, and answers at once whatever happens."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from world import ANA, INTENTS, App, Reply, serving, tenant

from wabery_server import accounts
from wabery_server.api.readiness import Readiness
from wabery_server.clock import MovableClock, SystemClock
from wabery_server.db import Database, Source
from wabery_server.db.embedded import Embedded
from wabery_server.db.migrate import migrate
from wabery_server.db.signals import Signals
from wabery_server.phone import payloads
from wabery_server.secrets import Keyring
from wabery_server.settings import Settings

PATIENCE = 30  # seconds until a wait in a test counts as a failure
SOON = 2.0
"""Seconds for what takes less than one on a machine that is not busy."""


@asynccontextmanager
async def looking(source: Source) -> AsyncIterator[Readiness]:
    async with Readiness(source, SystemClock(), write_every=timedelta(milliseconds=50)) as readiness:
        yield readiness


async def until(condition: Callable[[], bool]) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE, "waited in vain"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def execute(source: Source, sql: str) -> None:
    connection = await source.connect()
    await connection.execute(sql)
    await connection.close()


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[tuple[Embedded, Source]]:
    """A PostgreSQL that a test may stop."""
    with closing(Embedded.open(tmp_path / "pg", settings={"fsync": "off"})) as embedded:
        source = Source(parts=embedded.address.dsn_kwargs())
        connection = await source.connect()
        await migrate(connection)
        await connection.close()
        yield embedded, source


def processes(embedded: Embedded) -> list[int]:
    """The postmaster, and then all its children."""
    lines = Path(embedded.address.host).with_name("data").joinpath("postmaster.pid").read_text().split("\n")
    children = Path(f"/proc/{lines[0]}/task/{lines[0]}/children").read_text().split()
    return [int(lines[0]), *map(int, children)]


async def ready(app: App) -> Reply:
    return await app.call("GET", "/readyz")


async def test_a_server_with_its_database_is_ready(app: App) -> None:
    reply = await ready(app)

    assert (reply.status, reply.body) == (200, {"status": "ok"})


async def test_a_server_that_is_stopping_is_not_ready(app: App) -> None:
    assert (await ready(app)).status == 200

    app.service.stop_waiting()

    reply = await ready(app)
    assert (reply.status, reply.body["error"]) == (503, "unavailable")
    assert int(reply.headers["Retry-After"]) >= 1


async def test_readiness_has_its_own_connection(app: App) -> None:
    """A pool without a free connection does not make the process look broken."""
    assert (await ready(app)).status == 200

    async with asyncio.timeout(PATIENCE):
        release = asyncio.Event()
        busy = [asyncio.create_task(hold(app, release)) for _ in range(20)]
        await asyncio.sleep(0)
        began = time.monotonic()
        reply = await ready(app)
        release.set()
        await asyncio.gather(*busy, return_exceptions=True)

    assert reply.status == 200
    assert time.monotonic() - began < SOON


async def hold(app: App, release: asyncio.Event) -> None:
    await app.service.database.run(lambda _tx: release.wait())


@pytest.mark.slow
async def test_a_database_that_dies_is_noticed_within_a_second_and_so_is_its_return(
    own: tuple[Embedded, Source],
) -> None:
    embedded, source = own
    async with looking(source) as readiness:
        assert readiness.problem is None

        os.kill(processes(embedded)[0], signal.SIGKILL)
        gone = await until(lambda: readiness.problem is not None)
        await until(embedded.lost)
        for pause in embedded.reviving():
            await asyncio.sleep(pause)
        back = await until(lambda: readiness.problem is None)

    assert gone < SOON
    assert back < 2 * SOON


@pytest.mark.slow
async def test_a_frozen_database_is_noticed_within_a_second(own: tuple[Embedded, Source]) -> None:
    embedded, source = own
    async with looking(source) as readiness:
        frozen = processes(embedded)
        try:
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            gone = await until(lambda: readiness.problem is not None)
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        await until(lambda: readiness.problem is None)

    assert gone < SOON


REFUSED_WRITES = {
    "disk full": "raise exception using errcode = '53100'",
    "disk broken": "raise exception using errcode = '58030'",
    "out of memory": "raise exception using errcode = '53200'",
    "read-only": "raise exception using errcode = '25006'",
}


@pytest.mark.parametrize("why", REFUSED_WRITES)
async def test_a_database_that_takes_no_writes_is_not_ready(source: Source, why: str) -> None:
    async with looking(source) as readiness:
        assert readiness.problem is None

        await execute(
            source,
            f"create function refuse() returns trigger language plpgsql as $$ begin {REFUSED_WRITES[why]}; end $$;"
            "create trigger refuse before insert on readiness execute function refuse()",
        )
        await until(lambda: readiness.problem == "The database does not take writes.")
        await execute(source, "drop trigger refuse on readiness")
        await until(lambda: readiness.problem is None)


async def test_a_row_that_another_process_has_locked_says_nothing(source: Source) -> None:
    async with looking(source) as readiness:
        connection = await source.connect()
        async with connection.transaction():
            await connection.execute("update readiness set checked_at = now()")
            waited_until = asyncio.get_running_loop().time() + 1.0
            while asyncio.get_running_loop().time() < waited_until:
                assert readiness.problem is None
                await asyncio.sleep(0.02)
        await connection.close()


@pytest.mark.parametrize(
    ("failure", "noticed"),
    [
        (asyncpg.DiskFullError("no space left on device"), True),
        (asyncpg.exceptions.PostgresIOError("input/output error"), True),
        (asyncpg.TooManyConnectionsError("sorry"), False),
        (asyncpg.UniqueViolationError("again"), False),
        (ValueError("a bug"), False),
    ],
)
async def test_a_request_without_room_makes_the_database_unready_until_a_write_succeeds(
    source: Source, failure: Exception, noticed: bool
) -> None:
    async with looking(source) as readiness:
        wrapped = RuntimeError("the request failed")
        wrapped.__cause__ = failure

        readiness.notice(wrapped)

        assert (readiness.problem is not None) == noticed
        await until(lambda: readiness.problem is None)


async def test_few_rows_are_enough_for_any_number_of_processes(source: Source) -> None:
    for _ in range(5):
        async with looking(source):
            pass

    connection = await source.connect()
    slots = await connection.fetch("select slot from readiness")
    await connection.close()
    assert 1 <= len(slots) <= 5
    assert all(0 <= row["slot"] < 64 for row in slots)


@pytest.mark.slow
@pytest.mark.parametrize("returns", [True, False], ids=["that returns", "that stays away"])
async def test_requests_wait_for_a_database(
    own: tuple[Embedded, Source], settings: Settings, keyring: Keyring, clock: MovableClock, returns: bool
) -> None:
    """Until their deadline, and then they are 503; they go on soon after it is back."""
    embedded, source = own
    async with Database(source) as database, Signals(source) as signals:
        await database.run(lambda tx: accounts.open_installation(tx, keyring, clock.now()))
        async with serving(settings, database, keyring, clock, signals) as app:
            acme = await tenant(app, "Acme")
            intent = await app.mint(acme.secret_key)
            body = payloads.meta_text(
                phone_number_id=acme.channel.phone_number_id,
                display_phone_number=acme.channel.display_phone_number,
                waba_id=acme.channel.waba_id,
                text=intent["token"],
                sender=ANA,
                message_id=payloads.new_message_id(),
                at=clock.now(),
            )
            headers = payloads.sign(acme.app_secret.encode(), body)

            os.kill(processes(embedded)[0], signal.SIGKILL)
            await until(embedded.lost)
            began = time.monotonic()
            requests = [
                asyncio.create_task(
                    app.call("POST", INTENTS, acme.secret_key, json={"customer_reference": "a"})
                ),
                asyncio.create_task(app.call("POST", "/inbound/whatsapp", data=body, headers=headers)),
            ]
            if returns:
                await until(lambda: time.monotonic() > began + 0.5)
                for pause in embedded.reviving():
                    await asyncio.sleep(pause)
            replies = await asyncio.gather(*requests)
            waited = time.monotonic() - began

    if returns:
        assert [reply.status for reply in replies] == [200, 200]
    else:
        assert [(reply.status, reply.body["error"]) for reply in replies] == [(503, "unavailable")] * 2
        assert all(int(reply.headers["Retry-After"]) >= 1 for reply in replies)
    assert waited < PATIENCE / 2
