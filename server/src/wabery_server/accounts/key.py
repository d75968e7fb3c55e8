"""API keys: `wab_live_`, `wab_test_` (secret) and `wab_pub_` (publishable), 30 random base62 characters, CRC32 as 6 more.

The checksum tells a typo from an unknown key without a look-up. A secret key is stored as its SHA-256 and shown once:
178 random bits need no slow hash. A publishable key is public and stored in clear. Rotation gives a key a new value
under its id, and lets the one before work for a while, so that a deployment can change over without a gap.
"""

import enum
import hashlib
import os
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Literal, NamedTuple, TypeAlias, TypedDict

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import replace

from wabery_server import errors, ids
from wabery_server.accounts.fields import Moment, Name
from wabery_server.accounts.project import Project
from wabery_server.accounts.trail import audit
from wabery_server.clock import iso
from wabery_server.db import Row, Tx, queries

sql = queries.beside(__file__)

KeyKind: TypeAlias = Literal["secret", "publishable"]

LONGEST_LIFE = timedelta(days=36_525)

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM = 30
_CHECKSUM = 6
_SHAPE = re.compile(rf"(wab_(?:pub|live|test)_[0-9A-Za-z]{{{_RANDOM}}})([0-9A-Za-z]{{{_CHECKSUM}}})")


class Scope(enum.StrEnum):
    """What a secret key may do. A publishable key has none: it mints, and acts for single intents."""

    REGISTRATIONS_CREATE = "registrations:create"
    """Mint, cancel, extend, confirm and deny registration intents; see their tokens, links and client secrets."""
    REGISTRATIONS_READ = "registrations:read"
    """Read and list registration intents, with masked identities."""
    CONTACTS_READ = "contacts:read"
    """Read contacts, messages and search, with masked identities."""
    CONTACTS_IDENTITY = "contacts:identity"
    """See phone numbers, user ids and usernames in full."""
    CONTACTS_WRITE = "contacts:write"
    """Unlink, block and erase contacts; join and ignore messages."""
    EVENTS_READ = "events:read"
    """Read events and deliveries."""
    DELIVERIES_WRITE = "deliveries:write"
    """Send events and deliveries again; pull and acknowledge them."""
    PROJECTS_READ = "projects:read"
    """Read the project and its webhook endpoints, without secrets."""
    PROJECTS_WRITE = "projects:write"
    """Change the project and its webhook endpoints, and see their signing secrets; create projects."""
    KEYS_WRITE = "keys:write"
    """List, create, change, rotate and revoke API keys."""
    CHANNELS_WRITE = "channels:write"
    """List, add, change, check and delete channels."""


PRESETS: Mapping[str, frozenset[Scope]] = {
    "read_only": frozenset(
        {Scope.REGISTRATIONS_READ, Scope.CONTACTS_READ, Scope.EVENTS_READ, Scope.PROJECTS_READ}
    ),
    "full": frozenset(Scope),
}
"""Names that may stand in a list of scopes for several of them."""


class PublicKey(TypedDict):
    object: Literal["api_key"]
    id: str
    kind: KeyKind
    name: str
    key: str | None
    last4: str
    scopes: list[str]
    allowed_origins: list[str]
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    previous_ends_at: str | None
    last_used_at: str | None
    warning: str | None


class ApiKey(Struct, frozen=True, kw_only=True):
    id: str
    project_id: str
    kind: KeyKind
    name: str
    public_key: str | None
    """The key itself, of a publishable one."""
    last4: str
    scopes: frozenset[str]
    """Members of Scope; a newer server of the same installation may know more."""
    allowed_origins: tuple[str, ...]
    """Of a publishable key; empty: any."""
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    previous_ends_at: datetime | None = None
    """Until when the value before the last rotation works too; None: the key has never been rotated."""
    last_used_at: datetime | None = None
    """Accurate to some ten seconds, and only where a key is read to be shown."""

    def reaches_further_than(self, other: "ApiKey") -> bool:
        """Whether this key works longer than `other`, or on origins where `other` does not. Compares no scopes."""
        longer = other.expires_at is not None and (
            self.expires_at is None or self.expires_at > other.expires_at
        )
        anywhere = not self.allowed_origins and bool(other.allowed_origins)
        elsewhere = bool(other.allowed_origins) and not set(self.allowed_origins) <= set(
            other.allowed_origins
        )
        return longer or anywhere or elsewhere

    def public(self, *, value: str | None = None) -> PublicKey:
        """`value` is a secret key itself, for the one answer that shows it."""
        open_to_all = self.kind == "publishable" and not self.allowed_origins
        return PublicKey(
            object="api_key",
            id=self.id,
            kind=self.kind,
            name=self.name,
            key=value or self.public_key,
            last4=self.last4,
            scopes=sorted(self.scopes),
            allowed_origins=list(self.allowed_origins),
            created_at=iso(self.created_at),
            expires_at=iso(self.expires_at) if self.expires_at else None,
            revoked_at=iso(self.revoked_at) if self.revoked_at else None,
            previous_ends_at=iso(self.previous_ends_at) if self.previous_ends_at else None,
            last_used_at=iso(self.last_used_at) if self.last_used_at else None,
            warning="Any website may use this key: set allowed_origins." if open_to_all else None,
        )


