"""A link as a QR code on a terminal.

Two modules per character with half blocks. Dark on light is set explicitly, because many readers do not read an inverted
code, and half of all terminals are dark. Level L keeps it small: nothing wears off on a screen.
"""

from __future__ import annotations

import shutil

import segno

_QUIET = 4
"""Modules of margin that readers need (ISO 18004)."""
_COLOURS = {  # upper and lower module: dark is 1
    (1, 1): "\x1b[38;5;16;48;5;16m",
    (1, 0): "\x1b[38;5;16;48;5;231m",
    (0, 1): "\x1b[38;5;231;48;5;16m",
    (0, 0): "\x1b[38;5;231;48;5;231m",
}
_RESET = "\x1b[0m"
_OTHER_LINES = 4


def drawn(link: str) -> str | None:
    """The code as text, or None when this terminal is too small for it."""
    rows = half_blocks(link)
    size = shutil.get_terminal_size()
    width = _width(link)
    if size.columns < width or size.lines < len(rows) + _OTHER_LINES:
        return None
    return "\n".join(rows)


def half_blocks(link: str) -> list[str]:
    """Lines of the code, each two rows of modules."""
    modules = [list(row) for row in _code(link).matrix_iter(border=_QUIET)]
    if len(modules) % 2:
        modules.append([0] * len(modules[0]))
    lines = []
    for upper, lower in zip(modules[::2], modules[1::2], strict=True):
        line, last = [], None
        for pair in zip(upper, lower, strict=True):
            if pair != last:
                line.append(_COLOURS[pair])
                last = pair
            line.append("▀")
        lines.append("".join(line) + _RESET)
    return lines


def _width(link: str) -> int:
    return int(_code(link).symbol_size(border=_QUIET)[0])


def _code(link: str) -> segno.QRCode:
    return segno.make(link, error="l", boost_error=False, micro=False)
