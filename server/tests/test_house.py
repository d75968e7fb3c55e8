"""The house rules that a machine can keep: floors, words, and documents that say what the code says."""

import ast
import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from wabery_server import accounts, contacts, errors, idempotency, inbox, intents, outbox
from wabery_server.api.routes import OPERATIONS
from wabery_server.outbox import EventType
from wabery_server.settings import Settings

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "server/src/wabery_server"
REFERENCE = ROOT / "docs/reference"
CORE = (inbox, intents, contacts, outbox, accounts, idempotency)
NOT_OURS = {"node_modules", "dist", "__pycache__"}


def modules() -> list[Path]:
    return sorted(SERVER.rglob("*.py"))


def ours() -> Iterator[Path]:
    """Every text file of the repository that somebody wrote or committed."""
    for path in sorted(ROOT.rglob("*")):
        folders = path.relative_to(ROOT).parts[:-1]
        if any(name in NOT_OURS or (name.startswith(".") and name != ".ci") for name in folders):
            continue
        try:
            path.read_text()
        except (UnicodeDecodeError, IsADirectoryError):
            continue
        yield path


def pages() -> list[Path]:
    return [path for path in ours() if path.suffix == ".md"]


# Floors


def lint_imports(folder: Path) -> "subprocess.CompletedProcess[str]":
    """import-linter on the package in `folder`."""
    program = Path(sys.executable).with_name("lint-imports")
    command = [program, "--no-cache", "--config", ROOT / "pyproject.toml"]
    return subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(folder)}, check=False, capture_output=True, text=True
    )


def test_imports_point_down_and_to_the_right() -> None:
    checked = lint_imports(SERVER.parent)

    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("utils.py", "A_FLOOR = None"),
        ("errors.py", "from wabery_server import outbox"),
        ("contacts.py", "from wabery_server import intents"),
        ("webhooks/sign.py", "from wabery_server.api import app"),
    ],
)
def test_a_file_without_a_floor_and_an_import_upwards_are_refused(
    tmp_path: Path, file: str, source: str
) -> None:
    shutil.copytree(SERVER, tmp_path / "wabery_server", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "wabery_server" / file).write_text(source)

    checked = lint_imports(tmp_path)

    assert checked.returncode == 1, checked.stdout
    assert file.removesuffix(".py").replace("/", ".") in checked.stdout


# Words


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SERVER)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("room", CORE, ids=lambda room: room.__name__.rpartition(".")[2])
def test_whoever_refuses_says_so(room: ModuleType) -> None:
    """What a room of the core offers names the refusals it raises: the caller's caller has to know."""
    silent = [
        f"{name} raises {refusal}"
        for name, offered in vars(room).items()
        if inspect.isfunction(offered)
        and not name.startswith("_")
        and offered.__module__.startswith(room.__name__)
        for refusal in raised(offered)
        if refusal not in (offered.__doc__ or "")
    ]

    assert silent == []


def raised(function: FunctionType) -> set[str]:
    """The classes of `errors` that stand in its raise statements."""
    found = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Raise) and node.exc is not None:
            kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if (
                isinstance(kind, ast.Attribute)
                and isinstance(kind.value, ast.Name)
                and kind.value.id == "errors"
            ):
                found.add(kind.attr)
    return found


def test_a_query_that_crosses_projects_says_so_in_its_name() -> None:
    """A function called `any_…` says why no project is asked for."""
    for path in modules():
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.name.startswith(
                "any_"
            ):
                assert ast.get_docstring(function), f"{path.name}: {function.name}"


def test_no_get_changes_anything() -> None:
    """A link that a preview bot opens, or a page that is loaded twice, must not matter."""
    assert [one.path for one in OPERATIONS if one.method == "GET" and one.writes] == []


def test_every_setting_is_read_somewhere() -> None:
    code = "\n".join(path.read_text() for path in modules() if path.name != "settings.py")

    assert [field.name for field in fields(Settings) if not re.search(rf"\.{field.name}\b", code)] == []


# Documents


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/generate.py, which imports what stands beside it."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def headings(page: str) -> list[str]:
    return re.findall(r"^## `(.+)`$", (REFERENCE / page).read_text(), re.MULTILINE)


