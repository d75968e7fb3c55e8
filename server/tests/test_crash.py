"""kill -9 under load, of the service and of its PostgreSQL: what was acknowledged is there afterwards, and once."""

import asyncio
import contextlib
import os
import signal
import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from house import PATIENCE, House
from world import INTENTS, Tenant

from wabery_server.contacts import Identity
from wabery_server.phone import payloads

pytestmark = pytest.mark.slow

CLIENTS = 12
ENOUGH = 250
"""Acknowledgements before a kill, and between one and the next."""
ROUNDS = 3


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that any user may enter, since PostgreSQL does not run as root; its path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="wabery-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(params=[1, 2], ids=["1 process", "2 processes"])
async def house(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[House]:
    made = House(folder, workers=request.param)
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
