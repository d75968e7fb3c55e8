"""The installation's secret: rotated any number of times, and a row that cannot be opened harms only itself."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from test_admin import Terminal, founded
from test_worker import Place, Receiver, receiver
from world import BEN, INTENTS, App, Tenant, serving

from wabery_server import accounts, metrics
from wabery_server.clock import MovableClock
from wabery_server.db import Database, Source
from wabery_server.db.signals import Signals
from wabery_server.phone import payloads
from wabery_server.secrets import BadSecret, Keyring, Subkeys, parse_versions
from wabery_server.settings import Settings

__all__ = ["receiver"]
AT = datetime(2026, 11, 23, 12, tzinfo=UTC)
K1, K2, K3, K4 = (f"an installation secret, number {number}" for number in range(1, 5))

Open = Callable[..., Awaitable[accounts.Installation]]


def keyring(current: str, **others: str) -> Keyring:
    """`keyring(new, v1=old)`."""
    given = {int(name.removeprefix("v")): secret for name, secret in others.items()}
    return Keyring(
        Subkeys(current, max(given, default=0) + 1),
        {one: Subkeys(secret, one) for one, secret in given.items()},
    )


@pytest.fixture
def start(database: Database) -> Open:
    async def opened(current: str, at: datetime = AT, **others: str) -> accounts.Installation:
        given = keyring(current, **others)
        return await database.run(lambda tx: accounts.open_installation(tx, given, at))

    return opened


async def project(database: Database, opened: accounts.Installation) -> str:
    new = accounts.new_project(
        opened.organization_id, accounts.ProjectDraft(name="Acme"), keyring=opened.keyring, at=AT
    )
    await database.run(
        lambda tx: accounts.create_project(tx, new, keyring=opened.keyring, actor="cli:test", at=AT)
    )
    return new.project.id


async def opens(database: Database, opened: accounts.Installation, project_id: str) -> bool:
    endpoint = await database.run(lambda tx: accounts.default_endpoint(tx, project_id))
    (channel,) = await database.run(lambda tx: accounts.list_channels(tx, project_id, limit=10))
    found = await database.run(lambda tx: accounts.unseal_credentials(tx, channel, keyring=opened.keyring))
    return bool(accounts.unseal_endpoint_secrets(endpoint, opened.keyring) and found.app_secrets)


async def reseal(database: Database, opened: accounts.Installation, limit: int = 1) -> accounts.Resealed:
    whole = accounts.Resealed()
    after: tuple[str, str] | None = ("", "")
    while after is not None:
        done = await database.run(lambda tx, at=after: accounts.any_reseal(tx, opened.keyring, at, limit))
        whole.moved += done.moved
        whole.unreadable += done.unreadable
        after = done.after
    return whole


# The keyring


@pytest.mark.parametrize(
    ("text", "versions"),
    [
        ("", {}),
        (f"1:{K1}", {1: K1}),
        (f" 1 : {K1} \n", {1: K1}),
        (f"1:{K1},2:{K2}", {1: K1, 2: K2}),
        (f"2:{K2}, 1:{K1}", {1: K1, 2: K2}),
        (f"1:{K1}\r\n2:{K2}\n", {1: K1, 2: K2}),
        (f"1:{K1},{K2},:x,2:{K2}", {1: f"{K1},{K2},:x", 2: K2}),
        (f"1:{K1},1:{K1}", {1: K1}),
    ],
)
def test_old_secrets_are_given_by_version(text: str, versions: dict[int, str]) -> None:
    assert parse_versions(text) == versions


@pytest.mark.parametrize(
    "text",
    [K1, f":{K1}", f"x:{K1}", f"0:{K1}", f"-1:{K1}", f"²:{K1}", f"{2**31}:{K1}", "1:short", f"1:{K1},1:{K2}"],
)
def test_a_malformed_old_secret_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(BadSecret, match="WABERY_SECRET_KEY_OLD") as refused:
        parse_versions(text)

    assert K1 not in str(refused.value)
    assert K2 not in str(refused.value)


# Starting


async def test_a_second_rotation_needs_every_registered_version(database: Database, start: Open) -> None:
    acme = await project(database, await start(K1))
    await start(K2, v1=K1)

    with pytest.raises(BadSecret, match=r"version 1: 1 channels, 1 webhook endpoints"):
        await start(K3, v2=K2)
    third = await start(K3, v1=K1, v2=K2)

    assert third.keyring.current.version == 3
    assert await opens(database, third, acme)


async def test_a_current_secret_keeps_its_number_once_the_old_ones_are_gone(
    database: Database, start: Open
) -> None:
    acme = await project(database, await start(K1))
    second = await start(K2, v1=K1)
    resealed = await reseal(database, second)

    alone = await start(K2)

    assert (resealed.moved, resealed.unreadable) == (2, [])
    assert alone.keyring.current.version == 2
    assert await opens(database, alone, acme)
    assert (await database.run(accounts.registered_versions)).keys() == {2}


@pytest.mark.parametrize(
    "given",
    [
        {"current": K2},
        {"current": K3, "v1": K2},
        {"current": K3, "v2": K1},
        {"current": K3, "v1": K1, "v3": K4},
        {"current": K1, "v9": K2},
    ],
    ids=["wrong", "wrong old", "wrong number", "gap beside a new one", "gap"],
)
async def test_a_wrong_keyring_is_refused_and_changes_nothing(
    database: Database, start: Open, given: dict[str, str]
) -> None:
    await start(K1)

    with pytest.raises(BadSecret) as refused:
        await start(**given)

    assert not any(secret in str(refused.value) for secret in (K1, K2, K3, K4))
    assert await database.run(accounts.registered_versions) == {1: Subkeys(K1).check}


async def test_a_process_without_the_newest_version_does_not_start(database: Database, start: Open) -> None:
    await start(K1)
    await start(K2, v1=K1)

    with pytest.raises(BadSecret, match="newest version there is 2"):
        await start(K1)


async def test_the_next_secret_can_be_given_to_every_process_before_one_uses_it(
    database: Database, start: Open
) -> None:
    """How several processes are rotated one by one: each can open what any other has sealed at any moment."""
    await start(K1)
    waiting = await start(K1, v2=K2)
    ahead = await start(K2, v1=K1)
    acme = await project(database, ahead)
    restarted = await start(K1, v2=K2)

    assert (waiting.keyring.current.version, ahead.keyring.current.version) == (1, 2)
    assert await opens(database, waiting, acme)
    assert await opens(database, restarted, acme)
    assert restarted.keyring.current.version == 1


async def test_two_processes_that_rotate_at_once_agree(database: Database, start: Open) -> None:
    await start(K1)

    same = await asyncio.gather(*(start(K2, v1=K1) for _ in range(6)))
    different = await asyncio.gather(*(start(one, v1=K1, v2=K2) for one in (K3, K4)), return_exceptions=True)

    assert {one.keyring.current.version for one in same} == {2}
    started = [one for one in different if isinstance(one, accounts.Installation)]
    assert [one.keyring.current.version for one in started] == [3]
    assert sum(isinstance(one, BadSecret) for one in different) == 1


async def test_pending_intents_and_answers_keep_a_version(
    app: App, acme: Tenant, database: Database, source: Source
) -> None:
    """The keyring of `app` is version 1."""
    old = app.service.keyring.current._secret.decode()
    await app.call(
        "POST", INTENTS, acme.secret_key, json={"customer_reference": "a"}, headers={"Idempotency-Key": "x"}
    )
    now = app.service.clock.now()
    both = await database.run(lambda tx: accounts.open_installation(tx, keyring(K2, v1=old), now))
    await reseal(database, both)

    async def alone(at: datetime) -> accounts.Installation:
        return await database.run(lambda tx: accounts.open_installation(tx, keyring(K2), at))

    with pytest.raises(BadSecret, match="1 pending intents, 1 idempotency answers"):
        await alone(now)
    await database.run(
        lambda tx: tx.run("update registration_intents set status = 'EXPIRED', ended_at = $1", now)
    )
    with pytest.raises(BadSecret, match="version 1: 1 idempotency answers"):
        await alone(now)
    assert (await alone(now + timedelta(hours=25))).keyring.current.version == 2


async def test_everything_that_is_sealed_is_resealed(database: Database, start: Open) -> None:
    """Each table of the schema with a secret version is resealed, or ends by itself."""
    sealed = await database.run(
        lambda tx: tx.rows(
            """
            select c.table_name from information_schema.columns c
            join information_schema.columns v using (table_schema, table_name)
            where c.table_schema = 'public' and v.column_name = 'secret_version'
                and c.data_type = 'bytea' and c.column_name not in ('token_hash', 'client_hash', 'secret_check', 'request_hash')
            """
        )
    )
    await project(database, await start(K1))
    await database.run(
        lambda tx: tx.run(
            "insert into failed_messages (project_id, message_id, object, secret_version, failed_at)"
            " values ('proj_1', 'msg_1', $1, 1, now())",
            Subkeys(K1).seal(b"whole object", "failed_messages.object:msg_1"),
        )
    )
    second = await start(K2, v1=K1)

    before = await database.run(lambda tx: accounts.any_needs(tx, 1, AT))
    done = await reseal(database, second)
    after = await database.run(lambda tx: accounts.any_needs(tx, 1, AT))
    (row,) = await database.run(lambda tx: tx.rows("select object, secret_version from failed_messages"))

    assert {one["table_name"] for one in sealed} == {
        "channels",
        "webhook_endpoints",
        "failed_messages",
        "idempotency_keys",  # a day
    }
    assert (before.sealed, done.moved, after.total) == (3, 3, 0)
    assert (
        second.keyring.open(row["object"], row["secret_version"], "failed_messages.object:msg_1", bytes)
        == b"whole object"
    )


# Rows that do not open

DAMAGE = {
    "unregistered version": "secret_version = 99",
    "another secret": "{sealed} = '\\x00' || substr({sealed}, 2)",
    "empty": "{sealed} = ''",
    "short": "{sealed} = '\\x0102'",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_a_channel_that_does_not_open_harms_no_other(
    app: App, acme: Tenant, globex: Tenant, damage: str
) -> None:
    channel, before = acme.channel, metrics.value("rows_unreadable")
    broken = await app.mint(acme.secret_key)
    healthy = await app.mint(globex.secret_key)
    sql = f"update channels set {damage.format(sealed='credentials')} where id = $1"
    await app.service.database.run(lambda tx: tx.run(sql, channel.id))
    app.service.directory.forget()

    tokens = await app.service.directory.verify_tokens()
    joined = await app.say(globex, healthy["token"])
    lost = await app.call(
        "POST",
        "/inbound/whatsapp",
        data=(body := _text(acme, broken["token"])),
        headers=payloads.sign(acme.app_secret.encode(), body),
    )
    shown = await app.call("GET", f"/v1/channels/{channel.id}", acme.secret_key)
    renamed = await app.call("PATCH", f"/v1/channels/{channel.id}", acme.secret_key, json={"name": "n"})
    others = await app.call("GET", f"/v1/channels/{globex.channel.id}", globex.secret_key)

    assert len(tokens) == 1
    assert (await app.call("GET", _handshake(tokens[0]))).raw == b"yes"
    assert joined == {"joined": 1}
    assert (lost.status, lost.body["error"]) == (503, "unavailable")
    assert (shown.status, renamed.status, others.status) == (503, 503, 200)
    assert metrics.value("rows_unreadable") > before


async def test_a_body_for_a_broken_and_a_healthy_channel_is_handled_and_repeated(
    app: App, acme: Tenant, globex: Tenant
) -> None:
    """One app secret for both numbers: the healthy one's message joins, and 503 makes Meta repeat the body."""
    healthy, broken = await app.mint(globex.secret_key), await app.mint(acme.secret_key)
    await app.service.database.run(
        lambda tx: tx.run("update channels set secret_version = 99 where id = $1", acme.channel.id)
    )
    app.service.directory.forget()
    bodies = [json.loads(_text(acme, broken["token"])), json.loads(_text(globex, healthy["token"]))]
    body = json.dumps({**bodies[0], "entry": bodies[0]["entry"] + bodies[1]["entry"]}).encode()

    reply = await app.call(
        "POST", "/inbound/whatsapp", data=body, headers=payloads.sign(globex.app_secret.encode(), body)
    )

    assert reply.status == 503
    assert (await app.get(globex.secret_key, healthy["id"]))["status"] == "JOINED"
    assert (await app.get(acme.secret_key, broken["id"]))["status"] == "PENDING"


