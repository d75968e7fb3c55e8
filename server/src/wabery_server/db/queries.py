"""Reads `noun.sql`: blocks that open with `-- name: word`, each one statement, called by the function of that name.

A block marked `-- name: word, hot` runs for every request; tests hold it to the rules of hot statements. A block that
opens with `-- part: word` is text that statements of the same file take in as `{word}`.
"""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

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
    return SimpleNamespace(**{name: query.text for name, query in parse(path.read_text()).items()})
