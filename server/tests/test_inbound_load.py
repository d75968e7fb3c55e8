"""Bodies that cost much: other clients hardly notice, and unsigned ones cost little."""

import asyncio
import io
import json
import time
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest
from world import INTENTS, App, Reply, Tenant

from wabery_server import accounts
from wabery_server.accounts import ChannelChanges, ChannelDraft
from wabery_server.db import Tx
from wabery_server.db.batcher import MAX_QUEUE
from wabery_server.phone import payloads
from wabery_server.secrets import Subkeys
from wabery_server.whatsapp import meta

MAX_BODY = 4 * 1024 * 1024


async def post(app: App, body: bytes, secret: str) -> Reply:
    headers = payloads.sign(secret.encode(), body)
    data = io.BytesIO(body)  # aiohttp warns of large bytes
    async with app.web.post(app.base_url + "/inbound/whatsapp", data=data, headers=headers) as answer:
        raw = await answer.read()
        return Reply(answer.status, json.loads(raw), answer.headers, raw)


async def probed(
    app: App, of: Tenant, work: Awaitable[Reply] | None = None, rounds: int = 20
) -> tuple[Reply | None, list[float]]:
    """How long a mint takes while `work` is done, in seconds, sorted."""
    task = None if work is None else asyncio.ensure_future(work)
    took: list[float] = []
    while not (task.done() if task else len(took) >= rounds):
        began = time.perf_counter()
        reply = await app.call(
            "POST", INTENTS, of.secret_key, json={"customer_reference": f"user_{len(took)}_{began}"}
        )
        took.append(time.perf_counter() - began)
        assert reply.status == 200, reply.body
    return (task.result() if task else None), sorted(took)


def at(share: float, took: Sequence[float]) -> float:
    return took[int(len(took) * share)] if share < 1 else took[-1]


def many(app: App, of: Tenant, count: int, text: str = "Hi") -> bytes:
    """A body of messages from as many people."""
    stamp = str(int(app.service.clock.now().timestamp()))
    head = f'"timestamp":"{stamp}","type":"text","text":{{"body":"{text}"}}}}'
    said = ",".join([f'{{"id":"w{n}","from_user_id":"US.{n}",' + head for n in range(count)])
    metadata = json.dumps({"phone_number_id": of.channel.phone_number_id})
    value = '{"metadata":' + metadata + ',"messages":[' + said + "]}"
    return ('{"entry":[{"id":"1","changes":[{"field":"messages","value":' + value + "}]}]}").encode()


async def test_a_body_of_thousands_of_messages_takes_turns_with_other_clients(
    app: App, acme: Tenant, globex: Tenant
) -> None:
    _, alone = await probed(app, globex)

    reply, meanwhile = await probed(app, globex, post(app, many(app, acme, 2500), acme.app_secret))

    assert reply is not None
    assert reply.body == {"received": {"passed_on": 2500}}
    assert at(0.9, meanwhile) < at(0.9, alone) + 0.25


