"""The fake phone: what it posts is what Meta would post, and what it shows has been verified."""

import asyncio
import hmac
import itertools
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from wabery import webhooks
from wabery_server import errors
from wabery_server.clock import MovableClock
from wabery_server.contacts import Identity
from wabery_server.inbox import Kind
from wabery_server.phone import RECEIVER_PATH, Channel, DevPhone, payloads, routes
from wabery_server.phone.receiver import KEPT, Delivery
from wabery_server.whatsapp import meta

RECORDED = Path(__file__).parent / "recorded" / "meta"
APP_SECRET = b"the dev channel's app secret"
SIGNING_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NUMBER = "12125550100"
TOKEN_TEXT = "Connect my account: wjr_7k3mq9xt2fhz4vbn8rcp5d6gja"
LINK = f"https://wa.me/{NUMBER}?text={quote(TOKEN_TEXT, safe='')}"
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@dataclass
class Stage:
    """A server on a real socket, with the phone's routes and an inbound route that only takes notes."""

    base_url: str
    web: aiohttp.ClientSession
    inbound: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    inbound_status: int = 200
    heard: list[Delivery] = field(default_factory=list)
    secrets: list[str] = field(default_factory=lambda: [SIGNING_SECRET])

    async def send(self, **body: object) -> dict[str, object]:
        async with self.web.post("/phone/api/send", json=body) as answer:
            assert answer.status == 200, await answer.text()
            sent = await answer.json()
            assert isinstance(sent, dict)
            return sent

    async def deliver(self, signed: webhooks.SignedDelivery) -> int:
        async with self.web.post(RECEIVER_PATH, data=signed.body, headers=signed.headers) as answer:
            return answer.status

    async def deliveries(self) -> list[dict[str, object]]:
        async with self.web.get("/phone/api/deliveries") as answer:
            content = await answer.json()
            assert set(content) == {"data"}
            return list(content["data"])


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    listening = socket.create_server(("127.0.0.1", 0))
    base_url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    async with aiohttp.ClientSession(base_url) as web:
        stage = Stage(base_url, web)

        async def inbound(request: Request) -> Response:
            stage.inbound.append((dict(request.headers), await request.body()))
            return Response(status_code=stage.inbound_status)

        async def secrets() -> list[str]:
            return stage.secrets

        dev = DevPhone(
            base_url=base_url,
            channel=Channel(
                phone_number_id="700800900100",
                display_phone_number=NUMBER,
                waba_id="900100200300",
                app_secret=APP_SECRET,
            ),
            signing_secrets=secrets,
            on_delivery=stage.heard.append,
            clock=MovableClock(),
        )
        app = Starlette(
            routes=[Route("/inbound/whatsapp", inbound, methods=["POST"]), *routes(dev)],
            exception_handlers={errors.WaberyError: refuse},
        )
        async with serving(app, listening):
            yield stage


def refuse(request: Request, refusal: Exception) -> Response:
    """As the app that main builds does it."""
    assert isinstance(refusal, errors.WaberyError)
    body = {"error": refusal.code, "message": refusal.message, "param": refusal.param}
    return JSONResponse(body, refusal.status)


@asynccontextmanager
async def serving(app: Starlette, listening: socket.socket) -> AsyncIterator[None]:
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", lifespan="off"))
    running = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield
    finally:
        server.should_exit = True
        await running


def reference_signer(body: bytes, header: bytes | None, secrets: list[bytes]) -> bytes | None:
    """A second opinion, independent of the code under test."""
    if not header or not header.startswith(b"sha256="):
        return None
    hits = [
        secret
        for secret in secrets
        if hmac.compare_digest(hmac.new(secret, body, "sha256").hexdigest().encode(), header[7:])
    ]
    return hits[0] if hits else None


# The body that goes out


def ana_says(text: str = "Hello", sender: Identity = payloads.PERSONAS["ana"].identity) -> bytes:
    return payloads.meta_text(
        phone_number_id="700800900100",
        display_phone_number=NUMBER,
        waba_id="900100200300",
        text=text,
        sender=sender,
        message_id="wamid.EX1",
        at=NOON,
    )


def shape(node: object) -> object:
    """A document with every leaf replaced by the name of its type."""
    if isinstance(node, dict):
        return {key: shape(value) for key, value in node.items()}
    if isinstance(node, list):
        return [shape(item) for item in node]
    return type(node).__name__


@pytest.mark.parametrize(
    ("sender", "recorded"),
    [
        (payloads.PERSONAS["ana"].identity, "text_with_phone"),
        (payloads.PERSONAS["ben"].identity, "text_without_phone"),
        (
            Identity(
                bsuid="US.8120001", parent_bsuid="US.ENT.9120001", phone="12125550123", profile_name="Ana"
            ),
            "text_with_parent_ids",
        ),
    ],
)
def test_a_message_has_the_shape_of_a_recorded_one(sender: Identity, recorded: str) -> None:
    body = json.loads(ana_says(sender=sender))

    assert shape(body) == shape(json.loads((RECORDED / f"{recorded}.json").read_bytes()))


