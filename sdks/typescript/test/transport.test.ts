/** How a call behaves when the way to the server, or the server, does not. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { beforeEach, describe, test } from "node:test";
import { inspect } from "node:util";
import {
  Wabery,
  WaberyApiError,
  WaberyConfigurationError,
  WaberyConnectionError,
  WaberyTimeoutError,
  WaberyUnexpectedResponseError,
} from "@wabery/sdk";
import type { Fault } from "./contract-server.js";
import { hurry } from "./hurry.js";
import { contractServer } from "./target.js";

const server = await contractServer();
const wabery = new Wabery({ apiKey: server.secretKey, baseUrl: server.baseUrl });
const CUSTOMER = { customerReference: "user_123" };

beforeEach(() => {
  server.requests.length = 0;
});

const TRANSIENT: Record<string, Fault> = {
  "a broken connection": "drop",
  "an answer cut off": "half",
  "408": { status: 408 },
  "409 idempotency_in_progress": { status: 409, body: { error: "idempotency_in_progress", message: "…" } },
  "429": { status: 429 },
  "500": { status: 500 },
  "a proxy's 502": { status: 502, body: "<html>Bad gateway</html>" },
  "503": { status: 503 },
};

describe("retries", () => {
  for (const [name, fault] of Object.entries(TRANSIENT))
    test(`${name} is tried again, with the same idempotency key`, async (t) => {
      hurry(t);
      server.fail(fault, fault);

      await wabery.registrationIntents.create(CUSTOMER);

      const keys = new Set(server.requests.map(({ headers }) => headers["idempotency-key"]));
      assert.equal(server.requests.length, 3);
      assert.equal(keys.size, 1);
      assert.match(String([...keys][0]), /^[0-9a-f]{32}$/);
    });

  for (const status of [400, 401, 403, 404, 409, 422])
    test(`${status} is final`, async () => {
      server.fail({ status, body: { error: "some_code", message: "No." } });

      await assert.rejects(wabery.registrationIntents.create(CUSTOMER), { code: "some_code", status });

      assert.equal(server.requests.length, 1);
    });

  test("pauses double from half a second and lose up to a quarter", async (t) => {
    const pauses = hurry(t);
    server.fail(...Array.from({ length: 6 }, () => ({ status: 503 })));

    await assert.rejects(wabery.registrationIntents.create(CUSTOMER, { maxRetries: 5 }), { status: 503 });

    assert.equal(pauses.length, 5);
    for (const [n, pause] of pauses.entries()) {
      const most = [500, 1_000, 2_000, 4_000, 8_000][n] ?? Number.NaN;
      assert.ok(pause <= most && pause >= most * 0.75, `pause ${n} of ${pause} ms`);
    }
  });

  test("Retry-After wins over the SDK's own pause", async (t) => {
    const pauses = hurry(t);
    server.fail({ status: 429, headers: { "retry-after": "7" } });

    await wabery.registrationIntents.create(CUSTOMER);

    assert.deepEqual(pauses, [7_000]);
  });

  test("Retry-After may be a date", async (t) => {
    const pauses = hurry(t);
    server.fail({ status: 503, headers: { "retry-after": new Date(Date.now() + 5_000).toUTCString() } });

    await wabery.registrationIntents.create(CUSTOMER);

    assert.ok((pauses[0] ?? 0) > 3_000 && (pauses[0] ?? 0) <= 5_000);
  });

  test("a Retry-After beyond half a minute is for the caller to decide", async () => {
    server.fail({ status: 429, headers: { "retry-after": "31" } });

    await assert.rejects(wabery.registrationIntents.create(CUSTOMER), { status: 429, kind: "rate_limit", retryAfter: 31 });

    assert.equal(server.requests.length, 1);
  });

  test("maxRetries: 0 tries once", async () => {
    server.fail("drop");
    const once = new Wabery({ apiKey: server.secretKey, baseUrl: server.baseUrl, maxRetries: 0 });

    await assert.rejects(once.registrationIntents.create(CUSTOMER), WaberyConnectionError);

    assert.equal(server.requests.length, 1);
  });
});

describe("time and giving up", () => {
  test("a server that says nothing is a timeout", async () => {
    server.fail("hang");

    const silent = wabery.registrationIntents.create(CUSTOMER, { timeout: 50, maxRetries: 0 });

    await assert.rejects(silent, (error) => error instanceof WaberyTimeoutError && error.message.includes("50 ms"));
  });

  test("a body that trickles in does not hold the call", async () => {
    server.fail("trickle");

    await assert.rejects(wabery.projects.get("proj_1", { timeout: 100, maxRetries: 0 }), WaberyTimeoutError);
  });

  test("a timeout is tried again", async () => {
    server.fail("hang");

    const intent = await wabery.registrationIntents.create(CUSTOMER, { timeout: 200, maxRetries: 1 });

    assert.equal(intent.status, "PENDING");
  });

  test("an aborted call throws the caller's reason, sent or not", async () => {
    const giveUp = new AbortController();
    server.fail("hang");

    const sent = wabery.registrationIntents.create(CUSTOMER, { signal: giveUp.signal });
    await once(server.happenings, "request");
    giveUp.abort(new Error("enough"));

    await assert.rejects(sent, { message: "enough" });
    await assert.rejects(wabery.registrationIntents.create(CUSTOMER, { signal: giveUp.signal }), { message: "enough" });
    assert.equal(server.requests.length, 1);
  });

  test("an abort ends a pause", async () => {
    const giveUp = new AbortController();
    server.fail({ status: 429, headers: { "retry-after": "25" } });

    const paused = wabery.registrationIntents.create(CUSTOMER, { signal: giveUp.signal });
    await once(server.happenings, "request");
    setImmediate(() => giveUp.abort());

    await assert.rejects(paused, { name: "AbortError" });
  });
});

describe("waiting", () => {
  test("the grace phase is not an end", async () => {
    const { id } = await wabery.registrationIntents.create(CUSTOMER);
    const phases: (string | null)[] = [];

    const waiting = wabery.registrationIntents.wait(id, { onChange: ({ phase }) => phases.push(phase) });
    await once(server.happenings, "hold");
    server.change(id, { status: "EXPIRED", phase: "grace" });
    await once(server.happenings, "hold");
    server.change(id, { status: "JOINED", phase: null, joined_at: new Date().toISOString() });

    assert.equal((await waiting).status, "JOINED");
    assert.deepEqual(phases, [null, "grace", null]);
  });

  test("an expiry beyond the grace is an end", async () => {
    const { id } = await wabery.registrationIntents.create(CUSTOMER);
    server.change(id, { status: "EXPIRED", phase: null });

    assert.equal((await wabery.registrationIntents.wait(id)).status, "EXPIRED");
  });

  test("a status newer than this SDK is handed to the caller", async () => {
    const { id } = await wabery.registrationIntents.create(CUSTOMER);
    server.change(id, { status: "PARKED", parked_by: "somebody" });

    const intent = await wabery.registrationIntents.wait(id);

    assert.equal(intent.status, "PARKED");
    assert.equal((intent as unknown as Record<string, unknown>).parked_by, "somebody");
  });

  test("polls are held by the server for up to 25 seconds", async () => {
    const { id } = await wabery.registrationIntents.create(CUSTOMER);

    const waiting = wabery.registrationIntents.wait(id, { timeout: 60_000 });
    const [poll] = await once(server.happenings, "hold");
    server.change(id, { status: "JOINED" });
    await waiting;

    assert.equal(poll.query.wait, "25");
  });

  test("a publishable key without the client secret asks from time to time instead", async (t) => {
    const page = new Wabery({ apiKey: server.publishableKey, baseUrl: server.baseUrl });
    const { id } = await page.registrationIntents.create(CUSTOMER);
    const pauses = hurry(t);
    server.happenings.once("request", () => server.happenings.once("request", () => server.change(id, { status: "JOINED" })));

    await page.registrationIntents.wait(id);

    assert.deepEqual(pauses, [2_000]);
    assert.ok(server.requests.every(({ query }) => !("wait" in query)));
  });

  test("an outage in between does not end it", async (t) => {
    const { id } = await wabery.registrationIntents.create(CUSTOMER);
    hurry(t);
    server.fail("drop", { status: 503 }, "half", { status: 429 });
    server.change(id, { status: "JOINED" });

    assert.equal((await wabery.registrationIntents.wait(id)).status, "JOINED");
    assert.equal(server.requests.length, 6);
  });

  test("an outage that stays ends it with its error", async (t) => {
    const nobody = new Wabery({ apiKey: server.secretKey, baseUrl: "http://127.0.0.1:9/v1" });
    const pauses = hurry(t);

    await assert.rejects(nobody.registrationIntents.wait("reg_1"), WaberyConnectionError);

    assert.equal(pauses.length, 10);
  });

  for (const body of [{}, { status: null }, { data: [] }])
    test(`${JSON.stringify(body)} is not taken for an end`, async () => {
      server.fail({ status: 200, body });

      await assert.rejects(wabery.registrationIntents.wait("reg_1"), WaberyUnexpectedResponseError);
    });

  test("a Retry-After of an hour ends it with that error", async () => {
    server.fail({ status: 503, headers: { "retry-after": "3600" } });

    await assert.rejects(wabery.registrationIntents.wait("reg_1"), { status: 503, retryAfter: 3_600 });

    assert.equal(server.requests.length, 1);
  });

  test("a refusal ends it at once", async () => {
    await assert.rejects(wabery.registrationIntents.wait("reg_nobody"), { code: "not_found" });
    assert.equal(server.requests.length, 1);
  });
});

describe("what is sent", () => {
  test("parameters go in snake_case, undefined ones not at all", async () => {
    await wabery.registrationIntents.create({ ...CUSTOMER, expiresIn: 600, metadata: undefined, include: ["qr"] });

    assert.deepEqual(JSON.parse(server.last.body), { customer_reference: "user_123", expires_in: 600, include: ["qr"] });
  });

  test("queries go in snake_case, moments in UTC", async () => {
    const createdAfter = new Date("2026-11-01T00:00:00Z");

    await wabery.registrationIntents.list({ customerReference: "a&b", createdAfter, limit: 5 });

    assert.deepEqual(server.last.query, { customer_reference: "a&b", created_after: "2026-11-01T00:00:00.000Z", limit: "5" });
  });

  test("the kind of key decides the header", async () => {
    const page = new Wabery({ apiKey: server.publishableKey, baseUrl: server.baseUrl });

    await page.registrationIntents.create(CUSTOMER);
    const open = server.last.headers;
    await wabery.registrationIntents.create(CUSTOMER);
    const secret = server.last.headers;

    assert.deepEqual([open["x-wabery-publishable-key"], open.authorization], [server.publishableKey, undefined]);
    assert.deepEqual([secret["x-wabery-publishable-key"], secret.authorization], [undefined, `Bearer ${server.secretKey}`]);
  });

  test("own headers are added and never replace the key", async () => {
    const headers = { traceparent: "00-1-1-00", Authorization: "Bearer stolen" };

    await wabery.registrationIntents.create(CUSTOMER, { headers });

    assert.equal(server.last.headers.traceparent, "00-1-1-00");
    assert.equal(server.last.headers.authorization, `Bearer ${server.secretKey}`);
    assert.match(server.last.headers["user-agent"] ?? "", /^wabery-typescript\//);
  });

  test("reads carry no idempotency key and no body", async () => {
    await wabery.projects.list();

    assert.deepEqual([server.last.headers["idempotency-key"], server.last.body], [undefined, ""]);
  });

  test("another fetch may be used", async () => {
    const asked: string[] = [];
    const own: typeof fetch = (url, init) => {
      asked.push(String(url));
      return fetch(url, init);
    };

    await new Wabery({ apiKey: server.secretKey, baseUrl: server.baseUrl, fetch: own }).projects.list();

    assert.deepEqual(asked, [`${server.baseUrl}/projects`]);
  });
});

describe("answers that are not the contract's", () => {
  for (const body of [
    "<html>Sign in to the hotel's network</html>",
    "null",
    '"OK"',
    '{"data":[],"has_more":true,"next_cursor":null}',
    "{}",
  ])
    test(`${body} instead of a list`, async () => {
      server.fail({ status: 200, body });

      await assert.rejects(
        wabery.projects.list(),
        (error) => error instanceof WaberyUnexpectedResponseError && error.message.includes(server.baseUrl),
      );
    });

  for (const status of [301, 302, 307, 308])
    test(`a redirect by ${status} is not followed, so the key goes nowhere else`, async () => {
      const elsewhere = await contractServer();
      server.fail({ status, headers: { location: `${elsewhere.baseUrl}/projects` } });

      await assert.rejects(wabery.projects.list(), { name: "WaberyApiError", status, message: /redirects to another address/ });

      assert.deepEqual([server.requests.length, elsewhere.requests.length], [1, 0]);
    });

  test("a refusal without the contract's body keeps what there was", async () => {
    server.fail({ status: 413, body: "too large" });

    await assert.rejects(wabery.projects.list(), { kind: "api", status: 413, code: null, body: "too large", requestId: "req_1" });
  });

  test("a 404 with Wabery-Version is about the object, not the endpoint", async () => {
    server.fail({ status: 404, body: { error: "not_found", message: "There is no such object." } });

    await assert.rejects(wabery.projects.get("proj_2"), { name: "WaberyApiError", kind: "not_found" });
  });

  test("a success that says it has no body is an empty object", async () => {
    server.fail({ status: 204, body: "" });

    assert.deepEqual(await wabery.request("DELETE", "/whatever"), {});
  });

  for (const body of ["", "{", "null", '"OK"', "<html>Sign in to the hotel's network</html>"])
    test(`${body || "nothing"} instead of an object`, async () => {
      server.fail({ status: 200, body });

      await assert.rejects(wabery.registrationIntents.get("reg_1"), WaberyUnexpectedResponseError);
    });

  test("a proxy that answers in HTML is named", async () => {
    server.fail({ status: 502, body: "<html>Bad gateway</html>", bare: true });

    await assert.rejects(
      wabery.registrationIntents.get("reg_1", { maxRetries: 0 }),
      (error) =>
        error instanceof WaberyApiError &&
        error.kind === "server" &&
        error.message.includes(server.baseUrl) &&
        error.code === null,
    );
  });
});

describe("set up wrongly", () => {
  test("no key", () => {
    assert.throws(() => new Wabery(), /WABERY_API_KEY/);
  });

  for (const apiKey of [
    "sk_live_h1dden",
    "h1dden",
    "wab_live_h1dden words",
    "wab_live_h1dden\nbreak",
    "wab_live_h1ddenü",
    "wjr_h1dden",
  ])
    test(`${JSON.stringify(apiKey)} is no key, and is not repeated`, () => {
      assert.throws(
        () => new Wabery({ apiKey }),
        (error) => error instanceof WaberyConfigurationError && !error.message.includes("h1dden"),
      );
    });

  test("the white space around a pasted key does not matter", async () => {
    const pasted = new Wabery({ apiKey: ` ${server.secretKey}\n`, baseUrl: `${server.baseUrl}/ ` });

    assert.equal((await pasted.projects.list()).data.length > 0, true);
  });

  for (const baseUrl of [
    "localhost:8420",
    "ftp://example.com/v1",
    "https://user:secret@example.com/v1",
    "https://example.com/v1?x=1",
  ])
    test(`${baseUrl} is no base URL`, () => {
      assert.throws(() => new Wabery({ apiKey: server.secretKey, baseUrl }), WaberyConfigurationError);
    });

  test("the environment fills in what is not given", async () => {
    process.env.WABERY_API_KEY = server.secretKey;
    process.env.WABERY_BASE_URL = server.baseUrl;
    try {
      await new Wabery().projects.list();
    } finally {
      delete process.env.WABERY_API_KEY;
      delete process.env.WABERY_BASE_URL;
    }

    assert.equal(server.last.path, "/v1/projects");
  });

  for (const id of [undefined, null, "", ".", "..", "../projects", "reg_1/cancel", "reg_1?x", { id: "reg_1" }])
    test(`${JSON.stringify(id)} is no id: the promise says so and nothing is sent`, async () => {
      await assert.rejects(wabery.registrationIntents.get(id as string), WaberyConfigurationError);

      assert.equal(server.requests.length, 0);
    });

  test("header values that cannot be sent are refused without being repeated", async () => {
    const bad = { idempotencyKey: "with\nbreak", clientSecret: "wcs_secret\nX-Evil: 1" };

    await assert.rejects(wabery.registrationIntents.create(CUSTOMER, { idempotencyKey: bad.idempotencyKey }), {
      name: "WaberyConfigurationError",
      message: /^idempotencyKey/,
    });
    await assert.rejects(
      wabery.registrationIntents.get("reg_1", { clientSecret: bad.clientSecret }),
      (error) => error instanceof WaberyConfigurationError && !error.message.includes("wcs_secret"),
    );
  });

  test("own headers that cannot be sent are refused without being repeated", async () => {
    const headers = { "x-trace": "h1dden\nX-Evil: 1" };

    await assert.rejects(
      wabery.registrationIntents.create(CUSTOMER, { headers }),
      (error) => error instanceof WaberyConfigurationError && !inspect(error, { depth: 9 }).includes("h1dden"),
    );
  });

  for (const path of ["projects", ".evil.invalid/", "//evil.invalid", "/a?b=1", "/a#b", "/../inbound", "/a/."])
    test(`${path} is no path`, async () => {
      await assert.rejects(wabery.request("GET", path as "/"), WaberyConfigurationError);

      assert.equal(server.requests.length, 0);
    });

  for (const timeout of [0, -1, Number.NaN])
    test(`a timeout of ${timeout} is none`, async () => {
      await assert.rejects(wabery.projects.list({}, { timeout }), WaberyConfigurationError);
    });

  test("metadata that is not JSON", async () => {
    const metadata: Record<string, unknown> = { big: 1n };

    await assert.rejects(wabery.registrationIntents.create({ ...CUSTOMER, metadata }), WaberyConfigurationError);
  });
});

describe("nothing gives a key away", () => {
  const tail = () => server.secretKey.slice(-20);

  test("neither printing the client nor writing it as JSON", () => {
    for (const shown of [inspect(wabery, { depth: 9, showHidden: true }), JSON.stringify({ wabery }), `${wabery}`])
      assert.ok(!shown.includes(tail()), shown);
    assert.match(inspect(wabery), /"wab_test_…2GvP"/);
  });

  test("nor printing its parts", () => {
    for (const part of Object.values(wabery)) assert.ok(!inspect(part, { depth: 9, showHidden: true }).includes(tail()));
  });

  test("nor an error whose body repeats it", async () => {
    const message = `unknown key ${server.secretKey} for wcs_0123456789abcdef, try whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw`;
    server.fail({ status: 401, body: { error: "invalid_api_key", message } });

    await assert.rejects(wabery.projects.list(), (error) => {
      assert.ok(error instanceof WaberyApiError);
      const shown = inspect(error, { depth: 9 }) + JSON.stringify(error) + String(error.stack);
      assert.ok(!/2s2GvP|0123456789abcdef|MfKQ9r8/.test(shown), shown);
      return shown.includes("wab_test_…");
    });
  });

  test("nor a connection that fails", async () => {
    const nobody = new Wabery({ apiKey: server.secretKey, baseUrl: "http://127.0.0.1:9/v1", maxRetries: 0 });

    await assert.rejects(nobody.projects.list(), (error) => {
      assert.ok(error instanceof WaberyConnectionError);
      assert.match(error.message, /ECONNREFUSED|bad port/);
      return !inspect(error, { depth: 9, showHidden: true }).includes(tail());
    });
  });
});
