"""What Meta may send, and what may never stop a batch. `recorded/meta/*.json` has one body for each shape."""

import copy
import hmac
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wabery_server.contacts import Identity
from wabery_server.inbox import HandledBy, Kind, Message
from wabery_server.whatsapp import PROVIDERS, Ignored, Parsed, Unreadable, meta

RECORDED = {
    file.stem: file.read_bytes() for file in (Path(__file__).parent / "recorded" / "meta").glob("*.json")
}
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
TOKEN = "wjr_7k3mq9xt2fhz4vbn8rcp5d6gja"
SECRET = b"an app secret of thirty-two hex"

ANA = Identity(bsuid="US.8120001", phone="12125550123", profile_name="Ana")
BO = Identity(bsuid="DE.8120002", username="bo.k", profile_name="Bo")


def message(
    number: int | str,
    type: str,
    *texts: str,
    sender: Identity | None = ANA,
    kind: Kind = Kind.MESSAGE,
    at: int = 1795341600,
    **more: object,
) -> Message:
    return Message(
        provider_message_id=f"wamid.EX{number}" if isinstance(number, int) else number,
        kind=kind,
        type=type,
        sender=sender,
        sent_at=datetime.fromtimestamp(at, UTC),
        texts=texts,
        **more,  # type: ignore[arg-type]  # the rest of the struct's fields, by name
    )


def from_bo(number: int, type: str, *texts: str, **more: object) -> Message:
    return message(number, type, *texts, sender=BO, at=1795341660, **more)  # type: ignore[arg-type]  # by name


def system(number: int, sender: Identity | None) -> Message:
    return message(number, "system", sender=sender, kind=Kind.SYSTEM, at=1795341720)


PHONE_ONLY = Identity(phone="12125550123")
WITH_PARENT = Identity(
    bsuid="US.8120001", parent_bsuid="US.ENT.9120001", phone="12125550123", profile_name="Ana"
)

EXPECTED: dict[str, Message | str] = {
    "text_with_phone": message(1, "text", f"Hi! {TOKEN}"),
    "text_without_phone": from_bo(2, "text", TOKEN),
    "text_with_parent_ids": message(4, "text", "Hello", sender=WITH_PARENT),
    "text_without_contacts": message(
        5, "text", "Hello", sender=Identity(bsuid="US.8120001", phone="12125550123")
    ),
    "text_before_user_ids": message(
        6, "text", "Hello", sender=Identity(phone="12125550123", profile_name="Ana")
    ),
    "text_user_id_only_in_contact": message(7, "text", "Hello"),
    "text_forwarded": message(8, "text", TOKEN, forwarded=True),
    "text_frequently_forwarded": message(9, "text", TOKEN, forwarded=True),
    "text_reply": from_bo(10, "text", "Yes, that one"),
    "text_from_ad": message(11, "text", "Hello from the ad"),
    "text_in_many_scripts": message(
        12,
        "text",
        "مرحبا 👋🏽 こんにちは a/b @c",
        sender=Identity(bsuid="US.8120001", phone="12125550123", profile_name="Ana 🌱 دالية"),
    ),
    "image_with_caption": message(13, "image", f"see {TOKEN}"),
    "image": message(14, "image"),
    "video_with_caption": from_bo(15, "video", "my video", forwarded=True),
    "document_with_caption": message(16, "document", "the form"),
    "audio": message(17, "audio"),
    "sticker": message(18, "sticker"),
    "location": message(19, "location"),
    "contacts": from_bo(20, "contacts"),
    "order": message(21, "order", "two, please"),
    "button": message(22, "button", "Yes", "yes:1"),
    "button_without_context": message(23, "button", "Yes", "yes:1"),
    "interactive_button_reply": message(24, "interactive", "Yes, that is me", "confirm:1"),
    "interactive_list_reply": from_bo(25, "interactive", "42", "the number on your screen", "code:42"),
    "interactive_form_reply": message(26, "interactive", "Sent", '{"flow_token":"f1","code":"x1"}'),
    "interactive_without_object": message(
        27, "interactive", kind=Kind.UNREADABLE, error="its content is missing"
    ),
    "interactive_call_permission_reply": message(46, "interactive"),
    "reaction": Ignored.REACTION,
    "edit_text": message(31, "edit", f"Hi again! {TOKEN}", is_edit=True),
    "edit_caption": message(32, "edit", "another caption", is_edit=True),
    "revoke": Ignored.REVOKE,
    "system_user_changed_number": system(34, PHONE_ONLY),
    "system_user_changed_user_id": system(3, None),
    "system_customer_changed_number": system(35, PHONE_ONLY),
    "system_customer_identity_changed": message(
        36, "system", sender=Identity(phone="12125550123", profile_name="Ana"), kind=Kind.SYSTEM
    ),
    "request_welcome": message(37, "request_welcome"),
    "unsupported_131051_edit": message(
        38, "unsupported", kind=Kind.UNREADABLE, error="131051: WhatsApp withholds the content (edit)"
    ),
    "unsupported_131060": from_bo(
        39, "unsupported", kind=Kind.UNREADABLE, error="131060: WhatsApp withholds the content (unknown)"
    ),
    "unknown_type": message(40, "poll_creation"),
    "unknown_type_with_text": message(41, "rich_text", f"Hello {TOKEN}"),
    "unknown_fields": message(42, "text", "Hello"),
    "echo_from_business_app": Ignored.ECHO,
    "echo_from_other_app": Ignored.ECHO,
    "history": Ignored.HISTORY,
    "history_in_messages": Ignored.HISTORY,
    "contact_book": Ignored.CONTACT_BOOK,
    "standby": message(45, "text", TOKEN, handled_by=HandledBy.AGENT),
    "group": Ignored.GROUP,
    "status_failed": Ignored.STATUS,
    "user_actions": Ignored.USER_ACTION,
    "value_errors": Ignored.NOTICE,
    "account_update": "account_update",
    "user_id_update": "user_id_update",
}
COUNTED = {"statuses_with_contacts": {Ignored.STATUS: 3}, "reaction_removed": {Ignored.REACTION: 2}}
BATCHES = {"batch_of_eight_senders", "batch_of_entries_and_changes"}


