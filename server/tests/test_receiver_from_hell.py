"""Receivers that answer in every bad way over a real socket: the status line decides, and nothing after it.

A receiver that has sent a 2xx status line has the event. Whatever is wrong with the rest of its answer must not make it
get the event again; and a broken answer with another status is that status.
"""

import asyncio
import gzip
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from socket import SO_LINGER, SOL_SOCKET
from typing import NamedTuple, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wabery_server.webhooks import LOOPBACK, Limits, Outcome, Policy, Poster

pytestmark = pytest.mark.hostile

HERE = Policy(allow_http=True, allow_ports=None, allow_networks=LOOPBACK)
BODY = b'{"event":"message.received","payload":{},"sentAt":"2026-11-27T12:00:00.000Z"}'
HASTY = Limits(rest=timedelta(seconds=0.1))
PATIENCE = 20.0


class Answer(NamedTuple):
    """What a receiver sends, piece by piece, and how it goes on."""

    pieces: Sequence[bytes]
    then: str = "keep"
    """keep the connection open and silent, close it, or reset it."""


class Receiver:
    """Answers each request with the next answer, and the last one from then on."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.answers = list(answers)
        self.port = 0
        self.heads: list[bytes] = []
        """The head of each request, as it came."""
        self.connections = 0
        self.gone = asyncio.Event()
        """A connection has ended."""
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while True:
                await self._request(reader)
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                for piece in answer.pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if answer.then == "reset":
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                    writer.transport.abort()
                if answer.then != "keep":
                    break
        with suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()
        self.gone.set()

    async def _request(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        await reader.readexactly(length)

    def close(self) -> None:
        for writer in self._open:
            writer.transport.abort()


class Start(Protocol):
    async def __call__(self, *answers: Answer) -> Receiver: ...


@pytest.fixture
async def receiver() -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def start(*answers: Answer) -> Receiver:
            made = Receiver(answers)
            server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
            made.port = server.sockets[0].getsockname()[1]
            stack.callback(server.close)
            stack.callback(made.close)
            return made

        yield start


OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = b"Content-Length: 0\r\n\r\n"

BROKEN: dict[str, Answer] = {
    "a header of 9,000 bytes": Answer([b"X-Policy: " + b"a" * 9000 + b"\r\n" + EMPTY]),
    "a header of 100,000 bytes": Answer([b"X-Policy: " + b"a" * 100_000 + b"\r\n" + EMPTY]),
    "a header that never ends": Answer([b"X-Policy: " + b"a" * 60_000] * 5),
    "5,000 headers": Answer([b"X-Many: x\r\n" * 5000 + EMPTY]),
    "100,000 headers in pieces": Answer([b"X-Many: x\r\n" * 1000] * 100 + [EMPTY]),
    "headers that never end": Answer([b"X-Slow: 1\r\n"]),
    "a header without a colon": Answer([b"nonsense\r\n" + EMPTY]),
    "a header name with a space": Answer([b"X Y: 1\r\n" + EMPTY]),
    "a space before the colon": Answer([b"X-Y : 1\r\n" + EMPTY]),
    "an empty header name": Answer([b": 1\r\n" + EMPTY]),
    "a header name that is not ASCII": Answer(["Schlüssel: 1\r\n".encode() + EMPTY]),
    "a header value with a zero byte": Answer([b"X-Zero: \x00\r\n" + EMPTY]),
    "a folded header": Answer([b"X-Folded: a\r\n b\r\n" + EMPTY]),
    "a first header that begins with a space": Answer([b" X: 1\r\n" + EMPTY]),
    "a lone CR in a header": Answer([b"X-Cr: a\rb\r\n" + EMPTY]),
    "bare LF": Answer([b"Content-Length: 0\n\n"]),
    "the end of the input within the headers": Answer([b"X-Half: "], then="close"),
    "the end of the input after the status line": Answer([b""], then="close"),
    "a reset within the headers": Answer([b"X-Half: "], then="reset"),
    "a reset after the headers": Answer([b"Content-Length: 10\r\n\r\n"], then="reset"),
    "the end of the input within the body": Answer([b"Content-Length: 10\r\n\r\nhalf"], then="close"),
    "a body that never ends": Answer([b"Content-Length: 10\r\n\r\nslow"]),
    "a body that never begins": Answer([b"Content-Length: 10\r\n\r\n"]),
    "a body more than announced": Answer([b"Content-Length: 2\r\n\r\nokokok"]),
    "no length and no end": Answer([b"\r\nsome"]),
    "a length that is no number": Answer([b"Content-Length: many\r\n\r\n"]),
    "a negative length": Answer([b"Content-Length: -1\r\n\r\n"]),
    "a huge length": Answer([b"Content-Length: 99999999999999999999999999\r\n\r\n"]),
    "two different lengths": Answer([b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nok"]),
    "a list of lengths": Answer([b"Content-Length: 2, 3\r\n\r\nok"]),
    "a length and chunks": Answer([b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"]),
    "an unknown transfer encoding": Answer([b"Transfer-Encoding: rot13\r\n\r\nbx"]),
    "chunked before another encoding": Answer([b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"]),
    "chunked twice": Answer([b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"]),
    "a chunk size that is no number": Answer([b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"]),
    "a chunk size that is too large": Answer([b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n"]),
    "a chunk without its end": Answer([b"Transfer-Encoding: chunked\r\n\r\n2\r\nokX"]),
    "chunks that break off": Answer([b"Transfer-Encoding: chunked\r\n\r\na\r\nhalf"], then="close"),
    "chunks that are reset": Answer([b"Transfer-Encoding: chunked\r\n\r\na\r\nhalf"], then="reset"),
    "endless chunk extensions": Answer([b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 100_000]),
    "endless trailers": Answer([b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 20_000]),
    "an endless body": Answer([b"\r\n"] + [b"x" * 65_536] * 64),
    "gzip that is none": Answer([b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok"]),
    "a gzip bomb": Answer(
        [b"Content-Encoding: gzip\r\n\r\n", gzip.compress(bytes(20_000_000))], then="close"
    ),
    "an unknown content encoding": Answer([b"Content-Encoding: br, x\r\nContent-Length: 2\r\n\r\nok"]),
    "a bad cookie": Answer([b"Set-Cookie: \xff=;;=\r\n" + EMPTY]),
    "a bad redirect": Answer([b"Location: http://[::1\r\n" + EMPTY]),
    "a bad content type": Answer([b"Content-Type: ;;;charset=\xff\r\n" + EMPTY]),
    "an upgrade": Answer([b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"]),
    "nothing but noise": Answer([b"\x00\xff\xfe" * 1000]),
    "byte by byte": Answer([bytes([byte]) for byte in b"Content-Length: 2\r\n\r\nok"], then="close"),
}
"""What follows the status line."""

STATUS_LINES = {
    "HTTP/1.1 200 OK": b"HTTP/1.1 200 OK\r\n",
    "no reason": b"HTTP/1.1 200\r\n",
    "an empty reason": b"HTTP/1.1 200 \r\n",
    "a strange reason": b"HTTP/1.1 200 \xff\x00\x01\r\n",
    "HTTP/1.0": b"HTTP/1.0 204 No Content\r\n",
    "HTTP/1.7": b"HTTP/1.7 202 Accepted\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\n",
    "bare LF": b"HTTP/1.1 200 OK\n",
    "two spaces": b"HTTP/1.1  200 OK\r\n",
    "a tab": b"HTTP/1.1\t200 OK\r\n",
    "empty lines before it": b"\r\n\r\nHTTP/1.1 200 OK\r\n",
    "100 first": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
    "103 with headers first": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n",
    "103 with broken headers first": b"HTTP/1.1 103\r\nbad header\r\n\r\nHTTP/1.1 200 OK\r\n",
    "500 interim answers first": b"HTTP/1.1 102 Processing\r\n\r\n" * 500 + b"HTTP/1.1 200 OK\r\n",
    "a long reason": b"HTTP/1.1 200 " + b"O" * 20_000 + b"\r\n",
    "a reason that never ends": b"HTTP/1.1 200 " + b"O" * 200_000,
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
async def test_after_2xx_nothing_matters(receiver: Start, answer: Answer) -> None:
    hell = await receiver(Answer([OK, *answer.pieces], answer.then))

    async with asyncio.timeout(PATIENCE), Poster(HERE, limits=HASTY) as poster:
        result = await poster.post(hell.url, BODY, {})

    assert (result.outcome, result.status, result.error) == (Outcome.DELIVERED, 200, None)
    assert result.address == "127.0.0.1"


@pytest.mark.parametrize("line", STATUS_LINES.values(), ids=STATUS_LINES)
@pytest.mark.parametrize("rest", [EMPTY, b"X-Policy: " + b"a" * 70_000, b"nonsense\r\n\r\n", b""])
async def test_every_form_of_a_status_line_counts(receiver: Start, line: bytes, rest: bytes) -> None:
    hell = await receiver(Answer([line, rest], "close"))

    async with asyncio.timeout(PATIENCE), Poster(HERE, limits=HASTY) as poster:
        result = await poster.post(hell.url, BODY, {})

    assert result.outcome is Outcome.DELIVERED
    assert result.status is not None
    assert 200 <= result.status < 300


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (b"410 Gone", Outcome.GONE),
        (b"429 Too Many Requests", Outcome.THROTTLED),
        (b"503 Service Unavailable", Outcome.THROTTLED),
        (b"500 Oops", Outcome.REJECTED),
        (b"302 Found", Outcome.REDIRECT),
        (b"101 Switching Protocols", Outcome.REJECTED),
    ],
)
async def test_a_broken_answer_with_another_status_is_that_status(
    receiver: Start, status: bytes, outcome: Outcome
) -> None:
    answers = [answer for name, answer in BROKEN.items() if "100,000 headers" not in name]
    found = set()

    async with asyncio.timeout(PATIENCE), Poster(HERE, limits=HASTY) as poster:
        for answer in answers:
            hell = await receiver(Answer([b"HTTP/1.1 " + status + b"\r\n", *answer.pieces], answer.then))
            result = await poster.post(hell.url, BODY, {})
            found.add((result.outcome, result.status))

    assert found == {(outcome, int(status[:3]))}


@pytest.mark.parametrize(
    "rest",
    [
        b"X-Policy: " + b"a" * 70_000 + b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"Content-Length: many\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nxyz",
        b"X-Half: ",
        b"",
    ],
)
async def test_a_retry_after_that_could_be_read_counts(receiver: Start, rest: bytes) -> None:
    hell = await receiver(Answer([b"HTTP/1.1 429 Slow Down\r\nRetry-After: 120\r\n" + rest], "close"))
    ends = await receiver(Answer([b"HTTP/1.1 500 No\r\nWebhook-Delivery: abort-message\r\n" + rest], "close"))

    async with asyncio.timeout(PATIENCE), Poster(HERE, limits=HASTY) as poster:
        result = await poster.post(hell.url, BODY, {})
        ended = await poster.post(ends.url, BODY, {})

    assert (result.outcome, result.retry_after) == (Outcome.THROTTLED, timedelta(minutes=2))
    assert ended.outcome is Outcome.ABORTED


@pytest.mark.parametrize("cut", [b"Retry-After: 12", b"Retry-After", b"X: y\r\n\r\nRetry-After: 120\r\n"])
async def test_a_retry_after_that_was_cut_off_or_stands_in_the_body_does_not(
    receiver: Start, cut: bytes
) -> None:
    hell = await receiver(Answer([b"HTTP/1.1 429 Slow Down\r\nbad header\r\n" + cut], "close"))

    async with Poster(HERE, limits=HASTY) as poster:
        result = await poster.post(hell.url, BODY, {})

    assert (result.outcome, result.retry_after) == (Outcome.THROTTLED, None)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.sampled_from(["close", "reset"]), st.integers(0, 300))
async def test_no_rest_of_an_answer_changes_its_status(
    receiver: Start, rest: bytes, then: str, cut: int
) -> None:
    hell = await receiver(Answer([OK + rest[:cut], rest[cut:]], then="close"))

    async with Poster(HERE, limits=HASTY) as poster:
        result = await poster.post(hell.url, BODY, {})

    assert (result.outcome, result.status) == (Outcome.DELIVERED, 200)


async def test_the_rest_of_an_answer_takes_no_slot_for_long(receiver: Start) -> None:
    hell = await receiver(Answer([OK, b"Content-Length: 10\r\n\r\nslow"]))

    async with Poster(HERE, limits=HASTY) as poster:
        result = await poster.post(hell.url, BODY, {})
        await asyncio.wait_for(hell.gone.wait(), PATIENCE)

    assert result.elapsed < Limits().rest


async def test_endless_headers_take_little_memory(receiver: Start) -> None:
    hell = await receiver(Answer([OK] + [b"X-Policy: " + b"a" * 60_000 + b"\r\n"] * 500))

    async with Poster(HERE, limits=HASTY) as poster:
        result = await poster.post(hell.url, BODY, {})
        await asyncio.wait_for(hell.gone.wait(), PATIENCE)

    assert result.outcome is Outcome.DELIVERED
    assert sum(len(name) + len(value) for name, value in result.response_headers) <= Limits().keep


# Connections that are kept


GOOD = Answer([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"])


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_kept_connection_that_was_closed_costs_no_attempt(receiver: Start, then: str) -> None:
    """The receiver takes the second request and hangs up: it had decided to close before it saw it."""
    hell = await receiver(GOOD, Answer([], then), GOOD)

    async with Poster(HERE) as poster:
        first = await poster.post(hell.url, BODY, {"webhook-id": "evt_1"})
        second = await poster.post(hell.url, BODY, {"webhook-id": "evt_2"})

    assert [first.outcome, second.outcome] == [Outcome.DELIVERED, Outcome.DELIVERED]
    assert [b"evt_2" in head for head in hell.heads] == [False, True, True]
    assert hell.connections == 2


async def test_it_is_sent_once_more_and_not_again(receiver: Start) -> None:
    hell = await receiver(GOOD, Answer([], "close"))

    async with Poster(HERE) as poster:
        await poster.post(hell.url, BODY, {})
        result = await poster.post(hell.url, BODY, {})

    assert (result.outcome, result.status) == (Outcome.RESET, None)
    assert len(hell.heads) == 3


async def test_a_new_connection_that_breaks_is_a_failure(receiver: Start) -> None:
    hell = await receiver(Answer([], "close"))

    async with Poster(HERE) as poster:
        result = await poster.post(hell.url, BODY, {})

    assert result.outcome is Outcome.RESET
    assert len(hell.heads) == 1


async def test_a_kept_connection_that_breaks_within_an_answer_is_a_failure(
    receiver: Start,
) -> None:
    hell = await receiver(GOOD, Answer([b"HTT"], "close"), GOOD)

    async with Poster(HERE) as poster:
        await poster.post(hell.url, BODY, {})
        result = await poster.post(hell.url, BODY, {})

    assert result.outcome is Outcome.RESET
    assert len(hell.heads) == 2


async def test_silence_on_a_kept_connection_is_a_timeout_and_not_repeated(
    receiver: Start,
) -> None:
    hell = await receiver(GOOD, Answer([]))

    async with Poster(HERE, limits=Limits(total=timedelta(seconds=0.3))) as poster:
        await poster.post(hell.url, BODY, {})
        result = await poster.post(hell.url, BODY, {})

    assert result.outcome is Outcome.TIMEOUT
    assert len(hell.heads) == 2


async def test_what_a_receiver_says_unasked_is_no_answer_to_the_next_request(
    receiver: Start,
) -> None:
    """Some servers send a 408 before they close an idle connection."""
    unasked = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
    hell = await receiver(GOOD._replace(pieces=[*GOOD.pieces, b"", unasked]), GOOD)

    async with Poster(HERE) as poster:
        first = await poster.post(hell.url, BODY, {})
        await asyncio.wait_for(hell.gone.wait(), PATIENCE)
        second = await poster.post(hell.url, BODY, {})

    assert (first.status, second.status) == (200, 200)


# The URL


@pytest.mark.parametrize(
    "target",
    [
        "/a%2Fb?sig=x%2Fy%2Bz%3D",
        "/a%2fb",
        "/a//b/../c/./d",
        "/..",
        "//",
        "/%7E~%41A",
        "/a;b=c,d",
        "/?",
        "/??",
        "/a?",
        "/?a=b&a=b&&=&",
        "/?a=%20+b%2B",
        "/%zz%",
        "/{}|\\^\"<>`'()*!$@:[]",
        "/?next=https://other.example:8080/%2F?x=y%23z",
        "/" + "a" * 1900,
    ],
)
async def test_path_and_query_are_requested_byte_for_byte(receiver: Start, target: str) -> None:
    hell = await receiver(GOOD)

    async with Poster(HERE) as poster:
        await poster.post(f"http://127.0.0.1:{hell.port}{target}", BODY, {})

    assert hell.heads[0].split(b"\r\n")[0] == f"POST {target} HTTP/1.1".encode()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=[chr(code) for code in range(0x21, 0x7F) if chr(code) != "#"], max_size=60))
async def test_any_path_and_query_is_requested_byte_for_byte(receiver: Start, text: str) -> None:
    hell = await receiver(GOOD)

    async with Poster(HERE) as poster:
        await poster.post(f"http://127.0.0.1:{hell.port}/{text}", BODY, {})

    assert hell.heads[0].split(b"\r\n")[0] == f"POST /{text} HTTP/1.1".encode()


@pytest.mark.parametrize(("end", "target"), [("", "/"), ("?x=%2F", "/?x=%2F"), ("#x", "/"), ("/a#b?c", "/a")])
async def test_a_url_without_a_path_asks_for_the_root_and_a_fragment_is_not_sent(
    receiver: Start, end: str, target: str
) -> None:
    hell = await receiver(GOOD)

    async with Poster(HERE) as poster:
        await poster.post(f"http://127.0.0.1:{hell.port}{end}", BODY, {})

    assert hell.heads[0].split(b"\r\n")[0] == f"POST {target} HTTP/1.1".encode()
