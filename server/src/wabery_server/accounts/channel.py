"""Channels: WhatsApp numbers at a provider, each belonging to exactly one project.

The credentials are sealed: the app secrets that verify a provider's webhooks (several while one is being changed), the
token of the handshake, and the access token that sends replies. A test project begins with a sandbox channel, whose
number nobody has: only the fake phone writes to it.
"""

import os
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Literal, NotRequired, TypedDict

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from wabery_server import errors, ids
from wabery_server.accounts.fields import Digits, Name, Secret
from wabery_server.accounts.trail import HIDDEN, audit
from wabery_server.clock import iso
from wabery_server.db import Tx, queries
from wabery_server.secrets import Keyring, Subkeys, Unsealable

sql = queries.beside(__file__)

PROVIDERS = ("meta",)

DisplayNumber = Annotated[
    str,
    Meta(
        max_length=32,
        description="E.164, with or without +, spaces, dashes, brackets.",
        extra_json_schema={"pattern": "^[+]?[1-9][-0-9 ().]{4,30}$"},
    ),
]
"""The pattern is told, not enforced: the check below also takes what people paste, and its refusal shows an example."""

MOST_SCOPES = 20
"""WABAs and portfolios that share their people, in one project. Each is looked up for every message."""

_E164 = re.compile(r"[1-9][0-9]{4,14}")
_DECORATION = str.maketrans("", "", "+ -().\u00a0\u2011")
_SANDBOX_NUMBER = "15550100"
"""+1 555 010 0xxx: no area has this code and no exchange begins with 0, so a stray link reaches nobody."""
_SANDBOX_ID = "999000"
"""Opens the ids of sandbox numbers, which are longer than any of Meta's."""


class Credentials(Struct, frozen=True, kw_only=True):
    app_secrets: list[str]
    """A webhook signed with any of them is accepted; the current one first."""
    verify_token: str
    access_token: str | None = None


class PublicChannel(TypedDict):
    object: Literal["channel"]
    id: str
    provider: str
    name: str
    phone_number_id: str
    display_phone_number: str
    waba_id: str
    portfolio_id: str | None
    sandbox: bool
    created_at: str
    verify_token: NotRequired[str]


class Channel(Struct, frozen=True, kw_only=True):
    id: str
    project_id: str
    provider: str
    name: str
    phone_number_id: str
    display_phone_number: str
    """Digits of the E.164 number: what follows https://wa.me/."""
    waba_id: str
    portfolio_id: str | None
    sandbox: bool
    created_at: datetime
    deleted_at: datetime | None
    family: list[str] | None = None
    """The scopes that share their people with this channel's; read only where messages are received."""

    @property
    def identity_scopes(self) -> tuple[str, ...]:
        """Where a BSUID that comes by this channel means one person."""
        return identity_scopes(self.waba_id, self.portfolio_id, self.family)

    def public(self, *, verify_token: str | None = None) -> PublicChannel:
        """Without credentials. The verify token is shown with one channel, not in lists: a person has to copy it into
        the provider's dashboard, and all it opens is the handshake. App secrets and access tokens are never shown."""
        shown = PublicChannel(
            object="channel",
            id=self.id,
            provider=self.provider,
            name=self.name,
            phone_number_id=self.phone_number_id,
            display_phone_number=self.display_phone_number,
            waba_id=self.waba_id,
            portfolio_id=self.portfolio_id,
            sandbox=self.sandbox,
            created_at=iso(self.created_at),
        )
        if verify_token is not None:
            shown["verify_token"] = verify_token
        return shown


def identity_scopes(waba_id: str, portfolio_id: str | None, family: Iterable[str] | None) -> tuple[str, ...]:
    """The current scope (the portfolio, or the WABA while that is unknown), the WABA, and those used before."""
    if portfolio_id is None and not family:
        return (waba_id,)
    return tuple(dict.fromkeys((portfolio_id or waba_id, waba_id, *(family or ()))))


class ChannelDraft(Struct, kw_only=True, forbid_unknown_fields=True):
    """What it takes to connect a number."""

    name: Name
    provider: Literal["meta"] = "meta"
    phone_number_id: Digits
    display_phone_number: DisplayNumber
    waba_id: Digits
    portfolio_id: Digits | None = None
    app_secret: Secret
    verify_token: Secret | None = None
    """None: one is made."""
    access_token: Secret | None = None
    """None: the channel cannot send replies."""


