"""The `wabery` command.

Data goes to stdout and talk to stderr, so that `link=$(wabery registration-intents create …)` works. Exit codes say what
happened (`wabery help exit-codes`). Command bodies are imported when they run; the server's commands come through the entry
point group `wabery.commands` and are loaded only when somebody asks for one of them, or for help.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wabery.cli._world import guarded


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: _run(words))


def _run(words: list[str]) -> int:
    if words == ["--version"]:
        from wabery._version import __version__

        print(__version__)
        return 0
    try:
        from wabery.cli import _app
    except ModuleNotFoundError as missing:
        if missing.name not in ("cyclopts", "rich", "segno"):
            raise
        print("The command line is an extra: install it with  pip install 'wabery[cli]'", file=sys.stderr)
        return 1
    return _app.run(words)
