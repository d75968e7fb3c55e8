"""/v1/projects: a key sees and changes the project it belongs to, and no other.

A key with `projects:write` and `keys:write` may also found a new project of the same installation. That project is a
wall like any other: the key that made it cannot look inside. The answer therefore carries the new project's first key,
once, with the scopes of the key that asked, so that nobody gains what they did not have; and a test key founds test
projects only.
"""

from wabery_server import accounts, errors
from wabery_server.accounts import (
    KeyDraft,
    Project,
    ProjectChanges,
    ProjectDraft,
    PublicKey,
    PublicProject,
    Scope,
)
from wabery_server.api.call import Answer, Call, Write
from wabery_server.db import Tx
from wabery_server.settings import Settings
from wabery_server.webhooks import UnsafeUrl, check_url, policy


class FoundedProject(PublicProject):
    """A new project, as only this one answer shows it."""

    api_key: PublicKey


async def listed(call: Call) -> Answer:
    """The project of the key, as the only one of the list, without its webhook settings."""
    page = call.page(list_name="projects")
    project = await call.run(lambda tx: accounts.find_project(tx, call.caller.project.id))
    return call.list_answer("projects", [(project.id, project.public())], page)


async def create(call: Call) -> Write:
    """Founds a project and answers with its first key and its signing secret."""
    caller, keyring = call.caller, call.service.keyring
    caller.require(Scope.KEYS_WRITE)
    draft = call.decode(ProjectDraft)
    if draft.livemode and not caller.project.livemode:
        raise errors.InsufficientScope(
            "A key of a test project cannot create live projects.",
            hint="Use a live key, or `wabery admin projects create --live` on the server.",
        )
    at, most = call.service.clock.now(), call.service.settings.test_projects_per_key
    new = accounts.new_project(caller.project.organization_id, draft, keyring=keyring, at=at)
    first_key = KeyDraft(name="First key", scopes=sorted(caller.key.scopes), expires_at=caller.ends_at)
    first = accounts.new_key(new.project, first_key, at)
    shown = {
        **new.project.public(new.endpoint, reveal_with=keyring),
        "api_key": first.key.public(value=first.value),
    }
    answer = call.answer(shown, object_ids=(new.project.id,))

    async def write(tx: Tx) -> Answer:
        await accounts.create_project(tx, new, keyring=keyring, actor=caller.key.id, at=at, most=most)
        await accounts.create_key(tx, first, actor=caller.key.id, at=at)
        return answer

    return write


async def get(call: Call) -> Answer:
    """The project with its webhook URL; its signing secret too where the key has `projects:write`."""
    project_id = _own(call)

    async def read(tx: Tx) -> PublicProject:
        project = await accounts.find_project(tx, project_id)
        endpoint = await accounts.default_endpoint(tx, project_id)
        keyring = call.service.keyring if call.caller.has(Scope.PROJECTS_WRITE) else None
        return project.public(endpoint, reveal_with=keyring)

    return call.answer(await call.run(read), object_ids=(project_id,))


async def update(call: Call) -> Write:
    """Changes what the body names. A webhook URL of null stops the webhooks; setting one starts them again."""
    project_id, keyring, actor = _own(call), call.service.keyring, call.caller.key.id
    changes = call.decode(ProjectChanges)
    if isinstance(changes.webhook_url, str):
        _check_url(changes.webhook_url, call.caller.project, call.service.settings)
    at = call.service.clock.now()

    async def write(tx: Tx) -> Answer:
        project, endpoint = await accounts.update_project(
            tx, project_id, changes, keyring=keyring, actor=actor, at=at
        )
        return call.answer(project.public(endpoint, reveal_with=keyring), object_ids=(project_id,))

    call.after_commit(lambda: call.service.signals.tell("accounts"))
    return write


async def rotate_webhook_secret(call: Call) -> Write:
    """Makes a new signing secret. It signs everything from now on; the old one signs nothing more."""
    project_id, keyring, actor = _own(call), call.service.keyring, call.caller.key.id
    call.empty_body()
    secret, at = accounts.new_webhook_secret(), call.service.clock.now()

    async def write(tx: Tx) -> Answer:
        endpoint = await accounts.rotate_webhook_secret(
            tx, project_id, secret, keyring=keyring, actor=actor, at=at
        )
        project = await accounts.find_project(tx, project_id)
        return call.answer(project.public(endpoint, reveal_with=keyring), object_ids=(project_id,))

    return write


def _own(call: Call) -> str:
    """The id in the path. Raises errors.NotFound unless it is the project of the key."""
    project_id = call.params["id"]
    if project_id != call.caller.project.id:
        raise errors.NotFound("There is no such project.", param="id")
    return project_id


def _check_url(url: str, project: Project, settings: Settings) -> None:
    try:
        check_url(url, policy(settings, livemode=project.livemode))
    except UnsafeUrl as refusal:
        if refusal.reason == "malformed":
            raise errors.InvalidRequest(
                refusal.message, param="webhook_url", hint="Send a URL of printable ASCII characters."
            ) from refusal
        raise errors.UnsafeWebhookUrl(refusal.message, param="webhook_url") from refusal
