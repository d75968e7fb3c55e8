"""From a mint with curl to a webhook that openssl verifies: the whole product, touched with nothing of ours.

What is delivered is also verified by the libraries of Standard Webhooks and of Svix, in both languages.
"""

import base64
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import standardwebhooks
import svix.webhooks

ROOT = Path(__file__).parents[1]
PATIENCE = 30
SECRET = "our own signing secret, ünïcode and all"
TEXT = "Where is the parcel for the lighthouse?"
PHONE = "12125550123"
"""Ana's, on the fake phone."""


class Delivery(NamedTuple):
    """What arrived at the app's server."""

    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> Any:
        return json.loads(self.body)


@dataclass
class Product:
    """`wabery dev` in a process of its own, logging all it can."""

    base_url: str
    project_id: str
    api_key: str
    publishable_key: str
    log: Path
    process: subprocess.Popen[str]

    def bash(self, script: str, **environ: str) -> str:
        """Runs a script as a developer's terminal would, with the product's keys in the environment."""
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        path = f"{ROOT / '.venv/bin'}:{inherited['PATH']}"
        keys = {
            "WABERY_BASE_URL": self.base_url,
            "WABERY_API_KEY": self.api_key,
            "WABERY_PUBLISHABLE_KEY": self.publishable_key,
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            env={**inherited, **keys, **environ, "PATH": path},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def stop(self) -> str:
        """Ends the process; everything it has said on stderr."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        return self.log.read_text()


@pytest.fixture
def product() -> Iterator[Product]:
    folder = Path(tempfile.mkdtemp(prefix="wabery-"))
    words = [
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
    environ["WABERY_LOG_LEVEL"] = "debug"
    log = folder / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, env=environ, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            lines = Path(ready["env_file"]).read_text().splitlines()
            keys = dict(line.split("=", 1) for line in lines)
            yield Product(
                ready["base_url"],
                ready["project_id"],
                keys["WABERY_API_KEY"],
                keys["WABERY_PUBLISHABLE_KEY"],
                log,
                process,
            )
        finally:
            process.terminate()
            process.wait(PATIENCE)
            shutil.rmtree(folder, ignore_errors=True)


class Receiver:
    """The app's own server: answers 204 and keeps what came."""

    def __init__(self) -> None:
        self.arrived: queue.Queue[Delivery] = queue.Queue()
        arrived = self.arrived

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                arrived.put(Delivery(headers, body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/webhooks/wabery"

    def next(self) -> Delivery:
        return self.arrived.get(timeout=PATIENCE)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def verified(delivery: Delivery, secret: str, folder: Path) -> bool:
    """Whether openssl finds the contract's signature: HMAC-SHA256 of the raw body under the secret's UTF-8 bytes."""
    body = folder / "body"
    body.write_bytes(delivery.body)
    command = ["openssl", "dgst", "-sha256", "-hmac", secret, "-hex", str(body)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    digest = said.strip().rpartition("= ")[2]
    assert re.fullmatch("[0-9a-f]{64}", digest)
    return delivery.headers["x-wabery-signature"] == f"sha256={digest}"


MINT = """curl --silent --show-error --fail-with-body "$WABERY_BASE_URL/registration-intents" \
  -H "x-wabery-publishable-key: $WABERY_PUBLISHABLE_KEY" \
  -H "Content-Type: application/json" \
  -d '{"customer_reference": "user_123", "metadata": {"plan": "starter"}}'"""
SEND = """curl --silent --show-error --fail-with-body "${WABERY_BASE_URL%/v1}/phone/api/send" \
  -H "Content-Type: application/json" -d "$MESSAGE" """
POLL = """curl --silent --show-error --fail-with-body "$WABERY_BASE_URL/registration-intents/$INTENT" \
  -H "x-wabery-publishable-key: $WABERY_PUBLISHABLE_KEY" """
PERSON = {
    "contact_id",
    "conversation_id",
    "channel_id",
    "organization_id",
    "from",
    "customer_reference",
    "contact_reference",
}


def test_an_app_hears_of_a_join_and_of_a_later_message(
    product: Product, receiver: Receiver, tmp_path: Path
) -> None:
    product.bash(
        f'wabery projects update {product.project_id} --webhook-url "$URL" --webhook-secret "$SECRET"',
        URL=receiver.url,
        SECRET=SECRET,
    )
    intent = json.loads(product.bash(MINT))

    product.bash(SEND, MESSAGE=json.dumps({"link": intent["wa_link"], "persona": "ana"}))
    joined = receiver.next()
    product.bash(SEND, MESSAGE=json.dumps({"text": TEXT, "persona": "ana"}))
    received = receiver.next()

    polled = json.loads(product.bash(POLL, INTENT=intent["id"]))
    assert (polled["status"], polled["object"]) == ("JOINED", "registration_intent")
    for delivery, name in ((joined, "participant.joined"), (received, "message.received")):
        assert set(delivery.event) == {"event", "payload", "sentAt"}
        assert delivery.event["event"] == name
        assert set(delivery.event["payload"]) >= PERSON
        assert delivery.event["payload"]["customer_reference"] == "user_123"
        assert delivery.event["payload"]["contact_reference"] == "user_123"
        assert delivery.event["payload"]["metadata"] == {"plan": "starter"}
        assert delivery.event["payload"]["from"] == f"+{PHONE}"
        assert delivery.headers["content-type"] == "application/json"
        assert delivery.headers["webhook-id"] == delivery.event["payload"]["event_id"]
        assert verified(delivery, SECRET, tmp_path)
        assert not verified(delivery, SECRET + " ", tmp_path)
    assert received.event["payload"]["text"] == TEXT
    assert received.event["payload"]["agent_id"] is None
    assert intent["token"].encode() not in joined.body + received.body

    log = product.stop()
    requests = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert {"request", "inbound", "delivery"} <= {line["event"] for line in requests}
    for secret in (
        product.api_key, product.publishable_key, intent["token"], intent["client_secret"], SECRET, PHONE, TEXT,
        "lighthouse", "user_123", "starter", "webhooks/wabery",
    ):  # fmt: skip
        assert secret not in log


def test_a_rotated_secret_signs_what_comes_after_it(
    product: Product, receiver: Receiver, tmp_path: Path
) -> None:
    key = '-H "Authorization: Bearer $WABERY_API_KEY"'
    project = f'"$WABERY_BASE_URL/projects/{product.project_id}'
    product.bash(
        f"""curl --silent --fail-with-body -X PATCH {project}" {key} -H "Content-Type: application/json" -d "$CHANGES" """,
        CHANGES=json.dumps({"webhook_url": receiver.url}),
    )
    before = json.loads(product.bash(f'curl --silent --fail-with-body {project}" {key}'))["webhook_secret"]
    after = json.loads(
        product.bash(f'curl --silent --fail-with-body -X POST {project}/rotate-webhook-secret" {key}')
    )
    listed = product.bash(f'curl --silent --fail-with-body "$WABERY_BASE_URL/projects" {key}')

    product.bash(SEND, MESSAGE=json.dumps({"text": TEXT}))
    delivery = receiver.next()

    assert before.startswith("whsec_")
    assert after["webhook_secret"] != before
    assert "whsec_" not in listed
    assert verified(delivery, after["webhook_secret"], tmp_path)
    assert not verified(delivery, before, tmp_path)


@dataclass(frozen=True)
class Claim:
    """What a library is asked: whether this body comes from whoever has this secret."""

    body: str
    headers: dict[str, str]
    secret: str


def python(
    library: type[standardwebhooks.Webhook] | type[svix.webhooks.Webhook], claims: list[Claim]
) -> list[bool]:
    def holds(claim: Claim) -> bool:
        try:
            library(claim.secret).verify(claim.body, claim.headers)
        except standardwebhooks.WebhookVerificationError:
            return False
        return True

    return [holds(claim) for claim in claims]


NODE = """
import { readFileSync } from "node:fs";
import { Webhook, WebhookVerificationError } from "%s";

const holds = ({ body, headers, secret }) => {
  try {
    new Webhook(secret).verify(body, headers);
    return true;
  } catch (failure) {
    if (failure instanceof WebhookVerificationError) return false;
    throw failure;
  }
};
console.log(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(holds)));
"""


def node(package: str, claims: list[Claim]) -> list[bool]:
    """Where the npm packages are installed; a clone without them gets them first."""
    if not (ROOT / "node_modules" / package).exists():
        subprocess.run(["npm", "ci", "--silent"], cwd=ROOT, timeout=300, check=True)
    said = subprocess.run(
        ["node", "--input-type=module", "-e", NODE % package],
        input=json.dumps([vars(claim) for claim in claims]),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    verdicts: list[bool] = json.loads(said)
    return verdicts


LIBRARIES: dict[str, Callable[[list[Claim]], list[bool]]] = {
    "standardwebhooks of PyPI": lambda claims: python(standardwebhooks.Webhook, claims),
    "svix of PyPI": lambda claims: python(svix.webhooks.Webhook, claims),
    "standardwebhooks of npm": lambda claims: node("standardwebhooks", claims),
    "svix of npm": lambda claims: node("svix", claims),
}


def test_libraries_that_nobody_here_wrote_believe_what_is_delivered_and_nothing_else(
    product: Product, receiver: Receiver
) -> None:
    update = f'wabery projects update {product.project_id} --webhook-url "$URL" --json'
    made = json.loads(product.bash(update, URL=receiver.url))["webhook_secret"]
    product.bash(SEND, MESSAGE=json.dumps({"text": TEXT}))
    first = receiver.next()
    product.bash(f'{update} --webhook-secret "$SECRET"', URL=receiver.url, SECRET=SECRET)
    product.bash(SEND, MESSAGE=json.dumps({"text": "ünïcode \U0001f4e6"}))
    second = receiver.next()

    # A secret that is not of their form is given to them as the base64 of its UTF-8.
    ours = "whsec_" + base64.b64encode(SECRET.encode()).decode()
    claims = [
        Claim(first.body.decode(), first.headers, made),
        Claim(second.body.decode(), second.headers, ours),
        Claim(first.body.decode(), first.headers, ours),
        Claim(first.body.decode() + " ", first.headers, made),
        Claim(first.body.decode(), first.headers | {"webhook-id": second.headers["webhook-id"]}, made),
    ]

    for name, believes in LIBRARIES.items():
        assert believes(claims) == [True, True, False, False, False], name
