/** `@wabery/sdk`: Wabery from a server, an edge worker or a script. Pages use `@wabery/sdk/browser`. */

import { ApiKeys } from "./api-keys.js";
import { Channels } from "./channels.js";
import { environment, inBrowser } from "./environment.js";
import { WaberyConfigurationError } from "./errors.js";
import { Events } from "./events.js";
import { type ClientOptions as Connection, type Method, type Params, type RequestOptions, Transport } from "./http.js";
import { cleanKey, keyKind, SECRET_IN_BROWSER } from "./keys.js";
import { Projects } from "./projects.js";
import type { ApiPromise } from "./promises.js";
import { RegistrationIntents } from "./registration-intents.js";
import { VERSION } from "./version.js";
import { type WebhookSecret, Webhooks } from "./webhooks.js";

export type * from "./api-keys.js";
export type * from "./channels.js";
export * from "./errors.js";
export type * from "./events.js";
export type { RequestOptions } from "./http.js";
export { checkKey, type KeyCheck } from "./key-check.js";
export type { KeyKind } from "./keys.js";
export type * from "./projects.js";
export type { Answer, ApiPromise, Page, PagePromise } from "./promises.js";
export type * from "./registration-intents.js";
export type { ListParams } from "./types.js";
export type * from "./webhook-events.js";
export {
  type HeadersLike,
  type RawBody,
  type SignForTestOptions,
  type VerifyOptions,
  WaberyWebhookVerificationError,
  type WebhookFault,
  type WebhookSecret,
  type Webhooks,
  webhooks,
} from "./webhooks.js";

export interface ClientOptions extends Omit<Connection, "apiKey"> {
  /** `wab_live_…`, `wab_test_…` or `wab_pub_…`. Default: `WABERY_API_KEY`. */
  apiKey?: string | undefined;
  /** Where the API is, `/v1` included. Default: `WABERY_BASE_URL`, else the hosted API. */
  baseUrl?: string | undefined;
  /** What `webhooks` verifies with; several while one replaces another. Default: `WABERY_WEBHOOK_SECRET`. */
  webhookSecret?: WebhookSecret | readonly WebhookSecret[] | undefined;
}

/** Make one and keep it: it holds no connection of its own and may be shared. */
export class Wabery {
  readonly registrationIntents: RegistrationIntents;
  readonly projects: Projects;
  readonly apiKeys: ApiKeys;
  readonly channels: Channels;
  readonly events: Events;
  readonly webhooks: Webhooks;
  readonly #transport: Transport;

  constructor(options: ClientOptions = {}) {
    const apiKey = options.apiKey || environment("WABERY_API_KEY");
    if (!apiKey) throw new WaberyConfigurationError("There is no API key. Pass `new Wabery({ apiKey })`, or set WABERY_API_KEY.");
    if (inBrowser() && keyKind(cleanKey(apiKey)) === "secret") throw new WaberyConfigurationError(SECRET_IN_BROWSER);
    const baseUrl = options.baseUrl || environment("WABERY_BASE_URL");
    // In a browser the header would need the server's leave, and says nothing.
    const userAgent = inBrowser() ? undefined : `wabery-typescript/${VERSION}`;
    this.#transport = new Transport({ ...options, apiKey, baseUrl }, userAgent);
    this.registrationIntents = new RegistrationIntents(this.#transport);
    this.projects = new Projects(this.#transport);
    this.apiKeys = new ApiKeys(this.#transport);
    this.channels = new Channels(this.#transport);
    this.events = new Events(this.#transport);
    this.webhooks = new Webhooks(options.webhookSecret);
  }

  /** Any call by its path below the base URL, for what has no method here. */
  request<T = unknown>(method: Method, path: `/${string}`, params?: Params, options?: RequestOptions): ApiPromise<T> {
    return this.#transport.request(method, path, params, options);
  }

  toJSON(): object {
    return { baseUrl: this.#transport.baseUrl, apiKey: this.#transport.maskedKey };
  }

  /** What Node, Deno and Bun print. */
  [Symbol.for("nodejs.util.inspect.custom")](): string {
    return `Wabery ${JSON.stringify(this)}`;
  }
}