def parse(body: bytes | dict[str, object]) -> Parsed:
    return meta.parse(body if isinstance(body, bytes) else json.dumps(body).encode(), NOON)


def without_content(found: Message) -> Message:
    """What a message is without the provider's own objects, which have tests of their own."""
    return msgspec.structs.replace(
        found,
        raw=b"{}",
        original=bytes,
        reply=None,
        media=None,
        context_id=None,
        content=None,
        context=None,
        referral=None,
    )


def messages(parsed: Parsed) -> list[Message]:
    """Every message, without the function that makes its original: no two functions are equal."""
    return [
        msgspec.structs.replace(message, original=bytes)
        for change in parsed.changes
        for message in change.messages
    ]


def document(name: str) -> dict[str, object]:
    found = json.loads(RECORDED[name])
    assert isinstance(found, dict)
    return found


def value_of(body: dict[str, object]) -> dict[str, object]:
    """The value of the only change of a recorded body, to be altered in place."""
    value = body["entry"][0]["changes"][0]["value"]  # type: ignore[index]  # a recorded shape
    assert isinstance(value, dict)
    return value


def first_message(body: dict[str, object]) -> dict[str, object]:
    found = value_of(body)["messages"][0]  # type: ignore[index]  # a recorded shape
    assert isinstance(found, dict)
    return found


def altered(name: str = "text_with_phone", **fields: object) -> Message:
    """The only message of a recorded body, with some of its fields replaced; None removes one."""
    body = document(name)
    only = first_message(body)
    for field, value in fields.items():
        field = field.rstrip("_")
        if value is None:
            only.pop(field, None)
        else:
            only[field] = value
    [found] = messages(parse(body))
    return found


# The recorded bodies


def test_every_recorded_body_is_expected_somewhere() -> None:
    assert set(RECORDED) == set(EXPECTED) | set(COUNTED) | BATCHES


@pytest.mark.parametrize(
    "name", [name for name, expected in EXPECTED.items() if isinstance(expected, Message)]
)
def test_a_recorded_message_is_read(name: str) -> None:
    expected = EXPECTED[name]
    assert isinstance(expected, Message)

    [change] = parse(RECORDED[name]).changes

    [found] = change.messages
    assert without_content(found) == expected
    assert change.ignored == {}
    assert (change.phone_number_id, change.display_digits) == ("700800900100", "12125550100")
    assert (change.field, change.waba_id) == ("standby" if name == "standby" else "messages", "900100200300")
    kept = {} if expected.kind is Kind.MESSAGE else first_message(document(name))
    assert json.loads(found.raw) == kept


