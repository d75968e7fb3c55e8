"""/v1/api-keys: a key gives away only what it has, and what is revoked opens nothing."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from world import INTENTS, App, Tenant

from wabery_server.clock import MovableClock, iso

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


async def test_no_origins_are_fine_for_a_secret_key_made_or_changed(app: App, acme: Tenant) -> None:
    key = await made(app, acme, scopes=["full"], allowed_origins=[])

    changed = await app.call("PATCH", f"{KEYS}/{key['id']}", acme.secret_key, json={"allowed_origins": []})

    assert (changed.status, changed.body["allowed_origins"]) == (200, [])


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


async def rotated(app: App, owner: Tenant, key_id: str, **wanted: object) -> dict[str, Any]:
    reply = await app.call("POST", f"{KEYS}/{key_id}/rotate", owner.secret_key, json=wanted)
    assert reply.status == 200, reply.body
    return reply.body


async def test_a_rotated_key_works_with_both_values_until_the_overlap_ends(
    app: App, acme: Tenant, clock: MovableClock
) -> None:
    old = await made(app, acme, scopes=["registrations:create", "registrations:read"])
    intent = await app.mint(old["key"])

    new = await rotated(app, acme, old["id"], overlap=3600)

    assert new == {
        **old,
        "key": new["key"],
        "last4": new["key"][-4:],
        "previous_ends_at": new["previous_ends_at"],
        "last_used_at": new["last_used_at"],
    }
    assert new["key"] != old["key"]
    assert (await app.get(new["key"], intent["id"])) == (await app.get(old["key"], intent["id"]))
    clock.move(timedelta(hours=1))
    assert (await app.get(new["key"], intent["id"]))["status"] == "PENDING"
    ended = await app.call("GET", f"{INTENTS}/{intent['id']}", old["key"])
    assert (ended.status, ended.body["error"]) == (401, "key_expired")
    assert "rotated" in ended.body["message"]
    assert new["previous_ends_at"] <= iso(clock.now())


async def test_a_rotation_without_a_body_overlaps_for_a_day(
    app: App, acme: Tenant, clock: MovableClock
) -> None:
    old = await made(app, acme, scopes=["full"])
    before = clock.now()

    reply = await app.call("POST", f"{KEYS}/{old['id']}/rotate", acme.secret_key)

    ends_at = datetime.fromisoformat(reply.body["previous_ends_at"])
    assert timedelta(0) <= ends_at - before - timedelta(days=1) < timedelta(minutes=1)
    assert (await app.call("GET", KEYS, old["key"])).status == 200


async def test_a_leaked_value_ends_at_once(app: App, acme: Tenant) -> None:
    old = await made(app, acme, kind="publishable")
    assert (await app.call("POST", INTENTS, old["key"], json={"customer_reference": "u"})).status == 200

    new = await rotated(app, acme, old["id"], overlap=0)

    assert (await app.call("POST", INTENTS, old["key"], json={"customer_reference": "u"})).status == 401
    assert (await app.call("POST", INTENTS, new["key"], json={"customer_reference": "u"})).status == 200
    assert (await app.call("GET", f"{KEYS}/{old['id']}", acme.secret_key)).body["key"] == new["key"]


async def test_rotating_during_an_overlap_ends_the_oldest_value_at_once(app: App, acme: Tenant) -> None:
    oldest = await made(app, acme, scopes=["full"])
    middle = await rotated(app, acme, oldest["id"], overlap=604_800)

    newest = await rotated(app, acme, oldest["id"], overlap=60)

    statuses = [(await app.call("GET", KEYS, key["key"])).status for key in (oldest, middle, newest)]
    assert statuses == [401, 200, 200]


async def test_revoking_ends_both_values_and_what_was_minted_with_them(app: App, acme: Tenant) -> None:
    old = await made(app, acme, scopes=["full"])
    new = await rotated(app, acme, old["id"])
    intents = [await app.mint(key["key"]) for key in (old, new)]

    await app.call("DELETE", f"{KEYS}/{old['id']}", acme.secret_key)

    for key, intent in zip((old, new), intents, strict=True):
        assert (await app.call("GET", KEYS, key["key"])).body["error"] == "invalid_api_key"
        assert (await app.get(acme.secret_key, intent["id"]))["rejection_reason"] == "key_revoked"
    again = await app.call("POST", f"{KEYS}/{old['id']}/rotate", acme.secret_key)
    assert (again.status, again.body["error"]) == (409, "key_revoked")


async def test_a_key_may_rotate_itself(app: App, acme: Tenant) -> None:
    reply = await app.call("POST", f"{KEYS}/{acme.key_id}/rotate", acme.secret_key, json={"overlap": 0})

    assert (await app.call("GET", KEYS, reply.body["key"])).status == 200
    assert (await app.call("GET", KEYS, acme.secret_key)).status == 401


async def test_a_key_cannot_rotate_one_that_may_do_more(app: App, acme: Tenant) -> None:
    lesser = await made(app, acme, scopes=["keys:write"])
    page = await made(app, acme, kind="publishable")

    for wanted in (acme.key_id, page["id"]):
        reply = await app.call("POST", f"{KEYS}/{wanted}/rotate", lesser["key"])
        assert (reply.status, reply.body["error"]) == (403, "insufficient_scope")

    assert (await app.call("GET", KEYS, acme.secret_key)).status == 200
    assert (await app.call("GET", f"{KEYS}/{page['id']}", acme.secret_key)).body["previous_ends_at"] is None


async def test_a_rotation_asked_for_twice_is_done_once(app: App, acme: Tenant) -> None:
    old = await made(app, acme, scopes=["full"])
    path, once = f"{KEYS}/{old['id']}/rotate", {"Idempotency-Key": "rotate once"}

    first = await app.call("POST", path, acme.secret_key, json={"overlap": 60}, headers=once)
    second = await app.call("POST", path, acme.secret_key, json={"overlap": 60}, headers=once)

    assert (second.status, second.body) == (200, first.body)
    assert second.headers["Idempotency-Replayed"] == "true"
    assert (await app.call("GET", KEYS, old["key"])).status == 200


@pytest.mark.parametrize("overlap", [-1, 604_801, 1.5, "60", None, True])
async def test_a_wrong_overlap_is_refused(app: App, acme: Tenant, overlap: object) -> None:
    path = f"{KEYS}/{acme.key_id}/rotate"

    reply = await app.call("POST", path, acme.secret_key, json={"overlap": overlap})

    assert (reply.status, reply.body["error"], reply.body["param"]) == (400, "invalid_request", "overlap")
    assert (await app.call("GET", KEYS, acme.secret_key)).status == 200


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
