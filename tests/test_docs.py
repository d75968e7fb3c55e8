"""What the documentation shows is run; what cannot be run is compiled, parsed, or held against the contract."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import reader
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # it has no stubs
from markdown_it import MarkdownIt
from reader import ROOT, Fence, Play, fences
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from wabery.pytest_plugin import WaberyServer
from wabery_server import errors
from wabery_server.db.embedded import Embedded
from wabery_server.settings import Settings

FILES = sorted(path.relative_to(ROOT).as_posix() for path in reader.markdown_files())
PLAYED = [name for name in FILES if name.startswith("docs/") and any(one.run for one in fences(ROOT / name))]
STARTS_ITS_OWN = {"docs/tutorial.md", "docs/how-to/go-live.md", "docs/how-to/production.md"}
NAMES_A_DATABASE = {"docs/how-to/production.md"}
RUN_ELSEWHERE = {
    "README.md": "tests/test_readme.py",
    "sdks/python/README.md": "sdks/python/tests/test_readme.py",
    "sdks/typescript/README.md": "sdks/typescript/test/readme.test.ts",
}
"""Each of these tests takes every fence of its file and runs it."""
LANGUAGES = {"bash", "html", "http", "ini", "js", "json", "python", "sh", "text", "toml", "ts"}
COPIES = {
    "docs/how-to/express.md": "examples/express/server.js",
    "docs/how-to/fastapi.md": "examples/fastapi/main.py",
}
"""Pages that show an example whole, and so run it."""


@pytest.fixture(scope="session")
def packages() -> Iterator[Path]:
    """A node_modules with the SDK of this tree."""
    with tempfile.TemporaryDirectory(prefix="wabery-npm-") as folder:
        yield reader.node_packages(Path(folder))


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with a short name, since a PostgreSQL in it may have to open a socket."""
    folder = Path(tempfile.mkdtemp(prefix="wd-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def keys(wabery_server: WaberyServer) -> Iterator[dict[str, str]]:
    """What `wabery dev` writes into dev.env. A page may change the project while it is played."""
    projects = wabery_server.client.projects
    before = projects.get(wabery_server.project_id)
    yield {
        "WABERY_BASE_URL": wabery_server.base_url,
        "WABERY_API_KEY": wabery_server.api_key,
        "WABERY_PUBLISHABLE_KEY": wabery_server.publishable_key,
        "WABERY_WEBHOOK_SECRET": before.webhook_secret,
    }
    projects.update(before.id, webhook_url=before.webhook_url, unsigned_references=before.unsigned_references)


@pytest.fixture
def database_url(home: Path) -> Iterator[str]:
    """A PostgreSQL that is not Wabery's own."""
    cluster = Embedded.open(home / "pg")
    yield f"postgresql://{cluster.address.user}@/{cluster.address.database}?host={cluster.address.host}"
    cluster.close()


# What is run


@pytest.mark.parametrize("name", PLAYED)
def test_a_page_does_what_it_says(
    name: str, home: Path, packages: Path, request: pytest.FixtureRequest
) -> None:
    server = {} if name in STARTS_ITS_OWN else request.getfixturevalue("keys")
    database = request.getfixturevalue("database_url") if name in NAMES_A_DATABASE else ""
    play = Play(ROOT / name, home, packages, server, database)

    try:
        play.run()
    finally:
        play.close()

    if play.left_out:
        pytest.skip("; ".join(play.left_out))


def test_every_error_that_can_be_provoked_is_provoked() -> None:
    by_luck_alone = {"internal_error", "unavailable", "idempotency_in_progress"}
    left_behind = {"too_many_projects"}  # a hundred projects, which the pages after it would meet

    met = {Path(name).stem for name in PLAYED if name.startswith("docs/reference/errors/")}

    assert met == {refusal.code for refusal in errors.catalogue()} - by_luck_alone - left_behind


@pytest.mark.parametrize("name", FILES)
def test_every_fence_is_of_a_language_that_somebody_looks_at(name: str) -> None:
    unknown = [
        f"{one} {one.language or 'no language'}"
        for one in fences(ROOT / name)
        if one.language not in LANGUAGES
    ]

    assert unknown == []


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("docs/") or name == "README.md"])
def test_no_code_stands_outside_a_fence(name: str) -> None:
    tokens = MarkdownIt().parse((ROOT / name).read_text())

    assert [token.map for token in tokens if token.type == "code_block"] == []
    assert "<pre" not in (ROOT / name).read_text()


@pytest.mark.parametrize("name", FILES)
def test_every_fence_that_could_be_run_is_run(name: str) -> None:
    runnable = [
        one for one in fences(ROOT / name) if one.language in ("bash", "sh", "python", "ts", "js", "html")
    ]

    assert not runnable or name in PLAYED or (ROOT / RUN_ELSEWHERE[name]).exists()
    assert name in RUN_ELSEWHERE or all(one.language != "sh" for one in runnable), "a page says bash"


@pytest.mark.parametrize("name", PLAYED)
def test_what_a_page_saves_is_used_by_what_it_runs(name: str) -> None:
    todo = fences(ROOT / name)
    saved = [one for one in todo if one.saved and one.language in ("python", "ts", "js", "html")]
    others = {one.title: [other.text for other in todo if other is not one] for one in saved}

    unused = [title for title, texts in others.items() if not any(_names(text, title) for text in texts)]

    assert [title for title in unused if title not in _FOUND_BY_NAME] == []


_FOUND_BY_NAME = {"connect/tests.py", "index.html", "shop/urls.py"}
"""Django's and the web server's own conventions find these."""


def _names(text: str, title: str) -> bool:
    module = title.partition(".")[0]
    return (
        title in text
        or module in text
        or module.replace("/", ".") in text
        or f"import {Path(module).name}" in text
    )


