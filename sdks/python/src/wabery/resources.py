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
from typing import Any, Generic, Literal, TypeVar, Unpack

from wabery._core import NOT_GIVEN, Call, CallOptions, NotGiven, Pause, Plan, given, path
from wabery._models import APIKey, Channel, Event, Object, Project, RegistrationIntent
from wabery._views import Listing, Resource, Transport, V, endpoint, flow, listing
from wabery.errors import UsageError, WaitTimeoutError

M = TypeVar("M", bound=Object)

LONGEST_POLL = 25
"""Seconds the server holds a GET with `wait` while nothing changes."""
_SLOWEST_ANSWER = 10.0
_SHORTEST_POLL = 1.0


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
        called with the first answer and whenever status or phase change. Raises WaitTimeoutError, and whatever a poll
        raises after its retries.
        """
        if timeout is not None and timeout <= 0:
            raise UsageError("timeout must be more than 0 seconds.")
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        seen: tuple[object, object] | None = None
        while True:
            begun = time.monotonic()
            # Who listens for changes wants the state as it is first, before anything happens.
            held = 0 if on_change and seen is None else math.ceil(min(LONGEST_POLL, deadline - begun))
            poll = _get(intent_id, client_secret, held, CallOptions())
            # A server that restarts in the meantime must not end a long wait.
            intent = yield from self._core.fetch(replace(poll, least_retries=6))
            state = (intent.get("status"), intent.get("phase"))
            if on_change and state != seen:
                on_change(intent)
            if intent.final:
                return intent
            now = time.monotonic()
            if now >= deadline:
                raise WaitTimeoutError(f"{intent_id} had not ended after {timeout:g} s.", intent=intent)
            if held and now - begun < _SHORTEST_POLL:
                yield Pause(min(_SHORTEST_POLL, deadline - now))
            seen = state

    @listing
    def list(
        self,
        *,
        status: Literal["PENDING", "JOINED", "REJECTED", "EXPIRED"] | str | NotGiven = NOT_GIVEN,
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
    def rotate(self, key_id: str, **options: Unpack[CallOptions]) -> Call[APIKey]:
        """A new key under the same id; for a while both work."""
        return Call("POST", path("api-keys", key_id, "rotate"), APIKey, options=options)


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
    def check(self, channel_id: str, **options: Unpack[CallOptions]) -> Call[Channel]:
        """Ask the provider whether the credentials and the number work."""
        return Call("POST", path("channels", channel_id, "check"), Channel, options=options)


class Events(Resource[V]):
    """What happened in a project. Scope `events:read`."""

    @listing
    def list(
        self,
        *,
        type: str | NotGiven = NOT_GIVEN,
        limit: int | NotGiven = NOT_GIVEN,
        cursor: str | NotGiven = NOT_GIVEN,
        **options: Unpack[CallOptions],
    ) -> Call[Listing[Event]]:
        """Events, newest first."""
        return _list("events", Event, given(type=type), limit, cursor, options)

    @endpoint
    def get(self, event_id: str, **options: Unpack[CallOptions]) -> Call[Event]:
        """An event with its payload."""
        return Call("GET", path("events", event_id), Event, options=options)


class Resources(Generic[V]):
    """Every group of calls, on one client."""

    registration_intents: RegistrationIntents[V]
    projects: Projects[V]
    api_keys: APIKeys[V]
    channels: Channels[V]
    events: Events[V]

    def _mount(self, transport: Transport) -> None:
        self.registration_intents = RegistrationIntents(transport)
        self.projects = Projects(transport)
        self.api_keys = APIKeys(transport)
        self.channels = Channels(transport)
        self.events = Events(transport)
