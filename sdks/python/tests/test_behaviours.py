"""What an app relies on, through either client."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from small_server import Scripted, SmallServer

import wabery
from wabery import NOT_GIVEN

# Registration intents


def test_a_minted_intent_carries_its_link(client: Any, server: SmallServer) -> None:
    intent = client.registration_intents.create(customer_reference="user_123", metadata={"plan": "starter"})

    assert intent.status == "PENDING"
    assert intent.wa_link.startswith("https://wa.me/")
    assert intent.metadata == {"plan": "starter"}
    assert intent.expires_at > datetime.now(UTC)
    assert server.seen[-1].body == {"customer_reference": "user_123", "metadata": {"plan": "starter"}}


def test_the_key_chooses_the_header(client: Any, browser: Any, server: SmallServer) -> None:
    client.registration_intents.create(customer_reference="a")
    browser.registration_intents.create(customer_reference="b")

    secret, publishable = (request.headers for request in server.seen)
    assert secret["authorization"] == f"Bearer {server.secret_key}"
    assert "x-wabery-publishable-key" not in secret
    assert publishable["x-wabery-publishable-key"] == server.publishable_key
    assert "authorization" not in publishable


def test_what_a_key_may_not_see_is_missing_and_not_none(browser: Any, server: SmallServer) -> None:
    minted = browser.registration_intents.create(customer_reference="user_1")

    polled = browser.registration_intents.get(minted.id)
    detailed = browser.registration_intents.get(minted.id, client_secret=minted.client_secret)

    assert polled.joined_at is None
    assert "wa_link" not in polled
    with pytest.raises(AttributeError, match="wa_link"):
        _ = polled.wa_link
    assert detailed.wa_link == minted.wa_link


def test_waiting_ends_when_the_person_has_pressed_send(client: Any, server: SmallServer) -> None:
    intent = client.registration_intents.create(customer_reference="user_1")
    states: list[str] = []

    def on_change(now: wabery.RegistrationIntent) -> None:
        states.append(now.status)
        if now.status == "PENDING":
            server.press_send(intent.token)

    joined = client.registration_intents.wait(intent.id, timeout=10, on_change=on_change)

    assert states == ["PENDING", "JOINED"]
    assert joined.contact_id.startswith("contact_")


def test_the_grace_phase_is_not_the_end(client: Any, server: SmallServer) -> None:
    intent = client.registration_intents.create(customer_reference="user_1")
    server.settle(intent.id, status="EXPIRED", phase="grace")
    seen: list[Any] = []

    def on_change(now: wabery.RegistrationIntent) -> None:
        seen.append((now.status, now.phase))
        if now.phase == "grace":
            server.settle(intent.id, status="JOINED", phase=None)

    ended = client.registration_intents.wait(intent.id, timeout=10, on_change=on_change)

    assert seen == [("EXPIRED", "grace"), ("JOINED", None)]
    assert ended.status == "JOINED"


@pytest.mark.parametrize(
    ("state", "final"),
    [
        ({"status": "PENDING", "phase": None}, False),
        ({"status": "PENDING", "phase": "awaiting_app"}, False),
        ({"status": "EXPIRED", "phase": "grace"}, False),
        ({"status": "EXPIRED", "phase": None}, True),
        ({"status": "REJECTED", "phase": None}, True),
        ({"status": "JOINED", "phase": None}, True),
        ({"status": "INVENTED_TOMORROW"}, True),
    ],
)
def test_what_counts_as_an_end(state: dict[str, Any], final: bool) -> None:
    assert wabery.RegistrationIntent(state).final is final


def test_waiting_gives_up_in_time_and_keeps_the_intent(client: Any, server: SmallServer) -> None:
    intent = client.registration_intents.create(customer_reference="user_1")

    with pytest.raises(wabery.WaitTimeoutError) as raised:
        client.registration_intents.wait(intent.id, timeout=0.2)

    assert raised.value.intent == client.registration_intents.get(intent.id)


def test_a_long_poll_outlives_a_short_timeout_of_the_client(make_client: Any, server: SmallServer) -> None:
    impatient = make_client(timeout=0.2, max_retries=0)
    intent = impatient.registration_intents.create(customer_reference="user_1")
    threading.Timer(0.6, server.press_send, [intent.token]).start()

    polled = impatient.registration_intents.get(intent.id, wait=5)

    assert polled.status == "JOINED"


def test_a_wait_survives_a_server_that_restarts(client: Any, server: SmallServer) -> None:
    intent = client.registration_intents.create(customer_reference="user_1")
    server.press_send(intent.token)
    away = Scripted(503, headers={"Retry-After": "0"})
    server.script(away, away, Scripted(close=True), away)

    joined = client.registration_intents.wait(intent.id, timeout=10)

    assert joined.status == "JOINED"


def test_cancelling_and_cancelling_too_late(client: Any, server: SmallServer) -> None:
    early = client.registration_intents.create(customer_reference="early")
    late = client.registration_intents.create(customer_reference="late")
    server.press_send(late.token)

    cancelled = client.registration_intents.cancel(early.id)

    assert (cancelled.status, cancelled.rejection_reason) == ("REJECTED", "canceled_by_app")
    with pytest.raises(wabery.ConflictError) as raised:
        client.registration_intents.cancel(late.id)
    assert raised.value.code == "already_joined"


def test_extending_moves_the_end(client: Any) -> None:
    intent = client.registration_intents.create(customer_reference="user_1", expires_in=60)

    extended = client.registration_intents.extend(intent.id, expires_in=7200)

    assert extended.expires_at > intent.expires_at + timedelta(hours=1)


# Lists


def test_a_list_turns_its_own_pages(client: Any, server: SmallServer) -> None:
    for number in range(5):
        client.registration_intents.create(customer_reference=f"user_{number}")

    references = [intent.customer_reference for intent in client.registration_intents.list(limit=2)]

    assert references == ["user_4", "user_3", "user_2", "user_1", "user_0"]
    assert [request.query.get("cursor") for request in server.seen[-3:]] == [None, "2", "4"]


def test_a_single_page_says_whether_there_is_more(client: Any) -> None:
    for number in range(3):
        client.registration_intents.create(customer_reference=f"user_{number}")

    listed = client.registration_intents.list(limit=2)
    page = getattr(listed, "first_page", listed)
    rest = page.next_page()

    assert ([one.customer_reference for one in page.data], page.has_more) == (["user_2", "user_1"], True)
    assert ([one.customer_reference for one in rest.data], rest.has_more) == (["user_0"], False)
    assert rest.next_page() is None


def test_filters_travel_as_the_query(client: Any, server: SmallServer) -> None:
    moment = datetime(2026, 6, 27, 12, tzinfo=UTC)

    list(client.registration_intents.list(status="JOINED", customer_reference="a b&c", created_after=moment))

    assert server.seen[-1].query == {
        "status": "JOINED",
        "customer_reference": "a b&c",
        "created_after": "2026-06-27T12:00:00.000Z",
    }


# The other resources


def test_a_project_is_read_and_changed(client: Any, server: SmallServer) -> None:
    project = next(iter(client.projects.list()))

    changed = client.projects.update(
        project.id, webhook_url="https://app.test/hook", webhook_secret="my own secret"
    )
    cleared = client.projects.update(project.id, webhook_url=None)

    assert "webhook_secret" not in project
    assert changed.webhook_secret == "my own secret"
    assert [request.body for request in server.seen[-2:]] == [
        {"webhook_url": "https://app.test/hook", "webhook_secret": "my own secret"},
        {"webhook_url": None},
    ]
    assert cleared.webhook_url is None
    assert client.projects.get(project.id).name == "Acme"
    assert client.projects.rotate_webhook_secret(project.id).webhook_secret != "my own secret"
    assert client.projects.create(name="Globex", livemode=True).livemode is True


def test_a_key_is_shown_once(client: Any) -> None:
    made = client.api_keys.create(kind="secret", name="ci", scopes=["registrations:create"])

    read = client.api_keys.get(made.id)

    assert made.key.startswith("wab_test_")
    assert read.key is None
    assert client.api_keys.rotate(made.id).key
    assert client.api_keys.update(made.id, name="build").name == "build"
    assert client.api_keys.revoke(made.id).revoked_at is not None
    assert [key.name for key in client.api_keys.list()] == ["build"]


def test_a_channel_never_shows_its_credentials(client: Any) -> None:
    made = client.channels.create(
        name="Shop",
        phone_number_id="1065",
        display_phone_number="15550100",
        waba_id="2020",
        app_secret="s",
        access_token="t",
    )

    assert "app_secret" not in made
    assert client.channels.update(made.id, name="Support").name == "Support"
    assert client.channels.get(made.id).display_phone_number == "15550100"
    assert [finding.state for finding in client.channels.check(made.id).checks] == ["ok"]
    assert [channel.id for channel in client.channels.list()] == [made.id]
    assert client.channels.delete(made.id).id == made.id
    with pytest.raises(wabery.NotFoundError):
        client.channels.get(made.id)


def test_events_are_listed_by_type(client: Any, server: SmallServer) -> None:
    intent = client.registration_intents.create(customer_reference="user_1")
    server.press_send(intent.token)

    (event,) = client.events.list(type="participant.joined")

    assert client.events.get(event.id)["payload"].to_dict()["customer_reference"] == "user_1"


# Options


def test_writes_carry_an_idempotency_key_of_their_own(client: Any, server: SmallServer) -> None:
    client.registration_intents.create(customer_reference="a")
    client.registration_intents.create(customer_reference="a")
    client.registration_intents.list().__iter__()

    first, second = (request.headers["idempotency-key"] for request in server.seen[:2])
    assert first != second
    assert len(server.intents) == 2


def test_the_same_idempotency_key_gives_the_same_intent(client: Any) -> None:
    first = client.registration_intents.create(customer_reference="a", idempotency_key="order-7")
    again = client.registration_intents.create(customer_reference="a", idempotency_key="order-7")

    assert again == first


def test_a_broken_connection_mints_only_once(client: Any, server: SmallServer) -> None:
    server.script(Scripted(close=True))

    client.registration_intents.create(customer_reference="a")

    assert len(server.seen) == 2
    assert len({request.headers["idempotency-key"] for request in server.seen}) == 1


def test_a_call_can_be_given_what_this_version_does_not_know(client: Any, server: SmallServer) -> None:
    client.registration_intents.create(
        customer_reference="a",
        extra_headers={"X-Trace": "1"},
        extra_query={"dry": True},
        extra_body={"invented_tomorrow": 1, "customer_reference": "b"},
    )

    assert server.seen[-1].headers["x-trace"] == "1"
    assert server.seen[-1].query == {"dry": "true"}
    assert server.seen[-1].body == {"customer_reference": "b", "invented_tomorrow": 1}


def test_other_options_share_the_connections(client: Any, server: SmallServer) -> None:
    stubborn = client.with_options(max_retries=0, default_headers={"X-Team": "a"})
    server.script(Scripted(503, headers={"Retry-After": "0"}))

    with pytest.raises(wabery.ServerError):
        stubborn.projects.get(server.project_id)
    stubborn.close()

    assert server.seen[-1].headers["x-team"] == "a"
    assert client.projects.get(server.project_id).id == server.project_id
    assert "x-team" not in server.seen[-1].headers


def test_a_raw_answer_has_its_headers(client: Any, server: SmallServer) -> None:
    raw = client.with_raw_response.projects.get(server.project_id)
    listed = client.with_raw_response.projects.list()

    assert (raw.status, raw.request_id) == (200, "req_small")
    assert raw.parse() == client.projects.get(server.project_id)
    assert [project.id for project in listed.parse().data] == [server.project_id]


def test_null_and_left_out_are_different(client: Any, server: SmallServer) -> None:
    key = client.api_keys.create(name="ci", expires_at=None, scopes=NOT_GIVEN)

    assert server.seen[-1].body == {"name": "ci", "expires_at": None}
    assert key.expires_at is None


# Refusals


def test_a_refusal_is_typed_and_says_why(client: Any) -> None:
    with pytest.raises(wabery.BadRequestError) as raised:
        client.registration_intents.create(customer_reference="")

    refusal = raised.value
    assert (refusal.code, refusal.param, refusal.status) == (
        "invalid_customer_reference",
        "customer_reference",
        400,
    )
    assert "req_small" in str(refusal)


def test_a_key_without_the_scope(browser: Any, server: SmallServer) -> None:
    with pytest.raises(wabery.PermissionDeniedError):
        browser.projects.get(server.project_id)


def test_a_call_that_this_server_does_not_have(make_client: Any, server: SmallServer) -> None:
    lost = make_client(base_url=server.base_url.removesuffix("/v1"))

    with pytest.raises(wabery.EndpointNotAvailableError, match="/v1"):
        lost.projects.get(server.project_id)


def test_a_server_that_is_not_there(make_client: Any) -> None:
    nowhere = make_client(base_url="http://127.0.0.1:9/v1", max_retries=0)

    with pytest.raises(wabery.APIConnectionError, match="127.0.0.1:9"):
        nowhere.projects.get("proj_1")


def test_a_server_that_does_not_answer(make_client: Any, server: SmallServer) -> None:
    released = threading.Event()
    server.script(Scripted(hold=released, close=True))
    impatient = make_client(timeout=0.1, max_retries=0)

    with pytest.raises(wabery.APITimeoutError):
        impatient.projects.get(server.project_id)
    released.set()


@pytest.mark.parametrize("body", ["<html>hello</html>", "[]", '"x"', "{", '{"data": 1}', '{"data": [1]}'])
def test_a_success_that_is_not_ours(client: Any, server: SmallServer, body: str) -> None:
    server.script(Scripted(200, body))

    with pytest.raises(wabery.UnexpectedResponseError):
        list(client.projects.list())


def test_a_redirect_does_not_take_the_key_along(client: Any, server: SmallServer) -> None:
    server.script(Scripted(307, headers={"Location": f"{server.base_url}/elsewhere"}))

    with pytest.raises(wabery.APIError):
        client.projects.get(server.project_id)

    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "metadata",
    [{"at": object()}, {"n": float("nan")}, {"s": "\ud800"}, {"naive": datetime(2026, 1, 1)}],  # noqa: DTZ001 (naive on purpose)
)
def test_what_json_cannot_carry_is_not_sent(
    client: Any, server: SmallServer, metadata: dict[str, Any]
) -> None:
    with pytest.raises(wabery.UsageError):
        client.registration_intents.create(customer_reference="a", metadata=metadata)

    assert server.seen == []


def test_one_string_is_not_a_list_of_strings(client: Any) -> None:
    with pytest.raises(wabery.UsageError, match="include"):
        client.registration_intents.create(customer_reference="a", include="qr")
