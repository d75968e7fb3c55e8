"""/v1/registration-intents: mint, get, wait, stream, list, extend, cancel."""

import asyncio
import contextlib
import hmac
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable
from datetime import datetime, timedelta

import msgspec
from msgspec import UNSET

from wabery_server import contacts, errors, idempotency, ids, intents, tokens
from wabery_server.accounts import Caller, Project, Scope
from wabery_server.api.app import CLIENT_SECRET, etag, not_modified
from wabery_server.api.call import Answer, Call, Stream, Write, decode, gone
from wabery_server.api.intent_types import (
    LANGUAGE_TAG,
    Create,
    CreateMany,
    Extend,
    Opened,
)
from wabery_server.api.service import Place
from wabery_server.contacts import Contact
from wabery_server.db import Tx
from wabery_server.idempotency import Stored
from wabery_server.intents import Filter, Intent, Mint, Minted, Shown, Status, Trust, View
from wabery_server.limits import Limit
from wabery_server.outbox import EventType
from wabery_server.secrets import Unsealable
from wabery_server.web import network_of, site_of

MAX_METADATA = 16_384
MAX_DEPTH = 5
MAX_WAIT = 25
MAX_VISITOR_LIFETIME = timedelta(hours=24)
"""After an intent's creation, when its client secret extends it."""
_STREAM_SECONDS = 300.0
_BEAT_SECONDS = 15.0
_ITEMS_A_TURN = 10
"""Of a bulk, between two turns of the event loop: about half a millisecond."""
_STREAM_HEADERS = ((b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no"))

_encode = msgspec.json.Encoder().encode
_plain_reference = re.compile(r"[!-~](?:[ -~]*[!-~])?").fullmatch
_language_tag = re.compile(LANGUAGE_TAG).search


async def create(call: Call) -> Answer:
    """Mints an intent: one link for one person."""
    caller, service = call.caller, call.service
    key = call.idempotency_key()
    wanted = call.decode(Create)
    metadata = _checked(wanted)
    trust = _trust(call)
    _check_lifetime(caller, wanted.expires_in)
    reference, *others = _quotas(call, wanted.customer_reference)
    # What is drawn is not drawn twice, and what is replayed does not count for its reference.
    if key is not None and (wanted.include or not reference[0].peek(reference[1])):
        if others:
            call.limit(*others)
            others = []
        before = await call.run(
            lambda tx: idempotency.answered(tx, key, keyring=service.keyring, at=service.clock.now())
        )
        if before is not None:
            return call.replayed(before)
    call.limit(reference, *others)
    now = service.clock.now()
    mint = await _prepared(call, wanted, metadata, trust, ids.new("reg", now), now)
    mint.key = key
    minted = await service.minting.submit(mint)
    if minted.replayed:
        reference[0].give_back(reference[1])
        return call.replayed(minted.answer)
    return Answer(minted.answer.body)


def _quotas(call: Call, customer_reference: str) -> list[tuple[Limit, Hashable]]:
    """The limits that a mint counts against, the narrowest first."""
    caller, service = call.caller, call.service
    if caller.trusted:
        return [(service.per_reference, (caller.project.id, customer_reference))]
    address = network_of(call.ip)
    return [
        (service.per_visitor_reference, (caller.project.id, customer_reference, address)),
        (service.per_ip, address),
        (service.per_site, site_of(call.ip)),
        (service.per_publishable_key, caller.key.id),
    ]


async def create_many(call: Call) -> Write:
    """Mints up to 1,000 intents, each by itself: an object or an error for every item."""
    caller, service = call.caller, call.service
    now = service.clock.now()
    data: list[msgspec.Raw | dict[str, object]] = []
    mints: list[tuple[int, Mint]] = []
    asked: Counter[tuple[str, str]] = Counter()
    for number, item in enumerate(call.decode(CreateMany).items):
        if number % _ITEMS_A_TURN == 0:
            await asyncio.sleep(0)
        try:
            wanted = decode(bytes(item), "application/json", Create)
            metadata = _checked(wanted)
            reference = (caller.project.id, wanted.customer_reference)
            if not service.per_reference.peek(reference, asked[reference] + 1):
                raise errors.RateLimited("Too many requests (limit: customer_reference).")
            asked[reference] += 1
            mint = await _prepared(call, wanted, metadata, Trust.SERVER, ids.new("reg", now), now)
            mints.append((number, mint))
            data.append(msgspec.Raw(mint.answer.body))
        except errors.WaberyError as refusal:
            data.append(_item_error(refusal))

    async def write(tx: Tx) -> Answer:
        keep = service.settings.idempotency_keep
        minted = await intents.mint(tx, [mint for _, mint in mints], keyring=service.keyring, keep=keep)
        answers = data.copy()
        shown: list[str] = []
        for (number, mint), one in zip(mints, minted, strict=True):
            if isinstance(one, Minted):
                shown.append(mint.intent.id)
            else:
                answers[number] = _item_error(one)
        return call.answer({"object": "list", "data": answers}, object_ids=tuple(shown))

    def count() -> None:
        for _, mint in mints:
            service.per_reference.take((caller.project.id, mint.intent.customer_reference))

    call.after_commit(count)
    return write


async def get(call: Call) -> Answer:
    """One intent, as the caller may see it. `wait` seconds: answers at once when its status or phase changes."""
    intent_id = call.params["id"]
    view = _view(call, intent_id)
    wait = call.number("wait", 0, 0, MAX_WAIT)
    include = _include(call)
    _count_read(call, intent_id, view)
    place = _place(call, intent_id, view) if wait else None
    intent = await (_waited(call, place, wait) if place else _found(call, intent_id))
    body = _encode(await _shown_to(call, intent, view, include))
    tag = etag(body)
    if not_modified(call.headers, tag):
        return Answer(b"", 304, ((b"etag", tag),))
    return Answer(body, 200, ((b"etag", tag),))


async def stream(call: Call) -> Answer:
    """Server-sent events: the intent as `get` shows it, now and at every change, until it is final.

    A comment every 15 seconds keeps proxies from closing the line; after 5 minutes the server closes it, and the
    browser connects again. (HTML Living Standard, 9.2.)
    """
    intent_id = call.params["id"]
    view = _view(call, intent_id)
    _count_read(call, intent_id, view)
    first = await _found(call, intent_id)
    changes = _changes(call, first, view, _place(call, intent_id, view))
    await anext(changes)  # its place is taken before anybody else looks for one
    return Answer(b"", 200, _STREAM_HEADERS, stream=changes)


async def _changes(call: Call, intent: Intent, view: View, place: Place) -> Stream:
    """The parts of a stream, after an empty one: from then on it counts among those who wait."""
    service = call.service
    grace = service.settings.expiry_grace
    loop = asyncio.get_running_loop()
    end, said = loop.time() + _STREAM_SECONDS, b""
    # Without a database the stream ends, and its reader comes again.
    with contextlib.suppress(errors.Unavailable), service.watch.on(place) as waiter:
        yield b""
        while True:
            body = _encode(await _shown_to(call, intent, view, frozenset()))
            if body != said:
                said = body
                yield b"event: registration_intent\ndata: " + body + b"\n\n"
            now = service.clock.now()
            if intent.status != Status.PENDING or now >= intent.expires_at + grace:
                return
            if service.draining or loop.time() >= end:
                return
            beat = loop.time() + _BEAT_SECONDS
            while loop.time() < beat and not service.draining:
                turn = intent.expires_at if now < intent.expires_at else intent.expires_at + grace
                await waiter.changed(min(turn - now, timedelta(seconds=_BEAT_SECONDS)))
                intent = await _found(call, intent.id)
                if _encode(await _shown_to(call, intent, view, frozenset())) != said:
                    break
                now = service.clock.now()
            else:
                yield b": still here\n\n"


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

    async def read(tx: Tx) -> tuple[intents.Listed, dict[tuple[str, str], contacts.Acquaintance]]:
        found = await intents.listed(tx, project_id, which, now=now, before=page.before, limit=page.limit + 1)
        people = {(project_id, intent.contact_id) for intent in found.intents if intent.contact_id}
        return found, await contacts.known(tx, people) if people else {}

    found, people = await call.run(read)
    whole = call.caller.has(Scope.CONTACTS_IDENTITY)
    rows: list[tuple[str, object]] = []
    for intent in found.intents:
        known = people.get((project_id, intent.contact_id or ""))
        contact = known.contact if known else None
        rows.append((intent.id, _public(call, intent, View.READER, now=now, contact=contact, whole=whole)))
    return call.list_answer("registration_intents", rows, page, resume=found.resume)


async def cancel(call: Call) -> Write:
    """Ends a pending intent. Cancelling it again changes nothing."""
    service, project, intent_id = call.service, call.caller.project, call.params["id"]
    view = holder_or_owner(call)
    call.empty_body()
    now = service.clock.now()

    async def write(tx: Tx) -> Answer:
        intent = await intents.cancel(tx, project, intent_id, now, service.settings.expiry_grace)
        return call.answer(_public(call, intent, view, now=now), object_ids=(intent_id,))

    call.after_commit(lambda: service.changed([intent_id]))
    call.after_commit(lambda: service.signals.tell("due"))
    return write


async def extend(call: Call) -> Write:
    """Keeps a pending intent open longer, never shorter: to at most 7 days after its creation.

    With a client secret: to at most 24 hours after its creation, and the project's `publishable_expires_in` from now.
    """
    service, project, intent_id = call.service, call.caller.project, call.params["id"]
    view = holder_or_owner(call)
    wanted = call.decode(Extend) if call.body.strip() else Extend()
    now = service.clock.now()
    seconds, longest = wanted.expires_in or _lifetime(call.caller), intents.MAX_LIFETIME
    if not call.caller.trusted:
        seconds, longest = min(seconds, project.publishable_expires_in), MAX_VISITOR_LIFETIME
    until = now + timedelta(seconds=seconds)

    async def write(tx: Tx) -> Answer:
        intent = await intents.extend(tx, project.id, intent_id, until, now, longest=longest)
        return call.answer(_public(call, intent, view, now=now), object_ids=(intent_id,))

    call.after_commit(lambda: service.changed([intent_id]))
    return write


async def opened(call: Call) -> Write:
    """Notes how the person went on from the page; the first time and the last way are kept."""
    project, intent_id = call.caller.project, call.params["id"]
    wanted = call.decode(Opened)
    now = call.service.clock.now()

    async def write(tx: Tx) -> Answer:
        intent = await intents.note_opened(tx, project.id, intent_id, wanted.via, now)
        return call.answer(_public(call, intent, View.HOLDER, now=now), object_ids=(intent_id,))

    return write


def _place(call: Call, intent_id: str, view: View) -> Place:
    """Where this request waits. Raises errors.RateLimited."""
    proven = view is not View.ANONYMOUS
    place = Place.of(intent_id, call.ip, call.caller.key.id, proven=proven)
    if not call.service.watch.room(place):
        raise errors.RateLimited(
            "Too many requests wait for this registration intent, from this address or with this key.",
            retry_after=2,
            hint="Wait for Retry-After seconds, or read without `wait`.",
        )
    return place


def _count_read(call: Call, intent_id: str, view: View) -> None:
    """Reads with the client secret are counted apart, so that strangers who know the id cannot use them up.

    Raises errors.RateLimited.
    """
    service = call.service
    one = (call.caller.project.id, intent_id, view is View.HOLDER)
    if call.caller.trusted:
        call.limit((service.secret_polls, one))
    else:
        call.limit((service.polls, one), (service.public_reads, network_of(call.ip)))


async def _found(call: Call, intent_id: str) -> Intent:
    intent = None
    if ids.looks_like("reg", intent_id):
        intent = await call.service.find(call.caller.project.id, intent_id)
    if intent is None:
        raise errors.NotFound("There is no such registration intent.", param="id")
    return intent


async def _waited(call: Call, place: Place, seconds: int) -> Intent:
    """Reads again at every hint, and when time alone changes what a reader sees; ends when nobody waits any more."""
    service = call.service
    grace = service.settings.expiry_grace
    end = service.clock.now() + timedelta(seconds=seconds)
    leaving = asyncio.ensure_future(gone(call.receive))
    with service.watch.on(place) as waiter, contextlib.ExitStack() as stack:
        stack.callback(leaving.cancel)
        leaving.add_done_callback(lambda _done: waiter.wake())
        intent = await _found(call, place.intent_id)
        first = intent.seen_at(service.clock.now(), grace)
        while not service.draining and not leaving.done():
            now = service.clock.now()
            final = intent.status != Status.PENDING or now >= intent.expires_at + grace
            if final or now >= end or intent.seen_at(now, grace) != first:
                break
            turn = intent.expires_at if now < intent.expires_at else intent.expires_at + grace
            await waiter.changed(min(end, turn) - now)
            intent = await _found(call, place.intent_id)
    return intent


async def _shown_to(call: Call, intent: Intent, view: View, include: frozenset[str]) -> dict[str, object]:
    service = call.service
    now = service.clock.now()
    contact: Contact | None = None
    contact_id = intent.contact_id
    # Of a registration that was rejected, the app may know who had tried; a page may not.
    open_to_view = intent.status == Status.JOINED if view is View.HOLDER else view is not View.ANONYMOUS
    if contact_id is not None and open_to_view:
        contact = await call.run(lambda tx: contacts.find(tx, intent.project_id, contact_id))
    secrets: Shown | None = None
    if view in (View.HOLDER, View.OWNER):
        secrets = await _secrets(call, intent)
    whole = call.caller.has(Scope.CONTACTS_IDENTITY)
    body = _public(call, intent, view, now=now, secrets=secrets, contact=contact, whole=whole)
    if "qr" in include and secrets is not None and secrets.wa_link is not None:
        body["qr"] = await service.drawer.draw(secrets.wa_link, call.caller.project.id)
    return body


async def _secrets(call: Call, intent: Intent) -> Shown | None:
    """None when the secret version of the intent is gone; the intent is shown without what is derived from it."""
    project = call.caller.project
    number = None
    with contextlib.suppress(errors.InvalidRequest):  # the channel has been deleted
        number = (await call.service.directory.channel(project, intent.channel_id)).display_phone_number
    try:
        return intents.shown(
            intent, keyring=call.service.keyring, project=project, display_phone_number=number
        )
    except Unsealable:
        return None


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


def holder_or_owner(call: Call) -> View:
    """As which an intent is changed and answered. Raises errors.InsufficientScope, WrongClientSecret."""
    view = _view(call, call.params["id"])
    if view is View.ANONYMOUS:
        what = call.path.rpartition("/")[2]
        message = f"A publishable key needs the client secret to {what}."
        raise errors.InsufficientScope(message, hint=f"Send {CLIENT_SECRET}.")
    return View.HOLDER if view is View.HOLDER else View.READER


def admit_change(call: Call) -> None:
    """Admits what `holder_or_owner` admits, and counts it against the client's address. Also raises errors.RateLimited."""
    holder_or_owner(call)
    if not call.caller.trusted:
        call.limit((call.service.public_reads, network_of(call.ip)))


def admit_holder(call: Call) -> None:
    """Admits only the client secret of the intent. Raises errors.InsufficientScope, WrongClientSecret, RateLimited."""
    if _view(call, call.params["id"]) is not View.HOLDER:
        raise errors.InsufficientScope("This call needs the client secret.", hint=f"Send {CLIENT_SECRET}.")
    call.limit((call.service.public_reads, network_of(call.ip)))


def _trust(call: Call) -> Trust:
    """Who vouches for the reference. Raises errors.ReferenceSignatureMissing where nobody may."""
    if call.caller.trusted:
        return Trust.SERVER
    if call.caller.project.unsigned_references == "refuse":
        raise errors.ReferenceSignatureMissing(param="customer_reference")
    return Trust.UNVERIFIED


async def _prepared(
    call: Call, wanted: Create, metadata: msgspec.Raw, trust: Trust, intent_id: str, now: datetime
) -> Mint:
    """The intent to be written and the answer to its minter."""
    caller, service = call.caller, call.service
    channel = await service.directory.channel(caller.project, wanted.channel_id)
    intent = Intent(
        project_id=caller.project.id,
        id=intent_id,
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
        body["qr"] = await service.drawer.draw(secrets.wa_link, call.caller.project.id)
    named = await service.directory.named_events(caller.project.id)
    announce = EventType.REGISTRATION_INTENT_CREATED in named
    return Mint(
        caller.project,
        intent,
        secrets.token,
        Stored(200, _encode(body)),
        announce=announce,
        client_hash=b"" if intent.trusted else call.client_hash,
    )


def _item_error(refusal: errors.WaberyError) -> dict[str, object]:
    body = {"error": refusal.code, "message": refusal.message, "param": refusal.param, "hint": refusal.hint}
    return {"object": "error", **{name: value for name, value in body.items() if value is not None}}


def _include(call: Call) -> frozenset[str]:
    asked = call.query.get("include")
    include = frozenset() if asked is None else frozenset(asked.split(","))
    if not include <= {"qr"}:
        raise errors.InvalidRequest("include can only be qr.", param="include")
    return include


def _checked(wanted: Create) -> msgspec.Raw:
    """The metadata as it is stored. Raises the refusal of whatever is wrong."""
    if not _is_reference(wanted.customer_reference):
        raise errors.InvalidCustomerReference(param="customer_reference")
    if wanted.locale is not None and not _language_tag(wanted.locale):
        raise errors.InvalidRequest("locale must be a language tag such as de or pt-BR.", param="locale")
    if wanted.include and set(wanted.include) != {"qr"}:
        raise errors.InvalidRequest("include can only hold qr.", param="include")
    if wanted.metadata is UNSET:
        return msgspec.Raw(b"{}")
    if not _shallow(wanted.metadata, MAX_DEPTH):
        raise errors.InvalidMetadata(param="metadata")
    encoded = _encode(wanted.metadata)
    if len(encoded) > MAX_METADATA:
        raise errors.MetadataTooLarge(param="metadata")
    return msgspec.Raw(encoded)


def _is_reference(text: str) -> bool:
    """Two references that look alike must not be two customers: `"user_1 "` is not one."""
    if text.isascii():
        return _plain_reference(text) is not None
    hidden = any(unicodedata.category(one) == "Cc" or tokens.is_invisible(one) for one in text)
    return text == text.strip() and not hidden


def _shallow(value: object, depth: int) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(_shallow(item, depth - 1) for item in value.values())
    if isinstance(value, list):
        return depth > 0 and all(_shallow(item, depth - 1) for item in value)
    return True


def _check_lifetime(caller: Caller, expires_in: int | None) -> None:
    """A publishable key may not ask for more than the project's default. Raises errors.ExpiresInOutOfRange."""
    longest = caller.project.publishable_expires_in
    if expires_in is not None and expires_in > longest and not caller.trusted:
        raise errors.ExpiresInOutOfRange(
            f"expires_in is at most {longest} seconds with a publishable key in this project.",
            param="expires_in",
            hint="Raise the project's publishable_expires_in, or use a secret key on your server.",
        )


def _lifetime(caller: Caller) -> int:
    project: Project = caller.project
    return project.secret_expires_in if caller.trusted else project.publishable_expires_in
