"""Clients that connect and say nothing, say too much, say it slowly, or do not listen: what each costs, and the others.

The first half runs the HTTP server alone with shortened times; the second a real `wabery serve`, whose memory, descriptors and
processor time are measured from outside.
"""

import asyncio
import contextlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from starlette.types import Receive, Scope, Send
from wire import client, get, post, replies, said, serving
from world import INTENTS, App, Tenant

from wabery_server import metrics
from wabery_server.api.service import Place, Watch
from wabery_server.db import Source
from wabery_server.db.signals import Signals
from wabery_server.secrets import Keyring, Subkeys, generate

pytestmark = pytest.mark.hostile

PATIENCE = 20
MIB = 1 << 20
CONTENT = b"Content-Length: %d\r\n"


@asynccontextmanager
async def counted(name: str, *, at_least: int = 1) -> AsyncIterator[None]:
    """A bound is hit in the block."""
    before = metrics.value(name)
    yield
    assert metrics.value(name) >= before + at_least


async def silence(address: tuple[str, int], *parts: bytes, every: float = 0.0) -> tuple[bytes, float]:
    """Sends the parts, then nothing; returns what came back until the server closed, and after how many seconds."""
    started = time.monotonic()
    async with client(address) as quiet:

        async def sending() -> None:
            for part in parts:
                await quiet.send(part)
                await asyncio.sleep(every)

        trickle = asyncio.ensure_future(sending())
        received = await quiet.rest()
        trickle.cancel()
        await asyncio.gather(trickle, return_exceptions=True)
    return received, time.monotonic() - started


# Slow clients


async def test_a_silent_connection_is_closed() -> None:
    async with serving(first_byte=0.3) as http, counted("http_silent_connections"):
        received, seconds = await silence(http.address)

    assert received == b""
    assert 0.25 < seconds < 3


@pytest.mark.parametrize("every", [0.0, 0.05], ids=["stalled", "trickled"])
async def test_a_head_has_its_time_however_it_trickles(every: float) -> None:
    head = [bytes([byte]) for byte in b"GET /a HTTP/1.1\r\nHost: " + b"x" * 200]

    async with serving(head_seconds=0.4) as http, counted("http_slow_heads"):
        received, seconds = await silence(http.address, *head, every=every)

    assert [reply.status for reply in replies(received)] == [408]
    assert 0.3 < seconds < 4


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
@pytest.mark.parametrize("every", [0.0, 0.05], ids=["stalled", "trickled"])
async def test_a_body_that_stalls_or_trickles_is_given_up(every: float, *, chunked: bool) -> None:
    head = post(b"Transfer-Encoding: chunked\r\n" if chunked else CONTENT % 100_000)
    body = [b"1\r\nx\r\n" if chunked else b"x"] * 200

    async with serving(body_stall=0.4) as http, counted("http_slow_bodies"):
        received, seconds = await silence(http.address, head, *body, every=every)

    (reply,) = replies(received)
    assert (reply.status, reply.body, reply.get("connection")) == (408, b"request_timeout", "close")
    assert seconds < 4


async def test_a_body_that_goes_on_may_take_longer_than_a_stall_but_not_for_ever() -> None:
    parts = [b"x" * 5_000] * 20
    head = post(CONTENT % 100_000)

    async with serving(body_stall=0.5) as http, client(http.address) as slow:
        await slow.send(head)
        for part in parts:
            await slow.send(part)
            await asyncio.sleep(0.05)
        patient = await slow.reply()
    async with serving(body_stall=0.3, body_seconds=0.2) as http:
        received, _ = await silence(http.address, head, *parts, every=0.1)

    assert len(json.loads(patient.body)["body"]) == 100_000
    assert [reply.status for reply in replies(received)] == [408]


async def test_a_kept_connection_is_closed_when_it_idles() -> None:
    async with serving(idle=0.3) as http:
        received, seconds = await silence(http.address, get())

    assert [(reply.status, reply.get("connection")) for reply in replies(received)] == [(200, None)]
    assert 0.25 < seconds < 3


