"""Every setting, with its explanation; the reference page is made from this file.

A setting `public_url` is read from the environment variable `WABERY_PUBLIC_URL`, else from the TOML file that
`WABERY_CONFIG` names, else it has its default. `<NAME>_FILE` names a file that holds the value, for secrets.
"""

import ipaddress
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, get_args, get_type_hints

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class BadSetting(Exception):
    """A setting cannot be read; the message names it and says what it takes."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All durations are given in seconds in the environment; lists are separated by commas."""

    database_url: str | None = None
    """PostgreSQL 15 to 18. Also read from `DATABASE_URL`. Without it the server starts and owns one of its own."""
    data_dir: Path | None = None
    """Where the embedded database lives. Default: `/var/lib/wabery` for root, else `~/.local/share/wabery`."""
    secret_key: str | None = None
    """The installation's secret, 32 bytes or more. Required with `database_url`; generated for the embedded database."""
    secret_key_old: str | None = None
    """Other versions of the secret that the database still needs, as `version:secret`, separated by commas or line breaks.
    `wabery doctor` says when a version can be removed."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8420
    """Port to listen on."""
    public_url: str | None = None
    """Where the outside world reaches this server, for the webhook URL that Meta is given."""
    workers: int = 1
    """Server processes. On two cores beside their database a second one brings 1.2 times at most."""
    deliver: bool = True
    """Whether the server also delivers webhooks; false where `wabery worker` runs."""
    trusted_proxies: tuple[Network, ...] = ()
    """Networks whose `X-Forwarded-For` is believed."""
    max_connections: int = 12
    """Connections of the pool to PostgreSQL that are not hot lanes."""
    read_lanes: int = 2
    """Connections that serve batched reads."""
    batch_per_project: bool = False
    """Keep every batch within one project, as a sharded database wants it."""
    publishable_key_per_minute: int = 600
    """Mints by one publishable key."""
    publishable_ip_per_minute: int = 60
    """Mints with publishable keys from one IP address (IPv6: one /64; one /48 counts as at most 4 addresses)."""
    reference_per_hour: int = 20
    """Mints for one customer reference: with secret keys; and with publishable keys from each IP address."""
    secret_key_per_second: int = 10_000
    """Requests with one secret key."""
    polls_per_minute: int = 120
    """Reads of one intent with publishable keys, opened streams included."""
    secret_polls_per_minute: int = 600
    """Reads of one intent with secret keys, opened streams included."""
    public_reads_per_minute: int = 600
    """Reads and changes of any intents with publishable keys from one IP address (IPv6: one /64)."""
    waits_per_address: int = 50
    """Streams and waiting reads at once from one IP address (IPv6: one /64); fewer where descriptors are few."""
    waits_per_key: int = 1_000
    """Streams and waiting reads at once with one key; fewer where descriptors are few."""
    bad_tokens_per_sender: int = 5
    """Unknown tokens from one sender in 10 minutes; after them the sender gets no reply. A valid token is honoured."""
    channel_checks_per_minute: int = 6
    """Checks of one channel, each of which puts some questions to Meta."""
    expiry_grace: timedelta = timedelta(minutes=5)
    """How long after its expiry an intent still takes a message that was sent in time."""
    idempotency_keep: timedelta = timedelta(hours=24)
    """How long an answer is kept for its Idempotency-Key."""
    sweep_every: timedelta = timedelta(seconds=5)
    """How often ended intents, old idempotency answers and held deliveries whose endpoint is back are looked for."""
    test_projects_per_key: int = 100
    """Test projects that an API key may create, together with the keys of the projects it created."""
    delivery_concurrency: int = 256
    """Deliveries under way at once in one process. A project gets at most a quarter of it, and a project together with those
    that its keys created at most half. A quarter is reserved for first attempts to endpoints with nothing under way."""
    delivery_per_endpoint: int = 10
    """Deliveries under way at once to one endpoint in one process."""
    delivery_allow_networks: tuple[Network, ...] = ()
    """Private networks that webhooks may be sent to."""
    delivery_allow_ports: tuple[int, ...] | None = ()
    """Ports other than 80 and 443 that webhooks may be sent to; `any` for all."""
    delivery_allow_http: bool = False
    """Whether live projects may use http:// webhook URLs; test projects always may."""
    graph_url: str = "https://graph.facebook.com"
    """Meta's Graph API, which is asked when a channel is checked."""
    graph_version: str = "v26.0"
    """The version of it that is asked for; Meta serves each for about two years."""
    log_level: str = "info"
    """debug, info, warning or error."""
    max_body: int = 65_536
    """Bytes that an API call may send; inbound webhooks have 4 MiB, bulk mints 2 MiB."""

    def __post_init__(self) -> None:
        """Raises BadSetting."""
        if not _GRAPH_URL.match(self.graph_url):
            raise BadSetting(
                "WABERY_GRAPH_URL must be https, since access tokens go there; http only on loopback."
            )
        if not _GRAPH_VERSION.fullmatch(self.graph_version):
            raise BadSetting("WABERY_GRAPH_VERSION must be a version such as v26.0.")

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> Self:
        """Reads the environment and the TOML file. Raises BadSetting, also for a WABERY_ name that means nothing."""
        given: dict[str, Any] = {}
        path = environ.get("WABERY_CONFIG")
        if path:
            given |= _toml(Path(path))
        known = {f.name for f in fields(cls)}
        for name, value in environ.items():
            if name == "DATABASE_URL":
                given.setdefault("database_url", value)
            if not name.startswith("WABERY_") or name in _CLIENT_VARIABLES:
                continue
            field = name.removeprefix("WABERY_").lower()
            if field.endswith("_file") and field.removesuffix("_file") in known:
                given[field.removesuffix("_file")] = _file(name, value)
            elif field in known:
                given[field] = value
            else:
                raise BadSetting(f"{name} is not a setting of Wabery; see the settings page for the list.")
        hints = get_type_hints(cls)
        for field in given:
            if field not in known:
                raise BadSetting(f"{field} in {path} is not a setting of Wabery.")
        return cls(**{field: _read(field, value, hints[field]) for field, value in given.items()})


