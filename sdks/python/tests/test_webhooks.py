"""Verifying deliveries: ours, altered ones, other people's headers, and what each framework hands over."""

import asyncio
import base64
import io
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.util import setup_testing_defaults

import django.conf
import fastapi
import flask
import httpx2
import pytest
import standardwebhooks
import svix.webhooks
from django.test import RequestFactory
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from wabery import WebhookVerificationError, webhooks
from wabery.webhooks import (
    Event,
    MessageReceived,
    ParticipantIdentityChanged,
    ParticipantJoined,
    ParticipantUnlinked,
    RegistrationIntentEvent,
    SecurityEvent,
    WebhookEndpointEvent,
    sign_for_test,
    unwrap,
    verify,
)

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + base64.b64encode(b"another secret of 24 bytes").decode()
NOW = datetime(2026, 6, 27, tzinfo=UTC)

JOINED = {
    "event": "participant.joined",
    "payload": {
        "event_id": "evt_01jz0000000000000000000000",
        "customer_reference": "user_123",
        "contact_reference": "user_123",
        "metadata": {"plan": "größer", "joined_at": "2026"},
        "joined_at": "2026-06-27T00:00:00.000Z",
        "from": None,
        "whatsapp": {"user_id": "DE.1", "wa_id": None},
        "invented_tomorrow": 1,
    },
    "sentAt": "2026-06-27T00:00:01.000Z",
}


def fault_of(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(WebhookVerificationError) as raised:
        call(*args, **kwargs)
    assert SECRET not in str(raised.value)
    return raised.value.fault


# What is accepted


def test_a_delivery_becomes_a_typed_event() -> None:
    body, headers = sign_for_test(JOINED, SECRET, now=NOW)

    event = unwrap(body, headers, SECRET, now=NOW)

    assert isinstance(event, ParticipantJoined)
    assert event.payload.customer_reference == "user_123"
    assert event.payload.metadata == {"plan": "größer", "joined_at": "2026"}
    assert event.payload.joined_at == NOW
    assert event.payload.from_ is None
    assert event.payload.whatsapp.user_id == "DE.1"
    assert event.payload["invented_tomorrow"] == 1
    assert event.sent_at == NOW + timedelta(seconds=1)
    assert event.id == "evt_01jz0000000000000000000000"
    assert event.to_dict() == JOINED


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("message.received", MessageReceived),
        ("participant.unlinked", ParticipantUnlinked),
        ("participant.identity_changed", ParticipantIdentityChanged),
        ("registration_intent.rejected", RegistrationIntentEvent),
        ("registration_intent.invented", RegistrationIntentEvent),
        ("security.token_reuse", SecurityEvent),
        ("webhook_endpoint.disabled", WebhookEndpointEvent),
        ("invented.tomorrow", Event),
    ],
)
def test_events_are_told_apart_by_class(name: str, kind: type[Event]) -> None:
    body, headers = sign_for_test({"event": name, "payload": {}}, SECRET)

    event = unwrap(body, headers, SECRET)

    assert type(event) is kind
    assert (event.event, event.id, event.sent_at) == (name, None, None)


def test_a_message_has_its_parts_as_objects_and_its_content_untouched() -> None:
    payload = {
        "reply": {"id": "slot-3", "title": "Morning", "payload": None, "response": None},
        "media": None,
        "context": {"message_id": "wamid.1"},
        "content": {"type": "list_reply", "sent_at": "not a time"},
        "referral": {"source_id": "1", "created_at": "2026"},
    }
    body, headers = sign_for_test({"event": "message.received", "payload": payload}, SECRET)

    message = unwrap(body, headers, SECRET)

    assert isinstance(message, MessageReceived)
    assert message.payload.reply is not None
    assert (message.payload.reply.id, message.payload.reply.payload) == ("slot-3", None)
    assert message.payload.media is None
    assert message.payload.context is not None
    assert message.payload.context.message_id == "wamid.1"
    assert (message.payload.content, message.payload.referral) == (payload["content"], payload["referral"])


