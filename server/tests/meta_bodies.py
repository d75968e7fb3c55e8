"""Webhook bodies as Meta posts them, of any shape and in any company; `phone.payloads` makes plain texts only."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeAlias

from wabery_server.accounts import Channel
from wabery_server.contacts import Identity
from wabery_server.phone.payloads import new_message_id

Json: TypeAlias = dict[str, Any]


def envelope(*changes: Json) -> bytes:
    """One entry for each change."""
    entry = [{"id": one["value"].get("waba_id", "0"), "changes": [one]} for one in changes]
    return json.dumps({"object": "whatsapp_business_account", "entry": entry}).encode()


def change(
    channel: Channel,
    *messages: Json,
    contacts: Sequence[Json] = (),
    field: str = "messages",
    **more: object,
) -> Json:
    """What happened on one number."""
    metadata = {
        "display_phone_number": channel.display_phone_number,
        "phone_number_id": channel.phone_number_id,
    }
    value = {"messaging_product": "whatsapp", "metadata": metadata, **more}
    if contacts:
        value["contacts"] = list(contacts)
    if messages:
        value["messages"] = list(messages)
    return {"field": field, "value": value}


def message(
    sender: Identity | None,
    at: datetime,
    type: str = "text",
    *,
    message_id: str | None = None,
    **content: object,
) -> Json:
    """A message; `content` are the keys beside its id, time and type."""
    made: Json = {"id": message_id or new_message_id(), "timestamp": str(int(at.timestamp())), "type": type}
    if sender is not None:
        ids = {"from": sender.phone, "from_user_id": sender.bsuid, "from_parent_user_id": sender.parent_bsuid}
        made |= {name: value for name, value in ids.items() if value is not None}
    return {**made, **content}


def text(sender: Identity | None, at: datetime, body: str, **content: object) -> Json:
    return message(sender, at, text={"body": body}, **content)  # type: ignore[arg-type]  # keys of the message, by name


def contact(of: Identity) -> Json:
    ids = {"wa_id": of.phone, "user_id": of.bsuid, "parent_user_id": of.parent_bsuid}
    profile = {"name": of.profile_name, "username": of.username and f"@{of.username}"}
    return {
        **{name: value for name, value in ids.items() if value is not None},
        "profile": {name: value for name, value in profile.items() if value is not None},
    }
