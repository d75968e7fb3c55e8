"""/v1/registration-intents: mint, get, list, cancel."""

import asyncio
import base64
import contextlib
import hmac
import io
import re
from datetime import datetime, timedelta
from typing import Annotated, Literal, NotRequired, TypedDict

import msgspec
import segno
from msgspec import UNSET, Meta, Struct, UnsetType

from wabery_server import contacts, errors, ids, intents
from wabery_server.accounts import Caller, Project, Scope
from wabery_server.api.app import CLIENT_SECRET, etag
from wabery_server.api.call import Answer, Call
from wabery_server.contacts import Contact
from wabery_server.db import Tx
from wabery_server.idempotency import Stored
from wabery_server.intents import Filter, Intent, Mint, Phase, RejectionReason, Shown, Status, Trust, View

MAX_METADATA = 16_384
MAX_DEPTH = 5
MAX_WAIT = 25
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LOCALE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")

_encode = msgspec.json.Encoder().encode


class Create(Struct, forbid_unknown_fields=True):
    """What a mint takes."""

    customer_reference: Annotated[str, Meta(min_length=1, max_length=255)]
    """The app's own id of the user."""
    metadata: dict[str, object] | UnsetType = UNSET
    """At most 16 KiB of JSON, 5 levels deep; comes back in events."""
    channel_id: str | None = None
    """Which WhatsApp number; default: the project's oldest."""
    expires_in: Annotated[int, Meta(ge=60, le=604_800)] | None = None
    """Seconds; default: a setting of the project."""
    locale: Annotated[str, Meta(max_length=35)] | None = None
    """BCP 47 tag of the language for the prefilled text."""
    include: list[str] = []
    """`qr`: the link as a QR code."""


class MaskedIdentity(TypedDict):
    """Who joined: enough for people to recognise themselves."""

    display: str
    """The last three digits of the phone number, or the first letter of the username."""
    country: str | None
    """Two letters."""


class WhatsAppIdentity(TypedDict):
    """Who joined, in full. WhatsApp may leave any of it out."""

    user_id: str | None
    """The business-scoped user id: never changes hands, unlike a number or a name."""
    parent_user_id: str | None
    wa_id: str | None
    """The phone number's digits."""
    username: str | None
    profile_name: str | None
    country: str | None
    """Two letters."""


class QrCode(TypedDict):
    """The link to scan. Four quiet modules around it are yours to add; the SVG has them."""

    size: int
    """Modules per side."""
    modules: str
    """Base64 of the rows, each padded to whole bytes, most significant bit first; 1 is dark."""
    svg: str


class _Seen(TypedDict):
    object: Literal["registration_intent"]
    id: str
    status: Status
    phase: Phase | None
    livemode: bool
    created_at: str
    expires_at: str
    joined_at: str | None


class BrowserRegistrationIntent(_Seen):
    """A registration intent as a publishable key sees it."""

    rejection_reason: NotRequired[Literal["canceled", "conflict", "declined", "error", "not_allowed"]]
    """Only once it is REJECTED."""
    wa_link: NotRequired[str | None]
    """With the client secret. Null once the number is gone."""
    identity: NotRequired[MaskedIdentity]
    """With the client secret, once it is JOINED."""
    qr: NotRequired[QrCode]
    """With the client secret and `include=qr`."""


class _Whole(_Seen):
    customer_reference: str
    metadata: dict[str, object]
    metadata_trusted: bool
    """Whether your server wrote the metadata, and not a browser."""
    reference_trust: Trust
    channel_id: str
    contact_id: str | None
    rejection_reason: RejectionReason | None
    rejection_message: str | None


class MintedRegistrationIntent(_Whole):
    """A registration intent as the answer to whoever minted it."""

    token: str
    client_secret: str
    """What a browser shows to act on this one intent."""
    wa_link: str
    """Single use: it opens WhatsApp with the token filled in."""
    qr: NotRequired[QrCode]


