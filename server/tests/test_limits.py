"""How much is too much: the algorithm by itself with a clock of its own, and every limit through the API."""

import re
from datetime import timedelta
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snapshots import holdings
from world import ANA, BEN, INTENTS, App, Reply, Tenant, tenant

from wabery_server.clock import MovableClock
from wabery_server.intents import MAX_PENDING
from wabery_server.limits import Allowance, Limit
from wabery_server.settings import Settings

UNKNOWN = "wjr_00000000000000000000000000"


class Seconds:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# The algorithm

quotas = st.tuples(st.integers(1, 50), st.sampled_from([1, 10, 60, 600, 3600]))
pauses = st.lists(st.floats(0, 700, allow_nan=False), max_size=60)


def said(allowance: Allowance) -> tuple[bool, float, float, int]:
    return allowance.allowed, allowance.reset, allowance.retry_after, allowance.remaining


@given(quotas)
def test_a_quota_may_be_used_at_once_and_not_more(which: tuple[int, int]) -> None:
    quota, window = which
    limit = Limit("some", quota, window, now=Seconds())

    first = [limit.take("a") for _ in range(quota)]
    more = limit.take("a")

    assert all(one.allowed for one in first)
    assert [one.remaining for one in first] == list(range(quota - 1, -1, -1))
    assert not more.allowed
    assert more.remaining == 0
    assert more.retry_after == pytest.approx(window / quota)


@given(quotas, pauses)
def test_a_refused_request_is_welcome_when_it_was_told_and_not_before(
    which: tuple[int, int], story: list[float]
) -> None:
    quota, window = which
    clock = Seconds()
    limit = Limit("some", quota, window, now=clock)

    for pause in story:
        clock.now += pause
        while (answer := limit.take("a")).allowed:
            pass
        clock.now += max(0, answer.retry_after - 1e-5)
        early = limit.take("a")
        clock.now += 1e-5
        assert not early.allowed
        assert limit.take("a").allowed


@given(quotas, pauses)
def test_in_no_time_are_there_more_than_the_quota_and_what_has_grown_back(
    which: tuple[int, int], story: list[float]
) -> None:
    quota, window = which
    clock = Seconds()
    limit = Limit("some", quota, window, now=clock)
    taken: list[float] = []

    for pause in story:
        clock.now += pause
        taken += [clock.now for _ in range(quota + 3) if limit.take("a").allowed]

    for first in range(len(taken)):
        for last in range(first, len(taken)):
            grown = (taken[last] - taken[first]) / (window / quota)
            assert last - first + 1 <= quota + grown + 1e-3


@given(quotas, st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 30)), max_size=60))
def test_one_key_never_pays_for_another(which: tuple[int, int], story: list[tuple[str, float]]) -> None:
    clock = Seconds()
    together = Limit("some", *which, now=clock)
    apart = {key: Limit("some", *which, now=clock) for key in "abc"}

    for key, pause in story:
        clock.now += pause
        assert together.peek(key) == apart[key].peek("only")
        assert said(together.take(key)) == said(apart[key].take("only"))


@given(quotas, pauses)
def test_looking_counts_nothing_and_a_refusal_neither(which: tuple[int, int], story: list[float]) -> None:
    clock = Seconds()
    asked, quiet = Limit("some", *which, now=clock), Limit("some", *which, now=clock)

    for pause in story:
        clock.now += pause
        expected = quiet.take("a") if quiet.peek("a") else None
        assert asked.peek("a") is (expected is not None)
        taken = asked.take("a")
        assert taken.allowed is (expected is not None)
        if expected is not None:
            assert said(taken) == said(expected)


@given(quotas, st.integers(0, 60))
def test_what_remains_can_be_taken(which: tuple[int, int], used: int) -> None:
    limit = Limit("some", *which, now=Seconds())
    left = which[0]
    for _ in range(used):
        left = limit.take("a").remaining

    assert [limit.take("a").allowed for _ in range(left)] == [True] * left
    assert not limit.take("a").allowed


@given(quotas, pauses)
def test_what_is_given_back_was_never_taken(which: tuple[int, int], story: list[float]) -> None:
    clock = Seconds()
    quiet, busy = Limit("some", *which, now=clock), Limit("some", *which, now=clock)

    for pause in story:
        clock.now += pause
        assert busy.take("a").allowed is quiet.take("a").allowed
        if busy.take("a").allowed:
            busy.give_back("a")
        busy.give_back("b")

    assert busy.take("a").remaining == pytest.approx(quiet.take("a").remaining)


