/** One HTTP exchange with Wabery: headers by kind of key, deadline, retries, errors. Decides nothing about resources. */

import {
  WaberyApiError,
  WaberyConfigurationError,
  WaberyConnectionError,
  WaberyEndpointNotAvailableError,
  WaberyTimeoutError,
  WaberyUnexpectedResponseError,
} from "./errors.js";
import { cleanKey, type KeyKind, keyKind, maskKey, redact } from "./keys.js";
import { type Answer, ApiPromise, Page, PagePromise } from "./promises.js";

export const DEFAULT_BASE_URL = "https://api.wabery.com/v1";

/** Milliseconds from the first attempt after which no further one is begun. */
const RETRY_BUDGET = 30_000;

export interface ClientOptions {
  /** `wab_pub_…`, `wab_live_…` or `wab_test_…`. */
  apiKey: string;
  /** Where the API is, `/v1` included: `http://127.0.0.1:8420/v1`. */
  baseUrl?: string | undefined;
  /** Milliseconds for each attempt of a call. Default 30,000; `Infinity` for no limit. */
  timeout?: number | undefined;
  /** How often a call is tried again after a failure that may pass. Default 2. */
  maxRetries?: number | undefined;
  /** Used instead of the global `fetch`. */
  fetch?: typeof fetch | undefined;
}

/** What every call takes last. */
export interface RequestOptions {
  /** Makes a write safe to repeat across processes. Each write gets a random one otherwise, kept over its retries. */
  idempotencyKey?: string | undefined;
  /** The `client_secret` of the intent, which lets a publishable key do more with it. */
  clientSecret?: string | undefined;
  signal?: AbortSignal | undefined;
  /** Milliseconds, instead of the client's. */
  timeout?: number | undefined;
  /** Instead of the client's. */
  maxRetries?: number | undefined;
  /** More headers, such as `traceparent`. */
  headers?: Record<string, string> | undefined;
}

export type Method = "GET" | "POST" | "PATCH" | "DELETE";

/** Parameters in camelCase, as callers write them. */
export type Params = object;

/** Below the base URL: the whole of it, or its segments with ids that are still to be checked. */
export type Path = `/${string}` | readonly string[];

export class Transport {
  readonly baseUrl: string;
  readonly keyKind: KeyKind;
  readonly maskedKey: string;
  readonly timeout: number;
  readonly #key: string;
  readonly #options: ClientOptions;
  readonly #userAgent: string | undefined;

  constructor(options: ClientOptions, userAgent?: string) {
    const key = cleanKey(options.apiKey);
    this.keyKind = keyKind(key);
    this.maskedKey = maskKey(key);
    this.baseUrl = normalBaseUrl((options.baseUrl || DEFAULT_BASE_URL).trim());
    this.timeout = options.timeout ?? 30_000;
    this.#key = key;
    this.#options = options;
    this.#userAgent = userAgent;
  }

  /** `params` become the query of a GET and the JSON body of anything else, their outermost names in snake_case. */
  request<T>(method: Method, path: Path, params?: Params, options: RequestOptions = {}): ApiPromise<T> {
    return new ApiPromise(this.#exchange<T>(method, path, params, options));
  }

  list<T>(path: Path, params: Params = {}, options: RequestOptions = {}): PagePromise<T> {
    const fetchPage = async (cursor: string) => (await page({ ...params, cursor })).data;
    const page = async (query: Params): Promise<Answer<Page<T>>> => {
      const answer = await this.#exchange<Page<T>>("GET", path, query, options);
      const { data, has_more, next_cursor } = answer.data;
      if (!Array.isArray(data) || (has_more && !next_cursor)) throw this.#unexpected("is not a list with a way to its next page");
      return { ...answer, data: new Page(answer.data, fetchPage) };
    };
    return new PagePromise(page(params));
  }

  async #exchange<T>(method: Method, path: Path, params: Params | undefined, options: RequestOptions): Promise<Answer<T>> {
    let url = this.baseUrl + (typeof path === "string" ? whole(path) : path.map(segment).join(""));
    const headers = this.#headers(method, options);
    const init: RequestInit = { method, headers, redirect: "manual" };
    if (params && method === "GET") url += query(params);
    else if (params) {
      headers.set("content-type", "application/json");
      init.body = json(snakeCase(params));
    }
    const timeout = options.timeout ?? this.timeout;
    if (!(timeout > 0)) throw new WaberyConfigurationError("timeout must be more than 0 milliseconds; Infinity is no limit.");
    const maxRetries = options.maxRetries ?? this.#options.maxRetries ?? 2;
    const begun = performance.now();
    for (let retry = 0; ; retry++) {
      try {
        return await this.#attempt<T>(url, init, timeout, options.signal);
      } catch (error) {
        const delay = retryDelay(retry, error);
        if (retry >= maxRetries || delay === null || performance.now() - begun + delay > RETRY_BUDGET) throw error;
        await sleep(delay, options.signal);
      }
    }
  }

