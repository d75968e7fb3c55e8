"""`wabery projects`."""

from __future__ import annotations

from wabery import NOT_GIVEN, Project
from wabery.cli._connect import connected
from wabery.cli._exit import CommandError, Exit
from wabery.cli._framework import ACCESS, OUTPUT, Access, Flag, Output
from wabery.cli._listing import listed, page_size
from wabery.cli._terminal import Terminal


def list_(*, limit: int = 20, jsonl: Flag = False, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """List the projects this key may see.

    Parameters
    ----------
    limit
        How many at most.
    jsonl
        One JSON object per line.
    """
    size = page_size(limit)
    with connected(access) as client:
        page = client.projects.list(limit=size)
        return listed(
            Terminal(output), page, ("id", "name", "livemode", "created_at"), limit=limit, jsonl=jsonl
        )


def get(project_id: str, /, *, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """Show a project. Its webhook secret is there when the key may change projects."""
    with connected(access) as client:
        _show(Terminal(output), client.projects.get(project_id))
    return Exit.OK


def update(
    project_id: str,
    /,
    *,
    name: str | None = None,
    webhook_url: str | None = None,
    webhook_secret: str | None = None,
    output: Output = OUTPUT,
    access: Access = ACCESS,
) -> int:
    """Change a project's settings; what is not named stays.

    Parameters
    ----------
    project_id
        Such as proj_01jz….
    name
        What people call it.
    webhook_url
        Where events are sent; "" stops them.
    webhook_secret
        The signing secret. Other users of this machine may see it in the list of processes.
    """
    if name is None and webhook_url is None and webhook_secret is None:
        raise CommandError("Nothing to change was named.", "See `wabery projects update --help`.")
    with connected(access) as client:
        project = client.projects.update(
            project_id,
            name=NOT_GIVEN if name is None else name,
            webhook_url=NOT_GIVEN if webhook_url is None else webhook_url or None,
            webhook_secret=NOT_GIVEN if webhook_secret is None else webhook_secret,
        )
        _show(Terminal(output), project, without="webhook_secret")
    return Exit.OK


def _show(terminal: Terminal, project: Project, *, without: str | None = None) -> None:
    if terminal.as_json:
        terminal.json(project.to_dict())
    else:
        terminal.fields({name: value for name, value in project.to_dict().items() if name != without})
