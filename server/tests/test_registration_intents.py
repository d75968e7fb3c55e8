"""The heart of the product: a minted link, a message, a join."""

from world import BEN, App, Tenant


async def test_a_person_who_sends_the_prefilled_text_joins(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key, "user_123", metadata={"plan": "starter"})

    counts = await app.say(acme, f"Connect my account: {intent['token']}")

    joined = await app.get(acme.secret_key, intent["id"])
    assert counts == {"joined": 1}
    assert joined["status"] == "JOINED"
    (event,) = await app.events(acme.project.id)
    assert event["event"] == "participant.joined"
    assert event["payload"]["customer_reference"] == "user_123"
    assert event["payload"]["metadata"] == {"plan": "starter"}
    assert event["payload"]["from"] == "+12125550123"


async def test_a_later_message_is_passed_on_with_the_reference(app: App, acme: Tenant) -> None:
    intent = await app.mint(acme.secret_key, "user_123", metadata={"plan": "starter"})
    await app.say(acme, intent["token"], BEN)

    await app.say(acme, "Where is my order?", BEN)

    (event,) = await app.events(acme.project.id, "message.received")
    assert event["payload"]["text"] == "Where is my order?"
    assert event["payload"]["customer_reference"] == event["payload"]["contact_reference"] == "user_123"
    assert event["payload"]["metadata"] == {"plan": "starter"}
    assert event["payload"]["from"] is None
    assert event["payload"]["whatsapp"]["user_id"] == BEN.bsuid


async def test_a_mint_is_announced_where_an_endpoint_asks_for_it(app: App, acme: Tenant) -> None:
    sql = "update webhook_endpoints set events = '{registration_intent.created}' where project_id = $1"
    await app.service.database.run(lambda tx: tx.run(sql, acme.project.id))
    app.service.directory.forget()

    intent = await app.mint(acme.secret_key, "user_123")

    (event,) = await app.events(acme.project.id)
    assert event["event"] == "registration_intent.created"
    assert event["payload"]["registration_intent_id"] == intent["id"]
    assert "token" not in event["payload"]["registration_intent"]
