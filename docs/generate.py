"""Writes docs/reference from the code: API, errors, events, settings, clients. `make docs` runs it; a test tells when it is stale.

python docs/generate.py            write the pages
python docs/generate.py --check    write nothing; exit with 1 when a page is stale
"""

import enum
import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from functools import partial
from inspect import getdoc
from pathlib import Path
from typing import get_args, get_type_hints

import clients
import msgspec
from markdown import MADE, as_json, fence, oneline, table

from wabery.cli._exit import code_of
from wabery.errors import APIError, EndpointNotAvailableError, error_class
from wabery_server import errors, inbox, webhooks, whatsapp
from wabery_server.accounts import Scope
from wabery_server.api import document, error_pages, examples
from wabery_server.api.app import VERSION
from wabery_server.api.docstrings import explanations
from wabery_server.api.routes import OPERATIONS
from wabery_server.intents import Attempt, Phase, RejectionReason, Status, Trust
from wabery_server.outbox import OPT_IN, EventType
from wabery_server.settings import Network, Settings
from wabery_server.webhooks.schedule import DELAYS

REFERENCE = Path(__file__).parent / "reference"
PROVOKE = Path(__file__).parent / "provoke.toml"


def pages() -> dict[str, str]:
    """The text of every page, by its path below docs/reference."""
    return {name: "\n".join(lines()).rstrip() + "\n" for name, lines in _PAGES.items()}


def _api() -> Iterator[str]:
    yield "# The HTTP API"
    yield ""
    yield MADE.format(source="api/routes.py")
    yield ""
    yield f"Version {VERSION}. This page is the overview; `openapi.json` (also at `GET /v1/openapi.json`) has every field."
    yield ""
    yield "## Calls"
    yield ""
    yield from table(
        ("Call", "Does", "For"),
        ((f"`{one.method} {one.path}`", one.summary, document.may_call(one)) for one in OPERATIONS),
    )
    yield ""
    yield "Send a secret key as `Authorization: Bearer wab_live_…` (or `wab_test_…`) from a server, a publishable key as"
    yield "`x-wabery-publishable-key: wab_pub_…` from anywhere. What a browser may do to one intent it proves with"
    yield "`x-wabery-client-secret`, the `client_secret` of the mint answer."
    yield ""
    yield "## Scopes"
    yield ""
    yield from _members(Scope)
    yield ""
    yield "`read_only` and `full` stand for several of them. Some belong to calls that this build does not serve yet."
    yield ""
    yield "## Rules"
    yield ""
    yield from _RULES
    yield ""
    yield "## Registration intents"
    yield ""
    for name, about in (("status", Status), ("phase", Phase), ("reference_trust", Trust)):
        yield f"### `{name}`"
        yield ""
        yield from _members(about)
        yield ""
    yield "### `rejection_reason`"
    yield ""
    yield from table(
        ("`rejection_reason`", "`rejection_message`", "A publishable key sees"),
        ((f"`{one.value}`", one.message, f"`{one.coarse}`") for one in RejectionReason),
    )
    yield ""
    yield "### What becomes of a message with a token"
    yield ""
    yield from _members(Attempt)


_RULES = """\
- Bodies are JSON in UTF-8, sent as `application/json`. Unknown fields and unknown query parameters are refused by name.
- Answers may gain fields, and lists of values may grow.
- Times are ISO 8601, UTC, with milliseconds and `Z`. Ids are a prefix and 26 characters; treat them as opaque.
- Lists are newest first: `limit` from 1 to 100 (10), then `cursor` with the `next_cursor` of the page before.
- Every write takes an `Idempotency-Key`. The same request with the same key is answered as before for 24 hours, with
  `Idempotency-Replayed: true`; another request with it is refused. A refusal is not kept: correct it and send it again.
- Every answer has `Wabery-Request-Id`, and `Wabery-Version` where this build serves the path.
- `RateLimit-Policy` and `RateLimit` tell a limit and what is left of it; `Retry-After` comes with every 429 and 503.
- `GET /v1/registration-intents/{id}` has an `ETag`, and with `?wait=25` answers when something changes.
- An intent past `expires_at` reads `EXPIRED` with phase `grace` for five minutes: a message that was sent in time may
  still arrive and join. Only `EXPIRED` without that phase is final.""".splitlines()


def _errors() -> Iterator[str]:
    yield "# Errors"
    yield ""
    yield MADE.format(source="errors.py")
    yield ""
    yield "Every refusal has the same body. The code in `error` is stable, the list of codes is closed; the sentences are not."
    yield ""
    yield from as_json(examples.error(errors.MissingApiKey))
    yield ""
    yield "`param` names the field, parameter or header at fault, where there is one. The `hint` says what to do. The"
    yield "`request_id` is in the server's log, and `doc_url` leads to a page about the code on your own server: the one that is"
    yield "linked here."
    yield ""
    yield from table(
        ("Code", "Status", "What happened"),
        (
            (f"[`{one.code}`](errors/{one.code}.md)", str(one.status), oneline(getdoc(one)))
            for one in errors.catalogue()
        ),
    )