async def test_new_credentials_repair_a_channel(app: App, acme: Tenant) -> None:
    await app.service.database.run(
        lambda tx: tx.run("update channels set secret_version = 99 where id = $1", acme.channel.id)
    )
    changes = {"app_secrets": ["a" * 32], "verify_token": "b" * 32}

    repaired = await app.call("PATCH", f"/v1/channels/{acme.channel.id}", acme.secret_key, json=changes)
    shown = await app.call("GET", f"/v1/channels/{acme.channel.id}", acme.secret_key)

    assert (repaired.status, shown.body["verify_token"]) == (200, "b" * 32)


async def test_an_endpoint_that_does_not_open_harms_no_other(
    database: Database, signals: Signals, keyring: Keyring, clock: MovableClock, receiver: Receiver
) -> None:
    place = Place(database, signals, keyring, clock)
    acme, globex = await place.tenant("Acme", receiver.url), await place.tenant("Globex", receiver.url)
    await database.run(
        lambda tx: tx.run(
            "update webhook_endpoints set secret_version = 99 where project_id = $1", acme.project.id
        )
    )
    await place.happen(acme, 3)
    (event,) = await place.happen(globex, 1)

    async with place.working():
        (got,) = await receiver.has(1)
        await place.becomes("select count(*) = 3 from deliveries where state = 'pending' and due_at > now()")

    assert got.event_id == event.id


