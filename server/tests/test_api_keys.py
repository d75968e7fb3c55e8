"""/v1/api-keys: a key gives away only what it has, and what is revoked opens nothing."""

from datetime import timedelta
from typing import Any

import pytest
from conftest import INTENTS, App, Tenant

from wabery_server.clock import iso

KEYS = "/v1/api-keys"


async def made(app: App, owner: Tenant, **fields: object) -> dict[str, Any]:
    reply = await app.call("POST", KEYS, owner.secret_key, json={"name": "new", **fields})
    assert reply.status == 200, reply.body
    return reply.body


async def test_a_new_secret_key_works_at_once_and_is_shown_once(app: App, acme: Tenant) -> None:
    key = await made(app, acme, scopes=["registrations:create", "registrations:read"])

    intent = await app.mint(key["key"])

    again = await app.call("GET", f"{KEYS}/{key['id']}", acme.secret_key)
    assert (await app.get(key["key"], intent["id"]))["status"] == "PENDING"
    assert again.body == {**key, "key": None}


async def test_a_key_that_was_tried_before_it_existed_works_at_once(app: App, acme: Tenant) -> None:
    key = await made(app, acme, scopes=["full"], expires_at=iso(app.service.clock.now() + timedelta(hours=1)))

    assert (await app.call("GET", KEYS, key["key"])).status == 200
    app.service.clock.move(timedelta(hours=1))  # type: ignore[attr-defined]  # the fixture's MovableClock

    assert (await app.call("GET", KEYS, key["key"])).body["error"] == "key_expired"


async def test_a_preset_stands_for_its_scopes(app: App, acme: Tenant) -> None:
    key = await made(app, acme, scopes=["read_only", "registrations:create"])

    assert key["scopes"] == [
        "contacts:read",
        "events:read",
        "projects:read",
        "registrations:create",
        "registrations:read",
    ]


async def test_a_key_gives_away_only_what_it_has(app: App, acme: Tenant) -> None:
    lesser = await made(app, acme, scopes=["keys:write", "registrations:read"])

    for wanted in ({"scopes": ["full"]}, {"scopes": ["registrations:create"]}, {"kind": "publishable"}):
        reply = await app.call("POST", KEYS, lesser["key"], json={"name": "more", **wanted})
        assert (reply.status, reply.body["error"]) == (403, "insufficient_scope")
        assert "registrations:create" in reply.body["message"]
    equal = await app.call("POST", KEYS, lesser["key"], json={"name": "same", "scopes": ["keys:write"]})

    assert equal.status == 200


async def test_a_publishable_key_keeps_to_its_origins(app: App, acme: Tenant) -> None:
    key = await made(app, acme, kind="publishable", allowed_origins=["https://Shop.example:443"])
    body = {"customer_reference": "u"}

    inside = await app.call(
        "POST", INTENTS, key["key"], json=body, headers={"Origin": "https://shop.example"}
    )
    outside = await app.call(
        "POST", INTENTS, key["key"], json=body, headers={"Origin": "https://evil.example"}
    )

    assert key["allowed_origins"] == ["https://shop.example"]
    assert (inside.status, outside.status) == (200, 403)


async def test_changed_origins_count_at_once(app: App, acme: Tenant) -> None:
    key = await made(app, acme, kind="publishable")
    body, origin = {"customer_reference": "u"}, {"Origin": "https://evil.example"}
    assert (await app.call("POST", INTENTS, key["key"], json=body, headers=origin)).status == 200

    changes = {"allowed_origins": ["https://shop.example"], "name": "shop"}
    changed = await app.call("PATCH", f"{KEYS}/{key['id']}", acme.secret_key, json=changes)

    assert (changed.body["name"], changed.body["warning"]) == ("shop", None)
    assert (await app.call("POST", INTENTS, key["key"], json=body, headers=origin)).status == 403


async def test_a_revoked_key_opens_nothing_and_ends_what_it_minted(app: App, acme: Tenant) -> None:
    key = await made(app, acme, scopes=["registrations:create"])
    intent = await app.mint(key["key"])

    revoked = await app.call("DELETE", f"{KEYS}/{key['id']}", acme.secret_key)
    again = await app.call("DELETE", f"{KEYS}/{key['id']}", acme.secret_key)

    assert revoked.body["revoked_at"] is not None
    assert again.body == revoked.body
    assert (await app.call("POST", INTENTS, key["key"], json={"customer_reference": "u"})).status == 401
    ended = await app.get(acme.secret_key, intent["id"])
    assert (ended["status"], ended["rejection_reason"]) == ("REJECTED", "key_revoked")


async def test_the_list_goes_on_where_it_stopped(app: App, acme: Tenant, globex: Tenant) -> None:
    new = [(await made(app, acme, scopes=["full"], name=f"k{n}"))["id"] for n in range(3)]
    seen: list[str] = []
    cursor = ""
    for _ in range(3):
        page = await app.call("GET", f"{KEYS}?limit=2{cursor}", acme.secret_key)
        seen += [key["id"] for key in page.body["data"]]
        cursor = f"&cursor={page.body['next_cursor']}"
        if not page.body["has_more"]:
            break

    assert len(seen) == len(set(seen)) == 5
    assert set(new) < set(seen)
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize(("method", "body"), [("GET", None), ("PATCH", {"name": "mine"}), ("DELETE", None)])
async def test_another_projects_key_is_not_there(
    app: App, acme: Tenant, globex: Tenant, method: str, body: object
) -> None:
    reply = await app.call(method, f"{KEYS}/{globex.key_id}", acme.secret_key, json=body)

    assert (reply.status, reply.body["error"]) == (404, "not_found")
    assert (await app.call("GET", KEYS, globex.secret_key)).status == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes"),
        ({"scopes": ["full"], "kind": "public"}, "kind"),
        ({"scopes": ["full"], "expires_at": "tomorrow"}, "expires_at"),
        ({"scopes": ["full"], "expires_at": "2036-01-01T00:00:00"}, "expires_at"),
        ({"scopes": ["full"], "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"scopes": ["full"], "expires_at": "9999-12-31T23:59:59-12:00"}, "expires_at"),
        ({"scopes": ["full"], "expires_at": "0001-01-01T00:00:00+12:00"}, "expires_at"),
        ({"scopes": ["full"], "allowed_origins": ["https://a.example"]}, "allowed_origins"),
        ({"kind": "publishable", "scopes": ["full"]}, "scopes"),
        ({"kind": "publishable", "allowed_origins": ["*"]}, "allowed_origins"),
        ({"scopes": ["full"], "key": "wab_live_mine"}, "key"),
    ],
)
async def test_a_wrong_value_is_refused_by_name(
    app: App, acme: Tenant, fields: dict[str, object], param: str
) -> None:
    reply = await app.call("POST", KEYS, acme.secret_key, json={"name": "new", **fields})

    assert (reply.status, reply.body["error"], reply.body["param"]) == (400, "invalid_request", param)
    assert len((await app.call("GET", KEYS, acme.secret_key)).body["data"]) == 2
