"""`wabery config`: what is in force, and why."""

from __future__ import annotations

from wabery import keys
from wabery.cli._connect import settings_of
from wabery.cli._exit import Exit
from wabery.cli._framework import ACCESS, OUTPUT, Access, Flag, Output
from wabery.cli._terminal import Terminal


def list_(*, show_origin: Flag = False, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """List the settings in force. Keys are shown by their prefix and last four characters.

    Parameters
    ----------
    show_origin
        Say where each came from.
    """
    terminal = Terminal(output)
    settings = settings_of(access)
    found = {"profile": settings.profile, "base_url": settings.base_url, "api_key": settings.api_key}
    shown = {
        name: (keys.mask(one.value) if name == "api_key" else one.value, one.origin) if one else (None, None)
        for name, one in found.items()
    }
    if output.json:
        terminal.json({name: {"value": value, "origin": origin} for name, (value, origin) in shown.items()})
    elif show_origin:
        terminal.fields(
            {name: f"{value or '-'}  ({origin or 'not set'})" for name, (value, origin) in shown.items()}
        )
    else:
        terminal.fields({name: value for name, (value, _) in shown.items()})
    return Exit.OK
