"""What Meta would send for a message that somebody writes on the fake phone, byte for byte in its shape, and signed.

Tests and the bench use it too. The shape is held against recorded bodies by a test.
"""

import base64
import hmac
import json
import os
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from msgspec import Struct

from wabery_server.contacts import Identity


class Persona(Struct, frozen=True):
    """Somebody who holds the fake phone. Phone numbers are of the ranges that regulators keep for fiction."""

    key: str
    note: str
    """What this person is here to show."""
    identity: Identity

    @property
    def label(self) -> str:
        """The name in Latin letters, and as WhatsApp shows it where that differs."""
        name = self.key.capitalize()
        return name if self.identity.profile_name == name else f"{name} ({self.identity.profile_name})"


PERSONAS: Final[Mapping[str, Persona]] = {
    persona.key: persona
    for persona in (
        Persona(
            "ana",
            "shares a phone number and a name",
            Identity(bsuid="US.81200010000000000001", phone="12125550123", profile_name="Ana"),
        ),
        Persona(
            "ben",
            "has a username, so WhatsApp shares no phone number",
            Identity(bsuid="DE.81200020000000000002", username="ben.k", profile_name="Ben"),
        ),
        Persona(
            "chidi",
            "is about to change the phone number",
            Identity(bsuid="GB.81200030000000000003", phone="447700900456", profile_name="Chidi"),
        ),
        Persona(
            "dalia",
            "has an Arabic name, written from right to left",
            Identity(bsuid="FR.81200040000000000004", phone="33639980123", profile_name="داليا"),
        ),
        Persona(
            "emi",
            "has a Japanese name",
            Identity(bsuid="US.81200050000000000005", phone="12125550188", profile_name="恵美"),
        ),
        Persona(
            "stranger",
            "found a link that was meant for somebody else",
            Identity(bsuid="AU.81200060000000000006", phone="61491570156", profile_name="Stranger"),
        ),
    )
}

_encode = json.JSONEncoder(separators=(",", ":")).encode


def meta_text(
    *,
    phone_number_id: str,
    display_phone_number: str,
    waba_id: str,
    text: str,
    sender: Identity,
    message_id: str | None,
    at: datetime,
) -> bytes:
    """The webhook body of one text message. `message_id`: None for a new one; `at`: cut to whole seconds.

    Escaped as Meta escapes it (ASCII, `\\/`, `\\u0040`), so that a receiver which parses and dumps before it verifies
    fails here as it would there.
    """
    profile = {"name": sender.profile_name} if sender.profile_name is not None else {}
    if sender.username is not None:
        profile["username"] = "@" + sender.username
    contact: dict[str, object] = {"profile": profile}
    message: dict[str, object] = {}
    if sender.phone is not None:
        contact["wa_id"] = message["from"] = sender.phone
    if sender.bsuid is not None:
        contact["user_id"] = message["from_user_id"] = sender.bsuid
    if sender.parent_bsuid is not None:
        contact["parent_user_id"] = message["from_parent_user_id"] = sender.parent_bsuid
    message |= {
        "id": message_id or new_message_id(),
        "timestamp": str(int(at.timestamp())),
        "type": "text",
        "text": {"body": text},
    }
    value = {
        "messaging_product": "whatsapp",
        "metadata": {"display_phone_number": display_phone_number, "phone_number_id": phone_number_id},
        "contacts": [contact],
        "messages": [message],
    }
    document = {
        "object": "whatsapp_business_account",
        "entry": [{"id": waba_id, "changes": [{"field": "messages", "value": value}]}],
    }
    return _encode(document).replace("/", "\\/").replace("@", "\\u0040").encode("ascii")


def new_message_id() -> str:
    return "wamid." + base64.b64encode(os.urandom(30)).decode("ascii")


def sign(app_secret: bytes, body: bytes) -> dict[str, str]:
    """The headers Meta puts on a body."""
    return {
        "content-type": "application/json",
        "user-agent": "facebookexternalua",
        "x-hub-signature-256": "sha256=" + hmac.digest(app_secret, body, "sha256").hex(),
    }
