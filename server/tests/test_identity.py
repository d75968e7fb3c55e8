"""Who a sender is: the strongest identifier decides, a phone number is never needed, and nothing is inherited by chance."""

import itertools
from contextlib import AsyncExitStack
from typing import Any

import meta_bodies
import pytest
from msgspec.structs import replace
from world import ANA, BEN, INTENTS, App, Tenant, serving

from wabery_server.accounts import Channel
from wabery_server.accounts.channel import MOST_SCOPES
from wabery_server.clock import MovableClock
from wabery_server.contacts import Identity, duplicates
from wabery_server.db import Database, Source, Tx
from wabery_server.db.signals import Signals
from wabery_server.secrets import Keyring
from wabery_server.settings import Settings

BSUID, OTHER_BSUID = "US.8120001", "US.8129999"
PARENT, OTHER_PARENT = "US.ENT.9120001", "US.ENT.9129999"
PHONE, OTHER_PHONE = "12125550123", "12125550199"


_numbers = itertools.count()


async def heard(app: App, of: Tenant, sender: Identity) -> dict[str, Any]:
    """The person writes something ordinary; what the app is told of them."""
    text = f"Hello number {next(_numbers)}"  # no random id, which may look like a token
    assert await app.say(of, text, sender) == {"passed_on": 1}
    events = await app.events(of.project.id, "message.received")
    (payload,) = [event["payload"] for event in events if event["payload"]["text"] == text]
    found: dict[str, Any] = payload
    return found


async def linked(app: App, of: Tenant, reference: str, sender: Identity) -> str:
    """The person joins; their contact id."""
    intent = await app.mint(of.secret_key, reference, channel_id=of.channel.id)
    assert await app.say(of, intent["token"], sender) == {"joined": 1}
    joined = await app.get(of.secret_key, intent["id"])
    contact_id: str = joined["contact_id"]
    return contact_id


async def second_number(app: App, of: Tenant, **more: str) -> Tenant:
    """Another WhatsApp number of the same project, as somebody to write to."""
    draft = {
        "name": "Second", "phone_number_id": "106540352242922", "display_phone_number": "+49 151 2345678",
        "waba_id": "102290129340398", "app_secret": "b" * 32, **more,
    }  # fmt: skip
    reply = await app.call("POST", "/v1/channels", of.secret_key, json=draft)
    assert reply.status == 200, reply.body
    names = Channel.__struct_fields__
    shown = {name: value for name, value in reply.body.items() if name in names and name != "created_at"}
    app.service.directory.forget()
    channel = replace(of.channel, **{**shown, "created_at": of.channel.created_at})
    return Tenant(of.project, channel, draft["app_secret"], of.secret_key, of.publishable_key, of.key_id)


async def everything(app: App, table: str) -> list[dict[str, Any]]:
    rows = await app.service.database.run(lambda tx: tx.rows(f"select * from {table}"))
    return [dict(row) for row in rows]