@pytest.mark.parametrize(("page", "example"), COPIES.items())
def test_a_page_shows_the_example_as_it_is(page: str, example: str) -> None:
    shown = [one.text for one in fences(ROOT / page) if one.title == Path(example).name]

    assert shown == [(ROOT / example).read_text()]


# What plays them


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```bash\necho yes\n```\n\n```text\nno\n```", "not printed: no"),
        ("```bash\nfalse\necho yes\n```", "failed"),
        ("```python\nimport nowhere\n\nprint(nowhere)\n```", "No module named 'nowhere'"),
        ("```python\nprint(undefined)\n```", "Undefined name"),
        ('```ts\nimport { Wabery } from "@wabery/sdk";\nnew Wabery({ apiKye: "" });\n```', "apiKye"),
        ("```bash\npip install nobody-has-this-package\n```", "nobody-has-this-package"),
        ("```bash\necho reg_…\n```", "nothing like it was printed"),
        ('```bash title="A"\necho one\n```\n\n```text title="A"\ntwo\n```', "not printed: two"),
    ],
)
def test_a_page_that_is_wrong_is_found_out(text: str, complaint: str, home: Path, packages: Path) -> None:
    page = home / "page.md"
    page.write_text(f"# Wrong\n\n{text}\n")
    play = Play(page, home, packages, {})

    try:
        with pytest.raises((AssertionError, PackageNotFoundError), match=re.escape(complaint)):
            play.run()
    finally:
        play.close()


# What is only looked at


DATA = [
    pytest.param(one, id=str(one))
    for name in FILES
    for one in fences(ROOT / name)
    if one.language in ("json", "toml", "http", "ini")
]


@pytest.mark.parametrize("fence", DATA)
def test_data_can_be_parsed_and_follow_the_contract(fence: Fence) -> None:
    value = reader.parse(fence)

    match value:
        case {"event": str(event), "payload": dict(), "sentAt": str()}:
            assert _problems(value, _webhook(event)) == []
        case {"object": str(kind), "id": str()}:
            tried = [_problems(value, schema) for schema in _objects(kind)]
            assert tried
            assert min(tried, key=len) == []
        case {"error": str(), "message": str()}:
            assert _problems(value, {"$ref": "#/components/schemas/Error"}) == []
        case dict() if fence.language == "toml":
            assert set(value) <= {setting.name for setting in fields(Settings)}


CONTRACT: dict[str, Any] = json.loads((ROOT / "openapi.json").read_text())


def _webhook(event: str) -> dict[str, Any]:
    schema: dict[str, Any] = CONTRACT["webhooks"][event]["post"]["requestBody"]["content"][
        "application/json"
    ]["schema"]
    return schema


def _objects(kind: str) -> list[dict[str, Any]]:
    """The schemas of this kind of object: one for each of its viewers."""
    schemas: Mapping[str, dict[str, Any]] = CONTRACT["components"]["schemas"]
    return [
        {"$ref": f"#/components/schemas/{name}"}
        for name, schema in schemas.items()
        if kind in schema.get("properties", {}).get("object", {}).get("enum", ())
    ]


def _problems(value: object, schema: dict[str, Any]) -> list[str]:
    pointed = json.loads(json.dumps(schema).replace('"#/', '"urn:contract#/'))
    whole = Resource.from_contents(CONTRACT, default_specification=DRAFT202012)
    validator = Draft202012Validator(pointed, registry=Registry().with_resource("urn:contract", whole))
    return [f"{problem.json_path}: {problem.message}" for problem in validator.iter_errors(value)]


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, in a copy of what it is built from."""
    copy = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "docs", copy / "docs")
    shutil.copy(ROOT / "mkdocs.yml", copy)
    built = subprocess.run(
        [sys.executable, copy / "docs/build.py"], check=False, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return copy / "site"


def test_the_site_builds_with_pages_alone(site: Path) -> None:
    assert (site / "index.html").exists()
    assert not list(site.rglob("*.py"))


def test_no_link_leads_nowhere(site: Path) -> None:
    pages = {page: page.read_text() for page in site.rglob("*.html") if page.name != "404.html"}
    ids = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}

    dead = [
        f"{page.relative_to(site)}: {link}"
        for page, text in pages.items()
        for link in re.findall(r'<a\b[^>]*\bhref="([^":]+)"', text)
        if not _leads_somewhere(page, link, ids)
    ]

    assert dead == []


def _leads_somewhere(page: Path, link: str, ids: Mapping[Path, set[str]]) -> bool:
    path, _, fragment = link.partition("#")
    goal = (page.parent / path).resolve() if path and path != "." else page
    goal = goal / "index.html" if goal.is_dir() else goal
    return goal.exists() and (not fragment or fragment in ids.get(goal, ()))


def test_every_page_is_there_as_markdown_too(site: Path) -> None:
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]

    assert len(pages) > 60
    assert [page for page in pages if not page.with_suffix(".md").exists()] == []


def test_llms_txt_lists_every_page_with_what_it_is(site: Path) -> None:
    listed = re.findall(r"^- \[.+\]\((.+)\): .+", (site / "llms.txt").read_text(), re.MULTILINE)

    assert sorted(listed) == sorted(page.relative_to(site).as_posix() for page in site.rglob("*.md"))


def test_the_site_loads_nothing_from_anywhere_else(site: Path) -> None:
    loaded = r'<(?:script|img|iframe|link rel="(?:stylesheet|icon|preload|preconnect)")[^>]*(?:src|href)="(https?:)?//'

    assert [page.name for page in site.rglob("*.html") if re.search(loaded, page.read_text())] == []
