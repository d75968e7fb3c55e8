"""The built-in receiver of `wabery dev`: a customer's webhook endpoint, written as we tell customers to write theirs.

It believes a delivery only when both signatures hold, the contract's and the Standard Webhooks one, and shows it once
however often it comes.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from wabery import WebhookVerificationError, webhooks
from wabery_server import errors
from wabery_server.clock import Clock, iso

KEPT: Final = 100
"""The newest deliveries; older ones are forgotten."""
_CONTRACT: Final = "x-wabery-signature"
_CONTRACT_HEADERS: Final = frozenset({_CONTRACT, "x-wabery-signature-next"})


class Delivery(Struct, frozen=True, kw_only=True):
    """An event as it arrived."""

    webhook_id: str
    event: str
    sent_at: str
    received_at: str
    times: int = 1
    """How often it has come. More than once is normal: an answer may have been lost on its way."""
    payload: dict[str, object]


class _Body(Struct, rename="camel"):
    event: str
    payload: dict[str, object]
    sent_at: str


class Receiver:
    """Takes deliveries and keeps the newest in memory.

    `secrets` is asked at each delivery for every signing secret that may be in use; `on_delivery` hears of each event
    once.
    """

    def __init__(
        self,
        secrets: Callable[[], Awaitable[Sequence[str]]],
        on_delivery: Callable[[Delivery], None],
        clock: Clock,
    ) -> None:
        self._secrets = secrets
        self._on_delivery = on_delivery
        self._clock = clock
        self._kept: OrderedDict[str, Delivery] = OrderedDict()

    async def take(self, request: Request) -> Response:
        """POST: 204 for an authentic delivery, again or not; else a refusal, after which the worker tries again."""
        delivery = _verified(await request.body(), request, await self._secrets(), iso(self._clock.now()))
        known = self._kept.get(delivery.webhook_id)
        if known is not None:
            self._kept[known.webhook_id] = msgspec.structs.replace(known, times=known.times + 1)
            return Response(status_code=204)
        self._kept[delivery.webhook_id] = delivery
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        self._on_delivery(delivery)
        return Response(status_code=204)

    async def list(self, request: Request) -> Response:
        """GET: what has arrived, newest first."""
        newest_first = list(reversed(self._kept.values()))
        return Response(msgspec.json.encode({"data": newest_first}), media_type="application/json")


def _verified(body: bytes, request: Request, secrets: Sequence[str], received_at: str) -> Delivery:
    contract = [(name, value) for name, value in request.headers.items() if name in _CONTRACT_HEADERS]
    try:
        webhooks.verify(
            body, contract, secrets
        )  # alone: beside the Standard Webhooks headers it would not be asked
        webhooks.unwrap(body, request.headers, secrets)
        webhook_id = request.headers["webhook-id"]
        content = msgspec.json.decode(body, type=_Body)
    except WebhookVerificationError as refusal:
        raise errors.InvalidSignature(refusal.message, hint=refusal.hint) from refusal
    except KeyError:
        raise errors.InvalidSignature("The header webhook-id is missing.") from None
    except ValueError as failure:
        raise errors.InvalidRequest(f"The delivery is not an event: {failure}.") from failure
    return Delivery(
        webhook_id=webhook_id,
        event=content.event,
        sent_at=content.sent_at,
        received_at=received_at,
        payload=content.payload,
    )
