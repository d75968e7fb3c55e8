"""`wabery doctor`, as an operator runs it, with Meta on a loopback socket."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fake_graph import NUMBER_ID, TOKEN, WABA_ID, FakeGraph, fake_graph
from test_admin import APP_SECRET, Terminal, founded

from wabery_server.db import Source
from wabery_server.whatsapp import CheckName


@pytest.fixture
async def meta() -> AsyncIterator[FakeGraph]:
    async with fake_graph() as running:
        yield running


@pytest.fixture
def terminal(source: Source, meta: FakeGraph) -> Terminal:
    return Terminal(source, WABERY_GRAPH_URL=meta.url)


async def connected(terminal: Terminal, *flags: str) -> None:
    project = await founded(terminal)
    ran = await terminal.run(
        *("channels", "create", "--project", project, "--name", "Support", "--phone-number-id", NUMBER_ID),
        *("--display-phone-number", "+49 151 2345678", "--waba-id", WABA_ID, *flags),
        stdin=APP_SECRET,
    )
    assert ran.code == 0, ran.talk


async def examined(terminal: Terminal) -> tuple[int, dict[str, Any]]:
    """The exit code, and what was found of the channel."""
    ran = await terminal.run("--json", command="doctor")
    findings = json.loads(ran.out)["checks"]
    return ran.code, {one["name"]: one for one in findings if one["name"].startswith("channel")}


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    return str(path)


async def test_it_asks_meta_about_a_channel_with_an_access_token(
    terminal: Terminal, meta: FakeGraph, token_file: str
) -> None:
    await connected(terminal, "--access-token-file", token_file)

    healthy, findings = await examined(terminal)
    meta.subscribed = []
    silent, worse = await examined(terminal)

    assert list(findings) == [f"channel Support, {name}" for name in CheckName]
    assert {one["state"] for one in findings.values()} == {"ok", "skipped"}
    assert worse["channel Support, subscription"]["state"] == "failed"
    assert (healthy, silent) == (0, 1)


async def test_it_prints_what_was_skipped_and_never_the_token(
    terminal: Terminal, meta: FakeGraph, token_file: str
) -> None:
    await connected(terminal, "--access-token-file", token_file)
    meta.refuse("debug_token", 190)

    ran = await terminal.run(command="doctor")

    assert ran.code == 1
    assert "failed   channel Support, access_token: Meta does not take the access token" in ran.out
    assert "skipped  channel Support, subscription: Meta was not asked: see access_token." in ran.out
    assert TOKEN not in ran.out + ran.talk


async def test_it_does_not_ask_about_a_channel_without_a_token(terminal: Terminal, meta: FakeGraph) -> None:
    await connected(terminal)

    code, findings = await examined(terminal)

    assert (code, findings, meta.asked) == (0, {}, [])


async def test_it_names_contacts_that_are_one_person_and_linked_twice(
    terminal: Terminal, source: Source
) -> None:
    project = await founded(terminal)
    connection = await source.connect()
    await connection.execute(
        "insert into contacts (project_id, id, created_at, duplicate_of)"
        " select $1, 'contact_' || n, now(), case when n = 2 then 'contact_1' end from generate_series(1, 3) n",
        project,
    )
    await connection.close()

    ran = await terminal.run(command="doctor")

    assert "one person, linked twice: contact_2 and contact_1\n" in ran.out
    assert ran.code == 0
