"""Whether a number can work at Meta: what Meta says of it, of its account and of the access token. Reads only.

Meta lets a good deal go wrong in silence: a number whose account has no subscribed app is connected and verified, and
no message ever arrives. Each finding says what was seen, and what to do about it.

Sources: Meta, "Phone numbers", "Health status", "Webhook overrides", "Subscribed apps", "Access tokens".
"""

import asyncio
import re
from collections.abc import Awaitable, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Final
from urllib.parse import urlsplit

import aiohttp
from msgspec import Meta, Struct

from wabery_server.accounts import Channel, Credentials
from wabery_server.settings import Settings
from wabery_server.whatsapp.graph import SUNSETS, Graph, GraphError, Trouble
from wabery_server.whatsapp.provider import CheckName, Finding, State

CALLBACK: Final = "/inbound/whatsapp"
"""Where Meta's webhooks arrive, below the public URL."""
SOON: Final = timedelta(days=90)
"""A version of the API that ends within this time is warned of."""
TOKEN_SOON: Final = timedelta(days=14)
NEEDED: Final = ("whatsapp_business_management", "whatsapp_business_messaging")
"""Permissions of the access token: to look at the account, and to write."""
AGENT_FIELDS: Final = ("standby", "messaging_handovers")
"""Webhook fields beside `messages`, for numbers on which Meta's Business Agent may answer."""
MAX_PAGES: Final = 20
"""Of a hundred numbers each."""
GROUP_SECONDS: Final = 6
"""For the questions of one group; the groups are asked together."""

_NUMBER = (CheckName.NUMBER, CheckName.DISPLAY_NUMBER, CheckName.QUALITY)
_SURROUNDINGS = (CheckName.BUSINESS_APP, CheckName.HEALTH, CheckName.WEBHOOK_URL)
_AFTER_TOKEN = (*_NUMBER, *_SURROUNDINGS, CheckName.ACCOUNT, CheckName.FIELDS, CheckName.SUBSCRIPTION)
_GOES_ON: Final = frozenset({Trouble.PERMISSION, Trouble.QUESTION})
"""Troubles with one question that leave hope for the others."""


# The wire: what of Meta's answers is read. Every field is optional, and unknown ones are skipped.


class _Granted(Struct):
    scope: str = ""
    target_ids: list[str] = []
    """Empty: for everything."""


class _TokenData(Struct):
    app_id: str | None = None
    is_valid: bool = False
    expires_at: Annotated[int, Meta(ge=0, lt=10**11)] | None = None
    """Unix seconds; 0: never."""
    scopes: list[str] = []
    granular_scopes: list[_Granted] = []


class _Token(Struct):
    data: _TokenData


class _Throughput(Struct):
    level: str | None = None


class _Number(Struct):
    display_phone_number: str | None = None
    status: str | None = None
    platform_type: str | None = None
    code_verification_status: str | None = None
    quality_rating: str | None = None
    throughput: _Throughput | None = None


class _Defect(Struct):
    error_code: int = 0


class _Entity(Struct):
    entity_type: str = "?"
    can_send_message: str = ""
    errors: list[_Defect] = []


class _Health(Struct):
    can_send_message: str = ""
    entities: list[_Entity] = []


class _Webhooks(Struct):
    application: str | None = None
    whatsapp_business_account: str | None = None
    phone_number: str | None = None


class _Surroundings(Struct):
    is_on_biz_app: bool | None = None
    health_status: _Health | None = None
    webhook_configuration: _Webhooks | None = None


class _Identified(Struct):
    id: str | None = None


class _Cursors(Struct):
    after: str | None = None


class _Paging(Struct):
    cursors: _Cursors | None = None
    next: str | None = None
    """Only whether there is one counts: it holds the access token."""


class _Numbers(Struct):
    data: list[_Identified] = []
    paging: _Paging | None = None


class _Subscribed(Struct):
    whatsapp_business_api_data: _Identified | None = None


class _Subscriptions(Struct):
    data: list[_Subscribed] = []


class _Field(Struct):
    name: str = ""


