/** The vectors that every SDK runs; sdks/conformance/README.md says what they mean. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";
import {
  checkKey,
  Wabery,
  WaberyApiError,
  WaberyConfigurationError,
  WaberyConnectionError,
  WaberyTimeoutError,
  webhooks,
} from "@wabery/sdk";
import type { Fault } from "./contract-server.js";
import { hurry } from "./hurry.js";
import { contractServer } from "./target.js";

interface Signed {
  name: string;
  secrets: string[];
  headers: Record<string, string | string[]>;
  body?: string;
  body_base64?: string;
}

interface Outcome {
  status?: number;
  error?: string;
  headers?: Record<string, string>;
  failure?: "connection" | "timeout";
}

const read = (name: string) => JSON.parse(readFileSync(new URL(`../../../conformance/${name}.json`, import.meta.url), "utf8"));
const server = await contractServer();
const wabery = new Wabery({ apiKey: server.secretKey, baseUrl: server.baseUrl });

describe("signatures", () => {
  const vectors: {
    tolerance: number;
    max_age: number;
    signed: (Signed & { id: string; timestamp: number })[];
    cases: (Signed & { now: number; max_age?: number; fault: string | null })[];
  } = read("signatures");
  const bytes = ({ body, body_base64: encoded }: Signed) =>
    body === undefined ? Buffer.from(encoded ?? "", "base64") : Buffer.from(body);

  for (const vector of vectors.signed)
    test(`signing: ${vector.name}`, async () => {
      const [secret = "", nextSecret] = vector.secrets;
      const now = new Date(vector.timestamp * 1_000);

      const delivery = await webhooks.signForTest(bytes(vector), secret, { nextSecret, eventId: vector.id, now });

      assert.deepEqual(delivery.headers, { "content-type": "application/json", ...vector.headers });
    });

  for (const vector of vectors.cases)
    test(`verifying: ${vector.name}`, async () => {
      const options = { now: new Date(vector.now * 1_000), maxAge: vector.max_age };
      const bodies = vector.body === undefined ? [bytes(vector)] : [bytes(vector), vector.body];

      for (const body of bodies) {
        const verified = webhooks.verify(body, vector.headers, vector.secrets, options);
        if (vector.fault === null) await verified;
        else await assert.rejects(verified, { name: "WaberyWebhookVerificationError", fault: vector.fault });
      }
    });
});

describe("errors", () => {
  const vectors: {
    cases: {
      name: string;
      request: { method: "GET" | "POST"; path: `/${string}` };
      answer: { status: number; headers: Record<string, string>; body: string };
      error: Record<string, unknown>;
    }[];
  } = read("errors");

  for (const { name, request, answer, error: expected } of vectors.cases)
    test(name, async () => {
      server.fail({ ...answer, bare: true });

      await assert.rejects(wabery.request(request.method, request.path, {}, { maxRetries: 0 }), (error) => {
        assert.ok(error instanceof WaberyApiError);
        const { kind, code, param, docUrl: doc_url, requestId: request_id, retryAfter: retry_after } = error;
        const { hint, message, ...exact } = expected;
        assert.deepEqual({ kind, code, param, doc_url, request_id, retry_after }, exact);
        assert.equal(error.status, answer.status);
        if (expected.kind !== "endpoint_not_available") assert.equal(error.hint, hint);
        if (typeof message === "string") assert.ok(error.message.startsWith(message), error.message);
        return true;
      });
    });
});

describe("retries", () => {
  const vectors: {
    cases: {
      name: string;
      method: "GET" | "POST";
      outcomes: Outcome[];
      attempts: number;
      delays: [number, number][];
      result: string;
      max_retries?: number;
    }[];
    max_retries: number;
  } = read("retries");
  const result = (error: unknown) => {
    if (error instanceof WaberyApiError) return error.kind;
    if (error instanceof WaberyTimeoutError) return "timeout";
    return error instanceof WaberyConnectionError ? "connection" : error;
  };
  const fault = ({ status, error, headers, failure }: Outcome): Fault => {
    if (failure) return failure === "timeout" ? "hang" : "drop";
    return { status: status ?? 0, headers: headers ?? {}, body: error ? { error, message: "…" } : {} };
  };

  for (const vector of vectors.cases)
    test(vector.name, async (t) => {
      const pauses = hurry(t);
      server.requests.length = 0;
      server.fail(...vector.outcomes.map(fault));
      const timeout = vector.outcomes.some(({ failure }) => failure === "timeout") ? 50 : undefined;

      const ended = await wabery
        .request(vector.method, "/anything", undefined, { timeout, maxRetries: vector.max_retries })
        .then(() => "success", result);

      assert.equal(ended, vector.result);
      assert.equal(server.requests.length, vector.attempts);
      assert.equal(pauses.length, vector.delays.length);
      for (const [n, [least, most]] of vector.delays.entries()) {
        const pause = (pauses[n] ?? Number.NaN) / 1_000;
        assert.ok(least <= pause && pause <= most, `pause ${n} of ${pause} s`);
      }
      const keys = new Set(server.requests.map(({ headers }) => headers["idempotency-key"]));
      assert.equal(keys.size, 1);
      assert.equal(keys.has(undefined), vector.method === "GET");
    });
});

describe("keys", () => {
  const vectors: {
    cases: {
      name: string;
      key: string;
      kind: string | null;
      livemode: boolean | null;
      valid: boolean;
      header: { name: string; value: string } | null;
    }[];
  } = read("keys");

  for (const { name, key, kind, livemode, valid, header } of vectors.cases)
    test(name, async () => {
      const check = checkKey(key);
      const options = { apiKey: key, baseUrl: server.baseUrl };

      assert.deepEqual([check.kind, check.livemode, check.problem === null], [kind, livemode, valid]);
      // What HTTP cannot carry is refused before it is sent.
      if (header === null || /[^ -~]/.test(key)) {
        assert.throws(() => new Wabery(options), WaberyConfigurationError);
        return;
      }
      await new Wabery(options).projects.list().catch(() => {});
      const { "x-wabery-publishable-key": publishable, authorization } = server.last.headers;
      const sent = { authorization, "x-wabery-publishable-key": publishable };
      assert.deepEqual(sent, { authorization: undefined, "x-wabery-publishable-key": undefined, [header.name]: header.value });
    });
});
