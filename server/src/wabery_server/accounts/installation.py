"""The installation: one organization, the secret its database belongs to, and what `wabery dev` needs to begin."""

import hmac
from datetime import datetime
from urllib.parse import urlsplit

from msgspec import Struct

from wabery_server import errors, ids
from wabery_server.accounts.channel import Channel, list_channels
from wabery_server.accounts.endpoint import default_endpoint, unseal_endpoint_secrets
from wabery_server.accounts.key import KeyDraft, any_live_keys, create_key, list_keys, new_key
from wabery_server.accounts.project import (
    Project,
    ProjectChanges,
    ProjectDraft,
    any_projects,
    create_project,
    new_project,
    update_project,
)
from wabery_server.accounts.trail import audit
from wabery_server.db import Tx, queries
from wabery_server.secrets import BadSecret, Keyring

sql = queries.beside(__file__)

_DEV = "cli:dev"


async def open_installation(tx: Tx, keyring: Keyring, at: datetime) -> str:
    """The organization's id. An empty database becomes this secret's; any other must have been made with it.

    1. Two processes that open an empty database at once agree: the second finds what the first has written.
    2. With a new secret beside the old one (WABERY_SECRET_KEY_OLD) the database learns the new one.

    Raises secrets.BadSecret.
    """
    current = keyring.current
    organization_id = ids.new("org", at)
    if await tx.row(sql.insert_installation, organization_id, current.check, current.version, at):
        await tx.run(sql.insert_organization, organization_id, "Wabery", at)
        await _audit(tx, organization_id, "installation.created", at)
        return organization_id
    row = await tx.row(sql.installation)
    assert row is not None, "an insert that met a row leaves that row to be read"
    found: str = row["organization_id"]
    version: int = row["secret_version"]
    try:
        expected = keyring.version(version).check
    except BadSecret:
        raise BadSecret(_WRONG.format(version=version)) from None
    if not hmac.compare_digest(expected, row["secret_check"]):
        raise BadSecret(_WRONG.format(version=version))
    if current.version > version and await tx.row(sql.advance, version, current.check, current.version):
        await _audit(tx, found, "installation.secret_changed", at)
    return found


_WRONG = (
    "WABERY_SECRET_KEY is not the secret this database was made with (its version there is {version}). "
    "Give the original secret; to change it, give the new one as WABERY_SECRET_KEY and the old one as "
    "WABERY_SECRET_KEY_OLD={version}:<old secret>."
)


async def find_organization(tx: Tx) -> str:
    """The id of the one organization. Raises errors.NotFound on a database that no server has opened yet."""
    row = await tx.row(sql.installation)
    if row is None:
        raise errors.NotFound("This database has no installation yet.")
    organization_id: str = row["organization_id"]
    return organization_id


class DevAccount(Struct, frozen=True):
    """What `wabery dev` works with and prints."""

    project: Project
    channel: Channel | None
    """The sandbox channel; None when somebody has deleted it."""
    secret_key: str
    publishable_key: str
    webhook_url: str | None
    webhook_secret: str


async def bootstrap_dev(
    tx: Tx, *, keyring: Keyring, webhook_url: str, at: datetime, secret_key: str | None = None
) -> DevAccount:
    """The oldest test project, made when there is none, with keys to use it. Safe to repeat.

    1. `secret_key` is the one of the last run; it is kept while it is the value of a live key of that project, else
       there is a new one. The publishable key can be read back.
    2. Webhooks go to the built-in receiver at `webhook_url`, unless somebody has chosen another URL. Its port may
       differ from run to run; its path tells it apart.
    """
    project = next((one for one in reversed(await any_projects(tx, limit=1000)) if not one.livemode), None)
    if project is None:
        draft = ProjectDraft(name="Sandbox")
        new = new_project(await find_organization(tx), draft, keyring=keyring, at=at)
        await create_project(tx, new, keyring=keyring, actor=_DEV, at=at)
        project = new.project
    known = (await any_live_keys(tx, [secret_key])).get(secret_key) if secret_key else None
    is_current = known is not None and known.until is None and known.key.project_id == project.id
    if secret_key is None or not is_current:
        made = new_key(project, KeyDraft(name="wabery dev", scopes=["full"]), at)
        await create_key(tx, made, actor=_DEV, at=at)
        secret_key = made.value
    endpoint = await default_endpoint(tx, project.id)
    built_in = endpoint.url is None or urlsplit(endpoint.url).path == urlsplit(webhook_url).path
    if built_in and endpoint.url != webhook_url:
        changes = ProjectChanges(webhook_url=webhook_url)
        project, endpoint = await update_project(tx, project.id, changes, keyring=keyring, actor=_DEV, at=at)
    channels = await list_channels(tx, project.id, limit=1000)
    return DevAccount(
        project=project,
        channel=next((channel for channel in channels if channel.sandbox), None),
        secret_key=secret_key,
        publishable_key=await _publishable(tx, project, at),
        webhook_url=endpoint.url,
        webhook_secret=unseal_endpoint_secrets(endpoint, keyring)[0],
    )


async def _publishable(tx: Tx, project: Project, at: datetime) -> str:
    for key in await list_keys(tx, project.id, limit=1000):
        live = key.revoked_at is None and (key.expires_at is None or key.expires_at > at)
        if live and key.public_key is not None:
            return key.public_key
    made = new_key(project, KeyDraft(name="wabery dev", kind="publishable"), at)
    await create_key(tx, made, actor=_DEV, at=at)
    return made.value


async def _audit(tx: Tx, organization_id: str, action: str, at: datetime) -> None:
    await audit(
        tx,
        organization_id=organization_id,
        project_id=None,
        actor="server",
        action=action,
        target=organization_id,
        detail={},
        at=at,
    )
