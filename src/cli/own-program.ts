import { createRequire } from "node:module";
import { fileURLToPath, pathToFileURL } from "node:url";

/** The start of a command line that runs this command line in another process: the name of a command follows. */
export function ownProgram(): { program: string; args: string[] } {
  const tsx = pathToFileURL(createRequire(import.meta.url).resolve("tsx")).href;
  const main = fileURLToPath(new URL("main.ts", import.meta.url));
  return { program: process.execPath, args: ["--import", tsx, main] };
}
