"""`wabery admin`: first steps and repairs on the database itself, by whoever may open it; no key needed.

What a running server has in memory it believes for two seconds more.
"""

import json as jsons
import os
import pwd
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import cyclopts
from cyclopts import Parameter
from cyclopts.validators import Number

from wabery_server.cli import FAILED, UNREACHABLE, USAGE, examples, fail, load, run, say

if TYPE_CHECKING:
    from wabery_server.accounts import ApiKey, Channel, Needs, Project
    from wabery_server.db import Tx
    from wabery_server.main import Opened

T = TypeVar("T")

Json = Annotated[bool, Parameter(name="--json", negative="", show_default=False, help="JSON on stdout.")]
Limit = Annotated[int, Parameter(help="Maximum number of rows.", validator=Number(gte=1, lte=10_000))]

_EXIT_CODES = {400: USAGE, 401: 3, 403: 3, 404: 4, 409: 5, 422: USAGE, 429: 6, 503: UNREACHABLE}
_DEFAULT_LIMIT = 100
_OVERLAP = timedelta(days=1)
_MOST_NAMED = 20


def app() -> cyclopts.App:
    """The commands under `wabery admin`."""
    admin = _group("admin", "Administer the installation on its database.", "wabery admin projects list")
    _mount(admin, "new-secret", new_secret, "wabery admin new-secret > secret.key")
    projects = _group("projects", "Projects: the tenants.", "wabery admin projects create --name Shop --live")
    _mount(projects, "create", create_project, "wabery admin projects create --name Shop --live")
    _mount(projects, "list", list_projects, "wabery admin projects list")
    keys = _group("keys", "API keys.", "wabery admin keys list --project proj_…")
    _mount(
        keys,
        "create",
        create_key,
        "wabery admin keys create --project proj_… --name server --scopes full",
        "wabery admin keys create --project proj_… --name website --kind publishable \\",
        "    --origin https://shop.example.com",
    )
    _mount(keys, "list", list_keys, "wabery admin keys list --project proj_…")
    _mount(keys, "rotate", rotate_key, "wabery admin keys rotate key_… --project proj_… --overlap 0s")
    _mount(keys, "revoke", revoke_key, "wabery admin keys revoke key_… --project proj_…")
    channels = _group("channels", "WhatsApp numbers.", "wabery admin channels list --project proj_…")
    _mount(
        channels,
        "create",
        create_channel,
        "wabery admin channels create --project proj_… --name Support \\",
        "    --phone-number-id 106540352242922 --waba-id 102290129340398 \\",
        '    --display-phone-number "+49 151 23456789" --app-secret-file app-secret.txt',
    )
    _mount(channels, "list", list_channels, "wabery admin channels list --project proj_…")
    _mount(channels, "delete", delete_channel, "wabery admin channels delete channel_… --project proj_…")
    messages = _group("messages", "Messages that failed.", "wabery admin messages list --failed")
    _mount(messages, "list", list_messages, "wabery admin messages list --failed")
    _mount(
        messages,
        "retry",
        retry_messages,
        "wabery admin messages retry --all",
        "wabery admin messages retry msg_…",
    )
    for group in (projects, keys, channels, messages):
        admin.command(group)
    _mount(admin, "reseal", reseal, "wabery admin reseal")
    _mount(admin, "audit", audit, "wabery admin audit --project proj_…")
    return admin


def _group(name: str, about: str, example: str) -> cyclopts.App:
    return cyclopts.App(name=name, help=about, help_prologue=examples(example))


def _mount(group: cyclopts.App, name: str, body: Callable[..., None], *shown: str) -> None:
    group.command(body, name=name, help_prologue=examples(*shown))


def new_secret(*, json: Json = False) -> None:
    """Print a new installation secret, for WABERY_SECRET_KEY. Keep it outside the database and its backups."""
    from wabery_server import secrets

    secret = secrets.generate()
    if json:
        _print_json({"secret": secret})
    else:
        print(secret)


