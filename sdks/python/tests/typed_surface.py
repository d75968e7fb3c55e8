"""What type checkers see. Never run: mypy (test_types.py) and pyright, strict (`make check`), read it. An ignore here proves that a mistake is found."""

from collections.abc import Coroutine
from datetime import datetime
from typing import Any, Literal, assert_type

from wabery import (
    APIKey,
    AsyncWabery,
    Channel,
    Event,
    ItemError,
    Object,
    Project,
    RegistrationIntent,
    Wabery,
    webhooks,
)
from wabery._views import AsyncPage, AsyncPages, Listing, Page, RawResponse


def sync(client: Wabery) -> None:
    intent = client.registration_intents.create(
        customer_reference="a", metadata={"plan": "starter"}, timeout=3
    )
    assert_type(intent, RegistrationIntent)
    assert_type(intent.wa_link, str)
    assert_type(intent.expires_at, datetime)
    assert_type(intent.joined_at, datetime | None)
    assert_type(intent["anything"], Any)
    assert_type(client.registration_intents.get("reg_1", client_secret="wcs_1", wait=25), RegistrationIntent)
    assert_type(client.registration_intents.wait("reg_1", timeout=60), RegistrationIntent)
    assert_type(client.registration_intents.list(status="JOINED"), Page[RegistrationIntent])
    assert_type(client.registration_intents.list().data, list[RegistrationIntent])
    for listed in client.registration_intents.list():
        assert_type(listed, RegistrationIntent)
    assert_type(client.projects.update("proj_1", webhook_url=None), Project)
    assert_type(client.api_keys.create(name="ci"), APIKey)
    assert_type(client.channels.get("channel_1"), Channel)
    assert_type(client.events.list().next_page(), Page[Event] | None)
    assert_type(client.with_options(max_retries=0), Wabery)
    (made,) = client.registration_intents.create_many([{"customer_reference": "a"}]).data
    assert_type(made, RegistrationIntent | ItemError)
    assert_type(
        client.registration_intents.opened("reg_1", via="qr", client_secret="wcs_1"), RegistrationIntent
    )
    assert_type(client.channels.check("channel_1").checks[0].todo, str | None)
    assert_type(client.request("GET", "/projects"), Object)

    raw = client.with_raw_response
    assert_type(raw.projects.get("proj_1"), RawResponse[Project])
    assert_type(raw.projects.get("proj_1").parse(), Project)
    assert_type(raw.projects.list(), RawResponse[Listing[Project]])


async def asynchronous(client: AsyncWabery) -> None:
    minting: Coroutine[Any, Any, RegistrationIntent] = client.registration_intents.create(
        customer_reference="a"
    )
    assert_type(await minting, RegistrationIntent)
    assert_type(await client.registration_intents.wait("reg_1"), RegistrationIntent)
    assert_type(client.projects.list(), AsyncPages[Project])
    assert_type(await client.projects.list(), AsyncPage[Project])
    async for project in client.projects.list():
        assert_type(project, Project)
    raw = await client.with_raw_response.events.get("evt_1")
    assert_type(raw.parse(), Event)
    assert_type(await client.request("DELETE", "/projects/proj_1"), Object)


def events(body: bytes, headers: dict[str, str]) -> None:
    event = webhooks.unwrap(body, headers)
    assert_type(event.payload.event_id, str)
    match event:
        case webhooks.ParticipantJoined():
            assert_type(event.payload.customer_reference, str | None)
            assert_type(event.payload.from_, str | None)
        case webhooks.MessageReceived():
            assert_type(event.payload.text, str | None)
        case _:
            assert_type(event, webhooks.Event)


def mistakes(client: Wabery, asynchronous: AsyncWabery, intent: RegistrationIntent) -> None:
    client.registration_intents.create()  # type: ignore[call-arg]
    client.registration_intents.create(customer_reference=7)  # type: ignore[arg-type]
    client.registration_intents.create(customer_reference="a", plan="starter")  # type: ignore[call-arg]
    client.registration_intents.create(customer_reference="a", timeout="3")  # type: ignore[arg-type]
    client.registration_intents.extend("reg_1")  # type: ignore[call-arg]
    client.with_raw_response.registration_intents.wait("reg_1")  # type: ignore[arg-type]
    _ = asynchronous.registration_intents.get("reg_1").wa_link  # type: ignore[attr-defined]
    for _ in asynchronous.projects.list():  # type: ignore[attr-defined]
        pass
    _ = intent.wa_lnik  # type: ignore[attr-defined]


def states(intent: RegistrationIntent) -> None:
    assert_type(intent.status, Literal["PENDING", "JOINED", "REJECTED", "EXPIRED"] | str)
    assert_type(intent.qr, Object)  # type: ignore[assert-type]
