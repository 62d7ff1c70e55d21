/**
 * Entry point of a reward's worker thread: imports the module it is told, then answers one message per call with the replies of
 * custom.ts (WorkerReply). Plain JavaScript, because a thread starts without the main thread's TypeScript loader.
 */

import { parentPort, workerData } from "node:worker_threads";

const describe = (cause) => (cause instanceof Error ? (cause.stack ?? cause.message) : String(cause));

try {
  const score = (await loadModule(workerData)).default;
  if (typeof score !== "function") throw new Error("its default export is not a function");
  parentPort.on("message", async (args) => {
    try {
      parentPort.postMessage({ values: await score(args) });
    } catch (cause) {
      parentPort.postMessage({ error: describe(cause) });
    }
  });
  parentPort.postMessage({ ready: true });
} catch (cause) {
  parentPort.postMessage({ error: describe(cause) });
}

/**
 * Imports a file URL, through tsx where it is installed; without it, as in a bundle, modules have to be JavaScript. A .ts file outside
 * any package of type "module" counts as CommonJS: both loaders are registered, and its exports lie one `default` deeper.
 */
async function loadModule(url) {
  const [esm, cjs] = await Promise.all([import("tsx/esm/api"), import("tsx/cjs/api")]).catch(() => []);
  esm?.register();
  cjs?.register();
  const module = await import(url);
  return module.default?.__esModule ? module.default : module;
}