def _error(code: str) -> Iterator[str]:
    """The page that the server shows, what it looks like in a client, and how to meet it."""
    refusals = [refusal for refusal in errors.catalogue() if refusal.code == code]
    title, _, rest = error_pages.page(code).partition("\n\n")
    yield title
    yield ""
    yield MADE.format(source="errors.py and docs/provoke.toml")
    yield ""
    yield rest.rstrip()
    yield ""
    yield from as_json(examples.error(refusals[0]))
    yield ""
    yield "## In a client"
    yield ""
    for refusal in refusals:
        raised = _raised(refusal)
        exit_code = code_of(raised(refusal.message, status=refusal.status)).value
        yield f"- {refusal.status}: Python raises `{raised.__name__}`, TypeScript `{clients.ERRORS[raised]}`; `wabery` exits with {exit_code}."
    yield ""
    yield "## Meet it in `wabery dev`"
    yield ""
    steps = tomllib.loads(PROVOKE.read_text()).get(code)
    if steps is None:
        yield "No single request provokes it."
        return
    yield from fence("bash", _READY + (_MINT if "mint " in steps else "") + steps)
    yield ""
    yield from fence("text", f'{{"error":"{code}",…')


_READY = """\
set -a; . ~/wabery/.wabery/dev.env; set +a    # where `make dev` runs
export PATH="$HOME/wabery/.venv/bin:$PATH"
base=$WABERY_BASE_URL
"""
_MINT = """\
mint() {
  curl -sS $base/registration-intents -H "Authorization: Bearer $WABERY_API_KEY" \\
    -H 'Content-Type: application/json' -d "$@"
}
"""


def _raised(refusal: type[errors.WaberyError]) -> type[APIError]:
    """What the Python SDK raises for it."""
    unserved = refusal in (errors.UnknownPath, errors.MethodNotAllowed)
    return EndpointNotAvailableError if unserved else error_class(refusal.status)


def _events() -> Iterator[str]:
    yield "# Events"
    yield ""
    yield MADE.format(source="outbox.py, api/event_types.py and api/examples.py")
    yield ""
    yield "An event is written in the transaction of the change it announces, and posted to the project's `webhook_url`."
    yield "It may come twice and out of order: handle each `webhook-id` (the payload's `event_id`) once."
    yield ""
    body = json.dumps(examples.delivery(EventType.PARTICIPANT_JOINED), separators=(",", ":")).encode()
    yield "| Header | Holds |"
    yield "|-|-|"
    for name, what, _ in document.SIGNATURES:
        yield f"| `{name}` | {what} |"
    yield ""
    yield f"The example of `participant.joined` below, as compact JSON, is signed with `{examples.SECRET}` like this:"
    yield ""
    yield "```http"
    for name, value in examples.delivery_headers(body).items():
        yield f"{name}: {value}"
    yield "```"
    yield ""
    yield f"Anything but a 2xx within 15 seconds is tried again, {webhooks.ATTEMPTS} attempts in all, the next ones"
    yield f"{', '.join(map(_duration, DELAYS))} after the one before,"
    yield "or up to a fifth later. `Retry-After` of a 429 or 503 makes it later still. A 410 stops the endpoint until"
    yield "`webhook_url` is set again. What is due for a stopped endpoint is held, and sent when that has happened, the oldest"
    yield "first."
    about = explanations(EventType)
    for event in EventType:
        yield ""
        yield f"## `{event.value}`"
        yield ""
        yield about[event.name]
        if event is EventType.MESSAGE_RECEIVED:
            yield ""
            yield "[Message types](message-types.md) shows it for every type."
        if event in OPT_IN:
            yield ""
            yield "No call sets an endpoint's list of events yet, so nobody receives it so far."
        yield ""
        yield from as_json(examples.delivery(event))


