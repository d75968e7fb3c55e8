"""Visitors of one page share its publishable key, and learn nothing of each other from its Idempotency-Keys."""

from ipaddress import ip_network
from typing import Any

import pytest
from world import INTENTS, App, Reply, Tenant

from wabery_server.settings import Settings

UUID = "6f0c2a52-7a1e-4c8e-9d57-0d6a5f6e2b11"
HERE, THERE = "203.0.113.7", "203.0.113.8"
ORIGIN, OTHER = "https://a.example", "https://b.example"
BODY = {"customer_reference": "victim-7"}


@pytest.fixture
def settings() -> Settings:
    return Settings(trusted_proxies=(ip_network("127.0.0.0/8"),), read_lanes=1)


async def mint(
    app: App, api_key: str, key: str, ip: str = HERE, origin: str | None = ORIGIN, **more: str
) -> Reply:
    headers = {"Idempotency-Key": key, "X-Forwarded-For": ip, **more}
    if origin is not None:
        headers["Origin"] = origin
    return await app.call("POST", INTENTS, api_key, json=BODY, headers=headers)


def replayed(reply: Reply) -> bool:
    assert reply.status == 200, reply.body
    return reply.headers.get("Idempotency-Replayed") == "true"


GUESSABLE = [
    "mint-victim-7",
    "1",
    "a" * 31,
    "victim-7-" + "a" * 32,
    "0123456789abcdef" * 2 + "g",
    UUID + "0",
    UUID[:-1],
]
RANDOM = [UUID, UUID.upper(), f'"{UUID}"', UUID.replace("-", ""), "0123456789abcdef" * 3]


@pytest.mark.parametrize("key", GUESSABLE)
async def test_a_key_that_can_be_guessed_counts_for_one_address_and_origin(
    app: App, acme: Tenant, key: str
) -> None:
    first = await mint(app, acme.publishable_key, key)

    others = [
        await mint(app, acme.publishable_key, key, THERE),
        await mint(app, acme.publishable_key, key, HERE, OTHER),
        await mint(app, acme.publishable_key, key, HERE, None),
        await mint(app, acme.publishable_key, key, "2001:db8::1"),
    ]
    again = await mint(app, acme.publishable_key, key, f"::ffff:{HERE}")

    assert [replayed(reply) for reply in (first, *others)] == [False] * 5
    assert len({reply.body["id"] for reply in (first, *others)}) == 5
    assert first.body["token"].encode() not in b"".join(reply.raw for reply in others)
    assert (replayed(again), again.raw) == (True, first.raw)


@pytest.mark.parametrize("key", RANDOM)
async def test_a_random_key_counts_for_one_origin_from_any_address(app: App, acme: Tenant, key: str) -> None:
    first = await mint(app, acme.publishable_key, key)

    elsewhere = await mint(app, acme.publishable_key, key, THERE)
    others = [
        await mint(app, acme.publishable_key, key, HERE, origin)
        for origin in (OTHER, None, "null", "https://a.example.evil", "https://" + "a" * 5_000)
    ]

    assert (replayed(elsewhere), elsewhere.raw) == (True, first.raw)
    assert [replayed(reply) for reply in others] == [False] * 5
    assert len({reply.body["id"] for reply in (first, *others)}) == 6


async def test_a_key_of_a_server_is_not_bound_to_an_address(app: App, acme: Tenant) -> None:
    first = await mint(app, acme.secret_key, "order-7", HERE, None)

    again = await mint(app, acme.secret_key, "order-7", THERE, None)

    assert (replayed(again), again.raw) == (True, first.raw)


async def test_a_guess_with_another_body_tells_nothing_either(app: App, acme: Tenant) -> None:
    await mint(app, acme.publishable_key, "mint-victim-7")

    body = {"customer_reference": "probe"}
    headers = {"Idempotency-Key": "mint-victim-7", "X-Forwarded-For": THERE, "Origin": ORIGIN}
    probe = await app.call("POST", INTENTS, acme.publishable_key, json=body, headers=headers)

    assert probe.status == 200  # and not 409 idempotency_key_reused


@pytest.mark.parametrize(
    ("call", "body"), [("extend", {"expires_in": 600}), ("opened", {"via": "qr"}), ("cancel", {})]
)
@pytest.mark.parametrize("key", ["k", UUID])
async def test_the_client_secret_is_checked_before_an_answer_is_replayed(
    app: App, acme: Tenant, call: str, body: dict[str, Any], key: str
) -> None:
    intent, other = [await app.mint(acme.publishable_key, name) for name in ("user_1", "user_2")]

    async def change(client_secret: str | None) -> Reply:
        headers = {"Idempotency-Key": key}
        if client_secret is not None:
            headers["x-wabery-client-secret"] = client_secret
        path = f"{INTENTS}/{intent['id']}/{call}"
        return await app.call("POST", path, acme.publishable_key, json=body, headers=headers)

    first = await change(intent["client_secret"])
    without, wrong = await change(None), await change(other["client_secret"])
    again = await change(intent["client_secret"])

    assert not replayed(first)
    assert (without.status, without.body["error"]) == (403, "insufficient_scope")
    assert (wrong.status, wrong.body["error"]) == (403, "wrong_client_secret")
    assert (replayed(again), again.raw) == (True, first.raw)


async def test_a_replay_needs_a_key_that_may_still_call(app: App, acme: Tenant) -> None:
    made = await app.call(
        "POST", "/v1/api-keys", acme.secret_key, json={"name": "page", "kind": "publishable"}
    )
    path = f"/v1/api-keys/{made.body['id']}"
    assert not replayed(await mint(app, made.body["key"], UUID))

    await app.call("PATCH", path, acme.secret_key, json={"allowed_origins": [OTHER]})
    narrowed = await mint(app, made.body["key"], UUID)
    await app.call("DELETE", path, acme.secret_key)
    revoked = await mint(app, made.body["key"], UUID, HERE, OTHER)

    assert (narrowed.status, narrowed.body["error"]) == (403, "origin_not_allowed")
    assert (revoked.status, revoked.body["error"]) == (401, "invalid_api_key")


async def test_neither_origin_nor_address_is_stored_with_an_answer(app: App, acme: Tenant) -> None:
    await mint(app, acme.publishable_key, "mint-victim-7")

    rows = await app.service.database.run(lambda tx: tx.rows("select * from idempotency_keys"))

    (kept,) = [str(dict(row)) for row in rows]
    assert HERE not in kept
    assert "a.example" not in kept
