"""`wabery keys`: make, list, replace and end API keys, and look for typos in one."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta

from wabery import NOT_GIVEN, APIKey, keys
from wabery.cli._connect import connected
from wabery.cli._exit import CommandError, Exit
from wabery.cli._framework import (
    ACCESS,
    OUTPUT,
    PAGES,
    Access,
    Flag,
    Output,
    Pages,
    Repeated,
    TextOrDash,
)
from wabery.cli._listing import listed, most
from wabery.cli._terminal import Terminal
from wabery.cli._values import if_given, seconds


def create(
    *,
    name: str,
    publishable: Flag = False,
    scope: Repeated = (),
    allowed_origin: Repeated = (),
    expires_in: str | None = None,
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
    expires_in
        When it ends by itself, such as 90d. Default: never.
    """
    terminal = Terminal(output)
    if publishable and scope:
        raise CommandError("A publishable key has no scopes.", "Leave out --scope, or --publishable.")
    if not publishable and not scope:
        raise CommandError(
            "What the key may do is missing.",
            "Add --scope registrations:create (and others), --scope full, or --publishable for a browser's key.",
        )
    end = _moment_in(expires_in)
    with connected(access) as client:
        made = client.api_keys.create(
            name=name,
            kind="publishable" if publishable else "secret",
            scopes=list(scope) if scope else NOT_GIVEN,
            allowed_origins=list(allowed_origin) if allowed_origin else NOT_GIVEN,
            expires_at=if_given(end),
        )
    _show_once(terminal, made)
    return Exit.OK


def list_(*, pages: Pages = PAGES, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """List keys, revoked ones too, without the keys themselves."""
    limit = most(pages, output)
    with connected(access) as client:
        return listed(
            lambda size: client.api_keys.list(limit=size),
            ("id", "kind", "name", "last4", "created_at", "last_used_at", "revoked_at"),
            pages,
            output,
            limit=limit,
        )


def get(key_id: str, /, *, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """Show a key's name, scopes and use, without a secret key itself.

    Parameters
    ----------
    key_id
        Such as key_01jz….
    """
    with connected(access) as client:
        _show(Terminal(output), client.api_keys.get(key_id))
    return Exit.OK


def update(
    key_id: str,
    /,
    *,
    name: str | None = None,
    allowed_origin: Repeated = (),
    any_origin: Flag = False,
    expires_in: str | None = None,
    output: Output = OUTPUT,
    access: Access = ACCESS,
) -> int:
    """Change a key's name, origins or end; what is not named stays. Its scopes are fixed: make another key.

    Parameters
    ----------
    key_id
        Such as key_01jz….
    name
        What it is for.
    allowed_origin
        Where a publishable key may be used from now on, instead of where it was. May be repeated.
    any_origin
        Let a publishable key be used anywhere.
    expires_in
        When it ends by itself, from now on, such as 90d.
    """
    if any_origin and allowed_origin:
        raise CommandError("--any-origin and --allowed-origin exclude each other.", "Leave one of them out.")
    if name is None and not allowed_origin and not any_origin and expires_in is None:
        raise CommandError("Nothing to change was named.", "See `wabery keys update --help`.")
    end = _moment_in(expires_in)
    with connected(access) as client:
        changed = client.api_keys.update(
            key_id,
            name=if_given(name),
            allowed_origins=list(allowed_origin) if allowed_origin or any_origin else NOT_GIVEN,
            expires_at=if_given(end),
        )
        _show(Terminal(output), changed)
    return Exit.OK


def rotate(
    key_id: str,
    /,
    *,
    overlap: str | None = None,
    output: Output = OUTPUT,
    access: Access = ACCESS,
) -> int:
    """Replace a key under its id and print the new one. For a while both work.

    Parameters
    ----------
    key_id
        Such as key_01jz….
    overlap
        How long the old one goes on working, such as 12h, or 0 when it has leaked. Default: a day.
    """
    last = seconds("--overlap", overlap, least=0)
    with connected(access) as client:
        _show_once(Terminal(output), client.api_keys.rotate(key_id, overlap=if_given(last)))
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


def _moment_in(expires_in: str | None) -> datetime | None:
    lifetime = seconds("--expires-in", expires_in)
    return None if lifetime is None else datetime.now(UTC) + timedelta(seconds=lifetime)


def _show(terminal: Terminal, key: APIKey) -> None:
    if terminal.as_json:
        terminal.json(key.to_dict())
    else:
        terminal.fields(key.to_dict())


def _show_once(terminal: Terminal, key: APIKey) -> None:
    if terminal.as_json:
        terminal.json(key.to_dict())
    else:
        terminal.line(str(key.key))
    if key.get("kind") == "secret":
        terminal.warn(f"This is the only time {key.id} is shown. Keep it out of browsers and repositories.")
    elif key.get("warning"):
        terminal.warn(str(key.warning))
