"""The command line: what it prints where, what its exit code says, and what it never does."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from small_server import PUBLISHABLE_KEY, SECRET_KEY, Scripted, SmallServer, running

from wabery import cli
from wabery.cli import _app
from wabery.cli._exit import Exit
from wabery.cli._tree import GROUPS, SINGLE
from wabery.webhooks import sign_for_test

WABERY = Path(sys.executable).parent / "wabery"


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def run(
    server: SmallServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """Run a command line in this process, in an empty folder, with the small server's key in the environment."""
    monkeypatch.setenv("WABERY_API_KEY", server.secret_key)
    monkeypatch.setenv("WABERY_BASE_URL", server.base_url)
    monkeypatch.chdir(tmp_path)

    def run(line: str, stdin: str = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", StringIO(stdin))
        code = cli.main(shlex.split(line))
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def logged_out(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.delenv("WABERY_API_KEY")
    monkeypatch.delenv("WABERY_BASE_URL")


def environment(server: SmallServer) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{WABERY.parent}:{os.environ['PATH']}",
        "WABERY_API_KEY": server.secret_key,
        "WABERY_BASE_URL": server.base_url,
    }


# The contract's two lines


def test_the_lines_of_the_public_page_run_as_they_are(server: SmallServer) -> None:
    create = """wabery registration-intents create --customer-reference "user_123" --metadata '{"plan":"starter"}'"""
    get = 'wabery registration-intents get "reg_…"'

    created = subprocess.run(
        create, shell=True, env=environment(server), capture_output=True, text=True, check=True
    )
    (intent,) = server.intents.values()
    got = subprocess.run(
        get.replace("reg_…", intent["id"]),
        shell=True,
        env=environment(server),
        capture_output=True,
        text=True,
        check=True,
    )

    assert created.stdout == f"{intent['wa_link']}\n"
    assert created.stderr == ""
    assert (intent["customer_reference"], intent["metadata"]) == ("user_123", {"plan": "starter"})
    assert "status              PENDING\n" in got.stdout


# Registration intents


def test_json_is_the_servers_answer(run: Run, server: SmallServer) -> None:
    made = run("registration-intents create --customer-reference a --json").json

    read = run(f"registration-intents get {made['id']} --json").json

    assert made == read == server.intents[made["id"]]


def test_every_option_of_create_reaches_the_server(run: Run, server: SmallServer) -> None:
    line = (
        "registration-intents create --customer-reference a --expires-in 2h --locale de --channel-id channel_1 "
        '--metadata \'{"plan":"starter"}\' --idempotency-key order-7'
    )

    first, again = run(line), run(line)

    assert first.out == again.out
    assert server.seen[0].headers["idempotency-key"] == "order-7"
    assert server.seen[0].body == {
        "customer_reference": "a",
        "expires_in": 7200,
        "locale": "de",
        "channel_id": "channel_1",
        "metadata": {"plan": "starter"},
    }


def test_a_person_does_not_see_the_secrets_of_an_intent(run: Run, server: SmallServer) -> None:
    run("registration-intents create --customer-reference a")
    (intent,) = server.intents.values()

    shown = run(f"registration-intents get {intent['id']}")

    assert intent["client_secret"] not in shown.out
    assert intent["wa_link"] in shown.out


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ({"status": "JOINED"}, 0),
        ({"status": "EXPIRED", "phase": None}, 10),
        ({"status": "REJECTED", "rejection_reason": "canceled_by_app"}, 11),
        ({"status": "REJECTED", "rejection_reason": "sender_mismatch"}, 11),
        ({"status": "INVENTED_TOMORROW"}, 1),
    ],
)
def test_waiting_says_by_its_exit_code_how_it_ended(
    run: Run, server: SmallServer, state: dict[str, Any], code: int
) -> None:
    run("registration-intents create --customer-reference a")
    (intent_id,) = server.intents
    server.settle(intent_id, **state)

    ended = run(f"registration-intents get {intent_id} --wait --json")

    assert (ended.code, ended.json["status"]) == (code, state["status"])


