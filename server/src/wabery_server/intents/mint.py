"""Minting: many intents in one transaction, each answered by itself."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import NamedTuple

from msgspec import Struct

from wabery_server import errors, idempotency, outbox
from wabery_server.accounts import Project
from wabery_server.db import Conflict, Tx
from wabery_server.intents import tell
from wabery_server.intents.end import reject
from wabery_server.intents.intent import Intent, RejectionReason, read_row, sql
from wabery_server.secrets import Keyring, hash_token

MAX_PENDING = 5
"""Pending intents of one reference and trust class."""


class Mint(Struct):
    """An intent to be written, with what its caller is answered."""

    project: Project
    intent: Intent
    token: str
    answer: idempotency.Stored
    key: idempotency.Key | None = None
    announce: bool = False
    """Whether somebody asked for `registration_intent.created`."""


class Minted(NamedTuple):
    """The answer to a mint, and whether it was given before."""

    answer: idempotency.Stored
    replayed: bool


async def mint(
    tx: Tx, mints: Sequence[Mint], *, keyring: Keyring, keep: timedelta
) -> list[Minted | errors.WaberyError]:
    """Writes intents; one result per mint, in order. Refusals are results, so that neighbours are not harmed.

    1. Mints with the same Idempotency-Key and body are one mint.
    2. The answer is written under its key; one that was there before is replayed.
    3. The intents are inserted, each where its reference and trust class has fewer than five pending.
    4. Where it is full, the oldest is superseded, or the mint is refused and its key is free again.
    5. It is announced where somebody asked for it.

    Mints that are `plain` need no transaction: each statement stands by itself.
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
        if mints[number].intent.id in written or await _fits_after_all(tx, mints[number]):
            results[number] = Minted(mints[number].answer, False)
        else:
            results[number] = _full(mints[number].intent)
    refused = [key for n in fresh if isinstance(results[n], errors.WaberyError) and (key := mints[n].key)]
    await idempotency.release(tx, refused)
    await _announce(tx, [mints[n] for n in fresh if mints[n].announce and isinstance(results[n], Minted)])
    for number, first in twins.items():
        results[number] = await _twin(tx, mints[number], mints[first], results[first], keyring)
    return [result for result in results if result is not None]


def plain(mints: Iterable[Mint]) -> bool:
    """Whether each of these is written by one statement alone, which is atomic by itself."""
    return not any(one.key or one.announce or one.project.supersede for one in mints)


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
    """The ids of those that had room. What shares a reference and trust class takes turns, so that each counts."""
    written: set[str] = set()
    waiting = mints
    while waiting:
        turn: dict[tuple[str, str, str], Mint] = {}
        later = []
        for one in waiting:
            intent = one.intent
            place = (intent.project_id, intent.customer_reference, intent.reference_trust)
            if turn.setdefault(place, one) is not one:
                later.append(one)
        rows = await tx.rows_each(sql.insert, [_columns(one) for one in turn.values()])
        written.update([row["id"] for row in rows])
        waiting = later
    return written


async def _fits_after_all(tx: Tx, one: Mint) -> bool:
    """A mint that was not written: it is there already, since this transaction runs again, or it supersedes."""
    intent = one.intent
    if await tx.row(sql.find, intent.project_id, intent.id) is not None:
        return True
    if not one.project.supersede:
        return False
    which = (intent.project_id, intent.customer_reference, intent.reference_trust, intent.created_at)
    waiting = [read_row(row) for row in await tx.rows(sql.pending, *which)]
    oldest = waiting[: max(0, len(waiting) - MAX_PENDING + 1)]
    projects = {one.project.id: one.project}
    await reject(tx, oldest, RejectionReason.SUPERSEDED, projects=projects, at=intent.created_at)
    if not await _inserted(tx, [one]):
        raise Conflict("another process filled the room that was made")
    return True


def _full(intent: Intent) -> errors.WaberyError:
    return errors.TooManyPending() if intent.trusted else errors.TooManyPendingHere(retry_after=60)


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


def _columns(one: Mint) -> tuple[object, ...]:
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
        MAX_PENDING,
    )