# The order of matching


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (Identity(bsuid=BSUID), Identity(bsuid=BSUID)),
        (Identity(bsuid=BSUID, phone=PHONE), Identity(bsuid=BSUID)),
        (Identity(bsuid=BSUID), Identity(bsuid=BSUID, phone=PHONE)),
        (Identity(bsuid=BSUID, phone=PHONE), Identity(bsuid=BSUID, phone=OTHER_PHONE)),
        (Identity(bsuid=BSUID, parent_bsuid=PARENT), Identity(bsuid=BSUID, parent_bsuid=OTHER_PARENT)),
        (Identity(parent_bsuid=PARENT), Identity(parent_bsuid=PARENT, bsuid=BSUID)),
        (Identity(parent_bsuid=PARENT, phone=PHONE), Identity(parent_bsuid=PARENT, phone=OTHER_PHONE)),
        (Identity(phone=PHONE), Identity(phone=PHONE)),
        (Identity(phone=PHONE), Identity(phone=PHONE, bsuid=BSUID)),
        (Identity(phone=PHONE, bsuid=BSUID), Identity(phone=PHONE)),
        (Identity(phone=PHONE, username="ana"), Identity(phone=PHONE, username="anna", profile_name="Anna")),
    ],
)
async def test_this_is_the_same_person(app: App, acme: Tenant, first: Identity, again: Identity) -> None:
    contact_id = await linked(app, acme, "user_123", first)

    payload = await heard(app, acme, again)

    assert payload["contact_id"] == contact_id
    assert payload["customer_reference"] == "user_123"


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (Identity(bsuid=BSUID), Identity(bsuid=OTHER_BSUID)),
        (Identity(bsuid=BSUID), Identity(bsuid=BSUID.lower())),
        (Identity(bsuid=BSUID), Identity(parent_bsuid=BSUID)),
        (
            Identity(bsuid=BSUID, username="ana", profile_name="Ana"),
            Identity(bsuid=OTHER_BSUID, username="ana"),
        ),
        (Identity(bsuid=BSUID, phone=PHONE), Identity(bsuid=OTHER_BSUID, phone=PHONE)),
        (Identity(phone=PHONE), Identity(phone=OTHER_PHONE)),
        (Identity(phone=PHONE), Identity(phone=PHONE + "0")),
    ],
)
async def test_this_is_another_person(app: App, acme: Tenant, first: Identity, other: Identity) -> None:
    contact_id = await linked(app, acme, "user_123", first)

    payload = await heard(app, acme, other)

    assert payload["contact_id"] != contact_id
    assert payload["customer_reference"] is None


async def test_the_user_id_wins_over_the_phone_number(app: App, acme: Tenant) -> None:
    ana = await linked(app, acme, "ana", Identity(bsuid=BSUID, phone=PHONE))
    ben = await linked(app, acme, "ben", Identity(bsuid=OTHER_BSUID, phone=OTHER_PHONE))

    payload = await heard(app, acme, Identity(bsuid=BSUID, phone=OTHER_PHONE))

    assert payload["contact_id"] == ana != ben
    assert payload["customer_reference"] == "ana"


async def test_the_parent_user_id_wins_over_the_phone_number(app: App, acme: Tenant) -> None:
    await linked(app, acme, "ana", Identity(parent_bsuid=PARENT))
    await linked(app, acme, "ben", Identity(phone=PHONE))

    payload = await heard(app, acme, Identity(parent_bsuid=PARENT, phone=PHONE))

    assert payload["customer_reference"] == "ana"


async def test_the_user_id_wins_over_the_parent_user_id(app: App, acme: Tenant) -> None:
    await linked(app, acme, "ana", Identity(bsuid=BSUID))
    await linked(app, acme, "ben", Identity(parent_bsuid=PARENT))

    payload = await heard(app, acme, Identity(bsuid=BSUID, parent_bsuid=PARENT))

    assert payload["customer_reference"] == "ana"


# A phone number that moves


async def test_the_new_owner_of_a_phone_number_inherits_nothing(app: App, acme: Tenant) -> None:
    await linked(app, acme, "ana", Identity(bsuid=BSUID, phone=PHONE))

    owner = await heard(app, acme, Identity(bsuid=OTHER_BSUID, phone=PHONE))
    phone_alone = await heard(app, acme, Identity(phone=PHONE))
    before = await heard(app, acme, Identity(bsuid=BSUID))

    assert owner["customer_reference"] is None
    assert phone_alone["contact_id"] == owner["contact_id"]
    assert before["customer_reference"] == "ana"
    assert before["from"] is None
    assert owner["from"] == f"+{PHONE}"


async def test_the_new_owner_of_a_phone_number_may_join_as_somebody_else(app: App, acme: Tenant) -> None:
    ana = await linked(app, acme, "ana", Identity(bsuid=BSUID, phone=PHONE))

    cleo = await linked(app, acme, "cleo", Identity(bsuid=OTHER_BSUID, phone=PHONE))

    assert cleo != ana
    assert (await heard(app, acme, Identity(bsuid=BSUID)))["customer_reference"] == "ana"


async def test_the_new_owner_of_a_phone_number_cannot_use_an_old_token_again(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key, "ana")
    await app.say(acme, intent["token"], Identity(bsuid=BSUID, phone=PHONE))

    counts = await app.say(acme, intent["token"], Identity(bsuid=OTHER_BSUID, phone=PHONE))

    assert counts == {"already_used_other_sender": 1}
    assert len(await app.events(acme.project.id, "security.token_reuse")) == 1


