"""Deliveries as the far side sees them, and what becomes of everything the far side may do."""

import asyncio
import base64
import gzip
import json
import os
import resource
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import msgspec
import pytest
import standardwebhooks
import svix.webhooks
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wabery_server import __version__, webhooks
from wabery_server.webhooks import LOOPBACK, Limits, Outcome, Policy, Poster, guard, schedule

VECTORS = json.loads((Path(__file__).parents[2] / "sdks/conformance/signatures.json").read_text("utf-8"))
EVENT = "evt_00000000000000000000000000"
BODY = b'{"event":"participant.joined","payload":{"customer_reference":"zo\xc3\xab"},"sentAt":"2026-11-22T12:00:00.000Z"}'
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
HERE = Policy(allow_http=True, allow_ports=None, allow_networks=LOOPBACK)


# Signatures


def named(vector: dict[str, Any]) -> str:
    return str(vector["name"])


def body_of(vector: dict[str, Any]) -> bytes:
    if "body_base64" in vector:
        return base64.b64decode(vector["body_base64"])
    return str(vector["body"]).encode()


@pytest.mark.parametrize("vector", VECTORS["signed"], ids=named)
def test_headers_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    headers = webhooks.headers(vector["secrets"], vector["id"], body_of(vector), vector["timestamp"])

    assert headers == vector["headers"]


@pytest.mark.parametrize("vector", VECTORS["secrets"], ids=named)
def test_a_secret_of_any_form_has_one_that_libraries_take(vector: dict[str, Any]) -> None:
    standard = webhooks.standard_secret(vector["secret"])

    assert standard == vector["standard_secret"]
    assert base64.b64decode(standard.removeprefix("whsec_")).hex() == vector["key_hex"]


def test_a_moment_and_its_unix_seconds_sign_alike() -> None:
    secrets = [webhooks.new_secret()]

    by_moment = webhooks.headers(secrets, EVENT, BODY, NOON + timedelta(microseconds=999_999))
    by_seconds = webhooks.headers(secrets, EVENT, BODY, int(NOON.timestamp()))

    assert by_moment == by_seconds


def test_a_new_secret_is_32_random_bytes() -> None:
    first, second = webhooks.new_secret(), webhooks.new_secret()

    assert len(base64.b64decode(first.removeprefix("whsec_"), validate=True)) == 32
    assert first != second
    assert webhooks.standard_secret(first) == first


SECRETS = st.one_of(
    st.text(min_size=1),
    st.binary(min_size=1, max_size=64).map(lambda key: "whsec_" + base64.b64encode(key).decode()),
)


@given(st.lists(SECRETS, min_size=1, max_size=3), st.text())
def test_whatever_the_secrets_and_the_body_other_peoples_libraries_verify_it(
    secrets: list[str], text: str
) -> None:
    body = text.encode()

    headers = webhooks.headers(secrets, EVENT, body, datetime.now(UTC))

    for secret in secrets:
        form = webhooks.standard_secret(secret)
        standardwebhooks.Webhook(form).verify(body, headers, json_parse=False)
        svix.webhooks.Webhook(form).verify(body, headers)


