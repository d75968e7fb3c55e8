"""Minting: many intents in one transaction, each answered by itself."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from msgspec import Struct

from wabery_server import errors, idempotency, outbox
from wabery_server.accounts import Project
from wabery_server.db import Tx
from wabery_server.intents import tell
from wabery_server.intents.end import reject
from wabery_server.intents.intent import Intent, RejectionReason, Status, read_row, sql
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

    1. Mints with the same Idempotency-Key are one mint.
    2. A reference and trust class with five pending is full: the oldest is superseded, or the mint is refused.
    3. The answer is written under its Idempotency-Key; one that was there before is replayed.
    4. The intents are inserted, and announced where somebody asked for it.
    """
    if not mints:
        return []
    folded: dict[tuple[str, str, str, str], int] = {}
    results: list[Minted | errors.WaberyError | None] = [None] * len(mints)
    twins: list[tuple[int, int]] = []
    alone: list[int] = []
    for number, wanted in enumerate(mints):
        first = folded.setdefault(wanted.key.identity, number) if wanted.key else number
        if first == number:
            alone.append(number)
        else:
            twins.append((number, first))
    refused, superseded = await _make_room(tx, mints, alone)
    results_of_refused = await _replays(tx, mints, refused, keyring)
    for number, refusal in refused.items():
        results[number] = results_of_refused.get(number, refusal)
    going = [number for number in alone if results[number] is None]
    with_key = [number for number in going if mints[number].key]
    if with_key:
        claims = await idempotency.claim(
            tx,
            [(key, one.answer, (one.intent.id,)) for one in (mints[n] for n in with_key) if (key := one.key)],
            keyring=keyring,
            at=mints[with_key[0]].intent.created_at,
            keep=keep,
        )
        for number, claim in zip(with_key, claims, strict=True):
            if claim is not None:
                results[number] = Minted(claim, True) if isinstance(claim, idempotency.Stored) else claim
    fresh = [number for number in going if results[number] is None]
    await tx.run_each(sql.insert, [_columns(mints[number]) for number in fresh])
    if ending := [old for number in fresh for old in superseded.get(number, ())]:
        projects = {mints[number].project.id: mints[number].project for number in fresh}
        await _supersede(tx, ending, projects, mints[fresh[0]].intent.created_at)
    if created := [tell.created(mints[n].intent, mints[n].project) for n in fresh if mints[n].announce]:
        await outbox.record(tx, created, {mints[n].project.id: mints[n].project for n in fresh})
    for number in fresh:
        results[number] = Minted(mints[number].answer, False)
    for number, first in twins:
        results[number] = _twin(mints[number], mints[first], results[first])
    return [result for result in results if result is not None]


async def _make_room(
    tx: Tx, mints: Sequence[Mint], numbers: Sequence[int]
) -> tuple[dict[int, errors.WaberyError], dict[int, list[tuple[str, str]]]]:
    """Which mints find their reference full, and which pending intents make room for the others."""
    asked = dict.fromkeys(_class(mints[number].intent) for number in numbers)
    pending: dict[tuple[str, str, str], list[str]] = {}
    at = mints[numbers[0]].intent.created_at
    for row in await tx.rows_each(sql.pending, [(*one, at) for one in asked]):
        where = (row["project_id"], row["customer_reference"], row["reference_trust"])
        pending.setdefault(where, []).append(row["id"])
    refused: dict[int, errors.WaberyError] = {}
    superseded: dict[int, list[tuple[str, str]]] = {}
    for number in numbers:
        intent = mints[number].intent
        waiting = pending.setdefault(_class(intent), [])
        if len(waiting) >= MAX_PENDING and not mints[number].project.supersede:
            refused[number] = (
                errors.TooManyPending() if intent.trusted else errors.TooManyPendingHere(retry_after=60)
            )
            continue
        oldest = waiting[: max(0, len(waiting) - MAX_PENDING + 1)]
        superseded[number] = [(intent.project_id, old) for old in oldest]
        pending[_class(intent)] = [*waiting[len(oldest) :], intent.id]
    return refused, superseded


async def _replays(
    tx: Tx, mints: Sequence[Mint], refused: Iterable[int], keyring: Keyring
) -> dict[int, Minted | errors.WaberyError]:
    """Retries among the refused: what was answered before is answered again, however full it is now."""
    keys = {number: key for number in refused if (key := mints[number].key)}
    if not keys:
        return {}
    at = mints[next(iter(keys))].intent.created_at
    found = await idempotency.find(tx, list(keys.values()), keyring=keyring, at=at)
    stored = {number: found[key.identity] for number, key in keys.items() if key.identity in found}
    return {n: Minted(one, True) if isinstance(one, idempotency.Stored) else one for n, one in stored.items()}


def _twin(twin: Mint, first: Mint, result: Minted | errors.WaberyError | None) -> Minted | errors.WaberyError:
    assert result is not None
    assert twin.key is not None
    assert first.key is not None
    if twin.key.request_hash != first.key.request_hash:
        return errors.IdempotencyKeyReused(param="Idempotency-Key")
    return Minted(result.answer, True) if isinstance(result, Minted) else result


async def _supersede(
    tx: Tx, old: Sequence[tuple[str, str]], projects: Mapping[str, Project], at: datetime
) -> None:
    rows = await tx.rows_each(sql.lock, sorted(set(old)))
    found = [intent for row in rows if (intent := read_row(row)).status == Status.PENDING]
    await reject(tx, found, RejectionReason.SUPERSEDED, projects=projects, at=at)


def _class(intent: Intent) -> tuple[str, str, str]:
    return intent.project_id, intent.customer_reference, intent.reference_trust


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
    )
