"""WhatsApp providers: one file for each, behind one small seam, and the table of them.

A provider verifies that a body is the provider's own and reads it into `inbox.Message`. It decides nothing: which
channel a change belongs to and what a token does is known further in. A checker asks the provider whether a channel of
ours can work.
"""

from collections.abc import Mapping
from typing import Final

from wabery_server.whatsapp import meta, meta_check
from wabery_server.whatsapp.provider import (
    Change,
    Checker,
    CheckName,
    Finding,
    Ignored,
    Parsed,
    Provider,
    State,
    Unreadable,
)

PROVIDERS: Final[Mapping[str, Provider]] = {"meta": meta}
"""By the name that `channels.provider` holds."""

CHECKERS: Final[Mapping[str, Checker]] = {"meta": meta_check.check}
"""By the same name."""

__all__ = [
    "CHECKERS",
    "PROVIDERS",
    "Change",
    "CheckName",
    "Checker",
    "Finding",
    "Ignored",
    "Parsed",
    "Provider",
    "State",
    "Unreadable",
]
