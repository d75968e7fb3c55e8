"""Webhook endpoints: where events go, and the secrets that sign them.

A project's `webhook_url` and `webhook_secret` are its default endpoint. The secrets are a sealed list, the current one
first; the app may choose one of any form, and ours are Standard Webhooks' `whsec_` and base64 of 32 random bytes.
"""

import base64
import os
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Struct, UnsetType

from wabery_server import errors, ids
from wabery_server.accounts.trail import audit
from wabery_server.db import Tx, queries
from wabery_server.secrets import Keyring, Subkeys

sql = queries.beside(__file__)

_secrets = msgspec.json.Decoder(list[str])


class Endpoint(Struct, frozen=True, kw_only=True):
    id: str
    project_id: str
    is_default: bool
    url: str | None
    """None: nothing is sent."""
    events: list[str] | None
    """None: all but the opt-in ones."""
    secrets: bytes
    """Sealed; see `unseal_endpoint_secrets`."""
    secret_version: int
    disabled_at: datetime | None
    disabled_reason: str | None
    created_at: datetime


class Listener(NamedTuple):
    """An endpoint with a URL, as far as it matters to whether an event is for it."""

    project_id: str
    id: str
    events: list[str] | None
    disabled: bool


def new_webhook_secret() -> str:
    return "whsec_" + base64.b64encode(os.urandom(32)).decode()


def new_default_endpoint(project_id: str, secret: str, *, keyring: Keyring, at: datetime) -> Endpoint:
    """The endpoint a project begins with: a secret, and no URL yet."""
    endpoint_id = ids.new("we", at)
    return Endpoint(
        id=endpoint_id,
        project_id=project_id,
        is_default=True,
        url=None,
        events=None,
        secrets=_seal([secret], endpoint_id, keyring.current),
        secret_version=keyring.current.version,
        disabled_at=None,
        disabled_reason=None,
        created_at=at,
    )


async def insert_endpoint(tx: Tx, endpoint: Endpoint) -> None:
    """Safe to repeat."""
    await tx.run(
        sql.insert_endpoint,
        endpoint.id,
        endpoint.project_id,
        endpoint.is_default,
        endpoint.url,
        endpoint.secrets,
        endpoint.secret_version,
        endpoint.events,
        endpoint.created_at,
    )


async def endpoints(tx: Tx, project_ids: Sequence[str]) -> list[Endpoint]:
    """All endpoints of these projects, also those that are disabled or have no URL."""
    return [Endpoint(**row) for row in await tx.rows(sql.endpoints, project_ids)]


async def listeners(tx: Tx, project_ids: Sequence[str]) -> list[Listener]:
    """The endpoints of these projects that have a URL, also those that are disabled."""
    return [Listener(*row) for row in await tx.rows(sql.listeners, project_ids)]


async def default_endpoint(tx: Tx, project_id: str) -> Endpoint:
    """Raises errors.NotFound for an unknown project."""
    row = await tx.row(sql.default_endpoint, project_id)
    if row is None:
        raise errors.NotFound
    return Endpoint(**row)


def unseal_endpoint_secrets(endpoint: Endpoint, keyring: Keyring) -> list[str]:
    """The secrets that sign this endpoint's deliveries, the current one first. Raises secrets.Unsealable."""
    return keyring.open(endpoint.secrets, endpoint.secret_version, _purpose(endpoint.id), _secrets.decode)


async def update_default_endpoint(
    tx: Tx, project_id: str, *, url: str | None | UnsetType, secret: str | UnsetType, keyring: Keyring
) -> Endpoint:
    """Takes over what is set; a new URL also brings a disabled endpoint back. Raises errors.NotFound.

    A new secret replaces all older ones at once. Deliveries that are due go to the URL and are signed with the secrets
    of the moment they are sent.
    """
    endpoint = await default_endpoint(tx, project_id)
    if url is not UNSET:
        await tx.run(sql.set_url, project_id, endpoint.id, url)
    if secret is not UNSET:
        sealed = _seal([secret], endpoint.id, keyring.current)
        await tx.run(sql.set_secrets, project_id, endpoint.id, sealed, keyring.current.version)
    return await default_endpoint(tx, project_id)


async def rotate_webhook_secret(
    tx: Tx, project_id: str, secret: str, *, keyring: Keyring, actor: str, at: datetime
) -> Endpoint:
    """`secret` takes the place of the default endpoint's old one at once. Raises errors.NotFound."""
    endpoint = await update_default_endpoint(tx, project_id, url=UNSET, secret=secret, keyring=keyring)
    await audit(
        tx,
        project_id=project_id,
        actor=actor,
        action="project.webhook_secret_rotated",
        target=project_id,
        detail={},
        at=at,
    )
    return endpoint


async def disable_endpoint(tx: Tx, project_id: str, endpoint_id: str, reason: str, at: datetime) -> None:
    """Stops sending to an endpoint; one that is disabled already keeps its first reason."""
    if await tx.row(sql.disable_endpoint, project_id, endpoint_id, reason, at):
        await audit(
            tx,
            project_id=project_id,
            actor="worker",
            action="webhook_endpoint.disabled",
            target=endpoint_id,
            detail={"reason": reason},
            at=at,
        )


def shown_url(url: str | None) -> str | None:
    """Scheme and host of a URL, for the audit trail."""
    if url is None:
        return None
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _seal(secrets: list[str], endpoint_id: str, subkeys: Subkeys) -> bytes:
    return subkeys.seal(msgspec.json.encode(secrets), _purpose(endpoint_id))


def _purpose(endpoint_id: str) -> str:
    return f"webhook_endpoints.secrets:{endpoint_id}"
