"""What every WhatsApp provider does for us, and the shape in which it hands over what arrived.

Beside `__init__` rather than in it, so that a provider's file can import its types and the table can import the file.
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct, field

from wabery_server.accounts import Channel, Credentials
from wabery_server.inbox import Message
from wabery_server.settings import Settings


class Unreadable(Exception):
    """The body is not a JSON object. When it was signed, the answer is still 200: a retry would bring the same bytes."""


class Ignored(enum.StrEnum):
    """Why something in a body is counted and not kept. None of these may ever redeem a token."""

    STATUS = "status"
    """Sent, delivered, read, failed: about a message of ours."""
    REACTION = "reaction"
    """An emoji put on a message, or taken off it."""
    REVOKE = "revoke"
    """A message deleted by the person who wrote it."""
    GROUP = "group"
    """A message in a group chat: others read the token too."""
    ECHO = "echo"
    """Written by the business itself: in the WhatsApp Business app, by another application or by Meta's agent."""
    HISTORY = "history"
    """Old chats, replayed when a Business-app number is connected."""
    CONTACT_BOOK = "contact_book"
    """The Business app's address book."""
    USER_ACTION = "user_action"
    """Another action of a person than writing, such as opening a link in a message."""
    NOTICE = "notice"
    """An error or a limit that concerns the number, not a message."""
    OTHER_FIELD = "other_field"
    """A change of a webhook field that this build does not read, and whose name is not a plain word. Other fields are
    counted under their own names, such as `account_update` or `messaging_handovers`."""


class Change(Struct, frozen=True, kw_only=True):
    """One change of one number: accepted only if the secret that signed the body is that number's."""

    phone_number_id: str | None
    """The provider's id of the number written to; None for account-wide changes."""
    waba_id: str | None
    """The WhatsApp Business account: the scope of a BSUID while the portfolio is unknown."""
    field: str
    """The provider's own word for what changed."""
    messages: list[Message]
    ignored: dict[str, int]
    """What was counted and not kept, by a member of `Ignored` or by the name of the field."""
    display_digits: str | None = None
    """The number written to, as the body names it, in digits."""
    about_number: bool = True
    """Whether the field concerns one number; account and template changes name none."""


class Parsed(Struct, frozen=True):
    """A whole body, in its own order."""

    changes: list[Change] = field(default_factory=list)
    too_deep: int = 0
    """Parts that were nested too deeply to be read, and were left out."""


class Provider(Protocol):
    """A provider is a module with these functions. All are pure; none raises on odd input except where it says so."""

    def signer(self, body: bytes, headers: Sequence[bytes], secrets: Sequence[bytes]) -> int | None:
        """Which of the secrets signed these bytes. `headers`: every value of the signature header; one is expected."""

    def signed(self, headers: Sequence[bytes]) -> bool:
        """Whether the signature header can be a signature at all."""

    def phone_number_ids(self, body: bytes) -> list[str]:
        """Which numbers a body names, before it is verified: only a hint which secrets to try first."""

    def parse(self, body: bytes, received_at: datetime) -> Parsed:
        """Everything a verified body says. Raises Unreadable; anything odd inside becomes a value."""

    def handshake(self, query: Mapping[str, str], verify_tokens: Iterable[str]) -> str | None:
        """What to answer when the provider checks a new URL; None to refuse."""


State: TypeAlias = Literal["ok", "warning", "failed", "skipped"]


class CheckName(enum.StrEnum):
    """What is looked at when a channel is checked."""

    GRAPH_VERSION = "graph_version"
    """How long Meta serves the version of its API that this server speaks."""
    ACCESS_TOKEN = "access_token"
    """Whether the access token is valid, for how long, and for what."""
    NUMBER = "number"
    """Whether the number is connected to the Cloud API."""
    DISPLAY_NUMBER = "display_number"
    """Whether the links lead to this number."""
    QUALITY = "quality"
    """How people rate what the number writes."""
    BUSINESS_APP = "business_app"
    """Whether the number is in the WhatsApp Business app too."""
    HEALTH = "health"
    """Whether the number can send messages."""
    WEBHOOK_URL = "webhook_url"
    """Whether the number's messages are sent to this server."""
    ACCOUNT = "account"
    """Whether the WhatsApp Business account holds the number."""
    FIELDS = "fields"
    """Whether the app receives the webhook fields that bring messages, also while Meta's Business Agent answers."""
    SUBSCRIPTION = "subscription"
    """Whether the app is subscribed to the account's messages: where it is not, none arrive, and nothing else tells."""


class Finding(Struct, frozen=True):
    """What a check has seen."""

    name: CheckName
    state: State
    """`skipped`: it could not be looked at."""
    found: str
    """For people."""
    todo: str | None
    """What to do about it, where there is something to do."""


class Checker(Protocol):
    """Asks a provider about one of its channels. Reads only; what goes wrong is a finding."""

    async def __call__(
        self, channel: Channel, credentials: Credentials, settings: Settings, at: datetime
    ) -> list[Finding]: ...
