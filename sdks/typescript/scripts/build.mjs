/** The same sources as ES modules and as CommonJS, each with its types. */

import { spawnSync } from "node:child_process";
import { rmSync, writeFileSync } from "node:fs";

rmSync("dist", { recursive: true, force: true });
for (const config of ["tsconfig.json", "tsconfig.cjs.json"]) {
  const { status } = spawnSync("tsc", ["-p", config], { stdio: "inherit", shell: process.platform === "win32" });
  if (status !== 0) process.exit(1);
}
writeFileSync("dist/cjs/package.json", `${JSON.stringify({ type: "commonjs", sideEffects: false })}\n`);
