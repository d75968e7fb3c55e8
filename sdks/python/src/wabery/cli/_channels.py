"""`wabery channels`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wabery import NOT_GIVEN, Channel
from wabery.cli._connect import connected
from wabery.cli._exit import Exit
from wabery.cli._framework import ACCESS, OUTPUT, Access, Flag, Input, Output
from wabery.cli._listing import listed, page_size
from wabery.cli._settings import read_secret_file
from wabery.cli._terminal import Terminal

if TYPE_CHECKING:
    from wabery import NotGiven


def list_(*, limit: int = 20, jsonl: Flag = False, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """List channels.

    Parameters
    ----------
    limit
        How many at most.
    jsonl
        One JSON object per line.
    """
    size = page_size(limit)
    with connected(access) as client:
        page = client.channels.list(limit=size)
        columns = ("id", "provider", "name", "display_phone_number", "sandbox", "created_at")
        return listed(Terminal(output), page, columns, limit=limit, jsonl=jsonl)


def get(channel_id: str, /, *, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """Show a channel, with the verify token that Meta's dashboard asks for."""
    with connected(access) as client:
        _show(Terminal(output), client.channels.get(channel_id))
    return Exit.OK


def create(
    *,
    name: str,
    phone_number_id: str,
    display_phone_number: str,
    waba_id: str,
    app_secret_file: Input | None = None,
    access_token_file: Input | None = None,
    portfolio_id: str | None = None,
    output: Output = OUTPUT,
    access: Access = ACCESS,
) -> int:
    """Connect a number of the Meta Cloud API.

    Parameters
    ----------
    name
        What people call it.
    phone_number_id
        From WhatsApp > API Setup in Meta's dashboard.
    display_phone_number
        The number itself, digits only, with its country code.
    waba_id
        The WhatsApp Business Account's id, from the same page.
    app_secret_file
        File with the app secret, from App settings > Basic. Default: asked for, or the first line of stdin.
    access_token_file
        File with a system user's token. Without it the channel cannot reply.
    portfolio_id
        The business portfolio's id.
    """
    terminal = Terminal(output)
    if app_secret_file is None:
        app_secret = terminal.ask_secret("App secret", "Add --app-secret-file.")
    else:
        app_secret = read_secret_file(app_secret_file)
    token: str | NotGiven = NOT_GIVEN if access_token_file is None else read_secret_file(access_token_file)
    with connected(access) as client:
        channel = client.channels.create(
            name=name,
            phone_number_id=phone_number_id,
            display_phone_number=display_phone_number,
            waba_id=waba_id,
            app_secret=app_secret,
            access_token=token,
            portfolio_id=portfolio_id or NOT_GIVEN,
        )
    _show(terminal, channel)
    terminal.talk("Next: enter the webhook URL and the verify token in Meta's dashboard.")
    return Exit.OK


def delete(channel_id: str, /, *, yes: Flag = False, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """Disconnect a number and end the pending intents minted for it.

    Parameters
    ----------
    channel_id
        Such as channel_01jz….
    yes
        Do not ask.
    """
    terminal = Terminal(output)
    terminal.confirm(f"Disconnect {channel_id} and end its pending intents?", yes=yes)
    with connected(access) as client:
        gone = client.channels.delete(channel_id)
    if output.json:
        terminal.json(gone.to_dict())
    else:
        terminal.talk(f"{channel_id} is disconnected.")
    return Exit.OK


def _show(terminal: Terminal, channel: Channel) -> None:
    if terminal.as_json:
        terminal.json(channel.to_dict())
    else:
        terminal.fields(channel.to_dict())
