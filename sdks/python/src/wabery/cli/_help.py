"""`wabery help`: any command's help, and the pages that belong to none."""

from __future__ import annotations

from wabery.cli import _app, _framework, _settings
from wabery.cli._exit import Exit

_ENVIRONMENT = """\
WABERY_API_KEY         the key; a stored profile comes after it
WABERY_BASE_URL        where the API is, with /v1 at its end
WABERY_PROFILE         which stored profile to use
WABERY_WEBHOOK_SECRET  the signing secret for `wabery verify`
WABERY_LOG             debug: every request on stderr, without keys, tokens and phone numbers
XDG_CONFIG_HOME        where profiles are stored; default ~/.config
NO_COLOR               no colours
"""


def help(*words: str) -> int:
    """Explain a command, or: exit-codes, environment.

    Parameters
    ----------
    words
        A command, such as `registration-intents create`, or a page.
    """
    match words:
        case ("exit-codes",):
            for code in Exit:
                print(f"{code.value:>3}  {code.about}")
        case ("environment",):
            print(_ENVIRONMENT, end="")
            print("\n".join((_settings.__doc__ or "").splitlines()[1:]))
        case _:
            _framework.print_help(_app.build([*words, "--help"] if words else []), list(words))
    return Exit.OK
