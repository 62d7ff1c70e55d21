/**
 * Entry point of a reward's worker thread: imports the module it is told, then answers one message per call with the replies of
 * runner.ts (RunnerReply); what the module prints is sent as `printed`. Plain JavaScript, because a thread starts without the main thread's TypeScript loader.
 */

import { parentPort, workerData } from "node:worker_threads";

const describe = (cause) => (cause instanceof Error ? (cause.stack ?? cause.message) : String(cause));

// Standard output is for the results of commands. By messages: a main thread that reads a worker's streams cannot end while the worker lives.
for (const stream of [process.stdout, process.stderr]) {
  stream.write = (chunk, encoding, done) => {
    const [name, callback] = typeof encoding === "function" ? [undefined, encoding] : [encoding, done];
    parentPort.postMessage({ printed: typeof chunk === "string" ? Buffer.from(chunk, name) : chunk });
    if (callback !== undefined) queueMicrotask(() => callback());
    return true;
  };
}

try {
  const score = (await loadModule(workerData.url)).default;
  if (typeof score !== "function") throw new Error("its default export is not a function");
  const answer = workerData.call === "completion" ? oneByOne : together;
  parentPort.on("message", async ({ args, step }) => {
    try {
      parentPort.postMessage(await answer(score, args, step));
    } catch (cause) {
      parentPort.postMessage({ error: describe(cause) });
    }
  });
  parentPort.postMessage({ ready: true });
} catch (cause) {
  parentPort.postMessage({ error: describe(cause) });
}

/** One call with all completions. */
async function together(score, args, step) {
  const logged = [];
  const columns = {};
  const logExtra = (column, values) => {
    columns[column] = plain([...values]);
  };
  const values = await score(args, { ...step, logMetric: logMetric(logged), logExtra });
  return { values, metrics: means(logged), columns };
}

/** A call for each completion, all at the same time. One that throws leaves the others as they are. */
async function oneByOne(score, args, step) {
  const { prompts, completions, lengths, ...rest } = args;
  const logged = completions.map(() => []);
  const columns = {};
  const calls = completions.map(async (completion, i) => {
    const fields = Object.fromEntries(Object.entries(rest).map(([name, values]) => [name, values[i]]));
    const one = { ...fields, prompt: prompts[i], completion, length: lengths[i] };
    const logExtra = (column, value) => {
      columns[column] ??= completions.map(() => null);
      columns[column][i] = plain(value);
    };
    return score(one, { ...step, logMetric: logMetric(logged[i]), logExtra });
  });
  const settled = await Promise.allSettled(calls);
  return {
    values: settled.map(({ value }) => value),
    errors: settled.map(({ status, reason }) => (status === "rejected" ? describe(reason) : null)),
    metrics: means(logged.flat()), // in the order of the completions, whichever was done first
    columns,
  };
}

function logMetric(logged) {
  return (name, value) => {
    if (!Number.isFinite(value)) throw new TypeError(`logMetric("${name}") wants a finite number, got ${value}`);
    logged.push([String(name), value]);
  };
}

/** The mean of the values of each name. */
function means(logged) {
  const byName = new Map();
  for (const [name, value] of logged) byName.set(name, [...(byName.get(name) ?? []), value]);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  return Object.fromEntries([...byName].map(([name, values]) => [name, mean(values)]));
}

/** What completions.jsonl can hold of a value. */
function plain(value) {
  return JSON.parse(JSON.stringify(value ?? null));
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