  async #attempt<T>(url: string, init: RequestInit, timeout: number, signal: AbortSignal | undefined): Promise<Answer<T>> {
    const deadline = new Deadline(timeout, signal);
    let response: Response;
    let text: string;
    try {
      // Called without a receiver: browsers refuse a fetch that is called as somebody's method.
      const send = this.#options.fetch ?? fetch;
      response = await send(url, { ...init, signal: deadline.signal });
      text = await response.text();
    } catch (cause) {
      signal?.throwIfAborted();
      if (deadline.expired)
        throw new WaberyTimeoutError(
          `${this.baseUrl} did not answer within ${timeout} ms. The option timeout gives it more time.`,
        );
      const message = `${this.baseUrl} could not be reached: ${redact(reason(cause))}. Is the server up, and is this its address?`;
      throw new WaberyConnectionError(message, { cause });
    } finally {
      deadline.clear();
    }
    if (!response.ok) throw this.#refusal(response, redact(text));
    const data = response.status === 204 ? {} : parsed(text);
    if (typeof data !== "object" || data === null) throw this.#unexpected("is not a JSON object");
    return { data: data as T, response, requestId: response.headers.get("wabery-request-id") };
  }

  #unexpected(what: string): WaberyUnexpectedResponseError {
    return new WaberyUnexpectedResponseError(
      `The answer ${what}. Is ${this.baseUrl} the address of a Wabery server, with no proxy answering in its place?`,
    );
  }

  #refusal(response: Response, text: string): WaberyApiError {
    const body = parsed(text) ?? text;
    const { status, headers } = response;
    if ((status === 404 || status === 405) && !headers.has("wabery-version"))
      return new WaberyEndpointNotAvailableError(response, body, {
        message: `${this.baseUrl} does not serve this call.`,
        hint: "Check the base URL (it ends in /v1) and the server's version.",
      });
    // A redirect is not followed, so that no key travels to another host; browsers show it as status 0.
    if (status < 400)
      return new WaberyApiError(response, body, {
        message: `${this.baseUrl} redirects to another address; that one, often with https://, is the base URL.`,
      });
    return new WaberyApiError(response, body, { from: this.baseUrl });
  }

  #headers(method: Method, options: RequestOptions): Headers {
    const headers = ownHeaders(options.headers);
    headers.set("accept", "application/json");
    if (this.#userAgent) headers.set("user-agent", this.#userAgent);
    if (this.keyKind === "publishable") headers.set("x-wabery-publishable-key", this.#key);
    else headers.set("authorization", `Bearer ${this.#key}`);
    if (options.clientSecret !== undefined)
      headers.set("x-wabery-client-secret", visible(options.clientSecret, "clientSecret", "wcs_…, from the create answer"));
    if (method !== "GET") {
      const key = options.idempotencyKey ?? randomKey();
      headers.set("idempotency-key", visible(key, "idempotencyKey", "1 to 255 printable ASCII characters"));
    }
    return headers;
  }
}

/**
 * Milliseconds before retry number `retry` (0 is the first), or null when repeating cannot help. What the server asks for
 * wins; else 0.5 s, doubling up to 8 s, shortened by up to a quarter so that clients spread.
 */
export function retryDelay(retry: number, error: unknown): number | null {
  if (error instanceof WaberyApiError) {
    const { status, code, retryAfter } = error;
    const passing = status === 408 || status === 429 || status >= 500 || (status === 409 && code === "idempotency_in_progress");
    if (!passing) return null;
    if (retryAfter !== null) return retryAfter * 1_000;
  } else if (!(error instanceof WaberyConnectionError || error instanceof WaberyTimeoutError)) return null;
  return Math.min(500 * 2 ** retry, 8_000) * (1 - Math.random() / 4);
}