def test_the_recorded_message_comes_out_again() -> None:
    body = payloads.meta_text(
        phone_number_id="700800900100",
        display_phone_number=NUMBER,
        waba_id="900100200300",
        text="wjr_7k3mq9xt2fhz4vbn8rcp5d6gja",
        sender=Identity(bsuid="DE.8120002", username="bo.k", profile_name="Bo"),
        message_id="wamid.EX2",
        at=datetime.fromtimestamp(1795341660.9, UTC),
    )

    assert json.loads(body) == json.loads((RECORDED / "text_without_phone.json").read_bytes())


@pytest.mark.parametrize("persona", payloads.PERSONAS.values(), ids=lambda persona: persona.key)
def test_every_persona_is_read_back_as_they_are(persona: payloads.Persona) -> None:
    [change] = meta.parse(ana_says(sender=persona.identity), NOON).changes

    [message] = change.messages
    assert (message.sender, message.kind, message.sent_at) == (persona.identity, Kind.MESSAGE, NOON)


def test_personas_share_no_identifier() -> None:
    identities = [persona.identity for persona in payloads.PERSONAS.values()]

    phones = [identity.phone for identity in identities if identity.phone]
    assert len({identity.bsuid for identity in identities}) == len(identities)
    assert len(set(phones)) == len(phones)


def test_a_receiver_that_dumps_again_before_it_verifies_is_found_out() -> None:
    for text in ("ü", "👋", "a/b", "a@b"):
        body = ana_says(text)

        again = json.dumps(json.loads(body), separators=(",", ":"), ensure_ascii=False).encode()
        assert body.isascii()
        assert json.loads(again) == json.loads(body)
        assert again != body


def test_each_new_message_has_an_id_of_its_own() -> None:
    ids = {payloads.new_message_id() for _ in range(1000)}

    assert len(ids) == 1000
    assert all(re.fullmatch(r"wamid\.[A-Za-z0-9+/]{40}", message_id) for message_id in ids)


# Sending


async def test_a_link_is_sent_as_a_signed_webhook_to_the_inbound_route(stage: Stage) -> None:
    sent = await stage.send(link=LINK)

    [(headers, body)] = stage.inbound
    assert (
        reference_signer(body, headers["x-hub-signature-256"].encode(), [b"other", APP_SECRET]) == APP_SECRET
    )
    assert headers["content-type"] == "application/json"
    [change] = meta.parse(body, datetime.now(UTC)).changes
    [message] = change.messages
    assert message.texts == (TOKEN_TEXT,)
    assert message.sender == payloads.PERSONAS["ana"].identity
    assert (change.phone_number_id, change.waba_id) == ("700800900100", "900100200300")
    assert sent == {
        "delivered": True,
        "status": 200,
        "message_id": message.provider_message_id,
        "persona": "ana",
    }


async def test_a_text_is_sent_as_it_is_by_whoever_holds_the_phone(stage: Stage) -> None:
    sent = await stage.send(text=" مرحبا 👋\n\x00a/b ", persona="ben", message_id="wamid.AGAIN")

    [(_, body)] = stage.inbound
    [written] = json.loads(body)["entry"][0]["changes"][0]["value"]["messages"]
    assert written["text"] == {"body": " مرحبا 👋\n\x00a/b "}
    assert "from" not in written
    assert (sent["message_id"], sent["persona"]) == ("wamid.AGAIN", "ben")
    assert written["id"] == "wamid.AGAIN"


async def test_a_refusal_by_the_server_is_shown(stage: Stage) -> None:
    stage.inbound_status = 401

    sent = await stage.send(text="hello")

    assert (sent["delivered"], sent["status"]) == (False, 401)


REFUSED: list[tuple[object, str | None]] = [
    ({}, "text"),
    ({"text": "a", "link": LINK}, "text"),
    ({"text": ""}, "text"),
    ({"text": " \n"}, "text"),
    ({"text": 5}, "text"),
    ({"text": "a", "persona": "zoe"}, "persona"),
    ({"text": "a", "persona": ["ana"]}, "persona"),
    ({"text": "a", "message_id": ""}, "message_id"),
    ({"text": "a", "message_id": "x" * 513}, "message_id"),
    ({"text": "a", "colour": "green"}, "colour"),
    ({"link": "https://example.com/12125550100?text=a"}, "link"),
    ({"link": "https://wa.me/?text=a"}, "link"),
    ({"link": "https://wa.me/u/ana?text=a"}, "link"),
    ({"link": "javascript:alert(1)"}, "link"),
    ({"link": "https://[wa.me/"}, "link"),
    ({"link": "https://wa.me/447700900000?text=a"}, "link"),
    ({"link": f"https://wa.me/{NUMBER}"}, "text"),
    ([], None),
    ("text", None),
]