_ORIGIN_PATTERN = (
    r"^[A-Za-z][A-Za-z0-9+.-]*://([A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+\])"
    r"(:[1-9][0-9]{0,4})?(?!\n)$"
)
"""Told, not enforced: `_normalised` says it with an example."""
Origin = Annotated[str, Meta(max_length=255, extra_json_schema={"pattern": _ORIGIN_PATTERN})]
Origins = Annotated[list[Origin], Meta(max_length=100)]
ScopeName = Annotated[str, Meta(extra_json_schema={"enum": [*Scope, *PRESETS]})]


class KeyDraft(Struct, kw_only=True, forbid_unknown_fields=True):
    """What it takes to make a key."""

    name: Name
    kind: KeyKind = "secret"
    scopes: Annotated[list[ScopeName], Meta(max_length=32)] = []
    """Of a secret key; `read_only` and `full` stand for several."""
    allowed_origins: Origins = []
    """Of a publishable key, such as https://app.example.com; empty: any."""
    expires_at: Moment | None = None


class KeyChanges(Struct, kw_only=True, forbid_unknown_fields=True):
    """What is set replaces what was there. A key's scopes are fixed: make another key."""

    name: Name | UnsetType = UNSET
    allowed_origins: Origins | UnsetType = UNSET
    expires_at: Moment | None | UnsetType = UNSET


class KeyRotation(Struct, kw_only=True, forbid_unknown_fields=True):
    """How a key's value is replaced."""

    overlap: Annotated[int, Meta(ge=0, le=604_800)] = 86_400
    """Seconds for which the old value goes on working; 0: it ends at once, as it should when it has leaked."""


class NewKey(Struct, frozen=True):
    key: ApiKey
    value: str
    """The key itself; only its SHA-256 is stored, unless it is publishable."""


class Presented(NamedTuple):
    """A key that somebody has sent."""

    key: ApiKey
    until: datetime | None
    """When the value that was sent ends, because a rotation has replaced it; None: it is the current one."""


def new_key(project: Project, draft: KeyDraft, at: datetime) -> NewKey:
    """Raises errors.InvalidRequest."""
    secret = draft.kind == "secret"
    scopes = _expand(draft.scopes)
    if bool(scopes) != secret:
        sentence = "A secret key needs at least one scope." if secret else "A publishable key has no scopes."
        raise errors.InvalidRequest(sentence, param="scopes")
    origins = _normalised(draft.allowed_origins)
    if origins and secret:
        raise errors.InvalidRequest(_NO_ORIGINS, param="allowed_origins")
    _check_expiry(draft.expires_at, at)
    value = new_value(project, draft.kind)
    key = ApiKey(
        id=ids.new("key", at),
        project_id=project.id,
        kind=draft.kind,
        name=draft.name,
        public_key=None if secret else value,
        last4=value[-4:],
        scopes=scopes,
        allowed_origins=origins,
        created_at=at,
        expires_at=draft.expires_at,
        revoked_at=None,
    )
    return NewKey(key, value)


def new_value(project: Project, kind: KeyKind) -> str:
    """A key itself."""
    return _generate(
        "wab_pub_" if kind == "publishable" else "wab_live_" if project.livemode else "wab_test_"
    )


def is_well_formed(key: str) -> bool:
    """Whether prefix, length, alphabet and checksum are those of a key; says nothing about whether it exists."""
    shape = _SHAPE.fullmatch(key)
    return shape is not None and shape[2] == _checksum(shape[1])


