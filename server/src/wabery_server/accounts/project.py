"""Projects: the tenants, each with its policy. `livemode` is fixed at creation and decides the prefix of its keys.

A project is made together with its default webhook endpoint, and a test project with its sandbox channel.
"""

import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal, NotRequired, TypedDict

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from wabery_server import errors, ids, tokens
from wabery_server.accounts.channel import NewChannel, create_channel, new_sandbox_channel
from wabery_server.accounts.endpoint import (
    Endpoint,
    insert_endpoint,
    new_default_endpoint,
    new_webhook_secret,
    shown_url,
    unseal_endpoint_secrets,
    update_default_endpoint,
)
from wabery_server.accounts.fields import Name
from wabery_server.accounts.trail import HIDDEN, audit
from wabery_server.clock import iso
from wabery_server.db import Row, Tx, queries
from wabery_server.secrets import Keyring, Unsealable

sql = queries.beside(__file__)


UnsignedReferences = Literal["accept", "refuse"]
OnIdentityLinked = Literal["reject", "replace", "allow"]
OnReferenceLinked = Literal["replace", "reject"]

ExpiresIn = Annotated[int, Meta(ge=60, le=604_800, description="Seconds.")]
Locale = Annotated[str, Meta(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8}){0,2}(?!\n)$")]
WebhookUrl = Annotated[
    str, Meta(description="https:// or, in test projects, http://.", extra_json_schema={"format": "uri"})
]
WebhookSecret = Annotated[
    str,
    Meta(
        min_length=8,
        max_length=256,
        description="8 to 256 printable characters, without white space at either end.",
        extra_json_schema={
            "pattern": r"^[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f](?!\n)$"
        },
    ),
]
PrefilledText = Annotated[
    str,
    Meta(
        description="One {token} by itself, no URL, and at most 140 characters once the token is filled in.",
        extra_json_schema={
            "maxLength": tokens.LONGEST_PREFILLED_TEXT - tokens.LENGTH + len(tokens.PLACEHOLDER)
        },
    ),
]


class PublicProject(TypedDict):
    object: Literal["project"]
    id: str
    organization_id: str
    name: str
    livemode: bool
    prefilled_text: str
    prefilled_texts: dict[str, str]
    publishable_expires_in: int
    secret_expires_in: int
    supersede: bool
    unsigned_references: UnsignedReferences
    on_identity_linked: OnIdentityLinked
    on_reference_linked: OnReferenceLinked
    references_per_contact: int
    created_at: str
    webhook_url: NotRequired[str | None]
    webhook_disabled_reason: NotRequired[str | None]
    webhook_secret: NotRequired[str]


class Project(Struct, frozen=True, kw_only=True):
    id: str
    organization_id: str
    name: str
    livemode: bool
    prefilled_text: str = f"Connect my account: {tokens.PLACEHOLDER}"
    prefilled_texts: dict[str, str] = {}
    """By locale."""
    publishable_expires_in: int = 30 * 60
    """Seconds that an intent of a publishable key lives, unless it says otherwise."""
    secret_expires_in: int = 24 * 60 * 60
    supersede: bool = True
    """Whether a sixth trusted intent for a reference ends the oldest pending one, instead of being rejected."""
    unsigned_references: UnsignedReferences = "accept"
    """Whether a publishable key may mint for a customer reference that the app has not signed."""
    on_identity_linked: OnIdentityLinked = "reject"
    """What happens when the person is linked to another reference."""
    on_reference_linked: OnReferenceLinked = "replace"
    """What happens when the reference is linked to another person and the registration is trusted."""
    references_per_contact: int = 10
    """With `allow`: how many references one person may hold."""
    created_at: datetime

    def prefilled(self, locale: str | None) -> str:
        """The text for a language tag, or for its language alone, or the default."""
        if locale is None or not self.prefilled_texts:
            return self.prefilled_text
        texts = self.prefilled_texts
        return texts.get(locale) or texts.get(locale.partition("-")[0]) or self.prefilled_text

    def public(
        self, endpoint: Endpoint | None = None, *, reveal_with: Keyring | None = None
    ) -> PublicProject:
        """As a list shows it; with its default endpoint as one project is shown, and with a keyring also its secret."""
        shown = PublicProject(
            object="project",
            id=self.id,
            organization_id=self.organization_id,
            name=self.name,
            livemode=self.livemode,
            prefilled_text=self.prefilled_text,
            prefilled_texts=self.prefilled_texts,
            publishable_expires_in=self.publishable_expires_in,
            secret_expires_in=self.secret_expires_in,
            supersede=self.supersede,
            unsigned_references=self.unsigned_references,
            on_identity_linked=self.on_identity_linked,
            on_reference_linked=self.on_reference_linked,
            references_per_contact=self.references_per_contact,
            created_at=iso(self.created_at),
        )
        if endpoint is not None:
            shown["webhook_url"] = endpoint.url
            shown["webhook_disabled_reason"] = endpoint.disabled_reason
            if reveal_with is not None:
                with contextlib.suppress(Unsealable):
                    shown["webhook_secret"] = unseal_endpoint_secrets(endpoint, reveal_with)[0]
        return shown


