"""Minting: many intents in one batch, each answered by itself.

Pending intents of one customer reference are limited by trust class. Trusted ones (minted or signed by the app): five.
Anonymous ones: five from each client address, and a hundred from all addresses together, where one network counts as at
most four addresses. So an anonymous intent never blocks or ends a trusted one, nor one from another address.
"""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import NamedTuple

from msgspec import Struct

from wabery_server import errors, idempotency, outbox
from wabery_server.accounts import Project
from wabery_server.db import Tx
from wabery_server.intents import tell
from wabery_server.intents.end import reject
from wabery_server.intents.intent import Intent, RejectionReason, read_row, sql
from wabery_server.secrets import Keyring, hash_token

MAX_PENDING = 5
"""Pending intents of one reference: trusted ones, or anonymous ones from one client address."""
MAX_ANONYMOUS = 100
"""Anonymous pending intents of one reference from all client addresses."""
MAX_OF_NETWORK = 4 * MAX_PENDING
"""How many of those one network can take up."""
_CERTAIN = 20
"""Below this number of anonymous intents the insert does not need to count exactly."""
_NO_LIMIT = 2**31 - 1


class Mint(Struct):
    """An intent to be written, with what its caller is answered."""

    project: Project
    intent: Intent
    token: str
    answer: idempotency.Stored
    key: idempotency.Key | None = None
    announce: bool = False
    """Whether a webhook endpoint asks for `registration_intent.created`."""
    client_hash: bytes = b""
    """Of an anonymous mint: keyed hash of the client's address (`secrets.Subkeys.client_hash`)."""


class Minted(NamedTuple):
    """The answer to a mint, and whether it was given before."""

    answer: idempotency.Stored
    replayed: bool


async def mint(
    tx: Tx, mints: Sequence[Mint], *, keyring: Keyring, keep: timedelta
) -> list[Minted | errors.WaberyError]:
    """Writes intents; one result per mint, in order. Refusals are results, so that neighbours are not harmed.

    1. Mints with the same Idempotency-Key and body are one mint.
    2. The answer is written under its key; an answer that was there before is replayed.
    3. The intents are inserted in one statement, each where its reference has room.
    4. Where there is none, the oldest intents of the same reference and class (or client address) are superseded in a
       transaction, or the mint is refused and its key is free again.
    5. `registration_intent.created` is recorded where an endpoint asks for it.

    `plain` mints need no transaction around this call: the insert stands by itself, and step 4 opens its own.
    """
    results: list[Minted | errors.WaberyError | None] = [None] * len(mints)
    firsts: dict[tuple[str, str, str, str], int] = {}
    twins: dict[int, int] = {}
    for number, one in enumerate(mints):
        if one.key is not None and (first := firsts.setdefault(one.key.identity, number)) != number:
            twins[number] = first
    if firsts:
        for number, claim in (await _claimed(tx, mints, list(firsts.values()), keyring, keep)).items():
            results[number] = claim
    fresh = [n for n in range(len(mints)) if n not in twins and results[n] is None]
    written = await _inserted(tx, [mints[n] for n in fresh])
    for number in fresh:
        refusal = None if mints[number].intent.id in written else await _crowded_in(tx, mints[number])
        results[number] = refusal or Minted(mints[number].answer, False)
    refused = [key for n in fresh if isinstance(results[n], errors.WaberyError) and (key := mints[n].key)]
    await idempotency.release(tx, refused)
    await _announce(tx, [mints[n] for n in fresh if mints[n].announce and isinstance(results[n], Minted)])
    for number, first in twins.items():
        results[number] = await _twin(tx, mints[number], mints[first], results[first], keyring)
    return [result for result in results if result is not None]


def plain(mints: Iterable[Mint]) -> bool:
    """Whether each of these is usually written by one statement alone, which is atomic by itself."""
    return not any(one.key or one.announce for one in mints)


async def _claimed(
    tx: Tx, mints: Sequence[Mint], numbers: Sequence[int], keyring: Keyring, keep: timedelta
) -> dict[int, Minted | errors.WaberyError]:
    """Which of these mints are answered already, by their keys; the answers of the others are written."""
    rows = [(key, mints[n].answer, (mints[n].intent.id,)) for n in numbers if (key := mints[n].key)]
    at = mints[numbers[0]].intent.created_at
    claims = await idempotency.claim(tx, rows, keyring=keyring, at=at, keep=keep)
    return {
        number: Minted(claim, True) if isinstance(claim, idempotency.Stored) else claim
        for number, claim in zip(numbers, claims, strict=True)
        if claim is not None
    }


