"""The vectors in sdks/conformance, run by this SDK."""

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from wabery import WebhookVerificationError, _core, keys, webhooks
from wabery._core import Answer, Call, Core, Pause, Request, connection_error
from wabery.errors import APIConnectionError, APIError, APITimeoutError
from wabery.webhooks import sign_for_test, verify

CONFORMANCE = Path(__file__).parents[2] / "conformance"
KEY = "wab_live_0123456789ABCDEFGHIJKLMNOPQRST29Z8aS"


def cases(name: str, group: str = "cases") -> list[Any]:
    vectors = json.loads((CONFORMANCE / name).read_text())
    return [pytest.param(case, id=case["name"]) for case in vectors[group]]


def body_of(case: dict[str, Any]) -> bytes:
    return base64.b64decode(case["body_base64"]) if "body_base64" in case else case["body"].encode()


def core(**options: Any) -> Core:
    return Core.configure(KEY, "https://wabery.test/v1", 30, options.get("max_retries", 2), None)


def call(method: str = "GET", path: str = "/registration-intents") -> Call[dict[str, Any]]:
    return Call(method, path, lambda body: body)


@pytest.mark.parametrize("case", cases("keys.json"))
def test_keys(case: dict[str, Any]) -> None:
    found = keys.check(case["key"])

    header = keys.auth_header(case["key"])

    assert (found.kind, found.livemode, found.valid) == (case["kind"], case["livemode"], case["valid"])
    assert header == (None if case["header"] is None else (case["header"]["name"], case["header"]["value"]))


@pytest.mark.parametrize("case", cases("errors.json"))
def test_errors(case: dict[str, Any]) -> None:
    answer = Answer(case["answer"]["status"], case["answer"]["headers"], case["answer"]["body"].encode())
    expected = dict(case["error"])
    plan = core(max_retries=0).fetch(call(**case["request"]))
    next(plan)

    with pytest.raises(APIError) as raised:
        plan.send(answer)

    if expected["kind"] == "endpoint_not_available":
        expected.pop("hint")
    assert {name: getattr(raised.value, name) for name in expected} == expected
    assert raised.value.status == answer.status
    assert raised.value.message


def test_the_default_ages_are_those_of_the_vectors() -> None:
    vectors = json.loads((CONFORMANCE / "signatures.json").read_text())

    assert webhooks.TOLERANCE.total_seconds() == vectors["tolerance"]
    assert webhooks.MAX_AGE.total_seconds() == vectors["max_age"]


@pytest.mark.parametrize("case", cases("signatures.json"))
def test_signatures(case: dict[str, Any]) -> None:
    now = datetime.fromtimestamp(case["now"], UTC)
    ages = {"max_age": timedelta(seconds=case["max_age"])} if "max_age" in case else {}
    fault = None

    try:
        verify(body_of(case), case["headers"], case["secrets"], now=now, **ages)
    except WebhookVerificationError as refused:
        fault = refused.fault

    assert fault == case["fault"]


@pytest.mark.parametrize("case", cases("signatures.json", "signed"))
def test_signatures_made_for_tests(case: dict[str, Any]) -> None:
    current, *following = case["secrets"]
    now = datetime.fromtimestamp(case["timestamp"], UTC)

    signed = sign_for_test(
        body_of(case), current, next_secret=next(iter(following), None), event_id=case["id"], now=now
    )

    assert {name: signed.headers[name] for name in case["headers"]} == case["headers"]


class Clock:
    """Moves only by the pauses of a plan."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(_core, "time", clock)
    return clock


def outcome(step: dict[str, Any]) -> Answer | APIConnectionError:
    if "failure" in step:
        return connection_error(
            "https://wabery.test/v1", OSError("reset"), timed_out=step["failure"] == "timeout"
        )
    body = {} if step["status"] == 200 else {"error": step["error"], "message": "No."}
    headers = {"wabery-version": "1", **step.get("headers", {})}
    return Answer(step["status"], headers, json.dumps(body).encode())


@pytest.mark.parametrize("case", cases("retries.json"))
def test_retries(case: dict[str, Any], clock: Clock) -> None:
    outcomes = iter(case["outcomes"])
    sent: list[Request] = []
    pauses: list[float] = []
    plan = core(**case).fetch(call(case["method"]))

    try:
        step = next(plan)
        while True:
            if isinstance(step, Pause):
                pauses.append(step.seconds)
                clock.now += step.seconds
                step = next(plan)
                continue
            sent.append(step)
            what = outcome(next(outcomes))
            step = plan.send(what) if isinstance(what, Answer) else plan.throw(what)
    except StopIteration:
        result = "success"
    except APITimeoutError:
        result = "timeout"
    except APIConnectionError:
        result = "connection"
    except APIError as refused:
        result = refused.kind

    assert (result, len(sent)) == (case["result"], case["attempts"])
    assert len(pauses) == len(case["delays"])
    assert all(least <= pause <= most for pause, (least, most) in zip(pauses, case["delays"], strict=True))
    keys_sent = {request.headers.get("idempotency-key") for request in sent}
    assert len(keys_sent) == 1
    assert (keys_sent == {None}) == (case["method"] == "GET")