async def test_a_person_with_a_new_number_shows_the_new_one(app: App, acme: Tenant) -> None:
    await linked(app, acme, "ana", Identity(bsuid=BSUID, phone=PHONE))

    with_new_number = await heard(app, acme, Identity(bsuid=BSUID, phone=OTHER_PHONE))
    without = await heard(app, acme, Identity(bsuid=BSUID))

    assert with_new_number["from"] == without["from"] == f"+{OTHER_PHONE}"


async def test_where_an_identifier_was_is_kept(app: App, acme: Tenant) -> None:
    await heard(app, acme, Identity(bsuid=BSUID, phone=PHONE))
    await heard(app, acme, Identity(bsuid=OTHER_BSUID, phone=PHONE))

    rows = await everything(app, "identifiers")

    phones = [row for row in rows if row["kind"] == "phone"]
    assert len(phones) == 2
    assert sorted(row["superseded_at"] is None for row in phones) == [False, True]


# Scopes


async def test_the_same_user_id_of_another_business_account_is_another_person(app: App, acme: Tenant) -> None:
    second = await second_number(app, acme)
    await linked(app, acme, "ana", Identity(bsuid=BSUID))

    payload = await heard(app, second, Identity(bsuid=BSUID))

    assert payload["customer_reference"] is None


async def test_a_phone_number_is_the_same_in_every_business_account(app: App, acme: Tenant) -> None:
    second = await second_number(app, acme)
    ana = await linked(app, acme, "ana", Identity(bsuid=BSUID, phone=PHONE))

    by_phone = await heard(app, second, Identity(bsuid=OTHER_BSUID, phone=PHONE))
    by_user_id = await heard(app, second, Identity(bsuid=OTHER_BSUID))
    at_home = await heard(app, acme, Identity(bsuid=BSUID))

    assert by_phone["contact_id"] == by_user_id["contact_id"] == at_home["contact_id"] == ana


async def test_numbers_of_one_portfolio_share_their_user_ids(app: App, acme: Tenant) -> None:
    portfolio = {"portfolio_id": "4711"}
    reply = await app.call("PATCH", f"/v1/channels/{acme.channel.id}", acme.secret_key, json=portfolio)
    assert reply.status == 200
    second = await second_number(app, acme, **portfolio)

    first = await heard(app, acme, Identity(bsuid=BSUID))
    again = await heard(app, second, Identity(bsuid=BSUID))

    assert first["contact_id"] == again["contact_id"]


async def test_each_number_has_its_own_conversation_with_a_person(app: App, acme: Tenant) -> None:
    second = await second_number(app, acme, waba_id=acme.channel.waba_id)

    here, there, here_again = [await heard(app, to, ANA) for to in (acme, second, acme)]

    assert here["contact_id"] == there["contact_id"]
    assert here["conversation_id"] == here_again["conversation_id"] != there["conversation_id"]
    assert there["channel_id"] == second.channel.id


async def test_a_person_is_another_contact_in_another_project(app: App, acme: Tenant, globex: Tenant) -> None:
    at_acme = await linked(app, acme, "ana", ANA)

    payload = await heard(app, globex, ANA)

    assert payload["contact_id"] != at_acme
    assert payload["customer_reference"] is None


# Scopes that change


async def portfolio(app: App, of: Tenant, value: str | None) -> None:
    reply = await app.call(
        "PATCH", f"/v1/channels/{of.channel.id}", of.secret_key, json={"portfolio_id": value}
    )
    assert reply.status == 200, reply.body


@pytest.mark.parametrize("portfolios", [["999222"], ["999222", "999333"], ["1", "2", "1"], ["999222", None]])
@pytest.mark.parametrize("first", [Identity(bsuid=BSUID), Identity(parent_bsuid=PARENT)])
async def test_a_person_stays_the_same_when_the_portfolio_changes(
    app: App, acme: Tenant, first: Identity, portfolios: list[str | None]
) -> None:
    contact_id = await linked(app, acme, "user_123", first)
    later = Identity(bsuid=OTHER_BSUID)

    for value in portfolios:
        await portfolio(app, acme, value)
        payload = await heard(app, acme, first)
        assert (payload["contact_id"], payload["customer_reference"]) == (contact_id, "user_123")
        met_here = (await heard(app, acme, later))["contact_id"]
        assert met_here == (await heard(app, acme, later))["contact_id"] != contact_id

    second = await app.mint(acme.secret_key, "somebody_else")
    assert await app.say(acme, second["token"], first) == {"rejected": 1}
    assert len(await everything(app, "contacts")) == 2


