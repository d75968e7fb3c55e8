"""`wabery projects`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wabery import NOT_GIVEN
from wabery.cli._connect import connected
from wabery.cli._exit import CommandError, Exit
from wabery.cli._framework import ACCESS, OUTPUT, PAGES, Access, Choice, Flag, Output, Pages
from wabery.cli._listing import listed, most
from wabery.cli._terminal import Terminal
from wabery.cli._values import if_given, json_object, seconds

if TYPE_CHECKING:
    from wabery import Project


def list_(*, pages: Pages = PAGES, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """List the projects this key may see."""
    limit = most(pages, output)
    with connected(access) as client:
        return listed(
            lambda size: client.projects.list(limit=size),
            ("id", "name", "livemode", "created_at"),
            pages,
            output,
            limit=limit,
        )


def get(project_id: str, /, *, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """Show a project. Its webhook secret is there when the key may change projects.

    Parameters
    ----------
    project_id
        Such as proj_01jz….
    """
    with connected(access) as client:
        _show(Terminal(output), client.projects.get(project_id))
    return Exit.OK


def create(*, name: str, live: Flag = False, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """Found a project and print its first key, which is never shown again. A test project has a sandbox number at once.

    Parameters
    ----------
    name
        What people call it.
    live
        A live project, with wab_live_ keys, instead of a test one. It stays so. Needs a live key.
    """
    terminal = Terminal(output)
    with connected(access) as client:
        made = client.projects.create(name=name, livemode=live)
    key = made.to_dict()["api_key"]
    if output.json:
        terminal.json(made.to_dict())
    else:
        terminal.line(key["key"])
    terminal.warn(
        f"This is the only time {key['id']} of {made.id} is shown. Keep it out of browsers and repositories."
    )
    terminal.talk(f"Next: wabery login --profile {made.id}, and paste the key.")
    return Exit.OK


def update(
    project_id: str,
    /,
    *,
    name: str | None = None,
    webhook_url: str | None = None,
    webhook_secret: str | None = None,
    prefilled_text: str | None = None,
    prefilled_texts: str | None = None,
    publishable_expires_in: str | None = None,
    secret_expires_in: str | None = None,
    supersede: Choice = None,
    unsigned_references: str | None = None,
    on_identity_linked: str | None = None,
    on_reference_linked: str | None = None,
    references_per_contact: int | None = None,
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
        The signing secret. Other users of this machine may see it in the list of processes; `rotate-webhook-secret` has
        the server make one.
    prefilled_text
        What the person sends, with {token} in it.
    prefilled_texts
        JSON object of such texts by language.
    publishable_expires_in
        How long a link minted with a publishable key lives, such as 30m.
    secret_expires_in
        How long a link minted with a secret key lives, such as 24h.
    supersede
        Whether a sixth pending intent of a user ends the oldest, or is refused.
    unsigned_references
        What browsers may mint: accept or refuse.
    on_identity_linked
        When a WhatsApp account is linked to another user already: reject, replace or allow.
    on_reference_linked
        When a user is linked to another WhatsApp account already: replace or reject.
    references_per_contact
        How many users one WhatsApp account may be, with --on-identity-linked allow.
    """
    texts = json_object("--prefilled-texts", prefilled_texts, '{"de":"Mein Konto verbinden: {token}"}')
    changed = (
        name,
        webhook_url,
        webhook_secret,
        prefilled_text,
        texts,
        publishable_expires_in,
        secret_expires_in,
    ) + (supersede, unsigned_references, on_identity_linked, on_reference_linked, references_per_contact)
    if all(value is None for value in changed):
        raise CommandError("Nothing to change was named.", "See `wabery projects update --help`.")
    browsers = seconds("--publishable-expires-in", publishable_expires_in)
    servers = seconds("--secret-expires-in", secret_expires_in)
    with connected(access) as client:
        project = client.projects.update(
            project_id,
            name=if_given(name),
            webhook_url=NOT_GIVEN if webhook_url is None else webhook_url or None,
            webhook_secret=if_given(webhook_secret),
            prefilled_text=if_given(prefilled_text),
            prefilled_texts=if_given(texts),
            publishable_expires_in=if_given(browsers),
            secret_expires_in=if_given(servers),
            supersede=if_given(supersede),
            unsigned_references=if_given(unsigned_references),
            on_identity_linked=if_given(on_identity_linked),
            on_reference_linked=if_given(on_reference_linked),
            references_per_contact=if_given(references_per_contact),
        )
        _show(Terminal(output), project, without="webhook_secret")
    return Exit.OK


def rotate_webhook_secret(project_id: str, /, *, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """Have the server make a new signing secret and print it. The old one ends at once.

    Deliveries that your receiver refuses until it knows the new one are sent again.

    Parameters
    ----------
    project_id
        Such as proj_01jz….
    """
    terminal = Terminal(output)
    with connected(access) as client:
        project = client.projects.rotate_webhook_secret(project_id)
    if output.json:
        terminal.json(project.to_dict())
    else:
        terminal.line(str(project.webhook_secret))
        terminal.talk("Next: give it to your receiver; what it refuses until then is sent again.")
    return Exit.OK


def _show(terminal: Terminal, project: Project, *, without: str | None = None) -> None:
    if terminal.as_json:
        terminal.json(project.to_dict())
    else:
        terminal.fields({name: value for name, value in project.to_dict().items() if name != without})
