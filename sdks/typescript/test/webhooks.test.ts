/** Receiving webhooks: beyond the shared vectors, what is particular to JavaScript, and what others' libraries say. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, describe, test } from "node:test";
import { Wabery, WaberyError, WaberyWebhookVerificationError, webhooks } from "@wabery/sdk";
import { Webhook as StandardWebhook } from "standardwebhooks";
import { Webhook as Svix } from "svix";

const SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const EVENT = {
  event: "participant.joined",
  payload: { event_id: "evt_1", customer_reference: "user_123", metadata: { plan: "starter", name: "zoë 🙂" } },
  sentAt: "2026-11-23T00:00:00.000Z",
};
const BODY = JSON.stringify(EVENT);

afterEach(() => {
  delete process.env.WABERY_WEBHOOK_SECRET;
});

const fault = (expected: string) => (error: unknown) => {
  assert.ok(error instanceof WaberyWebhookVerificationError && error instanceof WaberyError);
  return error.fault === expected && !error.message.includes(SECRET.slice(6));
};

describe("unwrap", () => {
  test("gives the event, typed by its name", async () => {
    const { body, headers } = await webhooks.signForTest(EVENT, SECRET);

    const event = await webhooks.unwrap(body, headers, SECRET);

    assert.ok(event.event === "participant.joined");
    assert.equal(event.payload.customer_reference, "user_123");
    assert.deepEqual(event, EVENT);
  });

  test("an event and fields newer than this SDK come through untouched", async () => {
    const newer = { event: "moon.risen", payload: { phase: ["new"] }, sentAt: EVENT.sentAt, extra: 1 };
    const { body, headers } = await webhooks.signForTest(newer, SECRET);

    assert.deepEqual(await webhooks.unwrap(body, headers, SECRET), newer);
  });

  for (const body of [
    "",
    "[]",
    "null",
    '"text"',
    "{",
    '{"event":1,"payload":{}}',
    '{"event":"x"}',
    '{"event":"x","payload":null}',
  ])
    test(`${body || "nothing"} is signed but no event`, async () => {
      const { headers } = await webhooks.signForTest(body, SECRET);

      await assert.rejects(webhooks.unwrap(body, headers, SECRET), fault("not_an_event"));
    });

  test("a stranger's body is not even parsed", async () => {
    const { headers } = await webhooks.signForTest(BODY, "another secret");

    await assert.rejects(webhooks.unwrap("{", headers, SECRET), fault("wrong_signature"));
  });
});

describe("the body", () => {
  const forms: Record<string, string | Uint8Array | ArrayBuffer> = {
    string: BODY,
    Buffer: Buffer.from(BODY),
    "a view into a larger buffer": new Uint8Array(Buffer.from(`xx${BODY}`)).subarray(2),
    ArrayBuffer: new Uint8Array(Buffer.from(BODY)).buffer,
  };
  for (const [name, body] of Object.entries(forms))
    test(`may be ${name}`, async () => {
      const { headers } = await webhooks.signForTest(BODY, SECRET);

      await webhooks.verify(body, headers, SECRET);
    });

  for (const body of [EVENT, undefined, null, 7])
    test(`${JSON.stringify(body)?.slice(0, 12)} is not what was signed, and the error says what to pass`, async () => {
      const { headers } = await webhooks.signForTest(BODY, SECRET);

      await assert.rejects(webhooks.verify(body as unknown as string, headers, SECRET), (error) => {
        assert.match((error as Error).message, /raw body.*express\.raw/);
        return fault("body_not_bytes")(error);
      });
    });
});

describe("the headers", () => {
  test("may be those of fetch", async () => {
    const { headers } = await webhooks.signForTest(BODY, SECRET, { nextSecret: "another" });

    await webhooks.verify(BODY, new Headers(headers), SECRET);
    await webhooks.verify(BODY, new Request("http://x.invalid", { method: "POST", headers }).headers, "another");
  });

  test("may be those of Node, over a real connection", async (t) => {
    const received = new Promise((resolve, reject) => {
      const receiver = createServer(async (request, response) => {
        const chunks: Buffer[] = [];
        for await (const chunk of request) chunks.push(chunk);
        response.end();
        webhooks.unwrap(Buffer.concat(chunks), request.headers, SECRET).then(resolve, reject);
      });
      t.after(() => receiver.close());
      receiver.listen(0, "127.0.0.1");
      void once(receiver, "listening").then(async () => {
        const { body, headers } = await webhooks.signForTest(EVENT, SECRET);
        await fetch(`http://127.0.0.1:${(receiver.address() as AddressInfo).port}`, {
          method: "POST",
          headers,
          body,
        });
      });
    });

    assert.deepEqual(await received, EVENT);
  });

  test("repeated ones, as arrays or joined, are all tried", async () => {
    const [old, current] = [await webhooks.signForTest(BODY, "old secret"), await webhooks.signForTest(BODY, SECRET)];

    for (const name of ["x-wabery-signature", "webhook-signature"]) {
      const both = [old.headers[name] ?? "", current.headers[name] ?? ""];
      const moment = name === "webhook-signature" ? { ...current.headers, "x-wabery-signature": undefined } : {};
      for (const secret of ["old secret", SECRET]) {
        await webhooks.verify(BODY, { ...moment, [name]: both }, secret);
        await webhooks.verify(BODY, { ...moment, [name]: both.join(", ") }, secret);
      }
    }
  });

  for (const headers of [undefined, null, {}, []])
    test(`${JSON.stringify(headers)} are none`, async () => {
      await assert.rejects(webhooks.verify(BODY, headers as unknown as Headers, SECRET), fault("missing_header"));
    });
});

describe("the secret", () => {
  test("comes from the client, or the environment, where a call names none", async () => {
    const { headers } = await webhooks.signForTest(BODY, SECRET);
    const apiKey = "wab_test_0123456789ABCDEFGHIJKLMNOPQRST2s2GvP";

    await new Wabery({ apiKey, webhookSecret: ["the next one", SECRET] }).webhooks.verify(BODY, headers);
    process.env.WABERY_WEBHOOK_SECRET = SECRET;
    await new Wabery({ apiKey }).webhooks.verify(BODY, headers);
    await webhooks.verify(BODY, headers);
  });

  test("is missed before anything else is judged", async () => {
    await assert.rejects(webhooks.verify(BODY, {}), fault("no_secret"));
    await assert.rejects(webhooks.verify(BODY, {}, ["", SECRET]), fault("no_secret"));
  });

  test("that is an API key, or has quotes around it, is named as the cause", async () => {
    const { headers } = await webhooks.signForTest(BODY, SECRET);

    await assert.rejects(webhooks.verify(BODY, headers, "wab_test_0123456789ABCDEFGHIJKLMNOPQRST2s2GvP"), /is an API key/);
    await assert.rejects(webhooks.verify(BODY, headers, `"${SECRET}" `), /has quotes or white space around it/);
  });
});

test("requireTimestamp rejects the contract's header alone, whatever its age", async () => {
  const body = JSON.stringify({ ...EVENT, sentAt: new Date().toISOString() });
  const { headers } = await webhooks.signForTest(body, SECRET);
  const alone = { "x-wabery-signature": headers["x-wabery-signature"] };

  await webhooks.verify(body, alone, SECRET);
  await assert.rejects(webhooks.verify(body, alone, SECRET, { requireTimestamp: true }), fault("missing_header"));
});

describe("a secret given as bytes", () => {
  for (const secret of [SECRET, "grüße, 世界 🔑"])
    test(`verifies: ${secret}`, async () => {
      const { body, headers } = await webhooks.signForTest(EVENT, secret);

      await webhooks.unwrap(body, headers, Buffer.from(secret));
      await webhooks.unwrap(body, headers, [new Uint8Array([1]), new TextEncoder().encode(secret)]);
    });

  for (const secret of [7, {}, Buffer.from([0xff]), [7], [null], [], "", Buffer.alloc(0), Symbol("x")])
    test(`is named where it cannot be one: ${String(JSON.stringify(secret) ?? typeof secret)}`, async () => {
      const { body, headers } = await webhooks.signForTest(EVENT, SECRET);

      await assert.rejects(webhooks.unwrap(body, headers, secret as unknown as string), fault("no_secret"));
    });
});

test("an age that is no number is a mistake of configuration, and accepts nothing", async () => {
  const { body, headers } = await webhooks.signForTest(EVENT, SECRET);

  for (const options of [{ tolerance: Number.NaN }, { maxAge: Number.NaN }, { maxAge: -1 }, { tolerance: -1 }])
    await assert.rejects(webhooks.verify(body, headers, SECRET, options), { name: "WaberyConfigurationError" });
});

describe("others agree", () => {
  for (const [name, Library] of Object.entries({ standardwebhooks: StandardWebhook, svix: Svix })) {
    test(`${name} verifies what is signed here`, async () => {
      const { headers } = await webhooks.signForTest(BODY, SECRET);

      assert.deepEqual(new Library(SECRET).verify(BODY, headers), EVENT);
    });

    test(`what ${name} signs is verified here`, async () => {
      const now = new Date();
      const signature = new Library(SECRET).sign("msg_1", now, BODY);
      const headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": String(Math.floor(now.getTime() / 1_000)),
        "webhook-signature": signature,
      };

      await webhooks.verify(BODY, headers, SECRET);
    });
  }
});
