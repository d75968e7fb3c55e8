"""What stands between us and PostgreSQL: nothing, a pooler that keeps sessions, or one that does not.

A lane prepares statements and sets session parameters once. A pooler in transaction mode gives each transaction another
session, so both would be missing, or another client's. That is found out before anything is served.
"""

import asyncpg

from wabery_server.db import Row, Source

_ROUNDS = 3


class TransactionPooling(Exception):
    """A pooler between us and the database changes sessions under its clients."""


async def check(source: Source) -> None:
    """Raises TransactionPooling, or what a connection raises; learns whether `source` must set its parameters itself.

    Without a pooler, the process id of the greeting is the session's own. Else two connections that are open at once must
    keep two different sessions.
    """
    one = await _connect(source)
    try:
        if await _session(one) == one.get_server_pid():
            source.pooled = False
            return
        source.pooled = True
        other = await _connect(source)
        try:
            seen = [(await _session(one), await _session(other)) for _ in range(_ROUNDS)]
        finally:
            await other.close(timeout=2)
    except (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError) as failure:
        raise TransactionPooling from failure
    except asyncpg.ConnectionDoesNotExistError as failure:
        if "statement pooling" in str(failure):  # PgBouncer's answer to a begin
            raise TransactionPooling from failure
        raise
    finally:
        await one.close(timeout=2)
    ours, others = ({pair[place] for pair in seen} for place in (0, 1))
    if len(ours) > 1 or len(others) > 1 or ours == others:
        raise TransactionPooling


async def _connect(source: Source) -> "asyncpg.Connection[Row]":
    """Without session parameters, which some poolers reject, and without named statements, which others mix up."""
    return await asyncpg.connect(
        source.dsn, **source.parts, timeout=5, command_timeout=5, statement_cache_size=0
    )


async def _session(connection: "asyncpg.Connection[Row]") -> int:
    """The process id of the session, in a transaction, since outside of one each message may go to another session."""
    async with connection.transaction():
        return int(await connection.fetchval("select pg_backend_pid()"))
