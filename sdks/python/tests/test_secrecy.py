"""No key, token, client secret or phone number in a repr, an error or a log."""

import copy
import logging
import pickle
import subprocess
import sys
from typing import Any

import pytest
from small_server import PUBLISHABLE_KEY, SECRET_KEY, SmallServer

import wabery
from wabery._logs import redact


def test_reprs_show_ids_and_states_only(client: Any, server: SmallServer) -> None:
    intent = client.registration_intents.create(customer_reference="+4915112345678", include=["qr"])
    key = client.api_keys.create(kind="secret", name="ci")
    shown = repr([intent, key, client, client.projects.get(server.project_id)])

    for secret in (
        intent.token,
        intent.client_secret,
        intent.wa_link,
        key.key,
        "4915112345678",
        SECRET_KEY,
        "whsec_",
    ):
        assert secret not in shown
    assert intent.id in shown
    assert "PENDING" in shown


def test_the_debug_log_tells_the_story_without_the_secrets(
    client: Any, browser: Any, server: SmallServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "wabery"):
        intent = browser.registration_intents.create(customer_reference="+4915112345678")
        browser.registration_intents.get(intent.id, client_secret=intent.client_secret)
        list(client.registration_intents.list(customer_reference="+49 151 12345678"))
        with pytest.raises(wabery.NotFoundError):
            client.registration_intents.get(intent.token)

    log = caplog.text
    assert f"GET /registration-intents/{intent.id} attempt=1 outcome=200" in log
    assert "outcome=404 not_found" in log
    assert "request_id=req_small" in log
    for secret in (intent.token, intent.client_secret, SECRET_KEY, PUBLISHABLE_KEY, "12345678"):
        assert secret not in log


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f"key {SECRET_KEY}!", "key wab_test_…!"),
        (f"({PUBLISHABLE_KEY})", "(wab_pub_…)"),
        ("wjr_01234567890123456789012345 wcs_abc", "wjr_… wcs_…"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_…"),
        ("from +49 151 1234-5678 now", "from … now"),
        ("wa_id=4915112345678", "wa_id=…"),
        ("reg_01jz1234567890123456789012 took 12345 ms", "reg_01jz1234567890123456789012 took 12345 ms"),
    ],
)
def test_the_redactor(text: str, redacted: str) -> None:
    assert redact(text) == redacted


def test_the_log_is_asked_for_by_the_environment(server: SmallServer) -> None:
    program = "import wabery\nwith wabery.Wabery() as w: w.projects.list()"
    environment = {"WABERY_API_KEY": SECRET_KEY, "WABERY_BASE_URL": server.base_url}

    loud = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "WABERY_LOG": "debug"},
        capture_output=True,
        text=True,
        check=True,
    )
    quiet = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )

    assert "wabery DEBUG GET /projects attempt=1 outcome=200" in loud.stderr
    assert SECRET_KEY not in loud.stderr
    assert quiet.stderr == ""


# The objects


def test_objects_keep_what_they_do_not_know() -> None:
    data = {
        "id": "reg_1",
        "status": "INVENTED",
        "new": {"at": 1},
        "list": [{"a": 1}],
        "odd_at": "later",
        "phase": None,
    }

    intent = wabery.RegistrationIntent(data)

    assert intent.status == "INVENTED"
    assert intent.phase is None
    assert intent["new"]["at"] == 1
    assert intent["list"][0]["a"] == 1
    assert intent["odd_at"] == "later"
    assert intent.get("token") is None
    assert list(intent) == list(data)
    assert intent.to_dict() == data


def test_objects_are_values(client: Any) -> None:
    intent = client.registration_intents.create(customer_reference="a")

    assert pickle.loads(pickle.dumps(intent)) == copy.deepcopy(intent) == intent
    assert intent != wabery.Object(intent.to_dict())
    with pytest.raises(AttributeError, match="read-only"):
        intent.status = "JOINED"
    with pytest.raises(TypeError):
        hash(intent)


def test_errors_travel_between_processes(client: Any) -> None:
    with pytest.raises(wabery.NotFoundError) as raised:
        client.registration_intents.get("reg_unknown")

    again = pickle.loads(pickle.dumps(raised.value))

    assert (type(again), again.code, str(again)) == (wabery.NotFoundError, "not_found", str(raised.value))


# Setting up


@pytest.mark.parametrize("key", [None, "", "sk_live_x", "wab_live_ключ", "wab_live_a\nb"])
def test_a_key_that_is_none(key: str | None) -> None:
    with pytest.raises(wabery.UsageError) as raised:
        wabery.Wabery(key)

    assert key is None or key == "" or key not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "wabery.test/v1",
        "ftp://a/v1",
        "https://",
        "https://user:pw@a/v1",
        "https://a/v1?x=1",
        "https://a:x/v1",
    ],
)
def test_a_base_url_that_is_none(url: str) -> None:
    with pytest.raises(wabery.UsageError, match="base URL"):
        wabery.Wabery(SECRET_KEY, base_url=url)


def test_key_and_base_url_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, server: SmallServer
) -> None:
    monkeypatch.setenv("WABERY_API_KEY", f" {SECRET_KEY}\n")
    monkeypatch.setenv("WABERY_BASE_URL", server.base_url + "/")

    with wabery.Wabery() as client:
        assert client.base_url == server.base_url
        assert client.projects.get(server.project_id).name == "Acme"


def test_the_published_base_url_is_the_default() -> None:
    with wabery.Wabery(SECRET_KEY) as client:
        assert client.base_url == "https://api.wabery.com/v1"


def test_webhooks_and_keys_cost_no_http_library() -> None:
    program = "import sys, wabery; wabery.webhooks, wabery.keys; sys.exit('httpx2' in sys.modules)"

    subprocess.run([sys.executable, "-c", program], check=True)
