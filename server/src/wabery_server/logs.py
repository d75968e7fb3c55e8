"""One structured line per request, inbound message and delivery attempt: ids, outcome, milliseconds.

Never a phone number, a token, a key, a message text. What reaches a log line by accident, in an exception's text say,
passes the redactor.
"""

import logging
import re
import sys
from datetime import UTC, datetime

import msgspec

log = logging.getLogger("wabery")

_SECRETS = re.compile(
    r"(?P<wjr>wjr[ _-]?)[0-9A-Za-z -]{20,}"
    r"|(?P<prefix>\b(?:wcs|wab_live|wab_test|wab_pub|whsec)_)[0-9A-Za-z+/=_-]+"
    r"|(?P<text>\btext=)[^\s&\"']+"
    r"|(?P<phone>(?<![0-9A-Za-z_.-])\+?[1-9](?:[ ()-]?[0-9]){9,14}(?![0-9A-Za-z_.-]))",
    re.IGNORECASE,
)
_encode = msgspec.json.Encoder().encode


def redact(text: str) -> str:
    """The text without tokens, keys, secrets and phone numbers."""
    return _SECRETS.sub(_mask, text)


def _mask(match: re.Match[str]) -> str:
    return f"{match['wjr'] or match['prefix'] or match['text'] or ''}[redacted]"


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": redact(record.getMessage()),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["trace"] = redact(self.formatException(record.exc_info))
        return _encode(line).decode()


def line(event: str, **facts: object) -> None:
    """One INFO line; `facts` are ids, codes and numbers, and go out as they are."""
    if log.isEnabledFor(logging.INFO):
        log.info(event, extra={"facts": facts})


def configure(level: str, *, stream: object = None) -> None:
    """Sends everything as JSON lines to stderr. Raises ValueError for an unknown level."""
    handler = logging.StreamHandler(stream or sys.stderr)  # type: ignore[arg-type]  # any text stream
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    log.setLevel(level.upper())
