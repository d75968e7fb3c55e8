"""/inbound/whatsapp: Meta's webhooks.

Size, then signature over the raw bytes, then parse, then commit, then 200. A change counts only if the secret that
verified the body is the secret of that change's channel. (Meta: webhooks/overview, webhooks/create-webhook-endpoint.)
"""

import asyncio
from collections import defaultdict
from collections.abc import Hashable, Sequence

import msgspec

from wabery_server import errors, inbox, logs, tokens
from wabery_server.accounts import Number
from wabery_server.api.call import Answer, Call
from wabery_server.inbox import Inbound, Outcome, Received
from wabery_server.intents import Attempt
from wabery_server.whatsapp import PROVIDERS, Change, Unreadable

SIGNATURE = b"x-hub-signature-256"
_META = "meta"
_HASH_BUDGET = 64 * 1024 * 1024
"""Bytes of HMAC that one unverified request may cost."""
_LARGE = 128 * 1024
"""From here on hashing and parsing run beside the event loop."""

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
    """Takes messages: every join is committed before the answer."""
    provider = PROVIDERS[_META]
    body, received_at = call.body, call.service.clock.now()
    secret, numbers = await _signer(call)
    large = len(body) > _LARGE
    try:
        parsed = (
            await asyncio.to_thread(provider.parse, body, received_at)
            if large
            else provider.parse(body, received_at)
        )
    except Unreadable:
        logs.line("inbound", request_id=call.request_id, outcome="unreadable", bytes=len(body))
        return _taken({"unreadable": 1})
    counts: defaultdict[str, int] = defaultdict(int)
    items: list[Inbound] = []
    for change in parsed.changes:
        for reason, count in change.ignored.items():
            counts[reason] += count
        number = await _number_of(call, change, numbers)
        if number is None or secret not in number.app_secrets:
            counts["foreign_change"] += 1
            continue
        for message in change.messages:
            found = tokens.find(message.texts)
            item = Inbound(number.channel, number.project, message, found, received_at)
            if found.tokens and not call.service.bad_tokens.peek(_sender_key(item)):
                item = msgspec.structs.replace(item, sender_limited=True)
            items.append(item)
    received = await _keep(call, items)
    for item, one in zip(items, received, strict=True):
        became = one.attempt or one.outcome
        counts[became] += 1
        if one.attempt in _BAD_TOKENS:
            call.service.bad_tokens.take(_sender_key(item))
        logs.line(
            "inbound",
            request_id=call.request_id,
            project_id=item.channel.project_id,
            channel_id=item.channel.id,
            message_id=one.message_id,
            intent_id=one.intent_id,
            outcome=became,
        )
    return _taken(counts)


async def _signer(call: Call) -> tuple[bytes, dict[str, Number]]:
    """The app secret that signed the body, and the numbers of ours that it names. Raises errors.InvalidSignature.

    The secrets of the channels that the body names come first. The others are tried too, since a body that names only
    numbers we do not know may still be signed by an app of ours; but never more than a fixed amount of hashing.
    """
    provider, directory, body = PROVIDERS[_META], call.service.directory, call.body
    signatures = call.headers.all(SIGNATURE)
    numbers: dict[str, Number] = {}
    for phone_number_id in provider.phone_number_ids(body):
        if (number := await directory.number(_META, phone_number_id)) is not None:
            numbers[phone_number_id] = number
    named = list(dict.fromkeys([secret for number in numbers.values() for secret in number.app_secrets]))
    match = await _match(call, signatures, named)
    if match is None:
        affordable = _HASH_BUDGET // max(len(body), 1)
        others = [secret for secret in await directory.app_secrets() if secret not in named]
        match = await _match(call, signatures, others[:affordable])
    if match is None:
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


async def _number_of(call: Call, change: Change, numbers: dict[str, Number]) -> Number | None:
    """Not every number has been looked up yet: a body may name more than are looked at before it is verified."""
    name = change.phone_number_id
    if name is None:
        return None
    return numbers.get(name) or await call.service.directory.number(_META, name)


async def _keep(call: Call, items: Sequence[Inbound]) -> list[Received]:
    """Every message by itself: one that fails is stored with its error, and the others are not harmed.

    Raises errors.Unavailable when the database did not take them all, and whatever went wrong when nothing at all could
    be stored; the provider then sends the whole batch again.
    """
    results: list[Received | BaseException]
    if len(items) == 1:  # by far the most; it needs no task of its own
        results = [await _kept(call, items[0])]
    else:
        results = await asyncio.gather(*[_kept(call, item) for item in items], return_exceptions=True)
    kept = [one for one in results if isinstance(one, Received)]
    if kept:
        call.service.changed([one.intent_id for one in kept if one.intent_id])
        call.service.signals.tell("due")
    for one in results:
        if isinstance(one, BaseException) and (not kept or isinstance(one, errors.Unavailable)):
            raise one
    return [one if isinstance(one, Received) else Received(Outcome.LOST) for one in results]


async def _kept(call: Call, item: Inbound) -> Received:
    try:
        return await call.service.receive_one(item)
    except errors.Unavailable:
        raise
    except Exception as failure:  # noqa: BLE001  # one message's bug or bad luck is not the others'
        facts = {"request_id": call.request_id, "channel_id": item.channel.id}
        logs.log.exception("inbound_failed", extra={"facts": facts})
        problem = type(failure).__name__
        return await call.service.database.run(lambda tx: inbox.store_failed(tx, item, problem))


def _sender_key(item: Inbound) -> Hashable:
    sender = item.sender
    return sender.names[0] if sender else item.channel.project_id


def _taken(counts: dict[str, int]) -> Answer:
    """What became of the parts; nobody at Meta reads it, whoever tests a channel does."""
    return Answer(_encode({"received": counts}))
