"""A small server that speaks the contract, for the SDK's and the CLI's own tests: real sockets, state in a dict.

It knows only what the clients must be able to rely on. `script` puts answers before it, one per request, to play faults; it
remembers every request. `press_send` does what a person does in WhatsApp.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

SECRET_KEY = "wab_test_abcdefghijklmnopqrstuvwxyz01234KOf8u"
PUBLISHABLE_KEY = "wab_pub_0123456789ABCDEFGHIJKLMNOPQRST3qrAPx"
VERSION = "2026-11-01"


@dataclass
class Seen:
    """A request as it arrived. Header names are lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Scripted:
    """One answer to play. `close` breaks the connection instead; `hold` first waits for an event."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    close: bool = False
    hold: threading.Event | None = None


class Refused(Exception):
    def __init__(self, status: int, code: str, **fields: Any) -> None:
        self.status = status
        self.body = {"error": code, "message": f"Refused: {code}.", "request_id": "req_small", **fields}


def stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class SmallServer:
    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.scripted: list[Scripted] = []
        self.intents: dict[str, dict[str, Any]] = {}
        self.projects: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, dict[str, Any]] = {}
        self.channels: dict[str, dict[str, Any]] = {}
        self.events: dict[str, dict[str, Any]] = {}
        self.replays: dict[str, tuple[int, Any]] = {}
        self.changed = threading.Condition()
        self.closing = False
        self._numbers = iter(range(1, 10**6))
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.small = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.base_url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        self.secret_key, self.publishable_key = SECRET_KEY, PUBLISHABLE_KEY
        project = self.add_project("Acme")
        self.project_id = project["id"]

    def close(self) -> None:
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self._http.shutdown()
        self._thread.join()
        self._http.hang_up()
        self._http.server_close()

    def script(self, *answers: Scripted) -> None:
        self.scripted.extend(answers)

    def id(self, prefix: str) -> str:
        return f"{prefix}_{next(self._numbers):026d}"

    def add_project(self, name: str, livemode: bool = False) -> dict[str, Any]:
        project = {
            "object": "project",
            "id": self.id("proj"),
            "name": name,
            "livemode": livemode,
            "webhook_url": None,
            "webhook_secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "created_at": stamp(datetime.now(UTC)),
        }
        self.projects[project["id"]] = project
        return project

    def press_send(self, token: str) -> None:
        """The person sends the prefilled message."""
        for intent in self.intents.values():
            if intent["token"] == token and intent["status"] == "PENDING":
                contact = self.id("contact")
                self.settle(
                    intent["id"],
                    status="JOINED",
                    phase=None,
                    contact_id=contact,
                    joined_at=stamp(datetime.now(UTC)),
                )
                event = {
                    "object": "event",
                    "id": self.id("evt"),
                    "type": "participant.joined",
                    "created_at": stamp(datetime.now(UTC)),
                    "payload": {"customer_reference": intent["customer_reference"], "contact_id": contact},
                }
                self.events[event["id"]] = event

    def settle(self, intent_id: str, **changes: Any) -> None:
        with self.changed:
            self.intents[intent_id].update(changes)
            self.changed.notify_all()

    # What it answers

    def answer(self, request: Seen) -> tuple[int, Any]:
        kind = self._who(request)
        match request.method, request.path.removeprefix("/v1/").split("/"):
            case "POST", ["registration-intents"]:
                return self._once(request, lambda: self._mint(request, kind))
            case "GET", ["registration-intents"]:
                self._only(kind, "secret")
                wanted = request.query
                found = [
                    intent
                    for intent in self.intents.values()
                    if wanted.get("status", intent["status"]) == intent["status"]
                    and wanted.get("customer_reference", intent["customer_reference"])
                    == intent["customer_reference"]
                ]
                return 200, self._page(request, [self._view(intent, "secret") for intent in found])
            case "GET", ["registration-intents", intent_id]:
                intent = self._one(self.intents, intent_id)
                self._wait(intent, float(request.query.get("wait", 0)))
                detailed = request.headers.get("x-wabery-client-secret") == intent["client_secret"]
                return 200, self._view(intent, "detailed" if detailed else kind)
            case "POST", ["registration-intents", intent_id, "cancel"]:
                intent = self._one(self.intents, intent_id)
                if intent["status"] == "JOINED":
                    raise Refused(409, "already_joined")
                self.settle(intent_id, status="REJECTED", rejection_reason="canceled_by_app", phase=None)
                return 200, self._view(intent, "secret")
            case "POST", ["registration-intents", intent_id, "extend"]:
                intent = self._one(self.intents, intent_id)
                if intent["status"] != "PENDING":
                    raise Refused(409, "not_pending")
                self.settle(
                    intent_id,
                    expires_at=stamp(datetime.now(UTC) + timedelta(seconds=request.body["expires_in"])),
                )
                return 200, self._view(intent, "secret")
            case "GET", ["projects"]:
                self._only(kind, "secret")
                hidden = [
                    {k: v for k, v in project.items() if k != "webhook_secret"}
                    for project in self.projects.values()
                ]
                return 200, self._page(request, hidden)
            case "POST", ["projects"]:
                project = self.add_project(request.body["name"], request.body.get("livemode", False))
                return 200, {
                    **project,
                    "api_key": {"object": "api_key", "id": self.id("key"), "key": SECRET_KEY},
                }
            case "GET", ["projects", project_id]:
                self._only(kind, "secret")
                return 200, self._one(self.projects, project_id)
            case "PATCH", ["projects", project_id]:
                project = self._one(self.projects, project_id)
                project.update(request.body)
                return 200, project
            case "POST", ["projects", project_id, "rotate-webhook-secret"]:
                project = self._one(self.projects, project_id)
                project["webhook_secret"] = "whsec_cm90YXRlZC1hbmQtbG9uZy1lbm91Z2g="
                return 200, project
            case "POST", ["api-keys"]:
                key = {
                    "object": "api_key",
                    "id": self.id("key"),
                    "kind": request.body.get("kind", "secret"),
                    "name": request.body["name"],
                    "scopes": request.body.get("scopes", []),
                    "allowed_origins": request.body.get("allowed_origins", []),
                    "key": None,
                    "last4": "KOf8",
                    "created_at": stamp(datetime.now(UTC)),
                    "expires_at": request.body.get("expires_at"),
                    "revoked_at": None,
                    "last_used_at": None,
                }
                self.keys[key["id"]] = key
                return 200, {**key, "key": SECRET_KEY}
            case "POST", ["api-keys", key_id, "rotate"]:
                return 200, {**self._one(self.keys, key_id), "key": SECRET_KEY}
            case "DELETE", ["api-keys", key_id]:
                key = self._one(self.keys, key_id)
                key["revoked_at"] = stamp(datetime.now(UTC))
                return 200, key
            case "PATCH", ["api-keys", key_id]:
                key = self._one(self.keys, key_id)
                key.update(request.body)
                return 200, key
            case "POST", ["channels"]:
                shown = {
                    k: v
                    for k, v in request.body.items()
                    if k not in ("app_secret", "access_token", "verify_token")
                }
                channel = {
                    "object": "channel",
                    "id": self.id("channel"),
                    "provider": "meta",
                    "sandbox": False,
                    "created_at": stamp(datetime.now(UTC)),
                    **shown,
                }
                self.channels[channel["id"]] = channel
                return 200, channel
            case "PATCH", ["channels", channel_id]:
                channel = self._one(self.channels, channel_id)
                channel.update({k: v for k, v in request.body.items() if k == "name"})
                return 200, channel
            case "DELETE", ["channels", channel_id]:
                return 200, self.channels.pop(self._one(self.channels, channel_id)["id"])
            case "POST", ["channels", channel_id, "check"]:
                checks = [{"name": "access_token", "state": "ok", "found": "It works.", "todo": None}]
                known = self._one(self.channels, channel_id)["id"]
                return 200, {"object": "channel_check", "channel_id": known, "ok": True, "checks": checks}
            case "GET", [("api-keys" | "channels" | "events") as group]:
                table = {"api-keys": self.keys, "channels": self.channels, "events": self.events}[group]
                kinds = request.query.get("type")
                return 200, self._page(
                    request, [one for one in table.values() if kinds in (None, one.get("type"))]
                )
            case "GET", [("api-keys" | "channels" | "events") as group, one_id]:
                table = {"api-keys": self.keys, "channels": self.channels, "events": self.events}[group]
                return 200, self._one(table, one_id)
        raise LookupError(request.path)

    def _who(self, request: Seen) -> str:
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if bearer == self.secret_key:
            return "secret"
        if request.headers.get("x-wabery-publishable-key") == self.publishable_key and not bearer:
            return "publishable"
        raise Refused(401, "invalid_api_key", hint="Check for a typo with `wabery keys check`.")

    @staticmethod
    def _only(kind: str, wanted: str) -> None:
        if kind != wanted:
            raise Refused(403, "insufficient_scope")

    @staticmethod
    def _one(table: dict[str, dict[str, Any]], wanted: str) -> dict[str, Any]:
        if wanted not in table:
            raise Refused(404, "not_found")
        return table[wanted]

    def _once(self, request: Seen, run: Any) -> tuple[int, Any]:
        key = request.headers["idempotency-key"]
        if key not in self.replays:
            self.replays[key] = run()
        return self.replays[key]

    def _mint(self, request: Seen, kind: str) -> tuple[int, Any]:
        body = request.body
        if not 1 <= len(body.get("customer_reference", "")) <= 255:
            raise Refused(400, "invalid_customer_reference", param="customer_reference")
        if not 60 <= body.get("expires_in", 60) <= 604800:
            raise Refused(400, "expires_in_out_of_range", param="expires_in")
        now = datetime.now(UTC)
        number = next(self._numbers)
        token = f"wjr_{number:026d}"
        intent = {
            "object": "registration_intent",
            "id": f"reg_{number:026d}",
            "token": token,
            "status": "PENDING",
            "wa_link": f"https://wa.me/15550100?text=Connect%20my%20account%3A%20{token}",
            "expires_at": stamp(now + timedelta(seconds=body.get("expires_in", 1800))),
            "created_at": stamp(now),
            "livemode": False,
            "customer_reference": body["customer_reference"],
            "metadata": body.get("metadata", {}),
            "metadata_trusted": kind == "secret",
            "reference_trust": "server" if kind == "secret" else "unverified",
            "channel_id": body.get("channel_id", "channel_00000000000000000000000000"),
            "phase": None,
            "client_secret": f"wcs_{number:026d}",
            "joined_at": None,
            "contact_id": None,
            "rejection_reason": None,
            "rejection_message": None,
        }
        with self.changed:
            self.intents[intent["id"]] = intent
            self.changed.notify_all()
        qr = (
            {"qr": {"svg": "<svg/>", "size": 1, "modules": "gA=="}} if "qr" in body.get("include", []) else {}
        )
        return 200, {**intent, **qr}

    @staticmethod
    def _view(intent: dict[str, Any], viewer: str) -> dict[str, Any]:
        if viewer == "secret":
            return dict(intent)
        shown = ["object", "id", "status", "phase", "livemode", "created_at", "expires_at", "joined_at"]
        shown += ["wa_link"] if viewer == "detailed" else []
        return {name: intent[name] for name in shown}

    @staticmethod
    def _page(request: Seen, rows: list[dict[str, Any]]) -> dict[str, Any]:
        rows = rows[::-1]
        start, limit = int(request.query.get("cursor", 0)), int(request.query.get("limit", 10))
        if not 1 <= limit <= 100:
            raise Refused(400, "invalid_request", param="limit")
        more = start + limit < len(rows)
        return {
            "object": "list",
            "data": rows[start : start + limit],
            "has_more": more,
            "next_cursor": str(start + limit) if more else None,
        }

    def _wait(self, intent: dict[str, Any], seconds: float) -> None:
        before = (intent["status"], intent["phase"])
        ends = before[0] != "PENDING" and before[1] != "grace"
        with self.changed:
            if not ends:
                self.changed.wait_for(
                    lambda: self.closing or (intent["status"], intent["phase"]) != before, seconds
                )


class _Http(ThreadingHTTPServer):
    daemon_threads = False
    small: SmallServer

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hung up, as some tests do


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        small: SmallServer = self.server.small  # type: ignore[attr-defined]
        content = self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = urlsplit(self.path)
        request = Seen(
            self.command,
            unquote(parts.path),
            dict(parse_qsl(parts.query, keep_blank_values=True)),
            {name.lower(): value for name, value in self.headers.items()},
            json.loads(content) if content else None,
        )
        small.seen.append(request)
        if small.scripted:
            scripted = small.scripted.pop(0)
            if scripted.hold:
                scripted.hold.wait(5)
            if scripted.close:
                self.close_connection = True
                return
            self._send(scripted.status, scripted.body, scripted.headers)
            return
        ours = {"Wabery-Version": VERSION, "Wabery-Request-Id": "req_small"}
        try:
            status, body = small.answer(request)
        except Refused as refused:
            self._send(refused.status, refused.body, ours)
        except LookupError:
            self._send(404, {"error": "unknown_path", "message": "No such path."}, {})
        else:
            self._send(status, body, ours)

    do_GET = do_POST = do_PATCH = do_DELETE = _serve

    def _send(self, status: int, body: Any, headers: dict[str, str]) -> None:
        content = (
            body.encode() if isinstance(body, str) else b"" if body is None else json.dumps(body).encode()
        )
        self.send_response_only(status)
        for name, value in {"Date": self.date_time_string(), **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content)


@contextlib.contextmanager
def running() -> Iterator[SmallServer]:
    server = SmallServer()
    try:
        yield server
    finally:
        server.close()
