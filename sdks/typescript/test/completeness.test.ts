/** The SDK beside openapi.json: every call has a method, every parameter and every field its type. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";
import { Wabery } from "@wabery/sdk";
import { compile } from "./compile.js";

interface Schema {
  $ref?: string;
  properties?: Record<string, Schema>;
  enum?: string[];
}

interface Operation {
  operationId: string;
  parameters?: { name: string }[];
  requestBody?: { content: Record<string, { schema: Schema }> };
}

const contract: {
  paths: Record<string, Record<string, Operation>>;
  webhooks: Record<string, { post: Operation }>;
  components: { schemas: Record<string, Schema> };
} = JSON.parse(readFileSync(new URL("../../../../openapi.json", import.meta.url), "utf8"));

const GROUPS = ["registration_intents", "projects", "api_keys", "channels", "events"];
/** `wait` tells an app the same, and goes on after an interruption. */
const NO_METHOD = ["registration_intents.stream"];
/** Set by options that every call takes, or by their place. */
const OPTIONS = ["id", "items", "Idempotency-Key", "x-wabery-client-secret", "If-None-Match"];
/** What each object of the contract is called here. */
const OBJECTS: Record<string, string> = {
  RegistrationIntent: "RegistrationIntent",
  BrowserRegistrationIntent: "RegistrationIntent",
  MintedRegistrationIntent: "MintedRegistrationIntent",
  ItemError: "ItemError",
  WhatsAppIdentity: "WhatsAppIdentity",
  QrCode: "QrCode",
  Project: "Project",
  FoundedProject: "FoundedProject",
  ApiKey: "ApiKey",
  Channel: "Channel",
  ChannelCheck: "ChannelCheck",
  Finding: "Finding",
  Event: "WaberyEvent",
};

const operations = Object.entries(contract.paths).flatMap(([path, methods]) =>
  Object.entries(methods)
    .filter(([, { operationId = "" }]) => GROUPS.includes(operationId.split(".")[0] ?? "") && !NO_METHOD.includes(operationId))
    .map(([method, operation]) => ({ method: method.toUpperCase(), path, operation })),
);
const camel = (name: string) => name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
const resolved = (schema: Schema | undefined): Schema =>
  (schema?.$ref ? contract.components.schemas[schema.$ref.split("/").at(-1) ?? ""] : schema) ?? {};
const fields = (schema: Schema | undefined) => Object.keys(resolved(schema).properties ?? {});
const union = (names: string[]) => names.map((name) => JSON.stringify(name)).join(" | ") || "never";

describe("every call has a method", () => {
  for (const { method, path, operation } of operations)
    test(operation.operationId, async () => {
      const asked: string[] = [];
      const listen: typeof fetch = async (url, init) => {
        asked.push(`${init?.method} ${new URL(String(url)).pathname}`);
        return new Response('{"data":[],"has_more":false}');
      };
      const wabery = new Wabery({ apiKey: "wab_test_x", baseUrl: "http://contract.invalid/v1", fetch: listen });
      const [group = "", name = ""] = operation.operationId.split(".").map(camel);
      const calls = (wabery as unknown as Record<string, Record<string, (...given: unknown[]) => Promise<unknown>>>)[group];
      const parameters = path.includes("{id}") ? ["x", {}, {}] : [operation.operationId.endsWith("many") ? [] : {}, {}];

      await calls?.[name]?.(...parameters);

      assert.deepEqual(asked, [`${method} ${path.replace("{id}", "x")}`]);
    });
});

test("every parameter, field and payload has a type", () => {
  const wanted = operations.map(({ operation }) => {
    const [group = "", name = ""] = operation.operationId.split(".").map(camel);
    const body = Object.values(operation.requestBody?.content ?? {})[0]?.schema;
    const names = [...(operation.parameters ?? []).map(({ name }) => name), ...fields(body)];
    const given = union(names.filter((name) => !OPTIONS.includes(name)).map(camel));
    return `all<${given}, Names<Parameters<Wabery["${group}"]["${name}"]>[number]>>();`;
  });
  for (const [theirs, ours] of Object.entries(OBJECTS))
    wanted.push(`all<${union(fields(contract.components.schemas[theirs]))}, Names<SDK.${ours}>>();`);
  for (const [event, { post }] of Object.entries(contract.webhooks)) {
    const { properties } = resolved(post.requestBody?.content["application/json"]?.schema);
    wanted.push(`all<${union(fields(properties?.payload))}, Names<Payload<"${event}">>>();`);
  }
  const source = `import type * as SDK from "@wabery/sdk";
import type { Wabery } from "@wabery/sdk";
type Names<T> = T extends readonly (infer Item)[] ? Names<Item> : T extends object ? keyof T : never;
type Payload<Name extends string> = SDK.WebhookEvent extends infer Event
  ? Event extends { event: infer Known; payload: infer Found } ? (Name extends Known ? Found : never) : never
  : never;
const all = <Wanted extends Known, Known>() => {};
${wanted.join("\n")}
`;

  assert.equal(compile("completeness", { "completeness.ts": source }), "");
});