@pytest.mark.parametrize(
    "name", [name for name, expected in EXPECTED.items() if not isinstance(expected, Message)]
)
def test_what_may_never_redeem_is_counted_and_not_kept(name: str) -> None:
    [change] = parse(RECORDED[name]).changes

    assert change.messages == []
    assert change.ignored == {EXPECTED[name]: 1}


@pytest.mark.parametrize("name", COUNTED)
def test_several_in_one_value_are_counted_singly(name: str) -> None:
    [change] = parse(RECORDED[name]).changes

    assert change.messages == []
    assert change.ignored == COUNTED[name]


def test_eight_senders_in_one_value_keep_their_own_names_whatever_the_order_of_contacts() -> None:
    found = messages(parse(RECORDED["batch_of_eight_senders"]))

    assert [message.provider_message_id for message in found] == [f"wamid.BATCH{n}" for n in range(8)]
    assert all(message.sender for message in found)
    for number, message in enumerate(found):
        assert message.sender is not None
        assert message.texts == (f"Message {number} of {message.sender.profile_name}",)
    assert [message.sender.phone is None for message in found if message.sender].count(True) == 2


def test_every_entry_and_change_of_a_body_is_read() -> None:
    changes = parse(RECORDED["batch_of_entries_and_changes"]).changes

    assert [
        (change.waba_id, change.phone_number_id, [m.provider_message_id for m in change.messages])
        for change in changes
    ] == [
        ("900100200300", "700800900100", ["wamid.BATCH0"]),
        ("900100200300", "700800900100", []),
        ("900100200300", "700800900101", ["wamid.BATCH1", "wamid.BATCH2"]),
        ("900100200301", "700800900102", ["wamid.BATCH3"]),
    ]
    assert [change.ignored for change in changes] == [{}, {Ignored.STATUS: 1}, {}, {}]


# Senders


def test_a_contact_with_the_same_phone_and_another_bsuid_is_not_the_sender() -> None:
    body = document("text_with_phone")
    value_of(body)["contacts"] = [
        {"profile": {"name": "The number's former owner"}, "wa_id": "12125550123", "user_id": "US.999"}
    ]

    [found] = messages(parse(body))

    assert found.sender == Identity(bsuid="US.8120001", phone="12125550123")


def test_a_contact_that_is_not_the_senders_lends_no_name() -> None:
    body = document("text_with_phone")
    value_of(body)["contacts"] = [{"profile": {"name": "Bo"}, "user_id": "DE.8120002"}]

    [found] = messages(parse(body))

    assert found.sender == Identity(bsuid="US.8120001", phone="12125550123")


def alone(message: dict[str, object], *contacts: dict[str, object]) -> Message:
    """The only message of a value with these contacts."""
    body = document("text_with_phone")
    text = {"id": "wamid.1", "timestamp": "1795341600", "type": "text", "text": {"body": "Hello"}}
    value_of(body).update(messages=[text | message], contacts=list(contacts))
    [found] = messages(parse(body))
    return found