class ProjectDraft(Struct, kw_only=True, forbid_unknown_fields=True):
    """What it takes to found a project."""

    name: Name
    livemode: bool = False


class ProjectChanges(Struct, kw_only=True, forbid_unknown_fields=True):
    """What is set replaces what was there."""

    name: Name | UnsetType = UNSET
    webhook_url: WebhookUrl | None | UnsetType = UNSET
    """None: nothing is sent any more."""
    webhook_secret: WebhookSecret | UnsetType = UNSET
    prefilled_text: PrefilledText | UnsetType = UNSET
    prefilled_texts: Annotated[dict[Locale, PrefilledText], Meta(max_length=100)] | UnsetType = UNSET
    publishable_expires_in: ExpiresIn | UnsetType = UNSET
    secret_expires_in: ExpiresIn | UnsetType = UNSET
    supersede: bool | UnsetType = UNSET
    unsigned_references: UnsignedReferences | UnsetType = UNSET
    on_identity_linked: OnIdentityLinked | UnsetType = UNSET
    on_reference_linked: OnReferenceLinked | UnsetType = UNSET
    references_per_contact: Annotated[int, Meta(ge=1, le=1000)] | UnsetType = UNSET


class NewProject(Struct, frozen=True):
    project: Project
    endpoint: Endpoint
    sandbox: NewChannel | None


def new_project(organization_id: str, draft: ProjectDraft, *, keyring: Keyring, at: datetime) -> NewProject:
    project = Project(
        id=ids.new("proj", at),
        organization_id=organization_id,
        name=draft.name,
        livemode=draft.livemode,
        created_at=at,
    )
    endpoint = new_default_endpoint(project.id, new_webhook_secret(), keyring=keyring, at=at)
    return NewProject(project, endpoint, None if project.livemode else new_sandbox_channel(project.id, at))


async def create_project(
    tx: Tx, new: NewProject, *, keyring: Keyring, actor: str, at: datetime, most: int | None = None
) -> None:
    """Writes the project, its default endpoint and, for a test project, its sandbox channel. Safe to repeat.

    A project that a key creates belongs to the root of the key's own project: both share one part of the room for
    deliveries. `most` limits the test projects of a root; None: no limit. Raises errors.TooManyProjects.
    """
    project = new.project
    root = await _root_of(tx, actor)
    if most is not None and root is not None and not project.livemode:
        await _check_test_projects(tx, project, root, most)
    inserted = await tx.row(
        sql.insert_project,
        project.id,
        project.organization_id,
        project.name,
        project.livemode,
        project.prefilled_text,
        _json(project.prefilled_texts),
        project.publishable_expires_in,
        project.secret_expires_in,
        project.supersede,
        project.unsigned_references,
        project.on_identity_linked,
        project.on_reference_linked,
        project.references_per_contact,
        project.created_at,
        root,
    )
    if inserted is None:
        return
    detail = {"name": project.name, "livemode": project.livemode}
    await audit(
        tx,
        project_id=project.id,
        actor=actor,
        action="project.created",
        target=project.id,
        detail=detail,
        at=at,
    )
    await insert_endpoint(tx, new.endpoint)
    if new.sandbox is not None:
        await create_channel(tx, new.sandbox, keyring=keyring, actor=actor, at=at)


