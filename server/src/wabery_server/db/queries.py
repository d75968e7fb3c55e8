"""Reads `noun.sql`: blocks that open with `-- name: word`, each one statement, called by the function of that name.

A block marked `-- name: word, hot` runs for every request; tests hold it to the rules of hot statements. A block that
opens with `-- part: word` is text that statements of the same file take in as `{word}`.

A statement that takes a list of rows is written for one: `values ($1, $2)` in an insert, or `from (values ($1::text,
$2::text)) w (project_id, id)`. `for_rows` makes it one for as many as are needed.
"""

import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

_ROW = re.compile(r"(?<=values )\(\$1\b[^()]*\)")
_PARAMETER = re.compile(r"\$(\d+)")
_BLOCK = re.compile(r"^-- (name|part): (\w+)(, hot)?$", re.MULTILINE)


class Query(NamedTuple):
    name: str
    text: str
    hot: bool


def parse(source: str) -> dict[str, Query]:
    """Every block by name, in file order."""
    found: dict[str, Query] = {}
    parts: dict[str, str] = {}
    marks = list(_BLOCK.finditer(source))
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        kind, name, hot = mark.groups()
        body = source[mark.end() : following.start() if following else None]
        lines = [line for line in body.splitlines() if not line.lstrip().startswith("--")]
        text = "\n".join(lines).strip().rstrip(";")
        if name in found or name in parts:
            raise ValueError(f"there are two blocks {name!r}")
        if kind == "part":
            parts[name] = text
        else:
            for part, meaning in parts.items():
                text = text.replace(f"{{{part}}}", meaning)
            found[name] = Query(name, text, bool(hot))
    return found


def beside(module_file: str) -> SimpleNamespace:
    """The statements of the `.sql` file beside a module, as text under their names."""
    path = Path(module_file).with_suffix(".sql")
    return SimpleNamespace(**{name: query.text for name, query in parse(path.read_text("utf-8")).items()})


@cache
def for_rows(text: str, rows: int) -> str:
    """The statement with its row of `values` that many times; the parameters of each follow those of the one before.

    Raises ValueError where there is no such row, or a parameter outside of it.
    """
    (row,) = _ROW.findall(text) or ("",)
    width = len(_PARAMETER.findall(row))
    if width == 0 or width != len(set(_PARAMETER.findall(text))):
        raise ValueError(f"not a statement for rows: {text}")

    def numbered(offset: int) -> str:
        return _PARAMETER.sub(lambda found: f"${int(found[1]) + offset}", row)

    return text.replace(row, ", ".join(numbered(number * width) for number in range(rows)))
