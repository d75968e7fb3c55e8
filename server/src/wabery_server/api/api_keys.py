"""/v1/api-keys: the keys of the project. A key gives away only what it has itself."""

from typing import get_args

from wabery_server import accounts, errors, intents
from wabery_server.accounts import ApiKey, Caller, KeyChanges, KeyDraft, KeyKind, KeyRotation, Scope
from wabery_server.api.call import Answer, Call, Write
from wabery_server.clock import iso
from wabery_server.db import Tx


async def listed(call: Call) -> Answer:
    """The project's keys, newest first, the revoked ones too."""
    page = call.page(list_name="api_keys")
    project_id = call.caller.project.id
    found = await call.run(
        lambda tx: accounts.list_keys(tx, project_id, limit=page.limit + 1, before=page.before)
    )
    return call.list_answer("api_keys", [(key.id, key.public()) for key in found], page)


async def create(call: Call) -> Write:
    """Makes a key. A secret key is shown in this answer only."""
    caller = call.caller
    at = call.service.clock.now()
    new = accounts.new_key(caller.project, call.decode(KeyDraft), at)
    _check_reach(caller, new.key)
    answer = call.answer(new.key.public(value=new.value), object_ids=(new.key.id,))

    async def write(tx: Tx) -> Answer:
        await accounts.create_key(tx, new, actor=caller.key.id, at=at)
        return answer

    call.after_commit(lambda: call.service.signals.tell("accounts"))
    return write


async def get(call: Call) -> Answer:
    """One key, without its value unless it is publishable."""
    key_id = call.params["id"]
    key = await call.run(lambda tx: accounts.find_key(tx, call.caller.project.id, key_id))
    return call.answer(key.public(), object_ids=(key_id,))


async def update(call: Call) -> Write:
    """Changes name, allowed origins or expiry."""
    caller, key_id = call.caller, call.params["id"]
    changes, at = call.decode(KeyChanges), call.service.clock.now()

    def allow(before: ApiKey, after: ApiKey) -> None:
        if after.reaches_further_than(before):
            _check_reach(caller, after)

    async def write(tx: Tx) -> Answer:
        key = await accounts.update_key(
            tx, caller.project.id, key_id, changes, actor=caller.key.id, at=at, allow=allow
        )
        return call.answer(key.public(), object_ids=(key.id,))

    call.after_commit(lambda: call.service.signals.tell("accounts"))
    return write


async def rotate(call: Call) -> Write:
    """Gives a key a new value under its id. The value of a secret key is shown in this answer only.

    The value it takes the place of works for `overlap` more seconds; one from an earlier rotation ends at once. When a
    key has leaked, send 0. The body may be left out.
    """
    caller, key_id = call.caller, call.params["id"]
    rotation = call.decode(KeyRotation) if call.body.strip() else KeyRotation()
    at = call.service.clock.now()
    values = {kind: accounts.new_value(caller.project, kind) for kind in get_args(KeyKind)}

    async def write(tx: Tx) -> Answer:
        key = await accounts.find_key(tx, caller.project.id, key_id)
        _check_reach(caller, key)
        value = values[key.kind]
        key = await accounts.rotate_key(tx, key, value, rotation, actor=caller.key.id, at=at)
        return call.answer(key.public(value=value), object_ids=(key.id,))

    call.after_commit(lambda: call.service.signals.tell("accounts"))
    return write


async def revoke(call: Call) -> Write:
    """Ends a key, and the pending intents it has minted. Revoking it again changes nothing."""
    caller, key_id = call.caller, call.params["id"]
    call.empty_body()
    at = call.service.clock.now()

    async def write(tx: Tx) -> Answer:
        key = await intents.revoke_key(tx, caller.project, key_id, actor=caller.key.id, at=at)
        return call.answer(key.public(), object_ids=(key.id,))

    call.after_commit(lambda: call.service.signals.tell("accounts"))
    call.after_commit(lambda: call.service.signals.tell("due"))
    return write


def _check_reach(caller: Caller, key: ApiKey) -> None:
    """A key is created, rotated or widened only by a key that can do as much, for as long.

    Raises errors.InsufficientScope.
    """
    needed = key.scopes or frozenset({Scope.REGISTRATIONS_CREATE})
    if lacking := sorted(needed - caller.key.scopes):
        raise errors.InsufficientScope(
            f"This API key cannot give away what it does not have: {', '.join(lacking)}.", param="scopes"
        )
    ends_at = caller.ends_at
    if ends_at is not None and (key.expires_at is None or key.expires_at > ends_at):
        raise errors.InsufficientScope(
            f"This API key ends at {iso(ends_at)} and cannot make a key work longer.",
            param="expires_at",
            hint="Set expires_at to that time or earlier, or use a key that works longer.",
        )
