"""Meta's webhook from outside: what is believed, what is kept, what may redeem a token, and what never may."""

import gzip
import hashlib
import hmac
import io
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import meta_bodies
import msgspec
import pytest
from meta_bodies import Json
from world import ANA, BEN, App, Reply, Tenant, tenant

from wabery_server import accounts
from wabery_server.accounts import ChannelChanges
from wabery_server.contacts import Identity
from wabery_server.phone import payloads

INBOUND = "/inbound/whatsapp"
SIGNATURE = "x-hub-signature-256"
MAX_BODY = 4 * 1024 * 1024


def signature(secret: str, body: bytes) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


async def post(app: App, body: bytes, **headers: str) -> Reply:
    return await app.call("POST", INBOUND, data=body, headers=headers)


async def signed(app: App, of: Tenant, body: bytes) -> Reply:
    return await post(app, body, **{SIGNATURE: signature(of.app_secret, body)})


async def post_large(app: App, body: bytes, value: str) -> tuple[int, Any]:
    headers = {"content-type": "application/json", SIGNATURE: value}
    async with app.web.post(app.base_url + INBOUND, data=io.BytesIO(body), headers=headers) as answer:
        return answer.status, await answer.json()


async def rows(app: App, table: str) -> list[dict[str, Any]]:
    found = await app.service.database.run(lambda tx: tx.rows(f"select * from {table}"))
    return [dict(row) for row in found]


def saying(app: App, of: Tenant, text: str, sender: Identity = ANA, **content: object) -> Json:
    """A change with one text message."""
    now = app.service.clock.now()
    return meta_bodies.change(of.channel, meta_bodies.text(sender, now, text, **content))


async def verify_token(app: App, of: Tenant) -> str:
    reply = await app.call("GET", f"/v1/channels/{of.channel.id}", of.secret_key)
    token: str = reply.body["verify_token"]
    return token


# The handshake


async def test_the_handshake_returns_the_challenge_as_bare_text(
    app: App, acme: Tenant, globex: Tenant
) -> None:
    for one in (acme, globex):
        query = f"hub.mode=subscribe&hub.verify_token={await verify_token(app, one)}&hub.challenge=1158201444"

        reply = await app.call("GET", f"{INBOUND}?{query}")

        assert reply.status == 200
        assert reply.raw == b"1158201444"
        assert reply.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    "query",
    [
        "",
        "hub.mode=subscribe&hub.challenge=1",
        "hub.mode=subscribe&hub.verify_token=&hub.challenge=1",
        "hub.mode=subscribe&hub.verify_token=wrong&hub.challenge=1",
        "hub.mode=subscribe&hub.verify_token=%C3%A9%F0%9F%94%91&hub.challenge=1",
        "hub.mode=unsubscribe&hub.verify_token={token}&hub.challenge=1",
        "hub.verify_token={token}&hub.challenge=1",
        "hub.mode=subscribe&hub.verify_token={token}",
        "hub.mode=subscribe&hub.verify_token={token}x&hub.challenge=1",
    ],
)
async def test_any_other_handshake_is_refused(app: App, acme: Tenant, query: str) -> None:
    reply = await app.call("GET", f"{INBOUND}?{query.format(token=await verify_token(app, acme))}")

    assert (reply.status, reply.body["error"]) == (403, "invalid_verify_token")


async def test_a_challenge_cannot_become_a_page(app: App, acme: Tenant) -> None:
    token = await verify_token(app, acme)
    query = f"hub.mode=subscribe&hub.verify_token={token}&hub.challenge=%3Cscript%3Ealert(1)%3C/script%3E"

    reply = await app.call("GET", f"{INBOUND}?{query}")

    assert reply.headers["content-type"].startswith("text/plain")
    assert reply.headers["x-content-type-options"] == "nosniff"


# The signature

Forgery = Callable[[str, bytes], tuple[bytes, list[tuple[str, str]]]]
"""From the right secret and the body that is signed, what is sent: a body and headers."""

