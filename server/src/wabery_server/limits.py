"""Rate limits in this process's memory: the generic cell rate algorithm (GCRA, ITU-T I.371), wall time.

Each limit remembers one number per key: when the key's bucket will be empty again. Of the key it keeps the hash, 64 bits that
cannot be predicted outside this process. Memory is bounded; a key that has been idle for its window costs nothing.

A request that counts against several limits is counted by `take_all`, so that a refusal by one of them costs nothing with
the others: one client address can never use up a quota that all visitors share.
"""

import math
import time
from collections.abc import Callable, Hashable

from msgspec import Struct

_MAX_KEYS = 20_000


class Allowance(Struct, frozen=True):
    """What one limit says of one request."""

    limit: "Limit"
    reset: float
    """Seconds until the whole quota is there again."""
    retry_after: float = 0.0
    """Seconds until the next request is welcome; 0 when this one was."""

    @property
    def allowed(self) -> bool:
        return self.retry_after == 0.0

    @property
    def name(self) -> str:
        return self.limit.name

    @property
    def remaining(self) -> int:
        return max(0, int((self.limit.window - self.reset) / self.limit.step + 1e-6))

    def headers(self) -> list[tuple[bytes, bytes]]:
        """`RateLimit-Policy` and `RateLimit` (IETF draft-ietf-httpapi-ratelimit-headers-11).

        A refusal's `t` is the moment that its `Retry-After` names. A silent limit has none.
        """
        if self.limit.silent:
            return []
        reset = math.ceil(self.retry_after or self.reset)
        return [
            (b"ratelimit-policy", self.limit.policy),
            (b"ratelimit", f'"{self.limit.name}";r={self.remaining};t={reset}'.encode()),
        ]


class Limit:
    """`quota` requests per `window` seconds for each key, in a burst or spread out.

    A `silent` limit sends no headers: what is left of it would tell one caller about others.
    """

    def __init__(
        self,
        name: str,
        quota: int,
        window: int,
        *,
        silent: bool = False,
        now: Callable[[], float] = time.monotonic,
        max_keys: int = _MAX_KEYS,
    ) -> None:
        self.name = name
        self.silent = silent
        self.window = window
        """Seconds."""
        self.step = window / quota
        """Seconds that one request takes up."""
        self.policy = f'"{name}";q={quota};w={window}'.encode()
        self._now = now
        self._full_at: dict[int, float] = {}
        self._max_keys = max_keys

    def take(self, key: Hashable, cost: int = 1) -> Allowance:
        """Counts a request of this key, unless it is one too many."""
        now = self._now()
        taken = self.step * cost
        hashed = hash(key)
        before = self._full_at.get(hashed)
        used = taken if before is None or before < now else before - now + taken
        # A float's rounding must not refuse the last request of a quota.
        if used - self.window > 1e-6:
            return Allowance(self, used - taken, used - self.window)
        if before is None and len(self._full_at) >= self._max_keys:
            self._make_room(now)
        self._full_at[hashed] = now + used
        return Allowance(self, used)

    def give_back(self, key: Hashable) -> None:
        """Uncounts a request that `take` has counted."""
        if (hashed := hash(key)) in self._full_at:
            self._full_at[hashed] -= self.step

    def peek(self, key: Hashable, cost: int = 1) -> bool:
        """Whether `take` would count; counts nothing."""
        now = self._now()
        return max(self._full_at.get(hash(key), now), now) + self.step * cost - now - self.window <= 1e-6

    def _make_room(self, now: float) -> None:
        """Forgets the idle keys; when all are busy, the half that recovers first."""
        busy = {key: at for key, at in self._full_at.items() if at > now}
        if len(busy) > self._max_keys // 2:
            kept = sorted(busy.items(), key=lambda entry: entry[1])[len(busy) - self._max_keys // 2 :]
            busy = dict(kept)
        self._full_at = busy


def take_all(first: tuple[Limit, Hashable], *others: tuple[Limit, Hashable]) -> Allowance:
    """Counts one request against several limits, given with their keys, the narrowest first.

    Returns the refusal of the first limit that refuses, after giving back what the limits before it have counted; or
    else the allowance with the fewest requests left.
    """
    narrowest = first[0].take(first[1])
    if not narrowest.allowed:
        return narrowest
    taken = [first]
    for limit, key in others:
        allowance = limit.take(key)
        if not allowance.allowed:
            for counted, its_key in taken:
                counted.give_back(its_key)
            return allowance
        taken.append((limit, key))
        if narrowest.limit.silent or allowance.remaining < narrowest.remaining:
            narrowest = allowance
    return narrowest
