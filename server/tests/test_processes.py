"""Several server processes under one supervisor, and one alone: who starts, restarts, stops and outlives whom."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import asyncpg
import pytest
from house import PATIENCE, House, alive, until
from world import INTENTS, App

from wabery_server import main
from wabery_server.db.embedded import Embedded
from wabery_server.secrets import generate
from wabery_server.settings import Settings
from wabery_server.webhooks import Poster, policy
from wabery_server.worker import Worker

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that any user may enter, with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="wabery-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
async def house(folder: Path) -> AsyncIterator[House]:
    made = House(folder, workers=2)
    try:
        await made.start()
        until(lambda: len(made.server_processes()) == 2)
        yield made
    finally:
        made.stop()


# Real processes


@on_linux
@pytest.mark.slow
async def test_the_death_of_the_supervisor_ends_its_processes_and_the_next_start_takes_over(
    house: House,
) -> None:
    tenant = await house.tenant()
    port = int(house.url.rpartition(":")[2])
    postmaster = house.postmaster()
    answering = house.server_processes()
    async with aiohttp.ClientSession(house.url) as session:
        intent = await mint(session, tenant.secret_key)
        waiting = asyncio.create_task(wait_for(session, tenant.secret_key, intent))
        await asyncio.sleep(0)

        house.kill_at_once()
        house.spawn(port)  # while its processes still hold the port
        gone = await asyncio.to_thread(until, lambda: not any(map(alive, answering)))
        await house.ready()
        waiting.cancel()

        assert gone < 6
        assert house.postmaster() != postmaster
        assert await read(session, tenant.secret_key, intent) == "PENDING"
    assert house.stop() == 0


@on_linux
@pytest.mark.slow
async def test_a_process_that_dies_is_replaced_and_a_stop_answers_what_waits(house: House) -> None:
    tenant = await house.tenant()
    victim, other = house.server_processes()

    os.kill(victim, signal.SIGKILL)
    await asyncio.to_thread(until, lambda: len(set(house.server_processes()) - {victim}) == 2)
    assert other in house.server_processes()
    async with aiohttp.ClientSession(house.url) as session:
        intent = await mint(session, tenant.secret_key)
        waiting = asyncio.create_task(wait_for(session, tenant.secret_key, intent))
        await read(session, tenant.secret_key, intent)
        os.kill(house.pid, signal.SIGTERM)
        status = await asyncio.wait_for(waiting, PATIENCE)

    assert status in ("PENDING", None)  # None: it had not been accepted yet
    assert await asyncio.to_thread(house.stop) == 0
    assert not (house.data / "data/postmaster.pid").exists()
    assert house.log().count('"server_process_ended"') == 1


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize("owner", [True, False], ids=["owner", "attached"])
async def test_an_event_loop_never_waits_for_the_embedded_database(house: House, owner: bool) -> None:
    """While its server is killed and started again, by us or by another process."""
    if owner:
        house.stop()
    made = main.Ground(Settings(data_dir=house.data), supervised=not owner)
    try:
        watchdog = asyncio.create_task(made.keep_alive())
        async with lag() as longest:
            killed = house.postmaster()
            os.kill(killed, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE):
                while not await answers(made, killed):  # noqa: ASYNC110  # nothing tells us
                    await asyncio.sleep(0.05)
        watchdog.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watchdog
    finally:
        made.close()

    assert longest() < 0.25


async def answers(made: main.Ground, killed: int) -> bool:
    try:
        connection = await made.source.connect()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    await connection.close()
    pid = (made.directory / "data/postmaster.pid").read_text().partition("\n")[0]
    return pid != str(killed)


@asynccontextmanager
async def lag() -> AsyncIterator[Callable[[], float]]:
    """The longest time for which the event loop did not come round, without the time it waited for a processor."""
    worst = 0.0

    def clock() -> float:
        waited = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
        return time.monotonic() - waited / 1e9

    async def measure() -> None:
        nonlocal worst
        while True:
            began = clock()
            await asyncio.sleep(0.005)
            worst = max(worst, clock() - began)

    task = asyncio.create_task(measure())
    yield lambda: worst
    task.cancel()


@on_linux
@pytest.mark.slow
async def test_three_processes_have_room_for_their_connections(folder: Path) -> None:
    house = House(folder, workers=3, WABERY_MAX_CONNECTIONS="20")
    try:
        await house.start()
        tenant = await house.tenant()
        async with aiohttp.ClientSession(house.url) as session:
            minted = await asyncio.gather(*[mint(session, tenant.secret_key) for _ in range(60)])
            listed = await asyncio.gather(*[listing(session, tenant.secret_key) for _ in range(120)])
        (allowed,) = await house.rows("select current_setting('max_connections')::int as most")
    finally:
        house.stop()

    assert len(set(minted)) == 60
    assert set(listed) == {200}
    assert allowed["most"] >= 3 * (20 + 2 + main._LANES)
    assert "too many clients" not in (house.data / "postgres.log").read_text()


async def mint(session: aiohttp.ClientSession, key: str) -> str:
    headers = {"Authorization": f"Bearer {key}"}
    reference = f"user_{time.monotonic_ns()}"
    async with session.post(INTENTS, json={"customer_reference": reference}, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return str((await answer.json())["id"])


async def read(session: aiohttp.ClientSession, key: str, intent: str, **query: str) -> str:
    headers = {"Authorization": f"Bearer {key}"}
    async with session.get(f"{INTENTS}/{intent}", headers=headers, params=query) as answer:
        assert answer.status == 200, await answer.text()
        return str((await answer.json())["status"])


async def wait_for(session: aiohttp.ClientSession, key: str, intent: str) -> str | None:
    try:
        return await read(session, key, intent, wait="25")
    except aiohttp.ClientError:
        return None


async def listing(session: aiohttp.ClientSession, key: str) -> int:
    async with session.get(INTENTS, headers={"Authorization": f"Bearer {key}"}) as answer:
        await answer.read()
        return answer.status


# The supervisor alone, with programs in place of the server


SUPERVISE = """
import os, sys
from wabery_server import cli, logs, main
from wabery_server.settings import Settings
logs.configure("info")
sys.executable = os.environ.pop("PROGRAM")
limits = {name: float(os.environ.pop(name)) for name in ("kill_after", "give_up_after") if name in os.environ}
cli._served(lambda: sys.exit(main.supervise(Settings.load(os.environ), **limits)))
"""
"""The supervisor with another program as its server process: a shell script, whose standard input is the socket pair."""

READY = "printf + >&0"


class Supervised:
    """A supervisor whose server processes are a shell script; `$RUNS` counts them."""

    def __init__(self, folder: Path, script: str, traps: str = "", **limits: float) -> None:
        program = folder / "program"
        runs = folder / "runs"
        runs.touch()
        program.write_text(f"#!/bin/sh\n{traps}\necho run >> {runs}\nRUNS=$(wc -l < {runs})\n{script}\n")
        program.chmod(0o755)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environment = {
            "PATH": os.environ["PATH"],
            "PROGRAM": str(program),
            "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
            "WABERY_SECRET_KEY": generate(),
            "WABERY_PORT": str(port),
            "WABERY_WORKERS": "2",
            **{name: str(seconds) for name, seconds in limits.items()},
        }
        self.runs = runs
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-c", SUPERVISE], env=environment, stderr=log)

    def log(self) -> str:
        return self._log.read_text()

    def started(self, number: int) -> None:
        until(lambda: len(self.runs.read_text().splitlines()) >= number)

    def end(self) -> int:
        return self.process.wait(PATIENCE)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    made: list[Supervised] = []

    def start(script: str, traps: str = "", **limits: float) -> Supervised:
        made.append(Supervised(tmp_path, script, traps, **limits))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        one.process.wait()


@pytest.mark.parametrize("code", [2, 7])
def test_what_keeps_a_process_from_starting_is_said_once_and_ends_the_supervisor(
    supervised: Callable[..., Supervised], code: int
) -> None:
    one = supervised(f"echo 'wabery: a sentence' >&2; exit {code}")

    assert one.end() == code
    assert one.log() == "wabery: a sentence\n"
    assert one.runs.read_text() == "run\n"


@pytest.mark.parametrize(("script", "code"), [("exit 1", "1"), ("exit 0", "0"), ("kill -9 $$", "-9")])
def test_a_process_that_ends_without_a_word_before_it_is_ready_is_named(
    supervised: Callable[..., Supervised], script: str, code: str
) -> None:
    one = supervised(script)

    assert one.end() == 7
    assert one.log().count("\n") == 1
    assert f"ended with exit code {code} before it was ready" in one.log()


def test_the_pause_before_a_restart_doubles(supervised: Callable[..., Supervised]) -> None:
    one = supervised(f"{READY}; [ $RUNS -eq 2 ] && exec sleep 60; exit 3")

    one.started(5)
    one.process.terminate()

    assert one.end() == 0
    pauses = [float(pause) for pause in re.findall(r'"restart_in":([0-9.]+)', one.log())]
    assert pauses[:3] == [0.2, 0.4, 0.8]


def test_a_supervisor_without_any_process_that_starts_gives_up(
    supervised: Callable[..., Supervised],
) -> None:
    one = supervised(f"[ $RUNS -le 2 ] && {READY}; sleep 0.2; exit 3", give_up_after=1)

    assert one.end() == 7
    assert "ended with exit code 3 before it was ready" in one.log()


def test_while_one_process_serves_the_others_may_fail_for_as_long_as_they_like(
    supervised: Callable[..., Supervised],
) -> None:
    one = supervised(f"[ $RUNS -eq 1 ] && {READY} && exec sleep 60; exit 3", give_up_after=0)

    one.started(4)
    one.process.terminate()

    assert one.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_does_not_stop_is_killed(
    supervised: Callable[..., Supervised], number: signal.Signals
) -> None:
    one = supervised(f"{READY}; while :; do sleep 0.1; done", "trap '' TERM INT", kill_after=0.5)

    one.started(2)
    one.process.send_signal(number)

    assert one.end() == 0
    assert '"event":"server_process_killed"' in one.log()


def test_a_second_signal_kills_what_is_still_draining(supervised: Callable[..., Supervised]) -> None:
    one = supervised(f"{READY}; while :; do sleep 0.05; done", "trap 'echo stopping >&2' TERM")

    one.started(2)
    one.process.send_signal(signal.SIGINT)
    until(lambda: one.log().count("stopping") == 2)
    one.process.send_signal(signal.SIGINT)

    assert one.end() == 0


def test_a_process_reads_the_end_of_its_input_when_the_supervisor_is_gone(
    supervised: Callable[..., Supervised],
) -> None:
    one = supervised(f"{READY}; echo $$ >> $0.pids; cat > /dev/null; echo orphan >> $0.orphans")

    one.started(2)
    one.process.kill()

    orphans = one.runs.with_name("program.orphans")
    until(lambda: orphans.exists() and orphans.read_text().count("orphan") == 2)


TETHERED = """
import os, signal, sys, time
from wabery_server import main
main._ORPHAN_SECONDS = 0.2
main.tether()
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
main.say_ready()
while True:
    time.sleep(60)
