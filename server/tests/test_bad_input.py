"""Whatever is sent, the answer is the contract's and nothing has changed."""

import asyncio
import contextlib
import gzip
import json
import re
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from snapshots import holdings
from world import INTENTS, App, Reply, Tenant

from wabery_server import accounts
from wabery_server.accounts import KeyDraft
from wabery_server.api.app import VERSION, Operation
from wabery_server.api.routes import OPERATIONS
from wabery_server.clock import MovableClock
from wabery_server.errors import catalogue

JSON = {"content-type": "application/json"}
CODES = {refusal.code for refusal in catalogue()}
SOME_ID = "reg_01jx0000000000000000000000"


class Answered(NamedTuple):
    """An answer, read from the socket byte by byte."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


async def on_the_wire(app: App, *sent: bytes) -> Answered:
    """Writes bytes to a socket of its own and reads one answer; for what no client would send."""
    host, _, port = app.base_url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for part in sent:
            writer.write(part)
            await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        return Answered(int(head[0].split(" ")[1]), headers, raw)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def request(method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def refusal(
    answer: Reply | Answered, status: int, code: str, param: str | None = None, *, served: bool = True
) -> dict[str, Any]:
    """Checks the contract's error body and its headers; returns the body."""
    body: dict[str, Any] = answer.body
    assert (answer.status, body["error"], body.get("param")) == (status, code, param), body
    assert code in CODES
    assert {"error", "message", "request_id", "doc_url"} <= set(body)
    assert set(body) <= {"error", "message", "param", "hint", "request_id", "doc_url"}
    assert body["request_id"] == answer.headers["wabery-request-id"]
    assert re.fullmatch("req_[0-9a-z]{26}", body["request_id"])
    assert body["doc_url"].endswith(f"/errors/{code}")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers.get("wabery-version") == (VERSION if served else None)
    return body


@contextlib.asynccontextmanager
async def unchanged(app: App) -> AsyncIterator[None]:
    """Nothing in any table is different afterwards."""
    before = await holdings(app.service.database)
    yield
    assert await holdings(app.service.database) == before


async def posted(app: App, of: Tenant, body: bytes, **headers: str) -> Reply:
    return await app.call("POST", INTENTS, of.secret_key, data=body, headers=headers)


async def new_key(app: App, of: Tenant, **draft: Any) -> accounts.NewKey:
    now = app.service.clock.now()
    new = accounts.new_key(of.project, KeyDraft(name="some", **draft), now)
    await app.service.database.run(lambda tx: accounts.create_key(tx, new, actor="cli:test", at=now))
    return new


# Bodies that are no JSON object

NO_JSON = [
    b"", b" ", b"{", b"{'customer_reference': 'a'}", b'{"customer_reference": "a"', b'{"customer_reference": "a"} x',
    b'{"customer_reference": "a",}', b'{"customer_reference": NaN}', b'{"customer_reference": "a"}\x00',
    b'\xef\xbb\xbf{"customer_reference": "a"}', '{"customer_reference": "a"}'.encode("utf-16"),
    b'{"customer_reference": "\xff"}', b'{"customer_reference": "\xed\xa0\x80"}', b'{"customer_reference": "a\nb"}',
    b'{"customer_reference": "a\x00b"}', b'{"customer_reference": "\\x41"}', b'{"customer_reference": "\\ud800"}',
    b'{"customer_reference": "\\udc00\\ud800"}', b'{"metadata": {"\\ud83d": 1}, "customer_reference": "a"}',
    b"customer_reference=a", gzip.compress(b'{"customer_reference": "a"}'), b"[" * 50_000, b'{"a":' * 10_000,
    b'{"customer_reference": "a", "metadata": ' + b'{"a":' * 9_000 + b"1" + b"}" * 9_001,
    b'{"customer_reference": "a", "metadata": {"a": ' + b"[" * 30_000 + b"]" * 30_000 + b"}}",
    b'{"customer_reference": "a", "metadata": ' + b'{"a":' * 900 + b'"\\u0000"' + b"}" * 901,
    b'{"customer_reference": "a", "metadata": {"a": 1e999}}',
    b'{"customer_reference": "a", "metadata": {"a": -1e999}}',
    b'{"customer_reference": "a", "metadata": {"a": ' + b"9" * 5000 + b"}}",
    b'{"customer_reference": "a", "metadata": {"a": 01}}',
]  # fmt: skip


async def test_a_body_that_is_no_json_is_refused(app: App, acme: Tenant) -> None:
    async with unchanged(app):
        for body in NO_JSON:
            reply = await posted(app, acme, body)
            assert reply.status == 400, body[:80]
            refusal(reply, 400, reply.body["error"], reply.body.get("param"))
            assert reply.body["error"] in ("invalid_request", "invalid_metadata")


async def test_a_lone_surrogate_is_named_as_such(app: App, acme: Tenant) -> None:
    reply = await posted(app, acme, b'{"customer_reference": "a\\ud800b"}')

    assert "surrogate" in refusal(reply, 400, "invalid_request")["hint"]


async def test_a_body_that_is_no_object_is_refused(app: App, acme: Tenant) -> None:
    async with unchanged(app):
        for body in (b"[]", b"null", b"true", b"5", b'"text"', b"[{}]"):
            refusal(await posted(app, acme, body), 400, "invalid_request")


