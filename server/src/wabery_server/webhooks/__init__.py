"""Outbound webhooks, the seam to customers' URLs: sign, refuse unsafe addresses, POST, and say when to try again.

    headers = webhooks.headers(secrets, event_id, body, at)     sign.py      who sent it, and when
    result = await poster.post(url, body, headers)              post.py      one attempt, as an Outcome
    due = webhooks.next_due(attempt, now, random(), hint)       schedule.py  the published 13 attempts

`guard.py` keeps every attempt away from addresses that are not public. Nothing here knows the database or decides
what becomes of an endpoint: the worker does.
"""

from wabery_server.webhooks.guard import LOOPBACK, Policy, UnsafeUrl, check_url, policy
from wabery_server.webhooks.post import Limits, Outcome, Poster, Result
from wabery_server.webhooks.schedule import ATTEMPTS, delay_after, next_due
from wabery_server.webhooks.sign import headers, new_secret, standard_secret

__all__ = [
    "ATTEMPTS",
    "LOOPBACK",
    "Limits",
    "Outcome",
    "Policy",
    "Poster",
    "Result",
    "UnsafeUrl",
    "check_url",
    "delay_after",
    "headers",
    "new_secret",
    "next_due",
    "policy",
    "standard_secret",
]
