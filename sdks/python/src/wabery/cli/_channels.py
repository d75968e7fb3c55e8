"""`wabery channels`."""

from __future__ import annotations

from pathlib import Path

from wabery import NOT_GIVEN, Channel, NotGiven
from wabery.cli._connect import connected
from wabery.cli._exit import CommandError, Exit
from wabery.cli._framework import ACCESS, OUTPUT, PAGES, Access, Flag, Input, Inputs, Output, Pages
from wabery.cli._listing import listed, most
from wabery.cli._settings import read_secret_file
from wabery.cli._terminal import Terminal
from wabery.cli._values import if_given


def list_(*, pages: Pages = PAGES, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """List channels."""
    limit = most(pages, output)
    with connected(access) as client:
        return listed(
            lambda size: client.channels.list(limit=size),
            ("id", "provider", "name", "display_phone_number", "sandbox", "created_at"),
            pages,
            output,
            limit=limit,
        )


def get(channel_id: str, /, *, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """Show a channel, with the verify token that Meta's dashboard asks for.

    Parameters
    ----------
    channel_id
        Such as channel_01jz….
    """
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
    verify_token_file: Input | None = None,
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
        File with a system user's token. With it `channels check` can ask Meta.
    verify_token_file
        File with the verify token. Default: the server makes one.
    portfolio_id
        The business portfolio's id.
    """
    terminal = Terminal(output)
    if app_secret_file is None:
        app_secret = terminal.ask_secret("App secret", "Add --app-secret-file.")
    else:
        app_secret = read_secret_file(app_secret_file)
    access_token, verify_token = _read(access_token_file), _read(verify_token_file)
    with connected(access) as client:
        channel = client.channels.create(
            name=name,
            phone_number_id=phone_number_id,
            display_phone_number=display_phone_number,
            waba_id=waba_id,
            app_secret=app_secret,
            access_token=access_token,
            verify_token=verify_token,
            portfolio_id=if_given(portfolio_id),
        )
    _show(terminal, channel)
    terminal.talk("Next: enter the webhook URL and the verify token in Meta's dashboard.")
    return Exit.OK


def update(
    channel_id: str,
    /,
    *,
    name: str | None = None,
    display_phone_number: str | None = None,
    portfolio_id: str | None = None,
    app_secret_file: Inputs = (),
    access_token_file: Input | None = None,
    verify_token_file: Input | None = None,
    output: Output = OUTPUT,
    access: Access = ACCESS,
) -> int:
    """Change a channel; what is not named stays.

    Parameters
    ----------
    channel_id
        Such as channel_01jz….
    name
        What people call it.
    display_phone_number
        The number itself, digits only, with its country code.
    portfolio_id
        The business portfolio's id.
    app_secret_file
        File with an app secret that is accepted from now on. Repeat it while rotating: both are accepted.
    access_token_file
        File with a system user's token.
    verify_token_file
        File with the verify token.
    """
    access_token, verify_token = _read(access_token_file), _read(verify_token_file)
    app_secrets = [read_secret_file(file) for file in app_secret_file]
    changed = (name, display_phone_number, portfolio_id, access_token_file, verify_token_file)
    if not app_secrets and all(value is None for value in changed):
        raise CommandError("Nothing to change was named.", "See `wabery channels update --help`.")
    with connected(access) as client:
        channel = client.channels.update(
            channel_id,
            name=if_given(name),
            display_phone_number=if_given(display_phone_number),
            portfolio_id=if_given(portfolio_id),
            app_secrets=app_secrets or NOT_GIVEN,
            access_token=access_token,
            verify_token=verify_token,
        )
        _show(Terminal(output), channel)
    return Exit.OK


def check(channel_id: str, /, *, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """Ask Meta whether the number and its credentials work. Exit code 1 when something does not.

    Parameters
    ----------
    channel_id
        Such as channel_01jz….
    """
    terminal = Terminal(output)
    with connected(access) as client:
        checked = client.channels.check(channel_id).to_dict()
    if output.json:
        terminal.json(checked)
    else:
        for finding in checked["checks"]:
            terminal.finding(finding["state"], finding["name"], finding["found"], finding["todo"])
    return Exit.OK if checked["ok"] else Exit.UNEXPECTED


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


def _read(file: Path | None) -> str | NotGiven:
    return NOT_GIVEN if file is None else read_secret_file(file)


def _show(terminal: Terminal, channel: Channel) -> None:
    if terminal.as_json:
        terminal.json(channel.to_dict())
    else:
        terminal.fields(channel.to_dict())
