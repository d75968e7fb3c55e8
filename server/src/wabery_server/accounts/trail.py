"""The audit trail: who did what, append-only.

An entry's detail names what changed, with values where they are harmless; it never holds a secret, a token, or a URL's
path and query, in which people put secrets.
"""

from collections.abc import Mapping
from datetime import datetime

import msgspec
from msgspec import Struct

from wabery_server import ids
from wabery_server.clock import iso
from wabery_server.db import Tx, queries

sql = queries.beside(__file__)

HIDDEN = "changed"
"""Stands in a detail for the value of a secret."""


class Entry(Struct, frozen=True, kw_only=True):
    """One administrative act."""

    id: str
    organization_id: str
    project_id: str | None
    actor: str
    """An API key's id, `cli:<operating system user>`, or the part of the server that acted."""
    action: str
    target: str
    detail: dict[str, object]
    created_at: datetime

    def public(self) -> dict[str, object]:
        return {
            "object": "audit_entry",
            "id": self.id,
            "project_id": self.project_id,
            "actor": self.actor,
            "action": self.action,
            "target": self.target,
            "detail": self.detail,
            "created_at": iso(self.created_at),
        }


async def audit(
    tx: Tx,
    *,
    project_id: str | None,
    actor: str,
    action: str,
    target: str,
    detail: Mapping[str, object],
    at: datetime,
    organization_id: str | None = None,
) -> None:
    """Writes an entry in the transaction of what it tells. `organization_id` None: the project's."""
    await tx.run(
        sql.audit,
        ids.new("aud", at),
        organization_id,
        project_id,
        actor,
        action,
        target,
        msgspec.json.encode(detail).decode(),
        at,
    )


async def audit_trail(tx: Tx, project_id: str, *, limit: int, before: str | None = None) -> list[Entry]:
    """A project's entries, newest first; `before` is the id of an entry to go on after."""
    return [
        Entry(**{**row, "detail": msgspec.json.decode(row["detail"])})
        for row in await tx.rows(sql.audit_trail, project_id, before, limit)
    ]