@given(SECRETS, st.binary(min_size=1))
def test_a_changed_body_is_not_verified(secret: str, body: bytes) -> None:
    headers = webhooks.headers([secret], EVENT, body, NOON)

    changed = webhooks.headers([secret], EVENT, body + b" ", NOON)

    assert headers["webhook-signature"] != changed["webhook-signature"]
    assert headers["x-wabery-signature"] != changed["x-wabery-signature"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize(
    "secret", [VECTORS["secrets"][1]["secret"], "It's a Secret to Everybody", "grüße, 世界 🔑"]
)
def test_openssl_computes_the_contracts_header(secret: str) -> None:
    command = ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{secret.encode().hex()}"]

    printed = subprocess.run(command, input=BODY, capture_output=True, check=True).stdout.decode()

    headers = webhooks.headers([secret], EVENT, BODY, NOON)
    assert headers["x-wabery-signature"] == "sha256=" + printed.split()[-1]


# The schedule

PUBLISHED = [
    "2s",
    "12s",
    "42s",
    "2m42s",
    "12m42s",
    "42m42s",
    "2h42m42s",
    "7h42m42s",
    "17h42m42s",
    "31h42m42s",
]
PUBLISHED += ["51h42m42s", "75h42m42s"]


def since_the_first(random: float) -> list[timedelta]:
    now, moments = NOON, []
    for attempt in range(1, 13):
        due = webhooks.next_due(attempt, now, random)
        assert due is not None
        now = due
        moments.append(now - NOON)
    return moments


def in_words(time: timedelta) -> str:
    minutes, seconds = divmod(int(time.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "m"), (seconds, "s")]
    return "".join(f"{number}{unit}" for number, unit in parts if number)


def test_attempts_come_no_earlier_than_published() -> None:
    assert [in_words(time) for time in since_the_first(random=0)] == PUBLISHED


def test_with_the_most_jitter_the_last_attempt_comes_after_90_hours_51() -> None:
    assert in_words(since_the_first(random=1)[-1]) == "90h51m14s"


@given(st.integers(1, 12), st.floats(0, 1, exclude_max=True))
def test_jitter_is_upwards_and_a_fifth_at_most(attempt: int, random: float) -> None:
    plain, delay = webhooks.delay_after(attempt, 0), webhooks.delay_after(attempt, random)

    assert plain is not None
    assert delay is not None
    assert plain <= delay <= plain * 1.2


def test_nothing_follows_the_thirteenth_attempt() -> None:
    assert webhooks.ATTEMPTS == 13
    assert webhooks.delay_after(12, 0.5) is not None
    assert webhooks.delay_after(13, 0.5) is None
    assert webhooks.next_due(13, NOON, 0.5, timedelta(seconds=1)) is None


@pytest.mark.parametrize(
    ("attempt", "hint", "wait"),
    [
        (1, None, timedelta(seconds=2)),
        (1, timedelta(minutes=1), timedelta(minutes=1)),
        (4, timedelta(minutes=1), timedelta(minutes=2)),
        (1, timedelta(days=9), timedelta(hours=24)),
        (1, timedelta(seconds=-5), timedelta(seconds=2)),
    ],
)
def test_a_hint_makes_the_next_attempt_later_and_never_earlier(
    attempt: int, hint: timedelta | None, wait: timedelta
) -> None:
    assert webhooks.next_due(attempt, NOON, 0, hint) == NOON + wait


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("120", timedelta(minutes=2)),
        ("86401", timedelta(hours=24)),
        ("9" * 5000, timedelta(hours=24)),
        ("Sun, 22 Nov 2026 12:05:00 GMT", timedelta(minutes=5)),
        ("Sunday, 22-Nov-26 12:05:00 GMT", timedelta(minutes=5)),
        ("Sun Nov 22 12:05:00 2026", timedelta(minutes=5)),
        ("Sun, 22 Nov 2026 14:05:00 +0200", timedelta(minutes=5)),
        ("Sun, 22 Nov 2099 12:05:00 GMT", timedelta(hours=24)),
        ("Sun, 22 Nov 2026 11:59:59 GMT", None),
        ("0", None),
        ("-5", None),
        ("1.5", None),
        ("+5", None),
        ("١٢٠", None),
        ("soon", None),
        ("", None),
        ("Sun, 99 Nov 2026 12:05:00 GMT", None),
        ("Sun, 22 Nov 2026 12:05:00 +" + "9" * 40, None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_anything_else_is_nothing(
    value: str, wait: timedelta | None
) -> None:
    assert schedule.retry_after(value, NOON) == wait


@given(st.text())
def test_no_retry_after_is_too_strange(value: str) -> None:
    wait = schedule.retry_after(value, NOON)

    assert wait is None or timedelta(0) < wait <= timedelta(hours=24)


# The far side

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class FarSide:
    """Listens on a real socket, keeps what it was sent, and answers with `reply` or as `reply` does."""

    def __init__(self, reply: bytes | Serve) -> None:
        self._reply = reply
        self.port = 0
        self.connections = 0
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.left = asyncio.Event()
        """The other end has closed a connection."""
        self._open: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open[asyncio.current_task()] = writer
        try:
            while True:
                await self._take(reader)
                if callable(self._reply):
                    await self._reply(reader, writer)
                else:
                    writer.write(self._reply)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            self.left.set()
        with suppress(ConnectionError, ssl.SSLError):
            writer.close()
            await writer.wait_closed()

    async def close(self) -> None:
        for writer in self._open.values():
            writer.transport.abort()
        await asyncio.gather(*filter(None, self._open))

    async def _take(self, reader: asyncio.StreamReader) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.requests.append((first, headers, await reader.readexactly(int(headers["content-length"]))))


class Start(Protocol):
    async def __call__(self, reply: bytes | Serve, tls: ssl.SSLContext | None = None) -> FarSide: ...


@pytest.fixture
async def far_side() -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def start(reply: bytes | Serve, tls: ssl.SSLContext | None = None) -> FarSide:
            side = FarSide(reply)
            server = await asyncio.start_server(side.serve, "127.0.0.1", 0, ssl=tls)
            side.port = server.sockets[0].getsockname()[1]
            stack.push_async_callback(side.close)
            stack.callback(server.close)
            return side

        yield start


@pytest.fixture
async def poster() -> AsyncIterator[Poster]:
    async with Poster(HERE) as made:
        yield made


@pytest.fixture
async def hasty() -> AsyncIterator[Poster]:
    """Gives up soon, for the tests that wait until it does."""
    soon = timedelta(seconds=0.2)
    async with Poster(HERE, limits=Limits(dns=soon, connect=soon, total=soon)) as made:
        yield made


def http(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


OK = http("200 OK")


async def for_ever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says no more until the other end leaves."""
    await reader.readexactly(1)


# What is sent


async def test_the_very_bytes_are_posted_with_the_headers_given(far_side: Start, poster: Poster) -> None:
    receiver = await far_side(OK)
    signed = webhooks.headers([webhooks.new_secret(), webhooks.new_secret()], EVENT, BODY, NOON)

    result = await poster.post(receiver.url + "/a%2Fb?c=%2B&d=é", BODY, signed)

    [(first, headers, body)] = receiver.requests
    assert result.outcome is Outcome.DELIVERED
    assert first == "POST /hooks/a%2Fb?c=%2B&d=%C3%A9 HTTP/1.1"
    assert body == BODY
    assert headers == {
        "host": f"127.0.0.1:{receiver.port}",
        "content-type": "application/json",
        "content-length": str(len(BODY)),
        "user-agent": f"Wabery/{__version__}",
        "accept": "*/*",
        "accept-encoding": "identity",
        **signed,
    }


async def test_connections_are_kept_and_reused(far_side: Start, poster: Poster) -> None:
    receiver = await far_side(http("200 OK", body=b"x" * 50_000))

    results = [await poster.post(receiver.url, BODY, {}) for _ in range(5)]

    assert {result.outcome for result in results} == {Outcome.DELIVERED}
    assert receiver.connections == 1


async def test_no_attempt_waits_for_another(far_side: Start, poster: Poster) -> None:
    at_once, arrived, everybody = 150, 0, asyncio.Event()

    async def wait_for_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == at_once:
            everybody.set()
        await everybody.wait()
        writer.write(OK)

    receiver = await far_side(wait_for_all)

    results = await asyncio.gather(*(poster.post(receiver.url, BODY, {}) for _ in range(at_once)))

    assert {result.outcome for result in results} == {Outcome.DELIVERED}
    assert receiver.connections == at_once


async def test_cookies_are_neither_kept_nor_shared(far_side: Start, poster: Poster) -> None:
    receiver = await far_side(http("200 OK", "Set-Cookie: session=1; Path=/"))

    await poster.post(receiver.url, BODY, {})
    await poster.post(receiver.url, BODY, {})

    assert [headers.get("cookie") for _, headers, _ in receiver.requests] == [None, None]


async def test_proxies_of_the_environment_are_not_used(
    far_side: Start, poster: Poster, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = await far_side(OK)
    proxy = await far_side(http("502 Bad Gateway"))
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "")

    result = await poster.post(receiver.url, BODY, {})

    assert result.outcome is Outcome.DELIVERED
    assert proxy.connections == 0


# What the answer means


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("200 OK", Outcome.DELIVERED),
        ("201 Created", Outcome.DELIVERED),
        ("202 Accepted", Outcome.DELIVERED),
        ("204 No Content", Outcome.DELIVERED),
        ("299 Fine", Outcome.DELIVERED),
        ("300 Multiple Choices", Outcome.REDIRECT),
        ("301 Moved Permanently", Outcome.REDIRECT),
        ("304 Not Modified", Outcome.REDIRECT),
        ("308 Permanent Redirect", Outcome.REDIRECT),
        ("400 Bad Request", Outcome.REJECTED),
        ("401 Unauthorized", Outcome.REJECTED),
        ("404 Not Found", Outcome.REJECTED),
        ("410 Gone", Outcome.GONE),
        ("429 Too Many Requests", Outcome.THROTTLED),
        ("500 Internal Server Error", Outcome.REJECTED),
        ("502 Bad Gateway", Outcome.REJECTED),
        ("503 Service Unavailable", Outcome.THROTTLED),
        ("599 Whatever", Outcome.REJECTED),
        ("999 Whatever", Outcome.REJECTED),
    ],
)
async def test_the_status_decides(far_side: Start, poster: Poster, status: str, outcome: Outcome) -> None:
    receiver = await far_side(http(status))

    result = await poster.post(receiver.url, BODY, {})

    assert (result.outcome, result.status) == (outcome, int(status[:3]))
    assert (result.error, result.retry_after) == (None, None)
    assert result.address == "127.0.0.1"
    assert result.elapsed > timedelta(0)


async def test_an_informational_answer_is_waited_out(far_side: Start, poster: Poster) -> None:
    receiver = await far_side(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)

    result = await poster.post(receiver.url, BODY, {})

    assert result.status == 200


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
async def test_retry_after_comes_as_seconds(far_side: Start, poster: Poster, status: str) -> None:
    receiver = await far_side(http(status, "Retry-After: 120"))

    result = await poster.post(receiver.url, BODY, {})

    assert (result.outcome, result.retry_after) == (Outcome.THROTTLED, timedelta(minutes=2))


async def test_retry_after_comes_as_a_date(far_side: Start, poster: Poster) -> None:
    moment = datetime.now(UTC) + timedelta(hours=1)
    receiver = await far_side(
        http("429 Too Many Requests", f"Retry-After: {format_datetime(moment, usegmt=True)}")
    )

    result = await poster.post(receiver.url, BODY, {})

    assert result.retry_after is not None
    assert timedelta(minutes=55) < result.retry_after <= timedelta(hours=1)


@pytest.mark.parametrize("headers", [["Retry-After: -5"], ["Retry-After: soon"], ["Retry-After:"], []])
async def test_a_retry_after_that_says_nothing_is_none(
    far_side: Start, poster: Poster, headers: list[str]
) -> None:
    receiver = await far_side(http("503 Service Unavailable", *headers))

    result = await poster.post(receiver.url, BODY, {})

    assert (result.outcome, result.retry_after) == (Outcome.THROTTLED, None)


async def test_retry_after_of_another_failure_is_ignored(far_side: Start, poster: Poster) -> None:
    receiver = await far_side(http("500 Internal Server Error", "Retry-After: 3600"))

    result = await poster.post(receiver.url, BODY, {})

    assert (result.outcome, result.retry_after) == (Outcome.REJECTED, None)


@pytest.mark.parametrize(
    ("status", "header", "outcome"),
    [
        ("500 Oops", "webhook-delivery: abort-message", Outcome.ABORTED),
        ("404 Not Found", "Webhook-Delivery:  Abort-Message ", Outcome.ABORTED),
        ("503 Later", "webhook-delivery: abort-message", Outcome.ABORTED),
        ("302 Found", "webhook-delivery: abort-message", Outcome.ABORTED),
        ("200 OK", "webhook-delivery: abort-message", Outcome.DELIVERED),
        ("410 Gone", "webhook-delivery: abort-message", Outcome.GONE),
        ("500 Oops", "webhook-delivery: something-else", Outcome.REJECTED),
    ],
)
async def test_a_receiver_can_end_one_delivery(
    far_side: Start, poster: Poster, status: str, header: str, outcome: Outcome
) -> None:
    receiver = await far_side(http(status, header))

    result = await poster.post(receiver.url, BODY, {})

    assert result.outcome is outcome


# What is kept of the answer


async def test_the_answer_is_kept_for_the_log(far_side: Start, poster: Poster) -> None:
    receiver = await far_side(
        http("400 Bad Request", "X-Trace: abc", "X-Twice: 1", "X-Twice: 2", body=b'{"no": 1}')
    )

    result = await poster.post(receiver.url, BODY, {})

    assert result.response_body == b'{"no": 1}'
    assert result.response_headers == (
        ("X-Trace", "abc"),
        ("X-Twice", "1"),
        ("X-Twice", "2"),
        ("Content-Length", "9"),
    )
    assert json.loads(msgspec.json.encode(result))["outcome"] == "rejected"


async def test_16_kib_of_an_answer_are_kept(far_side: Start, poster: Poster) -> None:
    receiver = await far_side(http("500 Oops", body=bytes(range(256)) * 200))

    result = await poster.post(receiver.url, BODY, {})

    assert result.response_body == bytes(range(256)) * 64


async def test_an_endless_answer_is_dropped_and_its_status_counts(far_side: Start, poster: Poster) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            await writer.drain()

    receiver = await far_side(endless)

    result = await poster.post(receiver.url, BODY, {})
    await receiver.left.wait()

    assert result.outcome is Outcome.DELIVERED
    assert result.response_body == b"x" * 16_384


async def test_a_gzip_bomb_stays_packed(far_side: Start, poster: Poster) -> None:
    bomb = gzip.compress(bytes(20_000_000))
    receiver = await far_side(http("200 OK", "Content-Encoding: gzip", body=bomb))

    result = await poster.post(receiver.url, BODY, {})

    assert result.outcome is Outcome.DELIVERED
    assert result.response_body == bomb[:16_384]


async def test_response_headers_are_text_that_a_database_takes_and_16_kib_at_most(
    far_side: Start, poster: Poster
) -> None:
    many = [f"X-{number}: {'é' * 1000}" for number in range(60)]
    receiver = await far_side(http("200 OK", "X-Bytes: \xff\xfe", *many))

    result = await poster.post(receiver.url, BODY, {})

    assert result.response_headers[0] == ("X-Bytes", "\ufffd\ufffd")
    assert len(result.response_headers) == 17
    assert msgspec.json.encode(result)


# What goes wrong


def test_the_limits_are_the_published_ones() -> None:
    limits = Limits()

    assert (limits.dns, limits.connect) == (timedelta(seconds=3), timedelta(seconds=5))
    assert (limits.total, limits.read, limits.keep) == (timedelta(seconds=15), 64 * 1024, 16 * 1024)
    assert timedelta(seconds=60) >= Poster.DNS_TTL


async def test_silence_is_a_timeout(far_side: Start, hasty: Poster) -> None:
    receiver = await far_side(for_ever)

    result = await hasty.post(receiver.url, BODY, {})

    assert (result.outcome, result.status) == (Outcome.TIMEOUT, None)
    assert result.error == "no complete answer in time"


async def test_a_handshake_that_never_ends_is_a_timeout(far_side: Start) -> None:
    receiver = await far_side(OK)  # speaks no TLS, and waits for the end of the headers
    limits = Limits(dns=timedelta(seconds=0.1), connect=timedelta(seconds=0.1))

    async with Poster(HERE, limits=limits) as poster:
        result = await poster.post(receiver.url.replace("http", "https"), BODY, {})

    assert (result.outcome, result.error) == (Outcome.TIMEOUT, "no connection in time")


async def test_a_refused_connection(poster: Poster) -> None:
    with socket.socket() as closed:  # bound and not listening
        closed.bind(("127.0.0.1", 0))
        result = await poster.post(f"http://127.0.0.1:{closed.getsockname()[1]}/", BODY, {})

    assert (result.outcome, result.error) == (Outcome.CONNECT, "Connection refused")


def reset(writer: asyncio.StreamWriter) -> None:
    """Closes with RST instead of FIN."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize("with_reset", [True, False], ids=["reset", "closed"])
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1", b"HTTP/1.1 20", b"HTTP/1.1 100 Continue\r\n\r\nHTTP"])
async def test_a_connection_that_breaks_before_a_status_line_is_a_reset(
    far_side: Start, poster: Poster, sent: bytes, with_reset: bool
) -> None:
    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()
        if with_reset:
            reset(writer)
        else:
            writer.close()
        await for_ever(reader, writer)

    receiver = await far_side(break_off)

    result = await poster.post(receiver.url, BODY, {})

    assert (result.outcome, result.status) == (Outcome.RESET, None)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x50",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
        b"200 OK\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n" + b"Link: x\r\n" * 10_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 5_000,
    ],
)
async def test_what_is_not_http_is_a_protocol_error(far_side: Start, poster: Poster, answer: bytes) -> None:
    receiver = await far_side(answer)

    result = await poster.post(receiver.url, BODY, {})

    assert (result.outcome, result.status) == (Outcome.PROTOCOL, None)
    assert result.error is not None
    assert result.error.startswith("the answer is not HTTP")
    assert result.error.isprintable()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([b"", b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\n", OK[:-2] + b"x: ", OK]),
    st.binary(max_size=200),
)
async def test_whatever_the_far_side_sends_there_is_a_result(
    far_side: Start, start: bytes, rest: bytes
) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start + rest)
        await writer.drain()
        raise ConnectionError

    receiver = await far_side(say)

    async with Poster(HERE) as poster:
        result = await poster.post(receiver.url, BODY, {})

    assert (result.outcome is Outcome.DELIVERED) == start.startswith(b"HTTP/1.1 200 ")
    assert msgspec.json.encode(result)


async def test_running_out_of_descriptors_is_our_own_fault(far_side: Start, poster: Poster) -> None:
    receiver = await far_side(OK)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)

    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        result = await poster.post(receiver.url, BODY, {})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert (result.outcome, result.error) == (Outcome.INTERNAL, "Too many open files")
    assert (await poster.post(receiver.url, BODY, {})).outcome is Outcome.DELIVERED