ANA_ID, BO_ID, ANA_NUMBER = "US.8120001", "DE.8120002", "12125550123"
SENDERS: list[tuple[dict[str, object], list[dict[str, object]], Identity | None]] = [
    ({"from_user_id": ANA_ID, "user_id": BO_ID}, [], Identity(bsuid=ANA_ID)),
    ({"user_id": BO_ID, "from": ANA_NUMBER}, [], Identity(bsuid=BO_ID, phone=ANA_NUMBER)),
    ({"from": ANA_ID}, [], Identity(bsuid=ANA_ID)),
    ({"wa_id": BO_ID}, [], Identity(bsuid=BO_ID)),
    ({"from": ANA_ID, "wa_id": BO_ID}, [], Identity(bsuid=ANA_ID)),
    ({"from_user_id": BO_ID, "from": ANA_ID}, [], Identity(bsuid=BO_ID)),
    ({"from": "US.ENT.9120001"}, [], Identity(parent_bsuid="US.ENT.9120001")),
    ({"wa_id": ANA_NUMBER}, [], Identity(phone=ANA_NUMBER)),
    ({"from": "+1 212 555-0123"}, [], Identity(phone=ANA_NUMBER)),
    ({"from": ANA_ID}, [{"user_id": ANA_ID, "wa_id": ANA_NUMBER}], Identity(bsuid=ANA_ID, phone=ANA_NUMBER)),
    ({"from": ANA_NUMBER}, [{"wa_id": "+12125550123", "user_id": ANA_ID}], Identity(bsuid=ANA_ID, phone=ANA_NUMBER)),
    ({"from_user_id": ANA_ID}, [{"wa_id": ANA_ID, "profile": {"name": "Ana"}}], Identity(bsuid=ANA_ID, profile_name="Ana")),
    ({}, [{"user_id": ANA_ID, "profile": {"name": "Ana"}}], Identity(bsuid=ANA_ID, profile_name="Ana")),
    ({}, [{"wa_id": ANA_ID}], Identity(bsuid=ANA_ID)),
    ({}, [{"wa_id": ANA_NUMBER}], Identity(phone=ANA_NUMBER)),
    ({"from": "", "from_user_id": ""}, [{"wa_id": ANA_NUMBER}], Identity(phone=ANA_NUMBER)),
    ({"from": None}, [{"wa_id": ANA_NUMBER}], Identity(phone=ANA_NUMBER)),
    ({"from": BO_ID}, [{"user_id": ANA_ID, "wa_id": ANA_NUMBER}], Identity(bsuid=BO_ID)),
    ({}, [{"user_id": ANA_ID}, {"user_id": BO_ID}], None),
    ({}, [{"user_id": ANA_ID}, {"user_id": ANA_ID}], None),
    ({}, [{"profile": {"name": "Ana"}}], None),
    ({}, [], None),
    ({"from": "somebody"}, [{"user_id": ANA_ID}], None),
]  # fmt: skip


@pytest.mark.parametrize(("message", "contacts", "sender"), SENDERS, ids=repr)
def test_the_sender_is_read_from_every_place_in_one_order(
    message: dict[str, object], contacts: list[dict[str, object]], sender: Identity | None
) -> None:
    found = alone(message, *contacts)

    assert found.sender == sender
    assert found.kind is (Kind.MESSAGE if sender else Kind.UNREADABLE)


def test_the_only_contact_names_no_one_of_two_messages() -> None:
    body = document("text_with_phone")
    only = first_message(body)
    del only["from"], only["from_user_id"]
    value_of(body)["messages"] = [only, {**only, "id": "wamid.2"}]

    assert [found.sender for found in messages(parse(body))] == [None, None]


@given(
    st.fixed_dictionaries(
        {}, optional={name: st.sampled_from([ANA_ID, BO_ID, ANA_NUMBER, "+" + ANA_NUMBER, "x", "", None, 5])
                      for name in ("from_user_id", "user_id", "from", "wa_id")},
    )
)  # fmt: skip
def test_the_first_place_that_holds_a_bsuid_decides(message: dict[str, object]) -> None:
    found = alone(message)

    bsuids = [str(value) for name in ("from_user_id", "user_id") if (value := message.get(name))][:1]
    bsuids += [str(value) for name in ("from", "wa_id") if "." in str(value := message.get(name))]
    assert (found.sender.bsuid if found.sender else None) == (bsuids[0] if bsuids else None)


def test_a_phone_is_digits_or_nothing() -> None:
    assert altered(from_="+12125550123").sender == ANA
    assert altered("text_without_phone", from_="unknown").sender == BO
    assert altered("text_without_phone", from_="١٢٣٤٥٦٧٨").sender == BO
    assert altered("text_without_contacts", from_="unknown", from_user_id=None).kind is Kind.UNREADABLE


def test_an_id_is_never_cut() -> None:
    long_sender = altered("text_without_phone", from_user_id="DE." + "1" * 300)
    long_id = altered(id="wamid." + "1" * 600)

    assert (long_sender.kind, long_sender.sender) == (Kind.UNREADABLE, None)
    assert (long_id.kind, long_id.error) == (Kind.UNREADABLE, "it has no usable id")
    assert len(long_id.provider_message_id) < 100