async def test_a_body_of_another_content_type_is_refused(app: App, acme: Tenant) -> None:
    body = b'{"customer_reference": "a"}'
    async with unchanged(app):
        for media_type in (
            "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp",
            "text/json", "*/*", "json", "",
        ):  # fmt: skip
            refusal(
                await posted(app, acme, body, **{"Content-Type": media_type}), 415, "unsupported_media_type"
            )
        headers = {"Authorization": f"Bearer {acme.secret_key}"}
        refusal(
            await on_the_wire(app, request("POST", INTENTS, headers, body)), 415, "unsupported_media_type"
        )


async def test_json_is_known_by_its_media_type(app: App, acme: Tenant) -> None:
    for media_type in ("application/json", "Application/JSON; charset=utf-8", "application/json ;x=y"):
        reply = await posted(app, acme, b'{"customer_reference": "a"}', **{"Content-Type": media_type})
        assert reply.status == 200


# Fields of a mint

GOOD = {"customer_reference": "user_123"}
METADATA = 16_384


class Wrong(NamedTuple):
    """A body, and what it is answered."""

    fields: dict[str, Any]
    code: str
    param: str | None


def wrong(code: str, param: str | None, **fields: Any) -> Wrong:
    return Wrong({**GOOD, **fields}, code, param)


def each(code: str, param: str, *values: Any) -> list[Wrong]:
    return [wrong(code, param, **{param: value}) for value in values]


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


WRONG: list[Wrong] = [
    Wrong({}, "invalid_request", "customer_reference"),
    *each("invalid_customer_reference", "customer_reference",
          "", "x" * 256, 5, None, True, ["a"], {"a": 1}, "a\nb", "a\tb", "\x7f", "\x85", "\x1b[31m",
          " a", "a ", " ", "a\xa0", "\u3000a", "a\u2028", "a\u200bb", "a\u00adb", "\u202ea", "a\u2066", "\ufeffa", "a\ufe0f",
          "a\u2060b", "a\u034fb", "a\u3164", "a\u115fb", "a\u061cb", "a\ufff9b", "a\U000e0041", "a\U0001d173b"),
    wrong("invalid_request", "customer_reference", customer_reference="a\x00b"),
    *each("invalid_metadata", "metadata", [], "a", 5, None, True, nested(6), {"a": [[[[["deep"]]]]]}),
    *each("metadata_too_large", "metadata", {"a": "x" * METADATA}, {"a": "é" * (METADATA // 2)}),
    wrong("invalid_request", "metadata", metadata={"a\x00": 1}),
    wrong("invalid_request", "metadata.a", metadata={"a": "\x00"}),
    wrong("invalid_request", "metadata.a.b[1]", metadata={"a": {"b": ["x", "y\x00"]}}),
    *each("expires_in_out_of_range", "expires_in",
          0, 59, 604_801, -60, 10**30, "60", 60.5, True, [60], {"s": 60}),
    *each("invalid_request", "locale", "", "english!", "d", "x" * 36, 5, "de_DE", "de-", "dé"),
    *each("invalid_request", "include", ["svg"], "qr", ["qr", "svg"], {}, None),
    wrong("invalid_request", "include[0]", include=[5]),
    *each("invalid_request", "channel_id",
          "", "channel_", "channel_01jx0000000000000000000000", 5, [], "é", "x" * 10_000),
    *[
        wrong("invalid_request", name, **{name: value})
        for name, value in {
            "unknown": 1, "customerReference": "a", "status": "JOINED", "project_id": "proj_1",
            "reference_trust": "server", "contact_id": "contact_1", "reference_token": "e30.e30.",
            "confirmation": "reply", "expected_sender": "+12125550123", "Metadata": {},
        }.items()
    ],
]  # fmt: skip


async def test_a_mint_with_a_wrong_field_names_it(app: App, acme: Tenant) -> None:
    async with unchanged(app):
        for case in WRONG:
            for key in (acme.secret_key, acme.publishable_key):
                reply = await app.call("POST", INTENTS, key, json=case.fields)
                refusal(reply, 400, case.code, case.param)


async def test_many_mints_are_refused_one_by_one(app: App, acme: Tenant) -> None:
    items: list[Any] = [*(case.fields for case in WRONG), 5, None, [], "a"]

    async with unchanged(app):
        reply = await app.call("POST", f"{INTENTS}/bulk", acme.secret_key, json={"items": items})

    assert reply.status == 200
    answers = reply.body["data"]
    assert [(one["object"], one["error"], one.get("param")) for one in answers] == [
        *(("error", case.code, case.param) for case in WRONG),
        *[("error", "invalid_request", None)] * 4,
    ]


async def test_a_bulk_mint_of_nothing_or_too_much_is_refused(app: App, acme: Tenant) -> None:
    wrongs: list[tuple[Any, str]] = [
        ({}, "items"),
        ({"items": []}, "items"),
        ({"items": 5}, "items"),
        ({"items": [GOOD] * 1001}, "items"),
        ({"items": [GOOD], "dry_run": True}, "dry_run"),
    ]
    async with unchanged(app):
        for body, param in wrongs:
            reply = await app.call("POST", f"{INTENTS}/bulk", acme.secret_key, json=body)
            refusal(reply, 400, "invalid_request", param)


JUST_ALLOWED: list[dict[str, Any]] = [
    {"customer_reference": "x" * 255},
    {"customer_reference": "é" * 255},
    {"customer_reference": "😀 <script> ' \" \\ %00"},
    {"customer_reference": "a  b\xa0c\u2003d"},
    {"customer_reference": "مستخدم 42"},
    {"metadata": {}},
    {"metadata": nested(5)},
    {"metadata": {"a": "x" * (METADATA - len('{"a":""}'))}},
    {"metadata": {"": None, "a\\u0000": "\\ud800", "é": [1.5, -0.0, 1e308, 5e-324]}},
    {"metadata": {"large": [2**53 + 1, 2**64, -(2**63) - 1, 10**40]}},
    {"expires_in": 60},
    {"expires_in": 604_800},
    {"locale": "pt-BR", "channel_id": None, "expires_in": None, "include": []},
]


async def test_what_is_just_allowed_is_kept_as_it_was_sent(app: App, acme: Tenant) -> None:
    for number, fields in enumerate(JUST_ALLOWED):
        sent = {"customer_reference": f"user_{number}", **fields}
        minted = await app.call("POST", INTENTS, acme.secret_key, json=sent)
        again = await app.get(acme.secret_key, minted.body["id"])
        assert again["customer_reference"] == sent["customer_reference"]
        assert again["metadata"] == sent.get("metadata", {})


async def test_of_a_field_that_comes_twice_the_last_counts(app: App, acme: Tenant) -> None:
    reply = await posted(
        app, acme, b'{"customer_reference": "a", "customer_reference": "b", "metadata": {"k": 1, "k": 2}}'
    )

    assert (reply.status, reply.body["customer_reference"], reply.body["metadata"]) == (200, "b", {"k": 2})


# Sizes


async def test_a_body_that_is_too_large_is_refused(app: App, acme: Tenant) -> None:
    most = app.service.settings.max_body
    body = json.dumps(GOOD).encode().ljust(most)
    headers = {"Authorization": f"Bearer {acme.secret_key}", **JSON}
    chunked = {**headers, "Transfer-Encoding": "chunked"}
    parts = [b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:100], body[100:], b" ")]

    async with unchanged(app):
        refusal(await posted(app, acme, body + b" "), 413, "payload_too_large")
        refusal(await on_the_wire(app, request("POST", INTENTS, chunked), *parts), 413, "payload_too_large")
        lying = request("POST", INTENTS, {**headers, "Content-Length": str(most + 1)})
        refusal(await on_the_wire(app, lying), 413, "payload_too_large")
    assert (await posted(app, acme, body)).status == 200


async def test_headers_that_are_too_long_are_refused(app: App, acme: Tenant) -> None:
    headers = {"Authorization": f"Bearer {acme.secret_key}"}
    long = {"X-One": "x" * 33_000}
    many = {f"X-{number}": "x" * 100 for number in range(400)}
    body = json.dumps(GOOD).encode()

    async with unchanged(app):
        for more in (long, many):
            wire = request("POST", INTENTS, {**headers, **JSON, **more}, body)
            refusal(await on_the_wire(app, wire), 431, "headers_too_large")
    assert (await on_the_wire(app, request("GET", INTENTS, {**headers, "X-One": "x" * 30_000}))).status == 200


async def test_a_connection_that_is_cut_changes_nothing(app: App, acme: Tenant) -> None:
    headers = {"Authorization": f"Bearer {acme.secret_key}", **JSON, "Content-Length": "1000"}
    host, _, port = app.base_url.removeprefix("http://").partition(":")

    async with unchanged(app):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(request("POST", INTENTS, headers) + b'{"customer_reference": "a"}')
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await app.call("GET", INTENTS, acme.secret_key)).status == 200