def test_an_intents_event_holds_the_intent() -> None:
    intent = {"id": "reg_1", "status": "REJECTED", "created_at": "2026-06-27T00:00:00.000Z"}
    payload = {"registration_intent": intent, "attempt": {"code": "rejected", "message_id": "msg_1"}}
    body, headers = sign_for_test({"event": "registration_intent.rejected", "payload": payload}, SECRET)

    event = unwrap(body, headers, SECRET)

    assert isinstance(event, RegistrationIntentEvent)
    assert event.payload.registration_intent.created_at == NOW
    assert event.payload.registration_intent.final
    assert event.payload.attempt.code == "rejected"


def test_the_public_vector() -> None:
    standard = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }

    verify(b'{"test": 2432232314}', standard, SECRET, now=datetime.fromtimestamp(1614265330, UTC))


@pytest.mark.parametrize("library", [standardwebhooks.Webhook, svix.webhooks.Webhook])
def test_other_peoples_libraries_agree(library: Any) -> None:
    body, headers = sign_for_test(JOINED, SECRET)
    theirs = library(SECRET).sign("evt_1", datetime.now(UTC), body.decode())

    library(SECRET).verify(body, headers)
    verify(
        body,
        {"webhook-id": "evt_1", "webhook-timestamp": str(int(time.time())), "webhook-signature": theirs},
        SECRET,
    )


@pytest.mark.parametrize("secret", ["my own secret", "whsec_", "whsec_not base64", "ключ"])
def test_a_secret_of_any_form_signs(secret: str) -> None:
    body, headers = sign_for_test(JOINED, secret)
    contract = {"x-wabery-signature": headers["x-wabery-signature"]}

    verify(body, headers, secret)
    verify(body, contract, secret, now=NOW)
    if secret != "whsec_":
        exposed = "whsec_" + base64.b64encode(secret.encode()).decode()
        standardwebhooks.Webhook(exposed).verify(body, headers)


@pytest.mark.parametrize("holds", [SECRET, OTHER, [SECRET, OTHER], ["something else", OTHER]])
@pytest.mark.parametrize("scheme", ["contract", "standard"])
def test_either_secret_verifies_during_a_rotation(holds: Any, scheme: str) -> None:
    body, headers = sign_for_test(JOINED, SECRET, next_secret=OTHER, now=NOW)
    kept = {
        name: value
        for name, value in headers.items()
        if name.startswith("webhook-") == (scheme == "standard")
    }

    verify(body, kept, holds, now=NOW)


@pytest.mark.parametrize(
    "shape",
    [
        lambda headers: {name.upper(): value for name, value in headers.items()},
        lambda headers: list(headers.items()),
        lambda headers: [(name.encode(), value.encode()) for name, value in headers.items()],
        lambda headers: {name: [value] for name, value in headers.items()},
        lambda headers: {name: f"  {value} " for name, value in headers.items()},
    ],
    ids=["upper case", "pairs", "bytes", "lists", "spaces"],
)
def test_headers_come_in_many_shapes(shape: Any) -> None:
    body, headers = sign_for_test(JOINED, SECRET)

    verify(body, shape(headers), SECRET)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_the_body_may_be_any_bytes(kind: Any) -> None:
    body, headers = sign_for_test(JOINED, SECRET)

    assert isinstance(unwrap(kind(body), headers, SECRET), ParticipantJoined)


def test_unknown_signature_versions_are_skipped() -> None:
    body, headers = sign_for_test(JOINED, SECRET)
    headers["webhook-signature"] = f"v1a,AAAA v2,x nonsense {headers['webhook-signature']}"

    verify(body, headers, SECRET)


def test_the_secret_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WABERY_WEBHOOK_SECRET", SECRET)
    body, headers = sign_for_test(JOINED, SECRET)

    verify(body, headers)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("secret", [SECRET, "grüße, 世界 🔑"])
