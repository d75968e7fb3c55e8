/** API keys of a project. Scope `keys:write`. */

import type { RequestOptions, Transport } from "./http.js";
import type { ApiPromise, PagePromise } from "./promises.js";
import type { ListParams, OpenString } from "./types.js";

export type ApiKeyScope = OpenString<
  | "registrations:create"
  | "registrations:read"
  | "contacts:read"
  | "contacts:identity"
  | "contacts:write"
  | "events:read"
  | "deliveries:write"
  | "projects:read"
  | "projects:write"
  | "keys:write"
  | "channels:write"
>;

/** A key without the key itself, except in the answer that made or rotated it. */
export interface ApiKey {
  object: "api_key";
  id: string;
  kind: OpenString<"secret" | "publishable">;
  name: string;
  /** A secret key is shown this once; a publishable one always. */
  key?: string;
  last4: string;
  scopes: ApiKeyScope[];
  allowed_origins: string[];
  created_at: string;
  expires_at: string | null;
  revoked_at: string | null;
  last_used_at: string | null;
}

export interface ApiKeyUpdateParams {
  name?: string | undefined;
  /** Of a secret key. */
  scopes?: ApiKeyScope[] | undefined;
  /** Of a publishable key; empty means any. */
  allowedOrigins?: string[] | undefined;
  expiresAt?: Date | string | null | undefined;
}

export interface ApiKeyCreateParams extends ApiKeyUpdateParams {
  kind: OpenString<"secret" | "publishable">;
  projectId?: string | undefined;
}

export interface ApiKeyRotateParams {
  /** Seconds for which the old key goes on working. */
  overlap?: number | undefined;
}

const PATH = "api-keys";

export class ApiKeys {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** The answer's `key` is the only time a secret key is shown. */
  create(params: ApiKeyCreateParams, options?: RequestOptions): ApiPromise<ApiKey & { key: string }> {
    return this.#transport.request("POST", [PATH], params, options);
  }

  get(id: string, options?: RequestOptions): ApiPromise<ApiKey> {
    return this.#transport.request("GET", [PATH, id], undefined, options);
  }

  list(params?: ListParams, options?: RequestOptions): PagePromise<ApiKey> {
    return this.#transport.list([PATH], params, options);
  }

  /** Changes the named settings and leaves the others. */
  update(id: string, params: ApiKeyUpdateParams, options?: RequestOptions): ApiPromise<ApiKey> {
    return this.#transport.request("PATCH", [PATH, id], params, options);
  }

  /** A new key under the same id; the old one goes on working for `overlap` seconds. */
  rotate(id: string, params?: ApiKeyRotateParams, options?: RequestOptions): ApiPromise<ApiKey & { key: string }> {
    return this.#transport.request("POST", [PATH, id, "rotate"], params, options);
  }

  /** Ends a key at once; its pending intents become `key_revoked`. */
  revoke(id: string, options?: RequestOptions): ApiPromise<ApiKey> {
    return this.#transport.request("DELETE", [PATH, id], undefined, options);
  }
}