class _AppSubscription(Struct):
    object: str = ""
    active: bool = False
    fields: list[_Field] = []


class _AppSubscriptions(Struct):
    data: list[_AppSubscription] = []


async def check(
    channel: Channel, credentials: Credentials, settings: Settings, at: datetime
) -> list[Finding]:
    """Every finding, also those that could not be made; takes eleven seconds at worst."""
    if channel.sandbox:
        return [
            Finding(
                CheckName.NUMBER,
                "skipped",
                "A sandbox number exists on this server only: Meta does not know it.",
                None,
            )
        ]
    version = _version(settings.graph_version, at.date())
    if credentials.access_token is None:
        return [
            version,
            *_skipped(
                (CheckName.ACCESS_TOKEN, *_AFTER_TOKEN),
                "Meta answers only to an access token, and this channel has none.",
                "Set the channel's access_token to have this checked.",
            ),
        ]
    async with aiohttp.ClientSession() as web:
        graph = Graph(web, settings.graph_url, settings.graph_version, credentials.access_token)
        return [version, *await _ask_all(graph, channel, credentials, settings.public_url, at)]


async def _ask_all(
    graph: Graph, channel: Channel, credentials: Credentials, public_url: str | None, at: datetime
) -> list[Finding]:
    app_id: str | None = None
    try:
        token = (await graph.debug_token(_Token)).data
    except GraphError as failure:
        first = _troubled(CheckName.ACCESS_TOKEN, failure)
        goes_on = failure.trouble in _GOES_ON
    else:
        first = _token(token, channel, at)
        goes_on = token.is_valid
        app_id = token.app_id
    if not goes_on:
        return [first, *_skipped(_AFTER_TOKEN, "Meta was not asked: see access_token.")]
    groups = await asyncio.gather(
        _asked(_NUMBER, _about_number(graph, channel)),
        _asked(_SURROUNDINGS, _about_surroundings(graph, channel, public_url)),
        _asked((CheckName.ACCOUNT,), _about_account(graph, channel)),
        _asked((CheckName.FIELDS,), _about_fields(graph, app_id, credentials.app_secrets[0])),
        _asked((CheckName.SUBSCRIPTION,), _about_subscription(graph, channel, app_id)),
    )
    return [first, *(finding for group in groups for finding in group)]


async def _asked(names: tuple[CheckName, ...], answer: Awaitable[list[Finding]]) -> list[Finding]:
    """The findings; where the question was not answered, the first name says why."""
    try:
        async with asyncio.timeout(GROUP_SECONDS):
            return await answer
    except TimeoutError:
        trouble = GraphError(Trouble.UNREACHABLE)
    except GraphError as failure:
        trouble = failure
    return [_troubled(names[0], trouble), *_skipped(names[1:], f"Meta did not answer: see {names[0]}.")]


def _version(version: str, today: date) -> Finding:
    name = CheckName.GRAPH_VERSION
    major = int(version.removeprefix("v").partition(".")[0])
    end = SUNSETS.get(major)
    todo = "Update Wabery, or set WABERY_GRAPH_VERSION to a newer version."
    if major < min(SUNSETS) or (end is not None and end <= today):
        return Finding(name, "warning", f"Meta has stopped serving {version} of its API.", todo)
    if end is None:
        return Finding(name, "ok", f"{version}; Meta has announced no end of it.", None)
    if end - today <= SOON:
        return Finding(name, "warning", f"Meta serves {version} of its API until {end}.", todo)
    return Finding(name, "ok", f"{version}, until {end}.", None)