/** A signal that ends after some time, or with the caller's own; `clear` it when done. */
export class Deadline {
  readonly #controller = new AbortController();
  readonly #end: number;
  readonly #timer: ReturnType<typeof setTimeout> | undefined;
  readonly #caller: AbortSignal | undefined;
  readonly #abort = () => this.#controller.abort(this.#caller?.reason);

  constructor(milliseconds: number, caller?: AbortSignal) {
    this.#end = performance.now() + milliseconds;
    this.#caller = caller;
    // A delay longer than a timer can hold would fire at once.
    if (milliseconds < 2 ** 31) this.#timer = setTimeout(this.#abort, milliseconds);
    caller?.addEventListener("abort", this.#abort);
    if (caller?.aborted) this.#abort();
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Whether the time was over before the caller gave up. */
  get expired(): boolean {
    return this.signal.aborted && !this.#caller?.aborted;
  }

  /** Milliseconds left. */
  get left(): number {
    return this.#end - performance.now();
  }

  clear(): void {
    clearTimeout(this.#timer);
    this.#caller?.removeEventListener("abort", this.#abort);
  }
}

/** Throws the signal's reason as soon as it is aborted. */
export async function sleep(milliseconds: number, signal?: AbortSignal): Promise<void> {
  signal?.throwIfAborted();
  await new Promise<void>((wake) => {
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      wake();
    };
    const timer = setTimeout(done, milliseconds);
    signal?.addEventListener("abort", done);
  });
  signal?.throwIfAborted();
}

function normalBaseUrl(text: string): string {
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw new WaberyConfigurationError("The base URL must be a full address such as http://127.0.0.1:8420/v1.");
  }
  if (!/^https?:$/.test(url.protocol) || url.username || url.password || url.search || url.hash)
    throw new WaberyConfigurationError("The base URL must be http(s)://host/v1, without user name, query or fragment.");
  return url.origin + url.pathname.replace(/\/+$/, "");
}

/** One part of a path. Refuses what would lead elsewhere: undefined, a whole object, a dot, a slash. */
function segment(part: unknown): string {
  if (typeof part === "string" && /^[\w-]+$/.test(part)) return `/${part}`;
  const got = typeof part === "string" ? "a text that cannot be one" : part === null ? "null" : typeof part;
  throw new WaberyConfigurationError(`Expected an object's id, a string such as "reg_…"; got ${got}.`);
}

/** A path as a caller wrote it: without its slash, it could name another host. */
function whole(path: string): string {
  if (/^(\/[\w~.%-]+)+$/.test(path) && !/\/\.\.?(\/|$)/.test(path)) return path;
  throw new WaberyConfigurationError("A path begins with a slash and has no query: /projects/proj_1.");
}

/** The error that `Headers` throws would quote the value, which may be a secret. */
function ownHeaders(headers: Record<string, string> | undefined): Headers {
  try {
    return new Headers(headers);
  } catch {
    throw new WaberyConfigurationError("The option headers has a name or a value that HTTP cannot carry.");
  }
}

/** Undefined for what is not JSON. */
function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function json(body: unknown): string {
  try {
    return JSON.stringify(body);
  } catch (cause) {
    throw new WaberyConfigurationError("The parameters cannot be written as JSON.", { cause });
  }
}

/** Only the outermost names: what is inside `metadata` belongs to the caller. */
export function snakeCase(params: Params): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(params).map(([name, value]) => [name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`), value]),
  );
}

function query(params: Params): string {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(snakeCase(params)))
    if (value !== undefined && value !== null) search.set(name, value instanceof Date ? value.toISOString() : String(value));
  const text = search.toString();
  return text && `?${text}`;
}

function visible(value: string, name: string, form: string): string {
  if (!/^[ -~]{1,255}$/.test(value)) throw new WaberyConfigurationError(`${name} must be ${form}.`);
  return value;
}

/** 128 random bits. Not `crypto.randomUUID`, which browsers keep from pages without TLS. */
function randomKey(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Node says only "fetch failed" and hides the reason one level down. */
function reason(error: unknown): string {
  const { message, cause } = error as { message?: string; cause?: { code?: string; message?: string } };
  return cause?.code ?? cause?.message ?? message ?? "unknown reason";
}