async def test_a_client_that_does_not_read_its_answer_is_cut() -> None:
    async def much(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(200):
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    before = metrics.value("http_slow_readers")

    async with serving(much, write_stall=0.3) as http:
        with socket.create_connection(http.address) as deaf:
            deaf.sendall(get())
            await until(lambda: metrics.value("http_slow_readers") > before, "the connection is cut")
        await until(lambda: not http.server.connections, "it is closed")


async def test_an_outage_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    bound = metrics.Bound(metrics.Counter("some", "Some."), lambda: now)

    for moment in (0.0, 1.0, 59.0, 100.0, 150.0, 300.0):
        now = moment
        bound.hit(peer="203.0.113.7")

    lines = [record.facts for record in caplog.records if record.message == "bound_reached"]  # type: ignore[attr-defined]  # ours
    assert [(line["bound"], line["hits"], line["peer"]) for line in lines] == [
        ("some", 1, "203.0.113.7"),
        ("some", 6, "203.0.113.7"),
    ]


# Greedy clients


async def test_waiting_requests_are_counted_for_their_address_their_key_and_the_process(
    signals: Signals,
) -> None:
    def place(intent: int, address: str, key: str) -> Place:
        return Place.of(f"reg_{intent}", address, key, proven=True)

    watch = Watch(signals, per_address=50, per_key=1_000, connections=80)
    event = asyncio.Event()
    assert (watch.per_address, watch.per_key, watch.total) == (10, 40, 60)

    for number in range(40):
        one = place(number, f"203.0.113.{number // 10}", "key_a")
        assert watch.room(one)
        watch.enter(one, event)
    full_key = watch.room(place(99, "198.51.100.1", "key_a"))
    for number in range(20):
        one = place(number, f"2001:db8:0:{number // 10}::{number}", "key_b")
        assert watch.room(one)
        watch.enter(one, event)
    full_process = watch.room(place(99, "198.51.100.1", "key_c"))
    watch.leave(place(0, "203.0.113.0", "key_a"), event)

    assert not full_key
    assert not full_process
    assert not watch.room(place(99, "2001:db8::ffff", "key_c")), "the household has ten"
    assert watch.room(place(99, "198.51.100.1", "key_c"))
    assert watch.room(place(99, "203.0.113.0", "key_a"))


async def test_a_full_server_says_so_and_makes_room_for_who_speaks() -> None:
    async with (
        serving(connections=10) as http,
        contextlib.AsyncExitStack() as stack,
        counted("http_connections_over_limit"),
    ):
        for _ in range(10):
            await stack.enter_async_context(client(http.address))
        await until(lambda: len(http.server.connections) == 10, "all are connected")
        # They are too young to be closed for another one.
        turned_away, _ = await silence(http.address)
        await asyncio.sleep(1.1)
        (served,) = replies(await said(http.address, [get(head=b"Connection: close\r\n")]))

    assert [(reply.status, reply.body) for reply in replies(turned_away)] == [(503, b"unavailable")]
    assert served.status == 200


async def test_bodies_that_do_not_end_cannot_take_all_memory() -> None:
    """The address that holds most gives way, and a client of another one is served."""
    size = 100_000

    async with (
        serving(bodies=10 * size) as http,
        contextlib.AsyncExitStack() as stack,
        counted("http_body_memory", at_least=3),
    ):
        greedy = [await stack.enter_async_context(client(http.address)) for _ in range(14)]
        for one in greedy:
            await one.send(post(CONTENT % (2 * size)) + b"x" * size)
        first = await greedy[0].reply()
        reader, writer = await asyncio.open_connection(*http.address, local_addr=("127.0.0.77", 0))
        body = b"y" * (2 * size)
        writer.write(post((CONTENT % len(body)) + b"Connection: close\r\n"))
        for at in range(0, len(body), 50_000):
            writer.write(body[at : at + 50_000])
            await writer.drain()
            await asyncio.sleep(0.02)
        (honest,) = replies(await asyncio.wait_for(reader.read(), PATIENCE))
        writer.close()
        held = http.server.memory.total

    assert (first.status, first.body) == (503, b"unavailable")
    assert honest.status == 200
    assert held <= 10 * size
    assert http.server.memory.total == 0


async def test_a_body_whose_client_goes_away_takes_no_memory_afterwards() -> None:
    async with serving() as http:
        with socket.create_connection(http.address) as leaving:
            leaving.sendall(post(CONTENT % 100_000) + b"x" * 50_000)
            await until(lambda: http.server.memory.total > 0, "the body is counted")
            # Closed by a reset, not by an orderly end.
            leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await until(lambda: http.server.memory.total == 0, "it is counted no more")


async def test_a_client_that_sends_on_and_never_reads_is_not_read_on_from() -> None:
    requests = get() * 10_000

    async with serving() as http:
        with socket.create_connection(http.address) as deaf:
            deaf.setblocking(False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    while True:
                        await asyncio.get_running_loop().sock_sendall(deaf, requests)
            (connection,) = http.server.connections
            kept = len(connection._buffer)

    assert 0 < kept <= 65_536 + 32_768, "more than one read, and the beginning of a head before it"


# A real server


@dataclass
class Served:
    """A `wabery serve` of its own, on the test's database."""

    address: tuple[str, int]
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    def memory(self) -> int:
        """Resident bytes."""
        found = re.search(r"VmRSS:\s+([0-9]+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found
        return int(found[1]) * 1024

    def peak(self) -> int:
        """The most resident bytes since `forget_peak`."""
        found = re.search(r"VmHWM:\s+([0-9]+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found
        return int(found[1]) * 1024

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def processor(self) -> float:
        """Seconds of processor time."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def logged(self, bound: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("bound") == bound]


@pytest.fixture
def secret() -> str:
    return generate()


@pytest.fixture
def keyring(secret: str) -> Keyring:
    return Keyring(Subkeys(secret))


@pytest.fixture
def descriptors() -> int:
    """The soft and hard limit of the server's descriptors."""
    return 1024


@pytest.fixture
async def served(
    descriptors: int, app: App, source: Source, secret: str, tmp_path: Path
) -> AsyncIterator[Served]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    parts = source.parts
    assert parts is not None
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WABERY_")}
    settings = {
        "DATABASE_URL": f"postgresql://{parts['user']}@/{parts['database']}?host={parts['host']}&port={parts['port']}",
        "WABERY_SECRET_KEY": secret,
        "WABERY_PORT": str(port),
        "WABERY_PUBLISHABLE_IP_PER_MINUTE": "100000",
        "WABERY_DELIVER": "false",
    }

    command = [
        "sh",
        "-c",
        f'ulimit -n {descriptors} && exec "$@"',
        "sh",
        sys.executable,
        "-m",
        "wabery_server",
    ]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "serve"], env=kept | settings, stderr=file)  # noqa: ASYNC220  # returns at once
    made = Served(("127.0.0.1", port), process, log)
    try:
        async with aiohttp.ClientSession() as session:
            await until(lambda: _answers(session, made), "the server is ready")
        yield made
    finally:
        process.terminate()
        process.wait(PATIENCE)


async def _answers(session: aiohttp.ClientSession, made: Served) -> bool:
    assert made.process.poll() is None, made.log.read_text()[-2000:]
    try:
        async with session.get(f"{made.url}/readyz") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    """Another process, or a socket, has no event for us to wait for."""
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                found = condition()
                if found if isinstance(found, bool) else await found:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {PATIENCE} s: {what}") from None


@dataclass
class Others:
    """How another client fares meanwhile: it polls one intent on a connection of its own."""

    waits: list[float]
    statuses: Counter[int]

    def wait(self) -> float:
        """What nine of ten answers took at most, in seconds: one may meet a pause of this machine's own."""
        assert len(self.waits) >= 10, "the other client was not served"
        return sorted(self.waits)[len(self.waits) * 9 // 10]


@asynccontextmanager
async def others(served: Served, tenant: Tenant, intent_id: str) -> AsyncIterator[Others]:
    found = Others([], Counter())
    stop = asyncio.Event()
    headers = {"Authorization": f"Bearer {tenant.secret_key}"}

    async def poll() -> None:
        async with aiohttp.ClientSession(served.url, headers=headers) as session:
            while not stop.is_set():
                started = time.perf_counter()
                async with session.get(f"{INTENTS}/{intent_id}") as answer:
                    found.statuses[answer.status] += 1
                    await answer.read()
                found.waits.append(time.perf_counter() - started)
                await asyncio.sleep(0.01)

    polling = asyncio.create_task(poll())
    try:
        await until(lambda: len(found.waits) >= 3, "the other client is served")
        found.waits.clear()  # the first request fills caches
        yield found
        await until(lambda: len(found.waits) >= 30, "the other client is still served")
    finally:
        stop.set()
        await asyncio.wait_for(polling, PATIENCE)


def flood(address: tuple[str, int], data: bytes, times: int, seconds: float) -> bytes:
    """Sends data again and again, for `seconds` at most; returns what came back first."""
    end = time.monotonic() + seconds
    with socket.create_connection(address, source_address=("127.0.0.9", 0)) as one:
        one.settimeout(0.3)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(times):
                view = memoryview(data)
                while view and time.monotonic() < end:
                    with contextlib.suppress(TimeoutError):
                        view = view[one.send(view) :]
        with contextlib.suppress(OSError):
            return one.recv(65_536)
    return b""


FLOODS = {
    "24 MB of requests whose answers are not read": (get(b"GET /livez HTTP/1.1") * 40_000, 26, 200),
    "a header value of 60 MB": (b"x" * MIB, 60, 431),
    "headers without end": (b"A: b\r\n" * 100_000, 100, 431),
    "a URL without end": (b"a&" * 500_000, 60, 431),
    "one chunk after the other": (b"1\r\nx\r\n" * 100_000, 40, 401),
    "blank lines without end": (b"\r\n" * 500_000, 60, None),
}
BEGINNINGS = {
    "a header value of 60 MB": b"GET /livez HTTP/1.1\r\nA: ",
    "headers without end": b"GET /livez HTTP/1.1\r\n",
    "a URL without end": b"GET /livez?",
    "one chunk after the other": b"POST /v1/registration-intents HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
}


async def test_a_flood_costs_little_memory_and_time_and_nobody_waits(
    app: App, acme: Tenant, served: Served
) -> None:
    intent = await app.mint(acme.secret_key)

    for name, (data, times, status) in FLOODS.items():
        async with others(served, acme, intent["id"]) as polls:
            served.forget_peak()
            memory, busy = served.memory(), served.processor()
            sent = BEGINNINGS.get(name, b"") + data
            received = await asyncio.to_thread(flood, served.address, sent, times, 1.5)
            grown, spent = served.peak() - memory, served.processor() - busy

        print(
            f"{name}: {grown / MIB:.1f} MiB, {spent:.2f} s of processor, others {polls.wait() * 1000:.0f} ms"
        )
        assert received[9:12] == (b"" if status is None else str(status).encode()), name
        assert grown < 24 * MIB, name
        assert spent < 2.5, name
        assert polls.wait() < 0.25, name
        assert polls.statuses.keys() == {200}, name


async def test_unsigned_bodies_that_never_end_leave_memory_for_others(
    app: App, acme: Tenant, served: Served
) -> None:
    intent = await app.mint(acme.secret_key)
    size = 4 * MIB
    head = (
        b"POST /inbound/whatsapp HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: sha256=00\r\nContent-Length: %d\r\n\r\n"
        % size
    )
    served.forget_peak()
    memory = served.memory()

    unfinished: list[asyncio.StreamWriter] = []

    async with others(served, acme, intent["id"]) as polls:
        for _ in range(40):
            _, writer = await asyncio.open_connection(*served.address)
            writer.write(head + b"x" * (size - 1))
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(writer.drain(), 5)
            unfinished.append(writer)
        async with aiohttp.ClientSession(served.url) as session:
            sent = {"customer_reference": "user_9", "metadata": {"a": "x" * 15_000}}
            headers = {"Authorization": f"Bearer {acme.secret_key}"}
            async with session.post(INTENTS, json=sent, headers=headers) as answer:
                minted = answer.status

    for writer in unfinished:
        writer.transport.abort()
    print(f"40 bodies: {(served.peak() - memory) / MIB:.1f} MiB, others {polls.wait() * 1000:.0f} ms")
    assert minted == 200
    assert served.peak() - memory < 100 * MIB
    assert polls.wait() < 0.25
    assert len(served.logged("http_body_memory")) == 1


@pytest.mark.parametrize("descriptors", [256, 1024])
@pytest.mark.parametrize("said_so_far", [b"", b"GET /livez HTTP/1.1\r\n"], ids=["silent", "half-sent"])
async def test_more_connections_than_descriptors_leave_room_for_others(
    app: App, acme: Tenant, served: Served, descriptors: int, said_so_far: bytes
) -> None:
    intent = await app.mint(acme.secret_key)

    async with contextlib.AsyncExitStack() as stack:
        for _ in range(descriptors + 80):
            with contextlib.suppress(OSError):
                quiet = socket.create_connection(served.address)
                stack.callback(quiet.close)
                quiet.sendall(said_so_far)
        most = served.descriptors()
        await asyncio.sleep(1.2)  # as old as a connection must be to be closed for another one
        async with others(served, acme, intent["id"]) as polls, aiohttp.ClientSession(served.url) as session:
            for _ in range(20):
                headers = {"Authorization": f"Bearer {acme.secret_key}", "Connection": "close"}
                async with session.get(f"{INTENTS}/{intent['id']}", headers=headers) as answer:
                    assert answer.status == 200

    assert most <= descriptors * 0.95
    assert polls.statuses.keys() == {200}
    assert polls.wait() < 0.25
    (line,) = served.logged("http_connections_over_limit")
    assert (line["peer"], line["limit"]) == ("127.0.0.1", descriptors * 8 // 10)


@pytest.mark.parametrize("descriptors", [256])
async def test_streams_from_one_address_leave_connections_for_others(
    app: App, acme: Tenant, served: Served, descriptors: int
) -> None:
    minted = [await app.mint(acme.publishable_key, f"user_{number}") for number in range(24)]
    headers = {"x-wabery-publishable-key": acme.publishable_key}
    statuses: Counter[int] = Counter()

    async with contextlib.AsyncExitStack() as stack:
        connector = aiohttp.TCPConnector(limit=300, local_addr=("127.0.0.9", 0))
        greedy = await stack.enter_async_context(
            aiohttp.ClientSession(served.url, connector=connector, headers=headers)
        )
        for number in range(233):
            path = f"{INTENTS}/{minted[number % 24]['id']}/events"
            answer = await stack.enter_async_context(greedy.get(path))
            statuses[answer.status] += 1
            if answer.status == 429:
                assert int(answer.headers["Retry-After"]) >= 1
                await answer.read()
        async with others(served, acme, minted[0]["id"]) as polls:
            connector = aiohttp.TCPConnector(local_addr=("127.0.0.77", 0))
            async with (
                aiohttp.ClientSession(served.url, connector=connector, headers=headers) as session,
                session.get(f"{INTENTS}/{minted[0]['id']}/events") as other,
            ):
                assert other.status == 200

    assert statuses == {200: 25, 429: 208}
    assert polls.wait() < 0.25
    assert len(served.logged("waits_per_address")) == 1


READERS = """
import asyncio, sys
request = b"GET /v1/openapi.json HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n"
async def one():
    reader, writer = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
    writer.write(request)
    size = 0
    while part := await reader.read(1 << 20):
        size += len(part)
    print(size)
async def main():
    for _ in range(2):
        await asyncio.gather(*[one() for _ in range(600)])
asyncio.run(main())
"""


async def test_many_who_want_the_contract_at_once_delay_nobody(
    app: App, acme: Tenant, served: Served
) -> None:
    intent = await app.mint(acme.secret_key)

    async with others(served, acme, intent["id"]) as polls:
        readers = await asyncio.create_subprocess_exec(
            sys.executable, "-c", READERS, str(served.address[1]), stdout=subprocess.PIPE
        )
        sizes, _ = await readers.communicate()

    assert min(map(int, sizes.split())) > 100_000
    assert polls.wait() < 0.25
