"""Signed changes that no channel can receive: logged, counted, stored for `doctor`, and never the reason for a failure."""

import json
import logging
from typing import Any

import meta_bodies
import pytest
from meta_bodies import Json
from test_admin import Terminal
from world import ANA, App, Reply, Tenant

from wabery_server.accounts import UnroutableChanges
from wabery_server.accounts.unroutable import DROPPED
from wabery_server.db import Row, Source
from wabery_server.phone import payloads

MISTYPED = "123456123"


def change(app: App, of: Tenant, phone_number_id: str | None, field: str = "messages") -> Json:
    made = meta_bodies.change(
        of.channel, meta_bodies.text(ANA, app.service.clock.now(), "Hello"), field=field
    )
    made["value"]["metadata"]["phone_number_id"] = phone_number_id
    return made


async def post(app: App, of: Tenant, *changes: Json) -> Reply:
    body = meta_bodies.envelope(*changes)
    headers = payloads.sign(of.app_secret.encode(), body)
    return await app.call("POST", "/inbound/whatsapp", data=body, headers=headers)


async def rows(app: App, query: str) -> list[Row]:
    return await app.service.database.run(lambda tx: tx.rows(query))


def logged(caplog: pytest.LogCaptureFixture, outcome: str) -> list[dict[str, Any]]:
    facts = [getattr(record, "facts", {}) for record in caplog.records if record.getMessage() == "inbound"]
    return [one for one in facts if one.get("outcome") == outcome]


@pytest.fixture(autouse=True)
def _told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="wabery")


