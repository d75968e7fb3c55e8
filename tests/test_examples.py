"""The examples do what they say. Those that a page shows whole are run with it: see COPIES in test_docs.py."""

import os
import subprocess
from collections.abc import Iterator

import pytest
from reader import ROOT

from wabery.pytest_plugin import WaberyServer

CONNECT = ROOT / "examples/curl/connect.sh"


@pytest.fixture
def environ(wabery_server: WaberyServer) -> dict[str, str]:
    names = {"WABERY_BASE_URL": wabery_server.base_url, "WABERY_API_KEY": wabery_server.api_key}
    return {"PATH": os.environ["PATH"], **names}


@pytest.fixture
def connecting(environ: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """The script, waiting for somebody to press send."""
    with subprocess.Popen([CONNECT, "curl_user"], env=environ, stdout=subprocess.PIPE, text=True) as script:
        yield script
        script.kill()


def test_curl_alone_connects_somebody(
    connecting: "subprocess.Popen[str]", wabery_server: WaberyServer
) -> None:
    assert connecting.stdout is not None
    link = connecting.stdout.readline().strip()

    wabery_server.press_send(link)

    assert connecting.stdout.read() == "JOINED\n"
    assert connecting.wait(10) == 0
    (joined,) = wabery_server.client.registration_intents.list(customer_reference="curl_user")
    assert joined.status == "JOINED"


def test_curl_alone_tells_that_nobody_joined(
    connecting: "subprocess.Popen[str]", wabery_server: WaberyServer
) -> None:
    assert connecting.stdout is not None
    connecting.stdout.readline()
    (minted, *_) = wabery_server.client.registration_intents.list(customer_reference="curl_user")

    wabery_server.client.registration_intents.cancel(minted.id)

    assert connecting.stdout.read() == "REJECTED\n"
    assert connecting.wait(10) == 1


def test_curl_alone_sends_nothing_that_it_cannot_write_as_json(environ: dict[str, str]) -> None:
    refused = subprocess.run([CONNECT, 'user"1'], check=False, env=environ, capture_output=True, text=True)

    assert refused.returncode == 2
    assert "letters, digits" in refused.stderr


def test_a_wrong_key_is_told_by_the_server(environ: dict[str, str]) -> None:
    strange = environ | {"WABERY_API_KEY": "wab_test_nobodys"}

    refused = subprocess.run([CONNECT, "user_1"], check=False, env=strange, capture_output=True, text=True)

    assert refused.returncode != 0
    assert "nobodys" not in refused.stdout + refused.stderr
