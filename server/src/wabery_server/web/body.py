"""How a request's body is framed (RFC 9112, 6 and 7), and the memory that bodies may take."""

import re
from typing import TYPE_CHECKING, Final

from wabery_server import errors
from wabery_server.web.bounds import BODY_MEMORY, Bounds

if TYPE_CHECKING:
    from wabery_server.web.exchange import Exchange

_CHUNK_LINE: Final = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")


class Length:
    """A body of `Content-Length` bytes."""

    __slots__ = ("remaining",)

    def __init__(self, length: int) -> None:
        self.remaining = length

    @property
    def complete(self) -> bool:
        return self.remaining == 0

    def take(self, buffer: bytes, at: int) -> tuple[bytes, int]:
        """The body's next bytes, from `at` on, and where they end."""
        part = buffer[at : at + self.remaining]
        self.remaining -= len(part)
        return part, at + len(part)


class Chunked:
    """A body in chunks. Extensions and trailers are read, bounded, and forgotten."""

    __slots__ = ("_bounds", "_extra", "_state", "_wanted", "complete")

    _SIZE, _DATA, _END_OF_DATA, _TRAILERS = range(4)

    def __init__(self, bounds: Bounds) -> None:
        self.complete = False
        self._bounds = bounds
        self._state = self._SIZE
        self._wanted = 0
        self._extra = 0
        """Bytes of extensions and trailers so far."""

    def take(self, buffer: bytes, at: int) -> tuple[bytes, int]:
        """The body's next bytes, from `at` on, and where reading goes on. Raises errors.InvalidRequest.

        What is left of the buffer is the beginning of a line, at most `chunk_line` bytes.
        """
        parts: list[bytes] = []
        size = len(buffer)
        while at < size and not self.complete:
            if self._state == self._DATA:
                part = buffer[at : at + self._wanted]
                parts.append(part)
                at += len(part)
                self._wanted -= len(part)
                if not self._wanted:
                    self._state = self._END_OF_DATA
                continue
            if self._state == self._END_OF_DATA:
                found = buffer[at : at + 2]
                if not b"\r\n".startswith(found):
                    raise _invalid("A chunk is longer than its size.")
                if len(found) < 2:
                    break
                at += 2
                self._state = self._SIZE
                continue
            end = buffer.find(b"\n", at, at + self._bounds.chunk_line)
            if end < 0:
                if size - at >= self._bounds.chunk_line:
                    raise _invalid(f"A chunk's line exceeds {self._bounds.chunk_line} bytes.")
                break
            if buffer[end - 1 : end] != b"\r" or end == at:
                raise _invalid("A chunk's line must end with CRLF.")
            self._line(buffer[at : end - 1])
            at = end + 1
        return parts[0] if len(parts) == 1 else b"".join(parts), at

    def _line(self, line: bytes) -> None:
        if self._state == self._SIZE:
            found = _CHUNK_LINE.fullmatch(line)
            if found is None:
                raise _invalid("A chunk's size must be a hexadecimal number.")
            self._wanted = int(found[1], 16)
            self._count(len(line) - len(found[1]))
            self._state = self._DATA if self._wanted else self._TRAILERS
        elif not line:
            self.complete = True
        else:
            if _TRAILER.fullmatch(line) is None:
                raise _invalid("A trailer is not a header line.")
            self._count(len(line))

    def _count(self, extra: int) -> None:
        self._extra += extra
        if self._extra > self._bounds.trailers:
            raise _invalid(f"Chunk extensions and trailers exceed {self._bounds.trailers} bytes.")


def _invalid(message: str) -> errors.InvalidRequest:
    return errors.InvalidRequest(message, hint="Let an HTTP library write the request.")


class Memory:
    """The bytes of all bodies being received or handled. When they exceed `most`, the address that holds most of them loses
    its oldest incomplete request, so that other clients go on being served."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.total = 0
        self._held: dict[str, dict[Exchange, int]] = {}
        """By address, in the order of arrival."""

    def grow(self, exchange: "Exchange", size: int) -> None:
        """Counts bytes of this exchange's body; may fail an exchange, this one too."""
        held = self._held.setdefault(exchange.address, {})
        held[exchange] = held.get(exchange, 0) + size
        self.total += size
        while self.total > self.most and (victim := self._victim()) is not None:
            BODY_MEMORY.hit(peer=victim.address, limit=self.most)
            self.leave(victim)
            victim.fail(errors.Unavailable("The server is receiving too many request bodies.", retry_after=2))

    def leave(self, exchange: "Exchange") -> None:
        """The exchange has ended, or has given up its body."""
        held = self._held.get(exchange.address)
        if held is None:
            return
        self.total -= held.pop(exchange, 0)
        if not held:
            del self._held[exchange.address]

    def _victim(self) -> "Exchange | None":
        incomplete = {
            address: next((exchange for exchange in held if exchange.more), None)
            for address, held in self._held.items()
        }
        losers = [address for address, exchange in incomplete.items() if exchange is not None]
        if not losers:
            return None
        return incomplete[max(losers, key=lambda address: sum(self._held[address].values()))]
