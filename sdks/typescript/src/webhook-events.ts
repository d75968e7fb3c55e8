/** The events that webhooks bring, by `event`. Values may be newer than these types; fields may be added. */

import type { ReferenceTrust, RegistrationIntent, WhatsAppIdentity } from "./registration-intents.js";
import type { OpenString } from "./types.js";

/** Fields of every payload. */
export interface EventPayload {
  /** Equal on every attempt and replay: the key by which to drop duplicates. */
  event_id: string;
  organization_id: string;
  project_id: string;
  livemode: boolean;
  created_at: string;
}

/** Fields of the payloads that are about a person. */
export interface PersonPayload extends EventPayload {
  contact_id: string;
  conversation_id: string | null;
  channel_id: string | null;
  /** Phone number, or null where WhatsApp shows none. */
  from: string | null;
  whatsapp: WhatsAppIdentity;
}

export interface ParticipantJoinedPayload extends PersonPayload {
  registration_intent_id: string;
  customer_reference: string;
  contact_reference: string;
  metadata: Record<string, unknown>;
  metadata_trusted: boolean;
  reference_trust: ReferenceTrust;
  message_id: string;
  joined_at: string;
  /** The same person had joined with the same reference before. */
  already_linked: boolean;
}

export interface ParticipantUnlinkedPayload extends PersonPayload {
  customer_reference: string;
  contact_reference: string;
  registration_intent_id: string | null;
  reason: OpenString<"unlinked_by_app" | "unlinked_by_customer" | "disowned" | "replaced" | "erased">;
}

export interface ParticipantIdentityChangedPayload extends PersonPayload {
  customer_reference: string;
  contact_reference: string;
  previous: Record<string, unknown>;
  current: Record<string, unknown>;
}

/** What the person pressed or filled in: a button, a row of a list, a form. */
export interface MessageReply {
  id: string | null;
  title: string | null;
  payload: string | null;
  /** A form's answers, as the JSON text that WhatsApp sends. */
  response: string | null;
}

/** The file of a message. Download it from Meta by its id. */
export interface MessageMedia {
  id: string | null;
  mime_type: string | null;
  sha256: string | null;
  filename: string | null;
  voice: boolean | null;
  animated: boolean | null;
}

export interface MessageReceivedPayload extends PersonPayload {
  agent_id: null;
  message_id: string;
  text: string | null;
  /** WhatsApp's own word: text, image, interactive, unsupported… */
  type: string;
  sent_at: string;
  /** WhatsApp's id of the message (`wamid…`). */
  provider_message_id: string;
  forwarded: boolean;
  /** `agent`: Meta's Business Agent holds the conversation. */
  handled_by: OpenString<"app" | "agent">;
  reply: MessageReply | null;
  media: MessageMedia | null;
  /** The message that this one answers, by WhatsApp's id. */
  context: { message_id: string } | null;
  /** The ad or post that led the person here, as WhatsApp describes it. */
  referral: Record<string, unknown> | null;
  /** WhatsApp's own object for the message's type, tokens redacted. */
  content: unknown;
  content_truncated: boolean;
  /** The event that announced this message while WhatsApp withheld its content. */
  replaces_event_id: string | null;
  /** Null while the contact is linked to nobody. */
  customer_reference: string | null;
  contact_reference: string | null;
  metadata: Record<string, unknown> | null;
  reference_trust: ReferenceTrust | null;
  registration_intent_id: string | null;
}

/** The intent as a secret key reads it. Where a message led here, also whose it was and what became of it. */
export interface RegistrationIntentPayload extends EventPayload, Partial<Omit<PersonPayload, keyof EventPayload>> {
  registration_intent_id: string;
  customer_reference: string;
  contact_reference: string;
  registration_intent: RegistrationIntent;
  attempt?: { code: string; message_id: string };
}

export interface SecurityPayload extends PersonPayload {
  registration_intent_id: string;
  customer_reference: string;
  /** Of `security.token_reuse`: how often other people have sent the token so far. */
  count?: number;
}

export interface WebhookEndpointPayload extends EventPayload {
  endpoint_id: string;
  reason: string;
  since: string;
}

interface Delivered<Type extends string, Payload> {
  event: Type;
  payload: Payload;
  /** When the event was written; equal on every attempt. */
  sentAt: string;
}

export type WebhookEvent =
  | Delivered<"participant.joined", ParticipantJoinedPayload>
  | Delivered<"participant.unlinked", ParticipantUnlinkedPayload>
  | Delivered<"participant.identity_changed", ParticipantIdentityChangedPayload>
  | Delivered<"message.received", MessageReceivedPayload>
  | Delivered<
      | "registration_intent.created"
      | "registration_intent.rejected"
      | "registration_intent.expired"
      | "registration_intent.review_requested"
      | "registration_intent.attempt_failed",
      RegistrationIntentPayload
    >
  | Delivered<"security.token_reuse" | "security.declined", SecurityPayload>
  | Delivered<"webhook_endpoint.disabled" | "webhook_endpoint.failing", WebhookEndpointPayload>;
