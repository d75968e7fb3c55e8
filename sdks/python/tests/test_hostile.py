"""What a network, a proxy or a careless caller does to a client: raw bytes from a socket, and arguments that cannot be sent."""

import json
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from small_server import SECRET_KEY, Scripted, SmallServer

import wabery

Play = Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"


@pytest.fixture
def peer() -> Iterator[Callable[[Play], str]]:
    """Make servers that read a request and then play; each returns its base URL."""
    ended = threading.Event()
    opened: list[tuple[socket.socket, threading.Thread]] = []

    def start(play: Play) -> str:
        listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            while not ended.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.recv(65536)
                        play(connection)
                    except OSError:
                        pass  # the client has had enough

        thread = threading.Thread(target=serve)
        thread.start()
        opened.append((listener, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

    yield start
    ended.set()
    for listener, thread in opened:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def reset(connection: socket.socket) -> None:
    connection.sendall(OK + b'{"id":')
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


BROKEN: dict[str, Play] = {
    "a body cut short": lambda connection: connection.sendall(OK + b'{"id":"reg_1"'),
    "a chunk cut short": lambda connection: connection.sendall(
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{"id":'
    ),
    "a reset in the middle": reset,
    "another protocol": lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "nothing": lambda connection: None,
    "no gzip": lambda connection: connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 6\r\n\r\n<html>"
    ),
}


@pytest.mark.parametrize("play", BROKEN.values(), ids=BROKEN)
def test_an_answer_that_breaks_off(make_client: Any, peer: Callable[[Play], str], play: Play) -> None:
    client = make_client(base_url=peer(play), max_retries=0)

    with pytest.raises(wabery.APIConnectionError, match=r"broke before its answer was complete"):
        client.registration_intents.get("reg_1")


def test_a_body_that_trickles_in_does_not_hold_the_call(
    make_client: Any, peer: Callable[[Play], str]
) -> None:
    def trickle(connection: socket.socket) -> None:
        connection.sendall(OK)
        for _ in range(100):
            connection.sendall(b" ")
            time.sleep(0.05)  # slower than the timeout as a whole, and never silent for as long

    client = make_client(base_url=peer(trickle), max_retries=0, timeout=0.3)
    begun = time.monotonic()

    with pytest.raises(wabery.APITimeoutError, match="timeout"):
        client.registration_intents.get("reg_1")

    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("body", ["", "{", "<html>Sign in to the hotel's network</html>", "null", '"OK"'])
def test_a_success_without_an_object(client: Any, server: SmallServer, body: str) -> None:
    server.script(Scripted(200, body))

    with pytest.raises(wabery.UnexpectedResponseError, match="base URL"):
        client.registration_intents.get("reg_1")


def test_a_proxy_that_answers_html_is_named(make_client: Any, server: SmallServer) -> None:
    server.script(Scripted(502, "<html>Bad gateway</html>"))

    with pytest.raises(wabery.ServerError) as raised:
        make_client(max_retries=0).projects.list().__iter__().__next__()

    assert server.base_url in str(raised.value)
    assert raised.value.body == "<html>Bad gateway</html>"


def test_a_redirect_is_explained(client: Any, server: SmallServer) -> None:
    server.script(Scripted(301, headers={"Location": "https://elsewhere.test/v1"}))

    with pytest.raises(wabery.APIError, match="redirects to another address"):
        client.projects.get(server.project_id)


# Waiting, when the way to the server is bad


@pytest.mark.parametrize("answer", [Scripted(503), Scripted(429, headers={"Retry-After": "3600"})])
def test_an_outage_does_not_prolong_a_wait(client: Any, server: SmallServer, answer: Scripted) -> None:
    intent = client.registration_intents.create(customer_reference="user_1")
    server.script(*[answer] * 9)
    begun = time.monotonic()

    with pytest.raises((wabery.WaitTimeoutError, wabery.RateLimitError)):
        client.registration_intents.wait(intent.id, timeout=0.4)

    assert time.monotonic() - begun < 2


def test_a_server_that_says_nothing_does_not_prolong_a_wait(
    make_client: Any, peer: Callable[[Play], str]
) -> None:
    client = make_client(base_url=peer(lambda connection: time.sleep(1)))
    begun = time.monotonic()

    with pytest.raises(wabery.WaitTimeoutError, match="not read yet") as raised:
        client.registration_intents.wait("reg_1", timeout=0.4)

    assert time.monotonic() - begun < 2
    assert raised.value.intent is None
    assert isinstance(raised.value.__cause__, wabery.APITimeoutError)


def test_a_wait_says_what_it_saw_last(client: Any, server: SmallServer) -> None:
    intent = client.registration_intents.create(customer_reference="user_1")
    server.settle(intent.id, status="EXPIRED", phase="grace")

    with pytest.raises(wabery.WaitTimeoutError, match="still grace"):
        client.registration_intents.wait(intent.id, timeout=0.2)


@pytest.mark.parametrize("body", [{}, {"status": None}, {"data": []}])
def test_an_answer_without_a_status_is_not_taken_for_an_end(
    client: Any, server: SmallServer, body: dict[str, Any]
) -> None:
    server.script(Scripted(200, body))

    with pytest.raises(wabery.UnexpectedResponseError, match="no status"):
        client.registration_intents.wait("reg_1")


def test_a_wait_without_time_is_refused(client: Any, server: SmallServer) -> None:
    with pytest.raises(wabery.UsageError, match="more than 0"):
        client.registration_intents.wait("reg_1", timeout=0)

    assert server.seen == []


# What cannot be sent


@pytest.mark.parametrize(
    "intent_id", ["", ".", "..", "reg_1/cancel", "reg_1?x=1", "reg_1 ", "reg_ü", None, 7, {}]
)
def test_what_is_no_id(client: Any, server: SmallServer, intent_id: Any) -> None:
    with pytest.raises(wabery.UsageError, match="id of an object"):
        client.registration_intents.get(intent_id)

    assert server.seen == []


@pytest.mark.parametrize(
    "options",
    [
        {"client_secret": "wcs_h1dden\nX-Evil: 1"},
        {"client_secret": "wcs_h1ddenü"},
        {"extra_headers": {"x-trace": "h1dden\r\n"}},
        {"extra_headers": {"x-trace": b"h1dden"}},
        {"extra_headers": {"x trace": "1"}},
        {"timeout": 0},
        {"timeout": float("nan")},
    ],
)
def test_options_that_cannot_be_sent_are_refused_without_being_repeated(
    client: Any, server: SmallServer, options: dict[str, Any]
) -> None:
    with pytest.raises(wabery.UsageError) as raised:
        client.registration_intents.get("reg_1", **options)

    assert "h1dden" not in str(raised.value)
    assert server.seen == []


@pytest.mark.parametrize("key", ["", "a\nb", "ü", "x" * 256])
def test_an_idempotency_key_that_is_none(client: Any, server: SmallServer, key: str) -> None:
    with pytest.raises(wabery.UsageError, match="idempotency"):
        client.registration_intents.create(customer_reference="a", idempotency_key=key)

    assert server.seen == []


@pytest.mark.parametrize(
    "where", ["projects", ".evil.test/", "//evil.test", "/a?b=1", "/a#b", "/../inbound", "/a/."]
)
def test_a_path_that_is_none(client: Any, server: SmallServer, where: str) -> None:
    with pytest.raises(wabery.UsageError, match="path"):
        client.request("GET", where)

    assert server.seen == []


def test_any_other_call_by_its_path(client: Any, server: SmallServer) -> None:
    project = client.request("PATCH", f"/projects/{server.project_id}", body={"name": "Other"})
    listed = client.request("GET", "/projects", query={"limit": 1})

    assert (project.id, project["name"], listed["has_more"]) == (server.project_id, "Other", False)
    assert server.seen[-1].query == {"limit": "1"}


# No key is printed


def test_no_error_repeats_a_key(client: Any, server: SmallServer) -> None:
    message = f"no key {SECRET_KEY}, no wcs_0123456789abcdef, no whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    server.script(Scripted(401, {"error": "invalid_api_key", "message": message}), Scripted(404))

    with pytest.raises(wabery.AuthenticationError) as refused:
        client.projects.get(server.project_id)
    with pytest.raises(wabery.EndpointNotAvailableError) as lost:
        client.registration_intents.get(SECRET_KEY)

    for error in (refused.value, lost.value):
        shown = "".join(traceback.format_exception(error)) + repr(error) + json.dumps(error.body)
        assert not any(secret in shown for secret in (SECRET_KEY, "0123456789abcdef", "MfKQ9r8"))
    assert "wab_test_…" in str(refused.value)
