"""Retrying messages that failed: what `wabery admin messages retry` does, without its printing."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from wabery_server import accounts, errors, inbox, tokens
from wabery_server.db import Tx
from wabery_server.inbox import Failed, Inbound
from wabery_server.main import Opened
from wabery_server.settings import Settings
from wabery_server.whatsapp import PROVIDERS

_PAGE = 500


class Retried(NamedTuple):
    """What became of one failed message."""

    message: Failed
    outcome: str
    """As in the log line of an inbound message, such as joined or passed_on; `failed` when it failed again."""
    error: str | None = None


async def failed_messages(opened: Opened, wanted: Sequence[str]) -> list[Failed]:
    """The failed messages with these ids, or all of them where none is given; in the order in which they arrived.

    Raises errors.NotFound for an id that is not a failed message's.
    """
    found: list[Failed] = []
    while True:
        before = found[-1].id if found else None
        page = await opened.database.run(
            lambda tx, before=before: inbox.any_failed(tx, limit=_PAGE, before=before)  # type: ignore[misc]
        )
        found += page
        if len(page) < _PAGE:
            break
    if missing := set(wanted).difference(one.id for one in found):
        raise errors.NotFound(
            f"There is no failed message {min(missing)}.",
            hint="`wabery admin messages list --failed` shows them.",
        )
    return [one for one in reversed(found) if not wanted or one.id in wanted]


async def retry(opened: Opened, failed: Failed, settings: Settings) -> Retried:
    """Handles a failed message again, on the path of a message that has just arrived. Safe to repeat.

    Expiry is judged by the moment of its arrival, and its effects carry the present moment. Raises errors.Unavailable.
    """
    try:
        outcome = await _handle(opened, failed, settings)
    except errors.Unavailable:
        raise
    except Exception as again:  # noqa: BLE001  # whatever it is, it is why the message still fails
        error = type(again).__name__
        await opened.database.run(lambda tx: inbox.note_error(tx, failed, error))
        return Retried(failed, "failed", error)
    return Retried(failed, outcome)


async def _handle(opened: Opened, failed: Failed, settings: Settings) -> str:
    database = opened.database
    sealed = await database.run(lambda tx: inbox.open_failed(tx, failed, keyring=opened.keyring))
    if sealed is None:
        return inbox.Outcome.DUPLICATE

    async def owners(tx: Tx) -> tuple[accounts.Channel, accounts.Project]:
        channel = await accounts.find_channel(tx, failed.project_id, failed.channel_id)
        return channel, await accounts.find_project(tx, failed.project_id)

    channel, project = await database.run(owners)
    parsed = PROVIDERS[channel.provider].parse(sealed.object, failed.received_at)
    messages = [message for change in parsed.changes for message in change.messages]
    if not messages:  # this version knows that nothing follows from such a message
        await database.run(lambda tx: inbox.dismiss_failed(tx, failed))
        return inbox.Outcome.STORED
    message = msgspec.structs.replace(messages[0], provider_message_id=failed.provider_message_id)
    if message.failure is not None:
        raise message.failure
    found = tokens.find(message.texts)
    item = Inbound(channel, project, message, found, failed.received_at, at=opened.clock.now())
    (received,) = await database.run(lambda tx: inbox.receive(tx, [item], grace=settings.expiry_grace))
    return received.attempt or received.outcome
