"""Wabery: WhatsApp registration links for your users.

    from wabery import Wabery

    wabery = Wabery()  # WABERY_API_KEY, WABERY_BASE_URL
    intent = wabery.registration_intents.create(customer_reference="user_123", metadata={"plan": "starter"})
    print(intent.wa_link)

Everything is loaded on first use: `wabery.webhooks` and `wabery.keys` cost no HTTP library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from wabery._version import __version__

if TYPE_CHECKING:
    from wabery import errors, keys, webhooks
    from wabery._client import AsyncWabery, Wabery
    from wabery._core import DEFAULT_BASE_URL, NOT_GIVEN, CallOptions, NotGiven
    from wabery._models import (
        APIKey,
        BulkAnswer,
        Channel,
        ChannelCheck,
        Event,
        ItemError,
        Object,
        Project,
        RegistrationIntent,
    )
    from wabery._views import AsyncPage, Page, RawResponse
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

_WHERE = {
    "_client": ["AsyncWabery", "Wabery"],
    "_core": ["DEFAULT_BASE_URL", "NOT_GIVEN", "CallOptions", "NotGiven"],
    "_models": [
        "APIKey",
        "BulkAnswer",
        "Channel",
        "ChannelCheck",
        "Event",
        "ItemError",
        "Object",
        "Project",
        "RegistrationIntent",
    ],
    "_views": ["AsyncPage", "Page", "RawResponse"],
    "errors": [
        "APIConnectionError",
        "APIError",
        "APITimeoutError",
        "AuthenticationError",
        "BadRequestError",
        "ConflictError",
        "EndpointNotAvailableError",
        "NotFoundError",
        "PermissionDeniedError",
        "RateLimitError",
        "ServerError",
        "UnexpectedResponseError",
        "UnprocessableError",
        "UsageError",
        "WaberyError",
        "WaitTimeoutError",
        "WebhookVerificationError",
    ],
}
_HOME = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "DEFAULT_BASE_URL",
    "NOT_GIVEN",
    "APIConnectionError",
    "APIError",
    "APIKey",
    "APITimeoutError",
    "AsyncPage",
    "AsyncWabery",
    "AuthenticationError",
    "BadRequestError",
    "BulkAnswer",
    "CallOptions",
    "Channel",
    "ChannelCheck",
    "ConflictError",
    "EndpointNotAvailableError",
    "Event",
    "ItemError",
    "NotFoundError",
    "NotGiven",
    "Object",
    "Page",
    "PermissionDeniedError",
    "Project",
    "RateLimitError",
    "RawResponse",
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
    if name in ("errors", "keys", "webhooks"):
        return import_module(f"wabery.{name}")
    if name in _HOME:
        return globals().setdefault(name, getattr(import_module(f"wabery.{_HOME[name]}"), name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
