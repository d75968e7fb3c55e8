"""QR codes read back as their link, and are those that another encoder makes."""

import base64
import re
from urllib.parse import quote

import pytest
import segno
import zxingcpp
from segno import consts
from world import INTENTS, App, tenant

from wabery_server import tokens
from wabery_server.api.drawing import draw

TOKEN = "wjr_0123456789abcdefghjkmnpqrs"
PREFILLED = {
    "usual": "Connect my account: {token}",
    "arabic": "اربط حسابي في متجر الكتب: {token}",
    "hebrew, token first": "{token} חבר את החשבון שלי",
    "chinese": "連接我的帳戶 {token}",
    "longest in arabic": f"{'ش' * 109} {{token}}",
    "longest of all": f"{'😀' * 109} {{token}}",
}
LETTERS = "thequickbrownfoxjumpsoverthelazydog" * 70
"""Lower-case letters alone are one segment of bytes for every encoder."""


def link(prefilled: str) -> str:
    return f"https://wa.me/15550100123?text={quote(prefilled.format(token=TOKEN), safe='')}"


def rows(code: dict[str, object]) -> list[str]:
    """The rows of the modules, each a string of 0 and 1."""
    size, packed = code["size"], base64.b64decode(str(code["modules"]))
    assert isinstance(size, int)
    width = (size + 7) // 8
    assert len(packed) == width * size
    lines = [packed[start : start + width] for start in range(0, len(packed), width)]
    return [f"{int.from_bytes(line):0{8 * width}b}"[:size] for line in lines]


def picture(code: dict[str, object]) -> list[str]:
    """The rows of the SVG with its quiet zone, each a string of 0 and 1."""
    size = code["size"]
    assert isinstance(size, int)
    side = size + 8
    svg = str(code["svg"])
    assert svg.startswith("<svg ")
    assert f'viewBox="0 0 {side} {side}"' in svg
    drawn = [["0"] * side for _ in range(side)]
    for x, y, length in re.findall(r"M(\d+) (\d+)\.5h(\d+)", svg):
        drawn[int(y)][int(x) : int(x) + int(length)] = "1" * int(length)
    return ["".join(row) for row in drawn]


def read(picture: list[str]) -> zxingcpp.Barcode:
    """What a reader finds in the picture, with four pixels to a module."""
    lines = [b"".join((b"\xff" if one == "0" else b"\x00") * 4 for one in row) for row in picture]
    side = 4 * len(picture)
    pixels = memoryview(b"".join(line * 4 for line in lines)).cast("B", (side, side))
    found = zxingcpp.read_barcodes(pixels)
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("text", PREFILLED.values(), ids=PREFILLED)
def test_a_code_reads_back_as_its_link(text: str) -> None:
    assert tokens.prefilled_text_problem(text) is None

    code = read(picture(draw(link(text))))

    assert code.text == link(text)
    assert code.format == zxingcpp.BarcodeFormat.QRCode
    assert code.ec_level == "M"


@pytest.mark.parametrize("text", PREFILLED.values(), ids=PREFILLED)
def test_the_picture_shows_the_modules_in_a_quiet_zone_of_four(text: str) -> None:
    code = draw(link(text))

    shown = picture(code)

    assert [row[4:-4] for row in shown[4:-4]] == rows(code)
    edge = [*shown[:4], *shown[-4:], *(row[:4] + row[-4:] for row in shown)]
    assert "1" not in "".join(edge)


@pytest.mark.parametrize("text", PREFILLED.values(), ids=PREFILLED)
def test_no_code_is_larger_than_another_encoders(text: str) -> None:
    theirs = segno.make(link(text), micro=False, error="m", boost_error=False, mode="byte")

    size = draw(link(text))["size"]

    assert isinstance(size, int)
    assert size <= theirs.symbol_size(border=0)[0]


@pytest.mark.parametrize("version", range(1, 41))
def test_every_version_is_what_another_encoder_makes(version: int) -> None:
    bits = consts.SYMBOL_CAPACITY[version][consts.ERROR_LEVEL_M]
    text = LETTERS[: (bits - (12 if version < 10 else 20)) // 8]

    ours = rows(draw(text))

    mask = int(ours[8][2:5], 2) ^ 0b101
    theirs = segno.make(text, micro=False, error="m", mask=mask, boost_error=False, mode="byte")
    assert theirs.version == version
    assert ours == ["".join("1" if dark else "0" for dark in row) for row in theirs.matrix]


async def test_the_code_of_an_intent_is_its_link(app: App) -> None:
    owner = await tenant(app, "souk", prefilled_text=PREFILLED["arabic"])

    intent = await app.mint(owner.publishable_key, include=["qr"])
    reply = await app.call("GET", f"{INTENTS}/{intent['id']}?include=qr", owner.secret_key)

    assert "%D8%A7" in intent["wa_link"]
    assert read(picture(intent["qr"])).text == intent["wa_link"]
    assert reply.body["qr"] == intent["qr"]
