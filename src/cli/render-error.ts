import { GroveError } from "../errors.ts";

/**
 * What the user sees when a command fails. An error that Grove raises on purpose is one message: its code, what is wrong, and the chain
 * of causes where they say more; so is a refusal of the operating system (a folder that may not be written, a full disk). Anything else is
 * a bug, so its stack is shown.
 */
export function renderError(error: unknown): string {
  if (!(error instanceof GroveError)) {
    if (isSystemError(error)) return `error [${error.code}] ${error.message.replace(`${error.code}: `, "")}`;
    return error instanceof Error ? (error.stack ?? error.message) : `thrown: ${String(error)}`;
  }
  const lines = [`error [${error.code}] ${error.message}`];
  let shown = error.message;
  for (let cause = error.cause; cause instanceof Error; cause = cause.cause) {
    if (!shown.includes(cause.message)) lines.push(`  caused by: ${cause.message}`);
    shown += cause.message;
  }
  const hint = error.details.hint ?? HINTS[error.code];
  if (typeof hint === "string") lines.push(`  hint: ${hint}`);
  return lines.join("\n");
}

function isSystemError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && "syscall" in error && "errno" in error && "code" in error;
}

/** What usually helps, by code; an error's own `details.hint` comes first. */
const HINTS: Readonly<Record<string, string>> = {
  ADDON: "npm run setup builds the addon, npm run doctor shows what is missing",
  CONFIG: "docs/config.md lists every knob; --dry-run prints the resolved config",
  MEDIA: "set data.onBadSample to skip to train without such files; npm run doctor shows which ffmpeg is used",
};
