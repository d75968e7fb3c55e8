"""What the database holds, so that a test can say that nothing has changed."""

from typing import TypeAlias

from wabery_server.db import Database, Tx

Holdings: TypeAlias = dict[str, list[str]]
"""By table: each row as text."""

_LAZY = {"api_key_uses"}
"""Written some seconds after a call, to remember when a key was used last."""
_TABLES = """
select table_name as name, bool_or(column_name = 'project_id') as by_project
from information_schema.columns where table_schema = 'public' group by table_name order by table_name
"""


async def holdings(database: Database, project_id: str | None = None) -> Holdings:
    """Every row of every table; with `project_id` those of one project."""

    async def read(tx: Tx) -> Holdings:
        found: Holdings = {}
        for table in await tx.rows(_TABLES):
            name = table["name"]
            if name in _LAZY:
                continue
            which = "project_id" if table["by_project"] else "id" if name == "projects" else None
            if project_id is None:
                rows = await tx.rows(f"select t::text from {name} t order by 1")
            elif which is not None:
                rows = await tx.rows(
                    f"select t::text from {name} t where {which} = $1 order by 1", project_id
                )
            else:
                continue
            found[name] = [row[0] for row in rows]
        return found

    return await database.run(read)
