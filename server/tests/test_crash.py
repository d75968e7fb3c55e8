"""kill -9 under load, of the service and of its PostgreSQL: what was acknowledged is there afterwards, and once."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import aiohttp
import asyncpg
import pytest
from aiohttp import web
from world import INTENTS, Tenant

from wabery_server import accounts
from wabery_server.accounts import KeyDraft, ProjectChanges, ProjectDraft
from wabery_server.contacts import Identity
from wabery_server.db import Database, Row, Source, Tx
from wabery_server.db.embedded import Embedded
from wabery_server.phone import payloads
from wabery_server.secrets import Keyring, Subkeys

pytestmark = pytest.mark.slow

PATIENCE = 40  # seconds until a wait in a test counts as a failure
CLIENTS = 12
ENOUGH = 250
"""Acknowledgements before a kill, and between one and the next."""
ROUNDS = 3


class House:
    """A service on a durable PostgreSQL of its own, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.url = ""
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self._spawn()
        async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session:
            while not await _answers(session, f"{self.url}/readyz"):
                assert self.running(), self._log.read_text()[-2000:]
                await asyncio.sleep(0.02)  # a process that starts has no event for us to wait for

    def _spawn(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WABERY_")}
        kept.pop("DATABASE_URL", None)
        settings = {
            "WABERY_DATA_DIR": str(self.data),
            "WABERY_PORT": str(port),
            "WABERY_DELIVERY_ALLOW_NETWORKS": "127.0.0.0/8",
            "WABERY_DELIVERY_ALLOW_PORTS": "any",
        }
        command = [sys.executable, "-m", "wabery_server", "serve"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=kept | settings, stderr=log)  # this very program

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE)

    def stop(self) -> None:
        """As an operator would; safe to repeat."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE)

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


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that any user may enter, since PostgreSQL does not run as root; its path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="wabery-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
async def house(folder: Path) -> AsyncIterator[House]:
    made = House(folder)
    try:
        await made.start()
        yield made
    finally:
        made.stop()


@dataclass
class Load:
    """Clients that mint, join and write, and remember what they were told."""

    tenant: Tenant
    minted: set[str] = field(default_factory=set)
    mints: dict[str, str] = field(default_factory=dict)
    """Of every mint sent with one: customer reference to Idempotency-Key."""
    unanswered_mints: set[str] = field(default_factory=set)
    webhooks: dict[str, bytes] = field(default_factory=dict)
    """Message id to body, of all that were sent."""
    joins: dict[str, str] = field(default_factory=dict)
    """Message id to the intent that it is to join."""
    taken: set[str] = field(default_factory=set)
    """Message ids that were answered with 200."""
    broken: int = 0
    """Clients whose connection broke under the last load."""
    _clients: "list[asyncio.Task[bool]]" = field(default_factory=list)
    _serial: Iterator[int] = field(default_factory=count)
    _acknowledged: int = 0
    _targets: list[tuple[int, asyncio.Event]] = field(default_factory=list)

    @asynccontextmanager
    async def on(self, url: str) -> AsyncIterator[None]:
        """Under load until the end of the block; a client whose connection breaks sends nothing more."""
        stop = asyncio.Event()
        async with aiohttp.ClientSession(url) as session:
            self._clients = [asyncio.create_task(self._client(session, stop)) for _ in range(CLIENTS)]
            try:
                yield
            finally:
                stop.set()
                async with asyncio.timeout(PATIENCE):
                    broken = await asyncio.gather(*self._clients)
        self.broken = sum(broken)

    async def cut_off(self) -> None:
        """Waits until the connection of every client has broken; whoever reads an older answer first still sends on."""
        await asyncio.wait(self._clients, timeout=PATIENCE)

    async def more(self, number: int) -> None:
        """Waits for so many acknowledgements from now on."""
        reached = asyncio.Event()
        self._targets.append((self._acknowledged + number, reached))
        await asyncio.wait_for(reached.wait(), PATIENCE)

    async def send_again(self, url: str) -> None:
        """What nobody answered, as Meta and our SDKs would."""
        async with aiohttp.ClientSession(url) as session:
            for message_id in sorted(self.webhooks.keys() - self.taken):
                assert await self._send(session, message_id)
            for reference in sorted(self.unanswered_mints & self.mints.keys()):
                assert await self._mint(session, reference, self.mints[reference])

    async def _client(self, session: aiohttp.ClientSession, stop: asyncio.Event) -> bool:
        """Whether the connection broke."""
        try:
            while not stop.is_set():
                number = next(self._serial)
                reference = f"user_{number}"
                minted = await self._mint(session, reference, f"key-{number}" if number % 2 else None)
                if minted is not None:
                    intent_id, token = minted
                    joining = self._compose(number, f"Connect my account: {token}")
                    self.joins[joining] = intent_id
                    await self._send(session, joining)
                await self._send(session, self._compose(number, "Hello!"))
        except aiohttp.ClientError:
            return True
        return False

    async def _mint(
        self, session: aiohttp.ClientSession, reference: str, key: str | None
    ) -> tuple[str, str] | None:
        headers = {"Authorization": f"Bearer {self.tenant.secret_key}"}
        if key is not None:
            headers["Idempotency-Key"] = self.mints[reference] = key
        self.unanswered_mints.add(reference)
        async with session.post(INTENTS, json={"customer_reference": reference}, headers=headers) as answer:
            if not await self._acknowledges(answer):
                return None
            intent = await answer.json()
        self.unanswered_mints.discard(reference)
        self.minted.add(intent["id"])
        return intent["id"], intent["token"]

    def _compose(self, number: int, text: str) -> str:
        message_id = payloads.new_message_id()
        self.webhooks[message_id] = payloads.meta_text(
            phone_number_id=self.tenant.channel.phone_number_id,
            display_phone_number=self.tenant.channel.display_phone_number,
            waba_id=self.tenant.channel.waba_id,
            text=text,
            sender=Identity(bsuid=f"DE.9{number:09d}", phone=f"49{number:09d}", profile_name="Ana"),
            message_id=message_id,
            at=datetime.now(UTC),
        )
        return message_id

    async def _send(self, session: aiohttp.ClientSession, message_id: str) -> bool:
        body = self.webhooks[message_id]
        headers = payloads.sign(self.tenant.app_secret.encode(), body)
        async with session.post("/inbound/whatsapp", data=body, headers=headers) as answer:
            if not await self._acknowledges(answer):
                return False
            await answer.read()
        self.taken.add(message_id)
        return True

    async def _acknowledges(self, answer: aiohttp.ClientResponse) -> bool:
        """200, or the contract's 503; anything else fails the test."""
        if answer.status == 503:
            assert (await answer.json())["error"] == "unavailable"
            assert int(answer.headers["Retry-After"]) >= 1
            return False
        assert answer.status == 200, await answer.text()
        self._acknowledged += 1
        for target, reached in self._targets:
            if self._acknowledged >= target:
                reached.set()
        return True


