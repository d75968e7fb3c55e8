"""`wabery doctor`: is this installation healthy, and if not, what to do. Reads only."""

import json
import shutil
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp

from wabery_server import accounts, contacts, errors, inbox, main, whatsapp
from wabery_server.accounts import Channel, Project
from wabery_server.api.health import FORWARDED
from wabery_server.cli import FAILED, environment, load
from wabery_server.cli import run as run_loop
from wabery_server.db import Tx
from wabery_server.main import Opened
from wabery_server.secrets import Unsealable
from wabery_server.settings import Settings, not_ours
from wabery_server.webhooks import UnsafeUrl, check_url, policy
from wabery_server.whatsapp import State

_PATIENCE = aiohttp.ClientTimeout(total=5)
_LOW_DISK = 1024**3
_SKEW_SECONDS = 30
_SHOWN = 10
"""Examples of one finding."""


class Check(NamedTuple):
    """One finding. `todo` says what to do about anything but ok."""

    name: str
    state: State
    found: str
    todo: str | None = None


def run(*, as_json: bool) -> int:
    """Prints the findings; returns the exit code, 1 when something failed."""
    checks = _run_checks()
    if as_json:
        shown = [check._asdict() for check in checks]
        print(json.dumps({"part": "server", "ok": _healthy(checks), "checks": shown}))
    else:
        for check in checks:
            print(f"{check.state:<8} {check.name}: {check.found}")
            if check.todo:
                print(f"{'':<8} {check.todo}")
    return 0 if _healthy(checks) else FAILED


def _healthy(checks: list[Check]) -> bool:
    return not any(check.state == "failed" for check in checks)


def _run_checks() -> list[Check]:
    settings = load()
    ignored = not_ours(environment())
    found = (
        f"ignored, as Kubernetes wrote them: {', '.join(ignored)}"
        if ignored
        else "every WABERY_ variable is known"
    )
    checks = [Check("settings", "ok", found)]
    try:
        with main.ground(settings) as ground, main.explained():
            checks.append(_where(ground))
            checks += run_loop(_in_database(ground))
            return checks
    except main.CannotStart as failure:
        return [*checks, Check("database", "failed", str(failure), "Nothing else can be checked without it.")]


def _where(ground: main.Ground) -> Check:
    if ground.embedded is None:
        return Check("database", "ok", "the one that DATABASE_URL names")
    free = shutil.disk_usage(ground.directory).free
    found = f"embedded, in {ground.directory}, {free // 1024**2} MiB free"
    if free < _LOW_DISK:
        return Check("database", "warning", found, "Make room: PostgreSQL stops when the disk is full.")
    return Check("database", "ok", found)


async def _in_database(ground: main.Ground) -> list[Check]:
    connection = await main.connected(ground)
    try:
        version = connection.get_server_version()
        server_now: datetime = await connection.fetchval("select clock_timestamp()")
        durable = await connection.fetchval(
            "select current_setting('fsync') || current_setting('synchronous_commit')"
        )
    finally:
        await connection.close()
    checks = [_version(version.major), _durable(durable), _clock("database's clock", server_now)]
    async with main.opened(ground) as installation:
        checks.append(
            Check("schema and secret", "ok", "the database is at this version and belongs to this secret")
        )
        checks += await installation.database.run(lambda tx: _secret_versions(tx, installation))
        projects = await installation.database.run(lambda tx: accounts.any_projects(tx, limit=1000))
        checks.append(
            Check("projects", "ok", f"{len(projects)} of them")
            if projects
            else Check(
                "projects", "warning", "there is none", "Make one: `wabery admin projects create --name …`."
            )
        )
        for project in projects:
            checks += await _project(installation, project, ground.settings)
        checks += await _dropped(installation)
        checks += await _failed(installation)
    checks += await _public_url(ground.settings)
    return checks


async def _secret_versions(tx: Tx, installation: Opened) -> list[Check]:
    """For each version but the current one, whether it can be removed."""
    current, at = installation.keyring.current.version, installation.clock.now()
    checks = []
    for version in await accounts.registered_versions(tx):
        if version == current:
            continue
        name, needs = f"secret version {version}", await accounts.any_needs(tx, version, at)
        if needs.sealed:
            checks.append(Check(name, "warning", f"needed by {needs}", "Run `wabery admin reseal`."))
        elif needs.total:
            until = f" until {needs.until:%Y-%m-%d %H:%M} UTC" if needs.until else ""
            checks.append(Check(name, "ok", f"needed by {needs}{until}"))
        elif version < current:
            todo = "Remove it from WABERY_SECRET_KEY_OLD once every server has the current secret."
            checks.append(Check(name, "ok", "nothing needs it", todo))
    return checks


