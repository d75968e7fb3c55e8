"""Keys, projects, channels, endpoints, the installation's secret, and this process's copy of them."""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
import pytest

from wabery_server import accounts, errors
from wabery_server.accounts import (
    ApiKey,
    Caller,
    Channel,
    ChannelChanges,
    ChannelDraft,
    Directory,
    KeyChanges,
    KeyDraft,
    KeyRotation,
    NewKey,
    NewProject,
    Project,
    ProjectChanges,
    ProjectDraft,
    Scope,
    directory,
    key,
)
from wabery_server.clock import MovableClock
from wabery_server.db import Database, Lane, Source, Work
from wabery_server.db.signals import Signals
from wabery_server.secrets import BadSecret, Keyring, Subkeys, Unsealable, generate

T = TypeVar("T")

ME = "cli:tester"
AT = datetime(2026, 1, 15, 9, 30, tzinfo=UTC)
LIVE = "wab_live_0123456789ABCDEFGHIJKLMNOPQRST29Z8aS"
PUBLISHABLE = "wab_pub_0123456789ABCDEFGHIJKLMNOPQRST3qrAPx"
"""The published vectors."""

LIVE_PROJECT = Project(id="proj_1", organization_id="org_1", name="Live", livemode=True, created_at=AT)
TEST_PROJECT = Project(id="proj_2", organization_id="org_1", name="Test", livemode=False, created_at=AT)


class Counted(Database):
    """Counts what its lanes do, and lets a test hold back what they have read."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.count = 0
        self.read = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    def lane(self) -> Lane:
        return CountedLane(self, super().lane())


class CountedLane(Lane):
    def __init__(self, database: Counted, lane: Lane) -> None:
        super().__init__(database.source, database.outage)
        self._database = database
        self._lane = lane

    async def run(self, work: Work[T], **how: Any) -> T:
        self._database.count += 1
        found = await self._lane.run(work, **how)
        self._database.read.set()
        await self._database.gate.wait()
        return found


class Seconds:
    """A wall clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def database(source: Source) -> AsyncIterator[Counted]:
    async with Counted(source) as opened:
        yield opened


@pytest.fixture
async def organization_id(database: Counted, keyring: Keyring) -> str:
    return (await database.run(lambda tx: accounts.open_installation(tx, keyring, AT))).organization_id


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
async def known(
    database: Counted, keyring: Keyring, signals: Signals, clock: MovableClock, seconds: Seconds
) -> AsyncIterator[Directory]:
    async with Directory(database, keyring, signals, clock, now=seconds) as opened:
        yield opened


@pytest.fixture
async def acme(database: Counted, keyring: Keyring, organization_id: str) -> Project:
    return (await founded(database, keyring, organization_id, "Acme")).project


@pytest.fixture
async def globex(database: Counted, keyring: Keyring, organization_id: str) -> Project:
    return (await founded(database, keyring, organization_id, "Globex")).project


async def founded(
    database: Database, keyring: Keyring, organization_id: str, name: str, *, livemode: bool = False
) -> NewProject:
    draft = ProjectDraft(name=name, livemode=livemode)
    new = accounts.new_project(organization_id, draft, keyring=keyring, at=AT)
    await database.run(lambda tx: accounts.create_project(tx, new, keyring=keyring, actor=ME, at=AT))
    return new


async def keyed(database: Database, project: Project, **wanted: object) -> NewKey:
    draft = msgspec.convert({"name": "server", "scopes": ["full"], **wanted}, KeyDraft)
    new = accounts.new_key(project, draft, AT)
    await database.run(lambda tx: accounts.create_key(tx, new, actor=ME, at=AT))
    return new


async def connected(database: Database, keyring: Keyring, project: Project, number: str) -> Channel:
    draft = ChannelDraft(
        name="Support",
        phone_number_id=number,
        display_phone_number="+49 151 2345678",
        waba_id="102290129340398",
        app_secret="a" * 32,
    )
    new = accounts.new_channel(project.id, draft, AT + timedelta(seconds=1))
    await database.run(lambda tx: accounts.create_channel(tx, new, keyring=keyring, actor=ME, at=AT))
    return new.channel


async def stored(database: Database, *tables: str) -> str:
    """Everything these tables hold, as text."""
    rows = [await database.run(lambda tx, t=table: tx.rows(f"select t::text from {t} t")) for table in tables]
    return "\n".join(row[0] for found in rows for row in found)


# Keys


@pytest.mark.parametrize("vector", [LIVE, PUBLISHABLE])
def test_the_published_keys_are_well_formed(vector: str) -> None:
    assert accounts.is_well_formed(vector)