def test_after_a_quiet_window_everything_is_there_again() -> None:
    clock = Seconds()
    limit = Limit("some", 5, 60, now=clock)
    while limit.take("a").allowed:
        pass

    clock.now += 60

    assert limit.take("a").remaining == 4


def test_memory_is_bounded_and_idle_keys_go_first() -> None:
    clock = Seconds()
    limit = Limit("some", 2, 60, now=clock, max_keys=10)
    for number in range(9):
        limit.take(f"idle {number}")
    clock.now += 61
    limit.take("busy")
    limit.take("busy")

    for number in range(9):
        limit.take(f"new {number}")

    assert len(limit._full_at) <= 10
    assert not limit.take("busy").allowed


def test_when_every_key_is_busy_those_that_wait_longest_are_remembered() -> None:
    clock = Seconds()
    limit = Limit("some", 10, 60, now=clock, max_keys=10)
    for number in range(10):
        for _ in range(number + 1):
            limit.take(number)

    limit.take("one more")

    assert not limit.take(9).allowed
    assert len(limit._full_at) == 6


def test_the_headers_are_structured_fields() -> None:
    limit = Limit("ip", 60, 60)
    allowed = Allowance(limit, 47.2)
    refused = Allowance(limit, 60.0, 0.4)

    assert allowed.headers() == [
        (b"ratelimit-policy", b'"ip";q=60;w=60'),
        (b"ratelimit", b'"ip";r=12;t=48'),
    ]
    assert refused.headers()[1] == (b"ratelimit", b'"ip";r=0;t=1')


# Through the API


def allowing(**some: int) -> Settings:
    """Everything is plenty but what is named; a proxy on this machine is believed."""
    plenty = {
        "secret_key_per_second": 100_000,
        "publishable_key_per_minute": 100_000,
        "publishable_ip_per_minute": 100_000,
        "reference_per_hour": 100_000,
        "polls_per_minute": 100_000,
        "bad_tokens_per_sender": 100_000,
        "read_lanes": 1,
    }
    return Settings(trusted_proxies=(ip_network("127.0.0.0/8"),), **{**plenty, **some})  # type: ignore[arg-type]  # numbers, by name


async def mint(app: App, key: str, reference: str = "user_123", ip: str | None = None) -> Reply:
    headers = {"X-Forwarded-For": ip} if ip else {}
    return await app.call("POST", INTENTS, key, json={"customer_reference": reference}, headers=headers)


def refused(reply: Reply, limit: str) -> int:
    """Checks a 429 of the contract; returns its Retry-After."""
    assert (reply.status, reply.body["error"]) == (429, "rate_limited")
    assert limit in reply.body["message"]
    assert reply.body["request_id"] == reply.headers["Wabery-Request-Id"]
    policies, states = (reply.headers.getall(name) for name in ("RateLimit-Policy", "RateLimit"))  # type: ignore[attr-defined]  # aiohttp's headers
    assert re.fullmatch(rf'"{limit}";q=[0-9]+;w=[0-9]+', policies[-1])
    state = re.fullmatch(rf'"{limit}";r=0;t=([0-9]+)', states[-1])
    assert state is not None
    wait = int(reply.headers["Retry-After"])
    assert wait >= max(1, int(state[1]))
    return wait


@pytest.mark.parametrize("settings", [allowing(publishable_key_per_minute=3)], ids=[""])
async def test_a_publishable_key_mints_so_often(app: App, acme: Tenant, globex: Tenant) -> None:
    good = [await mint(app, acme.publishable_key, f"user_{number}") for number in range(3)]
    before = await holdings(app.service.database)

    too_much = await mint(app, acme.publishable_key, "one more")

    assert [reply.status for reply in good] == [200, 200, 200]
    assert "r=0" in good[2].headers["RateLimit"]
    assert refused(too_much, "publishable_key") <= 20
    assert await holdings(app.service.database) == before
    assert (await mint(app, globex.publishable_key)).status == 200
    assert (await mint(app, acme.secret_key)).status == 200
    assert (await app.call("GET", f"{INTENTS}/{good[0].body['id']}", acme.publishable_key)).status == 200


@pytest.mark.parametrize("settings", [allowing(publishable_ip_per_minute=2)], ids=[""])
async def test_an_address_mints_so_often_with_publishable_keys(
    app: App, acme: Tenant, globex: Tenant
) -> None:
    first, second = "203.0.113.7", "203.0.113.8"
    for key in (acme.publishable_key, globex.publishable_key):
        assert (await mint(app, key, ip=first)).status == 200

    too_much = await mint(app, acme.publishable_key, ip=first)

    assert refused(too_much, "ip") <= 30
    assert (await mint(app, acme.publishable_key, ip=second)).status == 200
    assert (await mint(app, acme.secret_key, ip=first)).status == 200


