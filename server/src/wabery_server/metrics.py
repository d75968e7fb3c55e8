"""Counters in this process's memory, and bounds that are logged once per outage.

A counter is made where it is counted, at import, under a name of its own:

    REFUSED = metrics.counter("http_connections_refused", "Connections refused because the limit was reached.")
    REFUSED.add()

A bound is a counter that also writes a warning when it is first hit. Further hits are only counted, until the bound has not
been hit for `QUIET_SECONDS`: an attack is one line in the log, not one per connection.
"""

import time
from collections.abc import Callable

from wabery_server import logs

QUIET_SECONDS = 60.0

_counters: dict[str, "Counter"] = {}


class Counter:
    """A number that only grows; starts at 0 with the process."""

    __slots__ = ("explanation", "name", "value")

    def __init__(self, name: str, explanation: str) -> None:
        self.name = name
        self.explanation = explanation
        self.value = 0

    def add(self, number: int = 1) -> None:
        self.value += number


class Bound:
    """A limit that clients can hit: counted each time, logged once per outage."""

    __slots__ = ("_last", "_now", "counter")

    def __init__(self, counter: Counter, now: Callable[[], float]) -> None:
        self.counter = counter
        self._now = now
        self._last: float | None = None

    def hit(self, **facts: object) -> None:
        """Counts, and logs `facts` (ids, addresses, numbers) when this is the first hit of an outage."""
        self.counter.add()
        now, last = self._now(), self._last
        self._last = now
        if last is None or now - last >= QUIET_SECONDS:
            name, hits = self.counter.name, self.counter.value
            logs.log.warning("bound_reached", extra={"facts": {"bound": name, "hits": hits, **facts}})


def counter(name: str, explanation: str) -> Counter:
    """Registers a counter. Raises ValueError when the name is taken."""
    if name in _counters:
        raise ValueError(f"There are two counters named {name}.")
    made = _counters[name] = Counter(name, explanation)
    return made


def bound(name: str, explanation: str, *, now: Callable[[], float] = time.monotonic) -> Bound:
    """Registers a counter and returns it as a bound. Raises ValueError when the name is taken."""
    return Bound(counter(name, explanation), now)


def value(name: str) -> int:
    """The value of a counter. Raises KeyError when no counter has this name."""
    return _counters[name].value


def counters() -> list[Counter]:
    """Every counter of this process, by name."""
    return [_counters[name] for name in sorted(_counters)]
