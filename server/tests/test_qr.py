"""QR codes: every version and mask as another encoder makes them, and a picture that shows the same modules."""

import base64
import re

import pytest
import segno

from wabery_server.api import qr
from wabery_server.api.drawing import draw

LINK = "https://wa.me/15550100123?text=Connect%20my%20account%3A%20wjr_0123456789abcdefghjkmnpqrs"


def capacity(version: int) -> int:
    """Bytes that fill a symbol to its last codeword; of shorter texts the other encoder pads some differently."""
    data = qr._raw_codewords(version) - qr._CORRECTION[version - 1] * qr._BLOCKS[version - 1]
    return data - (2 if version < 10 else 3)


def theirs(text: str, mask: int | None = None) -> segno.QRCode:
    return segno.make(text, micro=False, error="m", mask=mask, boost_error=False, mode="byte")


def rows(code: segno.QRCode) -> list[str]:
    return ["".join("1" if dark else "0" for dark in row) for row in code.matrix]


@pytest.mark.parametrize("version", range(1, 41))
def test_every_version_is_what_another_encoder_makes(version: int) -> None:
    text = (LINK * 30)[: capacity(version)]

    for mask in range(8) if version in (1, 6, 7, 10) else [version % 8]:
        code = theirs(text, mask)
        assert code.version == version
        assert qr.make(text, mask=mask) == rows(code)


@pytest.mark.parametrize("text", ["a", LINK, "https://wa.me/1?text=ünï", "x" * 300])
def test_a_mask_is_judged_as_the_standard_says(text: str) -> None:
    penalties = [penalty(qr.make(text, mask=mask)) for mask in range(8)]

    assert penalty(qr.make(text)) == min(penalties)
    assert len(set(penalties)) > 1


@pytest.mark.parametrize("text", ["", "a", LINK, "https://wa.me/1?text=ünï", "x" * 300, LINK * 8])
def test_what_is_shorter_than_its_symbol_reads_back(text: str) -> None:
    assert read(qr.make(text)) == text


def test_what_no_symbol_holds_is_refused() -> None:
    assert len(qr.make("x" * capacity(40))) == 177

    with pytest.raises(qr.TooLong):
        qr.make("x" * (capacity(40) + 1))


def test_the_picture_shows_the_modules() -> None:
    code = draw(LINK)
    size = code["size"]
    assert isinstance(size, int)
    packed = base64.b64decode(str(code["modules"]))
    width = len(packed) // size
    modules = [
        f"{int.from_bytes(packed[y * width : (y + 1) * width]):0{8 * width}b}"[:size] for y in range(size)
    ]

    drawn = [["0"] * size for _ in range(size)]
    for x, y, length in re.findall(r"M(\d+) (\d+)\.5h(\d+)", str(code["svg"])):
        for n in range(int(length)):
            drawn[int(y) - 4][int(x) - 4 + n] = "1"

    assert modules == ["".join(row) for row in drawn] == qr.make(LINK)


def read(symbol: list[str]) -> str:
    """The text of a symbol, without correcting anything."""
    size = len(symbol)
    version = (size - 17) // 4
    mask = next(
        mask
        for mask in range(8)
        if all(symbol[y][x] == "1" for x, y in qr._format(mask, size))
        and symbol[8][:6] == "".join("1" if (n, 8) in qr._format(mask, size) else "0" for n in range(6))
    )
    fixed, _ = qr._patterns(version, size)
    bits = "".join(
        "01"[symbol[y][x] == ("1" if qr._INVERTS[mask](x, y) else "0")] for x, y in qr._zigzag(size, fixed)
    )
    codewords = [int(bits[n : n + 8], 2) for n in range(0, 8 * qr._raw_codewords(version), 8)]
    blocks = qr._BLOCKS[version - 1]
    short = len(codewords) // blocks - qr._CORRECTION[version - 1]
    longer = len(codewords) % blocks
    parts: list[list[int]] = [[] for _ in range(blocks)]
    rest = iter(codewords)
    for column in range(short + (longer > 0)):
        for number in range(blocks):
            if column < short or number >= blocks - longer:
                parts[number].append(next(rest))
    data = "".join(f"{byte:08b}" for part in parts for byte in part)
    count = 8 if version < 10 else 16
    assert data[:4] == "0100"
    length = int(data[4 : 4 + count], 2)
    start = 4 + count
    return bytes(int(data[start + 8 * n : start + 8 * n + 8], 2) for n in range(length)).decode()


def penalty(symbol: list[str]) -> int:
    """7.8.3.1, module by module; the quiet zone counts as light."""
    size = len(symbol)
    lines = [*symbol, *("".join(column) for column in zip(*symbol, strict=True))]
    result = 0
    for line in lines:
        result += sum(len(run[0]) - 2 for run in re.finditer("1{5,}|0{5,}", line))
        wide = f"0000{line}0000"
        for start in range(len(line)):
            if wide[start + 4 :].startswith("1011101"):
                result += 40 * (wide[start : start + 4] == "0000")
                result += 40 * (wide[start + 11 : start + 15] == "0000")
    for y in range(size - 1):
        for x in range(size - 1):
            result += 3 * (len({symbol[y][x], symbol[y][x + 1], symbol[y + 1][x], symbol[y + 1][x + 1]}) == 1)
    dark = sum(row.count("1") for row in symbol)
    return result + 10 * (max(0, abs(20 * dark - 10 * size**2) - 1) // size**2)
