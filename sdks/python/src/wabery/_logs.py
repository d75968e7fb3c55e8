"""`WABERY_LOG=debug`: one line per attempt on stderr, with nothing in it that must stay secret.

No body, header or query value is ever logged. The redactor is the second net, for exception texts that quote their input.
"""

from __future__ import annotations

import logging
import os
import re

logger = logging.getLogger("wabery")

_SECRETS = re.compile(r"(wab_(?:live|test|pub)_|wjr_|wcs_|whsec_)[0-9a-z+/=_-]+", re.IGNORECASE)
"""Keys, link tokens, client and signing secrets."""
_PHONES = re.compile(r"(?i)(?<![0-9a-z_])\+?(?:[0-9][ ()./-]{0,2}){6,14}[0-9](?![0-9a-z])")
"""Phone numbers, as people write them."""


def without_secrets(text: str) -> str:
    """The text without keys, tokens, client secrets and signing secrets; their prefixes stay."""
    return _SECRETS.sub(r"\1…", text)


def redact(text: str) -> str:
    """`without_secrets`, and without phone numbers."""
    return _PHONES.sub("…", without_secrets(text))


class _Redactor(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        return True


def configure() -> None:
    """Follow `WABERY_LOG` (debug, info, warning, error): level and a handler on stderr. Safe to repeat."""
    if not any(isinstance(there, _Redactor) for there in logger.filters):
        logger.addFilter(_Redactor())
    level = logging.getLevelNamesMapping().get(os.environ.get("WABERY_LOG", "").upper())
    if level is None or level == logging.NOTSET:
        return
    logger.setLevel(level)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s wabery %(levelname)s %(message)s"))
        logger.addHandler(handler)
