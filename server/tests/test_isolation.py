"""A project is a wall: every call, made with acme's keys and globex's ids, finds nothing and changes nothing."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import meta_bodies
import msgspec
import pytest
from snapshots import holdings
from world import ANA, BEN, INTENTS, App, Reply, Tenant

from wabery_server import accounts
from wabery_server.accounts import KeyDraft, Scope
from wabery_server.api.app import Operation
from wabery_server.api.routes import OPERATIONS
from wabery_server.phone import payloads

Route = tuple[str, str]


@dataclass
class World:
    """Acme asks; globex has something of every kind."""

    app: App
    acme: Tenant
    globex: Tenant
    pending: dict[str, Any]
    """Globex's intent, as its minter saw it."""
    joined: dict[str, Any]
    contact_id: str
    event_id: str

    answers: list[bytes] = field(default_factory=list)
    """What acme's keys were answered."""

    async def ask(
        self, method: str, path: str, json: object = None, key: str | None = None, **headers: str
    ) -> Reply:
        reply = await self.app.call(method, path, key or self.acme.secret_key, json=json, headers=headers)
        if key not in (self.globex.secret_key, self.globex.publishable_key):
            self.answers.append(reply.raw)
        return reply

    def secrets(self) -> list[str]:
        """What no answer to acme may contain."""
        return [
            self.globex.project.id, self.globex.project.name, self.globex.channel.id, self.globex.key_id,
            self.globex.secret_key, self.globex.publishable_key, self.pending["id"], self.joined["id"],
            self.pending["token"], self.contact_id, self.event_id, "globex_user",
        ]  # fmt: skip


@pytest.fixture
async def world(app: App, acme: Tenant, globex: Tenant) -> World:
    pending = await app.mint(globex.publishable_key, "globex_user")
    joined = await app.mint(globex.secret_key, "globex_user")
    await app.say(globex, joined["token"], BEN)
    (event,) = await app.events(globex.project.id)
    payload = event["payload"]
    return World(app, acme, globex, pending, joined, payload["contact_id"], payload["event_id"])


# What each call does with what belongs to somebody else

Case = Callable[[World], Awaitable[None]]
CASES: dict[Route, Case] = {}


def case(method: str, path: str) -> Callable[[Case], Case]:
    def add(function: Case) -> Case:
        assert (method, path) not in CASES
        CASES[method, path] = function
        return function

    return add


def not_found(reply: Reply) -> None:
    assert (reply.status, reply.body["error"]) == (404, "not_found")


def empty(reply: Reply) -> None:
    assert reply.status == 200, reply.body
    assert reply.body["data"] == []
    assert reply.body["has_more"] is False


@case("POST", INTENTS)
async def minting_for_their_number(world: World) -> None:
    wanted = {"customer_reference": "mine", "channel_id": world.globex.channel.id}
    for key in (world.acme.secret_key, world.acme.publishable_key):
        reply = await world.ask("POST", INTENTS, wanted, key)
        assert (reply.status, reply.body["error"], reply.body["param"]) == (
            400,
            "invalid_request",
            "channel_id",
        )


@case("POST", INTENTS + "/bulk")
async def minting_many_for_their_number(world: World) -> None:
    item = {"customer_reference": "mine", "channel_id": world.globex.channel.id}
    reply = await world.ask("POST", INTENTS + "/bulk", {"items": [item]})
    (answer,) = reply.body["data"]
    assert (answer["object"], answer["error"], answer["param"]) == ("error", "invalid_request", "channel_id")


@case("GET", INTENTS + "/{id}")
async def reading_their_intent(world: World) -> None:
    secret = {"x-wabery-client-secret": world.pending["client_secret"]}
    for intent in (world.pending, world.joined):
        path = f"{INTENTS}/{intent['id']}"
        not_found(await world.ask("GET", path))
        not_found(await world.ask("GET", path + "?wait=25"))
        not_found(await world.ask("GET", path, key=world.acme.publishable_key))
    not_found(
        await world.ask("GET", f"{INTENTS}/{world.pending['id']}", key=world.acme.publishable_key, **secret)
    )


@case("GET", INTENTS)
async def listing_their_intents(world: World) -> None:
    page = await world.ask("GET", f"{INTENTS}?limit=1", key=world.globex.secret_key)
    cursor = page.body["next_cursor"]

    empty(await world.ask("GET", INTENTS))
    for query in ("customer_reference=globex_user", f"contact_id={world.contact_id}", "status=JOINED"):
        empty(await world.ask("GET", f"{INTENTS}?{query}"))
    refused = await world.ask("GET", f"{INTENTS}?cursor={cursor}")
    assert (refused.status, refused.body["error"]) == (400, "invalid_cursor")


