"""The installation's secret and what is derived from it.

One secret (`WABERY_SECRET_KEY`) gives a subkey per purpose by HKDF-SHA256 (RFC 5869), so that a token, a cursor and a
sealed row can never be mistaken for one another. Rows name the version that they need; a keyring holds the current
version and any number of others. The database registers versions, each with a check value that identifies its secret.
"""

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wabery_server import ids, logs, metrics
from wabery_server.tokens import PREFIX

MIN_SECRET_BYTES = 32
_NONCE = 12

T = TypeVar("T")


class BadSecret(Exception):
    """The installation's secret is missing, too short, or not the one this database was made with."""


class Unsealable(Exception):
    """A row cannot be read: its secret version is not in the keyring, or its sealed value is damaged."""


def generate() -> str:
    """A new installation secret, as it is written into the environment or a file."""
    return base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")


def parse_versions(text: str) -> dict[int, str]:
    """The secrets of WABERY_SECRET_KEY_OLD by version: `1:secret,2:secret`, or one on each line. Raises BadSecret."""
    found: dict[int, str] = {}
    for part in _BETWEEN_VERSIONS.split(text.strip()) if text.strip() else ():
        number, colon, secret = part.partition(":")
        number, secret = number.strip(), secret.strip()
        if not colon or not number.isascii() or not number.isdigit() or not 0 < int(number) < 2**31:
            raise BadSecret(
                "WABERY_SECRET_KEY_OLD must be version:secret, such as 1:<old secret>; separate several by commas."
            )
        if len(secret.encode()) < MIN_SECRET_BYTES:
            raise BadSecret(
                f"WABERY_SECRET_KEY_OLD: version {number} needs at least {MIN_SECRET_BYTES} bytes."
            )
        if found.setdefault(int(number), secret) != secret:
            raise BadSecret(f"WABERY_SECRET_KEY_OLD has two secrets for version {number}.")
    return found


_BETWEEN_VERSIONS = re.compile(r"[,\r\n]\s*(?=\d{1,10}\s*:)")
"""A secret may hold commas itself; what separates two is followed by a version number and a colon."""


class Subkeys:
    """One version of the installation's secret, taken apart by purpose."""

    def __init__(self, secret: str, version: int = 1) -> None:
        if len(secret.encode()) < MIN_SECRET_BYTES:
            raise BadSecret(
                f"WABERY_SECRET_KEY needs at least {MIN_SECRET_BYTES} bytes; make one with `wabery admin new-secret`"
            )
        self._secret = secret.encode()
        self.version = version

    def _derive(self, label: str, length: int = 32) -> bytes:
        return HKDF(hashes.SHA256(), length, salt=None, info=b"wabery/v1/" + label.encode()).derive(
            self._secret
        )

    @cached_property
    def _token(self) -> bytes:
        return self._derive("token")

    @cached_property
    def _client_secret(self) -> bytes:
        return self._derive("client-secret")

    @cached_property
    def _client(self) -> bytes:
        return self._derive("client-address")

    @cached_property
    def _cursor(self) -> bytes:
        return self._derive("cursor")

    @cached_property
    def _aead(self) -> AESGCM:
        return AESGCM(self._derive("seal"))

    @cached_property
    def check(self) -> bytes:
        """32 bytes that tell whether a database belongs to this secret, and tell nothing else."""
        return self._derive("check")

    def token(self, intent_id: str) -> str:
        """`wjr_` and 130 bits: the link token of an intent, derived each time it is shown."""
        return PREFIX + _letters(self._token, intent_id)

    def client_secret(self, intent_id: str) -> str:
        """`wcs_` and 130 bits: what a browser shows to act on its own intent."""
        return "wcs_" + _letters(self._client_secret, intent_id)

    def client_hash(self, network: str, address: str) -> bytes:
        """8 bytes that stand for a client's address: 4 of its network, then 4 of the address itself."""
        halves = [
            hashlib.blake2b(part.encode(), key=self._client, digest_size=4).digest()
            for part in (network, address)
        ]
        return b"".join(halves)

    def sign_cursor(self, position: bytes) -> str:
        """An opaque list cursor: the position and 12 bytes of MAC, base64url."""
        mac = hmac.digest(self._cursor, position, "sha256")[:12]
        return base64.urlsafe_b64encode(mac + position).decode().rstrip("=")

    def open_cursor(self, cursor: str) -> bytes | None:
        """The position inside a cursor of ours; None for anything else."""
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        except ValueError:
            return None
        position = raw[12:]
        mac = hmac.digest(self._cursor, position, "sha256")[:12]
        return position if hmac.compare_digest(mac, raw[:12]) else None

    def seal(self, plain: bytes, purpose: str) -> bytes:
        """AES-256-GCM; `purpose` (say, table, column and row id) is authenticated, so a value cannot change places."""
        nonce = os.urandom(_NONCE)
        return nonce + self._aead.encrypt(nonce, plain, purpose.encode())

    def unseal(self, sealed: bytes, purpose: str) -> bytes:
        """Raises Unsealable."""
        try:
            return self._aead.decrypt(sealed[:_NONCE], sealed[_NONCE:], purpose.encode())
        except (InvalidTag, ValueError) as failure:  # ValueError: shorter than a nonce
            raise Unsealable(
                "the sealed value is damaged, or was sealed for another row or version"
            ) from failure

    def as_version(self, number: int) -> "Subkeys":
        """The same secret under another number."""
        return self if number == self.version else Subkeys(self._secret.decode(), number)


