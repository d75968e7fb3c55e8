/**
 * Every test against the small server of its own; then what an app and a page do, against the real one, as `wabery dev` runs it.
 * WABERY_TEST_BASE_URL, _SECRET_KEY and _PUBLISHABLE_KEY name another server to use.
 */

import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { chromium } from "../dist/test/chromium.js";

const WABERY = fileURLToPath(new URL("../../../.venv/bin/wabery", import.meta.url));
const LIMIT_MS = 120_000; // for each test file: a hang is a failure
const AGAINST_BOTH = ["behaviours.test.js", "browser.test.js"];

process.chdir(fileURLToPath(new URL("../dist/test", import.meta.url)));
const files = readdirSync(".").filter((name) => /\.test\.c?js$/.test(name));
run(files, {});
if (process.env.WABERY_TEST_BASE_URL) run(AGAINST_BOTH, { WABERY_TEST_REAL: "yes" });
else await withServer((environment) => run(AGAINST_BOTH, { WABERY_TEST_REAL: "yes", ...environment }));
if (!chromium()) console.error("\nNOT RUN: the tests in a browser. Install Chromium, or name one in CHROMIUM.\n");

function run(names, environment) {
  const { status } = spawnSync(process.execPath, ["--test", `--test-timeout=${LIMIT_MS}`, ...names], {
    stdio: "inherit",
    env: { ...process.env, ...environment },
  });
  if (status !== 0) process.exitCode = 1;
}

async function withServer(use) {
  if (!existsSync(WABERY)) {
    console.error("These tests also run against the server, which is not installed here: run `make .venv/installed` first.");
    process.exitCode = 1;
    return;
  }
  // Not below a longer path: PostgreSQL's socket needs a short one.
  const folder = mkdtempSync(join(tmpdir(), "wabery-"));
  const log = join(folder, "log");
  const inherited = Object.entries(process.env).filter(([name]) => !name.startsWith("WABERY_") && name !== "DATABASE_URL");
  const server = spawn(WABERY, ["dev", "--port", "0", "--json", "--data-dir", join(folder, "data")], {
    stdio: ["ignore", "pipe", openSync(log, "w")],
    env: Object.fromEntries(inherited),
  });
  const ended = once(server, "exit");
  const late = setTimeout(() => server.kill("SIGKILL"), LIMIT_MS);
  try {
    const { value: line } = await createInterface({ input: server.stdout })[Symbol.asyncIterator]().next();
    if (!line) throw new Error(`\`wabery dev\` did not start:\n${readFileSync(log, "utf8")}`);
    clearTimeout(late);
    const { base_url: baseUrl, env_file: file } = JSON.parse(line);
    const keys = Object.fromEntries(
      readFileSync(file, "utf8")
        .split("\n")
        .map((line) => line.split("=", 2)),
    );
    use({
      WABERY_TEST_BASE_URL: baseUrl,
      WABERY_TEST_SECRET_KEY: keys.WABERY_API_KEY,
      WABERY_TEST_PUBLISHABLE_KEY: keys.WABERY_PUBLISHABLE_KEY,
    });
  } finally {
    clearTimeout(late);
    server.kill();
    await ended;
    rmSync(folder, { recursive: true, force: true });
  }
}