FORGERIES: dict[str, Forgery] = {
    "missing": lambda secret, body: (body, []),
    "empty": lambda secret, body: (body, [(SIGNATURE, "")]),
    "no prefix": lambda secret, body: (body, [(SIGNATURE, signature(secret, body)[7:])]),
    "the prefix of another hash": lambda secret, body: (body, [(SIGNATURE, "sha1=" + signature(secret, body)[7:])]),
    "upper-case prefix": lambda secret, body: (body, [(SIGNATURE, "SHA256=" + signature(secret, body)[7:])]),
    "only the legacy header": lambda secret, body: (
        body, [("x-hub-signature", "sha1=" + hmac.new(secret.encode(), body, hashlib.sha1).hexdigest())]
    ),
    "cut short": lambda secret, body: (body, [(SIGNATURE, signature(secret, body)[:-2])]),
    "one digit off": lambda secret, body: (
        body, [(SIGNATURE, signature(secret, body)[:-1] + ("0" if signature(secret, body)[-1] != "0" else "1"))]
    ),
    "not hex": lambda secret, body: (body, [(SIGNATURE, "sha256=" + "zz" * 32)]),
    "not ASCII": lambda secret, body: (body, [(SIGNATURE, "sha256=" + "é" * 64)]),
    "of no body": lambda secret, body: (b"", [(SIGNATURE, signature(secret, body))]),
    "of a body with another newline": lambda secret, body: (body + b"\n", [(SIGNATURE, signature(secret, body))]),
    "of a body dumped again": lambda secret, body: (
        json.dumps(json.loads(body)).encode(), [(SIGNATURE, signature(secret, body))]
    ),
    "another secret": lambda secret, body: (body, [(SIGNATURE, signature("nobody's secret at all", body))]),
    "the verify token": lambda secret, body: (body, [(SIGNATURE, signature("", body))]),
    "twice, the second wrong": lambda secret, body: (
        body, [(SIGNATURE, signature(secret, body)), (SIGNATURE, signature("another", body))]
    ),
    "twice, the first wrong": lambda secret, body: (
        body, [(SIGNATURE, signature("another", body)), (SIGNATURE, signature(secret, body))]
    ),
    "twice, both right": lambda secret, body: (body, [(SIGNATURE, signature(secret, body))] * 2),
    "two in one header": lambda secret, body: (
        body, [(SIGNATURE, f"{signature(secret, body)}, {signature(secret, body)}")]
    ),
    "of the body before it was compressed": lambda secret, body: (
        gzip.compress(body), [(SIGNATURE, signature(secret, body)), ("content-encoding", "gzip")]
    ),
}  # fmt: skip


async def test_a_body_that_is_not_signed_as_it_came_is_refused(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    body = payloads.meta_text(
        phone_number_id=acme.channel.phone_number_id, display_phone_number=acme.channel.display_phone_number,
        waba_id=acme.channel.waba_id, text=f"Größe/@ {intent['token']}", sender=ANA, message_id=None,
        at=app.service.clock.now(),
    )  # fmt: skip

    refused = {}
    for name, forge in FORGERIES.items():
        sent, headers = forge(acme.app_secret, body)
        raw = [("content-type", "application/json"), *headers]
        async with app.web.post(app.base_url + INBOUND, data=sent, headers=raw) as answer:
            refused[name] = (answer.status, (await answer.json())["error"])

    assert refused == dict.fromkeys(FORGERIES, (401, "invalid_signature"))
    assert (await app.get(acme.secret_key, intent["id"]))["status"] == "PENDING"
    assert await rows(app, "messages") == []


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"null", b"no JSON", b"\xff\xfe", b'{"entry": 5}', b"{}\n"]
)
async def test_a_signed_body_is_taken_whatever_it_says(app: App, acme: Tenant, body: bytes) -> None:
    reply = await signed(app, acme, body)

    assert reply.status == 200
    assert await rows(app, "messages") == []


@pytest.mark.parametrize("change", [str.upper, str.lower])
async def test_hex_digits_count_in_either_case(app: App, acme: Tenant, change: Callable[[str], str]) -> None:
    body = meta_bodies.envelope(saying(app, acme, "Hello"))
    value = "sha256=" + change(signature(acme.app_secret, body)[7:])

    assert (await post(app, body, **{SIGNATURE: value})).body == {"received": {"passed_on": 1}}


async def test_the_bytes_that_came_are_what_is_signed(app: App, acme: Tenant) -> None:
    loose = json.dumps(
        {"z": "Größe/@\u2028 😀", **json.loads(meta_bodies.envelope(saying(app, acme, "Hi")))}, indent=1
    )

    reply = await signed(app, acme, loose.encode() + b"\n\n")

    assert reply.body == {"received": {"passed_on": 1}}


# Whose change it is