class ChannelChanges(Struct, kw_only=True, forbid_unknown_fields=True):
    """What is set replaces what was there. Another number is another channel."""

    name: Name | UnsetType = UNSET
    display_phone_number: DisplayNumber | UnsetType = UNSET
    portfolio_id: Digits | None | UnsetType = UNSET
    app_secrets: Annotated[list[Secret], Meta(min_length=1, max_length=4)] | UnsetType = UNSET
    """All that are accepted from now on: the new one and the old one while the app's secret is being changed."""
    verify_token: Secret | UnsetType = UNSET
    access_token: Secret | None | UnsetType = UNSET


class NewChannel(Struct, frozen=True):
    channel: Channel
    credentials: Credentials


def new_channel(project_id: str, draft: ChannelDraft, at: datetime) -> NewChannel:
    """Raises errors.InvalidRequest."""
    channel = Channel(
        id=ids.new("channel", at),
        project_id=project_id,
        provider=draft.provider,
        name=draft.name,
        phone_number_id=draft.phone_number_id,
        display_phone_number=_digits(draft.display_phone_number),
        waba_id=draft.waba_id,
        portfolio_id=draft.portfolio_id,
        sandbox=False,
        created_at=at,
        deleted_at=None,
    )
    credentials = Credentials(
        app_secrets=[draft.app_secret],
        verify_token=draft.verify_token or os.urandom(16).hex(),
        access_token=draft.access_token,
    )
    return NewChannel(channel, credentials)


def new_sandbox_channel(project_id: str, at: datetime) -> NewChannel:
    noise = f"{int.from_bytes(os.urandom(8)):020d}"
    draft = ChannelDraft(
        name="Sandbox",
        phone_number_id=_SANDBOX_ID + noise,
        display_phone_number=_SANDBOX_NUMBER + noise[-3:],
        waba_id=_SANDBOX_ID + noise,
        app_secret=os.urandom(16).hex(),
    )
    new = new_channel(project_id, draft, at)
    return NewChannel(msgspec.structs.replace(new.channel, sandbox=True), new.credentials)


async def create_channel(tx: Tx, new: NewChannel, *, keyring: Keyring, actor: str, at: datetime) -> None:
    """Safe to repeat. Raises errors.NumberTaken when the number belongs to a channel of any project, InvalidRequest."""
    channel = new.channel
    await _share_scopes(tx, channel, [channel.portfolio_id])
    inserted = await tx.row(
        sql.insert_channel,
        channel.id,
        channel.project_id,
        channel.provider,
        channel.name,
        channel.phone_number_id,
        channel.display_phone_number,
        channel.waba_id,
        channel.portfolio_id,
        channel.sandbox,
        _seal(new.credentials, channel.id, keyring.current),
        keyring.current.version,
        channel.created_at,
    )
    if inserted:
        detail = {
            "name": channel.name,
            "provider": channel.provider,
            "phone_number_id": channel.phone_number_id,
            "sandbox": channel.sandbox,
        }
        await _audit(tx, channel, "created", detail, actor, at)
    elif await tx.row(sql.find_channel, channel.project_id, channel.id) is None:
        raise errors.NumberTaken(param="phone_number_id")


async def list_channels(tx: Tx, project_id: str, *, limit: int, before: str | None = None) -> list[Channel]:
    """Those that are not deleted, newest first; `before` is the id of a channel to go on after."""
    return [Channel(**row) for row in await tx.rows(sql.list_channels, project_id, before, limit)]


async def find_channel(tx: Tx, project_id: str, channel_id: str) -> Channel:
    """Raises errors.NotFound, also for a deleted one."""
    row = await tx.row(sql.find_channel, project_id, channel_id)
    if row is None:
        raise errors.NotFound
    return Channel(**row)


async def unseal_credentials(tx: Tx, channel: Channel, *, keyring: Keyring) -> Credentials:
    """For what speaks with the provider. Raises errors.NotFound once the channel is deleted, errors.Unavailable when its
    credentials cannot be opened with this process's secrets."""
    row = await tx.row(sql.credentials, channel.project_id, channel.id)
    if row is None:
        raise errors.NotFound
    try:
        return open_credentials(channel.id, row["credentials"], row["secret_version"], keyring)
    except Unsealable as failure:
        raise errors.Unavailable(
            "The stored credentials of this channel cannot be opened with this server's secrets.",
            hint="Restore the missing secret version, or set app_secrets, verify_token and access_token again.",
        ) from failure


def open_credentials(channel_id: str, sealed: bytes, secret_version: int, keyring: Keyring) -> Credentials:
    """Raises secrets.Unsealable."""
    return keyring.open(sealed, secret_version, _purpose(channel_id), _credentials.decode)


