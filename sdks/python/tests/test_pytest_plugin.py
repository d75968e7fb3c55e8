"""The fixture `wabery_server`, used as an app's own tests would: with a receiver that verifies what it is sent."""

import importlib.util
import queue
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from wabery import pytest_plugin, webhooks
from wabery.pytest_plugin import WaberyServer
from wabery.webhooks import Event, MessageReceived, ParticipantJoined, RegistrationIntentEvent, SecurityEvent

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("wabery_server") is None, reason="wabery-server is missing"
)


@dataclass
class App:
    """An app's webhook receiver."""

    secret: str
    url: str = ""
    received: queue.Queue[Event] = field(default_factory=queue.Queue)

    def next(self) -> Event:
        return self.received.get(timeout=20)


@pytest.fixture
def app(wabery_server: WaberyServer) -> Iterator[App]:
    client, project_id = wabery_server.client, wabery_server.project_id
    before = client.projects.get(project_id)
    app = App(before.webhook_secret)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            app.received.put(webhooks.unwrap(body, self.headers.items(), app.secret, require_timestamp=True))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as receiver:
        thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        app.url = f"http://127.0.0.1:{receiver.server_address[1]}/hook"
        client.projects.update(project_id, webhook_url=app.url)
        yield app
        client.projects.update(project_id, webhook_url=before.webhook_url)
        receiver.shutdown()
        thread.join()


def test_an_app_hears_who_joined_and_what_they_write(wabery_server: WaberyServer, app: App) -> None:
    reference = f"user_{uuid.uuid4().hex}"
    intent = wabery_server.client.registration_intents.create(
        customer_reference=reference, metadata={"plan": "starter"}
    )

    wabery_server.press_send(intent.wa_link, persona="emi")
    joined = app.next()
    wabery_server.send("Where is my order?", persona="emi")
    message = app.next()

    assert isinstance(joined, ParticipantJoined)
    assert joined.payload.registration_intent_id == intent.id
    assert joined.payload.customer_reference == joined.payload.contact_reference == reference
    assert joined.payload.metadata == {"plan": "starter"}
    assert joined.payload.metadata_trusted is True
    assert joined.payload.whatsapp.profile_name == "恵美"
    assert joined.payload.from_ is not None
    assert isinstance(message, MessageReceived)
    assert message.payload.text == "Where is my order?"
    assert message.payload.customer_reference == reference
    assert message.payload.contact_id == joined.payload.contact_id
    assert message.payload.agent_id is None


def test_somebody_without_a_visible_number_joins_too(wabery_server: WaberyServer, app: App) -> None:
    intent = wabery_server.client.registration_intents.create(customer_reference=f"user_{uuid.uuid4().hex}")

    wabery_server.press_send(intent.wa_link, persona="ben")
    joined = app.next()

    assert isinstance(joined, ParticipantJoined)
    assert joined.payload.from_ is None
    assert joined.payload.whatsapp.user_id == "DE.81200020000000000002"


def test_a_link_that_somebody_else_sends_again_raises_an_alarm(wabery_server: WaberyServer, app: App) -> None:
    intent = wabery_server.client.registration_intents.create(customer_reference=f"user_{uuid.uuid4().hex}")
    wabery_server.press_send(intent.wa_link, persona="chidi")
    app.next()

    wabery_server.press_send(intent.wa_link, persona="stranger")
    alarm = app.next()

    assert isinstance(alarm, SecurityEvent)
    assert alarm.event == "security.token_reuse"
    assert alarm.payload.registration_intent_id == intent.id


def test_a_cancelled_intent_is_told_as_rejected(wabery_server: WaberyServer, app: App) -> None:
    intent = wabery_server.client.registration_intents.create(customer_reference=f"user_{uuid.uuid4().hex}")

    wabery_server.client.registration_intents.cancel(intent.id)
    rejected = app.next()

    assert isinstance(rejected, RegistrationIntentEvent)
    assert rejected.payload.registration_intent.rejection_reason == "canceled_by_app"
    assert "attempt" not in rejected.payload


def test_what_the_phone_cannot_send_is_an_error(wabery_server: WaberyServer) -> None:
    with pytest.raises(RuntimeError, match="no WhatsApp link"):
        wabery_server.press_send("https://example.com/")


def test_a_server_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")

    with pytest.raises(RuntimeError, match="wabery-server installed"), pytest_plugin._running(tmp_path):
        pass
