"""The few forms of Markdown that the generated pages are made of."""

import json
from collections.abc import Iterable, Iterator

MADE = "<!-- Made by docs/generate.py from {source}: change it there and run `make docs`. -->"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A table; a heading may be empty."""
    names = list(head)
    yield f"| {' | '.join(names)} |"
    yield f"|{'-|' * len(names)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def fence(language: str, text: str) -> Iterator[str]:
    """A code fence."""
    yield f"```{language}"
    yield from text.strip("\n").splitlines()
    yield "```"


def as_json(value: object) -> Iterator[str]:
    """A fence of JSON."""
    yield from fence("json", json.dumps(value, indent=2, ensure_ascii=False))


def oneline(text: str | None) -> str:
    """A docstring without its line breaks."""
    return " ".join((text or "").split())