async def test_a_project_whose_endpoint_does_not_open_is_still_shown(app: App, acme: Tenant) -> None:
    await app.service.database.run(lambda tx: tx.run("update webhook_endpoints set secrets = ''"))

    shown = await app.call("GET", f"/v1/projects/{acme.project.id}", acme.secret_key)
    await app.call("POST", f"/v1/projects/{acme.project.id}/rotate-webhook-secret", acme.secret_key)
    again = await app.call("GET", f"/v1/projects/{acme.project.id}", acme.secret_key)

    assert shown.status == 200
    assert "webhook_secret" not in shown.body
    assert again.body["webhook_secret"].startswith("whsec_")


async def test_an_intent_of_a_missing_version_is_shown_without_what_is_derived(
    app: App, acme: Tenant
) -> None:
    first, second = await app.mint(acme.secret_key, "a"), await app.mint(acme.secret_key, "b")
    await app.service.database.run(
        lambda tx: tx.run("update registration_intents set secret_version = 99 where id = $1", first["id"])
    )

    listed = await app.call("GET", INTENTS, acme.secret_key)
    shown = await app.get(acme.secret_key, first["id"])
    joined = await app.say(acme, first["token"])
    other = await app.say(acme, second["token"], BEN)

    assert listed.status == 200
    assert not {"token", "client_secret", "wa_link"} & shown.keys()
    assert (await app.get(acme.secret_key, second["id"]))["token"] == second["token"]
    assert joined == other == {"joined": 1}