async def _inserted(tx: Tx, mints: Sequence[Mint]) -> set[str]:
    """The ids of those that had room. Mints for one reference and trust class take turns, so that each counts."""
    written: set[str] = set()
    waiting = mints
    while waiting:
        turn: dict[tuple[str, str, bool], Mint] = {}
        later = []
        for one in waiting:
            intent = one.intent
            place = (intent.project_id, intent.customer_reference, intent.trusted)
            if turn.setdefault(place, one) is not one:
                later.append(one)
        rows = await tx.rows_each(sql.insert, [_columns(one, MAX_PENDING, _CERTAIN) for one in turn.values()])
        written.update([row["id"] for row in rows])
        waiting = later
    return written


async def _crowded_in(tx: Tx, one: Mint) -> errors.WaberyError | None:
    """Inserts a mint that the first insert did not write, in a transaction of its own; or returns why it cannot.

    Nothing is to be done when the intent is there already, because an earlier try has written it.
    """
    intent = one.intent
    if await tx.row(sql.find, intent.project_id, intent.id) is not None:
        return None
    return await tx.savepoint(lambda: _make_room(tx, one))


async def _make_room(tx: Tx, one: Mint) -> errors.WaberyError | None:
    """Ends the oldest intents of this mint's class or client address, so that it is the fifth.

    It ends as many as there are too many: concurrent mints may have passed the limit. An intent that another
    transaction holds is not counted, since most likely it is ending.
    """
    intent = one.intent
    reference = (intent.project_id, intent.customer_reference)
    rows = await tx.rows(sql.pending, *reference, one.client_hash, intent.created_at)
    superseded = [read_row(row) for row in rows[: max(0, len(rows) - MAX_PENDING + 1)]]
    if superseded and intent.trusted and not one.project.supersede:
        return errors.TooManyPending()
    if superseded:
        projects = {one.project.id: one.project}
        await reject(tx, superseded, RejectionReason.SUPERSEDED, projects=projects, at=intent.created_at)
    elif not intent.trusted:
        crowd = await tx.row(sql.crowd, *reference, intent.created_at, MAX_ANONYMOUS, MAX_OF_NETWORK)
        if crowd is not None and crowd["counted"] >= MAX_ANONYMOUS:
            wait = (crowd["first_expiry"] - intent.created_at).total_seconds()
            return errors.TooManyPendingHere(retry_after=wait)
    await tx.rows_each(sql.insert, [_columns(one, _NO_LIMIT, _NO_LIMIT)])
    return None


async def _announce(tx: Tx, mints: Sequence[Mint]) -> None:
    if mints:
        events = [tell.created(one.intent, one.project) for one in mints]
        await outbox.record(tx, events, {one.project.id: one.project for one in mints})


async def _twin(
    tx: Tx, twin: Mint, first: Mint, result: Minted | errors.WaberyError | None, keyring: Keyring
) -> Minted | errors.WaberyError:
    """What a mint is answered whose key another mint of this call brought first, perhaps with another body."""
    assert result is not None
    assert twin.key is not None
    assert first.key is not None
    if twin.key.request_hash == first.key.request_hash:
        return Minted(result.answer, True) if isinstance(result, Minted) else result
    found = await idempotency.find(tx, [twin.key], keyring=keyring, at=twin.intent.created_at)
    kept = found.get(twin.key.identity) or errors.IdempotencyInProgress(retry_after=1)
    return Minted(kept, True) if isinstance(kept, idempotency.Stored) else kept


def _columns(one: Mint, most_pending: int, most_anonymous: int) -> tuple[object, ...]:
    intent = one.intent
    return (
        intent.project_id,
        intent.id,
        intent.customer_reference,
        bytes(intent.metadata).decode(),
        intent.reference_trust,
        intent.channel_id,
        intent.api_key_id,
        intent.locale,
        hash_token(one.token),
        one.token[4:10],
        intent.secret_version,
        intent.created_at,
        intent.expires_at,
        one.client_hash,
        most_pending,
        most_anonymous,
    )
