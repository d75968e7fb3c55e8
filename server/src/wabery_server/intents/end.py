"""Ending an intent without a message: cancelled, superseded, expired, its key revoked, its channel deleted."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

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
"""Pending intents that one look at a key's or channel's reads."""
_HEARD_AFTER = timedelta(minutes=1)
"""When every process has heard that a key or channel has ended; it needs two seconds. What is minted by one that was
stopped for longer ends with its message (`judge`), or expires."""


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
    await _end_pending(tx, project, [key_id], [], after=_BEGINNING, at=at)
    return key


async def retire_channel(
    tx: Tx, project: Project, channel_id: str, *, actor: str, at: datetime
) -> accounts.Channel:
    """Deletes a channel and ends what was minted for it; the rest as in `revoke_key`."""
    channel = await accounts.delete_channel(tx, project.id, channel_id, actor=actor, at=at)
    await _end_pending(tx, project, [], [channel_id], after=_BEGINNING, at=at)
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


class Minter(NamedTuple):
    """A revoked key or a deleted channel whose pending intents have not all been looked for."""

    project_id: str
    id: str
    ended_at: datetime
    is_key: bool


class Ended(NamedTuple):
    """What a look has done."""

    intent_ids: list[str]
    after: datetime | None
    """Where the next one begins; None: all have been looked at."""
    whole: bool
    """Whether everything it found has ended; others may hold some."""


async def ended_minters(tx: Tx, limit: int) -> dict[str, list[Minter]]:
    """By project, the revoked keys and deleted channels that `end_orphans` has to look at."""
    found: dict[str, list[Minter]] = {}
    for row in await tx.rows(sql.any_ended_with_pending, limit):
        found.setdefault(row["project_id"], []).append(Minter(*row))
    return found


async def end_orphans(
    tx: Tx,
    project_id: str,
    of: Sequence[Minter],
    now: datetime,
    *,
    after: datetime | None = None,
    whole: bool = True,
    at_once: int = _AT_ONCE,
) -> Ended:
    """Ends pending intents of revoked keys and deleted channels of a project, among the next few of all its pending ones.

    Begin without `after` and go on until there is none; `whole` says whether the looks before this one were. Looks that
    end them all are the last ones for these keys and channels, once every process must have heard that they have ended:
    until then a process may still mint with one.
    """
    project = (await accounts.projects(tx, [project_id]))[project_id]
    keys, channels = [[one.id for one in of if one.is_key is is_key] for is_key in (True, False)]
    ended = await _end_pending(
        tx, project, keys, channels, after=after or _BEGINNING, at=now, at_once=at_once
    )
    if ended.after is None and whole and ended.whole:
        for one in of:
            if now >= one.ended_at + _HEARD_AFTER:
                clear = accounts.clear_key if one.is_key else accounts.clear_channel
                await clear(tx, project_id, one.id, now)
    return ended


_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


async def _end_pending(
    tx: Tx,
    project: Project,
    keys: Sequence[str],
    channels: Sequence[str],
    *,
    after: datetime,
    at: datetime,
    at_once: int = _AT_ONCE,
) -> Ended:
    seen = await tx.rows(sql.pending_of, project.id, after, at_once, keys, channels)
    wanted = [row["id"] for row in seen if row["matches"]]
    found = [read_row(row) for row in await tx.rows(sql.lock_pending, project.id, wanted)] if wanted else []
    for reason, some in (
        (RejectionReason.KEY_REVOKED, [one for one in found if one.api_key_id in keys]),
        (RejectionReason.CHANNEL_UNAVAILABLE, [one for one in found if one.api_key_id not in keys]),
    ):
        if some:
            await reject(tx, some, reason, projects={project.id: project}, at=at)
    after_these = seen[-1]["expires_at"] if len(seen) >= at_once else None
    return Ended([intent.id for intent in found], after_these, len(found) == len(wanted))
