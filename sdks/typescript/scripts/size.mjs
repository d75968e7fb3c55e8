/** The browser entry as a page would load it: bundled, minified, gzipped. Fails above the limit. */

import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const LIMIT = 5_000;

const { outputFiles } = await build({
  entryPoints: ["dist/esm/browser.js"],
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  platform: "browser",
  write: false,
});
const bytes = gzipSync(outputFiles[0].contents, { level: 9 }).length;
console.log(`@wabery/sdk/browser: ${bytes} bytes gzipped, ${LIMIT} allowed`);
process.exitCode = bytes > LIMIT ? 1 : 0;