"""


@pytest.mark.parametrize(("word", "code"), [("hears", -signal.SIGTERM), ("deaf", 1)])
def test_a_tethered_process_ends_whatever_it_is_doing(word: str, code: int) -> None:
    ours, theirs = socket.socketpair()
    with subprocess.Popen(
        [sys.executable, "-c", TETHERED, word], stdin=theirs, stderr=subprocess.DEVNULL
    ) as process:
        theirs.close()
        assert ours.recv(1) == b"+"

        ours.close()

        assert process.wait(PATIENCE) == code


# Connections


@pytest.mark.parametrize(
    ("allowed", "workers", "size"),
    [
        (100, 1, 12),
        (100, 2, 12),
        (97, 3, 12),
        (97, 5, 4),
        (200, 8, 10),
        (20, 1, 3),
    ],
)
def test_a_pool_is_made_to_fit_what_the_database_allows(allowed: int, workers: int, size: int) -> None:
    lanes = 14 - (2 + main._LANES)  # the figures above are for 14 connections beside the pool

    found = main.fitting_pool(Settings(workers=workers), allowed - workers * lanes)

    assert found == size
    assert workers * (found + 2 + main._LANES) <= allowed - workers * lanes


@pytest.mark.parametrize(("allowed", "workers"), [(17, 1), (97, 8), (0, 1)])
def test_processes_that_cannot_fit_are_refused_with_the_numbers(allowed: int, workers: int) -> None:
    needed = workers * (2 + main._LANES + 1) + main._LEAST_SPARE_CONNECTIONS

    with pytest.raises(main.CannotStart, match=f"allows this user {allowed} .* {workers} .* least {needed}"):
        main.fitting_pool(Settings(workers=workers), allowed)


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_the_embedded_server_has_room_for_all_processes(workers: int) -> None:
    settings = Settings(workers=workers)

    allowed = int(main._embedded_settings(settings)["max_connections"])

    assert main.fitting_pool(settings, allowed) == settings.max_connections
    assert allowed - main._connections(settings) >= main._SPARE_CONNECTIONS


async def test_a_process_opens_no_more_connections_than_are_counted(app: App) -> None:
    service = app.service
    async with Poster(policy(service.settings, livemode=False)) as poster:
        Worker(
            database=service.database,
            signals=service.signals,
            clock=service.clock,
            keyring=service.keyring,
            settings=service.settings,
            live=poster,
            test=poster,
        )

    lanes = len(service.database._lanes)
    signals, readiness = 1, 1

    assert lanes + signals + readiness <= service.settings.read_lanes + main._LANES


async def test_the_database_says_how_many_connections_a_user_may_open(pg: Embedded) -> None:
    admin = await asyncpg.connect(**pg.address.dsn_kwargs())
    try:
        assert await main._allowed_connections(admin) == 120
        await admin.execute("create role few login connection limit 7")
        few = await asyncpg.connect(**{**pg.address.dsn_kwargs(), "user": "few"})
        assert await main._allowed_connections(few) == 7
        await few.close()
        await admin.execute("alter role few connection limit -1")
        many = await asyncpg.connect(**{**pg.address.dsn_kwargs(), "user": "few"})
        assert await main._allowed_connections(many) == 117  # three are reserved for superusers
        await many.close()
    finally:
        await admin.execute("drop role if exists few")
        await admin.close()
