/** Projects: tenants with their policy and webhook settings. Scopes `projects:read` and `projects:write`. */

import type { ApiKey } from "./api-keys.js";
import type { RequestOptions, Transport } from "./http.js";
import type { ApiPromise, PagePromise } from "./promises.js";
import type { ListParams, OpenString } from "./types.js";

export interface Project {
  object: "project";
  id: string;
  organization_id: string;
  name: string;
  livemode: boolean;
  prefilled_text: string;
  prefilled_texts: Record<string, string>;
  publishable_expires_in: number;
  secret_expires_in: number;
  supersede: boolean;
  unsigned_references: OpenString<"accept" | "refuse">;
  on_identity_linked: OpenString<"reject" | "replace" | "allow">;
  on_reference_linked: OpenString<"replace" | "reject">;
  references_per_contact: number;
  created_at: string;
  /** Not in a list. */
  webhook_url?: string | null;
  webhook_disabled_reason?: string | null;
  /** Shown with scope `projects:write`, and never in a list. */
  webhook_secret?: string;
}

/** A new project, with its first key: the key that founds a project cannot look inside. */
export type FoundedProject = Project & { api_key: ApiKey & { key: string } };

export interface ProjectCreateParams {
  name: string;
  /** Cannot be changed later: it decides the prefix of the project's keys. */
  livemode?: boolean | undefined;
}

export interface ProjectUpdateParams {
  name?: string | undefined;
  /** Where events are sent; null stops deliveries. */
  webhookUrl?: string | null | undefined;
  webhookSecret?: string | undefined;
  /** What stands in the person's message, with one `{token}`. */
  prefilledText?: string | undefined;
  /** The same by language: `{ de: "Mein Konto verbinden: {token}" }`. */
  prefilledTexts?: Record<string, string> | undefined;
  /** Seconds that a link lives by default, by the kind of key that mints it. */
  publishableExpiresIn?: number | undefined;
  secretExpiresIn?: number | undefined;
  /** Whether a sixth pending intent of one reference ends the oldest, or is refused. */
  supersede?: boolean | undefined;
  unsignedReferences?: OpenString<"accept" | "refuse"> | undefined;
  onIdentityLinked?: OpenString<"reject" | "replace" | "allow"> | undefined;
  onReferenceLinked?: OpenString<"replace" | "reject"> | undefined;
  referencesPerContact?: number | undefined;
}

const PATH = "projects";

export class Projects {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  create(params: ProjectCreateParams, options?: RequestOptions): ApiPromise<FoundedProject> {
    return this.#transport.request("POST", [PATH], params, options);
  }

  get(id: string, options?: RequestOptions): ApiPromise<Project> {
    return this.#transport.request("GET", [PATH, id], undefined, options);
  }

  list(params?: ListParams, options?: RequestOptions): PagePromise<Project> {
    return this.#transport.list([PATH], params, options);
  }

  /** Changes the named settings and leaves the others. */
  update(id: string, params: ProjectUpdateParams, options?: RequestOptions): ApiPromise<Project> {
    return this.#transport.request("PATCH", [PATH, id], params, options);
  }

  /** A new signing secret for the project's webhook; the answer shows it. */
  rotateWebhookSecret(id: string, options?: RequestOptions): ApiPromise<Project> {
    return this.#transport.request("POST", [PATH, id, "rotate-webhook-secret"], undefined, options);
  }
}
