"""/inbound/whatsapp: Meta's webhooks.

Size, then signature over the raw bytes, then parse, then commit, then 200. A change counts only if the secret that
verified the body is the secret of that change's channel. (Meta: webhooks/overview, webhooks/create-webhook-endpoint.)
"""

import asyncio
from collections import defaultdict
from collections.abc import Hashable, Sequence
from datetime import datetime

import msgspec

from wabery_server import errors, inbox, logs, metrics, tokens
from wabery_server.accounts import Number
from wabery_server.api.call import Answer, Call
from wabery_server.inbox import Inbound, Message, Received
from wabery_server.intents import Attempt
from wabery_server.whatsapp import PROVIDERS, Change, Ignored, Parsed, Unreadable

SIGNATURE = b"x-hub-signature-256"
_META = "meta"
_HASH_BUDGET = 32 * 1024 * 1024
"""Bytes of HMAC that one unverified request may cost."""
_MOST_TRIES = 64
"""App secrets that one unverified request is tried with, beyond those of the numbers it names."""
_LARGE = 128 * 1024
"""From this size on, in bytes, hashing and parsing run in a thread."""
_SLICE = 128
"""Messages of one body that are handed to the database together. A body of thousands takes turns with other clients'."""

_CREDENTIALS = "The stored credentials of a channel that this body names cannot be opened."

_MOST_NUMBERS = 1000
"""Numbers that are looked up for one body; Meta batches a thousand updates."""
_MOST_REASONS = 100
"""Different things in one body that are counted and not kept, each a line in the log."""
FAILED = metrics.counter("inbound_messages_failed", "Messages stored as failed, to be retried.")

_encode = msgspec.json.Encoder().encode
_BAD_TOKENS = frozenset({Attempt.UNKNOWN_TOKEN, Attempt.SENDER_RATE_LIMITED})


async def handshake(call: Call) -> Answer:
    """Meta's check of the callback URL: the challenge comes back when the verify token is a channel's."""
    verify_tokens = await call.service.directory.verify_tokens()
    challenge = PROVIDERS[_META].handshake(call.query, verify_tokens)
    if challenge is None:
        raise errors.InvalidVerifyToken(param="hub.verify_token")
    return Answer(challenge.encode(), 200, ((b"content-type", b"text/plain; charset=utf-8"),))


async def receive(call: Call) -> Answer:
    """Receives messages: every join is committed before the answer.

    Answers 503 when a message could neither be stored nor recorded as failed; Meta then sends the whole body again, and
    what was stored of it is a duplicate.
    """
    body, received_at = call.body, call.service.clock.now()
    secret, numbers = await _signer(call)
    try:
        parsed = await _parsed(body, received_at)
    except Unreadable:
        logs.line("inbound", request_id=call.request_id, outcome="unreadable", bytes=len(body))
        return _taken({"unreadable": 1})
    counts: defaultdict[str, int] = defaultdict(int)
    if parsed.too_deep:
        counts["too_deep"] = parsed.too_deep
        logs.line("inbound", request_id=call.request_id, outcome="too_deep", count=parsed.too_deep)
    mail: list[tuple[Number, Message]] = []
    ignored: defaultdict[tuple[str | None, str], int] = defaultdict(int)
    unroutable: defaultdict[tuple[str, str], int] = defaultdict(int)
    unopened = 0
    sealed = 0
    for change in parsed.changes:
        number = await _number_of(call, change, numbers)
        if number is not None and not number.app_secrets:
            unopened += len(change.messages)
            continue
        if number is not None and secret in number.app_secrets:
            channel_id: str | None = number.channel.id
            for message in change.messages:
                if _is_echo(message, change, number):
                    ignored[channel_id, Ignored.ECHO] += 1
                else:
                    mail.append((number, message))
        elif change.phone_number_id is None and not change.about_number:
            channel_id = None
        else:
            if number is not None and not number.app_secrets:
                sealed += 1
            else:
                unroutable[change.phone_number_id or "", _why(number, change)] += 1
            continue
        for reason, count in change.ignored.items():
            full = len(ignored) >= _MOST_REASONS and (channel_id, reason) not in ignored
            ignored[channel_id, Ignored.OTHER_FIELD if full else reason] += count
    for (channel_id, reason), count in ignored.items():
        counts[reason] += count
        logs.line("inbound", request_id=call.request_id, channel_id=channel_id, outcome=reason, count=count)
    if unroutable:
        counts["foreign_change"] += sum(unroutable.values())
        await call.service.unroutable.note(_META, unroutable, request_id=call.request_id, at=received_at)
    large = len(body) > _LARGE
    for start in range(0, len(mail), _SLICE):
        await _handle(call, mail[start : start + _SLICE], received_at, counts, large=large)
    if unopened:  # Meta repeats the body, and what was stored of it is a duplicate then
        raise errors.Unavailable(_CREDENTIALS, retry_after=60)
    return _taken(counts)


