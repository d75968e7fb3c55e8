/**
 * Checks that a webhook came from Wabery, and makes signed headers for tests.
 *
 * Two schemes, both HMAC-SHA256, differ in the bytes they cover and in the bytes of the key:
 *
 *     x-wabery-signature   sha256=<hex> over the body           key: UTF-8 of the secret as shown, prefix included
 *     webhook-signature    v1,<base64> over id.timestamp.body   key: what follows `whsec_`, base64-decoded
 *
 * The second (Standard Webhooks 1.0.0) also says when it was signed. Where a delivery carries any of its headers, all
 * three are required and the time must be within `tolerance` of now. Where it carries none, as from the hosted product,
 * the first decides, and the `sentAt` in the signed body must be at most `maxAge` old. So an old delivery does not become
 * new again when its `webhook-*` headers are removed.
 */

import { environment } from "./environment.js";
import { WaberyConfigurationError, WaberyError } from "./errors.js";
import type { WebhookEvent } from "./webhook-events.js";

/** The body exactly as it arrived: bytes, or their text. */
export type RawBody = string | Uint8Array | ArrayBuffer;

/** `request.headers` of fetch, of Node's http, or a plain object. */
export type HeadersLike = Headers | Record<string, string | readonly string[] | undefined>;

/** A signing secret: text, or its UTF-8 bytes. */
export type WebhookSecret = string | Uint8Array;

export interface VerifyOptions {
  /** Seconds that a signature may be old or ahead of this machine's clock. Default 300. */
  tolerance?: number | undefined;
  /** Seconds that the signed `sentAt` of a delivery with the contract's header alone may be old. Default 604800, 7 days. */
  maxAge?: number | undefined;
  /** Rejects a delivery with the contract's header alone, whatever its age. */
  requireTimestamp?: boolean | undefined;
  /** Instead of this machine's clock. */
  now?: Date | undefined;
}

export interface SignForTestOptions {
  /** Signs as well, as during a rotation. */
  nextSecret?: string | undefined;
  /** Default: an id of zeros. */
  eventId?: string | undefined;
  /** When the attempt was made. Default: now. */
  now?: Date | undefined;
}

export type WebhookFault =
  | "body_not_bytes"
  | "body_reserialized"
  | "missing_header"
  | "malformed_header"
  | "no_secret"
  | "wrong_signature"
  | "timestamp_too_old"
  | "timestamp_too_new"
  | "no_sent_at"
  | "not_an_event";

/** A delivery that must not be trusted: answer it with 400 and change nothing. `fault` says which cause it is. */
export class WaberyWebhookVerificationError extends WaberyError {
  override readonly name = "WaberyWebhookVerificationError";
  readonly fault: WebhookFault;

  constructor(fault: WebhookFault, message: string) {
    super(message);
    this.fault = fault;
  }
}

export class Webhooks {
  readonly #secret: WebhookSecret | readonly WebhookSecret[] | undefined;

  /** `secret` is used wherever a call names none; without it, `WABERY_WEBHOOK_SECRET`. */
  constructor(secret?: WebhookSecret | readonly WebhookSecret[]) {
    this.#secret = secret;
  }

