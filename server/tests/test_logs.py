"""What the log says, and what it never says: secrets, tokens, phone numbers, message texts."""

import asyncio
import errno
import io
import itertools
import json
import logging
from collections.abc import Iterator
from typing import Any

import meta_bodies
import pytest
from msgspec.structs import replace
from world import ANA, BEN, INTENTS, App, Tenant

from wabery_server import logs
from wabery_server.api.routes import OPERATIONS
from wabery_server.phone import payloads

TEXT = "Meet me behind the lighthouse at nine"
PHONE = "12125550123"


SHOWN_ONCE = ("token", "client_secret", "key", "webhook_secret", "verify_token")


class Log:
    """Everything that was logged, at the finest level."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        logs.configure("debug", stream=self._stream)

    @property
    def text(self) -> str:
        for handler in logging.getLogger().handlers:
            handler.flush()
        return self._stream.getvalue()

    def lines(self, event: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.text.splitlines()]
        return [line for line in found if line["event"] == event]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    root = logging.getLogger()
    before = root.handlers, root.level, logs.log.level
    monkeypatch.setattr(logs, "_sink", None)
    yield Log()
    root.handlers, root.level = before[0], before[1]
    logs.log.setLevel(before[2])


def none_of(secrets: list[str], log: Log) -> None:
    said = log.text
    assert [secret for secret in secrets if secret in said] == []


# What is said


async def test_a_request_is_one_line(app: App, acme: Tenant, log: Log) -> None:
    intent = await app.mint(acme.secret_key)

    reply = await app.call("GET", f"{INTENTS}/{intent['id']}?wait=0", acme.secret_key)

    line = log.lines("request")[-1]
    assert line == {
        "at": line["at"],
        "level": "info",
        "event": "request",
        "request_id": reply.headers["Wabery-Request-Id"],
        "method": "GET",
        "path": INTENTS + "/{id}",
        "status": 200,
        "key_id": acme.key_id,
        "ms": line["ms"],
    }


async def test_a_message_is_one_line_and_its_request_another(app: App, acme: Tenant, log: Log) -> None:
    intent = await app.mint(acme.secret_key)

    await app.say(acme, intent["token"])
    await app.say(acme, TEXT)

    joined, passed_on = log.lines("inbound")
    assert (joined["outcome"], joined["intent_id"]) == ("joined", intent["id"])
    assert (passed_on["outcome"], passed_on["intent_id"]) == ("passed_on", None)
    assert set(joined) == {
        "at", "level", "event", "request_id", "project_id", "channel_id", "message_id", "intent_id", "outcome",
    }  # fmt: skip
    assert len([line for line in log.lines("request") if line["path"] == "/inbound/whatsapp"]) == 2


async def test_an_unknown_path_may_hold_anything_and_is_not_repeated(
    app: App, acme: Tenant, log: Log
) -> None:
    await app.call("GET", f"/{acme.secret_key}/{PHONE}?text=hello")

    (line,) = log.lines("request")
    assert (line["path"], line["status"], line["key_id"]) == ("(unknown)", 404, None)


# What is not said


async def test_no_call_says_what_it_was_given(app: App, acme: Tenant, log: Log) -> None:
    intent = await app.mint(acme.secret_key, PHONE, metadata={"note": TEXT})
    unknown_key = "wab_live_0123456789ABCDEFGHIJKLMNOPQRST29Z8aS"
    given = {
        "reference": "ref-of-one-person",
        "metadata": "the plan of one person",
        "idempotency": "an-idempotency-key-of-theirs",
        "url": "https://hooks.example.com/path-with-a-secret?key=query-with-a-secret",
        "signing": "a signing secret of their own",
        "app_secret": "5a3e1f0c9b7d8e6f4a2b1c0d9e8f7a6b",
        "verify": "a-verify-token-of-theirs",
        "access": "EAAGaccess-token-of-theirs",
        "number": "+49 151 2345678",
    }
    bodies: list[dict[str, object]] = [
        {},
        {"customer_reference": given["reference"], "metadata": {"note": given["metadata"]}},
        {"name": given["reference"], "scopes": ["full"]},
        {"webhook_url": given["url"], "webhook_secret": given["signing"]},
        {
            "name": "Support", "phone_number_id": "106540352242922", "display_phone_number": given["number"],
            "waba_id": "1", "app_secret": given["app_secret"], "verify_token": given["verify"],
            "access_token": given["access"],
        },
        {"items": [{"customer_reference": given["reference"], "metadata": {"note": given["metadata"]}}]},
        {"via": given["reference"]},
        {"customer_reference": given["reference"] * 20, "metadata": given["metadata"]},
    ]  # fmt: skip
    secret = {"x-wabery-client-secret": intent["client_secret"]}
    shown: list[str] = []

    for operation in OPERATIONS:
        if operation.path.startswith("/inbound") or operation.path == INTENTS + "/{id}/events":
            continue
        names = (
            (intent["id"], acme.project.id, intent["token"], PHONE, TEXT.replace(" ", "%20"))
            if "{" in operation.path
            else ("",)
        )
        reads = operation.method in ("GET", "DELETE")
        query = f"?customer_reference={PHONE}&token={intent['token']}" if reads else ""
        for number, (name, body) in enumerate(itertools.product(names, [None] if reads else bodies)):
            path = operation.path.replace("{id}", name).replace("{code}", name) + query
            once = {"Idempotency-Key": f"{given['idempotency']}-{operation.path}-{number}"}
            reply = await app.call(operation.method, path, acme.secret_key, json=body, headers=once)
            if reply.status == 200 and isinstance(reply.body, dict):
                shown += [str(reply.body[field]) for field in SHOWN_ONCE if field in reply.body]
            await app.call(operation.method, path, acme.publishable_key, json=body, headers=secret)
            await app.call(operation.method, path, unknown_key, json=body)

    assert len(log.lines("request")) > 200
    keys = [acme.secret_key, acme.publishable_key, unknown_key, intent["token"], intent["client_secret"]]
    none_of(
        [*keys, *given.values(), PHONE, TEXT, "lighthouse", "query-with-a-secret", "path-with-a-secret"], log
    )
    assert len(shown) > 6
    none_of(shown, log)


async def test_no_webhook_says_who_wrote_what(app: App, acme: Tenant, globex: Tenant, log: Log) -> None:
    intent = await app.mint(acme.secret_key)
    now = app.service.clock.now()
    ana = replace(ANA, username="ana.secret", parent_bsuid="US.ENT.9120001")
    parts = [
        meta_bodies.text(ana, now, TEXT),
        meta_bodies.text(ana, now, intent["token"]),
        meta_bodies.text(BEN, now, intent["token"]),
        meta_bodies.text(BEN, now, f"{intent['token']} wjr_{'0' * 26}"),
        meta_bodies.text(None, now, TEXT),
        meta_bodies.message(ana, now, "system", system={"body": TEXT, "wa_id": PHONE}),
        meta_bodies.message(ana, now, "unsupported", errors=[{"code": 131051, "title": TEXT}]),
        meta_bodies.message(ana, now, TEXT, text=TEXT),
        {"id": TEXT, "timestamp": TEXT},
    ]
    body = meta_bodies.envelope(
        meta_bodies.change(
            acme.channel, *parts, contacts=[meta_bodies.contact(ana)], statuses=[{"recipient_id": PHONE}]
        ),
        meta_bodies.change(globex.channel, *parts),
        meta_bodies.change(acme.channel, *parts, field=TEXT),
    )
    await app.deliver(acme, body)
    await app.deliver(acme, TEXT.encode())
    await app.call("POST", "/inbound/whatsapp", data=body, headers=payloads.sign(b"wrong", body))
    await app.call(
        "GET", f"/inbound/whatsapp?hub.mode=subscribe&hub.verify_token={TEXT}&hub.challenge={PHONE}"
    )

    assert len(log.lines("inbound")) > 5
    none_of(
        [TEXT, "lighthouse", PHONE, intent["token"], intent["token"][4:], acme.app_secret, "ana.secret", "Ana",
         "US.8120001", "US.ENT.9120001", "DE.8120002", "user_123"],
        log,
    )  # fmt: skip


@pytest.mark.parametrize(
    "table", ["registration_intents", "messages", "contacts", "links", "events", "idempotency_keys"]
)
async def test_a_stack_trace_says_nothing_of_the_row_that_was_refused(
    app: App, acme: Tenant, log: Log, table: str
) -> None:
    intent = await app.mint(acme.secret_key, "ref-of-one-person", metadata={"note": TEXT})
    await app.service.database.run(
        lambda tx: tx.run(f"alter table {table} add check (project_id = '') not valid")
    )

    minted = await app.call(
        "POST", INTENTS, acme.secret_key, json={"customer_reference": f"+{PHONE}", "metadata": {"note": TEXT}},
        headers={"Idempotency-Key": "once"},
    )  # fmt: skip
    for text in (TEXT, intent["token"]):
        body = meta_bodies.envelope(
            meta_bodies.change(
                acme.channel,
                meta_bodies.text(ANA, app.service.clock.now(), text),
                contacts=[meta_bodies.contact(ANA)],
            )
        )
        await app.call(
            "POST", "/inbound/whatsapp", data=body, headers=payloads.sign(acme.app_secret.encode(), body)
        )

    traces = [line for line in map(json.loads, log.text.splitlines()) if "trace" in line]
    assert traces
    assert all("CheckViolationError: new row for relation" in line["trace"] for line in traces)
    assert all("DETAIL" not in line["trace"] for line in traces)
    assert minted.status == (500 if table in ("registration_intents", "idempotency_keys") else 200)
    none_of([TEXT, "lighthouse", PHONE, intent["token"], "ref-of-one-person", "Ana", "US.8120001"], log)


async def test_an_error_of_ours_is_told_by_its_request_and_its_stack(
    app: App, acme: Tenant, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(presented: str) -> None:
        raise RuntimeError(f"cannot use {presented} of +{PHONE}")

    monkeypatch.setattr(app.service.directory, "caller", broken)

    reply = await app.call("GET", INTENTS, acme.secret_key)

    (line,) = log.lines("internal_error")
    assert (reply.status, reply.body["error"]) == (500, "internal_error")
    assert reply.headers["Wabery-Version"]
    assert line["request_id"] == reply.body["request_id"]
    assert "RuntimeError: cannot use wab_test_[redacted] of [redacted]" in line["trace"]
    assert "in broken" in line["trace"]
    assert "RuntimeError" not in str(reply.body)
    none_of([acme.secret_key, PHONE], log)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("token wjr_7k3mq9xt2fhz4vbn8rcp5d6gja.", "token wjr_…."),
        ("WJR-7K3M Q9XT 2FHZ 4VBN 8RCP 5D6G JA", "wjr_…"),
        ("secret wcs_f4fvas3ysz30kd5s01n1ysqwgy!", "secret wcs_[redacted]!"),
        ("Bearer wab_live_0123456789ABCDEFGHIJKLMNOPQRST29Z8aS", "Bearer wab_live_[redacted]"),
        ("wab_pub_0123 and wab_test_4567", "wab_pub_[redacted] and wab_test_[redacted]"),
        ("whsec_wj2Etcc90jx2IyCW7hE1+ubGvcUFNwvc2qIobVaB2v4= is it", "whsec_[redacted] is it"),
        ("https://wa.me/15550100123?text=Connect%20me", "https://wa.me/[redacted]?text=[redacted]"),
        ("from +12125550123, +49 (151) 234-5678", "from [redacted], [redacted]"),
        ("reg_01m85kat12345678901234567890 took 1234567 ms at 2026-11-24", None),
        ("phone_number_id 12 was not found in 0.25 s", None),
    ],
)
def test_what_slips_into_a_message_is_masked(said: str, kept: str | None) -> None:
    assert logs.redact(said) == (said if kept is None else kept)


# How it is written


def test_a_warning_brings_everything_before_it_along_at_once(log: Log) -> None:
    stream = io.StringIO()
    logs.configure("info", stream=stream)

    async def busy() -> str:
        logs.line("first", number=1)
        before = stream.getvalue()
        logs.log.warning("second")
        return before

    before = asyncio.run(busy())

    assert before == ""
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["first", "second"]


def test_lines_below_the_level_are_not_made(log: Log) -> None:
    stream = io.StringIO()
    logs.configure("warning", stream=stream)

    logs.line("quiet")
    logs.log.info("quiet too")
    logging.getLogger("uvicorn.error").info("and this")
    logs.log.warning("loud")

    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud"]


def test_the_whole_chain_of_an_error_is_told_in_its_order(log: Log) -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as failure:
            raise ExceptionGroup("outer", [ValueError("one of the group")]) from failure
    except ExceptionGroup:
        logs.log.exception("it broke")

    (line,) = log.lines("it broke")
    places = [
        line["trace"].index(what)
        for what in ("KeyError: 'inner'", "ValueError: one", "ExceptionGroup: outer")
    ]
    assert places == sorted(places)


def test_lines_that_cannot_be_written_are_lost_and_counted() -> None:
    """A full disk must not fail the requests that log something."""

    class Full(io.StringIO):
        full = True

        def flush(self) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")

    stream = Full()
    logs.configure("info", stream=stream)
    for number in range(3):
        logs.log.warning("lost", extra={"facts": {"number": number}})
    stream.full = False
    stream.truncate(0)

    logs.log.warning("kept")
    logs.log.warning("kept too")

    events = [json.loads(line) for line in stream.getvalue().strip("\0").splitlines()]
    assert [one["event"] for one in events] == ["kept", "log_lines_lost", "kept too"]
    assert events[1]["lines"] == 3


def test_an_unknown_level_is_refused() -> None:
    before = logging.getLogger().handlers

    with pytest.raises(ValueError, match="LOUD"):
        logs.configure("loud")

    assert logging.getLogger().handlers is before