@pytest.mark.parametrize("place", range(len(LIVE)))
def test_one_wrong_character_anywhere_makes_a_key_malformed(place: int) -> None:
    other = "x" if LIVE[place] != "x" else "y"

    assert not accounts.is_well_formed(LIVE[:place] + other + LIVE[place + 1 :])


@pytest.mark.parametrize(
    "text", ["", "wab_live_", LIVE + "\n", LIVE[:-1], LIVE + "0", LIVE.replace("0", "٠"), "🔑" * 45]
)
def test_what_is_no_key_is_malformed(text: str) -> None:
    assert not accounts.is_well_formed(text)


@pytest.mark.parametrize(
    ("project", "kind", "prefix"),
    [
        (LIVE_PROJECT, "secret", "wab_live_"),
        (TEST_PROJECT, "secret", "wab_test_"),
        (LIVE_PROJECT, "publishable", "wab_pub_"),
        (TEST_PROJECT, "publishable", "wab_pub_"),
    ],
)
def test_a_new_key_shows_its_kind_and_mode(project: Project, kind: accounts.KeyKind, prefix: str) -> None:
    draft = KeyDraft(name="k", kind=kind, scopes=["full"] if kind == "secret" else [])

    made = accounts.new_key(project, draft, AT)

    assert made.value.startswith(prefix)
    assert len(made.value) == len(prefix) + 36
    assert accounts.is_well_formed(made.value)
    assert made.key.last4 == made.value[-4:]


def test_no_character_of_a_key_is_likelier_than_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda size: bytes(i % 256 for i in range(size)))

    text = key._random_base62(256)[:248]

    assert {text.count(character) for character in set(text)} == {4}
    assert len(set(text)) == 62


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["everything"]}, "scopes"),
        ({"kind": "publishable", "scopes": ["full"]}, "scopes"),
        ({"allowed_origins": ["https://a.example"]}, "allowed_origins"),
        ({"expires_at": AT}, "expires_at"),
        ({"expires_at": AT + timedelta(days=40_000)}, "expires_at"),
        ({"expires_at": datetime.max.replace(tzinfo=UTC)}, "expires_at"),
    ],
)
def test_an_impossible_key_is_refused(wanted: dict[str, object], param: str) -> None:
    draft = msgspec.convert({"name": "k", "scopes": ["full"], **wanted}, KeyDraft)

    with pytest.raises(errors.InvalidRequest) as refusal:
        accounts.new_key(TEST_PROJECT, draft, AT)

    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://App.Example.com", "https://app.example.com"),
        ("https://app.example.com:443", "https://app.example.com"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("capacitor://localhost", "capacitor://localhost"),
    ],
)
def test_origins_are_kept_as_browsers_send_them(given: str, kept: str) -> None:
    draft = KeyDraft(name="k", kind="publishable", allowed_origins=[given, given])

    assert accounts.new_key(TEST_PROJECT, draft, AT).key.allowed_origins == (kept,)


@pytest.mark.parametrize(
    "origin",
    ["", "null", "*", "https://*.example.com", "app.example.com", "https://a.example/", "https://a.example/x",
     "https://a.example:", "https://a.example:0", "https://ä.example", "https://a.example\n", "https://u@a.example"],
)  # fmt: skip
def test_what_no_browser_sends_as_origin_is_refused(origin: str) -> None:
    draft = KeyDraft(name="k", kind="publishable", allowed_origins=[origin])

    with pytest.raises(errors.InvalidRequest):
        accounts.new_key(TEST_PROJECT, draft, AT)


async def test_a_secret_key_is_not_stored(database: Counted, acme: Project) -> None:
    made = await keyed(database, acme)

    assert made.value not in await stored(database, "api_keys", "audit")


async def test_a_publishable_key_can_be_read_back(database: Counted, acme: Project) -> None:
    made = await keyed(database, acme, kind="publishable", scopes=[])

    found = await database.run(lambda tx: accounts.find_key(tx, acme.id, made.key.id))

    assert found.public()["key"] == made.value


async def test_a_secret_key_is_shown_by_nothing_but_its_creation(database: Counted, acme: Project) -> None:
    made = await keyed(database, acme)

    found = await database.run(lambda tx: accounts.find_key(tx, acme.id, made.key.id))

    assert found.public()["key"] is None
    assert set(found.public()) == {
        "object", "id", "kind", "name", "key", "last4", "scopes", "allowed_origins", "created_at", "expires_at",
        "revoked_at", "previous_ends_at", "last_used_at", "warning",
    }  # fmt: skip


async def test_a_publishable_key_open_to_all_origins_carries_a_warning(
    database: Counted, acme: Project
) -> None:
    anywhere = await keyed(database, acme, kind="publishable", scopes=[])
    somewhere = await keyed(
        database, acme, kind="publishable", scopes=[], allowed_origins=["https://a.example"]
    )

    assert anywhere.key.public()["warning"]
    assert somewhere.key.public()["warning"] is None


