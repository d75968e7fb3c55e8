"""Refusals to a caller: one class per code, with its HTTP status, its sentence and what to do about it.

The core raises these; `api.app` turns them into the contract's body. Anything else that escapes is a bug and a 500.
The class docstring is the code's documentation page; the code list is closed and generated into the contract.
"""

from typing import ClassVar


class WaberyError(Exception):
    """Base of every refusal. `message` says what happened, `hint` what to do, `param` which input was at fault."""

    code: ClassVar[str]
    status: ClassVar[int]
    message: str
    hint: str | None = None

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        hint: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        if message is not None:
            self.message = message
        if hint is not None:
            self.hint = hint
        self.param = param
        self.retry_after = retry_after
        """Seconds; answered as `Retry-After`, rounded up."""
        super().__init__(self.message)


# 400: the request itself is wrong


class InvalidRequest(WaberyError):
    """The request cannot be understood: malformed JSON, a wrong type, an unknown field, a missing one."""

    code, status = "invalid_request", 400
    message = "The request is not valid."
    hint = "Compare the request with openapi.json, which this server has at /v1/openapi.json."


class InvalidCustomerReference(WaberyError):
    """`customer_reference` must be 1 to 255 characters, without white space at either end, control or invisible characters."""

    code, status = "invalid_customer_reference", 400
    message = (
        "customer_reference must be 1 to 255 characters, without white space at either end, control characters or "
        "invisible characters."
    )
    hint = "Send the id your own system uses for this user."


class InvalidMetadata(WaberyError):
    """`metadata` must be a JSON object of depth 5 at most."""

    code, status = "invalid_metadata", 400
    message = "metadata must be a JSON object nested at most 5 levels deep."
    hint = 'Send an object such as {"plan": "starter"}, and keep what is deeper on your side.'


class MetadataTooLarge(WaberyError):
    """`metadata` must take at most 16 KiB as JSON."""

    code, status = "metadata_too_large", 400
    message = "metadata must take at most 16384 bytes as JSON."
    hint = "Store large values on your side and put their id here."


class ExpiresInOutOfRange(WaberyError):
    """`expires_in` must be a whole number of seconds, 60 to 604800."""

    code, status = "expires_in_out_of_range", 400
    message = "expires_in must be a whole number of seconds, 60 to 604800."
    hint = "Send seconds, such as 3600 for an hour; leave it out for the project's own lifetime."


class InvalidCursor(WaberyError):
    """The `cursor` is not one that this server made for this list."""

    code, status = "invalid_cursor", 400
    message = "This cursor was not made by this server for this list."
    hint = "Start the list again without a cursor."


class InvalidIdempotencyKey(WaberyError):
    """`Idempotency-Key` must be 1 to 255 printable ASCII characters, bare or quoted."""

    code, status = "invalid_idempotency_key", 400
    message = "Idempotency-Key must be 1 to 255 printable ASCII characters."
    hint = "A random UUID will do."


class UnsupportedMediaType(WaberyError):
    """A body must be sent as `application/json`."""

    code, status = "unsupported_media_type", 415
    message = "Send the body as JSON with Content-Type: application/json."
    hint = "Set the header; curl needs -H 'Content-Type: application/json'."


class PayloadTooLarge(WaberyError):
    """The body is larger than this call takes."""

    code, status = "payload_too_large", 413
    message = "The request body is too large."
    hint = "Split it: fewer items in a bulk call, less metadata."


class HeadersTooLarge(WaberyError):
    """The request's line and headers take more than 32 KiB."""

    code, status = "headers_too_large", 431
    message = "The request's line and headers exceed the 32,768-byte limit."
    hint = "Leave out cookies and other headers that are not meant for this server."


class RequestTimeout(WaberyError):
    """The request did not arrive in time: its headers within 10 seconds, or the next part of its body within 30."""

    code, status = "request_timeout", 408
    message = "The request did not arrive in time."
    hint = "Send it again on a new connection."


# 401: who are you


