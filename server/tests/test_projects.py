"""/v1/projects: what a key sees and changes of its own project, and how a new one is founded."""

import asyncio
from typing import Any

import pytest
from world import App, Tenant, serving, tenant

from wabery_server import accounts
from wabery_server.accounts import KeyDraft, ProjectDraft, Scope
from wabery_server.clock import MovableClock
from wabery_server.db import Database
from wabery_server.db.signals import Signals
from wabery_server.secrets import Keyring
from wabery_server.settings import Settings

PROJECTS = "/v1/projects"

FULL = sorted(Scope)


async def key_with(app: App, owner: Tenant, *scopes: str) -> str:
    at = app.service.clock.now()
    new = accounts.new_key(owner.project, KeyDraft(name="some", scopes=list(scopes)), at)
    await app.service.database.run(lambda tx: accounts.create_key(tx, new, actor="cli:test", at=at))
    return new.value


async def live_key(app: App) -> str:
    """A full key of a live project."""
    at, keyring = app.service.clock.now(), app.service.keyring
    organization_id = await app.service.database.run(accounts.find_organization)
    new = accounts.new_project(
        organization_id, ProjectDraft(name="Live", livemode=True), keyring=keyring, at=at
    )
    key = accounts.new_key(new.project, KeyDraft(name="server", scopes=["full"]), at)
    await app.service.database.run(
        lambda tx: accounts.create_project(tx, new, keyring=keyring, actor="cli:test", at=at)
    )
    await app.service.database.run(lambda tx: accounts.create_key(tx, key, actor="cli:test", at=at))
    return key.value


async def patched(app: App, owner: Tenant, **changes: object) -> dict[str, Any]:
    reply = await app.call("PATCH", f"{PROJECTS}/{owner.project.id}", owner.secret_key, json=changes)
    assert reply.status == 200, reply.body
    return reply.body


async def test_the_list_holds_the_keys_own_project_without_its_webhook(
    app: App, acme: Tenant, globex: Tenant
) -> None:
    reply = await app.call("GET", PROJECTS, acme.secret_key)

    (only,) = reply.body["data"]
    assert only["id"] == acme.project.id
    assert not [name for name in only if name.startswith("webhook")]
    assert (reply.body["has_more"], reply.body["next_cursor"]) == (False, None)


async def test_a_reader_sees_the_url_and_a_writer_also_the_secret(app: App, acme: Tenant) -> None:
    path = f"{PROJECTS}/{acme.project.id}"

    seen_by_reader = await app.call("GET", path, await key_with(app, acme, "projects:read"))
    seen_by_writer = await app.call("GET", path, await key_with(app, acme, "projects:read", "projects:write"))

    assert seen_by_reader.body["webhook_url"] == "https://hooks.example.com/wabery"
    assert "webhook_secret" not in seen_by_reader.body
    assert seen_by_writer.body == {
        **seen_by_reader.body,
        "webhook_secret": seen_by_writer.body["webhook_secret"],
    }
    assert seen_by_writer.body["webhook_secret"].startswith("whsec_")


@pytest.mark.parametrize("method", ["GET", "PATCH"])
async def test_another_project_is_not_there(app: App, acme: Tenant, globex: Tenant, method: str) -> None:
    reply = await app.call(
        method, f"{PROJECTS}/{globex.project.id}", acme.secret_key, json={} if method == "PATCH" else None
    )

    assert (reply.status, reply.body["error"]) == (404, "not_found")


async def test_changes_are_seen_by_the_next_call(app: App, acme: Tenant) -> None:
    await patched(app, acme, unsigned_references="refuse")

    reply = await app.call(
        "POST", "/v1/registration-intents", acme.publishable_key, json={"customer_reference": "u"}
    )

    assert (reply.status, reply.body["error"]) == (401, "reference_signature_missing")


async def test_every_setting_can_be_changed_and_read_back(app: App, acme: Tenant) -> None:
    changes = {
        "name": "Acme Ltd",
        "webhook_url": "https://acme.example/hooks",
        "webhook_secret": "our own secret",
        "prefilled_text": "Hello: {token}",
        "prefilled_texts": {"de": "Hallo: {token}", "pt-BR": "Oi: {token}"},
        "publishable_expires_in": 60,
        "secret_expires_in": 604_800,
        "supersede": True,
        "unsigned_references": "refuse",
        "on_identity_linked": "allow",
        "on_reference_linked": "reject",
        "references_per_contact": 1000,
    }

    changed = await patched(app, acme, **changes)

    read = await app.call("GET", f"{PROJECTS}/{acme.project.id}", acme.secret_key)
    assert {name: changed[name] for name in changes} == changes
    assert read.body == changed


