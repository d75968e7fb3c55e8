"""The README's code, run."""

import asyncio
import importlib.util
import re
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest
from small_server import SmallServer

from wabery.pytest_plugin import WaberyServer
from wabery.webhooks import sign_for_test

README = Path(__file__).parents[1] / "README.md"
QUICKSTART, RECEIVER, OWN_TESTS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_minting_and_waiting(
    server: SmallServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WABERY_API_KEY", server.secret_key)
    monkeypatch.setenv("WABERY_BASE_URL", server.base_url)

    def person() -> None:
        with server.changed:
            server.changed.wait_for(lambda: bool(server.intents), 10)
        (intent,) = server.intents.values()
        server.press_send(intent["token"])

    somebody = threading.Thread(target=person)
    somebody.start()
    names = run(QUICKSTART)
    somebody.join()
    names["wabery"].close()

    link, status = capsys.readouterr().out.splitlines()
    assert link.startswith("https://wa.me/")
    assert status == "JOINED"


def test_receiving(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WABERY_WEBHOOK_SECRET", "my own secret")
    app = run(RECEIVER)["app"]
    payload = {"customer_reference": "user_123", "contact_id": "contact_1"}
    good = sign_for_test({"event": "participant.joined", "payload": payload}, "my own secret")

    async def deliver() -> list[int]:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://app.test") as web:
            return [
                (await web.post("/hooks", content=content, headers=good.headers)).status_code
                for content in (good.body, b"{}")
            ]

    assert asyncio.run(deliver()) == [204, 400]
    assert capsys.readouterr().out == "user_123 is contact_1\n"


@pytest.mark.skipif(importlib.util.find_spec("wabery_server") is None, reason="wabery-server is missing")
def test_own_tests(wabery_server: WaberyServer) -> None:
    run(OWN_TESTS)["test_connecting"](wabery_server)


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, str(README), "exec"), names)
    return names
