"""The HTTP server by itself: what is one request, where it ends, and what is answered, byte by byte on real sockets."""

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any, NamedTuple

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from wire import Http, Reply, client, cut, echo, get, post, replies, said, serving
from world import INTENTS, App, Tenant

from wabery_server.web import client_address

INNER = b"GET /inner HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with serving() as running:
        yield running


# Framing


class Row(NamedTuple):
    """Bytes in, statuses and bodies out."""

    name: str
    sent: bytes
    statuses: list[int]
    bodies: list[str] | None = None
    """What the application read, of each request that it answered with 200."""


CHUNKED = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(INNER)
UPGRADE = b"Connection: Upgrade\r\nUpgrade: foo\r\n"
JAVA = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\n"
INNER_TEXT = INNER.decode()

ROWS = [
    Row("one request", get(), [200], [""]),
    Row("two requests", get() + get(), [200, 200]),
    Row("a body", post(b"Content-Length: 3\r\n", b"abc") + get(), [200, 200], ["abc", ""]),
    Row("a body that looks like a request", post(LENGTH, INNER) + get(), [200, 200], [INNER_TEXT, ""]),
    Row("a GET with a body", get(head=b"Content-Length: 3\r\n") + b"abc" + get(), [200, 200], ["abc", ""]),
    Row("a length of 0", post(b"Content-Length: 0\r\n") + get(), [200, 200]),
    Row("a length with zeros", post(b"Content-Length: 0003\r\n", b"abc") + get(), [200, 200], ["abc", ""]),
    Row("a POST without a body", post(b"") + get(), [200, 200]),
    # Upgrade and Expect (RFC 9110, 7.8 and 10.1.1)
    Row("Upgrade with a body", post(UPGRADE + LENGTH, INNER) + get(), [200, 200], [INNER_TEXT, ""]),
    Row("Upgrade without a body", get(head=UPGRADE) + get(), [200, 200]),
    Row("Upgrade with a length of 0", post(UPGRADE + b"Content-Length: 0\r\n") + get(), [200, 200]),
    Row("Upgrade with chunks", post(UPGRADE + CHUNKED, b"3\r\nabc\r\n0\r\n\r\n") + get(), [200, 200], ["abc", ""]),
    Row("Upgrade as Java asks for it", post(JAVA + LENGTH, INNER) + get(), [200, 200], [INNER_TEXT, ""]),
    Row("Upgrade to a web socket", get(head=b"Connection: upgrade\r\nUpgrade: websocket\r\n") + get(), [200, 200]),
    Row("Upgrade with two lengths", post(UPGRADE + LENGTH + LENGTH, INNER), [400]),
    Row("Upgrade with a length and chunks", post(UPGRADE + LENGTH + CHUNKED, INNER), [400]),
    Row("Upgrade with an unknown coding", post(UPGRADE + b"Transfer-Encoding: gzip\r\n", INNER), [400]),
    Row("Expect", post(b"Expect: 100-continue\r\nContent-Length: 3\r\n", b"abc") + get(), [200, 200], ["abc", ""]),
    Row("Expect without a body", get(head=b"Expect: 100-continue\r\n") + get(), [200, 200]),
    Row("Expect of something else", post(b"Expect: tea\r\nContent-Length: 3\r\n", b"abc") + get(), [200, 200], ["abc", ""]),
    Row("CONNECT", get(b"CONNECT a:80 HTTP/1.1") + get(), [400]),
    # Lengths
    Row("two equal lengths", post(b"Content-Length: 3\r\n" * 2, b"abc") + get(), [400]),
    Row("two lengths", post(b"Content-Length: 3\r\nContent-Length: 4\r\n", b"abcd") + get(), [400]),
    Row("a list of lengths", post(b"Content-Length: 3, 3\r\n", b"abc") + get(), [400]),
    Row("a signed length", post(b"Content-Length: +3\r\n", b"abc") + get(), [400]),
    Row("a negative length", post(b"Content-Length: -3\r\n", b"abc") + get(), [400]),
    Row("a hexadecimal length", post(b"Content-Length: 0x3\r\n", b"abc") + get(), [400]),
    Row("an empty length", post(b"Content-Length:\r\n", b"abc") + get(), [400]),
    Row("an endless length", post(b"Content-Length: " + b"9" * 30 + b"\r\n", b"abc"), [400]),
    Row("a length with a space in it", post(b"Content-Length: 3 3\r\n", b"abc"), [400]),
    Row("a length behind white space", post(b"Content-Length: \t 3 \t\r\n", b"abc") + get(), [200, 200], ["abc", ""]),
    Row("white space before the colon", post(b"Content-Length : 3\r\n", b"abc") + get(), [400]),
    # Transfer codings
    Row("chunks", post(CHUNKED, b"3\r\nabc\r\n02\r\nde\r\n0\r\n\r\n") + get(), [200, 200], ["abcde", ""]),
    Row("chunks in capitals", post(b"TRANSFER-ENCODING: Chunked\r\n", b"A\r\n0123456789\r\n0\r\n\r\n"), [200], ["0123456789"]),
    Row("no chunks", post(CHUNKED, b"0\r\n\r\n") + get(), [200, 200], ["", ""]),
    Row("a chunk that looks like a request", post(CHUNKED, b"%x\r\n%b\r\n0\r\n\r\n" % (len(INNER), INNER)), [200], [INNER_TEXT]),
    Row("chunk extensions", post(CHUNKED, b'3;a=b;c="d;e" ; f\r\nabc\r\n0;x\r\n\r\n') + get(), [200, 200], ["abc", ""]),
    Row("a chunk extension with a bare LF", post(CHUNKED, b"3;a\nabc\r\n0\r\n\r\n") + get(), [400]),
    Row("a long chunk extension", post(CHUNKED, b"3;" + b"a" * 2000 + b"\r\nabc\r\n0\r\n\r\n"), [400]),
    Row("many chunk extensions", post(CHUNKED, (b"1;" + b"a" * 900 + b"\r\nx\r\n") * 10 + b"0\r\n\r\n"), [400]),
    Row("trailers", post(CHUNKED, b"3\r\nabc\r\n0\r\nA: b\r\nC: d\r\n\r\n") + get(), [200, 200], ["abc", ""]),
    Row("a trailer that is not a header", post(CHUNKED, b"0\r\nGET /inner HTTP/1.1\r\n\r\n") + get(), [400]),
    Row("endless trailers", post(CHUNKED, b"0\r\n" + b"A: b\r\n" * 3000 + b"\r\n"), [400]),
    Row("a trailer of another length", post(CHUNKED, b"0\r\nContent-Length: 50\r\n\r\n") + get(), [200, 200], ["", ""]),
    Row("a chunk longer than its size", post(CHUNKED, b"2\r\nabc\r\n0\r\n\r\n") + get(), [400]),
    Row("a chunk shorter than its size", post(CHUNKED, b"4\r\nabc\r\n0\r\n\r\n") + get(), [400]),
    Row("a chunk of another base", post(CHUNKED, b"0x3\r\nabc\r\n0\r\n\r\n") + get(), [400]),
    Row("a signed chunk", post(CHUNKED, b"+3\r\nabc\r\n0\r\n\r\n") + get(), [400]),
    Row("a chunk without a size", post(CHUNKED, b"\r\nabc\r\n0\r\n\r\n") + get(), [400]),
    Row("an endless chunk size", post(CHUNKED, b"f" * 17 + b"\r\nabc\r\n0\r\n\r\n") + get(), [400]),
    Row("a chunk behind a bare LF", post(CHUNKED, b"3\nabc\n0\n\n") + get(), [400]),
    Row("a chunk behind a bare CR", post(CHUNKED, b"3\rabc\r0\r\r") + get(), [400]),
    Row("length and chunks", post(b"Content-Length: 3\r\n" + CHUNKED, b"0\r\n\r\n") + get(), [400]),
    Row("chunks and length", post(CHUNKED + b"Content-Length: 3\r\n", b"0\r\n\r\n") + get(), [400]),
    Row("chunks twice", post(CHUNKED * 2, b"0\r\n\r\n") + get(), [400]),
    Row("chunked, chunked", post(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n") + get(), [400]),
    Row("gzip", post(b"Transfer-Encoding: gzip\r\n", b"abc") + get(), [400]),
    Row("gzip, chunked", post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n") + get(), [400]),
    Row("chunked, gzip", post(b"Transfer-Encoding: chunked, gzip\r\n", b"0\r\n\r\n") + get(), [400]),
    Row("identity", post(b"Transfer-Encoding: identity\r\n", b"abc") + get(), [400]),
    Row("xchunked", post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n") + get(), [400]),
    Row("chunked behind a control character", post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"), [400]),
    Row("chunks in HTTP/1.0", post(CHUNKED, b"0\r\n\r\n", version=b"1.0") + get(), [400]),
    # Lines
    Row("bare LF", b"GET /a HTTP/1.1\nHost: x\n\n" + get(), [400]),
    Row("bare LF in a header", get(head=b"A: b\nHost: x\r\n") + get(), [400]),
    Row("bare CR in a header", get(head=b"A: b\rC: d\r\n") + get(), [400]),
    Row("a folded header", get(head=b"A: b\r\n c\r\n") + get(), [400]),
    Row("a first header that is folded", get(head=b" A: b\r\n") + get(), [400]),
    Row("a header without a name", get(head=b": b\r\n") + get(), [400]),
    Row("a header without a colon", get(head=b"A\r\n") + get(), [400]),
    Row("a header with NUL", get(head=b"A: \0\r\n") + get(), [400]),
    Row("a header in Latin-1", get(head=b"A: \xe9\r\n") + get(), [200, 200]),
    Row("two hosts", get(head=b"Host: a\r\nHost: b\r\n") + get(), [400]),
    Row("no host", get(head=b"A: b\r\n") + get(), [200, 200]),
    Row("blank lines before a request", b"\r\n\r\n\n" + get() + b"\r\n" + get(), [200, 200]),
    Row("blank lines and nothing else", b"\r\n" * 5000, []),
    # Targets
    Row("the absolute form", get(b"GET http://x/a?b=c HTTP/1.1") + get(), [200, 200]),
    Row("the absolute form without a path", get(b"GET http://x HTTP/1.1"), [200]),
    Row("the asterisk form", get(b"OPTIONS * HTTP/1.1"), [200]),
    Row("encoded slashes", get(b"GET /a%2Fb HTTP/1.1"), [200]),
    Row("two slashes", get(b"GET //a HTTP/1.1"), [200]),
    Row("a target with a space", get(b"GET /a b HTTP/1.1"), [400]),
    Row("a target that is not ASCII", get(b"GET /\xff HTTP/1.1"), [400]),
    Row("a target that is a word", get(b"GET a HTTP/1.1"), [400]),
    Row("no target", get(b"GET HTTP/1.1"), [400]),
    # Versions and protocols
    Row("HTTP/0.9", get(b"GET /a HTTP/0.9") + get(), [400]),
    Row("HTTP/0.9 without a version", get(b"GET /a", b"") + get(), [400]),
    Row("HTTP/1.0", get(b"GET /a HTTP/1.0") + get(), [200]),
    Row("HTTP/1.0 that wants to stay", get(b"GET /a HTTP/1.0", b"Connection: keep-alive\r\n") + get(), [200]),
    *(Row(f"HTTP/{version}", get(b"GET /a HTTP/" + version.encode()) + get(), [400])
      for version in ("1.2", "1.9", "2.0", "3.0", "9.9", "1.", "01.1", "1.10", "11.1", "x")),
    Row("another protocol", get(b"GET /a RTSP/1.0") + get(), [400]),
    Row("HTTP/2 by prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + get(), [400]),
    Row("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100, [400]),
    Row("an unknown method", get(b"BREW /a HTTP/1.1") + get(), [400]),
    Row("a method in small letters", get(b"get /a HTTP/1.1") + get(), [400]),
    Row("words", b"hello\r\n\r\n" + get(), [400]),
    # Staying and leaving
    Row("close", get(head=b"Connection: close\r\n") + get(), [200]),
    Row("close among others", get(head=b"Connection: keep-alive, Close\r\n") + get(), [200]),
    Row("close, then keep", get(head=b"Connection: close\r\nConnection: keep-alive\r\n") + get(), [200]),
    Row("a head that does not end", b"GET /a HTTP/1.1\r\nHost: x\r\n", []),
    Row("a body that does not end", post(b"Content-Length: 9\r\n", b"abc"), [400]),
    Row("chunks that do not end", post(CHUNKED, b"3\r\nabc\r\n"), [400]),
    Row("a head of 32 KiB", get(head=b"A: " + b"a" * (32_768 - 24) + b"\r\n") + get(), [200, 200]),
    Row("a head that is a byte larger", get(head=b"A: " + b"a" * (32_768 - 23) + b"\r\n") + get(), [431]),
    Row("a URL of 32 KiB", get(b"GET /?" + b"a&" * 20_000 + b" HTTP/1.1") + get(), [431]),
    Row("headers without end", get(head=b"A: b\r\n" * 10_000) + get(), [431]),
    # Bodies that nobody reads
    Row("a small body that is not read", get(b"POST /early HTTP/1.1", LENGTH) + INNER + get(), [200, 200]),
    Row("a large body that is not read", get(b"POST /early HTTP/1.1", b"Content-Length: 200000\r\n") + INNER * 10_000, [200]),
    Row("chunks that are not read", get(b"POST /early HTTP/1.1", CHUNKED) + b"3\r\nabc\r\n0\r\n\r\n" + get(), [200, 200]),
    Row("Expect, and nobody wants the body", get(b"POST /early HTTP/1.1", b"Expect: 100-continue\r\n" + LENGTH), [200]),
    Row("204", get(b"GET /status=204 HTTP/1.1") + get(), [204, 200]),
    Row("304", get(b"GET /status=304 HTTP/1.1") + get(), [304, 200]),
    Row("a stream", get(b"GET /stream HTTP/1.1") + get(), [200, 200]),
    Row("a stream in HTTP/1.0", get(b"GET /stream HTTP/1.0") + get(), [200]),
    Row("a client that sends no more", get(b"GET /never HTTP/1.1"), [200]),
]  # fmt: skip


def outcome(row: Row, answers: list[Reply]) -> tuple[list[int], list[str] | None]:
    read = None
    if row.bodies is not None:
        read = [json.loads(reply.body)["body"] for reply in answers if reply.status == 200]
    return [reply.status for reply in answers], read


@pytest.mark.hostile
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_a_connection_s_bytes_are_these_requests(http: Http, row: Row) -> None:
    answers = await http.ask(row.sent)

    assert outcome(row, answers) == (row.statuses, row.bodies)
    assert b"/inner" not in b"".join(re.findall(rb'"path": "[^"]*"', b"".join(one.body for one in answers)))
    for reply in answers:
        assert reply.get("x-content-type-options") == "nosniff"
        assert reply.get("date") is not None
        if reply.status in (400, 408, 413, 431):
            assert reply.get("connection") == "close"


@pytest.mark.hostile
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_it_does_not_matter_where_the_bytes_are_cut(row: Row) -> None:
    """At the known seams, at every byte, in the middle."""
    size = len(row.sent)
    near = [at for seam in re.finditer(rb"\r\n", row.sent[:400]) for at in (seam.start() + 1, seam.end())]
    every_byte = list(range(1, min(size, 300)))

    async with serving() as http:
        expected = outcome(row, await http.ask(row.sent))
        for points in (near, every_byte, [size // 2], [size - 1]):
            assert outcome(row, await http.ask(*cut(row.sent, points))) == expected, points
    assert expected[0] == row.statuses


@pytest.mark.hostile
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_wherever_several_requests_are_cut_they_stay_the_same(data: st.DataObject) -> None:
    good = [row for row in ROWS if row.statuses == [200, 200]]
    rows = data.draw(st.lists(st.sampled_from(good), min_size=1, max_size=4))
    sent = b"".join(row.sent for row in rows)
    points = data.draw(st.lists(st.integers(1, len(sent) - 1), max_size=12))

    async def both() -> tuple[list[Any], list[Any]]:
        async with serving() as http:
            whole, parts = await http.ask(sent), await http.ask(*cut(sent, points))
            return [(one.status, one.body) for one in whole], [(one.status, one.body) for one in parts]

    whole, parts = uvloop.run(both())
    assert whole == parts
    assert whole


@pytest.mark.hostile
async def test_a_late_body_after_an_upgrade_is_a_body(http: Http) -> None:
    head = post(UPGRADE + LENGTH)

    answers = await http.ask(head, INNER, pause=0.2)

    assert [json.loads(one.body)["body"] for one in answers] == [INNER_TEXT]


# Answers


async def test_head_is_answered_like_get_without_the_body(http: Http) -> None:
    asked = get(), get(b"HEAD /a HTTP/1.1"), get(b"HEAD /stream HTTP/1.1"), get()
    whole, short, stream, _ = await http.ask(*asked, methods=("GET", "HEAD", "HEAD", "GET"))

    assert int(short.get("content-length") or 0) == len(whole.body) + 1  # HEAD is a letter longer
    assert (short.body, stream.body) == (b"", b"")


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_has_no_length(http: Http, status: int) -> None:
    empty, after = await http.ask(get(b"GET /status=%d HTTP/1.1" % status), get())

    assert (empty.status, after.status) == (status, 200)
    assert empty.get("content-length") is None
    assert empty.get("transfer-encoding") is None


async def test_a_body_is_asked_for_only_when_it_is_wanted(http: Http) -> None:
    async with client(http.address) as wanted, client(http.address) as unwanted:
        await wanted.send(post(b"Expect: 100-continue\r\nContent-Length: 3\r\n"))
        first = await wanted.reader.readuntil(b"\r\n\r\n")
        await wanted.send(b"abc")
        answer = await wanted.reply()
        await unwanted.send(get(b"POST /early HTTP/1.1", b"Expect: 100-continue\r\nContent-Length: 3\r\n"))
        refused = await unwanted.reply()

        assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert json.loads(answer.body)["body"] == "abc"
        assert answer.get("connection") is None
        # The client may send its three bytes or not: nobody can know where its next request begins.
        assert refused.get("connection") == "close"
        assert await unwanted.rest() == b""


async def test_a_client_that_has_gone_is_noticed_by_who_waits_for_it(http: Http) -> None:
    left = asyncio.Event()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    async with serving(waits) as waiting, client(waiting.address) as gone:
        await gone.send(get())
        gone.writer.transport.abort()
        await asyncio.wait_for(left.wait(), 5)


async def test_a_header_of_ours_cannot_begin_another_one() -> None:
    async def careless(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"x-a", b"b\r\nset-cookie: c")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x"})

    async with serving(careless) as http:
        raw = await said(http.address, [get()])

    assert b"set-cookie" not in raw


@pytest.mark.parametrize("late", [False, True])
async def test_an_application_that_fails_is_answered_for(*, late: bool) -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        if late:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"some", "more_body": True})
        raise ValueError("a bug")

    async with serving(fails) as http:
        raw = await said(http.address, [get()])

    assert raw.startswith(b"HTTP/1.1 200" if late else b"HTTP/1.1 500")
    assert not raw.endswith(b"0\r\n\r\n"), "half an answer looks like a whole one"


async def test_a_server_that_stops_answers_what_it_has_and_nothing_else(http: Http) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await release.wait()
        await echo(scope, receive, send)

    async with serving(slow) as stopping, client(stopping.address) as busy, client(stopping.address) as idle:
        await busy.send(get() + get())
        await begun.wait()
        draining = asyncio.create_task(stopping.server.drain(seconds=10))
        ended = await idle.rest()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*stopping.address)
        release.set()
        answers = replies(await busy.rest())
        await asyncio.wait_for(draining, 5)

    assert ended == b""
    assert [(one.status, one.get("connection")) for one in answers] == [(200, "close")]


async def test_a_stream_that_ends_while_the_server_stops_ends_its_connection() -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"some", "more_body": True})
        begun.set()
        await release.wait()
        await send({"type": "http.response.body", "body": b"more"})

    async with serving(stream) as http, client(http.address) as reading:
        await reading.send(get())
        await begun.wait()
        draining = asyncio.create_task(http.server.drain(seconds=10))
        await asyncio.sleep(0)
        release.set()
        (answer,) = replies(await reading.rest())
        await asyncio.wait_for(draining, 3)

    assert answer.body == b"somemore"


async def test_a_server_that_stops_does_not_wait_for_ever() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def stuck(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with serving(stuck) as http, client(http.address) as busy:
        await busy.send(get())
        await begun.wait()
        await asyncio.wait_for(http.server.drain(seconds=0.2), 5)

    assert cancelled.is_set()


# Wabery behind it


def at(app: App) -> tuple[str, int]:
    host, _, port = app.base_url.removeprefix("http://").partition(":")
    return host, int(port)


def mint(key: str, more: bytes = b"", *, length: int | None = None) -> bytes:
    """A mint on the wire, without its body when `length` is given."""
    body = b'{"customer_reference": "user_1"}'
    head = b"POST /v1/registration-intents HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += b"Authorization: Bearer " + key.encode() + b"\r\n" + more
    if length is not None:
        return head + b"Content-Length: %d\r\n\r\n" % length
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.hostile
async def test_a_late_body_after_an_upgrade_is_never_a_second_request(app: App) -> None:
    inner = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
    outer = (
        b"POST /inbound/whatsapp HTTP/1.1\r\nHost: x\r\n"
        + UPGRADE
        + b"Content-Length: %d\r\n\r\n" % len(inner)
    )

    answers = replies(await said(at(app), [outer, inner], pause=0.2))

    assert [answer.status for answer in answers] == [401]
    assert json.loads(answers[0].body)["error"] == "invalid_signature"


@pytest.mark.parametrize("pause", [0.0, 0.05])
async def test_java_s_http_client_mints(app: App, acme: Tenant, pause: float) -> None:
    """It offers h2c on every request of a new connection, and sends the body in a packet of its own."""
    sent = mint(acme.secret_key, JAVA)
    head, end, body = sent.partition(b"\r\n\r\n")

    (answer,) = replies(await said(at(app), [head + end, body], pause=pause))

    assert (answer.status, json.loads(answer.body)["status"]) == (200, "PENDING")


async def test_curl_mints_with_http2_on_offer(app: App, acme: Tenant) -> None:
    curl = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--show-error", "--http2", "--max-time", "10", "--data", '{"customer_reference": "a"}'),
        *("--header", "Content-Type: application/json", "--header", f"Authorization: Bearer {acme.secret_key}"),
        app.base_url + INTENTS,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    answer, _ = await curl.communicate()

    assert json.loads(answer)["status"] == "PENDING"


@pytest.mark.parametrize("more", [b"", b"Expect: 100-continue\r\n"], ids=["plain", "Expect"])
async def test_a_key_is_judged_before_a_body_is_asked_for(app: App, acme: Tenant, more: bytes) -> None:
    """Nothing of the body is ever sent; a limit, a scope and an origin are judged in the same place."""
    for key, status in (("wab_live_mistyped", 401), (acme.publishable_key, 401), ("", 401)):
        async with client(at(app)) as asking:
            await asking.send(mint(key, more, length=60_000))
            answer = await asking.reply()
        assert answer.status == status
        assert answer.get("content-length") is not None


async def test_a_large_body_without_a_key_is_not_read_on(app: App) -> None:
    async with client(at(app)) as asking:
        await asking.send(mint("wab_live_mistyped", length=2_000_000_000) + b"x" * 100_000)
        answer = await asking.reply()
        rest = await asking.rest()

    assert (answer.status, answer.get("connection"), rest) == (401, "close", b"")


@pytest.mark.parametrize("name", ["Authorization", "x-wabery-publishable-key", "x-wabery-client-secret"])
async def test_two_credentials_of_a_kind_are_rejected(app: App, acme: Tenant, name: str) -> None:
    good = {
        "Authorization": f"Bearer {acme.secret_key}",
        "x-wabery-publishable-key": acme.publishable_key,
        "x-wabery-client-secret": "wcs_some",
    }
    key = "Authorization" if name == "Authorization" else "x-wabery-publishable-key"
    lines = [f"{key}: {good[key]}", f"{name.upper()}: {good[name]}", f"{name.lower()}: other"]
    head = "\r\n".join(["GET /v1/registration-intents HTTP/1.1", "Host: x", *lines, "", ""]).encode()

    (answer,) = replies(await said(at(app), [head]))

    body = json.loads(answer.body)
    assert (answer.status, body["error"]) == (400, "invalid_request")
    assert name.lower() in body["message"]


TAGS = [
    ("{tag}", 304), ("W/{tag}", 304), ('"other", {tag}', 304), ('"other" , W/"x",W/{tag}', 304), ("*", 304), (" * ", 304),
    ('"a,b", {tag}', 304), ('"other"', 200), ("{bare}", 200), ('"{bare}x"', 200), ("", 200), ('W/"other"', 200),
]  # fmt: skip


async def test_if_none_match_is_a_list_of_tags_and_weak_ones_match(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key)
    for path, key in ((f"{INTENTS}/{intent['id']}", acme.secret_key), ("/v1/openapi.json", None)):
        tag = (await app.call("GET", path, key)).headers["ETag"]
        for header, status in TAGS:
            sent = header.format(tag=tag, bare=tag.strip('"'))
            reply = await app.call("GET", path, key, headers={"If-None-Match": sent})
            assert reply.status == status, (path, sent)
            assert reply.headers["ETag"] == tag
            assert ("Content-Length" in reply.headers) is (status == 200)


async def test_several_lines_of_if_none_match_are_one_list(app: App) -> None:
    tag = (await app.call("GET", "/v1/openapi.json", headers={"Accept-Encoding": "identity"})).headers["ETag"]
    head = f'GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\nIf-None-Match: "a"\r\nIf-None-Match: {tag}\r\nIf-None-Match: "b"\r\n\r\n'

    (answer,) = replies(await said(at(app), [head.encode()]))

    assert answer.status == 304


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True), ("br, GZIP;q=0.5", True), ("*", True), ("gzip;q=0", False), ("gzip; q=0.000", False),
        ("identity", False), ("", False), ("*;q=0", False), ("gzip;q=0, *", False), ("br", False),
    ],
)  # fmt: skip
async def test_the_contract_is_compressed_for_who_takes_it(app: App, accepted: str, *, packed: bool) -> None:
    head = f"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\nAccept-Encoding: {accepted}\r\n\r\n"

    (answer,) = replies(await said(at(app), [head.encode()]))

    assert answer.get("content-encoding") == ("gzip" if packed else None)
    assert answer.get("vary") == "Accept-Encoding"
    text = gzip.decompress(answer.body) if packed else answer.body
    assert json.loads(text)["openapi"] == "3.1.0"


async def test_every_answer_forbids_guessing_its_type(app: App, acme: Tenant) -> None:
    key = acme.publishable_key
    origin = {"Origin": "https://shop.example"}
    asked = [
        ("GET", "/livez", None), ("GET", "/nowhere", None), ("DELETE", "/livez", None), ("OPTIONS", INTENTS, None),
        ("GET", INTENTS, None), ("GET", INTENTS, acme.secret_key), ("GET", f"{INTENTS}/reg_none", key),
        ("GET", "/errors/not_found", None), ("GET", "/v1/openapi.json", None),
    ]  # fmt: skip

    for method, path, with_key in asked:
        reply = await app.call(method, path, with_key, headers=origin if method == "OPTIONS" else {})
        assert reply.headers.getall("X-Content-Type-Options") == ["nosniff"], (method, path)  # type: ignore[attr-defined]  # aiohttp's headers


async def test_a_query_is_read_where_it_is_used_and_bounded(app: App, acme: Tenant) -> None:
    many = "&".join(f"a{number}" for number in range(5_000))

    open_call = await app.call("GET", f"/livez?{many}")
    keyed = await app.call("GET", f"{INTENTS}?{many}", acme.secret_key)

    assert open_call.status == 200
    assert (keyed.status, keyed.body["error"]) == (400, "invalid_request")
    assert "64" in keyed.body["message"]


PROXY = (ip_network("10.0.0.0/8"), ip_network("2001:db8:ffff::/48"))


@pytest.mark.parametrize(
    ("forwarded", "caller"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:5678", "203.0.113.7"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ('"[2001:db8::1]:443"', "2001:db8::1"),
        ('"203.0.113.7:80"', "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("[::ffff:203.0.113.7]:9", "203.0.113.7"),
        ("198.51.100.1, 203.0.113.7:1, 10.1.1.1:2", "203.0.113.7"),
        ("198.51.100.1, 203.0.113.7, [2001:db8:ffff::2]:443", "203.0.113.7"),
        ("203.0.113.7,,  ,", "203.0.113.7"),
        # What is not an address ends the search at the last proxy that is trusted.
        ("203.0.113.7, unknown", "10.0.0.1"),
        ("203.0.113.7, unknown, 10.2.2.2", "10.2.2.2"),
        ("_hidden", "10.0.0.1"),
        ("203.0.113.7:port", "10.0.0.1"),
        ("1.2.3", "10.0.0.1"),
        ("[", "10.0.0.1"),
        ('"', "10.0.0.1"),
        ("", "10.0.0.1"),
        ("10.3.3.3, 10.2.2.2", "10.3.3.3"),
    ],
)
def test_the_caller_is_the_last_address_that_no_proxy_vouches_for(forwarded: str, caller: str) -> None:
    assert client_address("10.0.0.1", forwarded, PROXY) == caller
    assert client_address("192.0.2.1", forwarded, PROXY) == "192.0.2.1"
    assert client_address("10.0.0.1", forwarded, ()) == "10.0.0.1"