async def test_a_change_counts_only_under_its_own_channels_secret(
    app: App, acme: Tenant, globex: Tenant
) -> None:
    at_acme, at_globex = await app.mint(acme.secret_key), await app.mint(globex.secret_key)
    body = meta_bodies.envelope(
        saying(app, globex, at_globex["token"]),
        saying(app, acme, at_acme["token"]),
        saying(app, acme, "Hello"),
    )

    reply = await signed(app, acme, body)

    assert reply.status == 200
    assert reply.body == {"received": {"foreign_change": 1, "joined": 1, "passed_on": 1}}
    assert (await app.get(acme.secret_key, at_acme["id"]))["status"] == "JOINED"
    assert (await app.get(globex.secret_key, at_globex["id"]))["status"] == "PENDING"
    assert {row["project_id"] for row in await rows(app, "messages")} == {acme.project.id}


async def test_the_secret_of_another_project_opens_nothing(app: App, acme: Tenant, globex: Tenant) -> None:
    intent = await app.mint(acme.secret_key)

    reply = await signed(app, globex, meta_bodies.envelope(saying(app, acme, intent["token"])))

    assert reply.body == {"received": {"foreign_change": 1}}
    assert (await app.get(acme.secret_key, intent["id"]))["status"] == "PENDING"


async def test_a_number_nobody_has_is_dropped_and_counted(app: App, acme: Tenant) -> None:
    stray = saying(app, acme, "Hello")
    stray["value"]["metadata"]["phone_number_id"] = "1"
    without = saying(app, acme, "Hello")
    del without["value"]["metadata"]

    reply = await signed(app, acme, meta_bodies.envelope(stray, without, saying(app, acme, "Hello")))

    assert reply.body == {"received": {"foreign_change": 2, "passed_on": 1}}


async def test_a_deleted_channel_hears_nothing_more(app: App, acme: Tenant) -> None:
    body = meta_bodies.envelope(saying(app, acme, "Hello"))
    await app.call("DELETE", f"/v1/channels/{acme.channel.id}", acme.secret_key)
    app.service.directory.forget()

    reply = await signed(app, acme, body)

    assert (reply.status, reply.body["error"]) == (401, "invalid_signature")
    assert await rows(app, "messages") == []


async def test_while_the_app_secret_changes_both_are_believed(app: App, acme: Tenant) -> None:
    old, new = acme.app_secret, "c" * 32
    body = meta_bodies.envelope(saying(app, acme, "Hello"))

    async def secrets(*accepted: str) -> dict[str, int]:
        changes = ChannelChanges(app_secrets=list(accepted))
        await app.service.database.run(
            lambda tx: accounts.update_channel(
                tx, acme.project.id, acme.channel.id, changes,
                keyring=app.service.keyring, actor="cli:test", at=app.service.clock.now(),
            )
        )  # fmt: skip
        app.service.directory.forget()
        return {
            secret: (await post(app, body, **{SIGNATURE: signature(secret, body)})).status
            for secret in (old, new)
        }

    assert await secrets(old) == {old: 200, new: 401}
    assert await secrets(new, old) == {old: 200, new: 200}
    assert await secrets(new) == {old: 401, new: 200}


# Size