def test_create_can_wait_and_prints_the_link_first(server: SmallServer) -> None:
    line = [WABERY, "registration-intents", "create", "--customer-reference", "a", "--wait"]

    with subprocess.Popen(
        line, env=environment(server), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        link = process.stdout.readline().strip()
        still_waiting = process.poll() is None
        server.press_send(link[-30:])
        out, err = process.communicate(timeout=20)

    assert link.startswith("https://wa.me/")
    assert still_waiting
    assert (out, err, process.returncode) == ("", "", 0)


def test_create_and_wait_with_json_are_two_lines(run: Run, server: SmallServer) -> None:
    threading.Timer(0.3, lambda: server.press_send(next(iter(server.intents.values()))["token"])).start()

    ended = run("registration-intents create --customer-reference a --wait --json")

    assert [json.loads(line)["status"] for line in ended.out.splitlines()] == ["PENDING", "JOINED"]


def test_a_wait_that_takes_too_long_says_how_to_go_on(run: Run, server: SmallServer) -> None:
    late = run("registration-intents create --customer-reference a --wait --timeout 1")

    (intent_id,) = server.intents
    assert late.code == 12
    assert f"wabery registration-intents get {intent_id} --wait" in late.err


def test_ctrl_c_says_how_to_go_on(server: SmallServer) -> None:
    line = [WABERY, "registration-intents", "create", "--customer-reference", "a", "--wait"]

    with subprocess.Popen(
        line, env=environment(server), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        polling = wait_until(lambda: len(server.seen) > 1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)

    (intent_id,) = server.intents
    assert polling
    assert process.returncode == 130
    assert err.strip().endswith(f"wabery registration-intents get {intent_id} --wait")
    assert "Traceback" not in err


def test_cancel_and_extend(run: Run, server: SmallServer) -> None:
    run("registration-intents create --customer-reference a")
    (intent_id,) = server.intents

    extended = run(f"registration-intents extend {intent_id} --expires-in 2d --json").json
    cancelled = run(f"registration-intents cancel {intent_id} --json").json
    too_late = run(f"registration-intents extend {intent_id} --expires-in 60")

    assert datetime.fromisoformat(extended["expires_at"]) > datetime.now(UTC) + timedelta(days=1)
    assert cancelled["rejection_reason"] == "canceled_by_app"
    assert too_late.code == 5


# Lists


def test_a_list_in_a_pipe_is_values_and_tabs(run: Run) -> None:
    for reference in ("a", "b\tc"):
        run(f"registration-intents create --customer-reference {shlex.quote(reference)}")

    rows = [row.split("\t") for row in run("registration-intents list").out.splitlines()]

    assert [row[1:4] for row in rows] == [["PENDING", "-", r"b\x09c"], ["PENDING", "-", "a"]]


def test_a_list_as_json_and_as_json_lines(run: Run) -> None:
    for number in range(3):
        run(f"registration-intents create --customer-reference user_{number}")

    array = run("registration-intents list --json --limit 2").json
    lines = [json.loads(line) for line in run("registration-intents list --jsonl --all").out.splitlines()]

    assert [one["customer_reference"] for one in array] == ["user_2", "user_1"]
    assert [one["customer_reference"] for one in lines] == ["user_2", "user_1", "user_0"]


def test_filters_reach_the_server(run: Run, server: SmallServer) -> None:
    run("registration-intents list --status JOINED --created-after 2026-06-27 --customer-reference a")

    assert server.seen[-1].query == {
        "status": "JOINED",
        "created_after": "2026-06-27T00:00:00.000Z",
        "customer_reference": "a",
        "limit": "20",
    }


def test_a_reader_that_has_seen_enough_is_no_error(server: SmallServer) -> None:
    for number in range(3):
        server.intents[f"reg_{number}"] = {
            "id": f"reg_{number}",
            "status": "PENDING",
            "customer_reference": "x" * 90_000,
        }

    piped = subprocess.run(
        f"{WABERY} registration-intents list --jsonl | head -c 10",
        shell=True,
        env=environment(server),
        capture_output=True,
        text=True,
        check=True,
    )

    assert (len(piped.stdout), piped.stderr) == (10, "")


# The other commands


def test_projects(run: Run, server: SmallServer) -> None:
    shown = run(f"projects get {server.project_id}")
    changed = run(
        f"projects update {server.project_id} --webhook-url https://app.test/hook --webhook-secret 'my own secret'"
    )
    stopped = run(f"projects update {server.project_id} --webhook-url '' --json")
    listed = run("projects list")
    nothing = run(f"projects update {server.project_id}")

    assert "whsec_" in shown.out
    assert "https://app.test/hook" in changed.out
    assert "my own secret" not in changed.out
    assert server.seen[1].body == {"webhook_url": "https://app.test/hook", "webhook_secret": "my own secret"}
    assert stopped.json["webhook_url"] is None
    assert listed.out.startswith(f"{server.project_id}\tAcme\t")
    assert nothing.code == 2


def test_a_new_key_is_printed_once_with_a_warning(run: Run, server: SmallServer) -> None:
    made = run(
        "keys create --name ci --scope registrations:create --scope registrations:read --expires-in 30d"
    )
    (key_id,) = server.keys
    rotated = run(f"keys rotate {key_id}")
    listed = run("keys list")

    assert made.out == f"{SECRET_KEY}\n"
    assert "only time" in made.err
    assert server.seen[0].body["scopes"] == ["registrations:create", "registrations:read"]
    assert rotated.out == f"{SECRET_KEY}\n"
    assert SECRET_KEY not in listed.out


def test_ending_something_needs_a_yes(run: Run, server: SmallServer) -> None:
    run("keys create --name ci --scope full")
    (key_id,) = server.keys

    unasked = run(f"keys revoke {key_id}")
    still_there = server.keys[key_id]["revoked_at"] is None
    agreed = run(f"keys revoke {key_id} --yes")

    assert (unasked.code, still_there, agreed.code) == (2, True, 0)
    assert "--yes" in unasked.err
    assert server.keys[key_id]["revoked_at"] is not None


def test_channels_take_their_secrets_from_files(run: Run, server: SmallServer, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("app-secret\n")
    (tmp_path / "token").write_text("access-token\n")
    line = "channels create --name Shop --phone-number-id 1065 --display-phone-number 15550100 --waba-id 2020"

    made = run(f"{line} --app-secret-file secret --access-token-file token --json").json
    piped = run(line, stdin="from-stdin\n")
    shown = run(f"channels get {made['id']}")
    listed = run("channels list")
    gone = run(f"channels delete {made['id']} --yes")

    assert (server.seen[0].body["app_secret"], server.seen[0].body["access_token"]) == (
        "app-secret",
        "access-token",
    )
    assert server.seen[1].body["app_secret"] == "from-stdin"
    assert "15550100" in shown.out
    assert len(listed.out.splitlines()) == 2
    assert (piped.code, gone.code, len(server.channels)) == (0, 0, 1)


def test_events(run: Run, server: SmallServer) -> None:
    run("registration-intents create --customer-reference a")
    server.press_send(next(iter(server.intents.values()))["token"])

    listed = run("events list --type participant.joined")
    event_id = listed.out.split("\t")[0]
    run("events list --contact-id contact_1 --registration-intent-id reg_1 --created-after 2026-06-27")
    asked = server.seen[-1].query

    assert run(f"events get {event_id} --json").json["payload"]["customer_reference"] == "a"
    assert asked == {
        "contact_id": "contact_1",
        "registration_intent_id": "reg_1",
        "created_after": "2026-06-27T00:00:00.000Z",
        "limit": "20",
    }


def test_a_new_project_prints_its_first_key(run: Run, server: SmallServer) -> None:
    made = run("projects create --name Shop --live")

    assert server.seen[-1].body == {"name": "Shop", "livemode": True}
    assert made.out == f"{SECRET_KEY}\n"
    assert "only time" in made.err


def test_every_setting_of_a_project_can_be_changed(run: Run, server: SmallServer) -> None:
    line = (
        f"projects update {server.project_id} --name Shop --prefilled-text '{{token}}' --prefilled-texts "
        """'{"de":"Los: {token}"}' --publishable-expires-in 10m --secret-expires-in 2h --no-supersede """
        "--unsigned-references refuse --on-identity-linked allow --on-reference-linked reject "
        "--references-per-contact 3"
    )

    run(line)

    assert server.seen[-1].body == {
        "name": "Shop",
        "prefilled_text": "{token}",
        "prefilled_texts": {"de": "Los: {token}"},
        "publishable_expires_in": 600,
        "secret_expires_in": 7200,
        "supersede": False,
        "unsigned_references": "refuse",
        "on_identity_linked": "allow",
        "on_reference_linked": "reject",
        "references_per_contact": 3,
    }


def test_a_webhook_secret_is_made_and_printed(run: Run, server: SmallServer) -> None:
    made = run(f"projects rotate-webhook-secret {server.project_id}")

    assert made.out == f"{server.projects[server.project_id]['webhook_secret']}\n"


def test_keys_are_changed_and_rotated(run: Run, server: SmallServer) -> None:
    run("keys create --name web --publishable --allowed-origin https://a.test")
    (key_id,) = server.keys

    run(f"keys update {key_id} --name page --allowed-origin https://b.test --expires-in 1d")
    changed = server.seen[-1].body
    run(f"keys update {key_id} --any-origin")
    opened = server.seen[-1].body
    shown = run(f"keys get {key_id}")
    run(f"keys rotate {key_id}")
    as_usual = server.seen[-1].body
    run(f"keys rotate {key_id} --overlap 0")

    assert (changed["name"], changed["allowed_origins"]) == ("page", ["https://b.test"])
    assert datetime.fromisoformat(changed["expires_at"]) > datetime.now(UTC) + timedelta(hours=23)
    assert opened == {"allowed_origins": []}
    assert "page" in shown.out
    assert (as_usual, server.seen[-1].body) == (None, {"overlap": 0})


def test_channels_are_changed_and_checked(run: Run, server: SmallServer, tmp_path: Path) -> None:
    for name in ("old", "new", "token", "verify"):
        (tmp_path / name).write_text(f"{name}-value")
    line = "channels create --name Shop --phone-number-id 1065 --display-phone-number 15550100 --waba-id 2020"
    made = run(f"{line} --app-secret-file old --verify-token-file verify --json").json
    created = server.seen[-1].body

    run(
        f"channels update {made['id']} --name Support --display-phone-number 15550199 --portfolio-id 7 "
        "--app-secret-file old --app-secret-file new --access-token-file token --verify-token-file verify"
    )
    changed = server.seen[-1].body
    finding = {"name": "number", "state": "failed", "found": "Meta refuses it.", "todo": "Verify the number."}
    checks = {"object": "channel_check", "channel_id": made["id"], "ok": False, "checks": [finding]}
    server.script(Scripted(200, checks, {"Wabery-Version": "1"}))
    checked = run(f"channels check {made['id']}")

    assert created["verify_token"] == "verify-value"
    assert changed == {
        "name": "Support",
        "display_phone_number": "15550199",
        "portfolio_id": "7",
        "app_secrets": ["old-value", "new-value"],
        "access_token": "token-value",
        "verify_token": "verify-value",
    }
    assert (checked.code, checked.out) == (
        1,
        "failed   number: Meta refuses it.\n         Verify the number.\n",
    )


@pytest.mark.parametrize("group", ["registration-intents", "projects", "keys", "channels", "events"])
def test_every_list_can_be_read_to_its_end(run: Run, server: SmallServer, group: str) -> None:
    server.add_project("Another")

    some, every = run(f"{group} list --limit 1 --json"), run(f"{group} list --all --jsonl")

    assert (some.code, every.code) == (0, 0)
    assert len(every.out.splitlines()) >= len(some.json)


# Exit codes and errors


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (400, "invalid_request", 2),
        (401, "invalid_api_key", 3),
        (403, "insufficient_scope", 3),
        (404, "not_found", 4),
        (409, "already_joined", 5),
        (422, "too_many_pending", 2),
        (429, "rate_limited", 6),
        (500, "internal_error", 7),
    ],
)
def test_a_refusal_chooses_the_exit_code(
    run: Run, server: SmallServer, status: int, error: str, code: int
) -> None:
    body = {"error": error, "message": "This is why.", "hint": "Do that.", "request_id": "req_7"}
    server.script(*[Scripted(status, body, {"Wabery-Version": "1", "Retry-After": "0"})] * 3)

    refused = run("projects list")

    assert (refused.code, refused.out) == (code, "")
    assert refused.err == f"error: This is why. [{error}, req_7]\nDo that.\n"


def test_no_server_and_no_such_call_are_the_servers_fault(run: Run, server: SmallServer) -> None:
    nobody = run("projects list --base-url http://127.0.0.1:9/v1")
    elsewhere = run(f"projects list --base-url {server.base_url.removesuffix('/v1')}")

    assert (nobody.code, elsewhere.code) == (7, 7)
    assert "could not be reached" in nobody.err
    assert "ends in /v1" in elsewhere.err


def test_with_json_a_refusal_is_json_too(run: Run) -> None:
    refused = run("registration-intents get reg_unknown --json")

    assert refused.out == ""
    assert json.loads(refused.err) == {
        "error": "not_found",
        "message": "Refused: not_found.",
        "request_id": "req_small",
    }


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "registration-intents nonsense",
        "registration-intents create",
        "registration-intents create --customer-reference a --nonsense",
        "registration-intents create --customer-reference a --metadata '['",
        "registration-intents create --customer-reference a --metadata '[]'",
        "registration-intents create --customer-reference a --expires-in soon",
        "registration-intents create --customer-reference a --expires-in 0",
        "registration-intents get",
        "registration-intents get a b",
        "registration-intents get ''",
        "registration-intents list --limit 0",
        "registration-intents list --created-after yesterday",
        "registration-intents extend reg_1",
        "projects list --base-url ftp://a/v1",
        "projects list --profile nobody",
        "projects list --api-key-file missing",
        "registration-intents list --limit 1000000000000000000000",
        "registration-intents list --limit 5 --all",
        "registration-intents list --json --jsonl",
        "registration-intents create --customer-reference a --timeout 5",
        "registration-intents create --customer-reference a --qr --no-qr",
        "registration-intents get reg_1 --timeout 5",
        "projects create",
        "projects update proj_1 --prefilled-texts de",
        "projects update proj_1 --secret-expires-in soon",
        "keys create --name a",
        "keys create --name a --scope full --publishable",
        "keys create --name a --scope full --expires-in 0",
        "keys update key_1",
        "keys update key_1 --any-origin --allowed-origin https://a.test",
        "keys rotate key_1 --overlap never",
        "channels update channel_1",
        "channels update channel_1 --app-secret-file missing",
        "events list --created-before tomorrow",
        "help nonsense",
        "help registration-intents nonsense",
        "verify --body missing",
    ],
)
def test_a_wrong_command_line(run: Run, server: SmallServer, line: str) -> None:
    wrong = run(line)

    assert (wrong.code, wrong.out, server.seen) == (2, "", [])
    cause, todo = _complaint(wrong.err, as_json="--json" in line)
    assert cause
    assert todo