def reseal(
    *, batch: Annotated[int, Parameter(validator=Number(gte=1, lte=1000))] = 100, json: Json = False
) -> None:
    """Seal everything again with the current secret, so that older versions become unnecessary.

    Safe to repeat and to run while servers run, once all of them have the current secret. Exits with 1 when rows remain
    that cannot be opened.

    Parameters
    ----------
    batch
        Rows in one transaction.
    """
    from wabery_server import accounts
    from wabery_server.clock import iso

    async def body(opened: "Opened") -> None:
        moved, unreadable = 0, list[str]()
        after: tuple[str, str] | None = ("", "")

        async def next_batch(tx: "Tx") -> accounts.Resealed:
            return await accounts.any_reseal(tx, opened.keyring, after or ("", ""), batch)

        while after is not None:
            done = await opened.database.run(next_batch)
            moved, unreadable, after = moved + done.moved, unreadable + done.unreadable, done.after
        current, now = opened.keyring.current.version, opened.clock.now()

        async def remaining(tx: "Tx") -> list[accounts.Needs]:
            registered = await accounts.registered_versions(tx)
            return [await accounts.any_needs(tx, one, now) for one in registered if one != current]

        remain = await opened.database.run(remaining)
        if json:
            shown = [
                {
                    "version": one.version,
                    "needed_by": str(one),
                    "until": iso(one.until) if one.until else None,
                }
                for one in remain
            ]
            _print_json({"version": current, "resealed": moved, "unreadable": unreadable, "older": shown})
        else:
            print(f"Resealed {moved} rows with secret version {current}.")
            for one in remain:
                print(f"Version {one.version}: needed by {one}{_until(one)}.")
        if unreadable:
            some = ", ".join(unreadable[:_MOST_NAMED]) + (", …" if len(unreadable) > _MOST_NAMED else "")
            fail(f"{len(unreadable)} rows cannot be opened with any given secret: {some}", FAILED)

    _operate(body)


def _until(needs: "Needs") -> str:
    return "" if needs.sealed or needs.until is None else f" until {needs.until:%Y-%m-%d %H:%M} UTC"


def create_project(
    *,
    name: str,
    livemode: Annotated[bool, Parameter(name="--live", negative="--test")],
    json: Json = False,
) -> None:
    """Create a project; a test project has a sandbox number at once. Prints its id.

    Parameters
    ----------
    name
        For people.
    livemode
        Live, with wab_live_ keys, or test, with wab_test_ keys. It stays so.
    """
    from wabery_server import accounts

    async def body(opened: "Opened") -> None:
        at = opened.clock.now()
        draft = _read({"name": name, "livemode": livemode}, accounts.ProjectDraft)
        new = accounts.new_project(opened.organization_id, draft, keyring=opened.keyring, at=at)
        await opened.database.run(
            lambda tx: accounts.create_project(tx, new, keyring=opened.keyring, actor=_actor(), at=at)
        )
        if json:
            _print_json(new.project.public(new.endpoint, reveal_with=opened.keyring))
        else:
            print(new.project.id)
            say(f"Next: wabery admin keys create --project {new.project.id} --name server --scopes full")

    _operate(body)


def list_projects(*, limit: Limit = _DEFAULT_LIMIT, json: Json = False) -> None:
    """List every project of the installation, newest first."""
    from wabery_server import accounts

    async def body(opened: "Opened") -> None:
        found = await opened.database.run(lambda tx: accounts.any_projects(tx, limit=limit))
        if json:
            _print_json([project.public() for project in found])
        else:
            _print_table(
                (p.id, "live" if p.livemode else "test", f"{p.created_at:%Y-%m-%d}", p.name) for p in found
            )

    _operate(body)


def create_key(
    *,
    project: str,
    name: str,
    kind: Literal["secret", "publishable"] = "secret",
    scopes: Annotated[str, Parameter(show_default=False)] = "",
    origin: Annotated[Sequence[str], Parameter(negative="", show_default=False)] = (),
    expires_in: timedelta | None = None,
    json: Json = False,
) -> None:
    """Create an API key and print it. A secret key is shown this once.

    Parameters
    ----------
    project
        Id of the project.
    name
        For people: where the key is used.
    kind
        secret for servers, publishable for browsers.
    scopes
        Of a secret key, separated by commas, such as registrations:create,registrations:read; or full, or read_only.
    origin
        Of a publishable key: a page that may use it, such as https://app.example.com. Repeat it for several.
    expires_in
        How long it is good for, such as 90d or 12h. Default: until it is revoked.
    """
    from wabery_server import accounts

    async def body(opened: "Opened") -> None:
        at = opened.clock.now()
        wanted = {
            "name": name,
            "kind": kind,
            "scopes": [part.strip() for part in scopes.split(",") if part.strip()],
            "allowed_origins": list(origin),
            "expires_at": _moment(at, expires_in),
        }
        draft = _read(wanted, accounts.KeyDraft)
        owner = await opened.database.run(lambda tx: _project(tx, project))
        new = accounts.new_key(owner, draft, at)
        await opened.database.run(lambda tx: accounts.create_key(tx, new, actor=_actor(), at=at))
        shown = new.key.public(value=new.value)
        if json:
            _print_json(shown)
        else:
            print(new.value)
            say(
                f"{new.key.id} of {owner.id}."
                + (" Keep it now: it is not shown again." if kind == "secret" else "")
            )
            if shown["warning"]:
                say(shown["warning"])

    _operate(body)


