/**
 * API keys, looked at offline. A key is its prefix, 30 base62 characters, and the CRC32 of both as 6 more, so a typo shows
 * without asking a server. That a key is well-formed does not mean that a server knows it.
 */

import type { KeyKind } from "./keys.js";

const ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const RANDOM = 30;
const CHECKSUM = 6;

const PREFIXES: Record<string, { kind: KeyKind; livemode: boolean | null }> = {
  wab_pub_: { kind: "publishable", livemode: null },
  wab_live_: { kind: "secret", livemode: true },
  wab_test_: { kind: "secret", livemode: false },
};

/** What a key says about itself. */
export interface KeyCheck {
  /** Null: the prefix is not one of ours. */
  kind: KeyKind | null;
  /** Null: a publishable key does not show it. */
  livemode: boolean | null;
  /** Null: the key is well-formed. */
  problem: string | null;
}

/** Checks prefix, length, alphabet and checksum of a key. */
export function checkKey(key: string): KeyCheck {
  for (const [prefix, says] of Object.entries(PREFIXES))
    if (key.startsWith(prefix)) return { ...says, problem: problem(prefix, key.slice(prefix.length)) };
  return { kind: null, livemode: null, problem: "it does not start with wab_pub_, wab_live_ or wab_test_" };
}

function problem(prefix: string, rest: string): string | null {
  const strange = [...rest].find((character) => !ALPHABET.includes(character));
  if (strange) return `it contains ${JSON.stringify(strange)}, which no key does`;
  if (rest.length !== RANDOM + CHECKSUM) return `it has ${rest.length} characters after ${prefix}, not ${RANDOM + CHECKSUM}`;
  if (rest.slice(RANDOM) !== base62(crc32(prefix + rest.slice(0, RANDOM))))
    return "its checksum does not match: a character is wrong";
  return null;
}

/** CRC-32 as in zlib (polynomial 0xEDB88320, reflected) of ASCII text. */
function crc32(text: string): number {
  let crc = ~0;
  for (const character of text) {
    crc ^= character.charCodeAt(0);
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

function base62(number: number): string {
  let digits = "";
  for (let rest = number; digits.length < CHECKSUM; rest = Math.floor(rest / 62)) digits = ALPHABET[rest % 62] + digits;
  return digits;
}
