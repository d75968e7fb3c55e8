"""How much is too much: the algorithm by itself with a clock of its own, and every limit through the API."""

import asyncio
import math
import re
from collections import Counter
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snapshots import holdings
from world import ANA, BEN, INTENTS, App, Reply, Tenant

from wabery_server.limits import Allowance, Limit, take_all
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

    # For every pair: the requests between them are at most the quota and what has grown back meanwhile.
    least = math.inf
    for number, moment in enumerate(taken):
        ahead = number - moment / (window / quota)
        least = min(least, ahead)
        assert ahead - least + 1 <= quota + 1e-3


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
        "secret_polls_per_minute": 100_000,
        "public_reads_per_minute": 100_000,
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
async def test_mints_for_a_reference_are_limited_per_address_and_for_servers(
    app: App, acme: Tenant, globex: Tenant
) -> None:
    first, second = "203.0.113.7", "203.0.113.8"
    for ip in (first, "::ffff:203.0.113.7"):
        assert (await mint(app, acme.publishable_key, ip=ip)).status == 200

    too_much = await mint(app, acme.publishable_key, ip=first)
    by_server = [await mint(app, acme.secret_key, ip=first) for _ in range(3)]

    assert (too_much.status, too_much.body["error"]) == (429, "rate_limited")
    assert 1 <= int(too_much.headers["Retry-After"]) <= 1800
    assert [reply.status for reply in by_server] == [200, 200, 429]
    assert refused(by_server[2], "customer_reference") <= 1800
    assert (await mint(app, acme.publishable_key, ip=second)).status == 200
    assert (await mint(app, acme.publishable_key, "user_456", ip=first)).status == 200
    assert (await mint(app, globex.publishable_key, ip=first)).status == 200


async def test_no_header_tells_a_page_how_many_intents_a_reference_has(app: App, acme: Tenant) -> None:
    by_page = [await mint(app, acme.publishable_key) for _ in range(21)]
    by_server = await mint(app, acme.secret_key)

    assert [reply.status for reply in by_page] == [200] * 20 + [429]
    for reply in by_page:
        told = [*reply.headers.getall("RateLimit", []), *reply.headers.getall("RateLimit-Policy", [])]  # type: ignore[attr-defined]  # aiohttp's headers
        assert not any("customer_reference" in one for one in told)
    assert '"customer_reference"' in by_server.headers["RateLimit"]


# Several limits at once


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.floats(0, 20)), min_size=1, max_size=60
    ),
    st.integers(1, 5),
    st.integers(1, 12),
)
def test_a_refusal_by_one_limit_costs_nothing_with_the_others(
    story: list[tuple[str, str, float]], narrow_quota: int, wide_quota: int
) -> None:
    clock = Seconds()
    narrow, wide = Limit("narrow", narrow_quota, 60, now=clock), Limit("wide", wide_quota, 60, now=clock)
    lone = Limit("wide", wide_quota, 60, now=clock)

    for key, owner, pause in story:
        clock.now += pause
        before = narrow.peek((owner, key)), wide.peek(key)
        answer = take_all((narrow, (owner, key)), (wide, key))

        assert answer.allowed is all(before)
        if answer.allowed:
            assert lone.take(key).allowed  # the wide limit has counted exactly what was allowed
        elif before[0]:
            assert answer.name == "wide"
            assert narrow.peek((owner, key))  # given back
        else:
            assert answer.name == "narrow"
        assert wide.peek(key) == lone.peek(key)


def test_the_limit_with_the_fewest_requests_left_is_shown() -> None:
    clock = Seconds()
    narrow, wide = Limit("narrow", 5, 60, now=clock), Limit("wide", 20, 60, now=clock)
    quiet = Limit("quiet", 1, 60, silent=True, now=clock)
    for _ in range(16):
        wide.take("a")

    shown = [take_all((narrow, n), (wide, "a")).name for n in (1, 2)]
    silent = take_all((quiet, "a"), (narrow, 1))

    assert shown == ["wide", "wide"]
    assert take_all((narrow, 3), (wide, "b")).name == "narrow"
    assert silent.name == "narrow"
    assert take_all((quiet, "a"), (narrow, 1)).headers() == []


@pytest.mark.parametrize(
    "settings", [allowing(publishable_ip_per_minute=60, publishable_key_per_minute=600)], ids=[""]
)
async def test_one_address_cannot_use_up_a_publishable_key(app: App, acme: Tenant) -> None:
    flood = await asyncio.gather(
        *[mint(app, acme.publishable_key, f"user_{n}", "203.0.113.9") for n in range(640)]
    )
    other = await mint(app, acme.publishable_key, "user", "203.0.113.77")

    statuses = Counter(reply.status for reply in flood)
    assert set(statuses) == {200, 429}
    assert statuses[200] < 80
    assert other.status == 200


@pytest.mark.parametrize(
    "settings", [allowing(publishable_ip_per_minute=5, publishable_key_per_minute=50)], ids=[""]
)
async def test_one_ipv6_site_cannot_use_up_a_publishable_key(app: App, acme: Tenant) -> None:
    flood = [await mint(app, acme.publishable_key, f"user_{n}", f"2001:db8:1:{n:x}::1") for n in range(60)]
    other = await mint(app, acme.publishable_key, "user", "2001:db8:2::1")

    assert [reply.status for reply in flood] == [200] * 20 + [429] * 40
    assert refused(flood[-1], "ip_site") <= 3
    assert other.status == 200