@case("GET", INTENTS + "/{id}/events")
async def following_their_intent(world: World) -> None:
    path = f"{INTENTS}/{world.pending['id']}/events"
    secret = {"x-wabery-client-secret": world.pending["client_secret"]}
    not_found(await world.ask("GET", path))
    not_found(await world.ask("GET", path, key=world.acme.publishable_key, **secret))


async def changing_their_intent(world: World, what: str, body: object) -> None:
    path = f"{INTENTS}/{world.pending['id']}/{what}"
    secret = {"x-wabery-client-secret": world.pending["client_secret"]}
    if what != "opened":
        not_found(await world.ask("POST", path, body))
    not_found(await world.ask("POST", path, body, world.acme.publishable_key, **secret))
    reply = await world.ask("POST", path, body, world.acme.publishable_key)
    assert (reply.status, reply.body["error"]) == (403, "insufficient_scope")


@case("POST", INTENTS + "/{id}/cancel")
async def cancelling_their_intent(world: World) -> None:
    await changing_their_intent(world, "cancel", None)


@case("POST", INTENTS + "/{id}/extend")
async def extending_their_intent(world: World) -> None:
    await changing_their_intent(world, "extend", {"expires_in": 86_400})


@case("POST", INTENTS + "/{id}/opened")
async def opening_their_intent(world: World) -> None:
    await changing_their_intent(world, "opened", {"via": "qr"})


@case("GET", "/v1/projects")
async def listing_their_project(world: World) -> None:
    reply = await world.ask("GET", "/v1/projects")
    assert [one["id"] for one in reply.body["data"]] == [world.acme.project.id]


@case("POST", "/v1/projects")
async def founding_a_project_beside_theirs(world: World) -> None:
    reply = await world.ask("POST", "/v1/projects", {"name": "Another"})
    assert reply.status == 200
    assert reply.body["id"] not in (world.acme.project.id, world.globex.project.id)
    not_found(await world.ask("GET", f"/v1/projects/{reply.body['id']}"))


@case("GET", "/v1/projects/{id}")
async def reading_their_project(world: World) -> None:
    not_found(await world.ask("GET", f"/v1/projects/{world.globex.project.id}"))


@case("PATCH", "/v1/projects/{id}")
async def changing_their_project(world: World) -> None:
    changes = {"webhook_url": "https://evil.example.com/", "webhook_secret": "my own secret"}
    not_found(await world.ask("PATCH", f"/v1/projects/{world.globex.project.id}", changes))


@case("POST", "/v1/projects/{id}/rotate-webhook-secret")
async def rotating_their_secret(world: World) -> None:
    not_found(await world.ask("POST", f"/v1/projects/{world.globex.project.id}/rotate-webhook-secret"))


@case("GET", "/v1/api-keys")
async def listing_their_keys(world: World) -> None:
    theirs = await world.ask("GET", "/v1/api-keys?limit=1", key=world.globex.secret_key)
    mine = await world.ask("GET", "/v1/api-keys")
    assert len(mine.body["data"]) == 2
    refused = await world.ask("GET", f"/v1/api-keys?cursor={theirs.body['next_cursor']}")
    assert (refused.status, refused.body["error"]) == (400, "invalid_cursor")


@case("POST", "/v1/api-keys")
async def making_a_key_for_their_project(world: World) -> None:
    named = {"name": "Mine", "scopes": ["full"], "project_id": world.globex.project.id}
    refused = await world.ask("POST", "/v1/api-keys", named)
    assert (refused.status, refused.body["param"]) == (400, "project_id")


@case("GET", "/v1/api-keys/{id}")
async def reading_their_key(world: World) -> None:
    not_found(await world.ask("GET", f"/v1/api-keys/{world.globex.key_id}"))


@case("PATCH", "/v1/api-keys/{id}")
async def changing_their_key(world: World) -> None:
    not_found(await world.ask("PATCH", f"/v1/api-keys/{world.globex.key_id}", {"name": "Mine"}))


@case("POST", "/v1/api-keys/{id}/rotate")
async def rotating_their_key(world: World) -> None:
    not_found(await world.ask("POST", f"/v1/api-keys/{world.globex.key_id}/rotate", {"overlap": 0}))


@case("DELETE", "/v1/api-keys/{id}")
async def revoking_their_key(world: World) -> None:
    not_found(await world.ask("DELETE", f"/v1/api-keys/{world.globex.key_id}"))


