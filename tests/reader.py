"""The reader of a page: opens terminals, saves files, runs what the page shows, and looks whether it says what comes out.

A page is played from top to bottom, in a folder of the reader's own with a clone of Wabery at `~/wabery`. Its code fences
mean:

    bash                      Run in the terminal that its `title` names; it must not fail.
    bash, long-running last   See LONG_RUNNING: goes on running. A `text` fence after it tells how one sees that it is ready.
    bash, of NOT_RUN lines    Not run, but checked otherwise; the table says how and why.
    text                      What the run fence before it prints: these lines, in this order, perhaps with others between
                              them; `…` stands for anything. With the `title` of a terminal, what it shows by and by.
    bash, of READS alone      Run again until it prints what follows, as a reader would who looks a moment too early.
    python, ts                Run from the folder, as a script; what they print may follow as `text`.
    any other with a `title`  Saved under that name, for later fences to use. ts, js and the scripts of html are type-checked
                              against the SDK, Python is linted, json and toml are parsed.

Before a fence is run, what a reader would put in is put in: the ports 8420 (Wabery) and 8000 (the reader's app) become free
ones, https://wabery.example.com the address of this server, and `wab_pub_…` or an id such as `reg_…` the last one of its kind
that was printed, postgresql://wabery@db.internal/wabery a database.
"""

import ast
import configparser
import contextlib
import email
import email.policy
import fcntl
import html.parser
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PATIENCE = 60.0
"""Seconds that one fence may take on a busy machine."""

LONG_RUNNING = (
    "make dev",
    "wabery serve",
    "wabery worker",
    "uvicorn ",
    "python manage.py runserver",
    "python -m http.server",
    "node server.js",
)
READS = (
    "curl -sS http",
    "python manage.py shell -c",
    "wabery events list",
    "wabery registration-intents get",
    "wabery registration-intents list",
)
"""What changes nothing."""


