"""Signatures of what we send: the contract's header, and Standard Webhooks 1.0.0 beside it.

Both are HMAC-SHA256 and differ in the bytes they cover and in the bytes of the key:

    x-wabery-signature   sha256=<hex> over the body           key: UTF-8 of the secret as shown, prefix included
    webhook-signature    v1,<base64> over id.timestamp.body   key: what follows `whsec_`, base64-decoded

A secret that the app chose itself need not be `whsec_` and base64. Its key for `v1` is then UTF-8 of the whole
secret, and `standard_secret` writes it in the form that Standard Webhooks libraries take.
"""

import binascii
import hmac
import os
from base64 import b64decode, b64encode
from collections.abc import Sequence
from datetime import datetime

PREFIX = "whsec_"


def new_secret() -> str:
    """`whsec_` and 32 random bytes in base64; Standard Webhooks asks for 24 to 64."""
    return PREFIX + b64encode(os.urandom(32)).decode()


def standard_secret(secret: str) -> str:
    """The form of a secret that Standard Webhooks libraries verify with; one of ours comes back as it is."""
    if _decoded(secret):
        return secret
    return PREFIX + b64encode(secret.encode()).decode()


def headers(secrets: Sequence[str], event_id: str, body: bytes, at: datetime | int) -> dict[str, str]:
    """The signature headers of one attempt made `at` (aware, or Unix seconds of wall time).

    The first secret is the contract header's. While a rotation overlaps, the second one signs
    `x-wabery-signature-next`, and `webhook-signature` carries every secret. At least one secret is needed.
    """
    timestamp = str(at if isinstance(at, int) else int(at.timestamp()))
    signed = f"{event_id}.{timestamp}.".encode() + body
    result = {
        "webhook-id": event_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join([_standard(secret, signed) for secret in secrets]),
        "x-wabery-signature": _contract(secrets[0], body),
    }
    if len(secrets) > 1:
        result["x-wabery-signature-next"] = _contract(secrets[1], body)
    return result


def _contract(secret: str, body: bytes) -> str:
    return "sha256=" + hmac.digest(secret.encode(), body, "sha256").hex()


def _standard(secret: str, signed: bytes) -> str:
    digest = hmac.digest(_decoded(secret) or secret.encode(), signed, "sha256")
    return "v1," + binascii.b2a_base64(digest, newline=False).decode()


def _decoded(secret: str) -> bytes | None:
    """The bytes after `whsec_`; None or empty for a secret of another form."""
    if not secret.startswith(PREFIX):
        return None
    try:
        return b64decode(secret[len(PREFIX) :], validate=True)
    except ValueError:
        return None