def hash_key(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def create_key(tx: Tx, new: NewKey, *, actor: str, at: datetime) -> None:
    """Safe to repeat."""
    key = new.key
    inserted = await tx.row(
        sql.insert_key,
        key.id,
        key.project_id,
        key.kind,
        key.name,
        hash_key(new.value),
        key.public_key,
        key.last4,
        sorted(key.scopes),
        key.allowed_origins,
        key.created_at,
        key.expires_at,
    )
    if inserted:
        detail: dict[str, object] = {
            "kind": key.kind,
            "name": key.name,
            "scopes": sorted(key.scopes),
            "allowed_origins": key.allowed_origins,
            "expires_at": iso(key.expires_at) if key.expires_at else None,
        }
        await _audit(tx, key, "created", detail, actor, at)


async def list_keys(tx: Tx, project_id: str, *, limit: int, before: str | None = None) -> list[ApiKey]:
    """Also the revoked ones, newest first; `before` is the id of a key to go on after."""
    return [_key(row) for row in await tx.rows(sql.list_keys, project_id, before, limit)]


async def find_key(tx: Tx, project_id: str, key_id: str) -> ApiKey:
    """Raises errors.NotFound."""
    row = await tx.row(sql.find_key, project_id, key_id)
    if row is None:
        raise errors.NotFound
    return _key(row)


async def any_live_keys(tx: Tx, presented: Iterable[str]) -> dict[str, Presented]:
    """The keys that somebody presents, without those that are unknown or revoked. Expired and replaced ones are found.

    Looked up by their hashes, so no comparison of secrets can be timed.
    """
    by_hash = {hash_key(one): one for one in presented}
    found = {}
    for row in await tx.rows(sql.any_live_keys, list(by_hash)):
        hashed, key = _hashed(row)
        found[by_hash[hashed]] = Presented(key, None)
    others = [hashed for hashed, one in by_hash.items() if one not in found]
    for row in await tx.rows(sql.any_replaced_keys, others) if others else ():
        hashed, key = _hashed(row)
        found[by_hash[hashed]] = Presented(key, key.previous_ends_at)
    return found


def _hashed(row: Row) -> tuple[bytes, ApiKey]:
    values = dict(row)
    return values.pop("hash"), _key(values)


async def update_key(
    tx: Tx,
    project_id: str,
    key_id: str,
    changes: KeyChanges,
    *,
    actor: str,
    at: datetime,
    allow: Callable[[ApiKey, ApiKey], None] = lambda _before, _after: None,
) -> ApiKey:
    """`allow` gets the key before and after the changes, and raises if the caller may not make them.

    A revoked or expired key stays so: only its name can still change. Raises errors.NotFound, InvalidRequest, KeyRevoked.
    """
    row = await tx.row(sql.lock_key, project_id, key_id)
    if row is None:
        raise errors.NotFound
    key = after = _key(row)
    detail: dict[str, object] = {}
    if not isinstance(changes.name, UnsetType):
        detail["name"] = changes.name
    if not isinstance(changes.allowed_origins, UnsetType):
        origins = _normalised(changes.allowed_origins)
        if origins and key.kind == "secret":
            raise errors.InvalidRequest(_NO_ORIGINS, param="allowed_origins")
        after = replace(after, allowed_origins=origins)
        detail["allowed_origins"] = origins
    if not isinstance(changes.expires_at, UnsetType):
        _check_expiry(changes.expires_at, at)
        after = replace(after, expires_at=changes.expires_at)
        detail["expires_at"] = iso(changes.expires_at) if changes.expires_at else None
    if not detail:
        return key
    allow(key, after)
    if after is not key:
        _check_alive(key, at)
    await tx.run(
        sql.update_key, project_id, key_id, detail.get("name"), after.allowed_origins, after.expires_at
    )
    await _audit(tx, key, "updated", detail, actor, at)
    return await find_key(tx, project_id, key_id)


async def rotate_key(
    tx: Tx, key: ApiKey, value: str, rotation: KeyRotation, *, actor: str, at: datetime
) -> ApiKey:
    """`value` becomes the key's own. The one it takes the place of works for the overlap, an older one not any more.

    Safe to repeat with the same value. Raises errors.KeyRevoked for a key that is revoked or expired.
    """
    _check_alive(key, at)
    ends_at = at + timedelta(seconds=rotation.overlap)
    public_key = value if key.kind == "publishable" else None
    rotated = await tx.row(
        sql.rotate_key, key.project_id, key.id, hash_key(value), public_key, value[-4:], ends_at
    )
    if rotated:
        await _audit(tx, key, "rotated", {"overlap": rotation.overlap}, actor, at)
    found = await find_key(tx, key.project_id, key.id)
    if found.revoked_at is not None:
        raise errors.KeyRevoked
    return found


def _check_alive(key: ApiKey, at: datetime) -> None:
    """A key that has ended is never brought back. Raises errors.KeyRevoked."""
    if key.revoked_at is not None:
        raise errors.KeyRevoked
    if key.expires_at is not None and key.expires_at <= at:
        raise errors.KeyRevoked("This API key has expired.")


async def clear_key(tx: Tx, project_id: str, key_id: str, at: datetime) -> None:
    """Keeps that what a revoked key minted has been ended."""
    await tx.run(sql.clear_key, project_id, key_id, at)


async def revoke_key(tx: Tx, project_id: str, key_id: str, *, actor: str, at: datetime) -> ApiKey:
    """Ends a key for good. Safe to repeat: the first moment stays. Raises errors.NotFound.

    Writes only its own row: the pending intents it has minted are settled by whoever reads that row.
    """
    revoked = await tx.row(sql.revoke_key, project_id, key_id, at)
    key = await find_key(tx, project_id, key_id)
    if revoked:
        await _audit(tx, key, "revoked", {}, actor, at)
    return key


def _expand(names: Iterable[str]) -> frozenset[str]:
    scopes: set[str] = set()
    for name in names:
        if name in PRESETS:
            scopes |= PRESETS[name]
        elif name in _SCOPES:
            scopes.add(name)
        else:
            known = ", ".join((*_SCOPES, *PRESETS))
            raise errors.InvalidRequest(
                f"There is no scope {name[:64]!r}.", param="scopes", hint=f"Use some of: {known}."
            )
    return frozenset(scopes)


_SCOPES = [scope.value for scope in Scope]
_NO_ORIGINS = "Only publishable keys have allowed_origins; a secret key never belongs into a browser."


def _normalised(origins: Iterable[str]) -> tuple[str, ...]:
    """Origins as browsers send them (RFC 6454, 6.2): lower case, without the scheme's own port.

    Schemes other than http and https are those of apps that show web pages, such as capacitor://localhost.
    """
    found: dict[str, None] = {}
    for origin in origins:
        parts = _ORIGIN.fullmatch(origin.lower())
        if parts is None:
            raise errors.InvalidRequest(
                f"{origin[:64]!r} is not an origin.",
                param="allowed_origins",
                hint="Write scheme and host alone, such as https://app.example.com; non-ASCII hosts as xn--….",
            )
        scheme, host, port = parts.groups()
        own_port = _PORTS.get(scheme) == port
        found[f"{scheme}://{host}" if own_port or port is None else f"{scheme}://{host}:{port}"] = None
    return tuple(found)


_PORTS = {"http": "80", "https": "443"}
_ORIGIN = re.compile(
    r"([a-z][a-z0-9+.-]*)://([a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?"
)


def _check_expiry(expires_at: datetime | None, at: datetime) -> None:
    if expires_at is not None and not at < expires_at < at + LONGEST_LIFE:
        raise errors.InvalidRequest(
            "expires_at must be in the future, and at most 100 years ahead.",
            param="expires_at",
            hint="Revoke a key to end it now.",
        )


def _generate(prefix: str) -> str:
    body = prefix + _random_base62(_RANDOM)
    return body + _checksum(body)


def _random_base62(length: int) -> str:
    text = ""
    while len(text) < length:
        # 248 is the largest multiple of 62 below 256: the bytes above it would favour the first characters.
        text += "".join(_ALPHABET[byte % 62] for byte in os.urandom(length) if byte < 248)
    return text[:length]


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    digits = ""
    for _ in range(_CHECKSUM):
        number, digit = divmod(number, 62)
        digits = _ALPHABET[digit] + digits
    return digits


def _key(row: Row) -> ApiKey:
    return ApiKey(
        **{**row, "scopes": frozenset(row["scopes"]), "allowed_origins": tuple(row["allowed_origins"])}
    )


async def _audit(
    tx: Tx, key: ApiKey, what: str, detail: Mapping[str, object], actor: str, at: datetime
) -> None:
    await audit(
        tx,
        project_id=key.project_id,
        actor=actor,
        action=f"api_key.{what}",
        target=key.id,
        detail=detail,
        at=at,
    )
