"""Wabery: WhatsApp registration links for your users.

    from wabery import Wabery

    wabery = Wabery()  # WABERY_API_KEY, WABERY_BASE_URL
    intent = wabery.registration_intents.create(customer_reference="user_123", metadata={"plan": "starter"})
    print(intent.wa_link)

`Wabery` and `AsyncWabery` are loaded on first use, so that `wabery.webhooks` and `wabery.keys` cost no HTTP library.
"""

from typing import TYPE_CHECKING

from wabery import errors, keys, webhooks
from wabery._core import DEFAULT_BASE_URL, NOT_GIVEN, NotGiven
from wabery._models import APIKey, Channel, Event, Object, Project, RegistrationIntent
from wabery._version import __version__
from wabery.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    EndpointNotAvailableError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    UnexpectedResponseError,
    UnprocessableError,
    UsageError,
    WaberyError,
    WaitTimeoutError,
    WebhookVerificationError,
)

if TYPE_CHECKING:
    from wabery._client import AsyncWabery, Wabery

__all__ = [
    "DEFAULT_BASE_URL",
    "NOT_GIVEN",
    "APIConnectionError",
    "APIError",
    "APIKey",
    "APITimeoutError",
    "AsyncWabery",
    "AuthenticationError",
    "BadRequestError",
    "Channel",
    "ConflictError",
    "EndpointNotAvailableError",
    "Event",
    "NotFoundError",
    "NotGiven",
    "Object",
    "PermissionDeniedError",
    "Project",
    "RateLimitError",
    "RegistrationIntent",
    "ServerError",
    "UnexpectedResponseError",
    "UnprocessableError",
    "UsageError",
    "Wabery",
    "WaberyError",
    "WaitTimeoutError",
    "WebhookVerificationError",
    "__version__",
    "errors",
    "keys",
    "webhooks",
]


def __getattr__(name: str) -> object:
    if name in ("Wabery", "AsyncWabery"):
        from wabery import _client

        return globals().setdefault(name, getattr(_client, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