def _complaint(err: str, *, as_json: bool) -> tuple[str, str]:
    """What is wrong, and what to do about it."""
    if as_json:
        told = json.loads(err)
        return told["message"], told["hint"]
    cause, todo = err.splitlines()
    return cause.removeprefix("error: "), todo


def test_the_exit_codes_are_the_published_ones(run: Run) -> None:
    shown = run("help exit-codes").out.splitlines()

    assert [int(line.split()[0]) for line in shown] == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 130]
    assert len(shown) == len(Exit)


def test_a_bug_says_so_without_secrets(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"with {SECRET_KEY} for +49 151 12345678")

    monkeypatch.setattr("wabery.cli._help.help", broken)

    failed = run("help")

    assert failed.code == 1
    assert "Traceback" in failed.err
    assert "This is a bug" in failed.err
    assert SECRET_KEY not in failed.err
    assert "12345678" not in failed.err


def test_what_a_server_sends_cannot_steer_the_terminal(run: Run, server: SmallServer) -> None:
    server.add_project("\x1b]0;owned\x07\u202ename")
    body = {"error": "not_found", "message": "\x1b[31mred"}
    listed = run("projects list")
    server.script(Scripted(404, body, {"Wabery-Version": "1"}))

    refused = run("projects list")

    assert "\x1b" not in listed.out
    assert r"\x1b]0;owned\x07\x202ename" in listed.out
    assert "\x1b" not in refused.err