def _token(token: _TokenData, channel: Channel, at: datetime) -> Finding:
    name = CheckName.ACCESS_TOKEN
    if not token.is_valid:
        return Finding(name, "failed", "Meta says that the access token is not valid.", _NEW_TOKEN)
    if lacking := [scope for scope in NEEDED if scope not in token.scopes]:
        return Finding(name, "failed", f"The access token lacks {' and '.join(lacking)}.", _NEW_TOKEN)
    for granted in token.granular_scopes:
        if granted.scope in NEEDED and granted.target_ids and channel.waba_id not in granted.target_ids:
            return Finding(
                name,
                "failed",
                f"The access token is for other WhatsApp accounts than {channel.waba_id}.",
                "Give the token's system user this account in Meta Business Suite, and make a new token.",
            )
    if not token.expires_at:
        return Finding(name, "ok", "It is valid, has both permissions, and does not expire.", None)
    ends_at = datetime.fromtimestamp(token.expires_at, UTC)
    if ends_at - at <= TOKEN_SOON:
        return Finding(
            name, "warning", f"The access token expires on {ends_at:%Y-%m-%d %H:%M} UTC.", _NEW_TOKEN
        )
    return Finding(name, "ok", f"It is valid and has both permissions, until {ends_at:%Y-%m-%d}.", None)


_NEW_TOKEN = f"Make a token of a system user that never expires, with {' and '.join(NEEDED)}, and set the channel's access_token."


async def _about_number(graph: Graph, channel: Channel) -> list[Finding]:
    fields = "display_phone_number,status,platform_type,code_verification_status,quality_rating,throughput"
    number = await graph.get(channel.phone_number_id, _Number, fields=fields)
    return [_connection(number), _display(number, channel), _quality(number)]


def _connection(number: _Number) -> Finding:
    name = CheckName.NUMBER
    if number.platform_type != "CLOUD_API":
        return Finding(
            name,
            "failed",
            f"The number is not on the Cloud API (platform {_word(number.platform_type)}).",
            "Register it: POST /{phone-number-id}/register with its two-step PIN, or in WhatsApp Manager.",
        )
    if number.status != "CONNECTED":
        return Finding(
            name,
            "failed",
            f"The number is not connected (status {_word(number.status)}).",
            "Open WhatsApp Manager: it says what Meta waits for.",
        )
    if number.code_verification_status == "NOT_VERIFIED":
        return Finding(
            name,
            "warning",
            "The number is connected, but nobody has proved to own it.",
            "Verify it by SMS or call in WhatsApp Manager.",
        )
    level = number.throughput.level if number.throughput else None
    return Finding(name, "ok", f"It is connected to the Cloud API (throughput {_word(level)}).", None)


def _display(number: _Number, channel: Channel) -> Finding:
    name = CheckName.DISPLAY_NUMBER
    digits = re.sub(r"\D", "", number.display_phone_number or "")
    if not digits:
        return Finding(name, "skipped", "Meta does not tell the number.", None)
    if digits != channel.display_phone_number:
        return Finding(
            name,
            "failed",
            f"Links lead to +{channel.display_phone_number}, but Meta calls this number +{digits}.",
            f"Set the channel's display_phone_number to +{digits}.",
        )
    return Finding(name, "ok", f"Links lead to +{digits}.", None)


def _quality(number: _Number) -> Finding:
    name = CheckName.QUALITY
    if number.quality_rating == "RED":
        return Finding(
            name,
            "warning",
            "Its quality is low: people block or report it.",
            "Write to fewer people who do not expect it; Meta may restrict the number.",
        )
    return Finding(name, "ok", f"Its quality rating is {_word(number.quality_rating)}.", None)


async def _about_surroundings(graph: Graph, channel: Channel, public_url: str | None) -> list[Finding]:
    # Apart from the other fields: a version of the API that lacks one of these refuses the whole question.
    fields = "is_on_biz_app,health_status,webhook_configuration"
    found = await graph.get(channel.phone_number_id, _Surroundings, fields=fields)
    return [
        _business_app(found.is_on_biz_app),
        _health(found.health_status),
        _webhook(found.webhook_configuration or _Webhooks(), public_url),
    ]


def _business_app(is_on_biz_app: bool | None) -> Finding:
    name = CheckName.BUSINESS_APP
    if is_on_biz_app:
        return Finding(
            name,
            "warning",
            "The number is in the WhatsApp Business app too: the first message of a chat may arrive without its text.",
            "Use a number of its own for registrations, or ask people who stay unconnected to send it again.",
        )
    return Finding(name, "ok", "The number is not in the WhatsApp Business app.", None)


