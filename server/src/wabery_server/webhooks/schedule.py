"""The published schedule: 13 attempts over three days, and what a receiver's `Retry-After` changes about it.

Not earlier than, counted from the first attempt: 2s, 12s, 42s, 2m42s, 12m42s, 42m42s, 2h42m42s, 7h42m42s, 17h42m42s,
31h42m42s, 51h42m42s, 75h42m42s; with the most jitter the last one comes after 90 h 51 m.
"""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

DELAYS = (
    timedelta(seconds=2),
    timedelta(seconds=10),
    timedelta(seconds=30),
    timedelta(minutes=2),
    timedelta(minutes=10),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
    timedelta(hours=20),
    timedelta(hours=24),
)
"""Before attempts 2 to 13."""
ATTEMPTS = len(DELAYS) + 1
JITTER = 0.2
"""Upwards only, so that no attempt comes earlier than published."""
LONGEST_HINT = timedelta(hours=24)


def delay_after(attempt: int, random: float) -> timedelta | None:
    """How long to wait after attempt number `attempt` (from 1) has failed; None after the last.

    `random` is uniform in [0, 1) and picks the jitter.
    """
    if attempt >= ATTEMPTS:
        return None
    return DELAYS[attempt - 1] * (1 + JITTER * random)


def next_due(attempt: int, now: datetime, random: float, hint: timedelta | None = None) -> datetime | None:
    """When to try again after `attempt` has failed; None after the last.

    A receiver's `hint` (Result.retry_after) makes it later, by 24 hours at most, and never earlier or more often.
    """
    delay = delay_after(attempt, random)
    if delay is None:
        return None
    if hint is not None:
        delay = max(delay, min(hint, LONGEST_HINT))
    return now + delay


def retry_after(value: str, now: datetime) -> timedelta | None:
    """`Retry-After` (RFC 9110, 10.2.3) as seconds or HTTP-date; None for anything else and for the past."""
    if value.isascii() and value.isdigit():
        # int() refuses more than 4,300 digits; ten are 300 years.
        wait = LONGEST_HINT if len(value) > 10 else timedelta(seconds=int(value))
    else:
        try:
            moment = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        # A date without a zone is GMT by the RFC.
        wait = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now
    return min(wait, LONGEST_HINT) if wait > timedelta(0) else None