async def assert_kept(house: House, load: Load) -> None:
    """Everything acknowledged is there, and nothing is there twice."""
    project_id = load.tenant.project.id
    intents = await house.rows("select id, status, customer_reference from registration_intents")
    messages = await house.rows("select provider_message_id from messages where project_id = $1", project_id)
    links = await house.rows("select registration_intent_id from links")
    events = await house.rows("select type, registration_intent_id from events")

    assert load.minted <= {row["id"] for row in intents}
    references = Counter(row["customer_reference"] for row in intents)
    assert set(references.values()) == {1}
    stored = Counter(row["provider_message_id"] for row in messages)
    assert load.taken <= stored.keys() <= load.webhooks.keys()
    assert set(stored.values()) == {1}

    acknowledged = {load.joins[message_id] for message_id in load.taken & load.joins.keys()}
    joined = {row["id"] for row in intents if row["status"] == "JOINED"}
    assert acknowledged <= joined
    once = dict.fromkeys(joined, 1)
    assert Counter(row["registration_intent_id"] for row in links) == once
    told = Counter(row["type"] for row in events)
    announced = [row["registration_intent_id"] for row in events if row["type"] == "participant.joined"]
    assert Counter(announced) == once
    assert told["message.received"] == len(stored) - len(joined)


async def test_kill_9_of_the_service_loses_nothing_it_acknowledged(house: House) -> None:
    load = Load(await house.tenant())

    for number in range(ROUNDS):
        async with load.on(house.url):
            await load.more(ENOUGH)
            postmaster = house.postmaster()
            house.kill()
            if number == ROUNDS - 1:
                with contextlib.suppress(ProcessLookupError):  # it stops when its owner is dead
                    os.kill(postmaster, signal.SIGKILL)
            await load.cut_off()
        assert load.broken == CLIENTS
        await house.start()
        await assert_kept(house, load)
        await load.send_again(house.url)

        assert load.taken == load.webhooks.keys()
        await assert_kept(house, load)


async def test_kill_9_of_postgresql_is_survived_by_the_service_and_loses_nothing(house: House) -> None:
    load = Load(await house.tenant())

    async with load.on(house.url):
        for _ in range(ROUNDS):
            await load.more(ENOUGH)
            killed = house.postmaster()
            os.kill(killed, signal.SIGKILL)
            await load.more(ENOUGH)
            assert house.postmaster() != killed

    assert load.broken == 0
    assert house.running()
    await assert_kept(house, load)
    await load.send_again(house.url)
    assert load.taken == load.webhooks.keys()
    await assert_kept(house, load)


@dataclass
class Receiver:
    """An app's server that answers `prompt` deliveries at once and leaves the others waiting until `released`."""

    prompt: int
    url: str = ""
    got: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    requests: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        async with self._news:
            self.got[request.headers["webhook-id"]].append(body)
            self.requests += 1
            prompt = self.requests <= self.prompt
            self._news.notify_all()
        if not prompt:
            await self.released.wait()
        return web.Response()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(condition)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver(prompt=10)
    runner = web.ServerRunner(web.Server(made.serve), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    made.url = f"http://{host}:{port}/hook"
    yield made
    made.released.set()
    await runner.cleanup()


async def test_kill_9_of_the_service_among_deliveries_loses_none_and_changes_no_byte(
    house: House, receiver: Receiver
) -> None:
    load = Load(await house.tenant(receiver.url))
    async with load.on(house.url):
        await load.more(90)
        await receiver.until(lambda: len(receiver.got) >= receiver.prompt + 10)
        house.kill()
    bodies = {row["id"]: row["body"] for row in await house.rows("select id, body from events")}
    pending = await house.rows(
        "update deliveries set due_at = now() where state = 'pending' returning event_id"  # no lease is waited for
    )
    before = {event_id: len(got) for event_id, got in receiver.got.items()}
    again = {row["event_id"] for row in pending} & before.keys()
    receiver.released.set()

    await house.start()
    await receiver.until(
        lambda: (
            receiver.got.keys() >= bodies.keys()
            and all(len(receiver.got[event_id]) > before[event_id] for event_id in again)
        )
    )
    house.stop()  # which finishes and settles what is under way

    assert len(again) >= 10
    assert receiver.got.keys() == bodies.keys()
    assert all(set(got) == {bodies[event_id]} for event_id, got in receiver.got.items())
    states = await house.rows("select distinct state from deliveries")
    assert [row["state"] for row in states] == ["delivered"]


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False