def list_keys(*, project: str, limit: Limit = _DEFAULT_LIMIT, json: Json = False) -> None:
    """List a project's keys, newest first, without their values.

    Parameters
    ----------
    project
        Id of the project.
    """
    from wabery_server import accounts

    async def body(opened: "Opened") -> None:
        found = await opened.database.run(
            lambda tx: _of_project(tx, project, accounts.list_keys(tx, project, limit=limit))
        )
        if json:
            _print_json([key.public() for key in found])
        else:
            now = opened.clock.now()
            _print_table((key.id, key.kind, f"…{key.last4}", _state(key, now), key.name) for key in found)

    _operate(body)


def rotate_key(
    key: str,
    /,
    *,
    project: str,
    overlap: Annotated[timedelta, Parameter(show_default=False)] = _OVERLAP,
    json: Json = False,
) -> None:
    """Replace a key's value under its id, and print the new one. A secret key is shown this once.

    Parameters
    ----------
    key
        Id of the key: key_….
    project
        Id of the project.
    overlap
        How long the old value goes on working, up to 7d; 0s when it has leaked. Default: 1d.
    """
    from wabery_server import accounts

    async def body(opened: "Opened") -> None:
        at = opened.clock.now()
        rotation = _read({"overlap": int(overlap.total_seconds())}, accounts.KeyRotation)
        owner = await opened.database.run(lambda tx: _project(tx, project))
        found = await opened.database.run(lambda tx: accounts.find_key(tx, project, key))
        value = accounts.new_value(owner, found.kind)
        rotated = await opened.database.run(
            lambda tx: accounts.rotate_key(tx, found, value, rotation, actor=_actor(), at=at)
        )
        shown = rotated.public(value=value)
        if json:
            _print_json(shown)
        else:
            print(value)
            say(f"{rotated.id} ({rotated.name}): the old value works until {shown['previous_ends_at']}.")

    _operate(body)


def revoke_key(key: str, /, *, project: str, json: Json = False) -> None:
    """End a key for good, with the pending intents it has minted.

    Parameters
    ----------
    key
        Id of the key: key_….
    project
        Id of the project.
    """
    from wabery_server import intents

    async def body(opened: "Opened") -> None:
        at = opened.clock.now()

        async def revoke(tx: "Tx") -> "ApiKey":
            return await intents.revoke_key(tx, await _project(tx, project), key, actor=_actor(), at=at)

        revoked = await opened.database.run(revoke)
        if json:
            _print_json(revoked.public())
        else:
            say(f"{revoked.id} ({revoked.name}) is revoked.")

    _operate(body)


