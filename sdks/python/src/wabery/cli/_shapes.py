"""What --json prints where no call of the API is behind it. Fields may be added; none is renamed or removed."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class CheckedKey(TypedDict):
    """What a key looks like, without asking anybody."""

    valid: bool
    kind: str | None
    livemode: bool | None
    """Null where a key does not say it."""
    problem: str | None
    key: str
    """Masked."""


class LoggedIn(TypedDict):
    """What was stored."""

    profile: str
    base_url: str
    api_key: str
    """Masked."""


class LoggedOut(TypedDict):
    """What was forgotten."""

    profile: str
    logged_out: bool


class SeenProject(TypedDict):
    """As in a list of projects; it has the fields of `Project` too."""

    id: str
    name: str


class Whoami(TypedDict):
    """The key and server in force."""

    api_key: str
    """Masked."""
    kind: str
    livemode: bool | None
    origin: str
    """Where the key comes from."""
    base_url: str
    project: SeenProject | None
    """Null where the key may not read it."""


class Setting(TypedDict):
    """A value, and where it comes from; both null when it is not set."""

    value: str | None
    origin: str | None


class Configuration(TypedDict):
    """What is in force."""

    profile: Setting
    base_url: Setting
    api_key: Setting
    """Masked."""


class Environment(TypedDict):
    """What an app needs. It contains secrets."""

    WABERY_BASE_URL: str
    WABERY_PROJECT_ID: str
    WABERY_API_KEY: str
    WABERY_WEBHOOK_SECRET: NotRequired[str]
    """Where the key may see it."""


class Finding(TypedDict):
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "warning", "failed", "skipped"]
    found: str
    todo: str | None
    """What to do about anything but ok."""


class Examination(TypedDict):
    """What was looked at, a line for each part: this machine's client, and the server where one is run from here."""

    part: Literal["client", "server"]
    ok: bool
    """Whether nothing has failed."""
    checks: list[Finding]


class Verdict(TypedDict):
    """Of a webhook's signature."""

    valid: bool
    event: NotRequired[str]
    event_id: NotRequired[str | None]
    fault: NotRequired[str]
    """Why it is bad."""
    message: NotRequired[str]
    hint: NotRequired[str | None]


class InstalledCompletion(TypedDict):
    """Where it went."""

    path: str


class Explanation(TypedDict):
    """An exit code, or a variable of the environment."""

    code: NotRequired[int]
    name: NotRequired[str]
    about: str


class Refusal(TypedDict):
    """What goes to stderr, with --json, when a command fails. `error` and what follows it come from the server."""

    message: str
    hint: NotRequired[str]
    error: NotRequired[str]
    param: NotRequired[str]
    request_id: NotRequired[str]
    doc_url: NotRequired[str]
