"""The fake phone of `wabery dev`: write to your own server as if from WhatsApp, and see what your app would be told.

It reaches the server only as the world does. What somebody sends becomes the webhook body that Meta would post, signed
with the channel's app secret, and goes over a socket to the inbound route; what the worker delivers arrives at the
built-in receiver and is verified with the SDK.
"""

import html
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, TypeVar
from urllib.parse import unquote, urlsplit

import aiohttp
import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from wabery_server import errors
from wabery_server.clock import Clock
from wabery_server.phone import payloads
from wabery_server.phone.receiver import Delivery, Receiver

RECEIVER_PATH: Final = "/phone/receiver"
"""Where the sandbox project's webhooks are to be sent."""

_INBOUND_PATH = "/inbound/whatsapp"
_PATIENCE = aiohttp.ClientTimeout(total=30)
_PAGE = Path(__file__).with_name("page.html").read_text("utf-8")


@dataclass(frozen=True, kw_only=True)
class Channel:
    """The WhatsApp number that the phone writes to, with what Meta would know of it."""

    phone_number_id: str
    display_phone_number: str
    """Digits, as they stand in the link."""
    waba_id: str
    app_secret: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class DevPhone:
    """What `main` gives the phone."""

    base_url: str
    """This server, as a client on this machine reaches it: `http://127.0.0.1:8420`."""
    channel: Channel
    signing_secrets: Callable[[], Awaitable[Sequence[str]]]
    """Every signing secret of the sandbox project's endpoint, read anew for each delivery."""
    on_delivery: Callable[[Delivery], None]
    """Called once for each event that arrives at the built-in receiver."""
    clock: Clock


class _Send(Struct, forbid_unknown_fields=True):
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=65_536)] | None = None
    link: Annotated[str, msgspec.Meta(max_length=8192)] | None = None
    persona: str = "ana"
    message_id: Annotated[str, msgspec.Meta(min_length=1, max_length=512)] | None = None


class _Open(Struct, forbid_unknown_fields=True):
    link: Annotated[str, msgspec.Meta(max_length=8192)]


class _Sent(Struct):
    delivered: bool
    status: int
    message_id: str
    persona: str


class _Opened(Struct):
    to: str
    text: str


def routes(dev: DevPhone) -> list[Route]:
    """The phone's page, its API and the receiver. Their refusals are `errors.WaberyError`, for the app to answer."""
    receiver = Receiver(dev.signing_secrets, dev.on_delivery, dev.clock)

    async def page(request: Request) -> Response:
        return _page(dev.channel)

    async def open_link(request: Request) -> Response:
        asked = await _decode(request, _Open)
        return _json(_Opened(to=dev.channel.display_phone_number, text=_prefilled(asked.link, dev.channel)))

    async def send(request: Request) -> Response:
        return _json(await _send(dev, await _decode(request, _Send)))

    return [
        Route("/phone", page, methods=["GET"]),
        Route("/phone/api/open", open_link, methods=["POST"]),
        Route("/phone/api/send", send, methods=["POST"]),
        Route("/phone/api/deliveries", receiver.list, methods=["GET"]),
        Route(RECEIVER_PATH, receiver.take, methods=["POST"]),
    ]


async def _send(dev: DevPhone, asked: _Send) -> _Sent:
    persona = payloads.PERSONAS.get(asked.persona)
    if persona is None:
        known = ", ".join(payloads.PERSONAS)
        raise errors.InvalidRequest(f"There is no such persona. Known are {known}.", param="persona")
    if (asked.text is None) == (asked.link is None):
        raise errors.InvalidRequest("Give either text or link.", param="text")
    text = asked.text if asked.text is not None else _prefilled(asked.link or "", dev.channel)
    if not text.strip():
        raise errors.InvalidRequest(
            "There is nothing to send: WhatsApp sends no empty message.", param="text"
        )
    message_id = asked.message_id or payloads.new_message_id()
    body = payloads.meta_text(
        phone_number_id=dev.channel.phone_number_id,
        display_phone_number=dev.channel.display_phone_number,
        waba_id=dev.channel.waba_id,
        text=text,
        sender=persona.identity,
        message_id=message_id,
        at=dev.clock.now(),
    )
    status = await _post(
        dev.base_url.rstrip("/") + _INBOUND_PATH, body, payloads.sign(dev.channel.app_secret, body)
    )
    return _Sent(delivered=status == 200, status=status, message_id=message_id, persona=persona.key)


async def _post(url: str, body: bytes, headers: dict[str, str]) -> int:
    try:
        async with (
            aiohttp.ClientSession(timeout=_PATIENCE) as web,
            web.post(url, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            return answer.status
    except (aiohttp.ClientError, TimeoutError) as failure:
        raise errors.Unavailable(
            f"The fake phone cannot reach {url}.", hint="Is the server's address right?"
        ) from failure


_LINK_FORMS = {"wa.me", "api.whatsapp.com", "send"}
_PHONE = re.compile(r"\+?([0-9]{5,20})")


def _prefilled(link: str, channel: Channel) -> str:
    """The text that a link puts into the chat. Raises InvalidRequest unless it is a link to this channel's number.

    A `+` stays a `+`: some WhatsApp clients decode it so, and a link made with `quote_plus` should show here.
    """
    try:
        parts = urlsplit(link.strip())
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    query = dict(pair.partition("=")[::2] for pair in parts.query.split("&"))
    number = parts.path.strip("/") if host == "wa.me" else unquote(query.get("phone", ""))
    digits = _PHONE.fullmatch(number)
    if parts.scheme not in {"https", "http", "whatsapp"} or host not in _LINK_FORMS or digits is None:
        raise errors.InvalidRequest(
            "This is no WhatsApp link.", param="link", hint="Paste the wa_link of a registration intent."
        )
    if digits[1] != channel.display_phone_number:
        raise errors.InvalidRequest(
            f"This link opens a chat with +{digits[1]}, and the fake phone's channel is +{channel.display_phone_number}.",
            param="link",
        )
    return unquote(query.get("text", ""))


def _page(channel: Channel) -> Response:
    nonce = secrets.token_urlsafe(16)
    options = "".join(
        f'<option value="{persona.key}" data-note="{html.escape(persona.note)}">{html.escape(persona.label)}</option>'
        for persona in payloads.PERSONAS.values()
    )
    page = _PAGE.replace("{{nonce}}", nonce).replace("{{personas}}", options)
    return HTMLResponse(
        page.replace("{{number}}", html.escape(channel.display_phone_number)),
        headers={
            "Content-Security-Policy": (
                f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
                "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            ),
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
        },
    )


_T = TypeVar("_T", bound=Struct)
_AT_FAULT = re.compile(r"`\$\.(\w+)|field `(\w+)`")


async def _decode(request: Request, shape: type[_T]) -> _T:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise errors.UnsupportedMediaType
    try:
        return msgspec.json.decode(await request.body(), type=shape)
    except msgspec.ValidationError as failure:
        found = _AT_FAULT.search(str(failure))
        raise errors.InvalidRequest(f"{failure}.", param=found and (found[1] or found[2])) from failure
    except (ValueError, RecursionError) as failure:
        raise errors.InvalidRequest("The body is not JSON.") from failure


def _json(answer: Struct) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
