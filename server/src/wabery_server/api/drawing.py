"""QR codes, drawn so that other requests do not wait for them.

Drawing one takes two or three milliseconds of this process's only processor. Codes are therefore drawn one at a time,
with a turn of the event loop after each, and those who want many take turns with those who want one.
"""

import asyncio
import base64
import io
from collections import OrderedDict, deque
from collections.abc import Hashable

import segno

_MASK = 3
"""One of the eight masks of ISO/IEC 18004, 7.8. Readers accept all; trying each takes four times as long, and on a random
token no mask is better than another by much."""

Code = dict[str, object]


class Drawer:
    """Draws links, one after the other; whoever waits under another key gets every second turn."""

    def __init__(self) -> None:
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
                key, links = self._waiting.popitem(last=False)
                link, future = links.popleft()
                if links:
                    self._waiting[key] = links
                if future.done():  # its caller has gone away
                    continue
                try:
                    future.set_result(draw(link))
                except ValueError as failure:
                    future.set_exception(failure)
                await asyncio.sleep(0)
        finally:
            self._drawing = None


def draw(link: str) -> Code:
    """`modules`: rows of bits, most significant first, each row padded to bytes, base64. Four quiet modules are yours."""
    code = segno.make(link, micro=False, error="m", mask=_MASK)
    size = len(code.matrix)
    width = (size + 7) // 8
    rows = ["".join("1" if dark else "0" for dark in row).ljust(width * 8, "0") for row in code.matrix]
    packed = b"".join(int(row, 2).to_bytes(width) for row in rows)
    svg = io.BytesIO()
    code.save(svg, kind="svg", border=4, dark="#000", light="#fff", xmldecl=False, svgns=True, nl=False)
    return {"size": size, "modules": base64.b64encode(packed).decode(), "svg": svg.getvalue().decode()}
