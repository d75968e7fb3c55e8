"""QR codes, drawn so that other requests do not wait for them.

Drawing the code of a usual link takes half a millisecond, of the longest one six. The library holds the interpreter's lock
meanwhile, so a thread would not help. Codes are therefore drawn for two milliseconds at most between two turns of the event
loop, or one code if that takes longer, and callers that want many take turns with those that want one.
"""

import asyncio
import base64
import re
import time
from collections import OrderedDict, deque
from collections.abc import Hashable

import zxingcpp

_QUIET = 4
"""Light modules around a code (ISO/IEC 18004, 9.1)."""
_BITS = bytes.maketrans(b"\x00\xff", b"10")
"""From the pixels of an image: 1 is dark."""
_dark_runs = re.compile("1+").finditer

Code = dict[str, object]


class Drawer:
    """Draws links, one after the other; the keys that wait take turns. `turn_seconds`: after them others have theirs."""

    def __init__(self, *, turn_seconds: float = 0.002) -> None:
        self._turn_seconds = turn_seconds
        self._waiting: OrderedDict[Hashable, deque[tuple[str, asyncio.Future[Code]]]] = OrderedDict()
        self._drawing: asyncio.Task[None] | None = None

    async def draw(self, link: str, key: Hashable) -> Code:
        """The link as modules and as SVG. `key` is who takes turns with others, such as a project."""
        future: asyncio.Future[Code] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append((link, future))
        if self._drawing is None:
            self._drawing = asyncio.create_task(self._draw_all())
        return await future

    async def _draw_all(self) -> None:
        try:
            while self._waiting:
                until = time.monotonic() + self._turn_seconds
                self._draw_one()
                while self._waiting and time.monotonic() < until:
                    self._draw_one()
                await asyncio.sleep(0)
        finally:
            self._drawing = None

    def _draw_one(self) -> None:
        key, links = self._waiting.popitem(last=False)
        link, future = links.popleft()
        if links:
            self._waiting[key] = links
        if future.done():  # its caller has gone away
            return
        try:
            future.set_result(draw(link))
        except Exception as failure:  # noqa: BLE001  # it is its caller's, and the others are still to be drawn
            future.set_exception(failure)


def draw(link: str) -> Code:
    """`modules`: rows of bits, most significant first, each row padded to bytes, base64. Without the quiet zone."""
    rows = _rows(link)
    width = (len(rows) + 7) // 8
    packed = b"".join(int(row.ljust(width * 8, "0"), 2).to_bytes(width) for row in rows)
    return {"size": len(rows), "modules": base64.b64encode(packed).decode(), "svg": _svg(rows)}


def _rows(link: str) -> list[str]:
    """The rows of the smallest code that holds the link at error correction level M, each a string of 0 and 1."""
    code = zxingcpp.create_barcode(link, zxingcpp.BarcodeFormat.QRCode, ec_level="M")
    image = code.to_image(add_quiet_zones=False)  # one byte for each module
    pixels = memoryview(image).tobytes()  # type: ignore[arg-type]  # its stub leaves out the buffer
    bits = pixels.translate(_BITS).decode()
    size: int = image.shape[0]
    return [bits[start : start + size] for start in range(0, len(bits), size)]


def _svg(rows: list[str]) -> str:
    """One unit a module: a light square, and on it a line for each run of dark modules."""
    side = len(rows) + 2 * _QUIET
    lines = "".join(
        f"M{_QUIET + run.start()} {_QUIET + y}.5h{run.end() - run.start()}"
        for y, row in enumerate(rows)
        for run in _dark_runs(row)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{side}" height="{side}" viewBox="0 0 {side} {side}" '
        f'shape-rendering="crispEdges"><path fill="#fff" d="M0 0h{side}v{side}h-{side}z"/>'
        f'<path stroke="#000" d="{lines}"/></svg>'
    )
