/**
 * Trains a small byte-level BPE tokenizer in Qwen2's layout: same pre-tokenizer, same special tokens, a vocabulary of a few hundred
 * entries in place of 151,643. A tiny policy that starts from random weights then spends its parameters on layers, not on embeddings.
 */

import { mkdir, writeFile } from "node:fs/promises";
import path from "node:path";
import { QWEN2_VL_CHAT_TEMPLATE } from "./tokenizer.ts";

/** Qwen2-VL's special tokens, in the order of its ids (151643 onwards). */
export const SPECIAL_TOKENS = [
  "<|endoftext|>",
  "<|im_start|>",
  "<|im_end|>",
  "<|object_ref_start|>",
  "<|object_ref_end|>",
  "<|box_start|>",
  "<|box_end|>",
  "<|quad_start|>",
  "<|quad_end|>",
  "<|vision_start|>",
  "<|vision_end|>",
  "<|vision_pad|>",
  "<|image_pad|>",
  "<|video_pad|>",
] as const;
export type SpecialToken = (typeof SPECIAL_TOKENS)[number];

/** Text the template adds, so that a corpus of questions and answers covers it too. */
export const CHAT_FRAME = "system\nYou are a helpful assistant.\nuser\nassistant\n";

/** How Qwen2 cuts text before BPE, as tokenizer.json spells it. */
const QWEN2_PATTERN =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
/** The same for Node 20, which has no inline flags. */
const QWEN2_WORDS =
  /'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+/gu;

export interface TrainedTokenizer {
  /** Token strings in the printable alphabet of byte-level BPE, by id; special tokens not included. */
  tokens: string[];
  merges: [left: string, right: string][];
  /** Special tokens with their ids, Qwen2-VL's first, then as many reserved ones as make the vocabulary a multiple of 8. */
  special: { id: number; content: string }[];
  vocabSize: number;
}

/**
 * Byte-pair encoding (Sennrich et al. 2016) over bytes: starts from the 256 bytes and joins the most frequent pair again and again, until
 * every word of the corpus is one token or the limit is reached. Ties go to the pair that sorts first, so that the result depends on the
 * corpus only. A punctuation mark never joins the letters after it: `B` is one token after a line break and after `<answer>` alike.
 * @param maxTokens limit on bytes and merges together
 */
export function trainTokenizer(corpus: Iterable<string>, maxTokens = 32_000): TrainedTokenizer {
  const words = countWords(corpus);
  const tokens = [...BYTE_CHARACTERS];
  const merges: [string, string][] = [];
  while (tokens.length < maxTokens) {
    const pair = commonestPair(words);
    if (pair === null) break;
    merges.push(pair);
    const joined = pair[0] + pair[1];
    if (!tokens.includes(joined)) tokens.push(joined);
    for (const word of words) join(word.parts, pair);
  }
  const special = SPECIAL_TOKENS.map((content, i) => ({ id: tokens.length + i, content: content as string }));
  // Matrix products want multiples of 8. Reserved tokens are never seen in text and decode to nothing.
  for (let i = 0; (tokens.length + special.length) % 8 !== 0; i++) {
    special.push({ id: tokens.length + special.length, content: `<|reserved_${i}|>` });
  }
  return { tokens, merges, special, vocabSize: tokens.length + special.length };
}

/** Writes tokenizer.json and tokenizer_config.json, which @huggingface/transformers and Python's transformers both load. */
export async function writeTokenizer(folder: string, tokenizer: TrainedTokenizer): Promise<void> {
  await mkdir(folder, { recursive: true });
  const files = { "tokenizer.json": tokenizerJson(tokenizer), "tokenizer_config.json": tokenizerConfig(tokenizer) };
  for (const [name, content] of Object.entries(files)) {
    await writeFile(path.join(folder, name), `${JSON.stringify(content, null, 2)}\n`);
  }
}

