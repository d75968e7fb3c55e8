"""/v1/channels: connecting a number, and what is never shown again."""

from typing import Any

import pytest
from world import App, Tenant

CHANNELS = "/v1/channels"
APP_SECRET = "0123456789abcdef0123456789abcdef"
DRAFT = {
    "name": "Support",
    "phone_number_id": "106540352242922",
    "display_phone_number": "+49 (151) 2345-678",
    "waba_id": "102290129340398",
    "app_secret": APP_SECRET,
    "access_token": "EAAJB-access-token",
}
SHOWN = {
    "object", "id", "provider", "name", "phone_number_id", "display_phone_number", "waba_id", "portfolio_id", "sandbox",
    "created_at",
}  # fmt: skip


async def connected(app: App, owner: Tenant, **fields: object) -> dict[str, Any]:
    reply = await app.call("POST", CHANNELS, owner.secret_key, json={**DRAFT, **fields})
    assert reply.status == 200, reply.body
    return reply.body


async def test_a_connected_number_answers_the_handshake_and_takes_links(app: App, acme: Tenant) -> None:
    channel = await connected(app, acme)

    intent = await app.mint(acme.secret_key, channel_id=channel["id"])
    handshake = await app.call(
        "GET",
        f"/inbound/whatsapp?hub.mode=subscribe&hub.verify_token={channel['verify_token']}&hub.challenge=4711",
    )

    assert intent["wa_link"].startswith("https://wa.me/491512345678?text=")
    assert (handshake.status, handshake.raw) == (200, b"4711")


async def test_credentials_are_not_shown(app: App, acme: Tenant) -> None:
    created = await app.call("POST", CHANNELS, acme.secret_key, json=DRAFT)
    path = f"{CHANNELS}/{created.body['id']}"

    read = await app.call("GET", path, acme.secret_key)
    listed = await app.call("GET", CHANNELS, acme.secret_key)
    changed = await app.call(
        "PATCH", path, acme.secret_key, json={"app_secrets": ["new-app-secret", APP_SECRET]}
    )

    assert set(created.body) == set(read.body) == set(changed.body) == SHOWN | {"verify_token"}
    assert [set(channel) for channel in listed.body["data"]] == [SHOWN, SHOWN]
    everything = b"".join(reply.raw for reply in (created, read, listed, changed))
    assert APP_SECRET.encode() not in everything
    assert b"new-app-secret" not in everything
    assert b"access-token" not in everything


async def test_a_change_of_the_verify_token_counts_at_once(app: App, acme: Tenant) -> None:
    channel = await connected(app, acme)
    handshake = "/inbound/whatsapp?hub.mode=subscribe&hub.verify_token={}&hub.challenge=4711"
    assert (await app.call("GET", handshake.format(channel["verify_token"]))).status == 200

    await app.call(
        "PATCH", f"{CHANNELS}/{channel['id']}", acme.secret_key, json={"verify_token": "a-new-token"}
    )

    assert (await app.call("GET", handshake.format("a-new-token"))).status == 200
    assert (await app.call("GET", handshake.format(channel["verify_token"]))).status == 403


async def test_a_number_is_taken_until_its_channel_is_deleted(app: App, acme: Tenant, globex: Tenant) -> None:
    channel = await connected(app, acme)

    refused = await app.call("POST", CHANNELS, globex.secret_key, json=DRAFT)
    await app.call("DELETE", f"{CHANNELS}/{channel['id']}", acme.secret_key)

    assert (refused.status, refused.body["error"], refused.body["param"]) == (
        409,
        "number_taken",
        "phone_number_id",
    )
    assert (await connected(app, globex))["phone_number_id"] == channel["phone_number_id"]


async def test_a_deleted_channel_is_gone_and_ends_what_was_minted_for_it(app: App, acme: Tenant) -> None:
    channel = await connected(app, acme)
    intent = await app.mint(acme.secret_key, channel_id=channel["id"])
    path = f"{CHANNELS}/{channel['id']}"

    deleted = await app.call("DELETE", path, acme.secret_key)
    again = await app.call("DELETE", path, acme.secret_key)

    assert (deleted.status, set(deleted.body)) == (200, SHOWN)
    assert again.body == deleted.body
    assert (await app.call("GET", path, acme.secret_key)).status == 404
    assert (await app.call("PATCH", path, acme.secret_key, json={"name": "x"})).status == 404
    ended = await app.get(acme.secret_key, intent["id"])
    assert (ended["status"], ended["rejection_reason"]) == ("REJECTED", "channel_unavailable")


async def test_a_project_without_channels_cannot_mint(app: App, acme: Tenant) -> None:
    await app.call("DELETE", f"{CHANNELS}/{acme.channel.id}", acme.secret_key)

    reply = await app.call(
        "POST", "/v1/registration-intents", acme.secret_key, json={"customer_reference": "u"}
    )

    assert (reply.status, reply.body["error"]) == (422, "channel_not_ready")


@pytest.mark.parametrize(("method", "body"), [("GET", None), ("PATCH", {"name": "mine"}), ("DELETE", None)])
async def test_another_projects_channel_is_not_there(
    app: App, acme: Tenant, globex: Tenant, method: str, body: object
) -> None:
    reply = await app.call(method, f"{CHANNELS}/{globex.channel.id}", acme.secret_key, json=body)

    assert (reply.status, reply.body["error"]) == (404, "not_found")
    assert (await app.mint(globex.secret_key))["channel_id"] == globex.channel.id


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"provider": "twilio"}, "provider"),
        ({"phone_number_id": "+49151"}, "phone_number_id"),
        ({"phone_number_id": "1\n"}, "phone_number_id"),
        ({"phone_number_id": "٤٥"}, "phone_number_id"),
        ({"display_phone_number": "0151 2345678"}, "display_phone_number"),
        ({"waba_id": ""}, "waba_id"),
        ({"app_secret": "short"}, "app_secret"),
        ({"app_secret": "with a space in it"}, "app_secret"),
        ({"verify_token": "ümläuts-here"}, "verify_token"),
        ({"sandbox": True}, "sandbox"),
        ({"project_id": "proj_other"}, "project_id"),
    ],
)
async def test_a_wrong_value_is_refused_by_name(
    app: App, acme: Tenant, fields: dict[str, object], param: str
) -> None:
    reply = await app.call("POST", CHANNELS, acme.secret_key, json={**DRAFT, **fields})

    assert (reply.status, reply.body["error"], reply.body["param"]) == (400, "invalid_request", param)
    assert len((await app.call("GET", CHANNELS, acme.secret_key)).body["data"]) == 1
