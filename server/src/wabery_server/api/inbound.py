"""/inbound/whatsapp: Meta's webhooks.

Size, then signature over the raw bytes, then parse, then commit, then 200. A change counts only if the secret that
verified the body is the secret of that change's channel. (Meta: webhooks/overview, webhooks/create-webhook-endpoint.)
"""

import asyncio
from collections import Counter
from collections.abc import Hashable, Sequence

import msgspec

from wabery_server import errors, inbox, intents, logs
from wabery_server.accounts import Channel
from wabery_server.api.call import Answer, Call
from wabery_server.inbox import Inbound, Received
from wabery_server.intents import Attempt
from wabery_server.whatsapp import PROVIDERS, Change, Unreadable

SIGNATURE = b"x-hub-signature-256"
_META = "meta"
_HASH_BUDGET = 64 * 1024 * 1024
"""Bytes of HMAC that one unverified request may cost."""
_LARGE = 128 * 1024
"""From here on hashing and parsing run beside the event loop."""

_encode = msgspec.json.Encoder().encode
_BAD_TOKENS = frozenset({Attempt.UNKNOWN_TOKEN, Attempt.MALFORMED_TOKEN, Attempt.SENDER_RATE_LIMITED})


async def handshake(call: Call) -> Answer:
    """Meta's check of the callback URL: the challenge comes back when the verify token is a channel's."""
    tokens = await call.service.directory.verify_tokens()
    challenge = PROVIDERS[_META].handshake(call.query, tokens)
    if challenge is None:
        raise errors.InvalidVerifyToken(param="hub.verify_token")
    return Answer(challenge.encode(), 200, ((b"content-type", b"text/plain; charset=utf-8"),))


async def receive(call: Call) -> Answer:
    """Takes messages: every join is committed before the answer."""
    provider = PROVIDERS[_META]
    body, received_at = call.body, call.service.clock.now()
    secret = await _signer(call)
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
    counts: Counter[str] = Counter()
    items: list[Inbound] = []
    for change in parsed.changes:
        counts.update({reason.value: count for reason, count in change.ignored.items()})
        channel = await _channel_of(call, change, secret)
        if channel is None:
            counts["foreign_change"] += 1
            continue
        for message in change.messages:
            found = intents.find_tokens(message.texts)
            item = Inbound(channel, message, found, received_at)
            if found.attempt and not call.service.bad_tokens.peek(_sender_key(item)):
                item = msgspec.structs.replace(item, sender_limited=True)
            items.append(item)
    received = await _keep(call, items)
    for item, one in zip(items, received, strict=True):
        counts[one.attempt or one.outcome] += 1
        if one.attempt in _BAD_TOKENS:
            call.service.bad_tokens.take(_sender_key(item))
        logs.line(
            "inbound",
            request_id=call.request_id,
            project_id=item.channel.project_id,
            channel_id=item.channel.id,
            message_id=one.message_id,
            intent_id=one.intent_id,
            outcome=one.attempt or one.outcome,
        )
    return _taken(counts)


async def _signer(call: Call) -> bytes:
    """The app secret that signed the body. Raises errors.InvalidSignature.

    The secrets of the channels that the body names come first. The others are tried too, since a body that names only
    numbers we do not know may still be signed by an app of ours; but never more than a fixed amount of hashing.
    """
    provider, directory, body = PROVIDERS[_META], call.service.directory, call.body
    signatures = call.headers.all(SIGNATURE)
    named: dict[bytes, None] = {}
    for phone_number_id in provider.phone_number_ids(body):
        found = await directory.channel_by_number(_META, phone_number_id)
        if found is not None:
            named.update(dict.fromkeys(found[1]))
    match = await _match(call, signatures, list(named))
    if match is None:
        affordable = _HASH_BUDGET // max(len(body), 1)
        others = [secret for secret in await directory.app_secrets() if secret not in named]
        match = await _match(call, signatures, others[:affordable])
    if match is None:
        raise errors.InvalidSignature
    return match


async def _match(call: Call, signatures: Sequence[bytes], secrets: Sequence[bytes]) -> bytes | None:
    if not secrets:
        return None
    signer = PROVIDERS[_META].signer
    if len(call.body) * len(secrets) > _LARGE:
        index = await asyncio.to_thread(signer, call.body, signatures, secrets)
    else:
        index = signer(call.body, signatures, secrets)
    return None if index is None else secrets[index]


async def _channel_of(call: Call, change: Change, secret: bytes) -> Channel | None:
    if change.phone_number_id is None:
        return None
    found = await call.service.directory.channel_by_number(_META, change.phone_number_id)
    if found is None or secret not in found[1]:
        return None
    return found[0]


async def _keep(call: Call, items: Sequence[Inbound]) -> list[Received]:
    """Every message by itself: one that fails is stored with its error, and the others are not harmed.

    Raises errors.Unavailable when nothing could be stored; the provider then sends the whole batch again.
    """
    service = call.service
    received = await asyncio.gather(*[service.receive_one(item) for item in items], return_exceptions=True)
    kept: list[Received] = []
    for item, one in zip(items, received, strict=True):
        if isinstance(one, Received):
            kept.append(one)
            continue
        if isinstance(one, errors.Unavailable) or not isinstance(one, Exception):
            raise one
        logs.log.error("inbound_failed", exc_info=one, extra={"facts": {"request_id": call.request_id}})
        problem = type(one).__name__
        kept.append(await service.database.run(lambda tx, i=item, p=problem: inbox.store_failed(tx, i, p)))  # type: ignore[misc]
    joined = [one.intent_id for one in kept if one.intent_id]
    if joined:
        service.changed(joined)
    if kept:
        service.signals.tell("due")
    return kept


def _sender_key(item: Inbound) -> Hashable:
    sender = item.sender
    return item.channel.project_id, sender.identity.identifiers(sender.scope)[0] if sender else None


def _taken(counts: dict[str, int]) -> Answer:
    """What became of the parts; nobody at Meta reads it, whoever tests a channel does."""
    return Answer(_encode({"received": counts}))
