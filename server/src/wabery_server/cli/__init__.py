"""The commands that need the server: `wabery dev`, `demo`, `serve`, `worker`, `migrate`, `doctor`, `admin`, `openapi`.

The `wabery` command itself belongs to the SDK package and mounts these through the entry point `wabery.commands`.
Bodies import what they need when they run: `--help` stays quick.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import cyclopts
from cyclopts import Parameter
from cyclopts.validators import Number

if TYPE_CHECKING:
    from wabery_server.main import Ground, Opened
    from wabery_server.settings import Settings

Json = Annotated[bool, Parameter(negative="", show_default=False)]

FAILED = 1
USAGE = 2
UNREACHABLE = 7


def commands(app: cyclopts.App) -> None:
    """Mounts the server's commands on the `wabery` command."""
    from wabery_server.cli.admin import app as admin

    for command, shown in _EXAMPLES.items():
        app.command(command, help_prologue=examples(*shown))
    app.command(admin())


def examples(*lines: str) -> str:
    """How the help of a command begins."""
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)])


def main() -> None:
    """`python -m wabery_server`: these commands alone."""
    from wabery.cli._world import guarded

    app = cyclopts.App(name="wabery-server")
    commands(app)
    sys.exit(guarded(lambda: _run(app)))


def _run(app: cyclopts.App) -> int:
    from wabery.cli._world import explained

    try:
        app()
    except BrokenPipeError:
        raise
    except Exception as failure:
        if (stopped := explained(failure)) is None:
            raise
        fail(stopped.message, stopped.code)
    return 0


def dev(
    *,
    port: int | None = None,
    data_dir: Path = Path(".wabery"),
    json: Json = False,
) -> None:
    """Run everything on this machine: database, API, worker, fake phone, a receiver for webhooks.

    Parameters
    ----------
    port
        Port on 127.0.0.1; 0 takes a free one. Default: WABERY_PORT or 8420.
    data_dir
        Where the data live; delete it to start anew.
    json
        One JSON line on stdout when ready, for scripts; it names the file with the keys.
    """
    from wabery_server.cli.dev import run as body

    _served(lambda: body(port=port, data_dir=data_dir, as_json=json))


def demo() -> None:
    """Play the whole story without a browser: mint, send, join, signed webhook. Fails if any step does."""
    from wabery_server.cli.demo import run as body

    sys.exit(body())


def serve(
    *,
    workers: Annotated[int | None, Parameter(validator=Number(gte=1, lte=64))] = None,
    fd: Annotated[int | None, Parameter(show=False)] = None,
) -> None:
    """Serve the API, and deliver webhooks beside it. Configured by WABERY_… variables.

    Parameters
    ----------
    workers
        Number of server processes. Default: WABERY_WORKERS or 1.
    fd
        A listening socket inherited from the supervisor of several workers.
    """
    import socket

    from wabery_server import logs
    from wabery_server import main as house

    if workers is not None:
        os.environ["WABERY_WORKERS"] = str(workers)  # which the server processes read too

    def body() -> None:
        settings = load()
        configure_logs(settings)
        if fd is None and settings.public_url and not settings.trusted_proxies:
            todo = "WABERY_PUBLIC_URL is set: name your proxy in WABERY_TRUSTED_PROXIES, or all visitors count as one address"
            logs.log.warning("trusted_proxies_missing", extra={"facts": {"problem": todo}})
        if fd is None and settings.workers > 1:
            sys.exit(house.supervise(settings))
        if fd is None:
            with house.ground(settings) as ground:
                run(_on(ground, lambda installation: house.serve(ground, installation)))
            return
        house.tether()
        sockets = [socket.socket(fileno=fd)]
        with house.ground(settings, supervised=True) as ground:
            run(
                _on(
                    ground,
                    lambda installation: house.serve(
                        ground,
                        installation,
                        sockets=sockets,
                        supervised=True,
                        on_ready=lambda _service: house.say_ready(),
                    ),
                )
            )

    _served(body)


def worker() -> None:
    """Deliver webhooks and end what has expired, without serving the API."""
    from wabery_server import main as house

    def body() -> None:
        settings = load()
        configure_logs(settings)
        with house.ground(settings) as ground:
            run(_on(ground, lambda installation: house.work(ground, installation)))

    _served(body)


