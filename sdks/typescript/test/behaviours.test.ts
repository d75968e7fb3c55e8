/** What an app does with the SDK, shown against the contract server or, where the environment names one, the real one. */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { Wabery, WaberyApiError, WaberyEndpointNotAvailableError, WaberyWaitTimeoutError } from "@wabery/sdk";
import { compile } from "./compile.js";
import { PERSONS_REFERENCE, pressSend, target } from "./target.js";

const server = await target();
const wabery = new Wabery({ apiKey: server.secretKey, baseUrl: server.baseUrl });
const page = new Wabery({ apiKey: server.publishableKey, baseUrl: server.baseUrl });

/** Unlike any other test's, so that a server with a past does not matter. */
const reference = () => `sdk_${randomUUID()}`;

describe("registration intents", () => {
  test("the snippet of the public page, compiled and run as it stands there", async () => {
    const snippet = `import { Wabery } from "@wabery/sdk";

const wabery = new Wabery({ apiKey: process.env.WABERY_API_KEY });

const intent = await wabery.registrationIntents.create({
  customerReference: "user_123",
  metadata: { plan: "starter" },
});
console.log(intent.wa_link);

const status = await wabery.registrationIntents.get(intent.id);
if (status.status === "JOINED") {
  console.log("joined");
}
`;
    const environment = { WABERY_API_KEY: server.secretKey, WABERY_BASE_URL: server.baseUrl, PATH: process.env.PATH };

    const complaints = compile("snippet", { "snippet.ts": snippet });
    const script = fileURLToPath(new URL("../snippet/snippet.js", import.meta.url));
    const { stdout } = await promisify(execFile)(process.execPath, [script], { env: environment });

    assert.equal(complaints, "");
    assert.match(stdout, /^https:\/\/wa\.me\/\d+\?text=\S+\n$/);
  });

  test("what is inside metadata keeps its names", async () => {
    const metadata = { planName: "starter", nested: { camelCase: [1, null, "ü"] } };

    const intent = await wabery.registrationIntents.create({ customerReference: reference(), metadata });

    assert.deepEqual((await wabery.registrationIntents.get(intent.id)).metadata, metadata);
  });

  test("a publishable key mints, polls by id, and sees more with the client secret", async () => {
    const intent = await page.registrationIntents.create({ customerReference: reference() });

    const bare = await page.registrationIntents.get(intent.id);
    const held = await page.registrationIntents.get(intent.id, { clientSecret: intent.client_secret });

    assert.equal(intent.reference_trust, "unverified");
    assert.equal(bare.status, "PENDING");
    assert.ok(!("customer_reference" in bare) && !("wa_link" in bare));
    assert.equal(held.wa_link, intent.wa_link);
  });

  test("a list is walked to its end, newest first", async () => {
    const customerReference = reference();
    const minted: string[] = [];
    for (let n = 0; n < 5; n++) minted.unshift((await wabery.registrationIntents.create({ customerReference })).id);

    const walked: string[] = [];
    for await (const intent of wabery.registrationIntents.list({ customerReference, limit: 2 })) walked.push(intent.id);
    const first = await wabery.registrationIntents.list({ customerReference, limit: 2 });
    const second = await first.nextPage();

    assert.deepEqual(walked, minted);
    assert.deepEqual([first.data.length, first.has_more, second?.data[0]?.id], [2, true, minted[2]]);
  });

  test("cancelling ends an intent, and waiting for it returns at once", async () => {
    const intent = await wabery.registrationIntents.create({ customerReference: reference() });

    const canceled = await wabery.registrationIntents.cancel(intent.id);
    const ended = await wabery.registrationIntents.wait(intent.id);

    assert.deepEqual([canceled.status, canceled.rejection_reason], ["REJECTED", "canceled_by_app"]);
    assert.equal(ended.status, "REJECTED");
  });

  test("extending moves the end", async () => {
    const intent = await wabery.registrationIntents.create({ customerReference: reference(), expiresIn: 60 });

    const longer = await wabery.registrationIntents.extend(intent.id, { expiresIn: 3_600 });

    assert.ok(Date.parse(longer.expires_at) > Date.parse(intent.expires_at));
  });

  test("many are minted at once, each by itself", async () => {
    const items = [
      { customerReference: reference(), metadata: { planName: "starter" } },
      { customerReference: reference(), expiresIn: 1 },
    ];

    const [minted, refused] = (await wabery.registrationIntents.createMany(items)).data;

    assert.ok(minted?.object === "registration_intent" && refused?.object === "error");
    assert.match(minted.wa_link, /^https:\/\/wa\.me\//);
    assert.deepEqual(minted.metadata, { planName: "starter" });
    assert.deepEqual([refused.error, refused.param], ["expires_in_out_of_range", "expires_in"]);
  });

  test("a page tells how the person went on", async () => {
    const { id, client_secret: clientSecret } = await page.registrationIntents.create({ customerReference: reference() });

    await page.registrationIntents.opened(id, { via: "qr" }, { clientSecret });

    assert.equal((await wabery.registrationIntents.get(id)).opened_via, "qr");
  });

  test("a person presses send, and whoever waits hears of it", async () => {
    const intent = await wabery.registrationIntents.create({ customerReference: PERSONS_REFERENCE });

    const joined = await wabery.registrationIntents.wait(intent.id, {
      timeout: 20_000,
      onChange: ({ status }) => void (status === "PENDING" && pressSend(server, intent.wa_link)),
    });

    assert.equal(joined.status, "JOINED");
    assert.ok(joined.joined_at && joined.contact_id);
  });

  test("waiting hears of an end that comes later, and of the state before it", async () => {
    const intent = await wabery.registrationIntents.create({ customerReference: reference() });
    const seen: string[] = [];
    let pending = () => {};
    const heard = new Promise<void>((resolve) => {
      pending = resolve;
    });

    const waiting = wabery.registrationIntents.wait(intent.id, {
      onChange: ({ status }) => {
        seen.push(status);
        pending();
      },
    });
    await heard;
    await page.registrationIntents.cancel(intent.id, { clientSecret: intent.client_secret });

    assert.equal((await waiting).status, "REJECTED");
    assert.deepEqual(seen, ["PENDING", "REJECTED"]);
  });

  test("waiting stops when its time is over, and says what it saw", async () => {
    const intent = await wabery.registrationIntents.create({ customerReference: reference() });

    const waiting = wabery.registrationIntents.wait(intent.id, { timeout: 300 });

    await assert.rejects(waiting, (error) => error instanceof WaberyWaitTimeoutError && error.intent?.status === "PENDING");
  });

  test("waiting stops when the caller gives up, with the caller's reason", async () => {
    const intent = await wabery.registrationIntents.create({ customerReference: reference() });
    const giveUp = new AbortController();

    const waiting = wabery.registrationIntents.wait(intent.id, {
      signal: giveUp.signal,
      onChange: () => giveUp.abort("seen enough"),
    });

    await assert.rejects(waiting, (reason) => reason === "seen enough");
  });
});

describe("repeating", () => {
  test("the same idempotency key gives the same intent", async () => {
    const params = { customerReference: reference() };
    const idempotencyKey = reference();

    const first = await wabery.registrationIntents.create(params, { idempotencyKey });
    const again = await wabery.registrationIntents.create(params, { idempotencyKey }).withResponse();

    assert.equal(again.data.id, first.id);
    assert.equal(again.response.headers.get("idempotency-replayed"), "true");
  });

  test("the same idempotency key with other parameters is refused", async () => {
    const idempotencyKey = reference();
    await wabery.registrationIntents.create({ customerReference: reference() }, { idempotencyKey });

    const other = wabery.registrationIntents.create({ customerReference: reference() }, { idempotencyKey });

    await assert.rejects(other, { name: "WaberyApiError", kind: "conflict", code: "idempotency_key_reused" });
  });
});

describe("refusals", () => {
  test("bad input names the field, the request and what to do", async () => {
    const refused = wabery.registrationIntents.create({ customerReference: "" });

    await assert.rejects(refused, (error) => {
      assert.ok(error instanceof WaberyApiError);
      assert.deepEqual(
        [error.status, error.kind, error.code, error.param],
        [400, "bad_request", "invalid_customer_reference", "customer_reference"],
      );
      assert.match(error.requestId ?? "", /^req_/);
      assert.ok(error.hint && error.message.includes(error.hint));
      return true;
    });
  });

  test("an unknown id is not found", async () => {
    const unknown = wabery.registrationIntents.get("reg_00000000000000000000000000");

    await assert.rejects(unknown, { kind: "not_found", code: "not_found", status: 404 });
  });

  test("a key that the server does not know", async () => {
    const stranger = new Wabery({ apiKey: "wab_live_0123456789ABCDEFGHIJKLMNOPQRST29Z8aS", baseUrl: server.baseUrl });

    await assert.rejects(stranger.registrationIntents.list(), { kind: "authentication", code: "invalid_api_key", status: 401 });
  });

  test("a publishable key may not list", async () => {
    await assert.rejects(page.registrationIntents.list(), { kind: "permission_denied", status: 403 });
  });

  test("a call that this server does not have has an error of its own", async () => {
    await assert.rejects(wabery.request("GET", "/nowhere"), (error) => {
      assert.ok(error instanceof WaberyEndpointNotAvailableError && error instanceof WaberyApiError);
      return error.status === 404 && error.message.includes(server.baseUrl);
    });
  });
});

describe("administration", () => {
  test("a project shows its webhook secret by itself, and not in a list", async () => {
    const [listed] = (await wabery.projects.list()).data;
    assert.ok(listed);

    const project = await wabery.projects.get(listed.id);
    const rotated = await wabery.projects.rotateWebhookSecret(listed.id);

    assert.ok(!("webhook_secret" in listed));
    assert.match(project.webhook_secret ?? "", /^whsec_/);
    assert.match(rotated.webhook_secret ?? "", /^whsec_/);
    assert.notEqual(rotated.webhook_secret, project.webhook_secret);
  });

  test("a project's settings change one by one", async () => {
    const [listed] = (await wabery.projects.list()).data;
    assert.ok(listed);

    const named = await wabery.projects.update(listed.id, { webhookUrl: "https://example.com/webhooks" });
    const silent = await wabery.projects.update(listed.id, { webhookUrl: null });

    assert.equal(named.webhook_url, "https://example.com/webhooks");
    assert.deepEqual([silent.webhook_url, silent.name], [null, listed.name]);
  });

  test("an API key is made, renamed and revoked", async () => {
    const made = await wabery.apiKeys.create({ kind: "secret", name: "ci", scopes: ["registrations:read"] });

    const renamed = await wabery.apiKeys.update(made.id, { name: "nightly" });
    const revoked = await wabery.apiKeys.revoke(made.id);

    assert.match(made.key, /^wab_(test|live)_/);
    assert.deepEqual([renamed.name, renamed.key], ["nightly", null]);
    assert.ok(revoked.revoked_at);
    assert.equal((await wabery.apiKeys.get(made.id)).name, "nightly");
  });

  test("an API key gets a new value under its id", async () => {
    const made = await wabery.apiKeys.create({ name: "ci", scopes: ["registrations:read"] });

    const rotated = await wabery.apiKeys.rotate(made.id, { overlap: 0 });

    assert.deepEqual([rotated.id, /^wab_(test|live)_/.test(rotated.key)], [made.id, true]);
  });

  test("a channel is connected, renamed and disconnected", async () => {
    const number = String(Date.now());

    const made = await wabery.channels.create({
      name: "support",
      phoneNumberId: number,
      displayPhoneNumber: "15550100",
      wabaId: "1",
      appSecret: "0123456789abcdef0123456789abcdef",
    });
    const renamed = await wabery.channels.update(made.id, { name: "sales" });
    await wabery.channels.delete(made.id);

    assert.deepEqual([made.phone_number_id, renamed.name], [number, "sales"]);
    assert.ok(!("app_secret" in made));
  });

  test("a channel is checked", async () => {
    const made = await wabery.channels.create({
      name: "checked",
      phoneNumberId: String(Date.now() + 1),
      displayPhoneNumber: "15550101",
      wabaId: "1",
      appSecret: "0123456789abcdef0123456789abcdef",
    });

    const checked = await wabery.channels.check(made.id);
    await wabery.channels.delete(made.id);

    assert.deepEqual([checked.object, checked.channel_id], ["channel_check", made.id]);
    assert.equal(
      checked.ok,
      checked.checks.every(({ state }) => state !== "failed"),
    );
  });

  test("events are listed and read", async () => {
    const intent = await wabery.registrationIntents.create({ customerReference: PERSONS_REFERENCE });
    await pressSend(server, intent.wa_link);

    const events = await wabery.events.list({ type: "participant.joined", limit: 1 });

    const [event] = events.data;
    assert.ok(event?.type === "participant.joined");
    assert.deepEqual([event.payload.event_id, event.payload.customer_reference], [event.id, PERSONS_REFERENCE]);
    assert.deepEqual(await wabery.events.get(event.id), event);
  });
});
