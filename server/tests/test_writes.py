"""Writes have two steps: what is slow is done before the transaction, and only the transaction is repeated."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from world import INTENTS, App, Reply, Tenant, serving

from wabery_server.accounts import key as api_key
from wabery_server.api import drawing
from wabery_server.api.drawing import Drawer
from wabery_server.clock import MovableClock
from wabery_server.db import Conflict, Database, Source, Tx
from wabery_server.db.signals import Signals
from wabery_server.secrets import Keyring
from wabery_server.settings import Settings

BULK = f"{INTENTS}/bulk"
ITEMS = {"items": [{"customer_reference": f"user_{n}", "include": ["qr"]} for n in range(3)]}
CHANNEL = {
    "name": "Support",
    "phone_number_id": "123456789012345",
    "display_phone_number": "+49 151 23456789",
    "waba_id": "234567890123456",
    "app_secret": "0123456789abcdef0123456789abcdef",
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The links that were drawn, in order."""
    links: list[str] = []

    def draw(link: str) -> drawing.Code:
        links.append(link)
        return {"size": 0, "modules": "", "svg": ""}

    monkeypatch.setattr(drawing, "draw", draw)
    return links


@pytest.fixture
async def other(
    app: App, source: Source, settings: Settings, keyring: Keyring, clock: MovableClock
) -> AsyncIterator[App]:
    """A second server on the database of the first."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(source))
        signals = await stack.enter_async_context(Signals(source))
        yield await stack.enter_async_context(serving(settings, database, keyring, clock, signals))


def around(
    app: App,
    monkeypatch: pytest.MonkeyPatch,
    before: Callable[[int], Awaitable[None]],
    after: Callable[[int], Awaitable[None]] | None = None,
) -> None:
    """Calls `before` with the number of each transaction of the app's pool, and `after` at its end, before its commit."""
    run = app.service.database.run
    count = 0

    async def watched(work: Callable[[Tx], Awaitable[Any]], **options: Any) -> Any:
        nonlocal count
        count += 1
        number = count
        await before(number)

        async def whole(tx: Tx) -> Any:
            result = await work(tx)
            if after is not None:
                await after(number)
            return result

        return await run(whole, **options)

    monkeypatch.setattr(app.service.database, "run", watched)


async def post(app: App, path: str, key: str | None, owner: Tenant, body: object) -> Reply:
    headers = {"Idempotency-Key": key} if key else {}
    return await app.call("POST", path, owner.secret_key, json=body, headers=headers)


async def test_the_codes_of_a_bulk_are_drawn_before_its_transaction_opens(
    app: App, acme: Tenant, drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_by_then: list[int] = []

    async def note(_number: int) -> None:
        drawn_by_then.append(len(drawn))

    around(app, monkeypatch, note)

    reply = await post(app, BULK, None, acme, ITEMS)

    assert reply.status == 200
    assert drawn_by_then == [3]


async def test_a_transaction_that_runs_again_repeats_the_write_alone(
    app: App, acme: Tenant, drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    async def nothing(_number: int) -> None:
        pass

    async def fail_once(_number: int) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise Conflict("as if another process had been first")

    around(app, monkeypatch, nothing, fail_once)

    reply = await post(app, BULK, None, acme, ITEMS)
    ids = [one["id"] for one in reply.body["data"]]
    stored = await app.service.database.run(
        lambda tx: tx.rows("select id from registration_intents where project_id = $1", acme.project.id)
    )

    assert tries >= 2
    assert len(drawn) == 3
    assert sorted(ids) == sorted(row["id"] for row in stored)


@pytest.mark.parametrize(
    ("path", "body", "codes"),
    [(BULK, ITEMS, 3), (INTENTS, {"customer_reference": "user_1", "include": ["qr"]}, 1)],
)
async def test_a_stored_answer_is_replayed_without_drawing_it_again(
    app: App, acme: Tenant, drawn: list[str], path: str, body: object, codes: int
) -> None:
    first = await post(app, path, "k", acme, body)

    again = await post(app, path, "k", acme, body)

    assert again.raw == first.raw
    assert again.headers["Idempotency-Replayed"] == "true"
    assert len(drawn) == codes


async def test_of_equal_keys_in_one_process_one_does_the_work(
    app: App, acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    new_value = api_key.new_value

    def counted(*values: Any) -> str:
        made.append(values)
        return new_value(*values)

    monkeypatch.setattr(api_key, "new_value", counted)

    replies = await asyncio.gather(
        *[post(app, "/v1/api-keys", "k", acme, {"name": "ci", "scopes": ["full"]}) for _ in range(12)]
    )

    assert {reply.status for reply in replies} == {200}
    assert len({reply.raw for reply in replies}) == 1
    assert len(made) == 1


async def test_a_write_refused_by_its_own_earlier_effect_replays_the_answer_of_that(
    app: App, other: App, acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process commits the same request after this one has looked for a stored answer."""
    replies: list[Reply] = []

    async def be_overtaken(number: int) -> None:
        if number == 2:
            replies.append(await post(other, "/v1/channels", "k", acme, CHANNEL))

    around(app, monkeypatch, be_overtaken)

    second = await post(app, "/v1/channels", "k", acme, CHANNEL)

    assert [replies[0].status, second.status] == [200, 200]
    assert second.raw == replies[0].raw


async def test_a_client_secret_is_checked_before_a_stored_answer_is_replayed(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.publishable_key)
    path = f"{INTENTS}/{intent['id']}/cancel"
    key = {"Idempotency-Key": "k"}
    holder = {**key, "x-wabery-client-secret": intent["client_secret"]}
    assert (await app.call("POST", path, acme.publishable_key, headers=holder)).status == 200

    without = await app.call("POST", path, acme.publishable_key, headers=key)
    wrong = await app.call(
        "POST", path, acme.publishable_key, headers={**key, "x-wabery-client-secret": "wcs_x"}
    )

    assert [without.body["error"], wrong.body["error"]] == ["insufficient_scope", "wrong_client_secret"]


async def test_one_code_does_not_wait_for_all_codes_of_another(drawn: list[str]) -> None:
    drawer = Drawer(turn_seconds=0.0)
    many = [asyncio.create_task(drawer.draw(f"many {n}", "acme")) for n in range(50)]
    await asyncio.sleep(0)

    await drawer.draw("one", "globex")
    place = drawn.index("one")
    await asyncio.gather(*many)

    assert place <= 2
    assert len(drawn) == 51
