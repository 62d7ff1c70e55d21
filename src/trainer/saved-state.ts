/**
 * What ranks share out among them, in a checkpoint: the optimizer's state and a reference that moves. Written by one rank or by several, each its part,
 * read by any number of ranks.
 */

import { readdirSync } from "node:fs";
import path from "node:path";
import { SafetensorsFile } from "../model/safetensors.ts";
import { cat, reshape, slice } from "../torch/ops.ts";
import type { Tensor } from "../torch/tensor.ts";
import type { StateEntry } from "./optimizer-shares.ts";

/** The file of a rank's part; of a rank that is alone, of everything. */
export function stateFile({ rank, world }: { rank: number; world: number }, kind: Kind = "optimizer"): string {
  const number = (n: number) => String(n).padStart(5, "0");
  return world === 1 ? `${kind}.safetensors` : `${kind}-${number(rank + 1)}-of-${number(world)}.safetensors`;
}

type Kind = "optimizer" | "reference";

/** What an entry is called in its file: `model.norm.weight.m`, or `model.norm.weight.m[256:512]` of elements [256, 512). */
export function savedName({
  name,
  isWhole,
  begin,
  end,
}: Pick<StateEntry, "name" | "isWhole" | "begin" | "end">): string {
  return isWhole ? name : `${name}[${begin}:${end}]`;
}

interface Piece {
  file: SafetensorsFile;
  savedAs: string;
  begin: number;
  end: number;
  isWhole: boolean;
}

/** The files of all ranks. */
export function stateFiles(checkpoint: string, kind: Kind): string[] {
  const isOne = (name: string) => /^(-\d+-of-\d+)?\.safetensors$/.test(name.slice(kind.length));
  return readdirSync(checkpoint)
    .filter((name) => name.startsWith(kind) && isOne(name))
    .sort();
}

export class SavedState implements Disposable {
  readonly #files: SafetensorsFile[] = [];
  readonly #pieces = new Map<string, Piece[]>(); // by entry, in order

  /** @throws CheckpointError for a file that cannot be read */
  constructor(checkpoint: string, kind: Kind = "optimizer") {
    for (const name of stateFiles(checkpoint, kind)) {
      const file = new SafetensorsFile(path.join(checkpoint, name));
      this.#files.push(file);
      for (const savedAs of file.names()) this.#note(file, savedAs);
    }
    for (const pieces of this.#pieces.values()) pieces.sort((a, b) => a.begin - b.begin);
  }

  #note(file: SafetensorsFile, savedAs: string): void {
    const [, name = savedAs, begin, end] = /^(.*)\[(\d+):(\d+)\]$/.exec(savedAs) ?? [];
    const isWhole = begin === undefined;
    const size = file.shape(savedAs).reduce((product, n) => product * n, 1);
    const piece = { file, savedAs, begin: Number(begin ?? 0), end: Number(end ?? size), isWhole };
    this.#pieces.set(name, [...(this.#pieces.get(name) ?? []), piece]);
  }

  /** The saved elements of an entry, in its shape where it is a whole parameter's; undefined where some are missing. */
  read({ name, isWhole, begin, end, tensor }: StateEntry): Tensor | undefined {
    const pieces = this.#pieces.get(name);
    const [only] = pieces ?? [];
    if (pieces === undefined || only === undefined) return undefined;
    if (isWhole && only.isWhole) return only.file.tensor(only.savedAs);
    let have = begin;
    const parts: Tensor[] = [];
    for (const piece of pieces) {
      if (piece.end <= have || piece.begin >= end) continue;
      if (piece.begin > have) return undefined;
      const to = Math.min(end, piece.end);
      const flat = reshape(piece.file.tensor(piece.savedAs), [-1]);
      parts.push(slice(flat, 0, have - piece.begin, to - piece.begin));
      have = to;
    }
    if (have < end) return undefined;
    const joined = parts.length === 1 ? (parts[0] as Tensor) : cat(parts, 0);
    return isWhole ? reshape(joined, tensor.shape) : joined;
  }

  [Symbol.dispose](): void {
    for (const file of this.#files) file[Symbol.dispose]();
  }
}