def test_a_secret_may_be_given_as_bytes(kind: Any, secret: str) -> None:
    body, headers = sign_for_test(JOINED, secret)

    assert isinstance(unwrap(body, headers, kind(secret.encode())), ParticipantJoined)
    verify(body, headers, [b"whsec_other", kind(secret.encode())])


def test_a_stripped_delivery_is_accepted_for_seven_days_or_as_long_as_is_said() -> None:
    body, headers = sign_for_test(JOINED, SECRET, now=NOW)
    stripped = {"x-wabery-signature": headers["x-wabery-signature"]}
    sent_at = NOW + timedelta(seconds=1)

    event = unwrap(body, stripped, SECRET, now=sent_at + timedelta(days=7))

    assert event.sent_at == sent_at
    assert fault_of(unwrap, body, stripped, SECRET, now=sent_at + timedelta(days=300)) == "timestamp_too_old"
    assert fault_of(verify, body, stripped, SECRET, now=sent_at + timedelta(days=7, seconds=1)) == (
        "timestamp_too_old"
    )
    verify(body, stripped, SECRET, now=sent_at + timedelta(days=300), max_age=timedelta(days=365))


# What is refused, and why


@pytest.mark.parametrize(
    "secret",
    [
        7,
        1.5,
        {"whsec_x": 1},
        {SECRET},
        object(),
        b"\xff\xfe",
        [b"\xff"],
        [7],
        [None],
        [[SECRET]],
        [],
        "",
        b"",
        [b""],
    ],
)
def test_a_secret_that_cannot_be_one_is_named(secret: Any) -> None:
    body, headers = sign_for_test(JOINED, SECRET)

    assert fault_of(unwrap, body, headers, secret) == "no_secret"


def test_every_cause_has_its_name() -> None:
    body, headers = sign_for_test(JOINED, SECRET, now=NOW)
    contract = {"x-wabery-signature": headers["x-wabery-signature"]}
    late, early = NOW + timedelta(minutes=5, seconds=1), NOW - timedelta(minutes=5, seconds=1)

    assert fault_of(verify, body, headers, OTHER, now=NOW) == "wrong_signature"
    assert fault_of(verify, body + b" ", headers, SECRET, now=NOW) == "body_reserialized"
    assert fault_of(verify, b"x", headers, SECRET, now=NOW) == "wrong_signature"
    assert fault_of(verify, json.loads(body), headers, SECRET, now=NOW) == "body_not_bytes"
    assert fault_of(verify, body.decode(), headers, SECRET, now=NOW) == "body_not_bytes"
    assert fault_of(verify, None, headers, SECRET, now=NOW) == "body_not_bytes"
    assert fault_of(verify, body, {}, SECRET, now=NOW) == "missing_header"
    assert fault_of(verify, body, contract, SECRET, require_timestamp=True) == "missing_header"
    assert fault_of(verify, body, {**headers, "webhook-id": None}, SECRET) == "missing_header"
    assert fault_of(verify, body, {**headers, "webhook-timestamp": "soon"}, SECRET) == "malformed_header"
    assert fault_of(verify, body, {**headers, "webhook-signature": "v1a,AAAA"}, SECRET) == "malformed_header"
    assert fault_of(verify, body, {"x-wabery-signature": "md5=1"}, SECRET) == "malformed_header"
    assert fault_of(verify, body, headers, SECRET, now=late) == "timestamp_too_old"
    assert fault_of(verify, body, headers, SECRET, now=early) == "timestamp_too_new"
    assert fault_of(verify, body, headers) == "no_secret"
    assert fault_of(verify, body, headers, ["", SECRET]) == "no_secret"


