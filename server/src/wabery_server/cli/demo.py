"""`wabery demo`: the whole story, headless. Starts `wabery dev` in an empty folder and plays app, person and app server.

Everything goes through what anybody could use: the SDK, the HTTP API, the fake phone, a webhook receiver of its own.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from wabery import Wabery, webhooks
from wabery_server.cli import FAILED, say

_PATIENCE_SECONDS = 15.0


class _Broken(Exception):
    """A step did not do what it must."""


def run() -> int:
    """Prints each step; returns 0 when all of them held."""
    began = time.monotonic()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="wabery-demo-") as folder,
            _receiver() as (url, arrived),
            _server(Path(folder)) as env,
        ):
            _story(env, url, arrived)
    except _Broken as failure:
        say(f"  FAILED  {failure}")
        return FAILED
    say(f"All of it held, in {time.monotonic() - began:.1f} s.")
    return 0


def _story(env: dict[str, str], url: str, arrived: "queue.Queue[tuple[bytes, dict[str, str]]]") -> None:
    base_url = env["WABERY_BASE_URL"]
    with Wabery(api_key=env["WABERY_API_KEY"], base_url=base_url) as app:
        (project,) = list(app.projects.list())
        secret = app.projects.update(project.id, webhook_url=url).webhook_secret
        _step(f"the app tells where its webhooks go: {url}")

        intent = app.registration_intents.create(customer_reference="user_123", metadata={"plan": "starter"})
        _check(
            intent.status == "PENDING" and intent.wa_link.startswith("https://wa.me/"), "mint gave no link"
        )
        _step(f"the app mints a link: {intent.id} is {intent.status}")

        _send(base_url, link=intent.wa_link)
        _step("Ana opens the link and presses send; WhatsApp posts a signed webhook")

        joined = app.registration_intents.wait(intent.id, timeout=_PATIENCE_SECONDS)
        _check(joined.status == "JOINED", f"the intent is {joined.status}, not JOINED")
        _step(f"the intent is {joined.status}: {joined.contact_id}")

        event = _delivery(arrived, secret)
        _check(event["event"] == "participant.joined", f"{event['event']} came first")
        _check(event["payload"]["customer_reference"] == "user_123", "the webhook names another customer")
        _check(event["payload"]["metadata"] == {"plan": "starter"}, "the webhook lost the metadata")
        _step("participant.joined arrives at the app's server; its signature is good")

        _send(base_url, text="Where is my order?")
        event = _delivery(arrived, secret)
        _check(event["event"] == "message.received", f"{event['event']} came instead of the message")
        _check(
            event["payload"]["customer_reference"] == "user_123", "the message is not tied to the customer"
        )
        _check(event["payload"]["text"] == "Where is my order?", "the message lost its text")
        _step("her next message arrives as message.received, with customer_reference user_123")

        _send(base_url, link=intent.wa_link, persona="ben")
        event = _delivery(arrived, secret)
        _check(event["event"] == "security.token_reuse", f"{event['event']} came instead of an alarm")
        again = app.registration_intents.get(intent.id)
        _check(again.contact_id == joined.contact_id, "somebody else took the link over")
        _step("Ben sends the same token: nothing changes, security.token_reuse is raised")


def _delivery(arrived: "queue.Queue[tuple[bytes, dict[str, str]]]", secret: str) -> dict[str, Any]:
    try:
        body, headers = arrived.get(timeout=_PATIENCE_SECONDS)
    except queue.Empty:
        raise _Broken("no webhook arrived") from None
    webhooks.unwrap(body, headers, secret=secret)
    event: dict[str, Any] = json.loads(body)
    return event


def _send(base_url: str, **what: str) -> None:
    url = base_url.removesuffix("/v1") + "/phone/api/send"
    request = urllib.request.Request(url, json.dumps(what).encode(), {"content-type": "application/json"})  # noqa: S310  # loopback
    with urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS) as answer:  # noqa: S310
        _check(json.load(answer)["status"] == 200, "the inbound webhook was refused")


def _step(text: str) -> None:
    say(f"  ok      {text}")


def _check(held: bool, problem: str) -> None:
    if not held:
        raise _Broken(problem)


@contextmanager
def _server(folder: Path) -> Iterator[dict[str, str]]:
    """`wabery dev` as its own process; yields what it wrote into dev.env."""
    command = [
        sys.executable,
        "-m",
        "wabery_server",
        "dev",
        "--port",
        "0",
        "--json",
        "--data-dir",
        str(folder / "data"),
    ]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WABERY_")}
    environ.pop("DATABASE_URL", None)
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", env=environ) as process:  # noqa: S603  # ourselves
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise _Broken("`wabery dev` did not start")
            ready = json.loads(line)
            _step(f"wabery dev is ready at {ready['base_url']}")
            lines = Path(ready["env_file"]).read_text("utf-8").splitlines()
            yield dict(entry.split("=", 1) for entry in lines)
        finally:
            process.send_signal(signal.SIGTERM)


@contextmanager
def _receiver() -> Iterator[tuple[str, "queue.Queue[tuple[bytes, dict[str, str]]]"]]:
    """The app's own server: a URL, and what is posted to it."""
    arrived: queue.Queue[tuple[bytes, dict[str, str]]] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            arrived.put((body, dict(self.headers)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/webhooks", arrived
    finally:
        server.shutdown()
        server.server_close()
