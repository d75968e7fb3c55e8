"""First statistics: until a table has been analysed with rows in it, PostgreSQL guesses, and kept plans keep its guesses.

Of two indexes that begin with project_id it may then take the one that reads the whole project. Autovacuum would come by
within a minute; a new installation that is put under load at once does not wait for it.
"""

from collections.abc import Sequence

from wabery_server.db import Tx

_ENOUGH_BYTES = 16_384
"""Some fifty rows: fewer are read quickly by any plan, and say little about the many to come."""
# A table that was analysed and found empty is worth another look only when something has been written since.
_NOTHING_KNOWN = """
select c.oid::regclass::text as name from pg_class c
where c.relnamespace = current_schema()::regnamespace and c.relkind = 'r'
  and (c.reltuples < 0 or c.reltuples = 0 and pg_stat_get_mod_since_analyze(c.oid) > 0)
  and pg_has_role(c.relowner, 'usage') and pg_relation_size(c.oid) >= $1 and c.relname <> all($2::text[])"""


async def gather(tx: Tx, except_for: Sequence[str] = ()) -> list[str]:
    """Analyses the tables that have grown since they were empty, so that every plan is made again; returns their names."""
    names = [row["name"] for row in await tx.rows(_NOTHING_KNOWN, _ENOUGH_BYTES, list(except_for))]
    for name in names:
        await tx.run(f"analyze (skip_locked) {name}")
    return names
