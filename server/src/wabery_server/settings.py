"""Every setting, with its explanation; the reference page is made from this file.

A setting `public_url` is read from the environment variable `WABERY_PUBLIC_URL`, else from the TOML file that
`WABERY_CONFIG` names, else it has its default. `<NAME>_FILE` names a file that holds the value, for secrets. White space
around a value does not count, and an empty value counts as not set.

Others write into the same namespace: Kubernetes gives every pod `WABERY_PORT=tcp://10.96.0.12:8420` and more for a service
named wabery. Those variables are recognized and ignored.
"""

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, get_args, get_type_hints
from urllib.parse import urlsplit

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
    """Reads of one intent with publishable keys, opened streams included; those with its client secret are counted apart."""
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
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise BadSetting(f"WABERY_{name.upper()} must be at least 1.")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise BadSetting("WABERY_LOG_LEVEL must be debug, info, warning or error.")
        if not 0 <= self.port <= 65_535:
            raise BadSetting("WABERY_PORT must be a port, 1 to 65535, or 0 for a free one.")
        if self.public_url is not None and not _is_web_address(self.public_url):
            raise BadSetting("WABERY_PUBLIC_URL must be a URL such as https://wabery.example.com.")
        if not _GRAPH_URL.match(self.graph_url):
            raise BadSetting(
                "WABERY_GRAPH_URL must be https, since access tokens go there; http only on loopback."
            )
        if not _GRAPH_VERSION.fullmatch(self.graph_version):
            raise BadSetting("WABERY_GRAPH_VERSION must be a version such as v26.0.")

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> Self:
        """Reads the environment and the TOML file. Raises BadSetting, also for a WABERY_ name that means nothing."""
        kinds = get_type_hints(cls)
        path = environ.get("WABERY_CONFIG", "").strip()
        values = (
            {field: (f"{field} in {path}", value) for field, value in _toml(Path(path)).items()}
            if path
            else {}
        )
        for field, (named, _) in values.items():
            if field not in kinds:
                raise BadSetting(f"{named} is not a setting of Wabery.{_guess(field, kinds)}")
        ignored = not_ours(environ)
        given: dict[str, str] = {}
        """Which variable each field was read from."""
        for name, value in environ.items():
            if name == "DATABASE_URL":
                if value.strip():
                    values.setdefault("database_url", (name, value))
                continue
            if not name.startswith("WABERY_") or name in _CLIENT_VARIABLES or name in ignored:
                continue
            field = name.removeprefix("WABERY_").lower()
            from_file = field not in kinds and field.endswith("_file")
            field = field.removesuffix("_file") if from_file else field
            if field not in kinds:
                guess = _guess(name, [f"WABERY_{known.upper()}" for known in kinds])
                raise BadSetting(
                    f"{name} is not a setting of Wabery.{guess} The settings page lists them all."
                )
            if not value.strip():
                continue
            if field in given:
                raise BadSetting(f"Both {given[field]} and {name} are set; set one of them.")
            given[field] = name
            values[field] = (name, _file(name, value.strip()) if from_file else value)
        return cls(**{field: _read(named, value, kinds[field]) for field, (named, value) in values.items()})


def not_ours(environ: Mapping[str, str]) -> list[str]:
    """The names of variables in our namespace that Kubernetes, or Docker's links, have written for a service of our name."""
    return [
        name
        for name, value in environ.items()
        if _OF_A_SERVICE.fullmatch(name)
        or (_SERVICE_PORT.fullmatch(name) and _SERVICE_URL.match(value.strip()))
    ]


_OF_A_SERVICE = re.compile(
    r"WABERY(_[A-Z0-9_]+)??(_SERVICE_HOST|_SERVICE_PORT(_[A-Z0-9_]+)?|_PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_PORT = re.compile(r"WABERY(_[A-Z0-9_]+)?_PORT")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")
"""kubernetes.io: docs/concepts/services-networking/service, "Environment variables"."""


def _guess(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f" Did you mean {near[0]}?" if near else ""


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


_AT_LEAST_ONE = (
    "workers",
    "max_connections",
    "read_lanes",
    "delivery_concurrency",
    "delivery_per_endpoint",
    "max_body",
)

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
        return tomllib.loads(_text(path))
    except (OSError, ValueError) as failure:
        raise BadSetting(f"WABERY_CONFIG: {path} cannot be read: {_why(failure)}.") from failure


def _file(name: str, value: str) -> str:
    try:
        return _text(Path(value))
    except (OSError, ValueError) as failure:
        raise BadSetting(f"{name}: {value} cannot be read: {_why(failure)}.") from failure


def _text(path: Path) -> str:
    return path.read_text("utf-8").removeprefix("\ufeff")  # some editors put a byte order mark first


def _why(failure: OSError | ValueError) -> str:
    if isinstance(failure, OSError):
        return failure.strerror or type(failure).__name__
    return "it is not UTF-8 text" if isinstance(failure, UnicodeError) else str(failure).rstrip(".")


def _read(named: str, value: Any, hint: Any) -> Any:
    """`named` is what the person wrote: a variable, or a key of the file. No message shows the value of a secret."""
    kinds = get_args(hint) if type(None) in get_args(hint) else (hint,)
    kind = next(k for k in kinds if k is not type(None))
    if isinstance(value, str):
        value = value.strip()
        if not value.isprintable() and not _MAY_HAVE_LINES.search(named):
            raise BadSetting(f"{named} contains bytes that are not UTF-8 text, or control characters.")
    try:
        return _convert(value, kind)
    except BadSetting as failure:
        raise BadSetting(f"{named}: {failure}") from None
    except (ValueError, TypeError, KeyError, OverflowError) as failure:
        shown = "the value" if kind is str else repr(value)[:80]
        raise BadSetting(f"{named}: {shown} is not {_DESCRIBED[kind]}.") from failure


_MAY_HAVE_LINES = re.compile("(?i)secret_key_old")

_DESCRIBED = {
    str: "a text",
    int: "a whole number",
    bool: "true or false",
    timedelta: "a number of seconds",
    Path: "a path",
    tuple[int, ...]: "a list of ports, separated by commas, or any",
    tuple[Network, ...]: "a list of networks such as 10.0.0.0/8, separated by commas",
}


def _convert(value: Any, kind: Any) -> Any:
    if kind is bool and isinstance(value, str):
        return _WORDS[value.lower()]
    if kind is timedelta:
        return timedelta(seconds=float(value))
    if kind == tuple[int, ...]:
        if value == "any":
            return None
        return tuple(int(part) for part in _parts(value))
    if kind == tuple[Network, ...]:
        return tuple(_network(part) for part in _parts(value))
    if kind is str:
        if not isinstance(value, str):
            raise TypeError
        return value
    return kind(value)


_WORDS = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}


def _network(text: str) -> Network:
    """A network, also where the address of a machine in it is written. Raises BadSetting for one that is all there is."""
    if text == "*":
        raise BadSetting("* would be every address. Name the networks, such as 10.0.0.0/8.")
    return ipaddress.ip_network(text, strict=False)


def _parts(value: Any) -> list[Any]:
    return (
        [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else list(value)
    )
