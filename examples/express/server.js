/**
 * Connect a signed-in user's WhatsApp account, and remember whose it is.
 *
 *     node server.js
 *
 * WABERY_BASE_URL, WABERY_API_KEY and WABERY_WEBHOOK_SECRET come from the environment.
 */

import { Wabery, WaberyWebhookVerificationError, webhooks } from "@wabery/sdk";
import express from "express";

const app = express();
const wabery = new Wabery();

// These stand for your database: a table of users' contacts, and one with a unique event_id, written in one transaction.
const contacts = new Map();
const seen = new Set();

/** Your own sign-in belongs here. Whoever a request merely says it is must not be connected. */
const currentUser = (_request) => "user_123";

// The button "Connect WhatsApp" posts here; the answer opens WhatsApp with the message filled in.
app.post("/connect", async (request, response) => {
  const intent = await wabery.registrationIntents.create({ customerReference: currentUser(request) });
  response.redirect(303, intent.wa_link);
});

app.get("/me", (request, response) => {
  const user = currentUser(request);
  response.json({ user, whatsapp: contacts.get(user)?.contactId ?? null });
});

// express.raw, not express.json: the signature covers the bytes as they came.
app.post("/webhooks", express.raw({ type: "application/json" }), async (request, response) => {
  let event;
  try {
    event = await webhooks.unwrap(request.body, request.headers);
  } catch (error) {
    if (!(error instanceof WaberyWebhookVerificationError)) throw error;
    response.status(400).send(error.fault);
    return;
  }
  if (!seen.has(event.payload.event_id)) {
    seen.add(event.payload.event_id);
    handle(event);
  }
  response.sendStatus(204);
});

/** @param {import("@wabery/sdk").WebhookEvent} event */
function handle({ event, payload }) {
  switch (event) {
    case "participant.joined": {
      const known = contacts.get(payload.customer_reference);
      if (known && known.since >= payload.joined_at) return; // events may overtake each other
      contacts.set(payload.customer_reference, { contactId: payload.contact_id, since: payload.joined_at });
      break;
    }
    case "participant.unlinked":
      if (contacts.get(payload.customer_reference)?.contactId === payload.contact_id) contacts.delete(payload.customer_reference);
      break;
    case "message.received":
      console.log(`${payload.customer_reference ?? "somebody"} wrote: ${payload.text}`);
  }
}

app.listen(8000, "127.0.0.1", () => console.log("http://127.0.0.1:8000"));
