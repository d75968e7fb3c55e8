"""The API's calls, each declared once. Methods return what the client they hang on returns: results or awaitables.

Every method also takes the keyword options of `CallOptions`: idempotency_key, timeout, max_retries, extra_headers,
extra_query, extra_body.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Literal, TypeVar, Unpack

from wabery._core import (
    NOT_GIVEN,
    Call,
    CallOptions,
    NotGiven,
    Pause,
    Plan,
    free_path,
    given,
    path,
    retry_delay,
)
from wabery._models import (
    APIKey,
    BulkAnswer,
    Channel,
    ChannelCheck,
    Event,
    IntentStatus,
    Object,
    Project,
    RegistrationIntent,
)
from wabery._views import Listing, Resource, Transport, V, endpoint, flow, listing
from wabery.errors import (
    APIConnectionError,
    APIError,
    UnexpectedResponseError,
    UsageError,
    WaberyError,
    WaitTimeoutError,
)

M = TypeVar("M", bound=Object)

LONGEST_POLL = 25
"""Seconds the server holds a GET with `wait` while nothing changes."""
_SLOWEST_ANSWER = 10.0
"""Seconds on top of the time for which the server was asked to hold its answer."""
_SHORTEST_POLL = 1.0
_LONGEST_PAUSE = 60.0
_FAILURES = 10
"""Failed polls in a row, about a minute, after which `wait` gives up."""


def _list(
    where: str,
    model: type[M],
    query: Mapping[str, object],
    limit: int | NotGiven,
    cursor: str | NotGiven,
    options: CallOptions,
) -> Call[Listing[M]]:
    return Call(
        "GET",
        path(where),
        partial(Listing, model=model),
        query={**query, **given(limit=limit, cursor=cursor)},
        options=options,
    )


def _secret(client_secret: str | None | NotGiven) -> dict[str, str | NotGiven | None]:
    return {"x-wabery-client-secret": client_secret}


def _strings(name: str, values: Sequence[str] | NotGiven) -> list[str] | NotGiven:
    if isinstance(values, str):
        raise UsageError(f"{name} takes a list of strings, not one string.")
    return values if isinstance(values, NotGiven) else list(values)


class RegistrationIntents(Resource[V]):
    """Mint single-use WhatsApp links, and learn who pressed send."""

    @endpoint
    def create(
        self,
        *,
        customer_reference: str,
        metadata: Mapping[str, Any] | NotGiven = NOT_GIVEN,
        reference_token: str | NotGiven = NOT_GIVEN,
        channel_id: str | NotGiven = NOT_GIVEN,
        expires_in: int | NotGiven = NOT_GIVEN,
        locale: str | NotGiven = NOT_GIVEN,
        confirmation: Literal["none", "reply", "code"] | str | NotGiven = NOT_GIVEN,
        expected_sender: str | NotGiven = NOT_GIVEN,
        include: Sequence[Literal["qr"] | str] | NotGiven = NOT_GIVEN,
        **options: Unpack[CallOptions],
    ) -> Call[RegistrationIntent]:
        """Mint an intent; show its `wa_link` to the person.

        customer_reference: your own id for this user, 1 to 255 characters.
        metadata: JSON for yourself, at most 16 KiB; it comes back with `participant.joined`.
        expires_in: seconds, 60 to 604800. Left out: the project's default for this kind of key.
        """
        body = given(
            customer_reference=customer_reference,
            metadata=metadata,
            reference_token=reference_token,
            channel_id=channel_id,
            expires_in=expires_in,
            locale=locale,
            confirmation=confirmation,
            expected_sender=expected_sender,
            include=_strings("include", include),
        )
        return Call("POST", path("registration-intents"), RegistrationIntent, body=body, options=options)

    @endpoint
    def create_many(
        self, items: Sequence[Mapping[str, object]], **options: Unpack[CallOptions]
    ) -> Call[BulkAnswer]:
        """Mint up to 1,000 intents, each by itself; secret keys only.

        items: of each the arguments of `create`, such as {"customer_reference": "user_123"}. The answer's `data` has an
        intent or an ItemError for every item, in their order.
        """
        body = {"items": list(items)}
        return Call("POST", path("registration-intents", "bulk"), BulkAnswer, body=body, options=options)

    @endpoint
    def get(
        self,
        intent_id: str,
        *,
        client_secret: str | None | NotGiven = NOT_GIVEN,
        wait: int | NotGiven = NOT_GIVEN,
        include: Sequence[Literal["qr"] | str] | NotGiven = NOT_GIVEN,
        **options: Unpack[CallOptions],
    ) -> Call[RegistrationIntent]:
        """Read an intent. With `wait` (0 to 25 seconds) the server answers at once on a change, else at its end."""
        return _get(intent_id, client_secret, wait, options, _strings("include", include))

    @flow
    def wait(
        self,
        intent_id: str,
        *,
        timeout: float | None = None,
        client_secret: str | None | NotGiven = NOT_GIVEN,
        on_change: Callable[[RegistrationIntent], object] | None = None,
    ) -> Plan[RegistrationIntent]:
        """Wait until the intent has ended, by long polls: JOINED, REJECTED, EXPIRED, or a state unknown to this version.

        The grace phase after expiry is not an end. timeout: seconds; None waits as long as the intent lives. on_change is
        called with the first answer and whenever status or phase change. Bridges outages of about a minute. Raises
        WaitTimeoutError, and whatever a poll raises that repeating it cannot help.
        """
        if timeout is not None and not timeout > 0:
            raise UsageError("timeout must be more than 0 seconds.")
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        seen: RegistrationIntent | None = None
        state: tuple[object, object] | None = None
        failure: WaberyError | None = None
        failures = 0
        while (left := deadline - (begun := time.monotonic())) > 0:
            # The first poll asks for the state as it is, so that on_change hears it before anything happens.
            held = math.floor(min(LONGEST_POLL, left)) if seen else 0
            options = CallOptions(timeout=min(held + _SLOWEST_ANSWER, left), max_retries=0)
            poll = replace(_get(intent_id, client_secret, held, options), least_timeout=0.0)
            try:
                intent = yield from self._transport.core.fetch(poll)
            except (APIError, APIConnectionError) as refused:
                failure = refused
                pause = retry_delay(failures, refused)
                failures += 1
                if time.monotonic() < deadline and (
                    pause is None or pause > _LONGEST_PAUSE or failures > _FAILURES
                ):
                    raise
            else:
                failure, failures = None, 0
                now = _state(intent)
                changed, state, seen = now != state, now, intent
                if changed and on_change:
                    on_change(intent)
                if intent.final:
                    return intent
                # A server that holds its answer until something changes is asked again at once, any other in a while.
                quick = not changed and time.monotonic() - begun < _SHORTEST_POLL
                pause = _SHORTEST_POLL if quick else 0.0
            if pause and (left := deadline - time.monotonic()) > 0:
                yield Pause(min(pause, left))
        was = f"still {seen.get('phase') or seen.status}" if seen else "not read yet"
        raise WaitTimeoutError(
            f"After {timeout:g} s the intent was {was}. It goes on; wait for it again.", intent=seen
        ) from failure

    @listing
    def list(
        self,
        *,
        status: IntentStatus | NotGiven = NOT_GIVEN,
        customer_reference: str | NotGiven = NOT_GIVEN,
        contact_id: str | NotGiven = NOT_GIVEN,
        channel_id: str | NotGiven = NOT_GIVEN,
        created_after: datetime | NotGiven = NOT_GIVEN,
        created_before: datetime | NotGiven = NOT_GIVEN,
        limit: int | NotGiven = NOT_GIVEN,
        cursor: str | NotGiven = NOT_GIVEN,
        **options: Unpack[CallOptions],
    ) -> Call[Listing[RegistrationIntent]]:
        """Intents, newest first. limit: objects per page, 1 to 100; iterating goes on over all pages."""
        query = given(
            status=status,
            customer_reference=customer_reference,
            contact_id=contact_id,
            channel_id=channel_id,
            created_after=created_after,
            created_before=created_before,
        )
        return _list("registration-intents", RegistrationIntent, query, limit, cursor, options)

    @endpoint
    def cancel(
        self,
        intent_id: str,
        *,
        client_secret: str | None | NotGiven = NOT_GIVEN,
        **options: Unpack[CallOptions],
    ) -> Call[RegistrationIntent]:
        """End a pending intent: REJECTED, `canceled_by_app`. ConflictError `already_joined` when it came too late."""
        where = path("registration-intents", intent_id, "cancel")
        return Call("POST", where, RegistrationIntent, headers=_secret(client_secret), options=options)

    @endpoint
    def extend(
        self,
        intent_id: str,
        *,
        expires_in: int,
        client_secret: str | None | NotGiven = NOT_GIVEN,
        **options: Unpack[CallOptions],
    ) -> Call[RegistrationIntent]:
        """Let a pending intent live for `expires_in` seconds from now, at most 7 days after its creation."""
        where = path("registration-intents", intent_id, "extend")
        body = {"expires_in": expires_in}
        return Call(
            "POST", where, RegistrationIntent, body=body, headers=_secret(client_secret), options=options
        )

    @endpoint
    def opened(
        self,
        intent_id: str,
        *,
        via: Literal["link", "qr", "copy", "other_device", "none"] | str,
        client_secret: str,
        **options: Unpack[CallOptions],
    ) -> Call[RegistrationIntent]:
        """Note how the person went on from your page; `none`: they said that they do not have WhatsApp."""
        where = path("registration-intents", intent_id, "opened")
        return Call(
            "POST",
            where,
            RegistrationIntent,
            body={"via": via},
            headers=_secret(client_secret),
            options=options,
        )


def _state(intent: RegistrationIntent) -> tuple[object, object]:
    if not isinstance(intent.get("status"), str):
        raise UnexpectedResponseError(
            "The answer is no registration intent: it has no status.",
            hint="Check that the base URL is Wabery's and that no proxy answers in its place.",
        )
    return intent.status, intent.get("phase")


def _get(
    intent_id: str,
    client_secret: str | None | NotGiven,
    wait: int | NotGiven,
    options: CallOptions,
    include: Sequence[str] | NotGiven = NOT_GIVEN,
) -> Call[RegistrationIntent]:
    return Call(
        "GET",
        path("registration-intents", intent_id),
        RegistrationIntent,
        query=given(wait=wait, include=include if isinstance(include, NotGiven) else ",".join(include)),
        headers=_secret(client_secret),
        options=options,
        least_timeout=0.0 if isinstance(wait, NotGiven) else wait + _SLOWEST_ANSWER,
    )


class Projects(Resource[V]):
    """Tenants and their settings. Scopes `projects:read` and `projects:write`."""

    @listing
    def list(
        self,
        *,
        limit: int | NotGiven = NOT_GIVEN,
        cursor: str | NotGiven = NOT_GIVEN,
        **options: Unpack[CallOptions],
    ) -> Call[Listing[Project]]:
        """The projects this key may see, without their webhook settings."""
        return _list("projects", Project, {}, limit, cursor, options)

    @endpoint
    def get(self, project_id: str, **options: Unpack[CallOptions]) -> Call[Project]:
        """The key's own project; its `webhook_secret` is there with scope `projects:write`."""
        return Call("GET", path("projects", project_id), Project, options=options)

    @endpoint
    def create(
        self,
        *,
        name: str,
        livemode: bool | NotGiven = NOT_GIVEN,
        **options: Unpack[CallOptions],
    ) -> Call[Project]:
        """Found a project; the answer carries its first `api_key`, once. `livemode` is fixed: it decides the keys' prefix."""
        return Call(
            "POST", path("projects"), Project, body=given(name=name, livemode=livemode), options=options
        )

    @endpoint
    def update(
        self,
        project_id: str,
        *,
        name: str | NotGiven = NOT_GIVEN,
        webhook_url: str | None | NotGiven = NOT_GIVEN,
        webhook_secret: str | NotGiven = NOT_GIVEN,
        prefilled_text: str | NotGiven = NOT_GIVEN,
        prefilled_texts: Mapping[str, str] | NotGiven = NOT_GIVEN,
        publishable_expires_in: int | NotGiven = NOT_GIVEN,
        secret_expires_in: int | NotGiven = NOT_GIVEN,
        supersede: bool | NotGiven = NOT_GIVEN,
        unsigned_references: Literal["accept", "refuse"] | str | NotGiven = NOT_GIVEN,
        on_identity_linked: Literal["reject", "replace", "allow"] | str | NotGiven = NOT_GIVEN,
        on_reference_linked: Literal["replace", "reject"] | str | NotGiven = NOT_GIVEN,
        references_per_contact: int | NotGiven = NOT_GIVEN,
        **options: Unpack[CallOptions],
    ) -> Call[Project]:
        """Change the named settings and leave the others. `webhook_url=None` stops deliveries."""
        body = given(
            name=name,
            webhook_url=webhook_url,
            webhook_secret=webhook_secret,
            prefilled_text=prefilled_text,
            prefilled_texts=prefilled_texts,
            publishable_expires_in=publishable_expires_in,
            secret_expires_in=secret_expires_in,
            supersede=supersede,
            unsigned_references=unsigned_references,
            on_identity_linked=on_identity_linked,
            on_reference_linked=on_reference_linked,
            references_per_contact=references_per_contact,
        )
        return Call("PATCH", path("projects", project_id), Project, body=body, options=options)

    @endpoint
    def rotate_webhook_secret(self, project_id: str, **options: Unpack[CallOptions]) -> Call[Project]:
        """A new signing secret for the project's webhook; the answer shows it."""
        return Call("POST", path("projects", project_id, "rotate-webhook-secret"), Project, options=options)