async def test_a_person_stays_the_same_when_the_portfolio_changed_before_they_ever_wrote_again(
    app: App, acme: Tenant
) -> None:
    contact_id = await linked(app, acme, "user_123", Identity(bsuid=BSUID))

    for value in ("1", "2", "3", None, "4"):
        await portfolio(app, acme, value)

    assert (await heard(app, acme, Identity(bsuid=BSUID)))["contact_id"] == contact_id
    scopes = {row["scope"] for row in await everything(app, "identifiers")}
    assert scopes == {acme.channel.waba_id, "4"}


async def test_a_person_stays_the_same_when_the_channel_is_made_again(app: App, acme: Tenant) -> None:
    before = await second_number(app, acme, portfolio_id="1")
    await portfolio(app, before, "2")
    contact_id = await linked(app, before, "user_123", Identity(bsuid=BSUID))
    await portfolio(app, before, None)
    reply = await app.call("DELETE", f"/v1/channels/{before.channel.id}", acme.secret_key)
    assert reply.status == 200

    after = await second_number(app, acme)

    assert after.channel.id != before.channel.id
    assert (await heard(app, after, Identity(bsuid=BSUID)))["contact_id"] == contact_id


async def test_numbers_of_one_business_account_share_their_people_whatever_their_portfolios_say(
    app: App, acme: Tenant
) -> None:
    second = await second_number(app, acme, waba_id=acme.channel.waba_id, portfolio_id="1")
    ana = await linked(app, acme, "ana", Identity(bsuid=BSUID))
    ben = await linked(app, second, "ben", Identity(bsuid=OTHER_BSUID))
    await portfolio(app, acme, "2")

    found = [
        (await heard(app, to, Identity(bsuid=bsuid)))["contact_id"]
        for to in (acme, second)
        for bsuid in (BSUID, OTHER_BSUID)
    ]

    assert found == [ana, ben, ana, ben]


async def test_business_accounts_that_turn_out_to_be_of_one_portfolio_share_their_people(
    app: App, acme: Tenant
) -> None:
    second = await second_number(app, acme)
    ana = await linked(app, acme, "ana", Identity(bsuid=BSUID))

    await portfolio(app, acme, "1")
    await portfolio(app, second, "1")

    assert (await heard(app, second, Identity(bsuid=BSUID)))["contact_id"] == ana


async def test_the_scopes_of_a_project_are_its_own(app: App, acme: Tenant, globex: Tenant) -> None:
    for of in (acme, globex):
        await portfolio(app, of, "1")
    here = await linked(app, acme, "ana", Identity(bsuid=BSUID))

    there = await heard(app, globex, Identity(bsuid=BSUID))

    assert there["contact_id"] != here
    families = {row["project_id"]: row["family"] for row in await everything(app, "identity_scopes")}
    assert set(families[acme.project.id]) == {acme.channel.waba_id, "1"}


async def test_a_channel_cannot_use_more_and_more_portfolios(app: App, acme: Tenant) -> None:
    for number in range(MOST_SCOPES - 1):
        await portfolio(app, acme, str(number + 1))

    path = f"/v1/channels/{acme.channel.id}"
    one_more = await app.call("PATCH", path, acme.secret_key, json={"portfolio_id": "999"})
    again = await app.call("PATCH", path, acme.secret_key, json={"portfolio_id": "1"})

    assert (one_more.status, one_more.body["param"]) == (400, "portfolio_id")
    assert again.status == 200


# Two contacts that turn out to be one


async def two_contacts(app: App, acme: Tenant, *, linking: tuple[bool, bool]) -> tuple[Tenant, list[str]]:
    """Known by the same user id in two business accounts; afterwards both belong to one portfolio."""
    second = await second_number(app, acme)
    found = []
    for to, name, joins in zip((acme, second), ("one", "two"), linking, strict=True):
        who = Identity(bsuid=BSUID)
        found.append(await linked(app, to, name, who) if joins else (await heard(app, to, who))["contact_id"])
    assert found[0] != found[1]
    await portfolio(app, acme, "1")
    await portfolio(app, second, "1")
    return second, found


