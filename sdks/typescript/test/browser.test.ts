/** The browser entry in a real browser, on a page whose origin is not the API's. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import type * as Browser from "@wabery/sdk/browser";
import { type BrowserContext, type Page, chromium as playwright } from "playwright-core";
import { chromium } from "./chromium.js";
import { PERSONS_REFERENCE, pressSend, target } from "./target.js";

const CHROMIUM = chromium();
const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** The sources as they are published, to be imported without a bundler. */
const files = createServer(async (request, response) => {
  const name = /^\/sdk\/([\w-]+\.js)$/.exec(request.url ?? "")?.[1];
  response.setHeader("content-type", name ? "text/javascript" : "text/html");
  response.end(name ? await readFile(new URL(`../esm/${name}`, import.meta.url)) : "<!doctype html><title>app</title>");
});

describe("in Chromium", { skip: CHROMIUM ? false : "no Chromium is installed" }, async () => {
  const server = await target();
  let profile: string;
  let browser: BrowserContext;
  let page: Page;

  before(async () => {
    files.listen(0, "127.0.0.1");
    await once(files, "listening");
    profile = await mkdtemp(join(tmpdir(), "wabery-sdk-"));
    browser = await playwright.launchPersistentContext(profile, { executablePath: CHROMIUM ?? "", args: FLAGS, headless: true });
    page = await browser.newPage();
    await page.goto(`http://127.0.0.1:${(files.address() as AddressInfo).port}/`);
  });

  after(async () => {
    await browser?.close();
    files.close();
    await rm(profile, { recursive: true, force: true });
  });

  test("a page mints, and hears that a person has pressed send", async () => {
    const options = { apiKey: server.publishableKey, baseUrl: server.baseUrl };

    const minted = await page.evaluate(
      async ([options, customerReference]) => {
        const { Wabery }: typeof Browser = await import(`${location.origin}/sdk/browser.js`);
        const app = new Wabery(options);
        const intent = await app.registrationIntents.create({ customerReference, metadata: { page: true } });
        const polled = await app.registrationIntents.get(intent.id);
        const ended = app.registrationIntents.wait(intent.id, { clientSecret: intent.client_secret });
        Object.assign(globalThis, { ended });
        return { link: intent.wa_link, status: polled.status };
      },
      [options, PERSONS_REFERENCE] as const,
    );
    await pressSend(server, minted.link);
    const ended = await page.evaluate(() => (globalThis as unknown as { ended: Promise<Browser.RegistrationIntent> }).ended);

    assert.match(minted.link, /^https:\/\/wa\.me\//);
    assert.equal(minted.status, "PENDING");
    assert.equal(ended.status, "JOINED");
  });

  test("a page reads the whole of a refusal", async () => {
    const options = { apiKey: server.publishableKey, baseUrl: server.baseUrl };

    const refusal = await page.evaluate(async (options) => {
      const { Wabery, WaberyApiError }: typeof Browser = await import(`${location.origin}/sdk/browser.js`);
      const error = await new Wabery(options).registrationIntents.create({ customerReference: "" }).then(null, (error) => error);
      const { code, param, requestId, name } = error;
      return { ours: error instanceof WaberyApiError, code, param, requestId, name };
    }, options);

    const { requestId, ...rest } = refusal;
    const expected = { ours: true, code: "invalid_customer_reference", param: "customer_reference", name: "WaberyApiError" };
    assert.deepEqual(rest, expected);
    assert.match(requestId, /^req_/);
  });

  test("a page that cannot reach the server learns what to check", async () => {
    const message = await page.evaluate(async (apiKey) => {
      const { Wabery }: typeof Browser = await import(`${location.origin}/sdk/browser.js`);
      const nobody = new Wabery({ apiKey, baseUrl: "http://127.0.0.1:9/v1", maxRetries: 0 });
      return nobody.registrationIntents.get("reg_1").then(null, (error) => `${error.name}: ${error.message}`);
    }, server.publishableKey);

    assert.match(String(message), /^WaberyConnectionError: http:\/\/127\.0\.0\.1:9\/v1 could not be reached/);
  });

  for (const entry of ["browser", "index"])
    test(`the ${entry} entry refuses a secret key in a page`, async () => {
      const message = await page.evaluate(
        async ([entry, apiKey]) => {
          const { Wabery }: typeof Browser = await import(`${location.origin}/sdk/${entry}.js`);
          try {
            return String(new Wabery({ apiKey }));
          } catch (error) {
            return String(error);
          }
        },
        [entry, server.secretKey] as const,
      );

      assert.match(message, /^WaberyConfigurationError: A secret key does not belong in a browser/);
      assert.ok(!message.includes(server.secretKey));
    });
});
