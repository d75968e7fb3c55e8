"""Signed webhook changes that no channel could receive: a mistyped phone_number_id, or another app's secret.

The provider gets its 200, since a repetition would bring the same change. So that nothing is dropped in silence, each
number is logged, counted and stored for `wabery doctor`.
"""

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

import asyncpg
from msgspec import Struct

from wabery_server import errors, logs, metrics
from wabery_server.db import Database, Tx, queries

sql = queries.beside(__file__)

DROPPED = metrics.counter("inbound_changes_dropped", "Signed webhook changes that no channel could receive.")
_MOST_STORED = 1000
_KEPT = timedelta(days=30)


class Unroutable(Struct, frozen=True, kw_only=True):
    """Changes that were dropped for one number and reason."""

    provider: str
    phone_number_id: str
    """As the webhook named it; empty when it named none."""
    reason: str
    """`unknown_number`: no channel has this id. `other_secret`: the channel has another app's secret. `no_number`: a
    change of messages that names no number."""
    changes: int
    first_at: datetime
    last_at: datetime


async def any_unroutable(tx: Tx, *, since: datetime, limit: int) -> list[Unroutable]:
    """Those of the whole installation, the latest first, without numbers that have got a channel since."""
    return [Unroutable(**row) for row in await tx.rows(sql.any_unroutable, since, limit)]


class UnroutableChanges:
    """Notes what is dropped. A flood costs one log line and one small write for each number in `every` seconds, for at
    most `most` numbers at a time; what comes in between is counted and noted next time."""

    def __init__(
        self,
        database: Database,
        *,
        every: float = 600,
        most: int = 100,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._every = every
        self._most = most
        self._now = now
        self._noted: dict[tuple[str, str, str], tuple[float, int]] = {}
        """When a provider's number and reason was noted, and how many changes came since; the oldest first."""

    async def note(
        self, provider: str, changes: Mapping[tuple[str, str], int], *, request_id: str, at: datetime
    ) -> None:
        """`changes`: how many, by phone_number_id and reason. Never fails: what cannot be written is logged."""
        now = self._now()
        for (phone_number_id, reason), count in changes.items():
            DROPPED.add(count)
            key = (provider, phone_number_id, reason)
            noted_at, waiting = self._noted.get(key, (now - self._every, 0))
            if now - noted_at < self._every:
                self._noted[key] = (noted_at, waiting + count)
            elif key in self._noted or self._has_room(now):
                self._noted.pop(key, None)
                self._noted[key] = (now, 0)
                await self._tell(key, waiting + count, request_id, at)

    def _has_room(self, now: float) -> bool:
        while self._noted:
            oldest = next(iter(self._noted))
            if len(self._noted) < self._most:
                return True
            if now - self._noted[oldest][0] < self._every:
                return False
            del self._noted[oldest]
        return True

    async def _tell(self, key: tuple[str, str, str], count: int, request_id: str, at: datetime) -> None:
        provider, phone_number_id, reason = key
        logs.line(
            "inbound",
            request_id=request_id,
            outcome="foreign_change",
            phone_number_id=phone_number_id or None,
            reason=reason,
            count=count,
        )

        async def write(tx: Tx) -> None:
            await tx.run(sql.forget, at - _KEPT)
            await tx.run(sql.note, provider, phone_number_id[:64], reason, count, at, at, _MOST_STORED)

        try:
            await self._database.run(write, deadline=timedelta(seconds=2))
        except (errors.Unavailable, asyncpg.PostgresError) as failure:
            logs.log.warning("unroutable_not_stored", extra={"facts": {"error": type(failure).__name__}})
