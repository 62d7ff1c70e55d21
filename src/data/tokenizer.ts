/** Text to token ids and back, and chats to text: AutoTokenizer of @huggingface/transformers over a local folder, never the network. */

import { existsSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { AutoTokenizer, env, type PreTrainedTokenizer } from "@huggingface/transformers";
import { CheckpointError } from "../errors.ts";
import type { ChatMessage } from "../types.ts";

env.allowRemoteModels = false;
env.localModelPath = "/"; // model names below are absolute paths

/** Qwen2-VL's own chat template, for folders that carry none. */
export const QWEN2_VL_CHAT_TEMPLATE = [
  "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}",
  "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}",
  "<|im_start|>{{ message['role'] }}\n",
  "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n",
  "{% else %}{% for content in message['content'] %}",
  "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}",
  "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}",
  "<|vision_start|><|image_pad|><|vision_end|>",
  "{% elif content['type'] == 'video' or 'video' in content %}",
  "{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}",
  "<|vision_start|><|video_pad|><|vision_end|>",
  "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}",
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
].join("");

export class Tokenizer {
  /** Ids that end a completion: generation_config.json's list, else the tokenizer's own end-of-sequence id. */
  readonly eosTokenIds: readonly number[];
  readonly padTokenId: number;
  /** Number of ids the tokenizer knows, added tokens included; a model's embedding may have more rows. */
  readonly vocabSize: number;
  readonly #tokenizer: PreTrainedTokenizer;
  readonly #template: string;
  readonly #ids: Map<string, number>;

  private constructor(folder: string, tokenizer: PreTrainedTokenizer) {
    this.#tokenizer = tokenizer;
    this.#template = readChatTemplate(folder);
    this.#ids = tokenizer.get_vocab();
    let largest = -1;
    for (const id of this.#ids.values()) largest = Math.max(largest, id);
    this.vocabSize = largest + 1;
    const generation = readJson(folder, "generation_config.json");
    const eos = generation?.eos_token_id ?? tokenizer.eos_token_id;
    this.eosTokenIds = (Array.isArray(eos) ? eos : [eos]).filter((id): id is number => typeof id === "number");
    if (this.eosTokenIds.length === 0) throw new CheckpointError(folder, "names no end-of-sequence token");
    this.padTokenId = tokenizer.pad_token_id ?? (this.eosTokenIds.at(-1) as number);
  }

  /**
   * Reads tokenizer.json, tokenizer_config.json, the chat template and the stop ids of a model folder.
   *
   * @throws CheckpointError when a file is missing or cannot be used
   */
  static async load(folder: string): Promise<Tokenizer> {
    for (const name of ["tokenizer.json", "tokenizer_config.json"]) {
      if (!existsSync(join(folder, name))) throw new CheckpointError(folder, `has no ${name}`);
    }
    const path = resolve(folder);
    try {
      const tokenizer = await AutoTokenizer.from_pretrained(path, { local_files_only: true });
      return new Tokenizer(path, tokenizer);
    } catch (cause) {
      if (cause instanceof CheckpointError) throw cause;
      throw new CheckpointError(folder, `the tokenizer cannot be loaded: ${(cause as Error).message}`, {}, cause);
    }
  }

  /** Token ids of a text; special tokens written in it count as such, none are added. */
  encode(text: string): Int32Array {
    return Int32Array.from(this.#tokenizer.encode(text, { add_special_tokens: false }));
  }

  decode(ids: ArrayLike<number>, options: { skipSpecialTokens?: boolean } = {}): string {
    if (ids.length === 0) return ""; // the library refuses an empty list
    return this.#tokenizer.decode(Array.from(ids), {
      skip_special_tokens: options.skipSpecialTokens ?? false,
      clean_up_tokenization_spaces: false,
    });
  }

  /** The chat as the model reads it, one placeholder per picture or video; with `addGenerationPrompt` the assistant's turn is opened. */
  chatText(messages: readonly ChatMessage[], options: { addGenerationPrompt: boolean }): string {
    return this.#tokenizer.apply_chat_template(messages as never, {
      tokenize: false,
      add_generation_prompt: options.addGenerationPrompt,
      chat_template: this.#template,
    }) as string;
  }

  /** The id of one token. @throws CheckpointError when the vocabulary lacks it */
  idOf(token: string): number {
    const id = this.#ids.get(token);
    if (id === undefined) throw new CheckpointError("tokenizer.json", `has no token ${token}`);
    return id;
  }
}

function readChatTemplate(folder: string): string {
  const jinja = join(folder, "chat_template.jinja");
  if (existsSync(jinja)) return readFileSync(jinja, "utf8");
  for (const name of ["chat_template.json", "tokenizer_config.json"]) {
    const template = readJson(folder, name)?.chat_template;
    if (typeof template === "string") return template;
  }
  return QWEN2_VL_CHAT_TEMPLATE;
}

function readJson(folder: string, name: string): Record<string, unknown> | undefined {
  const path = join(folder, name);
  if (!existsSync(path)) return undefined;
  try {
    return JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;
  } catch (cause) {
    throw new CheckpointError(path, "is not valid JSON", {}, cause);
  }
}