async def test_a_mistyped_number_is_logged_once_counted_and_stored(
    app: App, acme: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    before = DROPPED.value

    replies = [await post(app, acme, change(app, acme, MISTYPED)) for _ in range(20)]

    assert {(reply.status, str(reply.body)) for reply in replies} == {
        (200, "{'received': {'foreign_change': 1}}")
    }
    (line,) = logged(caplog, "foreign_change")
    assert (line["phone_number_id"], line["reason"], line["count"]) == (MISTYPED, "unknown_number", 1)
    assert DROPPED.value - before == 20
    (row,) = await rows(app, "select * from unroutable_changes")
    assert (row["provider"], row["phone_number_id"], row["reason"]) == ("meta", MISTYPED, "unknown_number")


async def test_each_reason_has_its_word(
    app: App, acme: Tenant, globex: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = change(app, globex, globex.channel.phone_number_id)
    nameless = change(app, acme, None, field="standby")
    del nameless["value"]["metadata"]

    reply = await post(app, acme, foreign, nameless, change(app, acme, MISTYPED, field="history"))

    assert reply.body == {"received": {"foreign_change": 3}}
    assert {(line["phone_number_id"], line["reason"]) for line in logged(caplog, "foreign_change")} == {
        (globex.channel.phone_number_id, "other_secret"),
        (None, "no_number"),
        (MISTYPED, "unknown_number"),
    }


@pytest.mark.parametrize(
    ("field", "counted"),
    [
        ("account_update", "account_update"),
        ("message_template_status_update", "message_template_status_update"),
        ("account_alerts", "account_alerts"),
        ("Odd field", "other_field"),
    ],
)
async def test_account_and_template_changes_are_counted_under_their_field(
    app: App, acme: Tenant, caplog: pytest.LogCaptureFixture, field: str, counted: str
) -> None:
    about_account = {"field": field, "value": {"event": "VERIFIED_ACCOUNT"}}

    reply = await post(app, acme, about_account, about_account)

    assert reply.body == {"received": {counted: 2}}
    (line,) = logged(caplog, counted)
    assert line["count"] == 2
    assert logged(caplog, "foreign_change") == []


async def test_what_is_ignored_on_a_number_of_ours_is_logged_with_its_channel(
    app: App, acme: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    handover = {"field": "messaging_handovers", "value": {"control_passed": {}}}
    handover["value"]["metadata"] = {"phone_number_id": acme.channel.phone_number_id}  # type: ignore[index]  # a dict
    own = meta_bodies.text(ANA, app.service.clock.now(), "Hello")
    own["from"] = f"+{acme.channel.display_phone_number[:4]} {acme.channel.display_phone_number[4:]}"
    del own["from_user_id"]

    reply = await post(app, acme, handover, meta_bodies.change(acme.channel, own, statuses=[{}, {}]))

    assert reply.body == {"received": {"messaging_handovers": 1, "echo": 1, "status": 2}}
    for outcome, count in reply.body["received"].items():
        (line,) = logged(caplog, outcome)
        assert (line["count"], line["channel_id"]) == (count, acme.channel.id)


@pytest.mark.parametrize("metadata", [True, False])
async def test_the_channels_own_number_joins_nothing(app: App, acme: Tenant, metadata: bool) -> None:
    intent = await app.mint(acme.secret_key)
    own = meta_bodies.text(ANA, app.service.clock.now(), intent["token"])
    own["from"] = acme.channel.display_phone_number if metadata else "4915112345"
    made = meta_bodies.change(acme.channel, own)
    made["value"]["metadata"]["display_phone_number"] = "+49 151-12345"

    reply = await post(app, acme, made)

    assert reply.body == {"received": {"echo": 1}}
    assert (await app.get(acme.secret_key, intent["id"]))["status"] == "PENDING"
    assert await app.events(acme.project.id) == []


async def test_a_flood_of_numbers_costs_a_bounded_number_of_lines_and_rows(
    app: App, acme: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    reply = await post(app, acme, *[change(app, acme, str(1_000_000 + n)) for n in range(300)])

    assert reply.body == {"received": {"foreign_change": 300}}
    assert len(logged(caplog, "foreign_change")) == 100
    assert len(await rows(app, "select 1 from unroutable_changes")) == 100


async def test_a_body_of_made_up_numbers_and_fields_costs_a_bounded_amount(
    app: App, acme: Tenant, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []
    number = app.service.directory.number

    async def counting(provider: str, phone_number_id: str) -> Any:
        looked_up.append(phone_number_id)
        return await number(provider, phone_number_id)

    monkeypatch.setattr(app.service.directory, "number", counting)
    strangers = [
        {"field": "messages", "value": {"metadata": {"phone_number_id": str(n)}}} for n in range(3000)
    ]
    longest: Json = {"field": "messages", "value": {"metadata": {"phone_number_id": "9" * 100_000}}}
    fields: list[Json] = [{"field": f"field_{n}", "value": {}} for n in range(3000)]
    hello = change(app, acme, acme.channel.phone_number_id)

    reply = await post(app, acme, hello, longest, *strangers, *fields)

    counts = reply.body["received"]
    assert (counts.pop("passed_on"), counts.pop("foreign_change"), counts.pop("other_field")) == (
        1,
        3001,
        2900,
    )
    assert counts == {f"field_{n}": 1 for n in range(100)}
    assert len(looked_up) <= 1000
    assert len(caplog.records) < 400
    assert max(len(str(getattr(record, "facts", ""))) for record in caplog.records) < 1000


async def test_a_note_that_cannot_be_written_fails_no_body(app: App, acme: Tenant) -> None:
    await rows(app, "alter table unroutable_changes rename to elsewhere")
    hello = change(app, acme, acme.channel.phone_number_id)

    reply = await post(app, acme, change(app, acme, MISTYPED), hello)

    assert (reply.status, reply.body) == (200, {"received": {"foreign_change": 1, "passed_on": 1}})


async def test_what_came_in_between_is_noted_next_time(app: App, caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    noting = UnroutableChanges(app.service.database, every=600, most=2, now=lambda: now)
    one, other, third = ("1", "unknown_number"), ("2", "unknown_number"), ("3", "unknown_number")

    for moment, changes in (
        (0.0, {one: 5}),
        (1.0, {one: 7, other: 1}),
        (599.0, {one: 1, third: 1}),
        (601.0, {one: 1, third: 2}),
    ):
        now = moment
        await noting.note("meta", changes, request_id="req_1", at=app.service.clock.now())

    assert [(line["phone_number_id"], line["count"]) for line in logged(caplog, "foreign_change")] == [
        ("1", 5), ("2", 1), ("1", 9), ("3", 2),
    ]  # fmt: skip
    assert [(row["phone_number_id"], row["changes"]) for row in await rows(app, "select * from unroutable_changes order by 2")] == [
        ("1", 14), ("2", 1), ("3", 2),
    ]  # fmt: skip


async def test_doctor_names_the_number_until_it_has_a_channel(app: App, acme: Tenant, source: Source) -> None:
    await post(app, acme, change(app, acme, MISTYPED))
    secret = app.service.keyring.current._secret.decode()  # an operator has it in the environment
    terminal = Terminal(source, WABERY_SECRET_KEY=secret)

    async def found() -> list[dict[str, Any]]:
        ran = await terminal.run("--json", command="doctor")
        return [one for one in json.loads(ran.out)["checks"] if one["name"] == "webhooks"]

    before = await found()
    draft = {
        "name": "Second", "phone_number_id": MISTYPED, "display_phone_number": "+49 151 2345678",
        "waba_id": "102290129340398", "app_secret": acme.app_secret,
    }  # fmt: skip
    await app.call("POST", "/v1/channels", acme.secret_key, json=draft)
    after = await found()

    (warning,) = before
    assert warning["state"] == "warning"
    assert MISTYPED in warning["found"]
    assert after == []