@dataclass(frozen=True)
class Fence:
    """A fenced code block."""

    page: Path
    line: int
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{os.path.relpath(self.page, ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The lines of a bash fence, continued ones joined, without comments."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in joined if line.strip() and not line.lstrip().startswith("#")]

    @property
    def long_running(self) -> bool:
        return self.language == "bash" and self.commands[-1].startswith(LONG_RUNNING)

    @property
    def not_run(self) -> bool:
        return self.language == "bash" and any(line.startswith(tuple(NOT_RUN)) for line in self.commands)

    @property
    def run(self) -> bool:
        """Whether it is run, so that a `text` fence after it is its output."""
        return self.language in ("bash", "python", "ts") and not self.not_run and not self.saved

    @property
    def reads(self) -> bool:
        return self.language == "bash" and all(line.startswith(READS) for line in self.commands)

    @property
    def saved(self) -> bool:
        return bool(self.title) and self.language not in ("bash", "text")


def fences(page: Path) -> list[Fence]:
    """The code fences of a Markdown file, in order."""
    found = []
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "fence" and token.map:
            language, _, rest = token.info.partition(" ")
            title = re.fullmatch(r'title="([^"]+)"', rest.strip())
            found.append(Fence(page, token.map[0] + 1, language, title[1] if title else "", token.content))
    return found


# What is checked without being run


def _installable(command: str) -> None:
    """Every package named is installed here, in the version that is locked; every path is there."""
    words = shlex.split(command, comments=True)[2:]
    for word in (word for word in words if not word.startswith("-")):
        path = word.replace("~/wabery", str(ROOT)).partition("[")[0]
        if "/" in word:
            assert Path(path).exists() or (ROOT / word).exists(), f"{word} is not in a clone"
        else:
            metadata.version(word.partition("[")[0])


def _npm_installable(command: str) -> None:
    for word in shlex.split(command, comments=True)[2:]:
        path = word.replace("~/wabery", str(ROOT))
        assert (Path(path) if "/" in word else ROOT / "node_modules" / word).exists(), word


def _makes(command: str) -> None:
    """The Makefile knows how."""
    subprocess.run(["make", "-n", "-C", ROOT, *shlex.split(command)[3:]], check=True, capture_output=True)


def _by_root(command: str) -> None:
    """It is shell, and what it installs can be installed."""
    _parses(command)
    if found := re.search(r"\bpip install .*", command):
        _installable(found[0])


def _parses(command: str) -> None:
    subprocess.run(["bash", "-n", "-c", command], check=True)


NOT_RUN: Mapping[str, Callable[[str], None]] = {
    "pip install": _installable,
    "npm install": _npm_installable,
    "make -C ~/wabery": _makes,
    "sudo ": _by_root,  # changes the machine
    "curl https://graph.facebook.com": _parses,  # a call to Meta, with somebody's own token
}

NEEDED = {"node page.test.js": "/usr/bin/chromium"}
"""Commands that are left out, and reported, where this is not installed."""


# Playing


class Terminal:
    """A shell that somebody types into, and what it has shown so far."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.shown = ""
        self._changed = threading.Condition()
        self._ended = False
        self._files = 0
        self._folder = folder
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._type("set -euo pipefail")

    def run(self, commands: str) -> str:
        """Types the commands and waits for their end; returns what they print. Fails when one of them does."""
        begin = len(self.shown)
        done = "\n[the reader sees a prompt]\n"
        self._source(commands)
        self._type(f"printf {shlex.quote(done)}")
        self._wait(lambda: done in self.shown[begin:] or self._ended, commands)
        output, prompt, _ = self.shown[begin:].partition(done)
        assert prompt, f"failed:\n{commands}\n{output}"
        return output

    def leave_running(self, commands: str) -> None:
        """Types commands of which the last does not end."""
        self._source(commands)

    def shows(self, expected: str, since: int = 0) -> None:
        """Waits until it has shown these lines."""
        self._wait(lambda: lacking(expected, self.shown[since:]) is None, expected)

    def close(self) -> None:
        """Ends everything that was started here, and waits for it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self._reader.join(PATIENCE)
        if self._reader.is_alive():
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _source(self, commands: str) -> None:
        # A file, so that no command can read the lines after it as its input.
        self._files += 1
        file = self._folder.parent / f"typed-{id(self)}-{self._files}.sh"
        file.write_text(commands)
        self._type(f"source {shlex.quote(str(file))} </dev/null")

    def _type(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while chunk := os.read(self._process.stdout.fileno(), 65_536):
            with self._changed:
                self.shown += chunk.decode(errors="replace")
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _wait(self, happened: Callable[[], bool], what: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: happened() or self._ended, PATIENCE)
            assert happened() or self._ended, (
                f"not within {PATIENCE:.0f} s:\n{what}\nshown so far:\n{self.shown}"
            )
            assert happened(), f"ended without:\n{what}\nshown:\n{self.shown}"


def lacking(expected: str, output: str) -> str | None:
    """The first expected line that the output does not have in its place; white space counts as one space."""
    lines = (" ".join(line.split()) for line in output.splitlines())
    for line in expected.splitlines():
        pattern = re.compile(".*".join(re.escape(part) for part in " ".join(line.split()).split("…")))
        if line.strip() and not any(pattern.fullmatch(shown) for shown in lines):
            return line
    return None


@dataclass
class Play:
    """One reading of one page."""

    page: Path
    home: Path
    """The reader's home folder, with `wabery` (a clone) and `app` (their own) in it."""
    packages: Path
    """A node_modules with the SDK of this tree."""
    server: Mapping[str, str]
    """What `~/wabery/.wabery/dev.env` says; empty where the page itself starts the server."""
    database_url: str = ""
    """A PostgreSQL for a page that names its reader's."""
    terminals: dict[str, Terminal] = field(default_factory=dict)
    ports: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """What could not be run on this machine."""

    def run(self) -> None:
        """Plays the page to its end. Fails at the first fence that does not do what the page says."""
        self._prepare()
        todo = fences(self.page)
        for number, fence in enumerate(todo):
            following = todo[number + 1] if number + 1 < len(todo) else None
            expected = ""
            if following and following.language == "text" and following.title in ("", fence.title):
                expected = following.text
            try:
                self._play(fence, expected)
            except (AssertionError, subprocess.CalledProcessError) as failure:
                failure.add_note(f"{fence}")
                raise

    def close(self) -> None:
        for terminal in reversed(self.terminals.values()):
            terminal.close()

    @property
    def folder(self) -> Path:
        return self.home / "app"

    def _prepare(self) -> None:
        self.folder.mkdir()
        (self.folder / "node_modules").symlink_to(self.packages)
        clone(self.home / "wabery", self.server)
        base_url = self.server.get("WABERY_BASE_URL", "")
        port = re.search(r":(\d+)/", base_url)
        self.ports = {"8420": port[1] if port else free_port(), "8000": free_port()}

    def _play(self, fence: Fence, expected: str) -> None:
        if fence.language == "text":
            if fence.title and fence.title in self.terminals:
                self.terminals[fence.title].shows(self._with_ports(fence.text))
            return
        if fence.language not in ("bash", "python", "ts") and not fence.saved:
            return  # only looked at
        text = self._filled(fence.text)
        if fence.not_run:
            for command in fence.commands:
                _, check = next(one for one in NOT_RUN.items() if command.startswith(one[0]))
                check(command)
        elif fence.long_running:
            terminal = self._terminal(fence.title)
            since = len(terminal.shown)
            terminal.leave_running(text)
            terminal.shows(self._with_ports(expected), since)
        elif fence.saved:
            self._save(fence, text)
        elif (needed := NEEDED.get(fence.text.strip())) and not Path(needed).exists():
            self.left_out.append(f"{fence.text.strip()} needs {needed}")
        else:
            self._run(fence, text, self._with_ports(expected))

    def _run(self, fence: Fence, text: str, expected: str) -> None:
        terminal, deadline = self._terminal(fence.title), time.monotonic() + PATIENCE
        command = self._command(fence, text)
        output = terminal.run(command)
        while (lacks := lacking(expected, output)) and fence.reads and time.monotonic() < deadline:
            output = terminal.run(f"sleep 0.1\n{command}")
        assert lacks is None, f"not printed: {lacks}\nbut:\n{output}"

    def _terminal(self, title: str) -> Terminal:
        if title not in self.terminals:
            self.terminals[title] = Terminal(self.folder, self._environ())
        return self.terminals[title]

    def _environ(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "WABERY_PORT": self.ports["8420"],
        }

    def _command(self, fence: Fence, text: str) -> str:
        """What runs a fence: itself, or the script that it is."""
        if fence.language == "bash":
            return text
        script = self.folder / f"line{fence.line}.{'py' if fence.language == 'python' else 'ts'}"
        self._write(script, fence, text)
        if fence.language == "python":
            return f"python {script}"
        # A bundler resolves `@/…` as frameworks do, and takes the types away.
        esbuild = f"{self.packages}/.bin/esbuild --bundle --platform=node --format=esm --packages=external"
        plain = script.with_suffix(".mjs")
        return f"{esbuild} --log-level=warning {script} --outfile={plain} && node {plain}"

    def _save(self, fence: Fence, text: str) -> None:
        self._write(self.folder / fence.title, fence, text)

    def _write(self, path: Path, fence: Fence, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if fence.language == "python":
            lint(path)
        elif fence.language in ("ts", "js", "html"):
            self._type_check(path)

    def _type_check(self, path: Path) -> None:
        """With strict types; plain JavaScript as leniently as editors do."""
        checked = path
        if path.suffix == ".html":
            checked = path.with_suffix(".page.js")
            checked.write_text(scripts(path.read_text()))
        options: dict[str, object] = {
            "target": "ES2022",
            "lib": ["ES2022", "DOM", "DOM.Iterable"],
            "module": "ESNext",
            "moduleResolution": "bundler",
            "types": ["node"],
            "paths": {"@/*": ["./*"]},
            "noEmit": True,
            "skipLibCheck": True,
            "allowJs": True,
            "checkJs": True,
            "strict": checked.suffix == ".ts",
            "exactOptionalPropertyTypes": checked.suffix == ".ts",
            "noUncheckedIndexedAccess": checked.suffix == ".ts",
        }
        config = {"compilerOptions": options, "files": [str(checked.relative_to(self.folder))]}
        (self.folder / "tsconfig.json").write_text(json.dumps(config))
        tsc = subprocess.run(
            ["node_modules/.bin/tsc", "-p", "."], cwd=self.folder, check=False, capture_output=True, text=True
        )
        assert tsc.returncode == 0, tsc.stdout

    def _filled(self, text: str) -> str:
        """With what a reader would put in."""
        text = self._with_ports(text).replace("postgresql://wabery@db.internal/wabery", self.database_url)
        return re.sub(r"\b(wab_pub|reg|proj|key|channel|contact|evt)_…", self._printed, text)

    def _with_ports(self, text: str) -> str:
        for port, taken in self.ports.items():
            text = re.sub(rf"\b{port}\b", taken, text)
        return text.replace("https://wabery.example.com", f"http://127.0.0.1:{self.ports['8420']}")

    def _printed(self, kind: re.Match[str]) -> str:
        """The last id or key of this kind that a terminal has shown."""
        shown = "".join(terminal.shown for terminal in self.terminals.values())
        printed = re.findall(rf"\b{kind[1]}_[0-9A-Za-z]{{26,}}", shown)
        assert printed, f"{kind[0]}: nothing like it was printed before"
        return str(printed[-1])


def clone(folder: Path, server: Mapping[str, str]) -> None:
    """A clone in which `make dev` has been run; the server's keys are there if it runs already."""
    folder.mkdir()
    for one in ROOT.iterdir():
        if one.name not in (".venv", ".wabery", ".git", "site"):
            (folder / one.name).symlink_to(one)
    (folder / ".venv").mkdir()
    for one in Path(sys.prefix).iterdir():
        if one.name != "installed":
            (folder / ".venv" / one.name).symlink_to(one)
    (folder / ".venv/installed").touch()  # so that make finds nothing to install
    if server:
        (folder / ".wabery").mkdir(mode=0o700)
        keys = folder / ".wabery/dev.env"
        keys.touch(mode=0o600)
        keys.write_text("".join(f"{name}={value}\n" for name, value in server.items()))


def node_packages(folder: Path) -> Path:
    """A node_modules like that of the tree, but with the SDK built apart: nobody else rebuilds it in the meantime."""
    with (ROOT / "package-lock.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # each process of pytest-xdist comes by here
        if not (ROOT / "node_modules/typescript").exists():
            subprocess.run(["npm", "ci", "--silent"], cwd=ROOT, check=True)
    modules = folder / "node_modules"
    sdk = modules / "@wabery/sdk"
    sdk.mkdir(parents=True)
    for one in (ROOT / "node_modules").iterdir():
        if one.name != "@wabery":
            (modules / one.name).symlink_to(one)
    source = ROOT / "sdks/typescript"
    shutil.copy(source / "package.json", sdk)
    tsc = [f"{modules}/.bin/tsc", "-p", f"{source}/tsconfig.json", "--outDir", f"{sdk}/dist/esm"]
    subprocess.run(tsc, check=True)
    return modules


def free_port() -> str:
    """A port on loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


# Looking at a fence without running it


def lint(path: Path) -> None:
    """The project's own rules for Python, but those that a reader's project decides by itself."""
    ast.parse(path.read_text(), str(path))
    ruff = [sys.executable, "-m", "ruff", "check", "--quiet", f"--config={ROOT}/pyproject.toml"]
    words = [*ruff, "--ignore=I001,PT,S,T20", str(path)]
    checked = subprocess.run(words, check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def parse(fence: Fence) -> object:
    """The value of a fence that holds data. Raises ValueError where it is none of its language."""
    match fence.language:
        case "json":
            return json.loads(fence.text)
        case "toml":
            return tomllib.loads(fence.text)
        case "ini":
            unit = configparser.ConfigParser(strict=False, interpolation=None)
            unit.read_string(fence.text)
            return {name: dict(section) for name, section in unit.items()}
        case "http":
            return email.message_from_string(fence.text, policy=email.policy.HTTP.clone(raise_on_defect=True))
        case other:
            raise ValueError(f"{other} holds no data")


def scripts(page: str) -> str:
    """The JavaScript of a page."""
    found: list[str] = []

    class Scripts(html.parser.HTMLParser):
        inside = False

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.inside = tag == "script" and dict(attrs).get("type") == "module"

        def handle_endtag(self, tag: str) -> None:
            self.inside = False

        def handle_data(self, data: str) -> None:
            if self.inside:
                found.append(data)

    Scripts().feed(page)
    return "\n".join(found)


def markdown_files() -> Iterator[Path]:
    """Every Markdown file of the project."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name not in ("node_modules", "site", "dist")
        )
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".md"))
