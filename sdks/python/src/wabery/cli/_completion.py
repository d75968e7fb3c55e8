"""`wabery completion`."""

from __future__ import annotations

from typing import Literal

from wabery.cli import _app, _framework
from wabery.cli._exit import Exit


def install() -> int:
    """Write the script where this user's shell looks for it."""
    print(_framework.install_completion(_app.build(["completion"])))
    return Exit.OK


def bash() -> int:
    """Print the script for bash."""
    return _printed("bash")


def zsh() -> int:
    """Print the script for zsh."""
    return _printed("zsh")


def fish() -> int:
    """Print the script for fish."""
    return _printed("fish")


def _printed(shell: Literal["bash", "zsh", "fish"]) -> int:
    print(_framework.completion(_app.build(["completion"]), shell))
    return Exit.OK