async def test_a_body_of_more_messages_than_the_queue_holds_is_not_refused(
    app: App, acme: Tenant, globex: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[int] = []
    enough = asyncio.Event()
    enqueue = app.service.receiving.enqueue

    def watched(item: Any) -> Any:
        waiting.append(len(app.service.receiving._queue))  # how full it is
        if len(waiting) == 600:
            enough.set()
        return enqueue(item)

    monkeypatch.setattr(app.service.receiving, "enqueue", watched)
    body = many(app, acme, 33_000)
    assert MAX_QUEUE < 33_000
    assert len(body) < MAX_BODY
    task = asyncio.ensure_future(post(app, body, acme.app_secret))

    await asyncio.wait_for(enough.wait(), 60)

    assert not task.done()
    assert max(waiting) < 300
    task.cancel()


@pytest.mark.parametrize(
    ("letter", "size"),
    [
        ("\ufdfa", MAX_BODY), ("%EF%B7%BA", MAX_BODY // 4), ("wjr", MAX_BODY // 8), ("wjr-12345", MAX_BODY // 8),
        ("0" * 26 + " ", MAX_BODY // 4),
    ],
)  # fmt: skip
async def test_texts_that_grow_when_they_are_searched_delay_others_little(
    app: App, acme: Tenant, globex: Tenant, letter: str, size: int
) -> None:
    count = (size - 64 * 200) // len(letter.encode()) // 64
    body = many(app, acme, 64, letter * count)
    assert 0.9 * size < len(body) <= size
    _, alone = await probed(app, globex)

    reply, meanwhile = await probed(app, globex, post(app, body, acme.app_secret))

    assert reply is not None
    assert reply.status == 200
    assert sum(reply.body["received"].values()) == 64
    assert at(0.9, meanwhile) < at(0.9, alone) + 0.25


# Unsigned bodies


async def channels(app: App, of: Tenant, count: int) -> list[str]:
    """Channels with an app secret each; their secrets."""
    keyring, now = app.service.keyring, app.service.clock.now()
    secrets = [f"{number:032x}" for number in range(count)]

    async def create(tx: Tx) -> None:
        for number, secret in enumerate(secrets):
            draft = ChannelDraft(
                name="More", phone_number_id=str(5_000_000 + number), display_phone_number="+49 151 2345678",
                waba_id="102290129340398", app_secret=secret, verify_token=f"verify-{number}",
            )  # fmt: skip
            new = accounts.new_channel(of.project.id, draft, now)
            await accounts.create_channel(tx, new, keyring=keyring, actor="cli:test", at=now)

    await app.service.database.run(create)
    app.service.directory.forget()
    return secrets


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many secrets each search tries."""
    found: list[int] = []
    signer = meta.signer

    def counting(body: bytes, headers: Sequence[bytes], secrets: Sequence[bytes]) -> int | None:
        found.append(len(secrets))
        return signer(body, headers, secrets)

    monkeypatch.setattr(meta, "signer", counting)
    return found


async def test_an_unverified_body_is_tried_with_a_bounded_number_of_secrets(
    app: App, acme: Tenant, tried: list[int]
) -> None:
    await channels(app, acme, 300)
    numbers = b",".join(b'{"phone_number_id":"%d"}' % (5_000_000 + n) for n in range(100))

    reply = await post(app, b"[" + numbers + b"]", "a stranger's secret")

    assert reply.status == 401
    assert sum(tried) <= 16 + 64


@pytest.mark.parametrize(
    "header", [None, "", "sha256=", "sha256=00", "sha1=" + "0" * 64, "sha256=" + "zz" * 32]
)
async def test_a_body_without_a_signature_costs_no_hash_and_no_look_up(
    app: App, acme: Tenant, tried: list[int], monkeypatch: pytest.MonkeyPatch, header: str | None
) -> None:
    async def never(*_: object) -> None:
        raise AssertionError("a look-up")

    monkeypatch.setattr(app.service.directory, "number", never)
    monkeypatch.setattr(app.service.directory, "app_secrets", never)
    body = many(app, acme, 1)

    reply = await app.call(
        "POST",
        "/inbound/whatsapp",
        data=body,
        headers={} if header is None else {"x-hub-signature-256": header},
    )

    assert (reply.status, tried) == (401, [])


async def test_repetitions_reach_every_app_of_a_large_installation(app: App, acme: Tenant) -> None:
    secrets = await channels(app, acme, 200)
    body = b'{"entry":[{"id":"1","changes":[{"field":"account_update","value":{}}]}]}'

    statuses = [[(await post(app, body, secret)).status for _ in range(4)] for secret in secrets[::50]]

    assert all(200 in one for one in statuses)


async def test_a_body_that_names_its_number_is_verified_at_once_in_a_large_installation(
    app: App, acme: Tenant, tried: list[int]
) -> None:
    await channels(app, acme, 200)

    reply = await post(app, many(app, acme, 1), acme.app_secret)

    assert (reply.status, tried) == (200, [1])


async def test_credentials_are_unsealed_once_for_each_change(
    app: App, acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await channels(app, acme, 20)
    unsealed: list[str] = []
    unseal = Subkeys.unseal

    def counting(self: Subkeys, sealed: bytes, purpose: str) -> bytes:
        unsealed.append(purpose)
        return unseal(self, sealed, purpose)

    async def handshake(token: str) -> int:
        app.service.directory.forget()
        query = f"hub.mode=subscribe&hub.verify_token={token}&hub.challenge=1"
        return (await app.call("GET", f"/inbound/whatsapp?{query}")).status

    monkeypatch.setattr(Subkeys, "unseal", counting)
    first = [await handshake("verify-7") for _ in range(5)]
    once = len(unsealed)
    (channel,) = await app.service.database.run(
        lambda tx: tx.rows("select id from channels where phone_number_id = '5000007'")
    )
    changes = ChannelChanges(verify_token="another-token-of-some-length")
    await app.service.database.run(
        lambda tx: accounts.update_channel(
            tx, acme.project.id, channel["id"], changes,
            keyring=app.service.keyring, actor="cli:test", at=app.service.clock.now(),
        )
    )  # fmt: skip
    unsealed.clear()
    statuses = [await handshake(token) for token in ("verify-7", "another-token-of-some-length")]

    assert first == [200] * 5
    assert once == 21
    assert statuses == [403, 200]
    assert unsealed == [f"channels.credentials:{channel['id']}"]