async def test_a_cancelled_attempt_drops_its_connection(far_side: Start, poster: Poster) -> None:
    asked = asyncio.Event()

    async def think(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await for_ever(reader, writer)

    receiver = await far_side(think)
    attempt = asyncio.create_task(poster.post(receiver.url, BODY, {}))
    await asked.wait()

    attempt.cancel()

    with pytest.raises(asyncio.CancelledError):
        await attempt
    await receiver.left.wait()


async def test_an_unsafe_url_is_blocked_with_the_sentence_of_the_guard(poster: Poster) -> None:
    result = await poster.post("https://ana:pw@hooks.acme.test/", BODY, {})

    assert (result.outcome, result.status) == (Outcome.BLOCKED, None)
    assert result.error == "The URL must not contain a user name or password."


# TLS


def certificate(
    tmp_path: Path, *, ends: timedelta, host: str = "127.0.0.1"
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A self-signed certificate: the context that serves it, and one that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "wabery test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=30))
        .not_valid_after(now + ends)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "certificate.pem"
    pem.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    serves = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serves.load_cert_chain(pem)
    return serves, ssl.create_default_context(cafile=str(pem))


async def test_https_to_a_trusted_certificate_delivers(far_side: Start, tmp_path: Path) -> None:
    serves, trusts = certificate(tmp_path, ends=timedelta(days=1))
    receiver = await far_side(OK, tls=serves)

    async with Poster(HERE, tls=trusts) as poster:
        result = await poster.post(receiver.url.replace("http", "https"), BODY, {})

    assert (result.outcome, result.address) == (Outcome.DELIVERED, "127.0.0.1")


@pytest.mark.parametrize(
    ("ends", "host", "trusted", "error"),
    [
        (timedelta(days=-1), "127.0.0.1", True, "certificate has expired"),
        (timedelta(days=1), "127.0.0.2", True, "IP address mismatch"),
        (timedelta(days=1), "127.0.0.1", False, "self-signed certificate"),
    ],
)
async def test_a_bad_certificate_is_not_talked_to(
    far_side: Start, tmp_path: Path, ends: timedelta, host: str, trusted: bool, error: str
) -> None:
    serves, trusts = certificate(tmp_path, ends=ends, host=host)
    receiver = await far_side(OK, tls=serves)

    async with Poster(HERE, tls=trusts if trusted else None) as poster:
        result = await poster.post(receiver.url.replace("http", "https"), BODY, {})

    assert result.outcome is Outcome.TLS
    assert result.error is not None
    assert error in result.error
    assert receiver.requests == []


async def test_https_to_a_port_that_speaks_http_is_a_tls_failure(poster: Poster) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        attempt = asyncio.create_task(poster.post(url, BODY, {}))
        connection, _ = await loop.sock_accept(listener)
        with connection:
            await loop.sock_recv(connection, 1)
            await loop.sock_sendall(connection, http("400 Bad Request"))
            result = await attempt

    assert result.outcome is Outcome.TLS


# Names

Infos = Sequence[aiohttp.AddrInfoType]


def loopback() -> Infos:
    return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 0))]


