"""`wabery events`."""

from __future__ import annotations

from wabery import NOT_GIVEN
from wabery.cli._connect import connected
from wabery.cli._exit import Exit
from wabery.cli._framework import ACCESS, OUTPUT, Access, Flag, Output
from wabery.cli._listing import listed, page_size
from wabery.cli._terminal import Terminal


def list_(
    *,
    type: str | None = None,
    limit: int = 20,
    jsonl: Flag = False,
    output: Output = OUTPUT,
    access: Access = ACCESS,
) -> int:
    """List events, newest first.

    Parameters
    ----------
    type
        Only these, such as participant.joined.
    limit
        How many at most.
    jsonl
        One JSON object per line.
    """
    size = page_size(limit)
    with connected(access) as client:
        page = client.events.list(type=type or NOT_GIVEN, limit=size)
        return listed(Terminal(output), page, ("id", "type", "created_at"), limit=limit, jsonl=jsonl)


def get(event_id: str, /, *, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """Show an event with its payload."""
    terminal = Terminal(output)
    with connected(access) as client:
        event = client.events.get(event_id)
    if output.json:
        terminal.json(event.to_dict())
    else:
        terminal.fields(event.to_dict())
    return Exit.OK