_DROPPED_SINCE = timedelta(days=7)
_DROPPED: Mapping[str, tuple[str, str]] = {
    "unknown_number": (
        "Meta sends webhooks for phone_number_id {id}, which no channel has",
        "Compare the phone_number_id of your channels with WhatsApp > API Setup in Meta's dashboard.",
    ),
    "other_secret": (
        "webhooks for phone_number_id {id} are signed with another app's secret than its channel has",
        "Set the channel's app_secrets to those of the app that sends for this number.",
    ),
    "no_number": (
        "Meta sends webhooks of messages that name no number",
        "Look at the `foreign_change` lines in the server's log.",
    ),
}


async def _dropped(installation: Opened) -> list[Check]:
    """Signed webhook changes that no channel could receive in the last days."""
    since = installation.clock.now() - _DROPPED_SINCE
    found = await installation.database.run(lambda tx: accounts.any_unroutable(tx, since=since, limit=20))
    checks = []
    for one in found:
        what, todo = _DROPPED.get(one.reason, _DROPPED["no_number"])
        when = f"{one.changes} changes were dropped, the last at {one.last_at:%Y-%m-%d %H:%M} UTC"
        checks.append(Check("webhooks", "warning", f"{what.format(id=one.phone_number_id)}: {when}", todo))
    return checks


async def _failed(installation: Opened) -> list[Check]:
    """Messages that wait for a retry."""
    found = await installation.database.run(lambda tx: inbox.any_failed(tx, limit=1000))
    if not found:
        return []
    count = "1000 or more" if len(found) == 1000 else str(len(found))
    return [
        Check(
            "failed messages",
            "warning",
            f"{count} messages could not be handled, the last at {found[0].received_at:%Y-%m-%d %H:%M} UTC",
            "See `wabery admin messages list --failed`; update Wabery, then run `wabery admin messages retry --all`.",
        )
    ]


def _version(major: int) -> Check:
    if 15 <= major <= 18:
        return Check("PostgreSQL", "ok", f"version {major}")
    return Check("PostgreSQL", "failed", f"version {major}", "Use a version from 15 to 18.")


def _durable(settings: str) -> Check:
    if settings == "onon":
        return Check("durability", "ok", "an acknowledged write survives a crash")
    return Check(
        "durability",
        "warning",
        "fsync or synchronous_commit is off",
        "Turn both on, or a crash loses acknowledged joins.",
    )


def _clock(name: str, other: datetime) -> Check:
    skew = abs((datetime.now(UTC) - other).total_seconds())
    if skew <= _SKEW_SECONDS:
        return Check(name, "ok", f"{skew:.0f} s from ours")
    return Check(
        name, "failed", f"{skew:.0f} s from ours", "Run a time service on both machines: expiry hangs on it."
    )


async def _project(installation: Opened, project: Project, settings: Settings) -> list[Check]:
    name = f"project {project.name}"
    checks = []
    database = installation.database
    channels = await database.run(lambda tx: accounts.list_channels(tx, project.id, limit=1000))
    keys = await database.run(lambda tx: accounts.list_keys(tx, project.id, limit=1000))
    endpoint = await database.run(lambda tx: accounts.default_endpoint(tx, project.id))
    if not channels:
        checks.append(Check(name, "warning", "no WhatsApp channel", "Add one, or nothing can be minted."))
    open_keys = [
        key for key in keys if key.kind == "publishable" and not key.revoked_at and not key.allowed_origins
    ]
    if open_keys and project.livemode:
        checks.append(
            Check(
                name,
                "warning",
                f"{len(open_keys)} publishable keys may be used from any origin",
                "List the origins of your pages on each key.",
            )
        )
    if project.livemode and project.unsigned_references == "accept":
        checks.append(
            Check(
                name,
                "warning",
                "browsers may register references that nobody has linked yet, of any customer",
                "Mint on your server, or set unsigned_references to refuse.",
            )
        )
    doubled = await database.run(lambda tx: contacts.duplicates(tx, project.id, _SHOWN + 1))
    if doubled:
        more = " and more" if len(doubled) > _SHOWN else ""
        pairs = ", ".join(f"{one} and {other}" for one, other in doubled[:_SHOWN])
        checks.append(
            Check(
                name,
                "warning",
                f"each of these pairs of contacts is one person, linked twice: {pairs}{more}",
                "The person belongs to one of the two references. Once the other link has ended, the contacts become one.",
            )
        )
    checks.append(_webhook(name, endpoint, project, settings))
    try:
        accounts.unseal_endpoint_secrets(endpoint, installation.keyring)
    except Unsealable as failure:
        todo = "Restore the missing secret version, or set webhook_secret again."
        checks.append(Check(name, "failed", f"its webhook secret cannot be opened: {failure}", todo))
    for channel in channels:
        checks += await _channel(installation, channel, settings)
    return checks


