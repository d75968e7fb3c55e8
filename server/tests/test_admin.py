"""`wabery admin`, as an operator runs it: a process of its own on the installation's database."""

import asyncio
import json
import os
import pwd
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from wabery_server import accounts, secrets
from wabery_server.db import Source

APP_SECRET = "0123456789abcdef0123456789abcdef"


class Ran(NamedTuple):
    code: int
    out: str
    talk: str


class Terminal:
    """Runs commands with the environment of one installation."""

    def __init__(self, source: Source, **settings: str) -> None:
        at = source.parts
        dsn = f"postgresql://{at['user']}@/{at['database']}?host={at['host']}&port={at['port']}"
        plain = {name: value for name, value in os.environ.items() if not name.startswith("WABERY_")}
        secret = secrets.generate()
        self._environment = {**plain, "DATABASE_URL": dsn, "WABERY_SECRET_KEY": secret, **settings}

    async def run(self, *arguments: str, stdin: str = "", command: str = "admin") -> Ran:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "wabery_server", command, *arguments),
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, talk = await asyncio.wait_for(process.communicate(stdin.encode()), 30)
        return Ran(process.returncode or 0, out.decode(), talk.decode())

    async def read(self, *arguments: str) -> Any:
        """What a command that succeeds prints as JSON."""
        ran = await self.run(*arguments, "--json")
        assert ran.code == 0, ran.talk
        return json.loads(ran.out)


@pytest.fixture
def terminal(source: Source) -> Terminal:
    return Terminal(source)


@pytest.mark.parametrize(
    "arguments", [("projects", "create", "--test", "--name", "\udcff"), ("audit", "--project", "proj_\udcff")]
)
async def test_an_argument_that_is_not_utf_8_is_one_line(
    terminal: Terminal, arguments: tuple[str, ...]
) -> None:
    assert await terminal.run(*arguments) == (2, "", "wabery: An argument is not UTF-8 text.\n")


async def founded(terminal: Terminal) -> str:
    ran = await terminal.run("projects", "create", "--name", "Acme", "--test")
    assert ran.code == 0, ran.talk
    return ran.out.strip()


async def test_a_new_secret_is_long_enough_and_new(terminal: Terminal) -> None:
    first, second = await terminal.run("new-secret"), await terminal.run("new-secret")

    assert len(first.out.strip()) >= secrets.MIN_SECRET_BYTES
    assert first.out != second.out


async def test_the_first_project_and_key_come_from_the_command_line(terminal: Terminal) -> None:
    project = await founded(terminal)

    made = await terminal.run("keys", "create", "--project", project, "--name", "server", "--scopes", "full")

    listed = await terminal.read("keys", "list", "--project", project)
    assert accounts.is_well_formed(made.out.strip())
    assert "not shown again" in made.talk
    assert [key["scopes"] for key in listed] == [sorted(accounts.Scope)]
    assert [found["id"] for found in await terminal.read("projects", "list")] == [project]


async def test_a_publishable_key_takes_origins_and_an_end(terminal: Terminal) -> None:
    project = await founded(terminal)

    key = await terminal.read(
        *("keys", "create", "--project", project, "--name", "page", "--kind", "publishable"),
        *("--origin", "https://a.example", "--origin", "https://b.example", "--expires-in", "90d"),
    )

    assert key["allowed_origins"] == ["https://a.example", "https://b.example"]
    assert key["expires_at"] is not None
    assert key["warning"] is None


async def test_a_revoked_key_is_listed_as_revoked(terminal: Terminal) -> None:
    project = await founded(terminal)
    key = await terminal.read("keys", "create", "--project", project, "--name", "k", "--scopes", "read_only")

    await terminal.run("keys", "revoke", key["id"], "--project", project)

    listed = await terminal.run("keys", "list", "--project", project)
    assert "revoked" in listed.out
    assert key["key"] not in listed.out + listed.talk


async def test_a_rotated_key_keeps_its_id_and_gets_a_new_value(terminal: Terminal) -> None:
    project = await founded(terminal)
    key = await terminal.read("keys", "create", "--project", project, "--name", "k", "--scopes", "read_only")

    printed = await terminal.run("keys", "rotate", key["id"], "--project", project)
    again = await terminal.read("keys", "rotate", key["id"], "--project", project, "--overlap", "0s")
    too_long = await terminal.run("keys", "rotate", key["id"], "--project", project, "--overlap", "8d")

    assert accounts.is_well_formed(printed.out.strip())
    assert "the old value works until" in printed.talk
    assert again["id"] == key["id"]
    assert len({key["key"], printed.out.strip(), again["key"]}) == 3
    assert (too_long.code, too_long.out) == (2, "")
    assert "--overlap" in too_long.talk


@pytest.mark.parametrize("from_file", [True, False])
async def test_an_app_secret_comes_from_stdin_or_a_file(
    terminal: Terminal, tmp_path: Path, from_file: bool
) -> None:
    project = await founded(terminal)
    file = tmp_path / "secret"
    file.write_text(APP_SECRET + "\n")
    flags = ["--app-secret-file", str(file)] if from_file else []

    made = await terminal.run(
        *(
            "channels",
            "create",
            "--project",
            project,
            "--name",
            "Support",
            "--phone-number-id",
            "106540352242922",
        ),
        *("--display-phone-number", "+49 151 2345678", "--waba-id", "102290129340398", *flags),
        stdin="" if from_file else APP_SECRET + "\n",
    )

    listed = await terminal.read("channels", "list", "--project", project)
    assert made.code == 0, made.talk
    assert len(made.out.strip()) == 32
    assert [channel["name"] for channel in listed] == ["Support", "Sandbox"]


async def test_a_deleted_channel_is_not_listed(terminal: Terminal) -> None:
    project = await founded(terminal)
    (sandbox,) = await terminal.read("channels", "list", "--project", project)

    deleted = await terminal.run("channels", "delete", sandbox["id"], "--project", project)

    assert (deleted.code, await terminal.read("channels", "list", "--project", project)) == (0, [])


async def test_the_audit_names_the_user_and_no_secret(terminal: Terminal) -> None:
    project = await founded(terminal)
    key = await terminal.read("keys", "create", "--project", project, "--name", "k", "--scopes", "full")

    trail = await terminal.run("audit", "--project", project)

    assert f"cli:{pwd.getpwuid(os.getuid()).pw_name}" in trail.out
    assert "api_key.created" in trail.out
    assert key["key"] not in trail.out


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("keys", "list", "--project", "proj_none"), 4, "proj_none"),
        (("keys", "create", "--project", "proj_none", "--name", "k", "--scopes", "full"), 4, "proj_none"),
        (("projects", "create", "--name", "", "--test"), 2, "--name"),
        (("audit", "--project", "proj_none"), 4, "projects list"),
    ],
)
async def test_a_mistake_ends_with_one_line_and_a_code(
    terminal: Terminal, arguments: tuple[str, ...], code: int, word: str
) -> None:
    ran = await terminal.run(*arguments)

    assert (ran.code, ran.out) == (code, "")
    assert word in ran.talk
    assert len(ran.talk.strip().splitlines()) == 1


async def test_a_wrong_installation_secret_opens_nothing(terminal: Terminal, source: Source) -> None:
    await founded(terminal)

    ran = await Terminal(source).run("projects", "list")

    assert (ran.code, ran.out) == (7, "")
    assert "WABERY_SECRET_KEY is not the secret" in ran.talk
