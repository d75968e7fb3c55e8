"""Lists whose cost does not depend on how many rows there are.

One filter of a list picks the index; the others are asked of each row that the index gives. So that a filter that rarely
applies cannot make a page read a whole project, a page looks at a fixed number of rows: it may end early, with fewer rows
than asked for or none at all, and says where the next page goes on. The statements return

    id         newest first
    matches    whether the other filters apply
    number     which row of those looked at it is; the last one comes back even if it does not match
"""

from collections.abc import Iterable
from typing import NamedTuple

from wabery_server.db import Row

LOOKED_AT = 1_000
"""Rows that one page looks at, for each part of the index that it reads."""


class Part(NamedTuple):
    """The rows of a page that match, and, where the page ended before its limit, the id to go on after."""

    rows: list[Row]
    resume: str | None


def cut(rows: Iterable[Row], looked_at: int) -> Part:
    """What counts of the rows of such a statement: after the last row looked at, older ones may be missing."""
    found: list[Row] = []
    for row in rows:
        if row["matches"]:
            found.append(row)
        if row["number"] == looked_at:
            return Part(found, row["id"])
    return Part(found, None)
