"""Ending an intent without a message: cancelled, superseded, expired, its key revoked, its channel deleted."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from wabery_server import accounts, errors, outbox
from wabery_server.accounts import Project
from wabery_server.db import Tx
from wabery_server.intents import tell
from wabery_server.intents.intent import (
    Intent,
    RejectionReason,
    Status,
    locked,
    read_row,
    settle,
    settled_columns,
    sql,
)

MAX_LIFETIME = timedelta(days=7)
_AT_ONCE = 1_000


async def cancel(tx: Tx, project: Project, intent_id: str, at: datetime, grace: timedelta) -> Intent:
    """Ends a pending intent, also during its grace. Cancelling what is cancelled already changes nothing.

    Raises errors.NotFound, AlreadyJoined, NotPending (expired, or rejected for another reason).
    """
    intent = await locked(tx, project.id, intent_id)
    if intent.status == Status.JOINED:
        raise errors.AlreadyJoined
    if intent.rejection_reason == RejectionReason.CANCELED_BY_APP:
        return intent
    status, phase = intent.seen_at(at, grace)
    if intent.status != Status.PENDING or (status == Status.EXPIRED and phase is None):
        raise errors.NotPending(f"This registration intent is {status} already.")
    await reject(tx, [intent], RejectionReason.CANCELED_BY_APP, projects={project.id: project}, at=at)
    return intent


async def extend(
    tx: Tx,
    project_id: str,
    intent_id: str,
    until: datetime,
    now: datetime,
    *,
    longest: timedelta = MAX_LIFETIME,
) -> Intent:
    """Moves the expiry of a pending intent, never back and never further than `longest` after its creation.

    Raises errors.NotFound, NotPending, ExpiresInOutOfRange when the intent lives that long already.
    """
    intent = await locked(tx, project_id, intent_id)
    if intent.status != Status.PENDING or now >= intent.expires_at:
        shown_as, _ = intent.seen_at(now, timedelta(0))
        raise errors.NotPending(f"This registration intent is {shown_as} already.")
    last = intent.created_at + longest
    if intent.expires_at >= last:
        hours = longest // timedelta(hours=1)
        raise errors.ExpiresInOutOfRange(
            f"This registration intent lives {hours} hours after its creation already, the longest there is.",
            param="expires_in",
        )
    intent.expires_at = max(intent.expires_at, min(until, last))
    await tx.run(sql.extend, project_id, intent_id, intent.expires_at)
    return intent


async def note_opened(tx: Tx, project_id: str, intent_id: str, via: str, now: datetime) -> Intent:
    """Keeps when the person first went on from the page, and how they did last. Raises errors.NotFound."""
    row = await tx.row(sql.note_opened, project_id, intent_id, via, now)
    if row is None:
        raise errors.NotFound("There is no such registration intent.", param="id")
    return read_row(row)


async def reject(
    tx: Tx,
    pending: Sequence[Intent],
    reason: RejectionReason,
    *,
    projects: Mapping[str, Project],
    at: datetime,
) -> None:
    """Ends locked pending intents without a message, and says so in an event."""
    for intent in pending:
        # The clock of the server that minted it may be ahead of ours.
        intent.ended_at = max(at, intent.created_at)
        intent.status, intent.rejection_reason = Status.REJECTED, reason
    await settle(tx, [settled_columns(intent) for intent in pending])
    events = [tell.rejected(intent, at, projects[intent.project_id]) for intent in pending]
    await outbox.record(tx, events, projects)


async def revoke_key(tx: Tx, project: Project, key_id: str, *, actor: str, at: datetime) -> accounts.ApiKey:
    """Revokes a key and ends what it minted; what is left over is ended by the sweeper, or by `judge` when used."""
    key = await accounts.revoke_key(tx, project.id, key_id, actor=actor, at=at)
    await _end_pending(tx, sql.pending_of_key, RejectionReason.KEY_REVOKED, project, key_id, at)
    return key


async def retire_channel(
    tx: Tx, project: Project, channel_id: str, *, actor: str, at: datetime
) -> accounts.Channel:
    """Deletes a channel and ends what was minted for it; the rest as in `revoke_key`."""
    channel = await accounts.delete_channel(tx, project.id, channel_id, actor=actor, at=at)
    await _end_pending(
        tx, sql.pending_of_channel, RejectionReason.CHANNEL_UNAVAILABLE, project, channel_id, at
    )
    return channel


async def projects_with_due(tx: Tx, now: datetime, limit: int) -> list[str]:
    """Projects that have intents past their expiry."""
    return [row["id"] for row in await tx.rows(sql.any_project_due, now, limit)]


async def expire_due(tx: Tx, project_id: str, now: datetime, grace: timedelta, limit: int) -> list[str]:
    """Ends intents whose grace is over, with their events; returns their ids."""
    rows = await tx.rows(sql.due, project_id, now - grace, limit)
    found = [read_row(row) for row in rows]
    if not found:
        return []
    for intent in found:
        intent.status, intent.ended_at = Status.EXPIRED, now
    await settle(tx, [settled_columns(intent) for intent in found])
    projects = await accounts.projects(tx, [project_id])
    await outbox.record(tx, [tell.expired(intent, now, projects[project_id]) for intent in found], projects)
    return [intent.id for intent in found]


async def end_orphans(tx: Tx, now: datetime, limit: int) -> list[str]:
    """Ends pending intents of revoked keys and deleted channels; returns their ids."""
    ended: list[str] = []
    for row in await tx.rows(sql.any_ended_with_pending, now - MAX_LIFETIME, limit):
        project = (await accounts.projects(tx, [row["project_id"]]))[row["project_id"]]
        query = sql.pending_of_key if row["is_key"] else sql.pending_of_channel
        reason = RejectionReason.KEY_REVOKED if row["is_key"] else RejectionReason.CHANNEL_UNAVAILABLE
        ended += await _end_pending(tx, query, reason, project, row["id"], now)
    return ended


async def _end_pending(
    tx: Tx, query: str, reason: RejectionReason, project: Project, of: str, at: datetime
) -> list[str]:
    found = [read_row(row) for row in await tx.rows(query, project.id, of, _AT_ONCE)]
    await reject(tx, found, reason, projects={project.id: project}, at=at)
    return [intent.id for intent in found]
