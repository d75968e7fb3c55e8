"""Messages that cannot be handled: whose fault it is, what is kept, and how they are handled after all."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import meta_bodies
import pytest
from meta_bodies import Json
from test_admin import Terminal
from world import ANA, BEN, App, Reply, Tenant, serving

from wabery_server import contacts, errors, intents, tokens
from wabery_server.accounts import find_organization
from wabery_server.cli import messages as failures
from wabery_server.clock import MovableClock, iso
from wabery_server.contacts import Identity
from wabery_server.db import Conflict, Database, Row, Source, Tx
from wabery_server.db.signals import Signals
from wabery_server.inbox import Faults
from wabery_server.main import Opened
from wabery_server.phone import payloads


def saying(app: App, of: Tenant, text: str, sender: Identity = ANA, **more: Any) -> bytes:
    message = meta_bodies.text(sender, app.service.clock.now(), text, **more)
    return meta_bodies.envelope(meta_bodies.change(of.channel, message))


async def post(app: App, of: Tenant, body: bytes) -> Reply:
    headers = payloads.sign(of.app_secret.encode(), body)
    return await app.call("POST", "/inbound/whatsapp", data=body, headers=headers)


async def rows(app: App, query: str, *values: object) -> list[Row]:
    return await app.service.database.run(lambda tx: tx.rows(query, *values))


async def opened(app: App) -> Opened:
    """The installation as `wabery admin` opens it."""
    service = app.service
    organization_id = await service.database.run(find_organization)
    return Opened(service.database, service.keyring, service.clock, organization_id)


async def retried(app: App) -> list[str]:
    """The outcomes of retrying every failed message, in the order of arrival."""
    installation = await opened(app)
    found = await failures.failed_messages(installation, ())
    return [(await failures.retry(installation, one, app.service.settings)).outcome for one in found]


async def failing(app: App, sqlstate: str) -> None:
    """Makes PostgreSQL refuse every message, except one that is stored as failed, with this error."""
    await rows(
        app,
        "create or replace function fail() returns trigger language plpgsql as $$ begin if new.kind = 'message' then"
        f" raise exception 'no' using errcode = '{sqlstate}'; end if; return new; end $$",
    )
    await rows(
        app,
        "create or replace trigger fail before insert or update on messages for each row execute function fail()",
    )


async def working(app: App) -> None:
    await rows(app, "drop trigger fail on messages")


# Whose fault it is

OWN = ["22P02", "22001", "22021", "22P05", "23502", "23505", "23514", "23P01"]
SERVERS = [
    "08006", "0A000", "21000", "25006", "28000", "34000", "40001", "40P01", "42501", "42703", "42P01", "53100", "53200",
    "53300", "54001", "55P03", "55000", "57014", "57P01", "58030", "F0000", "P0001", "XX000", "XX001",
]  # fmt: skip


@pytest.mark.parametrize("sqlstate", [*OWN, *SERVERS])
def test_only_bad_data_is_a_messages_own_fault(sqlstate: str) -> None:
    error = asyncpg.PostgresError("no")
    error.sqlstate = sqlstate

    assert Faults().is_own(error) is (sqlstate in OWN)


@pytest.mark.parametrize(
    "failure",
    [
        errors.Unavailable(), Conflict(), TimeoutError(), ConnectionResetError(), OSError(28, "disk full"),
        MemoryError(), ImportError(), asyncpg.InterfaceError("connection is busy"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_hits_the_server_is_not_the_messages_fault(failure: Exception) -> None:
    assert not Faults().is_own(failure)


def test_a_bug_that_every_message_meets_is_the_servers_fault() -> None:
    faults = Faults(most=3)

    assert [faults.is_own(KeyError()) for _ in range(5)] == [True, True, True, False, False]
    faults.handled()
    assert faults.is_own(KeyError())


@pytest.mark.parametrize("sqlstate", ["57014", "42703", "42501", "53200", "54001", "XX000", "P0001", "0A000"])
async def test_an_error_of_the_server_is_503_and_the_repetition_joins(
    app: App, acme: Tenant, sqlstate: str
) -> None:
    intent = await app.mint(acme.secret_key)
    body = saying(app, acme, intent["token"])
    await failing(app, sqlstate)

    refused = await post(app, acme, body)
    await working(app)
    again = await post(app, acme, body)

    assert (refused.status, refused.body["error"], refused.headers["retry-after"]) == (
        503,
        "unavailable",
        "1",
    )
    assert again.body == {"received": {"joined": 1}}
    assert await rows(app, "select 1 from failed_messages") == []


@pytest.mark.parametrize("sqlstate", ["22P02", "23514"])
async def test_bad_data_is_kept_and_joins_when_it_is_retried(app: App, acme: Tenant, sqlstate: str) -> None:
    intent = await app.mint(acme.secret_key)
    body = saying(app, acme, intent["token"])
    await failing(app, sqlstate)

    first = await app.deliver(acme, body)
    again = await retried(app)
    await working(app)
    last = await retried(app)

    assert (first, again, last) == ({"failed": 1}, ["failed"], ["joined"])
    assert (await app.get(acme.secret_key, intent["id"]))["status"] == "JOINED"
    assert await app.deliver(acme, body) == {"duplicate": 1}
    assert len(await app.events(acme.project.id, "participant.joined")) == 1
    assert await retried(app) == []


async def test_a_join_whose_statement_is_cancelled_joins_when_it_is_repeated(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    body = saying(app, acme, intent["token"])
    held, release = asyncio.Event(), asyncio.Event()

    async def hold(tx: Tx) -> None:
        await tx.rows("select 1 from registration_intents for update")
        held.set()
        await release.wait()

    holder = asyncio.create_task(app.service.database.run(hold))
    await held.wait()
    join = asyncio.create_task(post(app, acme, body))
    cancelled = 0
    while not join.done():
        waiting = "select pg_cancel_backend(pid) as done from pg_stat_activity where wait_event_type = 'Lock'"
        cancelled += len(await rows(app, waiting + " and datname = current_database()"))
        await asyncio.sleep(0.01)
    refused = await join
    release.set()
    await holder

    assert cancelled
    assert refused.status == 503
    assert await app.deliver(acme, body) == {"joined": 1}


async def test_a_missing_column_costs_no_message(app: App, acme: Tenant) -> None:
    body = saying(app, acme, "Hello")
    await rows(app, "alter table messages rename column text to words")

    refused = await post(app, acme, body)
    await rows(app, "alter table messages rename column words to text")

    assert refused.status == 503
    assert await app.deliver(acme, body) == {"passed_on": 1}


async def test_neighbours_of_a_server_error_are_stored_and_duplicates_at_the_repetition(
    app: App, acme: Tenant
) -> None:
    now = app.service.clock.now()
    said = [meta_bodies.text(Identity(bsuid=f"US.{n}"), now, f"number {n}") for n in range(6)]
    body = meta_bodies.envelope(meta_bodies.change(acme.channel, *said))
    await rows(
        app,
        "create function fail() returns trigger language plpgsql as $$ begin if new.text = 'number 3' then"
        " raise exception 'no' using errcode = 'P0001'; end if; return new; end $$",
    )
    await rows(app, "create trigger fail before insert on messages for each row execute function fail()")

    refused = await post(app, acme, body)
    await working(app)

    assert refused.status == 503
    assert await app.deliver(acme, body) == {"duplicate": 5, "passed_on": 1}
    assert len(await app.events(acme.project.id)) == 6


# Bugs of our own


async def test_a_bug_that_one_message_meets_costs_no_other_and_not_itself(
    app: App, acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    intent = await app.mint(acme.secret_key)
    now = app.service.clock.now()
    said = [meta_bodies.text(Identity(bsuid=f"US.{n}"), now, f"number {n}") for n in range(8)]
    said[3] = meta_bodies.text(ANA, now, f"number 3 {intent['token']}")
    body = meta_bodies.envelope(meta_bodies.change(acme.channel, *said, contacts=[meta_bodies.contact(ANA)]))
    redact = tokens.redact

    def faulty(text: str, *more: Any) -> str:
        if text.startswith("number 3"):
            raise KeyError(text)
        return redact(text, *more)

    monkeypatch.setattr(tokens, "redact", faulty)
    first = await app.deliver(acme, body)
    stored = str(await rows(app, "select * from messages")) + str(
        await rows(app, "select * from failed_messages")
    )
    failed = await retried(app)
    monkeypatch.setattr(tokens, "redact", redact)

    assert first == {"passed_on": 7, "failed": 1}
    assert intent["token"] not in stored
    assert "number 3" not in stored
    assert failed == ["failed"]
    assert await retried(app) == ["joined"]
    joined = await app.get(acme.secret_key, intent["id"])
    assert (joined["status"], joined["identity"]["display"]) == ("JOINED", "•••123")


PLACES: list[tuple[object, str]] = [
    (tokens, "find"), (tokens, "redact"), (intents, "lock"), (intents, "redeem"), (contacts, "meet"),
]  # fmt: skip


@pytest.mark.parametrize(("room", "function"), PLACES, ids=lambda one: getattr(one, "__name__", one))
async def test_a_bug_that_every_message_meets_is_503_and_loses_nothing(
    app: App, acme: Tenant, monkeypatch: pytest.MonkeyPatch, room: object, function: str
) -> None:
    minted = [await app.mint(acme.secret_key, f"user_{n}") for n in range(6)]
    bodies = [saying(app, acme, one["token"], Identity(bsuid=f"US.{n}")) for n, one in enumerate(minted)]

    def faulty(*_: Any, **__: Any) -> Any:
        raise AttributeError("a bug")

    with monkeypatch.context() as broken:
        broken.setattr(room, function, faulty)
        statuses = [(await post(app, acme, body)).status for body in bodies]

    assert statuses == [200, 200, 200, 503, 503, 503]
    assert await retried(app) == ["joined"] * 3
    outcomes = [await app.deliver(acme, body) for body in bodies]
    assert outcomes == [{"duplicate": 1}] * 3 + [{"joined": 1}] * 3


async def test_a_repetition_after_the_repair_is_as_good_as_a_retry(
    app: App, acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = saying(app, acme, "Hello")

    def faulty(*_: Any, **__: Any) -> Any:
        raise AttributeError("a bug")

    with monkeypatch.context() as broken:
        broken.setattr(contacts, "meet", faulty)
        assert await app.deliver(acme, body) == {"failed": 1}
        assert await app.deliver(acme, body) == {"duplicate": 1}

    assert await app.deliver(acme, body) == {"passed_on": 1}
    assert await rows(app, "select 1 from failed_messages") == []
    (message,) = await rows(app, "select * from messages")
    (event,) = await app.events(acme.project.id)
    assert (message["text"], message["error"], message["placeholder"]) == ("Hello", None, False)
    assert event["payload"]["message_id"] == message["id"]
    assert event["payload"]["replaces_event_id"] is None


# Retrying


async def fail_once(app: App, of: Tenant, body: bytes) -> None:
    await failing(app, "22P02")
    assert await app.deliver(of, body) == {"failed": 1}
    await working(app)


async def test_retries_and_repetitions_at_once_handle_a_message_once(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    body = saying(app, acme, intent["token"])
    await fail_once(app, acme, body)

    await asyncio.gather(*[retried(app) for _ in range(4)], *[app.deliver(acme, body) for _ in range(4)])

    assert len(await app.events(acme.project.id, "participant.joined")) == 1
    assert [row["attempt"] for row in await rows(app, "select attempt from messages")] == ["joined"]
    assert await retried(app) == []


@pytest.mark.parametrize("later", [timedelta(0), timedelta(days=3)])
async def test_a_retry_is_judged_by_when_the_message_arrived_and_acts_now(
    app: App, acme: Tenant, clock: MovableClock, later: timedelta
) -> None:
    intent = await app.mint(acme.secret_key, expires_in=60)
    await fail_once(app, acme, saying(app, acme, intent["token"]))
    clock.move(later)
    retried_at = iso(clock.now())

    assert await retried(app) == ["joined"]

    joined = await app.get(acme.secret_key, intent["id"])
    (event,) = await app.events(acme.project.id)
    (message,) = await rows(app, "select received_at from messages")
    assert joined["status"] == "JOINED"
    assert joined["joined_at"] == event["payload"]["joined_at"] == event["sentAt"] >= retried_at
    assert iso(message["received_at"]) <= retried_at


async def test_a_retry_after_the_sweeper_arrives_late(app: App, acme: Tenant, clock: MovableClock) -> None:
    intent = await app.mint(acme.secret_key, expires_in=60)
    await fail_once(app, acme, saying(app, acme, intent["token"]))
    clock.move(timedelta(minutes=10))
    settings, project_id = app.service.settings, acme.project.id
    await app.service.database.run(
        lambda tx: intents.expire_due(tx, project_id, clock.now(), settings.expiry_grace, 10)
    )

    assert await retried(app) == ["arrived_late"]


async def test_the_command_lists_and_retries(app: App, acme: Tenant, source: Source) -> None:
    await fail_once(app, acme, saying(app, acme, "Hello", message_id="wamid.1"))
    await fail_once(app, acme, saying(app, acme, "Hello", message_id="wamid.2"))
    secret = app.service.keyring.current._secret.decode()  # an operator has it in the environment
    terminal = Terminal(source, WABERY_SECRET_KEY=secret)

    listed = await terminal.read("messages", "list", "--failed")
    unknown = await terminal.run("messages", "retry", "msg_00000000000000000000000000")
    nothing = await terminal.run("messages", "retry")
    one = await terminal.read("messages", "retry", listed[1]["id"])
    rest = await terminal.run("messages", "retry", "--all")

    assert [message["provider_message_id"] for message in listed] == ["wamid.2", "wamid.1"]
    assert {message["error"] for message in listed} == {"InvalidTextRepresentationError"}
    assert (unknown.code, nothing.code) == (4, 2)
    assert "list --failed" in unknown.talk
    assert [(message["id"], message["outcome"]) for message in one] == [(listed[1]["id"], "passed_on")]
    assert (rest.code, rest.out.split()) == (0, [listed[0]["id"], "passed_on"])
    assert await terminal.read("messages", "list", "--failed") == []
    assert [event["payload"]["provider_message_id"] for event in await app.events(acme.project.id)] == [
        "wamid.1",
        "wamid.2",
    ]


async def test_a_deleted_channel_fails_again_and_stops_no_other(
    app: App, acme: Tenant, globex: Tenant
) -> None:
    await fail_once(app, acme, saying(app, acme, "Hello"))
    await fail_once(app, globex, saying(app, globex, "Hello"))
    await app.call("DELETE", f"/v1/channels/{acme.channel.id}", acme.secret_key)

    assert await retried(app) == ["failed", "passed_on"]
    installation = await opened(app)
    assert [one.error for one in await failures.failed_messages(installation, ())] == ["NotFound"]


# Placeholders


def withheld(app: App, of: Tenant, message_id: str, sender: Identity = ANA) -> bytes:
    made = meta_bodies.message(
        sender, app.service.clock.now(), "unsupported", message_id=message_id, errors=[{"code": 131060}]
    )
    return meta_bodies.envelope(meta_bodies.change(of.channel, made))


async def test_content_that_comes_later_replaces_the_placeholder(app: App, acme: Tenant) -> None:
    placeholder = withheld(app, acme, "wamid.1")
    content = saying(app, acme, "Hello", message_id="wamid.1")

    counts = [
        await app.deliver(acme, body) for body in (placeholder, placeholder, content, content, placeholder)
    ]

    first, second = [event["payload"] for event in await app.events(acme.project.id)]
    assert counts == [
        {"passed_on": 1},
        {"duplicate": 1},
        {"passed_on": 1},
        {"duplicate": 1},
        {"duplicate": 1},
    ]
    assert (first["text"], first["type"], first["replaces_event_id"]) == (None, "unsupported", None)
    assert (second["text"], second["type"]) == ("Hello", "text")
    assert second["replaces_event_id"] == first["event_id"]
    assert second["message_id"] == first["message_id"]
    assert len(await rows(app, "select 1 from messages")) == 1


async def test_a_token_that_was_withheld_joins_when_it_comes(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    await app.deliver(acme, withheld(app, acme, "wamid.1"))

    counts = await app.deliver(acme, saying(app, acme, intent["token"], message_id="wamid.1"))

    assert counts == {"joined": 1}
    (message,) = await rows(app, "select * from messages")
    (joined,) = await app.events(acme.project.id, "participant.joined")
    assert joined["payload"]["message_id"] == message["id"]
    assert (message["attempt"], message["placeholder"], message["event_id"]) == ("joined", False, None)


async def test_content_that_comes_eight_times_at_once_replaces_the_placeholder_once(
    app: App, acme: Tenant
) -> None:
    await app.deliver(acme, withheld(app, acme, "wamid.1"))
    body = saying(app, acme, "Hello", message_id="wamid.1")

    await asyncio.gather(*[app.deliver(acme, body) for _ in range(8)])

    assert [event["payload"]["text"] for event in await app.events(acme.project.id)] == [None, "Hello"]


async def test_content_that_fails_stays_behind_its_placeholder_until_it_is_retried(
    app: App, acme: Tenant
) -> None:
    await app.deliver(acme, withheld(app, acme, "wamid.1"))
    await fail_once(app, acme, saying(app, acme, "Hello", message_id="wamid.1"))
    again = await app.deliver(acme, withheld(app, acme, "wamid.1"))

    assert again == {"duplicate": 1}
    assert await retried(app) == ["passed_on"]
    first, second = [event["payload"] for event in await app.events(acme.project.id)]
    assert (second["text"], second["replaces_event_id"]) == ("Hello", first["event_id"])
    assert second["message_id"] == first["message_id"]
    assert len(await rows(app, "select 1 from messages")) == 1


@pytest.mark.parametrize("first", ["Hello", None])
async def test_an_erased_message_does_not_come_back(app: App, acme: Tenant, first: str | None) -> None:
    content = saying(app, acme, "Hello", message_id="wamid.1")
    await app.deliver(acme, content if first else withheld(app, acme, "wamid.1"))
    await rows(
        app,
        "update messages set text = null, content = null, raw = null, placeholder = false, event_id = null",
    )

    assert await app.deliver(acme, content) == {"duplicate": 1}

    (message,) = await rows(app, "select * from messages")
    assert (message["text"], message["content"]) == (None, None)


# Redeliveries


@asynccontextmanager
async def another(app: App, source: Source) -> AsyncIterator[App]:
    """A second server on the same database."""
    service = app.service
    assert isinstance(service.clock, MovableClock)
    async with (
        Database(source) as database,
        Signals(source) as signals,
        serving(service.settings, database, service.keyring, service.clock, signals) as other,
    ):
        yield other


async def test_redelivered_messages_are_no_errors_in_the_log_of_postgresql(
    app: App, acme: Tenant, source: Source
) -> None:
    intent = await app.mint(acme.secret_key)
    now = app.service.clock.now()
    said: list[Json] = [meta_bodies.text(Identity(bsuid=f"US.{n}"), now, f"number {n}") for n in range(48)]
    said += [meta_bodies.text(BEN, now, intent["token"]), meta_bodies.text(ANA, now, intent["token"])]
    body = meta_bodies.envelope(meta_bodies.change(acme.channel, *said))
    log = Path(os.environ["WABERY_TEST_CLUSTER"]) / "postgres.log"
    await app.deliver(acme, body)
    before = log.stat().st_size

    again = await app.deliver(acme, body)
    one_by_one = [
        await app.deliver(acme, meta_bodies.envelope(meta_bodies.change(acme.channel, one))) for one in said
    ]
    at_once = await asyncio.gather(*[app.deliver(acme, body) for _ in range(4)])
    stranger = saying(app, acme, "Hello", Identity(bsuid="US.99", phone="12125550199"))
    async with another(app, source) as other:
        first = await asyncio.gather(*[one.deliver(acme, stranger) for one in [app, other] * 4])

    assert again == {"duplicate": 50}
    assert one_by_one == [{"duplicate": 1}] * 50
    assert at_once == [{"duplicate": 50}] * 4
    assert sorted(map(str, first)) == ["{'duplicate': 1}"] * 7 + ["{'passed_on': 1}"]
    assert b"ERROR" not in log.read_bytes()[before:]
