"""What the README prints is run as it stands, against `wabery dev`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wabery.pytest_plugin import WaberyServer
from wabery.webhooks import sign_for_test

README = Path(__file__).parents[1] / "README.md"
SHELL = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
CREATE, CURL, WAIT, PRODUCTION = SHELL
(VERIFY,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
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


def test_waiting_ends_when_the_person_has_sent(clone: Path, wabery_server: WaberyServer) -> None:
    with shell(WAIT, clone) as waiting:
        assert waiting.stdout is not None
        link = next(line for line in waiting.stdout if line.startswith("https://wa.me/"))
        wabery_server.press_send(link.strip(), persona="ben")
        waiting.communicate(timeout=30)

    assert waiting.returncode == 0
    (joined, *_) = wabery_server.client.registration_intents.list(customer_reference="user_456")
    assert joined.status == "JOINED"


def test_the_lines_of_python_verify_what_we_sign() -> None:
    secret = "whsec_c2VjcmV0"
    body, headers = sign_for_test({"event": "participant.joined"}, secret)
    names: dict[str, object] = {}
    exec(VERIFY, names)
    is_from_wabery = names["is_from_wabery"]
    assert callable(is_from_wabery)

    assert is_from_wabery(body, headers["x-wabery-signature"], secret)
    assert not is_from_wabery(body + b" ", headers["x-wabery-signature"], secret)
    assert not is_from_wabery(body, "sha256=ä", secret)


def test_every_production_command_has_the_flags_that_are_shown(tmp_path: Path) -> None:
    lines = PRODUCTION.replace("\\\n", "").splitlines()
    commands = [line.partition("#")[0].split() for line in lines if line.startswith("wabery ")]

    assert len(commands) >= 8
    for words in commands:
        flags = [word for word in words if word.startswith("--")]
        names = words[1 : words.index(flags[0])] if flags else words[1:]
        explained = output(f"wabery {' '.join(names)} --help", tmp_path)
        assert [flag for flag in flags if flag not in explained] == [], words
