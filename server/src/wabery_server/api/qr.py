"""QR codes (ISO/IEC 18004), cheap enough to be made by the thousand: half a millisecond each.

A symbol is one whole number with a bit for each module, row after row, so that placing data, masking it and judging a mask
are a few operations on that number instead of thousands on its modules. What depends on the version alone (fixed patterns,
the order in which data fills the symbol, the masks) is made once. Byte mode and error correction level M, which is what a
link needs. A test compares every version and mask with another encoder.
"""

from collections.abc import Callable, Iterable
from functools import cache
from itertools import zip_longest
from operator import itemgetter
from typing import NamedTuple

# Of level M, by version (table 9).
_CORRECTION = (
    *(10, 16, 26, 18, 24, 16, 18, 22, 22, 26, 30, 22, 22, 24, 24, 28, 28, 26, 26, 26),
    *(26, *[28] * 19),
)
"""Error correction codewords of a block."""
_BLOCKS = (
    *(1, 1, 1, 2, 2, 4, 4, 4, 5, 5, 5, 8, 9, 9, 10, 10, 11, 13, 14, 16),
    *(17, 17, 18, 20, 21, 23, 25, 26, 28, 29, 31, 33, 35, 37, 38, 40, 43, 45, 47, 49),
)
_GAP = 4
"""Light modules between two rows of a number, so that no run of modules goes on from one row into the next."""

Modules = set[tuple[int, int]]
"""Column and row of each."""
Order = Callable[[str], Iterable[str]]
"""Puts the bits of the data where they stand."""


class TooLong(ValueError):
    """More than the largest symbol holds."""


def make(text: str, *, mask: int | None = None) -> list[str]:
    """The rows of the smallest symbol that holds the text in UTF-8, each a string of 0 and 1, without a quiet zone.

    `mask`: 0 to 7; None: the one that gives the lowest penalty (7.8.3). Raises TooLong.
    """
    data = text.encode()
    frame = _frame(_version(len(data)))
    bits = f"{int.from_bytes(_codewords(data, frame)):0{8 * frame.codewords}b}0"
    # The last bit, 0, stands for every module that holds no data.
    across, down = (int("".join(order(bits)), 2) for order in (frame.across, frame.down))
    if mask is None:
        mask = min(range(8), key=lambda one: _penalty(across, down, frame, one))
    symbol = f"{across ^ frame.masks[mask].across:0{frame.length}b}"
    stride = frame.size + _GAP
    return [symbol[start : start + frame.size] for start in range(0, frame.length, stride)]


class _Both(NamedTuple):
    """Modules as a number, read row after row and column after column."""

    across: int
    down: int


class _Frame(NamedTuple):
    """What all symbols of one version share."""

    version: int
    size: int
    codewords: int
    across: Order
    down: Order
    masks: tuple[_Both, ...]
    """By mask: what is inverted, and the fixed patterns with the format that names the mask."""
    inside: int
    """All modules, without the gaps."""
    everywhere: int
    length: int
    """Bits of a number: rows, each with its gap."""


def _version(length: int) -> int:
    for version in range(1, 41):
        room = _raw_codewords(version) - _CORRECTION[version - 1] * _BLOCKS[version - 1]
        if 4 + (8 if version < 10 else 16) + 8 * length <= 8 * room:
            return version
    raise TooLong(f"{length} bytes")


def _raw_codewords(version: int) -> int:
    """Data and correction, in codewords; the few remainder bits are not counted."""
    bits = (16 * version + 128) * version + 64
    if version >= 2:
        places = version // 7 + 2
        bits -= (25 * places - 10) * places - 55
    return (bits - (36 if version >= 7 else 0)) // 8


# Data


