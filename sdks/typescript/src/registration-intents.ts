/** Registration intents: mint a single-use WhatsApp link for one of your users, and learn what became of it. */

import { WaberyUnexpectedResponseError, WaberyWaitTimeoutError } from "./errors.js";
import { Deadline, type RequestOptions, retryDelay, sleep, snakeCase, type Transport } from "./http.js";
import type { ApiPromise, PagePromise } from "./promises.js";
import type { ListParams, OpenString } from "./types.js";

export type RegistrationIntentStatus = OpenString<"PENDING" | "JOINED" | "REJECTED" | "EXPIRED">;

/** What a pending intent waits for; `grace` is the time after `expires_at` in which a message already under way still joins. */
export type RegistrationIntentPhase = OpenString<"awaiting_confirmation" | "awaiting_phone" | "awaiting_app" | "grace">;

/** How far the customer reference can be believed: a publishable key alone is `unverified`. */
export type ReferenceTrust = OpenString<"server" | "signed" | "unverified">;

/** A WhatsApp account. A person without a visible phone number is normal: `wa_id` is null then. */
export interface WhatsAppIdentity {
  user_id: string | null;
  parent_user_id: string | null;
  wa_id: string | null;
  username: string | null;
  profile_name: string | null;
  country: string | null;
}

/** An intent as the key at hand may see it. Fields marked with `?` are shown to some keys only. */
export interface RegistrationIntent {
  object: "registration_intent";
  id: string;
  status: RegistrationIntentStatus;
  phase: RegistrationIntentPhase | null;
  livemode: boolean;
  created_at: string;
  expires_at: string;
  joined_at: string | null;
  rejection_reason?: string | null;
  /** A sentence for people, in the intent's language. */
  rejection_message?: string | null;
  customer_reference?: string;
  metadata?: Record<string, unknown>;
  metadata_trusted?: boolean;
  reference_trust?: ReferenceTrust;
  channel_id?: string;
  contact_id?: string | null;
  token?: string;
  /** Null once the intent's channel is gone. */
  wa_link?: string | null;
  client_secret?: string;
  qr?: QrCode | null;
  confirmation_code?: string | null;
  /** Whether the same person had joined with the same reference before. */
  already_linked?: boolean;
  /** The message that ended it. */
  message_id?: string | null;
  /** When, and how, the person went on from your page; see `opened`. */
  opened_at?: string | null;
  opened_via?: OpenedVia | null;
  /** Who joined, masked: the last three digits, or the first letter of the user name. */
  identity?: { display: string; country: string | null } | null;
  /** Who joined, in full; with scope `contacts:identity`. */
  whatsapp?: WhatsAppIdentity | null;
}

/** What `create` returns: the intent with its link, its token and the secret that stands for it. */
export type MintedRegistrationIntent = RegistrationIntent & { wa_link: string } & Required<
    Pick<
      RegistrationIntent,
      | "token"
      | "client_secret"
      | "customer_reference"
      | "metadata"
      | "metadata_trusted"
      | "reference_trust"
      | "channel_id"
      | "contact_id"
      | "rejection_reason"
      | "rejection_message"
    >
  >;

/** How somebody went on from a page; `none`: they said that they do not have WhatsApp. */
export type OpenedVia = OpenString<"link" | "qr" | "copy" | "other_device" | "none">;

/** Why one item of a bulk mint was refused; the others are not harmed. */
export interface ItemError {
  object: "error";
  error: string;
  message: string;
  param?: string;
  hint?: string;
}

/** What became of every item of a bulk mint, in their order; tell them apart by `object`. */
export interface BulkAnswer {
  object: "list";
  data: (MintedRegistrationIntent | ItemError)[];
}

/** The link as a QR code; leave four modules of margin around `modules`, the SVG has them. */
export interface QrCode {
  /** Modules along one side. */
  size: number;
  /** Rows of bits, dark ones set, most significant first, each row padded to bytes; base64. */
  modules: string;
  svg: string;
}

export interface RegistrationIntentCreateParams {
  /** Your own id of the user, 1 to 255 characters. */
  customerReference: string;
  /** Comes back in every event about this person; at most 16 KiB. From a publishable key it is not to be trusted. */
  metadata?: Record<string, unknown> | undefined;
  /** A short-lived JWT by which your server vouches for `customerReference` towards a publishable key. */
  referenceToken?: string | undefined;
  channelId?: string | undefined;
  /** Seconds, 60 to 604,800. */
  expiresIn?: number | undefined;
  /** Language of the prefilled text and the replies, such as `pt-BR`. */
  locale?: string | undefined;
  /** Whether the person confirms in the chat: not at all, with Yes or No, or with the two digits your page shows. */
  confirmation?: OpenString<"none" | "reply" | "code"> | undefined;
  /** The only person who may join: a phone number in E.164 or a BSUID. Secret keys only. */
  expectedSender?: string | undefined;
  include?: OpenString<"qr">[] | undefined;
}

export interface RegistrationIntentGetOptions extends RequestOptions {
  /** Seconds, up to 25, for which the server may hold its answer while nothing changes. */
  wait?: number | undefined;
  include?: OpenString<"qr">[] | undefined;
}

export interface RegistrationIntentListParams extends ListParams {
  status?: RegistrationIntentStatus | undefined;
  customerReference?: string | undefined;
  contactId?: string | undefined;
  channelId?: string | undefined;
  createdAfter?: Date | string | undefined;
  createdBefore?: Date | string | undefined;
}

