/** Lets a test run the SDK's pauses in no time: the clock moves by them, and the test sees how long they were meant to be. */

import type { TestContext } from "node:test";

/** The pauses from now to the end of the test, in milliseconds, as the SDK makes them. */
export function hurry(t: TestContext): number[] {
  const pauses: number[] = [];
  const setTimer = globalThis.setTimeout;
  const now = performance.now.bind(performance);
  let skipped = 0;
  const hurried = (run: (...args: unknown[]) => void, milliseconds = 0, ...args: unknown[]) => {
    if (!isPause()) return setTimer(run, milliseconds, ...args);
    pauses.push(milliseconds);
    skipped += milliseconds;
    return setTimer(run, 0, ...args);
  };
  t.mock.method(globalThis, "setTimeout", hurried as typeof setTimeout);
  t.mock.method(performance, "now", () => now() + skipped);
  return pauses;
}

/** Node's fetch sets timers with the global `setTimeout` too, and the SDK its deadlines, so the caller is looked at. */
function isPause(): boolean {
  const frames = String(new Error("").stack).split("\n").slice(1);
  const caller = frames.find((frame) => !frame.includes("/hurry.js") && !frame.includes("node:internal/test_runner")) ?? "";
  return caller.includes("/dist/esm/") && !caller.includes("Deadline");
}
