/**
 * `@wabery/sdk/browser`: what a page needs, and nothing it must not have. Takes publishable keys only.
 *
 * A subpath and not a `browser` condition on the main entry: bundlers for edge runtimes also look for that condition,
 * and a server that runs there would lose its secret key.
 */

import { WaberyConfigurationError } from "./errors.js";
import { type ClientOptions, type Method, type Params, type RequestOptions, Transport } from "./http.js";
import { cleanKey, keyKind, SECRET_IN_BROWSER } from "./keys.js";
import type { ApiPromise } from "./promises.js";
import { RegistrationIntents } from "./registration-intents.js";

export * from "./errors.js";
export type { ClientOptions, RequestOptions } from "./http.js";
export type * from "./registration-intents.js";

export class Wabery {
  readonly registrationIntents: RegistrationIntents;
  readonly #transport: Transport;

  constructor(options: ClientOptions) {
    if (keyKind(cleanKey(options.apiKey)) === "secret") throw new WaberyConfigurationError(SECRET_IN_BROWSER);
    this.#transport = new Transport(options);
    this.registrationIntents = new RegistrationIntents(this.#transport);
  }

  /** Any call by its path below the base URL, for what has no method here. */
  request<T = unknown>(method: Method, path: `/${string}`, params?: Params, options?: RequestOptions): ApiPromise<T> {
    return this.#transport.request(method, path, params, options);
  }

  toJSON(): object {
    return { baseUrl: this.#transport.baseUrl, apiKey: this.#transport.maskedKey };
  }
}
