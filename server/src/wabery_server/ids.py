"""Object ids and link tokens: Crockford base32, lower case.

An id is a prefix and 26 characters that hold 128 bits in UUIDv7 layout (RFC 9562, 5.7): 48 bits of milliseconds,
version, variant, and 74 bits from the operating system. No counter: two ids of one millisecond are unrelated.
"""

import os
from datetime import datetime

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
LENGTH = 26

_PAIRS = [a + b for a in ALPHABET for b in ALPHABET]
_VERSION_7 = 0x7 << 76
_VARIANT = 0x2 << 62
_RAND_A = 0xFFF
_RAND_B = (1 << 62) - 1


def new(prefix: str, at: datetime) -> str:
    """A fresh id such as `reg_01jx…`; `at` is the business moment it sorts by."""
    if not _noise:
        _draw()
    noise = _noise.pop()
    milliseconds = int(at.timestamp() * 1000)
    value = milliseconds << 80 | _VERSION_7 | (noise >> 62 & _RAND_A) << 64 | _VARIANT | noise & _RAND_B
    return f"{prefix}_{encode130(value)}"


_noise: list[int] = []
"""Random numbers of 80 bits, each used once: a system call for every id would cost more than the id."""
_DRAWN = 256


def _draw() -> None:
    drawn = os.urandom(10 * _DRAWN)
    _noise.extend(int.from_bytes(drawn[n : n + 10]) for n in range(0, len(drawn), 10))


# A forked child must not make its parent's ids.
os.register_at_fork(after_in_child=_noise.clear)


def encode130(value: int) -> str:
    """26 characters for a number of at most 130 bits."""
    pairs = _PAIRS
    return "".join([pairs[value >> shift & 1023] for shift in range(120, -1, -10)])


def looks_like(prefix: str, text: str) -> bool:
    """Whether `text` has the shape of an id of this kind; nothing else about it."""
    head, _, tail = text.partition("_")
    return head == prefix and len(tail) == LENGTH and all(c in ALPHABET for c in tail)
