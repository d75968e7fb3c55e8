"""The reference of what people hold in their hands: the command line and the SDKs."""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from inspect import Parameter, getdoc, signature
from pathlib import Path
from typing import Any, cast, get_args

from markdown import MADE, fence, oneline, table

from wabery import errors, resources
from wabery._core import Call
from wabery.cli import _app, _framework, _settings, _shapes
from wabery.cli._exit import Exit
from wabery.cli._help import ENVIRONMENT
from wabery.cli._tree import GROUPS, SINGLE, Command
from wabery_server.api.docstrings import explanations

TYPESCRIPT = Path(__file__).parents[1] / "sdks/typescript/src"


def cli() -> Iterator[str]:
    """The page of the command line."""
    yield "# The command line"
    yield ""
    yield MADE.format(source="wabery.cli")
    yield ""
    yield from _CLI.splitlines()
    yield ""
    yield "## Which key, which server"
    yield ""
    about, places, rule = (_settings.__doc__ or "").strip().split("\n\n")
    yield oneline(about).partition(". ")[2]
    yield ""
    yield from fence("text", re.sub("^ +", "", places, flags=re.MULTILINE))
    yield ""
    yield oneline(rule)
    yield ""
    yield from table(("Variable", ""), ((f"`{name}`", meaning) for name, meaning in ENVIRONMENT.items()))
    yield ""
    yield "## Exit codes"
    yield ""
    yield from table(("Code", ""), ((f"`{code.value}`", code.about) for code in Exit))
    for name, command in commands():
        yield ""
        yield f"## `wabery {name}`"
        yield ""
        yield from fence("text", _help(name))
        if command is not None and command.gives:
            yield ""
            yield f"`--json` prints {_gives(command.gives)}."
    yield ""
    yield "## JSON"
    yield ""
    yield "What a call answers is printed as it came: its fields are in `openapi.json`, under the name that stands at the command."
    yield "What is not from a call has these fields; others may be added."
    for shape in _own_shapes():
        yield ""
        yield f"### {shape.__name__}"
        yield ""
        yield oneline(shape.__doc__)
        yield ""
        below = explanations(shape)
        for field, kind in _fields(shape):
            yield f"- `{field}`: {kind}" + (f". {oneline(below[field])}" if field in below else "")


_CLI = """\
`wabery` is the extra `cli` of the Python SDK (`pip install './sdks/python[cli]'` in a clone), and in `.venv/bin` once `make dev` has
run; the server adds the commands that run one. `wabery help` and a command, or `--help`, start with examples.

- Data goes to stdout, talk to stderr. `link=$(wabery registration-intents create …)` holds the link and nothing else.
- In a terminal lists are tables with a heading and times as they are said. In a pipe they are values with tabs between them, and no heading.
- `--json` prints JSON, also of what goes wrong, then on stderr. Lists have `--jsonl` too: an object per line, as they come.
- `--wait` draws a QR code and one line that changes, in a terminal; in a pipe it is silent, and the exit code says how it ended.
  `--timeout` bounds it. Ctrl-C ends the waiting, not the intent, and prints how to go on.
- `--no-input` never asks. `--no-color`, `NO_COLOR` and `TERM=dumb` mean no colours.
- Secrets are read from files, stdin or a prompt. Keys are shown as `wab_live_…4f2a`; a new one is printed once.
- Nothing is sent anywhere but to the server you name."""


def commands() -> Iterator[tuple[str, Command | None]]:
    """Every command by its words: the SDK's, then the server's, of which we know no more than their help."""
    yield from SINGLE.items()
    for group, of in GROUPS.items():
        for word, command in of.commands.items():
            yield f"{group} {word}", command
    app = _app.build(["--help"])
    for name in sorted(set(app) - set(SINGLE) - set(GROUPS)):
        yield from ((words, None) for words in _leaves(app[name], name))


def _leaves(app: Any, words: str) -> Iterator[str]:
    children = [name for name in app if not name.startswith("-")]
    if not children and not words.startswith("-"):
        yield words
    for child in children:
        yield from _leaves(app[child], f"{words} {child}")


