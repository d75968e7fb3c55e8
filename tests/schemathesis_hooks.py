"""What schemathesis cannot learn from openapi.json: what to leave alone, and which refusals no JSON Schema foretells."""

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import schemathesis
from schemathesis import Case, CheckContext, HookContext, Response
from schemathesis.core.failures import Failure
from schemathesis.openapi.checks import RejectedPositiveData

LEFT_ALONE = set(os.environ["LEFT_ALONE"].split(","))
"""Ids of the keys in use and of the sandbox channel: without them every answer would soon be the same refusal."""

NOBODY_LISTENS = "http://127.0.0.1:9/"
LONGEST_WAIT = 25

CONTRACT = json.loads((Path(__file__).parent.parent / "openapi.json").read_text())
OF_HTTP = {"connection", "content-length", "content-type", "date", "server", "transfer-encoding"}

BEYOND_A_SCHEMA = {
    ("invalid_cursor", "cursor"): "a cursor is signed",
    (
        "invalid_customer_reference",
        "customer_reference",
    ): "a pattern names no invisible characters above U+FFFF",
    ("expires_in_out_of_range", "expires_in"): "the longest lifetime is a setting of the project",
    ("invalid_request", "allowed_origins"): "whether a key takes origins depends on what it is",
    ("invalid_request", "channel_id"): "the channel must exist",
    ("invalid_request", "display_phone_number"): "a number has 5 to 15 digits, whatever stands between them",
    ("invalid_request", "expires_at"): "the time must lie ahead",
    ("invalid_request", "webhook_secret"): "a pattern does not tell which characters can be printed",
    ("prefilled_text_invalid", None): "a text holds one {token} and no URL",
    ("too_many_pending", None): "a reference has five pending intents at most",
    ("unsafe_webhook_url", "webhook_url"): "not every URI is safe to call",
}
"""Refusals of requests that fit their schema, by `error` and `param` (None: any), with the reason."""


@schemathesis.hook
def filter_case(context: HookContext, case: "Case[Any]") -> bool:
    """Whether a request may be sent."""
    wait = str((case.query or {}).get("wait", 0))
    idles = wait.isdecimal() and 1 < int(wait) <= LONGEST_WAIT
    spoils = case.method != "GET" and (case.path_parameters or {}).get("id") in LEFT_ALONE
    # JSON Schema takes 60.0 for an integer; we do not.
    whole_float = isinstance(case.body, dict) and any(
        isinstance(value, float) and value.is_integer() for value in case.body.values()
    )
    # The stream of an intent that exists has no end.
    streams = case.path.endswith("/events") and str((case.path_parameters or {}).get("id")).startswith("reg_")
    return not (idles or spoils or whole_float or streams)


@schemathesis.hook
def before_call(context: HookContext, case: "Case[Any]", kwargs: dict[str, Any]) -> None:
    """Keeps the webhooks that the calls cause on this machine."""
    body = case.body
    if isinstance(body, dict) and _leads_somewhere(body.get("webhook_url")):
        body["webhook_url"] = NOBODY_LISTENS


@schemathesis.hook
def filter_failure(context: HookContext, failure: Failure, case: "Case[Any]", response: Response) -> bool:
    """Whether a failure counts."""
    if not isinstance(failure, RejectedPositiveData):
        return True
    refusal = json.loads(response.content)
    code, param = refusal["error"], refusal.get("param")
    known = (code, param) in BEYOND_A_SCHEMA or (code, None) in BEYOND_A_SCHEMA
    return not known and "U+0000" not in refusal["message"]


@schemathesis.check
def response_headers_are_documented(ctx: CheckContext, response: Response, case: "Case[Any]") -> None:
    """No header but those that the contract has for this answer, and those of HTTP itself."""
    answers = CONTRACT["paths"].get(case.path, {}).get(case.method.lower(), {}).get("responses", {})
    answer = answers.get(str(response.status_code))
    if answer is None:
        return  # status_code_conformance has its say
    if "$ref" in answer:
        answer = CONTRACT["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    documented = {name.lower() for name in answer["headers"]} | OF_HTTP
    if unknown := {name.lower() for name in response.headers} - documented:
        raise AssertionError(f"undocumented headers: {', '.join(sorted(unknown))}")


def _leads_somewhere(url: object) -> bool:
    try:
        return isinstance(url, str) and bool(urlsplit(url).hostname)
    except ValueError:
        return False
