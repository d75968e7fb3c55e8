/** The package as others install it. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { describe, test } from "node:test";
import { createContext, runInContext } from "node:vm";
import * as main from "@wabery/sdk";
import * as browser from "@wabery/sdk/browser";
import { build } from "esbuild";
import { contractServer } from "./target.js";

const require = createRequire(import.meta.url);
const manifest = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8"));

test("nothing else is installed with it", () => {
  assert.deepEqual(
    [manifest.dependencies, manifest.peerDependencies, manifest.optionalDependencies],
    [undefined, undefined, undefined],
  );
});

test("it says its version to the server", async () => {
  let said: string | null = null;
  const listen: typeof fetch = async (_, init) => {
    said = new Headers(init?.headers).get("user-agent");
    return new Response("{}");
  };

  await new main.Wabery({ apiKey: "wab_test_x", fetch: listen }).projects.get("proj_1");

  assert.equal(said, `wabery-typescript/${manifest.version}`);
});

test("it runs where there is nothing but web standards, as in an edge worker", async () => {
  const { outputFiles } = await build({
    stdin: { contents: 'export * from "./index.js"', resolveDir: new URL("../esm/", import.meta.url).pathname },
    bundle: true,
    format: "iife",
    globalName: "sdk",
    platform: "neutral",
    write: false,
  });
  const { AbortController, Headers, TextDecoder, TextEncoder, URL: Url, URLSearchParams } = globalThis;
  const standards = { AbortController, Headers, TextDecoder, TextEncoder, URL: Url, URLSearchParams };
  const functions = { atob, btoa, clearTimeout, crypto, fetch, performance, setTimeout };
  const server = await contractServer();
  const { secretKey: apiKey, baseUrl } = server;

  const worker = createContext({
    ...standards,
    ...functions,
    bytes: Buffer.from('{"event":"x","payload":{}}'),
    settings: { apiKey, baseUrl },
  });
  const report = await runInContext(
    `${outputFiles[0]?.text}
    (async () => {
      const intent = await new sdk.Wabery(settings).registrationIntents.create({ customerReference: "user_123" });
      const { body, headers } = await sdk.webhooks.signForTest(bytes, "a secret");
      const { event } = await sdk.webhooks.unwrap(body, headers, "a secret");
      return JSON.stringify([intent.status, event]);
    })()`,
    worker,
  );

  assert.equal(report, '["PENDING","x"]');
});

test("import and require offer the same", () => {
  assert.deepEqual(Object.keys(require("@wabery/sdk")).sort(), Object.keys(main).sort());
  assert.deepEqual(Object.keys(require("@wabery/sdk/browser")).sort(), Object.keys(browser).sort());
});

test("both entries throw the same errors", () => {
  assert.equal(browser.WaberyApiError, main.WaberyApiError);
});

describe("the browser entry", () => {
  for (const apiKey of ["wab_live_0123456789ABCDEFGHIJKLMNOPQRST29Z8aS", "wab_test_0123456789ABCDEFGHIJKLMNOPQRST2s2GvP"])
    test(`refuses ${apiKey.slice(0, 9)}…, and does not repeat it`, () => {
      assert.throws(
        () => new browser.Wabery({ apiKey }),
        (error) =>
          error instanceof browser.WaberyConfigurationError &&
          /publishable/.test(error.message) &&
          !error.message.includes(apiKey),
      );
    });

  test("needs no environment, and takes nothing from it", () => {
    process.env.WABERY_API_KEY = "wab_pub_0123456789ABCDEFGHIJKLMNOPQRST3qrAPx";
    try {
      assert.throws(() => new browser.Wabery({} as { apiKey: string }), browser.WaberyConfigurationError);
    } finally {
      delete process.env.WABERY_API_KEY;
    }
  });

  test("does not hold the key where printing would show it", () => {
    const wabery = new browser.Wabery({ apiKey: "wab_pub_0123456789ABCDEFGHIJKLMNOPQRST3qrAPx" });

    assert.equal(JSON.stringify(wabery), '{"baseUrl":"https://api.wabery.com/v1","apiKey":"wab_pub_…rAPx"}');
  });
});

test("the main entry refuses a secret key in a page too", (t) => {
  const page = globalThis as { document?: unknown };
  page.document = {};
  const versions = Object.getOwnPropertyDescriptor(process, "versions");
  Object.defineProperty(process, "versions", { value: {}, configurable: true });
  t.after(() => {
    delete page.document;
    if (versions) Object.defineProperty(process, "versions", versions);
  });

  assert.throws(
    () => new main.Wabery({ apiKey: "wab_live_0123456789ABCDEFGHIJKLMNOPQRST29Z8aS" }),
    /does not belong in a browser/,
  );
  assert.ok(new main.Wabery({ apiKey: "wab_pub_0123456789ABCDEFGHIJKLMNOPQRST3qrAPx" }));
});
