"""Measures how long the `wabery` command takes to start, beside the limit: a bare Python in the same environment.

    make bench                      after bench/run.py; adds its table to bench/results/
    python bench/startup.py         prints it

Each row is a fresh process, many times, the rows interleaved so that all of them meet the same noise. `create` also loads the
HTTP client, and is answered at once by a server of this script's. The fastest run is what the machine can do, the median what
it did today; the processor's time hardly depends on what else the machine is doing.
"""

import argparse
import contextlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
WABERY = str(Path(sys.executable).parent / "wabery")
KEY = "wab_test_0v3FVlRFIU5vveTT4U0yTcrj6sl2LV1pBWIg"  # well-formed, and nobody's
COMMANDS = {
    "limit: python -c pass": (sys.executable, "-c", "pass"),
    "wabery --version": (WABERY, "--version"),
    "wabery keys check": (WABERY, "keys", "check", KEY),
    "wabery registration-intents create --help": (WABERY, "registration-intents", "create", "--help"),
    "wabery registration-intents create": (
        WABERY,
        "registration-intents",
        "create",
        "--customer-reference",
        "a",
    ),
    "wabery --help, with the server's commands": (WABERY, "--help"),
}
AIM_MS = 150


@dataclass
class Runs:
    """Milliseconds of each run of one command."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def measure(rounds: int) -> dict[str, Runs]:
    """So many runs of each command, after one that is not counted."""
    runs = {name: Runs() for name in COMMANDS}
    with tempfile.TemporaryDirectory(prefix="wabery-startup-") as home, refusing() as url:
        environ = {"PATH": os.environ["PATH"], "HOME": home, "WABERY_API_KEY": KEY, "WABERY_BASE_URL": url}
        for number in range(rounds + 1):
            for name, words in COMMANDS.items():
                wall, cpu = run(words, environ, home)
                if number:
                    runs[name].wall.append(wall * 1000)
                    runs[name].cpu.append(cpu * 1000)
    return runs


def run(words: tuple[str, ...], environ: dict[str, str], folder: str) -> tuple[float, float]:
    """Seconds that a process takes, on the clock and of the processor."""
    began = time.perf_counter()
    process = subprocess.Popen(
        words, env=environ, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    return wall, used.ru_utime + used.ru_stime


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """The base URL of a server that knows no key."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            body = b'{"error": "invalid_api_key", "message": "This API key is not valid."}'
            self.send_response(401)
            self.send_header("Wabery-Version", "bench")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def table(taken: dict[str, Runs]) -> str:
    """The results as Markdown."""
    lines = [f"| start-up, aim {AIM_MS} ms | median ms | best ms | CPU ms |", "|-|-|-|-|"]
    for name, runs in taken.items():
        figures = (statistics.median(runs.wall), min(runs.wall), statistics.median(runs.cpu))
        lines.append(f"| {name} | {' | '.join(f'{figure:.0f}' for figure in figures)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, choices=range(1, 201))
    parser.add_argument("--write", action="store_true", help="write the table to bench/results/")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    text = "\n".join(
        [
            f"# {datetime.now(UTC):%Y-%m-%d}: start-up of the command line, {arguments.rounds} runs of each",
            "",
            table(measure(arguments.rounds)),
            "",
            f"- machine: {os.cpu_count()} cores, {platform.machine()}",
            f"- load before the run: {load:.2f}",
            f"- python: {platform.python_version()}",
            f"- cyclopts: {version('cyclopts')}",
        ]
    )
    print(text)
    if arguments.write:
        results = HERE / "results"
        results.mkdir(exist_ok=True)
        path = results / f"{datetime.now(UTC):%Y-%m-%d}-startup.md"
        path.write_text(text + "\n")
        print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