async def test_a_body_of_four_mebibytes_is_taken_and_one_byte_more_is_not(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    body = meta_bodies.envelope(saying(app, acme, intent["token"]))
    whole = body + b" " * (MAX_BODY - len(body))

    status, refusal = await post_large(app, whole + b" ", signature(acme.app_secret, whole + b" "))
    just_right = await post_large(app, whole, signature(acme.app_secret, whole))

    assert (status, refusal["error"]) == (413, "payload_too_large")
    assert just_right == (200, {"received": {"joined": 1}})


async def test_the_size_is_checked_before_the_signature(app: App, acme: Tenant) -> None:
    status, refusal = await post_large(app, b"x" * (MAX_BODY + 1), "sha256=" + "0" * 64)

    assert (status, refusal["error"]) == (413, "payload_too_large")


async def test_a_batch_of_a_thousand_messages_is_taken_whole(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    now = app.service.clock.now()
    people = [Identity(bsuid=f"US.9{number:06d}", profile_name="x" * 200) for number in range(1000)]
    messages = [meta_bodies.text(person, now, f"Hello {number}") for number, person in enumerate(people)]
    messages[700] = meta_bodies.text(people[700], now, intent["token"])
    body = meta_bodies.envelope(
        meta_bodies.change(acme.channel, *messages, contacts=[meta_bodies.contact(one) for one in people])
    )

    counts = await app.deliver(acme, body)

    assert counts == {"passed_on": 999, "joined": 1}
    assert len(await rows(app, "contacts")) == 1000


# Whole batches


async def test_eight_tokens_of_eight_people_in_one_body_are_eight_joins(app: App, acme: Tenant) -> None:
    minted = [await app.mint(acme.secret_key, f"user_{number}") for number in range(8)]
    now = app.service.clock.now()
    people = [Identity(bsuid=f"US.{number}", phone=f"1212555010{number}") for number in range(8)]
    told = [
        meta_bodies.text(*one) for one in zip(people, [now] * 8, [m["token"] for m in minted], strict=True)
    ]
    body = meta_bodies.envelope(
        meta_bodies.change(acme.channel, *told[:3]),
        meta_bodies.change(
            acme.channel, *told[3:5], contacts=[meta_bodies.contact(one) for one in people[3:5]]
        ),
        meta_bodies.change(acme.channel, *told[5:]),
    )

    counts = await app.deliver(acme, body)

    joined = [await app.get(acme.secret_key, one["id"]) for one in minted]
    assert counts == {"joined": 8}
    assert {one["status"] for one in joined} == {"JOINED"}
    assert len({one["contact_id"] for one in joined}) == 8
    assert len(await app.events(acme.project.id, "participant.joined")) == 8


async def test_a_message_that_the_database_refuses_harms_none_of_its_neighbours(
    app: App, acme: Tenant
) -> None:
    await app.service.database.run(
        lambda tx: tx.run("alter table messages add check (text is distinct from 'poison')")
    )
    minted = [await app.mint(acme.secret_key, f"user_{number}") for number in range(7)]
    now = app.service.clock.now()
    texts = [one["token"] for one in minted]
    texts.insert(3, "poison")
    messages = [
        meta_bodies.text(Identity(bsuid=f"US.{number}"), now, text) for number, text in enumerate(texts)
    ]
    body = meta_bodies.envelope(meta_bodies.change(acme.channel, *messages))

    counts = await app.deliver(acme, body)

    (failed,) = [row for row in await rows(app, "messages") if row["kind"] == "unreadable"]
    assert counts == {"joined": 7, "failed": 1}
    assert failed["error"] == "CheckViolationError"
    assert failed["provider_message_id"] == messages[3]["id"]
    assert await app.events(acme.project.id, "message.received") == []


async def test_when_nothing_can_be_stored_the_provider_is_told_to_come_again(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    body = meta_bodies.envelope(saying(app, acme, intent["token"]))
    await app.service.database.run(lambda tx: tx.run("alter table messages rename to elsewhere"))

    refused = await signed(app, acme, body)
    still = await app.get(acme.secret_key, intent["id"])
    await app.service.database.run(lambda tx: tx.run("alter table elsewhere rename to messages"))
    again = await signed(app, acme, body)

    assert (refused.status, refused.body["error"]) == (503, "unavailable")
    assert still["status"] == "PENDING"
    assert again.body == {"received": {"joined": 1}}


async def test_broken_parts_of_a_body_stop_nothing(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    now = app.service.clock.now()
    good = meta_bodies.text(ANA, now, intent["token"])
    body = {
        "object": 7,
        "entry": [
            None,
            {"id": None, "changes": "none"},
            {"changes": [None, 5, {"field": "messages"}, {"field": None, "value": []}]},
            {"changes": [meta_bodies.change(acme.channel, 5, {"type": []}, {}, good, statuses="x")]},  # type: ignore[arg-type]  # on purpose
        ],
    }

    counts = await app.deliver(acme, json.dumps(body).encode())

    assert counts["joined"] == 1
    assert (await app.get(acme.secret_key, intent["id"]))["status"] == "JOINED"


async def test_a_message_that_comes_again_is_a_duplicate(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    join = meta_bodies.envelope(saying(app, acme, intent["token"]))
    hello = saying(app, acme, "Hello")
    again = meta_bodies.envelope(hello, hello, hello)

    assert await app.deliver(acme, join) == {"joined": 1}
    assert await app.deliver(acme, join) == {"duplicate": 1}
    assert await app.deliver(acme, again) == {"passed_on": 1, "duplicate": 2}
    assert await app.deliver(acme, again) == {"duplicate": 3}
    assert len(await app.events(acme.project.id)) == 2


async def test_an_id_that_was_seen_is_a_duplicate_whatever_else_it_says(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    await app.say(acme, "Hello", ANA, message_id="wamid.ONE")

    counts = await app.say(acme, intent["token"], BEN, message_id="wamid.ONE")

    assert counts == {"duplicate": 1}
    assert (await app.get(acme.secret_key, intent["id"]))["status"] == "PENDING"


async def test_the_same_id_on_two_numbers_is_two_messages(app: App, acme: Tenant, globex: Tenant) -> None:
    for one in (acme, globex):
        assert await app.say(one, "Hello", ANA, message_id="wamid.ONE") == {"passed_on": 1}


# What may redeem a token

CARRIERS: dict[str, Callable[[str], Json]] = {
    "text": lambda token: {"type": "text", "text": {"body": f"Hi! {token}"}},
    "image caption": lambda token: {"type": "image", "image": {"id": "1", "caption": token}},
    "video caption": lambda token: {"type": "video", "video": {"id": "1", "caption": token}},
    "document caption": lambda token: {"type": "document", "document": {"id": "1", "caption": token}},
    "button text": lambda token: {"type": "button", "button": {"text": token, "payload": "x"}},
    "button payload": lambda token: {"type": "button", "button": {"text": "Connect", "payload": token}},
    "button reply title": lambda token: {"type": "interactive", "interactive": {"button_reply": {"title": token}}},
    "button reply id": lambda token: {
        "type": "interactive", "interactive": {"type": "button_reply", "button_reply": {"id": token, "title": "Go"}}
    },
    "list reply title": lambda token: {"type": "interactive", "interactive": {"list_reply": {"title": token}}},
    "list reply description": lambda token: {
        "type": "interactive", "interactive": {"list_reply": {"title": "One", "description": token}}
    },
    "form reply body": lambda token: {"type": "interactive", "interactive": {"nfm_reply": {"body": token}}},
    "form reply answers": lambda token: {
        "type": "interactive", "interactive": {"nfm_reply": {"response_json": json.dumps({"code": token})}}
    },
    "order text": lambda token: {"type": "order", "order": {"text": token, "product_items": []}},
    "edit": lambda token: {
        "type": "edit", "edit": {"original_message_id": "w", "message": {"type": "text", "text": {"body": token}}}
    },
    "edited caption": lambda token: {
        "type": "edit", "edit": {"message": {"type": "image", "image": {"caption": token}}}
    },
    "reply": lambda token: {"type": "text", "text": {"body": token}, "context": {"id": "wamid.X", "from": "1"}},
    "forwarded": lambda token: {"type": "text", "text": {"body": token}, "context": {"forwarded": True}},
    "from an ad": lambda token: {"type": "text", "text": {"body": token}, "referral": {"source_id": "1"}},
    "a new type": lambda token: {"type": "rich_text", "text": {"body": token}},
}  # fmt: skip


async def test_every_field_that_holds_text_may_carry_the_token(app: App, acme: Tenant) -> None:
    outcomes = {}
    for number, (name, content) in enumerate(CARRIERS.items()):
        intent = await app.mint(acme.secret_key, f"user_{number}")
        person = Identity(bsuid=f"US.{number}")
        made = meta_bodies.message(person, app.service.clock.now()) | content(intent["token"])
        counts = await app.deliver(acme, meta_bodies.envelope(meta_bodies.change(acme.channel, made)))
        outcomes[name] = (counts, (await app.get(acme.secret_key, intent["id"]))["status"])

    assert outcomes == dict.fromkeys(CARRIERS, ({"joined": 1}, "JOINED"))
    assert await app.events(acme.project.id, "message.received") == []
    assert "wjr_" not in "".join(row["text"].replace("wjr_…", "") for row in await rows(app, "messages"))


SILENT: dict[str, tuple[Json, str]] = {
    "group message": ({"type": "text", "group_id": "G1"}, "group"),
    "group message whose id is odd": ({"type": "text", "group_id": 0}, "group"),
    "reaction": ({"type": "reaction", "reaction": {"message_id": "w", "emoji": "{token}"}}, "reaction"),
    "reaction with text": ({"type": "reaction"}, "reaction"),
    "revoke": ({"type": "revoke", "revoke": {"original_message_id": "{token}"}}, "revoke"),
    "system": ({"type": "system", "system": {"type": "user_changed_number", "body": "{token}"}}, "stored"),
    "opening the chat": ({"type": "request_welcome"}, "passed_on"),
    "a name": ({"type": "contacts", "contacts": [{"name": {"formatted_name": "{token}"}}]}, "passed_on"),
    "a place": ({"type": "location", "location": {"name": "{token}"}}, "passed_on"),
}  # fmt: skip


async def test_these_messages_never_redeem_a_token(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    outcomes = {}
    for name, (content, _) in SILENT.items():
        filled = json.loads(json.dumps(content).replace("{token}", intent["token"]))
        made = meta_bodies.text(ANA, app.service.clock.now(), intent["token"])
        if "text" not in content and content["type"] in ("contacts", "location"):
            del made["text"]
        counts = await app.deliver(
            acme, meta_bodies.envelope(meta_bodies.change(acme.channel, made | filled))
        )
        outcomes[name] = counts

    assert outcomes == {name: {outcome: 1} for name, (_, outcome) in SILENT.items()}
    assert (await app.get(acme.secret_key, intent["id"]))["status"] == "PENDING"
    assert intent["token"] not in str(await rows(app, "messages"))


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("history", "history"),
        ("message_echoes", "echo"),
        ("smb_message_echoes", "echo"),
        ("smb_app_state_sync", "contact_book"),
        ("messaging_handovers", "messaging_handovers"),
        ("something_new", "something_new"),
        ("Messages", "other_field"),
        ("a" * 65, "other_field"),
    ],
)
async def test_these_fields_never_redeem_a_token(app: App, acme: Tenant, field: str, reason: str) -> None:
    intent = await app.mint(acme.secret_key)
    now = app.service.clock.now()
    said = meta_bodies.text(ANA, now, intent["token"])
    body = meta_bodies.envelope(
        meta_bodies.change(
            acme.channel, said, field=field, message_echoes=[said], standby=[said],
            history=[{"threads": [{"id": "1", "messages": [said]}]}],
        )
    )  # fmt: skip

    counts = await app.deliver(acme, body)

    assert counts == {reason: 1}
    assert (await app.get(acme.secret_key, intent["id"]))["status"] == "PENDING"
    assert await rows(app, "messages") == []


async def test_statuses_and_notices_never_redeem_a_token(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    about: Json = {
        "statuses": [
            {"id": intent["token"], "status": "delivered", "biz_opaque_callback_data": intent["token"]}
        ],
        "errors": [{"code": 130429, "title": intent["token"]}],
        "user_actions": [{"type": "open", "text": {"body": intent["token"]}}],
    }
    said = meta_bodies.change(acme.channel, contacts=[meta_bodies.contact(ANA)], **about)

    counts = await app.deliver(acme, meta_bodies.envelope(said))

    assert counts == {"status": 1, "notice": 1, "user_action": 1}
    assert (await app.get(acme.secret_key, intent["id"]))["status"] == "PENDING"


async def test_what_meta_withholds_is_kept_with_the_reason(app: App, acme: Tenant) -> None:
    now = app.service.clock.now()
    withheld = meta_bodies.message(
        BEN, now, "unsupported", errors=[{"code": 131060, "title": "…"}], unsupported={"type": "text"}
    )

    counts = await app.deliver(acme, meta_bodies.envelope(meta_bodies.change(acme.channel, withheld)))

    (row,) = await rows(app, "messages")
    (event,) = await app.events(acme.project.id)
    assert counts == {"passed_on": 1}
    assert (row["kind"], row["error"]) == ("unreadable", "131060: WhatsApp withholds the content (text)")
    assert (event["payload"]["type"], event["payload"]["text"]) == ("unsupported", None)
    assert event["payload"]["content"] == {
        "errors": [{"code": 131060, "title": "…"}],
        "unsupported": {"type": "text"},
    }


# Tokens that join nobody


async def test_a_token_of_another_project_is_unknown_here(app: App, acme: Tenant, globex: Tenant) -> None:
    intent = await app.mint(acme.secret_key)

    counts = await app.say(globex, intent["token"])

    assert counts == {"unknown_token": 1}
    assert (await app.get(acme.secret_key, intent["id"]))["status"] == "PENDING"
    assert await app.events(globex.project.id) == []
    assert {row["registration_intent_id"] for row in await rows(app, "messages")} == {None}


async def test_a_token_sent_to_another_number_of_the_project_waits_for_the_right_one(
    app: App, acme: Tenant
) -> None:
    first = await app.mint(acme.secret_key)
    draft = {
        "name": "Second", "phone_number_id": "106540352242922", "display_phone_number": "+49 151 2345678",
        "waba_id": "102290129340398", "app_secret": acme.app_secret,
    }  # fmt: skip
    second = (await app.call("POST", "/v1/channels", acme.secret_key, json=draft)).body
    app.service.directory.forget()
    there = await app.mint(acme.secret_key, channel_id=second["id"])

    counts = await app.say(acme, there["token"])

    assert counts == {"wrong_channel": 1}
    assert (await app.get(acme.secret_key, there["id"]))["status"] == "PENDING"
    assert await app.say(acme, first["token"]) == {"joined": 1}


@pytest.mark.parametrize(
    ("text", "attempt"),
    [
        ("wjr_00000000000000000000000000", "unknown_token"),
        ("{first} {second}", "ambiguous_token"),
        ("wjr_00000000000000000000000000 wjr_00000000000000000000000001", "unknown_token"),
    ],
)
async def test_a_token_that_means_no_single_intent_changes_nothing(
    app: App, acme: Tenant, text: str, attempt: str
) -> None:
    first, second = await app.mint(acme.secret_key, "one"), await app.mint(acme.secret_key, "two")

    counts = await app.say(acme, text.format(first=first["token"], second=second["token"]))

    assert counts == {attempt: 1}
    assert await app.events(acme.project.id) == []
    assert (await app.get(acme.secret_key, first["id"]))["status"] == "PENDING"
    (row,) = await rows(app, "messages")
    assert row["attempt"] == attempt
    assert row["text"].replace("wjr_…", "").strip() == ""


@pytest.mark.parametrize(
    "frame",
    [
        "{link}",
        "Fwd: https://l.example.com/?u={quoted_link}",
        "x{token}",
        "Connect: wjr\\_{body}",
        "{token}Sent from my phone",
        "my code is {body}",
        "{body_upper}",
    ],
)
async def test_a_token_joins_in_any_wrapping_and_is_not_stored(app: App, acme: Tenant, frame: str) -> None:
    intent = await app.mint(acme.secret_key)
    token, body = intent["token"], intent["token"][4:]
    text = frame.format(
        link=intent["wa_link"],
        quoted_link=quote(intent["wa_link"], safe=""),
        token=token,
        body=body,
        body_upper=body.upper(),
    )

    counts = await app.say(acme, text)

    assert counts == {"joined": 1}
    (row,) = await rows(app, "messages")
    assert row["text"] == text.replace(token, "wjr_…").replace(f"wjr\\_{body}", "wjr_…").replace(
        body, "wjr_…"
    ).replace(body.upper(), "wjr_…")
    assert body not in str(await app.events(acme.project.id)).lower()


async def test_near_matches_and_unknown_bare_runs_are_ordinary_messages(app: App, acme: Tenant) -> None:
    near = await app.say(acme, "wjr_7k3mq9xt2fhz4vbn8rcp5d6gj")
    bare = await app.say(acme, "01arz3ndektsv4rrffq69g5fav")

    events = await app.events(acme.project.id, "message.received")
    assert near == bare == {"passed_on": 1}
    assert [event["payload"]["text"] for event in events] == ["wjr_…", "01arz3ndektsv4rrffq69g5fav"]


async def test_a_bare_token_of_another_project_is_ordinary_text(
    app: App, acme: Tenant, globex: Tenant
) -> None:
    intent = await app.mint(acme.secret_key)

    counts = await app.say(globex, intent["token"][4:])

    assert counts == {"passed_on": 1}
    assert (await app.get(acme.secret_key, intent["id"]))["status"] == "PENDING"


async def test_of_two_tokens_the_only_live_one_counts(app: App, acme: Tenant) -> None:
    used, live = await app.mint(acme.secret_key, "one"), await app.mint(acme.secret_key, "one")
    await app.say(acme, used["token"], ANA)

    counts = await app.say(acme, f"{used['token']} {live['token']} wjr_00000000000000000000000000", ANA)

    assert counts == {"joined": 1}
    assert (await app.get(acme.secret_key, live["id"]))["already_linked"] is True


async def test_a_token_far_behind_the_beginning_of_a_text_is_not_passed_on(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)

    counts = await app.say(acme, "." * 4096 + f" {intent['token']}")

    (event,) = await app.events(acme.project.id, "message.received")
    assert counts == {"passed_on": 1}
    assert intent["token"] not in event["payload"]["text"]
    assert intent["token"] not in str(await rows(app, "messages"))


async def test_an_edit_without_a_token_is_kept_and_not_passed_on(app: App, acme: Tenant) -> None:
    edit = meta_bodies.message(
        ANA, app.service.clock.now(), "edit", edit={"message": {"type": "text", "text": {"body": "Hello!"}}}
    )

    counts = await app.deliver(acme, meta_bodies.envelope(meta_bodies.change(acme.channel, edit)))

    assert counts == {"stored": 1}
    assert await app.events(acme.project.id) == []


async def test_text_that_no_database_can_hold_is_passed_on_cleaned(app: App, acme: Tenant) -> None:
    body = meta_bodies.envelope(saying(app, acme, "a\x00b\ud800c"))

    assert b"\\u0000" in body
    assert await app.deliver(acme, body) == {"passed_on": 1}
    (event,) = await app.events(acme.project.id)
    assert event["payload"]["text"] == "a\ufffdb\ufffdc"


# Policies, from the message to the link


@pytest.mark.parametrize(
    ("policy", "statuses", "links"),
    [
        ({"on_identity_linked": "reject"}, ["JOINED", "REJECTED", "REJECTED"], ["one"]),
        ({"on_identity_linked": "replace"}, ["JOINED", "JOINED", "JOINED"], ["three"]),
        (
            {"on_identity_linked": "allow", "references_per_contact": 2},
            ["JOINED", "JOINED", "REJECTED"],
            ["one", "two"],
        ),
    ],
)
async def test_what_a_person_with_several_references_may_do_is_a_setting_of_the_project(
    app: App, policy: dict[str, object], statuses: list[str], links: list[str]
) -> None:
    initech = await tenant(app, "Initech", **policy)
    minted = [await app.mint(initech.secret_key, reference) for reference in ("one", "two", "three")]

    for intent in minted:
        await app.say(initech, intent["token"])

    assert [(await app.get(initech.secret_key, one["id"]))["status"] for one in minted] == statuses
    active = [row for row in await rows(app, "links") if row["ended_at"] is None]
    assert sorted(row["customer_reference"] for row in active) == links


async def test_an_unverified_registration_never_takes_a_reference_over(app: App, acme: Tenant) -> None:
    mine = await app.mint(acme.secret_key, "user_123", metadata={"plan": "starter"})
    await app.say(acme, mine["token"], ANA)
    before = await rows(app, "links")
    theirs = await app.mint(acme.publishable_key, "user_123", metadata={"plan": "free lunch"})
    same = await app.mint(acme.publishable_key, "user_123", metadata={"plan": "free lunch"})

    assert await app.say(acme, theirs["token"], BEN) == {"rejected": 1}
    assert await app.say(acme, same["token"], ANA) == {"joined": 1}

    assert await rows(app, "links") == before
    await app.say(acme, "Hello", ANA)
    (event,) = await app.events(acme.project.id, "message.received")
    assert event["payload"]["metadata"] == {"plan": "starter"}
    assert event["payload"]["reference_trust"] == "server"
    joins = [event["payload"] for event in await app.events(acme.project.id, "participant.joined")]
    (again,) = [payload for payload in joins if payload["registration_intent_id"] == same["id"]]
    assert again["already_linked"] is True
    assert again["metadata_trusted"] is False


async def test_a_trusted_registration_takes_an_unverified_link_over(app: App, acme: Tenant) -> None:
    squatter = await app.mint(acme.publishable_key, "user_123")
    await app.say(acme, squatter["token"], BEN)
    owner = await app.mint(acme.secret_key, "user_123", metadata={"plan": "starter"})

    counts = await app.say(acme, owner["token"], ANA)

    assert counts == {"joined": 1}
    events = sorted(event["event"] for event in await app.events(acme.project.id))
    assert events == ["participant.joined", "participant.joined", "participant.unlinked"]
    active = [row for row in await rows(app, "links") if row["ended_at"] is None]
    assert [(row["customer_reference"], row["reference_trust"]) for row in active] == [("user_123", "server")]
    assert msgspec.json.decode(active[0]["metadata"]) == {"plan": "starter"}


async def test_a_project_that_stops_taking_unsigned_references_joins_none_that_were_minted_before(
    app: App, acme: Tenant
) -> None:
    intent = await app.mint(acme.publishable_key)
    strict = {"unsigned_references": "refuse"}
    await app.call("PATCH", f"/v1/projects/{acme.project.id}", acme.secret_key, json=strict)
    app.service.directory.forget()

    counts = await app.say(acme, intent["token"])
    minting = await app.call(
        "POST", "/v1/registration-intents", acme.publishable_key, json={"customer_reference": "user_123"}
    )

    assert counts == {"rejected": 1}
    assert (await app.get(acme.secret_key, intent["id"]))["rejection_reason"] == "reference_unverified"
    assert (minting.status, minting.body["error"]) == (401, "reference_signature_missing")
