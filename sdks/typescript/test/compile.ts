/** Compiles sources as strictly as the SDK itself, into a folder of their own. */

import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** What the compiler complains of; nothing where all is well. They are below dist/`name` then. */
export function compile(name: string, sources: Record<string, string>): string {
  const folder = fileURLToPath(new URL(`../${name}/`, import.meta.url));
  mkdirSync(folder, { recursive: true });
  for (const [file, source] of Object.entries(sources)) writeFileSync(join(folder, file), source);
  const config = {
    extends: "../../test/tsconfig.json",
    compilerOptions: { rootDir: ".", outDir: "." },
    include: ["*.ts"],
    exclude: [],
  };
  writeFileSync(join(folder, "tsconfig.json"), JSON.stringify(config));
  const tsc = join(dirname(createRequire(import.meta.url).resolve("typescript/package.json")), "bin", "tsc");
  const { status, stdout } = spawnSync(process.execPath, [tsc, "-p", folder], { encoding: "utf8" });
  return status === 0 ? "" : stdout;
}