async def _channel(installation: Opened, channel: Channel, settings: Settings) -> list[Check]:
    """What Meta says of a number; nothing without an access token."""

    async def read(tx: Tx) -> accounts.Credentials:
        return await accounts.unseal_credentials(tx, channel, keyring=installation.keyring)

    try:
        credentials = await installation.database.run(read)
    except errors.Unavailable as refusal:
        return [Check(f"channel {channel.name}", "failed", refusal.message, refusal.hint)]
    if channel.sandbox or credentials.access_token is None:
        return []
    checker = whatsapp.CHECKERS[channel.provider]
    return [
        Check(f"channel {channel.name}, {finding.name}", finding.state, finding.found, finding.todo)
        for finding in await checker(channel, credentials, settings, installation.clock.now())
    ]


def _webhook(name: str, endpoint: accounts.Endpoint, project: Project, settings: Settings) -> Check:
    if endpoint.disabled_at is not None:
        return Check(
            name, "failed", f"its webhook was disabled: {endpoint.disabled_reason}", "Set webhook_url again."
        )
    if endpoint.url is None:
        return Check(name, "warning", "no webhook URL", "Set webhook_url, or poll the intents.")
    try:
        check_url(endpoint.url, policy(settings, livemode=project.livemode))
    except UnsafeUrl as refusal:
        return Check(
            name, "failed", f"its webhook URL is not sent to: {refusal.message}", "Set another webhook_url."
        )
    return Check(name, "ok", "channel and webhook URL are set")


async def _public_url(settings: Settings) -> list[Check]:
    """Asks our own public URL as Meta would."""
    name, url = "public URL", settings.public_url
    if url is None:
        todo = "Meta needs an https URL to send to."
        return [Check(name, "warning", "WABERY_PUBLIC_URL is not set", todo)]
    if urlsplit(url).scheme != "https":
        todo = "Meta sends only to https with a trusted certificate."
        return [Check(name, "failed", f"{url} is not https", todo), *_proxies(settings)]
    try:
        async with (
            aiohttp.ClientSession(timeout=_PATIENCE) as web,
            web.get(f"{url.rstrip('/')}/livez") as answer,
        ):
            if answer.status != 200 or "wabery-version" not in answer.headers:
                found = f"{url} answers, but not as this server"
                return [Check(name, "failed", found, "Check the proxy."), *_proxies(settings)]
            clock = _clock(name, parsedate_to_datetime(answer.headers["date"]))
            return [clock, *_proxies(settings, untrusted=answer.headers.get(FORWARDED) == "untrusted")]
    except (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError) as failure:
        found = f"{url} cannot be reached: {type(failure).__name__}"
        return [Check(name, "failed", found, "Check DNS, TLS, proxy."), *_proxies(settings)]


def _proxies(settings: Settings, *, untrusted: bool = False) -> list[Check]:
    """Whether the server sees its clients' addresses. `untrusted`: a proxy passed on an address that did not count."""
    if not untrusted and settings.trusted_proxies:
        return []
    found = (
        "a proxy sends X-Forwarded-For, and WABERY_TRUSTED_PROXIES does not name it"
        if untrusted
        else "WABERY_PUBLIC_URL is set, and WABERY_TRUSTED_PROXIES is not"
    )
    todo = "Name the proxy's network in WABERY_TRUSTED_PROXIES; until then all visitors share the limits of one address."
    return [Check("trusted proxies", "warning", found, todo)]
