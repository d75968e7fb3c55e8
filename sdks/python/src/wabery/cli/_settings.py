"""Which key and which server a command uses, and where each came from.

    key        --api-key-file, WABERY_API_KEY, the profile, ./.wabery/dev.env
    base URL   --base-url, WABERY_BASE_URL, the profile, ./.wabery/dev.env, https://api.wabery.com/v1
    profile    --profile, WABERY_PROFILE, the one last logged in to

A stored key is sent only to the server stored beside it. `dev.env` is written by `wabery dev` and believed
only for a server on this machine, so that a cloned repository cannot send anybody's key elsewhere.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from wabery import keys
from wabery._core import DEFAULT_BASE_URL, is_loopback, valid_base_url
from wabery.cli._exit import CommandError, Exit

DEV_ENV = Path(".wabery/dev.env")
NO_KEY_HINT = "Run `wabery login`, or set WABERY_API_KEY."


@dataclass(frozen=True)
class Found:
    """A value, and where it came from."""

    value: str
    origin: str


@dataclass(frozen=True)
class Profile:
    """What `wabery login` stores."""

    base_url: str
    api_key: str


@dataclass(frozen=True)
class Settings:
    """What is in force for one command."""

    profile: Found
    api_key: Found | None
    base_url: Found
    bound_to: str | None
    """The base URL stored beside a stored key; None for a key that was given."""

    def checked_key(self) -> str:
        """The key, if it may be sent to the base URL. Raises CommandError."""
        if self.api_key is None:
            raise CommandError("There is no API key.", NO_KEY_HINT, Exit.FORBIDDEN)
        if self.bound_to is not None and origin_of(self.bound_to) != origin_of(self.base_url.value):
            raise CommandError(
                f"The key from {self.api_key.origin} belongs to {self.bound_to}; it is not sent to {self.base_url.value}.",
                "Log in to that server with `wabery login --base-url …`, or set WABERY_API_KEY.",
            )
        if keys.auth_header(self.api_key.value) is None:
            raise CommandError(
                f"The key from {self.api_key.origin} is not a Wabery key.",
                "Check it with `wabery keys check -`.",
            )
        return self.api_key.value


class Store:
    """The profiles file, readable by its owner alone."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or _config_home() / "wabery" / "profiles.json"
        self.profiles: dict[str, Profile] = {}
        self.current = "default"
        try:
            content = json.loads(self.path.read_text())
            self.current = str(content["current"])
            self.profiles = {str(name): Profile(**profile) for name, profile in content["profiles"].items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
            raise CommandError(
                f"{self.path} cannot be read: {type(cause).__name__}.", "Delete it and log in again."
            ) from cause

    def save(self) -> None:
        """Replace the file in one step, so that an interrupted write loses nothing."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = {
            "current": self.current,
            "profiles": {name: asdict(one) for name, one in self.profiles.items()},
        }
        handle, name = tempfile.mkstemp(dir=self.path.parent)  # 0600 from the start
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=2)
        Path(name).replace(self.path)


def resolve(*, base_url: str | None, profile: str | None, api_key_file: Path | None) -> Settings:
    """What applies to a command that was given these options. Raises CommandError."""
    environment = os.environ
    store = Store()
    named = _first(
        Found(profile or "", "--profile"), Found(environment.get("WABERY_PROFILE", ""), "WABERY_PROFILE")
    )
    name = named or Found(store.current, "default" if not store.profiles else str(store.path))
    stored = store.profiles.get(name.value)
    if named and stored is None:
        raise CommandError(
            f"There is no profile {named.value!r}.", f"Make it with `wabery login --profile {named.value}`."
        )
    kept = f"profile {name.value}"
    dev = read_dev_env()
    api_key = _first(
        Found(_read_key(api_key_file), "--api-key-file"),
        Found(environment.get("WABERY_API_KEY", "").strip(), "WABERY_API_KEY"),
        Found(stored.api_key if stored else "", kept),
        Found(dev.api_key if dev else "", str(DEV_ENV)),
    )
    url = _first(
        Found(base_url or "", "--base-url"),
        Found(environment.get("WABERY_BASE_URL", "").strip(), "WABERY_BASE_URL"),
        Found(stored.base_url if stored else "", kept),
        Found(dev.base_url if dev else "", str(DEV_ENV)),
    )
    bound = {kept: stored, str(DEV_ENV): dev}.get(api_key.origin) if api_key else None
    return Settings(
        profile=name,
        api_key=api_key,
        base_url=checked_url(url) if url else Found(DEFAULT_BASE_URL, "default"),
        bound_to=bound.base_url if bound else None,
    )


def checked_url(url: Found) -> Found:
    """The URL without a trailing slash. Raises CommandError for what is none."""
    plain = url.value.rstrip("/")
    if not valid_base_url(plain):
        raise CommandError(
            f"The base URL from {url.origin} is not one.",
            "It looks like https://wabery.example.com/v1, with /v1 at its end.",
        )
    return Found(plain, url.origin)


def read_dev_env() -> Profile | None:
    """Key and server of the `wabery dev` that was started in this folder, if it is one."""
    try:
        lines = DEV_ENV.read_text().splitlines()
    except (OSError, ValueError):
        return None
    values = dict(line.partition("=")[::2] for line in lines if not line.startswith("#"))
    api_key = values.get("WABERY_API_KEY", "").strip()
    base_url = values.get("WABERY_BASE_URL", "").strip().rstrip("/")
    if not api_key or not valid_base_url(base_url) or not is_loopback(base_url):
        return None
    return Profile(base_url, api_key)


def origin_of(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: what must agree for a stored key to be sent."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def read_secret_file(path: Path) -> str:
    """The one line of a file, or of stdin for `-`, without white space around it. Raises CommandError."""
    try:
        content = sys.stdin.read() if str(path) == "-" else path.expanduser().read_text()
    except (OSError, ValueError) as cause:
        raise CommandError(f"{path} cannot be read: {cause}.") from cause
    if not content.strip():
        raise CommandError(f"{'stdin' if str(path) == '-' else path} is empty.")
    return content.strip()


def _read_key(path: Path | None) -> str:
    return read_secret_file(path) if path is not None else ""


def _first(*candidates: Found) -> Found | None:
    return next((found for found in candidates if found.value), None)


def _config_home() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
