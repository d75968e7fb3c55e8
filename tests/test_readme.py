"""What the README prints is run as it stands, against `wabery dev`."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wabery import WebhookVerificationError
from wabery.pytest_plugin import WaberyServer
from wabery.webhooks import sign_for_test

README = Path(__file__).parents[1] / "README.md"
SHELL = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
DEV, CREATE, CURL, PRODUCTION = SHELL
(APP,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
BIN = str(Path(sys.executable).parent)


@pytest.fixture
def clone(tmp_path: Path, wabery_server: WaberyServer) -> Path:
    """A folder where somebody has run `make dev`."""
    (tmp_path / ".wabery").mkdir(mode=0o700)
    keys = tmp_path / ".wabery/dev.env"
    keys.touch(mode=0o600)
    keys.write_text(
        f"WABERY_BASE_URL={wabery_server.base_url}\n"
        f"WABERY_API_KEY={wabery_server.api_key}\n"
        f"WABERY_PUBLISHABLE_KEY={wabery_server.publishable_key}\n"
    )
    return tmp_path


def shell(script: str, folder: Path) -> "subprocess.Popen[str]":
    environ = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(folder)}
    return subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def output(script: str, folder: Path) -> str:
    with shell(script, folder) as running:
        out, problem = running.communicate(timeout=30)
    assert running.returncode == 0, problem
    return out


def test_the_command_line_prints_a_link_that_joins(clone: Path, wabery_server: WaberyServer) -> None:
    link = output(CREATE, clone).strip()

    wabery_server.press_send(link)

    assert link.startswith("https://wa.me/")
    (newest, *_) = wabery_server.client.registration_intents.list(customer_reference="user_123")
    assert newest.status == "JOINED"
    assert newest.metadata == {"plan": "starter"}


def test_curl_mints_with_a_publishable_key(clone: Path) -> None:
    answer = output(CURL, clone)

    assert '"status":"PENDING"' in answer
    assert '"wa_link":"https://wa.me/' in answer
    assert '"reference_trust":"unverified"' in answer


def test_the_lines_for_an_app_mint_and_believe(
    wabery_server: WaberyServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "whsec_bWFkZSBmb3IgdGhpcyB0ZXN0LCBubyBzZWNyZXQ="
    monkeypatch.setenv("WABERY_API_KEY", wabery_server.api_key)
    monkeypatch.setenv("WABERY_BASE_URL", wabery_server.base_url)
    monkeypatch.setenv("WABERY_WEBHOOK_SECRET", secret)
    payload = {"customer_reference": "user_123", "contact_id": "contact_1"}
    body, headers = sign_for_test({"event": "participant.joined", "payload": payload}, secret)
    names: dict[str, Any] = {}

    exec(APP, names)
    names["wabery"].close()
    names["receive"](body, headers)

    assert names["link"].startswith("https://wa.me/")
    assert capsys.readouterr().out == "user_123 is contact_1\n"
    with pytest.raises(WebhookVerificationError):
        names["receive"](body + b" ", headers)


def test_its_first_line_is_a_command_of_the_makefile() -> None:
    commands = [line.partition("#")[0].split() for line in DEV.splitlines()]
    assert [command[0] for command in commands] == ["make", "make"]
    for _, target in commands:
        subprocess.run(["make", "-n", target], cwd=README.parent, check=True)


def test_it_can_be_read_at_once() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_what_it_shows_and_installs_is_there() -> None:
    text = README.read_text()
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", text)
    paths = re.findall(r"`(?:\./)?(sdks/\w+|requirements/\S+?)`|\./(\w+/\w+)\[", text)

    assert len(pictures) == 3
    assert [path for path in pictures if not (README.parent / path).exists()] == []
    assert [path for both in paths for path in both if not (README.parent / path).exists()] == []


def test_every_production_command_has_the_flags_that_are_shown(tmp_path: Path) -> None:
    lines = PRODUCTION.replace("\\\n", "").splitlines()
    commands = [line.partition("#")[0].split() for line in lines if line.startswith("wabery ")]

    assert len(commands) >= 6
    for words in commands:
        flags = [word for word in words if word.startswith("--")]
        names = words[1 : words.index(flags[0])] if flags else words[1:]
        explained = output(f"wabery {' '.join(names)} --help", tmp_path)
        assert [flag for flag in flags if flag not in explained] == [], words
