/** The package as a CommonJS app takes it, types included. */

import assert = require("node:assert/strict");

import { test } from "node:test";
import { Wabery, WaberyConfigurationError, webhooks } from "@wabery/sdk";
import { Wabery as PageWabery } from "@wabery/sdk/browser";

test("require gives the same classes", async () => {
  const wabery: Wabery = new Wabery({ apiKey: "wab_test_0123456789ABCDEFGHIJKLMNOPQRST2s2GvP" });
  const { body, headers } = await webhooks.signForTest({ event: "x", payload: {}, sentAt: "" }, "a secret");

  assert.ok(wabery.registrationIntents);
  assert.equal((await wabery.webhooks.unwrap(body, headers, "a secret")).event, "x");
  assert.throws(() => new PageWabery({ apiKey: "wab_live_x" }), WaberyConfigurationError);
});