# Keys


BAD_KEYS = [
    {"Authorization": "Bearer {secret}x"},
    {"Authorization": "Bearer {secret} {secret}"},
    {"Authorization": "{secret}"},
    {"Authorization": "Basic {secret}"},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer {publishable}"},
    {"Authorization": "Bearer wab_test_"},
    {"Authorization": "Bearer wab_live_0123456789ABCDEFGHIJKLMNOPQRST29Z8aS"},
    {"Authorization": "Bearer \xe9\xe9\xe9"},
    {"Authorization": "Bearer ' or 1=1 --"},
    {"Authorization": "Bearer " + "x" * 20_000},
    {"x-wabery-publishable-key": "{secret}"},
    {"x-wabery-publishable-key": "wab_pub_0123456789ABCDEFGHIJKLMNOPQRST3qrAPx"},
    {"x-wabery-publishable-key": "wab_pub_"},
    {"x-wabery-publishable-key": "\xe9"},
]


async def test_a_bad_key_of_any_kind_opens_nothing(app: App, acme: Tenant) -> None:
    body = json.dumps(GOOD).encode()
    keys = {"secret": acme.secret_key, "publishable": acme.publishable_key}

    async with unchanged(app):
        refusal(await on_the_wire(app, request("POST", INTENTS, JSON, body)), 401, "missing_api_key")
        for headers in BAD_KEYS:
            filled = {name: value.format(**keys) for name, value in headers.items()}
            answer = await on_the_wire(app, request("POST", INTENTS, {**filled, **JSON}, body))
            told = refusal(answer, 401, "invalid_api_key")
            assert not any(key in str(told) for key in keys.values())


