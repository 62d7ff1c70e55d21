import { afterEach, beforeEach, vi } from "vitest";

interface Written {
  text: string;
}

/** Collects what is written to a stream instead of writing it, until `vi.restoreAllMocks()`. */
export function capture(stream: NodeJS.WriteStream, written: Written = { text: "" }): Written {
  vi.spyOn(stream, "write").mockImplementation((text) => {
    written.text += String(text);
    return true;
  });
  return written;
}

/** Has every test of the file that calls it write into these: standard output and standard error, empty at the test's beginning. */
export function captureOutput(): { out: Written; err: Written } {
  const out = { text: "" };
  const err = { text: "" };
  beforeEach(() => {
    out.text = err.text = "";
    capture(process.stdout, out);
    capture(process.stderr, err);
  });
  afterEach(() => vi.restoreAllMocks());
  return { out, err };
}