def dns(known: dict[str, Callable[[], Infos]]) -> tuple[guard.Lookup, list[str]]:
    """A DNS that does as told for the names it knows, knows no other, and notes who was asked for."""
    asked: list[str] = []

    def look_up(host: str) -> Infos:
        asked.append(host)
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return known[host]()

    return look_up, asked


def again() -> Infos:
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


async def test_a_name_is_looked_up_once_for_many_deliveries(far_side: Start) -> None:
    receiver = await far_side(OK[:-2] + b"Connection: close\r\n\r\n")
    lookup, asked = dns({"hooks.acme.test": loopback})

    async with Poster(HERE, lookup=lookup) as poster:
        url = f"http://hooks.acme.test:{receiver.port}/"
        results = await asyncio.gather(*(poster.post(url, BODY, {}) for _ in range(20)))

    assert {result.outcome for result in results} == {Outcome.DELIVERED}
    assert receiver.requests[0][1]["host"] == f"hooks.acme.test:{receiver.port}"
    assert asked == ["hooks.acme.test"]


async def test_a_name_in_other_letters_is_looked_up_in_idna_form() -> None:
    lookup, asked = dns({})

    async with Poster(HERE, lookup=lookup) as poster:
        await poster.post("http://bücher.example/", BODY, {})

    assert asked == ["xn--bcher-kva.example"]