async def test_two_keys_at_once_are_one_too_many(app: App, acme: Tenant) -> None:
    both = {"Authorization": f"Bearer {acme.secret_key}", "x-wabery-publishable-key": acme.publishable_key}

    async with unchanged(app):
        refusal(await app.call("POST", INTENTS, headers=both, json=GOOD), 400, "invalid_request")


async def test_a_key_that_has_expired_or_was_revoked_opens_nothing(
    app: App, acme: Tenant, clock: MovableClock
) -> None:
    soon = app.service.clock.now() + timedelta(minutes=1)
    expiring = await new_key(app, acme, scopes=["full"], expires_at=soon)
    revoked = await new_key(app, acme, scopes=["full"])
    assert (await app.call("GET", INTENTS, revoked.value)).status == 200
    await app.call("DELETE", f"/v1/api-keys/{revoked.key.id}", acme.secret_key)
    app.service.directory.forget()
    clock.move(timedelta(minutes=1))

    async with unchanged(app):
        refusal(await app.call("POST", INTENTS, expiring.value, json=GOOD), 401, "key_expired")
        refusal(await app.call("POST", INTENTS, revoked.value, json=GOOD), 401, "invalid_api_key")


# Idempotency-Key


async def test_an_idempotency_key_that_is_none_is_refused(app: App, acme: Tenant) -> None:
    headers = {"Authorization": f"Bearer {acme.secret_key}", **JSON}
    body = json.dumps(GOOD).encode()
    values = ["", '""', "x" * 256, '"' + "x" * 256 + '"', '"open', "\xe9", '"\\x"', "a\tb", '"a" ;p=1']

    async with unchanged(app):
        for value in values:
            for path, sent in ((INTENTS, body), ("/v1/api-keys", b'{"name": "x", "scopes": ["full"]}')):
                wire = request("POST", path, {**headers, "Idempotency-Key": value}, sent)
                refusal(await on_the_wire(app, wire), 400, "invalid_idempotency_key", "Idempotency-Key")


async def test_a_refusal_is_not_kept_for_its_idempotency_key(app: App, acme: Tenant) -> None:
    once = {"Idempotency-Key": "first wrong, then right"}

    async with unchanged(app):
        refusal(
            await app.call("POST", INTENTS, acme.secret_key, json={}, headers=once),
            400,
            "invalid_request",
            "customer_reference",
        )
    assert (await app.call("POST", INTENTS, acme.secret_key, json=GOOD, headers=once)).status == 200


# Queries, paths, methods

QUERIES = {
    f"{INTENTS}/{{id}}": ["wait=-1", "wait=26", "wait=1.5", "wait=", "wait=%D9%A3", "wait=1e1", "wait=+1", "include=svg",
                          "include=", "include=qr,svg", "x=1", "WAIT=1", "wait=" + "9" * 5000],
    INTENTS: ["limit=0", "limit=101", "limit=-1", "limit=ten", "limit=", "status=JOINING", "status=", "status=joined",
              "created_after=yesterday", "created_after=2026-06-27", "created_after=2026-06-27T00:00:00",
              "created_before=", "created_before=0001-01-01T00:00:00%2B23:59", "created_after=2026-13-01T00:00:00Z",
              "customer_reference=", "customer_reference=" + "x" * 256, "customer_reference=%00",
              "customer_reference=%FF", "contact_id=%00", "channel_id=", "offset=5", "%00=1"],
    "/v1/projects": ["limit=x", "name=a"],
    "/v1/api-keys": ["limit=1000"],
    "/v1/channels": ["limit=%20"],
    "/v1/events": ["type=participant.left", "contact_id=%00", "limit=0", "created_after=x"],
}  # fmt: skip


async def test_a_query_that_means_nothing_names_its_parameter(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)

    async with unchanged(app):
        for path, queries in QUERIES.items():
            for query in queries:
                reply = await app.call("GET", f"{path.format(id=intent['id'])}?{query}", acme.secret_key)
                name = query.partition("=")[0].replace("%00", "\x00")
                assert reply.body is not None, (path, query, reply.status)
                refusal(reply, 400, "invalid_request", name)


async def test_a_cursor_of_somebody_elses_making_is_refused(app: App, acme: Tenant) -> None:
    async with unchanged(app):
        for path in (INTENTS, "/v1/projects", "/v1/api-keys", "/v1/channels", "/v1/events"):
            for cursor in ("", "x", "%00", "%FF", "é", "=" * 50, "A" * 16, "A" * 30_000, "../../etc"):
                reply = await app.call("GET", f"{path}?cursor={cursor}", acme.secret_key)
                refusal(reply, 400, "invalid_cursor", "cursor")


async def test_a_cursor_is_good_for_its_own_list_only(app: App, acme: Tenant) -> None:
    for number in range(3):
        await app.mint(acme.secret_key, f"user_{number}")
    first = await app.call("GET", f"{INTENTS}?limit=2", acme.secret_key)
    cursor = first.body["next_cursor"]

    rest = await app.call("GET", f"{INTENTS}?limit=2&cursor={cursor}", acme.secret_key)
    flipped = cursor[:20] + ("A" if cursor[20] != "A" else "B") + cursor[21:]

    assert [one["customer_reference"] for one in rest.body["data"]] == ["user_0"]
    assert (rest.body["has_more"], rest.body["next_cursor"]) == (False, None)
    for path, tried in (("/v1/api-keys", cursor), (INTENTS, flipped), (INTENTS, cursor + "A")):
        refusal(
            await app.call("GET", f"{path}?cursor={tried}", acme.secret_key), 400, "invalid_cursor", "cursor"
        )