async def test_creating_a_key_again_changes_nothing(database: Counted, acme: Project) -> None:
    made = await keyed(database, acme)

    await database.run(lambda tx: accounts.create_key(tx, made, actor=ME, at=AT))

    found = await database.run(lambda tx: accounts.list_keys(tx, acme.id, limit=10))
    trail = await database.run(lambda tx: accounts.audit_trail(tx, acme.id, limit=100))
    assert [one.id for one in found] == [made.key.id]
    assert [entry.action for entry in trail].count("api_key.created") == 1


async def test_changing_a_key_leaves_the_rest_alone(database: Counted, acme: Project) -> None:
    made = await keyed(database, acme, expires_at=AT + timedelta(days=1))

    renamed = await database.run(
        lambda tx: accounts.update_key(tx, acme.id, made.key.id, KeyChanges(name="new"), actor=ME, at=AT)
    )
    endless = await database.run(
        lambda tx: accounts.update_key(tx, acme.id, made.key.id, KeyChanges(expires_at=None), actor=ME, at=AT)
    )

    assert (renamed.name, renamed.expires_at, renamed.scopes) == (
        "new",
        AT + timedelta(days=1),
        made.key.scopes,
    )
    assert (endless.name, endless.expires_at) == ("new", None)


async def test_a_key_is_revoked_once(database: Counted, acme: Project) -> None:
    made = await keyed(database, acme)

    for later in range(2):
        at = AT + timedelta(hours=later)
        revoked = await database.run(
            lambda tx, at=at: accounts.revoke_key(tx, acme.id, made.key.id, actor=ME, at=at)
        )

    trail = await database.run(lambda tx: accounts.audit_trail(tx, acme.id, limit=100))
    assert revoked.revoked_at == AT
    assert [entry.action for entry in trail].count("api_key.revoked") == 1


async def test_a_rotation_that_runs_again_changes_nothing_more(database: Counted, acme: Project) -> None:
    made = await keyed(database, acme)
    value = accounts.new_value(acme, "secret")

    for later in range(2):
        at = AT + timedelta(hours=later)
        rotated = await database.run(
            lambda tx, at=at: accounts.rotate_key(
                tx, made.key, value, KeyRotation(overlap=60), actor=ME, at=at
            )
        )

    trail = await database.run(lambda tx: accounts.audit_trail(tx, acme.id, limit=100))
    assert rotated.previous_ends_at == AT + timedelta(seconds=60)
    assert [entry.detail for entry in trail if entry.action == "api_key.rotated"] == [{"overlap": 60}]
    found = await database.run(lambda tx: key.any_live_keys(tx, [made.value, value, LIVE]))
    assert {presented: (one.key.id, one.until) for presented, one in found.items()} == {
        value: (made.key.id, None),
        made.value: (made.key.id, rotated.previous_ends_at),
    }
    assert value not in await stored(database, "api_keys", "audit")


# Callers


async def test_a_key_opens_its_own_project(
    database: Counted, known: Directory, acme: Project, globex: Project
) -> None:
    made = await keyed(database, globex)

    caller = await known.caller(made.value)

    assert caller.project == globex
    assert caller.key.id == made.key.id
    assert caller.trusted


async def test_a_publishable_key_is_not_trusted(database: Counted, known: Directory, acme: Project) -> None:
    made = await keyed(database, acme, kind="publishable", scopes=[])

    caller = await known.caller(made.value)

    assert not caller.trusted
    with pytest.raises(errors.InsufficientScope):
        caller.require(Scope.REGISTRATIONS_CREATE)


async def test_a_mistyped_key_is_refused_without_a_look_up(database: Counted, known: Directory) -> None:
    before = database.count

    with pytest.raises(errors.InvalidApiKey):
        await known.caller(LIVE[:-1] + "T")

    assert database.count == before


async def test_an_unknown_key_is_looked_up_once(database: Counted, known: Directory) -> None:
    before = database.count

    for _ in range(3):
        with pytest.raises(errors.InvalidApiKey):
            await known.caller(LIVE)

    assert database.count == before + 1


async def test_a_key_asked_for_by_many_at_once_is_looked_up_once(
    database: Counted, known: Directory, acme: Project
) -> None:
    made = await keyed(database, acme)
    before = database.count

    callers = await asyncio.gather(*(known.caller(made.value) for _ in range(50)))

    assert database.count == before + 1
    assert {caller.key.id for caller in callers} == {made.key.id}


async def test_who_hangs_up_does_not_fail_the_others(
    database: Counted, known: Directory, acme: Project
) -> None:
    made = await keyed(database, acme)
    database.gate.clear()
    database.read.clear()
    first = asyncio.create_task(known.caller(made.value))
    second = asyncio.create_task(known.caller(made.value))
    await asyncio.wait_for(database.read.wait(), 5)

    first.cancel()
    database.gate.set()

    assert (await second).key.id == made.key.id
    assert first.cancelled()


