/** What can be told from a key without asking the server, and how to show one without giving it away. */

import { WaberyConfigurationError } from "./errors.js";

export type KeyKind = "publishable" | "secret";

/** The key without the white space that copying adds. Throws for anything that cannot be a key, without repeating it. */
export function cleanKey(given: unknown): string {
  const key = typeof given === "string" ? given.trim() : "";
  // Anything but visible ASCII would make fetch throw an error that quotes the whole header.
  if (!/^wab_(pub|live|test)_[!-~]*$/.test(key))
    throw new WaberyConfigurationError(
      "This is not a Wabery API key: it must begin with wab_pub_, wab_live_ or wab_test_ and hold no spaces or line breaks.",
    );
  return key;
}

export function keyKind(key: string): KeyKind {
  return key.startsWith("wab_pub_") ? "publishable" : "secret";
}

export const SECRET_IN_BROWSER =
  "A secret key does not belong in a browser: whoever opens the page can read it. Use a publishable key (wab_pub_…), and revoke this key if the page was ever public.";

/** `wab_live_…4f2a` */
export function maskKey(key: string): string {
  const prefix = /^wab_[a-z]+_/.exec(key)?.[0] ?? "";
  return `${prefix}…${key.length >= prefix.length + 12 ? key.slice(-4) : ""}`;
}

/** Replaces every key, link token, client secret and signing secret in a text by its prefix. */
export function redact(text: string): string {
  return text.replace(/(wab_(?:pub|live|test)_|wjr_|wcs_|whsec_)[\w+/=-]+/gi, "$1…");
}