async def test_null_stops_the_webhooks(app: App, acme: Tenant) -> None:
    assert (await patched(app, acme, webhook_url=None))["webhook_url"] is None


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"nmae": "x"}, "nmae"),
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "line\nbreak"}, "name"),
        ({"name": "end\n"}, "name"),
        ({"name": None}, "name"),
        ({"livemode": True}, "livemode"),
        ({"publishable_expires_in": 59}, "publishable_expires_in"),
        ({"secret_expires_in": 604_801}, "secret_expires_in"),
        ({"supersede": "yes"}, "supersede"),
        ({"unsigned_references": "maybe"}, "unsigned_references"),
        ({"references_per_contact": 0}, "references_per_contact"),
        ({"webhook_secret": ""}, "webhook_secret"),
        ({"webhook_secret": "x" * 257}, "webhook_secret"),
        ({"webhook_secret": "tab\there"}, "webhook_secret"),
        ({"prefilled_texts": {"de": 1}}, "prefilled_texts[...]"),
    ],
)
async def test_a_wrong_value_is_refused_by_name(
    app: App, acme: Tenant, changes: dict[str, object], param: str
) -> None:
    before = await app.call("GET", f"{PROJECTS}/{acme.project.id}", acme.secret_key)

    reply = await app.call("PATCH", f"{PROJECTS}/{acme.project.id}", acme.secret_key, json=changes)

    assert (reply.status, reply.body["error"], reply.body["param"]) == (400, "invalid_request", param)
    assert (await app.call("GET", f"{PROJECTS}/{acme.project.id}", acme.secret_key)).body == before.body


async def test_a_bad_prefilled_text_is_refused(app: App, acme: Tenant) -> None:
    changes = {"prefilled_texts": {"de": "kein Platzhalter"}}

    reply = await app.call("PATCH", f"{PROJECTS}/{acme.project.id}", acme.secret_key, json=changes)

    assert (reply.status, reply.body["error"]) == (422, "prefilled_text_invalid")
    assert reply.body["param"] == "prefilled_texts.de"


@pytest.mark.parametrize(
    "url",
    ["https://10.0.0.1/h", "https://[::1]/h", "https://169.254.169.254/", "https://u:p@a.example/", "ftp://a.example/",
     "https://a.example:8080/", "https://a.example:0/", "a.example", "", "https://0x7f.1/", "https://a.example../"],
)  # fmt: skip
async def test_an_unsafe_webhook_url_is_refused(app: App, acme: Tenant, url: str) -> None:
    reply = await app.call(
        "PATCH", f"{PROJECTS}/{acme.project.id}", acme.secret_key, json={"webhook_url": url}
    )

    assert (reply.status, reply.body["error"]) == (422, "unsafe_webhook_url")
    assert reply.body["param"] == "webhook_url"


@pytest.mark.parametrize(
    "url",
    ["https://a.example/a b", "https://a.example/\t", "https://a.example/\x7f", "https://a.example/é", "https://a.example/?é",
     "https://a.example/\u202e", "https://a.example:65536/", "https://a.example:٤٤٣/", "https://[::1/"],
)  # fmt: skip
async def test_a_malformed_webhook_url_is_invalid(app: App, acme: Tenant, url: str) -> None:
    reply = await app.call(
        "PATCH", f"{PROJECTS}/{acme.project.id}", acme.secret_key, json={"webhook_url": url}
    )

    assert (reply.status, reply.body["error"]) == (400, "invalid_request")
    assert reply.body["param"] == "webhook_url"


async def test_a_webhook_url_is_stored_as_it_was_sent(app: App, acme: Tenant) -> None:
    url = "https://BüCHER.example/a%2Fb//c/../d?sig=x%2Fy%2Bz%3D&?"

    assert (await patched(app, acme, webhook_url=url))["webhook_url"] == url


async def test_plain_http_is_for_test_projects(app: App, acme: Tenant) -> None:
    live = await live_key(app)
    (project,) = (await app.call("GET", PROJECTS, live)).body["data"]
    url = {"webhook_url": "http://a.example/h"}

    refused = await app.call("PATCH", f"{PROJECTS}/{project['id']}", live, json=url)

    assert refused.body["error"] == "unsafe_webhook_url"
    assert (await patched(app, acme, **url))["webhook_url"] == url["webhook_url"]


