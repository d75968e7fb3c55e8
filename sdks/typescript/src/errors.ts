/** Everything this SDK throws. Catch `WaberyError` for all of it. */

import type { RegistrationIntent } from "./registration-intents.js";

/** Base of every error below. */
export class WaberyError extends Error {
  override readonly name: string = "WaberyError";
}

/** The SDK was set up or called wrongly; nothing was sent. */
export class WaberyConfigurationError extends WaberyError {
  override readonly name = "WaberyConfigurationError";
}

/** No answer came: DNS, TCP, TLS, a connection that broke, or (in a browser) an origin that was refused. */
export class WaberyConnectionError extends WaberyError {
  override readonly name = "WaberyConnectionError";
}

/** No answer came in time. A write may have happened; repeating it with its idempotency key is safe. */
export class WaberyTimeoutError extends WaberyError {
  override readonly name: string = "WaberyTimeoutError";
}

/** `wait()` ran out of time before the intent ended. The intent goes on; wait for it again. */
export class WaberyWaitTimeoutError extends WaberyTimeoutError {
  override readonly name = "WaberyWaitTimeoutError";
  /** As last seen; null when the time ran out before the first answer. */
  readonly intent: RegistrationIntent | null;

  constructor(message: string, intent: RegistrationIntent | null, options?: ErrorOptions) {
    super(message, options);
    this.intent = intent;
  }
}

/** A success whose body is not JSON: most often a proxy or another service at this base URL. */
export class WaberyUnexpectedResponseError extends WaberyError {
  override readonly name = "WaberyUnexpectedResponseError";
}

const KINDS = {
  400: "bad_request",
  401: "authentication",
  403: "permission_denied",
  404: "not_found",
  409: "conflict",
  422: "unprocessable",
  429: "rate_limit",
} as const;

/** The refusals that callers tell apart, in the same words in every SDK. */
export type WaberyApiErrorKind = (typeof KINDS)[keyof typeof KINDS] | "server" | "endpoint_not_available" | "api";

/** The server answered, and the answer is a refusal. */
export class WaberyApiError extends WaberyError {
  override readonly name: string = "WaberyApiError";
  readonly kind: WaberyApiErrorKind;
  /** HTTP status; 0 for a redirect in a browser, which hides its status. */
  readonly status: number;
  /** Stable and snake_case, such as `invalid_customer_reference`; null when the answer was not in the contract's form. */
  readonly code: string | null;
  /** Names this exchange in the server's log. */
  readonly requestId: string | null;
  /** The input at fault. */
  readonly param: string | null;
  /** What to do about it. */
  readonly hint: string | null;
  readonly docUrl: string | null;
  /** Seconds after which the next request is welcome. */
  readonly retryAfter: number | null;
  /** The decoded body, or its text where it was not JSON. Keys and secrets are masked. */
  readonly body: unknown;

  constructor(
    response: { status: number; headers: Headers },
    body: unknown,
    words: { message?: string; hint?: string; from?: string } = {},
  ) {
    const field = (name: string) => {
      const value = (body as Record<string, unknown> | null | undefined)?.[name];
      return typeof value === "string" && value !== "" ? value : null;
    };
    const { status, headers } = response;
    const code = field("error");
    const param = field("param");
    const requestId = field("request_id") ?? headers.get("wabery-request-id");
    const hint = words.hint ?? field("hint");
    const message = words.message ?? field("message") ?? `${words.from ?? "The server"} refused the request without saying why.`;
    const about = [code, `HTTP ${status}`, param && `param ${param}`, requestId && `request ${requestId}`];
    super(`${message}${hint ? ` ${hint}` : ""} (${about.filter(Boolean).join(", ")})`);
    this.kind = KINDS[status as keyof typeof KINDS] ?? (status >= 500 ? "server" : "api");
    this.status = status;
    this.code = code;
    this.requestId = requestId;
    this.param = param;
    this.hint = hint;
    this.docUrl = field("doc_url");
    this.retryAfter = secondsUntil(headers.get("retry-after"));
    this.body = body;
  }
}

/** A 404 or 405 without `Wabery-Version`: this server does not have the call, or it is no Wabery. */
export class WaberyEndpointNotAvailableError extends WaberyApiError {
  override readonly name = "WaberyEndpointNotAvailableError";
  override readonly kind = "endpoint_not_available";
}

/** `Retry-After` (RFC 9110, 10.2.3) in seconds from now, whether it came as a number or as a date. */
function secondsUntil(retryAfter: string | null): number | null {
  if (!retryAfter) return null;
  if (/^\s*\d+\s*$/.test(retryAfter)) return Number(retryAfter);
  // Date.parse alone would take "-1" and "1.5" for dates long ago, which means: at once.
  const moment = /[a-z]/i.test(retryAfter) ? Date.parse(retryAfter) : Number.NaN;
  return Number.isNaN(moment) ? null : Math.max(0, (moment - Date.now()) / 1_000);
}
