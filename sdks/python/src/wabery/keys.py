"""API keys, looked at offline: which kind one is, and whether it was mistyped.

A key is its prefix, 30 base62 characters, and the CRC32 of both as 6 more, so a typo shows without asking a server.
That a key is well-formed does not mean that a server knows it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM = 30
_CHECKSUM = 6

KeyKind = Literal["publishable", "secret"]

_PREFIXES: dict[str, tuple[KeyKind, bool | None]] = {
    "wab_pub_": ("publishable", None),
    "wab_live_": ("secret", True),
    "wab_test_": ("secret", False),
}


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """What a key says about itself. `problem` is None for a well-formed key."""

    kind: KeyKind | None
    """None: the prefix is not one of ours."""
    livemode: bool | None
    """None: a publishable key does not show it."""
    problem: str | None

    @property
    def valid(self) -> bool:
        return self.problem is None


def check(key: str) -> KeyCheck:
    """Check prefix, length, alphabet and checksum of a key, offline."""
    prefix = _prefix(key)
    if prefix is None:
        return KeyCheck(None, None, "it does not start with wab_pub_, wab_live_ or wab_test_")
    return KeyCheck(*_PREFIXES[prefix], _problem(prefix, key[len(prefix) :]))


def mask(key: str) -> str:
    """A key as it may be shown: its prefix and last four characters."""
    prefix = _prefix(key)
    if prefix is None or len(key) < len(prefix) + 12:
        return f"{prefix or ''}…"
    return f"{prefix}…{key[-4:]}"


def auth_header(key: str) -> tuple[str, str] | None:
    """The header that carries this key; None when the prefix is unknown. A publishable key is never a Bearer."""
    kind = check(key).kind
    if kind is None:
        return None
    return ("x-wabery-publishable-key", key) if kind == "publishable" else ("authorization", f"Bearer {key}")


def _prefix(key: str) -> str | None:
    return next((prefix for prefix in _PREFIXES if key.startswith(prefix)), None)


def _problem(prefix: str, rest: str) -> str | None:
    if strange := next((character for character in rest if character not in _ALPHABET), None):
        return f"it contains {strange!r}, which no key does"
    if len(rest) != _RANDOM + _CHECKSUM:
        return f"it has {len(rest)} characters after {prefix}, not {_RANDOM + _CHECKSUM}"
    random, checksum = rest[:_RANDOM], rest[_RANDOM:]
    if checksum != _base62(zlib.crc32((prefix + random).encode())):
        return "its checksum does not match: a character is wrong"
    return None


def _base62(number: int) -> str:
    digits = []
    for _ in range(_CHECKSUM):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