# Which key, which server


def test_login_keeps_the_key_for_its_server_alone(
    run: Run, logged_out: None, server: SmallServer, tmp_path: Path
) -> None:
    in_ = run(f"login --base-url {server.base_url}", stdin=f"{server.secret_key}\n")
    me = run("whoami --json")
    elsewhere = run("projects list --base-url https://wabery.test/v1")

    file = tmp_path / "xdg/wabery/profiles.json"
    assert (in_.code, in_.out) == (0, "")
    assert file.stat().st_mode & 0o777 == 0o600
    assert me.json == {
        "api_key": "wab_test_…Of8u",
        "kind": "secret",
        "livemode": False,
        "origin": "profile default",
        "base_url": server.base_url,
        "project": {k: v for k, v in server.projects[server.project_id].items() if k != "webhook_secret"},
    }
    assert elsewhere.code == 2
    assert "belongs to" in elsewhere.err


def test_profiles_stand_side_by_side(run: Run, logged_out: None, server: SmallServer) -> None:
    run(f"login --base-url {server.base_url} --profile work", stdin=server.secret_key)
    run(f"login --base-url {server.base_url} --profile shop", stdin=server.publishable_key)

    latest = run("whoami").out
    named = run("whoami --profile work").out
    gone = run("logout")
    after = run("config list --json").json
    again = run("logout --profile shop")

    assert "publishable" in latest
    assert "secret" in named
    assert (gone.code, again.code) == (0, 4)
    assert after["profile"]["value"] == "work"


