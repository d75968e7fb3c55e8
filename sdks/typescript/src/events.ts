/** Events: what happened in a project, whether or not a webhook was listening. Scope `events:read`. */

import type { RequestOptions, Transport } from "./http.js";
import type { ApiPromise, PagePromise } from "./promises.js";
import type { ListParams } from "./types.js";
import type { WebhookEvent } from "./webhook-events.js";

/** An event as the API lists it. */
export interface WaberyEvent {
  object: "event";
  id: string;
  type: WebhookEvent["event"] | (string & {});
  created_at: string;
}

export interface EventListParams extends ListParams {
  type?: WaberyEvent["type"] | undefined;
}

const PATH = "events";

export class Events {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  get(id: string, options?: RequestOptions): ApiPromise<WaberyEvent> {
    return this.#transport.request("GET", [PATH, id], undefined, options);
  }

  /** Newest first. */
  list(params?: EventListParams, options?: RequestOptions): PagePromise<WaberyEvent> {
    return this.#transport.list([PATH], params, options);
  }
}
