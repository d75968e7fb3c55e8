"""The worker: what is due arrives, signed and unchanged, whoever is slow, broken or killed meanwhile."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
from aiohttp import web

from wabery_server import accounts, ids, outbox, worker
from wabery_server.accounts import Project, ProjectChanges, ProjectDraft
from wabery_server.clock import MovableClock
from wabery_server.db import Database, Source, Tx
from wabery_server.db.embedded import Embedded
from wabery_server.db.migrate import migrate
from wabery_server.db.signals import Signals
from wabery_server.outbox import Claimed, Event, EventType, Queue, State
from wabery_server.secrets import Keyring, Subkeys, generate
from wabery_server.settings import Settings
from wabery_server.webhooks import ATTEMPTS, LOOPBACK, Limits, Outcome, Policy, Poster, Result, delay_after
from wabery_server.webhooks.guard import Lookup, Resolver, system_lookup
from wabery_server.worker import Worker, judge

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
PATIENCE = 20.0
"""Seconds after which a test gives up waiting; nothing that passes waits so long."""


@dataclass(frozen=True)
class Request:
    headers: dict[str, str]
    body: bytes

    @property
    def event_id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """An app's server on loopback. `answer` decides; the default is 200."""

    url: str = ""
    got: list[Request] = field(default_factory=list)
    answer: Callable[[Request], Awaitable[web.Response]] | None = None
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        arrived = Request({name.lower(): value for name, value in request.headers.items()}, body)
        async with self._news:
            self.got.append(arrived)
            self._news.notify_all()
        return await self.answer(arrived) if self.answer else web.Response()

    async def has(self, count: int) -> list[Request]:
        """Waits for so many requests in all."""
        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(lambda: len(self.got) >= count)
        return self.got

    def says(self, status: int, **headers: str) -> None:
        async def answer(_request: Request) -> web.Response:
            return web.Response(
                status=status, headers={name.replace("_", "-"): value for name, value in headers.items()}
            )

        self.answer = answer

    def hangs_until(self, released: asyncio.Event) -> None:
        async def answer(_request: Request) -> web.Response:
            await released.wait()
            return web.Response()

        self.answer = answer


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    runner = web.ServerRunner(web.Server(receiver.serve), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    receiver.url = f"http://{host}:{port}/hook"
    yield receiver
    await runner.cleanup()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as opened:
        yield opened


@dataclass(frozen=True)
class Tenant:
    project: Project
    queue: Queue
    secret: str


class Place:
    """A database with tenants, and the workers that serve it."""

    def __init__(self, database: Database, signals: Signals, keyring: Keyring, clock: MovableClock) -> None:
        self.database = database
        self.signals = signals
        self.keyring = keyring
        self.clock = clock

    async def tenant(
        self, name: str, url: str | None, *, livemode: bool = False, actor: str = "cli:test"
    ) -> Tenant:
        async def make(tx: Tx) -> Tenant:
            await accounts.open_installation(tx, self.keyring, NOON)
            organization_id = await accounts.find_organization(tx)
            draft = ProjectDraft(name=name, livemode=livemode)
            new = accounts.new_project(organization_id, draft, keyring=self.keyring, at=NOON)
            await accounts.create_project(tx, new, keyring=self.keyring, actor=actor, at=NOON)
            changes = ProjectChanges(webhook_url=url)
            _, endpoint = await accounts.update_project(
                tx, new.project.id, changes, keyring=self.keyring, actor="cli:test", at=NOON
            )
            (secret,) = accounts.unseal_endpoint_secrets(endpoint, self.keyring)
            return Tenant(new.project, Queue(new.project.id, endpoint.id), secret)

        return await self.database.run(make)

    async def second_endpoint(self, of: Tenant, url: str) -> Queue:
        """One more endpoint of the same project; its secrets do not open, as they are sealed for the first."""
        endpoint_id = ids.new("we", NOON)
        await self.database.run(
            lambda tx: tx.run(
                """
                insert into webhook_endpoints (id, project_id, is_default, url, secrets, secret_version, created_at)
                select $1, project_id, false, $3, secrets, secret_version, created_at
                from webhook_endpoints where id = $2
                """,
                endpoint_id,
                of.queue.endpoint_id,
                url,
            )
        )
        return Queue(of.project.id, endpoint_id)

    async def happen(
        self, to: Tenant, count: int = 1, type: EventType = EventType.MESSAGE_RECEIVED, **payload: object
    ) -> list[Event]:
        """Records events, and tells the workers."""
        at = self.clock.now()
        events = [
            Event(id=ids.new("evt", at), project_id=to.project.id, type=type, payload=payload, created_at=at)
            for _ in range(count)
        ]
        await self.database.run(lambda tx: outbox.record(tx, events, {to.project.id: to.project}))
        self.signals.tell("due")
        return events

    @asynccontextmanager
    async def working(
        self,
        lease: timedelta = worker.LEASE,
        limits: Limits | None = None,
        lookup: Lookup = system_lookup,
        our_fault_limit: timedelta = worker.OUR_FAULT_LIMIT,
        **settings: Any,
    ) -> AsyncIterator[None]:
        """A worker runs; afterwards everything it had under way is settled."""
        policy = Policy(allow_http=True, allow_ports=None, allow_networks=LOOPBACK)
        strict = Policy(allow_ports=None, allow_networks=LOOPBACK)
        async with (
            Poster(strict, limits=limits, lookup=lookup) as live,
            Poster(policy, limits=limits, lookup=lookup) as test,
        ):
            running = asyncio.create_task(
                Worker(
                    database=self.database,
                    signals=self.signals,
                    clock=self.clock,
                    keyring=self.keyring,
                    settings=Settings(sweep_every=timedelta(seconds=0.05), **settings),
                    live=live,
                    test=test,
                    lease=lease,
                    our_fault_limit=our_fault_limit,
                ).run()
            )
            try:
                yield
            finally:
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await running

    async def set_url(self, of: Tenant, url: str | None) -> None:
        """As a PATCH of the project does."""
        changes = ProjectChanges(webhook_url=url)
        await self.database.run(
            lambda tx: accounts.update_project(
                tx, of.project.id, changes, keyring=self.keyring, actor="cli:test", at=NOON
            )
        )

    async def rows(self, sql: str, *values: object) -> list[dict[str, Any]]:
        return [dict(row) for row in await self.database.run(lambda tx: tx.rows(sql, *values))]

    async def delivery(self, of: Queue) -> dict[str, Any]:
        (found,) = await self.rows("select * from deliveries where endpoint_id = $1", of.endpoint_id)
        return found

    async def make_due(self) -> None:
        """Time passes for whatever waits for its next attempt."""
        await self.rows("update deliveries set due_at = now() where due_at is not null")
        self.signals.tell("due")

    async def becomes(self, sql: str, *values: object) -> None:
        """Waits for a change that only the database shows."""
        async with asyncio.timeout(PATIENCE):
            while not (await self.rows(f"select ({sql}) as so", *values))[0]["so"]:  # noqa: ASYNC110  # a row is no Event
                await asyncio.sleep(0.01)


@pytest.fixture
async def place(database: Database, signals: Signals, keyring: Keyring, clock: MovableClock) -> Place:
    return Place(database, signals, keyring, clock)


@pytest.fixture
async def acme(place: Place, receiver: Receiver) -> Tenant:
    return await place.tenant("Acme", receiver.url)


# One delivery


async def test_an_event_arrives_signed_and_byte_for_byte(
    place: Place, receiver: Receiver, acme: Tenant
) -> None:
    async with place.working():
        (event,) = await place.happen(acme, customer_reference="user_123", text="zoë")
        (request,) = await receiver.has(1)

    (stored,) = await place.rows("select body from events")
    (logged,) = await place.rows("select * from delivery_attempts")
    delivery = await place.delivery(acme.queue)
    digest = hmac.digest(acme.secret.encode(), request.body, hashlib.sha256).hex()
    assert request.body == stored["body"]
    assert request.event_id == event.id
    assert request.headers["x-wabery-signature"] == f"sha256={digest}"
    assert standardwebhooks.Webhook(acme.secret).verify(request.body, request.headers)["event"] == event.type
    assert (delivery["state"], delivery["attempts"], delivery["due_at"]) == ("delivered", 1, None)
    assert (logged["number"], logged["outcome"], logged["status"]) == (1, "delivered", 200)
    assert logged["address"] == "127.0.0.1"


async def test_a_poll_finds_what_nobody_announced(place: Place, receiver: Receiver, acme: Tenant) -> None:
    async with place.working():
        await place.happen(acme)
        await receiver.has(1)
        await place.database.run(
            lambda tx: outbox.record(
                tx,
                [
                    Event(
                        id=ids.new("evt", NOON),
                        project_id=acme.project.id,
                        type=EventType.MESSAGE_RECEIVED,
                        payload={},
                        created_at=NOON,
                    )
                ],
                {acme.project.id: acme.project},
            )
        )

        assert len(await receiver.has(2)) == 2


async def test_the_bytes_stay_the_same_on_every_attempt(
    place: Place, receiver: Receiver, acme: Tenant
) -> None:
    receiver.says(500)
    async with place.working():
        await place.happen(acme, text="once and for all")
        for number in (1, 2):
            await receiver.has(number)
            await place.becomes("select attempts = $1 from deliveries", number)
            await place.make_due()
        receiver.says(200)
        await receiver.has(3)

    delivery = await place.delivery(acme.queue)
    outcomes = await place.rows("select number, outcome from delivery_attempts order by number")
    assert len({(request.event_id, request.body) for request in receiver.got}) == 1
    assert len({request.headers["x-wabery-signature"] for request in receiver.got}) == 1
    assert [row["outcome"] for row in outcomes] == ["rejected", "rejected", "delivered"]
    assert (delivery["state"], delivery["attempts"]) == ("delivered", 3)


async def test_thirteen_attempts_at_the_published_times(
    place: Place, receiver: Receiver, acme: Tenant
) -> None:
    receiver.says(500)
    async with place.working():
        await place.happen(acme)
        for number in range(1, ATTEMPTS):
            await receiver.has(number)
            await place.becomes("select attempts = $1 from deliveries", number)
            delivery = await place.delivery(acme.queue)
            (logged,) = await place.rows("select * from delivery_attempts where number = $1", number)
            earliest, latest = delay_after(number, 0.0), delay_after(number, 1.0)
            ended = logged["attempted_at"] + timedelta(milliseconds=logged["elapsed_ms"])
            assert earliest is not None
            assert latest is not None
            slack = timedelta(milliseconds=1)  # elapsed_ms is a real
            assert ended + earliest - slack <= delivery["due_at"] <= ended + latest + slack
            await place.make_due()
        await receiver.has(ATTEMPTS)

    delivery = await place.delivery(acme.queue)
    assert (delivery["state"], delivery["attempts"], delivery["due_at"]) == ("failed", 13, None)
    assert delivery["ended_at"] is not None


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_obeyed(
    place: Place, receiver: Receiver, acme: Tenant, status: int, form: str
) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    receiver.says(status, retry_after="3600" if form == "seconds" else format_datetime(later, usegmt=True))
    async with place.working():
        await place.happen(acme)
        await receiver.has(1)

    delivery = await place.delivery(acme.queue)
    assert delivery["state"] == "pending"
    assert timedelta(minutes=59) < delivery["due_at"] - datetime.now(UTC) < timedelta(minutes=61)


async def test_an_aborted_one_is_not_sent_again(place: Place, receiver: Receiver, acme: Tenant) -> None:
    receiver.says(500, webhook_delivery="abort-message")
    async with place.working():
        await place.happen(acme)
        await receiver.has(1)

    delivery = await place.delivery(acme.queue)
    assert (delivery["state"], delivery["attempts"]) == ("failed", 1)


async def test_live_projects_send_under_the_strict_policy(place: Place, receiver: Receiver) -> None:
    live = await place.tenant("Live", receiver.url, livemode=True)
    async with place.working():
        await place.happen(live)
        await place.becomes("select attempts = 1 from deliveries")

    (logged,) = await place.rows("select * from delivery_attempts")
    assert logged["outcome"] == "blocked"
    assert receiver.got == []


async def test_the_log_has_a_line_for_each_attempt_and_no_secret(
    place: Place, receiver: Receiver, acme: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.says(500)
    with caplog.at_level(logging.INFO, "wabery"):
        async with place.working():
            (event,) = await place.happen(acme, text="the text", customer_reference="user_123")
            await receiver.has(1)

    (facts,) = [record.facts for record in caplog.records if record.message == "delivery"]  # type: ignore[attr-defined]
    delivery = await place.delivery(acme.queue)
    assert facts.pop("ms") > 0
    assert facts == {
        "project": acme.project.id,
        "endpoint": acme.queue.endpoint_id,
        "delivery": delivery["id"],
        "event_id": event.id,
        "type": "message.received",
        "attempt": 1,
        "outcome": "rejected",
        "status": 500,
    }


# An endpoint that is gone


async def test_410_disables_the_endpoint_and_holds_what_is_due_for_it(
    place: Place, receiver: Receiver, acme: Tenant
) -> None:
    receiver.says(410)
    async with place.working(delivery_per_endpoint=3):
        await place.happen(acme, 20)
        await place.becomes("select count(*) = 0 from deliveries where state = 'pending'")

    endpoint = await place.database.run(lambda tx: accounts.default_endpoint(tx, acme.project.id))
    states = await place.rows("select state, attempts > 0 as tried, count(*) from deliveries group by 1, 2")
    disabled = await place.rows("select body from events where type = 'webhook_endpoint.disabled'")
    assert endpoint.disabled_reason == "gone"
    assert {row["state"] for row in states} == {"held"}
    assert [row["count"] for row in states if row["tried"]] == [len(receiver.got)]
    assert len(receiver.got) <= 3
    assert len(disabled) == 1
    assert json.loads(disabled[0]["body"])["payload"]["endpoint_id"] == acme.queue.endpoint_id


async def test_what_waits_for_a_url_that_was_taken_away_is_held(
    place: Place, receiver: Receiver, acme: Tenant
) -> None:
    await place.happen(acme)
    await place.rows("update webhook_endpoints set url = null")

    async with place.working():
        await place.becomes("select state = 'held' from deliveries")

    assert (await place.delivery(acme.queue))["attempts"] == 0
    assert receiver.got == []


async def test_what_was_held_is_sent_when_the_url_is_set_again_the_oldest_first(
    place: Place, receiver: Receiver, acme: Tenant
) -> None:
    receiver.says(410)
    async with place.working(delivery_per_endpoint=1):
        tried = await place.happen(acme, 10)
        await place.becomes("select count(*) = 11 from deliveries where state = 'held'")
        place.clock.move(timedelta(seconds=1))
        late = await place.happen(acme, 10)
        await place.becomes("select count(*) = 21 from deliveries where state = 'held'")
        asked = len(receiver.got)
        receiver.says(200)

        await place.set_url(acme, receiver.url)
        got = await receiver.has(asked + 21)

    (disabled,) = await place.rows("select id from events where type = 'webhook_endpoint.disabled'")
    order = [request.event_id for request in got[asked:]]
    assert set(order[:11]) == {event.id for event in tried} | {disabled["id"]}
    assert set(order[11:]) == {event.id for event in late}
    states = await place.rows("select state, count(*) from deliveries group by 1")
    assert states == [{"state": "delivered", "count": 21}]


async def test_what_is_held_for_one_that_is_not_back_stays_held(
    place: Place, receiver: Receiver, acme: Tenant
) -> None:
    await place.happen(acme, 3)
    await place.set_url(acme, None)
    back = await place.tenant("Back", receiver.url)
    async with place.working():
        await place.becomes("select count(*) = 3 from deliveries where state = 'held'")
        (gone, kept) = await place.happen(back, 2)
        await receiver.has(2)
        await place.becomes("select count(*) = 2 from deliveries where state = 'delivered'")
        await place.rows("update deliveries set state = 'held', ended_at = null where state = 'delivered'")
        await place.rows("delete from events where id = $1", gone.id)

        got = await receiver.has(3)

    held = await place.rows("select project_id, count(*) from deliveries where state = 'held' group by 1")
    assert got[2].event_id == kept.id
    assert {row["project_id"]: row["count"] for row in held} == {acme.project.id: 3, back.project.id: 1}


async def test_what_was_due_goes_to_the_new_url(place: Place, receiver: Receiver) -> None:
    moved = await place.tenant("Moved", "http://127.0.0.1:9/old")
    await place.happen(moved)
    await place.rows("update webhook_endpoints set url = $1", receiver.url)

    async with place.working():
        await receiver.has(1)

    assert (await place.delivery(moved.queue))["state"] == "delivered"


# Many at once


async def test_a_slow_endpoint_keeps_nobody_waiting(place: Place, receiver: Receiver, acme: Tenant) -> None:
    released = asyncio.Event()
    async with receiving() as slow, place.working(delivery_per_endpoint=4, delivery_concurrency=32):
        slow.hangs_until(released)
        globex = await place.tenant("Globex", slow.url)
        await place.happen(globex, 300)
        await slow.has(4)

        await place.happen(acme, 100)
        await receiver.has(100)

        assert len(slow.got) == 4
        released.set()
        await slow.has(300)
        await place.becomes("select count(*) = 0 from deliveries where state = 'pending'")

    assert len({request.event_id for request in slow.got}) == 300


async def test_a_slow_endpoint_does_not_hold_up_its_own_project(
    place: Place, receiver: Receiver, acme: Tenant
) -> None:
    released = asyncio.Event()
    async with receiving() as slow, place.working(delivery_per_endpoint=2):
        slow.hangs_until(released)
        other = await place.second_endpoint(acme, slow.url)
        await place.rows(
            "update webhook_endpoints set secrets = $2 where id = $1",
            other.endpoint_id,
            place.keyring.current.seal(
                json.dumps([acme.secret]).encode(), f"webhook_endpoints.secrets:{other.endpoint_id}"
            ),
        )
        await place.happen(acme, 80)

        await receiver.has(80)

        assert len(slow.got) <= 2
        released.set()
        await slow.has(80)


async def test_an_endpoint_gets_no_more_at_once_than_the_setting_says(
    place: Place, receiver: Receiver, acme: Tenant
) -> None:
    at_once, most = 0, 0

    async def answer(_request: Request) -> web.Response:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1
        return web.Response()

    receiver.answer = answer
    async with place.working(delivery_per_endpoint=3):
        await place.happen(acme, 200)
        await receiver.has(200)

    assert 1 <= most <= 3


async def test_projects_take_turns(place: Place, receiver: Receiver, acme: Tenant) -> None:
    await place.happen(acme, 600)
    globex = await place.tenant("Globex", receiver.url)
    (late,) = await place.happen(globex)

    async with place.working():
        await receiver.has(601)

    place_in_line = [request.event_id for request in receiver.got].index(late.id)
    assert place_in_line <= worker.SHARED + 10


# Shares


PATIENT = Limits(total=timedelta(seconds=90))
"""An endpoint that hangs holds its slots for longer than any test runs."""


@pytest.mark.hostile
async def test_the_hanging_projects_of_one_key_keep_no_other_waiting(
    place: Place, receiver: Receiver, acme: Tenant
) -> None:
    released = asyncio.Event()
    async with receiving() as slow, place.working(limits=PATIENT):
        slow.hangs_until(released)
        for number in range(30):
            attacker = await place.tenant(f"Attacker {number}", slow.url, actor="key_attacker")
            await place.happen(attacker, 60)
        await slow.has(128)

        began = time.monotonic()
        await place.happen(acme, 20)
        await receiver.has(20)
        took = time.monotonic() - began

        assert len(slow.got) == 128  # half of 256
        released.set()

    assert took < 2


@pytest.mark.hostile
async def test_hanging_endpoints_of_unrelated_projects_leave_a_slot_to_each_other_one(
    place: Place, receiver: Receiver
) -> None:
    released = asyncio.Event()
    settings = {"delivery_concurrency": 32, "delivery_per_endpoint": 4}
    async with receiving() as slow, place.working(limits=PATIENT, **settings):
        slow.hangs_until(released)
        for number in range(6):
            await place.happen(await place.tenant(f"Slow {number}", slow.url), 60)
        await slow.has(24)  # three quarters of 32

        for number in range(8):
            good = await place.tenant(f"Good {number}", receiver.url)
            await place.happen(good, 10)
        await receiver.has(80)

        assert len(slow.got) == 24
        released.set()


@pytest.mark.hostile
async def test_late_retries_leave_the_reserve_to_first_attempts(
    place: Place, receiver: Receiver, acme: Tenant
) -> None:
    released = asyncio.Event()
    async with receiving() as slow:
        slow.hangs_until(released)
        for number in range(20):
            await place.happen(await place.tenant(f"Slow {number}", slow.url))
        await place.rows("update deliveries set attempts = 3")
        async with place.working(limits=PATIENT, delivery_concurrency=8):
            await slow.has(6)

            await place.happen(acme, 30)
            await receiver.has(30)

            assert len(slow.got) == 6
            released.set()


@pytest.mark.parametrize(("endpoints", "most"), [(3, 8), (1, 4)])
async def test_a_project_gets_a_quarter_and_an_endpoint_its_own_limit(
    place: Place, endpoints: int, most: int
) -> None:
    released = asyncio.Event()
    async with receiving() as slow:
        slow.hangs_until(released)
        one = await place.tenant("Slow", slow.url)
        for _ in range(endpoints - 1):
            other = await place.second_endpoint(one, slow.url)
            await place.rows(
                "update webhook_endpoints set secrets = $2 where id = $1",
                other.endpoint_id,
                place.keyring.current.seal(
                    json.dumps([one.secret]).encode(), f"webhook_endpoints.secrets:{other.endpoint_id}"
                ),
            )
        await place.happen(one, 50)
        async with place.working(limits=PATIENT, delivery_concurrency=32, delivery_per_endpoint=4):
            await slow.has(most)
            good = await place.tenant("Good", slow.url)
            await place.happen(good)
            await slow.has(most + 1)
            released.set()


@pytest.mark.hostile
async def test_names_that_never_answer_keep_no_other_waiting_and_count_as_failures(
    place: Place, receiver: Receiver, acme: Tenant
) -> None:
    answer = threading.Event()

    def lookup(host: str) -> Any:
        if host == Resolver.PROBE:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        answer.wait(60)
        return []

    async with place.working(limits=Limits(dns=timedelta(seconds=1)), lookup=lookup):
        silent = [
            await place.tenant(f"Silent {n}", f"http://silent-{n}.test/", actor="key_attacker")
            for n in range(64)
        ]
        for one in silent:
            await place.happen(one, 2)
        began = time.monotonic()
        await place.happen(acme, 5)
        await receiver.has(5)
        took = time.monotonic() - began
        await place.becomes(
            "select bool_and(attempts > 0) from deliveries where endpoint_id <> $1", acme.queue.endpoint_id
        )
        answer.set()

    outcomes = await place.rows("select distinct outcome from delivery_attempts")
    assert took < 2
    assert {row["outcome"] for row in outcomes} == {"dns", "delivered"}


async def test_two_workers_send_everything_once(place: Place, receiver: Receiver, acme: Tenant) -> None:
    async with place.working(), place.working(delivery_per_endpoint=7):
        events = await place.happen(acme, 400)
        await receiver.has(400)
        await place.becomes("select count(*) = 0 from deliveries where state = 'pending'")

    assert sorted(request.event_id for request in receiver.got) == sorted(event.id for event in events)


# What goes wrong


async def test_a_row_that_breaks_us_harms_no_other(
    place: Place, receiver: Receiver, acme: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    unreadable = await place.second_endpoint(acme, receiver.url)

    async with place.working():
        events = await place.happen(acme, 5)
        await receiver.has(5)
        await place.becomes("select count(*) = 0 from deliveries where due_at < now()")

    broken = await place.rows("select * from deliveries where endpoint_id = $1", unreadable.endpoint_id)
    assert {request.event_id for request in receiver.got} == {event.id for event in events}
    assert {(row["state"], row["attempts"]) for row in broken} == {("pending", 0)}
    assert all(row["due_at"] - datetime.now(UTC) > timedelta(seconds=20) for row in broken)
    assert caplog.text.count("row_unreadable") == 1
    assert acme.secret not in caplog.text


async def test_our_own_fault_is_logged_once_and_counts_when_it_lasts(
    place: Place, receiver: Receiver, acme: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    unreadable = await place.second_endpoint(acme, receiver.url)
    await place.rows(
        "update webhook_endpoints set secrets = $2 where id = $1",
        unreadable.endpoint_id,
        place.keyring.current.seal(b"[]", f"webhook_endpoints.secrets:{unreadable.endpoint_id}"),
    )
    pending = "select min(attempts) = $2 from deliveries where endpoint_id = $1 and due_at > now()"

    async with place.working(our_fault_limit=timedelta(0)):
        await place.happen(acme)
        await place.becomes(pending, unreadable.endpoint_id, 1)
        await place.make_due()
        await place.becomes(pending, unreadable.endpoint_id, 2)

    logged = await place.rows("select outcome, error from delivery_attempts where outcome = 'internal'")
    assert [(row["outcome"], row["error"]) for row in logged] == [("internal", logged[0]["error"])] * 2
    assert "in this server" in logged[0]["error"]
    assert len([record for record in caplog.records if record.message == "delivery_broken"]) == 1


async def test_a_row_that_the_database_refuses_harms_no_other(
    place: Place, receiver: Receiver, acme: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    await place.rows("alter table delivery_attempts add check (status <> 418)")
    events = await place.happen(acme, 20)

    async def answer(request: Request) -> web.Response:
        return web.Response(status=418 if request.event_id == events[7].id else 200)

    receiver.answer = answer
    async with place.working():
        await receiver.has(20)

    states = {row["event_id"]: row for row in await place.rows("select * from deliveries")}
    refused = states.pop(events[7].id)
    assert {row["state"] for row in states.values()} == {"delivered"}
    assert (refused["state"], refused["attempts"]) == ("pending", 0)
    assert refused["due_at"] > datetime.now(UTC)
    assert "settling_failed" in caplog.messages


async def test_a_delivery_whose_event_is_gone_is_held(place: Place, receiver: Receiver, acme: Tenant) -> None:
    gone, _ = await place.happen(acme, 2)
    await place.rows("delete from events where id = $1", gone.id)

    async with place.working():
        await receiver.has(1)

    states = {row["event_id"]: row["state"] for row in await place.rows("select * from deliveries")}
    assert states.pop(gone.id) == "held"
    assert set(states.values()) == {"delivered"}


async def test_an_answer_that_is_no_text_is_kept_all_the_same(place: Place) -> None:
    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\0\xff\xfe no HTTP \0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(garbage, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    odd = await place.tenant("Odd", f"http://127.0.0.1:{port}/")
    async with server, place.working():
        await place.happen(odd)
        await place.becomes("select attempts = 1 from deliveries")

    (logged,) = await place.rows("select * from delivery_attempts")
    assert logged["outcome"] == "protocol"


async def test_what_is_under_way_is_finished_and_the_rest_given_back(
    place: Place, receiver: Receiver, acme: Tenant
) -> None:
    released = asyncio.Event()
    receiver.hangs_until(released)
    async with place.working(delivery_per_endpoint=1):
        await place.happen(acme, 30)
        await receiver.has(1)
        asyncio.get_running_loop().call_soon(released.set)

    states = await place.rows("select state, due_at < now() as due, count(*) from deliveries group by 1, 2")
    delivered = sum(row["count"] for row in states if row["state"] == "delivered")
    assert delivered == len(receiver.got) < 30
    assert [row["due"] for row in states if row["state"] == "pending"] == [True]


KILLED = """
import asyncio, json, sys
from datetime import timedelta
from wabery_server.clock import SystemClock
from wabery_server.db import Database, Source
from wabery_server.db.signals import Signals
from wabery_server.secrets import Keyring, Subkeys
from wabery_server.settings import Settings
from wabery_server.webhooks import LOOPBACK, Policy, Poster
from wabery_server.worker import Worker

async def main():
    given = json.load(sys.stdin)
    policy = Policy(allow_http=True, allow_ports=None, allow_networks=LOOPBACK)
    source = Source(parts=given["parts"])
    async with Database(source) as database, Signals(source) as signals, Poster(policy) as poster:
        await Worker(
            database=database, signals=signals, clock=SystemClock(), keyring=Keyring(Subkeys(given["secret"])),
            settings=Settings(), live=poster, test=poster, lease=timedelta(seconds=1),
        ).run()

asyncio.run(main())
"""


async def test_what_a_killed_worker_had_comes_back(
    source: Source, database: Database, signals: Signals, clock: MovableClock, receiver: Receiver
) -> None:
    secret = generate()
    place = Place(database, signals, Keyring(Subkeys(secret)), clock)
    acme = await place.tenant("Acme", receiver.url)
    receiver.hangs_until(asyncio.Event())
    events = await place.happen(acme, 30)

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, stdin=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({"parts": source.parts, "secret": secret}).encode())
    process.stdin.close()
    first = list(await receiver.has(10))
    process.kill()
    assert await process.wait() == -signal.SIGKILL
    receiver.says(200)
    async with place.working():
        await receiver.has(len(first) + 30)
        await place.becomes("select count(*) = 0 from deliveries where state = 'pending'")

    again = receiver.got[len(first) :]
    assert sorted(request.event_id for request in again) == sorted(event.id for event in events)
    bodies = {request.event_id: request.body for request in again}
    assert all(bodies[request.event_id] == request.body for request in first)


@pytest.mark.slow
async def test_the_database_may_crash_meanwhile(
    tmp_path: Path,
    keyring: Keyring,
    clock: MovableClock,
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = Embedded.open(tmp_path / "pg")
    source = Source(parts=cluster.address.dsn_kwargs())
    connection = await source.connect()
    await migrate(connection)
    await connection.close()
    try:
        async with Database(source) as database, Signals(source) as signals:
            place = Place(database, signals, keyring, clock)
            acme = await place.tenant("Acme", receiver.url)
            events = await place.happen(acme, 1_000)

            async with place.working(lease=timedelta(seconds=2)):
                await receiver.has(100)
                os.kill(int((tmp_path / "pg/data/postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
                while not cluster.lost():  # noqa: ASYNC110  # nor is a process that ends
                    await asyncio.sleep(0.01)
                for pause in cluster.reviving():
                    await asyncio.sleep(pause)
                await receiver.has(1_000)
                await place.becomes("select count(*) = 0 from deliveries where state <> 'delivered'")
    finally:
        cluster.close()

    assert {request.event_id for request in receiver.got} == {event.id for event in events}
    assert len([record for record in caplog.records if record.message == "worker_failing"]) <= 2


def claimed(attempts: int = 0) -> Claimed:
    return Claimed(
        queue=Queue("proj_1", "we_1"),
        id="dlv_1",
        lease=NOON + worker.LEASE,
        due_at=NOON,
        attempts=attempts,
        event_id="evt_1",
        event_type="message.received",
        body=b"{}",
        endpoint=None,
        livemode=True,
    )


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("attempts", [0, ATTEMPTS - 1])
def test_every_outcome_has_its_consequence(outcome: Outcome, attempts: int) -> None:
    result = Result(outcome=outcome, elapsed=timedelta(seconds=1))

    settled = judge(claimed(attempts), result, NOON, 0.0)

    match outcome:
        case Outcome.DELIVERED:
            expected = (State.DELIVERED, None, True)
        case Outcome.GONE:
            expected = (State.HELD, None, True)
        case Outcome.ABORTED:
            expected = (State.FAILED, None, True)
        case Outcome.INTERNAL:
            expected = (State.PENDING, NOON + worker.OUR_FAULT_PAUSE, False)
        case _ if attempts == 0:
            expected = (State.PENDING, NOON + timedelta(seconds=3), True)
        case _:
            expected = (State.FAILED, None, True)
    assert (settled.state, settled.due_at, settled.attempt is not None) == expected


# Sweeping


async def test_an_intent_expires_after_its_grace_and_whoever_waits_is_told(
    place: Place, receiver: Receiver, acme: Tenant
) -> None:
    changed: list[str] = []
    place.signals.hear("intent", changed.append)
    intent_id = await pending_intent(place, acme, expires_at=place.clock.now() + timedelta(hours=1))

    async with place.working(expiry_grace=timedelta(minutes=5)):
        place.clock.move(timedelta(hours=1, minutes=4))
        await place.happen(acme)
        await receiver.has(1)
        assert await place.rows("select status from registration_intents") == [{"status": "PENDING"}]

        place.clock.move(timedelta(minutes=1))
        _, told = await receiver.has(2)

    body = json.loads(told.body)
    assert body["event"] == "registration_intent.expired"
    assert body["payload"]["registration_intent_id"] == intent_id
    assert changed == [intent_id]


async def test_what_a_revoked_key_left_pending_is_ended(
    place: Place, receiver: Receiver, acme: Tenant
) -> None:
    await pending_intent(place, acme, expires_at=place.clock.now() + timedelta(hours=1))
    await place.rows("update api_keys set revoked_at = $1", place.clock.now())

    async with place.working():
        (told,) = await receiver.has(1)

    assert json.loads(told.body)["event"] == "registration_intent.rejected"
    (intent,) = await place.rows("select rejection_reason from registration_intents")
    assert intent["rejection_reason"] == "key_revoked"


async def test_old_idempotency_answers_are_forgotten(place: Place, acme: Tenant) -> None:
    for key, expires_at in (("old", NOON), ("new", NOON + timedelta(hours=1))):
        await place.rows(
            """
            insert into idempotency_keys (project_id, api_key_id, call, key, request_hash, status, answer,
                secret_version, object_ids, created_at, expires_at)
            values ($1, 'key_1', 'POST /v1/registration-intents', $2, '', 200, '', 1, '{}', $3, $4)
            """,
            acme.project.id,
            key,
            NOON - timedelta(hours=24),
            expires_at,
        )
    place.clock.move(NOON + timedelta(minutes=1) - place.clock.now())

    async with place.working():
        await place.becomes("select count(*) = 1 from idempotency_keys")

    assert await place.rows("select key from idempotency_keys") == [{"key": "new"}]


async def pending_intent(place: Place, of: Tenant, *, expires_at: datetime) -> str:
    """A pending intent with the channel and an API key of its project."""
    at = min(place.clock.now(), expires_at) - timedelta(minutes=1)
    key = accounts.new_key(of.project, accounts.KeyDraft(name="server", scopes=["full"]), at)
    await place.database.run(lambda tx: accounts.create_key(tx, key, actor="cli:test", at=at))
    intent_id = ids.new("reg", at)
    await place.rows(
        """
        insert into registration_intents (project_id, id, status, customer_reference, metadata, reference_trust,
            channel_id, api_key_id, token_hash, token_prefix, secret_version, created_at, expires_at)
        select $1, $2, 'PENDING', 'user_123', '{}', 'server', c.id, $3, $4, '012345', 1, $5, $6
        from channels c where c.project_id = $1
        """,
        of.project.id,
        intent_id,
        key.key.id,
        os.urandom(32),
        at,
        expires_at,
    )
    return intent_id
