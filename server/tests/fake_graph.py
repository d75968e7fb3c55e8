"""Meta's Graph API on a loopback socket: one healthy number, until a test changes something about it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from aiohttp import web

TOKEN = "EAAJBsecretZAaccessZCtoken0123456789"
APP_ID = "138483919580948"
NUMBER_ID = "106540352242922"
WABA_ID = "102290129340398"
APP_SECRET = "0123456789abcdef0123456789abcdef"
FIELDS = ["messages", "standby", "messaging_handovers"]
PUBLIC_URL = "https://wabery.example.com"

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Asked(NamedTuple):
    method: str
    url: str
    headers: dict[str, str]
    form: dict[str, str]


class FakeGraph:
    """What it answers is in its fields; what it was asked, in `asked`."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[Asked] = []
        self.token: dict[str, Any] = {
            "app_id": APP_ID,
            "type": "SYSTEM_USER",
            "is_valid": True,
            "expires_at": 0,
            "scopes": ["whatsapp_business_management", "whatsapp_business_messaging", "public_profile"],
            "granular_scopes": [{"scope": "whatsapp_business_messaging", "target_ids": [WABA_ID]}],
        }
        self.number: dict[str, Any] = {
            "display_phone_number": "+49 151 2345678",
            "status": "CONNECTED",
            "platform_type": "CLOUD_API",
            "code_verification_status": "EXPIRED",
            "quality_rating": "GREEN",
            "throughput": {"level": "STANDARD"},
            "is_on_biz_app": False,
            "health_status": {
                "can_send_message": "AVAILABLE",
                "entities": [
                    {"entity_type": "PHONE_NUMBER", "id": NUMBER_ID, "can_send_message": "AVAILABLE"}
                ],
            },
            "webhook_configuration": {"application": f"{PUBLIC_URL}/inbound/whatsapp"},
        }
        self.numbers = [NUMBER_ID]
        self.page = 100
        self.subscribed = [APP_ID]
        self.subscriptions: list[dict[str, Any]] = [
            {"object": "page", "active": True, "fields": [{"name": "feed"}]},
            {
                "object": "whatsapp_business_account",
                "active": True,
                "callback_url": f"{PUBLIC_URL}/inbound/whatsapp",
                "fields": [{"name": name, "version": "v26.0"} for name in FIELDS],
            },
        ]
        self.answers: dict[str, Answer] = {}
        """By the path after the version, and for a number with its first field; instead of the healthy answer."""

    def refuse(self, question: str, code: int, subcode: int | None = None, status: int = 400) -> None:
        """Answers with an error as Meta words it; the wording repeats the token, as Meta's sometimes does."""

        async def refused(request: web.BaseRequest) -> web.Response:
            error = {"message": f"Malformed access token {TOKEN}", "type": "OAuthException", "code": code}
            extra = {} if subcode is None else {"error_subcode": subcode}
            body = {"error": {**error, **extra, "fbtrace_id": "AbCdEf-123_"}}
            return web.json_response(body, status=status)

        self.answers[question] = refused

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.asked.append(Asked(request.method, str(request.url), dict(request.headers), form))
        version, _, path = request.path.lstrip("/").partition("/")
        field = request.query.get("fields", "").partition(",")[0]
        question = f"{path}?{field}" if path == NUMBER_ID else path
        token = f"{APP_ID}|{APP_SECRET}" if path == f"{APP_ID}/subscriptions" else TOKEN
        if version != "v26.0" or request.headers.get("Authorization") != f"Bearer {token}":
            return web.json_response({"error": {"code": 190}}, status=401)
        if question in self.answers:
            return await self.answers[question](request)
        if path == "debug_token" and form == {"method": "get", "input_token": TOKEN}:
            return web.json_response({"data": self.token})
        if path == NUMBER_ID:
            wanted = request.query["fields"].split(",")
            return web.json_response({"id": path, **{name: self.number.get(name) for name in wanted}})
        if path == f"{WABA_ID}/phone_numbers":
            return web.json_response(self._numbers(int(request.query.get("after", "0"))))
        if path == f"{WABA_ID}/subscribed_apps":
            apps = [{"whatsapp_business_api_data": {"id": app, "name": "Wabery"}} for app in self.subscribed]
            return web.json_response({"data": apps})
        if path == f"{APP_ID}/subscriptions":
            return web.json_response({"data": self.subscriptions})
        return web.json_response({"error": {"code": 100, "error_subcode": 33}}, status=400)

    def _numbers(self, start: int) -> dict[str, Any]:
        end = start + self.page
        found: dict[str, Any] = {"data": [{"id": number} for number in self.numbers[start:end]]}
        if end < len(self.numbers):
            found["paging"] = {
                "cursors": {"after": str(end)},
                "next": f"{self.url}/v26.0/next?access_token={TOKEN}",
            }
        return found


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[str]:
    """Any HTTP server on a free port; gives its URL."""
    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}"
    await runner.cleanup()


@asynccontextmanager
async def fake_graph() -> AsyncIterator[FakeGraph]:
    graph = FakeGraph()
    async with answering(graph) as url:
        graph.url = url
        yield graph