@pytest.mark.parametrize(
    ("stdin", "code"),
    [
        ("", 2),
        ("sk_live_x", 2),
        (SECRET_KEY[:-1] + "x", 2),
        ("wab_live_0123456789ABCDEFGHIJKLMNOPQRST29Z8aS", 3),
    ],
)
def test_login_refuses_what_would_not_work(
    run: Run, logged_out: None, server: SmallServer, tmp_path: Path, stdin: str, code: int
) -> None:
    refused = run(f"login --base-url {server.base_url}", stdin=stdin)

    assert refused.code == code
    assert stdin == "" or stdin not in refused.err
    assert not (tmp_path / "xdg/wabery/profiles.json").exists()


def test_without_a_key_the_way_to_one_is_named(run: Run, logged_out: None) -> None:
    refused = run("projects list")

    assert refused.code == 3
    assert "wabery login" in refused.err


def test_the_order_of_the_sources(
    run: Run, logged_out: None, server: SmallServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    origins = []

    def note() -> None:
        shown = run("config list --json").json
        origins.append((shown["api_key"]["origin"], shown["base_url"]["origin"]))

    note()
    (tmp_path / ".wabery").mkdir()
    (tmp_path / ".wabery/dev.env").write_text(
        f"# made by wabery dev\nWABERY_API_KEY={SECRET_KEY}\nWABERY_PUBLISHABLE_KEY={PUBLISHABLE_KEY}\n"
        f"WABERY_BASE_URL={server.base_url}\n"
    )
    note()
    works_at_once = run("projects list")
    logged_in = run(f"login --base-url {server.base_url}", stdin=SECRET_KEY)
    note()
    monkeypatch.setenv("WABERY_PROFILE", "default")
    note()
    monkeypatch.setenv("WABERY_API_KEY", PUBLISHABLE_KEY)
    monkeypatch.setenv("WABERY_BASE_URL", server.base_url)
    note()
    by_flag = run("config list --json --profile default").json
    (tmp_path / "key").write_text(SECRET_KEY)
    flags = run(f"config list --json --api-key-file key --base-url {server.base_url} --profile default").json

    assert origins == [
        (None, "default"),
        (".wabery/dev.env", ".wabery/dev.env"),
        (".wabery/dev.env", ".wabery/dev.env"),
        ("profile default", "profile default"),
        ("WABERY_API_KEY", "WABERY_BASE_URL"),
    ]
    assert works_at_once.code == 0
    assert "Here .wabery/dev.env comes first; --profile default uses this one." in logged_in.err
    assert (by_flag["api_key"]["origin"], by_flag["base_url"]["origin"]) == (
        "profile default",
        "profile default",
    )
    assert (flags["api_key"]["origin"], flags["base_url"]["origin"]) == ("--api-key-file", "--base-url")


def test_an_administrator_names_the_server_for_everybody(
    run: Run, logged_out: None, server: SmallServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    system = tmp_path / "etc/wabery/profiles.json"
    system.parent.mkdir(parents=True)
    system.write_text(
        json.dumps({"current": "company", "profiles": {"company": {"base_url": server.base_url}}})
    )
    monkeypatch.setenv("XDG_CONFIG_DIRS", f"/nowhere:{tmp_path}/etc")

    before = run("config list --json").json
    without_key = run("projects list")
    logged_in = run("login --profile company", stdin=SECRET_KEY)
    after = run("config list --json").json

    assert before["base_url"] == {"value": server.base_url, "origin": "profile company"}
    assert before["profile"]["origin"] == str(system)
    assert without_key.code == 3
    assert logged_in.code == 0
    assert after["api_key"]["origin"] == "profile company"
    assert after["profile"]["origin"] == str(tmp_path / "xdg/wabery/profiles.json")
    assert SECRET_KEY not in system.read_text()


def test_a_stored_key_does_not_follow_a_redirect(
    run: Run, logged_out: None, server: SmallServer, tmp_path: Path
) -> None:
    with running() as elsewhere:
        run(f"login --base-url {server.base_url}", stdin=SECRET_KEY)
        away = {"Location": f"{elsewhere.base_url}/projects"}
        server.script(*[Scripted(status, {}, away) for status in (307, 302)])

        moved = [run("projects list"), run("doctor")]

        assert elsewhere.seen == []
    assert [one.code for one in moved] == [7, 7]
    assert SECRET_KEY not in "".join(one.out + one.err for one in moved)


def test_a_dev_env_from_somebody_elses_repository_is_not_believed(
    run: Run, logged_out: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WABERY_API_KEY", SECRET_KEY)
    (tmp_path / ".wabery").mkdir()
    (tmp_path / ".wabery/dev.env").write_text(
        f"WABERY_API_KEY={SECRET_KEY}\nWABERY_BASE_URL=https://evil.test/v1\n"
    )

    shown = run("config list --show-origin").out

    assert "evil" not in shown
    assert "https://api.wabery.com/v1  (default)" in shown


def test_a_damaged_profiles_file_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "xdg/wabery").mkdir(parents=True)
    (tmp_path / "xdg/wabery/profiles.json").write_text("{")

    assert "profiles.json cannot be read" in run("projects list").err


def test_settings_never_show_a_key(run: Run) -> None:
    shown = run("config list --show-origin").out + run("whoami").out + run("doctor").out

    assert SECRET_KEY not in shown
    assert "wab_test_…Of8u" in shown


def test_env_prints_lines_for_a_shell(run: Run, server: SmallServer) -> None:
    server.projects[server.project_id]["webhook_secret"] = "it's my own"

    printed = run(f"env --project-id {server.project_id}").out

    said = subprocess.run(
        f'{printed}\necho "$WABERY_WEBHOOK_SECRET|$WABERY_API_KEY|$WABERY_PROJECT_ID|$WABERY_BASE_URL"',
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == f"it's my own|{SECRET_KEY}|{server.project_id}|{server.base_url}"


# Looking into things


def test_keys_check_is_offline(run: Run, server: SmallServer) -> None:
    good = run("keys check -", stdin=f"{SECRET_KEY}\n")
    typo = run(f"keys check {SECRET_KEY[:-1]}x --json")

    assert (good.code, good.out) == (0, "wab_test_…Of8u is a well-formed test secret key\n")
    assert typo.code == 1
    assert (typo.json["valid"], typo.json["kind"]) == (False, "secret")
    assert "checksum" in typo.json["problem"]
    assert server.seen == []


def test_doctor_finds_nothing_wrong(run: Run) -> None:
    found = run("doctor --json")

    assert found.code == 0
    assert {check["name"]: check["state"] for check in found.json["checks"]} == dict.fromkeys(
        ["version", "key", "base URL", "DNS", "connection", "server", "key accepted", "clock"], "ok"
    )


@pytest.mark.parametrize(
    ("line", "code", "failed"),
    [
        ("doctor --base-url http://127.0.0.1:9/v1", 7, "connection"),
        ("doctor --base-url http://nowhere.invalid/v1", 7, "DNS"),
        ("doctor --base-url BASE", 7, "server"),
    ],
)
def test_doctor_names_the_first_thing_that_is_wrong(
    run: Run, server: SmallServer, line: str, code: int, failed: str
) -> None:
    found = run(line.replace("BASE", server.base_url.removesuffix("/v1")))

    assert found.code == code
    assert f"failed   {failed}: " in found.out


def test_doctor_sees_a_revoked_key_and_a_wrong_clock(run: Run, server: SmallServer) -> None:
    hour_ago = (datetime.now(UTC) - timedelta(hours=1)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    server.script(
        Scripted(401, {}, {"Wabery-Version": "1"}),
        Scripted(404, {}, {"Wabery-Version": "1", "Date": hour_ago}),
    )

    revoked, clock = run("doctor"), run("doctor")

    assert (revoked.code, clock.code) == (3, 1)
    assert "failed   key accepted" in revoked.out
    assert "failed   clock" in clock.out


WEBHOOK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def _delivery(sent: timedelta = timedelta()) -> tuple[bytes, dict[str, str]]:
    event = {"event": "participant.joined", "payload": {"event_id": "evt_1"}}
    return sign_for_test(event, WEBHOOK_SECRET, now=datetime.now(UTC) + sent)


@pytest.fixture
def kept(tmp_path: Path, run: Run) -> Callable[[bytes, dict[str, str]], None]:
    """Keeps a delivery and its secret in files, as somebody does who wonders about it."""

    def keep(body: bytes, headers: dict[str, str]) -> None:
        lines = "".join(f"{name}: {value}\n" for name, value in headers.items())
        (tmp_path / "body").write_bytes(body)
        (tmp_path / "headers").write_text(f"POST /webhooks HTTP/1.1\n{lines}")
        (tmp_path / "secret").write_text(WEBHOOK_SECRET)

    return keep


VERIFY = "verify --body body --headers headers --secret-file secret"


def test_verify_knows_a_good_signature(run: Run, kept: Any) -> None:
    body, headers = _delivery()
    kept(body, headers)

    good = run(VERIFY)
    by_one_header = run(
        f"verify --body - --header 'x-wabery-signature: {headers['x-wabery-signature']}' --secret-file secret"
    )

    assert (good.code, good.out) == (0, "good: participant.joined evt_1\n")
    assert by_one_header.code == 1  # nothing was piped in


def test_verify_can_look_at_an_old_delivery(run: Run, kept: Any) -> None:
    kept(*_delivery(-timedelta(days=1)))

    old, any_time = run(VERIFY), run(f"{VERIFY} --any-time")

    assert (old.code, any_time.code) == (1, 0)
    assert "--any-time accepts it" in old.out


def test_verify_explains_a_delivery_whose_webhook_headers_were_removed(run: Run, kept: Any) -> None:
    sent_at = (datetime.now(UTC) - timedelta(days=300)).isoformat()
    event = {"event": "participant.joined", "payload": {"event_id": "evt_1"}, "sentAt": sent_at}
    body, headers = sign_for_test(event, WEBHOOK_SECRET)
    kept(body, {"x-wabery-signature": headers["x-wabery-signature"]})

    old, any_time = run(f"{VERIFY} --json"), run(f"{VERIFY} --any-time")

    assert (old.code, old.json["fault"]) == (1, "timestamp_too_old")
    assert (any_time.code, any_time.out) == (0, "good: participant.joined evt_1\n")


FAULTS: dict[
    str, tuple[Callable[[bytes], bytes], Callable[[dict[str, str]], dict[str, str]], timedelta, str]
] = {
    "body_reserialized": (
        lambda body: json.dumps(json.loads(body), indent=2).encode(),
        dict,
        timedelta(),
        "raw body",
    ),
    "wrong_signature": (
        lambda body: body.replace(b"evt_1", b"evt_2"),
        dict,
        timedelta(),
        "Compare the secret",
    ),
    "missing_header": (bytes, lambda _: {}, timedelta(), "proxy or framework"),
    "malformed_header": (
        bytes,
        lambda headers: headers | {"webhook-signature": "v1a,AAAA"},
        timedelta(),
        "exactly as it arrived",
    ),
    "timestamp_too_old": (bytes, dict, -timedelta(hours=1), "--any-time"),
    "timestamp_too_new": (bytes, dict, timedelta(hours=1), "--any-time"),
    "no_sent_at": (
        bytes,
        lambda headers: {"x-wabery-signature": headers["x-wabery-signature"]},
        timedelta(),
        "something may have removed webhook-id",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_names_the_cause_and_what_to_do(run: Run, kept: Any, fault: str) -> None:
    change_body, change_headers, sent, todo = FAULTS[fault]
    body, headers = _delivery(sent)
    kept(change_body(body), change_headers(headers))

    told, as_json = run(VERIFY), run(f"{VERIFY} --json")

    assert (told.code, as_json.code, told.err) == (1, 1, "")
    assert told.out == f"bad: {as_json.json['message']}\n{told.out.splitlines()[1]}\n"
    assert todo in told.out.splitlines()[1]
    assert (as_json.json["valid"], as_json.json["fault"]) == (False, fault)


@pytest.mark.parametrize(
    ("secret", "fault", "todo"),
    [
        ("another", "wrong_signature", "Compare the secret"),
        (f'"{WEBHOOK_SECRET}"', "wrong_signature", "quotes or white space"),
        (SECRET_KEY, "wrong_signature", "is an API key"),
    ],
)
def test_verify_knows_a_wrong_secret(
    run: Run, kept: Any, tmp_path: Path, secret: str, fault: str, todo: str
) -> None:
    kept(*_delivery())
    (tmp_path / "secret").write_text(secret)

    told = run(f"{VERIFY} --json")

    assert (told.code, told.json["fault"]) == (1, fault)
    assert todo in told.json["hint"]
    assert secret not in told.out


def test_verify_knows_a_good_signature_on_something_else(run: Run, kept: Any) -> None:
    kept(*sign_for_test({"hello": "world"}, WEBHOOK_SECRET))

    told = run(f"{VERIFY} --json")

    assert (told.code, told.json["fault"]) == (1, "not_an_event")
    assert "rotate" in told.json["hint"]


def test_verify_asks_for_a_secret(run: Run, kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(*_delivery())

    none = run("verify --body body --headers headers")
    monkeypatch.setenv("WABERY_WEBHOOK_SECRET", WEBHOOK_SECRET)
    environment = run("verify --body body --headers headers")

    assert (none.code, environment.code) == (1, 0)
    assert "WABERY_WEBHOOK_SECRET" in none.out


# Help, completion and the server's commands


ALL_COMMANDS = [
    "",
    *SINGLE,
    *GROUPS,
    *(f"{name} {command}" for name, group in GROUPS.items() for command in group.commands),
]


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_help_starts_with_an_example(run: Run, command: str) -> None:
    shown = run(f"{command} --help")

    assert shown.code == 0
    assert shown.out.startswith("Examples:\n  ")
    assert f"Usage: wabery {command}".rstrip() in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_the_examples_are_command_lines(
    run: Run, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "key.txt").write_text(SECRET_KEY)
    opening = run(f"{command} --help").out.partition("Usage: ")[0].removeprefix("Examples:\n")
    lines = [line for line in opening.replace("\\\n", "").splitlines() if "wabery " in line]
    parsed: list[Any] = []

    def parse(app: Any, words: list[str]) -> None:
        parsed.append(app.parse_args(words, exit_on_error=False, print_error=False))

    monkeypatch.setattr(_app, "parse_and_run", parse)
    for line in lines:
        words = line.partition("wabery ")[2].partition(" #")[0].partition(" | ")[0]
        cli.main(shlex.split(re.split(r" [<>] |\)$", words)[0]))

    assert lines
    assert len(parsed) == len(lines)


def test_help_is_a_command_too(run: Run) -> None:
    assert run("help registration-intents create").out == run("registration-intents create --help").out
    assert run("help").out == run("--help").out == run("").out
    assert "WABERY_API_KEY" in run("help environment").out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_commands(run: Run, shell: str) -> None:
    script = run(f"completion {shell}").out

    assert "registration-intents" in script
    assert "customer-reference" in script


class Plugin:
    """An entry point, as far as it is used."""

    value = "fake:commands"

    def __init__(self, commands: Callable[[Any], None]) -> None:
        self._commands = commands

    def load(self) -> Callable[[Any], None]:
        return self._commands


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None]], list[str]]:
    """Put a plugin in the place of the installed ones; the list fills as it is loaded."""

    def plug(commands: Callable[[Any], None]) -> list[str]:
        asked: list[str] = []

        def entry_points(*, group: str) -> list[Plugin]:
            asked.append(group)
            return [Plugin(commands)]

        monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
        return asked

    return plug


def test_a_plugin_brings_its_commands(run: Run, plug: Any) -> None:
    def commands(app: Any) -> None:
        @app.command
        def serve(*, port: int = 1) -> int:
            """Serve."""
            print(f"serving on {port}")
            return 9

    asked = plug(commands)

    served = run("serve --port 7")
    helped = run("--help")
    run("projects list")

    assert (served.code, served.out) == (9, "serving on 7\n")
    assert "serve   " in helped.out
    assert not run("serve --help").out.startswith("Examples")
    assert asked == ["wabery.commands"] * 3


def test_a_broken_plugin_does_not_take_our_commands_with_it(run: Run, plug: Any) -> None:
    def commands(app: Any) -> None:
        raise RuntimeError("broken")

    plug(commands)

    helped = run("--help")

    assert (helped.code, "registration-intents" in helped.out) == (0, True)
    assert "fake:commands are missing" in helped.err


def test_the_servers_doctor_follows_ours(run: Run, plug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def commands(app: Any) -> None:
        @app.command
        def doctor(*, json: bool = False) -> None:
            print(f"server part, json={json}")
            sys.exit(1)

    plug(commands)

    client_only = run("doctor")
    server_only = run("doctor --server")
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1/wabery")
    both = run("doctor")
    monkeypatch.delenv("WABERY_API_KEY")
    no_client = run("doctor --json")

    assert (client_only.code, server_only.code, both.code, no_client.code) == (0, 1, 1, 1)
    assert "server part" not in client_only.out
    assert server_only.out == "server part, json=False\n"
    assert both.out == f"{client_only.out}server part, json=False\n"
    assert no_client.out == "server part, json=True\n"


def test_no_server_has_no_doctor(run: Run, plug: Any) -> None:
    plug(lambda app: None)

    assert run("doctor --server").code == 2


def test_quick_commands_load_little() -> None:
    program = (
        "import sys; from wabery import cli; cli.main(sys.argv[1:]); "
        "print([name for name in ('httpx2', 'wabery_server', 'segno', 'rich') if name in sys.modules])"
    )

    checked = subprocess.run(
        [sys.executable, "-c", program, "keys", "check", "x"], capture_output=True, text=True, check=True
    )
    version = subprocess.run(
        [sys.executable, "-c", program, "--version"], capture_output=True, text=True, check=True
    )

    assert checked.stdout.splitlines()[-1] == "[]"
    assert version.stdout.splitlines() == ["0.1.0", "[]"]


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Another process cannot set an event of ours, so its effect is looked for."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