async def test_a_rotated_secret_replaces_the_old_one_at_once(app: App, acme: Tenant) -> None:
    path = f"{PROJECTS}/{acme.project.id}"
    before = (await app.call("GET", path, acme.secret_key)).body

    rotated = await app.call("POST", f"{path}/rotate-webhook-secret", acme.secret_key)

    assert rotated.body["webhook_secret"] != before["webhook_secret"]
    assert (await app.call("GET", path, acme.secret_key)).body == rotated.body


async def test_a_founded_project_comes_with_a_key_that_opens_it_and_nothing_else(
    app: App, acme: Tenant
) -> None:
    founded = await app.call("POST", PROJECTS, acme.secret_key, json={"name": "Second"})

    first_key = founded.body.pop("api_key")
    path = f"{PROJECTS}/{founded.body['id']}"
    assert first_key["key"].startswith("wab_test_")
    assert first_key["scopes"] == FULL
    assert (await app.call("GET", path, first_key["key"])).body == founded.body
    assert (await app.call("GET", path, acme.secret_key)).status == 404
    assert (await app.call("GET", f"{PROJECTS}/{acme.project.id}", first_key["key"])).status == 404
    assert (await app.mint(first_key["key"]))["wa_link"].startswith("https://wa.me/15550100")


async def test_a_founded_projects_key_can_do_no_more_than_the_key_that_made_it(
    app: App, acme: Tenant
) -> None:
    founder = await key_with(app, acme, "projects:write", "keys:write")

    founded = await app.call("POST", PROJECTS, founder, json={"name": "Second"})

    assert founded.body["api_key"]["scopes"] == ["keys:write", "projects:write"]


async def test_a_key_that_may_not_make_keys_founds_nothing(app: App, acme: Tenant) -> None:
    writer = await key_with(app, acme, "projects:write")

    reply = await app.call("POST", PROJECTS, writer, json={"name": "Second"})

    assert (reply.status, reply.body["error"]) == (403, "insufficient_scope")
    assert "keys:write" in reply.body["message"]


async def test_a_test_key_founds_no_live_project(app: App, acme: Tenant) -> None:
    live = {"name": "Second", "livemode": True}

    refused = await app.call("POST", PROJECTS, acme.secret_key, json=live)
    founded = await app.call("POST", PROJECTS, await live_key(app), json=live)

    assert (refused.status, refused.body["error"]) == (403, "insufficient_scope")
    assert founded.body["api_key"]["key"].startswith("wab_live_")


async def test_a_key_creates_a_limited_number_of_test_projects_also_through_the_keys_it_gets(
    database: Database, keyring: Keyring, clock: MovableClock, signals: Signals
) -> None:
    await database.run(lambda tx: accounts.open_installation(tx, keyring, clock.now()))
    async with serving(Settings(test_projects_per_key=3), database, keyring, clock, signals) as app:
        acme, globex = await tenant(app, "Acme"), await tenant(app, "Globex")
        key, status = acme.secret_key, []
        for number in range(5):
            reply = await app.call("POST", PROJECTS, key, json={"name": f"Number {number}"})
            status.append(reply.status)
            key = reply.body["api_key"]["key"] if reply.status == 200 else key
        refused = await app.call("POST", PROJECTS, acme.secret_key, json={"name": "One more"})
        other = await app.call("POST", PROJECTS, globex.secret_key, json={"name": "Another customer's"})
        at_once = await asyncio.gather(
            *(app.call("POST", PROJECTS, globex.secret_key, json={"name": f"At once {n}"}) for n in range(6))
        )

    assert status == [200, 200, 200, 422, 422]
    assert refused.body["error"] == "too_many_projects"
    assert "WABERY_TEST_PROJECTS_PER_KEY" in refused.body["hint"]
    assert other.status == 200
    assert sorted(reply.status for reply in at_once) == [200, 200, 422, 422, 422, 422]


async def test_founding_again_with_the_same_idempotency_key_answers_the_same(app: App, acme: Tenant) -> None:
    again = {"Idempotency-Key": "second-1"}

    first = await app.call("POST", PROJECTS, acme.secret_key, json={"name": "Second"}, headers=again)
    second = await app.call("POST", PROJECTS, acme.secret_key, json={"name": "Second"}, headers=again)

    assert first.raw == second.raw
    assert second.headers["Idempotency-Replayed"] == "true"
    assert len(await app.service.database.run(lambda tx: accounts.any_projects(tx, limit=10))) == 2
