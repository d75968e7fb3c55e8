"""`wabery help`: any command's help, and the pages that belong to none."""

from __future__ import annotations

from wabery.cli import _app, _framework, _settings
from wabery.cli._exit import CommandError, Exit
from wabery.cli._framework import OUTPUT, Output
from wabery.cli._terminal import Terminal

ENVIRONMENT = {
    "WABERY_API_KEY": "the key; comes before a stored one",
    "WABERY_BASE_URL": "where the API is, with /v1 at its end",
    "WABERY_PROFILE": "which stored profile to use",
    "WABERY_WEBHOOK_SECRET": "the signing secret for `wabery verify`",
    "WABERY_LOG": "debug: every request on stderr, without keys, tokens and phone numbers",
    "XDG_CONFIG_HOME": "where profiles are stored; default ~/.config",
    "XDG_CONFIG_DIRS": "where an administrator stores them for all; default /etc/xdg",
    "NO_COLOR": "no colours",
}


def help(*words: str, output: Output = OUTPUT) -> int:
    """Explain a command, or: exit-codes, environment.

    Parameters
    ----------
    words
        A command, such as `registration-intents create`, or a page.
    """
    terminal = Terminal(output)
    match words:
        case ("exit-codes",):
            if output.json:
                terminal.json([{"code": code.value, "about": code.about} for code in Exit])
            else:
                print("\n".join(f"{code.value:>3}  {code.about}" for code in Exit))
        case ("environment",):
            if output.json:
                terminal.json([{"name": name, "about": about} for name, about in ENVIRONMENT.items()])
            else:
                terminal.fields(ENVIRONMENT)
                print("\n".join((_settings.__doc__ or "").splitlines()[1:]))
        case _:
            app = _app.build([*words, "--help"] if words else [])
            known = _framework.commands_in(app, words)
            if known != words:
                raise CommandError(
                    f"There is no command {' '.join(words[: len(known) + 1])!r}.",
                    f"See `{' '.join(['wabery', *known, '--help'])}`.",
                )
            _framework.print_help(app, list(words))
    return Exit.OK
