/** The server that behaviours are shown against: the real one when scripts/test.mjs says so, else the contract server. */

import { after } from "node:test";
import { ContractServer } from "./contract-server.js";

export interface Target {
  baseUrl: string;
  secretKey: string;
  publishableKey: string;
}

/** To be called at the top of a test file; what it started ends with the file. */
export async function target(): Promise<Target> {
  if (!process.env.WABERY_TEST_REAL) return await contractServer();
  const {
    WABERY_TEST_BASE_URL: baseUrl,
    WABERY_TEST_SECRET_KEY: secretKey,
    WABERY_TEST_PUBLISHABLE_KEY: publishableKey,
  } = process.env;
  if (baseUrl && secretKey && publishableKey) return { baseUrl, secretKey, publishableKey };
  throw new Error("WABERY_TEST_BASE_URL needs WABERY_TEST_SECRET_KEY and WABERY_TEST_PUBLISHABLE_KEY beside it.");
}

export async function contractServer(): Promise<ContractServer> {
  const server = await ContractServer.start();
  after(() => server.stop());
  return server;
}

/** A person presses send on a link, on the fake phone that `wabery dev` and the contract server have. */
export async function pressSend({ baseUrl }: Target, link: string): Promise<void> {
  const body = JSON.stringify({ link, persona: "emi" });
  const sent = await fetch(new URL("/phone/api/send", baseUrl), {
    method: "POST",
    headers: { "content-type": "application/json" },
    body,
  });
  if (!sent.ok) throw new Error(`The fake phone answered ${sent.status}: ${await sent.text()}`);
}

/** The reference that this person joins with in every test: elsewhere they would be refused as somebody else's already. */
export const PERSONS_REFERENCE = "sdk_joins";