def _health(health: _Health | None) -> Finding:
    name = CheckName.HEALTH
    if health is None:
        return Finding(name, "skipped", "Meta does not tell.", None)
    # The summary covers calls too, so it may say BLOCKED where every part may send messages.
    parts = [part for part in health.entities if part.can_send_message] or [
        _Entity("number", health.can_send_message)
    ]
    for word, state in _BAD_HEALTH.items():
        if bad := [part for part in parts if part.can_send_message == word]:
            return Finding(
                name,
                state,
                f"Sending is {word.lower()}: {', '.join(map(_defects, bad))}.",
                "Look the codes up in Meta's health status page; WhatsApp Manager says what to mend.",
            )
    return Finding(name, "ok", "Messages can be sent.", None)


_BAD_HEALTH: Final[Mapping[str, State]] = {"BLOCKED": "failed", "LIMITED": "warning"}


def _defects(part: _Entity) -> str:
    codes = ", ".join(str(defect.error_code) for defect in part.errors)
    return _word(part.entity_type) + (f" ({codes})" if codes else "")


def _webhook(found: _Webhooks, public_url: str | None) -> Finding:
    """The most special of the three URLs is the one that Meta uses."""
    name = CheckName.WEBHOOK_URL
    used = found.phone_number or found.whatsapp_business_account or found.application
    ours = public_url.rstrip("/") + CALLBACK if public_url else None
    enter = f"Enter {ours or f'this server at {CALLBACK}'} as the callback URL in the Meta app's WhatsApp configuration."
    if not used:
        return Finding(name, "failed", "Meta has no URL to send this number's messages to.", enter)
    if ours is None:
        return Finding(
            name,
            "skipped",
            f"Meta sends to {_shown(used)}; whether that is this server is not known here.",
            "Set WABERY_PUBLIC_URL to have it compared.",
        )
    if used.rstrip("/") == ours:
        return Finding(name, "ok", "Meta sends to this server.", None)
    if found.phone_number or found.whatsapp_business_account:
        enter = "Remove the override of this number or account, or set it to " + ours + "."
    return Finding(name, "failed", f"Meta sends to {_shown(used)}, not to {ours}.", enter)


