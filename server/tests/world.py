"""The world that tests play in: a running server, its tenants, and the people who write to them."""

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import aiohttp
import msgspec

from wabery_server import accounts
from wabery_server.accounts import Channel, Directory, Project
from wabery_server.api.app import application, edge_refusals
from wabery_server.api.routes import OPERATIONS
from wabery_server.api.service import Service
from wabery_server.clock import MovableClock
from wabery_server.contacts import Identity
from wabery_server.db import Database, Tx
from wabery_server.db.signals import Signals
from wabery_server.phone import payloads
from wabery_server.secrets import Keyring
from wabery_server.settings import Settings
from wabery_server.web import Bounds, Server

INTENTS = "/v1/registration-intents"
ANA = Identity(bsuid="US.8120001", phone="12125550123", profile_name="Ana")
BEN = Identity(bsuid="DE.8120002", username="bo.k", profile_name="Ben")


@dataclass
class Tenant:
    """A project with everything to use it."""

    project: Project
    channel: Channel
    app_secret: str
    secret_key: str
    publishable_key: str
    key_id: str


class App:
    """A running server on a loopback socket, and how the world reaches it."""

    def __init__(self, service: Service, base_url: str, web: aiohttp.ClientSession, server: Server) -> None:
        self.server = server
        self.service = service
        self.base_url = base_url
        self.web = web

    async def call(
        self,
        method: str,
        path: str,
        key: str | None = None,
        *,
        json: object = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> "Reply":
        """One request; the key goes into the header of its kind."""
        sent = dict(headers or {})
        if key is not None and key.startswith("wab_pub_"):
            sent.setdefault("x-wabery-publishable-key", key)
        elif key is not None:
            sent.setdefault("Authorization", f"Bearer {key}")
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        async with self.web.request(
            method, self.base_url + path, json=json, data=data, headers=sent
        ) as answer:
            raw = await answer.read()
            body = (
                msgspec.json.decode(raw) if raw and "json" in answer.headers.get("content-type", "") else None
            )
            return Reply(answer.status, body, answer.headers, raw)

    async def mint(self, key: str, reference: str = "user_123", **fields: object) -> dict[str, Any]:
        reply = await self.call("POST", INTENTS, key, json={"customer_reference": reference, **fields})
        assert reply.status == 200, reply.body
        return reply.body

    async def get(self, key: str, intent_id: str) -> dict[str, Any]:
        reply = await self.call("GET", f"{INTENTS}/{intent_id}", key)
        assert reply.status == 200, reply.body
        return reply.body

    async def say(
        self,
        tenant: Tenant,
        text: str,
        sender: Identity | None = None,
        *,
        at: datetime | None = None,
        message_id: str | None = None,
    ) -> dict[str, int]:
        """A person writes: a signed Meta webhook; returns what became of its parts."""
        body = payloads.meta_text(
            phone_number_id=tenant.channel.phone_number_id,
            display_phone_number=tenant.channel.display_phone_number,
            waba_id=tenant.channel.waba_id,
            text=text,
            sender=sender or ANA,
            message_id=message_id or payloads.new_message_id(),
            at=at or self.service.clock.now(),
        )
        return await self.deliver(tenant, body)

    async def deliver(self, tenant: Tenant, body: bytes) -> dict[str, int]:
        """Posts a webhook body, signed with the tenant's app secret."""
        headers = payloads.sign(tenant.app_secret.encode(), body)
        reply = await self.call("POST", "/inbound/whatsapp", data=body, headers=headers)
        assert reply.status == 200, reply.body
        return reply.body["received"]

    async def events(self, project_id: str, kind: str | None = None) -> list[dict[str, Any]]:
        """What the project's webhook endpoint would be told, oldest first."""
        rows = await self.service.database.run(
            lambda tx: tx.rows("select type, body from events where project_id = $1 order by id", project_id)
        )
        return [msgspec.json.decode(row["body"]) for row in rows if kind in (None, row["type"])]


class Reply(NamedTuple):
    status: int
    body: Any
    headers: Mapping[str, str]
    raw: bytes


@asynccontextmanager
async def serving(
    settings: Settings,
    database: Database,
    keyring: Keyring,
    clock: MovableClock,
    signals: Signals,
    bounds: Bounds | None = None,
) -> AsyncIterator[App]:
    """A server on a free port; a test may run several on one database."""
    async with (
        Directory(database, keyring, signals, clock) as directory,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=300)) as web,
    ):
        service = Service(
            settings, database=database, keyring=keyring, clock=clock, signals=signals, directory=directory
        )
        listening = socket.create_server(("127.0.0.1", 0))
        server = Server(
            application(service, OPERATIONS, []),
            refuse=edge_refusals(settings),
            trusted=settings.trusted_proxies,
            bounds=bounds,
        )
        await server.start([listening])
        try:
            yield App(service, f"http://127.0.0.1:{listening.getsockname()[1]}", web, server)
        finally:
            await service.readiness.close()
            await service.drain()
            await server.drain(seconds=1.0)


async def tenant(app: App, name: str, **policy: object) -> Tenant:
    """A test project with its sandbox channel, a full secret key, a publishable key and a webhook URL."""
    service, now = app.service, app.service.clock.now()

    async def make(tx: Tx) -> Tenant:
        keyring = service.keyring
        organization_id = await accounts.find_organization(tx)
        new = accounts.new_project(organization_id, accounts.ProjectDraft(name=name), keyring=keyring, at=now)
        await accounts.create_project(tx, new, keyring=keyring, actor="cli:test", at=now)
        changes = accounts.ProjectChanges(webhook_url="https://hooks.example.com/wabery", **policy)
        project, _ = await accounts.update_project(
            tx, new.project.id, changes, keyring=keyring, actor="cli:test", at=now
        )
        secret = accounts.new_key(project, accounts.KeyDraft(name="server", scopes=["full"]), now)
        public = accounts.new_key(project, accounts.KeyDraft(name="page", kind="publishable"), now)
        await accounts.create_key(tx, secret, actor="cli:test", at=now)
        await accounts.create_key(tx, public, actor="cli:test", at=now)
        (channel,) = await accounts.list_channels(tx, project.id, limit=10)
        credentials = await accounts.unseal_credentials(tx, channel, keyring=keyring)
        return Tenant(project, channel, credentials.app_secrets[0], secret.value, public.value, secret.key.id)

    made = await service.database.run(make)
    service.directory.forget()
    return made
