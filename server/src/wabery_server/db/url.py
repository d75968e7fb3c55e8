"""DATABASE_URL as other people's tools write it, translated to what the driver understands.

A managed service prints what libpq reads; an ORM, a pooler or a JDBC driver adds parameters of its own. Each known parameter
is kept, translated, or dropped with a warning. Any other is rejected by name. No message contains a value that could be a
password.
"""

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode


class BadUrl(Exception):
    """DATABASE_URL cannot be used; the message says what is wrong and what to write, without any value of it."""


@dataclass(frozen=True)
class DatabaseUrl:
    dsn: str = field(repr=False)
    """For asyncpg: only parameters that it knows."""
    parts: dict[str, object] = field(default_factory=dict, repr=False)
    """What asyncpg takes as arguments only."""
    dropped: tuple[str, ...] = ()
    """Parameters that have no effect here."""
    warnings: tuple[str, ...] = ()


_SCHEME = re.compile(r"(?:jdbc:)?(?:postgres|postgresql|postgis|pgsql)(?:\+[a-z0-9_]+)?://", re.IGNORECASE)
_PLAIN_PAIR = re.compile(
    r"\s*([a-z_]+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)*))(?=\s|$)", re.IGNORECASE | re.DOTALL
)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_KEPT = _names(
    "host port dbname database user password passfile sslcert sslkey sslcrl sslpassword sslnegotiation"
    " ssl_min_protocol_version ssl_max_protocol_version krbsrvname gsslib service"
    " options search_path statement_timeout lock_timeout idle_in_transaction_session_timeout synchronous_commit"
    " work_mem role"
)
"""asyncpg's own, and settings of a session, which it hands to the server."""

_DROPPED = _names(
    # libpq and its relatives: the driver has its own way, or none
    "connect_timeout keepalives keepalives_idle keepalives_interval keepalives_count tcp_user_timeout"
    " fallback_application_name application_name load_balance_hosts sslcompression sslsni uselibpqcompat timezone datestyle"
    " client_encoding encoding charset binary_parameters tcpkeepalive logintimeout connecttimeout sockettimeout timeout"
    " command_timeout socket_timeout"
    # poolers and prepared statements
    " pgbouncer connection_limit max_overflow poolclass statement_cache_size prepared_statement_cache_size"
    " prepared_statements preparethreshold preferquerymode statement_cache_capacity statement_cache_mode"
    " default_query_exec_mode description_cache_capacity prepared_statement_name_func"
    # ORMs and frameworks
    " conn_max_age conn_health_checks checkout_timeout reaping_frequency serverversion async_fallback"
    " rewritebatchedinserts applicationname loadbalancehosts sslfactory sslinline"
)
_POOL = re.compile(r"(?:pool|min_pool|max_pool)[a-z_]*")

_SSL_MODES = {
    **{mode: mode for mode in ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")},
    **dict.fromkeys(("true", "1", "on", "yes", "no-verify", "required"), "require"),
    **dict.fromkeys(("false", "0", "off", "no", "disabled"), "disable"),
    "preferred": "prefer",
    "verify_ca": "verify-ca",
    "verify_full": "verify-full",
}
_WRITABLE = {
    "any": "any",
    "primary": "primary",
    "master": "primary",
    "read-write": "read-write",
    "prefer-primary": "any",
}
"""Servers that can be written to. asyncpg tries the hosts in order."""


def read(url: str, *, home: Path | None = None) -> DatabaseUrl:
    """Translates DATABASE_URL. `home` is where `.postgresql/root.crt` is looked for. Raises BadUrl."""
    text = url.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].strip()
    if not text.isprintable():
        raise BadUrl("DATABASE_URL contains control characters.")
    base, given = _of_url(text) if "://" in text else _of_pairs(text)
    wanted, dropped, warnings = _translated(given)
    mode = wanted.pop("sslmode", None)
    context = _system_trust(mode, wanted, home or Path("~").expanduser())
    if context is None and mode is not None:
        wanted["sslmode"] = mode
    query = urlencode(wanted, quote_via=quote)
    return DatabaseUrl(
        f"{base}?{query}" if query else base,
        {} if context is None else {"ssl": context},
        tuple(dropped),
        tuple(warnings),
    )


