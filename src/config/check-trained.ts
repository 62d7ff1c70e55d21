/** Which knobs of adapters, frozen parts and their rates cannot go together. */

import { LORA_PARTS, LORA_TARGETS, type Piece } from "./lora.ts";
import type { Config } from "./schema.ts";
import { trainedPieces } from "./trained-parts.ts";

type Refuse = (wrong: boolean, knob: string, problem: string) => void;

export function checkTrained(config: Config, refuse: Refuse): void {
  const { lora, model, trainer, optimizer, distributed } = config;
  refuse(
    lora === undefined && trainedPieces(config).size === 0,
    "trainer.freeze",
    "every part is frozen: there is nothing to train",
  );
  const trained = trainedPieces(config);
  for (const name of Object.keys(optimizer.partRates)) {
    const isUsed = name === "lora" ? lora !== undefined : [...trained].some((piece) => covers(name, piece));
    refuse(
      !isUsed,
      `optimizer.partRates.${name}`,
      name === "lora"
        ? "there is no adapter to train: set lora.rank"
        : lora === undefined
          ? "this part is frozen"
          : "with lora all weights of the model are frozen; the rate of the adapter is that of lora",
    );
  }
  if (lora === undefined) return;

  for (const part of LORA_PARTS) {
    const ofPart = (lora.targets ?? []).filter((target) => (LORA_TARGETS[part] as readonly string[]).includes(target));
    const isAsked = lora.parts.includes(part);
    refuse(
      !isAsked && ofPart.length > 0,
      "lora.targets",
      `${ofPart.join(", ")} belong to ${part}, which lora.parts does not name; it has ${LORA_TARGETS[lora.parts[0] as "language"].join(", ")}`,
    );
    refuse(
      isAsked && lora.targets !== undefined && ofPart.length === 0,
      "lora.targets",
      `none of ${part}, which lora.parts names; it has ${LORA_TARGETS[part].join(", ")}`,
    );
  }
  refuse(
    trainer.freeze.length > 0,
    "trainer.freeze",
    "with lora all weights of the model are frozen, and there is nothing left to freeze; lora.parts says what has an adapter",
  );
  refuse(
    model.freezeVision && lora.parts.includes("vision"),
    "model.freezeVision",
    "lora.parts names vision, whose features would change with the adapter",
  );
  refuse(
    model.recompute === "selective",
    "model.recompute",
    "a layer with an adapter keeps all or is computed again as a whole; set auto, none or layer",
  );
  refuse(
    trainer.referenceEvery > 0,
    "trainer.referenceEvery",
    "with lora the reference is the model without its adapter, which does not move",
  );
  refuse(
    distributed.shardReference,
    "distributed.shardReference",
    "with lora the reference is the model without its adapter and takes no memory that could be shared out",
  );
}

/** Whether a name of a part is that of a piece or of the part that it belongs to. */
function covers(name: string, piece: Piece): boolean {
  return name === piece || piece.startsWith(`${name}.`);
}
