/** What can be told of the place this runs in. */

/** Undefined where there is no environment, as in pages and some workers, or no leave to read it, as in Deno. */
export function environment(name: string): string | undefined {
  try {
    return (globalThis as { process?: { env?: Record<string, string | undefined> } }).process?.env?.[name];
  } catch {
    return undefined;
  }
}

/** A page, and not a server that pretends to be one for its tests. */
export function inBrowser(): boolean {
  const { document, process } = globalThis as { document?: unknown; process?: { versions?: { node?: string } } };
  return document !== undefined && process?.versions?.node === undefined;
}