async def test_what_was_read_is_believed_for_two_seconds(
    database: Counted, known: Directory, acme: Project, seconds: Seconds
) -> None:
    made = await keyed(database, acme)
    await known.caller(made.value)
    await database.run(lambda tx: accounts.revoke_key(tx, acme.id, made.key.id, actor=ME, at=AT))

    seconds.now += 1.99
    assert (await known.caller(made.value)).key.id == made.key.id

    seconds.now += 0.01
    with pytest.raises(errors.InvalidApiKey):
        await known.caller(made.value)


async def test_what_is_in_use_is_read_anew_while_it_is_still_believed(
    database: Counted, known: Directory, acme: Project, seconds: Seconds
) -> None:
    made = await keyed(database, acme)
    await known.caller(made.value)
    database.gate.clear()
    database.read.clear()

    seconds.now += 1.9
    meanwhile = await asyncio.wait_for(known.caller(made.value), 5)
    await asyncio.wait_for(database.read.wait(), 5)
    database.gate.set()
    await asyncio.gather(*known._callers._under_way.values())
    before = database.count
    seconds.now += 0.7
    afterwards = await known.caller(made.value)

    assert meanwhile.key.id == afterwards.key.id == made.key.id
    assert database.count == before


async def test_a_signal_drops_what_was_read(
    database: Counted, known: Directory, acme: Project, signals: Signals
) -> None:
    made = await keyed(database, acme)
    await known.caller(made.value)
    await database.run(lambda tx: accounts.revoke_key(tx, acme.id, made.key.id, actor=ME, at=AT))

    signals.tell("accounts")

    with pytest.raises(errors.InvalidApiKey):
        await known.caller(made.value)


async def test_a_signal_during_a_look_up_keeps_its_answer_from_being_believed(
    database: Counted, known: Directory, acme: Project
) -> None:
    made = await keyed(database, acme)
    database.gate.clear()
    database.read.clear()
    asked = asyncio.create_task(known.caller(made.value))
    await asyncio.wait_for(database.read.wait(), 5)
    known.forget()
    database.gate.set()
    await asked
    before = database.count

    await known.caller(made.value)

    assert database.count == before + 1


async def test_an_expiry_counts_at_every_call(
    database: Counted, known: Directory, acme: Project, clock: MovableClock
) -> None:
    made = await keyed(database, acme, expires_at=clock.now() + timedelta(hours=1))
    await known.caller(made.value)

    clock.move(timedelta(hours=1))

    with pytest.raises(errors.KeyExpired):
        await known.caller(made.value)


async def test_the_end_of_an_overlap_counts_at_every_call(
    database: Counted, known: Directory, acme: Project, clock: MovableClock
) -> None:
    made = await keyed(database, acme)
    value = accounts.new_value(acme, "secret")
    await database.run(
        lambda tx: accounts.rotate_key(
            tx, made.key, value, KeyRotation(overlap=3600), actor=ME, at=clock.now()
        )
    )
    assert (await known.caller(made.value)).key == (await known.caller(value)).key
    before = database.count

    clock.move(timedelta(hours=1))

    with pytest.raises(errors.KeyExpired):
        await known.caller(made.value)
    assert (await known.caller(value)).until is None
    assert database.count == before


async def test_a_flood_of_unknown_keys_does_not_push_out_the_known_ones(
    database: Counted, known: Directory, acme: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "REMEMBERED", 3)
    made = await keyed(database, acme)
    await known.caller(made.value)
    for _ in range(10):
        with pytest.raises(errors.InvalidApiKey):
            await known.caller(accounts.new_key(acme, KeyDraft(name="k", scopes=["full"]), AT).value)
    before = database.count

    await known.caller(made.value)

    assert database.count == before
    assert len(known._callers._absent) == 3


async def test_old_keys_leave_the_memory(
    database: Counted, known: Directory, acme: Project, seconds: Seconds
) -> None:
    first, second = await keyed(database, acme), await keyed(database, acme)
    await known.caller(first.value)
    seconds.now += 2

    await known.caller(second.value)

    assert list(known._callers._found) == [second.value]


@pytest.mark.parametrize("scope", Scope)
def test_a_scope_that_a_key_lacks_is_named(scope: Scope) -> None:
    others = frozenset(Scope) - {scope}
    lacking = Caller(TEST_PROJECT, _bare_key(others))
    having = Caller(TEST_PROJECT, _bare_key(frozenset({scope})))

    having.require(scope)
    with pytest.raises(errors.InsufficientScope, match=scope) as refusal:
        lacking.require(scope)

    assert refusal.value.param is None


