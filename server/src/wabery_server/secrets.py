"""The installation's secret and what is derived from it.

One secret (`WABERY_SECRET_KEY`) gives a subkey per purpose by HKDF-SHA256 (RFC 5869), so that a token, a cursor and a
sealed row can never be mistaken for one another. A keyring holds older versions until no row names them.
"""

import base64
import hashlib
import hmac
import os
from collections.abc import Mapping
from functools import cached_property

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wabery_server import ids
from wabery_server.tokens import PREFIX

MIN_SECRET_BYTES = 32
_NONCE = 12


class BadSecret(Exception):
    """The installation's secret is missing, too short, or not the one this database was made with."""


class Unsealable(Exception):
    """A sealed value does not open: another secret, another purpose, or damage."""


def generate() -> str:
    """A new installation secret, as it is written into the environment or a file."""
    return base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")


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
        except InvalidTag as failure:
            raise Unsealable(
                f"a sealed value for {purpose} does not open with secret version {self.version}"
            ) from failure


def _letters(subkey: bytes, intent_id: str) -> str:
    """130 bits of a keyed hash, BLAKE2b (RFC 7693, 2.9), as 26 letters."""
    return ids.letters(hashlib.blake2b(intent_id.encode(), key=subkey, digest_size=ids.LENGTH).digest())


class Keyring:
    """The current subkeys, and older versions by number."""

    def __init__(self, current: Subkeys, older: Mapping[int, Subkeys] | None = None) -> None:
        self.current = current
        self._by_version = {**(older or {}), current.version: current}

    def versions(self) -> list[Subkeys]:
        """All of them, the current one first."""
        return [self.current, *(old for old in self._by_version.values() if old is not self.current)]

    def version(self, number: int) -> Subkeys:
        """Raises BadSecret for a version this process was not given."""
        try:
            return self._by_version[number]
        except KeyError:
            raise BadSecret(
                f"secret version {number} is not in the keyring; set WABERY_SECRET_KEY_OLD"
            ) from None


def hash_token(token: str) -> bytes:
    """SHA-256 of a canonical token or key: 130 and 178 random bits need no slow hash."""
    return hashlib.sha256(token.encode()).digest()