@case("GET", "/v1/channels")
async def listing_their_channels(world: World) -> None:
    reply = await world.ask("GET", "/v1/channels")
    assert [one["id"] for one in reply.body["data"]] == [world.acme.channel.id]


@case("POST", "/v1/channels")
async def taking_their_number(world: World) -> None:
    draft = {
        "name": "Mine", "phone_number_id": world.globex.channel.phone_number_id, "waba_id": "1",
        "display_phone_number": "+49 151 2345678", "app_secret": "a" * 32,
    }  # fmt: skip
    reply = await world.ask("POST", "/v1/channels", draft)
    assert (reply.status, reply.body["error"], reply.body["param"]) == (
        409,
        "number_taken",
        "phone_number_id",
    )


@case("GET", "/v1/channels/{id}")
async def reading_their_channel(world: World) -> None:
    not_found(await world.ask("GET", f"/v1/channels/{world.globex.channel.id}"))


@case("PATCH", "/v1/channels/{id}")
async def changing_their_channel(world: World) -> None:
    changes = {"app_secrets": ["mine_mine_mine"]}
    not_found(await world.ask("PATCH", f"/v1/channels/{world.globex.channel.id}", changes))


@case("POST", "/v1/channels/{id}/check")
async def checking_their_channel(world: World) -> None:
    not_found(await world.ask("POST", f"/v1/channels/{world.globex.channel.id}/check"))


@case("DELETE", "/v1/channels/{id}")
async def deleting_their_channel(world: World) -> None:
    not_found(await world.ask("DELETE", f"/v1/channels/{world.globex.channel.id}"))


@case("GET", "/v1/events")
async def listing_their_events(world: World) -> None:
    empty(await world.ask("GET", "/v1/events"))
    empty(await world.ask("GET", f"/v1/events?contact_id={world.contact_id}"))
    empty(await world.ask("GET", f"/v1/events?registration_intent_id={world.joined['id']}"))


@case("GET", "/v1/events/{id}")
async def reading_their_event(world: World) -> None:
    not_found(await world.ask("GET", f"/v1/events/{world.event_id}"))


@case("POST", "/inbound/whatsapp")
async def writing_in_their_name(world: World) -> None:
    now = world.app.service.clock.now()
    theirs = meta_bodies.change(world.globex.channel, meta_bodies.text(ANA, now, world.pending["token"]))
    mine = meta_bodies.change(world.acme.channel, meta_bodies.text(ANA, now, world.pending["token"]))

    counts = await world.app.deliver(world.acme, meta_bodies.envelope(theirs, mine))

    assert counts == {"foreign_change": 1, "unknown_token": 1}
    assert await world.app.events(world.acme.project.id) == []


