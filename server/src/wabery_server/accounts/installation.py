"""The installation: one organization, the secret versions its database uses, and what `wabery dev` needs to begin."""

from datetime import datetime
from typing import NamedTuple
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
from wabery_server.db import Conflict, Tx, queries
from wabery_server.secrets import BadSecret, Keyring, Unsealable

sql = queries.beside(__file__)

_DEV = "cli:dev"


class Installation(NamedTuple):
    organization_id: str
    keyring: Keyring
    """With the version numbers that this database gives to the secrets."""


async def open_installation(tx: Tx, keyring: Keyring, at: datetime) -> Installation:
    """Opens the database with these secrets. An empty database is registered for the current one.

    1. Two processes that open an empty database at once agree: the second finds what the first has written.
    2. Each secret is identified by its check value. The newest registered version must be in the keyring.
    3. An older version that is missing is unregistered when nothing needs it; else the start is refused.
    4. A new current secret is registered as the next version.

    Raises secrets.BadSecret, and db.Conflict when another process registers the same version.
    """
    organization_id = ids.new("org", at)
    current = keyring.current
    if await tx.row(sql.insert_installation, organization_id, current.check, current.version, at):
        await tx.run(sql.insert_organization, organization_id, "Wabery", at)
        await tx.row(sql.register_version, current.version, current.check, at)
        await _audit(tx, organization_id, "installation.created", at)
        return Installation(organization_id, keyring)
    found = await find_organization(tx)
    registered = await registered_versions(tx)
    newest = max(registered)
    numbered = keyring.numbered(registered)
    given = {one.version for one in numbered.versions()}
    if newest not in given:
        raise BadSecret(_WRONG.format(version=newest))
    missing = [version for version in registered if version not in given]
    needed = [need for version in missing if (need := await any_needs(tx, version, at)).total]
    if needed:
        raise BadSecret(_MISSING.format(needs="; ".join(f"version {one.version}: {one}" for one in needed)))
    for version in missing:
        await tx.run(sql.unregister_version, version)
        await _audit(tx, found, "installation.secret_version_dropped", at, version=version)
    current = numbered.current
    if current.version > newest:
        if not await tx.row(sql.register_version, current.version, current.check, at):
            raise Conflict("another process has just registered this version")
        await tx.run(sql.advance, current.check, current.version)
        await _audit(tx, found, "installation.secret_changed", at, version=current.version)
    return Installation(found, numbered)


_WRONG = (
    "WABERY_SECRET_KEY is not the secret this database was made with (its newest version there is {version}). "
    "Give the original secret; to change it, give the new one as WABERY_SECRET_KEY and the old one as "
    "WABERY_SECRET_KEY_OLD={version}:<old secret>."
)
_MISSING = (
    "A secret version that the database still needs is missing ({needs}). Add it to WABERY_SECRET_KEY_OLD as "
    "version:secret, several separated by commas; `wabery admin reseal` then makes it unnecessary."
)


async def registered_versions(tx: Tx) -> dict[int, bytes | None]:
    """The check value of each secret version in use, oldest first; None for one from before versions were registered."""
    return {row["version"]: row["secret_check"] for row in await tx.rows(sql.registered_versions)}


class Needs(NamedTuple):
    """What still needs a secret version."""

    version: int
    channels: int
    webhook_endpoints: int
    failed_messages: int
    pending_intents: int
    intents_until: datetime | None
    idempotency_answers: int
    answers_until: datetime | None

    @property
    def sealed(self) -> int:
        """What `wabery admin reseal` can move to the current version."""
        return self.channels + self.webhook_endpoints + self.failed_messages

    @property
    def total(self) -> int:
        return self.sealed + self.pending_intents + self.idempotency_answers

    @property
    def until(self) -> datetime | None:
        """When the pending intents and idempotency answers have ended by themselves."""
        return max((at for at in (self.intents_until, self.answers_until) if at is not None), default=None)

    def __str__(self) -> str:
        parts = {
            "channels": self.channels,
            "webhook endpoints": self.webhook_endpoints,
            "failed messages": self.failed_messages,
            "pending intents": self.pending_intents,
            "idempotency answers": self.idempotency_answers,
        }
        return ", ".join(f"{count} {name}" for name, count in parts.items() if count) or "nothing"


async def any_needs(tx: Tx, version: int, at: datetime) -> Needs:
    """What needs a version of the installation's secret, over all projects, which share it.

    Reads whole tables: for start-up with a missing version, `doctor` and `reseal` only.
    """
    row = await tx.row(sql.any_needs, version, at)
    assert row is not None, "counts are always there"
    return Needs(version, *row)


class Resealed(Struct):
    """What `reseal` did in one batch."""

    moved: int = 0
    unreadable: list[str] = []
    """Ids of rows that no secret of the keyring opens; they stay as they are."""
    after: tuple[str, str] | None = None
    """Where the next batch starts; None when there is no more."""


async def any_reseal(tx: Tx, keyring: Keyring, after: tuple[str, str], limit: int) -> Resealed:
    """Seals channel credentials, endpoint secrets and failed messages with the current version, over all projects.

    Takes up to `limit` rows after (table, id), in that order; begin with ("", ""). Safe to repeat and to run while other
    processes serve: a row that has changed meanwhile is left for the next run.
    """
    rows = await tx.rows(sql.any_sealed, keyring.current.version, *after, limit)
    done = Resealed(after=(rows[-1]["kind"], rows[-1]["id"]) if len(rows) == limit else None)
    for row in rows:
        column, statement = _SEALED[row["kind"]]
        purpose = f"{row['kind']}.{column}:{row['id']}"
        try:
            plain = keyring.open(row["sealed"], row["secret_version"], purpose, bytes)
        except Unsealable:
            done.unreadable.append(row["id"])
            continue
        again = keyring.current.seal(plain, purpose)
        values = (row["project_id"], row["id"], row["sealed"], again, keyring.current.version)
        done.moved += len(await tx.rows(statement, *values))
    return done


_SEALED = {
    "channels": ("credentials", sql.reseal_channel),
    "webhook_endpoints": ("secrets", sql.reseal_endpoint),
    "failed_messages": ("object", sql.reseal_failed_message),
}
"""By table: the sealed column, and the statement that replaces it. `idempotency_keys` ends by itself within a day."""


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


async def _audit(tx: Tx, organization_id: str, action: str, at: datetime, **detail: object) -> None:
    await audit(
        tx,
        organization_id=organization_id,
        project_id=None,
        actor="server",
        action=action,
        target=organization_id,
        detail=detail,
        at=at,
    )