def migrate(
    *,
    check: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    json: Json = False,
) -> None:
    """Bring the database to this version.

    Parameters
    ----------
    check
        Change nothing; exit with 1 when something is pending.
    json
        One JSON document on stdout.
    """
    import json as jsons

    from wabery_server import main as house
    from wabery_server.db.migrate import MigrationError, pending
    from wabery_server.db.migrate import migrate as bring

    async def body(ground: house.Ground) -> int:
        connection = await house.connected(ground)
        try:
            with house.explained():
                todo = await (pending(connection) if check else bring(connection))
        except MigrationError as failure:
            raise house.CannotStart(str(failure)) from failure
        finally:
            await connection.close()
        if json:
            named = [f"{migration.version:04d} {migration.name}" for migration in todo]
            print(jsons.dumps({"applied": [] if check else named, "pending": named if check else []}))
            return FAILED if check and todo else 0
        for migration in todo:
            say(f"{'pending' if check else 'applied'}: {migration.version:04d} {migration.name}")
        if not todo:
            say("The database is up to date.")
        return FAILED if check and todo else 0

    def start() -> None:
        with house.ground(load()) as ground:
            code = run(body(ground))
        sys.exit(code)

    _served(start)


def doctor(*, json: Json = False) -> None:
    """Check the installation: settings, secret, database, migrations, channels, webhook URLs, clock.

    Parameters
    ----------
    json
        One JSON document on stdout.
    """
    from wabery_server.cli.doctor import run as body

    _served(lambda: sys.exit(body(as_json=json)))


def openapi(*, check: Path | None = None) -> None:
    """Print the contract, openapi.json.

    Parameters
    ----------
    check
        Compare it with this file instead; exit with 1 when the file is stale.
    """
    from wabery_server.api.document import document

    text = document()
    if check is None:
        sys.stdout.write(text)
    elif not check.exists() or check.read_text("utf-8") != text:
        fail(f"{check} is stale: run `make openapi`.", FAILED)


_EXAMPLES: dict[Callable[..., None], tuple[str, ...]] = {
    dev: ("wabery dev", "wabery dev --port 0 --data-dir /tmp/wabery --json"),
    demo: ("wabery demo",),
    serve: ("wabery serve", "wabery serve --workers 2", "WABERY_DELIVER=false wabery serve"),
    worker: ("wabery worker",),
    migrate: ("wabery migrate", "wabery migrate --check"),
    doctor: ("wabery doctor --server",),
    openapi: ("wabery openapi > openapi.json", "wabery openapi --check openapi.json"),
}


def load() -> "Settings":
    """The settings of the environment; a bad one ends the command with one line. Warnings go to stderr from here on."""
    from wabery_server import logs
    from wabery_server.settings import BadSetting, Settings

    logs.configure("warning")
    try:
        return Settings.load(environment())
    except BadSetting as failure:
        fail(str(failure), USAGE)


def environment() -> dict[str, str]:
    """The environment as UTF-8, whatever the locale: a secret must be the same text on every machine."""
    return {name: os.fsencode(value).decode("utf-8", "surrogateescape") for name, value in os.environ.items()}


def configure_logs(settings: "Settings") -> None:
    from wabery_server import logs
    from wabery_server.settings import not_ours

    logs.configure(settings.log_level)
    if ignored := not_ours(environment()):
        logs.line("variables_ignored", names=ignored, reason="written for a Kubernetes service of this name")


def run(main: "Coroutine[Any, Any, Any]") -> Any:
    """Runs a coroutine on the quick event loop."""
    import uvloop

    return uvloop.run(main)


def say(text: str) -> None:
    """Talk goes to stderr; stdout is for data."""
    print(text, file=sys.stderr, flush=True)


def fail(text: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):  # the exit code still says it when stderr is full
        say(f"wabery: {text}")
    sys.exit(code)


async def _on(ground: "Ground", body: "Callable[[Opened], Coroutine[Any, Any, None]]") -> None:
    from wabery_server.main import opened

    async with opened(ground, serving=True) as installation:
        await body(installation)


def _served(body: Callable[[], None]) -> None:
    from wabery_server.errors import WaberyError
    from wabery_server.main import CannotStart
    from wabery_server.secrets import Unsealable
    from wabery_server.settings import BadSetting

    try:
        body()
    except BadSetting as failure:
        fail(str(failure), USAGE)
    except CannotStart as failure:
        fail(str(failure), UNREACHABLE)
    except WaberyError as refusal:
        fail(f"{refusal.message} {refusal.hint or ''}".strip(), FAILED)
    except Unsealable as failure:
        fail(str(failure), FAILED)
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
