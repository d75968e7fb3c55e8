"""`wabery registration-intents`: mint, read, wait, list, cancel, extend."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from wabery._core import CallOptions
from wabery.cli._connect import connected
from wabery.cli._exit import CommandError, Exit
from wabery.cli._framework import ACCESS, OUTPUT, PAGES, Access, Choice, Flag, Output, Pages
from wabery.cli._listing import listed, most
from wabery.cli._terminal import Terminal
from wabery.cli._values import if_given, json_object, moment, seconds
from wabery.errors import WaitTimeoutError

if TYPE_CHECKING:
    from rich.status import Status

    from wabery import RegistrationIntent, Wabery

_SECRET = ("token", "client_secret", "qr")
"""Not shown unless JSON is asked for."""


def create(
    *,
    customer_reference: str,
    metadata: str | None = None,
    channel_id: str | None = None,
    expires_in: str | None = None,
    locale: str | None = None,
    wait: Flag = False,
    timeout: str | None = None,
    qr: Choice = None,
    open: Flag = False,
    idempotency_key: str | None = None,
    output: Output = OUTPUT,
    access: Access = ACCESS,
) -> int:
    """Mint an intent and print its link.

    In a pipe only the link is printed, so `link=$(wabery registration-intents create …)` works; with --json the whole intent,
    and with --wait a second line when it has ended.

    Parameters
    ----------
    customer_reference
        Your own id of this user.
    metadata
        JSON object for yourself; it comes back with the webhook.
    channel_id
        Which WhatsApp number. Default: the project's oldest.
    expires_in
        How long the link lives, such as 900, 30m, 24h or 7d.
    locale
        Language of the prefilled text, such as de or pt-BR.
    wait
        Wait until the person has pressed send, or the intent has ended otherwise.
    timeout
        Longest wait, such as 90 or 10m. Default: as long as the intent lives.
    qr
        Draw the link as a QR code. Default: with --wait.
    open
        Open the link in the browser.
    idempotency_key
        Repeating the command with the same key gives the same intent.
    """
    terminal = Terminal(output)
    longest = _longest(timeout, wait=wait)
    lifetime = seconds("--expires-in", expires_in)
    about = json_object("--metadata", metadata, '{"plan":"starter"}')
    options: CallOptions = {"idempotency_key": idempotency_key} if idempotency_key else {}
    with connected(access) as client:
        intent = client.registration_intents.create(
            customer_reference=customer_reference,
            metadata=if_given(about),
            channel_id=if_given(channel_id),
            expires_in=if_given(lifetime),
            locale=if_given(locale),
            **options,
        )
        if output.json:
            terminal.json(intent.to_dict())
        else:
            terminal.line(intent.wa_link)
        if qr or (wait and qr is None and terminal.attended):
            _draw(terminal, intent.wa_link)
        if open:
            _open(terminal, intent.wa_link)
        if not wait:
            terminal.talk(
                f"For {customer_reference}, until {intent['expires_at']:%Y-%m-%d %H:%M} UTC. "
                f"Next: wabery registration-intents get {intent.id} --wait"
            )
            return Exit.OK
        ended = _waited(terminal, client, intent.id, longest)
        if output.json:
            terminal.json(ended.to_dict())
        return _outcome(terminal, ended)


def get(
    intent_id: str,
    /,
    *,
    wait: Flag = False,
    timeout: str | None = None,
    output: Output = OUTPUT,
    access: Access = ACCESS,
) -> int:
    """Read an intent, or wait for its end.

    With --wait the exit code says how it ended: 0 joined, 10 expired, 11 cancelled or refused, 12 not in time.

    Parameters
    ----------
    intent_id
        Such as reg_01jz….
    wait
        Wait until the person has pressed send, or the intent has ended otherwise.
    timeout
        Longest wait, such as 90 or 10m. Default: as long as the intent lives.
    """
    terminal = Terminal(output)
    longest = _longest(timeout, wait=wait)
    with connected(access) as client:
        if wait:
            intent = _waited(terminal, client, intent_id, longest)
        else:
            intent = client.registration_intents.get(intent_id)
        _show(terminal, intent)
        return _outcome(terminal, intent) if wait else Exit.OK


def list_(
    *,
    status: str | None = None,
    customer_reference: str | None = None,
    contact_id: str | None = None,
    channel_id: str | None = None,
    created_after: str | None = None,
    created_before: str | None = None,
    pages: Pages = PAGES,
    output: Output = OUTPUT,
    access: Access = ACCESS,
) -> int:
    """List intents, newest first.

    Parameters
    ----------
    status
        PENDING, JOINED, REJECTED or EXPIRED.
    customer_reference
        Only those of this user.
    contact_id
        Only those joined by this contact.
    channel_id
        Only those of this WhatsApp number.
    created_after
        ISO 8601, such as 2026-06-27 or 2026-06-27T12:00:00Z.
    created_before
        ISO 8601.
    """
    after, before = moment("--created-after", created_after), moment("--created-before", created_before)
    limit = most(pages, output)
    with connected(access) as client:
        return listed(
            lambda size: client.registration_intents.list(
                status=if_given(status.upper() if status else None),
                customer_reference=if_given(customer_reference),
                contact_id=if_given(contact_id),
                channel_id=if_given(channel_id),
                created_after=if_given(after),
                created_before=if_given(before),
                limit=size,
            ),
            ("id", "status", "phase", "customer_reference", "created_at", "expires_at"),
            pages,
            output,
            limit=limit,
        )


def cancel(intent_id: str, /, *, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """End a pending intent: nobody can join with its link any more."""
    with connected(access) as client:
        _show(Terminal(output), client.registration_intents.cancel(intent_id))
    return Exit.OK


def extend(intent_id: str, /, *, expires_in: str, output: Output = OUTPUT, access: Access = ACCESS) -> int:
    """Let a pending intent live longer.

    Parameters
    ----------
    intent_id
        Such as reg_01jz….
    expires_in
        From now on, such as 900, 30m, 24h or 7d.
    """
    lifetime = seconds("--expires-in", expires_in)
    assert lifetime is not None
    with connected(access) as client:
        _show(Terminal(output), client.registration_intents.extend(intent_id, expires_in=lifetime))
    return Exit.OK


def _longest(timeout: str | None, *, wait: bool) -> float | None:
    if timeout is not None and not wait:
        raise CommandError("--timeout is how long --wait may take, and there is no --wait.", "Add --wait.")
    return seconds("--timeout", timeout)


def _waited(terminal: Terminal, client: Wabery, intent_id: str, longest: float | None) -> RegistrationIntent:
    resume = f"It goes on without you. Resume with: wabery registration-intents get {intent_id} --wait"
    try:
        if not terminal.attended:
            return client.registration_intents.wait(intent_id, timeout=longest)
        with _changing_line(terminal) as line:
            return client.registration_intents.wait(
                intent_id, timeout=longest, on_change=lambda intent: line.update(_progress(intent))
            )
    except WaitTimeoutError as late:
        raise CommandError(late.message, resume, Exit.TIMED_OUT) from late
    except KeyboardInterrupt:
        print(f"\n{resume}", file=sys.stderr)
        raise


def _changing_line(terminal: Terminal) -> Status:
    from rich.console import Console

    return Console(stderr=True, no_color=not terminal.colours, highlight=False).status("Waiting for WhatsApp")


def _progress(intent: RegistrationIntent) -> str:
    match intent.get("phase"):
        case "awaiting_confirmation":
            return "The message has arrived; waiting for the person to confirm it in WhatsApp"
        case "awaiting_phone":
            return "The message has arrived; waiting for the person's phone number"
        case "awaiting_app":
            return "The message has arrived; waiting for your app to confirm"
        case "grace":
            return "Expired; a message that was sent in time may still arrive"
    end: datetime = intent["expires_at"]
    until = f"{end:%H:%M}" if end.date() == datetime.now(UTC).date() else f"{end:%d %b %H:%M}"
    return f"Waiting for the person to press send, until {until} UTC (Ctrl-C leaves)"


def _outcome(terminal: Terminal, intent: RegistrationIntent) -> int:
    match intent.status:
        case "JOINED":
            terminal.talk(f"Connected: {intent.get('customer_reference') or intent.id}.")
            return Exit.OK
        case "EXPIRED":
            terminal.talk("Expired: nobody pressed send in time.")
            return Exit.EXPIRED
        case "REJECTED":
            terminal.talk(
                f"Refused: {intent.get('rejection_reason')}. {intent.get('rejection_message') or ''}".rstrip()
            )
            return Exit.REFUSED
    terminal.warn(f"This version does not know the status {intent.status}.")
    return Exit.UNEXPECTED


def _show(terminal: Terminal, intent: RegistrationIntent) -> None:
    if terminal.as_json:
        terminal.json(intent.to_dict())
    else:
        terminal.fields({name: value for name, value in intent.to_dict().items() if name not in _SECRET})


def _draw(terminal: Terminal, link: str) -> None:
    if not terminal.colours or "utf" not in (sys.stderr.encoding or "").lower():
        terminal.talk("No QR code without colours; open the link instead.")
        return
    from wabery.cli import _qr

    code = _qr.drawn(link)
    if code is None:
        terminal.talk("This terminal is too small for the QR code; open the link instead.")
    else:
        print(code, file=sys.stderr, flush=True)


def _open(terminal: Terminal, link: str) -> None:
    import webbrowser

    if not link.startswith("https://") or not webbrowser.open(link):
        terminal.warn("The link could not be opened in a browser.")