def test_names_types_and_texts_are_cut() -> None:
    body = document("text_without_phone")
    value_of(body)["contacts"] = [
        {"profile": {"name": "n" * 999, "username": "@" + "u" * 999}, "user_id": "DE.8120002"}
    ]
    first_message(body)["text"] = {"body": "t" * 100_000}

    [found] = messages(parse(body))

    assert found.sender is not None
    assert found.sender.profile_name == "n" * meta.MAX_NAME
    assert found.sender.username == "u" * meta.MAX_NAME
    assert found.texts == ("t" * meta.MAX_TEXT,)
    assert altered(type="y" * 999).type == "y" * meta.MAX_TYPE


# Stamps


@pytest.mark.parametrize(
    "stamp",
    [None, "", "soon", "-1", "0", "1795341600000", "9" * 5000, "1e9", "2026-11-22T10:00:00Z", {}, True],
)
def test_an_impossible_stamp_gives_way_to_the_moment_of_receipt(stamp: object) -> None:
    found = altered(timestamp=stamp)

    assert found.kind is Kind.MESSAGE
    assert found.sent_at == NOON


def test_a_stamp_up_to_a_day_ahead_is_believed() -> None:
    almost, beyond = NOON + timedelta(days=1), NOON + timedelta(days=1, seconds=1)

    assert altered(timestamp=str(int(almost.timestamp()))).sent_at == almost
    assert altered(timestamp=str(int(beyond.timestamp()))).sent_at == NOON


def test_a_stamp_may_be_a_number() -> None:
    assert altered(timestamp=1795341600) == altered()


# One poisoned message among eight


LOUSY_CONTENT: list[object] = [5, "text", [], {}, {"body": 5}, {"body": None}, {"body": ["a"]}, {"body": ""}]


@pytest.mark.parametrize("poison", LOUSY_CONTENT, ids=repr)
def test_a_message_whose_text_cannot_be_read_leaves_its_neighbours_alone(poison: object) -> None:
    body = document("batch_of_eight_senders")
    healthy = messages(parse(body))
    poisoned = copy.deepcopy(body)
    value_of(poisoned)["messages"][3]["text"] = poison  # type: ignore[index]  # a recorded shape

    found = messages(parse(poisoned))

    assert found[:3] + found[4:] == healthy[:3] + healthy[4:]
    assert found[3].kind is (Kind.MESSAGE if poison == {"body": 5} else Kind.UNREADABLE)
    assert found[3].sender == healthy[3].sender


@pytest.mark.parametrize("poison", [None, 7, "hello", [], {}, True, 1.5], ids=repr)
def test_a_message_that_is_no_message_is_kept_under_a_stand_in_id(poison: object) -> None:
    body = document("batch_of_eight_senders")
    value_of(body)["messages"][3] = poison  # type: ignore[index]  # a recorded shape

    found, again = messages(parse(body)), messages(parse(body))

    assert len(found) == 8
    assert found[3].kind is Kind.UNREADABLE
    assert found[3].provider_message_id.startswith("sha256.")
    assert found[3].provider_message_id == again[3].provider_message_id


@pytest.mark.parametrize(
    "field",
    [
        "context", "referral", "image", "button", "interactive", "errors", "edit", "unsupported", "order",
    ],
)  # fmt: skip
@pytest.mark.parametrize("wrong", [5, "x", ["x", 5], {"type": 5, "id": []}], ids=repr)
def test_an_optional_field_of_a_wrong_type_does_not_cost_the_text(field: str, wrong: object) -> None:
    found = altered(**{field: wrong})  # type: ignore[arg-type]  # a field of the message, not `name`

    assert (found.kind, found.texts, found.sender) == (Kind.MESSAGE, (f"Hi! {TOKEN}",), ANA)


@pytest.mark.parametrize("group", ["1", 1, {}, [], False, ""], ids=repr)
def test_a_group_id_of_any_type_keeps_the_message_out(group: object) -> None:
    body = document("text_with_phone")
    first_message(body)["group_id"] = group

    [change] = parse(body).changes

    assert (change.messages, change.ignored) == ([], {Ignored.GROUP: 1})


@pytest.mark.parametrize("wrong", [None, 5, "x", {}, [5, None, "x"], [{"profile": 5, "wa_id": []}]], ids=repr)
def test_contacts_of_a_wrong_type_cost_only_the_names(wrong: object) -> None:
    body = document("text_with_phone")
    value_of(body)["contacts"] = wrong

    [found] = messages(parse(body))

    assert found.sender == Identity(bsuid="US.8120001", phone="12125550123")