export interface RegistrationIntentExtendParams {
  /** Seconds from now, 60 to 604,800; the end is at most 7 days after creation. */
  expiresIn: number;
}

export interface WaitOptions {
  /** Milliseconds after which to stop with `WaberyWaitTimeoutError`. Default: until the intent has ended, as every intent does. */
  timeout?: number | undefined;
  signal?: AbortSignal | undefined;
  clientSecret?: string | undefined;
  /** Called with the first answer, and again whenever status or phase change. */
  onChange?: ((intent: RegistrationIntent) => void) | undefined;
}

/** Milliseconds on top of the time for which the server was asked to hold its answer. */
const SLOWEST_ANSWER = 10_000;

const LONGEST_PAUSE = 60_000;

const PATH = "registration-intents";

export class RegistrationIntents {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  create(params: RegistrationIntentCreateParams, options?: RequestOptions): ApiPromise<MintedRegistrationIntent> {
    return this.#transport.request("POST", [PATH], params, options);
  }

  /** Up to 1,000 at once, each by itself. Secret keys only. */
  createMany(items: RegistrationIntentCreateParams[], options?: RequestOptions): ApiPromise<BulkAnswer> {
    return this.#transport.request("POST", [PATH, "bulk"], { items: items.map(snakeCase) }, options);
  }

  /** With `wait` the server answers at a change or at its end. `wait()` follows an intent to its end. */
  get(id: string, options: RegistrationIntentGetOptions = {}): ApiPromise<RegistrationIntent> {
    const { wait, include, ...rest } = options;
    if (wait !== undefined) rest.timeout = Math.max(rest.timeout ?? this.#transport.timeout, 1_000 * wait + SLOWEST_ANSWER);
    return this.#transport.request("GET", [PATH, id], { wait, include }, rest);
  }

  /** Newest first. Secret keys only. */
  list(params?: RegistrationIntentListParams, options?: RequestOptions): PagePromise<RegistrationIntent> {
    return this.#transport.list([PATH], params, options);
  }

  /** Ends a pending intent. A joined one refuses with 409 `already_joined`. */
  cancel(id: string, options?: RequestOptions): ApiPromise<RegistrationIntent> {
    return this.#transport.request("POST", [PATH, id, "cancel"], undefined, options);
  }

  /** Moves `expires_at` of a pending intent, up to 7 days after its creation. */
  extend(id: string, params: RegistrationIntentExtendParams, options?: RequestOptions): ApiPromise<RegistrationIntent> {
    return this.#transport.request("POST", [PATH, id, "extend"], params, options);
  }

  /** Notes how the person went on from your page. */
  opened(
    id: string,
    params: { via: OpenedVia },
    options: RequestOptions & { clientSecret: string },
  ): ApiPromise<RegistrationIntent> {
    return this.#transport.request("POST", [PATH, id, "opened"], params, options);
  }

  /**
   * Resolves with the intent once it has ended: JOINED, REJECTED, or EXPIRED beyond the grace. A status this SDK does not
   * know counts as ended too, for the caller to judge. Bridges outages of about a minute.
   */
  async wait(id: string, options: WaitOptions = {}): Promise<RegistrationIntent> {
    const { timeout = Number.POSITIVE_INFINITY, clientSecret, onChange } = options;
    // A publishable key may only ask, unless it can show that it minted the intent.
    const mayHold = this.#transport.keyKind === "secret" || clientSecret !== undefined;
    const deadline = new Deadline(timeout, options.signal);
    const { signal } = deadline;
    let seen: RegistrationIntent | null = null;
    let failure: unknown;
    let failures = 0;
    try {
      for (let polls = 0; ; polls++) {
        const asked = performance.now();
        let pause: number | null;
        try {
          const poll = { clientSecret, signal, timeout: SLOWEST_ANSWER, maxRetries: 0 };
          // The first poll asks for the state as it is, so that onChange hears it before anything happens.
          const hold = seen ? Math.max(0, Math.min(25, Math.floor(deadline.left / 1_000))) : 0;
          const intent = await this.get(id, mayHold ? { ...poll, wait: hold } : poll);
          if (typeof intent.status !== "string") throw new WaberyUnexpectedResponseError("The answer has no status.");
          const changed = intent.status !== seen?.status || intent.phase !== seen.phase;
          seen = intent;
          if (changed) onChange?.(intent);
          if (hasEnded(intent)) return intent;
          // A server that holds its answer until something changes is asked again at once, any other in a while.
          const held = mayHold && (changed || performance.now() - asked > 1_000);
          pause = held ? 0 : polls < 30 ? 2_000 : 5_000;
          failures = 0;
          failure = undefined;
        } catch (error) {
          pause = retryDelay(failures++, error);
          if (pause === null || pause > LONGEST_PAUSE || failures > 10) throw error;
          failure = error;
        }
        if (pause > 0) await sleep(pause, signal);
      }
    } catch (error) {
      if (!deadline.expired) throw error;
      const state = seen ? `still ${seen.phase ?? seen.status}` : "not read yet";
      throw new WaberyWaitTimeoutError(`After ${timeout} ms the intent was ${state}. It goes on; wait for it again.`, seen, {
        cause: failure,
      });
    } finally {
      deadline.clear();
    }
  }
}

function hasEnded({ status, phase }: RegistrationIntent): boolean {
  return status !== "PENDING" && !(status === "EXPIRED" && phase === "grace");
}