class APIKeys(Resource[V]):
    """Keys of a project. Scope `keys:write`."""

    @listing
    def list(
        self,
        *,
        limit: int | NotGiven = NOT_GIVEN,
        cursor: str | NotGiven = NOT_GIVEN,
        **options: Unpack[CallOptions],
    ) -> Call[Listing[APIKey]]:
        """Keys, revoked ones included, without the keys themselves."""
        return _list("api-keys", APIKey, {}, limit, cursor, options)

    @endpoint
    def get(self, key_id: str, **options: Unpack[CallOptions]) -> Call[APIKey]:
        """A key's name, scopes and use, without the key itself."""
        return Call("GET", path("api-keys", key_id), APIKey, options=options)

    @endpoint
    def create(
        self,
        *,
        name: str,
        kind: Literal["secret", "publishable"] | str | NotGiven = NOT_GIVEN,
        scopes: Sequence[str] | NotGiven = NOT_GIVEN,
        allowed_origins: Sequence[str] | NotGiven = NOT_GIVEN,
        expires_at: datetime | None | NotGiven = NOT_GIVEN,
        **options: Unpack[CallOptions],
    ) -> Call[APIKey]:
        """Make a key, a secret one unless said otherwise. `key` in the answer is the only time a secret key is shown.

        scopes: of a secret key; `read_only` and `full` stand for several. allowed_origins: of a publishable key; empty
        means any.
        """
        body = given(
            name=name,
            kind=kind,
            scopes=_strings("scopes", scopes),
            allowed_origins=_strings("allowed_origins", allowed_origins),
            expires_at=expires_at,
        )
        return Call("POST", path("api-keys"), APIKey, body=body, options=options)

    @endpoint
    def update(
        self,
        key_id: str,
        *,
        name: str | NotGiven = NOT_GIVEN,
        allowed_origins: Sequence[str] | NotGiven = NOT_GIVEN,
        expires_at: datetime | None | NotGiven = NOT_GIVEN,
        **options: Unpack[CallOptions],
    ) -> Call[APIKey]:
        """Change the named settings and leave the others. A key's scopes are fixed: make another key."""
        body = given(
            name=name, allowed_origins=_strings("allowed_origins", allowed_origins), expires_at=expires_at
        )
        return Call("PATCH", path("api-keys", key_id), APIKey, body=body, options=options)

    @endpoint
    def revoke(self, key_id: str, **options: Unpack[CallOptions]) -> Call[APIKey]:
        """End a key at once; its pending intents become `key_revoked`."""
        return Call("DELETE", path("api-keys", key_id), APIKey, options=options)

    @endpoint
    def rotate(
        self, key_id: str, *, overlap: int | NotGiven = NOT_GIVEN, **options: Unpack[CallOptions]
    ) -> Call[APIKey]:
        """A new key under the same id; for a while both work.

        overlap: seconds for that, up to 604800, a day by default; 0 ends the old value at once, for one that has leaked.
        """
        body = given(overlap=overlap)
        return Call("POST", path("api-keys", key_id, "rotate"), APIKey, body=body or None, options=options)