async def test_a_name_that_does_not_exist() -> None:
    lookup, asked = dns({})

    async with Poster(HERE, lookup=lookup) as poster:
        result = await poster.post("http://gone.acme.test/", BODY, {})

    assert result.outcome is Outcome.DNS
    assert result.error == "gone.acme.test does not resolve: Name or service not known"
    assert asked == ["gone.acme.test"]


async def test_a_name_whose_servers_fail_is_the_endpoints_fault_while_our_resolver_works() -> None:
    lookup, _ = dns({"broken.acme.test": again})

    async with Poster(HERE, lookup=lookup) as poster:
        result = await poster.post("http://broken.acme.test/", BODY, {})

    assert result.outcome is Outcome.DNS


async def test_a_resolver_that_answers_nobody_is_our_own_fault() -> None:
    lookup, _ = dns({"hooks.acme.test": again, guard.Resolver.PROBE: again})

    async with Poster(HERE, lookup=lookup) as poster:
        result = await poster.post("http://hooks.acme.test/", BODY, {})

    assert result.outcome is Outcome.INTERNAL
    assert result.error == "the resolver of this machine answers no name"


async def test_a_look_up_that_fails_on_this_machine_is_our_own_fault() -> None:
    def out_of_files() -> Infos:
        raise OSError(24, "Too many open files")

    lookup, _ = dns({"hooks.acme.test": out_of_files})

    async with Poster(HERE, lookup=lookup) as poster:
        result = await poster.post("http://hooks.acme.test/", BODY, {})

    assert result.outcome is Outcome.INTERNAL