IDS = ["x", "%00", "%FF", "reg_", SOME_ID, SOME_ID.upper(), SOME_ID + "%0A", "%7Bid%7D", "%C3%A9", "x" * 5_000, "%2E%2E", "'", "null"]  # fmt: skip


async def test_an_id_that_is_none_is_not_found(app: App, acme: Tenant) -> None:
    bodies: dict[str, Any] = {"opened": {"via": "qr"}}
    async with unchanged(app):
        for operation in OPERATIONS:
            if operation.open or "{id}" not in operation.path:
                continue
            for name in IDS:
                body = bodies.get(operation.path.rpartition("/")[2], {})
                key = acme.secret_key
                headers = {"Authorization": f"Bearer {key}", **JSON, "Idempotency-Key": "k"}
                if operation.scope is None:
                    headers = {"x-wabery-publishable-key": acme.publishable_key, **JSON}
                path = operation.path.replace("{id}", name).encode().decode("latin-1")
                sent = json.dumps(body).encode() if operation.method in ("POST", "PATCH") else b""
                answer = await on_the_wire(app, request(operation.method, path, headers, sent))
                if operation.scope is None and name != "%00":
                    refusal(answer, 403, "insufficient_scope")
                else:
                    refusal(answer, 404, "not_found", answer.body.get("param"))


NO_PATHS = [
    "/", "/v1", "/v1/", "/v2/registration-intents", INTENTS + "/", "/V1/registration-intents", "//v1/projects",
    INTENTS + "/a/b/c", "/v1/%00", "/%FF", "/favicon.ico", "/v1/projects/x/y", "/.env", "/v1/nothing-of-ours",
]  # fmt: skip


async def test_a_path_that_is_not_served_is_answered_without_a_version(app: App, acme: Tenant) -> None:
    headers = {"Authorization": f"Bearer {acme.secret_key}"}
    for path in NO_PATHS:
        for method in ("GET", "POST", "DELETE"):
            answer = await on_the_wire(app, request(method, path, headers))
            refusal(answer, 404, "unknown_path", served=False)


async def test_what_is_no_http_is_told_so_and_the_line_closed(app: App) -> None:
    for sent in (b"hello", b"BREW / HTTP/1.1", "GET /é HTTP/1.1".encode(), b"\x16\x03\x01\x00\xa5\x01"):
        answer = await on_the_wire(app, sent + b"\r\n\r\n")
        assert answer.status == 400
        assert answer.headers["connection"] == "close"


async def test_a_method_that_is_not_served_is_answered_without_a_version(app: App, acme: Tenant) -> None:
    served: dict[str, set[str]] = {}
    for operation in OPERATIONS:
        served.setdefault(operation.path, set()).add(operation.method)

    for path, methods in served.items():
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"} - methods:
            filled = path.replace("{id}", SOME_ID).replace("{code}", "not_found")
            reply = await app.call(method, filled, acme.secret_key)
            refusal(reply, 405, "method_not_allowed", served=False)
            assert reply.headers["allow"] == ", ".join(sorted(methods))
            assert all(one in reply.body["hint"] for one in methods)


async def test_head_is_get_without_its_body(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    headers = {"Authorization": f"Bearer {acme.secret_key}", "Connection": "close"}

    for path in (
        f"{INTENTS}/{intent['id']}",
        INTENTS,
        "/livez",
        "/v1/projects",
        INTENTS + "/nothing",
        "/nowhere",
    ):
        got = await on_the_wire(app, request("GET", path, headers))
        host, _, port = app.base_url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request("HEAD", path, headers))
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        assert int(head.split(b" ")[1]) == got.status
        assert body == b""
        assert f"content-length: {len(got.raw)}".encode() in head.lower()


# Calls with a body of their own

