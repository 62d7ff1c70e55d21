import { CheckpointError } from "../errors.ts";

/** @throws CheckpointError that names the file where its text is no object of JSON */
export function parseObject(path: string, text: string): Record<string, unknown> {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new CheckpointError(path, "is not valid JSON", {}, error);
  }
  if (typeof json !== "object" || json === null || Array.isArray(json))
    throw new CheckpointError(path, "is not a JSON object");
  return json as Record<string, unknown>;
}
