/** Channels: the WhatsApp numbers of a project. Scope `channels:write`. */

import type { RequestOptions, Transport } from "./http.js";
import type { ApiPromise, PagePromise } from "./promises.js";
import type { ListParams, OpenString } from "./types.js";

/** A number, without its credentials. */
export interface Channel {
  object: "channel";
  id: string;
  provider: OpenString<"meta">;
  name: string;
  phone_number_id: string;
  display_phone_number: string;
  waba_id: string;
  portfolio_id: string | null;
  sandbox: boolean;
  created_at: string;
  /** For Meta's dashboard; not in a list. */
  verify_token?: string;
}

/** What the provider says of a channel at this moment. */
export interface ChannelCheck {
  object: "channel_check";
  channel_id: string;
  /** Whether nothing has failed. */
  ok: boolean;
  checks: Finding[];
}

export interface Finding {
  name: string;
  state: OpenString<"ok" | "warning" | "failed" | "skipped">;
  /** For people. */
  found: string;
  /** What to do about it, where there is something to do. */
  todo: string | null;
}

export interface ChannelCreateParams {
  name: string;
  phoneNumberId: string;
  displayPhoneNumber: string;
  wabaId: string;
  appSecret: string;
  /** Without one the channel cannot send replies. */
  accessToken?: string | null | undefined;
  /** Default: one that the server makes. */
  verifyToken?: string | null | undefined;
  portfolioId?: string | null | undefined;
  provider?: OpenString<"meta"> | undefined;
}

/** Another number is another channel. */
export interface ChannelUpdateParams {
  name?: string | undefined;
  displayPhoneNumber?: string | undefined;
  portfolioId?: string | null | undefined;
  /** All that are accepted from now on: the new one, and the old one while it is being replaced. */
  appSecrets?: string[] | undefined;
  verifyToken?: string | undefined;
  accessToken?: string | null | undefined;
}

const PATH = "channels";

export class Channels {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** Connects a number of the Meta Cloud API. 409 `number_taken` when it belongs to another channel. */
  create(params: ChannelCreateParams, options?: RequestOptions): ApiPromise<Channel> {
    return this.#transport.request("POST", [PATH], params, options);
  }

  get(id: string, options?: RequestOptions): ApiPromise<Channel> {
    return this.#transport.request("GET", [PATH, id], undefined, options);
  }

  list(params?: ListParams, options?: RequestOptions): PagePromise<Channel> {
    return this.#transport.list([PATH], params, options);
  }

  /** Changes the named settings and leaves the others. */
  update(id: string, params: ChannelUpdateParams, options?: RequestOptions): ApiPromise<Channel> {
    return this.#transport.request("PATCH", [PATH, id], params, options);
  }

  /** Asks the provider whether credentials and number work, and says what to do where they do not. */
  check(id: string, options?: RequestOptions): ApiPromise<ChannelCheck> {
    return this.#transport.request("POST", [PATH, id, "check"], undefined, options);
  }

  /** Disconnects a number; its pending intents become `channel_unavailable`. */
  delete(id: string, options?: RequestOptions): ApiPromise<Channel> {
    return this.#transport.request("DELETE", [PATH, id], undefined, options);
  }
}