def _letters(subkey: bytes, intent_id: str) -> str:
    """130 bits of a keyed hash, BLAKE2b (RFC 7693, 2.9), as 26 letters."""
    return ids.letters(hashlib.blake2b(intent_id.encode(), key=subkey, digest_size=ids.LENGTH).digest())


class Keyring:
    """The current subkeys, and those of other versions by number."""

    def __init__(self, current: Subkeys, others: Mapping[int, Subkeys] | None = None) -> None:
        self.current = current
        self._by_version = {**(others or {}), current.version: current}
        self._noted: set[str] = set()

    def versions(self) -> list[Subkeys]:
        """All of them, the current one first."""
        return [self.current, *(one for one in self._by_version.values() if one is not self.current)]

    def version(self, number: int, of: str) -> Subkeys:
        """The subkeys of the row `of`, written as `table.column:id`. Raises Unsealable for a version not in this keyring."""
        try:
            return self._by_version[number]
        except KeyError:
            raise self._unreadable(of, number, f"secret version {number} is not in the keyring") from None

    def open(self, sealed: bytes, version: int, purpose: str, decode: Callable[[bytes], T]) -> T:
        """What a row holds. Raises Unsealable, logged once for each row: the caller skips the row and serves the others."""
        subkeys = self.version(version, purpose)
        try:
            return decode(subkeys.unseal(sealed, purpose))
        except (Unsealable, msgspec.MsgspecError) as failure:
            raise self._unreadable(purpose, version, str(failure)) from failure

    def open_cursor(self, cursor: str) -> bytes | None:
        """The position inside a cursor that any of the versions signed; None for anything else."""
        positions = (one.open_cursor(cursor) for one in self.versions())
        return next((position for position in positions if position is not None), None)

    def numbered(self, registered: Mapping[int, bytes | None]) -> "Keyring":
        """This keyring with the version numbers of a database, which identifies each secret by its check value.

        A version registered without a check value is identified by its number. A current secret that is not registered
        yet gets the next number. Raises BadSecret where a secret has another number than the one it was given with.
        """
        if not registered:
            return self
        newest = max(registered)
        by_check = {check: number for number, check in registered.items() if check is not None}
        others: dict[int, Subkeys] = {}
        for number, one in self._by_version.items():
            if one is self.current:
                continue
            its = by_check.get(one.check, number)
            if its != number:
                raise BadSecret(
                    f"WABERY_SECRET_KEY_OLD: the secret given as version {number} is version {its}."
                )
            if registered.get(number) is not None and registered[number] != one.check:
                raise BadSecret(
                    f"WABERY_SECRET_KEY_OLD: the secret given as version {number} is not that version."
                )
            if number > newest + 1:
                raise BadSecret(
                    f"WABERY_SECRET_KEY_OLD has version {number}, but the next version is {newest + 1}."
                )
            others[number] = one
        current = by_check.get(self.current.check, max(newest, *others, 0) + 1)
        return Keyring(self.current.as_version(current), others)

    def _unreadable(self, of: str, version: int, why: str) -> "Unsealable":
        _UNREADABLE.add()
        what, _, row = of.partition(":")
        row = row.partition(":")[0]
        if (key := f"{what}:{row}:{version}") not in self._noted and len(self._noted) < _MOST_NOTED:
            self._noted.add(key)
            facts = {"what": what, "id": row, "version": version, "problem": why}
            logs.log.error("row_unreadable", extra={"facts": facts})
        return Unsealable(f"{what} of {row}: {why}")


_UNREADABLE = metrics.counter(
    "rows_unreadable", "Reads of a row that the secrets of this process do not open."
)
_MOST_NOTED = 10_000
"""Rows whose failure is logged; more of them are only counted."""


def hash_token(token: str) -> bytes:
    """SHA-256 of a canonical token or key: 130 and 178 random bits need no slow hash."""
    return hashlib.sha256(token.encode()).digest()