@pytest.mark.parametrize("settings", [allowing(publishable_ip_per_minute=1)], ids=[""])
async def test_a_household_of_ipv6_is_one_address(app: App, acme: Tenant) -> None:
    household = ["2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:DB8:1:2::2", "2001:0db8:0001:0002::3"]

    replies = [await mint(app, acme.publishable_key, ip=ip) for ip in (*household, "2001:db8:1:3::1")]

    assert [reply.status for reply in replies] == [200, 429, 429, 429, 200]


@pytest.mark.parametrize("settings", [allowing(publishable_ip_per_minute=1)], ids=[""])
async def test_an_address_in_another_spelling_is_the_same_address(app: App, acme: Tenant) -> None:
    same = ["::ffff:203.0.113.7", "203.0.113.7", "::FFFF:203.0.113.7", "203.0.113.7 "]

    replies = [await mint(app, acme.publishable_key, ip=ip) for ip in (*same, "::ffff:203.0.113.8")]

    assert [reply.status for reply in replies] == [200, 429, 429, 429, 200]


@pytest.mark.parametrize("settings", [allowing(publishable_ip_per_minute=1)], ids=[""])
async def test_only_the_last_stranger_before_a_trusted_proxy_counts(app: App, acme: Tenant) -> None:
    claimed = [
        "198.51.100.1, 203.0.113.7",
        "198.51.100.2, 203.0.113.7",
        "198.51.100.3,203.0.113.7, 127.0.0.9",
    ]

    replies = [await mint(app, acme.publishable_key, ip=ip) for ip in claimed]

    assert [reply.status for reply in replies] == [200, 429, 429]


@pytest.mark.parametrize(
    "settings",
    [Settings(publishable_ip_per_minute=1, read_lanes=1)],
    ids=["no proxy is trusted"],
)
async def test_without_a_trusted_proxy_nobody_chooses_an_address(app: App, acme: Tenant) -> None:
    replies = [await mint(app, acme.publishable_key, ip=f"203.0.113.{number}") for number in range(3)]

    assert [reply.status for reply in replies] == [200, 429, 429]


@pytest.mark.parametrize("settings", [allowing(reference_per_hour=2)], ids=[""])
async def test_a_reference_is_minted_for_so_often_in_each_class(
    app: App, acme: Tenant, globex: Tenant
) -> None:
    for _ in range(2):
        assert (await mint(app, acme.publishable_key)).status == 200

    too_much = await mint(app, acme.publishable_key)

    assert refused(too_much, "customer_reference") <= 1800
    assert [(await mint(app, acme.secret_key)).status for _ in range(3)] == [200, 200, 429]
    assert (await mint(app, acme.publishable_key, "user_456")).status == 200
    assert (await mint(app, globex.publishable_key)).status == 200


@pytest.mark.parametrize("settings", [allowing(reference_per_hour=2)], ids=[""])
async def test_many_at_once_count_each_for_its_reference(app: App, acme: Tenant) -> None:
    items = [{"customer_reference": "user_123"}] * 4 + [{"customer_reference": "user_456"}]

    reply = await app.call("POST", f"{INTENTS}/bulk", acme.secret_key, json={"items": items})

    assert [one.get("error", one["object"]) for one in reply.body["data"]] == [
        "registration_intent",
        "registration_intent",
        "rate_limited",
        "rate_limited",
        "registration_intent",
    ]
    assert (await mint(app, acme.secret_key)).status == 429


async def test_a_secret_key_calls_so_often(app: App, acme: Tenant, globex: Tenant) -> None:
    clock = Seconds()
    app.service.per_secret_key = Limit("secret_key", 2, 1, now=clock)
    for _ in range(2):
        assert (await app.call("GET", INTENTS, acme.secret_key)).status == 200

    too_much = await app.call("GET", INTENTS, acme.secret_key)

    assert refused(too_much, "secret_key") == 1
    assert (await app.call("GET", INTENTS, globex.secret_key)).status == 200
    clock.now += 0.5
    assert (await app.call("GET", INTENTS, acme.secret_key)).status == 200