class Channels(Resource[V]):
    """WhatsApp numbers of a project. Scope `channels:write`."""

    @listing
    def list(
        self,
        *,
        limit: int | NotGiven = NOT_GIVEN,
        cursor: str | NotGiven = NOT_GIVEN,
        **options: Unpack[CallOptions],
    ) -> Call[Listing[Channel]]:
        """Channels, without their credentials."""
        return _list("channels", Channel, {}, limit, cursor, options)

    @endpoint
    def get(self, channel_id: str, **options: Unpack[CallOptions]) -> Call[Channel]:
        """A channel, without its credentials."""
        return Call("GET", path("channels", channel_id), Channel, options=options)

    @endpoint
    def create(
        self,
        *,
        name: str,
        phone_number_id: str,
        display_phone_number: str,
        waba_id: str,
        app_secret: str,
        access_token: str | None | NotGiven = NOT_GIVEN,
        verify_token: str | None | NotGiven = NOT_GIVEN,
        portfolio_id: str | None | NotGiven = NOT_GIVEN,
        provider: Literal["meta"] | str | NotGiven = NOT_GIVEN,
        **options: Unpack[CallOptions],
    ) -> Call[Channel]:
        """Connect a number of the Meta Cloud API. ConflictError `number_taken` when it belongs to another channel.

        access_token: without one the channel cannot send replies. verify_token: left out, the server makes one.
        """
        body = given(
            name=name,
            phone_number_id=phone_number_id,
            display_phone_number=display_phone_number,
            waba_id=waba_id,
            app_secret=app_secret,
            access_token=access_token,
            verify_token=verify_token,
            portfolio_id=portfolio_id,
            provider=provider,
        )
        return Call("POST", path("channels"), Channel, body=body, options=options)

    @endpoint
    def update(
        self,
        channel_id: str,
        *,
        name: str | NotGiven = NOT_GIVEN,
        display_phone_number: str | NotGiven = NOT_GIVEN,
        portfolio_id: str | None | NotGiven = NOT_GIVEN,
        app_secrets: Sequence[str] | NotGiven = NOT_GIVEN,
        verify_token: str | NotGiven = NOT_GIVEN,
        access_token: str | None | NotGiven = NOT_GIVEN,
        **options: Unpack[CallOptions],
    ) -> Call[Channel]:
        """Change the named settings and leave the others. app_secrets: all that are accepted from now on."""
        body = given(
            name=name,
            display_phone_number=display_phone_number,
            portfolio_id=portfolio_id,
            app_secrets=_strings("app_secrets", app_secrets),
            verify_token=verify_token,
            access_token=access_token,
        )
        return Call("PATCH", path("channels", channel_id), Channel, body=body, options=options)

    @endpoint
    def delete(self, channel_id: str, **options: Unpack[CallOptions]) -> Call[Channel]:
        """Disconnect a number; its pending intents become `channel_unavailable`."""
        return Call("DELETE", path("channels", channel_id), Channel, options=options)

    @endpoint
    def check(self, channel_id: str, **options: Unpack[CallOptions]) -> Call[ChannelCheck]:
        """Ask the provider whether the credentials and the number work, and what to do where they do not."""
        return Call("POST", path("channels", channel_id, "check"), ChannelCheck, options=options)


