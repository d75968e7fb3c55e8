"""What a failure of the database means for the transaction that met it: one table for lanes, pool, batchers and edges.

The table goes by SQLSTATE (PostgreSQL, appendix A), the longest entry first; what it does not name is a bug of ours. The
driver's own exceptions have no SQLSTATE: for them it matters whether the connection is still open.
"""

import enum

import asyncpg

from wabery_server import errors


class Verdict(enum.Enum):
    REPEAT = enum.auto()
    """The transaction lost a race: run it again, on the same connection."""
    LOCKED = enum.auto()
    """A row stays locked: run it again where it holds up no other."""
    RECONNECT = enum.auto()
    """The connection is lost, or its server cannot be written to: run it again on another one."""
    UNAVAILABLE = enum.auto()
    """The database refuses at this time, and its connection is sound: 503 at once."""
    DATA = enum.auto()
    """The database refuses a value or a row: the only failures that a message or request may have caused itself."""
    BUG = enum.auto()
    """Our own fault: 500 with a stack trace, at once."""


class Conflict(Exception):
    """Another transaction wrote what this one had read: run it again."""


BY_SQLSTATE: dict[str, Verdict] = {
    "08": Verdict.UNAVAILABLE,  # a sharded database says so of one of its nodes, on a sound connection
    "22": Verdict.DATA,
    "23": Verdict.DATA,
    "25006": Verdict.RECONNECT,  # read only: the old primary of a failover
    "25P03": Verdict.RECONNECT,  # this process was frozen inside a transaction, and its session was ended
    "25P04": Verdict.RECONNECT,
    "26": Verdict.RECONNECT,  # a pooler has given us another session, without our prepared statements
    "28": Verdict.UNAVAILABLE,  # the password or the rights to connect have been changed
    "3D": Verdict.UNAVAILABLE,
    "40": Verdict.REPEAT,
    "53": Verdict.UNAVAILABLE,  # disk full, out of memory
    "53300": Verdict.RECONNECT,  # too many connections: only a new one is refused so
    "55P03": Verdict.LOCKED,
    "57": Verdict.UNAVAILABLE,
    "57014": Verdict.UNAVAILABLE,  # cancelled, by statement_timeout or by a person
    "57P01": Verdict.RECONNECT,
    "57P02": Verdict.RECONNECT,
    "57P03": Verdict.RECONNECT,
    "57P04": Verdict.RECONNECT,
    "57P05": Verdict.RECONNECT,
    "58": Verdict.UNAVAILABLE,  # the system below it: an I/O error, a missing file
    "72": Verdict.REPEAT,
    "F0": Verdict.UNAVAILABLE,
    "XX": Verdict.UNAVAILABLE,  # also what a sharded database says of a lost node
}

_LOST = (OSError, TimeoutError)
"""Of the connection itself; the built-in ConnectionError is an OSError."""


def verdict(failure: BaseException, *, connected: bool = False) -> Verdict:
    """What `failure` means. `connected`: whether the connection on which it happened is still open."""
    match failure:
        case Conflict() | asyncpg.InvalidCachedStatementError() | asyncpg.OutdatedSchemaCacheError():
            return (
                Verdict.REPEAT
            )  # the last two: a migration has changed a table, and the driver has forgotten its plans
        case asyncpg.PostgresError():
            return _by_sqlstate(failure.sqlstate, connected=connected)
        case asyncpg.TargetServerAttributeNotMatched():
            return Verdict.RECONNECT
        case asyncpg.InterfaceError() if isinstance(failure, ValueError):
            return Verdict.DATA  # a value that the driver cannot send
        case asyncpg.InterfaceError() | asyncpg.InternalClientError():
            return Verdict.BUG if connected else Verdict.RECONNECT
        case OSError() | TimeoutError():
            return Verdict.RECONNECT
    return Verdict.BUG


def caused_by_data(failure: BaseException) -> bool:
    """Whether the message or request in work may be at fault itself: its data was refused, or our own code failed on it.

    Of any other failure the sender must hear, and send it again later.
    """
    if isinstance(failure, asyncpg.PostgresError | asyncpg.InterfaceError | asyncpg.InternalClientError):
        return verdict(failure, connected=True) is Verdict.DATA
    return not isinstance(failure, (*_LOST, Conflict))


def contended(failure: BaseException) -> bool:
    """Whether only some rows are in the way, locked or written by others at the same time, and not the whole database."""
    cause = failure.__cause__ if isinstance(failure, errors.WaberyError) else failure
    return cause is not None and verdict(cause) in (Verdict.LOCKED, Verdict.REPEAT)


def ends_connection(failure: BaseException, *, connected: bool) -> bool:
    """Whether the connection must not be used again: its state, or its server's, is unknown."""
    if not isinstance(failure, Exception) or isinstance(failure, _LOST):
        return True  # cancelled in the middle of a statement, or timed out
    if isinstance(failure, asyncpg.InterfaceError | asyncpg.InternalClientError):
        return verdict(failure, connected=connected) is not Verdict.DATA
    return verdict(failure, connected=connected) is Verdict.RECONNECT


def sqlstate(failure: BaseException) -> str | None:
    """For the log; None when the failure has none."""
    return failure.sqlstate if isinstance(failure, asyncpg.PostgresError) else None


def _by_sqlstate(state: str | None, *, connected: bool) -> Verdict:
    if state is None:
        return Verdict.BUG if connected else Verdict.RECONNECT
    if state.startswith("08") and not connected:
        return Verdict.RECONNECT
    return BY_SQLSTATE.get(state) or BY_SQLSTATE.get(state[:2]) or Verdict.BUG
