"""Who sees what of an intent and of a person: the exact keys, in every state, for every viewer."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple

import msgspec
import pytest
from world import ANA, BEN, INTENTS, App, Tenant

from wabery_server import accounts, intents, outbox
from wabery_server.accounts import KeyDraft, ProjectDraft
from wabery_server.clock import MovableClock
from wabery_server.contacts import Contact, Identity
from wabery_server.intents import RejectionReason

MINTED = {
    "object", "id", "token", "status", "wa_link", "expires_at", "created_at", "livemode", "customer_reference",
    "metadata", "metadata_trusted", "reference_trust", "channel_id", "phase", "client_secret", "joined_at",
    "contact_id", "rejection_reason", "rejection_message",
}  # fmt: skip
ANONYMOUS = {"object", "id", "status", "phase", "livemode", "created_at", "expires_at", "joined_at"}
HOLDER = ANONYMOUS | {"wa_link"}
SHOWN_WITH_CREATE = {"token", "wa_link", "client_secret"}
READER = (MINTED - SHOWN_WITH_CREATE) | {
    "already_linked",
    "message_id",
    "opened_at",
    "opened_via",
    "identity",
}
IDENTIFIER = READER | {"whatsapp"}
OWNER = READER | SHOWN_WITH_CREATE
FULL = OWNER | {"whatsapp"}
REJECTED = {"rejection_reason"}

ENVELOPE = {"event_id", "organization_id", "project_id", "livemode", "created_at"}
PERSON = ENVELOPE | {"contact_id", "conversation_id", "channel_id", "from", "whatsapp"}
WHATSAPP = {"user_id", "parent_user_id", "wa_id", "username", "profile_name", "country"}
REFERENCE = {"registration_intent_id", "customer_reference", "contact_reference"}

COARSE = {
    "canceled_by_app": "canceled",
    "superseded": "canceled",
    "key_revoked": "canceled",
    "channel_unavailable": "error",
    "declined_by_customer": "declined",
    "confirmation_failed": "declined",
    "sender_mismatch": "not_allowed",
    "sender_blocked": "not_allowed",
    "sender_opted_out": "not_allowed",
    "country_not_allowed": "not_allowed",
    "phone_number_required": "not_allowed",
    "sender_type_not_allowed": "not_allowed",
    "identity_already_linked": "conflict",
    "reference_already_linked": "conflict",
    "link_limit_reached": "conflict",
    "reference_unverified": "not_allowed",
    "reference_blocked": "not_allowed",
    "denied_by_app": "not_allowed",
    "too_many_attempts": "error",
}
"""What a publishable key is told of each reason."""


class Scene(NamedTuple):
    """Where an intent has got to."""

    app: App
    tenant: Tenant
    clock: MovableClock
    intent: dict[str, Any]
    """The answer to its mint."""


async def pending(scene: Scene) -> None:
    """Nothing has happened yet."""


async def grace(scene: Scene) -> None:
    scene.clock.move(timedelta(minutes=31))


async def expired(scene: Scene) -> None:
    scene.clock.move(timedelta(minutes=40))


async def swept(scene: Scene) -> None:
    scene.clock.move(timedelta(minutes=40))
    await sweep(scene.app, scene.tenant)


async def joined(scene: Scene) -> None:
    await scene.app.say(scene.tenant, scene.intent["token"], ANA)


async def joined_without_a_number(scene: Scene) -> None:
    await scene.app.say(scene.tenant, scene.intent["token"], BEN)


async def canceled(scene: Scene) -> None:
    reply = await scene.app.call("POST", f"{INTENTS}/{scene.intent['id']}/cancel", scene.tenant.secret_key)
    assert reply.status == 200


async def canceled_in_its_grace(scene: Scene) -> None:
    await grace(scene)
    await canceled(scene)


async def in_conflict(scene: Scene) -> None:
    """The person who writes is linked to somebody else already."""
    other = await scene.app.mint(scene.tenant.secret_key, "somebody else")
    await scene.app.say(scene.tenant, other["token"], ANA)
    await scene.app.say(scene.tenant, scene.intent["token"], ANA)


State = Callable[[Scene], Awaitable[None]]
STATES: dict[State, tuple[str, str | None]] = {
    pending: ("PENDING", None),
    grace: ("EXPIRED", "grace"),
    expired: ("EXPIRED", None),
    swept: ("EXPIRED", None),
    joined: ("JOINED", None),
    joined_without_a_number: ("JOINED", None),
    canceled: ("REJECTED", None),
    canceled_in_its_grace: ("REJECTED", None),
    in_conflict: ("REJECTED", None),
}


def named(state: State) -> str:
    return state.__name__


@pytest.fixture(params=list(STATES), ids=named)
def state(request: pytest.FixtureRequest) -> State:
    chosen: State = request.param
    return chosen


@pytest.fixture
async def scene(app: App, acme: Tenant, clock: MovableClock, state: State) -> Scene:
    """An unverified intent of half an hour, taken to its state."""
    intent = await app.mint(acme.publishable_key, "user_123", metadata={"plan": "starter"}, expires_in=1800)
    made = Scene(app, acme, clock, intent)
    await state(made)
    return made


async def sweep(app: App, of: Tenant) -> list[str]:
    service = app.service
    return await service.database.run(
        lambda tx: intents.expire_due(
            tx, of.project.id, service.clock.now(), service.settings.expiry_grace, limit=100
        )
    )


async def key(app: App, of: Tenant, *scopes: str) -> str:
    new = accounts.new_key(of.project, KeyDraft(name="some", scopes=list(scopes)), app.service.clock.now())
    await app.service.database.run(
        lambda tx: accounts.create_key(tx, new, actor="cli:test", at=app.service.clock.now())
    )
    return new.value


async def seen(app: App, intent_id: str, by: str, **headers: str) -> dict[str, Any]:
    reply = await app.call("GET", f"{INTENTS}/{intent_id}", by, headers=headers)
    assert reply.status == 200, reply.body
    body: dict[str, Any] = reply.body
    return body


async def first_said(app: App, path: str, by: str, headers: dict[str, str]) -> Any:
    """The first event of a stream; then the line is hung up."""
    name = "x-wabery-publishable-key" if by.startswith("wab_pub_") else "Authorization"
    value = by if by.startswith("wab_pub_") else f"Bearer {by}"
    async with app.web.get(app.base_url + path, headers={name: value, **headers}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        event, data = await answer.content.readline(), await answer.content.readline()
    assert event == b"event: registration_intent\n"
    return msgspec.json.decode(data.removeprefix(b"data: "))


# Intents


@pytest.mark.parametrize("kind", ["publishable", "secret", "secret that may only create"])
async def test_whoever_mints_sees_this(app: App, acme: Tenant, kind: str) -> None:
    keys = {"publishable": acme.publishable_key, "secret": acme.secret_key}
    by = keys[kind] if kind in keys else await key(app, acme, "registrations:create")

    intent = await app.mint(by, "user_123", metadata={"plan": "starter"})

    assert set(intent) == MINTED
    assert intent["metadata_trusted"] is (kind != "publishable")
    assert intent["reference_trust"] == ("unverified" if kind == "publishable" else "server")
    assert intent["contact_id"] is intent["joined_at"] is intent["rejection_reason"] is None
    assert intent["token"] in intent["wa_link"]


async def test_a_publishable_key_with_the_id_alone_sees_how_far_it_is_and_no_more(
    scene: Scene, state: State
) -> None:
    body = await seen(scene.app, scene.intent["id"], scene.tenant.publishable_key)

    assert set(body) == (ANONYMOUS | REJECTED if body["status"] == "REJECTED" else ANONYMOUS)
    assert (body["status"], body["phase"]) == STATES[state]
    assert (body["joined_at"] is not None) == (body["status"] == "JOINED")


async def test_with_the_client_secret_it_also_sees_the_link_and_a_masked_identity(
    scene: Scene, state: State
) -> None:
    body = await seen(
        scene.app,
        scene.intent["id"],
        scene.tenant.publishable_key,
        **{"x-wabery-client-secret": scene.intent["client_secret"]},
    )

    more = {"JOINED": {"identity"}, "REJECTED": REJECTED}.get(body["status"], set())
    assert set(body) == HOLDER | more
    assert (body["status"], body["phase"]) == STATES[state]
    assert body["wa_link"] == scene.intent["wa_link"]
    assert set(body.get("identity", {})) in ({"display", "country"}, set())


SCOPES = {
    ("registrations:read",): READER,
    ("registrations:read", "contacts:identity"): IDENTIFIER,
    ("registrations:read", "registrations:create"): OWNER,
    ("full",): FULL,
}


async def test_a_secret_key_sees_what_its_scopes_open(scene: Scene, state: State) -> None:
    keys = {scopes: await key(scene.app, scene.tenant, *scopes) for scopes in SCOPES}

    bodies = {scopes: await seen(scene.app, scene.intent["id"], keys[scopes]) for scopes in SCOPES}

    for scopes, body in bodies.items():
        assert set(body) == SCOPES[scopes]
        assert (body["status"], body["phase"]) == STATES[state]
        assert body["customer_reference"] == "user_123"
        assert body["metadata"] == {"plan": "starter"}
        assert (body["rejection_reason"] is not None) == (body["status"] == "REJECTED")
        assert (body["rejection_message"] is not None) == (body["status"] == "REJECTED")
        assert (body["identity"] is not None) == (body["contact_id"] is not None)


async def test_a_list_shows_what_a_read_shows_without_what_opens_the_link(scene: Scene) -> None:
    by = scene.tenant.secret_key

    listed = await scene.app.call("GET", f"{INTENTS}?customer_reference=user_123", by)

    whole = await seen(scene.app, scene.intent["id"], by)
    assert set(listed.body) == {"object", "data", "has_more", "next_cursor"}
    assert listed.body["data"] == [{name: whole[name] for name in IDENTIFIER}]


async def test_the_answer_to_a_cancel_shows_no_more_than_a_read(app: App, acme: Tenant) -> None:
    first = await app.mint(acme.publishable_key, "user_123")
    second = await app.mint(acme.publishable_key, "user_123")
    holder = {"x-wabery-client-secret": first["client_secret"]}

    by_page = await app.call("POST", f"{INTENTS}/{first['id']}/cancel", acme.publishable_key, headers=holder)
    by_server = await app.call("POST", f"{INTENTS}/{second['id']}/cancel", acme.secret_key)

    assert set(by_page.body) == ANONYMOUS | REJECTED
    assert set(by_server.body) == READER


async def test_many_minted_at_once_are_shown_as_one_is(app: App, acme: Tenant) -> None:
    items = [{"customer_reference": "user_1"}, {"customer_reference": "user_2", "include": ["qr"]}, {}]

    reply = await app.call("POST", f"{INTENTS}/bulk", acme.secret_key, json={"items": items})

    assert set(reply.body) == {"object", "data"}
    assert [set(one) for one in reply.body["data"]] == [
        MINTED, MINTED | {"qr"}, {"object", "error", "message", "param", "hint"}
    ]  # fmt: skip


async def test_the_answers_to_the_calls_of_a_page_show_no_more_than_a_read(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.publishable_key, expires_in=60)
    path, holder = f"{INTENTS}/{intent['id']}", {"x-wabery-client-secret": intent["client_secret"]}

    extended = await app.call("POST", path + "/extend", acme.publishable_key, headers=holder)
    opened = await app.call(
        "POST", path + "/opened", acme.publishable_key, json={"via": "qr"}, headers=holder
    )
    by_server = await app.call("POST", path + "/extend", acme.secret_key, json={"expires_in": 3600})

    assert set(extended.body) == set(opened.body) == ANONYMOUS
    assert set(by_server.body) == READER


async def test_a_stream_shows_what_a_read_shows(scene: Scene) -> None:
    path = f"{INTENTS}/{scene.intent['id']}"
    holder = {"x-wabery-client-secret": scene.intent["client_secret"]}
    viewers = [
        (scene.tenant.publishable_key, {}),
        (scene.tenant.publishable_key, holder),
        (scene.tenant.secret_key, {}),
    ]

    for by, headers in viewers:
        read = await scene.app.call("GET", path, by, headers=headers)
        assert await first_said(scene.app, path + "/events", by, headers) == read.body


async def test_only_create_does_not_read(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    by = await key(app, acme, "registrations:create")

    reply = await app.call("GET", f"{INTENTS}/{intent['id']}", by)

    assert (reply.status, reply.body["error"]) == (403, "insufficient_scope")


@pytest.mark.parametrize("guess", ["", "wcs_", "wcs_7k3mq9xt2fhz4vbn8rcp5d6gja", "é" * 30])
async def test_a_wrong_client_secret_shows_nothing(app: App, acme: Tenant, guess: str) -> None:
    intent = await app.mint(acme.publishable_key)
    other = await app.mint(acme.publishable_key)
    guesses = [guess, other["client_secret"], intent["client_secret"] + "0", intent["client_secret"].upper()]

    for one in guesses:
        headers = {"x-wabery-client-secret": one}
        reply = await app.call("GET", f"{INTENTS}/{intent['id']}", acme.publishable_key, headers=headers)
        assert (reply.status, reply.body["error"]) == (403, "wrong_client_secret")
        assert reply.body["param"] == "x-wabery-client-secret"


async def test_a_page_may_have_the_code_drawn(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.publishable_key, include=["qr"])
    path = f"{INTENTS}/{intent['id']}?include=qr"
    holder = {"x-wabery-client-secret": intent["client_secret"]}

    with_secret = await app.call("GET", path, acme.publishable_key, headers=holder)
    without = await app.call("GET", path, acme.publishable_key)
    reader = await app.call("GET", path, await key(app, acme, "registrations:read"))
    owner = await app.call("GET", path, acme.secret_key)

    assert set(intent) == MINTED | {"qr"}
    assert set(with_secret.body) == HOLDER | {"qr"}
    assert set(owner.body) == FULL | {"qr"}
    assert set(without.body) == ANONYMOUS
    assert set(reader.body) == READER
    assert with_secret.body["qr"] == owner.body["qr"] == intent["qr"]
    assert set(intent["qr"]) == {"size", "modules", "svg"}


async def test_the_link_is_gone_with_its_number(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.publishable_key)
    await app.call("DELETE", f"/v1/channels/{acme.channel.id}", acme.secret_key)
    app.service.directory.forget()

    holder = {"x-wabery-client-secret": intent["client_secret"]}
    body = await seen(app, intent["id"], acme.publishable_key, **holder)

    assert set(body) == HOLDER | REJECTED
    assert body["rejection_reason"] == "error"
    assert body["wa_link"] is None


async def test_a_browser_is_told_the_class_of_a_reason(app: App, acme: Tenant) -> None:
    told = {}
    for number, reason in enumerate(RejectionReason):
        intent = await app.mint(acme.publishable_key, f"user_{number}")
        await app.service.database.run(
            lambda tx, i=intent["id"], r=reason: tx.run(  # type: ignore[misc]  # defaults bind the loop's variables
                "update registration_intents set status = 'REJECTED', rejection_reason = $2, ended_at = now()"
                " where id = $1",
                i,
                r,
            )
        )
        by_page = await seen(app, intent["id"], acme.publishable_key)
        by_server = await seen(app, intent["id"], acme.secret_key)
        told[by_server["rejection_reason"]] = by_page["rejection_reason"]
        assert by_server["rejection_message"] == reason.message

    assert told == {reason: COARSE[reason] for reason in RejectionReason}


async def test_no_answer_to_a_publishable_key_names_the_person_or_the_reference(scene: Scene) -> None:
    holder = {"x-wabery-client-secret": scene.intent["client_secret"]}
    path = f"{INTENTS}/{scene.intent['id']}"
    raw = b""

    for headers in ({}, holder):
        for query in ("", "?include=qr", "?wait=0"):
            reply = await scene.app.call("GET", path + query, scene.tenant.publishable_key, headers=headers)
            drawn = reply.body.get("qr", {}).get("modules", "")
            raw += reply.raw.replace(drawn.encode(), b"")  # base64 spells a name now and then

    for secret in (
        b"user_123", b"starter", b"contact_", b"msg_", b"channel_", b"12125550123", b"US.8120001", b"DE.8120002",
        b"bo.k", b"Ana", b"Ben", b"wcs_", b"already_linked", b"identity_already_linked", b"somebody else",
    ):  # fmt: skip
        assert secret not in raw


# People


@pytest.mark.parametrize(
    ("known", "display"),
    [
        ({"phone": "12125550123"}, "•••123"),
        ({"phone": "12125550123", "username": "ana"}, "•••123"),
        ({"phone": "12345"}, "•••345"),
        ({"username": "bo.k"}, "@b•••"),
        ({"username": "ßen", "profile_name": "Ben"}, "@ß•••"),
        ({"profile_name": "恵美", "bsuid": "JP.8120002"}, "•••"),
        ({}, "•••"),
    ],
)
def test_a_mask_shows_three_digits_or_one_letter(known: dict[str, str], display: str) -> None:
    contact = msgspec.convert(
        {"project_id": "p", "id": "c", "username": None, "profile_name": None, "country": "JP", **known},
        Contact,
    )

    assert contact.masked() == {"display": display, "country": "JP"}
    assert set(contact.whatsapp()) == WHATSAPP


async def test_a_page_sees_the_mask_and_a_server_with_the_scope_the_person(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.publishable_key)
    await app.say(acme, intent["token"], BEN)

    holder = {"x-wabery-client-secret": intent["client_secret"]}
    by_page = await seen(app, intent["id"], acme.publishable_key, **holder)
    by_server = await seen(app, intent["id"], acme.secret_key)

    assert by_page["identity"] == by_server["identity"] == {"display": "@b•••", "country": "DE"}
    assert by_server["whatsapp"] == {
        "user_id": "DE.8120002",
        "parent_user_id": None,
        "wa_id": None,
        "username": "bo.k",
        "profile_name": "Ben",
        "country": "DE",
    }


# Events


async def listening(app: App, of: Tenant, *types: str) -> None:
    await app.service.database.run(
        lambda tx: tx.run(
            "update webhook_endpoints set events = $2 where project_id = $1", of.project.id, list(types)
        )
    )


async def only(app: App, of: Tenant, kind: str) -> dict[str, Any]:
    (event,) = await app.events(of.project.id, kind)
    assert set(event) == {"event", "payload", "sentAt"}
    assert event["event"] == kind
    assert event["payload"]["project_id"] == of.project.id
    assert event["payload"]["organization_id"] == of.project.organization_id
    assert event["sentAt"] == event["payload"]["created_at"]
    payload: dict[str, Any] = event["payload"]
    return payload


async def test_participant_joined_says_this(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key, metadata={"plan": "starter"})
    await app.say(acme, intent["token"], BEN)

    payload = await only(app, acme, "participant.joined")

    assert set(payload) == PERSON | REFERENCE | {
        "metadata", "metadata_trusted", "reference_trust", "message_id", "joined_at", "already_linked",
    }  # fmt: skip
    assert set(payload["whatsapp"]) == WHATSAPP
    assert payload["from"] is None
    assert payload["customer_reference"] == payload["contact_reference"] == "user_123"


async def test_participant_unlinked_says_this(app: App, acme: Tenant) -> None:
    for sender in (ANA, BEN):
        intent = await app.mint(acme.secret_key)
        await app.say(acme, intent["token"], sender)

    payload = await only(app, acme, "participant.unlinked")

    assert set(payload) == PERSON | REFERENCE | {"reason"}
    assert payload["reason"] == "replaced"
    assert payload["from"] == "+12125550123"


@pytest.mark.parametrize("linked", [True, False])
async def test_message_received_says_this(app: App, acme: Tenant, *, linked: bool) -> None:
    intent = await app.mint(acme.secret_key, metadata={"plan": "starter"})
    if linked:
        await app.say(acme, intent["token"], ANA)
    await app.say(acme, "Where is my order?", ANA)

    payload = await only(app, acme, "message.received")

    assert set(payload) == PERSON | REFERENCE | {
        "agent_id", "text", "message_id", "metadata", "type", "sent_at", "reference_trust", "provider_message_id",
        "forwarded", "handled_by", "reply", "media", "context", "referral", "content", "content_truncated",
        "replaces_event_id",
    }  # fmt: skip
    assert payload["agent_id"] is None
    assert payload["metadata"] == ({"plan": "starter"} if linked else None)
    assert payload["registration_intent_id"] == (intent["id"] if linked else None)


async def test_registration_intent_created_says_this_to_who_asked_for_it(app: App, acme: Tenant) -> None:
    await app.mint(acme.secret_key)
    assert await app.events(acme.project.id) == []

    await listening(app, acme, "registration_intent.created")
    app.service.directory.forget()
    intent = await app.mint(acme.secret_key)

    payload = await only(app, acme, "registration_intent.created")
    assert set(payload) == ENVELOPE | REFERENCE | {"registration_intent"}
    assert set(payload["registration_intent"]) == READER
    assert payload["registration_intent"]["id"] == intent["id"]
    assert payload["registration_intent"]["status"] == "PENDING"


async def test_registration_intent_rejected_by_a_message_says_this(app: App, acme: Tenant) -> None:
    first = await app.mint(acme.secret_key, "user_123")
    second = await app.mint(acme.secret_key, "user_456")
    for intent in (first, second):
        await app.say(acme, intent["token"], ANA)

    payload = await only(app, acme, "registration_intent.rejected")

    assert set(payload) == PERSON | REFERENCE | {"registration_intent", "attempt"}
    assert set(payload["registration_intent"]) == READER
    assert payload["registration_intent"]["rejection_reason"] == "identity_already_linked"
    assert set(payload["attempt"]) == {"code", "message_id"}


async def test_registration_intent_rejected_without_a_message_says_this(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    await app.call("POST", f"{INTENTS}/{intent['id']}/cancel", acme.secret_key)

    payload = await only(app, acme, "registration_intent.rejected")

    assert set(payload) == ENVELOPE | REFERENCE | {"registration_intent"}
    assert set(payload["registration_intent"]) == READER


async def test_registration_intent_expired_says_this(app: App, acme: Tenant, clock: MovableClock) -> None:
    intent = await app.mint(acme.secret_key, expires_in=60)
    clock.move(timedelta(minutes=7))
    assert await sweep(app, acme) == [intent["id"]]

    payload = await only(app, acme, "registration_intent.expired")

    assert set(payload) == ENVELOPE | REFERENCE | {"registration_intent"}
    assert set(payload["registration_intent"]) == READER
    assert payload["registration_intent"]["status"] == "EXPIRED"
    assert payload["registration_intent"]["phase"] is None


async def test_a_failed_attempt_says_this_to_who_asked_for_it(
    app: App, acme: Tenant, clock: MovableClock
) -> None:
    intent = await app.mint(acme.secret_key, expires_in=60)
    clock.move(timedelta(minutes=2))
    await app.say(acme, intent["token"])
    assert await app.events(acme.project.id) == []

    await listening(app, acme, "registration_intent.attempt_failed")
    await app.say(acme, intent["token"])

    payload = await only(app, acme, "registration_intent.attempt_failed")
    assert set(payload) == PERSON | REFERENCE | {"registration_intent", "attempt"}
    assert set(payload["registration_intent"]) == READER
    assert payload["attempt"]["code"] == "after_expiry"


async def test_security_token_reuse_names_the_stranger(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    await app.say(acme, intent["token"], ANA)
    await app.say(acme, intent["token"], BEN)

    payload = await only(app, acme, "security.token_reuse")

    assert set(payload) == PERSON | {"registration_intent_id", "customer_reference", "count"}
    assert payload["whatsapp"]["user_id"] == BEN.bsuid


async def test_security_token_reuse_is_sent_once_in_ten_minutes_with_a_count(
    app: App, acme: Tenant, clock: MovableClock
) -> None:
    one, other = [await app.mint(acme.secret_key, name) for name in ("user_1", "user_2")]
    await app.say(acme, one["token"], ANA)
    await app.say(acme, other["token"], Identity(bsuid="US.8120003"))

    for _ in range(3):
        await app.say(acme, one["token"], BEN)
    await app.say(acme, other["token"], BEN)
    clock.move(timedelta(minutes=10, seconds=1))
    await app.say(acme, one["token"], Identity(bsuid="US.8120004"))
    await app.say(acme, one["token"], ANA)

    events = await app.events(acme.project.id, "security.token_reuse")
    told = [(event["payload"]["registration_intent_id"], event["payload"]["count"]) for event in events]
    assert told == [(one["id"], 1), (other["id"], 1), (one["id"], 4)]


async def test_a_disabled_endpoint_is_told_to_the_others(app: App, acme: Tenant) -> None:
    now = app.service.clock.now()
    endpoint = await app.service.database.run(lambda tx: accounts.default_endpoint(tx, acme.project.id))
    await app.service.database.run(
        lambda tx: outbox.disable_endpoint(tx, acme.project.id, endpoint.id, "gone", event_id="evt_1", at=now)
    )

    payload = await only(app, acme, "webhook_endpoint.disabled")

    assert set(payload) == ENVELOPE | {"endpoint_id", "reason", "since"}


async def test_no_event_carries_what_opens_the_link(app: App, acme: Tenant, clock: MovableClock) -> None:
    await listening(app, acme, *outbox.EventType)
    minted = [await app.mint(acme.secret_key, f"user_{number}", expires_in=600) for number in range(3)]
    await app.say(acme, minted[0]["token"], ANA)
    await app.say(acme, minted[0]["token"], BEN)
    await app.say(acme, minted[1]["token"], ANA)
    await app.say(acme, f"wjr_{'0' * 26}", BEN)
    await app.say(acme, "Hello", ANA)
    clock.move(timedelta(hours=1))
    await sweep(app, acme)

    told = msgspec.json.encode(await app.events(acme.project.id))

    assert len(await app.events(acme.project.id)) >= 5
    for intent in minted:
        assert intent["token"].encode() not in told
        assert intent["client_secret"].encode() not in told
    assert b"wa.me" not in told
    assert b"wjr_" not in told


async def test_a_live_project_says_so(app: App, acme: Tenant) -> None:
    service, now = app.service, app.service.clock.now()
    draft = ProjectDraft(name="Live", livemode=True)
    new = accounts.new_project(acme.project.organization_id, draft, keyring=service.keyring, at=now)
    await service.database.run(
        lambda tx: accounts.create_project(tx, new, keyring=service.keyring, actor="cli:test", at=now)
    )
    by = await key(app, replace(acme, project=new.project), "full")
    number = {
        "name": "Support", "phone_number_id": "106540352242922", "display_phone_number": "+49 151 2345678",
        "waba_id": "102290129340398", "app_secret": "a" * 32,
    }  # fmt: skip
    assert (await app.call("POST", "/v1/channels", by, json=number)).status == 200

    live, test = await app.mint(by), await app.mint(acme.secret_key)

    assert by.startswith("wab_live_")
    assert acme.secret_key.startswith("wab_test_")
    assert live["livemode"] is True
    assert test["livemode"] is False


async def test_the_event_list_shows_the_person_to_a_key_with_the_scope(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    await app.say(acme, intent["token"], BEN)
    (told,) = await app.events(acme.project.id)
    path = f"/v1/events/{told['payload']['event_id']}"
    whole, masked = (
        await key(app, acme, "events:read", "contacts:identity"),
        await key(app, acme, "events:read"),
    )

    for by, payload in (
        (whole, told["payload"]),
        (
            masked,
            {
                **told["payload"],
                "from": None,
                "whatsapp": {**dict.fromkeys(WHATSAPP), "country": "DE"},
                "identity": {"display": "@b•••", "country": "DE"},
            },
        ),
    ):
        one, listed = await app.call("GET", path, by), await app.call("GET", "/v1/events", by)
        assert set(one.body) == {"object", "id", "type", "created_at", "sent_at", "livemode", "payload"}
        assert one.body["payload"] == payload
        assert listed.body["data"] == [one.body]
