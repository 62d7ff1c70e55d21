/**
 * Records that hold a chat: SEED-Bench-R1's SFT records (`prompt` and `response`) and plain ones (`messages`, whose last assistant turn is the
 * response). Media paths are relative to the media root.
 */

import { isAbsolute, join } from "node:path";
import { DataError } from "../errors.ts";
import type { ChatMessage, ContentPart, Sample } from "../types.ts";
import type { Fields, ReadContext } from "./fields.ts";

const ROLES = ["system", "user", "assistant"];

/** training_with_cot_*.jsonl: `prompt`, a chat that ends with the user's turn, and `response`, the chain of thought and answer to learn. */
export function seedBenchSftSample(fields: Fields, id: string, context: ReadContext): Sample {
  return sample(fields, id, context, readMessages(fields, "prompt", context.mediaRoot), fields.text("response"));
}

/** `messages`; an assistant turn at the end is the response, the rest is the prompt. */
export function chatSample(fields: Fields, id: string, context: ReadContext): Sample {
  const messages = readMessages(fields, "messages", context.mediaRoot);
  const last = messages.at(-1);
  if (last?.role !== "assistant") return sample(fields, id, context, messages, undefined);
  if (mediaIn(last.content)) throw fields.error("the last turn, which is the response, must be text");
  const response = textOf(last.content);
  return sample(fields, id, context, messages.slice(0, -1), response);
}

/** The response that SFT learns. @throws DataError for a record without one */
export function responseOf({ response, source, id }: Sample): string {
  if (response !== undefined) return response;
  throw new DataError({ ...source, sampleId: id }, "has no response to learn; SFT needs one in every record");
}

function sample(
  fields: Fields,
  id: string,
  context: ReadContext,
  messages: ChatMessage[],
  response: string | undefined,
): Sample {
  if (messages.at(-1)?.role !== "user") throw fields.error("the prompt must end with the user's turn");
  const stated = fields.has("solution") ? fields.text("solution") : undefined;
  const answer = /<answer>.*?<\/answer>/s.exec(response ?? "")?.[0];
  return {
    id,
    messages,
    solution: stated ?? answer ?? "",
    ...(response === undefined ? {} : { response }),
    fields: fields.record,
    source: context.source,
  };
}

function readMessages(fields: Fields, name: string, root: string): ChatMessage[] {
  const value = fields.record[name];
  if (!Array.isArray(value) || value.length === 0) fields.fail(name, "a list of chat messages");
  return value.map((message, i) => readMessage(fields, `${name}[${i}]`, message, root));
}

function readMessage(fields: Fields, path: string, message: unknown, root: string): ChatMessage {
  const { role, content } = (message ?? {}) as Record<string, unknown>;
  if (typeof role !== "string" || !ROLES.includes(role)) {
    throw fields.error(`${path}.role must be one of ${ROLES.join(", ")}, got ${JSON.stringify(role)}`);
  }
  if (typeof content === "string") return { role: role as ChatMessage["role"], content };
  if (!Array.isArray(content)) throw fields.error(`${path}.content must be a string or a list of parts`);
  const parts = content.map((part, j) => readPart(fields, `${path}.content[${j}]`, part, root));
  return { role: role as ChatMessage["role"], content: parts };
}

/** Tables that were written with one column a kind of part leave the others null: only the part's own field counts. */
function readPart(fields: Fields, path: string, part: unknown, root: string): ContentPart {
  const { type, text, image, video } = (part ?? {}) as Record<string, unknown>;
  const place = (file: string) => (isAbsolute(file) ? file : join(root, file));
  if (type === "text" && typeof text === "string") return { type, text };
  if (type === "image" && typeof image === "string") return { type, image: place(image) };
  if (type === "video" && typeof video === "string") return { type, video: place(video) };
  throw fields.error(`${path} must be a text, image or video part, got ${JSON.stringify(part)?.slice(0, 80)}`);
}

export function mediaIn(content: ChatMessage["content"]): boolean {
  return typeof content !== "string" && content.some(({ type }) => type !== "text");
}

function textOf(content: ChatMessage["content"]): string {
  if (typeof content === "string") return content;
  return content.map((part) => (part.type === "text" ? part.text : "")).join("");
}