def _codewords(data: bytes, frame: _Frame) -> bytes:
    """The data with its correction, interleaved (7.4 to 7.6)."""
    correction, blocks = _CORRECTION[frame.version - 1], _BLOCKS[frame.version - 1]
    room = frame.codewords - correction * blocks
    count = 8 if frame.version < 10 else 16
    bits = (0b0100 << count | len(data)) << 8 * len(data) | int.from_bytes(data)
    used = 4 + count + 8 * len(data)
    end = min(4, 8 * room - used)
    bits, used = bits << end, used + end
    bits, used = bits << -used % 8, used + -used % 8
    whole = bits.to_bytes(used // 8)
    whole += (b"\xec\x11" * (room - len(whole)))[: room - len(whole)]
    short = frame.codewords // blocks - correction
    longer = frame.codewords % blocks
    parts: list[bytes] = []
    start = 0
    for number in range(blocks):
        length = short + (number >= blocks - longer)
        parts.append(whole[start : start + length])
        start += length
    corrections = [_remainder(part, correction) for part in parts]
    return bytes(
        byte
        for group in (parts, corrections)
        for column in zip_longest(*group)
        for byte in column
        if byte is not None
    )


def _remainder(data: bytes, correction: int) -> bytes:
    """Reed-Solomon over GF(256): the remainder of the data by the generator polynomial (7.5.2)."""
    table = _multiples(correction)
    top, below = 8 * (correction - 1), (1 << 8 * (correction - 1)) - 1
    rest = 0
    for byte in data:
        rest = (rest & below) << 8 ^ table[byte ^ rest >> top]
    return rest.to_bytes(correction)


@cache
def _multiples(correction: int) -> list[int]:
    """The generator polynomial without its first term, times each byte."""
    generator = [1]
    root = 1
    for _ in range(correction):
        generator = [a ^ _product(b, root) for a, b in zip([*generator, 0], [0, *generator], strict=True)]
        root = _product(root, 2)
    return [int.from_bytes(bytes(_product(byte, one) for one in generator[1:])) for byte in range(256)]


def _product(a: int, b: int) -> int:
    """In GF(256) with the polynomial of the standard, 0x11d."""
    result = 0
    while b:
        if b & 1:
            result ^= a
        a = a << 1 ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return result


# What a version's symbols share


@cache
def _frame(version: int) -> _Frame:
    size = 17 + 4 * version
    fixed, dark = _patterns(version, size)
    order = {place: number for number, place in enumerate(_zigzag(size, fixed))}
    codewords = _raw_codewords(version)
    nothing = 8 * codewords
    stride = size + _GAP

    def getter(*, down: bool) -> Order:
        places = [nothing] * (stride * size)
        for (x, y), number in order.items():
            if number < nothing:
                places[x * stride + y if down else y * stride + x] = number
        return itemgetter(*places)

    masks = []
    for mask, inverts in enumerate(_INVERTS):
        changed = {(x, y) for x, y in order if inverts(x, y) == 0} | dark | _format(mask, size)
        masks.append(_both(changed, size))
    return _Frame(
        version=version,
        size=size,
        codewords=codewords,
        across=getter(down=False),
        down=getter(down=True),
        masks=tuple(masks),
        inside=_both(((x, y) for x in range(size) for y in range(size)), size).across,
        everywhere=(1 << stride * size) - 1,
        length=stride * size,
    )


_INVERTS: tuple[Callable[[int, int], int], ...] = (
    lambda x, y: (x + y) % 2,
    lambda _x, y: y % 2,
    lambda x, _y: x % 3,
    lambda x, y: (x + y) % 3,
    lambda x, y: (x // 3 + y // 2) % 2,
    lambda x, y: x * y % 2 + x * y % 3,
    lambda x, y: (x * y % 2 + x * y % 3) % 2,
    lambda x, y: ((x + y) % 2 + x * y % 3) % 2,
)
"""Masks 0 to 7: a module is inverted where this is 0 (table 10)."""


def _both(modules: Iterable[tuple[int, int]], size: int) -> _Both:
    stride = size + _GAP
    last = stride * size - 1
    across = down = 0
    for x, y in modules:
        across |= 1 << last - (y * stride + x)
        down |= 1 << last - (x * stride + y)
    return _Both(across, down)


def _patterns(version: int, size: int) -> tuple[Modules, Modules]:
    """Where no data stands, and which modules there are dark (6.3); those of the format are left light."""
    fixed: Modules = set()
    dark: Modules = set()

    def put(x: int, y: int, is_dark: bool) -> None:
        fixed.add((x, y))
        (dark.add if is_dark else dark.discard)((x, y))

    for n in range(size):
        put(6, n, n % 2 == 0)
        put(n, 6, n % 2 == 0)
    for middle_x, middle_y in ((3, 3), (size - 4, 3), (3, size - 4)):
        for x in range(max(0, middle_x - 4), min(size, middle_x + 5)):
            for y in range(max(0, middle_y - 4), min(size, middle_y + 5)):
                put(x, y, max(abs(x - middle_x), abs(y - middle_y)) not in (2, 4))
    places = _alignments(version, size)
    for middle_x in places:
        for middle_y in places:
            if (middle_x, middle_y) in ((6, 6), (6, size - 7), (size - 7, 6)):
                continue
            for x in range(middle_x - 2, middle_x + 3):
                for y in range(middle_y - 2, middle_y + 3):
                    put(x, y, max(abs(x - middle_x), abs(y - middle_y)) != 1)
    for n in range(9):
        fixed.update([(8, n), (n, 8)])
    for n in range(8):
        fixed.update([(8, size - 1 - n), (size - 1 - n, 8)])
    put(8, size - 8, True)
    if version >= 7:
        bits = version << 12 | _checked(version, 12, 0x1F25)
        for n in range(18):
            put(size - 11 + n % 3, n // 3, bits >> n & 1 == 1)
            put(n // 3, size - 11 + n % 3, bits >> n & 1 == 1)
    return fixed, dark


def _alignments(version: int, size: int) -> list[int]:
    """The rows, and columns, of the alignment patterns (annex E)."""
    if version == 1:
        return []
    count = version // 7 + 2
    step = (version * 8 + count * 3 + 5) // (count * 4 - 4) * 2
    return [6, *(size - 7 - n * step for n in range(count - 2, -1, -1))]


def _format(mask: int, size: int) -> Modules:
    """The dark modules of the format: level M, which is 00, and the mask, twice (7.9.1)."""
    bits = (mask << 10 | _checked(mask, 10, 0x537)) ^ 0x5412
    first = [*((8, n) for n in range(6)), (8, 7), (8, 8), (7, 8), *((14 - n, 8) for n in range(9, 15))]
    second = [*((size - 1 - n, 8) for n in range(8)), *((8, size - 15 + n) for n in range(8, 15))]
    return {place for places in (first, second) for n, place in enumerate(places) if bits >> n & 1}


def _checked(value: int, length: int, polynomial: int) -> int:
    """The bits of a BCH code that follow the value."""
    rest = value
    for _ in range(length):
        rest = rest << 1 ^ (rest >> length - 1) * polynomial
    return rest


def _zigzag(size: int, fixed: Modules) -> Iterable[tuple[int, int]]:
    """The modules in the order in which data fills them: in pairs of columns, from the right, up and down (7.7.3)."""
    for right in range(size - 1, 0, -2):
        column = right - 1 if right <= 6 else right
        upward = column + 1 & 2 == 0
        for n in range(size):
            y = size - 1 - n if upward else n
            for x in (column, column - 1):
                if (x, y) not in fixed:
                    yield x, y


# Which mask


def _penalty(across: int, down: int, frame: _Frame, mask: int) -> int:
    """How hard a symbol is to read (7.8.3.1)."""
    chosen = frame.masks[mask]
    rows, columns = across ^ chosen.across, down ^ chosen.down
    result = _lines(rows, frame) + _lines(columns, frame)
    for plane in (rows, ~rows & frame.inside):
        pairs = plane & plane << 1
        result += 3 * (pairs & pairs << frame.size + _GAP).bit_count()
    modules = frame.size**2
    off_balance = abs(20 * rows.bit_count() - 10 * modules)
    return result + 10 * (max(0, off_balance - 1) // modules)


def _lines(dark: int, frame: _Frame) -> int:
    """Of rows, or of columns: long runs of one colour, and what looks like a finder pattern."""
    result = 0
    for plane in (dark, ~dark & frame.inside):
        two = plane & plane << 1
        five = two & two << 2 & plane << 4
        result += five.bit_count() + 2 * (five & ~(five << 1)).bit_count()
    light = ~dark & frame.everywhere
    finder = dark & light << 1 & dark << 2 & dark << 3 & dark << 4 & light << 5 & dark << 6
    if finder:
        two = light & light << 1
        four = two & two << 2
        result += 40 * ((finder & four >> 4).bit_count() + (finder & four << 7).bit_count())
    return result