def _help(name: str) -> str:
    """What `wabery <name> --help` prints on 80 columns, without the options that nearly all commands have."""
    words = name.split()
    shown, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"
    try:
        with contextlib.redirect_stdout(shown):
            _framework.print_help(_app.build([*words, "--help"]), words)
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    return re.sub(r"\n(Output|Access):\n(  .*\n)+", "", shown.getvalue())


def _gives(gives: str) -> str:
    name = gives.removesuffix("[]")
    own = name in vars(_shapes)
    linked = f"[{name}](#{name.lower()})" if own else f"`{name}` of `openapi.json`"
    return f"a list of {linked}" if gives.endswith("[]") else linked


def _own_shapes() -> list[type]:
    return [one for one in vars(_shapes).values() if getattr(one, "__module__", "") == _shapes.__name__]


def _fields(shape: type) -> Iterator[tuple[str, str]]:
    """Field and type of a TypedDict, as they are written."""
    for field, written in shape.__annotations__.items():
        kind = written.__forward_arg__
        sometimes = re.fullmatch(r"NotRequired\[(.*)\]", kind)
        yield field, f"`{sometimes[1]}`, where there is one" if sometimes else f"`{kind}`"


def sdks() -> Iterator[str]:
    """The page of the SDKs."""
    yield "# The SDKs"
    yield ""
    yield MADE.format(source="docs/clients.py and the SDKs")
    yield ""
    yield from _SDKS.splitlines()
    yield ""
    yield "## Calls"
    yield ""
    yield "Parameters have the API's names, in TypeScript in camelCase; objects have the API's fields in both."
    yield ""
    yield from table(("Call", "Python", "TypeScript"), _calls())
    yield ""
    yield "`wait` is for people who are looking: it asks with `?wait=25` until the intent has ended, and knows the grace phase. For"
    yield "what has no method yet, both have `wabery.request(method, path, …)`."
    yield ""
    yield "## Errors"
    yield ""
    yield from table(
        ("Python", "TypeScript", "When"),
        ((f"`{raised.__name__}`", f"`{name}`", oneline(getdoc(raised))) for raised, name in ERRORS.items()),
    )
    yield ""
    yield "What the server refuses has `status`, `code`, `param`, `hint` and `request_id` (`requestId`)."
    yield "[Each code has a page](errors.md)."
    yield ""
    yield "## Why a webhook was refused"
    yield ""
    yield "`fault` of the verification error is the same in both SDKs and in `wabery verify`:"
    yield ", ".join(f"`{fault}`" for fault in get_args(errors.WebhookFault)) + "."


ERRORS: dict[type[errors.WaberyError], str] = {
    errors.UsageError: "WaberyConfigurationError",
    errors.APIConnectionError: "WaberyConnectionError",
    errors.APITimeoutError: "WaberyTimeoutError",
    errors.WaitTimeoutError: "WaberyWaitTimeoutError",
    errors.UnexpectedResponseError: "WaberyUnexpectedResponseError",
    **{
        raised: "WaberyApiError"
        for raised in (errors.APIError, *errors.APIError.__subclasses__())
        if raised is not errors.EndpointNotAvailableError
    },
    errors.EndpointNotAvailableError: "WaberyEndpointNotAvailableError",
    errors.WebhookVerificationError: "WaberyWebhookVerificationError",
}

