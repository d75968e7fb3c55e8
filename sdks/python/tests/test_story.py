"""The whole story through the SDK and the CLI, told to the small server and to the real one."""

import importlib.util
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from small_server import running

import wabery
from wabery import Wabery
from wabery.pytest_plugin import WaberyServer


@dataclass(frozen=True)
class World:
    """A server, and somebody with a phone."""

    base_url: str
    secret_key: str
    publishable_key: str
    project_id: str
    press_send: Callable[[str], None]


def small() -> Iterator[World]:
    with running() as server:
        yield World(
            server.base_url,
            server.secret_key,
            server.publishable_key,
            server.project_id,
            lambda wa_link: server.press_send(wa_link[-30:]),
        )


def real(request: pytest.FixtureRequest) -> Iterator[World]:
    server = request.getfixturevalue("wabery_server")
    yield World(server.base_url, server.api_key, server.publishable_key, server.project_id, server.press_send)


has_server = pytest.mark.skipif(
    importlib.util.find_spec("wabery_server") is None, reason="wabery-server is missing"
)


@pytest.fixture(params=["small", pytest.param("real", marks=has_server)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    yield from (small() if request.param == "small" else real(request))


@pytest.fixture
def client(world: World) -> Iterator[Wabery]:
    with Wabery(world.secret_key, world.base_url) as client:
        yield client


@pytest.fixture
def browser(world: World) -> Iterator[Wabery]:
    with Wabery(world.publishable_key, world.base_url) as client:
        yield client


@pytest.fixture
def somebody() -> str:
    """A customer reference that nobody else uses."""
    return f"user_{uuid.uuid4().hex}"


def test_from_mint_to_joined(client: Wabery, world: World, somebody: str) -> None:
    intent = client.registration_intents.create(customer_reference=somebody, metadata={"plan": "starter"})

    world.press_send(intent.wa_link)
    joined = client.registration_intents.wait(intent.id, timeout=20)

    assert (intent.status, joined.status) == ("PENDING", "JOINED")
    assert intent.token in intent.wa_link
    assert (joined.customer_reference, joined.metadata) == (somebody, {"plan": "starter"})
    assert joined.joined_at is not None
    assert joined.contact_id is not None


def test_a_browser_sees_its_own_intent_only_in_part(browser: Wabery, world: World, somebody: str) -> None:
    minted = browser.registration_intents.create(customer_reference=somebody, include=["qr"])

    polled = browser.registration_intents.get(minted.id)
    detailed = browser.registration_intents.get(minted.id, client_secret=minted.client_secret)

    assert minted.reference_trust == "unverified"
    assert minted.qr.svg.startswith("<svg")
    assert "wa_link" not in polled
    assert "customer_reference" not in polled
    assert detailed.wa_link == minted.wa_link


def test_a_cancelled_intent_is_over(client: Wabery, somebody: str) -> None:
    intent = client.registration_intents.create(customer_reference=somebody)

    cancelled = client.registration_intents.cancel(intent.id)
    ended = client.registration_intents.wait(intent.id, timeout=5)

    assert cancelled.rejection_reason == "canceled_by_app"
    assert ended.status == "REJECTED"


def test_cancelling_comes_too_late_for_a_joined_one(client: Wabery, world: World, somebody: str) -> None:
    intent = client.registration_intents.create(customer_reference=somebody)
    world.press_send(intent.wa_link)
    client.registration_intents.wait(intent.id, timeout=20)

    with pytest.raises(wabery.ConflictError) as raised:
        client.registration_intents.cancel(intent.id)

    assert raised.value.code == "already_joined"


def test_a_pending_intent_can_live_longer(client: Wabery, somebody: str) -> None:
    intent = client.registration_intents.create(customer_reference=somebody, expires_in=60)

    extended = client.registration_intents.extend(intent.id, expires_in=7200)

    assert extended.expires_at - intent.expires_at > timedelta(hours=1)


def test_what_happened_can_be_read_again(client: Wabery, world: World, somebody: str) -> None:
    intent = client.registration_intents.create(customer_reference=somebody)
    world.press_send(intent.wa_link)
    client.registration_intents.wait(intent.id, timeout=20)

    newest = client.events.list(type="participant.joined").data[0]
    event = client.events.get(newest.id)

    assert event.type == "participant.joined"
    assert event["payload"]["customer_reference"] == somebody


def test_the_same_idempotency_key_gives_the_same_intent(client: Wabery, somebody: str) -> None:
    key = uuid.uuid4().hex

    first = client.registration_intents.create(customer_reference=somebody, idempotency_key=key)
    again = client.registration_intents.create(customer_reference=somebody, idempotency_key=key)
    other = client.registration_intents.create(customer_reference=somebody)

    assert (again, other.id == first.id) == (first, False)


def test_a_list_turns_its_own_pages(client: Wabery, somebody: str) -> None:
    made = [client.registration_intents.create(customer_reference=somebody).id for _ in range(5)]

    listed = [intent.id for intent in client.registration_intents.list(customer_reference=somebody, limit=2)]

    assert listed == made[::-1]


def test_refusals_are_typed(client: Wabery, browser: Wabery, world: World, somebody: str) -> None:
    with pytest.raises(wabery.BadRequestError) as invalid:
        client.registration_intents.create(customer_reference=somebody, expires_in=1)
    with pytest.raises(wabery.NotFoundError) as unknown:
        client.registration_intents.get("reg_00000000000000000000000000")
    with pytest.raises(wabery.PermissionDeniedError):
        browser.projects.get(world.project_id)
    with pytest.raises(wabery.EndpointNotAvailableError):
        client.request("GET", "/registration-intents/reg_00000000000000000000000000/nothing")
    with (
        Wabery("wab_live_0123456789ABCDEFGHIJKLMNOPQRST29Z8aS", world.base_url) as stranger,
        pytest.raises(wabery.AuthenticationError),
    ):
        stranger.registration_intents.list()

    assert invalid.value.param == "expires_in"
    assert unknown.value.code == "not_found"
    assert unknown.value.request_id is not None


def test_settings_of_the_project(client: Wabery, world: World) -> None:
    before = client.projects.get(world.project_id)

    changed = client.projects.update(world.project_id, name="Renamed", webhook_url=None)
    restored = client.projects.update(world.project_id, name=before.name, webhook_url=before.webhook_url)
    (listed,) = client.projects.list()

    assert (changed.name, changed.webhook_url) == ("Renamed", None)
    assert restored.webhook_url == before.webhook_url
    assert before.webhook_secret.startswith("whsec_")
    assert "webhook_secret" not in listed


@has_server
def test_many_are_minted_at_once_each_by_itself(wabery_server: WaberyServer, somebody: str) -> None:
    items = [
        {"customer_reference": somebody, "metadata": {"plan": "starter"}},
        {"customer_reference": somebody, "expires_in": 1},
    ]

    minted, refused = wabery_server.client.registration_intents.create_many(items).data

    assert isinstance(minted, wabery.RegistrationIntent)
    assert minted.wa_link.startswith("https://wa.me/")
    assert isinstance(refused, wabery.ItemError)
    assert (refused.error, refused.param) == ("expires_in_out_of_range", "expires_in")


@has_server
def test_a_page_tells_how_the_person_went_on(wabery_server: WaberyServer, somebody: str) -> None:
    with Wabery(wabery_server.publishable_key, wabery_server.base_url) as page:
        minted = page.registration_intents.create(customer_reference=somebody)
        page.registration_intents.opened(minted.id, via="qr", client_secret=minted.client_secret)

    assert wabery_server.client.registration_intents.get(minted.id).opened_via == "qr"


@has_server
def test_a_page_waits_with_its_publishable_key_alone(wabery_server: WaberyServer, somebody: str) -> None:
    with Wabery(wabery_server.publishable_key, wabery_server.base_url) as page:
        minted = page.registration_intents.create(customer_reference=somebody)
        wabery_server.client.registration_intents.cancel(minted.id)
        ended = page.registration_intents.wait(minted.id, timeout=10)

    assert (ended.status, ended.rejection_reason) == ("REJECTED", "canceled")


@has_server
def test_a_key_gets_a_new_value_and_the_old_one_ends(wabery_server: WaberyServer) -> None:
    made = wabery_server.client.api_keys.create(name="ci", scopes=["registrations:read"])

    rotated = wabery_server.client.api_keys.rotate(made.id, overlap=0)

    assert made.key is not None
    assert rotated.key is not None
    with Wabery(made.key, wabery_server.base_url) as old, pytest.raises(wabery.AuthenticationError):
        old.registration_intents.list()
    with Wabery(rotated.key, wabery_server.base_url) as new:
        new.registration_intents.list(limit=1)


@has_server
def test_a_channel_is_checked(wabery_server: WaberyServer) -> None:
    channel = next(iter(wabery_server.client.channels.list()))

    checked = wabery_server.client.channels.check(channel.id)

    assert checked.channel_id == channel.id
    assert checked.ok is all(finding.state != "failed" for finding in checked.checks)
    assert {finding.name for finding in checked.checks} >= {"number"}


@has_server
def test_events_are_found_by_the_intent_they_are_about(wabery_server: WaberyServer, somebody: str) -> None:
    intent = wabery_server.client.registration_intents.create(customer_reference=somebody)
    wabery_server.press_send(intent.wa_link)

    listed = wabery_server.client.events.list(registration_intent_id=intent.id)

    assert {event.type for event in listed} == {"participant.joined"}
    assert all(event.payload["customer_reference"] == somebody for event in listed)


@has_server
def test_a_key_may_do_only_what_its_scopes_say(wabery_server: WaberyServer, somebody: str) -> None:
    made = wabery_server.client.api_keys.create(name="ci", scopes=["registrations:create"])
    assert made.key is not None

    with Wabery(made.key, wabery_server.base_url) as limited:
        limited.registration_intents.create(customer_reference=somebody)
        with pytest.raises(wabery.PermissionDeniedError):
            limited.projects.get(wabery_server.project_id)
    revoked = wabery_server.client.api_keys.revoke(made.id)

    assert wabery.keys.check(made.key).valid
    assert wabery_server.client.api_keys.get(made.id).key is None
    assert revoked.revoked_at is not None


def test_the_lines_of_the_public_page(world: World, somebody: str, tmp_path: Path) -> None:
    def shell(line: str) -> str:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "WABERY_API_KEY": world.secret_key,
            "WABERY_BASE_URL": world.base_url,
        }
        ran = subprocess.run(
            line, shell=True, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return ran.stdout

    line = """wabery registration-intents create --customer-reference "user_123" --metadata '{"plan":"starter"}'"""
    link = shell(line.replace("user_123", somebody)).strip()
    intent_id = shell(f"wabery registration-intents list --customer-reference {shlex.quote(somebody)}").split(
        "\t"
    )[0]
    world.press_send(link)
    waited = shell(f'wabery registration-intents get "{intent_id}" --wait --timeout 20s')

    assert link.startswith("https://wa.me/")
    assert "JOINED" in waited


def test_the_servers_limits_on_names_reach_the_caller(client: Wabery) -> None:
    with pytest.raises(wabery.BadRequestError) as raised:
        client.registration_intents.create(customer_reference="x" * 256)

    assert raised.value.param == "customer_reference"
