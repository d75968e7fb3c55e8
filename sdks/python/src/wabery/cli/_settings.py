"""Which key and which server a command uses, and where each came from. The first place that knows it counts:

    flag      --api-key-file, --base-url, --profile
    env       WABERY_API_KEY, WABERY_BASE_URL, WABERY_PROFILE
    project   ./.wabery/dev.env, which `wabery dev` writes
    user      the profile last logged in to, in ~/.config/wabery/profiles.json
    system    /etc/xdg/wabery/profiles.json, made by an administrator
    default   https://api.wabery.com/v1, and no key

A stored key is sent only to the server stored beside it. `dev.env` is believed only for a server on this machine, so that a
cloned repository cannot send anybody's key elsewhere.
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
    """What `wabery login` stores. An administrator's profile may name a server alone."""

    base_url: str
    api_key: str = ""


@dataclass(frozen=True)
class Settings:
    """What is in force for one command."""

    profile: Found | None
    """The profile that counts, whether or not key and server come from it."""
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
    """A profiles file: this user's own, readable by its owner alone, or the system's."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or _config_home() / "wabery" / "profiles.json"
        self.profiles: dict[str, Profile] = {}
        self.current = "default"
        try:
            content = json.loads(self.path.read_text("utf-8"))
            self.current = str(content["current"])
            self.profiles = {str(name): Profile(**profile) for name, profile in content["profiles"].items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
            raise CommandError(
                f"{self.path} cannot be read: {type(cause).__name__}.", "Delete it and log in again."
            ) from cause

    @classmethod
    def of_system(cls) -> Store:
        """The first that XDG_CONFIG_DIRS has, else an empty one."""
        folders = os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
        paths = [Path(folder) / "wabery" / "profiles.json" for folder in folders.split(":") if folder]
        return cls(next((path for path in paths if path.exists()), paths[0]))

    def save(self) -> None:
        """Replace the file in one step, so that an interrupted write loses nothing."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = {
            "current": self.current,
            "profiles": {name: asdict(one) for name, one in self.profiles.items()},
        }
        handle, name = tempfile.mkstemp(dir=self.path.parent)  # 0600 from the start
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
        Path(name).replace(self.path)


@dataclass(frozen=True)
class _Place:
    """Where a key, a base URL, or both may stand."""

    key_origin: str
    url_origin: str
    api_key: str
    base_url: str
    stored: bool = True
    """Whether the two belong together."""


def resolve(*, base_url: str | None, profile: str | None, api_key_file: Path | None) -> Settings:
    """What applies to a command that was given these options. Raises CommandError."""
    env = os.environ
    user, system = Store(), Store.of_system()
    chosen = _profile(user, system, flag=profile, environment=env.get("WABERY_PROFILE"))
    kept = _stored(user, system, chosen)
    places = [
        _Place("--api-key-file", "--base-url", _read_key(api_key_file), base_url or "", stored=False),
        *(kept if profile else ()),
        _Place(
            "WABERY_API_KEY",
            "WABERY_BASE_URL",
            env.get("WABERY_API_KEY", "").strip(),
            env.get("WABERY_BASE_URL", "").strip(),
            stored=False,
        ),
        *(kept if env.get("WABERY_PROFILE") else ()),
        *_of_project(),
        *kept,
    ]
    with_key = next((place for place in places if place.api_key), None)
    with_url = next((place for place in places if place.base_url), None)
    return Settings(
        profile=chosen,
        api_key=Found(with_key.api_key, with_key.key_origin) if with_key else None,
        base_url=checked_url(Found(with_url.base_url, with_url.url_origin))
        if with_url
        else Found(DEFAULT_BASE_URL, "default"),
        bound_to=with_key.base_url if with_key and with_key.stored else None,
    )


def _profile(user: Store, system: Store, *, flag: str | None, environment: str | None) -> Found | None:
    """The name of the profile that counts, if there is one. Raises CommandError for a name that nobody stored."""
    named = (
        Found(flag, "--profile") if flag else Found(environment, "WABERY_PROFILE") if environment else None
    )
    if named is not None:
        if named.value not in user.profiles and named.value not in system.profiles:
            raise CommandError(
                f"There is no profile {named.value!r}.",
                f"Make it with `wabery login --profile {named.value}`.",
            )
        return named
    for store in (user, system):
        if store.current in store.profiles:
            return Found(store.current, str(store.path))
    return None


def _stored(user: Store, system: Store, chosen: Found | None) -> list[_Place]:
    if chosen is None:
        return []
    origin = f"profile {chosen.value}"
    return [
        _Place(origin, origin, store.profiles[chosen.value].api_key, store.profiles[chosen.value].base_url)
        for store in (user, system)
        if chosen.value in store.profiles
    ][:1]


def _of_project() -> list[_Place]:
    dev = read_dev_env()
    return [_Place(str(DEV_ENV), str(DEV_ENV), dev.api_key, dev.base_url)] if dev else []


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
        lines = DEV_ENV.read_text("utf-8").splitlines()
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
        content = sys.stdin.read() if str(path) == "-" else path.expanduser().read_text("utf-8-sig")
    except (OSError, ValueError) as cause:
        why = cause.strerror if isinstance(cause, OSError) else "it is not text"
        raise CommandError(
            f"{path} cannot be read: {why}.", "Name a file with one line, or - for stdin."
        ) from cause
    if not content.strip():
        raise CommandError(f"{'stdin' if str(path) == '-' else path} is empty.")
    return content.strip()


def _read_key(path: Path | None) -> str:
    return read_secret_file(path) if path is not None else ""


def _config_home() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
