"""/v1/api-keys: the keys of the project. A key gives away only what it has itself.

Changing a key's value under its id, with a time in which both work, is not served: make a new key, deploy it, and
revoke the old one.
"""

from wabery_server import accounts, errors, intents
from wabery_server.accounts import KeyChanges, KeyDraft, Scope
from wabery_server.api.call import Answer, Call
from wabery_server.db import Tx


async def listed(call: Call) -> Answer:
    """The project's keys, newest first, the revoked ones too."""
    page = call.page(list_name="api_keys")
    project_id = call.caller.project.id
    found = await call.service.database.run(
        lambda tx: accounts.list_keys(tx, project_id, limit=page.limit + 1, before=page.before)
    )
    return call.list_answer("api_keys", [(key.id, key.public()) for key in found], page)


async def create(call: Call, tx: Tx) -> Answer:
    """Makes a key. A secret key is shown in this answer only."""
    caller = call.caller
    at = call.service.clock.now()
    draft = call.decode(KeyDraft)
    new = call.once("key", lambda: accounts.new_key(caller.project, draft, at))
    needed = new.key.scopes or frozenset({Scope.REGISTRATIONS_CREATE})
    if lacking := sorted(needed - caller.key.scopes):
        raise errors.InsufficientScope(
            f"This API key cannot give away what it does not have: {', '.join(lacking)}.", param="scopes"
        )
    await accounts.create_key(tx, new, actor=caller.key.id, at=at)
    call.after_commit(lambda: call.service.signals.tell("accounts"))
    return call.answer(new.key.public(value=new.value), object_ids=(new.key.id,))


async def get(call: Call) -> Answer:
    """One key, without its value unless it is publishable."""
    key_id = call.params["id"]
    key = await call.service.database.run(lambda tx: accounts.find_key(tx, call.caller.project.id, key_id))
    return call.answer(key.public(), object_ids=(key_id,))


async def update(call: Call, tx: Tx) -> Answer:
    """Changes name, allowed origins or expiry."""
    key = await accounts.update_key(
        tx,
        call.caller.project.id,
        call.params["id"],
        call.decode(KeyChanges),
        actor=call.caller.key.id,
        at=call.service.clock.now(),
    )
    call.after_commit(lambda: call.service.signals.tell("accounts"))
    return call.answer(key.public(), object_ids=(key.id,))


async def revoke(call: Call, tx: Tx) -> Answer:
    """Ends a key, and the pending intents it has minted. Revoking it again changes nothing."""
    call.empty_body()
    key = await intents.revoke_key(
        tx,
        call.caller.project,
        call.params["id"],
        actor=call.caller.key.id,
        at=call.service.clock.now(),
    )
    call.after_commit(lambda: call.service.signals.tell("accounts"))
    call.after_commit(lambda: call.service.signals.tell("due"))
    return call.answer(key.public(), object_ids=(key.id,))