class RegistrationIntent(_Whole):
    """A registration intent as a secret key sees it."""

    already_linked: bool
    """Whether the same person had been linked to the same reference before."""
    message_id: str | None
    """The message that ended it."""
    identity: MaskedIdentity | None
    whatsapp: NotRequired[WhatsAppIdentity | None]
    """With the scope `contacts:identity`."""
    token: NotRequired[str]
    """This, `client_secret` and `wa_link` with the scope `registrations:create`."""
    client_secret: NotRequired[str]
    wa_link: NotRequired[str | None]
    """Null once the number is gone."""
    qr: NotRequired[QrCode]


async def create(call: Call) -> Answer:
    """Mints an intent: one link for one person."""
    caller, service = call.caller, call.service
    key = call.idempotency_key()
    wanted = call.decode(Create)
    metadata = _checked(wanted)
    trust = Trust.SERVER if caller.trusted else Trust.UNVERIFIED
    if trust is Trust.UNVERIFIED:
        if caller.project.unsigned_references == "refuse":
            raise errors.ReferenceSignatureMissing(param="customer_reference")
        call.limit(service.per_publishable_key.take(caller.key.id))
        call.limit(service.per_ip.take(_network(call.ip)))
    call.limit(service.per_reference.take((caller.project.id, wanted.customer_reference, trust)))
    channel = await service.directory.channel(caller.project, wanted.channel_id)
    now = service.clock.now()
    intent = Intent(
        project_id=caller.project.id,
        id=ids.new("reg", now),
        status=Status.PENDING,
        customer_reference=wanted.customer_reference,
        metadata=metadata,
        reference_trust=trust,
        channel_id=channel.id,
        api_key_id=caller.key.id,
        locale=wanted.locale,
        secret_version=service.keyring.current.version,
        created_at=now,
        expires_at=now + timedelta(seconds=wanted.expires_in or _lifetime(caller)),
    )
    secrets = intents.shown(
        intent,
        keyring=service.keyring,
        project=caller.project,
        display_phone_number=channel.display_phone_number,
    )
    body = _public(call, intent, View.MINTER, now=now, secrets=secrets)
    if "qr" in wanted.include and secrets.wa_link is not None:
        body["qr"] = await _qr(secrets.wa_link)
    mint = Mint(caller.project, intent, secrets.token, Stored(200, _encode(body)), key)
    minted = await service.minting.submit(mint)
    return (
        call.replayed(minted.answer)
        if minted.replayed
        else Answer(minted.answer.body, object_ids=(intent.id,))
    )


async def get(call: Call) -> Answer:
    """One intent, as the caller may see it. `wait` seconds: answers at once when its status or phase changes."""
    service = call.service
    intent_id = call.params["id"]
    view = _view(call, intent_id)
    wait = call.number("wait", 0, 0, MAX_WAIT)
    include = _include(call)
    if not call.caller.trusted:
        call.limit(service.polls.take((call.caller.project.id, intent_id)))
    if wait and not service.watch.room(intent_id):
        raise errors.RateLimited("Too many requests wait for this registration intent.", retry_after=2)
    intent = await (_waited(call, intent_id, wait) if wait else _found(call, intent_id))
    body = _encode(await _shown_to(call, intent, view, include))
    tag = etag(body)
    if (call.headers.get(b"if-none-match") or "").encode("latin-1") == tag:
        return Answer(b"", 304, ((b"etag", tag),))
    return Answer(body, 200, ((b"etag", tag),))