async def test_an_idempotency_answer_that_does_not_open_is_503_for_its_key_alone(
    app: App, acme: Tenant
) -> None:
    async def mint(key: str) -> Any:
        return await app.call(
            "POST",
            INTENTS,
            acme.secret_key,
            json={"customer_reference": key},
            headers={"Idempotency-Key": key},
        )

    await mint("a")
    await mint("b")
    await app.service.database.run(
        lambda tx: tx.run("update idempotency_keys set secret_version = 99 where key = 'a'")
    )

    broken, replayed, new = await asyncio.gather(mint("a"), mint("b"), mint("c"))

    assert (broken.status, broken.body["error"]) == (503, "unavailable")
    assert (replayed.status, replayed.headers["Idempotency-Replayed"]) == (200, "true")
    assert new.status == 200


async def test_a_row_is_logged_once_and_counted_each_time(caplog: pytest.LogCaptureFixture) -> None:
    ring, before = keyring(K1), metrics.value("rows_unreadable")

    for _ in range(3):
        for row in ("we_1", "we_2"):
            with pytest.raises(Exception, match="secret version 99"):
                ring.open(b"x" * 40, 99, f"webhook_endpoints.secrets:{row}", bytes)

    assert [record.message for record in caplog.records] == ["row_unreadable"] * 2
    assert metrics.value("rows_unreadable") == before + 6


# While serving


@pytest.fixture
async def rotated(settings: Settings, source: Source, app: App, clock: MovableClock) -> AsyncIterator[App]:
    """A second server on the same database, with the next secret."""
    old = app.service.keyring.current._secret.decode()
    async with Database(source) as database, Signals(source) as signals:
        opened = await database.run(
            lambda tx: accounts.open_installation(tx, keyring(K2, v1=old), clock.now())
        )
        async with serving(settings, database, opened.keyring, clock, signals) as running:
            yield running


