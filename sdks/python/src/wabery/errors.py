"""Everything this package raises, all below `WaberyError`.

`APIError` has a class per HTTP status that callers tell apart. What the server said is on the error: `code` (stable,
for programs), `message` and `hint` (for people), `param`, `request_id` (for support), `doc_url`, and the whole `body`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from wabery._models import RegistrationIntent


class WaberyError(Exception):
    """Base of every error of this package."""

    def __init__(self, message: str = "", *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        """What to do about it, where that is known."""

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class UsageError(WaberyError, ValueError):
    """Nothing was sent: the client is set up wrongly, or an argument cannot be sent."""


class APIConnectionError(WaberyError):
    """The server could not be reached, or the connection broke before its answer was complete."""


class APITimeoutError(APIConnectionError):
    """The server did not answer in time. A write may have happened; repeating it with its idempotency key is safe."""


class UnexpectedResponseError(WaberyError):
    """A success whose body is not the contract's JSON: most often a proxy or another service at this base URL."""


class WaitTimeoutError(WaberyError):
    """`wait()` ran out of time before the intent ended. The intent goes on; wait for it again."""

    def __init__(self, message: str = "", *, intent: RegistrationIntent | None = None) -> None:
        super().__init__(message)
        self.intent = intent
        """As last seen; None when the time ran out before the first answer."""


class APIError(WaberyError):
    """The server refused: this class itself for statuses without one of their own, such as 413 and 415."""

    kind: ClassVar[str] = "api"
    """The same word in every SDK; see sdks/conformance/errors.json."""

    def __init__(
        self,
        message: str = "",
        *,
        status: int = 0,
        code: str | None = None,
        param: str | None = None,
        hint: str | None = None,
        doc_url: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        body: object = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code
        """Stable and snake_case; None when the answer did not have the contract's error body."""
        self.param = param
        self.doc_url = doc_url
        self.request_id = request_id
        self.retry_after = retry_after
        """Seconds from `Retry-After`."""
        self.body = body
        """The decoded JSON, or the text when it was not JSON."""

    def __str__(self) -> str:
        about = ", ".join(
            part
            for part in (self.code, f"HTTP {self.status}", self.request_id and f"request {self.request_id}")
            if part
        )
        return f"{super().__str__()} ({about})"


class BadRequestError(APIError):
    """400: the request itself is wrong; `param` names the field."""

    kind = "bad_request"


class AuthenticationError(APIError):
    """401: the key is missing, mistyped, revoked or expired."""

    kind = "authentication"


class PermissionDeniedError(APIError):
    """403: the key is good, but not for this."""

    kind = "permission_denied"


class NotFoundError(APIError):
    """404: no such object in this key's project."""

    kind = "not_found"


class ConflictError(APIError):
    """409: the object's state, or an idempotency key used before, is against it."""

    kind = "conflict"


class UnprocessableError(APIError):
    """422: understood, but not allowed."""

    kind = "unprocessable"


class RateLimitError(APIError):
    """429: too many requests; `retry_after` says when the next one is welcome."""

    kind = "rate_limit"


class ServerError(APIError):
    """500 and above: an outage or a bug on the server's side."""

    kind = "server"


class EndpointNotAvailableError(APIError):
    """404 or 405 without a `Wabery-Version` header: this server's build does not have the call, or it is no Wabery."""

    kind = "endpoint_not_available"


def error_class(status: int) -> type[APIError]:
    """The class for a status; `EndpointNotAvailableError` depends on a header as well and is chosen by the caller."""
    if status >= 500:
        return ServerError
    return {
        400: BadRequestError,
        401: AuthenticationError,
        403: PermissionDeniedError,
        404: NotFoundError,
        409: ConflictError,
        422: UnprocessableError,
        429: RateLimitError,
    }.get(status, APIError)


WebhookFault = Literal[
    "body_not_bytes",
    "body_reserialized",
    "body_too_large",
    "missing_header",
    "malformed_header",
    "no_secret",
    "wrong_signature",
    "timestamp_too_old",
    "timestamp_too_new",
    "no_sent_at",
    "not_an_event",
]


class WebhookVerificationError(WaberyError):
    """A delivery that must not be trusted. `fault` says which cause it is; answer it with 400 and change nothing."""

    def __init__(
        self, message: str = "", *, fault: WebhookFault = "wrong_signature", hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.fault: WebhookFault = fault
