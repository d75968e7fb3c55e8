"""`wabery events`."""

from __future__ import annotations

from wabery.cli._connect import connected
from wabery.cli._exit import Exit
from wabery.cli._framework import ACCESS, OUTPUT, PAGES, Access, Output, Pages
from wabery.cli._listing import listed, most
from wabery.cli._terminal import Terminal
from wabery.cli._values import if_given, moment


def list_(
    *,
    type: str | None = None,
    contact_id: str | None = None,
    registration_intent_id: str | None = None,
    created_after: str | None = None,
    created_before: str | None = None,
    pages: Pages = PAGES,
    output: Output = OUTPUT,
    access: Access = ACCESS,
) -> int:
    """List events, newest first.

    Parameters
    ----------
    type
        Only these, such as participant.joined.
    contact_id
        Only those of this person.
    registration_intent_id
        Only those of this intent.
    created_after
        ISO 8601, such as 2026-06-27 or 2026-06-27T12:00:00Z.
    created_before
        ISO 8601.
    """
    after, before = moment("--created-after", created_after), moment("--created-before", created_before)
    limit = most(pages, output)
    with connected(access) as client:
        return listed(
            lambda size: client.events.list(
                type=if_given(type),
                contact_id=if_given(contact_id),
                registration_intent_id=if_given(registration_intent_id),
                created_after=if_given(after),
                created_before=if_given(before),
                limit=size,
            ),
            ("id", "type", "created_at"),
            pages,
            output,
            limit=limit,
        )


def get(event_id: str, /, *, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """Show an event with its payload.

    Parameters
    ----------
    event_id
        Such as evt_01jz….
    """
    terminal = Terminal(output)
    with connected(access) as client:
        event = client.events.get(event_id)
    if output.json:
        terminal.json(event.to_dict())
    else:
        terminal.fields(event.to_dict())
    return Exit.OK
