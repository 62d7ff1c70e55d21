import { vi } from "vitest";

/** Collects what is written to a stream instead of writing it, until `vi.restoreAllMocks()`. */
export function capture(stream: NodeJS.WriteStream): { text: string } {
  const written = { text: "" };
  vi.spyOn(stream, "write").mockImplementation((text) => {
    written.text += String(text);
    return true;
  });
  return written;
}