def test_the_edge_of_the_tolerance_is_inside() -> None:
    body, headers = sign_for_test(JOINED, SECRET, now=NOW)

    verify(body, headers, SECRET, now=NOW + timedelta(minutes=5))
    verify(body, headers, SECRET, now=NOW - timedelta(minutes=5))
    verify(body, headers, SECRET, now=NOW + timedelta(hours=1), tolerance=timedelta(hours=2))


@pytest.mark.parametrize("scheme", ["contract", "standard"])
@pytest.mark.parametrize(
    "again",
    [
        lambda content: json.dumps(content),
        lambda content: json.dumps(content, ensure_ascii=False, indent=2),
        lambda content: json.dumps(content, separators=(",", ":")),
    ],
    ids=["default", "indented", "ascii"],
)
def test_a_body_that_was_parsed_and_written_again_is_recognised(scheme: str, again: Any) -> None:
    body, headers = sign_for_test(JOINED, SECRET)
    kept = {
        name: value
        for name, value in headers.items()
        if name.startswith("webhook-") == (scheme == "standard")
    }

    assert fault_of(verify, again(json.loads(body)).encode(), kept, SECRET) == "body_reserialized"


@pytest.mark.parametrize(
    ("secret", "word"),
    [("wab_test_abcdef", "API key"), (f'"{SECRET}"', "quotes"), (f"{SECRET}\n", "white space")],
)
def test_the_usual_wrong_secrets_are_named(secret: str, word: str) -> None:
    body, headers = sign_for_test(JOINED, SECRET)

    with pytest.raises(WebhookVerificationError, match=word):
        verify(body, headers, secret)


@pytest.mark.parametrize(
    "content", [b"not json", b"[]", b'{"event":1,"payload":{}}', b'{"event":"x"}', b"[" * 100_000]
)
def test_a_signed_body_that_is_no_event(content: bytes) -> None:
    body, headers = sign_for_test(content, SECRET)

    assert fault_of(unwrap, body, headers, SECRET) == "not_an_event"


odd_text = st.one_of(
    st.text(),
    st.sampled_from(["v1,", "v1,\ud800", "sha256=", "sha256=" + "0" * 64, "９９", "-1", "1" * 5000]),
)
odd_value = st.one_of(odd_text, st.binary(), st.none(), st.integers(), st.lists(odd_text, max_size=2))
names = st.sampled_from(
    ["x-wabery-signature", "x-wabery-signature-next", "webhook-id", "webhook-timestamp", "webhook-signature"]
)


@given(
    headers=st.one_of(
        st.dictionaries(st.one_of(names, odd_text), odd_value, max_size=6),
        st.lists(st.one_of(st.tuples(st.one_of(names, odd_text), odd_value), odd_value), max_size=6),
    ),
    body=st.binary(max_size=50),
)
def test_nothing_a_stranger_sends_verifies_or_crashes(headers: Any, body: bytes) -> None:
    with pytest.raises(WebhookVerificationError):
        verify(body, headers, SECRET)


# What the frameworks hand over


def test_starlette_and_fastapi() -> None:
    body, headers = sign_for_test(JOINED, SECRET)
    request = Request(scope(headers), receiving(body))

    event = asyncio.run(webhooks.unwrap_starlette(request, SECRET))

    assert isinstance(event, ParticipantJoined)


def test_asgi_reads_the_body_to_its_end() -> None:
    body, headers = sign_for_test(JOINED, SECRET)

    event = asyncio.run(webhooks.unwrap_asgi(scope(headers), receiving(body[:10], body[10:]), SECRET))

    assert isinstance(event, ParticipantJoined)


def test_asgi_refuses_an_endless_and_a_broken_body() -> None:
    body, headers = sign_for_test(JOINED, SECRET)

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    def too_large() -> None:
        asyncio.run(
            webhooks.unwrap_asgi(scope(headers), receiving(body, body), SECRET, max_body=len(body) + 1)
        )

    def broken() -> None:
        asyncio.run(webhooks.unwrap_asgi(scope(headers), gone, SECRET))

    assert fault_of(too_large) == "body_too_large"
    assert fault_of(broken) == "not_an_event"


