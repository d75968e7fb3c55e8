/** Every snippet of the README, compiled as strictly as the SDK and run. Only keys and addresses are put in. */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { compile } from "./compile.js";
import { contractServer } from "./target.js";

const run = promisify(execFile);
const here = new URL("../readme/", import.meta.url);
const server = await contractServer();
const snippets = new Map<string, string>();
const readme = readFileSync(new URL("../../README.md", import.meta.url), "utf8");
for (const [, name, code] of readme.matchAll(/^```ts (\w+)\n([\s\S]*?)^```$/gm)) snippets.set(name ?? "", code ?? "");

const environment = {
  WABERY_API_KEY: server.secretKey,
  WABERY_BASE_URL: server.baseUrl,
  WABERY_WEBHOOK_SECRET: "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
  PATH: process.env.PATH,
};

/** What a snippet prints, line by line. */
async function output(name: string): Promise<string[]> {
  const { stdout, stderr } = await run(process.execPath, [fileURLToPath(new URL(`${name}.js`, here))], { env: environment });
  return `${stdout}${stderr}`.trim().split("\n");
}

before(() => {
  const filled = [...snippets].map(([name, code]) => [
    `${name}.ts`,
    code.replaceAll("https://wabery.example.com/v1", server.baseUrl).replaceAll("wab_pub_…", server.publishableKey),
  ]);
  assert.equal(compile("readme", Object.fromEntries(filled)), "");
});

test("each of its code fences has a name, and a test below", () => {
  assert.equal(snippets.size, readme.match(/^```\w/gm)?.length);
  assert.deepEqual([...snippets.keys()], ["mint", "wait", "browser", "receive", "test", "errors", "more"]);
});

test("mint a link, and see who pressed send", async () => {
  const [link, ...rest] = await output("mint");

  assert.match(link ?? "", /^https:\/\/wa\.me\//);
  assert.deepEqual(rest, []);
});

for (const [name, last] of Object.entries({ wait: "JOINED contact_1", browser: "JOINED" }))
  test(`${name}: follow the intent until somebody joined`, async () => {
    server.happenings.once("hold", ({ path }) =>
      server.change(path.split("/").at(-1), { status: "JOINED", contact_id: "contact_1" }),
    );

    const [link, ended] = await output(name);

    assert.match(link ?? "", /^https:\/\/wa\.me\//);
    assert.equal(ended, last);
  });

test("receive webhooks, and test the receiver", async () => {
  assert.deepEqual(await output("test"), ["undefined user_123 undefined", "204"]);
});

test("a delivery that is not trusted is answered with 400", async (t) => {
  const log = t.mock.method(console, "error", () => {});
  const { POST } = await import(new URL("receive.js", here).href);
  const stranger = new Request("https://app.example.com/webhooks", { method: "POST", body: "{}" });
  process.env.WABERY_WEBHOOK_SECRET = environment.WABERY_WEBHOOK_SECRET;

  assert.equal((await POST(stranger)).status, 400);
  assert.equal(log.mock.calls[0]?.arguments[0], "missing_header");
});

test("errors", async () => {
  const [line = ""] = await output("errors");

  assert.match(line, /^invalid_customer_reference customer_reference Send the id your own system uses for this user\. req_\d+$/);
});

test("options, lists and all other calls", async () => {
  const [walked, page, read, project] = await output("more");

  assert.deepEqual(
    [walked, page?.split(" ")[1], read?.split(" ").slice(0, 2), project],
    ["true", "false", ["PENDING", "200"], "project"],
  );
});
