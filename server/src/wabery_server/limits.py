"""Rate limits in this process's memory: the generic cell rate algorithm (GCRA, ITU-T I.371), wall time.

Each limit remembers one number per key: when the key's bucket will be empty again. Memory is bounded; a key that has
been idle for its window costs nothing.
"""

import math
import time
from collections.abc import Callable, Hashable
from typing import NamedTuple

_MAX_KEYS = 100_000


class Allowance(NamedTuple):
    """What one limit says of one request."""

    name: str
    quota: int
    """Requests per window."""
    window: int
    """Seconds."""
    allowed: bool
    remaining: int
    reset: float
    """Seconds until the whole quota is there again."""
    retry_after: float
    """Seconds until the next request is welcome; 0 when this one was."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """`RateLimit-Policy` and `RateLimit` (IETF draft-ietf-httpapi-ratelimit-headers-11).

        A refusal's `t` is the moment that its `Retry-After` names.
        """
        name, left = self.name, self.remaining
        reset = math.ceil(self.reset if self.allowed else self.retry_after)
        return [
            (b"ratelimit-policy", b'"%s";q=%d;w=%d' % (name.encode(), self.quota, self.window)),
            (b"ratelimit", b'"%s";r=%d;t=%d' % (name.encode(), left, reset)),
        ]


class Limit:
    """`quota` requests per `window` seconds for each key, in a burst or spread out."""

    def __init__(
        self,
        name: str,
        quota: int,
        window: int,
        *,
        now: Callable[[], float] = time.monotonic,
        max_keys: int = _MAX_KEYS,
    ) -> None:
        self.name = name
        self.quota = quota
        self.window = window
        self._now = now
        self._step = window / quota
        self._full_at: dict[Hashable, float] = {}
        self._max_keys = max_keys

    def take(self, key: Hashable, cost: int = 1) -> Allowance:
        """Counts a request of this key, unless it is one too many."""
        now = self._now()
        full_at = max(self._full_at.get(key, now), now) + self._step * cost
        over = full_at - now - self.window
        # A float's rounding must not refuse the last request of a quota.
        if over > 1e-6:
            used = full_at - now - self._step * cost
            return Allowance(self.name, self.quota, self.window, False, self._left(used), used, over)
        if len(self._full_at) >= self._max_keys and key not in self._full_at:
            self._make_room(now)
        self._full_at[key] = full_at
        used = full_at - now
        return Allowance(self.name, self.quota, self.window, True, self._left(used), used, 0.0)

    def give_back(self, key: Hashable) -> None:
        """Uncounts a request that has been counted, because it turned out to be none."""
        if key in self._full_at:
            self._full_at[key] -= self._step

    def peek(self, key: Hashable, cost: int = 1) -> bool:
        """Whether `take` would count; counts nothing."""
        now = self._now()
        return max(self._full_at.get(key, now), now) + self._step * cost - now - self.window <= 1e-6

    def _left(self, used: float) -> int:
        return max(0, int((self.window - used) / self._step + 1e-6))

    def _make_room(self, now: float) -> None:
        """Forgets the idle keys; when all are busy, the half that recovers first."""
        busy = {key: at for key, at in self._full_at.items() if at > now}
        if len(busy) > self._max_keys // 2:
            kept = sorted(busy.items(), key=lambda entry: entry[1])[len(busy) - self._max_keys // 2 :]
            busy = dict(kept)
        self._full_at = busy
