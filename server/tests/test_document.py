"""The contract is whole and true: what is served is in it, and what it says is what the server answers."""

import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from world import BEN, INTENTS, App, Tenant, tenant

from wabery import webhooks
from wabery_server import accounts, errors, ids, intents, outbox
from wabery_server.api import channels, docstrings, document, examples
from wabery_server.api.routes import OPERATIONS
from wabery_server.clock import MovableClock
from wabery_server.outbox import EventType

ROOT = Path(__file__).parents[2]

CONTRACT: dict[str, Any] = json.loads(document.document())


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """What a `$ref` points to; anything else is itself."""
    while "$ref" in schema:
        found: Any = CONTRACT
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return schema


def problems(
    value: object, schema: dict[str, Any], where: str = "$", *, closed: bool = False
) -> Iterator[str]:
    """Where a value breaks the part of JSON Schema that the contract uses. `closed`: unknown fields break it too."""
    schema = resolved(schema)
    if "anyOf" in schema:
        whole = closed and "properties" not in schema
        tried = [list(problems(value, one, where, closed=whole)) for one in schema["anyOf"]]
        if all(tried):
            yield from min(tried, key=len)
    for one in schema.get("allOf", ()):
        yield from problems(value, one, where)
    types = schema.get("type", [])
    if types and not any(
        isinstance(value, _TYPES[one]) for one in ([types] if isinstance(types, str) else types)
    ):
        yield f"{where}: {value!r} is not {types}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is not one of {schema['enum']}"
    if isinstance(value, str):
        if not re.search(schema.get("pattern", ""), value):
            yield f"{where}: {value!r} does not match {schema['pattern']}"
        if schema.get("format") == "date-time" and not re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]{12}Z", value):
            yield f"{where}: {value!r} is not a time of the contract"
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from problems(item, schema.get("items", {}), f"{where}[{number}]", closed=closed)
    if isinstance(value, dict):
        known = schema.get("properties", {})
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{where}: {name} is missing"
        for name, item in value.items():
            if name in known:
                yield from problems(item, known[name], f"{where}.{name}", closed=closed)
            elif isinstance(schema.get("additionalProperties"), dict):
                yield from problems(item, schema["additionalProperties"], f"{where}.{name}")
            elif schema.get("additionalProperties") is False or (closed and known):
                yield f"{where}: {name} is unknown"


_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def everything(part: Any = CONTRACT) -> Iterator[dict[str, Any]]:
    """Every object of the document, at any depth."""
    if isinstance(part, dict):
        yield part
        for value in part.values():
            yield from everything(value)
    elif isinstance(part, list):
        for value in part:
            yield from everything(value)