async def listed(call: Call) -> Answer:
    """Intents, newest first."""
    page = call.page(list_name="registration_intents")
    status = call.query.get("status")
    if status is not None and status not in Status.__members__:
        raise errors.InvalidRequest(f"status must be one of {', '.join(Status)}.", param="status")
    which = Filter(
        status=Status(status) if status else None,
        customer_reference=call.text("customer_reference"),
        contact_id=call.text("contact_id"),
        channel_id=call.text("channel_id"),
        created_after=call.moment("created_after"),
        created_before=call.moment("created_before"),
    )
    project_id = call.caller.project.id
    now = call.service.clock.now()

    async def read(tx: Tx) -> tuple[list[Intent], dict[tuple[str, str], contacts.Acquaintance]]:
        found = await intents.listed(tx, project_id, which, now=now, before=page.before, limit=page.limit + 1)
        people = {(project_id, intent.contact_id) for intent in found if intent.contact_id}
        return found, await contacts.known(tx, people) if people else {}

    found, people = await call.service.database.run(read)
    whole = call.caller.has(Scope.CONTACTS_IDENTITY)
    rows: list[tuple[str, object]] = []
    for intent in found:
        known = people.get((project_id, intent.contact_id or ""))
        contact = known.contact if known else None
        rows.append((intent.id, _public(call, intent, View.READER, now=now, contact=contact, whole=whole)))
    return call.list_answer("registration_intents", rows, page)


async def cancel(call: Call, tx: Tx) -> Answer:
    """Ends a pending intent. Cancelling it again changes nothing."""
    service = call.service
    intent_id = call.params["id"]
    view = _view(call, intent_id)
    if not call.caller.trusted and view is not View.HOLDER:
        raise errors.InsufficientScope(
            "A publishable key needs the client secret to cancel.", hint=f"Send {CLIENT_SECRET}."
        )
    call.empty_body()
    now = service.clock.now()
    intent = await intents.cancel(tx, call.caller.project, intent_id, now, service.settings.expiry_grace)
    call.after_commit(lambda: service.changed([intent_id]))
    call.after_commit(lambda: service.signals.tell("due"))
    shown_as = View.HOLDER if view is View.HOLDER else View.READER
    return call.answer(_public(call, intent, shown_as, now=now), object_ids=(intent_id,))


async def _found(call: Call, intent_id: str) -> Intent:
    intent = None
    if ids.looks_like("reg", intent_id):
        intent = await call.service.find(call.caller.project.id, intent_id)
    if intent is None:
        raise errors.NotFound("There is no such registration intent.", param="id")
    return intent


async def _waited(call: Call, intent_id: str, seconds: int) -> Intent:
    """Reads again at every hint, and when time alone changes what a reader sees."""
    service = call.service
    grace = service.settings.expiry_grace
    end = service.clock.now() + timedelta(seconds=seconds)
    with service.watch.on(intent_id) as waiter:
        intent = await _found(call, intent_id)
        first = intent.seen_at(service.clock.now(), grace)
        while not service.draining:
            now = service.clock.now()
            final = intent.status != Status.PENDING or now >= intent.expires_at + grace
            if final or now >= end or intent.seen_at(now, grace) != first:
                break
            turn = intent.expires_at if now < intent.expires_at else intent.expires_at + grace
            await waiter.changed(min(end, turn) - now)
            intent = await _found(call, intent_id)
    return intent


async def _shown_to(call: Call, intent: Intent, view: View, include: frozenset[str]) -> dict[str, object]:
    service = call.service
    now = service.clock.now()
    contact: Contact | None = None
    contact_id = intent.contact_id
    if contact_id is not None and view is not View.ANONYMOUS and intent.status == Status.JOINED:
        contact = await service.database.run(lambda tx: contacts.find(tx, intent.project_id, contact_id))
    secrets: Shown | None = None
    if view in (View.HOLDER, View.OWNER):
        secrets = await _secrets(call, intent)
    whole = call.caller.has(Scope.CONTACTS_IDENTITY)
    body = _public(call, intent, view, now=now, secrets=secrets, contact=contact, whole=whole)
    if "qr" in include and secrets is not None and secrets.wa_link is not None:
        body["qr"] = await _qr(secrets.wa_link)
    return body


async def _secrets(call: Call, intent: Intent) -> Shown:
    project = call.caller.project
    number = None
    with contextlib.suppress(errors.InvalidRequest):  # the channel has been deleted
        number = (await call.service.directory.channel(project, intent.channel_id)).display_phone_number
    return intents.shown(intent, keyring=call.service.keyring, project=project, display_phone_number=number)