FORMS: dict[tuple[str, str], list[tuple[Any, str, str | None]]] = {
    ("POST", INTENTS + "/{intent}/cancel"): [({"reason": "x"}, "invalid_request", None), ([], "invalid_request", None)],
    ("POST", INTENTS + "/{intent}/extend"): [
        ({"expires_in": 59}, "expires_in_out_of_range", "expires_in"),
        ({"expires_in": "1h"}, "expires_in_out_of_range", "expires_in"),
        ({"until": "2026-06-27T00:00:00Z"}, "invalid_request", "until"),
    ],
    ("POST", "/v1/projects"): [
        ({}, "invalid_request", "name"),
        ({"name": ""}, "invalid_request", "name"),
        ({"name": "x" * 101}, "invalid_request", "name"),
        ({"name": "a\nb"}, "invalid_request", "name"),
        ({"name": "a\x00"}, "invalid_request", "name"),
        ({"name": "a", "livemode": "yes"}, "invalid_request", "livemode"),
        ({"name": "a", "id": "proj_1"}, "invalid_request", "id"),
    ],
    ("PATCH", "/v1/projects/{project}"): [
        ({"name": None}, "invalid_request", "name"),
        ({"livemode": True}, "invalid_request", "livemode"),
        ({"webhook_url": 5}, "invalid_request", "webhook_url"),
        ({"webhook_url": "ftp://a.example/"}, "unsafe_webhook_url", "webhook_url"),
        ({"webhook_url": "https://127.0.0.1/"}, "unsafe_webhook_url", "webhook_url"),
        ({"webhook_url": "https://a.example:22/"}, "unsafe_webhook_url", "webhook_url"),
        ({"webhook_url": ""}, "unsafe_webhook_url", "webhook_url"),
        ({"webhook_secret": ""}, "invalid_request", "webhook_secret"),
        ({"webhook_secret": None}, "invalid_request", "webhook_secret"),
        ({"webhook_secret": "1234567"}, "invalid_request", "webhook_secret"),
        ({"webhook_secret": " "}, "invalid_request", "webhook_secret"),
        ({"webhook_secret": " " * 12}, "invalid_request", "webhook_secret"),
        ({"webhook_secret": " 12345678"}, "invalid_request", "webhook_secret"),
        ({"webhook_secret": "12345678 "}, "invalid_request", "webhook_secret"),
        ({"webhook_secret": "12345678\u3000"}, "invalid_request", "webhook_secret"),
        ({"webhook_secret": "12345678\u200b"}, "invalid_request", "webhook_secret"),
        ({"webhook_secret": "1234\n5678"}, "invalid_request", "webhook_secret"),
        ({"prefilled_text": "no place for it"}, "prefilled_text_invalid", "prefilled_text"),
        ({"prefilled_text": "{token} {token}"}, "prefilled_text_invalid", "prefilled_text"),
        ({"prefilled_text": "https://a.example {token}"}, "prefilled_text_invalid", "prefilled_text"),
        ({"prefilled_text": "{token}" + "x" * 120}, "prefilled_text_invalid", "prefilled_text"),
        ({"prefilled_text": "code{token}"}, "prefilled_text_invalid", "prefilled_text"),
        ({"prefilled_text": "{token}2"}, "prefilled_text_invalid", "prefilled_text"),
        ({"prefilled_texts": {"de": "ohne"}}, "prefilled_text_invalid", "prefilled_texts.de"),
        ({"prefilled_texts": {"Deutsch!": "{token}"}}, "invalid_request", "prefilled_texts"),
        ({"publishable_expires_in": 59}, "invalid_request", "publishable_expires_in"),
        ({"secret_expires_in": 604_801}, "invalid_request", "secret_expires_in"),
        ({"supersede": 1}, "invalid_request", "supersede"),
        ({"unsigned_references": "maybe"}, "invalid_request", "unsigned_references"),
        ({"on_identity_linked": "ignore"}, "invalid_request", "on_identity_linked"),
        ({"references_per_contact": 0}, "invalid_request", "references_per_contact"),
        ({"review": "always"}, "invalid_request", "review"),
    ],
    ("POST", "/v1/projects/{project}/rotate-webhook-secret"): [({"secret": "x"}, "invalid_request", None)],
    ("POST", "/v1/api-keys"): [
        ({}, "invalid_request", "name"),
        ({"name": "a"}, "invalid_request", "scopes"),
        ({"name": "a", "scopes": ["everything"]}, "invalid_request", "scopes"),
        ({"name": "a", "scopes": "full"}, "invalid_request", "scopes"),
        ({"name": "a", "scopes": [5]}, "invalid_request", "scopes[0]"),
        ({"name": "a", "kind": "public"}, "invalid_request", "kind"),
        ({"name": "a", "kind": "publishable", "scopes": ["full"]}, "invalid_request", "scopes"),
        ({"name": "a", "scopes": ["full"], "allowed_origins": ["https://a.example"]}, "invalid_request", "allowed_origins"),
        ({"name": "a", "kind": "publishable", "allowed_origins": ["a.example"]}, "invalid_request", "allowed_origins"),
        ({"name": "a", "kind": "publishable", "allowed_origins": [None]}, "invalid_request", "allowed_origins[0]"),
        ({"name": "a", "scopes": ["full"], "expires_at": "soon"}, "invalid_request", "expires_at"),
        ({"name": "a", "scopes": ["full"], "expires_at": "2020-01-01T00:00:00Z"}, "invalid_request", "expires_at"),
        ({"name": "a", "scopes": ["full"], "expires_at": "2040-01-01T00:00:00"}, "invalid_request", "expires_at"),
        ({"name": "a", "scopes": ["full"], "key": "wab_test_mine"}, "invalid_request", "key"),
    ],
    ("PATCH", "/v1/api-keys/{key}"): [
        ({"scopes": ["full"]}, "invalid_request", "scopes"),
        ({"name": 5}, "invalid_request", "name"),
        ({"allowed_origins": ["https://a.example"]}, "invalid_request", "allowed_origins"),
        ({"expires_at": 5}, "invalid_request", "expires_at"),
    ],
    ("POST", "/v1/channels"): [
        ({}, "invalid_request", "name"),
        ({"name": "a", "phone_number_id": "1x", "display_phone_number": "+49 151 2345678", "waba_id": "1",
          "app_secret": "a" * 32}, "invalid_request", "phone_number_id"),
        ({"name": "a", "phone_number_id": "1", "display_phone_number": "none", "waba_id": "1",
          "app_secret": "a" * 32}, "invalid_request", "display_phone_number"),
        ({"name": "a", "phone_number_id": "1", "display_phone_number": "+49 151 2345678", "waba_id": "1",
          "app_secret": "short"}, "invalid_request", "app_secret"),
        ({"name": "a", "phone_number_id": "1", "display_phone_number": "+49 151 2345678", "waba_id": "1",
          "app_secret": "a" * 32, "provider": "twilio"}, "invalid_request", "provider"),
    ],
    ("PATCH", "/v1/channels/{channel}"): [
        ({"phone_number_id": "1"}, "invalid_request", "phone_number_id"),
        ({"app_secrets": []}, "invalid_request", "app_secrets"),
        ({"app_secrets": ["has a space in it"]}, "invalid_request", "app_secrets[0]"),
        ({"display_phone_number": "+0"}, "invalid_request", "display_phone_number"),
        ({"portfolio_id": "é"}, "invalid_request", "portfolio_id"),
    ],
}  # fmt: skip