/** Id of a special token. */
export function specialId(tokenizer: TrainedTokenizer, token: SpecialToken): number {
  return tokenizer.tokens.length + SPECIAL_TOKENS.indexOf(token);
}

function tokenizerJson(tokenizer: TrainedTokenizer): object {
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: false, use_regex: false };
  const split = { type: "Split", pattern: { Regex: QWEN2_PATTERN }, behavior: "Isolated", invert: false };
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: tokenizer.special.map(({ id, content }) => ({ id, ...addedToken(content) })),
    normalizer: { type: "NFC" },
    pre_tokenizer: { type: "Sequence", pretokenizers: [split, byteLevel] },
    post_processor: byteLevel,
    decoder: byteLevel,
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: "",
      end_of_word_suffix: "",
      fuse_unk: false,
      byte_fallback: false,
      vocab: Object.fromEntries(tokenizer.tokens.map((token, id) => [token, id])),
      merges: tokenizer.merges.map(([left, right]) => `${left} ${right}`),
    },
  };
}

function tokenizerConfig(tokenizer: TrainedTokenizer): object {
  return {
    add_prefix_space: false,
    added_tokens_decoder: Object.fromEntries(tokenizer.special.map(({ id, content }) => [id, addedToken(content)])),
    additional_special_tokens: tokenizer.special.slice(1).map(({ content }) => content),
    bos_token: null,
    chat_template: QWEN2_VL_CHAT_TEMPLATE,
    clean_up_tokenization_spaces: false,
    eos_token: "<|im_end|>",
    errors: "replace",
    model_max_length: 32768,
    pad_token: "<|endoftext|>",
    split_special_tokens: false,
    tokenizer_class: "Qwen2Tokenizer",
    unk_token: null,
  };
}

function addedToken(content: string) {
  return { content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
}

interface Word {
  parts: string[];
  count: number;
}

function countWords(corpus: Iterable<string>): Word[] {
  const counts = new Map<string, number>();
  for (const text of corpus) {
    for (const [piece] of text.normalize("NFC").matchAll(QWEN2_WORDS)) {
      const cut = /^[^\s\p{L}]\p{L}/u.test(piece) ? 1 : 0; // a mark before letters stays on its own
      for (const word of [piece.slice(0, cut), piece.slice(cut)]) {
        if (word !== "") counts.set(word, (counts.get(word) ?? 0) + 1);
      }
    }
  }
  return [...counts].map(([word, count]) => ({
    parts: Array.from(new TextEncoder().encode(word), (byte) => CHARACTER_OF_BYTE[byte]!),
    count,
  }));
}

function commonestPair(words: readonly Word[]): [string, string] | null {
  const counts = new Map<string, number>();
  for (const { parts, count } of words) {
    for (let i = 1; i < parts.length; i++) {
      const pair = `${parts[i - 1]} ${parts[i]}`; // a space is no character of the byte alphabet
      counts.set(pair, (counts.get(pair) ?? 0) + count);
    }
  }
  let best: string | null = null;
  let most = 0;
  for (const [pair, count] of counts) {
    if (count > most || (count === most && best !== null && pair < best)) {
      best = pair;
      most = count;
    }
  }
  return best === null ? null : (best.split(" ") as [string, string]);
}

function join(parts: string[], [left, right]: [string, string]): void {
  for (let i = 0; i + 1 < parts.length; i++) {
    if (parts[i] === left && parts[i + 1] === right) parts.splice(i, 2, left + right);
  }
}

/** GPT-2's printable stand-ins: visible Latin-1 characters for themselves, the other bytes as U+0100 onwards, indexed by byte. */
const CHARACTER_OF_BYTE: readonly string[] = (() => {
  let extra = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const visible = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    return String.fromCharCode(visible ? byte : extra++);
  });
})();

/** The same in the order of ids: by code point, as GPT-2's and Qwen2's vocabularies begin. */
const BYTE_CHARACTERS: readonly string[] = [...CHARACTER_OF_BYTE].sort();
