"""Wabery behind the proxies that the production page shows, with kept-alive connections, and an attacker in front of them.

The attacker sends a request that asks for an upgrade, and later its body, which looks like another request. A server that takes
it for one answers twice on one connection, and the proxy hands the second answer to the next client.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wabery.pytest_plugin import WaberyServer

pytestmark = pytest.mark.hostile

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/how-to/production.md").read_text()
PATIENCE = 20
VICTIMS = 3
PROGRAMS = f"{os.environ['PATH']}:/usr/sbin:/sbin:{ROOT}/.venv/debian/usr/sbin:{ROOT}/.venv/debian/usr/bin"


def block(title: str) -> str:
    """A configuration as the page shows it."""
    found = re.search(rf'```\w+ title="{title}"\n(.*?)```', PAGE, re.DOTALL)
    assert found is not None, title
    return found[1]


def caddy(folder: Path, port: int, upstream: str) -> list[str]:
    text = block("Caddyfile").replace("wabery.example.com", f"http://127.0.0.1:{port}")
    (folder / "Caddyfile").write_text("{\n\tadmin off\n}\n" + text.replace("127.0.0.1:8420", upstream))
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


def nginx(folder: Path, port: int, upstream: str, *, careless: bool = False) -> list[str]:
    """As on the page; `careless` also passes Upgrade on, as configurations for web sockets do, and bodies as they come."""
    text = block("nginx.conf").replace("127.0.0.1:8420", upstream)
    text = re.sub(r"listen .*;", f"listen 127.0.0.1:{port};", text)
    text = re.sub(r" *ssl_certificate.*;\n", "", text)
    if careless:
        text = text.replace(
            'proxy_set_header Connection "";',
            "proxy_set_header Connection $http_connection; proxy_set_header Upgrade $http_upgrade;"
            " proxy_request_buffering off;",
        )
        assert "$http_upgrade" in text
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{text}\n}}\n"
    )
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]


PROXIES = {
    "caddy": caddy,
    "nginx": nginx,
    "nginx that passes Upgrade on": lambda folder, port, upstream: nginx(
        folder, port, upstream, careless=True
    ),
}


@contextmanager
def running(name: str, folder: Path, upstream: str) -> Iterator[int]:
    """The proxy in front of `upstream`; the port on which it listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    command = PROXIES[name](folder, port, upstream)
    program = shutil.which(command[0], path=PROGRAMS)
    assert program is not None, f"{command[0]} is missing: `make .venv/debian/installed` fetches it."
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, *command[1:]], stdout=log, stderr=log, env={"HOME": str(folder)})
    try:
        end = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end, f"{name} does not listen"
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)  # another program has no event for us
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE)


def minted(port: int, server: WaberyServer, reference: str) -> dict[str, object]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/registration-intents",
        data=json.dumps({"customer_reference": reference}).encode(),
        headers={"content-type": "application/json", "x-wabery-publishable-key": server.publishable_key},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        body: dict[str, object] = json.load(answer)
    return body


def attack(port: int, server: WaberyServer, own: dict[str, object]) -> None:
    """A request for an upgrade that is answered after a second, whose body ends with a request that takes two.

    When it is answered, and its body sent, the proxy keeps its connection for the next client.
    """
    keys = f"x-wabery-publishable-key: {server.publishable_key}\r\nx-wabery-client-secret: {own['client_secret']}\r\n"
    host = f"Host: 127.0.0.1:{port}\r\n"
    path = f"/v1/registration-intents/{own['id']}"
    inner = f"GET {path}?wait=2 HTTP/1.1\r\n{host}{keys}\r\n".encode()
    filling = b"\r\n" * 4096  # more than a proxy keeps back
    outer = (
        f"GET {path}?wait=1 HTTP/1.1\r\n{host}{keys}Connection: Upgrade\r\nUpgrade: foo\r\n"
        f"Content-Length: {len(filling) + len(inner)}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as attacker:
        attacker.sendall(outer + filling)
        time.sleep(0.3)  # the rest must come in a packet of its own
        attacker.sendall(inner)
        assert attacker.recv(65_536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("name", PROXIES)
def test_nobody_is_answered_with_what_an_attacker_has_asked(
    wabery_server: WaberyServer, tmp_path: Path, name: str
) -> None:
    upstream = wabery_server.base_url.removeprefix("http://").removesuffix("/v1")
    tmp_path.chmod(0o755)

    with running(name, tmp_path, upstream) as port:
        own = minted(port, wabery_server, "attacker")
        for number in range(VICTIMS):
            attack(port, wabery_server, own)
            victim = minted(port, wabery_server, f"victim_{number}")
            assert victim["customer_reference"] == f"victim_{number}"
            assert victim["id"] != own["id"]


@pytest.mark.parametrize("name", PROXIES)
def test_a_large_webhook_and_a_long_wait_pass_the_proxy(
    wabery_server: WaberyServer, tmp_path: Path, name: str
) -> None:
    upstream = wabery_server.base_url.removeprefix("http://").removesuffix("/v1")
    tmp_path.chmod(0o755)
    body = b'{"object": "whatsapp_business_account", "entry": []}'.ljust(4 * 1024 * 1024)

    with running(name, tmp_path, upstream) as port:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/inbound/whatsapp", data=body)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=PATIENCE)
        # Read whole, and judged by its signature: not 413, not 502.
        assert refused.value.code == 401
        refused.value.close()
        intent = minted(port, wabery_server, "user_1")
        waiting = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/registration-intents/{intent['id']}?wait=2",
            headers={"x-wabery-publishable-key": wabery_server.publishable_key},
        )
        with urllib.request.urlopen(waiting, timeout=PATIENCE) as answer:
            assert json.load(answer)["status"] == "PENDING"