class InvalidApiKey(WaberyError):
    """There is no such key, it is mistyped (its checksum fails), or it has been revoked."""

    code, status = "invalid_api_key", 401
    message = "This API key is not valid."
    hint = "Check for a typo with `wabery keys check`; a revoked key must be replaced."


class MissingApiKey(WaberyError):
    """No key was sent."""

    code, status = "missing_api_key", 401
    message = "No API key was sent."
    hint = "Send a secret key as `Authorization: Bearer wab_live_…` or a publishable key as `x-wabery-publishable-key: wab_pub_…`."


class KeyExpired(WaberyError):
    """The key's expiry has passed, or a rotation has replaced this value of it and their overlap is over."""

    code, status = "key_expired", 401
    message = "This API key has expired."
    hint = "Make a new key."


class ReferenceSignatureMissing(WaberyError):
    """The project refuses customer references that the app has not signed."""

    code, status = "reference_signature_missing", 401
    message = "This project takes unsigned customer references from secret keys only."
    hint = "Mint on your server with a secret key."


class InvalidSignature(WaberyError):
    """The body is not signed by the app secret of any channel here."""

    code, status = "invalid_signature", 401
    message = "The body's signature matches no channel's app secret."
    hint = "Compare the app secret of the channel with the one in the Meta app dashboard."


# 403: not for you


class InsufficientScope(WaberyError):
    """The key does not carry the scope this call needs."""

    code, status = "insufficient_scope", 403
    message = "This API key lacks the scope this call needs."
    hint = "Use a key that has it; the scopes of a key are fixed, so make another one."


class SecretKeyInBrowser(WaberyError):
    """A secret key came with an `Origin` header: it has leaked into a browser."""

    code, status = "secret_key_in_browser", 403
    message = "A secret key was sent from a browser."
    hint = "Revoke this key now, and use a publishable key (wab_pub_…) in browsers."


class OriginNotAllowed(WaberyError):
    """The publishable key lists its origins and this one is not among them."""

    code, status = "origin_not_allowed", 403
    message = "This publishable key may not be used from this origin."
    hint = "Add the origin to the key's allowed_origins."


class OriginRequired(WaberyError):
    """The publishable key lists its origins, and the request names none."""

    code, status = "origin_required", 403
    message = "This publishable key may only be used from a browser on one of its allowed origins."
    hint = "Call from one of those pages, or with a secret key from your server."


class WrongClientSecret(WaberyError):
    """The client secret does not belong to this intent."""

    code, status = "wrong_client_secret", 403
    message = "This client secret does not belong to this registration intent."
    hint = "Send the client_secret that came with the mint answer."


class InvalidVerifyToken(WaberyError):
    """The handshake's `hub.verify_token` belongs to no channel here."""

    code, status = "invalid_verify_token", 403
    message = "hub.verify_token matches no channel."
    hint = "Enter the channel's verify_token in the Meta app dashboard."


class ForeignHost(WaberyError):
    """`wabery dev` answers only to its own loopback address."""

    code, status = "foreign_host", 403
    message = "`wabery dev` answers only requests to its loopback address from loopback pages."
    hint = "Use http://127.0.0.1 or http://localhost with its port; run `wabery serve` for other machines."


# 404, 405: not here


class NotFound(WaberyError):
    """There is no such object in this key's project."""

    code, status = "not_found", 404
    message = "There is no such object."
    hint = "Compare the id, and whether the key belongs to the same project."


class UnknownPath(WaberyError):
    """This build serves no such path. The answer has no `Wabery-Version` header."""

    code, status = "unknown_path", 404
    message = "This server does not serve this path."
    hint = "GET /v1/openapi.json has what it serves; a newer path needs a newer server."


class MethodNotAllowed(WaberyError):
    """This build serves the path, but not with this method. The answer has no `Wabery-Version` header."""

    code, status = "method_not_allowed", 405
    message = "This path does not take this method."
    hint = "Use a method that openapi.json has for it."


# 409: the state is against it


class IdempotencyKeyReused(WaberyError):
    """The same `Idempotency-Key` came before with another body."""

    code, status = "idempotency_key_reused", 409
    message = "This Idempotency-Key was used before with another request body."
    hint = "Use a new key for a new request."


