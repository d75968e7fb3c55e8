/** Never run: what the types promise, and what they refuse, as the compiler sees it. */

import { type RegistrationIntentStatus, Wabery, WaberyApiError, type WebhookEvent, webhooks } from "@wabery/sdk";
import { Wabery as PageWabery } from "@wabery/sdk/browser";

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const equal = <A, B>(_: Equal<A, B>) => {};

export async function publicSnippet(apiKey: string) {
  const wabery = new Wabery({ apiKey });
  const intent = await wabery.registrationIntents.create({ customerReference: "user_123", metadata: { plan: "starter" } });
  equal<typeof intent.wa_link, string>(true);
  const status = await wabery.registrationIntents.get(intent.id);
  equal<typeof status.status, RegistrationIntentStatus>(true);
  return status.status === "JOINED";
}

export async function shownToSomeKeysOnly(wabery: Wabery) {
  const intent = await wabery.registrationIntents.get("reg_1");
  equal<typeof intent.customer_reference, string | undefined>(true);
  equal<typeof intent.phase, "awaiting_confirmation" | "awaiting_phone" | "awaiting_app" | "grace" | (string & {}) | null>(true);
  // @ts-expect-error a typo is an error, although unknown fields survive
  intent.wa_lnk;
}

export async function lists(wabery: Wabery) {
  for await (const { id } of wabery.registrationIntents.list({ status: "PENDING" })) equal<typeof id, string>(true);
  const page = await wabery.events.list();
  for await (const event of page) if (event.type === "message.received") equal<typeof event.payload.from, string | null>(true);
  const { response, requestId } = await wabery.projects.get("proj_1").withResponse();
  equal<typeof response, Response>(true);
  equal<typeof requestId, string | null>(true);
}

export function parameters(wabery: Wabery) {
  // @ts-expect-error parameters are camelCase
  void wabery.registrationIntents.create({ customer_reference: "user_123" });
  // @ts-expect-error a customer reference is needed
  void wabery.registrationIntents.create({});
  // @ts-expect-error an id, not the object
  void wabery.registrationIntents.get({ id: "reg_1" });
  // @ts-expect-error scopes are fixed once a key is made
  void wabery.apiKeys.update("key_1", { scopes: [] });
}

export function events(event: WebhookEvent): string | null {
  switch (event.event) {
    case "participant.joined":
      equal<typeof event.payload.customer_reference, string>(true);
      return event.payload.customer_reference;
    case "message.received":
      equal<typeof event.payload.from, string | null>(true);
      equal<NonNullable<typeof event.payload.reply>["payload"], string | null>(true);
      equal<NonNullable<typeof event.payload.media>["voice"], boolean | null>(true);
      equal<typeof event.payload.content, unknown>(true);
      return event.payload.text;
    case "registration_intent.rejected":
      return event.payload.registration_intent.rejection_reason ?? null;
    default:
      return event.payload.event_id;
  }
}

export async function rawBodies(request: Request) {
  await webhooks.unwrap(await request.text(), request.headers);
  await webhooks.unwrap(new Uint8Array(), { "webhook-id": ["a"] }, ["one", "two"], { tolerance: 60 });
  const text = await webhooks.signForTest({ event: "x", payload: {}, sentAt: "" }, "secret");
  equal<typeof text.body, string>(true);
  const bytes = await webhooks.signForTest(new ArrayBuffer(1), "secret");
  equal<typeof bytes.body, ArrayBuffer>(true);
  // @ts-expect-error a parsed body
  await webhooks.unwrap(await request.json().then((body: { event: string }) => body), request.headers);
}

export function errors(error: unknown) {
  if (error instanceof WaberyApiError && error.kind === "rate_limit") equal<typeof error.retryAfter, number | null>(true);
}

export function pages() {
  const page = new PageWabery({ apiKey: "wab_pub_…" });
  // @ts-expect-error a page has the intent calls only
  page.projects;
  // @ts-expect-error a page has no environment to take a key from
  new PageWabery({});
}
