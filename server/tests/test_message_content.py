"""What is kept and told of a message: its content by type, and no token in it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import meta_bodies
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meta_bodies import Json
from test_document import CONTRACT, problems
from test_whatsapp import EXPECTED, NOON, RECORDED, TOKEN, messages, parse
from world import ANA, App, Tenant

from wabery_server import inbox
from wabery_server.inbox import Kind, Message
from wabery_server.whatsapp import meta

ABSENT = dict.fromkeys(("reply", "media", "context", "referral"))


def said(message: Message) -> dict[str, Any]:
    """What the event says of a message."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(inbox.told(message, inbox.keep(message))))
    return found


async def heard(app: App, of: Tenant, content: Json) -> dict[str, Any]:
    """A person sends it; the payload that the app receives."""
    made = meta_bodies.message(ANA, app.service.clock.now()) | content
    counts = await app.deliver(of, meta_bodies.envelope(meta_bodies.change(of.channel, made)))
    assert counts == {"passed_on": 1}
    payload: dict[str, Any] = (await app.events(of.project.id))[-1]["payload"]
    return payload


REPLY = {"id": None, "title": None, "payload": None, "response": None}
MEDIA = {"id": None, "mime_type": None, "sha256": None, "filename": None, "voice": None, "animated": None}
TOLD: list[tuple[Json, dict[str, Any]]] = [
    (
        {"type": "button", "button": {"text": "Yes", "payload": "order-7-yes"}},
        {"text": "Yes", "reply": {**REPLY, "title": "Yes", "payload": "order-7-yes"}},
    ),
    (
        {"type": "interactive", "interactive": {"type": "list_reply", "list_reply": {"id": "slot-3", "title": "Morning"}}},
        {"text": "Morning", "reply": {**REPLY, "id": "slot-3", "title": "Morning"}},
    ),
    (
        {
            "type": "interactive",
            "interactive": {
                "type": "nfm_reply", "nfm_reply": {"name": "flow", "body": "Sent", "response_json": '{"rating":5}'}
            },
        },
        {"text": "Sent", "reply": {**REPLY, "title": "Sent", "response": '{"rating":5}'}},
    ),
    (
        {"type": "image", "image": {"id": "123", "mime_type": "image/jpeg"}},
        {"text": None, "media": {**MEDIA, "id": "123", "mime_type": "image/jpeg"}},
    ),
    ({"type": "location", "location": {"latitude": 52.5, "longitude": 13.4}}, {"text": None}),
    ({"type": "contacts", "contacts": [{"name": {"formatted_name": "Bo"}}]}, {"text": None}),
    (
        {
            "type": "interactive",
            "interactive": {"type": "call_permission_reply", "call_permission_reply": {"response": "accept"}},
        },
        {"text": None, "reply": {**REPLY, "response": "accept"}},
    ),
    (
        {"type": "unsupported", "errors": [{"code": 131060}]},
        {"text": None, "content": {"errors": [{"code": 131060}]}},
    ),
    (
        {"type": "unsupported", "errors": [{"code": 131051}], "unsupported": {"type": "edit"}},
        {"text": None, "content": {"errors": [{"code": 131051}], "unsupported": {"type": "edit"}}},
    ),
    ({"type": "unknown", "errors": [{"code": 131051}]}, {"text": None, "content": {"errors": [{"code": 131051}]}}),
    ({"type": "request_welcome"}, {"text": None, "content": None}),
    ({"type": "poll_creation", "poll_creation": {"name": "Which?"}}, {"text": None}),
    ({"type": "new_type", "elsewhere": {"a": 1}, "too": 2}, {"text": None, "content": {"elsewhere": {"a": 1}, "too": 2}}),
    ({"type": "new_type"}, {"text": None, "content": None}),
    ({"type": "text"}, {"text": None, "content": None}),
    ({"type": "text", "text": {"body": ""}}, {"text": None, "content": {"body": ""}}),
    ({"type": "interactive"}, {"text": None, "content": None}),
    ({"type": None}, {"type": "unknown", "text": None, "content": None}),
    ({"type": "id"}, {"text": None, "content": None}),
    (
        {"type": "text", "text": {"body": "yes"}, "context": {"id": "wamid.OURS", "from": "1555", "new": True}},
        {"context": {"message_id": "wamid.OURS"}},
    ),
    ({"type": "text", "text": {"body": "yes"}, "context": {"forwarded": True}}, {"forwarded": True, "context": None}),
    (
        {"type": "text", "text": {"body": "hi"}, "referral": {"source_id": "1", "ctwa_clid": "x"}},
        {"referral": {"source_id": "1", "ctwa_clid": "x"}},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "told"), TOLD, ids=lambda one: json.dumps(one)[:60])