def create_channel(
    *,
    project: str,
    name: str,
    phone_number_id: str,
    display_phone_number: str,
    waba_id: str,
    portfolio_id: str | None = None,
    app_secret_file: Path | None = None,
    access_token_file: Path | None = None,
    json: Json = False,
) -> None:
    """Connect a WhatsApp number of Meta's Cloud API. Prints the verify token, for the webhook form of Meta's dashboard.

    The app secret is asked for, or read from stdin or a file.

    Parameters
    ----------
    project
        Id of the project.
    name
        For people.
    phone_number_id
        Meta's id of the number: digits, not the number itself.
    display_phone_number
        The number as people dial it, such as "+49 151 23456789".
    waba_id
        Id of the WhatsApp Business Account.
    portfolio_id
        Id of the business portfolio, where there is one.
    app_secret_file
        File with the Meta app's secret.
    access_token_file
        File with an access token, for replies.
    """
    from wabery_server import accounts

    async def body(opened: "Opened") -> None:
        at = opened.clock.now()
        wanted = {
            "name": name,
            "phone_number_id": phone_number_id,
            "display_phone_number": display_phone_number,
            "waba_id": waba_id,
            "portfolio_id": portfolio_id,
            "app_secret": app_secret,
            "access_token": access_token,
        }
        new = accounts.new_channel(project, _read(wanted, accounts.ChannelDraft), at)

        async def create(tx: "Tx") -> None:
            await _project(tx, project)
            await accounts.create_channel(tx, new, keyring=opened.keyring, actor=_actor(), at=at)

        await opened.database.run(create)
        if json:
            _print_json(new.channel.public(verify_token=new.credentials.verify_token))
        else:
            print(new.credentials.verify_token)
            say(f"{new.channel.id} is connected. Enter the verify token above, and this server's")
            say("/inbound/whatsapp as the callback URL, in the Meta app's WhatsApp configuration.")

    app_secret = _secret("App secret", app_secret_file)
    access_token = _secret("Access token", access_token_file) if access_token_file else None
    _operate(body)


def list_channels(*, project: str, limit: Limit = _DEFAULT_LIMIT, json: Json = False) -> None:
    """List a project's channels, newest first.

    Parameters
    ----------
    project
        Id of the project.
    """
    from wabery_server import accounts

    async def body(opened: "Opened") -> None:
        found = await opened.database.run(
            lambda tx: _of_project(tx, project, accounts.list_channels(tx, project, limit=limit))
        )
        if json:
            _print_json([channel.public() for channel in found])
        else:
            _print_table(
                (
                    c.id,
                    f"+{c.display_phone_number}",
                    c.phone_number_id,
                    "sandbox" if c.sandbox else c.provider,
                    c.name,
                )
                for c in found
            )

    _operate(body)


def delete_channel(channel: str, /, *, project: str, json: Json = False) -> None:
    """Disconnect a number, erase its credentials, and end the pending intents minted for it.

    Parameters
    ----------
    channel
        Id of the channel: channel_….
    project
        Id of the project.
    """
    from wabery_server import intents

    async def body(opened: "Opened") -> None:
        at = opened.clock.now()

        async def delete(tx: "Tx") -> "Channel":
            return await intents.retire_channel(
                tx, await _project(tx, project), channel, actor=_actor(), at=at
            )

        deleted = await opened.database.run(delete)
        if json:
            _print_json(deleted.public())
        else:
            say(f"{deleted.id} ({deleted.name}) is deleted.")

    _operate(body)


def list_messages(
    *,
    failed: Annotated[bool, Parameter(name="--failed", negative="", show_default=False)] = False,
    limit: Limit = _DEFAULT_LIMIT,
    json: Json = False,
) -> None:
    """List the messages that could not be handled, newest first. Their texts stay sealed.

    Parameters
    ----------
    failed
        Required: only failed messages can be listed.
    """
    from wabery_server import inbox

    async def body(opened: "Opened") -> None:
        found = await opened.database.run(lambda tx: inbox.any_failed(tx, limit=limit))
        if json:
            _print_json([one.public() for one in found])
        else:
            _print_table(
                (
                    one.id,
                    one.project_id,
                    one.channel_id,
                    f"{one.received_at:%Y-%m-%d %H:%M:%S}",
                    one.type,
                    one.error or "",
                )
                for one in found
            )

    if not failed:
        fail("Only failed messages can be listed: add --failed.", USAGE)
    _operate(body)


def retry_messages(
    *messages: str,
    every: Annotated[bool, Parameter(name="--all", negative="", show_default=False)] = False,
    json: Json = False,
) -> None:
    """Handle failed messages again, after an upgrade that fixes their errors. Exits with 1 when one fails again.

    A message with a token joins if it arrived in time and its intent is still pending.

    Parameters
    ----------
    messages
        Ids of failed messages: msg_….
    every
        Retry all failed messages.
    """
    from wabery_server.cli import messages as failures

    async def body(opened: "Opened") -> None:
        found = await failures.failed_messages(opened, messages)
        retried = [await failures.retry(opened, one, settings) for one in found]
        if json:
            _print_json(
                [
                    {
                        "object": "retried_message",
                        "id": one.message.id,
                        "outcome": one.outcome,
                        "error": one.error,
                    }
                    for one in retried
                ]
            )
        else:
            _print_table((one.message.id, one.outcome, one.error or "") for one in retried)
        again = sum(one.outcome == "failed" for one in retried)
        if again:
            fail(f"{again} of {len(retried)} messages failed again.", FAILED)
        say(f"{len(retried)} messages were handled.")

    if every == bool(messages):
        fail("Name the messages to retry, or use --all.", USAGE)
    settings = load()
    _operate(body)