@pytest.mark.parametrize(("linking", "stays"), [((True, False), 0), ((False, True), 1), ((False, False), 0)])
async def test_two_contacts_that_turn_out_to_be_one_become_one(
    app: App, acme: Tenant, linking: tuple[bool, bool], stays: int
) -> None:
    second, both = await two_contacts(app, acme, linking=linking)

    told = [await heard(app, to, Identity(bsuid=BSUID)) for to in (acme, second, acme)]

    assert {payload["contact_id"] for payload in told} == {both[stays]}
    assert {payload["customer_reference"] for payload in told} == {
        ("one", "two")[linking.index(True)] if any(linking) else None
    }
    contacts = {row["id"]: row["merged_into"] for row in await everything(app, "contacts")}
    assert contacts == {both[stays]: None, both[1 - stays]: both[stays]}
    current = [row for row in await everything(app, "identifiers") if row["superseded_at"] is None]
    assert {row["contact_id"] for row in current} == {both[stays]}
    conversations = {row["contact_id"] for row in await everything(app, "conversations")}
    assert conversations == {both[stays]}


async def test_two_linked_contacts_that_turn_out_to_be_one_stay_as_they_are_until_one_is_free(
    app: App, acme: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    second, both = await two_contacts(app, acme, linking=(True, True))
    links = await everything(app, "links")

    told = [await heard(app, to, Identity(bsuid=BSUID)) for to in (acme, second, acme)]

    assert {payload["contact_id"] for payload in told} <= set(both)
    assert await everything(app, "links") == links
    assert caplog.text.count("contacts_not_merged") == 1
    pairs = await app.service.database.run(lambda tx: duplicates(tx, acme.project.id, 10))
    assert [set(pair) for pair in pairs] == [set(both)]

    async def free_one(tx: Tx) -> None:
        await tx.run(
            "update links set ended_at = created_at, end_reason = 'disowned' where contact_id = $1", both[1]
        )

    await app.service.database.run(free_one)
    payload = await heard(app, acme, Identity(bsuid=BSUID))

    assert (payload["contact_id"], payload["customer_reference"]) == (both[0], "one")
    assert await app.service.database.run(lambda tx: duplicates(tx, acme.project.id, 10)) == []


async def test_the_token_of_a_merged_contact_is_still_that_persons(app: App, acme: Tenant) -> None:
    second = await second_number(app, acme)
    intent = await app.mint(acme.secret_key, "one", channel_id=second.channel.id)
    assert await app.say(second, intent["token"], Identity(bsuid=BSUID)) == {"joined": 1}
    await linked(app, acme, "one", BEN)  # takes the reference over
    ana = await linked(app, acme, "two", Identity(bsuid=BSUID))
    await portfolio(app, acme, "1")
    await portfolio(app, second, "1")

    counts = await app.say(second, intent["token"], Identity(bsuid=BSUID, username="ana"))

    assert counts == {"already_used_same_sender": 1}
    shown = await app.get(acme.secret_key, intent["id"])
    assert shown["contact_id"] != ana
    assert shown["identity"]["display"] == "@a•••"


async def test_a_server_that_does_not_know_the_new_scopes_yet_meets_the_same_person(
    app: App, acme: Tenant, source: Source, settings: Settings, keyring: Keyring, clock: MovableClock
) -> None:
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(source))
        signals = await stack.enter_async_context(Signals(source))
        other = await stack.enter_async_context(serving(settings, database, keyring, clock, signals))
        second = await second_number(app, acme)
        other.service.directory.forget = lambda: None  # type: ignore[method-assign]  # it misses the signal
        for to in (acme, second):
            await other.service.directory.number("meta", to.channel.phone_number_id)
        old_person = await linked(app, acme, "old", Identity(bsuid=OTHER_BSUID))
        for to in (acme, second):
            await portfolio(app, to, "1")

        fresh = [(await heard(at, acme, Identity(bsuid=BSUID)))["contact_id"] for at in (app, other, app)]
        intent = await app.mint(acme.secret_key, "new", channel_id=second.channel.id)
        counts = await other.say(second, intent["token"], Identity(bsuid=OTHER_BSUID))

    assert len(set(fresh)) == 1
    assert counts == {"rejected": 1}
    assert {row["id"] for row in await everything(app, "contacts")} == {old_person, *fresh}


