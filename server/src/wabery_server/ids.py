"""Object ids and link tokens: Crockford base32, lower case.

An id is a prefix and 26 characters that hold 128 bits in UUIDv7 layout (RFC 9562, 5.7): 48 bits of milliseconds,
version, variant, and 74 bits from the operating system. No counter: two ids of one millisecond are unrelated.
"""

import os
from datetime import UTC, datetime
from functools import lru_cache

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
LENGTH = 26

_LETTERS = bytes(ALPHABET[byte & 31].encode()[0] for byte in range(256))
_PAIRS = [first + second for first in ALPHABET for second in ALPHABET]
_TIME_LETTERS = 10
_NOISE_LETTERS = LENGTH - _TIME_LETTERS
_DRAWN = 256
_VERSION = {letter: ALPHABET[0b01110 | value & 1] for value, letter in enumerate(ALPHABET)}
"""The letter with the four bits of version 7, and one random bit."""
_VARIANT = {letter: ALPHABET[value & 0b10011 | 0b01000] for value, letter in enumerate(ALPHABET)}
"""The letter with a random bit, the two bits of the variant, and two random bits."""
_noise: list[str] = []
"""The random ends of ids, each used once: a system call for every id would cost more than the id."""
_newest: tuple[datetime | None, str] = (None, "")
"""The moment of the id before, and its letters."""


def new(prefix: str, at: datetime) -> str:
    """A fresh id such as `reg_01jx…`; `at` is the business moment it sorts by."""
    global _newest
    before, time = _newest
    if at is not before:
        milliseconds = int(at.timestamp() * 1000)
        high = _high_letters(milliseconds >> 20)
        time = f"{high}{_PAIRS[milliseconds >> 10 & 1023]}{_PAIRS[milliseconds & 1023]}"
        _newest = at, time
    if not _noise:
        _draw()
    return f"{prefix}_{time}{_noise.pop()}"


def bounds(
    prefix: str, before: str | None, since: datetime | None, until: datetime | None
) -> tuple[str, str]:
    """The least id that may count (inclusive), and the end (exclusive): of what came before the id `before`, was made at
    `since` or later and before `until`, in whole milliseconds. An index on ids so serves a list by time as well."""
    end = before or f"{prefix}_~"
    if until is not None:
        end = min(end, f"{prefix}_{_time_letters(_milliseconds(until, up=True))}")
    return (f"{prefix}_" if since is None else f"{prefix}_{_time_letters(_milliseconds(since))}"), end


def _milliseconds(at: datetime, *, up: bool = False) -> int:
    since = at - _EPOCH
    microseconds = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return min(max(0, (microseconds + (999 if up else 0)) // 1000), 2**48 - 1)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _time_letters(milliseconds: int) -> str:
    return "".join([ALPHABET[milliseconds >> shift & 31] for shift in range(5 * _TIME_LETTERS - 5, -1, -5)])


@lru_cache(4)
def _high_letters(high: int) -> str:
    """The letters that change every 17 minutes."""
    return "".join([ALPHABET[high >> shift & 31] for shift in range(5 * _TIME_LETTERS - 25, -1, -5)])


def _draw() -> None:
    drawn = letters(os.urandom(_NOISE_LETTERS * _DRAWN))
    for n in range(0, len(drawn), _NOISE_LETTERS):
        _noise.append(
            f"{_VERSION[drawn[n]]}{drawn[n + 1 : n + 3]}{_VARIANT[drawn[n + 3]]}{drawn[n + 4 : n + _NOISE_LETTERS]}"
        )


# A forked child must not make its parent's ids.
os.register_at_fork(after_in_child=_noise.clear)


def letters(noise: bytes) -> str:
    """A letter for each byte, of which the low five bits count."""
    return noise.translate(_LETTERS).decode()


def looks_like(prefix: str, text: str) -> bool:
    """Whether `text` has the shape of an id of this kind; nothing else about it."""
    head, _, tail = text.partition("_")
    return head == prefix and len(tail) == LENGTH and not tail.strip(ALPHABET)