async def test_a_message_of_any_type_is_told_with_its_content(
    app: App, acme: Tenant, sent: Json, told: Mapping[str, Any]
) -> None:
    payload = await heard(app, acme, sent)

    expected = {
        "type": sent["type"],
        **ABSENT,
        "content_truncated": False,
        "handled_by": "app",
        "forwarded": False,
    }
    expected["content"] = sent.get(sent["type"]) if sent["type"] not in ("id", None) else None
    expected |= told
    assert {name: payload[name] for name in expected} == expected
    (row,) = await app.service.database.run(
        lambda tx: tx.rows("select content, context, referral from messages")
    )
    stored = {name: row[name] and json.loads(row[name]) for name in ("content", "context", "referral")}
    assert stored == {
        "content": payload["content"],
        "context": sent.get("context"),
        "referral": sent.get("referral"),
    }


async def test_a_message_on_standby_is_handled_by_the_agent_and_joins(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    now = app.service.clock.now()
    hello, join = meta_bodies.text(ANA, now, "Hello"), meta_bodies.text(ANA, now, intent["token"])
    echo = meta_bodies.text(ANA, now, intent["token"])
    status = {"id": "wamid.1", "status": "sent"}
    body = meta_bodies.envelope(
        meta_bodies.change(
            acme.channel, hello, join, field="standby", message_echoes=[echo], statuses=[status]
        )
    )

    counts = await app.deliver(acme, body)

    (event,) = await app.events(acme.project.id, "message.received")
    rows = await app.service.database.run(lambda tx: tx.rows("select handled_by from messages"))
    assert counts == {"passed_on": 1, "joined": 1, "echo": 1, "status": 1}
    assert event["payload"]["handled_by"] == "agent"
    assert [row["handled_by"] for row in rows] == ["agent", "agent"]


@pytest.mark.parametrize("name", [name for name, found in EXPECTED.items() if isinstance(found, Message)])
def test_every_recorded_message_is_told_as_the_contract_says(name: str) -> None:
    schema = CONTRACT["components"]["schemas"]["MessageReceived"]
    [message] = messages(parse(RECORDED[name]))

    found = said(message)

    assert TOKEN not in json.dumps(found)
    missing = [one for one in problems(found, schema, closed=True) if not one.endswith("is missing")]
    assert missing == []


def test_the_docs_show_every_type_that_has_an_event() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/message-types.md").read_text()
    shown = {line.split('"')[3] for line in page.splitlines() if line.startswith('  "type": "')}

    told = {
        found.type for found in EXPECTED.values() if isinstance(found, Message) and found.kind != Kind.SYSTEM
    }
    assert told - {"edit", "rich_text"} == shown


# Tokens


def message_with(**content: object) -> Message:
    body = {"id": "wamid.1", "from_user_id": "US.1", "timestamp": "1795341600", **content}
    value = {"metadata": {"phone_number_id": "1"}, "messages": [body]}
    whole = {"entry": [{"id": "1", "changes": [{"field": "messages", "value": value}]}]}
    [found] = messages(meta.parse(json.dumps(whole).encode(), NOON))
    return found


IDS = {
    "id": TOKEN, "sha256": TOKEN, "mime_type": TOKEN, "media_key": TOKEN, "catalog_id": TOKEN, "ctwa_clid": TOKEN,
    "file_hash": TOKEN, "product_retailer_id": TOKEN,
}  # fmt: skip


@pytest.mark.parametrize("where", ["image", "context", "referral", "new"])
def test_ids_hashes_and_keys_are_never_redacted(where: str) -> None:
    message = message_with(type="new", **{where: IDS, "text": {"body": "Hello"}})

    kept = inbox.keep(message)

    part = kept.content if where in ("image", "new") else getattr(kept, where)
    assert part is not None
    found = json.loads(part)
    assert found.get(where, found) == IDS


def leaves(token: str) -> "st.SearchStrategy[Any]":
    """JSON that holds the token somewhere as text, in some encoding."""
    twice = quote(quote(f"go {token}", safe=""), safe="")
    texts = st.sampled_from(
        [token, f"see {token}.", token.upper(), quote(f"{token}!"), f"https://wa.me/1?text=Connect%20{token}", twice,
         token.replace("_", "-"), "\u200b".join(token), json.dumps({"code": token})]
    )  # fmt: skip
    names = st.sampled_from(
        ["body", "title", "caption", "url", "name", "description", "address", "new", "source_url", TOKEN]
    )
    inner = texts | st.integers() | st.booleans() | st.none()
    return st.recursive(
        inner,
        lambda more: st.lists(more, max_size=3) | st.dictionaries(names, more, max_size=3),
        max_leaves=8,
    )


@given(
    st.sampled_from(["text", "interactive", "contacts", "location", "new_type", "unsupported"]),
    leaves(TOKEN),
    st.sampled_from(["type", "context", "referral", "errors"]),
)
def test_no_text_anywhere_keeps_a_token(type: str, value: object, where: str) -> None:
    message = message_with(**{"type": type, type if where == "type" else where: value})

    kept = inbox.keep(message)

    body = TOKEN.removeprefix("wjr_")
    stored = "".join(part or "" for part in (kept.text, kept.content, kept.context, kept.referral, kept.raw))
    plain = stored.replace("\u200b", "").lower()
    assert not [start for start in range(len(body) - 11) if body[start : start + 12] in plain]


def test_what_is_logged_of_a_change_holds_no_token() -> None:
    changes = [{"field": TOKEN, "value": {"metadata": {"phone_number_id": TOKEN}}}]

    [change] = meta.parse(json.dumps({"entry": [{"id": "1", "changes": changes}]}).encode(), NOON).changes

    assert (change.phone_number_id, list(change.ignored)) == ("wjr_…", ["wjr_…"])


def test_a_pressed_token_is_redacted_in_every_part() -> None:
    message = message_with(
        type="interactive", interactive={"type": "button_reply", "button_reply": {"id": TOKEN, "title": "Go"}}
    )

    found = said(message)

    assert (found["reply"]["id"], found["content"]["button_reply"]["id"]) == ("wjr_…", "wjr_…")


# Size


@pytest.mark.parametrize("part", ["content", "context", "referral"])
@pytest.mark.parametrize("letter", ["x", "é", "\U0001f600", '"', "\ufdfa"])
def test_a_part_of_more_than_64_kib_is_left_out_and_says_so(part: str, letter: str) -> None:
    size = len(json.dumps(letter, ensure_ascii=False).encode()) - 2
    for over, there in ((0, True), (1, False)):
        content = {
            "a": letter * ((meta.MAX_CONTENT - 8) // size) + "x" * ((meta.MAX_CONTENT - 8) % size + over)
        }
        message = message_with(
            type="new", **{"new" if part == "content" else part: content, "text": {"body": "Hi"}}
        )

        kept = inbox.keep(message)

        assert (getattr(kept, part) is not None, kept.truncated) == (there, not there)
        assert kept.text == "Hi"
        assert message.kind is Kind.MESSAGE
