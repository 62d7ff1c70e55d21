import { closeSync, mkdirSync, openSync, writeFileSync } from "node:fs";
import path from "node:path";

/** Where a command writes its lines. */
export interface LineOutput extends Disposable {
  writeLine(value: unknown): void;
}

/** Lines of JSON into a file (replaced if there is one, its folder made if needed) or, for "-", to standard output. */
export function openOutput(file: string): LineOutput {
  if (file === "-") {
    return { writeLine: (value) => void process.stdout.write(`${JSON.stringify(value)}\n`), [Symbol.dispose]() {} };
  }
  mkdirSync(path.dirname(path.resolve(file)), { recursive: true });
  const descriptor = openSync(file, "w");
  return {
    writeLine: (value) => writeFileSync(descriptor, `${JSON.stringify(value)}\n`),
    [Symbol.dispose]: () => closeSync(descriptor),
  };
}
