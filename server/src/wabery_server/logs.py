"""One structured line per request, inbound message and delivery attempt: ids, outcome, milliseconds.

Never a phone number, a token, a key, a message text. What reaches a log line by accident, in an exception's text say,
passes the redactor.
"""

import asyncio
import atexit
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

import msgspec

from wabery_server import tokens
from wabery_server.clock import iso

log = logging.getLogger("wabery")

_SECRETS = re.compile(
    r"(?P<prefix>\b(?:wcs|wab_live|wab_test|wab_pub|whsec)_)[0-9A-Za-z+/=_-]+"
    r"|(?P<text>\btext=)[^\s&\"']+"
    r"|(?P<phone>(?<![0-9A-Za-z_.-])\+?[1-9](?:[ ()-]{0,2}[0-9]){9,14}(?![0-9A-Za-z_.-]))",
    re.IGNORECASE,
)
_encode = msgspec.json.Encoder().encode


def redact(text: str) -> str:
    """The text without tokens, keys, secrets and phone numbers."""
    return _SECRETS.sub(_mask, tokens.redact(text))


def _mask(match: re.Match[str]) -> str:
    return f"{match['prefix'] or match['text'] or ''}[redacted]"


class Sink(logging.Handler):
    """Writes JSON lines to a text stream.

    Information is gathered for a tenth of a second, so that a busy process makes one system call for many lines;
    a warning, and what was gathered before it, is written at once.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._lost = 0
        atexit.register(self.flush)

    def emit(self, record: logging.LogRecord) -> None:
        facts: dict[str, object] = getattr(record, "facts", {})
        error = record.exc_info[1] if record.exc_info else None
        trace = redact(_trace(error)) if error else None
        at = datetime.fromtimestamp(record.created, UTC)
        self._lines.append(_json(at, record.levelname.lower(), redact(record.getMessage()), facts, trace))
        self.flush()

    def put(self, event: str, facts: dict[str, object]) -> None:
        """A line of information, in time."""
        self._lines.append(_json(datetime.now(UTC), "info", event, facts))
        if self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(_GATHER_SECONDS, self.flush)
            except RuntimeError:
                self.flush()

    def flush(self) -> None:
        """Lines that cannot be written, because the disk is full for example, are lost and counted: requests go on."""
        self._timer = None
        lines, self._lines = self._lines, []
        if self._lost and lines:
            lines.append(_json(datetime.now(UTC), "error", "log_lines_lost", {"lines": self._lost}))
        if lines:
            try:
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                self._lost += len(lines) - bool(self._lost)
            else:
                self._lost = 0


_GATHER_SECONDS = 0.1
_sink: Sink | None = None


def line(event: str, **facts: object) -> None:
    """One line of information; `event` is a constant, `facts` are ids, codes and numbers, and go out as they are."""
    if not log.isEnabledFor(logging.INFO):
        return
    if _sink is not None:
        _sink.put(event, facts)
    else:
        log.info(event, extra={"facts": facts})


class Outage:
    """Logs a trouble once when it begins and once when it is over, not once for each request that it hits."""

    def __init__(
        self, event: str, *, quiet: float = 5.0, now: Callable[[], float] = time.monotonic, **facts: object
    ) -> None:
        self._event = event
        self._facts = facts
        self._quiet = quiet
        self._now = now
        self._began = 0.0
        self._last = 0.0
        self._hits = 0
        self.on = False
        """Whether it lasts: then a success is to be told to `over`."""

    def hit(self, problem: str, **facts: object) -> None:
        """`problem` is what failed, in a word or a code; it must not hold anything that people wrote."""
        self._last = self._now()
        self._hits += 1
        if not self.on:
            self.on = True
            self._began, self._hits = self._last, 1
            log.error(self._event, extra={"facts": {"problem": problem, **self._facts, **facts}})

    def over(self) -> None:
        """Something has succeeded. With nothing failed for some seconds the trouble is over."""
        now = self._now()
        if self.on and now - self._last >= self._quiet:
            self.on = False
            seconds = round(self._last - self._began, 1)
            line(f"{self._event}_over", seconds=seconds, hits=self._hits, **self._facts)


def configure(level: str, *, stream: TextIO | None = None) -> None:
    """Sends everything as JSON lines to stderr, or to `stream`. Raises ValueError for an unknown level."""
    global _sink
    log.setLevel(level.upper())
    _sink = Sink(stream or sys.stderr)
    root = logging.getLogger()
    root.handlers = [_sink]
    root.setLevel(logging.WARNING)


def _trace(error: BaseException) -> str:
    """The stack of an exception, and before it those of what led to it.

    PostgreSQL quotes the row that it refuses, and its driver the value that it cannot send: of their messages only
    what comes before is kept.
    """
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    inside = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    message = str(error)
    if type(error).__module__.startswith("asyncpg"):
        message = re.split(r"\n|: ", message, maxsplit=1)[0]
    led_to_it = [_trace(one) for one in (earlier, *inside) if one is not None]
    stack = traceback.format_tb(error.__traceback__)
    return "".join([*led_to_it, *stack, f"{type(error).__name__}: {message}\n"])


def _json(at: datetime, level: str, event: str, facts: dict[str, object], trace: str | None = None) -> str:
    whole: dict[str, object] = {"at": iso(at), "level": level, "event": event, **facts}
    if trace is not None:
        whole["trace"] = trace
    return _encode(whole).decode()