def _of_url(text: str) -> tuple[str, dict[str, str]]:
    """The URL up to the query, in the one spelling that asyncpg reads, and the query's parameters by name."""
    scheme = _SCHEME.match(text)
    if scheme is None:
        name = text.partition("://")[0]
        shown = (
            f" begins with {name}://" if re.fullmatch(r"[a-z][a-z0-9+.:-]{0,30}", name, re.IGNORECASE) else ""
        )
        raise BadUrl(f"DATABASE_URL{shown or ' has no scheme'}; Wabery needs postgresql://.")
    rest = text[scheme.end() :]
    address, _, query = rest.partition("?")
    if "#" in rest:
        raise BadUrl(f"DATABASE_URL contains a #, which ends a URL. {_ENCODE}")
    authority, slash, database = address.partition("/")
    if "/" in database:
        raise BadUrl(f"DATABASE_URL has more than one / after the host. {_ENCODE}")
    who, at, hosts = authority.rpartition("@")
    user, colon, password = who.partition(":")
    for host in filter(None, hosts.split(",")):
        _check_host(host)
    if re.search(r"%(?![0-9A-Fa-f]{2})", who):
        raise BadUrl(f"DATABASE_URL has a % in the user or password that begins no escape. {_ENCODE}")
    safe = "".join([_again(user), colon, _again(password), at])
    return f"postgresql://{safe}{hosts}{slash}{database}", _query(query)


_ENCODE = "Percent-encode special characters in the user and password (# is %23, / is %2F, ? is %3F, @ is %40, % is %25)."


def _again(part: str) -> str:
    return quote(unquote(part), safe="")


def _check_host(host: str) -> None:
    """Raises BadUrl for a host or port that is none; a password with special characters ends up here, so it is not shown."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.%a-z]+\]|[^:\[\]@\s]*)(?::(\d{0,5}))?", host)
    if found is None or (found[2] and not 0 < int(found[2]) < 65536):
        raise BadUrl(f"DATABASE_URL has a host or port that cannot be read. {_ENCODE}")


def _query(text: str) -> dict[str, str]:
    return {name: value for name, value in parse_qsl(text, keep_blank_values=True) if value}


def _of_pairs(text: str) -> tuple[str, dict[str, str]]:
    """libpq's other form: `host=db.internal dbname=wabery user=wabery password='a b'`."""
    found: dict[str, str] = {}
    position = 0
    while position < len(text):
        pair = _PLAIN_PAIR.match(text, position)
        if pair is None:
            raise BadUrl("DATABASE_URL must be such as postgresql://user:password@host:5432/database.")
        value = pair[2] if pair[2] is not None else pair[3]
        found[pair[1]] = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
        position = pair.end()
    for host in filter(None, found.get("host", "").split(",")):
        if not host.startswith("/"):
            _check_host(host)
    return "postgresql://", {name: value for name, value in found.items() if value}


def _translated(given: dict[str, str]) -> tuple[dict[str, str], list[str], list[str]]:
    """What asyncpg is told, what is dropped, and warnings. Names are compared without regard to case."""
    wanted: dict[str, str] = {}
    dropped: list[str] = []
    warnings: list[str] = []
    for spelled, value in given.items():
        name = spelled.lower()
        if name in _KEPT or "." in name:
            wanted[name] = value
        elif name in _TRANSLATED:
            _TRANSLATED[name](value, wanted, warnings)
        elif name in _DROPPED or _POOL.fullmatch(name):
            dropped.append(spelled)
        else:
            raise BadUrl(f"DATABASE_URL: the parameter {spelled[:40]!r} is not understood. Remove it.")
    if not re.fullmatch(r"(\d{1,5}(,\d{1,5})*)?", wanted.get("port", "")):
        raise BadUrl("DATABASE_URL: port must be a number.")
    return wanted, dropped, warnings


Wanted = dict[str, str]


