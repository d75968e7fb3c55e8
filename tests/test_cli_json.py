"""What the command line prints with --json is what is published: the contract's schemas, and the classes of `_shapes`.

Every command is played against the running product, so that a new one needs a line here.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from test_docs import CONTRACT, _problems

from wabery import Wabery
from wabery.cli import _shapes
from wabery.cli._help import ENVIRONMENT
from wabery.cli._tree import GROUPS, SINGLE, Command
from wabery.pytest_plugin import WaberyServer
from wabery.webhooks import sign_for_test
from wabery_server.api.routes import OPERATIONS
from wabery_server.settings import Settings

WABERY = Path(sys.executable).parent / "wabery"
COMMANDS: dict[str, Command] = SINGLE | {
    f"{name} {word}": command for name, group in GROUPS.items() for word, command in group.commands.items()
}
Run = Callable[..., Any]


@pytest.fixture
def run(wabery_server: WaberyServer, tmp_path: Path) -> Run:
    """Runs a command line with --json in an empty folder; returns what is on stdout."""
    environ = {
        "PATH": str(WABERY.parent),
        "HOME": str(tmp_path),
        "SHELL": "/bin/bash",
        "WABERY_API_KEY": wabery_server.api_key,
        "WABERY_BASE_URL": wabery_server.base_url,
    }

    def run(line: str, stdin: str = "", code: int = 0) -> Any:
        done = subprocess.run(
            [WABERY, *shlex.split(line), "--json"],
            check=False,
            cwd=tmp_path,
            env=environ,
            input=stdin,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def made(wabery_server: WaberyServer, tmp_path: Path) -> dict[str, str]:
    """Ids of one of each, and files, under the names that a command line has for them."""
    client: Wabery = wabery_server.client
    reference = f"json_{uuid4().hex}"
    joined = client.registration_intents.create(customer_reference=reference)
    intent = client.registration_intents.create(customer_reference=reference)
    wabery_server.press_send(joined.wa_link)
    (event, *_) = client.events.list(type="participant.joined", limit=1)
    key = client.api_keys.create(name="cli", scopes=["read_only"])
    (tmp_path / "secret").write_text("app-secret")
    body, headers = sign_for_test({"event": "participant.joined", "payload": {}}, "app-secret")
    (tmp_path / "body").write_bytes(body)
    (tmp_path / "headers").write_text("".join(f"{name}: {value}\n" for name, value in headers.items()))
    return {
        "INTENT": intent.id,
        "EVENT": event.id,
        "PROJECT": wabery_server.project_id,
        "KEY": key.id,
        "VALUE": wabery_server.api_key,
        "NUMBER": str(uuid4().int)[:15],
    }


LINES = {
    "login": "login",
    "logout": "logout",
    "whoami": "whoami",
    "env": "env --project-id PROJECT",
    "doctor": "doctor",
    "verify": "verify --body body --headers headers --secret-file secret",
    "help": "help exit-codes",
    "registration-intents create": "registration-intents create --customer-reference json",
    "registration-intents get": "registration-intents get INTENT",
    "registration-intents list": "registration-intents list",
    "registration-intents cancel": "registration-intents cancel INTENT",
    "registration-intents extend": "registration-intents extend INTENT --expires-in 2h",
    "projects list": "projects list",
    "projects get": "projects get PROJECT",
    "projects create": "projects create --name JSON",
    "projects update": "projects update PROJECT --name Sandbox",
    "projects rotate-webhook-secret": "projects rotate-webhook-secret PROJECT",
    "keys create": "keys create --name json --scope registrations:create",
    "keys list": "keys list",
    "keys get": "keys get KEY",
    "keys update": "keys update KEY --name json",
    "keys rotate": "keys rotate KEY",
    "keys revoke": "keys revoke KEY --yes",
    "keys check": "keys check VALUE",
    "channels list": "channels list",
    "channels get": "channels get CHANNEL",
    "channels create": "channels create --name JSON --phone-number-id NUMBER --display-phone-number 15550123 --waba-id 1",
    "channels update": "channels update CHANNEL --name Shop",
    "channels check": "channels check CHANNEL",
    "channels delete": "channels delete CHANNEL --yes",
    "events list": "events list",
    "events get": "events get EVENT",
    "config list": "config list",
    "completion install": "completion install",
}


def test_every_command_with_json_is_played() -> None:
    assert set(LINES) == {name for name, command in COMMANDS.items() if command.gives}


@pytest.mark.parametrize("name", [name for name in LINES if not name.startswith("channels ")])
def test_json_is_as_published(name: str, run: Run, made: dict[str, str], wabery_server: WaberyServer) -> None:
    if name == "logout":
        run("login", stdin=wabery_server.api_key)

    printed = run(filled(LINES[name], made), stdin=wabery_server.api_key if name == "login" else "")

    assert problems(printed, COMMANDS[name].gives) == []


def test_json_of_channels_is_as_published(run: Run, made: dict[str, str]) -> None:
    commands = {name: COMMANDS[name].gives for name in LINES if name.startswith("channels ")}
    channel = run(filled(LINES["channels create"], made), stdin="app-secret")
    made["CHANNEL"] = channel["id"]

    others = {name: run(filled(LINES[name], made)) for name in commands if name != "channels create"}

    assert problems(channel, commands["channels create"]) == []
    assert [name for name, printed in others.items() if problems(printed, commands[name])] == []


@pytest.mark.parametrize("page", ["exit-codes", "environment"])
def test_pages_of_help_are_as_published(page: str, run: Run) -> None:
    assert problems(run(f"help {page}"), "Explanation[]") == []


def test_a_bad_signature_is_as_published(run: Run, made: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("another")

    assert problems(run(LINES["verify"], code=1), "Verdict") == []


@pytest.mark.parametrize(
    "line",
    ["registration-intents get reg_unknown", "registration-intents get", "projects list --profile nobody"],
)
def test_a_refusal_is_as_published(line: str, wabery_server: WaberyServer, tmp_path: Path) -> None:
    environ = {"WABERY_API_KEY": wabery_server.api_key, "WABERY_BASE_URL": wabery_server.base_url}

    refused = subprocess.run(
        [WABERY, *line.split(), "--json"],
        check=False,
        env=environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )

    assert refused.stdout == ""
    assert problems(json.loads(refused.stderr), "Refusal") == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("registration-intents get", "RegistrationIntent"),
        ("whoami", "Whoami"),
        ("doctor", "Examination"),
        ("keys list", "ApiKey[]"),
    ],
)
def test_what_is_not_as_published_is_found_out(name: str, kind: str) -> None:
    assert problems([{}] if kind.endswith("[]") else {}, kind) != []
    assert COMMANDS[name].gives == kind


NOT_COMMANDS = {
    "POST /v1/registration-intents/bulk",  # a program's call: a shell repeats `create`
    "GET /v1/registration-intents/{id}/events",  # `get --wait` follows an intent
    "POST /v1/registration-intents/{id}/opened",  # a page's call, with its client secret
}


WORDS = {
    ("POST", ""): "create",
    ("GET", ""): "list",
    ("GET", "/{id}"): "get",
    ("PATCH", "/{id}"): "update",
    ("DELETE", "/{id}"): "delete",
}


def test_every_call_has_a_command() -> None:
    missing = [
        f"{call.method} {call.path}"
        for call in OPERATIONS
        if not call.open and command_for(call.method, call.path) not in COMMANDS
    ]

    assert set(missing) == NOT_COMMANDS


def command_for(method: str, path: str) -> str:
    noun, slash, rest = path.removeprefix("/v1/").partition("/")
    word = WORDS.get((method, slash + rest), rest.removeprefix("{id}/"))
    name = f"{noun.removeprefix('api-')} {word}"
    return {"keys delete": "keys revoke"}.get(name, name)


def test_what_is_meant_for_apps_does_not_stop_the_server(wabery_server: WaberyServer, run: Run) -> None:
    sourced = run(f"env --project-id {wabery_server.project_id}")
    documented = {name: "debug" for name in ENVIRONMENT if name.startswith("WABERY_")}

    Settings.load({**sourced, **documented, "WABERY_PUBLISHABLE_KEY": wabery_server.publishable_key})


def filled(line: str, made: dict[str, str]) -> str:
    for name, value in made.items():
        line = line.replace(name, value)
    return line


def problems(printed: Any, gives: str) -> list[str]:
    """Where this is not what `Command.gives` promises."""
    kind = gives.removesuffix("[]")
    rows = printed if gives.endswith("[]") else [printed]
    if kind in CONTRACT["components"]["schemas"]:
        schema = {"$ref": f"#/components/schemas/{kind}"}
        return [problem for row in rows for problem in _problems(row, schema)]
    try:
        for row in rows:
            msgspec.convert(row, getattr(_shapes, kind))
    except msgspec.ValidationError as failure:
        return [str(failure)]
    return []