@pytest.mark.parametrize("settings", [allowing(reference_per_hour=1, publishable_ip_per_minute=4)], ids=[""])
async def test_a_visitor_that_is_refused_uses_up_nothing(app: App, acme: Tenant) -> None:
    ip = "203.0.113.7"
    await mint(app, acme.publishable_key, ip=ip)

    refusals = [(await mint(app, acme.publishable_key, ip=ip)).status for _ in range(10)]
    others = [(await mint(app, acme.publishable_key, f"user_{n}", ip)).status for n in range(4)]

    assert refusals == [429] * 10
    assert others == [200, 200, 200, 429]


async def test_a_refused_mint_does_not_use_up_its_secret_key(app: App, acme: Tenant) -> None:
    app.service.per_reference = Limit("customer_reference", 1, 3600)
    app.service.per_secret_key = Limit("secret_key", 3, 1, now=Seconds())

    replies = [(await mint(app, acme.secret_key)).status for _ in range(9)]
    others = [(await mint(app, acme.secret_key, f"user_{n}")).status for n in range(3)]

    assert replies == [200] + [429] * 8
    assert others == [200, 200, 429]


# Reads


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


async def test_strangers_who_know_an_id_do_not_use_up_its_holder_s_reads_and_places(
    app: App, acme: Tenant
) -> None:
    app.service.polls = Limit("polls", 12, 60, now=Seconds())
    intent = await app.mint(acme.publishable_key)
    path = f"{INTENTS}/{intent['id']}"
    holder = {"x-wabery-client-secret": intent["client_secret"]}
    strangers = [
        asyncio.create_task(app.call("GET", f"{path}?wait=2", acme.publishable_key)) for _ in range(13)
    ]
    done, _ = await asyncio.wait(strangers, return_when=asyncio.FIRST_COMPLETED)

    assert {task.result().status for task in done} == {429}
    assert (await app.call("GET", f"{path}?wait=1", acme.publishable_key, headers=holder)).status == 200
    assert (await app.call("GET", f"{path}?wait=1", acme.secret_key)).status == 200
    statuses = sorted([reply.status for reply in await asyncio.gather(*strangers)])
    assert statuses == [200] * 10 + [429] * 3


async def test_a_server_reads_an_intent_so_often(app: App, acme: Tenant, globex: Tenant) -> None:
    app.service.secret_polls = Limit("polls", 2, 60, now=Seconds())
    intent = await app.mint(acme.secret_key)
    path = f"{INTENTS}/{intent['id']}"

    replies = [await app.call("GET", path, acme.secret_key) for _ in range(3)]

    assert [reply.status for reply in replies] == [200, 200, 429]
    assert refused(replies[2], "polls") == 30
    assert (await app.call("GET", path + "/events", acme.secret_key)).status == 429
    assert (await app.call("GET", path, acme.publishable_key)).status == 200
    assert (await app.call("GET", path, globex.secret_key)).status == 404


@pytest.mark.parametrize("settings", [allowing(public_reads_per_minute=5)], ids=[""])
async def test_an_address_reads_only_so_many_ids(app: App, acme: Tenant, globex: Tenant) -> None:
    guesses = [f"{INTENTS}/reg_{n:026}" for n in range(7)]
    here, there = {"X-Forwarded-For": "203.0.113.7"}, {"X-Forwarded-For": "203.0.113.8"}
    intent = await app.mint(acme.secret_key)

    keys = [acme.publishable_key, globex.publishable_key]
    replies = [await app.call("GET", path, keys[n % 2], headers=here) for n, path in enumerate(guesses)]

    assert [reply.status for reply in replies] == [404] * 5 + [429] * 2
    assert refused(replies[5], "public_reads") == 12
    stream = f"{INTENTS}/{intent['id']}/events"
    secret = {**here, "x-wabery-client-secret": intent["client_secret"]}
    for change, body in (("cancel", {}), ("extend", {}), ("opened", {"via": "qr"})):
        path = f"{INTENTS}/{intent['id']}/{change}"
        reply = await app.call("POST", path, acme.publishable_key, json=body, headers=secret)
        assert refused(reply, "public_reads") == 12
    assert (await app.call("GET", stream, acme.publishable_key, headers=here)).status == 429
    assert (await app.call("GET", guesses[0], acme.publishable_key, headers=there)).status == 404
    assert (await app.call("GET", guesses[0], acme.secret_key, headers=here)).status == 404


@pytest.mark.parametrize("settings", [allowing(polls_per_minute=1, public_reads_per_minute=4)], ids=[""])
async def test_polling_one_intent_too_often_leaves_the_others_readable(app: App, acme: Tenant) -> None:
    one, *others = [f"{INTENTS}/{(await app.mint(acme.secret_key))['id']}" for _ in range(5)]

    polls = [(await app.call("GET", one, acme.publishable_key)).status for _ in range(8)]
    reads = [(await app.call("GET", path, acme.publishable_key)).status for path in others]

    assert polls == [200] + [429] * 7
    assert reads == [200, 200, 200, 429]


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