@pytest.mark.parametrize("part", ["statuses", "errors", "user_actions"])
def test_other_parts_of_a_wrong_type_cost_no_message(part: str) -> None:
    body = document("text_with_phone")
    value_of(body)[part] = {"unexpected": True}

    assert messages(parse(body)) == messages(parse(RECORDED["text_with_phone"]))


def test_numbers_where_ids_are_expected_are_read_as_text() -> None:
    body = document("text_with_phone")
    body["entry"][0]["id"] = 900100200300  # type: ignore[index]  # a recorded shape
    value_of(body)["metadata"] = {"phone_number_id": 700800900100}
    first_message(body)["from"] = 12125550123

    assert messages(parse(body)) == messages(parse(RECORDED["text_with_phone"]))
    assert parse(body).changes[0].phone_number_id == "700800900100"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (rb"a\u0000b", "a\ufffdb"),
        (rb"a\ud83cb", "a\ufffdb"),
        (rb"a\udf31b", "a\ufffdb"),
        (rb"a\ud83c\udf31b", "a🌱b"),
        (rb"a\\u0000b", r"a\u0000b"),
        (b"a\xffb", "a\ufffdb"),
        (b"a\nb", "a\nb"),
        ("aßb".encode(), "aßb"),
    ],
    ids=repr,
)
def test_no_text_or_name_leaves_here_that_postgresql_would_refuse(written: bytes, read: str) -> None:
    body = RECORDED["text_with_phone"].replace(b"Hi! " + TOKEN.encode(), written)
    body = body.replace(b'"Ana"', b'"' + written + b'"')

    [found] = messages(parse(body))

    assert found.texts == (read,)
    assert found.sender == msgspec.structs.replace(ANA, profile_name=read)


def test_kept_json_is_cleaned_too() -> None:
    body = RECORDED["unsupported_131051_edit"].replace(b"Message type unknown", rb"\u0000\ud83c", 1)

    [found] = messages(parse(body))

    assert json.loads(found.raw)["errors"][0]["title"] == "\ufffd\ufffd"
    assert rb"\u0000" not in found.raw


def test_kept_json_has_a_limit() -> None:
    assert altered("unknown_type", poll_creation={"name": "x" * 100_000}).raw == b"{}"


# Whole bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"hello",
        b"[]",
        b"5",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b'{"a":1}x',
        b'{"a":' + b"[" * 9999,
        b"]" * 9999,
    ],
    ids=repr,
)
def test_what_is_no_json_object_is_unreadable(body: bytes) -> None:
    with pytest.raises(Unreadable):
        parse(body)


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"entry":null}',
        b'{"entry":[]}',
        b'{"entry":[{}]}',
        b'{"entry":5,"object":"page"}',
        b"\xef\xbb\xbf{}",
    ],
)
def test_an_object_that_says_nothing_is_no_error(body: bytes) -> None:
    assert messages(parse(body)) == []


DEPTHS = [63, 64, 100, 300, 450, 500, 900, 1000, 1100, 2000, 5000, 200_000]
DEEP_PLACES: dict[str, Callable[[str], tuple[bytes, bytes]]] = {
    "beside the entry": lambda deep: (b'"object":', b'"new":' + deep.encode() + b',"object":'),
    "in the entry": lambda deep: (b'"id": "900100200300"', b'"id": "900100200300", "new":' + deep.encode()),
    "in the change": lambda deep: (b'"field":', b'"new":' + deep.encode() + b',"field":'),
    "in the value": lambda deep: (b'"metadata":', b'"new":' + deep.encode() + b',"metadata":'),
    "in the contact": lambda deep: (b'"profile":', b'"new":' + deep.encode() + b',"profile":'),
    "in another message": lambda deep: (b'"messages": [', b'"messages": [{"id":"wamid.0","x":' + deep.encode() + b"},"),
    "in the message": lambda deep: (b'"timestamp":', b'"new":' + deep.encode() + b',"timestamp":'),
    "in its content": lambda deep: (b'"body":', b'"new":' + deep.encode() + b',"body":'),
    "and a lone surrogate": lambda deep: (b'"timestamp":', b'"new":["\\ud800",' + deep.encode() + b'],"timestamp":'),
    "and U+0000": lambda deep: (b'"timestamp":', b'"new":["\\u0000",' + deep.encode() + b'],"timestamp":'),
}  # fmt: skip


