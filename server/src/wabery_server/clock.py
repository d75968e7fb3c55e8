"""Business time: when an intent expires, when a retry is due. Tests and `wabery dev` move it; nothing sleeps on it.

Signatures, TLS, leases and rate limits use wall time and do not come here.
"""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """The moment, aware, UTC."""


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


class MovableClock:
    """The system's clock plus an offset that somebody moves."""

    def __init__(self, offset: timedelta = timedelta(0)) -> None:
        self.offset = offset

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def move(self, by: timedelta) -> None:
        self.offset += by


def up_to_the_millisecond(moment: datetime) -> datetime:
    """The moment, or the next whole millisecond after it: what is compared is what `iso` shows."""
    return moment + timedelta(microseconds=-moment.microsecond % 1000)


def iso(moment: datetime) -> str:
    """The contract's time: ISO 8601, UTC, milliseconds, `Z` (2026-06-27T00:00:00.000Z)."""
    since = moment - _EPOCH
    return f"{_to_the_second(since.days, since.seconds)}.{since.microseconds // 1000:03}Z"


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(64)
def _to_the_second(days: int, seconds: int) -> str:
    return (_EPOCH + timedelta(days, seconds)).isoformat()[:-6]
