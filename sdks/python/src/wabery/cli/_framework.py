"""The one module that knows cyclopts: how options are declared, parsed and explained.

cyclopts derives an environment variable for every option of every command if told to; ours are named one by one in
`_settings`, because a derived name would also fill positionals.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from cyclopts import (
    App,
    Argument,
    CycloptsError,
    Group,
    MissingArgumentError,
    Parameter,
    RepeatArgumentError,
    UnknownCommandError,
)

from wabery._version import __version__
from wabery.cli._exit import CommandError

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import Console, ConsoleOptions

Flag: TypeAlias = Annotated[bool, Parameter(negative=(), show_default=False)]
"""An option that is there or not."""
Input: TypeAlias = Annotated[Path, Parameter(allow_leading_hyphen=True)]
"""A file to read; `-` is stdin."""
Inputs: TypeAlias = Annotated[
    tuple[Path, ...], Parameter(negative=(), show_default=False, allow_leading_hyphen=True)
]
"""Files to read."""
TextOrDash: TypeAlias = Annotated[str, Parameter(allow_leading_hyphen=True)]
"""A positional for which `-` is not the beginning of an option."""
Choice: TypeAlias = Annotated[bool | None, Parameter(show_default=False)]
"""An option with an opposite (`--qr`, `--no-qr`), and None when neither was given."""
Repeated: TypeAlias = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)]
"""An option that may be given several times."""

_OUTPUT = Group("Output", sort_key=2)
_ACCESS = Group("Access", sort_key=3)
SERVER = Group("On the server's machine", sort_key=4)
"""Commands of the server, apart from those that call one."""


@Parameter(name="*", group=_OUTPUT)
@dataclass(frozen=True, kw_only=True)
class Output:
    """How a command talks."""

    json: Flag = False
    """Print JSON."""
    no_color: Flag = False
    """No colours; so do NO_COLOR and TERM=dumb."""
    no_input: Flag = False
    """Never ask; fail instead."""


@Parameter(name="*", group=_ACCESS)
@dataclass(frozen=True, kw_only=True)
class Access:
    """Which server, with which key."""

    base_url: str | None = None
    """The API, with /v1 at its end (else WABERY_BASE_URL, dev.env, profile)."""
    profile: str | None = None
    """What `wabery login` has stored (else WABERY_PROFILE)."""
    api_key_file: Input | None = None
    """A file, - is stdin (else WABERY_API_KEY, dev.env, profile)."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Pages:
    """How much of a list, and how."""

    limit: int | None = None
    """How many at most. Default: 20."""
    all: Flag = False
    """Every one, however many."""
    jsonl: Flag = False
    """One JSON object per line, as they come."""


PAGES = Pages()
OUTPUT = Output()
ACCESS = Access()


def application(name: str, about: str, examples: Sequence[str]) -> App:
    """A group of commands whose help starts with examples."""
    return App(
        name=name,
        help=about,
        help_prologue=prologue(examples),
        help_format="plaintext",
        help_formatter=_Columns(),
        version=__version__,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )


def prologue(examples: Sequence[str]) -> str:
    return "\n".join(["Examples:", *(f"  {example}" for example in examples)])


class _Columns:
    """Help in two columns of plain text: it reads well aloud, in a pipe and in a narrow window."""

    _LABEL = 28

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        if not panel.entries:
            return
        print(f"{_plain(panel.title)}:")
        for entry in panel.entries:
            label = ", ".join(entry.display_labels_with_metavar)
            about = _plain(entry.description)
            about += (
                " [required]" if entry.required else f" [default: {entry.default}]" if entry.default else ""
            )
            indent = " " * (self._LABEL + 2)
            if len(label) > self._LABEL - 2:
                print(f"  {label}")
                label = ""
            lines = _wrapped(about, first=indent, after=indent) or [indent]
            print("\n".join([f"  {label:<{self._LABEL}}{lines[0][len(indent) :]}", *lines[1:]]).rstrip())
        print()

    def render_usage(self, console: Console, options: ConsoleOptions, usage: object) -> None:
        if text := _plain(usage).strip():
            usage_line = f"Usage: {text.removeprefix('Usage:').strip()}"
            print("\n".join(_wrapped(usage_line, after=" " * 7)) + "\n")

    def render_description(self, console: Console, options: ConsoleOptions, description: object) -> None:
        if text := _plain(description).strip():
            lines = (_wrapped(line, after="") if line.strip() else [""] for line in text.splitlines())
            print("\n".join(chain.from_iterable(lines)) + "\n")


def _wrapped(text: str, *, first: str = "", after: str) -> list[str]:
    width = max(shutil.get_terminal_size().columns, 60)
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=after, break_on_hyphens=False)


def _plain(text: object) -> str:
    """What cyclopts hands over is a string, or one wrapped for styling once or twice."""
    inner = getattr(text, "primary_renderable", text)
    return str(getattr(inner, "plain", inner or ""))


def parse_and_run(app: App, words: list[str]) -> Any:
    """Whatever the command returns. Raises CommandError for a wrong command line."""
    try:
        return app(words, exit_on_error=False, print_error=False)
    except CycloptsError as wrong:
        known = app.parse_commands(words)[0]
        raise CommandError(_said(wrong, words), f"See `{' '.join(['wabery', *known, '--help'])}`.") from wrong


def _said(wrong: CycloptsError, words: list[str]) -> str:
    """What is wrong with a command line, in one sentence or two."""
    text = str(wrong).strip()
    guess = f" {found[0]}" if (found := re.search(r"Did you mean [^?]+\?", text)) else ""
    match wrong:
        case UnknownCommandError():
            return f"There is no command {(wrong.unused_tokens or words)[0]!r}.{guess}"
        case MissingArgumentError(argument=Argument() as argument):
            return f"{argument.name} {'needs a value' if argument.name in words else 'is missing'}.{guess}"
        case RepeatArgumentError():
            return f"{text.removeprefix('Parameter ').partition(' ')[0]} repeats or contradicts what was said before."
    return text


def completion(app: App, shell: Literal["bash", "zsh", "fish"]) -> str:
    """The script that a shell sources."""
    return app.generate_completion(shell=shell)


def install_completion(app: App) -> Path:
    """Write the script where this user's shell looks for it. Raises CommandError where the shell cannot be told."""
    try:
        return app.install_completion(add_to_startup=False)
    except Exception as cause:
        raise CommandError(
            f"Could not tell which shell this is: {cause}", "Try `wabery completion bash`."
        ) from cause


def commands_in(app: App, words: Sequence[str]) -> tuple[str, ...]:
    """The first words, as far as they are commands."""
    return tuple(app.parse_commands(list(words))[0])


def print_help(app: App, words: list[str]) -> None:
    app.help_print(words)
    sys.stdout.flush()