@pytest.mark.parametrize("place", DEEP_PLACES)
@pytest.mark.parametrize("kind", ["[]", "{}"])
def test_deep_nesting_anywhere_costs_no_message_its_text(place: str, kind: str) -> None:
    for depth in DEPTHS:
        deep = "[" * depth + "]" * depth if kind == "[]" else '{"a":' * depth + "1" + "}" * depth
        old, new = DEEP_PLACES[place](deep)
        body = RECORDED["text_with_phone"].replace(old, new, 1)

        found = messages(parse(body))[-1]

        assert (found.kind, found.texts, found.sender) == (Kind.MESSAGE, (f"Hi! {TOKEN}",), ANA), depth


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 500_000,
        b'{"a":' * 400_000,
        b'"' + b'\\"' * 1_000_000,
        b'{"' + b'\\"' * 1_000_000,
        b'"\\' * 700_000,
        b"[" * 3000 + b'"' + b'\\"' * 1_000_000,
    ],
    ids=lambda body: repr(body[:8]),
)
def test_a_body_that_never_ends_is_looked_at_once(body: bytes) -> None:
    started = time.process_time()

    with pytest.raises(Unreadable):
        parse(body)

    assert time.process_time() - started < 5


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        "object", "entry", "id", "changes", "field", "value", "metadata", "phone_number_id", "contacts",
        "profile", "name", "username", "wa_id", "user_id", "messages", "statuses", "errors", "code", "from",
        "from_user_id", "timestamp", "type", "text", "body", "image", "caption", "button", "interactive",
        "list_reply", "nfm_reply", "edit", "message", "context", "forwarded", "group_id", "unsupported",
    ]
)  # fmt: skip
META_LIKE = st.recursive(
    JSON | st.sampled_from(["messages", "text", "edit", "system", "unsupported", "1795341600"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=30,
)


@given(st.dictionaries(KEYS | st.text(max_size=5), META_LIKE, max_size=5))
def test_no_json_object_makes_parse_fail(body: dict[str, object]) -> None:
    assert isinstance(parse(body), Parsed)


def places(node: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every path into a JSON document, the root's own excepted."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, item in items for place in [(*path, key), *places(item, (*path, key))]]


@given(st.data())
@settings(max_examples=300)
def test_a_recorded_body_with_one_part_exchanged_still_parses(data: st.DataObject) -> None:
    body = document(data.draw(st.sampled_from(sorted(RECORDED)), label="recorded"))
    *path, last = data.draw(st.sampled_from(places(body)), label="place")
    node: object = body
    for step in path:
        node = node[step]  # type: ignore[index]  # a path that places() found
    node[last] = data.draw(META_LIKE, label="put there")  # type: ignore[index]  # as above

    for found in messages(parse(body)):
        assert found.error is None or found.kind is Kind.UNREADABLE
        assert found.sender is None or found.sender.known
        assert (found.sender is not None) or found.kind is not Kind.MESSAGE
        assert 0 < len(found.provider_message_id) <= meta.MAX_MESSAGE_ID
        stored = "".join([found.provider_message_id, found.type, *found.texts])
        assert "\x00" not in stored
        stored.encode()
        found.raw.decode()


@given(st.data())
def test_a_poisoned_message_leaves_seven(data: st.DataObject) -> None:
    body = document("batch_of_eight_senders")
    healthy = messages(parse(body))
    which = data.draw(st.integers(0, 7), label="which")
    value_of(body)["messages"][which] = data.draw(META_LIKE, label="poison")  # type: ignore[index]  # recorded

    found = messages(parse(body))

    survivors = [message for message in found if message in healthy]
    assert survivors == healthy[:which] + healthy[which + 1 :]


# Signature


def signature(body: bytes, secret: bytes = SECRET) -> bytes:
    return b"sha256=" + hmac.new(secret, body, "sha256").hexdigest().encode()


def test_the_signature_of_rfc_4231() -> None:
    vector = b"sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"

    assert meta.signer(b"what do ya want for nothing?", [vector], [b"Jefe"]) == 0


@pytest.mark.parametrize("body", [*list(RECORDED.values())[:5], b"", b"\x1f\x8b compressed \x00", b"{}\n"])
def test_the_secret_that_signed_is_named(body: bytes) -> None:
    assert meta.signer(body, [signature(body)], [b"another", SECRET, b"a third"]) == 1


def test_upper_case_hex_is_the_same_signature() -> None:
    prefix, digits = signature(b"{}").split(b"=")

    assert meta.signer(b"{}", [prefix + b"=" + digits.upper()], [SECRET]) == 0


def test_only_the_received_bytes_count() -> None:
    body = RECORDED["text_in_many_scripts"]
    dumped_again = json.dumps(json.loads(body)).encode()

    assert meta.signer(dumped_again, [signature(body)], [SECRET]) is None
    assert meta.signer(body + b"\n", [signature(body)], [SECRET]) is None


GOOD = signature(b"{}")


@pytest.mark.parametrize(
    "headers",
    [
        [], [b""], [GOOD, GOOD], [GOOD, b"x"], [GOOD[7:]], [b"SHA256=" + GOOD[7:]], [b"sha1=" + GOOD[7:]],
        [GOOD[:-1]], [GOOD[:-2]], [GOOD + b"00"], [GOOD + b" "], [b" " + GOOD], [b"sha256="], [b"sha256=\xff\xfe"],
        ["sha256=ä".encode()], [b"sha256=" + b"z" * 64], [signature(b"{}", b"another channel's secret")],
    ],
    ids=repr,
)  # fmt: skip
def test_any_other_header_is_no_signature(headers: list[bytes]) -> None:
    assert meta.signer(b"{}", headers, [SECRET]) is None


def test_an_empty_secret_signs_nothing() -> None:
    assert meta.signer(b"{}", [signature(b"{}", b"")], [b""]) is None
    assert meta.signer(b"{}", [GOOD], []) is None


@given(
    st.binary(),
    st.lists(st.binary() | st.binary().map(lambda tail: b"sha256=" + tail)),
    st.lists(st.binary()),
)
def test_no_header_makes_signer_fail(body: bytes, headers: list[bytes], secrets: list[bytes]) -> None:
    assert meta.signer(body, headers, secrets) is None


# Hints


def test_a_body_names_its_numbers_once_each_in_its_order() -> None:
    assert meta.phone_number_ids(RECORDED["batch_of_entries_and_changes"]) == [
        "700800900100",
        "700800900101",
        "700800900102",
    ]
    assert meta.phone_number_ids(RECORDED["account_update"]) == []
    assert meta.phone_number_ids(b"\xff not JSON") == []


def test_a_text_cannot_name_a_number() -> None:
    body = document("text_with_phone")
    first_message(body)["text"] = {"body": '{"phone_number_id":"666"}'}

    assert meta.phone_number_ids(json.dumps(body).encode()) == ["700800900100"]


def test_an_unverified_body_names_a_few_numbers_only() -> None:
    body = b",".join(b'"phone_number_id":"%d"' % number for number in range(1000))

    assert meta.phone_number_ids(body) == [str(number) for number in range(meta.MAX_HINTS)]


# Handshake


HANDSHAKE = {"hub.mode": "subscribe", "hub.verify_token": "täg", "hub.challenge": "1158201444"}


def test_the_challenge_is_returned_for_any_known_verify_token() -> None:
    assert meta.handshake(HANDSHAKE, ["other", "täg"]) == "1158201444"


@pytest.mark.parametrize(
    "wrong",
    [
        {"hub.mode": "unsubscribe"}, {"hub.mode": ""}, {"hub.verify_token": "tag"}, {"hub.verify_token": ""},
        {"hub.verify_token": "\ud800"}, {"hub.challenge": ""},
    ],
    ids=repr,
)  # fmt: skip
def test_any_other_handshake_is_refused(wrong: dict[str, str]) -> None:
    assert meta.handshake({**HANDSHAKE, **wrong}, ["täg", ""]) is None


@pytest.mark.parametrize("missing", HANDSHAKE)
def test_a_handshake_needs_all_three_parameters(missing: str) -> None:
    query = {key: value for key, value in HANDSHAKE.items() if key != missing}

    assert meta.handshake(query, ["täg", ""]) is None


def test_meta_is_in_the_table() -> None:
    assert PROVIDERS["meta"].parse(b"{}", NOON) == Parsed([])
