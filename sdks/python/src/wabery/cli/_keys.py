"""`wabery keys`: make, list, replace and end API keys, and look for typos in one."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta

from wabery import NOT_GIVEN, APIKey, keys
from wabery.cli._connect import connected
from wabery.cli._exit import CommandError, Exit
from wabery.cli._framework import ACCESS, OUTPUT, Access, Flag, Output, Repeated, TextOrDash
from wabery.cli._listing import listed, page_size
from wabery.cli._terminal import Terminal


def create(
    *,
    name: str,
    publishable: Flag = False,
    scope: Repeated = (),
    allowed_origin: Repeated = (),
    expires_in_days: int | None = None,
    output: Output = OUTPUT,
    access: Access = ACCESS,
) -> int:
    """Make a key and print it. A secret key is never shown again.

    Parameters
    ----------
    name
        What it is for.
    publishable
        A key for browsers instead of a secret one.
    scope
        What a secret key may do, such as registrations:create, or read_only, or full. May be repeated.
    allowed_origin
        Where a publishable key may be used, such as https://app.example.com. May be repeated.
    expires_in_days
        When it ends by itself. Default: never.
    """
    terminal = Terminal(output)
    if expires_in_days is not None and expires_in_days < 1:
        raise CommandError("--expires-in-days must be 1 or more.")
    end = NOT_GIVEN if expires_in_days is None else datetime.now(UTC) + timedelta(days=expires_in_days)
    with connected(access) as client:
        made = client.api_keys.create(
            name=name,
            kind="publishable" if publishable else "secret",
            scopes=list(scope) if scope else NOT_GIVEN,
            allowed_origins=list(allowed_origin) if allowed_origin else NOT_GIVEN,
            expires_at=end,
        )
    _show_once(terminal, made)
    return Exit.OK


def list_(*, limit: int = 20, jsonl: Flag = False, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """List keys, revoked ones too, without the keys themselves.

    Parameters
    ----------
    limit
        How many at most.
    jsonl
        One JSON object per line.
    """
    size = page_size(limit)
    with connected(access) as client:
        page = client.api_keys.list(limit=size)
        columns = ("id", "kind", "name", "last4", "created_at", "last_used_at", "revoked_at")
        return listed(Terminal(output), page, columns, limit=limit, jsonl=jsonl)


def rotate(key_id: str, /, *, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """Replace a key under its id and print the new one. For a while both work."""
    with connected(access) as client:
        _show_once(Terminal(output), client.api_keys.rotate(key_id))
    return Exit.OK


def revoke(key_id: str, /, *, yes: Flag = False, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """End a key at once, and the pending intents it has minted.

    Parameters
    ----------
    key_id
        Such as key_01jz….
    yes
        Do not ask.
    """
    terminal = Terminal(output)
    terminal.confirm(f"End {key_id} and its pending intents?", yes=yes)
    with connected(access) as client:
        ended = client.api_keys.revoke(key_id)
    if output.json:
        terminal.json(ended.to_dict())
    else:
        terminal.talk(f"{key_id} is revoked.")
    return Exit.OK


def check(key: TextOrDash, /, *, output: Output = OUTPUT) -> int:
    """Look for a typo in a key, offline. A good one may still be unknown to the server.

    Parameters
    ----------
    key
        The key, or - to read it from stdin, where no list of processes shows it.
    """
    terminal = Terminal(output)
    given = sys.stdin.readline().strip() if key == "-" else key
    found = keys.check(given)
    if output.json:
        terminal.json(
            {
                "valid": found.valid,
                "kind": found.kind,
                "livemode": found.livemode,
                "problem": found.problem,
                "key": keys.mask(given),
            }
        )
    elif found.valid:
        mode = {True: "live ", False: "test ", None: ""}[found.livemode]
        terminal.line(f"{keys.mask(given)} is a well-formed {mode}{found.kind} key")
    else:
        terminal.line(f"{keys.mask(given)} is not a key: {found.problem}")
    return Exit.OK if found.valid else Exit.UNEXPECTED


def _show_once(terminal: Terminal, key: APIKey) -> None:
    if terminal.as_json:
        terminal.json(key.to_dict())
    else:
        terminal.line(str(key.key))
    if key.get("kind") == "secret":
        terminal.warn(f"This is the only time {key.id} is shown. Keep it out of browsers and repositories.")
    elif key.get("warning"):
        terminal.warn(str(key.warning))