async def test_every_form_names_the_field_that_is_wrong(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    names = {
        "intent": intent["id"],
        "project": acme.project.id,
        "key": acme.key_id,
        "channel": acme.channel.id,
    }

    async with unchanged(app):
        for (method, path), cases in FORMS.items():
            for body, code, param in cases:
                reply = await app.call(method, path.format(**names), acme.secret_key, json=body)
                refusal(
                    reply,
                    422 if code in ("unsafe_webhook_url", "prefilled_text_invalid") else 400,
                    code,
                    param,
                )


# Browsers

ORIGIN = "https://app.example.com"


async def test_a_page_may_ask_first(app: App) -> None:
    asking = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,x-wabery-publishable-key",
    }
    for path in {operation.path for operation in OPERATIONS if operation.publishable}:
        reply = await app.call("OPTIONS", path.replace("{id}", SOME_ID), headers=asking)

        allowed = sorted(one.method for one in OPERATIONS if one.path == path and one.publishable)
        assert reply.status == 204
        assert reply.headers["access-control-allow-origin"] == ORIGIN
        assert reply.headers["access-control-allow-methods"] == ", ".join(allowed)
        assert set(reply.headers["access-control-allow-headers"].split(", ")) == {
            "content-type", "idempotency-key", "if-none-match", "x-wabery-client-secret", "x-wabery-publishable-key",
        }  # fmt: skip
        assert reply.headers["access-control-max-age"] == "7200"
        assert reply.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in reply.headers


async def test_a_page_may_not_make_the_calls_of_a_server(app: App, acme: Tenant) -> None:
    for operation in OPERATIONS:
        if operation.open or any(one.publishable for one in OPERATIONS if one.path == operation.path):
            continue
        path = operation.path.replace("{id}", SOME_ID)
        asking = {"Origin": ORIGIN, "Access-Control-Request-Method": operation.method}
        preflight = await app.call("OPTIONS", path, headers=asking)
        call = await app.call(operation.method, path, acme.secret_key, headers={"Origin": ORIGIN}, json={})
        refusal(preflight, 405, "method_not_allowed", served=False)
        refusal(call, 403, "secret_key_in_browser")
        for reply in (preflight, call):
            assert not [name for name in reply.headers if name.lower().startswith("access-control")]


async def test_a_page_can_read_answers_and_refusals(app: App, acme: Tenant) -> None:
    from_page = {"Origin": ORIGIN}
    good = await app.call("POST", INTENTS, acme.publishable_key, json=GOOD, headers=from_page)
    bad = await app.call("POST", INTENTS, acme.publishable_key, json={}, headers=from_page)
    keyless = await app.call("GET", f"{INTENTS}/{SOME_ID}", headers=from_page)
    leaked = await app.call("GET", f"{INTENTS}/{SOME_ID}", acme.secret_key, headers=from_page)

    assert [reply.status for reply in (good, bad, keyless, leaked)] == [200, 400, 401, 403]
    for reply in (good, bad, keyless, leaked):
        assert reply.headers["access-control-allow-origin"] == ORIGIN
        assert "access-control-allow-credentials" not in reply.headers
        exposed = {name.lower() for name in reply.headers["access-control-expose-headers"].split(", ")}
        assert {
            "retry-after",
            "ratelimit",
            "ratelimit-policy",
            "wabery-version",
            "wabery-request-id",
        } <= exposed
        assert "*" not in exposed


async def test_a_key_with_a_list_of_origins_works_on_those_pages_only(app: App, acme: Tenant) -> None:
    listed = await new_key(app, acme, kind="publishable", allowed_origins=[ORIGIN, "http://localhost:3000"])

    async def mint(origin: str | None) -> Reply:
        headers = {} if origin is None else {"Origin": origin}
        return await app.call("POST", INTENTS, listed.value, json=GOOD, headers=headers)

    async with unchanged(app):
        refusal(await mint(None), 403, "origin_required")
        for origin in (
            "null", "http://app.example.com", "https://app.example.com:8443", "https://app.example.com.evil.example",
            "https://evil.example/https://app.example.com", "https://sub.app.example.com", "http://localhost", "",
            "https://APP.example.com.", f"{ORIGIN}, {ORIGIN}", "https://é.example", "x" * 5000,
        ):  # fmt: skip
            refusal(await mint(origin), 403, "origin_not_allowed")
    assert (await mint(ORIGIN)).status == 200
    assert (await mint("http://localhost:3000")).status == 200


async def test_a_key_without_a_list_works_everywhere(app: App, acme: Tenant) -> None:
    for headers in ({}, {"Origin": ORIGIN}, {"Origin": "null"}):
        reply = await app.call("POST", INTENTS, acme.publishable_key, json=GOOD, headers=headers)
        assert reply.status == 200