# Names


async def test_names_follow_the_newest_message_and_stay_when_one_has_none(app: App, acme: Tenant) -> None:
    first = await heard(app, acme, Identity(bsuid=BSUID, username="ana.k", profile_name="Ana"))
    renamed = await heard(app, acme, Identity(bsuid=BSUID, username="anna", profile_name="Anna 🌱"))
    silent = await heard(app, acme, Identity(bsuid=BSUID))

    assert first["whatsapp"]["username"] == "ana.k"
    assert renamed["whatsapp"] == silent["whatsapp"]
    assert silent["whatsapp"] == {
        "user_id": BSUID,
        "parent_user_id": None,
        "wa_id": None,
        "username": "anna",
        "profile_name": "Anna 🌱",
        "country": "US",
    }


async def test_a_username_that_somebody_else_takes_brings_nothing_along(app: App, acme: Tenant) -> None:
    await linked(app, acme, "ana", Identity(bsuid=BSUID, username="first"))
    await heard(app, acme, Identity(bsuid=BSUID, username="second"))

    payload = await heard(app, acme, Identity(bsuid=OTHER_BSUID, username="first"))

    assert payload["customer_reference"] is None


async def test_a_sender_is_matched_to_the_contact_with_their_id(app: App, acme: Tenant) -> None:
    now = app.service.clock.now()
    body = meta_bodies.envelope(
        meta_bodies.change(
            acme.channel,
            meta_bodies.text(replace(ANA, profile_name=None), now, "I am Ana"),
            meta_bodies.text(replace(BEN, profile_name=None), now, "I am Ben"),
            contacts=[meta_bodies.contact(BEN), meta_bodies.contact(ANA)],
        )
    )

    await app.deliver(acme, body)

    events = await app.events(acme.project.id, "message.received")
    told = {event["payload"]["text"]: event["payload"]["whatsapp"] for event in events}
    assert told["I am Ana"]["profile_name"] == "Ana"
    assert told["I am Ben"]["profile_name"] == "Ben"
    assert told["I am Ben"]["wa_id"] is None


# Without a phone number


async def test_without_a_phone_number_everything_works(app: App, acme: Tenant) -> None:
    nameless = Identity(bsuid="JP.8120003")
    first = await app.mint(acme.publishable_key, "user_123")
    second = await app.mint(acme.secret_key, "user_123")
    third = await app.mint(acme.secret_key, "user_456")

    outcomes = [
        await app.say(acme, first["token"], nameless),
        await app.say(acme, first["token"], nameless),
        await app.say(acme, first["token"], BEN),
        await app.say(acme, second["token"], BEN),
        await app.say(acme, third["token"], BEN),
        await app.say(acme, "Hello", nameless),
    ]

    assert outcomes == [
        {"joined": 1},
        {"already_used_same_sender": 1},
        {"already_used_other_sender": 1},
        {"joined": 1},
        {"rejected": 1},
        {"passed_on": 1},
    ]
    events = await app.events(acme.project.id)
    assert sorted(event["event"] for event in events) == [
        "message.received",
        "participant.joined",
        "participant.joined",
        "participant.unlinked",
        "registration_intent.rejected",
        "security.token_reuse",
    ]
    assert all(event["payload"]["from"] is None for event in events)
    listed = await app.call("GET", INTENTS, acme.secret_key)
    assert [one["identity"]["display"] for one in listed.body["data"]] == ["@b•••", "@b•••", "•••"]