async def update_channel(
    tx: Tx,
    project_id: str,
    channel_id: str,
    changes: ChannelChanges,
    *,
    keyring: Keyring,
    actor: str,
    at: datetime,
) -> tuple[Channel, Credentials]:
    """Raises errors.NotFound, InvalidRequest."""
    given = _given(changes)
    if "display_phone_number" in given:
        given["display_phone_number"] = _digits(str(given["display_phone_number"]))
    secret = {name: given.pop(name) for name in _CREDENTIALS if name in given}
    await tx.row(sql.lock_channel, project_id, channel_id)
    old = await find_channel(tx, project_id, channel_id)
    try:
        credentials = await unseal_credentials(tx, old, keyring=keyring)
    except errors.Unavailable:
        if not {"app_secrets", "verify_token"} <= secret.keys():
            raise
        credentials = Credentials(app_secrets=[], verify_token="")  # both are replaced below
    if not given and not secret:
        return old, credentials
    new = msgspec.structs.replace(old, **given)
    credentials = msgspec.structs.replace(credentials, **secret)
    if new.portfolio_id != old.portfolio_id:
        await _share_scopes(tx, new, [old.portfolio_id, new.portfolio_id])
    await tx.run(
        sql.update_channel,
        project_id,
        channel_id,
        new.name,
        new.display_phone_number,
        new.portfolio_id,
        _seal(credentials, channel_id, keyring.current),
        keyring.current.version,
    )
    detail = {name: given[name] for name in given if name != "display_phone_number"}
    hidden = {name: HIDDEN for name in (*secret, *given) if name not in detail}
    await _audit(tx, new, "updated", {**detail, **hidden}, actor, at)
    return new, credentials


async def delete_channel(tx: Tx, project_id: str, channel_id: str, *, actor: str, at: datetime) -> Channel:
    """Frees the number for another channel and erases the credentials. Safe to repeat. Raises errors.NotFound.

    Writes only its own row: intents that wait for a message to this number are settled by whoever reads that row.
    """
    row = await tx.row(sql.delete_channel, project_id, channel_id, at)
    if row is not None:
        await _audit(tx, Channel(**row), "deleted", {}, actor, at)
        return Channel(**row)
    row = await tx.row(sql.find_deleted_channel, project_id, channel_id)
    if row is None:
        raise errors.NotFound
    return Channel(**row)


async def clear_channel(tx: Tx, project_id: str, channel_id: str, at: datetime) -> None:
    """Keeps that what was minted for a deleted channel has been ended."""
    await tx.run(sql.clear_channel, project_id, channel_id, at)


async def _share_scopes(tx: Tx, channel: Channel, portfolios: Iterable[str | None]) -> None:
    """Keeps that a channel's WABA and these portfolios name the same people, as do all that one of them shared them with.

    Scopes are only ever added: identifiers are stored under them, and must be found whatever a channel's portfolio says
    today. Raises errors.InvalidRequest when there would be too many.
    """
    used = list(dict.fromkeys([channel.waba_id, *(one for one in portfolios if one is not None)]))
    await tx.run(sql.lock_scopes, channel.project_id)
    rows = await tx.rows(sql.families, channel.project_id, used)
    known = [row["family"] for row in rows]
    family = list(dict.fromkeys(scope for one in [*known, used] for scope in one))
    if known and all(len(one) == len(family) for one in known) and len(known) == len(used):
        return
    if len(family) > MOST_SCOPES:
        raise errors.InvalidRequest(
            f"The numbers of this WhatsApp Business Account have belonged to too many portfolios: at most"
            f" {MOST_SCOPES - 1} are kept apart. Check portfolio_id.",
            param="portfolio_id",
        )
    await tx.rows_each(sql.share_scopes, [(channel.project_id, scope, family) for scope in family])


_CREDENTIALS = ("app_secrets", "verify_token", "access_token")
_credentials = msgspec.json.Decoder(Credentials)


def _given(changes: Struct) -> dict[str, object]:
    fields = ((name, getattr(changes, name)) for name in changes.__struct_fields__)
    return {name: value for name, value in fields if value is not UNSET}


def _digits(number: str) -> str:
    digits = number.translate(_DECORATION)
    if not _E164.fullmatch(digits):
        raise errors.InvalidRequest(
            "display_phone_number must be an international number such as +49 151 23456789.",
            param="display_phone_number",
        )
    return digits


async def _audit(
    tx: Tx, channel: Channel, what: str, detail: dict[str, object], actor: str, at: datetime
) -> None:
    await audit(
        tx,
        project_id=channel.project_id,
        actor=actor,
        action=f"channel.{what}",
        target=channel.id,
        detail=detail,
        at=at,
    )


def _seal(credentials: Credentials, channel_id: str, subkeys: Subkeys) -> bytes:
    return subkeys.seal(msgspec.json.encode(credentials), _purpose(channel_id))


def _purpose(channel_id: str) -> str:
    return f"channels.credentials:{channel_id}"