def _shown(url: str) -> str:
    """Without the parts in which people put secrets."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an unreadable URL"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:200]


async def _about_account(graph: Graph, channel: Channel) -> list[Finding]:
    name = CheckName.ACCOUNT
    after: dict[str, str] = {}
    for _ in range(MAX_PAGES):
        page = await graph.get(
            f"{channel.waba_id}/phone_numbers", _Numbers, fields="id", limit="100", **after
        )
        if any(number.id == channel.phone_number_id for number in page.data):
            return [Finding(name, "ok", f"The account {channel.waba_id} holds the number.", None)]
        if page.paging is None or page.paging.next is None or page.paging.cursors is None:
            break
        after = {"after": page.paging.cursors.after or ""}
    return [
        Finding(
            name,
            "failed",
            f"The account {channel.waba_id} does not hold the number {channel.phone_number_id}.",
            "Compare both ids with Meta's dashboard; delete the channel and create it with the right ones.",
        )
    ]


async def _about_fields(graph: Graph, app_id: str | None, app_secret: str) -> list[Finding]:
    """Asks as the app itself, since no other token may see its webhook fields."""
    name = CheckName.FIELDS
    if app_id is None or not app_id.isdigit():
        return [Finding(name, "skipped", "The access token does not name its app.", None)]
    try:
        page = await graph.acting(f"{app_id}|{app_secret}").get(f"{app_id}/subscriptions", _AppSubscriptions)
    except GraphError as failure:
        if failure.trouble is not Trouble.TOKEN:
            raise
        return [
            Finding(
                name,
                "warning",
                f"Meta does not accept this channel's app secret for the token's app {app_id}.",
                "Compare it with App settings > Basic; a webhook that is signed with another secret is rejected.",
            )
        ]
    fields = {
        field.name
        for one in page.data
        if one.active and one.object == "whatsapp_business_account"
        for field in one.fields
    }
    if "messages" not in fields:
        return [
            Finding(
                name,
                "failed",
                f"No message will arrive: the app {app_id} is not subscribed to the webhook field messages.",
                f"Subscribe to messages, {' and '.join(AGENT_FIELDS)} under WhatsApp > Configuration.",
            )
        ]
    if missing := [field for field in AGENT_FIELDS if field not in fields]:
        return [
            Finding(
                name,
                "warning",
                f"The app is not subscribed to {' and '.join(missing)}: while Meta's Business Agent holds a conversation,"
                " its messages, registrations included, arrive there alone.",
                f"Subscribe to {' and '.join(missing)} under WhatsApp > Configuration, if the agent may be on.",
            )
        ]
    return [Finding(name, "ok", f"The app receives messages, {' and '.join(AGENT_FIELDS)}.", None)]


async def _about_subscription(graph: Graph, channel: Channel, app_id: str | None) -> list[Finding]:
    name = CheckName.SUBSCRIPTION
    page = await graph.get(f"{channel.waba_id}/subscribed_apps", _Subscriptions)
    subscribed = {app.whatsapp_business_api_data.id for app in page.data if app.whatsapp_business_api_data}
    if app_id is not None and app_id in subscribed:
        return [Finding(name, "ok", f"The account's messages go to the token's app {app_id}.", None)]
    if subscribed and app_id is None:
        return [
            Finding(
                name,
                "warning",
                "Apps are subscribed to the account's messages, but which of them is ours the token does not tell.",
                "In Meta's dashboard, look for the app whose secret this channel has.",
            )
        ]
    return [
        Finding(
            name,
            "failed",
            f"No message will arrive: the account's messages do not go to the token's app ({_word(app_id)}).",
            f"Subscribe it: POST /{channel.waba_id}/subscribed_apps with this access token.",
        )
    ]


def _troubled(name: CheckName, failure: GraphError) -> Finding:
    state, found, todo = _TROUBLES[failure.trouble]
    told = ", ".join(
        part
        for part in (
            failure.code and f"error {failure.code}",
            failure.trace and f"fbtrace_id {failure.trace}",
        )
        if part
    )
    return Finding(name, state, f"{found} ({told})." if told else f"{found}.", todo)


_TROUBLES: Final[Mapping[Trouble, tuple[State, str, str]]] = {
    Trouble.UNREACHABLE: (
        "failed",
        "Meta does not answer this server",
        "Let the server open https connections to the host of WABERY_GRAPH_URL.",
    ),
    Trouble.STRANGE: (
        "failed",
        "What answers is not Meta's Graph API",
        "Check WABERY_GRAPH_URL, and any proxy in between.",
    ),
    Trouble.TOKEN: ("failed", "Meta does not take the access token", _NEW_TOKEN),
    Trouble.PERMISSION: (
        "failed",
        "The access token may not see this, or there is no such thing",
        "Compare the channel's ids with Meta's dashboard, and give the token's system user its WhatsApp account.",
    ),
    Trouble.ACCOUNT: (
        "failed",
        "Meta has restricted this number or its account, or it is not registered",
        "Open WhatsApp Manager: it says why, and what can be done.",
    ),
    Trouble.THROTTLED: ("warning", "Meta has been asked too often", "Check again in some minutes."),
    Trouble.TRANSIENT: ("warning", "Meta has trouble of its own", "Check again in some minutes."),
    Trouble.QUESTION: (
        "warning",
        "Meta does not understand the question",
        "Set WABERY_GRAPH_VERSION to a version that Meta serves, or update Wabery.",
    ),
}


def _skipped(names: Iterable[CheckName], why: str, todo: str | None = None) -> list[Finding]:
    return [Finding(name, "skipped", why, todo) for name in names]


def _word(text: str | None) -> str:
    """A word of Meta's, which may be missing or new."""
    return (text or "unknown")[:64]
