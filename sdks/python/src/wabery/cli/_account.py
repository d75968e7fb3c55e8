"""`wabery login`, `logout`, `whoami` and `env`."""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING, Any

from wabery import keys
from wabery._core import DEFAULT_BASE_URL
from wabery.cli._connect import connected, settings_of
from wabery.cli._exit import CommandError, Exit
from wabery.cli._framework import ACCESS, OUTPUT, Access, Flag, Output
from wabery.cli._settings import Found, Profile, Store, checked_url, read_secret_file, resolve
from wabery.cli._terminal import Terminal
from wabery.errors import NotFoundError, PermissionDeniedError

if TYPE_CHECKING:
    from wabery import Wabery

NOBODY = "reg_00000000000000000000000000"
"""An intent that no server has. Reading it needs no scope in particular: 404 and 403 both say that the key is good."""


def login(*, no_check: Flag = False, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """Store a key and its server in a profile, in a file that only you can read.

    The key is asked for, or read from the first line of stdin.

    Parameters
    ----------
    no_check
        Do not ask the server whether it knows the key.
    """
    terminal = Terminal(output)
    store = Store()
    name = access.profile or os.environ.get("WABERY_PROFILE") or store.current
    before = store.profiles.get(name)
    base_url = _login_url(access, before or Store.of_system().profiles.get(name))
    if access.api_key_file is None:
        key = terminal.ask_secret(
            f"API key for {base_url}", "Add --api-key-file, or pipe the key into stdin."
        )
    else:
        key = read_secret_file(access.api_key_file)
    if problem := keys.check(key).problem:
        raise CommandError(f"This is not an API key: {problem}.", "Copy it again, in full.")
    if not no_check:
        from wabery import Wabery

        with Wabery(key, base_url) as client:
            accepted(client)
    store.profiles[name] = Profile(base_url, key)
    store.current = name
    store.save()
    told = {"profile": name, "base_url": base_url, "api_key": keys.mask(key)}
    if output.json:
        terminal.json(told)
    else:
        terminal.talk(f"Logged in to {base_url} as {keys.mask(key)} (profile {name}). Next: wabery whoami")
    before_it = resolve(base_url=None, profile=None, api_key_file=None).api_key
    if before_it is not None and before_it.origin != f"profile {name}":
        terminal.warn(f"Here {before_it.origin} comes first; --profile {name} uses this one.")
    return Exit.OK


def _login_url(access: Access, before: Profile | None) -> str:
    if access.base_url:
        return checked_url(Found(access.base_url, "--base-url")).value
    if from_environment := os.environ.get("WABERY_BASE_URL"):
        return checked_url(Found(from_environment.strip(), "WABERY_BASE_URL")).value
    return before.base_url if before else DEFAULT_BASE_URL


def accepted(client: Wabery) -> None:
    """Return if the server knows the key, whatever the key may do. Raises the SDK's errors."""
    try:
        client.registration_intents.get(NOBODY)
    except (NotFoundError, PermissionDeniedError):
        return


def logout(*, profile: str | None = None, output: Output = OUTPUT) -> int:
    """Forget a profile's key on this machine. The key itself stays valid: revoke it with `wabery keys revoke`.

    Parameters
    ----------
    profile
        Which one. Default: the one last logged in to.
    """
    store = Store()
    name = profile or os.environ.get("WABERY_PROFILE") or store.current
    if name not in store.profiles:
        stored = ", ".join(store.profiles) or "none; nobody is logged in"
        raise CommandError(f"There is no profile {name!r}.", f"Stored are: {stored}.", Exit.NOT_FOUND)
    del store.profiles[name]
    store.current = next(iter(store.profiles), "default")
    store.save()
    terminal = Terminal(output)
    if output.json:
        terminal.json({"profile": name, "logged_out": True})
    else:
        terminal.talk(f"Profile {name} is forgotten.")
    return Exit.OK


def whoami(*, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """Show which key and server are used, and whether the server knows the key."""
    terminal = Terminal(output)
    settings = settings_of(access)
    key = settings.checked_key()
    known = keys.check(key)
    with connected(access) as client:
        accepted(client)
        told: dict[str, Any] = {
            "api_key": keys.mask(key),
            "kind": known.kind,
            "livemode": known.livemode,
            "origin": settings.api_key.origin if settings.api_key else None,
            "base_url": settings.base_url.value,
            "project": _project(client) if known.kind == "secret" else None,
        }
    if output.json:
        terminal.json(told)
    else:
        project = told.pop("project")
        terminal.fields({**told, "project": f"{project['name']} ({project['id']})" if project else None})
    return Exit.OK


def _project(client: Wabery) -> dict[str, Any] | None:
    try:
        page = client.projects.list(limit=1)
    except PermissionDeniedError:
        return None
    return page.data[0].to_dict() if page.data else None


def env(*, project_id: str, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """Print a project's settings as WABERY_… lines, for a .env file or a shell. They contain secrets.

    Parameters
    ----------
    project_id
        Such as proj_01jz….
    """
    terminal = Terminal(output)
    settings = settings_of(access)
    key = settings.checked_key()
    with connected(access) as client:
        project = client.projects.get(project_id)
    lines = {
        "WABERY_BASE_URL": settings.base_url.value,
        "WABERY_PROJECT_ID": project.id,
        "WABERY_API_KEY": key,
        "WABERY_WEBHOOK_SECRET": project.get("webhook_secret"),
    }
    if lines["WABERY_WEBHOOK_SECRET"] is None:
        terminal.warn("The webhook secret is missing: this key may not see it (scope projects:write).")
    present = {name: value for name, value in lines.items() if value is not None}
    if output.json:
        terminal.json(present)
    else:
        for name, value in present.items():
            plain = re.fullmatch(r"[A-Za-z0-9_./:+=@-]*", value)
            terminal.line(f"{name}={value if plain else shlex.quote(value)}")
    return Exit.OK