async def _root_of(tx: Tx, actor: str) -> str | None:
    """The root of what this actor creates; None: the operator creates projects that are roots themselves."""
    if not actor.startswith("key_"):
        return None
    row = await tx.row(sql.any_root_of_key, actor)
    return row["root_project_id"] if row else actor


async def _check_test_projects(tx: Tx, project: Project, root: str, most: int) -> None:
    await tx.row(sql.lock_root, root)  # so that two that create at once count one after the other
    row = await tx.row(sql.any_test_projects_of, root)
    assert row is not None
    if row["count"] >= most and project.id not in await projects(tx, [project.id]):
        raise errors.TooManyProjects(
            f"This key, together with the keys of the projects it created, has created {most} test projects."
        )


async def projects(tx: Tx, ids: Sequence[str]) -> dict[str, Project]:
    """By id; an unknown id is missing."""
    return {row["id"]: _project(row) for row in await tx.rows(sql.projects, ids)}


async def find_project(tx: Tx, project_id: str) -> Project:
    """Raises errors.NotFound."""
    found = await projects(tx, [project_id])
    if project_id not in found:
        raise errors.NotFound
    return found[project_id]


async def any_projects(tx: Tx, *, limit: int, before: str | None = None) -> list[Project]:
    """Every project of the installation, newest first: for its operator, who runs the database."""
    return [_project(row) for row in await tx.rows(sql.any_projects, before, limit)]


async def update_project(
    tx: Tx, project_id: str, changes: ProjectChanges, *, keyring: Keyring, actor: str, at: datetime
) -> tuple[Project, Endpoint]:
    """The project and its default endpoint after the changes. Raises errors.NotFound, PrefilledTextTooLong,
    InvalidRequest. Whether a webhook URL is safe is for the edge to say, before."""
    _check(changes)
    row = await tx.row(
        sql.update_project,
        project_id,
        _or_none(changes.name),
        _or_none(changes.prefilled_text),
        None if isinstance(changes.prefilled_texts, UnsetType) else _json(changes.prefilled_texts),
        _or_none(changes.publishable_expires_in),
        _or_none(changes.secret_expires_in),
        _or_none(changes.supersede),
        _or_none(changes.unsigned_references),
        _or_none(changes.on_identity_linked),
        _or_none(changes.on_reference_linked),
        _or_none(changes.references_per_contact),
    )
    if row is None:
        raise errors.NotFound
    endpoint = await update_default_endpoint(
        tx, project_id, url=changes.webhook_url, secret=changes.webhook_secret, keyring=keyring
    )
    if detail := _detail(changes):
        await audit(
            tx,
            project_id=project_id,
            actor=actor,
            action="project.updated",
            target=project_id,
            detail=detail,
            at=at,
        )
    return _project(row), endpoint


def check_prefilled_text(text: str, *, param: str) -> None:
    """Raises errors.PrefilledTextTooLong, which says what is wrong with the text."""
    problem = tokens.prefilled_text_problem(text)
    if problem is not None:
        raise errors.PrefilledTextTooLong(problem, param=param)


def _check(changes: ProjectChanges) -> None:
    if isinstance(changes.prefilled_text, str):
        check_prefilled_text(changes.prefilled_text, param="prefilled_text")
    if isinstance(changes.prefilled_texts, dict):
        for locale, text in changes.prefilled_texts.items():
            check_prefilled_text(text, param=f"prefilled_texts.{locale}")
    secret = changes.webhook_secret
    if isinstance(secret, str) and not (secret == secret.strip() and secret.isprintable()):
        raise errors.InvalidRequest(
            "webhook_secret must be 8 to 256 printable characters, without white space at either end.",
            param="webhook_secret",
        )


def _detail(changes: ProjectChanges) -> dict[str, object]:
    given = {name: getattr(changes, name) for name in changes.__struct_fields__}
    given = {name: value for name, value in given.items() if value is not UNSET}
    if "webhook_secret" in given:
        given["webhook_secret"] = HIDDEN
    if "webhook_url" in given:
        given["webhook_url"] = shown_url(given["webhook_url"])
    return given


def _or_none(value: object) -> object:
    """For `coalesce($n, column)`: no column it is used with can be null."""
    return None if value is UNSET else value


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


_texts = msgspec.json.Decoder(dict[str, str])


def _project(row: Row) -> Project:
    return Project(**{**row, "prefilled_texts": _texts.decode(row["prefilled_texts"])})