class Events(Resource[V]):
    """What happened in a project. Scope `events:read`."""

    @listing
    def list(
        self,
        *,
        type: str | NotGiven = NOT_GIVEN,
        contact_id: str | NotGiven = NOT_GIVEN,
        registration_intent_id: str | NotGiven = NOT_GIVEN,
        created_after: datetime | NotGiven = NOT_GIVEN,
        created_before: datetime | NotGiven = NOT_GIVEN,
        limit: int | NotGiven = NOT_GIVEN,
        cursor: str | NotGiven = NOT_GIVEN,
        **options: Unpack[CallOptions],
    ) -> Call[Listing[Event]]:
        """Events, newest first."""
        query = given(
            type=type,
            contact_id=contact_id,
            registration_intent_id=registration_intent_id,
            created_after=created_after,
            created_before=created_before,
        )
        return _list("events", Event, query, limit, cursor, options)

    @endpoint
    def get(self, event_id: str, **options: Unpack[CallOptions]) -> Call[Event]:
        """An event with its payload."""
        return Call("GET", path("events", event_id), Event, options=options)


class Resources(Resource[V]):
    """Every group of calls, on one client."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self.registration_intents: RegistrationIntents[V] = RegistrationIntents(transport)
        self.projects: Projects[V] = Projects(transport)
        self.api_keys: APIKeys[V] = APIKeys(transport)
        self.channels: Channels[V] = Channels(transport)
        self.events: Events[V] = Events(transport)

    @endpoint
    def request(
        self,
        method: Literal["GET", "POST", "PATCH", "DELETE"],
        where: str,
        *,
        query: Mapping[str, object] | None = None,
        body: Mapping[str, object] | None = None,
        **options: Unpack[CallOptions],
    ) -> Call[Object]:
        """Any call by its path below the base URL, such as `/projects`, for what has no method here."""
        return Call(method, free_path(where), Object, query=query or {}, body=body, options=options)