async def test_servers_with_different_keyrings_serve_what_both_can_open(
    app: App, acme: Tenant, rotated: App
) -> None:
    """A rotation without the step before it: the old server answers 503, or shows less, and loses nothing."""
    before, after = await app.mint(acme.secret_key, "a"), await rotated.mint(acme.secret_key, "b")
    await reseal(app.service.database, accounts.Installation("", rotated.service.keyring))
    app.service.directory.forget()
    rotated.service.directory.forget()

    refused = await app.call(
        "POST",
        "/inbound/whatsapp",
        data=(body := _text(acme, after["token"])),
        headers=payloads.sign(acme.app_secret.encode(), body),
    )
    taken = await rotated.deliver(acme, body)

    assert refused.status == 503
    assert taken == {"joined": 1}
    assert (await rotated.get(acme.secret_key, before["id"]))["token"] == before["token"]
    assert "token" not in await app.get(acme.secret_key, after["id"])


async def test_a_cursor_of_an_older_version_is_read(app: App, acme: Tenant, rotated: App) -> None:
    for reference in "abc":
        await app.mint(acme.secret_key, reference)
    first = await app.call("GET", f"{INTENTS}?limit=2", acme.secret_key)

    rest = await rotated.call("GET", f"{INTENTS}?limit=2&cursor={first.body['next_cursor']}", acme.secret_key)

    assert rest.status == 200, rest.body
    assert [one["customer_reference"] for one in rest.body["data"]] == ["a"]


# What an operator types


async def test_an_operator_rotates_and_drops_a_version(source: Source) -> None:
    first = Terminal(source, WABERY_SECRET_KEY=K1)
    await founded(first)
    both = Terminal(source, WABERY_SECRET_KEY=K2, WABERY_SECRET_KEY_OLD=f"1:{K1}\n")

    before = await _versions(both)
    too_early = await Terminal(source, WABERY_SECRET_KEY=K2).run("projects", "list")
    resealed = await both.read("reseal", "--batch", "1")
    again = await both.read("reseal")
    after = await _versions(both)
    alone = await Terminal(source, WABERY_SECRET_KEY=K2).run("projects", "list")

    assert before == [("warning", "needed by 1 channels, 1 webhook endpoints")]
    assert too_early.code == 7
    assert "version 1" in too_early.talk
    assert (resealed["version"], resealed["resealed"], resealed["unreadable"]) == (2, 2, [])
    assert resealed["older"] == [{"version": 1, "needed_by": "nothing", "until": None}]
    assert again["resealed"] == 0
    assert after == [("ok", "nothing needs it")]
    assert alone.code == 0, alone.talk


async def test_reseal_names_rows_that_do_not_open_and_moves_the_others(
    source: Source, database: Database
) -> None:
    await founded(Terminal(source, WABERY_SECRET_KEY=K1))
    both = Terminal(source, WABERY_SECRET_KEY=K2, WABERY_SECRET_KEY_OLD=f"1:{K1}")
    await both.run("projects", "list")
    (channel,) = await database.run(
        lambda tx: tx.rows("update channels set secret_version = 99 returning id")
    )

    ran = await both.run("reseal")
    doctor = await both.run("--json", command="doctor")

    assert ran.code == 1
    assert "Resealed 1 rows" in ran.out
    assert channel["id"] in ran.talk
    assert any("cannot be opened" in one["found"] for one in json.loads(doctor.out)["checks"])


async def _versions(terminal: Terminal) -> list[tuple[str, str]]:
    ran = await terminal.run("--json", command="doctor")
    checks = json.loads(ran.out)["checks"]
    return [(one["state"], one["found"]) for one in checks if one["name"].startswith("secret version")]


def _text(tenant: Tenant, text: str) -> bytes:
    return payloads.meta_text(
        phone_number_id=tenant.channel.phone_number_id,
        display_phone_number=tenant.channel.display_phone_number,
        waba_id=tenant.channel.waba_id,
        text=text,
        sender=BEN,
        message_id=payloads.new_message_id(),
        at=datetime.now(UTC),
    )


def _handshake(token: str) -> str:
    return f"/inbound/whatsapp?hub.mode=subscribe&hub.challenge=yes&hub.verify_token={token}"
