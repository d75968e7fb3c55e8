/** The server that behaviours are shown against: the real one where the environment names it, else the contract server. */

import { after } from "node:test";
import { ContractServer } from "./contract-server.js";

export interface Target {
  baseUrl: string;
  secretKey: string;
  publishableKey: string;
}

export const REAL = Boolean(process.env.WABERY_TEST_BASE_URL);

/** To be called at the top of a test file; what it started ends with the file. */
export async function target(): Promise<Target> {
  const {
    WABERY_TEST_BASE_URL: baseUrl,
    WABERY_TEST_SECRET_KEY: secretKey,
    WABERY_TEST_PUBLISHABLE_KEY: publishableKey,
  } = process.env;
  if (baseUrl && secretKey && publishableKey) return { baseUrl, secretKey, publishableKey };
  if (REAL) throw new Error("WABERY_TEST_BASE_URL needs WABERY_TEST_SECRET_KEY and WABERY_TEST_PUBLISHABLE_KEY beside it.");
  return await contractServer();
}

export async function contractServer(): Promise<ContractServer> {
  const server = await ContractServer.start();
  after(() => server.stop());
  return server;
}
