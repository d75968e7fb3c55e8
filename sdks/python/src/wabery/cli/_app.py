"""The tree of commands, who mounts what, and what becomes of an error."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from wabery.cli._exit import CommandError, Exit, code_of
from wabery.cli._framework import SERVER, application, parse_and_run, prologue
from wabery.cli._terminal import printable
from wabery.cli._tree import EXAMPLES, GROUPS, SINGLE, Command
from wabery.cli._world import explained
from wabery.errors import APIError, WaberyError

if TYPE_CHECKING:
    from cyclopts import App

PLUGINS = "wabery.commands"
"""Entry point group; each value is a callable that registers its commands on the app it is given."""

server_doctor: Callable[..., object] | None = None
"""The `doctor` of a plugin; ours runs it after its own checks."""

_SOMEBODY_ELSE = "Check that the base URL is Wabery's and that no proxy answers in its place."
_WITH_PLUGINS = frozenset({"help", "completion", "doctor", "--help", "-h"})
"""First words that need the server's commands although they are ours."""


def run(words: list[str]) -> int:
    """Run one command line and return its exit code."""
    as_json = "--json" in words or "--jsonl" in words
    try:
        code = parse_and_run(build(words), words)
        return code if isinstance(code, int) else Exit.OK
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        raise  # not an error: main() sees to it
    except CommandError as stopped:
        _complain(as_json, message=stopped.message, hint=stopped.hint)
        return stopped.code
    except APIError as refused:
        _complain(
            as_json,
            code=refused.code,
            message=refused.message,
            hint=refused.hint or (_SOMEBODY_ELSE if refused.code is None else None),
            param=refused.param,
            request_id=refused.request_id,
            doc_url=refused.doc_url,
        )
        return code_of(refused)
    except WaberyError as failed:
        _complain(as_json, message=failed.message, hint=failed.hint)
        return code_of(failed)
    except Exception as failure:  # noqa: BLE001 (the last resort: say it, redacted)
        if (known := explained(failure)) is not None:
            _complain(as_json, message=known.message, hint=known.hint)
            return known.code
        print(_trace(), file=sys.stderr)
        _complain(as_json, message="This is a bug in wabery.", hint="Please report it with the lines above.")
        return Exit.UNEXPECTED


def build(words: list[str]) -> App:
    """The commands that this command line may need."""
    app = application("wabery", "Connect your users' WhatsApp accounts.", EXAMPLES)
    first = words[0] if words else "--help"
    if first in _WITH_PLUGINS or (first not in GROUPS and first not in SINGLE):
        _mount_plugins(app)
    _mount(app, SINGLE)
    for name, group in GROUPS.items():
        mounted = application(name, group.about, group.examples)
        _mount(mounted, group.commands)
        app.command(mounted)
    return app


def _mount(app: App, commands: dict[str, Command]) -> None:
    for name, command in commands.items():
        opening = prologue(command.examples)
        app.command(f"wabery.cli.{command.body}", name=name, help=command.about, help_prologue=opening)


def _mount_plugins(app: App) -> None:
    from importlib.metadata import entry_points

    for entry in entry_points(group=PLUGINS):
        try:
            entry.load()(app)
        except Exception as broken:  # noqa: BLE001 (a broken plugin must not take our commands with it)
            print(
                f"warning: the commands of {entry.value} are missing: {type(broken).__name__}",
                file=sys.stderr,
            )
            if os.environ.get("WABERY_LOG", "").lower() == "debug":
                print(_trace(), file=sys.stderr)
    global server_doctor
    server_doctor = None
    if "doctor" in app:
        server_doctor = app["doctor"].default_command
        del app["doctor"]
    for name in app:
        if name.startswith("-"):
            continue
        app[name].group = SERVER
        if app[name].help_prologue is None:
            app[name].help_prologue = ""  # else it would inherit our examples


def _trace() -> str:
    """The stack of the exception at hand, fit to be shown."""
    import traceback

    from wabery._logs import redact

    return redact(traceback.format_exc())


def _complain(
    as_json: bool,
    *,
    message: str,
    hint: str | None = None,
    code: str | None = None,
    param: str | None = None,
    request_id: str | None = None,
    doc_url: str | None = None,
) -> None:
    fields = {"error": code, "message": message, "hint": hint, "param": param, "request_id": request_id}
    fields["doc_url"] = doc_url
    if as_json:
        text = json.dumps({name: text for name, text in fields.items() if text}, ensure_ascii=False)
    else:
        reference = ", ".join(part for part in (code, request_id) if part)
        where = (f" (in {param})" if param else "") + (f" [{reference}]" if reference else "")
        lines = [f"error: {message}{where}", hint, doc_url]
        text = "\n".join(printable(line) for line in lines if line)
    with contextlib.suppress(OSError):  # the exit code still says it when stderr is full
        print(text, file=sys.stderr)
