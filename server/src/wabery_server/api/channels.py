"""/v1/channels: the project's WhatsApp numbers.

No answer shows an app secret or an access token. The verify token is shown with one channel, because a person has to
copy it into Meta's dashboard; it opens the handshake of the webhook URL and nothing else.
"""

from typing import Literal, TypedDict

from wabery_server import accounts, intents, whatsapp
from wabery_server.accounts import Channel, ChannelChanges, ChannelDraft, Credentials
from wabery_server.api.call import Answer, Call, Write
from wabery_server.db import Tx
from wabery_server.whatsapp import Finding


class ChannelCheck(TypedDict):
    """What the provider says of a channel at this moment."""

    object: Literal["channel_check"]
    channel_id: str
    ok: bool
    """Whether nothing has failed."""
    checks: list[Finding]


async def listed(call: Call) -> Answer:
    """The project's channels, newest first."""
    page = call.page(list_name="channels")
    project_id = call.caller.project.id
    found = await call.run(
        lambda tx: accounts.list_channels(tx, project_id, limit=page.limit + 1, before=page.before)
    )
    return call.list_answer("channels", [(channel.id, channel.public()) for channel in found], page)


async def create(call: Call) -> Write:
    """Connects a number. It belongs to this project alone until the channel is deleted."""
    at, keyring, actor = call.service.clock.now(), call.service.keyring, call.caller.key.id
    new = accounts.new_channel(call.caller.project.id, call.decode(ChannelDraft), at)
    answer = _shown(call, new.channel, new.credentials)

    async def write(tx: Tx) -> Answer:
        await accounts.create_channel(tx, new, keyring=keyring, actor=actor, at=at)
        return answer

    _tell(call)
    return write


async def get(call: Call) -> Answer:
    """One channel, with its verify token."""
    return _shown(call, *await _found(call))


async def check(call: Call) -> Answer:
    """Asks Meta whether this number can work: the number itself, its account, the webhook and the access token.

    Changes nothing, here or there. Whatever is wrong is a finding that says what to do. Without an access token there
    is little to ask; a sandbox number is not known to Meta. It may take some seconds.
    """
    call.empty_body()
    channel, credentials = await _found(call)
    service = call.service
    call.limit((service.channel_checks, channel.id))
    checker = whatsapp.CHECKERS[channel.provider]
    findings = await checker(channel, credentials, service.settings, service.clock.now())
    return call.answer(
        ChannelCheck(
            object="channel_check",
            channel_id=channel.id,
            ok=all(finding.state != "failed" for finding in findings),
            checks=findings,
        )
    )


async def update(call: Call) -> Write:
    """Changes what the body names."""
    caller, channel_id, keyring = call.caller, call.params["id"], call.service.keyring
    changes, at = call.decode(ChannelChanges), call.service.clock.now()

    async def write(tx: Tx) -> Answer:
        channel, credentials = await accounts.update_channel(
            tx, caller.project.id, channel_id, changes, keyring=keyring, actor=caller.key.id, at=at
        )
        return _shown(call, channel, credentials)

    _tell(call)
    return write


async def delete(call: Call) -> Write:
    """Disconnects a number, erases its credentials and ends the pending intents minted for it.

    Deleting it again changes nothing.
    """
    caller, channel_id = call.caller, call.params["id"]
    call.empty_body()
    at = call.service.clock.now()

    async def write(tx: Tx) -> Answer:
        channel = await intents.retire_channel(tx, caller.project, channel_id, actor=caller.key.id, at=at)
        return call.answer(channel.public(), object_ids=(channel.id,))

    _tell(call)
    call.after_commit(lambda: call.service.signals.tell("due"))
    return write


async def _found(call: Call) -> tuple[Channel, Credentials]:
    async def read(tx: Tx) -> tuple[Channel, Credentials]:
        channel = await accounts.find_channel(tx, call.caller.project.id, call.params["id"])
        return channel, await accounts.unseal_credentials(tx, channel, keyring=call.service.keyring)

    return await call.run(read)


def _shown(call: Call, channel: Channel, credentials: Credentials) -> Answer:
    return call.answer(channel.public(verify_token=credentials.verify_token), object_ids=(channel.id,))


def _tell(call: Call) -> None:
    call.after_commit(lambda: call.service.signals.tell("accounts"))
