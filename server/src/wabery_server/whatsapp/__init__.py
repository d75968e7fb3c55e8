"""WhatsApp providers: one file for each, behind one small seam, and the table of them.

A provider verifies that a body is the provider's own and reads it into `inbox.Message`. It decides nothing: which
channel a change belongs to and what a token does is known further in.
"""

from collections.abc import Mapping
from typing import Final

from wabery_server.whatsapp import meta
from wabery_server.whatsapp.provider import Change, Ignored, Parsed, Provider, Unreadable

PROVIDERS: Final[Mapping[str, Provider]] = {"meta": meta}
"""By the name that `channels.provider` holds."""

__all__ = ["PROVIDERS", "Change", "Ignored", "Parsed", "Provider", "Unreadable"]