async def test_a_page_reads_an_intent_so_often(app: App, acme: Tenant) -> None:
    clock = Seconds()
    app.service.polls = Limit("polls", 3, 60, now=clock)
    one, other = [await app.mint(acme.publishable_key) for _ in range(2)]
    path = f"{INTENTS}/{one['id']}"

    replies = [await app.call("GET", path, acme.publishable_key) for _ in range(3)]
    too_much = await app.call("GET", path, acme.publishable_key)

    assert [reply.status for reply in replies] == [200, 200, 200]
    assert [reply.headers["RateLimit"] for reply in replies] == [
        '"polls";r=2;t=20', '"polls";r=1;t=40', '"polls";r=0;t=60'
    ]  # fmt: skip
    assert refused(too_much, "polls") == 20
    assert (await app.call("GET", path + "/events", acme.publishable_key)).status == 429
    assert (await app.call("GET", f"{INTENTS}/{other['id']}", acme.publishable_key)).status == 200
    assert (await app.call("GET", path, acme.secret_key)).status == 200
    clock.now += 20
    assert (await app.call("GET", path, acme.publishable_key)).status == 200


async def test_a_sender_of_bad_tokens_is_met_with_silence_while_a_good_one_is_honoured(
    app: App, acme: Tenant
) -> None:
    clock = Seconds()
    app.service.bad_tokens = Limit("bad_tokens", 2, 600, now=clock)
    intent = await app.mint(acme.secret_key)

    outcomes = [
        await app.say(acme, UNKNOWN, ANA),
        await app.say(acme, UNKNOWN[:-1], ANA),
        await app.say(acme, UNKNOWN[4:], ANA),
        await app.say(acme, UNKNOWN, ANA),
        await app.say(acme, UNKNOWN, ANA),
        await app.say(acme, UNKNOWN, BEN),
        await app.say(acme, "Hello", ANA),
        await app.say(acme, intent["token"], ANA),
    ]
    clock.now += 600
    later = await app.say(acme, UNKNOWN, ANA)

    assert outcomes == [
        {"unknown_token": 1},
        {"passed_on": 1},
        {"passed_on": 1},
        {"unknown_token": 1},
        {"sender_rate_limited": 1},
        {"unknown_token": 1},
        {"passed_on": 1},
        {"joined": 1},
    ]
    assert later == {"unknown_token": 1}


async def test_a_bad_token_that_is_delivered_again_counts_once(app: App, acme: Tenant) -> None:
    app.service.bad_tokens = Limit("bad_tokens", 2, 600, now=Seconds())

    for _ in range(5):
        await app.say(acme, UNKNOWN, ANA, message_id="wamid.ONE")

    assert await app.say(acme, UNKNOWN, ANA) == {"unknown_token": 1}
    assert await app.say(acme, UNKNOWN, ANA) == {"sender_rate_limited": 1}


# At most five pending


@pytest.mark.parametrize(
    ("kind", "status", "waits"), [("secret_key", 422, False), ("publishable_key", 429, True)]
)
async def test_a_reference_has_at_most_five_pending_in_each_class(
    app: App, acme: Tenant, kind: str, status: int, *, waits: bool
) -> None:
    mine, other = getattr(acme, kind), acme.publishable_key if kind == "secret_key" else acme.secret_key
    for _ in range(MAX_PENDING):
        assert (await mint(app, mine)).status == 200

    too_many = await mint(app, mine)

    assert (too_many.status, too_many.body["error"]) == (status, "too_many_pending")
    assert ("Retry-After" in too_many.headers) is waits
    assert (await mint(app, other)).status == 200
    assert (await mint(app, mine, "user_456")).status == 200


async def test_one_that_has_ended_makes_room(app: App, acme: Tenant, clock: MovableClock) -> None:
    minted = [(await mint(app, acme.secret_key)).body for _ in range(MAX_PENDING)]
    await app.call("POST", f"{INTENTS}/{minted[0]['id']}/cancel", acme.secret_key)

    after_a_cancel = [(await mint(app, acme.secret_key)).status for _ in range(2)]
    clock.move(timedelta(days=1, seconds=1))
    after_the_expiry = [(await mint(app, acme.secret_key)).status for _ in range(MAX_PENDING + 1)]

    assert after_a_cancel == [200, 422]
    assert after_the_expiry == [200] * MAX_PENDING + [422]


@pytest.mark.parametrize("kind", ["secret_key", "publishable_key"])
async def test_where_the_project_wants_it_the_oldest_makes_room(app: App, kind: str) -> None:
    initech = await tenant(app, "Initech", supersede=True)
    key = getattr(initech, kind)
    minted = [(await mint(app, key)).body for _ in range(MAX_PENDING + 2)]

    seen = [await app.get(initech.secret_key, one["id"]) for one in minted]

    assert [one["status"] for one in seen] == ["REJECTED"] * 2 + ["PENDING"] * MAX_PENDING
    assert {one["rejection_reason"] for one in seen[:2]} == {"superseded"}
    assert await app.say(initech, minted[0]["token"]) == {"after_cancel": 1}
    assert await app.say(initech, minted[-1]["token"]) == {"joined": 1}
