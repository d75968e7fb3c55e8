"""Connect a signed-in user's WhatsApp account, and remember whose it is.

    uvicorn main:app --port 8000

WABERY_BASE_URL, WABERY_API_KEY and WABERY_WEBHOOK_SECRET come from the environment.
"""

import sqlite3
from contextlib import closing
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import RedirectResponse

from wabery import AsyncWabery, WebhookVerificationError, webhooks

app = FastAPI()
wabery = AsyncWabery()


def current_user() -> str:
    """Your own sign-in belongs here. Whoever a request merely says it is must not be connected."""
    return "user_123"


User = Annotated[str, Depends(current_user)]


@app.post("/connect")
async def connect(user: User) -> RedirectResponse:
    """The button "Connect WhatsApp" posts here; the answer opens WhatsApp with the message filled in."""
    intent = await wabery.registration_intents.create(customer_reference=user)
    return RedirectResponse(intent.wa_link, status_code=303)


@app.get("/me")
def me(user: User) -> dict[str, object]:
    with closing(database()) as db:
        row = db.execute("select contact_id from whatsapp where user_id = ?", [user]).fetchone()
    return {"user": user, "whatsapp": row and row[0]}


async def verified(request: Request) -> webhooks.Event:
    """The event of a delivery that is Wabery's. The signature covers the raw body, so nothing may parse it before."""
    try:
        return await webhooks.unwrap_starlette(request)
    except WebhookVerificationError as refused:
        raise HTTPException(400, refused.fault) from refused


@app.post("/webhooks", status_code=204)
def receive(event: Annotated[webhooks.Event, Depends(verified)]) -> None:
    # One transaction for "seen" and for what follows from it: if it fails, Wabery sends the event again.
    with closing(database()) as db, db:
        if db.execute("insert or ignore into seen values (?)", [event.id]).rowcount == 0:
            return
        match event:
            case webhooks.ParticipantJoined(payload=joined):
                db.execute(
                    "insert into whatsapp values (?, ?, ?) on conflict (user_id) do update"
                    " set contact_id = excluded.contact_id, since = excluded.since"
                    " where excluded.since > since",  # events may overtake each other
                    [joined.customer_reference, joined.contact_id, joined.joined_at.isoformat()],
                )
            case webhooks.ParticipantUnlinked(payload=ended):
                db.execute(
                    "delete from whatsapp where user_id = ? and contact_id = ?",
                    [ended.customer_reference, ended.contact_id],
                )
            case webhooks.MessageReceived(payload=message):
                print(f"{message.customer_reference or 'somebody'} wrote: {message.text}")


def database() -> sqlite3.Connection:
    """Stands for your own database."""
    db = sqlite3.connect("app.db")
    db.executescript("""
        create table if not exists seen (event_id text primary key);
        create table if not exists whatsapp (user_id text primary key, contact_id text not null, since text not null);
    """)
    return db
