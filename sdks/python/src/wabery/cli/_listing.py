"""What every `list` command does with its pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from wabery.cli._exit import CommandError, Exit
from wabery.cli._terminal import Terminal

if TYPE_CHECKING:
    from wabery import Object, Page

M = TypeVar("M", bound="Object")


LARGEST_PAGE = 100


def page_size(limit: int | None) -> int:
    """Objects per page, for up to `limit` (None: all). Raises CommandError before anything is asked."""
    if limit is None:
        return LARGEST_PAGE
    if limit < 1:
        raise CommandError("--limit must be 1 or more.")
    return min(limit, LARGEST_PAGE)


def listed(
    terminal: Terminal, page: Page[M], columns: Sequence[str], *, limit: int | None, jsonl: bool
) -> int:
    """Print up to `limit` objects (None: all): a table, a JSON array, or a JSON object per line."""
    objects = islice(page, limit)
    if jsonl:
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