async def test_a_name_whose_servers_are_silent_takes_one_thread_however_often_it_is_asked_for() -> None:
    release = threading.Event()

    def silent() -> Infos:
        release.wait()
        return loopback()

    lookup, asked = dns({"silent.acme.test": silent})
    limits = Limits(dns=timedelta(seconds=0.1))

    async with Poster(HERE, limits=limits, lookup=lookup) as poster:
        first = await poster.post("http://silent.acme.test/", BODY, {})
        rest = await asyncio.gather(*(poster.post("http://silent.acme.test/", BODY, {}) for _ in range(20)))
        release.set()

    assert {result.outcome for result in (first, *rest)} == {Outcome.DNS}
    assert first.error == "silent.acme.test got no DNS answer within 0.1 s"
    assert asked.count("silent.acme.test") == 1


async def test_running_out_of_look_up_threads_is_our_own_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def silent() -> Infos:
        release.wait()
        return loopback()

    monkeypatch.setattr(guard.Resolver, "THREADS", 1)
    lookup, _ = dns({"silent.acme.test": silent, "hooks.acme.test": loopback})

    async with Poster(HERE, limits=Limits(dns=timedelta(seconds=0.1)), lookup=lookup) as poster:
        _, queued = await asyncio.gather(
            poster.post("http://silent.acme.test/", BODY, {}),
            poster.post("http://hooks.acme.test/", BODY, {}),
        )
        release.set()

    assert queued.outcome is Outcome.INTERNAL
    assert queued.error == "all 1 look-up threads are taken"