# Anything at all

WRITES = [one for one in OPERATIONS if one.method in ("POST", "PATCH") and not one.open]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["full", "qr", "{token}"]),
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def fields_of(operation: Operation) -> list[str]:
    return list(operation.takes.__struct_fields__) if operation.takes else []  # type: ignore[attr-defined]  # a Struct


@st.composite
def attacks(draw: st.DrawFn) -> tuple[Operation, bytes]:
    """A call that writes, with bytes, with JSON, or with its own fields filled at random."""
    operation = draw(st.sampled_from(WRITES))
    kind = draw(st.sampled_from(["bytes", "json", "fields", "fields"]))
    if kind == "bytes":
        return operation, draw(st.binary(max_size=200))
    if kind == "fields" and (names := fields_of(operation)):
        return operation, json.dumps(draw(st.dictionaries(st.sampled_from(names), anything))).encode()
    return operation, json.dumps(draw(anything)).encode()


@given(st.lists(attacks(), min_size=10, max_size=30))
@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
async def test_nothing_that_is_written_breaks_the_server(
    app: App, acme: Tenant, attacks: list[tuple[Operation, bytes]]
) -> None:
    for operation, body in attacks:
        ids = {"/v1/projects": acme.project.id, "/v1/channels": acme.channel.id}
        own = next((name for path, name in ids.items() if operation.path.startswith(path)), SOME_ID)
        key = acme.secret_key if operation.scope else acme.publishable_key

        reply = await app.call(operation.method, operation.path.replace("{id}", own), key, data=body)

        assert reply.status < 500, (operation.path, body, reply.body)
        if reply.status >= 400:
            refusal(reply, reply.status, reply.body["error"], reply.body.get("param"))
        else:
            msgspec.json.decode(reply.raw)


@given(st.binary(max_size=400) | anything.map(lambda value: json.dumps(value).encode()))
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_nothing_that_is_signed_breaks_the_webhook(app: App, acme: Tenant, body: bytes) -> None:
    assert await app.deliver(acme, body) is not None


@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=60),
    st.dictionaries(
        st.sampled_from(["Idempotency-Key", "x-wabery-client-secret", "If-None-Match", "Origin", "X-Forwarded-For",
                         "Content-Type", "traceparent", "Accept", "Authorization"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60),
        max_size=4,
    ),
)  # fmt: skip
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_path_and_no_header_breaks_the_server(
    app: App, acme: Tenant, path: str, headers: dict[str, str]
) -> None:
    sent = {"x-wabery-publishable-key": acme.publishable_key, **headers}

    answer = await on_the_wire(app, request("GET", f"{INTENTS}/{path}", sent))

    assert answer.status < 500
    if answer.headers["content-type"] == "application/json" and answer.status >= 400:
        refusal(
            answer,
            answer.status,
            answer.body["error"],
            answer.body.get("param"),
            served="wabery-version" in answer.headers,
        )


async def test_what_is_wrong_with_a_field_is_said_in_words(app: App, acme: Tenant) -> None:
    async def said(method: str, path: str, body: dict[str, Any] | bytes) -> tuple[str, str, str]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await app.call(method, path, acme.secret_key, data=raw, headers=JSON)
        assert answer.status == 400
        return answer.body["error"], answer.body["param"], answer.body["message"]

    project = f"/v1/projects/{acme.project.id}"
    number = b'{"customer_reference": "a", "metadata": {"a": %s}}' % (b"9" * 5000)
    assert await said("POST", INTENTS, {"f" * 5000: 1}) == (
        "invalid_request", "f" * 128, f"There is no field '{'f' * 64}' here.",
    )  # fmt: skip
    assert await said("PATCH", project, {"webhook_secret": "short"}) == (
        "invalid_request", "webhook_secret", "webhook_secret must have at least 8 characters.",
    )  # fmt: skip
    assert await said("POST", INTENTS, {"customer_reference": "a", "locale": "x" * 99}) == (
        "invalid_request", "locale", "locale must have at most 35 characters.",
    )  # fmt: skip
    assert await said("POST", "/v1/api-keys", {"name": "a", "kind": "secret", "expires_at": "2030-01-01T00:00:00"}) == (
        "invalid_request", "expires_at", "expires_at must be a time with its offset, such as 2026-06-27T00:00:00Z.",
    )  # fmt: skip
    assert await said("PATCH", f"/v1/channels/{acme.channel.id}", {"portfolio_id": ""}) == (
        "invalid_request", "portfolio_id", "portfolio_id must match ^[0-9]+$.",
    )  # fmt: skip
    assert await said("POST", INTENTS, number) == (
        "invalid_metadata", "metadata[...]", "Integer value out of range (in metadata[...]).",
    )  # fmt: skip


async def test_a_header_that_counts_once_is_refused_twice(app: App, acme: Tenant) -> None:
    for name in ("Origin", "Idempotency-Key", "x-wabery-client-secret"):
        headers = {"x-wabery-publishable-key": acme.publishable_key, name: "a", name.upper() + " ": "b"}
        raw = request("GET", f"{INTENTS}/{SOME_ID}", headers).replace(b" : b", b": b")
        answer = await on_the_wire(app, raw)
        assert (
            refusal(answer, 400, "invalid_request")["message"]
            == f"There is more than one {name.lower()} header."
        )