_SDKS = """\
Two clients with the same names and the same behaviour: the same vectors test both (`sdks/conformance`).

| | Python | TypeScript and JavaScript |
|-|-|-|
| Package | `wabery`, Python 3.11 or later | `@wabery/sdk`, Node 20 or later, browsers, Deno, Bun, workers |
| Depends on | httpx2 | nothing |
| From a clone | `pip install ~/wabery/sdks/python` | `npm install ~/wabery/sdks/typescript` |
| Client | `Wabery`, `AsyncWabery` | `Wabery`; in a page from `@wabery/sdk/browser` |
| Webhooks | `wabery.webhooks` | `webhooks` |

## Mint, and wait

```bash
set -a; . ~/wabery/.wabery/dev.env; set +a    # where `make dev` runs
```

```python
from wabery import Wabery

with Wabery() as wabery:
    intent = wabery.registration_intents.create(customer_reference="user_python")
    print(intent.status, intent.wa_link)
```

```text
PENDING https://wa.me/…
```

```ts
import { Wabery } from "@wabery/sdk";

const wabery = new Wabery();
const intent = await wabery.registrationIntents.create({ customerReference: "user_ts" });
console.log(intent.status, intent.wa_link);
```

```text
PENDING https://wa.me/…
```

## Options

| Python | TypeScript | Default |
|-|-|-|
| `api_key` | `apiKey` | `WABERY_API_KEY` |
| `base_url` | `baseUrl` | `WABERY_BASE_URL`, else `https://api.wabery.com/v1` |
| `timeout` in seconds | `timeout` in milliseconds | 30 s |
| `max_retries` | `maxRetries` | 2 |

The key's prefix decides its header. A secret key in a page is refused before anything is sent. Each call also takes `timeout`,
`max_retries` and `idempotency_key` (in TypeScript as a last argument, with `signal` too). Broken connections, 408, 429, 5xx and
`idempotency_in_progress` are tried again after a growing pause, or after `Retry-After`, with the same `Idempotency-Key`, so that
nothing happens twice.

## Objects and lists

Fields and values newer than an SDK are kept. A field that was not sent is not there: what a key may see depends on the key. Lists
turn their own pages:

```python
from wabery import Wabery

wabery = Wabery()
for intent in wabery.registration_intents.list(customer_reference="user_python"):
    print(intent.customer_reference, intent.status)
```

```text
user_python PENDING
```

```ts
import { Wabery } from "@wabery/sdk";

const wabery = new Wabery();
for await (const intent of wabery.registrationIntents.list({ customerReference: "user_ts" })) {
  console.log(intent.customer_reference, intent.status);
}
```

```text
user_ts PENDING
```

Webhooks have [a page of their own](../how-to/webhooks.md). In your tests, the pytest fixture `wabery_server` is a whole Wabery,
and `sign_for_test` (`signForTest`) makes deliveries."""


def _calls() -> Iterator[tuple[str, str, str]]:
    groups = vars(resources.Resources(cast("Any", None)))
    for group, of in groups.items():
        if group.startswith("_"):
            continue
        spoken = _typescript_methods(group)
        declared = vars(type(of))
        for name in (name for name in declared if not name.startswith("_")):
            function = declared[name].__wrapped__
            taken = list(signature(function).parameters.values())[1:]
            needed = [one.name for one in taken if one.default is Parameter.empty and one.name != "options"]
            made = function(None, **{one: 60 if one == "expires_in" else "ID" for one in needed})
            call = (
                f"`{made.method} /v1{made.path.replace('/ID', '/{id}')}`"
                if isinstance(made, Call)
                else "again and again"
            )
            camel = _camel(name)
            typescript = f"`{_camel(group)}.{camel}({spoken.pop(camel)})`" if camel in spoken else "-"
            yield call, f"`{group}.{name}({', '.join([*needed, '…'])})`", typescript
        assert not spoken, f"only TypeScript has {group}: {', '.join(spoken)}"


def _typescript_methods(group: str) -> dict[str, str]:
    """Name and parameters of the methods of a resource's class."""
    text = (TYPESCRIPT / f"{group.replace('_', '-')}.ts").read_text()
    found = re.findall(r"^  (?:async )?(\w+)\(([^()]*)\): (?:Api|Page)?Promise<", text, re.MULTILINE)
    inner = re.compile(r"\{[^{}]*\}")  # the fields of a type, which are no parameters
    return {name: ", ".join(re.findall(r"(\w+)\??: ", inner.sub("", taken))) for name, taken in found}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)