def _bare_key(scopes: frozenset[Scope]) -> ApiKey:
    made = accounts.new_key(TEST_PROJECT, KeyDraft(name="k", scopes=["full"]), AT)
    return msgspec.structs.replace(made.key, scopes=scopes)


async def test_uses_are_written_when_the_directory_closes(
    database: Counted, keyring: Keyring, signals: Signals, clock: MovableClock, acme: Project
) -> None:
    made = await keyed(database, acme)

    async with Directory(database, keyring, signals, clock) as opened:
        opened.used(made.key)
        used_at = clock.now()

    found = await database.run(lambda tx: accounts.find_key(tx, acme.id, made.key.id))
    assert found.last_used_at is not None
    assert abs(found.last_used_at - used_at) < timedelta(seconds=5)


async def test_an_earlier_use_does_not_overwrite_a_later_one(
    database: Counted, keyring: Keyring, signals: Signals, clock: MovableClock, acme: Project
) -> None:
    made = await keyed(database, acme)
    async with Directory(database, keyring, signals, clock) as opened:
        opened.used(made.key)
    latest = (await database.run(lambda tx: accounts.find_key(tx, acme.id, made.key.id))).last_used_at

    clock.move(timedelta(hours=-1))
    async with Directory(database, keyring, signals, clock) as opened:
        opened.used(made.key)

    found = await database.run(lambda tx: accounts.find_key(tx, acme.id, made.key.id))
    assert found.last_used_at == latest


# Projects


async def test_a_test_project_begins_with_a_sandbox_channel(
    database: Counted, known: Directory, acme: Project
) -> None:
    channel = await known.channel(acme, None)

    assert channel.sandbox
    assert channel.project_id == acme.id
    assert channel.display_phone_number.startswith("15550100")


async def test_a_live_project_begins_without_a_channel(
    database: Counted, keyring: Keyring, known: Directory, organization_id: str
) -> None:
    live = (await founded(database, keyring, organization_id, "Live", livemode=True)).project

    with pytest.raises(errors.ChannelNotReady):
        await known.channel(live, None)


async def test_creating_a_project_again_changes_nothing(
    database: Counted, keyring: Keyring, organization_id: str
) -> None:
    new = await founded(database, keyring, organization_id, "Acme")
    before = await stored(database, "projects", "channels", "webhook_endpoints", "audit")

    await database.run(lambda tx: accounts.create_project(tx, new, keyring=keyring, actor=ME, at=AT))

    assert await stored(database, "projects", "channels", "webhook_endpoints", "audit") == before


async def test_a_change_replaces_what_it_names_and_nothing_else(
    database: Counted, keyring: Keyring, acme: Project, globex: Project
) -> None:
    changes = ProjectChanges(
        prefilled_texts={"de": "Mein Konto verbinden: {token}"}, supersede=True, references_per_contact=3
    )

    changed, _ = await database.run(
        lambda tx: accounts.update_project(tx, acme.id, changes, keyring=keyring, actor=ME, at=AT)
    )

    expected = msgspec.structs.replace(
        acme, prefilled_texts=changes.prefilled_texts, supersede=True, references_per_contact=3
    )
    assert changed == expected
    assert await database.run(lambda tx: accounts.projects(tx, [acme.id, globex.id, "proj_none"])) == {
        acme.id: expected,
        globex.id: globex,
    }


async def test_a_change_of_nothing_leaves_no_trace(
    database: Counted, keyring: Keyring, acme: Project
) -> None:
    before = await stored(database, "audit")

    await database.run(
        lambda tx: accounts.update_project(tx, acme.id, ProjectChanges(), keyring=keyring, actor=ME, at=AT)
    )

    assert await stored(database, "audit") == before


async def test_a_project_shows_its_webhook_only_as_a_single_one_and_its_secret_only_on_demand(
    database: Counted, keyring: Keyring, acme: Project
) -> None:
    endpoint = await database.run(lambda tx: accounts.default_endpoint(tx, acme.id))
    listed = {
        "object", "id", "organization_id", "name", "livemode", "prefilled_text", "prefilled_texts",
        "publishable_expires_in", "secret_expires_in", "supersede", "unsigned_references", "on_identity_linked",
        "on_reference_linked", "references_per_contact", "created_at",
    }  # fmt: skip

    assert set(acme.public()) == listed
    assert set(acme.public(endpoint)) == listed | {"webhook_url", "webhook_disabled_reason"}
    assert acme.public(endpoint, reveal_with=keyring)["webhook_secret"].startswith("whsec_")


@pytest.mark.parametrize(
    "text",
    [
        "{token}",
        "Connect my account: {token}",
        "登録: {token} をお願いします",
        "Hi {name}, {token}",
        "{token} " + "x" * 109,
    ],
)
def test_a_good_prefilled_text_passes(text: str) -> None:
    accounts.check_prefilled_text(text, param="prefilled_text")


