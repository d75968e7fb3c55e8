"""What Meta says of a channel, what is made of it, and that nobody else hears the access token."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from aiohttp import ClientTimeout, web
from fake_graph import (
    APP_ID,
    APP_SECRET,
    FIELDS,
    NUMBER_ID,
    PUBLIC_URL,
    TOKEN,
    WABA_ID,
    FakeGraph,
    answering,
    fake_graph,
)
from world import App, Reply, Tenant

from wabery_server import accounts
from wabery_server.accounts import ChannelDraft, NewChannel
from wabery_server.settings import BadSetting, Settings
from wabery_server.whatsapp import CheckName, Finding, graph, meta_check

CHANNELS = "/v1/channels"
EVERY = list(CheckName)
AFTER_TOKEN = EVERY[2:]
AT = datetime(2026, 11, 23, tzinfo=UTC)
DRAFT = {
    "name": "Support",
    "phone_number_id": NUMBER_ID,
    "display_phone_number": "+49 151 2345678",
    "waba_id": WABA_ID,
    "app_secret": "0123456789abcdef0123456789abcdef",
    "access_token": TOKEN,
}


@pytest.fixture
async def meta() -> AsyncIterator[FakeGraph]:
    async with fake_graph() as running:
        yield running


@pytest.fixture
def settings(settings: Settings, meta: FakeGraph) -> Settings:
    return replace(settings, graph_url=meta.url, public_url=PUBLIC_URL)


@pytest.fixture
def number() -> NewChannel:
    return accounts.new_channel("proj_1", msgspec.convert(DRAFT, ChannelDraft), AT)


async def found(number: NewChannel, settings: Settings, at: datetime = AT) -> dict[CheckName, Finding]:
    findings = await meta_check.check(number.channel, number.credentials, settings, at)
    assert len({finding.name for finding in findings}) == len(findings)
    return {finding.name: finding for finding in findings}


def states(findings: dict[CheckName, Finding], state: str) -> list[CheckName]:
    return [finding.name for finding in findings.values() if finding.state == state]


async def checked(app: App, owner: Tenant, **fields: object) -> Reply:
    """Connects a number and checks it."""
    created = await app.call("POST", CHANNELS, owner.secret_key, json={**DRAFT, **fields})
    assert created.status == 200, created.body
    return await app.call("POST", f"{CHANNELS}/{created.body['id']}/check", owner.secret_key)


# The call


async def test_a_healthy_number_is_ok_in_every_respect(app: App, acme: Tenant) -> None:
    reply = await checked(app, acme)

    assert reply.status == 200
    assert set(reply.body) == {"object", "channel_id", "ok", "checks"}
    assert (reply.body["object"], reply.body["ok"]) == ("channel_check", True)
    assert [(one["name"], one["state"], one["todo"]) for one in reply.body["checks"]] == [
        (name, "ok", None) for name in EVERY
    ]
    assert all(set(one) == {"name", "state", "found", "todo"} for one in reply.body["checks"])


async def test_one_failure_is_enough_not_to_be_ok_and_a_warning_is_not(
    app: App, acme: Tenant, meta: FakeGraph
) -> None:
    meta.number["quality_rating"] = "RED"
    created = await app.call("POST", CHANNELS, acme.secret_key, json=DRAFT)
    path = f"{CHANNELS}/{created.body['id']}/check"

    warned = await app.call("POST", path, acme.secret_key)
    meta.subscribed = []
    failed = await app.call("POST", path, acme.secret_key)

    assert (warned.body["ok"], failed.body["ok"]) == (True, False)


async def test_the_access_token_goes_to_meta_alone_and_into_no_url(
    app: App, acme: Tenant, meta: FakeGraph, caplog: pytest.LogCaptureFixture
) -> None:
    meta.numbers, meta.page = ["1", "2", NUMBER_ID], 1
    meta.refuse(f"{WABA_ID}/subscribed_apps", 10)

    with caplog.at_level(logging.DEBUG):
        reply = await checked(app, acme)

    assert len(meta.asked) == 8
    for asked in meta.asked:
        assert TOKEN not in asked.url
        assert APP_SECRET not in asked.url
        token = f"{APP_ID}|{APP_SECRET}" if "subscriptions" in asked.url else TOKEN
        assert asked.headers["Authorization"] == f"Bearer {token}"
    assert [asked.form for asked in meta.asked if TOKEN in str(asked.form)] == [
        {"method": "get", "input_token": TOKEN}
    ]
    assert TOKEN.encode() not in reply.raw
    assert TOKEN not in caplog.text
    assert APP_SECRET not in reply.raw.decode() + caplog.text


async def test_a_check_asks_only_and_changes_nothing_at_meta(
    number: NewChannel, settings: Settings, meta: FakeGraph
) -> None:
    await found(number, settings)

    assert {asked.form.get("method", asked.method).upper() for asked in meta.asked} == {"GET"}


async def test_a_sandbox_number_is_not_asked_about(app: App, acme: Tenant, meta: FakeGraph) -> None:
    reply = await app.call("POST", f"{CHANNELS}/{acme.channel.id}/check", acme.secret_key)

    assert reply.body["ok"] is True
    assert [one["state"] for one in reply.body["checks"]] == ["skipped"]
    assert "sandbox" in reply.body["checks"][0]["found"]
    assert meta.asked == []


async def test_without_an_access_token_it_says_what_could_not_be_asked(
    app: App, acme: Tenant, meta: FakeGraph
) -> None:
    reply = await checked(app, acme, access_token=None)

    assert [(one["name"], one["state"]) for one in reply.body["checks"]] == [
        ("graph_version", "ok"),
        *((name, "skipped") for name in EVERY[1:]),
    ]
    assert "access_token" in reply.body["checks"][1]["todo"]
    assert meta.asked == []


async def test_it_takes_no_body(app: App, acme: Tenant) -> None:
    reply = await app.call("POST", f"{CHANNELS}/{acme.channel.id}/check", acme.secret_key, json={"fix": True})

    assert (reply.status, reply.body["error"]) == (400, "invalid_request")


async def test_a_channel_is_checked_only_so_often(
    app: App, acme: Tenant, globex: Tenant, settings: Settings
) -> None:
    path = f"{CHANNELS}/{acme.channel.id}/check"
    for _ in range(settings.channel_checks_per_minute):
        assert (await app.call("POST", path, acme.secret_key)).status == 200

    refused = await app.call("POST", path, acme.secret_key)
    other = await app.call("POST", f"{CHANNELS}/{globex.channel.id}/check", globex.secret_key)

    assert (refused.status, refused.body["error"]) == (429, "rate_limited")
    assert int(refused.headers["Retry-After"]) >= 1
    assert other.status == 200


# What is wrong, and what is said about it


def at_number(**values: object) -> Callable[[FakeGraph], None]:
    return lambda meta: meta.number.update(values)


def subscribes(fields: list[str], *, active: bool = True) -> Callable[[FakeGraph], None]:
    """The app receives these webhook fields."""

    def change(meta: FakeGraph) -> None:
        meta.subscriptions[1] |= {"active": active, "fields": [{"name": name} for name in fields]}

    return change


def at_token(**values: object) -> Callable[[FakeGraph], None]:
    return lambda meta: meta.token.update(values)


def sends_to(url: str | None, **others: str) -> Callable[[FakeGraph], None]:
    return at_number(webhook_configuration={"application": url, **others})


OURS = f"{PUBLIC_URL}/inbound/whatsapp"
BLOCKED = {
    "entity_type": "WABA",
    "can_send_message": "BLOCKED",
    "errors": [{"error_code": 141006, "error_description": "There is an error with the payment method."}],
}


@pytest.mark.parametrize(
    ("change", "name", "state", "sentence"),
    [
        (at_number(platform_type="NOT_APPLICABLE"), CheckName.NUMBER, "failed", "NOT_APPLICABLE"),
        (at_number(platform_type=None), CheckName.NUMBER, "failed", "unknown"),
        (at_number(status="DISCONNECTED"), CheckName.NUMBER, "failed", "DISCONNECTED"),
        (at_number(code_verification_status="NOT_VERIFIED"), CheckName.NUMBER, "warning", "proved"),
        (at_number(throughput=None), CheckName.NUMBER, "ok", "unknown"),
        (at_number(display_phone_number="+52 1 33"), CheckName.DISPLAY_NUMBER, "failed", "+52133"),
        (at_number(display_phone_number=None), CheckName.DISPLAY_NUMBER, "skipped", "does not tell"),
        (at_number(quality_rating="RED"), CheckName.QUALITY, "warning", "low"),
        (at_number(quality_rating="UNKNOWN"), CheckName.QUALITY, "ok", "UNKNOWN"),
        (at_number(is_on_biz_app=True), CheckName.BUSINESS_APP, "warning", "without its text"),
        (at_number(health_status=None), CheckName.HEALTH, "skipped", "does not tell"),
        (at_number(health_status={"can_send_message": "LIMITED"}), CheckName.HEALTH, "warning", "limited"),
        (at_number(health_status={"entities": [BLOCKED]}), CheckName.HEALTH, "failed", "WABA (141006)"),
        (
            at_number(
                health_status={
                    "can_send_message": "BLOCKED",  # for calls
                    "entities": [{"entity_type": "APP", "can_send_message": "AVAILABLE"}],
                }
            ),
            CheckName.HEALTH,
            "ok",
            "can be sent",
        ),
        (at_number(webhook_configuration=None), CheckName.WEBHOOK_URL, "failed", "no URL"),
        (sends_to(OURS + "/"), CheckName.WEBHOOK_URL, "ok", "this server"),
        (
            sends_to("https://me:pass@old.example.com/hook?key=hidden"),
            CheckName.WEBHOOK_URL,
            "failed",
            "https://old.example.com/hook,",
        ),
        (sends_to("https://[broken"), CheckName.WEBHOOK_URL, "failed", "an unreadable URL"),
        (sends_to(OURS, phone_number="https://b.example/"), CheckName.WEBHOOK_URL, "failed", "b.example"),
        (
            sends_to(OURS, whatsapp_business_account="https://c.example/", phone_number=OURS),
            CheckName.WEBHOOK_URL,
            "ok",
            "this server",
        ),
        (lambda meta: meta.numbers.clear(), CheckName.ACCOUNT, "failed", NUMBER_ID),
        (subscribes(FIELDS), CheckName.FIELDS, "ok", "messages, standby and messaging_handovers"),
        (subscribes(FIELDS[:2]), CheckName.FIELDS, "warning", "not subscribed to messaging_handovers:"),
        (subscribes(FIELDS[:1]), CheckName.FIELDS, "warning", "standby and messaging_handovers"),
        (subscribes(FIELDS[1:]), CheckName.FIELDS, "failed", "messages"),
        (subscribes(FIELDS, active=False), CheckName.FIELDS, "failed", APP_ID),
        (lambda meta: meta.subscriptions.clear(), CheckName.FIELDS, "failed", APP_ID),
        (lambda meta: meta.refuse(f"{APP_ID}/subscriptions", 190), CheckName.FIELDS, "warning", "app secret"),
        (lambda meta: meta.subscribed.clear(), CheckName.SUBSCRIPTION, "failed", "No message will"),
        (lambda meta: meta.subscribed.__setitem__(0, "999"), CheckName.SUBSCRIPTION, "failed", APP_ID),
        (at_token(scopes=["whatsapp_business_messaging"]), CheckName.ACCESS_TOKEN, "failed", "management"),
        (at_token(scopes=[]), CheckName.ACCESS_TOKEN, "failed", "management and whatsapp_business_messaging"),
        (
            at_token(granular_scopes=[{"scope": "whatsapp_business_management", "target_ids": ["7"]}]),
            CheckName.ACCESS_TOKEN,
            "failed",
            WABA_ID,
        ),
        (
            at_token(granular_scopes=[{"scope": "whatsapp_business_management"}, {"scope": "x"}]),
            CheckName.ACCESS_TOKEN,
            "ok",
            "does not expire",
        ),
        (
            at_token(expires_at=int((AT + timedelta(hours=24)).timestamp())),
            CheckName.ACCESS_TOKEN,
            "warning",
            "2026-11-24 00:00 UTC",
        ),
        (
            at_token(expires_at=int((AT + timedelta(days=60)).timestamp())),
            CheckName.ACCESS_TOKEN,
            "ok",
            "2027-01-22",
        ),
    ],
)
async def test_what_is_wrong_is_named_and_the_rest_stays_ok(
    number: NewChannel,
    settings: Settings,
    meta: FakeGraph,
    change: Callable[[FakeGraph], None],
    name: CheckName,
    state: str,
    sentence: str,
) -> None:
    change(meta)

    findings = await found(number, settings)

    finding = findings.pop(name)
    assert (finding.state, sentence in finding.found) == (state, True), finding
    assert (finding.todo is not None) == (state in ("failed", "warning"))
    assert list(findings) == [one for one in EVERY if one != name]
    assert {one.state for one in findings.values()} == {"ok"}
    assert "hidden" not in finding.found
    assert "pass@" not in finding.found


async def test_a_token_that_meta_calls_invalid_ends_the_questions(
    number: NewChannel, settings: Settings, meta: FakeGraph
) -> None:
    meta.token = {"is_valid": False, "error": {"code": 190, "message": "Session has expired"}, "scopes": []}

    findings = await found(number, settings)

    assert states(findings, "failed") == [CheckName.ACCESS_TOKEN]
    assert states(findings, "skipped") == AFTER_TOKEN
    assert len(meta.asked) == 1


async def test_a_token_that_tells_nothing_of_itself_leaves_the_app_unknown(
    number: NewChannel, settings: Settings, meta: FakeGraph
) -> None:
    meta.refuse("debug_token", 100)

    findings = await found(number, settings)

    assert states(findings, "warning") == [CheckName.ACCESS_TOKEN, CheckName.SUBSCRIPTION]
    assert "does not tell" in findings[CheckName.SUBSCRIPTION].found
    assert states(findings, "skipped") == [CheckName.FIELDS]
    assert states(findings, "ok") == [CheckName.GRAPH_VERSION, *AFTER_TOKEN[:-2]]


@pytest.mark.parametrize("app_id", [None, "../me", ""])
async def test_without_the_apps_id_its_fields_are_not_asked_for(
    number: NewChannel, settings: Settings, meta: FakeGraph, app_id: str | None
) -> None:
    meta.token["app_id"] = app_id

    findings = await found(number, settings)

    assert findings[CheckName.FIELDS].state == "skipped"
    assert not [asked for asked in meta.asked if "subscriptions" in asked.url]


async def test_an_unknown_app_without_any_subscription_is_certain_to_be_missing(
    number: NewChannel, settings: Settings, meta: FakeGraph
) -> None:
    meta.refuse("debug_token", 100)
    meta.subscribed = []

    findings = await found(number, settings)

    assert findings[CheckName.SUBSCRIPTION].state == "failed"


async def test_a_number_on_a_later_page_is_found(
    number: NewChannel, settings: Settings, meta: FakeGraph
) -> None:
    meta.numbers, meta.page = ["1", "2", NUMBER_ID, "3"], 1

    findings = await found(number, settings)

    assert findings[CheckName.ACCOUNT].state == "ok"


async def test_pages_without_end_are_read_to_a_limit(
    number: NewChannel, settings: Settings, meta: FakeGraph
) -> None:
    meta.numbers, meta.page = [str(one) for one in range(1000)], 1

    findings = await found(number, settings)

    assert findings[CheckName.ACCOUNT].state == "failed"
    assert sum("phone_numbers" in asked.url for asked in meta.asked) == meta_check.MAX_PAGES


async def test_without_a_public_url_the_webhook_is_shown_and_not_judged(
    number: NewChannel, settings: Settings
) -> None:
    findings = await found(number, replace(settings, public_url=None))

    assert findings[CheckName.WEBHOOK_URL].state == "skipped"
    assert OURS in findings[CheckName.WEBHOOK_URL].found
    assert "WABERY_PUBLIC_URL" in (findings[CheckName.WEBHOOK_URL].todo or "")


# Refusals: by code, whatever the HTTP status

FIRST = f"{NUMBER_ID}?display_phone_number"
SECOND = f"{NUMBER_ID}?is_on_biz_app"


@pytest.mark.parametrize(
    ("code", "subcode", "state", "sentence"),
    [
        (0, None, "failed", "does not take the access token"),
        (190, 463, "failed", "does not take the access token (error 190.463, fbtrace_id AbCdEf-123_)."),
        (10, None, "failed", "may not see this"),
        (33, None, "failed", "may not see this"),
        (100, 33, "failed", "may not see this"),
        (200, None, "failed", "may not see this"),
        (299, None, "failed", "may not see this"),
        (131005, None, "failed", "may not see this"),
        (368, None, "failed", "restricted"),
        (131031, None, "failed", "restricted"),
        (133010, None, "failed", "not registered"),
        (4, None, "warning", "too often"),
        (80007, None, "warning", "too often"),
        (130429, None, "warning", "too often"),
        (1, None, "warning", "trouble of its own"),
        (131016, None, "warning", "trouble of its own"),
        (100, None, "warning", "does not understand"),
        (987654, None, "warning", "error 987654,"),
    ],
)
@pytest.mark.parametrize("status", [200, 400, 500])
async def test_a_refusal_is_read_by_its_code(
    number: NewChannel,
    settings: Settings,
    meta: FakeGraph,
    code: int,
    subcode: int | None,
    state: str,
    sentence: str,
    status: int,
) -> None:
    meta.refuse(FIRST, code, subcode, status)

    findings = await found(number, settings)

    assert findings[CheckName.NUMBER].state == state
    assert sentence in findings[CheckName.NUMBER].found
    assert findings[CheckName.NUMBER].todo
    assert states(findings, "skipped") == [CheckName.DISPLAY_NUMBER, CheckName.QUALITY]
    assert len(states(findings, "ok")) == len(EVERY) - 3


async def test_a_field_that_this_version_lacks_spoils_only_its_group(
    number: NewChannel, settings: Settings, meta: FakeGraph
) -> None:
    meta.refuse(SECOND, 100)

    findings = await found(number, settings)

    assert findings[CheckName.BUSINESS_APP].state == "warning"
    assert states(findings, "skipped") == [CheckName.HEALTH, CheckName.WEBHOOK_URL]
    assert findings[CheckName.NUMBER].state == "ok"


@pytest.mark.parametrize("code", [1, 4, 190, 131031])
async def test_a_trouble_that_concerns_everything_ends_the_questions(
    number: NewChannel, settings: Settings, meta: FakeGraph, code: int
) -> None:
    meta.refuse("debug_token", code)

    findings = await found(number, settings)

    assert states(findings, "skipped") == AFTER_TOKEN
    assert len(meta.asked) == 1


# What is not Meta, or does not answer


async def _page(_request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="<html>Welcome</html>", content_type="text/html")


async def _odd(_request: web.BaseRequest) -> web.StreamResponse:
    return web.json_response({"data": {"is_valid": "perhaps"}})


async def _redirect(_request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "/elsewhere"})


async def _endless(request: web.BaseRequest) -> web.StreamResponse:
    stream = web.StreamResponse()
    await stream.prepare(request)
    for _ in range(64):
        await stream.write(b" " * 65_536)
    return stream


async def _nested(_request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text='{"error":' * 100_000, content_type="application/json")


@pytest.mark.parametrize("answer", [_page, _odd, _redirect, _endless, _nested])
async def test_what_is_not_meta_is_not_believed(
    number: NewChannel,
    settings: Settings,
    answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
) -> None:
    asked: list[str] = []

    async def noted(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request.path)
        return await answer(request)

    async with answering(noted) as url:
        findings = await found(number, replace(settings, graph_url=url))

    assert "not Meta's Graph API" in findings[CheckName.ACCESS_TOKEN].found
    assert states(findings, "skipped") == AFTER_TOKEN
    assert asked == ["/v26.0/debug_token"]


async def test_an_outage_at_meta_is_a_warning(number: NewChannel, settings: Settings) -> None:
    async def down(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=503, text="Service unavailable")

    async with answering(down) as url:
        findings = await found(number, replace(settings, graph_url=url))

    assert findings[CheckName.ACCESS_TOKEN].state == "warning"
    assert "HTTP 503" in findings[CheckName.ACCESS_TOKEN].found
    assert states(findings, "skipped") == AFTER_TOKEN


async def test_nobody_there_is_a_finding(number: NewChannel, settings: Settings) -> None:
    async with answering(_page) as url:
        pass

    findings = await found(number, replace(settings, graph_url=url))

    assert states(findings, "failed") == [CheckName.ACCESS_TOKEN]
    assert "does not answer this server" in findings[CheckName.ACCESS_TOKEN].found


async def test_silence_is_not_waited_for_long(
    number: NewChannel, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "_PATIENCE", ClientTimeout(total=0.05))
    hung_up = asyncio.Event()

    async def silent(_request: web.BaseRequest) -> web.StreamResponse:
        await hung_up.wait()
        return web.Response()

    async with answering(silent) as url:
        findings = await found(number, replace(settings, graph_url=url))
        hung_up.set()

    assert states(findings, "failed") == [CheckName.ACCESS_TOKEN]


async def test_pages_that_come_slowly_are_not_waited_for_long(
    number: NewChannel, settings: Settings, meta: FakeGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meta_check, "GROUP_SECONDS", 0.2)
    hung_up = asyncio.Event()

    async def silent(_request: web.BaseRequest) -> web.StreamResponse:
        await hung_up.wait()
        return web.Response()

    meta.answers[f"{WABA_ID}/phone_numbers"] = silent
    findings = await found(number, settings)
    hung_up.set()

    assert states(findings, "failed") == [CheckName.ACCOUNT]
    assert len(states(findings, "ok")) == len(EVERY) - 1


# Versions and settings


@pytest.mark.parametrize(
    ("version", "today", "state", "sentence"),
    [
        ("v20.0", AT, "warning", "has stopped"),
        ("v21.0", AT, "warning", "until 2027-01-21"),
        ("v21.0", datetime(2027, 1, 20, tzinfo=UTC), "warning", "until 2027-01-21"),
        ("v21.0", datetime(2027, 1, 21, tzinfo=UTC), "warning", "has stopped"),
        ("v25.0", AT, "ok", "until 2028-07-29"),
        ("v25.0", datetime(2028, 5, 1, tzinfo=UTC), "warning", "until 2028-07-29"),
        ("v26.0", AT, "ok", "no end"),
        ("v101.0", AT, "ok", "no end"),
    ],
)
async def test_a_version_is_warned_of_before_its_end(
    number: NewChannel, settings: Settings, version: str, today: datetime, state: str, sentence: str
) -> None:
    findings = await found(number, replace(settings, graph_version=version), today)

    assert findings[CheckName.GRAPH_VERSION].state == state
    assert sentence in findings[CheckName.GRAPH_VERSION].found


@pytest.mark.parametrize(
    "wrong",
    [
        {"WABERY_GRAPH_URL": "http://graph.facebook.com"},
        {"WABERY_GRAPH_URL": "http://127.0.0.1.example.com"},
        {"WABERY_GRAPH_URL": "graph.facebook.com"},
        {"WABERY_GRAPH_VERSION": "26"},
        {"WABERY_GRAPH_VERSION": "v26.0/../v1.0"},
    ],
)
def test_a_setting_that_would_show_the_token_to_the_network_is_refused(wrong: dict[str, str]) -> None:
    (name,) = wrong

    with pytest.raises(BadSetting, match=name):
        Settings.load(wrong)


@pytest.mark.parametrize("url", ["https://graph.example", "http://localhost:9", "http://[::1]:9/graph"])
def test_another_graph_may_be_set(url: str) -> None:
    assert Settings.load({"WABERY_GRAPH_URL": url}).graph_url == url