async def _parsed(body: bytes, received_at: datetime) -> Parsed:
    provider = PROVIDERS[_META]
    if len(body) > _LARGE:
        return await asyncio.to_thread(provider.parse, body, received_at)
    return provider.parse(body, received_at)


# Whose change it is


async def _signer(call: Call) -> tuple[bytes, dict[str, Number | None]]:
    """The app secret that signed the body, and the numbers of ours that it names.

    Raises errors.InvalidSignature, and errors.Unavailable when the credentials of a number cannot be opened.

    The secrets of the channels that the body names come first. A body that names none of our numbers may still be
    signed by an app of ours, so others are tried too, but never more than a fixed amount of hashing. Where there are more
    app secrets than that, each request tries the next ones, and Meta's repetitions reach all of them.
    """
    provider, directory, body = PROVIDERS[_META], call.service.directory, call.body
    signatures = call.headers.all(SIGNATURE)
    if not provider.signed(signatures):
        raise errors.InvalidSignature
    numbers = {
        phone_number_id: await directory.number(_META, phone_number_id)
        for phone_number_id in provider.phone_number_ids(body)
    }
    ours = [number for number in numbers.values() if number is not None]
    named = list(dict.fromkeys([secret for number in ours for secret in number.app_secrets]))
    match = await _match(call, signatures, named)
    if match is None:
        affordable = min(_MOST_TRIES, max(1, _HASH_BUDGET // max(len(body), 1)))
        others = await directory.app_secrets(affordable)
        match = await _match(call, signatures, [secret for secret in others if secret not in named])
    if match is None:
        if any(not number.app_secrets for number in ours):
            raise errors.Unavailable(_CREDENTIALS, retry_after=60)
        raise errors.InvalidSignature
    return match, numbers


async def _match(call: Call, signatures: Sequence[bytes], secrets: Sequence[bytes]) -> bytes | None:
    if not secrets:
        return None
    signer = PROVIDERS[_META].signer
    if len(call.body) * len(secrets) > _LARGE:
        index = await asyncio.to_thread(signer, call.body, signatures, secrets)
    else:
        index = signer(call.body, signatures, secrets)
    return None if index is None else secrets[index]


async def _number_of(call: Call, change: Change, numbers: dict[str, Number | None]) -> Number | None:
    """Not every number has been looked up yet: a body may name more than are looked at before it is verified."""
    name = change.phone_number_id
    if name is None:
        return None
    if name not in numbers and len(numbers) < _MOST_NUMBERS:
        numbers[name] = await call.service.directory.number(_META, name)
    return numbers.get(name)


def _is_echo(message: Message, change: Change, number: Number) -> bool:
    """Whether the channel's own number wrote it: then no customer did, whatever it says."""
    phone = message.sender.phone if message.sender else None
    return phone is not None and phone in (number.channel.display_phone_number, change.display_digits)


def _why(number: Number | None, change: Change) -> str:
    if number is not None:
        return "other_secret"
    return "no_number" if change.phone_number_id is None else "unknown_number"


# What becomes of the messages


async def _handle(
    call: Call,
    mail: Sequence[tuple[Number, Message]],
    received_at: datetime,
    counts: dict[str, int],
    *,
    large: bool,
) -> None:
    """Stores some messages of a body. Raises errors.Unavailable when one could neither be stored nor recorded as failed."""
    items = await asyncio.to_thread(_read, mail, received_at) if large else _read(mail, received_at)
    bad_tokens = call.service.bad_tokens
    for item in items:
        if item.found.tokens and not bad_tokens.peek(_sender_key(item)):
            item.sender_limited = True
    for item, one in zip(items, await _keep(call, items), strict=True):
        became = one.attempt or one.outcome
        counts[became] += 1
        if one.attempt in _BAD_TOKENS:
            bad_tokens.take(_sender_key(item))
        logs.line(
            "inbound",
            request_id=call.request_id,
            project_id=item.channel.project_id,
            channel_id=item.channel.id,
            message_id=one.message_id,
            intent_id=one.intent_id,
            outcome=became,
        )


def _read(mail: Sequence[tuple[Number, Message]], received_at: datetime) -> list[Inbound]:
    """Finds the tokens and redacts them. A bug that one message meets becomes that message's failure."""
    items = []
    for number, message in mail:
        try:
            found = tokens.find(message.texts)
            items.append(Inbound(number.channel, number.project, message, found, received_at))
        except Exception as failure:  # noqa: BLE001  # the other messages must not suffer
            unread = inbox.unread(message, type(failure).__name__, failure)
            items.append(Inbound(number.channel, number.project, unread, tokens.NONE_FOUND, received_at))
    return items


async def _keep(call: Call, items: Sequence[Inbound]) -> list[Received]:
    """Each message by itself, so that one that fails does not harm the others. Raises errors.Unavailable."""
    results: list[Received | BaseException]
    if len(items) == 1:  # by far the most frequent; it needs no task of its own
        results = [await _stored(call, items[0])]
    else:
        results = await asyncio.gather(*[_stored(call, item) for item in items], return_exceptions=True)
    kept = [one for one in results if isinstance(one, Received)]
    if kept:
        call.service.changed([one.intent_id for one in kept if one.intent_id])
        call.service.signals.tell("due")
    for one in results:
        if isinstance(one, BaseException):
            raise one
    return kept


async def _stored(call: Call, item: Inbound) -> Received:
    service, failure = call.service, item.message.failure
    if failure is None:
        try:
            received = await service.receive_one(item)
        except errors.Unavailable:
            raise
        except Exception as raised:  # noqa: BLE001  # judged below
            failure = raised
        else:
            service.faults.handled()
            return received
    facts = {"request_id": call.request_id, "channel_id": item.channel.id}
    if not service.faults.is_own(failure):
        if service.faults.is_news(failure):
            logs.log.error("inbound_unavailable", exc_info=failure, extra={"facts": facts})
        raise errors.Unavailable(retry_after=1) from failure
    logs.log.error("inbound_failed", exc_info=failure, extra={"facts": facts})
    problem = type(failure).__name__
    FAILED.add()
    try:
        return await service.database.run(
            lambda tx: inbox.store_failed(tx, item, problem, keyring=service.keyring),
            owner=item.channel.project_id,
        )
    except errors.Unavailable:
        raise
    except Exception as second:
        logs.log.error("inbound_not_stored", exc_info=second, extra={"facts": facts})
        raise errors.Unavailable(retry_after=1) from second


def _sender_key(item: Inbound) -> Hashable:
    sender = item.sender
    return sender.names[0] if sender else item.channel.project_id


def _taken(counts: dict[str, int]) -> Answer:
    """What became of the parts, for people who test a channel; Meta does not read it."""
    return Answer(_encode({"received": counts}))