@pytest.mark.parametrize(
    "text",
    ["", "no token", "{token} {token}", "{token} " + "x" * 110, "see https://a.example {token}", "www.a {token}",
     "at shop.example {token}", "a\n{token}", "\x00{token}", "wa.me/1 {token}"],
)  # fmt: skip
def test_a_bad_prefilled_text_is_refused(text: str) -> None:
    with pytest.raises(errors.PrefilledTextTooLong) as refusal:
        accounts.check_prefilled_text(text, param="prefilled_texts.de")

    assert refusal.value.param == "prefilled_texts.de"


async def test_every_prefilled_text_is_checked(database: Counted, keyring: Keyring, acme: Project) -> None:
    changes = ProjectChanges(prefilled_texts={"de": "{token}", "fr": "rien"})

    with pytest.raises(errors.PrefilledTextTooLong) as refusal:
        await database.run(
            lambda tx: accounts.update_project(tx, acme.id, changes, keyring=keyring, actor=ME, at=AT)
        )

    assert refusal.value.param == "prefilled_texts.fr"


# Endpoints


async def test_the_app_may_choose_its_own_signing_secret(
    database: Counted, keyring: Keyring, acme: Project
) -> None:
    changes = ProjectChanges(webhook_secret="It's a Secret to Everybody")

    _, endpoint = await database.run(
        lambda tx: accounts.update_project(tx, acme.id, changes, keyring=keyring, actor=ME, at=AT)
    )

    assert accounts.unseal_endpoint_secrets(endpoint, keyring) == ["It's a Secret to Everybody"]
    assert "Everybody" not in await stored(database, "webhook_endpoints", "audit")


async def test_a_sealed_secret_opens_for_its_own_endpoint_only(
    database: Counted, keyring: Keyring, acme: Project, globex: Project
) -> None:
    mine, theirs = await database.run(lambda tx: accounts.endpoints(tx, [acme.id, globex.id]))

    with pytest.raises(Unsealable):
        accounts.unseal_endpoint_secrets(msgspec.structs.replace(mine, secrets=theirs.secrets), keyring)


async def test_a_disabled_endpoint_comes_back_with_a_new_url(
    database: Counted, keyring: Keyring, acme: Project
) -> None:
    endpoint = await database.run(lambda tx: accounts.default_endpoint(tx, acme.id))
    for reason in ("gone", "too_late"):
        await database.run(
            lambda tx, reason=reason: accounts.disable_endpoint(tx, acme.id, endpoint.id, reason, AT)
        )
    disabled = await database.run(lambda tx: accounts.default_endpoint(tx, acme.id))

    _, enabled = await database.run(
        lambda tx: accounts.update_project(
            tx, acme.id, ProjectChanges(webhook_url="https://a.example/h"), keyring=keyring, actor=ME, at=AT
        )
    )

    trail = await database.run(lambda tx: accounts.audit_trail(tx, acme.id, limit=100))
    assert (disabled.disabled_at, disabled.disabled_reason) == (AT, "gone")
    assert (enabled.disabled_at, enabled.disabled_reason, enabled.url) == (None, None, "https://a.example/h")
    assert [entry.action for entry in trail].count("webhook_endpoint.disabled") == 1


# Channels


async def test_a_project_mints_for_its_oldest_channel_or_the_named_one(
    database: Counted, keyring: Keyring, known: Directory, acme: Project, globex: Project
) -> None:
    second = await connected(database, keyring, acme, "1001")
    foreign = await connected(database, keyring, globex, "1002")

    assert (await known.channel(acme, None)).sandbox
    assert await known.channel(acme, second.id) == second
    for unknown in (foreign.id, "channel_none", ""):
        with pytest.raises(errors.InvalidRequest) as refusal:
            await known.channel(acme, unknown)
        assert refusal.value.param == "channel_id"


async def test_a_number_belongs_to_one_channel_of_any_project(
    database: Counted, keyring: Keyring, acme: Project, globex: Project
) -> None:
    channel = await connected(database, keyring, acme, "1001")

    with pytest.raises(errors.NumberTaken):
        await connected(database, keyring, globex, "1001")
    await database.run(lambda tx: accounts.delete_channel(tx, acme.id, channel.id, actor=ME, at=AT))

    assert (await connected(database, keyring, globex, "1001")).project_id == globex.id


async def test_one_of_many_who_want_a_number_gets_it(
    database: Counted, keyring: Keyring, acme: Project, globex: Project
) -> None:
    tries = [connected(database, keyring, project, "1001") for project in (acme, globex) * 4]

    results = await asyncio.gather(*tries, return_exceptions=True)

    assert sum(isinstance(result, Channel) for result in results) == 1
    assert sum(isinstance(result, errors.NumberTaken) for result in results) == 7


