/** Events: what happened in a project, whether or not a webhook was listening. Scope `events:read`. */

import type { RequestOptions, Transport } from "./http.js";
import type { ApiPromise, PagePromise } from "./promises.js";
import type { ListParams, OpenString } from "./types.js";
import type { WebhookEvent } from "./webhook-events.js";

type Stored<Event> = Event extends { event: infer Type; payload: infer Payload }
  ? {
      object: "event";
      /** Equal to the payload's `event_id`, and to `webhook-id` on every delivery. */
      id: string;
      type: Type;
      created_at: string;
      sent_at: string;
      livemode: boolean;
      payload: Payload;
    }
  : never;

/** An event as the API lists it, with the payload of its deliveries; tell them apart by `type`. */
export type WaberyEvent = Stored<WebhookEvent>;

export interface EventListParams extends ListParams {
  type?: OpenString<WaberyEvent["type"]> | undefined;
  contactId?: string | undefined;
  registrationIntentId?: string | undefined;
  createdAfter?: Date | string | undefined;
  createdBefore?: Date | string | undefined;
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
