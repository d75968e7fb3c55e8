"""Builds the site: the pages as HTML, each one also as Markdown beside it, and llms.txt, which lists those.

python docs/build.py    writes site/; fails on a link that leads nowhere
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml  # type: ignore[import-untyped]  # it has no stubs; Zensical brings it

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = ROOT / "site"


def main() -> int:
    """Builds; returns an exit code."""
    shutil.rmtree(SITE, ignore_errors=True)
    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=ROOT, check=False
    )
    if built.returncode != 0:
        return built.returncode
    for page in DOCS.rglob("*.md"):
        shutil.copy(page, SITE / page.relative_to(DOCS))
    (SITE / "llms.txt").write_text("\n".join(llms()) + "\n")
    return 0


def llms() -> Iterator[str]:
    """The site for language models, as llmstxt.org describes it: what it is, then every page with its first sentence."""
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    yield f"# {settings['site_name']}"
    yield ""
    yield f"> {settings['site_description']}. Self-hosted, open source."
    yield ""
    yield from _listed(
        [*settings["nav"], {"Errors": _pages("reference/errors"), "Decisions": _pages("decisions")}]
    )


def _pages(folder: str) -> list[str]:
    """Built and listed, but not in the navigation: one comes to an error by its code; decisions are for who changes Wabery."""
    return sorted(page.relative_to(DOCS).as_posix() for page in (DOCS / folder).glob("*.md"))


def _listed(entry: object) -> Iterator[str]:
    """A part of the navigation: a page, a titled page or section, or several of them."""
    match entry:
        case str(name):
            title, first = _opening((DOCS / name).read_text())
            yield f"- [{title}]({name}): {first}"
        case dict():
            for title, inside in entry.items():
                if isinstance(inside, list):
                    yield from ("", f"## {title}", "")
                yield from _listed(inside)
        case list():
            for one in entry:
                yield from _listed(one)


def _opening(text: str) -> tuple[str, str]:
    """A page's title, and the first sentence below it that says more than a date, without marks."""
    title, *rest = (block for block in text.split("\n\n") if not block.startswith("<!--"))
    plain = (" ".join(block.split()) for block in rest if not block.startswith("#"))
    sentences = (one for block in plain for one in re.split(r"(?<=\.)\s", block))
    first = next(one for one in sentences if len(one) > 25)
    return title.removeprefix("# ").strip(), re.sub(r"\[(.+?)\]\(.+?\)|\*", r"\1", first)


if __name__ == "__main__":
    sys.exit(main())