async def test_an_inbound_number_leads_to_its_channel_and_secrets(
    database: Counted, keyring: Keyring, known: Directory, acme: Project
) -> None:
    channel = await connected(database, keyring, acme, "1001")
    changes = ChannelChanges(app_secrets=["new-secret-1", "a" * 32])
    await database.run(
        lambda tx: accounts.update_channel(tx, acme.id, channel.id, changes, keyring=keyring, actor=ME, at=AT)
    )

    found = await known.number("meta", "1001")

    assert found is not None
    assert (found.channel.id, found.project) == (channel.id, acme)
    assert found.channel.family == [channel.waba_id]
    assert found.app_secrets == [b"new-secret-1", b"a" * 32]
    assert await known.number("meta", "1002") is None
    assert await known.number("twilio", "1001") is None


async def test_app_secrets_of_all_channels_are_named_once(
    database: Counted, keyring: Keyring, known: Directory, acme: Project, globex: Project
) -> None:
    await connected(database, keyring, acme, "1001")
    await connected(database, keyring, globex, "1002")

    secrets = await known.app_secrets(10)
    in_turn = [*await known.app_secrets(2), *await known.app_secrets(2)]

    assert set(in_turn) == set(secrets), "a repeated request reaches all of them"
    assert secrets.count(b"a" * 32) == 1
    assert len(secrets) == 3, "one of both, and one of each sandbox channel"
    assert len(await known.verify_tokens()) == 4


async def test_a_change_of_one_credential_leaves_the_others(
    database: Counted, keyring: Keyring, acme: Project
) -> None:
    channel = await connected(database, keyring, acme, "1001")
    before = await database.run(lambda tx: accounts.unseal_credentials(tx, channel, keyring=keyring))
    changes = ChannelChanges(
        name="Sales", access_token="access-token-1", display_phone_number="(212) 555-0100"
    )

    changed, after = await database.run(
        lambda tx: accounts.update_channel(tx, acme.id, channel.id, changes, keyring=keyring, actor=ME, at=AT)
    )

    assert (changed.name, changed.display_phone_number) == ("Sales", "2125550100")
    assert after == msgspec.structs.replace(before, access_token="access-token-1")
    assert await database.run(lambda tx: accounts.find_channel(tx, acme.id, channel.id)) == changed


@pytest.mark.parametrize("number", ["", "+", "0151 2345678", "+49", "1" * 16, "+49 151 abc", "+4915123٤٥"])
def test_a_number_nobody_can_dial_is_refused(number: str) -> None:
    draft = ChannelDraft(
        name="n", phone_number_id="1", display_phone_number=number, waba_id="1", app_secret="a" * 32
    )

    with pytest.raises(errors.InvalidRequest) as refusal:
        accounts.new_channel("proj_1", draft, AT)

    assert refusal.value.param == "display_phone_number"


async def test_a_deleted_channel_loses_its_credentials(
    database: Counted, keyring: Keyring, known: Directory, acme: Project, globex: Project
) -> None:
    channel = await connected(database, keyring, acme, "1001")

    for _ in range(2):
        deleted = await database.run(
            lambda tx: accounts.delete_channel(tx, acme.id, channel.id, actor=ME, at=AT)
        )

    (sealed,) = await database.run(
        lambda tx: tx.rows("select credentials from channels where id = $1", channel.id)
    )
    assert deleted.deleted_at == AT
    assert sealed["credentials"] == b""
    assert await known.number("meta", "1001") is None
    for read in (accounts.find_channel, accounts.delete_channel):
        with pytest.raises(errors.NotFound):
            await database.run(
                lambda tx, read=read: read(
                    tx,
                    globex.id,
                    channel.id,
                    **({} if read is accounts.find_channel else {"actor": ME, "at": AT}),
                )
            )


# Installation


async def test_an_installation_is_opened_once(database: Counted, keyring: Keyring) -> None:
    opened = await asyncio.gather(
        *(database.run(lambda tx: accounts.open_installation(tx, keyring, AT)) for _ in range(8))
    )

    assert len({one.organization_id for one in opened}) == 1
    assert await database.run(accounts.find_organization) == opened[0].organization_id


async def test_another_secret_is_refused(database: Counted, organization_id: str) -> None:
    other = Keyring(Subkeys(generate()))

    with pytest.raises(BadSecret, match="WABERY_SECRET_KEY is not the secret"):
        await database.run(lambda tx: accounts.open_installation(tx, other, AT))