class IdempotencyInProgress(WaberyError):
    """A request with this `Idempotency-Key` is still running."""

    code, status = "idempotency_in_progress", 409
    message = "A request with this Idempotency-Key is still running."
    hint = "Send it again in a second."


class AlreadyJoined(WaberyError):
    """The intent is JOINED and cannot be cancelled."""

    code, status = "already_joined", 409
    message = "This registration intent has already been joined."
    hint = "A join cannot be cancelled; mint a new intent to link somebody else."


class NotPending(WaberyError):
    """The intent has already ended, and this call needs it pending."""

    code, status = "not_pending", 409
    message = "This registration intent is no longer pending."
    hint = "Mint a new intent."


class KeyRevoked(WaberyError):
    """The key has been revoked or has expired: it cannot be rotated or made to work again."""

    code, status = "key_revoked", 409
    message = "This API key has been revoked."
    hint = "Make a new key."


class NumberTaken(WaberyError):
    """The phone_number_id belongs to another channel; a number belongs to exactly one."""

    code, status = "number_taken", 409
    message = "This phone_number_id already belongs to a channel."
    hint = "Delete the other channel first."


# 422: understood, but not allowed


class ChannelNotReady(WaberyError):
    """The project has no channel that can receive the message."""

    code, status = "channel_not_ready", 422
    message = "This project has no ready WhatsApp channel."
    hint = "Add one with POST /v1/channels, or name it in channel_id."


class TooManyPending(WaberyError):
    """Five intents that your server minted for this reference are pending, and the project's `supersede` is off."""

    code, status = "too_many_pending", 422
    message = "Five registration intents for this customer_reference are pending already."
    hint = "Cancel one, wait for one to expire, or turn on the project's supersede setting."


class TooManyProjects(WaberyError):
    """The key, together with the keys of the projects it created, has reached the limit of test projects."""

    code, status = "too_many_projects", 422
    message = "This key has created as many test projects as it may."
    hint = "Reuse a test project, or ask the operator to raise WABERY_TEST_PROJECTS_PER_KEY."


class UnsafeWebhookUrl(WaberyError):
    """The webhook URL points where this server must not send: see the message."""

    code, status = "unsafe_webhook_url", 422
    message = "This webhook URL is not allowed."
    hint = "Name a public https URL; for a private one, the operator sets WABERY_DELIVERY_ALLOW_NETWORKS."


class PrefilledTextTooLong(WaberyError):
    """The prefilled text must contain {token} exactly once, with no letter or digit directly before or after it, no URL, no control characters, nothing that reads as a second token, and at most 140 characters including the token."""

    code, status = "prefilled_text_invalid", 422
    message = "The prefilled text cannot be used."
    hint = "Use a short sentence with {token} by itself, such as `Connect my account: {token}`."


# 429, 5xx: not now


class RateLimited(WaberyError):
    """Too many requests. `Retry-After` says in how many seconds the next one is welcome."""

    code, status = "rate_limited", 429
    message = "Too many requests."
    hint = "Wait for Retry-After seconds."


class TooManyPendingHere(WaberyError):
    """With a publishable key: too many unsigned intents for this reference are pending, from all addresses together."""

    code, status = "too_many_pending", 429
    message = "Too many unsigned registration intents for this customer_reference are pending."
    hint = "Wait for Retry-After seconds, or create the intent on your server with a secret key."


class InternalError(WaberyError):
    """A bug or an outage on our side; the log has the stack trace under the request id."""

    code, status = "internal_error", 500
    message = "Something went wrong on our side."
    hint = "Send it again with the same Idempotency-Key; if it stays, give the request id to whoever runs this server."


class Unavailable(WaberyError):
    """The server is overloaded or cannot reach its database. Nothing was changed unless a retry says so."""

    code, status = "unavailable", 503
    message = "The server cannot take this request now."
    hint = "Send it again with the same Idempotency-Key."


def catalogue() -> list[type[WaberyError]]:
    """Every refusal, in the order of this file."""
    return WaberyError.__subclasses__()
