/** Chats for `generate`, `score` and `inspect`: lines of JSON, or one question from the command line. */

import { existsSync } from "node:fs";
import path from "node:path";
import type { Config } from "../config/schema.ts";
import { readDataset } from "../data/datasets.ts";
import { STANDARD_INPUT } from "../data/jsonl.ts";
import { DataError } from "../errors.ts";
import type { ChatMessage, ContentPart, Sample } from "../types.ts";

/**
 * Reads lines of `{"messages": [...]}`; "-" is standard input. A relative media path is looked for beside the file, then in the working
 * directory. An assistant turn at the end becomes the sample's `response`.
 * @throws DataError naming file and line for a malformed line, unless `onBadSample` is skip
 */
export async function readChats(input: string, { onBadSample, maxBadSamples }: Config["data"]): Promise<Sample[]> {
  const fromStdin = input === "-";
  const folder = fromStdin ? process.cwd() : path.dirname(path.resolve(input));
  const file = fromStdin ? STANDARD_INPUT : input;
  const source = { file, format: "chat", mediaRoot: folder } as const;
  const samples = await readDataset(source, { onBadSample, maxBadSamples });
  return samples.map((sample) => ({
    ...sample,
    messages: sample.messages.map((message) => placeMedia(message, folder)),
  }));
}

/** One question with its media, as the command line gives it: videos first, then images, then the text. */
export function questionSample(question: string, videos: readonly string[], images: readonly string[]): Sample {
  const content: ContentPart[] = [
    ...videos.map((video): ContentPart => ({ type: "video", video: path.resolve(video) })),
    ...images.map((image): ContentPart => ({ type: "image", image: path.resolve(image) })),
    { type: "text", text: question },
  ];
  const messages: ChatMessage[] = [{ role: "user", content }];
  return { id: "question", messages, solution: "", fields: {}, source: { file: "--question", line: 1 } };
}

/** The chat with its response as the last turn again. @throws DataError when there is none and `required` */
export function wholeChat(sample: Sample, { required }: { required: boolean }): ChatMessage[] {
  if (sample.response !== undefined) return [...sample.messages, { role: "assistant", content: sample.response }];
  if (!required) return sample.messages;
  throw new DataError({ ...sample.source, sampleId: sample.id }, "the last message must be the assistant's");
}

function placeMedia(message: ChatMessage, folder: string): ChatMessage {
  if (typeof message.content === "string") return message;
  const place = (file: string) => {
    const here = path.resolve(path.relative(folder, file));
    return !existsSync(file) && existsSync(here) ? here : file;
  };
  const content = message.content.map((part): ContentPart => {
    if (part.type === "image") return { ...part, image: place(part.image) };
    if (part.type === "video") return { ...part, video: place(part.video) };
    return part;
  });
  return { ...message, content };
}