def audit(*, project: str, limit: Limit = _DEFAULT_LIMIT, json: Json = False) -> None:
    """Show who did what to a project, newest first.

    Parameters
    ----------
    project
        Id of the project.
    """
    from wabery_server import accounts

    async def body(opened: "Opened") -> None:
        found = await opened.database.run(
            lambda tx: _of_project(tx, project, accounts.audit_trail(tx, project, limit=limit))
        )
        if json:
            _print_json([entry.public() for entry in found])
        else:
            _print_table(
                (f"{e.created_at:%Y-%m-%d %H:%M:%S}", e.actor, e.action, e.target, jsons.dumps(e.detail))
                for e in found
            )

    _operate(body)


def _operate(body: "Callable[[Opened], Awaitable[None]]") -> None:
    """Runs `body` on the opened installation; what goes wrong ends the command with one line and an exit code."""
    from wabery_server import errors, main
    from wabery_server.db import OPERATOR
    from wabery_server.settings import BadSetting

    try:
        "".join(sys.argv).encode()
    except UnicodeEncodeError:
        fail("An argument is not UTF-8 text.", USAGE)

    async def opened(ground: main.Ground) -> None:
        async with main.opened(ground, patience=OPERATOR) as installation:
            with main.explained():
                await body(installation)

    try:
        with main.ground(load()) as ground:
            run(opened(ground))
    except BadSetting as failure:
        fail(str(failure), USAGE)
    except main.CannotStart as failure:
        fail(str(failure), UNREACHABLE)
    except errors.WaberyError as refusal:
        hint = f" {refusal.hint}" if refusal.hint else ""
        fail(f"{refusal.message}{hint}", _EXIT_CODES.get(refusal.status, FAILED))


def _read(wanted: Mapping[str, object], kind: type[T]) -> T:
    """The flags as what the API would take, by the same rules. Raises errors.InvalidRequest."""
    import msgspec

    from wabery_server import errors

    try:
        return msgspec.convert(wanted, kind)
    except msgspec.ValidationError as failure:
        problem, _, path = str(failure).partition(" - at `$.")
        field = path.partition("`")[0].replace("_", "-")
        raise errors.InvalidRequest(f"--{field}: {problem}." if field else f"{problem}.") from failure


async def _project(tx: "Tx", project_id: str) -> "Project":
    from wabery_server import accounts, errors

    try:
        return await accounts.find_project(tx, project_id)
    except errors.NotFound:
        raise errors.NotFound(
            f"There is no project {project_id}.", hint="`wabery admin projects list` shows them."
        ) from None


async def _of_project(tx: "Tx", project_id: str, found: Awaitable[T]) -> T:
    """What was found, unless there is no such project: an empty list would hide a typo."""
    rows = await found
    await _project(tx, project_id)
    return rows


def _moment(at: datetime, later: timedelta | None) -> datetime | None:
    try:
        return at + later if later is not None else None
    except OverflowError:
        fail("--expires-in is longer than time itself.", USAGE)


def _actor() -> str:
    """Who acts: the operating system's user, whatever the environment claims."""
    try:
        return f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:
        return f"cli:{os.getuid()}"


def _secret(what: str, file: Path | None) -> str:
    """From a file, else typed unseen, else from stdin; never from a flag, which other users of the machine can read."""
    import getpass

    if file is not None:
        try:
            return file.read_text("utf-8-sig").strip()
        except OSError as failure:
            fail(f"{what}: {failure}", USAGE)
    return getpass.getpass(f"{what}: ") if sys.stdin.isatty() else sys.stdin.readline().strip()


def _state(key: "ApiKey", now: datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "active"
    return f"{'expired' if key.expires_at <= now else 'until'} {key.expires_at:%Y-%m-%d}"


def _print_json(value: object) -> None:
    print(jsons.dumps(value, ensure_ascii=False))


def _print_table(rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; the last one is free."""
    table = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        print("  ".join([*cells, row[-1]]))
