"""Talking: data on stdout, everything else on stderr, and nothing a server sends may steer the terminal."""

from __future__ import annotations

import getpass
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from wabery.cli._exit import CommandError

if TYPE_CHECKING:
    from wabery.cli._framework import Output

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def printable(text: str) -> str:
    """Text in which control and direction characters are spelled out."""
    return _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class Terminal:
    """Both streams, as one command's options want them."""

    def __init__(self, output: Output) -> None:
        self.as_json = output.json
        self.asks = sys.stdin.isatty() and sys.stderr.isatty() and not output.no_input
        self.attended = sys.stdout.isatty() and sys.stderr.isatty()
        """Whether somebody reads along. False in a pipe or a script, and then there is only data."""
        self.colours = not (output.no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb")

    # stdout

    def line(self, text: str) -> None:
        """One line of data, out at once."""
        print(printable(text), flush=True)

    def json(self, value: object) -> None:
        """A JSON document: indented for a person, one line in a pipe."""
        print(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None), flush=True)

    def fields(self, fields: Mapping[str, object]) -> None:
        """An object, a field per line."""
        width = max(map(len, fields), default=0)
        for name, value in fields.items():
            self.line(f"{name:<{width}}  {_text(value)}")

    def finding(self, state: str, name: str, found: str, hint: str | None) -> None:
        """What a check has found, and what to do about it."""
        self.line(f"{state:<8} {name}: {found}")
        if hint:
            self.line(f"{'':<8} {hint}")

    def rows(self, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table for a person, with times as they are said; in a pipe, values separated by tabs, without a head."""
        person = sys.stdout.isatty()
        now = datetime.now(UTC)
        cells = [
            [printable(_relative(value, now) if person else _text(value)) for value in row] for row in rows
        ]
        if not person:
            for row in cells:
                print("\t".join(row))
            return
        table = [[name.upper() for name in head], *cells]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    # stderr

    def talk(self, text: str) -> None:
        """What only a person needs."""
        if sys.stderr.isatty():
            print(printable(text), file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """What must be said in any case."""
        print(f"warning: {printable(text)}", file=sys.stderr, flush=True)

    # Questions

    def confirm(self, question: str, *, yes: bool) -> None:
        """Go on only with a yes. Raises CommandError for a no, and where nobody can be asked."""
        if yes:
            return
        if not self.asks:
            raise CommandError(f"{question} Nobody can be asked here.", "Add --yes.")
        print(f"{printable(question)} [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise CommandError("Nothing was changed.")

    def ask_secret(self, what: str, otherwise: str) -> str:
        """Read a secret without showing it, or from a pipe. Raises CommandError where there is neither."""
        if self.asks:
            given = getpass.getpass(f"{what}: ", stream=sys.stderr)
        elif not sys.stdin.isatty():
            given = sys.stdin.readline()
        else:
            raise CommandError(f"{what} is needed, and nobody may be asked for it.", otherwise)
        if not given.strip():
            raise CommandError(f"{what} is needed.", otherwise)
        return given.strip()


def _relative(value: Any, now: datetime) -> str:
    """A moment as its distance from now, such as `5 min ago` or `in 23 h`; anything else as it is."""
    text = _text(value)
    if not _MOMENT.fullmatch(text):
        return text
    seconds = int((datetime.fromisoformat(text) - now).total_seconds())
    size, unit = next(((size, unit) for size, unit in _UNITS if abs(seconds) >= size), (1, "s"))
    distance = f"{abs(seconds) // size} {unit}"
    return f"in {distance}" if seconds > 0 else f"{distance} ago"


def _text(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list() | dict():
            return json.dumps(value, ensure_ascii=False)
    return str(value)