# Names that never answer


def silent_until(release: threading.Event) -> Callable[[], Infos]:
    def silent() -> Infos:
        release.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    return silent


@pytest.mark.hostile
@pytest.mark.parametrize("share", [None, ("proj_1", "proj_2")], ids=["unrelated", "one project"])
async def test_64_names_that_never_answer_delay_no_other_and_are_the_endpoints_failure(
    far_side: Start, share: tuple[str, str] | None
) -> None:
    receiver = await far_side(OK)
    release = threading.Event()
    names = [f"silent-{number}.acme.test" for number in range(64)]
    lookup, asked = dns({**dict.fromkeys(names, silent_until(release)), "hooks.globex.test": loopback})

    async with Poster(HERE, limits=Limits(dns=timedelta(seconds=1)), lookup=lookup) as poster:
        silent = [
            asyncio.create_task(poster.post(f"http://{name}/", BODY, {}, share=share or (name, name)))
            for name in names
        ]
        while not asked:  # noqa: ASYNC110  # a look-up happens in a thread
            await asyncio.sleep(0)
        good = await poster.post(
            f"http://hooks.globex.test:{receiver.port}/", BODY, {}, share=("proj_3", "proj_3")
        )
        already_over = [attempt for attempt in silent if attempt.done()]
        failed = await asyncio.gather(*silent)
        release.set()

    assert good.outcome is Outcome.DELIVERED
    assert already_over == []
    assert {result.outcome for result in failed} == {Outcome.DNS}
    if share:
        assert len({name for name in asked if name in names}) <= 4