_GRAPH_URL = re.compile(r"https://|http://(?:127\.0\.0\.1|localhost|\[::1\])(?::\d+)?(?:/|$)")
_GRAPH_VERSION = re.compile(r"v[1-9][0-9]{0,3}\.[0-9]")

_CLIENT_VARIABLES = frozenset(
    "WABERY_" + name
    for name in (
        "CONFIG",
        "API_KEY",
        "PUBLISHABLE_KEY",
        "WEBHOOK_SECRET",
        "PROJECT_ID",
        "BASE_URL",
        "PG_BIN",
        "LOG",
        "PROFILE",
    )
)
"""Read elsewhere: by the SDKs and the CLI, by the embedded launcher, or by the app, from `dev.env` and `wabery env`."""


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as failure:
        raise BadSetting(f"WABERY_CONFIG: {path} cannot be read: {failure}") from failure


def _file(name: str, value: str) -> str:
    try:
        return Path(value).read_text().strip()
    except OSError as failure:
        raise BadSetting(f"{name}: {failure}") from failure


def _read(name: str, value: Any, hint: Any) -> Any:
    kinds = get_args(hint) if type(None) in get_args(hint) else (hint,)
    kind = next(k for k in kinds if k is not type(None))
    try:
        return _convert(value, kind)
    except (ValueError, TypeError, KeyError) as failure:
        raise BadSetting(
            f"WABERY_{name.upper()}: {value!r} is not {_DESCRIBED.get(kind, kind)}: {failure}"
        ) from failure


_DESCRIBED = {int: "a whole number", bool: "true or false", timedelta: "a number of seconds", Path: "a path"}


def _convert(value: Any, kind: Any) -> Any:
    if kind is bool and isinstance(value, str):
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[value.lower()]
    if kind is timedelta:
        return timedelta(seconds=float(value))
    if kind == tuple[int, ...]:
        if value == "any":
            return None
        return tuple(int(part) for part in _parts(value))
    if kind == tuple[Network, ...]:
        return tuple(ipaddress.ip_network(part) for part in _parts(value))
    if kind is str and not isinstance(value, str):
        raise TypeError("a text is expected")
    return kind(value)


def _parts(value: Any) -> list[Any]:
    return (
        [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else list(value)
    )