NOTHING_OF_ANYBODY = {
    ("GET", "/inbound/whatsapp"),
    ("GET", "/v1/openapi.json"),
    ("GET", "/errors/{code}"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
}
"""Calls without a key that show nobody's data."""


def test_every_call_has_its_case() -> None:
    routes = {(operation.method, operation.path) for operation in OPERATIONS}

    assert set(CASES) | NOTHING_OF_ANYBODY == routes
    assert not set(CASES) & NOTHING_OF_ANYBODY
    assert all(
        operation.open for operation in OPERATIONS if (operation.method, operation.path) in NOTHING_OF_ANYBODY
    )


@pytest.mark.parametrize("route", CASES, ids=" ".join)
async def test_what_belongs_to_somebody_else_is_neither_seen_nor_changed(world: World, route: Route) -> None:
    theirs = await holdings(world.app.service.database, world.globex.project.id)

    await CASES[route](world)

    assert await holdings(world.app.service.database, world.globex.project.id) == theirs
    for secret in world.secrets():
        assert not any(secret.encode() in answer for answer in world.answers)


# Who may make a call at all

GUARDED = [operation for operation in OPERATIONS if not operation.open]


def path_of(operation: Operation) -> str:
    return operation.path.replace("{id}", "reg_01jx0000000000000000000000")


def named(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


async def key(app: App, of: Tenant, scopes: list[str]) -> str:
    now = app.service.clock.now()
    new = accounts.new_key(of.project, KeyDraft(name="some", scopes=scopes), now)
    await app.service.database.run(lambda tx: accounts.create_key(tx, new, actor="cli:test", at=now))
    return new.value


async def test_no_call_is_open_without_a_key(app: App, acme: Tenant) -> None:
    before = await holdings(app.service.database)
    refused: dict[str, set[tuple[int, str]]] = {named(operation): set() for operation in GUARDED}

    for operation in GUARDED:
        for credentials in (
            {},
            {"Authorization": ""},
            {"Authorization": "Bearer"},
            {"Authorization": f"Basic {acme.secret_key}"},
            {"Authorization": f"Bearer {acme.secret_key}x"},
            {"Authorization": "Bearer wab_live_0123456789ABCDEFGHIJKLMNOPQRST29Z8aS"},
            {"x-wabery-publishable-key": "wab_pub_0123456789ABCDEFGHIJKLMNOPQRST3qrAPx"},
            {"x-wabery-publishable-key": acme.secret_key},
            {"Authorization": f"Bearer {acme.publishable_key}"},
            {"x-wabery-publishable-key": ""},
        ):
            reply = await app.call(operation.method, path_of(operation), headers=credentials, json={})
            refused[named(operation)].add((reply.status, reply.body["error"]))

    expected = {(401, "missing_api_key"), (401, "invalid_api_key")}
    assert refused == {named(operation): expected for operation in GUARDED}
    assert await holdings(app.service.database) == before


async def test_every_call_needs_its_scope(app: App, acme: Tenant) -> None:
    keys = {scope: await key(app, acme, [one for one in Scope if one != scope]) for scope in Scope}
    before = await holdings(app.service.database)

    for operation in GUARDED:
        if operation.scope is None:
            continue
        reply = await app.call(operation.method, path_of(operation), keys[operation.scope], json={})
        assert (reply.status, reply.body["error"]) == (403, "insufficient_scope"), named(operation)
        assert str(operation.scope) in reply.body["message"]

    assert await holdings(app.service.database) == before


async def test_a_publishable_key_only_makes_the_calls_of_a_page(app: App, acme: Tenant) -> None:
    before = await holdings(app.service.database)

    for operation in GUARDED:
        reply = await app.call(operation.method, path_of(operation), acme.publishable_key, json={})
        if not operation.publishable:
            assert (reply.status, reply.body["error"]) == (403, "insufficient_scope"), named(operation)
        else:
            assert operation.path.startswith(INTENTS)

    assert await holdings(app.service.database) == before


async def test_a_secret_key_in_a_browser_is_refused_everywhere(app: App, acme: Tenant) -> None:
    before = await holdings(app.service.database)

    for operation in GUARDED:
        origin = {"Origin": "https://app.example.com"}
        reply = await app.call(operation.method, path_of(operation), acme.secret_key, headers=origin, json={})
        assert (reply.status, reply.body["error"]) == (403, "secret_key_in_browser"), named(operation)

    assert await holdings(app.service.database) == before


async def test_no_key_sees_an_answer_that_was_made_for_another(
    app: App, acme: Tenant, globex: Tenant
) -> None:
    second = await key(app, acme, ["full"])
    once = {"Idempotency-Key": "same"}

    async def mint(by: str) -> Reply:
        return await app.call("POST", INTENTS, by, json={"customer_reference": "u"}, headers=once)

    replies = [await mint(by) for by in (acme.secret_key, second, acme.publishable_key, globex.secret_key)]
    again = await mint(acme.secret_key)

    assert [reply.status for reply in replies] == [200] * 4
    assert len({reply.body["id"] for reply in replies}) == 4
    assert not any("Idempotency-Replayed" in reply.headers for reply in replies)
    assert again.body == replies[0].body
    assert again.headers["Idempotency-Replayed"] == "true"


async def test_one_persons_messages_reach_only_the_project_they_wrote_to(
    app: App, acme: Tenant, globex: Tenant
) -> None:
    for of in (acme, globex):
        intent = await app.mint(of.secret_key, f"{of.project.name} user")
        await app.say(of, intent["token"], ANA)

    await app.say(acme, "for acme", ANA)

    told = msgspec.json.encode(await app.events(globex.project.id))
    (event,) = await app.events(acme.project.id, "message.received")
    assert b"for acme" not in told
    assert acme.project.id.encode() not in told
    assert event["payload"]["customer_reference"] == "Acme user"


async def test_a_body_signed_by_nobody_here_is_refused(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    body = meta_bodies.envelope(
        meta_bodies.change(acme.channel, meta_bodies.text(ANA, app.service.clock.now(), intent["token"]))
    )
    before = await holdings(app.service.database)

    reply = await app.call(
        "POST", "/inbound/whatsapp", data=body, headers=payloads.sign(b"another company's app secret", body)
    )

    assert (reply.status, reply.body["error"]) == (401, "invalid_signature")
    assert await holdings(app.service.database) == before