async def test_names_that_never_answer_leave_threads_to_those_that_have_answered(
    far_side: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = await far_side(OK)
    release = threading.Event()
    monkeypatch.setattr(guard.Resolver, "THREADS", 8)
    monkeypatch.setattr(Poster, "DNS_TTL", timedelta(0))
    names = [f"silent-{number}.acme.test" for number in range(40)]
    lookup, asked = dns({**dict.fromkeys(names, silent_until(release)), "hooks.globex.test": loopback})
    url = f"http://hooks.globex.test:{receiver.port}/"

    async with Poster(HERE, limits=Limits(dns=timedelta(seconds=1)), lookup=lookup) as poster:
        await poster.post(url, BODY, {})
        silent = [asyncio.create_task(poster.post(f"http://{name}/", BODY, {})) for name in names]
        while len(asked) < 7:  # noqa: ASYNC110  # a look-up happens in a thread
            await asyncio.sleep(0)
        result = await poster.post(url, BODY, {})
        for attempt in silent:
            attempt.cancel()
        release.set()
        await asyncio.gather(*silent, return_exceptions=True)

    assert result.outcome is Outcome.DELIVERED


async def test_a_name_that_did_not_answer_fails_at_once_for_a_while() -> None:
    release = threading.Event()
    lookup, asked = dns({"silent.acme.test": silent_until(release)})
    limits = Limits(dns=timedelta(seconds=0.1))

    async with Poster(HERE, limits=limits, lookup=lookup) as poster:
        await poster.post("http://silent.acme.test/", BODY, {})
        remembered = await poster.post("http://silent.acme.test/", BODY, {})
        release.set()

    assert remembered.outcome is Outcome.DNS
    assert remembered.error == "silent.acme.test got no DNS answer within 0.1 s a moment ago"
    assert asked.count("silent.acme.test") == 1


async def test_a_project_gets_its_slots_back_when_its_look_ups_end(far_side: Start) -> None:
    receiver = await far_side(OK[:-2] + b"Connection: close\r\n\r\n")
    release = threading.Event()
    names = [f"silent-{number}.acme.test" for number in range(20)]
    lookup, _ = dns({**dict.fromkeys(names, silent_until(release)), "hooks.acme.test": loopback})
    share, url = ("proj_1", "proj_1"), f"http://hooks.acme.test:{receiver.port}/"

    async with Poster(HERE, limits=Limits(dns=timedelta(seconds=0.2)), lookup=lookup) as poster:
        await asyncio.gather(*(poster.post(f"http://{name}/", BODY, {}, share=share) for name in names))
        blocked = await poster.post(url, BODY, {}, share=share)
        release.set()
        async with asyncio.timeout(20):
            while (result := await poster.post(url, BODY, {}, share=share)).outcome is Outcome.DNS:  # noqa: ASYNC110  # a thread ends
                await asyncio.sleep(0.01)

    assert (blocked.outcome, blocked.error) == (
        Outcome.DNS,
        "4 other names of the same project do not answer",
    )
    assert result.outcome is Outcome.DELIVERED


def test_a_look_up_that_hangs_does_not_keep_the_process_alive() -> None:
    code = """
import asyncio, time
from datetime import timedelta
from wabery_server.webhooks import Limits, Policy, Poster

async def main():
    policy = Policy(allow_http=True)
    async with Poster(policy, limits=Limits(dns=timedelta(seconds=0.1)), lookup=lambda _: time.sleep(60)) as poster:
        print((await poster.post("http://silent.acme.test/", b"", {})).outcome)

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=40, check=True)

    assert done.stdout.decode().strip() == "internal"