def test_the_reference_is_what_the_code_says(generator: ModuleType) -> None:
    there = {path.relative_to(REFERENCE).as_posix(): path.read_text() for path in REFERENCE.rglob("*.md")}

    assert there == generator.pages(), "run `make docs`"


def test_every_error_event_setting_and_route_is_documented_and_nothing_else() -> None:
    calls = re.findall(r"^\| `(\w+) (/\S*)` \|", (REFERENCE / "api.md").read_text(), re.MULTILINE)

    codes = {refusal.code for refusal in errors.catalogue()}
    assert {page.stem for page in (REFERENCE / "errors").iterdir()} == codes
    assert set(re.findall(r"\(errors/(\w+)\.md\)", (REFERENCE / "errors.md").read_text())) == codes
    in_sdks = re.findall(r"^\| `(\w+) (/\S*)` \| `", (REFERENCE / "sdks.md").read_text(), re.MULTILINE)
    not_in_sdks = {("GET", "/v1/registration-intents/{id}/events")}  # `wait` does what a program needs

    assert {(one.method, one.path) for one in OPERATIONS if not one.open} - set(in_sdks) == not_in_sdks
    assert headings("events.md") == [*EventType]
    assert headings("settings.md") == [f"WABERY_{field.name.upper()}" for field in fields(Settings)]
    assert calls == [(one.method, one.path) for one in OPERATIONS]


@pytest.mark.parametrize("refusal", errors.catalogue())
def test_every_refusal_says_what_to_do(refusal: type[errors.WaberyError]) -> None:
    assert refusal.hint


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text())

    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_the_tests_that_security_names_are_there() -> None:
    named = set(re.findall(r"`(test_\w+)::(test_\w+)`", (ROOT / "SECURITY.md").read_text()))

    assert len(named) > 40
    for file, test in named:
        assert f"def {test}(" in (ROOT / f"server/tests/{file}.py").read_text(), f"{file}::{test}"


def test_every_threat_has_a_row_with_a_test_or_a_reason() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "SECURITY.md").read_text().splitlines()
        if re.match(r"\| \d", line)
    ]

    assert len(rows) > 20
    assert [row[0] for row in rows] == [str(number) for number in range(1, len(rows) + 1)]
    assert all(row[2] or row[3] for row in rows)


def test_the_files_that_the_architecture_names_are_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()

    named = re.findall(r"`(?!noun\.)((?:\w+/)*\w+\.(?:py|sql|toml|md)|(?:\w+/)+)`", text)

    assert len(named) > 25
    for name in named:
        known = [ROOT / name, *SERVER.rglob(name.rstrip("/"))]
        known += [folder / name for folder in (SERVER, SERVER / "api", SERVER / "whatsapp")]
        assert any(path.exists() for path in known), name


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md"])
def test_it_can_be_read_in_one_sitting(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= 150


def test_every_dependency_has_its_reason() -> None:
    reasons = (ROOT / "docs/decisions/0003-dependencies.md").read_text()
    wanted = (ROOT / "requirements/dev.in").read_text().splitlines()
    for package in ("server", "sdks/python"):
        project = tomllib.loads((ROOT / package / "pyproject.toml").read_text())["project"]
        wanted += project["dependencies"]
        wanted += [one for extra in project.get("optional-dependencies", {}).values() for one in extra]

    names = {match[0] for line in wanted if (match := re.match(r"[a-z][a-z0-9-]*", line))}

    assert [
        name for name in sorted(names - {"wabery", "pip"}) if not re.search(rf"\b{name}\b", reasons)
    ] == []


# What must not be in a repository


def test_no_file_names_the_machine_it_was_written_on() -> None:
    here = [str(ROOT)]
    if len(ROOT.parts) > 3:
        here.append(str(ROOT.parent))

    for path in ours():
        text = path.read_text()
        assert not any(f"{folder}/" in text for folder in here), path


def test_no_lock_file_names_where_packages_come_from() -> None:
    for path in (*(ROOT / "requirements").glob("*.txt"), ROOT / "package-lock.json"):
        addresses = set(re.findall(r"https?://[^\s\"]+", path.read_text()))
        assert {one for one in addresses if "funding" not in one and path.suffix == ".txt"} == set(), path
        assert '"resolved": "http' not in path.read_text()
