"""`wabery completion`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from wabery.cli import _app, _framework
from wabery.cli._exit import Exit
from wabery.cli._framework import OUTPUT, Output
from wabery.cli._terminal import Terminal


def install(*, output: Output = OUTPUT) -> int:
    """Write the script where this user's shell looks for it, print that path, and say what is left to do."""
    terminal = Terminal(output)
    path = _framework.install_completion(_app.build(["completion"]))
    if output.json:
        terminal.json({"path": str(path)})
    else:
        terminal.line(str(path))
        terminal.talk(_next(path))
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


def _next(path: Path) -> str:
    if "zsh" in str(path):
        return f"Next: put  fpath=({path.parent} $fpath)  before compinit in ~/.zshrc, and open a new shell."
    if "bash" in str(path):
        return f"Next: open a new shell. Without the package bash-completion, put  source {path}  into ~/.bashrc."
    return "Next: open a new shell."