  /** Resolves if one of the secrets signed this body; else throws `WaberyWebhookVerificationError`. */
  async verify(
    body: RawBody,
    headers: HeadersLike,
    secret?: WebhookSecret | readonly WebhookSecret[],
    options: VerifyOptions = {},
  ): Promise<void> {
    const { tolerance = 300, maxAge = 604_800, now = new Date() } = options;
    // A comparison with NaN is false: it would accept every age.
    if (!(tolerance >= 0 && maxAge >= 0))
      throw new WaberyConfigurationError("tolerance and maxAge must be seconds, 0 or more; Infinity accepts any age.");
    const bytes = bytesOf(body);
    const secrets = [secret ?? this.#secret ?? environment("WABERY_WEBHOOK_SECRET") ?? []].flat().map(secretText);
    if (secrets.length === 0 || !secrets.every(Boolean))
      throw new WaberyWebhookVerificationError(
        "no_secret",
        "No signing secret was given. Pass one, or set WABERY_WEBHOOK_SECRET.",
      );
    const header = reader(headers);
    const standard = options.requireTimestamp || STANDARD.some((name) => header(name) !== null);
    const claims = standard ? standardClaims(header) : contractClaims(header);
    if (!(await anyMatch(claims, secrets, bytes))) throw await refusal(claims, secrets, bytes);
    checkAge(now, claims.timestamp ?? sentAt(bytes), claims.timestamp === null ? maxAge : tolerance, tolerance);
  }

  /** Verifies, then decodes. An event type newer than this SDK comes through with its name and payload untouched. */
  async unwrap(
    body: RawBody,
    headers: HeadersLike,
    secret?: WebhookSecret | readonly WebhookSecret[],
    options: VerifyOptions = {},
  ): Promise<WebhookEvent> {
    await this.verify(body, headers, secret, options);
    let event: unknown;
    try {
      event = JSON.parse(new TextDecoder().decode(bytesOf(body)));
    } catch {}
    const { event: type, payload } = (event ?? {}) as Partial<WebhookEvent>;
    if (typeof type !== "string" || typeof payload !== "object" || payload === null)
      throw new WaberyWebhookVerificationError(
        "not_an_event",
        "The signature is right, but the body is no event: it has no `event` and `payload`.",
      );
    return event as WebhookEvent;
  }

  /** A delivery as Wabery would send it, for the tests of a receiver. `body` may also be an object, to be sent as JSON. */
  async signForTest<Body extends RawBody | object>(
    body: Body,
    secret: string,
    options: SignForTestOptions = {},
  ): Promise<{ body: Body extends RawBody ? Body : string; headers: Record<string, string> }> {
    const sent = isRaw(body) ? body : JSON.stringify(body);
    const raw = bytesOf(sent);
    const { nextSecret, eventId = "evt_00000000000000000000000000", now = new Date() } = options;
    const timestamp = String(Math.floor(now.getTime() / 1_000));
    const signed = concat(utf8(`${eventId}.${timestamp}.`), raw);
    const contract = async (by: string) => `sha256=${hex(await sign(utf8(by), raw))}`;
    const standard = async (by: string) => `v1,${btoa(String.fromCharCode(...(await sign(standardKey(by), signed))))}`;
    const headers: Record<string, string> = {
      "content-type": "application/json",
      "webhook-id": eventId,
      "webhook-timestamp": timestamp,
      "webhook-signature": await standard(secret),
      "x-wabery-signature": await contract(secret),
    };
    if (nextSecret) {
      headers["webhook-signature"] += ` ${await standard(nextSecret)}`;
      headers["x-wabery-signature-next"] = await contract(nextSecret);
    }
    return { body: sent as Body extends RawBody ? Body : string, headers };
  }
}

/** `new Wabery().webhooks` without a client and its key. */
export const webhooks = new Webhooks();

const STANDARD = ["webhook-id", "webhook-timestamp", "webhook-signature"] as const;

/** What the headers claim: one of these signatures was made over `before` and the body, with the key of a secret. */
interface Claims {
  signatures: Uint8Array[];
  before: string;
  /** Unix seconds. */
  timestamp: number | null;
  key: (secret: string) => Uint8Array;
}

type Header = (name: string) => string | null;

function standardClaims(header: Header): Claims {
  for (const name of STANDARD)
    if (!header(name)) throw new WaberyWebhookVerificationError("missing_header", `The header ${name} is missing. ${DROPPED}`);
  const [id, timestamp, entries] = STANDARD.map((name) => header(name) ?? "") as [string, string, string];
  if (!/^\d{1,12}$/.test(timestamp))
    throw new WaberyWebhookVerificationError("malformed_header", "webhook-timestamp is not a number of Unix seconds.");
  // Other versions than v1 may stand beside it, and repeated headers arrive joined by commas.
  const signatures = [...entries.matchAll(/(?:^|[\s,])v1,([^\s,]*)/g)].map(
    ([, text = ""]) => fromBase64(text) ?? new Uint8Array(),
  );
  if (signatures.length === 0)
    throw new WaberyWebhookVerificationError("malformed_header", "webhook-signature holds no signature of the form v1,<base64>.");
  return { signatures, before: `${id}.${timestamp}.`, timestamp: Number(timestamp), key: standardKey };
}

function contractClaims(header: Header): Claims {
  const values = [header("x-wabery-signature"), header("x-wabery-signature-next")].filter((value) => value !== null);
  if (values.length === 0)
    throw new WaberyWebhookVerificationError(
      "missing_header",
      `There is neither x-wabery-signature nor webhook-signature. ${DROPPED}`,
    );
  const signatures = [...values.join(" ").matchAll(/sha256=([0-9a-f]{64})(?![0-9a-z])/gi)].map(([, digits = ""]) =>
    fromHex(digits),
  );
  if (signatures.length === 0)
    throw new WaberyWebhookVerificationError("malformed_header", "x-wabery-signature is not sha256= and 64 hexadecimal digits.");
  return { signatures, before: "", timestamp: null, key: utf8 };
}

const DROPPED = "Is this request from Wabery? A proxy or framework may have dropped its headers.";

async function anyMatch({ signatures, before, key }: Claims, secrets: string[], body: Uint8Array): Promise<boolean> {
  const signed = concat(utf8(before), body);
  for (const secret of secrets) {
    const hmac = await importKey(key(secret), "verify");
    // Web Crypto compares in constant time.
    for (const signature of signatures)
      if (await crypto.subtle.verify("HMAC", hmac, buffer(signature), buffer(signed))) return true;
  }
  return false;
}

/** Which of the usual mistakes it was. */
async function refusal(claims: Claims, secrets: string[], body: Uint8Array): Promise<WaberyWebhookVerificationError> {
  // A stranger must not make us work for nothing.
  if (body.length <= 65_536 && (await anyMatch(claims, secrets, compacted(body))))
    return new WaberyWebhookVerificationError(
      "body_reserialized",
      "The body was parsed and written again: the signature fits its content, but not these bytes. Pass the request's raw body, read before any JSON middleware.",
    );
  let hint = "Compare the secret with the webhook_secret of the project, and pass the body exactly as it was received.";
  const bare = secrets.map((secret) => secret.trim().replace(/^(["'])(.*)\1$/, "$2"));
  if (secrets.some((secret) => secret.startsWith("wab_")))
    hint = "The secret given is an API key; the signing secret is the project's webhook_secret.";
  else if (bare.every(Boolean) && (await anyMatch(claims, bare, body)))
    hint = "The secret given has quotes or white space around it.";
  return new WaberyWebhookVerificationError(
    "wrong_signature",
    `The signature matches no secret: a wrong secret, or a changed body. ${hint}`,
  );
}

/** `sent` in Unix seconds; `most` and `ahead` are how many seconds it may be old and in the future. */
function checkAge(now: Date, sent: number, most: number, ahead: number): void {
  const age = Math.floor(now.getTime() / 1_000) - sent;
  if (age > most)
    throw new WaberyWebhookVerificationError(
      "timestamp_too_old",
      `The signature is right but ${age} s old; ${most} s are allowed. Is this machine's clock right, or is it a replay?`,
    );
  if (-age > ahead)
    throw new WaberyWebhookVerificationError(
      "timestamp_too_new",
      `The signature is right but ${-age} s ahead of this machine's clock, which is probably wrong.`,
    );
}

/** ISO 8601 with seconds and a zone; the other SDKs take the same. */
const MOMENT =
  /^(?!0000)(\d{4})-(\d\d)-(\d\d)T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)$/;

/** The Unix seconds of `sentAt` in a body. */
function sentAt(body: Uint8Array): number {
  let text: unknown;
  try {
    text = (JSON.parse(new TextDecoder().decode(body)) as { sentAt?: unknown } | null)?.sentAt;
  } catch {}
  const [, year, month, day] = (typeof text === "string" && MOMENT.exec(text)) || [];
  // `Date` takes the 30th of February for the 2nd of March.
  const date = new Date(Date.UTC(Number(year), Number(month) - 1, Number(day)));
  if (typeof text !== "string" || date.getUTCMonth() !== Number(month) - 1 || date.getUTCDate() !== Number(day))
    throw new WaberyWebhookVerificationError(
      "no_sent_at",
      "The delivery has no webhook-* headers, and its body no valid `sentAt`, so its age is unknown. Pass all headers of the request; something may have removed webhook-id, -timestamp and -signature.",
    );
  return Math.floor(Date.parse(text) / 1_000);
}

/** A secret as text; bytes are the UTF-8 of one. */
function secretText(secret: unknown): string {
  if (typeof secret === "string") return secret;
  if (isRaw(secret))
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytesOf(secret));
    } catch {
      throw new WaberyWebhookVerificationError("no_secret", `The signing secret is not UTF-8. ${TEXT}`);
    }
  throw new WaberyWebhookVerificationError("no_secret", `The signing secret is of type ${typeof secret}. ${TEXT}`);
}

const TEXT = "Pass the project's webhook_secret as text, such as whsec_…";

/** Not by `instanceof`: bytes may come from another realm, as in test runners that isolate by one. */
function isRaw(body: unknown): body is RawBody {
  return typeof body === "string" || ArrayBuffer.isView(body) || Object.prototype.toString.call(body) === "[object ArrayBuffer]";
}

function bytesOf(body: RawBody): Uint8Array {
  if (!isRaw(body))
    throw new WaberyWebhookVerificationError(
      "body_not_bytes",
      "The body was already parsed, and the signature covers its bytes as they were received. Pass the raw body: `await request.text()`, or that of `express.raw({ type: 'application/json' })`.",
    );
  if (typeof body === "string") return utf8(body);
  return ArrayBuffer.isView(body) ? new Uint8Array(body.buffer, body.byteOffset, body.byteLength) : new Uint8Array(body);
}

/** Finds headers whatever their case, in any of the forms that servers give them. */
function reader(headers: HeadersLike): Header {
  const { get } = (headers ?? {}) as Partial<Headers>;
  if (typeof get === "function") return (name) => get.call(headers, name)?.trim() ?? null;
  const lower = new Map<string, string[]>();
  for (const [name, value] of Object.entries(headers ?? {}))
    if (value != null) lower.set(name.toLowerCase(), [...(lower.get(name.toLowerCase()) ?? []), ...[value].flat().map(String)]);
  // Repeated headers are joined by commas, as HTTP has it.
  return (name) =>
    lower
      .get(name)
      ?.map((value) => value.trim())
      .join(", ") ?? null;
}

/** The body as Wabery writes JSON: without spaces and escapes that another encoder may have added. */
function compacted(bytes: Uint8Array): Uint8Array {
  try {
    return utf8(JSON.stringify(JSON.parse(new TextDecoder().decode(bytes))));
  } catch {
    return bytes;
  }
}

/** A secret that the app chose itself need not be `whsec_` and base64; then its own bytes are the key. */
function standardKey(secret: string): Uint8Array {
  const decoded = secret.startsWith("whsec_") ? fromBase64(secret.slice(6)) : null;
  return decoded?.length ? decoded : utf8(secret);
}

async function sign(key: Uint8Array, data: Uint8Array): Promise<Uint8Array> {
  return new Uint8Array(await crypto.subtle.sign("HMAC", await importKey(key, "sign"), buffer(data)));
}

function importKey(key: Uint8Array, usage: "sign" | "verify"): Promise<CryptoKey> {
  return crypto.subtle.importKey("raw", buffer(key), { name: "HMAC", hash: "SHA-256" }, false, [usage]);
}

/** The types of Web Crypto exclude shared memory, which none of these bytes live in. */
const buffer = (bytes: Uint8Array) => bytes as Uint8Array<ArrayBuffer>;

const utf8 = (text: string): Uint8Array => new TextEncoder().encode(text);

function concat(first: Uint8Array, second: Uint8Array): Uint8Array {
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function fromHex(digits: string): Uint8Array {
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
}

/** Strict, as the signer is: null for anything that is not whole, padded base64. */
function fromBase64(text: string): Uint8Array | null {
  if (!/^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(text)) return null;
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}