def _public(
    call: Call,
    intent: Intent,
    view: View,
    *,
    now: datetime,
    secrets: Shown | None = None,
    contact: Contact | None = None,
    whole: bool = False,
) -> dict[str, object]:
    return intent.public(
        view,
        now=now,
        grace=call.service.settings.expiry_grace,
        livemode=call.caller.project.livemode,
        secrets=secrets,
        contact=contact,
        whole_identity=whole,
    )


def _view(call: Call, intent_id: str) -> View:
    """Who looks. Raises errors.WrongClientSecret."""
    if call.caller.trusted:
        return View.OWNER if call.caller.has(Scope.REGISTRATIONS_CREATE) else View.READER
    presented = call.headers.get(CLIENT_SECRET.encode())
    if presented is None:
        return View.ANONYMOUS
    # The secret is derived, not stored: which version made it is not known before the row is read.
    for subkeys in call.service.keyring.versions():
        if hmac.compare_digest(subkeys.client_secret(intent_id).encode(), presented.encode()):
            return View.HOLDER
    raise errors.WrongClientSecret(param=CLIENT_SECRET)


def _include(call: Call) -> frozenset[str]:
    asked = call.query.get("include", "")
    include = frozenset(part for part in asked.split(",") if part)
    if not include <= {"qr"}:
        raise errors.InvalidRequest("include can only be qr.", param="include")
    return include


def _checked(wanted: Create) -> msgspec.Raw:
    """The metadata as it is stored. Raises the refusal of whatever is wrong."""
    if _CONTROL.search(wanted.customer_reference):
        raise errors.InvalidCustomerReference(param="customer_reference")
    if wanted.locale is not None and not _LOCALE.fullmatch(wanted.locale):
        raise errors.InvalidRequest("locale must be a language tag such as de or pt-BR.", param="locale")
    if not set(wanted.include) <= {"qr"}:
        raise errors.InvalidRequest("include can only hold qr.", param="include")
    if wanted.metadata is UNSET:
        return msgspec.Raw(b"{}")
    if not _shallow(wanted.metadata, MAX_DEPTH):
        raise errors.InvalidMetadata(param="metadata")
    encoded = _encode(wanted.metadata)
    if len(encoded) > MAX_METADATA:
        raise errors.MetadataTooLarge(param="metadata")
    return msgspec.Raw(encoded)


def _shallow(value: object, depth: int) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(_shallow(item, depth - 1) for item in value.values())
    if isinstance(value, list):
        return depth > 0 and all(_shallow(item, depth - 1) for item in value)
    return True


def _lifetime(caller: Caller) -> int:
    project: Project = caller.project
    return project.secret_expires_in if caller.trusted else project.publishable_expires_in


def _network(ip: str) -> str:
    """One IPv4 address, or the /64 that one IPv6 household has."""
    return ":".join(ip.split(":")[:4]) if ":" in ip and "." not in ip else ip


async def _qr(link: str) -> dict[str, object]:
    """The link as modules and as SVG; drawing takes milliseconds, so it is done beside the event loop."""
    return await asyncio.to_thread(_draw, link)


def _draw(link: str) -> dict[str, object]:
    """`modules`: rows of bits, most significant first, each row padded to bytes, base64. Four quiet modules are yours."""
    code = segno.make(link, micro=False, error="m")
    size = len(code.matrix)
    width = (size + 7) // 8
    rows = ["".join("1" if dark else "0" for dark in row).ljust(width * 8, "0") for row in code.matrix]
    packed = b"".join(int(row, 2).to_bytes(width) for row in rows)
    svg = io.BytesIO()
    code.save(svg, kind="svg", border=4, dark="#000", light="#fff", xmldecl=False, svgns=True, nl=False)
    return {"size": size, "modules": base64.b64encode(packed).decode(), "svg": svg.getvalue().decode()}
