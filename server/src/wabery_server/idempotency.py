"""What a write answered, kept for 24 hours so that the same `Idempotency-Key` answers it again.

Scoped to project, API key, method and path: no key ever sees an answer made for another. All visitors of a page share its
publishable key: there it is scoped to the request's origin too, and a key that can be guessed also to the client's address.
The answer is written, sealed,
in the transaction of its effect; a rolled-back effect leaves no answer behind. (IETF
draft-ietf-httpapi-idempotency-key-header-08; a reused key is 409 as the public contract says.)
"""

import hashlib
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import asyncpg
from msgspec import Struct

from wabery_server import errors
from wabery_server.db import Tx, queries
from wabery_server.secrets import Keyring, Unsealable

sql = queries.beside(__file__)

_PRINTABLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")
_UNREADABLE = "The stored answer for this Idempotency-Key cannot be opened with this server's secrets."
_UNREADABLE_HINT = (
    "Check whether the first request took effect; if it did not, send it with another Idempotency-Key."
)
_RANDOM = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32,}", re.IGNORECASE
)
"""A UUID, or 32 and more hex characters: made by a program, and not to be guessed."""
_QUOTED = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')


class Key(Struct, frozen=True):
    """One use of an Idempotency-Key, and what the request was."""

    project_id: str
    api_key_id: str
    call: str
    """Method and path; with a publishable key also a hash of the origin, and of the address where `key` can be guessed."""
    key: str
    request_hash: bytes
    """SHA-256 over method, path and body."""

    @property
    def identity(self) -> tuple[str, str, str, str]:
        return self.project_id, self.api_key_id, self.call, self.key


class Stored(Struct, frozen=True):
    """An answer as it was given."""

    status: int
    body: bytes


class Visitor(NamedTuple):
    """Who shares a publishable key with others."""

    origin: str
    """The request's `Origin`; empty without one."""
    client_hash: bytes
    """Keyed hash of the client's address."""


def read(
    header: str, *, project_id: str, api_key_id: str, call: str, body: bytes, visitor: Visitor | None = None
) -> Key:
    """The key of a request, bare or as a structured-field string (RFC 9651). `visitor`: of a publishable key.

    Raises errors.InvalidIdempotencyKey.
    """
    value = header.strip()
    if value.startswith('"'):
        quoted = _QUOTED.fullmatch(value)
        value = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else ""
    if not _PRINTABLE.fullmatch(value):
        raise errors.InvalidIdempotencyKey(param="Idempotency-Key")
    request_hash = hashlib.sha256(call.encode() + b"\0" + body).digest()
    if visitor is not None:
        shared = visitor.origin.encode()
        if not _RANDOM.fullmatch(value):
            shared += b"\0" + visitor.client_hash
        call = f"{call} {hashlib.sha256(shared).hexdigest()[:32]}"
    return Key(project_id, api_key_id, call, value, request_hash)


async def claim(
    tx: Tx,
    rows: Sequence[tuple[Key, Stored, tuple[str, ...]]],
    *,
    keyring: Keyring,
    at: datetime,
    keep: timedelta,
) -> list[Stored | errors.WaberyError | None]:
    """Writes each answer under its key, in the transaction of its effect; the ids are the objects the answer shows.

    1. None: the key was free, the answer is written, the caller goes on to make the effect true.
    2. Stored: the key answered this same request before; the caller makes no effect and replays it.
    3. errors.IdempotencyKeyReused: the key answered another request.

    Another transaction that holds the key right now is waited for, up to the connection's lock timeout; then raises
    errors.IdempotencyInProgress. The keys must be distinct.
    """
    try:
        taken = await _take(tx, rows, keyring, at, at + keep)
    except asyncpg.LockNotAvailableError as failure:
        raise errors.IdempotencyInProgress(retry_after=1) from failure
    seen_before = [key for key, _, _ in rows if key.identity not in taken]
    found = await find(tx, seen_before, keyring=keyring, at=at) if seen_before else {}
    results: list[Stored | errors.WaberyError | None] = []
    for key, _, _ in rows:
        results.append(
            None
            if key.identity in taken
            else found.get(key.identity) or errors.IdempotencyInProgress(retry_after=1)
        )
    return results


async def _take(
    tx: Tx,
    rows: Sequence[tuple[Key, Stored, tuple[str, ...]]],
    keyring: Keyring,
    at: datetime,
    until: datetime,
) -> set[tuple[str, str, str, str]]:
    """Which of the keys were free, and are taken now."""
    current = keyring.current
    values = [
        (
            *key.identity,
            key.request_hash,
            stored.status,
            current.seal(stored.body, _purpose(key)),
            current.version,
            object_ids,
            at,
            until,
        )
        for key, stored, object_ids in rows
    ]
    return {
        (row["project_id"], row["api_key_id"], row["call"], row["key"])
        for row in await tx.rows_each(sql.insert, values)
    }


async def find(
    tx: Tx, keys: Sequence[Key], *, keyring: Keyring, at: datetime
) -> dict[tuple[str, str, str, str], Stored | errors.WaberyError]:
    """What these keys answered before, by (project, API key, call, key); a key that is free is missing."""
    wanted = {key.identity: key for key in keys}
    found: dict[tuple[str, str, str, str], Stored | errors.WaberyError] = {}
    for row in await tx.rows_each(sql.find, [(*one, at) for one in wanted]):
        identity = (row["project_id"], row["api_key_id"], row["call"], row["key"])
        key = wanted[identity]
        if row["request_hash"] != key.request_hash:
            found[identity] = errors.IdempotencyKeyReused(param="Idempotency-Key")
        else:
            try:
                body = keyring.open(row["answer"], row["secret_version"], _purpose(key), bytes)
            except Unsealable:
                found[identity] = errors.Unavailable(_UNREADABLE, hint=_UNREADABLE_HINT)
            else:
                found[identity] = Stored(row["status"], body)
    return found


async def answered(tx: Tx, key: Key, *, keyring: Keyring, at: datetime) -> Stored | None:
    """What a key answered before; None when it is free. Raises errors.IdempotencyKeyReused."""
    before = (await find(tx, [key], keyring=keyring, at=at)).get(key.identity)
    if isinstance(before, errors.WaberyError):
        raise before
    return before


async def projects_with_expired(tx: Tx, now: datetime, limit: int) -> list[str]:
    """Projects that have something to prune."""
    return [row["id"] for row in await tx.rows(sql.any_project_expired, now, limit)]


async def release(tx: Tx, keys: Sequence[Key]) -> None:
    """Frees keys that this transaction has claimed: what they asked for was refused after all."""
    await tx.rows_each(sql.release, [key.identity for key in keys])


async def prune(tx: Tx, project_id: str, now: datetime, limit: int) -> int:
    """Deletes answers whose time is over; returns how many."""
    return len(await tx.rows(sql.prune, project_id, now, limit))


def _purpose(key: Key) -> str:
    return f"idempotency_keys.answer:{key.project_id}:{key.api_key_id}:{key.call}:{key.key}"
