"""A whole Wabery for the tests of your app: the fixture `wabery_server`.

    def test_connecting(wabery_server):
        intent = wabery_server.client.registration_intents.create(customer_reference="user_123")

        wabery_server.press_send(intent.wa_link)

        assert wabery_server.client.registration_intents.wait(intent.id, timeout=10).status == "JOINED"

It is `wabery dev` on a free port, with its own database in a temporary folder, started once per session and ended with it.
Needs `wabery-server`. What `press_send` does is what happens in production: a signed webhook of Meta's, posted to the server.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from wabery import Wabery

_READY_WITHIN = 60.0
_ENDS_WITHIN = 20.0


@dataclass(frozen=True)
class WaberyServer:
    """A running server with a sandbox project, and the phone of somebody who writes to it."""

    base_url: str
    api_key: str = field(repr=False)
    """The sandbox project's secret key."""
    publishable_key: str
    project_id: str
    client: Wabery = field(repr=False)
    """A client with the secret key; closed with the server."""

    def press_send(self, wa_link: str, *, persona: str = "ana") -> None:
        """Open a link and press send, as a person does.

        Personas are different people: ana, ben (shares no phone number), chidi, dalia, emi, stranger.
        """
        self._write({"link": wa_link, "persona": persona})

    def send(self, text: str, *, persona: str = "ana") -> None:
        """Write any message to the sandbox number."""
        self._write({"text": text, "persona": persona})

    def _write(self, message: dict[str, str]) -> None:
        import httpx2

        url = f"{self.base_url.removesuffix('/v1')}/phone/api/send"
        answer = httpx2.post(url, json=message, timeout=30, trust_env=False)
        if answer.status_code != 200 or not answer.json()["delivered"]:
            raise RuntimeError(f"The fake phone could not send: HTTP {answer.status_code}, {answer.text}")


@pytest.fixture(scope="session")
def wabery_server() -> Iterator[WaberyServer]:
    """A running Wabery, shared by the whole session. Use references of your own in each test.

    Unlike the default, its project lets one person join for many references, because every test has the same few people.
    """
    from wabery import Wabery

    # Not below pytest's own folder: PostgreSQL's socket needs a short path.
    folder = Path(tempfile.mkdtemp(prefix="wabery-"))
    try:
        with _running(folder) as told:
            lines = Path(told["env_file"]).read_text("utf-8").splitlines()
            keys = {name: value for name, _, value in (line.partition("=") for line in lines)}
            with Wabery(keys["WABERY_API_KEY"], told["base_url"]) as client:
                client.projects.update(
                    told["project_id"], on_identity_linked="allow", references_per_contact=1000
                )
                yield WaberyServer(
                    base_url=told["base_url"],
                    api_key=keys["WABERY_API_KEY"],
                    publishable_key=keys["WABERY_PUBLISHABLE_KEY"],
                    project_id=told["project_id"],
                    client=client,
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _running(folder: Path) -> Iterator[dict[str, str]]:
    """`wabery dev`, and what it says of itself when it is ready."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("WABERY_") and k != "DATABASE_URL"}
    words = [
        sys.executable,
        "-m",
        "wabery.cli",
        "dev",
        "--port",
        "0",
        "--data-dir",
        str(folder / "data"),
        "--json",
    ]
    log = folder / "log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(  # noqa: S603 (our own command)
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=inherited,
            encoding="utf-8",
        ) as process,
    ):
        assert process.stdout is not None
        try:
            line = _first_line(process.stdout)
            if not line:
                raise RuntimeError(
                    f"`wabery dev` did not start; is wabery-server installed?\n{log.read_text('utf-8', 'replace')}"
                )
            yield json.loads(line)
        finally:
            process.terminate()
            try:
                process.wait(_ENDS_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()


def _first_line(stream: IO[str]) -> str:
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: lines.put(stream.readline()), daemon=True).start()
    try:
        return lines.get(timeout=_READY_WITHIN)
    except queue.Empty:
        return ""