def _message_types() -> Iterator[str]:
    """`message.received` for a corpus of our own bodies, made by the code that makes the event."""
    yield "# Message types"
    yield ""
    yield MADE.format(source="server/tests/recorded/meta and inbox.py")
    yield ""
    yield "What `message.received` says of each type of WhatsApp message. `type` is WhatsApp's own word; new ones may appear at any"
    yield "time and arrive like the others, with `content`. `text` is the first text that the person wrote or pressed. `content` is"
    yield "WhatsApp's own object for the type, tokens redacted; null when it takes more than 64 KiB (`content_truncated`)."
    yield "The fields of the person and of the link are the same for every type: see [events](events.md#messagereceived)."
    yield ""
    yield "Reactions, deleted messages, group messages, echoes of the business's own messages, statuses and chat history are no"
    yield "events. Neither are edits, which are stored, and registration attempts, which join or appear in the intent's events."
    for title, name in _MESSAGE_TYPES.items():
        body = (RECORDED / f"{name}.json").read_bytes().replace(_TOKEN, b"my order")
        ((message,),) = [change.messages for change in whatsapp.PROVIDERS["meta"].parse(body, _SENT).changes]
        about = inbox.told(message, inbox.keep(message))
        yield ""
        yield f"## {title}"
        yield ""
        yield from as_json(msgspec.json.decode(msgspec.json.encode(about)))


RECORDED = Path(__file__).parent.parent / "server/tests/recorded/meta"
_TOKEN = b"wjr_7k3mq9xt2fhz4vbn8rcp5d6gja"
_SENT = datetime(2026, 11, 22, 12, tzinfo=UTC)
_MESSAGE_TYPES = {
    "Text": "text_in_many_scripts",
    "Text that answers a message": "text_reply",
    "Forwarded text": "text_forwarded",
    "Text after an ad": "text_from_ad",
    "Text while Meta's Business Agent holds the conversation": "standby",
    "Image": "image_with_caption",
    "Video": "video_with_caption",
    "Document": "document_with_caption",
    "Voice message": "audio",
    "Sticker": "sticker",
    "Location": "location",
    "Contact cards": "contacts",
    "Order": "order",
    "Button of a template": "button",
    "Reply button": "interactive_button_reply",
    "Row of a list": "interactive_list_reply",
    "Form (flow)": "interactive_form_reply",
    "Answer to a call permission request": "interactive_call_permission_reply",
    "Chat opened": "request_welcome",
    "Content withheld by WhatsApp": "unsupported_131060",
    "Type that WhatsApp does not support": "unsupported_131051_edit",
    "Type that this version does not know": "unknown_type",
}


def _settings() -> Iterator[str]:
    yield "# Settings"
    yield ""
    yield MADE.format(source="settings.py")
    yield ""
    yield "A setting is read from the environment, else from the TOML file that `WABERY_CONFIG` names (there under its name in"
    yield "lower case and without `WABERY_`), else it has its default. `<NAME>_FILE` names a file that holds the value, for"
    yield "secrets. Lists are separated by commas. A `WABERY_` variable that is no setting stops the server with one line."
    about, hints = explanations(Settings), get_type_hints(Settings)
    for field in fields(Settings):
        yield ""
        yield f"## `WABERY_{field.name.upper()}`"
        yield ""
        yield f"{_kind(hints[field.name])}; default: {_default(field.default)}."
        yield ""
        yield about[field.name]


def _kind(hint: object) -> str:
    kinds = [one for one in get_args(hint) if one is not type(None)]
    return _KINDS[kinds[0] if type(None) in get_args(hint) else hint]


_KINDS: dict[object, str] = {
    str: "Text",
    int: "Whole number",
    bool: "`true` or `false`",
    Path: "Path",
    timedelta: "Seconds",
    tuple[int, ...]: "List of whole numbers",
    tuple[Network, ...]: "List of networks, such as `10.0.0.0/8`",
}


def _default(value: object) -> str:
    match value:
        case None:
            return "not set"
        case ():
            return "empty"
        case bool():
            return f"`{str(value).lower()}`"
        case timedelta():
            return f"`{value.total_seconds():g}`"
        case _:
            return f"`{value}`"


def _members(of: type[enum.Enum]) -> Iterator[str]:
    about = explanations(of)
    for member in of:
        yield f"- `{member.value}`: {oneline(about[member.name])}"


def _duration(of: timedelta) -> str:
    seconds = int(of.total_seconds())
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


_PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "api.md": _api,
    "errors.md": _errors,
    **{f"errors/{code}.md": partial(_error, code) for code in error_pages.codes()},
    "events.md": _events,
    "message-types.md": _message_types,
    "settings.md": _settings,
    "cli.md": clients.cli,
    "sdks.md": clients.sdks,
}


def main() -> int:
    """Writes or checks; returns an exit code."""
    wanted = pages()
    there = {path.relative_to(REFERENCE).as_posix(): path.read_text() for path in REFERENCE.rglob("*.md")}
    stale = [name for name in wanted | there if wanted.get(name) != there.get(name)]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"docs/reference/{name} is stale: run `make docs`.", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        page = REFERENCE / name
        if name in wanted:
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(wanted[name])
        else:
            page.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
