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
  /** Null for a secret key after the one answer that shows it. */
  key: string | null;
  last4: string;
  scopes: ApiKeyScope[];
  allowed_origins: string[];
  created_at: string;
  expires_at: string | null;
  revoked_at: string | null;
  /** When the value before a rotation stops working. */
  previous_ends_at: string | null;
  last_used_at: string | null;
  /** What should be changed about this key. */
  warning: string | null;
}

export interface ApiKeyCreateParams {
  name: string;
  /** Default: secret. */
  kind?: OpenString<"secret" | "publishable"> | undefined;
  /** Of a secret key; `read_only` and `full` stand for several. */
  scopes?: (ApiKeyScope | "read_only" | "full")[] | undefined;
  /** Of a publishable key; empty means any. */
  allowedOrigins?: string[] | undefined;
  expiresAt?: Date | string | null | undefined;
}

/** A key's scopes are fixed: make another key. */
export type ApiKeyUpdateParams = Partial<Pick<ApiKeyCreateParams, "name" | "allowedOrigins" | "expiresAt">>;

export interface ApiKeyRotateParams {
  /** Seconds for which the old value goes on working, up to 604,800. Default: a day. 0 ends it at once, when it has leaked. */
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

  /** A new key under the same id; for a while both work. */
  rotate(id: string, params?: ApiKeyRotateParams, options?: RequestOptions): ApiPromise<ApiKey & { key: string }> {
    return this.#transport.request("POST", [PATH, id, "rotate"], params, options);
  }

  /** Ends a key at once; its pending intents become `key_revoked`. */
  revoke(id: string, options?: RequestOptions): ApiPromise<ApiKey> {
    return this.#transport.request("DELETE", [PATH, id], undefined, options);
  }
}