async def test_a_message_that_names_nobody_is_kept_and_joins_nobody(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    body = meta_bodies.envelope(
        meta_bodies.change(acme.channel, meta_bodies.text(None, app.service.clock.now(), intent["token"]))
    )

    counts = await app.deliver(acme, body)

    (row,) = await everything(app, "messages")
    assert counts == {"stored": 1}
    assert row["kind"] == "unreadable"
    assert row["error"] == "it names no sender"
    assert intent["token"] not in str(row)
    assert (await app.get(acme.secret_key, intent["id"]))["status"] == "PENDING"
    assert await everything(app, "contacts") == []


# Two messages of one person, met under different identifiers


async def test_one_person_under_two_identifiers_in_one_body_is_one_contact(app: App, acme: Tenant) -> None:
    ana = await linked(app, acme, "ana", Identity(bsuid=BSUID, phone=PHONE))
    second = await second_number(app, acme)
    now = app.service.clock.now()
    body = meta_bodies.envelope(
        meta_bodies.change(
            acme.channel,
            meta_bodies.text(Identity(bsuid=BSUID), now, "by user id"),
            meta_bodies.text(Identity(phone=PHONE), now, "by phone"),
        )
    )

    counts = await app.deliver(acme, body)
    by_phone = await heard(app, second, Identity(phone=PHONE))

    events = await app.events(acme.project.id, "message.received")
    assert counts == {"passed_on": 2}
    assert {event["payload"]["contact_id"] for event in events} == {ana}
    assert by_phone["contact_id"] == ana


async def test_one_person_under_two_identifiers_in_one_body_joins_once(app: App, acme: Tenant) -> None:
    await heard(app, acme, Identity(bsuid=BSUID, phone=PHONE))
    first, second = [await app.mint(acme.secret_key, reference) for reference in ("one", "two")]
    now = app.service.clock.now()
    body = meta_bodies.envelope(
        meta_bodies.change(
            acme.channel,
            meta_bodies.text(Identity(bsuid=BSUID), now, first["token"]),
            meta_bodies.text(Identity(phone=PHONE), now, second["token"]),
        )
    )

    counts = await app.deliver(acme, body)

    refused = await app.events(acme.project.id, "registration_intent.rejected")
    assert counts == {"joined": 1, "rejected": 1}
    assert refused[0]["payload"]["registration_intent"]["rejection_reason"] == "identity_already_linked"


# What WhatsApp says of a person's identity


@pytest.mark.parametrize(
    "system",
    [
        {"type": "user_changed_number", "body": "A changed from +1 to +2", "wa_id": OTHER_PHONE,
         "user_id": OTHER_BSUID, "previous_user_id": BSUID},
        {"type": "user_changed_user_id", "body": "…", "user_id": OTHER_BSUID, "previous_user_id": BSUID},
        {"type": "customer_changed_number", "new_wa_id": OTHER_PHONE, "wa_id": OTHER_PHONE, "body": "…"},
        {"type": "customer_identity_changed", "identity": "hash", "customer": PHONE},
        {"type": "something_new"},
        "not even an object",
    ],
)  # fmt: skip
async def test_a_change_of_identity_is_stored_and_creates_nothing(
    app: App, acme: Tenant, system: object
) -> None:
    ana = await linked(app, acme, "ana", Identity(bsuid=BSUID, phone=PHONE))
    before = [await everything(app, table) for table in ("contacts", "identifiers", "links", "events")]
    notice = meta_bodies.message(Identity(phone=PHONE), app.service.clock.now(), "system", system=system)

    counts = await app.deliver(acme, meta_bodies.envelope(meta_bodies.change(acme.channel, notice)))

    assert counts == {"stored": 1}
    assert [
        await everything(app, table) for table in ("contacts", "identifiers", "links", "events")
    ] == before
    rows = [row for row in await everything(app, "messages") if row["kind"] == "system"]
    assert len(rows) == 1
    assert rows[0]["contact_id"] is None
    assert (await heard(app, acme, Identity(bsuid=BSUID)))["contact_id"] == ana


async def test_a_change_of_an_unknown_identity_creates_nobody(app: App, acme: Tenant) -> None:
    system = {"type": "user_changed_user_id", "user_id": OTHER_BSUID, "previous_user_id": BSUID}
    notice = meta_bodies.message(None, app.service.clock.now(), "system", system=system)

    counts = await app.deliver(acme, meta_bodies.envelope(meta_bodies.change(acme.channel, notice)))

    assert counts == {"stored": 1}
    assert await everything(app, "contacts") == []
    assert await everything(app, "events") == []