def _ssl_mode(value: str, wanted: Wanted, warnings: list[str]) -> None:
    try:
        mode = _SSL_MODES[value.lower()]
    except KeyError:
        modes = "disable, allow, prefer, require, verify-ca or verify-full"
        raise BadUrl(f"DATABASE_URL: sslmode must be {modes}.") from None
    if wanted.get("sslmode", "disable") == "disable" or mode.startswith("verify"):
        wanted["sslmode"] = mode


def _ssl_flag(value: str, wanted: Wanted, warnings: list[str]) -> None:
    if "sslmode" not in wanted:
        _ssl_mode(value, wanted, warnings)


def _ssl_accept(value: str, wanted: Wanted, warnings: list[str]) -> None:
    """Prisma's: `strict` verifies the certificate."""
    if value == "strict":
        wanted["sslmode"] = "verify-full"


def _root_certificate(value: str, wanted: Wanted, warnings: list[str]) -> None:
    wanted["sslrootcert"] = value


def _channel_binding(value: str, wanted: Wanted, warnings: list[str]) -> None:
    if value == "require":
        warnings.append(
            "channel_binding=require has no effect: the driver has no channel binding. "
            "sslmode=verify-full protects the connection in its place."
        )


def _target(value: str, wanted: Wanted, warnings: list[str]) -> None:
    try:
        wanted["target_session_attrs"] = _WRITABLE[value.lower().replace("_", "-")]
    except KeyError:
        raise BadUrl(
            "DATABASE_URL: target_session_attrs must be any, primary or read-write: Wabery writes."
        ) from None


def _schema(value: str, wanted: Wanted, warnings: list[str]) -> None:
    wanted["search_path"] = value


def _address(value: str, wanted: Wanted, warnings: list[str]) -> None:
    wanted.setdefault("host", value)


def _only(name: str, *harmless: str) -> Callable[[str, Wanted, list[str]], None]:
    """A parameter whose other values would need what the driver cannot do."""

    def translate(value: str, wanted: Wanted, warnings: list[str]) -> None:
        if value.lower() not in harmless:
            raise BadUrl(f"DATABASE_URL: {name} must be {' or '.join(harmless)} here. Remove it.")

    return translate


_TRANSLATED: dict[str, Callable[[str, Wanted, list[str]], None]] = {
    "sslmode": _ssl_mode,
    "ssl": _ssl_flag,
    "requiressl": _ssl_flag,
    "sslaccept": _ssl_accept,
    "sslrootcert": _root_certificate,
    "channel_binding": _channel_binding,
    "channelbinding": _channel_binding,
    "target_session_attrs": _target,
    "targetservertype": _target,
    "schema": _schema,
    "currentschema": _schema,
    "hostaddr": _address,
    "gssencmode": _only("gssencmode", "disable", "prefer"),
    "gssdelegation": _only("gssdelegation", "0"),
    "replication": _only("replication", "false", "off", "0"),
}


def _system_trust(mode: str | None, wanted: Wanted, home: Path) -> ssl.SSLContext | None:
    """A context that verifies the server's name against the system's certificate authorities; None to leave it to asyncpg.

    `sslrootcert=system` asks for it (libpq 16), and `verify-full` means it where there is no root certificate of one's own.
    """
    root = wanted.get("sslrootcert")
    if root == "system":
        if mode not in (None, "verify-full"):
            raise BadUrl("DATABASE_URL: sslrootcert=system needs sslmode=verify-full.")
        del wanted["sslrootcert"]
    elif mode != "verify-full" or root is not None or (home / ".postgresql" / "root.crt").exists():
        return None
    context = ssl.create_default_context()
    certificate = wanted.pop("sslcert", None)
    if certificate is not None:
        try:
            context.load_cert_chain(
                certificate, wanted.pop("sslkey", None), wanted.pop("sslpassword", None) or ""
            )
        except (OSError, ssl.SSLError) as failure:
            raise BadUrl(
                f"DATABASE_URL: sslcert or sslkey cannot be read: {failure.strerror or 'not PEM'}."
            ) from failure
    return context
