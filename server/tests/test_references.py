"""Customer references: two that look alike are one customer, or are rejected."""

import re
import sys
import unicodedata

from world import ANA, INTENTS, App, Tenant

from wabery_server.api.intent_types import REFERENCE
from wabery_server.api.registration_intents import _is_reference

BIDI_CONTROLS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
DEFAULT_IGNORABLE = [
    0xAD, 0x34F, 0x61C, *range(0x115F, 0x1161), *range(0x17B4, 0x17B6), *range(0x180B, 0x1810), *range(0x200B, 0x2010),
    *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0x3164, *range(0xFE00, 0xFE10), 0xFEFF, 0xFFA0,
    *range(0xFFF0, 0xFFF9), *range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B), *range(0xE0000, 0xE1000),
]  # fmt: skip
"""Unicode 15, DerivedCoreProperties.txt: Default_Ignorable_Code_Point."""


def test_no_invisible_character_and_no_outer_white_space_is_accepted() -> None:
    hidden = {chr(code) for code in DEFAULT_IGNORABLE} | set(BIDI_CONTROLS)
    hidden |= {chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cc"}
    white = {chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()}

    accepted = [one for one in hidden for text in (one, f"a{one}b") if _is_reference(text)]
    at_an_end = [one for one in white for text in (f"{one}a", f"a{one}", one) if _is_reference(text)]

    assert accepted == []
    assert at_an_end == []


def test_the_contracts_pattern_accepts_what_the_server_accepts() -> None:
    matches = re.compile(REFERENCE).search
    basic = [chr(code) for code in range(0x10000) if not 0xD800 <= code <= 0xDFFF]

    differing = [
        text
        for one in basic
        for text in (f"a{one}b", f"{one}b", f"a{one}")
        if (matches(text) is not None) != _is_reference(text)
    ]

    assert differing == []


async def test_bulk_items_are_held_to_the_same_rule(app: App, acme: Tenant) -> None:
    items = [{"customer_reference": one} for one in ("user_1", "user_1 ", "user\u200b_1", "\u202euser_1")]

    reply = await app.call("POST", f"{INTENTS}/bulk", acme.secret_key, json={"items": items})

    assert [one.get("error") for one in reply.body["data"]] == [None] + ["invalid_customer_reference"] * 3
    assert "white space" in reply.body["data"][1]["message"]


async def test_a_reference_that_was_stored_before_the_rule_still_works(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    old = " user\u200b_1 "
    await app.service.database.run(
        lambda tx: tx.run("update registration_intents set customer_reference = $1", old)
    )

    found = await app.call("GET", f"{INTENTS}?customer_reference=%20user%E2%80%8B_1%20", acme.secret_key)

    assert [one["id"] for one in found.body["data"]] == [intent["id"]]
    assert await app.say(acme, intent["token"], ANA) == {"joined": 1}
    assert (await app.get(acme.secret_key, intent["id"]))["customer_reference"] == old
