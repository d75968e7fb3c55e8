"""`wabery doctor` and `wabery verify`: finding out what is wrong, one step at a time."""

from __future__ import annotations

import os
import socket
import ssl
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Literal
from urllib.parse import urlsplit

from wabery import keys, webhooks
from wabery._core import is_loopback
from wabery._version import __version__
from wabery.cli import _app
from wabery.cli._account import NOBODY
from wabery.cli._connect import settings_of
from wabery.cli._exit import CommandError, Exit
from wabery.cli._framework import ACCESS, OUTPUT, Access, Flag, Input, Output, Repeated
from wabery.cli._settings import NO_KEY_HINT, Settings, read_secret_file
from wabery.cli._terminal import Terminal
from wabery.errors import WebhookVerificationError

_PATIENCE = 10.0
_CLOCK_WARNING = 30.0
_CLOCK_FAILURE = 240.0
"""Seconds. Webhooks are refused at 300."""
_CERTIFICATE_WARNING = timedelta(days=14)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "warning", "failed"]
    found: str
    todo: str | None = None
    code: Exit = Exit.OK


def doctor(*, server: Flag = False, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """Check key, network, TLS, clock and server; with a server on this machine, the server's own checks too.

    Parameters
    ----------
    server
        Only the checks of the server installed on this machine.
    """
    if server and _app.server_doctor is None:
        raise CommandError("No server is installed here.", "Install it with  pip install wabery-server")
    settings = settings_of(access)
    serves = server or (_app.server_doctor is not None and any(map(os.environ.get, _SERVER_VARIABLES)))
    calls = not server and not (serves and settings.api_key is None)
    codes = [_client_part(Terminal(output), settings)] if calls else []
    codes += [_server_part(output.json)] if serves else []
    return next((code for code in codes if code), Exit.OK)


_SERVER_VARIABLES = ("DATABASE_URL", "WABERY_DATA_DIR", "WABERY_SECRET_KEY", "WABERY_CONFIG")
"""Any of these: a server is run from here."""


def _client_part(terminal: Terminal, settings: Settings) -> int:
    made = []
    for check in _checks(settings):
        made.append(check)
        if not terminal.as_json:
            terminal.finding(check.state, check.name, check.found, check.todo)
    if terminal.as_json:
        shown = [{name: value for name, value in asdict(check).items() if name != "code"} for check in made]
        healthy = not any(check.state == "failed" for check in made)
        terminal.json({"part": "client", "ok": healthy, "checks": shown})
    return next((check.code for check in made if check.state == "failed"), Exit.OK)


def _server_part(as_json: bool) -> int:
    assert _app.server_doctor is not None
    try:
        _app.server_doctor(json=as_json)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else Exit.UNEXPECTED
    return Exit.OK


def _checks(settings: Settings) -> Iterator[Check]:
    yield Check("version", "ok", f"wabery {__version__}, Python {sys.version.split()[0]}")
    yield _key(settings)
    url = settings.base_url.value
    host = urlsplit(url).hostname or ""
    origin = f"{url} (from {settings.base_url.origin})"
    if url.startswith("http:") and not is_loopback(url):
        yield Check("base URL", "warning", origin, "Without https everybody on the way can read the key.")
    else:
        yield Check("base URL", "ok", origin)
    port = urlsplit(url).port or (443 if url.startswith("https:") else 80)
    try:
        addresses = sorted(
            {str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        )
    except OSError as cause:
        yield Check(
            "DNS", "failed", f"{host}: {cause}", "Check the base URL and this machine's network.", Exit.SERVER
        )
        return
    yield Check("DNS", "ok", f"{host} is {', '.join(addresses)}")
    reached = _connection(host, port, tls=url.startswith("https:"))
    yield reached
    if reached.state != "failed":
        yield from _answer(settings)


def _key(settings: Settings) -> Check:
    if settings.api_key is None:
        return Check("key", "failed", "there is none", NO_KEY_HINT, Exit.FORBIDDEN)
    found = keys.check(settings.api_key.value)
    told = f"{keys.mask(settings.api_key.value)} (from {settings.api_key.origin})"
    if found.problem:
        return Check("key", "failed", f"{told}: {found.problem}", "Copy it again, in full.", Exit.FORBIDDEN)
    try:
        settings.checked_key()
    except CommandError as refused:
        return Check("key", "failed", refused.message, refused.hint, Exit.USAGE)
    return Check("key", "ok", f"{told} is a well-formed {found.kind} key")


def _connection(host: str, port: int, *, tls: bool) -> Check:
    name = "TLS" if tls else "connection"
    try:
        with socket.create_connection((host, port), _PATIENCE) as plain:
            if not tls:
                return Check(name, "ok", f"{host}:{port} answers")
            with ssl.create_default_context().wrap_socket(plain, server_hostname=host) as secured:
                certificate, version = secured.getpeercert() or {}, secured.version()
    except ssl.SSLCertVerificationError as cause:
        hint = (
            "The certificate is not for this name, has expired, or is signed by nobody this machine trusts."
        )
        return Check(name, "failed", f"{host}: {cause.verify_message}", hint, Exit.SERVER)
    except OSError as cause:
        return Check(
            name,
            "failed",
            f"{host}:{port}: {cause}",
            "Is the server running, and the port open?",
            Exit.SERVER,
        )
    until = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
    told = f"{version}, certificate until {until:%Y-%m-%d}"
    if until - datetime.now(UTC) < _CERTIFICATE_WARNING:
        return Check(name, "warning", told, "It ends soon; see to its renewal.")
    return Check(name, "ok", told)


def _answer(settings: Settings) -> Iterator[Check]:
    """Ask for something that no server has: 404 and 403 both say that the key is good."""
    import httpx2

    url = settings.base_url.value
    try:
        headers = dict([keys.auth_header(settings.checked_key()) or ("accept", "*/*")])
    except CommandError:
        headers = {}
    try:
        answer = httpx2.get(
            f"{url}/registration-intents/{NOBODY}",
            headers=headers,
            timeout=_PATIENCE,
            follow_redirects=False,
            trust_env=not is_loopback(url),
        )
    except httpx2.RequestError as cause:
        yield Check("server", "failed", f"no answer: {cause}", "See the server's log.", Exit.SERVER)
        return
    version = answer.headers.get("wabery-version")
    if version is None:
        hint = "Check the base URL: it ends in /v1, and a proxy may answer in Wabery's place."
        yield Check("server", "failed", f"HTTP {answer.status_code} from something else", hint, Exit.SERVER)
        return
    yield Check("server", "ok", f"Wabery {version}")
    if answer.status_code == 401 and headers:
        hint = "It may be revoked or expired, or belong to another server."
        yield Check("key accepted", "failed", "the server does not know this key", hint, Exit.FORBIDDEN)
    elif headers:
        yield Check("key accepted", "ok", "yes")
    yield from _clock(answer.headers.get("date"))


def _clock(date: str | None) -> Iterator[Check]:
    try:
        theirs = parsedate_to_datetime(date or "")
        skew = (datetime.now(UTC) - theirs).total_seconds()
    except (ValueError, TypeError):
        return
    told = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the server's"
    hint = "Set this machine's clock; webhooks are refused when it is 300 s off."
    if abs(skew) > _CLOCK_FAILURE:
        yield Check("clock", "failed", told, hint, Exit.UNEXPECTED)
    elif abs(skew) > _CLOCK_WARNING:
        yield Check("clock", "warning", told, hint)
    else:
        yield Check("clock", "ok", told if abs(skew) >= 1 else "agrees with the server's")


_ANY_AGE = timedelta(days=4_000_000)
"""Longer than any two moments of a date are apart."""


def verify(
    *,
    body: Input,
    header: Repeated = (),
    headers: Input | None = None,
    secret_file: Input | None = None,
    any_time: Flag = False,
    output: Output = OUTPUT,
) -> int:
    """Say why a webhook's signature is good or bad.

    Parameters
    ----------
    body
        File with the body's bytes exactly as they arrived; - reads stdin.
    header
        One header as it arrived, such as "x-wabery-signature: sha256=…". May be repeated.
    headers
        File with the headers as they arrived, one per line.
    secret_file
        File with the signing secret. Default: WABERY_WEBHOOK_SECRET.
    any_time
        Accept a delivery of any age: for one that was kept in a file.
    """
    terminal = Terminal(output)
    try:
        content = sys.stdin.buffer.read() if str(body) == "-" else body.read_bytes()
        lines = [*header, *(headers.read_text("latin-1").splitlines() if headers else ())]
    except OSError as cause:
        raise CommandError(
            f"{cause.filename} cannot be read: {cause.strerror}.", "Name a file, or - for stdin."
        ) from cause
    pairs = [
        (name.strip(), value.strip())
        for name, colon, value in (line.partition(":") for line in lines)
        if colon
    ]
    secret = read_secret_file(secret_file) if secret_file else None
    tolerance, max_age = (_ANY_AGE, _ANY_AGE) if any_time else (webhooks.TOLERANCE, webhooks.MAX_AGE)
    try:
        event = webhooks.unwrap(content, pairs, secret, tolerance=tolerance, max_age=max_age)
    except WebhookVerificationError as refused:
        if output.json:
            terminal.json(
                {"valid": False, "fault": refused.fault, "message": refused.message, "hint": refused.hint}
            )
            return Exit.UNEXPECTED
        terminal.line(f"bad: {refused.message}")
        hint = (
            "The signature itself is right; --any-time accepts it."
            if refused.fault.startswith("timestamp")
            else refused.hint
        )
        if hint:
            terminal.line(hint)
        return Exit.UNEXPECTED
    if output.json:
        terminal.json({"valid": True, "event": event.event, "event_id": event.id})
    else:
        terminal.line(f"good: {event.event} {event.id or ''}".rstrip())
    return Exit.OK
