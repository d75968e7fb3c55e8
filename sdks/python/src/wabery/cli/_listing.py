"""What every `list` command does with its pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from wabery.cli._exit import CommandError, Exit
from wabery.cli._framework import Output, Pages
from wabery.cli._terminal import Terminal

if TYPE_CHECKING:
    from wabery import Object, Page

M = TypeVar("M", bound="Object")

LARGEST_PAGE = 100
_DEFAULT = 20
_MOST = 1_000_000


def most(pages: Pages, output: Output) -> int | None:
    """How many objects are wanted, None for all. Raises CommandError before anything is asked."""
    if pages.all and pages.limit is not None:
        raise CommandError("--limit and --all exclude each other.", "Leave one of them out.")
    if pages.jsonl and output.json:
        raise CommandError("--json and --jsonl exclude each other.", "Leave one of them out.")
    limit = _DEFAULT if pages.limit is None else pages.limit
    if not 1 <= limit <= _MOST:
        raise CommandError(f"--limit must be 1 to {_MOST}.", "With --all there is no limit.")
    return None if pages.all else limit


def listed(
    call: Callable[[int], Page[M]],
    columns: Sequence[str],
    pages: Pages,
    output: Output,
    *,
    limit: int | None,
) -> int:
    """Print up to `limit` objects (None: all): a table, a JSON array, or a JSON object per line. `call` takes a page's size."""
    terminal = Terminal(output)
    page = call(LARGEST_PAGE if limit is None else min(limit, LARGEST_PAGE))
    objects = islice(page, limit)
    if pages.jsonl:
        for one in objects:
            print(json.dumps(one.to_dict(), ensure_ascii=False), flush=True)
        return Exit.OK
    found = [one.to_dict() for one in objects]
    if terminal.as_json:
        terminal.json(found)
        return Exit.OK
    terminal.rows(columns, ([one.get(name) for name in columns] for one in found))
    if not found:
        terminal.talk("There are none.")
    elif limit == len(found) and (page.has_more or limit < len(page)):
        terminal.talk(f"These are the newest {limit}; --limit or --all shows more.")
    return Exit.OK
