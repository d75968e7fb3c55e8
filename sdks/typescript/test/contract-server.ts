/**
 * A small server on loopback that speaks the contract, for the client's side of it: enough of each resource to answer in
 * its shapes, and scripted faults. Real HTTP, real sockets; nothing is stored beyond the process.
 */

import { EventEmitter, once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

type Json = Record<string, unknown>;

const VERSION = "2026-11-01";

export interface Recorded {
  method: string;
  path: string;
  query: Record<string, string>;
  headers: IncomingMessage["headers"];
  body: string;
}

/** What the next request gets instead of its answer: a fixed one, a broken connection, half a body, one that never ends, nothing. */
export type Fault = Scripted | "drop" | "half" | "trickle" | "hang";

export interface Scripted {
  status: number;
  headers?: Record<string, string>;
  body?: unknown;
  /** Without the headers of a Wabery server. */
  bare?: boolean;
}

class Refusal extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly param?: string,
    readonly hint?: string,
  ) {
    super(message);
  }
}

export class ContractServer {
  readonly secretKey = "wab_test_0123456789ABCDEFGHIJKLMNOPQRST2s2GvP";
  readonly publishableKey = "wab_pub_0123456789ABCDEFGHIJKLMNOPQRST3qrAPx";
  readonly requests: Recorded[] = [];
  /** Emits `request` for each, and `hold` when a long poll begins to wait. */
  readonly happenings = new EventEmitter();
  readonly #server: Server;
  readonly #faults: Fault[] = [];
  readonly #intents = new Map<string, Json>();
  readonly #secrets = new Map<string, string>();
  readonly #objects = {
    projects: new Map<string, Json>(),
    "api-keys": new Map<string, Json>(),
    channels: new Map<string, Json>(),
  };
  readonly #events: Json[] = [];
  readonly #replays = new Map<string, { body: string; status: number; answer: Json }>();
  #count = 0;

  private constructor() {
    this.#server = createServer((request, response) => void this.#answer(request, response));
    this.#objects.projects.set("proj_1", {
      object: "project",
      id: "proj_1",
      name: "acme",
      livemode: false,
      webhook_url: null,
      webhook_secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    });
  }

  static async start(): Promise<ContractServer> {
    const it = new ContractServer();
    it.#server.listen(0, "127.0.0.1");
    await once(it.#server, "listening");
    return it;
  }

  get baseUrl(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}/v1`;
  }

  stop(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }

  /** The next requests get these instead of their answers. */
  fail(...faults: Fault[]): void {
    this.#faults.push(...faults);
  }

  /** Changes an intent as if a message had come, and wakes its long polls. */
  change(id: string, fields: Json): void {
    Object.assign(this.#intents.get(id) ?? {}, fields);
    this.happenings.emit(`changed ${id}`);
  }

  get last(): Recorded {
    const last = this.requests.at(-1);
    if (!last) throw new Error("no request came");
    return last;
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? "/", "http://contract.invalid");
    let body = "";
    for await (const chunk of request.setEncoding("utf8")) body += chunk;
    response.setHeader("access-control-allow-origin", "*");
    response.setHeader("access-control-expose-headers", "Retry-After, Wabery-Version, Wabery-Request-Id");
    if (request.method === "OPTIONS") {
      response.setHeader("access-control-allow-methods", "GET, POST");
      response.setHeader(
        "access-control-allow-headers",
        "content-type, idempotency-key, x-wabery-publishable-key, x-wabery-client-secret",
      );
      response.writeHead(204).end();
      return;
    }
    const call: Recorded = {
      method: request.method ?? "",
      path: url.pathname,
      query: Object.fromEntries(url.searchParams),
      headers: request.headers,
      body,
    };
    this.requests.push(call);
    this.happenings.emit("request", call);
    const fault = this.#faults.shift();
    if (fault === "hang") return;
    if (fault === "drop") {
      request.socket.destroy();
      return;
    }
    if (fault === "half") {
      response.writeHead(200, { "content-type": "application/json", "content-length": "1000" });
      response.write('{"object":', () => request.socket.destroy());
      return;
    }
    if (fault === "trickle") {
      response.writeHead(200, { "content-type": "application/json" });
      const trickle = setInterval(() => response.write(" "), 10);
      response.on("close", () => clearInterval(trickle));
      return;
    }
    const requestId = `req_${this.requests.length}`;
    if (!fault?.bare) response.setHeader("wabery-request-id", requestId);
    if (fault) {
      const own = fault.bare ? {} : { "content-type": "application/json", "wabery-version": VERSION };
      response.writeHead(fault.status, { ...own, ...fault.headers });
      response.end(typeof fault.body === "string" ? fault.body : JSON.stringify(fault.body ?? {}));
      return;
    }
    const send = (status: number, answer: Json) =>
      response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(answer));
    try {
      if (call.path === "/phone/api/send") return void send(200, this.#pressSend(read(call)));
      const handler = this.#route(call);
      if (!handler) return void send(404, { error: "unknown_path", message: "This server does not serve this path." });
      response.setHeader("wabery-version", VERSION);
      const { status, answer, replayed } = await this.#once(call, handler);
      if (replayed) response.setHeader("idempotency-replayed", "true");
      send(status, answer);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      const { status, code, message, param, hint } = error;
      const docUrl = `https://docs.wabery.com/errors/${code}`;
      send(status, { error: code, message, param, hint, doc_url: docUrl, request_id: requestId });
    }
  }

  async #once(call: Recorded, handler: () => Promise<Json> | Json) {
    const key = call.headers["idempotency-key"];
    if (call.method === "GET") return { status: 200, answer: await handler(), replayed: false };
    if (typeof key !== "string") throw new Refusal(400, "invalid_idempotency_key", "A write came without Idempotency-Key.");
    const kept = this.#replays.get(`${call.method} ${call.path} ${key}`);
    if (kept && kept.body !== call.body) {
      const hint = "Use a new key for a new request.";
      throw new Refusal(409, "idempotency_key_reused", "This Idempotency-Key was used before.", undefined, hint);
    }
    if (kept) return { ...kept, replayed: true };
    // Frozen as it was: a replay shows the answer of that moment.
    const answer = structuredClone(await handler());
    this.#replays.set(`${call.method} ${call.path} ${key}`, { body: call.body, status: 200, answer });
    return { status: 200, answer, replayed: false };
  }

  #pressSend({ link }: Json): Json {
    const intent = [...this.#intents.values()].find((one) => one.wa_link === link) ?? notFound();
    const event = { event_id: `evt_${++this.#count}`, customer_reference: intent.customer_reference };
    this.#events.unshift({ object: "event", id: event.event_id, type: "participant.joined", payload: event });
    this.change(intent.id as string, { status: "JOINED", joined_at: new Date().toISOString(), contact_id: "contact_1" });
    return { delivered: true };
  }

  #route(call: Recorded): (() => Promise<Json> | Json) | undefined {
    const [version, collection = "", id, action, ...rest] = call.path.slice(1).split("/");
    if (version !== "v1" || rest.length > 0) return undefined;
    const { method } = call;
    if (collection === "registration-intents") {
      if (!id) return method === "POST" ? () => this.#mint(call) : method === "GET" ? () => this.#listIntents(call) : undefined;
      if (id === "bulk" && method === "POST") return () => this.#mintMany(call);
      if (!action) return method === "GET" ? () => this.#poll(call, id) : undefined;
      if (method === "POST" && action === "opened") return () => this.#opened(call, id);
      if (method === "POST" && action === "cancel") return () => this.#cancel(call, id);
      if (method === "POST" && action === "extend") return () => this.#extend(call, id);
      return undefined;
    }
    if (collection === "events" && method === "GET" && !action)
      return () => {
        this.#secretOnly(call);
        if (!id)
          return this.#page(
            call,
            this.#events.filter(({ type }) => type === (call.query.type ?? type)),
          );
        return this.#events.find((event) => event.id === id) ?? notFound();
      };
    if (collection !== "projects" && collection !== "api-keys" && collection !== "channels") return undefined;
    return this.#administer(call, collection, id, action);
  }

  #administer(call: Recorded, collection: "projects" | "api-keys" | "channels", id?: string, action?: string) {
    const rows = this.#objects[collection];
    const prefix = { projects: "proj", "api-keys": "key", channels: "channel" }[collection];
    const object = { projects: "project", "api-keys": "api_key", channels: "channel" }[collection];
    const secret = { projects: ["webhook_secret"], "api-keys": [], channels: ["app_secret", "access_token"] };
    const hidden: string[] = secret[collection];
    const shown = (row: Json, secrets = hidden) =>
      Object.fromEntries(Object.entries(row).filter(([name]) => !secrets.includes(name)));
    const row = () => rows.get(id ?? "") ?? notFound();
    const calls: Record<string, () => Json> = {
      GET: () =>
        id
          ? shown(row(), collection === "projects" ? [] : hidden)
          : this.#page(
              call,
              [...rows.values()].map((one) => shown(one)),
            ),
      POST: () => {
        const made: Json = { object, id: `${prefix}_${++this.#count}`, created_at: new Date().toISOString(), ...read(call) };
        rows.set(made.id as string, collection === "api-keys" ? { ...made, key: null, revoked_at: null } : made);
        return collection === "api-keys"
          ? { ...made, key: this.secretKey }
          : shown(made, collection === "channels" ? hidden : []);
      },
      PATCH: () => shown(Object.assign(row(), read(call)), collection === "projects" ? [] : hidden),
      DELETE: () => shown(Object.assign(row(), { revoked_at: new Date().toISOString() })),
      "projects rotate-webhook-secret": () =>
        Object.assign(row(), { webhook_secret: `whsec_${btoa(`rotated ${++this.#count} `.repeat(3))}` }),
      "api-keys rotate": () => ({ ...row(), key: this.secretKey }),
      "channels check": () => ({ object: "channel_check", channel_id: row().id, ok: true, checks: [] }),
    };
    const handler = calls[action ? `${collection} ${action}` : call.method];
    if (!handler) return undefined;
    return () => {
      this.#secretOnly(call);
      return handler();
    };
  }

  #mint(call: Recorded): Json {
    const trusted = this.#caller(call) === "secret";
    const { customer_reference: reference, metadata = {}, expires_in: seconds = 1800, include, ...unknown } = read(call);
    const [stranger] = Object.keys(unknown);
    if (stranger) throw new Refusal(400, "invalid_request", `Unknown field ${stranger}.`, stranger);
    if (typeof reference !== "string" || reference === "")
      throw new Refusal(
        400,
        "invalid_customer_reference",
        "customer_reference must be 1 to 255 characters without control characters.",
        "customer_reference",
        "Send the id your own system uses for this user.",
      );
    const id = `reg_${String(++this.#count).padStart(26, "0")}`;
    const token = `wjr_${String(this.#count).padStart(26, "0")}`;
    const clientSecret = `wcs_${String(this.#count).padStart(26, "0")}`;
    const intent: Json = {
      object: "registration_intent",
      id,
      token,
      status: "PENDING",
      wa_link: `https://wa.me/15550100?text=${encodeURIComponent(`Connect my account: ${token}`)}`,
      expires_at: new Date(Date.now() + Number(seconds) * 1_000).toISOString(),
      created_at: new Date().toISOString(),
      livemode: false,
      customer_reference: reference,
      metadata,
      metadata_trusted: trusted,
      reference_trust: trusted ? "server" : "unverified",
      channel_id: "channel_1",
      phase: null,
      client_secret: clientSecret,
      joined_at: null,
      contact_id: null,
      rejection_reason: null,
      rejection_message: null,
    };
    this.#intents.set(id, intent);
    this.#secrets.set(id, clientSecret);
    return Array.isArray(include) && include.includes("qr")
      ? { ...intent, qr: { size: 1, modules: "gA==", svg: "<svg/>" } }
      : intent;
  }

  #mintMany(call: Recorded): Json {
    this.#secretOnly(call);
    const data = (read(call).items as Json[]).map((item) => {
      try {
        if (Number(item.expires_in ?? 60) < 60)
          throw new Refusal(400, "expires_in_out_of_range", "expires_in must be between 60 and 604800.", "expires_in");
        return this.#mint({ ...call, body: JSON.stringify(item) });
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        return { object: "error", error: error.code, message: error.message, param: error.param };
      }
    });
    return { object: "list", data };
  }

  #opened(call: Recorded, id: string): Json {
    this.change(id, { opened_via: read(call).via });
    return this.#view(call, id);
  }

  async #poll(call: Recorded, id: string): Promise<Json> {
    this.#view(call, id);
    const seconds = Number(call.query.wait ?? 0);
    const before = this.#intents.get(id);
    const final = before?.status !== "PENDING" && before?.phase !== "grace";
    if (seconds > 0 && !final) {
      const changed = once(this.happenings, `changed ${id}`, { signal: AbortSignal.timeout(seconds * 1_000) }).catch(() => {});
      this.happenings.emit("hold", call);
      await changed;
    }
    return this.#view(call, id);
  }

  #listIntents(call: Recorded): Json {
    this.#secretOnly(call);
    const { status, customer_reference: reference } = call.query;
    const rows = [...this.#intents.values()].reverse();
    return this.#page(
      call,
      rows.filter((row) => (!status || row.status === status) && (!reference || row.customer_reference === reference)),
    );
  }

  #cancel(call: Recorded, id: string): Json {
    if (this.#view(call, id).status === "JOINED")
      throw new Refusal(409, "already_joined", "This registration intent has already been joined.");
    this.change(id, { status: "REJECTED", rejection_reason: "canceled_by_app", phase: null });
    return this.#view(call, id);
  }

  #extend(call: Recorded, id: string): Json {
    if (this.#view(call, id).status !== "PENDING")
      throw new Refusal(409, "not_pending", "This registration intent is no longer pending.");
    this.change(id, { expires_at: new Date(Date.now() + Number(read(call).expires_in) * 1_000).toISOString() });
    return this.#view(call, id);
  }

  /** The intent as this caller may see it. */
  #view(call: Recorded, id: string): Json {
    const kind = this.#caller(call);
    const intent = this.#intents.get(id) ?? notFound();
    const secret = call.headers["x-wabery-client-secret"];
    if (secret !== undefined && secret !== this.#secrets.get(id))
      throw new Refusal(403, "wrong_client_secret", "This client secret does not belong to this registration intent.");
    if (kind === "secret") return intent;
    const names = ["object", "id", "status", "phase", "livemode", "created_at", "expires_at", "joined_at"];
    if (secret) names.push("wa_link");
    return Object.fromEntries(names.map((name) => [name, intent[name]]));
  }

  #page(call: Recorded, rows: Json[]): Json {
    const limit = Number(call.query.limit ?? 10);
    const from = call.query.cursor ? Number(atob(call.query.cursor)) : 0;
    const more = rows.length > from + limit;
    return {
      object: "list",
      data: rows.slice(from, from + limit),
      has_more: more,
      next_cursor: more ? btoa(String(from + limit)) : null,
    };
  }

  #caller({ headers }: Recorded): "publishable" | "secret" {
    if (headers["x-wabery-publishable-key"] === this.publishableKey && headers.authorization === undefined) return "publishable";
    if (headers.authorization !== `Bearer ${this.secretKey}`)
      throw new Refusal(
        401,
        "invalid_api_key",
        "This API key is not valid.",
        undefined,
        "Check for a typo with `wabery keys check`.",
      );
    if (headers.origin !== undefined)
      throw new Refusal(403, "secret_key_in_browser", "A secret key was sent from a browser.", undefined, "Revoke this key now.");
    return "secret";
  }

  #secretOnly(call: Recorded): void {
    if (this.#caller(call) !== "secret")
      throw new Refusal(403, "insufficient_scope", "This API key lacks the scope this call needs.");
  }
}

function read(call: Recorded): Json {
  if (call.body === "") return {};
  if (call.headers["content-type"] !== "application/json")
    throw new Refusal(415, "unsupported_media_type", "Send the body as JSON with Content-Type: application/json.");
  return JSON.parse(call.body) as Json;
}

function notFound(): never {
  throw new Refusal(404, "not_found", "There is no such object.");
}
