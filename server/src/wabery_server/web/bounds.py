"""Every limit of the HTTP server. Tests shorten them by arguments."""

import contextlib
import resource
from dataclasses import dataclass, field

from wabery_server import metrics

_MAX_CONNECTIONS = 50_000
"""However high the descriptor limit is: each connection also takes some 10 KiB of memory."""


def raise_descriptor_limit() -> None:
    """Raises this process's soft limit of descriptors to the hard one; most systems start processes with 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # a sandbox may forbid it; the soft limit then counts
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connection_limit() -> int:
    """How many client connections this process takes: 80 % of its descriptors. The rest is for the database and webhooks."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    return max(1, min(_MAX_CONNECTIONS, soft * 8 // 10))


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Limits of one server. Times are seconds, sizes are bytes."""

    connections: int = field(default_factory=connection_limit)
    """Open connections; above it the one that has waited longest for its client makes room, or the new one gets 503."""
    head: int = 32_768
    """A request's line and headers."""
    chunk_line: int = 1_024
    """A chunk's size with its extensions; a trailer line too."""
    trailers: int = 8_192
    """The chunk extensions of one body, or its trailers, together."""
    ahead: int = 65_536
    """Body bytes that the application has not asked for yet; reading pauses above it."""
    drained: int = 65_536
    """Bytes of a body nobody reads that are skipped to keep the connection; above it the connection is closed."""
    bodies: int = 33_554_432
    """Bodies of all requests being received or handled, those apart that came in one read."""
    first_byte: float = 10.0
    """From the connection to its first byte."""
    head_seconds: float = 10.0
    """From a request's first byte to the end of its head."""
    idle: float = 75.0
    """From an answer to the next request."""
    body_stall: float = 30.0
    """For the next `body_progress` bytes of a body that the application waits for."""
    body_progress: int = 4_096
    body_seconds: float = 300.0
    """For a whole body."""
    write_stall: float = 30.0
    """For a client to read anything of an answer."""
    linger: float = 2.0
    """From an early refusal to the end of the connection, so that the client can read the answer first."""


TOO_MANY_CONNECTIONS = metrics.bound(
    "http_connections_over_limit",
    "Connections refused, or closed to make room, because the limit was reached.",
)
NO_FIRST_BYTE = metrics.bound(
    "http_silent_connections", "Connections closed because no byte arrived in time."
)
SLOW_HEAD = metrics.bound(
    "http_slow_heads", "Requests answered 408 because their head was not complete in time."
)
LARGE_HEAD = metrics.bound("http_large_heads", "Requests answered 431 because their head was too large.")
BAD_REQUEST = metrics.bound("http_bad_requests", "Requests answered 400 because they are not valid HTTP.")
SLOW_BODY = metrics.bound("http_slow_bodies", "Requests answered 408 because their body stalled.")
BODY_MEMORY = metrics.bound(
    "http_body_memory", "Requests answered 503 because the bodies being received took too much memory."
)
SLOW_READER = metrics.bound(
    "http_slow_readers", "Connections cut because the client did not read its answer."
)
UNREAD_BODY = metrics.counter(
    "http_unread_bodies", "Connections closed after an early answer because a large body was still to come."
)