def test_wsgi() -> None:
    body, headers = sign_for_test(JOINED, SECRET)
    environ: dict[str, Any] = {
        f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()
    }
    environ |= {"wsgi.input": io.BytesIO(body + b"next request"), "CONTENT_LENGTH": str(len(body))}
    setup_testing_defaults(environ)

    event = webhooks.unwrap_wsgi(environ, SECRET)

    assert isinstance(event, ParticipantJoined)
    assert fault_of(webhooks.unwrap_wsgi, environ, SECRET, max_body=10) == "body_too_large"


def test_wsgi_reads_a_body_sent_in_chunks_where_the_server_marks_its_end() -> None:
    body, headers = sign_for_test(JOINED, SECRET)
    environ: dict[str, Any] = {
        f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()
    }
    environ |= {"wsgi.input": io.BytesIO(body), "wsgi.input_terminated": True}
    setup_testing_defaults(environ)
    environ.pop("CONTENT_LENGTH", None)

    assert isinstance(webhooks.unwrap_wsgi(environ, SECRET), ParticipantJoined)
    environ["wsgi.input"] = io.BytesIO(body)
    assert fault_of(webhooks.unwrap_wsgi, environ, SECRET, max_body=10) == "body_too_large"


def test_wsgi_over_a_real_connection() -> None:
    body, headers = sign_for_test(JOINED, SECRET)
    seen: list[Event] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append(webhooks.unwrap_wsgi(environ, SECRET))
        start_response("204 No Content", [])
        return []

    class Quiet(WSGIRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with make_server("127.0.0.1", 0, app, handler_class=Quiet) as server:
        one = threading.Thread(target=server.handle_request)
        one.start()
        answer = httpx2.post(
            f"http://127.0.0.1:{server.server_port}/", content=body, headers=headers, trust_env=False
        )
        one.join()

    assert answer.status_code == 204
    assert isinstance(seen[0], ParticipantJoined)


def test_flask() -> None:
    body, headers = sign_for_test(JOINED, SECRET)
    app = flask.Flask(__name__)

    @app.post("/hooks")
    def receive() -> tuple[str, int]:
        try:
            return webhooks.unwrap_flask(flask.request, SECRET).event, 200
        except WebhookVerificationError as refused:
            return refused.fault, 400

    good = app.test_client().post("/hooks", data=body, headers=headers)
    bad = app.test_client().post("/hooks", data=body + b"x", headers=headers)

    assert (good.status_code, good.text) == (200, "participant.joined")
    assert (bad.status_code, bad.text) == (400, "wrong_signature")


def test_django() -> None:
    if not django.conf.settings.configured:
        django.conf.settings.configure(ALLOWED_HOSTS=["testserver"])
    body, headers = sign_for_test(JOINED, SECRET)
    request = RequestFactory().post("/hooks", body, content_type="application/json", headers=headers)
    other = RequestFactory().post("/hooks", body + b"x", content_type="application/json", headers=headers)

    assert isinstance(webhooks.unwrap_django(request, SECRET), ParticipantJoined)
    assert fault_of(webhooks.unwrap_django, other, SECRET) == "wrong_signature"


def test_fastapi() -> None:
    body, headers = sign_for_test(JOINED, SECRET)
    app = fastapi.FastAPI()

    @app.post("/hooks")
    async def receive(request: fastapi.Request) -> str:
        return (await webhooks.unwrap_starlette(request, SECRET)).event

    async def deliver() -> httpx2.Response:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://app.test") as web:
            return await web.post("/hooks", content=body, headers=headers)

    assert asyncio.run(deliver()).json() == "participant.joined"


def scope(headers: dict[str, str]) -> dict[str, Any]:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": "/", "headers": raw}


def receiving(*parts: bytes) -> Any:
    messages = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)}
        for number, part in enumerate(parts, start=1)
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    return receive