def described() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(METHOD, path, operation) of the document."""
    for path, methods in CONTRACT["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def answer_schema(method: str, path: str, status: int) -> dict[str, Any]:
    response = resolved(CONTRACT["paths"][path][method.lower()]["responses"][str(status)])
    schema: dict[str, Any] = response["content"]["application/json"]["schema"]
    return schema


# The document itself


def test_the_committed_file_is_what_the_code_says() -> None:
    committed = (ROOT / "openapi.json").read_text()

    assert committed == document.document(), "stale: run `make openapi`"


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    references = {found["$ref"] for found in everything() if isinstance(found.get("$ref"), str)}

    for reference in references:
        assert resolved({"$ref": reference}), reference
    components = {
        f"#/components/{kind}/{name}"
        for kind, named in CONTRACT["components"].items()
        if kind != "securitySchemes"
        for name in named
    }
    assert components == references & components


def test_every_route_of_the_table_is_described_and_no_other() -> None:
    served = {(operation.method, operation.path) for operation in OPERATIONS}

    assert {(method, path) for method, path, _ in described()} == served


def test_operation_ids_are_unique() -> None:
    names = [
        found["operationId"] for found in everything() if "operationId" in found and "responses" in found
    ]

    assert len(names) == len(set(names)) == len(OPERATIONS) + len(EventType)


def test_every_code_of_the_catalogue_is_in_the_closed_list() -> None:
    codes = CONTRACT["components"]["schemas"]["ErrorCode"]["enum"]

    assert sorted(codes) == sorted({refusal.code for refusal in errors.catalogue()})


def test_every_refusal_is_answered_by_an_operation_or_outside_of_all() -> None:
    answered = {refusal for operation in OPERATIONS for refusal in document.refusals(operation)}

    assert answered.isdisjoint(document.OUTSIDE)
    assert answered | set(document.OUTSIDE) == set(errors.catalogue())


def test_every_event_is_a_webhook_that_says_what_the_event_is() -> None:
    about = docstrings.explanations(EventType)

    assert list(CONTRACT["webhooks"]) == [*EventType]
    for event in EventType:
        assert CONTRACT["webhooks"][event]["post"]["description"] == about[event.name]


def test_writes_take_an_idempotency_key_and_pages_a_cursor() -> None:
    for operation in OPERATIONS:
        described = CONTRACT["paths"][operation.path][operation.method.lower()]
        names = {parameter["name"] for parameter in described["parameters"]}

        reads = operation.method == "GET" or operation.handler is channels.check
        assert ("Idempotency-Key" in names) == (not reads and not operation.open)
        assert set(operation.query) <= names


def test_every_answer_names_its_headers() -> None:
    for _, _, operation in described():
        for response in map(resolved, operation["responses"].values()):
            always = {"Wabery-Version", "Wabery-Request-Id", "Cache-Control"}
            assert always <= set(response["headers"])
            assert all(resolved(response["headers"][name])["required"] for name in always)
    for name in ("RateLimit", "RateLimit-Policy", "Retry-After", "ETag", "Idempotency-Replayed"):
        assert any(name in found.get("headers", {}) for found in everything())


# Examples


def test_examples_hold_what_their_schemas_ask_and_nothing_else() -> None:
    checked = 0
    for media in everything():
        if not isinstance(media.get("schema"), dict) or not ("example" in media or "examples" in media):
            continue
        shown = list(map(resolved, media.get("examples", {}).values()))
        for value in [example["value"] for example in shown] or [media["example"]]:
            checked += 1
            assert list(problems(value, media["schema"], closed="allOf" not in media["schema"])) == []
    assert checked > len(errors.catalogue()) + len(EventType) + len(OPERATIONS)


def test_every_call_shows_what_it_takes_and_gives() -> None:
    silent = {"document.openapi", "error_pages.show"}
    for _, _, operation in described():
        (given,) = operation["responses"]["200"]["content"].values()
        assert ("examples" in given) is (operation["operationId"] not in silent), operation["operationId"]
        for taken in operation.get("requestBody", {}).get("content", {}).values():
            assert "example" in taken or operation["operationId"] == "inbound.receive"


def test_the_example_delivery_is_signed_with_the_example_secret() -> None:
    delivery = examples.delivery(EventType.PARTICIPANT_JOINED)
    body = json.dumps(delivery).encode()
    headers = examples.delivery_headers(body)

    event = webhooks.unwrap(
        body,
        {"x-wabery-signature": headers["x-wabery-signature"]},
        secret=examples.SECRET,
        now=datetime.fromisoformat(str(delivery["sentAt"])),
    )

    assert event.event == "participant.joined"


# The server


async def test_it_is_served_byte_for_byte(app: App) -> None:
    reply = await app.call("GET", "/v1/openapi.json")

    assert reply.status == 200
    assert reply.raw.decode() == document.document()


async def test_every_view_of_an_intent_is_the_schema_s(app: App, acme: Tenant) -> None:
    minted = await app.mint(acme.secret_key, "user_123", metadata={"plan": "starter"}, include=["qr"])
    in_browser = await app.mint(acme.publishable_key, "user_456")
    await app.say(acme, minted["token"])
    one = f"{INTENTS}/{in_browser['id']}"
    held = {"x-wabery-client-secret": in_browser["client_secret"]}

    answers = [
        ("POST", INTENTS, minted),
        ("POST", INTENTS, in_browser),
        ("GET", INTENTS + "/{id}", await app.get(acme.secret_key, minted["id"])),
        ("GET", INTENTS + "/{id}", await app.get(acme.publishable_key, minted["id"])),
        (
            "GET",
            INTENTS + "/{id}",
            await answer(app, "GET", f"{one}?include=qr", acme.publishable_key, headers=held),
        ),
        ("GET", INTENTS, await answer(app, "GET", INTENTS, acme.secret_key)),
        (
            "POST",
            INTENTS + "/{id}/opened",
            await answer(
                app, "POST", f"{one}/opened", acme.publishable_key, json={"via": "qr"}, headers=held
            ),
        ),
        (
            "POST",
            INTENTS + "/{id}/extend",
            await answer(app, "POST", f"{one}/extend", acme.publishable_key, json={}, headers=held),
        ),
        ("POST", INTENTS + "/{id}/cancel", await answer(app, "POST", f"{one}/cancel", acme.secret_key)),
        (
            "POST",
            INTENTS + "/bulk",
            await answer(
                app,
                "POST",
                f"{INTENTS}/bulk",
                acme.secret_key,
                json={"items": [{"customer_reference": "user_789"}, {"customer_reference": 7}]},
            ),
        ),
    ]

    for method, path, body in answers:
        assert list(problems(body, answer_schema(method, path, 200), closed=True)) == [], (method, path)


async def test_projects_keys_channels_and_events_are_the_schema_s(app: App, acme: Tenant) -> None:
    await app.say(acme, "Where is my order?")
    (event,) = (await answer(app, "GET", "/v1/events", acme.secret_key))["data"]

    answers = {
        ("GET", "/v1/projects"): await answer(app, "GET", "/v1/projects", acme.secret_key),
        ("POST", "/v1/projects"): await answer(
            app, "POST", "/v1/projects", acme.secret_key, json={"name": "New"}
        ),
        ("GET", "/v1/projects/{id}"): await answer(
            app, "GET", f"/v1/projects/{acme.project.id}", acme.secret_key
        ),
        ("GET", "/v1/api-keys"): await answer(app, "GET", "/v1/api-keys", acme.secret_key),
        ("GET", "/v1/api-keys/{id}"): await answer(
            app, "GET", f"/v1/api-keys/{acme.key_id}", acme.secret_key
        ),
        ("POST", "/v1/api-keys/{id}/rotate"): await answer(
            app, "POST", f"/v1/api-keys/{acme.key_id}/rotate", acme.secret_key
        ),
        ("GET", "/v1/channels"): await answer(app, "GET", "/v1/channels", acme.secret_key),
        ("GET", "/v1/channels/{id}"): await answer(
            app, "GET", f"/v1/channels/{acme.channel.id}", acme.secret_key
        ),
        ("POST", "/v1/channels/{id}/check"): await answer(
            app, "POST", f"/v1/channels/{acme.channel.id}/check", acme.secret_key
        ),
        ("GET", "/v1/events"): await answer(app, "GET", "/v1/events", acme.secret_key),
        ("GET", "/v1/events/{id}"): await answer(app, "GET", f"/v1/events/{event['id']}", acme.secret_key),
    }

    for (method, path), body in answers.items():
        assert list(problems(body, answer_schema(method, path, 200), closed=True)) == [], path


async def answer(app: App, method: str, path: str, key: str, **request: Any) -> Any:
    """The body of a call that is not refused."""
    reply = await app.call(method, path, key, **request)
    assert reply.status == 200, reply.body
    return reply.body


async def test_a_refusal_is_the_schema_s_and_its_code_is_listed(app: App, acme: Tenant) -> None:
    refused = await app.call("POST", INTENTS, acme.secret_key, json={"customer_reference": ""})

    assert refused.status == 400
    assert list(problems(refused.body, answer_schema("POST", INTENTS, 400))) == []
    assert refused.body["error"] == "invalid_customer_reference"


async def test_every_error_code_is_explained_by_the_server_as_in_the_documents(app: App) -> None:
    for code in {refusal.code for refusal in errors.catalogue()}:
        reply = await app.call("GET", f"/errors/{code}")

        assert (reply.status, reply.headers["Content-Type"]) == (200, "text/markdown; charset=utf-8")
        title, _, rest = reply.raw.decode().partition("\n\n")
        page = (ROOT / f"docs/reference/errors/{code}.md").read_text()
        assert title == f"# `{code}`"
        assert page.startswith(title)
        assert f"\n\n{rest}" in page  # below it the documents tell more
    assert (await app.call("GET", "/errors/no_such_code")).body["error"] == "not_found"


async def test_doc_url_leads_to_the_page(app: App, acme: Tenant) -> None:
    refused = await app.call("GET", f"{INTENTS}/reg_unknown", acme.secret_key)

    path = urlsplit(refused.body["doc_url"]).path
    page = await app.call("GET", path)
    assert page.raw.startswith(b"# `not_found`")
    assert b"From every call for one object" in page.raw


async def test_every_recorded_event_has_the_payload_of_the_contract(app: App, clock: MovableClock) -> None:
    acme = await tenant(app, "Acme", on_identity_linked="reject")
    await _listen_to_all(app, acme)
    joined = await app.mint(acme.secret_key, "user_1", metadata={"plan": "starter"})
    await app.say(acme, joined["token"])
    await app.say(acme, "Where is my order?")
    await app.say(acme, joined["token"], BEN)
    rejected = await app.mint(acme.secret_key, "user_2")
    await app.say(acme, rejected["token"])
    replaced = await app.mint(acme.secret_key, "user_1")
    await app.say(acme, replaced["token"], BEN)
    cancelled = await app.mint(acme.secret_key, "user_3")
    await app.call("POST", f"{INTENTS}/{cancelled['id']}/cancel", acme.secret_key)
    expired = await app.mint(acme.secret_key, "user_4", expires_in=60)
    clock.move(timedelta(minutes=7))
    await app.say(acme, expired["token"])
    await _expire_and_disable(app, acme)

    recorded = await app.events(acme.project.id)

    assert {event["event"] for event in recorded} == {*EventType}
    for event in recorded:
        media = CONTRACT["webhooks"][event["event"]]["post"]["requestBody"]["content"]["application/json"]
        assert list(problems(event, media["schema"], closed=True)) == [], event["event"]


async def _listen_to_all(app: App, acme: Tenant) -> None:
    """The opt-in events are recorded only for an endpoint that names them."""
    await app.service.database.run(
        lambda tx: tx.run(
            "update webhook_endpoints set events = $2 where project_id = $1", acme.project.id, [*EventType]
        )
    )


async def _expire_and_disable(app: App, acme: Tenant) -> None:
    at, project_id = app.service.clock.now(), acme.project.id
    await app.service.database.run(
        lambda tx: intents.expire_due(tx, project_id, at, app.service.settings.expiry_grace, 100)
    )
    endpoint = await app.service.database.run(lambda tx: accounts.default_endpoint(tx, project_id))
    await app.service.database.run(
        lambda tx: outbox.disable_endpoint(
            tx, project_id, endpoint.id, "gone", event_id=ids.new("evt", at), at=at
        )
    )