async def test_a_wrong_request_says_what_is_wrong_and_sends_nothing(
    stage: Stage, subtests: pytest.Subtests
) -> None:
    for body, param in REFUSED:
        with subtests.test(str(body)):
            async with stage.web.post("/phone/api/send", json=body) as answer:
                content = await answer.json()

            assert (answer.status, content["error"], content["param"]) == (400, "invalid_request", param)
    assert stage.inbound == []


async def test_what_is_no_json_is_refused(stage: Stage, subtests: pytest.Subtests) -> None:
    headers = {"content-type": "application/json"}

    for body in (b"", b"{", b"\xff", b'{"text":"\\ud800"}', b'{"text":' + b"[" * 5000):
        with subtests.test(repr(body[:20])):
            async with stage.web.post("/phone/api/send", data=body, headers=headers) as answer:
                content = await answer.json()

            assert (answer.status, content["error"]) == (400, "invalid_request")


async def test_only_json_is_taken_so_that_no_foreign_page_can_post(
    stage: Stage, subtests: pytest.Subtests
) -> None:
    kinds = ("text/plain", "application/x-www-form-urlencoded", "application/jsonp", "")
    for path, kind in itertools.product(("/phone/api/send", "/phone/api/open"), kinds):
        with subtests.test(f"{kind} to {path}"):
            headers = {"content-type": kind}
            async with stage.web.post(path, data=b'{"text":"a"}', headers=headers) as answer:
                content = await answer.json()

            assert (answer.status, content["error"]) == (415, "unsupported_media_type")
    assert stage.inbound == []


async def test_a_phone_without_a_server_says_so() -> None:
    nobody = socket.create_server(("127.0.0.1", 0))
    port = nobody.getsockname()[1]
    nobody.close()
    listening = socket.create_server(("127.0.0.1", 0))

    async def secrets() -> list[str]:
        return []

    dev = DevPhone(
        base_url=f"http://127.0.0.1:{port}",
        channel=Channel(phone_number_id="1", display_phone_number=NUMBER, waba_id="2", app_secret=APP_SECRET),
        signing_secrets=secrets,
        on_delivery=print,
        clock=MovableClock(),
    )
    app = Starlette(routes=routes(dev), exception_handlers={errors.WaberyError: refuse})
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/phone/api/send"
    async with (
        serving(app, listening),
        aiohttp.ClientSession() as web,
        web.post(url, json={"text": "a"}) as answer,
    ):
        content = await answer.json()

    assert (answer.status, content["error"]) == (503, "unavailable")


# Opening


LINKS = [
    (LINK, TOKEN_TEXT),
    (f"  {LINK}\n", TOKEN_TEXT),
    (f"https://api.whatsapp.com/send?phone={NUMBER}&text=a%20b%26c", "a b&c"),
    (f"https://api.whatsapp.com/send/?text=a&phone=%2B{NUMBER}", "a"),
    (f"whatsapp://send?phone={NUMBER}&text=%D9%85%0Ab", "م\nb"),
    (f"https://wa.me/{NUMBER}/?text=made+with+quote_plus", "made+with+quote_plus"),
    (f"https://wa.me/{NUMBER}", ""),
]


async def test_opening_a_link_fills_in_its_text_and_sends_nothing(
    stage: Stage, subtests: pytest.Subtests
) -> None:
    for link, text in LINKS:
        with subtests.test(link):
            async with stage.web.post("/phone/api/open", json={"link": link}) as answer:
                opened = await answer.json()

            assert (answer.status, opened) == (200, {"to": NUMBER, "text": text})
    assert stage.inbound == []


# The receiver


def event(
    number: int, name: str = "message.received", secret: str = SIGNING_SECRET
) -> webhooks.SignedDelivery:
    body = {
        "event": name,
        "payload": {"event_id": f"evt_{number}", "text": f"Message {number}", "customer_reference": None},
        "sentAt": "2026-11-22T12:00:00.000Z",
    }
    return webhooks.sign_for_test(body, secret, event_id=f"evt_{number}")


async def test_an_authentic_delivery_is_told_and_listed(stage: Stage) -> None:
    status = await stage.deliver(event(1, "participant.joined"))

    [told] = stage.heard
    [listed] = await stage.deliveries()
    assert status == 204
    assert (told.webhook_id, told.event, told.times) == ("evt_1", "participant.joined", 1)
    assert told.payload["event_id"] == "evt_1"
    received_at = listed.pop("received_at")
    assert isinstance(received_at, str)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", received_at)
    assert listed == {
        "webhook_id": "evt_1",
        "event": "participant.joined",
        "sent_at": "2026-11-22T12:00:00.000Z",
        "times": 1,
        "payload": {"event_id": "evt_1", "text": "Message 1", "customer_reference": None},
    }