async def test_a_new_secret_beside_the_old_one_takes_over(database: Counted) -> None:
    old, new = generate(), generate()
    before = Keyring(Subkeys(old))
    both = Keyring(Subkeys(new, 2), {1: Subkeys(old)})
    organization_id, _ = await database.run(lambda tx: accounts.open_installation(tx, before, AT))
    await founded(database, before, organization_id, "Acme")

    assert (await database.run(lambda tx: accounts.open_installation(tx, both, AT)))[0] == organization_id
    (endpoint,) = await database.run(
        lambda tx: tx.rows("select project_id from webhook_endpoints where is_default")
    )
    found = await database.run(lambda tx: accounts.default_endpoint(tx, endpoint["project_id"]))

    assert accounts.unseal_endpoint_secrets(found, both)[0].startswith("whsec_")
    with pytest.raises(BadSecret):
        await database.run(lambda tx: accounts.open_installation(tx, before, AT))


async def test_a_false_old_secret_does_not_let_a_new_one_in(database: Counted, organization_id: str) -> None:
    thief = Keyring(Subkeys(generate(), 2), {1: Subkeys(generate())})

    with pytest.raises(BadSecret):
        await database.run(lambda tx: accounts.open_installation(tx, thief, AT))


async def test_dev_finds_its_project_and_keys_again(
    database: Counted, keyring: Keyring, organization_id: str
) -> None:
    async def begin(port: int, secret_key: str | None) -> accounts.DevAccount:
        url = f"http://127.0.0.1:{port}/phone/receiver"
        return await database.run(
            lambda tx: accounts.bootstrap_dev(
                tx, keyring=keyring, webhook_url=url, at=AT, secret_key=secret_key
            )
        )

    first = await begin(8420, None)
    second = await begin(9000, first.secret_key)

    assert first.channel is not None
    assert first.channel.sandbox
    assert second == msgspec.structs.replace(first, webhook_url="http://127.0.0.1:9000/phone/receiver")


async def test_dev_makes_a_new_key_when_the_old_one_is_dead_and_respects_a_chosen_url(
    database: Counted, keyring: Keyring, organization_id: str, known: Directory
) -> None:
    url = "http://127.0.0.1:8420/phone/receiver"
    first = await database.run(lambda tx: accounts.bootstrap_dev(tx, keyring=keyring, webhook_url=url, at=AT))
    caller = await known.caller(first.secret_key)
    mine = ProjectChanges(webhook_url="http://localhost:3000/hooks")
    await database.run(lambda tx: accounts.revoke_key(tx, first.project.id, caller.key.id, actor=ME, at=AT))
    await database.run(
        lambda tx: accounts.update_project(tx, first.project.id, mine, keyring=keyring, actor=ME, at=AT)
    )

    again = await database.run(
        lambda tx: accounts.bootstrap_dev(
            tx, keyring=keyring, webhook_url=url, at=AT, secret_key=first.secret_key
        )
    )

    assert again.project.id == first.project.id
    assert again.secret_key != first.secret_key
    assert again.publishable_key == first.publishable_key
    assert again.webhook_url == "http://localhost:3000/hooks"


# The trail


async def test_the_trail_tells_who_did_what_and_no_secret(
    database: Counted, keyring: Keyring, acme: Project, globex: Project
) -> None:
    secrets = [
        "my-webhook-secret",
        "path-secret",
        "user:password",
        "app-secret-2",
        "verify-token-2",
        "access-token-2",
    ]
    made = await keyed(database, acme)
    channel = await connected(database, keyring, acme, "1001")
    changes = ProjectChanges(
        webhook_secret=secrets[0], webhook_url="https://user:password@a.example/path-secret?k=path-secret"
    )
    await database.run(
        lambda tx: accounts.update_project(tx, acme.id, changes, keyring=keyring, actor="key_1", at=AT)
    )
    credentials = ChannelChanges(app_secrets=[secrets[3]], verify_token=secrets[4], access_token=secrets[5])
    await database.run(
        lambda tx: accounts.update_channel(
            tx, acme.id, channel.id, credentials, keyring=keyring, actor="key_1", at=AT
        )
    )

    trail = await database.run(lambda tx: accounts.audit_trail(tx, acme.id, limit=100))
    others = await database.run(lambda tx: accounts.audit_trail(tx, globex.id, limit=100))

    assert sorted(entry.action for entry in trail) == [
        "api_key.created",
        "channel.created",
        "channel.created",
        "channel.updated",
        "project.created",
        "project.updated",
    ]
    assert {entry.actor for entry in trail} == {ME, "key_1"}
    assert {entry.project_id for entry in others} == {globex.id}
    (changed,) = (entry for entry in trail if entry.action == "project.updated")
    assert changed.detail == {"webhook_secret": "changed", "webhook_url": "https://a.example"}
    written = await stored(database, "audit")
    assert not [secret for secret in (*secrets, made.value, "a" * 32) if secret in written]