async def test_a_delivery_that_comes_again_is_acknowledged_and_counted_once(stage: Stage) -> None:
    statuses = [await stage.deliver(event(1)) for _ in range(3)]

    [listed] = await stage.deliveries()
    assert statuses == [204, 204, 204]
    assert listed["times"] == 3
    assert len(stage.heard) == 1


async def test_the_newest_hundred_are_kept_newest_first(stage: Stage) -> None:
    for number in range(KEPT + 5):
        assert await stage.deliver(event(number)) == 204

    listed = [delivery["webhook_id"] for delivery in await stage.deliveries()]
    assert listed == [f"evt_{number}" for number in reversed(range(5, KEPT + 5))]


async def test_during_a_rotation_either_secret_is_good(stage: Stage) -> None:
    stage.secrets = ["whsec_bmV4dCBzZWNyZXQgb2YgMjQgYnl0ZXM=", SIGNING_SECRET]

    assert await stage.deliver(event(1)) == 204
    assert await stage.deliver(event(2, secret=stage.secrets[0])) == 204


def without(signed: webhooks.SignedDelivery, *names: str) -> webhooks.SignedDelivery:
    return signed._replace(
        headers={name: value for name, value in signed.headers.items() if name not in names}
    )


STANDARD = ("webhook-id", "webhook-timestamp", "webhook-signature")
GOOD = event(1)
FORGED = event(1, secret="whsec_" + "A" * 32)


FAULTY = {
    "another secret": FORGED,
    "another body": GOOD._replace(body=GOOD.body + b" "),
    "another id": GOOD._replace(headers={**GOOD.headers, "webhook-id": "evt_2"}),
    "no contract header": without(GOOD, "x-wabery-signature"),
    "no standard headers": without(GOOD, *STANDARD),
    "no timestamp": without(GOOD, "webhook-timestamp"),
    "forged contract header": GOOD._replace(
        headers={**GOOD.headers, "x-wabery-signature": FORGED.headers["x-wabery-signature"]}
    ),
    "forged standard header": GOOD._replace(
        headers={**GOOD.headers, "webhook-signature": FORGED.headers["webhook-signature"]}
    ),
    "years old": webhooks.sign_for_test(GOOD.body, SIGNING_SECRET, now=NOON.replace(year=2020)),
}


async def test_a_delivery_is_believed_only_when_both_signatures_hold(
    stage: Stage, subtests: pytest.Subtests
) -> None:
    for fault, signed in FAULTY.items():
        with subtests.test(fault):
            assert await stage.deliver(signed) == 401
    assert stage.heard == []
    assert await stage.deliveries() == []


async def test_a_signed_delivery_that_is_no_event_is_refused(stage: Stage, subtests: pytest.Subtests) -> None:
    incomplete = (b'{"event":"a","payload":{}}', b'{"event":"a","payload":{},"sentAt":5}')
    for body in (b"[]", b"{}", b'{"event":"a","payload":[],"sentAt":""}', *incomplete):
        with subtests.test(repr(body)):
            status = await stage.deliver(webhooks.sign_for_test(body, SIGNING_SECRET))

            assert status == 401  # the contract header alone counts only with a recent `sentAt`
    assert stage.heard == []


# The page


async def test_the_page_runs_only_its_own_script(stage: Stage) -> None:
    policies, nonces = [], []
    for _ in range(2):
        async with stage.web.get("/phone") as answer:
            page = await answer.text()
        policies.append(answer.headers["content-security-policy"])
        nonces += re.findall(r'<(?:script|style) nonce="([^"]+)">', page)

    assert len(nonces) == 4
    assert len(set(nonces)) == 2
    assert f"script-src 'nonce-{nonces[0]}'" in policies[0]
    assert f"script-src 'nonce-{nonces[2]}'" in policies[1]
    assert "unsafe" not in policies[0]
    assert "{{" not in page
    assert not re.search(r"\son[a-z]+=|\sstyle=|javascript:|<(?:img|iframe|script src)", page)
    assert not re.search(r'(?:src|href)="(?!data:,)', page)


async def test_the_page_offers_every_persona_and_labels_every_field(stage: Stage) -> None:
    async with stage.web.get("/phone") as answer:
        page = await answer.text()

    for key in payloads.PERSONAS:
        assert f'<option value="{key}"' in page
    fields = re.findall(r'<(?:input|select|textarea) id="(\w+)"', page)
    assert fields == re.findall(r'<label for="(\w+)"', page)
    assert f"+{NUMBER}" in page
    assert "SIMULATOR" in page
